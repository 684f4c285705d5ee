# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""A look at the database that monitors may ask for as often as they like, and never wait for long."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Generic, TypeVar

from sqlalchemy.exc import DBAPIError

from mozpool.clock import Clock
from mozpool.db.engine import reason
from mozpool.errors import DatabaseAway

log = logging.getLogger("mozpool.web")

T = TypeVar("T")


class Bounded(Generic[T]):
    """A value that is looked up by one thread at a time, kept for a while, and waited for no longer than a limit."""

    def __init__(self, clock: Clock, look: Callable[[], T], name: str, *, fresh: float, limit: float) -> None:
        """``look`` finds the value, in a thread of this ``name``. What it found, or raised, counts for ``fresh``
        seconds; callers wait until ``limit`` seconds after it began.
        """
        self._clock = clock
        self._look = look
        self._name = name
        self._fresh = fresh
        self._limit = limit
        self._changed = clock.condition()
        self._begun: float | None = None
        """When the look began that is going on."""
        self._ended: float | None = None
        self._found: T | None = None
        self._failure: str | None = None

    def get(self) -> T:
        """The value. Raises DatabaseAway when it can't be looked up, or not in time."""
        with self._changed:
            now = self._clock.monotonic()
            if self._ended is None or now - self._ended >= self._fresh:
                if self._begun is None:
                    self._begun = now
                    self._clock.start_thread(self._run, self._name)
                begun = self._begun
                while self._begun == begun:
                    left = begun + self._limit - self._clock.monotonic()
                    if left <= 0:
                        passed = self._clock.monotonic() - begun
                        raise DatabaseAway(f"the database has not answered for {passed:.0f} s")
                    self._changed.wait(left)
            if self._failure is not None:
                raise DatabaseAway(self._failure)
            assert self._found is not None
            return self._found

    def _run(self) -> None:
        found, failure = None, None
        try:
            found = self._look()
        except DatabaseAway as error:
            failure = error.message
        except DBAPIError as error:
            failure = f"the database refuses: {reason(error)}"
        except Exception:
            log.exception("%s failed", self._name)
            failure = "an internal error, which was logged"
        with self._changed:
            self._found, self._failure = found, failure
            self._begun, self._ended = None, self._clock.monotonic()
            self._changed.notify_all()
