# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What boards send by themselves: registrations of agents, and syslog."""

from __future__ import annotations

import random
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from mozpool import config
from mozpool.bmm import registration
from mozpool.bmm.registration import Registrar, RegistrationServer, name_of
from mozpool.bmm.syslog import Frames, Limits, SyslogServer
from mozpool.bmm.syslogline import parse, plausible
from mozpool.clock import Clock
from mozpool.db import devices, images, schema, upkeep
from mozpool.db.engine import Database
from mozpool.errors import BadInput
from mozpool.logbook import Logbook
from tests.conftest import open_database
from tests.fuzz.engine import Target, fuzzer
from tests.fuzz.peers import SEPARATOR, no_errors_logged

NOW = datetime(2030, 6, 15, 12, tzinfo=UTC)

REGISTRATIONS = [
    b"register NAME=panda-0001&IPADDR=10.1.0.5&CMDPORT=20701&DATAPORT=20700&OS=Android+4.0.4+%28IMM76I%29"
    b"&SCRNWIDTH=1024&SCRNHEIGHT=768&BPP=32&MEMORY=714+MB&HARDWARE=panda&POOL=default",
    b"IPADDR=0.0.0.0%3A20701&NAME=SUTAgent",
    b"register NAME=SUTAgent&IPADDR=127.0.0.1",
    b"register NAME=board-1&IPADDR=[fe80::1%25eth0]:20701&OS=Linux",
    b"register NAME=board-1&IPADDR=127.0.0.1:4&CMDPORT=5",
]

SYSLOG = [
    b"<134>Jun 15 12:00:00 panda-0001 mobile-init.sh[INFO]: starting up\n",
    b"<134>panda-0001 selftest.sh[77]: all is well",
    b"<134>1 2030-06-15T12:00:00.123456+02:00 panda-0001.example.com sshd 77 ID47 "
    b'[exampleSDID@32473 iut="3" eventSource="App\\"lication"][a b="c"] \xef\xbb\xbfAn event\n',
    b"<134>1 - panda-0001 - - - -",
    b"<0>2030-06-15T12:00:00Z host kernel: [ 0.000000] Booting Linux",
    b"<134>Feb 29 25:00:00 panda-0001 x: y\n",
]


@contextmanager
def a_database() -> Iterator[Database]:
    """An SQLite database with one imaging server and one device, ``panda-0001`` at 127.0.0.1."""
    with tempfile.TemporaryDirectory() as directory:
        database = open_database(f"sqlite:///{directory}/mozpool.sqlite")
        schema.create(database)
        server_id = database.run(lambda conn: images.ensure_imaging_server(conn, "server-1.example.com"))
        row = {"fqdn": "panda-0001", "inventory_id": 0, "mac_address": "020000000001", "imaging_server_id": server_id}
        database.run(
            lambda conn: devices.insert_device(conn, random.Random(1), name="panda-0001", address="127.0.0.1", **row)
        )
        yield database
        database.dispose()


@fuzzer(seeds=REGISTRATIONS, raises=(BadInput,))
def registration_line() -> Iterator[Target]:
    """What an agent says when it registers."""

    def one(data: bytes) -> None:
        agent = registration.parse(data)
        assert agent.name is None or agent.name.isascii()
        assert agent.address is None or len(name_of(agent.address)) <= 32
        assert agent.port is None or 1 <= agent.port <= 65535
        assert agent.os is None or (agent.os.isprintable() and len(agent.os) <= 80)

    yield one


@fuzzer(seeds=[*REGISTRATIONS, *(line + b"\r\n" for line in REGISTRATIONS)])
def registration_server() -> Iterator[Target]:
    """The same through the server, into a database: whoever calls gets an answer."""
    settings = config.Registration(listen="127.0.0.1", port=0, accept=(config.NETWORKS.parse("127.0.0.0/8")))
    clock = Clock()
    with a_database() as database, no_errors_logged() as errors:
        logbook = Logbook(database, clock)
        registrar = Registrar(settings, devices, database, logbook, clock, random.Random(1), 1)
        server = RegistrationServer(settings, registrar.register, clock)
        server.start()

        def one(data: bytes) -> None:
            with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
                try:
                    connection.sendall(data)
                    connection.shutdown(socket.SHUT_WR)
                    answer = connection.recv(1000)
                except TimeoutError:
                    raise
                except OSError:
                    answer = b""  # more than a line: it has closed already
            assert answer in (registration.OK, registration.NO, b""), answer
            assert not errors, errors

        try:
            yield one
        finally:
            server.stop()
            logbook.stop()


@fuzzer(seeds=SYSLOG)
def syslog_line() -> Iterator[Target]:
    """A line of syslog."""

    def one(data: bytes) -> None:
        line = parse(data, NOW)
        if line is None:
            return
        for text in (line.source, line.message):
            assert not set(text) & set("\n\r\0\x1b"), line
            text.encode()
        kept = plausible(line.ts, NOW, upkeep.KEEP_LOGS)
        assert abs(kept - NOW) <= upkeep.KEEP_LOGS

    yield one


def framed(*lines: bytes) -> bytes:
    return SEPARATOR.join(b"%d %b" % (len(line), line) for line in lines)


@fuzzer(seeds=[framed(*SYSLOG), b"\n".join(SYSLOG), b"5 ab\ncd<134>x y: z\n", b"9999999 x"], raises=(ValueError,))
def syslog_stream() -> Iterator[Target]:
    """A stream of syslog, which arrives in pieces."""

    def one(data: bytes) -> None:
        frames = Frames(1024)
        for piece in data.split(SEPARATOR):
            for line in frames.feed(piece):
                assert len(line) <= 1024
        assert len(frames.rest()) <= 1024

    yield one


@fuzzer(seeds=[framed(*SYSLOG), *SYSLOG, b"".join(SYSLOG)])
def syslog_server() -> Iterator[Target]:
    """The receiver, by UDP and TCP, into a database."""
    with a_database() as database, no_errors_logged() as errors:
        settings = config.Syslog(listen=("127.0.0.1", 0), lines_per_second=1_000_000)
        server = SyslogServer(settings, database, Clock(), Limits())
        server.start()
        datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

        def one(data: bytes) -> None:
            datagrams.sendto(data[:60000], ("127.0.0.1", server.port))
            with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
                try:
                    for piece in data.split(SEPARATOR):
                        connection.sendall(piece)
                    connection.shutdown(socket.SHUT_WR)
                    assert connection.recv(100) == b""
                except TimeoutError:
                    raise
                except OSError:
                    pass  # it could not be told where a line ends, and the connection has gone
            assert not errors, errors

        try:
            yield one
        finally:
            datagrams.close()
            server.stop()
