# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Transactions, repeats and a database that goes away, with real servers that really go away."""

import random
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path

import pymysql
import pytest
from sqlalchemy import Connection, insert, select, text, update
from sqlalchemy.exc import DataError, IntegrityError, OperationalError

from mozpool.clock import Clock, SimClock
from mozpool.db import engine, schema
from mozpool.db.engine import IDLE_TRANSACTION, Database
from mozpool.db.nodes import NodeConnection
from mozpool.db.tables import imaging_servers
from mozpool.errors import DatabaseAway
from tests.conftest import open_database
from tests.mariadb import MariaDB, running

mysql = pytest.mark.mysql


def add(fqdn: str):
    return lambda connection: connection.execute(insert(imaging_servers).values(fqdn=fqdn)).inserted_primary_key[0]


def names(connection: Connection) -> list[str]:
    return list(connection.scalars(select(imaging_servers.c.fqdn).order_by(imaging_servers.c.id)))


@pytest.fixture
def on_mysql(mysql_url: str) -> Iterator[Database]:
    database = open_database(mysql_url)
    yield database
    database.dispose()


@pytest.fixture
def on_sqlite(sqlite_url: str) -> Iterator[Database]:
    database = open_database(sqlite_url)
    yield database
    database.dispose()


@pytest.fixture
def own_server() -> Iterator[MariaDB]:
    """A server that the test may stop; asked for after ``mariadb``, so that it is skipped where there is none."""
    with running() as server:
        server.execute("CREATE DATABASE mine")
        server.execute("CREATE TABLE mine.imaging_servers (id INT AUTO_INCREMENT PRIMARY KEY, fqdn VARCHAR(255))")
        yield server


Use = Callable[[Database], AbstractContextManager[Connection]]


def number_of_connection(connection: Connection) -> int:
    return int(connection.execute(text("SELECT CONNECTION_ID()")).scalar_one())


# -- transactions


def test_it_commits_at_the_end_and_rolls_back_on_an_error(database: Database):
    database.run(add("kept"))
    with pytest.raises(ZeroDivisionError), database.begin() as connection:
        add("lost")(connection)
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError):
        database.run(lambda connection: add("lost, too")(connection) / 0)
    with database.read() as connection:
        assert names(connection) == ["kept"]


def test_the_database_refuses_to_write_in_a_read(database: Database):
    with pytest.raises(OperationalError, match=r"(?i)read.?only"), database.read() as connection:
        add("never")(connection)
    with database.read() as connection:
        assert names(connection) == []
    database.run(add("in a transaction"))


def test_it_passes_errors_of_the_work_on(database: Database):
    database.run(add("twice"))
    with pytest.raises(IntegrityError):
        database.run(add("twice"))
    assert database.ping()


def test_it_refuses_a_transaction_within_a_transaction(database: Database):
    with database.read(), pytest.raises(RuntimeError, match="already is in a transaction"):
        database.run(add("inner"))
    database.run(add("afterwards"))


def test_it_serves_many_threads_at_once(database: Database):
    with ThreadPoolExecutor(16) as threads:
        ids = list(threads.map(lambda number: database.run(add(f"server{number}")), range(100)))
    assert len(set(ids)) == 100


def test_it_takes_a_mysql_url_without_a_driver():
    database = open_database("mysql://user:secret@db1/mozpool")
    assert database.dialect == "mysql"
    assert database.engine.dialect.driver == "pymysql"
    assert database.name == "the database mozpool at db1:3306"


def test_it_keeps_a_database_in_memory_on_one_connection():
    database = Database("sqlite://", clock=SimClock(), rng=random.Random(1))
    schema.create(database)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda number: database.run(add(f"server{number}")), range(20)))
    with database.read() as connection:
        assert len(names(connection)) == 20
        add("forgotten")(connection)
    with database.read() as connection:
        assert len(names(connection)) == 20
    database.dispose()


def test_it_enforces_foreign_keys(database: Database):
    with pytest.raises(IntegrityError):
        database.run(lambda connection: connection.execute(text("INSERT INTO device_labels VALUES (1, 'a', 'b')")))


# -- SQLite


