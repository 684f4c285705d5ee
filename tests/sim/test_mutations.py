# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Tests of the simulation: it finds each of these deliberate bugs within a few dozen seeds."""

from __future__ import annotations

import multiprocessing
import os
from dataclasses import replace

import pytest

from mozpool.fakes.board import Behaviour
from mozpool.simulate.explore import first_failure
from mozpool.simulate.faults import Rates
from mozpool.simulate.scenario import Scenario, rough
from tests.sim.mutations import MUTATIONS

SEEDS = 40
"""At most; the simulation of correct code runs five times as many (see test_seeds)."""


def hostile() -> Scenario:
    """As rough as it can be, so that few seeds do."""
    scenario = rough()
    rates = replace(scenario.rates, deadlock=0.1, call_repeated=0.15, answer_lost=0.1, slow_step=0.03)
    boards = Behaviour(download_failure=0.2, extraction_failure=0.3)
    return replace(scenario, rates=rates, kinds=tuple(replace(kind, behaviour=boards) for kind in scenario.kinds))


def crowded() -> Scenario:
    """Few boards that all work, and many who wait: where the order of the queue matters."""
    scenario = hostile()
    boards = Behaviour().reliable()
    return replace(
        scenario,
        rates=replace(Rates.none(), deadlock=0.02),
        kinds=tuple(replace(kind, count=max(3, kind.count // 4), behaviour=boards) for kind in scenario.kinds),
        loads=tuple(replace(load, bursts=3 * load.bursts, wait=3000) for load in scenario.loads),
    )


def found(name: str) -> tuple[str, str | None]:
    """The mutation's name, and how it showed; None when it did not."""
    with pytest.MonkeyPatch.context() as patch:
        MUTATIONS[name](patch)
        scenario = crowded() if name == "the_queue_has_no_order" else hostile()
        result = first_failure(scenario, map(str, range(SEEDS)))
    return name, None if result is None else f"seed {result.seed}, {result.violation}"


def test_correct_code_keeps_the_order_of_a_crowded_queue() -> None:
    assert first_failure(crowded(), ["0", "1"]) is None


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_deliberate_bugs_are_found() -> None:
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        shown = dict(pool.imap_unordered(found, MUTATIONS, chunksize=1))
    print()
    for name in MUTATIONS:
        print(f"{name.replace('_', ' ')}: {shown[name]}")
    assert len(MUTATIONS) >= 8
    assert not [name for name, how in shown.items() if how is None]
