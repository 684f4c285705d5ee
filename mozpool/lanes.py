# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Bounded workers, lanes and timers: how one slow thing is kept from holding up another.

Work with the same lane runs one at a time and in order; different lanes share the workers fairly, one piece of work
a turn. A timer hands its work to a lane too, so that the timers' thread itself never waits.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from mozpool.clock import Clock, Thread
from mozpool.precedence import PATIENCE, Precedence

log = logging.getLogger("mozpool.lanes")

Work = Callable[[], None]


@dataclass(frozen=True)
class _Turn:
    """A piece of work that waits for a worker."""

    lane: Hashable | None
    work: Work
    label: str
    since: float


@dataclass(frozen=True)
class Running:
    """A piece of work that is being done."""

    thread: str
    lane: Hashable | None
    label: str
    seconds: float


@dataclass(frozen=True)
class Occupation:
    """How much is going on."""

    workers: int
    """How many there are at most."""
    busy: int
    oldest: float
    """Seconds that the longest piece of work has been going on."""
    turns: int
    """Pieces of work that wait for a worker."""
    lanes: int
    """Lanes that something is done in or waits in."""
    behind: int
    """Pieces of work that wait in their lanes behind others."""
    longest: int
    """As many as that in the fullest lane."""


class Lanes:
    """A pool of at most so many worker threads, and the lanes in front of it.

    Threads are started as they are needed. An exception in a piece of work is logged, never lost and never fatal.
    """

    def __init__(
        self,
        name: str,
        workers: int,
        clock: Clock,
        *,
        precedence: Precedence | None = None,
        urgent: frozenset[Hashable] = frozenset(),
    ) -> None:
        """``workers`` is the largest number of threads.

        Work gives way to calls for a moment (see :class:`Precedence`), but in ``urgent`` lanes.
        """
        self._precedence = precedence
        self._urgent = urgent
        if precedence is not None:
            precedence.on_quiet.append(self._go_on)
        self.name = name
        self._workers = workers
        self._clock = clock
        self._lock = clock.condition()
        self._turns: deque[_Turn] = deque()
        self._waiting: dict[Hashable, deque[tuple[Work, str]]] = {}
        self._threads: list[Thread] = []
        self._idle = 0
        self._stopping = False
        self._running: dict[str, tuple[Hashable | None, str, float]] = {}

    def submit(self, lane: Hashable | None, work: Work, label: str = "") -> None:
        """Have ``work`` done as soon as its lane and a worker are free; None is no lane at all.

        Work that is submitted after :meth:`stop` is dropped: what matters is in the database and has a deadline there.
        """
        with self._lock:
            if self._stopping:
                return
            if lane is not None:
                queue = self._waiting.get(lane)
                if queue is not None:
                    queue.append((work, label))
                    return
                self._waiting[lane] = deque()
            turn = _Turn(lane, work, label, self._clock.monotonic())
            if lane in self._urgent:
                self._turns.appendleft(turn)
            else:
                self._turns.append(turn)
            if self._clock.current_thread() in self._running and len(self._turns) == 1:
                return  # this worker is about to end its work, and takes the turn itself
            if self._idle >= len(self._turns):
                self._lock.notify()
            elif len(self._threads) < self._workers:
                name = f"{self.name}-{len(self._threads) + 1}"
                self._threads.append(self._clock.start_thread(self._work, name))
            else:
                self._lock.notify()

    @property
    def load(self) -> tuple[int, int]:
        """How many workers there are at most, and how many of them do something now."""
        with self._lock:
            return self._workers, len(self._running)

    def _work(self) -> None:
        me = self._clock.current_thread()
        while True:
            with self._lock:
                turn = self._next_turn()
                if turn is None:
                    return
                lane, work, label = turn.lane, turn.work, turn.label
                self._running[me] = (lane, label, self._clock.monotonic())
            try:
                work()
            except Exception:
                log.exception("%s failed in lane %s", label or "work", lane)
            finally:
                with self._lock:
                    del self._running[me]
                    if lane is not None:
                        queue = self._waiting[lane]
                        if queue:
                            # Behind the others: a long lane must not keep a worker to itself.
                            self._turns.append(_Turn(lane, *queue.popleft(), self._clock.monotonic()))
                            if len(self._turns) > 1:
                                self._lock.notify()
                        else:
                            del self._waiting[lane]

    def _next_turn(self) -> _Turn | None:
        """Wait for a turn, with the lock; None when the pool stops."""
        self._idle += 1
        try:
            while not self._stopping:
                held_back = None
                if self._turns:
                    held_back = self._held_back(self._turns[0])
                    if held_back <= 0:
                        turn = self._turns.popleft()
                        if self._turns and self._idle > 1:
                            self._lock.notify()
                        return turn
                self._lock.wait(held_back)
            return None
        finally:
            self._idle -= 1

    def _held_back(self, turn: _Turn) -> float:
        """The seconds for which a turn gives way to calls."""
        if self._precedence is None or turn.lane in self._urgent:
            return 0.0
        return min(self._precedence.busy_for(), turn.since + PATIENCE - self._clock.monotonic())

    def _go_on(self) -> None:
        """The calls that work gave way to are over."""
        with self._lock:
            if self._turns:
                self._lock.notify()

    def occupation(self) -> Occupation:
        """What the workers and lanes are doing now."""
        now = self._clock.monotonic()
        with self._lock:
            behind = [len(queue) for queue in self._waiting.values()]
            begun = min((started for _, _, started in self._running.values()), default=now)
            return Occupation(
                workers=self._workers,
                busy=len(self._running),
                oldest=now - begun,
                turns=len(self._turns),
                lanes=len(behind),
                behind=sum(behind),
                longest=max(behind, default=0),
            )

    def length(self, lane: Hashable) -> int:
        """How many pieces of work wait in a lane, behind the one that is being done."""
        with self._lock:
            return len(self._waiting.get(lane, ()))

    def backlog(self) -> int:
        """How many pieces of work wait for a worker."""
        with self._lock:
            return len(self._turns)

    def running(self) -> list[Running]:
        """What is being done now, and for how long."""
        now = self._clock.monotonic()
        with self._lock:
            return [
                Running(thread, lane, label, now - started) for thread, (lane, label, started) in self._running.items()
            ]

    def stop(self, seconds: float) -> bool:
        """Take no more work, wait at most so long for what is being done; answer whether all of it ended."""
        with self._lock:
            self._stopping = True
            self._turns.clear()
            self._waiting = {lane: deque() for lane in self._waiting}
            self._lock.notify_all()
        end = self._clock.monotonic() + seconds
        for thread in self._threads:
            if thread.name != self._clock.current_thread():
                thread.join(max(0.0, end - self._clock.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)


class Soon:
    """Work that is asked for often and done once for all who have asked: at most one piece of it waits for its turn.

    Who asks while it is being done gets it done once more.
    """

    def __init__(self, lanes: Lanes, lane: Hashable, work: Work, label: str) -> None:
        """``work`` is done in ``lane``, so never twice at a time."""
        self._lanes = lanes
        self._lane = lane
        self._work = work
        self._label = label
        self._waiting = threading.Lock()

    def ask(self) -> None:
        """Have it done soon, by a worker."""
        if self._waiting.acquire(blocking=False):
            self._lanes.submit(self._lane, self._turn, self._label)

    def _turn(self) -> None:
        # What happens from here on is for the next turn.
        self._waiting.release()
        self._work()


class Timers:
    """Calls at moments of the monotonic time, from one thread; a key has one call at a time."""

    def __init__(self, clock: Clock) -> None:
        """The thread starts with :meth:`start`; calls set before that wait for it."""
        self._clock = clock
        self._lock = clock.condition()
        self._heap: list[tuple[float, int, Hashable]] = []
        self._calls: dict[Hashable, tuple[int, Work, float]] = {}
        self._numbers = itertools.count()
        self._stopping = False
        self._thread: Thread | None = None
        self.last_turn = clock.monotonic()
        """When the thread last looked at its heap: the watchdog's sign of progress."""

    def start(self) -> None:
        """Begin to make calls."""
        self._thread = self._clock.start_thread(self._run, "timers")

    def set(self, key: Hashable, seconds: float, call: Work, *, rank: float = 0) -> None:
        """Make ``call`` in so many seconds, in place of what was set for ``key`` before. It must be quick.

        What was set with a higher ``rank`` stays: threads that come late don't undo what newer ones have set.
        """
        at = self._clock.monotonic() + max(0.0, seconds)
        with self._lock:
            before = self._calls.get(key)
            if before is not None and before[2] > rank:
                return
            number = next(self._numbers)
            self._calls[key] = (number, call, rank)
            heapq.heappush(self._heap, (at, number, key))
            if len(self._heap) > 2 * len(self._calls) + 1000:
                # Replaced entries stay in the heap until their time; a long one is not allowed to pile up.
                current = {number for number, _, _ in self._calls.values()}
                self._heap = [entry for entry in self._heap if entry[1] in current]
                heapq.heapify(self._heap)
            if self._heap[0][1] == number:
                self._lock.notify()

    def cancel(self, key: Hashable, *, rank: float = math.inf) -> None:
        """Forget the call of ``key``, if there is one that has no higher ``rank``."""
        with self._lock:
            before = self._calls.get(key)
            if before is not None and before[2] <= rank:
                del self._calls[key]

    def __contains__(self, key: Hashable) -> bool:
        with self._lock:
            return key in self._calls

    def _due(self) -> list[Work]:
        now = self._clock.monotonic()
        due = []
        while self._heap and self._heap[0][0] <= now:
            _, number, key = heapq.heappop(self._heap)
            current = self._calls.get(key)
            if current is not None and current[0] == number:
                del self._calls[key]
                due.append(current[1])
        return due

    def _run(self) -> None:
        while True:
            with self._lock:
                self.last_turn = self._clock.monotonic()
                due = self._due()
                while not due and not self._stopping:
                    wait = self._heap[0][0] - self._clock.monotonic() if self._heap else 10.0
                    self._lock.wait(min(max(wait, 0.0), 10.0))
                    self.last_turn = self._clock.monotonic()
                    due = self._due()
                if self._stopping:
                    return
            for call in due:
                try:
                    call()
                except Exception:
                    log.exception("a timer's call failed")

    def stop(self) -> None:
        """Make no more calls and end the thread."""
        with self._lock:
            self._stopping = True
            self._lock.notify()
        if self._thread is not None and self._thread.name != self._clock.current_thread():
            self._thread.join(10)
