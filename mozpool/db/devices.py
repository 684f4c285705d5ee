# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Devices: the rows that LifeGuard's state machine drives and MozPool claims."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from sqlalchemy import (
    Connection,
    Select,
    Update,
    and_,
    bindparam,
    case,
    delete,
    func,
    insert,
    literal,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.sql.elements import ColumnElement

from mozpool.db.packing import Pack, loads_counters, loads_object
from mozpool.db.spelling import check_free, exactly, stem
from mozpool.db.tables import device_labels, device_requests, devices, hardware_types, imaging_servers, requests
from mozpool.db.tables import images as images_table

_image = images_table.alias("image")
_next_image = images_table.alias("next_image")
_owner = imaging_servers.alias("owner")

LAUNCHER = "launcher"
"""The interface that hosted devices have a backend for, and no others."""

owner_column: ColumnElement[int] = func.coalesce(devices.c.owner_id, devices.c.imaging_server_id)
"""The id of the server that acts on a device."""


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
    """The server that the inventory names."""
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
    owner_id: int = 0
    owner: str = ""
    """The server that acts on it now: its imaging server, or one that has taken over from that."""
    epoch: int = 0
    """Goes up with every change of owner."""
    came_from_id: int | None = None
    """The owner before, until the new one has begun to act."""
    leaving: bool = False
    """It is not in the inventory any more: nobody is given it, and it goes as soon as it is free."""
    boot_token: str | None = None
    """SHA-256 of the token of its current boot, in hexadecimal digits; None: that has none."""

    @property
    def is_hosted(self) -> bool:
        """Whether it lives in somebody's cloud: it has no power to cut and boots nothing of ours, but runs jobs."""
        return LAUNCHER in self.backends

    @property
    def is_held(self) -> bool:
        """Whether whom the current operation was started for still has it."""
        return self.operation_claim_id is not None and self.operation_claim_id == self.claim_id


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
        "owner_id": owner_column,
        "owner": _owner.c.fqdn,
    },
    devices,
    extra=(hardware_types.c.backends,),
    convert={"state_counters": loads_counters},
)

