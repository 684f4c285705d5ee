# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Slows down who tries credentials out: after some that are no good, an address has to wait between two attempts.

Credentials that were good a while ago are let through, so that a machine with an old token does not lock out the others
that share its address.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict

from mozpool.access.addresses import caller
from mozpool.clock import Clock
from mozpool.errors import TooManyCalls

BURST = 20
"""Bad attempts that an address may make at once."""

PAUSE = 3.0
"""Seconds in which it regains one."""

KEPT = 10_000
"""Addresses, and good credentials, that are remembered."""


class Brake:
    """Of one server. Its methods may be called from any thread."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._full: OrderedDict[str, float] = OrderedDict()
        """Address → when it has all its attempts again, on the monotonic clock."""
        self._good: OrderedDict[bytes, None] = OrderedDict()
        """Digests of credentials that were good lately."""

    def check(self, address: str, credentials: str) -> None:
        """Raise TooManyCalls when credentials from this address are not to be looked at now."""
        with self._lock:
            left = self._full.get(caller(address), 0.0) - self._clock.monotonic() - (BURST - 1) * PAUSE
            if left > 0 and _digest(credentials) not in self._good:
                raise TooManyCalls(f"too many bad credentials came from {address}: wait {left:.0f} s", left)

    def failed(self, address: str, credentials: str) -> None:
        """Credentials from this address were no good. Nobody has to wait for more than all attempts to come back."""
        now, network = self._clock.monotonic(), caller(address)
        with self._lock:
            self._good.pop(_digest(credentials), None)
            self._full[network] = min(max(self._full.pop(network, now), now) + PAUSE, now + BURST * PAUSE)
            while len(self._full) > KEPT:
                self._full.popitem(last=False)

    def passed(self, credentials: str) -> None:
        """These were good."""
        digest = _digest(credentials)
        with self._lock:
            self._good[digest] = None
            self._good.move_to_end(digest)
            while len(self._good) > KEPT:
                self._good.popitem(last=False)


def _digest(credentials: str) -> bytes:
    return hashlib.sha256(credentials.encode("utf-8", "surrogateescape")).digest()
