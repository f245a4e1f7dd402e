"""Triples in every form: the same graph out of each, honest splits, and one clear line for whatever is wrong."""

import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kgdistil
from kgdistil.errors import DataError, KgdistilError
from kgdistil.graph import Graph
from kgdistil.graphs.readers import read_graph, split

FAR = "x\u2028y"  # a line separator of Unicode within a label
ROWS = [
    ("Zoë", "mother of", "José"),
    ("José", "Bruder", "李 小龙"),
    ("李 小龙", "Bruder", "José"),
    ("Zoë", "Bruder", FAR),
    (FAR, "mother of", "José"),
    ("José", "mother of", "José"),
    ("李 小龙", "mother of", "Zoë"),
    (FAR, "Bruder", "Zoë"),
    ("Zoë", "mother of", "李 小龙"),
    ("José", "Bruder", "Zoë"),
]


def tsv(path: Path, rows=ROWS) -> Path:
    path.write_text("".join("\t".join(row) + "\n" for row in rows), encoding="utf-8", newline="\n")
    return path


def facts(graph: Graph) -> set[tuple[str, str, str]]:
    return {graph.label_triple(*x) for x in graph.known.tolist()}


@pytest.fixture
def frame() -> pd.DataFrame:
    return pd.DataFrame(ROWS, columns=["subject", "predicate", "object"])


def test_every_form_gives_the_same_graph(tmp_path: Path, frame: pd.DataFrame) -> None:
    wanted = read_graph(tsv(tmp_path / "g.tsv"))
    assert facts(wanted) == set(ROWS) and wanted.name == "g" and len(wanted.valid) == len(wanted.test) == 1
    frame.to_csv(tmp_path / "g.csv", index=False)
    frame.assign(weight=1.5)[["weight", "object", "subject", "predicate"]].to_csv(tmp_path / "more.csv", index=False)
    frame.sample(frac=1, random_state=0).to_parquet(tmp_path / "g.parquet")
    (tmp_path / "dos.txt").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "g.tsv").read_bytes().replace(b"\n", b"\r\n"))
    (tmp_path / "head.tsv").write_text("h\tr\tt\n" + (tmp_path / "g.tsv").read_text(encoding="utf-8"), encoding="utf-8")
    for source in (
        *(tmp_path / x for x in ("g.csv", "more.csv", "g.parquet", "dos.txt", "head.tsv")),
        frame,
        np.array(ROWS, dtype=object),
        np.array(ROWS),
    ):
        graph = read_graph(source)
        assert graph.entities == wanted.entities and graph.relations == wanted.relations
        for part in ("train", "valid", "test"):
            assert torch.equal(getattr(graph, part), getattr(wanted, part)), source
        assert graph.sha256 == wanted.sha256
    other = read_graph(tmp_path / "g.tsv", seed=1)
    assert facts(other) == set(ROWS) and other.sha256 != wanted.sha256


def test_rdf(tmp_path: Path) -> None:
    pytest.importorskip("pyoxigraph")
    lines = [
        f"<http://x/{h}> <http://x/{r}> <http://x/{t}> ."
        for h, r, t in [("a", "p", "b"), ("b", "p", "a"), ("a", "q", "b"), ("b", "q", "a"), ("a", "p", "a")]
    ]
    label = '<http://x/a> <http://www.w3.org/2000/01/rdf-schema#label> "Ä é"@de .'
    age = '<http://x/a> <http://x/age> "36" .'
    (tmp_path / "g.nt").write_text("\n".join([*lines, label, age, "_:n <http://x/p> <http://x/a> ."]), encoding="utf-8")
    graph = read_graph(tmp_path / "g.nt")
    assert len(graph.known) == 6 and graph.readable(graph.entities.index("http://x/a")) == "Ä é"
    assert graph.entities[0].startswith("_:") and graph.relations == ("http://x/p", "http://x/q")
    turtle = "@prefix : <http://x/> .\n:a :p :b, :a ; :q :b .\n:b :p :a ; :q :a .\n"
    (tmp_path / "g.ttl").write_text(turtle)
    assert len(read_graph(tmp_path / "g.ttl").known) == 5


def test_columns_names_and_numbers(tmp_path: Path, frame: pd.DataFrame) -> None:
    table = frame.rename(columns={"subject": "von", "predicate": "wie", "object": "nach"})
    graph = read_graph(table[["nach", "von", "wie"]], columns=("von", "wie", "nach"), names={"Zoë": "Zoë A."})
    assert facts(graph) == set(ROWS) and graph.readable(graph.entities.index("Zoë")) == "Zoë A."
    (tmp_path / "names.tsv").write_text("Zoë\tZoë B.\nnobody\tNobody\n", encoding="utf-8")
    assert read_graph(frame, names=tmp_path / "names.tsv").descriptions == {"Zoë": "Zoë B."}
    numbers = np.array([[i, 7, (i + j) % 5] for i in range(5) for j in range(3)])
    assert read_graph(numbers).entities == ("0", "1", "2", "3", "4")
    with pytest.raises(DataError, match="the table has no column 'nein'; it has 'subject, predicate, object'"):
        read_graph(frame, columns=("subject", "nein", "object"))


