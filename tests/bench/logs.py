# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""``python -m tests.bench.logs``: how long a server takes to answer a page of a log with a million lines.

For SQLite and a throwaway MariaDB with 14 days of partitions: one device wrote a million lines, others together as
many, one of them a few. The whole call is measured, over HTTP.
"""

from __future__ import annotations

from datetime import timedelta

import click
import requests

from mozpool.clock import Clock
from mozpool.db import logs
from mozpool.db.engine import Database
from mozpool.db.tables import device_logs
from tests.bench import load
from tests.bench.filling import fill
from tests.bench.pages import milliseconds
from tests.bench.pools import Pool, pools
from tests.bench.scale import Scale

DAYS = 13
PART = 10_000
"""Lines that one transaction writes."""


def write(database: Database, lines: int) -> None:
    """Every second line is of the first device, the others of the next 200; the last device has five."""
    start, step = Clock().now() - timedelta(days=DAYS), timedelta(days=DAYS) / (2 * lines)
    for first in range(0, 2 * lines, PART):
        part = [
            (
                1 if number % 2 else 2 + number // 2 % 200,
                start + number * step,
                f"script-{number % 5}.sh",
                f"line {number} of a device that tells at length what it does, and how that went",
            )
            for number in range(first, min(first + PART, 2 * lines))
        ]
        database.run(lambda conn, part=part: logs.add_many(conn, device_logs, part))  # type: ignore[misc]
        if first % (2 * lines // 5 // PART * PART) == 0:
            few = [(300, start + first * step, "x", "seldom")]
            database.run(lambda conn, few=few: logs.add_many(conn, device_logs, few))  # type: ignore[misc]


def measure(pool: Pool, lines: int) -> None:
    """Print what one database gives."""

    def filled(database: Database, server: str) -> None:
        with database.begin() as conn:
            fill(conn, server, 300)
        write(database, lines)

    pool.make(filled)
    with pool.database() as database, database.read() as conn:
        newest = logs.latest(conn, device_logs, 1, limit=1)[0].id
    pages = {
        "newest 100": "limit=100",
        "newest 2000": "limit=2000",
        "500 in the middle": f"before={newest // 2}&limit=500",
        "500 near the beginning": f"before={newest // 50}&limit=500",
        "what has been written since": f"after={newest - 20}&limit=2000",
        "after the middle, 2000": f"after={newest // 2}&limit=2000",
        "newest 100 of an hour": "timeperiod=3600&limit=100",
        "all of ten minutes": "timeperiod=600",
        "newest 100 of 12 days": f"timeperiod={12 * 86400}&limit=100",
    }
    with pool.daemon() as daemon, requests.Session() as session:
        for device in ("device1", "device7", "device300"):
            for title, query in pages.items():
                address = f"{daemon.url}/api/device/{device}/log/?{query}"
                found = len(session.get(address, timeout=60).json()["log"])
                times = milliseconds(7, lambda address=address: session.get(address, timeout=60))  # type: ignore[misc]
                click.echo(f"| {pool.kind} | {device}: {title} ({found} lines) | {load.spread(times)} |")


@click.command(help=__doc__)
@click.option("--lines", default=1_000_000, help="Of the device that writes most.")
@click.option("--database", "names", multiple=True, default=("sqlite", "mariadb"), help="Which databases.")
def main(lines: int, names: tuple[str, ...]) -> None:
    """Measure and print a table."""
    click.echo("| database | page | ms, median (range) |\n|---|---|---|")
    with pools(Scale(short=False, runs=1, databases=names)) as made:
        for kind in made.kinds:
            with made.pool(kind) as pool:
                measure(pool, lines)


if __name__ == "__main__":
    main()
