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

PIECE = 2000
"""Lines that are read at a time."""

MOST_CHARACTERS = 16_000_000
"""Of messages that one look at a log gives, about: it ends with the piece of lines that gets beyond."""


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
    conn: Connection,
    table: Table,
    row_id: int,
    *,
    limit: int | None = 100,
    since: datetime | None = None,
    after: int | None = None,
    before: int | None = None,
) -> list[LogLine]:
    """The newest ``limit`` lines of one device or request, oldest first; fewer when their messages are very long.

    Only those from ``since`` on, and with an id greater than ``after`` and smaller than ``before``.
    """
    lines: list[LogLine] = []
    characters = 0
    while characters < MOST_CHARACTERS:
        wanted = PIECE if limit is None else min(PIECE, limit - len(lines))
        piece = _newest(conn, table, row_id, limit=wanted, since=since, after=after, before=before)
        lines += piece
        if len(piece) < wanted or len(lines) == limit:
            break
        characters += sum(len(line.message) for line in piece)
        before = piece[-1].id
    return lines[::-1]


def _newest(
    conn: Connection,
    table: Table,
    row_id: int,
    *,
    limit: int,
    since: datetime | None,
    after: int | None,
    before: int | None,
) -> list[LogLine]:
    """As :func:`latest`, newest first."""
    page = (
        select(table.c.id, table.c.ts)
        .where(_KEYS[table.name] == row_id)
        .order_by(table.c.id.desc())
        .with_hint(table, f"FORCE INDEX (ix_{table.name}_page)", "mysql")
    )
    if since is not None:
        page = page.where(table.c.ts >= since)
    if after is not None:
        page = page.where(table.c.id > after)
    if before is not None:
        page = page.where(table.c.id < before)
    found = page.limit(limit).subquery()
    # The index alone tells which lines these are: what MySQL guesses of other ways may be to read a million of them.
    query = (
        select(table.c.id, table.c.ts, table.c.source, table.c.message)
        .join_from(found, table, (table.c.id == found.c.id) & (table.c.ts == found.c.ts))
        .order_by(table.c.id.desc())
    )
    return [LogLine(*row) for row in conn.execute(query)]
