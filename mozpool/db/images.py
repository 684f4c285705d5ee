# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Images, PXE configs, and which PXE config boots which image on which hardware."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, bindparam, delete, insert, select, update

from mozpool.db.packing import loads_object
from mozpool.db.spelling import check_free, exactly
from mozpool.db.tables import devices, hardware_types, image_pxe_configs, images, imaging_servers, pxe_configs
from mozpool.errors import Unprocessable

SELF_TEST = "self-test"
"""The image with which devices test themselves."""

MAINTENANCE = "maintenance"
"""The image that waits for a person."""

AS_IS = "as-is"
"""What a hosted device is lent with: it is proven to be free, and nothing is put on it."""

JOB = "taskcluster-job"
"""What a hosted device runs a job for, which its request ends with. Its boot config names the ``project``; that of a
job on several devices also the ``group`` of requests that belong together, and how many ``phones`` there must be."""

HOSTED = (AS_IS, JOB)
"""Images of hosted devices, which boot nothing from our network: no PXE config stands in their rows."""

OPTIONAL_KEYS: Mapping[str, tuple[str, ...]] = {JOB: ("group", "phones")}
"""Image → keys of its boot config that a request may leave out."""

FIXED = (SELF_TEST, MAINTENANCE, *HOSTED)
"""Images that LifeGuard looks for by their names."""


@dataclass(frozen=True)
class Image:
    """Something that can be put on a device."""

    id: int
    name: str
    boot_config_keys: tuple[str, ...]
    """Keys that a request for this image must carry."""
    can_reuse: bool
    hidden: bool
    has_sut_agent: bool


def _keys(text: str | None) -> tuple[str, ...]:
    try:
        value = json.loads(text or "[]")
    except ValueError:
        return ()
    return tuple(str(key) for key in value) if isinstance(value, list) else ()


_IMAGES = select(
    images.c.id, images.c.name, images.c.boot_config_keys, images.c.can_reuse, images.c.hidden, images.c.has_sut_agent
)
_IMAGE_BY_NAME = _IMAGES.where(exactly(images.c.name, bindparam("image_name")))


def _image(row: tuple[int, str, str, int, int, int]) -> Image:
    return Image(row[0], row[1], _keys(row[2]), bool(row[3]), bool(row[4]), bool(row[5]))


def check_wanted(image: Image) -> None:
    """Raise Unprocessable for an image that nobody can have on a device: a self-test ends by itself."""
    if image.name == SELF_TEST:
        way = "a device tests itself when it is set online, and by the event please_self_test"
        raise Unprocessable(f"image: {image.name} can't be asked for: {way}", field="image")


def find(conn: Connection) -> list[Image]:
    """All images, sorted by id."""
    return [_image(tuple(row)) for row in conn.execute(_IMAGES.order_by(images.c.id))]


def on_offer(found: Sequence[Image]) -> list[Image]:
    """Those of some images that people may ask for."""
    return [image for image in found if not image.hidden and image.name != SELF_TEST]


def by_name(conn: Connection, name: str) -> Image | None:
    """The image of this name, or None."""
    row = conn.execute(_IMAGE_BY_NAME, {"image_name": name}).first()
    return None if row is None else _image(tuple(row))


def add(
    conn: Connection, name: str, keys: Sequence[str], *, can_reuse: bool, hidden: bool, has_sut_agent: bool
) -> None:
    """Add an image, whose boot config has these keys. Raises Conflict when there is one of this name."""
    check_free(conn, images.c.name, name, "image")
    conn.execute(
        insert(images).values(
            name=name,
            boot_config_keys=json.dumps(list(keys)),
            can_reuse=int(can_reuse),
            hidden=int(hidden),
            has_sut_agent=int(has_sut_agent),
        )
    )


def check_free_for_image(conn: Connection, name: str) -> None:
    """Raise Conflict when an image has this name, or one that differs in case only."""
    check_free(conn, images.c.name, name, "image")


