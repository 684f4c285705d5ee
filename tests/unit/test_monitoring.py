# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What monitors ask: whether a server lives and is ready, and the pool in numbers, each device once."""

from __future__ import annotations

import logging
import os
import signal
import time
from datetime import timedelta
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse
from sqlalchemy import insert, text, update

from mozpool.db import schema, servers, tables
from mozpool.db.servers import Presence
from mozpool.web.census import Census, tell
from mozpool.web.monitoring import MONITORING, status
from scripts import testdata
from tests.app_fixtures import NO_RELAY, OTHER, OWN, Server, add_relay_board, server
from tests.conftest import open_database
from tests.mariadb import running

THIRD = "server-3.example.com"


def census(of: Server) -> Census:
    """The pool as it is just now."""
    monitoring = of.app.extensions[MONITORING]
    monitoring.census._ended = None  # what was found before counts no more
    found: Census = monitoring.census.get()
    return found


def said_by(of: Server, census: Census, server_id: int | None = None) -> dict[str, dict[tuple[str, ...], float]]:
    """Metric → values of its labels → value, as a server tells them."""
    return {
        family.name: {tuple(sample.labels.values()): sample.value for sample in family.samples}
        for family in tell(census, server_id or of.daemon.server_id)
    }


def give_sign(of: Server, server_id: int, *, beat: int = 1, stopped: bool = False, seconds_ago: float = 0.0) -> None:
    """A sign of life of another server, and this one's look at it."""
    seen = of.daemon.clock.now() - timedelta(seconds=seconds_ago)
    said = Presence(server_id, beat, stopped, "5", seen, seen, 10, 0)
    of.daemon.database.run(lambda conn: servers.say_here(conn, said))
    of.daemon.give_sign()


def third_server(of: Server) -> int:
    """The id of a server that has never run."""

    def add(conn) -> int:
        values = {"fqdn": THIRD}
        return int(conn.execute(insert(tables.imaging_servers).values(**values)).inserted_primary_key[0])

    return of.daemon.database.run(add)


# Health and readiness


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_server_lives_while_nothing_is_stuck(imaging_server: Server, slash: str) -> None:
    answer = imaging_server.get(f"/api/health{slash}")
    assert (answer.status_code, answer.get_json()) == (200, {"live": True})
    assert answer.headers["Cache-Control"] == "no-store"
    imaging_server.daemon.timers.last_turn -= 1000
    answer = imaging_server.get(f"/api/health{slash}")
    assert answer.status_code == 503
    said = answer.get_json()
    assert said["live"] is False
    assert said["error"]["code"] == "stuck"
    assert said["stuck"][0].startswith("the timers' thread for 99")
    assert answer.headers["Retry-After"]


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_server_is_ready_from_its_first_sign_of_life_until_it_stops(imaging_server: Server, slash: str) -> None:
    def reasons() -> list[str] | None:
        answer = imaging_server.get(f"/api/ready{slash}")
        said = answer.get_json()
        if answer.status_code == 200:
            assert said == {"ready": True}
            return None
        assert answer.status_code == 503 and answer.headers["Retry-After"]
        assert said["ready"] is False and said["error"]["code"] == "not_ready"
        assert said["error"]["message"] == "; ".join(said["reasons"])
        found: list[str] = said["reasons"]
        return found

    assert reasons() == ["this server has not given a sign of life yet"]
    imaging_server.daemon.give_sign()
    assert reasons() is None
    presence = imaging_server.daemon.presence
    assert presence._given is not None
    presence._given -= 31
    assert reasons() == ["this server has given no sign of life for 31 s"]
    imaging_server.daemon.give_sign()
    assert reasons() is None
    imaging_server.daemon._stopped.set()
    assert reasons() == ["this server stops"]
    imaging_server.daemon._stopped.clear()


