# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The driver with a machine of a few states over real rows of devices: transactions, effects, deadlines, breakers."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ClassVar

import pytest
from sqlalchemy import text

from mozpool.clock import Clock, SimClock
from mozpool.db import devices, history, images, logs, requests
from mozpool.db.devices import Device
from mozpool.db.engine import Database
from mozpool.db.history import StateChange
from mozpool.db.tables import device_history, device_logs
from mozpool.effects import FRESH, GATHERING, Effects, Part
from mozpool.errors import (
    Conflict,
    DatabaseAway,
    HardwareError,
    LaneError,
    LeaseOver,
    NoSuchBackend,
    NotOurs,
    NotYet,
    OwnFault,
)
from mozpool.lanes import Lanes, Timers
from mozpool.lifeguard.store import DeviceStore
from mozpool.logbook import Logbook
from mozpool.statedriver import Driver, Event, Outcome
from mozpool.statemachine import STAY, TIMEOUT, Context, Effect, Machine, State, Tuning, entry, on, when
from tests.conftest import open_database
from tests.mariadb import MariaDB
from tests.unit.pool_support import NOW, Rows, pool_of

LONG = 10.0
"""Seconds that no test takes unless it fails."""

mysql = pytest.mark.mysql


@dataclass(frozen=True)
class Work(Effect):
    """Something slow, in the lane of the row's relay board."""


@dataclass(frozen=True)
class Look(Effect):
    """Asked again and again until there is an answer."""

    every: ClassVar[float | None] = 1.0


@dataclass(frozen=True)
class Tell(Effect):
    """Not bound to its attempt."""

    channel: ClassVar[str] = "tell"
    bound: ClassVar[bool] = False
    text: str = ""


class Idle(State[Device]):
    """Nothing goes on."""

    name = "idle"
    work = when("work", to="working")
    look = when("look", to="looking")
    doze = when("doze", to="dozing")
    through = when("through", to="passing")

    @on("note", to="idle")
    def note(self, ctx: Context[Device]) -> str | None:
        ctx.set(comments=ctx.args["text"])
        ctx.log(f"noted {ctx.args['text']}")
        ctx.effect(Tell(ctx.args["text"]))
        return STAY

    @on("nothing", to="idle")
    def nothing(self, ctx: Context[Device]) -> str | None:
        return STAY

    @on("break", to="done")
    def breaks(self, ctx: Context[Device]) -> str | None:
        ctx.effect(Work())
        ctx.log("never to be read")

        def write(conn: Any) -> None:
            raise ZeroDivisionError

        ctx.also(write)
        return None


class Working(State[Device]):
    """Waits for its work."""

    name = "working"
    timeout = 60
    tries = 3

    def enter(self, ctx: Context[Device]) -> str | None:
        ctx.effect(Work())
        return None

    work_ok = when("work_ok", to="done")

    @on(TIMEOUT, "work_failed", to=("working", "done"))
    def again(self, ctx: Context[Device]) -> str | None:
        ctx.detail = ctx.args.get("reason")
        return "done" if ctx.count("working") >= (ctx.tries or 0) else "working"


class Looking(State[Device]):
    """Looks until it finds."""

    name = "looking"
    timeout = 60

    def enter(self, ctx: Context[Device]) -> str | None:
        ctx.effect(Look())
        return None

    found = when("found", to="done")
    over = when(TIMEOUT, to="done")


class Dozing(State[Device]):
    """Is over by itself."""

    name = "dozing"
    timeout = 60
    over = when(TIMEOUT, to="done")


class Passing(State[Device]):
    """Goes on at once."""

    name = "passing"

    @entry(to="done")
    def enter(self, ctx: Context[Device]) -> str | None:
        return "done"


class Done(State[Device]):
    """All is done."""

    name = "done"
    reset = when("reset", to="idle")


class Unknown(State[Device]):
    """Not understood."""

    name = "unknown"
    forced_only = True
    reset = when("reset", to="idle")


def machine(**timeouts: float) -> Machine[Device]:
    states: tuple[type[State[Device]], ...] = (Idle, Working, Looking, Dozing, Passing, Done, Unknown)
    return Machine("device", states, unknown="unknown", tuning=Tuning(timeouts=timeouts))


class Hands:
    """Does the effects as the test says, and remembers what it did. The lane is the row's ``relay_info``."""

    def __init__(self) -> None:
        self.did: list[tuple[str, str]] = []
        self.act: Callable[[Device, Effect], Event | None] = self.succeed
        self.probe: Callable[[str], None] = lambda lane: None
        self.probes: list[str] = []

    @staticmethod
    def succeed(row: Device, effect: Effect) -> Event | None:
        return Event("work_ok") if isinstance(effect, Work) else None

    def lane(self, row: Device, effect: Effect) -> str | None:
        if row.relay_info == "nonsense":
            raise HardwareError(row.name, "power", "relay_info is nonsense")
        if row.relay_info == "backend":
            raise NoSuchBackend("there is no backend of this name")
        return row.relay_info

    def failure(self, effect: Effect) -> str | None:
        return "work_failed" if isinstance(effect, Work) else None

    def probe_lane(self, lane: str) -> None:
        self.probes.append(lane)
        self.probe(lane)

    def perform(self, row: Device, effect: Effect) -> Event | None:
        self.did.append((row.name, type(effect).__name__ + getattr(effect, "text", "")))
        return self.act(row, effect)


class Gate:
    """What an effect waits at until it is let through, and succeeds then."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.open = threading.Event()

    def __call__(self, *_: Any) -> Event:
        self.begun.set()
        assert self.open.wait(LONG)
        return Event("work_ok")


class Rig(Rows):
    """A driver as the daemon has it. Under simulated time its timers fire when the test says so."""

    def __init__(self, database: Database, clock: Clock, **timeouts: float) -> None:
        super().__init__(database)
        self.clock = clock
        self.told: list[tuple[str, str, str | None]] = []
        self.seen: list[Outcome[Device]] = []
        self.points: dict[str, Callable[[], object]] = {}
        self.hands = Hands()
        self.quick = Lanes("quick", 2, clock)
        self.workers = Lanes("effects", 3, clock)
        self.timers = Timers(clock)
        self.logbook = Logbook(database, clock)
        self.driver: Driver[Device]
        self.effects: Effects[Device]
        self.restart(**timeouts)

    def restart(self, **timeouts: float) -> None:
        """As after a crash: nothing is left but the database."""
        self.timers = Timers(self.clock)
        self.driver = Driver(
            machine(**timeouts),
            DeviceStore(self.server_id),
            self.database,
            clock=self.clock,
            rng=random.Random(1),
            timers=self.timers,
            quick=self.quick,
            logbook=self.logbook,
            checkpoint=self._checkpoint,
        )
        self.driver.observers.append(self.seen.append)
        self.effects = Effects(
            self.driver,
            self.hands,
            self.workers,
            breaker_failures=3,
            breaker_probe=10.0,
            on_lane=lambda *news: self.told.append(news),
            before_look=lambda: self._checkpoint("look"),
        )

    def _checkpoint(self, point: str) -> None:
        call = self.points.pop(point, None)
        if call is not None:
            call()

    def device(self, state: str = "idle", *, relay_info: str | None = "board-1", **columns: Any) -> int:
        return super().device(state, relay_info=relay_info, **columns)

    def handle(self, device_id: int, event: str, args: Mapping[str, Any] | None = None, **more: Any) -> Outcome[Device]:
        return self.driver.handle(device_id, event, args, **more)

    def state(self, device_id: int) -> str:
        return self.get_device(device_id).state

    def changes(self, device_id: int) -> list[StateChange]:
        with self.database.read() as conn:
            return history.latest(conn, device_history, device_id)

    def settle(self) -> None:
        """Wait until the workers have nothing left to do (what waits at a gate must be let through before)."""
        eventually(lambda: not (self.busy(self.quick) or self.busy(self.workers)))

    @staticmethod
    def busy(lanes: Lanes) -> bool:
        with lanes._lock:
            return bool(lanes._turns or lanes._running)

    def advance(self, seconds: float) -> None:
        """Let simulated time pass, and make the timers' calls that are due then."""
        assert isinstance(self.clock, SimClock)
        self.clock.advance(seconds)
        for call in self.timers._due():
            call()

    def stop(self) -> None:
        self.driver.stop()
        self.timers.stop()
        assert self.workers.stop(LONG)
        assert self.quick.stop(LONG)


def eventually(condition: Callable[[], object]) -> None:
    """Wait for what another thread is about to do."""
    clock = Clock()
    end = clock.monotonic() + LONG
    while not condition():
        assert clock.monotonic() < end
        clock.sleep(0.002)


@contextmanager
def rig_of(database: Database, clock: Clock, **timeouts: float) -> Iterator[Rig]:
    made = Rig(database, clock, **timeouts)
    try:
        yield made
    finally:
        made.stop()


@pytest.fixture
def rig(database: Database) -> Iterator[Rig]:
    with rig_of(database, SimClock(NOW)) as made:
        yield made


