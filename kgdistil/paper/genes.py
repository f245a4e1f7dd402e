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

from kgdistil.answer.files import write_text
from kgdistil.errors import DataError, run_command

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
    """As `unchecked`.

    Raises:
        DataError: a file is no such database, or names what no table of it has.
    """
    try:
        yield from unchecked(terms, genes)
    except KeyError as error:
        raise DataError(f"{terms}, {genes}: a row is of {error}, which is in no table; fetch both again") from None


def unchecked(terms: Path, genes: Path) -> Iterator[tuple[str, str, str]]:
    """Triples of terms among each other, then those of all genes that have a term; a gene is its symbol, and its number
    where another has that symbol already."""
    names, ids = dict(rows(terms, "go_term", "go_id", "term")), dict(rows(terms, "go_term", "_id", "term"))
    for kind in KINDS:
        for child, relation, parent in rows(terms, f"go_{kind}_parents", "_id", "relationship_type", "_parent_id"):
            yield ids[child], relation.replace(" ", "_"), ids[parent]
    symbols, known, numbers = dict[int, str](), set[str](), dict(rows(genes, "genes", "_id", "gene_id"))
    for gene, symbol in rows(genes, "gene_info", "_id", "symbol"):
        symbols[gene] = f"{symbol} ({numbers[gene]})" if symbol in known else symbol
        known.add(symbol)
    annotated = set[int]()
    for kind, said in KINDS.items():
        for gene, term, evidence in rows(genes, f"go_{kind}", "_id", "go_id", "evidence"):
            if evidence != NOTHING and term in names:
                annotated.add(gene)
                yield symbols[gene], f"{said}_{evidence}", names[term]
    for (table, column), (relation, word) in OTHERS.items():
        for gene, value in rows(genes, table, "_id", column):
            if gene in annotated and value is not None:
                yield symbols[gene], relation, f"{word}{value}"


def rows(database: Path, table: str, *columns: str) -> Iterator[tuple]:
    """Columns of a table, in the order in which its rows lie there."""
    query = f"SELECT {', '.join(columns)} FROM {table}"  # noqa: S608 - names of our own
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
    made = dict.fromkeys(triples(given.terms, given.genes))
    write_text(given.file, "".join("\t".join(triple) + "\n" for triple in made))
    entities, relations = ({x for t in made for x in (t[0], t[2])}, {r for _, r, _ in made})
    print(f"{len(entities):,} entities, {len(relations)} relations, {len(made):,} triples")
    return 0


if __name__ == "__main__":
    run_command(main)
