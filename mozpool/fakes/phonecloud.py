# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What happens in a simulated cloud of phones: jobs, the phones that they run on, and whatever becomes of both.

:mod:`mozpool.fakes.lambdatest` tells of it over HTTP. Here is also what tests measure: every job with its times, what
must never happen, and since when a phone has been free. All moments are those of the clock's monotonic time.
"""

from __future__ import annotations

import re
import uuid
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from mozpool.errors import BadInput, Conflict, NotFound
from mozpool.fakes.timeline import Later, Span, Timeline

ENDED = frozenset(
    {
        "completed",
        "failed",
        "aborted",
        "cancelled",
        "error",
        "lambda_error",
        "ignored",
        "skipped",
        "stopped",
        "timeout",
    }
)
"""The words for jobs that have ended (wire facts: LambdaTest)."""

FIRST_JOB = 9822
"""The number of the first job."""


@dataclass(frozen=True)
class PhoneSpec:
    """A phone of the account."""

    udid: str
    name: str = "Galaxy A55 5G"
    os: str = "14"

    @property
    def type_os(self) -> str:
        """What ``devices`` of a job are patterns for."""
        return f"{self.name}-{self.os}"


def phone_specs(number: int, name: str = "Galaxy A55 5G", os: str = "14", first: int = 1) -> tuple[PhoneSpec, ...]:
    """So many phones of one type, with UDIDs that look like real ones: ``R5CX0000001`` and so on from ``first``."""
    return tuple(PhoneSpec(f"R5CX{each:07}", name, os) for each in range(first, first + number))


@dataclass(frozen=True)
class Timings:
    """How long things take, in seconds of the cloud; each is drawn by lot."""

    created: Span = (0.5, 2.0)
    """From ``created`` to ``initiated``."""
    initiated: Span = (20.0, 60.0)
    """From the moment at which a job has its phones until it runs."""
    pick_up: Span = (120.0, 160.0)
    """From then until its workers look for tasks. With the two before: about 210 s at most (wire facts)."""
    work: Span = (120.0, 900.0)
    """How long a job works where no Taskcluster says it."""
    finish: Span = (5.0, 20.0)
    """After the work: the phone is rebooted, and the metadata printed."""
    abort: Span = (1.0, 3.0)
    """From the call until the job is aborted."""
    cleanup: Span = (20.0, 60.0)
    """How long a phone is cleaned after a job or a person."""
    faulty: Span = (600.0, 1800.0)
    """For how long a phone that has broken by lot stays so."""


@dataclass(frozen=True)
class Fate:
    """What becomes of a job."""

    ends: str | None = "completed"
    """One of ENDED; None: nothing any more, it stays where it is until somebody stops it."""
    at: Literal["initiated", "running", "worked"] = "worked"
    """When: instead of running, instead of picking up tasks, or after the work."""


@dataclass(frozen=True)
class JobSpec:
    """What ``hyperexecute`` sends."""

    labels: tuple[str, ...]
    worker_type: str
    patterns: tuple[str, ...] = (".*-.*",)
    """Regular expressions, one of which has to fit a phone's type and version as a whole."""
    fixed: str | None = None
    """The UDID of the only phone that will do."""
    concurrency: int = 1
    """How many phones it takes."""
    queue_timeout: float = 600.0
    """Seconds of the cloud that it waits for them; then it ends as ``timeout``, as recorded ones did."""


@dataclass(frozen=True)
class JobRecord:
    """What happened to a job."""

    number: int
    id: str
    spec: JobSpec
    user: str
    status: str
    times: Mapping[str, float]
    """Status → when it got it."""
    held: Mapping[str, float]
    """UDID → since when it had this phone."""
    tasks: Mapping[str, float]
    """Id of a task → when a worker of this job picked it up."""
    remark: str | None

    @property
    def ended(self) -> bool:
        """Whether it has."""
        return self.status in ENDED

    @property
    def created(self) -> float:
        """When it was."""
        return self.times["created"]

    @property
    def end(self) -> float | None:
        """When it ended."""
        return self.times[self.status] if self.ended else None


@dataclass(frozen=True)
class Violation:
    """Something that must not happen."""

    time: float
    kind: Literal["two jobs", "faulty", "in use", "quarantined"]
    device: str
    job: int
    since: float
    """Since when the phone had been so: a launcher can't know what is newer than the answers that it has seen."""


