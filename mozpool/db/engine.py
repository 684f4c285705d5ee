# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Connections and transactions: the same for MySQL, MariaDB and SQLite, and honest about a database that is away.

Every unit of work is one short transaction, usually through :meth:`Database.run`, which repeats what another
transaction or a lost connection undid. A thread has at most one transaction at a time. A database may be a Galera
cluster: :mod:`mozpool.db.nodes` says which of its nodes is used.
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, exc
from sqlalchemy.engine import URL
from sqlalchemy.pool import NullPool, StaticPool

from mozpool import config
from mozpool.clock import Clock, Deadline
from mozpool.db.nodes import AWAY, BROKEN_OFF, CONFLICTS, LOCK_WAIT, NOT_READY, NodeConnection, Nodes, Session
from mozpool.errors import DatabaseAway

T = TypeVar("T")

POOL_WAIT = 5.0
"""Seconds to wait for a free connection, or for SQLite's one writer."""

PING_AFTER = 1.0
"""Seconds of idleness after which a connection is tried before it is used."""

ANSWER_WITHIN = 30.0
"""Seconds a MySQL server may be silent in the middle of an answer before the connection counts as lost."""

CLUSTER_ANSWER_WITHIN = 10.0
"""The same where there are other nodes to go to. After the loss of a node the others commit nothing until they have
left it out, which takes them five to seven seconds unless configured otherwise: that is no reason to leave them."""

IDLE_TRANSACTION = 8.0
"""Seconds after which MariaDB ends a transaction in which nothing is said, and so lets its locks go: those of a process
that hangs, or whose machine is cut off. Ours take milliseconds; MySQL has no such limit."""

APPENDERS = 2
"""Connections for single INSERTs at most."""

CONFLICT_TRIES = 10
"""How often a transaction may lose against others."""

LOCK_WAITS = 3
"""How often in a row it may wait in vain for a lock on one node of a cluster. Then it is done on another, whose commits
go before what is locked here."""

# What a person can do about a database that refuses us. It may be put right while we run: that is like being away.
_CORRECT = "correct [database] engine in the configuration"

# Times are UTC whatever the server's zone; what does not fit a column is an error and never cut off.
# A lock is waited for so short that a stuck holder shows as a conflict long before ANSWER_WITHIN.
_MYSQL_SESSION = (
    "SET time_zone = '+00:00', "
    "sql_mode = 'STRICT_ALL_TABLES,ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION', "
    "innodb_lock_wait_timeout = 3, lock_wait_timeout = 3"
)
# Only MariaDB reads what stands in such a comment.
_IDLE_TRANSACTION = f" /*M!100300 , idle_transaction_timeout = {IDLE_TRANSACTION:.0f} */"
_NO_IDLE_LIMIT = " /*M!100300 , idle_transaction_timeout = 0 */"

_IN_DOUBT = "; the last change may have taken place"

# What may be said of a commit that failed so: it did not take place.
_NOT_COMMITTED = CONFLICTS - {BROKEN_OFF} | {NOT_READY}


_busy: ContextVar[frozenset[int]] = ContextVar("busy", default=frozenset())
"""The databases that this thread has a transaction of."""


