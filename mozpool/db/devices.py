# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Devices: the rows that LifeGuard's state machine drives and MozPool claims."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, Select, Update, and_, bindparam, delete, func, insert, or_, select, update
from sqlalchemy.sql.elements import ColumnElement

from mozpool.db.packing import Pack, loads_counters, loads_object
from mozpool.db.spelling import check_free, exactly
from mozpool.db.tables import device_labels, device_requests, devices, hardware_types, imaging_servers
from mozpool.db.tables import images as images_table

_image = images_table.alias("image")
_next_image = images_table.alias("next_image")


@dataclass(frozen=True)
class Device:
    """A device with the names of what it refers to."""

    id: int
    name: str
    fqdn: str
    address: str
    """Where it answers pings and its agent."""
    inventory_id: int
    state: str
    state_counters: Mapping[str, int]
    state_timeout: datetime | None
    state_since: datetime | None
    version: int
    attempt: int
    token: str | None
    mac_address: str
    imaging_server_id: int
    imaging_server: str
    relay_info: str | None
    image_id: int | None
    image: str | None
    image_has_agent: bool
    boot_config: str | None
    boot_config_hash: str | None
    next_image_id: int | None
    next_image: str | None
    next_image_has_agent: bool
    next_boot_config: str | None
    pxe_config: str | None
    last_pxe_config: str | None
    comments: str | None
    environment: str
    hardware_type_id: int | None
    hardware_type: str | None
    hardware_model: str | None
    backends: Mapping[str, Any] = field(default_factory=dict)
    """Interface → backend name, and ``options``; the hardware type's overlaid with the device's own."""
    claim_id: int | None = None
    """Who has it; None = nobody."""
    request_id: int | None = None
    imaging_result: str | None = None
    """How the last operation for the claim ended, when it did."""
    operation_claim_id: int | None = None
    """For whom the current operation was started."""
    going_offline: bool = False
    last_seen: datetime | None = None


_PACK = Pack(
    Device,
    {
        "address": func.coalesce(devices.c.address, devices.c.fqdn),
        "imaging_server": imaging_servers.c.fqdn,
        "image": _image.c.name,
        "image_has_agent": _image.c.has_sut_agent,
        "next_image": _next_image.c.name,
        "next_image_has_agent": _next_image.c.has_sut_agent,
        "environment": func.coalesce(devices.c.environment, "none"),
        "hardware_type": hardware_types.c.type,
        "hardware_model": hardware_types.c.model,
        "backends": devices.c.backends,
        "request_id": device_requests.c.request_id,
        "imaging_result": device_requests.c.imaging_result,
    },
    devices,
    extra=(hardware_types.c.backends,),
    convert={"state_counters": loads_counters},
)

_SELECT: Select[Any] = (
    select(_PACK.column)
    .select_from(devices)
    .join(imaging_servers, imaging_servers.c.id == devices.c.imaging_server_id)
    .outerjoin(_image, _image.c.id == devices.c.image_id)
    .outerjoin(_next_image, _next_image.c.id == devices.c.next_image_id)
    .outerjoin(hardware_types, hardware_types.c.id == devices.c.hardware_type_id)
    .outerjoin(device_requests, device_requests.c.device_id == devices.c.id)
)
_BY_ID = _SELECT.where(devices.c.id == bindparam("device_id"))
_BY_NAME = _SELECT.where(exactly(devices.c.name, bindparam("device_name")))


def _device(text: str) -> Device:
    values = _PACK.values(text)
    backends = loads_object(values.pop())
    backends.update(loads_object(values[_BACKENDS]))
    values[_BACKENDS] = backends
    return Device(*values)


_BACKENDS = _PACK.index("backends")


def get(conn: Connection, device_id: int) -> Device | None:
    """The device with this id, or None."""
    text = conn.scalar(_BY_ID, {"device_id": device_id})
    return None if text is None else _device(text)


def by_name(conn: Connection, name: str) -> Device | None:
    """The device of this name, or None."""
    text = conn.scalar(_BY_NAME, {"device_name": name})
    return None if text is None else _device(text)


