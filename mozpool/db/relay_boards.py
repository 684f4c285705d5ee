# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Relay boards and other power switches: what many devices' power hangs on.

A row either comes from the inventory, for a relay board, and has no ``lane``; or the server added it when it first had
to say something of a switch that has none, and then ``lane`` is its key. Rows with a lane belong to the server: what
brings the inventory into the database leaves them alone.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, func, insert, or_, select, update

from mozpool.db import devices
from mozpool.db.devices import Device
from mozpool.db.spelling import exactly
from mozpool.db.tables import devices as devices_table
from mozpool.db.tables import imaging_servers, relay_board_history, relay_boards

DEFAULT_PORT = 2101

_NAME_LENGTH = 32
_LANE_LENGTH = 190
_FQDN_LENGTH = 255
_REASON_LENGTH = 190

OK, SUSPECT, FAILED = "ok", "suspect", "failed"
"""The states of a switch."""

_RELAY_LANE = "relay"
"""The first part of the lanes of relay boards."""


@dataclass(frozen=True)
class RelayBoard:
    """A relay board, or another power switch."""

    id: int
    name: str
    fqdn: str
    """Host name, with a port where that is not 2101; of another switch, whatever tells it from the others."""
    imaging_server: str
    state: str
    """``ok``, ``suspect`` or ``failed``."""
    own_lane: str | None = None
    since: datetime | None = None
    """When it got into this state; None when it has always been in it."""
    reason: str | None = None
    """Why it is not ``ok``."""

    @property
    def lane(self) -> str:
        """The lane that its operations run in."""
        if self.own_lane is not None:
            return self.own_lane
        address = self.fqdn.lower()
        host, _, port = address.rpartition(":")
        return f"{_RELAY_LANE}:{address}" if host and port.isdigit() else f"{_RELAY_LANE}:{address}:{DEFAULT_PORT}"

    @property
    def backend(self) -> str:
        """The name of the power backend that switches it."""
        kind = self.lane.partition(":")[0]
        return "proxr" if kind == _RELAY_LANE else kind


_SELECT = select(
    relay_boards.c.id,
    relay_boards.c.name,
    relay_boards.c.fqdn,
    imaging_servers.c.fqdn,
    relay_boards.c.state,
    relay_boards.c.lane,
    relay_boards.c.state_since,
    relay_boards.c.reason,
).join(imaging_servers, imaging_servers.c.id == relay_boards.c.imaging_server_id)


def find(conn: Connection) -> list[RelayBoard]:
    """All relay boards and other switches, sorted by name."""
    return [RelayBoard(*row) for row in conn.execute(_SELECT.order_by(relay_boards.c.name))]


def by_name(conn: Connection, name: str) -> RelayBoard | None:
    """The relay board or other switch of this name, or None."""
    row = conn.execute(_SELECT.where(exactly(relay_boards.c.name, name))).first()
    return None if row is None else RelayBoard(*row)


def by_lane(conn: Connection, lane: str) -> RelayBoard | None:
    """The relay board or other switch behind a lane, or None."""
    row = conn.execute(_SELECT.where(_behind(lane)).order_by(relay_boards.c.id)).first()
    return None if row is None else RelayBoard(*row)


def set_state_by_lane(
    conn: Connection, lane: str, state: str, reason: str | None, now: datetime, imaging_server_id: int
) -> bool:
    """Note what is known of the switch behind a lane; answer whether that is another state than before.

    A lane that no row stands for gets one, which is this imaging server's; one that is too long for its column is let
    go. Raises IntegrityError when another server has just added the same row: it is there on the next call.
    """
    mine = _behind(lane)
    # Writing first holds off whoever wants to note something at the same time.
    if conn.execute(update(relay_boards).where(mine).values(reason=reason)).rowcount:
        columns = relay_boards.c.id, relay_boards.c.name, relay_boards.c.state
        changed = conn.execute(select(*columns).where(mine, relay_boards.c.state != state)).all()
        for board_id, name, before in changed:
            here = relay_boards.c.id == board_id
            conn.execute(update(relay_boards).where(here).values(state=state, state_since=now))
            _note(conn, board_id, name, before, state, reason, now)
        return bool(changed)
    if len(lane) > _LANE_LENGTH:
        return False
    rest = lane.partition(":")[2] or lane
    names = set(conn.scalars(select(func.lower(relay_boards.c.name))))
    taken = conn.scalar(select(relay_boards.c.id).where(func.lower(relay_boards.c.fqdn) == rest.lower()))
    name = name_of(lane, names)
    key = conn.execute(
        insert(relay_boards).values(
            name=name,
            fqdn=(rest if taken is None else lane)[:_FQDN_LENGTH],
            imaging_server_id=imaging_server_id,
            state_counters="{}",
            lane=lane,
            state=state,
            state_since=now,
            reason=reason,
        )
    ).inserted_primary_key
    assert key is not None
    if state != OK:
        _note(conn, int(key[0]), name, OK, state, reason, now)
    return True


def _note(
    conn: Connection, board_id: int, name: str, before: str, state: str, reason: str | None, now: datetime
) -> None:
    """Write a change of state into the history of the boards."""
    conn.execute(
        insert(relay_board_history).values(
            relay_board_id=board_id,
            board=name,
            ts=now,
            from_state=before,
            to_state=state,
            reason=None if reason is None else reason[:_REASON_LENGTH],
        )
    )


def _behind(lane: str) -> ColumnElement[bool]:
    """Whether a row is that of the switch behind a lane."""
    own = relay_boards.c.lane == lane
    kind, _, address = lane.partition(":")
    if kind != _RELAY_LANE:
        return own
    host, _, port = address.rpartition(":")
    addresses = [address, host] if port == str(DEFAULT_PORT) else [address]
    return or_(own, relay_boards.c.lane.is_(None) & func.lower(relay_boards.c.fqdn).in_(addresses))


def name_of(lane: str, taken: Collection[str]) -> str:
    """A name for the switch behind a lane: its last part that is no number (which is a port), and none of ``taken``.

    ``taken`` are names in lower case. The name fits its column and into a path of the API.
    """
    parts = re.findall(r"\[[^\]]*\]|[^:]+", lane.partition(":")[2]) or [lane]
    last = next((part for part in reversed(parts) if not part.isdigit()), parts[-1])
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", last).strip("-.")[:_NAME_LENGTH] or "switch"
    name, number = stem, 1
    while name.lower() in taken:
        number += 1
        end = f"-{number}"
        name = stem[: _NAME_LENGTH - len(end)] + end
    return name


def on_relay(conn: Connection, bank: int, relay: int) -> list[Device]:
    """The devices that hang on this relay of any board, whichever it is: ``relay_info`` tells."""
    return devices.matching(conn, [devices_table.c.relay_info.endswith(f":bank{bank}:relay{relay}")])


def devices_named(conn: Connection, names: Collection[str]) -> list[Device]:
    """The devices with these names, sorted by id."""
    return devices.matching(conn, [devices_table.c.name.in_(names)]) if names else []
