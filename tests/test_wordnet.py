"""WordNet's dictionary files as triples: labels, words' pointers as their synsets', what cannot be read."""

from pathlib import Path

import pytest

from kgdistil.errors import DataError
from kgdistil.paper.wordnet import RELATIONS, main, pointers

LICENCE = "  1 A licence at the head, as WordNet's own files have one.\n"
FILES = {  # made up: a blip is a thing, and there is a second one; blippy and unblippy are adjectives
    "data.noun": "00000100 03 n 01 thing 0 001 ~ 00000200 n 0000 | what there is\n"
    "00000200 03 n 02 Blip 0 small_thing 0 003 @ 00000100 n 0000 + 00000100 a 0101 + 00000100 a 0201 | a; b | c\n"
    "00000300 03 n 01 blip 1 000 | a dot\n",
    "index.noun": "blip n 2 1 @ 2 0 00000300 00000200\nsmall_thing n 1 1 @ 1 0 00000200\nthing n 1 1 ~ 1 0 00000100\n",
    "data.verb": "00000100 29 v 01 blip 0 001 @i 00000100 v 0000 01 + 02 00 | flash\n",
    "index.verb": "blip v 1 1 @ 1 0 00000100\n",
    "data.adj": "00000100 00 a 01 blippy(p) 0 002 ! 00000200 s 0101 & 00000200 a 0000 | of blips\n"
    "00000200 00 s 01 unblippy 0 000 | without\n",
    "index.adj": "blippy a 1 1 & 1 0 00000100\nunblippy a 1 0 1 0 00000200\n",
    "data.adv": "00000100 02 r 01 blippily 0 001 \\ 00000100 a 0101 | in blips\n",
    "index.adv": "blippily r 1 1 \\ 1 0 00000100\n",
}
TRIPLES = [
    ("thing.n.01", "hyponym", "blip.n.02"),
    ("blip.n.02", "hypernym", "thing.n.01"),
    ("blip.n.02", "derivationally_related_form", "blippy.a.01"),
    ("blip.v.01", "instance_hypernym", "blip.v.01"),
    ("blippy.a.01", "antonym", "unblippy.s.01"),
    ("blippy.a.01", "similar_to", "unblippy.s.01"),
    ("blippily.r.01", "pertainym", "blippy.a.01"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).write_text(LICENCE + text)
    return tmp_path


def test_pointers_are_triples_of_synsets(folder: Path, capsys: pytest.CaptureFixture) -> None:
    found = list(pointers(folder))
    assert list(dict.fromkeys(found)) == TRIPLES and len(found) == len(TRIPLES) + 1
    assert main([str(folder), str(folder / "wordnet.tsv")]) == 0
    assert capsys.readouterr().out == "6 synsets, 7 relations, 8 pointers, 7 triples\n"
    written = (folder / "wordnet.tsv").read_text().splitlines()
    assert [tuple(line.split("\t")) for line in written] == TRIPLES


@pytest.mark.parametrize(
    ("name", "before", "after", "said"),
    [
        ("data.noun", "001 ~", "001 ?", "data.noun, line 2: not as wndb"),
        ("data.noun", "003 @", "009 @", "data.noun, line 3: not as wndb"),
        ("index.adj", "blippy a 1", "blippy a x", "index.adj, line 2: not as wndb"),
        ("index.adv", "r 1 1 \\ 1 0 00000100", "", "index.adv, line 2: not as wndb"),
        ("index.adj", "unblippy", "blipless", "data.adj, line 3: not as wndb"),
        ("data.adv", "00000100 a", "00000900 a", "blippily.r.01 leads to 00000900 in data.adj, where no synset is"),
    ],
)
def test_what_cannot_be_read(folder: Path, name: str, before: str, after: str, said: str) -> None:
    (folder / name).write_text((folder / name).read_text().replace(before, after))
    with pytest.raises(DataError, match=said):
        list(pointers(folder))
    (folder / name).unlink()
    with pytest.raises(DataError, match=f"{name}.*wordnet-base"):
        list(pointers(folder))


@pytest.mark.skipif(not Path("/usr/share/wordnet/data.noun").is_file(), reason="Debian's wordnet-base is not installed")
def test_the_whole_of_it() -> None:
    found = list(pointers(Path("/usr/share/wordnet")))
    assert len(found) == pytest.approx(377_000, rel=0.01) and {r for _, r, _ in found} == {*RELATIONS.values()}
    assert len({x for h, _, t in found for x in (h, t)}) == pytest.approx(117_000, rel=0.01)
    assert ("dog.n.01", "hypernym", "canine.n.02") in found


def test_files_without_a_pointer_are_no_graph(folder: Path) -> None:
    for name in FILES:
        (folder / name).write_text(LICENCE)
    with pytest.raises(DataError, match="its files hold no pointer"):
        main([str(folder), str(folder / "wordnet.tsv")])
    assert not (folder / "wordnet.tsv").exists()
