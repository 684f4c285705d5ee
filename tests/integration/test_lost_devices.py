# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Whoever has lost a device, since their request was revoked or has expired, does nothing to it any more.

Two servers as processes of their own: a request is made on one of them, for a device of the other. The former holder
calls both, and before anybody else gets the device it is proven again.
"""

from __future__ import annotations

import os
import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import requests
from sqlalchemy import update

from mozpool.db import tables
from mozpool.fakes.sutagent import COMMAND_PORT
from tests.access_support import bearer, make_token
from tests.integration.mozpool_site import RELIABLE, eventually
from tests.integration.server_pool import Pool
from tests.mariadb import MariaDB
from tests.unit.test_gate import HOLDERS
from tests.wired import KEY

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow, pytest.mark.mysql]

ME, YOU = "me@example.com", "you@example.com"

BROKEN_OFF_WITHIN = 10.0
"""Seconds within which a command ends on a machine with too much to do; two are usual."""


@pytest.fixture
def pool(mariadb: MariaDB, tmp_path: Path) -> Iterator[Pool]:
    """Two servers that ask who calls; the boards, which never fail, belong to the first one."""
    name = f"lost_{os.getpid()}"
    mariadb.execute(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
    pool = Pool(tmp_path, mariadb.url(name), servers=2, boards=1, speed=10.0, seed=3)
    pool.config.write_text(pool.config.read_text() + RELIABLE)
    for server in pool.servers:
        text = server.config.read_text()
        server.config.write_text(f"{text}[auth]\nmode = token\ndevice_events = token\nserver_key = {KEY}\n")
    try:
        with pool:
            yield pool
    finally:
        mariadb.execute(f"DROP DATABASE {name}")


class Person:
    """Calls servers as a client does: it goes where it is sent, and says there who it is, too."""

    def __init__(self, pool: Pool, name: str, role: str = "user") -> None:
        self._headers = bearer(make_token(pool.database, name, role))

    def call(self, method: str, url: str, body: object = None) -> requests.Response:
        said = requests.request(method, url, json=body, headers=self._headers, timeout=60, allow_redirects=False)
        if said.status_code == 302:
            url = said.headers["Location"]
            said = requests.request(method, url, json=body, headers=self._headers, timeout=60, allow_redirects=False)
        return said

    def has(self, server: str, device: str) -> int:
        """The id of a new request on this server, when it has its device."""
        body = {"duration": 600, "image": "b2g", "b2gbase": "http://b/1/", "wait": 600}
        said = self.call("POST", f"{server}/api/device/{device}/request/", body)
        assert said.status_code == 200, said.text
        number = int(said.json()["request"]["id"])
        status = f"{server}/api/request/{number}/status/"
        assert eventually(lambda: self.call("GET", status).json()["state"] == "ready", 120), self.call(
            "GET", status
        ).text
        return number

    def statuses(self, server: str, device: str) -> dict[tuple[str, str], int]:
        """What all calls are answered that are for whoever has the device."""
        return {
            (method, path): self.call(method, f"{server}/api/device/{device}/{path}/", body).status_code
            for method, path, body in HOLDERS
        }


def moved(pool: Pool, address: str) -> str:
    """Say that device1 is at another address, and answer the one before."""
    before = str(pool.rows("SELECT address FROM devices WHERE name = 'device1'")[0][0])
    devices = tables.devices
    with pool.database.begin() as conn:
        conn.execute(update(devices).where(devices.c.name == "device1").values(address=address))
    return before


class Command:
    """A command on device1 that its agent never ends."""

    def __init__(self, who: Person, server: str) -> None:
        self.asked = threading.Event()
        self.answer: requests.Response | None = None
        chance = random.SystemRandom()
        self.address = f"127.{chance.randrange(100, 200)}.{chance.randrange(256)}.{chance.randrange(1, 255)}"
        self._listener = socket.create_server((self.address, COMMAND_PORT))
        url = f"{server}/api/device/device1/agent/exec/"
        body = {"command": ["sleep", "50"], "timeout": 50}
        self._threads = [
            threading.Thread(target=self._serve),
            threading.Thread(target=lambda: setattr(self, "answer", who.call("POST", url, body))),
        ]

    def _serve(self) -> None:
        with closing(self._listener.accept()[0]) as connection:
            connection.sendall(b"$>\x00")
            said = b""
            while b"sleep" not in said and (more := connection.recv(1000)):
                said += more
            self.asked.set()
            while connection.recv(1000):
                pass

    def start(self) -> None:
        for thread in self._threads:
            thread.start()
        assert self.asked.wait(30)

    def is_over(self) -> bool:
        """Whether caller and agent have been told, in time."""
        give_up = time.monotonic() + BROKEN_OFF_WITHIN
        for thread in self._threads:
            thread.join(max(0.0, give_up - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def close(self) -> None:
        self._listener.close()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(60)


@contextmanager
def long_command(pool: Pool, who: Person, server: str) -> Iterator[Command]:
    """One that is under way."""
    command = Command(who, server)
    before = moved(pool, command.address)
    try:
        command.start()
        yield command
    finally:
        command.close()
        moved(pool, before)


def expire_soon(pool: Pool, me: Person, server: str, number: int) -> None:
    """Have a request of mine for no longer than two seconds."""
    said = me.call("POST", f"{server}/api/request/{number}/renew/", {"duration": 2})
    assert said.status_code == 204, said.text


def expired(pool: Pool, number: int) -> bool:
    """Whether a request's time is over, by the clock that all of them share."""
    expires: Any = pool.rows(f"SELECT expires FROM requests WHERE id = {number}")[0][0]
    return bool(pool.database.clock.now().replace(tzinfo=None) > datetime.fromisoformat(str(expires)))


