# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The logs of devices and requests: written in batches, kept while the database is away."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import event

from mozpool import logbook as module
from mozpool.clock import Clock, SimClock
from mozpool.db import logs, schema
from mozpool.db.engine import Database
from mozpool.db.tables import device_logs, request_logs
from mozpool.errors import DatabaseAway
from mozpool.logbook import Logbook
from tests.conftest import open_database
from tests.mariadb import MariaDB, running

START = Clock().now().replace(microsecond=0)
"""Now: on MySQL there are partitions for these days only."""


def lines(database: Database, table: Any, row_id: int) -> list[str]:
    with database.read() as conn:
        return [line.message for line in logs.latest(conn, table, row_id, limit=None)]


@pytest.fixture
def book(database: Database) -> Logbook:
    return Logbook(database, SimClock(START))


@pytest.fixture
def away() -> Iterator[Database]:
    """A database that nobody runs: nothing listens on this port."""
    database = open_database("mysql://root@127.0.0.1:9/none")
    yield database
    database.dispose()


def test_it_writes_what_has_come_together(database: Database, book: Logbook):
    clock = book._clock
    assert isinstance(clock, SimClock)
    book.add("device", 1, "panda-0001", "bmm", "power cycled")
    clock.advance(2)
    book.add("request", 7, "request 7", "mozpool", "wants panda-0001")
    book.add("device", 2, "panda-0002", "statemachine", "new -> start_self_test on timeout")
    assert lines(database, device_logs, 1) == []
    book.flush()
    with database.read() as conn:
        (line,) = logs.latest(conn, device_logs, 1)
        (other,) = logs.latest(conn, request_logs, 7)
    assert (line.ts, line.source, line.message) == (START, "bmm", "power cycled")
    assert other.ts == START + timedelta(seconds=2)
    assert lines(database, device_logs, 2) == ["new -> start_self_test on timeout"]
    book.flush()
    assert lines(database, device_logs, 1) == ["power cycled"]


