"""Triples in every form: the same graph out of each, honest splits, and one clear line for whatever is wrong."""

import bz2
import gzip
import logging
import lzma
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

import kgdistil
from kgdistil import cli
from kgdistil.config import RunConfig
from kgdistil.errors import DataError, KgdistilError
from kgdistil.graph import Graph
from kgdistil.graphs import checks
from kgdistil.graphs.readers import read_graph, split
from kgdistil.records import make_record

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
    assert "the first row ('von, wie, nach') is read as a triple" in caplog.text and "--header" in caplog.text


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
    with pytest.raises(DataError, match=r"1 relation.s. of test never occur in training, such as 'new'"):
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
    "name, content, line",
    [
        ("a.tsv", b"", "holds no triple"),
        ("a.csv", b"", "holds no triple"),
        ("a.tsv", b"head\trelation\ttail\n", "holds no triple"),
        ("a.tsv", b"a\tb\n", r"line 1: 2 column\(s\), separated by tabs, in place of 3"),
        ("a.tsv", b"a\tb\tc\na b c\n", r"line 2: 1 column\(s\) in place of 3"),
        ("a.csv", b"\na;b;c\n", r"line 2: 1 column\(s\) in place of 3: 'a;b;c' is separated by semicolons; put commas"),
        ("a.csv", b"head;relation, x;tail\n", "is separated by semicolons; put commas in their place"),
        ("a.csv", b"a\tb\tc\n", "is separated by tabs; name it .tsv"),
        ("a.tsv", b"a,b,c\n", "is separated by commas; name it .csv"),
        ("a.txt", b"a b c\n", "is separated by spaces; put tabs in their place"),
        ("a.txt", b"a  b   c\n", "is separated by spaces; put tabs in their place"),
        ("a.tsv", b"a | b | c\n", "is separated by bars; put tabs in their place"),
        ("a.tsv", b"a\tb\tc\na\tb", r"line 2: 2 column\(s\) in place of 3.* the last line, so the file looks cut off"),
        ("a.csv", b"a,b,c\nb,a", r"line 2: 2 column\(s\) in place of 3.* the last line, so the file looks cut off"),
        ("a.tsv", b"a\tb\tc\na\tb\na\tb\tc\n", r"line 2: 2 column\(s\) in place of 3: .*; correct the line$"),
        ("a.csv", b'a,b,c\nb,"a,c\nc,b,a\n', r"line 2: unexpected end of data; is a quote not closed"),
        ("a.tsv", "a\tb\tc\n".encode("utf-16"), "it looks like UTF-16; save it as UTF-8"),
        ("a.csv", b"PK\x03\x04\xff", "it looks like a zip or a spreadsheet"),
        ("a.tsv", b"PAR1\xff", "it looks like Parquet; name it .parquet"),
        ("a.tsv", "a\tb\tc\n".encode("utf-16-le"), "so it looks like UTF-16; save it as UTF-8"),
        ("a.tsv", b"a\tb\tc\rb\tb\tc\r", "has carriage returns inside; end lines with line feeds"),
        ("a.tsv", b"# from me\na\tb\tc\n", "line 1: .* is a comment; remove such lines"),
        ("a.tsv", b"<!DOCTYPE html>\n", "is of a web page; fetch the file itself"),
        ("a.csv", b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS"),
        ("a.txt", b"<http://a> <http://b> <http://c> .\n", "is of N-Triples; name it .nt"),
        ("a.txt", b"@prefix x: <http://x/> .\n", "is of Turtle; name it .ttl"),
        ("a.tsv", b'{"head": "a", "relation": "b", "tail": "c"}\n', "is of JSON"),
        ("a.tsv", b'a\tb\tc\n"a\nb"\tb\tc\n', "line 2: 1 .* a quote opens there that nothing closes: .tsv has no"),
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


def test_lines_that_hold_nothing(tmp_path: Path) -> None:
    wanted = read_graph(lines(tmp_path / "g.tsv", KIN))
    for glue, name in (("\t", "g.tsv"), (",", "g.csv")):
        for blank in ("   \n", " \u00a0\n", f"{glue}{glue}\n"):
            path = lines(tmp_path / name, KIN, glue=glue)
            path.write_text(blank + path.read_text() + blank, encoding="utf-8")
            graph = read_graph(path, order="hrt", header=False)
            assert graph.sha256 == wanted.sha256 and "2 blank line(s) left out" in graph.notes[0]


@pytest.mark.parametrize(
    "given",
    [
        {"train": "x" * 5000},
        {"train": "x" * 5000 + ".tsv"},
        {"train": "/tmp/" + "x/" * 2000 + "g.tsv"},
        {"train": "x." + "y" * 5000},
        {"order": "h" * 5000},
        {"columns": ("h" * 5000, "r", "t")},
        {"columns": ("h" * 5000,)},
        {"held_out": "0" * 5000},
        {"seed": "0" * 5000},
    ],
)
def test_long_names_are_cut_in_errors(tmp_path: Path, given: dict) -> None:
    lines(tmp_path / "g.tsv", [("head", "relation", "t" * 5000), *KIN])
    with pytest.raises(DataError) as caught:
        read_graph(**{"train": tmp_path / "g.tsv", **given})
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "source, line",
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


# ---- what would come out wrong without a word -----------------------------------------------------------------------
KIN = [(f"p{i}", r, f"p{(3 * i + k) % 12}") for i in range(12) for k, r in enumerate(("likes", "knows", "helps"))]


def lines(path: Path, rows, order=(0, 1, 2), glue: str = "\t") -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(glue.join(str(row[i]) for i in order) + "\n" for row in rows), encoding="utf-8")
    return path


def works(rows=KIN) -> list[tuple[str, str, str]]:
    """Heads and tails that share no label."""
    return [(h, r, f"work {t[1:]}") for h, r, t in rows]


def test_an_order_of_columns_that_is_not_head_relation_tail(tmp_path: Path) -> None:
    wanted = read_graph(lines(tmp_path / "g.tsv", KIN))
    for order, places in (("htr", (0, 2, 1)), ("rht", (1, 0, 2))):
        path = lines(tmp_path / "g.tsv", KIN, places)
        with pytest.raises(DataError, match=f"--order {order}"):
            read_graph(path)
        with pytest.raises(DataError, match=f'order="{order}"'):
            kgdistil.load(folder_of(tmp_path / order, KIN, places))
        assert read_graph(path, order=order).sha256 == wanted.sha256
        table = pd.DataFrame([[row[i] for i in places] for row in KIN])
        assert (
            read_graph(table, order=order).sha256 == read_graph(table.to_numpy(), order=order).sha256 == wanted.sha256
        )
        with pytest.raises(DataError, match=f"--order {order}"):
            read_graph(table)
    for items, kinds in ((45, 1), (45, 3), (300, 1)):  # users, items and few relations, read as items' relations
        rows = [
            (f"user {i}", f"verb {(i + k) % kinds}", f"item {(7 * i + k) % items}") for i in range(60) for k in range(5)
        ]
        with pytest.raises(DataError, match="--order htr"):
            read_graph(lines(tmp_path / "g.tsv", rows, (0, 2, 1)))
        with pytest.raises(DataError, match="--order rht"):
            read_graph(lines(tmp_path / "g.tsv", rows, (1, 0, 2)))
        assert read_graph(lines(tmp_path / "g.tsv", rows)).notes == ()
    rated = [(1000 + i, 1 + k % 5, (7 * i + k) % 50) for i in range(100) for k in range(8)]  # numbers, alike by chance
    assert read_graph(lines(tmp_path / "g.tsv", rated)).num_relations == 5
    with pytest.raises(DataError, match="--order htr"):
        read_graph(lines(tmp_path / "g.tsv", rated, (0, 2, 1)))
    both = lines(
        tmp_path / "g.tsv", [(f"user {i}", f"verb {i % 4}", f"item {(i + k) % 9}") for i in range(20) for k in range(3)]
    )
    assert read_graph(both).notes == ()
    lines(both, [row.split("\t") for row in both.read_text().splitlines()], (0, 2, 1))
    (note,) = read_graph(both).notes  # nine relations between twenty heads and four tails: who knows
    assert "9 relation(s) between 20 heads and 4 tails" in note and "--order htr" in note and "--order hrt" in note
    assert read_graph(both, order="hrt").notes == read_graph(both, order="htr").notes == ()
    many = [(f"user {i}", f"verb {(i + k) % 3}", f"item {(7 * i + k) % 90}") for i in range(60) for k in range(3)]
    with pytest.raises(DataError, match="--order htr"):
        read_graph(lines(tmp_path / "g.tsv", many, (0, 2, 1)))
    assert read_graph(lines(tmp_path / "g.tsv", many)).num_relations == 3
    assert read_graph(lines(tmp_path / "g.tsv", many, (0, 2, 1)), order="hrt").num_relations == 86


@pytest.mark.parametrize("name", ["umls", "kinships", "nations"])
def test_the_order_of_real_graphs_is_not_doubted(name: str) -> None:
    graph = kgdistil.load(name)
    rows = np.array([graph.label_triple(*x) for x in graph.known.tolist()], dtype=object)
    assert read_graph(rows).num_relations == graph.num_relations
    flat = np.unique(rows, return_inverse=True)[1].reshape(-1, 3)
    assert checks.likely_order(flat) is None and checks.likely_order(flat[:, [0, 2, 1]]) == "htr"


def folder_of(folder: Path, rows, order=(0, 1, 2), name: str = "{}.tsv", glue: str = "\t") -> Path:
    """Train, valid and test: the last six rows are held out."""
    for part, some in (("train", rows[:-6]), ("valid", rows[-6:-3]), ("test", rows[-3:])):
        lines(folder / name.format(part), some, order, glue)
    return folder


def numbered(rows=KIN) -> tuple[list, list[str], list[str]]:
    """The rows as numbers, with labels that are not in alphabetical order."""
    entities, relations = [
        list(dict.fromkeys(x)) for x in ([e for h, _, t in rows for e in (h, t)], [r for _, r, _ in rows])
    ]
    return [(entities.index(h), relations.index(r), entities.index(t)) for h, r, t in rows], entities, relations


def test_folders_of_numbers_with_tables_of_labels(tmp_path: Path) -> None:
    """As OpenKE, DGL-KE, RotatE's code and LibKGE lay them out."""
    wanted = read_graph(folder_of(tmp_path / "labels", KIN))
    rows, entities, relations = numbered()
    openke = folder_of(tmp_path / "openke", rows, (0, 2, 1), "{}2id.txt", " ")
    for path in openke.iterdir():
        path.write_text(f"{len(path.read_text().splitlines())}\n{path.read_text()}")
    dgl, libkge, named = (tmp_path / x for x in ("dgl", "libkge", "named"))
    folder_of(dgl, rows, (0, 2, 1)), folder_of(libkge, rows, name="{}.del"), folder_of(named, KIN)
    folder_of(libkge, KIN, name="{}.txt")  # what it was made of
    for what, labels in (("entity", entities), ("relation", relations)):
        (openke / f"{what}2id.txt").write_text(
            f"{len(labels)}\n" + "".join(f"{x}\t{i}\n" for i, x in enumerate(labels))
        )
        for folder, name in ((dgl, "{}.tsv"), (libkge, "{}_ids.del"), (named, "{}.dict")):
            plural = what if "ids" in name else {"entity": "entities", "relation": "relations"}[what]
            lines(folder / name.format(plural), enumerate(labels), (0, 1))
    for folder in (openke, dgl, libkge, named):
        assert read_graph(folder).sha256 == wanted.sha256, folder
    assert facts(read_graph(openke / "train2id.txt")) == set(KIN[:-6])
    (openke / "test2id.txt").rename(openke / "other")
    with pytest.raises(DataError, match="holds no test2id.txt"):
        read_graph(openke)
    (openke / "other").rename(openke / "test2id.txt")
    (openke / "train2id.txt").write_text("31\n" + "\n".join((openke / "train2id.txt").read_text().splitlines()[1:]))
    with pytest.raises(DataError, match="its first line says 31 triples, and 30 follow"):
        read_graph(openke)
    (libkge / "entity_ids.del").write_text("0\tp0\n2\tp1\n")
    with pytest.raises(DataError, match="does not number its 2 labels from 0"):
        read_graph(libkge)


@pytest.mark.parametrize(
    "other",
    [
        " p1",
        "p1 ",
        "p1\u00a0",
        "\u00a0p1",
        "p\u200b1",
        "\ufeffp1",
        "p1\u200e",
        '"p1"',
        "\u2003p1",
        "p\u180e1",
        "p1\0",
        "\x1bp1",
        "p1\u3164",
        "p\u20661\u2069",
        "p1\u034f",
    ],
)
def test_labels_that_look_the_same_are_one(tmp_path: Path, caplog, other: str) -> None:
    wanted = read_graph(np.array(KIN, dtype=object))
    rows = [*KIN[:5], (other, *KIN[5][1:]), *KIN[6:]]
    assert KIN[5][0] == "p1"
    with caplog.at_level(logging.WARNING):
        graph = read_graph(lines(tmp_path / "g.tsv", rows))
    assert graph.entities == wanted.entities and "by which 1 became one with another" in caplog.text
    assert any("became one" in note for note in graph.notes)
    kept = read_graph(lines(tmp_path / "g.tsv", rows), keep_labels=True)
    assert kept.num_entities == wanted.num_entities + 1 and other in kept.entities and not kept.notes
    if other != '"p1"':  # in a table quotes are the label's own
        assert read_graph(pd.DataFrame(rows)).entities == wanted.entities


def test_accents_composed_or_not(tmp_path: Path) -> None:
    rows = [("Zoe\u0308", *KIN[0][1:]), ("Zo\u00eb", *KIN[1][1:]), *KIN]
    assert (
        read_graph(np.array(rows)).num_entities == 13
        and read_graph(np.array(rows), keep_labels=True).num_entities == 14
    )
    joined = "نامه\u200cها"  # a joiner within a word is part of how it is written
    assert joined in read_graph(np.array([(joined, *KIN[0][1:]), *KIN])).entities
    with pytest.raises(DataError, match=r"row 1: the head is empty"):
        read_graph(np.array([KIN[0], ("\u200b ", "r", "x"), *KIN]))


def test_several_spaces_inside_a_label_are_one(tmp_path: Path) -> None:
    rows = [("Ada  Lovelace", *KIN[0][1:]), ("Ada Lovelace", *KIN[1][1:]), ("Ada\u00a0 Lovelace", *KIN[2][1:]), *KIN]
    graph = read_graph(lines(tmp_path / "g.tsv", rows))
    assert graph.num_entities == 13 and any("by which 2 became one" in note for note in graph.notes)
    assert read_graph(tmp_path / "g.tsv", keep_labels=True).num_entities == 15


@pytest.mark.parametrize("other", ["'p1'", 'p1"', "p%31", "p1'", "“p1”"])
def test_labels_that_only_quotes_or_encoding_tell_apart_are_said(tmp_path: Path, other: str) -> None:
    rows = [*KIN[:5], (other, *KIN[5][1:]), *KIN[6:]]
    graph = read_graph(lines(tmp_path / "g.tsv", rows))
    (note,) = graph.notes
    assert graph.num_entities == 13 and note.startswith("1 label(s) differ") and repr(other) in note
    assert read_graph(tmp_path / "g.tsv", keep_labels=True).notes == ()


def test_single_quotes_round_the_fields_of_a_csv(tmp_path: Path) -> None:
    rows = [("a, b", *KIN[0][1:]), *KIN]
    wanted = read_graph(np.array(rows))
    text = "".join(",".join(f"'{cell}'" for cell in row) + "\n" for row in rows)
    for head in ("", "head,relation,tail\n"):
        (tmp_path / "g.csv").write_text(head + text)
        graph = read_graph(tmp_path / "g.csv")
        assert graph.sha256 == wanted.sha256 and "single quotes" in graph.notes[0]
    (tmp_path / "g.csv").write_text(text.replace("'a, b'", "'a'"))
    assert "'p1'" in read_graph(tmp_path / "g.csv", keep_labels=True).entities
    (tmp_path / "g.csv").write_text(text.replace("'a, b'", "a").replace("'p1'", "p1"))  # some only: part of the label
    assert "'p2'" in read_graph(tmp_path / "g.csv").entities


def test_quotes_and_spaces_that_other_programs_write(tmp_path: Path) -> None:
    rows = [('The "Weird" One', *KIN[0][1:]), ("a, b", *KIN[1][1:]), *KIN]
    wanted = read_graph(np.array(rows, dtype=object))
    frame = pd.DataFrame(rows, columns=["head", "relation", "tail"])
    for quoting in (0, 1):  # what needs quotes, and everything, as R does
        frame.to_csv(tmp_path / "g.tsv", sep="\t", index=False, quoting=quoting)
        assert read_graph(tmp_path / "g.tsv").sha256 == wanted.sha256
    text = "".join(", ".join('"' + cell.replace('"', '""') + '"' for cell in row) + "\n" for row in rows)
    (tmp_path / "g.csv").write_text(text)
    graph = read_graph(tmp_path / "g.csv")
    assert graph.sha256 == wanted.sha256 and "spaces after commas" in graph.notes[0]


BLANK = """@prefix : <http://x/> .
:a :lives [ :in :town ; :street "Main" ] . :b :lives [ :in :town ] . :c :knows [ :knows :a ] .
:a :knows :b . :b :knows :c . :c :knows :a . :a :in :town . :b :in :town . :c :in :town . :a :lives :town .
:b :lives :town . :c :lives :town . :b :knows :a . :a :knows :c . :c :knows :b .
"""


def test_blank_nodes_have_the_same_names_at_each_reading(tmp_path: Path) -> None:
    pytest.importorskip("pyoxigraph")
    (tmp_path / "g.ttl").write_text(BLANK)
    first, again = (read_graph(tmp_path / "g.ttl") for _ in range(2))
    assert first.sha256 == again.sha256 and sum(x.startswith("_:") for x in first.entities) == 3
    labelled = BLANK.replace('[ :in :town ; :street "Main" ]', "_:q").replace("[ :in :town ]", "_:z")
    labelled += '_:q :in :town ; :street "Main" . _:z :in :town .'
    (tmp_path / "g.ttl").write_text(labelled)  # the same graph, whatever its nodes are called
    assert read_graph(tmp_path / "g.ttl").sha256 == first.sha256


def test_blank_nodes_of_several_files_are_apart(tmp_path: Path) -> None:
    pytest.importorskip("pyoxigraph")
    for part in ("train", "valid", "test"):
        (tmp_path / f"{part}.nt").write_text(
            "_:b0 <http://x/p> <http://x/a> .\n<http://x/a> <http://x/p> <http://x/b> .\n"
        )
    graph = read_graph(tmp_path)
    assert graph.num_entities == 5 and len(graph.train) == 2


def test_blank_nodes_that_cannot_be_told_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("pyoxigraph")
    monkeypatch.setattr("kgdistil.graphs.rdf.CANONICAL", "import time; time.sleep(9)")
    monkeypatch.setattr("kgdistil.graphs.rdf.SECONDS", 0.2)
    (tmp_path / "g.ttl").write_text(BLANK)
    with pytest.raises(DataError, match="blank nodes are so much alike .* give them IRIs"):
        read_graph(tmp_path / "g.ttl")


def test_what_leaks_is_counted_and_said(tmp_path: Path, caplog) -> None:
    folder = folder_of(tmp_path / "g", [*KIN[:-2], *KIN[:2]])
    with caplog.at_level(logging.WARNING):
        graph = read_graph(folder)
    assert "2 of 3 test triples stand in training too" in caplog.text and graph.notes[-1] in caplog.text
    dropped = read_graph(folder, drop_overlap=True)
    assert len(dropped.test) == 1 and not any("stand in training too" in note for note in dropped.notes)
    lines(folder / "valid.tsv", KIN[-6:-3]), lines(folder / "test.tsv", KIN[-6:-3])
    assert any("test and valid are the same 3 triples" in note for note in read_graph(folder).notes)
    with pytest.raises(DataError, match="all triples of test stand in an earlier part"):
        read_graph(folder, drop_overlap=True)


def test_relations_that_are_inverses_or_copies(tmp_path: Path) -> None:
    plain = [row for row in KIN if row[1] != "helps"]
    assert read_graph(np.array(KIN)).notes == ()
    inverse = [(t, "liked by", h) for h, r, t in plain if r == "likes"]
    copies = [(h, "is fond of", t) for h, r, t in plain if r == "likes"]
    (note,) = read_graph(np.array([*plain, *inverse])).notes
    assert note.startswith("1 pair of relations is inverses") and "'liked by'" in note and "'likes'" in note
    (note,) = read_graph(np.array([*plain, *copies[:-2]])).notes
    assert note.startswith("1 pair of relations is near copies") and "83%" in note
    (note,) = read_graph(np.array([*plain, *copies[:-4]])).notes
    assert (
        note.startswith("1 relation holds only where a larger one does") and "'is fond of' and 'likes' (100%)" in note
    )
    both = [(b, r, a) for a, r, b in plain if r == "likes"]  # a relation that is its own inverse is no pair
    assert not any("inverses" in note for note in read_graph(np.array([*plain, *both])).notes)


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3), st.integers(0, 5)), min_size=1, max_size=60, unique=True)
)
def test_shares_of_relations_against_sets(rows: list) -> None:
    by = {r: {(h, t) for h, x, t in rows if x == r} for r in range(4)}
    for inverse in (False, True):
        wanted, parts = {}, {}
        for r in range(4):
            for s in range(r + 1, 4):
                other = {(t, h) for h, t in by[s]} if inverse else by[s]
                few, many = sorted((r, s), key=lambda x: len(by[x]))
                both, larger, smaller = len(by[r] & other), len(by[many]), len(by[few])
                if smaller >= checks.FEW and both >= checks.ALIKE * larger:
                    wanted[r, s] = both / larger
                elif smaller >= checks.FEW and both >= checks.WITHIN * smaller:
                    parts[few, many] = both / smaller
        equal, within = checks.alike([np.array(rows)], 4, 6)[not inverse]
        assert dict(equal) == pytest.approx(wanted) and dict(within) == pytest.approx(parts)


