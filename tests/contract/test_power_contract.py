# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What every Power backend keeps to, each with the peer that it is made for."""

from __future__ import annotations

import re
import shlex
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import pytest

from mozpool.bmm.backends.command import CommandPower
from mozpool.bmm.backends.pdudaemon import PDUDaemonPower
from mozpool.bmm.backends.proxr import ProXRPower
from mozpool.bmm.interfaces import Power, Target
from mozpool.config import BMM
from mozpool.errors import BadInput, HardwareError, LaneError
from mozpool.fakes.relayboard import RelayFault as FakeFault
from tests.contract.fake_peers import FakeRelayBoard
from tests.contract.peers import RelayBoard, RelayFault
from tests.contract.real_peers import PASSWORD, SYSTEMS, USER, Dripping, Garbage, Silent

ENOUGH = 60.0
"""Seconds for what works."""

OPERATIONS = ("power_cycle", "power_off", "power_on", "is_on")


@dataclass
class Lab:
    """A backend with two devices in different lanes, and with peers that misbehave."""

    power: Power
    devices: tuple[Target, Target]
    is_on: Callable[[int], bool]
    """What the peer says of a device's power."""
    tells: bool
    """Whether the backend can read the power back."""
    troubles: Mapping[str, tuple[Power, Target]]
    """``hang``, ``refuse`` and ``garbage``, and ``drip`` where bytes can come one at a time."""
    nonsense: tuple[Target, ...]
    """Devices with options that can't be right."""
    culprit: bool
    """Whether what is behind a lane is blamed, and not the device."""


def device(number: int, **fields) -> Target:
    return Target(f"panda-000{number}", "127.0.0.1", "aabbccddeeff", **fields)


def proxr(request) -> Lab:
    start, context = request.getfixturevalue("start"), request.getfixturevalue("context")
    boards = [start(RelayBoard()) for _ in range(2)]
    power = ProXRPower(context)

    def on(port: int) -> Target:
        return device(1, relay_info=f"127.0.0.1:{port}:bank2:relay3")

    troubles = {"hang": RelayFault.SILENT, "garbage": RelayFault.GARBAGE}
    faulty = {name: (power, on(start(RelayBoard(fault)).port)) for name, fault in troubles.items()}
    return Lab(
        power,
        (on(boards[0].port), replace(on(boards[1].port), name="panda-0002")),
        is_on=lambda number: not boards[number].relays.get((2, 3), False),
        tells=True,
        troubles={**faulty, "refuse": (power, on(request.getfixturevalue("closed_port")))},
        nonsense=(device(1), device(1, relay_info="nonsense")),
        culprit=True,
    )


def simulated_proxr(request) -> Lab:
    start, context = request.getfixturevalue("start"), request.getfixturevalue("context")
    boards = [start(FakeRelayBoard()) for _ in range(2)]
    power = ProXRPower(context)

    def on(port: int) -> Target:
        return device(1, relay_info=f"127.0.0.1:{port}:bank2:relay3")

    troubles = {"hang": FakeFault.HANG, "garbage": FakeFault.GARBAGE, "refuse": FakeFault.REFUSE}
    faulty = {name: (power, on(start(FakeRelayBoard(fault)).port)) for name, fault in troubles.items()}
    return Lab(
        power,
        (on(boards[0].port), replace(on(boards[1].port), name="panda-0002")),
        is_on=lambda number: boards[number].has_power(2, 3),
        tells=True,
        troubles={**faulty, "drip": (power, on(start(Dripping(boards[0].port, commands=1)).port))},
        nonsense=(device(1), device(1, relay_info="nonsense")),
        culprit=True,
    )


