"""The routes: a student's answers as JSON, errors as JSON of one line, and the page that asks it."""

from __future__ import annotations

import asyncio
import functools
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from typing import Any, TypeVar

import anyio
from anyio import to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from kgdistil.answer.calibration import MOST
from kgdistil.answer.native import cores
from kgdistil.answer.rendering import finite
from kgdistil.answer.student import Student, load_student
from kgdistil.errors import CheckpointError, ConfigError, DataError, KgdistilError, short
from kgdistil.serve.asked import Batch, Beginning, Likeness, Query, parse
from kgdistil.serve.openapi import CUT, describe, documentation

T = TypeVar("T")
log = logging.getLogger("kgdistil")
AT_ONCE = 1 << 20  # bytes that the event loop itself reads for an answer, about 0.1 ms; more goes to a thread
FEW = 10  # answers where nobody says how many
ROWS = 100_000  # answers of one request
LISTED = 1_000_000  # entities that the shortlists of one request hold
BITS = 1 << 28  # bytes of bitmaps for one request: a bit for each entity and query, where only some may come
HEADERS = 16 << 10  # bytes of a request's first line and headers
WAITING = 64  # requests that wait for a thread, at most
BODY_SECONDS = 10.0  # in which a body has to arrive
SAFE = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'unsafe-inline'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


@dataclass(frozen=True)
class Limits:
    """What one request may ask for. `hosts`: what its Host header may name; empty: anything."""

    k: int = 1000
    batch: int = 1000
    body: int = 1 << 20  # bytes
    hosts: tuple[str, ...] = ()


def make(folder: str, limits: Limits) -> Starlette:
    """The application of a student's folder: what each worker process calls."""
    return application(load_student(folder), limits)


def application(student: Student, limits: Limits = Limits()) -> Starlette:
    """The application of a student."""
    service = Service(student, limits)
    get = {"/health": service.health, "/student": service.about}
    get |= {"/similar": service.similar, "/labels": service.labels, "/openapi.json": service.openapi}
    get |= {"/docs": service.docs, "/": service.page, "/page.mjs": service.script}
    return Starlette(
        routes=[Route(path, call) for path, call in get.items()]
        + [Route("/predict", service.predict, methods=["GET", "POST"])],
        middleware=[Middleware(Guard, hosts=limits.hosts)],
        exception_handlers={
            KgdistilError: lambda _, error: problem(422, str(error)),
            CheckpointError: lambda _, error: problem(503, str(error)),
            MemoryError: lambda *_: problem(503, "not enough memory for this; ask for less at a time"),
            ClientDisconnect: lambda *_: problem(400, "the request ended before its body did"),
            HTTPException: refused,
            Exception: lambda *_: problem(500, "this server has an error, which its log shows"),
        },
    )


