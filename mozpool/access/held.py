# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""By which claim a user acts on a device: what they do to it is done only as long as they hold it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

from flask import g
from sqlalchemy import Connection

from mozpool.clock import Clock
from mozpool.db import claims
from mozpool.db.engine import Database
from mozpool.errors import DatabaseAway, Forbidden

LOOK = 1.0
"""Seconds between two looks at the claim while something is being done to its device."""


@dataclass(frozen=True)
class Held:
    """A device that the caller holds."""

    claim_id: int
    request_id: int

    def check(self, claim_id: int | None, device: str) -> None:
        """Raise Forbidden unless the device has this claim still."""
        if claim_id != self.claim_id:
            raise self.lost(device)

    def lost(self, device: str) -> Forbidden:
        """What the caller is told who has lost the device."""
        return Forbidden(f"your request {self.request_id} does not have device {device} any more")

    def is_on(self, conn: Connection, now: datetime) -> bool:
        """Whether the claim has neither ended nor expired, whatever server is to say so."""
        return claims.holds(conn, self.claim_id, now)


def held() -> Held | None:
    """What the current call's maker acts by; None: by their role, on any device."""
    found = g.get("held")
    assert found is None or isinstance(found, Held)
    return found


@contextmanager
def watched(found: Held, database: Database, clock: Clock, end: Callable[[], None]) -> Iterator[None]:
    """While this lasts, call ``end`` (once, from another thread) when the claim is over."""
    over = clock.event()

    def watch() -> None:
        while not clock.wait(over, LOOK):
            try:
                with database.read() as conn:
                    if found.is_on(conn, clock.now()):
                        continue
            except DatabaseAway:
                continue  # nobody else gets the device meanwhile
            if not over.is_set():
                end()
            return

    clock.start_thread(watch, f"claim {found.claim_id}")
    try:
        yield
    finally:
        over.set()
