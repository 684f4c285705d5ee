# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The ProXR backend against boards that speak real bytes, well-behaved and not."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from mozpool.bmm.backends.proxr import Board, ProXRPower, RelayInfo
from mozpool.bmm.interfaces import BackendContext, Target
from mozpool.errors import BadInput, HardwareError, LaneError
from tests.contract.peers import Peer, RelayBoard, RelayFault


def device(port: int, bank: int = 2, relay: int = 3, name: str = "panda-0001") -> Target:
    return Target(name, "127.0.0.1", "aabbccddeeff", relay_info=f"127.0.0.1:{port}:bank{bank}:relay{relay}")


@pytest.fixture
def power(context):
    return ProXRPower(context)


# relay_info


@pytest.mark.parametrize(
    ("text", "host", "port", "bank", "relay"),
    [
        ("relay-7.example.com:bank1:relay3", "relay-7.example.com", 2101, 1, 3),
        ("Relay-7.Example.com:bank4:relay8", "relay-7.example.com", 2101, 4, 8),
        ("127.0.0.1:2999:bank1:relay1", "127.0.0.1", 2999, 1, 1),
        ("[::1]:bank1:relay1", "::1", 2101, 1, 1),
        ("[fe80::1]:2999:bank2:relay1", "fe80::1", 2999, 2, 1),
        ("bank1:bank1:relay1", "bank1", 2101, 1, 1),
    ],
)
def test_it_reads_relay_info(text, host, port, bank, relay):
    info = RelayInfo.parse(text)
    assert (info.board.host, info.board.port, info.bank, info.relay) == (host, port, bank, relay)
    assert RelayInfo.parse(str(info)) == info


@pytest.mark.parametrize(
    "text",
    [
        "",
        "host",
        "host:bank1",
        "host:relay1:bank1",
        "host:bank0:relay1",
        "host:bank5:relay1",
        "host:bank1:relay0",
        "host:bank1:relay9",
        "host:bank1:relay11",
        "host:bank01:relay1",
        "host:Bank1:relay1",
        "host:bank1:relay1 ",
        " host:bank1:relay1",
        "host:bank1:relay1\n",
        ":bank1:relay1",
        "host::bank1:relay1",
        "host:0:bank1:relay1",
        "host:65536:bank1:relay1",
        "host:x:bank1:relay1",
        "host:-1:bank1:relay1",
        "host:1:2:bank1:relay1",
        "::1:bank1:relay1",
        "host:bank\u0661:relay1",
        "host/../:bank1:relay1",
    ],
)
def test_it_refuses_other_relay_info_naming_field_value_and_what_was_expected(text):
    with pytest.raises(BadInput) as caught:
        RelayInfo.parse(text, "system.relay.0")
    assert caught.value.field == "system.relay.0"
    assert "system.relay.0: " in str(caught.value)
    assert repr(text) in str(caught.value)
    assert "HOST[:PORT]:bankN:relayM" in str(caught.value)


@pytest.mark.parametrize("text", ["", "host:", "host:0", "host:99999", "a b", "[::1", "::1", "host:1\n"])
def test_it_refuses_other_boards(text):
    with pytest.raises(BadInput):
        Board.parse(text)


def test_devices_on_one_board_share_a_lane_however_it_is_written(power):
    written = (
        "relay1.example.com:bank1:relay1",
        "relay1.example.com:2101:bank4:relay8",
        "RELAY1.example.com:bank1:relay2",
    )
    lanes = {power.lane(Target("d", "", "", relay_info=info)) for info in written}
    assert lanes == {"relay:relay1.example.com:2101"}


@pytest.mark.parametrize("relay_info", [None, "", "nonsense"])
def test_a_device_without_usable_relay_info_has_no_power_control(power, seconds, relay_info):
    target = Target("panda-0001", "127.0.0.1", "aabbccddeeff", relay_info=relay_info)
    with pytest.raises(HardwareError, match=r"panda-0001.*relay_info") as caught:
        power.lane(target)
    assert not isinstance(caught.value, LaneError)
    with pytest.raises(HardwareError, match=r"power cycle of panda-0001 failed"):
        power.power_cycle(target, seconds(1))


# The exact bytes


