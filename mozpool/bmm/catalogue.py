# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What is checked and written of images, hardware types, PXE configs and environments, by whoever changes them.

What is wrong is named as the API's keys are: a name that does not exist is NotFound, one that is taken Conflict, both
with their ``field``; a Conflict without one says what stands in the way. Every function is given the transaction that
it is part of.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from sqlalchemy import Connection

from mozpool.bmm.registry import BUILT_IN, Registry
from mozpool.db import devices, images, uses
from mozpool.db.devices import DeviceName
from mozpool.db.images import HardwareType, Image, PxeConfig
from mozpool.db.tables import MAX_COLUMN
from mozpool.errors import BadInput, Conflict, MozpoolError, NotFound

PLACEHOLDERS: Mapping[str, str] = {
    "%IPADDRESS%": "the imaging server's IP address",
    "%URL%": "where boards reach the imaging server, without a slash at the end",
    "%DEVICE%": "the device's name",
    "%TOKEN%": "the token of the device's boot, made anew for each",
}
"""What becomes something else when a PXE config is written for a device."""

SECOND_STAGE = "mobile-imaging-url="
"""The kernel's argument that tells the live image which script to run (wire facts: PXE)."""

INTERFACES = tuple(BUILT_IN)
"""What a device or a hardware type may name a backend for."""

MOST_NAMED = 5
"""Of what stands in the way, so much is named."""

_PLACEHOLDER = re.compile(r"%[A-Za-z_]{3,}%")


def one_of(what: str, names: Sequence[str]) -> str:
    """What was expected: one of these, of which there may be none."""
    article = "an" if what[0] in "aeiou" else "a"
    return f"{article} {what}; there {'is' if len(names) < 2 else 'are'} {', '.join(names) or 'none'}"


def some_of(names: Sequence[str], number: int | None = None) -> str:
    """The first few names, and how many more there are; ``number`` is how many there are in all."""
    more = (len(names) if number is None else number) - min(len(names), MOST_NAMED)
    return ", ".join(names[:MOST_NAMED]) + (f" and {more} more" if more else "")


def _value(kind: type[MozpoolError], field: str, value: object, expected: str) -> MozpoolError:
    """An error of this kind in the words of BadInput."""
    return kind(BadInput.value(field, value, expected).message, field=field)


def _name(field: str, text: str) -> str:
    if not 1 <= len(text) <= 32 or text != text.strip() or "/" in text or not text.isprintable():
        raise BadInput.value(field, text, "1 to 32 printable characters without '/', nor spaces at its ends")
    return text


def _text(field: str, text: str) -> str:
    if not text.strip() or "\0" in text or len(text.encode(errors="replace")) > MAX_COLUMN:
        raise BadInput.value(field, text, f"1 to {MAX_COLUMN} bytes of text")
    return text


def revision(row: PxeConfig | Image | HardwareType) -> str:
    """A short text that is another one as soon as anything of the row is."""
    values = [dict(value) if isinstance(value, Mapping) else value for value in vars(row).values()]
    return hashlib.sha1(json.dumps(values, sort_keys=True).encode(), usedforsecurity=False).hexdigest()[:16]


def check_revision(row: PxeConfig | Image | HardwareType, based_on: str | None, what: str) -> None:
    """Raise Conflict when a change is based on another revision; None: it does not matter."""
    if based_on is not None and based_on != revision(row):
        raise Conflict(f"somebody else has changed {what} meanwhile: look at it again")


# --- Hardware types ---


def backend_names(named: Mapping[str, str | None], registry: Registry) -> dict[str, str]:
    """Interface to name of those that are named. Raises BadInput for one that is not installed."""
    chosen = {interface: name for interface, name in named.items() if name}
    for interface, name in chosen.items():
        if interface not in INTERFACES:
            raise BadInput.value("backends", interface, f"one of {', '.join(INTERFACES)}")
        if name not in registry.names(interface):
            expected = one_of(f"{interface} backend", registry.names(interface))
            raise BadInput.value(f"backends.{interface}", name, expected)
    return chosen


def hardware_type(conn: Connection, type_: str, model: str | None) -> HardwareType:
    """The hardware type of this name; a type with one model needs no model. Raises BadInput, NotFound."""
    known = images.known_hardware(conn)
    of_type = [hardware for hardware in known if hardware.type == type_]
    if not of_type:
        expected = one_of("hardware type", sorted({hardware.type for hardware in known}))
        raise _value(NotFound, "hardware_type", type_, expected)
    models = sorted(hardware.model for hardware in of_type)
    if model is None and len(of_type) > 1:
        raise BadInput(f"hardware_model: is missing; {type_} has {', '.join(models)}", field="hardware_model")
    for hardware in of_type:
        if model in (None, hardware.model):
            return hardware
    raise _value(NotFound, "hardware_model", model, one_of(f"model of {type_}", models))


