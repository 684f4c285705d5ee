# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The command ``mozpool-db``: makes, upgrades, checks and fills the database that the configuration names."""

from __future__ import annotations

import json
import random
import runpy
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import click
from sqlalchemy import Connection

from mozpool import __version__, config, resources
from mozpool.access import tokens
from mozpool.access.principal import Role
from mozpool.bmm import catalogue
from mozpool.cli import newdevice
from mozpool.cli.common import (
    Commands,
    change,
    must_be_up_to_date,
    named,
    open_database,
    registry,
    table,
    todays_database,
    yes_or_no,
)
from mozpool.db import audit, images, schema, teams, upkeep
from mozpool.errors import BadInput

F = TypeVar("F", bound=Callable[..., Any])

_PASS_ON = {"ignore_unknown_options": True, "allow_interspersed_args": False}


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
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
    with open_database(must_exist=False) as (settings, database):
        schema.create(database)
        change(settings, database, "mozpool-db create-schema", None, lambda conn: None, revision=schema.head())
        click.echo(f"Made {database.name}, revision {schema.head()}.")


@main.command()
def upgrade() -> None:
    """Bring the database up to date, from 4.2.1 or later.

    No row, name or claim is lost. Stop the servers and make a backup first. An upgrade that was interrupted goes on
    when it is started again; a database that is up to date is left alone.

    At the newest revision, procedures, log partitions and indexes that differ are made again. What else differs is
    printed, a line each, and left to you: the exit status is 1 then.
    """
    with open_database(must_exist=True) as (settings, database):
        done, now = schema.upgrade(database), schema.head()
        if done.before != now or done.repaired:
            change(
                settings,
                database,
                "mozpool-db upgrade",
                None,
                lambda conn: None,
                before=done.before or "none",
                revision=now,
                repaired=[str(difference) for difference in done.repaired],
            )
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
    """Print the revision of the tables, or "none"."""
    with open_database(must_exist=True) as (_settings, database):
        click.echo(schema.current(database) or "none")


@main.command()
def check() -> None:
    """Compare the database with what is needed.

    That is what this version of Mozpool makes. Prints what differs, a line each, and ends with status 1 when anything
    does. For an empty database and one of another version it says which command to run.
    """
    with open_database(must_exist=True) as (_settings, database):
        problems = schema.check(database)
        for problem in problems:
            click.echo(problem)
        if problems:
            raise click.ClickException(f"{database.name} differs: `mozpool-db upgrade` repairs what is safe to repair.")
        click.echo(f"Nothing differs: {database.name} is at revision {schema.head()}.")


def _backend_options(command: F) -> F:
    """Add an option for each interface that a device may name a backend for."""
    for interface in reversed(catalogue.INTERFACES):
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
def add_device(**options: Any) -> None:
    """Add a device, in state new.

    Its imaging server finds it within half a minute, and tests it before it is lent. Without a hardware type no image
    can be put on it. The hardware type and the imaging server must be there already; a server adds itself when it is
    started for the first time.
    """
    backends = {interface: options.pop(interface) for interface in catalogue.INTERFACES}
    new = newdevice.NewDevice(**options, backends=backends)
    with todays_database() as (settings, database):
        server = change(
            settings,
            database,
            "mozpool-db add-device",
            f"device {new.name}",
            lambda conn: newdevice.add(conn, new, settings, random.SystemRandom()),
            **options,
        )
    click.echo(f"Added {new.name} of {server}, in state new.")


@main.command("add-hardware-type")
@click.argument("hardware_type", metavar="TYPE")
@click.argument("model")
@_backend_options
def add_hardware_type(hardware_type: str, model: str, **backends: str | None) -> None:
    """Add a kind of device, such as panda ES.

    Its backends are those of its devices that name none themselves; what it does not name is as [bmm] says.
    """
    names = {"type": "TYPE", "model": "MODEL"}
    with todays_database() as (settings, database), named(**names):
        change(
            settings,
            database,
            "mozpool-db add-hardware-type",
            f"hardware_type {hardware_type} {model}",
            lambda conn: catalogue.add_hardware_type(conn, hardware_type, model, backends, registry()),
            **backends,
        )
    click.echo(f"Added hardware type {hardware_type} {model}.")