def test_a_power_cycle_is_off_read_on_read_each_in_one_write(start, power, seconds):
    board = start(RelayBoard())
    power.power_cycle(device(board.port, bank=2, relay=3), seconds(5))
    assert board.connections == [
        [bytes([254, 110, 2]), bytes([254, 118, 2]), bytes([254, 102, 2]), bytes([254, 118, 2])]
    ]
    assert board.relays == {(2, 3): False}


def test_power_off_turns_the_relay_on_and_power_on_turns_it_off(start, power, seconds):
    board = start(RelayBoard())
    last = device(board.port, bank=4, relay=8)
    first = device(board.port, bank=1, relay=1)
    power.power_off(last, seconds(5))
    assert board.relays == {(4, 8): True}
    assert power.is_on(last, seconds(5)) is False
    assert power.is_on(first, seconds(5)) is True
    power.power_on(last, seconds(5))
    assert board.relays == {(4, 8): False}
    power.power_off(first, seconds(5))
    assert board.connections == [
        [bytes([254, 115, 4]), bytes([254, 123, 4])],
        [bytes([254, 123, 4])],
        [bytes([254, 116, 1])],
        [bytes([254, 107, 4]), bytes([254, 123, 4])],
        [bytes([254, 108, 1]), bytes([254, 116, 1])],
    ]


def test_the_communication_test_has_no_bank_byte_and_changes_nothing(start, power, seconds):
    board = start(RelayBoard())
    power.test(power.lane(device(board.port)), seconds(5))
    assert board.connections == [[bytes([254, 33])]]
    assert board.relays == {}


def test_it_refuses_to_test_another_kind_of_lane(power, seconds):
    with pytest.raises(BadInput, match="relay:HOST:PORT"):
        power.test("pdu:127.0.0.1:1", seconds(1))


# Pauses


def test_the_device_stays_off_and_the_board_gets_its_rest_for_a_second_each(start, clock, seconds):
    power = ProXRPower(BackendContext(clock, tftp_root=None, speed=1))
    board = start(RelayBoard())
    power.power_cycle(device(board.port), seconds(10))
    assert clock.slept == [1.0]
    power.is_on(device(board.port), seconds(10))
    assert 0 < sum(clock.slept[1:]) <= 1.0


def test_speed_divides_the_pauses(start, power, clock, seconds):
    board = start(RelayBoard())
    power.power_cycle(device(board.port), seconds(10))
    assert clock.slept == [pytest.approx(1 / 50)]


def test_a_board_rests_after_a_failed_attempt_too(clock, seconds, closed_port):
    power = ProXRPower(BackendContext(clock, tftp_root=None, speed=2))
    for _ in range(2):
        with pytest.raises(LaneError):
            power.is_on(device(closed_port), seconds(5))
    assert len(clock.slept) == 1


# Boards that misbehave


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (RelayFault.SILENT, "no answer within 0.3 s"),
        (RelayFault.GARBAGE, "to the command"),
        (RelayFault.CLOSES_AT_ONCE, "connection"),
        (RelayFault.CLOSES_AFTER_FIRST_ANSWER, "connection"),
        (RelayFault.ODD_STATUS, r"answered \[7\] to the command to read a relay where 0 or 1 was expected"),
    ],
)
@pytest.mark.parametrize("operation", ["power_cycle", "power_off"])
def test_a_bad_board_is_the_culprit_and_not_the_device(start, power, seconds, fault, reason, operation):
    board = start(RelayBoard(fault))
    began = time.monotonic()
    with pytest.raises(LaneError, match=reason) as caught:
        getattr(power, operation)(device(board.port), seconds(0.3))
    assert time.monotonic() - began < 3
    assert caught.value.culprit == f"relay board 127.0.0.1:{board.port}"
    assert caught.value.device == "panda-0001"
    assert caught.value.culprit in str(caught.value)


def test_a_board_that_refuses_is_the_culprit(power, seconds, closed_port):
    with pytest.raises(LaneError, match="Connection refused") as caught:
        power.power_cycle(device(closed_port), seconds(5))
    assert caught.value.culprit == f"relay board 127.0.0.1:{closed_port}"


