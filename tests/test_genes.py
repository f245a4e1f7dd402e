"""Databases of genes and terms as triples: what is one, what is said twice, what cannot be read."""

import sqlite3
from pathlib import Path

import pytest

from kgdistil.errors import DataError
from kgdistil.paper.genes import OTHERS, main, triples

TERMS = {  # made up
    "go_term": ("_id, go_id, term", [(1, "GO:1", "glowing"), (2, "GO:2", "glowing at night"), (3, "GO:3", "lamp")]),
    "go_bp_parents": ("_id, _parent_id, relationship_type", [(2, 1, "isa"), (2, 1, "positively regulates")]),
    "go_mf_parents": ("_id, _parent_id, relationship_type", []),
    "go_cc_parents": ("_id, _parent_id, relationship_type", []),
}
GENES = {
    "genes": ("_id, gene_id", [(7, "70"), (8, "80"), (9, "90")]),
    "gene_info": ("_id, symbol", [(7, "GLO"), (8, "GLO"), (9, "DARK")]),
    "go_bp": ("_id, go_id, evidence", [(7, "GO:1", "IDA"), (7, "GO:1", "IDA"), (7, "GO:99", "IDA"), (9, "GO:1", "ND")]),
    "go_mf": ("_id, go_id, evidence", []),
    "go_cc": ("_id, go_id, evidence", [(8, "GO:3", "IEA")]),
    **{table: (f"_id, {column}", []) for table, column in OTHERS},
    "chromosomes": ("_id, chromosome", [(7, "1"), (9, "1")]),
    "pfam": ("_id, pfam_id", [(8, None), (8, "PF1")]),
}
TRIPLES = [
    ("glowing at night", "isa", "glowing"),
    ("glowing at night", "positively_regulates", "glowing"),
    ("GLO", "process_IDA", "glowing"),
    ("GLO (80)", "component_IEA", "lamp"),
    ("GLO", "on_chromosome", "chromosome 1"),
    ("GLO (80)", "has_domain", "PF1"),
]


def database(path: Path, tables: dict[str, tuple[str, list[tuple]]]) -> Path:
    opened = sqlite3.connect(path)
    for name, (columns, lines) in tables.items():
        opened.execute(f"CREATE TABLE {name} ({columns})")
        opened.executemany(f"INSERT INTO {name} VALUES ({', '.join('?' * len(columns.split(',')))})", lines)  # noqa: S608 - names of our own
    opened.commit()
    opened.close()
    return path


def test_rows_are_triples_of_genes_that_have_a_term(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    given = database(tmp_path / "GO.sqlite", TERMS), database(tmp_path / "a#b?.sqlite", GENES)
    assert list(dict.fromkeys(triples(*given))) == TRIPLES
    assert main([*map(str, given), str(tmp_path / "genes.tsv")]) == 0
    assert capsys.readouterr().out == "7 entities, 6 relations, 6 triples\n"
    assert [tuple(line.split("\t")) for line in (tmp_path / "genes.tsv").read_text().splitlines()] == TRIPLES


def test_a_row_of_what_no_table_has_is_refused(tmp_path: Path) -> None:
    for name, tables in (("go_bp_parents", TERMS), ("go_cc", GENES)):
        columns, lines = tables[name]
        broken = {**tables, name: (columns, [*lines, (99, lines[0][1], "IEA")])}
        folder = tmp_path / name
        folder.mkdir()
        given = [database(folder / f"{i}", broken if x is tables else x) for i, x in enumerate((TERMS, GENES))]
        with pytest.raises(DataError, match="a row is of 99, which is in no table"):
            list(triples(*given))


def test_another_file_is_refused(tmp_path: Path) -> None:
    right = database(tmp_path / "GO.sqlite", TERMS), database(tmp_path / "org.sqlite", GENES)
    (tmp_path / "text").write_text("no database, but more than a few words, so that it is looked at")
    for wrong in (tmp_path / "none", tmp_path / "text", database(tmp_path / "other", {"x": ("y", [])})):
        for given in ((wrong, right[1]), (right[0], wrong)):
            with pytest.raises(DataError, match=f"{wrong.name}: .*; it is a database of Bioconductor"):
                list(triples(*given))
    assert not (tmp_path / "none").exists()
