# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Clients that mean no good, or that are only broken: whatever they do, the API answers others in less than a second.

The server is a process of its own, as an operator starts it. ``MOZPOOL_LONG_TESTS=1`` keeps all of it up for longer.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import resource
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import insert

from mozpool.db import devices
from mozpool.db.tables import device_logs
from tests.conftest import open_database
from tests.integration.mozpool_site import check_log, free_ports, start_server
from tests.processes import end

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]

LONG = bool(os.environ.get("MOZPOOL_LONG_TESTS"))
SECONDS = 20.0 if LONG else 2.0
"""How long each attack is kept up at least."""

SOON = 1.0
"""Seconds within which the API answers others. The time does not count in which the system let other programs run in
place of those that the answer takes: tests run beside others."""


def waited(pid: int) -> dict[int, float]:
    """Seconds that each thread of a process could have run but got no processor (proc(5), ``schedstat``)."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):  # it has just ended, or this system does not say
            found[int(task.name)] = int((task / "schedstat").read_text().split()[1]) / 1e9
    return found


@dataclass
class Target:
    """A server that is attacked."""

    port: int
    pid: int
    log: Path
    database_url: str
    images: Path

    def connect(self, source: str = "127.0.0.1", **options: int) -> socket.socket:
        """A connection from an address; ``options`` are of sockets, by their names."""
        sock = socket.socket()
        for name, value in options.items():
            sock.setsockopt(socket.SOL_SOCKET, getattr(socket, name), value)
        sock.bind((source, 0))
        sock.settimeout(10)
        sock.connect(("127.0.0.1", self.port))
        return sock

    def ask(self, path: str, source: str = "127.0.0.9") -> bytes:
        """The whole answer to a GET over a connection of its own."""
        with self.connect(source) as sock:
            sock.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            return b"".join(iter(lambda: sock.recv(65536), b""))

    def memory(self) -> int:
        """Bytes of memory that the server has in use."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * resource.getpagesize()

    def files(self) -> int:
        """How many files and sockets the server has open."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    @contextmanager
    def answers_others(self) -> Iterator[None]:
        """While this lasts, a client that means well is answered each time, and soon."""
        over = threading.Event()
        took: list[float] = []
        problems: list[str] = []

        def ask() -> None:
            paths = ("/api/version/", "/api/device/list/?details=1", "/api/health/")
            while not over.wait(0.02):
                waits, begun = waited(self.pid) | waited(os.getpid()), time.monotonic()
                try:
                    answer = self.ask(paths[len(took) % 3])
                    if not answer.startswith(b"HTTP/1.1 200 "):
                        problems.append(repr(answer[:200]))
                except OSError as error:
                    problems.append(repr(error))
                passed = time.monotonic() - begun
                after = waited(self.pid) | waited(os.getpid())
                lost = {task: after[task] - waits.get(task, 0.0) for task in after}
                needed = [lost.pop(task, 0.0) for task in (self.pid, threading.get_native_id())]
                took.append(passed - sum(needed) - max(lost.values(), default=0.0))

        thread = threading.Thread(target=ask)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(30)
        assert not problems, problems[:5]
        assert len(took) >= 3, took
        assert max(took) < SOON, f"the slowest of {len(took)} answers took {max(took):.2f} s"


@contextmanager
def running(directory: Path, more: str) -> Iterator[Target]:
    """A server with one device; ``more`` is what stands in its section ``[server]``."""
    port = free_ports(1)
    config, log, images = directory / "config.ini", directory / "server.log", directory / "images"
    images.mkdir()
    database_url = f"sqlite:///{directory}/pool.sqlite"
    config.write_text(
        f"[database]\nengine = {database_url}\n[paths]\nimage_store = {images}\n"
        f"[auth]\nmode = open\n[server]\nfqdn = 127.0.0.1:{port}\nport = {port}\n{more}\n"
    )
    process = start_server(config, log, f"http://127.0.0.1:{port}")
    try:
        database = open_database(database_url)
        row = {"name": "panda-1", "fqdn": "panda-1", "inventory_id": 0, "mac_address": "020000000001"}
        database.run(
            lambda conn: devices.insert_device(conn, random.Random(1), imaging_server_id=1, state="locked_out", **row)
        )
        database.dispose()
        yield Target(port, process.pid, log, database_url, images)
        assert process.poll() is None
        check_log(log)
    finally:
        end(process)


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """A server that others reach and that waits for nobody for long; else with the defaults."""
    limits = "".join(f"{what}_timeout = {SECONDS}\n" for what in ("header", "body", "send"))
    with running(tmp_path_factory.mktemp("impatient"), f"listen = 0.0.0.0\n{limits}") as target:
        yield target


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """A server that only a proxy on this machine reaches, with two threads."""
    limits = f"connections = 200\nconnections_per_address = 50\nthreads = 2\nsend_timeout = {SECONDS}\n"
    with running(tmp_path_factory.mktemp("small"), limits) as target:
        yield target


@pytest.fixture
def server(impatient: Target) -> Target:
    """It, when nothing of what the test before did is left."""
    assert wait_for(lambda: impatient.files() < 60, SECONDS + 30)
    return impatient


@pytest.fixture(autouse=True, scope="module")
def _many_files() -> Iterator[None]:
    """Let this process have as many connections as the attacks need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(8192, hard) if hard > 0 else 8192, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def wait_for(what: Callable[[], bool], seconds: float) -> bool:
    give_up = time.monotonic() + seconds
    while not what():
        if time.monotonic() > give_up:
            return False
        time.sleep(0.1)
    return True


