# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The ``relay`` command against a board that speaks real bytes."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest
from click.testing import CliRunner

from mozpool import __version__
from mozpool.cli.relay import main
from tests.contract.peers import RelayBoard, RelayFault


def run(*arguments: str):
    return CliRunner().invoke(main, arguments)


@pytest.fixture
def board():
    with RelayBoard() as board:
        yield board


@pytest.fixture
def address(board):
    return f"127.0.0.1:{board.port}"


def test_turnoff_takes_the_devices_power_and_turnon_gives_it_back(board, address):
    result = run("turnoff", address, "2", "3")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "OK\n", "")
    assert board.relays == {(2, 3): True}
    result = run("turnon", address, "2", "3")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "OK\n", "")
    assert board.relays == {(2, 3): False}


def test_status_speaks_of_the_devices_power(board, address):
    board.relays[1, 1] = True
    assert run("status", address, "1", "1").stdout == "off\n"
    assert run("status", address, "1", "2").stdout == "on\n"


def test_powercycle_cuts_and_restores_the_power(board, address):
    result = run("powercycle", address, "4", "8")
    assert (result.exit_code, result.stdout) == (0, "OK\n")
    assert board.received == bytes([254, 115, 4, 254, 123, 4, 254, 107, 4, 254, 123, 4])


@pytest.mark.parametrize("command", ["powercycle", "status", "turnon", "turnoff"])
def test_a_bad_board_makes_it_fail_with_the_reason_on_standard_error(board, address, command):
    board.fault = RelayFault.CLOSES_AT_ONCE
    result = run(command, address, "1", "1")
    assert (result.exit_code, result.stdout) == (1, "FAILED\n")
    assert f"relay board {address}" in result.stderr


def test_a_relay_that_does_not_follow_makes_it_fail(board, address):
    board.fault = RelayFault.STUCK
    result = run("turnoff", address, "1", "1")
    assert (result.exit_code, result.stdout) == (1, "FAILED\n")
    assert "reads back on after it was switched off" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("blink", "127.0.0.1", "1", "1"),
        ("status",),
        ("status", "127.0.0.1", "1"),
        ("status", "127.0.0.1", "1", "1", "1"),
        ("status", "127.0.0.1", "0", "1"),
        ("status", "127.0.0.1", "5", "1"),
        ("status", "127.0.0.1", "1", "0"),
        ("status", "127.0.0.1", "1", "9"),
        ("status", "127.0.0.1", "one", "1"),
        ("status", "127.0.0.1:0", "1", "1"),
        ("status", "127.0.0.1:x", "1", "1"),
        ("status", "not a host", "1", "1"),
        ("status", "", "1", "1"),
    ],
)
def test_wrong_usage_ends_with_status_2_and_touches_nothing(board, arguments):
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Usage:" in result.stderr
    assert "FAILED\n" not in result.output
    assert board.connections == []


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_it_explains_itself(option):
    result = run(option)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "powercycle" in result.stdout


def test_it_tells_its_version():
    assert run("--version").stdout == f"relay, version {__version__}\n"


def test_it_runs_as_a_program():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    done = subprocess.run(
        [sys.executable, "-m", "mozpool.cli.relay", "status", f"127.0.0.1:{port}", "1", "1"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "FAILED\n")
    assert "Connection refused" in done.stderr
