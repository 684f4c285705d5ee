# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Connections to MySQL, of which there may be several nodes: which one is used, and when it is left for another.

A process uses one node, the first in the list that works, until that one fails: two nodes that write the same rows get
in each other's way. It does not go back by itself when the first node is well again. All nodes are as good, so nothing
would be won but a second pause, and a node that comes and goes would drag everybody along.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pymysql.connections
from sqlalchemy.engine import URL

from mozpool.clock import Clock, Deadline
from mozpool.config import MYSQL_PORT, host_and_port

FAILED_FOR = 15.0
"""Seconds for which a node that failed is tried after all others."""

PATIENCE = 3.0
"""Seconds for which a cluster is asked again whose nodes answer but take no work: they agree on who has gone."""

AGAIN_AFTER = 0.1
"""Seconds between two such rounds."""

REPEATS = 10
"""How often one read is sent again because others got in its way."""

LOCK_WAIT = 1205
"""A lock was not to be had in time; in a cluster also: what others had committed did not arrive in time."""

BROKEN_OFF = 1317
"""A statement was broken off: a change of tables on another node of a cluster does so to what is in its way here."""

CONFLICTS = frozenset({LOCK_WAIT, 1213, BROKEN_OFF})
"""Lock wait timeout; deadlock or, in a cluster, certification conflict; broken off.

Nothing was committed, unless it was the commit that was broken off.
"""

NOT_READY = 1047
"""The node takes no statements: it is joining, or has lost the cluster. What was sent was not done."""

AWAY = frozenset(
    {
        1040,  # too many connections
        NOT_READY,
        1053,  # the server is shutting down
        1180,  # the commit failed: the node has lost the cluster
        1927,  # the connection was killed
        2002,  # no connection through the local socket
        2003,  # no connection over TCP
        2006,  # the server has gone away
        2013,  # the connection was lost during a statement
        2055,  # the same, with the system's reason
        4031,  # closed by the server for idleness
    }
)
"""The connection or its server is gone, or its node of a cluster takes no work; another connection may do."""

# The node itself says that it is of no use.
_USELESS = frozenset({1040, NOT_READY, 1053, 1180})

# The connection ended. The node may be well: that shows when it is connected to anew.
_BROKEN = frozenset({2006, 2013, 2055})

# No node would answer anything else: no such database, no right to it, a wrong user or password.
_REFUSED = frozenset({1044, 1045, 1049, 1698})

# A node of a cluster first waits until it has what was committed anywhere before, in a transaction only at its first
# statement (1: before reads, 2: before UPDATE and DELETE, 4: before INSERT). Writes need it too: a row that was written
# on another node, and has not arrived, would not match, or be missing as what a foreign key refers to.
_CAUSAL = "SET SESSION wsrep_sync_wait = 7"

_log = logging.getLogger(__name__)

if TYPE_CHECKING:
    _Connection = pymysql.connections.Connection[Any]
else:
    _Connection = pymysql.connections.Connection


@dataclass(frozen=True)
class Session:
    """How a connection is set up."""

    statement: str
    """One statement: a SET."""
    answer_within: float | None
    """Seconds that the server may be silent in the middle of an answer; None: for ever."""
    read_only: bool = False
    """Each statement is a transaction of its own that can only read, so it may be sent again at any time."""