def test_answers_that_stand_in_training_in_other_ways_are_counted(tmp_path: Path) -> None:
    test = [("p3", "likes", "p1"), ("p6", "likes", "p2"), ("p0", "likes", "p4"), ("p5", "likes", "p4")]
    train = {("p1", "likes", "p3"), ("p2", "likes", "p6"), ("p4", "likes", "p0")}
    assert train < set(KIN) and ("p4", "likes", "p5") not in KIN
    folder = tmp_path / "g"
    for part, rows in (("train", KIN), ("valid", KIN[:2]), ("test", test)):
        lines(folder / f"{part}.tsv", rows)
    (note,) = (note for note in read_graph(folder).notes if "the same relation" in note)
    assert note.startswith("3 of 4 test triples stand in training the other way round")
    large = [(h, "wide", t) for h, r, t in KIN if r in ("likes", "knows")]
    turned = [(t, "wide", h) for h, r, t in large]
    for wide, where in ((large, "under the other name"), (turned, "the other way round")):
        lines(folder / "train.tsv", [row for row in KIN if row not in KIN[6:9:2]] + wide)
        lines(folder / "test.tsv", KIN[6:9:2])  # likes, helps
        (note,) = (note for note in read_graph(folder).notes if "larger" in note)
        assert "'likes' and 'wide' (100%)" in note or "'knows' and 'wide' (100%)" in note
        assert note.endswith(f": 1 of 2 test triples stand in training {where}")


