# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The pages of images, hardware types and environments."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

from flask import Response, current_app

from mozpool.apikit import Site, site
from mozpool.bmm.api import hardware
from mozpool.bmm.catalogue import INTERFACES, revision
from mozpool.bmm.registry import DEFAULTS
from mozpool.db import images, stamps, uses
from mozpool.lifeguard.devicemachine import CATEGORIES, category
from mozpool.pool.criteria import ANY
from mozpool.web.pages.base import Fresh, blueprint, live, pool_stamp

CATALOGUE = "mozpool.catalogue"
"""The key of a ``Fresh[str]`` in the application's extensions that changes with the catalogue's rows."""


def catalogue_rows(here: Site) -> str:
    """A text that changes when any image, hardware type or PXE config does. Raises DatabaseAway."""
    with here.database.read() as conn:
        rows = stamps.catalogue(conn)
    return hashlib.sha1(repr(rows).encode(errors="replace"), usedforsecurity=False).hexdigest()


def catalogue_stamp() -> str:
    """:func:`pool_stamp`, which also changes with the catalogue. Raises DatabaseAway."""
    fresh = current_app.extensions[CATALOGUE]
    assert isinstance(fresh, Fresh)
    return f"{pool_stamp()} {fresh.get()}"


@blueprint.get("/images")
def images_page() -> Response:
    """All images, and what boots each of them on which hardware."""
    return live("images", _images, catalogue_stamp())


def _images() -> dict[str, Any]:
    with site().database.read() as conn:
        found = sorted(images.find(conn), key=lambda image: image.name)
        return {
            "images": [(image, revision(image)) for image in found],
            "devices": uses.devices_with_images(conn),
            "open_requests": uses.requests_for_images(conn),
            "fixed": images.FIXED,
            "hardware": images.sorted_hardware(conn),
            "boots": uses.boots(conn),
            "configs": images.find_pxe_configs(conn),
        }


@blueprint.get("/hardware-types")
def hardware_types() -> Response:
    """All hardware types, and which backends their devices use."""
    return live("hardware_types", _hardware_types, catalogue_stamp())


def _hardware_types() -> dict[str, Any]:
    registry = hardware().bmm.registry
    with site().database.read() as conn:
        found = images.sorted_hardware(conn)
        names = {image.id: image.name for image in images.find(conn)}
        numbers, boots = uses.devices_of_types(conn), uses.boots(conn)
    fits: defaultdict[int, list[str]] = defaultdict(list)
    for image_id, hardware_type_id in boots:
        fits[hardware_type_id].append(names[image_id])
    return {
        "types": [(each, revision(each)) for each in found],
        "devices": numbers,
        "images": {number: sorted(fitting) for number, fitting in fits.items()},
        "interfaces": INTERFACES,
        "backends": {interface: registry.names(interface) for interface in INTERFACES},
        "usual": {name: registry.usual(name) if name in DEFAULTS else "none" for name in INTERFACES},
    }


@blueprint.get("/environments")
def environments_page() -> Response:
    """All environments that devices are in or requests ask for."""
    return live("environments", _environments, pool_stamp())


def _environments() -> dict[str, Any]:
    with site().database.read() as conn:
        found = uses.devices_in_environments(conn)
        asked = uses.requests_for_environments(conn)
    numbers: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for name, state, claimed, number in found:
        numbers[name][category(state, claimed)] += number
    anywhere = asked.pop(ANY, 0)
    rows: list[tuple[str, Mapping[str, int], int]] = [
        (name, numbers[name], asked.get(name, 0)) for name in sorted({*numbers, *asked})
    ]
    return {"environments": rows, "anywhere": anywhere, "categories": CATEGORIES}
