# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""A simulated week, after which every number of every report is found again by walking through what happened.

What is walked through are the histories as the simulation left them, the requests' own rows, and what the simulation
saw by itself. The reports have to do without: before they are made, all requests that ended are deleted, and some
devices.
"""

from __future__ import annotations

import csv
import io
import random
import re
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from sqlalchemy import insert, select

from mozpool.clock import Clock
from mozpool.config import BMM, Settings
from mozpool.config import Database as DatabaseSettings
from mozpool.config import Server as ServerSettings
from mozpool.daemon import Daemon
from mozpool.db import tables
from mozpool.db.engine import Database
from mozpool.db.requests import Request
from mozpool.pool.service import NewRequest
from mozpool.simulate import load, world
from mozpool.simulate.faults import Rates, Scripted
from mozpool.simulate.scenario import Kind, Load, People, Scenario
from mozpool.simulate.scheduler import START
from mozpool.web.app import create_app
from tests.conftest import BOTH, open_database

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.no_cover]

HOURS = 7 * 24
MORE = 1800.0
"""Seconds at the end, in which there is one more request, so that somebody has a device then."""
END = START + timedelta(hours=HOURS, seconds=MORE)
TYPES = {"panda": "production", "tegra": "staging"}
"""Hardware type → the environment of its devices."""

WEEK = Scenario(
    servers=1,
    takeover_after=3600.0,  # few signs of life, which take most of the time otherwise
    kinds=(
        Kind("panda", 4, environment="production", boards_per_relay=2),
        Kind("tegra", 2, environment="staging", boards_per_relay=2),
    ),
    loads=(
        Load("b2g", per_hour=0.6, hold=2400.0, duration=3600.0, named=0.3),
        Load("android", per_hour=0.4, hold=1200.0, image="android", environment="staging", wait=1200),
        Load("at once", per_hour=0.2, hold=600.0, image="android", wait=0, named=0.5),
    ),
    people=People(offline=0.05, removed=0.05, mends=0.3, forced_states=0.05),
    rates=replace(Rates.none(), relay_hangs=0.02, relay_wrong=0.2, client_vanishes=0.1, agent_vanishes=0.05),
    script=(
        Scripted("forced_state", HOURS * 3600 - 1000.0, "panda-0003", state="failed_self_test"),
        Scripted("forced_state", HOURS * 3600 - 800.0, "panda-0004", state="locked_out"),
    ),
    hours=HOURS,
    scan_interval=3600.0,
    timeouts={"ready": 3600.0},
    tries={"pc_power_cycling": 3, "pxe_power_cycling": 3, "pxe_booting": 1, "mobile_init_started": 1}
    | dict.fromkeys(("b2g_downloading", "android_downloading", "b2g_extracting", "android_extracting"), 0),
)


# --- What happened ---


@dataclass
class Past:
    """What is known of the week apart from the tables that reports have for themselves."""

    file: Path
    lanes: dict[str, list[tuple[datetime, str]]] = field(default_factory=lambda: defaultdict(list))
    """What the server said of each relay board, and when."""
    names: dict[int, str] = field(default_factory=dict)
    """Of all devices that there ever were."""
    power: Any = None

    def rows(self, table: str) -> list[dict[str, Any]]:
        """All rows of a table, in the order in which they came."""
        with closing(sqlite3.connect(self.file)) as connection:
            connection.row_factory = sqlite3.Row
            return [_read(dict(row)) for row in connection.execute(f"SELECT * FROM {table} ORDER BY 1")]


def _read(row: dict[str, Any]) -> dict[str, Any]:
    for key, value in row.items():
        if isinstance(value, str) and re.match(r"\d{4}-\d\d-\d\d \d\d:", value):
            row[key] = datetime.fromisoformat(value).replace(tzinfo=UTC)
    return row


@pytest.fixture(scope="module")
def past(tmp_path_factory: pytest.TempPathFactory) -> Past:
    """The simulated week, stopped in the middle of what was going on."""
    found = Past(tmp_path_factory.mktemp("week") / "week.sqlite")

    class Week(world.World):
        def _come_to_rest(self) -> None:
            self.scheduler.spawn(self._ask_once_more, "clients/last", "clients")
            self.scheduler.run_until(self.scheduler.time + MORE)
            assert self.database.engine.url.database is not None
            with (
                closing(sqlite3.connect(self.database.engine.url.database)) as source,
                closing(sqlite3.connect(found.file)) as target,
            ):
                source.backup(target)
            found.power = self.lab.backends()

        def _ask_once_more(self) -> None:
            (server,) = self.servers.values()
            assert server.daemon is not None
            server.daemon.mozpool.create(NewRequest("any", "b2g@example.com", 7200, "android", wait=600))

        def _look(self) -> None:
            found.names.update((device.id, device.name) for device in self.watcher.devices.values())
            super()._look()

    noted = Daemon._lane_changed

    def hear(self: Daemon, lane: str, state: str, reason: str | None) -> None:
        if not lane.startswith("device:"):
            found.lanes[lane].append((self.clock.now(), state))
        noted(self, lane, state, reason)

    look, new = load.Asker._look, load.Asker._new

    def lose_patience(self: load.Asker, request: Request) -> Request | None:
        if self._rng.random() < 0.1 and self._try(
            "return", request, lambda daemon: daemon.mozpool.give_back(request.id)
        ):
            return None
        return look(self, request)

    def by_few(self: load.Asker) -> NewRequest:
        return replace(new(self), assignee=f"{self.name.partition('-')[0]}@example.com")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world, "LOOK_EVERY", 60.0)
        patch.setattr(load.Asker, "_look", lose_patience)
        patch.setattr(load.Asker, "_new", by_few)
        patch.setattr(Daemon, "_lane_changed", hear)
        result = Week(WEEK, "reports").run()
    assert result.violation is None
    assert result.simulated == pytest.approx(HOURS * 3600 + MORE)
    return found


class Stopped(Clock):
    """The end of the week, for ever."""

    def now(self) -> datetime:
        return END


@dataclass
class Reports:
    """A server that makes reports on the week."""

    client: FlaskClient

    def rows(self, name: str, **query: str) -> list[dict[str, Any]]:
        """The rows of a report: as JSON, and the same as CSV."""
        said = self.client.get(f"/api/report/{name}/", query_string=query)
        assert said.status_code == 200, said.text
        rows: list[dict[str, Any]] = said.get_json()["rows"]
        text = self.client.get(f"/api/report/{name}/", query_string={**query, "format": "csv"}).text
        assert list(csv.DictReader(io.StringIO(text, newline=""))) == [
            {key: "" if value is None else str(value) for key, value in row.items()} for row in rows
        ]
        return rows


@pytest.fixture(scope="module", params=BOTH)
def reports(request: pytest.FixtureRequest, past: Past, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reports]:
    """Over SQLite and over MariaDB, with what is left of the week after some time."""
    directory = tmp_path_factory.mktemp("reports")
    if request.param == "sqlite":
        url = f"sqlite:///{directory}/pool.sqlite"
        (directory / "pool.sqlite").write_bytes(past.file.read_bytes())
        database = open_database(url)
    else:
        mariadb = request.getfixturevalue("mariadb")
        mariadb.execute("CREATE DATABASE week")
        url = mariadb.url("week")
        world.prepare(url)
        database = open_database(url)
        _copy(past, database)
    _forget(database)
    database.dispose()
    settings = Settings(
        database=DatabaseSettings(engine=url),
        server=ServerSettings(fqdn="server-1", ipaddress="server-1"),
        bmm=BMM(power="simulated", boot="simulated", probe="simulated", agent="simulated"),
    )
    daemon = Daemon(settings, clock=Stopped(), rng=random.Random(1), backends=past.power)
    try:
        yield Reports(create_app(daemon.services).test_client())
    finally:
        daemon.stop()
        if request.param != "sqlite":
            mariadb.execute("DROP DATABASE week")


def _copy(past: Past, database: Database) -> None:
    source = open_database(f"sqlite:///{past.file}")
    logs = (tables.device_logs, tables.request_logs)
    for table in tables.metadata.sorted_tables:
        if table not in logs:
            with source.read() as conn:
                rows = [dict(row) for row in conn.execute(select(table)).mappings()]
            if rows:
                with database.begin() as conn:
                    conn.execute(insert(table), rows)
    source.dispose()


def _forget(database: Database) -> None:
    """Requests that ended go a week after they expire, and one device leaves the lab for good."""
    ended = tables.requests.c.state.in_(("closed", *END_STATES))

    def work(conn: Any) -> None:
        assert conn.execute(tables.requests.delete().where(ended)).rowcount > 50
        idle = tables.devices.c.claim_id.is_(None), tables.devices.c.state == "ready"
        gone = conn.scalar(select(tables.devices.c.id).where(*idle).order_by(tables.devices.c.id).limit(1))
        conn.execute(tables.device_labels.delete().where(tables.device_labels.c.device_id == gone))
        conn.execute(tables.devices.delete().where(tables.devices.c.id == gone))

    database.run(work)


# --- The same, found by walking through it ---

END_STATES = ("failed_device_not_found", "failed_bad_image", "failed_bad_device", "failed_device_busy")

SPANS = {
    "the week": (START, END, {}),
    "a part of it": (START + timedelta(hours=40.3), START + timedelta(hours=91.7), {}),
    "pandas on the last day": (END - timedelta(hours=24), END, {"hardware_type": "panda"}),
    "staging": (START + timedelta(hours=10), END - timedelta(hours=9), {"environment": "staging"}),
}


@pytest.fixture(params=SPANS.values(), ids=list(SPANS))
def span(request: pytest.FixtureRequest) -> tuple[datetime, datetime, dict[str, str]]:
    found: tuple[datetime, datetime, dict[str, str]] = request.param
    return found


def query(span: tuple[datetime, datetime, dict[str, str]]) -> dict[str, str]:
    return {"since": f"{span[0]:%Y-%m-%dT%H:%M:%S}", "until": f"{span[1]:%Y-%m-%dT%H:%M:%S}", **span[2]}


def type_of(name: str) -> str:
    return name.rpartition("-")[0]


def wanted(name: str, kinds: Mapping[str, str]) -> bool:
    kind = type_of(name)
    return kinds.get("hardware_type", kind) == kind and kinds.get("environment", TYPES[kind]) == TYPES[kind]


@dataclass
class Held:
    """A device in somebody's hands."""

    request: int
    device: str
    begin: datetime
    end: datetime | None
    ready: datetime | None = None
    why: str = ""