def test_a_header_in_words_nobody_knew(tmp_path: Path) -> None:
    wanted = read_graph(np.array(works()))
    for head in (("gene", "relation", "disease"), ("person", "Predicate", "work 1")):
        graph = read_graph(lines(tmp_path / "g.tsv", [head, *works()]))
        assert graph.sha256 == wanted.sha256 and "--no-header" in graph.notes[0]
        kept = read_graph(lines(tmp_path / "g.tsv", [head, *works()]), header=False)
        assert head[1] in kept.relations
    for head in (("start", "relation", "end"), ("node1", "label", "node2"), (":START_ID", ":TYPE", ":END_ID")):
        assert read_graph(lines(tmp_path / "g.tsv", [head, *works()])).sha256 == wanted.sha256
    graph = read_graph(lines(tmp_path / "g.tsv", [("von", "wie", "nach"), *works()]))
    assert "wie" in graph.relations and "--header" in graph.notes[0]
    assert read_graph(tmp_path / "g.tsv", header=True).sha256 == wanted.sha256
    graph = read_graph(lines(tmp_path / "g.tsv", [("von", "relation", "nach"), *works(), ("p1", "relation", "work 2")]))
    assert "relation" in graph.relations and "--header" in graph.notes[0]
    graph = read_graph(lines(tmp_path / "g.tsv", [("von", "wie", "nach"), *KIN[::4]]))  # nine lines below it
    assert "none of its three labels occurs again" in graph.notes[0] and "--header" in graph.notes[0]
    folder = tmp_path / "parts"
    folder_of(folder, works())
    for part in ("train", "valid", "test"):
        (folder / f"{part}.tsv").write_text("von\twie\tnach\n" + (folder / f"{part}.tsv").read_text())
    assert read_graph(folder).sha256 == read_graph(folder_of(tmp_path / "without", works())).sha256