def test_a_failure_after_the_power_was_cut_says_so(start, power, seconds):
    board = start(RelayBoard(RelayFault.CLOSES_AFTER_FIRST_ANSWER))
    with pytest.raises(LaneError, match="the device may be without power"):
        power.power_cycle(device(board.port), seconds(5))
    with pytest.raises(LaneError) as caught:
        power.power_on(device(board.port), seconds(5))
    assert "without power" not in str(caught.value)


@pytest.mark.parametrize("fault", [RelayFault.SILENT, RelayFault.GARBAGE, RelayFault.CLOSES_AT_ONCE])
def test_the_communication_test_of_a_bad_board_fails(start, power, seconds, fault):
    board = start(RelayBoard(fault))
    with pytest.raises(LaneError) as caught:
        power.test(f"relay:127.0.0.1:{board.port}", seconds(0.3))
    assert caught.value.culprit == f"relay board 127.0.0.1:{board.port}"


def test_a_relay_that_does_not_follow_is_the_devices_own_fault(start, power, seconds):
    board = start(RelayBoard(RelayFault.STUCK))
    with pytest.raises(HardwareError, match="bank 2 relay 3 reads back on after it was switched off") as caught:
        power.power_cycle(device(board.port), seconds(5))
    assert not isinstance(caught.value, LaneError)
    assert board.connections == [[bytes([254, 110, 2]), bytes([254, 118, 2])]]


def test_a_relay_that_stays_on_leaves_the_device_off(start, power, seconds):
    board = start(RelayBoard(RelayFault.STUCK))
    board.relays[2, 3] = True
    with pytest.raises(HardwareError, match="reads back off after it was switched on"):
        power.power_on(device(board.port), seconds(5))


def test_it_works_again_after_a_failure(start, power, seconds):
    board = start(RelayBoard(RelayFault.CLOSES_AFTER_FIRST_ANSWER))
    with pytest.raises(LaneError):
        power.power_cycle(device(board.port), seconds(5))
    board.fault = RelayFault.NONE
    power.power_cycle(device(board.port), seconds(5))
    assert board.relays == {(2, 3): False}


def test_nothing_is_sent_after_the_deadline(start, power, seconds):
    board = start(RelayBoard())
    with pytest.raises(LaneError):
        power.power_cycle(device(board.port), seconds(0))
    assert board.received == b""


def test_a_host_name_that_is_not_known_names_the_board(power, seconds):
    # Two dots in a row: no name server is asked.
    with pytest.raises(LaneError, match=r"the host name 'a\.\.b' is not known") as caught:
        power.is_on(Target("d", "", "", relay_info="a..b:bank1:relay1"), seconds(5))
    assert caught.value.culprit == "relay board a..b:2101"


def test_a_host_name_is_resolved(start, power, seconds):
    board = start(RelayBoard())
    assert power.is_on(Target("d", "", "", relay_info=f"localhost:{board.port}:bank1:relay1"), seconds(5)) is True


# Bytes that come when nothing was asked


