# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The logs of devices and requests: to the process's log at once, to the database in batches.

Free-text lines may be late or, when the database stays away for long, dropped (their number is logged); the history
of states is written elsewhere, in the transitions themselves.
"""

from __future__ import annotations

import logging
import re
import threading
from collections import deque
from datetime import datetime
from functools import partial
from typing import Literal

from sqlalchemy import Connection

from mozpool.clock import Clock, Thread
from mozpool.db import logs, upkeep
from mozpool.db.engine import Database
from mozpool.db.tables import device_logs, request_logs
from mozpool.errors import DatabaseAway

log = logging.getLogger("mozpool.logbook")

Kind = Literal["device", "request"]
_TABLES = {"device": device_logs, "request": request_logs}

FLUSH_INTERVAL = 1.0
"""Seconds between two batches."""
BATCH = 500
_HIDDEN = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
"""Characters that end a line, steer a terminal or turn the direction of what is written."""

LIMIT = 50_000
"""Lines kept in memory while the database is away."""


def one_line(text: str) -> str:
    """``text`` on one line, with line ends and control characters as ``\\n``, ``\\x1b`` and the like.

    Whoever is quoted in it, a client or a device's garbage, writes no lines of his own. What no database can store
    (half a surrogate pair) becomes a question mark.
    """
    text = text.encode("utf-8", "replace").decode("utf-8")
    return _HIDDEN.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


class OneLineEach(logging.Formatter):
    """For the process's log: only records begin at the left edge; what goes on below them (stacks) is indented."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n    ".join(one_line(line) for line in super().format(record).split("\n"))


class Logbook:
    """Takes lines from any thread; one thread of its own writes them."""

    def __init__(self, database: Database, clock: Clock) -> None:
        """The thread starts with :meth:`start`; without it, :meth:`flush` writes what has come together."""
        self._database = database
        self._clock = clock
        self._lines: deque[tuple[Kind, int, datetime, str, str]] = deque()
        self._dropped = 0
        self._lock = threading.Lock()
        self._writing = clock.lock()
        self._news = clock.event()
        self._stop = clock.event()
        self._thread: Thread | None = None

    def add(self, kind: Kind, row_id: int, name: str, source: str, message: str, level: int = logging.INFO) -> None:
        """Note a line for the device or request with this id; ``name`` is what the process's log calls it."""
        message = one_line(message)
        logging.getLogger(f"mozpool.{kind}").log(level, "%s: %s", one_line(name), message)
        with self._lock:
            if len(self._lines) >= LIMIT:
                self._lines.popleft()
                self._dropped += 1
            self._lines.append((kind, row_id, self._clock.now(), source, message))
        self._news.set()

    def flush(self) -> None:
        """Write all lines that have come together. Raises DatabaseAway; the lines are kept then.

        What else it raises is about a batch that the database refuses, which is dropped.
        """
        with self._writing:
            while True:
                with self._lock:
                    batch = [self._lines[i] for i in range(min(BATCH, len(self._lines)))]
                if not batch:
                    return
                try:
                    upkeep.write_logs(self._database, partial(self._write, batch=batch))
                except DatabaseAway:
                    raise
                except Exception:
                    self._done_with(batch)
                    raise
                self._done_with(batch)

    def _done_with(self, batch: list[tuple[Kind, int, datetime, str, str]]) -> None:
        with self._lock:
            for line in batch:
                # Lines may have been dropped at the left end while the batch was being written.
                if self._lines and self._lines[0] is line:
                    self._lines.popleft()

    @staticmethod
    def _write(conn: Connection, batch: list[tuple[Kind, int, datetime, str, str]]) -> None:
        for kind, table in _TABLES.items():
            lines = [line[1:] for line in batch if line[0] == kind]
            logs.add_many(conn, table, lines)

    def start(self) -> None:
        """Write from a thread from now on."""
        self._thread = self._clock.start_thread(self._run, "logbook")

    def _run(self) -> None:
        while True:
            self._clock.wait(self._news, None)
            if self._clock.wait(self._stop, FLUSH_INTERVAL):
                return
            self._news.clear()
            try:
                self.flush()
                with self._lock:
                    dropped, self._dropped = self._dropped, 0
                if dropped:
                    log.warning("%d log lines were dropped while the database was away", dropped)
            except DatabaseAway as error:
                log.debug("log lines are kept: %s", error)
                self._news.set()
                self._clock.wait(self._stop, 1.0)
            except Exception:
                # A line that the database refuses must not hold up all others for ever.
                log.exception("a batch of log lines could not be written and is dropped")
                self._news.set()  # there may be more than that batch

    def stop(self) -> None:
        """Write what is left, if the database is there, and end the thread."""
        self._stop.set()
        self._news.set()
        if self._thread is not None:
            self._thread.join(5)
        try:
            self.flush()
        except DatabaseAway as error:
            log.warning("the last log lines are lost: %s", error)
        except Exception:
            log.exception("the last log lines are lost")
