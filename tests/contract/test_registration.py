# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Agents that register over real connections: their exact bytes, and everything that others may do to the port."""

from __future__ import annotations

import os
import random
import resource
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from ipaddress import ip_network

import pytest
from sqlalchemy import insert

from mozpool import config
from mozpool.bmm.registration import NO, OK, Limits, Registrar, RegistrationServer
from mozpool.clock import Clock
from mozpool.db import devices, schema, tables
from mozpool.db.devices import Device
from mozpool.db.engine import Database
from mozpool.errors import MozpoolError
from mozpool.logbook import Logbook
from tests.conftest import open_database
from tests.mariadb import running
from tests.unit.fakes_support import address, eventually

PATIENCE = 60.0
"""Seconds until something that must happen counts as missing, also on a machine that is busy with other things."""

LISTEN = address(250)
BOARD, UNKNOWN, STRANGER = address(1), address(2), address(200)
"""A known device, one that would be accepted, and one that would not."""
ACCEPT = (ip_network(f"{address(0)}/25"),)

PATIENT = Limits(line_seconds=PATIENCE, quiet_seconds=PATIENCE, answer_seconds=PATIENCE, linger_seconds=PATIENCE)
"""Nothing but the peer's own doing ends a connection."""


def android(name: str, where: str) -> bytes:
    """The line of a real agent, but for name and address."""
    return (
        f"register NAME={name}&IPADDR={where}&CMDPORT=20701&DATAPORT=20700&OS=Android+4.0.4+%28IMM76I%29"
        "&SCRNWIDTH=1024&SCRNHEIGHT=768&BPP=32&MEMORY=714+MB&HARDWARE=panda&POOL=default\n"
    ).encode()


LINUX = b"IPADDR=0.0.0.0%3A20701&NAME=SUTAgent"


class Site:
    """A server that agents register at, with one known device, ``panda-0001`` at ``BOARD``."""

    def __init__(self, database: Database, limits: Limits = PATIENT, listen: str = LISTEN) -> None:
        self.database = database
        settings = config.Registration(listen=listen, port=0, accept=ACCEPT)
        clock = Clock()
        self.logbook = Logbook(database, clock)
        rng = random.Random(1)
        registrar = Registrar(settings, devices, database, self.logbook, clock, rng, 1)
        self.server = RegistrationServer(settings, registrar.register, clock, limits)

    def call(self, source: str = BOARD) -> socket.socket:
        """A connection from this address."""
        return socket.create_connection((LISTEN, self.server.port), timeout=PATIENCE, source_address=(source, 0))

    def says(self, data: bytes, source: str = BOARD) -> bytes:
        """All that is answered to these bytes until the server closes."""
        with self.call(source) as connection:
            connection.sendall(data)
            return rest(connection)

    def device(self, name: str = "panda-0001") -> Device | None:
        with self.database.read() as conn:
            return devices.by_name(conn, name)

    def names(self) -> list[str]:
        with self.database.read() as conn:
            return devices.names(conn)

    def seen(self, name: str = "panda-0001") -> bool:
        device = self.device(name)
        return device is not None and device.last_seen is not None

    def works(self) -> None:
        """A good registration is taken, and answered."""
        assert self.says(android("panda-0001", BOARD)) == OK
        assert self.seen()


def rest(connection: socket.socket) -> bytes:
    """What still comes, up to the end; a connection that is cut ends, too."""
    received = b""
    try:
        while piece := connection.recv(4096):
            received += piece
    except ConnectionError:
        pass
    return received


def fill(database: Database) -> None:
    rng = random.Random(1)
    row = {"fqdn": "panda-0001", "inventory_id": 0, "mac_address": "aabbcc000001", "imaging_server_id": 1}
    database.run(lambda conn: conn.execute(insert(tables.imaging_servers), {"fqdn": "server-1.example.com"}))
    database.run(lambda conn: devices.insert_device(conn, rng, name="panda-0001", address=BOARD, **row))


