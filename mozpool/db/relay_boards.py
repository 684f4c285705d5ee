# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Relay boards: what many devices' power hangs on."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, select, update

from mozpool.db.tables import imaging_servers, relay_boards

DEFAULT_PORT = 2101


@dataclass(frozen=True)
class RelayBoard:
    """A relay board."""

    id: int
    name: str
    fqdn: str
    """Host name, with a port where that is not 2101."""
    imaging_server: str
    state: str
    """``ok``, ``suspect`` or ``failed``."""

    @property
    def lane(self) -> str:
        """The lane that its operations run in."""
        host, _, port = self.fqdn.rpartition(":")
        return f"relay:{self.fqdn}" if host and port.isdigit() else f"relay:{self.fqdn}:{DEFAULT_PORT}"


_SELECT = select(
    relay_boards.c.id, relay_boards.c.name, relay_boards.c.fqdn, imaging_servers.c.fqdn, relay_boards.c.state
).join(imaging_servers, imaging_servers.c.id == relay_boards.c.imaging_server_id)


def find(conn: Connection) -> list[RelayBoard]:
    """All relay boards, sorted by name."""
    return [RelayBoard(*row) for row in conn.execute(_SELECT.order_by(relay_boards.c.name))]


def by_name(conn: Connection, name: str) -> RelayBoard | None:
    """The relay board of this name, or None."""
    row = conn.execute(_SELECT.where(relay_boards.c.name == name)).first()
    return None if row is None else RelayBoard(*row)


def set_state_by_lane(conn: Connection, lane: str, state: str) -> None:
    """Note what is known of the board behind a lane (``relay:HOST:PORT``); nothing when there is none."""
    address = lane.removeprefix("relay:")
    host, _, port = address.rpartition(":")
    names = [address, host] if port == str(DEFAULT_PORT) else [address]
    conn.execute(update(relay_boards).where(relay_boards.c.fqdn.in_(names)).values(state=state))
