# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Notes once a minute how the pool is doing. Every server tries to; the database decides whose row it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from contextlib import suppress
from datetime import datetime

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from mozpool.db import devices, samples
from mozpool.db.engine import Database
from mozpool.db.samples import Sample
from mozpool.lifeguard.devicemachine import category


def take(database: Database, now: datetime, away: Collection[int]) -> None:
    """Write the row of this minute unless somebody has. ``away``: ids of servers. Raises DatabaseAway."""
    minute = samples.minute_of(now)
    with database.read() as conn:
        if samples.has(conn, minute):
            return
        sample = look(conn, minute, away)
    with suppress(IntegrityError):  # another server was first
        database.run(lambda conn: samples.add(conn, sample), repeatable=True)


def look(conn: Connection, minute: int, away: Collection[int]) -> Sample:
    """The pool as it is, and what happened in the minute before."""
    counts: Counter[str] = Counter()
    lost = 0
    for group in devices.groups(conn):
        counts[category(group.state, group.claimed)] += group.number
        lost += group.number if group.owner_id in away else 0
    before = samples.happened(conn, minute - 1)
    return Sample(
        minute=minute,
        in_use=counts["in use"],
        idle=counts["idle"],
        processing=counts["processing"],
        failed=counts["failed"],
        out_of_service=counts["out of service"],
        away=lost,
        waiting=samples.waiting(conn),
        ready=len(before.took),
        ready_median=before.median,
        ready_worst=before.worst,
        failures=before.failures,
    )