_SELECT: Select[Any] = (
    select(_PACK.column)
    .select_from(devices)
    .join(imaging_servers, imaging_servers.c.id == devices.c.imaging_server_id)
    .join(_owner, _owner.c.id == owner_column)
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


_BY_MAC = _SELECT.where(devices.c.mac_address == bindparam("device_mac")).order_by(devices.c.id)


def by_mac(conn: Connection, mac: str) -> list[Device]:
    """All devices with this MAC address (twelve lower-case hex digits), of any imaging server, sorted by id."""
    return [_device(text) for text in conn.scalars(_BY_MAC, {"device_mac": mac})]


_NETWORK_PLACES = (
    select(devices.c.name, devices.c.mac_address, func.coalesce(devices.c.address, devices.c.fqdn))
    .where(owner_column == bindparam("server"))
    .order_by(devices.c.id)
)


def network_places(conn: Connection, owner_id: int) -> list[tuple[str, str, str]]:
    """(name, MAC address, address) of all devices that a server acts on."""
    return [(row[0], row[1], row[2]) for row in conn.execute(_NETWORK_PLACES, {"server": owner_id})]


def own_backends(conn: Connection, device_id: int) -> dict[str, Any]:
    """What the device's own column ``backends`` says, without what its hardware type says."""
    return loads_object(conn.scalar(select(devices.c.backends).where(devices.c.id == device_id)))


_KEYS = select(devices.c.id, owner_column, _owner.c.fqdn, devices.c.state, devices.c.leaving, devices.c.name).join(
    _owner, _owner.c.id == owner_column
)
_KEYS_BY_NAME = _KEYS.where(exactly(devices.c.name, bindparam("device_name")))


@dataclass(frozen=True)
class DeviceKey:
    """The little that routing a call needs."""

    id: int
    owner_id: int
    owner: str
    state: str
    leaving: bool
    name: str


def _key(row: Any) -> DeviceKey | None:
    return None if row is None else DeviceKey(row[0], row[1], row[2], row[3], bool(row[4]), row[5])


def key_by_name(conn: Connection, name: str) -> DeviceKey | None:
    """Id, owner and state of the device of this name, or None."""
    return _key(conn.execute(_KEYS_BY_NAME, {"device_name": name}).first())


def key(conn: Connection, device_id: int) -> DeviceKey | None:
    """Id, owner and state of the device with this id, or None."""
    return _key(conn.execute(_KEYS.where(devices.c.id == device_id)).first())


@dataclass(frozen=True)
class Rule:
    """What a device counts as that is in one of some states. Of several rules, the first that fits holds."""

    name: str
    states: tuple[str, ...] = ()
    """None: any."""
    prefix: str = ""
    """What the state's name begins with."""
    claimed: bool | None = None
    """Whether a request has the device; None: either."""

    def fits(self, state: str, claimed: bool) -> bool:
        """Whether it holds for such a device, as far as the rules before it do not."""
        return (
            (not self.states or state in self.states)
            and state.startswith(self.prefix)
            and self.claimed in (None, claimed)
        )

    def condition(self) -> ColumnElement[bool]:
        """:meth:`fits` for the database."""
        found: list[ColumnElement[bool]] = [true()]
        if self.states:
            found.append(devices.c.state.in_(self.states))
        if self.prefix:
            found.append(devices.c.state.startswith(self.prefix, autoescape=True))
        if self.claimed is not None:
            found.append(devices.c.claim_id.is_not(None) if self.claimed else devices.c.claim_id.is_(None))
        return and_(*found)


def counts_as(rules: Sequence[Rule]) -> ColumnElement[str]:
    """The name of the first rule that fits a device."""
    return case(*((rule.condition(), literal(rule.name)) for rule in rules), else_=literal(""))


@dataclass(frozen=True)
class Filter:
    """Which devices a list is to have; None asks for nothing."""

    state: str | None = None
    kind: tuple[Sequence[Rule], str] | None = None
    """Those that by these rules count as this."""
    environment: str | None = None
    hardware_type: str | None = None
    hardware_model: str | None = None
    image: str | None = None
    imaging_server: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    claimed: bool | None = None
    holder: str | None = None
    """Part of the assignee of the request that has it."""
    search: str | None = None
    """Part of the name, the fqdn, the address, the MAC address or the comments."""
    names: Sequence[str] = ()
    """Only these; none named: all."""


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
    if wanted.kind is not None:
        rules, name = wanted.kind
        found.append(counts_as(rules) == name)
    if wanted.holder:
        has_it = select(device_requests.c.device_id).join(requests, requests.c.id == device_requests.c.request_id)
        found.append(devices.c.id.in_(has_it.where(requests.c.assignee.contains(wanted.holder, autoescape=True))))
    if wanted.search:
        found.append(or_(*_mentions(wanted.search)))
    if wanted.names:
        found.append(devices.c.name.in_(wanted.names))
    return found


MAC_PART = 4
"""Digits of a MAC address that are looked for at least: fewer are in many of them."""


def _mentions(text: str) -> list[ColumnElement[bool]]:
    searched = (devices.c.name, devices.c.fqdn, devices.c.address, devices.c.comments)
    found: list[ColumnElement[bool]] = [column.contains(text, autoescape=True) for column in searched]
    digits = text.lower().replace(":", "").replace("-", "")
    if len(digits) >= MAC_PART and set(digits) <= set("0123456789abcdef"):
        found.append(devices.c.mac_address.contains(digits))
    return found


def find(conn: Connection, wanted: Filter | None = None, *, after: int = 0, limit: int | None = None) -> list[Device]:
    """Devices in the order of their ids, from behind ``after``, at most ``limit``."""
    query = _SELECT.where(devices.c.id > after, *_conditions(wanted or Filter())).order_by(devices.c.id)
    if limit is not None:
        query = query.limit(limit)
    return [_device(text) for text in conn.scalars(query)]


_IN_RANGE = _SELECT.where(devices.c.id >= bindparam("first"), devices.c.id < bindparam("behind")).order_by(devices.c.id)


def in_range(conn: Connection, first: int, behind: int) -> list[Device]:
    """The devices with ids from ``first`` on and below ``behind``, sorted by id."""
    return [_device(text) for text in conn.scalars(_IN_RANGE, {"first": first, "behind": behind})]


_BY_NAME_ORDER = (stem(devices.c.name), func.length(devices.c.name), devices.c.name)
ORDERS: Mapping[str, tuple[ColumnElement[Any], ...]] = {
    "name": _BY_NAME_ORDER,
    "state": (devices.c.state, *_BY_NAME_ORDER),
    "since": (devices.c.state_since, devices.c.id),
}
"""What a page of the list can be sorted by. Numbers at the end of names count as numbers."""

# Outer joins all: databases leave out those that no condition needs.
_IDS = (
    select(devices.c.id)
    .select_from(devices)
    .outerjoin(imaging_servers, imaging_servers.c.id == devices.c.imaging_server_id)
    .outerjoin(_image, _image.c.id == devices.c.image_id)
    .outerjoin(hardware_types, hardware_types.c.id == devices.c.hardware_type_id)
)


def page(
    conn: Connection, wanted: Filter, *, order: str, backwards: bool, limit: int, offset: int
) -> tuple[list[Device], int]:
    """Some of the devices in one of :data:`ORDERS`, and how many there are in all."""
    conditions = _conditions(wanted)
    if conditions:
        total = conn.scalar(select(func.count()).select_from(_IDS.where(*conditions).subquery())) or 0
    else:
        total = conn.scalar(select(func.count()).select_from(devices)) or 0
    by = [column.desc() if backwards else column for column in ORDERS[order]]
    # Wide rows are only made of those that are shown.
    ids = list(conn.scalars(_IDS.where(*conditions).order_by(*by).limit(limit).offset(offset)))
    rows = {row.id: row for row in map(_device, conn.scalars(_SELECT.where(devices.c.id.in_(ids))))} if ids else {}
    return [rows[device_id] for device_id in ids if device_id in rows], total


def numbers(conn: Connection, rules: Sequence[Rule]) -> dict[str, int]:
    """How many devices count as what by these rules."""
    kind = counts_as(rules).label("kind")
    return {row[0]: row[1] for row in conn.execute(select(kind, func.count()).select_from(devices).group_by(kind))}


def matching(conn: Connection, conditions: Iterable[ColumnElement[bool]]) -> list[Device]:
    """All devices that meet ``conditions``, whatever their state."""
    return [_device(text) for text in conn.scalars(_SELECT.where(*conditions).order_by(devices.c.id))]


def count(conn: Connection, conditions: Iterable[ColumnElement[bool]]) -> int:
    """How many devices meet ``conditions``, which look at nothing but their own rows."""
    return int(conn.scalar(select(func.count()).select_from(devices).where(*conditions)) or 0)


def names(conn: Connection) -> list[str]:
    """The names of all devices, sorted by id."""
    return list(conn.scalars(select(devices.c.name).order_by(devices.c.id)))


def ids_and_names(conn: Connection) -> list[tuple[int, str]]:
    """The ids and names of all devices, sorted by id."""
    return [(row[0], row[1]) for row in conn.execute(select(devices.c.id, devices.c.name).order_by(devices.c.id))]


def versions(conn: Connection) -> dict[int, int]:
    """Device id → version of its row, which tells whether it has changed; sorted by id."""
    rows = conn.execute(select(devices.c.id, devices.c.version).order_by(devices.c.id))
    return {row[0]: row[1] for row in rows}


def with_ids(conn: Connection, device_ids: Sequence[int]) -> list[Device]:
    """The devices with these ids, sorted by id."""
    return matching(conn, [devices.c.id.in_(device_ids)]) if device_ids else []


def states(conn: Connection) -> dict[str, str]:
    """Device name → state."""
    rows = conn.execute(select(devices.c.name, devices.c.state))
    return {row.name: row.state for row in rows}


@dataclass(frozen=True)
class Group:
    """Devices that are alike, as far as counting them goes."""

    hardware_type: str | None
    hardware_model: str | None
    owner_id: int
    state: str
    claimed: bool
    leaving: bool
    number: int


_CLAIMED = devices.c.claim_id.is_not(None).label("claimed")
_GROUPED = (
    *(hardware_types.c.type, hardware_types.c.model, owner_column.label("owner")),
    *(devices.c.state, _CLAIMED, devices.c.leaving),
)
_GROUPS = (
    select(*_GROUPED, func.count())
    .select_from(devices)
    .outerjoin(hardware_types, hardware_types.c.id == devices.c.hardware_type_id)
    .group_by(*_GROUPED)
)


def groups(conn: Connection, conditions: Iterable[ColumnElement[bool]] = ()) -> list[Group]:
    """How many devices there are of each kind, of all or of those that meet ``conditions``; none of them is loaded."""
    return [
        Group(kind, model, owner_id, state, bool(claimed), bool(leaving), number)
        for kind, model, owner_id, state, claimed, leaving, number in conn.execute(_GROUPS.where(*conditions))
    ]


def environments(conn: Connection) -> list[str]:
    """All environments that devices are in, sorted."""
    # Not by DISTINCT, which on MySQL takes Lab and lab for one.
    return sorted({name for name in conn.scalars(select(devices.c.environment)) if name is not None})


@dataclass(frozen=True)
class DeviceName:
    """The little that a line in a device's log needs."""

    id: int
    name: str


def in_environment(conn: Connection, environment: str) -> list[DeviceName]:
    """All devices in an environment, sorted by id."""
    rows = conn.execute(select(devices.c.id, devices.c.name).where(_is_in(environment)).order_by(devices.c.id))
    return [DeviceName(*row) for row in rows]


def move_environment(conn: Connection, environment: str, new: str) -> None:
    """Put all devices of an environment into another one."""
    conn.execute(update(devices).where(_is_in(environment)).values(version=devices.c.version + 1, environment=new))


def _is_in(environment: str) -> ColumnElement[bool]:
    same = exactly(devices.c.environment, environment)
    # Rows of 4.2.1 may have none at all.
    return or_(same, devices.c.environment.is_(None)) if environment == "none" else same


def owned_on(conn: Connection, owner_id: int) -> list[Device]:
    """All devices that a server acts on."""
    query = _SELECT.where(owner_column == owner_id).order_by(devices.c.id)
    return [_device(text) for text in conn.scalars(query)]


def latest_in(conn: Connection, states: Collection[str], limit: int) -> list[Device]:
    """The devices that came into one of these states last, newest first."""
    query = _SELECT.where(devices.c.state.in_(states)).order_by(devices.c.state_since.desc(), devices.c.id).limit(limit)
    return [_device(text) for text in conn.scalars(query)]


# Labels


def all_labels(conn: Connection, limit: int) -> list[tuple[str, str]]:
    """Labels that devices carry (name, value), sorted, at most ``limit``."""
    columns = (device_labels.c.name, device_labels.c.value)
    return [(row[0], row[1]) for row in conn.execute(select(*columns).distinct().order_by(*columns).limit(limit))]


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
    set_attributes(conn, device_id)


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


def set_attributes(conn: Connection, device_id: int, *, held_by: int | None = None, **values: Any) -> bool:
    """Write columns that no state machine decides on (comments, environment, …); False when the device is gone.

    ``held_by``: only as long as this claim has the device; else False, too.
    """
    query = update(devices).where(devices.c.id == device_id)
    if held_by is not None:
        query = query.where(devices.c.claim_id == held_by)
    return conn.execute(query.values(version=devices.c.version + 1, **values)).rowcount == 1


_SET_BOOT_TOKEN = (
    update(devices)
    .where(devices.c.id == bindparam("row_id"), devices.c.epoch == bindparam("row_epoch"))
    .values(version=devices.c.version + 1, boot_token=bindparam("hash"))
)


def set_boot_token(conn: Connection, device_id: int, epoch: int, token_hash: str | None) -> bool:
    """Write the SHA-256 of the token of a device's next boot (None: it has none).

    False when another server has come to act on the device since that epoch, or it is gone.
    """
    values = {"row_id": device_id, "row_epoch": epoch, "hash": token_hash}
    return conn.execute(_SET_BOOT_TOKEN, values).rowcount == 1


_BOOT_TOKEN = select(devices.c.boot_token).where(devices.c.id == bindparam("row_id"))


def boot_token(conn: Connection, device_id: int) -> str | None:
    """The SHA-256 of the token of a device's current boot; None when that has none."""
    found: str | None = conn.scalar(_BOOT_TOKEN, {"row_id": device_id})
    return found


def replace_comments(conn: Connection, device_id: int, comments: str | None, was: str) -> bool:
    """Write comments if they still are ``was``; answer whether they were."""
    found = conn.execute(
        update(devices)
        .where(devices.c.id == device_id, exactly(func.coalesce(devices.c.comments, ""), was))
        .values(version=devices.c.version + 1, comments=comments)
    )
    return found.rowcount == 1


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
        owner_column == bindparam("server"),
        or_(
            devices.c.state_timeout < bindparam("moment"),
            and_(devices.c.state == "new", devices.c.state_timeout.is_(None)),
        ),
    )
    .order_by(devices.c.state_timeout)
    .limit(bindparam("most"))
)


