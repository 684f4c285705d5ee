# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Runs the effects of committed transitions: hardware operations, calls to other servers.

They run on bounded workers, those on one lane one after the other. What comes of an effect is an event of its row. A
lane that fails again and again is held, and probed until it answers.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol

from mozpool.errors import DatabaseAway, HardwareError, LaneError, MozpoolError, NotYet, OwnFault
from mozpool.lanes import Lanes
from mozpool.statedriver import Driver, Event, RowIn
from mozpool.statemachine import Decision, Effect, Row

log = logging.getLogger("mozpool.driver")

FRESH = 0.5
"""Seconds within which an effect may start on the row that was just written for it, without another look."""


MOST_TOGETHER = 32
"""Joint effects that are done at a time: a relay board has no more relays."""

GATHERING = 2.0
"""Seconds after which no more is gathered for doing it together: a database that hangs holds up each one."""


@dataclass(frozen=True)
class Part(Generic[Row]):
    """One of several effects that are done together, each for another row."""

    row: Row
    effect: Effect
    done: Callable[[Event | None, Exception | None], None]
    """To be told what came of it, as :meth:`Performer.perform` would say it: an event, or what was raised. Only the
    first time counts."""


class Performer(Protocol[RowIn]):
    """Does the effects of a machine."""

    def lane(self, row: RowIn, effect: Effect) -> str | None:
        """The lane that the effect must run in; None = no lane."""
        ...

    def perform(self, row: RowIn, effect: Effect) -> Event | None:
        """Do it, within a time limit of its own. Raises HardwareError, NotYet."""
        ...

    def failure(self, effect: Effect) -> str | None:
        """The event for an effect that failed; None when it is to be repeated or just forgotten."""
        ...

    def probe_lane(self, lane: str) -> None:
        """Try whether the thing behind a lane works again, changing nothing. Raises LaneError."""
        ...


@dataclass(eq=False)
class _Job:
    row_id: int
    name: str
    effect: Effect
    attempt: int
    lane: str | None
    queued: float
    """When, on the monotonic clock."""
    started: bool = False
    runs: int = 0
    said: str | None = None
    """The failure that was logged last."""


