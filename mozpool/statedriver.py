# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Drives a state machine over the rows of a table: events, due timeouts, effects after the commit.

A transition is one transaction: load the row, let the machine decide, write everything with
``UPDATE … WHERE id = ? AND version = ?`` and the history beside it. A lost race is decided again in a *new*
transaction. Effects run after the commit, on bounded workers, and bring their results back as events that carry the
attempt they were started for; results of an attempt that is over are dropped.
"""

from __future__ import annotations

import json
import logging
import random
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Generic, Literal, Protocol, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from mozpool.clock import Clock
from mozpool.db.claims import ClaimLost
from mozpool.db.engine import Database
from mozpool.errors import Conflict, DatabaseAway, HardwareError, LaneError, MozpoolError
from mozpool.lanes import Lanes, Timers
from mozpool.logbook import Kind, Logbook
from mozpool.statemachine import RETURNED, TIMEOUT, Context, Decision, Effect, Machine, MachineRow, Row

log = logging.getLogger("mozpool.driver")

REMEMBERED = 50_000
"""How many rows are remembered as this process last wrote them."""

FRESH = 0.5
"""Seconds within which an effect may start on the row that was just written for it, without another look."""

RACES = 50
"""How often a transition may lose against other writers of its row before that counts as a fault."""


class LostRace(Exception):
    """Somebody else wrote the row since it was loaded."""


class NotDue(Exception):
    """What was due when a row was looked at is not due any more: it was renewed, or its effect has just started."""


class Store(Protocol[Row]):
    """How a driver reads and writes its rows; there is one for devices and one for requests."""

    kind: Kind

    def load(self, conn: Connection, row_id: int) -> Row | None:
        """The row, or None when it is gone."""
        ...

    def reads(self, conn: Connection) -> Any:
        """What handlers may look up, bound to this transaction."""
        ...

    def write(self, conn: Connection, row: Row, change: Change) -> bool:
        """Write the row if its version is still the loaded one, and its history; answer whether it was."""
        ...

    def took_place(self, conn: Connection, row: Row, change: Change) -> bool:
        """Whether a change whose commit went unanswered is in the database."""
        ...

    def due(self, conn: Connection, before: datetime, limit: int) -> list[tuple[int, int, datetime]]:
        """(id, attempt, deadline) of this server's rows with a deadline before ``before``."""
        ...

    def expiry(self, row: Row) -> tuple[str, datetime] | None:
        """An event that the row gets at some moment whatever its state's time limit is, or None."""
        ...

    def postpone(self, conn: Connection, row_id: int, attempt: int, deadline: datetime | None) -> bool:
        """Move the deadline of an attempt; answer whether the attempt is still on."""
        ...

    def is_ours(self, row: Row) -> bool:
        """Whether this server may act on the row."""
        ...

    def claim_of(self, row: Row) -> int | None:
        """The claim that the row takes part in, for the history."""
        ...

    def after(self, row: Row, change: Change, learned: Mapping[str, Any]) -> Row | None:
        """The row as it is after a change, with what its other writes changed; None when only the database can tell."""
        ...

    def may_look_back(self, row: Row) -> bool:
        """Whether a due time limit may be decided on the row as this process last wrote it."""
        ...

    def amended(self, row: Row, fields: Mapping[str, Any]) -> Row:
        """The row with these fields and the next version."""
        ...

    def may_remember(self, event: str) -> bool:
        """Whether an event may be decided on the row as this process last wrote it (its version still guards it)."""
        ...


