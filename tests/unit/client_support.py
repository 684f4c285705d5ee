# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Imaging servers for tests of the client: real HTTP, the contract's answers, and faults on demand.

Nothing happens by itself: a request moves on to its next state when a client waits for that.
"""

from __future__ import annotations

import json
import re
import socket
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

ENDED = ("closed", "failed_")


@dataclass
class Call:
    """What a server was asked."""

    verb: str
    path: str
    query: dict[str, list[str]]
    body: Any
    headers: Mapping[str, str]
    server: str


@dataclass
class Answer:
    """What it says; ``status`` 0 breaks the connection, and so does ``cut`` when it has been said instead."""

    status: int
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    cut: str | None = None


BREAK = Answer(0)


def error(status: int, code: str, message: str, name: str | None = None) -> Answer:
    return Answer(status, {"error": {"code": code, "message": message, "field": name}})


class Pool:
    """What all servers of a pool share."""

    def __init__(self, *steps: str) -> None:
        """``steps``: the states that a new request goes through; it stays in the last one."""
        self.steps = steps or ("finding_device", "pending", "ready")
        self.requests: dict[int, dict[str, Any]] = {}
        self.left: dict[int, deque[str]] = {}
        self.keys: dict[str, int] = {}
        self.calls: list[Call] = []
        self.changed = threading.Condition()
        self.closing = False
        self.device_calls: list[tuple[str, str, Any]] = []
        self.claimed_at = "2030-01-01T00:00:00"

    def wait_for(self, what: Callable[[], object], seconds: float = 10.0) -> None:
        """Until ``what()`` is true; an AssertionError when it does not become so."""
        with self.changed:
            assert self.changed.wait_for(what, seconds), "it did not happen"

    def count(self, pattern: str) -> int:
        """How many calls "VERB PATH" match."""
        return len(self.matching(pattern))

    def matching(self, pattern: str) -> list[Call]:
        return [call for call in self.calls if re.fullmatch(pattern, f"{call.verb} {call.path}")]

    def set_state(self, request_id: int, state: str) -> None:
        with self.changed:
            self.requests[request_id]["state"] = state
            self.changed.notify_all()

    def status(self, request: dict[str, Any], call: Call) -> Answer:
        known = call.query.get("state", [None])[0]
        if known == request["state"]:
            if self.left[request["id"]]:
                request["state"] = self.left[request["id"]].popleft()
                self.changed.notify_all()
            else:
                wait = float(call.query.get("wait", ["0"])[0])
                self.changed.wait_for(lambda: self.closing or request["state"] != known, wait)
        log = [{"id": 1, "timestamp": "2030-01-01T00:00:00", "source": "mozpool", "message": "wants any device"}]
        shown = self.shown(request)
        return Answer(200, {**shown, "claimed_at": shown["assigned_device"] and self.claimed_at, "log": log})

    def shown(self, request: dict[str, Any]) -> dict[str, Any]:
        waits = request["state"] == "finding_device"
        failed = request["state"].startswith("failed_")
        return {
            **request,
            "assigned_device": "" if waits or failed or request["state"] == "closed" else "panda-1",
            "device_state": "pxe_booting" if request["state"] == "pending" else "",
            "place": 2 if waits else None,
            "last_device": None if waits else "panda-1",
            "reason": "all 3 taken" if waits else "it is broken" if failed else None,
        }

    def answer(self, call: Call) -> Answer:
        with self.changed:
            return self._answer(call)

    def _answer(self, call: Call) -> Answer:
        match call.verb, call.path.strip("/").split("/")[1:]:
            case "GET", ["version"]:
                return Answer(200, {"version": "5.0.0"})
            case "GET", ["device", "list"]:
                return Answer(200, {"devices": [DEVICE, {**DEVICE, "name": "panda-2", "state": "failed_\x1b[31m"}]})
            case "GET", ["device", "panda-1", "details"]:
                return Answer(200, DEVICE)
            case "GET", ["device", "panda-1", "log"]:
                lines = [
                    {"id": 7, "timestamp": "2030-01-01T00:00:00", "source": "statemachine", "message": message}
                    for message in ("ready -> start_pxe_boot on please_image",)
                ]
                return Answer(200, {"log": lines})
            case "GET", ["image", "list"]:
                return Answer(200, {"images": [{"name": "b2g", "boot_config_keys": ["b2gbase"], "can_reuse": True}]})
            case "GET", ["environment", "list"]:
                return Answer(200, {"environments": ["production", "staging"]})
            case "POST", ["device", ("any" | "panda-1") as name, "request"]:
                return self._make(name, call)
            case "POST", ["device", "panda-2", "request"]:
                request = {"id": 99, "state": "closed", "requested_device": "panda-2", "assigned_device": ""}
                return Answer(409, {"request": request, "error": {"code": "conflict", "message": "panda-2 is taken"}})
            case "GET", ["request", "list"]:
                return Answer(200, {"requests": [self.shown(request) for request in self.requests.values()]})
            case verb, ["request", number, what] if number.isdecimal() and int(number) in self.requests:
                return self._request(verb, self.requests[int(number)], what, call)
            case "POST", ["device", "panda-1", *what]:
                self.device_calls.append(("panda-1", "/".join(what), call.body))
                if what == ["agent", "exec"]:
                    return Answer(200, {"output": "hello\n", "return_code": 3})
                return Answer(204) if what == ["return"] else Answer(200, {"state": "start_pxe_boot"})
        return error(404, "not_found", f"there is no {call.path}")

    def _make(self, name: str, call: Call) -> Answer:
        if call.body.get("image") != "b2g":
            return error(404, "not_found", "image: there is no image 'x'", "image")
        if "b2gbase" not in call.body:
            return error(400, "bad_input", "b2gbase is missing: image b2g needs it", "b2gbase")
        if call.body.get("duration", 0) > 10**6:
            return error(400, "bad_input", "duration: too much", "duration")
        key = call.headers["Idempotency-Key"]
        if key not in self.keys:
            number = self.keys[key] = len(self.requests) + 1
            self.left[number] = deque(self.steps[1:])
            self.requests[number] = {
                "id": number,
                "state": self.steps[0],
                "requested_device": name,
                "assignee": call.body["assignee"],
                "image": "b2g",
                "environment": call.body["environment"],
                "boot_config": json.dumps({"b2gbase": call.body.get("b2gbase")}),
                "expires": "2030-01-01T00:30:00",
                "url": f"{call.server}/api/request/{number}/",
            }
        return Answer(200, {"request": self.shown(self.requests[self.keys[key]])})

    def _request(self, verb: str, request: dict[str, Any], what: str, call: Call) -> Answer:
        match verb, what:
            case "GET", "status":
                return self.status(request, call)
            case "GET", "details":
                shown = self.shown(request)
                return Answer(200, {**shown, "request": shown})
            case "GET", "log":
                return self.status(request, call)
            case "POST", "renew":
                if request["state"].startswith(ENDED):
                    return error(422, "unprocessable", f"request {request['id']} has ended and can't be renewed")
                return Answer(204)
            case "POST", "return":
                request["state"] = "closed"
                return Answer(204)
        return error(404, "not_found", "?")


DEVICE = {
    "id": 1,
    "name": "panda-1",
    "state": "ready",
    "fqdn": "panda-1.example.com",
    "address": "127.0.0.9",
    "environment": "production",
    "image": "b2g",
    "boot_config": '{"b2gbase": "http://x/"}',
    "request_id": 1,
    "labels": {"pool": "b2g"},
    "imaging_server": "one.example.com",
    "holder": {"request_id": 1, "assignee": "me@example.com", "expires": "2030-01-01T00:30:00"},
}

Fault = Answer | Callable[[Call], Answer | None]


class PoolServer:
    """One imaging server of a pool, as a context manager. ``faults`` are used up by its next calls, one each."""

    def __init__(self, pool: Pool | None = None) -> None:
        self.pool = pool or Pool()
        self.faults: deque[Fault] = deque()
        self.always: Fault | None = None
        """A fault of every call."""
        self.calls: list[Call] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                server.serve(self)

            do_POST = do_GET

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = False
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01})
        self.port: int = self._http.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> PoolServer:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        with self.pool.changed:
            self.pool.closing = True
            self.pool.changed.notify_all()
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    def hang(self, call: Call) -> Answer:
        """A fault: accepts and says nothing until the test ends."""
        with self.pool.changed:
            self.pool.changed.wait_for(lambda: self.pool.closing, 30)
        return BREAK

    def serve_then_break(self, call: Call) -> Answer:
        """A fault: does what it is asked, and breaks the connection instead of answering."""
        self.pool.answer(call)
        return BREAK

    def serve(self, handler: BaseHTTPRequestHandler) -> None:
        length = int(handler.headers.get("Content-Length") or 0)
        body = handler.rfile.read(length)
        parts = urlsplit(handler.path)
        call = Call(
            verb=handler.command,
            path=parts.path,
            query=parse_qs(parts.query),
            body=json.loads(body) if body else None,
            headers=dict(handler.headers.items()),
            server=self.url,
        )
        with self.pool.changed:
            self.calls.append(call)
            self.pool.calls.append(call)
            self.pool.changed.notify_all()
            fault = self.faults.popleft() if self.faults else self.always
        answer = fault(call) if callable(fault) else fault
        if answer is None:
            answer = self.pool.answer(call)
        with self.pool.changed:
            self.pool.changed.notify_all()
        handler.close_connection = True
        if answer.status == 0:
            handler.connection.shutdown(socket.SHUT_RDWR)
            return
        content = b"" if answer.body is None else json.dumps(answer.body).encode()
        if isinstance(answer.body, str) and answer.body.startswith("<"):
            content = answer.body.encode()
        if answer.cut is not None:
            handler.wfile.write(answer.cut.encode())
            handler.connection.shutdown(socket.SHUT_RDWR)
            return
        handler.send_response(answer.status)
        for name, value in answer.headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        try:
            handler.wfile.write(content)
        except OSError:
            # The client has gone.
            return


def closed_port() -> int:
    """A port that refuses connections."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port