def command(request) -> Lab:
    tmp_path, context = request.getfixturevalue("tmp_path"), request.getfixturevalue("context")
    program = tmp_path / "switch"
    program.write_text(
        '#!/bin/sh\ncd "${0%/*}" || exit 1\ncase $1 in\nstatus) cat "$2" ;;\n*) sleep 0.05; echo "$1" > "$2" ;;\nesac\n'
    )
    program.chmod(0o755)
    names = ("panda-0001", "panda-0002")
    for name in names:
        (tmp_path / name).write_text("on\n")
    switch = {f"pdu.{action}": (str(program), action, "{name}") for action in ("on", "off", "status")}
    bad = {
        "hang": ("sleep", "600"),
        "refuse": ("/nowhere/switch",),
        "garbage": ("printf", r"\000\377\nnonsense\n"),
    }
    bad_commands = {f"{name}.{action}": words for name, words in bad.items() for action in ("on", "off", "status")}
    power = CommandPower(replace(context, commands={**switch, **bad_commands}))
    return Lab(
        power,
        (device(1, options={"command": "pdu"}), device(2, options={"command": "pdu"})),
        is_on=lambda number: (tmp_path / names[number]).read_text() == "on\n",
        tells=True,
        troubles={name: (power, device(1, options={"command": name})) for name in bad},
        nonsense=(device(1), device(1, options={"command": "no such"}), device(1, options={"command": ""})),
        culprit=False,
    )


def pdudaemon(request) -> Lab:
    start, context = request.getfixturevalue("start"), request.getfixturevalue("context")
    daemon = request.getfixturevalue("pdudaemon")

    def at(port: int) -> Power:
        url = f"http://{USER}:{PASSWORD}@127.0.0.1:{port}"
        return PDUDaemonPower(replace(context, settings=BMM(pdudaemon=url)))

    targets = tuple(device(n, options={"pdu": f"pdu-{n}", "port": "3"}) for n in (1, 2))
    ports = {
        "hang": start(Silent()).port,
        "garbage": start(Garbage()).port,
        "refuse": request.getfixturevalue("closed_port"),
        "drip": start(Dripping(daemon.port)).port,
    }
    return Lab(
        at(daemon.port),
        (targets[0], targets[1]),
        is_on=lambda number: daemon.lines(f"pdu-{number + 1}")[-1] == "3 on",
        tells=False,
        troubles={name: (at(port), targets[0]) for name, port in ports.items()},
        nonsense=(
            device(1),
            device(1, options={"pdu": "pdu-1"}),
            device(1, options={"port": "3"}),
            device(1, options={"pdu": "pdu-1", "port": "1; reboot"}),
            device(1, options={"pdu": "pdu 1", "port": "1"}),
        ),
        culprit=True,
    )


def redfish(request) -> Lab:
    start, context = request.getfixturevalue("start"), request.getfixturevalue("context")
    emulator = request.getfixturevalue("emulator")
    from mozpool.bmm.backends.redfish import RedfishPower

    power = RedfishPower(replace(context, settings=BMM(redfish_user=USER, redfish_password=PASSWORD)))
    dripping = start(Dripping(emulator.port)).port

    def at(port: int, number: int = 0) -> Target:
        system = f"/redfish/v1/Systems/{SYSTEMS[number]}"
        return device(number + 1, options={"redfish": f"http://127.0.0.1:{port}", "system": system})

    ports = {
        "hang": start(Silent()).port,
        "garbage": start(Garbage()).port,
        "refuse": request.getfixturevalue("closed_port"),
        "drip": dripping,
    }
    return Lab(
        power,
        (at(emulator.port, 0), at(dripping, 1)),
        is_on=emulator.is_on,
        tells=True,
        troubles={name: (power, at(port)) for name, port in ports.items()},
        nonsense=(
            device(1),
            device(1, options={"redfish": "bmc.example.com"}),
            device(1, options={"redfish": f"https://{USER}:{PASSWORD}@bmc.example.com"}),
            device(1, options={"redfish": "https://bmc.example.com:99999"}),
            device(1, options={"redfish": "https://bmc.example.com", "system": "1"}),
        ),
        culprit=True,
    )


LABS = {made.__name__: made for made in (proxr, simulated_proxr, command, pdudaemon, redfish)}


