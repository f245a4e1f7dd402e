"""Labels that are searched where they lie, against plain Python; damaged arrays; a million of them."""

import contextlib
import itertools
import json
from bisect import bisect_left
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kgdistil.answer.labels import LONGEST, Labels
from kgdistil.errors import CheckpointError, DataError
from kgdistil.paper.bench import labels as bench

FEW = st.text("ab\0é\ud800\udc00中😀", max_size=5)  # many that begin alike, and lone surrogates
SETS = st.lists(FEW | st.text(max_size=8), max_size=40)


def slips(text: str, letters: set[str]) -> set[str]:
    """Everything one letter more, less or other, or two exchanged."""
    out = set()
    for a, b in ((text[:i], text[i:]) for i in range(len(text) + 1)):
        out |= {a + x + b for x in letters} | {a + x + b[1:] for x in letters if b} | {a + b[1:]}
        out |= {a + b[1] + b[0] + b[2:]} if len(b) > 1 else set()
    return out


@given(SETS, st.booleans(), st.lists(FEW, max_size=8))
@settings(max_examples=300, deadline=None)
def test_what_a_list_holds_is_found(some, distinct, others):
    some = sorted(set(some)) if distinct else some
    labels = Labels.of(some)
    labels.check()
    assert ("order" in labels.arrays()) == (some != sorted(set(some)))
    assert list(labels) == some and len(labels) == len(some) and labels[1:9:2] == some[1:9:2]
    assert [labels[i] for i in range(-len(some), len(some))] == some * 2
    ids = list(range(len(some)))[::-2]
    assert labels.many(ids) == labels.many(np.array(ids, np.int64)) == some[::-2]
    asked = some + others
    assert labels.find_all(asked).tolist() == [some.index(x) if x in some else -1 for x in asked]
    for text in asked:
        equal = [i for i, x in enumerate(some) if x == text]
        assert labels.all(text) == equal and (text in labels) == bool(equal)
        assert labels.find(text) == (equal[0] if equal else None)
        if equal:
            assert labels.index(text) == equal[0] and labels.index(text, equal[-1]) == equal[-1]
        ranked = sorted(range(len(some)), key=some.__getitem__)
        for begin in {text, text[:1]}:
            begun = [i for i in ranked if some[i].startswith(begin)]
            assert labels.prefix(begin, 3) == begun[:3] and labels.prefix(begin, 99) == begun


@given(SETS, FEW | st.text(max_size=8))
@settings(max_examples=500, deadline=None)
def test_one_slip_of_the_fingers_is_mended(some, text):
    near, labels = slips(text, set("".join(some))) & set(some), Labels.of(some)
    if text in some:
        assert labels.nearest(text) == text
    elif near:
        assert labels.nearest(text) in near
    else:
        assert labels.nearest(text) in {None, *some}


def test_what_explains_a_name_is_no_part_of_it():
    names = Labels.of(
        ["dg, a unit of mass", "dog, a beast that barks", "", "dogs, more of them", "house", "hut, a hovel"]
    )
    assert names.nearest("dgo", ", ") == "dog" and names.nearest("doog", ", ") == "dog"
    assert names.nearest("huose", ", ") == "house" and names.nearest("hult", ", ") == "hut"
    assert names.nearest("dgos", ", ") == "dogs" and names.nearest("dgo") is None
    assert names.nearest("hhuttt", ", ") == "hut"  # a neighbour


def test_the_slip_is_sought_late_and_letters_are_not_tried_where_they_lead_nowhere():
    some = [f"usr/share/{a}{b}/copyright" for a, b in itertools.product("abcdefgh", repeat=2)]
    labels = Labels.of(some)
    assert labels.nearest("usr/share/ab/copyrihgt") == "usr/share/ab/copyright"
    assert labels.nearest("usr/share/a/copyright") == "usr/share/aa/copyright"  # no other has more in common
    assert labels.nearest("sr/share/hh/copyright") == "usr/share/hh/copyright"
    assert labels.nearest("usr/shar/hh/copyrigt") in some  # two slips: a neighbour
    assert labels.nearest("quite another thing") is None
    assert labels.nearest("u" * (LONGEST + 1)) is labels.nearest("u" * 10**6) is labels.find("u" * 10**6) is None


