# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""NetBox: its REST API, version 4 (``/api/dcim/``).

Devices that a filter finds are hosts: their names, manufacturers and models, primary addresses, and custom fields for
what NetBox itself has no word for. MAC addresses come from their interfaces.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from mozpool.clock import Deadline
from mozpool.config import Inventory
from mozpool.errors import BadInput
from mozpool.lifeguard.inventory.hosts import NEEDED, Entry, InventoryError, text_of
from mozpool.lifeguard.inventory.sources import Say
from mozpool.lifeguard.inventory.sources.shared import JsonCalls, an_object, host_of

DEVICES, INTERFACES = "/api/dcim/devices/", "/api/dcim/interfaces/"

IN_USE = ("active", "staged", "failed")
"""Statuses of devices that are hosts; others (offline, planned, inventory, decommissioning) are skipped."""

PAGE = 200
"""As many are asked for at a time; NetBox may give fewer."""

DEVICES_AT_ONCE = 100
"""Of as many devices the interfaces are asked for in one call, whose URL must not become too long."""

FIELDS = ("imaging_server", "relay_info", "environment", "labels", "backends")
"""What custom fields are for."""


class NetBoxSource:
    """Read with a token, page by page."""

    needed = NEEDED

    def __init__(self, settings: Inventory) -> None:
        self._settings = settings
        self.title = f"the NetBox at {host_of(settings.url)}"

    def entries(self, deadline: Deadline, say: Say) -> Sequence[Entry]:
        """The devices, and then the interfaces of those that are in use."""
        token = self._settings.token
        # Tokens of NetBox 4.5 and later have two parts, and a prefix that tells.
        kind = "Bearer" if token.startswith("nbt_") else "Token"
        with JsonCalls(self._settings, deadline, {"Authorization": f"{kind} {token}"}) as calls:
            filters = parse_qsl(self._settings.filter.removeprefix("?"), keep_blank_values=True)
            devices = list(self._pages(calls, DEVICES, [*filters, ("ordering", "id")], say))
            faults: list[str] = []
            taken: list[tuple[str, dict[str, Any]]] = []
            found: list[Entry] = []
            for device in devices:
                name = device.get("name")
                place = f"device {device.get('id')}" + (f" ({name})" if isinstance(name, str) and name else "")
                try:
                    status = _choice(device, "status")
                    if status not in IN_USE:
                        found.append(Entry(place, skip=f"its status is {status}"))
                    elif not name:
                        found.append(Entry(place, skip="it has no name"))
                    else:
                        taken.append((place, device))
                except BadInput as error:
                    faults.append(f"{place}: {error.message}")
            macs = self._macs(calls, [_id(device) for _, device in taken], say)
            for place, device in taken:
                try:
                    found.append(Entry(place, self._values(device, macs.get(_id(device)))))
                except BadInput as error:
                    faults.append(f"{place}: {error.message}")
        if faults:
            raise InventoryError.of(faults)
        return found

    def _values(self, device: Mapping[str, Any], mac: str | None) -> dict[str, Any]:
        kind = an_object(device.get("device_type"), "device_type")
        manufacturer = an_object(kind.get("manufacturer"), "manufacturer")
        custom = an_object(device.get("custom_fields") or {}, "custom_fields")
        values: dict[str, Any] = {
            "inventory_id": device.get("id"),
            "fqdn": device.get("name"),
            "mac_address": mac,
            "hardware_type": manufacturer.get("name"),
            "hardware_model": kind.get("model"),
        }
        for field in FIELDS:
            value = custom.get(f"{self._settings.netbox_prefix}{field}")
            # A field that refers to another object of NetBox counts by that one's name.
            if isinstance(value, dict) and "url" in value and isinstance(value.get("name"), str):
                value = value["name"]
            values[field] = value
        primary = device.get("primary_ip")
        if primary is not None:
            values["address"] = text_of("address", an_object(primary, "primary_ip").get("address")).partition("/")[0]
        return values

    def _macs(self, calls: JsonCalls, device_ids: Sequence[int], say: Say) -> dict[int, str]:
        """Device id → MAC address of the interface that it boots from."""
        wanted = self._settings.netbox_interface
        found: dict[int, tuple[int, str]] = {}
        for start in range(0, len(device_ids), DEVICES_AT_ONCE):
            some = device_ids[start : start + DEVICES_AT_ONCE]
            query = [*(("device_id", str(device_id)) for device_id in some), ("ordering", "id")]
            say(f"reading interfaces: {start} of {len(device_ids)} hosts")
            for interface in self._pages(calls, INTERFACES, query, lambda said: None):
                try:
                    device_id = _id(an_object(interface.get("device"), "device"))
                    mac = _mac(interface)
                    usable = interface.get("enabled", True) is True and not interface.get("mgmt_only", False)
                    if mac is not None and (interface.get("name") == wanted if wanted else usable):
                        found[device_id] = min(found.get(device_id, (_id(interface), mac)), (_id(interface), mac))
                except BadInput as error:
                    raise InventoryError(f"{self.title}, {INTERFACES}: {error.message}") from error
        return {device_id: mac for device_id, (_, mac) in found.items()}

    def _pages(
        self, calls: JsonCalls, path: str, query: Sequence[tuple[str, str]], say: Say
    ) -> Iterator[dict[str, Any]]:
        """All results of a list. Raises InventoryError when they are not as many as they should be.

        Of the address of a next page only the query is taken: what stands before it is what NetBox believes that it is
        called, and the token goes to nobody but the server that is configured.
        """
        where = f"{self.title}, {path}"
        ids: set[int] = set()
        pages: set[str] = set()
        asked = urlencode([*query, ("limit", str(PAGE))])
        while True:
            pages.add(asked)
            answer = calls.get(f"{path}?{asked}")
            results = answer.get("results") if isinstance(answer, dict) else None
            count = answer.get("count") if isinstance(answer, dict) else None
            if not isinstance(results, list) or not isinstance(count, int):
                raise InventoryError.value(where, answer, "a page with 'count' and 'results'")
            for result in results:
                try:
                    ids.add(_id(an_object(result, "result")))
                except BadInput as error:
                    raise InventoryError(f"{where}: {error.message}") from error
                yield result
            say(f"{len(ids)} of {count} hosts")
            following = answer.get("next")
            if following is None:
                break
            asked = _query(following)
            if not asked or asked in pages:
                raise InventoryError.value(f"{where}, next", following, "the address of another page")
        if len(ids) != count:
            raise InventoryError(f"{where}: it gave {len(ids)} of {count} results: it changed while it was read")


def _query(address: Any) -> str:
    """What stands behind the question mark; empty when it is no address."""
    try:
        return urlsplit(address).query if isinstance(address, str) else ""
    except ValueError:
        return ""


def _id(value: Mapping[str, Any]) -> int:
    found = value.get("id")
    if not isinstance(found, int) or isinstance(found, bool):
        raise BadInput.value("id", found, "a number")
    return found


def _choice(value: Mapping[str, Any], field: str) -> str:
    """What NetBox writes as ``{"value": …, "label": …}``."""
    found = an_object(value.get(field), field).get("value")
    if not isinstance(found, str):
        raise BadInput.value(field, value.get(field), 'an object with "value"')
    return found


def _mac(interface: Mapping[str, Any]) -> str | None:
    """The primary one; before NetBox 4.2 the only one."""
    primary = interface.get("primary_mac_address")
    mac = primary.get("mac_address") if isinstance(primary, dict) else interface.get("mac_address")
    if mac is not None and not isinstance(mac, str):
        raise BadInput.value("mac_address", mac, "text")
    return mac or None