def test_a_fourth_column(tmp_path: Path, frame: pd.DataFrame) -> None:
    wanted = read_graph(frame)
    frame["weight"] = 0.5
    frame.to_csv(tmp_path / "g.csv", index=False), frame.to_parquet(tmp_path / "g.parquet")
    frame.to_csv(tmp_path / "g.tsv", sep="\t", index=False, header=False)
    for source in (tmp_path / "g.csv", tmp_path / "g.parquet", frame):
        graph = read_graph(source)
        assert graph.sha256 == wanted.sha256 and "left out: 'weight'" in graph.notes[0]
    with pytest.raises(DataError, match="--columns 1,2,3"):
        read_graph(tmp_path / "g.tsv")
    first = frame[["weight", "subject", "predicate", "object"]]
    first.to_csv(tmp_path / "first.tsv", sep="\t", index=False, header=False)
    with pytest.raises(DataError, match="--columns 2,3,4"):
        read_graph(tmp_path / "first.tsv")
    assert read_graph(tmp_path / "first.tsv", columns=(2, 3, 4)).sha256 == wanted.sha256
    for source in (tmp_path / "g.tsv", tmp_path / "g.csv", tmp_path / "g.parquet", frame, frame.to_numpy()):
        assert read_graph(source, columns=(1, 2, 3)).sha256 == wanted.sha256
        assert read_graph(source, columns=("1", "2", "3")).sha256 == wanted.sha256
    for wrong in ((0, 1, 2), (1, 2, 5)):
        with pytest.raises(DataError, match="counted from 1"):
            read_graph(tmp_path / "g.tsv", columns=wrong)


