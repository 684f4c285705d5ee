# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Connections and programs end in time, whatever becomes of the process that opened or started them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mozpool.bmm.cutoff import Cutoff
from tests.processes import children, end, runs

FOR_EVER = 60.0

CLIENT = """
import socket, sys, time
from mozpool.bmm.cutoff import Cutoff
cutoff = Cutoff()
connection = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
with cutoff.after(connection, float(sys.argv[2])):
    connection.sendall(b"on")
    try:
        while True:
            time.sleep(0.05)
            connection.sendall(b"x" if len(sys.argv) > 3 else b"")
    except OSError as error:
        print(type(error).__name__, flush=True)
cutoff.close()
"""

PARENT = """
import subprocess, sys, time
from mozpool.bmm.cutoff import Cutoff
cutoff = Cutoff()
program = subprocess.Popen(["sleep", "60"])
with cutoff.leash(program) as go_on:
    go_on(1.0)
    print(program.pid, flush=True)
    while True:
        time.sleep(0.1)
        go_on(1.0)
"""


@pytest.fixture
def program() -> Iterator[subprocess.Popen[bytes]]:
    """Something that runs for a long time."""
    process = subprocess.Popen(["sleep", str(FOR_EVER)])
    yield process
    end(process)


@pytest.fixture
def board() -> Iterator[socket.socket]:
    """Where a relay board would listen."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)
        yield listener


@pytest.fixture
def cutoff() -> Iterator[Cutoff]:
    made = Cutoff()
    yield made
    made.close()


def seconds_until_end(connection: socket.socket) -> float:
    """How long it takes until the peer's end of a connection is over."""
    begun = time.monotonic()
    connection.settimeout(20)
    while connection.recv(1024):
        pass
    return time.monotonic() - begun


def client(board: socket.socket, seconds: float, *more: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", CLIENT, str(board.getsockname()[1]), str(seconds), *more],
        stdout=subprocess.PIPE,
    )


def test_a_connection_that_is_done_with_is_closed_at_once(board: socket.socket, cutoff: Cutoff) -> None:
    for _ in range(3):
        with socket.create_connection(board.getsockname()) as ours:
            there, _ = board.accept()
            with there:
                with cutoff.after(ours, FOR_EVER):
                    ours.sendall(b"on")
                    assert there.recv(2) == b"on"
                assert seconds_until_end(there) < 5


def test_one_that_takes_too_long_is_shut_down(board: socket.socket, cutoff: Cutoff) -> None:
    with socket.create_connection(board.getsockname()) as ours, socket.create_connection(board.getsockname()) as other:
        there, _ = board.accept()
        beside, _ = board.accept()
        with there, beside, cutoff.after(ours, 0.3), cutoff.after(other, FOR_EVER):
            assert 0.1 < seconds_until_end(there) < 5
            with pytest.raises(OSError, match="Broken pipe"):
                ours.sendall(b"on")
            other.sendall(b"on")
            assert beside.recv(2) == b"on"


def test_that_of_a_frozen_process_ends_and_what_it_writes_afterwards_reaches_nobody(board: socket.socket) -> None:
    process = client(board, 1.0, "writes")
    try:
        there, _ = board.accept()
        with there:
            assert there.recv(2) == b"on"
            os.kill(process.pid, signal.SIGSTOP)
            assert seconds_until_end(there) < 10
        os.kill(process.pid, signal.SIGCONT)
        assert process.communicate(timeout=20)[0].strip() in (b"BrokenPipeError", b"ConnectionResetError")
    finally:
        end(process)


def test_that_of_a_killed_process_ends_and_nobody_is_left(board: socket.socket) -> None:
    process = client(board, FOR_EVER)
    try:
        there, _ = board.accept()
        with there:
            assert there.recv(2) == b"on"
            watchers = children(process.pid)
            assert len(watchers) == 1
            process.kill()
            assert seconds_until_end(there) < 10
        give_up = time.monotonic() + 10
        while Path(f"/proc/{watchers[0]}").exists() and time.monotonic() < give_up:
            time.sleep(0.02)
        assert not Path(f"/proc/{watchers[0]}").exists()
    finally:
        process.communicate(timeout=20)


def test_who_watches_is_started_again(board: socket.socket, cutoff: Cutoff) -> None:
    with socket.create_connection(board.getsockname()) as first, cutoff.after(first, FOR_EVER):
        pass
    assert cutoff._process is not None
    cutoff._process.kill()
    cutoff._process.wait()
    with socket.create_connection(board.getsockname()) as ours:
        board.accept()[0].close()
        there, _ = board.accept()
        with there, cutoff.after(ours, 0.3):
            assert seconds_until_end(there) < 5


def test_without_anybody_who_watches_the_connection_works(
    board: socket.socket, cutoff: Cutoff, caplog: pytest.LogCaptureFixture
) -> None:
    cutoff.close()
    with socket.create_connection(board.getsockname()) as ours:
        there, _ = board.accept()
        with there:
            with cutoff.after(ours, FOR_EVER):
                ours.sendall(b"on")
                assert there.recv(2) == b"on"
            assert seconds_until_end(there) < 5
    assert "a connection may stay open for too long" in caplog.text