@pytest.fixture
def on_sqlite(sqlite_url: str) -> Iterator[Rig]:
    """For what does not depend on the database."""
    database = open_database(sqlite_url)
    with rig_of(database, SimClock(NOW)) as made:
        yield made
    database.dispose()


@pytest.fixture
def on_mysql(mysql_url: str) -> Iterator[Rig]:
    """For what only several connections can do."""
    database = open_database(mysql_url)
    with rig_of(database, SimClock(NOW)) as made:
        yield made
    database.dispose()


def in_another_thread(work: Callable[[], object]) -> None:
    with ThreadPoolExecutor(1) as thread:
        thread.submit(work).result(LONG)


def comment(rig: Rig, device_id: int, words: str = "dusty") -> None:
    rig.database.run(lambda conn: devices.set_attributes(conn, device_id, comments=words))


def test_the_machine_of_these_tests_is_sound():
    assert machine().check() == []


# One transaction a transition


def test_it_writes_state_deadline_counters_and_history_together(rig: Rig):
    device_id = rig.device(state_counters='{"other": 2}')
    before = rig.get_device(device_id)
    outcome = rig.handle(device_id, "doze")
    after = rig.get_device(device_id)
    assert (outcome.status, outcome.accepted, outcome.state) == ("moved", True, "dozing")
    assert outcome.row is not None
    assert outcome.row.state == "idle"
    assert (after.state, after.state_timeout, after.state_since) == ("dozing", NOW + timedelta(seconds=60), NOW)
    assert (after.version, after.attempt) == (before.version + 1, before.attempt + 1)
    assert after.state_counters == {"other": 2}
    (change,) = rig.changes(device_id)
    assert (change.ts, change.from_state, change.to_state, change.event) == (NOW, "idle", "dozing", "doze")
    assert change.version == after.version


def test_it_writes_every_state_that_it_passed_through(rig: Rig):
    device_id = rig.device()
    rig.handle(device_id, "through")
    assert [(c.from_state, c.to_state, c.event) for c in rig.changes(device_id)] == [
        ("idle", "passing", "through"),
        ("passing", "done", "entered"),
    ]
    assert rig.get_device(device_id).attempt == 1


def test_an_event_that_leads_nowhere_leaves_deadline_and_attempt_alone(rig: Rig):
    device_id = rig.device(state_timeout=NOW)
    outcome = rig.handle(device_id, "note", {"text": "dusty"})
    row = rig.get_device(device_id)
    assert (outcome.status, outcome.accepted) == ("stayed", True)
    assert (row.state, row.comments, row.version, row.attempt, row.state_timeout) == ("idle", "dusty", 1, 0, NOW)
    assert rig.changes(device_id) == []


def test_an_event_that_changes_nothing_writes_nothing(rig: Rig):
    device_id = rig.device()
    assert rig.handle(device_id, "nothing").status == "stayed"
    assert rig.get_device(device_id).version == 0


def test_what_it_remembers_of_a_row_is_what_was_written(rig: Rig):
    """An event that wrote nothing did not change the version: somebody else's write gets that number."""
    device_id = rig.device()
    rig.handle(device_id, "reset")
    rig.handle(device_id, "nothing")
    comment(rig, device_id)
    rig.handle(device_id, "doze")
    outcome = rig.handle(device_id, TIMEOUT)
    assert outcome.row is not None
    assert outcome.row.comments == "dusty"


def test_an_event_that_is_not_expected_changes_nothing(rig: Rig):
    device_id = rig.device("done")
    outcome = rig.handle(device_id, "work")
    assert (outcome.status, outcome.accepted, outcome.state) == ("ignored", False, "done")
    assert rig.get_device(device_id).version == 0


def test_a_row_that_is_gone_is_no_error(rig: Rig):
    outcome = rig.handle(4711, "work")
    assert (outcome.status, outcome.row, outcome.state) == ("gone", None, None)


def test_a_transition_that_fails_leaves_nothing_behind(rig: Rig):
    """Neither row nor history, neither effect nor log line nor timer; and nobody is told."""
    device_id = rig.device()
    with pytest.raises(ZeroDivisionError):
        rig.handle(device_id, "break")
    rig.logbook.flush()
    rig.settle()
    row = rig.get_device(device_id)
    assert (row.state, row.version, row.attempt) == ("idle", 0, 0)
    assert rig.changes(device_id) == []
    assert rig.hands.did == []
    assert rig.seen == []
    assert ("device", device_id) not in rig.timers
    with rig.database.read() as conn:
        assert logs.latest(conn, device_logs, device_id) == []


def test_a_change_of_state_is_logged_and_a_re_entry_is_not(on_sqlite: Rig):
    rig, gate = on_sqlite, Gate()
    rig.hands.act = gate
    device_id = rig.device()
    rig.handle(device_id, "work")
    rig.handle(device_id, "work_failed")
    rig.handle(device_id, "work_failed")
    rig.handle(device_id, "work_failed", {"reason": "no power"})
    gate.open.set()
    rig.logbook.flush()
    with rig.database.read() as conn:
        said = [line.message for line in logs.latest(conn, device_logs, device_id)]
    assert said == ["idle -> working on work", "working -> done on work_failed (no power)"]
    assert [(c.from_state, c.to_state, c.detail) for c in rig.changes(device_id)] == [
        ("idle", "working", None),
        ("working", "done", "no power"),
    ]


@mysql
def test_a_lost_race_is_decided_again_on_the_new_row(on_mysql: Rig):
    rig = on_mysql
    device_id = rig.device()
    rig.points["decided"] = lambda: in_another_thread(lambda: rig.driver.force(device_id, "done"))
    assert rig.handle(device_id, "doze").status == "ignored"
    assert rig.state(device_id) == "done"
    assert [change.to_state for change in rig.changes(device_id)] == ["done"]


@mysql
def test_a_comment_does_not_undo_a_transition_nor_the_other_way_round(on_mysql: Rig):
    rig = on_mysql
    device_id = rig.device()
    rig.points["decided"] = lambda: in_another_thread(lambda: comment(rig, device_id))
    assert rig.handle(device_id, "doze").status == "moved"
    row = rig.get_device(device_id)
    assert (row.state, row.comments, row.version, row.attempt) == ("dozing", "dusty", 2, 1)


@mysql
def test_of_two_threads_with_the_same_event_one_wins(on_mysql: Rig):
    rig, together = on_mysql, threading.Barrier(4)
    device_id = rig.device()

    def doze() -> str:
        together.wait(LONG)
        return rig.handle(device_id, "doze").status

    with ThreadPoolExecutor(4) as threads:
        statuses = sorted(future.result(LONG) for future in [threads.submit(doze) for _ in range(4)])
    assert statuses == ["ignored", "ignored", "ignored", "moved"]
    assert len(rig.changes(device_id)) == 1


def kill(server: MariaDB, rig: Rig) -> None:
    """End all the connections that have a transaction open."""
    for (number,) in server.execute("SELECT trx_mysql_thread_id FROM information_schema.innodb_trx"):
        server.execute("KILL %s", number)


@mysql
def test_it_does_a_transition_again_whose_connection_was_lost_before_the_commit(on_mysql: Rig, mariadb: MariaDB):
    rig = on_mysql
    device_id = rig.device()
    rig.points["written"] = lambda: kill(mariadb, rig)
    assert rig.handle(device_id, "work").status == "moved"
    rig.settle()
    assert [change.to_state for change in rig.changes(device_id)] == ["working", "done"]
    assert rig.hands.did == [("panda-0001", "Work")]


@mysql
@pytest.mark.parametrize("written_since", [False, True])
def test_it_recognises_a_commit_whose_answer_was_lost(on_mysql: Rig, mariadb: MariaDB, written_since: bool):
    """By its token in the row, or in the history when others have written the row since."""
    rig = on_mysql
    device_id = rig.device()
    connections: list[Any] = []

    def lose_the_answer(conn: Any) -> None:
        number = conn.execute(text("SELECT CONNECTION_ID()")).scalar_one()
        # The server commits, and its answer is lost: the transaction is over when the connection is.
        conn.exec_driver_sql("COMMIT")
        mariadb.execute("KILL %s", number)
        if written_since:
            in_another_thread(lambda: comment(rig, device_id))
        connections.append(number)

    real = rig.driver.store.write

    def write(conn: Any, row: Device, change: Any) -> bool:
        done = real(conn, row, change)
        if not connections:
            lose_the_answer(conn)
        return done

    rig.driver.store.write = write  # type: ignore[method-assign]
    assert rig.handle(device_id, "doze").status == "moved"
    assert len(connections) == 1
    assert [change.to_state for change in rig.changes(device_id)] == ["dozing"]
    assert rig.get_device(device_id).attempt == 1
    assert ("device", device_id) in rig.timers


def test_the_others_hear_of_a_transition_when_one_who_is_told_fails(on_sqlite: Rig, caplog: pytest.LogCaptureFixture):
    rig = on_sqlite
    heard: list[Outcome[Device]] = []

    def broken(outcome: Outcome[Device]) -> None:
        raise ZeroDivisionError

    rig.driver.observers[:] = [broken, heard.append]
    assert rig.handle(rig.device(), "doze").status == "moved"
    assert [outcome.state for outcome in heard] == ["dozing"]
    assert "an observer of device 1 failed" in caplog.messages