@dataclass(frozen=True)
class Change:
    """What a transition writes into its row."""

    source: str
    path: tuple[str, ...]
    event: str
    columns: Mapping[str, Any]
    counters: Mapping[str, int]
    deadline: datetime | None
    now: datetime
    token: str
    claim_id: int | None
    detail: str | None

    @property
    def target(self) -> str:
        """The state that the row is in afterwards."""
        return self.path[-1] if self.path else self.source

    def values(self, row: Any) -> dict[str, Any]:
        """All columns to write; a change without a path leaves state, deadline and attempt alone."""
        values = dict(self.columns)
        values["state_counters"] = json.dumps(self.counters, sort_keys=True)
        values["token"] = self.token
        if self.path:
            values["state"] = self.target
            values["state_timeout"] = self.deadline
            values["attempt"] = row.attempt + 1
            if self.target != self.source:
                values["state_since"] = self.now
        return values


Status = Literal["moved", "stayed", "ignored", "stale", "gone"]


@dataclass(frozen=True)
class Outcome(Generic[Row]):
    """What became of an event."""

    status: Status
    row: Row | None = None
    """The row as it was before."""
    decision: Decision | None = None
    change: Change | None = None
    after: Row | None = None
    """The row as it was written, where that is known without another load."""

    @property
    def accepted(self) -> bool:
        """Whether the state dealt with the event."""
        return self.status in ("moved", "stayed")

    @property
    def state(self) -> str | None:
        """The state afterwards."""
        if self.decision is not None:
            return self.decision.target
        return None if self.row is None else self.row.state


@dataclass(frozen=True)
class Event:
    """What an effect brought."""

    name: str
    args: Mapping[str, Any] = field(default_factory=dict)
    reason: str | None = None
    """For the log, when it is a failure."""


RowIn = TypeVar("RowIn", bound=MachineRow, contravariant=True)


class Performer(Protocol[RowIn]):
    """Does the effects of a machine."""

    def lane(self, row: RowIn, effect: Effect) -> str | None:
        """The lane that the effect must run in; None = no lane."""
        ...

    def perform(self, row: RowIn, effect: Effect) -> Event | None:
        """Do it, within a time limit of its own. Raises HardwareError."""
        ...

    def failure(self, effect: Effect) -> str | None:
        """The event for an effect that failed; None when it is to be repeated or just forgotten."""
        ...

    def probe_lane(self, lane: str) -> None:
        """Try whether the thing behind a lane works again, changing nothing. Raises LaneError."""
        ...


Observer = Callable[[Outcome[Any]], None]


