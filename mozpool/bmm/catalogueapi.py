# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The paths of what there is to choose from: images, hardware types, PXE configs and environments.

Each change is one transaction, made on any imaging server; it counts for all of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

from apiflask import APIBlueprint
from flask import Response
from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from mozpool import apikit
from mozpool.apikit import Empty, Input, answer, endpoint, site
from mozpool.bmm import catalogue, schemas
from mozpool.bmm.api import hardware
from mozpool.bmm.catalogue import HardwareChange, ImageChange, NewImage
from mozpool.db import devices, images, uses
from mozpool.db.images import HardwareType, Image, PxeConfig
from mozpool.errors import Conflict, NotFound

blueprint = APIBlueprint("catalogue", __name__, tag="Catalogue", url_prefix="/api")

T = TypeVar("T")


def _run(work: Callable[[Connection], T]) -> T:
    """Do ``work`` in a transaction. Raises Conflict also where only the database sees that it does not fit any more."""
    try:
        return site().database.run(work)
    except IntegrityError as error:
        raise Conflict("somebody else has just changed what this hangs together with: look again") from error


# --- PXE configs ---


@endpoint(blueprint, "/bmm/pxe_config/list/", answers=schemas.PxeConfigList, query=schemas.PxeConfigListQuery)
def pxe_config_list() -> Response:
    """List of PXE configs."""
    query = apikit.query(schemas.PxeConfigListQuery)
    with site().database.read() as conn:
        return answer({"pxe_configs": images.pxe_config_names(conn, active_only=query.active_only)})


def _pxe_config(conn: Connection, config: PxeConfig) -> dict[str, Any]:
    return {
        "id": config.id,
        "name": config.name,
        "description": config.description,
        "contents": config.contents,
        "content": config.contents,
        "version": 1,
        "active": config.active,
        "revision": catalogue.revision(config),
        "used_for": [
            {"image": image, "hardware_type": hardware_type, "hardware_model": model}
            for image, hardware_type, model in images.pxe_config_uses(conn, config.id)
        ],
    }


@endpoint(blueprint, "/bmm/pxe_config/<name>/details/", answers=schemas.PxeConfigAnswer, errors=[404])
def pxe_config_details(name: str) -> Response:
    """A PXE config."""
    with site().database.read() as conn:
        config = images.pxe_config(conn, name)
        if config is None:
            raise NotFound(f"there is no PXE config {name[:64]}", field="pxe_config")
        return answer({"details": _pxe_config(conn, config)})


@endpoint(
    blueprint,
    "/bmm/pxe_config/create/",
    "POST",
    answers=schemas.PxeConfigAnswer,
    body=schemas.NewPxeConfig,
    example={"name": "panda-b2g", "description": "installs B2G", "contents": "DEFAULT b2g ..."},
    errors=[400, 409],
)
def pxe_config_create() -> Response:
    """Add a PXE config."""
    body = apikit.parse(schemas.NewPxeConfig, apikit.json_body())

    def create(conn: Connection) -> dict[str, Any]:
        catalogue.add_pxe_config(conn, body.name, body.description, body.contents, active=body.active)
        return _pxe_config(conn, catalogue.pxe_config(conn, body.name))

    return answer({"details": _run(create)})


@endpoint(
    blueprint,
    "/bmm/pxe_config/<name>/change/",
    "POST",
    answers=schemas.PxeConfigAnswer,
    body=schemas.PxeConfigChange,
    example={"active": False},
    errors=[400, 404, 409],
)
def pxe_config_change(name: str) -> Response:
    """Change a PXE config; it counts from each device's next power cycle on."""
    body = apikit.parse(schemas.PxeConfigChange, apikit.json_body())

    def change(conn: Connection) -> dict[str, Any]:
        catalogue.change_pxe_config(conn, name, body.description, body.contents, body.active, body.based_on)
        return _pxe_config(conn, catalogue.pxe_config(conn, name))

    return answer({"details": _run(change)})


@endpoint(blueprint, "/bmm/pxe_config/<name>/delete/", "POST", answers=Empty, body=Input, errors=[400, 404, 409])
def pxe_config_delete(name: str) -> Response:
    """Delete a PXE config that no image uses and no device is to boot."""
    apikit.json_body()
    _run(lambda conn: catalogue.delete_pxe_config(conn, name))
    return answer({})


@endpoint(
    blueprint,
    "/bmm/pxe_config/check/",
    "POST",
    answers=schemas.PxeConfigOpinion,
    body=schemas.PxeConfigText,
    example={"contents": "DEFAULT b2g ...", "device": "panda-0001"},
    errors=[302, 400, 404],
)
def pxe_config_check() -> Response:
    """Say what may be wrong with the text of a PXE config, and what a device would be given; stores nothing."""
    body = apikit.parse(schemas.PxeConfigText, apikit.json_body())
    text = None
    if body.device is not None:
        text = hardware().bmm.boot_text(body.contents, apikit.own_device(body.device).name)
    return answer({"doubts": catalogue.doubts(body.contents), "text": text})


