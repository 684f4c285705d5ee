# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The imaging servers of the pool, and the sign of life that each one gives."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, func, insert, select, update

from mozpool.db.requests import END_STATES
from mozpool.db.tables import devices, imaging_servers, requests, server_presence


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


@dataclass(frozen=True)
class Server:
    """An imaging server and what it owns."""

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
)


def say_here(conn: Connection, said: Presence) -> None:
    """Write a server's sign of life in place of its last one."""
    values = {
        "beat": said.beat,
        "stopped": int(said.stopped),
        "version": said.version,
        "started": said.started,
        "seen": said.seen,
        "workers": said.workers,
        "busy": said.busy,
    }
    mine = server_presence.c.imaging_server_id == said.imaging_server_id
    if conn.execute(update(server_presence).where(mine).values(**values)).rowcount == 0:
        conn.execute(insert(server_presence).values(imaging_server_id=said.imaging_server_id, **values))


def last_beat(conn: Connection, imaging_server_id: int) -> int:
    """The last beat of a server, 0 when it has not run yet."""
    mine = server_presence.c.imaging_server_id == imaging_server_id
    return int(conn.scalar(select(server_presence.c.beat).where(mine)) or 0)


def beats(conn: Connection) -> dict[int, tuple[int, bool]]:
    """Server id → (beat, whether it was stopped), for all servers; beat 0 for one that has not run yet."""
    query = select(imaging_servers.c.id, server_presence.c.beat, server_presence.c.stopped).outerjoin(
        server_presence, server_presence.c.imaging_server_id == imaging_servers.c.id
    )
    return {row[0]: (int(row[1] or 0), bool(row[2])) for row in conn.execute(query)}


def find(conn: Connection) -> list[Server]:
    """All servers, sorted by name."""
    has = select(devices.c.imaging_server_id, func.count()).group_by(devices.c.imaging_server_id)
    serves = select(requests.c.imaging_server_id, func.count()).group_by(requests.c.imaging_server_id)
    serves = serves.where(requests.c.state.not_in(END_STATES))
    owned = {row[0]: row[1] for row in conn.execute(has)}
    served = {row[0]: row[1] for row in conn.execute(serves)}
    said = {row[0]: _presence(tuple(row)) for row in conn.execute(select(*_COLUMNS))}
    query = select(imaging_servers.c.id, imaging_servers.c.fqdn).order_by(imaging_servers.c.fqdn)
    return [
        Server(row[0], row[1], said.get(row[0]), owned.get(row[0], 0), served.get(row[0], 0))
        for row in conn.execute(query)
    ]


def _presence(row: tuple[int, int, int, str, datetime, datetime, int, int]) -> Presence:
    return Presence(row[0], row[1], bool(row[2]), *row[3:])
