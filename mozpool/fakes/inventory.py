# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Mozilla's inventory as a server over HTTP (wire facts: Inventory): a thread of its own, basic authentication, and
whatever goes wrong with real ones."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

EXPORT = "/en-US/bulk_action/export/"
STATUSES = "/en-US/core/api/v1_core/systemstatus/"
MODELS = "/en-US/core/api/v1_core/servermodel/"

FAULTS = ("error", "silence", "cut", "drip", "html", "redirect", "no_systems", "list", "gibberish", "empty", "twice")
"""What may go wrong with an answer; see :meth:`_Handler.answer`."""


def system(
    pk: int,
    hostname: str,
    *,
    mac: str | None = None,
    server: str | None = "imaging1.example.com",
    relay: str | None = None,
    status: int | None = 1,
    model: int | None = 1,
) -> dict[str, Any]:
    """A host as the export has it; None leaves something out."""
    kept = {"system.imaging_server.0": server, "system.relay.0": relay, "nic.0.name.0": "nic0"}
    nic = {"nic0": {"hwadapter_set": {"hw0": {"mac": mac}}}} if mac is not None else {}
    return {
        "pk": pk,
        "hostname": hostname,
        "system_status": status,
        "server_model": model,
        "serial": f"S{pk:06}",
        "keyvalue_set": {key: {"key": key, "value": value} for key, value in kept.items() if value is not None},
        "staticreg_set": nic,
    }


class FakeInventory:
    """The server; a context manager that starts and stops it. What it has may be changed while it runs."""

    def __init__(self, *, username: str = "mozpool", password: str = "s3cret", port: int = 0) -> None:  # noqa: S107 (of a simulated service)
        self.systems: dict[str, dict[str, Any]] = {}
        """Host name → what the export has of it."""
        self.statuses: dict[int, str] = {1: "production", 2: "spare", 3: "decommissioned"}
        self.models: dict[int, tuple[str, str]] = {1: ("PandaBoard", "ES"), 2: ("Tegra", "250")}
        self.fault: str | None = None
        """One of :data:`FAULTS` while it lasts."""
        self.fault_in = EXPORT
        """In answers to paths that begin so."""
        self.asked: list[str] = []
        """The paths of all calls that were let in, with their queries."""
        self.username = username
        self.password = password
        self._ended = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", port), _Handler)
        self._server.daemon_threads = True
        self._server.inventory = self  # type: ignore[attr-defined]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="inventory", daemon=True)

    @property
    def url(self) -> str:
        """Its base URL."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def put(self, *systems: Mapping[str, Any]) -> None:
        """Let it have these hosts, in place of those of the same names."""
        self.systems.update((str(each["hostname"]), dict(each)) for each in systems)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def wait(self, seconds: float) -> None:
        """Say nothing for so long, or until it is stopped."""
        self._ended.wait(seconds)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def inventory(self) -> FakeInventory:
        found = self.server.inventory  # type: ignore[attr-defined]
        assert isinstance(found, FakeInventory)
        return found

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        inventory = self.inventory
        given = self.headers.get("Authorization", "")
        wanted = base64.b64encode(f"{inventory.username}:{inventory.password}".encode()).decode()
        if given != f"Basic {wanted}":
            self.answer(401, b"who are you?", "text/plain", None)
            return
        inventory.asked.append(self.path)
        path = urlsplit(self.path).path
        fault = inventory.fault if path.startswith(inventory.fault_in) else None
        found = self.look_up(path)
        if found is None:
            self.answer(404, b"<html>not found</html>", "text/html", fault)
            return
        self.answer(200, json.dumps(found).encode(), "application/json", fault)

    def look_up(self, path: str) -> Any:
        inventory = self.inventory
        if path == EXPORT:
            (text,) = parse_qs(urlsplit(self.path).query, keep_blank_values=True).get("q", [""])
            wanted = text.removeprefix("hostname__startswith=") if text.startswith("hostname__startswith=") else ""
            systems = {name: each for name, each in inventory.systems.items() if name.startswith(wanted)}
            return {"systems": systems}
        for base, kind in ((STATUSES, "status"), (MODELS, "model")):
            number = path.removeprefix(base).strip("/")
            if path.startswith(base) and number.isdecimal():
                if kind == "status" and int(number) in inventory.statuses:
                    return {"id": int(number), "status": inventory.statuses[int(number)]}
                if kind == "model" and int(number) in inventory.models:
                    vendor, model = inventory.models[int(number)]
                    return {"id": int(number), "vendor": vendor, "model": model}
        return None

    def answer(self, status: int, body: bytes, kind: str, fault: str | None) -> None:
        """Answer, or do it as the fault has it."""
        length = len(body)
        if fault == "silence":
            self.inventory.wait(600)
            return
        if fault == "error":
            status, body, kind = 500, b"<html>Internal Server Error</html>", "text/html"
        elif fault == "html":
            body, kind = b"<!DOCTYPE html><title>Please log in</title>", "text/html"
        elif fault == "redirect":
            status = 302
        elif fault == "no_systems":
            body = b'{"hosts": {}}'
        elif fault == "list":
            body = b'{"systems": [1, 2]}'
        elif fault == "gibberish":
            body = body[: len(body) // 2]
        elif fault == "empty":
            body = b""
        elif fault == "twice":
            body = b'{"systems": {"a.example.com": {}, "a.example.com": {}}}'
        cut = fault in ("cut", "drip")
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(length if cut else len(body)))
        if fault == "redirect":
            self.send_header("Location", "http://127.0.0.1:1/")
        self.end_headers()
        if fault == "drip":
            for start in range(0, len(body), 3):
                self.wfile.write(body[start : start + 3])
                self.wfile.flush()
                self.inventory.wait(0.2)
            return
        self.wfile.write(body[: len(body) // 2] if fault == "cut" else body)
        if fault == "cut":
            self.close_connection = True
