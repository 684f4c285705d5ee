# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Takes what boards log, by UDP and TCP, for small set-ups without rsyslog.

One thread listens and reads, another one writes to the database; between them are at most ``Limits.lines`` lines. What
is too much is dropped and counted, never waited for: the daemon has other things to do.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import socket
import threading
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from sqlalchemy.exc import DBAPIError

from mozpool import config
from mozpool.bmm.syslogline import Line, parse, plausible
from mozpool.clock import Clock, Thread
from mozpool.db import devices, logs, upkeep
from mozpool.db.engine import Database, reason
from mozpool.db.tables import device_logs
from mozpool.errors import DatabaseAway, MozpoolError

log = logging.getLogger("mozpool.syslog")


@dataclass(frozen=True)
class Limits:
    """What senders may take up."""

    line_bytes: int = 8192
    """What is longer is cut."""
    lines: int = 10_000
    """Lines that wait for the database."""
    batch: int = 500
    """Lines that one transaction writes."""
    burst_seconds: float = 10.0
    """How many seconds' worth of lines a sender may send at once, after silence."""
    senders: int = 10_000
    """Addresses that are told apart; all others together count as one."""
    connections: int = 256
    connections_an_address: int = 8
    report_seconds: float = 60.0
    """How often it is said that lines were dropped."""
    names_seconds: float = 60.0
    """How long the names of devices are believed."""
    unknown_seconds: float = 5.0
    """The same, when a line comes from a name that is not among them."""


class Allowance:
    """How many lines each sender may still send: a bucket for each address, which fills up again with time."""

    def __init__(self, clock: Clock, rate: float, limits: Limits) -> None:
        """``rate`` is lines a second."""
        self._clock = clock
        self._rate = rate
        self._most = max(1.0, rate * limits.burst_seconds)
        self._senders = limits.senders
        self._left: dict[str, tuple[float, float]] = {}

    def take(self, address: str) -> bool:
        """Whether this sender may send a line now; then it has one less."""
        now = self._clock.monotonic()
        if address not in self._left and len(self._left) >= self._senders:
            self._forget(now)
            if len(self._left) >= self._senders:
                address = ""
        left, since = self._left.get(address, (self._most, now))
        left = min(self._most, left + (now - since) * self._rate)
        allowed = left >= 1.0
        self._left[address] = left - allowed, now
        return allowed

    def _forget(self, now: float) -> None:
        """Those whose bucket is full again are like new ones."""
        full = [key for key, (left, since) in self._left.items() if left + (now - since) * self._rate >= self._most]
        for key in full:
            del self._left[key]


