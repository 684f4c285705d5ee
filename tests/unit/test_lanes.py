# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Workers, lanes and timers: order, fairness, bounds, and what happens when a piece of work fails."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator

import pytest

from mozpool.clock import Clock, SimClock
from mozpool.lanes import Lanes, Soon, Timers

LONG = 10.0
"""Seconds that no test takes unless it fails."""


@pytest.fixture
def lanes() -> Iterator[Callable[[int], Lanes]]:
    made: list[Lanes] = []

    def make(workers: int) -> Lanes:
        made.append(Lanes("test", workers, Clock()))
        return made[-1]

    yield make
    for one in made:
        assert one.stop(LONG)


@pytest.fixture
def timers() -> Iterator[Timers]:
    made = Timers(Clock())
    made.start()
    yield made
    made.stop()


class Gate:
    """Work that begins, tells so, and ends when it is let through."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.open = threading.Event()

    def __call__(self) -> None:
        self.begun.set()
        assert self.open.wait(LONG)


def test_work_of_one_lane_is_done_one_at_a_time_and_in_order(lanes: Callable[[int], Lanes]):
    pool, done, at_work, most = lanes(4), [], [0], [0]
    end = threading.Event()

    def work(number: int) -> None:
        at_work[0] += 1
        most[0] = max(most[0], at_work[0])
        done.append(number)
        at_work[0] -= 1
        if number == 199:
            end.set()

    for number in range(200):
        pool.submit("board", lambda number=number: work(number))  # type: ignore[misc]
    assert end.wait(LONG)
    assert done == list(range(200))
    assert most == [1]


def test_a_slow_lane_does_not_hold_up_another(lanes: Callable[[int], Lanes]):
    pool, slow, quick = lanes(2), Gate(), threading.Event()
    pool.submit("slow", slow)
    assert slow.begun.wait(LONG)
    for _ in range(50):
        pool.submit("slow", lambda: None)
    pool.submit("quick", quick.set)
    assert quick.wait(LONG)
    assert pool.length("slow") == 50
    slow.open.set()


def test_a_long_lane_takes_turns_with_the_others(lanes: Callable[[int], Lanes]):
    """With a single worker: the lane that has much to do goes behind the others after each piece."""
    pool, gate, done = lanes(1), Gate(), []
    end = threading.Event()
    pool.submit(None, gate)
    assert gate.begun.wait(LONG)
    for number in range(3):
        pool.submit("long", lambda number=number: done.append(f"long {number}"))  # type: ignore[misc]
    for name in ("b", "c"):
        pool.submit(name, lambda name=name: done.append(name))  # type: ignore[misc]
    pool.submit("d", lambda: done.append("d"))
    pool.submit("long", end.set)
    gate.open.set()
    assert end.wait(LONG)
    assert done == ["long 0", "b", "c", "d", "long 1", "long 2"]


def test_work_without_a_lane_runs_side_by_side(lanes: Callable[[int], Lanes]):
    pool, together = lanes(3), threading.Barrier(4)

    def meet() -> None:
        together.wait(LONG)

    for _ in range(3):
        pool.submit(None, meet)
    together.wait(LONG)


def test_it_never_has_more_threads_than_workers(lanes: Callable[[int], Lanes]):
    pool, gates = lanes(3), [Gate() for _ in range(9)]
    before = threading.active_count()
    for number, gate in enumerate(gates):
        pool.submit(number, gate)
    for gate in gates[:3]:
        assert gate.begun.wait(LONG)
    assert threading.active_count() - before == 3
    assert pool.backlog() == 6
    assert len(pool.running()) == 3
    assert not any(gate.begun.is_set() for gate in gates[3:])
    for gate in gates:
        gate.open.set()
        assert gate.begun.wait(LONG)


def test_it_starts_no_thread_while_one_is_idle(lanes: Callable[[int], Lanes]):
    pool, names = lanes(4), set()
    for _ in range(20):
        pool.submit("lane", lambda: names.add(threading.current_thread().name))
        while pool.running() or pool.backlog():
            Clock().sleep(0.001)
    assert 1 <= len(names) <= 2


def test_a_failure_is_logged_and_neither_its_lane_nor_its_worker_dies(
    lanes: Callable[[int], Lanes], caplog: pytest.LogCaptureFixture
):
    pool, after = lanes(1), threading.Event()

    def broken() -> None:
        raise ZeroDivisionError("oops")

    pool.submit("board", broken, "power cycle of panda-0001")
    pool.submit("board", after.set)
    assert after.wait(LONG)
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.getMessage() == "power cycle of panda-0001 failed in lane board"
    assert record.exc_info is not None


def test_it_says_what_it_is_doing_and_for_how_long():
    clock, gate = SimClock(), Gate()
    pool = Lanes("test", 1, clock)
    pool.submit("board", gate, "power cycle")
    assert gate.begun.wait(LONG)
    clock.advance(7)
    (running,) = pool.running()
    assert (running.thread, running.lane, running.label, running.seconds) == ("test-1", "board", "power cycle", 7.0)
    gate.open.set()
    assert pool.stop(LONG)
    assert pool.running() == []


def test_work_may_submit_more_to_its_own_lane(lanes: Callable[[int], Lanes]):
    pool, end = lanes(1), threading.Event()
    pool.submit("a", lambda: pool.submit("a", lambda: pool.submit("a", end.set)))
    assert end.wait(LONG)


def test_stopped_it_ends_what_it_is_doing_and_takes_no_more(lanes: Callable[[int], Lanes]):
    pool, gate, never = lanes(1), Gate(), threading.Event()
    pool.submit("lane", gate)
    assert gate.begun.wait(LONG)
    pool.submit("lane", never.set)
    pool.submit("other", never.set)
    assert not pool.stop(0.01)
    gate.open.set()
    assert pool.stop(LONG)
    pool.submit("lane", never.set)
    pool.submit(None, never.set)
    assert not never.is_set()
    assert pool.backlog() == 0


# Timers


def test_calls_are_made_in_the_order_of_their_moments(timers: Timers):
    made: list[str] = []
    end = threading.Event()
    for name, seconds in (("third", 0.06), ("first", 0.01), ("second", 0.03), ("past", -5.0)):
        timers.set(name, seconds, lambda name=name: made.append(name))  # type: ignore[misc]
    timers.set("end", 0.08, end.set)
    assert end.wait(LONG)
    assert made == ["past", "first", "second", "third"]


def test_a_call_is_made_when_it_is_due_and_not_at_the_next_poll(timers: Timers):
    clock, end = Clock(), threading.Event()
    timers.set("far", 3600, lambda: None)
    began = clock.monotonic()
    timers.set("near", 0.05, end.set)
    assert end.wait(LONG)
    assert 0.05 <= clock.monotonic() - began < 1


def test_a_key_has_one_call_the_one_that_was_set_last(timers: Timers):
    made: list[str] = []
    end = threading.Event()
    timers.set("key", 0.02, lambda: made.append("replaced"))
    timers.set("key", 0.03, lambda: made.append("sooner"))
    timers.set("key", 0.05, lambda: made.append("last"))
    assert "key" in timers
    timers.set("end", 0.08, end.set)
    assert end.wait(LONG)
    assert made == ["last"]
    assert "key" not in timers


def test_a_call_can_be_brought_forward(timers: Timers):
    end = threading.Event()
    timers.set("key", 3600, lambda: None)
    timers.set("key", 0.0, end.set)
    assert end.wait(LONG)


def test_a_call_can_be_cancelled(timers: Timers):
    made: list[str] = []
    end = threading.Event()
    timers.set("key", 0.01, lambda: made.append("key"))
    timers.cancel("key")
    timers.cancel("unknown")
    timers.set("end", 0.05, end.set)
    assert end.wait(LONG)
    assert made == []


def test_a_thread_that_comes_late_does_not_undo_what_a_newer_one_set():
    clock, made = SimClock(), []
    timers = Timers(clock)
    timers.set("key", 1, lambda: made.append("newer"), rank=5)
    timers.set("key", 0, lambda: made.append("older"), rank=4)
    timers.cancel("key", rank=4)
    clock.advance(1)
    due = timers._due()
    assert len(due) == 1
    due[0]()
    assert made == ["newer"]
    timers.set("key", 0, lambda: None, rank=4)
    assert "key" in timers
    timers.cancel("key", rank=4)
    assert "key" not in timers
    timers.set("key", 0, lambda: None, rank=4)
    timers.set("key", 0, lambda: None, rank=4)
    timers.cancel("key")
    assert "key" not in timers


def test_a_call_that_fails_is_logged_and_the_others_are_made(timers: Timers, caplog: pytest.LogCaptureFixture):
    end = threading.Event()

    def broken() -> None:
        raise ZeroDivisionError

    timers.set("broken", 0.0, broken)
    timers.set("end", 0.02, end.set)
    assert end.wait(LONG)
    assert [record.getMessage() for record in caplog.records] == ["a timer's call failed"]


def test_a_call_may_set_itself_anew(timers: Timers):
    end, turns = threading.Event(), []

    def again() -> None:
        turns.append(1)
        if len(turns) == 3:
            end.set()
        else:
            timers.set("key", 0.001, again)

    timers.set("key", 0.0, again)
    assert end.wait(LONG)


def test_many_replacements_do_not_pile_up():
    clock = SimClock()
    timers = Timers(clock)
    for number in range(10_000):
        timers.set("key", 3600 + number, lambda: None)
        timers.set(number % 7, 3600, lambda: None)
    assert len(timers._heap) < 1100
    clock.advance(20_000)
    assert len(timers._due()) == 8


def test_work_that_is_asked_for_often_waits_once_and_is_done_anew_for_who_asks_meanwhile(
    lanes: Callable[[int], Lanes],
):
    begun, go_on, done = threading.Semaphore(0), threading.Semaphore(0), []

    def work():
        begun.release()
        assert go_on.acquire(timeout=LONG)
        done.append(1)

    pool = lanes(2)
    soon = Soon(pool, "lane", work, "work")
    soon.ask()
    assert begun.acquire(timeout=LONG)
    for _ in range(5):
        soon.ask()
    assert pool.length("lane") == 1
    go_on.release(2)
    assert begun.acquire(timeout=LONG)
    end = threading.Event()
    pool.submit("lane", end.set)
    assert end.wait(LONG)
    assert len(done) == 2


def test_calls_that_were_set_before_the_start_wait_for_it():
    timers, end = Timers(Clock()), threading.Event()
    timers.set("key", 0.0, end.set)
    assert not end.is_set()
    timers.start()
    assert end.wait(LONG)
    timers.stop()


def test_stopped_timers_make_no_calls():
    timers, made = Timers(Clock()), threading.Event()
    timers.start()
    timers.set("key", 0.2, made.set)
    timers.stop()
    assert not made.is_set()
    assert "timers" not in {thread.name for thread in threading.enumerate()}


def test_the_watchdog_sees_when_the_timers_last_looked(timers: Timers):
    end, before = threading.Event(), Clock().monotonic()
    timers.set("key", 0.0, end.set)
    assert end.wait(LONG)
    assert timers.last_turn >= before
