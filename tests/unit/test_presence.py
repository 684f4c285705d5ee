# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Signs of life: who gives none for some time is away, whatever the clocks say."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Connection

from mozpool import __version__
from mozpool.clock import SimClock
from mozpool.db import images, servers
from mozpool.db.engine import Database
from mozpool.errors import DatabaseAway
from mozpool.presence import Presence
from tests.unit.pool_support import NOW


class Unreliable(Database):
    """A database that can be taken away."""

    away = False

    @contextmanager
    def read(self) -> Iterator[Connection]:
        if self.away:
            raise DatabaseAway("it is away")
        with super().read() as conn:
            yield conn

    def run(self, work: Any, **more: Any) -> Any:
        if self.away:
            raise DatabaseAway("it is away")
        return super().run(work, **more)


class Servers:
    """Two servers, each with a clock of its own, on one database."""

    def __init__(self, url: str) -> None:
        self.clocks = [SimClock(NOW), SimClock(NOW + timedelta(hours=7))]
        self.databases = [Unreliable(url, clock=clock, rng=random.Random(1)) for clock in self.clocks]
        self.ids = [self._add(name) for name in ("server-1", "server-2")]
        self.changes = 0
        self.one, self.two = self.start(0), self.start(1)

    def start(self, number: int) -> Presence:
        made = Presence(
            self.databases[number],
            self.clocks[number],
            self.ids[number],
            interval=5.0,
            away_after=30.0,
            load=lambda: (32, 3),
        )
        if number == 0:
            made.on_change.append(self._changed)
        return made

    def _add(self, name: str) -> int:
        return self.databases[0].run(lambda conn: images.ensure_imaging_server(conn, name))

    def _changed(self) -> None:
        self.changes += 1

    def pass_time(self, seconds: float, *beating: Presence) -> None:
        """Let time pass, in which these servers give their signs of life."""
        for _ in range(int(seconds / 5)):
            for clock in self.clocks:
                clock.advance(5.0)
            for presence in beating:
                presence.beat()

    def close(self) -> None:
        for database in self.databases:
            database.dispose()


@pytest.fixture
def pair(database_url: str) -> Iterator[Servers]:
    pair = Servers(database_url)
    yield pair
    pair.close()


def test_who_gives_signs_of_life_is_up_though_the_clocks_differ(pair: Servers) -> None:
    pair.pass_time(120, pair.one, pair.two)
    assert pair.one.away() == pair.two.away() == frozenset()
    with pair.databases[0].read() as conn:
        one, two = servers.find(conn)
    assert one.presence is not None and two.presence is not None
    assert (one.fqdn, one.presence.version, one.presence.started) == ("server-1", __version__, NOW)
    assert one.presence.seen == NOW + timedelta(seconds=120)
    assert (two.presence.workers, two.presence.busy) == (32, 3)


def test_who_gives_none_is_away_after_some_time_and_back_with_the_next(pair: Servers) -> None:
    pair.pass_time(10, pair.one, pair.two)
    pair.pass_time(25, pair.one)
    assert pair.one.away() == frozenset()
    pair.pass_time(10, pair.one)
    assert pair.one.away() == {pair.ids[1]}
    assert pair.one.state_of(pair.ids[1]) == "away"
    assert pair.changes == 1
    pair.pass_time(60, pair.one)
    assert pair.changes == 1
    pair.pass_time(5, pair.two, pair.one)
    assert pair.one.state_of(pair.ids[1]) == "up"
    assert pair.changes == 2


def test_a_server_that_never_ran_is_away_but_only_once_it_was_watched(pair: Servers) -> None:
    pair.one.beat()
    assert pair.one.away() == frozenset()
    pair.pass_time(35, pair.one)
    assert pair.one.away() == {pair.ids[1]}


def test_nobody_is_away_because_the_database_was(pair: Servers) -> None:
    pair.pass_time(10, pair.one, pair.two)
    for database in pair.databases:
        database.away = True
    pair.pass_time(600, pair.one, pair.two)
    for database in pair.databases:
        database.away = False
    pair.pass_time(5, pair.one)
    assert pair.one.away() == frozenset()
    pair.pass_time(5, pair.two, pair.one)
    pair.pass_time(20, pair.one)
    assert pair.one.away() == frozenset()


def test_who_stops_in_good_order_is_away_at_once_until_it_starts_again(pair: Servers) -> None:
    pair.pass_time(10, pair.one, pair.two)
    pair.two.leave()
    pair.pass_time(5, pair.one)
    assert pair.one.state_of(pair.ids[1]) == "stopped"
    pair.pass_time(5, pair.two, pair.one)
    assert pair.one.state_of(pair.ids[1]) == "stopped", "a beat that comes late changes nothing"
    again = pair.start(1)
    again.beat()
    pair.pass_time(5, pair.one)
    assert pair.one.away() == frozenset()
    with pair.databases[0].read() as conn:
        assert servers.last_beat(conn, pair.ids[1]) > 3


def test_who_was_never_there_has_nothing_to_say_when_it_stops(pair: Servers) -> None:
    pair.one.leave()
    with pair.databases[0].read() as conn:
        assert [server.presence for server in servers.find(conn)] == [None, None]