_BY_ADDRESS = _SELECT.where(func.coalesce(devices.c.address, devices.c.fqdn) == bindparam("device_address")).order_by(
    devices.c.id
)


def by_address(conn: Connection, address: str) -> list[Device]:
    """All devices that answer at this address (as it is written in the row), of any imaging server, sorted by id."""
    return [_device(text) for text in conn.scalars(_BY_ADDRESS, {"device_address": address})]


_NETWORK_PLACES = (
    select(devices.c.name, devices.c.mac_address, func.coalesce(devices.c.address, devices.c.fqdn))
    .where(devices.c.imaging_server_id == bindparam("server"))
    .order_by(devices.c.id)
)


def network_places(conn: Connection, imaging_server_id: int) -> list[tuple[str, str, str]]:
    """(name, MAC address, address) of all devices of an imaging server."""
    return [(row[0], row[1], row[2]) for row in conn.execute(_NETWORK_PLACES, {"server": imaging_server_id})]


def own_backends(conn: Connection, device_id: int) -> dict[str, Any]:
    """What the device's own column ``backends`` says, without what its hardware type says."""
    return loads_object(conn.scalar(select(devices.c.backends).where(devices.c.id == device_id)))


_KEYS = select(devices.c.id, devices.c.imaging_server_id, imaging_servers.c.fqdn, devices.c.state).join(
    imaging_servers, imaging_servers.c.id == devices.c.imaging_server_id
)
_KEYS_BY_NAME = _KEYS.where(exactly(devices.c.name, bindparam("device_name")))


@dataclass(frozen=True)
class DeviceKey:
    """The little that routing a call needs."""

    id: int
    imaging_server_id: int
    imaging_server: str
    state: str


def key_by_name(conn: Connection, name: str) -> DeviceKey | None:
    """Id, owner and state of the device of this name, or None."""
    row = conn.execute(_KEYS_BY_NAME, {"device_name": name}).first()
    return None if row is None else DeviceKey(*row)


def key(conn: Connection, device_id: int) -> DeviceKey | None:
    """Id, owner and state of the device with this id, or None."""
    row = conn.execute(_KEYS.where(devices.c.id == device_id)).first()
    return None if row is None else DeviceKey(*row)


@dataclass(frozen=True)
class Filter:
    """Which devices a list is to have; None asks for nothing."""

    state: str | None = None
    environment: str | None = None
    hardware_type: str | None = None
    hardware_model: str | None = None
    image: str | None = None
    imaging_server: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    claimed: bool | None = None
    search: str | None = None
    """Part of the name or of the comments."""


def has_labels(labels: Mapping[str, str]) -> list[ColumnElement[bool]]:
    """Conditions that are true for devices that carry all of these labels."""
    return [
        select(device_labels.c.device_id)
        .where(
            device_labels.c.device_id == devices.c.id,
            exactly(device_labels.c.name, name),
            exactly(device_labels.c.value, value),
        )
        .exists()
        for name, value in sorted(labels.items())
    ]


def _conditions(wanted: Filter) -> list[ColumnElement[bool]]:
    found: list[ColumnElement[bool]] = has_labels(wanted.labels)
    pairs = (
        (devices.c.state, wanted.state),
        (devices.c.environment, wanted.environment),
        (hardware_types.c.type, wanted.hardware_type),
        (hardware_types.c.model, wanted.hardware_model),
        (_image.c.name, wanted.image),
        (imaging_servers.c.fqdn, wanted.imaging_server),
    )
    found += [exactly(column, value) for column, value in pairs if value is not None]
    if wanted.claimed is not None:
        found.append(devices.c.claim_id.is_not(None) if wanted.claimed else devices.c.claim_id.is_(None))
    if wanted.search:
        found.append(
            or_(
                devices.c.name.contains(wanted.search, autoescape=True),
                devices.c.comments.contains(wanted.search, autoescape=True),
            )
        )
    return found


