# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Makes, upgrades and checks the tables; the steps themselves are Alembic's migrations in ``sql/migrations``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, MetaData, PrimaryKeyConstraint, inspect, text
from sqlalchemy.dialects import mysql
from sqlalchemy.schema import CreateIndex, CreateTable

from mozpool import resources
from mozpool.db.engine import Database
from mozpool.db.tables import metadata
from mozpool.errors import MozpoolError

FIRST = "0001"
"""The revision that is the schema of 4.2.1."""

LOGS = ("device_logs", "request_logs")
"""The tables that MySQL partitions by day."""

# Columns that tell a database of 4.2.1, which knew nothing of revisions.
_DEVICES_4_2_1 = frozenset({"id", "name", "inventory_id", "state", "relay_info", "next_boot_config", "environment"})


class SchemaError(MozpoolError):
    """The database's tables are not what they should be for what was asked."""

    code = "schema"


def create(database: Database) -> None:
    """Make all tables in an empty database; for SQLite also its file and folder.

    Raises SchemaError when there are tables of Mozpool already, DatabaseAway when the database does not answer.
    """
    if database.dialect == "sqlite" and database.url.database not in (None, "", ":memory:"):
        Path(str(database.url.database)).parent.mkdir(parents=True, exist_ok=True)
    with database.maintenance() as connection:
        present = sorted(_present(connection) & {*metadata.tables, "alembic_version"})
        if present:
            raise SchemaError(
                f"{database.name} is not empty: it has the table {present[0]}; "
                "`mozpool-db upgrade` brings it up to date"
            )
        command.upgrade(_alembic(connection), "head")


def upgrade(database: Database) -> tuple[str | None, str]:
    """Bring the tables and what is in them to today's schema; return the revision from before and the one of now.

    A database of 4.2.1 is recognised. An empty database gets all tables, one that is up to date is left alone, and an
    upgrade that was interrupted goes on.
    Raises SchemaError when the tables are not Mozpool's, DatabaseAway when the database does not answer.
    """
    with database.maintenance() as connection:
        before = _revision(connection)
        present = _present(connection)
        if before is None and "devices" in present:
            columns = {column["name"] for column in inspect(connection).get_columns("devices")}
            if not columns >= _DEVICES_4_2_1 or "claim_id" in columns:
                raise SchemaError(
                    f"{database.name} has a table devices, but is no database of Mozpool 4.2.1: nothing was changed"
                )
            before = FIRST
            command.stamp(_alembic(connection), FIRST)
        elif before is not None and before not in _known():
            raise SchemaError(f"{database.name} is of a newer Mozpool (revision {before}, this one ends at {head()})")
        if before != head():
            command.upgrade(_alembic(connection), "head")
            if database.dialect == "sqlite" and connection.exec_driver_sql("PRAGMA foreign_key_check").first():
                raise SchemaError(f"{database.name} has rows that refer to nothing: nothing was changed")
    return before, head()


def current(database: Database) -> str | None:
    """The revision of the tables; None for an empty database and one of 4.2.1 that was never upgraded."""
    with database.read() as connection:
        return _revision(connection)


def head() -> str:
    """The revision of today's tables."""
    return str(_scripts().get_current_head())


def check(database: Database) -> list[str]:
    """What differs between the database and today's schema, each in words; nothing is well.

    Raises DatabaseAway when the database does not answer.
    """
    with database.read() as connection:
        problems = []
        revision = _revision(connection)
        if revision != head():
            problems.append(f"the revision is {revision or 'unknown'} instead of {head()}")
        context = MigrationContext.configure(connection, opts={"include_object": _is_ours})
        differences: list[Any] = compare_metadata(context, metadata)
        for difference in differences:
            problems += [_in_words(*one) for one in (difference if isinstance(difference, list) else [difference])]
        if database.dialect == "mysql":
            problems += _missing_on_mysql(connection)
        return problems


def load_procedures(connection: Connection) -> None:
    """Make MySQL's stored procedures, in place of any older ones."""
    for statement in _procedure_statements():
        connection.exec_driver_sql(statement.replace("%", "%%"))


