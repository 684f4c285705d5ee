# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Whole imaging servers that want to know who calls, with simulated boards, which are installed, lent and returned."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from flask import request

from mozpool.access.principal import Kind, principal
from mozpool.bmm.service import token_hash
from mozpool.client import Client
from mozpool.web.forward import HEADER
from scripts import testdata
from tests.integration.mozpool_site import RELIABLE as FAULTLESS
from tests.integration.mozpool_site import eventually, free_ports
from tests.integration.server_pool import Pool
from tests.mariadb import MariaDB
from tests.wired import OPERATOR, USER, Wired, daemon_of, served, settings_of

pytestmark = pytest.mark.timeout(300)

RELIABLE = {f"fake_{what}_failure": 0.0 for what in ("boot", "download", "extract", "reboot", "ping", "selftest")}
INSTALLED = [
    "mobile_init_started",
    "bootconfig",
    "b2g_downloading",
    "b2g_extracting",
    "b2g_rebooting",
]


class Running:
    """A server that works, and who has called it."""

    def __init__(self, wired: Wired) -> None:
        self.wired = wired
        self.calls: list[tuple[Kind, str | None, str, int]] = []
        """Who called what, and what came of it."""
        wired.app.after_request(self._listen)

    def _listen(self, said: Any) -> Any:
        who = principal()
        self.calls.append((who.kind, who.name, request.path, said.status_code))
        return said

    def of(self, kind: Kind) -> list[tuple[str | None, str, int]]:
        """The calls of one kind of callers: who, the last part of the path, the status."""
        return [
            (name, path.rstrip("/").rpartition("/")[2], status) for it, name, path, status in self.calls if it is kind
        ]

    def lent(self, device: str) -> int:
        """The id of a request that a user has just made here, when it has its device."""
        body = {"assignee": "me", "duration": 900, "image": "b2g", "b2gbase": "http://b/1/", "wait": 2400}
        made = self.wired.post(f"/api/device/{device}/request/", body, Authorization=USER)
        assert made.status_code == 200, made.text
        number: int = made.json()["request"]["id"]
        assert eventually(lambda: self.state(number) == "ready", 120), self.wired.get(
            f"/api/request/{number}/status/", Authorization=USER
        ).text
        return number

    def state(self, number: int) -> str:
        """The state of a request."""
        found: str = self.wired.get(f"/api/request/{number}/status/", Authorization=USER).json()["state"]
        return found

    def is_ready(self, device: str) -> bool:
        """Whether a device is free or with its holder."""
        return bool(self.wired.get(f"/api/device/{device}/state/", Authorization=USER).json()["state"] == "ready")


@contextmanager
def running(url: str, directory: Path, port: int, *, boards: int = 0, **auth: str) -> Iterator[Running]:
    """A server with so many boards, which never fail."""
    settings = settings_of(
        url, directory, port, auth=auth, testing={**RELIABLE, "run_fakes": boards > 0, "speed": 20.0, "seed": 3}
    )
    with daemon_of(settings) as daemon:
        if boards:
            daemon.database.run(lambda conn: testdata.fill(conn, settings, boards, port + 1, "ready"))
        with served(daemon) as wired:
            daemon.start()
            yield Running(wired)


@pytest.mark.parametrize("rule", ["token", "address"])
def test_boards_are_known_by_what_they_were_booted_with_or_where_they_are(
    sqlite_url: str, tmp_path: Path, rule: str
) -> None:
    with running(sqlite_url, tmp_path, free_ports(2), boards=1, device_events=rule) as server:
        daemon = server.wired.daemon
        number = server.lent("device1")
        assert server.of(Kind.DEVICE) == [("device1", each, 200) for each in INSTALLED]
        first = daemon.lifeguard.device("device1").boot_token
        assert first is not None
        assert server.wired.post(f"/api/request/{number}/return/", {}, Authorization=USER).status_code == 204
        assert eventually(lambda: server.is_ready("device1"), 60)
        server.lent("device1")
        # The last one has booted from its own storage, as the image was there.
        assert daemon.lifeguard.device("device1").boot_token is None
        said = server.wired.post("/api/device/device1/maintenance/", {}, Authorization=OPERATOR)
        assert said.status_code == 200, said.text
        assert eventually(lambda: server.of(Kind.DEVICE)[-1] == ("device1", "maint_mode", 200), 60)
        assert daemon.lifeguard.device("device1").boot_token not in (None, first)
        assert all(status == 200 for _, _, status in server.of(Kind.DEVICE))


@pytest.mark.parametrize("rule", ["token", "address"])
def test_nobody_else_says_how_far_a_board_is(sqlite_url: str, tmp_path: Path, rule: str) -> None:
    with running(sqlite_url, tmp_path, free_ports(2), boards=1, device_events=rule) as server:
        server.wired.post("/api/device/device1/maintenance/", {}, Authorization=OPERATOR)
        path = "/api/device/device1/event/{}/"
        while not eventually(lambda: bool(server.of(Kind.DEVICE)), 0.05):
            for event in ("mobile_init_started", "maint_mode"):
                assert server.wired.get(path.format(event)).status_code == 401
                assert server.wired.get(path.format(event) + "?token=x").status_code == 401
        assert eventually(lambda: server.of(Kind.DEVICE)[-1:] == [("device1", "maint_mode", 200)], 60)


