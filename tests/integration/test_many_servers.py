# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Three servers that take over from one another, under load: one is killed, another one is frozen and goes on later."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.mozpool_site import Tally
from tests.integration.server_pool import (
    TAKEOVER_AFTER,
    Pool,
    ServerProcess,
    check_the_end,
    let_loose,
    shared_connections,
    wait_for,
)
from tests.mariadb import MariaDB

LONG = bool(os.environ.get("MOZPOOL_LONG_TESTS"))
BOARDS = 150 if LONG else 84
CLIENTS = 50 if LONG else 20
ROUNDS = 3 if LONG else 1
SPEED = 20.0
FROZEN = 30.0
"""Seconds for which a server does nothing."""

SLACK = 5.0
"""Seconds beyond the set time within which everything must have a living owner."""

pytestmark = [pytest.mark.mysql, pytest.mark.timeout(1200)]


@pytest.fixture
def pool(mariadb: MariaDB, tmp_path: Path) -> Iterator[Pool]:
    name = f"many_{os.getpid()}"
    mariadb.execute(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
    pool = Pool(tmp_path, mariadb.url(name), servers=3, boards=BOARDS, speed=SPEED, seed=11)
    try:
        with pool:
            yield pool
    finally:
        mariadb.execute(f"DROP DATABASE {name}")


def check_all_is_taken(pool: Pool, lost: list[ServerProcess], tally: Tally) -> None:
    """Nothing belongs to a server that is lost, and what has a time limit has it before it."""
    for server in lost:
        left = pool.owned_by(server)
        if left:
            tally.problems.append(f"{len(left)} devices and requests are still {server.name}'s, such as {left[:3]}")
    late = pool.stuck(slack=SLACK + 5.0)
    if late:
        tally.problems.append(f"past their deadlines: {late[:5]}")


def one_round(pool: Pool, number: int, tally: Tally) -> None:
    """Kill one server, freeze another, and bring both back."""
    killed, frozen = pool.servers[(number + 2) % 3], pool.servers[(number + 1) % 3]
    time.sleep(5)
    killed.kill()
    time.sleep(2)
    frozen.freeze()
    begun = time.monotonic()
    time.sleep(TAKEOVER_AFTER + SLACK)
    check_all_is_taken(pool, [killed, frozen], tally)
    killed.start()
    time.sleep(max(0.0, begun + FROZEN - time.monotonic()))
    frozen.go_on()
    time.sleep(5)


def test_no_server_may_not_die(pool: Pool) -> None:
    tally = Tally()
    clients = let_loose(pool, tally, CLIENTS, ROUNDS * (FROZEN + 13.0), seed=1)
    for number in range(ROUNDS):
        one_round(pool, number, tally)
    wait_for(clients, tally)
    print(f"\n{sum(tally.ends.values())} requests: {dict(tally.ends)}; longest call {clients[0].longest:.1f} s")
    report = check_the_end(pool, tally)
    assert tally.ends["ready"] > CLIENTS
    assert shared_connections(report) > 1, "nothing was taken over"