def held(past: Past) -> list[Held]:
    """All of them, and when each was ready: by the requests' histories."""
    became = {row["request_id"]: row["ts"] for row in past.rows("request_history") if row["to_state"] == "ready"}
    found = []
    for row in past.rows("claim_history"):
        one = Held(
            row["request_id"],
            past.names[row["device_id"]],
            row["claimed_at"],
            row["released_at"],
            why=row["reason"] or "",
        )
        moment = became.get(one.request)
        if moment is not None and one.begin <= moment and (one.end is None or moment <= one.end):
            one.ready = moment
        found.append(one)
    return found


def overlap(begin: datetime, end: datetime | None, since: datetime, until: datetime) -> float:
    """The hours that two times have in common."""
    seconds = (min(end or until, until) - max(begin, since)).total_seconds()
    return max(0.0, seconds) / 3600


def used(past: Past, span: tuple[datetime, datetime, dict[str, str]], key: Any) -> dict[Any, tuple[float, int]]:
    """Key → hours, and how many requests."""
    since, until, kinds = span
    spent: dict[Any, float] = defaultdict(float)
    by: dict[Any, set[int]] = defaultdict(set)
    for one in held(past):
        if wanted(one.device, kinds) and one.begin < until and (one.end is None or one.end > since):
            spent[key(one)] += overlap(one.begin, one.end, since, until)
            by[key(one)].add(one.request)
    return {each: (spent[each], len(by[each])) for each in spent}


