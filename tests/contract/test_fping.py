# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The fping backend: with the real program on loopback, and with stand-ins for what it can end with."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace

import pytest

from mozpool.bmm.backends.fping import FpingProbe
from mozpool.bmm.interfaces import Target
from mozpool.config import BMM
from mozpool.errors import HardwareError

real = pytest.mark.skipif(shutil.which("fping") is None, reason="fping is not installed (Debian package fping)")


def device(address: str) -> Target:
    return Target("panda-0001", address, "aabbccddeeff")


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Put a program called fping on PATH; returns the file into which it writes its arguments, one a line."""

    def make(script: str):
        arguments = tmp_path / "arguments"
        program = tmp_path / "fping"
        program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {arguments}\n{script}\n')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        return arguments

    return make


@real
@pytest.mark.parametrize("address", ["127.0.0.1", "localhost"])
def test_it_reaches_this_machine(context, seconds, address):
    assert FpingProbe(context).ping(device(address), seconds(5)) is True


@real
def test_an_address_that_does_not_answer_is_false_after_half_a_second(context, seconds):
    began = time.monotonic()
    # An address of the deprecated IPv4-compatible range: nothing leaves the machine.
    assert FpingProbe(context).ping(device("::2"), seconds(5)) is False
    assert time.monotonic() - began < 3


@real
def test_a_name_that_is_not_known_is_an_error(context, seconds):
    # Two dots in a row: no name server is asked.
    with pytest.raises(HardwareError, match=r"ping of panda-0001 failed: the name is not known: .*a\.\.b"):
        FpingProbe(context).ping(device("a..b"), seconds(5))


def test_it_asks_once_and_an_address_is_never_an_option(context, seconds, stand_in):
    arguments = stand_in("exit 0")
    assert FpingProbe(context).ping(device("-f/etc/passwd; reboot"), seconds(5)) is True
    assert arguments.read_text().splitlines() == ["-q", "-r", "0", "-t", "500", "--", "-f/etc/passwd; reboot"]


@pytest.mark.parametrize(("code", "answer"), [(0, True), (1, False)])
def test_the_exit_code_tells_whether_the_device_answered(context, seconds, stand_in, code, answer):
    stand_in(f"exit {code}")
    assert FpingProbe(context).ping(device("127.0.0.1"), seconds(5)) is answer


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (2, "the name is not known"),
        (3, "fping does not know its arguments"),
        (4, "fping could not send"),
        (77, "fping ended with status 77"),
    ],
)
def test_other_exit_codes_are_errors_with_fpings_own_words(context, seconds, stand_in, code, reason):
    stand_in(f"echo its own words >&2; exit {code}")
    with pytest.raises(HardwareError, match=f"ping of panda-0001 failed: {reason}: its own words"):
        FpingProbe(context).ping(device("127.0.0.1"), seconds(5))


def test_a_hanging_fping_is_ended_at_the_deadline(context, seconds, stand_in):
    stand_in("exec /bin/sleep 30")
    began = time.monotonic()
    with pytest.raises(HardwareError, match=r"fping was not done within 0.3 s"):
        FpingProbe(context).ping(device("127.0.0.1"), seconds(0.3))
    assert time.monotonic() - began < 5


def test_it_waits_for_the_device_no_longer_than_the_deadline(context, seconds, stand_in):
    arguments = stand_in("exit 1")
    FpingProbe(context).ping(device("127.0.0.1"), seconds(0.6))
    assert 0 < int(arguments.read_text().splitlines()[4]) < 500


def test_a_missing_program_names_its_debian_package(context, seconds, tmp_path, stand_in):
    stand_in("exit 0")
    vanishing = FpingProbe(context)
    (tmp_path / "fping").unlink()
    for probe in (vanishing, FpingProbe(context)):
        with pytest.raises(HardwareError, match="Debian package fping"):
            probe.ping(device("127.0.0.1"), seconds(1))


def test_the_program_is_the_configured_one(context, seconds, tmp_path, stand_in):
    arguments = stand_in("exit 0")
    (tmp_path / "fping").rename(tmp_path / "fping6")
    for program in ("fping6", str(tmp_path / "fping6")):
        assert FpingProbe(replace(context, settings=BMM(fping=program))).ping(device("127.0.0.1"), seconds(5)) is True
        assert arguments.read_text().splitlines()[-1] == "127.0.0.1"
        arguments.unlink()
    nowhere = FpingProbe(replace(context, settings=BMM(fping="/nowhere/fping")))
    with pytest.raises(HardwareError, match=r"the program /nowhere/fping cannot be run \(Debian package fping\)"):
        nowhere.ping(device("127.0.0.1"), seconds(1))


def test_an_address_that_no_program_can_take_is_an_error(context, seconds, stand_in):
    stand_in("exit 0")
    with pytest.raises(HardwareError, match="cannot run fping"):
        FpingProbe(context).ping(device("127.0.0.1\0"), seconds(1))
