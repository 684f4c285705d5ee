# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""How often one caller may call."""

from __future__ import annotations

import threading

from apiflask import APIFlask
from flask import request

from mozpool.access.addresses import caller
from mozpool.access.principal import Kind, principal
from mozpool.clock import Clock
from mozpool.errors import TooManyCalls

MOST_KEYS = 100_000
"""Callers that are remembered at a time, so that many addresses do not take all memory."""

UNLIMITED = frozenset(
    {
        "bmm.bootconfig",
        "files.image",
        "files.ipxe_script",
        "files.script",
        "lifeguard.device_event",
        "monitoring.health",
        "monitoring.ready",
        "mozpool.request_event",
        "scraped.metrics",
        "static",
    }
)
"""Endpoints whose calls do not count: what boards and monitors ask for, events of servers, files."""


class Rates:
    """Lets each key go on so many times a minute, evenly, with some at once.

    For each key one number is kept: the time at which all that it took will have been earned (the "generic cell rate
    algorithm" of ITU-T I.371, with time in seconds). It is used here rather than the library ``limits``, which counts
    in the system's time, steps of it included, and starts a thread for every burst of calls.
    """

    def __init__(self, clock: Clock, per_minute: int) -> None:
        """``per_minute``: how many times a key may go on in a minute; 0: always."""
        self._clock = clock
        self._each = 60 / per_minute if per_minute else 0.0
        self._ahead = self._each * max(1, per_minute // 5)
        self._lock = threading.Lock()
        self._earned: dict[str, float] = {}

    def take(self, key: str) -> float | None:
        """None: go on. Else how many seconds it takes until this key may; nothing was taken."""
        if not self._each:
            return None
        now = self._clock.monotonic()
        with self._lock:
            earned = max(now, self._earned.get(key, now)) + self._each
            too_early = earned - now - self._ahead
            if too_early > 1e-9:  # seconds; less is rounding
                return too_early
            if key not in self._earned and len(self._earned) >= MOST_KEYS:
                self._forget(now)
            self._earned[key] = earned
            return None

    def _forget(self, now: float) -> None:
        """Forget who may do as a newcomer may; when nobody may, everybody, since a limit must not become a leak."""
        self._earned = {key: earned for key, earned in self._earned.items() if earned > now}
        if len(self._earned) >= MOST_KEYS:
            self._earned = {}


def register(app: APIFlask, rates: Rates, gated: bool) -> None:
    """Refuse calls of addresses that call more often than ``rates`` lets them.

    Where there is a gate behind it, calls with credentials are left to :func:`register_tokens`: many that share an
    address have a token each.
    """

    @app.before_request
    def count() -> None:
        if request.endpoint not in UNLIMITED and not (gated and _credentials()):
            _count(rates)


def register_tokens(app: APIFlask, rates: Rates) -> None:
    """Refuse calls by tokens that are used more often than ``rates`` lets them, wherever from; comes behind the gate.

    Credentials that are no good do not come this far: :mod:`mozpool.access.brake` slows down who sends them. Calls that
    imaging servers pass on to each other are their makers'.
    """

    @app.before_request
    def count_token() -> None:
        if request.endpoint not in UNLIMITED and _credentials() and principal().kind is not Kind.SERVER:
            _count(rates)


def _credentials() -> bool:
    return "Authorization" in request.headers


def _count(rates: Rates) -> None:
    """Count the current call for the token by which it comes, or for its address. Raises TooManyCalls."""
    who = principal()
    key = name = caller(request.remote_addr or "")
    if who.credential is not None:
        key, name = f"token {who.credential}", f"{who.name}, by token {who.credential},"
    seconds = rates.take(key)
    if seconds is not None:
        raise TooManyCalls(f"{name} calls too often: try again in {seconds:.1f} s", seconds)
