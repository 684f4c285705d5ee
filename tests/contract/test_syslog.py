# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The daemon's own receiver of syslog over real sockets: what boards send, and everything that others may do to it."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace

import pytest
from sqlalchemy import delete, insert

from mozpool import config
from mozpool.bmm.syslog import Allowance, Frames, Limits, SyslogServer
from mozpool.clock import Clock, SimClock
from mozpool.db import devices, logs, schema, tables
from mozpool.db.engine import Database
from mozpool.errors import DatabaseAway, MozpoolError
from tests.conftest import open_database
from tests.mariadb import running
from tests.unit.fakes_support import eventually

SETTINGS = config.Syslog(listen=("127.0.0.1", 0), lines_per_second=1_000_000)
QUICK = Limits(unknown_seconds=0.0)


def add_device(database: Database, name: str) -> None:
    row = {"fqdn": name, "inventory_id": 0, "mac_address": "020000000001", "imaging_server_id": 1}
    database.run(lambda conn: devices.insert_device(conn, random.Random(1), name=name, address=name, **row))


class Site:
    """A receiver, and boards."""

    def __init__(self, database: Database, settings: config.Syslog, limits: Limits) -> None:
        self.database = database
        self.server = SyslogServer(settings, database, Clock(), limits)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    def send(self, data: bytes) -> None:
        self._socket.sendto(data, ("127.0.0.1", self.server.port))

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.server.port), timeout=10)

    def lines(self, device_id: int = 1) -> list[tuple[str, str]]:
        with self.database.read() as conn:
            found = logs.latest(conn, tables.device_logs, device_id, limit=None)
        return [(line.source, line.message) for line in found]

    def messages(self) -> list[str]:
        return [message for _source, message in self.lines()]

    def works(self) -> None:
        """A good line arrives."""
        self.send(b"<134>panda-1 x: still there")
        eventually(lambda: "still there" in self.messages(), "a good line")

    def counted(self, what: str, number: int) -> None:
        eventually(lambda: self.server.counts[what] >= number, f"{number} {what}: {self.server.counts}")

    def close(self) -> None:
        self.server.stop()
        self._socket.close()


@contextmanager
def serving(database: Database, settings: config.Syslog = SETTINGS, limits: Limits = QUICK) -> Iterator[Site]:
    site = Site(database, settings, limits)
    site.server.start()
    try:
        yield site
    finally:
        site.close()
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("syslog")]


@pytest.fixture
def pool(database: Database) -> Database:
    """A database, once SQLite and once MariaDB, with the device panda-1."""
    database.run(lambda conn: conn.execute(insert(tables.imaging_servers), {"id": 1, "fqdn": "server-1"}))
    add_device(database, "panda-1")
    return database


@pytest.fixture
def site(pool: Database) -> Iterator[Site]:
    with serving(pool) as site:
        yield site


def test_lines_of_boards_come_to_their_logs(site: Site):
    site.send(b"<134>Jan  1 00:00:09 panda-1 mobile-init.sh: no clock")
    site.send(b"<134>panda-1.example.com selftest.py[INFO]: all is well\0")
    site.send("<134>1 - PANDA-1 agent 7 - - Grüße \U0001f4a9 'quoted' \\ 100 %s".encode())
    site.counted("written", 3)
    assert site.lines() == [
        ("mobile-init.sh", "no clock"),
        ("selftest.py[INFO]", "all is well"),
        ("agent", "Grüße \U0001f4a9 'quoted' \\ 100 %s"),
    ]


def test_connections_bring_lines_in_both_framings(site: Site):
    with site.connect() as one, site.connect() as other:
        one.sendall(b"<134>panda-1 x: first\n<134>panda-1 x: sec")
        other.sendall(b"27 <134>panda-1 x: counted\nyes24 <134>panda-1 x: counted2")
        site.counted("written", 3)
        one.sendall(b"ond\n<134>panda-1 x: last")
        one.shutdown(socket.SHUT_WR)
        site.counted("written", 5)
    assert sorted(site.messages()) == ["counted2", "counted\\nyes", "first", "last", "second"]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 100,
        bytes(range(256)),
        b"<134>",
        b"<134>panda-1",
        b"<999>panda-1 x: y",
        b"x" * 60_000,
        b"<134>" * 99,
    ],
)
def test_garbage_is_dropped_and_holds_up_nothing(site: Site, data: bytes):
    site.send(data)
    with site.connect() as connection:
        connection.sendall(data + b"\n")
        site.works()
    assert site.messages() == ["still there"]


