# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What the daemon counts and measures of itself."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse
from sqlalchemy import Connection, select
from sqlalchemy.exc import OperationalError

from mozpool.clock import Clock
from mozpool.db import tables
from mozpool.db.engine import Database
from mozpool.errors import DatabaseAway, HardwareError, LaneError, OwnFault
from mozpool.lanes import Lanes
from mozpool.metrics import NO_PATH, Metrics, snake_case
from tests.app_fixtures import Server, server


def value(where: Metrics, name: str, **labels: str) -> float | None:
    """A sample."""
    return where.registry.get_sample_value(name, labels)


def scraped(imaging_server: Server) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """(name, labels) → value, as it is scraped."""
    text = imaging_server.get("/metrics").text
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in parse(text)
        for sample in family.samples
    }


# Transitions


def test_each_state_that_is_entered_counts_and_the_way_to_ready_is_measured(imaging_server: Server) -> None:
    metrics = imaging_server.daemon.metrics
    number = imaging_server.made()
    found = {"kind": "request", "to_state": "contact_lifeguard", "event": "device_found"}
    assert value(metrics, "mozpool_transitions_total", **found) == 1
    imaging_server.daemon.requests.force(number, "pending")
    assert value(metrics, "mozpool_request_ready_seconds_count") == 0
    imaging_server.daemon.requests.force(number, "ready")
    assert value(metrics, "mozpool_request_ready_seconds_count") == 1
    took = value(metrics, "mozpool_request_ready_seconds_sum")
    assert took is not None and 0 <= took < 60
    assert value(metrics, "mozpool_transitions_total", kind="request", to_state="ready", event="forced") == 1
    imaging_server.daemon.devices.force(imaging_server.device("device2").id, "locked_out")
    assert value(metrics, "mozpool_transitions_total", kind="device", to_state="locked_out", event="forced") == 1


def test_an_event_that_nobody_expects_makes_no_series(imaging_server: Server) -> None:
    imaging_server.get("/api/device/device1/event/no_such_event/")
    text = imaging_server.get("/metrics").text
    assert "no_such_event" not in text


# Effects


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (None, "ok"),
        (HardwareError("device1", "power_cycle", "it broke"), "failed"),
        (LaneError("device1", "power_cycle", "no route", culprit="relay-1"), "lane_failed"),
        (OwnFault("device1", "power_cycle", "disk full"), "own_fault"),
        (DatabaseAway("gone"), "database_away"),
        (ZeroDivisionError(), "broken"),
    ],
)
def test_an_effect_counts_by_what_came_of_it(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception | None, outcome: str
) -> None:
    with server(sqlite_url, tmp_path, count=1) as one:

        def perform(row: object, effect: object) -> None:
            if error is not None:
                raise error

        monkeypatch.setattr(one.daemon.device_effects, "_together", None)
        monkeypatch.setattr(one.daemon.device_effects._performer, "perform", perform)
        one.daemon.devices.handle(one.device().id, "please_power_cycle")
        metrics = one.daemon.metrics
        one.wait_until(
            lambda: value(metrics, "mozpool_effects_total", kind="device", effect="power_cycle", outcome=outcome)
        )
        assert value(metrics, "mozpool_effect_seconds_count", kind="device", effect="power_cycle")


def test_names_of_effects_are_written_as_labels_are() -> None:
    assert [snake_case(name) for name in ("PowerCycle", "Ping", "SetPXE")] == ["power_cycle", "ping", "set_pxe"]


# Database


def test_units_of_work_are_measured_and_those_that_came_to_nothing_counted(database: Database) -> None:
    metrics = Metrics("here")
    database.on_work, database.on_retry = metrics.database_work, metrics.database_retry
    database.ping()
    database.run(lambda conn: conn.execute(select(tables.devices.c.id)).all())
    assert value(metrics, "mozpool_database_seconds_count", operation="read") == 1
    assert value(metrics, "mozpool_database_seconds_count", operation="write") == 1

    def refuse(conn: Connection) -> None:
        raise KeyError("of the caller's own")

    with pytest.raises(KeyError):
        database.run(refuse)
    assert value(metrics, "mozpool_database_errors_total", operation="write") == 0

    def away(conn: Connection) -> None:
        raise DatabaseAway("gone")

    with pytest.raises(DatabaseAway):
        database.run(away)
    assert value(metrics, "mozpool_database_errors_total", operation="write") == 1
    assert value(metrics, "mozpool_database_seconds_count", operation="write") == 3


