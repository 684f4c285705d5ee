# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The schema: made new, upgraded from a 4.2.1 database with data, compared, and the procedures at work."""

import re
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.script import ScriptDirectory

from mozpool import resources
from mozpool.db import devices, ownership, requests, schema, servers
from mozpool.db.bootconfig import boot_config_hash
from mozpool.db.engine import Database
from mozpool.db.tables import metadata
from tests.conftest import open_database
from tests.mariadb import MariaDB

mysql = pytest.mark.mysql

LONG_FQDN = "x" * 236 + ".mozilla.example.com"

ROWS: dict[str, list[dict[str, object]]] = {
    "imaging_servers": [
        {"id": 1, "fqdn": "mobile-imaging-001.p1.releng.example.com"},
        {"id": 2, "fqdn": "mobile-imaging-002.p2.releng.example.com"},
    ],
    "pxe_configs": [
        {"id": 1, "name": "b2g", "description": "Für Böards", "contents": "100 % of %IPADDRESS%", "active": 1},
        {"id": 3, "name": "old", "description": "", "contents": "", "active": 0},
    ],
    "images": [
        {"id": 1, "name": "b2g", "boot_config_keys": '["b2gbase"]', "can_reuse": 1, "hidden": 0, "has_sut_agent": 1},
        {"id": 4, "name": "self-test", "boot_config_keys": "[]", "can_reuse": 0, "hidden": 1, "has_sut_agent": 0},
    ],
    "hardware_types": [{"id": 1, "type": "panda", "model": "ES"}],
    "image_pxe_configs": [
        {"image_id": 1, "hardware_type_id": 1, "pxe_config_id": 1},
        {"image_id": 4, "hardware_type_id": 1, "pxe_config_id": None},
    ],
    "relay_boards": [
        {
            "id": 1,
            "name": "relay1",
            "fqdn": "relay1.example.com",
            "imaging_server_id": 1,
            "state": "ready",
            "state_counters": "{}",
            "state_timeout": "2013-11-12 08:00:00",
        }
    ],
}


def device(number: int, **values: object) -> dict[str, object]:
    return {
        "id": number,
        "name": f"panda-{number:04}",
        "fqdn": f"panda-{number:04}.p1.releng.example.com",
        "inventory_id": 6000 + number,
        "state": "ready",
        "state_counters": '{"pc_pinging": 3}',
        "state_timeout": None,
        "mac_address": f"6038e0{number:06x}",
        "imaging_server_id": 1,
        "relay_info": f"relay1.example.com:bank1:relay{number}",
        "image_id": 1,
        "boot_config": None,
        "next_image_id": None,
        "next_boot_config": None,
        "comments": None,
        "environment": "production",
        "hardware_type_id": 1,
    } | values


def request(number: int, **values: object) -> dict[str, object]:
    return {
        "id": number,
        "imaging_server_id": 1,
        "requested_device": "any",
        "assignee": "buildbot@slave.example.com",
        "expires": "2013-11-13 10:11:12",
        "image_id": 1,
        "boot_config": '{"b2gbase": "http://example.com/b2g/"}',
        "state": "ready",
        "state_counters": "{}",
        "state_timeout": None,
        "environment": "any",
    } | values


ROWS["devices"] = [
    device(1, state="free", state_timeout="2013-11-12 23:59:59"),
    device(2, boot_config='{"b2gbase":"http://example.com/b2g/" }', fqdn=LONG_FQDN, comments="Grüße, 100 %"),
    device(3, state="pc_pinging", image_id=None, next_image_id=1, next_boot_config="{}", environment=None),
    device(4, state="frobnicating", boot_config="not JSON", hardware_type_id=None, relay_info=None),
    device(7, state="failed_pxe_booting", imaging_server_id=2),
    device(8, state="locked_out"),
]
ROWS["requests"] = [
    request(10),
    request(11, state="pending", state_timeout="2013-11-12 23:00:00", environment=None),
    request(12, state="expired"),
    request(13, state="failed_bad_device", requested_device="panda-0007"),
    request(14, state="closed"),
    request(15, state="finding_device", environment="staging"),
    request(5_000_000_000, imaging_server_id=2),
]
ROWS["device_requests"] = [
    {"request_id": 11, "device_id": 3, "imaging_result": None},
    {"request_id": 10, "device_id": 2, "imaging_result": "complete"},
    {"request_id": 5_000_000_000, "device_id": 8, "imaging_result": "complete"},
    {"request_id": 13, "device_id": 7, "imaging_result": "failed-bad-device"},  # ended, but never released
    {"request_id": 12, "device_id": 1, "imaging_result": "complete"},
    {"request_id": 999, "device_id": 4, "imaging_result": None},  # orphans
    {"request_id": 15, "device_id": 99, "imaging_result": None},
]
ROWS["device_logs"] = [
    {"id": 1, "device_id": 2, "ts": "2013-11-12 20:00:00", "source": "statemachine", "message": "entering state ready"},
    {"id": 2, "device_id": 99, "ts": "2013-11-13 09:00:00", "source": "syslog", "message": "größer"},
]
ROWS["request_logs"] = [
    {"id": 1, "request_id": 5_000_000_000, "ts": "2013-11-13 09:00:00", "source": "statemachine", "message": "x"}
]


