# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Pages of logs: which lines they have, and that only these are read however long the log is."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest

from mozpool.clock import Clock
from mozpool.db import logs
from mozpool.db.engine import Database
from mozpool.db.tables import device_logs
from tests.conftest import open_database

NOW = Clock().now().replace(microsecond=0)
"""Now: on MySQL there are partitions for these days only."""
LINES = 6000
TALKS, RARE, QUIET = 1, 2, 3


def whose(number: int) -> int:
    return RARE if number % 100 == 50 else QUIET if number < LINES / 5 and number % 2 else TALKS


def moment(number: int) -> datetime:
    """The lines of ten days, evenly."""
    return NOW - timedelta(days=10) * (1 - number / LINES)


def fill(database: Database) -> None:
    """One device talks all the time, one says something every hundred lines, and one was last heard of days ago."""
    lines = [(whose(number), moment(number)) for number in range(LINES)]
    for start in range(0, LINES, 1000):
        part = [
            (device, ts, "x", f"line {number}")
            for number, (device, ts) in enumerate(lines[start : start + 1000], start)
        ]
        database.run(lambda conn, part=part: logs.add_many(conn, device_logs, part))  # type: ignore[misc]


@pytest.fixture
def long_log(database: Database) -> Database:
    fill(database)
    return database


def numbers(database: Database, device: int, **which: Any) -> list[int]:
    with database.read() as conn:
        return [int(line.message.split()[1]) for line in logs.latest(conn, device_logs, device, **which)]


def expected(device: int) -> list[int]:
    return [number for number in range(LINES) if whose(number) == device]


def test_a_log_is_read_page_by_page_in_order(long_log: Database):
    for device in (TALKS, RARE, QUIET):
        wanted = expected(device)
        assert numbers(long_log, device, limit=None) == wanted
        assert numbers(long_log, device) == wanted[-100:]
        read: list[int] = []
        before = 2**62
        while True:
            with long_log.read() as conn:
                page = logs.latest(conn, device_logs, device, limit=777, before=before)
            if not page:
                break
            read[:0] = [int(line.message.split()[1]) for line in page]
            before = page[0].id
        assert read == wanted


def test_a_page_has_the_newest_lines_behind_a_line_or_of_a_time(long_log: Database):
    with long_log.read() as conn:
        line = logs.latest(conn, device_logs, RARE, limit=10)[0]
    assert numbers(long_log, RARE, after=line.id) == expected(RARE)[-9:]
    assert numbers(long_log, RARE, after=line.id, limit=3) == expected(RARE)[-3:]
    assert numbers(long_log, RARE, since=line.ts) == expected(RARE)[-10:]
    assert numbers(long_log, RARE, since=line.ts, before=line.id) == []
    assert numbers(long_log, QUIET, since=NOW - timedelta(days=1)) == []


@pytest.mark.mysql
def test_only_the_lines_of_a_page_are_read(mysql_url: str):
    database = open_database(mysql_url)
    fill(database)
    with database.read() as conn:
        first = logs.latest(conn, device_logs, TALKS, limit=None)[0].id
    pages: list[tuple[int, dict[str, Any]]] = [
        (TALKS, {}),
        (RARE, {}),
        (QUIET, {}),
        (TALKS, {"before": first + 2500}),
        (QUIET, {"before": first + 500}),
        (TALKS, {"after": first + 2500}),
        (TALKS, {"since": NOW - timedelta(days=9)}),
        (QUIET, {"since": NOW - timedelta(days=2)}),
    ]
    for device, which in pages:
        with database.read() as conn:
            conn.exec_driver_sql("FLUSH STATUS")
            logs.latest(conn, device_logs, device, limit=50, **which)
            counted = conn.exec_driver_sql("SHOW SESSION STATUS LIKE 'Handler_read%%'").all()
        # The index once a partition, its entries, the rows, and the temporary table between.
        assert sum(int(value) for _name, value in counted) < 350, (device, which, counted)
    database.dispose()