def find(conn: Connection, wanted: Filter | None = None, *, after: int = 0, limit: int | None = None) -> list[Device]:
    """Devices in the order of their ids, from behind ``after``, at most ``limit``."""
    query = _SELECT.where(devices.c.id > after, *_conditions(wanted or Filter())).order_by(devices.c.id)
    if limit is not None:
        query = query.limit(limit)
    return [_device(text) for text in conn.scalars(query)]


def matching(conn: Connection, conditions: Iterable[ColumnElement[bool]]) -> list[Device]:
    """All devices that meet ``conditions``, whatever their state."""
    return [_device(text) for text in conn.scalars(_SELECT.where(*conditions).order_by(devices.c.id))]


def names(conn: Connection) -> list[str]:
    """The names of all devices, sorted by id."""
    return list(conn.scalars(select(devices.c.name).order_by(devices.c.id)))


def states(conn: Connection) -> dict[str, str]:
    """Device name → state."""
    rows = conn.execute(select(devices.c.name, devices.c.state))
    return {row.name: row.state for row in rows}


def environments(conn: Connection) -> list[str]:
    """All environments that devices are in, sorted."""
    # Not by DISTINCT, which on MySQL takes Lab and lab for one.
    return sorted({name for name in conn.scalars(select(devices.c.environment)) if name is not None})


def owned_on(conn: Connection, imaging_server_id: int) -> list[Device]:
    """All devices of one imaging server."""
    query = _SELECT.where(devices.c.imaging_server_id == imaging_server_id).order_by(devices.c.id)
    return [_device(text) for text in conn.scalars(query)]


# Labels


def labels_of(conn: Connection, device_ids: Sequence[int] | None = None) -> dict[int, dict[str, str]]:
    """Device id → its labels; of all devices when no ids are given."""
    query = select(device_labels.c.device_id, device_labels.c.name, device_labels.c.value).order_by(
        device_labels.c.device_id, device_labels.c.name
    )
    if device_ids is not None:
        query = query.where(device_labels.c.device_id.in_(device_ids))
    found: dict[int, dict[str, str]] = {}
    for device_id, name, value in conn.execute(query):
        found.setdefault(device_id, {})[name] = value
    return found


def set_labels(conn: Connection, device_id: int, labels: Mapping[str, str]) -> None:
    """Replace the labels of a device."""
    conn.execute(delete(device_labels).where(device_labels.c.device_id == device_id))
    if labels:
        conn.execute(
            insert(device_labels),
            [{"device_id": device_id, "name": name, "value": value} for name, value in sorted(labels.items())],
        )


# Writes. Every one raises ``version``, so that whoever decided on an older row notices.


def write(conn: Connection, device_id: int, version: int, values: Mapping[str, Any]) -> bool:
    """Write columns if the row still has this version; answer whether it had.

    MySQL counts matched rows here (the driver asks for found rows), and ``version`` always changes, so the
    row count tells who won on every database.
    """
    parameters = {f"v_{name}": value for name, value in values.items()}
    result = conn.execute(_update(frozenset(values)), {"row_id": device_id, "row_version": version, **parameters})
    return result.rowcount == 1


@lru_cache(maxsize=256)
def _update(columns: frozenset[str]) -> Update:
    """The statement for a set of columns; building it takes longer than running it."""
    return (
        update(devices)
        .where(devices.c.id == bindparam("row_id"), devices.c.version == bindparam("row_version"))
        .values(version=devices.c.version + 1, **{name: bindparam(f"v_{name}") for name in sorted(columns)})
    )


def set_attributes(conn: Connection, device_id: int, **values: Any) -> bool:
    """Write columns that no state machine decides on (comments, environment, …); False when the device is gone."""
    result = conn.execute(
        update(devices).where(devices.c.id == device_id).values(version=devices.c.version + 1, **values)
    )
    return result.rowcount == 1


_POSTPONE = (
    update(devices)
    .where(devices.c.id == bindparam("row_id"), devices.c.attempt == bindparam("row_attempt"))
    .values(version=devices.c.version + 1, state_timeout=bindparam("deadline"))
)


def postpone(conn: Connection, device_id: int, attempt: int, deadline: datetime | None) -> bool:
    """Move the deadline of an attempt (None: take it away); False when it is over."""
    return conn.execute(_POSTPONE, {"row_id": device_id, "row_attempt": attempt, "deadline": deadline}).rowcount == 1


