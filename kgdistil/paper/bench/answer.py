"""`python -m kgdistil.paper.bench.answer`: what a student's answer costs, beside FAISS, usearch and numpy.

Students of random codes, since time and memory depend on their number and not on what they learned: of a million
made-up entities, of those of a file of labels where one is given (`--labels`, one a line), and the published one of
WN18RR. Each is asked in a process of its own, by label, from Python and from the shell; the peers search the same codes
in the same run, on the cores this process may use. Writes results/bench/answer.json; `make bench-answer` runs it.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from kgdistil.answer.asking import places
from kgdistil.answer.format import layout
from kgdistil.answer.labels import Labels
from kgdistil.answer.native import Codes, cores
from kgdistil.answer.student import Student, load_student
from kgdistil.answer.weights import Weights

GROUPS, SIZE, RELATIONS = 32, 4, 15  # 16 bytes an entity: ComplEx of d = 64, a code for four floats
QUERIES, BATCH, K, STARTS = 1000, 1000, 10, 7
PEERS = ("FAISS fast scan", "FAISS IVF fast scan", "usearch, exact, int8", "numpy")
PATIENCE = 5  # seconds for one peer's single queries


# ---- students --------------------------------------------------------------------------------------------------------
def make_student(labels: Sequence[str], folder: Path) -> None:
    """A student of random codes; the queries' relation turns nothing, so that all groups matter alike."""
    draw, count = np.random.default_rng(0), len(labels)
    width = GROUPS * SIZE
    header = {"model": "ComplEx", "dim": width // 2, "norm": 1, "offset": 0.0, "epsilon": 2.0, "rank": 0}
    header |= {"num_entities": count, "num_relations": RELATIONS, "precision": "1bit", "graph": "made up"}
    header |= {"graph_sha256": "0" * 64, "relations": [f"relation {i:02}" for i in range(RELATIONS)]}
    packed = {
        "entities": draw.integers(0, 256, (count, GROUPS // 2), np.uint8),
        "entities.book": draw.standard_normal((GROUPS, 16, SIZE), np.float32).astype(np.float16),
        "relations": draw.standard_normal((RELATIONS, width), np.float32).astype(np.float16),
    }
    Student(header, Weights(header, layout(packed)), Labels.of(labels)).save(folder)


def read_labels(file: Path) -> list[str]:
    return sorted(set(file.read_bytes().decode("utf-8", "surrogatepass").split("\n")) - {""})


def vectors(student: Student, queries: Sequence[tuple[str, str]]) -> np.ndarray:
    """Query vectors float32 [n, width] of (head, relation)."""
    heads, relations = zip(*queries)
    ids = np.array([student.entities.find(x) for x in heads]), np.array([student.relations.find(x) for x in relations])
    return student.weights.queries(*ids, "tail")


# ---- measuring, each in a process of its own -------------------------------------------------------------------------
def memory(what: str) -> int:
    """Bytes of this process: RssAnon or VmRSS."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(what))
    return 1024 * int(line.split()[1])


def spread(call: Callable[[int], Any], n: int = QUERIES) -> dict[str, float]:
    """Milliseconds of n calls, one after the other: p50 and p99."""
    taken: list[float] = []
    for i in range(n):
        began = time.perf_counter()
        call(i)
        taken.append(1e3 * (time.perf_counter() - began))
        if sum(taken) > 1e3 * PATIENCE:
            break
    return {"p50": statistics.median(taken), "p99": float(np.percentile(taken, 99)), "calls": len(taken)}


def at_once(call: Callable[[], Any], n: int = BATCH, rounds: int = 3) -> float:
    """Milliseconds of one of n queries that are asked together: the median of the rounds, after a first one."""
    taken = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
    return 1e3 * statistics.median(taken[1:]) / n


def ask(folder: Path, queries: list[tuple[str, str]]) -> dict[str, Any]:
    """A student from Python."""
    began = time.perf_counter()
    student = load_student(folder)
    student.predict(head=queries[0][0], relation=queries[0][1], k=K)
    out: dict[str, Any] = {"first_answer_ms": 1e3 * (time.perf_counter() - began)}
    out["single_ms"] = spread(lambda i: student.predict(head=queries[i][0], relation=queries[i][1], k=K))
    out |= {"anonymous_bytes": memory("RssAnon"), "resident_bytes": memory("VmRSS")}
    heads, relations = (list(x) for x in zip(*queries))
    out["batch_ms"] = at_once(lambda: student.predict(head=heads, relation=relations, k=K))
    asked, nothing = vectors(student, queries), places([[]])
    scan = lambda i: student.weights.scanner.top(asked[i : i + 1], K, nothing)
    out["scan_ms"] = spread(scan)
    out["scan_batch_ms"] = at_once(lambda: student.weights.scanner.top(asked, K, places([[]] * len(asked))))
    size = student.weights.blocks.nbytes
    out |= {"codes_bytes": size, "codes_bytes_per_second": 1e3 * size / out["scan_ms"]["p50"]}
    return out | {"file_bytes": sum(path.stat().st_size for path in folder.iterdir())}


def shell(folder: Path, query: tuple[str, str]) -> dict[str, float]:
    """`kgdistil predict`, all in all, milliseconds."""
    command = [sys.executable, "-m", "kgdistil.cli", "predict", str(folder), "--head", query[0], "--relation", query[1]]
    taken = []
    for _ in range(STARTS):
        began = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        taken.append(1e3 * (time.perf_counter() - began))
    return {"median": statistics.median(taken), "most": max(taken)}


def slices(student: Student) -> list[np.ndarray]:
    """All ids, 262,144 at a time."""
    return np.array_split(np.arange(len(student.entities)), -(-len(student.entities) // (1 << 18)))


def rounded(rows: np.ndarray) -> np.ndarray:
    """Rows as int8, each scaled by its own largest number."""
    return np.rint(rows * (127 / np.abs(rows).max(1, keepdims=True))).astype(np.int8)


def whole(rows: np.ndarray) -> np.ndarray:
    """Rows as int8, all scaled alike, so that their products keep their order."""
    return np.rint(rows * 24).clip(-127, 127).astype(np.int8)


def peer(name: str, folder: Path, queries: list[tuple[str, str]]) -> dict[str, Any]:
    """The same queries, as vectors, over the same codes by another library; `recall`: the share of our answers."""
    student = load_student(folder)
    weights = student.weights
    given = [
        np.array([labels.find(x) for x in part])
        for labels, part in zip((student.entities, student.relations), zip(*queries))
    ]
    asked = weights.queries(*given, "tail")
    ours = weights.scanner.top(asked, K)[1]
    order = weights.columns  # a row in which the groups lie one after the other
    before = memory("RssAnon")
    if name == "numpy":
        assert isinstance(weights.scanner, Codes)
        slow = Codes(weights.blocks, len(student.entities), weights.book, weights.columns, "dot", 1, native=False)
        search = lambda x: slow.top(x, K)[1]
    elif name.startswith("usearch"):
        import usearch.index as usearch

        rows = np.concatenate([whole(weights.rows(part)) for part in slices(student)])
        search = lambda x: usearch.search(rows, rounded(x), K, usearch.MetricKind.IP, exact=True, threads=cores()).keys
    else:
        import faiss

        width = weights.equation.width
        faiss.omp_set_num_threads(cores())
        index: Any = faiss.IndexPQFastScan(width, GROUPS, 4, faiss.METRIC_INNER_PRODUCT)
        quantiser = index.pq
        if "IVF" in name:
            coarse = faiss.IndexFlatL2(width)
            lists = 1 << int(np.log2(4 * len(student.entities) ** 0.5))
            index = faiss.IndexIVFPQFastScan(coarse, width, lists, GROUPS, 4, faiss.METRIC_INNER_PRODUCT)
            index.by_residual, quantiser, index.nprobe = False, index.pq, lists // 8
            some = np.random.default_rng(1).integers(0, len(student.entities), 64 * lists)
            means = faiss.Kmeans(width, lists, niter=4, seed=0)
            means.train(weights.rows(some)[:, order])
            coarse.add(means.centroids)
        faiss.copy_array_to_vector(weights.book.ravel(), quantiser.centroids)
        index.is_trained = True
        for part in slices(student):
            index.add(np.ascontiguousarray(weights.rows(part)[:, order]))
        search = lambda x: index.search(np.ascontiguousarray(x[:, order]), K)[1]
    found = np.asarray(search(asked[:16]))
    recall = float(np.mean([len(set(a) & set(b)) / K for a, b in zip(found.reshape(-1, K).tolist(), ours.tolist())]))
    single = spread(lambda i: search(asked[i : i + 1]))
    batch = asked if single["calls"] == QUERIES else asked[:16]
    return {
        "recall": recall,
        "single_ms": single,
        "batch_ms": at_once(lambda: search(batch), len(batch), 3 if len(batch) == BATCH else 1),
        "anonymous_bytes": memory("RssAnon") - before,
    }


# ---- all of them -----------------------------------------------------------------------------------------------------
def questions(student: Student) -> list[tuple[str, str]]:
    """A thousand seeded queries (head, relation) about what training saw."""
    draw = np.random.default_rng(0)
    heads = draw.integers(len(student.entities), size=2 * QUERIES)
    heads = heads[~student.unseen("entity", heads)][:QUERIES].tolist()
    relations = draw.integers(len(student.relations), size=QUERIES).tolist()
    return [(student.entities[head], student.relations[relation]) for head, relation in zip(heads, relations)]


def child(what: str, folder: Path) -> dict[str, Any]:
    """A step in a process of its own."""
    command = [sys.executable, "-m", "kgdistil.paper.bench.answer", "--step", what, "--folder", str(folder)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def measure(name: str, folder: Path, peers: Sequence[str]) -> dict[str, Any]:
    student = load_student(folder)
    row: dict[str, Any] = {"student": name, "entities": len(student.entities), "bytes_an_entity": GROUPS // 2}
    queries = questions(student)
    child("ask", folder)  # so that the page cache is warm
    row |= {"ours": child("ask", folder), "shell_ms": shell(folder, queries[0])}
    row["peers"] = {}
    for other in peers:
        package = other.split()[0].strip(",").lower()
        row["peers"][other] = child(other, folder) if installed(package) else {"not_run": f"{package} is not installed"}
    return row


def installed(package: str) -> bool:
    return importlib.util.find_spec(package.partition("-")[0]) is not None


def line(row: dict[str, Any]) -> str:
    """A row as it is printed."""
    ours = row["ours"]
    own, resident, files = (ours[key] / 1e6 for key in ("anonymous_bytes", "resident_bytes", "file_bytes"))
    p50, p99, scan = ours["single_ms"]["p50"], ours["single_ms"]["p99"], ours["scan_ms"]["p50"]
    lines = [
        f"{row['student']}, {row['entities']:,} entities; ms: first answer {ours['first_answer_ms']:.1f}, shell "
        f"{row['shell_ms']['median']:.0f}, single {p50:.3f} / {p99:.3f}, in a batch {ours['batch_ms']:.4f}; scan alone "
        f"{scan:.3f} ({ours['codes_bytes_per_second'] / 1e9:.1f} GB/s), in a batch {ours['scan_batch_ms']:.4f}; MB: "
        f"{own:,.0f} of its own, {resident:,.0f} in all, files {files:,.0f}"
    ]
    for name, x in row["peers"].items():
        said = x.get("not_run") or (
            f"single {x['single_ms']['p50']:.3f} / {x['single_ms']['p99']:.3f}, in a batch {x['batch_ms']:.4f} ms, "
            f"{x['anonymous_bytes'] / 1e6:,.0f} MB, {100 * x['recall']:.0f} % of our answers"
        )
        lines.append(f"    {name}: {said}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Write the measurement and print it.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser(prog="python -m kgdistil.paper.bench.answer", description=__doc__.split("\n")[0])
    parser.add_argument("--labels", type=Path, help="labels of a graph, one a line, such as those of Debian's files")
    parser.add_argument("--name", default="Debian's files", help="what to call them")
    parser.add_argument("--peers", nargs="*", default=["FAISS fast scan"], help="beside these labels")
    parser.add_argument("-o", "--output", type=Path, help="default: results/bench/answer.json")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.step:
        queries = questions(load_student(given.folder))
        step = ask(given.folder, queries) if given.step == "ask" else peer(given.step, given.folder, queries)
        print(json.dumps(step))
        return 0

    from kgdistil import records
    from kgdistil.answer.files import write_json

    load, rows = os.getloadavg()[0], []
    with tempfile.TemporaryDirectory() as name:
        million, own = Path(name, "million"), Path(name, "own")
        make_student([f"entity {i:07}" for i in range(1_000_000)], million)
        rows.append(measure("made up", million, [x for x in PEERS if "IVF" not in x]))
        print(line(rows[-1]), flush=True)
        if given.labels:
            make_student(read_labels(given.labels), own)
            rows.append(measure(given.name, own, given.peers))
            print(line(rows[-1]), flush=True)
        rows.append(measure("wn18rr-complex-16B", records.results_folder() / "students" / "wn18rr-complex-16B", PEERS))
        print(line(rows[-1]), flush=True)
    path = given.output or records.results_folder() / "bench" / "answer.json"
    report = {
        "command": records.command(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "device": f"{records.describe_device('cpu').rsplit(',', 1)[0]}, {cores()} threads",
        "load_average": load,  # of a minute, when it began
        **records.provenance(),
        "peers": {name: metadata.version(name) for name in ("faiss-cpu", "usearch") if installed(name)},
        "rows": rows,
    }
    write_json(path, report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
