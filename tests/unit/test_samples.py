# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""How the pool was doing: what is noted each minute, and what is told of it."""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from mozpool.clock import Clock
from mozpool.db import samples, tables, upkeep
from mozpool.db.engine import Database
from mozpool.db.samples import MINUTE, Sample
from mozpool.db.spans import EPOCH
from mozpool.errors import DatabaseAway
from mozpool.lifeguard import sampling
from tests.app_fixtures import Server, server
from tests.unit.pool_support import NOW, Rows

MINUTE_NOW = samples.minute_of(NOW)
EMPTY = Sample(MINUTE_NOW, 0, 0, 0, 0, 0, 0, 0, 0, None, None, 0)


@pytest.fixture
def rows(database: Database) -> Rows:
    return Rows(database)


def add(database: Database, *made: Sample) -> None:
    def work(conn: object) -> None:
        for sample in made:
            samples.add(conn, sample)  # type: ignore[arg-type]

    database.run(work)


def noted(database: Database) -> list[Sample]:
    with database.read() as conn:
        found = conn.execute(tables.pool_samples.select().order_by(tables.pool_samples.c.minute))
        return [Sample(*row) for row in found]


def changed(rows: Rows, table: object, ts: object, state: str, **keys: int) -> None:
    rows.add(table, ts=ts, from_state="pending", to_state=state, event="x", version=1, **keys)


def test_it_notes_what_devices_and_requests_do(rows: Rows) -> None:
    other = rows.server("server-2.example.com")
    for state, claim in (("ready", None), ("ready", None), ("ready", 1), ("pxe_booting", 2), ("locked_out", None)):
        rows.device(state, claim_id=claim)
    device = rows.device("failed_self_test", owner_id=other)
    begin = NOW - MINUTE
    for seconds in (10, 30, 90):
        request = rows.request(
            at=begin - timedelta(seconds=seconds), state="ready", created=begin - timedelta(seconds=seconds)
        )
        changed(rows, tables.request_history, begin, "ready", request_id=request)
    late = rows.request(created=begin)
    changed(rows, tables.request_history, NOW, "ready", request_id=late)
    for state in ("failed_self_test", "start_self_test", "failed_pxe_booting"):
        changed(rows, tables.device_history, begin + timedelta(seconds=59), state, device_id=device)
    sampling.take(rows.database, NOW + timedelta(seconds=30), {other})
    expected = Sample(MINUTE_NOW, 1, 2, 1, 1, 1, 1, 1, 3, 30.0, 90.0, 1)
    assert noted(rows.database) == [expected]


def test_the_first_of_several_servers_wins(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    sampling.take(rows.database, NOW, ())
    rows.device()
    sampling.take(rows.database, NOW, ())
    monkeypatch.setattr(samples, "has", lambda conn, minute: False)  # both looked before either had written
    sampling.take(rows.database, NOW, ())
    assert noted(rows.database) == [EMPTY]


def test_nothing_breaks_when_the_database_is_away(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away() -> None:
        raise DatabaseAway("it is away")

    with server(sqlite_url, tmp_path) as site, monkeypatch.context() as patch:
        caplog.set_level(logging.INFO)
        patch.setattr(site.daemon.database, "read", away)
        site.daemon.take_sample()
    assert "it is not noted how the pool is doing: it is away" in caplog.text


def test_a_history_sums_up_minutes_and_leaves_out_what_is_unknown(database: Database) -> None:
    first = MINUTE_NOW - MINUTE_NOW % 5 - 10
    add(
        database,
        replace(EMPTY, minute=first, idle=10, waiting=1, ready=1, ready_median=10.0, ready_worst=10.0),
        replace(EMPTY, minute=first + 1, idle=9, in_use=1, waiting=7, failures=2),
        replace(EMPTY, minute=first + 4, idle=8, in_use=2, ready=3, ready_median=30.0, ready_worst=90.0, failures=1),
        replace(EMPTY, minute=first + 10),
        replace(EMPTY, minute=MINUTE_NOW - 1440, idle=99),
    )
    with database.read() as conn:
        step, found = samples.history(conn, NOW, 1440)
    assert step == 5
    assert [one.begin for one in found] == [EPOCH + first * MINUTE, EPOCH + (first + 10) * MINUTE]
    one = found[0]
    assert (one.idle, one.in_use, one.waiting, one.failures) == (9.0, 1.0, 7, 3)
    assert (one.ready, one.ready_median, one.ready_worst) == (4, 25.0, 90.0)
    assert (found[1].ready, found[1].ready_median, found[1].ready_worst) == (0, None, None)


@pytest.mark.parametrize("hours", [0.01, 1, 5, 6, 24, 168, 720, 2160])
def test_a_history_has_at_most_three_hundred_steps(hours: float) -> None:
    minutes = int(hours * 60)
    step = samples.step_for(minutes, 300)
    assert minutes <= 300 * step
    assert step == 1 or minutes > 60 * step


def test_samples_are_kept_for_ninety_days(database: Database) -> None:
    now = samples.minute_of(Clock().now())
    ages = [91 * 1440, 90 * 1440 + 2, 90 * 1440 - 2, 0]
    add(database, *(replace(EMPTY, minute=now - age) for age in ages))
    upkeep.run(database, Clock())
    assert [sample.minute for sample in noted(database)] == [now - age for age in ages[2:]]


# The API


def test_the_api_tells_the_last_day_unless_asked_for_more(imaging_server: Server) -> None:
    imaging_server.daemon.take_sample()
    now = samples.minute_of(imaging_server.daemon.clock.now())
    add(imaging_server.daemon.database, replace(EMPTY, minute=now - 3000, waiting=4))
    answer = imaging_server.get("/api/pool/history/")
    assert answer.headers["Cache-Control"] == "public, max-age=60"
    said = answer.get_json()
    assert said["step"] == 300
    assert [(one["idle"], one["waiting"]) for one in said["samples"]] == [(3.0, 0)]
    said = imaging_server.get("/api/pool/history/?hours=2160").get_json()
    assert said["step"] == 480 * 60
    assert sum(one["waiting"] for one in said["samples"]) == 4


@pytest.mark.parametrize("hours", ["0", "-1", "2161", "nan", "inf", "many", ""])
def test_a_window_that_can_not_be_is_refused(imaging_server: Server, hours: str) -> None:
    answer = imaging_server.get(f"/api/pool/history/?hours={hours}")
    assert (answer.status_code, answer.get_json()["error"]["field"]) == (400, "hours")