def test_all_statements_of_a_read_see_the_same_moment_on_sqlite(on_sqlite: Database):
    with on_sqlite.read() as connection, ThreadPoolExecutor(1) as thread:
        assert names(connection) == []
        thread.submit(on_sqlite.run, add("meanwhile")).result(10)
        assert names(connection) == []


def test_it_reads_while_another_thread_writes_on_sqlite(on_sqlite: Database):
    with on_sqlite.begin() as connection, ThreadPoolExecutor(1) as thread:
        add("not yet")(connection)

        def read() -> list[str]:
            with on_sqlite.read() as reader:
                return names(reader)

        assert thread.submit(read).result(10) == []


def test_it_waits_for_another_process_that_writes_on_sqlite(on_sqlite: Database, sqlite_url: str):
    database = Database(sqlite_url, clock=Clock(), rng=random.Random(1), connect_timeout=0.01)
    with closing(sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(DatabaseAway, match="database is locked"):
            database.run(add("too long"), patience=0.1)
        with ThreadPoolExecutor(1) as thread:
            waiting = thread.submit(database.run, add("patient"), patience=30)
            other.execute("ROLLBACK")
            assert waiting.result(30) == 1
    database.dispose()


def test_it_says_so_when_an_sqlite_file_cannot_be_opened(tmp_path: Path):
    database = open_database(f"sqlite:///{tmp_path}/no/such/folder/db.sqlite")
    with pytest.raises(DatabaseAway, match="unable to open"):
        database.run(names, patience=0)


@pytest.mark.parametrize("use", [Database.begin, Database.read, Database.maintenance])
def test_it_names_an_sqlite_file_that_is_none(tmp_path: Path, use: Use):
    path = tmp_path / "notes.txt"
    path.write_text("Remember the milk. " * 100)
    database = open_database(f"sqlite:///{path}")
    with pytest.raises(DatabaseAway, match=r"notes\.txt is no SQLite file .*correct .database. engine"), use(database):
        pass
    assert path.read_text() == "Remember the milk. " * 100


# -- MySQL


@contextmanager
def statements(server: MariaDB) -> Iterator[list[str]]:
    """What is sent to the server inside the block, on connections from before."""
    sent: list[str] = []
    server.execute("SET GLOBAL log_output = 'TABLE'")
    server.execute("TRUNCATE mysql.general_log")
    server.execute("SET GLOBAL general_log = 1")
    try:
        yield sent
    finally:
        server.execute("SET GLOBAL general_log = 0")
    rows = server.execute("SELECT thread_id, command_type, argument FROM mysql.general_log ORDER BY event_time")
    new = {thread for thread, kind, _argument in rows if kind == "Connect"}
    sent += [argument for thread, kind, argument in rows if thread not in new and kind != "Quit"]


@mysql
def test_a_read_sends_its_one_select_and_nothing_else(on_mysql: Database, mariadb: MariaDB):
    on_mysql.ping()  # connected
    with statements(mariadb) as sent, on_mysql.read() as connection:
        names(connection)
    assert [statement.split()[0] for statement in sent] == ["SELECT"]


@mysql
def test_a_transaction_sends_its_statements_and_a_commit(on_mysql: Database, mariadb: MariaDB):
    on_mysql.run(names)  # connected
    with statements(mariadb) as sent:
        on_mysql.run(add("one"))
    assert [statement.split()[0] for statement in sent] == ["INSERT", "COMMIT"]


@mysql
def test_a_read_that_fails_leaves_nothing_to_roll_back(on_mysql: Database, mariadb: MariaDB):
    on_mysql.ping()  # connected
    with statements(mariadb) as sent, pytest.raises(ZeroDivisionError), on_mysql.read() as connection:
        raise ZeroDivisionError(names(connection))
    assert [statement.split()[0] for statement in sent] == ["SELECT"]


SESSION = "SELECT @@time_zone, @@tx_isolation, @@character_set_client, @@innodb_lock_wait_timeout, @@sql_mode"


@mysql
def test_it_sets_up_the_sessions_of_both_kinds(on_mysql: Database):
    for use, autocommit, read_only in ((on_mysql.begin, 0, 0), (on_mysql.read, 1, 1)):
        for _again in range(2):
            with use() as connection:
                settings = connection.execute(text(SESSION)).one()
                flags = connection.execute(text("SELECT @@autocommit, @@tx_read_only")).one()
            assert settings[:4] == ("+00:00", "READ-COMMITTED", "utf8mb4", 3)
            assert "STRICT_ALL_TABLES" in settings[4]
            assert flags == (autocommit, read_only)


@mysql
def test_a_read_sees_what_others_commit_between_its_statements(on_mysql: Database, mariadb: MariaDB):
    with on_mysql.read() as connection:
        assert names(connection) == []
        mariadb.execute("INSERT INTO imaging_servers (fqdn) VALUES ('new')", name="mozpool_shared")
        assert names(connection) == ["new"]


@mysql
def test_it_tries_a_connection_that_was_idle_before_using_it(mysql_url: str, mariadb: MariaDB):
    clock = SimClock()
    database = Database(mysql_url, clock=clock, rng=random.Random(1))
    with database.read() as connection:
        number = number_of_connection(connection)
    mariadb.execute("KILL %s", number)
    clock.advance(2)
    with database.read() as connection:  # nothing repeats a read: the pool found out
        assert number_of_connection(connection) != number
    database.dispose()


@mysql
def test_it_repeats_the_work_when_its_connection_is_killed(on_mysql: Database, mariadb: MariaDB):
    tries = []

    def work(connection: Connection) -> int:
        tries.append(number_of_connection(connection))
        number = add("once")(connection)
        if len(tries) == 1:
            mariadb.execute("KILL %s", tries[0])
        names(connection)
        return number

    on_mysql.run(work)
    assert len(set(tries)) == 2
    with on_mysql.read() as connection:
        assert names(connection) == ["once"]


@mysql
def test_it_does_the_work_again_when_the_lost_commit_did_not_take_place(on_mysql: Database, mariadb: MariaDB):
    tries, looked = [], []

    def work(connection: Connection) -> str:
        tries.append(number_of_connection(connection))
        add("once")(connection)
        if len(tries) == 1:
            mariadb.execute("KILL %s", tries[0])  # the next thing sent is COMMIT
        return f"try {len(tries)}"

    def committed(connection: Connection) -> str | None:
        looked.append(names(connection))
        return "it was there" if looked[-1] else None

    assert on_mysql.run(work, committed=committed) == "try 2"
    assert looked == [[]]


@mysql
def test_it_does_not_do_the_work_again_when_the_lost_commit_took_place(on_mysql: Database, mariadb: MariaDB):
    tries = []

    def work(connection: Connection) -> str:
        tries.append(number_of_connection(connection))
        add("once")(connection)
        # The server commits, and its answer is lost: the transaction is over when the connection is.
        connection.exec_driver_sql("COMMIT")
        mariadb.execute("KILL %s", tries[0])
        return "answered"

    answer = on_mysql.run(work, committed=lambda connection: "it was there" if names(connection) else None)
    assert answer == "it was there"
    assert len(tries) == 1


@mysql
def test_it_says_that_a_change_is_in_doubt_when_nobody_can_tell(on_mysql: Database, mariadb: MariaDB):
    def work(connection: Connection) -> None:
        add("who knows")(connection)
        mariadb.execute("KILL %s", number_of_connection(connection))

    with pytest.raises(DatabaseAway, match="may have taken place"):
        on_mysql.run(work)


@mysql
def test_it_repeats_a_transaction_that_lost_a_deadlock(on_mysql: Database):
    on_mysql.run(add("a"))
    on_mysql.run(add("b"))
    both_hold_one = threading.Barrier(2)
    tries = []

    def touch(first: str, second: str) -> None:
        waited = False

        def work(connection: Connection) -> None:
            nonlocal waited
            tries.append(first)
            for fqdn in (first, second):
                row = imaging_servers.c.fqdn == fqdn
                connection.execute(update(imaging_servers).where(row).values(fqdn=fqdn))  # locks it
                if fqdn == first and not waited:
                    waited = True
                    both_hold_one.wait(10)

        on_mysql.run(work)

    with ThreadPoolExecutor(2) as threads:
        for done in [threads.submit(touch, "a", "b"), threads.submit(touch, "b", "a")]:
            done.result(30)
    assert len(tries) >= 3


@mysql
def test_it_gives_up_when_others_always_win(on_mysql: Database):
    tries = []

    def work(connection: Connection) -> None:
        tries.append(1)
        connection.execute(text("SIGNAL SQLSTATE '40001' SET MYSQL_ERRNO = 1213, MESSAGE_TEXT = 'Deadlock found'"))

    with pytest.raises(DatabaseAway, match="too busy: other transactions got in the way 10 times"):
        on_mysql.run(work)
    assert len(tries) == 10


@mysql
@pytest.mark.parametrize("use", [Database.begin, Database.read])
def test_it_says_so_when_all_connections_of_a_kind_are_taken(mysql_url: str, monkeypatch: pytest.MonkeyPatch, use: Use):
    monkeypatch.setattr("mozpool.db.engine.POOL_WAIT", 0.05)
    database = Database(mysql_url, pool_size=1, clock=Clock(), rng=random.Random(1))
    other = Database.read if use is Database.begin else Database.begin

    def number_of(kind: Use) -> int:
        with kind(database) as connection:
            return number_of_connection(connection)

    with use(database), ThreadPoolExecutor(1) as thread:
        with pytest.raises(DatabaseAway, match="no free connection"):
            thread.submit(number_of, use).result(10)
        assert thread.submit(number_of, other).result(10)
    assert number_of(use)
    database.dispose()


@mysql
def test_it_opens_twice_as_many_connections_as_its_pool_size_at_most(mysql_url: str, mariadb: MariaDB):
    database = Database(mysql_url, pool_size=3, clock=Clock(), rng=random.Random(1))
    count = "SELECT COUNT(*) FROM information_schema.processlist WHERE db = 'mozpool_shared'"
    all_are_open = threading.Barrier(6)

    def use(kind: Use) -> int:
        with kind(database):
            all_are_open.wait(10)
            found = mariadb.execute(count)[0][0]
            all_are_open.wait(10)
            return int(found)

    with ThreadPoolExecutor(6) as threads:
        assert set(threads.map(use, [Database.begin, Database.read] * 3)) == {6}
        ids = list(threads.map(lambda number: database.run(add(f"server{number}")), range(30)))
        assert len(set(ids)) == 30
        list(threads.map(lambda _number: database.ping(), range(30)))
    assert mariadb.execute(count)[0][0] == 6
    database.dispose()


@mysql
def test_it_survives_a_restart_of_the_server(mariadb: MariaDB, own_server: MariaDB):
    database = open_database(own_server.url("mine"))
    ready = threading.Barrier(6)

    def use(kind: Use) -> None:
        with kind(database):
            ready.wait(10)

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(use, [Database.begin, Database.read] * 3))  # three connections of each kind are open
    own_server.stop()
    with pytest.raises(DatabaseAway, match=r"the database mine at 127\.0\.0\.1:\d+ is away: .*refused") as away:
        database.run(names, patience=0.1)
    assert "root" not in away.value.message
    with pytest.raises(DatabaseAway):
        database.ping()
    with ThreadPoolExecutor(6) as threads:
        waiting = [threads.submit(database.run, add(f"server{number}"), patience=60) for number in range(6)]
        own_server.start()
        for done in waiting:
            done.result(60)
    with ThreadPoolExecutor(6) as threads:  # all connections are new ones
        list(threads.map(use, [Database.begin, Database.read] * 3))
    with database.read() as connection:
        assert len(names(connection)) == 6
    database.dispose()


