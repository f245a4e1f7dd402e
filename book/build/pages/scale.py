"""More than one machine: memory, traffic and time from measured constants and formulas, and what could be measured."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace
from typing import Any, cast

from book.build.html import html_table
from book.build.pages.shown import Shown, picture
from kgdistil import records
from kgdistil.compress.size import floats
from kgdistil.config import make_config
from kgdistil.distillation.scale import GIB, memory_needed
from kgdistil.graph import Graph
from kgdistil.paper import plots
from kgdistil.paper.bench.lists import CANDIDATES, QUERIES

SHARDED = ("embeddings", "accumulators", "ranking")  # of `memory_needed`, by rows over the machines
TRIPLE = 24  # bytes of the graph's own triples


def told(name: str) -> dict[str, Any]:
    return json.loads((records.results_folder() / name).read_text(encoding="utf-8"))


def graphs() -> list[tuple[str, int, int]]:
    """Name, entities and triples of each graph; one that nobody has is as dense as another."""
    rows = {x["name"]: x for x in told("scale.json")["graphs"]}
    like = {name: rows[x["like"]] if "like" in x else x for name, x in rows.items()}
    return [
        (name, x["entities"], round(x["entities"] / like[name]["entities"] * like[name]["triples"]))
        for name, x in rows.items()
    ]


def memory(entities: int, triples: int, accumulators: str = "number") -> tuple[float, float]:
    """Bytes that all machines share, and bytes that each of them needs."""
    given = told("scale.json")
    config = make_config(
        model=given["model"],
        dim=given["dim"],
        role="teacher",
        loss="softmax",
        negatives=CANDIDATES,
        batch_size=QUERIES,
        accumulators=accumulators,
        check_sample=1,  # as large graphs are: the best weights are not kept apart
    )
    graph = SimpleNamespace(num_entities=entities, train=range(triples), valid=(), test=())
    needed = memory_needed(config, cast(Graph, graph))
    shared = sum(needed.get(name, 0) for name in SHARDED)
    return shared, sum(needed.values()) - shared + TRIPLE * triples


def step(machines: int) -> tuple[float, float]:
    """Of a step of `QUERIES` queries, bytes that a machine sends, and the seconds of the least arithmetic of one.

    Sent: what `distributed.engine` says of one model that learns, anchors all different and spread over the machines.
    Arithmetic: for each score and number of a row a multiplication and an addition, and twice that for its gradients;
    candidates are those that are drawn and an answer of each query.
    """
    given = told("scale.json")
    width = floats(given["model"], given["dim"])
    sent = (2 * 4 * width + 24) * (machines - 1) * QUERIES / machines
    scores = QUERIES * (CANDIDATES + QUERIES) / machines
    return sent, 6 * width * scores / told("bench/bench.json")["matmul_flops"]


def scale_table(shown: Shown) -> str:
    """Memory of a machine, traffic and time of an epoch for each graph and number of machines, and what limits it."""
    given, rows = told("scale.json"), []
    for name, entities, triples in graphs():
        shared, each = memory(entities, triples)
        for machines in given["machines"]:
            (sent, arithmetic), held = step(machines), shared / machines + each
            wire = 8 * sent / given["bits_per_second"]
            steps = 2 * triples / QUERIES
            limit = "memory" if held > given["memory_bytes"] else "network" if wire > arithmetic else "arithmetic"
            times = [f"{sent / 1e6:.1f}", f"{1e3 * wire:.2f}", f"{1e3 * arithmetic:.2f}"]
            minutes = f"{steps * (wire + arithmetic) / 60:,.1f}"
            rows.append([name, str(machines), f"{held / GIB:,.1f}", *times, minutes, limit])
    head = [
        "graph",
        "machines",
        "GiB on each",
        "MB sent a step",
        "ms on the wire",
        "ms of arithmetic",
        "minutes an epoch",
    ]
    return html_table("Memory, traffic and time on paper", [*head, "limit"], rows)


def scale_constants(shown: Shown) -> str:
    """What the table is computed from."""
    given, bench = told("scale.json"), told("bench/bench.json")
    sizes = "; ".join(f"{name}: {entities:,} entities and {triples:,} triples" for name, entities, triples in graphs())
    return (
        f"{given['model']} of dimension {given['dim']}, float32, Adagrad; {QUERIES} queries a step, as on one "
        f"machine, {CANDIDATES:,} drawn candidates and an answer of each query, both sides of each triple asked once "
        f"an epoch; machines of "
        f"{given['memory_bytes'] / GIB:.0f} GiB and {bench['threads']} threads of {bench['device'].split(',')[0]}, "
        f"whose matrix products were measured at {bench['matmul_flops'] / 1e9:,.0f} GFLOP/s; "
        f"{given['bits_per_second'] / 1e9:.0f} Gb/s each way. {sizes}."
    )


def scale_limits(shown: Shown) -> str:
    """From which size on each resource is the limit."""
    given = told("scale.json")
    room, width = given["memory_bytes"], floats(given["model"], given["dim"])
    # bytes of an entity, by what the optimiser keeps of it
    fits = [(memory(2_000_000, 1, kept)[0] - memory(1_000_000, 1, kept)[0]) / 1e6 for kept in ("number", "row")]
    of_triple = memory(1, 2_000_000)[1] - memory(1, 1_000_000)[1]  # of a million triples
    wire, arithmetic = 8 * 2 * step(2)[0] / given["bits_per_second"], step(1)[1]  # of N machines (N - 1) / N and 1 / N
    dense = {name: triples / entities for name, entities, triples in graphs()}
    reached = " and ".join(
        f"{room / of_triple / dense[x['name']]:,.0f} million as in {x['name']}"
        for x in given["graphs"]
        if "like" not in x
    )
    return (
        f"- **Entities.** One takes {fits[0]:,.0f} bytes, with row-wise Adagrad {fits[1]:,.0f}: a machine holds "
        f"{room / fits[0] / 1e6:,.0f} or {room / fits[1] / 1e6:,.0f} million, N machines N times as many.\n"
        f"- **Triples.** Every machine holds all of them, with their queries {of_triple / 1e6:,.0f} bytes each: from "
        f"{room / of_triple:,.0f} million on no number of machines is enough. Entities with as many triples each "
        f"reach that at {reached}.\n"
        f"- **Network.** N machines send (N − 1) / N of {1e3 * wire:.2f} ms each a step and do 1 / N of its "
        f"{1e3 * arithmetic:.2f} ms of arithmetic: from {1 + math.ceil(arithmetic / wire)} machines on the wire takes "
        "longer, and more of them gain little. What is sent grows with the queries of a step and arithmetic with "
        "queries times candidates, so a step of more candidates pays for more machines.\n"
        f"- **Relations** are summed over all machines in each step, all of them: from {QUERIES:,} "
        f"relations of {width} numbers on that is more than all rows. It is not in the table.\n"
    )


def scale_published(shown: Shown) -> str:
    """What other systems told of themselves, from `results/scale.json`."""
    names = ("system", "how", "graph", "model", "machines", "told", "source")
    rows = [[x[name] for name in names] for x in told("scale.json")["published"]]
    return html_table("What other systems published", [*names[:5], "published", names[6]], rows)


def measured(shown: Shown) -> dict[str, Any]:
    """What `bench.distributed` found, by part."""
    return {name: part["found"] for name, part in told("bench/distributed.json").items()}


def scale_measured(shown: Shown) -> str:
    """What ranks send, hold and survive, on one machine."""
    found = measured(shown)
    kills, hosts, held = found["kills"], found["hosts"], found["memory"]
    sent = html_table(
        "Bytes that all ranks send in the steps of one epoch (UMLS)",
        ["ranks", "steps", "counted", "by the formula"],
        [[str(x["ranks"]), str(x["steps"]), f"{x['bytes']:,}", f"{x['formula']:,}"] for x in found["bytes"]],
    )
    lost, alone = hosts["lost"], hosts["goes_on_alone"]
    said = next(line for line in lost["said"] if "rank 0 " in line)  # of the host that stays
    return (
        sent
        + picture(
            shown,
            "rank_memory",
            plots.rank_memory(held),
            "Memory of the tables of one rank, measured, beside those of a single rank divided by the ranks: "
            + ", ".join(f"{x['ranks']}: {x['tables'] / 1e6:,.0f} MB" for x in held)
            + ".",
            f"What a run on {held[0]['entities']:,} made-up entities keeps of them: the peak of a rank less that of "
            "the same run with next to no numbers. Weights and sums of squares alone are "
            f"{held[0]['tables_in_all'] / 1e6:,.0f} MB on a single rank.",
        )
        + f"- **Killed.** In {len(kills['times'])} runs on {kills['ranks']} ranks, one of them was killed at a random "
        f"moment: torchrun started {kills['restarted']} again from the last checkpoint, and {kills['same']} ended with "
        "the metrics of a run that was left alone, to the last digit.\n"
        f"- **Two hosts**, network namespaces with a cable between them: {hosts['crossed_bytes'] / 1e6:,.0f} MB "
        f"crossed it in a run that counted {hosts['counted_bytes'] / 1e6:,.0f} MB of its own, before headers."
        + restarted_on_host(hosts)
        + "\n"
        f"- **A host that never comes back**: the other ends after {lost['seconds']:.0f} s with exit code "
        f"{lost['exit_code']} and the line “{said.removeprefix('kgdistil: ')}”. On {alone['ranks']} rank "
        "the same command went on to its end.\n" + on_two_hosts()
    )


def restarted_on_host(hosts: dict[str, Any]) -> str:
    """What came of a rank that was killed on the second of two hosts with a torchrun each."""
    if not (found := hosts.get("by_torchrun")):
        return ""
    same = "the same metrics" if found["test_mrr"] == hosts["test_mrr"] else "other metrics"
    ended = "both ended well" if not any(found["exit_codes"]) else f"they ended with {found['exit_codes']}"
    return (
        f" With a torchrun on each host, {found['killed']} rank of the second was killed after a checkpoint: {ended}, "
        f"with {same}."
    )


def on_two_hosts() -> str:
    """What `bench.hosts` found."""
    found = told("bench/hosts.json")["found"]
    once = "each was recorded once" if found["recorded_once"] else "not each was recorded once"
    bits = "with the bits of one process" if found["same_bits"] else "but not with the bits of one process"
    return (
        f"- **A host of a cluster that dies**: {found['runs']} runs as Ray tasks on two hosts, of which one lost all "
        f"its {found['killed']} processes while it trained; {once}, {bits}.\n"
    )


def scale_speed(shown: Shown) -> str:
    """Two ranks beside one process, in triples a second and in test MRR."""
    rows, levels = [], []
    for name, part in measured(shown).items():
        if name.startswith("speed/"):
            one, two = part["triples_a_second"].values()
            rows.append(
                (part["graph"], part["products"], part["queries"], f"{one:,}", f"{two:,}", f"{part['ratio']:.2f}")
            )
        if name.startswith("quality/"):
            seeds = [[row[who] for row in part["rows"]] for who in ("one_process", "two_ranks")]
            spread = part["sd_of_seeds"]["one_process"] if len(seeds[0]) > 1 else None
            mrr = [f"{sum(x) / len(x):.4f}" for x in seeds]
            apart = [f"{part['two_less_one']:+.4f}", "–" if spread is None else f"{spread:.4f}"]
            levels.append([part["graph"]["name"], f"{part['graph']['entities']:,}", str(len(seeds[0])), *mrr, *apart])
    table = [[graph, products, f"{queries:,}", *rest] for graph, products, queries, *rest in sorted(rows)]
    head = ["graph", "products", "queries of a batch", "one process of two threads", "two ranks of one thread", "ratio"]
    of_runs = ["graph", "entities", "seeds", "one process", "two ranks", "difference", "spread of one process"]
    return html_table("Training triples a second on two cores", head, table) + html_table(
        "Test MRR of short runs by the same command", of_runs, sorted(levels)
    )
