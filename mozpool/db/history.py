# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The history of states: one row a change, written in the transition's own transaction."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Table, bindparam, insert, select

from mozpool.db.tables import device_history, request_history

_INSERTS = {table.name: insert(table) for table in (device_history, request_history)}
_KEYS = {device_history.name: device_history.c.device_id, request_history.name: request_history.c.request_id}


@dataclass(frozen=True)
class StateChange:
    """One change of state."""

    ts: datetime
    from_state: str
    to_state: str
    event: str
    version: int
    claim_id: int | None
    detail: str | None


def add(
    conn: Connection,
    table: Table,
    row_id: int,
    *,
    now: datetime,
    source: str,
    path: tuple[str, ...],
    event: str,
    version: int,
    claim_id: int | None,
    token: str | None,
    detail: str | None,
) -> None:
    """Write one row for every state of ``path`` that differs from the one before it."""
    rows: list[dict[str, Any]] = []
    before = source
    for state in path:
        if state != before:
            rows.append(
                {
                    _KEYS[table.name].name: row_id,
                    "ts": now,
                    "from_state": before,
                    "to_state": state,
                    "event": event[:64] if not rows else "entered",
                    "version": version,
                    "claim_id": claim_id,
                    "token": token,
                    "detail": detail[:255] if detail else None,
                }
            )
        before = state
    if rows:
        conn.execute(_INSERTS[table.name], rows)


def has_token(conn: Connection, table: Table, row_id: int, version: int, token: str) -> bool:
    """Whether the transition that led to ``version`` carried ``token``."""
    query = select(table.c.id).where(
        _KEYS[table.name] == bindparam("row_id"),
        table.c.version == bindparam("row_version"),
        table.c.token == bindparam("row_token"),
    )
    found = conn.execute(query.limit(1), {"row_id": row_id, "row_version": version, "row_token": token}).first()
    return found is not None


def latest(conn: Connection, table: Table, row_id: int, limit: int = 100) -> list[StateChange]:
    """The newest ``limit`` changes, oldest first."""
    query = (
        select(
            table.c.ts,
            table.c.from_state,
            table.c.to_state,
            table.c.event,
            table.c.version,
            table.c.claim_id,
            table.c.detail,
        )
        .where(_KEYS[table.name] == row_id)
        .order_by(table.c.id.desc())
        .limit(limit)
    )
    return [StateChange(*row) for row in conn.execute(query)][::-1]
