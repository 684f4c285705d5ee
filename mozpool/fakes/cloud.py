# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""LambdaTest's cloud and Taskcluster together, as one program meets them: phones, projects, tasks.

Here is also the measure of a launcher: how long phones that were free and had tasks waiting for them stood idle.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import yaml

from mozpool.clock import Clock
from mozpool.fakes.lambdatest import ACCOUNT, FakeLambdaTest
from mozpool.fakes.phonecloud import Fate, JobRecord, PhoneSpec, Timings, phone_specs
from mozpool.fakes.taskcluster import FakeTaskcluster
from mozpool.fakes.timeline import Span, Timeline

SCRIPTS_VERSION = "1"


@dataclass(frozen=True)
class FakeProject:
    """A project of the file that the launcher reads."""

    worker_type: str
    phones: tuple[str, ...]
    """UDIDs."""
    token: str = "tc-s3cret-token"  # noqa: S105 (of a simulated service)
    more: Mapping[str, Any] = field(default_factory=dict)
    """More settings of it: ``priority_group``, ``priority``, ``USER_SCRIPTS_VERSION`` …"""

    @property
    def token_variable(self) -> str:
        """The environment variable that holds the token."""
        return self.worker_type.replace("-", "_")


@dataclass(frozen=True)
class Wait:
    """How long a job was late."""

    job: int
    devices: tuple[str, ...]
    worker_type: str
    wanted: float
    """Since when a task waited that no other job was on its way for; all moments in seconds of the monotonic time."""
    free: float
    """Since when the job's last phone had been free."""
    possible: float
    """When it could have been created: all that was excluded was over, too."""
    created: float

    @property
    def seconds(self) -> float:
        """From when it could have been created until it was."""
        return max(0.0, self.created - self.possible)


class FakeCloud:
    """Both services with one time, and with speed and seed in common; a context manager that starts and stops them."""

    def __init__(
        self,
        phones: int | Sequence[PhoneSpec] = 6,
        projects: Mapping[str, FakeProject] | None = None,
        *,
        speed: float = 1.0,
        seed: int = 0,
        clock: Clock | None = None,
        account: tuple[str, str] = ACCOUNT,
        host: str = "127.0.0.1",
        lambdatest_port: int = 0,
        taskcluster_port: int = 0,
        age: float = 0.0,
        timings: Timings | None = None,
        odds: Mapping[Fate, float] | None = None,
        faulty_odds: float = 0.0,
        patience: Span = (60.0, 90.0),
        running_word: Literal["running", "in_progress"] = "running",
    ) -> None:
        """``phones``: these, or so many of one type. ``projects`` by name; None: one, a55, that has them all.

        The others are those of FakeLambdaTest and FakeTaskcluster.
        """
        specs = phone_specs(phones) if isinstance(phones, int) else tuple(phones)
        if projects is None:
            projects = {"a55": FakeProject("gecko-t-lambda-a55", tuple(spec.udid for spec in specs))}
        self.projects = dict(projects)
        self.timeline = Timeline(clock, speed=speed, seed=seed)
        self.taskcluster = FakeTaskcluster(timeline=self.timeline, host=host, port=taskcluster_port, patience=patience)
        self.lambdatest = FakeLambdaTest(
            specs,
            account=account,
            timeline=self.timeline,
            host=host,
            port=lambdatest_port,
            age=age,
            workers=self.taskcluster,
            timings=timings,
            odds=odds,
            faulty_odds=faulty_odds,
            running_word=running_word,
        )

    def start(self) -> None:
        """Open both ports. Raises FakesError."""
        self.taskcluster.start()
        try:
            self.lambdatest.start()
        except BaseException:
            self.taskcluster.stop()
            raise

    def stop(self) -> None:
        """Close both."""
        self.lambdatest.stop()
        self.taskcluster.stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def add_tasks(self, project: str, count: int, seconds: float | Span = 300.0, after: float = 0.0) -> list[str]:
        """Let so many tasks of a project be pending; as FakeTaskcluster.add_tasks."""
        return self.taskcluster.add_tasks(self.projects[project].worker_type, count, seconds, after)

    # What a launcher is told.

    def settings(self, hyperexecute: Path, projects: Path) -> dict[str, str]:
        """``[lambdatest]`` of a configuration that uses this cloud by the program and the projects file given."""
        user, key = self.lambdatest.account
        return {
            "projects": str(projects),
            "username": user,
            "access_key": key,
            "hyperexecute": str(hyperexecute),
            "devices_api": self.lambdatest.url,
            "jobs_api": self.lambdatest.url,
            "taskcluster": self.taskcluster.url,
            "provisioner": self.taskcluster.provisioner,
        }

    def environment(self) -> dict[str, str]:
        """The tokens of the projects, which the launcher has in its environment."""
        return {project.token_variable: project.token for project in self.projects.values()}

    def projects_yaml(self) -> str:
        """The projects file (wire facts: LambdaTest, Configuration)."""
        projects = {
            name: {"TC_WORKER_TYPE": project.worker_type, **project.more} for name, project in self.projects.items()
        }
        defaults = {
            "TASKCLUSTER_CLIENT_ID": "project/autophone/lambdatest-device-pool",
            "USER_SCRIPTS_VERSION": SCRIPTS_VERSION,
        }
        document = {
            "global": {"contract_device_count": len(self.lambdatest.specs)},
            "projects": {"defaults": defaults, **projects},
            "device_groups": {
                name: {udid: self.lambdatest.specs[udid].type_os for udid in project.phones}
                for name, project in self.projects.items()
            },
        }
        return yaml.safe_dump(document, sort_keys=False)

    # How good the launcher was.

    def waits(
        self,
        *,
        age: float = 0.0,
        spacing: float = 0.0,
        limit: int | None = None,
        away: Sequence[tuple[float, float]] = (),
    ) -> list[Wait]:
        """Each job for which a task waited, in the order of their creation, and how late it was.

        Excluded is what no launcher can help, in seconds of the clock: the ``age`` of what it knows of phones,
        ``spacing`` from one job of the account to the next, and the time while ``limit`` jobs were initiated.
        ``away``: from when to when there was no launcher (monotonic).
        """
        with self.timeline.settled():
            jobs, tasks = self.lambdatest.jobs, self.taskcluster.tasks
            initiated = self.lambdatest.initiated()
            free_spans = {udid: self.lambdatest.free_spans(udid) for udid in self.lambdatest.specs}
        wanted = _wanted_since(jobs, [(task.added, task.worker_type) for task in tasks.values()])
        found, ready = [], []
        for job in jobs:
            devices = (job.spec.fixed,) if job.spec.fixed is not None else tuple(job.held)
            since = wanted.get(job.number)
            if since is None or not devices:
                ready.append((job.created, job.number))
                continue
            free = max(_free_since(free_spans[udid], job.created) for udid in devices)
            ready.append((max(since, free + age, _below_since(initiated, limit, job.created)), job.number))
            found.append(Wait(job.number, devices, job.spec.worker_type, since, free, job.created, job.created))
        possible = _in_turn(ready, spacing, sorted(away))
        return [replace(wait, possible=possible[wait.job]) for wait in found]


