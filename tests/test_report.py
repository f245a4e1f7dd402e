"""The README's numbers are those of the records: nothing in its marked blocks is typed by hand."""

import json

import pytest

from book.build import readme
from kgdistil import KgdistilError, records
from kgdistil.distillation import recipes

README = records.root() / "README.md"


def test_the_readme_shows_what_the_records_say():
    text = README.read_text(encoding="utf-8")
    assert readme.update(text) == text, "README.md is stale: run `python -m book.build.readme`"
    for picture in (readme.PICTURE, readme.QUALITY):
        assert (records.results_folder() / picture).read_bytes().startswith(b"\x89PNG")


def test_the_shown_runs_are_clean_and_share_their_data():
    runs = readme.distillation(*readme.SHOWN)
    assert list(runs) == list(recipes.STEPS.values())
    assert {r.record["dirty"] for r in runs.values()} == {False}
    assert len({r.record["graph"]["sha256"] for r in runs.values()}) == 1
    assert runs["no-DS"].record["epochs"] == runs["stage 1"].record["epochs"] + runs["stage 2"].record["epochs"]


def test_committed_records_come_from_committed_code():
    """Only what is committed: a notebook run just now leaves records as well."""
    committed = records.git("ls-files", "results/runs").splitlines()
    assert committed, "no record is committed, or git is missing"
    for record in (records.read_record(records.root() / path) for path in committed):
        assert record["dirty"] is False and len(record["commit"]) == 40, record["id"]
        assert readme.recorded(record).id == record["id"], "the id does not belong to the config"


def test_a_changed_number_is_noticed(tmp_path, monkeypatch):
    """The test above can fail: another metric in a record makes another README."""
    text = README.read_text(encoding="utf-8")
    (tmp_path / "published.csv").write_bytes((records.results_folder() / "published.csv").read_bytes())
    for folder in ("runs", "bench", "tables"):
        (tmp_path / folder).mkdir()
        for path in (p for p in (records.results_folder() / folder).iterdir() if p.suffix in (".json", ".csv")):
            (tmp_path / folder / path.name).write_bytes(path.read_bytes())
    stage2 = tmp_path / "runs" / f"{readme.distillation(*readme.SHOWN)['stage 2'].id}.json"
    record = json.loads(stage2.read_text())
    record["test"]["both"]["mrr"] += 0.01
    stage2.write_text(json.dumps(record))
    monkeypatch.setenv("KGDISTIL_RESULTS", str(tmp_path))
    assert readme.update(text) != text


def test_without_records_it_says_what_to_run(tmp_path, monkeypatch):
    monkeypatch.setenv("KGDISTIL_RESULTS", str(tmp_path))
    with pytest.raises(KgdistilError, match="make demo DATASET=wn18rr DIM=8"):
        readme.distillation(*readme.SHOWN)
