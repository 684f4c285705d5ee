# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Operations on devices that may be broken off before their time is over: whoever asked has lost the device."""

from __future__ import annotations

import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress

from mozpool.clock import Deadline


class BreakOff:
    """Breaks one operation off when it is called, from any thread: nothing more is sent or waited for."""

    def __init__(self) -> None:
        self.called = False
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()

    def __call__(self) -> None:
        """Let its deadline be over now, and shut its connections down."""
        with self._lock:
            self.called = True
            for connection in self._connections:
                _shut(connection)

    def deadline(self, deadline: Deadline) -> Deadline:
        """A deadline of the operation that is over as soon as it is broken off."""
        return _Breakable(self, deadline)

    @contextmanager
    def watch(self, connection: socket.socket) -> Iterator[None]:
        """While this lasts, the connection is shut down when the operation is broken off."""
        with self._lock:
            self._connections.add(connection)
            if self.called:
                _shut(connection)
        try:
            yield
        finally:
            with self._lock:
                self._connections.discard(connection)


def _shut(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


class _Breakable(Deadline):
    """As another deadline, until that is broken off."""

    def __init__(self, end: BreakOff, inner: Deadline) -> None:
        super().__init__(inner.clock, inner.seconds)
        self._break = end
        self._inner = inner

    def remaining(self, at_most: float | None = None) -> float:
        """Seconds that are left."""
        return 0.0 if self._break.called else self._inner.remaining(at_most)

    @property
    def expired(self) -> bool:
        """Whether no time is left."""
        return self._break.called or self._inner.expired

    @contextmanager
    def guard(self, connection: socket.socket) -> Iterator[None]:
        """What ends a connection: what else would, or the break."""
        with self._inner.guard(connection), self._break.watch(connection):
            yield

    def leash(self, program: subprocess.Popen[bytes]) -> AbstractContextManager[None]:
        """What ends a program."""
        return self._inner.leash(program)

    def within(self, seconds: float) -> Deadline:
        """A deadline ``seconds`` from now that is never later than this one."""
        return _Breakable(self._break, self._inner.within(seconds))
