# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The page of imaging servers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from flask import Response
from sqlalchemy import Connection

from mozpool.apikit import Site, site
from mozpool.db import jobs, ownership, servers
from mozpool.db.servers import Presence
from mozpool.lifeguard.inventory.sync import JOB
from mozpool.notify import api as notify
from mozpool.web.pages.base import blueprint, live
from mozpool.web.peers import peers

UP, LOST, STOPPED, NEVER = "up", "lost", "stopped", "never started"


@dataclass(frozen=True)
class ServerRow:
    """An imaging server, and what becomes of its devices."""

    id: int
    fqdn: str
    state: str
    said: Presence | None
    open_requests: int
    own: int = 0
    """Devices that belong to it and that it acts on."""
    guests: Mapping[str, int] = field(default_factory=dict)
    """Server that devices belong to → how many of them this one acts on in its place."""
    elsewhere: Mapping[str, int] = field(default_factory=dict)
    """Server → on how many of this one's devices it acts."""
    heirs: tuple[str, ...] = ()
    """The other servers of its group that are up."""

    @property
    def group(self) -> str | None:
        """The group whose servers take over from one another."""
        return self.said.group if self.said is not None else None

    @property
    def acts_on(self) -> int:
        """How many devices it acts on."""
        return self.own + sum(self.guests.values())

    @property
    def is_missed(self) -> bool:
        """Whether it is not there, and somebody may mind: who has nothing to do may be long gone."""
        return self.state != UP and bool(self.acts_on or self.elsewhere or self.open_requests)

    def fate(self) -> list[str]:
        """What becomes of its devices, each a sentence."""
        found = [f"{name} looks after {number} of its devices." for name, number in sorted(self.elsewhere.items())]
        if self.state == UP:
            return found
        if self.acts_on:
            found.append(f"{_some(self.acts_on, 'device')} {_wait(self.acts_on)}: {self._waits_for()}.")
        if self.open_requests:
            found.append(f"{_some(self.open_requests, 'open request')} {_wait(self.open_requests)} as well.")
        return found

    def _waits_for(self) -> str:
        if self.state == NEVER:
            return "nobody hands them out before it runs"
        if self.group is None:
            return "it is in no group whose servers would take over, so they are handed out again when it is back"
        if not self.heirs:
            return f"no other server of its group {self.group} is up, so they are handed out again when one is"
        assert self.said is not None  # it has named its group
        takes = "takes over" if len(self.heirs) == 1 else "take over"
        return f"{' and '.join(self.heirs)} {takes} after {self.said.takeover_after or 0:g} s without a sign of life"


def _some(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _wait(number: int) -> str:
    return "waits" if number == 1 else "wait"


def look(conn: Connection, here: Site) -> list[ServerRow]:
    """All imaging servers, group by group; those of none come last."""
    found = servers.find(conn)
    spread = ownership.spread(conn)
    names = {server.id: server.fqdn for server in found}
    states = {server.id: _state(server, here) for server in found}
    rows = []
    for server in found:
        group = server.presence.group if server.presence is not None else None
        rows.append(
            ServerRow(
                id=server.id,
                fqdn=server.fqdn,
                state=states[server.id],
                said=server.presence,
                open_requests=server.open_requests,
                own=spread.get((server.id, server.id), 0),
                guests={names[home]: n for (home, owner), n in spread.items() if owner == server.id != home},
                elsewhere={names[owner]: n for (home, owner), n in spread.items() if home == server.id != owner},
                heirs=tuple(
                    other.fqdn
                    for other in found
                    if group is not None
                    and other.id != server.id
                    and states[other.id] == UP
                    and other.presence is not None
                    and other.presence.group == group
                ),
            )
        )
    return sorted(rows, key=lambda row: (row.group is None, row.group or "", row.fqdn))


def _state(server: servers.Server, here: Site) -> str:
    if server.presence is None:
        return NEVER
    state = here.presence.state_of(server.id)
    return LOST if state == "away" else state


@blueprint.get("/servers")
def server_page() -> Response:
    """All imaging servers, and which of them are there."""
    return live("servers", _look)


def _look() -> dict[str, Any]:
    here = site()
    with here.database.read() as conn:
        rows = look(conn, here)
        job = jobs.get(conn, JOB)
        told = notify.look(conn, here.settings.targets)
    groups = [(name, list(members)) for name, members in groupby(rows, key=lambda row: row.group)]
    return {
        "groups": groups,
        "missed": [row for row in rows if row.is_missed],
        "lacks_key": peers().lacks_key and len(rows) > 1,
        "refused": sorted(peers().refused.items()),
        "told": told,
        "inventory": job,
        "is_read": job is not None and job.is_held(here.clock.now()),
    }
