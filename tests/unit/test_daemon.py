# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The daemon's own work: looking up what is due."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, update

from mozpool.clock import Clock
from mozpool.config import Netboot, Paths, Server, Settings
from mozpool.daemon import Daemon
from mozpool.db import tables
from mozpool.db.engine import Database
from mozpool.errors import DatabaseAway
from mozpool.pool.link import LinkError
from scripts import testdata
from tests.app_fixtures import server
from tests.integration.mozpool_site import eventually


class GoesAway(Database):
    """A database whose next reads are lost."""

    lost = 0

    @contextmanager
    def read(self) -> Iterator[Connection]:
        if self.lost:
            self.lost -= 1
            raise DatabaseAway("the connection is gone")
        with super().read() as conn:
            yield conn


def test_a_scan_that_was_lost_is_tried_again_soon(
    sqlite_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What another server has written is only found by a scan."""
    caplog.set_level(logging.WARNING, "mozpool.daemon")
    clock = Clock()
    database = GoesAway(sqlite_url, clock=clock, rng=random.Random(1))
    settings = Settings(paths=Paths(tftp_root=tmp_path))
    database.run(lambda conn: testdata.fill(conn, settings, 1, 9, "ready"))
    daemon = Daemon(settings, clock=clock, rng=random.Random(1), database=database)
    due = clock.now() + timedelta(seconds=25)
    database.run(lambda conn: conn.execute(update(tables.devices).values(state_timeout=due)))
    daemon.timers.start()
    try:
        database.lost = 2
        begun = time.monotonic()
        daemon.scan()
        assert ("device", 1) not in daemon.timers
        assert eventually(lambda: ("device", 1) in daemon.timers)
        assert time.monotonic() - begun > 1.5, "one try a second"
        assert caplog.text.count("deadlines are not looked up") == 2
    finally:
        daemon.stop()


def test_a_server_that_does_not_answer_holds_up_no_calls_but_those_to_it(sqlite_url: str, tmp_path: Path) -> None:
    many, goes_on = 50, threading.Event()
    asked: list[str] = []

    def hang(name: str, path: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        asked.append(path)
        goes_on.wait(30)
        raise LinkError(f"imaging server {name} does not answer")

    with server(sqlite_url, tmp_path, count=many + 1) as one:
        one.daemon.links._post = hang
        other = one.other_server()
        for number in range(1, many + 1):
            one.move(f"device{number}", other)
        one.daemon.timers.start()
        try:
            for number in range(1, many + 1):
                one.made(f"device{number}")
            one.wait_until(lambda: len(asked) > 1)
            own = one.made(f"device{many + 1}")
            one.wait_until(lambda: one.request(own).state == "pending", 5)
            assert len(asked) < many
        finally:
            goes_on.set()


@pytest.mark.parametrize("group", [None, "room-1"])
def test_a_member_of_a_group_boots_boards_within_its_lease(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: str | None
) -> None:
    told: dict[str, Any] = {}
    monkeypatch.setattr("mozpool.daemon.NetbootService", lambda settings, boards, clock, **more: told.update(more))
    settings = Settings(
        server=Server(group=group, heartbeat_interval=2.0),
        paths=Paths(tftp_root=tmp_path),
        netboot=Netboot(run_dnsmasq=True),
    )
    clock = Clock()
    database = Database(sqlite_url, clock=clock, rng=random.Random(1))
    daemon = Daemon(settings, clock=clock, rng=random.Random(1), database=database)
    try:
        if group is None:
            assert told == {}
        else:
            assert daemon.cutoff is not None
            assert told == {"interval": 2.0, "lease": daemon.lease}
            assert daemon.lease.leash == daemon.cutoff.leash
    finally:
        daemon.stop()