def test_column_names_that_are_read_as_a_triple(frame: pd.DataFrame, tmp_path: Path, caplog) -> None:
    frame.to_csv(tmp_path / "g.csv", index=False, header=["von", "wie", "nach"])
    with caplog.at_level(logging.WARNING):
        read_graph(tmp_path / "g.csv", columns=("von", "wie", "nach"))
        assert caplog.text == ""
        read_graph(tmp_path / "g.csv")
    assert "no part of the first triple ('von, wie, nach') occurs again; are these the names" in caplog.text


def test_three_parts_and_a_folder(tmp_path: Path, frame: pd.DataFrame, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "family"
    folder.mkdir()
    tsv(folder / "train.tsv", ROWS[:8])
    frame[8:9].to_parquet(folder / "valid.parquet")
    pd.DataFrame([("neu", "Bruder", "Zoë")]).to_csv(folder / "test.csv", index=False, header=False)
    with caplog.at_level(logging.WARNING):
        graph = read_graph(folder)
    assert graph.name == "family" and [len(x) for x in (graph.train, graph.valid, graph.test)] == [8, 1, 1]
    assert "1 entities occur in valid or test only" in caplog.text
    assert read_graph(folder / "train.tsv", folder / "valid.parquet", folder / "test.csv").sha256 == graph.sha256
    tsv(folder / "test.csv".replace("csv", "tsv"), [("Zoë", "new", "José")])
    with pytest.raises(DataError, match="holds 2 files called test"):
        read_graph(folder)
    (folder / "test.csv").unlink()
    with pytest.raises(DataError, match="1 relation.s. of test never occur in training, such as 'new'"):
        read_graph(folder)


def test_duplicates_self_loops_and_blank_lines(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tsv(tmp_path / "g.tsv", [*ROWS, ROWS[0], ROWS[3]])
    path.write_text(path.read_text(encoding="utf-8") + "\n\n", encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        graph = read_graph(path)
    assert facts(graph) == set(ROWS) and len(graph.known) == len(ROWS)  # José is his own mother, and stays
    assert "2 duplicate(s) left out" in caplog.text and "2 blank line(s) left out" in caplog.text


@settings(max_examples=150)
@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 200), st.integers(0, 5), st.floats(0.01, 0.49))
def test_every_entity_and_relation_stays_in_train(
    entities: int, relations: int, n: int, seed: int, share: float
) -> None:
    rng = np.random.default_rng(n)
    triples = np.unique(np.stack([rng.integers(x, size=n) for x in (entities, relations, entities)], 1), axis=0)
    try:
        parts = split(triples, share, seed)
    except DataError as error:
        assert "cannot be split" in str(error)
        return
    train, valid, test = parts
    assert len(valid) == len(test) >= 1 and len(valid) <= max(1, round(share * len(triples)))
    assert sorted(map(tuple, np.concatenate(parts))) == sorted(map(tuple, triples))
    for column in ([0, 2], [1]):
        assert set(train[:, column].ravel()) == set(triples[:, column].ravel())
    again = split(triples[::-1], share, seed)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again))


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("a.tsv", b"", "holds no triple"),
        ("a.csv", b"", "holds no triple"),
        ("a.tsv", b"head\trelation\ttail\n", "holds no triple"),
        ("a.tsv", b"a\tb\n", r"line 1: 2 column\(s\), separated by tabs, in place of 3"),
        ("a.tsv", b"a\tb\tc\na b c\n", r"line 2: 1 column\(s\) in place of 3"),
        ("a.csv", b"a;b;c\n", r"line 1: 1 column\(s\), separated by commas"),
        ("a.csv", b'a,b,c\n"x\n', "unexpected end of data"),
        ("a.tsv", b"a\tb\tc\na\t\tc\n", "line 2: the relation is empty"),
        ("a.csv", b"a,b,c\n,b,c\n", "line 2: the head is empty"),
        ("a.tsv", b"a\tb\tc\n\xff\tb\tc\n", "line 2: byte 0xff is not UTF-8"),
        ("a.tsv", b"a\tb\tc\n", "1 triple.s. cannot be split: nearly each"),
        ("a.parquet", b"PAR1 no", "cannot read"),
        ("a.nt", b"<a> <b> <c> .\n", "cannot read"),
        ("a.ttl", b"@prefix", "cannot read"),
        ("a.pdf", b"%PDF", "unknown ending '.pdf'"),
    ],
)
def test_what_is_wrong_with_a_file(tmp_path: Path, name: str, content: bytes, line: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=line) as caught:
        read_graph(tmp_path / name)
    assert "\n" not in str(caught.value) and name[1:] in str(caught.value).replace("1 triple", "a.tsv ")


