# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""A whole rack: starting, stopping, size, its own process, and the backends that speak with it."""

from __future__ import annotations

import asyncio
import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner

from mozpool import config
from mozpool.bmm.backends.proxr import ProXRPower
from mozpool.bmm.backends.sut import SUTAgent
from mozpool.bmm.interfaces import BackendContext, Target
from mozpool.clock import Clock, Deadline
from mozpool.errors import BadInput, HardwareError, LaneError
from mozpool.fakes.__main__ import command
from mozpool.fakes.board import Behaviour, BoardSpec
from mozpool.fakes.echo import ECHO_PORT, EchoProbe
from mozpool.fakes.net import FakesError
from mozpool.fakes.rack import Rack
from mozpool.fakes.relayboard import RelayFault
from mozpool.fakes.sutagent import COMMAND_PORT, AgentFault
from tests.unit.fakes_support import (
    BOARD,
    FAST,
    PATIENCE,
    PORT,
    RELAYS,
    ImagingServer,
    address,
    connect,
    cut,
    eventually,
    rack_of,
    relay,
    spec,
    until_prompt,
    write_pxe,
)

CHECKOUT = Path(__file__).parents[2]


def fakes_threads():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("mozpool-fakes")]


def test_it_stops_as_often_as_it_is_told_and_leaves_nothing_behind():
    rack = rack_of(spec(1, PORT))
    rack.stop()
    rack.start()
    with connect(address(1), COMMAND_PORT) as agent, connect(RELAYS, PORT) as board:
        until_prompt(agent)
        relay(board, 254, 33)
        rack.stop()
        assert cut(agent)
        assert cut(board)
    rack.stop()
    assert fakes_threads() == []
    for where in [(address(1), COMMAND_PORT), (RELAYS, PORT)]:
        with pytest.raises(ConnectionRefusedError):
            connect(*where)


def test_another_rack_can_follow_at_once():
    for _ in range(3):
        with rack_of(spec(1, PORT)), connect(address(1), COMMAND_PORT) as agent, connect(RELAYS, PORT) as board:
            until_prompt(agent)
            relay(board, 254, 33)


def test_it_is_used_once():
    rack = rack_of(spec())
    with rack, pytest.raises(RuntimeError):
        rack.start()
    with pytest.raises(RuntimeError):
        rack.start()


def test_it_stops_while_boards_are_busy():
    server = ImagingServer()
    behaviour = Behaviour.reliable(speed=1)
    with rack_of(*[spec(n) for n in range(1, 21)], server_url=server.url, behaviour=behaviour) as rack:
        for board in rack.boards.values():
            rack.set_power(board.name, False)
            rack.set_power(board.name, True)
        assert all(board.busy for board in rack.boards.values())
    server.close()
    assert fakes_threads() == []


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_a_port_that_is_taken_is_named_and_nothing_stays_open(kind):
    port = COMMAND_PORT if kind == socket.SOCK_STREAM else ECHO_PORT
    with socket.socket(socket.AF_INET, kind) as squatter:
        squatter.bind((address(2), port))
        with pytest.raises(FakesError) as caught:
            rack_of(spec(1), spec(2), spec(3)).start()
    assert f"of board-2 can't listen on {address(2)}:{port}" in str(caught.value)
    assert "address already in use" in str(caught.value)
    assert fakes_threads() == []
    with pytest.raises(ConnectionRefusedError):
        connect(address(1), COMMAND_PORT)
    with rack_of(spec(1), spec(2), spec(3)):
        pass


def test_a_relay_boards_port_that_is_taken_is_named():
    with (
        socket.create_server((RELAYS, PORT)),
        pytest.raises(FakesError, match=f"the fake relay board can't listen on {BOARD}"),
    ):
        rack_of(spec(1, PORT)).start()


def test_an_address_that_is_not_ours_is_named():
    with pytest.raises(FakesError, match=r"192\.0\.2\.1:"):
        rack_of(spec(address="192.0.2.1")).start()


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"name": "board-1"}, "2 boards have the name board-1"),
        ({"address": address(1)}, "2 boards have the address"),
        ({"mac_address": "020000000001"}, "2 boards have the mac_address"),
        ({"relay_info": f"{BOARD}:bank1:relay1"}, "hang on the same relay"),
    ],
)
def test_descriptions_that_contradict_each_other_are_refused(second, message):
    with pytest.raises(FakesError, match=message):
        rack_of(spec(1, PORT), spec(2, PORT, **second))


def test_a_relay_that_cannot_be_is_refused():
    with pytest.raises(BadInput, match="relay_info"):
        rack_of(spec(relay_info="127.0.0.1:bank9:relay1"))


