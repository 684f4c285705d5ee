# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Time, as the rest of the program sees it. Nothing else reads a clock or sleeps.

Wall time (:meth:`Clock.now`) is for what is stored and shown; durations are measured with
:meth:`Clock.monotonic`, which no step of the system's clock disturbs.
"""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta


class Clock:
    """The machine's own time. Safe to use from any thread."""

    def now(self) -> datetime:
        """The wall time: an aware datetime in UTC, with microseconds."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Seconds since some fixed moment; only differences mean something."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Do nothing for so many seconds (none when not positive)."""
        if seconds > 0:
            time.sleep(seconds)

    def wait(self, event: threading.Event, seconds: float | None) -> bool:
        """Wait until ``event`` is set, at most ``seconds``; return whether it is set."""
        return event.wait(seconds)


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

    def wait(self, event: threading.Event, seconds: float | None) -> bool:
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

    def within(self, seconds: float) -> Deadline:
        """A deadline ``seconds`` from now that is never later than this one."""
        return Deadline(self.clock, self.remaining(seconds))
