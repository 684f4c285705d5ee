# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Calls of people and programs go before background work, within bounds.

All threads of the daemon share one interpreter: when many calls come at a time, each step of the background would make
all of them wait. So a worker lets the calls finish that have just come in, but never for long: boards are patient, and
what nobody wants any more by then need not be done at all.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
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
        self._calls: dict[int, float] = {}
        self.on_quiet: list[Callable[[], None]] = []
        """Called when the last call has ended."""

    @property
    def calls(self) -> int:
        """How many calls are being served now, without those that wait for something."""
        return len(self._calls)

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
            quiet = self._calls.pop(me, None) is not None and not self._calls
        if quiet:
            for tell in self.on_quiet:
                tell()

    def busy_for(self) -> float:
        """The most seconds for which a call that is being served now is one to give way to; 0 when there is none."""
        if not self._calls:
            return 0.0
        with self._lock:
            newest = max(self._calls.values(), default=None)
        return 0.0 if newest is None else max(0.0, newest + FRESH - self._clock.monotonic())