class Nodes:
    """The servers of one database, of which one at a time is used. All methods may be called from any thread."""

    def __init__(self, urls: Sequence[URL], *, clock: Clock, connect_timeout: float) -> None:
        """``urls`` name the hosts; ``connect_timeout`` is the seconds for which one may be silent while connecting."""
        self.addresses = tuple((url.host or "localhost", url.port or MYSQL_PORT) for url in urls)
        self.clock = clock
        self.connect_timeout = connect_timeout
        self._lock = threading.Lock()
        self._current = self._told = 0
        self._failed_at: list[float | None] = [None] * len(self.addresses)
        self._generations = [0] * len(self.addresses)

    @property
    def others(self) -> int:
        """How many nodes there are besides the one that is used."""
        return len(self.addresses) - 1

    def mark(self) -> tuple[int, int]:
        """The node that is used, as :meth:`leave` wants it: its number, counted from 0, and its generation."""
        with self._lock:
            return self._current, self._generations[self._current]

    def connect(self, arguments: Mapping[str, Any], session: Session) -> NodeConnection:
        """A new connection to the first node that takes it, with PyMySQL's arguments other than host and port.

        Raises PyMySQL's error: the one that all nodes would give, else the one that tells most.
        """
        connection = NodeConnection(self, session, arguments)
        self.open(connection)
        return connection

    def open(self, connection: NodeConnection) -> None:
        """Connect it, after a loss anew; raises as :meth:`connect` does.

        Nodes that failed lately are tried as long as that takes no longer than ``connect_timeout`` in all: when a whole
        cluster is silent, nobody waits for each of its nodes again and again.
        """
        patience = Deadline(self.clock, PATIENCE)
        while (failure := self._try_all(connection)) is not None:
            if not self.others or _code(failure) != NOT_READY or patience.expired:
                raise failure
            self.clock.sleep(AGAIN_AFTER)

    def _try_all(self, connection: NodeConnection) -> pymysql.err.MySQLError | None:
        """Connect it to the first node that takes it; else the error that tells most: not ready, or the last one."""
        failure: pymysql.err.MySQLError | None = None
        deadline, lately = Deadline(self.clock, self.connect_timeout), self._failed_lately()
        for number in self.order():
            if failure is not None and number in lately and deadline.expired:
                break
            generation = self._generations[number]
            try:
                connection.connect_to(number, *self.addresses[number])
            except pymysql.err.MySQLError as error:
                if _code(error) in _REFUSED:
                    return error
                if failure is None or _code(failure) != NOT_READY:
                    failure = error
                self.leave(number, generation, error)
                continue
            with self._lock:
                connection.generation = self._generations[number]
                another = False
                if connection.generation == generation:  # it has not failed meanwhile
                    self._failed_at[number] = None
                    self._current = number
                    another, self._told = number != self._told, number
            if another:
                _log.warning("the database's node %s is used from now on", self._name(number))
            return None
        assert failure is not None
        return failure

    def order(self) -> list[int]:
        """The nodes' numbers in the order in which to try them: from the current one on, and last those that failed."""
        count, failed = len(self.addresses), self._failed_lately()
        around = [(self._current + step) % count for step in range(count)]
        return sorted(around, key=lambda number: failed.get(number, float("-inf")))

    def leave(self, number: int, generation: int, error: BaseException | None = None) -> None:
        """Use this node no more, as long as another one works: its connections are dropped when they are next taken.

        ``generation`` is what the connection had that failed; nothing happens when the node has been left since.
        """
        now = self.clock.monotonic()
        with self._lock:
            if not self.others or self._generations[number] != generation:
                return
            self._generations[number] += 1
            before, self._failed_at[number] = self._failed_at[number], now
            if number == self._current:
                self._current = (number + 1) % len(self.addresses)
        if before is None:  # said once, however often it is tried again
            why = "others get in the way again and again" if error is None else " ".join(str(error.args[-1]).split())
            _log.warning("the database's node %s is left: %s", self._name(number), why)

    def is_current(self, connection: NodeConnection) -> bool:
        """Whether a connection may be used: its node has not failed since it was made, and is the one that is used."""
        with self._lock:
            fresh, connection.fresh = connection.fresh, False
            if fresh:
                return True
            return (connection.number, connection.generation) == (self._current, self._generations[self._current])

    def noticed(self, connection: NodeConnection, error: pymysql.err.MySQLError) -> None:
        """A statement failed on a connection: draw the conclusions for its node."""
        code = _code(error)
        # A server that was killed lets its connections end; one that is frozen or cut off is silent.
        if code in _USELESS or (code in _BROKEN and isinstance(error.__context__, TimeoutError)):
            self.leave(connection.number, connection.generation, error)
        elif code in _BROKEN and self.others:
            with self._lock:
                if self._generations[connection.number] == connection.generation:
                    self._generations[connection.number] += 1

    def _failed_lately(self) -> dict[int, float]:
        """The numbers of nodes that failed within FAILED_FOR, and when."""
        now = self.clock.monotonic()
        moments = enumerate(self._failed_at)
        return {number: moment for number, moment in moments if moment is not None and now - moment < FAILED_FOR}

    def _name(self, number: int) -> str:
        return host_and_port(*self.addresses[number])