def dump() -> str:
    """The whole schema for ``mariadb NAME < schema.sql``: tables, log partitions, procedures and revision.

    It is made from :mod:`mozpool.db.tables` without any database; the tests compare it with what the migrations make.
    """
    dialect = mysql.dialect()
    statements = []
    for table in metadata.sorted_tables:
        if table.name in LOGS:
            table = table.to_metadata(MetaData(naming_convention=metadata.naming_convention))
            table.c.ts.primary_key = True  # a partitioned table's keys hold what it is partitioned by
            table.append_constraint(PrimaryKeyConstraint(table.c.id, table.c.ts))
        statements.append(str(CreateTable(table).compile(dialect=dialect)))
        indexes = sorted(table.indexes, key=lambda index: str(index.name))
        statements += [str(CreateIndex(index).compile(dialect=dialect)) for index in indexes]
    statements.append("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)")
    statements.append(f"INSERT INTO alembic_version (version_num) VALUES ('{head()}')")  # noqa: S608 - our own file's name
    body = re.sub(r" +$", "", ";\n\n".join(one.strip() for one in statements).replace("\t", "    "), flags=re.M)
    procedures = resources.path("sql", "procedures.sql").read_text(encoding="utf-8")
    licence, procedures = procedures.split("\n\n", 1)
    partitions = "\n".join(f"CALL init_log_partitions('{name}', 14, 1);" for name in LOGS)
    return (
        f"{licence}\n\n-- The tables of an empty database: mariadb NAME < schema.sql\n"
        "-- Generated by `mozpool-db dump-schema`: change mozpool/db/tables.py and write a migration instead.\n\n"
        f"{body};\n\n{procedures}\n{partitions}\n"
    )


def _alembic(connection: Connection) -> Config:
    """Alembic's configuration for running the migrations on this connection, in its transaction."""
    config = Config()
    config.set_main_option("script_location", str(resources.path("sql", "migrations")).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def _scripts() -> ScriptDirectory:
    return ScriptDirectory(str(resources.path("sql", "migrations")))


def _known() -> set[str]:
    return {script.revision for script in _scripts().walk_revisions()}


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _present(connection: Connection) -> set[str]:
    return set(inspect(connection).get_table_names())


def _is_ours(_object: Any, name: str | None, kind: str, reflected: bool, _compare_to: Any) -> bool:
    """Tables of other programs in the same database are none of our business."""
    return not (kind == "table" and reflected and name not in metadata.tables)


def _in_words(change: str, *details: Any) -> str:
    """A difference that Alembic found: ``change`` is what would have to be done to the database."""
    if change == "add_table":
        return f"the table {details[0].name} is missing"
    if change in ("add_column", "remove_column"):
        _schema, table, column = details
        return f"the column {table}.{column.name} is {'missing' if change == 'add_column' else 'unknown'}"
    if change.startswith("modify_"):
        _schema, table, column, _existing, is_now, should_be = details
        return f"the column {table}.{column}: {change.removeprefix('modify_')} is {is_now!r} instead of {should_be!r}"
    verb, _, kind = change.partition("_")  # add or remove; index, constraint, fk
    what = details[0]
    kind = {"fk": "foreign key", "constraint": "unique key"}.get(kind, kind)
    columns = ", ".join(column.name for column in what.columns)
    return f"the {kind} {what.name} on {what.table.name} ({columns}) is {'missing' if verb == 'add' else 'unknown'}"


def _missing_on_mysql(connection: Connection) -> Iterator[str]:
    """Procedures and partitions, which SQLAlchemy knows nothing of."""
    rows = connection.execute(
        text(
            "SELECT routine_name, routine_definition FROM information_schema.routines WHERE routine_schema = DATABASE()"
        )
    )
    present = {row[0]: row[1] for row in rows}
    for statement in _procedure_statements():
        created = re.match(r"CREATE PROCEDURE (\w+)\([^;]*?\)\s+(BEGIN.*)", statement, re.S)
        if created is None:
            continue
        name, body = created.groups()
        if name not in present:
            yield f"the procedure {name} is missing"
        elif present[name] is not None and present[name].split() != body.split():
            yield f"the procedure {name} differs"
    for table in LOGS:
        bound = connection.scalar(
            text(
                "SELECT MAX(CAST(partition_description AS SIGNED)) - UNIX_TIMESTAMP() "
                "FROM information_schema.partitions "
                "WHERE table_schema = DATABASE() AND table_name = :table AND partition_name IS NOT NULL"
            ),
            {"table": table},
        )
        if bound is None:
            yield f"the table {table} has no partitions"
        elif bound <= 0:
            yield f"the table {table} has no partition for today: dbcron() is not called every day"


def _procedure_statements() -> list[str]:
    """The statements of ``sql/procedures.sql``, without what is meant for the command-line client."""
    source = resources.path("sql", "procedures.sql").read_text(encoding="utf-8")
    lines = [line for line in source.splitlines() if not line.startswith(("--", "DELIMITER"))]
    return [part.strip() for part in re.split(r"^//$", "\n".join(lines), flags=re.M) if part.strip()]
