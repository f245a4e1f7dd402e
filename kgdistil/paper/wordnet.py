"""WordNet whole as triples: every synset and every pointer of a dictionary folder, as Debian's `wordnet-base` has it.

`python -m kgdistil.paper.wordnet /usr/share/wordnet wordnet.tsv` writes a line "head, relation, tail" for each. A
pointer from word to word counts as one between their synsets; what is said twice so is written once. Nothing of
WordNet lies in this repository. The files' format is wndb(5WN)'s: https://wordnet.princeton.edu/documentation/wndb5wn
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path

from kgdistil.answer.files import write_text
from kgdistil.errors import DataError, run_command

KINDS = {"n": "noun", "v": "verb", "a": "adj", "s": "adj", "r": "adv"}  # whose file has a part of speech
RELATIONS = {
    "!": "antonym",
    "@": "hypernym",
    "@i": "instance_hypernym",
    "~": "hyponym",
    "~i": "instance_hyponym",
    "#m": "member_holonym",
    "#s": "substance_holonym",
    "#p": "part_holonym",
    "%m": "member_meronym",
    "%s": "substance_meronym",
    "%p": "part_meronym",
    "=": "attribute",
    "+": "derivationally_related_form",
    ";c": "domain_topic",
    "-c": "member_of_domain_topic",
    ";r": "domain_region",
    "-r": "member_of_domain_region",
    ";u": "domain_usage",
    "-u": "member_of_domain_usage",
    "*": "entailment",
    ">": "cause",
    "^": "also_see",
    "$": "verb_group",
    "&": "similar_to",
    "<": "participle_of_verb",
    "\\": "pertainym",
}


def pointers(folder: Path) -> Iterator[tuple[str, str, str]]:
    """Every pointer, as label of a synset, relation, label of a synset; words' pointers are their synsets'.

    A label is lemma, part of speech and number, as dog.n.01: the first sense of "dog" among those of its first word.

    Raises:
        DataError: a file is missing, or a line of it cannot be read.
    """
    labels, found = dict[tuple[str, int], str](), list[tuple[str, str, tuple[str, int]]]()
    for kind in dict.fromkeys(KINDS.values()):
        senses = dict[str, list[str]]()
        path = folder / f"index.{kind}"
        for number, line in lines(path):
            with as_published(path, number):
                senses[line[0]] = line[-int(line[2]) :]
        path = folder / f"data.{kind}"
        for number, line in lines(path):
            with as_published(path, number):
                offset, part, words = line[0], line[2], int(line[3], 16)
                lemma = line[4].partition("(")[0].lower()  # an adjective may end with where it stands, as in "(a)"
                label = f"{lemma}.{part}.{senses[lemma].index(offset) + 1:02}"
                labels[kind, int(offset)] = label
                at = 4 + 2 * words
                for i in range(at + 1, at + 1 + 4 * int(line[at]), 4):
                    found.append((label, RELATIONS[line[i]], (KINDS[line[i + 2]], int(line[i + 1]))))
    for head, relation, tail in found:
        if tail not in labels:
            raise DataError(
                f"{folder}: a pointer of {head} leads to {tail[1]:08} in data.{tail[0]}, where no synset is"
            )
        yield head, relation, labels[tail]


@contextlib.contextmanager
def as_published(path: Path, number: int) -> Iterator[None]:
    """DataError for a line that cannot be read."""
    try:
        yield
    except (LookupError, ValueError) as error:
        raise DataError(f"{path}, line {number}: not as wndb(5WN) has it ({error!r}); fetch it again") from None


def lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The lines of a file with their numbers, in words, without the licence at its head and without glosses."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: {error}; it is a file of WordNet's dictionary, as of Debian's wordnet-base") from None
    for number, line in enumerate(text.splitlines(), 1):
        if not line.startswith("  "):
            yield number, line.partition("|")[0].split()


def main(arguments: list[str] | None = None) -> int:
    """`python -m kgdistil.paper.wordnet FOLDER FILE`."""
    parser = argparse.ArgumentParser(prog="python -m kgdistil.paper.wordnet", description="WordNet as triples.")
    parser.add_argument("folder", type=Path, help="as /usr/share/wordnet, with data.noun, index.noun and so on")
    parser.add_argument("file", type=Path, help="for the triples, a line each with tabs")
    given = parser.parse_args(arguments)
    found = list(pointers(given.folder))
    if not found:
        raise DataError(f"{given.folder}: its files hold no pointer; name the folder of WordNet's dictionary")
    triples = dict.fromkeys(found)
    write_text(given.file, "".join("\t".join(triple) + "\n" for triple in triples))
    synsets, relations = ({x for t in triples for x in (t[0], t[2])}, {r for _, r, _ in triples})
    print(f"{len(synsets):,} synsets, {len(relations)} relations, {len(found):,} pointers, {len(triples):,} triples")
    return 0


if __name__ == "__main__":
    run_command(main)
