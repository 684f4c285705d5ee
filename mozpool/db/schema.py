# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Makes, upgrades and checks the tables; the steps themselves are Alembic's migrations in ``sql/migrations``."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, MetaData, PrimaryKeyConstraint, func, inspect, select, text
from sqlalchemy.dialects import mysql
from sqlalchemy.schema import CreateIndex, CreateTable

from mozpool import resources
from mozpool.db.engine import Database
from mozpool.db.tables import metadata
from mozpool.db.upkeep import KEEP_LOGS
from mozpool.errors import BadInput, MozpoolError

if TYPE_CHECKING:
    from alembic.config import Config

# Alembic is imported where it is used: a daemon over a database that is up to date needs none of its 11 MB.

FIRST = "0001"
"""The revision that is the schema of 4.2.1."""

LOGS = ("device_logs", "request_logs")
"""The tables that MySQL partitions by day."""

RIGHTS: Mapping[str, str] = {
    "alembic_version": "SELECT",
    "audit": "SELECT, INSERT",
    "device_logs": "SELECT, INSERT",
    "request_logs": "SELECT, INSERT",
    "device_history": "SELECT, INSERT, DELETE",
    "request_history": "SELECT, INSERT, DELETE",
    "relay_board_history": "SELECT, INSERT, DELETE",
    "past_requests": "SELECT, INSERT, DELETE",
}
"""What the daemon may do with tables whose rows are not all its own to change: old lines of logs go by ``dbcron``."""

ALL_RIGHTS = "SELECT, INSERT, UPDATE, DELETE"
"""With the other tables."""

CALLED = ("dbcron", "update_log_partitions")
"""The procedures that the daemon calls; they do more than it may, with the rights of who made them."""

FOR_EVER = 36500
"""Days enough for a repair to drop no log line."""

# Columns that tell a database of 4.2.1, which knew nothing of revisions.
_DEVICES_4_2_1 = frozenset({"id", "name", "inventory_id", "state", "relay_info", "next_boot_config", "environment"})


class SchemaError(MozpoolError):
    """The database's tables are not what they should be for what was asked."""

    code = "schema"


@dataclass(frozen=True)
class Upgrade:
    """What an upgrade found and did."""

    before: str | None
    """The revision it began with; None for an empty database."""
    repaired: tuple[str, ...]
    """What differed at today's revision and is right again, each in words."""
    differs: tuple[str, ...]
    """What still differs, because putting it right might lose something: a person has to look."""


def create(database: Database) -> None:
    """Make all tables in an empty database; for SQLite also its file and folder.

    Raises SchemaError when there are tables of Mozpool already, or another such command is at work; DatabaseAway when
    the database does not answer.
    """
    if database.dialect == "sqlite" and database.url.database not in (None, "", ":memory:"):
        Path(str(database.url.database)).parent.mkdir(parents=True, exist_ok=True)
    with database.maintenance() as connection:
        _exclude_others(connection, database)
        present = sorted(_present(connection) & {*metadata.tables, "alembic_version"})
        if present:
            raise SchemaError(
                f"{database.name} is not empty: it has the table {present[0]}; "
                "`mozpool-db upgrade` brings it up to date"
            )
        _run(connection, "upgrade", "head")


def upgrade(database: Database) -> Upgrade:
    """Bring the tables and what is in them to today's schema.

    A database of 4.2.1 is recognised. An empty database gets all tables, and an upgrade that was interrupted goes on.
    At today's revision everything is compared: procedures, log partitions and indexes are made again where they
    differ, as no row depends on them; the rest is only told.
    Raises SchemaError when the tables are not Mozpool's, or another such command is at work; DatabaseAway when the
    database does not answer.
    """
    with database.maintenance() as connection:
        _exclude_others(connection, database)
        before = _known_revision(connection, database)
        if before == FIRST and _revision(connection) is None:
            _run(connection, "stamp", FIRST)
        if before != head():
            _run(connection, "upgrade", "head")
            if database.dialect == "sqlite" and connection.exec_driver_sql("PRAGMA foreign_key_check").first():
                raise SchemaError(f"{database.name} has rows that refer to nothing: nothing was changed")
        found = _differences(connection)
        for repair in dict.fromkeys(difference.repair for difference in found):  # one may do for several
            if repair is not None:
                repair(connection)
        differs = tuple(one.words for one in _differences(connection)) if found else ()
    return Upgrade(before, tuple(one.words for one in found if one.words not in differs), differs)


