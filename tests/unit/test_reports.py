# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Reports on rows made by hand: what lies across the ends of a span, what still lasts, what is not there any more."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, delete, insert, select, update

from mozpool.clock import Clock
from mozpool.db import claims, history, relay_boards, reports, tables, troubles, upkeep
from mozpool.db.engine import Database
from mozpool.db.reports import Kinds, Outcome, Use
from mozpool.db.spans import Span, micros, micros_of
from mozpool.lifeguard.devicemachine import RULES
from tests.unit.pool_support import NOW, Pool, Rows, pool_of

ALL = Kinds()
SPAN = Span(NOW - timedelta(days=7), NOW)


def ago(**time: float) -> datetime:
    return NOW - timedelta(**time)


@pytest.fixture
def rows(database: Database) -> Rows:
    return Rows(database)


def read(rows: Rows, report: Callable[..., Any], *more: Any, span: Span = SPAN, kinds: Kinds = ALL) -> Any:
    with rows.database.read() as conn:
        return report(conn, span, kinds, *more)


def claim(
    rows: Rows, number: int, begin: datetime, end: datetime | None, *, ready: datetime | None = None, **columns: Any
) -> int:
    """A claim as it is noted; one that is over says itself what it was of."""
    what = {"device": "panda-0001", "environment": "production", "hardware_type": "panda", "hardware_model": "ES"}
    over = {} if end is None else {"ready_at": ready, "reason": "returned", **what}
    values = {"request_id": 1, "device_id": number, "claimed_at": begin, "released_at": end, **over, **columns}
    return rows.add(tables.claim_history, **values)


def past_request(rows: Rows, number: int, **columns: Any) -> None:
    values = {
        "request_id": number,
        "assignee": "ada@example.com",
        "environment": "production",
        "hardware_type": "panda",
        "hardware_model": "ES",
        "image": "b2g",
        "created": ago(hours=2),
        "ready_at": ago(hours=1),
        "ended": ago(minutes=30),
        "state": "closed",
        "reason": "returned",
        **columns,
    }
    rows.database.run(lambda conn: conn.execute(insert(tables.past_requests).values(values)))


def changed(rows: Rows, number: int, at: datetime, source: str, target: str, **columns: Any) -> None:
    values = {"device_id": number, "ts": at, "from_state": source, "to_state": target, "event": "x", "version": 1}
    rows.add(tables.device_history, **{**values, **columns})


# --- Nothing ---


def test_an_empty_pool_gives_empty_reports(rows: Rows) -> None:
    for report in (
        reports.use_by_assignee,
        reports.use_by_environment,
        reports.use_by_type,
        reports.ready_by_image,
        reports.ready_by_type,
        reports.ready_by_device,
    ):
        assert read(rows, report) == []
    assert read(rows, troubles.worst_devices, RULES) == []
    with rows.database.read() as conn:
        assert reports.groups_of(conn, ALL) == []
        assert troubles.board_troubles(conn, SPAN) == []
        assert troubles.power_failures(conn, SPAN) == {}


def test_a_device_without_troubles_is_not_among_the_worst(rows: Rows) -> None:
    changed(rows, rows.device(), ago(hours=1), "ready", "pc_power_cycling")
    assert read(rows, troubles.worst_devices, RULES) == []


# --- Times in the database ---


@pytest.mark.parametrize(
    "moment",
    [
        NOW,
        NOW + timedelta(microseconds=1),
        NOW + timedelta(microseconds=999_999),
        NOW.replace(hour=23, minute=59, second=59, microsecond=999_600),
        NOW.replace(year=1970, month=1, day=1, hour=0),
        NOW.replace(month=3, day=31, hour=1, minute=30),
    ],
)
def test_a_time_is_the_same_number_of_microseconds_everywhere(rows: Rows, moment: datetime) -> None:
    claim(rows, rows.device(), moment, None)
    with rows.database.read() as conn:
        assert conn.scalar(select(micros(tables.claim_history.c.claimed_at))) == micros_of(moment)


# --- Use ---


