# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What is done every so often. A metronome only: what is due, and when, is in the database."""

from __future__ import annotations

import logging
from collections.abc import Callable

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler

from mozpool.clock import Clock


class Metronome:
    """Makes calls at regular intervals, each one at a time; beats that were missed are made up for by one."""

    def __init__(self, clock: Clock) -> None:
        """It is silent until :meth:`start`."""
        self._clock = clock
        logging.getLogger("apscheduler").setLevel(logging.WARNING)
        self._scheduler = BackgroundScheduler(
            timezone="UTC",
            executors={"default": ThreadPoolExecutor(4)},
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
        )

    def every(self, seconds: float, call: Callable[[], object], name: str, *, now: bool = False) -> None:
        """Make ``call`` every so many seconds, for the first time after so many, or at once with ``now``."""
        first = {"next_run_time": self._clock.now()} if now else {}
        self._scheduler.add_job(call, "interval", seconds=seconds, id=name, **first)

    def start(self) -> None:
        """Begin."""
        self._scheduler.start()

    def stop(self) -> None:
        """Make no more calls; one that is being made goes on."""
        if self._scheduler.running:
            self._scheduler.shutdown(wait=False)