def due(conn: Connection, owner_id: int, before: datetime, limit: int) -> list[tuple[int, int, datetime]]:
    """(id, attempt, deadline) of a server's devices whose deadline is before ``before``, the earliest first.

    Devices that were just added have none and are due at once.
    """
    found = conn.execute(_DUE, {"server": owner_id, "moment": before, "most": limit})
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
    owner_id: int
    owner: str


_NAMES_LAUNCHER = f'"{LAUNCHER}"'
_HOSTED_TYPES = select(hardware_types.c.id).where(hardware_types.c.backends.contains(_NAMES_LAUNCHER))
HOSTED: ColumnElement[bool] = or_(
    func.coalesce(devices.c.backends, "").contains(_NAMES_LAUNCHER),
    func.coalesce(devices.c.hardware_type_id, 0).in_(_HOSTED_TYPES),
)
"""Whether a device is hosted (:attr:`Device.is_hosted`), for the database."""

PROVEN: ColumnElement[bool] = devices.c.operation_claim_id.is_(None)
"""Whether nobody has used a free device since it was proven; others than hosted ones are proven for each request."""


def is_hosted(conn: Connection, device_id: int) -> bool:
    """Whether a device is hosted."""
    return conn.scalar(select(devices.c.id).where(devices.c.id == device_id, HOSTED)) is not None


CANDIDATE_COLUMNS = (
    devices.c.id,
    devices.c.name,
    devices.c.version,
    devices.c.environment,
    devices.c.hardware_type_id,
    devices.c.image_id,
    devices.c.boot_config_hash,
    func.coalesce(devices.c.address, devices.c.fqdn),
    owner_column,
    _owner.c.fqdn,
)
FREE = and_(devices.c.state == "ready", devices.c.claim_id.is_(None), devices.c.leaving == 0)


class FreeSearch:
    """A search for free devices that meet conditions, made ready once and used many times."""

    def __init__(self, conditions: Iterable[ColumnElement[bool]]) -> None:
        """``conditions`` may have parameters, which :meth:`find` is given values for."""
        query = (
            select(*CANDIDATE_COLUMNS)
            .join(_owner, _owner.c.id == owner_column)
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