def test_arrays_may_be_mapped_from_files(tmp_path: Path):
    for some in (["a", "b\0", "ba", "\udfff"], ["same", "", "same"]):
        mapped = {}
        for name, x in Labels.of(some).arrays().items():
            x.tofile(tmp_path / name)
            mapped[name] = np.memmap(tmp_path / name, x.dtype, "r")
        labels = Labels(**mapped)
        assert list(labels) == some and labels.find_all(some).tolist() == [some.index(x) for x in some]
    assert labels.all("same") == [0, 2] and labels.prefix("", 2) == [1, 0]


def test_numbers_that_are_not_there_are_refused():
    labels = Labels.of(["a", "b"])
    for call in (lambda: labels[2], lambda: labels[-3], lambda: labels.many([0, -1]), lambda: labels.many([2])):
        with pytest.raises(IndexError):
            call()
    with pytest.raises(ValueError, match="no label"):
        labels.index("c")
    assert "c" not in labels and 1 not in labels
    empty = Labels.of([])
    assert (list(empty), empty.find(""), empty.prefix(""), empty.nearest("a")) == ([], None, [], None)


def arrays(text=b"abbac", offsets=(0, 1, 2, 4, 5), order=None):
    rows = {"text": np.frombuffer(text, np.uint8), "offsets": np.array(offsets, np.int64)}
    return rows | ({} if order is None else {"order": np.array(order, np.int32)})


@pytest.mark.parametrize(
    "changed",
    [
        {"offsets": ()},
        {"offsets": (1, 1, 2, 4, 5)},
        {"offsets": (0, 1, 2, 4, 6)},
        {"offsets": (0, 1, 2, 4, 4)},
        {"offsets": (0, 1, 2**62, 4, 5)},
        {"offsets": (0, 1, -(2**62), 4, 5)},
        {"offsets": (0, 2, 1, 4, 5)},
        {"text": b"bbbac"},
        {"text": b"ab\xffac"},
        {"text": b"ab\xe4ac"},
        {"order": (0, 1, 2)},
        {"order": (0, 1, 2, 4)},
        {"order": (0, 1, 2, -1)},
        {"order": (0, 1, 2, 2)},
        {"order": (3, 2, 1, 0)},
        {"text": b"abaac", "offsets": (0, 1, 2, 3, 5), "order": (2, 0, 3, 1)},
    ],
)
def test_damaged_arrays_are_refused(changed):
    Labels(**arrays()).check()
    with pytest.raises(CheckpointError, match="damaged") as error:
        Labels(**arrays(**changed)).check()
    assert "\n" not in str(error.value)


def test_arrays_of_another_kind_are_refused():
    for name, x in (("text", np.zeros(5)), ("offsets", np.zeros(5, np.int32)), ("order", np.zeros((4, 1), np.int32))):
        with pytest.raises(CheckpointError, match=str(x.dtype)):
            Labels(**arrays() | {name: x})


@given(st.lists(st.integers(-2, 12) | st.integers(-(2**63), 2**63 - 1), min_size=9, max_size=9), st.binary(min_size=10))
@settings(max_examples=300, deadline=None)
@pytest.mark.parametrize("sampled", [16, 1])  # 1: that they are not sorted is not noticed at once
def test_hostile_arrays_never_do_worse_than_an_error(sampled, numbers, text):
    order = None if numbers[0] % 2 else np.array([abs(x) % 11 - 1 for x in numbers], np.int32)
    offsets = np.array([0, *numbers[1:], len(text)], np.int64)
    for ask in (
        lambda x: x.find("b"),
        lambda x: x.find_all(["", "a", "zz"]),
        lambda x: x.all("\0"),
        lambda x: x.prefix(""),
        lambda x: x.nearest("ab"),
        list,
        Labels.check,
    ):
        with patch("kgdistil.answer.labels.SAMPLED", sampled), contextlib.suppress(CheckpointError):
            ask(Labels(np.frombuffer(text, np.uint8), offsets, order))


