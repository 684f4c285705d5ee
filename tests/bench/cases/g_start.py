# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""How long a daemon takes from its start until it acts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import timedelta

from sqlalchemy import func, insert, select, update

from mozpool.clock import Clock
from mozpool.db import tables
from mozpool.db.engine import Database
from tests.bench.figures import Figure
from tests.bench.filling import fill
from tests.bench.pools import Pool, pools
from tests.bench.scale import Scale
from tests.bench.trial import trial

TITLE = "Start of the daemon"

TEXT = """\
A daemon starts over a pool of 20000 devices and 5000 open requests: 4000 have a device, 1000 wait in the queue for
devices in an environment that has none free. While it was away, the time limits of 200 devices ran out (of those that
are being power-cycled), and the requests of 50 holders expired. The processor time is the daemon's own.

Measured from the start of the process: *answers* until the first call is answered; *acts on a device* and *acts on a
request* until the first transition that was due is in the database (by its own time stamp). What is overdue at a start
is spread over 5 s on purpose, so that the first one is a matter of chance, and *all that was due* takes 5 s more."""

_OVERDUE = tables.devices.c.state == "pc_power_cycling"

LATE = 200
EXPIRED = 50


def leave_behind(database: Database, server: str, devices: int, open_requests: int) -> None:
    """What a daemon that has gone away leaves behind."""
    now = Clock().now()
    with database.begin() as conn:
        fill(conn, server, devices)
        server_id = conn.scalar(select(tables.devices.c.imaging_server_id).limit(1))
        ids = list(conn.scalars(select(tables.devices.c.id).order_by(tables.devices.c.id)))
        lent = ids[: open_requests * 4 // 5]
        common = {
            "imaging_server_id": server_id,
            "requested_device": "any",
            "state_counters": "{}",
            "image_id": 1,
            "boot_config": "{}",
            "created": now - timedelta(hours=1),
        }
        made = []
        for number in range(1, open_requests + 1):
            has_device = number <= len(lent)
            late = number <= EXPIRED
            expires = now - timedelta(seconds=30) if late else now + timedelta(hours=1 + number % 5)
            made.append(
                {
                    **common,
                    "id": number,
                    "assignee": f"person{number % 50}@example.com",
                    "expires": expires,
                    "state": "ready" if has_device else "finding_device",
                    "state_timeout": None if has_device else now + timedelta(hours=1),
                    "environment": "any" if has_device else "elsewhere",
                    "criteria": None if has_device else "0" * 40,
                    "queue_key": number,
                }
            )
        for start in range(0, len(made), 5000):
            conn.execute(insert(tables.requests), made[start : start + 5000])
        claims = [{"id": key, "request_id": key, "device_id": device} for key, device in enumerate(lent, start=1)]
        conn.execute(insert(tables.device_requests), claims)
        conn.execute(insert(tables.claim_history), [{**claim, "claimed_at": now} for claim in claims])
        conn.execute(
            update(tables.devices)
            .where(tables.devices.c.id.in_(lent))
            .values(claim_id=tables.devices.c.id - ids[0] + 1, state_timeout=now + timedelta(minutes=10))
        )
        late_ones = ids[len(lent) : len(lent) + min(LATE, devices // 10)]
        conn.execute(
            update(tables.devices)
            .where(tables.devices.c.id.in_(late_ones))
            .values(state="pc_power_cycling", state_timeout=now - timedelta(seconds=30))
        )


def first_change(pool: Pool, history: str) -> float | None:
    """Seconds since 1970 of the first transition of those that were due."""
    table = tables.metadata.tables[history]
    with pool.database() as database, database.read() as conn:
        moment = conn.scalar(select(func.min(table.c.ts)))
    return None if moment is None else moment.timestamp()


def late_left(pool: Pool) -> int:
    """How many rows still are as they were when their time was over."""
    with pool.database() as database, database.read() as conn:
        devices = conn.scalar(
            select(func.count()).select_from(tables.devices).where(tables.devices.c.attempt == 0, _OVERDUE)
        )
        requests = conn.scalar(
            select(func.count())
            .select_from(tables.requests)
            .where(tables.requests.c.state == "ready", tables.requests.c.expires < Clock().now())
        )
        return int(devices or 0) + int(requests or 0)


def one_run(pool: Pool) -> dict[str, float]:
    """Measure → seconds."""
    begun = time.time()
    with pool.daemon() as daemon:
        found = {"answers": time.time() - begun, "processor time until it answers": daemon.cost().own}
        give_up = time.monotonic() + 120
        while late_left(pool):
            if time.monotonic() > give_up:
                raise AssertionError("not all that was due was done")
            time.sleep(0.2)
        found["all that was due"] = time.time() - begun
        for what, history in (("a device", "device_history"), ("a request", "request_history")):
            moment = first_change(pool, history)
            assert moment is not None
            found[f"acts on {what}"] = moment - begun
        found["processor time until all that was due"] = daemon.cost().own
    return found


def run(scale: Scale) -> Iterator[Figure]:
    """One size over each database."""
    devices, open_requests = (500, 100) if scale.short else (20000, 5000)
    with pools(scale) as made:
        for kind in made.kinds:
            results = []
            for _ in range(scale.runs):
                with made.pool(kind) as pool:
                    pool.make(lambda database, server: leave_behind(database, server, devices, open_requests))
                    results.append(one_run(pool))
            parameters: dict[str, str | int] = {"database": kind, "devices": devices, "requests": open_requests}
            for measure in results[0]:
                values = tuple(result[measure] for result in results)
                yield Figure("g", "mozpool", measure, "s", values, parameters)


if __name__ == "__main__":
    trial(TITLE, run)
