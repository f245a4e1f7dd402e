"""The README's numbers are those of the records: nothing in its marked blocks is typed by hand."""

import json
import re
import shutil

import nbformat
import numpy as np
import pytest
from PIL import Image

from book.build import readme
from kgdistil import KgdistilError, records
from kgdistil.distillation import recipes
from kgdistil.paper import notebooks

README = records.root() / "README.md"


def test_the_readme_shows_what_the_records_say():
    text = README.read_text(encoding="utf-8")
    assert readme.update(text) == text, "README.md is stale: run `python -m book.build.readme`"
    assert "\ufffd" not in text


def pixels(path):
    """Of a PNG: [height, width, 3]."""
    return np.asarray(Image.open(path).convert("RGB"), dtype=float)


def test_the_readmes_pictures_are_those_of_the_records(tmp_path):
    """Nearly every pixel, since fonts are drawn a little differently by other versions; a moved point is found."""
    for name, figure in readme.figures().items():
        committed = pixels(records.results_folder() / name)
        for moved in (False, True):
            if moved:
                for line in figure.axes[0].get_lines():
                    line.set_ydata(np.asarray(line.get_ydata(), dtype=float) * 0.97)
            readme.draw(figure, tmp_path / "new.png")
            drawn = pixels(tmp_path / "new.png")
            other = (np.abs(drawn - committed).max(axis=2) > 64).mean() if drawn.shape == committed.shape else 1
            assert (other > 0.002) == moved, f"{name} is stale: run `python -m book.build.readme`"


def test_the_shown_runs_are_clean_and_share_their_data():
    runs = readme.distillation()
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
    stage2 = tmp_path / "runs" / f"{readme.RUNS['stage 2']}.json"
    record = json.loads(stage2.read_text())
    record["test"]["both"]["mrr"] += 0.01
    stage2.write_text(json.dumps(record))
    monkeypatch.setenv("KGDISTIL_RESULTS", str(tmp_path))
    assert readme.update(text) != text


def test_a_newer_run_changes_nothing(tmp_path, monkeypatch):
    """The README shows fixed runs: what `make demo DATASET=wn18rr` leaves does not get into it."""
    before = readme.result_block()
    shutil.copytree(records.results_folder() / "runs", tmp_path / "runs")
    for run in readme.RUNS.values():
        record = json.loads((tmp_path / "runs" / f"{run}.json").read_text())
        record["finished"] = "2099" + record["finished"][4:]
        record["test"]["both"]["mrr"] = 0.123
        record["id"] = f"{run}new"
        (tmp_path / "runs" / f"{run}new.json").write_text(json.dumps(record))
    monkeypatch.setenv("KGDISTIL_RESULTS", str(tmp_path))
    assert readme.result_block() == before


def test_without_records_it_says_which_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("KGDISTIL_RESULTS", str(tmp_path))
    with pytest.raises(KgdistilError, match=readme.RUNS["teacher"]):
        readme.distillation()


# ---- no number is typed ---------------------------------------------------------------------------------------------
GENERATED = (
    r"<!-- (\w+): start -->.*?<!-- \1: end -->",  # of README
    r"<<.*?>>|<%.*?%>",  # of the book's templates
)
NO_PROSE = (
    *(r"^```.*?^```", r"^\s*<svg.*?</svg>", r"\$[^$]*\$", r"`[^`]*`"),  # code, drawings, formulas
    *(r"^#.*?$", r"^\(\S+\)=$", r"^:[\w-]+:.*?$", r"^::+\{[^}]*\}.*?$"),  # headings, labels, options of directives
    *(r"\]\([^)]*\)", r"https?://\S+", r"<[^>]*>", r"\{cite\}"),  # addresses, tags
)
NAMES_WITH_DIGITS = (
    *("WN18RR", "FB15k-237", "Hits@10", "AVX-512", "SHA-256", "float32", "float16", "int8", r"Jupyter Book 1"),
    *(r"Python 3\.11 to 3\.13", r"arXiv 2009\.05912", r"Zhu et al\. 2020", r"Tables? [1-6]", r"Figures? [1-3]"),
    *(r"Tables \d, \d and \d", r"Eq\. \d+( (and|to) \d+)*", r"[Ss]tage [12]", r"[−-]S[12]", "seed 0", "1-vs-all"),
    *(r"Mean of 1 / rank over[^:]*: 1 is perfect", "ComplEx of 64 dimensions at its best"),
)


def typed_numbers(text: str) -> list[str]:
    """The digits of a page's prose, each with what is beside it."""
    for pattern in (*GENERATED, *NO_PROSE):
        text = re.sub(pattern, " ", text, flags=re.DOTALL | re.MULTILINE)
    for name in NAMES_WITH_DIGITS:
        text = re.sub(rf"(?<![\w.]){name}(?![\w.]*\d)", " ", text)
    return [found.strip() for found in re.findall(r".{0,25}\d.{0,25}", text)]


@pytest.mark.parametrize("path", [README, *sorted((records.root() / "book").glob("*.md"))], ids=lambda path: path.name)
def test_no_number_is_typed_by_hand(path):
    assert not typed_numbers(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "typed", ["an MRR of .490", "16 bytes", "within 0.01", "Table 9", "Eq. 4 times 3", "128 to 64"]
)
def test_a_typed_number_is_found(typed):
    text = README.read_text(encoding="utf-8")
    assert len(typed_numbers(text.replace("## In Python", f"So it has {typed}.\n\n## In Python"))) == 1
    assert not typed_numbers(f"<< table(3, 'tuned') >> of WN18RR, Eq. 5 and 11: `{typed}`, ${typed}$\n# {typed}\n")


# ---- one run, one number --------------------------------------------------------------------------------------------
def shown_in_notebooks() -> dict[str, dict[str, set[tuple[str, ...]]]]:
    """By run id and notebook: what tables of runs in the committed notebooks show of the runs, default parameters."""
    distilled = recipes.distillation()
    of = {
        "01_teacher": {"teacher": notebooks.teacher_only()},
        "02_single_stage": notebooks.single_stage(),
        "03_distill": {name: getattr(distilled, field) for field, name in recipes.STEPS.items()},
        "04_ablation": notebooks.ablation(),
    }
    found: dict[str, dict[str, set[tuple[str, ...]]]] = {}
    for stem, configs in of.items():
        notebook = nbformat.read(records.root() / "notebooks" / f"{stem}.ipynb", as_version=4)
        html = "".join(
            output.data.get("text/html", "")
            for cell in notebook.cells
            for output in cell.get("outputs", [])
            if "data" in output
        )
        for name, rest in re.findall(r"<tr>\s*<th>([^<]*)</th>\s*((?:<td>[^<]*</td>\s*){4,})</tr>", html):
            if name in configs:
                shown = found.setdefault(configs[name].run_id, {}).setdefault(stem, set())
                shown.add(tuple(re.findall(r"<td>([^<]*)</td>", rest)))
    return found


def test_a_run_shows_the_same_numbers_in_every_notebook():
    """Where they differ, some were executed later than others: `make refresh` executes all."""
    found = shown_in_notebooks()
    shared = {run: shown for run, shown in found.items() if len(shown) > 1}
    assert any({"01_teacher", "02_single_stage", "03_distill"} <= set(shown) for shown in shared.values())
    assert {run: shown for run, shown in shared.items() if len(set().union(*shown.values())) > 1} == {}
