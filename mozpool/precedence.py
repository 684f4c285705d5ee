# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Calls of people and programs go before background work, within bounds.

All threads of the daemon share one interpreter: when many calls come at a time, each step of the background would make
all of them wait. So a worker lets the calls finish that have just come in, but never for long: boards are patient, and
what nobody wants any more by then need not be done at all.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from mozpool.clock import Clock

PATIENCE = 0.25
"""The most seconds that a piece of background work is held back."""

FRESH = 0.25
"""A call that takes longer than this is slow for reasons of its own; nobody waits for it."""


class Precedence:
    """Who is being served now. Safe to use from any thread."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._calls: dict[int, float] = {}

    @contextmanager
    def call(self) -> Iterator[None]:
        """Serve a call in this thread."""
        me = threading.get_ident()
        with self._lock:
            self._calls[me] = self._clock.monotonic()
        try:
            yield
        finally:
            self._leave(me)

    def step_aside(self) -> None:
        """The call that this thread serves is going to wait for something: it holds nobody up any longer."""
        self._leave(threading.get_ident())

    def _leave(self, me: int) -> None:
        with self._lock:
            if self._calls.pop(me, None) is not None and not self._calls:
                self._idle.notify_all()

    def give_way(self) -> None:
        """Wait until no call is being served that has just come in, at most :data:`PATIENCE` seconds."""
        if not self._calls:
            return
        end = self._clock.monotonic() + PATIENCE
        with self._lock:
            while True:
                now = self._clock.monotonic()
                newest = max(self._calls.values(), default=None)
                if newest is None or now - newest > FRESH or now >= end:
                    return
                self._idle.wait(min(end, newest + FRESH) - now)
