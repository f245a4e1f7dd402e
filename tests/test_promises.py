"""The page "What is promised" names tests that are there."""

import ast
import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent
NAMED = re.findall(r"`(test_\w+\.py)::(test_\w+)`", (HERE.parent / "book" / "promised.md").read_text(encoding="utf-8"))


def test_the_page_names_tests() -> None:
    page = (HERE.parent / "book" / "promised.md").read_text(encoding="utf-8")
    promises = [line for line in page.splitlines() if line.startswith("- ")]
    assert len(promises) > 20 and all(re.search(r"`test_\w+\.py::test_\w+`", row) for row in promises)


@pytest.mark.parametrize("file, name", NAMED)
def test_a_promise_has_its_test(file: str, name: str) -> None:
    tree = ast.parse((HERE / file).read_text(encoding="utf-8"))
    assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