def test_a_program_that_is_not_told_to_go_on_is_killed(program: subprocess.Popen[bytes], cutoff: Cutoff) -> None:
    with cutoff.leash(program) as go_on:
        begun = time.monotonic()
        for _ in range(10):
            go_on(1.0)
            time.sleep(0.1)
        assert program.wait(10) == -signal.SIGKILL
        assert time.monotonic() - begun > 1.8
        go_on(1.0)  # too late, and no harm


def test_one_whose_leash_is_off_runs_on(program: subprocess.Popen[bytes], cutoff: Cutoff) -> None:
    with cutoff.leash(program) as go_on:
        go_on(0.5)
    with pytest.raises(subprocess.TimeoutExpired):
        program.wait(1.5)


def test_a_program_whose_leash_was_never_short_runs_without_anybody_who_watches(
    program: subprocess.Popen[bytes], cutoff: Cutoff
) -> None:
    with cutoff.leash(program):
        pass
    assert cutoff._process is None
    assert program.poll() is None


@pytest.mark.parametrize("signum", [signal.SIGSTOP, signal.SIGKILL])
def test_the_program_of_a_process_that_is_frozen_or_killed_ends(signum: signal.Signals) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE)
    try:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        time.sleep(1.5)
        assert runs(pid)
        parent.send_signal(signum)
        give_up = time.monotonic() + 10
        while runs(pid) and time.monotonic() < give_up:
            time.sleep(0.02)
        assert not runs(pid)
    finally:
        parent.kill()
        parent.communicate(timeout=20)


def test_who_watches_over_a_program_is_started_again(program: subprocess.Popen[bytes], cutoff: Cutoff) -> None:
    with cutoff.leash(program) as go_on:
        go_on(FOR_EVER)
        assert cutoff._process is not None
        cutoff._process.kill()
        cutoff._process.wait()
        go_on(0.3)
        assert program.wait(10) == -signal.SIGKILL


def test_without_anybody_who_watches_the_program_runs(
    program: subprocess.Popen[bytes], cutoff: Cutoff, caplog: pytest.LogCaptureFixture
) -> None:
    cutoff.close()
    with cutoff.leash(program) as go_on:
        go_on(FOR_EVER)
    assert program.poll() is None
    assert "a program would go on if this server were frozen: this server stops" in caplog.text


SWITCH = """
import sys, time
from mozpool.bmm.backends.command import CommandPower
from mozpool.bmm.cutoff import Cutoff
from mozpool.bmm.interfaces import BackendContext, Target
from mozpool.clock import Clock
from mozpool.lease import Lease
clock, cutoff = Clock(), Cutoff()
lease = Lease(clock, 4.0, cutoff.after, cutoff.leash)
lease.renew(clock.monotonic())
program = ("sh", "-c", "echo begins >> $1; sleep 4; echo switched >> $1", "sh", sys.argv[1])
power = CommandPower(BackendContext(clock, None, commands={"slow.off": program, "slow.on": program}))
device = Target("device1", "127.0.0.1", "000000000000", None, None, None, {"command": "slow"})
power.power_off(device, lease.acting("device1", "power off", 1.5))
"""


UNWATCHED = """
import os, subprocess, sys
from mozpool.bmm import program
command = ["sh", "-c", "echo begins > $1", "sh", sys.argv[1]]
waiting = program.start(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
print(waiting.pid, flush=True)
sys.stdin.read()
"""


def test_a_program_that_nobody_watches_over_yet_does_nothing_when_its_parent_dies(tmp_path: Path) -> None:
    said = tmp_path / "said"
    parent = subprocess.Popen(
        [sys.executable, "-c", UNWATCHED, str(said)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        time.sleep(0.5)
        assert runs(pid)
        parent.kill()
        give_up = time.monotonic() + 10
        while runs(pid) and time.monotonic() < give_up:
            time.sleep(0.02)
        assert not runs(pid)
        assert not said.exists()
    finally:
        parent.kill()
        parent.communicate(timeout=20)


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_a_program_that_switches_power_ends_with_the_lease_of_a_server_that_hangs_or_dies(
    number: int, tmp_path: Path
) -> None:
    """A slow one must not cut the power when the device is another server's by then."""
    said = tmp_path / "said"
    process = subprocess.Popen([sys.executable, "-c", SWITCH, str(said)], stderr=subprocess.DEVNULL)
    try:
        give_up = time.monotonic() + 20
        while not said.exists() and time.monotonic() < give_up:
            time.sleep(0.02)
        assert said.read_text() == "begins\n"
        os.kill(process.pid, number)
        time.sleep(6)
        assert said.read_text() == "begins\n"
    finally:
        process.kill()
        process.wait()
