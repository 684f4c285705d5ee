# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""``python -m tests.bench.launcher``: how soon all phones are busy after a burst of tasks, by old rules and new ones.

In simulated time, with the same fake cloud for both: what is compared are the rules, not the machines they run on.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import click

from mozpool.clock import SimClock
from mozpool.config import LambdaTest
from mozpool.fakes.cloud import FakeCloud
from mozpool.fakes.phonecloud import JobSpec
from mozpool.launcher.decide import Demand, decide, room

TICK = 0.5
"""Seconds of simulated time from one look of the rules to the next."""

LONGEST = 7200.0
"""Seconds after which a run is given up."""

PICK_UP = 210.0
"""Seconds within which a job counts as on its way to a task (wire facts)."""

SPACING = 2.0
"""Seconds from one start of a job to the next (wire facts)."""

TASK = 4 * 3600.0
"""Seconds that each task takes: none ends before all phones are busy."""


class Rules(Protocol):
    """What decides when which job is started."""

    def tick(self) -> None:
        """What is to be done now."""
        ...


class OldRules:
    """Wire facts, "the old rules": three monitors, and one loop that starts jobs in batches."""

    MONITORS = 30.0
    LOOP, AFTER_STARTS = 10.0, 30.0
    BATCH = 10
    MOST_INITIATED = 40

    def __init__(self, cloud: FakeCloud, rng: random.Random) -> None:
        self._cloud = cloud
        self._rng = rng
        self._clock = cloud.timeline.clock
        self._monitor_at = rng.uniform(0, self.MONITORS)
        self._cycle_at = rng.uniform(0, self.LOOP)
        self._pending = self._initiated = 0
        self._active: list[str] = []
        self._started: dict[str, float] = {}
        """Phone → when a job was started on it last."""
        self._batch: list[str] = []
        self._next_start = 0.0

    def tick(self) -> None:
        """Whatever is due."""
        now = self._clock.monotonic()
        if now >= self._monitor_at:
            self._monitor_at += self.MONITORS
            self._pending = pending(self._cloud)
            self._active = [udid for udid, status in self._cloud.lambdatest.phones.items() if status == "active"]
            self._initiated = initiated(self._cloud)
        if self._batch:
            if now >= self._next_start:
                self._start(self._batch.pop(), now)
                self._next_start = now + SPACING
                self._cycle_at = now + SPACING + self.LOOP + self.AFTER_STARTS
        elif now >= self._cycle_at:
            self._batch = self._choose(now)
            self._cycle_at = now + self.LOOP

    def _choose(self, now: float) -> list[str]:
        if self._initiated > self.MOST_INITIATED:
            return []
        lately = {udid for udid, when in self._started.items() if now - when < PICK_UP}
        free = [udid for udid in self._active if udid not in lately]
        number = max(0, min(self._pending - len(lately), self.BATCH, len(free)))
        return self._rng.sample(free, number)

    def _start(self, udid: str, now: float) -> None:
        start(self._cloud, udid)
        self._started[udid] = now


class NewRules:
    """:mod:`mozpool.launcher.decide`, as the launcher asks it, and the waiting of its starts for their turn."""

    FULL_PAUSE = 4.0

    def __init__(self, cloud: FakeCloud, rng: random.Random) -> None:
        settings = LambdaTest()
        self._age, self._interval, self._limit = settings.status_age, settings.look_interval, settings.max_initiated
        self._cloud = cloud
        self._rng = rng
        self._clock = cloud.timeline.clock
        self._look_at = rng.uniform(0, self._interval)
        self._asked = -math.inf
        self._active: set[str] = set()
        self._initiated = 0
        self._listed = 0
        """How many jobs there were when the cloud was asked last."""
        self._claimed: list[str] = []
        """Phones whose jobs wait for their turn."""
        self._started: set[str] = set()
        self._next_start = 0.0

    def tick(self) -> None:
        """Whatever is due."""
        now = self._clock.monotonic()
        if now >= self._look_at:
            self._look_at = now + self._interval
            self._look(now)
        if self._claimed and now >= self._next_start:
            # Right before a start, the cloud is asked anew.
            if initiated(self._cloud) >= self._limit:
                self._next_start = now + self.FULL_PAUSE
            else:
                udid = self._claimed.pop(0)
                start(self._cloud, udid)
                self._started.add(udid)
                self._next_start = now + SPACING

    def _look(self, now: float) -> None:
        if now - self._asked >= self._age:
            self._asked = now
            self._active = {udid for udid, status in self._cloud.lambdatest.phones.items() if status == "active"}
            self._initiated = initiated(self._cloud)
            self._listed = len(self._started)
        coming = [job for job in self._cloud.lambdatest.jobs if not job.tasks and now - job.created < PICK_UP]
        (project,) = self._cloud.projects.values()
        demand = Demand("a55", pending(self._cloud), len(coming) + len(self._claimed), project.phones)
        unknown = len(self._claimed) + len(self._started) - self._listed
        places = room(initiated=self._initiated, unknown=unknown, limit=self._limit)
        free = self._active.difference(self._claimed, self._started)
        self._claimed += [each.udid for each in decide([demand], free, places, self._rng)]


