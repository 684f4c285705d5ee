# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The command ``mozpool-db``, as a person or a script calls it."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
from alembic import command as alembic
from click.testing import CliRunner
from sqlalchemy import select

from mozpool import resources
from mozpool.access import tokens
from mozpool.cli.db import _load, main
from mozpool.db import audit, schema, tables
from mozpool.db.engine import Database
from tests.conftest import open_database
from tests.mariadb import MariaDB

Run = Callable[..., subprocess.CompletedProcess[str]]

CATALOGUE = ("add-hardware-type", "list-hardware-types", "add-image", "list-images")
MAIN = "import sys; from mozpool.cli.db import main; sys.argv[0] = 'mozpool-db'; main()"


def environment(url: str, folder: Path) -> dict[str, str]:
    """What mozpool-db needs to find a configuration in ``folder`` that names ``url``."""
    config = folder / "mozpool.ini"
    config.write_text(f"[database]\nengine = {url}\n[server]\nfqdn = imaging1.example.com\n")
    return {"MOZPOOL_CONFIG": str(config)}


def checked(done: subprocess.CompletedProcess[str], status: int) -> subprocess.CompletedProcess[str]:
    """What a call has said, if it ended as it should."""
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def caller(url: str, folder: Path) -> Run:
    """Calls mozpool-db in ``folder`` with a configuration that names ``url``, within this process."""
    more = environment(url, folder)

    def run(*arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        with chdir(folder):
            result = CliRunner().invoke(main, arguments, env=more, prog_name="mozpool-db")
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        done = subprocess.CompletedProcess(arguments, result.exit_code, result.stdout, result.stderr)
        return checked(done, status)

    return run


def caller_apart(url: str, folder: Path) -> Run:
    """The same by a process for each call, as people call it."""
    more = {**os.environ, **environment(url, folder), "PYTHONPATH": str(Path(schema.__file__).parents[2])}

    def run(*arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", MAIN, *arguments]
        done = subprocess.run(command, cwd=folder, env=more, capture_output=True, text=True, timeout=60)
        return checked(done, status)

    return run


@pytest.fixture
def run(bare_database: Database, tmp_path: Path) -> Run:
    """mozpool-db on a database without tables."""
    return caller(bare_database.url.render_as_string(hide_password=False), tmp_path)


@pytest.fixture
def made(sqlite_url: str, tmp_path: Path) -> Run:
    """mozpool-db on an SQLite database with today's tables."""
    return caller(sqlite_url, tmp_path)


@pytest.fixture
def pool(sqlite_url: str) -> Iterator[Database]:
    """The database that ``made`` works on."""
    database = open_database(sqlite_url)
    yield database
    database.dispose()


def devices(database: Database) -> list[Any]:
    with database.read() as connection:
        return list(connection.execute(select(tables.devices).order_by(tables.devices.c.id)))


def assert_one_line(done: subprocess.CompletedProcess[str], pattern: str) -> None:
    """All that was printed is one line of this kind, on stderr."""
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert re.match(pattern, done.stderr), done.stderr


def make_4_2_1(database: Database) -> None:
    with database.maintenance() as connection:
        alembic.upgrade(schema._alembic(connection), schema.FIRST)
        connection.exec_driver_sql("DROP TABLE alembic_version")


def test_it_makes_checks_and_upgrades_a_database(bare_database: Database, tmp_path: Path):
    run = caller_apart(bare_database.url.render_as_string(hide_password=False), tmp_path)
    bare_database.ping()  # on SQLite the file exists, empty
    assert run("current").stdout == "none\n"
    assert_one_line(
        run("check", status=1), r"Error: the database .* is empty: make its tables with `mozpool-db create-"
    )
    assert run("create-schema").stdout.startswith("Made the database ")
    assert run("current").stdout == f"{schema.head()}\n"
    assert run("check").stdout.startswith("Nothing differs: ")
    assert run("upgrade").stdout.startswith("Nothing to do: ")
    assert "is not empty" in run("create-schema", status=1).stderr


def test_check_names_the_command_for_a_database_of_4_2_1(run: Run, bare_database: Database):
    make_4_2_1(bare_database)
    advice = r"Error: the database .* is of Mozpool 4\.2\.1: bring it up to date with `mozpool-db upgrade`"
    assert_one_line(run("check", status=1), advice)
    assert run("upgrade").stdout.endswith(f"from revision 0001 to {schema.head()}.\n")
    run("check")


@pytest.mark.mysql
def test_upgrade_repairs_procedures_and_says_so(mysql_url: str, mariadb: MariaDB, tmp_path: Path):
    run = caller(mysql_url, tmp_path)
    mariadb.execute("DROP PROCEDURE dbcron", name="mozpool_shared")
    mariadb.execute("CREATE PROCEDURE dbcron() BEGIN SELECT 1; END", name="mozpool_shared")
    done = run("check", status=1)
    assert done.stdout == "the procedure dbcron differs\n"
    assert "`mozpool-db upgrade` repairs what is safe to repair" in done.stderr
    said = run("upgrade").stdout.splitlines()
    assert said[0] == "Repaired: the procedure dbcron differs."
    assert said[1].startswith("Nothing else to do: ")
    assert run("upgrade").stdout.startswith("Nothing to do: ")


def test_upgrade_says_what_it_dares_not_repair(run: Run, bare_database: Database):
    run("create-schema")
    with bare_database.maintenance() as connection:
        connection.exec_driver_sql("ALTER TABLE devices DROP COLUMN last_seen")
        connection.exec_driver_sql("DROP INDEX ix_requests_expires" + on_requests(bare_database))
    done = run("upgrade", status=1)
    assert done.stdout.splitlines() == [
        "Repaired: the index ix_requests_expires on requests (expires) is missing.",
        "the column devices.last_seen is missing",
    ]
    assert "differs in what can't be repaired without the risk of a loss" in done.stderr


def on_requests(database: Database) -> str:
    return " ON requests" if database.dialect == "mysql" else ""


@pytest.mark.mysql
@pytest.mark.parametrize("bare_database", ["mysql"], indirect=True)
def test_two_upgrades_at_once_exclude_each_other(run: Run, bare_database: Database):
    with bare_database.maintenance() as connection:
        schema._exclude_others(connection, bare_database)  # as another upgrade does first
        for arguments in ("upgrade", "create-schema"):
            assert_one_line(run(arguments, status=1), r"Error: the database .* by another mozpool-db: wait until")
    run("create-schema")


def test_it_makes_a_missing_sqlite_file_only_when_asked(tmp_path: Path):
    run = caller(f"sqlite:///{tmp_path}/data/pool.sqlite", tmp_path)
    for command in (["upgrade"], ["current"], ["check"], ["testdata"]):
        assert "does not exist: make it with" in run(*command, status=1).stderr
    assert not (tmp_path / "data").exists()
    run("create-schema")
    run("check")


def test_it_says_in_a_sentence_why_a_server_cannot_be_reached(tmp_path: Path):
    run = caller("mysql+pymysql://mozpool:s3cret@127.0.0.1:1/mozpool", tmp_path)
    done = run("check", status=1)
    assert done.stderr.startswith("Error: the database mozpool at 127.0.0.1:1 is away: ")
    assert len(done.stderr.splitlines()) == 1
    assert "s3cret" not in done.stderr


@pytest.mark.parametrize("command", ["check", "current", "upgrade", "create-schema", "testdata"])
def test_it_names_a_file_that_is_no_database(tmp_path: Path, command: str):
    (tmp_path / "notes.txt").write_text("Remember the milk. " * 100)
    run = caller(f"sqlite:///{tmp_path}/notes.txt", tmp_path)
    assert_one_line(run(command, status=1), r"Error: the database /.*/notes\.txt is no SQLite file ")


@pytest.mark.mysql
def test_it_says_what_the_database_refuses(mysql_url: str, mariadb: MariaDB, tmp_path: Path):
    mariadb.execute("CREATE USER reader@'%' IDENTIFIED BY 's3cret'")
    mariadb.execute("GRANT SELECT ON mozpool_shared.* TO reader@'%'")
    try:
        run = caller(mysql_url.replace("root@", "reader:s3cret@"), tmp_path)
        assert_one_line(
            run("testdata", status=1), r"Error: the database mozpool_shared at .* refuses: INSERT command den"
        )
    finally:
        mariadb.execute("DROP USER reader@'%'")


@pytest.mark.mysql
@pytest.mark.parametrize("command", ["check", "upgrade", "create-schema"])
def test_it_says_what_to_do_about_a_database_that_does_not_exist(mariadb: MariaDB, tmp_path: Path, command: str):
    run = caller(mariadb.url("nowhere"), tmp_path)
    assert_one_line(
        run(command, status=1), r"Error: the database nowhere at .* does not exist: make it with CREATE DATA"
    )
    run = caller(mariadb.url("nowhere").replace("root@", "nobody:s3cret@"), tmp_path)
    refused = run(command, status=1)
    assert_one_line(
        refused, r"Error: the database nowhere at .* refuses the user nobody or the password \(Access denied"
    )
    assert "s3cret" not in refused.stderr


def test_it_says_in_a_sentence_what_is_wrong_with_the_configuration(tmp_path: Path):
    run = caller("oracle://nowhere", tmp_path)
    assert "engine" in run("check", status=1).stderr


def test_a_configuration_is_named_by_an_option_before_all_others(made: Run, tmp_path: Path):
    other = tmp_path / "other.ini"
    other.write_text(f"[database]\nengine = sqlite:///{tmp_path}/other.sqlite\n[server]\nfqdn = other.example.com\n")
    made("--config", str(other), "create-schema")
    assert (tmp_path / "other.sqlite").exists()
    said = made("--config", str(other), "testdata", "-d", "1", "-p", "2999").stdout
    assert "of other.example.com" in said
    assert "does not exist" in made("--config", str(tmp_path / "nowhere.ini"), "check", status=2).stderr


def test_it_explains_itself(made: Run):
    overview = made("--help").stdout
    for command in (
        "create-schema",
        "upgrade",
        "current",
        "check",
        "run",
        "testdata",
        "dump-schema",
        "create-token",
        *CATALOGUE,
    ):
        assert command in overview
        if command != "testdata":
            assert "Usage: mozpool-db" in made(command, "--help").stdout
    assert "..." not in overview.partition("Commands:")[2]
    assert "Usage: mozpool-db run" in made("run", "-h").stdout
    assert "--port" in made("run", "testdata.py", "--help").stdout
    assert "--port" in made("testdata", "--help").stdout
    assert "no such command" in made("frobnicate", status=2).stderr.lower()
    made("upgrade", "twice", status=2)


def test_it_prints_the_schema_that_is_in_sql(made: Run):
    assert made("dump-schema").stdout == resources.path("sql", "schema.sql").read_text(encoding="utf-8")


# -- scripts


def test_it_runs_a_script_of_ones_own(made: Run, tmp_path: Path):
    script = tmp_path / "mine.py"
    script.write_text(
        "def main(args, settings, database):\n    print(args, settings.server.fqdn, database.ping())\n    return 7\n"
    )
    for name in ("mine.py", str(script)):
        done = made("run", name, "-x", "--flag", "a b", status=7)
        assert done.stdout == "['-x', '--flag', 'a b'] imaging1.example.com True\n"


def test_it_refuses_a_script_that_is_none(made: Run, tmp_path: Path):
    assert "there is no script nowhere.py" in made("run", "nowhere.py", status=2).stderr
    (tmp_path / "empty.py").write_text("")
    assert "has no function main" in made("run", "empty.py", status=1).stderr


@pytest.mark.parametrize(
    ("contents", "place"), [(b"x = 1\nDear Sir or Madam,\n", ":2"), (b"x = 1\0\n", ""), (b"x = '\xff'\n", "(:1)?")]
)
def test_what_is_no_python_is_one_line(made: Run, tmp_path: Path, contents: bytes, place: str):
    (tmp_path / "letter.txt").write_bytes(contents)
    assert_one_line(made("run", "letter.txt", status=1), rf"Error: letter\.txt{place}: is no Python script")


def test_what_a_script_raises_is_not_taken_for_that(tmp_path: Path):
    script = tmp_path / "mine.py"
    script.write_text("x = 1\nint('many')\n")
    with pytest.raises(ValueError, match="many"):
        _load(str(script))


@pytest.mark.parametrize("command", [["testdata"], ["run", "testdata.py"], ["run", "scripts/testdata.py"]])
def test_it_fills_in_fake_devices(made: Run, pool: Database, command: list[str]):
    assert "device1 to device16 of imaging1.example.com" in made(*command, "-d", "16", "-p", "2999").stdout
    filled = devices(pool)
    assert [device.name for device in filled] == [f"device{number}" for number in range(1, 17)]
    assert filled[0].relay_info == "127.0.0.1:2999:bank1:relay1"
    assert filled[13].relay_info == "127.0.0.1:2999:bank2:relay6"
    assert filled[14].relay_info == "127.0.0.1:3000:bank1:relay1"
    assert {device.state for device in filled} == {"new"}


def test_it_makes_the_first_token(made: Run, pool: Database):
    done = made("create-token", "me@example.com", "--role", "admin", "--note", "the first")
    text = done.stdout.strip()
    with pool.read() as connection:
        token = tokens.check(connection, text, pool.clock.now())
    assert (token.name, token.role, token.note, token.created_by) == (
        "me@example.com",
        "admin",
        "the first",
        "mozpool-db",
    )
    assert "not shown again" in done.stderr
    with pool.read() as connection:
        noted = audit.newest(connection, audit.Filter(), limit=1)[0]
    assert (noted.action, noted.target) == ("mozpool-db create-token", "token of me@example.com")
    assert text not in str(noted)
    assert text not in done.stderr
    assert "there is no team 'nix'" in made("create-token", "x", "--role", "user", "--team", "nix", status=2).stderr
    made("create-token", "x", "--role", "nix", status=2)
    made("create-token", "x", status=2)
    made("create-token", "a\nb", "--role", "user", status=2)


def test_it_adds_fake_devices_to_those_that_are_there(run: Run, bare_database: Database):
    run("create-schema")
    run("testdata", "-d", "300")
    run("testdata", "-d", "20", "--state", "ready")
    filled = devices(bare_database)
    assert len(filled) == 320
    assert {device.state for device in filled[300:]} == {"ready"}
    for column in ("name", "fqdn", "address", "mac_address", "relay_info", "inventory_id"):
        assert len({getattr(device, column) for device in filled}) == 320, column
    with bare_database.read() as connection:
        assert len(connection.execute(select(tables.images)).all()) == 4
        assert len(connection.execute(select(tables.image_pxe_configs)).all()) == 4
        assert len(connection.execute(select(tables.relay_boards)).all()) == 23
        contents = list(connection.scalars(select(tables.pxe_configs.c.contents)))
    assert all("mobile-imaging-url=http://%IPADDRESS%:8080/scripts/" in text for text in contents)


@pytest.mark.parametrize("arguments", [["-d", "0"], ["-d", "many"], ["-p", "99999"], ["--frobnicate"]])
def test_it_refuses_wrong_numbers_of_fake_devices(made: Run, pool: Database, arguments: list[str]):
    made("testdata", *arguments, status=2)
    assert devices(pool) == []


def test_it_does_not_fill_a_database_that_is_not_up_to_date(run: Run, bare_database: Database):
    bare_database.ping()
    assert "is not up to date" in run("testdata", status=1).stderr
