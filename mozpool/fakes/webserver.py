# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The HTTP server of the fakes that are services: threads, what was asked, and whatever goes wrong with real ones."""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import parse_qsl, urlsplit

from mozpool.clock import Clock, Event
from mozpool.fakes.net import FakesError


class Nonsense(StrEnum):
    """Answers with status 200 that mean nothing."""

    HTML = "html"
    """A page for people."""
    HALF = "half"
    """The first half of the JSON."""
    EMPTY = "empty"
    """No byte at all."""
    LIST = "list"
    """JSON of another form."""
    TYPES = "types"
    """Numbers where there are texts, texts where there are numbers."""
    KEYS = "keys"
    """Every second key is missing, ``status`` and ``pendingTasks`` among them; lists and objects are not."""


@dataclass(frozen=True)
class Fault:
    """How a service misbehaves. One of ``down``, ``status`` and ``nonsense``; ``slow`` goes with each."""

    down: bool = False
    """The connection is closed without an answer; nothing is done."""
    slow: float = 0.0
    """Seconds until the answer comes; what was asked for is done at once. The fake's speed does not divide them."""
    status: int | None = None
    """This status, 500 say, with a page of HTML; nothing is done."""
    retry_after: str | None = None
    """The header Retry-After that goes with it."""
    nonsense: Nonsense | None = None
    """What was asked for is done, and answered so."""
    path: str = "/"
    """For paths that begin so only."""


TOO_MANY = 429


def too_many(seconds: float, path: str = "/") -> Fault:
    """429, with Retry-After."""
    return Fault(status=TOO_MANY, retry_after=f"{seconds:g}", path=path)


class Answer(NamedTuple):
    """What a service answers: JSON."""

    status: int
    body: Any
    headers: Mapping[str, str] = {}


@dataclass(frozen=True)
class Call:
    """What a service is asked."""

    method: str
    path: str
    """As it came, percent signs and all, without the query."""
    query: Mapping[str, str]
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    """By names in lower case."""


class WebServer:
    """One service at one address. ``answer`` is called from many threads."""

    def __init__(self, what: str, answer: Callable[[Call], Answer], clock: Clock, host: str, port: int) -> None:
        """Describe it; nothing is opened yet. ``what`` names it in errors; port 0 is any that is free."""
        self.asked: list[str] = []
        """All calls that have come, as ``GET /path?query``, oldest first."""
        self.host = host
        self.answer = answer
        self._what = what
        self._clock = clock
        self._port = port
        self._fault: Fault | None = None
        self._times: int | None = None
        self._lock = threading.Lock()
        self._ended: Event = clock.event()
        self._connections: set[socket.socket] = set()
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """Its base URL, without a slash at the end; known once it has been started."""
        return f"http://{self.host}:{self._port}"

    def set_fault(self, fault: Fault | None, times: int | None = None) -> None:
        """From now on it misbehaves so, for so many calls (None: until told otherwise); None makes it healthy."""
        with self._lock:
            self._fault, self._times = fault, times

    def start(self) -> None:
        """Open the port. Raises FakesError when that can't be."""
        try:
            self._server = _Server((self.host, self._port), self)
        except (OSError, OverflowError) as error:
            raise FakesError(f"{self._what} can't listen on {self.host}:{self._port} (tcp): {error}") from error
        self._port = self._server.server_port
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), name=self._what.replace(" ", "-"), daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Close the port and all connections."""
        if self._server is None or self._thread is None:
            return
        self._ended.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._server = None
        with self._lock:
            for connection in self._connections:
                with suppress(OSError):  # the client was faster
                    connection.shutdown(socket.SHUT_RDWR)

    # What connections tell.

    def came(self, connection: socket.socket) -> None:
        """A client has connected."""
        with self._lock:
            self._connections.add(connection)

    def went(self, connection: socket.socket) -> None:
        """A connection is over."""
        with self._lock:
            self._connections.discard(connection)

    def take(self, method: str, target: str) -> Fault:
        """Note a call; what goes wrong with it."""
        with self._lock:
            self.asked.append(f"{method} {target}")
            fault = self._fault
            if fault is None or not target.startswith(fault.path):
                return Fault()
            if self._times is not None:
                self._times -= 1
                if self._times <= 0:
                    self._fault = None
            return fault

    def wait(self, seconds: float) -> None:
        """Say nothing for so long, or until it is stopped."""
        self._clock.wait(self._ended, seconds)


class Service:
    """A fake that is reached through one WebServer: a context manager that starts and stops it."""

    web: WebServer

    @property
    def url(self) -> str:
        """Its base URL, without a slash at the end; known once it has been started."""
        return self.web.url

    def start(self) -> None:
        """Open the port. Raises FakesError when that can't be."""
        self.web.start()

    def stop(self) -> None:
        """Close the port and all connections."""
        self.web.stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def __init__(self, address: tuple[str, int], web: WebServer) -> None:
        self.web = web
        super().__init__(address, _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):  # those are clients that did not wait for the answer
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer is one packet, so that nobody waits for an acknowledgement in the middle of it
    disable_nagle_algorithm = True
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.server.web.came(self.connection)

    def finish(self) -> None:
        try:
            super().finish()
        finally:
            self.server.web.went(self.connection)

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        web = self.server.web
        target = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = web.take(self.command, self.path)
        if fault.down:
            web.wait(fault.slow)
            self.close_connection = True
            return
        if fault.status is not None:
            web.wait(fault.slow)
            headers = {} if fault.retry_after is None else {"Retry-After": fault.retry_after}
            self.tell(fault.status, b"<html><body>Sorry</body></html>", "text/html", headers)
            return
        headers = {name.lower(): value for name, value in self.headers.items()}
        query = dict(parse_qsl(target.query, keep_blank_values=True))
        answer = web.answer(Call(self.command, target.path, query, body, headers))
        web.wait(fault.slow)
        if fault.nonsense is None:
            self.tell(answer.status, json.dumps(answer.body).encode(), "application/json", answer.headers)
        else:
            self.tell(200, *_nonsense(fault.nonsense, answer.body), {})

    do_POST = do_PUT = do_GET

    def tell(self, status: int, body: bytes, kind: str, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def _nonsense(kind: Nonsense, body: Any) -> tuple[bytes, str]:
    if kind is Nonsense.HTML:
        return b"<!DOCTYPE html><title>Please log in</title>", "text/html"
    if kind is Nonsense.EMPTY:
        return b"", "application/json"
    if kind is Nonsense.LIST:
        body = [1, 2]
    elif kind is Nonsense.TYPES:
        body = _other_types(body)
    elif kind is Nonsense.KEYS:
        body = _fewer_keys(body)
    text = json.dumps(body).encode()
    return text[: len(text) // 2] if kind is Nonsense.HALF else text, "application/json"


def _other_types(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _other_types(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_other_types(each) for each in value]
    return 7 if isinstance(value, str) else "seven"


def _fewer_keys(value: Any) -> Any:
    if isinstance(value, list):
        return [_fewer_keys(each) for each in value]
    if not isinstance(value, dict):
        return value
    kept = {*sorted(value)[::2], *(key for key, each in value.items() if isinstance(each, dict | list))}
    return {key: _fewer_keys(each) for key, each in value.items() if key in kept}
