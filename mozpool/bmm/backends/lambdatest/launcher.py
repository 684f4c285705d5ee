# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Starts, watches and stops HyperExecute jobs on phones, and tells how the phones are.

A job is started by LambdaTest's own program ``hyperexecute`` and can't be given an identity of our choice. It carries
the labels ``tcdp,PROJECT,UDID[,UDID...],LABEL-REQUEST`` instead, and whoever wants it started looks for them first.
"""

from __future__ import annotations

import logging
import math
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from mozpool.bmm import program, projects
from mozpool.bmm.backends.lambdatest.account import FAULTY, FREE, INITIATED, Account, Job, Phone, account_of
from mozpool.bmm.backends.lambdatest.jobdir import DirectoryError, JobDirectories, Wanted, seen_by
from mozpool.bmm.interfaces import BackendContext, HostedJob, HostedStatus, JobOrder, Launcher, Probe, Target
from mozpool.bmm.netio import shown
from mozpool.clock import Deadline, Event
from mozpool.errors import HardwareError, NotYet, OwnFault
from mozpool.lease import no_leash

log = logging.getLogger(__name__)

PROGRAM_LIMIT = 120.0
"""Seconds for one run of hyperexecute."""

ENDED_WITHIN = 3.0
"""Seconds that a run of hyperexecute that is killed may take to end."""

SETTLING = 5.0
"""Seconds after the end of a run within which the cloud may not have listed the job yet that it created."""

VISIBLE = 30.0
"""The same after a run that said that all went well: then nothing is started anew."""

FULL_PAUSE = 4.0
BUSY_PAUSE = 1.0
"""Seconds until the next attempt where too many jobs are initiated, or too many runs under way."""

REMEMBERED = 3600.0
"""Seconds for which a run that has ended is remembered."""

LINES = 200
"""How many lines of a run's output come into the devices' logs."""

_SHOWN = 300
START = "job start"
ACCOUNT = "LambdaTest"
"""What the messages of calls name that are about no device."""

_LABEL = "tcdp"
_WORD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class OwnJob:
    """A job that a server of this pool has started."""

    job: Job
    request_id: int


@dataclass
class _Run:
    """One run of hyperexecute, for one order."""

    devices: tuple[str, ...]
    before: frozenset[int]
    """Numbers of the order's earlier jobs, which have ended."""
    over: Event
    """Set when it has ended."""
    unwanted: bool = False
    ended: float = math.inf
    """When (monotonic)."""
    failure: str | None = None


