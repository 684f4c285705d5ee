# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The fake relay board, spoken to with plain sockets."""

from __future__ import annotations

import pytest

from mozpool.fakes.board import Behaviour
from mozpool.fakes.relayboard import RelayFault
from tests.unit.fakes_support import BOARD, PORT, RELAYS, connect, cut, eventually, rack_of, relay, silent, spec

OK = 85


@pytest.fixture
def rack():
    """A rack with boards 1 and 10 (bank 2, relay 2) on one relay board."""
    with rack_of(spec(1, PORT), spec(10, PORT)) as rack:
        yield rack


def actions(rack):
    return [record.action for record in rack.relay_boards[BOARD].record]


def test_it_answers_the_communication_test(rack):
    with connect(RELAYS, PORT) as board:
        assert relay(board, 254, 33) == OK


def test_it_turns_and_reads_relays_and_switches_the_boards_behind_them(rack):
    with connect(RELAYS, PORT) as board:
        assert relay(board, 254, 117, 2) == 0
        assert relay(board, 254, 109, 2) == OK
        assert relay(board, 254, 117, 2) == 1
        assert not rack.boards["board-10"].powered
        assert rack.boards["board-1"].powered
        assert relay(board, 254, 101, 2) == OK
        assert relay(board, 254, 117, 2) == 0
        assert rack.boards["board-10"].powered


@pytest.mark.parametrize("bank", [1, 2, 3, 4])
@pytest.mark.parametrize("number", range(8))
def test_it_has_four_banks_of_eight_relays(rack, bank, number):
    with connect(RELAYS, PORT) as board:
        assert relay(board, 254, 108 + number, bank) == OK
        states = [relay(board, 254, 116 + each, other) for other in range(1, 5) for each in range(8)]
        assert [i for i, on in enumerate(states) if on] == [(bank - 1) * 8 + number]


def test_it_takes_a_command_in_several_segments(rack):
    with connect(RELAYS, PORT) as board:
        for byte in (254, 108):
            board.sendall(bytes([byte]))
            assert silent(board, 0.02)
        assert relay(board, 1) == OK
        assert relay(board, 254, 116, 1) == 1


def test_it_answers_several_commands_in_one_segment(rack):
    with connect(RELAYS, PORT) as board:
        board.sendall(bytes([254, 108, 1, 254, 116, 1, 254, 33]))
        received = b""
        while len(received) < 3:
            received += board.recv(3)
        assert received == bytes([OK, 1, OK])


def test_it_ignores_garbage_unknown_commands_and_unknown_banks(rack):
    with connect(RELAYS, PORT) as board:
        board.sendall(bytes([0, 33, 7, 254, 99, 254, 124, 1, 254, 108, 0, 254, 108, 5, 254]))
        assert silent(board, 0.05)
        assert relay(board, 254, 33) == OK
    assert "on" not in actions(rack)


def test_it_records_who_connected_and_what_they_did(rack):
    with connect(RELAYS, PORT) as board:
        own = board.getsockname()
        relay(board, 254, 33)
        relay(board, 254, 109, 2)
        relay(board, 254, 117, 2)
    eventually(lambda: "disconnect" in actions(rack))
    record = rack.relay_boards[BOARD].record
    assert [(entry.action, entry.bank, entry.relay) for entry in record] == [
        ("connect", None, None),
        ("test", None, None),
        ("on", 2, 2),
        ("read", 2, 2),
        ("disconnect", None, None),
    ]
    assert {entry.peer for entry in record} == {f"{own[0]}:{own[1]}"}
    assert [entry.time for entry in record] == sorted(entry.time for entry in record)


def test_it_leaves_a_second_client_hanging_until_the_first_has_gone(rack):
    with connect(RELAYS, PORT) as first, connect(RELAYS, PORT) as second:
        assert relay(first, 254, 33) == OK
        second.sendall(bytes([254, 33]))
        assert silent(second)
        assert relay(first, 254, 33) == OK
        first.close()
        assert second.recv(1) == bytes([OK])


def test_a_client_that_gave_up_waiting_has_no_effect(rack):
    with connect(RELAYS, PORT) as first:
        relay(first, 254, 33)
        with connect(RELAYS, PORT) as second:
            second.sendall(bytes([254, 108, 1]))
        eventually(lambda: "disconnect" in actions(rack))
    with connect(RELAYS, PORT) as third:
        assert relay(third, 254, 116, 1) == 0


def test_it_needs_a_second_after_a_disconnect():
    with rack_of(spec(1, PORT), behaviour=Behaviour.reliable(speed=10)) as rack:
        for _ in range(2):
            with connect(RELAYS, PORT) as board:
                assert relay(board, 254, 33) == OK
        record = rack.relay_boards[BOARD].record
    gone = next(entry.time for entry in record if entry.action == "disconnect")
    answered = [entry.time for entry in record if entry.action == "test"][1]
    assert answered - gone >= 0.1 - 0.001  # timers of the event loop are that exact


def test_a_board_that_hangs_accepts_and_never_answers(rack):
    rack.set_relay_fault(BOARD, RelayFault.HANG)
    with connect(RELAYS, PORT) as board:
        board.sendall(bytes([254, 108, 1]))
        assert silent(board)
        assert rack.boards["board-1"].powered
        rack.set_relay_fault(BOARD, None)
        assert relay(board, 254, 33) == OK


def test_a_board_that_refuses_comes_back(rack):
    with connect(RELAYS, PORT) as board:
        relay(board, 254, 108, 1)
        rack.set_relay_fault(BOARD, RelayFault.REFUSE)
        assert cut(board)
    with pytest.raises(ConnectionRefusedError):
        connect(RELAYS, PORT)
    rack.set_relay_fault(BOARD, None)
    with connect(RELAYS, PORT) as board:
        assert relay(board, 254, 116, 1) == 1


def test_a_board_with_garbage_answers_nothing_that_means_something(rack):
    rack.set_relay_fault(BOARD, RelayFault.GARBAGE)
    with connect(RELAYS, PORT) as board:
        assert {relay(board, 254, 116, 1) for _ in range(50)}.isdisjoint({0, 1, OK})


def test_a_board_that_answers_half_does_so_once_a_connection(rack):
    rack.set_relay_fault(BOARD, RelayFault.HALF_ANSWER)
    for _ in range(2):
        with connect(RELAYS, PORT) as board:
            assert relay(board, 254, 108, 1) == OK
            board.sendall(bytes([254, 116, 1]))
            assert silent(board, 0.05)


def test_a_board_that_closes_early_has_done_what_it_was_told(rack):
    rack.set_relay_fault(BOARD, RelayFault.EARLY_CLOSE)
    with connect(RELAYS, PORT) as board:
        board.sendall(bytes([254, 108, 1, 254, 100, 1]))
        assert cut(board)
    assert not rack.boards["board-1"].powered


def test_a_board_with_a_wrong_read_back_tells_the_opposite(rack):
    rack.set_relay_fault(BOARD, RelayFault.WRONG_READ_BACK)
    with connect(RELAYS, PORT) as board:
        assert relay(board, 254, 116, 1) == 1
        assert relay(board, 254, 108, 1) == OK
        assert relay(board, 254, 116, 1) == 0