def hardware_by_id(conn: Connection, number: int) -> HardwareType:
    """The hardware type with this id. Raises NotFound."""
    for hardware in images.known_hardware(conn):
        if hardware.id == number:
            return hardware
    raise NotFound(f"there is no hardware type {number}", field="hardware_type")


def _check_new_hardware(conn: Connection, type_: str, model: str, besides: int | None = None) -> None:
    _name("type", type_)
    _name("model", model)
    for each in images.known_hardware(conn):
        if each.id != besides and (each.type.lower(), each.model.lower()) == (type_.lower(), model.lower()):
            raise _value(Conflict, "model", f"{type_} {model}", "new: there is this hardware type")


def add_hardware_type(
    conn: Connection, type_: str, model: str, backends: Mapping[str, str | None], registry: Registry
) -> None:
    """Add a hardware type; ``backends`` are interface → name, None for the usual one. Raises BadInput, Conflict."""
    chosen = backend_names(backends, registry)
    _check_new_hardware(conn, type_, model)
    images.add_hardware_type(conn, type_, model, chosen)


@dataclass(frozen=True)
class HardwareChange:
    """What is to be changed of a hardware type; None stays as it is."""

    type: str | None = None
    model: str | None = None
    backends: Mapping[str, str | None] | None = None
    """All that it is to name: interface → name."""
    based_on: str | None = None


def change_hardware_type(conn: Connection, number: int, change: HardwareChange, registry: Registry) -> HardwareType:
    """Change a hardware type and answer what it is now. Raises BadInput, Conflict, NotFound."""
    images.lock_hardware_type(conn, number)
    found = hardware_by_id(conn, number)
    check_revision(found, change.based_on, f"hardware type {found.type} {found.model}")
    type_ = found.type if change.type is None else change.type
    model = found.model if change.model is None else change.model
    if (type_, model) != (found.type, found.model):
        _check_new_hardware(conn, type_, model, besides=number)
    backends = dict(found.backends)
    if change.backends is not None:
        others = {key: value for key, value in backends.items() if key not in INTERFACES}
        # One that is not installed (any more) may stay.
        new = {key: name for key, name in change.backends.items() if name != backends.get(key)}
        kept = {key: name for key, name in change.backends.items() if name and key not in new}
        backends = {**others, **kept, **backend_names(new, registry)}
    now = replace(found, type=type_, model=model, backends=backends)
    images.change_hardware_type(conn, now)
    return now


def delete_hardware_type(conn: Connection, number: int) -> None:
    """Delete a hardware type. Raises NotFound, and Conflict when something uses it."""
    found = hardware_by_id(conn, number)
    _check_unused(f"hardware type {found.type} {found.model}", uses.of_hardware_type(conn, number))
    images.delete_hardware_type(conn, number)


def _check_unused(what: str, found: Iterable[uses.Use]) -> None:
    """Raise Conflict that says what uses it."""
    shown = [f"{use.what} {some_of(use.names, use.number)}" for use in found if use.number]
    if shown:
        raise Conflict(f"{what} is used by {'; by '.join(shown)}")


# --- Images ---


@dataclass(frozen=True)
class NewImage:
    """An image as it is to be."""

    name: str
    boot_config_keys: Sequence[str] = ()
    can_reuse: bool = False
    has_sut_agent: bool = True
    hidden: bool = False


def image(conn: Connection, name: str, field: str = "image") -> Image:
    """The image of this name. Raises NotFound."""
    found = images.by_name(conn, name)
    if found is None:
        raise _value(NotFound, field, name, one_of("image", sorted(each.name for each in images.find(conn))))
    return found


def _check_keys(keys: Sequence[str]) -> None:
    for key in keys:
        if not key.strip() or keys.count(key) > 1:
            raise BadInput.value("boot_config_keys", key, "a key that is named once")
    if len(json.dumps(list(keys))) > MAX_COLUMN:
        raise BadInput(f"boot_config_keys: all together take more than {MAX_COLUMN} bytes", field="boot_config_keys")


def _check_new_image(conn: Connection, name: str) -> None:
    if images.by_name(conn, _name("name", name)) is not None:
        raise _value(Conflict, "name", name, "free: there is an image of this name")


def add_image(conn: Connection, new: NewImage) -> None:
    """Add an image. Raises BadInput, Conflict."""
    _name("name", new.name)
    _check_keys(new.boot_config_keys)
    _check_new_image(conn, new.name)
    images.add(
        conn,
        new.name,
        new.boot_config_keys,
        can_reuse=new.can_reuse,
        hidden=new.hidden,
        has_sut_agent=new.has_sut_agent,
    )


@dataclass(frozen=True)
class ImageChange:
    """What is to be changed of an image; None stays as it is."""

    name: str | None = None
    boot_config_keys: Sequence[str] | None = None
    can_reuse: bool | None = None
    has_sut_agent: bool | None = None
    hidden: bool | None = None
    based_on: str | None = None


