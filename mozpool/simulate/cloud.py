# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Somebody's cloud with phones, in which jobs run, and BMM's backend for it.

What a job or a phone is like at some moment follows from when the job was created, begins, ends and was stopped. So an
answer that is used again for some seconds is simply what was true when it was fetched.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mozpool.bmm.interfaces import HostedJob, HostedStatus, JobOrder, Launcher, Target
from mozpool.clock import Deadline
from mozpool.errors import HardwareError, LaneError, NotYet
from mozpool.simulate.faults import Faults
from mozpool.simulate.scheduler import Scheduler

ACCOUNT = "cloud:account"
"""The lane of all that only looks or stops; starts have one of their own."""

ANSWER_AGE = 8.0
"""Seconds for which an answer is used again."""

START_SPACING = 2.0
"""Seconds from one start to the next."""

CLEANUP = (5.0, 20.0)
"""Seconds that a phone is cleaned after a job."""

DOWN = 10.0
"""Seconds until a cloud that does not answer is given up."""


@dataclass
class CloudJob:
    """A job, of one phone or several."""

    number: int
    label: int
    """The request that it is for."""
    phones: tuple[str, ...]
    created: float
    begins: float
    ends: float
    clean: float
    """When its phones are clean again."""
    stopped: bool = False

    def runs(self, now: float) -> bool:
        """Whether it runs."""
        return self.begins <= now < self.ends

    def status(self, now: float) -> str:
        """The cloud's word for how it is."""
        if now >= self.ends:
            return "stopped" if self.stopped else "completed"
        return "running" if self.runs(now) else "initiated"


class Cloud:
    """The account's phones and jobs."""

    def __init__(self, phones: Sequence[str], *, scheduler: Scheduler, faults: Faults, seed: str) -> None:
        """``phones`` are their names."""
        self.phones = phones
        self.jobs: list[CloudJob] = []
        self.faulty: dict[str, float] = {}
        """Phone → until when it does not work."""
        self.down_until = 0.0
        self.on_start: Callable[[str, str | None], None] = lambda phone, problem: None
        """Told of each phone that a job is started on, and of what is wrong with that."""
        self._scheduler = scheduler
        self._faults = faults
        self._rng = random.Random(f"{seed}:cloud")
        self._numbers = itertools.count(1)
        self._next_start = 0.0
        self._fetched = -math.inf

    def job_on(self, phone: str, now: float) -> CloudJob | None:
        """The job that is on a phone, be it that it is only on its way."""
        return next((job for job in self.jobs if phone in job.phones and job.created <= now < job.ends), None)

    def word(self, phone: str, now: float) -> str:
        """The cloud's word for how a phone is."""
        if self.faulty.get(phone, 0.0) > now:
            return "faulty"
        job = self.job_on(phone, now)
        if job is not None:
            return "busy" if job.runs(now) else "initiated"
        cleaned = any(phone in job.phones and job.ends <= now < job.clean for job in self.jobs)
        return "cleanup" if cleaned else "active"

    def fetch(self, device: str, deadline: Deadline, *, fresh: bool) -> float:
        """Ask the cloud, if no answer is there that can be used again; when what is known now was true.

        Raises LaneError.
        """
        now = self._scheduler.time
        if not fresh and now - self._fetched < ANSWER_AGE:
            return self._fetched
        if self._faults.happens("cloud_down", ACCOUNT):
            self.down_until = now + self._faults.uniform(5.0, 600.0)
        if self.down_until > now:
            self._scheduler.sleep(deadline.remaining(DOWN))
            raise LaneError(device, "cloud", "no answer", culprit=ACCOUNT)
        self._scheduler.sleep(deadline.remaining(self._rng.uniform(0.1, 0.6)))
        self._fetched = self._scheduler.time
        return self._fetched

    def wait_for_turn(self) -> None:
        """Raise NotYet until the account allows the next start."""
        now = self._scheduler.time
        if now < self._next_start:
            raise NotYet(self._next_start - now)
        self._next_start = now + START_SPACING

    def create(self, order: JobOrder) -> None:
        """A job comes into being."""
        now, rng, faults = self._scheduler.time, self._rng, self._faults
        for phone in order.devices:
            other = self.job_on(phone, now)
            self.on_start(phone, None if other is None else f"job {other.number} is on it")
        begins = now + rng.uniform(20.0, 60.0)
        ends = begins + rng.uniform(30.0, 400.0)
        first = order.devices[0]
        if faults.happens("job_stuck", first):
            begins = ends = math.inf
        elif faults.happens("job_short", first):
            begins = ends = now + rng.uniform(0.0, 5.0)
        job = CloudJob(next(self._numbers), order.request_id, order.devices, now, begins, ends, ends)
        job.clean += rng.uniform(*CLEANUP)
        if faults.happens("phone_faulty", first):
            self.faulty[first] = job.clean + faults.uniform(10.0, 3600.0)
        self.jobs.append(job)

    def stop(self, phone: str) -> bool:
        """Stop what is on a phone, which takes some seconds; whether nothing was."""
        now = self._scheduler.time
        job = self.job_on(phone, now)
        if job is None:
            return True
        if not job.stopped:
            job.stopped = True
            job.ends = min(job.ends, now + self._rng.uniform(0.5, 5.0))
            job.begins = min(job.begins, job.ends)
            job.clean = job.ends + self._rng.uniform(*CLEANUP)
        return False

    def mend(self) -> None:
        """All works from now on."""
        self.down_until = 0.0
        self.faulty.clear()