class Chatterer(RelayBoard):
    """Its relays never move. A moment after some answers it says more, and its next answers come late."""

    def __init__(self, extra: dict[int, bytes], *, greeting: bytes = b"", pause: float = 0.02) -> None:
        super().__init__(RelayFault.STUCK)
        self.extra = extra
        """Action (0 off, 1 on, 2 read, -1 communication test) → what follows the answer, byte by byte."""
        self.greeting = greeting
        self.pause = pause

    def serve(self, connection):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(self.greeting)
        while command := self.receive(connection):
            if len(command) > 3:
                return self.linger(connection)  # whoever believed the greeting has sent two commands at once
            time.sleep(self.pause)
            connection.sendall(self.answer(command))
            for byte in self.extra.get(-1 if len(command) == 2 else (command[1] - 100) // 8, b""):
                time.sleep(self.pause)
                connection.sendall(bytes([byte]))
        return None


@pytest.fixture
def patient_power(clock):
    """Listens as long as with real boards."""
    return ProXRPower(BackendContext(clock, tftp_root=None, speed=1))


@pytest.mark.parametrize(
    ("operation", "relay_on", "extra"),
    [
        ("power_off", False, {1: b"\x01"}),
        ("power_on", True, {0: b"\x00"}),
        ("power_cycle", True, {0: b"\x00"}),
        ("power_cycle", False, {1: b"\x01"}),
        ("is_on", False, {2: b"\x01"}),
        ("power_off", False, {1: b"\x01\x01"}),
        ("power_off", True, {2: b"\x55"}),
    ],
)
def test_a_late_byte_too_many_is_not_taken_for_an_answer(start, patient_power, seconds, operation, relay_on, extra):
    board = start(Chatterer(extra))
    board.relays[2, 3] = relay_on
    with pytest.raises(LaneError, match=r"where nothing was asked|was expected") as caught:
        getattr(patient_power, operation)(device(board.port), seconds(5))
    assert caught.value.culprit == f"relay board 127.0.0.1:{board.port}"


def test_a_late_byte_too_many_does_not_blame_the_relay(start, patient_power, seconds):
    """The relay has moved, but the answer too many says that it has not."""
    board = start(Chatterer({1: b"\x00"}))
    board.relays[2, 3] = True
    with pytest.raises(LaneError, match=r"sent \[1\] after its last answer, where nothing was asked|answered \[0, 1\]"):
        patient_power.power_off(device(board.port), seconds(5))


def test_a_board_that_speaks_first_is_not_believed(start, patient_power, seconds):
    board = start(Chatterer({}, greeting=b"\x55"))
    with pytest.raises(LaneError):
        patient_power.power_on(device(board.port), seconds(5))


def test_the_communication_test_takes_one_answer_only(start, patient_power, seconds):
    board = start(Chatterer({-1: b"\x55"}))
    with pytest.raises(LaneError, match=r"sent \[85\] after its last answer, where nothing was asked"):
        patient_power.test(f"relay:127.0.0.1:{board.port}", seconds(5))


class Babbler(Peer):
    """Answers each command, at last, with garbage that comes byte by byte."""

    def __init__(self, garbage: bytes) -> None:
        super().__init__()
        self.garbage = garbage

    def serve(self, connection):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while self.receive(connection):
            for byte in self.garbage:
                time.sleep(0.02)
                connection.sendall(bytes([byte]))


@pytest.mark.parametrize("operation", ["power_cycle", "power_off", "power_on", "is_on"])
@pytest.mark.parametrize("garbage", [b"\x07", b"\x55\x01\x00\x55", b"\x01\x00", b"\x00\x55", b"HTTP/1.0 400"])
def test_garbage_in_single_bytes_is_no_answer(start, patient_power, seconds, garbage, operation):
    board = start(Babbler(garbage))
    began = time.monotonic()
    with pytest.raises(LaneError, match=r"answered \[|where nothing was asked") as caught:
        getattr(patient_power, operation)(device(board.port), seconds(2))
    assert time.monotonic() - began < 5
    assert caught.value.culprit == f"relay board 127.0.0.1:{board.port}"


# Several at a time


def test_a_hanging_board_takes_one_connection_and_holds_up_no_other_board(start, power, seconds):
    hanging, good = start(RelayBoard(RelayFault.SILENT)), start(RelayBoard())
    problems: list[HardwareError] = []

    def hang() -> None:
        try:
            power.power_cycle(device(hanging.port, relay=1), seconds(1.5))
        except HardwareError as e:
            problems.append(e)

    thread = threading.Thread(target=hang)
    thread.start()
    try:
        assert hanging.connected.wait(5)
        with pytest.raises(LaneError, match=r"still in use by another operation after 0.2 s"):
            power.power_cycle(device(hanging.port, relay=2), seconds(0.2))
        power.power_cycle(device(good.port), seconds(5))
        assert thread.is_alive()
    finally:
        thread.join(10)
    assert len(hanging.connections) == 1
    assert len(problems) == 1


def test_operations_on_one_board_follow_each_other(start, power, seconds):
    board = start(RelayBoard())
    threads = [
        threading.Thread(target=power.power_cycle, args=(device(board.port, relay=relay), seconds(20)))
        for relay in range(1, 9)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert board.relays == {(2, relay): False for relay in range(1, 9)}
    assert [len(pieces) for pieces in board.connections] == [4] * 8
