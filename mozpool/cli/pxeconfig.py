# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""``pxe-config``: the texts that boot loaders are given, and which image on which hardware each of them boots."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, TypeVar

import click

from mozpool import __version__
from mozpool.bmm import catalogue
from mozpool.cli.common import Commands, change, named, table, todays_database, yes_or_no
from mozpool.config import Settings
from mozpool.db import images
from mozpool.db.engine import Database
from mozpool.db.tables import MAX_COLUMN
from mozpool.errors import BadInput

F = TypeVar("F", bound=Callable[..., Any])


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--mozpool-config",
    "config_file",
    type=click.Path(exists=True, dir_okay=False),
    help="Mozpool's configuration file (config.ini).",
)
@click.version_option(__version__, prog_name="pxe-config")
@click.pass_context
def main(ctx: click.Context, config_file: str | None) -> None:
    """Edit the PXE configs: what boards boot from the network, and for which image.

    They are in the database that [database] engine says, in the file of --mozpool-config or $MOZPOOL_CONFIG, else in
    the first that exists of ./config.ini, config.ini in the checkout that runs, and /etc/mozpool/config.ini.

    A change counts from the next power cycle on. The exit status is 0 on success, 1 when something failed, 2 when the
    command line was wrong.
    """
    ctx.obj = config_file


def _text_option(*, required: bool) -> Callable[[F], F]:
    return click.option(
        "--config",
        "source",
        type=click.File("rb"),
        required=required,
        metavar="FILE",
        help="File with the text; - is standard input. %IPADDRESS%, %URL%, %DEVICE% and %TOKEN% in it become the "
        "imaging server's address, its URL, the device's name, and the token of its boot.",
    )


_YES = click.option("--yes", is_flag=True, help="Do not ask.")
_IMAGE = click.option("--image", required=True, metavar="IMAGE", help="The image, such as b2g.")
_TYPE = click.option("--type", "hardware_type", required=True, metavar="TYPE", help="The hardware type, such as panda.")
_MODEL = click.option("--model", metavar="MODEL", help="Its model, where the type has several.")


_OPTIONS = {
    "name": "NAME",
    "pxe_config": "NAME",
    "description": "--description",
    "contents": "--config",
    "image": "--image",
    "hardware_type": "--type",
    "hardware_model": "--model",
}
"""What the options are called that the catalogue names otherwise."""


@contextmanager
def _database() -> Iterator[Database]:
    """The database, where what is wrong is told by the options' names."""
    with todays_database() as (_settings, database), named(**_OPTIONS):
        yield database


@contextmanager
def _changing() -> Iterator[tuple[Settings, Database]]:
    """The same for commands that change something."""
    with todays_database() as opened, named(**_OPTIONS):
        yield opened


def _read(source: BinaryIO) -> str:
    """The text of a file. Raises BadInput."""
    name = getattr(source, "name", "-")
    contents = source.read(MAX_COLUMN + 1)
    if len(contents) > MAX_COLUMN:
        raise BadInput.value("--config", name, f"a file of at most {MAX_COLUMN} bytes")
    try:
        return contents.decode()
    except UnicodeDecodeError as error:
        raise BadInput.value("--config", name, "a text file in UTF-8") from error


def _warn(contents: str) -> None:
    for doubt in catalogue.doubts(contents):
        click.echo(f"Warning: {doubt}.", err=True)


@main.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(as_json: bool) -> None:
    """List the PXE configs and what they are used for."""
    with _database() as database, database.read() as conn:
        found = [(config, images.pxe_config_uses(conn, config.id)) for config in images.find_pxe_configs(conn)]
    if as_json:
        shown = [
            {
                "name": config.name,
                "active": config.active,
                "description": config.description,
                "used_for": [
                    {"image": image, "hardware_type": type_, "hardware_model": model} for image, type_, model in uses
                ],
            }
            for config, uses in found
        ]
        click.echo(json.dumps({"pxe_configs": shown}, indent=2))
        return
    rows = [
        (
            config.name,
            yes_or_no(config.active),
            " ".join(config.description.split()),
            ", ".join(map(catalogue.use_text, uses)),
        )
        for config, uses in found
    ]
    click.echo(table(("NAME", "ACTIVE", "DESCRIPTION", "USED FOR"), rows), nl=False)