def lock(conn: Connection, name: str) -> None:
    """Let nobody else change the image of this name before this transaction has ended."""
    conn.execute(select(images.c.id).where(exactly(images.c.name, name)).with_for_update())


def change(conn: Connection, image: Image) -> None:
    """Write all columns of an image."""
    values = {
        "name": image.name,
        "boot_config_keys": json.dumps(list(image.boot_config_keys)),
        "can_reuse": int(image.can_reuse),
        "hidden": int(image.hidden),
        "has_sut_agent": int(image.has_sut_agent),
    }
    conn.execute(update(images).where(images.c.id == image.id).values(**values))


def delete_image(conn: Connection, image_id: int) -> None:
    """Delete an image that nothing uses."""
    # Rows of 4.2.1 may say of a hardware type that nothing boots the image on it.
    unused = image_pxe_configs.c.pxe_config_id.is_(None)
    conn.execute(delete(image_pxe_configs).where(image_pxe_configs.c.image_id == image_id, unused))
    conn.execute(delete(images).where(images.c.id == image_id))


_PXE_CONFIG_FOR = (
    select(pxe_configs.c.name)
    .join(image_pxe_configs, image_pxe_configs.c.pxe_config_id == pxe_configs.c.id)
    .where(
        image_pxe_configs.c.image_id == bindparam("image"),
        image_pxe_configs.c.hardware_type_id == bindparam("hardware"),
    )
)


def pxe_config_for(conn: Connection, hardware_type_id: int | None, image_id: int | None) -> str | None:
    """The name of the PXE config that boots this image on this hardware, or None."""
    if hardware_type_id is None or image_id is None:
        return None
    value = conn.scalar(_PXE_CONFIG_FOR, {"image": image_id, "hardware": hardware_type_id})
    return None if value is None else str(value)


_HOSTED_ON = select(image_pxe_configs.c.image_id).where(
    image_pxe_configs.c.image_id == bindparam("image"),
    image_pxe_configs.c.hardware_type_id == bindparam("hardware"),
    image_pxe_configs.c.pxe_config_id.is_(None),
)


def is_hosted_on(conn: Connection, hardware_type_id: int | None, image_id: int | None) -> bool:
    """Whether hosted devices of this hardware can be had with this image (one of :data:`HOSTED`)."""
    if hardware_type_id is None or image_id is None:
        return False
    return conn.scalar(_HOSTED_ON, {"image": image_id, "hardware": hardware_type_id}) is not None


@dataclass(frozen=True)
class Fits:
    """What an image can be had on."""

    hardware: frozenset[int]
    """Ids of hardware types; none: it is not known which."""
    hosted: bool
    """Whether it is had on hosted devices alone, or on all others."""


NOTHING_KNOWN = Fits(frozenset(), False)

_HARDWARE_FOR = (
    select(images.c.name, image_pxe_configs.c.hardware_type_id, image_pxe_configs.c.pxe_config_id)
    .outerjoin(image_pxe_configs, image_pxe_configs.c.image_id == images.c.id)
    .where(images.c.id == bindparam("image"))
)


def fits(conn: Connection, image_id: int | None) -> Fits:
    """What an image can be had on: hardware that a PXE config boots it on, or hosted hardware that needs none."""
    if image_id is None:
        return NOTHING_KNOWN
    rows = conn.execute(_HARDWARE_FOR, {"image": image_id}).all()
    hosted = any(row[0] in HOSTED for row in rows)
    return Fits(frozenset(row[1] for row in rows if row[1] is not None and (row[2] is None) == hosted), hosted)