def test_words_for_what_is_missing_are_counted(tmp_path: Path) -> None:
    graph = read_graph(np.array([*KIN, ("nan", "likes", "p1"), ("p2", "likes", "None"), ("nan", "knows", "p3")]))
    assert graph.notes == ("3 triple(s) have the head or tail 'None'; if it is missing there, remove them",)


def test_a_validation_part_of_another_name(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "g", KIN)
    (folder / "valid.tsv").rename(folder / "dev.tsv")
    with pytest.raises(DataError, match=r"holds no file called valid: .*; rename dev.tsv"):
        read_graph(folder)


def test_names_that_match_nothing_are_said(tmp_path: Path) -> None:
    graph = read_graph(np.array(KIN), names={"P 0": "Ada"})
    assert graph.descriptions == {} and "none of the 1 names" in graph.notes[0]
    path = lines(tmp_path / "names.tsv", [("Ada", "p0")], (0, 1))
    assert "the other way round" in read_graph(np.array(KIN), names=path).notes[0]
    assert read_graph(np.array(KIN), names={" p0": "Ada"}).descriptions == {"p0": "Ada"}


def test_a_folder_called_as_a_known_graph(tmp_path: Path, monkeypatch, caplog) -> None:
    folder_of(tmp_path / "nations", KIN)
    monkeypatch.chdir(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert read_graph("nations").num_entities == 14
    assert "reached as ./nations" in caplog.text and read_graph("./nations").num_entities == 12


# ---- more forms -----------------------------------------------------------------------------------------------------
def test_a_packed_file_is_known_by_how_it_begins(tmp_path: Path) -> None:
    content = lines(tmp_path / "w.tsv", KIN).read_bytes()
    wanted = read_graph(tmp_path / "w.tsv", name="g")
    for level in range(1, 10):
        (tmp_path / "g.tsv").write_bytes(bz2.compress(content, level))
        assert read_graph(tmp_path / "g.tsv").sha256 == wanted.sha256


def test_packed_files(tmp_path: Path) -> None:
    wanted, content = read_graph(lines(tmp_path / "g.tsv", KIN)), (tmp_path / "g.tsv").read_bytes()
    pyarrow = pytest.importorskip("pyarrow")
    packed = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}
    packed["zst"] = lambda x: pyarrow.Codec("zstd").compress(x, asbytes=True)
    for name, pack in packed.items():
        (tmp_path / f"g.tsv.{name}").write_bytes(pack(content))
        graph = read_graph(tmp_path / f"g.tsv.{name}")
        assert graph.sha256 == wanted.sha256 and graph.name == "g"
        (tmp_path / f"g.tsv.{name}").write_bytes(pack(content)[:-9])
        with pytest.raises(DataError, match="cannot read|holds no triple|line"):
            read_graph(tmp_path / f"g.tsv.{name}")
        if name in ("gz", "xz"):  # whose readers tell that from other faults
            for damaged in (pack(content)[:-9], pack(content)[:-6] + b"abcdef", content):
                (tmp_path / f"g.tsv.{name}").write_bytes(damaged)
                with pytest.raises(DataError, match="; fetch or make it anew, or name it as what it is"):
                    read_graph(tmp_path / f"g.tsv.{name}")
        (tmp_path / f"g.tsv.{name}").write_bytes(pack(b"a\tb\tc\n\xff\tb\tc\n"))
        with pytest.raises(DataError, match="line 2: byte 0xff"):
            read_graph(tmp_path / f"g.tsv.{name}")


def test_files_that_are_packed_although_their_name_does_not_say_so(tmp_path: Path) -> None:
    wanted, content = read_graph(lines(tmp_path / "g.tsv", KIN)), (tmp_path / "g.tsv").read_bytes()
    packs = [gzip.compress, bz2.compress, lzma.compress]
    if pyarrow := pytest.importorskip("pyarrow"):
        packs.append(lambda x: pyarrow.Codec("zstd").compress(x, asbytes=True))
    for pack in packs:
        (tmp_path / "g.tsv").write_bytes(pack(content))
        assert read_graph(tmp_path / "g.tsv").sha256 == wanted.sha256


def test_other_forms_of_rdf(tmp_path: Path) -> None:
    rdf = pytest.importorskip("pyoxigraph")
    triples = [tuple(rdf.NamedNode(f"http://x/{x}") for x in row) for row in KIN]
    quads = [rdf.Quad(*row, rdf.NamedNode("http://x/some")) for row in triples]
    rows = [tuple(f"http://x/{x}" for x in row) for row in KIN]
    wanted = read_graph(np.array(rows))
    forms = {"nq": "N_QUADS", "trig": "TRIG", "jsonld": "JSON_LD", "rdf": "RDF_XML", "ttl": "TURTLE"}
    for ending, form in forms.items():
        some = quads if ending in ("nq", "trig") else [rdf.Triple(*row) for row in triples]
        (tmp_path / f"g.{ending}").write_bytes(rdf.serialize(some, format=getattr(rdf.RdfFormat, form)))
        graph = read_graph(tmp_path / f"g.{ending}")
        assert graph.sha256 == wanted.sha256
        assert any("name(s) of graphs" in note for note in graph.notes) == (ending in ("nq", "trig"))


def test_triples_in_memory(tmp_path: Path) -> None:
    wanted = read_graph(np.array(KIN))
    rows, _entities, _relations = numbered()
    pyarrow = pytest.importorskip("pyarrow")
    table = pd.DataFrame(KIN, columns=["head", "relation", "tail"])
    for source in (KIN, tuple(KIN), map(list, KIN), table.astype("string"), pyarrow.Table.from_pandas(table)):
        assert read_graph(source).sha256 == wanted.sha256
    digits = read_graph(np.array(rows))
    objects = np.empty((len(rows), 3), dtype=object)
    objects[:] = [[np.int64(x) for x in row] for row in rows]
    frame = pd.DataFrame(rows)
    for source in (
        torch.tensor(rows),
        objects,
        rows,
        frame.astype("Int64"),
        frame.astype("int32"),
        frame.astype("int64[pyarrow]"),
    ):
        assert read_graph(source).sha256 == digits.sha256


