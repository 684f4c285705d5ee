# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Events from boards."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

from sqlalchemy import update

from mozpool.clock import Clock
from mozpool.db import tables
from mozpool.db.engine import Database
from tests.bench import load
from tests.bench.figures import Figure
from tests.bench.filling import fill
from tests.bench.grid import sound
from tests.bench.pools import Daemon, pools
from tests.bench.scale import Scale
from tests.processes import end, free_port

TITLE = "Events from boards"

TEXT = """\
Boards tell how their installation goes on: `GET /api/device/NAME/event/b2g_downloading/`, then `b2g_extracting`, each
by a new connection, as `wget` makes it. Every event is one that the device's state expects, so it is a durable change
of its state. So many boards call at a time, each again as soon as it is answered. *Highest rate*: the highest one among
these numbers of boards whose p99 is under 100 ms. The empty Flask application (`tests/bench/empty.py`) runs behind the
same HTTP server with the same settings, is called in the same way, and answers `{}`."""

BOARDS = (2, 4, 8, 16, 32, 64)
LIMIT = 100.0
"""Milliseconds of p99 that are allowed."""

HIGHEST = "highest rate with p99 under 100 ms"

MOST, MOST_STORED = 5000.0, 1500.0
"""Events a second that are prepared for: of the application that does nothing, of Mozpool."""

EVENTS = ("b2g_downloading", "b2g_extracting")


def installing(database: Database, server: str, devices: int) -> None:
    """Boards whose live image runs and is about to say what it does."""
    later = Clock().now() + timedelta(days=1)
    with database.begin() as conn:
        fill(conn, server, devices)
        conn.execute(update(tables.devices).values(state="mobile_init_started", state_timeout=later))


@contextmanager
def empty() -> Iterator[str]:
    """An empty application behind the same HTTP server, in a process of its own; its URL."""
    port = free_port()
    with TemporaryDirectory(prefix="mozpool-bench-") as directory:
        log = Path(directory, "log")
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.bench.empty", str(port)], stdout=output, stderr=output
            )
        try:
            daemon = Daemon(f"http://127.0.0.1:{port}", process, log)
            daemon.wait()
            yield daemon.url
        finally:
            end(process)


class Levels:
    """Rates and latencies for each number of boards, of each run."""

    def __init__(self, subject: str, parameters: dict[str, str | int], boards: tuple[int, ...]) -> None:
        self._subject = subject
        self._parameters = parameters
        self._boards = boards
        self._runs: list[list[tuple[float, float, float]]] = []

    def run(self, url: str, paths: list[str], seconds: float) -> None:
        """Measure each number of boards once."""
        found, rest = [], paths
        for boards in self._boards:
            result = sound(load.events(url, rest, boards, seconds))
            rest = rest[len(result.times["event"]) :]
            found.append((result.rate("event"), result.quantile("event", 0.99), result.own))
        self._runs.append(found)

    def figures(self) -> Iterator[Figure]:
        """What was found."""
        for index, boards in enumerate(self._boards):
            parameters = {**self._parameters, "boards": boards}
            for measure, unit, column in (("events", "1/s", 0), ("p99", "ms", 1), ("load generator", "% of a core", 2)):
                values = tuple(each[index][column] for each in self._runs)
                yield Figure("h", self._subject, measure, unit, values, parameters)
        yield Figure("h", self._subject, HIGHEST, "1/s", self.best(), self._parameters)

    def best(self) -> tuple[float, ...]:
        """The highest rate within the limit, of each run; 0 when there is none."""
        return tuple(max((rate for rate, p99, _ in each if p99 < LIMIT), default=0.0) for each in self._runs)


def run(scale: Scale) -> Iterator[Figure]:
    """An application that does nothing, and Mozpool over each database."""
    boards, seconds = ((2,), 0.5) if scale.short else (BOARDS, 3.0)
    calls = int(MOST * seconds * len(boards))
    levels = Levels("empty Flask application", {"database": "none"}, boards)
    with empty() as url:
        for _ in range(scale.runs):
            levels.run(url, [f"/api/device/device{number}/event/{EVENTS[0]}/" for number in range(calls)], seconds)
    yield from levels.figures()
    # What has a database can't be faster.
    devices = int(MOST_STORED * seconds * len(boards)) // len(EVENTS)
    with pools(scale) as made:
        for kind in made.kinds:
            stored = Levels("mozpool", {"database": kind}, boards)
            for _ in range(scale.runs):
                with made.pool(kind) as pool:
                    pool.make(lambda database, server: installing(database, server, devices))
                    numbers = range(1, devices + 1)
                    paths = [f"/api/device/device{number}/event/{event}/" for event in EVENTS for number in numbers]
                    with pool.daemon() as daemon:
                        stored.run(daemon.url, paths, seconds)
            yield from stored.figures()
            if all(levels.best()):
                share = tuple(mine / theirs for mine, theirs in zip(stored.best(), levels.best(), strict=True))
                yield Figure("h", "mozpool", "share of the empty application's", "", share, {"database": kind})
