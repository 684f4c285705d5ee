# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Upkeep of a real database: what goes, and above all what stays."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import delete, insert, select

from mozpool.clock import Clock
from mozpool.db import tables, upkeep
from mozpool.db.engine import Database
from mozpool.errors import DatabaseAway
from mozpool.logbook import Logbook
from tests.conftest import open_database
from tests.mariadb import MariaDB
from tests.unit.pool_support import Rows

CLOCK = Clock()
NOW = CLOCK.now().replace(microsecond=0)
DAY = 86400
END_STATES = ["closed", "failed_device_not_found", "failed_bad_image", "failed_bad_device", "failed_device_busy"]


@pytest.fixture
def rows(database: Database) -> Rows:
    return Rows(database)


def days(number: float) -> timedelta:
    return timedelta(days=number)


def ids(database: Database, table: Any) -> list[int]:
    with database.read() as conn:
        return list(conn.scalars(select(table.c.id).order_by(table.c.id)))


def add_all(database: Database, table: Any, values: list[dict[str, Any]]) -> None:
    database.run(lambda conn: conn.execute(insert(table), values))


# Requests


@pytest.mark.parametrize("state", END_STATES)
def test_a_request_that_ended_goes_a_week_after_it_expired(rows: Rows, state: str):
    old = rows.request(state=state, expires=NOW - days(7.1))
    lately = rows.request(state=state, expires=NOW - days(6.9))
    upkeep.run(rows.database, CLOCK)
    left = ids(rows.database, tables.requests)
    assert old not in left
    assert left == [lately]


@pytest.mark.parametrize("state", ["finding_device", "contacting_lifeguard", "pending", "ready", "something_new"])
def test_a_request_that_is_not_at_its_end_stays_however_old_it_is(rows: Rows, state: str):
    """Its server was away for long: it is for that server to end it."""
    request = rows.request(state=state, expires=NOW - days(1000))
    upkeep.run(rows.database, CLOCK)
    assert ids(rows.database, tables.requests) == [request]


def test_a_request_that_still_holds_a_device_stays(rows: Rows):
    request = rows.request(state="closed", expires=NOW - days(30))
    rows.add(tables.device_requests, id=1, request_id=request, device_id=rows.device())
    upkeep.run(rows.database, CLOCK)
    assert ids(rows.database, tables.requests) == [request]
    assert ids(rows.database, tables.device_requests) == [1]


def test_the_number_of_a_deleted_request_is_not_given_to_another(rows: Rows):
    """Its history is still there."""
    request = rows.request(state="closed", expires=NOW - days(30))
    upkeep.run(rows.database, CLOCK)
    assert ids(rows.database, tables.requests) == []
    assert rows.request() == request + 1


def test_the_number_of_a_deleted_device_is_not_given_to_another(rows: Rows):
    """Its log and history are still there."""
    device = rows.device()
    rows.database.run(lambda conn: conn.execute(delete(tables.devices)))
    assert rows.device() == device + 1


# History


@pytest.mark.parametrize(
    ("table", "key"), [(tables.device_history, "device_id"), (tables.request_history, "request_id")]
)
def test_the_history_of_states_is_kept_for_ninety_days(database: Database, table: Any, key: str):
    common = {key: 1, "from_state": "ready", "to_state": "pending", "event": "x", "version": 1}
    ages = [400, 91, 90.1, 89.9, 1]
    add_all(database, table, [{"id": n, "ts": NOW - days(age), **common} for n, age in enumerate(ages, start=1)])
    upkeep.run(database, CLOCK)
    assert ids(database, table) == [4, 5]


def claim(number: int, claimed: float, released: float | None) -> dict[str, Any]:
    return {
        "id": number,
        "request_id": number,
        "device_id": 1,
        "claimed_at": NOW - days(claimed),
        "released_at": None if released is None else NOW - days(released),
    }