@contextmanager
def serving(database: Database, limits: Limits = PATIENT, listen: str = LISTEN) -> Iterator[Site]:
    site = Site(database, limits, listen)
    site.server.start()
    try:
        yield site
    finally:
        site.server.stop()
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("registration")]


@pytest.fixture
def database(sqlite_url: str) -> Iterator[Database]:
    database = open_database(sqlite_url)
    fill(database)
    yield database
    database.dispose()


@pytest.fixture
def site(database: Database) -> Iterator[Site]:
    with serving(database) as site:
        yield site


@pytest.fixture
def lab(database: Database) -> Iterator[Callable[[Limits], Site]]:
    """A site with these limits."""
    contexts = []

    def start(limits: Limits) -> Site:
        contexts.append(serving(database, limits))
        return contexts[-1].__enter__()

    yield start
    for context in contexts:
        context.__exit__(None, None, None)


# What agents send


def test_an_android_agent_is_answered_ok_once_its_registration_is_committed(site: Site):
    with site.call() as agent:
        agent.sendall(
            b"register NAME=panda-0001&IPADDR=" + BOARD.encode() + b"&CMDPORT=20701&DATAPORT=20700"
            b"&OS=PANDA-userdebug+4.0.4+IMM76I+5+test-keys&SCRNWIDTH=1024&SCRNHEIGHT=768&BPP=32"
            b"&MEMORY=Max%3A+714+MB+Free%3A+500+MB&HARDWARE=OMAP4+Panda+board&POOL=default\n"
        )
        assert agent.recv(4096) == b"OK\n"
        assert site.seen()
        assert agent.recv(4096) == b""


def test_a_linux_agent_that_sends_and_closes_is_seen(site: Site):
    with site.call() as agent:
        agent.sendall(LINUX)
    eventually(site.seen, "the device is seen")


def test_a_linux_agent_that_sends_and_stays_is_seen(lab):
    site = lab(Limits(quiet_seconds=0.1))
    with site.call() as agent:
        agent.sendall(LINUX)
        eventually(site.seen, "the device is seen")
        assert rest(agent) == OK


def test_both_forms_are_read_from_single_bytes(site: Site):
    for line in (android("panda-0001", BOARD), LINUX):
        with site.call() as agent:
            agent.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for byte in line:
                agent.sendall(bytes([byte]))
            agent.shutdown(socket.SHUT_WR)
            assert rest(agent) == OK


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\n\n\n", b"\nregister NAME=other\n", b"\n" + b"x" * 100_000])
def test_what_comes_after_the_line_is_not_looked_at(site: Site, end: bytes):
    line = android("panda-0001", BOARD).removesuffix(b"\n")
    with site.call() as agent:
        agent.sendall(line + end)
        assert agent.recv(4096) == OK
    assert site.names() == ["panda-0001"]


def test_what_comes_after_the_answer_is_not_looked_at(site: Site, caplog: pytest.LogCaptureFixture):
    with site.call(STRANGER) as agent:
        agent.sendall(b"\xff\n")
        assert agent.recv(4096) == NO
        agent.sendall(b"\xff\n")
        agent.shutdown(socket.SHUT_WR)
        assert rest(agent) == b""
        eventually(lambda: not site.server._callers, "the connection is closed")
    assert caplog.text.count("may not register") == 1


def test_a_new_device_is_in_the_pool_when_its_agent_reads_ok(site: Site):
    assert site.says(android("tegra-0007", UNKNOWN), UNKNOWN) == OK
    device = site.device("tegra-0007")
    assert device is not None
    assert (device.state, device.address) == ("new", UNKNOWN)


def test_a_linux_agent_at_an_unknown_address_is_a_new_device(site: Site):
    with site.call(UNKNOWN) as agent:
        agent.sendall(LINUX)
    name = "sut-" + UNKNOWN.replace(".", "-")
    eventually(lambda: site.device(name), "the new device")


