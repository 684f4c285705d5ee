# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The adb backends: the real adb server with fake devices, which come, go and misbehave."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import pytest

from mozpool.bmm.interfaces import CommandResult, Target
from mozpool.config import BMM
from mozpool.errors import BadInput, HardwareError
from mozpool.fakes.adbd import AdbFault
from tests.contract.real_peers import Dripping, Lost

adb = pytest.importorskip(
    "mozpool.bmm.backends.adb", reason="adbutils is not installed (pip install 'mozpool[adb]')", exc_type=ImportError
)

ENOUGH = 60.0


def device(serial: str, **options: str) -> Target:
    return Target("panda-0001", "127.0.0.1", "aabbccddeeff", options={"serial": serial, **options})


@pytest.fixture
def settings(adb_server, context):
    return replace(context, settings=BMM(adb_server=f"127.0.0.1:{adb_server.port}"))


@pytest.fixture
def agent(settings):
    return adb.AdbAgent(settings)


@pytest.fixture
def probe(settings):
    return adb.AdbProbe(settings)


def eventually_answers(probe, target, seconds) -> bool:
    return any(probe.ping(target, seconds(ENOUGH)) for _ in range(20))


# Coming and going


def test_a_device_is_connected_when_it_is_needed(agent, adb_device, seconds):
    agent.verify(device(adb_device.serial), seconds(ENOUGH))
    assert len(adb_device.daemon.commands) == 2
    assert adb_device.daemon.commands[1] == "getprop ro.build.fingerprint"


def test_a_board_that_could_not_be_reached_is_reached_within_a_second(start, agent, adb_device, seconds):
    """The system would repeat the adb server's first packet after 1, 3, 7 and 15 seconds; newer ones after 7 and 11."""
    front = start(Lost(adb_device.daemon.port))
    timer = threading.Timer(7.3, front.let_in)
    timer.start()
    began = time.monotonic()
    agent.verify(device(f"127.0.0.1:{front.port}"), seconds(ENOUGH))
    assert 7.3 <= time.monotonic() - began < 10.3
    timer.join()


def test_a_board_that_takes_its_time_to_agree_is_online_all_the_same(start, agent, adb_device, seconds):
    """The first attempt to connect is given up after a second; what the server makes of it counts."""
    front = start(Dripping(adb_device.daemon.port, answers=65536, thinking=2.5))
    agent.verify(device(f"127.0.0.1:{front.port}"), seconds(ENOUGH))


def test_a_board_that_cannot_be_reached_is_given_up_at_the_deadline(start, agent, adb_device, seconds):
    front = start(Lost(adb_device.daemon.port))
    began = time.monotonic()
    with pytest.raises(HardwareError, match=r"no answer within 1\.5 s"):
        agent.verify(device(f"127.0.0.1:{front.port}"), seconds(2))
    assert time.monotonic() - began < 5


def test_without_a_serial_a_device_is_at_its_address(agent, seconds):
    target = Target("panda-0001", "127.0.0.3", "aabbccddeeff")
    with pytest.raises(HardwareError, match=r"127\.0\.0\.3:5555 by adb server"):
        agent.verify(target, seconds(ENOUGH))


def test_a_device_that_was_away_is_found_again(agent, probe, adb_device, seconds):
    target = device(adb_device.serial)
    agent.verify(target, seconds(ENOUGH))
    adb_device.stop()
    assert probe.ping(target, seconds(ENOUGH)) is False
    with pytest.raises(HardwareError, match=r"it is not there|connection"):
        agent.verify(target, seconds(ENOUGH))
    adb_device.start()
    assert eventually_answers(probe, target, seconds)
    agent.verify(target, seconds(ENOUGH))


def test_a_device_that_lost_its_power_is_not_believed_to_be_online(agent, probe, adb_device, seconds):
    target = device(adb_device.serial)
    agent.verify(target, seconds(ENOUGH))
    adb_device.daemon.fault = AdbFault.HANG  # the server has a connection, and nobody is at its other end
    assert probe.ping(target, seconds(ENOUGH)) is False
    adb_device.daemon.fault = None
    assert eventually_answers(probe, target, seconds)


def test_a_rebooting_device_is_connected_anew(agent, adb_device, seconds):
    target = device(adb_device.serial)
    agent.reboot(target, seconds(ENOUGH))
    assert adb_device.reboots == 1
    agent.verify(target, seconds(ENOUGH))


