# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What is to happen when, in a simulated cloud: nothing waits for it; whoever looks makes up for the time that passed.

So no thread of its own is needed, each thing happens at exactly its moment however late somebody looks, and equal seeds
and questions give equal answers under a ``SimClock``.
"""

from __future__ import annotations

import heapq
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta

from mozpool.clock import Clock

Span = tuple[float, float]
"""The shortest and the longest duration of something, in seconds of the cloud."""


class Later:
    """Something that is to happen, unless it is called off."""

    def __init__(self, work: Callable[[], None]) -> None:
        self.work: Callable[[], None] | None = work

    def call_off(self) -> None:
        """It is not to happen any more."""
        self.work = None


class Timeline:
    """The time of one simulated cloud, and its dice. Safe to use from any thread."""

    def __init__(self, clock: Clock | None = None, *, speed: float = 1.0, seed: int = 0) -> None:
        """``speed`` divides all durations of the cloud."""
        self.clock = Clock() if clock is None else clock
        self.speed = speed
        self.rng = random.Random(seed)
        self._start = (self.clock.monotonic(), self.clock.now())
        self._lock = threading.RLock()
        self._due: list[tuple[float, int, Later]] = []
        self._number = 0
        self._moment: float | None = None

    @contextmanager
    def settled(self) -> Iterator[float]:
        """Let everything happen that is due; then time stands still for the block, and no other thread is in one.

        Gives the moment, in seconds of the clock's monotonic time.
        """
        with self._lock:
            if self._moment is not None:
                yield self._moment
                return
            now = self.clock.monotonic()
            try:
                while self._due and self._due[0][0] <= now:
                    self._moment, _, later = heapq.heappop(self._due)
                    if later.work is not None:
                        later.work()
                self._moment = now
                yield now
            finally:
                self._moment = None

    @property
    def now(self) -> float:
        """The moment that a ``settled`` block or something that is due happens at, else that of the clock."""
        return self.clock.monotonic() if self._moment is None else self._moment

    def after(self, seconds: float | Span, work: Callable[[], None]) -> Later:
        """Do ``work`` in so many seconds of the cloud, drawn by lot from a span; within ``settled`` only."""
        later = Later(work)
        self._number += 1
        heapq.heappush(self._due, (self.now + self.real(self.draw(seconds)), self._number, later))
        return later

    def draw(self, seconds: float | Span) -> float:
        """A duration of the cloud, by lot when a span is given."""
        return self.rng.uniform(*seconds) if isinstance(seconds, tuple) else seconds

    def real(self, seconds: float) -> float:
        """Seconds of the clock for so many of the cloud."""
        return seconds / self.speed

    def wall(self, moment: float) -> datetime:
        """The wall time of a moment of the monotonic time, by the cloud's own clock, which never jumps."""
        began, wall = self._start
        return wall + timedelta(seconds=moment - began)
