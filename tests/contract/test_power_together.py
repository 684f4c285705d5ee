# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Power cycles of one relay board that are done together, in one connection."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

import pytest

from mozpool import config
from mozpool.bmm.backends.proxr import ProXRPower
from mozpool.bmm.interfaces import Cycle, Target
from mozpool.bmm.service import BMM
from mozpool.clock import Deadline
from mozpool.effects import FRESH
from mozpool.errors import HardwareError, LaneError, LeaseOver, NotYet
from mozpool.fakes.relayboard import RelayFault
from mozpool.lease import Lease
from tests.app_fixtures import server
from tests.contract.fake_peers import FakeRelayBoard
from tests.factories import device

BOARDS = 25


def target(port: int, number: int) -> Target:
    place = f"127.0.0.1:{port}:bank{1 + number // 8}:relay{1 + number % 8}"
    return Target(f"panda-{number:04}", "127.0.0.1", "aabbccddeeff", relay_info=place)


class Round:
    """Power cycles that are done together, and what came of them."""

    def __init__(self, targets: Sequence[Target], seconds: Callable[[float], Deadline]) -> None:
        self.results: dict[str, Exception | None] = {}
        self.cycles = [Cycle(device, seconds(60.0), self._done(device.name)) for device in targets]

    def _done(self, name: str) -> Callable[[Exception | None], None]:
        def done(error: Exception | None) -> None:
            assert name not in self.results
            self.results[name] = error

        return done


class Powers:
    """A registry with this backend alone."""

    def __init__(self, power: ProXRPower) -> None:
        self._power = power

    def power(self, name: str | None) -> ProXRPower:
        return self._power


@pytest.fixture
def power(context) -> ProXRPower:
    return ProXRPower(context)


def cycled(board: FakeRelayBoard) -> dict[tuple[int, int], list[tuple[str, float]]]:
    """Relay → what was done to it, and when."""
    found: dict[tuple[int, int], list[tuple[str, float]]] = {}
    for record in board.board.record:
        if record.bank is not None and record.relay is not None:
            found.setdefault((record.bank, record.relay), []).append((record.action, record.time))
    return found


def test_all_that_wait_are_cycled_in_one_connection(start, power, seconds):
    board = start(FakeRelayBoard())
    round_ = Round([target(board.port, number) for number in range(BOARDS)], seconds)
    power.power_cycles(round_.cycles)
    assert round_.results == {f"panda-{number:04}": None for number in range(BOARDS)}
    assert [record.action for record in board.board.record].count("connect") == 1
    relays = cycled(board)
    assert len(relays) == BOARDS
    for did in relays.values():
        assert [action for action, _ in did] == ["on", "read", "off", "read"]  # of the relay: on cuts the power
        assert did[2][1] - did[0][1] >= 1 / 50
    # The first gets its power back only after others have lost theirs.
    assert sum(did[0][1] < relays[1, 1][2][1] for did in relays.values()) > 1


def test_devices_start_one_after_the_other_where_their_supply_needs_that(start, context, seconds):
    board = start(FakeRelayBoard())
    spacing = 2.0
    round_ = Round([target(board.port, number) for number in range(4)], seconds)
    ProXRPower(replace(context, settings=config.BMM(relay_spacing=spacing))).power_cycles(round_.cycles)
    assert set(round_.results.values()) == {None}
    starts = sorted(did[2][1] for did in cycled(board).values())
    assert all(later - one >= 0.99 * spacing / context.speed for one, later in itertools.pairwise(starts))


def test_the_pause_between_two_starts_outlasts_a_connection(start, context, seconds):
    board = start(FakeRelayBoard())
    spacing = 10.0
    power = ProXRPower(replace(context, settings=config.BMM(relay_spacing=spacing)))
    power.power_cycle(target(board.port, 0), seconds(60.0))
    round_ = Round([target(board.port, 1)], seconds)
    power.power_cycles(round_.cycles)
    power.power_on(target(board.port, 2), seconds(60.0))
    assert set(round_.results.values()) == {None}
    starts = sorted(record.time for record in board.board.record if record.action == "off")  # power for the device
    assert len(starts) == 3
    assert all(later - one >= 0.99 * spacing / context.speed for one, later in itertools.pairwise(starts))


