# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Which calls are taken for repeats of others."""

from collections.abc import Callable

from mozpool.clock import SimClock
from mozpool.pool.repeats import KEPT, MOST, PATIENCE, Repeats


def here() -> bool:
    return False


def gone() -> bool:
    return True


def answered(repeats: Repeats, key: str, number: int, client: Callable[[], bool] = here) -> int | None:
    """A call that makes this request unless there is one to take over; returns what it took over."""
    call, earlier = repeats.begin(key, client)
    repeats.made(call, earlier or number)
    repeats.end(call)
    return earlier


def test_calls_that_were_answered_are_forgotten() -> None:
    repeats = Repeats(SimClock())
    assert answered(repeats, "a", 1) is None
    assert answered(repeats, "a", 2) is None


def test_a_lost_request_is_taken_over_once_and_only_by_an_equal_call() -> None:
    repeats = Repeats(SimClock())
    answered(repeats, "a", 1, gone)
    assert answered(repeats, "b", 2) is None
    assert answered(repeats, "a", 3) == 1
    assert answered(repeats, "a", 4) is None


def test_a_request_whose_repeat_is_lost_too_is_kept_on() -> None:
    repeats = Repeats(SimClock())
    answered(repeats, "a", 1, gone)
    assert answered(repeats, "a", 2, gone) == 1
    assert answered(repeats, "a", 3) == 1


def test_a_lost_request_is_kept_for_a_minute() -> None:
    clock = SimClock()
    repeats = Repeats(clock)
    answered(repeats, "a", 1, gone)
    clock.advance(KEPT + 0.1)
    assert answered(repeats, "a", 2) is None


def test_a_call_that_failed_leaves_nothing_to_take_over() -> None:
    repeats = Repeats(SimClock())
    call, _ = repeats.begin("a", gone)
    repeats.end(call)
    assert answered(repeats, "a", 2) is None


def test_a_repeat_waits_for_the_first_call_but_not_for_ever() -> None:
    clock = SimClock()
    repeats = Repeats(clock)
    repeats.begin("a", gone)
    before = clock.monotonic()
    assert answered(repeats, "a", 2) is None
    assert clock.monotonic() - before == PATIENCE


def test_a_call_whose_client_still_waits_is_not_taken_over() -> None:
    repeats = Repeats(SimClock())
    call, _ = repeats.begin("a", here)
    repeats.made(call, 1)
    assert answered(repeats, "a", 2) is None


def test_it_keeps_a_bounded_number() -> None:
    repeats = Repeats(SimClock())
    for number in range(1, MOST + 11):
        answered(repeats, f"call {number}", number, gone)
    assert answered(repeats, "call 10", -1) is None
    assert answered(repeats, f"call {MOST + 10}", -1) == MOST + 10
