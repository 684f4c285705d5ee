# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""A whole imaging server for tests of the API: the real daemon over a real database, without its threads' clocks.

Nothing happens by itself in it: timers are not started, so a test decides when time passes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from apiflask import APIFlask
from flask import Response
from flask import request as flask_request
from flask.testing import FlaskClient
from pydantic import BaseModel, ValidationError
from sqlalchemy import Connection, func, insert, select, update
from werkzeug.test import TestResponse

from mozpool.apikit import OPERATION, ErrorAnswer
from mozpool.config import Settings
from mozpool.daemon import Daemon
from mozpool.db import devices, images, requests, tables
from mozpool.db.devices import Device
from mozpool.db.requests import Request
from mozpool.web.app import create_app
from scripts import testdata

OWN = "server-1.example.com"
OTHER = "server-2.example.com:8080"
NO_RELAY = 9
"""The port of the devices' relay board: nobody listens there."""


class Server:
    """An imaging server and a client of it. ``device1`` and the following devices are free and in state ready."""

    def __init__(self, daemon: Daemon, app: APIFlask) -> None:
        self.daemon = daemon
        self.app = app
        self.client: FlaskClient = app.test_client()
        self.undocumented: list[str] = []
        app.after_request(self._compare)

    def _compare(self, answer: Response) -> Response:
        """Compare every answer with what the API's description promises of it."""
        view = self.app.view_functions.get(flask_request.endpoint or "")
        if flask_request.method == "OPTIONS" or not hasattr(view, OPERATION):
            return answer
        spec: dict[str, Any] = view.__dict__["_spec"]
        place = f"{flask_request.method} {flask_request.path}: {answer.status_code}"
        documented = {int(code) for code in spec["responses"]} | ({200} if "response" in spec else set())
        if answer.status_code not in documented:
            self.undocumented.append(place)
        elif answer.status_code >= 400:
            said = answer.get_json()
            self._check(place, ErrorAnswer, {"error": said["error"]})
        elif answer.status_code == 200 and "response" in spec and answer.mimetype != view.__dict__[OPERATION].media:
            self._check(place, spec["response"]["schema"], answer.get_json())
        return answer

    def _check(self, place: str, model: type[BaseModel], body: Any) -> None:
        try:
            understood = model.model_validate(body, strict=True).model_dump(exclude_unset=True, by_alias=True)
        except ValidationError as error:
            self.undocumented.append(f"{place}: {error}")
            return
        if understood != body:
            self.undocumented.append(f"{place}: {body} has more than {model.__name__}")

    def get(self, path: str, **options: Any) -> TestResponse:
        return self.client.get(path, **options)

    def post(self, path: str, body: Mapping[str, Any] | None = None, **options: Any) -> TestResponse:
        return self.client.post(path, json=None if body is None else dict(body), **options)

    def ask(self, device: str = "any", *, query: str = "", headers: Any = None, **keys: object) -> TestResponse:
        """Ask for a device as a client does, with ``keys`` in place of the usual ones."""
        body = {"assignee": "me@example.com", "duration": 3600, "image": "b2g", "b2gbase": "http://builds/1/"}
        return self.post(f"/api/device/{device}/request/{query}", {**body, **keys}, headers=headers)

    def made(self, device: str = "any", **keys: Any) -> int:
        """The id of a request that was just made."""
        answer = self.ask(device, **keys)
        assert answer.status_code == 200, answer.text
        number: int = answer.get_json()["request"]["id"]
        return number

    def device(self, name: str = "device1") -> Device:
        with self.daemon.database.read() as conn:
            found = devices.by_name(conn, name)
        assert found is not None
        return found

    def request(self, number: int) -> Request:
        with self.daemon.database.read() as conn:
            found = requests.get(conn, number)
        assert found is not None
        return found

    def change(self, device: str = "device1", **columns: Any) -> None:
        """Write columns of a device."""
        table = tables.devices
        self.daemon.database.run(
            lambda conn: conn.execute(
                update(table).where(table.c.name == device).values(version=table.c.version + 1, **columns)
            )
        )

    def counts(self) -> dict[str, int]:
        """How many rows each table of the pool has: equal before and after what must change nothing.

        What was refused is in the audit.
        """
        found = {}
        with self.daemon.database.read() as conn:
            for name, table in tables.metadata.tables.items():
                if table is tables.audit:
                    continue
                found[name] = len(conn.execute(select(table.primary_key.columns[0])).all())
        return found

    def other_server(self) -> int:
        """The id of another imaging server, which owns nothing yet."""
        return self.daemon.database.run(lambda conn: images.ensure_imaging_server(conn, OTHER))

    def move(self, device: str, server_id: int) -> None:
        """Let another imaging server own a device."""
        self.change(device, imaging_server_id=server_id)

    def wait_until(self, true: Callable[[], Any], seconds: float = 10.0) -> Any:
        """The value of ``true`` as soon as it is one; what workers do is waited for like this."""
        clock = self.daemon.clock
        end = clock.monotonic() + seconds
        while clock.monotonic() < end:
            value = true()
            if value:
                return value
            clock.sleep(0.005)
        raise AssertionError("it did not happen in time")

    def log(self, device: str = "device1") -> list[str]:
        """The messages in a device's log."""
        self.daemon.logbook.flush()
        lines = self.get(f"/api/device/{device}/log/?limit=1000").get_json()["log"]
        return [line["message"] for line in lines]


@contextmanager
def server(database_url: str, directory: Path, *, count: int = 3, **changes: Any) -> Iterator[Server]:
    """A server with ``count`` devices; ``changes`` replace keys of its settings (``server={"threads": 4}``)."""
    settings = Settings()
    tftp_root = directory / "tftp"
    tftp_root.mkdir()
    sections: dict[str, dict[str, Any]] = {
        "database": {"engine": database_url},
        "server": {"fqdn": OWN, "port": 8080},
        "paths": {"tftp_root": tftp_root},
        "bmm": {"probe": "echo"},
        "testing": {"run_fakes": False, "speed": 20.0},
    }
    for section, values in changes.items():
        sections.setdefault(section, {}).update(values)
    for section, values in sections.items():
        before: Any = getattr(settings, section)
        after: Any = values if isinstance(before, Mapping) else replace(before, **values)
        settings = replace(settings, **{section: after})
    daemon = Daemon(settings, rng=random.Random(1))
    try:
        daemon.database.run(lambda conn: _fill(conn, settings, count))
        made = Server(daemon, create_app(daemon.services))
        yield made
        assert made.undocumented == []
    finally:
        daemon.stop()


def _fill(conn: Connection, settings: Settings, count: int) -> None:
    """Make devices at addresses where nobody answers: a pool that another test has up may have those of testdata."""
    testdata.fill(conn, settings, count, NO_RELAY, "ready")
    address = tables.devices.c.address
    conn.execute(update(tables.devices).values(address=func.replace(address, "127.11.", "127.254.")))


def add_relay_board(server: Server, name: str, fqdn: str, server_id: int | None = None) -> None:
    """Add a relay board of this (or another) server."""
    values = {
        "name": name,
        "fqdn": fqdn,
        "imaging_server_id": server_id or server.daemon.server_id,
        "state": "ok",
        "state_counters": "{}",
    }
    server.daemon.database.run(lambda conn: conn.execute(insert(tables.relay_boards), values))
