"""`python -m kgdistil.paper.bench.labels FILE`: labels searched on disk by us, marisa-trie, SQLite and Arrow.

FILE has a label a line, sorted and distinct (`sort -u` with LC_ALL=C). It is measured whole, and a sample of as many
labels as WN18RR has. Each step of each library is a process of its own, on one thread, with the page cache warm.
A library that is not installed, or a step of more than `--limit` seconds, is named as not run.
"""

from __future__ import annotations

import argparse
import bisect
import contextlib
import hashlib
import importlib.util
import itertools
import json
import os
import random
import resource
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from kgdistil.answer.labels import Labels
from kgdistil.errors import DataError, run_command

SMALL = 40_943  # WN18RR's
QUERIES = 1000
PATIENCE = 20.0  # seconds for one kind of query; the file says how many were asked
DAMAGED = 10_000  # labels of a folder that is damaged on purpose
TOP = "\U0010ffff"
TRICKY = {"empty": "", "NUL": "a\0b", "lone surrogate": "\ud800"}


class Way:
    """One way to keep labels: written to a folder, opened, asked. `near` is None where it offers nothing."""

    package = ""  # empty where it comes with Python or with us
    near: Callable[[str], str | None] | None = None

    @staticmethod
    def build(labels: list[str], folder: Path) -> None:
        raise NotImplementedError

    def __init__(self, folder: Path) -> None:
        raise NotImplementedError

    def find(self, label: str) -> int | None:
        raise NotImplementedError

    def prefix(self, text: str) -> list[int]:
        """The ids of ten labels that begin with a text."""
        raise NotImplementedError

    def label(self, i: int) -> str:
        raise NotImplementedError


class Arrays(Way):
    """Ours: the text and its offsets."""

    @staticmethod
    def build(labels: list[str], folder: Path) -> None:
        for name, array in Labels.of(labels).arrays().items():
            array.tofile(folder / name)

    def __init__(self, folder: Path) -> None:
        text, offsets = np.memmap(folder / "text", np.uint8, "r"), np.memmap(folder / "offsets", np.int64, "r")
        self.labels = Labels(text, offsets)

    def find(self, label: str) -> int | None:
        return self.labels.find(label)

    def prefix(self, text: str) -> list[int]:
        return self.labels.prefix(text)

    def label(self, i: int) -> str:
        return self.labels[i]

    def near(self, text: str) -> str | None:
        return self.labels.nearest(text)


