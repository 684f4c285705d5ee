# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""A driver that is stuck says so: the stacks of all threads are logged, and in the end the process ends itself.

Its supervisor (systemd) starts it again; everything that matters is in the database.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from mozpool.clock import Clock, Thread
from mozpool.lanes import Lanes, Timers

log = logging.getLogger("mozpool.watchdog")

LOOK_EVERY = 5.0
"""Seconds between two looks."""

EXIT_CODE = 70
"""What a stuck process ends with: EX_SOFTWARE of sysexits.h."""


def stacks() -> str:
    """What every thread is doing, for the log."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    parts = []
    for ident, frame in sys._current_frames().items():
        parts.append(f"thread {names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}")
    return "\n".join(parts)


def exit_now() -> None:
    """End the process at once, for its supervisor to start it again."""
    logging.shutdown()
    os._exit(EXIT_CODE)


class Watchdog:
    """Watches the timers' thread and the workers from a thread of its own, and touches the heartbeat file."""

    def __init__(
        self,
        clock: Clock,
        timers: Timers,
        quick: Lanes,
        hardware: Sequence[Lanes],
        *,
        stuck_after: float,
        exit_after: float,
        longest_operation: float,
        heartbeat_file: Path | None = None,
        end_process: Callable[[], None] = exit_now,
    ) -> None:
        """A transition that takes ``stuck_after`` seconds, or hardware work that takes as long beyond
        ``longest_operation``, is stuck; no progress at all for ``exit_after`` seconds ends the process.
        """
        self._clock = clock
        self._timers = timers
        self._quick = quick
        self._hardware = hardware
        self._stuck_after = stuck_after
        self._exit_after = exit_after
        self._longest = longest_operation
        self._heartbeat = heartbeat_file
        self._end_process = end_process
        self._reported: set[tuple[str, str]] = set()
        self._stop = clock.event()
        self._thread: Thread | None = None

    def start(self) -> None:
        """Begin to watch."""
        self._thread = self._clock.start_thread(self._run, "watchdog")

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(10)

    def _run(self) -> None:
        while not self._clock.wait(self._stop, min(LOOK_EVERY, self._stuck_after / 2)):
            self.look()

    def stuck(self) -> dict[tuple[str, str], float]:
        """What is stuck now: thread and what it does → for how many seconds. Nothing: all is well."""
        late = {("timers", "the timers' thread"): self._clock.monotonic() - self._timers.last_turn - 10.0}
        for work in self._quick.running():
            late[(work.thread, work.label)] = work.seconds
        for lanes in self._hardware:
            for work in lanes.running():
                late[(work.thread, work.label)] = work.seconds - self._longest
        return {key: seconds for key, seconds in late.items() if seconds > self._stuck_after}

    def look(self) -> None:
        """Look once: report what is stuck, end the process when nothing has moved for too long."""
        stuck = self.stuck()
        self._reported &= set(stuck)
        new = set(stuck) - self._reported
        if new:
            self._reported |= new
            what = "; ".join(f"{label or thread} for {stuck[(thread, label)]:.0f} s" for thread, label in sorted(new))
            log.error("stuck beyond its time limit: %s\n%s", what, stacks())
        longest = max(
            (seconds for (thread, _), seconds in stuck.items() if thread == "timers" or thread.startswith("quick")),
            default=0.0,
        )
        if longest > self._exit_after:
            log.critical("no progress for %.0f s: the process ends, to be started again", longest)
            self._end_process()
            return
        if not stuck and self._heartbeat is not None:
            try:
                self._heartbeat.touch()
            except OSError as error:
                log.warning("heartbeat_file %s: %s", self._heartbeat, error.strerror)