def test_a_server_whose_lease_is_over_is_not_ready(database_url: str, tmp_path: Path) -> None:
    with server(database_url, tmp_path, server={"group": "room-1"}) as one:
        one.daemon.give_sign()
        assert one.get("/api/ready/").status_code == 200
        one.daemon.lease.end()
        (reason,) = one.get("/api/ready/").get_json()["reasons"]
        assert reason == "this server has been out of touch for so long that others may act in its place"


def test_a_server_whose_name_another_process_has_taken_is_not_ready(imaging_server: Server) -> None:
    daemon = imaging_server.daemon
    daemon.presence.on_usurped.clear()
    daemon.give_sign()
    later = daemon.clock.now() + timedelta(seconds=5)
    usurper = Presence(daemon.server_id, 99, False, "5", later, later, 1, 0)
    daemon.database.run(lambda conn: servers.say_here(conn, usurper))
    daemon.give_sign()
    (reason,) = imaging_server.get("/api/ready/").get_json()["reasons"]
    assert "another process runs in its name" in reason


@pytest.mark.parametrize("revision", ["0001", "9999", None])
def test_a_server_whose_tables_are_of_another_version_is_not_ready(
    imaging_server: Server, revision: str | None
) -> None:
    imaging_server.daemon.give_sign()
    database = imaging_server.daemon.database
    (before,) = database.run(lambda conn: conn.scalars(text("SELECT version_num FROM alembic_version")).all())
    if revision is None:
        database.run(lambda conn: conn.execute(text("DELETE FROM alembic_version")))
    else:
        database.run(lambda conn: conn.execute(text("UPDATE alembic_version SET version_num = :it"), {"it": revision}))
    try:
        (reason,) = imaging_server.get("/api/ready/").get_json()["reasons"]
        assert reason == f"the tables are of revision {revision}: run mozpool-db upgrade, or a newer Mozpool"
    finally:
        database.run(lambda conn: conn.execute(text("DELETE FROM alembic_version")))
        database.run(lambda conn: conn.execute(text("INSERT INTO alembic_version VALUES (:it)"), {"it": before}))


