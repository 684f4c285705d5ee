# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What a synchronisation with the inventory reads of the pool and writes into it, many rows at a time.

Devices with ``inventory_id`` 0 were added by hand or registered themselves. Columns that state machines decide on are
left alone, ``attempt`` too; ``version`` goes up with every write.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import Connection, bindparam, delete, exists, func, insert, null, or_, select, update

from mozpool.db import devices as devices_module
from mozpool.db.devices import SHUFFLE_RANGE, owner_column
from mozpool.db.packing import loads_object
from mozpool.db.tables import (
    device_labels,
    devices,
    hardware_types,
    image_pxe_configs,
    imaging_servers,
    relay_boards,
    requests,
    server_presence,
)

T = TypeVar("T")

ROWS_AT_ONCE = 500
"""How many ids one statement names."""


@dataclass(frozen=True)
class KnownDevice:
    """A device, as far as the inventory goes."""

    id: int
    name: str
    fqdn: str
    address: str | None
    inventory_id: int
    mac_address: str
    imaging_server_id: int
    imaging_server: str
    owner_id: int
    relay_info: str | None
    hardware: tuple[str, str] | None
    hardware_type_id: int | None
    environment: str
    comments: str | None
    backends: Mapping[str, Any]
    """Its own, without its hardware type's."""
    labels: Mapping[str, str]
    state: str
    claim_id: int | None
    leaving: bool


@dataclass(frozen=True)
class KnownBoard:
    """A relay board, or another switch."""

    id: int
    name: str
    fqdn: str
    imaging_server: str
    lane: str | None


@dataclass(frozen=True)
class Known:
    """What the pool has."""

    devices: Sequence[KnownDevice]
    servers: Mapping[str, int]
    """Name → id."""
    hardware: Mapping[tuple[str, str], Mapping[str, Any]]
    """(type, model) → backends."""
    boards: Sequence[KnownBoard]


_DEVICES = (
    select(
        *(devices.c.id, devices.c.name, devices.c.fqdn, devices.c.address, devices.c.inventory_id),
        *(devices.c.mac_address, devices.c.imaging_server_id, imaging_servers.c.fqdn, owner_column),
        *(devices.c.relay_info, hardware_types.c.type, hardware_types.c.model, devices.c.hardware_type_id),
        *(func.coalesce(devices.c.environment, "none"), devices.c.comments, devices.c.backends),
        *(devices.c.state, devices.c.claim_id, devices.c.leaving),
    )
    .join(imaging_servers, imaging_servers.c.id == devices.c.imaging_server_id)
    .outerjoin(hardware_types, hardware_types.c.id == devices.c.hardware_type_id)
    .order_by(devices.c.id)
)


def read(conn: Connection) -> Known:
    """All devices, imaging servers, hardware types and power switches."""
    labels = devices_module.labels_of(conn)
    found = []
    for row in conn.execute(_DEVICES):
        kind, model, hardware_id, environment, comments, backends, state, claim_id, leaving = row[10:]
        values: list[Any] = [*row[:10], None if kind is None else (kind, model), hardware_id, environment, comments]
        values += [loads_object(backends), labels.get(row[0], {}), state, claim_id, bool(leaving)]
        found.append(KnownDevice(*values))
    servers = conn.execute(select(imaging_servers.c.fqdn, imaging_servers.c.id).order_by(imaging_servers.c.id))
    kinds = conn.execute(
        select(hardware_types.c.type, hardware_types.c.model, hardware_types.c.backends).order_by(hardware_types.c.id)
    )
    boards = conn.execute(
        select(
            *(relay_boards.c.id, relay_boards.c.name, relay_boards.c.fqdn, imaging_servers.c.fqdn, relay_boards.c.lane)
        )
        .join(imaging_servers, imaging_servers.c.id == relay_boards.c.imaging_server_id)
        .order_by(relay_boards.c.id)
    )
    return Known(
        found,
        {row[0]: row[1] for row in servers},
        {(row[0], row[1]): loads_object(row[2]) for row in kinds},
        [KnownBoard(*row) for row in boards],
    )


# Devices


def free_ones(conn: Connection, device_ids: Sequence[int], resting: Collection[str]) -> list[int]:
    """Those of some devices that nobody has and that are in one of these states; they stay so in this transaction."""
    found: list[int] = []
    for some in _chunks(device_ids):
        free = devices.c.claim_id.is_(None) & devices.c.state.in_(resting)
        query = select(devices.c.id).where(devices.c.id.in_(some), free).order_by(devices.c.id)
        found += conn.scalars(query.with_for_update())
    return found