class Driver(Generic[Row]):
    """The one way in which rows of a machine change state. Its methods may be called from any thread."""

    def __init__(
        self,
        machine: Machine[Row],
        store: Store[Row],
        database: Database,
        *,
        clock: Clock,
        rng: random.Random,
        timers: Timers,
        quick: Lanes,
        logbook: Logbook,
        checkpoint: Callable[[str], None] = lambda point: None,
    ) -> None:
        """``quick`` are the workers for transitions; ``checkpoint`` is called between their steps (simulations)."""
        self.machine = machine
        self.store = store
        self.database = database
        self.clock = clock
        self.rng = rng
        self.timers = timers
        self.quick = quick
        self.logbook = logbook
        self.observers: list[Observer] = []
        self.effects: Effects[Row] | None = None
        self._checkpoint = checkpoint
        self._stopping = clock.event()
        self._remembered: dict[int, Row] = {}

    # Rows as this process last wrote them: they save the load before a transition, whose write has their version.
    # What is remembered is never newer than the row, and of the row's own version only when it equals the row.

    def remembered(self, row_id: int) -> Row | None:
        """The row as it was last written here; others may have written it since."""
        return self._remembered.get(row_id)

    def load(self, row_id: int) -> Row | None:
        """The row as it is in the database, which is remembered. Raises DatabaseAway."""
        with self.database.read() as conn:
            row = self.store.load(conn, row_id)
        self._remember(row_id, row)
        return row

    def forget(self, row_id: int) -> None:
        """The row was written by other hands."""
        self._remembered.pop(row_id, None)

    def amend(self, row_id: int, is_before: Callable[[Row], bool], **fields: Any) -> None:
        """The row was written by this process, outside of a transition, which raised its version by one.

        ``is_before`` tells whether a row can only be from before that write. What another thread has remembered since
        would get a version that the row does not have yet, and that somebody else may give it.
        """
        before = self._remembered.get(row_id)
        if before is None:
            return
        if is_before(before):
            self._remember(row_id, self.store.amended(before, fields))
        else:
            self.forget(row_id)

    def _remember(self, row_id: int, row: Row | None) -> None:
        if row is None or not self.store.is_ours(row):
            self._remembered.pop(row_id, None)
            return
        before = self._remembered.get(row_id)
        if before is None and len(self._remembered) >= REMEMBERED:
            self._remembered.clear()
        if before is None or before.version < row.version:
            self._remembered[row_id] = row

    # Events

    def handle(
        self,
        row_id: int,
        event: str,
        args: Mapping[str, Any] | None = None,
        *,
        attempt: int | None = None,
        guard: Callable[[Row], None] | None = None,
        columns: Mapping[str, Any] | None = None,
        row: Row | None = None,
    ) -> Outcome[Row]:
        """Let a row's state deal with an event.

        With ``attempt`` the event counts for that attempt only; ``guard`` looks at the loaded row and may raise
        Conflict; ``columns`` are written along with whatever the machine decides. ``row`` is the row where the caller
        has just read it.
        Raises DatabaseAway, and what ``guard`` raises.
        """

        def decide(ctx: Context[Row]) -> Decision | None:
            return self.machine.decide(ctx)

        if row is None and self.store.may_remember(event):
            row = self.remembered(row_id)
        return self._transition(row_id, event, args, decide, attempt=attempt, guard=guard, columns=columns, row=row)

    def force(
        self,
        row_id: int,
        to: str,
        *,
        expected: str | None = None,
        columns: Mapping[str, Any] | None = None,
        event: str = "forced",
    ) -> Outcome[Row]:
        """Put a row into a state whatever its own state expects.

        Raises Conflict when it is not in ``expected`` (a row in ``unknown`` or an unrecognised state always is),
        DatabaseAway.
        """

        def guard(row: Row) -> None:
            known = row.state in self.machine.states and row.state != "unknown"
            if expected is not None and known and row.state != expected:
                raise Conflict(f"{row.name} is in state {row.state}, not {expected}", field="state")

        def decide(ctx: Context[Row]) -> Decision | None:
            return self.machine.force(ctx, to)

        return self._transition(row_id, event, None, decide, guard=guard, columns=columns)

    def _transition(
        self,
        row_id: int,
        event: str,
        args: Mapping[str, Any] | None,
        decide: Callable[[Context[Row]], Decision | None],
        *,
        attempt: int | None = None,
        guard: Callable[[Row], None] | None = None,
        columns: Mapping[str, Any] | None = None,
        row: Row | None = None,
    ) -> Outcome[Row]:
        token = f"{self.rng.getrandbits(128):032x}"
        last: list[Outcome[Row]] = []
        known = [row] if row is not None else []
        learned: dict[str, Any] = {}

        def work(conn: Connection) -> Outcome[Row]:
            if known:
                # A row that is remembered is good for a change, which has its version; for anything else it is loaded.
                try:
                    outcome = step(conn, known.pop())
                    decision = outcome.decision
                    if outcome.row is not None and decision is not None and _changes(outcome.row, decision):
                        return outcome
                except (MozpoolError, NotDue):
                    pass
            loaded = self.store.load(conn, row_id)
            return Outcome("gone") if loaded is None else step(conn, loaded)

        def step(conn: Connection, row: Row) -> Outcome[Row]:
            self._checkpoint("loaded")
            if attempt is not None and row.attempt != attempt:
                return Outcome("stale", row)
            if guard is not None:
                guard(row)
            now = self.clock.now()
            ctx = Context(row, event, now=now, rng=self.rng, args=args, reads=self.store.reads(conn))
            if columns:
                ctx.set(**columns)
            decision = decide(ctx)
            self._checkpoint("decided")
            if decision is None:
                return Outcome("ignored", row)
            change = self._change(row, decision, now, token)
            outcome = Outcome("moved" if decision.path else "stayed", row, decision, change)
            last[:] = [outcome]
            if _changes(row, decision):
                if not self.store.write(conn, row, change):
                    self.forget(row_id)
                    raise LostRace
                learned.clear()
                for write in decision.writes:
                    result = write.run(conn)
                    learned.update((key, result if value is RETURNED else value) for key, value in write.known.items())
            self._checkpoint("written")
            return outcome

        def committed(conn: Connection) -> Outcome[Row] | None:
            outcome = last[0] if last else None
            if outcome is None or outcome.row is None or outcome.change is None:
                return None
            return outcome if self.store.took_place(conn, outcome.row, outcome.change) else None

        for _ in range(RACES):
            try:
                outcome = self.database.run(work, committed=committed)
                break
            except LostRace:
                continue
        else:
            raise DatabaseAway(f"{self.store.kind} {row_id} is written by others all the time")
        self._checkpoint("committed")
        if outcome.row is None:
            self.forget(row_id)
        elif outcome.change is not None and outcome.decision is not None and _changes(outcome.row, outcome.decision):
            told = all(write.known for write in outcome.decision.writes)
            after = self.store.after(outcome.row, outcome.change, learned) if told else None
            self._remember(row_id, after)
            outcome = replace(outcome, after=after)
        self._after_commit(outcome)
        return outcome

    def _change(self, row: Row, decision: Decision, now: datetime, token: str) -> Change:
        deadline = None if decision.timeout is None else now + timedelta(seconds=decision.timeout)
        return Change(
            source=row.state,
            path=decision.path,
            event=decision.event,
            columns=decision.columns,
            counters=decision.counters,
            deadline=deadline,
            now=now,
            token=token,
            claim_id=self.store.claim_of(row),
            detail=decision.detail,
        )

    def _after_commit(self, outcome: Outcome[Row]) -> None:
        row, decision, change = outcome.row, outcome.decision, outcome.change
        if row is None or decision is None or change is None:
            return
        kind = self.store.kind
        before = row.state
        for state in decision.path:
            if state != before:
                because = f" ({decision.detail})" if decision.detail and state == decision.path[-1] else ""
                message = f"{before} -> {state} on {decision.event}{because}"
                self.logbook.add(kind, row.id, row.name, "statemachine", message)
            before = state
        for line in decision.logs:
            self.logbook.add(kind, row.id, row.name, "statemachine", line)
        for observer in self.observers:
            try:
                observer(outcome)
            except Exception:
                # The transition is committed, and the other observers must hear of it.
                log.exception("an observer of %s %d failed", kind, row.id)
        if self.store.is_ours(row):
            if decision.path:
                self._set_timer(row.id, self._next_deadline(row, decision.target, change.deadline), row.attempt + 1)
            if self.effects is not None:
                for effect in decision.effects:
                    self.effects.submit(row, row.attempt + (1 if decision.path else 0), decision, effect)

    # Deadlines

    def _next_deadline(self, row: Row, state: str, deadline: datetime | None) -> datetime | None:
        """When the row must be looked at next: its time limit or its expiry; never when it has come to its end."""
        if self.machine.state(state).end:
            return None
        expiry = self.store.expiry(row)
        if expiry is None:
            return deadline
        return expiry[1] if deadline is None else min(deadline, expiry[1])

    def _set_timer(self, row_id: int, deadline: datetime | None, attempt: int) -> None:
        """Look at the row at its deadline. A thread that comes late with an older attempt's changes nothing."""
        key = (self.store.kind, row_id)
        if deadline is None:
            self.timers.cancel(key, rank=attempt)
            return
        seconds = (deadline - self.clock.now()).total_seconds()
        self.timers.set(key, seconds, lambda: self.wake(row_id), rank=attempt)

    def wake(self, row_id: int) -> None:
        """Have a worker look at a row now: something is or may be due."""
        kind = self.store.kind
        self.quick.submit((kind, row_id), lambda: self._look_at(row_id), f"{kind} {row_id} due")

    def watch(self, row_id: int, deadline: datetime) -> None:
        """Look at a row that was just stored when its deadline comes; nothing happens when it has moved on already."""
        self._set_timer(row_id, deadline, 0)

    def _look_at(self, row_id: int) -> None:
        self.look_at(row_id)

    def look_at(self, row_id: int) -> Outcome[Row] | None:
        """Send a row the event that is due, if one is; a row whose effect still waits for its lane gets more time."""
        try:
            now = self.clock.now()
            row = self.remembered(row_id)
            if row is None or not self._may_look_back(row, now):
                with self.database.read() as conn:
                    row = self.store.load(conn, row_id)
            if row is None or not self.store.is_ours(row):
                return None
            event = self._due_event(row, now)
            if event is None:
                self._set_timer(row_id, self._next_deadline(row, row.state, row.state_timeout), row.attempt)
                return None
            if event == TIMEOUT and self.effects is not None and self.effects.waits(row_id, row.attempt):
                self._more_time(row, row.attempt, now)
                return None

            def still_due(found: Row) -> None:
                if not self.store.is_ours(found) or self._due_event(found, self.clock.now()) != event:
                    raise NotDue

            outcome = self.handle(row_id, event, attempt=row.attempt, guard=still_due, row=row)
            if outcome.status == "ignored":
                # Nothing will ever happen at this deadline: without this it would be due for ever.
                self.database.run(lambda conn: self.store.postpone(conn, row_id, row.attempt, None))
                self.forget(row_id)
            return outcome
        except NotDue:
            self.wake(row_id)
            return None
        except DatabaseAway as error:
            log.debug("%s %d is due but %s", self.store.kind, row_id, error)
            self.timers.set((self.store.kind, row_id), 1.0, lambda: self.wake(row_id))
            return None

    def _may_look_back(self, row: Row, now: datetime) -> bool:
        """Whether a remembered row will do: what is due leads to a write, which notices when the row is another."""
        if not self.store.may_look_back(row) or self._due_event(row, now) is None:
            return False
        return self.effects is None or not self.effects.waits(row.id, row.attempt)

    def _due_event(self, row: Row, now: datetime) -> str | None:
        expiry = self.store.expiry(row)
        if expiry is not None and expiry[1] <= now and not self.machine.state(row.state).end:
            return expiry[0]
        if row.state_timeout is None:
            # A row that was put into the table by other hands: its state has a limit, so it is over.
            return None if self.machine.timeout_of(row.state) is None else TIMEOUT
        return TIMEOUT if row.state_timeout <= now else None

    def _more_time(self, row: Row, attempt: int, now: datetime) -> None:
        limit = self.machine.timeout_of(row.state) or 1.0
        deadline = now + timedelta(seconds=limit)
        if self.database.run(lambda conn: self.store.postpone(conn, row.id, attempt, deadline)):
            self.forget(row.id)
            self._set_timer(row.id, self._next_deadline(row, row.state, deadline), attempt)

    def effect_starts(self, row: Row, attempt: int) -> None:
        """The time limit counts from when the effect starts: move the deadline if it waited for long."""
        limit = self.machine.timeout_of(row.state)
        if limit is None or row.state_timeout is None:
            return
        now = self.clock.now()
        if (row.state_timeout - now).total_seconds() < 0.9 * limit:
            self._more_time(row, attempt, now)

    def scan(self, horizon: float, *, jitter: float = 0.0, limit: int = 5000) -> int:
        """Set timers for all rows that are due within ``horizon`` seconds, and answer how many there are.

        The safety net under the timers, and what goes on after a restart: with ``jitter``, rows that are overdue are
        spread over so many seconds. Raises DatabaseAway.
        """
        # What other tables add to a row (names, backends of its hardware) may change without its version.
        self._remembered.clear()
        now = self.clock.now()
        with self.database.read() as conn:
            found = self.store.due(conn, now + timedelta(seconds=horizon), limit)
        for row_id, attempt, deadline in found:
            key = (self.store.kind, row_id)
            # One that is overdue in spite of its timer was brought forward by a server that could not say so.
            if key in self.timers and deadline > now:
                continue
            if deadline <= now and jitter:
                deadline = now + timedelta(seconds=self.rng.uniform(0, jitter))
            self._set_timer(row_id, deadline, attempt)
        return len(found)

    # Results

    def deliver(self, row_id: int, event: Event, attempt: int | None) -> None:
        """Bring the result of an effect to its row, however long the database is away."""
        pause = 0.2
        while not self._stopping.is_set():
            try:
                outcome = self.handle(row_id, event.name, event.args, attempt=attempt)
            except DatabaseAway as error:
                log.warning("the result %s of %s %d waits: %s", event.name, self.store.kind, row_id, error)
                self.clock.wait(self._stopping, pause)
                pause = min(5.0, pause * 2)
                continue
            if outcome.status == "stale":
                log.debug("%s %d: %s came too late and is dropped", self.store.kind, row_id, event.name)
            return

    def stop(self) -> None:
        """Give up results that wait for the database: their rows have deadlines."""
        self._stopping.set()


