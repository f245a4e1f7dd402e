"""Folders of the Open Graph Benchmark, made up in the layout that is published, and PyKEEN's numbers."""

import gzip
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kgdistil.distributed.run import main
from kgdistil.errors import DataError
from kgdistil.graph import Graph
from kgdistil.graphs.datasets import load
from kgdistil.graphs.readers import read_graph

SPLITS = ("train", "valid", "test")
Parts = dict[str, dict[str, Any]]


def facts(graph: Graph) -> dict[str, list[tuple[str, ...]]]:
    return {part: sorted(graph.label_triple(*x) for x in getattr(graph, part).tolist()) for part in SPLITS}


def table(path: Path, header: str, labels: list[str], order: Callable[[Any], Any] = list) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt") as file:
        file.writelines([f"{header}\n", *(f"{i},{label}\n" for i, label in order(enumerate(labels)))])


def numbers(n: int, high: tuple[int, int, int], seed: int) -> dict[str, np.ndarray]:
    codes = np.random.default_rng(seed).choice(np.prod(high), n, replace=False)  # different triples
    columns = codes // (high[1] * high[2]), codes // high[2] % high[1], codes % high[2]
    return dict(zip(("head", "relation", "tail"), columns, strict=True))


def write(folder: Path, split: str, parts: Parts) -> None:
    (folder / "split" / split).mkdir(parents=True, exist_ok=True)
    for part, columns in parts.items():
        torch.save(columns, folder / "split" / split / f"{part}.pt")


@pytest.fixture
def wiki(tmp_path: Path) -> tuple[Path, Parts]:
    """As ogbl-wikikg2: one numbering of entities; valid and test bring candidates along."""
    folder, parts = tmp_path / "ogbl_wikikg2", {part: numbers(n, (9, 3, 9), n) for part, n in zip(SPLITS, (90, 5, 6))}
    for part in ("valid", "test"):
        parts[part] |= {f"{side}_neg": np.zeros((len(parts[part]["head"]), 500), np.int64) for side in ("head", "tail")}
    write(folder, "time", parts)
    table(folder / "mapping" / "nodeidx2entityid.csv.gz", "node idx,entity id", [f"Q{9 - i}" for i in range(9)])
    table(folder / "mapping" / "reltype2relid.csv.gz", "reltype,rel id", ["P31", "P1", "P2"], reversed_list)
    return folder, parts


def reversed_list(rows: Any) -> list[Any]:
    return list(rows)[::-1]


@pytest.fixture
def bio(tmp_path: Path) -> tuple[Path, Parts]:
    """As ogbl-biokg: each type is numbered from 0, and two types have an entity of one name."""
    folder, parts = tmp_path / "ogbl_biokg", {part: numbers(n, (4, 2, 4), n) for part, n in zip(SPLITS, (24, 3, 4))}
    rng = np.random.default_rng(0)
    for columns in parts.values():
        for side in ("head", "tail"):
            columns[f"{side}_type"] = [("drug", "sideeffect")[i] for i in rng.integers(0, 2, len(columns["head"]))]
    write(folder, "random", parts)
    for kind in ("drug", "sideeffect", "protein"):
        table(folder / "mapping" / f"{kind}_entidx2name.csv.gz", "ent idx,ent name", ["C1", '"a, b"', "C3", "C4"])
    table(folder / "mapping" / "relidx2relname.csv.gz", "rel idx,rel name", ["drug-drug", "drug-effect"])
    return folder, parts


def test_wikikg2_as_it_is_published(wiki: tuple[Path, Parts]) -> None:
    folder, parts = wiki
    graph = read_graph(folder)
    label = lambda h, r, t: (f"Q{9 - h}", ("P31", "P1", "P2")[r], f"Q{9 - t}")
    wanted = {p: sorted(label(*x) for x in zip(*(parts[p][c] for c in ("head", "relation", "tail")))) for p in SPLITS}
    assert facts(graph) == wanted and graph.name == "ogbl_wikikg2"
    for path in (folder / "mapping").iterdir():
        path.unlink()
    plain = read_graph(folder)
    assert facts(plain)["test"] == sorted(
        (str(9 - int(h[1:])), {"P31": "0", "P1": "1", "P2": "2"}[r], str(9 - int(t[1:]))) for h, r, t in wanted["test"]
    )


@pytest.mark.usefixtures("own_folders")
def test_a_run_reads_it_too(wiki: tuple[Path, Parts], tmp_path: Path) -> None:
    few = ["--model", "ComplEx", "--loss", "softmax", "--dim", "2", "--epochs", "1", "--negatives", "4"]
    assert main([str(wiki[0]), *few]) == 0
    (path,) = (tmp_path / "results" / "runs").iterdir()
    assert json.loads(path.read_text())["graph"]["entities"] == 9


def test_biokg_as_it_is_published(bio: tuple[Path, Parts]) -> None:
    folder, parts = bio
    names, relations = ["C1", "a, b", "C3", "C4"], ["drug-drug", "drug-effect"]
    for p, found in facts(read_graph(folder)).items():
        rows = zip(*(parts[p][c] for c in ("head_type", "head", "relation", "tail_type", "tail")), strict=True)
        assert found == sorted((f"{a}:{names[h]}", relations[r], f"{b}:{names[t]}") for a, h, r, b, t in rows)