@pytest.mark.parametrize("rule", ["token", "address"])
def test_two_servers_know_each_other_their_boards_and_people(database_url: str, tmp_path: Path, rule: str) -> None:
    """A request is made on one of them, for a device of the other."""
    ports = free_ports(3)
    with (
        running(database_url, tmp_path / "owner", ports, boards=1, device_events=rule) as there,
        running(database_url, tmp_path / "other", ports + 2, device_events=rule) as here,
    ):
        url, owner = here.wired.url, there.wired.url
        number = here.lent("device1")
        assert eventually(lambda: (owner.removeprefix("http://"), "lifeguard_finished", 200) in here.of(Kind.SERVER))
        assert (url.removeprefix("http://"), "please_image", 200) in there.of(Kind.SERVER)
        assert {status for _, _, status in there.of(Kind.DEVICE)} == {200}

        # A board that calls the wrong server is known there as well, and sent on.
        token = there.wired.daemon.bmm._tokens[there.wired.daemon.lifeguard.device("device1").id]
        assert token_hash(token) == there.wired.daemon.lifeguard.device("device1").boot_token
        event = "/api/device/device1/event/raw_writing/"
        said = here.wired.get(event, Mozpool_Boot_Token=token)
        assert (said.status_code, said.headers["Location"]) == (302, owner + event)
        assert here.wired.get(event, Mozpool_Boot_Token="x").status_code == 401

        # What is for the other server goes there, with who asks for it.
        renew = f"/api/request/{number}/renew/"
        said = there.wired.post(renew, {"duration": 1200}, Authorization=USER)
        assert (said.status_code, said.headers["Location"]) == (302, url + renew)
        assert there.wired.post(renew, {"duration": 1200}).status_code == 401
        assert there.wired.post(renew, {"duration": 1200}, Authorization=USER, **{HEADER: "1"}).status_code == 204
        assert here.calls[-1] == (Kind.TOKEN, "user@example.com", renew, 204)
        reboot = "/api/device/device1/reboot/"
        body = {"request_id": number}
        said = here.wired.post(reboot, body, Authorization=USER, **{HEADER: "1"})
        assert said.status_code == 200, said.text
        assert (Kind.TOKEN, "user@example.com", reboot, 200) in there.calls
        assert eventually(lambda: here.is_ready("device1"), 60)

        said = there.wired.post(f"/api/request/{number}/return/", {}, Authorization=USER, **{HEADER: "1"})
        assert said.status_code == 204
        assert here.state(number) == "closed"
        assert eventually(lambda: there.is_ready("device1"), 60)
        for server in (here, there):
            assert server.wired.daemon.peers.refused == {}
            assert {status for *_, status in server.of(Kind.NOBODY)} <= {401}


@pytest.fixture
def group(mariadb: MariaDB, tmp_path: Path) -> Iterator[Pool]:
    """Two servers that take over from one another, for boards which never fail and that are known by their tokens."""
    name = f"known_{os.getpid()}"
    mariadb.execute(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
    pool = Pool(tmp_path, mariadb.url(name), servers=2, boards=1, speed=10.0, seed=3)
    pool.config.write_text(pool.config.read_text() + FAULTLESS)
    for server in pool.servers:
        server.config.write_text(server.config.read_text() + "[auth]\ndevice_events = token\n")
    try:
        with pool:
            yield pool
    finally:
        mariadb.execute(f"DROP DATABASE {name}")


@pytest.mark.mysql
def test_a_board_is_installed_by_the_server_that_has_taken_over_in_the_middle(group: Pool) -> None:
    first, second = group.servers
    state = "SELECT state FROM devices WHERE name = 'device1'"
    # The request belongs to the server that stays.
    client = Client([second.url])
    made = client.request("device1", image="b2g", duration=900, boot_config={"b2gbase": "http://b/1/"}, wait=600)
    assert eventually(lambda: group.rows(state)[0][0] in ("b2g_downloading", "b2g_extracting"), 60), group.story()
    token = group.rows("SELECT boot_token FROM devices")
    first.kill()
    assert client.wait_ready(made.id, 120).assigned_device == "device1"
    assert group.rows("SELECT boot_token FROM devices") != token
    told = "GET /api/device/device1/event/{}/ 200"
    for server, events in ((first, INSTALLED[:1]), (second, [INSTALLED[0], *INSTALLED[2:]])):
        said = server.log.read_text()
        assert [event for event in events if told.format(event) not in said] == [], group.story()
    assert "/event/mobile_init_started/ 401" not in second.log.read_text()
