# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The daemon's own reading of the inventory: now and then, by whichever server of the pool comes first."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from mozpool.clock import Clock
from mozpool.errors import DatabaseAway, MozpoolError
from mozpool.lifeguard.inventory.sync import AnotherRuns, InventorySync

log = logging.getLogger("mozpool.inventory")

LOOK_INTERVAL = 60.0
"""Seconds between two looks whether it is time, at most."""


class Background:
    """One server's part of it."""

    def __init__(
        self, sync: InventorySync, clock: Clock, interval: float, on_change: Callable[[], None] = lambda: None
    ) -> None:
        """It is read every ``interval`` seconds; ``on_change`` is called when the pool is another one then."""
        self._sync = sync
        self._clock = clock
        self._interval = interval
        self._on_change = on_change
        self._running = threading.Lock()

    @property
    def look_interval(self) -> float:
        """How often :meth:`look` is to be called."""
        return min(self._interval, LOOK_INTERVAL)

    def look(self) -> None:
        """Read it if it is time, in a thread of its own: it may take minutes."""
        if self._running.acquire(blocking=False):
            self._clock.start_thread(self._work, "inventory")

    def _work(self) -> None:
        try:
            if self._sync.is_due(self._interval):
                self._read()
        except DatabaseAway as error:
            log.warning("the inventory is not read: %s", error)
        except Exception:
            log.exception("reading the inventory broke")
        finally:
            self._running.release()

    def _read(self) -> None:
        try:
            outcome = self._sync.run(lambda said: None, note_failure=True)
        except AnotherRuns as error:
            log.info("%s", error)
        except DatabaseAway:
            raise
        except MozpoolError as error:
            log.error("nothing is taken over from the inventory: %s", error)
        else:
            log.log(logging.INFO if outcome.plan.is_empty else logging.WARNING, "inventory: %s", outcome.message())
            if not outcome.plan.is_empty:
                self._on_change()