def test_a_refusal_never_looks_like_an_ok(site: Site):
    assert b"ok" not in NO.lower()
    assert site.says(android("tokyo-ok-0001", STRANGER), STRANGER) == NO
    assert site.names() == ["panda-0001"]


def test_a_socket_for_both_versions_knows_ipv4_addresses(database: Database):
    if not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    with serving(database, listen="::") as site:
        site.works()


# What else may come


@pytest.mark.parametrize(
    "data",
    [
        b"\n",
        b"\0" * 100 + b"\n",
        bytes(range(256)) * 8 + b"\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n",
        b"register \n",
        b"register NAME=panda-0001%00&IPADDR=127.0.0.1\n",
        b"register NAME=panda-0001&NAME=panda-0001\n",
        b"register NAME=%ff%fe\n",
        b"register NAME=" + b"%41" * 1300 + b"\n",
        b"register NAME=panda-0001&CMDPORT=" + b"9" * 4000 + b"\n",
        b"register " + b"&" * 4000 + b"\n",
        b"register NAME=a" + b"=" * 4000 + b"\n",
    ],
)
def test_garbage_is_refused(site: Site, data: bytes):
    assert site.says(data) == NO
    assert not site.seen()
    site.works()


@pytest.mark.parametrize("start", [b"x", b"register NAME=", b"register \xff\0%"])
def test_a_line_without_end_is_cut_off(lab, start: bytes):
    site = lab(Limits(linger_seconds=0.1, line_seconds=PATIENCE, answer_seconds=PATIENCE))
    with site.call() as babbler:
        babbler.sendall(start)
        with pytest.raises(ConnectionError):
            while True:
                babbler.sendall(b"y" * 4096)
    site.works()


def test_a_line_may_have_as_many_bytes_as_it_says(lab):
    line = android("panda-0001", BOARD).removesuffix(b"\n") + b"&X="
    site = lab(Limits(line_bytes=len(line) + 10, line_seconds=PATIENCE, answer_seconds=PATIENCE))
    assert site.says(line + b"x" * 10 + b"\n") == OK
    assert site.says(line + b"x" * 11 + b"\n") == NO


def test_a_line_that_breaks_off_is_no_registration(site: Site):
    with site.call() as agent:
        agent.sendall(android("panda-0001", BOARD)[:-1])
        agent.shutdown(socket.SHUT_WR)
        assert rest(agent) == NO
    with site.call() as agent:
        agent.sendall(LINUX[:-1])
        agent.shutdown(socket.SHUT_WR)
        assert rest(agent) == NO
    assert not site.seen()


def test_who_says_nothing_is_cut_off_in_the_end(lab):
    site = lab(Limits(line_seconds=0.3))
    with site.call() as silent:
        assert rest(silent) == b""
    with site.call() as half_open:
        half_open.sendall(b"register NAME=panda-0001")
        assert rest(half_open) == b""
    assert not site.seen()


@pytest.mark.parametrize("start", [b"register ", b"IPADDR="])
def test_single_bytes_do_not_stretch_the_time_for_the_line(lab, start: bytes):
    site = lab(Limits(line_seconds=1.0, quiet_seconds=PATIENCE))
    began = time.monotonic()
    with site.call() as dribbler:
        dribbler.sendall(start)
        dribbler.settimeout(0.05)
        while time.monotonic() - began < PATIENCE:
            try:
                dribbler.sendall(b"x")
                if not dribbler.recv(10):
                    break
            except TimeoutError:
                continue
            except ConnectionError:
                break
        else:
            pytest.fail("it goes on for ever")
    assert time.monotonic() - began >= 0.9


