# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""``scripts/lab``: a rack of virtual boards with a running Mozpool, for a person to play with."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType
from typing import NoReturn

import click

from mozpool.client import ClientError
from tests.lab.guest import GuestError
from tests.lab.rack import RELAYS, Builds, Rack, missing


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Virtual boards that really boot from the network, and a Mozpool that installs and lends them."""


@main.command()
@click.argument("boards", metavar="N", type=click.IntRange(1, RELAYS), default=2)
@click.option("--user", is_flag=True, help="Use QEMU's own network, also as root.")
@click.option(
    "--logs",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep consoles and logs in this directory.  [default: they go at the end]",
)
def up(boards: int, user: bool, logs: Path | None) -> None:
    """Start N boards (2) and a Mozpool that serves them, and stop everything at Ctrl-C.

    The boards are new: each one tests itself before it is lent. As root, they share a network of their own, which
    nothing outside can see; else each has QEMU's own one.
    """
    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, _stop)
    packages = missing()
    if packages:
        raise click.ClickException(f"the lab needs more Debian packages: apt-get install {' '.join(packages)}")
    try:
        with tempfile.TemporaryDirectory(prefix="mozpool-lab-builds-") as name:
            directory = Path(name)
            _up(boards, user, directory, (logs or directory / "logs").absolute())
    except GuestError as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        click.echo("\nStopped.")


def _up(boards: int, user: bool, directory: Path, logs: Path) -> None:
    key = directory / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True, timeout=60)
    click.echo("Building the live image, a disk image and two builds of tarballs")
    builds = Builds.build(directory, key.with_suffix(".pub"))
    click.echo("Starting Mozpool")
    with Rack(boards, builds, logs, user=user, state="new") as rack:
        _tell(rack, key)
        _follow(rack)


def _tell(rack: Rack, key: Path) -> None:
    """Say what there is and what can be tried."""
    mozpool = f"{Path(sys.executable).with_name('mozpool')} --server {rack.url}"
    raw = " ".join(f"--boot-config {name}={shlex.quote(value)}" for name, value in rack.boot_config("raw").items())
    (_, b2g), *_ = rack.boot_config("b2g").items()
    click.echo(
        f"""
Mozpool serves {", ".join(rack.names)} at {rack.url}/
Consoles and logs are in {rack.logs}. In another terminal:

  {mozpool} devices
  {mozpool} request raw {raw} --duration 30m
  {mozpool} request b2g --boot-config b2gbase={b2g} --duration 30m
  {mozpool} request maintenance --duration 30m
  {shlex.join(rack.ssh("board1", key))}    # then, as root on the board
  {mozpool} return REQUEST
  tail -f {rack.boards["board1"].console}
  kill -9 PID    # of a board, below: it dies, and Mozpool has to notice

Ctrl-C ends everything.
"""
    )


def _follow(rack: Rack) -> NoReturn:
    """Print each change of a device or a request, until Ctrl-C."""
    seen: dict[str, str] = {}
    while True:
        try:
            now = {device.name: device.state for device in rack.client.devices()}
            for request in rack.client.requests(include_closed=True):
                board = f" ({request.assigned_device})" if request.assigned_device else ""
                now[f"request {request.id}"] = f"{request.state}{board}"
        except ClientError as error:
            now = {"Mozpool": str(error)}
        for name, state in now.items():
            if seen.get(name) != state:
                board_pid = rack.boards[name].pid if name in rack.boards else None
                process = f"  [process {board_pid}]" if board_pid else ""
                click.echo(f"{time.strftime('%H:%M:%S')}  {name:<12} {state}{process}")
        seen |= now
        time.sleep(0.5)


def _stop(signum: int, frame: FrameType | None) -> NoReturn:
    """End as Ctrl-C does."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    os.umask(0o022)  # boards' files are served by other users
    main(prog_name="scripts/lab")
