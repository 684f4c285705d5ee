# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""How projects, queues, phones and jobs are now, and how jobs went: what ``mld status`` and ``mld report`` show.

Nothing is written. What the cloud or Taskcluster does not tell is said to be unknown, and all else is shown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from mozpool.bmm.backends.lambdatest import Phone as CloudPhone
from mozpool.bmm.backends.lambdatest.account import FAULTY, FREE
from mozpool.bmm.projects import Project, Projects
from mozpool.clock import Clock, Deadline
from mozpool.config import LambdaTest
from mozpool.db import hosted_jobs, launches
from mozpool.db.engine import Database
from mozpool.errors import LaneError
from mozpool.launcher import register
from mozpool.launcher.queues import Queue, QueueError
from mozpool.launcher.service import CLOUD_LIMIT, LONGEST_PAUSE, Cloud, Queues, demand_of, left_alone

ABREAST = 8
"""How many queues are asked at a time."""


@dataclass(frozen=True)
class ProjectStatus:
    """How a project is."""

    name: str
    takes_part: bool
    lacks: tuple[str, ...]
    pending: int | None
    """None: unknown."""
    on_the_way: int | None
    running: int
    """Jobs that the cloud runs."""
    states: Mapping[str, int]
    """State in the pool, or ``not in the pool`` → how many of its phones."""
    quarantined: tuple[str, ...]
    trouble: str | None
    """Why its queue is unknown."""


@dataclass(frozen=True)
class Status:
    """All there is to say."""

    projects: Sequence[ProjectStatus]
    cloud_trouble: str | None
    """Why nothing is known of the cloud."""
    cloud_states: Mapping[str, int]
    """The cloud's word → how many phones."""
    initiated: int | None
    max_initiated: int
    stuck: Mapping[str, str] = field(default_factory=dict)
    """Phone → the cloud's word for it, which is busy without a job of this pool."""
    faulty: Sequence[str] = ()
    missing: Sequence[str] = ()
    """Phones of the projects file that the cloud does not have."""
    left_alone: Mapping[str, datetime] = field(default_factory=dict)
    """Phone → until when nothing is started on it, after failures."""


def status(
    settings: LambdaTest,
    projects: Projects,
    database: Database,
    cloud: Cloud,
    queues: Queues,
    clock: Clock,
    speed: float = 1.0,
) -> Status:
    """How everything is now. Raises DatabaseAway."""
    found, troubles = _look(queues, projects.taking_part)
    phones, initiated, own, cloud_trouble = _ask(cloud, clock)
    now = clock.now()
    with database.read() as conn:
        known = launches.phones(conn)
        asked = launches.asked(conn)
        running = hosted_jobs.open_ones(conn)
        failures = launches.failed_starts(conn, now - timedelta(seconds=2 * LONGEST_PAUSE))
    rows = []
    for project in projects.projects.values():
        queue = found.get(project.name)
        demand = None if queue is None else demand_of(project, queue, asked, now, settings.pick_up / speed)
        rows.append(
            ProjectStatus(
                name=project.name,
                takes_part=project.takes_part,
                lacks=(("it is disabled",) if project.disabled else ()) + project.lacks,
                pending=None if demand is None else demand.pending,
                on_the_way=None if demand is None else demand.on_the_way,
                running=sum(job.project == project.name and job.running is not None for job in running),
                states=_states(project, known),
                quarantined=() if demand is None else tuple(sorted(demand.quarantined)),
                trouble=troubles.get(project.name),
            )
        )
    busy = {job.device for job in running} | own
    return Status(
        projects=rows,
        cloud_trouble=cloud_trouble,
        cloud_states=dict(sorted(Counter(phone.status for phone in phones.values()).items())),
        initiated=initiated,
        max_initiated=settings.max_initiated,
        stuck={
            udid: phone.status
            for udid, phone in sorted(phones.items())
            if phone.status not in (FREE, FAULTY)
            and udid not in busy
            and not (udid in known and known[udid].state in hosted_jobs.BUSY_STATES)
        },
        faulty=sorted(udid for udid, phone in phones.items() if phone.status == FAULTY),
        missing=[] if cloud_trouble else register.missing(projects, phones),
        left_alone=left_alone(failures, now, speed),
    )


def _states(project: Project, known: Mapping[str, launches.Phone]) -> dict[str, int]:
    states = Counter(known[udid].state if udid in known else "not in the pool" for udid in project.devices)
    return dict(sorted(states.items()))


