# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""An asyncio event loop in simulated time: tasks, futures, timers and nothing else.

It has no sockets, threads or queue of its own: each callback becomes a call of a scheduler that somebody else runs,
so that coroutines and whatever else that scheduler calls happen in one order, which is always the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from contextvars import Context
from functools import partial
from typing import Any, TypeVar, TypeVarTuple

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

Problem = dict[str, Any]
"""What asyncio tells an exception handler: a ``message``, mostly an ``exception``, and what they are about."""

# Any: mypy would take the class for abstract, as most of what an event loop can do is left out.
_EventLoop: Any = asyncio.AbstractEventLoop


def _raise(problem: Problem) -> None:
    raise problem.get("exception") or RuntimeError(problem["message"])


class SimulatedLoop(_EventLoop):  # type: ignore[misc]
    """The loop. It has to be used in the scheduler's thread only; nobody starts, stops or closes it."""

    def __init__(
        self,
        now: Callable[[], float],
        call_later: Callable[[float, Callable[[], None]], None],
        on_problem: Callable[[Problem], object] = _raise,
    ) -> None:
        """Stand on a scheduler.

        ``now`` returns simulated seconds, which never go back. ``call_later`` makes a call in so many simulated
        seconds, calls for equal times in the order in which they came. ``on_problem`` gets what callbacks raise and
        what asyncio complains of, say a task thrown away before its end; unless given, the scheduler's caller gets
        the exception.
        """
        self._now = now
        self._call_later = call_later
        self._on_problem = on_problem

    def time(self) -> float:
        """Simulated seconds."""
        return self._now()

    def call_soon(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        """Call this as soon as the scheduler runs, after all that is due by now."""
        handle = asyncio.Handle(callback, args, self, context)
        self._call_later(0.0, partial(self._run, handle))
        return handle

    def call_later(
        self, delay: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Call this in ``delay`` seconds; soon where that is negative."""
        delay = max(0.0, delay)
        handle = asyncio.TimerHandle(self._now() + delay, callback, args, self, context)
        self._call_later(delay, partial(self._run, handle))
        return handle

    def call_at(
        self, when: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Call this when :meth:`time` has come to ``when``."""
        return self.call_later(when - self._now(), callback, *args, context=context)

    def create_future(self) -> asyncio.Future[Any]:
        """A future of this loop."""
        return asyncio.Future(loop=self)

    def create_task(self, coro: Coroutine[Any, Any, T], **options: Any) -> asyncio.Task[T]:
        """A task of this loop that runs ``coro``; ``options`` are those of asyncio.Task."""
        return asyncio.Task(coro, loop=self, **options)

    def is_running(self) -> bool:
        """Whether one of its callbacks is running."""
        return asyncio._get_running_loop() is self

    def get_debug(self) -> bool:
        """False: asyncio's debug mode is for loops that wait."""
        return False

    def call_exception_handler(self, context: Problem) -> None:
        """Hand a problem on (asyncio calls this)."""
        self._on_problem(context)

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Nothing: the scheduler still makes the call, and it does nothing (asyncio calls this)."""

    def _run(self, handle: asyncio.Handle) -> None:
        if not handle.cancelled():
            with self._running():
                handle._run()

    @contextmanager
    def _running(self) -> Iterator[None]:
        """Let asyncio take this for the running loop, even where a callback of some loop, this one too, is running."""
        outer = asyncio._get_running_loop()
        outer_task = None if outer is None else asyncio.current_task(outer)
        # A thread is in one task at a time, so the one that is interrupted is left for the while.
        if outer is not None and outer_task is not None:
            asyncio.tasks._leave_task(outer, outer_task)
        asyncio._set_running_loop(self)
        try:
            yield
        finally:
            asyncio._set_running_loop(outer)
            if outer is not None and outer_task is not None:
                asyncio.tasks._enter_task(outer, outer_task)
