# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""``relay``: switch a device's power on its relay board, by hand. On and off speak of the device, not of the relay."""

from __future__ import annotations

import socket
from collections.abc import Callable
from functools import cache

import click
from sqlalchemy.exc import DBAPIError

from mozpool import __version__, config
from mozpool.bmm.backends.proxr import Board, ProXRPower, RelayInfo
from mozpool.bmm.interfaces import BackendContext, Target
from mozpool.cli.common import is_missing
from mozpool.clock import Clock, Deadline
from mozpool.db import relay_boards, requests
from mozpool.db.devices import Device
from mozpool.db.engine import Database, reason
from mozpool.errors import BadInput, HardwareError, MozpoolError

TOTAL = 60.0
"""Seconds after which a command gives up."""

LOOK = 3.0
"""Seconds that looking into the database may take: whoever switches by hand may do so because it is away."""


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

    Neither a server nor a database is needed. Where a database is configured it is looked into for at most 3 seconds,
    and a warning on standard error names the device on the relay and who has it.
    """


class _Look:
    """Looks up what Mozpool has on a relay, in a thread of its own: its end is not waited for."""

    def __init__(self, clock: Clock, info: RelayInfo, config_file: str | None) -> None:
        self._clock = clock
        self._info = info
        self._config_file = config_file
        self._found: list[str] = []
        self._done = clock.event()

    def lines(self) -> list[str]:
        """What to say on standard error: a line for each device, or why nothing can be said."""
        self._clock.start_thread(self._work, "look")
        if self._clock.wait(self._done, LOOK):
            return self._found
        return [_unknown(f"the database did not answer within {LOOK:g} s")]

    def _work(self) -> None:
        try:
            self._found = self._look()
        except DBAPIError as error:
            self._found = [_unknown(reason(error))]
        except (MozpoolError, OSError) as error:
            self._found = [_unknown(str(error))]
        finally:
            self._done.set()

    def _look(self) -> list[str]:
        settings = config.load(self._config_file)
        database = Database.of(settings.database, clock=self._clock)
        try:
            if is_missing(database):
                return []
            with database.read() as conn:
                on_it = [row for row in relay_boards.on_relay(conn, self._info.bank, self._info.relay) if self._is(row)]
                holders = {row[0]: row[1] for row in requests.holders(conn, [row.id for row in on_it])}
        finally:
            database.dispose()
        return [
            f"Warning: {row.name} hangs on this relay; "
            f"{f'it is lent to {holders[row.id]}' if row.id in holders else 'nobody has it'}, and it is in state "
            f"{row.state}."
            for row in on_it
        ]

    def _is(self, row: Device) -> bool:
        """Whether a device with the same bank and relay number hangs on the same board.

        A name without a domain may be any host of that first label; different names may have the same address.
        """
        try:
            board = RelayInfo.parse(row.relay_info or "").board
        except BadInput:
            return False
        mine = self._info.board
        if board.port != mine.port:
            return False
        short = "." not in board.host or "." not in mine.host
        if board.host == mine.host or (short and board.host.split(".")[0] == mine.host.split(".")[0]):
            return True
        return bool(_addresses(mine.host) & _addresses(board.host))


@cache
def _addresses(host: str) -> frozenset[str]:
    """The addresses of a host; none when it is not known."""
    try:
        return frozenset(str(found[4][0]) for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM))
    except (OSError, UnicodeError):
        return frozenset()


def _unknown(why: str) -> str:
    return f"Note: whether Mozpool has a device on this relay is not known: {' '.join(why.split())}"


def _command(name: str) -> Callable[[Callable[[ProXRPower, Target, Deadline], str]], click.Command]:
    """Make a subcommand of a function that works on a relay and returns what to print."""

    def decorate(work: Callable[[ProXRPower, Target, Deadline], str]) -> click.Command:
        @main.command(name, help=work.__doc__)
        @click.argument("board", callback=_board, metavar="HOST[:PORT]")
        @click.argument("bank", type=click.IntRange(1, 4))
        @click.argument("relay", type=click.IntRange(1, 8))
        @click.option(
            "--config",
            "config_file",
            type=click.Path(exists=True, dir_okay=False),
            help="Mozpool's configuration file, which names the database to look into.",
        )
        @click.option("--no-database", is_flag=True, help="Do not look whether Mozpool has a device on this relay.")
        def run(board: Board, bank: int, relay: int, config_file: str | None, no_database: bool) -> None:
            clock = Clock()
            relay_info = RelayInfo(board, bank, relay)
            if not no_database:
                for line in _Look(clock, relay_info, config_file).lines():
                    click.echo(line, err=True)
            info = str(relay_info)
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