# Forced and conditional changes of state


def test_a_forced_change_leads_anywhere_and_starts_anew(rig: Rig):
    gate, device_id = Gate(), rig.device("done", state_counters='{"working": 2}')
    rig.hands.act = gate
    outcome = rig.driver.force(device_id, "working", columns={"comments": "again"})
    row = rig.get_device(device_id)
    assert (outcome.status, row.state, row.state_counters, row.comments) == ("moved", "working", {}, "again")
    gate.open.set()
    rig.settle()
    assert rig.hands.did == [("panda-0001", "Work")]
    assert rig.changes(device_id)[0].event == "forced"


def test_a_conditional_change_wants_the_state_that_it_names(rig: Rig):
    device_id = rig.device("done")
    with pytest.raises(Conflict, match="panda-0001 is in state done, not idle"):
        rig.driver.force(device_id, "dozing", expected="idle")
    assert rig.get_device(device_id).version == 0
    assert rig.driver.force(device_id, "dozing", expected="done").status == "moved"


@pytest.mark.parametrize("state", ["unknown", "from_the_future"])
def test_from_a_state_that_nobody_knows_any_condition_holds(rig: Rig, state: str):
    device_id = rig.device(state)
    assert rig.driver.force(device_id, "idle", expected="done").status == "moved"


@mysql
def test_a_conditional_change_is_judged_on_the_row_that_it_writes(on_mysql: Rig):
    rig = on_mysql
    device_id = rig.device()
    rig.points["decided"] = lambda: in_another_thread(lambda: rig.handle(device_id, "doze"))
    with pytest.raises(Conflict):
        rig.driver.force(device_id, "done", expected="idle")
    assert rig.state(device_id) == "dozing"


# Effects and their results


def test_an_effect_runs_after_the_commit_and_its_result_comes_back(rig: Rig):
    device_id = rig.device()
    states: list[str] = []

    def look(row: Device, effect: Effect) -> Event:
        states.append(rig.state(device_id))
        return Event("work_ok")

    rig.hands.act = look
    rig.points["written"] = lambda: states.append("written")
    rig.points["committed"] = lambda: states.append("committed")
    rig.handle(device_id, "work")
    rig.settle()
    assert states == ["written", "committed", "working"]
    assert rig.state(device_id) == "done"


def test_a_failure_comes_back_as_an_event_and_is_logged(on_sqlite: Rig):
    rig = on_sqlite

    def fail(row: Device, effect: Effect) -> Event:
        raise HardwareError(row.name, "power cycle", "relay 1 did not switch")

    rig.hands.act = fail
    device_id = rig.device()
    rig.handle(device_id, "work")
    for tries in (1, 2, 3):
        rig.settle()
        assert len(rig.hands.did) == tries
        assert rig.state(device_id) == "working", "what fails at once is not tried again at once"
        rig.advance(1.0)
    rig.settle()
    assert rig.state(device_id) == "done"
    rig.logbook.flush()
    with rig.database.read() as conn:
        said = [line.message for line in logs.latest(conn, device_logs, device_id) if line.source == "bmm"]
    assert said == ["power cycle of panda-0001 failed: relay 1 did not switch"] * 3


def test_an_effect_that_breaks_counts_as_failed(on_sqlite: Rig, caplog: pytest.LogCaptureFixture):
    rig = on_sqlite

    def broken(row: Device, effect: Effect) -> Event:
        raise ZeroDivisionError

    rig.hands.act = broken
    device_id = rig.device()
    rig.handle(device_id, "work")
    for _ in range(3):
        rig.settle()
        rig.advance(1.0)
    rig.settle()
    assert rig.state(device_id) == "done"
    assert "Work of panda-0001 broke" in caplog.messages


def test_a_failure_that_took_a_while_counts_at_once(on_sqlite: Rig):
    rig = on_sqlite

    def fail(row: Device, effect: Effect) -> Event:
        assert isinstance(rig.clock, SimClock)
        rig.clock.advance(1.0)
        raise HardwareError(row.name, "power cycle", "relay 1 did not switch")

    rig.hands.act = fail
    device_id = rig.device()
    rig.handle(device_id, "work")
    rig.settle()
    assert len(rig.hands.did) == 3
    assert rig.state(device_id) == "done"


def test_a_fault_of_the_servers_own_uses_up_no_tries_and_is_said_once(on_sqlite: Rig):
    rig = on_sqlite
    mended: list[bool] = []

    def work(row: Device, effect: Effect) -> Event:
        if not mended:
            raise OwnFault(row.name, "network boot", "the disk is full")
        return Event("work_ok")

    rig.hands.act = work
    device_id = rig.device()
    rig.handle(device_id, "work")
    for tries in range(1, 6):
        rig.settle()
        assert len(rig.hands.did) == tries
        rig.advance(1.0)
    rig.settle()
    assert rig.get_device(device_id).state_counters == {}
    assert rig.effects.lane_states() == {}
    mended.append(True)
    rig.advance(1.0)
    rig.settle()
    assert rig.state(device_id) == "done"
    rig.logbook.flush()
    with rig.database.read() as conn:
        said = [line.message for line in logs.latest(conn, device_logs, device_id) if line.source == "bmm"]
    assert said == ["network boot of panda-0001 failed: the disk is full"]


def test_what_it_is_not_the_time_for_yet_is_tried_again_then_and_no_failure(on_sqlite: Rig):
    """Its state's time limit counts from when it is done: it lasts 60 seconds, and this waits for minutes."""
    rig = on_sqlite
    turn = rig.clock.monotonic() + 200.0

    def work(row: Device, effect: Effect) -> Event:
        left = turn - rig.clock.monotonic()
        if left > 0:
            raise NotYet(min(left, 40.0))
        raise HardwareError(row.name, "start", "exit code 1")

    rig.hands.act = work
    device_id = rig.device()
    rig.handle(device_id, "work")
    for passed in range(20):
        rig.settle()
        assert len(rig.hands.did) == 1 + passed * 10 // 40
        assert rig.effects.waits(device_id, rig.get_device(device_id).attempt)
        rig.advance(10.0)
    rig.settle()
    row = rig.get_device(device_id)
    assert (row.state, row.state_counters) == ("working", {})
    assert row.state_timeout is not None
    assert row.state_timeout - rig.clock.now() >= timedelta(seconds=0.9 * 60)
    assert rig.effects.lane_states() == {}
    rig.advance(1.0)
    rig.settle()
    assert rig.get_device(device_id).state_counters == {"working": 1}, "now it has failed"


def test_what_its_lane_is_at_fault_for_is_no_failure_of_a_patient_effect(
    on_sqlite: Rig, monkeypatch: pytest.MonkeyPatch
):
    rig = on_sqlite
    monkeypatch.setattr(Work, "patient", True)
    monkeypatch.setattr(Work, "every", 5.0)

    def no_answer(row: Device, effect: Effect) -> Event:
        raise LaneError(row.name, "start", "no answer", culprit="cloud")

    rig.hands.act = no_answer
    device_id = rig.device()
    rig.handle(device_id, "work")
    for tries in (1, 2, 3):
        rig.settle()
        assert len(rig.hands.did) == tries
        assert rig.get_device(device_id).state_counters == {}
        rig.advance(5.0)
    assert rig.effects.lane_states() == {"board-1": "failed"}


def test_the_event_of_a_failure_comes_when_its_effect_has_paused(on_sqlite: Rig, monkeypatch: pytest.MonkeyPatch):
    rig = on_sqlite
    monkeypatch.setattr(Work, "pause", 5.0)

    def fail(row: Device, effect: Effect) -> Event:
        raise HardwareError(row.name, "start", "exit code 1")

    rig.hands.act = fail
    device_id = rig.device()
    rig.handle(device_id, "work")
    rig.settle()
    rig.advance(4.0)
    rig.settle()
    assert rig.get_device(device_id).state_counters == {}
    rig.advance(1.0)
    rig.settle()
    assert rig.get_device(device_id).state_counters == {"working": 1}
    assert rig.seen[-1].decision is not None
    assert rig.seen[-1].decision.detail == "start of panda-0001 failed: exit code 1", "the event says why"


@pytest.mark.parametrize("relay_info", ["nonsense", "backend"])
def test_an_effect_without_a_lane_fails_a_second_later(on_sqlite: Rig, relay_info: str):
    """Not at once: a state that retries at once would go round and round."""
    rig = on_sqlite
    device_id = rig.device(relay_info=relay_info)
    rig.handle(device_id, "work")
    for failures in (1, 2):
        rig.settle()
        assert rig.get_device(device_id).state_counters == ({"working": failures - 1} if failures > 1 else {})
        rig.advance(1)
        rig.settle()
    rig.advance(1)
    rig.settle()
    assert rig.state(device_id) == "done"
    assert rig.hands.did == []


def test_a_comment_does_not_make_a_running_effect_stale(rig: Rig):
    gate, device_id = Gate(), rig.device()
    rig.hands.act = gate
    rig.handle(device_id, "work")
    assert gate.begun.wait(LONG)
    comment(rig, device_id)
    gate.open.set()
    rig.settle()
    assert rig.state(device_id) == "done"
    assert rig.get_device(device_id).comments == "dusty"


