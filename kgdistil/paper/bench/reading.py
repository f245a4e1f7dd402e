"""`python -m kgdistil.paper.bench.reading FILE`: how long a graph takes to be read, and again from its copy.

Each reading is a process of its own with the file in the page cache: seconds of `read_graph` alone, of the clock and of
all threads, and the memory at its highest, the libraries included. Copies are kept in a folder that is removed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from kgdistil.errors import run_command
from kgdistil.graphs.cache import sum_of


def read(file: str) -> dict[str, Any]:
    """One reading, in this process."""
    from kgdistil.graphs.readers import read_graph

    began, cpu = time.perf_counter(), time.process_time()
    graph = read_graph(file)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    about: dict[str, Any] = {"sizes": graph.sizes(), "sha256": graph.sha256, "notes": list(graph.notes)}
    return {"seconds": seconds, "cpu_seconds": cpu, "peak_bytes": peak, "graph": about}


def measure(file: Path, repeats: int) -> dict[str, Any]:
    """The first reading and that from the copy, `repeats` times each: the quickest of each, and the seconds of all.

    Raises:
        RuntimeError: two readings gave two graphs.
    """
    sum_of(file)  # brings it into the page cache
    runs: dict[str, list[dict[str, Any]]] = {"first": [], "again": []}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as cache:
            for found in runs.values():
                command = [sys.executable, "-m", "kgdistil.paper.bench.reading", "--step", str(file)]
                done = subprocess.run(
                    command, check=True, stdout=subprocess.PIPE, env={**os.environ, "KGDISTIL_CACHE": cache}
                )
                found.append(json.loads(done.stdout))
    graphs = [run.pop("graph") for found in runs.values() for run in found]
    if any(graph != graphs[0] for graph in graphs):
        raise RuntimeError(f"{file} was read as two graphs")
    row: dict[str, Any] = {"file": file.name, "bytes": file.stat().st_size, **graphs[0]}
    for what, found in runs.items():
        best = min(found, key=lambda run: run["seconds"])
        row[what] = {**best, "all_seconds": [run["seconds"] for run in found]}
    return row


def line(row: dict[str, Any]) -> str:
    """A row as it is printed."""
    times = (
        f"{what} {run['seconds']:.1f} s ({run['cpu_seconds']:.1f} s of processors, {run['peak_bytes'] / 2**30:.2f} GiB)"
        for what, run in ((what, row[what]) for what in ("first", "again"))
    )
    return f"{row['file']}: {row['bytes'] / 1e6:,.0f} MB, {row['sizes']['entities']:,} entities; {', '.join(times)}"


def main(arguments: list[str] | None = None) -> int:
    """Write the measurement and print it.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser(prog="python -m kgdistil.paper.bench.reading", description=__doc__.split("\n")[0])
    parser.add_argument("files", type=Path, nargs="*", metavar="FILE")
    parser.add_argument("-o", "--output", type=Path, help="default: results/bench/reading.json")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--step", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.step:
        print(json.dumps(read(options.step)))
        return 0
    from kgdistil import records
    from kgdistil.answer.files import write_json

    load, rows = os.getloadavg()[0], []
    for file in options.files:
        rows.append(measure(file, options.repeats))
        print(line(rows[-1]), flush=True)
    report = {
        "repeats": options.repeats,
        "command": records.command(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "device": records.describe_device("cpu"),
        "load_average": load,  # of a minute, when it began
        **records.provenance(),
        "rows": rows,
    }
    write_json(options.output or records.results_folder() / "bench" / "reading.json", report)
    return 0


if __name__ == "__main__":
    run_command(main)