def sql(name: str) -> str:
    return resources.path("sql", name).read_text(encoding="utf-8")


def fill(connection: sa.Connection) -> None:
    """Put the rows in, children last."""
    for table, rows in ROWS.items():
        into = sa.table(table, *(sa.column(name) for name in rows[0]))
        connection.execute(into.insert(), rows)


@pytest.fixture
def old_database(bare_database: Database, request: pytest.FixtureRequest) -> Database:
    """A 4.2.1 database with data, which never heard of revisions."""
    if bare_database.dialect == "mysql":
        server: MariaDB = request.getfixturevalue("mariadb")
        server.client("mariadb", str(bare_database.url.database), script=sql("schema-4.2.1.sql"))
    else:
        with bare_database.maintenance() as connection:
            command.upgrade(schema._alembic(connection), schema.FIRST)
            connection.exec_driver_sql("DROP TABLE alembic_version")
    with bare_database.begin() as connection:
        fill(connection)
    return bare_database


def dump(database: Database) -> str:
    """Everything in the database, as text."""
    if database.dialect == "sqlite":
        with closing(sqlite3.connect(str(database.url.database))) as connection:
            return "\n".join(connection.iterdump())
    with database.read() as connection:
        port = connection.exec_driver_sql("SELECT @@port").scalar_one()
    options = ["--routines", "--skip-dump-date", "--order-by-primary"]
    server = MariaDB.__new__(MariaDB)  # only the port matters to its client
    server.port = port
    return server.client("mariadb-dump", *options, str(database.url.database))


def rows(database: Database, table: str, *columns: str) -> list[Any]:
    with database.read() as connection:
        selected = [metadata.tables[table].c[name] for name in columns]
        return [tuple(row) for row in connection.execute(sa.select(*selected).order_by(selected[0]))]


# -- new databases


def test_it_makes_the_schema(bare_database: Database):
    assert schema.current(bare_database) is None
    schema.create(bare_database)
    assert schema.current(bare_database) == schema.head()
    assert schema.check(bare_database) == []


def test_it_refuses_to_make_the_schema_twice(bare_database: Database):
    schema.create(bare_database)
    before = dump(bare_database)
    with pytest.raises(schema.SchemaError, match="is not empty"):
        schema.create(bare_database)
    assert dump(bare_database) == before


def test_it_makes_all_tables_when_an_empty_database_is_upgraded(bare_database: Database):
    assert schema.upgrade(bare_database) == schema.Upgrade(None, (), ())
    assert schema.check(bare_database) == []


def test_it_makes_the_folder_of_an_sqlite_file(tmp_path):
    database = open_database(f"sqlite:///{tmp_path}/new/folder/pool.sqlite")
    schema.create(database)
    assert schema.check(database) == []
    database.dispose()


def test_it_has_one_head_and_nothing_before_4_2_1():
    scripts = ScriptDirectory(str(resources.path("sql", "migrations")))
    assert scripts.get_bases() == [schema.FIRST]
    assert scripts.get_heads() == [schema.head()]
    assert {script.revision: script.down_revision for script in scripts.walk_revisions()} == schema._revisions()


# -- 4.2.1


@mysql
def test_its_first_revision_is_the_4_2_1_schema(mariadb: MariaDB):
    """As far as the old server's taste in names and character sets goes."""
    described = []
    for name in ("mozpool_old", "mozpool_first"):
        mariadb.execute(f"CREATE DATABASE {name}")
        if name == "mozpool_old":
            mariadb.client("mariadb", name, script=sql("schema-4.2.1.sql"))
        else:
            database = open_database(mariadb.url(name))
            with database.maintenance() as connection:
                command.upgrade(schema._alembic(connection), schema.FIRST)
            database.dispose()
        columns = mariadb.execute(
            "SELECT table_name, column_name, REPLACE(column_type, ' unsigned', ''), is_nullable, column_key FROM "
            "information_schema.columns WHERE table_schema = %s AND table_name <> 'alembic_version' ORDER BY 1, 2",
            name,
        )
        keys = mariadb.execute(
            "SELECT table_name, column_name, referenced_table_name FROM information_schema.key_column_usage "
            "WHERE table_schema = %s AND referenced_table_name IS NOT NULL ORDER BY 1, 2",
            name,
        )
        described.append((columns, keys))
        mariadb.execute(f"DROP DATABASE {name}")
    assert described[0] == described[1]


def test_it_upgrades_a_4_2_1_database(old_database: Database):
    assert schema.current(old_database) is None
    assert schema.upgrade(old_database) == schema.Upgrade(schema.FIRST, (), ())
    assert schema.current(old_database) == schema.head()
    assert schema.check(old_database) == []