class NodeConnection(_Connection):
    """A connection to one of the nodes, which tells them how it fared."""

    def __init__(self, nodes: Nodes, session: Session, arguments: Mapping[str, Any]) -> None:
        """Connected to nothing yet: :meth:`Nodes.open` does that."""
        self.nodes = nodes
        self.session = session
        self.number = self.generation = 0
        self.fresh = True
        """Whether it has not been used yet."""
        self._ready = False
        options: dict[str, Any] = {
            **arguments,
            "connect_timeout": nodes.connect_timeout,
            "init_command": session.statement,
            "defer_connect": True,
        }
        super().__init__(**options)

    def connect_to(self, number: int, host: str, port: int) -> None:
        """Connect to this node and set the session up. Raises PyMySQL's errors, as when the node is not ready."""
        self.number, self.host, self.port = number, host, port
        self._ready = False
        self._wait_at_most(self.nodes.connect_timeout)
        self.connect()
        try:
            with self.cursor() as cursor:
                if self.session.read_only:
                    cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED, READ ONLY")
                cursor.execute("SHOW VARIABLES LIKE 'wsrep_on'")
                row = cursor.fetchone()
                if row is not None and row[1] == "ON":
                    cursor.execute(_CAUSAL)
                    # SET and SHOW work on any node, this only on one that takes part in the cluster.
                    cursor.execute("COMMIT")
        except BaseException:
            self.close()
            raise
        self._wait_at_most(self.session.answer_within)
        self._ready = True

    def query(self, sql: Any, unbuffered: bool = False) -> int:
        """As PyMySQL's. A read that others or a lost node spoilt is sent again, to another node where need be."""
        again, patience = 0, None
        while True:
            try:
                with self._noticed():
                    return int(super().query(sql, unbuffered))
            except pymysql.err.MySQLError as error:
                code = _code(error)
                again += 1
                lost = code in AWAY or code == LOCK_WAIT  # reads lock nothing: a node that makes them wait is not well
                if not (self._ready and self.session.read_only and (lost or code in CONFLICTS)):
                    raise
                if lost:
                    patience = patience or Deadline(self.nodes.clock, PATIENCE)
                    if not self.nodes.others or (again > self.nodes.others and patience.expired):
                        raise
                    self.close()
                    self.nodes.open(self)
                elif again > REPEATS:
                    raise
                else:
                    self.nodes.clock.sleep(min(0.1, 0.002 * 2**again))

    def commit(self) -> None:
        """As PyMySQL's."""
        with self._noticed():
            super().commit()

    def rollback(self) -> None:
        """As PyMySQL's."""
        with self._noticed():
            super().rollback()

    def close(self) -> None:
        """As PyMySQL's, but once more does no harm: the pool also closes what could not be connected anew."""
        if self.open:
            super().close()

    def try_out(self) -> None:
        """Raise PyMySQL's error unless the server answers within the time for connecting."""
        self._wait_at_most(self.nodes.connect_timeout)
        with self._noticed():
            self.ping(reconnect=False)
        self._wait_at_most(self.session.answer_within)

    @contextmanager
    def _noticed(self) -> Iterator[None]:
        try:
            yield
        except pymysql.err.MySQLError as error:
            if self._ready:
                self.nodes.noticed(self, error)
            raise

    def _wait_at_most(self, seconds: float | None) -> None:
        """For each answer from now on; PyMySQL has no other way to change it."""
        self._read_timeout = self._write_timeout = seconds


def _code(error: pymysql.err.MySQLError) -> object:
    return error.args[0] if error.args else None
