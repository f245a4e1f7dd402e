"""Notebooks: what is committed, and what they do with other parameters, good and bad. nbval runs their defaults."""

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import papermill
import pytest
from papermill.exceptions import PapermillExecutionError

import kgdistil
from kgdistil import records
from kgdistil.distillation import recipes
from kgdistil.errors import ConfigError, KgdistilError
from kgdistil.graph import Graph
from kgdistil.paper import at_work, frontier, notebooks, story
from kgdistil.paper.notebooks import check_parameters

NOTEBOOKS = sorted((records.root() / "notebooks").glob("*.ipynb"))
DISTILL = records.root() / "notebooks" / "03_distill.ipynb"
QUICK = {"model": "TransE", "dim": 4, "teacher_dim": 16, "stages": 1, "epochs": 10}


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory):
    """Empty folders for runs and records, so that no run of an earlier test session is found."""
    folder = tmp_path_factory.mktemp("fresh")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KGDISTIL_RUNS", str(folder / "runs"))
        patch.setenv("KGDISTIL_RESULTS", str(folder / "results"))
        patch.setenv("PYTHONPATH", str(records.root()), prepend=":")
        yield folder


@pytest.fixture
def empty(fresh, tmp_path, monkeypatch):
    """Empty folders for the runs of one test; compiled kernels are shared."""
    monkeypatch.setenv("KGDISTIL_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("KGDISTIL_RESULTS", str(tmp_path / "results"))
    return tmp_path


def execute(folder: Path, path: Path = DISTILL, **parameters: object) -> nbformat.NotebookNode:
    return papermill.execute_notebook(path, folder / "out.ipynb", parameters, kernel_name="python3", progress_bar=False)


def text(notebook: nbformat.NotebookNode) -> str:
    return "".join(out.get("text", "") for cell in notebook.cells for out in cell.get("outputs", []))


def recorded(folder: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in (folder / "results" / "runs").glob("*.json")]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_notebook_is_executed_and_clean(path):
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    tags = [tag for cell in cells for tag in cell.metadata.get("tags", [])]
    assert tags.count("parameters") == 1
    assert "injected-parameters" not in tags
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))  # nbval skips cells without one
    outputs = [out for cell in cells for out in cell.outputs]
    assert outputs and not [out for out in outputs if out.output_type == "error"]
    assert not [out for out in outputs if out.get("name") == "stderr"]
    assert str(records.root()) not in path.read_text()
    if "nbval-ignore-output" in tags:
        assert any("nbval-ignore-output" in c.source for c in notebook.cells if c.cell_type == "markdown"), "no reason"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_parameters_are_literals_and_all_others_are_refused(path):
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    cell = next(cell for cell in cells if "parameters" in cell.metadata.get("tags", []))
    given = {node.targets[0].id: ast.literal_eval(node.value) for node in ast.parse(cell.source).body}
    source = "\n".join(c.source for c in cells)
    if listed := re.search(r"check_parameters\(globals\(\), lambda ([\w, ]+): None\)", source):
        assert list(given) == listed[1].split(", ")  # a notebook whose parameters are no one function's
        return
    call = re.search(r"check_parameters\(globals\(\)(?:, (\w+)\.(\w+))?\)", source)
    modules = {"notebooks": notebooks, "story": story, "frontier": frontier, None: recipes}
    known = notebooks.parameters(getattr(modules[call[1]], call[2] or "distillation"))
    assert set(given) == set(known)
    for name, value in given.items():
        default = known[name].default
        assert value == (list(default) if isinstance(default, tuple) else default), name
    assert given["dataset"] == "umls"