def test_the_result_of_an_attempt_that_is_over_is_dropped(rig: Rig):
    gate, device_id = Gate(), rig.device()
    rig.hands.act = gate
    rig.handle(device_id, "work")
    assert gate.begun.wait(LONG)
    rig.driver.force(device_id, "idle")
    rig.driver.force(device_id, "looking")
    version = rig.get_device(device_id).version
    gate.open.set()
    eventually(lambda: ("panda-0001", "Look") in rig.hands.did)
    rig.settle()
    assert (rig.state(device_id), rig.get_device(device_id).version) == ("looking", version)


def test_an_event_for_an_attempt_that_is_over_is_stale(rig: Rig):
    device_id = rig.device()
    assert rig.handle(device_id, "doze", attempt=1).status == "stale"
    assert rig.handle(device_id, "doze", attempt=0).status == "moved"
    assert rig.handle(device_id, TIMEOUT, attempt=0).status == "stale"
    assert rig.state(device_id) == "dozing"


def hold_the_lane(rig: Rig) -> tuple[Gate, int]:
    """Another device at the same relay board takes its time."""
    gate, slow = Gate(), rig.device(name="slow")
    rig.hands.act = lambda row, effect: gate() if row.name == "slow" else Event("work_ok")
    rig.handle(slow, "work")
    assert gate.begun.wait(LONG)
    return gate, slow


def test_a_queued_effect_is_replaced_in_place(rig: Rig):
    gate, _ = hold_the_lane(rig)
    device_id = rig.device()
    for _ in range(5):
        rig.handle(device_id, "work")
        rig.driver.force(device_id, "idle")
    rig.handle(device_id, "work")
    gate.open.set()
    rig.settle()
    assert rig.hands.did == [("slow", "Work"), ("panda-0002", "Work")]
    assert rig.state(device_id) == "done"


def test_a_queued_effect_is_looked_at_again_before_it_runs(rig: Rig):
    gate, _ = hold_the_lane(rig)
    moved_on, given_away, stays = rig.device(), rig.device(), rig.device()
    for device_id in (moved_on, given_away, stays):
        rig.handle(device_id, "work")
    rig.driver.force(moved_on, "idle")
    other = rig.server("server-2.example.com")
    rig.database.run(lambda conn: devices.set_attributes(conn, given_away, imaging_server_id=other))
    rig.advance(20)
    gate.open.set()
    rig.settle()
    assert rig.hands.did == [("slow", "Work"), ("panda-0004", "Work")]
    assert (rig.state(moved_on), rig.state(given_away), rig.state(stays)) == ("idle", "working", "done")


def test_an_effect_that_is_not_bound_runs_though_the_row_has_moved_on(rig: Rig):
    gate, _ = hold_the_lane(rig)
    device_id = rig.device()
    rig.handle(device_id, "note", {"text": "one"})
    rig.handle(device_id, "note", {"text": "two"})
    rig.driver.force(device_id, "done")
    gate.open.set()
    rig.settle()
    assert rig.hands.did == [("slow", "Work"), ("panda-0002", "Telltwo")]


def test_a_thread_that_comes_late_does_not_replace_a_newer_effect(on_sqlite: Rig):
    """Two transitions are committed in order, but the first one's thread is slow to hand over its effect."""
    rig = on_sqlite
    gate, _ = hold_the_lane(rig)
    device_id = rig.device()
    rig.points["committed"] = lambda: (rig.driver.force(device_id, "idle"), rig.handle(device_id, "work"))
    rig.handle(device_id, "work")
    assert rig.get_device(device_id).attempt == 3
    gate.open.set()
    rig.settle()
    assert rig.state(device_id) == "done"


def test_a_thread_that_comes_late_does_not_replace_a_newer_deadline(on_sqlite: Rig):
    rig = on_sqlite
    device_id = rig.device()
    rig.points["committed"] = lambda: rig.driver.force(device_id, "dozing")
    rig.driver.force(device_id, "idle")
    assert rig.state(device_id) == "dozing"
    rig.advance(60)
    rig.settle()
    assert rig.state(device_id) == "done"


def test_a_repeated_effect_asks_until_there_is_an_answer(on_sqlite: Rig):
    rig, answers = on_sqlite, iter([None, None, Event("found")])
    rig.hands.act = lambda row, effect: next(answers)
    device_id = rig.device()
    rig.handle(device_id, "look")
    for asked in (1, 2, 3):
        rig.settle()
        assert len(rig.hands.did) == asked
        rig.advance(0.5)
        rig.settle()
        assert len(rig.hands.did) == asked
        rig.advance(0.5)
    rig.settle()
    assert len(rig.hands.did) == 3
    assert rig.state(device_id) == "done"


def test_a_repeated_effect_ends_with_its_attempt(on_sqlite: Rig):
    rig = on_sqlite
    leaves, stays = rig.device(), rig.device()
    rig.handle(leaves, "look")
    rig.handle(stays, "look")
    rig.settle()
    rig.driver.force(leaves, "idle")
    for _ in range(4):
        rig.advance(1)
        rig.settle()
    assert sorted(rig.hands.did) == [("panda-0001", "Look")] + [("panda-0002", "Look")] * 5


def test_a_repeated_effect_forgives_failures(on_sqlite: Rig):
    rig = on_sqlite
    answers = [HardwareError("panda-0001", "ping", "no answer"), HardwareError("panda-0001", "ping", "no answer")]

    def look(row: Device, effect: Effect) -> Event:
        if answers:
            raise answers.pop()
        return Event("found")

    rig.hands.act = look
    device_id = rig.device()
    rig.handle(device_id, "look")
    for _ in range(2):
        rig.settle()
        assert rig.state(device_id) == "looking"
        rig.advance(1)
    rig.settle()
    assert rig.state(device_id) == "done"


# Deadlines


def test_a_row_whose_effect_waits_for_its_lane_gets_more_time_and_no_try_is_counted(rig: Rig):
    gate, _ = hold_the_lane(rig)
    device_id = rig.device()
    rig.handle(device_id, "work")
    assert isinstance(rig.clock, SimClock)
    for passed in (61, 122, 183):
        rig.clock.advance(61)
        assert rig.driver.look_at(device_id) is None
        row = rig.get_device(device_id)
        assert (row.state, row.attempt, row.state_counters) == ("working", 1, {})
        assert row.state_timeout == NOW + timedelta(seconds=passed + 60)
    gate.open.set()
    rig.settle()
    assert rig.state(device_id) == "done"


def test_the_time_limit_counts_from_the_start_of_the_effect(rig: Rig):
    gate, _ = hold_the_lane(rig)
    device_id, second = rig.device(), Gate()
    first = rig.hands.act
    rig.hands.act = lambda row, effect: first(row, effect) if row.name == "slow" else second()
    rig.handle(device_id, "work")
    assert isinstance(rig.clock, SimClock)
    rig.clock.advance(50)
    gate.open.set()
    assert second.begun.wait(LONG)
    row = rig.get_device(device_id)
    assert (row.state_timeout, row.attempt) == (NOW + timedelta(seconds=110), 1)
    rig.clock.advance(59)
    assert rig.driver.look_at(device_id) is None
    rig.clock.advance(1)
    outcome = rig.driver.look_at(device_id)
    assert outcome is not None
    assert outcome.status == "moved"
    assert rig.get_device(device_id).state_counters == {"working": 1}
    second.open.set()
    rig.settle()


def test_an_effect_that_starts_at_once_moves_no_deadline(rig: Rig):
    gate, device_id = Gate(), rig.device()
    rig.hands.act = gate
    rig.handle(device_id, "work")
    assert gate.begun.wait(LONG)
    assert rig.get_device(device_id).version == 1
    gate.open.set()


@mysql
def test_a_time_limit_that_was_moved_while_it_was_looked_at_does_not_count(on_mysql: Rig):
    """The effect starts between the look at the row and the transition."""
    rig = on_mysql
    device_id = rig.device("dozing", state_timeout=NOW)
    later = NOW + timedelta(seconds=60)

    def move() -> None:
        rig.database.run(lambda conn: devices.postpone(conn, device_id, 0, later))

    rig.points["decided"] = lambda: in_another_thread(move)
    assert rig.driver.look_at(device_id) is None
    rig.settle()
    assert rig.state(device_id) == "dozing"
    assert ("device", device_id) in rig.timers
    rig.advance(60)
    rig.settle()
    assert rig.state(device_id) == "done"


@mysql
def test_a_request_that_is_renewed_at_its_last_moment_does_not_expire(mysql_url: str):
    """Its client was told that it may keep the device."""
    database, later = open_database(mysql_url), NOW + timedelta(hours=1)
    with pool_of(database, SimClock(NOW)) as pool:
        device_id, request_id = pool.device(), pool.request(expires=NOW)
        pool.match()

        def renew(point: str) -> None:
            if point == "decided":
                pool.checkpoints.clear()
                in_another_thread(lambda: database.run(lambda conn: requests.set_expires(conn, request_id, later)))

        pool.checkpoints.append(renew)
        assert pool.driver.look_at(request_id) is None
        assert pool.holder(device_id) == request_id
        assert pool.get_request(request_id).expires == later
    database.dispose()


