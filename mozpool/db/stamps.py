# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Whether anything has changed: a few numbers, which are cheaper to read than what they stand for."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, case, func, literal, null, or_, select, union_all

from mozpool.db import hosted_jobs
from mozpool.db.spans import micros
from mozpool.db.tables import (
    device_requests,
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


# The list of devices

BLOCK = 128
"""Devices of a block: those whose ids have the same quotient by this."""

_BITS = BLOCK.bit_length() - 1
_block = devices.c.id.op(">>")(_BITS)
_BLOCKS = (
    select(
        _block,
        func.count(),
        # A transition raises both, any other write the first alone.
        func.sum(devices.c.version - devices.c.attempt),
        # Transitions that change the state ...
        func.sum(micros(devices.c.state_since)),
        # ... and those that do not. Those of ready devices, which are re-checked all the time, change nothing else.
        func.sum(case((devices.c.state == "ready", 0), else_=devices.c.attempt)),
        # Which devices they are: drawn when a device is added.
        func.sum(devices.c.shuffle),
    )
    .group_by(_block)
    .order_by(_block)
)
# Who has a device, its own version tells; until when, the request's.
_held_block = device_requests.c.device_id.op(">>")(_BITS)
_HELD = (
    select(_held_block, func.sum(requests.c.version))
    .join(requests, requests.c.id == device_requests.c.request_id)
    .group_by(_held_block)
)
_NAMES = union_all(
    select(literal("image"), images.c.id, images.c.name, null(), null()),
    select(
        literal("hardware"),
        hardware_types.c.id,
        hardware_types.c.type,
        hardware_types.c.model,
        hardware_types.c.backends,
    ),
    select(literal("server"), imaging_servers.c.id, imaging_servers.c.fqdn, null(), null()),
)


def names(conn: Connection) -> list[tuple[Any, ...]]:
    """What devices refer to, as far as the list of devices shows it; sorted."""
    return sorted((tuple(row) for row in conn.execute(_NAMES)), key=lambda row: row[:2])


def device_blocks(conn: Connection) -> dict[int, tuple[Any, ...]]:
    """Block of ids → what changes whenever a device of it looks different in the list of devices; sorted.

    That a ready device was looked at again, and is still ready, changes nothing. The first id of a block is its number
    times :data:`BLOCK`.
    """
    held = {row[0]: _whole(row[1]) for row in conn.execute(_HELD)}
    running: dict[int, list[Any]] = {}
    for job in hosted_jobs.open_ones(conn):
        running.setdefault(job.device_id // BLOCK, []).append(job)
    return {
        row[0]: (*map(_whole, row[1:]), held.get(row[0]), *running.get(row[0], ())) for row in conn.execute(_BLOCKS)
    }


def _whole(number: Any) -> int | None:
    """Sums come as Decimal from MySQL."""
    return None if number is None else int(number)
