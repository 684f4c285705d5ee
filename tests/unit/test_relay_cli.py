# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The ``relay`` command against a board that speaks real bytes."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest
from click.testing import CliRunner

from mozpool import __version__, config, resources
from mozpool.bmm.backends.proxr import RelayInfo
from mozpool.cli.relay import _Look, main
from mozpool.clock import Clock
from tests.contract.peers import RelayBoard, RelayFault
from tests.factories import device

pytestmark = pytest.mark.usefixtures("nowhere")


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


# --- What Mozpool has on a relay ---


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """Neither a configuration nor a database."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(config, "SYSTEM_FILE", tmp_path / "none.ini")
    monkeypatch.setattr(resources, "CHECKOUT", None)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.delenv("MOZPOOL_CONFIG", raising=False)
    return tmp_path


@pytest.fixture
def lent(imaging_server, address, tmp_path):
    """Options for the database of a server whose device1, which is lent, hangs on bank 2 relay 3, device2 on 2 4."""
    imaging_server.change("device1", relay_info=f"{address}:bank2:relay3")
    imaging_server.change("device2", relay_info=f"{address}:bank2:relay4")
    imaging_server.change("device3", relay_info="127.0.0.1:1:bank2:relay3")
    imaging_server.made("device1", assignee="x@example.com")
    url = imaging_server.daemon.database.url.render_as_string(hide_password=False)
    (tmp_path / "config.ini").write_text(f"[database]\nengine = {url}\n")
    return ("--config", str(tmp_path / "config.ini"))


def test_a_relay_of_a_device_that_is_lent_is_warned_of_and_switched(board, address, lent):
    result = run("turnoff", address, "2", "3", *lent)
    assert (result.exit_code, result.stdout) == (0, "OK\n")
    assert "Warning: device1 hangs on this relay; it is lent to x@example.com, and it is in state" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert board.relays == {(2, 3): True}


def test_a_relay_of_a_device_that_nobody_has_is_warned_of_too(board, address, lent):
    result = run("status", address, "2", "4", *lent)
    assert result.stdout == "on\n"
    assert result.stderr == "Warning: device2 hangs on this relay; nobody has it, and it is in state ready.\n"


def test_other_relays_and_other_boards_are_none_of_mozpools(board, address, lent):
    assert run("status", address, "1", "3", *lent).stderr == ""
    assert "device3" not in run("status", address, "2", "3", *lent).stderr


def test_nobody_looks_when_told_not_to(board, address, lent):
    assert run("status", address, "2", "3", "--no-database", *lent).stderr == ""


def test_a_name_without_its_domain_is_known(sqlite_url, tmp_path):
    info = RelayInfo.parse("Relay-7:bank1:relay1")
    look = _Look(Clock(), info, None)
    for named, same in (("relay-7.example.com", True), ("relay-7", True), ("relay-77.example.com", False)):
        assert look._is(device(relay_info=f"{named}:bank1:relay1")) is same
    assert look._is(device(relay_info="relay-7:2102:bank1:relay1")) is False
    assert look._is(device(relay_info=None)) is False


def test_another_name_of_the_same_board_is_known(board, address, lent):
    port = address.rpartition(":")[2]
    assert "device2 hangs on this relay" in run("status", f"localhost:{port}", "2", "4", *lent).stderr
    look = _Look(Clock(), RelayInfo.parse("127.0.0.1:bank1:relay1"), None)
    assert look._is(device(relay_info="localhost:bank1:relay1")) is True
    assert look._is(device(relay_info="127.0.0.2:bank1:relay1")) is False
    assert look._is(device(relay_info="no-such-board.invalid:bank1:relay1")) is False


def test_without_configuration_and_database_it_works_and_says_nothing(board, address, nowhere):
    result = run("status", address, "1", "1")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "on\n", "")
    assert list(nowhere.iterdir()) == []


def test_a_database_that_does_not_answer_is_not_waited_for(board, address, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        (tmp_path / "config.ini").write_text(f"[database]\nengine = mysql://me:s3cret@127.0.0.1:{port}/mozpool\n")
        result = run("turnoff", address, "1", "1", "--config", str(tmp_path / "config.ini"))
    assert (result.exit_code, result.stdout) == (0, "OK\n")
    assert result.stderr.startswith("Note: whether Mozpool has a device on this relay is not known: the database")
    assert "s3cret" not in result.stderr


@pytest.mark.parametrize("text", ["[database]\nengine = sqlite:///config.ini\n", "[nix]\n"])
def test_a_bad_configuration_or_database_does_not_hold_it_up(board, address, nowhere, text):
    (nowhere / "config.ini").write_text(text)
    result = run("turnoff", address, "1", "1")
    assert (result.exit_code, result.stdout) == (0, "OK\n")
    assert result.stderr.startswith("Note: whether Mozpool has a device on this relay is not known: ")
    assert len(result.stderr.splitlines()) == 1


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