class SimulatedLauncher(Launcher):
    """Starts that hang or fail, jobs that are there all the same, and answers that are old."""

    def __init__(self, cloud: Cloud, begin: Callable[[str, str], None], scheduler: Scheduler, faults: Faults) -> None:
        """``begin(device, what)`` is called before something is done to a device."""
        self._cloud = cloud
        self._begin = begin
        self._scheduler = scheduler
        self._faults = faults

    def lane(self, device: Target, *, start: bool) -> str:
        """One account."""
        return f"{ACCOUNT}:start" if start else ACCOUNT

    def status(self, device: Target, deadline: Deadline) -> HostedStatus:
        """As the last answer has it."""
        self._begin(device.name, "status")
        word = self._cloud.word(device.name, self._cloud.fetch(device.name, deadline, fresh=False))
        return HostedStatus(word, word == "active", word == "faulty")

    def start(self, device: Target, order: JobOrder, deadline: Deadline) -> None:
        """Look for it, and start it."""
        cloud, faults = self._cloud, self._faults
        now = cloud.fetch(device.name, deadline, fresh=True)
        if any(job.label == order.request_id and device.name in job.phones and now < job.ends for job in cloud.jobs):
            return
        taken = next((phone for phone in order.devices if cloud.word(phone, now) != "active"), None)
        if taken is not None:
            raise HardwareError(device.name, "start", f"{taken} is {cloud.word(taken, now)}")
        cloud.wait_for_turn()
        if faults.happens("start_hangs", device.name):
            self._scheduler.sleep(deadline.remaining() - 0.5)
            if faults.uniform(0.0, 1.0) < 0.5 and not deadline.expired:
                cloud.create(order)
            raise HardwareError(device.name, "start", "no answer in time")
        self._scheduler.sleep(deadline.remaining(1.5))
        if deadline.expired:
            raise HardwareError(device.name, "start", "no time is left")
        if faults.happens("start_fails", device.name):
            if faults.uniform(0.0, 1.0) < 0.5:
                cloud.create(order)
            raise HardwareError(device.name, "start", "exit code 1")
        cloud.create(order)

    def look(self, device: Target, order: JobOrder, deadline: Deadline) -> HostedJob | None:
        """As the last answer has it."""
        now = self._cloud.fetch(device.name, deadline, fresh=False)
        for job in reversed(self._cloud.jobs):
            if job.label == order.request_id and device.name in job.phones and job.created <= now:
                id_ = f"job-{job.number:06}"
                return HostedJob(
                    job.number, id_, job.status(now), job.runs(now), now >= job.ends, f"https://cloud/job?jobId={id_}"
                )
        return None

    def stop(self, device: Target, deadline: Deadline) -> bool:
        """By a fresh answer."""
        self._cloud.fetch(device.name, deadline, fresh=True)
        if deadline.expired:
            raise HardwareError(device.name, "stop", "no time is left")
        return self._cloud.stop(device.name)

    def test(self, lane: str, deadline: Deadline) -> None:
        """Ask."""
        self._cloud.fetch(lane, deadline, fresh=True)
