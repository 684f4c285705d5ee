# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What ``mozpool-db add-device`` checks and writes."""

from __future__ import annotations

import ipaddress
import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import TypeAdapter, ValidationError
from sqlalchemy import Connection

from mozpool.apikit import Labels
from mozpool.bmm.backends.proxr import RelayInfo
from mozpool.bmm.interfaces import BackendContext
from mozpool.bmm.registration import device_name
from mozpool.bmm.registry import BUILT_IN, Registry
from mozpool.clock import Clock
from mozpool.config import Settings
from mozpool.db import devices, images
from mozpool.db.images import HardwareType
from mozpool.errors import BadInput
from mozpool.pool.criteria import ANY

INTERFACES = tuple(BUILT_IN)
"""What a device may name a backend for."""

_MAC = re.compile(r"[0-9a-f]{12}|[0-9a-f]{2}(?:([:-])[0-9a-f]{2})(?:\1[0-9a-f]{2}){4}")
_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")


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
    hardware = None if new.hardware_type is None else hardware_type(conn, new.hardware_type, new.hardware_model)
    backends = backend_names(new.backends or {})
    power = backends.get("power") or (hardware.backends.get("power") if hardware else None) or settings.bmm.power
    if new.relay_info is not None and power == "proxr":
        RelayInfo.parse(new.relay_info, "--relay-info")
    fqdn, address = _where(new.name, new.address)
    labels = _labels(new.labels)
    server, server_id = _server(conn, new.server, settings)
    values = {
        "name": device_name(new.name),
        "fqdn": fqdn,
        "address": address,
        "inventory_id": 0,
        "mac_address": _mac(new.mac),
        "imaging_server_id": server_id,
        "relay_info": new.relay_info,
        "environment": _environment(new.environment),
        "hardware_type_id": hardware.id if hardware else None,
        "backends": json.dumps(backends) if backends else None,
    }
    if devices.key_by_name(conn, new.name) is not None:
        raise BadInput.value("NAME", new.name, "free: there is a device of this name")
    devices.set_labels(conn, devices.insert_device(conn, rng, **values), labels)
    return server


def _mac(text: str) -> str:
    if not _MAC.fullmatch(text.lower()):
        raise BadInput.value("--mac", text, "a MAC address such as aabbccddeeff or aa:bb:cc:dd:ee:ff")
    return re.sub("[:-]", "", text.lower())


def _where(name: str, address: str | None) -> tuple[str, str | None]:
    """The host name and, where that is not what the device answers at, the IP address."""
    if address is None:
        return name, None
    try:
        return name, str(ipaddress.ip_address(address))
    except ValueError:
        pass
    # What has digits alone in its last part is meant for an IP address.
    if not _HOST.fullmatch(address) or address.rpartition(".")[2].isdecimal():
        raise BadInput.value("--address", address, "an IP address or a host name")
    return address, None


def _environment(text: str | None) -> str:
    if text is None:
        return "none"
    if not 1 <= len(text) <= 32 or text == ANY:
        raise BadInput.value("--environment", text, f"1 to 32 characters other than {ANY!r}")
    return text


def _labels(text: str | None) -> dict[str, str]:
    pairs = [pair.partition("=") for pair in text.split(",")] if text else []
    labels = {name.strip(): value.strip() for name, _equals, value in pairs}
    try:
        TypeAdapter(Labels).validate_python(labels)
    except ValidationError:
        fine = False
    else:
        fine = len(labels) == len(pairs) and all(equals for _name, equals, _value in pairs)
    if not fine:
        expected = "NAME=VALUE[,NAME=VALUE]... with each name once, of 1 to 64 characters, and values of at most 190"
        raise BadInput.value("--labels", text, expected)
    return labels


def backend_names(named: Mapping[str, str | None]) -> dict[str, str]:
    """Interface to name of those that are named. Raises BadInput for one that is not installed."""
    chosen = {interface: name for interface, name in named.items() if name is not None}
    if chosen:
        registry = Registry(BackendContext(Clock(), None))
        for interface, name in chosen.items():
            if name not in registry.names(interface):
                raise BadInput.value(f"--{interface}", name, one_of(f"{interface} backend", registry.names(interface)))
    return chosen


def hardware_type(conn: Connection, type_: str, model: str | None) -> HardwareType:
    """The hardware type that ``--type`` and ``--model`` name; a type with one model needs no model. Raises BadInput."""
    known = images.known_hardware(conn)
    of_type = [hardware for hardware in known if hardware.type == type_]
    if not of_type:
        raise BadInput.value("--type", type_, one_of("hardware type", sorted({hardware.type for hardware in known})))
    models = sorted(hardware.model for hardware in of_type)
    if model is None and len(of_type) > 1:
        raise BadInput(f"--model: is missing; {type_} has {', '.join(models)}", field="--model")
    for hardware in of_type:
        if model in (None, hardware.model):
            return hardware
    raise BadInput.value("--model", model, one_of(f"model of {type_}", models))


def _server(conn: Connection, named: str | None, settings: Settings) -> tuple[str, int]:
    """Name and id; a server that was never started is not known, which finds typing errors."""
    name, option = (settings.server.fqdn, "[server] fqdn") if named is None else (named, "--server")
    found = images.imaging_server_id(conn, name)
    if found is None:
        known = images.imaging_server_names(conn)
        raise BadInput.value(option, name, one_of("imaging server that was started once", known))
    return name, found


def one_of(what: str, names: Sequence[str]) -> str:
    """What was expected: one of these, of which there may be none."""
    article = "an" if what[0] in "aeiou" else "a"
    return f"{article} {what}; there {'is' if len(names) < 2 else 'are'} {', '.join(names) or 'none'}"