def test_an_agent_that_takes_no_answer_is_left(lab):
    site = lab(Limits(linger_seconds=0.2, line_seconds=PATIENCE, answer_seconds=PATIENCE))
    with site.call() as deaf:
        deaf.sendall(android("panda-0001", BOARD))
        eventually(lambda: not site.server._callers and site.seen(), "the connection is closed")


def test_an_address_has_so_many_connections_and_others_have_theirs(site: Site):
    held = [site.call(UNKNOWN) for _ in range(PATIENT.connections_an_address)]
    eventually(lambda: len(site.server._callers) == len(held), "all are connected")
    with site.call(UNKNOWN) as one_more:
        assert rest(one_more) == b""
    site.works()
    for connection in held:
        connection.close()
    eventually(lambda: not site.server._callers, "all have gone")
    assert site.says(android("tegra-0007", UNKNOWN), UNKNOWN) == OK


def test_all_addresses_together_have_so_many_connections(lab):
    site = lab(Limits(connections=6, line_seconds=PATIENCE, answer_seconds=PATIENCE))
    held = [site.call(address(100 + i)) for i in range(6)]
    eventually(lambda: len(site.server._callers) == 6, "all are connected")
    with site.call() as one_more:
        assert rest(one_more) == b""
    for connection in held:
        connection.close()
    eventually(lambda: not site.server._callers, "all have gone")
    site.works()


def test_thousands_of_connections_leave_nothing_behind(site: Site):
    site.works()
    eventually(lambda: not site.server._callers, "nobody is connected")
    files, threads = open_files(), threading.active_count()
    kinds = (b"", b"register ", b"\xff\n", android("panda-0001", STRANGER), LINUX)
    for number in range(3000):
        connection = site.call(address(129 + number % 100))
        with closing(connection):
            if number % 2:  # closed by a reset
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            try:
                connection.sendall(kinds[number % len(kinds)])
            except ConnectionError:
                continue
    eventually(lambda: not site.server._callers, "nobody is connected")
    assert not site.server._at
    assert threading.active_count() == threads
    eventually(lambda: open_files() <= files, "no more open files than before")
    assert site.names() == ["panda-0001"]
    site.works()


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_process_without_room_for_another_connection_takes_it_later(site: Site, caplog: pytest.LogCaptureFixture):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    site.works()
    eventually(lambda: not site.server._callers, "nobody is connected")
    with socket.socket() as agent:
        agent.settimeout(PATIENCE)
        agent.bind((BOARD, 0))
        highest = max(int(name) for name in os.listdir("/proc/self/fd"))
        fillers = []
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, hard))
            with pytest.raises(OSError, match="Too many open files"):
                while True:  # the gaps below the highest
                    fillers.append(os.dup(agent.fileno()))
            agent.connect((LISTEN, site.server.port))
            eventually(lambda: "no more connections for now" in caplog.text, "the server notices")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for number in fillers:
                os.close(number)
        agent.sendall(android("panda-0001", BOARD))
        assert rest(agent) == OK
    site.works()


def test_refusals_are_logged_sparingly(lab, caplog: pytest.LogCaptureFixture):
    site = lab(Limits(messages=5, line_seconds=PATIENCE, answer_seconds=PATIENCE))
    for number in range(50):
        assert site.says(b"register NAME=a\x1b[31m%0Ab&OS=x\n" if number % 2 else b"\xff\n", STRANGER) == NO
    lines = [record for record in caplog.records if record.name == "mozpool.registration"]
    assert len(lines) == 6
    assert all(record.message.isprintable() for record in lines)
    assert f"{STRANGER} may not register: " in lines[0].message
    assert lines[-1].message == "more refusals of agents are only counted in this minute"


# The database


