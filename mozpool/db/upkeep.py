# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Keeps the database from growing for ever: what is old goes, in small transactions.

The daemon runs it when it starts and every hour. Any number of imaging servers may do so at the same time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Column, Connection, Table, delete, exc, exists, select, text

from mozpool.clock import Clock
from mozpool.db import samples
from mozpool.db.engine import Database
from mozpool.db.requests import END_STATES
from mozpool.db.tables import (
    claim_history,
    device_history,
    device_logs,
    device_requests,
    hosted_jobs,
    outbox,
    past_requests,
    pool_samples,
    relay_board_history,
    request_history,
    request_logs,
    requests,
    sessions,
)

log = logging.getLogger("mozpool.upkeep")

KEEP_LOGS = timedelta(days=14)
"""On MySQL the procedure ``dbcron`` says so."""
KEEP_REQUESTS = timedelta(days=7)
"""Counts from when a request expires (wire facts: Syslog)."""
KEEP_HISTORY = timedelta(days=90)
"""States, claims, what reports need of requests, and the samples that charts are drawn from."""

KEEP_OUTBOX = timedelta(days=7)
"""What was told: for so long, the same event is not told twice."""

BATCH = 1000
"""Rows that one transaction deletes: others who want to write wait some milliseconds."""
PAUSE = 0.05
"""Seconds between two batches, in which those others get their turn."""

_NO_PARTITION = 1526


def run(database: Database, clock: Clock) -> None:
    """Delete what is too old: log lines, the history of states, claims and the pool, and requests that ended.

    Requests that are not at their end, or hold a device, stay, and so do the claims that are in use.
    On MySQL this is also what prepares the log tables for tomorrow. Raises DatabaseAway; what was deleted until then
    stays deleted.
    """
    now = clock.now()
    _delete_requests(database, clock, now - KEEP_REQUESTS)
    if database.dialect == "mysql":
        database.run(lambda conn: conn.execute(text("CALL dbcron()")).close(), repeatable=True)
    else:
        for table in (device_logs, request_logs):
            _delete_before(database, clock, table.c.ts, now - KEEP_LOGS)
    for column in (device_history.c.ts, request_history.c.ts, relay_board_history.c.ts, past_requests.c.ended):
        _delete_before(database, clock, column, now - KEEP_HISTORY)
    _delete_before(database, clock, hosted_jobs.c.ended, now - KEEP_HISTORY)
    _delete_before(database, clock, outbox.c.ended, now - KEEP_OUTBOX)
    _delete_before(database, clock, sessions.c.expires, now)
    _delete_before(database, clock, pool_samples.c.minute, samples.minute_of(now - KEEP_HISTORY))
    _delete_claims(database, clock, now - KEEP_HISTORY)


def prepare_logs(database: Database) -> None:
    """Give the log tables what they need to take lines of today. Raises DatabaseAway."""
    if database.dialect == "mysql":
        database.run(_call_update_log_partitions, repeatable=True)


def write_logs(database: Database, work: Callable[[Connection], None]) -> None:
    """Do ``work``, which adds log lines, in a transaction. The first ones for days may have to make room for today's.

    Raises DatabaseAway; DBAPIError when the database refuses a line.
    """
    try:
        database.run(work, repeatable=True)
    except exc.DBAPIError as error:
        if not lacks_partition(error):
            raise
        log.warning("the log tables have no partition for today: nobody has looked after them for days")
        prepare_logs(database)
        database.run(work, repeatable=True)


def lacks_partition(error: BaseException) -> bool:
    """Whether a log line was refused because nobody called :func:`run` or :func:`prepare_logs` for days."""
    original = error.orig if isinstance(error, exc.DBAPIError) else None
    return original is not None and original.args[:1] == (_NO_PARTITION,)


def _call_update_log_partitions(conn: Connection) -> None:
    for table in (device_logs, request_logs):
        call = text("CALL update_log_partitions(:name, :days, 1)")
        conn.execute(call, {"name": table.name, "days": KEEP_LOGS.days}).close()


def _delete_requests(database: Database, clock: Clock, before: datetime) -> None:
    """Requests that ended and expired before then."""
    claim = exists().where(device_requests.c.request_id == requests.c.id)
    condition = requests.c.expires < before, requests.c.state.in_(END_STATES), ~claim

    def work(conn: Connection) -> int:
        ids = conn.scalars(select(requests.c.id).where(*condition).limit(BATCH)).all()
        conn.execute(delete(requests).where(requests.c.id.in_(ids), *condition))
        return len(ids)

    while database.run(work, repeatable=True) == BATCH:
        clock.sleep(PAUSE)


def _delete_before(database: Database, clock: Clock, column: Column[Any], before: object) -> None:
    """Rows in whose ``column`` there is less."""
    table = column.table
    assert isinstance(table, Table)
    (key,) = table.primary_key.columns

    def work(conn: Connection) -> int:
        keys = conn.scalars(select(key).where(column < before).order_by(column).limit(BATCH)).all()
        conn.execute(delete(table).where(key.in_(keys)))
        return len(keys)

    while database.run(work, repeatable=True) == BATCH:
        clock.sleep(PAUSE)


def _delete_claims(database: Database, clock: Clock, before: datetime) -> None:
    """Claims that were released before then, looked for among the oldest: their ids are in the order of their times."""
    columns = claim_history.c.id, claim_history.c.claimed_at, claim_history.c.released_at
    after = 0

    def work(conn: Connection) -> int | None:
        """Delete a batch; answer the last id looked at, or None when no older claims follow."""
        batch = conn.execute(
            select(*columns).where(claim_history.c.id > after).order_by(claim_history.c.id).limit(BATCH)
        ).all()
        ids = [row.id for row in batch if row.released_at is not None and row.released_at < before]
        conn.execute(delete(claim_history).where(claim_history.c.id.in_(ids)))
        more = len(batch) == BATCH and batch[-1].claimed_at < before
        return batch[-1].id if more else None

    while (last := database.run(work, repeatable=True)) is not None:
        after = last
        clock.sleep(PAUSE)