class LambdaTestLauncher(Launcher):
    """Jobs of the account of ``[lambdatest]``, for the projects of its file."""

    def __init__(self, context: BackendContext) -> None:
        """Raises OwnFault without credentials."""
        self._settings = settings = context.lambdatest
        self._clock = context.clock
        self._speed = context.speed
        self._say = context.say
        self._lease = context.lease
        self.account: Account = account_of(context)
        self._directories = JobDirectories(settings, context.clock)
        self._own = re.compile(re.escape(settings.label) + r"-([0-9]{1,18})")
        self._lock = context.clock.lock()
        self._runs: dict[int, _Run] = {}
        self._slots: dict[int, float] = {}
        """Request id → when (monotonic) its start is due: the account's starts one after the other."""
        self._spacing = settings.start_spacing / context.speed
        self._last_turn = self._last_start = -math.inf
        self._born = context.clock.monotonic()
        self._refusal: str | None = None
        """Why nothing is started any more."""
        self._loaded: tuple[tuple[int, int, int], projects.Projects] | None = None

    def lane(self, device: Target, *, start: bool) -> str:
        """``lambdatest:USER@HOST`` and, for starts, ``:start`` behind it."""
        return f"lambdatest:{self.account.place}{':start' if start else ''}"

    def status(self, device: Target, deadline: Deadline) -> HostedStatus:
        """As the account's list of phones says; one that a job is about to use is not free."""
        return _status(self.account, device.name, deadline)

    def start(self, device: Target, order: JobOrder, deadline: Deadline) -> None:
        """Run hyperexecute for the order, in a thread of its own. Raises as Launcher does."""
        wanted = self._wanted(device.name, order)
        executable = self._executable(device.name)
        with self._lock:
            if self._is_running(order.request_id):
                return
            self._have_room(())
            self._take_turn(order.request_id)
        try:
            self._start(device.name, order, wanted, executable, deadline)
        finally:
            with self._lock:
                self._slots.pop(order.request_id, None)

    def _start(self, device: str, order: JobOrder, wanted: Wanted, executable: str, deadline: Deadline) -> None:
        since = self.account.ask_anew()
        jobs = self.account.jobs(device, START, deadline, since)
        own = [job for job in jobs if self._is_of(job, order.request_id, device)]
        if any(not job.ended for job in own) or self._is_coming(order.request_id, own):
            return
        for job in _on(order.devices, jobs):
            reason = f"it is busy: job {job.number} ({', '.join(job.labels)[:100]}) is {job.status}"
            raise HardwareError(device, START, reason)
        phones = self.account.phones(device, START, deadline, since)
        kinds = sorted({self._free_phone(device, name, phones).type_os for name in order.devices})
        if len(kinds) > 1:
            reason = f"a job on several phones needs phones of one kind, and these are {', '.join(kinds)}"
            raise HardwareError(device, START, reason)
        wanted = replace(wanted, type_os=kinds[0])
        run = _Run(order.devices, frozenset(job.number for job in own), self._clock.event())
        with self._lock:
            if self._is_running(order.request_id):
                return
            self._have_room(jobs)
            # Turns are spaced, but how long the cloud took to answer differs.
            self._last_start = begin = max(self._clock.monotonic(), self._last_start + self._spacing)
            self._runs[order.request_id] = run
        try:
            self._directories.clean()
            directory = self._directories.make(wanted, deadline)
        except BaseException as error:
            with self._lock:
                self._runs.pop(order.request_id, None)
            run.over.set()
            if isinstance(error, DirectoryError):
                raise OwnFault(device, START, str(error)) from error
            raise
        self._clock.sleep(begin - self._clock.monotonic())
        labels = ",".join((_LABEL, order.project, *order.devices, wanted.name))
        command = (executable, "--no-track", "--labels", labels, "--exclude-external-binaries")
        self._clock.start_thread(lambda: self._run(run, command, directory, wanted), f"hyperexecute {wanted.name}")

    def look(self, device: Target, order: JobOrder, deadline: Deadline) -> HostedJob | None:
        """By its labels; what is not in the newest lists may be in a longer one, if nobody here remembers its start.

        Raises as Launcher does.
        """
        operation = "job status"
        with self._lock:
            run = self._runs.get(order.request_id)
        since = None
        if run is not None and run.failure is not None:
            since = run.ended + SETTLING / self._speed
            if self._clock.monotonic() < since:
                return None  # it may have created the job before it failed
        jobs = self.account.jobs(device.name, operation, deadline, since)
        found = self._find(jobs, device.name, order, run)
        if found is None and (run is None or self._clock.monotonic() > run.ended + VISIBLE / self._speed):
            found = self._find(self.account.history(device.name, operation, deadline), device.name, order, run)
        if found is None and run is not None and run.failure is not None:
            raise HardwareError(device.name, START, run.failure)
        return found

    def stop(self, device: Target, deadline: Deadline) -> bool:
        """End the runs of hyperexecute for it, and its jobs. Raises as Launcher does."""
        operation = "job stop"
        with self._lock:
            runs = {number: run for number, run in self._runs.items() if device.name in run.devices}
            for run in runs.values():
                run.unwanted = True
        for run in runs.values():
            self._clock.wait(run.over, deadline.remaining(ENDED_WITHIN))
        left = self._own_on(device.name, operation, deadline)
        if left and self._settings.stop_path:
            for job in left:
                problem = self.account.stop(device.name, operation, job, deadline)
                self._say(device.name, f"job {job.number} is to stop{f': the cloud {problem}' if problem else ''}")
            left = self._own_on(device.name, operation, deadline)
        settled = self._clock.monotonic() - SETTLING / self._speed
        if left or any(run.ended > settled for run in runs.values()):
            return False
        with self._lock:
            for number, run in runs.items():
                if self._runs.get(number) is run:
                    del self._runs[number]
        return True

    def test(self, lane: str, deadline: Deadline) -> None:
        """Ask for the account's phones. Raises LaneError."""
        self.account.phones(lane, "communication test", deadline, self._clock.monotonic())

    def finish(self, deadline: Deadline) -> None:
        """Let the runs of hyperexecute end by the deadline, kill those that have not, and remove what is temporary."""
        self.refuse("this server stops")
        with self._lock:
            runs = list(self._runs.values())
        for run in runs:
            self._clock.wait(run.over, deadline.remaining())
        for run in runs:
            run.unwanted = True
        end = Deadline(self._clock, ENDED_WITHIN)
        for run in runs:
            self._clock.wait(run.over, end.remaining())
        self._directories.close()

    def refuse(self, reason: str) -> None:
        """Start nothing more; devices that are to run a job wait."""
        with self._lock:
            self._refusal = reason

    # For the account as a whole

    def phones(self, deadline: Deadline) -> Mapping[str, Phone]:
        """All phones of the account by UDID, as they were some seconds ago. Raises LaneError."""
        return self.account.phones(ACCOUNT, "phone status", deadline)

    def initiated(self, deadline: Deadline) -> int:
        """How many jobs of the whole account, whoever started them, are created or initiated. Raises LaneError."""
        return _initiated(self.account.jobs(ACCOUNT, "job status", deadline))

    def own_jobs(self, deadline: Deadline) -> tuple[OwnJob, ...]:
        """This pool's jobs: all that have not ended, and the last ones that have. Raises LaneError."""
        return tuple(
            OwnJob(job, request_id)
            for job in self.account.jobs(ACCOUNT, "job status", deadline)
            if (request_id := self._request_of(job)) is not None
        )

    def stop_job(self, job: Job, deadline: Deadline) -> str | None:
        """Ask for the end of a job of this pool that nobody wants; what is wrong if the cloud will not, or None.

        Raises LaneError, and OwnFault for a job of somebody else.
        """
        if self._request_of(job) is None:
            raise OwnFault(ACCOUNT, "job stop", f"job {job.number} is not one of this pool's")
        return self.account.stop(ACCOUNT, "job stop", job, deadline) if self._settings.stop_path else None

    # What is looked for

    def _request_of(self, job: Job) -> int | None:
        """The request that a job of this pool is for."""
        return next((int(match[1]) for label in job.labels if (match := self._own.fullmatch(label))), None)

    def _is_of(self, job: Job, request_id: int, device: str) -> bool:
        return f"{self._settings.label}-{request_id}" in job.labels and device in job.labels

    def _own_on(self, device: str, operation: str, deadline: Deadline) -> list[Job]:
        """This pool's jobs on a device that have not ended, as it is now."""
        jobs = self.account.jobs(device, operation, deadline, self._clock.monotonic())
        return [job for job in _on((device,), jobs) if self._request_of(job) is not None]

    def _find(self, jobs: Iterable[Job], device: str, order: JobOrder, run: _Run | None) -> HostedJob | None:
        """The order's job: the one that has not ended, else the newest; not those from before its start here."""
        before = run.before if run is not None else frozenset()
        own = [job for job in jobs if self._is_of(job, order.request_id, device) and job.number not in before]
        if not own:
            return None
        job = max(own, key=lambda job: (not job.ended, job.number))
        url = self._settings.job_page.replace("{id}", job.id) or None
        return HostedJob(job.number, job.id, job.status, runs=job.runs, ended=job.ended, url=url)

    def _free_phone(self, device: str, name: str, phones: Mapping[str, Phone]) -> Phone:
        phone = _phone(self.account, device, START, name, phones)
        if phone.status != FREE:
            of = "it" if name == device else name
            raise HardwareError(device, START, f"{of} is busy: its status is {phone.status}")
        return phone

    # Whether it is time

    def _is_running(self, request_id: int) -> bool:
        """Whether its start is under way. Raises NotYet when that failed just now; it may have created the job."""
        run = self._runs.get(request_id)
        if run is None:
            return False
        if run.ended == math.inf:
            return True
        if run.failure is not None:
            self._wait_until(run.ended + SETTLING / self._speed)
        return False

    def _is_coming(self, request_id: int, own: Iterable[Job]) -> bool:
        """Whether hyperexecute has just said that it created a job, which the cloud does not list yet."""
        with self._lock:
            run = self._runs.get(request_id)
        if run is None or run.failure is not None or any(job.number not in run.before for job in own):
            return False
        return self._clock.monotonic() < run.ended + VISIBLE / self._speed

    def _have_room(self, jobs: Iterable[Job]) -> None:
        """Raises NotYet for too many runs, or too many initiated jobs among these and those of our runs, OwnFault."""
        if self._refusal is not None:
            raise OwnFault(ACCOUNT, START, self._refusal)
        under_way = {number for number, run in self._runs.items() if run.ended == math.inf}
        if len(under_way) >= self._settings.max_starting:
            raise NotYet(BUSY_PAUSE / self._speed)
        jobs = tuple(jobs)
        unlisted = under_way - {self._request_of(job) for job in jobs}
        if _initiated(jobs) + len(unlisted) >= self._settings.max_initiated:
            raise NotYet(FULL_PAUSE / self._speed)

    def _take_turn(self, request_id: int) -> None:
        """One start after the other, in the order in which they were first asked for. Raises NotYet."""
        now = self._clock.monotonic()
        # What another process of this server, or a killed one, has started just now is in the cloud's lists by then.
        earliest = max(self._last_turn + self._spacing, self._born + SETTLING / self._speed)
        missed = now - SETTLING / self._speed
        self._slots = {other: due for other, due in self._slots.items() if due > missed}
        due = self._slots.get(request_id)
        if due is None or due + self._spacing <= now < earliest:
            others = (slot + self._spacing for other, slot in self._slots.items() if other != request_id)
            self._slots[request_id] = due = max(now, earliest, *others)
        self._wait_until(max(due, earliest))
        # Who comes a little late for its turn does not put off all others.
        self._last_turn = due if now - due < self._spacing / 2 else now

    def _wait_until(self, moment: float) -> None:
        left = moment - self._clock.monotonic()
        if left > 0:
            raise NotYet(left)

    # What is started

    def _wanted(self, device: str, order: JobOrder) -> Wanted:
        """What the project's job needs. Raises HardwareError, OwnFault."""
        if not order.devices or device not in order.devices:
            raise HardwareError(device, START, f"its job is ordered for {', '.join(order.devices) or 'no phone'}")
        for word in (order.project, *order.devices):
            if not _WORD.fullmatch(word):
                raise HardwareError(
                    device, START, f"{shown(word)} can't be a label: it is no word of A-Z a-z 0-9 . _ -"
                )
        project = self._projects(device).projects.get(order.project)
        if project is None:
            raise OwnFault(device, START, f"{self._settings.projects} has no project {order.project}")
        values = {
            "TASKCLUSTER_CLIENT_ID": project.client_id,
            "TC_WORKER_TYPE": project.worker_type,
            "USER_SCRIPTS_VERSION": project.user_scripts_version,
            f"token ({project.token_variable} in the environment)": project.token,
        }
        for name, value in values.items():
            if not value:
                raise OwnFault(device, START, f"project {order.project} has no {name}")
        return Wanted(
            name=f"{self._settings.label}-{order.request_id}",
            client_id=str(project.client_id),
            token=str(project.token),
            worker_type=str(project.worker_type),
            version=str(project.user_scripts_version),
            devices=order.devices,
            type_os="",
            root_url=self._settings.taskcluster,
            provisioner=self._settings.provisioner,
        )

    def _projects(self, device: str) -> projects.Projects:
        """The file of the projects, read anew when it has changed. Raises OwnFault."""
        path = self._settings.projects
        if path is None:
            raise OwnFault(device, START, "[lambdatest] projects is not set")
        try:
            found = os.stat(path)
            stamp = (found.st_mtime_ns, found.st_size, found.st_ino)
            if self._loaded is None or self._loaded[0] != stamp:
                self._loaded = stamp, projects.load(path, os.environ)
            return self._loaded[1]
        except OSError as error:
            raise OwnFault(device, START, f"{path}: {error.strerror}") from error
        except projects.ProjectsError as error:
            raise OwnFault(device, START, str(error).partition("\n")[0]) from error

    def _executable(self, device: str) -> str:
        found = shutil.which(self._settings.hyperexecute)
        if found is None:
            raise OwnFault(
                device, START, f"there is no program {self._settings.hyperexecute} ([lambdatest] hyperexecute)"
            )
        return os.path.abspath(found)

    def _run(self, run: _Run, command: tuple[str, ...], directory: Path, job: Wanted) -> None:
        """One run of hyperexecute from its start to its end; what it prints comes into the devices' logs."""
        begun = self._clock.monotonic()
        output = _Output(lambda line: self._tell(run, line), (job.token, self.account.access_key))
        credentials = {"LT_USERNAME": self.account.username, "LT_ACCESS_KEY": self.account.access_key}
        failure: str | None = "its run broke"
        try:
            status = program.follow(
                command,
                Deadline(self._clock, PROGRAM_LIMIT),
                output.line,
                cwd=str(directory),
                env={**credentials, **seen_by(job)},
                leash=no_leash if self._lease is None else self._lease.leash,
                left=lambda: self._left(run),
            )
            how = f"ended with status {status}" if status >= 0 else f"was ended by signal {-status}"
            failure = f"hyperexecute {how}: {output.last}" if status else None
            self._tell(run, f"{how} after {self._clock.monotonic() - begun:.0f} s{output.left_out}")
        except program.ProgramError as error:
            failure = f"{error}: {output.last}"
            self._tell(run, output.masked(str(error)))
        except Exception:
            log.exception("hyperexecute for %s broke", job.name)
        finally:
            self._directories.done(directory)
            now = self._clock.monotonic()
            with self._lock:
                run.failure, run.ended = failure, now
                for number, old in list(self._runs.items()):
                    if old.ended < now - REMEMBERED:
                        del self._runs[number]
            run.over.set()

    def _left(self, run: _Run) -> float:
        """For how many seconds a run may go on."""
        if run.unwanted:
            return 0.0
        return math.inf if self._lease is None else self._lease.left()

    def _tell(self, run: _Run, line: str) -> None:
        for device in run.devices:
            self._say(device, f"hyperexecute: {line}")