@mysql
@pytest.mark.parametrize("use", [Database.begin, Database.read])
def test_it_finds_out_after_a_restart_that_idle_connections_are_gone(mariadb: MariaDB, own_server: MariaDB, use: Use):
    clock = SimClock()
    database = Database(own_server.url("mine"), clock=clock, rng=random.Random(1))
    with use(database) as connection:
        names(connection)
    own_server.stop()
    own_server.start()
    clock.advance(2)
    with use(database) as connection:  # nothing repeats this
        assert names(connection) == []
    database.dispose()


@mysql
def test_a_lost_connection_is_not_used_for_another_read(on_mysql: Database, mariadb: MariaDB):
    with pytest.raises(DatabaseAway), on_mysql.read() as connection:
        mariadb.execute("KILL %s", number_of_connection(connection))
        names(connection)
    assert on_mysql.ping()


@mysql
def test_a_node_that_is_of_no_use_is_left(on_mysql: Database):
    """The connection works, but its node has lost the cluster: another connection may lead to another node."""
    not_ready = "SIGNAL SQLSTATE '08S01' SET MYSQL_ERRNO = 1047, MESSAGE_TEXT = 'WSREP has not yet prepared node'"
    with on_mysql.read() as connection:
        number = number_of_connection(connection)
    with pytest.raises(DatabaseAway, match="WSREP"), on_mysql.read() as connection:
        connection.execute(text(not_ready))
    with on_mysql.read() as connection:
        assert number_of_connection(connection) != number


