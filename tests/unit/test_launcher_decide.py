# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What the launcher starts: as much as is wanted, free and allowed, fairly, and never on a phone that is not free."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mozpool.launcher.decide import Demand, Start, decide, explain, room

UDIDS = [f"PHONE{number}" for number in range(12)]


SOME = st.integers(0, 2 ** len(UDIDS) - 1).map(
    lambda bits: frozenset(udid for number, udid in enumerate(UDIDS) if bits >> number & 1)
)
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def pools(draw: st.DrawFn) -> tuple[list[Demand], frozenset[str], int, random.Random]:
    """Projects as the projects file allows them: phones in common only within a priority group."""
    demands: list[Demand] = []
    for number in range(draw(st.integers(0, 5))):
        group = draw(st.sampled_from([None, "g", "h"]))
        phones = set(draw(SOME))
        for other in demands:
            if group is None or other.priority_group != group:
                phones -= set(other.phones)
        demands.append(
            Demand(
                project=f"p{number}",
                pending=draw(st.integers(0, 15)),
                on_the_way=draw(st.integers(0, 15)),
                phones=frozenset(phones),
                quarantined=draw(SOME) & draw(SOME) & phones,
                priority=draw(st.integers(-1, 2)),
                priority_group=group,
            )
        )
    return demands, draw(SOME), draw(st.integers(0, 15)), random.Random(draw(st.integers(0, 1000)))


@unhurried
@given(pools())
def test_no_start_is_more_than_is_wanted_free_and_allowed(pool):
    demands, free, places, rng = pool
    starts = decide(demands, free, places, rng)
    named = {demand.project: demand for demand in demands}
    assert len(starts) <= places
    assert len({start.udid for start in starts}) == len(starts)
    quarantined = {udid for demand in demands for udid in demand.quarantined}
    for start in starts:
        assert start.udid in free and start.udid in named[start.project].phones and start.udid not in quarantined
    for project, number in Counter(start.project for start in starts).items():
        assert number <= max(0, named[project].pending - named[project].on_the_way)


@unhurried
@given(pools())
def test_nothing_is_left_that_could_be_started(pool):
    demands, free, places, rng = pool
    starts = decide(demands, free, places, rng)
    if len(starts) == places:
        return
    left = free - {start.udid for start in starts} - {udid for demand in demands for udid in demand.quarantined}
    for demand in demands:
        if demand.wants > sum(start.project == demand.project for start in starts):
            assert not left.intersection(demand.phones)


@unhurried
@given(pools())
def test_within_a_priority_group_the_higher_priority_comes_first(pool):
    demands, free, places, rng = pool
    starts = decide(demands, free, places, rng)
    named = {demand.project: demand for demand in demands}
    for number, start in enumerate(starts):
        mine = named[start.project]
        for demand in demands:
            if mine.priority_group is not None and demand.priority_group == mine.priority_group:
                if demand.priority <= mine.priority:
                    continue
                had = [before.udid for before in starts[:number] if before.project == demand.project]
                taken = {before.udid for before in starts[:number]}
                barred = {udid for each in demands for udid in each.quarantined}
                # Who comes first has all it wants, or nothing that it could be given was left.
                assert len(had) >= demand.wants or not (free & set(demand.phones)) - taken - barred


@unhurried
@given(pools())
def test_projects_of_equal_rank_take_turns(pool):
    demands, free, places, rng = pool
    equal = [replace(demand, priority=1) for demand in demands]
    starts = decide(equal, free, places, rng)
    total = Counter(start.project for start in starts)
    for number in range(len(starts)):
        so_far = Counter(start.project for start in starts[: number + 1])
        for demand in equal:
            # As long as it still gets something later, it is at most one turn behind.
            if so_far[demand.project] < total[demand.project]:
                assert so_far[demand.project] >= max(so_far.values()) - 1


@unhurried
@given(pools())
def test_equal_numbers_give_equal_decisions(pool):
    demands, free, places, rng = pool
    state = rng.getstate()
    first = decide(demands, free, places, rng)
    rng.setstate(state)
    assert decide(demands, sorted(free), places, rng) == first


def test_sixty_tasks_and_sixty_phones_are_all_on_their_way_at_once():
    phones = [f"P{number}" for number in range(60)]
    starts = decide([Demand("a", 60, 0, phones)], phones, 100, random.Random(1))
    assert {start.udid for start in starts} == set(phones)
    assert [start.udid for start in starts] != phones


def test_a_phone_that_others_could_use_too_is_taken_last():
    high = Demand("high", 1, 0, ["BOTH", "MINE"], priority=2, priority_group="g")
    low = Demand("low", 1, 0, ["BOTH"], priority=1, priority_group="g")
    for seed in range(10):
        assert decide([low, high], ["BOTH", "MINE"], 9, random.Random(seed)) == [
            Start("high", "MINE"),
            Start("low", "BOTH"),
        ]


def test_room_counts_what_the_cloud_does_not_list_yet():
    assert room(initiated=30, unknown=4, limit=40) == 6
    assert room(initiated=41, unknown=0, limit=40) == 0


def test_it_is_explained_in_a_line():
    demand = Demand("a", 5, 2, ["ONE", "TWO", "THREE"], quarantined=["TWO"])
    starts = decide([demand], ["ONE", "TWO"], 9, random.Random(1))
    assert explain(demand, ["ONE", "TWO"], starts) == (
        "a: 5 pending, 2 on the way, 2 of 3 phones free (1 of them quarantined): 1 to start"
    )
