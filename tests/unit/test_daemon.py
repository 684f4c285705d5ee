# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The daemon's own work: looking up what is due."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import Connection, update

from mozpool.clock import Clock
from mozpool.config import Paths, Settings
from mozpool.daemon import Daemon
from mozpool.db import tables
from mozpool.db.engine import Database
from mozpool.errors import DatabaseAway
from scripts import testdata
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
