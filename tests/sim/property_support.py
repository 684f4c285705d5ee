# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What the property tests share: databases in memory, time and workers that only a test moves, and how long to try.

In CI each test tries the same examples in every run. With MOZPOOL_LONG_TESTS=1 it tries twenty times as many, and
others each time; the seed is printed, and MOZPOOL_TEST_SEED sets it.
"""

from __future__ import annotations

import os
import random
from collections import deque
from collections.abc import Callable, Hashable
from itertools import pairwise
from typing import Any

from hypothesis import HealthCheck, seed, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test
from sqlalchemy import select

from mozpool.clock import SimClock
from mozpool.db.engine import Database
from mozpool.db.history import StateChange, latest
from mozpool.db.tables import device_history, device_requests, devices, metadata, request_history, requests
from mozpool.lanes import Lanes, Timers
from mozpool.logbook import Kind
from mozpool.statedriver import Outcome
from tests.conftest import open_database

LONG = os.environ.get("MOZPOOL_LONG_TESTS") == "1"
TIMES = 20
TIME_LIMIT = 3600 if LONG else 1800
"""Seconds that a test may take; nearly all of them are for finding the shortest example when it fails."""


def run(machine: type[RuleBasedStateMachine], *, examples: int, steps: int) -> None:
    """Try ``examples`` sequences of at most ``steps`` steps; in the long form TIMES as many."""
    if LONG:
        number = int(os.environ.get("MOZPOOL_TEST_SEED") or random.SystemRandom().randrange(2**32))
        print(f"{machine.__name__}: MOZPOOL_TEST_SEED={number}")
        machine = seed(number)(machine)
    how = settings(
        max_examples=examples * (TIMES if LONG else 1),
        stateful_step_count=steps,
        deadline=None,
        derandomize=not LONG,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
    )
    run_state_machine_as_test(machine, settings=how)


def empty_database() -> Database:
    """A database in memory with today's tables."""
    database = open_database("sqlite://")
    metadata.create_all(database.engine, checkfirst=False)
    return database


class Workers(Lanes):
    """Workers that do nothing until a test says so, in its own thread and in the order of submission."""

    def __init__(self, clock: SimClock) -> None:
        super().__init__("workers", 1, clock)
        self._works: deque[Callable[[], None]] = deque()

    def submit(self, lane: Hashable | None, work: Callable[[], None], label: str = "") -> None:
        self._works.append(work)

    def do(self, times: int) -> None:
        """Do at most so many pieces of work."""
        for _ in range(times):
            if self._works:
                self._works.popleft()()

    def do_all(self) -> None:
        """Do all work, that which comes up meanwhile included."""
        for _ in range(10_000):
            if not self._works:
                return
            self._works.popleft()()
        raise AssertionError("the work never ends")


class Moments(Timers):
    """Timers that fire when a test lets time pass."""

    def next_moment(self) -> float | None:
        """When the next call is due, on the monotonic clock; None without one."""
        current = {number for number, _, _ in self._calls.values()}
        return min((at for at, number, _ in self._heap if number in current), default=None)

    def fire(self) -> None:
        """Make the calls that are due."""
        for call in self._due():
            call()


class Server:
    """The part of an imaging server that makes things happen: its timers, and its workers for transitions."""

    def __init__(self, clock: SimClock) -> None:
        self.timers = Moments(clock)
        self.quick = Workers(clock)


def pass_time(clock: SimClock, servers: list[Server], seconds: float) -> None:
    """Move the time on by ``seconds``, and at each moment do what is due then."""
    end = clock.monotonic() + seconds
    for _ in range(100_000):
        for server in servers:
            server.timers.fire()
            server.quick.do_all()
        moments = [moment for server in servers if (moment := server.timers.next_moment()) is not None]
        now = clock.monotonic()
        nearest = min([*moments, end])
        if nearest > now:
            # A microsecond more: what is due by the wall clock is compared in whole ones.
            clock.advance(min(nearest - now + 1e-6, end - now))
        elif now >= end and not [moment for moment in moments if moment <= now]:
            return
    raise AssertionError("time stands still")


class Witness:
    """Sees what a driver commits. The driver goes on when an observer fails: the failure is kept for the test."""

    def __init__(self, saw: Callable[[Outcome[Any]], None]) -> None:
        self._saw = saw
        self._failure: Exception | None = None

    def __call__(self, outcome: Outcome[Any]) -> None:
        try:
            if self._failure is None:
                self._saw(outcome)
        except Exception as error:
            self._failure = error

    def speak(self) -> None:
        """Raise what went wrong first."""
        if self._failure is not None:
            raise self._failure


def entries(database: Database, kind: Kind, row_id: int) -> list[StateChange]:
    """The newest entries of a row's history, oldest first."""
    table = device_history if kind == "device" else request_history
    with database.read() as conn:
        return latest(conn, table, row_id, 20)


def assert_history_leads_to(found: list[StateChange], state: str) -> None:
    """Every entry goes on where the one before it ended, and the last one ends where the row is."""
    for before, after in pairwise(found):
        assert after.from_state == before.to_state
        assert after.ts >= before.ts
        assert after.version >= before.version
    assert all(entry.from_state != entry.to_state for entry in found)
    if found:
        assert found[-1].to_state == state


def assert_claims_agree(database: Database) -> None:
    """Both sides of each claim say the same, and nobody has two devices or shares one."""
    with database.read() as conn:
        claims = [
            tuple(row)
            for row in conn.execute(
                select(device_requests.c.id, device_requests.c.device_id, device_requests.c.request_id)
            )
        ]
        held = conn.execute(select(devices.c.claim_id, devices.c.id).where(devices.c.claim_id.is_not(None)))
        assert sorted((claim, device) for claim, device, _ in claims) == sorted(tuple(row) for row in held)
        assert len({device for _, device, _ in claims}) == len(claims)
        assert len({request for _, _, request in claims}) == len(claims)
        ended = requests.c.state.in_(
            ["closed", "failed_device_not_found", "failed_device_busy", "failed_bad_device", "failed_bad_image"]
        )
        holders = [request for _, _, request in claims]
        assert not conn.scalars(select(requests.c.id).where(requests.c.id.in_(holders), ended)).all()