def test_a_deadline_that_others_brought_forward_is_kept(on_sqlite: Rig):
    """What the driver remembers of the row says that nothing is due yet."""
    rig = on_sqlite
    device_id = rig.device()
    rig.handle(device_id, "doze")
    rig.database.run(lambda conn: devices.set_attributes(conn, device_id, state_timeout=NOW))
    outcome = rig.driver.look_at(device_id)
    assert outcome is not None
    assert rig.state(device_id) == "done"


def test_a_scan_finds_what_others_brought_forward(on_sqlite: Rig):
    """Another server made a device due at once and could not tell; its timer is for later."""
    rig = on_sqlite
    device_id = rig.device()
    rig.handle(device_id, "doze")
    rig.database.run(lambda conn: devices.set_attributes(conn, device_id, state_timeout=NOW))
    rig.advance(1)
    rig.settle()
    assert rig.state(device_id) == "dozing"
    rig.driver.scan(60)
    rig.advance(0)
    rig.settle()
    assert rig.state(device_id) == "done"


def test_a_time_limit_ends_when_it_is_due_and_not_at_the_next_poll(database: Database):
    clock = Clock()
    with rig_of(database, clock, dozing=0.1) as rig:
        rig.timers.start()
        device_id = rig.device()
        began = clock.monotonic()
        rig.handle(device_id, "doze")
        eventually(lambda: rig.seen and rig.seen[-1].state == "done")
        assert 0.1 <= clock.monotonic() - began < 2
        assert rig.changes(device_id)[-1].event == "timeout"


def test_nothing_happens_before_the_time_is_over(on_sqlite: Rig):
    rig = on_sqlite
    device_id = rig.device()
    rig.handle(device_id, "doze")
    rig.advance(59.9)
    rig.settle()
    assert rig.driver.look_at(device_id) is None
    assert rig.state(device_id) == "dozing"
    rig.advance(0.1)
    rig.settle()
    assert rig.state(device_id) == "done"


def test_a_due_row_is_looked_at_again_when_the_database_is_back(on_sqlite: Rig, monkeypatch: pytest.MonkeyPatch):
    rig = on_sqlite
    device_id = rig.device()
    rig.handle(device_id, "doze")
    rig.driver.forget(device_id)
    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(rig.driver.store, "load", away)
        rig.advance(60)
        rig.settle()
    assert rig.state(device_id) == "dozing"
    rig.advance(1)
    rig.settle()
    assert rig.state(device_id) == "done"


# What is remembered


def change(rig: Rig, device_id: int, **columns: Any) -> None:
    """Somebody else writes a row."""
    rig.database.run(lambda conn: devices.set_attributes(conn, device_id, **columns))


def test_an_event_that_changes_nothing_is_decided_on_the_row_itself(on_sqlite: Rig):
    rig = on_sqlite
    device_id = rig.device("done")
    rig.handle(device_id, "reset")
    assert rig.handle(device_id, "nothing").status == "stayed"
    change(rig, device_id, state="done")
    assert rig.handle(device_id, "nothing").status == "ignored"


def test_what_others_wrote_is_not_overwritten(rig: Rig):
    device_id = rig.device("done")
    rig.handle(device_id, "reset")
    change(rig, device_id, state="done", comments="theirs")
    assert rig.handle(device_id, "note", {"text": "mine"}).status == "ignored"
    assert rig.get_device(device_id).comments == "theirs"


def test_a_due_row_that_went_to_another_server_is_left_alone(on_sqlite: Rig):
    rig = on_sqlite
    device_id = rig.device()
    rig.handle(device_id, "doze")
    change(rig, device_id, imaging_server_id=rig.server("server-2.example.com"))
    assert isinstance(rig.clock, SimClock)
    rig.clock.advance(60)
    assert rig.driver.look_at(device_id) is None
    rig.settle()
    assert rig.state(device_id) == "dozing"


def test_rows_of_other_servers_are_not_remembered(on_sqlite: Rig):
    """Whether a row is remembered tells that this server may act on it."""
    rig = on_sqlite
    device_id = rig.device(imaging_server_id=rig.server("server-2.example.com"))
    assert rig.driver.handle(device_id, "doze", for_others=True).status == "moved"
    assert rig.driver.remembered(device_id) is None


def test_a_row_that_is_written_beside_its_transitions_is_amended(rig: Rig):
    device_id = rig.device("done")
    rig.handle(device_id, "reset")
    change(rig, device_id, comments="theirs")
    rig.driver.amend(device_id, lambda row: row.version == 1, comments="theirs")
    assert rig.driver.remembered(device_id) == rig.get_device(device_id)


def test_a_late_amendment_gives_no_version_that_somebody_else_may_give(on_sqlite: Rig):
    """The thread that wrote the row beside its transitions says so after another thread's next transition."""
    rig = on_sqlite
    device_id = rig.device("done")
    rig.handle(device_id, "reset")
    change(rig, device_id, comments="written")
    rig.driver.forget(device_id)
    rig.handle(device_id, "doze")
    rig.driver.amend(device_id, lambda row: row.version == 1, comments="written")
    change(rig, device_id, state="idle", comments="theirs")
    assert rig.handle(device_id, "timeout").status == "ignored"
    assert rig.get_device(device_id).comments == "theirs"


def test_names_that_come_from_other_tables_are_looked_up_again_after_a_scan(on_sqlite: Rig):
    rig = on_sqlite
    device_id = rig.device("done")
    rig.handle(device_id, "reset")
    rig.database.run(lambda conn: conn.execute(text("UPDATE hardware_types SET model = 'B3'")))
    rig.driver.scan(60)
    assert rig.driver.remembered(device_id) is None


def away(*_: Any) -> Any:
    raise DatabaseAway("the database is away")


def test_a_deadline_of_a_state_that_has_none_is_taken_away(rig: Rig):
    device_id = rig.device("idle", state_timeout=NOW - timedelta(seconds=5))
    rig.driver.look_at(device_id)
    assert rig.get_device(device_id).state_timeout is None
    assert rig.state(device_id) == "idle"


def test_the_rows_of_another_server_are_its_own_affair(rig: Rig):
    other = rig.server("server-2.example.com")
    device_id = rig.device("dozing", state_timeout=NOW, imaging_server_id=other)
    assert rig.driver.scan(60) == 0
    assert rig.driver.look_at(device_id) is None
    for refused in (lambda: rig.driver.force(device_id, "working"), lambda: rig.driver.handle(device_id, "wake")):
        with pytest.raises(NotOurs, match=r"imaging server server-2\.example\.com acts on panda-0001"):
            refused()
    assert rig.state(device_id) == "dozing"
    rig.driver.handle(device_id, "wake", for_others=True)
    rig.settle()
    assert rig.hands.did == []
    assert ("device", device_id) not in rig.timers


def taken(rig: Rig, device_id: int) -> None:
    """Another server has taken a device over."""
    with rig.database.read() as conn:
        there = images.imaging_server_id(conn, "server-2.example.com")
    owner_id = there or rig.server("server-2.example.com")
    change(rig, device_id, owner_id=owner_id, came_from_id=rig.server_id, epoch=1)


def test_a_row_that_was_taken_over_is_refused_to_its_home_and_obeys_its_new_owner(rig: Rig):
    device_id = rig.device("dozing", state_timeout=NOW)
    taken(rig, device_id)
    with pytest.raises(NotOurs) as error:
        rig.handle(device_id, "timeout")
    assert error.value.owner == "server-2.example.com"
    assert rig.driver.scan(60) == 0
    owner = Driver(
        machine(),
        DeviceStore(rig.get_device(device_id).owner_id),
        rig.database,
        clock=rig.clock,
        rng=random.Random(1),
        timers=rig.timers,
        quick=rig.quick,
        logbook=rig.logbook,
    )
    assert owner.scan(60) == 1
    assert owner.handle(device_id, "timeout").status == "moved"
    assert rig.state(device_id) == "done"


def test_what_is_remembered_of_a_row_that_was_taken_over_writes_nothing(rig: Rig):
    device_id = rig.device("done")
    rig.handle(device_id, "reset")
    taken(rig, device_id)
    assert rig.driver.remembered(device_id) is not None
    before = rig.get_device(device_id)
    for event in ("doze", "nothing", "unheard_of"):
        with pytest.raises(NotOurs):
            rig.handle(device_id, event)
    assert rig.get_device(device_id) == before
    assert rig.driver.remembered(device_id) is None


@mysql
def test_a_row_that_is_taken_over_during_a_transition_is_not_written(on_mysql: Rig):
    rig = on_mysql
    device_id = rig.device()
    rig.points["decided"] = lambda: in_another_thread(lambda: taken(rig, device_id))
    with pytest.raises(NotOurs):
        rig.handle(device_id, "work")
    rig.settle()
    assert rig.state(device_id) == "idle"
    assert rig.changes(device_id) == []
    assert rig.hands.did == []