def test_as_numpy_1_wrote_it(wiki: tuple[Path, Parts]) -> None:
    wanted, path = facts(read_graph(wiki[0])), wiki[0] / "split" / "time" / "train.pt"
    with zipfile.ZipFile(path) as file:
        members = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            file.writestr(name, content.replace(b"numpy._core.", b"numpy.core."))
    assert b"numpy.core.multiarray" in path.read_bytes()
    assert facts(read_graph(wiki[0])) == wanted
    torch.save({name: torch.from_numpy(x) for name, x in wiki[1]["train"].items()}, path)
    assert facts(read_graph(wiki[0])) == wanted


class Trap:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return open, (str(self.path), "w")


def damaged(what: str, folder: Path, parts: Parts) -> None:
    split = folder / "split" / "time"
    if what == "trap":
        torch.save({**parts["train"], "head": Trap(folder / "sprung")}, split / "train.pt")
    elif what == "objects":
        torch.save({**parts["train"], "head": np.array([Trap(folder / "sprung")] * 90)}, split / "train.pt")
    elif what == "cut":
        (split / "train.pt").write_bytes((split / "train.pt").read_bytes()[:-300])
    elif what == "missing":
        (split / "test.pt").unlink()
    elif what == "two splits":
        write(folder, "random", parts)
    elif what == "a map with a gap":
        table(folder / "mapping" / "nodeidx2entityid.csv.gz", "node idx,entity id", ["a", "b"], lambda x: [(2, "a")])
    elif what == "a label twice":
        table(folder / "mapping" / "nodeidx2entityid.csv.gz", "node idx,entity id", [*"abcdeafgh"])
    elif what == "no label":
        table(folder / "mapping" / "reltype2relid.csv.gz", "reltype,rel id", ["a", "b", ""])
    elif what == "one map of two":
        (folder / "mapping" / "reltype2relid.csv.gz").unlink()
    elif what == "two maps":
        table(folder / "mapping" / "nodeidx2entityid.csv", "node idx,entity id", [*"abcdefghi"])
    elif what == "a label cut off":
        packed = folder / "mapping" / "nodeidx2entityid.csv.gz"
        text = gzip.decompress(packed.read_bytes())
        packed.with_suffix("").write_bytes(text[: text.rindex(b"Q") + 1])
        packed.unlink()
    elif what == "a short map":
        table(folder / "mapping" / "nodeidx2entityid.csv.gz", "node idx,entity id", ["a", "b"])
    else:
        changed: dict[str, Any] = {
            "no tail": {"head": parts["train"]["head"], "relation": parts["train"]["relation"]},
            "negative": {**parts["train"], "head": parts["train"]["head"] - 5},
            "fractions": {**parts["train"], "head": torch.zeros(90)},
            "lengths": {**parts["train"], "head": parts["train"]["head"][1:]},
            "types": {**parts["train"], "head_type": ["a"] * 90, "tail_type": ["../a"] * 90},
            "types in one": {**parts["train"], "head_type": ["a"] * 90, "tail_type": ["a"] * 90},
            "a list": [1, 2],
        }
        torch.save(changed[what], split / "train.pt")


@pytest.mark.parametrize(
    "what, told",
    [
        ("trap", r"train.pt holds no triples of the Open Graph Benchmark \(.*: fetch it again"),
        ("objects", r"train.pt holds no triples of the Open Graph Benchmark \(.*: fetch it again"),
        ("cut", r"train.pt holds no triples of the Open Graph Benchmark \("),
        ("a list", r"train.pt holds no triples of the Open Graph Benchmark \("),
        ("no tail", r"train.pt holds no triples of the Open Graph Benchmark \(no 'tail'\)"),
        ("missing", r"test.pt is missing: fetch it again"),
        ("two splits", r"ogbl_wikikg2 holds the splits random, time: leave only one"),
        ("a map with a gap", r"nodeidx2entityid.csv.gz does not number its 1 labels from 0"),
        ("a short map", r"nodeidx2entityid.csv.gz has 2 labels, but 8 is a number in the parts"),
        ("a label cut off", r"nodeidx2entityid.csv ends within a line, '8,Q': fetch it again"),
        ("a label twice", r"nodeidx2entityid.csv.gz: the label of 5 is 'a', and 0 has it, too"),
        ("no label", r"reltype2relid.csv.gz: the label of 2 is ''"),
        ("one map of two", r"mapping holds no rel\*2rel\*.csv.gz: fetch it again, or move mapping away"),
        ("two maps", r"mapping holds nodeidx2entityid.csv and nodeidx2entityid.csv.gz: leave only one"),
        ("negative", r"train.pt: the column head holds -5, not numbers from 0"),
        ("fractions", r"train.pt: the column head holds float32, not numbers from 0"),
        ("lengths", r"train.pt: its columns have the shapes \(89,\), \(90,\), \(90,\)"),
        ("types", r"train.pt: '../a' is no name of a type of entity"),
        ("types in one", r"valid.pt has no head_type and tail_type, unlike the files beside it"),
    ],
)
def test_what_is_wrong_is_one_line(wiki: tuple[Path, Parts], what: str, told: str) -> None:
    damaged(what, *wiki)
    with pytest.raises(DataError, match=told) as caught:
        read_graph(wiki[0])
    assert "\n" not in str(caught.value) and not (wiki[0] / "sprung").exists()


def test_pykeens_numbers_never_become_a_table_of_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    factories = pytest.importorskip("pykeen.triples").TriplesFactory

    def refuse(_: Any) -> None:
        raise AssertionError("a text for each head, relation and tail")

    monkeypatch.setattr(factories, "triples", property(refuse))
    monkeypatch.setattr(factories, "label_triples", refuse)
    assert facts(read_graph("pykeen:nations")) == facts(load("nations"))
