# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Every change: who made it, from where, on what, and what came of it.

Rows are added and never changed; only a person takes old ones away (``mozpool-db expire-audit``). A server and a time
name a row: one process gives each of its rows a microsecond of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, String, and_, delete, func, insert, or_, select
from sqlalchemy.dialects import mysql

from mozpool.db.packing import loads_object
from mozpool.db.tables import audit

OK = "ok"
"""The outcome of what was done."""

REFUSED = (401, 403)
"""Statuses of calls that somebody may not make."""

OUTCOMES = (OK, "refused", "failed")
"""What can be asked for: what was done, what somebody was not allowed to do, and what came to nothing otherwise."""

LENGTHS: Mapping[str, int] = {
    column.name: column.type.length
    for column in audit.columns
    if isinstance(column.type, String) and column.type.length is not None
}
"""Characters of each text that are kept; ``details`` are kept short by whoever makes them."""


@dataclass(frozen=True)
class Entry:
    """A change, or an attempt."""

    ts: datetime
    """When it was over."""
    kind: str
    """What whoever made it is: person, token, device, server, command, job, open or nobody."""
    who: str | None
    credential: int | None
    """The id of the token."""
    address: str | None
    """From where; of a command the machine's name."""
    server: str
    action: str
    target: str | None
    """On what, such as ``device panda-0001``."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """What else was said, without secrets."""
    status: int | None = None
    """The HTTP status; None: it was no call."""
    outcome: str = OK
    """``ok``, or why not."""
    id: int = 0


@dataclass(frozen=True)
class Filter:
    """Which rows are wanted; None: all."""

    who: str | None = None
    target: str | None = None
    """One word alone also means the device or the request of this name."""
    action: str | None = None
    kind: str | None = None
    outcome: str | None = None
    """One of OUTCOMES."""
    since: datetime | None = None
    until: datetime | None = None

    def conditions(self) -> list[ColumnElement[bool]]:
        """What rows must meet."""
        found: list[ColumnElement[bool]] = []
        for column, wanted in ((audit.c.who, self.who), (audit.c.action, self.action), (audit.c.kind, self.kind)):
            if wanted is not None:
                found.append(column == wanted)
        if self.target is not None:
            names = [self.target]
            if " " not in self.target:
                names += [f"device {self.target}", f"request {self.target}"]
            found.append(audit.c.target.in_(names))
        if self.outcome is not None:
            found.append(_OUTCOMES[self.outcome])
        if self.since is not None:
            found.append(audit.c.ts >= self.since)
        if self.until is not None:
            found.append(audit.c.ts < self.until)
        return found


_COLUMNS = tuple(audit.c[name] for name in Entry.__dataclass_fields__)
_OUTCOMES: Mapping[str, ColumnElement[bool]] = {
    OK: audit.c.outcome == OK,
    "refused": audit.c.status.in_(REFUSED),
    "failed": and_(audit.c.status >= 400, audit.c.status.not_in(REFUSED)),
}
_KEEP = [column.name for column in _COLUMNS if column.name != "id"]


def _values(entry: Entry) -> dict[str, Any]:
    values: dict[str, Any] = {name: getattr(entry, name) for name in _KEEP}
    for name, length in LENGTHS.items():
        if values[name] is not None:
            values[name] = values[name][:length]
    values["details"] = json.dumps(entry.details) if entry.details else None
    return values


def add(conn: Connection, entries: Sequence[Entry]) -> None:
    """Add rows in one statement; texts that are too long are cut."""
    if entries:
        conn.execute(insert(audit), [_values(entry) for entry in entries])


_INSERT = str(insert(audit).values(dict.fromkeys(_KEEP)).compile(dialect=mysql.dialect(paramstyle="format")))


def add_at_once(conn: Connection, entries: Sequence[Entry]) -> None:
    """As :func:`add`, on MySQL with half of the work on our side: calls wait for it."""
    if conn.dialect.name == "sqlite":
        add(conn, entries)
        return
    rows = [_values(entry) for entry in entries]
    for row in rows:
        row["ts"] = row["ts"].astimezone(UTC).replace(tzinfo=None)
    conn.exec_driver_sql(_INSERT, [tuple(row[name] for name in _KEEP) for row in rows])


def known(conn: Connection, entries: Sequence[Entry]) -> set[tuple[str, datetime]]:
    """Server and time of those of the entries that are in the table."""
    if not entries:
        return set()
    servers = {entry.server[: LENGTHS["server"]] for entry in entries}
    query = select(audit.c.server, audit.c.ts).where(
        audit.c.ts.in_([entry.ts for entry in entries]), audit.c.server.in_(servers)
    )
    return {(row[0], row[1]) for row in conn.execute(query)}


def add_missing(conn: Connection, entries: Sequence[Entry]) -> None:
    """Add those of the entries that are not in the table yet; may be done any number of times."""
    there = known(conn, entries)
    add(conn, [entry for entry in entries if (entry.server[: LENGTHS["server"]], entry.ts) not in there])


def newest(conn: Connection, wanted: Filter, *, before: int | None = None, limit: int) -> list[Entry]:
    """The newest rows, the newest first; with ``before``, those that come after the row with this id."""
    conditions = wanted.conditions()
    if before is not None:
        edge = conn.scalar(select(audit.c.ts).where(audit.c.id == before))
        if edge is None:
            return []
        conditions += [audit.c.ts <= edge, or_(audit.c.ts < edge, audit.c.id < before)]
    query = select(*_COLUMNS).where(*conditions).order_by(audit.c.ts.desc(), audit.c.id.desc()).limit(limit)
    return [_entry(tuple(row)) for row in conn.execute(query)]


def _entry(row: tuple[Any, ...]) -> Entry:
    values = dict(zip(Entry.__dataclass_fields__, row, strict=True))
    values["details"] = loads_object(values["details"])
    return Entry(**values)


def last_id(conn: Connection) -> int:
    """The greatest id, 0 without rows: another one tells that there are new rows."""
    return int(conn.scalar(select(func.max(audit.c.id))) or 0)


def count_before(conn: Connection, moment: datetime) -> int:
    """How many rows are older."""
    return int(conn.scalar(select(func.count()).where(audit.c.ts < moment)) or 0)


def expire(conn: Connection, before: datetime, most: int) -> int:
    """Delete at most so many rows that are older; answer how many these were."""
    ids = conn.scalars(select(audit.c.id).where(audit.c.ts < before).order_by(audit.c.ts).limit(most)).all()
    if ids:
        conn.execute(delete(audit).where(audit.c.id.in_(ids)))
    return len(ids)
