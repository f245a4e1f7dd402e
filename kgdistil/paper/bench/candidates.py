"""`python -m kgdistil.paper.bench.candidates GRAPH TEACHER 2048:9 8192:3`: a student by how much a batch draws.

Students of few bits of one saved teacher; all settings but the candidates drawn and the passes are the rule's. Test
ranks are of a sample; differences from the first by the paired bootstrap over its triples. Results:
`results/bench/candidates.json`, by graph.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from kgdistil import records
from kgdistil.checkpoint import load_model
from kgdistil.compress.size import GROUPS
from kgdistil.distillation import recipes, rule, scale
from kgdistil.distillation.budget import whole_of
from kgdistil.distillation.distil import batch_size, dataset_of
from kgdistil.distillation.statistics import bootstrap
from kgdistil.errors import ConfigError, run_command
from kgdistil.evaluation import evaluate
from kgdistil.files import write_json
from kgdistil.graph import Graph
from kgdistil.graphs.readers import read_graph
from kgdistil.training.loop import resolve, run


def path() -> Path:
    return records.results_folder() / "bench" / "candidates.json"


def measured(graph: Graph, teacher: str, precision: str, whole: bool, pairs: list[tuple[int, int]], sample: int) -> Any:
    """A row for each pair of candidates and passes."""
    model = load_model(resolve(teacher), graph)
    kind, dim, rows, first = recipes.family(model), model.dim, list[dict[str, Any]](), None
    given: dict[str, Any] = {
        "dataset": dataset_of(graph),
        "model": kind,
        "dim": dim,
        "group": GROUPS[precision],
        "teacher": teacher,
    }
    given |= {"batch_size": min(scale.BATCH, batch_size(graph)), "fitted": rule.defaults(graph, kind, dim)}
    given |= {"whole": whole_of(graph, kind, (dim, precision, 0)) if whole else 0}
    more = scale.settings(graph, kind, dim, "softmax") | {"final_sample": sample, "protocol": "candidates"}
    for negatives, passes in pairs:
        config = recipes.few_bits(**given, more=more).stage1
        own = {"negatives": negatives, "epochs": passes, "check_every": max(1, passes // 5)}
        done = run(config.model_copy(update=own), graph)
        test = evaluate(done.load(graph), graph, "test", sample=sample).reciprocal()
        first = test if first is None else first
        low, high, p = bootstrap(first, test)
        row = {"negatives": negatives, "passes": passes, "seconds": done.record["seconds"], "mrr": float(test.mean())}
        row |= {"gain": float((test - first).mean()), "low": low, "high": high, "p": p}
        rows.append(row | {"valid_mrr": done.record["valid"]["both"]["mrr"], "run": done.record})
        print(json.dumps({key: x for key, x in row.items() if key != "run"}), flush=True)
    of_teacher = evaluate(model, graph, "test", sample=sample).reciprocal()
    return {"teacher_mrr": float(of_teacher.mean()), "ranked": len(of_teacher), "rows": rows}


def main(arguments: list[str] | None = None) -> int:
    """Measure one graph's students, and write them beside what is there.

    Returns:
        0.
    Raises:
        ConfigError: a pair that is none.
    """
    parser = argparse.ArgumentParser(
        prog="python -m kgdistil.paper.bench.candidates", description=__doc__.split("\n")[0]
    )
    parser.add_argument("graph", help="the graph's file")
    parser.add_argument("teacher", help="a run id, or the folder of a saved model")
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
    found = measured(graph, options.teacher, options.precision, options.whole, pairs, options.sample)
    report = json.loads(path().read_text(encoding="utf-8")) if path().is_file() else {}
    about: dict[str, Any] = {
        "graph": {"name": graph.name, **graph.sizes(), "sha256": graph.sha256},
        "command": records.command(),
    }
    about |= {"precision": options.precision, "device": records.describe_device("cpu"), **records.provenance()}
    write_json(path(), {**report, graph.name: {**about, **found}})
    return 0


if __name__ == "__main__":
    run_command(main)
