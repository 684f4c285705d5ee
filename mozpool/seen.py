# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Events between imaging servers that come twice: the second one is answered as the first, and nothing is done again.

A call whose answer was lost is made again, and a network may deliver a call twice. So each event that one server sends
to another has an id, which its sender derives from what the event is about: it is the same when the event is sent
again, also after a restart of the sender. The receiver keeps its answers for some minutes, in memory. After a restart
of its own it knows a repeated event by the claim in the device's or the request's row.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, MutableMapping
from typing import Any, TypeVar, cast

from mozpool.clock import Clock, Event
from mozpool.errors import BadInput, MozpoolError

T = TypeVar("T")

KEPT = 600.0
"""Seconds for which an answer is kept: longer than a sender tries."""

MOST = 10_000
"""How many answers are kept; the oldest are forgotten first."""

PATIENCE = 5.0
"""Seconds for which a repeated event waits for the answer of the first: somewhat less than its sender waits."""

LONGEST = 64
"""Characters that an id may have."""

KEY = "event_id"
"""The key of the id in the body of a call."""


class StillBusy(MozpoolError):
    """The first of several equal events is still being worked on; the same call may work later (503)."""

    status = 503
    code = "still_busy"


def event_id(*what: str | int) -> str:
    """The id of the event that is told from all others by ``what``: 32 hexadecimal digits."""
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:32]


def take_id(body: MutableMapping[str, Any]) -> str | None:
    """Take the event's id out of the body of a call; None when it has none. Raises BadInput."""
    found = body.pop(KEY, None)
    if found is None:
        return None
    if not isinstance(found, str) or not 1 <= len(found) <= LONGEST:
        raise BadInput.value(KEY, found, f"a text of 1 to {LONGEST} characters")
    return found


class Seen:
    """The events that were dealt with lately. Safe to use from any thread."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._running: dict[Hashable, Event] = {}
        """Those that are being worked on, with what is set when that is over."""
        self._answers: OrderedDict[Hashable, tuple[float, Any]] = OrderedDict()
        """When each answer is forgotten (monotonic time), and the answer; the oldest first."""

    def once(self, to: Hashable, event_id: str | None, work: Callable[[], T]) -> T:
        """What ``work`` gives, or gave when the event with this id came ``to`` the same receiver before.

        What it raises is raised and not remembered, so that the next one tries anew. Without an id it is always done.
        Raises StillBusy when the first one takes too long.
        """
        if event_id is None:
            return work()
        key = (to, event_id)
        end = self._clock.monotonic() + PATIENCE
        while True:
            with self._lock:
                self._forget()
                if key in self._answers:
                    return cast("T", self._answers[key][1])
                first = self._running.get(key)
                if first is None:
                    mine = self._running[key] = self._clock.event()
                    break
            if not self._clock.wait(first, max(0.0, end - self._clock.monotonic())):
                raise StillBusy("the same event is still being worked on; try again")
        try:
            answer = work()
            with self._lock:
                self._answers[key] = (self._clock.monotonic() + KEPT, answer)
        finally:
            with self._lock:
                del self._running[key]
            mine.set()
        return answer

    def _forget(self) -> None:
        now = self._clock.monotonic()
        while self._answers:
            until, _ = next(iter(self._answers.values()))
            if until > now and len(self._answers) < MOST:
                return
            self._answers.popitem(last=False)
