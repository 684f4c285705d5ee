# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The smallest scheduler that a simulated event loop can stand on."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable


class Scheduler:
    """Calls that are due at some simulated second, in a heap."""

    def __init__(self) -> None:
        self._now = 0.0
        self._order = itertools.count()
        self._calls: list[tuple[float, int, Callable[[], None]]] = []

    def now(self) -> float:
        return self._now

    def call_later(self, delay: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._calls, (self._now + delay, next(self._order), call))

    def step(self) -> None:
        """Make the next call, when it is due."""
        self._now, _, call = heapq.heappop(self._calls)
        call()

    def run(self, until: Callable[[], object] = lambda: False) -> None:
        """Make all calls, those that come up meanwhile too, or only until this holds."""
        while self._calls and not until():
            self.step()