def test_nobody_asks_for_the_reasons_of_a_row_that_is_anothers(on_sqlite: Rig):
    """Whoever acts on it decides what may be done to it."""
    rig = on_sqlite
    device_id = rig.device()
    taken(rig, device_id)

    def guard(row: Device) -> None:
        raise Conflict("it is in use")

    for refused in (
        lambda: rig.handle(device_id, "doze", guard=guard),
        lambda: rig.driver.force(device_id, "done", expected="dozing", guard=guard),
    ):
        with pytest.raises(NotOurs):
            refused()
    with pytest.raises(Conflict):
        rig.handle(device_id, "doze", guard=guard, for_others=True)


def test_an_attempt_that_is_over_is_over_whoever_owns_the_row(on_sqlite: Rig):
    rig = on_sqlite
    device_id = rig.device()
    taken(rig, device_id)
    assert rig.handle(device_id, "doze", attempt=7).status == "stale"


def test_what_is_done_for_another_is_followed_up_by_that(rig: Rig):
    """The row is written; effects and deadlines are its owner's."""
    device_id = rig.device()
    taken(rig, device_id)
    outcome = rig.handle(device_id, "work", for_others=True)
    assert (outcome.status, rig.state(device_id)) == ("moved", "working")
    rig.settle()
    assert rig.hands.did == []
    assert ("device", device_id) not in rig.timers
    assert [found.decision.event for found in rig.seen if found.decision] == ["work"], "observers hear of it"


def test_what_may_be_done_for_others_is_done_for_oneself_like_anything_else(on_sqlite: Rig):
    rig = on_sqlite
    device_id = rig.device()
    rig.handle(device_id, "work", for_others=True)
    rig.settle()
    assert rig.hands.did == [("panda-0001", "Work")]
    assert rig.state(device_id) == "done"


def test_a_result_for_a_row_that_was_taken_over_meanwhile_is_dropped(rig: Rig):
    gate = Gate()
    rig.hands.act = gate
    device_id = rig.device()
    rig.handle(device_id, "work")
    assert gate.begun.wait(LONG)
    taken(rig, device_id)
    gate.open.set()
    rig.settle()
    assert rig.state(device_id) == "working"
    assert not rig.effects.busy(device_id)


# Other servers may have taken rows


def test_all_is_forgotten_at_once(on_sqlite: Rig):
    rig = on_sqlite
    several = [rig.device("done") for _ in range(3)]
    for device_id in several:
        rig.handle(device_id, "reset")
    assert None not in map(rig.driver.remembered, several)
    rig.driver.forget_all()
    assert set(map(rig.driver.remembered, several)) == {None}


def test_what_was_read_before_all_was_forgotten_is_not_remembered_after(
    on_sqlite: Rig, monkeypatch: pytest.MonkeyPatch
):
    """A thread that stood still between its load and the end of it."""
    rig = on_sqlite
    device_id = rig.device()
    load = rig.driver.store.load

    def load_and_stand_still(conn: Any, row_id: int) -> Device | None:
        row = load(conn, row_id)
        rig.driver.forget_all()
        return row

    monkeypatch.setattr(rig.driver.store, "load", load_and_stand_still)
    assert rig.driver.load(device_id) is not None
    assert rig.driver.remembered(device_id) is None
    monkeypatch.undo()
    assert rig.driver.load(device_id) == rig.driver.remembered(device_id)


@pytest.mark.parametrize("point", ["loaded", "decided", "written", "committed"])
def test_what_a_transition_wrote_is_not_remembered_when_all_was_forgotten_during_it(on_sqlite: Rig, point: str):
    rig = on_sqlite
    device_id = rig.device()
    rig.points[point] = rig.driver.forget_all
    assert rig.handle(device_id, "doze").status == "moved"
    assert rig.driver.remembered(device_id) is None
    rig.handle(device_id, "timeout")
    assert rig.driver.remembered(device_id) == rig.get_device(device_id)


def test_an_effect_looks_again_when_all_was_forgotten_before_it_started(rig: Rig):
    """However fresh the row was that it was queued for."""
    device_id = rig.device()

    def lose() -> None:
        taken(rig, device_id)
        rig.driver.forget_all()

    rig.points["look"] = lose
    rig.handle(device_id, "work")
    rig.settle()
    assert rig.hands.did == []
    assert rig.state(device_id) == "working"
    assert not rig.effects.busy(device_id)


def test_before_each_look_the_worker_says_so(on_sqlite: Rig):
    rig = on_sqlite
    device_id = rig.device()
    looked: list[str] = []

    def look() -> None:
        looked.append(threading.current_thread().name)
        rig.points["effect"] = lambda: looked.append("effect")

    rig.points["look"] = look
    rig.handle(device_id, "work")
    rig.settle()
    assert looked[0].startswith("effects-")
    assert looked[1:] == ["effect"]


def test_a_worker_without_a_database_looks_again_in_a_second(on_sqlite: Rig):
    rig = on_sqlite
    device_id = rig.device()
    rig.points["look"] = away
    rig.handle(device_id, "work")
    rig.settle()
    assert rig.effects.busy(device_id)
    assert rig.hands.did == []
    rig.advance(1.0)
    rig.settle()
    assert rig.state(device_id) == "done"


# Whether something is being done to a row


def test_a_row_is_busy_from_when_its_effect_is_queued_until_that_is_done(on_sqlite: Rig):
    rig = on_sqlite
    gate = Gate()
    rig.hands.act = gate
    first, second, third = (rig.device() for _ in range(3))
    rig.handle(first, "work")
    assert gate.begun.wait(LONG)
    rig.handle(second, "work")  # in the same lane
    assert (rig.effects.busy(first), rig.effects.busy(second), rig.effects.busy(third)) == (True, True, False)
    gate.open.set()
    rig.settle()
    assert not any(rig.effects.busy(device_id) for device_id in (first, second, third))


def test_a_row_is_busy_with_what_does_not_belong_to_its_attempt_too(on_sqlite: Rig):
    rig = on_sqlite
    gate = Gate()
    rig.hands.act = gate
    device_id = rig.device()
    rig.handle(device_id, "note", {"text": "x"})
    assert gate.begun.wait(LONG)
    assert rig.effects.busy(device_id)
    assert not rig.effects.waits(device_id, 0)
    gate.open.set()
    rig.settle()
    assert not rig.effects.busy(device_id)


def test_a_row_is_busy_between_the_tries_of_an_effect(on_sqlite: Rig):
    rig = on_sqlite
    device_id = rig.device()
    rig.handle(device_id, "look")
    rig.settle()
    assert rig.effects.busy(device_id)
    for _ in range(3):
        rig.advance(1.0)
        rig.settle()
    assert len(rig.hands.did) == 4
    assert rig.effects.busy(device_id)
    rig.driver.force(device_id, "idle")
    rig.advance(1.0)
    rig.settle()
    assert not rig.effects.busy(device_id)


def test_a_row_is_busy_that_waits_for_a_lane_that_is_held(on_sqlite: Rig):
    rig = on_sqlite
    device_id = rig.device()
    rig.effects.hold("board-1")
    rig.handle(device_id, "work")
    rig.settle()
    assert rig.effects.busy(device_id)
    rig.effects.retry_now()
    rig.settle()
    assert not rig.effects.busy(device_id)


def test_without_a_lease_a_row_waits_until_there_is_one(on_sqlite: Rig):
    """That the server is out of touch is neither the device's fault nor its relay board's."""
    rig = on_sqlite
    out_of_touch = [True] * 5

    def act(row: Device, effect: Effect) -> Event | None:
        if out_of_touch:
            out_of_touch.pop()
            raise LeaseOver(row.name, "power cycle")
        return Event("work_ok")

    rig.hands.act = act
    device_id = rig.device()
    rig.handle(device_id, "work")
    rig.settle()
    for _ in range(4):
        rig.advance(1.0)
        rig.settle()
        assert rig.state(device_id) == "working"
    assert rig.effects.lane_states() == {}
    rig.advance(1.0)
    rig.settle()
    assert rig.state(device_id) == "done"
    rig.logbook.flush()
    with rig.database.read() as conn:
        lines = [line.message for line in logs.latest(conn, device_logs, device_id, limit=100)]
    assert sum("has lost touch" in line for line in lines) == 1


def test_after_a_restart_overdue_rows_go_on_with_jitter_and_the_others_when_due(rig: Rig):
    overdue = [rig.device("dozing", state_timeout=NOW - timedelta(seconds=number)) for number in range(20)]
    soon = rig.device("dozing", state_timeout=NOW + timedelta(seconds=40))
    far = rig.device("dozing", state_timeout=NOW + timedelta(hours=1))
    never = rig.device("done")
    rig.restart()
    assert rig.driver.scan(60, jitter=30) == 21
    assert all(("device", device_id) in rig.timers for device_id in (*overdue, soon))
    assert not any(("device", device_id) in rig.timers for device_id in (far, never))
    rig.advance(15)
    rig.settle()
    woken = sum(rig.state(device_id) == "done" for device_id in overdue)
    assert 0 < woken < 20
    assert rig.driver.scan(60) == 21 - woken
    rig.advance(15)
    rig.settle()
    assert {rig.state(device_id) for device_id in overdue} == {"done"}
    assert rig.state(soon) == "dozing"
    rig.advance(10)
    rig.settle()
    assert rig.state(soon) == "done"
    assert rig.state(far) == "dozing"


