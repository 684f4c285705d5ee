# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The main promise under load: boards that fail at the real rates, impatient clients, a daemon that is killed."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import delete

from mozpool.db import tables
from tests.integration.mozpool_site import LAST_REQUESTS, Client, Site, Tally, check_log, disturbed
from tests.mariadb import MariaDB

LONG = bool(os.environ.get("MOZPOOL_LONG_TESTS"))
BOARDS = 200 if LONG else 100
CLIENTS = 40
SECONDS = 300.0 if LONG else 25.0
KILLS = 25 if LONG else 3
SPEED = 20.0
OVERDUE = 45.0
"""Seconds that a daemon may leave a deadline that has passed; at its start it spreads them over some seconds."""

pytestmark = [pytest.mark.mysql, pytest.mark.timeout(1200)]


@pytest.fixture
def site(mariadb: MariaDB, tmp_path: Path) -> Iterator[Site]:
    name = f"fire_{os.getpid()}_{tmp_path.name[-12:].replace('-', '_')}"
    mariadb.execute(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
    site = Site(tmp_path, mariadb.url(name), boards=BOARDS, speed=SPEED, seed=7)
    try:
        with site:
            yield site
    finally:
        mariadb.execute(f"DROP DATABASE {name}")


def run_clients(site: Site, seconds: float, seed: int, kills: int = 0) -> Tally:
    """Let the clients loose for so many seconds, and kill the daemon so many times at random moments."""
    tally = Tally()
    end = time.monotonic() + seconds
    clients = [Client(number, site, tally, end, seed) for number in range(CLIENTS)]
    for client in clients:
        client.start()
    rng = random.Random(seed)
    overdue: dict[tuple[object, ...], float] = {}
    for _ in range(kills):
        watch(site, tally, overdue, rng.uniform(0.3, 2 * seconds / kills - 0.6))
        site.kill_daemon()
        site.start_daemon()
    watch(site, tally, overdue, max(0.0, end - time.monotonic()))
    for client in clients:
        client.join(max(1.0, end - time.monotonic()) + LAST_REQUESTS + 60)
    tally.problems += [f"{client.name} never ended" for client in clients if client.is_alive()]
    return tally


def watch(site: Site, tally: Tally, overdue: dict[tuple[object, ...], float], seconds: float) -> None:
    """For so many seconds, see that nothing stays overdue: ``overdue`` says for how long the daemon has let it be.

    Only the time counts in which the daemon was up, so neither its restarts nor a slow machine matter.
    """
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        pause = min(1.0, left)
        time.sleep(pause)
        due = {row: overdue.get(row, 0.0) + pause for row in site.stuck(slack=0.0)}
        overdue.clear()
        overdue.update(due)
        late = [row for row, waited in due.items() if OVERDUE <= waited < OVERDUE + 1.0]
        if late:
            tally.problems.append(f"overdue for {OVERDUE:.0f} s while the daemon was up: {late[:5]}")


def check(site: Site, tally: Tally) -> None:
    """What must hold after any such run."""
    print(f"\n{sum(tally.ends.values())} requests: {dict(tally.ends)}")
    assert not tally.problems, f"{tally.problems[:10]}\n{site.story()}"
    assert tally.ends["ready"] > CLIENTS / 2, site.story()
    site.check_all_is_over()
    assert site.stop_daemon() < 10
    check_log(site.log)
    report = site.stop_boards()
    assert not disturbed(report, tally.held)


@pytest.mark.long
def test_no_device_is_ever_held_twice_and_every_request_ends(site: Site) -> None:
    """Without crashes, which the next one has besides."""
    check(site, run_clients(site, SECONDS, seed=1))


def test_a_daemon_that_is_killed_at_random_moments_loses_and_doubles_nothing(site: Site) -> None:
    check(site, run_clients(site, SECONDS, seed=2, kills=KILLS))


def test_the_checks_can_fail(site: Site) -> None:
    """The checks of this file see a claim that overlaps another one and a row that nobody looks after."""
    now = site.database.clock.now()
    with site.database.begin() as conn:
        for request_id in (1, 2):
            conn.execute(
                tables.claim_history.insert().values(
                    device_id=1, request_id=request_id, claimed_at=now, released_at=None
                )
            )
    assert site.overlapping_claims()
    with site.database.begin() as conn:
        conn.execute(delete(tables.claim_history))
    tally = Tally()
    tally.take("device1", 1)
    tally.take("device1", 2)
    assert tally.problems
    report = {"boards": {"device1": {"history": [[5.0, "power_off", ""]]}}}
    assert disturbed(report, [("device1", 4.0, 6.0)])
    assert not disturbed(report, [("device1", 5.5, 6.0)])