def crowd(stack: ExitStack, target: Target, count: int, source: str = "127.0.0.1") -> list[socket.socket]:
    """So many connections, which are closed in the end."""
    return [stack.enter_context(target.connect(source)) for _ in range(count)]


def is_closed(sock: socket.socket) -> bool:
    """Whether the server has closed this connection; what it has said before is thrown away."""
    sock.setblocking(False)
    try:
        while data := sock.recv(65536):
            del data
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def drip(socks: list[socket.socket], seconds: float, byte: bytes = b"x") -> dict[int, float]:
    """Send a byte now and then on each connection, for so long or until all are closed; when each was, by its place."""
    begun = time.monotonic()
    closed: dict[int, float] = {}
    while time.monotonic() - begun < seconds and len(closed) < len(socks):
        for place, sock in enumerate(socks):
            if place not in closed:
                with suppress(OSError):
                    sock.send(byte)
                if is_closed(sock):
                    closed[place] = time.monotonic() - begun
        time.sleep(0.1)
    return closed


BEGINNINGS = (
    b"",
    b"GET /api/version/ HTTP/1.1\r\nX: ",
    b"POST /api/device/any/request/ HTTP/1.1\r\nContent-Length: 100000\r\n\r\n{",
    b"POST /api/device/any/request/ HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nfff\r\n{",
)


def test_calls_that_come_a_byte_at_a_time_are_ended(server: Target) -> None:
    """Slowloris, in the line, in the headers, in the body, in a chunk."""
    with ExitStack() as stack:
        socks = crowd(stack, server, 400)
        for place, sock in enumerate(socks):
            sock.sendall(BEGINNINGS[place % 4])
        with server.answers_others():
            closed = drip(socks, SECONDS + 30)
        assert len(closed) == 400
        assert min(closed.values()) > SECONDS - 1