def test_no_more_are_without_power_than_can_get_it_soon(start, context, seconds):
    board = start(FakeRelayBoard())
    round_ = Round([target(board.port, number) for number in range(5)], seconds)
    ProXRPower(replace(context, settings=config.BMM(relay_spacing=3.0))).power_cycles(round_.cycles)
    assert [type(error) for error in round_.results.values()] == [type(None)] * 3 + [NotYet] * 2
    assert len(cycled(board)) == 3
    assert all(board.has_power(1, 1 + number) for number in range(5))


def test_each_board_has_its_own_connection(start, power, seconds):
    """They share a lane, but one may have been moved since."""
    one, other = start(FakeRelayBoard()), start(FakeRelayBoard())
    targets = [target(one.port, 0), replace(target(other.port, 5), name="moved"), target(one.port, 1)]
    round_ = Round(targets, seconds)
    power.power_cycles(round_.cycles)
    assert round_.results == {"panda-0000": None, "moved": None, "panda-0001": None}
    assert set(cycled(one)) == {(1, 1), (1, 2)}
    assert set(cycled(other)) == {(1, 6)}


def test_a_relay_that_is_stuck_is_its_own_devices_fault_alone(start, power, seconds):
    board = start(FakeRelayBoard())
    stuck, good = target(board.port, 0), target(board.port, 1)
    turn = board.board._turn
    board.board._turn = lambda bank, relay, on: None if relay == 1 else turn(bank, relay, on)
    round_ = Round([stuck, good, replace(good, name="nowhere", relay_info="nonsense")], seconds)
    power.power_cycles(round_.cycles)
    assert round_.results[good.name] is None
    failed = round_.results[stuck.name]
    assert isinstance(failed, HardwareError)
    assert not isinstance(failed, LaneError)
    assert "bank 1 relay 1 reads back on after it was switched off" in failed.message
    nowhere = round_.results["nowhere"]
    assert isinstance(nowhere, HardwareError)
    assert "relay_info" in nowhere.message


@pytest.mark.parametrize(
    "fault", [RelayFault.GARBAGE, RelayFault.HALF_ANSWER, RelayFault.EARLY_CLOSE, RelayFault.REFUSE]
)
def test_a_board_that_fails_at_once_fails_the_first_alone(start, context, clock, fault):
    """The others have not been touched: it is not they that get nearer to being given up."""
    board = start(FakeRelayBoard(fault))
    round_ = Round([target(board.port, number) for number in range(3)], lambda amount: Deadline(clock, 0.3))
    ProXRPower(context).power_cycles(round_.cycles)
    first, *others = round_.results.values()
    assert isinstance(first, LaneError)
    assert first.culprit == f"relay board 127.0.0.1:{board.port}"
    if fault is not RelayFault.REFUSE:
        assert first.message.endswith("the device may be without power")
    assert [type(error) for error in others] == [NotYet, NotYet]


def test_a_board_that_fails_on_the_way_fails_all_under_way_once(start, power, seconds):
    board = start(FakeRelayBoard())
    obey = board.board._obey

    def hang_up(line, code: int, bank: int) -> None:
        if board.board.relay_is_on(1, 2):
            line.transport.close()
        else:
            obey(line, code, bank)

    board.board._obey = hang_up
    round_ = Round([target(board.port, number) for number in range(4)], seconds)
    power.power_cycles(round_.cycles)
    one, two, *others = round_.results.values()
    assert isinstance(one, LaneError)
    assert isinstance(two, LaneError)
    assert all(error.message.endswith("the device may be without power") for error in (one, two))
    assert one.__cause__ is two.__cause__  # one failure, as far as the board is concerned
    assert [type(error) for error in others] == [NotYet, NotYet]


def test_a_relay_that_is_stuck_does_not_hide_that_its_board_fails(start, power, seconds):
    board = start(FakeRelayBoard())
    turn, obey = board.board._turn, board.board._obey
    board.board._turn = lambda bank, relay, on: None if relay == 1 else turn(bank, relay, on)

    def hang_up(line, code: int, bank: int) -> None:
        if not board.board.relay_is_on(1, 2):
            obey(line, code, bank)
        else:
            line.transport.close()

    board.board._obey = hang_up
    round_ = Round([target(board.port, number) for number in range(2)], seconds)
    power.power_cycles(round_.cycles)
    stuck, other = round_.results.values()
    assert isinstance(stuck, LaneError)
    assert isinstance(other, LaneError)
    assert stuck.__cause__ is other.__cause__
    assert "relay 1 reads back on after it was switched off" in stuck.message
    assert other.message.endswith("; the device may be without power")


