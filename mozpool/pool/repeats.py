# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Repeated calls: a client that gave up waiting and asks again gets the request that its first call made.

Old clients give up after ten seconds and repeat a POST (REST contract: what old clients do). The request of a call
whose client was gone before it could be answered is kept here for a minute, for the equal call that comes next from
the same peer. Equal calls of clients that are still there are different requests.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from mozpool.clock import Clock

KEPT = 60.0
"""Seconds for which a request waits for the repeat of its call."""

MOST = 1000
"""How many do so at a time; the oldest are forgotten first."""

PATIENCE = 8.0
"""Seconds for which a repeat waits until the first call has made its request; clients give up after ten."""


@dataclass(eq=False)
class Call:
    """A call that makes a request."""

    key: str
    gone: Callable[[], bool]
    """Whether its client has hung up."""
    request_id: int | None = None
    until: float | None = None
    """When it is forgotten (monotonic time); None while it is being worked on."""
    over: threading.Event = field(default_factory=threading.Event)
    """Set as soon as ``request_id`` is, or will never be."""


class Repeats:
    """Calls that are being worked on, and those that could not be answered. Safe to use from any thread."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._calls: OrderedDict[Call, None] = OrderedDict()

    def begin(self, key: str, gone: Callable[[], bool]) -> tuple[Call, int | None]:
        """Note a call; answer with the request to take over from an equal one whose client is gone, else None.

        ``key`` is equal for equal calls of one peer. :meth:`end` must follow.
        """
        call = Call(key, gone)
        first = self._take(key)
        with self._lock:
            self._calls[call] = None
        if first is not None:
            self._clock.wait(first.over, PATIENCE)
        return call, None if first is None else first.request_id

    def _take(self, key: str) -> Call | None:
        """The oldest equal call that nobody waits for any more; it can be taken over once."""
        now = self._clock.monotonic()
        with self._lock:
            for call in [call for call in self._calls if call.until is not None and call.until <= now]:
                del self._calls[call]
            for call in self._calls:
                if call.key == key and (call.until is not None or call.gone()):
                    del self._calls[call]
                    return call
        return None

    def made(self, call: Call, request_id: int) -> None:
        """The call's request exists from now on."""
        call.request_id = request_id
        call.over.set()

    def end(self, call: Call) -> None:
        """The call is about to be answered, or has failed."""
        call.over.set()
        with self._lock:
            if call not in self._calls:
                return  # a repeat has taken it over
            if call.request_id is None or not call.gone():
                del self._calls[call]
                return
            call.until = self._clock.monotonic() + KEPT
            while len(self._calls) > MOST:
                oldest = next((other for other in self._calls if other.until is not None), None)
                if oldest is None:
                    break
                del self._calls[oldest]
