# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Who speaks to the programs that are fuzzed: a real server on loopback that says what it is told."""

from __future__ import annotations

import contextlib
import logging
import re
import selectors
import socket
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

from mozpool.clock import Clock

SEPARATOR = b"\n~~\n"
"""Between the answers that an input is made of."""

PATIENCE = 0.01
"""Seconds after which a silent client gets the next answer, or the end: it waits for more."""

_LENGTH = re.compile(rb"content-length: *([0-9]{1,9})", re.IGNORECASE)
_STATUS = re.compile(rb"([0-9]{3}) ")


class HastyClock(Clock):
    """The real clock, on which pauses pass at once."""

    def __init__(self) -> None:
        self._skipped = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self._skipped

    def sleep(self, seconds: float) -> None:
        self._skipped += max(0.0, seconds)


class Peer:
    """A TCP server that gives the answers of :meth:`says`, one after the other, over all its connections.

    After the last one it closes. A client that is silent waits for more, and gets it. Its one thread serves all
    connections.
    """

    def __init__(self, *, speaks_first: bool = False, http: bool = False) -> None:
        """``speaks_first``: an answer comes before anything is asked. ``http``: each answer ends its connection."""
        self._speaks_first = speaks_first
        self._http = http
        self._answers: deque[bytes] = deque()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._selector = selectors.DefaultSelector()
        self._asked: dict[socket.socket, bytes] = {}
        self._wake, self._waker = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, name="peer", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._waker.send(b"x")
        self._thread.join(10)
        for each in (self._listener, self._wake, self._waker, *self._asked):
            each.close()
        self._selector.close()

    def says(self, data: bytes) -> None:
        """Answer with these from now on; of HTTP, ``STATUS BODY`` or the body alone."""
        answers = data.split(SEPARATOR)
        self._answers = deque(map(http_answer, answers) if self._http else answers)

    def says_exactly(self, data: bytes) -> None:
        """Answer with these bytes, whatever protocol it is."""
        self._answers = deque((data,))

    def _serve(self) -> None:
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._wake, selectors.EVENT_READ)
        while True:
            ready = self._selector.select(PATIENCE if self._asked else None)
            if not ready:
                for connection in list(self._asked):
                    self._answer(connection)
            for key, _ in ready:
                if key.fileobj is self._wake:
                    return
                if key.fileobj is self._listener:
                    self._accept()
                else:
                    assert isinstance(key.fileobj, socket.socket)
                    self._read(key.fileobj)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            connection, _ = self._listener.accept()
            connection.settimeout(10)
            self._asked[connection] = b""
            self._selector.register(connection, selectors.EVENT_READ)
            if self._speaks_first:
                self._answer(connection)

    def _read(self, connection: socket.socket) -> None:
        data = b""
        with contextlib.suppress(OSError):
            data = connection.recv(65536)
        if not data:
            self._close(connection)
            return
        if self._http:
            asked = self._asked[connection] = self._asked[connection] + data
            head, end, body = asked.partition(b"\r\n\r\n")
            length = _LENGTH.search(head)
            if not end or len(body) < int(length[1] if length else 0):
                return
        self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        try:
            connection.sendall(self._answers.popleft())
        except (IndexError, OSError):
            self._close(connection)
            return
        if self._http:
            self._close(connection)

    def _close(self, connection: socket.socket) -> None:
        self._selector.unregister(connection)
        del self._asked[connection]
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_WR)
        connection.close()


def http_answer(piece: bytes) -> bytes:
    """``STATUS BODY``, or a body alone, as HTTP; what begins with HTTP is taken as it is."""
    if piece.startswith(b"HTTP/"):
        return piece
    status = _STATUS.match(piece)
    body = piece[status.end() :] if status else piece
    head = b"HTTP/1.1 %b x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return head % (status[1] if status else b"200", len(body)) + body


@contextmanager
def no_errors_logged() -> Iterator[list[str]]:
    """The errors that threads have logged since: what is a crash elsewhere is only a line there."""
    found: list[str] = []

    class Noted(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(logging.Formatter().format(record))

    handler = Noted(logging.ERROR)
    logging.getLogger().addHandler(handler)
    try:
        yield found
    finally:
        logging.getLogger().removeHandler(handler)
