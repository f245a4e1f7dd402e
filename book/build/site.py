"""`make book`: gathers the book's sources under `_build/source` and has Jupyter Book build `_build/html`.

Pages under `book/` are templates: `<< table("table3", "tuned") >>` calls a function of `book.build.pages`, so that
no number is typed. A page cannot be stale: every build starts from nothing but the repository, and what the notebooks
train lies in `_build/work-<sum of kgdistil/, notebooks/ and results/>`, a folder that a change of any of those files
leaves behind.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from book.build.pages import pieces
from book.build.pages.shown import Shown
from book.build.sources import AS_COMMITTED, EMBEDDED, EXECUTED, SOURCES, digest, is_fresh, site
from book.build.try_it import export_graphs
from kgdistil import records
from kgdistil.errors import KgdistilError, run_command
from kgdistil.paper import tables

log = logging.getLogger("kgdistil")
PARTS = {
    "The paper": ("method", "try"),
    "Notebooks": (),
    "Results": (
        "results",
        "table3",
        "table4",
        "table6",
        "speed",
        "figures",
        "claims",
        "reproduced",
        "frontier",
        "work",
        "large",
        "scale",
    ),
    "Reference": ("promised", "api", "status", "glossary", "bibliography", "contribute"),
}


# ---- building -------------------------------------------------------------------------------------------------------
def toc(notebooks: list[str]) -> dict[str, Any]:
    """The table of contents: the pages of PARTS, and the notebooks that are there."""
    parts = []
    for caption, pages in PARTS.items():
        files = [f"book/{page}" for page in pages] or [f"notebooks/{name}" for name in notebooks]
        parts.append({"caption": caption, "chapters": [{"file": file} for file in files]})
    return {"format": "jb-book", "root": "book/index", "parts": [part for part in parts if part["chapters"]]}


def configuration(work: Path, execute: bool = True) -> dict[str, Any]:
    """`_config.yml` with what follows from the repository's address and from the place of this build."""
    import yaml

    config = yaml.safe_load((records.root() / "_config.yml").read_text(encoding="utf-8"))
    if config["repository"]["url"]:
        config["html"] |= {"use_repository_button": True, "use_edit_page_button": True, "use_issues_button": True}
        config["launch_buttons"] = {
            "binderhub_url": "https://mybinder.org",
            "colab_url": "https://colab.research.google.com",
        }
    else:
        del config["repository"]
    config["execute"] |= {"execute_notebooks": "cache" if execute else "off", "cache": str(work / "cache")}
    config["sphinx"]["config"]["html_extra_path"] = ["site"]
    config["sphinx"]["config"]["html_static_path"] = ["book/static"]
    return config


def math_font(path: Path) -> None:
    """STIX Two Math, which the package ziamath carries, cut down to the characters a formula may hold."""
    import importlib.util

    from fontTools import subset

    carrier = importlib.util.find_spec("ziamath")
    if carrier is None or carrier.origin is None:
        raise KgdistilError("ziamath, which carries the font for formulas, is missing: pip install -e '.[book]'")
    options = subset.Options(flavor="woff", notdef_outline=True, layout_features=["*"])
    font = subset.load_font(str(Path(carrier.origin).parent / "fonts" / "STIXTwoMath-Regular.ttf"), options)
    cut = subset.Subsetter(options)
    spans = (
        (0x20, 0x17F),
        (0x2B0, 0x36F),
        (0x391, 0x3F5),
        (0x2010, 0x205F),
        (0x20D0, 0x20F0),
        (0x2100, 0x22FF),
        (0x2308, 0x230B),
        (0x27E6, 0x27EF),
        (0x2A00, 0x2A10),
        (0x1D434, 0x1D467),
        (0x1D6E2, 0x1D71B),
    )
    cut.populate(unicodes=[code for first, last in spans for code in range(first, last + 1)])
    cut.subset(font)
    subset.save_font(font, str(path), options)