@pytest.mark.parametrize(
    ("source", "line"),
    [
        (pd.DataFrame({"h": pd.array(["a", pd.NA], dtype="string"), "r": "b", "t": "c"}), "row 1: no label"),
        (pd.DataFrame({"h": pd.array([1, pd.NA], dtype="Int64"), "r": "b", "t": "c"}), "row 1: no label"),
        (pd.DataFrame({"h": pd.array(["a", None], dtype="string[pyarrow]"), "r": "b", "t": "c"}), "row 1: no label"),
        ([("a", "b", "c"), ("a", "b")], "the list, row 1"),
        (["abc", "def"], "the list, row 0"),
        ([("a", "b", None)], "row 0: no label"),
        ([], "holds no triple"),
        (torch.zeros(3, 4), "has shape"),
        (torch.zeros(2, 3), "row 0: '0.0', no text"),
        (7, "int holds no triples"),
        ({"a": 1}, "dict holds no triples"),
        ("a\0b.tsv", "is missing or no regular file"),
        ("~nobody-of-this-name/x.tsv", "is missing or no regular file"),
    ],
)
def test_what_is_wrong_in_memory(source, line: str) -> None:
    with pytest.raises(DataError, match=line):
        read_graph(source)


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "loop.tsv").symlink_to(tmp_path / "loop.tsv")
    with pytest.raises(DataError, match="is missing or no regular file"):
        read_graph(tmp_path / "loop.tsv")
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet")
    column = pyarrow.array(["a", "b"])
    twice = pyarrow.Table.from_arrays([column] * 3, names=["x", "x", "y"])
    pyarrow.parquet.write_table(twice, tmp_path / "g.parquet")
    with pytest.raises(DataError, match="has two columns 'x'"):
        read_graph(tmp_path / "g.parquet")
    with pytest.raises(DataError, match="the name .* cannot be written as UTF-8"):
        read_graph(np.array(KIN), names={"p0": "\ud800"})


SPACE = 'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" xmlns:e="http://e/"'


def nested(form: str, deep: int) -> str:
    """Triples, and in their fourth line one in which something lies so deep in itself."""
    fact = "<http://a> <http://p> "
    if form == "rdf":
        inner = "<rdf:Description><e:p>" * deep + "</e:p></rdf:Description>" * deep
        return f"<rdf:RDF {SPACE}>\n\n\n{inner}</rdf:RDF>"
    if form == "jsonld":
        return '\n\n\n{"@id": "http://a", "http://p": ' * deep + "[]" + "}" * deep
    opening, closing = {"[": ("[ <http://p> ", " ]"), "(": ("( ", " )"), "<": (f"<<( {fact}", ")>>")}[form[-1]]
    return f"{fact}<http://b> .\n" * 3 + fact + opening * deep + "<http://b>" + closing * deep + " ."


@pytest.mark.parametrize("form", ["nt <", "ttl <", "ttl [", "ttl (", "trig [", "rdf", "jsonld"])
@pytest.mark.parametrize("deep", [150, 60_000])
def test_rdf_that_is_nested_too_deep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, deep: int) -> None:
    pytest.importorskip("pyoxigraph")
    monkeypatch.setattr("kgdistil.graphs.rdf.SECONDS", -99)  # no process for blank nodes is waited for
    path = tmp_path / f"g.{form.partition(' ')[0]}"
    path.write_text(nested(form, deep))
    line = 304 if form == "jsonld" else 4
    with pytest.raises(DataError, match=rf"g\.\w+, line {line}: its .* are nested more than 100 deep") as caught:
        read_graph(path)
    assert str(tmp_path) in str(caught.value)


def test_what_only_looks_nested_is_read(tmp_path: Path) -> None:
    """Brackets in texts, comments and IRIs, and many beside each other."""
    pytest.importorskip("pyoxigraph")
    facts_ = "".join(f"<http://x/{h}> <http://x/{r}> <http://x/{t}> .\n" for h, r, t in KIN)
    marks = "([<<{" * 50
    text = (
        f'<http://x/p0> <http://x/says> "{marks}", \'{marks}\', """{marks}"\n""{marks}""", "\\"{marks}" . # {marks}\n'
    )
    text += "@prefix x: <http://x/> .\n" + f"x:p0 x:says '''{marks}'{marks}''' , x:a\\(b .\n" + f"# it's {marks}\n"
    (tmp_path / "g.ttl").write_text(facts_ + text)
    assert read_graph(tmp_path / "g.ttl").num_entities == 13
    many = "".join(f"x:p{i % 12} x:has [ x:is x:t{i} ; x:of ( x:u{i} ) ] .\n" for i in range(150))
    (tmp_path / "g.ttl").write_text(f"{facts_}@prefix x: <http://x/> .\n{many}")
    assert sum(x.startswith("_:") for x in read_graph(tmp_path / "g.ttl").entities) == 300


def test_a_context_that_lies_elsewhere_is_not_fetched(tmp_path: Path) -> None:
    pytest.importorskip("pyoxigraph")
    (tmp_path / "g.jsonld").write_text(
        '{"@context": "https://x.org/", "@id": "http://x/a", "p": {"@id": "http://x/b"}}'
    )
    with pytest.raises(DataError, match=r"g.jsonld: its @context lies elsewhere, and nothing is fetched; write"):
        read_graph(tmp_path / "g.jsonld")


# ---- small files that take gigabytes --------------------------------------------------------------------------------
def test_small_files_that_unpack_to_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr("kgdistil.graphs.limits.LIMIT", 1 << 16)
    monkeypatch.setattr("kgdistil.graphs.limits.LINES", 1 << 16)
    (tmp_path / "g.tsv.gz").write_bytes(gzip.compress(b"a\tb\tc\n" * 20_000))
    few = pyarrow.array(["a"] * 9_000).dictionary_encode()
    pyarrow.parquet.write_table(pyarrow.table({"head": few, "relation": few, "tail": few}), tmp_path / "g.parquet")
    for name in ("g.tsv.gz", "g.parquet"):
        with pytest.raises(DataError, match="bytes and would take .* more than the .* KGDISTIL_READ_LIMIT"):
            read_graph(tmp_path / name)
        monkeypatch.setenv("KGDISTIL_READ_LIMIT", str(1 << 30))
        with pytest.raises(DataError, match="cannot be split"):
            read_graph(tmp_path / name)
        monkeypatch.delenv("KGDISTIL_READ_LIMIT")


