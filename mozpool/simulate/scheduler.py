# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Runs the threads of several servers as actors, one at a time, in simulated time and in an order drawn by lot.

Actors are greenlets of one thread. One goes on until it waits for something: time, a lock, an event, a condition, or
just to let others go first. Which of those that could go on is next is a matter of chance, so equal seeds give equal
runs. Time moves only when all wait.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import TracebackType

import greenlet

from mozpool import clock

START = datetime(2030, 1, 1, tzinfo=UTC)
"""The wall time at which simulations begin."""


class Timer:
    """A call to be made."""

    __slots__ = ("call",)

    def __init__(self, call: Callable[[], None]) -> None:
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        """Never make it."""
        self.call = None


class Actor:
    """A thread of the simulation."""

    def __init__(self, scheduler: Scheduler, work: Callable[[], None], name: str, group: str) -> None:
        self.name = name
        self.group = group
        self.dying = False
        self.parked = False
        self.ended = Event(scheduler)
        self._scheduler = scheduler
        self._work = work
        self.greenlet = greenlet.greenlet(self._run, scheduler.hub)

    def _run(self) -> None:
        try:
            self._work()
        except greenlet.GreenletExit:
            pass
        finally:
            self._scheduler.forget(self)
            self.ended.set()

    def is_alive(self) -> bool:
        """Whether it has not ended."""
        return not self.ended.is_set()

    def join(self, timeout: float | None = None) -> None:
        """Wait for its end, at most so many seconds."""
        self.ended.wait(timeout)


class Scheduler:
    """The one that decides who goes on, and how late it is."""

    def __init__(self, rng: random.Random) -> None:
        """``rng`` decides who goes first."""
        self.time = 0.0
        """Simulated seconds since the start."""
        self.current: Actor | None = None
        self.steps = 0
        self.halted: Exception | None = None
        """Why the run is over (see :meth:`halt`)."""
        self.hub = greenlet.getcurrent()
        self._rng = rng
        self._heap: list[tuple[float, int, Timer]] = []
        self._numbers = itertools.count()
        self._ready: list[Actor] = []
        self._actors: dict[str, dict[Actor, None]] = {}
        self._frozen: dict[str, list[Actor]] = {}
        """Group → its actors that could go on if it were not frozen."""

    # For actors and those who start them

    def call_later(self, seconds: float, call: Callable[[], None]) -> Timer:
        """Make a call in so many seconds, in no actor: it must not wait. Equal times keep their order."""
        timer = Timer(call)
        heapq.heappush(self._heap, (self.time + max(0.0, seconds), next(self._numbers), timer))
        return timer

    def spawn(self, work: Callable[[], None], name: str, group: str) -> Actor:
        """Start an actor. All of a group can be killed at once."""
        actor = Actor(self, work, name, group)
        self._actors.setdefault(group, {})[actor] = None
        self._ready.append(actor)
        return actor

    def forget(self, actor: Actor) -> None:
        """It has ended."""
        self._actors[actor.group].pop(actor, None)

    def me(self) -> Actor:
        """The actor that runs."""
        if self.current is None:
            raise RuntimeError("only actors may wait")
        return self.current

    def pause(self) -> None:
        """Let others go first, perhaps."""
        me = self.me()
        if me.dying:
            raise greenlet.GreenletExit
        self._ready.append(me)
        self.hub.switch()

    def sleep(self, seconds: float) -> None:
        """Go on in so many seconds."""
        self.park(max(0.0, seconds))

    def park(self, seconds: float | None = None) -> bool:
        """Wait for :meth:`resume`, at most so many seconds; answer whether it came."""
        me = self.me()
        if me.dying:
            raise greenlet.GreenletExit
        resumed = True

        def too_late() -> None:
            nonlocal resumed
            resumed = not self.resume(me)

        timer = None if seconds is None else self.call_later(seconds, too_late)
        me.parked = True
        try:
            self.hub.switch()
        finally:
            if timer is not None:
                timer.cancel()
        return resumed

    def resume(self, actor: Actor) -> bool:
        """Let an actor that is parked go on; answer whether it was, and not resumed already."""
        if not actor.parked:
            return False
        actor.parked = False
        self._ready.append(actor)
        return True

    def kill(self, group: str) -> None:
        """End all actors of a group where they are, as a SIGKILL does. Not from an actor: see :meth:`die`."""
        assert self.current is None
        self._frozen.pop(group, None)
        while actors := self._actors.get(group):
            for actor in list(actors):
                actor.dying = True
            for actor in list(actors):
                if actor in self._ready:
                    self._ready.remove(actor)
                self.current = actor
                actor.greenlet.throw(greenlet.GreenletExit)
                self.current = None
                if not actor.ended.is_set():  # it never ran
                    self.forget(actor)
                    actor.ended.set()

    def freeze(self, group: str, seconds: float) -> None:
        """Let nobody of a group go on for so many seconds, as when a virtual machine is moved."""
        if group in self._frozen:
            return
        self._frozen[group] = []
        self.call_later(seconds, lambda: self._ready.extend(self._frozen.pop(group, ())))

    def die(self) -> None:
        """End the actor that calls, and its whole group with it."""
        group = self.me().group
        self.call_later(0.0, lambda: self.kill(group))
        # Nobody of the group does anything any more, until it is killed.
        for actor in self._actors[group]:
            actor.dying = True
            if actor in self._ready:
                self._ready.remove(actor)
        self.hub.switch()

    def halt(self, error: Exception) -> None:
        """End the run after this step with an error; the first one counts."""
        self.halted = self.halted or error

    # For the hub

    def run_until(self, time: float) -> None:
        """Go on until so many seconds have passed since the start. Raises what :attr:`halted` is set to."""
        ready, heap, randrange = self._ready, self._heap, self._rng.randrange
        while True:
            while ready:
                if self.halted is not None:
                    raise self.halted
                place = randrange(len(ready)) if len(ready) > 1 else 0
                ready[place], ready[-1] = ready[-1], ready[place]
                actor = ready.pop()
                frozen = self._frozen.get(actor.group)
                if frozen is not None:
                    frozen.append(actor)
                    continue
                self.steps += 1
                self.current = actor
                try:
                    actor.greenlet.switch()
                finally:
                    self.current = None
            if self.halted is not None:
                raise self.halted
            if not heap or heap[0][0] > time:
                self.time = max(self.time, time)
                return
            at, _, timer = heapq.heappop(heap)
            if timer.call is not None:
                self.time = max(self.time, at)
                timer.call()

    def stop(self) -> None:
        """Kill everybody."""
        for group in list(self._actors):
            self.kill(group)