def _assignment(conn: Connection, name: str, body: schemas.PxeConfigAssignment) -> catalogue.Assignment:
    found = catalogue.assignment(conn, name, body.image, body.hardware_type, body.hardware_model)
    if body.instead_of is not None and body.instead_of != (found.now or ""):
        raise Conflict(f"{found.now or 'nothing'} boots {found.use} since a moment ago: look again")
    return found


@endpoint(
    blueprint,
    "/bmm/pxe_config/<name>/assign/",
    "POST",
    answers=Empty,
    body=schemas.PxeConfigAssignment,
    example={"image": "b2g", "hardware_type": "panda", "hardware_model": "ES"},
    errors=[400, 404, 409],
)
def pxe_config_assign(name: str) -> Response:
    """Let a PXE config boot an image on a hardware type from now on, in place of another one."""
    body = apikit.parse(schemas.PxeConfigAssignment, apikit.json_body())
    _run(lambda conn: catalogue.assign(conn, _assignment(conn, name, body)))
    site().device_changed()
    return answer({})


@endpoint(
    blueprint,
    "/bmm/pxe_config/<name>/unassign/",
    "POST",
    answers=Empty,
    body=schemas.PxeConfigAssignment,
    example={"image": "b2g", "hardware_type": "panda", "hardware_model": "ES"},
    errors=[400, 404, 409],
)
def pxe_config_unassign(name: str) -> Response:
    """Let a PXE config boot an image on a hardware type no longer; without another one, it can't be put there."""
    body = apikit.parse(schemas.PxeConfigAssignment, apikit.json_body())
    _run(lambda conn: catalogue.unassign(conn, _assignment(conn, name, body)))
    site().device_changed()
    return answer({})


# --- Images ---


def _image(conn: Connection, image: Image) -> dict[str, Any]:
    boots = uses.boots(conn)
    return {
        "id": image.id,
        "name": image.name,
        "boot_config_keys": list(image.boot_config_keys),
        "can_reuse": image.can_reuse,
        "hidden": image.hidden,
        "has_sut_agent": image.has_sut_agent,
        "revision": catalogue.revision(image),
        "devices": uses.devices_with_images(conn).get(image.id, 0),
        "open_requests": uses.requests_for_images(conn).get(image.id, 0),
        "boots": [
            {"hardware_type": each.type, "hardware_model": each.model, "pxe_config": boots[image.id, each.id]}
            for each in images.known_hardware(conn)
            if (image.id, each.id) in boots
        ],
    }


@endpoint(blueprint, "/image/<name>/details/", answers=schemas.ImageAnswer, errors=[404])
def image_details(name: str) -> Response:
    """An image and what uses it."""
    with site().database.read() as conn:
        return answer({"details": _image(conn, catalogue.image(conn, name))})


@endpoint(
    blueprint,
    "/image/create/",
    "POST",
    answers=schemas.ImageAnswer,
    body=schemas.NewImage,
    example={"name": "b2g", "boot_config_keys": ["b2gbase"], "can_reuse": True},
    errors=[400, 409],
)
def image_create() -> Response:
    """Add an image; what boots it on which hardware type is said by `assign` of a PXE config."""
    body = apikit.parse(schemas.NewImage, apikit.json_body())
    new = NewImage(
        body.name, body.boot_config_keys, body.can_reuse, has_sut_agent=body.has_sut_agent, hidden=body.hidden
    )

    def create(conn: Connection) -> dict[str, Any]:
        catalogue.add_image(conn, new)
        return _image(conn, catalogue.image(conn, body.name))

    return answer({"details": _run(create)})


@endpoint(
    blueprint,
    "/image/<name>/change/",
    "POST",
    answers=schemas.ImageAnswer,
    body=schemas.ImageChange,
    example={"hidden": True},
    errors=[400, 404, 409],
)
def image_change(name: str) -> Response:
    """Change an image; devices and requests that have it keep it."""
    change = ImageChange(**apikit.parse(schemas.ImageChange, apikit.json_body()).model_dump())
    said = _run(lambda conn: _image(conn, catalogue.change_image(conn, name, change)))
    site().device_changed()
    return answer({"details": said})


@endpoint(blueprint, "/image/<name>/delete/", "POST", answers=Empty, body=Input, errors=[400, 404, 409])
def image_delete(name: str) -> Response:
    """Delete an image that no device, request or PXE config uses."""
    apikit.json_body()
    _run(lambda conn: catalogue.delete_image(conn, name))
    return answer({})


