"""Human genes as triples: their processes, functions, places, pathways and domains, and the Gene Ontology's own terms.

`python -m kgdistil.paper.genes GO.sqlite org.Hs.eg.sqlite genes.tsv` writes a line "head, relation, tail" for each, of
the databases of Debian's `r-bioc-go.db` and `r-bioc-org.hs.eg.db`; what is said twice is written once. Nothing of them
lies in this repository. A gene's terms have a relation for each kind of evidence; "no data" is none.
"""

from __future__ import annotations

import argparse
import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from kgdistil.errors import DataError, run_command
from kgdistil.files import write_text

KINDS = {"bp": "process", "mf": "function", "cc": "component"}
NOTHING = "ND"  # evidence of a term that stands where nothing is known
# of a gene: table, column, and the relation; its values begin with a word where they are bare numbers
OTHERS = {
    ("chromosomes", "chromosome"): ("on_chromosome", "chromosome "),
    ("cytogenetic_locations", "cytogenetic_location"): ("at_band", "band "),
    ("genetype", "gene_type"): ("has_type", ""),
    ("kegg", "path_id"): ("in_pathway", "pathway "),
    ("ec", "ec_number"): ("catalyses", "EC "),
    ("pfam", "pfam_id"): ("has_domain", ""),
    ("prosite", "prosite_id"): ("has_motif", ""),
}


def triples(terms: Path, genes: Path) -> Iterator[tuple[str, str, str]]:
    """Those of terms among each other, then those of all genes that have a term; a gene is its symbol, with its number
    where several have one symbol.

    Raises:
        DataError: a file is no such database.
    """
    names = dict(rows(terms, "SELECT go_id, term FROM go_term"))
    ids = dict(rows(terms, "SELECT _id, term FROM go_term"))
    for kind in KINDS:
        for child, relation, parent in rows(terms, f"SELECT _id, relationship_type, _parent_id FROM go_{kind}_parents"):  # noqa: S608
            yield ids[child], relation.replace(" ", "_"), ids[parent]
    symbols, known = dict[int, str](), set[str]()
    for number, symbol, gene in rows(genes, "SELECT _id, symbol, gene_id FROM gene_info JOIN genes USING (_id)"):
        symbols[number] = f"{symbol} ({gene})" if symbol in known else symbol
        known.add(symbol)
    annotated = set[int]()
    for kind, said in KINDS.items():
        for number, term, evidence in rows(genes, f"SELECT _id, go_id, evidence FROM go_{kind}"):  # noqa: S608
            if evidence != NOTHING and term in names:
                annotated.add(number)
                yield symbols[number], f"{said}_{evidence}", names[term]
    for (table, column), (relation, word) in OTHERS.items():
        for number, value in rows(genes, f"SELECT _id, {column} FROM {table} WHERE {column} IS NOT NULL"):  # noqa: S608
            if number in annotated:
                yield symbols[number], relation, f"{word}{value}"


def rows(database: Path, query: str) -> Iterator[tuple]:
    """What a query of our own finds, in the order in which it lies there."""
    try:
        with contextlib.closing(sqlite3.connect(f"{database.resolve().as_uri()}?mode=ro", uri=True)) as opened:
            yield from opened.execute(query)
    except sqlite3.Error as error:
        raise DataError(f"{database}: {error}; it is a database of Bioconductor, as of Debian's r-bioc-go.db") from None


def main(arguments: list[str] | None = None) -> int:
    """`python -m kgdistil.paper.genes TERMS GENES FILE`."""
    parser = argparse.ArgumentParser(prog="python -m kgdistil.paper.genes", description="Human genes as triples.")
    parser.add_argument("terms", type=Path, help="GO.sqlite, of r-bioc-go.db")
    parser.add_argument("genes", type=Path, help="org.Hs.eg.sqlite, of r-bioc-org.hs.eg.db")
    parser.add_argument("file", type=Path, help="for the triples, a line each with tabs")
    given = parser.parse_args(arguments)
    found = dict.fromkeys(triples(given.terms, given.genes))
    write_text(given.file, "".join("\t".join(triple) + "\n" for triple in found))
    entities, relations = ({x for t in found for x in (t[0], t[2])}, {r for _, r, _ in found})
    print(f"{len(entities):,} entities, {len(relations)} relations, {len(found):,} triples")
    return 0


if __name__ == "__main__":
    run_command(main)