def _changes(row: MachineRow, decision: Decision) -> bool:
    """Whether there is anything to write; if not, the row keeps its version."""
    return bool(decision.path or decision.columns or decision.writes or decision.counters != dict(row.state_counters))


@dataclass
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
        speed: float = 1.0,
    ) -> None:
        """A lane that fails ``breaker_failures`` times in a row is held, and probed every ``breaker_probe`` seconds.

        ``on_lane(lane, "ok" | "suspect" | "failed", reason)`` is told what is known of a lane.
        """
        self._driver = driver
        self._performer = performer
        self._workers = workers
        self._failures_allowed = breaker_failures
        self._probe_every = breaker_probe
        self._on_lane = on_lane
        self._speed = speed
        self._lock = threading.Lock()
        self._slots: dict[tuple[int, str], _Job] = {}
        self._channels: set[str] = set()
        """Those of bound effects."""
        self._failures: dict[str, int] = {}
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
        self._workers.submit(job.lane, lambda: self._run(job), f"{type(job.effect).__name__} of {job.name}")

    def waits(self, row_id: int, attempt: int) -> bool:
        """Whether an effect that this attempt waits for has not started yet."""
        with self._lock:
            jobs = [self._slots.get((row_id, channel)) for channel in self._channels]
            return any(job is not None and job.attempt == attempt and not job.started for job in jobs)

    def _current(self, job: _Job) -> bool:
        return self._slots.get((job.row_id, job.effect.channel)) is job

    def _run(self, job: _Job) -> None:
        try:
            self._start(job)
        except Exception:
            # A job that stayed in its slot would keep its row waiting for ever; the time limit does it again.
            self._drop(job)
            raise

    def _start(self, job: _Job) -> None:
        with self._lock:
            if not self._current(job):
                return
            held = self._held.get(job.lane) if job.lane is not None else None
            if held is not None:
                held.append(job)
                return
        try:
            row = self._look_again(job)
        except DatabaseAway:
            self._again(job, 1.0)
            return
        if row is None or not self._driver.store.is_ours(row) or (job.effect.bound and row.attempt != job.attempt):
            self._drop(job)
            return
        if job.effect.bound and not job.started:
            try:
                self._driver.effect_starts(row, job.attempt)
            except DatabaseAway:
                self._again(job, 1.0)
                return
        job.started = True
        self._driver._checkpoint("effect")
        self._perform(job, row)

    def _look_again(self, job: _Job) -> Row | None:
        """The row as it is now; as it was last written here, for this very effect, when that was a moment ago.

        What is only repeated needs no fresh look either: the rows that are remembered are let go in every scan.
        """
        row = self._driver.remembered(job.row_id)
        fresh = self._driver.clock.monotonic() - job.queued < FRESH
        if row is not None and row.attempt == job.attempt and (fresh if job.runs == 0 else job.effect.bound):
            return row
        return self._driver.load(job.row_id)

    def _perform(self, job: _Job, row: Row) -> None:
        event: Event | None = None
        job.runs += 1
        try:
            event = self._performer.perform(row, job.effect)
        except LaneError as error:
            self._lane_failed(job, error)
            event = self._failure_event(job, error)
        except HardwareError as error:
            self._lane_answers(job.lane)
            event = self._failure_event(job, error)
        except DatabaseAway as error:
            log.debug("%s of %s waits: %s", type(job.effect).__name__, job.name, error)
            self._again(job, 1.0)
            return
        except MozpoolError as error:
            event = self._failure_event(job, _hardware_error(job.name, job.effect, error))
        except Exception as error:
            log.exception("%s of %s broke", type(job.effect).__name__, job.name)
            event = self._failure_event(job, HardwareError(job.name, type(job.effect).__name__, repr(error)))
        else:
            self._lane_answers(job.lane)
        if event is not None:
            self._drop(job)
            self._driver.deliver(job.row_id, event, job.attempt if job.effect.bound else None)
        elif job.effect.every is not None and (job.effect.times is None or job.runs < job.effect.times):
            self._again(job, job.effect.every / self._speed)
        else:
            self._drop(job)

    def _failure_event(self, job: _Job, error: HardwareError) -> Event | None:
        name = self._performer.failure(job.effect)
        once = name is not None or job.effect.every is None
        if once or not (job.effect.quiet or error.message == job.said):
            job.said = error.message
            self._driver.logbook.add(
                self._driver.store.kind, job.row_id, job.name, "bmm", error.message, level=logging.WARNING
            )
        return None if name is None else Event(name, reason=error.message)

    def _failed(self, row_id: int, name: str, effect: Effect, attempt: int, error: HardwareError) -> None:
        self._driver.logbook.add(self._driver.store.kind, row_id, name, "bmm", error.message, level=logging.WARNING)
        event = self._performer.failure(effect)
        if event is not None:
            key = ("failed effect", self._driver.store.kind, row_id)
            result = Event(event, reason=error.message)
            # Not at once: a state that retries at once would go round and round.
            self._driver.timers.set(
                key,
                1.0 / self._speed,
                lambda: self._driver.quick.submit(None, lambda: self._driver.deliver(row_id, result, attempt)),
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
            self._workers.submit(job.lane, lambda: self._run(job), f"{type(job.effect).__name__} of {job.name}")

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
            if not self._failures.pop(lane, 0):
                return
        self._tell_lane(lane, "ok", None)

    def _lane_failed(self, job: _Job, error: LaneError) -> None:
        lane = job.lane
        if lane is None:
            return
        with self._lock:
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
                self._workers.submit(lane, lambda job=job: self._run(job), f"of {job.name}")  # type: ignore[misc]

    def retry_now(self, lanes: Sequence[str] | None = None) -> None:
        """Probe held lanes at once (a person has mended a board)."""
        with self._lock:
            held = [lane for lane in self._held if lanes is None or lane in lanes]
        for lane in held:
            self._workers.submit(lane, lambda lane=lane: self._probe(lane), f"probe of {lane}")  # type: ignore[misc]


def _hardware_error(name: str, effect: Effect, error: MozpoolError) -> HardwareError:
    """The same as an operation's failure: a backend that does not exist, for one."""
    if isinstance(error, HardwareError):
        return error
    return HardwareError(name, type(effect).__name__, error.message)


LOST_CLAIM = (ClaimLost, IntegrityError)
"""What a transition raises that tried to claim a device which somebody else has got."""
