# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The lease: for how long a server may act without a further sign of life."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import pytest

from mozpool.clock import SimClock
from mozpool.errors import LeaseOver, OwnFault
from mozpool.lease import Lease

TAKEOVER_AFTER = 60.0
WHOLE = 30.0
"""What a lease lasts, then."""


@pytest.fixture
def clock() -> SimClock:
    made = SimClock()
    made.advance(1000.0)
    return made


@pytest.fixture
def lease(clock: SimClock) -> Lease:
    """One that was renewed just now."""
    made = Lease(clock, TAKEOVER_AFTER)
    made.renew(clock.monotonic())
    return made


def test_without_a_group_it_never_ends(clock: SimClock) -> None:
    lease = Lease(clock, None)
    assert lease.seconds == lease.left() == math.inf
    clock.advance(1e9)
    lease.renew(0.0)
    lease.end()
    assert lease.holds
    deadline = lease.acting("panda-0001", "power off", 20.0)
    assert deadline.remaining() == 20.0
    clock.advance(20.0)
    assert deadline.expired


def test_it_lasts_half_as_long_as_others_wait(clock: SimClock, lease: Lease) -> None:
    assert lease.seconds == lease.left() == WHOLE
    clock.advance(29.0)
    assert lease.left() == 1.0
    assert lease.holds
    clock.advance(1.0)
    assert not lease.holds
    clock.advance(100.0)
    assert lease.left() == 0.0


def test_before_the_first_sign_of_life_there_is_none(clock: SimClock) -> None:
    lease = Lease(clock, TAKEOVER_AFTER)
    assert lease.left() == 0.0
    assert not lease.holds
    with pytest.raises(LeaseOver):
        lease.acting("panda-0001", "power off", 1.0)


def test_it_counts_from_before_the_sign_of_life(clock: SimClock, lease: Lease) -> None:
    """However long the database takes to say that it has noted the sign."""
    begun = clock.monotonic()
    clock.advance(12.0)
    lease.renew(begun)
    assert lease.left() == WHOLE - 12.0


def test_an_older_sign_of_life_does_not_shorten_it(clock: SimClock, lease: Lease) -> None:
    lease.renew(clock.monotonic() - 10.0)
    assert lease.left() == WHOLE


def test_a_sign_of_life_that_took_longer_than_it_lasts_is_worth_nothing(clock: SimClock) -> None:
    lease = Lease(clock, TAKEOVER_AFTER)
    lease.renew(clock.monotonic() - WHOLE)
    assert not lease.holds


@pytest.mark.parametrize(
    ("left", "seconds", "begins"),
    [
        (30.0, 20.0, True),
        (20.0, 10.0, True),
        (10.0, 10.0, True),
        (9.9, 10.0, False),
        (15.0, 20.0, True),  # long ones need no more than half of a lease
        (15.0, 600.0, True),
        (14.9, 20.0, False),
        (0.1, 0.0, True),  # only looks whether the lease holds
        (0.0, 0.0, False),
    ],
)
def test_an_operation_begins_with_time_left_for_it(
    clock: SimClock, lease: Lease, left: float, seconds: float, begins: bool
) -> None:
    clock.advance(WHOLE - left)
    if begins:
        assert lease.acting("panda-0001", "power cycle", seconds).remaining() == pytest.approx(min(seconds, left))
        return
    with pytest.raises(LeaseOver, match="power cycle of panda-0001 failed: this imaging server has lost touch"):
        lease.acting("panda-0001", "power cycle", seconds)


def test_it_is_the_servers_own_fault_and_not_the_devices() -> None:
    assert issubclass(LeaseOver, OwnFault)
    assert (LeaseOver("panda-0001", "ping").status, LeaseOver("panda-0001", "ping").code) == (503, "lease_over")


def test_an_operation_is_cut_off_when_the_lease_ends(clock: SimClock, lease: Lease) -> None:
    deadline = lease.acting("panda-0001", "power cycle", 100.0)
    assert deadline.remaining() == WHOLE
    assert deadline.remaining(7.0) == 7.0
    clock.advance(25.0)
    assert deadline.remaining(7.0) == 5.0
    assert not deadline.expired
    clock.advance(5.0)
    assert deadline.expired
    assert deadline.remaining() == 0.0


def test_it_goes_on_when_the_lease_is_renewed_meanwhile(clock: SimClock, lease: Lease) -> None:
    deadline = lease.acting("panda-0001", "power cycle", 40.0)
    clock.advance(25.0)
    assert deadline.remaining() == 5.0
    lease.renew(clock.monotonic())
    assert deadline.remaining() == 15.0
    clock.advance(15.0)
    assert deadline.expired
    assert lease.holds


def test_a_step_of_it_ends_with_the_lease_too(clock: SimClock, lease: Lease) -> None:
    deadline = lease.acting("panda-0001", "power cycle", 40.0)
    step = deadline.within(5.0)
    assert step.remaining() == 5.0
    clock.advance(5.0)
    assert step.expired
    assert not deadline.expired
    last = deadline.within(1000.0)
    assert last.remaining() == WHOLE - 5.0
    lease.end()
    assert last.expired
    assert deadline.expired
    assert deadline.within(5.0).expired


def test_a_long_step_goes_on_when_the_lease_is_renewed_meanwhile(clock: SimClock, lease: Lease) -> None:
    step = lease.acting("panda-0001", "command", 100.0).within(90.0)
    assert step.remaining() == WHOLE
    for _ in range(8):
        clock.advance(10.0)
        assert not step.expired
        lease.renew(clock.monotonic())
    assert step.remaining() == 10.0
    clock.advance(10.0)
    assert step.expired
    assert lease.holds


def test_a_step_of_a_step_is_never_later_than_the_whole(clock: SimClock, lease: Lease) -> None:
    deadline = lease.acting("panda-0001", "power cycle", 12.0)
    assert deadline.within(20.0).within(20.0).remaining() == 12.0


def test_what_was_looked_at_before_a_new_term_counts_no_more(clock: SimClock, lease: Lease) -> None:
    """Others may have taken the row: it takes another look to act on it, however fresh the lease is."""
    lease.look()
    deadline = lease.acting("panda-0001", "power cycle", 20.0)
    clock.advance(WHOLE)
    lease.new_term()
    lease.renew(clock.monotonic())
    assert lease.left() == WHOLE
    assert not lease.holds
    assert deadline.expired
    with pytest.raises(LeaseOver):
        lease.acting("panda-0001", "power cycle", 20.0)
    lease.look()
    assert lease.holds
    assert lease.acting("panda-0001", "power cycle", 20.0).remaining() == 20.0


def test_each_thread_has_its_own_look(clock: SimClock, lease: Lease) -> None:
    with ThreadPoolExecutor(1) as other:
        lease.look()
        other.submit(lease.look).result(10)
        lease.new_term()
        other.submit(lease.look).result(10)
        assert not lease.holds
        assert other.submit(lambda: lease.holds).result(10)


def test_a_look_at_another_servers_lease_is_not_one_at_this(clock: SimClock, lease: Lease) -> None:
    """Two servers in one process, as in simulations."""
    other = Lease(clock, TAKEOVER_AFTER)
    other.renew(clock.monotonic())
    other.look()
    other.new_term()
    assert lease.holds
    assert not other.holds


def test_a_server_that_stops_acts_no_more(clock: SimClock, lease: Lease) -> None:
    deadline = lease.acting("panda-0001", "power cycle", 20.0)
    lease.end()
    assert lease.left() == 0.0
    assert deadline.expired
    with pytest.raises(LeaseOver):
        lease.acting("panda-0001", "power cycle", 20.0)
