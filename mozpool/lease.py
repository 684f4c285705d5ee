# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""For how long this server may act on hardware without a further sign of life.

Servers of a group take over from one that has been silent for ``takeover_after`` seconds. Each one's lease is half of
that: operations begin while the lease has time left for them, and are cut off when it ends, so that the other half is
left for what a switch may still do then. It is measured by the server's own monotonic clock from *before* the sign of
life was given, so it never lasts longer than the others believe. A server without a group needs none.
"""

from __future__ import annotations

import math
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar

from mozpool.clock import Clock, Deadline
from mozpool.errors import LeaseOver

Program = subprocess.Popen[bytes]
Leash = Callable[[Program], AbstractContextManager[Callable[[float], None]]]
CutOff = Callable[[socket.socket, float], AbstractContextManager[None]]


def no_cut(connection: socket.socket, seconds: float) -> AbstractContextManager[None]:
    """Leave a connection alone."""
    return nullcontext()


def no_leash(program: Program) -> AbstractContextManager[Callable[[float], None]]:
    """Let a program run."""
    return nullcontext(lambda seconds: None)


PART = 0.5
"""How much of ``takeover_after`` a lease lasts."""

_seen: ContextVar[tuple[object, int] | None] = ContextVar("seen", default=None)
"""The lease, and the term of it, in which this thread last looked who owns a row."""


class Lease:
    """One server's. Its methods may be called from any thread."""

    def __init__(
        self, clock: Clock, takeover_after: float | None, cut_off: CutOff = no_cut, leash: Leash = no_leash
    ) -> None:
        """``takeover_after`` in seconds; None: there is nobody who would take over, and the lease never ends.

        ``cut_off(connection, seconds)`` ends a connection after so many seconds, even if this process is frozen;
        ``leash(program)`` gives what is called with the seconds that a program may still run.
        """
        self.cut_off = cut_off
        self.leash = leash
        self.seconds = math.inf if takeover_after is None else takeover_after * PART
        self._clock = clock
        self._end = math.inf if takeover_after is None else -math.inf
        self._term = 0
        self._over = False

    def left(self) -> float:
        """Seconds that are left, never negative; infinite without a group."""
        return max(0.0, self._end - self._clock.monotonic())

    def renew(self, since: float) -> None:
        """A sign of life was given, begun at this moment of the monotonic clock."""
        if self._end != math.inf and not self._over:
            self._end = max(self._end, since + self.seconds)

    def new_term(self) -> None:
        """The lease had ended, and others may have taken rows: what was looked at before counts no more."""
        self._term += 1

    def end(self) -> None:
        """Act no more, and never again: this server stops."""
        self._over = True
        if self._end != math.inf:
            self._end = -math.inf

    def look(self) -> None:
        """This thread is about to look who owns a row that it is going to act on."""
        _seen.set((self, self._term))

    @property
    def holds(self) -> bool:
        """Whether the lease has not ended since this thread's last :meth:`look`."""
        seen = _seen.get()
        return (seen is None or seen[0] is not self or seen[1] == self._term) and self.left() > 0

    def acting(self, device: str, operation: str, seconds: float) -> Deadline:
        """The deadline of an operation that changes something at a device: so many seconds, within the lease.

        Raises LeaseOver when the lease has no time left for it: at least all these seconds, or half of a whole lease.
        """
        if self.seconds == math.inf:
            return Deadline(self._clock, seconds)
        if not self.holds or self.left() < min(seconds, self.seconds / 2):
            raise LeaseOver(device, operation)
        return _Within(self, self._clock, seconds)


class _Within(Deadline):
    """A deadline that also ends with the lease: whoever asks before each step what is left is stopped by either."""

    def __init__(self, lease: Lease, clock: Clock, seconds: float) -> None:
        super().__init__(clock, seconds)
        self._lease = lease

    def remaining(self, at_most: float | None = None) -> float:
        """As without a lease, or what that has left if it is less."""
        return min(super().remaining(at_most), self._lease.left()) if self._lease.holds else 0.0

    @property
    def expired(self) -> bool:
        """Whether no time is left."""
        return self.remaining() <= 0

    def guard(self, connection: socket.socket) -> AbstractContextManager[None]:
        """What ends a connection with the lease as it is now; none for operations that it has to be renewed for."""
        if self.seconds > self._lease.seconds:
            return nullcontext()
        return self._lease.cut_off(connection, self.remaining())

    @contextmanager
    def leash(self, program: Program) -> Iterator[None]:
        """What ends a program with the lease as it is now, likewise."""
        with self._lease.leash(program) as go_on:
            if self.seconds <= self._lease.seconds:
                go_on(self.remaining())
            yield

    def within(self, seconds: float) -> Deadline:
        """A deadline ``seconds`` from now that is never later than this one, nor than the lease, however often that is
        renewed until then."""
        return _Within(self._lease, self.clock, super().remaining(seconds))
