# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The history of states: one row a change, written in the transition's own transaction."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from sqlalchemy import Connection, Select, Table, bindparam, func, insert, select

from mozpool.db.tables import device_history, request_history

_INSERTS = {table.name: insert(table) for table in (device_history, request_history)}
_KEYS = {device_history.name: device_history.c.device_id, request_history.name: request_history.c.request_id}

ENTERED = "entered"
"""The event of all but the first of the changes that one transition makes."""

GIVEN_UP_LIKE = "% failed % times"
"""What :func:`given_up` gives, and little else."""


def given_up(step: str, times: int) -> str:
    """The detail of a change that comes about because all tries of ``step`` are used up."""
    return f"{step} failed {times} times"


def is_given_up(detail: str | None) -> bool:
    """Whether the detail of a change is one of :func:`given_up`."""
    return re.fullmatch(r"\w+ failed \d+ times", detail or "", re.ASCII) is not None


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
    id: int


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
    device: str | None = None,
) -> None:
    """Write one row for every state of ``path`` that differs from the one before it; ``device`` is a device's name."""
    rows: list[dict[str, Any]] = []
    before = source
    names = {"device": device} if table is device_history else {}
    for state in path:
        if state != before:
            rows.append(
                {
                    _KEYS[table.name].name: row_id,
                    "ts": now,
                    "from_state": before,
                    "to_state": state,
                    "event": event[:64] if not rows else ENTERED,
                    "version": version,
                    "claim_id": claim_id,
                    "token": token,
                    "detail": detail[:255] if detail else None,
                    **names,
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
    query = _changes(table).where(_KEYS[table.name] == row_id)
    # As the index has them.
    query = query.order_by(table.c.version.desc(), table.c.id.desc()).limit(limit)
    return [StateChange(*row) for row in conn.execute(query)][::-1]


def of_claims(conn: Connection, devices: Mapping[int, int], limit: int) -> list[StateChange]:
    """The newest ``limit`` changes of devices while they were claimed, oldest first; ``devices``: claim id → device."""
    query = _changes(device_history).where(
        device_history.c.device_id.in_(set(devices.values())), device_history.c.claim_id.in_(devices)
    )
    query = query.order_by(device_history.c.id.desc()).limit(limit)
    return [StateChange(*row) for row in conn.execute(query)][::-1]


def _changes(table: Table) -> Select[Any]:
    names = ("ts", "from_state", "to_state", "event", "version", "claim_id", "detail", "id")
    return select(*(table.c[name] for name in names))


def failures_by_day(conn: Connection, device_id: int, since: datetime) -> dict[date, dict[str, int]]:
    """Day (UTC) → failed state → how often a device got into it, for the days on which it did."""
    day = func.date(device_history.c.ts)
    query = (
        select(day, device_history.c.to_state, func.count())
        .where(
            device_history.c.device_id == device_id,
            device_history.c.ts >= since,
            device_history.c.to_state.startswith("failed_", autoescape=True),
        )
        .group_by(day, device_history.c.to_state)
        .order_by(day, device_history.c.to_state)
    )
    found: dict[date, dict[str, int]] = {}
    for text, state, count in conn.execute(query):
        found.setdefault(date.fromisoformat(str(text)), {})[state] = count
    return found
