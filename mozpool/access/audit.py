# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Writes the audit: into the table, durable before anybody is answered, and into a file.

Calls that end at about the same time share a transaction: whoever comes while one is being written waits, and one of
those who waited writes the next for all of them. So a busy server pays one commit for several rows.

What was carried out is answered as it is, whatever becomes of its row. While the database is away, rows are kept in
memory until it takes them. Meanwhile they stand in the file, and in a second one beside it (``.late``), out of which
the next process takes those that this one could not write; without a file, in this server's log.
"""

from __future__ import annotations

import json
import logging
import os
import pwd
import socket
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy.exc import DBAPIError

from mozpool.access.details import fit
from mozpool.clock import Clock, Event
from mozpool.db import audit
from mozpool.db.audit import Entry
from mozpool.db.engine import Database, reason
from mozpool.errors import DatabaseAway
from mozpool.logbook import one_line

log = logging.getLogger("mozpool.audit")

BATCH = 200
"""Rows of one transaction."""

PATIENCE = 1.0
"""Seconds for which a row is tried while the database is away."""

GATHER = 0.008
"""Seconds for which a busy server lets rows come together: each transaction takes as much of it as two rows do."""

BUSY = 3
"""So many calls that have not come to their rows make it busy."""

RETRY = 5.0
"""Seconds after which a database that was away is tried again."""

WAIT = 30.0
"""Seconds after which, and between which, a call says that it still waits for others to write its row."""

KEPT = 100_000
"""Late rows that are kept in memory."""

MICROSECOND = timedelta(microseconds=1)
STEP_BACK = timedelta(seconds=1)
"""A clock that was set back by more is believed."""


@dataclass
class _Turn:
    """A row that waits to be written."""

    entry: Entry
    woken: Event
    leads: bool = False
    """Whether its thread is to write for all that wait now."""


class Auditor:
    """One process's writer. Its methods may be called from any thread that is in no transaction."""

    def __init__(self, database: Database, clock: Clock, server: str, file: Path | None = None) -> None:
        """``server`` is what the rows name this server; ``file`` is appended to. Late rows of before are taken over."""
        self.server = server
        self._database = database
        self._clock = clock
        self._file = file
        self._waiting: deque[_Turn] = deque()
        self._is_writing = False
        self._gathering: Event | None = None
        self._lock = threading.Lock()
        self._last = datetime.min.replace(tzinfo=UTC)
        self._away_until = -1.0
        self._late: deque[Entry] = deque()
        self._late_lock = threading.Lock()
        self._retrying = threading.Lock()
        self._too_many = False
        self._has_asked = False
        self._file_works = True
        self.serving: Callable[[], int] = lambda: 0
        """How many calls are being served now, those included whose rows wait."""
        self.on_late: Callable[[], None] = lambda: None
        """Called when rows are late: :meth:`retry` is wanted in RETRY seconds."""
        if file is not None:
            self._late.extend(_read(_late_file(file)))

    @property
    def late(self) -> int:
        """How many rows are not in the table yet."""
        return len(self._late)

    def write(self, entry: Entry, *, away: bool = False) -> None:
        """Have a row in the table, or, if the database does not take it now, among the late ones.

        The row gets its time and this server's name. ``away``: whoever asks has just learnt that the database is away.
        Raises nothing that the database or a disk could be the reason for.
        """
        turn = _Turn(_storable(entry), self._clock.event())
        with self._lock:
            now = self._clock.now()
            if timedelta(0) <= self._last - now < STEP_BACK:
                now = self._last + MICROSECOND
            self._last = now
            turn.entry = replace(turn.entry, ts=now, server=self.server)
            if away:
                self._away_until = self._clock.monotonic() + RETRY
            self._waiting.append(turn)
            if self._gathering is not None and self.serving() - len(self._waiting) < BUSY:
                self._gathering.set()
            if not self._is_writing:
                self._is_writing = turn.leads = True
        while not turn.leads and not self._clock.wait(turn.woken, WAIT):
            log.warning("a row of the audit still waits for another one to be written")
        if turn.leads:
            self._gather()
            self._lead()

    def _gather(self) -> None:
        """Where many calls are being served, wait a moment for their rows."""
        enough = self._clock.event()
        with self._lock:
            if self.serving() - len(self._waiting) < BUSY:
                return
            self._gathering = enough
        self._clock.wait(enough, GATHER)

    def _lead(self) -> None:
        """Write all rows that wait now, and let one of those that have come meanwhile write the next ones."""
        with self._lock:
            self._gathering = None
            batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
        try:
            self._write([turn.entry for turn in batch])
        finally:
            with self._lock:
                following = self._waiting[0] if self._waiting else None
                if following is None:
                    self._is_writing = False
                else:
                    following.leads = True
            if following is not None:
                following.woken.set()
            for turn in batch:
                turn.woken.set()

    def _write(self, entries: Sequence[Entry]) -> None:
        if self._clock.monotonic() < self._away_until:
            self._keep(entries, "the database is away")
            return
        self._append(entries)
        try:
            self._insert(entries)
        except DatabaseAway as error:
            self._away_until = self._clock.monotonic() + RETRY
            self._keep(entries, str(error), written=True)
        except DBAPIError as error:
            # Such as a right that is missing. It is put right or it is not: the rows wait.
            self._keep(entries, f"they are refused: {reason(error)}", written=True)
        except Exception as error:
            log.exception("writing the audit broke")
            self._keep(entries, type(error).__name__, written=True)

    def _insert(self, entries: Sequence[Entry]) -> None:
        """Have them in the table. Raises DatabaseAway, DBAPIError."""
        try:
            self._database.append(partial(audit.add_at_once, entries=entries))
        except DatabaseAway as error:
            log.info("rows of the audit are written once more: %s", error)
            self._database.run(partial(audit.add_missing, entries=entries), repeatable=True, patience=PATIENCE)

    # Late ones

    def _keep(self, entries: Sequence[Entry], why: str, *, written: bool = False) -> None:
        """These come into the table later. ``written``: the file has them already."""
        if not written:
            self._append(entries)
        log.warning("%d rows of the audit come into the table later: %s", len(entries), why)
        with self._late_lock:
            if self._file is None or not self._append_to(_late_file(self._file), entries, durable=True):
                for entry in entries:
                    log.warning("audit: %s", line(entry))
            room = max(0, KEPT - len(self._late))
            self._late.extend(entries[:room])
            if room < len(entries):
                self._too_many = True
                log.error("%d late rows of the audit are more than this server keeps in mind", KEPT)
        self._ask_again()

    def _ask_again(self) -> None:
        """Have :meth:`retry` called, once for however many rows."""
        with self._late_lock:
            asked, self._has_asked = self._has_asked, True
        if not asked:
            self.on_late()

    def retry(self) -> None:
        """Try to have the late rows in the table; asks for another try where that fails. Raises nothing as above."""
        if not self._retrying.acquire(blocking=False):
            return
        with self._late_lock:
            self._has_asked = False
        done = 0
        try:
            while self._late:
                some = [self._late[number] for number in range(min(BATCH, len(self._late)))]
                self._database.run(partial(audit.add_missing, entries=some), repeatable=True, patience=0)
                self._away_until = -1.0
                with self._late_lock:
                    for _ in some:
                        self._late.popleft()
                done += len(some)
        except DatabaseAway as error:
            log.debug("rows of the audit are still late: %s", error)
        except Exception as error:
            why = reason(error) if isinstance(error, DBAPIError) else type(error).__name__
            log.error("%d rows of the audit are refused: %s", len(self._late), why)
        finally:
            self._retrying.release()
        if done:
            log.warning("%d late rows of the audit are in the table now", done)
        with self._late_lock:
            if self._file is not None and not self._late and not self._too_many:
                with suppress(OSError):
                    _late_file(self._file).unlink(missing_ok=True)
        if self._late:
            self._ask_again()

    def stop(self) -> None:
        """Try the late rows once more."""
        self.on_late = lambda: None
        self.retry()
        if self._late:
            place = "in this log" if self._file is None else f"in {_late_file(self._file)}, which the next start reads"
            log.error("%d rows of the audit are not in the table: they are %s", len(self._late), place)

    # The file

    def _append(self, entries: Sequence[Entry]) -> None:
        if self._file is not None:
            self._append_to(self._file, entries)

    def _append_to(self, file: Path, entries: Sequence[Entry], *, durable: bool = False) -> bool:
        """Add lines to a file, which may have been renamed since; answer whether they are in it."""
        data = "".join(f"{line(entry)}\n" for entry in entries).encode()
        try:
            handle = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
            try:
                written = os.write(handle, data)
                if written < len(data):
                    raise OSError(None, "only a part could be written", str(file))
                if durable:
                    os.fsync(handle)
            finally:
                os.close(handle)
        except OSError as error:
            if self._file_works:
                log.error("[auth] audit_log: %s takes no lines: %s", file, error.strerror)
            self._file_works = False
            return False
        self._file_works = True
        return True


