# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""A real Galera cluster of three nodes, some of which fail: nothing is lost or done twice, and nobody sees an error."""

from __future__ import annotations

import logging
import random
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import IntegrityError

from mozpool import resources
from mozpool.clock import Clock
from mozpool.db import schema, upkeep
from mozpool.db.engine import CLUSTER_ANSWER_WITHIN, IDLE_TRANSACTION, Database
from mozpool.errors import DatabaseAway
from tests import galera
from tests.galera import Cluster
from tests.processes import needs

pytestmark = [pytest.mark.mysql, pytest.mark.slow, pytest.mark.timeout(300)]

CONNECT_WITHIN = 2.0
"""Seconds that connecting to a node may take here."""


@pytest.fixture(scope="module")
def shared_cluster() -> Iterator[Cluster]:
    """Three nodes that all tests of this file share."""
    needs(galera.missing())
    with galera.cluster() as made:
        made.execute("CREATE DATABASE counting CHARACTER SET utf8mb4")
        made.execute("CREATE TABLE counters (id INT PRIMARY KEY, n INT NOT NULL)", name="counting")
        made.execute("CREATE TABLE tokens (token CHAR(16) PRIMARY KEY)", name="counting")
        made.execute("CREATE TABLE claims (device INT PRIMARY KEY, holder INT NOT NULL)", name="counting")
        yield made


@pytest.fixture
def cluster(shared_cluster: Cluster) -> Iterator[Cluster]:
    """The three nodes, all in sync; what a test ended is started again."""
    yield shared_cluster
    for node in shared_cluster.nodes:
        node.thaw()
        if not node.running:
            node.start()
    shared_cluster.wait_for_size(3)
    for table in ("counters", "tokens", "claims"):
        shared_cluster.execute(f"TRUNCATE {table}", name="counting")


@contextmanager
def opened(cluster: Cluster, *order: int, name: str = "counting") -> Iterator[Database]:
    """A Database as an imaging server has it, which tries the nodes in this order; one may come twice."""
    names = [galera.ADDRESS if number not in order[:at] else "localhost" for at, number in enumerate(order)]
    hosts = ",".join(f"{host}:{cluster.nodes[number].port}" for host, number in zip(names, order, strict=True))
    database = Database(
        f"mysql+pymysql://root@{hosts}/{name}",
        clock=Clock(),
        rng=random.Random(1),
        connect_timeout=CONNECT_WITHIN,
    )
    try:
        yield database
    finally:
        database.dispose()


def node_of(cluster: Cluster, database: Database) -> int:
    """The number of the node that a Database uses."""
    with database.read() as connection:
        port = connection.exec_driver_sql("SELECT @@port").scalar_one()
    return [node.port for node in cluster.nodes].index(port)


def counted(source: Database, counter: int) -> int | None:
    """What a counter stands at; None where there is none yet."""
    with source.read() as connection:
        return connection.scalar(text("SELECT n FROM counters WHERE id = :id"), {"id": counter})


def count(database: Database, counter: int) -> None:
    """Add one to a counter, with a token by which a commit in doubt is recognised."""
    token = secrets.token_hex(8)

    def work(connection: Connection) -> bool:
        connection.execute(text("UPDATE counters SET n = n + 1 WHERE id = :id"), {"id": counter})
        connection.execute(text("INSERT INTO tokens VALUES (:token)"), {"token": token})
        return True

    def committed(connection: Connection) -> bool | None:
        found = connection.scalar(text("SELECT 1 FROM tokens WHERE token = :token"), {"token": token})
        return True if found else None

    database.run(work, committed=committed)


class Load:
    """Threads that count and read all the time, and note their longest wait and what went wrong."""

    def __init__(self, databases: list[Database], counters: int) -> None:
        self.done = dict.fromkeys(range(counters), 0)
        self.longest: dict[str, float] = {"write": 0.0, "read": 0.0}
        self.problems: list[str] = []
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._work, args=(database, counter))
            for counter in range(counters)
            for database in databases
        ]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def total(self) -> int:
        """How many times somebody has counted."""
        return sum(self.done.values())

    def wait_for_more(self, times: int, within: float = 40.0) -> None:
        """Wait until so many more have been counted."""
        enough, give_up = self.total() + times, time.monotonic() + within
        while self.total() < enough:
            assert time.monotonic() < give_up, (self.done, self.problems[:3])
            time.sleep(0.02)

    def _work(self, database: Database, counter: int) -> None:
        while not self._stop.is_set():
            self._measured("write", lambda: count(database, counter))
            with self._lock:
                self.done[counter] += 1
            self._measured("read", lambda: counted(database, counter))
            time.sleep(0.005)

    def _measured(self, kind: str, act: Callable[[], object]) -> None:
        started = time.monotonic()
        try:
            act()
        except Exception as error:
            self.problems.append(f"{kind}: {error!r}")
        took = time.monotonic() - started
        with self._lock:
            self.longest[kind] = max(self.longest[kind], took)


