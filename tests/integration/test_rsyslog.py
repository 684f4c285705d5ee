# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What boards log, through a real rsyslogd with the configuration that Mozpool ships, into a real MariaDB."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from sqlalchemy import insert

from mozpool.db import logs, schema, tables
from mozpool.db.engine import Database
from tests import rsyslog
from tests.conftest import empty_tables, open_database
from tests.mariadb import MariaDB, missing, running
from tests.processes import needs

LONG = bool(os.environ.get("MOZPOOL_LONG_TESTS"))
PATIENCE = 60.0
"""Seconds until something that must happen counts as missing, also on a machine that is busy with other things."""
LINES_A_SECOND = 1000

pytestmark = [pytest.mark.mysql, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def server() -> Iterator[MariaDB]:
    """A server that keeps what it has committed, and whose time is not UTC."""
    needs(rsyslog.missing() or missing())
    with running(durable=True) as server:
        server.execute("CREATE DATABASE logs CHARACTER SET utf8mb4")
        database = open_database(server.url("logs"))
        schema.create(database)
        database.dispose()
        rsyslog.let_in(server, "logs")
        yield server


@pytest.fixture
def database(server: MariaDB) -> Iterator[Database]:
    """Three devices, without a log."""
    empty_tables(server, "logs")
    server.execute("SET GLOBAL time_zone = '-07:00'")
    database = open_database(server.url("logs"))
    common = {"inventory_id": 0, "mac_address": "020000000001", "imaging_server_id": 1, "state": "ready"}
    with database.begin() as conn:
        conn.execute(insert(tables.imaging_servers), {"id": 1, "fqdn": "here"})
        for number in (1, 2, 3):
            name = f"panda-{number}"
            conn.execute(
                insert(tables.devices), {"id": number, "name": name, "fqdn": name, "state_counters": "{}", **common}
            )
    yield database
    database.dispose()


class Sender:
    """Boards, as rsyslogd sees them."""

    def __init__(self, port: int) -> None:
        self._place = "127.0.0.1", port
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    def send(self, line: bytes) -> None:
        self._socket.sendto(line, self._place)

    def send_many(self, number: int, first: int = 0, device: str = "panda-1") -> None:
        """So many lines, LINES_A_SECOND of them each second."""
        begun = time.monotonic()
        for count in range(number):
            time.sleep(max(0.0, begun + count / LINES_A_SECOND - time.monotonic()))
            self.send(b"<134>%s x.sh: line %d" % (device.encode(), first + count))

    def close(self) -> None:
        self._socket.close()


@contextmanager
def sending(server: MariaDB, directory: Path, zone: str = "UTC0") -> Iterator[Sender]:
    with rsyslog.running(server, "logs", directory, zone) as port:
        sender = Sender(port)
        try:
            yield sender
        finally:
            sender.close()


def written(database: Database, device_id: int = 1) -> list[logs.LogLine]:
    with database.read() as conn:
        return logs.latest(conn, tables.device_logs, device_id, limit=None)


def until(condition: Callable[[], object], what: str) -> None:
    give_up = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < give_up, f"not within {PATIENCE} s: {what}"
        time.sleep(0.05)


def everything(database: Database, sender: Sender) -> dict[int, list[tuple[str, str]]]:
    """Source and message of each line by device, once all that was sent so far has arrived."""
    sender.send(b"<134>panda-3 test: the end")
    until(lambda: any(line.message == "the end" for line in written(database, 3)), "the last line")
    return {number: [(line.source, line.message) for line in written(database, number)] for number in (1, 2, 3)}


def test_lines_of_boards_arrive_as_they_were_said(server: MariaDB, database: Database, tmp_path: Path) -> None:
    long = "long " * 4000
    with sending(server, tmp_path) as sender:
        for line in (
            b"<134>Nov 24 03:36:04 panda-1 mobile-init.sh: mounted /dev/mmcblk0p1",
            b"<134>panda-1 selftest.py[INFO]: the partition table is as it should be\0",
            b"<134>panda-1 selftest.sh[ERROR]: mmcblk0p3 is missing\n",
            b"<131>panda-1.example.com b2g-second-stage.sh: failed: it's \"quoted\" \\' C:\\new\\ %msg% %s 100 %",
            b"<134>panda-1 sshd[1234]: Accepted publickey for root",
            b"<134>1 2026-11-24T03:36:04.5+02:00 panda-1.example.com agent 77 - - started",
            b'<134>1 - panda-1 agent - - [x@1 a="b"] structured',
            "<134>panda-1 x.sh: Grüße 日本 \U0001f4a9".encode(),
            b"<134>panda-1 x.sh: '); DROP TABLE devices; -- ",
            b"<134>panda-2 x.sh:   blanks   ",
            b"<134>panda-2 x.sh: tab\tand bell\x07",
            b"<134>panda-2 " + b"s" * 100 + b": a long tag",
            f"<134>panda-2 x.sh: {long}".encode(),
        ):
            sender.send(line)
        found = everything(database, sender)
    assert found[1] == [
        ("mobile-init.sh", "mounted /dev/mmcblk0p1"),
        ("selftest.py[INFO]", "the partition table is as it should be"),
        ("selftest.sh[ERROR]", "mmcblk0p3 is missing"),
        ("b2g-second-stage.sh", "failed: it's \"quoted\" \\' C:\\new\\ %msg% %s 100 %"),
        ("sshd", "Accepted publickey for root"),
        ("agent", "started"),
        ("agent", "structured"),
        ("x.sh", "Grüße 日本 \U0001f4a9"),
        ("x.sh", "'); DROP TABLE devices; --"),
    ]
    blanks, control, tag, cut = found[2]
    assert blanks == ("x.sh", "blanks")
    assert control == ("x.sh", "tab#011and bell#007")
    assert tag == ("s" * 32, "a long tag")
    assert long.startswith(cut[1])
    assert len(cut[1]) > 8000


def test_what_is_no_line_of_a_known_board_is_dropped_and_holds_up_nothing(
    server: MariaDB, database: Database, tmp_path: Path
) -> None:
    with sending(server, tmp_path) as sender:
        for line in (
            b"",
            b"\0" * 100,
            b"<",
            b"<134>",
            b"<134>panda-1",
            b"<999999999999999999999>panda-1 x.sh: no such priority",
            bytes(range(256)) * 4,
            b"<134>panda-9 x.sh: unknown",
            b"<134>" + b"p" * 400 + b" x.sh: a long name",
            b"<134>x.sh: nobody",
            b"<142>panda-1 x.sh: another facility",
            b"<134>panda-1 \xff\xfe'\\: no text in the tag",
            b"<134>panda-1 x.sh: no text \xff\xfe",
            b"<134>panda-1 x.sh: half \xed\xa0\x80",
            b"<134>panda-1 x.sh: \xf0\x9f\x92",
            b"<134>panda-1 x.sh: ends with a backslash \\",
        ):
            sender.send(line)
        found = everything(database, sender)
    assert found[1][-5:] == [
        ("ÿþ'\\", "no text in the tag"),
        ("x.sh", "no text ÿþ"),
        ("x.sh", "half í\xa0€"),
        ("x.sh", "ðŸ’"),
        ("x.sh", "ends with a backslash \\"),
    ]
    assert all(message == "" for _source, message in found[1][:-5])
    assert found[2] == []
    assert len(found[3]) == 1


def test_times_are_utc_wherever_the_machine_stands(server: MariaDB, database: Database, tmp_path: Path) -> None:
    now = datetime.now(UTC).replace(microsecond=0)
    lately = now - timedelta(hours=30)
    zone = timezone(timedelta(hours=9))
    with sending(server, tmp_path, zone="JST-9") as sender:
        sender.send(lately.strftime("<134>%b %e %H:%M:%S panda-1 x.sh: a board's").encode())
        sender.send(b"<134>1 %s panda-1 x - - - with a zone" % lately.astimezone(zone).isoformat().encode())
        for when in (b"", b"Jan  1 00:00:09 ", (now + timedelta(days=40)).strftime("%b %e %H:%M:%S ").encode()):
            sender.send(b"<134>%spanda-1 x.sh: no clock" % when)
        until(lambda: len(written(database)) == 5, "five lines")
    times = [line.ts for line in written(database)]
    assert times[:2] == [lately, lately]
    assert all(timedelta(0) <= moment - now < timedelta(seconds=PATIENCE) for moment in times[2:])


def test_it_may_do_nothing_but_call_the_procedure(server: MariaDB, database: Database) -> None:
    """Also when the procedures have been made anew."""
    with database.maintenance() as connection:
        schema.load_procedures(connection)
    granted = server.execute("SHOW GRANTS FOR mozpool_log@localhost")
    rights = [right for (right,) in granted if not right.startswith("GRANT USAGE ON *.*")]
    assert rights == ["GRANT EXECUTE ON PROCEDURE `logs`.`insert_device_log_entry` TO `mozpool_log`@`localhost`"]


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_a_database_that_is_away_loses_no_line(server: MariaDB, database: Database, tmp_path: Path, how: str) -> None:
    """It goes between two lines: in the middle of one, rsyslog's ommysql may crash (see docs/production.md)."""
    number = 20_000 if LONG else 1500
    with sending(server, tmp_path) as sender:
        sender.send_many(100)
        until(lambda: len(written(database)) == 100, "what was sent before")
        getattr(server, how)()
        sender.send_many(number, first=100)
        server.start()
        sender.send_many(100, first=100 + number)
        database.dispose()
        until(lambda: len(written(database)) >= number + 200, "all lines")
    assert [line.message for line in written(database)] == [f"line {count}" for count in range(number + 200)]


@pytest.mark.long
def test_a_thousand_lines_a_second_arrive_without_loss_for_a_minute(
    server: MariaDB, database: Database, tmp_path: Path
) -> None:
    number = 60 * LINES_A_SECOND
    with sending(server, tmp_path) as sender:
        begun = time.monotonic()
        sender.send_many(number)
        sent = time.monotonic() - begun
        wanted = [f"line {count}" for count in range(number)]
        until(lambda: len(written(database)) >= number, "all lines")
        print(f"{number} lines sent in {sent:.1f} s, written after {time.monotonic() - begun:.1f} s")
    assert [line.message for line in written(database)] == wanted
    assert sent < 61
