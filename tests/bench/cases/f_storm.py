# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""A boot storm: all boards of a lab are power-cycled at once."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass

import aiohttp
from sqlalchemy import insert, update

from mozpool.bmm.backends.proxr import OFF_TIME
from mozpool.db import tables
from mozpool.db.engine import Database
from mozpool.fakes.relayboard import RelayBoard, RelayRecord
from tests.bench.figures import Figure
from tests.bench.filling import fill
from tests.bench.pools import pools
from tests.bench.scale import Scale
from tests.bench.trial import trial
from tests.processes import free_port

TITLE = "Boot storm"

TEXT = """\
1000 boards on 40 relay boards, 25 each, are power-cycled at once: 32 clients call `POST /api/device/NAME/reboot/` for
one board after the other, relay by relay of each relay board in turn. The relay boards are fakes that speak the real
bytes, in the process that measures; they take one connection at a time, and none within a second after the one before.
A board stays without power for a second, each command is answered before the next one is sent, and each switch is read
back.

The relay protocol allows no less time than this. With *w* = 1 s without power, *r* = the time of a command and its
answer (measured beside the storm; some 10 ms on real relay boards), and *n* cycles of one relay board in one
connection, asked for at the moments *a₁* ≤ … ≤ *aₙ*: the last one takes *w* + 4 *r* (off, read, wait, on, read), and
all of them take 4 *n* commands and one wait, so that the relay board is done no sooner than

    M = max(aₙ + w + 4 r, a₁ + w + 4 n r)

and the storm no sooner than the greatest M of all relay boards. With all cycles asked for at the same moment and fast
relay boards that is 1 s and little more; one connection a cycle would take *n* w + (*n* − 1) · 1 s = 49 s.

*Asked*: from the first call to the answer to the last one (each is a durable change of a device's state). *Powered*:
from the first call until the last board has power again, as the relay boards saw it. *At the relay boards*: the same
from the first command that they got. *Against the minimum*: *powered* as a multiple of the greatest M, with the moment
at which each call was answered for *a*."""


@dataclass(frozen=True)
class Size:
    """How many there are."""

    relay_boards: int
    each: int
    """Boards on each."""


class Boards:
    """Relay boards, in a thread with an event loop."""

    def __init__(self, count: int) -> None:
        self.boards = [RelayBoard("127.0.0.1", free_port(), rng=random.Random(number)) for number in range(count)]

    @contextmanager
    def running(self) -> Iterator[None]:
        """They listen inside the block."""
        started: Future[None] = Future()
        thread = threading.Thread(target=lambda: asyncio.run(self._run(started)), name="relay boards", daemon=True)
        thread.start()
        started.result(30)
        try:
            yield
        finally:
            self._loop.call_soon_threadsafe(self._stopping.set)
            thread.join()

    async def _run(self, started: Future[None]) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        try:
            for board in self.boards:
                await board.start()
        except Exception as error:
            started.set_exception(error)
            return
        started.set_result(None)
        await self._stopping.wait()
        for board in self.boards:
            await board.close()

    def round_trip(self) -> float:
        """Seconds from a command to its answer, at a relay board that nobody uses."""
        times = []
        with socket.create_connection((self.boards[0].host, self.boards[0].port)) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for _ in range(50):
                begun = time.monotonic()
                sock.sendall(bytes((254, 33)))
                sock.recv(1)
                times.append(time.monotonic() - begun)
        return statistics.median(times)


def wire(database: Database, server: str, size: Size, boards: Boards) -> None:
    """Devices on real relay boards, in the order of the relays."""
    with database.begin() as conn:
        fill(conn, server, size.relay_boards * size.each)
        backends = {"power": "proxr", "boot": "instant", "probe": "instant", "agent": "instant"}
        conn.execute(insert(tables.hardware_types).values(id=2, type="wired", model="x", backends=json.dumps(backends)))
        places = [
            (f"127.0.0.1:{board.port}:bank{1 + relay // 8}:relay{1 + relay % 8}")
            for relay in range(size.each)
            for board in boards.boards
        ]
        for number, place in enumerate(places, start=1):
            conn.execute(
                update(tables.devices)
                .where(tables.devices.c.name == f"device{number}")
                .values(relay_info=place, hardware_type_id=2)
            )