ENDINGS = ("tsv", "csv", "nt", "ttl", "parquet", "nq", "rdf", "jsonld", "tsv.gz", "csv.xz", "tsv.zst", "del", "2id.txt")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    rdf, pyarrow = pytest.importorskip("pyoxigraph"), pytest.importorskip("pyarrow")
    folder = tmp_path_factory.mktemp("whole")
    frame = pd.DataFrame(ROWS, columns=["head", "relation", "tail"])
    frame.to_csv(folder / "g.csv", index=False)
    frame.to_parquet(folder / "g.parquet")
    tsv(folder / "g.tsv")
    found = {ending: (folder / f"g.{ending}").read_bytes() for ending in ("csv", "parquet", "tsv")}
    nodes = [rdf.NamedNode("http://x/0"), rdf.NamedNode("http://x/1"), rdf.BlankNode("b")]
    triples = [rdf.Triple(i, rdf.NamedNode("http://x/p"), j) for i in nodes for j in nodes]
    forms = {"nt": "N_TRIPLES", "ttl": "TURTLE", "nq": "N_QUADS", "rdf": "RDF_XML", "jsonld": "JSON_LD"}
    for ending, form in forms.items():
        found[ending] = rdf.serialize(triples, format=getattr(rdf.RdfFormat, form))
    found["tsv.gz"], found["csv.xz"] = gzip.compress(found["tsv"]), lzma.compress(found["csv"])
    found["tsv.zst"] = pyarrow.Codec("zstd").compress(found["tsv"], asbytes=True)
    found["del"] = b"".join(b"%d\t0\t%d\n" % (i, j) for i in range(3) for j in range(3))
    found["2id.txt"] = b"9\n" + found["del"].replace(b"\t0\t", b"\t").replace(b"\n", b"\t0\n")
    return found


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
    path = tmp_path_factory.getbasetemp() / f"damaged{'' if ending[0] == '2' else '.'}{ending}"
    path.write_bytes(damaged)
    try:
        graph = read_graph(path)
    except KgdistilError as error:
        assert "\n" not in str(error) and str(error)
    else:
        assert len(graph.known) >= 3


texts = st.text(st.characters(codec="utf-8"), max_size=6) | st.sampled_from(
    ["p1", " p1", '"p1"', "e\u0301", "\u00e9", "head"]
)
cells = texts | st.integers(-(10**30), 10**30) | st.none() | st.floats() | st.booleans() | st.just(pd.NA)


@settings(max_examples=300)
@given(
    st.lists(st.lists(cells, min_size=2, max_size=4) | st.lists(texts, min_size=3, max_size=3), max_size=8),
    st.booleans(),
)
def test_any_rows_are_one_line_or_a_graph(rows: list, keep: bool) -> None:
    for source in (rows, pd.DataFrame(rows), [row * 1 for row in rows if len(row) == 3]):
        try:
            graph = read_graph(source, keep_labels=keep)
        except KgdistilError as error:
            assert str(error) and "\n" not in str(error)
        else:
            assert len(set(graph.entities)) == graph.num_entities and all(graph.entities)


@settings(max_examples=200)
@given(
    st.lists(st.tuples(texts, texts, texts), min_size=1, max_size=12),
    st.sampled_from(["tsv", "csv"]),
    st.sampled_from([None, "htr", "rht", "hrt"]),
    st.sampled_from([None, True, False]),
    st.sampled_from([None, (1, 2, 3), (3, 2, 1), ("head", "p1", "x"), (0, 1, 2)]),
)
def test_any_options_are_one_line_or_a_graph(tmp_path_factory, rows: list, form: str, order, header, columns) -> None:
    path = tmp_path_factory.getbasetemp() / f"options.{form}"
    pd.DataFrame(rows).to_csv(path, sep="," if form == "csv" else "\t", index=False, header=False)
    try:
        graph = read_graph(path, order=order, header=header, columns=columns, drop_overlap=True)
    except KgdistilError as error:
        assert str(error) and "\n" not in str(error)
    else:
        assert len(graph.known) >= 3


@settings(max_examples=150)
@given(
    st.lists(
        st.tuples(*(st.text("ab\r \x85\u2028", min_size=1, max_size=3) for _ in range(3))), min_size=1, max_size=9
    ),
    st.lists(st.sampled_from(["\n", "\r\n", "\n\n", "\n\r\n"]), min_size=9, max_size=9),
    st.booleans(),
)
def test_lines_end_where_they_end(tmp_path_factory, rows: list, ends: list[str], last: bool) -> None:
    path = tmp_path_factory.getbasetemp() / "ends.tsv"
    rows = [("a", "a", "a"), *((h, r, f"{t}.") for h, r, t in rows)]  # no end that might be part of an end of line
    text = "".join("\t".join(row) + end for row, end in zip(rows, ["\n", *ends]))
    path.write_bytes((text if last else text.rstrip("\r\n")).encode())
    graph = read_graph(path, path, path, keep_labels=True, order="hrt", header=False)
    assert facts(graph) == set(rows) and len(graph.train) == len(set(rows))


def test_the_command_takes_the_options(tmp_path: Path) -> None:
    path = lines(tmp_path / "g.tsv", KIN, (0, 2, 1))
    command = ["distill", str(path), "-o", str(tmp_path / "s"), "--dim", "2", "--epochs", "1", "--stages", "1"]
    refused = CliRunner().invoke(cli.main, command)
    assert refused.exit_code == 1 and "--order htr" in refused.stderr and refused.stderr.count("\n") == 1
    options = dict.fromkeys(("valid", "test", "names", "columns")) | {"held_out": 0.1, "split_seed": 0}
    graph = cli.read(str(path), {**options, "order": "htr", "header": False, "keep_labels": True, "drop_overlap": True})
    assert graph.num_relations == 3
    for flag in ("--order", "--header", "--no-header", "--keep-labels", "--drop-overlap", "--columns"):
        assert flag in CliRunner().invoke(cli.main, ["distill", "--help"]).output
    for flag in ("--convention", "--norm", "--gamma", "--labels"):
        assert flag in CliRunner().invoke(cli.main, ["import", "--help"]).output


def test_a_record_holds_what_was_said_of_the_graph(tmp_path: Path) -> None:
    graph = read_graph(folder_of(tmp_path / "g", [*KIN[:-2], *KIN[:2]]))
    about = {"seconds": 1.0, "epochs": 1, "best_epoch": 1, "curve": [], "parameters": 1, "engine": "", "arithmetic": {}}
    about["metrics"] = {"valid": {}, "test": {}}
    config = RunConfig(dataset="g", model="TransE")
    assert make_record(config, graph, **about)["graph"]["notes"] == list(graph.notes)
    assert "notes" not in make_record(config, kgdistil.load("nations"), **about)["graph"]


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