def test_it_loses_no_row_and_no_name(old_database: Database):
    schema.upgrade(old_database)
    for table, old_rows in ROWS.items():
        if table == "device_requests":
            continue
        changed = {"state", "state_timeout", "expires", "ts", "environment"}
        columns = [name for name in old_rows[0] if name not in changed]
        expected = sorted((tuple(row[name] for name in columns) for row in old_rows), key=str)
        assert sorted(rows(old_database, table, *columns), key=str) == expected
    expires = datetime(2013, 11, 13, 10, 11, 12, tzinfo=UTC)
    assert {when for _id, when in rows(old_database, "requests", "id", "expires")} == {expires}
    assert rows(old_database, "device_logs", "id", "ts")[0] == (1, datetime(2013, 11, 12, 20, tzinfo=UTC))


def test_it_keeps_every_claim_and_gives_it_an_id(old_database: Database):
    before = datetime.now(UTC) - timedelta(seconds=1)
    schema.upgrade(old_database)
    claims = rows(old_database, "device_requests", "request_id", "device_id", "imaging_result", "id")
    assert [claim[:3] for claim in claims] == [(10, 2, "complete"), (11, 3, None), (5_000_000_000, 8, "complete")]
    ids = {device_id: claim_id for _request, device_id, _result, claim_id in claims}
    assert dict(rows(old_database, "devices", "id", "claim_id")) == {1: None, 4: None, 7: None} | ids
    history = rows(
        old_database, "claim_history", "id", "request_id", "device_id", "imaging_result", "claimed_at", "released_at"
    )
    assert [line[1:4] for line in history] == [
        (10, 2, "complete"),
        (11, 3, None),
        (12, 1, "complete"),
        (13, 7, "failed-bad-device"),
        (5_000_000_000, 8, "complete"),
    ]
    assert {claim_id for *_, claim_id in claims} == {line[0] for line in history if line[5] is None}
    assert all(before < line[4] <= datetime.now(UTC) for line in history)
    assert [line[1] for line in history if line[5] is not None] == [12, 13]


def test_it_refuses_a_second_claim_of_a_device_afterwards(old_database: Database):
    schema.upgrade(old_database)
    claims = metadata.tables["device_requests"]
    for request_id, device_id in ((15, 2), (10, 4), (999, 4)):
        with pytest.raises(sa.exc.IntegrityError), old_database.begin() as connection:
            connection.execute(claims.insert().values(id=77, request_id=request_id, device_id=device_id))


def test_it_renames_old_states_and_keeps_unknown_ones(old_database: Database):
    schema.upgrade(old_database)
    assert dict(rows(old_database, "devices", "id", "state")) == {
        1: "ready",
        2: "ready",
        3: "pc_pinging",
        4: "frobnicating",
        7: "failed_pxe_booting",
        8: "locked_out",
    }
    assert dict(rows(old_database, "requests", "id", "state"))[12] == "closed"


def test_it_makes_old_local_timeouts_due_now(old_database: Database):
    before = datetime.now(UTC) - timedelta(seconds=1)
    schema.upgrade(old_database)
    for table, due in (("devices", 1), ("requests", 11), ("relay_boards", 1)):
        for number, timeout in rows(old_database, table, "id", "state_timeout"):
            assert before < timeout <= datetime.now(UTC) if number == due else timeout is None


def test_it_prepares_old_devices_and_requests_for_matching(old_database: Database):
    schema.upgrade(old_database)
    hashes = dict(rows(old_database, "devices", "id", "boot_config_hash"))
    assert hashes[2] == boot_config_hash('{"b2gbase": "http://example.com/b2g/"}')
    assert hashes[4] == hashes[1] == boot_config_hash("")
    assert len(set(rows(old_database, "devices", "shuffle"))) > 1
    assert rows(old_database, "devices", "id", "version", "attempt", "environment")[2] == (3, 0, 0, None)
    requests = rows(old_database, "requests", "id", "priority", "wait", "queue_key", "created", "environment")
    assert requests[1] == (11, 0, 600, 0, None, "any")


def test_it_changes_nothing_when_run_again(old_database: Database):
    schema.upgrade(old_database)
    before = dump(old_database)
    assert schema.upgrade(old_database) == schema.Upgrade(schema.head(), (), ())
    assert dump(old_database) == before


def test_it_never_gives_the_id_of_a_deleted_row_to_a_new_one(old_database: Database):
    schema.upgrade(old_database)
    with old_database.begin() as connection:
        for table in ("claim_history", "device_requests", "requests", "devices"):
            connection.execute(metadata.tables[table].delete())
        columns = {"imaging_server_id": 1, "state": "new", "state_counters": "{}"}
        for table, highest, others in (
            ("devices", 8, {"name": "d", "fqdn": "d", "inventory_id": 1, "mac_address": "020000000001"}),
            ("requests", 5_000_000_000, {"requested_device": "any", "assignee": "me", "expires": datetime.now(UTC)}),
        ):
            inserted = connection.execute(metadata.tables[table].insert().values(columns | others))
            assert tuple(inserted.inserted_primary_key or ()) == (highest + 1,)


def test_it_leaves_other_programs_tables_alone(old_database: Database):
    with old_database.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE grafana (id INT)")
    schema.upgrade(old_database)
    assert schema.check(old_database) == []