@mysql
@pytest.mark.parametrize("use", [Database.begin, Database.read, Database.maintenance])
def test_it_says_who_is_refused_but_not_the_password(mariadb: MariaDB, use: Use):
    database = open_database(mariadb.url("mozpool_shared").replace("root@", "nobody:s3cret@"))
    said = r"refuses the user nobody or the password .*Access denied"
    with pytest.raises(DatabaseAway, match=said) as away, use(database):
        pass
    assert "is away" not in away.value.message
    assert "s3cret" not in away.value.message


@mysql
def test_it_says_that_a_database_does_not_exist_or_may_not_be_used(mariadb: MariaDB):
    database = open_database(mariadb.url("nowhere"))
    with pytest.raises(DatabaseAway, match=r"the database nowhere at .* does not exist: make it with CREATE DATABASE"):
        database.run(names, patience=0)
    mariadb.execute("CREATE USER guest@'%' IDENTIFIED BY 's3cret'")
    try:
        database = open_database(mariadb.url("mysql").replace("root@", "guest:s3cret@"))
        with pytest.raises(DatabaseAway, match=r"the database mysql at .* may not be used by guest .*: GRANT it"):
            database.ping()
    finally:
        mariadb.execute("DROP USER guest@'%'")


@mysql
def test_it_does_not_cut_off_what_is_too_long(on_mysql: Database):
    with pytest.raises(DataError, match="Data too long"):
        on_mysql.run(add("x" * 300))


