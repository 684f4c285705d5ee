# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Teams: how many devices their people may have at a time, for how long, and of which environments."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, bindparam, delete, func, insert, select, update

from mozpool.db.spelling import exactly
from mozpool.db.tables import device_requests, requests, sessions, teams


@dataclass(frozen=True)
class Team:
    """Whose quota counts, and what it is."""

    id: int
    name: str
    max_devices: int | None = None
    max_duration: int | None = None
    """Seconds from when a request was made until it expires, renewals included."""
    environments: tuple[str, ...] | None = None
    """Those that it may use; None: all."""
    groups: tuple[str, ...] = ()
    """The groups of the OpenID provider whose people are in it."""


COLUMNS = (
    teams.c.id,
    teams.c.name,
    teams.c.max_devices,
    teams.c.max_duration,
    teams.c.environments,
    teams.c.groups,
)


def team_of(row: Any) -> Team:
    """The team of a row of ``COLUMNS``."""
    environments = None if row[4] is None else tuple(json.loads(row[4]))
    return Team(row[0], row[1], row[2], row[3], environments, tuple(json.loads(row[5] or "[]")))


_GET = select(*COLUMNS).where(teams.c.id == bindparam("team"))


def get(conn: Connection, team_id: int) -> Team | None:
    """The team with this id, or None."""
    row = conn.execute(_GET, {"team": team_id}).first()
    return None if row is None else team_of(row)


def by_name(conn: Connection, name: str) -> Team | None:
    """The team of exactly this name, or None."""
    row = conn.execute(select(*COLUMNS).where(exactly(teams.c.name, name))).first()
    return None if row is None else team_of(row)


def find(conn: Connection) -> list[Team]:
    """All teams, sorted by name."""
    return sorted((team_of(row) for row in conn.execute(select(*COLUMNS))), key=lambda team: team.name)


def values(**given: Any) -> dict[str, Any]:
    """The columns of what :class:`Team` has under these names."""
    lists = {key: None if value is None else json.dumps(list(value)) for key, value in given.items() if key in LISTS}
    return {**given, **lists}


LISTS = ("environments", "groups")


def add(conn: Connection, columns: Mapping[str, Any]) -> int:
    """Store a team and answer its id. Raises sqlalchemy's IntegrityError when there is one of that name."""
    key = conn.execute(insert(teams), dict(columns)).inserted_primary_key
    assert key is not None
    return int(key[0])


def change(conn: Connection, team_id: int, columns: Mapping[str, Any]) -> None:
    """Write columns of a team."""
    conn.execute(update(teams).where(teams.c.id == team_id).values(dict(columns)))


def remove(conn: Connection, team_id: int) -> None:
    """Delete a team."""
    conn.execute(delete(teams).where(teams.c.id == team_id))


def signed_on(conn: Connection, team_id: int, now: datetime) -> int:
    """How many people of a team are signed on in a browser."""
    query = select(func.count()).where(sessions.c.team_id == team_id, sessions.c.expires > now)
    return int(conn.scalar(query) or 0)


# Quotas

_HELD = (
    select(func.count())
    .select_from(device_requests.join(requests, requests.c.id == device_requests.c.request_id))
    .where(requests.c.team_id == bindparam("team"))
)


def held(conn: Connection, team_id: int) -> int:
    """How many devices the requests of a team have now."""
    return int(conn.scalar(_HELD, {"team": team_id}) or 0)


def held_by_all(conn: Connection) -> dict[int, int]:
    """Team id → how many devices its requests have, for teams that have any."""
    query = (
        select(requests.c.team_id, func.count())
        .select_from(device_requests.join(requests, requests.c.id == device_requests.c.request_id))
        .where(requests.c.team_id.is_not(None))
        .group_by(requests.c.team_id)
    )
    return {row[0]: row[1] for row in conn.execute(query)}


_TAKE_TURN = (
    update(teams).where(teams.c.id == bindparam("team"), teams.c.max_devices.is_not(None)).values(turn=teams.c.turn + 1)
)
_MOST = select(teams.c.max_devices).where(teams.c.id == bindparam("team"))


def has_room(conn: Connection, team_id: int) -> bool:
    """Whether a request of the team may claim one more device, in the transaction that claims it.

    The team's claims take turns, on all servers and all nodes of a cluster, by writing its row: no two of them count
    the same devices. A team that was deleted may have none.
    """
    limited = conn.execute(_TAKE_TURN, {"team": team_id}).rowcount == 1
    row = conn.execute(_MOST, {"team": team_id}).first()
    if row is None:
        return False
    return row[0] is None or (limited and held(conn, team_id) < row[0])
