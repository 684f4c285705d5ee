# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Sizes of a pool by numbers of clients: what the cases of requests and of cycles have in common."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from mozpool.db.engine import Database
from tests.bench import load
from tests.bench.figures import Figure
from tests.bench.filling import fill
from tests.bench.pools import Cost, Daemon, Pool, pools
from tests.bench.scale import Scale

DEVICES = (10, 100, 500, 1000, 10_000)
CLIENTS = (1, 8, 32)
SECONDS = 4.0
"""How long one run of one cell takes."""


def stock(pool: Pool, devices: int) -> None:
    """Make the tables, and ready devices."""

    def filled(database: Database, server: str) -> None:
        with database.begin() as conn:
            fill(conn, server, devices)

    pool.make(filled)


def sound(result: load.Result) -> load.Result:
    """The result; raises AssertionError when calls failed, or two requests had a device at a time."""
    assert not result.errors, f"{result.errors} calls failed"
    assert not result.doubles, f"{result.doubles} times, two requests had the same device"
    return result


def one(pool: Pool, daemon: Daemon, mode: str, clients: int, seconds: float) -> tuple[load.Result, float, float]:
    """A run: its result, and the per cent of a core that the server and the database server used."""
    before, stored = daemon.cost().own, 0.0
    if pool.mariadb is not None:
        stored = Cost.of(pool.mariadb.pid).own
    result = sound(load.run(daemon.url, mode, clients, seconds))
    served = daemon.cost().own - before
    if pool.mariadb is not None:
        stored = Cost.of(pool.mariadb.pid).own - stored
    return result, served / result.seconds * 100, stored / result.seconds * 100


def measure(
    scale: Scale, case: str, mode: str, *, operations: tuple[str, str], latencies: Mapping[str, str]
) -> Iterator[Figure]:
    """The figures of the whole grid; the runs of a pool's cells alternate.

    ``operations`` is what is counted, as the load names it, and its title in the plural; ``latencies`` are the names of
    durations, with the titles.
    """
    operation, counted = operations
    seconds = 0.5 if scale.short else SECONDS
    clients = (1, 4) if scale.short else CLIENTS
    with pools(scale) as made:
        for kind in made.kinds:
            for devices in (10,) if scale.short else DEVICES:
                with made.pool(kind) as pool:
                    stock(pool, devices)
                    with pool.daemon() as daemon:
                        load.run(daemon.url, "cycle", 4, min(2.0, seconds))  # statements and connections are warm
                        runs = [
                            {number: one(pool, daemon, mode, number, seconds) for number in clients}
                            for _ in range(scale.runs)
                        ]
                for number in clients:
                    cell = [found[number] for found in runs]
                    parameters: dict[str, str | int] = {"database": kind, "devices": devices, "clients": number}
                    values = {(counted, "1/s"): [result.rate(operation) for result, _, _ in cell]}
                    for name, title in latencies.items():
                        for quantile, share in (("p50", 0.5), ("p99", 0.99)):
                            values[f"{title}: {quantile}", "ms"] = [each.quantile(name, share) for each, _, _ in cell]
                    values["server", "% of a core"] = [served for _, served, _ in cell]
                    if pool.mariadb is not None:
                        values["MariaDB", "% of a core"] = [stored for _, _, stored in cell]
                    values["load generator", "% of a core"] = [result.own for result, _, _ in cell]
                    for (name, unit), found in values.items():
                        yield Figure(case, "mozpool", name, unit, tuple(found), parameters)
