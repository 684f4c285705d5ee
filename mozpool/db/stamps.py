# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Whether anything has changed: a few numbers, which are cheaper to read than what they stand for."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, func, or_, select

from mozpool.db.tables import (
    devices,
    hardware_types,
    image_pxe_configs,
    images,
    imaging_servers,
    pxe_configs,
    relay_boards,
    requests,
)

_DEVICES = select(func.count(), func.sum(devices.c.version), func.max(devices.c.id))
# Not by !=, for which SQLite would look at every request that there ever was.
_OPEN = select(func.count(), func.sum(requests.c.version)).where(
    or_(requests.c.state < "closed", requests.c.state > "closed")
)
_LAST = select(func.max(requests.c.id))
_BOARDS = select(relay_boards.c.id, relay_boards.c.state, relay_boards.c.state_since, relay_boards.c.reason).order_by(
    relay_boards.c.id
)
_SERVERS = select(imaging_servers.c.id).order_by(imaging_servers.c.id)


def pool(conn: Connection) -> tuple[Any, ...]:
    """Changes with every write to a device, to an open request or to what is known of a power switch.

    Each write to a device or a request raises its ``version``, so that their sums tell.
    """
    counts = tuple(conn.execute(_DEVICES).one())
    open_ones = tuple(conn.execute(_OPEN).one())
    boards = tuple(tuple(row) for row in conn.execute(_BOARDS))
    return (*counts, *open_ones, conn.scalar(_LAST), boards)


_CATALOGUE = tuple(
    select(table).order_by(*table.primary_key.columns)
    for table in (images, hardware_types, image_pxe_configs, pxe_configs)
)


def catalogue(conn: Connection) -> tuple[Any, ...]:
    """All rows of images, hardware types and PXE configs: they are few, and have nothing that tells of a change."""
    return tuple(tuple(row) for query in _CATALOGUE for row in conn.execute(query))


def server_ids(conn: Connection) -> list[int]:
    """The ids of all imaging servers."""
    return list(conn.scalars(_SERVERS))
