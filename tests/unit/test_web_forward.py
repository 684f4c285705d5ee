# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What pages ask of their own server, and another one has to do: two imaging servers over one database."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from sqlalchemy import update
from werkzeug.serving import make_server

from mozpool.daemon import Daemon
from mozpool.db import images, tables
from mozpool.web.app import create_app
from mozpool.web.forward import HEADER
from tests.app_fixtures import Server, server

FORWARD = {HEADER: "1"}


@dataclass
class Pair:
    """This server, and one that really listens and has ``device2``."""

    here: Server
    there: Daemon


@contextmanager
def listening(app: object) -> Iterator[str]:
    """HOST:PORT of an application or a request handler that is served."""
    if isinstance(app, type):
        http = ThreadingHTTPServer(("127.0.0.1", 0), app)
    else:
        http = make_server("127.0.0.1", 0, app, threaded=True)  # type: ignore[arg-type, assignment]
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{http.server_port}"
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


def give(here: Server, device: str, fqdn: str) -> None:
    """Let the imaging server of this name own a device."""
    here.move(device, here.daemon.database.run(lambda conn: images.ensure_imaging_server(conn, fqdn)))


@pytest.fixture
def pair(sqlite_url: str, tmp_path: Path) -> Iterator[Pair]:
    with server(sqlite_url, tmp_path) as here:
        own = here.daemon.settings
        there = Daemon(replace(own, server=replace(own.server, fqdn="to-be-known")), rng=random.Random(2))
        try:
            with listening(create_app(there.services)) as address:
                table = tables.imaging_servers
                here.daemon.database.run(
                    lambda conn: conn.execute(update(table).where(table.c.id == there.server_id).values(fqdn=address))
                )
                here.move("device2", there.server_id)
                yield Pair(here, there)
        finally:
            there.stop()


def test_a_call_of_a_page_is_done_by_the_server_that_owns_the_device(pair: Pair) -> None:
    path = "/api/device/device2/status/"
    assert pair.here.post(path, {"status": "offline"}).status_code == 302
    said = pair.here.post(path, {"status": "offline", "reason": "broken screen"}, headers=FORWARD)
    assert (said.status_code, said.get_json()) == (200, {"state": "locked_out"})
    assert pair.here.device("device2").state == "locked_out"
    assert "Location" not in said.headers


def test_what_the_other_server_refuses_is_told_in_its_words(pair: Pair) -> None:
    said = pair.here.post("/api/device/device2/state-change/new/to/ready/", headers=FORWARD)
    assert said.status_code == 409
    assert "new" in said.get_json()["error"]["message"]
    said = pair.here.get("/api/device/device2/ping/", headers=FORWARD)
    assert (said.status_code, said.get_json()["success"]) == (200, False)


def test_an_answer_without_a_body_stays_one(pair: Pair) -> None:
    number = pair.here.made("device1")
    assert pair.here.post(f"/api/request/{number}/return/", headers=FORWARD).status_code == 204
    table = tables.requests
    number = pair.here.made("device1")
    pair.here.daemon.database.run(
        lambda conn: conn.execute(
            update(table).where(table.c.id == number).values(owner_id=pair.there.server_id, version=table.c.version + 1)
        )
    )
    said = pair.here.post(f"/api/request/{number}/return/", {}, headers=FORWARD)
    assert (said.status_code, said.data) == (204, b"")


def test_a_server_that_does_not_answer_is_named(imaging_server: Server) -> None:
    give(imaging_server, "device2", "127.0.0.1:9")
    before = imaging_server.device("device2")
    said = imaging_server.post("/api/device/device2/power-cycle/", {}, headers=FORWARD)
    assert said.status_code == 502
    error = said.get_json()["error"]
    assert error["code"] == "server_away"
    assert "imaging server 127.0.0.1:9" in error["message"]
    assert imaging_server.device("device2") == before


class Elsewhere(BaseHTTPRequestHandler):
    """Says of everything that it is another one's business, namely its own."""

    def do_POST(self) -> None:
        self.send_response(302)
        self.send_header("Location", f"http://{self.headers['Host']}{self.path}")
        self.end_headers()

    def log_message(self, *_arguments: object) -> None:
        """It says nothing."""


def test_nobody_is_sent_from_server_to_server(imaging_server: Server) -> None:
    with listening(Elsewhere) as address:
        give(imaging_server, "device2", address)
        said = imaging_server.post("/api/device/device2/power-cycle/", {}, headers=FORWARD)
    assert said.status_code == 502
    assert "a redirect" in said.get_json()["error"]["message"]