def test_default_run(fresh):
    """Bounds are wide: numbers differ between processors."""
    notebook = execute(fresh)
    by_role = {record["config"]["role"]: record for record in recorded(fresh)}
    assert set(by_role) == {"teacher", "no-ds", "stage1", "stage2"}
    mrr = {role: record["test"]["both"]["mrr"] for role, record in by_role.items()}
    assert mrr["teacher"] > 0.85 and mrr["teacher"] > max(mrr["no-ds"], mrr["stage1"], mrr["stage2"])
    assert min(mrr["no-ds"], mrr["stage1"], mrr["stage2"]) > 0.74
    assert (fresh / "runs" / "03_distill_umls_RotatE_dim8.png").stat().st_size > 10_000
    assert f"{by_role['stage2']['id']}.json" in text(notebook)
    assert f"{mrr['teacher']:.3f}" in text(notebook)


def test_other_parameters(fresh):
    notebook = execute(fresh, **QUICK)
    mine = {r["config"]["role"]: r for r in recorded(fresh) if r["config"]["model"] == "TransE"}
    assert set(mine) == {"teacher", "no-ds", "stage1"}
    assert [mine[role]["epochs"] for role in ("no-ds", "stage1")] == [10, 10]
    assert (fresh / "runs" / "03_distill_umls_TransE_dim4.png").is_file()
    assert mine["stage1"]["id"] in text(notebook)

    saved = fresh / "runs" / "models" / mine["teacher"]["id"]
    again = recipes.distillation(**QUICK, teacher=str(saved))  # a folder of a run is that run
    assert again.stage1.run_id == mine["stage1"]["id"]
    graph = kgdistil.load("umls")
    assert again.step("teacher", graph).test() == pytest.approx(mine["teacher"]["test"]["both"]["mrr"])


@pytest.mark.parametrize(
    "parameters, says",
    [
        ({"dim": 0}, "dim is 0"),
        ({"teacher_dim": 0}, "teacher_dim is 0"),
        ({"model": "TransX"}, "model is 'TransX'"),
        ({"stages": 3}, "stages is 3"),
        ({"epochs": 0}, "epochs is 0"),
        ({"alpha": 2}, "alpha is 2"),
        ({"teacher": "nowhere"}, "'nowhere'"),
        ({"teacher": "x" * 5000}, "no model"),
    ],
    ids=lambda x: str(x)[:40],
)
def test_impossible_parameter(fresh, parameters, says):
    with pytest.raises(kgdistil.KgdistilError) as caught:
        recipes.distillation(**parameters)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_only_the_injected_cell_is_checked():
    """So that a cell can be run again in JupyterLab, where by then there are other variables."""
    check_parameters({"In": ["", "dims = 8", "# Parameters\ndim = 8\n"], "dims": 8})
    with pytest.raises(kgdistil.ConfigError, match="unknown parameter dims"):
        check_parameters({"In": ["", "# Parameters\ndims = 8\n"], "dims": 8})


def test_notebook_shows_an_error_as_one_line(fresh):
    with pytest.raises(PapermillExecutionError) as caught:
        execute(fresh, dim="eight")
    shown = caught.value.traceback  # a list of what the kernel showed
    assert len(shown) == 1 and "\n" not in shown[0] and "dim is 'eight'" in shown[0]


def test_teacher_of_another_graph(fresh, tiny_graph):
    folder = fresh / "foreign"
    model = kgdistil.build_model("RotatE", tiny_graph.num_entities, tiny_graph.num_relations, 8)
    kgdistil.save_model(folder, model, tiny_graph)
    with pytest.raises(PapermillExecutionError) as caught:
        execute(fresh, teacher=str(folder))
    shown = caught.value.traceback
    assert len(shown) == 1 and "another graph (tiny" in shown[0]


