# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Power cycles of one relay board that are done together, in one connection."""

from __future__ import annotations

import itertools
from collections import deque
from dataclasses import replace

import pytest

from mozpool import config
from mozpool.bmm.backends.proxr import MOST, ProXRPower
from mozpool.bmm.interfaces import Cycle, Target
from mozpool.clock import Deadline
from mozpool.errors import HardwareError, LaneError
from mozpool.fakes.relayboard import RelayFault
from tests.contract.fake_peers import FakeRelayBoard

BOARDS = 25


def target(port: int, number: int) -> Target:
    place = f"127.0.0.1:{port}:bank{1 + number // 8}:relay{1 + number % 8}"
    return Target(f"panda-{number:04}", "127.0.0.1", "aabbccddeeff", relay_info=place)


class Waiting:
    """Power cycles that wait for a relay board, and what came of them."""

    def __init__(self, targets, seconds) -> None:
        self.targets = deque(targets)
        self.results: dict[str, HardwareError | None] = {}
        self._seconds = seconds

    def take(self) -> Cycle | None:
        if not self.targets:
            return None
        device = self.targets.popleft()

        def done(error: HardwareError | None) -> None:
            assert device.name not in self.results
            self.results[device.name] = error

        return Cycle(device, self._seconds(60.0), done)


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
    waiting = Waiting([target(board.port, number) for number in range(BOARDS)], seconds)
    power.power_cycles(waiting.take)
    assert waiting.results == {f"panda-{number:04}": None for number in range(BOARDS)}
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
    waiting = Waiting([target(board.port, number) for number in range(4)], seconds)
    ProXRPower(replace(context, settings=config.BMM(relay_spacing=spacing))).power_cycles(waiting.take)
    assert set(waiting.results.values()) == {None}
    starts = sorted(did[2][1] for did in cycled(board).values())
    assert all(later - one >= 0.99 * spacing / context.speed for one, later in itertools.pairwise(starts))


def test_what_comes_to_wait_meanwhile_joins_in(start, power, seconds):
    board = start(FakeRelayBoard())
    late = target(board.port, 1)
    waiting = Waiting([target(board.port, 0)], seconds)
    looks = iter(range(10))

    def take() -> Cycle | None:
        if next(looks, None) == 2:
            waiting.targets.append(late)
        return waiting.take()

    power.power_cycles(take)
    assert waiting.results == {"panda-0000": None, "panda-0001": None}
    assert [record.action for record in board.board.record].count("connect") == 1


def test_others_get_the_board_in_the_end(start, power, seconds):
    """However many come to wait."""
    board = start(FakeRelayBoard())
    numbers = itertools.count()
    waiting = Waiting([], seconds)

    def take() -> Cycle:
        waiting.targets.append(replace(target(board.port, 0), name=f"again-{next(numbers)}"))
        cycle = waiting.take()
        assert cycle is not None
        return cycle

    power.power_cycles(take)
    assert len(waiting.results) == next(numbers) == MOST
    assert set(waiting.results.values()) == {None}
    assert board.has_power(1, 1)


def test_a_relay_that_is_stuck_is_its_own_devices_fault_alone(start, power, seconds):
    board = start(FakeRelayBoard())
    stuck, good = target(board.port, 0), target(board.port, 1)
    turn = board.board._turn
    board.board._turn = lambda bank, relay, on: None if relay == 1 else turn(bank, relay, on)
    waiting = Waiting([stuck, good, replace(good, name="nowhere", relay_info="nonsense")], seconds)
    power.power_cycles(waiting.take)
    assert waiting.results[good.name] is None
    failed = waiting.results[stuck.name]
    assert failed is not None and not isinstance(failed, LaneError)
    assert "bank 1 relay 1 reads back on after it was switched off" in failed.message
    nowhere = waiting.results["nowhere"]
    assert nowhere is not None and "relay_info" in nowhere.message


@pytest.mark.parametrize(
    "fault", [RelayFault.GARBAGE, RelayFault.HALF_ANSWER, RelayFault.EARLY_CLOSE, RelayFault.REFUSE]
)
def test_when_the_board_fails_all_under_way_have_failed_by_it(start, context, clock, fault):
    board = start(FakeRelayBoard(fault))
    waiting = Waiting([target(board.port, number) for number in range(3)], lambda amount: Deadline(clock, 0.3))
    ProXRPower(context).power_cycles(waiting.take)
    assert waiting.results
    causes = set()
    for name, error in waiting.results.items():
        assert isinstance(error, LaneError), name
        assert error.culprit == f"relay board 127.0.0.1:{board.port}"
        causes.add(id(error.__cause__))
    assert len(causes) == 1  # one failure, as far as the board is concerned
    if fault is not RelayFault.REFUSE:
        first = waiting.results["panda-0000"]
        assert first is not None and first.message.endswith("the device may be without power")


def test_a_board_that_says_too_much_at_the_end_is_not_believed(start, power, seconds):
    board = start(FakeRelayBoard())
    obey = board.board._obey

    def babble(line, code: int, bank: int) -> None:
        obey(line, code, bank)
        if code == 116 and not board.board.relay_is_on(1, 1):
            line.transport.write(b"\x00")

    board.board._obey = babble
    waiting = Waiting([target(board.port, 0)], seconds)
    power.power_cycles(waiting.take)
    assert isinstance(waiting.results["panda-0000"], LaneError)