def grants(database: str, user: str, host: str) -> list[str]:
    """The statements that give an account what the daemon needs on a MySQL database, and no more.

    Raises BadInput for names that no account has.
    """
    for field, value in (("user", user), ("host", host)):
        if not re.fullmatch(r"[\w.:%/-]{1,255}", value, re.ASCII):
            raise BadInput.value(field, value, "a name of letters, digits, dots, colons, slashes, dashes and %")
    quote = mysql.dialect().identifier_preparer.quote_identifier
    account = f"'{user}'@'{host}'"
    rights = [
        f"GRANT {RIGHTS.get(table, ALL_RIGHTS)} ON {quote(database)}.{quote(table)} TO {account}"
        for table in sorted({*metadata.tables, "alembic_version"})
    ]
    return rights + [f"GRANT EXECUTE ON PROCEDURE {quote(database)}.{quote(name)} TO {account}" for name in CALLED]


def current(database: Database) -> str | None:
    """The revision of the tables; None for an empty database and one of 4.2.1 that was never upgraded."""
    with database.read() as connection:
        return _revision(connection)


def head() -> str:
    """The revision of today's tables."""
    revisions = _revisions()
    (last,) = revisions.keys() - revisions.values()
    return last


def serves(revision: str | None) -> bool:
    """Whether this version can work with tables of a revision: today's, or a newer one that says so.

    A revision that only adds what older versions do not miss is named ``NNNN_OLDEST``, after the oldest revision whose
    servers may run beside it: so servers are upgraded one after the other.
    """
    if revision is None or revision == head():
        return revision is not None
    known = _revisions()
    return revision not in known and revision.partition("_")[2] in known


def check(database: Database) -> list[str]:
    """What differs between the database and today's schema, each in words; nothing is well.

    Raises SchemaError, which names the command to run, when the database is empty or at another revision;
    DatabaseAway when it does not answer.
    """
    with database.read() as connection:
        revision = _known_revision(connection, database)
        if revision is None and not _present(connection) & set(metadata.tables):
            raise SchemaError(f"{database.name} is empty: make its tables with `mozpool-db create-schema`")
        if revision is not None and revision != head():
            version = "of Mozpool 4.2.1" if revision == FIRST else f"at revision {revision}"
            raise SchemaError(f"{database.name} is {version}: bring it up to date with `mozpool-db upgrade`")
        problems = [difference.words for difference in _differences(connection)]
        return problems if revision is not None else ["the revision is unknown", *problems]


def load_procedures(connection: Connection) -> None:
    """Make MySQL's stored procedures, in place of any older ones.

    On MariaDB, they are there all the time meanwhile, and who has a right to one of them keeps it; MySQL cannot do so.
    """
    for statement in _procedure_statements():
        if getattr(connection.dialect, "is_mariadb", False):
            if statement.startswith("DROP PROCEDURE"):
                continue
            statement = statement.replace("CREATE PROCEDURE", "CREATE OR REPLACE PROCEDURE", 1)
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
    statements.append(f"INSERT INTO alembic_version (version_num) VALUES ('{head()}')")  # noqa: S608 - our own file's name  # nosec B608
    body = re.sub(r" +$", "", ";\n\n".join(one.strip() for one in statements).replace("\t", "    "), flags=re.M)
    procedures = resources.path("sql", "procedures.sql").read_text(encoding="utf-8")
    licence, procedures = procedures.split("\n\n", 1)
    partitions = "\n".join(f"CALL init_log_partitions('{name}', {KEEP_LOGS.days}, 1);" for name in LOGS)
    return (
        f"{licence}\n\n-- The tables of an empty database: mariadb NAME < schema.sql\n"
        "-- Generated by `mozpool-db dump-schema`: change mozpool/db/tables.py and write a migration instead.\n\n"
        f"{body};\n\n{procedures}\n{partitions}\n"
    )


def _run(connection: Connection, name: str, revision: str) -> None:
    """Run a command of Alembic on this connection, in its transaction."""
    from alembic import command

    getattr(command, name)(_alembic(connection), revision)