def test_an_effect_that_was_lost_in_a_crash_costs_one_time_limit(rig: Rig):
    device_id = rig.device()

    class Crash(BaseException):
        pass

    def crash() -> None:
        raise Crash

    rig.points["committed"] = crash
    with pytest.raises(Crash):
        rig.handle(device_id, "work")
    assert (rig.state(device_id), rig.hands.did) == ("working", [])
    rig.restart()
    rig.driver.scan(120)
    rig.advance(60)
    rig.settle()
    assert rig.hands.did == [("panda-0001", "Work")]
    assert rig.state(device_id) == "done"


# A database that goes away


def test_a_result_waits_until_the_database_is_back(database: Database, monkeypatch: pytest.MonkeyPatch):
    with rig_of(database, Clock()) as rig:
        gate, device_id, tried = Gate(), rig.device(), threading.Event()
        rig.hands.act = gate
        rig.handle(device_id, "work")
        assert gate.begun.wait(LONG)
        real = rig.driver.handle

        def handle(*args: Any, **more: Any) -> Outcome[Device]:
            if not tried.is_set():
                tried.set()
                raise DatabaseAway("the database is away")
            return real(*args, **more)

        monkeypatch.setattr(rig.driver, "handle", handle)
        gate.open.set()
        assert tried.wait(LONG)
        eventually(lambda: rig.state(device_id) == "done")
        assert rig.hands.did == [("panda-0001", "Work")]


def test_an_effect_waits_until_its_row_can_be_read(on_sqlite: Rig, monkeypatch: pytest.MonkeyPatch):
    rig = on_sqlite
    gate, _ = hold_the_lane(rig)
    device_id = rig.device()
    rig.handle(device_id, "work")
    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(rig.driver.store, "load", away)
        meanwhile.setattr(rig.driver, "deliver", lambda *_: None)
        rig.advance(20)
        gate.open.set()
        rig.settle()
    assert rig.hands.did == [("slow", "Work")]
    rig.advance(1)
    rig.settle()
    assert rig.hands.did == [("slow", "Work"), ("panda-0002", "Work")]
    assert rig.state(device_id) == "done"


def test_an_effect_that_finds_the_database_away_is_done_again(on_sqlite: Rig):
    rig, answers = on_sqlite, [DatabaseAway("the database is away")]

    def work(row: Device, effect: Effect) -> Event:
        if answers:
            raise answers.pop()
        return Event("work_ok")

    rig.hands.act = work
    device_id = rig.device()
    rig.handle(device_id, "work")
    rig.settle()
    assert rig.get_device(device_id).state_counters == {}
    rig.advance(1)
    rig.settle()
    assert rig.state(device_id) == "done"