def remove(conn: Connection, device_ids: Sequence[int]) -> None:
    """Delete devices of :func:`free_ones`; their histories and logs stay."""
    for some in _chunks(device_ids):
        conn.execute(delete(devices).where(devices.c.id.in_(some)))


def mark(conn: Connection, device_ids: Sequence[int], *, leaving: bool) -> None:
    """Say of devices whether they are to go as soon as they are free."""
    for some in _chunks(device_ids):
        mine = update(devices).where(devices.c.id.in_(some))
        conn.execute(mine.values(leaving=int(leaving), version=devices.c.version + 1))


_LEAVING = (
    select(devices.c.id, devices.c.name)
    .where(devices.c.leaving == 1, owner_column == bindparam("server"), devices.c.claim_id.is_(None))
    .where(devices.c.state.in_(bindparam("resting", expanding=True)))
    .order_by(devices.c.id)
)


def leaving_of(conn: Connection, owner_id: int, resting: Collection[str]) -> list[tuple[int, str]]:
    """(id, name) of the devices of a server that are to go and are free, sorted by id."""
    return [(row[0], row[1]) for row in conn.execute(_LEAVING, {"server": owner_id, "resting": sorted(resting)})]


def leave(conn: Connection, device_id: int, resting: Collection[str], now: datetime) -> bool:
    """Delete a device that is to go, if it still is and is free; and what it alone has used. Answers whether it was."""
    columns = (devices.c.imaging_server_id, devices.c.hardware_type_id)
    mine = devices.c.id == device_id
    row = conn.execute(select(*columns).where(mine, devices.c.leaving == 1).with_for_update()).first()
    if row is None or not free_ones(conn, [device_id], resting):
        return False
    remove(conn, [device_id])
    drop_unused(conn, {row[0]}, {row[1]} - {None}, now)
    return True


def change(conn: Connection, changes: Iterable[tuple[int, Mapping[str, Any]]]) -> None:
    """Write columns of devices that no state machine decides on: (id, column → value)."""
    alike: dict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
    for device_id, values in changes:
        columns = {f"v_{name}": value for name, value in values.items()}
        alike[tuple(sorted(values))].append({"row_id": device_id, **columns})
    for names, rows in alike.items():
        columns = {name: bindparam(f"v_{name}") for name in names}
        mine = update(devices).where(devices.c.id == bindparam("row_id"))
        conn.execute(mine.values(version=devices.c.version + 1, **columns), rows)


def give_way(conn: Connection, device_ids: Sequence[int]) -> None:
    """Give up the names of devices that are about to get others: names may pass from one to another in a circle."""
    change(conn, [(device_id, {"name": f"~{device_id}"}) for device_id in device_ids])


def move(conn: Connection, device_ids: Sequence[int], server_id: int, resting: Collection[str]) -> None:
    """Let devices belong to another imaging server.

    It acts on those that are free from now on, or that it acts on already. The others stay with the server that acts on
    them until nothing is going on there: that is how guests are given back to the server that they belong to.
    """
    for some in _chunks(device_ids):
        at_once = set(free_ones(conn, some, resting))
        at_once.update(conn.scalars(select(devices.c.id).where(devices.c.id.in_(some), owner_column == server_id)))
        mine = update(devices).where(devices.c.id.in_(sorted(at_once)))
        # Who acts on a row is computed from the columns that are written: one statement after the other.
        conn.execute(
            mine.where(owner_column != server_id).values(
                came_from_id=owner_column, epoch=devices.c.epoch + 1, version=devices.c.version + 1
            )
        )
        conn.execute(mine.values(owner_id=null(), imaging_server_id=server_id, version=devices.c.version + 1))
        others = update(devices).where(devices.c.id.in_(sorted(set(some) - at_once)))
        conn.execute(others.values(owner_id=owner_column))
        conn.execute(others.values(imaging_server_id=server_id, version=devices.c.version + 1))


def add(conn: Connection, rng: random.Random, rows: Sequence[Mapping[str, Any]]) -> dict[int, int]:
    """Add new devices; answers inventory id → id."""
    new = {"state": "new", "state_counters": "{}"}
    made = [{**new, "shuffle": rng.randrange(SHUFFLE_RANGE), **row} for row in rows]
    for some in _chunks(made):
        conn.execute(insert(devices), list(some))
    found: dict[int, int] = {}
    for ids in _chunks([row["inventory_id"] for row in rows]):
        query = select(devices.c.inventory_id, devices.c.id).where(devices.c.inventory_id.in_(ids))
        found.update((row[0], row[1]) for row in conn.execute(query))
    return found