def _late_file(file: Path) -> Path:
    return file.with_name(f"{file.name}.late")


def _read(file: Path) -> list[Entry]:
    """The rows that a process before this one could not write."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        log.error("late rows of the audit in %s can't be read: %s", file, error)
        return []
    found = []
    for number, row in enumerate(lines, 1):
        try:
            values = json.loads(row)
            values["ts"] = datetime.fromisoformat(values.pop("time"))
            found.append(Entry(**values))
        except (ValueError, TypeError, KeyError, AttributeError):
            # The last one may have been cut off by whatever ended that process.
            log.error("line %d of %s is no row of the audit: %s", number, file, one_line(row[:200]))
    return found


def _storable(entry: Entry) -> Entry:
    """Without characters that no database takes, or that write lines of their own; not longer than the columns are."""
    changed: dict[str, Any] = {}
    for name, length in audit.LENGTHS.items():
        value = getattr(entry, name)
        if value is not None and not (value.isascii() and value.isprintable() and len(value) <= length):
            changed[name] = one_line(value[:length])[:length]
    return replace(entry, **changed) if changed else entry


def line(entry: Entry) -> str:
    """A row as a line of JSON: the keys of the API, without the id, which the table gives."""
    values = {one.name: getattr(entry, one.name) for one in fields(Entry) if one.name not in ("id", "ts")}
    return json.dumps({"time": entry.ts.isoformat(timespec="microseconds"), **values}, ensure_ascii=False)


# Who is no caller


def by_command(
    server: str, now: datetime, action: str, target: str | None, details: Mapping[str, Any] | None = None
) -> Entry:
    """The row of a change that a command makes in the database itself: by the user who runs it, on this machine."""
    who = _user()
    said = dict(details or {})
    if sudo := os.environ.get("SUDO_USER"):
        said["sudo_user"] = sudo
    return _storable(
        Entry(
            now, "command", who, None, socket.gethostname(), server, action, target, fit({**said, "pid": os.getpid()})
        )
    )


def by_job(server: str, now: datetime, job: str, target: str | None, details: Mapping[str, Any]) -> Entry:
    """The row of a change that a job of the daemon makes by itself."""
    return _storable(Entry(now, "job", job, None, None, server, job, target, fit(details)))


def _user() -> str:
    """By the machine's own list of users: the environment says what it likes."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())