# --- Hardware types ---


def _hardware_types(conn: Connection, known: list[HardwareType]) -> list[dict[str, Any]]:
    numbers, boots = uses.devices_of_types(conn), uses.boots(conn)
    names = {image.id: image.name for image in images.find(conn)}
    return [
        {
            "id": each.id,
            "type": each.type,
            "model": each.model,
            "backends": dict(each.backends),
            "revision": catalogue.revision(each),
            "devices": numbers.get(each.id, 0),
            "images": sorted(names[image] for image, hardware_type in boots if hardware_type == each.id),
        }
        for each in sorted(known, key=lambda each: (each.type, each.model))
    ]


def _number(text: str) -> int:
    if not re.fullmatch(r"\d{1,9}", text, re.ASCII):
        raise NotFound(f"there is no hardware type {text[:64]}", field="hardware_type")
    return int(text)


@endpoint(blueprint, "/hardware_type/list/", answers=schemas.HardwareTypeList)
def hardware_type_list() -> Response:
    """List of hardware types."""
    with site().database.read() as conn:
        return answer({"hardware_types": _hardware_types(conn, images.known_hardware(conn))})


@endpoint(
    blueprint,
    "/hardware_type/create/",
    "POST",
    answers=schemas.HardwareTypeAnswer,
    body=schemas.NewHardwareType,
    example={"type": "panda", "model": "ES", "backends": {"probe": "fping"}},
    errors=[400, 409],
)
def hardware_type_create() -> Response:
    """Add a kind of device."""
    body = apikit.parse(schemas.NewHardwareType, apikit.json_body())
    registry = hardware().bmm.registry

    def create(conn: Connection) -> dict[str, Any]:
        catalogue.add_hardware_type(conn, body.type, body.model, body.backends, registry)
        added = catalogue.hardware_type(conn, body.type, body.model)
        return _hardware_types(conn, [added])[0]

    return answer({"hardware_type": _run(create)})


@endpoint(
    blueprint,
    "/hardware_type/<number>/change/",
    "POST",
    answers=schemas.HardwareTypeAnswer,
    body=schemas.HardwareTypeChange,
    example={"backends": {"power": "pdudaemon"}},
    errors=[400, 404, 409],
)
def hardware_type_change(number: str) -> Response:
    """Change a kind of device; its devices stay of it, and use the new backends from their next operation on."""
    body = apikit.parse(schemas.HardwareTypeChange, apikit.json_body())
    change, registry = HardwareChange(**body.model_dump()), hardware().bmm.registry

    def work(conn: Connection) -> dict[str, Any]:
        return _hardware_types(conn, [catalogue.change_hardware_type(conn, _number(number), change, registry)])[0]

    said = _run(work)
    site().device_changed()
    return answer({"hardware_type": said})


@endpoint(blueprint, "/hardware_type/<number>/delete/", "POST", answers=Empty, body=Input, errors=[400, 404, 409])
def hardware_type_delete(number: str) -> Response:
    """Delete a kind of device that no device is of, and that no image can be put on."""
    apikit.json_body()
    _run(lambda conn: catalogue.delete_hardware_type(conn, _number(number)))
    return answer({})


# --- Environments ---


@endpoint(blueprint, "/environment/list/", answers=schemas.EnvironmentList, query=schemas.EnvironmentListQuery)
def environment_list() -> Response:
    """List of environments that devices are in."""
    query = apikit.query(schemas.EnvironmentListQuery)
    with site().database.read() as conn:
        if not query.details:
            return answer({"environments": devices.environments(conn)})
        numbers = uses.devices_in_environments(conn)
        asked = uses.requests_for_environments(conn)
    names = sorted({name for name, *_rest in numbers})
    details = [
        {
            "name": name,
            "devices": sum(number for environment, _state, _claimed, number in numbers if environment == name),
            "open_requests": asked.get(name, 0),
        }
        for name in names
    ]
    return answer({"environments": names, "details": details})


@endpoint(
    blueprint,
    "/environment/rename/",
    "POST",
    answers=schemas.Moved,
    body=schemas.EnvironmentRename,
    example={"environment": "staging", "name": "stage"},
    errors=[400, 404, 409],
)
def environment_rename() -> Response:
    """Put all devices of an environment into another one; requests that ask for the old one are left as they are."""
    body = apikit.parse(schemas.EnvironmentRename, apikit.json_body())
    moved = _run(lambda conn: catalogue.rename_environment(conn, body.environment, body.name, merge=body.merge))
    here = hardware()
    for device in moved:
        here.note(device, f"environment {body.environment} -> {body.name}")
    site().device_changed()
    return answer({"devices": len(moved)})