def _alembic(connection: Connection) -> Config:
    """Alembic's configuration for running the migrations on this connection, in its transaction."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(resources.path("sql", "migrations")).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


@cache
def _revisions() -> Mapping[str, str | None]:
    """Revision → the one before it, as the migrations say."""
    found: dict[str, str | None] = {}
    for file in resources.path("sql", "migrations", "versions").glob("*.py"):
        said = {name: revision or None for name, revision in _SAYS.findall(file.read_text())}
        found[str(said["revision"])] = said["down_revision"]
    return found


_SAYS = re.compile(r'^(revision|down_revision) = (?:"(\w+)"|None)$', re.MULTILINE)


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    noted: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()
    return noted


def _known_revision(connection: Connection, database: Database) -> str | None:
    """The revision that the tables have, be it noted or recognised; None for none of ours, or not all.

    Raises SchemaError when the tables are somebody else's, or of a newer version.
    """
    revision = _revision(connection)
    if revision is None and "devices" in _present(connection):
        columns = {column["name"] for column in inspect(connection).get_columns("devices")}
        if not columns >= _DEVICES_4_2_1 or "claim_id" in columns:
            raise SchemaError(f"{database.name} has a table devices, but is no database of Mozpool 4.2.1")
        return FIRST
    if revision is not None and revision not in _revisions():
        raise SchemaError(f"{database.name} is of a newer Mozpool (revision {revision}, this one ends at {head()})")
    return revision


def _exclude_others(connection: Connection, database: Database) -> None:
    """Be the only one who changes the schema, until this connection ends.

    On SQLite the transaction sees to that; on MySQL it can't, as changing a table commits it.
    (In a cluster this holds for commands that use the same node.)
    """
    if database.dialect == "mysql":
        name = func.concat("mozpool-schema-", func.md5(func.database()))  # of the whole server, 64 characters at most
        if not connection.scalar(select(func.get_lock(name, 0))):
            raise SchemaError(
                f"{database.name} is being made or upgraded by another mozpool-db: wait until it has ended"
            )


def _present(connection: Connection) -> set[str]:
    return set(inspect(connection).get_table_names())


def _is_ours(_object: Any, name: str | None, kind: str, reflected: bool, _compare_to: Any) -> bool:
    """Tables of other programs in the same database are none of our business."""
    return not (kind == "table" and reflected and name not in metadata.tables)


@dataclass(frozen=True)
class _Difference:
    """Something that is not as in today's schema."""

    words: str
    repair: Callable[[Connection], None] | None = None
    """Puts it right; None where that might lose something."""


def _differences(connection: Connection) -> list[_Difference]:
    """All that differs from today's schema."""
    from alembic.autogenerate import compare_metadata
    from alembic.runtime.migration import MigrationContext

    context = MigrationContext.configure(connection, opts={"include_object": _is_ours})
    changes: list[Any] = []
    for change in compare_metadata(context, metadata):
        changes += change if isinstance(change, list) else [change]
    found = [_Difference(_in_words(*change), _repair(connection, *change)) for change in changes]
    found += (_differences_on_mysql if connection.dialect.name != "sqlite" else _differences_on_sqlite)(connection)
    return found


def _repair(connection: Connection, change: str, *details: Any) -> Callable[[Connection], None] | None:
    """How to make what is missing, where no row depends on it and none can be in the way: a plain index."""
    if change != "add_index" or details[0].unique:
        return None
    index, inspector = details[0], inspect(connection)
    table = index.table.name
    present = {column["name"] for column in inspector.get_columns(table)} if inspector.has_table(table) else set()
    if not present.issuperset(column.name for column in index.columns):
        return None
    return lambda connection: connection.execute(CreateIndex(index)).close()


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


def _differences_on_mysql(connection: Connection) -> Iterator[_Difference]:
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
            yield _Difference(f"the procedure {name} is missing", load_procedures)
        elif present[name] is not None and present[name].split() != body.split():
            yield _Difference(f"the procedure {name} differs", load_procedures)
    for table in LOGS:
        bound = connection.scalar(
            text(
                "SELECT MAX(CAST(partition_description AS SIGNED)) - UNIX_TIMESTAMP() "
                "FROM information_schema.partitions "
                "WHERE table_schema = DATABASE() AND table_name = :table AND partition_name IS NOT NULL"
            ),
            {"table": table},
        )
        if bound is None and inspect(connection).has_table(table):
            yield _Difference(
                f"the table {table} has no partitions", _calls("init_log_partitions", table, KEEP_LOGS.days)
            )
        elif bound is not None and bound <= 0:
            yield _Difference(
                f"the table {table} has no partition for today: no mozpool-server, which sees to it every hour, ran",
                _calls("update_log_partitions", table, FOR_EVER),
            )


def _calls(procedure: str, table: str, days: int) -> Callable[[Connection], None]:
    """A repair that calls one of the procedures for log partitions, with the days to look back."""

    def call(connection: Connection) -> None:
        connection.execute(text(f"CALL {procedure}(:table, :days, 1)"), {"table": table, "days": days}).close()

    return call


def _differences_on_sqlite(connection: Connection) -> Iterator[_Difference]:
    """Whether numbers of deleted rows stay unused, which SQLAlchemy does not see."""
    made = connection.exec_driver_sql("SELECT name, sql FROM sqlite_master WHERE type = 'table'").all()
    for name, definition in made:
        table = metadata.tables.get(name)
        if table is not None and table.dialect_options["sqlite"]["autoincrement"] and "AUTOINCREMENT" not in definition:
            yield _Difference(f"the table {name} gives numbers of deleted rows to new ones")


def _procedure_statements() -> list[str]:
    """The statements of ``sql/procedures.sql``, without what is meant for the command-line client."""
    source = resources.path("sql", "procedures.sql").read_text(encoding="utf-8")
    lines = [line for line in source.splitlines() if not line.startswith(("--", "DELIMITER"))]
    return [part.strip() for part in re.split(r"^//$", "\n".join(lines), flags=re.M) if part.strip()]
