# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Runs seeds, and makes the faults of a run that fails as few as possible."""

from __future__ import annotations

import gc
import multiprocessing
import os
from collections.abc import Iterable, Iterator

from mozpool.simulate.scenario import Scenario
from mozpool.simulate.world import Result, World

SHOWN = 60
"""How many lines of the log are shown of a run that failed."""

LAST_FAULTS = 12
"""How many of the faults before a violation are shown."""


def run(scenario: Scenario, seed: str, *, url: str | None = None, limit: int | None = None) -> Result:
    """One run. ``limit`` leaves out all faults after so many."""
    return World(scenario, seed, url=url, limit=limit).run()


def shrink(scenario: Scenario, result: Result, *, url: str | None = None) -> Result:
    """The shortest prefix of a failed run's faults with which it still fails.

    A run is the same up to the first fault that is left out, so halving finds a prefix that fails while the one that is
    a fault shorter does not.
    """
    fails, passes, best = len(result.faults), -1, result
    while fails - passes > 1:
        middle = (fails + passes) // 2
        tried = run(scenario, result.seed, url=url, limit=middle)
        if tried.violation is not None:
            fails, best = middle, tried
        else:
            passes = middle
    return best


def explain(result: Result) -> str:
    """What to show of a run that failed."""
    count = len(result.faults)
    lines = [f"seed {result.seed}, the first {count} faults: {result.violation}"]
    if count:
        lines += ["the last of these faults:", *(f"  {fault}" for fault in result.faults[-LAST_FAULTS:])]
    lines += ["the log up to there:", *(f"  {line}" for line in result.log[-SHOWN:])]
    return "\n".join(lines)


def _run(work: tuple[Scenario, str]) -> Result:
    """In a process of its own: what is garbage is collected between two runs, when there is little to look through."""
    gc.disable()
    try:
        return run(*work)
    finally:
        gc.collect()


def run_all(scenario: Scenario, seeds: Iterable[str], *, processes: int) -> Iterator[Result]:
    """Run many seeds side by side; results come as they are ready.

    Simulated time can wait: whatever else the machine does goes first.
    """
    # Not forked: a thread of the caller may hold a lock just then.
    context = multiprocessing.get_context("spawn")
    with context.Pool(processes, os.nice, (10,)) as pool:
        yield from pool.imap_unordered(_run, ((scenario, seed) for seed in seeds))


def first_failure(scenario: Scenario, seeds: Iterable[str]) -> Result | None:
    """The first of these seeds whose run fails, in this process; None when all hold."""
    for seed in seeds:
        result = run(scenario, seed)
        if result.violation is not None:
            return result
    return None