def test_it_writes_in_batches(database: Database, book: Logbook):
    statements: list[str] = []
    event.listen(database.engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    for number in range(module.BATCH * 2 + 10):
        book.add("device", 1, "panda-0001", "bmm", str(number))
    book.flush()
    assert sum("INSERT" in statement for statement in statements) <= 6
    assert lines(database, device_logs, 1) == [str(number) for number in range(module.BATCH * 2 + 10)]


def test_lines_go_to_the_processs_log_at_once(book: Logbook, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO):
        book.add("device", 1, "panda-0001", "bmm", "no answer", level=logging.WARNING)
        book.add("request", 7, "request 7", "mozpool", "renewed")
    assert [(record.name, record.levelname, record.getMessage()) for record in caplog.records] == [
        ("mozpool.device", "WARNING", "panda-0001: no answer"),
        ("mozpool.request", "INFO", "request 7: renewed"),
    ]


def test_lines_that_are_too_long_are_cut(database: Database, book: Logbook):
    book.add("device", 1, "panda-0001", "s" * 100, "ü" * 100_000)
    book.flush()
    with database.read() as conn:
        (line,) = logs.latest(conn, device_logs, 1)
    assert line.source == "s" * 32
    assert line.message == "ü" * 16_000


def test_garbage_from_a_device_does_not_spoil_the_batch(database: Database, book: Logbook):
    book.add("device", 1, "panda-0001", "bmm", "before")
    book.add("device", 1, "panda-0001", "bmm", "the agent said \udcff\x00\U0001f4a9")
    book.add("device", 1, "panda-0001", "bmm", "after")
    book.flush()
    assert lines(database, device_logs, 1) == ["before", "the agent said ?\\x00\U0001f4a9", "after"]


def test_nobody_who_is_quoted_writes_lines_of_his_own(
    database: Database, book: Logbook, caplog: pytest.LogCaptureFixture
):
    forged = "free\n2030-01-01 00:00:00,000 INFO mozpool.device: panda-0002: lent\r\x1b[2K\x85\u2028\u202e\x00"
    plain = "free\\n2030-01-01 00:00:00,000 INFO mozpool.device: panda-0002: lent\\r\\x1b[2K\\x85\\u2028\\u202e\\x00"
    with caplog.at_level(logging.INFO):
        book.add("device", 1, "panda-0001", "mozpool", forged)
        book.add("device", 1, "panda\n-0001", "mozpool", "Grüße an C:\\new, 100 %\t日本")
    book.flush()
    assert lines(database, device_logs, 1) == [plain, "Grüße an C:\\new, 100 %\t日本"]
    assert [record.getMessage() for record in caplog.records] == [
        f"panda-0001: {plain}",
        "panda\\n-0001: Grüße an C:\\new, 100 %\t日本",
    ]


def test_in_the_processs_log_only_records_begin_at_the_left_edge():
    formatter = module.OneLineEach("%(levelname)s %(message)s")
    record = logging.LogRecord("mozpool", logging.INFO, "", 0, "stacks:\n%s", ("one\r\ntwo",), None)
    assert formatter.format(record) == "INFO stacks:\n    one\\r\n    two"


def test_lines_of_rows_that_are_gone_are_written_all_the_same(database: Database, book: Logbook):
    book.add("device", 4_000_000, "panda-4000000", "bmm", "last words")
    book.add("request", 4_000_000_000, "request 4000000000", "mozpool", "last words")
    book.flush()
    assert lines(database, device_logs, 4_000_000) == ["last words"]
    assert lines(database, request_logs, 4_000_000_000) == ["last words"]


def test_lines_are_kept_while_the_database_is_away(
    database: Database, away: Database, caplog: pytest.LogCaptureFixture
):
    book = Logbook(away, Clock())
    book.add("device", 1, "panda-0001", "bmm", "first")
    with pytest.raises(DatabaseAway):
        book.flush()
    book.add("device", 1, "panda-0001", "bmm", "second")
    book._database = database
    book.flush()
    assert lines(database, device_logs, 1) == ["first", "second"]


def test_the_oldest_lines_are_dropped_when_there_are_too_many_and_counted(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(module, "LIMIT", 10)
    monkeypatch.setattr(module, "FLUSH_INTERVAL", 0.001)
    database = open_database(sqlite_url)
    book = Logbook(database, Clock())
    for number in range(25):
        book.add("device", 1, "panda-0001", "bmm", str(number))
    book.start()
    while "15 log lines were dropped while the database was away" not in caplog.messages:
        Clock().sleep(0.002)
    book.stop()
    assert lines(database, device_logs, 1) == [str(number) for number in range(15, 25)]
    database.dispose()


def test_lines_that_are_dropped_during_a_write_are_not_written_twice(sqlite_url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "LIMIT", 3)
    database = open_database(sqlite_url)
    book = Logbook(database, Clock())
    for number in range(3):
        book.add("device", 1, "panda-0001", "bmm", str(number))
    added: list[str] = []

    def meanwhile(*args: Any) -> None:
        if "INSERT" in args[2] and not added:
            added.append("late")
            book.add("device", 1, "panda-0001", "bmm", "late")

    event.listen(database.engine, "before_cursor_execute", meanwhile)
    book.flush()
    book.flush()
    assert lines(database, device_logs, 1) == ["0", "1", "2", "late"]
    database.dispose()


def test_its_thread_writes_soon_and_stop_writes_the_rest(database: Database):
    book = Logbook(database, Clock())
    book.start()
    book.add("device", 1, "panda-0001", "bmm", "soon")
    while not lines(database, device_logs, 1):
        Clock().sleep(0.01)
    book.add("device", 1, "panda-0001", "bmm", "last")
    book.stop()
    assert lines(database, device_logs, 1) == ["soon", "last"]


def test_stop_does_not_fail_without_a_database(away: Database, caplog: pytest.LogCaptureFixture):
    book = Logbook(away, Clock())
    book.add("device", 1, "panda-0001", "bmm", "lost")
    book.stop()
    assert any(message.startswith("the last log lines are lost: ") for message in caplog.messages)


@pytest.mark.mysql
def test_its_thread_survives_a_restart_of_the_database(mariadb: MariaDB):
    with running() as server:
        server.execute("CREATE DATABASE mine")
        database = open_database(server.url("mine"))
        schema.create(database)
        book = Logbook(database, Clock())
        book.start()
        book.add("device", 1, "panda-0001", "bmm", "before")
        while not lines(database, device_logs, 1):
            Clock().sleep(0.01)
        server.stop()
        book.add("device", 1, "panda-0001", "bmm", "during")
        with pytest.raises(DatabaseAway):
            book.flush()
        server.start()
        while book._lines:
            Clock().sleep(0.01)
        book.stop()
        assert lines(database, device_logs, 1) == ["before", "during"]
        database.dispose()


def test_a_batch_that_the_database_refuses_does_not_hold_up_the_next(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(module, "FLUSH_INTERVAL", 0.001)
    database = open_database(sqlite_url)
    book = Logbook(database, Clock())
    book.add("device", 2**70, "panda-0001", "bmm", "an id that fits nowhere")
    book.start()
    while "a batch of log lines could not be written and is dropped" not in caplog.messages:
        Clock().sleep(0.002)
    book.add("device", 1, "panda-0001", "bmm", "fine")
    while not lines(database, device_logs, 1):
        Clock().sleep(0.002)
    book.stop()
    database.dispose()
