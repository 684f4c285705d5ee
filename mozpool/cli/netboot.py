# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""``mozpool-netboot``: network boot of this server's devices by dnsmasq."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import click
from sqlalchemy.exc import DBAPIError

from mozpool import __version__
from mozpool.bmm.netboot import dnsmasq, service, tftproot
from mozpool.bmm.netboot.boards import Addresses, Board, boards_of
from mozpool.bmm.netboot.service import NetbootService
from mozpool.cli.common import Commands, is_missing
from mozpool.cli.logs import configure_logging
from mozpool.clock import Clock
from mozpool.config import Settings, load
from mozpool.db import images
from mozpool.db.engine import Database, reason
from mozpool.errors import MozpoolError


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--config", type=click.Path(exists=True, dir_okay=False), help="Configuration file (config.ini).")
@click.version_option(__version__, prog_name="mozpool-netboot")
@click.pass_context
def main(ctx: click.Context, config: str | None) -> None:
    """Boot the devices of this imaging server from the network, by dnsmasq.

    [netboot] of the configuration says how: in the file of --config or $MOZPOOL_CONFIG, else in the first that exists
    of ./config.ini, config.ini in the checkout that runs, and /etc/mozpool/config.ini.

    The exit status is 0 on success, 1 when something failed or is missing, 2 when the command line was wrong.
    """
    ctx.obj = config


@main.command("config")
def show() -> None:
    """Print what dnsmasq is told: its configuration, and its list of hosts."""
    settings = load(click.get_current_context().obj)
    click.echo(dnsmasq.main_text(settings), nl=False)
    if dnsmasq.needs_boards(settings):
        hosts, left_out = _hosts(settings)
        click.echo(f"\n# dhcp-hostsfile\n{dnsmasq.hosts_text(hosts)}", nl=False)
        for line in left_out:
            click.echo(line, err=True)


@main.command()
def check() -> None:
    """Print what is missing for network boot, a line each.

    Looks at the settings, the programs, the TFTP tree, the interfaces and the devices, and has dnsmasq test what it
    would be told. Changes nothing. Ends with status 1 when anything is missing.
    """
    settings = load(click.get_current_context().obj)
    dnsmasq.check(settings)
    root = settings.paths.tftp_root
    assert root is not None
    problems = service.missing(settings) + tftproot.missing(root, settings.netboot.boot_loader)
    present = {name for _, name in socket.if_nameindex()}
    for name in settings.netboot.interfaces.split():
        if name not in present:
            problems.append(f"there is no network interface {name} ([netboot] interfaces)")
    if _left_to_daemon(settings) and not settings.netboot.run_dnsmasq:
        problems.append("[netboot] run_dnsmasq is false: in a group, dnsmasq is the daemon's ([server] group)")
    hosts: list[dnsmasq.Host] = []
    if dnsmasq.needs_boards(settings):
        try:
            hosts, left_out = _hosts(settings)
            problems += left_out
        except MozpoolError as error:
            problems.append(error.message)
    if not service.missing(settings) and (objections := service.objections(settings, hosts)):
        problems.append(objections)
    for problem in problems:
        click.echo(problem)
    if problems:
        raise click.ClickException("network boot is not complete.")
    known = f" {len(hosts)} devices." if dnsmasq.needs_boards(settings) else ""
    click.echo(f"Nothing is missing.{known}")


@main.command()
def prepare() -> None:
    """Fill the TFTP tree with the boot loader.

    Copies the files of Debian's packages that [netboot] boot_loader needs, and writes pxelinux.cfg/default, by which
    boards without a file of their own boot from their own storage. An existing default is left alone.
    """
    settings = load(click.get_current_context().obj)
    written = _prepare(settings)
    names = ", ".join(path.name for path in written)
    click.echo(f"Written to {settings.paths.tftp_root}: {names or 'nothing, it is complete'}.")


@main.command()
def run() -> None:
    """Run dnsmasq until SIGTERM or Ctrl-C.

    Prepares the TFTP tree, follows the devices in the database (a new one is known within some ten seconds), and
    starts dnsmasq again when it ends. It logs to standard error.
    """
    settings = load(click.get_current_context().obj)
    configure_logging(settings)
    if _left_to_daemon(settings):
        raise MozpoolError(
            f"this server is in the group {settings.server.group}, whose members boot each other's boards: only the "
            "daemon knows in time which ones. Set [netboot] run_dnsmasq = true, and run no mozpool-netboot"
        )
    _prepare(settings)
    absent = service.missing(settings)
    if absent or (objections := service.objections(settings)):
        raise MozpoolError("\n".join(absent) or str(objections))
    ending = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        ending.set()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    clock = Clock()
    with _boards(settings, clock) as boards:
        netboot = NetbootService(settings, boards, clock)
        netboot.start()
        try:
            clock.wait(ending, None)
        finally:
            netboot.stop()


def _left_to_daemon(settings: Settings) -> bool:
    """Whether only the daemon may run dnsmasq: it alone knows in time which boards another server boots by now."""
    return settings.server.group is not None and dnsmasq.needs_boards(settings)


def _prepare(settings: Settings) -> list[Path]:
    """Fill the TFTP tree; what was written. Raises MozpoolError."""
    dnsmasq.check(settings)
    assert settings.paths.tftp_root is not None
    return tftproot.prepare(settings.paths.tftp_root, settings.netboot.boot_loader)


def _hosts(settings: Settings) -> tuple[list[dnsmasq.Host], list[str]]:
    """The list of hosts as it is now, and who is left out. Raises MozpoolError."""
    clock = Clock()
    with _boards(settings, clock) as boards:
        found = boards()
    addresses = Addresses(clock).of(board.address for board in found) if settings.netboot.mode == "dhcp" else {}
    return dnsmasq.hosts(settings, found, addresses)


@contextmanager
def _boards(settings: Settings, clock: Clock) -> Iterator[Callable[[], Sequence[Board]]]:
    """What reads the boards of this imaging server from the database; it raises MozpoolError."""
    database = Database.of(settings.database, clock=clock)

    def read() -> Sequence[Board]:
        if is_missing(database):
            raise MozpoolError(f"{database.name} does not exist: make it with `mozpool-db create-schema`")
        try:
            with database.read() as conn:
                server_id = images.imaging_server_id(conn, settings.server.fqdn)
            if server_id is None:
                name = settings.server.fqdn
                raise MozpoolError(f"{database.name} knows no imaging server {name}: start mozpool-server once")
            return boards_of(database, server_id)
        except DBAPIError as error:
            raise MozpoolError(f"{database.name} refuses: {reason(error)}") from error

    try:
        yield read
    finally:
        database.dispose()


if __name__ == "__main__":
    main()