class Database:
    """A pool of connections to one database. All methods may be called from any thread."""

    def __init__(
        self,
        url: str,
        *,
        pool_size: int = 20,
        connect_timeout: float = 5.0,
        clock: Clock,
        rng: random.Random,
    ) -> None:
        """Connect to nothing yet: the first transaction does.

        ``url`` is SQLAlchemy's (``mysql+pymysql://user:password@host/name``, ``sqlite:////path``, or ``sqlite://``
        for one in memory), of which a cluster's has several hosts: see :func:`mozpool.config.database_urls`, which also
        says what is raised. ``pool_size`` is how many transactions that
        write, and besides how many that read, may run at the same time: there are at most twice as many connections,
        and APPENDERS more.
        ``connect_timeout`` is the seconds that connecting to one host may take.
        """
        urls = config.database_urls(url)
        self.url = urls[0]
        """Of a cluster: the URL of the database on the first host."""
        self.dialect = "sqlite" if self.url.get_backend_name() == "sqlite" else "mysql"
        self.name = _describe(urls)
        """The database in words fit for a message: without a password."""
        self.clock = clock
        self._rng = rng
        self._in_memory = self.dialect == "sqlite" and self.url.database in (None, "", ":memory:")
        self._connect_timeout = connect_timeout
        self._nodes = Nodes(urls, clock=clock, connect_timeout=connect_timeout)
        self._answer_within = CLUSTER_ANSWER_WITHIN if self._nodes.others else ANSWER_WITHIN
        # While a cluster leaves a node out, all connections may be waiting in a commit.
        self._pool_wait = POOL_WAIT + (CLUSTER_ANSWER_WITHIN if self._nodes.others else 0)
        self._writer = clock.lock()
        self.on_work: Callable[[str, float, bool], None] = lambda operation, seconds, away: None
        """Told of each :meth:`read` and :meth:`run`: ``read`` or ``write``, seconds, whether it came to nothing."""
        self.on_retry: Callable[[str], None] = lambda reason: None
        """Told of each repetition of a transaction: ``conflict`` or ``lost``."""
        if self.dialect == "mysql":
            statement = _MYSQL_SESSION + _IDLE_TRANSACTION
            self.engine = self._mysql_engine(pool_size, Session(statement, self._answer_within))
            self.reader = self._mysql_engine(pool_size, Session(statement, self._answer_within, read_only=True))
            self._appender = self._mysql_engine(
                APPENDERS, Session(_MYSQL_SESSION, self._answer_within), each_statement=True
            )
        elif self._in_memory:
            self.engine = self.reader = self._appender = self._sqlite_engine(pool_size)
        else:
            self.engine = self._appender = self._sqlite_engine(pool_size)
            self.reader = self._sqlite_engine(pool_size, read_only=True)

    @classmethod
    def of(cls, settings: config.Database, *, clock: Clock, rng: random.Random | None = None) -> Database:
        """The database that the configuration names."""
        return cls(
            settings.engine,
            pool_size=settings.pool_size,
            connect_timeout=settings.connect_timeout,
            clock=clock,
            rng=rng or random.SystemRandom(),
        )

    # -- transactions ---------------------------------------------------------------------------------------------

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """One transaction: committed at the end of the block, rolled back when an exception leaves it.

        READ COMMITTED on MySQL; on SQLite it has the write lock from the start. Nothing is repeated: see :meth:`run`.
        Raises DatabaseAway when the database cannot be reached, is lost on the way, or does not say whether the commit
        took place; RuntimeError when this thread already is in a transaction.
        """
        attempt = _Attempt()
        try:
            with self._transaction(attempt) as connection:
                yield connection
        except exc.SQLAlchemyError as error:
            if _is_away(error):
                raise self._away(error, attempt.in_doubt) from error
            raise

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection for reads only: the database refuses a write (one in memory forgets it). It waits for no writer.

        On SQLite all statements see the same moment. On MySQL each stands for itself, as READ COMMITTED shows it the
        newest rows anyway: that saves the round trip that ends a transaction. One that a conflict or a lost node of a
        cluster spoils is sent again by itself, to another node where need be.
        Raises as :meth:`begin` does.
        """
        with self._measured("read"):
            try:
                with (
                    self._once_a_thread(),
                    self._one_at_a_time(self._in_memory),
                    self.reader.connect() as connection,
                    self._ended(connection),
                ):
                    if self.dialect == "sqlite":
                        connection.exec_driver_sql("BEGIN")
                    yield connection
            except exc.SQLAlchemyError as error:
                if _code(error) in CONFLICTS:
                    raise DatabaseAway(f"{self.name} is too busy: {reason(error)}") from error
                if _is_away(error):
                    raise self._away(error) from error
                raise

    def run(
        self,
        work: Callable[[Connection], T],
        *,
        committed: Callable[[Connection], T | None] | None = None,
        repeatable: bool = False,
        patience: float = 2.0,
    ) -> T:
        """Do ``work`` in a transaction and return its value, once that is committed.

        ``work`` may be called several times, each time in a new transaction: again at once when another transaction
        got in the way (deadlock, lock wait, certification conflict; at most CONFLICT_TRIES times) or a node of a
        cluster was lost (at most once for each other node), and for ``patience`` seconds while the database is away. So
        it must have no effects but those on its connection.

        When the connection is lost during the commit itself, nobody knows whether it took place. Then ``committed`` is
        called in a new transaction: it looks for what ``work`` wrote (a token in the row) and returns the value that
        ``work`` would have; None means that nothing is there, and ``work`` is done again. Where it comes to the same if
        it is done twice (a column gets a value), ``repeatable`` saves looking.

        Raises DatabaseAway when it comes to nothing within these limits; where a commit's answer was lost, and nothing
        tells what became of it, the message says that the change may have taken place. Whatever else ``work`` raises is
        rolled back and passed on.
        """
        with self._measured("write"):
            return self._run(work, committed, repeatable, Deadline(self.clock, patience))

    def _run(
        self,
        work: Callable[[Connection], T],
        committed: Callable[[Connection], T | None] | None,
        repeatable: bool,
        deadline: Deadline,
    ) -> T:
        in_doubt: BaseException | None = None  # the error of a commit whose outcome is unknown
        doubt = False  # whether an earlier try may have been committed
        conflicts = losses = lock_waits = 0
        while True:
            attempt, look, node = _Attempt(), _Attempt(), self._nodes.mark()
            try:
                if in_doubt is not None and committed is not None:
                    with self._transaction(look) as connection:
                        value = committed(connection)
                    if value is not None:
                        return value
                    in_doubt, doubt = None, False
                with self._transaction(attempt) as connection:
                    value = work(connection)
                return value
            except exc.SQLAlchemyError as error:
                if _code(error) in CONFLICTS and not attempt.in_doubt:
                    conflicts += 1
                    lock_waits = lock_waits + 1 if _code(error) == LOCK_WAIT else 0
                    if lock_waits == LOCK_WAITS:
                        self._nodes.leave(*node)
                        lock_waits = 0
                    if conflicts >= CONFLICT_TRIES:
                        raise DatabaseAway(
                            f"{self.name} is too busy: other transactions got in the way {conflicts} times"
                            f"{_IN_DOUBT if doubt else ''}"
                        ) from error
                    self.on_retry("conflict")
                    self.clock.sleep(self._rng.uniform(0, min(0.1, 0.002 * 2**conflicts)))
                    continue
                if not (_is_away(error) or _code(error) == BROKEN_OFF):
                    raise
                doubt = doubt or attempt.in_doubt
                if attempt.in_doubt and not repeatable:
                    in_doubt = error
                losses += 1
                may_ask = in_doubt is error and committed is not None
                # A commit that was lost by waiting has used up all patience: still ask once what became of it, and go
                # to another node at once. Where none could be connected to, all have been tried.
                may_move = losses <= self._nodes.others and (attempt.connected or look.connected)
                over = deadline.expired and not (may_ask or may_move)
                if over or (in_doubt is not None and committed is None):
                    raise self._away(error, doubt) from error
                self.on_retry("lost")
                if may_move:
                    continue
                pause = min(0.5, 0.02 * 2**losses)
                self.clock.sleep(deadline.remaining(self._rng.uniform(pause / 2, pause)))

    def append(self, work: Callable[[Connection], None]) -> None:
        """Do ``work``, which is one INSERT: a transaction of its own, with one round trip where :meth:`run` needs two.

        Nothing is repeated. Raises DatabaseAway when it comes to nothing, and also when nobody knows whether it did:
        by :meth:`run` whoever asks may look what is there, and do it again.
        """
        if self.dialect == "sqlite":
            return self.run(work, repeatable=True)  # it can't lose an answer
        try:
            with self._measured("write"), self._once_a_thread(), self._appender.connect() as connection:
                try:
                    work(connection)
                except exc.SQLAlchemyError as error:
                    if _is_away(error) and not connection.invalidated:
                        connection.invalidate(error)
                    raise
        except exc.SQLAlchemyError as error:
            if _code(error) in CONFLICTS or _is_away(error):
                raise self._away(error, in_doubt=True) from error
            raise

    def ping(self) -> bool:
        """Ask the database for a sign of life: True, or DatabaseAway is raised."""
        with self.read() as connection:
            return bool(connection.exec_driver_sql("SELECT 1").scalar_one() == 1)

    def dispose(self) -> None:
        """Close all connections that are not in use (an in-memory database is gone then)."""
        self.engine.dispose()
        self.reader.dispose()
        self._appender.dispose()

    @contextmanager
    def maintenance(self) -> Iterator[Connection]:
        """One transaction for changing the schema: a statement may take as long as it needs.

        SQLite does not enforce foreign keys meanwhile, because changing a table means replacing it.
        Raises as :meth:`begin` does.
        """
        if self.dialect == "sqlite":
            engine = self.engine
        else:
            engine = self._mysql_engine(
                1, Session(_MYSQL_SESSION + _NO_IDLE_LIMIT, answer_within=None), poolclass=NullPool
            )
        attempt = _Attempt()
        try:
            with self._once_a_thread(), self._one_at_a_time(self.dialect == "sqlite"), engine.connect() as connection:
                if self.dialect == "sqlite":
                    with _foreign_keys_off(connection), self._written(connection, attempt):
                        yield connection
                else:
                    connection.exec_driver_sql("SET lock_wait_timeout = 60")
                    connection.rollback()
                    with self._written(connection, attempt):
                        yield connection
        except exc.SQLAlchemyError as error:
            if _is_away(error):
                raise self._away(error, attempt.in_doubt) from error
            raise

    # -- inside ---------------------------------------------------------------------------------------------------

    @contextmanager
    def _measured(self, operation: str) -> Iterator[None]:
        """Tell of a unit of work when it is over."""
        begun, away = self.clock.monotonic(), False
        try:
            yield
        except DatabaseAway:
            away = True
            raise
        finally:
            self.on_work(operation, self.clock.monotonic() - begun, away)

    @contextmanager
    def _transaction(self, attempt: _Attempt) -> Iterator[Connection]:
        """A transaction that writes; ``attempt`` notes how far it got. Errors are the driver's own."""
        with (
            self._once_a_thread(),
            self._one_at_a_time(self.dialect == "sqlite"),
            self.engine.connect() as connection,
            self._written(connection, attempt),
        ):
            attempt.connected = True
            yield connection

    @contextmanager
    def _written(self, connection: Connection, attempt: _Attempt) -> Iterator[None]:
        """Begin, and commit unless an exception comes by."""
        with self._ended(connection):
            if self.dialect == "sqlite":
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            yield
            attempt.in_doubt = self.dialect == "mysql"  # SQLite in this process can't lose the answer
            try:
                connection.commit()
            except exc.SQLAlchemyError as error:
                if _code(error) in _NOT_COMMITTED:
                    attempt.in_doubt = False
                raise

    @contextmanager
    def _ended(self, connection: Connection) -> Iterator[None]:
        """Leave no transaction open. The pool itself rolls nothing back, which saves a round trip after a commit.

        A connection whose rollback fails, or whose node of the cluster is of no use, is thrown away.
        """
        connection.begin()
        try:
            yield
        except exc.SQLAlchemyError as error:
            if _is_away(error) and not connection.invalidated and self.dialect == "mysql":
                connection.invalidate(error)
            raise
        finally:
            if connection.in_transaction():
                try:
                    connection.rollback()
                except exc.SQLAlchemyError as error:
                    connection.invalidate(error)

    @contextmanager
    def _once_a_thread(self) -> Iterator[None]:
        """Refuse a transaction within a transaction: it would wait for a connection or a lock that it holds itself."""
        busy = _busy.get()
        if id(self) in busy:
            raise RuntimeError("this thread already is in a transaction: pass its connection on")
        before = _busy.set(busy | {id(self)})
        try:
            yield
        finally:
            _busy.reset(before)

    @contextmanager
    def _one_at_a_time(self, needed: bool) -> Iterator[None]:
        """Where ``needed``, wait for this process's turn to write: threads would only spin on SQLite's own lock."""
        if not needed:
            yield
            return
        if not self._writer.acquire(timeout=POOL_WAIT):
            raise DatabaseAway(f"{self.name} is too busy: no turn to write within {POOL_WAIT:g} s")
        try:
            yield
        finally:
            self._writer.release()

    def _away(self, error: exc.SQLAlchemyError, in_doubt: bool = False) -> DatabaseAway:
        """The error to tell the caller; the driver's reason has no password in it."""
        if isinstance(error, exc.TimeoutError):
            return DatabaseAway(f"{self.name} is too busy: no free connection within {self._pool_wait:g} s")
        said, user = reason(error), self.url.username
        match _code(error):
            case 1049:
                what = f"does not exist: make it with CREATE DATABASE, or {_CORRECT}"
            case 1044:
                what = f"may not be used by {user} ({said}): GRANT it, or {_CORRECT}"
            case 1045 | 1698:
                what = f"refuses the user {user} or the password ({said}): {_CORRECT}"
            case sqlite3.SQLITE_NOTADB:
                what = f"is no SQLite file ({said}): move it out of the way, or {_CORRECT}"
            case _:
                what = f"is away: {said}"
        return DatabaseAway(f"{self.name} {what}{_IN_DOUBT if in_doubt else ''}")

    # -- engines --------------------------------------------------------------------------------------------------

    def _mysql_engine(
        self, pool_size: int, session: Session, *, poolclass: Any = None, each_statement: bool = False
    ) -> Engine:
        """PyMySQL with bounded waits everywhere, on the node that is used; it keeps TCP connections alive by itself.

        Where the session is read-only, or with ``each_statement``, each statement is a transaction of its own, which
        SQLAlchemy needs not end.
        """
        pooled: dict[str, Any] = {
            "pool_size": pool_size,
            "max_overflow": 0,
            "pool_timeout": self._pool_wait,
            "pool_recycle": 1800,
            "pool_use_lifo": True,
            "pool_reset_on_return": None,
        }
        engine = create_engine(
            self.url,
            isolation_level="AUTOCOMMIT"
            if session.read_only or each_statement
            else "READ COMMITTED",  # said once a connection
            skip_autocommit_rollback=True,
            connect_args={"charset": "utf8mb4"},
            **(pooled if poolclass is None else {"poolclass": poolclass}),
        )

        @event.listens_for(engine, "do_connect")
        def connect(_dialect: Any, _record: Any, _arguments: Any, options: dict[str, Any]) -> NodeConnection:
            return self._nodes.connect(options, session)

        @event.listens_for(engine, "connect")
        @event.listens_for(engine, "checkin")
        def note_use(_connection: Any, record: Any) -> None:
            record.info["used"] = self.clock.monotonic()

        @event.listens_for(engine, "checkout")
        def check(connection: NodeConnection, record: Any, _proxy: Any) -> None:
            if not self._nodes.is_current(connection):
                raise exc.DisconnectionError("its node has been left")
            if self.clock.monotonic() - record.info["used"] < PING_AFTER:
                return
            try:
                connection.try_out()
            except engine.dialect.loaded_dbapi.Error as error:
                raise exc.InvalidatePoolError(str(error)) from error

        return engine

    def _sqlite_engine(self, pool_size: int, *, read_only: bool = False) -> Engine:
        """Python's sqlite3, with transactions begun by us; one shared connection where the database is in memory."""
        pooled: dict[str, Any] = {"pool_size": pool_size, "max_overflow": 0, "pool_timeout": POOL_WAIT}
        engine = create_engine(
            self.url,
            connect_args={"check_same_thread": False, "timeout": self._connect_timeout, "isolation_level": None},
            pool_reset_on_return=None,
            **({"poolclass": StaticPool} if self._in_memory else pooled),
        )

        @event.listens_for(engine, "connect")
        def configure(connection: sqlite3.Connection, _record: Any) -> None:
            if not self._in_memory:
                connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("PRAGMA foreign_keys = ON")
            if read_only:
                connection.execute("PRAGMA query_only = ON")

        return engine


