# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What ``mozpool-db`` and ``pxe-config`` check and write of images, hardware types and PXE configs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from mozpool.cli.newdevice import backend_names, hardware_type, one_of
from mozpool.db import images
from mozpool.db.images import HardwareType, Image, PxeConfig
from mozpool.errors import BadInput, Conflict

TEXT = 65_535
"""Bytes that a TEXT column holds."""

PLACEHOLDERS = ("%IPADDRESS%", "%URL%", "%DEVICE%")
"""What becomes something else when a PXE config is written for a device."""

SECOND_STAGE = "mobile-imaging-url="
"""The kernel's argument that tells the live image which script to run (wire facts: PXE)."""

_PLACEHOLDER = re.compile(r"%[A-Za-z_]{3,}%")


def _name(field: str, text: str) -> str:
    if not 1 <= len(text) <= 32 or text != text.strip() or "/" in text or not text.isprintable():
        raise BadInput.value(field, text, "1 to 32 printable characters without '/', nor spaces at its ends")
    return text


def _text(field: str, text: str) -> str:
    if not text.strip() or "\0" in text or len(text.encode(errors="replace")) > TEXT:
        raise BadInput.value(field, text, f"1 to {TEXT} bytes of text")
    return text


# --- Hardware types and images ---


def add_hardware_type(conn: Connection, type_: str, model: str, backends: Mapping[str, str | None]) -> None:
    """Add a hardware type; ``backends`` are interface → name, None for the usual one. Raises BadInput."""
    chosen = backend_names(backends)
    _name("TYPE", type_)
    _name("MODEL", model)
    known = {(each.type.lower(), each.model.lower()) for each in images.known_hardware(conn)}
    if (type_.lower(), model.lower()) in known:
        raise BadInput.value("TYPE MODEL", f"{type_} {model}", "new: there is this hardware type")
    images.add_hardware_type(conn, type_, model, chosen)


@dataclass(frozen=True)
class NewImage:
    """An image as the options describe it."""

    name: str
    boot_config_keys: Sequence[str] = ()
    can_reuse: bool = False
    has_sut_agent: bool = True
    hidden: bool = False


def add_image(conn: Connection, new: NewImage) -> None:
    """Add an image. Raises BadInput."""
    _name("NAME", new.name)
    for key in new.boot_config_keys:
        if not key.strip() or new.boot_config_keys.count(key) > 1:
            raise BadInput.value("--boot-config-key", key, "a key that is named once")
    if len(json.dumps(list(new.boot_config_keys))) > TEXT:
        raise BadInput(f"--boot-config-key: all together take more than {TEXT} bytes", field="--boot-config-key")
    if images.by_name(conn, new.name) is not None:
        raise BadInput.value("NAME", new.name, "free: there is an image of this name")
    images.add(
        conn,
        new.name,
        new.boot_config_keys,
        can_reuse=new.can_reuse,
        hidden=new.hidden,
        has_sut_agent=new.has_sut_agent,
    )


# --- PXE configs ---


def doubts(contents: str) -> list[str]:
    """What may be wrong with the text of a PXE config, in sentences."""
    found = []
    if SECOND_STAGE not in contents:
        found.append(f"there is no {SECOND_STAGE} in it: the live image will not know what to run")
    unknown = sorted(set(_PLACEHOLDER.findall(contents)) - set(PLACEHOLDERS))
    found += [f"{name} stays as it is: known are {', '.join(PLACEHOLDERS)}" for name in unknown]
    return found


def pxe_config(conn: Connection, name: str) -> PxeConfig:
    """The PXE config of this name. Raises BadInput."""
    found = images.pxe_config(conn, name)
    if found is None:
        raise BadInput.value("NAME", name, one_of("PXE config", images.pxe_config_names(conn)))
    return found