@pytest.mark.mysql
def test_a_database_that_hangs_or_is_gone_makes_nobody_wait_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the real one: first it is frozen, then killed, then it comes back."""
    monkeypatch.setattr("mozpool.web.monitoring.CENSUS_LIMIT", 2.5)
    with running() as mariadb:
        mariadb.execute("CREATE DATABASE hangs CHARACTER SET utf8mb4")
        database = open_database(mariadb.url("hangs"))
        schema.create(database)
        database.dispose()
        with server(mariadb.url("hangs"), tmp_path, count=2) as one:
            one.daemon.give_sign()
            assert one.get("/api/ready/").status_code == 200
            assert "mozpool_database_up 1.0" in one.get("/metrics").text
            monitoring = one.app.extensions[MONITORING]
            os.kill(mariadb.pid, signal.SIGSTOP)
            try:
                monitoring.census._ended = monitoring._database._ended = None
                begun = time.monotonic()
                answer = one.get("/api/ready/")
                assert (answer.status_code, answer.get_json()["reasons"]) == (
                    503,
                    ["the database has not answered for 2 s"],
                )
                assert time.monotonic() - begun < 4
                assert one.get("/api/health/").status_code == 200, "a server lives on without its database"
                begun = time.monotonic()
                scraped = one.get("/metrics")
                assert time.monotonic() - begun < 5
                assert scraped.status_code == 200
                assert "mozpool_database_up 0.0" in scraped.text and "mozpool_devices" not in scraped.text
                assert "mozpool_workers{" in scraped.text
                begun = time.monotonic()
                for _ in range(20):
                    one.get("/metrics")
                    assert one.get("/api/pool/status/").status_code == 503
                assert time.monotonic() - begun < 2, "one look at a time"
            finally:
                os.kill(mariadb.pid, signal.SIGCONT)
            one.wait_until(lambda: one.get("/api/ready/").status_code == 200, 20)
            mariadb.kill()
            one.wait_until(lambda: one.get("/api/ready/").status_code == 503, 20)
            assert "is away" in one.get("/api/ready/").get_json()["reasons"][0]
            monitoring.census._ended = None
            assert "mozpool_database_up 0.0" in one.get("/metrics").text
            mariadb.start()
            one.wait_until(lambda: one.get("/api/ready/").status_code == 200, 20)


def test_what_is_asked_every_second_is_not_logged_while_all_is_well(
    imaging_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mozpool.access")
    imaging_server.daemon.give_sign()
    for path in ("/api/health", "/api/health/", "/api/ready", "/api/ready/", "/metrics"):
        assert imaging_server.get(path).status_code == 200
    assert caplog.messages == []
    imaging_server.daemon.timers.last_turn -= 1000
    imaging_server.get("/api/health/")
    assert [message.split(" ")[2:5] for message in caplog.messages] == [["GET", "/api/health/", "503"]]


# The pool, each device once


def test_sums_over_all_servers_are_right_whoever_is_there(imaging_server: Server) -> None:
    own, other, third = imaging_server.daemon.server_id, imaging_server.other_server(), third_server(imaging_server)
    imaging_server.move("device2", other)
    imaging_server.move("device3", third)
    imaging_server.change("device3", state="failed_self_test")
    add_relay_board(imaging_server, "relay-2", "relay-2.example.com", other)
    give_sign(imaging_server, other)

    def total(seen: Census, up: list[int], name: str) -> float:
        """The sum of what those tell that are there, and so are scraped."""
        told = [said_by(imaging_server, seen, number)[name] for number in up]
        assert len({key for metric in told for key in metric}) == sum(map(len, told)), "a series of two servers"
        return sum(sum(metric.values()) for metric in told)

    for beat, up, stopped in ((2, [own, other], False), (3, [own], True), (4, [own, other], False)):
        give_sign(imaging_server, other, beat=beat, stopped=stopped)
        seen = census(imaging_server)
        assert total(seen, up, "mozpool_devices") == 3
        assert total(seen, up, "mozpool_devices_by_category") == 3
        assert total(seen, up, "mozpool_devices_person_needed") == 1
        assert total(seen, up, "mozpool_relay_boards") == 2
        assert total(seen, up, "mozpool_server_state") == 3


def test_a_server_tells_of_its_own_and_the_first_one_of_those_that_are_not_there(imaging_server: Server) -> None:
    other, third = imaging_server.other_server(), third_server(imaging_server)
    imaging_server.move("device2", other)
    imaging_server.move("device3", third)
    give_sign(imaging_server, other)
    seen = census(imaging_server)
    mine, others = said_by(imaging_server, seen), said_by(imaging_server, seen, other)
    assert mine["mozpool_devices"] == {
        (OWN, "panda", "ES", "ready"): 1,
        (THIRD, "panda", "ES", "ready"): 1,
    }
    assert others["mozpool_devices"] == {(OTHER, "panda", "ES", "ready"): 1}
    states = {**mine["mozpool_server_state"], **others["mozpool_server_state"]}
    assert {key for key, value in states.items() if value} == {
        (OWN, "up"),
        (OTHER, "up"),
        (THIRD, "never_started"),
    }
    assert 0 <= others["mozpool_server_heartbeat_age_seconds"][OTHER,] < 60
    assert (THIRD,) not in mine["mozpool_server_heartbeat_age_seconds"]


def test_nothing_is_a_number_too(imaging_server: Server) -> None:
    """Who sums up what fails gets 0, not nothing."""
    imaging_server.daemon.give_sign()
    said = said_by(imaging_server, census(imaging_server))
    assert said["mozpool_devices_by_category"][OWN, "panda", "ES", "failed"] == 0
    assert said["mozpool_devices_by_category"][OWN, "panda", "ES", "idle"] == 3
    assert said["mozpool_queue_length"] == {(OWN,): 0}
    assert said["mozpool_queue_oldest_age_seconds"] == {(OWN,): 0}
    assert said["mozpool_requests"][OWN, "finding_device"] == 0
    assert said["mozpool_relay_boards"] == {(OWN, "ok"): 1, (OWN, "suspect"): 0, (OWN, "failed"): 0}


def test_the_queue_is_measured_by_its_oldest_request(imaging_server: Server) -> None:
    imaging_server.made("device1")
    numbers = [imaging_server.made("device1", wait=3600) for _ in range(2)]
    made = imaging_server.daemon.clock.now() - timedelta(seconds=500)
    table = tables.requests
    imaging_server.daemon.database.run(
        lambda conn: conn.execute(update(table).where(table.c.id == numbers[0]).values(created=made))
    )
    seen = census(imaging_server)
    said = said_by(imaging_server, seen)
    assert said["mozpool_queue_length"] == {(OWN,): 2}
    assert 500 <= said["mozpool_queue_oldest_age_seconds"][OWN,] < 560
    told = status(seen)["requests"]
    assert (told["open"], told["waiting"]) == (3, 2)
    assert 500 <= told["longest_wait"] < 560


def test_hardware_that_nobody_described_is_told_of(imaging_server: Server) -> None:
    imaging_server.change("device1", hardware_type_id=None)
    assert said_by(imaging_server, census(imaging_server))["mozpool_devices"][OWN, "unknown", "unknown", "ready"] == 1


def test_an_empty_pool_can_be_told_of(database_url: str, tmp_path: Path) -> None:
    with server(database_url, tmp_path, count=0) as one:
        assert one.get("/api/pool/status/").get_json()["devices"]["total"] == 0
        assert "mozpool_database_up 1.0" in one.get("/metrics").text


def test_the_status_of_the_pool_names_what_is_wrong(imaging_server: Server) -> None:
    other = imaging_server.other_server()
    imaging_server.move("device3", other)
    give_sign(imaging_server, other, stopped=True)
    imaging_server.change("device1", state="failed_self_test")
    imaging_server.change("device2", state="failed_pxe_booting")
    add_relay_board(imaging_server, "relay-2", "relay-2.example.com")
    board = tables.relay_boards
    imaging_server.daemon.database.run(
        lambda conn: conn.execute(update(board).where(board.c.name == "relay-2").values(state="failed"))
    )
    said = imaging_server.get("/api/pool/status").get_json()
    assert said["devices"] == {
        "total": 3,
        "in_use": 0,
        "idle": 1,
        "processing": 0,
        "failed": 2,
        "out_of_service": 0,
        "person_needed": len(said["person_needed"]),
        "away": 1,
    }
    assert {"name": "device1", "state": "failed_self_test"} in said["person_needed"]
    assert said["servers"] == {
        "total": 2,
        "up": 1,
        "away": 0,
        "stopped": 1,
        "never_started": 0,
        "missing": [OTHER],
    }
    assert (said["relay_boards"]["failed"], said["relay_boards"]["failing"]) == (1, ["relay-2"])


def test_names_in_the_database_cannot_spoil_what_is_scraped(imaging_server: Server) -> None:
    nasty = 'a"b\\c\nmozpool_devices 7'
    table = tables.hardware_types
    imaging_server.daemon.database.run(lambda conn: conn.execute(update(table).values(model=nasty[:32])))
    samples = [
        sample
        for family in parse(imaging_server.get("/metrics").text)
        if family.name == "mozpool_devices"
        for sample in family.samples
    ]
    assert [(sample.labels["hardware_model"], sample.value) for sample in samples] == [(nasty[:32], 3)]


def test_many_devices_make_no_more_series_than_a_few(imaging_server: Server) -> None:
    def series() -> int:
        return sum(map(len, said_by(imaging_server, census(imaging_server)).values()))

    imaging_server.daemon.give_sign()
    before = series()
    database, settings = imaging_server.daemon.database, imaging_server.daemon.settings
    database.run(lambda conn: testdata.fill(conn, settings, 300, NO_RELAY, "ready"))
    assert series() == before
    assert imaging_server.get("/api/pool/status/").get_json()["devices"]["total"] >= 300
