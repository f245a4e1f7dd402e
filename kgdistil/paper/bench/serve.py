"""`python -m kgdistil.paper.bench.serve`: how many requests a server answers, how soon, and whether its memory grows.

`kgdistil serve` with a copy of a student, asked by wrk from another process: ten best answers each, a different query
in turn. Once a second its health is asked, too. Writes results/bench/serve.json.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from kgdistil import records
from kgdistil.answer.files import write_json
from kgdistil.answer.native import cores
from kgdistil.answer.student import Student, load_student
from kgdistil.errors import KgdistilError, run_command

QUERIES, K, WARM = 5000, 10, 5  # WARM: seconds of load before memory is looked at
LIBRARIES = ("starlette", "uvicorn", "h11", "pydantic")
SCRIPT = r"""
local queries, at = {}, 0
init = function()
  for line in io.lines("QUERIES") do queries[#queries + 1] = wrk.format("GET", line) end
end
request = function() at = at % #queries + 1 return queries[at] end
done = function(summary, latency)
  local errors, told = summary.errors, {}
  local tell = function(name, value) told[#told + 1] = string.format('"%s": %f', name, value) end
  tell("requests", summary.requests)
  tell("seconds", summary.duration / 1e6)
  for _, p in ipairs({50, 90, 99}) do tell("p" .. p, latency:percentile(p) / 1e3) end
  tell("max", latency.max / 1e3)
  tell("refused", errors.status)
  tell("broken", errors.connect + errors.read + errors.write + errors.timeout)
  io.write("\n{" .. table.concat(told, ", ") .. "}\n")
end
"""


def questions(student: Student) -> list[str]:
    """Addresses of different queries, heads and relations that training saw, drawn with a fixed seed."""
    draw, found = random.Random(0), []
    entities = [e for e in range(len(student.entities)) if e not in student.never["entity"]]
    relations = [r for r in range(len(student.relations)) if r not in student.never["relation"]]
    for i in range(QUERIES):
        place = "head" if i % 2 else "tail"
        asked = {place: student.entities[draw.choice(entities)], "relation": student.relations[draw.choice(relations)]}
        found.append(f"/predict?{urlencode({**asked, 'k': K})}")
    return found


def memory(process: int) -> dict[str, int]:
    """Bytes in memory: all, and those that are no file's."""
    told = Path(f"/proc/{process}/status").read_text().splitlines()
    sizes = {line.split()[0]: 1024 * int(line.split()[1]) for line in told if line.endswith("kB")}
    return {"resident": sizes["VmRSS:"], "anonymous": sizes["RssAnon:"]}


def processor(process: int) -> float:
    """Seconds of the processor that a process took."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def load(address: str, script: Path, seconds: float, connections: int) -> dict[str, Any]:
    """What wrk counted."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "-s", str(script), address]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(told.splitlines()[-1])


def measure(student: str, seconds: float, connections: int) -> dict[str, Any]:
    """One server under load. Milliseconds, bytes."""
    with tempfile.TemporaryDirectory() as name:
        copy, script = Path(name, "student"), Path(name, "wrk.lua")
        opened = load_student(student)
        opened.save(copy)
        Path(name, "queries").write_text("\n".join(questions(opened)) + "\n")
        script.write_text(SCRIPT.replace("QUERIES", str(Path(name, "queries"))))
        command = [sys.executable, "-m", "kgdistil.cli", "serve", str(copy), "--port", "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            try:
                assert server.stdout is not None
                address = server.stdout.readline().split()[0]
                load(address, script, WARM, connections)
                before, used, health, over = memory(server.pid), processor(server.pid), [], threading.Event()
                grown: list[dict[str, Any]] = []

                def watch() -> None:
                    began, every = time.monotonic(), max(seconds / 20, 1)
                    while not over.wait(1):
                        start = time.monotonic()
                        with urllib.request.urlopen(f"{address}/health", timeout=60) as answer:
                            answer.read()
                        health.append(1e3 * (time.monotonic() - start))
                        if start - began >= every * (len(grown) + 1):
                            grown.append({"second": round(start - began), **memory(server.pid)})

                watcher = threading.Thread(target=watch)
                watcher.start()
                try:
                    told = load(address, script, seconds, connections)
                finally:
                    over.set()
                    watcher.join()
                after, used = memory(server.pid), processor(server.pid) - used
            finally:
                server.terminate()
        return {
            "student": student,
            "entities": len(opened.entities),
            "queries": QUERIES,
            "k": K,
            "connections": connections,
            "seconds": told["seconds"],
            "requests": int(told["requests"]),
            "requests_per_second": told["requests"] / told["seconds"],
            "milliseconds": {name: told[name] for name in ("p50", "p90", "p99", "max")},
            "refused": int(told["refused"]),
            "broken": int(told["broken"]),
            "processor_microseconds": 1e6 * used / told["requests"],
            "health_milliseconds": {"p50": statistics.median(health), "max": max(health)},
            "memory": {"before": before, "after": after, "during": grown},
            "exit_code": server.returncode,
        }


def main(arguments: list[str] | None = None) -> int:
    """Write the measurement and print it.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser(prog="python -m kgdistil.paper.bench.serve", description=__doc__.split("\n")[0])
    parser.add_argument("--student", default="wn18rr-complex-16B", help="a folder, or the name of a published one")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("-o", "--output", type=Path, help="default: results/bench/serve.json")
    given = parser.parse_args(arguments)
    if shutil.which("wrk") is None:
        raise KgdistilError("the load comes from wrk: install it (apt-get install wrk)")
    average = os.getloadavg()[0]
    row = measure(given.student, given.seconds, given.connections)
    report = {
        "command": records.command(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "device": f"{records.describe_device('cpu').rsplit(',', 1)[0]}, {cores()} threads",
        "load_average": average,  # of a minute, when it began
        **records.provenance(),
        "libraries": {name: metadata.version(name) for name in LIBRARIES},
        "rows": [row],
    }
    write_json(given.output or records.results_folder() / "bench" / "serve.json", report)
    took = row["milliseconds"]
    print(
        f"{row['requests_per_second']:,.0f} requests/s for {row['seconds']:.0f} s, {row['refused']} refused, p50 "
        f"{took['p50']:.1f} and p99 {took['p99']:.1f} ms, {row['processor_microseconds']:.0f} µs of processor each; "
        f"memory {row['memory']['before']['resident'] / 1e6:.1f} MB before and "
        f"{row['memory']['after']['resident'] / 1e6:.1f} MB after"
    )
    return 0


if __name__ == "__main__":
    run_command(main)