@pytest.mark.parametrize(
    ("source", "line"),
    [
        (pd.DataFrame([("a", "b", None)]), "the table, row 0: no label"),
        (pd.DataFrame([("a", "b", 1.5)]), "row 0: '1.5', no text"),
        (pd.DataFrame([("a", "b")]), r"2 column\(s\) in place of 3"),
        (pd.DataFrame([("a", "b", "\ud800")], dtype=object), "row 0: the tail .* cannot be written as UTF-8"),
        (np.zeros((3, 4), int), r"shape \(3, 4\)"),
        (np.array([[True, False, True]]), "row 0: 'True', no text"),
        ("nowhere", "is missing or no regular file; known graphs are"),
        ("pykeen:no such set", "PyKEEN cannot give the data set 'no such set'"),
    ],
)
def test_what_is_wrong_with_a_source(source, line: str) -> None:
    with pytest.raises(DataError, match=line):
        read_graph(source)


def test_a_missing_package_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "g.nt").write_text("")
    monkeypatch.setitem(sys.modules, "pyoxigraph", None)
    with pytest.raises(KgdistilError, match=r'reading .nt needs pyoxigraph: pip install "kgdistil\[own\]"'):
        read_graph(tmp_path / "g.nt")


def test_known_graphs_by_name() -> None:
    pytest.importorskip("pykeen")
    ours, theirs = kgdistil.load("nations"), read_graph("pykeen:nations")
    assert facts(ours) == facts(theirs) and len(ours.test) == len(theirs.test)
    assert read_graph("nations").sha256 == ours.sha256


def test_one_relation_and_an_unconnected_graph_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KGDISTIL_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("KGDISTIL_RESULTS", str(tmp_path / "results"))
    rows = [(f"{c}{i}", "r", f"{c}{j}") for c in "ab" for i in range(5) for j in range(5)]
    graph = read_graph(np.array(rows, dtype=object))
    done = kgdistil.distil(graph, dim=2, teacher_dim=4, epochs=2, stages=1)
    assert 0 < done.student.evaluate()["both"]["mrr"] <= 1


ENDINGS = ("tsv", "csv", "nt", "ttl", "parquet")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole")
    frame = pd.DataFrame(ROWS, columns=["head", "relation", "tail"])
    frame.to_csv(folder / "g.csv", index=False)
    frame.to_parquet(folder / "g.parquet")
    tsv(folder / "g.tsv")
    lines = [f"<http://x/{i}> <http://x/p> <http://x/{j}> ." for i in range(3) for j in range(3)]
    for ending in ("nt", "ttl"):
        (folder / f"g.{ending}").write_text("\n".join(lines))
    return {ending: (folder / f"g.{ending}").read_bytes() for ending in ENDINGS}


@settings(max_examples=700)
@given(st.data(), st.sampled_from(ENDINGS))
def test_a_damaged_file_is_one_line_or_still_a_graph(
    tmp_path_factory, whole: dict[str, bytes], data, ending: str
) -> None:
    content = whole[ending]
    at, junk = data.draw(st.integers(0, len(content))), data.draw(st.binary(max_size=20))
    kind = data.draw(st.sampled_from(["cut", "overwrite", "insert", "anything"]))
    damaged = {
        "cut": content[:at],
        "overwrite": content[:at] + junk + content[at + len(junk) :],
        "insert": content[:at] + junk + content[at:],
        "anything": junk,
    }[kind]
    path = tmp_path_factory.getbasetemp() / f"damaged.{ending}"
    path.write_bytes(damaged)
    try:
        graph = read_graph(path)
    except KgdistilError as error:
        assert "\n" not in str(error) and str(error)
    else:
        assert len(graph.known) >= 3


BIG = """
import resource, sys
import numpy as np, pandas as pd
from kgdistil.graphs.readers import read_graph
path = sys.argv[1]
rng = np.random.default_rng(0)
with open(path, "w") as file:
    for _ in range(4):
        h, t = rng.integers(0, 50_000, (2, 100_000))
        r = rng.integers(0, 10_000, 100_000)
        file.writelines(f"entity number {a}\\trelation {b}\\tentity number {c}\\n" for a, b, c in zip(h, r, t))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
graph = read_graph(path)
print(len(graph.known), graph.num_relations, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_reading_takes_little_memory_for_each_triple(tmp_path: Path) -> None:
    """4 GiB for 10 million triples are 430 bytes for each; here with labels and ten thousand relations."""
    done = subprocess.run(
        [sys.executable, "-c", BIG, str(tmp_path / "big.tsv")], capture_output=True, text=True, check=True
    )
    triples, relations, kib = map(int, done.stdout.split())
    assert triples > 399_000 and relations == 10_000
    assert kib * 1024 / triples < 400
