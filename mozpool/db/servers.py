# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The imaging servers of the pool, and the sign of life that each one gives."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, bindparam, func, insert, select, update

from mozpool.db.devices import owner_column as device_owner
from mozpool.db.requests import END_STATES
from mozpool.db.requests import owner_column as request_owner
from mozpool.db.tables import imaging_servers, requests, server_presence


@dataclass(frozen=True)
class Presence:
    """What a server last said of itself."""

    imaging_server_id: int
    beat: int
    """Goes up with every sign of life: whoever watches it needs no clock in common with the server."""
    stopped: bool
    """It was stopped in good order."""
    version: str
    started: datetime
    """By its own clock, as ``seen``."""
    seen: datetime
    workers: int
    """How many operations on hardware it can do at a time."""
    busy: int
    """How many of these it was doing."""
    group: str | None = None
    """The group whose servers take over from one another; None: nobody takes over from this one."""
    takeover_after: float | None = None
    """After how many seconds of silence they do."""


@dataclass(frozen=True)
class Sign:
    """What watching a server needs of its last sign of life."""

    beat: int
    """0: it has not run yet."""
    stopped: bool
    group: str | None
    takeover_after: float | None
    seen: datetime | None = None
    """By its own clock."""


@dataclass(frozen=True)
class Server:
    """An imaging server and what it acts on."""

    id: int
    fqdn: str
    presence: Presence | None
    """None: it has not run yet."""
    devices: int
    open_requests: int


_COLUMNS = (
    server_presence.c.imaging_server_id,
    server_presence.c.beat,
    server_presence.c.stopped,
    server_presence.c.version,
    server_presence.c.started,
    server_presence.c.seen,
    server_presence.c.workers,
    server_presence.c.busy,
    server_presence.c.group_name,
    server_presence.c.takeover_after,
)


_SAY = (
    update(server_presence)
    .where(server_presence.c.imaging_server_id == bindparam("mine"))
    .values({column.name: bindparam(f"v_{column.name}") for column in _COLUMNS[1:]})
)
_SAY_AGAIN = _SAY.where(
    server_presence.c.started == bindparam("of"),
    server_presence.c.beat.between(bindparam("first"), bindparam("last")),
)


def say_here(conn: Connection, said: Presence, before: Presence | None = None) -> bool:
    """Write a server's sign of life in place of its last one, ``before``; None is whatever there is.

    False when there is another one: another process runs as the same server. It may be done twice.
    """
    values = {
        "beat": said.beat,
        "stopped": int(said.stopped),
        "version": said.version,
        "started": said.started,
        "seen": said.seen,
        "workers": said.workers,
        "busy": said.busy,
        "group_name": said.group,
        "takeover_after": said.takeover_after,
    }
    row = {"mine": said.imaging_server_id, **{f"v_{name}": value for name, value in values.items()}}
    if before is not None:
        # Any of those since: one may have been written without an answer.
        since = {"of": said.started, "first": before.beat, "last": said.beat}
        return conn.execute(_SAY_AGAIN, {**row, **since}).rowcount == 1
    if conn.execute(_SAY, row).rowcount == 0:
        conn.execute(insert(server_presence).values(imaging_server_id=said.imaging_server_id, **values))
    return True


def last_beat(conn: Connection, imaging_server_id: int) -> int:
    """The last beat of a server, 0 when it has not run yet."""
    mine = server_presence.c.imaging_server_id == imaging_server_id
    return int(conn.scalar(select(server_presence.c.beat).where(mine)) or 0)


_SIGNS = select(
    imaging_servers.c.id,
    server_presence.c.beat,
    server_presence.c.stopped,
    server_presence.c.group_name,
    server_presence.c.takeover_after,
    server_presence.c.seen,
).outerjoin(server_presence, server_presence.c.imaging_server_id == imaging_servers.c.id)


def signs(conn: Connection) -> dict[int, Sign]:
    """Server id → its last sign of life, for all servers."""
    return {row[0]: Sign(int(row[1] or 0), bool(row[2]), *row[3:]) for row in conn.execute(_SIGNS)}


def find(conn: Connection) -> list[Server]:
    """All servers, sorted by name."""
    has = select(device_owner, func.count()).group_by(device_owner)
    serves = select(request_owner, func.count()).group_by(request_owner)
    serves = serves.where(requests.c.state.not_in(END_STATES))
    owned = {row[0]: row[1] for row in conn.execute(has)}
    served = {row[0]: row[1] for row in conn.execute(serves)}
    said = {row[0]: _presence(tuple(row)) for row in conn.execute(select(*_COLUMNS))}
    query = select(imaging_servers.c.id, imaging_servers.c.fqdn).order_by(imaging_servers.c.fqdn)
    return [
        Server(row[0], row[1], said.get(row[0]), owned.get(row[0], 0), served.get(row[0], 0))
        for row in conn.execute(query)
    ]


def _presence(
    row: tuple[int, int, int, str, datetime, datetime, int, int, str | None, float | None],
) -> Presence:
    return Presence(row[0], row[1], bool(row[2]), *row[3:])