def compare_use(rows: list[dict[str, Any]], expected: dict[Any, tuple[float, int]], *keys: str) -> None:
    found = {tuple(row[key] for key in keys): row for row in rows}
    assert len(found) == len(rows)
    assert {key: row["requests"] for key, row in found.items()} == {key: value[1] for key, value in expected.items()}
    for key, (hours, _) in expected.items():
        assert found[key]["hours"] == pytest.approx(hours, abs=0.0006), key
    assert sorted((row["hours"] for row in rows), reverse=True) == [row["hours"] for row in rows]


def test_use(past: Past, reports: Reports, span: tuple[datetime, datetime, dict[str, str]]) -> None:
    who = {row["id"]: row["assignee"] for row in past.rows("requests")}
    by_assignee = used(past, span, lambda one: (who[one.request],))
    assert 0 < len(by_assignee) < 4
    compare_use(reports.rows("use-by-assignee", **query(span)), by_assignee, "assignee")
    by_environment = used(past, span, lambda one: (TYPES[type_of(one.device)],))
    compare_use(reports.rows("use-by-environment", **query(span)), by_environment, "environment")
    by_type = used(past, span, lambda one: (type_of(one.device), "simulated"))
    compare_use(reports.rows("use-by-type", **query(span)), by_type, "hardware_type", "hardware_model")