@pytest.mark.parametrize(
    ("begin", "end", "hours", "requests"),
    [
        (ago(hours=3), ago(hours=1.5), 1.5, 1),
        (ago(days=9), ago(days=6), 24.0, 1),  # began before the span
        (ago(hours=2), NOW + timedelta(hours=5), 2.0, 1),  # ended after it
        (ago(days=20), NOW + timedelta(days=1), 168.0, 1),
        (ago(hours=4), None, 4.0, 1),  # still lasts
        (ago(days=8), None, 168.0, 1),
        (ago(days=9), ago(days=7), None, 0),  # over when it begins
        (NOW, NOW + timedelta(hours=1), None, 0),
        (ago(hours=1), ago(hours=1), 0.0, 1),
    ],
)
def test_hours_are_cut_at_the_ends_of_the_span(
    rows: Rows, begin: datetime, end: datetime | None, hours: float | None, requests: int
) -> None:
    claim(rows, rows.device(), begin, end)
    expected = [] if hours is None else [Use(("panda", "ES"), hours, requests)]
    assert read(rows, reports.use_by_type) == expected


def test_a_request_that_had_several_devices_counts_once(rows: Rows) -> None:
    device, other = rows.device(), rows.device()
    past_request(rows, 1)
    past_request(rows, 2, assignee="grace@example.com")
    claim(rows, device, ago(hours=4), ago(hours=3), reason="it failed while it was prepared")
    claim(rows, other, ago(hours=3), ago(hours=1))
    claim(rows, device, ago(hours=2), ago(hours=1), request_id=2)
    assert read(rows, reports.use_by_assignee) == [
        Use(("ada@example.com",), 3.0, 1),
        Use(("grace@example.com",), 1.0, 1),
    ]


def test_names_that_differ_in_their_letters_only_are_different(rows: Rows) -> None:
    for number, who in enumerate(("Ada@example.com", "ada@example.com", "adá@example.com"), start=1):
        past_request(rows, number, assignee=who, image=who[:3])
        claim(rows, rows.device(), ago(hours=number), NOW, request_id=number)
    assert [use.key[0] for use in read(rows, reports.use_by_assignee)] == [
        "adá@example.com",
        "ada@example.com",
        "Ada@example.com",
    ]
    assert {one.key[0] for one in read(rows, reports.ready_by_image)} == {"Ada", "ada", "adá"}


def test_what_is_not_known_is_told_as_such_and_comes_last(rows: Rows) -> None:
    claim(rows, 999, ago(hours=2), ago(hours=1), request_id=77, device=None, hardware_type=None, hardware_model=None)
    claim(rows, rows.device(), ago(hours=2), ago(hours=1))
    assert read(rows, reports.use_by_type) == [Use(("panda", "ES"), 1.0, 1), Use((None, None), 1.0, 1)]
    assert read(rows, reports.use_by_assignee) == [Use((None,), 2.0, 2)]


def test_what_a_device_was_counts_and_not_what_it_is_now(rows: Rows) -> None:
    device = rows.device(environment="production")
    claim(rows, device, ago(hours=3), ago(hours=2), environment="staging", hardware_type="tegra", hardware_model="2")
    claim(rows, device, ago(hours=1), None, request_id=2)
    assert read(rows, reports.use_by_environment) == [Use(("production",), 1.0, 1), Use(("staging",), 1.0, 1)]
    assert read(rows, reports.use_by_type, kinds=Kinds(hardware_type="tegra")) == [Use(("tegra", "2"), 1.0, 1)]
    assert read(rows, reports.use_by_type, kinds=Kinds(environment="Staging")) == []


