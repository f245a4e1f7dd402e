"""`python -m kgdistil.paper.bench.candidates GRAPH TEACHER 2048:9 8192:3`: a student by how much a batch draws.

Students of few bits of one saved teacher; all settings but the candidates drawn and the passes are the rule's. Test
ranks are of a sample; differences from the first by the paired bootstrap over its triples. Results:
`results/bench/candidates.json`, by graph. With `dim=64` in place of TEACHER it is teachers of that dimension that
are measured, as the rule sets them: `results/bench/candidates-teachers.json`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from kgdistil import records
from kgdistil.answer.files import write_json
from kgdistil.checkpoint import load_model
from kgdistil.compress.size import GROUPS
from kgdistil.config import RunConfig
from kgdistil.distillation import recipes, rule
from kgdistil.distillation.budget import whole_of
from kgdistil.distillation.distil import few_bits_arguments
from kgdistil.distillation.statistics import bootstrap
from kgdistil.errors import ConfigError, run_command
from kgdistil.evaluation import evaluate
from kgdistil.graph import Graph
from kgdistil.graphs.readers import read_graph
from kgdistil.training.loop import resolve, run

Pairs = list[tuple[int, int]]  # candidates that a batch draws, and passes


def path(of: str = "") -> Path:
    return records.results_folder() / "bench" / ("-".join(filter(None, ("candidates", of))) + ".json")


def students(graph: Graph, teacher: str, precision: str, whole: bool, pairs: Pairs, sample: int) -> dict[str, Any]:
    """A row for each pair, and the teacher's MRR."""
    model = load_model(resolve(teacher), graph)
    kind, dim = recipes.family(model), model.dim
    given = few_bits_arguments(graph, kind, (dim, precision, 0)) | {"teacher": teacher, "listed": 0}
    given |= {"whole": whole_of(graph, kind, (dim, precision, 0))} if whole else {}
    given["more"] |= {"final_sample": sample, "protocol": "candidates"}
    rows = compared(graph, recipes.few_bits(**given).stage1, pairs, sample)
    of_teacher = evaluate(model, graph, "test", sample=sample).reciprocal()
    return {"precision": precision, "teacher_mrr": float(of_teacher.mean()), "ranked": len(of_teacher), "rows": rows}


def teachers(graph: Graph, dim: int, pairs: Pairs, sample: int) -> dict[str, Any]:
    """A row for each pair, of teachers of that dimension."""
    kind = rule.kind(graph) or "ComplEx"
    given = few_bits_arguments(graph, kind, (dim, "1bit", 0)) | {"drawn": 0}
    given["more"] |= {"final_sample": sample, "protocol": "candidates"}
    config = recipes.few_bits(**given).teacher
    assert config is not None
    return {
        "dim": dim,
        "ranked": min(sample or len(graph.test), len(graph.test)),
        "rows": compared(graph, config, pairs, sample),
    }


def compared(graph: Graph, config: RunConfig, pairs: Pairs, sample: int) -> list[dict[str, Any]]:
    """A run for each pair, beside the first."""
    rows, first = list[dict[str, Any]](), None
    for negatives, passes in pairs:
        own = {"negatives": negatives, "epochs": passes, "check_every": max(1, passes // 5)}
        done = run(config.model_copy(update=own), graph)
        test = evaluate(done.load(graph), graph, "test", sample=sample).reciprocal()
        first = test if first is None else first
        low, high, p = bootstrap(first, test)
        row = {"negatives": negatives, "passes": passes, "seconds": done.record["seconds"], "mrr": float(test.mean())}
        row |= {"gain": float((test - first).mean()), "low": low, "high": high, "p": p}
        rows.append(row | {"valid_mrr": done.record["valid"]["both"]["mrr"], "run": done.record})
        print(json.dumps({key: x for key, x in row.items() if key != "run"}), flush=True)
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Measure one graph's students or teachers, and write them beside what is there.

    Returns:
        0.
    Raises:
        ConfigError: a pair or a dimension that is none.
    """
    parser = argparse.ArgumentParser(
        prog="python -m kgdistil.paper.bench.candidates", description=__doc__.split("\n")[0]
    )
    parser.add_argument("graph", help="the graph's file")
    parser.add_argument("teacher", help="a run id, the folder of a saved model, or dim=64: teachers are measured")
    parser.add_argument("pairs", nargs="+", metavar="CANDIDATES:PASSES")
    parser.add_argument("--precision", choices=list(GROUPS), default="1bit")
    parser.add_argument("--whole", action="store_true", help="entities of most triples have no codes")
    parser.add_argument("--sample", type=int, default=10_000, help="test triples that are ranked")
    options = parser.parse_args(arguments)
    pairs = []
    for text in options.pairs:
        if not all(x.isdecimal() and int(x) for x in text.split(":")) or text.count(":") != 1:
            raise ConfigError(f"{text[:80]!r}: give candidates and passes, as 8192:3")
        pairs.append((int(text.split(":")[0]), int(text.split(":")[1])))
    graph = read_graph(options.graph)
    dim = options.teacher.removeprefix("dim=") if options.teacher.startswith("dim=") else ""
    if dim and not (dim.isdecimal() and int(dim)):
        raise ConfigError(f"{options.teacher[:80]!r}: give the dimension of the teachers as dim=64")
    if dim:
        found = teachers(graph, int(dim), pairs, options.sample)
    else:
        found = students(graph, options.teacher, options.precision, options.whole, pairs, options.sample)
    into = path("teachers" if dim else "")
    report = json.loads(into.read_text(encoding="utf-8")) if into.is_file() else {}
    about: dict[str, Any] = {
        "graph": {"name": graph.name, **graph.sizes(), "sha256": graph.sha256},
        "command": records.command(),
    }
    about |= {"device": records.describe_device("cpu"), **records.provenance()}
    write_json(into, {**report, graph.name: {**about, **found}})
    return 0


if __name__ == "__main__":
    run_command(main)
