# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What every Agent backend keeps to, each with the peer that it is made for."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from mozpool.bmm.backends.sut import SUTAgent
from mozpool.bmm.breakoff import BreakOff
from mozpool.bmm.cutoff import Cutoff
from mozpool.bmm.interfaces import Agent, CommandResult, Target
from mozpool.clock import Clock
from mozpool.config import BMM
from mozpool.errors import BadInput, HardwareError
from mozpool.fakes.adbd import AdbFault
from mozpool.fakes.sutagent import AgentFault
from mozpool.lease import Lease
from tests.contract.fake_peers import FakeAgent, LabAgent
from tests.contract.peers import PROMPT, SILENCE, AgentPeer
from tests.contract.real_peers import AdbDevice, Dripping

ENOUGH = 60.0
LEASE = 0.5
"""Seconds for which a server may act without a further sign of life."""
OUTPUT = "a  b it's\n"


@dataclass
class Lab:
    """A backend with two devices, and with peers that misbehave."""

    agent: Agent
    devices: tuple[Target, Target]
    reboots: Callable[[], int]
    """How often the first one was asked to."""
    left_behind: Callable[[], int]
    """How many files there are on the first one."""
    ran: Callable[[str], bool]
    """Whether the first one saw this piece of a command."""
    troubles: Mapping[str, tuple[Agent, Target]]
    """``hang``, ``refuse``, ``garbage``, ``read-only`` and ``drip``."""
    nonsense: tuple[Target, ...]
    uptime: Callable[[], float] = lambda: 321.5
    """Of the first one, in seconds."""
    refusal: str = "read-only file system"
    """What is said of the storage of ``read-only``."""


def device(**options: str) -> Target:
    return Target("panda-0001", "127.0.0.1", "aabbccddeeff", options=options)


def sut(request) -> Lab:
    start, context = request.getfixturevalue("start"), request.getfixturevalue("context")
    usual = {
        "info uptime": b"0 days 0 hours 5 minutes 21 seconds 500 ms\n" + PROMPT,
        "exec echo": OUTPUT.encode() + b"return code [0]\n" + PROMPT,
        "exec false": b"return code [1]\n" + PROMPT,
    }

    class Board(AgentPeer):
        def scripted(self, line: str) -> bytes | None:
            return super().scripted(" ".join(line.split(" ")[:2]))

    boards = [start(Board(usual)) for _ in range(2)]
    agent = SUTAgent(context)
    bad = {
        "hang": AgentPeer(greeting=SILENCE),
        "garbage": AgentPeer(greeting=b"\x00\xff 220 nonsense\r\n" + PROMPT),
        "read-only": AgentPeer({"push": b"##AGENT-WARNING## read-only file system\n" + PROMPT}),
        "drip": Board(usual, byte_by_byte=True),
    }
    ports = {name: start(peer).port for name, peer in bad.items()}
    ports["refuse"] = request.getfixturevalue("closed_port")
    return Lab(
        agent,
        (device(sut_port=str(boards[0].port)), device(sut_port=str(boards[1].port))),
        reboots=lambda: boards[0].received.count(b"rebt\r\n"),
        left_behind=lambda: len(boards[0].files),
        ran=lambda text: text.encode() in boards[0].received,
        troubles={name: (agent, device(sut_port=str(port))) for name, port in ports.items()},
        nonsense=(device(sut_port="0"), device(sut_port="x")),
    )


def simulated_sut(request) -> Lab:
    start, context = request.getfixturevalue("start"), request.getfixturevalue("context")
    agent = SUTAgent(context)
    boards = [start(FakeAgent()) for _ in range(2)]
    seen = start(Dripping(boards[0].port, answers=65536))
    bad = {"hang": AgentFault.HANG, "garbage": AgentFault.HALF_PROMPT, "read-only": AgentFault.WRONG_HASH}
    ports = {name: start(FakeAgent(fault)).port for name, fault in bad.items()}
    ports["refuse"] = request.getfixturevalue("closed_port")
    ports["drip"] = start(Dripping(boards[0].port, commands=1)).port
    return Lab(
        agent,
        (device(sut_port=str(seen.port)), device(sut_port=str(boards[1].port))),
        reboots=lambda: boards[0].reboots,
        left_behind=lambda: len(boards[0].storage.list("/mnt/sdcard")),
        ran=lambda text: text.encode() in seen.received,
        troubles={name: (agent, device(sut_port=str(port))) for name, port in ports.items()},
        nonsense=(device(sut_port="0"), device(sut_port="x")),
        refusal="where the hash of",
    )