@pytest.mark.parametrize("data", [b"99999999999 x", b"1x <134>", b"7"])
def test_a_connection_that_makes_no_sense_ends(site: Site, data: bytes):
    with site.connect() as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(10) == b""
    site.works()
    eventually(lambda: not site.server._peers, "the connection is closed")


def test_a_line_of_a_connection_may_come_byte_by_byte_and_be_cut_off(site: Site):
    with site.connect() as connection:
        for byte in b"<134>panda-1 x: slow\n":
            connection.sendall(bytes([byte]))
        connection.sendall(b"<134>panda-1 x: " + b"y" * 20_000 + b"\n<134>panda-1 x: after\n")
        site.counted("written", 3)
    slow, cut, after = site.messages()
    assert (slow, after) == ("slow", "after")
    assert cut == "y" * (QUICK.line_bytes - len("<134>panda-1 x: "))


def test_only_lines_of_known_devices_and_the_right_facility_are_kept(site: Site):
    site.send(b"<134>panda-9 x: unknown")
    site.send(b"<14>panda-1 x: of another facility")
    site.works()
    assert site.messages() == ["still there"]
    assert (site.server.counts["unknown device"], site.server.counts["facility"]) == (1, 1)


def test_the_facility_is_a_setting(pool: Database):
    with serving(pool, replace(SETTINGS, facility="user")) as site:
        site.send(b"<134>panda-1 x: local0")
        site.send(b"<14>panda-1 x: user")
        site.counted("written", 1)
        assert site.messages() == ["user"]


def test_devices_come_and_go(site: Site):
    site.works()
    add_device(site.database, "panda-2")
    site.send(b"<134>panda-2 x: hello")
    eventually(lambda: site.lines(2) == [("x", "hello")], "a line of the new device")


def test_names_are_not_looked_up_for_each_line_of_an_unknown_host(pool: Database):
    with serving(pool, limits=Limits(unknown_seconds=1000, names_seconds=1000)) as site:
        site.works()
        add_device(pool, "panda-2")
        site.send(b"<134>panda-2 x: too early")
        site.counted("unknown device", 1)
        assert site.lines(2) == []


def test_one_that_floods_is_held_back_and_others_are_not(pool: Database, caplog: pytest.LogCaptureFixture):
    limits = replace(QUICK, report_seconds=0.1)
    with serving(pool, replace(SETTINGS, lines_per_second=5.0), limits) as site:
        for number in range(500):
            site.send(b"<134>panda-1 x: flood %d" % number)
        site.counted("too fast", 400)
        with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as other:
            other.bind(("127.0.0.2", 0))
            other.sendto(b"<134>panda-1 x: of another", ("127.0.0.1", site.server.port))
            eventually(lambda: "of another" in site.messages(), "the other's line")
        assert 50 <= sum(message.startswith("flood") for message in site.messages()) <= 100
        eventually(lambda: "beyond [syslog] lines_per_second" in caplog.text, "it is said")


def test_an_address_has_so_many_connections(pool: Database):
    with serving(pool, limits=replace(QUICK, connections_an_address=2)) as site:
        kept = [site.connect(), site.connect()]
        with site.connect() as third:
            assert third.recv(10) == b""
        kept[0].sendall(b"<134>panda-1 x: kept\n")
        site.counted("written", 1)
        for connection in kept:
            connection.close()


def test_lines_wait_while_the_database_is_away_and_only_so_many(pool: Database, monkeypatch: pytest.MonkeyPatch):
    site = Site(pool, SETTINGS, replace(QUICK, lines=20))
    work, away = pool.run, threading.Event()

    def run(*values, **more):
        if away.is_set():
            raise DatabaseAway("the database is away")
        return work(*values, **more)

    monkeypatch.setattr(pool, "run", run)
    away.set()
    site.server.start()
    try:
        for number in range(30):
            site.send(b"<134>panda-1 x: %d" % number)
        site.counted("too many", 10)
        assert site.messages() == []
        away.clear()
        site.counted("written", 20)
        assert site.messages() == [str(number) for number in range(20)]
    finally:
        site.close()


