# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What commands leave in the audit, how old rows go, and a daemon whose account can't change any."""

from __future__ import annotations

import os
import pwd
import random
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from pymysql.err import OperationalError

from mozpool.cli import db, pxeconfig
from mozpool.clock import Clock
from mozpool.db import audit, upkeep
from mozpool.db.audit import Entry, Filter
from mozpool.db.engine import Database
from mozpool.lifeguard import sampling
from tests.app_fixtures import server
from tests.mariadb import MariaDB

ME = pwd.getpwuid(os.getuid()).pw_name


class Commands:
    """The commands on a database."""

    def __init__(self, database: Database, folder: Path) -> None:
        self.database = database
        self._config = folder / "config.ini"
        url = database.url.render_as_string(hide_password=False)
        self._config.write_text(f"[database]\nengine = {url}\n[server]\nfqdn = one.example.com\n")

    def db(self, *words: str, stdin: str | None = None) -> Result:
        return CliRunner().invoke(db.main, ["--config", str(self._config), *words], input=stdin)

    def pxe(self, *words: str, stdin: str | None = None) -> Result:
        return CliRunner().invoke(pxeconfig.main, ["--mozpool-config", str(self._config), *words], input=stdin)

    def rows(self) -> list[Entry]:
        with self.database.read() as conn:
            return audit.newest(conn, Filter(), limit=1000)[::-1]


@pytest.fixture
def commands(database: Database, tmp_path: Path) -> Commands:
    return Commands(database, tmp_path)


def test_what_commands_change_is_in_it_with_the_user(commands: Commands) -> None:
    done = [
        commands.db("add-image", "b2g", "--boot-config-key", "b2gbase"),
        commands.db("add-hardware-type", "panda", "ES"),
        commands.pxe("add", "boot", "--description", "x", "--config", "-", stdin="rootpw s3cret"),
        commands.pxe("assign", "boot", "--image", "b2g", "--type", "panda"),
        commands.pxe("unassign", "boot", "--image", "b2g", "--type", "panda", "--yes"),
        commands.pxe("modify", "boot", "--inactive"),
        commands.pxe("delete", "boot", "--yes"),
    ]
    assert [each.exit_code for each in done] == [0] * len(done), [each.output for each in done]
    found = commands.rows()
    assert [(row.action, row.target) for row in found] == [
        ("mozpool-db add-image", "image b2g"),
        ("mozpool-db add-hardware-type", "hardware_type panda ES"),
        ("pxe-config add", "pxe_config boot"),
        ("pxe-config assign", "pxe_config boot"),
        ("pxe-config unassign", "pxe_config boot"),
        ("pxe-config modify", "pxe_config boot"),
        ("pxe-config delete", "pxe_config boot"),
    ]
    assert {(row.kind, row.who, row.server, row.status, row.outcome) for row in found} == {
        ("command", ME, "one.example.com", None, "ok")
    }
    assert found[0].details["boot_config_keys"] == ["b2gbase"]
    assert "s3cret" not in repr(found)


def test_what_commands_do_not_change_is_not_in_it(commands: Commands) -> None:
    assert commands.db("list-images").exit_code == 0
    assert commands.pxe("delete", "nothing", "--yes").exit_code != 0
    assert commands.db("add-image", "").exit_code != 0
    assert commands.rows() == []


def test_making_and_upgrading_the_tables_is_in_it(bare_database: Database, tmp_path: Path) -> None:
    commands = Commands(bare_database, tmp_path)
    assert commands.db("create-schema").exit_code == 0
    assert commands.db("upgrade").exit_code == 0
    assert [row.action for row in commands.rows()] == ["mozpool-db create-schema"]


@pytest.fixture
def old(commands: Commands) -> Commands:
    """Five thousand rows, the oldest ones 50 days old."""
    now = Clock().now()
    made = [
        Entry(now - timedelta(days=50) * (number / 2500), "token", "ci", 1, None, "s", "request_return", None)
        for number in range(2500)
    ]
    commands.database.run(lambda conn: audit.add(conn, made))
    return commands