def test_a_board_that_says_too_much_at_the_end_is_not_believed(start, power, seconds):
    board = start(FakeRelayBoard())
    obey = board.board._obey

    def babble(line, code: int, bank: int) -> None:
        obey(line, code, bank)
        if code == 116 and not board.board.relay_is_on(1, 1):
            line.transport.write(b"\x00")

    board.board._obey = babble
    round_ = Round([target(board.port, 0)], seconds)
    power.power_cycles(round_.cycles)
    assert isinstance(round_.results["panda-0000"], LaneError)


# Through all layers


def test_a_device_that_has_moved_to_another_board_is_cycled_there(sqlite_url, tmp_path, start):
    """While its power cycle waited. Nobody's relay of the board before is touched."""
    one, other = start(FakeRelayBoard()), start(FakeRelayBoard())
    with server(sqlite_url, tmp_path, testing={"speed": 20.0}) as site:
        for number, relay in ((1, 1), (2, 2)):
            site.change(f"device{number}", relay_info=f"127.0.0.1:{one.port}:bank1:relay{relay}")
        free = threading.Event()

        def wait() -> None:
            free.wait(60)

        site.daemon.hardware.submit(f"relay:127.0.0.1:{one.port}", wait)
        for number in (1, 2):
            site.daemon.devices.force(number, "start_self_test")
        time.sleep(FRESH)  # what was just written is not looked up again
        site.change("device2", relay_info=f"127.0.0.1:{other.port}:bank1:relay5")
        free.set()
        site.wait_until(lambda: site.device("device2").state != "pxe_power_cycling")
        site.wait_until(lambda: site.device("device1").state != "pxe_power_cycling")
        assert set(cycled(one)) == {(1, 1)}
        assert set(cycled(other)) == {(1, 5)}


def test_a_device_that_is_to_be_cycled_again_while_it_is_is_not_lost(sqlite_url, tmp_path, start):
    board = start(FakeRelayBoard())
    with server(sqlite_url, tmp_path, testing={"speed": 4.0}) as site:
        for number in (1, 2):
            site.change(f"device{number}", relay_info=f"127.0.0.1:{board.port}:bank1:relay{number}")
        force = site.daemon.devices.force
        force(1, "start_self_test")
        site.wait_until(lambda: not board.has_power(1, 1))
        for number in (2, 1):
            force(number, "start_self_test")
        site.wait_until(lambda: site.device("device1").state != "pxe_power_cycling")
        site.wait_until(lambda: site.device("device2").state != "pxe_power_cycling")
        site.wait_until(lambda: not site.daemon.device_effects.busy(1) and not site.daemon.device_effects.busy(2))
        assert site.daemon.bmm.let_go(1)
        assert site.daemon.bmm.let_go(2)
        assert board.has_power(1, 1)
        assert board.has_power(1, 2)


def test_a_lease_that_ends_ends_all_that_are_cycled_together(start, context, clock):
    board = start(FakeRelayBoard())
    lease = Lease(clock, 40.0)
    lease.renew(clock.monotonic())
    lease.look()
    power = ProXRPower(context)
    bmm = BMM(cast(Any, Powers(power)), cast(Any, None), clock, "192.0.2.1", "http://192.0.2.1", lease)
    devices = [
        replace(device(), id=1 + number, name=f"panda-{number:04}", relay_info=target(board.port, number).relay_info)
        for number in range(3)
    ]
    results: dict[str, Exception | None] = {}
    switch = board.board._turn

    def turn(bank: int, relay: int, on: bool) -> None:
        switch(bank, relay, on)
        if relay == 2:  # others may have taken over since, and this server lives again
            lease._end = clock.monotonic()
            lease.new_term()
            lease.renew(clock.monotonic())

    board.board._turn = turn
    bmm.power_cycles([(row, partial(results.__setitem__, row.name)) for row in devices])
    # The third was not begun with: its turn comes when it has been looked whose it is.
    assert [type(error) for error in results.values()] == [LeaseOver, LeaseOver, NotYet]
    assert not bmm._doing
