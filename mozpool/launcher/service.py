# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Watches the queues and the phones, and makes a request to the pool for each job that is to be started.

The request claims its phone, LifeGuard runs the job on it, and the request is closed when the job has ended: what is
to be started is decided anew at each look, from what the database, the cloud and Taskcluster say then, and nothing is
remembered here that a start of the process would lose. Of the servers of a pool that could do it, one does at a time.
"""

from __future__ import annotations

import hashlib
import logging
import os
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Protocol

from sqlalchemy.exc import IntegrityError

from mozpool.bmm.backends.lambdatest import Job as CloudJob
from mozpool.bmm.backends.lambdatest import OwnJob
from mozpool.bmm.backends.lambdatest import Phone as CloudPhone
from mozpool.bmm.backends.lambdatest.account import FREE
from mozpool.bmm.projects import Project, Projects, ProjectsError
from mozpool.clock import Clock, Deadline
from mozpool.config import LambdaTest
from mozpool.db import hosted_jobs, images, jobs, launches
from mozpool.db.devices import Device
from mozpool.db.engine import Database
from mozpool.db.launches import ASSIGNEE, Asked, Failures, Phone
from mozpool.errors import Conflict, DatabaseAway, LaneError, MozpoolError
from mozpool.lanes import Lanes, Soon, Timers
from mozpool.launcher import decide, register
from mozpool.launcher.decide import Demand, Start
from mozpool.launcher.queues import Queue, QueueError, Run
from mozpool.logbook import Logbook
from mozpool.pool.service import MozPool, NewRequest
from mozpool.statedriver import Driver

log = logging.getLogger("mozpool.launcher")

LOOK, SIDE = "look", "aside"
"""Lanes: of looking, and of all that may wait for the cloud without anybody's waiting for it."""

WORKERS = 8
"""Threads at most: a queue that is slow to tell keeps one."""

CLOUD_LIMIT = 15.0
"""Seconds that the cloud gets to say how things are."""

OLD = 60.0
"""Seconds after which what a queue said is not used any more."""

SHORTEST_HOLD = 30.0
"""Seconds after its last look for which nobody else launches in place of a server, at least."""

STARTING, CLEANING = 900.0, 660.0
"""Seconds that a request gets beside those that its job may run: until it runs, and until its phone is clean."""

FIRST_PAUSE, LONGEST_PAUSE = 60.0, 3600.0
"""Seconds for which a phone is left alone after a failed start: doubled with each one in a row."""

LOOK_AGAIN = 1.0
"""Seconds after the end of a request until its phone may be free on another server, which tells nobody here."""

ORPHAN_PAUSE = 60.0
"""Seconds between two attempts to stop the same job that nobody wants."""

HOUSE_INTERVAL = 30.0
"""Seconds between two looks whether there are new phones, and requests that have failed."""


class Cloud(Protocol):
    """What the launcher asks of the cloud account. All may raise LaneError."""

    def phones(self, deadline: Deadline) -> Mapping[str, CloudPhone]:
        """All phones by UDID, as they were some seconds ago."""
        ...

    def initiated(self, deadline: Deadline) -> int:
        """How many jobs of the whole account are initiated."""
        ...

    def own_jobs(self, deadline: Deadline) -> Sequence[OwnJob]:
        """This pool's jobs."""
        ...

    def stop_job(self, job: CloudJob, deadline: Deadline) -> str | None:
        """Ask for the end of a job; what is wrong if the cloud will not, or None."""
        ...


class Queues(Protocol):
    """What the launcher asks of Taskcluster. All may raise QueueError."""

    def look(self, worker_type: str) -> Queue:
        """How a queue is."""
        ...

    def started(self, run: Run) -> datetime | None:
        """When a worker took a task, or None."""
        ...

    def task_url(self, run: Run) -> str:
        """The page of a task's run."""
        ...


@dataclass
class _Watched:
    """A queue, and what was last said of it."""

    worker_type: str
    queue: Queue | None = None
    at: float = float("-inf")
    """When that was asked for (monotonic)."""
    asked: bool = False
    """Whether it is being asked for."""
    trouble: str | None = None


@dataclass(frozen=True)
class View:
    """What a decision is made from."""

    demands: Sequence[Demand]
    free: Collection[str]
    """Phones that nobody uses, neither in the pool nor in the cloud, and that are not left alone after failures."""
    initiated: int
    unknown: int
    places: int
    phones: Mapping[str, Phone]
    troubles: Mapping[str, str] = field(default_factory=dict)
    """Project → why nothing is known of its queue."""


