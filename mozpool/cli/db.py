# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The command ``mozpool-db``: makes, upgrades, checks and fills the database that the configuration names."""

from __future__ import annotations

import random
import runpy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click
from sqlalchemy.exc import DBAPIError

from mozpool import __version__, config, resources
from mozpool.cli import newdevice
from mozpool.clock import Clock
from mozpool.db import schema
from mozpool.db.engine import Database, reason
from mozpool.errors import BadInput, MozpoolError

F = TypeVar("F", bound=Callable[..., Any])

_PASS_ON = {"ignore_unknown_options": True, "allow_interspersed_args": False}


class _Commands(click.Group):
    """Errors that are meant for a person end the command with one sentence and status 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except MozpoolError as error:
            raise click.ClickException(error.message) from error
        except OSError as error:
            raise click.ClickException(f"{error.filename or 'a file'}: {error.strerror}") from error


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--config", "config_file", type=click.Path(exists=True, dir_okay=False), help="Configuration file (config.ini)."
)
@click.version_option(__version__, prog_name="mozpool-db")
@click.pass_context
def main(ctx: click.Context, config_file: str | None) -> None:
    """Make, upgrade, check and fill Mozpool's database.

    It is the one that [database] engine in the configuration says: in the file of --config or $MOZPOOL_CONFIG, else in
    the first that exists of ./config.ini, config.ini in the checkout that runs, and /etc/mozpool/config.ini.

    The exit status is 0 on success, 1 when something failed, 2 when the command line was wrong.
    """
    ctx.obj = config_file


@main.command("create-schema")
def create_schema() -> None:
    """Make all tables in an empty database.

    Refuses when Mozpool's tables are there. The database itself must exist on a MySQL server; an SQLite file is made.
    """
    with _database(must_exist=False) as (_settings, database):
        schema.create(database)
        click.echo(f"Made {database.name}, revision {schema.head()}.")


@main.command()
def upgrade() -> None:
    """Bring the database up to date, from 4.2.1 or later.

    No row, name or claim is lost. Stop the servers and make a backup first. An upgrade that was interrupted goes on
    when it is started again; a database that is up to date is left alone.

    At the newest revision, procedures, log partitions and indexes that differ are made again. What else differs is
    printed, a line each, and left to you: the exit status is 1 then.
    """
    with _database(must_exist=True) as (_settings, database):
        done, now = schema.upgrade(database), schema.head()
        for difference in done.repaired:
            click.echo(f"Repaired: {difference}.")
        for difference in done.differs:
            click.echo(difference)
        if done.before != now:
            click.echo(f"Upgraded {database.name} from revision {done.before or 'none'} to {now}.")
        if done.differs:
            raise click.ClickException(f"{database.name} differs in what can't be repaired without the risk of a loss.")
        if done.before == now:
            what = "Nothing else" if done.repaired else "Nothing"
            click.echo(f"{what} to do: {database.name} is at revision {now}.")


@main.command()
def current() -> None:
    """Print the revision of the database's tables, or "none"."""
    with _database(must_exist=True) as (_settings, database):
        click.echo(schema.current(database) or "none")


@main.command()
def check() -> None:
    """Compare the database with what is needed.

    That is what this version of Mozpool makes. Prints what differs, a line each, and ends with status 1 when anything
    does. For an empty database and one of another version it says which command to run.
    """
    with _database(must_exist=True) as (_settings, database):
        problems = schema.check(database)
        for problem in problems:
            click.echo(problem)
        if problems:
            raise click.ClickException(f"{database.name} differs: `mozpool-db upgrade` repairs what is safe to repair.")
        click.echo(f"Nothing differs: {database.name} is at revision {schema.head()}.")


def _backend_options(command: F) -> F:
    """Add an option for each interface that a device may name a backend for."""
    for interface in reversed(newdevice.INTERFACES):
        option = click.option(
            f"--{interface}", metavar="BACKEND", help=f"Its {interface} backend, if not the usual one."
        )
        command = option(command)
    return command


