# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Time and waiting, as the rest of the program sees them. Nothing else reads a clock or sleeps.

Wall time (:meth:`Clock.now`) is for what is stored and shown; durations are measured with
:meth:`Clock.monotonic`, which no step of the system's clock disturbs.

What threads wait for one another with comes from here, too, so that a simulation can run them one at a time, in an
order that it chooses: locks that are held while something else is waited for, conditions, events, and the threads.
"""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime, timedelta
from typing import Protocol


class Lock(AbstractContextManager[bool], Protocol):
    """One thread at a time. ``threading.Lock`` is one."""

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Wait for it, at most ``timeout`` seconds (-1: for ever); answer whether it is held now."""
        ...

    def release(self) -> None:
        """Let the next one have it."""
        ...


class Condition(AbstractContextManager[bool], Protocol):
    """A lock, and waiting for something that happens under it. ``threading.Condition`` is one."""

    def wait(self, timeout: float | None = None) -> bool:
        """Let go of the lock until another thread notifies, at most ``timeout`` seconds."""
        ...

    def notify(self, n: int = 1) -> None:
        """Wake up so many of those that wait."""
        ...

    def notify_all(self) -> None:
        """Wake up all that wait."""
        ...


class Event(Protocol):
    """Something that happens once. ``threading.Event`` is one; wait for it with :meth:`Clock.wait`."""

    def is_set(self) -> bool:
        """Whether it has happened."""
        ...

    def set(self) -> None:
        """It happens now."""
        ...

    def clear(self) -> None:
        """It is to happen anew."""
        ...


class Thread(Protocol):
    """A thread that runs. ``threading.Thread`` is one."""

    @property
    def name(self) -> str:
        """As :meth:`Clock.current_thread` says in it."""
        ...

    def join(self, timeout: float | None = None) -> None:
        """Wait for its end, at most ``timeout`` seconds."""
        ...

    def is_alive(self) -> bool:
        """Whether it has not ended."""
        ...


class Clock:
    """The machine's own time and threads. Safe to use from any thread."""

    def now(self) -> datetime:
        """The wall time: an aware datetime in UTC, with microseconds."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Seconds since some fixed moment; only differences mean something. They go on while the machine sleeps."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def sleep(self, seconds: float) -> None:
        """Do nothing for so many seconds (none when not positive)."""
        if seconds > 0:
            time.sleep(seconds)

    def wait(self, event: Event, seconds: float | None) -> bool:
        """Wait until ``event``, which is from :meth:`event`, is set, at most ``seconds``; return whether it is set."""
        assert isinstance(event, threading.Event)
        return event.wait(seconds)

    def event(self) -> Event:
        """Something to wait for."""
        return threading.Event()

    def lock(self) -> Lock:
        """A lock that may be held while something else is waited for: the database, another lock, time."""
        return threading.Lock()

    def condition(self) -> Condition:
        """A condition with a lock of its own."""
        return threading.Condition(threading.Lock())

    def start_thread(self, work: Callable[[], None], name: str) -> Thread:
        """Do ``work`` in a thread that does not keep the process alive."""
        thread = threading.Thread(target=work, name=name, daemon=True)
        thread.start()
        return thread

    def current_thread(self) -> str:
        """The name of the thread that calls."""
        return threading.current_thread().name


class SimClock(Clock):
    """Time that stands still until somebody moves it: simulated runs and unit tests.

    ``sleep`` and ``wait`` advance it by the whole time asked for.
    """

    def __init__(self, start: datetime = datetime(2030, 1, 1, tzinfo=UTC)) -> None:
        self._start = start
        self._elapsed = 0.0
        self._offset = 0.0

    def now(self) -> datetime:
        """The simulated wall time."""
        return self._start + timedelta(seconds=self._elapsed + self._offset)

    def monotonic(self) -> float:
        """Simulated seconds since the start; jumps of the wall time do not show here."""
        return self._elapsed

    def sleep(self, seconds: float) -> None:
        """Advance the time by ``seconds``."""
        self.advance(seconds)

    def wait(self, event: Event, seconds: float | None) -> bool:
        """Return at once when ``event`` is set, else advance by ``seconds``."""
        if not event.is_set() and seconds is not None:
            self.advance(seconds)
        return event.is_set()

    def advance(self, seconds: float) -> None:
        """Move both times on by ``seconds``."""
        if seconds > 0:
            self._elapsed += seconds

    def jump(self, seconds: float) -> None:
        """Step the wall time alone by ``seconds`` (may be negative), as a bad NTP server does."""
        self._offset += seconds


class Deadline:
    """A moment by which something must be over; handed down instead of loose seconds."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        """Start a deadline ``seconds`` from now on ``clock``'s monotonic time."""
        self.clock = clock
        self.seconds = seconds
        self._end = clock.monotonic() + seconds

    def remaining(self, at_most: float | None = None) -> float:
        """Seconds that are left, never negative, and at most ``at_most``."""
        left = max(0.0, self._end - self.clock.monotonic())
        return left if at_most is None else min(left, at_most)

    @property
    def expired(self) -> bool:
        """Whether no time is left."""
        return self.clock.monotonic() >= self._end

    def guard(self, connection: socket.socket) -> AbstractContextManager[None]:
        """What has to watch over a connection that is used until then: nothing."""
        return nullcontext()

    def leash(self, program: subprocess.Popen[bytes]) -> AbstractContextManager[None]:
        """What has to watch over a program that runs until then: nothing."""
        return nullcontext()

    def within(self, seconds: float) -> Deadline:
        """A deadline ``seconds`` from now that is never later than this one."""
        return Deadline(self.clock, self.remaining(seconds))
