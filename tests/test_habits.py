"""What the code holds itself to and no other tool counts."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = [path for room in ("kgdistil", "book/build", "tests") for path in sorted((ROOT / room).rglob("*.py"))]
TRAINING = sorted((ROOT / "kgdistil/training").rglob("*.py"))


def test_core_and_training_can_be_read_in_one_sitting():
    """The paper in code: all that lies directly in the package, but for the command and the package's face."""
    core = [path for path in (ROOT / "kgdistil").glob("*.py") if path.stem not in ("cli", "__init__", "_version")]
    lines = {path: len(path.read_text().splitlines()) for path in [*core, *TRAINING]}
    assert sum(lines.values()) < 3000, sorted(lines.items(), key=lambda item: -item[1])[:5]


def test_an_error_comes_without_the_one_that_it_explains():
    """Seventy lines of a library's traceback above the line that helps: `raise … from None` leaves them out."""
    found = []
    for path in (path for path in CODE if "kgdistil" in path.relative_to(ROOT).parts):
        handlers = (x for x in ast.walk(ast.parse(path.read_text())) if isinstance(x, ast.ExceptHandler))
        raised = (x for handler in handlers for x in ast.walk(handler) if isinstance(x, ast.Raise) and x.exc)
        found += [f"{path.name}:{x.lineno}" for x in raised if not (isinstance(x.cause, ast.Constant))]
    assert found == []


def test_the_formatter_has_its_way():
    off = re.compile(r"#\s*(fmt|ruff|yapf):\s*(skip|off|noqa|disable)")
    assert [path.name for path in CODE if off.search(path.read_text())] == []


def test_what_a_linter_is_not_to_see_says_what_and_why():
    bare = re.compile(r"#\s*(noqa(?!: [A-Z]+\d+ - \w)|type: ignore(?!\[))")
    found = [
        f"{path.name}: {line.strip()}" for path in CODE for line in path.read_text().splitlines() if bare.search(line)
    ]
    assert found == []


@pytest.mark.parametrize(
    "name, looks, ours",
    [
        ("GOMP_SPINCOUNT", ["3/79", "2/79", "2/80"], "1000"),
        ("GOMP_SPINCOUNT", ["2/79", "1/79", "4/80"], "20000"),  # others ran for a moment only
        ("GOMP_SPINCOUNT", ["2/79", "no"], "1000"),
        ("GOMP_SPINCOUNT", [], "1000"),  # of a system that does not say
        ("THP_MEM_ALLOC_ENABLE", ["1/79"], "1"),
    ],
)
@pytest.mark.parametrize("given, first", [(None, ""), ("7", ""), (None, "import torch; ")])
def test_what_pytorch_reads_is_set_where_it_is_loaded_after_us(
    name: str, looks: list[str], ours: str, given: str | None, first: str, tmp_path: Path
):
    """A waiting thread spins long where nobody else runs now, whatever the load of the last minute was."""
    said = [f"1.70 0.90 0.20 {each} 5" for each in looks]
    (tmp_path / "told.py").write_text(
        f"import builtins, io, os\nlooks, real, os.cpu_count = iter({said!r}), builtins.open, lambda: 2\n"
        "def told(path, *given, **more):\n"
        "    if path != '/proc/loadavg':\n        return real(path, *given, **more)\n"
        "    return io.StringIO(next(looks, 'no'))\n"
        "builtins.open = told\n"
    )
    code = f"{first}import os, sys; sys.path.insert(0, {str(tmp_path)!r}); import told, kgdistil"
    code += f"; print(os.environ.get('{name}'))"
    kept = {key: value for key, value in os.environ.items() if key != name}
    own, seen = {} if given is None else {name: given}, str(given or (None if first else ours))
    ran = subprocess.run([sys.executable, "-c", code], env=kept | own, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == seen


def test_a_folder_called_like_the_package_does_not_hide_it(tmp_path: Path):
    """As the clone itself does in the folder that it was made in."""
    (tmp_path / "kgdistil").mkdir()
    code = "import kgdistil; print(kgdistil.load.__name__)"
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ran.stdout == "load\n"
