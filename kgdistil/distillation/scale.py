"""What a graph of millions changes: how much of it is ranked, how its lists are sampled, and the memory that it takes.

Graphs of the sizes that the package's records are of are trained as ever: `settings` says nothing about them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kgdistil.compress.size import floats
from kgdistil.config import RunConfig
from kgdistil.errors import ConfigError
from kgdistil.graph import NAMES, Graph
from kgdistil.graphs.remembered import bytes_of_scores
from kgdistil.kernels.memory import available
from kgdistil.models import MODELS

LARGE = 100_000  # entities from which a graph of one's own is large
# Ranking compares a query's numbers with an entity's; so many of these take as long as training on one triple of the
# fastest steps, those that draw few candidates, with what a check takes however few it ranks
# (results/bench/passes-debian.json).
TRIPLE = 6e5
CHECK, FEWEST = 0.05, 250  # a check takes so much of an epoch, but ranks so many triples at least
FREE, FINAL = 4e12, 10_000  # at the end all are ranked where that takes a minute, else so many: MRR to ±.008
# Of very many entities a few drawn ones say little about those that come near a query's answers: a student has more of
# them there, in so many times fewer passes (results/bench/candidates.json). Not where a pass takes minutes.
NEGATIVES, LISTED, FEWER = 2048, 8192, 3
MORE = 2  # one of low rank has so many times as many passes there as others have that draw few
# of what begins at random, where a row has one sum of squares: best at .4 to .8 (results/bench/accumulators.json)
AT_RANDOM = 0.4
BATCH = 512  # queries that share a batch's candidates, at most
MANY, PASSES = 10_000_000, 10  # training triples, of which a pass takes minutes, and passes of a teacher over so many
# A teacher over so many draws fewer candidates in so many times as many passes: no worse, in about the same time
# (results/bench/candidates-teachers.json).
DRAWN, TIMES = 512, 1.6
GIB = 1 << 30
TOLD = GIB // 10


def large(graph: Graph) -> bool:
    return graph.name not in NAMES and graph.num_entities >= LARGE


def settings(graph: Graph, model: str, dim: int, loss: str) -> dict[str, Any]:
    """What a run on a large graph is set to, beside what it is on any: a function of sizes alone, so that a stopped
    run finds itself again. Nothing for a graph that is not large."""
    if not large(graph):
        return {}
    ranked = 2.0 * graph.num_entities * floats(model, dim)  # numbers that one triple's two ranks compare
    check = max(FEWEST, int(float(f"{CHECK * len(graph.train) * TRIPLE / ranked:.2g}")))
    final = 0 if max(len(graph.valid), len(graph.test)) * ranked <= FREE else FINAL
    # One sum of squares a row measured level with one a number, each at its own rate: on 143,916 entities test MRR
    # .343 and .342 (.190 and .161 for a student of few bits), on FB15k-237 .328 and .326, on WN18RR .453 and .457:
    # results/bench/accumulators.json.
    lists = {"answers": 256, "accumulators": "row"} if loss == "softmax" else {}
    return {"check_sample": check, "final_sample": final, **lists}


def listed(graph: Graph) -> int:
    """Drawn candidates of a batch of a student that has a teacher, where they are more than other runs'; else 0."""
    return LISTED if large(graph) and len(graph.train) < MANY else 0


