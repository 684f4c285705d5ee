# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""A NetBox that speaks as NetBox 4.7 does: each answer is checked against NetBox's own description of it, and so is
each parameter that it is asked with (``tests/data/netbox``)."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qsl, urlencode, urlsplit

import jsonschema_rs

SCHEMA = json.loads((Path(__file__).parents[1] / "data" / "netbox" / "openapi-4.7.0.json").read_text(encoding="utf-8"))
DEVICES, INTERFACES = "/api/dcim/devices/", "/api/dcim/interfaces/"
ELSEWHERE = "http://netbox.internal.example.com"
"""What the server believes that it is called, as one does behind a proxy."""


def as_json_schema(part: Any) -> Any:
    """OpenAPI 3.0 says ``nullable`` where JSON Schema has a type of its own."""
    if isinstance(part, list):
        return [as_json_schema(each) for each in part]
    if not isinstance(part, dict):
        return part
    made = {key: as_json_schema(value) for key, value in part.items() if key not in ("nullable", "example")}
    if part.get("nullable") is True:
        return {"anyOf": [made, {"type": "null"}]}
    return made


def checker(name: str) -> Any:
    """What checks an answer of this kind."""
    schema = {"$ref": f"#/components/schemas/{name}", "components": as_json_schema(SCHEMA["components"])}
    return jsonschema_rs.Draft4Validator(schema)


CHECKERS = {DEVICES: checker("PaginatedDeviceList"), INTERFACES: checker("PaginatedInterfaceList")}
PARAMETERS = {
    path: {parameter["name"] for parameter in SCHEMA["paths"][path]["get"]["parameters"]} for path in CHECKERS
}


def brief(kind: str, number: int, name: str) -> dict[str, Any]:
    """How one object refers to another."""
    return {
        "id": number,
        "url": f"{ELSEWHERE}/api/dcim/{kind}/{number}/",
        "display": name,
        "name": name,
        "slug": name.lower().replace(" ", "-"),
        **dict.fromkeys(("device_count", "devicetype_count", "virtualmachine_count"), 1),
        "_depth": 0,
    }


def device(
    number: int,
    name: str | None,
    *,
    status: str = "active",
    address: str | None = None,
    manufacturer: str = "PandaBoard",
    model: str = "ES",
    **custom: Any,
) -> dict[str, Any]:
    """A device, complete; ``custom`` are its custom fields without their prefix."""
    primary = None
    if address is not None:
        primary = {
            "id": number,
            "url": f"{ELSEWHERE}/api/ipam/ip-addresses/{number}/",
            "display": address,
            "family": {"value": 4, "label": "IPv4"},
            "nat_outside": [],
            "address": address,
        }
    counts = ("console_port", "console_server_port", "power_port", "power_outlet", "interface", "front_port")
    more = ("rear_port", "device_bay", "module_bay", "inventory_item", "cooling_intake", "cooling_outflow")
    return {
        "id": number,
        "url": f"{ELSEWHERE}{DEVICES}{number}/",
        "display_url": f"{ELSEWHERE}/dcim/devices/{number}/",
        "display": name or f"device {number}",
        "name": name,
        "device_type": {
            **brief("device-types", 1, model),
            "manufacturer": brief("manufacturers", 1, manufacturer),
            "model": model,
        },
        "role": brief("device-roles", 1, "Board"),
        "tenant": None,
        "platform": None,
        "serial": f"S{number}",
        "asset_tag": None,
        "site": brief("sites", 1, "Lab"),
        "location": None,
        "rack": None,
        "position": None,
        "parent_device": None,
        "status": {"value": status, "label": status.capitalize()},
        "primary_ip": primary,
        "primary_ip4": primary,
        "primary_ip6": None,
        "description": "",
        "comments": "",
        "config_context": {},
        "local_context_data": None,
        "tags": [],
        "custom_fields": {f"mozpool_{key}": value for key, value in custom.items()} | {"rack_unit": None},
        "created": "2026-01-01T00:00:00Z",
        "last_updated": "2026-01-01T00:00:00Z",
        **{f"{each}_count": 1 for each in (*counts, *more)},
    }


