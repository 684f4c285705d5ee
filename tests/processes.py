# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""For tests that start programs."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from click.testing import CliRunner

from mozpool.cli.db import main


def free_port() -> int:
    """A port on which nobody listens at the moment, nor has a connection, on any address.

    Not only of 127.0.0.1: a program that listens on all addresses is refused a port that a connection of 127.0.0.7 had
    half a minute ago.
    """
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port


def mozpool_db(environment: Mapping[str, str], *arguments: str) -> None:
    """Run ``mozpool-db`` within this process: one of its own would load all of Mozpool for each command."""
    done = CliRunner().invoke(main, arguments, env=environment)
    assert done.exit_code == 0, done.output


def end(process: subprocess.Popen[bytes], seconds: float = 20.0) -> None:
    """Ask a program to end and, if it has not within so many seconds, kill it."""
    process.terminate()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def needs(what: str | None) -> None:
    """Skip the test when something is missing, said in words; where everything has to be there, it fails."""
    if what and os.environ.get("CI") == "true":
        pytest.fail(what)
    if what:
        pytest.skip(what)


def default_signals() -> None:
    """For a child before it starts: what started the tests may ignore signals that it is to be tried with."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def children(pid: int) -> list[int]:
    """Ids of the processes that a process has started and that still are."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == pid:
                found.append(int(entry.name))
    return found


def runs(pid: int) -> bool:
    """Whether a process is there and has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
