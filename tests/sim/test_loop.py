# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The event loop in simulated time: what asyncio needs of it, in which order, in which seconds."""

from __future__ import annotations

import asyncio
import contextvars
import gc

import pytest

from mozpool.simulate.loop import Problem, SimulatedLoop
from tests.sim.scheduler import Scheduler


@pytest.fixture
def scheduler():
    return Scheduler()


@pytest.fixture
def loop(scheduler):
    return SimulatedLoop(scheduler.now, scheduler.call_later)


@pytest.fixture
def run(scheduler, loop):
    """Run a coroutine to its end and return its result."""

    def run(coro):
        task = loop.create_task(coro)
        scheduler.run()
        return task.result()

    return run


def test_sleep_takes_simulated_seconds(run, loop):
    async def sleep():
        assert asyncio.get_running_loop() is loop
        started = loop.time()
        await asyncio.sleep(3600)
        return loop.time() - started, await asyncio.sleep(0.25, "result"), loop.time() - started

    assert run(sleep()) == (3600, "result", 3600.25)


def test_sleeping_for_no_time_lets_others_run(run):
    seen = []

    async def count(name):
        for number in range(3):
            seen.append((name, number))
            await asyncio.sleep(0)

    async def both():
        await asyncio.gather(count("a"), count("b"))

    run(both())
    assert seen == [(name, number) for number in range(3) for name in "ab"]


def test_gather_returns_in_the_order_asked_for_and_waits_for_the_longest(run, loop):
    async def sleep(seconds):
        await asyncio.sleep(seconds)
        return seconds, loop.time()

    async def gather():
        return await asyncio.gather(sleep(5), sleep(1), sleep(3))

    assert run(gather()) == [(5, 5), (1, 1), (3, 3)]
    assert loop.time() == 5


def test_what_a_task_raises_is_raised_where_it_is_awaited(run):
    async def fail():
        await asyncio.sleep(1)
        raise ValueError("no")

    async def wait():
        results = await asyncio.gather(fail(), return_exceptions=True)
        with pytest.raises(ValueError, match="no"):
            await asyncio.create_task(fail())
        return str(results[0])

    assert run(wait()) == "no"


def test_a_cancelled_task_ends_at_once_and_cleans_up(scheduler, loop):
    ended = []

    async def sleep():
        try:
            await asyncio.sleep(100)
        finally:
            await asyncio.sleep(1)
            ended.append(loop.time())

    task = loop.create_task(sleep())
    loop.call_later(10, task.cancel)
    scheduler.run()
    assert task.cancelled()
    assert ended == [11]


def test_a_task_cancelled_before_it_started_never_runs(scheduler, loop):
    seen = []

    async def note():
        seen.append("ran")

    task = loop.create_task(note())
    task.cancel()
    scheduler.run()
    assert task.cancelled()
    assert seen == []


def test_wait_for_gives_up_in_time(run, loop):
    async def wait():
        assert await asyncio.wait_for(asyncio.sleep(2, "soon enough"), 3) == "soon enough"
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(loop.create_future(), 7)
        async with asyncio.timeout(5):
            await asyncio.sleep(1)
        return loop.time()

    assert run(wait()) == 2 + 7 + 1


def test_events_and_task_groups_work(run, loop):
    async def work():
        event = asyncio.Event()

        async def wait():
            await event.wait()
            return loop.time()

        async with asyncio.TaskGroup() as group:
            waiters = [group.create_task(wait(), name=f"waiter-{number}") for number in range(2)]
            await asyncio.sleep(4)
            event.set()
        return [(task.get_name(), task.result()) for task in waiters]

    assert run(work()) == [("waiter-0", 4), ("waiter-1", 4)]


def test_calls_for_equal_times_come_in_the_order_in_which_they_were_asked_for(scheduler, loop):
    seen: list[object] = []
    loop.call_later(2, seen.append, "later 1")
    loop.call_at(2, seen.append, "at")
    scheduler.call_later(2, lambda: seen.append("the scheduler's own"))
    loop.call_later(2, seen.append, "later 2")
    loop.call_later(1, lambda: loop.call_later(1, seen.append, "later 3"))
    loop.call_soon(seen.append, "soon 1")
    loop.call_later(-1, seen.append, "overdue")
    loop.call_soon(seen.append, "soon 2")
    scheduler.run()
    assert seen == ["soon 1", "overdue", "soon 2", "later 1", "at", "the scheduler's own", "later 2", "later 3"]


