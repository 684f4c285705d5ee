# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The HTTP server in front of the application."""

from __future__ import annotations

import json
import logging
import resource
import socket
import struct
from contextlib import suppress
from dataclasses import replace
from typing import Any

from apiflask import APIFlask
from waitress.adjustments import Adjustments
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser
from waitress.receiver import ChunkedReceiver
from waitress.server import BaseWSGIServer, MultiSocketServer, TcpWSGIServer
from waitress.task import ErrorTask, ThreadedTaskDispatcher, WSGITask
from waitress.utilities import BadRequest, InternalServerError

from mozpool.access.addresses import caller
from mozpool.clock import Clock
from mozpool.config import Server, is_loopback
from mozpool.web.errors import CODES, INTERNAL

log = logging.getLogger("mozpool.web")

MAX_BODY = 2 * 1024 * 1024
"""Bytes of a body that are read at all; the application refuses smaller ones in its own words."""

MAX_HEAD = 32 * 1024
"""Bytes of the first line and the headers of a call."""

MAX_CHUNK_LINE = 1024
"""Bytes of a line between the chunks of a body, and of all lines after the last chunk."""

BODY_IN_MEMORY = 64 * 1024
"""Bytes of a body that are kept in memory while it comes in; more goes into a temporary file."""

SEND_BUFFER = 256 * 1024
"""Bytes of an answer that the system keeps for a client that has not taken them yet. By itself it would keep megabytes,
for each of hundreds of clients, and filling that up holds up the others."""

LOOK_EVERY = 1.0
"""Seconds after which the open connections are looked at again."""

ROOM = 20
"""When there are too many connections, a part of this size goes, so that not each new one has to look for another."""

AT_ONCE = 64
"""New connections that are taken before those that are open get their turn again."""

OTHER_FILES = 512
"""Files that the process needs besides connections: of the database, of effects, of children."""


class _Parser(HTTPRequestParser):
    """Also refuses lines between chunks that never end: each further byte would cost as much as all before it."""

    path = "-"
    """What waitress calls a call in its log, also one whose line it could not read."""

    def received(self, data: bytes) -> int:
        taken = super().received(data)
        body = self.body_rcv
        if self.completed or not isinstance(body, ChunkedReceiver):
            return taken
        if max(len(body.control_line), len(body.trailer)) > MAX_CHUNK_LINE:
            self.error = BadRequest(f"a line between chunks exceeds {MAX_CHUNK_LINE} bytes")
            self.completed = True
        return taken


class _Task(WSGITask):
    """A call whose connection stays open when its answer can't have a body, such as 204.

    Waitress closes after every answer without Content-Length, which these must not have (RFC 9110, 8.6), although
    their end is known.
    """

    def set_close_on_finish(self) -> None:
        bodiless = self.complete and not self.has_body and not self.wrote_header
        asked: HTTPRequestParser = self.request  # type: ignore[assignment]
        wants_close = asked.headers.get("CONNECTION", "").lower() == "close"
        if not bodiless or wants_close or self.version != "1.1":
            super().set_close_on_finish()


class _ErrorTask(ErrorTask):
    """What never gets to the application, since it is no HTTP or too large, is refused in the API's words too."""

    def execute(self) -> None:
        asked: HTTPRequestParser = self.request  # type: ignore[assignment]
        error = asked.error
        assert error is not None
        message = INTERNAL if isinstance(error, InternalServerError) else f"{error.reason}: {error.body}"
        said = {"error": {"code": CODES.get(error.code, "error"), "message": message, "field": None}}
        body = (json.dumps(said, separators=(",", ":")) + "\n").encode()
        self.status = f"{error.code} {error.reason}"
        self.response_headers = [*self.response_headers, ("Content-Type", "application/json")]
        self.set_close_on_finish()
        self.content_length = len(body)
        self.write(body)


IDLE, HEADERS, BODY, ANSWER = "idle", "headers", "body", "answer"
"""What a connection waits for: a call, the rest of its head, the rest of its body, that its answer is taken."""


class _Channel(HTTPChannel):
    """A connection that knows what its client has kept it waiting for, and since when.

    How many bytes came does not count: a client that sends one a second has not sent its call any sooner.
    """

    task_class = _Task
    error_task_class = _ErrorTask
    parser_class = _Parser

    def __init__(self, server: _Listener, sock: socket.socket, addr: Any, adj: Adjustments, map: Any = None) -> None:
        super().__init__(server, sock, addr, adj, map)
        self.caller = caller(addr[0])
        self._served = 0
        self._since = server.clock.monotonic()
        self._mark: tuple[str | None, object] = (IDLE, 0)

    def service(self) -> None:
        super().service()
        self._served += 1

    def waits(self, now: float) -> tuple[str | None, float]:
        """What is waited for and since when, in monotonic seconds; None while a call is served.

        It counts from the first look that finds it so.
        """
        mark: tuple[str | None, object]
        if self.total_outbufs_len:
            mark = (ANSWER, self.last_activity)
        elif self.requests:
            mark = (None, None)
        elif self.request is not None:
            mark = (BODY if self.request.headers_finished else HEADERS, self.request)
        else:
            mark = (IDLE, self._served)
        if mark != self._mark:
            self._mark, self._since = mark, now
        return mark[0], self._since

    def drop(self) -> None:
        """Close at once, whatever has not been sent yet: who does not read it would keep it in the kernel, too."""
        if self.socket is not None:
            with suppress(OSError):
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.handle_close()