def fewer(epochs: int, listed: int) -> int:
    """The passes of a student of so many candidates, in place of so many."""
    return -(-epochs // FEWER) if listed else epochs


def drawn(graph: Graph) -> int:
    """Drawn candidates of a batch of a teacher, where they are fewer than other runs'; else 0."""
    return DRAWN if large(graph) and len(graph.train) >= MANY else 0


def epochs(graph: Graph, asked: int | None, few_bits: bool) -> int | None:
    """Epochs that are asked for, else those of a teacher of few bits over very many triples; None for any graph's."""
    many = few_bits and large(graph) and len(graph.train) >= MANY
    return PASSES if asked is None and many else asked


def memory_needed(config: RunConfig, graph: Graph, teacher: int | None = None, ranks: int = 1) -> dict[str, int]:
    """Bytes that training takes at most beside the graph itself, table by table.

    Args:
        teacher: numbers of an entity of the teacher, where it has others than the student.
        ranks: that share the entities; the bytes are of one of them.
    """
    entities, width = -(-graph.num_entities // ranks), floats(config.model, config.dim, config.rank)
    train = len(graph.train)
    known = train + len(graph.valid) + len(graph.test)
    table, lists, taught = 4 * entities * width, config.loss == "softmax", config.teacher is not None
    moments = table // width if config.accumulators == "row" else table if lists else 2 * table
    other = 4 * entities * (teacher or floats(config.model, config.dim)) if taught else 0
    needed = {
        "embeddings": table,
        "accumulators" if lists else "Adam's moments": moments * (2 if taught and config.role == "stage2" else 1),
        "teacher": other,
        "best weights": 0 if config.check_sample else table,
        "queries and answers": (33 + 16) * 2 * train if lists else (12 + 8 + 8) * train,
        "triples to filter by": 24 * known,
        "a step's candidates": candidates(config, train, graph.num_entities) if lists else 0,
        "the student as coded": table + entities * width // config.group if config.group else 0,
        "ranking": table if config.device == "cpu" else 0,  # in the order of the compiled kernel
    }
    if taught and ranks == 1:
        numbers = 0 if MODELS[config.model].distance else teacher or floats(config.model, config.dim)
        needed["the teacher's scores"] = bytes_of_scores(config, graph.train, entities, numbers)
    if config.top:
        needed["the teacher's best"] = 4 * config.top * 2 * train
    return {name: size for name, size in needed.items() if size}


def candidates(config: RunConfig, train: int, entities: int) -> int:
    """Bytes of a step's scores and rows: those of its drawn entities and of as many answers as queries."""
    queries = min(config.batch_size, 2 * train)
    width = floats(config.model, config.dim, config.rank)
    listed = min(entities, config.negatives + 3 * queries)
    return 4 * listed * (6 * queries + 6 * width)


def told(needed: Mapping[str, int]) -> str:
    """The tables in a line, the largest first."""
    tables = ", ".join(f"{name} {size / GIB:.1f}" for name, size in sorted(needed.items(), key=lambda x: -x[1]))
    return f"{sum(needed.values()) / GIB:.1f} GiB ({tables})"


def check_memory(
    configs: Mapping[str, RunConfig],
    graph: Graph,
    free: int | None = None,
    teacher: int | None = None,
    ranks: int = 1,
    here: int = 1,
) -> str:
    """What the hungriest of a distillation's runs takes, in a line; an empty one for less than `TOLD`.

    Args:
        configs: by the names of the runs.
        teacher: numbers of an entity of a teacher that is not among them; left out, as many as the student's.
        ranks, here: how many share the entities, and how many of those this machine's memory.
    Raises:
        ConfigError: more than is free, with what would fit.
    """
    free = available() if free is None else free
    own = teacher_floats(configs) or teacher

    def needed(config: RunConfig, teacher: int | None) -> dict[str, int]:
        found = {name: here * size for name, size in memory_needed(config, graph, teacher, ranks).items()}
        if sum(found.values()) > free:  # then they are asked for anew in every step
            found.pop("the teacher's scores", None)
        return found

    needs = {name: needed(config, own) for name, config in configs.items()}
    worst = max(needs, key=lambda name: sum(needs[name].values()))
    there, size = f"{free / GIB:.1f} GiB are free", sum(needs[worst].values())
    of = f" on {here} ranks" if here > 1 else ""
    if size <= free:
        return f"training{of} takes up to {told(needs[worst])}; {there}" if size >= TOLD else ""
    config, fits = configs[worst], "no smaller dimension fits"
    changes: list[dict[str, Any]] = [{"accumulators": "row"}] if config.loss == "softmax" else []
    changes += [{"dim": config.dim >> i, "rank": 0, "group": 0} for i in range(1, config.dim.bit_length())]
    for change in changes:
        smaller = config.model_copy(update=change)
        less = sum(needed(smaller, own and own * smaller.dim // config.dim).values())
        if less <= free:
            name, value = next(iter(change.items()))
            fits = f"{name} {value} takes {less / GIB:.1f} GiB"
            break
    raise ConfigError(f"{graph.name}, {worst}: training{of} takes {told(needs[worst])}, and {there}: {fits}")


def teacher_floats(configs: Mapping[str, RunConfig]) -> int | None:
    """Numbers of an entity of the teacher that is among the runs."""
    own = next((config for config in configs.values() if config.role == "teacher"), None)
    return None if own is None else floats(own.model, own.dim)