@dataclass
class Came:
    """What came of requests or preparations: the seconds of those that got ready, and the numbers of others."""

    took: list[float] = field(default_factory=list)
    failed: int = 0
    given_back: int = 0

    def count(self, begin: datetime, ready: datetime | None, returned: bool) -> None:
        if ready is not None:
            self.took.append((ready - begin).total_seconds())
        elif returned:
            self.given_back += 1
        else:
            self.failed += 1

    def within(self, percent: int) -> float | None:
        """The least time within which so many percent of them were ready."""
        for seconds in sorted(self.took):
            if sum(other <= seconds for other in self.took) * 100 >= percent * len(self.took):
                return seconds
        return None

    def row(self, what: str) -> dict[str, Any]:
        tried = len(self.took) + self.failed
        return {
            what: tried + self.given_back,
            "ready": len(self.took),
            "failed": self.failed,
            "given_back": self.given_back,
            "success": pytest.approx(len(self.took) * 100 / tried, abs=0.006) if tried else None,
            **{f"p{n}": None if not self.took else pytest.approx(self.within(n), abs=0.0006) for n in (50, 95, 99)},
        }


def compare_outcomes(rows: list[dict[str, Any]], expected: Mapping[Any, Came], what: str, *keys: str) -> None:
    found = {tuple(row.pop(key) for key in keys): row for row in rows}
    assert len(found) == len(rows)
    assert found == {key: came.row(what) for key, came in expected.items()}


def requests_that_ended(past: Past, span: tuple[datetime, datetime, dict[str, str]], key: Any) -> dict[Any, Came]:
    since, until, kinds = span
    ready, ended = {}, {}
    for row in past.rows("request_history"):
        if row["to_state"] == "ready":
            ready[row["request_id"]] = row["ts"]
        if row["to_state"] in ("closed", *END_STATES):
            ended[row["request_id"]] = (row["ts"], row["detail"])
    last = {one.request: one for one in held(past)}
    images = {row["id"]: row["name"] for row in past.rows("images")}
    found: dict[Any, Came] = defaultdict(Came)
    for row in past.rows("requests"):
        end, detail = ended.get(row["id"], (None, ""))
        moment = ready.get(row["id"], end)
        if moment is None or not since <= moment < until:
            continue
        # The device that it had when it ended, or has; else the one that it wanted.
        had = last.get(row["id"])
        device = had.device if had is not None and had.end in (None, end) else None
        if device is None and row["requested_device"] != "any":
            device = row["requested_device"]
        kind = type_of(device) if device else row["hardware_type"]
        environment = TYPES[kind] if kind else row["environment"]
        if kinds.get("hardware_type", kind) != kind or kinds.get("environment", environment) != environment:
            continue
        one = found[key(images[row["image_id"]], kind)]
        one.count(row["created"], ready.get(row["id"]), detail == "returned")
    return found