def add_pxe_config(conn: Connection, name: str, description: str, contents: str, *, active: bool) -> None:
    """Add a PXE config. Raises BadInput."""
    values = {"description": _text("--description", description), "contents": _text("--config", contents)}
    if images.pxe_config(conn, _name("NAME", name)) is not None:
        raise BadInput.value("NAME", name, "free: there is a PXE config of this name")
    images.add_pxe_config(conn, name=name, **values, active=int(active))


def change_pxe_config(
    conn: Connection, name: str, description: str | None, contents: str | None, active: bool | None
) -> None:
    """Change what is not None of a PXE config. Raises BadInput."""
    config = pxe_config(conn, name)
    values: dict[str, str | int] = {}
    if description is not None:
        values["description"] = _text("--description", description)
    if contents is not None:
        values["contents"] = _text("--config", contents)
    if active is not None:
        values["active"] = int(active)
    images.change_pxe_config(conn, config.id, values)


def check_unused(conn: Connection, name: str) -> PxeConfig:
    """The PXE config of this name. Raises BadInput, and Conflict when something uses it."""
    config = pxe_config(conn, name)
    uses = [use_text(use) for use in images.pxe_config_uses(conn, config.id)]
    uses += [f"device {device}" for device in images.devices_that_boot(conn, config.name)]
    if uses:
        shown = ", ".join(uses[:5]) + (f" and {len(uses) - 5} more" if len(uses) > 5 else "")
        raise Conflict(f"PXE config {config.name} is used: {shown} (see `pxe-config unassign`)")
    return config


def delete_pxe_config(conn: Connection, name: str) -> None:
    """Delete a PXE config. Raises BadInput, and Conflict when something uses it."""
    images.delete_pxe_config(conn, check_unused(conn, name).id)


def use_text(use: tuple[str, str, str]) -> str:
    """What a PXE config is used for: (image, hardware type, model) in words."""
    image, type_, model = use
    return f"{image} on {type_} {model}"


@dataclass(frozen=True)
class Assignment:
    """Which image on which hardware a PXE config is to boot, or no longer."""

    config: PxeConfig
    image: Image
    hardware: HardwareType
    now: str | None
    """The name of the config that boots it now."""

    @property
    def use(self) -> str:
        """Image and hardware in words."""
        return use_text((self.image.name, self.hardware.type, self.hardware.model))


def assignment(conn: Connection, name: str, image: str, type_: str, model: str | None) -> Assignment:
    """Look up what the options name. Raises BadInput."""
    config = pxe_config(conn, name)
    found = images.by_name(conn, image)
    if found is None:
        raise BadInput.value("--image", image, one_of("image", sorted(each.name for each in images.find(conn))))
    hardware = hardware_type(conn, type_, model)
    return Assignment(config, found, hardware, images.pxe_config_for(conn, hardware.id, found.id))


def assign(conn: Connection, wanted: Assignment) -> None:
    """Let the config boot the image on the hardware from now on. Raises Conflict when that has changed meanwhile."""
    _still(conn, wanted)
    images.assign_pxe_config(conn, wanted.image.id, wanted.hardware.id, wanted.config.id)


def check_assigned(wanted: Assignment) -> None:
    """Raise Conflict unless the config boots the image on the hardware."""
    if wanted.now != wanted.config.name:
        raise Conflict(f"PXE config {wanted.config.name} does not boot {wanted.use}: {wanted.now or 'nothing'} does")


def unassign(conn: Connection, wanted: Assignment) -> None:
    """Let nothing boot the image on the hardware. Raises Conflict when something else does."""
    check_assigned(wanted)
    _still(conn, wanted)
    images.unassign_pxe_config(conn, wanted.image.id, wanted.hardware.id)


def _still(conn: Connection, wanted: Assignment) -> None:
    now = images.pxe_config_for(conn, wanted.hardware.id, wanted.image.id)
    if now != wanted.now:
        raise Conflict(f"{wanted.use} is booted by {now or 'nothing'} since a moment ago: look again")
