# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Calls go before background work, within bounds."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from mozpool.clock import Clock
from mozpool.lanes import Lanes
from mozpool.precedence import FRESH, PATIENCE, Precedence


@pytest.fixture
def precedence() -> Precedence:
    return Precedence(Clock())


@pytest.fixture
def lanes(precedence: Precedence) -> Iterator[Lanes]:
    made = Lanes("test", 4, Clock(), precedence=precedence, urgent=frozenset({"urgent"}))
    yield made
    assert made.stop(10)


def seconds_until_done(lanes: Lanes, lane: str | None = None) -> float:
    done = threading.Event()
    begun = time.monotonic()
    lanes.submit(lane, done.set)
    assert done.wait(10)
    return time.monotonic() - begun


def test_background_work_begins_at_once_when_nobody_calls(lanes: Lanes) -> None:
    assert seconds_until_done(lanes) < PATIENCE / 2


def test_background_work_waits_for_a_call_and_no_longer_than_its_patience(lanes: Lanes, precedence: Precedence) -> None:
    with precedence.call():
        assert seconds_until_done(lanes) >= PATIENCE * 0.9


def test_urgent_work_waits_for_no_call(lanes: Lanes, precedence: Precedence) -> None:
    with precedence.call():
        assert seconds_until_done(lanes, "urgent") < PATIENCE / 2


def test_urgent_work_goes_before_work_that_is_held_back(lanes: Lanes, precedence: Precedence) -> None:
    done = threading.Event()
    with precedence.call():
        lanes.submit(None, done.set)
        assert seconds_until_done(lanes, "urgent") < PATIENCE / 2
        assert not done.is_set()
    assert done.wait(10)


def test_background_work_begins_as_soon_as_the_last_call_ends(lanes: Lanes, precedence: Precedence) -> None:
    done = threading.Event()
    with precedence.call():
        lanes.submit(None, done.set)
        assert not done.is_set()
    begun = time.monotonic()
    assert done.wait(10)
    assert time.monotonic() - begun < PATIENCE / 2


def test_a_call_that_steps_aside_holds_nobody_up(lanes: Lanes, precedence: Precedence) -> None:
    with precedence.call():
        precedence.step_aside()
        assert seconds_until_done(lanes) < PATIENCE / 2


def test_a_slow_call_holds_nobody_up(lanes: Lanes, precedence: Precedence) -> None:
    with precedence.call():
        time.sleep(FRESH * 1.1)
        assert seconds_until_done(lanes) < PATIENCE / 2