def test_a_device_that_is_deleted_is_still_told_of(rows: Rows) -> None:
    device = rows.device()
    claim(rows, device, ago(hours=3), ago(hours=2), ready=ago(hours=2.5))
    changed(rows, device, ago(hours=2), "pxe_booting", "failed_pxe_booting", device="panda-0001")
    changed(rows, device, ago(hours=1), "failed_pxe_booting", "start_self_test", device="panda-0001")
    changed(rows, 4711, ago(hours=1), "pxe_booting", "failed_pxe_booting", device="old-1")
    rows.database.run(lambda conn: conn.execute(delete(tables.devices)))
    assert read(rows, reports.use_by_type) == [Use(("panda", "ES"), 1.0, 1)]
    assert [one.key for one in read(rows, reports.ready_by_device)] == [("panda-0001", "panda", "ES")]
    first, second = read(rows, troubles.worst_devices, RULES)
    assert (first.device, first.hardware_type, first.failures, first.hours_failed) == ("panda-0001", "panda", 1, 1.0)
    # Nobody knows how long it was there after that.
    assert (second.device, second.hardware_type, second.failures, second.hours_failed) == ("old-1", None, 1, 0.0)


def test_a_device_that_was_deleted_and_added_again_is_one(rows: Rows) -> None:
    old = 4711
    changed(rows, old, ago(hours=5), "pxe_booting", "failed_pxe_booting", device="panda-0001")
    changed(rows, old, ago(hours=4), "failed_pxe_booting", "locked_out", device="panda-0001")
    new = rows.device("failed_self_test")
    changed(rows, new, ago(hours=2), "self_test_running", "failed_self_test", device="panda-0001")
    (one,) = read(rows, troubles.worst_devices, RULES)
    assert (one.device, one.hardware_type, one.failures, one.self_test_failures) == ("panda-0001", "panda", 2, 1)
    assert (one.hours_failed, one.hours_out_of_service) == (3.0, 0.0)


# --- Time to ready, and success ---


def outcome(rows: Rows, *seconds: float) -> Outcome:
    for number, each in enumerate(seconds, start=1):
        begin = ago(hours=5)
        past_request(rows, number, created=begin, ready_at=begin + timedelta(seconds=each))
    (found,) = read(rows, reports.ready_by_image)
    assert isinstance(found, Outcome)
    return found


def test_percentiles_of_one(rows: Rows) -> None:
    assert outcome(rows, 12.3456).seconds == (12.346, 12.346, 12.346)


def test_percentiles_of_two(rows: Rows) -> None:
    assert outcome(rows, 30, 10).seconds == (10.0, 30.0, 30.0)


def test_percentiles_of_a_hundred(rows: Rows) -> None:
    assert outcome(rows, *range(100, 0, -1)).seconds == (50.0, 95.0, 99.0)


def test_percentiles_of_a_hundred_and_one(rows: Rows) -> None:
    assert outcome(rows, *range(1, 102)).seconds == (51.0, 96.0, 100.0)


def test_percentiles_of_equal_times(rows: Rows) -> None:
    assert outcome(rows, 7, 7, 7, 7).seconds == (7.0, 7.0, 7.0)


def test_a_request_counts_when_it_is_decided(rows: Rows) -> None:
    past_request(rows, 1, created=ago(days=8), ready_at=ago(days=7), ended=NOW)
    past_request(rows, 2, created=ago(days=8), ready_at=ago(days=7.1), ended=ago(days=1), image="before")
    past_request(rows, 3, ready_at=NOW, ended=NOW, image="after")
    past_request(rows, 4, ready_at=None, ended=NOW - timedelta(microseconds=1), image="just")
    assert [one.key for one in read(rows, reports.ready_by_image)] == [("b2g",), ("just",)]


def test_what_is_a_success_and_what_is_not(rows: Rows) -> None:
    for number, (ready, state, reason) in enumerate(
        [
            (ago(hours=1), "closed", "returned"),
            (ago(hours=1), "closed", "expired"),
            (None, "closed", "returned"),  # its client did not want it any more
            (None, "closed", "expired"),
            (None, "closed", "device panda-0001 is taken by ada@example.com"),
            (None, "failed_device_not_found", "no matching device became free within 600 s"),
            (None, "failed_bad_image", None),
        ],
        start=1,
    ):
        past_request(rows, number, ready_at=ready, state=state, reason=reason)
    (one,) = read(rows, reports.ready_by_image)
    assert (one.number, one.ready, one.failed, one.given_back, one.success) == (7, 2, 4, 1, 33.33)