@pytest.mark.parametrize("how", ["revoked", "expired", "expired while its server hangs"])
def test_who_has_lost_a_device_is_refused_at_once_by_all_servers(pool: Pool, how: str) -> None:
    owner, other = pool.servers
    me, you, operator = Person(pool, ME), Person(pool, YOU), Person(pool, "op@example.com", "operator")
    number = me.has(other.url, "device1")
    clear = "/api/device/device1/clear-pxe/"
    for url in pool.urls:
        assert me.call("POST", url + clear).status_code == 200
        assert you.call("POST", url + clear).status_code == 403
    urls = pool.urls
    with long_command(pool, me, other.url) as command:
        if how == "revoked":
            body = {"reason": "the board is needed"}
            said = operator.call("POST", f"{owner.url}/api/request/{number}/revoke/", body)
            assert said.status_code == 204, said.text
        else:
            expire_soon(pool, me, other.url, number)
            if how != "expired":
                other.freeze()
                urls = [owner.url]
            assert eventually(lambda: expired(pool, number), 20)
        for url in urls:
            assert set(me.statuses(url, "device1").values()) == {403}, pool.story()
        assert command.is_over(), pool.story()
        assert command.answer is not None
        assert command.answer.status_code == 403, command.answer.text
        lost = f"your request {number} does not have device device1 any more"
        assert command.answer.json()["error"]["message"] == lost
    if other.frozen:
        other.go_on()
    (newest,) = pool.rows("SELECT MAX(id) FROM device_history")[0]
    status = f"{owner.url}/api/request/{number}/status/"
    assert eventually(lambda: me.call("GET", status).json()["state"] == "closed", 60), pool.story()
    assert me.call("POST", f"{other.url}/api/request/{number}/renew/", {"duration": 600}).status_code == 422

    # The next one gets a device that was started anew and is proven.
    following = you.has(owner.url, "device1")
    states = [row[0] for row in pool.rows(f"SELECT to_state FROM device_history WHERE id > {newest} ORDER BY id")]
    assert "pc_power_cycling" in states or "pxe_power_cycling" in states, states
    assert states[-3:] == ["sut_sdcard_verifying", "operation_complete", "ready"], states
    for url in pool.urls:
        assert set(me.statuses(url, "device1").values()) == {403}
        assert you.call("POST", url + clear).status_code == 200
    assert pool.rows(f"SELECT state FROM requests WHERE id = {following}") == [("ready",)]
    # What was refused is known, and nothing else was done in my name.
    refused = pool.rows(f"SELECT action, status FROM audit WHERE who = '{ME}' AND target = 'device device1'")
    assert [each for each in refused if each[1] == 200] == [("clear_pxe", 200), ("clear_pxe", 200)]
    assert len({action for action, status in refused if status == 403}) == len({path for _, path, _ in HOLDERS})