@main.command("add-device")
@click.argument("name")
@click.option("--mac", required=True, metavar="MAC", help="Its MAC address, such as aabbccddeeff.")
@click.option("--address", metavar="HOST", help="Its host name or IP address.  [default: NAME]")
@click.option("--type", "hardware_type", metavar="TYPE", help="Its hardware type, such as panda.")
@click.option("--model", "hardware_model", metavar="MODEL", help="Its model, where the type has several.")
@click.option("--relay-info", metavar="RELAY", help="Its relay, such as relay-7.example.com:bank1:relay3.")
@click.option("--environment", metavar="NAME", help="Its environment.  [default: none]")
@click.option("--labels", metavar="NAME=VALUE,...", help="Its labels.")
@_backend_options
@click.option("--server", metavar="FQDN", help="Its imaging server.  [default: [server] fqdn]")
def add_device(power: str | None, boot: str | None, probe: str | None, agent: str | None, **options: Any) -> None:
    """Add a device, in state new.

    Its imaging server finds it within half a minute, and tests it before it is lent. Without a hardware type no image
    can be put on it. The hardware type and the imaging server must be there already; a server adds itself when it is
    started for the first time.
    """
    backends = {"power": power, "boot": boot, "probe": probe, "agent": agent}
    new = newdevice.NewDevice(**options, backends=backends)
    with _database(must_exist=True) as (settings, database):
        _must_be_up_to_date(database)
        try:
            server = database.run(lambda conn: newdevice.add(conn, new, settings, random.SystemRandom()))
        except BadInput as error:
            raise click.UsageError(error.message) from error
    click.echo(f"Added {new.name} of {server}, in state new.")


@main.command("dump-schema")
def dump_schema() -> None:
    """Print the schema as SQL for MySQL.

    Tables, log partitions and procedures: this is how sql/schema.sql is made. Neither configuration nor database is
    needed.
    """
    click.echo(schema.dump(), nl=False)


@main.command(context_settings=_PASS_ON)
@click.argument("file")
@click.argument("arguments", metavar="[ARGS]...", nargs=-1, type=click.UNPROCESSED)
def run(file: str, arguments: tuple[str, ...]) -> None:
    """Run a Python script on the database.

    FILE is looked up as given, then among the scripts that come with Mozpool. Its function
    main(args, settings, database) gets the remaining arguments, the configuration and a mozpool.db.engine.Database;
    what it returns is the exit status (None: 0).
    """
    _run(file, arguments)


@main.command(context_settings={**_PASS_ON, "help_option_names": []})
@click.argument("arguments", metavar="-d COUNT -p PORT", nargs=-1, type=click.UNPROCESSED)
def testdata(arguments: tuple[str, ...]) -> None:
    """Fill in fake devices: short for `run testdata.py`.

    `mozpool-db testdata --help` lists the options.
    """
    _run("testdata.py", arguments)


def _run(file: str, arguments: tuple[str, ...]) -> None:
    """Run a script's ``main`` and end with its status."""
    script: Callable[..., int | None] | None = runpy.run_path(str(_find(file))).get("main")
    if script is None:
        raise click.ClickException(f"{file} has no function main(args, settings, database)")
    asks_for_help = bool({"-h", "--help"} & set(arguments))
    with _database(must_exist=not asks_for_help) as (settings, database):
        if not asks_for_help:
            _must_be_up_to_date(database)
        raise SystemExit(script(list(arguments), settings, database) or 0)


def _must_be_up_to_date(database: Database) -> None:
    if schema.current(database) != schema.head():
        raise click.ClickException(f"{database.name} is not up to date: see `mozpool-db upgrade`.")


def _find(file: str) -> Path:
    """The script as given, else the one of that name that comes with Mozpool."""
    if Path(file).is_file():
        return Path(file)
    parts = Path(file).parts
    if parts[:1] == ("scripts",):
        parts = parts[1:]
    try:
        return resources.path("scripts", *parts)
    except FileNotFoundError:
        raise click.BadParameter(f"there is no script {file}", param_hint="FILE") from None


@contextmanager
def _database(*, must_exist: bool) -> Iterator[tuple[config.Settings, Database]]:
    """The configuration and the database it names, which is closed afterwards."""
    settings = config.load(click.get_current_context().obj)
    database = Database.of(settings.database, clock=Clock())
    if must_exist and database.dialect == "sqlite" and not Path(str(database.url.database)).exists():
        raise click.ClickException(f"{database.name} does not exist: make it with `mozpool-db create-schema`.")
    try:
        yield settings, database
    except DBAPIError as error:
        raise click.ClickException(f"{database.name} refuses: {reason(error)}") from error
    finally:
        database.dispose()


if __name__ == "__main__":
    main()
