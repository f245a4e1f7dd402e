"""The page "Try it": folders of students and teachers, which a browser reads."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kgdistil import records
from kgdistil.answer.files import write_json
from kgdistil.answer.format import read_header
from kgdistil.checkpoint import WEIGHTS, load_model
from kgdistil.distillation import recipes
from kgdistil.distillation.distil import batch_size
from kgdistil.errors import DataError
from kgdistil.graph import Graph
from kgdistil.graphs.datasets import load
from kgdistil.models import MODELS
from kgdistil.paper.cells import GRAPHS, PATHS
from kgdistil.paper.methods import TITLES
from kgdistil.paper.notebooks import example_query
from kgdistil.students.labelled import Labelled

if TYPE_CHECKING:
    from kgdistil.training.loop import Run


# ---- the page "Try it" ----------------------------------------------------------------------------------------------
def export_graphs(folder: Path) -> None:
    """Folders of students and teachers: UMLS, trained here, and of the others what lies under `results/students/`.

    Of a graph's students of few bits the largest, which comes first.
    """
    shown, missing = umls_entries(folder), []
    for path in served():
        dataset = next(name for name in GRAPHS if path.name.startswith(f"{name}-"))
        entry: dict[str, Any] = {"title": f"{TITLES[dataset]}, {kind(path.name.removeprefix(f'{dataset}-'))}"}
        try:
            graph = load(dataset)
        except DataError as error:
            missing.append({**entry, "reason": str(error)})
            continue
        student, about = load_model(path, graph), read_header(path)
        precision = about["precision"]
        Labelled(student, graph, precision, about.get("run_id")).save(folder / path.name / "student")
        entry |= {"folder": path.name, "student": True, "example": example(student, graph)}
        teacher = records.model_folder(teacher_of(about.get("run_id")))
        if (teacher / WEIGHTS).is_file():  # weights of teachers are not committed: only where it was trained here
            Labelled(load_model(teacher, graph), graph).save(folder / path.name / "teacher")
            entry["teacher"] = True
        shown.append(entry)
    write_json(folder / "graphs.json", {"graphs": shown, "missing": missing})


def served() -> list[Path]:
    """Folders of the students of `GRAPHS` that the page serves: of few bits the largest, of those of one size the best,
    then those of 8 dimensions."""

    def rank(path: Path) -> tuple[int, float]:
        metrics = read_header(path).get("metrics") or [{}]
        return int(path.name.rsplit("-", 1)[1][:-1]), metrics[0].get("mrr", 0.0)

    found = []
    for dataset in GRAPHS:
        there = sorted((records.results_folder() / "students").glob(f"{dataset}-*/"))
        few = [path for path in there if re.search(r"-\d+B$", path.name)]
        found += sorted(few, key=rank)[-1:]
        found += [path for path in there if path.name.endswith("-d8")]
    return found


def kind(name: str) -> str:
    """ "rotate-d8" or "complex-16B" in words."""
    model, size = name.rsplit("-", 1)
    taught = f", taught by {PATHS}" if model.endswith(f"-{PATHS}") else ""
    model = model.removesuffix(f"-{PATHS}")
    model = next((m for m in MODELS if m.lower() == model), model)
    size = f"{size[1:]} dimensions" if size[0] == "d" else f"{size[:-1]} bytes an entity"
    return f"{model}, {size}{taught}"


def teacher_of(run: str | None) -> str:
    """The run that taught a recorded student; "none" where that is not known."""
    record = run and records.read_record(records.record_path(run))
    return (record and record["config"]["teacher"]) or "none"


def umls_entries(folder: Path) -> list[dict[str, Any]]:
    """Distil UMLS, in seconds, to few floats and to few bits, and write students and teachers."""
    graph, entries = load("umls"), []
    dim = recipes.distillation("umls").no_ds.dim
    floats, bits = recipes.distillation("umls").run(graph, progress=False), few_bits(graph)
    for name, title, runs, precision in (
        ("umls", f"{dim} dimensions", floats, "float32"),
        ("umls-16B", kind("complex-16B"), bits, "1bit"),
    ):
        models = {"student": list(runs.values())[-1], "teacher": runs["teacher"]}
        for role, run in models.items():
            kept = precision if role == "student" else "float32"
            Labelled(run.load(graph), graph, kept, run.id, {"test_mrr": run.test()}).save(folder / name / role)
        first = example(models["teacher"].load(graph), graph)
        entries.append(
            {
                "title": f"UMLS (biomedicine), {title}",
                "folder": name,
                "student": True,
                "teacher": True,
                "example": first,
            }
        )
    return entries


def few_bits(graph: Graph) -> dict[str, Run]:
    """UMLS in 16 bytes an entity."""
    return recipes.few_bits("umls", batch_size=batch_size(graph)).run(graph, progress=False)


def example(model: Any, graph: Graph) -> dict[str, int]:
    """A test triple that the model answers well, to begin with."""
    h, r, _ = example_query(model, graph)
    return {"head": h, "relation": r}
