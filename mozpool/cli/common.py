# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What the commands that work on the database share: errors for people, and the database that is configured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from mozpool import config
from mozpool.access.audit import by_command
from mozpool.bmm.interfaces import BackendContext
from mozpool.bmm.registry import Registry
from mozpool.clock import Clock
from mozpool.db import audit, schema
from mozpool.db.engine import Database, reason
from mozpool.errors import BadInput, MozpoolError

T = TypeVar("T")


class Commands(click.Group):
    """Errors that are meant for a person end the command with one sentence and status 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except MozpoolError as error:
            raise click.ClickException(error.message) from error
        except OSError as error:
            raise click.ClickException(f"{error.filename or 'a file'}: {error.strerror}") from error


def is_missing(database: Database) -> bool:
    """Whether the database is an SQLite file that is not there; opening it would make an empty one."""
    return database.dialect == "sqlite" and not Path(str(database.url.database)).exists()


@contextmanager
def open_database(*, must_exist: bool) -> Iterator[tuple[config.Settings, Database]]:
    """The configuration and the database it names, which is closed afterwards.

    The configuration's file is the context's ``obj``. Raises ConfigError, and ClickException when the database does not
    exist or refuses what is done with it. BadInput within ends the command with status 2.
    """
    settings = config.load(click.get_current_context().obj)
    database = Database.of(settings.database, clock=Clock())
    if must_exist and is_missing(database):
        raise click.ClickException(f"{database.name} does not exist: make it with `mozpool-db create-schema`.")
    try:
        yield settings, database
    except BadInput as error:
        raise click.UsageError(error.message) from error
    except DBAPIError as error:
        raise click.ClickException(f"{database.name} refuses: {reason(error)}") from error
    finally:
        database.dispose()


@contextmanager
def todays_database() -> Iterator[tuple[config.Settings, Database]]:
    """As :func:`open_database`, for what needs the tables of this version. Raises ClickException where they are not."""
    with open_database(must_exist=True) as (settings, database):
        must_be_up_to_date(database)
        yield settings, database


def must_be_up_to_date(database: Database) -> None:
    """Raise ClickException unless this version can work with the tables."""
    if not schema.serves(schema.current(database)):
        raise click.ClickException(f"{database.name} is not up to date: see `mozpool-db upgrade`.")


def change(
    settings: config.Settings,
    database: Database,
    action: str,
    target: str | None,
    work: Callable[[Connection], T],
    **details: Any,
) -> T:
    """Do ``work`` and note in the audit, in the same transaction, that the user who runs this command did it.

    ``action`` is the command, such as ``mozpool-db add-device``; ``target`` is as in :class:`mozpool.db.audit.Entry`.
    Raises what ``work`` raises, and DatabaseAway.
    """
    said = {name: value for name, value in details.items() if value not in (None, "", (), {})}

    def both(conn: Connection) -> T:
        value = work(conn)
        audit.add(conn, [by_command(settings.server.fqdn, database.clock.now(), action, target, said)])
        return value

    return database.run(both)


@contextmanager
def named(**options: str) -> Iterator[None]:
    """What is wrong with a value is told by the name of its option; ``options`` are field → option.

    Backends have options of their own names. Whatever is said of a field is wrong usage: raises BadInput.
    """
    try:
        yield
    except MozpoolError as error:
        name = error.field or ""
        interface = name.removeprefix("backends.")
        option = f"--{interface}" if interface != name else options.get(name)
        if option is None:
            raise
        raise BadInput(option + error.message.removeprefix(name), field=option) from error


def registry() -> Registry:
    """The backends that are installed."""
    return Registry(BackendContext(Clock(), None))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of equal width under a heading, one line a row; what is empty is a dash."""
    lines = [tuple(head), *(tuple(cell or "-" for cell in row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() + "\n" for line in lines
    )


def yes_or_no(value: bool) -> str:
    """A flag in a table."""
    return "yes" if value else "no"