class Service:
    """Handlers of the routes."""

    def __init__(self, student: Student, limits: Limits):
        self.student, self.limits = student, limits
        self.threads, self.waiting = anyio.CapacityLimiter(cores()), 0
        self.bytes = student.weights.blocks.nbytes  # that an answer reads
        _ = student.weights.scanner, self.example  # what is made once is made before the first question

    async def health(self, request: Request) -> Response:
        self.student.check()
        return answer(b'{"status": "ok"}')

    async def about(self, request: Request) -> Response:
        student, limits = self.student, self.limits
        told = {name: getattr(student, name) for name in ("model", "dim", "rank", "precision", "graph", "graph_sha256")}
        told |= {"run_id": student.run_id, "entities": len(student.entities), "relations": len(student.relations)}
        told |= {"bytes": student.weights.bytes, "triples": self.example is not None, "card": student.card()}
        told |= {"limits": {"k": limits.k, "batch": limits.batch, "body": limits.body}, "example": self.example}
        return answer(dump(told))

    async def predict(self, request: Request) -> Response:
        if request.method != "POST":
            return await self.ask(parse(Query, request.query_params))
        if unread := list(request.query_params):
            raise ConfigError(
                f"{short(unread[0])} stands in the address; a POST is asked in its body alone: put it there"
            )
        return await self.ask(parse(Batch, await read(request, self.limits.body)))

    async def ask(self, asked: dict[str, Any]) -> Response:
        lists = [len(x) for place in ("head", "relation", "tail") if isinstance(x := asked[place], list)]
        count, some = max(lists, default=1), asked["typed"] or asked["candidates"] is not None
        if asked["k"] is None:
            usual = FEW if asked["coverage"] is None else min(MOST, ROWS // max(count, 1))
            asked["k"] = max(1, min(usual, self.limits.k))
        self.bound(asked["k"], count)
        if some and count * len(self.student.entities) > 8 * BITS:
            most = 8 * BITS // len(self.student.entities)
            raise ConfigError(f"{count:,} queries with typed or candidates; this student takes {most:,} at a time")
        if count * min(asked["shortlist"] or 0, len(self.student.entities)) > LISTED:
            raise ConfigError(f"shortlists of {count:,} queries; one request ranks up to {LISTED:,} entities of them")
        work = lambda: self.answers(asked)
        small = count * self.bytes <= AT_ONCE and count * asked["k"] <= 1000 and not some
        body, cut = work() if small else await self.away(work)
        told = answer(body)
        if cut:
            told.headers[CUT] = str(cut)
        return told

    def answers(self, asked: dict[str, Any]) -> tuple[bytes, int]:
        """As JSON, and of how many queries the sets cover less than they should, since k is too small for them."""
        found = self.student.predict(ids=True, **asked)
        return dump(found.rows()), found.cut

    async def similar(self, request: Request) -> Response:
        asked = parse(Likeness, request.query_params)
        asked["k"] = asked["k"] or min(FEW, self.limits.k)
        self.bound(asked["k"])
        return answer(await self.away(lambda: dump(self.student.similar(**asked).rows())))

    async def labels(self, request: Request) -> Response:
        asked = parse(Beginning, request.query_params)
        asked["k"] = asked["k"] or min(FEW, self.limits.k)
        self.bound(asked["k"])
        student, prefix, k = self.student, asked["prefix"], asked["k"]
        if asked["kind"] == "relation":
            return answer(dump([{"id": i, "label": student.relations[i]} for i in student.relations.prefix(prefix, k)]))
        found = student.entities.prefix(prefix, k)
        if student.names is not None and len(found) < k and prefix:
            found = list(dict.fromkeys([*found, *student.names.prefix(prefix, k)]))[:k]
        rows = [{"id": i, "label": student.entities[i], "name": student.readable(i)} for i in found]
        return answer(dump(rows))

    async def openapi(self, request: Request) -> Response:
        return answer(dump(self.description))

    async def docs(self, request: Request) -> Response:
        return Response(documentation(self.description), media_type="text/html", headers=SAFE)

    async def page(self, request: Request) -> Response:
        return Response(packaged("page.html"), media_type="text/html", headers=SAFE)

    async def script(self, request: Request) -> Response:
        return Response(packaged("page.mjs"), media_type="text/javascript", headers=SAFE)

    @functools.cached_property
    def description(self) -> dict[str, Any]:
        return describe(self.limits)

    @functools.cached_property
    def example(self) -> dict[str, str] | None:
        """Something to begin with: a triple's head and relation, where the student's triples are at hand."""
        try:
            triples = self.student.triples
        except (ConfigError, DataError):
            return None
        if not len(triples):
            return None
        relation = next(r for r, (a, b) in enumerate(zip(triples.first, triples.first[1:])) if a < b)
        head = int(triples.head[triples.first[relation]])
        return {"head": self.student.entities[head], "relation": self.student.relations[relation]}

    def bound(self, k: int, count: int = 1) -> None:
        """ConfigError where more is asked for than one request may."""
        if k > self.limits.k:
            raise ConfigError(f"k is {k if k < 10**18 else 'too large'}; this server gives up to {self.limits.k:,}")
        if count > self.limits.batch:
            raise ConfigError(f"{count:,} queries; this server takes up to {self.limits.batch:,} at a time")
        if k * count > max(ROWS, self.limits.k):
            raise ConfigError(f"k = {k:,} for {count:,} queries; one request gives up to {ROWS:,} answers")

    async def away(self, work: Callable[[], T]) -> T:
        """Work in a thread, of which as many run as there are cores, so that others are answered meanwhile."""
        if self.waiting >= WAITING:
            raise HTTPException(503, "too many are waiting; ask again in a second", {"Retry-After": "1"})
        self.waiting += 1
        try:
            return await to_thread.run_sync(work, limiter=self.threads)
        finally:
            self.waiting -= 1


class Guard:
    """Refuses a Host header that this server does not go by: so a foreign page cannot read it under a name of its own.

    It is no password: who reaches the server may ask it. Refuses headers that are too long, too, where they came at
    once: h11 bounds those that it waits for.
    """

    def __init__(self, app: ASGIApp, hosts: tuple[str, ...]):
        self.app, self.hosts = app, frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            size = len(scope.get("raw_path") or b"") + len(scope["query_string"])
            if size + sum(len(name) + len(value) + 4 for name, value in scope["headers"]) > HEADERS:
                refusal = problem(431, f"the first line and the headers may have {HEADERS:,} bytes; send lists as JSON")
                refusal.headers["Connection"] = "close"
                return await refusal(scope, receive, send)
        if scope["type"] == "http" and self.hosts:
            named = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"host"), "")
            host, colon, port = named.rpartition(":")
            if (host if colon and port.isdecimal() else named).lower() not in self.hosts:
                refusal = problem(
                    400, f"this server does not go by that Host; it goes by {', '.join(sorted(self.hosts))}"
                )
                return await refusal(scope, receive, send)
        return await self.app(scope, receive, send)


async def read(request: Request, most: int) -> bytes:
    """A JSON body; one that is too long is not read to its end, and a slow one is not waited for.

    Raises:
        HTTPException: 408, 413, 415.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "send JSON, with Content-Type: application/json", {"Connection": "close"})
    too_long = HTTPException(413, f"the body may have {most:,} bytes; ask fewer at a time", {"Connection": "close"})
    told, body = request.headers.get("content-length", ""), bytearray()
    if told.isdecimal() and int(told[:20]) > most:
        raise too_long
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                body += part
                if len(body) > most:
                    raise too_long
    except TimeoutError:
        raise HTTPException(408, "the body did not arrive in time; send it again", {"Connection": "close"}) from None
    return bytes(body)


def dump(value: Any) -> bytes:
    """JSON as UTF-8. What has no place there is escaped (half of a surrogate pair) or null (NaN, infinity)."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except ValueError:
        return json.dumps(finite(value), allow_nan=False).encode()


def answer(body: bytes, status: int = 200) -> Response:
    return Response(body, status, media_type="application/json")


def problem(status: int, line: str) -> Response:
    return answer(dump({"error": " ".join(line.split())}), status)


def refused(request: Request, error: Any) -> Response:
    """Starlette's own refusals, and ours, as JSON."""
    lines = {
        404: "there is nothing at this address; /docs lists what there is",
        405: f"{request.method[:20]} is not answered here; /docs lists what is",
    }
    found = problem(error.status_code, lines.get(error.status_code, error.detail))
    found.headers.update(error.headers or {})
    return found


@functools.cache
def packaged(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