def _in_turn(
    ready: Iterable[tuple[float, int]], spacing: float, away: Sequence[tuple[float, float]]
) -> dict[int, float]:
    """When each could begin, given when each was ready, with so many seconds from one to the next, and with gaps."""
    found: dict[int, float] = {}
    before = float("-inf")
    for moment, number in sorted(ready):
        before = max(moment, before + spacing)
        for begun, ended in away:
            if begun <= before < ended:
                before = ended
        found[number] = before
    return found


def _wanted_since(jobs: Sequence[JobRecord], tasks: Sequence[tuple[float, str]]) -> dict[int, float]:
    """Number of a job → since when the task had waited that it was created for; jobs that nobody needed are not in it.

    The oldest task is served first. A job that ended without having picked up its task leaves that waiting again.
    """
    steps: list[tuple[float, int, str, JobRecord | None]] = [(added, 0, kind, None) for added, kind in tasks]
    for job in jobs:
        steps.append((job.created, 1, job.spec.worker_type, job))
        if job.end is not None:
            steps.append((job.end, 2, job.spec.worker_type, job))
    waiting: dict[str, deque[float]] = {}
    taken: dict[int, list[float]] = {}
    for moment, kind, worker_type, step in sorted(steps, key=lambda each: each[:2]):
        queue = waiting.setdefault(worker_type, deque())
        if step is None:
            queue.append(moment)
        elif kind == 1:
            taken[step.number] = [queue.popleft() for _ in range(min(step.spec.concurrency, len(queue)))]
        else:
            queue.extend(moment for _ in taken[step.number][len(step.tasks) :])
    return {number: max(moments) for number, moments in taken.items() if moments}


def _free_since(spans: Sequence[tuple[float, float]], moment: float) -> float:
    """Since when a phone had been free that a job was given at this moment; the moment itself when it was not."""
    return next((start for start, end in spans if start <= moment <= end), moment)


def _below_since(steps: Sequence[tuple[float, int]], limit: int | None, moment: float) -> float:
    """Since when there had been fewer initiated jobs than the limit, right before this moment."""
    since = float("-inf")
    if limit is None:
        return since
    at_limit = False
    for time, number in steps:
        if time >= moment:
            break
        if at_limit and number < limit:
            since = time
        at_limit = number >= limit
    return moment if at_limit else since