def test_time_to_ready_and_success(
    past: Past, reports: Reports, span: tuple[datetime, datetime, dict[str, str]]
) -> None:
    by_image = requests_that_ended(past, span, lambda image, kind: (image,))
    assert by_image
    compare_outcomes(reports.rows("ready-by-image", **query(span)), by_image, "requests", "image")
    by_type = requests_that_ended(past, span, lambda image, kind: (kind, kind and "simulated"))
    compare_outcomes(
        reports.rows("ready-by-type", **query(span)), by_type, "requests", "hardware_type", "hardware_model"
    )
    since, until, kinds = span
    by_device: dict[Any, Came] = defaultdict(Came)
    for one in held(past):
        moment = one.ready or one.end
        if wanted(one.device, kinds) and moment is not None and since <= moment < until:
            by_device[one.device, type_of(one.device), "simulated"].count(one.begin, one.ready, one.why == "returned")
    compare_outcomes(
        reports.rows("ready-by-device", **query(span)),
        by_device,
        "preparations",
        *("device", "hardware_type", "hardware_model"),
    )


def kind_of(state: str) -> str:
    if state.startswith("failed_"):
        return "failed"
    return "out" if state in ("locked_out", "troubleshooting") else ""


@dataclass
class Life:
    """What a device went through."""

    name: str
    gone: bool
    states: list[tuple[datetime, str, str]] = field(default_factory=list)
    """Since when, in which state, and why."""


def lives(past: Past, left: set[str]) -> list[Life]:
    """Of all devices; ``left`` are those that are there at the end, by name."""
    there = {row["id"] for row in past.rows("devices") if row["name"] in left}
    found = {id_: Life(name, id_ not in there, [(START, "new", "")]) for id_, name in past.names.items()}
    for row in past.rows("device_history"):
        why = row["detail"] if row["event"] != "entered" else None
        found[row["device_id"]].states.append((row["ts"], row["to_state"], why or ""))
    return list(found.values())


def test_worst_devices(past: Past, reports: Reports, span: tuple[datetime, datetime, dict[str, str]]) -> None:
    since, until, kinds = span
    numbers: dict[str, Counter[str]] = defaultdict(Counter)
    for life in lives(past, devices_there(reports, past)):
        if not wanted(life.name, kinds):
            continue
        of = numbers[life.name]
        for place, (begin, state, why) in enumerate(life.states):
            following = life.states[place + 1 :]
            end = following[0][0] if following else begin if life.gone else until
            if kind_of(state):
                of[f"hours {kind_of(state)}"] += overlap(begin, end, since, until)  # type: ignore[assignment]
            if place and since <= begin < until:
                failed = kind_of(state) == "failed" and kind_of(life.states[place - 1][1]) != "failed"
                of["failures"] += failed
                of["self-tests"] += failed and state == "failed_self_test"
                of["given up"] += bool(re.fullmatch(r"[a-z0-9_]+ failed [0-9]+ times", why))
    expected = {
        name: {
            "hardware_type": type_of(name),
            "hardware_model": "simulated",
            "failures": of["failures"],
            "given_up": of["given up"],
            "self_test_failures": of["self-tests"],
            "hours_failed": pytest.approx(of["hours failed"], abs=0.0006),
            "hours_out_of_service": pytest.approx(of["hours out"], abs=0.0006),
        }
        for name, of in numbers.items()
        if any(of.values())
    }
    assert expected
    rows = reports.rows("worst-devices", **query(span))
    order = [row["failures"] for row in rows]
    assert order == sorted(order, reverse=True)
    found = {row.pop("device"): row for row in rows}
    assert len(found) == len(rows)
    assert found == expected


def devices_there(reports: Reports, past: Past) -> set[str]:
    """Who is in the pool that the reports are made on."""
    said = reports.client.get("/api/device/list/").get_json()["devices"]
    assert set(said) < set(past.names.values())
    return set(said)