def interface(
    number: int, device_id: int, mac: str | None, *, name: str = "eth0", enabled: bool = True, mgmt_only: bool = False
) -> dict[str, Any]:
    """An interface of a device."""
    primary = None
    if mac is not None:
        url = f"{ELSEWHERE}/api/dcim/mac-addresses/{number}/"
        primary = {"id": number, "url": url, "display": mac, "mac_address": mac, "description": ""}
    return {
        "id": number,
        "url": f"{ELSEWHERE}{INTERFACES}{number}/",
        "display_url": f"{ELSEWHERE}/dcim/interfaces/{number}/",
        "display": name,
        "device": brief("devices", device_id, f"device {device_id}"),
        "vdcs": [],
        "module": None,
        "name": name,
        "label": "",
        "type": {"value": "1000base-t", "label": "1000BASE-T (1GE)"},
        "enabled": enabled,
        "bridge_interfaces": [],
        "mac_address": mac,
        "primary_mac_address": primary,
        "mac_addresses": [] if primary is None else [primary],
        "mgmt_only": mgmt_only,
        "cable": None,
        "cable_end": None,
        "wireless_link": None,
        "link_peers": [],
        "link_peers_type": None,
        "l2vpn_termination": None,
        "connected_endpoints": None,
        "connected_endpoints_type": None,
        "connected_endpoints_reachable": False,
        "custom_fields": {},
        "tags": [],
        "created": "2026-01-01T00:00:00Z",
        "last_updated": "2026-01-01T00:00:00Z",
        "count_ipaddresses": 0,
        "count_fhrp_groups": 0,
        "_occupied": False,
    }


class NetBox:
    """The server; a context manager that starts and stops it."""

    def __init__(self, authorization: str) -> None:
        """It lets in who sends this header."""
        self.authorization = authorization
        self.devices: list[dict[str, Any]] = []
        self.interfaces: list[dict[str, Any]] = []
        self.page = 50
        """As many it gives at a time, whatever it is asked for."""
        self.edit: Any = lambda path, answer: answer
        """What is done to an answer before it is sent, once it was found to be right."""
        self.asked: list[tuple[str, list[tuple[str, str]]]] = []
        self.faults: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        self._server.netbox = self  # type: ignore[attr-defined]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def answer(self, path: str, query: list[tuple[str, str]]) -> Any:
        """A page of a list."""
        self.asked.append((path, query))
        if path not in CHECKERS:
            self.faults.append(f"there is no {path}")
            return {}
        # Custom fields are parameters, too.
        self.faults += [f"{path}: {key}" for key, _ in query if key not in PARAMETERS[path] and key[:3] != "cf_"]
        keys = dict(query)
        if path == DEVICES:
            rows = [each for each in self.devices if keys.get("site", "lab") == each["site"]["slug"]]
        else:
            wanted = {int(value) for key, value in query if key == "device_id"}
            rows = [each for each in self.interfaces if each["device"]["id"] in wanted]
        offset, limit = int(keys.get("offset", 0)), min(self.page, int(keys["limit"]))
        rest = [pair for pair in query if pair[0] not in ("limit", "offset")]

        def address(start: int) -> str:
            return f"{ELSEWHERE}{path}?{urlencode([*rest, ('limit', str(limit)), ('offset', str(start))])}"

        said = {
            "count": len(rows),
            "next": address(offset + limit) if offset + limit < len(rows) else None,
            "previous": address(max(0, offset - limit)) if offset else None,
            "results": rows[offset : offset + limit],
        }
        self.faults += [f"{path}: {error}" for error in CHECKERS[path].iter_errors(said)]
        return self.edit(path, said)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        netbox = self.server.netbox  # type: ignore[attr-defined]
        parts = urlsplit(self.path)
        status, said = 200, None
        if self.headers.get("Authorization") != netbox.authorization:
            status, said = 403, {"detail": "Invalid token"}
        else:
            said = netbox.answer(parts.path, parse_qsl(parts.query))
        body = said if isinstance(said, bytes) else json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