class Workers(Protocol):
    """What a job's workers work for. Called within the timeline's ``settled``."""

    def start_worker(
        self, worker_type: str, worker_id: str, picked_up: Callable[[str], None], done: Callable[[], None]
    ) -> None:
        """A worker looks for a task: ``picked_up`` with its id when it has one, ``done`` at the end in any case."""
        ...

    def worker_gone(self, worker_type: str, worker_id: str) -> None:
        """A worker has ended in the middle of whatever it did."""
        ...

    def quarantined_since(self, worker_type: str, worker_id: str) -> float | None:
        """Since when the worker has been in quarantine; None: it is not."""
        ...


@dataclass
class _Phone:
    spec: PhoneSpec
    word: str = "active"
    in_use_by: str | None = None
    faulty_since: float | None = None
    used_since: float = 0.0
    """Since when a person has it; means something while ``in_use_by`` and no job."""
    job: _Job | None = None
    told: list[tuple[float, str, str | None]] = field(default_factory=list)
    """Since when which word and which user have been true."""
    free: list[tuple[float, bool]] = field(default_factory=list)
    """Since when it has been free, or not."""

    @property
    def status(self) -> str:
        return self.word if self.faulty_since is None else "faulty"


@dataclass(eq=False)
class _Job:
    number: int
    id: str
    spec: JobSpec
    user: str
    fate: Fate
    status: str = "created"
    times: dict[str, float] = field(default_factory=dict)
    held: dict[str, float] = field(default_factory=dict)
    tasks: dict[str, float] = field(default_factory=dict)
    remark: str | None = None
    aborting: bool = False
    phones: list[_Phone] = field(default_factory=list)
    working: set[str] = field(default_factory=set)
    """The phones whose workers have looked for tasks and are not done."""
    undone: int = 0
    """How many of its phones are not done."""
    give_up: Later | None = None

    @property
    def ended(self) -> bool:
        return self.status in ENDED


