"""`python -m kgdistil.paper.bench.hosts`: two Ray nodes in two network namespaces, one of them killed (root, Linux).

Cells of a graph of the package are trained by a driver in one of them while SIGKILL ends every process of the other.
What it writes to `results/bench/hosts.json`: runs, whether each was recorded once, and whether records and weights are
those of one process.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from kgdistil import records
from kgdistil.answer.files import write_json
from kgdistil.errors import KgdistilError, run_command

HOSTS = {"kgd-a": "10.231.7.1", "kgd-b": "10.231.7.2"}  # namespaces, and their ends of one cable
CELLS = [f"frontier/umls/ComplEx/{method}/32" for method in ("teacher", "small")]
RAY = (sys.executable, "-m", "ray.scripts.scripts")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@contextlib.contextmanager
def network() -> Iterator[None]:
    """Two hosts, each a network namespace, with a cable between them; at the end all of their processes are killed."""
    first, second = HOSTS
    try:
        for host in HOSTS:
            ip("netns", "add", host)
        ip("link", "add", first, "netns", first, "type", "veth", "peer", "name", second, "netns", second)
        for host, address in HOSTS.items():
            ip("-n", host, "address", "add", f"{address}/24", "dev", host)
            for device in ("lo", host):
                ip("-n", host, "link", "set", device, "up")
        yield
    finally:
        for host in HOSTS:
            kill(host)
            subprocess.run(["ip", "netns", "delete", host], check=False)


def kill(host: str) -> int:
    """SIGKILL to all that runs on a host: how many there were."""
    listed = subprocess.run(["ip", "netns", "pids", host], capture_output=True, text=True, check=False).stdout.split()
    for process in map(int, listed):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    return len(listed)


def trained(folder: Path) -> dict[str, object]:
    """By id the weights of recorded runs and what their records say; of trials, how often they stand there."""
    found: dict[str, object] = {}
    for path in sorted(folder.glob("results/runs/*.json")):
        weights = (folder / "runs" / "models" / path.stem / "model.safetensors").read_bytes()
        record = json.loads(path.read_text(encoding="utf-8"))
        found[path.stem] = weights, record["valid"], record["test"]
    for path in sorted(folder.glob("results/search/*.jsonl")):
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        found |= {x["id"]: (sum(y["id"] == x["id"] for y in lines), x["valid"]) for x in lines}
    return found


def main(arguments: list[str] | None = None) -> int:
    """Write the counts and print them.

    Returns:
        0 where every run is recorded once, with the bits of an undisturbed process.
    """
    parser = argparse.ArgumentParser(prog="python -m kgdistil.paper.bench.hosts", description=__doc__.split("\n")[0])
    parser.add_argument("--cells", nargs="+", default=CELLS, help="what is trained")
    options = parser.parse_args(arguments)
    if sys.platform != "linux" or os.geteuid():
        raise KgdistilError("network namespaces need Linux and root")
    (first, second), token = HOSTS, secrets.token_hex(32)
    with tempfile.TemporaryDirectory(prefix="kgd-", ignore_cleanup_errors=True) as scratch, network():

        def command(host: str, *words: str, place: str = "both") -> subprocess.Popen[bytes]:
            """A command on a host whose folders lie under `place`, and whose caches are its own."""
            own = {"XDG_CACHE_HOME": f"{scratch}/{host}", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
            own |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
            own |= {f"KGDISTIL_{x.upper()}": f"{scratch}/{place}/{x}" for x in ("runs", "results")}
            enter = ["ip", "netns", "exec", host] if host else []
            return subprocess.Popen([*enter, *words], env={**os.environ, **own}, stdout=sys.stderr)

        reproduce = (sys.executable, "-m", "kgdistil.paper.reproduce", *options.cells)
        if command("", *reproduce, place="one").wait():
            raise KgdistilError("one process alone does not end")
        start = (*RAY, "start", "--num-cpus=1", "--disable-usage-stats")
        port = f"{HOSTS[first]}:6379"
        command(
            first, *start, "--head", "--include-dashboard=false", "--port=6379", f"--node-ip-address={HOSTS[first]}"
        ).wait(120)
        command(second, *start, f"--address={port}", f"--node-ip-address={HOSTS[second]}").wait(120)
        driver = command(first, *reproduce, "--ray", port)
        while driver.poll() is None and not list(Path(scratch, second).rglob("checkpoint.*")):
            time.sleep(0.01)
        killed, code = kill(second), driver.wait(600)
        one, both = trained(Path(scratch, "one")), trained(Path(scratch, "both"))
    told = {"killed": killed, "exit_code": code, "runs": len(both)}
    told |= {"recorded_once": set(one) == set(both), "same_bits": one == both}
    about = {"cells": options.cells, "command": records.command(), "device": records.describe_device("cpu")}
    write_json(records.results_folder() / "bench" / "hosts.json", about | records.provenance() | {"found": told})
    print(json.dumps(told))
    return 0 if killed and not code and one == both else 1


if __name__ == "__main__":
    run_command(main)
