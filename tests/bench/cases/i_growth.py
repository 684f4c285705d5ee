# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What a long past costs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import requests
from sqlalchemy import select

from mozpool.db import tables
from mozpool.db.engine import Database
from tests.bench import load
from tests.bench.figures import Figure
from tests.bench.filling import fill
from tests.bench.grown import DEVICES, Past, grown
from tests.bench.pools import Cost, Daemon, Pool
from tests.bench.scale import Scale
from tests.bench.trial import trial
from tests.mariadb import MariaDB

TITLE = "Growth"

TEXT = """\
The same work over a pool without a past, and over one with 1 million requests that were closed in the last four days
(each with its claim, what reports need of it, and five changes of state) and 20 million log lines of the last ten
days. Both are on the same database server (MariaDB with a buffer pool of 1 GB and durable commits), with 100 devices,
and each has a daemon of its own that runs all the time; they are measured in turn.

*Claim and return*: 8 clients that request a device and return it at once; the *request call* is the first half.
*Whole cycle*: 8 clients that wait in between until the device is ready. *Device list*: with details, after a change.
*Processor time*: of the daemon and the database server together, each time that something is claimed and returned.
*Against empty tables*: the cost with the past as a multiple of that without, run by run.

The past is made by a generator and loaded in bulk (`tests/bench/grown.py`); it is kept for two days, so that the next
run need not load it again."""

CLIENTS = 8


def devices(database: Database, server: str) -> int:
    """The devices, and their server's id."""
    with database.begin() as conn:
        fill(conn, server, DEVICES)
        return int(conn.scalar(select(tables.imaging_servers.c.id).limit(1)) or 0)


def used(daemon: Daemon, mariadb: MariaDB | None) -> float:
    """Seconds of a processor, of the daemon and of the database server."""
    return daemon.cost().own + (0.0 if mariadb is None else Cost.of(mariadb.pid).own)


def device_list(url: str, times: int) -> float:
    """Median of the milliseconds that the list takes after a change."""
    taken = []
    with requests.Session() as session:
        for number in range(times):
            session.post(f"{url}/api/device/device2/set-comments/", json={"comments": f"note {number}"}, timeout=60)
            begun = time.perf_counter()
            session.get(f"{url}/api/device/list/?details=1", timeout=60).raise_for_status()
            taken.append((time.perf_counter() - begun) * 1000)
    return statistics.median(taken)


def one_run(daemon: Daemon, mariadb: MariaDB | None, seconds: float) -> dict[str, float]:
    """Measure → value."""
    before = used(daemon, mariadb)
    claims = load.run(daemon.url, "claim", CLIENTS, seconds)
    cost = used(daemon, mariadb) - before
    cycles = load.run(daemon.url, "cycle", CLIENTS, seconds)
    if claims.errors or claims.doubles or cycles.errors:
        raise AssertionError(f"{claims.errors + cycles.errors} errors, {claims.doubles} devices held doubly")
    return {
        "claim and return|1/s": claims.rate("claim and return"),
        "request call p99|ms": claims.quantile("claim", 0.99),
        "processor time|ms": 1000 * cost / max(1, len(claims.times.get("claim and return", ()))),
        "whole cycle|1/s": cycles.rate("cycle"),
        "device list|ms": device_list(daemon.url, 15),
    }


def run(scale: Scale) -> Iterator[Figure]:
    """Over each database."""
    past, seconds = (Past(5000, 50_000), 1.5) if scale.short else (Past(1_000_000, 20_000_000), 8.0)
    for kind in scale.databases:
        with ExitStack() as stack:
            directory = stack.enter_context(TemporaryDirectory(prefix="mozpool-bench-"))
            long_past, mariadb = stack.enter_context(grown(kind, past))
            loaded = long_past.ensure(lambda database: devices(database, "127.0.0.1:1"))
            if mariadb is not None:
                mariadb.execute("DROP DATABASE IF EXISTS empty")
                mariadb.execute("CREATE DATABASE empty CHARACTER SET utf8mb4")
            empty = Pool(kind, Path(directory), mariadb, "empty")
            empty.make(devices)
            old = Pool(kind, Path(directory), mariadb, "grown", url=long_past.url)
            long_past.give_to(old.server)
            pools = {"empty": empty, "grown": old}
            daemons = {name: stack.enter_context(pool.daemon()) for name, pool in pools.items()}
            for daemon in daemons.values():
                load.run(daemon.url, "cycle", 1, 1.0)  # connections, statements and the first housekeeping
            results: dict[str, list[dict[str, float]]] = {name: [] for name in pools}
            for _ in range(scale.runs):
                for name, daemon in daemons.items():
                    results[name].append(one_run(daemon, mariadb, seconds))
            rows, lines = long_past.sizes()
        parameters: dict[str, str | int] = {"database": kind, "requests": rows, "log lines": lines}
        word = "load time" if loaded else "load time (of an earlier run)"
        yield Figure("i", "mozpool", word, "s", (long_past.seconds,), parameters)
        for measure, unit in (key.split("|") for key in results["empty"][0]):
            pairs = [
                (empty_one[f"{measure}|{unit}"], grown_one[f"{measure}|{unit}"])
                for empty_one, grown_one in zip(results["empty"], results["grown"], strict=True)
            ]
            yield Figure(
                "i", "mozpool", measure, unit, tuple(a for a, _ in pairs), {"database": kind, "tables": "empty"}
            )
            yield Figure(
                "i", "mozpool", measure, unit, tuple(b for _, b in pairs), {"database": kind, "tables": "grown"}
            )
            ratios = tuple(a / b if unit == "1/s" else b / a for a, b in pairs)
            yield Figure("i", "mozpool", f"{measure}: against empty tables", "×", ratios, {"database": kind})


if __name__ == "__main__":
    trial(TITLE, run)