class Marisa(Way):
    """A trie, mapped. Its ids are its own: entities would be numbered by them."""

    package = "marisa-trie"

    @staticmethod
    def build(labels: list[str], folder: Path) -> None:
        import marisa_trie

        marisa_trie.Trie(labels).save(str(folder / "labels.marisa"))

    def __init__(self, folder: Path) -> None:
        import marisa_trie

        self.trie = marisa_trie.Trie().mmap(str(folder / "labels.marisa"))

    def find(self, label: str) -> int | None:
        return self.trie.get(label)

    def label(self, i: int) -> str:
        return self.trie.restore_key(i)

    def prefix(self, text: str) -> list[int]:
        return [self.trie[key] for key in itertools.islice(self.trie.iterkeys(text), 10)]

    def near(self, text: str) -> str | None:
        """One slip of the fingers, late ones first, with the letters of a thousand labels."""
        if not hasattr(self, "letters"):
            some = range(0, len(self.trie), max(1, len(self.trie) // 1000))
            self.letters = sorted(set().union(*map(self.label, some)))
        begun = next((i for i in range(len(text), 0, -1) if any(True for _ in self.trie.iterkeys(text[:i]))), 0)
        for i in range(begun, -1, -1):
            a, b = text[:i], text[i:]
            for edit in (a + b[1:2] + b[:1] + b[2:], a + b[1:]):
                if edit in self.trie:
                    return edit
            for letter, rest in itertools.product(self.letters, (b[1:], b)):
                if a + letter + rest in self.trie:
                    return a + letter + rest
        return None


class Sqlite(Way):
    """A table with an index."""

    @staticmethod
    def build(labels: list[str], folder: Path) -> None:
        with contextlib.closing(sqlite3.connect(folder / "labels.db")) as base, base:
            base.execute("CREATE TABLE labels(id INTEGER PRIMARY KEY, label TEXT NOT NULL)")
            base.executemany("INSERT INTO labels VALUES (?, ?)", enumerate(labels))
            base.execute("CREATE UNIQUE INDEX by_label ON labels(label)")

    def __init__(self, folder: Path) -> None:
        self.base = sqlite3.connect(f"file:{folder / 'labels.db'}?mode=ro&immutable=1", uri=True)

    def one(self, query: str, *values: Any) -> Any:
        row = self.base.execute(query, values).fetchone()
        return row[0] if row else None

    def find(self, label: str) -> int | None:
        return self.one("SELECT id FROM labels WHERE label = ?", label)

    def prefix(self, text: str) -> list[int]:
        query = "SELECT id FROM labels WHERE label >= ? AND label < ? ORDER BY label LIMIT 10"
        return [i for (i,) in self.base.execute(query, (text, text + TOP))]

    def label(self, i: int) -> str:
        return self.one("SELECT label FROM labels WHERE id = ?", i)


class Trigrams(Sqlite):
    """The same table, and FTS5 over groups of three letters for near misses."""

    @staticmethod
    def build(labels: list[str], folder: Path) -> None:
        Sqlite.build(labels, folder)
        with contextlib.closing(sqlite3.connect(folder / "labels.db")) as base, base:
            base.execute(
                "CREATE VIRTUAL TABLE near USING fts5(label, content='labels', content_rowid='id', detail='none',"
                " tokenize='trigram case_sensitive 1')"
            )
            base.execute("INSERT INTO near(near) VALUES ('rebuild')")

    def near(self, text: str) -> str | None:
        groups = {text[i : i + 3].replace('"', '""') for i in range(len(text) - 2)}
        asked = " OR ".join(f'"{group}"' for group in sorted(groups))
        return self.one("SELECT label FROM near WHERE near MATCH ? ORDER BY rank LIMIT 1", asked) if asked else None


class Arrow(Way):
    """A column, mapped, which is sorted and so can be bisected; Arrow itself has no index."""

    package = "pyarrow"

    @staticmethod
    def build(labels: list[str], folder: Path) -> None:
        import pyarrow as pa

        table = pa.table({"label": pa.array(labels, pa.large_string())})
        with pa.OSFile(str(folder / "labels.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)

    def __init__(self, folder: Path) -> None:
        import pyarrow as pa

        pa.set_cpu_count(1)
        self.column = pa.ipc.open_file(pa.memory_map(str(folder / "labels.arrow"))).read_all()["label"].chunk(0)

    def label(self, i: int) -> str:
        return self.column[i].as_py()

    def first(self, text: str) -> int:
        return bisect.bisect_left(range(len(self.column)), text, key=self.label)

    def find(self, label: str) -> int | None:
        at = self.first(label)
        return at if at < len(self.column) and self.label(at) == label else None

    def prefix(self, text: str) -> list[int]:
        at = self.first(text)
        ids = range(at, min(at + 10, len(self.column)))
        return list(itertools.takewhile(lambda i: self.label(i).startswith(text), ids))


WAYS: dict[str, type[Way]] = {
    "kgdistil": Arrays,
    "marisa-trie": Marisa,
    "SQLite": Sqlite,
    "SQLite FTS5 trigrams": Trigrams,
    "Arrow": Arrow,
}


# ---- the steps, each in a process of its own -------------------------------------------------------------------------
def read(file: Path) -> list[str]:
    return file.read_bytes().decode("utf-8", "surrogatepass").split("\n")[:-1]


def held(what: str) -> int:
    """Bytes of this process: RssAnon, VmRSS or VmHWM, their highest."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(what))
    return 1024 * int(line.split()[1])


def build(way: type[Way], folder: Path, file: Path) -> dict[str, Any]:
    """Seconds, and the memory at its highest beyond the list of the labels."""
    labels = read(file)
    Path("/proc/self/clear_refs").write_text("5")  # the highest so far is forgotten
    before, began = held("VmRSS"), time.perf_counter()
    way.build(labels, folder)
    seconds = time.perf_counter() - began
    return {
        "build_seconds": seconds,
        "build_peak_bytes": held("VmHWM") - before,
        "bytes": sum(path.stat().st_size for path in folder.iterdir()),
    }


def ask(way: type[Way], folder: Path, file: Path) -> dict[str, Any]:
    """Opening, with the first label found; memory after it; microseconds of each kind of query."""
    asked = json.loads(file.read_text())
    before, began = held("RssAnon"), time.perf_counter()
    opened = way(folder)
    assert opened.find(asked["find"][0]) is not None
    out: dict[str, Any] = {"open_seconds": time.perf_counter() - began, "anonymous_bytes": held("RssAnon") - before}
    for kind in ("find", "prefix", "label", "near"):
        call, taken, answers = getattr(opened, kind), [], []
        if call is None:
            continue
        for query in asked[kind]:
            began = time.perf_counter()
            answers.append(call(query))
            taken.append(time.perf_counter() - began)
            if sum(taken) > PATIENCE:
                break
        out[kind] = {"microseconds": 1e6 * statistics.median(taken), "most": 1e6 * max(taken), "queries": len(taken)}
        if kind == "near":
            out[kind]["meant"] = statistics.fmean(a == b for a, b in zip(answers, asked["meant"]))
    return out


def answers(way: type[Way], folder: Path, labels: Sequence[str]) -> list[Any]:
    opened = way(folder)
    ids = [opened.find(label) for label in labels]
    return [ids, [opened.label(i or 0) for i in ids], [opened.prefix(label[:5]) for label in labels[:20]]]


def endure(way: type[Way], folder: Path, file: Path, trials: int) -> dict[str, Any]:
    """Which labels are kept as they are; what becomes of a folder in which eight bytes were changed.

    The answers stay right, or one is wrong without a word, or an error is raised, or the process dies or hangs.
    """
    keeps = {}
    for what, label in TRICKY.items():
        place = folder / "tricky"
        place.mkdir()
        try:
            way.build(sorted([label, "z"]), place)
            opened = way(place)
            keeps[what] = (at := opened.find(label)) is not None and opened.label(at) == label
        except (UnicodeError, ValueError, KeyError):
            keeps[what] = False
        shutil.rmtree(place)
    labels, draw, counts = read(file), random.Random(0), dict.fromkeys(("right", "wrong", "error", "death", "hang"), 0)
    way.build(labels, folder)
    some = draw.sample(labels, min(len(labels), 200))
    right, whole = answers(way, folder, some), {path: path.read_bytes() for path in folder.iterdir()}
    for _ in range(trials):
        for path, content in whole.items():
            path.write_bytes(content)
        for path in draw.choices(list(whole), [len(content) for content in whole.values()], k=8):
            with path.open("r+b") as changed:
                changed.seek(draw.randrange(len(whole[path])))
                changed.write(bytes([draw.randrange(256)]))
        child = os.fork()
        if not child:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the last words of what dies
            signal.alarm(10)
            code = 2
            with contextlib.suppress(Exception):
                code = 0 if answers(way, folder, some) == right else 1
            os._exit(code)
        status = os.waitpid(child, 0)[1]
        if os.WIFSIGNALED(status):
            counts["hang" if os.WTERMSIG(status) == signal.SIGALRM else "death"] += 1
        else:
            counts[("right", "wrong", "error")[os.WEXITSTATUS(status)]] += 1
    return {"keeps": keeps, "damaged": counts}


# ---- all of them -----------------------------------------------------------------------------------------------------
def slip(text: str, draw: random.Random) -> str:
    """One letter more, less or other, or two exchanged."""
    at, letter = draw.randrange(len(text)), draw.choice(text)
    a, b = text[:at], text[at:]
    return draw.choice([a + letter + b, a + b[1:], a + letter + b[1:], a + b[1:2] + b[:1] + b[2:]])


def questions(labels: list[str]) -> dict[str, list[Any]]:
    """A thousand queries of each kind; near misses of texts that are no labels."""
    draw = random.Random(0)
    find = draw.choices(labels, k=QUERIES)
    near: list[tuple[str, str]] = []
    while len(near) < QUERIES:
        meant = draw.choice(labels)
        wrong = slip(meant, draw) if 3 < len(meant) < 200 else meant
        at = bisect.bisect_left(labels, wrong)
        if labels[min(at, len(labels) - 1)] != wrong:
            near.append((wrong, meant))
    return {
        "find": find,
        "prefix": [label[: (len(label) + 1) // 2] for label in find],
        "label": [draw.randrange(len(labels)) for _ in range(QUERIES)],
        "near": [wrong for wrong, _ in near],
        "meant": [meant for _, meant in near],
    }


def child(*arguments: Any, limit: float | None = None) -> dict[str, Any]:
    """What a step says in a process of its own.

    Raises:
        subprocess.TimeoutExpired: it took longer than `limit` seconds.
    """
    command = [sys.executable, "-m", "kgdistil.paper.bench.labels", "--step", *map(str, arguments)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=limit).stdout)


def measure(labels: list[str], limit: float, trials: int) -> Iterator[dict[str, Any]]:
    """A row for each library and size."""
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        for count in sorted({min(x, len(labels)) for x in (SMALL, DAMAGED, len(labels))}):
            some = labels if count == len(labels) else sorted(random.Random(0).sample(labels, count))
            (scratch / f"{count}.txt").write_bytes("".join(x + "\n" for x in some).encode("utf-8", "surrogatepass"))
            (scratch / f"{count}.json").write_text(json.dumps(questions(some)))
        small, sizes = min(DAMAGED, len(labels)), sorted({min(x, len(labels)) for x in (SMALL, len(labels))})
        labels.clear()
        for library, way in WAYS.items():
            row: dict[str, Any] = {"library": library}
            if way.package:
                if importlib.util.find_spec(way.package.replace("-", "_")) is None:
                    yield {**row, "not_run": f"{way.package} is not installed"}
                    continue
                row["version"] = metadata.version(way.package)
            (folder := scratch / "damaged").mkdir()
            safety = child("endure", library, folder, scratch / f"{small}.txt", "--trials", trials)
            shutil.rmtree(folder)
            for count in sizes:
                (folder := scratch / "folder").mkdir()
                try:
                    built = child("build", library, folder, scratch / f"{count}.txt", limit=limit)
                    told = {**built, **child("ask", library, folder, scratch / f"{count}.json", limit=limit)}
                except subprocess.TimeoutExpired as error:
                    told = {"not_run": f"{error.cmd[4]} took longer than {limit:.0f} s"}
                yield {**row, "labels": count, **told, **safety}
                shutil.rmtree(folder)


def line(row: dict[str, Any]) -> str:
    """A row as it is printed."""
    head = f"{row['library']:21s}{row.get('labels', 0):>10,}  "
    if "not_run" in row:
        return head + f"not run: {row['not_run']}"
    size, peak, kept = (f"{row[name] / 1e6:.1f} MB" for name in ("bytes", "build_peak_bytes", "anonymous_bytes"))
    times = (f"{kind} {row[kind]['microseconds']:.1f}" for kind in ("find", "prefix", "label", "near") if kind in row)
    return (
        f"{head}{size}, built in {row['build_seconds']:.2f} s and {peak}, opened in {row['open_seconds']:.4f} s and "
        f"{kept}; µs: {', '.join(times)}; damaged: {row['damaged']}"
    )


def main(arguments: list[str] | None = None) -> int:
    """Write the measurement and print it.

    Returns:
        0.
    Raises:
        DataError: FILE is not sorted, or holds fewer than two labels.
    """
    parser = argparse.ArgumentParser(prog="python -m kgdistil.paper.bench.labels", description=__doc__.split("\n")[0])
    parser.add_argument("file", type=Path, nargs="?")
    parser.add_argument("-o", "--output", type=Path, help="default: results/bench/labels.json")
    parser.add_argument("--limit", type=float, default=600, help="seconds that a step may take")
    parser.add_argument("--trials", type=int, default=200, help="folders that are damaged")
    parser.add_argument("--step", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.step:
        step, library, *places = options.step
        steps: dict[str, Callable[..., dict[str, Any]]] = {"build": build, "ask": ask, "endure": endure}
        more = [options.trials] if step == "endure" else []
        print(json.dumps(steps[step](WAYS[library], *map(Path, places), *more)))
        return 0
    from kgdistil import records  # with PyTorch, which the steps do without
    from kgdistil.answer.files import write_json

    labels, rows = read(options.file), []
    if len(labels) < 2 or any(a >= b for a, b in itertools.pairwise(labels)):
        raise DataError(f"{options.file} has to hold sorted, distinct labels: LC_ALL=C sort -u")
    about = {"labels": len(labels), "sha256": hashlib.sha256(options.file.read_bytes()).hexdigest()}
    load = os.getloadavg()[0]
    for row in measure(labels, options.limit, options.trials):
        print(line(row), flush=True)
        rows.append(row)
    report = {
        **about,
        "queries": QUERIES,
        "trials": options.trials,
        "command": records.command(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "device": f"{records.describe_device('cpu').rsplit(',', 1)[0]}, 1 thread",
        "load_average": load,  # of a minute, when it began
        **records.provenance(),
        "sqlite": sqlite3.sqlite_version,
        "rows": rows,
    }
    write_json(options.output or records.results_folder() / "bench" / "labels.json", report)
    return 0


if __name__ == "__main__":
    run_command(main)
