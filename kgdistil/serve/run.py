"""The server process: a socket, uvicorn, a stop that loses no answer."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ipaddress
import logging
import signal
import socket
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import h11
import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.supervisors import Multiprocess

from kgdistil.errors import ConfigError
from kgdistil.serve.app import HEADERS, Limits, make, problem

SECONDS = 10.0  # in which a client sends its headers, and takes an answer
CONNECTIONS = 500  # at a time; below the open files that a process may usually have
STOPPING = 10  # seconds for the last answers


class Patient(H11Protocol):
    """A connection that ends where its client does not send a request's headers, or take its answer, in time.

    h11 rather than httptools, which is a fifth faster here, since it bounds the headers.
    """

    timer: asyncio.TimerHandle

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS:
            self.app = problem(503, "too many are connected; ask again in a second")
            self.app.headers.update({"Retry-After": "1", "Connection": "close"})
        # asyncio does so only where the listening socket names its protocol; without it, each answer waits for 40 ms
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.look(None)

    def look(self, before: Any) -> None:
        """`before`: the request of `SECONDS` ago; None before the first look, and while no request has come."""
        waits = self.conn.their_state is h11.IDLE or self.transport.is_closing()
        if hasattr(self, "timer") and waits and self.cycle is before:
            self.transport.abort()
        else:
            self.timer = self.loop.call_later(SECONDS, self.look, self.cycle)

    def send_400_response(self, msg: str) -> None:
        """As all other refusals."""
        found = problem(400, f"this is no HTTP request, or its headers have more than {HEADERS:,} bytes")
        headers = [*found.raw_headers, (b"connection", b"close")]
        for event in (
            h11.Response(status_code=400, headers=headers),
            h11.Data(data=bytes(found.body)),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.timer.cancel()
        super().connection_lost(exc)


def listen(host: str, port: int) -> socket.socket:
    """A socket at an address.

    Raises:
        ConfigError: there is no such address, or the port is taken.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family, backlog=512)
    except (OSError, UnicodeError) as error:  # the latter of a name that can be no host's
        what = getattr(error, "strerror", None) or error
        why = f"{what}; name another with --port or --host (--port 0: any port that is free)"
        raise ConfigError(f"cannot listen at port {port} of {host}: {why}") from None


def loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def worker(folder: str, limits: Limits) -> Starlette:
    """The application in one of several processes."""
    quiet()
    return make(folder, limits)


def quiet() -> None:
    """What is told of single questions goes to nobody here, and would fill a log."""
    logging.getLogger("kgdistil").setLevel(logging.ERROR)


def serve(folder: str, host: str, port: int, workers: int, limits: Limits, say: Callable[[str], None] = print) -> None:
    """Answer until SIGINT or SIGTERM; then finish what was asked, and return.

    Args:
        limits: without `hosts`, those of the loopback where `host` is one.
        say: what is told of the start: a line with the address.
    Raises:
        CheckpointError: as `load_student`. ConfigError: as `listen`.
    """
    if not limits.hosts and loopback(host):
        limits = replace(
            limits, hosts=tuple({"localhost", "127.0.0.1", "[::1]", host if ":" not in host else f"[{host}]"})
        )
    app = make(folder, limits)
    with contextlib.closing(listen(host, port)) as listening:
        where = f"[{host}]" if ":" in host else host
        if not loopback(host):
            say("open to the network, without a password: whoever reaches this address may ask")
        say(f"http://{where}:{listening.getsockname()[1]}  Ctrl-C stops it")
        config = uvicorn.Config(
            functools.partial(worker, folder, limits) if workers > 1 else app,
            factory=workers > 1,
            workers=workers,
            http=Patient,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=STOPPING,
            h11_max_incomplete_event_size=HEADERS,
        )
        quiet()
        if workers > 1:  # each maps the same files
            Multiprocess(config, [listening]).run()
            return
        for asked in (signal.SIGINT, signal.SIGTERM):  # uvicorn raises them again when all is done
            signal.signal(asked, lambda *_: None)
        uvicorn.Server(config).run([listening])
