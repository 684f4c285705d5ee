# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The command ``mozpool-db``, as a person or a script calls it."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from mozpool import resources
from mozpool.db import schema, tables
from mozpool.db.engine import Database
from tests.conftest import open_database

Run = Callable[..., subprocess.CompletedProcess[str]]

MAIN = "import sys; from mozpool.cli.db import main; sys.argv[0] = 'mozpool-db'; main()"


def caller(url: str, folder: Path) -> Run:
    """Calls mozpool-db in ``folder`` with a configuration that names ``url``."""
    config = folder / "mozpool.ini"
    config.write_text(f"[database]\nengine = {url}\n[server]\nfqdn = imaging1.example.com\n")
    top = str(Path(schema.__file__).parents[2])
    environment = {**os.environ, "MOZPOOL_CONFIG": str(config), "PYTHONPATH": top}

    def run(*arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", MAIN, *arguments]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == status, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done

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


def test_it_makes_checks_and_upgrades_a_database(run: Run, bare_database: Database):
    bare_database.ping()  # on SQLite the file exists, empty
    assert run("current").stdout == "none\n"
    assert "the table devices is missing" in run("check", status=1).stdout
    assert run("create-schema").stdout.startswith("Made the database ")
    assert run("current").stdout == f"{schema.head()}\n"
    assert run("check").stdout.startswith("Nothing differs: ")
    assert run("upgrade").stdout.startswith("Nothing to do: ")
    assert "is not empty" in run("create-schema", status=1).stderr


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


def test_it_says_in_a_sentence_what_is_wrong_with_the_configuration(tmp_path: Path):
    run = caller("oracle://nowhere", tmp_path)
    assert "engine" in run("check", status=1).stderr


def test_it_explains_itself(made: Run):
    overview = made("--help").stdout
    for command in ("create-schema", "upgrade", "current", "check", "run", "testdata", "dump-schema"):
        assert command in overview
        if command not in ("run", "testdata"):
            assert "Usage: mozpool-db" in made(command, "--help").stdout
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


@pytest.mark.parametrize("command", [["testdata"], ["run", "testdata.py"], ["run", "scripts/testdata.py"]])
def test_it_fills_in_fake_devices(made: Run, pool: Database, command: list[str]):
    assert "device1 to device16 of imaging1.example.com" in made(*command, "-d", "16", "-p", "2999").stdout
    filled = devices(pool)
    assert [device.name for device in filled] == [f"device{number}" for number in range(1, 17)]
    assert filled[0].relay_info == "127.0.0.1:2999:bank1:relay1"
    assert filled[13].relay_info == "127.0.0.1:2999:bank2:relay6"
    assert filled[14].relay_info == "127.0.0.1:3000:bank1:relay1"
    assert {device.state for device in filled} == {"new"}


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
