# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What images, hardware types, PXE configs and environments are used by: names of a few, and numbers of all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, func, select
from sqlalchemy.sql.elements import ColumnElement

from mozpool.db.requests import END_STATES
from mozpool.db.spelling import exactly
from mozpool.db.tables import devices, hardware_types, image_pxe_configs, images, pxe_configs, requests

NAMED = 20
"""So many are named at most."""

environment_column: ColumnElement[str] = func.coalesce(devices.c.environment, "none")
"""A device's environment: rows of 4.2.1 may have none at all."""

_OPEN = requests.c.state.not_in(END_STATES)


@dataclass(frozen=True)
class Use:
    """A kind of thing that uses something."""

    what: str
    names: Sequence[str]
    """The first few."""
    number: int
    """How many there are in all."""


def _use(conn: Connection, what: str, column: ColumnElement[Any], *conditions: ColumnElement[bool]) -> Use:
    number = conn.scalar(select(func.count(column)).where(*conditions)) or 0
    names = conn.scalars(select(column).where(*conditions).order_by(column).limit(NAMED)) if number else ()
    return Use(what, [str(name) for name in names], number)


def of_image(conn: Connection, image_id: int) -> list[Use]:
    """What keeps an image from being deleted."""
    boots = (
        select(pxe_configs.c.name, hardware_types.c.type, hardware_types.c.model)
        .join(image_pxe_configs, image_pxe_configs.c.pxe_config_id == pxe_configs.c.id)
        .join(hardware_types, hardware_types.c.id == image_pxe_configs.c.hardware_type_id)
        .where(image_pxe_configs.c.image_id == image_id)
        .order_by(pxe_configs.c.name, hardware_types.c.type, hardware_types.c.model)
    )
    configs = [f"{row[0]} (on {row[1]} {row[2]})" for row in conn.execute(boots)]
    asked = requests.c.image_id == image_id
    return [
        _use(conn, "devices", devices.c.name, devices.c.image_id == image_id),
        _use(conn, "devices that are to get it", devices.c.name, devices.c.next_image_id == image_id),
        _use(conn, "open requests", requests.c.id, asked, _OPEN),
        _use(conn, "requests of the past", requests.c.id, asked, requests.c.state.in_(END_STATES)),
        Use("PXE configs", configs, len(configs)),
    ]


def of_hardware_type(conn: Connection, hardware_type_id: int) -> list[Use]:
    """What keeps a hardware type from being deleted."""
    boots = (
        select(images.c.name)
        .join(image_pxe_configs, image_pxe_configs.c.image_id == images.c.id)
        .where(
            image_pxe_configs.c.hardware_type_id == hardware_type_id,
            image_pxe_configs.c.pxe_config_id.is_not(None),
        )
        .order_by(images.c.name)
    )
    names = list(conn.scalars(boots))
    return [
        _use(conn, "devices", devices.c.name, devices.c.hardware_type_id == hardware_type_id),
        Use("images", names, len(names)),
    ]


def booting(conn: Connection, pxe_config: str) -> Use:
    """The devices that boot a PXE config the next time."""
    return _use(conn, "devices", devices.c.name, exactly(devices.c.pxe_config, pxe_config))


# Numbers of all


def _numbers(conn: Connection, column: ColumnElement[Any], *conditions: ColumnElement[bool]) -> dict[Any, int]:
    query = select(column, func.count()).where(column.is_not(None), *conditions).group_by(column)
    return {row[0]: row[1] for row in conn.execute(query)}


def devices_with_images(conn: Connection) -> dict[int, int]:
    """Image id → how many devices carry it."""
    return _numbers(conn, devices.c.image_id)


def requests_for_images(conn: Connection) -> dict[int, int]:
    """Image id → how many open requests ask for it."""
    return _numbers(conn, requests.c.image_id, _OPEN)


def devices_of_types(conn: Connection) -> dict[int, int]:
    """Hardware type id → how many devices are of it."""
    return _numbers(conn, devices.c.hardware_type_id)


def devices_with_pxe_configs(conn: Connection) -> dict[str, int]:
    """PXE config → how many devices boot it the next time."""
    return _spelled(conn, devices.c.pxe_config, devices.c.pxe_config.is_not(None))


def requests_for_environments(conn: Connection) -> dict[str, int]:
    """Environment (or ``any``) → how many open requests ask for it."""
    return _spelled(conn, requests.c.environment, _OPEN)


def _spelled(conn: Connection, column: ColumnElement[str], condition: ColumnElement[bool]) -> dict[str, int]:
    # Not by the names themselves: MySQL would take Lab and lab for one.
    query = select(func.max(column), func.count()).where(condition).group_by(func.hex(column))
    return {row[0]: row[1] for row in conn.execute(query)}


def devices_in_environments(conn: Connection) -> list[tuple[str, str, bool, int]]:
    """(environment, state, whether a request has them, number) of devices."""
    claimed = devices.c.claim_id.is_not(None)
    query = select(func.max(environment_column), devices.c.state, claimed, func.count()).group_by(
        func.hex(environment_column), devices.c.state, claimed
    )
    return [(row[0], row[1], bool(row[2]), row[3]) for row in conn.execute(query)]


def boots(conn: Connection) -> dict[tuple[int, int], str]:
    """(image id, hardware type id) → the PXE config that boots the one on the other."""
    query = select(image_pxe_configs.c.image_id, image_pxe_configs.c.hardware_type_id, pxe_configs.c.name).join(
        pxe_configs, pxe_configs.c.id == image_pxe_configs.c.pxe_config_id
    )
    return {(row[0], row[1]): row[2] for row in conn.execute(query)}