def offer_hosted(conn: Connection, hardware_type_id: int) -> None:
    """Let devices of a hardware type, which are hosted, be had with the images of such devices."""
    for name in HOSTED:
        found = by_name(conn, name)
        if found is None:
            keys = ("project",) if name == JOB else ()
            add(conn, name, keys, can_reuse=False, hidden=name == JOB, has_sut_agent=False)
            found = by_name(conn, name)
        assert found is not None
        if not is_hosted_on(conn, hardware_type_id, found.id):
            unassign_pxe_config(conn, found.id, hardware_type_id)
            conn.execute(
                insert(image_pxe_configs).values(
                    image_id=found.id, hardware_type_id=hardware_type_id, pxe_config_id=None
                )
            )


# Hardware types


@dataclass(frozen=True)
class HardwareType:
    """A kind of device."""

    id: int
    type: str
    model: str
    backends: Mapping[str, Any]
    """Interface → backend name, for devices that name none."""


def known_hardware(conn: Connection) -> list[HardwareType]:
    """All hardware types, sorted by id."""
    columns = (hardware_types.c.id, hardware_types.c.type, hardware_types.c.model, hardware_types.c.backends)
    rows = conn.execute(select(*columns).order_by(hardware_types.c.id))
    return [HardwareType(row[0], row[1], row[2], loads_object(row[3])) for row in rows]


def sorted_hardware(conn: Connection) -> list[HardwareType]:
    """All hardware types, sorted by type and model."""
    return sorted(known_hardware(conn), key=lambda hardware: (hardware.type, hardware.model))


def add_hardware_type(conn: Connection, type_: str, model: str, backends: Mapping[str, str]) -> None:
    """Add a hardware type, which names these backends (interface → name)."""
    text = json.dumps(dict(backends)) if backends else None
    conn.execute(insert(hardware_types).values(type=type_, model=model, backends=text))


def lock_hardware_type(conn: Connection, hardware_type_id: int) -> None:
    """Let nobody else change the hardware type with this id before this transaction has ended."""
    conn.execute(select(hardware_types.c.id).where(hardware_types.c.id == hardware_type_id).with_for_update())


def change_hardware_type(conn: Connection, hardware: HardwareType) -> None:
    """Write all columns of a hardware type."""
    text = json.dumps(dict(hardware.backends)) if hardware.backends else None
    conn.execute(
        update(hardware_types)
        .where(hardware_types.c.id == hardware.id)
        .values(type=hardware.type, model=hardware.model, backends=text)
    )


def delete_hardware_type(conn: Connection, hardware_type_id: int) -> None:
    """Delete a hardware type that nothing uses."""
    unused = image_pxe_configs.c.pxe_config_id.is_(None)
    conn.execute(delete(image_pxe_configs).where(image_pxe_configs.c.hardware_type_id == hardware_type_id, unused))
    conn.execute(delete(hardware_types).where(hardware_types.c.id == hardware_type_id))


# PXE configs


@dataclass(frozen=True)
class PxeConfig:
    """The text that a boot loader is given."""

    id: int
    name: str
    description: str
    contents: str
    active: bool


_PXE_CONFIGS = select(
    pxe_configs.c.id, pxe_configs.c.name, pxe_configs.c.description, pxe_configs.c.contents, pxe_configs.c.active
)


_PXE_CONFIG = _PXE_CONFIGS.where(exactly(pxe_configs.c.name, bindparam("config")))


def pxe_config(conn: Connection, name: str) -> PxeConfig | None:
    """The PXE config of this name, or None."""
    row = conn.execute(_PXE_CONFIG, {"config": name}).first()
    return None if row is None else PxeConfig(row[0], row[1], row[2], row[3], bool(row[4]))


def pxe_config_names(conn: Connection, *, active_only: bool = False) -> list[str]:
    """The names of the PXE configs, sorted."""
    query = select(pxe_configs.c.name).order_by(pxe_configs.c.name)
    return list(conn.scalars(query.where(pxe_configs.c.active != 0) if active_only else query))


