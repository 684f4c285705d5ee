# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The database of the simulation: the real one, on SQLite or MariaDB, with the troubles of one behind a network.

SQLite is made to behave as MySQL does at READ COMMITTED: a transaction reads what is committed by then, and takes the
lock when it first writes. So other actors get in between load and write here, too.
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pymysql
from sqlalchemy import Connection, event, exc

from mozpool.clock import Clock
from mozpool.db.engine import Database, _Attempt
from mozpool.errors import DatabaseAway
from mozpool.simulate.faults import Faults
from mozpool.simulate.scheduler import Lock

ROUND_TRIP = 0.01
"""Seconds that a transaction takes at most when the database is not late."""

CONNECT_WITHIN = 0.5
"""Seconds until a server that is away refuses a connection."""

CONNECTIONS = 200
"""More than actors that are in a transaction at a time: nobody may wait for a connection in real time."""


class _Compiled(dict[Any, Any]):
    """Statements that were compiled, by whichever server in whichever run: their dialects are objects of their own."""

    def get(self, key: Any, default: Any = None) -> Any:
        return super().get((key[0].name, *key[1:]), default)

    def __setitem__(self, key: Any, compiled: Any) -> None:
        super().__setitem__((key[0].name, *key[1:]), compiled)


_COMPILED = _Compiled()

WRITES = ("INSERT", "UPDATE", "DELETE", "REPLACE")

_DEADLOCK = (1213, "Deadlock found when trying to get lock; try restarting transaction")
_REFUSED = (2003, "Can't connect to MySQL server")
_LOST = (2013, "Lost connection to MySQL server during query")


class SimulatedDatabase(Database):
    """One server's connections."""

    def __init__(
        self,
        url: str,
        *,
        clock: Clock,
        rng: random.Random,
        faults: Faults,
        writer: Lock,
        name: str,
        on_commit: Callable[[], None],
    ) -> None:
        """``writer`` is SQLite's one writer, whichever server it is of; ``on_commit`` is told of each commit."""
        super().__init__(url, pool_size=CONNECTIONS, clock=clock, rng=rng)
        self.engine = self.engine.execution_options(compiled_cache=_COMPILED)
        self.reader = self.reader.execution_options(compiled_cache=_COMPILED)
        self._faults = faults
        self._turn = writer
        self._where = name
        self._on_commit = on_commit
        self.away_until = 0.0
        if self.dialect == "sqlite":
            for engine in (self.engine, self.reader):
                event.listen(engine, "connect", _never_wait)
            event.listen(self.engine, "before_cursor_execute", self._before_statement)
        else:
            for engine in (self.engine, self.reader):
                event.listen(engine, "connect", _never_wait_for_locks)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """As the real one, sometimes late or in vain."""
        try:
            self._late()
        except exc.OperationalError as error:
            raise DatabaseAway(f"{self.name} is away: {_REFUSED[1]}") from error
        if self._faults.happens("read_lost", self._where):
            raise DatabaseAway(f"{self.name} is away: {_LOST[1]}")
        if self.dialect == "mysql":
            with super().read() as connection:
                yield connection
            return
        # Each statement stands for itself, as on MySQL.
        with self._once_a_thread(), self.reader.connect() as connection, self._ended(connection):
            yield connection

    def _late(self) -> None:
        if self._faults.happens("outage", self._where):
            self.away_until = self.clock.monotonic() + self._faults.uniform(1.0, 120.0)
        if self.clock.monotonic() < self.away_until:
            self.clock.sleep(min(CONNECT_WITHIN, self.away_until - self.clock.monotonic()))
            raise _error("connect", _REFUSED)
        late = self._faults.happens("late_answer", self._where)
        self.clock.sleep(self._rng.uniform(0.0, 2.0 if late else ROUND_TRIP))

    @contextmanager
    def _transaction(self, attempt: _Attempt) -> Iterator[Connection]:
        self._late()
        with self._once_a_thread(), self.engine.connect() as connection, self._troubled(connection, attempt):
            yield connection

    @contextmanager
    def _troubled(self, connection: Connection, attempt: _Attempt) -> Iterator[None]:
        try:
            with self._ended(connection):
                yield
                self._commit(connection, attempt)
        finally:
            if connection.info.pop("has turn", False):
                self._turn.release()

    def _commit(self, connection: Connection, attempt: _Attempt) -> None:
        faults, where = self._faults, self._where
        if faults.happens("deadlock", where):
            raise _error("COMMIT", _DEADLOCK)
        if faults.happens("lost_before_commit", where):
            attempt.in_doubt = True
            raise _error("COMMIT", _LOST)
        attempt.in_doubt = self.dialect == "mysql"
        connection.commit()
        self._on_commit()
        if faults.happens("lost_after_commit", where):
            attempt.in_doubt = True
            raise _error("COMMIT", _LOST)

    def _before_statement(
        self, connection: Connection, cursor: Any, statement: str, parameters: Any, context: Any, many: bool
    ) -> None:
        """Take the one writer's turn before the first write of a transaction."""
        info = connection.info
        if "has turn" in info or not statement.lstrip().upper().startswith(WRITES):
            return
        self._turn.acquire()
        info["has turn"] = True
        cursor.connection.execute("BEGIN IMMEDIATE")


def _error(statement: str, said: tuple[int, str]) -> exc.OperationalError:
    return exc.OperationalError(statement, None, pymysql.err.OperationalError(*said))


def _never_wait(connection: sqlite3.Connection, _record: Any) -> None:
    """An actor that waited in real time would hold up all others; the file need not outlive the run either."""
    connection.execute("PRAGMA busy_timeout = 0")
    connection.execute("PRAGMA synchronous = OFF")


def _never_wait_for_locks(connection: Any, _record: Any) -> None:
    """As above: whoever holds the lock can only let go of it when others run."""
    with connection.cursor() as cursor:
        cursor.execute("SET SESSION innodb_lock_wait_timeout = 0")


@contextmanager
def quick_connection(url: str) -> Iterator[sqlite3.Connection]:
    """A bare connection to a SQLite file, for looking at it."""
    connection = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
    try:
        yield connection
    finally:
        with suppress(sqlite3.Error):
            connection.close()