def prepare(source: Path, work: Path, execute: bool) -> None:
    """Everything Jupyter Book reads, written anew."""
    import jinja2
    import yaml

    root = records.root()
    shutil.rmtree(source, ignore_errors=True)
    (source / "notebooks").mkdir(parents=True)
    notebooks = sorted((root / "notebooks").glob("*.ipynb"))
    for path in notebooks:
        shutil.copy(path, source / "notebooks")
    for name in ("ext", "static"):
        shutil.copytree(root / "book" / name, source / "book" / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(root / "book" / "references.bib", source / "book")
    math_font(source / "book" / "static" / "math.woff")
    shutil.copytree(root / "book" / "site", source / "site")
    for name in ("runs", "frontier", "constrained", "bench"):
        shutil.copytree(records.results_folder() / name, source / "site" / name)
    export_graphs(source / "site" / "try")

    environment = jinja2.Environment(
        variable_start_string="<<",
        variable_end_string=">>",
        block_start_string="<%",
        block_end_string="%>",
        comment_start_string="<#",
        comment_end_string="#>",
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    callable_ = pieces(Shown(source, execute))
    for path in sorted((root / "book").glob("*.md")):
        text = environment.from_string(path.read_text(encoding="utf-8")).render(callable_)
        (source / "book" / path.name).write_text(text, encoding="utf-8")
    config = configuration(work, execute)
    (source / "_config.yml").write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
    contents = toc([path.stem for path in notebooks])
    (source / "_toc.yml").write_text(yaml.safe_dump(contents, sort_keys=False), encoding="utf-8")


def workplace() -> Path:
    """A copy of `results/` and room for runs, for these very files of EXECUTED; those of earlier ones are removed."""
    work = records.root() / "_build" / f"work-{digest(EXECUTED)}"
    for old in work.parent.glob("work-*"):
        if old != work:
            shutil.rmtree(old)
    if not (work / "results").is_dir():
        kept = shutil.ignore_patterns(*EMBEDDED, "checkpoints")
        shutil.copytree(records.root() / "results", work / "copying", ignore=kept, dirs_exist_ok=True)
        (work / "copying").rename(work / "results")
    return work


def in_workplace(work: Path, do: Callable[[], None]) -> None:
    """Run `do` with runs and results of the book's own."""
    paths = [str(records.root()), *filter(None, [os.environ.get("PYTHONPATH")])]  # never another checkout's package
    own = {
        "KGDISTIL_RUNS": str(work / "runs"),
        "KGDISTIL_RESULTS": str(work / "results"),
        "PYTHONPATH": os.pathsep.join(paths),
    }
    before = {name: os.environ.get(name) for name in own}
    os.environ |= own
    try:
        do()
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def build(execute: bool = True) -> Path:
    """The built site, `_build/html`.

    Args:
        execute: run the notebooks that changed; else they are shown as they are committed.
    Raises:
        KgdistilError: Jupyter Book found something wrong; its own lines are above.
    """
    import importlib.util

    if importlib.util.find_spec("jupyter_book") is None:
        raise KgdistilError("Jupyter Book is missing: pip install -c constraints.txt -e '.[notebooks,book]'")
    source, work, stamp = records.root() / "_build" / "source", workplace(), digest(SOURCES)
    shutil.rmtree(site(), ignore_errors=True)
    shutil.rmtree(site().parent / ".doctrees", ignore_errors=True)

    def make() -> None:
        tables.main()
        prepare(source, work, execute)
        jupyter_book = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()"]
        command = [
            *jupyter_book,
            "build",
            str(source),
            "--path-output",
            str(records.root()),
            "--toc",
            str(source / "_toc.yml"),
            "--all",
            "-W",
            "--keep-going",
        ]
        if subprocess.run(command, cwd=source, check=False).returncode:
            raise KgdistilError("the book has warnings or errors: see the lines above")

    in_workplace(work, make)
    (site() / ".sources").write_text(stamp if execute else f"{AS_COMMITTED} {stamp}")
    return site()


def main(arguments: list[str] | None = None) -> int:
    """`python -m book.build`: build; `--serve`: show what is built, or build it first."""
    parser = argparse.ArgumentParser(prog="python -m book.build", description="Build the book, or show it.")
    parser.add_argument("--serve", action="store_true", help="serve _build/html, built first where it is stale")
    parser.add_argument("--port", type=int, default=8000)
    asked = parser.parse_args(arguments)
    if not asked.serve or not is_fresh():
        print(f"built: {records.shown(build())}/index.html; `make serve` shows it")
    if asked.serve:
        command = [sys.executable, "-m", "http.server", str(asked.port), "--bind", "127.0.0.1", "-d", str(site())]
        print(f"http://127.0.0.1:{asked.port}/ - stop with Ctrl+C")
        with contextlib.suppress(KeyboardInterrupt):
            subprocess.run(command, check=False)
    return 0


if __name__ == "__main__":
    run_command(main)
