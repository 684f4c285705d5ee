# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What a daemon costs while its devices are idle."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import timedelta

from sqlalchemy import bindparam, insert, select, update

from mozpool.clock import Clock
from mozpool.db import tables
from mozpool.db.engine import Database
from tests.bench.figures import Figure
from tests.bench.filling import fill
from tests.bench.pools import Daemon, Pool, memory, pools
from tests.bench.scale import Scale
from tests.bench.trial import trial

TITLE = "Idle cost"

TEXT = """\
A daemon with ready devices that nobody asks for, each of which is verified every 10 minutes by a ping (`fping`, a
process for each; all devices are addresses of this machine) or, *without pings*, by a probe that answers at once. The
verifications are spread evenly over the 10 minutes. Nobody calls the server, and no page is open.

*Processor* is the daemon's own time, as a share of one core, starting the programs included; *fping* is what these use
themselves. *Queries* are what MariaDB counts (`Questions`: each statement, also COMMIT and what begins a connection),
all of the daemon's background work included. Memory is measured at the end; *PSS* counts what is shared with other
processes in part."""

SETTLE = 15.0
"""Seconds after the start in which nothing is measured: the first scan, and housekeeping."""


def rest(database: Database, server: str, devices: int, *, pings: bool) -> None:
    """Ready devices whose next verifications are spread over 10 minutes."""
    now = Clock().now()
    with database.begin() as conn:
        fill(conn, server, devices)
        conn.execute(update(tables.images).values(has_sut_agent=0))
        if pings:
            backends = '{"power": "instant", "boot": "instant", "probe": "fping", "agent": "instant"}'
            conn.execute(insert(tables.hardware_types).values(id=2, type="bench", model="pinged", backends=backends))
            conn.execute(update(tables.devices).values(hardware_type_id=2))
        ids = conn.scalars(select(tables.devices.c.id).order_by(tables.devices.c.id)).all()
        due = (
            update(tables.devices)
            .where(tables.devices.c.id == bindparam("key"))
            .values(address=bindparam("place"), state_timeout=bindparam("moment"))
        )
        rows = [
            {
                "key": device_id,
                "place": f"127.1.{number // 250}.{1 + number % 250}",
                # Not one after the other in the table.
                "moment": now + timedelta(seconds=600 * (number * 7919 % devices) / devices),
            }
            for number, device_id in enumerate(ids)
        ]
        conn.execute(due, rows)


def questions(pool: Pool) -> int:
    """How many statements MariaDB has been sent."""
    if pool.mariadb is None:
        return 0
    return int(pool.mariadb.execute("SHOW GLOBAL STATUS LIKE 'Questions'")[0][1])


def one_run(daemon: Daemon, pool: Pool, seconds: float) -> dict[str, float]:
    """Measure → value, over so many seconds."""
    asked, cost, begun = questions(pool), daemon.cost(), time.monotonic()
    time.sleep(seconds)
    used, spent, sent = daemon.cost(), time.monotonic() - begun, questions(pool) - asked
    found = {
        "processor|% of a core": 100 * (used.own - cost.own) / spent,
        "fping|% of a core": 100 * (used.children - cost.children) / spent,
        "memory, PSS|MB": memory(daemon.pid)["PSS"],
        "memory, RSS|MB": memory(daemon.pid)["RSS"],
    }
    if pool.mariadb is not None:
        # What asks for the number begins a connection, and is counted itself.
        found["queries|1/s"] = max(0, sent - 3) / spent
    return found


def verified(pool: Pool) -> int:
    """How many verifications took place: each is a transition."""
    with pool.database() as database, database.read() as conn:
        return sum(conn.scalars(select(tables.devices.c.attempt)))


def run(scale: Scale) -> Iterator[Figure]:
    """Each size over each database."""
    sizes = [(50, True)] if scale.short else [(500, True), (5000, False), (5000, True), (20000, True)]
    seconds, settle = (3.0, 1.0) if scale.short else (40.0, SETTLE)
    with pools(scale) as made:
        for kind in made.kinds:
            for devices, pings in sizes:
                with made.pool(kind) as pool:
                    pool.make(
                        lambda database, server, devices=devices, pings=pings: rest(  # type: ignore[misc]
                            database, server, devices, pings=pings
                        )
                    )
                    with pool.daemon() as daemon:
                        time.sleep(settle)
                        before, begun = verified(pool), time.monotonic()
                        results = [one_run(daemon, pool, seconds) for _ in range(scale.runs)]
                        rate = (verified(pool) - before) / (time.monotonic() - begun)
                if not scale.short and not 0.8 < rate / (devices / 600) < 1.2:
                    raise AssertionError(f"{rate:.2f} verifications a second of {devices} devices")
                parameters: dict[str, str | int] = {
                    "database": kind,
                    "devices": devices,
                    "probe": "fping" if pings else "without pings",
                }
                for name in results[0]:
                    measure, unit = name.split("|")
                    yield Figure("e", "mozpool", measure, unit, tuple(result[name] for result in results), parameters)
                yield Figure("e", "mozpool", "verifications", "1/s", (rate,), parameters)


if __name__ == "__main__":
    trial(TITLE, run)