@main.command("list-hardware-types")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_hardware_types(as_json: bool) -> None:
    """List the hardware types and their backends."""
    with todays_database() as (_settings, database), database.read() as conn:
        known = sorted(images.known_hardware(conn), key=lambda hardware: (hardware.type, hardware.model))
    if as_json:
        shown = [{"type": each.type, "model": each.model, "backends": dict(each.backends)} for each in known]
        click.echo(json.dumps({"hardware_types": shown}, indent=2))
        return
    rows = [
        (each.type, each.model, ", ".join(f"{key}={value}" for key, value in sorted(each.backends.items())))
        for each in known
    ]
    click.echo(table(("TYPE", "MODEL", "BACKENDS"), rows), nl=False)


@main.command("add-image")
@click.argument("name")
@click.option(
    "--boot-config-key",
    "boot_config_keys",
    multiple=True,
    metavar="KEY",
    help="A key that requests for this image must carry, such as b2gbase; may be given several times.",
)
@click.option("--reusable", is_flag=True, help="A device that holds it already need not be imaged again.")
@click.option("--no-agent", is_flag=True, help="No agent runs on it: devices prove themselves by ping.")
@click.option("--hidden", is_flag=True, help="Leave it out where people choose an image.")
def add_image(name: str, boot_config_keys: tuple[str, ...], reusable: bool, no_agent: bool, hidden: bool) -> None:
    """Add an image that can be put on devices.

    What boots it on which hardware says `pxe-config assign`.
    """
    new = catalogue.NewImage(name, boot_config_keys, can_reuse=reusable, has_sut_agent=not no_agent, hidden=hidden)
    with todays_database() as (settings, database), named(name="NAME", boot_config_keys="--boot-config-key"):
        change(
            settings,
            database,
            "mozpool-db add-image",
            f"image {name}",
            lambda conn: catalogue.add_image(conn, new),
            boot_config_keys=boot_config_keys,
            reusable=reusable,
            agent=not no_agent,
            hidden=hidden,
        )
    click.echo(f"Added image {name}.")


@main.command("list-images")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_images(as_json: bool) -> None:
    """List the images."""
    with todays_database() as (_settings, database), database.read() as conn:
        known = sorted(images.find(conn), key=lambda image: image.name)
    if as_json:
        shown = [
            {
                "name": each.name,
                "boot_config_keys": list(each.boot_config_keys),
                "can_reuse": each.can_reuse,
                "has_sut_agent": each.has_sut_agent,
                "hidden": each.hidden,
            }
            for each in known
        ]
        click.echo(json.dumps({"images": shown}, indent=2))
        return
    rows = [
        (
            each.name,
            ", ".join(each.boot_config_keys),
            yes_or_no(each.can_reuse),
            yes_or_no(each.has_sut_agent),
            yes_or_no(each.hidden),
        )
        for each in known
    ]
    click.echo(table(("NAME", "BOOT CONFIG KEYS", "REUSABLE", "AGENT", "HIDDEN"), rows), nl=False)


@main.command("create-token")
@click.argument("name")
@click.option("--role", type=click.Choice([str(role) for role in Role if role]), required=True, help="What it may do.")
@click.option("--team", metavar="NAME", help="Whose quota counts.")
@click.option("--note", help="What it is used for.")
def create_token(name: str, role: str, team: str | None, note: str | None) -> None:
    """Make a token: the first one, of an admin.

    NAME is a person's e-mail address or a machine's host name. By that token, `mozpool token create` makes the others.
    It is printed this once.
    """
    for value, most, what in ((name, 256, "NAME"), (note or "-", 190, "--note")):
        if not value.strip() or len(value) > most or not value.isprintable():
            raise click.UsageError(f"{what}: {value[:80]!r} is not one line of 1 to {most} characters")
    with todays_database() as (settings, database):
        now = database.clock.now()

        def work(conn: Connection) -> tuple[int, str]:
            found = None if team is None else teams.by_name(conn, team)
            if team is not None and found is None:
                raise BadInput(f"--team: there is no team {team!r}")
            columns = {
                "name": name.strip(),
                "role": role,
                "team_id": None if found is None else found.id,
                "note": note,
                "created": now,
                "created_by": "mozpool-db",
            }
            return tokens.create(conn, columns)

        said = {"role": role, "team": team, "note": note}
        token_id, text = change(
            settings, database, "mozpool-db create-token", f"token of {name.strip()}"[:256], work, **said
        )
    click.echo(f"Token {token_id} of {name.strip()}, {role}. Keep it: it is not shown again.", err=True)
    click.echo(text)


