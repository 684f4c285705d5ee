# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Events that come twice."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import pytest

from mozpool.clock import Clock, SimClock
from mozpool.errors import BadInput, DatabaseAway
from mozpool.seen import KEPT, LONGEST, MOST, Seen, StillBusy, event_id, take_id


@pytest.fixture
def number() -> Callable[[], int]:
    """Work that gives another number each time it is done."""
    numbers: Iterator[int] = count(1)
    return lambda: next(numbers)


def test_the_second_one_is_answered_as_the_first(number: Callable[[], int]) -> None:
    seen = Seen(SimClock())
    assert [seen.once("device 1", "a", number) for _ in range(3)] == [1, 1, 1]
    assert seen.once("device 1", "b", number) == 2
    assert seen.once("device 2", "a", number) == 3


def test_events_without_an_id_are_all_dealt_with(number: Callable[[], int]) -> None:
    seen = Seen(SimClock())
    assert [seen.once("device 1", None, number) for _ in range(2)] == [1, 2]


def test_what_failed_is_tried_anew(number: Callable[[], int]) -> None:
    seen = Seen(SimClock())

    def fails() -> int:
        raise DatabaseAway("the database is away")

    for _ in range(2):
        with pytest.raises(DatabaseAway):
            seen.once("device 1", "a", fails)
    assert [seen.once("device 1", "a", number) for _ in range(2)] == [1, 1]


def test_answers_are_kept_for_some_minutes(number: Callable[[], int]) -> None:
    clock = SimClock()
    seen = Seen(clock)
    seen.once("device 1", "a", number)
    clock.advance(KEPT - 1)
    assert seen.once("device 1", "a", number) == 1
    clock.advance(1)
    assert seen.once("device 1", "a", number) == 2


def test_it_keeps_so_many_answers_and_no_more(number: Callable[[], int]) -> None:
    seen = Seen(SimClock())
    for event in range(MOST + 1):
        seen.once("device 1", str(event), number)
    assert len(seen._answers) == MOST
    assert seen.once("device 1", str(MOST), number) == MOST + 1
    assert seen.once("device 1", "0", number) == MOST + 2


class Meeting:
    """Two equal events, of which the second comes while the first is being worked on."""

    def __init__(self, first: Callable[[], Any], second: Callable[[], Any]) -> None:
        self.seen = Seen(Clock())
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.answers: dict[str, Any] = {}
        self._work = {"first": lambda: self._wait(first), "second": second}
        self.threads = {name: threading.Thread(target=self._call, args=(name,)) for name in self._work}
        self.threads["first"].start()
        assert self.begun.wait(10)
        self.threads["second"].start()

    def _wait(self, work: Callable[[], Any]) -> Any:
        self.begun.set()
        assert self.go_on.wait(10)
        return work()

    def _call(self, name: str) -> None:
        try:
            self.answers[name] = self.seen.once("device 1", "a", self._work[name])
        except Exception as error:
            self.answers[name] = error

    def end(self) -> dict[str, Any]:
        self.go_on.set()
        for thread in self.threads.values():
            thread.join(10)
        return self.answers


def fail() -> None:
    raise DatabaseAway("the database is away")


def test_one_that_comes_meanwhile_waits_for_the_answer_of_the_first() -> None:
    assert Meeting(lambda: 1, lambda: 2).end() == {"first": 1, "second": 1}


def test_one_that_waited_for_a_first_that_failed_is_dealt_with() -> None:
    answers = Meeting(fail, lambda: 2).end()
    assert isinstance(answers["first"], DatabaseAway)
    assert answers["second"] == 2


def test_it_waits_for_some_seconds_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mozpool.seen.PATIENCE", 0.05)
    meeting = Meeting(lambda: 1, lambda: 2)
    meeting.threads["second"].join(10)
    error = meeting.answers["second"]
    assert isinstance(error, StillBusy) and error.status == 503
    assert meeting.end()["first"] == 1


def test_an_id_is_made_of_what_tells_the_event_from_others() -> None:
    assert event_id("please", 7, "please_image") == event_id("please", 7, "please_image")
    ids = {event_id("please", 7, "please_image"), event_id("please", 8, "please_image"), event_id("released", 7)}
    assert len(ids) == 3
    assert all(len(each) == 32 for each in ids)


def test_the_id_is_taken_out_of_the_body() -> None:
    body = {"event_id": "x" * LONGEST, "claim_id": 7}
    assert take_id(body) == "x" * LONGEST
    assert body == {"claim_id": 7}
    assert take_id(body) is None


@pytest.mark.parametrize("bad", ["", "x" * (LONGEST + 1), 7, True, ["a"], {}])
def test_an_id_that_is_none_is_refused(bad: object) -> None:
    with pytest.raises(BadInput, match=r"^event_id: .* is not a text of 1 to 64 characters$") as error:
        take_id({"event_id": bad})
    assert error.value.field == "event_id"