def demand_of(project: Project, queue: Queue, asked: Sequence[Asked], now: datetime, pick_up: float) -> Demand:
    """What a project wants, by its queue and by what has been asked for it."""
    since = now - timedelta(seconds=pick_up)
    return Demand(
        project=project.name,
        pending=queue.pending,
        on_the_way=sum(each.project == project.name and each.may_take_task(since) for each in asked),
        phones=project.devices,
        quarantined=queue.quarantined(now).intersection(project.devices),
        priority=project.priority,
        priority_group=project.priority_group,
    )


def left_alone(failures: Mapping[str, Failures], now: datetime, speed: float) -> dict[str, datetime]:
    """Device → until when no job is started on it, because that has failed before."""
    found = {}
    for device, failed in failures.items():
        pause = min(FIRST_PAUSE * 2 ** min(failed.number - 1, 10), LONGEST_PAUSE) / speed
        if failed.last + timedelta(seconds=pause) > now:
            found[device] = failed.last + timedelta(seconds=pause)
    return found


class LaunchLoop:
    """One server's launcher. Built without threads; its methods may be called from any thread."""

    def __init__(
        self,
        settings: LambdaTest,
        load: Callable[[Path], Projects],
        cloud: Cloud,
        queues: Queues,
        mozpool: MozPool,
        devices: Driver[Device],
        database: Database,
        *,
        account: str,
        holder: str,
        server_id: int,
        clock: Clock,
        rng: random.Random,
        timers: Timers,
        logbook: Logbook,
        speed: float = 1.0,
        dry: bool = False,
        on_new_phones: Callable[[], None] = lambda: None,
    ) -> None:
        """``account`` names the cloud account, of which one server of the pool, ``holder`` say, launches at a time.

        ``load`` reads the projects file: now, and whenever it has changed. ``dry``: it is said what would be started,
        and nothing is. ``on_new_phones`` is called when this server's devices are more than before.
        Raises ProjectsError; BadInput when [pool] max_duration is shorter than a job may take.
        """
        assert settings.projects is not None
        self._settings = settings
        self._load = load
        self._cloud = cloud
        self._queues = queues
        self._mozpool = mozpool
        self._devices = devices
        self._database = database
        self._job = _job_name(account)
        self._server = f"{holder} (process "
        self._holder = f"{self._server}{os.getpid()})"
        self._token = f"{rng.getrandbits(128):032x}"
        self._server_id = server_id
        self._clock = clock
        self._rng = rng
        self._timers = timers
        self._logbook = logbook
        self._speed = speed
        self._dry = dry
        self._on_new_phones = on_new_phones
        self.duration = settings.job_limit + STARTING + CLEANING
        mozpool.check_duration(self.duration)
        self.interval = settings.look_interval / speed
        self._hold = max(SHORTEST_HOLD, 4 * settings.look_interval) / speed
        self._held_until = float("-inf")
        self._has_asked = False
        """Whether it has tried to be the one that launches."""
        self._path = settings.projects
        self._stamp = _stamp(self._path)
        self.projects = load(self._path)
        self.projects.check_start()
        self._watched: dict[str, _Watched] = {}
        self._watch()
        self.lanes = Lanes("launcher", WORKERS, clock)
        self._soon = Soon(self.lanes, LOOK, self._look, "looking what to start")
        self._aside = Soon(self.lanes, SIDE, self._stop_orphans, "stopping jobs that nobody wants")
        self._stopping = False
        self._said: dict[str, str] = {}
        """What about → what was last logged of it."""
        self._judged: dict[tuple[int, Run], bool] = {}
        """Job and the task of its phone's worker → whether the task was taken before the job came."""
        self._registered = float("-inf")
        self._orphans: dict[int, float] = {}
        """Job that nobody wants → when it was last asked to stop."""

    # Life

    def wake(self) -> None:
        """Look soon: something has changed, or it is time."""
        if not self._stopping:
            self._soon.ask()

    def request_ended(self) -> None:
        """A request that had a phone has ended: where its phone is another server's, it may be free in a moment."""
        self._timers.set("launcher", LOOK_AGAIN / self._speed, self.wake)

    def stop_starting(self) -> None:
        """Start nothing more."""
        self._stopping = True

    def stop(self, seconds: float) -> None:
        """End the threads, and leave it to the other servers of the pool. Takes at most so long."""
        self._stopping = True
        self.lanes.stop(seconds)
        if self._held_until > float("-inf"):
            with suppress(DatabaseAway):
                self._database.run(lambda conn: jobs.let_go(conn, self._job, self._token), repeatable=True)

    # Looking

    def _look(self) -> None:
        if self._stopping:
            return
        try:
            self.look()
        except DatabaseAway as error:
            self._say("database", f"nothing is started: {error}")
        else:
            self._fine("database")

    def look(self) -> None:
        """Do whatever there is to do now, if this server is the one that does it. Raises DatabaseAway."""
        if not self._take():
            return
        self._reload()
        self._ask_queues()
        try:
            deadline = Deadline(self._clock, CLOUD_LIMIT)
            cloud, initiated = self._cloud.phones(deadline), self._cloud.initiated(deadline)
        except LaneError as error:
            self._say("cloud", f"nothing is started: {error.reason}")
            return
        self._fine("cloud")
        self._keep_house(cloud)
        self._aside.ask()
        view = self.view(cloud, initiated)
        starts = decide.decide(view.demands, view.free, view.places, self._rng)
        self._tell(view, starts)
        if not self._dry:
            self._start_all(starts, view)

    def view(self, cloud: Mapping[str, CloudPhone], initiated: int) -> View:
        """How things are now, with what the cloud has said. Raises DatabaseAway."""
        now = self._clock.now()
        with self._database.read() as conn:
            phones = launches.phones(conn)
            asked = launches.asked(conn)
            failures = launches.failed_starts(conn, now - timedelta(seconds=2 * LONGEST_PAUSE))
        alone = left_alone(failures, now, self._speed)
        free = {
            udid
            for udid, phone in phones.items()
            if phone.free and udid not in alone and udid in cloud and cloud[udid].status == FREE
        }
        demands, troubles = [], {}
        for project in self.projects.taking_part:
            watched = self._watched[project.name]
            queue = watched.queue
            if queue is None or self._clock.monotonic() - watched.at > max(OLD / self._speed, 3 * self.interval):
                troubles[project.name] = watched.trouble or "it has not been asked yet"
                continue
            demands.append(demand_of(project, queue, asked, now, self._settings.pick_up / self._speed))
        unknown = sum(each.is_unknown for each in asked)
        places = decide.room(initiated=initiated, unknown=unknown, limit=self._settings.max_initiated)
        return View(demands, free, initiated, unknown, places, phones, troubles)

    def _take(self) -> bool:
        """Whether this server is the one that launches, for some seconds from now on. Raises DatabaseAway.

        One that only says what it would start keeps nobody from starting it. A process that has just begun takes the
        place of the one before it on this server, which was killed.
        """
        if self._dry:
            return True
        began, now = self._clock.monotonic(), self._clock.now()
        heir_of = None if self._has_asked else self._server
        try:
            held = self._database.run(
                lambda conn: jobs.take(
                    conn,
                    self._job,
                    holder=self._holder,
                    token=self._token,
                    now=now,
                    seconds=self._hold,
                    heir_of=heir_of,
                ),
                repeatable=True,
            )
        except IntegrityError:
            held = None  # another server has begun it for the first time a moment ago
        self._has_asked = True
        if held is None:
            self._say("job", "another server of the pool launches: this one is ready to take over")
            return False
        self._say("job", "this server launches")
        self._held_until = began + self._hold
        return True

    def _reload(self) -> None:
        """Read the projects file anew when it has changed; one that can't be used is not."""
        stamp = _stamp(self._path)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            projects = self._load(self._path)
            projects.check_start()
        except ProjectsError as error:
            log.error("the projects stay as they were: %s", error)
            return
        log.info("%s has changed", self._path)
        self.projects = projects
        self._watch()
        self._registered = float("-inf")

    def _watch(self) -> None:
        before = self._watched
        self._watched = {}
        for project in self.projects.taking_part:
            known = before.get(project.name)
            same = known is not None and known.worker_type == project.worker_type
            self._watched[project.name] = known if known and same else _Watched(str(project.worker_type))
        for line in self.projects.told():
            log.info("%s", line)

    # Queues

    def _ask_queues(self) -> None:
        """Have each queue asked whose last answer is older than a look."""
        now = self._clock.monotonic()
        for name, watched in self._watched.items():
            if not watched.asked and now - watched.at >= 0.9 * self.interval:
                watched.asked = True
                self.lanes.submit(("queue", name), lambda name=name, w=watched: self._ask(name, w), f"queue of {name}")  # type: ignore[misc]

    def _ask(self, name: str, watched: _Watched) -> None:
        at = self._clock.monotonic()
        try:
            queue = self._queues.look(watched.worker_type)
        except QueueError as error:
            watched.trouble = str(error)
            self._say(f"queue {name}", f"project {name}: {error}")
            return
        finally:
            watched.asked = False
        watched.trouble = None
        self._fine(f"queue {name}")
        try:
            self._note_tasks(name, queue)
        except DatabaseAway as error:
            log.debug("tasks of %s are not noted: %s", name, error)
        # Only now: a job whose task has left the queue must not count as on its way.
        watched.at, watched.queue = at, queue
        self.wake()

    def _note_tasks(self, name: str, queue: Queue) -> None:
        """Write which tasks the workers on phones with a job have taken. Raises DatabaseAway."""
        with self._database.read() as conn:
            running = [job for job in hosted_jobs.open_ones(conn) if job.project == name]
        for job in running:
            worker = queue.workers.get(job.device)
            run = None if worker is None else worker.latest
            if run is None or self._queues.task_url(run) == job.task_url or self._is_older(job, run):
                continue
            log.info("job %s on %s has taken task %s", job.number, job.device, run.task_id)
            now, url = self._clock.now(), self._queues.task_url(run)
            self._database.run(
                lambda conn, job=job, run=run, url=url, now=now: hosted_jobs.set_task(  # type: ignore[misc]
                    conn, job.id, task_id=run.task_id, task_url=url, now=now
                ),
                repeatable=True,
            )

    def _is_older(self, job: hosted_jobs.Job, run: Run) -> bool:
        """Whether a worker's task is of a job before this one; where that can't be told now, it counts as such."""
        if (job.id, run) not in self._judged:
            try:
                started = self._queues.started(run)
            except QueueError as error:
                log.debug("%s", error)
                return True
            if len(self._judged) > 10_000:
                self._judged.clear()
            self._judged[job.id, run] = started is None or started < job.ordered
        return self._judged[job.id, run]

    # Phones

    def _keep_house(self, cloud: Mapping[str, CloudPhone]) -> None:
        """Now and then, see to phones that are new or have changed, and to failed requests. Raises DatabaseAway."""
        began, now = self._clock.monotonic(), self._clock.now()
        if began - self._registered < HOUSE_INTERVAL / self._speed:
            return
        with self._database.read() as conn:
            job = jobs.get(conn, self._job)
        if self._dry and job is not None and job.is_held(now):
            return  # whoever holds it does this, too
        self._database.run(lambda conn: launches.give_up_failed(conn, now), repeatable=True)
        if self._register(cloud):
            self._registered = began

    def _register(self, cloud: Mapping[str, CloudPhone]) -> bool:
        """Add phones that are new, and write what has changed of others; whether that was done. Raises DatabaseAway."""
        with self._database.read() as conn:
            wanted = register.changes(self.projects, launches.phones(conn), cloud)
        if gone := register.missing(self.projects, cloud):
            self._say("missing", f"the cloud does not have {len(gone)} of the projects' phones: {', '.join(gone)}")
        else:
            self._fine("missing")
        try:
            ids = self._database.run(
                lambda conn: register.carry_out(conn, wanted, self._server_id, self._rng), repeatable=True
            )
        except (Conflict, IntegrityError) as error:
            self._say("register", f"phones are not added: {error}")
            return False
        self._fine("register")
        for change in wanted:
            self._logbook.add("device", ids[change.udid], change.udid, "launcher", str(change))
            self._devices.forget(ids[change.udid])
        if any(change.device_id is None for change in wanted):
            self._on_new_phones()
        return True

    # Jobs that nobody wants

    def _stop_orphans(self) -> None:
        try:
            self.stop_orphans()
        except LaneError as error:
            self._say("orphans", f"jobs that nobody wants are not looked for: {error.reason}")
        except DatabaseAway as error:
            log.debug("jobs that nobody wants are not looked for: %s", error)
        else:
            self._fine("orphans")

    def stop_orphans(self) -> None:
        """Stop this pool's jobs whose request is over or unknown, and that no device cares for.

        Raises LaneError, DatabaseAway.
        """
        deadline = Deadline(self._clock, CLOUD_LIMIT)
        found = [own for own in self._cloud.own_jobs(deadline) if not own.job.ended]
        with self._database.read() as conn:
            states = launches.states_of(conn, [own.request_id for own in found])
            phones = launches.phones(conn)
        now = self._clock.monotonic()
        left = [own for own in found if not _is_cared_for(own, states, phones)]
        self._orphans = {
            own.job.number: self._orphans[own.job.number] for own in left if own.job.number in self._orphans
        }
        for own in left:
            if now - self._orphans.get(own.job.number, float("-inf")) < ORPHAN_PAUSE / self._speed:
                continue
            self._orphans[own.job.number] = now
            if self._dry:
                log.info("would stop job %d: nobody wants it", own.job.number)
                continue
            problem = self._cloud.stop_job(own.job, deadline)
            why = states.get(own.request_id, "unknown")
            log.warning(
                "job %d (%s) is to stop: its request %d is %s%s",
                *(own.job.number, ", ".join(own.job.labels), own.request_id, why),
                f"; the cloud {problem}" if problem else "",
            )

    # Starting

    def _start_all(self, starts: Sequence[Start], view: View) -> None:
        for start in starts:
            # Half of the time is left for the request that is being made.
            if self._stopping or self._clock.monotonic() > self._held_until - self._hold / 2:
                self.wake()
                return
            try:
                self._start(start, view.phones[start.udid])
            except DatabaseAway:
                raise
            except MozpoolError as error:
                log.error("no job of %s is started on %s: %s", start.project, start.udid, error)

    def _start(self, start: Start, phone: Phone) -> None:
        project = self.projects.projects[start.project]
        if phone.environment != start.project:
            self._database.run(lambda conn: launches.set_environment(conn, phone.id, start.project), repeatable=True)
            self._devices.forget(phone.id)
        request = self._mozpool.create(
            NewRequest(
                device=start.udid,
                assignee=f"{ASSIGNEE}{project.worker_type}",
                duration=self.duration,
                image=images.JOB,
                environment=start.project,
                boot_config={"project": start.project},
                wait=0,
            )
        )
        what = f"request {request.id}: a job of {start.project} on {start.udid}"
        if request.is_open:
            log.info("%s", what)
        else:
            log.info("%s, which somebody else was faster to get: %s", what, request.reason)

    # Saying

    def _tell(self, view: View, starts: Sequence[Start]) -> None:
        for demand in view.demands:
            line = decide.explain(demand, view.free, starts)
            mine = [start.udid for start in starts if start.project == demand.project]
            if self._dry and mine:
                self._say(f"would start {demand.project}", f"{line}; would start on {', '.join(sorted(mine))}")
            elif mine:
                log.info("%s", line)
            else:
                log.debug("%s", line)
                self._said.pop(f"would start {demand.project}", None)
        wanted = sum(demand.wants for demand in view.demands)
        if wanted and not view.places:
            text = f"{view.initiated} jobs are initiated and {view.unknown} on their way: no room for more"
            self._say("room", text)
        else:
            self._said.pop("room", None)
        for name, trouble in view.troubles.items():
            log.debug("nothing is started for %s: %s", name, trouble)

    def _say(self, what: str, line: str) -> None:
        """Log something once, until it is another one."""
        if self._said.get(what) != line:
            self._said[what] = line
            log.log(logging.INFO if what in ("job", "room") or self._dry else logging.WARNING, "%s", line)

    def _fine(self, what: str) -> None:
        """What was said of something is over."""
        if self._said.pop(what, None) is not None:
            log.info("%s: all is well again", what)


def _is_cared_for(own: OwnJob, states: Mapping[int, str], phones: Mapping[str, Phone]) -> bool:
    """Whether a request wants a job, or a device that it names is at work with one and will see to it."""
    if own.request_id in states and not _is_over(states[own.request_id]):
        return True
    return any(
        phones[label].state in hosted_jobs.BUSY_STATES or phones[label].state == "phone_verifying"
        for label in own.job.labels
        if label in phones
    )


def _is_over(state: str) -> bool:
    return state == "closed" or state.startswith("failed_")


def _job_name(account: str) -> str:
    """The name of the database's job; short names are left readable."""
    name = f"launcher {account}"
    return name if len(name) <= 64 else f"launcher {hashlib.sha1(account.encode(), usedforsecurity=False).hexdigest()}"


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """Another one when a file has changed."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return (found.st_mtime_ns, found.st_size, found.st_ino)