@pytest.mark.parametrize(
    ("content", "said"),
    [("a\tA\na\tB\n", "line 2: 'a' is called 'A' and 'B'; give it one name"), ("", "is empty: it must have a label")],
)
def test_names_that_are_two_or_none(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "g.tsv").write_text("".join(f"{a}\tr\t{b}\n" for a in "abcd" for b in "abcd"))
    (tmp_path / "names.tsv").write_text(content)
    with pytest.raises(DataError, match=re.escape(said)):
        read_graph(tmp_path / "g.tsv", names=tmp_path / "names.tsv")
    (tmp_path / "names.tsv").write_text("a\tA\na\tA\n")
    assert read_graph(tmp_path / "g.tsv", names=tmp_path / "names.tsv").descriptions == {"a": "A"}


def test_options_that_nothing_would_read(tmp_path: Path) -> None:
    """Known graphs are read as they were published, and what has its parts is not split."""
    for more in ({"columns": (7, 8, 9)}, {"order": "trh"}, {"held_out": 0.3}, {"drop_overlap": True}, {"seed": 0}):
        (name, value), *_ = more.items()
        with pytest.raises(DataError, match=re.escape(f"{name} is {value!r}: umls is read as it was published; leave")):
            read_graph("umls", **more)
    for part in ("train", "valid", "test"):
        (tmp_path / f"{part}.tsv").write_text("a\tr\tb\nb\tr\tc\nc\tr\ta\n")
    for name, value in (("held_out", 0.3), ("seed", 7)):
        said = f"{name} is {value}: what has valid and test is not split here; leave it out"
        with pytest.raises(DataError, match=re.escape(said)):
            read_graph(tmp_path, **{name: value})
    one = tmp_path / "valid.tsv"
    with pytest.raises(DataError, match=f"valid is .*: {re.escape(str(tmp_path))} is a folder, of which all three are"):
        read_graph(tmp_path, one, one)


@pytest.mark.parametrize("kind", ["bz2", "xz"])
def test_what_follows_a_packed_part_is_read_or_refused(tmp_path: Path, kind: str) -> None:
    """As `cat` and programs of many threads write them; Python's own readers end in silence there."""
    pack = {"bz2": bz2.compress, "xz": lzma.compress}[kind]
    text = lines(tmp_path / "g.tsv", KIN).read_bytes()
    one, two = pack(text[:300]), pack(text[300:])
    path, wanted = tmp_path / f"g.tsv.{kind}", read_graph(tmp_path / "g.tsv")
    for whole in (one + two, one + pack(b"") + two, pack(text)) + ((one + bytes(8) + two + bytes(4),) * (kind == "xz")):
        path.write_bytes(whole)
        assert read_graph(path).sha256 == wanted.sha256
    for harmed in (one + b"X" + two[1:], one + b"and more", one + two[:-9], one[:-9], two[: len(two) // 2] + two):
        path.write_bytes(harmed)
        with pytest.raises(DataError, match=rf"cannot read .*g.tsv.{kind}: .*fetch or make it anew"):
            read_graph(path)


def test_names_of_columns_that_may_be_a_triple_are_asked_about(tmp_path: Path) -> None:
    rows = [("h", "r", "t"), *[(f"e{i}", "r", f"e{(i + 1) % 9}") for i in range(9)], ("h", "r", "e1"), ("e2", "r", "t")]
    path = lines(tmp_path / "g.tsv", rows)
    with pytest.raises(DataError, match=r"g.tsv: the first row \('h, r, t'\) may name the columns or be a triple"):
        read_graph(path)
    assert [len(read_graph(path, header=x).known) for x in (False, True)] == [12, 11]


def test_a_header_that_stands_again_is_left_out_and_said(tmp_path: Path) -> None:
    """As in files that `cat` put together."""
    head = ("head", "relation", "tail")
    wanted = read_graph(lines(tmp_path / "w.csv", [head, *KIN], glue=","), name="g")
    for more in ({}, {"header": True}, {"columns": head}):
        graph = read_graph(lines(tmp_path / "g.csv", [head, *KIN[:9], head, *KIN[9:], head], glue=","), **more)
        assert graph.sha256 == wanted.sha256
        assert "2 repetition(s) of the columns' names left out" in graph.notes[0]


@pytest.mark.parametrize("kind", ["struct", "list"])
def test_a_column_of_parquet_that_is_no_text(tmp_path: Path, kind: str) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    cell = {"struct": {"a": "x"}, "list": ["a"]}[kind]
    parquet.write_table(
        pyarrow.table({"head": [cell] * 3, "relation": ["r"] * 3, "tail": ["y"] * 3}), tmp_path / "g.parquet"
    )
    with pytest.raises(DataError, match=f"g.parquet: the column 'head' is a '{kind}<.*give a text"):
        read_graph(tmp_path / "g.parquet")


def test_names_of_some_that_are_none_and_names_that_are_labels_are_said(tmp_path: Path) -> None:
    names = {"p0": "Ada", "p1": "p2", "likes": "is fond of", "zz": "nobody"}
    graph = read_graph(np.array(KIN), names=names)
    assert graph.descriptions == {"p0": "Ada", "p1": "p2"}
    said = " ".join(graph.notes)
    assert "2 of the 4 names given are of no entity, such as that of 'likes'" in said
    assert "1 name(s) are the label of another entity, such as 'p2' of 'p1'" in said


def test_rdf_with_a_byte_order_mark_and_faults_with_their_line(tmp_path: Path) -> None:
    good = "".join(f"<http://x/{h}> <http://x/{r}> <http://x/{t}> .\n" for h, r, t in KIN)
    (path := tmp_path / "g.nt").write_bytes(b"\xef\xbb\xbf" + good.encode())
    assert read_graph(path).num_entities == 12
    path.write_text(good, encoding="utf-16")
    with pytest.raises(DataError, match="g.nt: it looks like UTF-16; save it as UTF-8"):
        read_graph(path)
    path.write_text(good + "<http://x/a> <http://x/b> nonsense .\n")
    with pytest.raises(DataError, match=r"at line 37 .*; that line is '<http://x/a> <http://x/b> nonsense \.'"):
        read_graph(path)


@pytest.mark.parametrize("end", ["", " # and so on.", ' # "a" <b> .'])
@pytest.mark.parametrize("more", ["", "# nothing\n\n<http://x/c> <http://x/r> <http://x/b> . # more\n"])
def test_a_triple_that_does_not_end_is_named_and_not_the_next(tmp_path: Path, more: str, end: str) -> None:
    path = tmp_path / "a.nt"
    path.write_text(
        "<http://x/a> <http://x/r> <http://x/b> . # one\n<http://x/a> <http://x/r#1> <http://x/c>" + end + "\n" + more
    )
    with pytest.raises(DataError, match=r"a\.nt, line 2: no dot at its end.*<http://x/a> <http://x/r#1> <http://x/c>"):
        read_graph(path)