def lab_sut(request) -> Lab:
    start, context = request.getfixturevalue("start"), request.getfixturevalue("context")
    tmp_path = request.getfixturevalue("tmp_path")
    agent = SUTAgent(context)
    boards = [start(LabAgent(tmp_path / f"board{number}")) for number in (1, 2)]
    seen = start(Dripping(boards[0].port, answers=65536))
    hanging = start(LabAgent(tmp_path / "hang"))
    hanging.process.send_signal(signal.SIGSTOP)  # the system still takes connections for it
    ports = {
        "hang": hanging.port,
        "garbage": start(LabAgent(tmp_path / "garbage", says_first="220 nonsense\\r\\n")).port,
        "read-only": start(LabAgent(tmp_path / "read-only", root=Path("/proc/self"))).port,
        "refuse": request.getfixturevalue("closed_port"),
        "drip": start(Dripping(boards[0].port, commands=1)).port,
    }
    return Lab(
        agent,
        (device(sut_port=str(seen.port)), device(sut_port=str(boards[1].port))),
        reboots=boards[0].reboots,
        left_behind=lambda: len(list(boards[0].root.iterdir())),
        ran=lambda text: text.encode() in seen.received,
        troubles={name: (agent, device(sut_port=str(port))) for name, port in ports.items()},
        nonsense=(device(sut_port="0"), device(sut_port="x")),
        uptime=lambda: float(Path("/proc/uptime").read_text().split()[0]),
        refusal="could not create the directory",
    )


def adb(request) -> Lab:
    start, context = request.getfixturevalue("start"), request.getfixturevalue("context")
    server = request.getfixturevalue("adb_server")
    from mozpool.bmm.backends.adb import AdbAgent

    def at(port: int) -> Agent:
        return AdbAgent(replace(context, settings=BMM(adb_server=f"127.0.0.1:{port}")))

    agent = at(server.port)
    boards = [start(AdbDevice()) for _ in range(2)]
    bad = {"hang": AdbFault.HANG, "garbage": AdbFault.GARBAGE, "read-only": AdbFault.READ_ONLY}
    troubles = {}
    for name, fault in bad.items():
        fake = start(AdbDevice())
        fake.daemon.fault = fault
        troubles[name] = (agent, device(serial=fake.serial))
    troubles["refuse"] = (agent, device(serial=f"127.0.0.1:{request.getfixturevalue('closed_port')}"))
    troubles["drip"] = (at(start(Dripping(server.port)).port), device(serial=boards[0].serial))
    return Lab(
        agent,
        (device(serial=boards[0].serial), device(serial=boards[1].serial)),
        reboots=lambda: boards[0].reboots,
        left_behind=lambda: len(boards[0].daemon.files),
        ran=lambda text: any(text in line for line in boards[0].daemon.commands),
        troubles=troubles,
        nonsense=(device(serial="-s x"), device(serial=""), Target("panda-0001", "a b", "aabbccddeeff")),
    )


LABS = {made.__name__: made for made in (sut, simulated_sut, lab_sut, adb)}

OPERATIONS = {
    "agent verification": lambda agent, target, deadline: agent.verify(target, deadline),
    "storage check": lambda agent, target, deadline: agent.check_storage(target, deadline),
    "reboot by agent": lambda agent, target, deadline: agent.reboot(target, deadline),
    "agent's uptime": lambda agent, target, deadline: agent.uptime(target, deadline),
    "command by agent": lambda agent, target, deadline: agent.run(target, ["true"], deadline),
}


@pytest.fixture(params=LABS)
def lab(request) -> Lab:
    return LABS[request.param](request)


def test_a_good_agent_is_verified(lab, seconds):
    lab.agent.verify(lab.devices[0], seconds(ENOUGH))


def test_the_storage_check_writes_and_leaves_nothing_behind(lab, seconds):
    lab.agent.check_storage(lab.devices[0], seconds(ENOUGH))
    assert lab.ran("mozpool-storage-check")
    assert lab.left_behind() == 0


def test_a_storage_that_cannot_be_written_is_an_error(lab, seconds):
    agent, target = lab.troubles["read-only"]
    with pytest.raises(HardwareError, match=f"(?i)^storage check of panda-0001 failed: .*{lab.refusal}"):
        agent.check_storage(target, seconds(ENOUGH))


def test_a_reboot_reaches_the_device(lab, seconds):
    lab.agent.reboot(lab.devices[0], seconds(ENOUGH))
    assert lab.reboots() == 1


def test_the_uptime_is_the_devices(lab, seconds):
    expected = lab.uptime()
    uptime = lab.agent.uptime(lab.devices[0], seconds(ENOUGH))
    assert uptime is not None
    assert expected - 0.1 <= uptime <= lab.uptime() + 0.1


def test_a_command_gives_its_output_and_code_and_is_not_split(lab, seconds):
    result = lab.agent.run(lab.devices[0], ["echo", "a  b", "it's"], seconds(ENOUGH))
    assert result == CommandResult(OUTPUT, 0)
    assert lab.ran("echo 'a  b' 'it'\"'\"'s'")
    assert lab.agent.run(lab.devices[0], ["false"], seconds(ENOUGH)).return_code == 1