def test_a_board_without_a_relay_always_has_power():
    with rack_of(spec()) as rack:
        assert rack.relay_boards == {}
        assert rack.boards["board-1"].powered


def test_boards_on_several_relay_boards_are_switched_each_by_its_own():
    other = BoardSpec("other", address(2), "020000000002", f"{RELAYS}:{PORT + 1}:bank1:relay1", image="b2g")
    with rack_of(spec(1, PORT), other) as rack:
        assert set(rack.relay_boards) == {BOARD, f"{RELAYS}:{PORT + 1}"}
        with connect(RELAYS, PORT + 1) as board:
            relay(board, 254, 108, 1)
        assert rack.boards["board-1"].powered
        assert not rack.boards["other"].powered


def test_behaviour_can_change_while_it_runs():
    with rack_of(spec(1), spec(2)) as rack:
        slow = Behaviour(speed=3)
        rack.set_behaviour(slow)
        assert {board.behaviour for board in rack.boards.values()} == {slow}


def test_faults_need_a_running_rack():
    with pytest.raises(RuntimeError, match="not running"):
        rack_of(spec(1, PORT)).set_relay_fault(BOARD, RelayFault.HANG)


def test_it_raises_the_limit_of_open_files():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
    try:
        with rack_of(spec()):
            assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == min(1028, before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.slow
def test_a_thousand_boards_start_soon_idle_for_nothing_and_stop_clean():
    process = os.getpid()
    net = f"127.{192 + (process >> 8) % 32}"
    boards = [
        BoardSpec(
            name=f"panda-{n:04}",
            address=f"{net}.{process % 64 * 4 + n // 250}.{n % 250 + 1}",
            mac_address=f"{n:012x}",
            relay_info=f"{RELAYS}:{PORT + n // 14}:bank{n % 14 // 8 + 1}:relay{n % 14 % 8 + 1}",
            image="b2g",
        )
        for n in range(1000)
    ]
    clock = Clock()
    begin = clock.monotonic()
    with Rack(boards, "http://127.0.0.1:9", None, FAST, random.Random(1)) as rack:
        assert clock.monotonic() - begin < 5
        assert len(fakes_threads()) == 1
        assert len(rack.relay_boards) == 72
        used = cpu_seconds()
        threading.Event().wait(0.5)
        assert cpu_seconds() - used < 0.05
        for board in boards[::100]:
            with connect(board.address, COMMAND_PORT) as agent:
                until_prompt(agent)
        for name in rack.boards:
            for on in (False, True):
                rack.set_power(name, on)
        eventually(lambda: all(board.history[-1].what == "up" for board in rack.boards.values()))
        begin = clock.monotonic()
    assert clock.monotonic() - begin < 5
    assert fakes_threads() == []


def cpu_seconds():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


# The backends that will use it, against it.


@pytest.fixture
def context():
    return BackendContext(clock=Clock(), tftp_root=None, speed=FAST.speed)


def target():
    return Target("board-1", address(1), "020000000001", relay_info=f"{BOARD}:bank1:relay1")


def limit(seconds=PATIENCE):
    return Deadline(Clock(), seconds)


def test_the_real_backends_cycle_ping_and_verify_a_board(context):
    power, agent, probe = ProXRPower(context), SUTAgent(context), EchoProbe(context)
    with rack_of(spec(1, PORT)) as rack:
        device, board = target(), rack.boards["board-1"]
        power.test(power.lane(device), limit())
        assert power.is_on(device, limit())
        agent.verify(device, limit())
        agent.check_storage(device, limit())
        uptime = agent.uptime(device, limit())
        assert uptime is not None and 0 <= uptime < 60
        assert agent.run(device, ["echo", "it's", "a b"], limit()).output.strip() == "it's a b"
        assert agent.run(device, ["false"], limit()).return_code == 1
        power.power_off(device, limit())
        assert not power.is_on(device, limit())
        assert not probe.ping(device, limit())
        with pytest.raises(HardwareError):
            agent.verify(device, limit())
        power.power_cycle(device, limit())
        eventually(lambda: board.agent.listening)
        assert probe.ping(device, limit())
        agent.reboot(device, limit())
        eventually(lambda: "rebooting" in [entry.what for entry in board.history] and board.agent.listening)
        agent.verify(device, limit())
    assert fakes_threads() == []


def test_the_real_backends_notice_faults(context):
    power, agent = ProXRPower(context), SUTAgent(context)
    with rack_of(spec(1, PORT)) as rack:
        device = target()
        for fault in RelayFault:
            rack.set_relay_fault(BOARD, fault)
            error = HardwareError if fault is RelayFault.WRONG_READ_BACK else LaneError
            with pytest.raises(error, match="board-1"):
                power.power_cycle(device, limit(0.3))
            rack.set_relay_fault(BOARD, None)
            power.power_cycle(device, limit())
        eventually(lambda: rack.boards["board-1"].agent.listening)
        for agent_fault in (AgentFault.HALF_PROMPT, AgentFault.HANG):
            rack.boards["board-1"].agent.fault = agent_fault
            with pytest.raises(HardwareError):
                agent.verify(device, limit(0.2))
        rack.boards["board-1"].agent.fault = AgentFault.WRONG_HASH
        with pytest.raises(HardwareError):
            agent.check_storage(device, limit())


# In a process of its own.


def write_specs(path, *boards):
    path.write_text(
        json.dumps(
            [
                {
                    "name": b.name,
                    "address": b.address,
                    "mac_address": b.mac_address,
                    "relay_info": b.relay_info,
                    "image": b.image,
                }
                for b in boards
            ]
        )
    )
    return path


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_runs_in_a_process_of_its_own_and_reports_at_the_end(tmp_path, number):
    server = ImagingServer()
    board = spec(1, PORT)
    pxe = write_pxe(tmp_path, board, server.imaging_url("b2g-second-stage.sh"))
    server.on_event = lambda event: pxe.unlink(missing_ok=True)
    specs = write_specs(tmp_path / "boards.json", board)
    report = tmp_path / "report.json"
    options = ["--specs", specs, "--tftp-root", tmp_path, "--report", report, "--speed", "1000", "--seed", "3"]
    process = subprocess.Popen(
        [sys.executable, "-m", "mozpool.fakes", "--reliable", *options], stdout=subprocess.PIPE, text=True, cwd=CHECKOUT
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "1 boards on 1 relay boards are up\n"
        with connect(RELAYS, PORT) as relays:
            relay(relays, 254, 108, 1)
            relay(relays, 254, 100, 1)
        assert server.next_events(5)[-1] == "b2g_rebooting"
        process.send_signal(number)
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        server.close()
    told = json.loads(report.read_text())
    assert told["boards"]["board-1"]["image"] == "b2g"
    assert "installed" in [entry[1] for entry in told["boards"]["board-1"]["history"]]
    assert [entry[4] for entry in told["relay_boards"][BOARD]][:3] == ["connect", "on", "off"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "which boards? Use --specs"),
        (["--config", "/nowhere/at/all"], "/nowhere/at/all"),
        (["--specs", "/nowhere/at/all"], "No such file"),
        (["--specs", "SPECS", "--speed", "0"], "speed: 0.0 is not a positive number"),
    ],
)
def test_it_says_what_is_wrong_with_its_arguments(tmp_path, arguments, message):
    specs = str(write_specs(tmp_path / "boards.json"))
    result = CliRunner().invoke(command(), [specs if word == "SPECS" else word for word in arguments])
    assert result.exit_code != 0
    assert message in result.output