@mysql
@pytest.mark.parametrize("code", [1047, 1205, 1213])
def test_a_commit_that_was_refused_did_not_take_place(
    on_mysql: Database, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """Such an error leaves no doubt, even if nobody could tell afterwards."""
    commit, left = NodeConnection.commit, [1]

    def refused(connection: NodeConnection) -> None:
        if left:
            left.pop()
            raise pymysql.err.OperationalError(code, "refused")
        commit(connection)

    monkeypatch.setattr(NodeConnection, "commit", refused)
    on_mysql.run(add("once"))
    with on_mysql.read() as connection:
        assert names(connection) == ["once"]


@mysql
def test_a_statement_that_was_broken_off_is_done_again(on_mysql: Database) -> None:
    left = [1]

    def work(connection: Connection) -> None:
        add("once")(connection)
        if left:
            left.pop()
            connection.execute(
                text("SIGNAL SQLSTATE '70100' SET MYSQL_ERRNO = 1317, MESSAGE_TEXT = 'Query execution was interrupted'")
            )

    on_mysql.run(work)
    with on_mysql.read() as connection:
        assert names(connection) == ["once"]


@mysql
@pytest.mark.parametrize("code", [1180, 1317])
def test_a_commit_that_ends_so_is_in_doubt(on_mysql: Database, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """The node has lost the cluster; it was broken off."""

    def lost(_connection: NodeConnection) -> None:
        raise pymysql.err.OperationalError(code, "Got error during COMMIT")

    monkeypatch.setattr(NodeConnection, "commit", lost)
    with pytest.raises(DatabaseAway, match="may have taken place"):
        on_mysql.run(add("who knows"))


@mysql
def test_a_read_that_others_spoil_is_sent_again(on_mysql: Database, mariadb: MariaDB) -> None:
    spoilt = "SIGNAL SQLSTATE '40001' SET MYSQL_ERRNO = 1213, MESSAGE_TEXT = 'Deadlock found'"
    mariadb.execute(
        "CREATE FUNCTION mozpool_shared.spoilt(times INT) RETURNS INT BEGIN SET @calls = COALESCE(@calls, 0) + 1; "
        f"IF @calls <= times THEN {spoilt}; END IF; RETURN @calls; END"
    )
    try:
        with on_mysql.read() as connection:
            assert connection.execute(text("SELECT spoilt(3)")).scalar_one() == 4
        with pytest.raises(DatabaseAway, match="too busy: Deadlock"), on_mysql.read() as connection:
            connection.execute(text("SELECT spoilt(1000)"))
    finally:
        mariadb.execute("DROP FUNCTION mozpool_shared.spoilt")


# -- transactions that nobody ends


@mysql
def test_the_server_ends_what_a_hanging_process_left_open(on_mysql: Database, mariadb: MariaDB) -> None:
    limit = "SELECT @@idle_transaction_timeout"
    for use in (on_mysql.begin, on_mysql.read):
        with use() as connection:
            assert connection.execute(text(limit)).scalar_one() == IDLE_TRANSACTION
    with on_mysql.maintenance() as connection:
        assert connection.execute(text(limit)).scalar_one() == 0
    on_mysql.run(add("wanted"))
    tries = []

    def hang(connection: Connection) -> None:
        tries.append(number_of_connection(connection))
        if len(tries) == 1:
            connection.execute(text("SET SESSION idle_transaction_timeout = 1"))
        connection.execute(update(imaging_servers).values(fqdn=f"try {len(tries)}"))  # locks the row
        if len(tries) == 1:  # another session gets it; it waits for two seconds at most
            mariadb.execute(
                "SET STATEMENT innodb_lock_wait_timeout = 20 FOR UPDATE imaging_servers SET fqdn = 'mine'",
                name="mozpool_shared",
            )
        names(connection)

    on_mysql.run(hang)
    assert len(set(tries)) == 2
    with on_mysql.read() as connection:
        assert names(connection) == ["try 2"]


# -- several hosts


@pytest.fixture
def silent() -> Iterator[int]:
    """A port that takes connections and never answers, as a process that hangs does."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@contextmanager
def several(mariadb: MariaDB, hosts: str, connect_timeout: float = 5.0) -> Iterator[Database]:
    """The shared database under several hosts, of which only some are it."""
    url = f"mysql://root@{hosts}/mozpool_shared"
    database = Database(url, clock=Clock(), rng=random.Random(1), connect_timeout=connect_timeout)
    yield database
    database.dispose()


@mysql
def test_it_takes_the_next_host_where_one_refuses(mysql_url: str, mariadb: MariaDB) -> None:
    with several(mariadb, f"127.0.0.1:1,127.0.0.1:{mariadb.port}") as database:
        assert database.name == f"the database mozpool_shared at 127.0.0.1:1, 127.0.0.1:{mariadb.port}"
        database.run(add("on the second one"), patience=0)
        with database.read() as connection:
            assert names(connection) == ["on the second one"]
        with database.maintenance() as connection:
            assert names(connection) == ["on the second one"]


@mysql
def test_a_host_that_hangs_is_waited_for_once(mysql_url: str, mariadb: MariaDB, silent: int) -> None:
    with several(mariadb, f"127.0.0.1:{silent},127.0.0.1:{mariadb.port}", connect_timeout=1.0) as database:
        started = time.monotonic()
        database.ping()
        assert 1.0 <= time.monotonic() - started < 3.0
        started = time.monotonic()
        with ThreadPoolExecutor(10) as threads:
            list(threads.map(lambda number: database.run(add(f"server{number}")), range(10)))
        assert time.monotonic() - started < 1.0


@mysql
def test_all_hosts_are_tried_before_the_database_is_away(mysql_url: str, mariadb: MariaDB) -> None:
    with several(mariadb, "127.0.0.1:1,127.0.0.1:2") as database:
        with pytest.raises(DatabaseAway, match=r"127\.0\.0\.1:1, 127\.0\.0\.1:2 is away: .*refused"):
            database.run(names, patience=0)
        with pytest.raises(DatabaseAway, match="refused"):
            database.ping()


@mysql
def test_a_read_whose_connection_is_lost_is_sent_again_where_there_are_other_hosts(
    mysql_url: str, mariadb: MariaDB
) -> None:
    with several(mariadb, f"127.0.0.1:{mariadb.port},localhost:{mariadb.port}") as database:
        database.run(add("there"))
        with database.read() as connection:
            number = number_of_connection(connection)
            mariadb.execute("KILL %s", number)
            assert names(connection) == ["there"]
            assert number_of_connection(connection) != number
            settings = connection.execute(text("SELECT @@autocommit, @@tx_read_only, @@tx_isolation")).one()
            assert settings == (1, 1, "READ-COMMITTED")


@mysql
def test_a_silent_host_is_left_in_the_middle_of_the_work(
    mysql_url: str, mariadb: MariaDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mozpool.db.engine.CLUSTER_ANSWER_WITHIN", 0.5)
    tries = []

    def work(connection: Connection) -> int:
        tries.append(connection.connection.dbapi_connection.host)  # type: ignore[union-attr]
        if len(tries) == 1:
            connection.execute(text("SELECT SLEEP(5)"))
        return int(add("once")(connection))

    with several(mariadb, f"127.0.0.1:{mariadb.port},localhost:{mariadb.port}") as database:
        database.ping()
        database.run(work, patience=0)
        assert tries == ["127.0.0.1", "localhost"]
        with database.read() as connection:  # its connection to the first one was idle, and is not used any more
            assert connection.connection.dbapi_connection.host == "localhost"  # type: ignore[union-attr]
            assert names(connection) == ["once"]


@mysql
def test_what_may_be_done_twice_is_done_again_when_its_commit_is_in_doubt(on_mysql: Database, mariadb: MariaDB) -> None:
    on_mysql.run(add("before"))
    tries = []

    def work(connection: Connection) -> str:
        tries.append(number_of_connection(connection))
        connection.execute(update(imaging_servers).values(fqdn="after"))
        if len(tries) == 1:
            mariadb.execute("KILL %s", tries[0])  # the next thing sent is COMMIT
        return "done"

    assert on_mysql.run(work, repeatable=True) == "done"
    assert len(tries) == 2


@mysql
def test_a_row_that_is_locked_on_one_host_for_long_is_tried_on_another(
    mysql_url: str, mariadb: MariaDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorter = engine._MYSQL_SESSION.replace("innodb_lock_wait_timeout = 3", "innodb_lock_wait_timeout = 1")
    monkeypatch.setattr(engine, "_MYSQL_SESSION", shorter)
    monkeypatch.setattr(engine, "LOCK_WAITS", 2)
    tries = []

    with several(mariadb, f"127.0.0.1:{mariadb.port},localhost:{mariadb.port}") as database:
        database.run(add("wanted"))
        with closing(mariadb.connect("mozpool_shared")) as other, other.cursor() as cursor:
            cursor.execute("BEGIN")
            cursor.execute("UPDATE imaging_servers SET fqdn = 'locked'")

            def work(connection: Connection) -> None:
                tries.append(connection.connection.dbapi_connection.host)  # type: ignore[union-attr]
                if len(tries) == 3:
                    cursor.execute("ROLLBACK")
                connection.execute(update(imaging_servers).values(fqdn="mine"))

            database.run(work)
        assert tries == ["127.0.0.1", "127.0.0.1", "localhost"]


@mysql
def test_hosts_that_are_all_silent_are_not_waited_for_again_and_again(
    mysql_url: str, mariadb: MariaDB, silent: int
) -> None:
    with several(mariadb, f"127.0.0.1:{silent},localhost:{silent}", connect_timeout=0.5) as database:
        for most in (1.0, 0.5):  # all of them once, then one at a time
            started = time.monotonic()
            with pytest.raises(DatabaseAway, match="timed out"):
                database.run(names, patience=0)
            assert most <= time.monotonic() - started < most + 0.4