def change_image(conn: Connection, name: str, change: ImageChange) -> Image:
    """Change an image and answer what it is now. Raises BadInput, Conflict, NotFound."""
    images.lock(conn, name)
    found = image(conn, name)
    check_revision(found, change.based_on, f"image {name}")
    new = found.name if change.name is None else change.name
    if new != found.name:
        _check_not_fixed(found, "renamed")
        _check_new_image(conn, new)
        if new.lower() != found.name.lower():
            images.check_free_for_image(conn, new)
    keys = found.boot_config_keys if change.boot_config_keys is None else tuple(change.boot_config_keys)
    if keys != found.boot_config_keys:
        _check_keys(keys)
    now = Image(
        id=found.id,
        name=new,
        boot_config_keys=keys,
        can_reuse=found.can_reuse if change.can_reuse is None else change.can_reuse,
        hidden=found.hidden if change.hidden is None else change.hidden,
        has_sut_agent=found.has_sut_agent if change.has_sut_agent is None else change.has_sut_agent,
    )
    images.change(conn, now)
    return now


def delete_image(conn: Connection, name: str) -> None:
    """Delete an image. Raises NotFound, and Conflict when something uses it."""
    found = image(conn, name)
    _check_not_fixed(found, "deleted")
    _check_unused(f"image {name}", uses.of_image(conn, found.id))
    images.delete_image(conn, found.id)


def _check_not_fixed(found: Image, what: str) -> None:
    if found.name in images.FIXED:
        raise Conflict(f"image {found.name} can't be {what}: LifeGuard looks for it by this name")


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
    """The PXE config of this name. Raises NotFound."""
    found = images.pxe_config(conn, name)
    if found is None:
        raise _value(NotFound, "pxe_config", name, one_of("PXE config", images.pxe_config_names(conn)))
    return found


def add_pxe_config(conn: Connection, name: str, description: str, contents: str, *, active: bool) -> None:
    """Add a PXE config. Raises BadInput, Conflict."""
    values = {"description": _text("description", description), "contents": _text("contents", contents)}
    if images.pxe_config(conn, _name("name", name)) is not None:
        raise _value(Conflict, "name", name, "free: there is a PXE config of this name")
    images.add_pxe_config(conn, name=name, **values, active=int(active))


def change_pxe_config(
    conn: Connection,
    name: str,
    description: str | None,
    contents: str | None,
    active: bool | None,
    based_on: str | None = None,
) -> None:
    """Change what is not None of a PXE config. Raises BadInput, Conflict, NotFound."""
    images.lock_pxe_config(conn, name)
    config = pxe_config(conn, name)
    check_revision(config, based_on, f"PXE config {name}")
    values: dict[str, str | int] = {}
    if description is not None:
        values["description"] = _text("description", description)
    if contents is not None:
        values["contents"] = _text("contents", contents)
    if active is not None:
        values["active"] = int(active)
    if values:
        images.change_pxe_config(conn, config.id, values)


def check_unused(conn: Connection, name: str) -> PxeConfig:
    """The PXE config of this name. Raises NotFound, and Conflict when something uses it."""
    config = pxe_config(conn, name)
    found = [use_text(use) for use in images.pxe_config_uses(conn, config.id)]
    found += [f"device {device}" for device in images.devices_that_boot(conn, config.name)]
    if found:
        raise Conflict(f"PXE config {config.name} is used: {some_of(found)}")
    return config


def delete_pxe_config(conn: Connection, name: str) -> None:
    """Delete a PXE config. Raises NotFound, and Conflict when something uses it."""
    images.delete_pxe_config(conn, check_unused(conn, name).id)


def use_text(use: tuple[str, str, str]) -> str:
    """What a PXE config is used for: (image, hardware type, model) in words."""
    image_name, type_, model = use
    return f"{image_name} on {type_} {model}"


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


def assignment(conn: Connection, name: str, image_name: str, type_: str, model: str | None) -> Assignment:
    """Look up what is named. Raises BadInput, NotFound."""
    config = pxe_config(conn, name)
    found = image(conn, image_name)
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


# --- Environments ---


def rename_environment(conn: Connection, old: str, new: str, *, merge: bool) -> list[DeviceName]:
    """Put all devices of an environment into another one, and answer which they are.

    Raises NotFound, and Conflict when there are devices in the new one already, unless ``merge`` says that they may
    come together.
    """
    known = devices.environments(conn)
    moved = devices.in_environment(conn, old)
    if not moved:
        raise _value(NotFound, "environment", old, one_of("environment of devices", known))
    if new == old:
        raise Conflict(f"environment {old} has this name already", field="name")
    alike = [name for name in known if name.lower() == new.lower() and name != old]
    if alike and not (merge and new in alike):
        raise Conflict(f"there is an environment {alike[0]}: its devices could not be told from these", field="name")
    devices.move_environment(conn, old, new)
    return moved