def test_released_claims_are_kept_for_ninety_days_and_others_for_ever(database: Database):
    add_all(
        database,
        tables.claim_history,
        [
            claim(1, 500, None),
            claim(2, 400, 399),
            claim(3, 95, 90.1),
            claim(4, 95, 89.9),
            claim(5, 94, None),
            claim(6, 93, 92),
            claim(7, 1, 0),
        ],
    )
    upkeep.run(database, CLOCK)
    assert ids(database, tables.claim_history) == [1, 4, 5, 7]


# In batches


@pytest.fixture
def batches_of_three(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "BATCH", 3)


@pytest.mark.usefixtures("batches_of_three")
@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 6, 10])
def test_what_is_too_old_goes_in_any_number_of_batches(rows: Rows, count: int):
    for _ in range(count):
        rows.request(state="closed", expires=NOW - days(30))
    common = {"device_id": 1, "from_state": "ready", "to_state": "new", "event": "x", "version": 1}
    add_all(
        rows.database,
        tables.device_history,
        [{"id": n, "ts": NOW - days(1 if n == count + 1 else 100), **common} for n in range(1, count + 2)],
    )
    upkeep.run(rows.database, CLOCK)
    assert ids(rows.database, tables.requests) == []
    assert ids(rows.database, tables.device_history) == [count + 1]


@pytest.mark.usefixtures("batches_of_three")
def test_claims_in_use_do_not_hide_what_lies_behind_them(database: Database):
    in_use = [claim(number, 300 - number, None) for number in range(1, 8)]
    add_all(database, tables.claim_history, [*in_use, claim(8, 200, 199), claim(9, 100, 99), claim(10, 1, 0)])
    upkeep.run(database, CLOCK)
    assert ids(database, tables.claim_history) == [1, 2, 3, 4, 5, 6, 7, 10]


def test_it_may_be_run_again_and_again(rows: Rows):
    request = rows.request()
    for _ in range(3):
        upkeep.run(rows.database, CLOCK)
    assert ids(rows.database, tables.requests) == [request]


def test_it_says_when_the_database_is_away(tmp_path: Any):
    database = open_database(f"sqlite:///{tmp_path}/missing/mozpool.sqlite")
    with pytest.raises(DatabaseAway):
        upkeep.run(database, CLOCK)
    database.dispose()


# Log lines


@pytest.mark.parametrize(("table", "key"), [(tables.device_logs, "device_id"), (tables.request_logs, "request_id")])
def test_log_lines_of_the_last_two_weeks_stay(database: Database, table: Any, key: str):
    ages = [13.9, 7, 0]
    lines = [{"id": n, key: 1, "ts": NOW - days(age), "source": "x", "message": "m"} for n, age in enumerate(ages, 1)]
    add_all(database, table, lines)
    upkeep.run(database, CLOCK)
    assert ids(database, table) == [1, 2, 3]


@pytest.mark.parametrize(("table", "key"), [(tables.device_logs, "device_id"), (tables.request_logs, "request_id")])
def test_sqlite_keeps_no_log_lines_that_are_older(sqlite_url: str, table: Any, key: str):
    database = open_database(sqlite_url)
    ages = [400, 15, 14.1, 13.9]
    lines = [{"id": n, key: 1, "ts": NOW - days(age), "source": "x", "message": "m"} for n, age in enumerate(ages, 1)]
    add_all(database, table, lines)
    upkeep.run(database, CLOCK)
    assert ids(database, table) == [4]
    database.dispose()


def midnight() -> int:
    return int(datetime.now(UTC).timestamp()) // DAY * DAY


def bounds(server: MariaDB, table: str) -> list[int]:
    found = server.execute(
        "SELECT partition_description FROM information_schema.partitions "
        "WHERE table_schema = 'mozpool_shared' AND table_name = %s ORDER BY partition_ordinal_position",
        table,
    )
    return [int(bound) for (bound,) in found]