def test_only_given_back_is_neither(rows: Rows) -> None:
    past_request(rows, 1, ready_at=None)
    (one,) = read(rows, reports.ready_by_image)
    assert (one.number, one.success, one.seconds) == (1, None, ())


def test_a_request_that_is_ready_now_counts_and_one_that_waits_does_not(rows: Rows) -> None:
    device = rows.device(claim_id=1, environment="staging")
    request = rows.request(state="ready", at=ago(seconds=100), state_since=ago(seconds=40), hardware_type="any")
    number = claim(rows, device, ago(seconds=90), None, request_id=request)
    rows.add(tables.device_requests, id=number, request_id=request, device_id=device)
    rows.request(at=ago(seconds=50))
    (one,) = read(rows, reports.ready_by_type)
    assert one == Outcome(("panda", "ES"), 1, 0, 0, (60.0, 60.0, 60.0))
    assert read(rows, reports.ready_by_type, kinds=Kinds("staging", "panda", "ES")) == [one]
    assert read(rows, reports.ready_by_type, kinds=Kinds("any")) == []
    (two,) = read(rows, reports.ready_by_device)
    assert two == Outcome(("panda-0001", "panda", "ES"), 1, 0, 0, (50.0, 50.0, 50.0))


def test_what_a_server_ended_that_did_not_note_it_is_looked_up(rows: Rows) -> None:
    """One of the version before, beside us or until the upgrade."""
    device = rows.device()
    request = rows.request(state="closed", at=ago(hours=3), state_since=ago(hours=1), reason="expired")
    failed = rows.request(state="closed", at=ago(hours=2), state_since=ago(hours=1), reason="expired")
    both = {"from_state": "pending", "event": "x", "version": 1}
    rows.add(tables.request_history, request_id=request, ts=ago(hours=2), to_state="ready", **both)
    bare: dict[str, Any] = dict.fromkeys(("device", "environment", "hardware_type", "hardware_model"))
    claim(rows, device, ago(hours=2.75), ago(hours=2.5), request_id=request, reason="it failed", **bare)
    claim(rows, device, ago(hours=2.5), ago(hours=1), request_id=request, reason="expired", **bare)
    claim(rows, device, ago(hours=1), ago(hours=0.5), request_id=failed, reason="expired", **bare)
    (one,) = read(rows, reports.ready_by_image)
    assert (one.key, one.ready, one.failed, one.seconds[0]) == (("b2g",), 1, 1, 3600.0)
    (two,) = read(rows, reports.ready_by_device)
    assert (two.key, two.ready, two.failed, two.seconds[0]) == (("panda-0001", "panda", "ES"), 1, 2, 1800.0)
    assert read(rows, reports.use_by_assignee) == [Use(("somebody@example.com",), 2.25, 2)]


# --- What fails ---


@pytest.mark.parametrize(
    ("state", "changes", "failed", "out"),
    [
        # It has been so all the time, and nothing changed.
        ("failed_self_test", [], 168.0, 0.0),
        ("locked_out", [], 0.0, 168.0),
        ("ready", [], 0.0, 0.0),
        # It was so when the span began.
        ("ready", [(3, "failed_pxe_booting", "start_self_test")], 165.0, 0.0),
        # It got so, and is.
        ("locked_out", [(3, "ready", "locked_out")], 0.0, 3.0),
        # From one to the other.
        ("ready", [(9, "failed_self_test", "locked_out"), (5, "locked_out", "start_self_test")], 159.0, 4.0),
        # What happened before the span, and after it.
        ("ready", [(200, "ready", "locked_out"), (190, "locked_out", "ready")], 0.0, 0.0),
        ("ready", [(-1, "failed_self_test", "start_self_test")], 168.0, 0.0),
        ("failed_self_test", [(-2, "ready", "failed_self_test")], 0.0, 0.0),
        # Somebody's work.
        ("maintenance_mode", [(4, "ready", "maintenance_mode")], 0.0, 0.0),
    ],
)
def test_hours_failed_and_out_of_service(
    rows: Rows, state: str, changes: list[tuple[float, str, str]], failed: float, out: float
) -> None:
    device = rows.device(state)
    for hours, source, target in changes:
        changed(rows, device, ago(hours=hours), source, target)
    found = read(rows, troubles.worst_devices, RULES)
    assert [(one.hours_failed, one.hours_out_of_service) for one in found] == ([(failed, out)] if failed or out else [])