def test_worst_relay_boards(past: Past, reports: Reports) -> None:
    there = devices_there(reports, past)
    hang: dict[str, list[str]] = defaultdict(list)
    for row in past.rows("devices"):
        hang[row["relay_info"].partition(":")[0]].append(row["name"])
    failures = [
        (past.names[row["device_id"]], row["ts"])
        for row in past.rows("device_history")
        if row["to_state"] == "failed_power_cycling"
    ]
    for since, until, _ in SPANS.values():
        expected = {}
        for lane, said in past.lanes.items():
            numbers, state, at = Counter[str](), "ok", START
            spent = 0.0
            for moment, now in [*said, (until, "")]:
                if state == "failed":
                    spent += overlap(at, min(moment, until), since, until)
                if now and now != state and since <= moment < until:
                    numbers[now] += 1
                state, at = now, moment
            _, board, port = lane.split(":")
            names = [name for name in hang[board] if name in there]
            expected[board] = {
                "address": f"{board}:{port}",
                "server": "server-1",
                "devices": len(names),
                "power_failures": sum(name in names and since <= moment < until for name, moment in failures),
                "suspected": numbers["suspect"],
                "failed": numbers["failed"],
                "hours_failed": pytest.approx(spent, abs=0.0006),
            }
        rows = reports.rows("worst-relay-boards", **query((since, until, {})))
        assert [row["failed"] for row in rows] == sorted((row["failed"] for row in rows), reverse=True)
        assert {row.pop("board"): row for row in rows} == expected


def test_devices_now(past: Past, reports: Reports) -> None:
    there = devices_there(reports, past)
    counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    need, states = {}, {}
    claimed = {row["device_id"] for row in past.rows("claim_history") if row["released_at"] is None}
    for life in lives(past, there):
        states[life.name] = life.states[-1]
    for row in past.rows("devices"):
        if row["name"] not in there:
            continue
        since, state, _ = states[row["name"]]
        what = {"failed": "failed", "out": "out_of_service"}.get(kind_of(state), "processing")
        if state == "ready":
            what = "in_use" if row["id"] in claimed else "idle"
        counts[type_of(row["name"]), "simulated"][what] += 1
        if state in ("failed_power_cycling", "failed_pxe_booting", "failed_mobile_init_started", "failed_self_test"):
            need[row["name"]] = (state, f"{since:%Y-%m-%dT%H:%M:%S}", (END - since).total_seconds() / 3600)
    names = ("in_use", "idle", "processing", "failed", "out_of_service")
    assert reports.rows("devices") == [
        {
            "hardware_type": kind,
            "hardware_model": model,
            **{name: counts[kind, model][name] for name in names},
            "all": counts[kind, model].total(),
        }
        for kind, model in sorted(counts)
    ]
    rows = reports.rows("failed")
    assert {row["device"]: (row["state"], row["since"]) for row in rows} == {
        name: values[:2] for name, values in need.items()
    }
    for row in rows:
        assert row["hours"] == pytest.approx(need[row["device"]][2], abs=0.0006)
        assert row["environment"] == TYPES[row["hardware_type"]]
        assert row["why"].endswith(".")


def test_the_week_had_something_of_everything(past: Past, reports: Reports) -> None:
    """What never happens is not tested."""
    rows = reports.rows("worst-devices", since="2030-01-01")
    for key in ("failures", "given_up", "self_test_failures", "hours_failed", "hours_out_of_service"):
        assert sum(row[key] for row in rows) > 0, key
    for name in ("ready-by-image", "ready-by-device"):
        rows = reports.rows(name, since="2030-01-01")
        for key in ("ready", "failed", "given_back"):
            assert sum(row[key] for row in rows) > 2, (name, key)
    boards = reports.rows("worst-relay-boards", since="2030-01-01")
    for key in ("suspected", "failed", "hours_failed", "power_failures"):
        assert sum(row[key] for row in boards) > 0, key
    assert len(past.names) > WEEK.devices, "devices were removed and came back"
    assert any(row["released_at"] is None for row in past.rows("claim_history")), "somebody has a device at the end"
    assert reports.rows("failed")