def test_a_serial_that_nobody_has_is_an_error(agent, seconds):
    with pytest.raises(HardwareError, match=r"0123456789ABCDEF by adb server .*: it is not there"):
        agent.verify(device("0123456789ABCDEF"), seconds(ENOUGH))


def test_no_server_is_started_where_there_is_none(agent, context, closed_port, seconds, tmp_path, monkeypatch):
    (tmp_path / "adb").write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    (tmp_path / "adb").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    nobody = adb.AdbAgent(replace(context, settings=BMM(adb_server=f"127.0.0.1:{closed_port}")))
    with pytest.raises(HardwareError, match=rf"adb server 127.0.0.1:{closed_port}: no connection: Connection refused"):
        nobody.verify(device("x"), seconds(ENOUGH))
    assert not (tmp_path / "started").exists()


# Verification


def test_a_device_that_is_no_android_fails_its_verification(agent, adb_device, seconds):
    adb_device.daemon.properties.clear()
    with pytest.raises(HardwareError, match=r"it tells no ro\.build\.fingerprint"):
        agent.verify(device(adb_device.serial), seconds(ENOUGH))


def test_a_device_that_babbles_is_given_up(agent, adb_device, seconds):
    adb_device.daemon.fault = AdbFault.BABBLE
    with pytest.raises(HardwareError, match="sent more than 4194304 bytes"):
        agent.verify(device(adb_device.serial), seconds(ENOUGH))


# Storage


def test_a_storage_that_forgets_is_an_error_and_nothing_is_left(agent, adb_device, seconds):
    adb_device.daemon.fault = AdbFault.FORGETFUL
    with pytest.raises(HardwareError, match=r"storage check of panda-0001 failed: .* was written"):
        agent.check_storage(device(adb_device.serial), seconds(ENOUGH))
    assert adb_device.daemon.files == {}


def test_the_storage_can_be_somewhere_else(agent, adb_device, seconds):
    agent.check_storage(device(adb_device.serial, adb_storage="/sdcard/"), seconds(ENOUGH))
    assert "rm /sdcard/mozpool-storage-check" in adb_device.daemon.commands
    for path in ("", "sdcard", "/sd card", "/x;reboot", "/x\n"):
        with pytest.raises(HardwareError, match="its option adb_storage"):
            agent.check_storage(device(adb_device.serial, adb_storage=path), seconds(ENOUGH))


# Uptime and commands


def test_an_uptime_that_cannot_be_read_is_none(agent, adb_device, seconds):
    adb_device.daemon.uptime = lambda: float("nan")
    assert agent.uptime(device(adb_device.serial), seconds(ENOUGH)) is None


@pytest.mark.parametrize("fault", [None, AdbFault.NO_RETURN_CODES])
def test_return_codes_come_from_old_and_new_devices(agent, adb_device, seconds, fault):
    adb_device.daemon.fault = fault
    target = device(adb_device.serial)
    assert agent.run(target, ["echo", "a;  b", "$?"], seconds(ENOUGH)).return_code == 0
    assert agent.run(target, ["false"], seconds(ENOUGH)) == CommandResult("", 1)
    assert agent.run(target, ["nope"], seconds(ENOUGH)) == CommandResult("sh: nope: not found\n", 127)


def test_a_long_output_comes_whole(agent, adb_device, seconds):
    text = "x" * 50_000
    assert agent.run(device(adb_device.serial), ["echo", text], seconds(ENOUGH)) == CommandResult(f"{text}\n", 0)


def test_a_command_that_is_too_long_is_bad_input(agent, adb_device, seconds):
    with pytest.raises(BadInput, match="at most 60000 bytes"):
        agent.run(device(adb_device.serial), ["echo", "x" * 60_000], seconds(ENOUGH))
    assert adb_device.daemon.commands == []


def test_a_command_may_take_until_the_deadline_and_no_longer(agent, adb_device, seconds):
    agent.verify(device(adb_device.serial), seconds(ENOUGH))
    adb_device.daemon.fault = AdbFault.HANG
    began = time.monotonic()
    with pytest.raises(HardwareError, match="no answer within"):
        agent.run(device(adb_device.serial), ["true"], seconds(1.0))
    assert time.monotonic() - began < 10