def test_failures_are_counted_where_a_device_begins_to_be_failed(rows: Rows) -> None:
    bad, worse = rows.device(), rows.device(environment="staging")
    changed(rows, bad, ago(hours=4), "pxe_booting", "failed_pxe_booting", detail=history.given_up("pxe_booting", 3))
    changed(rows, bad, ago(hours=4), "failed_pxe_booting", "failed_self_test", event="forced")
    changed(rows, bad, ago(hours=3), "failed_self_test", "start_self_test")
    changed(rows, bad, ago(days=8), "pxe_booting", "failed_pxe_booting")
    for hours in (6, 5):
        changed(rows, worse, ago(hours=hours), "self_test_running", "failed_self_test")
        changed(rows, worse, ago(hours=hours), "failed_self_test", "start_self_test")
    changed(rows, worse, ago(hours=2), "pc_pinging", "pc_power_cycling", detail=history.given_up("pc_pinging", 13))
    changed(rows, worse, ago(hours=2), "x", "y", detail=history.given_up("x", 2), event=history.ENTERED)
    changed(rows, worse, ago(hours=2), "ready", "troubleshooting", event="forced", detail="by me: it failed 3 times")
    changed(rows, worse, ago(hours=1), "troubleshooting", "start_self_test")
    first, second = read(rows, troubles.worst_devices, RULES)
    assert (first.device, first.failures, first.given_up, first.self_test_failures) == ("panda-0002", 2, 1, 2)
    assert (first.hours_failed, first.hours_out_of_service) == (0.0, 1.0)
    assert (second.device, second.failures, second.given_up, second.self_test_failures) == ("panda-0001", 1, 1, 0)
    assert (second.hours_failed, second.hours_out_of_service) == (1.0, 0.0)
    assert read(rows, troubles.worst_devices, RULES, kinds=Kinds(environment="production")) == [second]


def test_what_is_said_of_a_board_is_kept(rows: Rows) -> None:
    lane = "pdudaemon:pdu-1"

    def say(hours: float, state: str, reason: str | None) -> None:
        rows.database.run(
            lambda conn: relay_boards.set_state_by_lane(conn, lane, state, reason, ago(hours=hours), rows.server_id)
        )

    say(200, "ok", None)
    say(190, "suspect", "no answer")
    say(189, "failed", "no answer")
    say(160, "failed", "still " + "none " * 100)
    say(158, "ok", None)
    say(5, "suspect", "no answer")
    say(4, "ok", None)
    say(3, "suspect", "no answer")
    say(2, "failed", "no answer")
    with rows.database.read() as conn:
        (one,) = troubles.board_troubles(conn, SPAN)
        said = conn.execute(select(tables.relay_board_history)).all()
    assert (one.board, one.suspected, one.failed, one.hours_failed) == ("pdu-1", 2, 1, 12.0)
    assert [(row.from_state, row.to_state) for row in said][:3] == [
        ("ok", "suspect"),
        ("suspect", "failed"),
        ("failed", "ok"),
    ]
    rows.database.run(lambda conn: conn.execute(delete(tables.relay_boards)))
    with rows.database.read() as conn:
        (one,) = troubles.board_troubles(conn, SPAN)
    assert (one.board, one.suspected, one.failed, one.hours_failed) == ("pdu-1", 2, 1, 10.0)


def test_a_board_that_is_first_heard_of_when_it_fails_has_failed_then(rows: Rows) -> None:
    rows.database.run(
        lambda conn: relay_boards.set_state_by_lane(conn, "relay:b:2101", "failed", "x", ago(hours=2), rows.server_id)
    )
    with rows.database.read() as conn:
        (one,) = troubles.board_troubles(conn, SPAN)
    assert (one.failed, one.hours_failed) == (1, 2.0)