@pytest.fixture(params=LABS)
def lab(request) -> Lab:
    return LABS[request.param](request)


def test_power_off_on_and_a_cycle_do_what_they_say(lab, seconds):
    target = lab.devices[0]
    lab.power.power_off(target, seconds(ENOUGH))
    assert not lab.is_on(0)
    assert lab.power.is_on(target, seconds(ENOUGH)) is (False if lab.tells else None)
    lab.power.power_on(target, seconds(ENOUGH))
    assert lab.is_on(0)
    assert lab.power.is_on(target, seconds(ENOUGH)) is (True if lab.tells else None)
    lab.power.power_cycle(target, seconds(ENOUGH))
    assert lab.is_on(0)


def test_a_cycle_ends_with_power_also_where_there_was_none(lab, seconds):
    lab.power.power_off(lab.devices[0], seconds(ENOUGH))
    lab.power.power_cycle(lab.devices[0], seconds(ENOUGH))
    assert lab.is_on(0)


def test_switching_to_what_is_already_so_is_fine(lab, seconds):
    for _ in range(2):
        lab.power.power_on(lab.devices[0], seconds(ENOUGH))
    assert lab.is_on(0)


def test_two_devices_in_different_lanes_are_switched_at_the_same_time(lab, seconds):
    assert len({lab.power.lane(target) for target in lab.devices}) == 2
    problems: list[BaseException] = []

    def switch(target: Target) -> None:
        try:
            lab.power.power_cycle(target, seconds(ENOUGH))
            lab.power.power_off(target, seconds(ENOUGH))
        except BaseException as e:
            problems.append(e)

    threads = [threading.Thread(target=switch, args=(target,)) for target in lab.devices]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * ENOUGH)
    assert problems == []
    assert not lab.is_on(0)
    assert not lab.is_on(1)
    for target in lab.devices:
        lab.power.power_on(target, seconds(ENOUGH))


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("trouble", ["hang", "refuse", "garbage"])
def test_a_bad_peer_is_an_error_in_time_that_says_what_failed(lab, seconds, caplog, trouble, operation):
    power, target = lab.troubles[trouble]
    if operation == "is_on" and not lab.tells:
        pytest.skip("it asks nobody")
    patience = 0.5 if trouble == "hang" else ENOUGH
    began = time.monotonic()
    with pytest.raises(HardwareError) as caught:
        getattr(power, operation)(target, seconds(patience))
    assert time.monotonic() - began < patience + 10
    error = caught.value
    assert isinstance(error, LaneError) is lab.culprit
    word = {"power_cycle": "power cycle", "power_off": "power off", "power_on": "power on", "is_on": "power status"}
    assert str(error).startswith(f"{word[operation]} of panda-0001 failed: ")
    assert len(error.reason) > 10
    assert trouble != "refuse" or re.search("Connection refused|No such file", error.reason)
    assert trouble != "hang" or re.search(r"within 0\.5 s", error.reason)
    assert len(str(error)) < 500
    assert PASSWORD not in str(error) + repr(error) + power.lane(target) + repr(power) + caplog.text


@pytest.mark.parametrize("operation", ["power_cycle", "power_off", "power_on"])
def test_without_time_left_nothing_is_done(lab, seconds, operation):
    lab.power.power_on(lab.devices[0], seconds(ENOUGH))
    with pytest.raises(HardwareError):
        getattr(lab.power, operation)(lab.devices[0], seconds(0))
    assert lab.is_on(0)


def test_answers_that_come_one_byte_at_a_time_are_fine(lab, seconds):
    if "drip" not in lab.troubles:
        pytest.skip("its answers have one byte, or come from no network")
    power, target = lab.troubles["drip"]
    power.power_off(target, seconds(ENOUGH))
    assert not lab.is_on(0)
    power.power_on(target, seconds(ENOUGH))
    assert lab.is_on(0)