class PhoneCloud:
    """The phones of one account and the jobs on them. Safe to use from any thread."""

    def __init__(
        self,
        phones: Iterable[PhoneSpec],
        timeline: Timeline,
        *,
        workers: Workers | None = None,
        timings: Timings | None = None,
        odds: Mapping[Fate, float] | None = None,
        faulty_odds: float = 0.0,
        running_word: Literal["running", "in_progress"] = "running",
    ) -> None:
        """``odds``: how probable which fate is for a job that has none from ``script``; the rest is completed.

        ``faulty_odds``: how probable it is that a phone breaks after a job. ``running_word``: what jobs that run are
        called; the real cloud has both words.
        """
        self.timeline = timeline
        self.timings = Timings() if timings is None else timings
        self._workers = workers
        self._odds = dict(odds or {})
        self._faulty_odds = faulty_odds
        self._running_word = running_word
        self._phones = {spec.udid: _Phone(spec) for spec in phones}
        self._jobs: dict[int, _Job] = {}
        self._live: dict[int, _Job] = {}
        self._waiting: list[_Job] = []
        self._script: list[Fate] = []
        self._violations: list[Violation] = []
        with timeline.settled():
            for phone in self._phones.values():
                self._note(phone)

    # What tests do and look at.

    @property
    def phones(self) -> dict[str, str]:
        """UDID → how the phone is, in the cloud's words."""
        with self.timeline.settled():
            return {udid: phone.status for udid, phone in self._phones.items()}

    @property
    def specs(self) -> dict[str, PhoneSpec]:
        """UDID → what phone it is."""
        return {udid: phone.spec for udid, phone in self._phones.items()}

    @property
    def jobs(self) -> list[JobRecord]:
        """All jobs, oldest first."""
        with self.timeline.settled():
            return [_record(job) for job in self._jobs.values()]

    @property
    def violations(self) -> list[Violation]:
        """What happened and must not, oldest first."""
        with self.timeline.settled():
            return self._violations[:]

    def script(self, *fates: Fate) -> None:
        """The next jobs have these fates, in this order."""
        with self.timeline.settled():
            self._script.extend(fates)

    def set_faulty(self, udid: str, faulty: bool = True) -> None:
        """A phone breaks, or is mended. A job that it has goes on."""
        with self.timeline.settled() as now:
            phone = self._phone(udid)
            if faulty is not (phone.faulty_since is not None):
                phone.faulty_since = now if faulty else None
                self._note(phone)
                self._give_phones()

    def occupy(self, udid: str, by: str = "a person") -> None:
        """A person takes a phone by hand. Raises Conflict when it is not free."""
        with self.timeline.settled() as now:
            phone = self._phone(udid)
            if not _free(phone):
                raise Conflict(f"{udid} is {phone.status}")
            phone.word, phone.in_use_by, phone.used_since = "busy", by, now
            self._note(phone)

    def vacate(self, udid: str) -> None:
        """The person gives it back. Raises Conflict when none has it."""
        with self.timeline.settled():
            phone = self._phone(udid)
            if phone.in_use_by is None or phone.job is not None:
                raise Conflict(f"{udid} is {phone.status}")
            self._clean(phone)

    def free_spans(self, udid: str) -> list[tuple[float, float]]:
        """From when until when the phone was active, and no job had it or was meant for it; the last one until now."""
        with self.timeline.settled() as now:
            changes = self._phone(udid).free
            ends = [moment for moment, _ in changes[1:]] + [now]
            return [(moment, end) for (moment, free), end in zip(changes, ends, strict=True) if free and end > moment]

    def initiated(self) -> list[tuple[float, int]]:
        """Since when how many jobs of the account have been created or initiated, oldest first."""
        with self.timeline.settled():
            steps = [(job.times["created"], 1) for job in self._jobs.values()]
            for job in self._jobs.values():
                left = [moment for word, moment in job.times.items() if word not in ("created", "initiated")]
                if left:
                    steps.append((min(left), -1))
        found, number = [], 0
        for moment, step in sorted(steps):
            number += step
            found.append((moment, number))
        return found

    # What the cloud does when it is told to.

    def create(self, spec: JobSpec, user: str) -> JobRecord:
        """Take a job. Raises BadInput when the account has no such phone."""
        with self.timeline.settled() as now:
            if spec.fixed is not None and spec.fixed not in self._phones:
                raise BadInput.value("fixedIP", spec.fixed, "a phone of this account")
            job = _Job(
                number=FIRST_JOB + len(self._jobs),
                id=str(uuid.UUID(int=self.timeline.rng.getrandbits(128), version=4)),
                spec=spec,
                user=user,
                fate=self._next_fate(),
                undone=spec.concurrency,
                times={"created": now},
            )
            if spec.fixed is not None:
                self._judge(job, self._phones[spec.fixed])
            self._jobs[job.number] = self._live[job.number] = job
            self._note_free(spec.fixed)
            self.timeline.after(self.timings.created, lambda: self._initiate(job))
            return _record(job)

    def abort(self, job_id: str, user: str) -> None:
        """Stop a job soon. Raises NotFound, Conflict when it has ended."""
        with self.timeline.settled():
            job = next((each for each in self._jobs.values() if each.id == job_id), None)
            if job is None:
                raise NotFound(f"no job {job_id}")
            if job.ended:
                raise Conflict(f"job {job_id} has ended: {job.status}")
            if not job.aborting:
                job.aborting = True
                self.timeline.after(
                    self.timings.abort, lambda: self._end(job, "aborted", f"job has been aborted by {user}")
                )

    def told(self, age: float = 0.0) -> list[tuple[PhoneSpec, str, str | None]]:
        """Each phone, its status, and who uses it, as it was so many seconds of the cloud ago."""
        with self.timeline.settled() as now:
            moment = now - self.timeline.real(age)
            return [(phone.spec, *_told_at(phone, moment)) for phone in self._phones.values()]

    # What happens by and by, always within the timeline's ``settled``.

    def _next_fate(self) -> Fate:
        if self._script:
            return self._script.pop(0)
        dice = self.timeline.rng.random()
        for fate, probability in self._odds.items():
            dice -= probability
            if dice < 0:
                return fate
        return Fate()

    def _initiate(self, job: _Job) -> None:
        if job.ended:
            return
        self._say(job, "initiated")
        job.give_up = self.timeline.after(job.spec.queue_timeout, lambda: self._end(job, "timeout"))
        self._waiting.append(job)
        self._give_phones()

    def _give_phones(self) -> None:
        """Let jobs that wait have the phones that are free, the oldest first."""
        for job in self._waiting[:]:
            for phone in self._phones.values():
                if len(job.phones) < job.spec.concurrency and _free(phone) and _fits(job.spec, phone.spec):
                    self._hold(job, phone)
            if len(job.phones) == job.spec.concurrency:
                self._waiting.remove(job)
                assert job.give_up is not None
                job.give_up.call_off()
                self.timeline.after(self.timings.initiated, lambda job=job: self._run(job))  # type: ignore[misc]

    def _hold(self, job: _Job, phone: _Phone) -> None:
        if job.spec.fixed is None:
            self._judge(job, phone)
        phone.job = job
        phone.word = "initiated"
        job.phones.append(phone)
        job.held[phone.spec.udid] = self.timeline.now
        self._note(phone)

    def _run(self, job: _Job) -> None:
        if job.ended:
            return
        if job.fate.at == "initiated":
            if job.fate.ends is not None:
                self._end(job, job.fate.ends)
            return
        self._say(job, self._running_word)
        for phone in job.phones:
            phone.word, phone.in_use_by = "busy", job.user
            self._note(phone)
            self.timeline.after(
                self.timings.pick_up,
                lambda udid=phone.spec.udid: self._look_for_task(job, udid),  # type: ignore[misc]
            )

    def _look_for_task(self, job: _Job, udid: str) -> None:
        if job.ended:
            return
        if job.fate.at == "running":
            if job.fate.ends is not None:
                self._end(job, job.fate.ends)
            return
        if self._workers is None:
            self.timeline.after(self.timings.work, lambda: self._worked(job, udid))
            return
        job.working.add(udid)

        def picked_up(task: str) -> None:
            job.tasks[task] = self.timeline.now

        self._workers.start_worker(job.spec.worker_type, udid, picked_up, lambda: self._worked(job, udid))

    def _worked(self, job: _Job, udid: str) -> None:
        job.working.discard(udid)
        job.undone -= 1
        if job.undone == 0 and job.fate.ends is not None:
            ends = job.fate.ends
            self.timeline.after(self.timings.finish, lambda: self._end(job, ends))

    def _end(self, job: _Job, status: str, remark: str | None = None) -> None:
        if job.ended:
            return
        job.remark = remark
        self._say(job, status)
        del self._live[job.number]
        if job in self._waiting:
            self._waiting.remove(job)
        if job.give_up is not None:
            job.give_up.call_off()
        for udid in sorted(job.working):
            assert self._workers is not None
            self._workers.worker_gone(job.spec.worker_type, udid)
        for phone in job.phones:
            phone.job = None
            self._clean(phone)
        self._note_free(job.spec.fixed)

    def _clean(self, phone: _Phone) -> None:
        phone.word, phone.in_use_by = "cleanup", None
        self._note(phone)
        self.timeline.after(self.timings.cleanup, lambda: self._cleaned(phone))

    def _cleaned(self, phone: _Phone) -> None:
        phone.word = "active"
        if self._faulty_odds and self.timeline.rng.random() < self._faulty_odds:
            phone.faulty_since = self.timeline.now
            self.timeline.after(self.timings.faulty, lambda: self.set_faulty(phone.spec.udid, False))
        self._note(phone)
        self._give_phones()

    def _say(self, job: _Job, status: str) -> None:
        job.status = status
        job.times[status] = self.timeline.now

    def _judge(self, job: _Job, phone: _Phone) -> None:
        """Note what must not happen, when a job is about to be put on a phone."""
        udid = phone.spec.udid
        since: dict[Literal["two jobs", "faulty", "in use", "quarantined"], float | None] = {
            "two jobs": min(
                (other.times["created"] for other in self._live.values() if _has(other, udid)), default=None
            ),
            "faulty": phone.faulty_since,
            "in use": phone.used_since if phone.in_use_by is not None and phone.job is None else None,
            "quarantined": None
            if self._workers is None
            else self._workers.quarantined_since(job.spec.worker_type, udid),
        }
        for kind, moment in since.items():
            if moment is not None:
                self._violations.append(Violation(self.timeline.now, kind, udid, job.number, moment))

    def _note(self, phone: _Phone) -> None:
        phone.told.append((self.timeline.now, phone.status, phone.in_use_by))
        self._note_free(phone.spec.udid)

    def _note_free(self, udid: str | None) -> None:
        if udid is None:
            return
        phone = self._phones[udid]
        free = _free(phone) and not any(job.spec.fixed == udid for job in self._live.values())
        if not phone.free or phone.free[-1][1] is not free:
            phone.free.append((self.timeline.now, free))

    def _phone(self, udid: str) -> _Phone:
        try:
            return self._phones[udid]
        except KeyError:
            raise NotFound(f"no phone {udid}") from None


def _free(phone: _Phone) -> bool:
    return phone.status == "active"


def _fits(spec: JobSpec, phone: PhoneSpec) -> bool:
    if spec.fixed is not None:
        return spec.fixed == phone.udid
    return any(re.fullmatch(pattern, phone.type_os) for pattern in spec.patterns)


def _has(job: _Job, udid: str) -> bool:
    return job.spec.fixed == udid or udid in job.held


def _told_at(phone: _Phone, moment: float) -> tuple[str, str | None]:
    place = bisect_right(phone.told, moment, key=lambda each: each[0])
    _, status, user = phone.told[max(place - 1, 0)]
    return status, user


def _record(job: _Job) -> JobRecord:
    return JobRecord(
        number=job.number,
        id=job.id,
        spec=job.spec,
        user=job.user,
        status=job.status,
        times=dict(job.times),
        held=dict(job.held),
        tasks=dict(job.tasks),
        remark=job.remark,
    )