# --- What is kept, and when it is written ---


@pytest.fixture
def pool(database: Database) -> Any:
    class Still(Clock):
        def now(self) -> datetime:
            return NOW

    with pool_of(database, Still()) as made:
        yield made


def noted(pool: Pool) -> list[Any]:
    with pool.database.read() as conn:
        return list(conn.execute(select(tables.past_requests).order_by(tables.past_requests.c.request_id)))


def test_a_request_that_ends_is_noted_in_the_same_transaction(pool: Pool) -> None:
    device = pool.device(environment="staging")
    request = pool.request(at=ago(seconds=30))
    pool.match()
    assert noted(pool) == []
    ready = {"state": "ready", "state_since": ago(seconds=10), "version": 50}
    table = tables.requests
    pool.database.run(lambda conn: conn.execute(update(table).where(table.c.id == request).values(ready)))
    pool.driver.forget(request)

    def interrupted(point: str) -> None:
        if point == "written":
            raise KeyboardInterrupt

    pool.checkpoints.append(interrupted)
    with pytest.raises(KeyboardInterrupt):
        pool.close(request)
    assert noted(pool) == []
    pool.checkpoints.clear()
    pool.close(request)
    (row,) = noted(pool)
    assert row._asdict() == {
        "request_id": request,
        "assignee": "somebody@example.com",
        "environment": "staging",
        "hardware_type": "panda",
        "hardware_model": "ES",
        "image": "b2g",
        "created": ago(seconds=30),
        "ready_at": ago(seconds=10),
        "ended": NOW,
        "state": "closed",
        "reason": "returned",
    }
    with pool.database.read() as conn:
        (past,) = conn.execute(select(tables.claim_history)).all()
    assert (past.device_id, past.device, past.environment) == (device, "panda-0001", "staging")
    assert (past.hardware_type, past.hardware_model, past.ready_at) == ("panda", "ES", ago(seconds=10))


def test_of_a_request_that_got_nothing_what_it_wanted_is_noted(pool: Pool) -> None:
    pool.device("failed_pxe_booting", name="broken", environment="lab")
    numbers = [
        pool.request(hardware_type="tegra", environment="staging"),
        pool.request(requested_device="broken"),
        pool.request(requested_device="nothing like it"),
    ]
    for number in numbers:
        pool.close(number)
    assert [(row.environment, row.hardware_type, row.hardware_model, row.ready_at) for row in noted(pool)] == [
        ("staging", "tegra", None, None),
        ("lab", "panda", "ES", None),
        ("any", None, None, None),
    ]


def test_what_reports_need_expires_like_the_other_histories(database: Database) -> None:
    clock = Clock()
    rows, now = Rows(database), clock.now()
    for number, days in ((1, 91.0), (2, 89.0)):
        past_request(rows, number, ended=now - timedelta(days=days))
        values = {"relay_board_id": 1, "board": "b", "from_state": "ok", "to_state": "failed"}
        rows.add(tables.relay_board_history, ts=now - timedelta(days=days), **values)
    upkeep.run(database, clock)
    with database.read() as conn:
        assert list(conn.scalars(select(tables.past_requests.c.request_id))) == [2]
        assert len(conn.execute(select(tables.relay_board_history.c.id)).all()) == 1


def test_a_claim_outlives_its_device(rows: Rows) -> None:
    device = rows.device(hardware_type_id=None, environment=None)
    request = rows.request()

    def work(conn: Connection) -> None:
        number = claims.take(conn, request_id=request, device_id=device, device_version=0, now=ago(hours=1))
        claims.release(
            conn, claim_id=number, device_id=device, ready_at=None, now=NOW, reason="x", shuffle=1, verify=False
        )
        conn.execute(delete(tables.devices))

    rows.database.run(work)
    assert read(rows, reports.use_by_type) == [Use((None, None), 1.0, 1)]
    assert read(rows, reports.use_by_environment) == [Use(("none",), 1.0, 1)]