class Event:
    """As ``threading.Event``."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._set = False
        self._waiting: list[Actor] = []

    def is_set(self) -> bool:
        """Whether it has happened."""
        return self._set

    def set(self) -> None:
        """It happens now."""
        self._set = True
        waiting, self._waiting = self._waiting, []
        for actor in waiting:
            self._scheduler.resume(actor)

    def clear(self) -> None:
        """It is to happen anew."""
        self._set = False

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for it, at most so many seconds; answer whether it has happened."""
        if self._set:
            return True
        me = self._scheduler.me()
        self._waiting.append(me)
        try:
            self._scheduler.park(seconds)
        finally:
            if me in self._waiting:
                self._waiting.remove(me)
        return self._set


class Lock:
    """As ``threading.Lock``; who has waited longest is next."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._held = False
        self._waiting: deque[Actor] = deque()

    @property
    def held(self) -> bool:
        """Whether somebody has it."""
        return self._held

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Wait for it, at most ``timeout`` seconds (-1: for ever); answer whether it is held now."""
        if not self._held:
            self._held = True
            return True
        if not blocking:
            return False
        me = self._scheduler.me()
        self._waiting.append(me)
        try:
            got = self._scheduler.park(None if timeout < 0 else timeout)
        except greenlet.GreenletExit:
            # It may have been handed over in the moment of death.
            if me in self._waiting:
                self._waiting.remove(me)
            else:
                self.release()
            raise
        if not got and me in self._waiting:
            self._waiting.remove(me)
        return got

    def release(self) -> None:
        """Let the next one have it."""
        while self._waiting:
            if self._scheduler.resume(self._waiting.popleft()):
                return
        self._held = False

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()


class Condition:
    """As ``threading.Condition`` with a lock of its own."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._lock = Lock(scheduler)
        self._waiting: deque[Actor] = deque()

    def __enter__(self) -> bool:
        return self._lock.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._lock.release()

    def wait(self, timeout: float | None = None) -> bool:
        """Let go of the lock until another thread notifies, at most ``timeout`` seconds."""
        me = self._scheduler.me()
        self._waiting.append(me)
        self._lock.release()
        try:
            return self._scheduler.park(None if timeout is None else max(0.0, timeout))
        finally:
            if me in self._waiting:
                self._waiting.remove(me)
            if not me.dying:
                self._lock.acquire()

    def notify(self, n: int = 1) -> None:
        """Wake up so many of those that wait."""
        while n > 0 and self._waiting:
            if self._scheduler.resume(self._waiting.popleft()):
                n -= 1

    def notify_all(self) -> None:
        """Wake up all that wait."""
        self.notify(len(self._waiting))


class SimulatedClock(clock.Clock):
    """The clock of one machine: the simulation's time, an error of its own, and threads that are actors."""

    def __init__(self, scheduler: Scheduler, group: str) -> None:
        """``group`` is that of the machine's actors."""
        self._scheduler = scheduler
        self._group = group
        self._error = 0.0

    def now(self) -> datetime:
        """The wall time that this machine believes in."""
        return START + timedelta(seconds=self._scheduler.time + self._error)

    def monotonic(self) -> float:
        """Simulated seconds since the start."""
        return self._scheduler.time

    def jump(self, seconds: float) -> None:
        """Step the wall time by so many seconds, which may be negative."""
        self._error += seconds

    def sleep(self, seconds: float) -> None:
        """Let others go on meanwhile."""
        self._scheduler.sleep(seconds)

    def wait(self, event: clock.Event, seconds: float | None) -> bool:
        """Wait until ``event`` is set, at most so many seconds; return whether it is."""
        assert isinstance(event, Event)
        return event.wait(seconds)

    def event(self) -> Event:
        """Something to wait for."""
        return Event(self._scheduler)

    def lock(self) -> Lock:
        """A lock."""
        return Lock(self._scheduler)

    def condition(self) -> Condition:
        """A condition with a lock of its own."""
        return Condition(self._scheduler)

    def start_thread(self, work: Callable[[], None], name: str) -> Actor:
        """Start an actor."""
        return self._scheduler.spawn(work, f"{self._group}/{name}", self._group)

    def current_thread(self) -> str:
        """The name of the actor that runs."""
        return "" if self._scheduler.current is None else self._scheduler.current.name
