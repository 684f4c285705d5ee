# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Limits of how often one caller may call."""

from __future__ import annotations

import threading

import pytest

from mozpool.access.addresses import caller
from mozpool.clock import SimClock
from mozpool.web import rates
from mozpool.web.rates import Rates


def taken(limit: Rates, key: str, times: int) -> int:
    return sum(limit.take(key) is None for _ in range(times))


def test_a_fifth_may_come_at_once_and_the_rest_evenly() -> None:
    clock = SimClock()
    limit = Rates(clock, 60)
    assert taken(limit, "a", 100) == 12
    assert limit.take("a") == pytest.approx(1.0)
    clock.advance(0.5)
    assert limit.take("a") == pytest.approx(0.5)
    clock.advance(0.5)
    assert taken(limit, "a", 100) == 1
    clock.advance(5)
    assert taken(limit, "a", 100) == 5
    clock.advance(3600)
    assert taken(limit, "a", 100) == 12


def test_in_the_long_run_it_is_the_rate_that_was_asked_for() -> None:
    clock = SimClock()
    limit = Rates(clock, 90)
    begun, went = clock.monotonic(), 0
    while clock.monotonic() < begun + 600:
        went += taken(limit, "a", 3)
        clock.advance(0.1)
    assert 900 <= went <= 900 + 18


def test_who_waits_as_long_as_it_was_told_may_go_on() -> None:
    clock = SimClock()
    limit = Rates(clock, 7)
    for _ in range(50):
        wait = limit.take("a")
        if wait is not None:
            clock.advance(wait)
            assert limit.take("a") is None


def test_callers_do_not_use_up_what_others_have() -> None:
    limit = Rates(SimClock(), 10)
    assert taken(limit, "a", 5) == 2
    assert taken(limit, "b", 5) == 2


def test_without_a_limit_nobody_is_held_up_and_nothing_is_kept() -> None:
    limit = Rates(SimClock(), 0)
    assert taken(limit, "a", 10_000) == 10_000
    assert not limit._earned


def test_many_threads_get_no_more_than_one() -> None:
    limit = Rates(SimClock(), 500)
    went: list[int] = []
    begin = threading.Barrier(8)

    def take() -> None:
        begin.wait()
        went.append(taken(limit, "a", 1000))

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(went) == 100


def test_many_callers_do_not_take_all_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "MOST_KEYS", 100)
    clock = SimClock()
    limit = Rates(clock, 60)
    taken(limit, "busy", 12)
    for number in range(99):
        limit.take(f"once {number}")
    clock.advance(2)
    limit.take("another")
    assert set(limit._earned) == {"busy", "another"}
    for number in range(1000):
        limit.take(f"at once {number}")
    assert len(limit._earned) <= 100


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::99", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("unix", "unix"),
    ],
)
def test_who_is_one_caller(address: str, key: str) -> None:
    assert caller(address) == key