class Frames:
    """Takes the stream of a connection apart: lines that end with a newline, or whose length stands before them
    (RFC 6587)."""

    def __init__(self, most: int) -> None:
        """``most`` is how many bytes of a line are kept."""
        self._most = most
        self._buffer = bytearray()
        self._skip = 0
        self._skip_line = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The lines that are complete with these bytes. Raises ValueError when nobody can tell where one ends."""
        self._buffer += data
        while self._buffer:
            if self._skip:
                skipped = min(self._skip, len(self._buffer))
                del self._buffer[:skipped]
                self._skip -= skipped
            elif self._skip_line:
                end = self._buffer.find(b"\n")
                self._skip_line = end < 0
                del self._buffer[: end + 1 if end >= 0 else None]
            elif self._buffer[:1].isdigit():
                length, blank, _rest = self._buffer[:9].partition(b" ")
                if not length.isdigit() or (not blank and len(self._buffer) >= 9):
                    raise ValueError("a length that is none")
                size = min(int(length), self._most)
                if not blank or len(self._buffer) < len(length) + 1 + size:
                    return
                line = bytes(self._buffer[len(length) + 1 : len(length) + 1 + size])
                del self._buffer[: len(length) + 1 + size]
                self._skip = int(length) - size
                yield line
            else:
                end = self._buffer.find(b"\n", 0, self._most)
                if end < 0 and len(self._buffer) < self._most:
                    return
                line = bytes(self._buffer[: end if end >= 0 else self._most])
                self._skip_line = end < 0
                del self._buffer[: end + 1 if end >= 0 else self._most]
                yield line

    def rest(self) -> bytes:
        """What came last, without an end."""
        return b"" if self._skip or self._skip_line or self._buffer[:1].isdigit() else bytes(self._buffer)


@dataclass(frozen=True)
class _Peer:
    """A connection."""

    address: str
    frames: Frames


class SyslogServer:
    """The receiver. ``counts`` tells how many lines were ``written``, and how many dropped, by reason."""

    def __init__(self, settings: config.Syslog, database: Database, clock: Clock, limits: Limits | None = None) -> None:
        """Nothing is opened before :meth:`start`."""
        self._settings = settings
        self._database = database
        self._clock = clock
        self._limits = limits or Limits()
        self._allowance = Allowance(clock, settings.lines_per_second, self._limits)
        self._lines: deque[Line] = deque()
        self._lock = threading.Lock()
        self.counts: Counter[str] = Counter()
        """``written``, and what was dropped: ``too fast``, ``too many`` (while the database was slow or away),
        ``unknown device``, ``facility``, ``no syslog``, ``too many connections``, ``refused`` (by the database)."""
        self._reported: Counter[str] = Counter()
        self._names: dict[str, int] = {}
        self._names_at: float | None = None
        self._peers: dict[socket.socket, _Peer] = {}
        self._news = clock.event()
        self._stop = clock.event()
        self._threads: list[Thread] = []

    def start(self) -> None:
        """Listen, if the configuration says where. Raises MozpoolError when that can't be."""
        if self._settings.listen is None:
            return
        self._open(*self._settings.listen)
        listening = self._clock.start_thread(self._serve, "syslog")
        self._threads = [listening, self._clock.start_thread(lambda: self._write(listening), "syslog writer")]
        log.info("boards may log to %s by UDP and TCP", config.host_and_port(*self._settings.listen))

    @property
    def port(self) -> int:
        """The port that is listened on."""
        number: int = self._datagrams.getsockname()[1]
        return number

    def stop(self) -> None:
        """Listen no more, write what is there, and end the threads. May be called twice, and without a start."""
        if not self._threads:
            return
        self._stop.set()
        self._news.set()
        with contextlib.suppress(OSError):
            self._waker.send(b"\0")
        for thread in self._threads:
            thread.join(5)
        self._threads = []
        self._waker.close()

    def _count(self, what: str, number: int = 1) -> None:
        with self._lock:
            self.counts[what] += number

    # The thread that listens

    def _open(self, host: str, port: int) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        both = family == socket.AF_INET6 and socket.has_dualstack_ipv6()
        with contextlib.ExitStack() as opened:
            try:
                self._listener = opened.enter_context(
                    socket.create_server((host, port), family=family, backlog=64, dualstack_ipv6=both)
                )
                self._datagrams = opened.enter_context(socket.socket(family, socket.SOCK_DGRAM))
                if both:
                    self._datagrams.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
                # What comes while other threads have their turn waits in the kernel, as much as it lets us have.
                self._datagrams.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
                self._datagrams.bind((host, self._listener.getsockname()[1]))
            except OSError as error:
                number = error.errno
                why = os.strerror(number) if number is not None and number > 0 else str(error.strerror or error)
                place = config.host_and_port(host, port)
                raise MozpoolError(f"[syslog] listen: cannot listen on {place}: {why.lower()}") from error
            opened.pop_all()
        self._wake, self._waker = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        for each in (self._listener, self._datagrams, self._wake):
            each.setblocking(False)
            self._selector.register(each, selectors.EVENT_READ)

    def _serve(self) -> None:
        try:
            while not self._stop.is_set():
                try:
                    self._turn()
                except Exception:
                    log.exception("what boards log is not taken for a second")
                    self._clock.sleep(1.0)
            self._receive()  # what the kernel has taken already
        finally:
            for connection in list(self._peers):
                self._close(connection)
            self._selector.close()
            for each in (self._listener, self._datagrams, self._wake):
                each.close()

    def _turn(self) -> None:
        for key, _events in self._selector.select():
            if key.fileobj is self._datagrams:
                self._receive()
            elif key.fileobj is self._listener:
                self._accept()
            elif isinstance(key.fileobj, socket.socket) and key.fileobj in self._peers:
                self._read(key.fileobj)

    def _receive(self) -> None:
        for _ in range(64):  # then connections have their turn
            try:
                data, peer = self._datagrams.recvfrom(self._limits.line_bytes)
            except BlockingIOError:
                return
            except OSError as error:
                log.debug("no datagram: %s", error)
                return
            self._take(data, peer[0])

    def _accept(self) -> None:
        limits = self._limits
        try:
            connection, peer = self._listener.accept()
        except (BlockingIOError, ConnectionError):
            return
        except OSError as error:
            log.warning("no more connections to syslog for now: %s", error.strerror)
            self._clock.sleep(0.1)
            return
        address = peer[0]
        of_it = sum(each.address == address for each in self._peers.values())
        if len(self._peers) >= limits.connections or of_it >= limits.connections_an_address:
            connection.close()
            self._count("too many connections")
            return
        connection.setblocking(False)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._peers[connection] = _Peer(address, Frames(limits.line_bytes))
        self._selector.register(connection, selectors.EVENT_READ)

    def _read(self, connection: socket.socket) -> None:
        peer = self._peers[connection]
        try:
            data = connection.recv(65536)
            for line in peer.frames.feed(data):
                self._take(line, peer.address)
        except BlockingIOError:
            return
        except (OSError, ValueError):
            self._count("no syslog")
            self._close(connection)
            return
        if not data:
            if rest := peer.frames.rest():
                self._take(rest, peer.address)
            self._close(connection)

    def _close(self, connection: socket.socket) -> None:
        del self._peers[connection]
        self._selector.unregister(connection)
        connection.close()

    def _take(self, data: bytes, address: str) -> None:
        """Keep a line for the other thread, unless it is one too many."""
        if not self._allowance.take(address):
            self._count("too fast")
        elif len(self._lines) >= self._limits.lines:
            self._count("too many")
        elif (line := parse(data, self._clock.now())) is None:
            self._count("no syslog")
        elif line.facility != self._settings.facility:
            self._count("facility")
        else:
            self._lines.append(line)
            self._news.set()

    # The thread that writes

    def _write(self, listening: Thread) -> None:
        next_report = self._clock.monotonic() + self._limits.report_seconds
        while not self._stop.is_set():
            self._clock.wait(self._news, self._limits.report_seconds)
            self._news.clear()
            try:
                self._flush()
            except DatabaseAway as error:
                log.debug("what boards logged is kept: %s", error)
                self._news.set()
                self._clock.wait(self._stop, 1.0)
            except Exception:
                log.exception("what boards logged is not written for a second")
                self._news.set()
                self._clock.wait(self._stop, 1.0)
            if self._clock.monotonic() >= next_report:
                self._report()
                next_report = self._clock.monotonic() + self._limits.report_seconds
            self._clock.wait(self._stop, 0.2)  # so that a flood is written in batches
        listening.join(5)
        try:
            self._flush()
        except DatabaseAway as error:
            log.warning("the last %d lines that boards logged are lost: %s", len(self._lines), error.message)
        self._report()

    def _flush(self) -> None:
        """Write all lines that have come together. Raises DatabaseAway; the lines are kept then."""
        while self._lines:
            batch = [self._lines[number] for number in range(min(self._limits.batch, len(self._lines)))]
            known = self._known(batch)
            now = self._clock.now()
            rows = [
                (known[name], plausible(line.ts, now, upkeep.KEEP_LOGS), line.source, line.message)
                for line in batch
                if (name := _name(line)) in known
            ]
            try:
                upkeep.write_logs(self._database, partial(logs.add_many, table=device_logs, lines=rows))
            except DBAPIError as error:
                log.error("%d lines that boards logged are lost: %s", len(rows), reason(error))
                self._count("refused", len(rows))
            else:
                self._count("written", len(rows))
            self._count("unknown device", len(batch) - len(rows))
            for _ in batch:
                self._lines.popleft()

    def _known(self, batch: list[Line]) -> dict[str, int]:
        """Ids of devices by name; looked up anew when they are old, or do not know a name."""
        unknown = any(_name(line) not in self._names for line in batch)
        believed = self._limits.unknown_seconds if unknown else self._limits.names_seconds
        now = self._clock.monotonic()
        if self._names_at is None or now - self._names_at >= believed:
            with self._database.read() as conn:
                self._names = {name.lower(): number for number, name in devices.ids_and_names(conn)}
            self._names_at = now
        return self._names

    def _report(self) -> None:
        """Say what was dropped since the last time, if somebody can do something about it."""
        with self._lock:
            new = self.counts - self._reported
            self._reported = self.counts.copy()
        told = [f"{new[what]} {words}" for what, words in _TOLD.items() if new[what]]
        if told:
            log.warning("lines that boards logged were dropped: %s", ", ".join(told))


_TOLD = {
    "too fast": "of senders beyond [syslog] lines_per_second",
    "too many": "while the database was away or slow",
    "unknown device": "of hosts that are no devices",
    "too many connections": "connections too many",
}


def _name(line: Line) -> str:
    """The device's name: the first label of the host name."""
    return line.host.partition(".")[0].lower()