async def ask(url: str, devices: int) -> tuple[float, dict[int, float]]:
    """When the first call was sent, and when each was answered; on the monotonic clock."""
    answered: dict[int, float] = {}
    numbers = iter(range(1, devices + 1))

    async def client(session: aiohttp.ClientSession) -> None:
        for number in numbers:
            async with session.post(f"{url}/api/device/device{number}/reboot/", json={}) as said:
                if said.status != 200:
                    raise AssertionError(f"device{number}: {said.status} {await said.text()}")
            answered[number] = time.monotonic()

    begun = time.monotonic()
    timeout = aiohttp.ClientTimeout(total=300)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*(client(session) for _ in range(32)))
    return begun, answered


def check(records: list[RelayRecord], each: int) -> list[float]:
    """When each relay of one relay board gave power back. Raises AssertionError when a cycle was none."""
    cut: dict[tuple[int | None, int | None], float] = {}
    back: dict[tuple[int | None, int | None], float] = {}
    for record in records:
        place = (record.bank, record.relay)
        if record.action == "on":  # the relay: its board is without power
            assert place not in cut, f"{place} was cut twice"
            cut[place] = record.time
        elif record.action == "off":
            assert record.time - cut[place] >= OFF_TIME - 0.01, f"{place} was without power for too short"
            back[place] = record.time
    assert len(back) == each, f"{len(back)} of {each} were cycled"
    return list(back.values())


def one_run(url: str, size: Size, boards: Boards) -> dict[str, float]:
    """Measure → value."""
    seen = [len(board.record) for board in boards.boards]
    round_trip = boards.round_trip()
    seen[0] = len(boards.boards[0].record) + 1  # and a disconnect
    time.sleep(1.5)  # the relay board has recovered
    count = size.relay_boards * size.each
    begun, answered = asyncio.run(ask(url, count))

    def records(index: int) -> list[RelayRecord]:
        return boards.boards[index].record[seen[index] :]

    give_up = time.monotonic() + 300
    while any(
        sum(record.action == "off" for record in records(index)) < size.each for index in range(size.relay_boards)
    ):
        if time.monotonic() > give_up:
            raise AssertionError("not all boards were cycled")
        time.sleep(0.05)
    asked: defaultdict[int, list[float]] = defaultdict(list)
    for number, moment in answered.items():
        asked[(number - 1) % size.relay_boards].append(moment)
    wait = OFF_TIME + 4 * round_trip
    least = max(
        max(max(moments) + wait, min(moments) + OFF_TIME + 4 * size.each * round_trip) for moments in asked.values()
    )
    first = min(record.time for index in range(size.relay_boards) for record in records(index))
    last = max(moment for index in range(size.relay_boards) for moment in check(records(index), size.each))
    connections = sum(record.action == "connect" for index in range(size.relay_boards) for record in records(index))
    _until_ready(url, count)
    return {
        "asked|s": max(answered.values()) - begun,
        "powered|s": last - begun,
        "at the relay boards|s": last - first,
        "minimum|s": least - begun,
        "against the minimum|×": (last - begun) / (least - begun),
        "command and answer|ms": 1000 * round_trip,
        "connections of a relay board|": connections / size.relay_boards,
    }


def _until_ready(url: str, count: int) -> None:
    """The storm is over when all devices are ready again."""

    async def look() -> int:
        async with aiohttp.ClientSession() as session, session.get(f"{url}/api/device/list/?state=ready") as said:
            return len((await said.json())["devices"])

    give_up = time.monotonic() + 300
    while asyncio.run(look()) < count:
        if time.monotonic() > give_up:
            raise AssertionError("not all devices became ready again")
        time.sleep(0.5)


def run(scale: Scale) -> Iterator[Figure]:
    """One size over each database."""
    size = Size(2, 4) if scale.short else Size(40, 25)
    with pools(scale) as made:
        for kind in made.kinds:
            boards = Boards(size.relay_boards)
            with made.pool(kind) as pool, boards.running():
                pool.make(lambda database, server, boards=boards: wire(database, server, size, boards))  # type: ignore[misc]
                with pool.daemon("[bmm]\nboot = instant") as daemon:
                    results = [one_run(daemon.url, size, boards) for _ in range(scale.runs)]
            parameters: dict[str, str | int] = {
                "database": kind,
                "boards": size.relay_boards * size.each,
                "relay boards": size.relay_boards,
            }
            for name in results[0]:
                measure, unit = name.split("|")
                yield Figure("f", "mozpool", measure, unit, tuple(result[name] for result in results), parameters)


if __name__ == "__main__":
    trial(TITLE, run)
