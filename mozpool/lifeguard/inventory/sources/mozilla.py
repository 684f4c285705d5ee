# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Mozilla's inventory (wire facts: Inventory)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from mozpool.clock import Deadline
from mozpool.config import Inventory
from mozpool.errors import BadInput
from mozpool.lifeguard.inventory.hosts import NEEDED, Entry, InventoryError, text_of
from mozpool.lifeguard.inventory.sources import Say
from mozpool.lifeguard.inventory.sources.shared import JsonCalls, an_object, host_of

DECOMMISSIONED = "decommissioned"


class MozillaSource:
    """Its export of all hosts that a filter finds, and what it calls their states and models."""

    needed = (*NEEDED, "relay_info")

    def __init__(self, settings: Inventory) -> None:
        self._settings = settings
        self.title = f"the inventory at {host_of(settings.url)}"

    def entries(self, deadline: Deadline, say: Say) -> Sequence[Entry]:
        """One call for all hosts, and one for each status and each model that they have."""
        with JsonCalls(self._settings, deadline) as calls:
            answer = calls.get(f"/en-US/bulk_action/export/?q={quote(self._settings.filter, safe='')}")
            systems = answer.get("systems") if isinstance(answer, dict) else None
            if not isinstance(systems, dict):
                raise InventoryError.value(self.title, answer, "an object with an object 'systems' in it")
            names = _Names(calls, say)
            faults: list[str] = []
            found: list[Entry] = []
            for hostname, system in systems.items():
                try:
                    found.append(_entry(hostname, system, names))
                except BadInput as error:
                    faults.append(f"{hostname}: {error.message}")
            if faults:
                raise InventoryError.of(faults)
            return found


class _Names:
    """What numbers of statuses and models stand for, each asked for once."""

    def __init__(self, calls: JsonCalls, say: Say) -> None:
        self._calls = calls
        self._say = say
        self._statuses: dict[int, str] = {}
        self._models: dict[int, tuple[str, str]] = {}

    def status(self, key: int) -> str:
        """What a host's system_status stands for. Raises InventoryError."""
        if key not in self._statuses:
            (self._statuses[key],) = self._look_up("systemstatus", key, "status")
        return self._statuses[key]

    def model(self, key: int) -> tuple[str, str]:
        """Hardware type and model of a host's server_model. Raises InventoryError."""
        if key not in self._models:
            vendor, model = self._look_up("servermodel", key, "vendor", "model")
            self._models[key] = vendor, model
        return self._models[key]

    def _look_up(self, kind: str, key: int, *fields: str) -> list[str]:
        self._say(f"looking up {kind} {key}")
        path = f"/en-US/core/api/v1_core/{kind}/{key}/"
        answer = self._calls.get(path)
        values = [answer.get(field) if isinstance(answer, dict) else None for field in fields]
        if not all(isinstance(value, str) for value in values):
            expected = f"an object with {' and '.join(fields)}"
            raise InventoryError.value(f"{self._calls.host}, {path}", answer, expected)
        return [str(value) for value in values]


def _entry(hostname: str, system: Any, names: _Names) -> Entry:
    """A host of the export. Raises BadInput, and InventoryError for what was looked up."""
    system = an_object(system, "system")
    status = _key(system, "system_status")
    if status is not None and names.status(status).strip().lower() == DECOMMISSIONED:
        return Entry(hostname, skip=f"it is {DECOMMISSIONED}")
    kept = an_object(_given(system, "keyvalue_set"), "keyvalue_set")
    values: dict[str, Any] = {
        "inventory_id": system.get("pk"),
        "fqdn": hostname if system.get("hostname") is None else system["hostname"],
        "imaging_server": _kept(kept, "system.imaging_server.0"),
        "relay_info": _kept(kept, "system.relay.0"),
        "mac_address": _mac(an_object(_given(system, "staticreg_set"), "staticreg_set")),
    }
    missing = [
        said
        for field, said in (
            ("imaging_server", "key system.imaging_server.0"),
            ("relay_info", "key system.relay.0"),
            ("mac_address", "MAC address of nic0, hw0"),
        )
        if not values[field]
    ]
    if missing:
        return Entry(hostname, skip=f"it has no {' and no '.join(missing)}")
    model = _key(system, "server_model")
    if model is not None:
        values["hardware_type"], values["hardware_model"] = names.model(model)
    return Entry(hostname, values)


def _given(values: Mapping[str, Any], key: str) -> Any:
    """What stands there; an empty object when nothing does."""
    value = values.get(key)
    return {} if value is None else value


def _key(system: Mapping[str, Any], name: str) -> int | None:
    value = system.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise BadInput.value(name, value, "a number")
    return value


def _kept(kept: Mapping[str, Any], name: str) -> str | None:
    value = an_object(_given(kept, name), f"keyvalue_set, {name}").get("value")
    return None if value is None else text_of(name, value).strip()


def _mac(registered: Mapping[str, Any]) -> str | None:
    nic = an_object(_given(registered, "nic0"), "staticreg_set, nic0")
    adapters = an_object(_given(nic, "hwadapter_set"), "staticreg_set, nic0, hwadapter_set")
    mac = an_object(_given(adapters, "hw0"), "hwadapter_set, hw0").get("mac")
    return None if mac is None else text_of("mac", mac).strip()