class LambdaTestProbe(Probe):
    """Whether a phone is free."""

    def __init__(self, context: BackendContext) -> None:
        """Raises OwnFault without credentials."""
        self._account = account_of(context)

    def ping(self, device: Target, deadline: Deadline) -> bool:
        """Whether a job could be started on it. Raises HardwareError, LaneError."""
        return _status(self._account, device.name, deadline).free


class _Output:
    """The lines of a run, one after the other, without what is secret."""

    def __init__(self, say: Callable[[str], None], secrets: Iterable[str]) -> None:
        self._say = say
        self._secrets = [secret for secret in secrets if secret]
        self._lines = 0
        self.last = "no message"

    def line(self, text: str) -> None:
        """Take a line as it was printed."""
        self.last = self.masked(text)
        self._lines += 1
        if self._lines <= LINES:
            self._say(self.last)

    def masked(self, text: str) -> str:
        """The text without anything secret, printable, and not too long."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        text = "".join(letter if letter.isprintable() else " " for letter in text).strip()
        return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."

    @property
    def left_out(self) -> str:
        """How many lines more there were than were passed on, for the end of a message."""
        return f", {self._lines - LINES} more lines" if self._lines > LINES else ""


def _status(account: Account, device: str, deadline: Deadline) -> HostedStatus:
    """How a phone is; one that a job is about to use is not free, whatever its own status. Raises HardwareError."""
    operation = "phone status"
    phone = _phone(account, device, operation, device, account.phones(device, operation, deadline))
    if phone.status != FREE:
        return HostedStatus(phone.status, free=False, faulty=phone.status == FAULTY)
    job = next(_on((device,), account.jobs(device, operation, deadline)), None)
    if job is None:
        return HostedStatus(phone.status, free=True, faulty=False)
    return HostedStatus(f"{phone.status}, job {job.number} is {job.status}", free=False, faulty=False)


def _phone(account: Account, device: str, operation: str, name: str, phones: Mapping[str, Phone]) -> Phone:
    phone = phones.get(name)
    if phone is None:
        raise HardwareError(device, operation, f"the {account.culprit} has no phone {name}")
    return phone


def _on(devices: Iterable[str], jobs: Iterable[Job]) -> Iterator[Job]:
    """The jobs, whoever started them, that have not ended and name one of the devices."""
    names = set(devices)
    return (job for job in jobs if not job.ended and names.intersection(job.labels))


def _initiated(jobs: Iterable[Job]) -> int:
    return sum(job.status in INITIATED for job in jobs)
