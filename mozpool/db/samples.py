# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""How the pool was doing, minute by minute. The row of a minute is written once, by whichever server is first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from statistics import median
from typing import Any

from sqlalchemy import Connection, func, insert, select

from mozpool.db.requests import QUEUED
from mozpool.db.spans import EPOCH
from mozpool.db.tables import device_history, pool_samples, request_history, requests

MINUTE = timedelta(minutes=1)

STEPS = (1, 2, 5, 10, 15, 20, 30, 60, 90, 120, 180, 240, 360, 480)
"""Minutes that a step of a history may have."""


@dataclass(frozen=True)
class Sample:
    """A row: the pool in a minute."""

    minute: int
    in_use: int
    idle: int
    processing: int
    failed: int
    out_of_service: int
    away: int
    """Devices whose server is away, whatever their state."""
    waiting: int
    """Requests in the queue."""
    ready: int
    """Requests that became ready in the minute before."""
    ready_median: float | None
    """Seconds that these took from when they were made."""
    ready_worst: float | None
    failures: int
    """Devices that failed in the minute before."""


@dataclass(frozen=True)
class Step:
    """What the samples of some minutes come to."""

    begin: datetime
    in_use: float
    """Devices, on the average of the step; so are the next five."""
    idle: float
    processing: float
    failed: float
    out_of_service: float
    away: float
    waiting: int
    """The most requests that waited at a time."""
    ready: int
    ready_median: float | None
    """The average of the minutes' medians, by the number of requests."""
    ready_worst: float | None
    failures: int


def minute_of(moment: datetime) -> int:
    """The number of the minute that a moment lies in."""
    return (moment - EPOCH) // MINUTE


def has(conn: Connection, minute: int) -> bool:
    """Whether somebody has written this minute's row."""
    return conn.scalar(select(pool_samples.c.minute).where(pool_samples.c.minute == minute)) is not None


def add(conn: Connection, sample: Sample) -> None:
    """Write a minute's row. Raises IntegrityError when there is one."""
    conn.execute(insert(pool_samples).values(**asdict(sample)))


@dataclass(frozen=True)
class Happened:
    """What happened in a minute."""

    took: Sequence[float]
    """Seconds from when a request was made until it was ready, for each one that became so; sorted."""
    failures: int

    @property
    def median(self) -> float | None:
        """Of the seconds."""
        return median(self.took) if self.took else None

    @property
    def worst(self) -> float | None:
        """Of the seconds."""
        return self.took[-1] if self.took else None


def happened(conn: Connection, minute: int) -> Happened:
    """What happened in a minute, by the histories of states."""
    begin = EPOCH + minute * MINUTE
    readied = (
        select(requests.c.created, request_history.c.ts)
        .join(requests, requests.c.id == request_history.c.request_id)
        .where(
            request_history.c.ts >= begin,
            request_history.c.ts < begin + MINUTE,
            request_history.c.to_state == "ready",
            requests.c.created.is_not(None),
        )
    )
    failed = select(func.count(func.distinct(device_history.c.device_id))).where(
        device_history.c.ts >= begin,
        device_history.c.ts < begin + MINUTE,
        device_history.c.to_state.startswith("failed_", autoescape=True),
    )
    took = sorted(max(0.0, (ts - created).total_seconds()) for created, ts in conn.execute(readied))
    return Happened(took, int(conn.scalar(failed) or 0))


_WAITING = select(func.count()).select_from(requests).where(requests.c.state == QUEUED)


def waiting(conn: Connection) -> int:
    """How many requests are in the queue."""
    return int(conn.scalar(_WAITING) or 0)


def step_for(minutes: int, most: int) -> int:
    """How many minutes a step has to have for so many minutes to make at most ``most`` steps."""
    return next((step for step in STEPS if step * most >= minutes), -(-minutes // most))


def history(conn: Connection, now: datetime, minutes: int, most: int = 300) -> tuple[int, list[Step]]:
    """The last ``minutes`` in at most ``most`` steps: how many minutes each has, and those with samples in them."""
    step = step_for(minutes, most)
    table = pool_samples.c
    begin = (table.minute - table.minute % step).label("begin")
    last = minute_of(now)
    first = max(last - minutes + 1, last - last % step - (most - 1) * step)
    counts = (table.in_use, table.idle, table.processing, table.failed, table.out_of_service, table.away)
    query = (
        select(
            begin,
            *(func.avg(column) for column in counts),
            func.max(table.waiting),
            func.sum(table.ready),
            func.sum(table.ready_median * table.ready),
            func.max(table.ready_worst),
            func.sum(table.failures),
        )
        .where(table.minute >= first)
        .group_by(begin)
        .order_by(begin)
    )
    return step, [_step(tuple(row)) for row in conn.execute(query)]


def _step(row: tuple[Any, ...]) -> Step:
    """A step from what the database sums up, in whatever type of number it does so."""
    in_use, idle, processing, failed, out_of_service, away = (round(float(number), 2) for number in row[1:7])
    waiting, ready, weighed, worst, failures = row[7:]
    return Step(
        begin=EPOCH + int(row[0]) * MINUTE,
        in_use=in_use,
        idle=idle,
        processing=processing,
        failed=failed,
        out_of_service=out_of_service,
        away=away,
        waiting=int(waiting),
        ready=int(ready),
        ready_median=round(float(weighed) / int(ready), 3) if ready and weighed is not None else None,
        ready_worst=None if worst is None else round(float(worst), 3),
        failures=int(failures),
    )