def test_it_refuses_a_table_of_devices_that_is_not_its_own(bare_database: Database):
    with bare_database.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE devices (id INT, serial INT)")
    before = dump(bare_database)
    with pytest.raises(schema.SchemaError, match=r"no database of Mozpool 4\.2\.1"):
        schema.upgrade(bare_database)
    assert dump(bare_database) == before


def test_it_refuses_a_database_of_a_newer_version(bare_database: Database):
    schema.create(bare_database)
    with bare_database.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(schema.SchemaError, match="of a newer Mozpool"):
        schema.upgrade(bare_database)


@mysql
def test_it_goes_on_after_an_upgrade_that_was_interrupted(mariadb: MariaDB):
    """MySQL can't undo what went before."""
    mariadb.execute("CREATE DATABASE mozpool_interrupted")
    database = open_database(mariadb.url("mozpool_interrupted"))
    mariadb.client("mariadb", "mozpool_interrupted", script=sql("schema-4.2.1.sql"))
    with database.begin() as connection:
        fill(connection)

    class PowerCutError(Exception):
        pass

    interruptions = 0
    left = 0

    def stop_after_some(conn, cursor, statement, parameters, context, executemany):
        nonlocal left
        if re.match(r"\s*(ALTER|CREATE|DROP|RENAME|INSERT|UPDATE|DELETE)", statement):
            left -= 1
            if left < 0:
                raise PowerCutError

    sa.event.listen(sa.Engine, "after_cursor_execute", stop_after_some)
    try:
        while True:
            # Far enough each time that it gets on: what was done is skipped, but looked at again.
            left = 3 + 4 * interruptions
            try:
                schema.upgrade(database)
                break
            except PowerCutError:
                interruptions += 1
    finally:
        sa.event.remove(sa.Engine, "after_cursor_execute", stop_after_some)
    assert interruptions > 5
    assert schema.check(database) == []
    claims = rows(database, "device_requests", "request_id", "device_id")
    assert claims == [(10, 2), (11, 3), (5_000_000_000, 8)]
    assert len(rows(database, "claim_history", "id")) == 5
    database.dispose()
    mariadb.execute("DROP DATABASE mozpool_interrupted")


# -- 0003 to 0004


@pytest.fixture
def at_0003(old_database: Database) -> Database:
    """A database before servers took over from one another, with data and a server's sign of life."""
    with old_database.maintenance() as connection:
        command.stamp(schema._alembic(connection), schema.FIRST)
    with old_database.maintenance() as connection:
        command.upgrade(schema._alembic(connection), "0003")
    presence = old_tables(old_database)["server_presence"]
    with old_database.begin() as connection:
        connection.execute(presence.insert(), [sign(1)])
    return old_database


def sign(server_id: int, **columns: object) -> dict[str, object]:
    now = datetime(2030, 1, 1, 12, 0)  # noqa: DTZ001 (as it is stored)
    last = {"beat": 7, "stopped": 0, "version": "5.1", "started": now, "seen": now, "workers": 32, "busy": 3}
    return {"imaging_server_id": server_id, **last, **columns}


def old_tables(database: Database) -> dict[str, sa.Table]:
    """The tables as they are now: what a process knows that has them from today's version."""
    found = sa.MetaData()
    with database.read() as connection:
        found.reflect(connection)
    return dict(found.tables)


def test_it_upgrades_a_database_of_servers_that_do_not_take_over(at_0003: Database):
    assert schema.current(at_0003) == "0003"
    known = old_tables(at_0003)
    compared = ("devices", "requests", "server_presence", "device_requests", "claim_history")

    def contents() -> dict[str, list[Any]]:
        with at_0003.read() as connection:
            return {name: sorted(map(tuple, connection.execute(sa.select(known[name]))), key=str) for name in compared}

    before = contents()
    assert len(before["devices"]) == 6
    assert schema.upgrade(at_0003) == schema.Upgrade("0003", (), ())
    assert schema.current(at_0003) == schema.head()
    assert schema.check(at_0003) == []
    assert contents() == before
    for table in ("devices", "requests"):
        assert {row[1:] for row in rows(at_0003, table, "id", "owner_id", "came_from_id", "epoch")} == {(None, None, 0)}
    groups = rows(at_0003, "server_presence", "imaging_server_id", "group_name", "takeover_after", "losses")
    assert groups == [(1, None, None, 0)]


def test_after_the_upgrade_each_server_acts_on_what_belongs_to_it(at_0003: Database):
    schema.upgrade(at_0003)
    with at_0003.read() as connection:
        for number in range(1, 9):
            device = devices.get(connection, number)
            assert device is None or (device.owner_id, device.epoch) == (device.imaging_server_id, 0)
        request = requests.get(connection, 5_000_000_000)
    assert request is not None
    assert (request.owner_id, request.owner) == (2, "mobile-imaging-002.p2.releng.example.com")
    assert (request.device_server_id, request.device_server) == (1, "mobile-imaging-001.p1.releng.example.com")