def test_an_effect_that_can_not_be_looked_at_does_not_keep_its_row_waiting_for_ever(
    on_sqlite: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    rig = on_sqlite
    gate, _ = hold_the_lane(rig)
    device_id = rig.device()
    rig.handle(device_id, "work")

    def broken(*_: Any) -> Any:
        raise ZeroDivisionError

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(rig.driver.store, "load", broken)
        meanwhile.setattr(rig.driver, "deliver", lambda *_: None)
        rig.advance(20)
        gate.open.set()
        rig.settle()
    assert not rig.effects.waits(device_id, 1)
    rig.advance(60)
    rig.settle()
    assert rig.state(device_id) == "done"


def test_the_repetition_of_a_replaced_effect_does_not_take_the_place_of_its_successor(on_sqlite: Rig):
    """Both wait for the database to come back; the older one says so last."""
    rig = on_sqlite
    old_gate, new_gate, device_id = Gate(), Gate(), rig.device(relay_info=None)
    gates = [old_gate, new_gate]

    def work(row: Device, effect: Effect) -> Event:
        if gates:
            gates.pop(0)()
            raise DatabaseAway("the database is away")
        return Event("work_ok")

    rig.hands.act = work
    rig.handle(device_id, "work")
    assert old_gate.begun.wait(LONG)
    rig.driver.force(device_id, "idle")
    rig.handle(device_id, "work")
    assert new_gate.begun.wait(LONG)
    new_gate.open.set()
    eventually(lambda: ("effect", "device", device_id, "hardware") in rig.timers)
    old_gate.open.set()
    rig.settle()
    rig.advance(1)
    rig.settle()
    assert rig.state(device_id) == "done"


# Breakers


class Board:
    """A relay board that answers, or not."""

    def __init__(self, rig: Rig, name: str = "board-1") -> None:
        self.name = name
        self.answers = False
        rig.hands.act = self.act
        rig.hands.probe = self.probe

    def act(self, row: Device, effect: Effect) -> Event:
        if row.relay_info == self.name and not self.answers:
            raise LaneError(row.name, "power cycle", "no answer within 10 s", culprit=f"relay board {self.name}")
        return Event("work_ok")

    def probe(self, lane: str) -> None:
        if not self.answers:
            raise LaneError(lane, "test", "no answer within 10 s", culprit=f"relay board {lane}")


def test_a_board_that_fails_three_times_is_held_and_probed_until_it_answers(on_sqlite: Rig):
    rig = on_sqlite
    board = Board(rig)
    first = rig.device()
    rig.handle(first, "work")
    rig.settle()
    # Three failures of one device: its tries are used up, and the breaker is open.
    assert rig.hands.did == [("panda-0001", "Work")] * 3
    reason = "relay board board-1: no answer within 10 s"
    assert rig.told == [("board-1", "suspect", reason), ("board-1", "failed", reason)]
    assert rig.effects.lane_states() == {"board-1": "failed"}
    waiting = [rig.device() for _ in range(3)]
    other = rig.device(relay_info="board-2")
    for device_id in (*waiting, other):
        rig.handle(device_id, "work")
    rig.settle()
    assert rig.state(other) == "done"
    assert rig.effects.held() == {"board-1": waiting}
    assert len(rig.hands.did) == 4
    for probes in range(1, 8):
        rig.advance(10)
        rig.settle()
        assert rig.hands.probes == ["board-1"] * probes
    assert len(rig.hands.did) == 4
    for device_id in waiting:
        row = rig.get_device(device_id)
        assert (row.state, row.attempt, row.state_counters) == ("working", 1, {})
        assert row.state_timeout is not None
        assert row.state_timeout > rig.clock.now()
    board.answers = True
    rig.advance(10)
    rig.settle()
    assert {rig.state(device_id) for device_id in waiting} == {"done"}
    assert rig.told[2:] == [("board-1", "ok", None)]
    assert rig.effects.lane_states() == {}
    rig.advance(100)
    rig.settle()
    assert len(rig.hands.probes) == 8


def test_what_is_due_soon_is_read_ahead(on_sqlite: Rig):
    rig = on_sqlite
    now = rig.clock.now()
    soon = rig.device("working", state_timeout=now + timedelta(seconds=30))
    later = rig.device("working", state_timeout=now + timedelta(seconds=90))
    rig.driver.scan(180.0, ahead=60.0)
    assert rig.driver.remembered(soon) == rig.get_device(soon)
    assert rig.driver.remembered(later) is None


def together(rig: Rig, monkeypatch: pytest.MonkeyPatch, do: Callable[[list[Part[Device]]], None]) -> list[list[str]]:
    """Have all work that waits for a board done together; the names of the devices of each time are noted."""
    monkeypatch.setattr(Work, "joint", True)
    times: list[list[str]] = []

    def work(parts: Sequence[Part[Device]]) -> None:
        times.append([part.row.name for part in parts])
        do([*parts])

    rig.effects = Effects(
        rig.driver, rig.hands, rig.workers, on_lane=lambda *news: rig.told.append(news), together=work
    )
    return times


def work_for_all(rig: Rig) -> list[int]:
    """Three devices whose work has waited for their board together."""
    gate = Gate()
    rig.workers.submit("board-1", lambda: rig.told.append(("gate", gate().name, None)))
    everybody = [rig.device() for _ in range(3)]
    for device_id in everybody:
        rig.handle(device_id, "work")
    gate.open.set()
    rig.settle()
    return everybody


def test_what_waits_for_a_board_is_done_together(on_sqlite: Rig, monkeypatch: pytest.MonkeyPatch):
    rig = on_sqlite

    def do(parts: list[Part[Device]]) -> None:
        for part in parts:
            part.done(Event("work_ok"), None)

    times = together(rig, monkeypatch, do)
    everybody = work_for_all(rig)
    assert times == [["panda-0001", "panda-0002", "panda-0003"]]
    assert {rig.state(device_id) for device_id in everybody} == {"done"}
    assert rig.hands.did == []
    assert not any(rig.effects.busy(device_id) for device_id in everybody)


def test_what_several_have_failed_of_together_counts_once(on_sqlite: Rig, monkeypatch: pytest.MonkeyPatch):
    rig = on_sqlite

    def do(parts: list[Part[Device]]) -> None:
        cause = OSError("the board said nothing")
        for part in parts:
            error = LaneError(part.row.name, "power cycle", "no answer", culprit="relay board 1")
            error.__cause__ = cause
            part.done(None, error)
            if len(times) == 1:
                assert rig.effects.lane_states() == {"board-1": "suspect"}

    times = together(rig, monkeypatch, do)
    work_for_all(rig)
    assert times[0] == ["panda-0001", "panda-0002", "panda-0003"]
    assert [state for _, state, _ in rig.told[1:]] == ["suspect", "failed"]
    assert len(times) >= 3


def test_whoever_is_forgotten_when_it_breaks_has_failed(
    on_sqlite: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    rig = on_sqlite

    def do(parts: list[Part[Device]]) -> None:
        parts[0].done(Event("work_ok"), None)
        raise ZeroDivisionError

    together(rig, monkeypatch, do)
    first, *others = work_for_all(rig)
    assert rig.state(first) == "done"
    assert "Work of panda-0002 broke" in caplog.messages
    for device_id in others:
        assert not rig.effects.busy(device_id)
    rig.advance(1)  # the pause after a failure
    rig.settle()
    assert rig.state(others[0]) == "done"  # it was the first the next time


def test_effects_of_others_take_their_turns_in_between(on_sqlite: Rig, monkeypatch: pytest.MonkeyPatch):
    """What comes to wait later is not done before them in the turn of one that was taken along."""
    rig = on_sqlite

    def do(parts: list[Part[Device]]) -> None:
        if len(times) == 1:
            rig.handle(rig.device(), "work")
        for part in parts:
            part.done(Event("work_ok"), None)

    times = together(rig, monkeypatch, do)
    gate = Gate()
    rig.workers.submit("board-1", lambda: rig.told.append(("gate", gate().name, None)))
    for _ in range(3):
        rig.handle(rig.device(), "work")
    rig.workers.submit("board-1", lambda: times.append(["other"]))
    gate.open.set()
    rig.settle()
    assert times == [["panda-0001", "panda-0002", "panda-0003"], ["other"], ["panda-0004"]]


def test_what_hangs_on_another_board_by_now_is_done_there(on_sqlite: Rig, monkeypatch: pytest.MonkeyPatch):
    rig = on_sqlite
    lanes: list[tuple[str, str | None]] = []

    def do(parts: list[Part[Device]]) -> None:
        for part in parts:
            lanes.append((part.row.name, part.row.relay_info))
            part.done(Event("work_ok"), None)

    times = together(rig, monkeypatch, do)
    gate = Gate()
    rig.workers.submit("board-1", lambda: rig.told.append(("gate", gate().name, None)))
    everybody = [rig.device() for _ in range(3)]
    for device_id in everybody:
        rig.handle(device_id, "work")
    rig.database.run(lambda conn: devices.set_attributes(conn, everybody[1], relay_info="board-2"))
    rig.advance(FRESH)
    gate.open.set()
    rig.settle()
    assert sorted(times) == [["panda-0001", "panda-0003"], ["panda-0002"]]
    assert dict(lanes)["panda-0002"] == "board-2"
    assert {rig.state(device_id) for device_id in everybody} == {"done"}


def test_a_database_that_hangs_holds_up_one_and_not_each(on_sqlite: Rig, monkeypatch: pytest.MonkeyPatch):
    """What was gathered until then is done; the others have turns of their own."""
    rig = on_sqlite

    def do(parts: list[Part[Device]]) -> None:
        for part in parts:
            part.done(Event("work_ok"), None)

    times = together(rig, monkeypatch, do)
    load, loads = rig.driver.load, iter(range(100))

    def hang(row_id: int) -> Device | None:
        if next(loads) == 1:
            rig.advance(GATHERING)
            raise DatabaseAway("it does not answer")
        return load(row_id)

    gate = Gate()
    rig.workers.submit("board-1", lambda: rig.told.append(("gate", gate().name, None)))
    everybody = [rig.device() for _ in range(4)]
    for device_id in everybody:
        rig.handle(device_id, "work")
    rig.advance(FRESH)
    monkeypatch.setattr(rig.driver, "load", hang)
    gate.open.set()
    rig.settle()
    assert times == [["panda-0001"], ["panda-0003", "panda-0004"]]
    rig.advance(1)
    rig.settle()
    assert times[2:] == [["panda-0002"]]
    assert {rig.state(device_id) for device_id in everybody} == {"done"}


def test_the_failures_of_all_devices_of_a_board_count(on_sqlite: Rig):
    rig = on_sqlite
    Board(rig)
    gate = Gate()
    rig.workers.submit("board-1", lambda: rig.told.append(("gate", gate().name, None)))
    everybody = [rig.device() for _ in range(6)]
    for device_id in everybody:
        rig.handle(device_id, "work")
    gate.open.set()
    rig.settle()
    assert len(rig.hands.did) == 3
    assert sorted(rig.get_device(device_id).attempt for device_id in everybody) == [1, 1, 1, 2, 2, 2]


def test_a_board_that_answers_now_and_then_is_not_held(on_sqlite: Rig):
    rig = on_sqlite
    board = Board(rig)
    for _ in range(4):
        board.answers = False
        device_id = rig.device()
        failed = [0]

        def act(row: Device, effect: Effect, failed: list[int] = failed) -> Event:
            failed[0] += 1
            if failed[0] <= 2:
                return board.act(row, effect)
            return Event("work_ok")

        rig.hands.act = act
        rig.handle(device_id, "work")
        rig.settle()
        assert rig.state(device_id) == "done"
    assert rig.effects.lane_states() == {}
    assert [state for _, state, _ in rig.told] == ["suspect", "ok"] * 4


def test_a_device_that_fails_is_no_fault_of_its_board(on_sqlite: Rig):
    rig = on_sqlite

    def fail(row: Device, effect: Effect) -> Event:
        raise HardwareError(row.name, "power cycle", "relay 1 did not switch")

    rig.hands.act = fail
    for _ in range(3):
        rig.handle(rig.device(), "work")
    rig.settle()
    assert rig.told == []
    assert rig.effects.lane_states() == {}


def test_a_job_that_is_replaced_while_its_lane_is_held_runs_once(on_sqlite: Rig):
    rig = on_sqlite
    board = Board(rig)
    rig.handle(rig.device(), "work")
    rig.settle()
    device_id, gone = rig.device(), rig.device()
    for _ in range(3):
        rig.handle(device_id, "work")
        rig.driver.force(device_id, "idle")
    rig.handle(device_id, "work")
    rig.handle(gone, "work")
    rig.driver.force(gone, "idle")
    assert rig.effects.held()["board-1"].count(device_id) == 1
    board.answers = True
    rig.advance(10)
    rig.settle()
    assert rig.hands.did[3:] == [("panda-0002", "Work")]
    assert (rig.state(device_id), rig.state(gone)) == ("done", "idle")


def test_a_mended_board_can_be_tried_at_once(on_sqlite: Rig):
    rig = on_sqlite
    board = Board(rig)
    rig.handle(rig.device(), "work")
    rig.settle()
    device_id = rig.device()
    rig.handle(device_id, "work")
    rig.effects.retry_now(["board-9"])
    rig.settle()
    assert rig.hands.probes == []
    board.answers = True
    rig.effects.retry_now()
    rig.effects.retry_now(["board-1"])
    rig.settle()
    assert rig.state(device_id) == "done"
    assert rig.hands.probes == ["board-1"]
    rig.advance(10)
    rig.settle()
    assert rig.hands.probes == ["board-1"]


def test_a_probe_that_breaks_is_repeated(on_sqlite: Rig, caplog: pytest.LogCaptureFixture):
    rig = on_sqlite
    board = Board(rig)
    rig.handle(rig.device(), "work")
    rig.settle()

    def broken(lane: str) -> None:
        raise ZeroDivisionError

    rig.hands.probe = broken
    rig.advance(10)
    rig.settle()
    assert "the probe of board-1 broke" in caplog.messages
    board.answers = True
    rig.hands.probe = board.probe
    rig.advance(10)
    rig.settle()
    assert rig.effects.lane_states() == {}


def test_nobody_waits_for_ever_when_who_is_told_of_lanes_fails(on_sqlite: Rig, caplog: pytest.LogCaptureFixture):
    """It writes the board's state into the database, which may be away just then."""
    rig = on_sqlite
    board = Board(rig)
    rig.effects._on_lane = away
    first = rig.device()
    rig.handle(first, "work")
    rig.settle()
    assert rig.state(first) == "done"
    device_id = rig.device()
    rig.handle(device_id, "work")
    board.answers = True
    rig.advance(10)
    rig.settle()
    assert rig.state(device_id) == "done"
    assert "nobody could be told that board-1 is failed" in caplog.messages


def test_stopped_it_gives_up_results_that_wait_for_the_database(on_sqlite: Rig, monkeypatch: pytest.MonkeyPatch):
    rig = on_sqlite
    monkeypatch.setattr(rig.driver, "handle", away)
    rig.driver.stop()
    rig.driver.deliver(rig.device(), Event("work_ok"), 0)