def test_who_only_keeps_lines_between_chunks_growing_is_refused(server: Target) -> None:
    """The server would look through all of such a line for each byte of it."""
    with ExitStack() as stack:
        head = b"POST /api/device/any/request/ HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
        for begin in (head + b"1;x=", head + b"0\r\nX: "):
            (sock,) = crowd(stack, server, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.sendall(begin)
            with suppress(OSError):
                for _ in range(2000):
                    sock.send(b"y")
                    time.sleep(0.0001)
            sock.settimeout(5)
            assert sock.recv(100).startswith(b"HTTP/1.1 400 ")


def test_more_idle_connections_than_there_may_be(server: Target) -> None:
    with ExitStack() as stack:
        with server.answers_others():
            socks = [sock for number in range(5) for sock in crowd(stack, server, 430, f"127.0.1.{number}")]
            time.sleep(SECONDS)
            still = [sock for sock in socks if not is_closed(sock)]
        assert 1500 < len(still) <= 2000
        # Those that came last are still served.
        still[-1].settimeout(5)
        still[-1].sendall(b"GET /api/version/ HTTP/1.1\r\nHost: x\r\n\r\n")
        assert still[-1].recv(100).startswith(b"HTTP/1.1 200 ")


def test_one_address_gets_its_part_only(server: Target) -> None:
    with ExitStack() as stack:
        greedy = crowd(stack, server, 600, "127.0.0.2")
        with server.answers_others():
            others = crowd(stack, server, 30, "127.0.0.3")
            time.sleep(SECONDS / 2)
        assert sum(not is_closed(sock) for sock in greedy) == 500
        assert not any(map(is_closed, others))


def test_connections_that_come_and_come(small: Target) -> None:
    """As fast as one client can, none ever saying anything, so that the limit is reached again and again.

    They come through a proxy on this machine, as it seems: it may have all there are.
    """
    over = threading.Event()
    made: deque[socket.socket] = deque()

    def flood() -> None:
        while not over.is_set():
            with suppress(OSError):
                made.append(small.connect())
            if len(made) > 1000:
                made.popleft().close()
            time.sleep(0.001)

    thread = threading.Thread(target=flood)
    thread.start()
    most = 0
    try:
        with small.answers_others():
            end_at = time.monotonic() + SECONDS
            # Beyond the limit for a while, and not more than are kept open here.
            while time.monotonic() < end_at or len(made) < 600:
                assert time.monotonic() < end_at + 60
                most = max(most, small.files())
                time.sleep(0.1)
    finally:
        over.set()
        thread.join()
        for sock in made:
            sock.close()
    assert 150 < most < 350


@pytest.mark.parametrize("head", ["Content-Length: 1073741824", "Transfer-Encoding: chunked"])
def test_a_body_of_a_gigabyte(server: Target, head: str) -> None:
    before = server.memory()
    refused: list[bytes] = []
    most = 0

    def send() -> int:
        """Send until the server has had enough; bytes that were sent."""
        piece = b"0" * 2**18
        piece = b"%x\r\n%b\r\n" % (len(piece), piece) if "chunked" in head else piece
        sent = 0
        with server.connect("127.0.0.2") as sock:
            sock.sendall(f"POST /api/device/any/request/ HTTP/1.1\r\nHost: x\r\n{head}\r\n\r\n".encode())
            with suppress(OSError):
                while sent < 2**30:
                    if select.select([sock], [], [], 0)[0]:
                        refused.append(sock.recv(1000))
                        break
                    sock.sendall(piece)
                    sent += len(piece)
        return sent

    with server.answers_others():
        over = time.monotonic() + SECONDS
        while time.monotonic() < over:
            most = max(most, send())
    assert most < 32 * 2**20, "it took the body"
    assert any(answer.startswith(b"HTTP/1.1 413 ") for answer in refused)
    assert server.memory() - before < 64 * 2**20


def test_a_zip_of_zeroes_is_not_unpacked(server: Target) -> None:
    packed = gzip.compress(bytes(256 * 2**20), 9)
    before = server.memory()
    with server.answers_others():
        over = time.monotonic() + SECONDS
        while time.monotonic() < over:
            for encoding in ("gzip", "deflate", "br", "gzip, gzip"):
                with server.connect("127.0.0.2") as sock:
                    sock.sendall(
                        f"POST /api/device/any/request/ HTTP/1.1\r\nHost: x\r\nContent-Encoding: {encoding}\r\n"
                        f"Content-Length: {len(packed)}\r\nConnection: close\r\n\r\n".encode()
                        + packed
                    )
                    head, _, body = b"".join(iter(lambda: sock.recv(65536), b"")).partition(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 400 "), head
                assert "Content-Encoding" in json.loads(body)["error"]["message"]
            # A transfer coding is refused, too.
            with server.connect("127.0.0.2") as sock:
                sock.sendall(b"POST /api/x/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n")
                assert sock.recv(100).startswith(b"HTTP/1.1 501 ")
    assert server.memory() - before < 64 * 2**20


MANY = b"".join(b"X-%d: y\r\n" % number for number in range(10_000))
STRANGE: dict[str, tuple[bytes, tuple[int, ...]]] = {
    "a long line": (b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", (431,)),
    "a long query": (b"GET /api/device/list/?a=" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", (431,)),
    "a long header": (b"GET /api/version/ HTTP/1.1\r\nX: " + b"a" * 100_000 + b"\r\n\r\n", (431,)),
    "thousands of headers": (b"GET /api/version/ HTTP/1.1\r\n" + MANY + b"\r\n", (431,)),
    "a thousand times one header": (b"GET /api/version/ HTTP/1.1\r\n" + b"X: yyyyyyyyyy\r\n" * 1000 + b"\r\n", (200,)),
    "a line that is none": (b"\x00\xff" * 1000 + b"\r\n\r\n", (400,)),
    "two lengths": (b"POST /api/x/ HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 7\r\n\r\n{}", (400,)),
    "a negative length": (b"POST /api/x/ HTTP/1.1\r\nContent-Length: -5\r\n\r\n{}", (400,)),
    "a chunk of endless size": (
        b"POST /api/x/ HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + b"f" * 5000 + b"\r\n",
        (400, 413),
    ),
    "no HTTP": (b"EHLO example.com\r\n\r\n", (400, 404)),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", (400,)),
    "an unknown verb": (b"BREW /api/version/ HTTP/1.1\r\nHost: x\r\n\r\n", (405,)),
    "deep JSON": (b"POST /api/device/any/request/ HTTP/1.1\r\nContent-Length: 200000\r\n\r\n" + b"[" * 200_000, (400,)),
    "a long number": (
        b"POST /api/device/any/request/ HTTP/1.1\r\nContent-Length: 200005\r\n\r\n" + b'{"a":' + b"9" * 200_000,
        (400,),
    ),
}


def test_calls_that_are_none(server: Target) -> None:
    with server.answers_others():
        over = time.monotonic() + SECONDS
        while time.monotonic() < over:
            for name, (sent, statuses) in STRANGE.items():
                with server.connect("127.0.0.2") as sock:
                    try:
                        sock.sendall(sent)
                        answer = sock.recv(200)
                    except ConnectionError:  # it was closed while we still sent
                        continue
                assert int(answer.split()[1]) in statuses, (name, answer)


def test_calls_that_break_off(server: Target) -> None:
    call = (
        b'POST /api/device/panda-1/set-comments/ HTTP/1.1\r\nHost: x\r\nContent-Length: 21\r\n\r\n{"comments": "half!"}'
    )
    with server.answers_others():
        over = time.monotonic() + SECONDS
        while time.monotonic() < over:
            for length in range(0, len(call), 3):
                with server.connect("127.0.0.2") as sock:
                    sock.sendall(call[:length])
                    if length % 2:
                        sock.shutdown(socket.SHUT_WR)
    assert b"half!" not in server.ask("/api/device/list/?details=1")
    give_up = time.monotonic() + 10
    while server.files() > 100:
        assert time.monotonic() < give_up, "connections are left open"
        time.sleep(0.1)


def test_clients_that_never_read_files(server: Target) -> None:
    with (server.images / "large.img").open("wb") as image:
        image.truncate(256 * 2**20)
    before, files = server.memory(), server.files()
    with ExitStack() as stack:
        for _ in range(150):
            sock = stack.enter_context(server.connect("127.0.0.2", SO_RCVBUF=4096))
            sock.sendall(b"GET /images/large.img HTTP/1.1\r\nHost: x\r\n\r\n")
        with server.answers_others():
            assert wait_for(lambda: server.files() < files + 20, SECONDS + 60)
        assert server.memory() - before < 64 * 2**20


def test_clients_that_never_read_keep_no_thread(small: Target) -> None:
    """A thread is free for the next call as soon as it has made the answer, whoever takes it or not."""
    database = open_database(small.database_url)
    line = {"device_id": 1, "ts": datetime(2026, 1, 1, tzinfo=UTC), "source": "x", "message": "y" * 800}
    database.run(lambda conn: conn.execute(insert(device_logs), [line] * 40_000))
    database.dispose()
    with ExitStack() as stack:
        for _ in range(2):
            sock = stack.enter_context(small.connect(SO_RCVBUF=4096))
            sock.sendall(b"GET /api/device/panda-1/log/?limit=40000 HTTP/1.1\r\nHost: x\r\n\r\n")
        with small.connect() as other:
            other.settimeout(SECONDS + 30)
            time.sleep(0.5)
            other.sendall(b"GET /api/version/ HTTP/1.1\r\nHost: x\r\n\r\n")
            assert other.recv(100).startswith(b"HTTP/1.1 200 ")