def test_that_upgrade_goes_on_where_it_was_interrupted(at_0003: Database):
    """After any of its statements; MySQL keeps what was done, SQLite nothing of it."""

    class PowerCutError(Exception):
        pass

    left = interruptions = 0

    def stop_after_some(conn, cursor, statement, parameters, context, executemany):
        nonlocal left
        if re.match(r"\s*(ALTER|CREATE|DROP|RENAME|INSERT|UPDATE|DELETE)", statement):
            left -= 1
            if left < 0:
                raise PowerCutError

    sa.event.listen(sa.Engine, "after_cursor_execute", stop_after_some)
    try:
        while True:
            left = interruptions if at_0003.dialect == "sqlite" else interruptions // 27
            assert interruptions < 100
            try:
                schema.upgrade(at_0003)
                break
            except PowerCutError:
                interruptions += 1
                assert schema.current(at_0003) != schema.head()
    finally:
        sa.event.remove(sa.Engine, "after_cursor_execute", stop_after_some)
    assert interruptions >= 28, "sixteen columns, seven indexes and five tables"
    assert schema.current(at_0003) == schema.head()
    assert schema.check(at_0003) == []
    assert len(rows(at_0003, "devices", "id")) == 6


def test_a_process_that_knows_nothing_of_it_goes_on_writing(at_0003: Database):
    """Servers are upgraded one after the other."""
    known = old_tables(at_0003)
    assert "owner_id" not in known["devices"].columns
    schema.upgrade(at_0003)
    with at_0003.begin() as connection:
        machine = {"state": "new", "state_counters": "{}", "version": 0, "attempt": 0, "imaging_server_id": 2}
        connection.execute(
            known["devices"].insert(),
            [{"id": 50, "name": "d50", "fqdn": "d50", "inventory_id": 50, "mac_address": "020000000050", **machine}],
        )
        expires = datetime(2030, 1, 1)  # noqa: DTZ001
        connection.execute(
            known["requests"].insert(),
            [{"id": 60, "requested_device": "any", "assignee": "me", "expires": expires, **machine}],
        )
        presence = known["server_presence"]
        connection.execute(presence.update().where(presence.c.imaging_server_id == 1), {"beat": 8})
        connection.execute(presence.insert(), [sign(2)])
        for table in ("devices", "requests"):
            written = known[table].update().values(state="ready", version=known[table].c.version + 1)
            assert connection.execute(written.where(known[table].c.id.in_([1, 10, 50, 60]))).rowcount == 2
    with at_0003.read() as connection:
        device, request = devices.get(connection, 50), requests.get(connection, 60)
        signs = servers.signs(connection)
        owned = ownership.of_server(connection, 2)
    assert device is not None
    assert (device.state, device.owner_id, device.epoch, device.came_from_id) == ("ready", 2, 0, None)
    assert device.leaving is False
    assert request is not None
    assert (request.state, request.owner_id, request.epoch, request.came_from_id) == ("ready", 2, 0, None)
    assert {(row.kind, row.id) for row in owned} >= {("device", 50), ("request", 60)}
    when = datetime(2030, 1, 1, 12, tzinfo=UTC)
    assert signs == {1: servers.Sign(8, False, None, None, when), 2: servers.Sign(7, False, None, None, when)}


def test_what_old_processes_end_after_the_upgrade_says_nothing_of_what_it_was_of(at_0003: Database):
    """Reports look that up elsewhere."""
    known = old_tables(at_0003)
    schema.upgrade(at_0003)
    when = datetime(2030, 1, 1, tzinfo=UTC).replace(tzinfo=None)
    change = {"from_state": "ready", "to_state": "locked_out", "event": "offline", "version": 7, "ts": when}
    with at_0003.begin() as connection:
        connection.execute(known["device_history"].insert(), {"device_id": 1, **change})
        claim = {"request_id": 10, "device_id": 2, "claimed_at": when, "released_at": when, "reason": "returned"}
        connection.execute(known["claim_history"].insert(), claim)
    assert rows(at_0003, "device_history", "device_id", "device") == [(1, None)]
    assert (10, None, None) in rows(at_0003, "claim_history", "request_id", "device", "ready_at")
    assert rows(at_0003, "past_requests", "request_id") == []


def test_a_sign_of_life_of_an_old_process_is_one(at_0003: Database):
    """It names no group; one that its successor named stays, until that says another."""
    known = old_tables(at_0003)["server_presence"]
    schema.upgrade(at_0003)
    when = datetime(2030, 1, 1, tzinfo=UTC)
    new = servers.Presence(1, 9, False, "5.2", when, when, 32, 0, "lab", 60.0)
    at_0003.run(lambda connection: servers.say_here(connection, new))
    with at_0003.begin() as connection:
        connection.execute(known.update().where(known.c.imaging_server_id == 1), {"beat": 10})
    with at_0003.read() as connection:
        assert servers.signs(connection)[1] == servers.Sign(10, False, "lab", 60.0, when)