def begin_counting(cluster: Cluster, counters: int) -> None:
    for number in range(counters):
        cluster.execute("INSERT INTO counters VALUES (%s, 0)", number, name="counting")


def assert_all_is_counted_once(cluster: Cluster, load: Load) -> None:
    for node in cluster.nodes:
        if node.running:
            rows = node.execute("SET STATEMENT wsrep_sync_wait = 1 FOR SELECT id, n FROM counters", name="counting")
            assert dict(rows) == load.done
            tokens = node.execute("SET STATEMENT wsrep_sync_wait = 1 FOR SELECT COUNT(*) FROM tokens", name="counting")
            assert tokens[0][0] == load.total()


# -- connections


def test_it_uses_the_first_node_that_works_and_stays_there(cluster: Cluster) -> None:
    with opened(cluster, 1, 0, 2) as database:
        assert node_of(cluster, database) == 1
        assert database.name.startswith(f"the database counting at 127.0.0.1:{cluster.nodes[1].port}, 127.0.0.1:")
        cluster.nodes[1].stop()
        assert node_of(cluster, database) == 0
        cluster.nodes[1].start()
        assert node_of(cluster, database) == 0


def test_sessions_read_what_was_committed_anywhere(cluster: Cluster) -> None:
    settings = "SELECT @@wsrep_sync_wait, @@idle_transaction_timeout, @@tx_isolation"
    with opened(cluster, 0, 1, 2) as database:
        for use in (database.begin, database.read):
            with use() as connection:
                assert connection.execute(text(settings)).one() == (7, int(IDLE_TRANSACTION), "READ-COMMITTED")
        with database.maintenance() as connection:
            assert connection.execute(text(settings)).one()[:2] == (7, 0)


