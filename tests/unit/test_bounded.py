# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Looks that are kept, shared, and waited for no longer than a limit."""

from __future__ import annotations

import threading
import time

import pytest
from sqlalchemy.exc import ProgrammingError

from mozpool.clock import Clock
from mozpool.errors import DatabaseAway
from mozpool.web.bounded import Bounded


class Look:
    """What is looked up: a number that goes up, when it is let."""

    def __init__(self) -> None:
        self.number = 0
        self.may_end = threading.Event()
        self.may_end.set()
        self.error: Exception | None = None

    def __call__(self) -> int:
        self.may_end.wait(20)
        self.number += 1
        if self.error is not None:
            raise self.error
        return self.number


def bounded(look: Look, *, fresh: float = 1000.0, limit: float = 20.0) -> Bounded[int]:
    return Bounded(Clock(), look, "look", fresh=fresh, limit=limit)


def test_a_value_is_kept_as_long_as_it_is_fresh() -> None:
    look = Look()
    kept = bounded(look)
    assert [kept.get(), kept.get()] == [1, 1]
    anew = bounded(look, fresh=0.0)
    assert [anew.get(), anew.get()] == [2, 3]


def test_many_who_ask_at_a_time_share_one_look() -> None:
    look = Look()
    look.may_end.clear()
    shared = bounded(look)
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(shared.get())) for _ in range(20)]
    for thread in threads:
        thread.start()
    look.may_end.set()
    for thread in threads:
        thread.join(20)
    assert found == [1] * 20


def test_nobody_waits_beyond_the_limit_which_counts_from_the_begin_of_the_look() -> None:
    look = Look()
    look.may_end.clear()
    slow = bounded(look, limit=0.3)
    begun = time.monotonic()
    with pytest.raises(DatabaseAway, match="has not answered for 0 s"):
        slow.get()
    assert 0.25 < time.monotonic() - begun < 5
    begun = time.monotonic()
    for _ in range(20):
        with pytest.raises(DatabaseAway):
            slow.get()
    assert time.monotonic() - begun < 0.3, "the next ones do not wait at all"
    look.may_end.set()
    give_up = time.monotonic() + 20
    while look.number == 0 and time.monotonic() < give_up:
        time.sleep(0.01)
    assert slow.get() == 1, "it goes on with what comes late"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (DatabaseAway("the database is away: gone"), "the database is away: gone"),
        (ProgrammingError("SELECT", {}, Exception(1146, "no such table")), "the database refuses: no such table"),
        (ZeroDivisionError("secret"), "an internal error, which was logged"),
    ],
)
def test_a_failure_is_kept_too_and_told_to_everybody(
    error: Exception, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    look = Look()
    look.error = error
    failing = bounded(look)
    for _ in range(3):
        with pytest.raises(DatabaseAway) as told:
            failing.get()
        assert told.value.message == message
    assert look.number == 1
    assert ("look failed" in caplog.text) == isinstance(error, ZeroDivisionError)
