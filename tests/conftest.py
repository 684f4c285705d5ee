# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Databases for tests: real ones, empty and up to date, thrown away afterwards."""

import random
import shutil
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pymysql.err import OperationalError

from mozpool.clock import Clock
from mozpool.db import schema
from mozpool.db.engine import Database
from mozpool.db.tables import metadata
from tests.mariadb import READY_WITHIN, MariaDB, missing, running
from tests.processes import needs

if TYPE_CHECKING:
    from tests.app_fixtures import Server

BOTH = ["sqlite", pytest.param("mysql", marks=pytest.mark.mysql)]


def open_database(url: str) -> Database:
    """A Database as the daemon makes it; the caller disposes of it."""
    return Database(url, clock=Clock(), rng=random.Random(1))


@pytest.fixture(scope="session")
def mariadb() -> Iterator[MariaDB]:
    """A MariaDB server that all tests of this run share."""
    needs(missing())
    with running() as server:
        yield server


@pytest.fixture(scope="session")
def _sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite file with today's tables, to be copied."""
    path = tmp_path_factory.mktemp("template") / "mozpool.sqlite"
    database = open_database(f"sqlite:///{path}")
    schema.create(database)
    database.dispose()
    return path


@pytest.fixture
def sqlite_url(_sqlite_template: Path, tmp_path: Path) -> str:
    """The URL of an SQLite file with today's tables, all empty."""
    path = tmp_path / "mozpool.sqlite"
    shutil.copyfile(_sqlite_template, path)
    return f"sqlite:///{path}"


@pytest.fixture(scope="session")
def _mysql_name(mariadb: MariaDB) -> str:
    """A database with today's tables, which the tests take turns in."""
    mariadb.execute("CREATE DATABASE mozpool_shared")
    database = open_database(mariadb.url("mozpool_shared"))
    schema.create(database)
    database.dispose()
    return "mozpool_shared"


@pytest.fixture
def mysql_url(mariadb: MariaDB, _mysql_name: str) -> Iterator[str]:
    """The URL of a MariaDB database with today's tables, all empty."""
    yield mariadb.url(_mysql_name)
    empty_tables(mariadb, _mysql_name)


@pytest.fixture(params=BOTH)
def database_url(request: pytest.FixtureRequest) -> str:
    """The URL of a database with today's tables, all empty: once SQLite, once MariaDB."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A Database with today's tables, all empty: once SQLite, once MariaDB."""
    database = open_database(database_url)
    yield database
    database.dispose()


@pytest.fixture(params=BOTH)
def bare_database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A Database without tables: once SQLite, once MariaDB."""
    if request.param == "sqlite":
        database = open_database(f"sqlite:///{tmp_path}/bare.sqlite")
        yield database
        database.dispose()
        return
    server: MariaDB = request.getfixturevalue("mariadb")
    server.execute("CREATE DATABASE mozpool_bare")
    database = open_database(server.url("mozpool_bare"))
    yield database
    database.dispose()
    server.execute("DROP DATABASE mozpool_bare")


def empty_tables(server: MariaDB, name: str) -> None:
    """Make the tables as good as new, in a few milliseconds: only those that were used are truncated.

    Connections that the test left open are ended first, because their locks would hold this up. KILL returns before
    its connection has gone, and one that is about to commit may still do so.
    """
    give_up = time.monotonic() + READY_WITHIN
    while left := server.execute("SELECT id FROM information_schema.processlist WHERE db = %s", name):
        assert time.monotonic() < give_up, f"a test has left behind who connects to {name} again and again"
        for (number,) in left:
            with suppress(OperationalError):  # it has just ended by itself
                server.execute("KILL %s", number)
    tables = list(metadata.tables)
    with closing(server.connect(name)) as connection, connection.cursor() as cursor:
        filled = (f"SELECT '{table}' FROM DUAL WHERE EXISTS (SELECT 1 FROM {table})" for table in tables)
        cursor.execute(" UNION ALL ".join(filled))
        used = {table for (table,) in cursor.fetchall()}
        # Rows that came and went have used up numbers, too.
        cursor.execute(
            "SELECT table_name FROM information_schema.tables WHERE table_schema = %s AND auto_increment > 1", (name,)
        )
        used |= {table for (table,) in cursor.fetchall()} & set(tables)
        cursor.execute("SET foreign_key_checks = 0")
        for table in sorted(used):
            cursor.execute(f"TRUNCATE {table}")


@pytest.fixture
def imaging_server(database_url: str, tmp_path: Path) -> Iterator["Server"]:
    """A whole imaging server with three devices, whose timers stand still: once on SQLite, once on MariaDB."""
    from tests.app_fixtures import server

    with server(database_url, tmp_path) as running_server:
        yield running_server
