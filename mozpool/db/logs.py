# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The logs of devices and requests: free text for people, written in batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Table, insert, select

from mozpool.db.tables import device_logs, request_logs

_KEYS = {device_logs.name: device_logs.c.device_id, request_logs.name: request_logs.c.request_id}
_SOURCE_LENGTH = 32
_MESSAGE_LENGTH = 16_000


@dataclass(frozen=True)
class LogLine:
    """A line of a log."""

    id: int
    ts: datetime
    source: str
    message: str


def add_many(conn: Connection, table: Table, lines: Sequence[tuple[int, datetime, str, str]]) -> None:
    """Write lines of (row id, time, source, message) in one statement; too long ones are cut."""
    key = _KEYS[table.name].name
    rows: list[dict[str, Any]] = [
        {key: row_id, "ts": ts, "source": source[:_SOURCE_LENGTH], "message": message[:_MESSAGE_LENGTH]}
        for row_id, ts, source, message in lines
    ]
    if rows:
        conn.execute(insert(table), rows)


def latest(
    conn: Connection, table: Table, row_id: int, *, limit: int | None = 100, since: datetime | None = None
) -> list[LogLine]:
    """The newest ``limit`` lines of one device or request, oldest first; only those from ``since`` on."""
    query = (
        select(table.c.id, table.c.ts, table.c.source, table.c.message)
        .where(_KEYS[table.name] == row_id)
        .order_by(table.c.id.desc())
    )
    if since is not None:
        query = query.where(table.c.ts >= since)
    if limit is not None:
        query = query.limit(limit)
    return [LogLine(*row) for row in conn.execute(query)][::-1]
