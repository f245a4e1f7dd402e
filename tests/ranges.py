"""A server that answers with parts of files and counts what it sends, and a student that is large enough for it."""

from __future__ import annotations

import functools
import http.server
import itertools
import math
import re
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np

from kgdistil.answer.format import layout
from kgdistil.answer.labels import Labels
from kgdistil.answer.student import Student, load_student
from kgdistil.answer.weights import Weights


class Ranges(http.server.ThreadingHTTPServer):
    """A folder at `address`. `sent`: bytes by file name. `parts`: answers with parts of files; then all is sent.

    `tags`: the ETag of each answer. `gate`: while it is not set, only the first half of a megabyte and more is sent.
    """

    daemon_threads = True

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), functools.partial(Part, directory=str(folder)))
        self.sent: Counter[str] = Counter()
        self.tags: Iterator[str] = itertools.repeat('"1"')
        self.parts, self.gate = math.inf, threading.Event()
        self.gate.set()
        self.address = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class Part(http.server.SimpleHTTPRequestHandler):
    server: Ranges
    protocol_version = "HTTP/1.1"  # connections stay open

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            super().do_GET()
            return
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        size = path.stat().st_size
        start, end = 0, size
        if asked:
            self.server.parts -= 1
        if asked and self.server.parts >= 0:
            start, end = int(asked[1]), min(int(asked[2]) + 1, size)
            self.send_response(206 if start < size else 416)
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
        else:
            self.send_response(200)
        with path.open("rb") as file:
            file.seek(start)
            content = file.read(max(end - start, 0))
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Type", self.guess_type(str(path)))
        self.send_header("ETag", next(self.server.tags))
        self.end_headers()
        try:
            for at in range(0, len(content), 1 << 16):
                if len(content) >= 1 << 20 and 2 * at >= len(content):
                    self.server.gate.wait(60)
                piece = content[at : at + (1 << 16)]
                self.wfile.write(piece)
                self.server.sent[path.name] += len(piece)
        except ConnectionError:  # who asked has enough
            self.close_connection = True


def large_student(folder: Path, entities: int = 200_000) -> Student:
    """Random codes of 16 bytes an entity, with names; the labels are no order of their numbers."""
    draw = np.random.default_rng(0)
    sizes = {"model": "ComplEx", "dim": 64, "norm": 1, "offset": 0.0, "epsilon": 2.0, "rank": 0, "precision": "1bit"}
    header = {**sizes, "num_entities": entities, "num_relations": 3, "graph": "made up", "graph_sha256": "0" * 64}
    header |= {"relations": ["_one", "_two", "_three"], "reflexive": [1]}
    packed = {
        "entities": draw.integers(0, 256, (entities, 16), np.uint8),
        "entities.book": draw.standard_normal((32, 16, 4), np.float32).astype(np.float16),
        "relations": draw.standard_normal((3, 128), np.float32).astype(np.float16),
    }
    numbers = draw.permutation(entities).tolist()
    labels, names = Labels.of([f"Q{i:07}" for i in numbers]), Labels.of([f"thing {i // 2}" for i in numbers])
    Student(header, Weights(header, layout(packed)), labels, names).save(folder)
    return load_student(folder)