@main.command("expire-audit")
@click.option(
    "--older-than", "days", required=True, type=click.IntRange(1, 36500), metavar="DAYS", help="What is older goes."
)
@click.option("--yes", is_flag=True, help="Do not ask.")
def expire_audit(days: int, yes: bool) -> None:
    """Delete old rows of the audit.

    They are kept for ever otherwise. It takes an account that may DELETE from the table audit: that of the daemon had
    better not. That it was done, and by whom, is a new row.
    """
    with todays_database() as (settings, database):
        before = database.clock.now() - timedelta(days=days)
        with database.read() as conn:
            number = audit.count_before(conn, before)
        until = f"{before:%Y-%m-%d %H:%M:%S} UTC"
        if not number:
            click.echo(f"Nothing to do: no row of the audit is older than {until}.")
            return
        if not yes:
            click.confirm(f"Delete {number} rows of the audit, all before {until}?", abort=True)
        # First who it was: what is gone is gone, also when it is interrupted.
        said = {"before": before.isoformat(timespec="seconds"), "rows": number}
        change(settings, database, "mozpool-db expire-audit", "audit", lambda conn: None, **said)
        deleted = 0
        while some := database.run(lambda conn: audit.expire(conn, before, upkeep.BATCH), repeatable=True):
            deleted += some
            database.clock.sleep(upkeep.PAUSE)
        click.echo(f"Deleted {deleted} rows of the audit, all before {until}.")


@main.command()
@click.option("--user", default="mozpool", show_default=True, help="The daemon's account.")
@click.option("--host", default="localhost", show_default=True, help="From where it connects, such as 10.1.0.%.")
def grants(user: str, host: str) -> None:
    """Print the rights that the daemon needs.

    They are GRANTs for MySQL, for the database that is configured, and no more than is needed: the audit can only be
    read and added to with them. Run them as an administrator after the account was made, and again after an upgrade,
    which may bring new tables.
    """
    settings = config.load(click.get_current_context().obj)
    url = config.database_urls(settings.database.engine)[0]
    if url.get_backend_name() == "sqlite" or not url.database:
        raise click.ClickException("[database] engine is no MySQL database: SQLite knows no accounts.")
    for statement in schema.grants(url.database, user, host):
        click.echo(f"{statement};")


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
    script: Callable[..., int | None] | None = _load(file).get("main")
    if script is None:
        raise click.ClickException(f"{file} has no function main(args, settings, database)")
    asks_for_help = bool({"-h", "--help"} & set(arguments))
    with open_database(must_exist=not asks_for_help) as (settings, database):
        if not asks_for_help:
            must_be_up_to_date(database)
            # Before it: whatever it does and however it ends, it is known who ran it.
            said = {"file": file, "arguments": list(arguments)}
            change(settings, database, "mozpool-db run", None, lambda conn: None, **said)
        raise SystemExit(script(list(arguments), settings, database) or 0)


def _load(file: str) -> dict[str, Any]:
    """What the script defines. What it raises by itself is its author's business, and raised."""
    path = _find(file)
    try:
        compile(path.read_bytes(), str(path), "exec")
    except (SyntaxError, ValueError) as error:
        place = f"{file}:{error.lineno}" if isinstance(error, SyntaxError) and error.lineno else file
        raise click.ClickException(f"{place}: is no Python script") from error
    return runpy.run_path(str(path))


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


if __name__ == "__main__":
    main()