_VERSION = select(devices.c.version, devices.c.token).where(devices.c.id == bindparam("row_id"))


def version_and_token(conn: Connection, device_id: int) -> tuple[int, str | None] | None:
    """The row's version and the token of its last transition; None when the row is gone."""
    row = conn.execute(_VERSION, {"row_id": device_id}).first()
    return None if row is None else (row[0], row[1])


_DUE = (
    select(devices.c.id, devices.c.attempt, devices.c.state_timeout)
    .where(
        devices.c.imaging_server_id == bindparam("server"),
        or_(
            devices.c.state_timeout < bindparam("moment"),
            and_(devices.c.state == "new", devices.c.state_timeout.is_(None)),
        ),
    )
    .order_by(devices.c.state_timeout)
    .limit(bindparam("most"))
)


def due(conn: Connection, imaging_server_id: int, before: datetime, limit: int) -> list[tuple[int, int, datetime]]:
    """(id, attempt, deadline) of this server's devices whose deadline is before ``before``, the earliest first.

    Devices that were just added have none and are due at once.
    """
    found = conn.execute(_DUE, {"server": imaging_server_id, "moment": before, "most": limit})
    long_ago = datetime.min.replace(tzinfo=UTC)
    return [(row[0], row[1], row[2] or long_ago) for row in found]


SHUFFLE_RANGE = 2**31
"""Free devices are looked at in the order of a random number below this, drawn whenever they become free."""


def insert_device(conn: Connection, rng: random.Random, **values: Any) -> int:
    """Add a device and answer its id; where ``values`` say nothing else, it is new and has nothing going on.

    Raises Conflict when there is one of this name, be it in other letters.
    """
    check_free(conn, devices.c.name, values["name"], "device")
    new = {"state": "new", "state_counters": "{}", "shuffle": rng.randrange(SHUFFLE_RANGE)}
    key = conn.execute(insert(devices).values(**new | values)).inserted_primary_key
    assert key is not None
    return int(key[0])


# What MozPool claims


@dataclass(frozen=True)
class Candidate:
    """A free device as the matching function sees it."""

    id: int
    name: str
    version: int
    environment: str
    hardware_type_id: int | None
    image_id: int | None
    boot_config_hash: str | None
    address: str
    imaging_server_id: int
    imaging_server: str


CANDIDATE_COLUMNS = (
    devices.c.id,
    devices.c.name,
    devices.c.version,
    devices.c.environment,
    devices.c.hardware_type_id,
    devices.c.image_id,
    devices.c.boot_config_hash,
    func.coalesce(devices.c.address, devices.c.fqdn),
    devices.c.imaging_server_id,
    imaging_servers.c.fqdn,
)
FREE = and_(devices.c.state == "ready", devices.c.claim_id.is_(None))


class FreeSearch:
    """A search for free devices that meet conditions, made ready once and used many times."""

    def __init__(self, conditions: Iterable[ColumnElement[bool]]) -> None:
        """``conditions`` may have parameters, which :meth:`find` is given values for."""
        query = (
            select(*CANDIDATE_COLUMNS)
            .join(imaging_servers, imaging_servers.c.id == devices.c.imaging_server_id)
            .where(FREE, *conditions)
            .order_by(devices.c.shuffle)
            .limit(bindparam("most"))
        )
        self._onwards = query.where(devices.c.shuffle >= bindparam("start"))
        self._before = query.where(devices.c.shuffle < bindparam("start"))

    def find(self, conn: Connection, *, start: int, limit: int, **values: Any) -> list[Candidate]:
        """At most ``limit`` of them, in order of their random ``shuffle`` from ``start`` on, wrapping round."""
        found = conn.execute(self._onwards, {"start": start, "most": limit, **values}).all()
        if start > 0 and len(found) < limit:
            left = limit - len(found)
            found = [*found, *conn.execute(self._before, {"start": start, "most": left, **values})]
        return [Candidate(*tuple(row)) for row in found]