def test_options_that_make_no_sense_are_the_devices_own_fault(lab, seconds):
    for target in lab.nonsense:
        for ask in (
            lambda t=target: lab.power.lane(t),
            lambda t=target: lab.power.power_cycle(t, seconds(ENOUGH)),
            lambda t=target: lab.power.is_on(t, seconds(ENOUGH)),
        ):
            with pytest.raises(HardwareError, match=r"of panda-0001 failed: .*(option|relay)") as caught:
                ask()
            assert not isinstance(caught.value, LaneError)
            assert PASSWORD not in str(caught.value)


def test_a_lane_can_be_tested_and_a_strange_one_is_bad_input(lab, seconds):
    if not lab.culprit:
        pytest.skip("no lane of it is ever at fault")
    lab.power.test(lab.power.lane(lab.devices[0]), seconds(ENOUGH))
    for trouble in ("hang", "refuse", "garbage"):
        power, target = lab.troubles[trouble]
        lane = power.lane(target)
        with pytest.raises(LaneError) as caught:
            power.test(lane, seconds(0.5))
        assert lane in str(caught.value)
    for lane in ("", "strange", f"strange:{shlex.quote('a b')}"):
        with pytest.raises(BadInput):
            lab.power.test(lane, seconds(ENOUGH))


# Relay boards with every fault

DEVICES_OWN = {(FakeFault.WRONG_READ_BACK, operation) for operation in ("power_cycle", "power_off", "power_on")}
"""Where one relay is to blame, and not the whole board."""
NOT_NOTICED = {
    (FakeFault.WRONG_READ_BACK, "is_on"),
    (FakeFault.WRONG_READ_BACK, "test"),
    (FakeFault.HALF_ANSWER, "is_on"),
    (FakeFault.HALF_ANSWER, "test"),
}
"""Nothing is compared with what it reads, and a single command is answered."""


@pytest.mark.parametrize("commands", [65536, 1], ids=["whole commands", "single bytes"])
@pytest.mark.parametrize("operation", [*OPERATIONS, "test"])
@pytest.mark.parametrize("fault", list(FakeFault))
def test_every_fault_of_a_relay_board_is_an_error_in_time_that_says_who_is_to_blame(
    start, context, seconds, fault, operation, commands
):
    board = start(FakeRelayBoard(fault))
    port = board.port if commands > 1 else start(Dripping(board.port, commands=commands)).port
    power, target = ProXRPower(context), device(1, relay_info=f"127.0.0.1:{port}:bank2:relay3")
    subject = power.lane(target) if operation == "test" else target
    patience = 0.3 if fault in (FakeFault.HANG, FakeFault.HALF_ANSWER) else ENOUGH
    began = time.monotonic()
    if (fault, operation) in NOT_NOTICED:
        getattr(power, operation)(subject, seconds(ENOUGH))
        return
    with pytest.raises(HardwareError) as caught:
        getattr(power, operation)(subject, seconds(patience))
    assert time.monotonic() - began < patience + 5
    assert f"relay board 127.0.0.1:{port}" in str(caught.value)
    assert isinstance(caught.value, LaneError) is ((fault, operation) not in DEVICES_OWN)
    if (fault, operation) in DEVICES_OWN:
        assert "bank 2 relay 3 reads back" in caught.value.reason


@pytest.mark.parametrize("commands", [65536, 1], ids=["whole commands", "single bytes"])
def test_a_relay_board_that_is_mended_works_again(start, context, seconds, commands):
    board = start(FakeRelayBoard())
    port = board.port if commands > 1 else start(Dripping(board.port, commands=commands)).port
    power, target = ProXRPower(context), device(1, relay_info=f"127.0.0.1:{port}:bank2:relay3")
    for fault in FakeFault:
        board.do(board.board.set_fault(fault))
        with pytest.raises(HardwareError):
            power.power_cycle(target, seconds(0.3))
        board.do(board.board.set_fault(None))
        power.power_cycle(target, seconds(ENOUGH))
        assert board.has_power(2, 3)