class _Attempt:
    """How far a transaction got."""

    def __init__(self) -> None:
        self.connected = False
        """Whether it had a connection."""
        self.in_doubt = False
        """Whether a lost connection leaves open if it was committed."""


@contextmanager
def _foreign_keys_off(connection: Connection) -> Iterator[None]:
    """SQLite's switch; it has no effect inside a transaction."""
    connection.exec_driver_sql("PRAGMA foreign_keys = OFF")
    connection.rollback()  # SQLAlchemy's own bookkeeping: the database has no transaction open
    try:
        yield
    finally:
        connection.exec_driver_sql("PRAGMA foreign_keys = ON")
        connection.rollback()


def _describe(urls: Sequence[URL]) -> str:
    """E.g. ``the database mozpool at db1:3306``, with all hosts of a cluster."""
    if urls[0].get_backend_name() == "sqlite":
        return f"the database {urls[0].database or 'in memory'}"
    hosts = (config.host_and_port(url.host or "localhost", url.port or config.MYSQL_PORT) for url in urls)
    return f"the database {urls[0].database} at {', '.join(hosts)}"


def _code(error: exc.SQLAlchemyError) -> object:
    """MySQL's error number (above 1000), SQLite's (below 256), or whatever else the driver's error starts with."""
    original = error.orig if isinstance(error, exc.DBAPIError) else None
    if isinstance(original, sqlite3.Error):
        return getattr(original, "sqlite_errorcode", 0) & 0xFF  # errors of the module itself have none
    return original.args[0] if original is not None and original.args else None


def reason(error: exc.SQLAlchemyError) -> str:
    """What the driver says, in one line, without the statement."""
    original = error.orig if isinstance(error, exc.DBAPIError) and error.orig is not None else error
    text = str(original.args[-1]) if original.args else ""
    return " ".join(text.split()) or type(original).__name__


def _is_away(error: exc.SQLAlchemyError) -> bool:
    """Whether trying again later, on another connection, makes sense."""
    if isinstance(error, exc.TimeoutError):
        return True
    if not isinstance(error, exc.DBAPIError):
        return False
    if isinstance(error.orig, sqlite3.Error):
        # "Locked" means that another process writes; a file that can't be opened may come back with its disk.
        return _code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOTADB)
    # Without a statement it was connecting that failed: refused, unreachable, access denied.
    connecting = error.statement is None and isinstance(error, exc.OperationalError | exc.InterfaceError)
    return error.connection_invalidated or connecting or _code(error) in AWAY
