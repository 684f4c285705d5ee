# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Calls go before background work, within bounds."""

from __future__ import annotations

import threading
import time

from mozpool.clock import Clock
from mozpool.precedence import FRESH, PATIENCE, Precedence


def seconds_held_back(precedence: Precedence) -> float:
    begun = time.monotonic()
    precedence.give_way()
    return time.monotonic() - begun


def test_background_work_begins_at_once_when_nobody_calls() -> None:
    assert seconds_held_back(Precedence(Clock())) < PATIENCE / 2


def test_background_work_waits_for_a_call_and_no_longer_than_its_patience() -> None:
    precedence = Precedence(Clock())
    with precedence.call():
        assert PATIENCE * 0.9 <= seconds_held_back(precedence)


def test_background_work_begins_as_soon_as_the_last_call_ends() -> None:
    precedence = Precedence(Clock())
    began, ended = threading.Event(), threading.Event()

    def work() -> None:
        began.set()
        precedence.give_way()
        ended.set()

    with precedence.call():
        thread = threading.Thread(target=work)
        thread.start()
        assert began.wait(5)
    assert ended.wait(5)
    thread.join(5)


def test_a_call_that_steps_aside_holds_nobody_up() -> None:
    precedence = Precedence(Clock())
    with precedence.call():
        precedence.step_aside()
        assert seconds_held_back(precedence) < PATIENCE / 2


def test_a_slow_call_holds_nobody_up() -> None:
    precedence = Precedence(Clock())
    with precedence.call():
        time.sleep(FRESH * 1.1)
        assert seconds_held_back(precedence) < PATIENCE / 2