def test_unknown_parameter_on_the_command_line(fresh):
    command = [sys.executable, "-m", "papermill", str(DISTILL), str(fresh / "cli.ipynb"), "-k", "python3"]
    done = subprocess.run([*command, "-p", "dims", "8"], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode != 0
    assert done.stderr.strip().splitlines()[-1] == "ConfigError: unknown parameter dims (= 8): did you mean dim?"


# ---- the other notebooks with a second set of parameters ------------------------------------------------------------
SMALL = {"dataset": "nations", "model": "TransE", "epochs": 4}


def named(number: str) -> Path:
    return next(path for path in NOTEBOOKS if path.name.startswith(number))


def pictures(folder: Path) -> set[str]:
    return {path.stem for path in (folder / "runs").glob("*.png")}


def test_teacher_notebook_with_other_parameters(empty):
    notebook = execute(empty, named("01"), **SMALL, dim=4)
    (record,) = recorded(empty)
    config, mrr = record["config"], record["test"]["both"]["mrr"]
    assert (config["role"], config["dataset"], config["model"], config["dim"]) == ("teacher", "nations", "TransE", 4)
    assert record["epochs"] == 4
    assert f"an MRR of {mrr:.3f}" in text(notebook)
    assert pictures(empty) == {"01_teacher_nations_TransE_dim4"}


def test_single_stage_notebook_with_other_parameters(empty):
    notebook = execute(empty, named("02"), **SMALL, dim=4, teacher_dim=16, alphas=[0, 0.4])
    found = recorded(empty)
    assert sorted(r["config"]["role"] for r in found) == ["no-ds", "stage1", "stage1", "teacher"]
    students = {r["config"]["alpha"]: r for r in found if r["config"]["role"] == "stage1"}
    assert set(students) == {0, 0.4}
    best = max(students, key=lambda alpha: students[alpha]["valid"]["both"]["mrr"])
    assert f"validation chooses α = {best:g}" in text(notebook)
    assert pictures(empty) == {"02_soft_labels_nations_TransE_dim4", "02_single_stage_nations_TransE_dim4"}


def test_ablation_notebook_with_other_parameters(empty):
    notebook = execute(empty, named("04"), **SMALL, dim=4, teacher_dim=16)
    found = recorded(empty)
    students = {(r["config"]["role"], r["config"]["student"] is None): r["epochs"] for r in found if r["epochs"] == 8}
    assert students == {("no-ds", True): 8, ("stage1", True): 8, ("stage2", True): 8}
    (second,) = (r for r in found if r["config"]["role"] == "stage2" and r["config"]["student"])
    assert f"(DS) reach a test MRR of {second['test']['both']['mrr']:.3f}" in text(notebook)
    assert "Table 6 has not been run here" in text(notebook)  # the folder of results is empty
    assert pictures(empty) == {"04_ablation_nations_TransE_dim4"}


def test_your_graph_notebook_with_parts_of_ones_own(empty, tiny_graph):
    """A folder whose name looks like a formula, and a test part that begins with an entity that training lacks."""
    folder = empty / "my $graph_{^"
    folder.mkdir()
    for part in ("train", "valid", "test"):
        lines = ["\t".join(tiny_graph.label_triple(*row)) for row in getattr(tiny_graph, part).tolist()]
        lines = [f"a new one\t{tiny_graph.relations[0]}\te01"] * (part == "test") + lines
        (folder / f"{part}.txt").write_text("\n".join(lines) + "\n")
    notebook = execute(empty, named("07"), triples=str(folder), dim=4, teacher_dim=8, epochs=2)
    assert "1 entities stand in no training triple" in text(notebook) and "a new one — " in text(notebook)
    assert "a new one — ? →" not in text(notebook) and "student.json" in text(notebook)
    assert pictures(empty) == {"07_your_graph_my $graph_{^_dim4"}


@pytest.mark.parametrize("triples", [True, 5])
def test_your_graph_notebook_without_triples(empty, triples):
    with pytest.raises(PapermillExecutionError) as caught:
        execute(empty, named("07"), triples=triples)
    (shown,) = caught.value.traceback
    assert "holds no triples: give a file" in shown and "\n" not in shown


def test_timing_notebook_with_other_parameters(empty):
    (empty / "results").mkdir()
    shutil.copytree(records.root() / "results" / "bench", empty / "results" / "bench")
    shutil.copy(records.root() / "results" / "paper.csv", empty / "results")
    notebook = execute(empty, named("05"), dataset="nations", model="TransE", dim=4, teacher_dim=16, repeats=1)
    (live,) = (c for c in notebook.cells if "story.measure(" in c.source)
    shown = live.outputs[0]["data"]["text/plain"]
    assert "teacher" in shown and "student" in shown
    training = [r["training"] for r in story.benchmark()["ratios"]]
    assert f"{min(training):.1f} to {max(training):.0f} times as fast in training" in text(notebook)
    assert recorded(empty) == []  # it trains nothing
    assert pictures(empty) == {"05_table5", "05_peers"}


def test_teacher_dimension_notebook_with_other_parameters(empty):
    notebook = execute(empty, named("06"), **SMALL, dims=4, teacher_dims=[8, 16])  # one number is a list too
    found = recorded(empty)
    by_id = {r["id"]: r for r in found}
    second = [r for r in found if r["config"]["role"] == "stage2"]
    assert sorted(by_id[r["config"]["teacher"]]["config"]["dim"] for r in second) == [8, 16]
    assert sum(r["config"]["role"] == "no-ds" for r in found) == 1  # both are compared with one student
    assert f"test MRR {max(r['test']['both']['mrr'] for r in second):.3f}" in text(notebook)
    assert "Figure 2 has not been run here" in text(notebook) and "Figure 1 has not been run here" in text(notebook)
    assert pictures(empty) == {"06_teacher_dimension_nations_TransE"}


def test_frontier_notebook_with_other_parameters(empty):
    notebook = execute(empty, named("08"), dataset="umls", sizes="16")
    found = [r for r in recorded(empty) if r["config"]["protocol"] == "frontier"]
    assert sorted(r["config"]["role"] for r in found) == [*["no-ds"] * 3, *["stage1"] * 3, "teacher"]
    assert sorted(r["config"]["rank"] for r in found) == [0, 0, 0, 0, 0, 64, 64]
    best = max(r["test"]["both"]["mrr"] for r in found if r["config"]["role"] == "teacher")
    assert f"a test MRR of {best:.3f} with 512 bytes" in text(notebook)
    assert pictures(empty) == {"08_frontier_umls"}
    assert "On wn18rr the frontier has not been run" in text(notebook)


HOSTILE = (
    "__import__('os').system('touch marker')",
    "'); __import__('os').system('touch marker') #",
    '"""\n__import__("os").system("touch marker")\n"""',
    "\\'); open('marker', 'w').close(); ('",
    "a\nopen('marker', 'w').close()",
    "\r\nimport os; os.mknod('marker')",
    "{__import__('os').mknod('marker')}",
    "$(touch marker)",
    "`touch marker`",
    "!touch marker",
    "%run marker.py",
)


@pytest.mark.parametrize("value", HOSTILE)
def test_a_parameter_is_a_text_whatever_it_says(value, tmp_path, monkeypatch):
    """What papermill makes of a hostile parameter is a literal, and the recipe refuses it in one line."""
    from papermill.translators import PythonTranslator

    monkeypatch.chdir(tmp_path)
    names = ("dataset", "model", "dim", "teacher", "epochs")
    injected = ast.parse(PythonTranslator.codify(dict.fromkeys(names, value)))
    assert {node.targets[0].id: ast.literal_eval(node.value) for node in injected.body} == dict.fromkeys(names, value)
    for name in names[1:]:
        with pytest.raises(KgdistilError):
            recipes.distillation(**{**QUICK, name: value})
    assert not (tmp_path / "marker").exists()


def test_parameters_that_cannot_be_are_one_line(umls: Graph) -> None:
    with pytest.raises(ConfigError, match="dims lists 4 twice: give each once"):
        notebooks.by_teacher(dims=[4, 4])
    at_work.check_newcomer(umls, "virus", "corona")
    with pytest.raises(ConfigError, match="newcomer is 'bacterium', which umls has already: give a new name"):
        at_work.check_newcomer(umls, "virus", "bacterium")
    with pytest.raises(ConfigError, match="head is 'corona', no entity of umls"):
        at_work.check_newcomer(umls, "corona", "x")
