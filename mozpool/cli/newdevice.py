# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What ``mozpool-db add-device`` checks and writes."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Connection

from mozpool.bmm.backends.proxr import RelayInfo
from mozpool.bmm.catalogue import backend_names, hardware_type, one_of
from mozpool.bmm.interfaces import mac_address
from mozpool.bmm.registration import device_name
from mozpool.cli.common import named, registry
from mozpool.config import Settings
from mozpool.db import devices, images
from mozpool.errors import BadInput
from mozpool.lifeguard.inventory import hosts


@dataclass(frozen=True)
class NewDevice:
    """A device as the options describe it."""

    name: str
    mac: str
    address: str | None = None
    hardware_type: str | None = None
    hardware_model: str | None = None
    relay_info: str | None = None
    environment: str | None = None
    labels: str | None = None
    backends: Mapping[str, str | None] | None = None
    server: str | None = None


def add(conn: Connection, new: NewDevice, settings: Settings, rng: random.Random) -> str:
    """Add the device, in state new, and answer which imaging server's it is. Raises BadInput."""
    if new.hardware_type is None and new.hardware_model is not None:
        raise BadInput.value("--model", new.hardware_model, "of any use without --type")
    with named(hardware_type="--type", hardware_model="--model"):
        hardware = None if new.hardware_type is None else hardware_type(conn, new.hardware_type, new.hardware_model)
        backends = backend_names(new.backends or {}, registry())
    power = backends.get("power") or (hardware.backends.get("power") if hardware else None) or settings.bmm.power
    if new.relay_info is not None and power == "proxr":
        RelayInfo.parse(new.relay_info, "--relay-info")
    where = new.name if new.address is None else hosts.address("--address", new.address)
    is_number = hosts.is_ip_address(where)
    labels = hosts.labels("--labels", new.labels or "")
    server, server_id = _server(conn, new.server, settings)
    values = {
        "name": device_name(new.name),
        "fqdn": new.name if is_number else where,
        "address": where if is_number else None,
        "inventory_id": 0,
        "mac_address": mac_address(new.mac, "--mac"),
        "imaging_server_id": server_id,
        "relay_info": new.relay_info,
        "environment": "none" if new.environment is None else hosts.environment("--environment", new.environment),
        "hardware_type_id": hardware.id if hardware else None,
        "backends": json.dumps(backends) if backends else None,
    }
    if devices.key_by_name(conn, new.name) is not None:
        raise BadInput.value("NAME", new.name, "free: there is a device of this name")
    devices.set_labels(conn, devices.insert_device(conn, rng, **values), labels)
    return server


def _server(conn: Connection, named: str | None, settings: Settings) -> tuple[str, int]:
    """Name and id; a server that was never started is not known, which finds typing errors."""
    name, option = (settings.server.fqdn, "[server] fqdn") if named is None else (named, "--server")
    found = images.imaging_server_id(conn, name)
    if found is None:
        known = images.imaging_server_names(conn)
        raise BadInput.value(option, name, one_of("imaging server that was started once", known))
    return name, found