def pxe_config_uses(conn: Connection, pxe_config_id: int) -> list[tuple[str, str, str]]:
    """(image, hardware type, hardware model) of all that use a PXE config."""
    query = (
        select(images.c.name, hardware_types.c.type, hardware_types.c.model)
        .select_from(image_pxe_configs)
        .join(images, images.c.id == image_pxe_configs.c.image_id)
        .join(hardware_types, hardware_types.c.id == image_pxe_configs.c.hardware_type_id)
        .where(image_pxe_configs.c.pxe_config_id == pxe_config_id)
        .order_by(images.c.name, hardware_types.c.type, hardware_types.c.model)
    )
    return [(row[0], row[1], row[2]) for row in conn.execute(query)]


def find_pxe_configs(conn: Connection) -> list[PxeConfig]:
    """All PXE configs, sorted by name."""
    rows = conn.execute(_PXE_CONFIGS.order_by(pxe_configs.c.name))
    return [PxeConfig(row[0], row[1], row[2], row[3], bool(row[4])) for row in rows]


def devices_that_boot(conn: Connection, pxe_config_name: str) -> list[str]:
    """The names of the devices that are to boot this PXE config the next time, sorted."""
    return sorted(conn.scalars(select(devices.c.name).where(exactly(devices.c.pxe_config, pxe_config_name))))


def add_pxe_config(conn: Connection, *, name: str, **values: str | int) -> None:
    """Add a PXE config: all columns but its id. Raises Conflict when there is one of this name."""
    check_free(conn, pxe_configs.c.name, name, "PXE config")
    conn.execute(insert(pxe_configs).values(name=name, **values))


def lock_pxe_config(conn: Connection, name: str) -> None:
    """Let nobody else change the PXE config of this name before this transaction has ended."""
    conn.execute(select(pxe_configs.c.id).where(exactly(pxe_configs.c.name, name)).with_for_update())


def change_pxe_config(conn: Connection, pxe_config_id: int, values: Mapping[str, str | int]) -> None:
    """Write some columns of a PXE config."""
    conn.execute(update(pxe_configs).where(pxe_configs.c.id == pxe_config_id).values(**values))


def delete_pxe_config(conn: Connection, pxe_config_id: int) -> None:
    """Delete a PXE config that no image uses."""
    conn.execute(delete(pxe_configs).where(pxe_configs.c.id == pxe_config_id))


def assign_pxe_config(conn: Connection, image_id: int, hardware_type_id: int, pxe_config_id: int) -> None:
    """Let a PXE config boot an image on a hardware type, in place of another one."""
    unassign_pxe_config(conn, image_id, hardware_type_id)
    conn.execute(
        insert(image_pxe_configs).values(
            image_id=image_id, hardware_type_id=hardware_type_id, pxe_config_id=pxe_config_id
        )
    )


def unassign_pxe_config(conn: Connection, image_id: int, hardware_type_id: int) -> None:
    """Let nothing boot an image on a hardware type."""
    conn.execute(
        delete(image_pxe_configs).where(
            image_pxe_configs.c.image_id == image_id, image_pxe_configs.c.hardware_type_id == hardware_type_id
        )
    )


# Imaging servers


def imaging_server_id(conn: Connection, fqdn: str) -> int | None:
    """The id of an imaging server, or None."""
    value = conn.scalar(select(imaging_servers.c.id).where(imaging_servers.c.fqdn == fqdn))
    return None if value is None else int(value)


def imaging_server_names(conn: Connection) -> list[str]:
    """The names of all imaging servers."""
    return list(conn.scalars(select(imaging_servers.c.fqdn).order_by(imaging_servers.c.id)))


def ensure_imaging_server(conn: Connection, fqdn: str) -> int:
    """The id of an imaging server, which is added when the database does not know it yet."""
    found = imaging_server_id(conn, fqdn)
    if found is not None:
        return found
    key = conn.execute(insert(imaging_servers).values(fqdn=fqdn)).inserted_primary_key
    assert key is not None
    return int(key[0])
