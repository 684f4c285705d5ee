# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""``relay``: switch a device's power on its relay board, by hand. On and off speak of the device, not of the relay."""

from __future__ import annotations

from collections.abc import Callable

import click

from mozpool import __version__
from mozpool.bmm.backends.proxr import Board, ProXRPower, RelayInfo
from mozpool.bmm.interfaces import BackendContext, Target
from mozpool.clock import Clock, Deadline
from mozpool.errors import BadInput, HardwareError

TOTAL = 60.0
"""Seconds after which a command gives up."""


def _board(ctx: click.Context, param: click.Parameter, value: str) -> Board:
    try:
        return Board.parse(value)
    except BadInput as e:
        raise click.BadParameter(e.message) from e


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="relay")
def main() -> None:
    """Switch the power of a device that hangs on a ProXR relay board.

    HOST[:PORT] is the board (port 2101 unless given), BANK is 1 to 4, RELAY is 1 to 8. Prints OK, or FAILED with the
    reason on standard error. Exit status: 0 done, 1 failed, 2 wrong usage. Gives up after 60 seconds.
    """


def _command(name: str) -> Callable[[Callable[[ProXRPower, Target, Deadline], str]], click.Command]:
    """Make a subcommand of a function that works on a relay and returns what to print."""

    def decorate(work: Callable[[ProXRPower, Target, Deadline], str]) -> click.Command:
        @main.command(name, help=work.__doc__)
        @click.argument("board", callback=_board, metavar="HOST[:PORT]")
        @click.argument("bank", type=click.IntRange(1, 4))
        @click.argument("relay", type=click.IntRange(1, 8))
        def run(board: Board, bank: int, relay: int) -> None:
            clock = Clock()
            info = str(RelayInfo(board, bank, relay))
            target = Target(name=info, address="", mac_address="", relay_info=info)
            try:
                answer = work(ProXRPower(BackendContext(clock, tftp_root=None)), target, Deadline(clock, TOTAL))
            except HardwareError as e:
                click.echo("FAILED")
                click.echo(e.message, err=True)
                raise click.exceptions.Exit(1) from e
            click.echo(answer)

        return run

    return decorate


@_command("powercycle")
def _powercycle(power: ProXRPower, target: Target, deadline: Deadline) -> str:
    """Cut the device's power for a second and restore it."""
    power.power_cycle(target, deadline)
    return "OK"


@_command("status")
def _status(power: ProXRPower, target: Target, deadline: Deadline) -> str:
    """Print whether the device has power: on or off."""
    return "on" if power.is_on(target, deadline) else "off"


@_command("turnon")
def _turnon(power: ProXRPower, target: Target, deadline: Deadline) -> str:
    """Give the device power."""
    power.power_on(target, deadline)
    return "OK"


@_command("turnoff")
def _turnoff(power: ProXRPower, target: Target, deadline: Deadline) -> str:
    """Take the device's power."""
    power.power_off(target, deadline)
    return "OK"


if __name__ == "__main__":
    main()