class _Listener(TcpWSGIServer):
    """Takes connections, and closes those whose clients let it wait too long, or that are too many."""

    channel_class = _Channel

    def __init__(self, app: APIFlask, clock: Clock, settings: Server, sockets: dict[int, Any], **options: Any) -> None:
        """``sockets`` will have all that is open; ``options`` are what waitress itself wants to know."""
        self.clock = clock
        self._settings = settings
        self._sockets = sockets
        self._is_there_more = False
        self._limits = {
            IDLE: settings.idle_timeout,
            HEADERS: settings.header_timeout,
            BODY: settings.body_timeout,
            ANSWER: settings.send_timeout,
        }
        self._next_look = 0.0
        super().__init__(app, sockets, **options)

    def readable(self) -> bool:
        now = self.clock.monotonic()
        if now >= self._next_look:
            self._next_look = now + LOOK_EVERY
            self._close_late(now)
        return super().readable()

    def maintenance(self, now: float) -> None:
        """Nothing: waitress would count in the system's time, and close what can be written to only."""

    def handle_accept(self) -> None:
        for _ in range(AT_ONCE):
            self._is_there_more = False
            super().handle_accept()
            if not self._is_there_more:
                return

    def accept(self) -> tuple[socket.socket, Any] | None:
        taken = super().accept()
        if taken is None:
            return None
        self._is_there_more = True
        sock, (address, *_) = taken
        if self._is_too_many(address):
            sock.close()
            return None
        self._make_room()
        return taken

    def _connections(self) -> list[_Channel]:
        return [each for each in self._sockets.values() if isinstance(each, _Channel)]

    def _close_late(self, now: float) -> None:
        for channel in self._connections():
            what, since = channel.waits(now)
            if what is not None and now - since > self._limits[what]:
                channel.drop()

    def _is_too_many(self, address: str) -> bool:
        """Whether one more connection from there is one too many."""
        most = self._settings.connections_per_address
        if not most or (is_loopback(self._settings.listen) and is_loopback(address)):
            return False
        here = caller(address)
        return sum(each.caller == here for each in self._connections()) >= most

    def _make_room(self) -> None:
        """When there are too many connections, close those that have waited longest."""
        connections = self._connections()
        if len(connections) < self._settings.connections:
            return
        now = self.clock.monotonic()
        waiting = [(since, each) for each in connections for what, since in [each.waits(now)] if what is not None]
        waiting.sort(key=lambda item: item[0])
        for _, channel in waiting[: max(1, len(connections) // ROOM)]:
            channel.drop()


def make_server(app: APIFlask, settings: Server, clock: Clock) -> BaseWSGIServer | MultiSocketServer:
    """Listen; calls are served as soon as the server's ``run`` is called. Raises OSError when the port is taken."""
    settings = replace(settings, connections=_possible(settings.connections))
    adjustments = Adjustments(
        host=settings.listen,
        port=settings.port,
        threads=settings.threads,
        # A listener makes room by itself. It stops listening only when so many calls are being served.
        connection_limit=settings.connections + AT_ONCE,
        asyncore_use_poll=True,
        channel_request_lookahead=1,
        inbuf_overflow=BODY_IN_MEMORY,
        max_request_header_size=MAX_HEAD,
        max_request_body_size=MAX_BODY,
        ident="mozpool",
        **_proxy(settings.listen),
    )
    buffer = (socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    adjustments.socket_options = [*adjustments.socket_options, buffer]
    sockets: dict[int, Any] = {}
    dispatcher = ThreadedTaskDispatcher()
    dispatcher.set_thread_count(settings.threads)
    listeners = [
        _Listener(app, clock, settings, sockets, dispatcher=dispatcher, adj=adjustments, sockinfo=where)
        for where in adjustments.listen
    ]
    if len(listeners) == 1:
        return listeners[0]
    # Where they listen is for a message only, which is not used.
    return MultiSocketServer(sockets, adjustments, [], dispatcher, log.info)


def _possible(connections: int) -> int:
    """How many connections this process may have open: as many as are wanted, unless the system allows fewer files."""
    # A body that comes in may need a temporary file.
    wanted = 2 * connections + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        if soft < wanted:
            connections = max(10, (soft - OTHER_FILES) // 2)
            log.warning("at most %d connections: the system allows this process %d open files", connections, soft)
    return connections


def _proxy(listen: str) -> dict[str, Any]:
    """Behind a proxy on this machine, callers and https are known by what that says; nobody else is believed."""
    if not is_loopback(listen):
        return {}
    return {
        "trusted_proxy": "::1" if ":" in listen else "127.0.0.1",
        "trusted_proxy_headers": {"x-forwarded-for", "x-forwarded-proto"},
    }