@pytest.mark.parametrize("command", [[], [""], "ls", ["ls", "a\0b"], ["ls", "\ud800"]])
def test_what_is_no_command_is_bad_input(lab, seconds, command):
    with pytest.raises(BadInput) as caught:
        lab.agent.run(lab.devices[0], command, seconds(ENOUGH))
    assert caught.value.field == "command"


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("trouble", ["hang", "refuse", "garbage"])
def test_a_bad_agent_is_an_error_in_time_that_says_what_failed(lab, seconds, trouble, operation):
    agent, target = lab.troubles[trouble]
    began = time.monotonic()
    with pytest.raises(HardwareError) as caught:
        OPERATIONS[operation](agent, target, seconds(1.0))
    assert time.monotonic() - began < 15
    assert str(caught.value).startswith(f"{operation} of panda-0001 failed: ")
    assert len(caught.value.reason) > 10
    assert len(str(caught.value)) < 500


def test_answers_that_come_one_byte_at_a_time_are_fine(lab, seconds):
    agent, target = lab.troubles["drip"]
    agent.verify(target, seconds(ENOUGH))
    agent.check_storage(target, seconds(ENOUGH))
    assert agent.run(target, ["echo", "a  b", "it's"], seconds(ENOUGH)) == CommandResult(OUTPUT, 0)


@contextmanager
def renewed_lease() -> Iterator[Lease]:
    """A lease of half a second that a server in good health renews all the time."""
    cutoff, over = Cutoff(), threading.Event()
    lease = Lease(Clock(), 2 * LEASE, cutoff.after, cutoff.leash)

    def renew() -> None:
        while not over.wait(LEASE / 10):
            lease.renew(time.monotonic())

    lease.renew(time.monotonic())
    thread = threading.Thread(target=renew)
    thread.start()
    try:
        yield lease
    finally:
        over.set()
        thread.join(ENOUGH)
        cutoff.close()


def slow_sut(request) -> tuple[Agent, Target, list[str]]:
    board = request.getfixturevalue("start")(LabAgent(request.getfixturevalue("tmp_path") / "board"))
    return SUTAgent(request.getfixturevalue("context")), device(sut_port=str(board.port)), ["sleep", str(3 * LEASE)]


def slow_adb(request) -> tuple[Agent, Target, list[str]]:
    from mozpool.bmm.backends.adb import AdbAgent

    start, server = request.getfixturevalue("start"), request.getfixturevalue("adb_server")
    slow = start(Dripping(server.port, answers=65536, thinking=3 * LEASE))
    agent = AdbAgent(replace(request.getfixturevalue("context"), settings=BMM(adb_server=f"127.0.0.1:{slow.port}")))
    return agent, device(serial=start(AdbDevice()).serial), ["true"]


@pytest.mark.parametrize("slow", [slow_sut, slow_adb], ids=lambda made: made.__name__)
@pytest.mark.parametrize("by_a_holder", [False, True])
def test_a_command_may_take_longer_than_a_lease_that_is_renewed(request, slow, by_a_holder):
    agent, target, command = slow(request)
    with renewed_lease() as lease:
        deadline = lease.acting(target.name, "command", ENOUGH)
        began = time.monotonic()
        result = agent.run(target, command, BreakOff().deadline(deadline) if by_a_holder else deadline)
        assert result.return_code == 0
        assert time.monotonic() - began >= 3 * LEASE


@pytest.mark.parametrize("operation", OPERATIONS)
def test_options_that_make_no_sense_are_an_error_that_says_so(lab, seconds, operation):
    for target in lab.nonsense:
        with pytest.raises(HardwareError, match=f"^{operation} of panda-0001 failed: its (option|address)"):
            OPERATIONS[operation](lab.agent, target, seconds(ENOUGH))


def test_a_device_that_hangs_holds_up_no_other(lab, seconds):
    problems: list[HardwareError] = []
    began = threading.Event()

    def hang() -> None:
        agent, target = lab.troubles["hang"]
        began.set()
        try:
            agent.verify(target, seconds(3))
        except HardwareError as e:
            problems.append(e)

    thread = threading.Thread(target=hang)
    thread.start()
    try:
        assert began.wait(ENOUGH)
        for target in lab.devices:
            lab.agent.verify(target, seconds(ENOUGH))
            lab.agent.check_storage(target, seconds(ENOUGH))
    finally:
        thread.join(ENOUGH)
    assert len(problems) == 1


@pytest.mark.parametrize("commands", [65536, 1], ids=["whole commands", "single bytes"])
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("fault", list(AgentFault))
def test_every_fault_of_an_agent_is_an_error_in_time_that_says_who_is_to_blame(
    start, context, seconds, fault, operation, commands
):
    peer = start(FakeAgent(fault))
    port = peer.port if commands > 1 else start(Dripping(peer.port, commands=commands)).port
    agent, target = SUTAgent(context), device(sut_port=str(port))
    if fault is AgentFault.WRONG_HASH and operation != "storage check":
        OPERATIONS[operation](agent, target, seconds(ENOUGH))  # it hashes nothing
        return
    patience = ENOUGH if fault is AgentFault.WRONG_HASH else 0.4
    began = time.monotonic()
    with pytest.raises(HardwareError) as caught:
        OPERATIONS[operation](agent, target, seconds(patience))
    assert time.monotonic() - began < patience + 5
    assert str(caught.value).startswith(f"{operation} of panda-0001 failed: agent at 127.0.0.1:{port}: ")