@given(st.lists(st.text("abc", max_size=4), min_size=8, max_size=12), st.text("abc", max_size=4))
@settings(max_examples=500, deadline=None)
def test_labels_that_are_not_sorted_never_do_worse_than_an_error(some, text):
    rows = arrays("".join(some).encode(), [0, *itertools.accumulate(map(len, some))])
    with patch("kgdistil.answer.labels.SAMPLED", 1):
        labels = Labels(**rows)
    for ask in (labels.find, labels.all, labels.prefix, labels.nearest, lambda x: labels.find_all([x, "a"])):
        with contextlib.suppress(CheckpointError):
            ask(text)
    same, begun = lambda i: some[i] == text, lambda i: some[i].startswith(text)
    for ask, right in ((labels.all, same), (labels.prefix, begun)):  # what is found is what was asked for
        with contextlib.suppress(CheckpointError):
            assert all(map(right, ask(text)))
    with contextlib.suppress(CheckpointError):
        assert all(i < 0 or same(i) for i in labels.find_all([text]))
        assert (found := labels.find(text)) is None or same(found)


class Counted:
    """A view that counts what is read of it."""

    def __init__(self, view: memoryview) -> None:
        self.view, self.read = view, 0

    def __getitem__(self, i: int) -> int:
        self.read += 1
        return self.view[i]


def test_a_million_labels_are_hardly_read(monkeypatch: pytest.MonkeyPatch):
    some = sorted(f"usr/share/{i % 997:03d}/{i * 7919 % 10**6:06d}.html" for i in range(10**6))
    labels = Labels.of(some)
    counted = Counted(labels._offsets)
    monkeypatch.setattr(labels, "_offsets", counted)

    def read(call, *arguments):
        counted.read = 0
        return call(*arguments), counted.read // 2  # two offsets a label

    at = 654_321
    found, cost = read(labels.find, some[at])
    assert found == at and cost <= 21
    found, cost = read(labels.find, "usr/share/1")
    assert found is None and cost <= 21
    found, cost = read(labels.prefix, "usr/share/5", 10)
    assert cost <= 52 and found == [*range(bisect_left(some, "usr/share/5"), bisect_left(some, "usr/share/5") + 10)]
    ids = np.random.default_rng(0).integers(10**6, size=20_000)
    found, cost = read(labels.find_all, [some[i] for i in ids])
    assert (found == ids).all() and cost < 10 * len(ids)  # half of one by one
    right = some[at]
    for wrong in (right[:-7] + right[-6:], right[:12] + "x" + right[13:], "suh" + right, right[1:], "z" * LONGEST):
        found, cost = read(labels.nearest, wrong)
        assert cost < 3000 and (found == right or len(wrong) > len(right))


def test_labels_are_measured_beside_other_libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    find_spec = bench.importlib.util.find_spec
    monkeypatch.setattr(bench.importlib.util, "find_spec", lambda name: None if name == "pyarrow" else find_spec(name))
    (tmp_path / "labels.txt").write_text("".join(f"label {i:03d}, written out\n" for i in range(300)))
    bench.main([str(tmp_path / "labels.txt"), "-o", str(tmp_path / "out.json"), "--trials", "2"])
    report = json.loads((tmp_path / "out.json").read_text())
    rows = {row["library"]: row for row in report["rows"]}
    assert rows.keys() == bench.WAYS.keys() and rows["Arrow"]["not_run"] == "pyarrow is not installed"
    ours = rows["kgdistil"]
    assert ours["bytes"] == 300 * 22 + 301 * 8 and all(ours["keeps"].values()) and ours["damaged"]["death"] == 0
    for library in ("kgdistil", "SQLite FTS5 trigrams"):
        assert rows[library]["near"]["meant"] > 0.5 and rows[library]["find"]["queries"] == report["queries"]
    (tmp_path / "labels.txt").write_text("b\na\n")
    with pytest.raises(DataError, match="sort -u"):
        bench.main([str(tmp_path / "labels.txt")])