def test_old_rows_go_when_an_administrator_says_so(old: Commands) -> None:
    assert old.db("expire-audit").exit_code == 2
    assert old.db("expire-audit", "--older-than", "0").exit_code == 2
    said = old.db("expire-audit", "--older-than", "10", stdin="n\n")
    assert said.exit_code == 1
    assert "Delete 2000 rows of the audit, all before" in said.output
    with old.database.read() as conn:
        assert audit.count_before(conn, Clock().now()) == 2500
    said = old.db("expire-audit", "--older-than", "10", stdin="y\n")
    assert said.exit_code == 0
    assert "Deleted 2000 rows" in said.output
    found = old.rows()
    assert len(found) == 501
    assert (found[-1].action, found[-1].who, found[-1].details["rows"]) == ("mozpool-db expire-audit", ME, 2000)
    assert "Nothing to do" in old.db("expire-audit", "--older-than", "10", "--yes").output


def test_upkeep_leaves_it_alone(old: Commands) -> None:
    upkeep.run(old.database, Clock())
    assert len(old.rows()) == 1000
    with old.database.read() as conn:
        assert audit.count_before(conn, Clock().now()) == 2500


@pytest.mark.mysql
def test_a_daemon_runs_with_the_rights_that_are_printed(mariadb: MariaDB, mysql_url: str, tmp_path: Path) -> None:
    admin = Database(mysql_url, clock=Clock(), rng=random.Random(1))
    name = str(admin.url.database)
    said = Commands(admin, tmp_path).db("grants", "--user", "pool", "--host", "127.0.0.1")
    assert said.exit_code == 0, said.output
    mariadb.execute("CREATE USER pool@127.0.0.1 IDENTIFIED BY 'right'")
    try:
        for statement in said.output.splitlines():
            mariadb.execute(statement.rstrip(";"))
        url = admin.url.set(username="pool", password="right").render_as_string(hide_password=False)
        with server(url, tmp_path) as site:
            daemon = site.daemon
            number = site.made("device1")
            assert site.post(f"/api/request/{number}/renew/", {"duration": 60}).status_code == 204
            assert site.post("/api/device/device2/set-comments/", {"comments": "x"}).status_code == 200
            assert site.post("/api/device/device2/set-labels/", {"labels": {"a": "b"}}).status_code == 200
            assert site.post("/api/image/create/", {"name": "new"}).status_code == 200
            assert site.post("/api/image/new/delete/", {}).status_code == 200
            assert site.post(f"/api/request/{number}/return/", {}).status_code == 204
            assert site.log("device2") != []
            upkeep.run(daemon.database, daemon.clock)
            sampling.take(daemon.database, daemon.clock.now(), frozenset())
            daemon.give_sign()
            daemon.scan()
            assert daemon.auditor.late == 0
            assert site.get("/audit").status_code == 200
            with closing(mariadb.connect(name)) as connection, connection.cursor() as cursor:
                cursor.execute("SELECT COUNT(*) FROM audit")
                assert cursor.fetchone() == (7,)
            for statement in (
                "DELETE FROM audit",
                "UPDATE audit SET who = 'eve'",
                "TRUNCATE audit",
                "DROP TABLE audit",
            ):
                with pytest.raises(Exception, match="denied") as refused, daemon.database.begin() as conn:
                    conn.exec_driver_sql(statement)
                assert isinstance(refused.value.__cause__, OperationalError)
    finally:
        mariadb.execute("DROP USER pool@127.0.0.1")
        admin.dispose()


def test_sqlite_knows_no_rights(sqlite_url: str, tmp_path: Path) -> None:
    database = Database(sqlite_url, clock=Clock(), rng=random.Random(1))
    said = Commands(database, tmp_path).db("grants")
    database.dispose()
    assert said.exit_code == 1
    assert "SQLite" in said.output


@pytest.mark.mysql
@pytest.mark.parametrize("option, value", [("--user", "a'b"), ("--host", "x` TO y"), ("--user", "")])
def test_names_that_no_account_has_are_refused(mysql_url: str, tmp_path: Path, option: str, value: str) -> None:
    database = Database(mysql_url, clock=Clock(), rng=random.Random(1))
    said = Commands(database, tmp_path).db("grants", option, value)
    database.dispose()
    assert said.exit_code != 0
    assert "GRANT" not in said.output
