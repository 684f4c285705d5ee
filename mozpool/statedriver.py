# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Drives a state machine over the rows of a table: events, due timeouts, effects after the commit.

A transition is one transaction: load the row, let the machine decide, write everything with
``UPDATE … WHERE id = ? AND version = ?`` and the history beside it. A lost race is decided again in a *new*
transaction. Effects run after the commit (:mod:`mozpool.effects`) and bring their results back as events that carry
the attempt they were started for; results of an attempt that is over are dropped.
"""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Generic, Literal, Protocol, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from mozpool.clock import Clock
from mozpool.db.claims import ClaimLost
from mozpool.db.engine import Database
from mozpool.errors import Conflict, DatabaseAway, MozpoolError, NotOurs
from mozpool.lanes import Lanes, Timers
from mozpool.logbook import Kind, Logbook
from mozpool.statemachine import RETURNED, TIMEOUT, Context, Decision, Effect, Machine, MachineRow, Row

log = logging.getLogger("mozpool.driver")

REMEMBERED = 50_000
"""How many rows are remembered as this process last wrote them."""

RACES = 50
"""How often a transition may lose against other writers of its row before that counts as a fault."""


LOST_CLAIM = (ClaimLost, IntegrityError)
"""What a transition raises that tried to claim a device which somebody else has got."""


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

    def ahead(self, conn: Connection, row_ids: Sequence[int]) -> Sequence[Row]:
        """Those of these rows, which are due soon, that may be read ahead: one query costs less than one each."""
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

    def owner_of(self, row: Row) -> str:
        """The fqdn of the server that acts on the row."""
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


RowIn = TypeVar("RowIn", bound=MachineRow, contravariant=True)


class WaitingEffects(Protocol[RowIn]):
    """The queue of effects (:class:`mozpool.effects.Effects`), as the driver sees it."""

    def submit(self, row: RowIn, attempt: int, decision: Decision, effect: Effect) -> None:
        """Queue an effect of a committed transition."""
        ...

    def waits(self, row_id: int, attempt: int) -> bool:
        """Whether an effect that this attempt waits for has not started yet."""
        ...

    def busy(self, row_id: int) -> bool:
        """Whether something is being done to a row, or waits to be done."""
        ...

    def held(self) -> dict[str, list[int]]:
        """Held lane → ids of the rows whose effects wait for it."""
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
        self.effects: WaitingEffects[Row] | None = None
        self._checkpoint = checkpoint
        self._stopping = clock.event()
        self._remembered: dict[int, Row] = {}
        self._generation = 0

    # Rows as this process last wrote them: they save the load before a transition, whose write has their version.
    # What is remembered is never newer than the row, and of the row's own version only when it equals the row.

    def remembered(self, row_id: int) -> Row | None:
        """The row as it was last written here; others may have written it since."""
        return self._remembered.get(row_id)

    def load(self, row_id: int) -> Row | None:
        """The row as it is in the database, which is remembered. Raises DatabaseAway."""
        generation = self._generation
        with self.database.read() as conn:
            row = self.store.load(conn, row_id)
        self._remember(row_id, row, generation)
        return row

    def forget(self, row_id: int) -> None:
        """The row was written by other hands."""
        self._remembered.pop(row_id, None)

    def forget_all(self) -> None:
        """Other servers may have taken rows: nothing counts that was read before this call."""
        self._generation += 1
        self._remembered.clear()

    def amend(self, row_id: int, is_before: Callable[[Row], bool], **fields: Any) -> None:
        """The row was written by this process, outside of a transition, which raised its version by one.

        ``is_before`` tells whether a row can only be from before that write. What another thread has remembered since
        would get a version that the row does not have yet, and that somebody else may give it.
        """
        before = self._remembered.get(row_id)
        if before is None:
            return
        if is_before(before):
            self._remember(row_id, self.store.amended(before, fields), self._generation)
        else:
            self.forget(row_id)

    def _remember(self, row_id: int, row: Row | None, generation: int) -> None:
        if row is None or not self.store.is_ours(row):
            self._remembered.pop(row_id, None)
            return
        before = self._remembered.get(row_id)
        if before is None and len(self._remembered) >= REMEMBERED:
            self._remembered.clear()
        if before is None or before.version < row.version:
            self._remembered[row_id] = row
            if generation != self._generation:
                # It was read before everything was forgotten.
                self._remembered.pop(row_id, None)

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
        for_others: bool = False,
    ) -> Outcome[Row]:
        """Let a row's state deal with an event.

        With ``attempt`` the event counts for that attempt only; ``guard`` looks at the loaded row and may raise
        Conflict; ``columns`` are written along with whatever the machine decides. ``row`` is the row where the caller
        has just read it. ``for_others``: the row may be another server's, which does what follows from the event.
        Raises DatabaseAway, NotOurs, and what ``guard`` raises.
        """

        def decide(ctx: Context[Row]) -> Decision | None:
            return self.machine.decide(ctx)

        if row is None and self.store.may_remember(event):
            row = self.remembered(row_id)
        return self._transition(
            row_id, event, args, decide, attempt=attempt, guard=guard, columns=columns, row=row, for_others=for_others
        )

    def force(
        self,
        row_id: int,
        to: str,
        *,
        expected: str | None = None,
        columns: Mapping[str, Any] | None = None,
        event: str = "forced",
        guard: Callable[[Row], None] = lambda row: None,
        detail: str | None = None,
    ) -> Outcome[Row]:
        """Put a row into a state whatever its own state expects; ``detail`` is for its history.

        Raises Conflict when it is not in ``expected`` (a row in ``unknown`` or an unrecognised state always is),
        DatabaseAway, NotOurs, and what ``guard`` raises.
        """

        def look(row: Row) -> None:
            guard(row)
            known = row.state in self.machine.states and row.state != "unknown"
            if expected is not None and known and row.state != expected:
                raise Conflict(f"{row.name} is in state {row.state}, not {expected}", field="state")

        def decide(ctx: Context[Row]) -> Decision | None:
            ctx.detail = detail
            return self.machine.force(ctx, to)

        return self._transition(row_id, event, None, decide, guard=look, columns=columns)

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
        for_others: bool = False,
    ) -> Outcome[Row]:
        generation = self._generation
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
            if not for_others and not self.store.is_ours(row):
                raise NotOurs(row.name, self.store.owner_of(row))
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
            self._remember(row_id, after, generation)
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
                self.database.run(lambda conn: self.store.postpone(conn, row_id, row.attempt, None), repeatable=True)
                self.forget(row_id)
            return outcome
        except NotDue:
            self.wake(row_id)
            return None
        except NotOurs:
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
        if self.database.run(lambda conn: self.store.postpone(conn, row.id, attempt, deadline), repeatable=True):
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

    def scan(self, horizon: float, *, jitter: float = 0.0, limit: int = 5000, ahead: float = 0.0) -> int:
        """Set timers for all rows that are due within ``horizon`` seconds, and answer how many there are.

        The safety net under the timers, and what goes on after a restart: with ``jitter``, rows that are overdue are
        spread over so many seconds. What is due within ``ahead`` seconds is read now, so that it need not be then.
        Raises DatabaseAway.
        """
        # What other tables add to a row (names, backends of its hardware) may change without its version.
        self._remembered.clear()
        now, generation = self.clock.now(), self._generation
        soon = now + timedelta(seconds=ahead)
        with self.database.read() as conn:
            found = self.store.due(conn, now + timedelta(seconds=horizon), limit)
            rows = self.store.ahead(conn, [row_id for row_id, _, deadline in found if deadline < soon])
        for row in rows:
            self._remember(row.id, row, generation)
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
            except NotOurs as error:
                log.info("%s %d: %s came too late: %s", self.store.kind, row_id, event.name, error)
                return
            if outcome.status == "stale":
                log.debug("%s %d: %s came too late and is dropped", self.store.kind, row_id, event.name)
            return

    def stop(self) -> None:
        """Give up results that wait for the database: their rows have deadlines."""
        self._stopping.set()


def _changes(row: MachineRow, decision: Decision) -> bool:
    """Whether there is anything to write; if not, the row keeps its version."""
    return bool(decision.path or decision.columns or decision.writes or decision.counters != dict(row.state_counters))
