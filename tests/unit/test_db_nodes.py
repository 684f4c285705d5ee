# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Which node of a cluster is used, and when it is left; without any server."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pymysql
import pytest

from mozpool.clock import SimClock
from mozpool.config import database_urls
from mozpool.db.nodes import FAILED_FOR, PATIENCE, NodeConnection, Nodes, Session

REFUSED = pymysql.err.OperationalError(2003, "Can't connect to MySQL server")
NOT_READY = pymysql.err.OperationalError(1047, "WSREP has not yet prepared node for application use")
ENDED = pymysql.err.OperationalError(2013, "Lost connection to MySQL server during query")
SILENT = pymysql.err.OperationalError(2013, "Lost connection to MySQL server during query (timed out)")
SILENT.__context__ = TimeoutError("timed out")
KILLED = pymysql.err.OperationalError(1927, "Connection was killed")


class World:
    """Nodes of which some are down."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, hosts: str) -> None:
        self.clock = SimClock()
        self.nodes = Nodes(database_urls(f"mysql://u@{hosts}/d"), clock=self.clock, connect_timeout=5.0)
        self.down: dict[str, pymysql.err.MySQLError] = {}
        self.tried: list[str] = []
        self.ready_at: float | None = None
        """When nodes that are not ready will be."""

        def connect_to(connection: NodeConnection, number: int, host: str, port: int) -> None:
            self.tried.append(host)
            connection.number, connection.host, connection.port = number, host, port
            if self.ready_at is not None and self.clock.monotonic() >= self.ready_at:
                self.down = {name: error for name, error in self.down.items() if error is not NOT_READY}
            if host in self.down:
                if self.down[host] is SILENT:
                    self.clock.advance(self.nodes.connect_timeout)
                raise self.down[host]

        monkeypatch.setattr(NodeConnection, "connect_to", connect_to)

    def connect(self) -> NodeConnection:
        """A connection that has been taken once."""
        self.tried = []
        connection = self.nodes.connect({}, Session("SET time_zone = '+00:00'", 10.0))
        assert self.nodes.is_current(connection)
        return connection


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch, "a,b,c")


@pytest.fixture
def one(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch, "a")


def test_it_uses_the_first_that_works(three: World) -> None:
    assert three.connect().host == "a"
    three.down = {"a": REFUSED, "b": NOT_READY}
    assert three.connect().host == "c"
    assert three.tried == ["a", "b", "c"]


def test_it_stays_where_it_is_when_the_first_is_well_again(three: World) -> None:
    three.down = {"a": REFUSED}
    assert three.connect().host == "b"
    three.down = {}
    three.clock.advance(10 * FAILED_FOR)
    assert three.connect().host == "b"
    assert three.tried == ["b"]


def test_a_node_that_failed_just_now_is_tried_last(three: World) -> None:
    three.down = {"a": REFUSED}
    three.connect()
    three.down = {"b": REFUSED, "c": REFUSED}
    three.clock.advance(1)
    assert three.connect().host == "a"
    assert three.tried == ["b", "c", "a"]
    three.down = {"a": REFUSED}
    three.clock.advance(1)
    assert three.connect().host == "b"
    assert three.tried == ["a", "b"]


def test_the_last_error_is_raised_when_none_works(three: World) -> None:
    three.down = {"a": REFUSED, "b": SILENT, "c": REFUSED}
    with pytest.raises(pymysql.err.OperationalError, match="connect"):
        three.connect()
    assert three.tried == ["a", "b", "c"]


def test_nodes_that_are_not_ready_are_asked_again_for_some_seconds(three: World) -> None:
    three.down = {"a": REFUSED, "b": NOT_READY, "c": REFUSED}
    started = three.clock.monotonic()
    with pytest.raises(pymysql.err.OperationalError, match="WSREP"):
        three.connect()
    assert PATIENCE <= three.clock.monotonic() - started < PATIENCE + 1
    three.ready_at = three.clock.monotonic() + 1
    assert three.connect().host == "b"


def test_one_that_is_not_ready_and_has_no_others_is_not_asked_again(one: World) -> None:
    one.down = {"a": NOT_READY}
    with pytest.raises(pymysql.err.OperationalError, match="WSREP"):
        one.connect()
    assert one.tried == ["a"]


def test_known_silent_nodes_are_not_all_waited_for_again(three: World) -> None:
    three.down = {"a": SILENT, "b": SILENT, "c": SILENT}
    with pytest.raises(pymysql.err.OperationalError):
        three.connect()
    assert three.tried == ["a", "b", "c"]
    for silent in ("a", "b", "c", "a"):  # the one that failed longest ago
        with pytest.raises(pymysql.err.OperationalError):
            three.connect()
        assert three.tried == [silent]
    three.down = {"a": SILENT, "b": REFUSED}
    assert three.connect().host == "c"
    assert three.tried == ["b", "c"]


def test_what_all_nodes_would_refuse_is_asked_once(three: World) -> None:
    three.down = {"a": pymysql.err.OperationalError(1045, "Access denied")}
    with pytest.raises(pymysql.err.OperationalError, match="Access denied"):
        three.connect()
    assert three.tried == ["a"]


@pytest.mark.parametrize("error", [SILENT, NOT_READY, pymysql.err.OperationalError(1180, "Got error during COMMIT")])
def test_a_node_that_is_silent_or_of_no_use_is_left_with_all_its_connections(
    three: World, error: pymysql.err.MySQLError
) -> None:
    first, second = three.connect(), three.connect()
    three.nodes.noticed(first, error)
    assert not three.nodes.is_current(second)
    assert three.connect().host == "b"
    assert three.tried == ["b"]


def test_a_connection_that_ended_leads_back_to_a_node_that_is_well(three: World) -> None:
    first, second = three.connect(), three.connect()
    three.nodes.noticed(first, ENDED)
    assert not three.nodes.is_current(second)
    assert three.connect().host == "a"


def test_a_connection_that_was_killed_says_nothing_about_others(three: World) -> None:
    first, second = three.connect(), three.connect()
    three.nodes.noticed(first, KILLED)
    assert three.nodes.is_current(second)


def test_late_news_of_a_node_that_has_been_left_change_nothing(three: World) -> None:
    first, second = three.connect(), three.connect()
    three.nodes.noticed(first, SILENT)
    there = three.connect()
    three.nodes.noticed(second, SILENT)
    assert three.nodes.is_current(there)


def test_an_only_host_is_never_left(one: World) -> None:
    connection = one.connect()
    for error in (SILENT, NOT_READY, ENDED):
        one.nodes.noticed(connection, error)
        assert one.nodes.is_current(connection)
    one.down = {"a": REFUSED}
    with pytest.raises(pymysql.err.OperationalError, match="connect"):
        one.connect()


def test_it_tells_once_what_is_left_and_what_is_used(three: World, caplog: pytest.LogCaptureFixture) -> None:
    three.down = {"a": REFUSED, "b": REFUSED}
    told: Callable[[], list[str]] = lambda: [record.message for record in caplog.records]  # noqa: E731
    with caplog.at_level(logging.WARNING):
        three.connect()
        assert told() == [
            "the database's node a:3306 is left: Can't connect to MySQL server",
            "the database's node b:3306 is left: Can't connect to MySQL server",
            "the database's node c:3306 is used from now on",
        ]
        caplog.clear()
        three.down = {"a": REFUSED, "b": REFUSED, "c": REFUSED}
        for _ in range(5):
            three.clock.advance(60)
            with pytest.raises(pymysql.err.OperationalError):
                three.connect()
        assert told() == ["the database's node c:3306 is left: Can't connect to MySQL server"]