def _look(queues: Queues, projects: Sequence[Project]) -> tuple[dict[str, Queue], dict[str, str]]:
    """Queues by project, and why others are unknown."""
    found: dict[str, Queue] = {}
    troubles: dict[str, str] = {}

    def ask(project: Project) -> None:
        try:
            found[project.name] = queues.look(str(project.worker_type))
        except QueueError as error:
            troubles[project.name] = str(error)

    with ThreadPoolExecutor(ABREAST) as pool:
        list(pool.map(ask, projects))
    return found, troubles


def _ask(cloud: Cloud, clock: Clock) -> tuple[Mapping[str, CloudPhone], int | None, set[str], str | None]:
    """The cloud's phones, how many jobs are initiated, which phones have a job of ours, and what went wrong."""
    deadline = Deadline(clock, CLOUD_LIMIT)
    try:
        phones, initiated = cloud.phones(deadline), cloud.initiated(deadline)
        own = {label for each in cloud.own_jobs(deadline) if not each.job.ended for label in each.job.labels}
    except LaneError as error:
        return {}, None, set(), error.reason
    return phones, initiated, own, None


# How jobs went

STARTING, RUNNING, STOPPING, CLEANUP, PHONE = PHASES = ("starting", "running", "stopping", "cleanup", "phone")
_FAILED_STATES = {"failed_job_stopping": STOPPING, "failed_job_cleanup": CLEANUP, "failed_phone": PHONE}


@dataclass(frozen=True)
class ProjectReport:
    """How the jobs of a project went."""

    name: str
    jobs: int
    """Those that have ended."""
    succeeded: int
    given_back: int
    """Those that were not wanted any more: neither a success nor a failure."""

    @property
    def rate(self) -> float | None:
        """How many of those that were to succeed have; None: there were none."""
        counted = self.jobs - self.given_back
        return self.succeeded / counted if counted else None


@dataclass(frozen=True)
class Report:
    """How jobs went, and how many phones there are."""

    start: datetime
    end: datetime
    projects: Sequence[ProjectReport]
    failures: Mapping[str, Mapping[str, int]]
    """Phone → phase → how often it failed; the phones with the most failures first."""
    reasons: Mapping[str, int]
    groups: Mapping[str, int]
    """Device group → how many phones."""
    phones: int
    """Different ones in all groups."""
    contract_device_count: int | None

    @property
    def by_phase(self) -> dict[str, int]:
        """Phase → failures."""
        return {phase: sum(each.get(phase, 0) for each in self.failures.values()) for phase in PHASES}


def report(projects: Projects, database: Database, start: datetime, end: datetime) -> Report:
    """How the jobs went that were ordered in a span of time. Raises DatabaseAway."""
    with database.read() as conn:
        jobs = [job for job in hosted_jobs.between(conn, start, end) if job.ended is not None]
        states = launches.states_entered(conn, list(_FAILED_STATES), start, end)
    failures: dict[str, Counter[str]] = {}
    reasons: Counter[str] = Counter()
    rows = []
    for name in dict.fromkeys([*projects.projects, *sorted({job.project for job in jobs})]):
        mine = [job for job in jobs if job.project == name]
        rows.append(
            ProjectReport(
                name,
                len(mine),
                sum(_succeeded(job) for job in mine),
                sum(job.reason in launches.GIVEN_BACK for job in mine),
            )
        )
    for job in jobs:
        if not _succeeded(job) and job.reason not in launches.GIVEN_BACK:
            phase = STARTING if job.running is None else RUNNING
            failures.setdefault(job.device, Counter())[phase] += 1
            reasons[job.reason or f"it ended as {job.status}"] += 1
    for device, state in states:
        failures.setdefault(device, Counter())[_FAILED_STATES[state]] += 1
    worst = sorted(failures.items(), key=lambda item: (-item[1].total(), item[0]))
    groups = {name: len(udids) for name, udids in projects.groups.items()}
    return Report(
        start=start,
        end=end,
        projects=rows,
        failures={device: dict(counts) for device, counts in worst},
        reasons=dict(reasons.most_common()),
        groups=groups,
        phones=len({udid for udids in projects.groups.values() for udid in udids}),
        contract_device_count=projects.contract_device_count,
    )


def _succeeded(job: hosted_jobs.Job) -> bool:
    return job.running is not None and job.reason is None and job.status == "completed"