@pytest.mark.mysql
def test_a_real_outage_loses_nothing():
    with running(durable=True) as mariadb:
        mariadb.execute("CREATE DATABASE pool CHARACTER SET utf8mb4")
        with closing_database(mariadb.url("pool")) as database:
            schema.create(database)
            database.run(lambda conn: conn.execute(insert(tables.imaging_servers), {"id": 1, "fqdn": "server-1"}))
            add_device(database, "panda-1")
            with serving(database) as site:
                site.works()
                # A line whose commit was not answered yet would be written once more.
                site.counted("written", 1)
                mariadb.kill()
                for number in range(100):
                    site.send(b"<134>panda-1 x: %d" % number)
                mariadb.start()
                site.counted("written", 101)
                database.dispose()  # its connections for reading have not noticed yet
                assert site.messages()[1:] == [str(number) for number in range(100)]


@contextmanager
def closing_database(url: str) -> Iterator[Database]:
    database = open_database(url)
    try:
        yield database
    finally:
        database.dispose()


def test_what_was_sent_before_the_stop_is_written(pool: Database):
    with serving(pool) as site:
        for number in range(100):
            site.send(b"<134>panda-1 x: %d" % number)
        eventually(lambda: len(site.server._lines) + site.server.counts["written"] == 100, "all lines are taken")
    assert len(site.messages()) == 100


def test_a_device_that_has_gone_takes_its_lines_along(site: Site):
    site.works()
    site.database.run(lambda conn: conn.execute(delete(tables.devices)))
    site.send(b"<134>panda-1 x: after the end")
    site.send(b"<134>panda-2 x: makes it look again")
    site.counted("unknown device", 1)


def test_a_place_that_is_taken_stops_the_start(pool: Database):
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        server = SyslogServer(config.Syslog(listen=("127.0.0.1", port)), pool, Clock())
        with pytest.raises(
            MozpoolError, match=rf"\[syslog\] listen: cannot listen on 127\.0\.0\.1:{port}: address alrea"
        ):
            server.start()
        server.stop()


def test_without_a_place_nothing_is_opened(pool: Database):
    server = SyslogServer(config.Syslog(), pool, Clock())
    server.start()
    server.stop()


# The parts


def test_an_allowance_fills_up_again_with_time():
    clock = SimClock()
    allowance = Allowance(clock, 2.0, Limits(burst_seconds=2.0))
    assert [allowance.take("a") for _ in range(5)] == [True] * 4 + [False]
    assert allowance.take("b")
    clock.advance(1.0)
    assert [allowance.take("a") for _ in range(3)] == [True, True, False]


def test_an_allowance_remembers_so_many_senders():
    clock = SimClock()
    allowance = Allowance(clock, 1.0, Limits(burst_seconds=2.0, senders=3))
    assert all(allowance.take(address) for address in "abc")
    assert [allowance.take(address) for address in "defg"] == [True, True, False, False], "they count as one"
    clock.advance(10.0)
    assert all(allowance.take(address) for address in "hij")
    assert len(allowance._left) <= 4


@pytest.mark.parametrize("step", [1, 3, 1000])
def test_frames_do_not_mind_how_they_are_cut(step: int):
    stream = b"<1>a\n\n3 x\ny10 0123456789<2>" + b"z" * 30 + b"\n12 abcdefghijkl<3>b\n5 12"
    frames, found = Frames(10), list[bytes]()
    for start in range(0, len(stream), step):
        found += frames.feed(stream[start : start + step])
    assert found == [b"<1>a", b"", b"x\ny", b"0123456789", b"<2>zzzzzzz", b"abcdefghij", b"<3>b"]
    assert frames.rest() == b""


@pytest.mark.slow
def test_it_keeps_up_with_a_thousand_lines_a_second(site: Site):
    """Lines of one second; how long it took is printed only."""
    begun = time.monotonic()
    for number in range(1000):
        site.send(b"<134>panda-1 x: %d" % number)
        time.sleep(max(0.0, begun + number / 1000 - time.monotonic()))
    site.counted("written", 1000)
    print(f"1000 lines were there after {time.monotonic() - begun:.2f} s")
    assert site.messages() == [str(number) for number in range(1000)]