@main.command()
@click.argument("name")
@click.option("--config-only", is_flag=True, help="Print the text alone, as it is.")
def show(name: str, config_only: bool) -> None:
    """Print a PXE config."""
    with _database() as database, database.read() as conn:
        config = catalogue.pxe_config(conn, name)
        uses = [catalogue.use_text(use) for use in images.pxe_config_uses(conn, config.id)]
    if not config_only:
        click.echo(f"Name:         {config.name}")
        click.echo(f"Description:  {config.description}")
        click.echo(f"State:        {'active' if config.active else 'inactive'}")
        for number, use in enumerate(uses or ["nothing"]):
            click.echo(f"{'Used for:' if number == 0 else '':14}{use}")
        click.echo()
    ends = config_only or config.contents.endswith("\n")
    click.echo(config.contents, nl=not ends)


@main.command()
@click.argument("name")
@click.option("--description", required=True, metavar="TEXT", help="What it is for, for people.")
@_text_option(required=True)
@click.option("--active/--inactive", default=True, help="Whether it is in use.  [default: active]")
def add(name: str, description: str, source: BinaryIO, active: bool) -> None:
    """Add a PXE config."""
    with _changing() as (settings, database):
        text = _read(source)
        change(
            settings,
            database,
            "pxe-config add",
            f"pxe_config {name}",
            lambda conn: catalogue.add_pxe_config(conn, name, description, text, active=active),
            description=description,
            contents=text,
            active=active,
        )
    _warn(text)
    click.echo(f"Added PXE config {name}.")


@main.command()
@click.argument("name")
@click.option("--description", metavar="TEXT", help="What it is for, for people.")
@_text_option(required=False)
@click.option("--active/--inactive", default=None, help="Whether it is in use.")
def modify(name: str, description: str | None, source: BinaryIO | None, active: bool | None) -> None:
    """Change a PXE config: what is not given stays as it is."""
    if description is None and source is None and active is None:
        raise click.UsageError("nothing to change: give --description, --config, --active or --inactive")
    with _changing() as (settings, database):
        text = None if source is None else _read(source)
        change(
            settings,
            database,
            "pxe-config modify",
            f"pxe_config {name}",
            lambda conn: catalogue.change_pxe_config(conn, name, description, text, active),
            description=description,
            contents=text,
            active=active,
        )
    if text is not None:
        _warn(text)
    click.echo(f"Changed PXE config {name}.")


@main.command()
@click.argument("name")
@_YES
def delete(name: str, yes: bool) -> None:
    """Delete a PXE config that nothing uses."""
    with _changing() as (settings, database):
        with database.read() as conn:
            catalogue.check_unused(conn, name)
        if not yes:
            click.confirm(f"Delete PXE config {name}?", abort=True)
        change(
            settings,
            database,
            "pxe-config delete",
            f"pxe_config {name}",
            lambda conn: catalogue.delete_pxe_config(conn, name),
        )
    click.echo(f"Deleted PXE config {name}.")


@main.command()
@click.argument("name")
@_IMAGE
@_TYPE
@_MODEL
@_YES
def assign(name: str, image: str, hardware_type: str, model: str | None, yes: bool) -> None:
    """Let a PXE config boot an image on a kind of hardware.

    Asks before it takes the place of another one.
    """
    with _changing() as (settings, database):
        with database.read() as conn:
            wanted = catalogue.assignment(conn, name, image, hardware_type, model)
        if wanted.now not in (None, wanted.config.name) and not yes:
            click.confirm(f"{wanted.now} boots {wanted.use} now. Put {name} in its place?", abort=True)
        change(
            settings,
            database,
            "pxe-config assign",
            f"pxe_config {name}",
            lambda conn: catalogue.assign(conn, wanted),
            use=wanted.use,
        )
    click.echo(f"{wanted.config.name} boots {wanted.use}.")


@main.command()
@click.argument("name")
@_IMAGE
@_TYPE
@_MODEL
@_YES
def unassign(name: str, image: str, hardware_type: str, model: str | None, yes: bool) -> None:
    """Let a PXE config boot an image no longer.

    Without another one, the image can't be put on this kind of hardware any more.
    """
    with _changing() as (settings, database):
        with database.read() as conn:
            wanted = catalogue.assignment(conn, name, image, hardware_type, model)
            catalogue.check_assigned(wanted)
        if not yes:
            click.confirm(f"Nothing will boot {wanted.use} any more. Go on?", abort=True)
        change(
            settings,
            database,
            "pxe-config unassign",
            f"pxe_config {name}",
            lambda conn: catalogue.unassign(conn, wanted),
            use=wanted.use,
        )
    click.echo(f"Nothing boots {wanted.use} any more.")


if __name__ == "__main__":
    main()
