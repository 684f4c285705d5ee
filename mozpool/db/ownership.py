# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Which server acts on devices and requests, when that is not the one they belong to.

``owner_id`` names the server that acts on a row; null is the imaging server that the row belongs to. Each change of
owner raises ``epoch``, and notes in ``came_from_id`` whom the row came from, until its new owner has begun to act.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, TypeVar

from sqlalchemy import Connection, Table, bindparam, case, func, literal, null, select, tuple_, union_all, update
from sqlalchemy.sql.elements import ColumnElement

from mozpool.db.devices import owner_column as device_owner
from mozpool.db.requests import END_STATES
from mozpool.db.requests import owner_column as request_owner
from mozpool.db.tables import devices, requests, server_presence

T = TypeVar("T")

IDS_AT_ONCE = 500
"""How many ids one statement names."""

Kind = Literal["device", "request"]

KINDS: dict[Kind, tuple[Table, ColumnElement[int], list[ColumnElement[bool]]]] = {
    "device": (devices, device_owner, []),
    "request": (requests, request_owner, [requests.c.state.not_in(END_STATES)]),
}
"""The table, who owns a row of it, and which rows need an owner at all."""


@dataclass(frozen=True)
class Owned:
    """A row that a server acts on."""

    kind: Kind
    id: int
    home_id: int
    """The server that it belongs to."""
    together: str
    """Equal for rows that had best have the same owner: devices on one relay board."""


@dataclass(frozen=True)
class Guest:
    """A row that a server acts on and that belongs to another."""

    kind: Kind
    id: int
    home_id: int
    state: str
    version: int


def of_server(conn: Connection, server_id: int) -> list[Owned]:
    """What a server acts on: its devices, and its open requests."""
    found = []
    columns = (devices.c.id, devices.c.imaging_server_id, devices.c.relay_info)
    for row in conn.execute(select(*columns).where(device_owner == server_id)):
        board = (row[2] or "").partition(":bank")[0].lower()
        found.append(Owned("device", row[0], row[1], board or f"device {row[0]}"))
    _, owner, is_open = KINDS["request"]
    opened = select(requests.c.id, requests.c.imaging_server_id).where(owner == server_id, *is_open)
    found += [Owned("request", row_id, home_id, f"request {row_id}") for row_id, home_id in conn.execute(opened)]
    return found


def spread(conn: Connection) -> dict[tuple[int, int], int]:
    """(server that devices belong to, server that acts on them) → how many devices."""
    pair = (devices.c.imaging_server_id, device_owner.label("owner"))
    return {(row[0], row[1]): row[2] for row in conn.execute(select(*pair, func.count()).group_by(*pair))}


def take(conn: Connection, rows: Sequence[Owned], *, lost_id: int, beat: int, to: int) -> int | None:
    """Let server ``to`` act on rows of a server that has given no sign of life since ``beat``.

    Answers how many there were: others may have taken some. None when the server has given a sign meanwhile, and
    nothing is taken. Its row is written here too, so that of this transaction and its next sign of life one comes
    first, on a cluster's different nodes as well: it acts on nothing before it has seen what was taken.
    """
    silent = (server_presence.c.imaging_server_id == lost_id) & (server_presence.c.beat == beat)
    noted = conn.execute(update(server_presence).where(silent).values(losses=server_presence.c.losses + 1))
    if noted.rowcount != 1:
        return None
    taken = 0
    for kind, (table, owner, needs_owner) in KINDS.items():
        for some in _chunks([row.id for row in rows if row.kind == kind]):
            taken += conn.execute(
                update(table)
                .where(table.c.id.in_(some), owner == lost_id, *needs_owner)
                .values(
                    owner_id=case((table.c.imaging_server_id == to, null()), else_=literal(to)),
                    came_from_id=lost_id,
                    epoch=table.c.epoch + 1,
                    version=table.c.version + 1,
                )
            ).rowcount
    return taken


_ARRIVED = union_all(
    *(
        select(literal(kind).label("kind"), table.c.id).where(
            table.c.came_from_id.is_not(None), owner == bindparam("server"), *needs_owner
        )
        for kind, (table, owner, needs_owner) in KINDS.items()
    )
).order_by("kind", "id")


def arrived(conn: Connection, server_id: int) -> list[tuple[Kind, int]]:
    """(kind, id) of the rows that came to a server and that it has not begun to act on."""
    return [(row[0], row[1]) for row in conn.execute(_ARRIVED, {"server": server_id})]


_GUESTS = union_all(
    *(
        select(
            literal(kind).label("kind"), table.c.id, table.c.imaging_server_id, table.c.state, table.c.version
        ).where(table.c.owner_id == bindparam("server"), table.c.came_from_id.is_(None), *needs_owner)
        for kind, (table, _, needs_owner) in KINDS.items()
    )
).order_by("kind", "id")


def guests(conn: Connection, server_id: int) -> list[Guest]:
    """What a server acts on and what belongs to another."""
    return [Guest(*row) for row in conn.execute(_GUESTS, {"server": server_id})]


def give_back(conn: Connection, some: Sequence[Guest], server_id: int) -> int:
    """Let the servers that rows belong to act on them again, and answer how many: not those written since."""
    given = 0
    for kind, (table, _, _) in KINDS.items():
        for chunk in _chunks([guest for guest in some if guest.kind == kind]):
            unchanged = tuple_(table.c.id, table.c.version).in_([(guest.id, guest.version) for guest in chunk])
            given += conn.execute(
                update(table)
                .where(table.c.owner_id == server_id, unchanged)
                .values(owner_id=None, came_from_id=server_id, epoch=table.c.epoch + 1, version=table.c.version + 1)
            ).rowcount
    return given


def expired_of(conn: Connection, server_ids: Sequence[int], now: datetime) -> list[int]:
    """Ids of the open requests of some servers whose time is over."""
    _, owner, is_open = KINDS["request"]
    query = select(requests.c.id).where(owner.in_(server_ids), requests.c.expires <= now, *is_open)
    return list(conn.scalars(query.order_by(requests.c.id)))


def _chunks(items: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), IDS_AT_ONCE):
        yield items[start : start + IDS_AT_ONCE]
