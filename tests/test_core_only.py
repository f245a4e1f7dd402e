"""With only the core dependencies (a GPU machine without Jupyter) the package imports, trains, ranks and answers."""

import ast
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import kgdistil

EXTRAS = ("IPython", "jupyterlab", "matplotlib", "nbformat", "papermill", "pykeen", "seaborn", "torchkge")

SCRIPT = """
import sys
from importlib.abc import MetaPathFinder


class Missing(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {extras}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)


sys.meta_path.insert(0, Missing())
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
loaded = set(sys.modules) & {extras}
assert not loaded, loaded
"""


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
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT).format(extras=set(EXTRAS)), str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, **env},
        check=False,
    )
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
