# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""``mozpool-server``: the daemon of one imaging server."""

from __future__ import annotations

import logging
import logging.handlers
import os
import re
import signal
import socket
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import FrameType

import click

from mozpool import __version__
from mozpool.cli.logs import configure_logging
from mozpool.cli.sentry import report_errors
from mozpool.clock import Clock
from mozpool.config import Settings, host_and_port, is_loopback, load
from mozpool.daemon import Daemon
from mozpool.db import schema
from mozpool.db.engine import Database
from mozpool.errors import MozpoolError
from mozpool.notify.outbox import try_out
from mozpool.notify.webhook import NotTaken
from mozpool.watchdog import exit_now
from mozpool.web.app import create_app
from mozpool.web.http import make_server

log = logging.getLogger("mozpool")


STARTS_LIMIT = 130.0
"""Seconds that runs of hyperexecute get to end: somewhat more than each may take."""


def _port(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    if value is None:
        return None
    if not re.fullmatch(r"\d{1,5}", value, re.ASCII) or not 1 <= int(value) <= 65535:
        raise click.BadParameter(f"{value!r} is not a port, 1 to 65535; a configuration file is named by --config FILE")
    return int(value)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("port", callback=_port, required=False)
@click.option("--config", type=click.Path(exists=True, dir_okay=False), help="Configuration file (config.ini).")
@click.option("--test-notify", metavar="NAME", help="Tell [notify NAME] that this is a test, and end.")
@click.version_option(__version__, prog_name="mozpool-server")
def main(port: int | None, config: str | None, test_notify: str | None) -> None:
    """Serve a pool of devices: the HTTP API, the web pages and the drivers of this imaging server.

    PORT replaces the configured one.

    The configuration is the file of --config or $MOZPOOL_CONFIG, else the first that exists of ./config.ini,
    config.ini in the checkout that runs, and /etc/mozpool/config.ini; without any, the defaults hold.
    """
    try:
        settings = load(config)
        if test_notify is not None:
            _try_out(settings, test_notify)
            return
        if port is not None:
            settings = _with_port(settings, port)
        configure_logging(settings)
        serve(settings)
    except MozpoolError as error:
        click.echo(f"mozpool-server: {error.message}", err=True)
        sys.exit(1)
    except OSError as error:
        click.echo(f"mozpool-server: {error}", err=True)
        sys.exit(1)


def _try_out(settings: Settings, name: str) -> None:
    """Tell a configured target that this is a test. Raises MozpoolError; exits when there is no such target."""
    if name not in settings.targets:
        known = ", ".join(sorted(settings.targets)) or "none"
        click.echo(f"mozpool-server: --test-notify: there is no [notify {name}]; there are: {known}", err=True)
        sys.exit(2)
    try:
        click.echo(f"{name}: {try_out(settings, name, Clock().now())}")
    except NotTaken as error:
        raise MozpoolError(f"{name} was not told: {error}") from error


class _End:
    """Ends the server at a signal: at once, or, where jobs are being started, as soon as these starts are over.

    The third signal ends the process whatever goes on in it.
    """

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._ending = threading.Event()
        self._signals = 0
        self._starts_over = False

    def listen(self) -> None:
        """React to signals from now on."""
        numbers = [signal.SIGTERM, signal.SIGINT]
        if self._daemon.launcher is not None:
            numbers.append(signal.SIGUSR2)
        for number in numbers:
            signal.signal(number, self._came)

    def begin(self) -> None:
        """The server ends: further signals change nothing but the third."""
        self._ending.set()

    def _came(self, number: int, frame: FrameType | None) -> None:
        if self._daemon.launcher is not None and not self._starts_over:
            self._signals += 1
            if self._signals == 1:
                log.info("nothing more is started; runs of hyperexecute may end (a third signal ends this at once)")
                self._daemon.launcher.stop_starting()
                threading.Thread(target=self._let_starts_end, name="ending", daemon=True).start()
            elif self._signals >= 3:
                log.warning("ends at once")
                exit_now()
            return
        if not self._ending.is_set():
            self._ending.set()
            # Raises out of the server's loop, in this same thread.
            raise SystemExit(0)

    def _let_starts_end(self) -> None:
        try:
            self._daemon.bmm.finish(STARTS_LIMIT)
        finally:
            self._starts_over = True
            os.kill(os.getpid(), signal.SIGTERM)


def serve(settings: Settings, *, dry: bool = False) -> None:
    """Run until a signal ends it. Raises MozpoolError when it cannot start, OSError when the port is taken.

    ``dry``: no job is started on hosted devices; the launcher says what it would start.
    """
    report_errors(settings)
    if (danger := openness(settings)) is not None:
        log.warning("%s", danger)
    _check_port(settings.server.listen, settings.server.port)
    _prepare_database(settings)
    daemon = Daemon(settings, dry=dry)
    app = create_app(daemon.services)
    server = make_server(app, settings.server, daemon.services.clock)
    end = _End(daemon)
    end.listen()
    try:
        daemon.start()
        log.info("listening on %s/", settings.server.listen_url)
        server.run()
    except SystemExit:
        pass
    finally:
        end.begin()
        daemon.mozpool.changes.stop()
        server.close()
        daemon.stop()


def openness(settings: Settings) -> str | None:
    """What to warn of where everybody may do everything, and not on this machine alone; None elsewhere."""
    if settings.auth_mode != "open":
        return None
    server = settings.server
    advice = "elsewhere than in a trusted network, set it to token or oidc"
    if not is_loopback(server.listen):
        return (
            f"[auth] mode is open: whoever reaches {server.listen_url} may do everything, such as cut power; {advice}"
        )
    name = server.fqdn.rpartition(":")[0] or server.fqdn
    if settings.auth.mode is None and not is_loopback(name.strip("[]")):
        return (
            f"[auth] mode is not set, and so open: whoever reaches this server as {server.fqdn}, through a proxy, may "
            f"do everything, such as cut power; {advice}"
        )
    return None


def _with_port(settings: Settings, port: int) -> Settings:
    """Listen on another port; a name that carries the configured port moves along."""
    server = settings.server
    host, colon, named_port = server.fqdn.rpartition(":")
    fqdn = f"{host}:{port}" if colon and named_port == str(server.port) else server.fqdn
    return replace(settings, server=replace(server, port=port, fqdn=fqdn))


def _prepare_database(settings: Settings) -> None:
    """See that the schema is today's; an SQLite pool that does not exist yet is created.

    Raises MozpoolError that says what to run.
    """
    database = Database.of(settings.database, clock=Clock())
    try:
        if database.dialect == "sqlite" and not Path(str(database.url.database)).exists():
            schema.create(database)
        revision = schema.current(database)
        if revision != schema.head() and schema.serves(revision):
            log.warning(
                "%s is of a newer Mozpool (revision %s), beside which this one may run", database.name, revision
            )
        elif revision != schema.head():
            found = "has no tables of this version" if revision is None else f"is at revision {revision}"
            raise MozpoolError(
                f"{database.name} {found}: run `mozpool-db upgrade` (or `mozpool-db create-schema` if it is empty)"
            )
    finally:
        database.dispose()


def _check_port(host: str, port: int) -> None:
    """Fail before anything is started when the port is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise OSError(f"cannot listen on {host_and_port(host, port)}: {error.strerror}") from error


if __name__ == "__main__":
    main()