RULES: dict[str, Callable[[FakeCloud, random.Random], Rules]] = {"old": OldRules, "new": NewRules}


def pending(cloud: FakeCloud) -> int:
    """How many tasks nobody has taken."""
    (project,) = cloud.projects.values()
    return cloud.taskcluster.pending(project.worker_type)


def initiated(cloud: FakeCloud) -> int:
    """How many jobs are initiated in all."""
    steps = cloud.lambdatest.initiated()
    return steps[-1][1] if steps else 0


def start(cloud: FakeCloud, udid: str) -> None:
    """Start a job, as hyperexecute does."""
    (project,) = cloud.projects.values()
    cloud.lambdatest.create(JobSpec(("tcdp", "a55", udid), project.worker_type, fixed=udid), "lt-user")


@dataclass(frozen=True)
class Result:
    """One run: seconds from the burst, and what may not happen."""

    half: float
    """Until jobs have been started for half of the tasks."""
    started: float
    """Until jobs have been started for all."""
    busy: float
    """Until all phones are busy."""
    most_initiated: int
    violations: int


def run(rules: str, phones: int, seed: int) -> Result:
    """As many tasks as there are free phones arrive at once."""
    clock = SimClock()
    cloud = FakeCloud(phones, clock=clock, seed=seed)
    rng = random.Random(seed)
    launcher = RULES[rules](cloud, rng)
    burst = rng.uniform(60, 120)  # the launcher runs already, and anything may be due next
    cloud.add_tasks("a55", phones, seconds=TASK, after=burst)
    while any(status != "busy" for status in cloud.lambdatest.phones.values()):
        launcher.tick()
        clock.advance(TICK)
        if clock.monotonic() - burst > LONGEST:
            raise click.ClickException(f"{rules}, seed {seed}: not all phones are busy after {LONGEST:g} s")
    jobs = cloud.lambdatest.jobs
    made = sorted(job.created - burst for job in jobs)
    return Result(
        half=made[(phones + 1) // 2 - 1],
        started=made[phones - 1],
        busy=max(job.times["running"] for job in jobs if "running" in job.times) - burst,
        most_initiated=max(number for _, number in cloud.lambdatest.initiated()),
        violations=len(cloud.lambdatest.violations),
    )


def spread(values: Sequence[float]) -> str:
    """Median and range, in whole seconds."""
    return f"{statistics.median(values):.0f} ({min(values):.0f} to {max(values):.0f})"


@click.command(help=__doc__)
@click.option("--phones", default=60, help="How many phones are free, and how many tasks arrive.")
@click.option("--seeds", default=25, help="Number of runs.")
def main(phones: int, seeds: int) -> None:
    """Run both and print a table."""
    click.echo(f"\nA burst of {phones} tasks for {phones} free phones; seconds, median and range of {seeds} runs\n")
    click.echo("| rules | half of the jobs started | all jobs started | all phones busy | initiated at a time |")
    click.echo("|---|---|---|---|---|")
    for rules in RULES:
        results = [run(rules, phones, seed) for seed in range(seeds)]
        columns = [spread([getattr(each, name) for each in results]) for name in ("half", "started", "busy")]
        click.echo(f"| {rules} | {' | '.join(columns)} | {max(each.most_initiated for each in results)} |")
        if any(each.violations for each in results):
            raise click.ClickException(f"{rules}: what must not happen did")


if __name__ == "__main__":
    main()
