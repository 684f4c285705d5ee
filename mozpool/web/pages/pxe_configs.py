# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The pages of PXE configs."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from flask import Response, make_response, render_template, request
from sqlalchemy import Connection

from mozpool.apikit import site
from mozpool.bmm.api import hardware
from mozpool.bmm.catalogue import PLACEHOLDERS, doubts, revision
from mozpool.db import devices, images, uses
from mozpool.db.devices import Filter
from mozpool.db.images import PxeConfig
from mozpool.errors import NotFound
from mozpool.web.pages.base import PART, blueprint, live
from mozpool.web.pages.catalogue import catalogue_stamp

MOST_OFFERED = 20
"""Devices that are offered to see the text written for."""

BLANK = """\
DEFAULT live
TIMEOUT 1
LABEL live
    KERNEL KERNEL-FILE
    INITRD INITRD-FILE
    APPEND ip=dhcp rw mozpool-token=%TOKEN% mobile-imaging-url=%URL%/scripts/SECOND-STAGE.sh
"""
"""What a new PXE config begins as."""


@blueprint.get("/pxe-configs")
def pxe_configs() -> Response:
    """The list."""
    return live("pxe_configs", _list, catalogue_stamp())


def _list() -> dict[str, Any]:
    with site().database.read() as conn:
        found = images.find_pxe_configs(conn)
        boots, booting = uses.boots(conn), uses.devices_with_pxe_configs(conn)
        names = {image.id: image.name for image in images.find(conn)}
        hardware_types = {each.id: f"{each.type} {each.model}" for each in images.known_hardware(conn)}
    used: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    for (image_id, hardware_type_id), config in boots.items():
        used[config].append((names[image_id], hardware_types[hardware_type_id]))
    return {
        "configs": found,
        "used": {config: sorted(each) for config, each in used.items()},
        "booting": booting,
    }


@blueprint.get("/new-pxe-config")
def pxe_config_new() -> Response:
    """A new PXE config; ``?copy=NAME`` begins with another one's text."""
    name = request.args.get("copy")
    with site().database.read() as conn:
        copied = None if name is None else images.pxe_config(conn, name)
        if name is not None and copied is None:
            raise NotFound(f"there is no PXE config {name[:64]}", field="copy")
        contents = copied.contents if copied else BLANK
        values = _editor(conn, contents)
    page = render_template("pxe_config_new.html", copied=copied, contents=contents, **values)
    return make_response(page)


@blueprint.get("/pxe-configs/<name>")
def pxe_config_page(name: str) -> Response:
    """One PXE config."""
    return live("pxe_config", lambda: _one(name), catalogue_stamp())


def _one(name: str) -> dict[str, Any]:
    with site().database.read() as conn:
        config = images.pxe_config(conn, name)
        if config is None:
            if PART not in request.headers:
                raise NotFound(f"there is no PXE config {name[:64]}")
            return {"config": None, "name": name}  # it is gone since the page was opened
        values = {} if PART in request.headers else _editor(conn, config.contents, config)
        return {
            "config": config,
            "name": name,
            "revision": revision(config),
            "booting": uses.booting(conn, config.name),
            "images": sorted(images.find(conn), key=lambda image: image.name),
            "hardware": images.sorted_hardware(conn),
            "boots": uses.boots(conn),
            **values,
        }


def _editor(conn: Connection, contents: str, config: PxeConfig | None = None) -> dict[str, Any]:
    """What stands round the text while it is edited."""
    offered = _devices_for(conn, config)
    device = offered[0] if offered else None
    return {
        "placeholders": PLACEHOLDERS,
        "doubts": doubts(contents),
        "offered": offered,
        "device": device,
        "written": None if device is None else hardware().bmm.boot_text(contents, device),
    }


def _devices_for(conn: Connection, config: PxeConfig | None) -> list[str]:
    """A few devices of this server that may boot a PXE config, else any of its devices."""
    mine = site().settings.server.fqdn
    kinds = images.pxe_config_uses(conn, config.id)[:3] if config is not None else []
    found: list[str] = []
    for _image, type_, model in kinds:
        wanted = Filter(hardware_type=type_, hardware_model=model, imaging_server=mine)
        found += [row.name for row in devices.find(conn, wanted, limit=MOST_OFFERED) if row.name not in found]
    found = found or [row.name for row in devices.find(conn, Filter(imaging_server=mine), limit=MOST_OFFERED)]
    return found[:MOST_OFFERED]