def set_labels(conn: Connection, labels: Mapping[int, Mapping[str, str]]) -> None:
    """Replace the labels of devices: id → labels. The devices' rows are written as well."""
    for some in _chunks(sorted(labels)):
        conn.execute(delete(device_labels).where(device_labels.c.device_id.in_(some)))
    rows = [
        {"device_id": device_id, "name": name, "value": value}
        for device_id, values in sorted(labels.items())
        for name, value in sorted(values.items())
    ]
    for some_rows in _chunks(rows):
        conn.execute(insert(device_labels), list(some_rows))
    change(conn, [(device_id, {}) for device_id in labels])


def dumps_backends(backends: Mapping[str, Any]) -> str | None:
    """As the column has them."""
    return json.dumps(dict(backends)) if backends else None


# What devices refer to


def ensure_servers(conn: Connection, names: Iterable[str]) -> dict[str, int]:
    """Add imaging servers; answers name → id of all that there are."""
    for name in names:
        conn.execute(insert(imaging_servers).values(fqdn=name))
    return {row[0]: row[1] for row in conn.execute(select(imaging_servers.c.fqdn, imaging_servers.c.id))}


def ensure_hardware(conn: Connection, kinds: Iterable[tuple[str, str]]) -> dict[tuple[str, str], int]:
    """Add hardware types; answers (type, model) → id of all that there are."""
    for kind, model in kinds:
        conn.execute(insert(hardware_types).values(type=kind, model=model))
    columns = (hardware_types.c.type, hardware_types.c.model, hardware_types.c.id)
    return {(row[0], row[1]): row[2] for row in conn.execute(select(*columns))}


def change_boards(
    conn: Connection,
    *,
    gone: Sequence[int],
    changed: Mapping[int, Mapping[str, Any]],
    added: Sequence[Mapping[str, Any]],
) -> None:
    """Delete relay boards by their ids, write columns of some (id → column → value), and add others."""
    for some in _chunks(gone):
        conn.execute(delete(relay_boards).where(relay_boards.c.id.in_(some)))
    for board_id, values in changed.items():
        conn.execute(update(relay_boards).where(relay_boards.c.id == board_id).values(**values))
    for rows in _chunks(added):
        conn.execute(insert(relay_boards), [{"state": "ok", "state_counters": "{}", **row} for row in rows])


def drop_unused(
    conn: Connection, server_ids: Collection[int], hardware_ids: Collection[int], now: datetime
) -> list[str]:
    """Delete those of some imaging servers and hardware types that nothing uses; answers what is gone, in words.

    A server that has ever run is only deleted when it has given no sign of life for a day, and a hardware type that
    has PXE configs is a person's work: it stays.
    """
    gone = []
    has_device = exists().where(devices.c.hardware_type_id == hardware_types.c.id)
    configured = exists().where(
        image_pxe_configs.c.hardware_type_id == hardware_types.c.id, image_pxe_configs.c.pxe_config_id.is_not(None)
    )
    unused = hardware_types.c.id.in_(sorted(hardware_ids)) & ~has_device & ~configured
    columns = (hardware_types.c.id, hardware_types.c.type, hardware_types.c.model)
    for hardware_id, kind, model in conn.execute(select(*columns).where(unused)).all() if hardware_ids else []:
        conn.execute(delete(image_pxe_configs).where(image_pxe_configs.c.hardware_type_id == hardware_id))
        conn.execute(delete(hardware_types).where(hardware_types.c.id == hardware_id))
        gone.append(f"hardware type {kind} {model}")
    names = {row[0]: row[1] for row in conn.execute(select(imaging_servers.c.id, imaging_servers.c.fqdn))}
    for server_id in sorted(server_ids):
        acts = [
            (table, or_(*(column == server_id for column in columns)))
            for table, columns in (
                (devices, (devices.c.imaging_server_id, devices.c.owner_id)),
                (requests, (requests.c.imaging_server_id, requests.c.owner_id)),
                (relay_boards, (relay_boards.c.imaging_server_id,)),
            )
        ]
        if server_id not in names or any(conn.scalar(select(table.c.id).where(uses).limit(1)) for table, uses in acts):
            continue
        seen = conn.scalar(select(server_presence.c.seen).where(server_presence.c.imaging_server_id == server_id))
        if seen is not None and (now - seen).total_seconds() < LONG_SILENT:
            continue
        conn.execute(delete(server_presence).where(server_presence.c.imaging_server_id == server_id))
        conn.execute(delete(imaging_servers).where(imaging_servers.c.id == server_id))
        gone.append(f"imaging server {names[server_id]}")
    return gone


LONG_SILENT = 86400.0
"""Seconds without a sign of life after which an imaging server that nothing belongs to is forgotten."""


def _chunks(items: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), ROWS_AT_ONCE):
        yield items[start : start + ROWS_AT_ONCE]
