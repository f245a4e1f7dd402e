"""Without extras a student answers; with the extra `train` (a GPU machine without Jupyter) the package trains, too."""

import ast
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import kgdistil
from kgdistil.graph import Graph
from kgdistil.models import build_model

TRAINING = ("pandas", "pooch", "pydantic", "safetensors", "scipy", "sklearn", "torch", "tqdm")
EXTRAS = ("IPython", "jupyterlab", "matplotlib", "nbformat", "optuna", "papermill", "pykeen", "seaborn", "torchkge")

HIDE = """
import sys
from importlib.abc import MetaPathFinder


class Missing(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {extras}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)


sys.meta_path.insert(0, Missing())
"""
SCRIPT = """
import pathlib

import kgdistil

folder = pathlib.Path(sys.argv[1])
names = ["a", "b", "c", "d", "e"]
lines = [f"{{h}}\\tr\\t{{t}}" for h in names for t in names if h < t]
for split, part in (("train", lines), ("valid", ["e\\tr\\ta"]), ("test", ["e\\tr\\tb"])):
    (folder / f"{{split}}.txt").write_text("\\n".join(part) + "\\n")
graph = kgdistil.load(folder)
config = kgdistil.make_config(dataset=str(folder), model="TransE", dim=4, epochs=2, patience=0)
done = kgdistil.run(config, graph)
print(len(kgdistil.predict(done.load(graph), graph, head="a", relation="r", k=3)), done.record["epochs"])
assert callable(kgdistil.distil)
loaded = set(sys.modules) & {extras}
assert not loaded, loaded
"""


ANSWER = """
import kgdistil
from kgdistil.cli import main

student = kgdistil.load_student(sys.argv[1])
print(*student.predict(head="e03", relation="r1", k=3)["entity"], student.evaluate("test")["both"]["mrr"] > 0)
print(*student.similar("e03", k=2)["entity"])
for name in ("distil", "load", "train"):
    try:
        getattr(kgdistil, name)
    except ImportError as error:
        assert "pip install" in str(error), error
predict = ["predict", sys.argv[1], "--head", "e03", "--relation", "r1", "-k", "2"]
for command in (predict, ["distill", "x.tsv", "-o", "y"]):
    try:
        main(command, standalone_mode=False)
    except SystemExit as end:
        print(end.code)
assert not set(sys.modules) & {extras}, sys.modules
"""


def alone(script: str, without: tuple[str, ...], *arguments: str) -> subprocess.CompletedProcess:
    """A script in a process that lacks some packages."""
    code = textwrap.dedent(HIDE + script).format(extras=set(without))
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("precision", ["float32", "2bit"])
def test_a_student_answers_without_what_training_needs(tiny_graph: Graph, tmp_path: Path, precision: str) -> None:
    labelled = kgdistil.Labelled(build_model("ComplEx", 30, 4, 4, seed=1), tiny_graph).quantised(precision)
    labelled.save(tmp_path / "s")
    done = alone(ANSWER, (*TRAINING, *EXTRAS), str(tmp_path / "s"))
    assert done.returncode == 0, done.stderr
    lines, k = done.stdout.splitlines(), 3
    wanted = labelled.predict(head="e03", relation="r1", k=k)["entity"].tolist()
    assert lines[0].split() == [*wanted, "True"]
    assert lines[1].split() == labelled.similar("e03", k=2)["entity"].tolist()
    assert [line.split()[1] for line in lines[3:5]] == wanted[:2]
    assert lines[-1] == "1" and 'pip install "kgdistil[train]"' in done.stderr


@pytest.mark.parametrize(
    "code",
    [
        "import kgdistil; dir(kgdistil), kgdistil.__version__",
        "from kgdistil import cli; cli.main(['--help'], standalone_mode=False)",
        "from kgdistil import cli; cli.main(['distill', '--help'], standalone_mode=False)",
    ],
)
def test_a_start_loads_nothing_heavy(code):
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; import sys; print(*sys.modules)"], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    loaded = done.stdout.decode().splitlines()[-1].split()
    assert "kgdistil" in loaded and not {"torch", "pandas", "numpy", "scipy", "pydantic"} & set(loaded)


def test_core_dependencies_are_enough(tmp_path):
    env = {"KGDISTIL_RUNS": str(tmp_path / "runs"), "KGDISTIL_RESULTS": str(tmp_path / "results")}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in env.items():
            patch.setenv(name, value)
        done = alone(SCRIPT, EXTRAS, str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["3", "2"]


def test_type_checkers_see_the_names_that_are_imported_at_need():
    tree = ast.parse(Path(kgdistil.__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    told = {(node.module, name.name) for node in tree.body if isinstance(node, ast.ImportFrom) for name in node.names}
    assert told == {
        ("_version", "__version__"),
        *((place, n) for place, names in kgdistil.PLACES.items() for n in names),
    }
    assert all(getattr(kgdistil, name) is not None for name in kgdistil.__all__)
