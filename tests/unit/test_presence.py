# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Signs of life: who gives none for some time is away, whatever the clocks say."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import timedelta

import pytest

from mozpool import __version__
from mozpool.clock import SimClock
from mozpool.db import images, servers
from mozpool.lease import Lease
from mozpool.presence import Presence
from tests.unit.pool_support import NOW, Unreliable


class Servers:
    """Two servers, each with a clock of its own, on one database."""

    def __init__(self, url: str, *groups: str | None) -> None:
        """``groups`` are theirs, if any."""
        self.groups = groups or (None, None)
        self.clocks = [SimClock(NOW), SimClock(NOW + timedelta(hours=7))]
        self.databases = [Unreliable(url, clock=clock, rng=random.Random(1)) for clock in self.clocks]
        self.ids = [self._add(name) for name in ("server-1", "server-2")]
        self.changes = 0
        self.one, self.two = self.start(0), self.start(1)

    def start(self, number: int) -> Presence:
        group = self.groups[number]
        takeover_after = None if group is None else 60.0
        made = Presence(
            self.databases[number],
            self.clocks[number],
            self.ids[number],
            interval=5.0,
            away_after=30.0,
            load=lambda: (32, 3),
            lease=Lease(self.clocks[number], takeover_after),
            group=group,
            takeover_after=takeover_after,
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


@pytest.fixture
def group(database_url: str) -> Iterator[Servers]:
    """Two servers that take over from one another after a minute."""
    group = Servers(database_url, "lab", "lab")
    yield group
    group.close()


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


# Groups


def test_others_are_told_the_group_and_the_time_that_it_waits(group: Servers) -> None:
    group.pass_time(5, group.one, group.two)
    with group.databases[0].read() as conn:
        said = [server.presence for server in servers.find(conn)]
        signs = servers.signs(conn)
    assert [(one.group, one.takeover_after) for one in said if one is not None] == [("lab", 60.0)] * 2
    assert (signs[group.ids[1]].group, signs[group.ids[1]].takeover_after) == ("lab", 60.0)


def test_who_is_silent_for_as_long_as_it_said_is_lost(group: Servers) -> None:
    group.pass_time(10, group.two, group.one)
    with group.databases[0].read() as conn:
        beat = servers.last_beat(conn, group.ids[1])
    group.pass_time(55, group.one)
    assert group.one.away() == {group.ids[1]}
    assert group.one.lost() == {}
    group.pass_time(5, group.one)
    assert group.one.lost() == {group.ids[1]: beat}
    group.pass_time(5, group.two, group.one)
    assert group.one.lost() == {}


def test_nobody_is_lost_because_the_database_was_away(group: Servers) -> None:
    group.pass_time(10, group.two, group.one)
    for database in group.databases:
        database.away = True
    group.pass_time(600, group.two, group.one)
    for database in group.databases:
        database.away = False
    group.pass_time(5, group.one)
    assert group.one.lost() == {}


def test_who_stopped_in_good_order_is_lost_after_the_same_time(group: Servers) -> None:
    group.pass_time(10, group.two, group.one)
    group.two.leave()
    group.pass_time(60, group.one)
    assert group.one.lost() == {}
    group.pass_time(5, group.one)
    assert list(group.one.lost()) == [group.ids[1]]


@pytest.mark.parametrize("groups", [("lab", "attic"), ("lab", None), (None, "lab"), (None, None)])
def test_servers_of_other_groups_are_never_lost_but_away(
    database_url: str, groups: tuple[str | None, str | None]
) -> None:
    pair = Servers(database_url, *groups)
    pair.pass_time(10, pair.two, pair.one)
    assert not pair.one.in_group(pair.ids[1])
    assert pair.one.members() == [pair.ids[0]]
    pair.pass_time(200, pair.one)
    assert pair.one.away() == {pair.ids[1]}
    assert pair.one.lost() == {}
    pair.close()


def test_members_of_a_group_are_those_that_are_up(group: Servers) -> None:
    assert group.two.members() == [group.ids[1]]
    group.pass_time(5, group.two, group.one)
    group.pass_time(5, group.two, group.one)
    assert group.one.in_group(group.ids[1])
    assert group.one.members() == group.two.members() == sorted(group.ids)
    group.pass_time(30, group.one)
    assert group.one.members() == [group.ids[0]]
    assert group.one.in_group(group.ids[1])
    assert not group.one.in_group(99)
    group.pass_time(5, group.two, group.one)
    assert group.one.members() == sorted(group.ids)


def test_who_changes_its_group_is_of_the_new_one_with_its_next_sign_of_life(group: Servers) -> None:
    group.pass_time(10, group.two, group.one)
    group.groups = ("lab", "attic")
    again = group.start(1)
    group.pass_time(5, again, group.one)
    assert not group.one.in_group(group.ids[1])
    group.pass_time(200, group.one)
    assert group.one.lost() == {}


def test_steady_is_who_was_seen_to_give_signs_for_long_without_a_gap(group: Servers) -> None:
    group.pass_time(5, group.two, group.one)
    assert not group.one.is_steady(group.ids[1]), "it may have died before the watch began"
    group.pass_time(60, group.two, group.one)
    assert not group.one.is_steady(group.ids[1])
    group.pass_time(5, group.two, group.one)
    assert group.one.is_steady(group.ids[1])
    assert not group.one.is_steady(group.ids[0])
    assert not group.one.is_steady(99)
    group.pass_time(25, group.one)
    assert group.one.is_steady(group.ids[1])
    group.pass_time(5, group.one)
    assert not group.one.is_steady(group.ids[1])
    group.pass_time(60, group.two, group.one)
    assert not group.one.is_steady(group.ids[1]), "it has just come back"
    group.pass_time(5, group.two, group.one)
    assert group.one.is_steady(group.ids[1])
    group.two.leave()
    group.pass_time(5, group.one)
    assert not group.one.is_steady(group.ids[1])


def test_the_silence_after_its_last_sign_makes_nobody_steady(group: Servers) -> None:
    """It may have died with that, and all would be given back to it just before it is away."""
    group.pass_time(10, group.two, group.one)
    group.pass_time(40, group.two, group.one)
    for _ in range(5):
        group.pass_time(5, group.one)
        assert group.one.state_of(group.ids[1]) == "up"
        assert not group.one.is_steady(group.ids[1])
    group.pass_time(5, group.two, group.one)
    assert group.one.is_steady(group.ids[1]), "a sign that came late ends a silence, and not the time before it"


def test_a_server_that_starts_while_the_other_is_away_takes_it_for_away(group: Servers) -> None:
    group.clocks[1].jump(-7 * 3600.0)  # clocks that agree
    group.pass_time(10, group.two, group.one)
    group.pass_time(120, group.one)
    again = group.start(0)
    group.pass_time(5, again)
    assert again.away() == {group.ids[1]}
    assert not again.is_steady(group.ids[1])
    group.pass_time(5, group.two, again)
    assert again.away() == frozenset()
    assert not again.is_steady(group.ids[1])


def test_another_process_of_the_same_server_is_noticed(group: Servers) -> None:
    """Which one is the older, its next sign of life tells it."""
    usurped: list[str] = []
    group.one.on_usurped.append(lambda: usurped.append("one"))
    group.pass_time(10, group.one)
    again = group.start(0)
    again.on_usurped.append(lambda: usurped.append("again"))
    group.pass_time(5, again)
    assert usurped == []
    group.pass_time(10, group.one, again)
    assert usurped == ["one"]
    assert group.one._lease.left() == 0
    group.pass_time(10, group.one, again)
    assert usurped == ["one"]
    assert again._lease.left() > 0


# The lease


def test_each_sign_of_life_renews_the_lease_from_when_it_was_begun(group: Servers) -> None:
    lease = group.one._lease
    assert lease.left() == 0.0
    group.one.beat()
    assert lease.left() == 30.0
    group.pass_time(20)
    group.one.beat()
    assert lease.left() == 30.0


def test_others_look_away_before_the_lease_begins_anew(group: Servers) -> None:
    """What this server remembers of its rows must be gone before it may act again."""
    left: list[float] = []
    group.one.on_lapse.append(lambda: left.append(group.one._lease.left()))
    group.one.beat()
    assert left == [0.0], "as at the start"
    group.pass_time(60, group.one)
    assert left == [0.0]
    group.pass_time(25)
    group.one.beat()
    assert left == [0.0], "it has not ended"
    group.pass_time(30)
    group.one.beat()
    assert left == [0.0, 0.0]
    assert group.one._lease.left() == 30.0


def test_what_was_looked_at_before_the_lease_had_ended_counts_no_more(group: Servers) -> None:
    lease = group.one._lease
    group.one.beat()
    lease.look()
    group.pass_time(30)
    group.one.beat()
    assert not lease.holds
    lease.look()
    assert lease.holds


def test_a_sign_of_life_that_nobody_could_note_renews_nothing(group: Servers) -> None:
    lapses: list[None] = []
    group.one.on_lapse.append(lambda: lapses.append(None))
    group.one.beat()
    group.databases[0].away = True
    group.pass_time(30)
    assert not group.one.beat()
    assert not group.one._lease.holds
    assert len(lapses) == 1
    group.databases[0].away = False
    assert group.one.beat()
    assert len(lapses) == 2


def test_who_stops_may_end_what_it_does_and_gets_no_longer_lease(group: Servers) -> None:
    group.one.beat()
    left = group.one._lease.left()
    group.one.leave()
    assert group.one._lease.left() == left
    group.pass_time(5, group.one)
    assert group.one._lease.left() == left - 5, "a beat that comes late renews nothing"


def test_without_a_group_nothing_lapses(pair: Servers) -> None:
    pair.one.on_lapse.append(lambda: pytest.fail("nobody would take anything"))
    pair.one.beat()
    pair.pass_time(600)
    pair.one.beat()
