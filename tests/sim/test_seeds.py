# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Hours of a rough lab, seed after seed: whatever goes wrong, what must hold holds."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace

import pytest

from mozpool.simulate.explore import explain, first_failure, run, run_all, shrink
from mozpool.simulate.faults import BOARD_FAILURES
from mozpool.simulate.scenario import rough
from mozpool.simulate.world import Result
from tests.mariadb import MariaDB
from tests.sim.mutations import MUTATIONS

pytestmark = pytest.mark.no_cover

SEEDS = 200
LONG_SEEDS = 400

ONCE_FAILED = ("232", "392")
"""Seeds that showed a fault, of the servers or of the simulation, when they were first run; beyond the first 200."""


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_everything_holds_in_rough_hours() -> None:
    long = os.environ.get("MOZPOOL_LONG_TESTS") == "1"
    seeds = [str(seed) for seed in range(LONG_SEEDS if long else SEEDS)]
    begun, simulated, ends = time.monotonic(), 0.0, Counter[str]()
    kinds = Counter[str]()
    failed: list[Result] = []
    for result in run_all(rough(), dict.fromkeys([*ONCE_FAILED, *seeds]), processes=os.cpu_count() or 1):
        simulated += result.simulated
        ends.update(result.requests)
        kinds.update(fault.kind for fault in result.faults)
        if result.violation is not None:
            failed.append(result)
    spent = time.monotonic() - begun
    hours, ratio = simulated / 3600, simulated / spent
    print(f"\n{len(seeds)} seeds, {hours:.0f} simulated hours in {spent:.0f} s: {ratio:.0f} times real time")
    print(f"requests: {dict(ends.most_common())}")
    print(f"faults: {dict(kinds.most_common())}")
    for result in failed[:3]:
        print(explain(shrink(rough(), result)))
    assert not failed, [f"seed {result.seed}: {result.violation}" for result in failed]
    # What never happens is not tested.
    assert {"closed", "failed_device_not_found", "failed_bad_device"} <= set(ends)
    assert {"crash", "freeze", "outage", "deadlock", "lost_after_commit", "call_repeated", "clock_jump"} <= set(kinds)


def test_equal_seeds_give_equal_runs() -> None:
    """Byte for byte, in different processes with different hashes of strings."""
    code = (
        "from mozpool.simulate.explore import run; from mozpool.simulate.scenario import rough;"
        "result = run(rough(hours=0.1), 'again'); print(result.digest, result.steps, result.violation)"
    )
    said = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": str(salt)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for salt in (1, 2)
    ]
    assert said[0] == said[1]
    assert said[0].strip().endswith("None")
    assert run(rough(hours=0.1), "other").digest not in said[0]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_failure_is_reduced_to_the_faults_that_it_needs() -> None:
    """Devices that fit badly need hardly any."""
    with pytest.MonkeyPatch.context() as patch:
        MUTATIONS["others_get_devices_that_fit_badly"](patch)
        result = first_failure(rough(), map(str, range(20)))
        assert result is not None
        assert result.faults
        shortest = shrink(rough(), result)
    assert shortest.violation is not None
    assert len(shortest.faults) < len(result.faults)
    text = explain(shortest)
    assert f"seed {result.seed}" in text
    assert "not what it asked for" in text
    assert "finding_device" in text


@pytest.mark.mysql
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_everything_holds_on_mariadb(mariadb: MariaDB) -> None:
    """With locks and transactions of its own, and its own view of who waits for whom."""
    long = os.environ.get("MOZPOOL_LONG_TESTS") == "1"
    mariadb.execute("CREATE DATABASE simulation")
    url = mariadb.url("simulation")
    scenario = rough(hours=1.0 if long else 0.4)
    failed = []
    for seed in range(20 if long else 3):
        result = run(scenario, f"mariadb-{seed}", url=url)
        assert result.requests
        if result.violation is not None:
            failed.append(explain(result))
    assert not failed, "\n\n".join(failed)


def test_nothing_goes_wrong_where_nothing_is_made_to() -> None:
    quiet = replace(rough(hours=0.3), rates=type(rough().rates).none(), people=type(rough().people)(mends=0.0))
    result = run(quiet, str(random.Random(1).random()))
    assert result.violation is None
    assert not [fault for fault in result.faults if fault.kind not in BOARD_FAILURES]
