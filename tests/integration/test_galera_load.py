# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Three imaging servers over a cluster of three database nodes, of which one is killed and another one stopped."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import galera
from tests.galera import Cluster
from tests.integration.mozpool_site import Tally
from tests.integration.server_pool import Pool, Prober, check_the_end, let_loose, wait_for
from tests.processes import needs

LONG = bool(os.environ.get("MOZPOOL_LONG_TESTS"))
BOARDS = 150 if LONG else 42
CLIENTS = 50 if LONG else 12
ROUNDS = 3 if LONG else 1
SPEED = 20.0

pytestmark = [pytest.mark.mysql, pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    needs(galera.missing())
    with galera.cluster() as made:
        made.execute("CREATE DATABASE mozpool CHARACTER SET utf8mb4")
        yield made


@pytest.fixture
def pool(cluster: Cluster, tmp_path: Path) -> Iterator[Pool]:
    with Pool(tmp_path, cluster.url("mozpool"), servers=3, boards=BOARDS, speed=SPEED, seed=13) as pool:
        yield pool


def test_the_database_may_lose_nodes(pool: Pool, cluster: Cluster) -> None:
    tally = Tally()
    seconds = ROUNDS * 38.0
    clients = let_loose(pool, tally, CLIENTS, seconds, seed=3)
    prober = Prober(CLIENTS, pool, tally, time.monotonic() + seconds, 3)
    prober.start()
    for number in range(ROUNDS):
        # The first in the list is the one that all servers use at the start, and the second one after that.
        first, second = cluster.nodes[(2 * number) % 3], cluster.nodes[(2 * number + 1) % 3]
        time.sleep(6)
        first.kill()
        time.sleep(8)
        first.start()
        time.sleep(6)
        second.stop()
        time.sleep(4)
        second.start()
        time.sleep(4)
    wait_for(clients, tally)
    prober.join()
    print(f"\n{sum(tally.ends.values())} requests: {dict(tally.ends)}; longest pause of a write {prober.pause:.1f} s")
    check_the_end(pool, tally)
    assert tally.ends["ready"] > CLIENTS
    left = [server.log.read_text(errors="replace").count("is left:") for server in pool.servers]
    assert all(times >= 1 for times in left), f"not every server has lost a node: {left}"