def test_a_cancelled_call_is_not_made(scheduler, loop):
    seen: list[object] = []
    soon, later = loop.call_soon(seen.append, "soon"), loop.call_later(1, seen.append, "later")
    soon.cancel()
    later.cancel()
    scheduler.run()
    assert seen == []
    assert later.when() == 1


def test_a_call_runs_in_the_context_that_it_was_given(scheduler, loop):
    variable = contextvars.ContextVar("variable", default="none")
    given = contextvars.copy_context()
    given.run(variable.set, "given")
    seen = []
    loop.call_soon(lambda: seen.append(variable.get()), context=given)
    loop.call_later(1, lambda: seen.append(variable.get()), context=given)
    loop.call_soon(lambda: seen.append(variable.get()))
    scheduler.run()
    assert seen == ["given", "none", "given"]


def test_an_exception_in_a_callback_reaches_who_runs_the_scheduler(scheduler, loop):
    seen: list[object] = []
    loop.call_soon(lambda: 1 / 0)
    loop.call_soon(seen.append, "next")
    with pytest.raises(ZeroDivisionError):
        scheduler.run()
    assert asyncio._get_running_loop() is None
    scheduler.run()
    assert seen == ["next"]


def test_an_exception_in_a_callback_reaches_the_handler(scheduler):
    problems: list[Problem] = []
    loop = SimulatedLoop(scheduler.now, scheduler.call_later, problems.append)
    loop.call_soon(lambda: 1 / 0)
    scheduler.run()
    assert [type(problem["exception"]) for problem in problems] == [ZeroDivisionError]
    assert "Exception in callback" in problems[0]["message"]


def test_a_task_that_nobody_waits_for_does_not_fail_in_silence(scheduler):
    problems: list[Problem] = []
    loop = SimulatedLoop(scheduler.now, scheduler.call_later, problems.append)

    async def fail():
        raise ValueError("no")

    loop.create_task(fail())
    scheduler.run()
    gc.collect()
    assert [str(problem["exception"]) for problem in problems] == ["no"]


def test_a_problem_without_an_exception_is_raised_too(loop):
    with pytest.raises(RuntimeError, match="something is wrong"):
        loop.call_exception_handler({"message": "something is wrong"})


def test_it_runs_only_while_it_makes_a_call(scheduler, loop):
    seen = []
    loop.call_soon(lambda: seen.append(loop.is_running()))
    assert not loop.is_running()
    scheduler.run()
    assert seen == [True]
    assert not loop.is_running()


def test_a_task_may_run_the_scheduler_and_with_it_other_tasks(scheduler, loop):
    async def inner(seconds):
        await asyncio.sleep(seconds)
        return seconds, asyncio.current_task()

    async def outer():
        task = loop.create_task(inner(5))
        scheduler.run(until=task.done)
        assert loop.is_running()
        assert asyncio.current_task() is outer_task
        await asyncio.sleep(1)
        assert task.result() == (5, task)
        return loop.time()

    outer_task = loop.create_task(outer())
    scheduler.run()
    assert outer_task.result() == 6


def test_an_exception_out_of_a_nested_call_leaves_the_outer_task_in_order(run, scheduler, loop):
    async def outer():
        task = asyncio.current_task()
        loop.call_soon(lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            scheduler.run()
        assert asyncio.current_task() is task
        await asyncio.sleep(1)
        return "went on"

    assert run(outer()) == "went on"


def test_it_can_run_inside_another_loop(scheduler, loop):
    async def simulated():
        await asyncio.sleep(1000)
        return asyncio.get_running_loop()

    async def real():
        task = loop.create_task(simulated())
        scheduler.run()
        assert task.result() is loop
        await asyncio.sleep(0)
        return asyncio.get_running_loop()

    assert asyncio.run(real()) is not loop