def test_its_name_says_beside_which_servers_it_may_be():
    assert schema.head() == "0011_0003"
    assert schema.serves("0011_0003")
    assert not schema.serves("0005_0003")
    assert schema.serves("0099_0003")
    assert schema.serves("0099_0004_0003")
    assert not schema.serves("0099_0098")
    assert not schema.serves("0099")


# -- check


@pytest.mark.parametrize("others", [[], ["CREATE TABLE grafana (id INT)"]])
def test_it_says_that_a_database_is_empty(bare_database: Database, others: list[str]):
    with bare_database.begin() as connection:
        for statement in others:
            connection.exec_driver_sql(statement)
    with pytest.raises(schema.SchemaError, match="is empty: make its tables with `mozpool-db create-schema`"):
        schema.check(bare_database)


def test_it_says_that_a_database_is_of_4_2_1(old_database: Database):
    before = dump(old_database)
    with pytest.raises(schema.SchemaError, match=r"is of Mozpool 4\.2\.1: bring it up to date with `mozpool-db upg"):
        schema.check(old_database)
    assert dump(old_database) == before


def test_it_says_what_differs(bare_database: Database):
    schema.create(bare_database)
    with bare_database.maintenance() as connection:
        connection.exec_driver_sql("DROP TABLE device_labels")
        connection.exec_driver_sql("ALTER TABLE images ADD COLUMN colour VARCHAR(20)")
        connection.exec_driver_sql("ALTER TABLE devices DROP COLUMN last_seen")
    problems = {
        "the table device_labels is missing",
        "the column images.colour is unknown",
        "the column devices.last_seen is missing",
    }
    assert set(schema.check(bare_database)) >= problems
    before = dump(bare_database)
    done = schema.upgrade(bare_database)
    assert problems <= set(done.differs) == set(schema.check(bare_database))
    assert done.repaired == ()
    assert dump(bare_database) == before


def test_it_says_that_the_revision_is_missing(bare_database: Database):
    schema.create(bare_database)
    with bare_database.maintenance() as connection:
        connection.exec_driver_sql("DROP TABLE alembic_version")
    with pytest.raises(schema.SchemaError, match="has a table devices"):
        schema.check(bare_database)
    with bare_database.maintenance() as connection:
        for table in ("device_labels", "device_requests", "devices"):
            connection.exec_driver_sql(f"DROP TABLE {table}")
    assert schema.check(bare_database)[:2] == ["the revision is unknown", "the table devices is missing"]


def test_it_makes_missing_indexes_again(bare_database: Database):
    schema.create(bare_database)
    before = dump(bare_database)
    with bare_database.maintenance() as connection:
        on_table = " ON requests" if bare_database.dialect == "mysql" else ""
        connection.exec_driver_sql(f"DROP INDEX ix_requests_queue{on_table}")
    problem = "the index ix_requests_queue on requests (state, criteria, queue_key, id) is missing"
    assert schema.check(bare_database) == [problem]
    assert schema.upgrade(bare_database) == schema.Upgrade(schema.head(), (problem,), ())
    assert sorted(dump(bare_database).replace(",", "").splitlines()) == sorted(before.replace(",", "").splitlines())


def test_it_says_when_sqlite_would_use_ids_again(sqlite_url: str):
    """As a migration leaves it that changes one of these tables and does not say so again."""
    database = open_database(sqlite_url)
    with database.maintenance() as connection:
        definition = connection.scalar(sa.text("SELECT sql FROM sqlite_master WHERE name = 'requests'"))
        connection.exec_driver_sql("DROP TABLE requests")
        connection.exec_driver_sql(str(definition).replace("AUTOINCREMENT", ""))
    assert "the table requests gives numbers of deleted rows to new ones" in schema.check(database)
    assert "the table requests gives numbers of deleted rows to new ones" in schema.upgrade(database).differs
    database.dispose()