@pytest.mark.parametrize("text", ["{", "{}", '[{"name": "x"}]'])
def test_it_refuses_boards_that_make_no_sense(tmp_path, text):
    path = tmp_path / "boards.json"
    path.write_text(text)
    result = CliRunner().invoke(command(), ["--specs", str(path)])
    assert result.exit_code == 1
    assert result.output.startswith("Error: ")


def test_the_boards_can_come_from_a_configuration(tmp_path):
    file = tmp_path / "config.ini"
    file.write_text("[testing]\nspeed = 20\nseed = 7\n")
    asked = []

    def load(settings):
        asked.append((settings.testing.speed, settings.testing.seed, settings.paths.tftp_root))
        raise FakesError("no devices there")

    options = ["--config", str(file), "--seed", "8", "--tftp-root", str(tmp_path)]
    result = CliRunner().invoke(command(load), options)
    assert (result.output, asked) == ("Error: no devices there\n", [(20, 8, tmp_path)])


def test_a_configuration_describes_a_lab(tmp_path):
    testing = config.Testing(speed=20, seed=3, fake_extract_failure=0.5, fake_selftest_failure=0.25)
    settings = config.Settings(
        testing=testing,
        server=config.Server(listen="0.0.0.0", port=8123),
        paths=config.Paths(tftp_root=tmp_path),
    )
    rack = Rack.from_settings(settings, [spec()])
    board = rack.boards["board-1"]
    assert board.behaviour == Behaviour(speed=20, extraction_failure=0.5, self_test_failure=0.25)
    assert board._server_url == "http://127.0.0.1:8123"
    write_pxe(tmp_path, board.spec, "append quiet")
    assert asyncio.run(board._surroundings.read_pxe_file()) == "append quiet"
    again = Rack.from_settings(settings, [spec()]).boards["board-1"]
    assert board._fate.random() == again._fate.random()