class Effects(Generic[Row]):
    """The queue of effects: one slot a row and channel, filled after commits and looked at again before they run."""

    def __init__(
        self,
        driver: Driver[Row],
        performer: Performer[Row],
        workers: Lanes,
        *,
        breaker_failures: int = 3,
        breaker_probe: float = 10.0,
        on_lane: Callable[[str, str, str | None], None] = lambda lane, state, reason: None,
        before_look: Callable[[], None] = lambda: None,
        on_done: Callable[[str, str, str, float], None] = lambda kind, effect, outcome, seconds: None,
        together: Callable[[Sequence[Part[Row]]], None] | None = None,
        most_together: int = MOST_TOGETHER,
        speed: float = 1.0,
    ) -> None:
        """A lane that fails ``breaker_failures`` times in a row is held, and probed every ``breaker_probe`` seconds.

        ``on_lane(lane, "ok" | "suspect" | "failed", reason)`` is told what is known of a lane. ``before_look`` is
        called in the worker's thread just before it is looked whose row an effect is for. ``together(parts)`` does
        joint effects of one lane, ``most_together`` at most. Each time that an effect was done, ``on_done(kind of row,
        class of the effect, what came of it, seconds)`` is called.
        """
        self._driver = driver
        self._performer = performer
        self._workers = workers
        self._failures_allowed = breaker_failures
        self._probe_every = breaker_probe
        self._on_lane = on_lane
        self._before_look = before_look
        self._on_done = on_done
        self._together = together
        self._most_together = most_together
        self._speed = speed
        self._lock = threading.Lock()
        self._slots: dict[tuple[int, str], _Job] = {}
        self._channels: set[str] = set()
        """Those of bound effects."""
        self._joint: dict[str, deque[_Job]] = {}
        """Lane → joint effects that wait in it."""
        self._failures: dict[str, int] = {}
        self._causes: dict[str, BaseException | None] = {}
        """Lane → why it failed last: what several effects failed of together is one failure."""
        self._held: dict[str, list[_Job]] = {}
        driver.effects = self

    def submit(self, row: Row, attempt: int, decision: Decision, effect: Effect) -> None:
        """Queue an effect of a committed transition, in place of one that still waits in the same slot."""
        try:
            lane = self._performer.lane(row, effect)
        except MozpoolError as error:
            self._failed(row.id, row.name, effect, attempt, _hardware_error(row.name, effect, error))
            return
        self._queue(_Job(row.id, row.name, effect, attempt, lane, self._driver.clock.monotonic()))

    def _queue(self, job: _Job) -> None:
        slot = (job.row_id, job.effect.channel)
        with self._lock:
            queued = self._slots.get(slot)
            if queued is not None and queued.attempt > job.attempt:
                return  # this thread comes late: a newer transition's effect is there already
            self._slots[slot] = job
            if job.effect.bound:
                self._channels.add(job.effect.channel)
            held = self._held.get(job.lane) if job.lane is not None else None
            if held is not None:
                held.append(job)
                return
        self._submit(job)

    def _submit(self, job: _Job) -> None:
        """Have it done when its lane and a worker are free; a joint one maybe together with one before it."""
        label, lane = f"{type(job.effect).__name__} of {job.name}", job.lane
        together = self._together
        if lane is None or together is None or not job.effect.joint:
            self._workers.submit(lane, lambda: self._run(job), label)
            return
        with self._lock:
            self._joint.setdefault(lane, deque()).append(job)
        self._workers.submit(lane, lambda: self._run_joint(job, lane, together), label)

    def waits(self, row_id: int, attempt: int) -> bool:
        """Whether an effect that this attempt waits for has not started yet."""
        with self._lock:
            jobs = [self._slots.get((row_id, channel)) for channel in self._channels]
            return any(job is not None and job.attempt == attempt and not job.started for job in jobs)

    def busy(self, row_id: int) -> bool:
        """Whether something is being done to a row, or waits to be done."""
        with self._lock:
            return any(slot[0] == row_id for slot in self._slots)

    def _current(self, job: _Job) -> bool:
        return self._slots.get((job.row_id, job.effect.channel)) is job

    def _run(self, job: _Job) -> None:
        row = self._start(job)
        if row is None:
            return
        event: Event | None = None
        failed: Exception | None = None
        begun = self._driver.clock.monotonic()
        try:
            event = self._performer.perform(row, job.effect)
        except Exception as error:
            failed = error
        self._came_of(job, self._driver.clock.monotonic() - begun, event, failed)

    def _run_joint(self, job: _Job, lane: str, together: Callable[[Sequence[Part[Row]]], None]) -> None:
        """Do this joint effect together with others that wait in its lane; nothing when one before it took it along."""
        parts = self._gather(job, lane)
        if not parts:
            return
        try:
            together(parts)
        except Exception as error:
            for part in parts:
                part.done(None, error)

    def _gather(self, first: _Job, lane: str) -> list[Part[Row]]:
        """What is to be done now: this job, and others as long as that takes no time. Each row is there once.

        All of it is looked up before anything is done: while a device is without power, nothing waits for the database.
        """
        parts: list[Part[Row]] = []
        taken: set[int] = set()
        begun = self._driver.clock.monotonic()
        # The lease counts from here on: one that ends meanwhile ends all of them.
        self._before_look()
        job: _Job | None = first
        while job is not None and self._take(job, lane):
            row = self._start(job, looked=True)
            if row is not None:
                taken.add(job.row_id)
                parts.append(Part(row, job.effect, self._once(job)))
            job = None
            if len(parts) < self._most_together and self._driver.clock.monotonic() - begun < GATHERING:
                with self._lock:
                    waiting = self._joint.get(lane, ())
                    job = next((each for each in waiting if each.row_id not in taken), None)
        return parts

    def _take(self, job: _Job, lane: str) -> bool:
        """Whether a joint effect still waited, and does so no more."""
        with self._lock:
            waiting = self._joint.get(lane)
            if waiting is None or job not in waiting:
                return False
            waiting.remove(job)
            if not waiting:
                del self._joint[lane]
            return True

    def _once(self, job: _Job) -> Callable[[Event | None, Exception | None], None]:
        """What is told what came of a job that begins now."""
        begun, told = self._driver.clock.monotonic(), False

        def done(event: Event | None, failed: Exception | None) -> None:
            nonlocal told
            if told:
                return
            told = True
            try:
                self._came_of(job, self._driver.clock.monotonic() - begun, event, failed)
            except Exception:
                # The others must be seen to all the same.
                log.exception("what came of %s of %s is lost", type(job.effect).__name__, job.name)

        return done

    def _start(self, job: _Job, *, looked: bool = False) -> Row | None:
        """The row that a job is for, which is about to be done; None when it is not, or not now.

        ``looked``: it has been said already that it is about to be looked whose row it is.
        """
        try:
            return self._admitted(job, looked)
        except Exception:
            # A job that stayed in its slot would keep its row waiting for ever; the time limit does it again.
            log.exception("%s of %s could not be started", type(job.effect).__name__, job.name)
            self._drop(job)
            return None

    def _admitted(self, job: _Job, looked: bool) -> Row | None:
        with self._lock:
            if not self._current(job):
                return None
            held = self._held.get(job.lane) if job.lane is not None else None
            if held is not None:
                held.append(job)
                return None
        try:
            if not looked:
                self._before_look()
            row = self._look_again(job)
        except DatabaseAway:
            self._again(job, 1.0)
            return None
        if row is None or not self._driver.store.is_ours(row) or (job.effect.bound and row.attempt != job.attempt):
            self._drop(job)
            return None
        if job.effect.joint and not self._is_in_its_lane(job, row):
            return None
        if job.effect.bound and not job.started:
            try:
                self._driver.effect_starts(row, job.attempt)
            except DatabaseAway:
                self._again(job, 1.0)
                return None
        job.started = True
        job.runs += 1
        self._driver._checkpoint("effect")
        return row

    def _is_in_its_lane(self, job: _Job, row: Row) -> bool:
        """Whether a row's hardware is still behind the lane that a job waited in; else it goes to the right one."""
        try:
            lane = self._performer.lane(row, job.effect)
        except MozpoolError as error:
            self._came_of(job, 0.0, None, _hardware_error(job.name, job.effect, error))
            return False
        if lane == job.lane:
            return True
        job.lane = lane
        self._submit(job)
        return False

    def _look_again(self, job: _Job) -> Row | None:
        """The row as it is now; as it was last written here, for this very effect, when that was a moment ago.

        What is only repeated needs no fresh look either: the rows that are remembered are let go in every scan.
        """
        row = self._driver.remembered(job.row_id)
        fresh = self._driver.clock.monotonic() - job.queued < FRESH
        if row is not None and row.attempt == job.attempt and (fresh if job.runs == 0 else job.effect.bound):
            return row
        return self._driver.load(job.row_id)

    def _came_of(self, job: _Job, spent: float, event: Event | None, error: Exception | None) -> None:
        """See to what came of a job after so many seconds: an event, or what was raised.

        An error here leaves the job in no slot.
        """
        try:
            self._see_to(job, spent, event, error)
        except Exception:
            self._drop(job)
            raise

    def _see_to(self, job: _Job, spent: float, event: Event | None, error: Exception | None) -> None:
        kind = type(job.effect).__name__
        outcome = _outcome(error)
        self._on_done(self._driver.store.kind, kind, outcome, spent)
        failed: HardwareError | None = None
        match error:
            case None:
                self._lane_answers(job.lane)
            case LaneError():
                self._lane_failed(job, error)
                failed = error
            case OwnFault():
                self._log_failure(job, error)
                self._again(job, 1.0)
                return
            case HardwareError():
                self._lane_answers(job.lane)
                failed = error
            case NotYet():
                job.started = False  # its row's time limit counts from when it is done
                self._again(job, error.seconds)
                return
            case DatabaseAway():
                log.debug("%s of %s waits: %s", kind, job.name, error)
                self._again(job, 1.0)
                return
            case MozpoolError():
                failed = _hardware_error(job.name, job.effect, error)
            case _:
                log.error("%s of %s broke", kind, job.name, exc_info=error)
                failed = HardwareError(job.name, kind, repr(error))
        attempt = job.attempt if job.effect.bound else None
        if failed is not None:
            self._log_failure(job, failed)
            if not (job.effect.patient and isinstance(failed, LaneError)):
                event = self._failure_event(job.effect, failed)
        if event is not None:
            self._drop(job)
            # A lane's failures are counted by its breaker.
            at_once = failed is None or isinstance(failed, LaneError)
            pause = job.effect.pause / self._speed
            if not at_once and spent < pause:
                self._deliver_later(job.row_id, job.effect, event, attempt, pause - spent)
            elif job.effect.joint:
                self._deliver_aside(job, event, attempt)
            else:
                self._driver.deliver(job.row_id, event, attempt)
        elif job.effect.every is not None:
            self._again(job, job.effect.every / self._speed)
        else:
            self._drop(job)

    def _deliver_aside(self, job: _Job, event: Event, attempt: int | None) -> None:
        """Others wait for the lane, which has nothing to do with it any more."""
        kind = self._driver.store.kind
        self._driver.quick.submit(
            (kind, job.row_id), lambda: self._driver.deliver(job.row_id, event, attempt), f"{event.name} of {job.name}"
        )

    def _log_failure(self, job: _Job, error: HardwareError) -> None:
        """Write it into the row's log; what only repeats itself not again."""
        once = self._performer.failure(job.effect) is not None or job.effect.every is None
        repeats = isinstance(error, OwnFault) or not once
        if repeats and (error.message == job.said or (job.effect.quiet and not isinstance(error, OwnFault))):
            return
        job.said = error.message
        self._driver.logbook.add(
            self._driver.store.kind, job.row_id, job.name, "bmm", error.message, level=logging.WARNING
        )

    def _failure_event(self, effect: Effect, error: HardwareError) -> Event | None:
        name = self._performer.failure(effect)
        return None if name is None else Event(name, {"reason": error.message})

    def _failed(self, row_id: int, name: str, effect: Effect, attempt: int, error: HardwareError) -> None:
        """It has failed before it could be queued."""
        self._driver.logbook.add(self._driver.store.kind, row_id, name, "bmm", error.message, level=logging.WARNING)
        event = self._failure_event(effect, error)
        if event is not None:
            self._deliver_later(row_id, effect, event, attempt, effect.pause / self._speed)

    def _deliver_later(self, row_id: int, effect: Effect, event: Event, attempt: int | None, seconds: float) -> None:
        self._driver.timers.set(
            ("failed effect", self._driver.store.kind, row_id, effect.channel),
            seconds,
            lambda: self._driver.quick.submit(None, lambda: self._driver.deliver(row_id, event, attempt)),
        )

    def _drop(self, job: _Job) -> None:
        with self._lock:
            if self._current(job):
                del self._slots[(job.row_id, job.effect.channel)]

    def _again(self, job: _Job, seconds: float) -> None:
        key = ("effect", self._driver.store.kind, job.row_id, job.effect.channel)

        def call() -> None:
            with self._lock:
                if not self._current(job):
                    return
            self._submit(job)

        with self._lock:
            # The key is the slot's: one that was replaced must not take the place of the timer of its successor.
            if self._current(job):
                self._driver.timers.set(key, seconds, call)

    # Breakers

    def _tell_lane(self, lane: str, state: str, reason: str | None) -> None:
        try:
            self._on_lane(lane, state, reason)
        except Exception:
            # Whoever listens must not keep a lane held, or the jobs of a mended one from going on.
            log.exception("nobody could be told that %s is %s", lane, state)

    def lane_states(self) -> dict[str, str]:
        """Lane → ``suspect`` or ``failed``, for lanes that are not ``ok``."""
        with self._lock:
            states = {lane: "suspect" for lane, failures in self._failures.items() if failures}
            states.update((lane, "failed") for lane in self._held)
            return states

    def hold(self, lane: str) -> None:
        """Let what runs in a lane wait until a probe has shown that it works (it failed before the process started)."""
        with self._lock:
            if lane in self._held:
                return
            self._held[lane] = []
        self._probe_later(lane)

    def held(self) -> dict[str, list[int]]:
        """Held lane → ids of the rows whose effects wait for it."""
        with self._lock:
            return {lane: [job.row_id for job in jobs if self._current(job)] for lane, jobs in self._held.items()}

    def _lane_answers(self, lane: str | None) -> None:
        if lane is None:
            return
        with self._lock:
            self._causes.pop(lane, None)
            if not self._failures.pop(lane, 0):
                return
        self._tell_lane(lane, "ok", None)

    def _lane_failed(self, job: _Job, error: LaneError) -> None:
        lane = job.lane
        if lane is None:
            return
        with self._lock:
            cause = error.__cause__
            if cause is not None and cause is self._causes.get(lane):
                return
            self._causes[lane] = cause
            self._failures[lane] = self._failures.get(lane, 0) + 1
            opens = self._failures[lane] >= self._failures_allowed and lane not in self._held
            if opens:
                self._held[lane] = []
            failures = self._failures[lane]
        if opens:
            log.error("%s failed %d times in a row (%s): its devices wait", error.culprit, failures, error.reason)
            self._probe_later(lane)
            self._tell_lane(lane, "failed", error.reason)
        elif failures == 1:
            log.warning("%s failed: %s", error.culprit, error.reason)
            self._tell_lane(lane, "suspect", error.reason)

    def _probe_later(self, lane: str) -> None:
        self._driver.timers.set(
            ("probe", lane),
            self._probe_every / self._speed,
            lambda: self._workers.submit(lane, lambda: self._probe(lane), f"probe of {lane}"),
        )

    def _probe(self, lane: str) -> None:
        with self._lock:
            if lane not in self._held:
                return  # another probe was faster
        try:
            self._performer.probe_lane(lane)
        except HardwareError as error:
            log.info("%s still fails: %s", lane, error.reason)
            self._probe_later(lane)
            return
        except Exception:
            log.exception("the probe of %s broke", lane)
            self._probe_later(lane)
            return
        with self._lock:
            jobs = self._held.pop(lane, [])
            self._failures.pop(lane, None)
        log.warning("%s answers again: %d devices go on", lane, len(jobs))
        self._tell_lane(lane, "ok", None)
        for job in jobs:
            with self._lock:
                current = self._current(job)
            if current:
                self._submit(job)

    def retry_now(self, lanes: Sequence[str] | None = None) -> None:
        """Probe held lanes at once (a person has mended a board)."""
        with self._lock:
            held = [lane for lane in self._held if lanes is None or lane in lanes]
        for lane in held:
            self._workers.submit(lane, lambda lane=lane: self._probe(lane), f"probe of {lane}")  # type: ignore[misc]


_OUTCOMES: tuple[tuple[type[Exception], str], ...] = (
    (LaneError, "lane_failed"),
    (OwnFault, "own_fault"),
    (HardwareError, "failed"),
    (NotYet, "not_yet"),
    (DatabaseAway, "database_away"),
    (MozpoolError, "failed"),
)


def _outcome(error: Exception | None) -> str:
    """What metrics call it."""
    if error is None:
        return "ok"
    return next((word for kind, word in _OUTCOMES if isinstance(error, kind)), "broken")


def _hardware_error(name: str, effect: Effect, error: MozpoolError) -> HardwareError:
    """The same as an operation's failure: a backend that does not exist, for one."""
    if isinstance(error, HardwareError):
        return error
    return HardwareError(name, type(effect).__name__, error.message)