@pytest.mark.mysql
def test_repetitions_count_by_their_reason(mysql_url: str) -> None:
    import pymysql

    from tests.conftest import open_database

    metrics = Metrics("here")
    database = open_database(mysql_url)
    database.on_retry = metrics.database_retry
    tries: list[int] = []

    def fails_at_first(conn: Connection) -> int:
        tries.append(1)
        number = {1: 1213, 2: 2006}.get(len(tries))  # a deadlock, then a connection that has gone
        if number is not None:
            raise OperationalError("UPDATE", {}, pymysql.err.OperationalError(number, "of the test"))
        return len(tries)

    try:
        assert database.run(fails_at_first) == 3
    finally:
        database.dispose()
    assert value(metrics, "mozpool_database_retries_total", reason="conflict") == 1
    assert value(metrics, "mozpool_database_retries_total", reason="lost") == 1


# HTTP


def test_calls_count_by_the_pattern_of_their_path_and_never_by_what_was_asked(imaging_server: Server) -> None:
    imaging_server.get("/api/device/device1/status/")
    imaging_server.get("/api/device/no-such-thing/status")
    imaging_server.get("/nowhere/at/all")
    imaging_server.client.delete("/api/device/device1/status/")
    imaging_server.client.open("/api/version/", method="BREW")
    found = {
        tuple(sorted(labels)): number
        for (name, labels), number in scraped(imaging_server).items()
        if name == "mozpool_http_requests_total"
    }
    path = "/api/device/<name>/status/"
    assert found == {
        (("method", "GET"), ("path", path), ("status", "200")): 1,
        (("method", "GET"), ("path", path), ("status", "404")): 1,
        (("method", "GET"), ("path", NO_PATH), ("status", "404")): 1,
        (("method", "other"), ("path", NO_PATH), ("status", "405")): 2,
    }
    assert "no-such-thing" not in imaging_server.get("/metrics").text


def test_a_long_poll_that_waited_is_no_slow_call(imaging_server: Server) -> None:
    metrics, path = imaging_server.daemon.metrics, "/api/request/<number>/status/"
    number = imaging_server.made()
    state = imaging_server.request(number).state
    imaging_server.get(f"/api/request/{number}/status/")
    assert value(metrics, "mozpool_http_request_seconds_count", path=path) == 1
    imaging_server.get(f"/api/request/{number}/status/?wait=0.2&state={state}")
    assert value(metrics, "mozpool_http_request_seconds_count", path=path) == 1
    assert value(metrics, "mozpool_http_requests_total", method="GET", path=path, status="200") == 2


# Workers and lanes


def test_lanes_tell_who_is_busy_and_what_waits() -> None:
    clock = Clock()
    lanes = Lanes("hardware", 2, clock)
    may_end, started = threading.Event(), threading.Barrier(3)

    def work() -> None:
        started.wait(10)
        may_end.wait(10)

    lanes.submit("relay-1", work)
    lanes.submit("relay-2", work)
    started.wait(10)
    for lane in ("relay-1", "relay-1", "relay-2", "relay-3"):
        lanes.submit(lane, lambda: None)
    time.sleep(0.05)
    metrics = Metrics("here")
    metrics.watch([lanes], lambda: {}, lambda: {"relay-9": [1, 2], "relay-8": []})
    try:
        expected: dict[str, Any] = {
            "mozpool_workers": 2,
            "mozpool_workers_busy": 2,
            "mozpool_lanes": 3,
            "mozpool_lane_longest": 2,
        }
        assert {name: value(metrics, name, pool="hardware") for name in expected} == expected
        assert value(metrics, "mozpool_work_waiting", pool="hardware", queue="worker") == 1
        assert value(metrics, "mozpool_work_waiting", pool="hardware", queue="lane") == 3
        oldest = value(metrics, "mozpool_work_oldest_seconds", pool="hardware")
        assert oldest is not None and 0.05 <= oldest < 10
        assert value(metrics, "mozpool_lanes_held") == 2
        assert value(metrics, "mozpool_effects_held") == 2
        assert value(metrics, "mozpool_live") == 1
    finally:
        may_end.set()
        assert lanes.stop(10)
    assert value(metrics, "mozpool_workers_busy", pool="hardware") == 0
    assert value(metrics, "mozpool_work_oldest_seconds", pool="hardware") == 0


def test_several_daemons_of_a_process_have_a_registry_each() -> None:
    one, other = Metrics("one"), Metrics("other")
    one.database_retry("lost")
    assert value(one, "mozpool_database_retries_total", reason="lost") == 1
    assert value(other, "mozpool_database_retries_total", reason="lost") == 0