def neglect(server: MariaDB, age: int = 30) -> None:
    """As if nobody had looked after the partitions for so many days."""
    first, last = midnight() - (age + 13) * DAY, midnight() - (age - 2) * DAY
    parts = ", ".join(f"PARTITION p{bound} VALUES LESS THAN ({bound})" for bound in range(first, last + 1, DAY))
    for table in ("device_logs", "request_logs"):
        server.execute(f"ALTER TABLE {table} PARTITION BY RANGE (UNIX_TIMESTAMP(ts)) ({parts})", name="mozpool_shared")


@pytest.fixture
def neglected(mysql_url: str, mariadb: MariaDB) -> Any:
    """A database of MariaDB whose log tables take no line of today."""
    neglect(mariadb)
    database = open_database(mysql_url)
    yield database
    upkeep.run(database, CLOCK)
    database.dispose()


@pytest.mark.mysql
def test_it_prepares_the_log_partitions_and_drops_old_ones(neglected: Database, mariadb: MariaDB):
    add_all(neglected, tables.device_logs, [{"device_id": 1, "ts": NOW - days(35), "source": "x", "message": "old"}])
    upkeep.run(neglected, CLOCK)
    window = [midnight() + number * DAY for number in range(-13, 3)]
    assert bounds(mariadb, "device_logs") == window
    assert bounds(mariadb, "request_logs") == window
    assert ids(neglected, tables.device_logs) == []


@pytest.mark.mysql
def test_several_servers_may_look_after_the_partitions_at_the_same_time(
    neglected: Database, mariadb: MariaDB, mysql_url: str
):
    databases = [open_database(mysql_url) for _ in range(4)]
    together = threading.Barrier(len(databases))

    def work(database: Database) -> None:
        together.wait(10)
        upkeep.run(database, CLOCK)

    with ThreadPoolExecutor(len(databases)) as pool:
        for done in [pool.submit(work, database) for database in databases]:
            done.result(60)
    assert bounds(mariadb, "device_logs") == [midnight() + number * DAY for number in range(-13, 3)]
    for database in databases:
        database.dispose()


@pytest.mark.mysql
def test_log_lines_are_written_even_when_nobody_looked_after_the_partitions(neglected: Database):
    logbook = Logbook(neglected, CLOCK)
    logbook.add("device", 1, "panda-0001", "test", "of a device")
    logbook.add("request", 2, "request 2", "test", "of a request")
    logbook.flush()
    with neglected.read() as conn:
        assert conn.scalars(select(tables.device_logs.c.message)).all() == ["of a device"]
        assert conn.scalars(select(tables.request_logs.c.message)).all() == ["of a request"]


@pytest.mark.mysql
@pytest.mark.parametrize(
    "moment", [NOW.strftime("%Y-%m-%d %H:%M:%S"), "2037-01-01 00:00:00", "nonsense"], ids=["now", "far", "nonsense"]
)
def test_lines_from_rsyslog_are_written_then_too(neglected: Database, mariadb: MariaDB, moment: str):
    device_id = Rows(neglected).device(name="panda-0001")
    mariadb.execute("CALL insert_device_log_entry('panda-0001', %s, 'x', 'hello')", moment, name="mozpool_shared")
    with neglected.read() as conn:
        assert conn.scalars(select(tables.device_logs.c.device_id)).all() == [device_id]


def test_preparing_the_logs_of_a_database_that_is_ready_changes_nothing(database: Database):
    upkeep.prepare_logs(database)
    add_all(database, tables.device_logs, [{"device_id": 1, "ts": NOW, "source": "x", "message": "m"}])
    assert len(ids(database, tables.device_logs)) == 1


def test_another_error_is_not_taken_for_a_missing_partition(database: Database):
    with pytest.raises(Exception) as raised:
        add_all(database, tables.device_logs, [{"device_id": 1, "ts": NOW, "source": None, "message": "m"}])
    assert not upkeep.lacks_partition(raised.value)
    assert not upkeep.lacks_partition(ValueError("no"))