def test_a_database_that_keeps_us_waiting_holds_up_no_connection(site: Site):
    taken, let_go = threading.Event(), threading.Event()

    def hold() -> None:
        with site.database.begin():
            taken.set()
            let_go.wait(PATIENCE)

    holder = threading.Thread(target=hold)
    holder.start()
    try:
        assert taken.wait(PATIENCE)
        with site.call() as agent:
            agent.sendall(android("panda-0001", BOARD))
            assert site.says(b"x" * 5000 + b"\n", STRANGER) == NO
            agent.settimeout(0.2)
            with pytest.raises(TimeoutError):
                agent.recv(10)
            agent.settimeout(PATIENCE)
            let_go.set()
            assert rest(agent) == OK
    finally:
        let_go.set()
        holder.join()


def test_an_answer_that_comes_too_late_is_none():
    let_go = threading.Event()

    def register(line: bytes, source: object) -> None:
        let_go.wait(PATIENCE)

    server = RegistrationServer(
        config.Registration(listen=LISTEN, port=0),
        register,
        Clock(),
        Limits(answer_seconds=0.2, line_seconds=PATIENCE),
    )
    server.start()
    try:
        with socket.create_connection((LISTEN, server.port), timeout=PATIENCE / 2) as agent:
            agent.sendall(android("panda-0001", BOARD))
            assert rest(agent) == b""
    finally:
        let_go.set()
        server.stop()


@pytest.mark.mysql
@pytest.mark.timeout(300)
def test_no_agent_reads_ok_while_the_database_is_away(caplog: pytest.LogCaptureFixture):
    with running(durable=True) as mariadb:
        mariadb.execute("CREATE DATABASE away CHARACTER SET utf8mb4")
        database = open_database(mariadb.url("away"))
        schema.create(database)
        fill(database)
        with serving(database) as site:
            site.works()
            before = site.device()
            mariadb.kill()
            for _ in range(3):
                assert site.says(android("panda-0001", BOARD)) == b""
                assert site.says(android("tegra-0007", UNKNOWN), UNKNOWN) == b""
            words = [record.message.split(":")[0] for record in caplog.records]
            assert words.count("agents can't register") == 1
            mariadb.start()
            assert site.says(android("tegra-0007", UNKNOWN), UNKNOWN) == OK
            assert site.seen("tegra-0007")
            assert site.device() == before
        database.dispose()


# Start and end


def test_a_port_that_is_taken_is_named(database: Database):
    with socket.create_server((LISTEN, 0)) as other:
        port = other.getsockname()[1]
        server = RegistrationServer(config.Registration(listen=LISTEN, port=port), lambda line, source: None, Clock())
        with pytest.raises(MozpoolError, match=rf"cannot listen on {LISTEN}:{port} for agents: address already in use"):
            server.start()
        server.stop()


def test_an_address_of_another_machine_is_named():
    server = RegistrationServer(config.Registration(listen="192.0.2.1"), lambda line, source: None, Clock())
    with pytest.raises(MozpoolError, match=r"192\.0\.2\.1:28001 for agents: cannot assign requested address"):
        server.start()


def test_nothing_is_opened_where_the_configuration_names_no_address():
    threads = threading.active_count()
    server = RegistrationServer(config.Registration(), lambda line, source: None, Clock())
    server.start()
    assert threading.active_count() == threads
    server.stop()


def test_a_stop_closes_everything(database: Database):
    files = open_files()
    with serving(database) as site:
        silent, half = site.call(), site.call(UNKNOWN)
        half.sendall(b"register NA")
        site.works()
        port = site.server.port
        site.server.stop()
        assert rest(silent) == rest(half) == b""
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((LISTEN, port), timeout=PATIENCE)
        silent.close()
        half.close()
        site.server.stop()
    database.dispose()
    assert open_files() <= files


def test_a_stop_waits_for_no_agent_that_waits_for_the_database(database: Database):
    with serving(database) as site:
        stopper = threading.Thread(target=site.server.stop)
        with database.begin(), site.call() as agent:
            agent.sendall(android("panda-0001", BOARD))
            eventually(lambda: site.server._worker.running(), "the worker waits")
            stopper.start()
            assert rest(agent) == b""
        stopper.join()