@mysql
def test_it_repairs_procedures_and_log_partitions(mysql_url: str, mariadb: MariaDB):
    database = open_database(mysql_url)
    old, bound = datetime.now(UTC) - timedelta(days=35), 86400 * (int(datetime.now(UTC).timestamp()) // 86400 - 28)
    line = metadata.tables["device_logs"].insert().values(device_id=1, ts=old, source="x", message="m")
    database.run(lambda connection: connection.execute(line))
    for statement in (
        "DROP PROCEDURE dbcron",
        "DROP PROCEDURE init_log_partitions",
        "CREATE PROCEDURE dbcron() BEGIN SELECT 1; END",
        f"ALTER TABLE device_logs PARTITION BY RANGE (UNIX_TIMESTAMP(ts)) (PARTITION p1 VALUES LESS THAN ({bound}))",
        "ALTER TABLE request_logs REMOVE PARTITIONING",
    ):
        mariadb.execute(statement, name="mozpool_shared")
    problems = (
        "the procedure init_log_partitions is missing",
        "the procedure dbcron differs",
        "the table device_logs has no partition for today: no mozpool-server, which sees to it every hour, ran",
        "the table request_logs has no partitions",
    )
    try:
        assert tuple(schema.check(database)) == problems
        assert schema.upgrade(database) == schema.Upgrade(schema.head(), problems, ())
        assert schema.check(database) == []
        assert len(rows(database, "device_logs", "id")) == 1
    finally:
        mariadb.execute("CALL init_log_partitions('device_logs', 14, 1)", name="mozpool_shared")
        database.dispose()


@mysql
@pytest.mark.parametrize("bare_database", ["mysql"], indirect=True)
def test_only_one_at_a_time_changes_the_schema(bare_database: Database, mariadb: MariaDB):
    others = [open_database(str(bare_database.url)) for _ in range(4)]
    together = threading.Barrier(len(others))

    def upgrade(database: Database) -> str:
        together.wait(10)
        try:
            schema.upgrade(database)
        except schema.SchemaError as error:
            return error.message
        return "done"

    with ThreadPoolExecutor(len(others)) as threads:
        said = list(threads.map(upgrade, others))
    assert "done" in said
    assert all(one == "done" or "by another mozpool-db: wait until it has ended" in one for one in said)
    assert schema.check(bare_database) == []
    assert schema.upgrade(bare_database).differs == ()  # nothing is left locked
    mariadb.execute("CREATE DATABASE mozpool_neighbour")
    with bare_database.maintenance() as connection:
        schema._exclude_others(connection, bare_database)
        neighbour = open_database(mariadb.url("mozpool_neighbour"))
        with ThreadPoolExecutor(1) as thread:
            thread.submit(schema.create, neighbour).result(60)  # another database is another matter
    mariadb.execute("DROP DATABASE mozpool_neighbour")


@mysql
def test_it_says_what_differs_on_mysql(mysql_url: str, mariadb: MariaDB):
    database = open_database(mysql_url)
    try:
        for spoil, mend, problem in (
            (
                "ALTER TABLE devices MODIFY comments VARCHAR(20)",
                "ALTER TABLE devices MODIFY comments TEXT",
                "the column devices.comments: type is VARCHAR(length=20) instead of Text()",
            ),
            (
                "DROP INDEX ix_requests_queue ON requests",
                "CREATE INDEX ix_requests_queue ON requests (state, criteria, queue_key, id)",
                "the index ix_requests_queue on requests (state, criteria, queue_key, id) is missing",
            ),
            (
                "ALTER TABLE device_logs REMOVE PARTITIONING",
                "CALL init_log_partitions('device_logs', 14, 1)",
                "the table device_logs has no partitions",
            ),
        ):
            mariadb.execute(spoil, name="mozpool_shared")
            assert schema.check(database) == [problem]
            mariadb.execute(mend, name="mozpool_shared")
            assert schema.check(database) == []
        mariadb.execute("DROP PROCEDURE dbcron", name="mozpool_shared")
        assert schema.check(database) == ["the procedure dbcron is missing"]
        mariadb.execute("CREATE PROCEDURE dbcron() BEGIN SELECT 1; END", name="mozpool_shared")
        assert schema.check(database) == ["the procedure dbcron differs"]
        with database.maintenance() as connection:
            schema.load_procedures(connection)
        assert schema.check(database) == []
    finally:
        database.dispose()


# -- schema.sql


def normalised(server: MariaDB, name: str) -> dict[str, list[str]]:
    """Each table's definition as sorted lines, without what depends on day, order and age."""
    tables = [table for (table,) in server.execute("SHOW TABLES", name=name)]
    result = {}
    for table in tables:
        ((_table, definition),) = server.execute(f"SHOW CREATE TABLE `{table}`", name=name)
        definition = re.sub(
            r" AUTO_INCREMENT=\d+| ROW_FORMAT=\w+|,$|[ (]*PARTITION `p\d+`.*", "", definition, flags=re.M
        )
        result[table] = sorted(line for line in definition.splitlines() if line.strip())
    return result


def test_its_schema_sql_is_up_to_date():
    assert sql("schema.sql") == schema.dump(), "run: mozpool-db dump-schema > sql/schema.sql"


@mysql
def test_it_makes_the_same_tables_from_schema_sql_and_by_migration(mariadb: MariaDB):
    names = ("mozpool_sql", "mozpool_migrated", "mozpool_upgraded")
    for name in names:
        mariadb.execute(f"CREATE DATABASE {name}")
    mariadb.client("mariadb", names[0], script=sql("schema.sql"))
    mariadb.client("mariadb", names[2], script=sql("schema-4.2.1.sql"))
    for name in names:
        database = open_database(mariadb.url(name))
        if name != "mozpool_sql":
            schema.upgrade(database)
        assert schema.check(database) == []
        database.dispose()
    made = [normalised(mariadb, name) for name in names]
    for name in names:
        mariadb.execute(f"DROP DATABASE {name}")
    assert made[0] == made[1]
    assert made[0] == made[2]


# -- procedures


def bounds(server: MariaDB, table: str = "device_logs") -> list[int]:
    found = server.execute(
        "SELECT partition_name, partition_description FROM information_schema.partitions "
        "WHERE table_schema = 'mozpool_shared' AND table_name = %s ORDER BY partition_ordinal_position",
        table,
    )
    assert all(name == f"p{bound}" for name, bound in found)
    return [int(bound) for _name, bound in found]


@pytest.fixture
def midnight(mysql_url: str, mariadb: MariaDB) -> int:
    """The last midnight (UTC), in seconds since 1970."""
    return int(mariadb.execute("SELECT UNIX_TIMESTAMP() DIV 86400 * 86400")[0][0])


DAY = 86400


@mysql
def test_it_has_log_partitions_for_14_days_today_and_tomorrow(mariadb: MariaDB, midnight: int):
    for table in schema.LOGS:
        assert bounds(mariadb, table) == [midnight + days * DAY for days in range(-13, 3)]


@mysql
def test_it_moves_the_window_of_log_partitions(mariadb: MariaDB, midnight: int):
    def call(statement: str) -> None:
        mariadb.execute(statement, name="mozpool_shared")

    call("CALL init_log_partitions('device_logs', 20, 0)")
    assert bounds(mariadb) == [midnight + days * DAY for days in range(-19, 2)]
    call("CALL dbcron()")
    assert bounds(mariadb) == [midnight + days * DAY for days in range(-13, 3)]
    call("CALL dbcron()")
    assert bounds(mariadb) == [midnight + days * DAY for days in range(-13, 3)]


@mysql
def test_it_moves_the_window_after_months_without_a_clean_up(mariadb: MariaDB, midnight: int):
    old = midnight - 100 * DAY
    mariadb.execute(
        f"ALTER TABLE device_logs PARTITION BY RANGE (UNIX_TIMESTAMP(ts)) (PARTITION p{old} VALUES LESS THAN ({old}))",
        name="mozpool_shared",
    )
    mariadb.execute("CALL dbcron()", name="mozpool_shared")
    assert bounds(mariadb) == [midnight + days * DAY for days in range(-13, 3)]


@mysql
def test_it_deletes_requests_a_week_after_they_expired(mysql_url: str, mariadb: MariaDB):
    database = open_database(mysql_url)
    long_ago, lately = datetime.now(UTC) - timedelta(days=8), datetime.now(UTC) - timedelta(days=6)
    with database.begin() as connection:
        tables = metadata.tables
        connection.execute(tables["imaging_servers"].insert().values(id=1, fqdn="here"))
        common = {"imaging_server_id": 1, "state": "closed", "state_counters": "{}"}
        connection.execute(
            tables["devices"]
            .insert()
            .values(id=1, name="d1", fqdn="d1", inventory_id=1, mac_address="020000000001", **common)
        )
        connection.execute(
            tables["requests"].insert(),
            [
                {"id": number, "requested_device": "any", "assignee": "me", "expires": expires, **common}
                for number, expires in ((1, long_ago), (2, lately), (3, long_ago))
            ],
        )
        connection.execute(tables["device_requests"].insert().values(id=1, request_id=3, device_id=1))
    mariadb.execute("CALL dbcron()", name="mozpool_shared")
    assert rows(database, "requests", "id") == [(2,), (3,)]
    database.dispose()


@mysql
def test_it_takes_log_lines_from_rsyslog(mysql_url: str, mariadb: MariaDB):
    database = open_database(mysql_url)
    with database.begin() as connection:
        connection.execute(metadata.tables["imaging_servers"].insert().values(id=1, fqdn="here"))
        connection.execute(
            metadata.tables["devices"].insert().values(
                id=5, name="panda-0001", fqdn="panda-0001.example.com", inventory_id=1, mac_address="020000000001",
                imaging_server_id=1, state="ready", state_counters="{}",
            )
        )  # fmt: skip

    def call(*values: object) -> None:
        mariadb.execute("CALL insert_device_log_entry(%s, %s, %s, %s)", *values, name="mozpool_shared")

    now = datetime.now(UTC).replace(microsecond=0)
    lately = now - timedelta(hours=30)
    call("panda-0001", lately.strftime("%Y-%m-%d %H:%M:%S"), "mobile-init", "  Hello, 100 % sure  ")
    call("panda-0001", lately.strftime("%Y%m%d%H%M%S"), "s" * 40, "rsyslog's own format")
    call("panda-0001.example.com", "2037-01-01 00:00:00", "x", "future")
    call("panda-0001", "1970-01-01 00:00:10", "x", "no clock")
    call("panda-0001", "0000-00-00 00:00:00", "x", "no time")
    call("panda-0001", "yesterday", "x", "no number")
    call("panda-0001", None, "x", "nothing")
    call("panda-9999", lately.strftime("%Y-%m-%d %H:%M:%S"), "x", "unknown device")
    lines = rows(database, "device_logs", "id", "device_id", "ts", "source", "message")
    assert [line[4] for line in lines] == [
        "Hello, 100 % sure",
        "rsyslog's own format",
        "future",
        "no clock",
        "no time",
        "no number",
        "nothing",
    ]
    assert {line[1] for line in lines} == {5}
    assert [line[2] for line in lines[:2]] == [lately, lately]
    assert all(timedelta() <= line[2] - now < timedelta(minutes=1) for line in lines[2:])
    assert lines[1][3] == "s" * 32
    database.dispose()