def test_a_node_that_has_lost_the_others_is_not_used(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    lonely = cluster.nodes[0]
    with opened(cluster, 0, 1, 2) as before, opened(cluster, 0, 0) as stuck:
        assert node_of(cluster, before) == 0
        # Opened before and used after: it goes to no other node, so it ends with an error, and with nothing but that.
        with pytest.raises(DatabaseAway, match="WSREP has not yet prepared"), stuck.read() as connection:
            connection.execute(text("SELECT 1"))
            lonely.execute("SET GLOBAL wsrep_provider_options = 'gmcast.isolate=1'")
            try:
                give_up = time.monotonic() + 30
                while lonely.status("wsrep_ready") == "ON":
                    assert time.monotonic() < give_up
                    time.sleep(0.1)
                assert node_of(cluster, before) == 1
                before.run(lambda connection: connection.execute(text("INSERT INTO counters VALUES (1, 1)")))
                with opened(cluster, 0, 1, 2) as after:
                    assert node_of(cluster, after) == 1
                with opened(cluster, 0) as nowhere, pytest.raises(DatabaseAway, match="WSREP has not yet prepared"):
                    nowhere.ping()
                connection.execute(text("SELECT 1 FROM counters"))
            finally:
                lonely.execute("SET GLOBAL wsrep_provider_options = 'gmcast.isolate=0'")
                cluster.wait_for_size(3)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


# -- what was written is seen, and by one only


def test_what_is_written_on_one_node_is_read_on_another_at_once(cluster: Cluster) -> None:
    begin_counting(cluster, 1)
    times: list[float] = []
    with opened(cluster, 0) as here, opened(cluster, 1) as there:
        for number in range(1, 201):
            count(here, 0)
            started = time.monotonic()
            seen = counted(there, 0)
            times.append(time.monotonic() - started)
            assert seen == number
        idle = []
        for _ in range(200):
            started = time.monotonic()
            counted(there, 0)
            idle.append(time.monotonic() - started)
    with closing(cluster.nodes[1].connect("counting")) as connection, connection.cursor() as cursor:
        for wait in (0, 7):
            cursor.execute(f"SET wsrep_sync_wait = {wait}")
            started = time.monotonic()
            for _ in range(1000):
                cursor.execute("SELECT n FROM counters WHERE id = 0")
            print(f"\n1000 reads with wsrep_sync_wait = {wait}: {time.monotonic() - started:.3f} ms each", end="")
    print(f"\nread right after a write on another node: median {1000 * sorted(times)[100]:.1f} ms", end="")
    print(f", without a write: {1000 * sorted(idle)[100]:.1f} ms")


def test_a_row_that_both_want_goes_to_one_and_nobody_sees_an_error(cluster: Cluster) -> None:
    both = threading.Barrier(2)

    def claim(database: Database, holder: int, device: int) -> bool:
        first = True

        def work(connection: Connection) -> bool:
            nonlocal first
            taken = connection.scalar(text("SELECT holder FROM claims WHERE device = :device"), {"device": device})
            if first:
                first = False
                both.wait(20)
            if taken is not None:
                return False
            connection.execute(
                text("INSERT INTO claims VALUES (:device, :holder)"), {"device": device, "holder": holder}
            )
            return True

        try:
            return database.run(work)
        except IntegrityError:
            return False

    with opened(cluster, 0) as one, opened(cluster, 1) as other, ThreadPoolExecutor(2) as threads:
        for device in range(50):
            tries = [threads.submit(claim, one, 1, device), threads.submit(claim, other, 2, device)]
            winners = [holder for holder, won in enumerate((done.result(30) for done in tries), start=1) if won]
            assert len(winners) == 1
            for database in (one, other):
                with database.read() as connection:
                    holder = connection.scalar(
                        text("SELECT holder FROM claims WHERE device = :device"), {"device": device}
                    )
                assert [holder] == winners


# -- nodes that fail


def test_nothing_is_lost_or_done_twice_while_nodes_come_and_go(cluster: Cluster) -> None:
    begin_counting(cluster, 3)
    with opened(cluster, 0, 1, 2) as one, opened(cluster, 1, 2, 0) as other:
        with Load([one, other], counters=3) as load:
            load.wait_for_more(100)
            assert (node_of(cluster, one), node_of(cluster, other)) == (0, 1)
            cluster.nodes[0].kill()
            load.wait_for_more(100)
            after_kill = dict(load.longest)
            cluster.nodes[0].start()
            load.wait_for_more(50)
            load.longest = {"write": 0.0, "read": 0.0}
            cluster.nodes[1].stop()
            load.wait_for_more(100)
            cluster.nodes[1].start()
            load.wait_for_more(50)
        assert not load.problems, load.problems[:5]
        print(f"\nlongest pause after a kill (s): {after_kill}; stop and join: {load.longest}; {load.done}")
        assert max(after_kill.values()) < 20
        assert_all_is_counted_once(cluster, load)


def test_a_frozen_node_is_left_behind(cluster: Cluster) -> None:
    begin_counting(cluster, 3)
    with opened(cluster, 0, 1, 2) as database:
        with Load([database], counters=3) as load:
            load.wait_for_more(50)
            cluster.nodes[0].freeze()
            with opened(cluster, 0, 1, 2) as newcomer:
                started = time.monotonic()
                assert node_of(cluster, newcomer) == 1
                for_newcomer = time.monotonic() - started
                started = time.monotonic()
                count(newcomer, 0)
                load.done[0] += 1
                afterwards = time.monotonic() - started
            load.wait_for_more(100)
            assert node_of(cluster, database) == 1
        assert not load.problems, load.problems[:5]
        print(f"\nlongest pause (s): {load.longest}; newcomer: {for_newcomer:.1f}, then {afterwards:.1f}")
        assert CONNECT_WITHIN <= for_newcomer < 2 * CONNECT_WITHIN + 3
        assert max(load.longest.values()) < CLUSTER_ANSWER_WITHIN + CONNECT_WITHIN + 3
        cluster.nodes[0].thaw()
        cluster.wait_for_size(3)
        assert_all_is_counted_once(cluster, load)


# -- the schema


def test_the_tables_are_made_upgraded_and_kept_on_a_cluster(cluster: Cluster) -> None:
    cluster.execute("CREATE DATABASE made CHARACTER SET utf8mb4")
    cluster.execute("CREATE DATABASE upgraded")
    old = resources.path("sql", "schema-4.2.1.sql").read_text(encoding="utf-8")
    cluster.nodes[0].client("mariadb", "upgraded", script=old)
    with opened(cluster, 0, 1, 2, name="made") as database:
        schema.create(database)
    with opened(cluster, 0, 1, 2, name="upgraded") as database:
        schema.upgrade(database)
    for name in ("made", "upgraded"):
        for node in range(3):
            with opened(cluster, node, name=name) as database:
                assert schema.check(database) == []
    without_key = (
        "SELECT t.table_name FROM information_schema.tables t LEFT JOIN information_schema.table_constraints c "
        "ON c.table_schema = t.table_schema AND c.table_name = t.table_name AND c.constraint_type = 'PRIMARY KEY' "
        "WHERE t.table_schema = 'upgraded' AND c.constraint_name IS NULL"
    )
    assert cluster.execute(without_key) == []
    # Every imaging server looks after the tables every hour, perhaps two at the same moment on different nodes.
    cluster.execute("CALL init_log_partitions('device_logs', 20, -1)", name="made")
    with opened(cluster, 0, name="made") as one, opened(cluster, 1, name="made") as other:
        with ThreadPoolExecutor(2) as threads:
            for done in [threads.submit(upkeep.run, database, Clock()) for database in (one, other)]:
                done.result(60)
        assert schema.check(one) == schema.check(other) == []
    cluster.wait_for_size(3)
