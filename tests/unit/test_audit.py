# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The audit: what is in it and what is not, that it is durable and never lost, and how it is read."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import inspect

from mozpool.access.audit import Auditor, by_command, line
from mozpool.access.details import HIDDEN, LONGEST, MOST, fit, words
from mozpool.access.principal import Kind, Principal, Role
from mozpool.client.cli import main
from mozpool.clock import Clock
from mozpool.db import audit, tables
from mozpool.db.audit import Entry, Filter
from mozpool.db.engine import Database
from mozpool.web.audit import STRANGERS
from mozpool.web.forward import HEADER, ME
from mozpool.web.gate import GATE
from mozpool.web.pages.base import PART
from tests.access_support import bearer, make_token
from tests.app_fixtures import OWN, Server, server
from tests.conftest import open_database
from tests.mariadb import MariaDB
from tests.unit.test_web_forward import give, listening

EARLY = datetime(2030, 1, 1, tzinfo=UTC)


def rows(database: Database, **wanted: Any) -> list[Entry]:
    """What the table has, the oldest first."""
    with database.read() as conn:
        return audit.newest(conn, Filter(**wanted), limit=1000)[::-1]


def last(site: Server) -> Entry:
    """The newest row, which there must be."""
    return rows(site.daemon.database)[-1]


def entry(**changes: Any) -> Entry:
    """Somebody's change."""
    values = {"kind": "token", "who": "ada", "credential": 7, "address": "10.0.0.9", "server": OWN}
    made = Entry(ts=EARLY, action="request_return", target="request 12", status=204, **values)  # type: ignore[arg-type]
    return replace(made, **changes)


# --- What is in it ---


def test_a_call_that_changes_something_is_in_the_table_before_it_is_answered(imaging_server: Server) -> None:
    number = imaging_server.made("device1", assignee="ada@example.com")
    (row,) = rows(imaging_server.daemon.database)
    assert (row.kind, row.who, row.address, row.server) == ("open", "ada@example.com", "127.0.0.1", OWN)
    assert (row.action, row.target, row.status, row.outcome) == ("request_device", f"request {number}", 200, "ok")
    assert row.details == {"device": "device1", "duration": 3600, "image": "b2g", "b2gbase": "http://builds/1/"}
    assert abs(row.ts - imaging_server.daemon.clock.now()) < timedelta(minutes=1)
    imaging_server.client.set_cookie(ME, "grace%40example.com")
    assert imaging_server.post(f"/api/request/{number}/return/", {}).status_code == 204
    row = last(imaging_server)
    assert (row.action, row.target, row.status) == ("request_return", f"request {number}", 204)
    assert row.who == "grace@example.com"


@pytest.mark.parametrize(
    "verb, path, body, status, action, target, reason",
    [
        ("POST", "/api/device/no/return/", {}, 404, "device_return", "device no", "there is no device no"),
        ("POST", "/api/request/99/renew/", {"duration": -1}, 400, "request_renew", "request 99", "duration: -1"),
        ("POST", "/api/device/device1/request/", {"image": "b2g"}, 400, "request_device", "device device1", "missing"),
        ("GET", "/api/device/device9/power-off/", None, 404, "power_off", "device device9", "there is no device"),
        ("POST", "/api/image/create/", {"name": ""}, 400, "image_create", "image ", "name"),
        ("POST", "/api/bmm/pxe_config/x/delete/", {}, 404, "pxe_config_delete", "pxe_config x", "is not a PXE config"),
        ("POST", "/api/environment/rename/", {"environment": "lab"}, 400, "environment_rename", "environment lab", ""),
    ],
)
def test_what_is_refused_is_in_it_with_the_reason(
    imaging_server: Server,
    verb: str,
    path: str,
    body: dict[str, Any] | None,
    status: int,
    action: str,
    target: str,
    reason: str,
) -> None:
    assert imaging_server.client.open(path, method=verb, json=body).status_code == status
    (row,) = rows(imaging_server.daemon.database)
    assert (row.action, row.target, row.status) == (action, target, status)
    assert reason in row.outcome
    assert row.outcome != "ok"


def test_a_named_device_that_is_taken_is_told_with_the_closed_request(imaging_server: Server) -> None:
    first = imaging_server.made("device1")
    said = imaging_server.ask("device1")
    assert said.status_code == 409
    row = last(imaging_server)
    assert row.target == f"request {first + 1}"
    assert row.details["device"] == "device1"
    assert row.outcome == said.get_json()["error"]["message"]


def test_a_device_that_is_called_by_its_id_is_named(imaging_server: Server) -> None:
    device = imaging_server.device("device2")
    assert imaging_server.post(f"/api/device/{device.id}/set-comments/", {"comments": "x"}).status_code == 200
    assert last(imaging_server).target == "device device2"
    imaging_server.post(f"/api/device/{device.id}/state-change/{device.state}/to/locked_out/", {})
    row = last(imaging_server)
    assert row.target == "device device2"
    assert row.details == {"old": "ready", "new": "locked_out"}


@pytest.mark.parametrize(
    "verb, path",
    [
        ("GET", "/api/device/list/"),
        ("GET", "/api/request/1/details/"),
        ("GET", "/devices"),
        ("HEAD", "/api/device/device1/power-off/"),
        ("OPTIONS", "/api/device/device1/power-off/"),
        ("POST", "/api/no-such-path/"),
        ("POST", "/api/bmm/pxe_config/check/"),
        ("GET", "/api/device/device1/event/mobile_init_started/"),
        ("POST", "/api/device/device1/event/released/"),
        ("GET", "/api/audit/"),
    ],
)
def test_what_only_looks_and_what_devices_tell_is_not_in_it(imaging_server: Server, verb: str, path: str) -> None:
    imaging_server.client.open(path, method=verb)
    assert rows(imaging_server.daemon.database) == []


@pytest.mark.parametrize(
    "path",
    ["/api/device/device1/power-off/", "/api/device/device1/event/please_self_test/", "/api/request/1/event/close/"],
)
def test_what_acts_is_no_call_that_only_asks_for_headers(imaging_server: Server, path: str) -> None:
    """Flask answers HEAD by doing GET."""
    imaging_server.made("device1")
    said = imaging_server.client.head(path)
    assert said.status_code == 405
    assert "HEAD" not in said.headers["Allow"]
    assert last(imaging_server).action == "request_device"


def test_the_path_says_what_a_call_was_about(imaging_server: Server) -> None:
    """Whatever its body and its query say."""
    device = imaging_server.device("device1")
    path = f"/api/device/device1/state-change/{device.state}/to/locked_out/?name=device2"
    assert imaging_server.post(path, {"name": "device3", "old": "failed"}).status_code == 200
    row = last(imaging_server)
    assert row.target == "device device1"
    assert row.details["old"] == device.state
    assert row.details["name (sent)"] == "device3"
    assert row.details["old (sent)"] == "failed"


def test_only_servers_say_from_where_they_were_called(sqlite_url: str, tmp_path: Path) -> None:
    with server(sqlite_url, tmp_path, auth={"mode": "token"}) as site:
        headers = {"Mozpool-Caller": "192.0.2.99", **bearer(make_token(site.daemon.database, "op", "operator"))}
        assert site.post("/api/device/device1/set-comments/", {"comments": "x"}, headers=headers).status_code == 200
        row = last(site)
        assert row.address == "127.0.0.1"
        assert "caller" not in row.details


def test_strangers_do_not_fill_it(sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is refused to nobody in particular is written so many times a minute, and counted."""
    with server(sqlite_url, tmp_path, auth={"mode": "token"}) as site:
        clock, now = site.daemon.clock, site.daemon.clock.monotonic
        path = "/api/device/device1/power-off/"
        for number in range(100):
            assert site.get(path, environ_base={"REMOTE_ADDR": "192.0.2.1"}).status_code == 401, number
        written = len(rows(site.daemon.database))
        assert STRANGERS / 5 <= written < 50
        site.get(path, environ_base={"REMOTE_ADDR": "192.0.2.2"})
        assert len(rows(site.daemon.database)) == written + 1
        monkeypatch.setattr(clock, "monotonic", lambda: now() + 60)
        site.get(path, environ_base={"REMOTE_ADDR": "192.0.2.1"})
        assert last(site).details["more"] == 100 - written


def test_in_mode_open_events_that_people_send_are_in_it(imaging_server: Server) -> None:
    number = imaging_server.made("device1")
    imaging_server.get("/api/device/device2/event/please_self_test/")
    row = last(imaging_server)
    assert (row.action, row.target, row.details) == ("device_event", "device device2", {"event": "please_self_test"})
    imaging_server.post(f"/api/request/{number}/event/lifeguard_finished/", {"claim_id": 1})
    assert last(imaging_server) == row
    imaging_server.post(f"/api/request/{number}/event/close/")
    assert last(imaging_server).details["event"] == "close"


def test_a_power_off_by_a_get_is_in_it(imaging_server: Server) -> None:
    assert imaging_server.get("/api/device/device1/power-off/").status_code == 200
    assert last(imaging_server).action == "power_off"


def test_what_belongs_to_another_server_is_audited_there(imaging_server: Server) -> None:
    imaging_server.move("device1", imaging_server.other_server())
    assert imaging_server.get("/api/device/device1/power-off/").status_code == 302
    assert rows(imaging_server.daemon.database) == []


def test_what_is_forwarded_is_in_it_once_with_the_caller(sqlite_url: str, tmp_path: Path) -> None:
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    with server(sqlite_url, tmp_path / "here") as here:
        elsewhere = here.daemon.database
        with (
            server(sqlite_url, tmp_path / "there", count=0, server={"fqdn": "127.0.0.1:1"}) as there,
            listening(there.app) as name,
        ):
            there.daemon.auditor.server = name
            give(here, "device2", name)
            there.daemon.server_id = here.device("device2").owner_id
            site = there.app.extensions["mozpool.site"]
            there.app.extensions["mozpool.site"] = replace(site, server_id=there.daemon.server_id)
            here.client.set_cookie(ME, "ada%40example.com")
            said = here.post("/api/device/device2/power-off/", {"note": "hot"}, headers={HEADER: "1"})
            assert said.status_code == 200
            (row,) = rows(elsewhere)
            assert (row.server, row.who, row.target) == (name, "ada@example.com", "device device2")
            assert row.details == {"note": "hot", "caller": "127.0.0.1"}
        give(here, "device2", "127.0.0.1:9")
        assert here.post("/api/device/device2/power-off/", {}, headers={HEADER: "1"}).status_code == 502
        assert (last(here).server, last(here).status) == (OWN, 502)


# --- Who it was ---

TOKEN = Principal(Kind.TOKEN, Role.USER, "ci", credential=5)
DEVICE = Principal(Kind.DEVICE, Role.NOBODY, "device1")
SERVER = Principal(Kind.SERVER, Role.ADMIN, "server-2.example.com")
PERSON = Principal(Kind.PERSON, Role.OPERATOR, "ada@example.com", session=3)


@pytest.fixture
def closed(sqlite_url: str, tmp_path: Path) -> Iterator[Callable[[Principal | None], Server]]:
    """A server in mode token, as whoever is given."""
    with server(sqlite_url, tmp_path, auth={"mode": "token"}) as site:
        who: list[Principal | None] = [None]
        site.app.extensions[GATE].finders = (lambda: who[0],)

        def become(principal: Principal | None) -> Server:
            who[0] = principal
            return site

        yield become


def test_a_token_and_a_person_are_named_whatever_the_body_says(closed: Callable[[Principal | None], Server]) -> None:
    closed(TOKEN).made("device1", assignee="boss@example.com")
    row = last(closed(None))
    assert (row.kind, row.who, row.credential) == ("token", "ci", 5)
    assert row.details["assignee"] == "boss@example.com"
    closed(PERSON).post("/api/device/device2/self-test/", {})
    row = last(closed(None))
    assert (row.kind, row.who, row.credential) == ("person", "ada@example.com", None)


def test_with_credentials_that_were_refused_it_was_nobody(closed: Callable[[Principal | None], Server]) -> None:
    site = closed(None)
    site.client.set_cookie(ME, "ada%40example.com")
    site.post("/api/device/device1/set-comments/", {"comments": "x", "assignee": "ada@example.com"})
    assert (last(site).kind, last(site).who) == ("nobody", None)


def test_devices_and_servers_speak_for_themselves_only_where_they_are_refused(
    closed: Callable[[Principal | None], Server],
) -> None:
    closed(DEVICE).get("/api/device/device1/event/mobile_init_started/")
    closed(SERVER).post("/api/device/device1/event/please_power_off/", {})
    assert rows(closed(None).daemon.database) == []
    closed(DEVICE).get("/api/device/nothing/event/mobile_init_started/")
    row = last(closed(None))
    assert (row.kind, row.who, row.status) == ("device", "device1", 404)
    closed(TOKEN).get("/api/device/device1/event/mobile_init_started/")
    assert last(closed(None)).who == "ci"


# --- Secrets and sizes ---


@pytest.mark.parametrize(
    "given, kept",
    [
        ({"token": "s3cret"}, {"token": HIDDEN}),
        ({"wifi_Password": "s3cret", "x": {"api-key": "s3cret", "apikey": "s3cret", "server_key": "s3cret"}}, None),
        ({"pwd": "s3cret", "sig": "s3cret", "pass": "s3cret"}, {"pwd": HIDDEN, "sig": HIDDEN, "pass": HIDDEN}),
        (
            {"callback_url": "https://me:s3cret@CI.example.com:99/s3cret?s3cret#s3cret"},
            {"callback_url": "https://ci.example.com:99"},
        ),
        ({"callback_url": "https://[::1]/s3cret"}, {"callback_url": "https://[::1]"}),
        ({"callback_url": "https://[s3cret"}, {"callback_url": "http://"}),
        ({"b2gbase": "https://me:s3cret@h/x"}, {"b2gbase": f"https://{HIDDEN}@h/x"}),
        ({"b2gbase": "https://me:s3cret@s3cret@h/x"}, {"b2gbase": f"https://{HIDDEN}@h/x"}),
        ({"engine": "mysql://me:s3cret@h/x and no@h"}, {"engine": f"mysql://{HIDDEN}@h/x and no@h"}),
        ({"x": {"y": ["http://h/?token=s3cret#a"]}}, {"x": {"y": [f"http://h/?token={HIDDEN}"]}}),
        ({"u": "http://h/?sig=s3cret&a=1"}, {"u": f"http://h/?sig={HIDDEN}&a=1"}),
        ({"u": "http://h/a?b=1&X-Amz-Signature=s3cret"}, {"u": f"http://h/a?b=1&X-Amz-Signature={HIDDEN}"}),
        ({"comments": f"use mozpool_17_{'s3cret' * 7} for it"}, {"comments": f"use mozpool_17_{HIDDEN} for it"}),
        ({"append": "ip=dhcp mozpool-token=s3cret quiet"}, {"append": f"ip=dhcp mozpool-token={HIDDEN} quiet"}),
        ({"command": ["curl", "-H", "Authorization: Token s3cret s3cret"]}, None),
        ({"command": ["curl", "-H", "Mozpool-Boot-Token: s3cret"]}, None),
        ({"command": ["curl", "-H", "Cookie: a=s3cret; b=s3cret", "x"]}, None),
        ({"reason": "Authorization: AWS4 Credential=x, Y=s3cret\nthe end"}, None),
        ({"boot_config": '{"password": "a\\"s3cret", "b": 1}'}, {"boot_config": f'{{"password": {HIDDEN}, "b": 1}}'}),
        ({"u": "http://h/?a=1&access_token=s3cret&b=2"}, {"u": f"http://h/?a=1&access_token={HIDDEN}&b=2"}),
        ({"command": ["adb", "--password", "s3cret", "x"]}, {"command": ["adb", "--password", HIDDEN, "x"]}),
        ({"command": ["curl", "-H", "Authorization: Bearer s3cret"]}, None),
        ({"command": ["sh", "-c", "DB_PASSWORD=s3cret run"]}, None),
        ({"boot_config": '{"secret": "s3cret", "b": 1}'}, None),
        ({"contents": "root:s3cret"}, {"contents": "11 characters"}),
        ({"image": "b2g", "reason": "two\nlines"}, {"image": "b2g", "reason": "two\\nlines"}),
        ({"number": 10**30, "no": None, "yes": True}, {"number": str(10**30), "no": None, "yes": True}),
    ],
)
def test_what_has_the_name_of_a_secret_is_hidden(given: dict[str, Any], kept: dict[str, Any] | None) -> None:
    made = fit(given)
    assert "s3cret" not in json.dumps(made)
    if kept is not None:
        assert made == kept


@pytest.mark.parametrize("part", ["a-", "token", "token-", "a ", "x=", 'token="', "bearer ", "a://", ":", "token:  "])
def test_no_text_takes_long(part: str) -> None:
    """Anybody may call with any text, also without credentials: what was refused is in the audit."""
    begun = time.process_time()
    fit({"text": part * MOST, "items": [part * MOST] * 20, part * MOST: 1})
    assert time.process_time() - begun < 1


def test_what_only_looks_like_a_secret_is_kept() -> None:
    kept = {
        "image": "b2g",
        "key": "value",
        "design": "a=1 assign=2",
        "u": "http://builds.example.com/1/?design=a#b",
        "reason": "ask me@example.com about http://wiki/x",
        "address": "[::1]:80",
    }
    assert fit(kept) == kept


def test_masking_takes_no_time() -> None:
    """However a text is made up: people send them."""
    pieces = ("a-", "token", "cookie: ", "a://", "?sig=", 'token="', "token='\\\\", "mozpool_1_", "token  ", "bearer ")
    for piece in (*pieces, "token\t"):
        begun = time.process_time()
        fit({"text": piece * (100_000 // len(piece))})
        words([piece * (100_000 // len(piece))])
        assert time.process_time() - begun < 1, piece


def test_where_a_request_is_told_of_is_not_in_it_but_the_host(imaging_server: Server) -> None:
    url = "https://ci:s3cret@ci.example.com/hooks/s3cret?token=s3cret"
    imaging_server.made("device1", callback_url=url)
    assert last(imaging_server).details["callback_url"] == "https://ci.example.com"
    assert imaging_server.ask("device2", callback_url=f"ftp{url}").status_code == 400
    row = last(imaging_server)
    assert row.details["callback_url"] == "ftphttps://ci.example.com"
    assert row.outcome == "callback_url is not right"
    assert "s3cret" not in str(row)


def test_what_is_secret_in_a_command_is_not_in_its_devices_log_either(imaging_server: Server) -> None:
    command = ["wget", "--password", "s3cret", "--header=Authorization: Bearer s3cret", "http://me:s3cret@h/x"]
    imaging_server.post("/api/device/device1/agent/exec/", {"command": command, "timeout": 0.1})
    imaging_server.daemon.logbook.flush()
    lines = imaging_server.get("/api/device/device1/log/").get_json()["log"]
    (said,) = (line["message"] for line in lines if "command by" in line["message"])
    assert said.startswith("command by ")
    assert said.endswith(f"wget --password {HIDDEN} --header=Authorization: {HIDDEN} http://{HIDDEN}@h/x")
    assert "s3cret" not in str(last(imaging_server))


def test_details_are_short(imaging_server: Server) -> None:
    assert fit({"text": "x y" * 1000})["text"].startswith("x y")
    assert len(fit({"text": "x y" * 1000})["text"]) < LONGEST + 30
    many = fit({f"key{number}": "x y" * 60 for number in range(500)})
    assert len(json.dumps(many)) <= MOST
    assert "values" in many["left out"]
    deep: Any = 1
    for _ in range(50):
        deep = {"a": deep}
    assert len(json.dumps(fit({"deep": deep}))) < 100


def test_what_no_column_takes_is_written_nevertheless(database: Database) -> None:
    auditor = Auditor(database, Clock(), OWN)
    auditor.write(entry(who="\ud800\n" + "é" * 1000, target="\0" * 300, outcome="🐼" * 400, details={"a": "\ud800"}))
    (row,) = rows(database)
    assert row.who is not None
    assert row.who.startswith("?\\né")
    assert (len(row.who), len(row.target or ""), len(row.outcome)) == (256, 256, 190)
    assert auditor.late == 0


# --- Durable, together, and never lost ---


@contextmanager
def held_up(database: Database, mariadb: Callable[[], MariaDB]) -> Iterator[None]:
    """Nobody else can write within."""
    if database.dialect == "sqlite":
        with closing(sqlite3.connect(str(database.url.database), isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            yield
            other.execute("COMMIT")
        return
    with closing(mariadb().connect(database.url.database)) as connection, connection.cursor() as cursor:
        cursor.execute("LOCK TABLES audit WRITE")
        yield
        cursor.execute("UNLOCK TABLES")


def test_calls_that_end_together_share_a_transaction(database: Database, request: pytest.FixtureRequest) -> None:
    auditor = Auditor(database, Clock(), OWN)
    work: list[str] = []
    database.on_work = lambda operation, seconds, away: work.append(operation)
    threads = [threading.Thread(target=auditor.write, args=[entry(target=f"request {number}")]) for number in range(20)]
    with held_up(database, lambda: request.getfixturevalue("mariadb")):
        threads[0].start()
        while auditor._waiting or not auditor._is_writing:
            Clock().sleep(0.001)
        for thread in threads[1:]:
            thread.start()
        while len(auditor._waiting) < 19:
            Clock().sleep(0.001)
        assert all(thread.is_alive() for thread in threads), "nobody is answered before its row is written"
    for thread in threads:
        thread.join(20)
    assert work.count("write") == 2
    found = rows(database)
    assert sorted(row.target or "" for row in found) == sorted(f"request {number}" for number in range(20))
    assert len({row.ts for row in found}) == 20, "a time names a row"


def test_a_busy_server_lets_rows_come_together(sqlite_url: str) -> None:
    database = open_database(sqlite_url)
    auditor = Auditor(database, Clock(), OWN)
    work: list[str] = []
    database.on_work = lambda operation, seconds, away: work.append(operation)
    serving = [0]
    auditor.serving = lambda: serving[0]
    auditor.write(entry())
    assert work == ["write"]
    serving[0] = 8
    threads = [threading.Thread(target=auditor.write, args=[entry()]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(rows(database)) == 9
    begun = Clock().monotonic()
    auditor.write(entry())
    assert Clock().monotonic() - begun < 2, "rows that nobody joins are written, too"
    assert len(rows(database)) == 10
    assert work.count("write") < 10
    database.dispose()


@pytest.fixture
def away(_sqlite_template: Path, tmp_path: Path) -> Iterator[tuple[Database, Callable[[], None]]]:
    """A database that can't be opened, and what brings it back."""
    database = open_database(f"sqlite:///{tmp_path}/gone/pool.sqlite")

    def bring_back() -> None:
        (tmp_path / "gone").mkdir()
        shutil.copyfile(_sqlite_template, tmp_path / "gone" / "pool.sqlite")

    yield database, bring_back
    database.dispose()


def test_rows_wait_in_a_file_while_the_database_is_away(
    away: tuple[Database, Callable[[], None]], tmp_path: Path
) -> None:
    database, bring_back = away
    file, late = tmp_path / "audit.jsonl", tmp_path / "audit.jsonl.late"
    auditor = Auditor(database, Clock(), OWN, file)
    asked: list[int] = []
    auditor.on_late = lambda: asked.append(auditor.late)
    begun = Clock().monotonic()
    for number in range(50):
        auditor.write(entry(target=f"request {number}"), away=number > 0)
    assert Clock().monotonic() - begun < 10, "one call waits for it, the others don't"
    assert (auditor.late, asked) == (50, [1])
    assert file.read_text() == late.read_text()
    assert [json.loads(text)["target"] for text in late.read_text().splitlines()][-1] == "request 49"
    auditor.retry()
    assert (auditor.late, asked) == (50, [1, 50]), "it is to be tried again"
    bring_back()
    auditor.retry()
    assert auditor.late == 0
    assert not late.exists()
    assert [row.target for row in rows(database)] == [f"request {number}" for number in range(50)]
    auditor.write(entry(target="request 50"))
    assert len(rows(database)) == 51
    assert len(file.read_text().splitlines()) == 51


def test_the_next_process_takes_over_what_is_late(
    away: tuple[Database, Callable[[], None]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    database, bring_back = away
    file, late = tmp_path / "audit.jsonl", tmp_path / "audit.jsonl.late"
    first = Auditor(database, Clock(), OWN, file)
    first.write(entry(details={"a": "ü"}))
    first.write(entry(target="request 13"))
    first.stop()
    assert "which the next start reads" in caplog.text
    bring_back()
    with database.begin() as conn:
        audit.add(conn, list(first._late)[:1])  # its commit took place, and nobody heard of it
    with late.open("a") as lines:
        lines.write('{"time": "2030-01-')  # a power cut
    second = Auditor(database, Clock(), OWN, file)
    assert second.late == 2
    second.retry()
    assert [(row.target, row.details) for row in rows(database)] == [("request 12", {"a": "ü"}), ("request 13", {})]
    assert [row.ts for row in rows(database)] == [kept.ts for kept in first._late]
    assert not late.exists()


def test_without_a_file_rows_that_are_late_are_in_the_log(
    away: tuple[Database, Callable[[], None]], caplog: pytest.LogCaptureFixture
) -> None:
    database, bring_back = away
    auditor = Auditor(database, Clock(), OWN)
    auditor.write(entry())
    (text,) = (record.getMessage() for record in caplog.records if record.getMessage().startswith("audit: "))
    assert json.loads(text.removeprefix("audit: "))["who"] == "ada"
    bring_back()
    auditor.stop()
    assert len(rows(database)) == 1


def test_a_call_is_answered_whatever_becomes_of_its_row(
    imaging_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    database = imaging_server.daemon.database
    with database.maintenance() as conn:
        tables.audit.drop(conn)
    try:
        number = imaging_server.made("device1")
        assert imaging_server.request(number).device == "device1"
        assert imaging_server.daemon.auditor.late == 1
        assert "rows of the audit come into the table later: they are refused" in caplog.text
        imaging_server.daemon.auditor.retry()
    finally:
        with database.maintenance() as conn:
            if not inspect(conn).has_table("audit"):
                tables.audit.create(conn)
    imaging_server.daemon.auditor.retry()
    assert [row.target for row in rows(database)] == [f"request {number}"]


def test_a_file_that_takes_no_lines_stops_nobody(
    database: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    auditor = Auditor(database, Clock(), OWN, tmp_path / "no" / "audit.jsonl")
    auditor.write(entry())
    auditor.write(entry())
    assert len(rows(database)) == 2
    assert caplog.text.count("takes no lines") == 1
    (tmp_path / "no").mkdir()
    auditor.write(entry(target="request 14"))
    assert json.loads((tmp_path / "no" / "audit.jsonl").read_text())["target"] == "request 14"


def test_the_file_may_be_rotated_and_nobody_else_reads_it(sqlite_url: str, tmp_path: Path) -> None:
    with server(sqlite_url, tmp_path, auth={"audit_log": tmp_path / "audit.jsonl"}) as site:
        number = site.made("device1")
        (tmp_path / "audit.jsonl").rename(tmp_path / "audit.jsonl.1")
        site.post(f"/api/request/{number}/return/", {})
        before, after = (json.loads((tmp_path / name).read_text()) for name in ("audit.jsonl.1", "audit.jsonl"))
        assert (before["action"], after["action"]) == ("request_device", "request_return")
        (shown, _) = site.get("/api/audit/").get_json()["entries"]
        del shown["id"]
        assert shown == after
        assert (tmp_path / "audit.jsonl").stat().st_mode & 0o007 == 0


def test_a_clock_that_steps_back_is_believed_but_times_differ(database: Database) -> None:
    class Stepping(Clock):
        at = datetime(2030, 1, 1, tzinfo=UTC)

        def now(self) -> datetime:
            return self.at

    clock = Stepping()
    auditor = Auditor(database, clock, OWN)
    auditor.write(entry())
    auditor.write(entry())
    clock.at -= timedelta(hours=1)
    auditor.write(entry())
    first, second, third = (row.ts for row in sorted(rows(database), key=lambda row: row.id))
    assert second - first == timedelta(microseconds=1)
    assert first - third == timedelta(hours=1)


# --- Reading ---


@pytest.fixture
def history(imaging_server: Server) -> Server:
    """A server with seven rows, a minute from each other."""
    made = [
        entry(target="device device1", action="device_reboot"),
        entry(target="device device1", action="device_reboot", status=403, outcome="role operator is needed"),
        entry(who="grace@example.com", kind="person", credential=None),
        entry(who="=cmd", target="image b2g", action="image_create", details={"keys": ["a"]}),
        entry(
            kind="command", who="root", status=None, action="mozpool-db add-device", target="device x", credential=None
        ),
        entry(target="request 13", status=503, outcome="the database is away"),
        entry(who="<b>", target="request 13"),
    ]
    made = [replace(each, ts=EARLY + timedelta(minutes=number)) for number, each in enumerate(made)]
    imaging_server.daemon.database.run(lambda conn: audit.add(conn, made))
    return imaging_server


def asked(site: Server, query: str) -> list[tuple[str, str]]:
    said = site.get(f"/api/audit/?{query}")
    assert said.status_code == 200, said.text
    return [(row["who"], row["target"]) for row in said.get_json()["entries"]]


@pytest.mark.parametrize(
    "query, number",
    [
        ("", 7),
        ("who=ada", 3),
        ("target=device1", 2),
        ("target=device%20device1", 2),
        ("target=13", 2),
        ("target=image%20b2g", 1),
        ("action=device_reboot", 2),
        ("kind=command", 1),
        ("outcome=ok", 5),
        ("outcome=refused", 1),
        ("outcome=failed", 1),
        ("since=2030-01-01T00:02", 5),
        ("since=2030-01-01T00:02&until=2030-01-01T00:03:00", 1),
        ("who=ada&outcome=ok", 1),
        ("who=nobody", 0),
    ],
)
def test_it_is_filtered(history: Server, query: str, number: int) -> None:
    assert len(asked(history, query)) == number


def test_it_is_read_in_parts(history: Server) -> None:
    seen, query = [], "limit=3"
    while True:
        said = history.get(f"/api/audit/?{query}").get_json()
        seen += [row["time"] for row in said["entries"]]
        if said["next_cursor"] is None:
            break
        query = f"limit=3&cursor={said['next_cursor']}"
    assert seen == sorted(seen, reverse=True)
    assert len(seen) == 7
    assert seen[0] == "2030-01-01T00:06:00.000000+00:00"
    assert asked(history, "cursor=999999") == []


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=1000000", "since=yesterday", "outcome=x", "cursor=x", "format=xml"]
)
def test_what_cannot_be_asked_for_is_refused(history: Server, query: str) -> None:
    said = history.get(f"/api/audit/?{query}")
    assert said.status_code == 400
    assert said.get_json()["error"]["field"] == query.partition("=")[0]


def test_as_csv_nothing_is_taken_for_a_formula(history: Server) -> None:
    said = history.get("/api/audit/?format=csv&limit=6")
    assert said.mimetype == "text/csv"
    assert "attachment" in said.headers["Content-Disposition"]
    found = list(csv.DictReader(io.StringIO(said.text, newline="")))
    assert len(found) == 6
    (image,) = [row for row in found if row["target"] == "image b2g"]
    assert (image["who"], image["details"]) == ("'=cmd", '{"keys": ["a"]}')
    assert said.headers["Mozpool-Next-Cursor"] == found[-1]["id"]


def test_the_page_shows_it_and_leads_on(history: Server) -> None:
    page = history.get("/audit").text
    assert len(re.findall(r'<tr id="audit-\d+"', page)) == 7
    assert '<a href="/devices/device1">device device1</a>' in page
    assert '<a href="/requests/13">request 13</a>' in page
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    assert "403: role operator is needed" in page
    assert len(re.findall(r'<tr id="audit-', history.get("/audit?who=ada&outcome=refused").text)) == 1
    assert "Nothing of this was done." in history.get("/audit?who=nobody").text
    assert "is not a time" in history.get("/audit?since=<x>").text
    assert "/api/audit/?who=ada&amp;limit=10000&amp;format=csv" in history.get("/audit?who=ada").text


def test_the_page_has_parts(imaging_server: Server) -> None:
    made = [entry(ts=EARLY + timedelta(seconds=number)) for number in range(120)]
    imaging_server.daemon.database.run(lambda conn: audit.add(conn, made))
    seen: list[str] = []
    path = "/audit?who=ada"
    for _ in range(3):
        page = imaging_server.get(path).text
        seen += re.findall(r'<tr id="audit-(\d+)"', page)
        older = re.search(r'href="([^"]*)" rel="next"', page)
        path = "" if older is None else older[1].replace("&amp;", "&")
    assert path == ""
    assert len(set(seen)) == 120
    assert seen == sorted(seen, key=int, reverse=True)


def test_a_browser_is_told_of_new_rows_alone(history: Server) -> None:
    part = history.get("/audit", headers={PART: "1"})
    assert part.status_code == 200
    etag = part.headers["ETag"]
    again = {PART: "1", "If-None-Match": etag}
    assert history.get("/audit", headers=again).status_code == 304
    history.post("/api/device/device1/set-comments/", {"comments": "x"})
    changed = history.get("/audit", headers=again)
    assert changed.status_code == 200
    assert "set_comments" in changed.text
    assert "<html" not in changed.text


def test_the_command_shows_it(history: Server) -> None:
    with listening(history.app) as name:

        def run(*arguments: str) -> str:
            result = CliRunner().invoke(main, ["--server", f"http://{name}", "audit", *arguments])
            assert result.exit_code == 0, result.output
            return result.stdout

        head, *found = run("--who", "ada").splitlines()
        assert re.split("  +", head) == ["TIME (UTC)", "WHO", "FROM", "ACTION", "ON", "OUTCOME"]
        assert len(found) == 3
        assert "ada (token)" in found[0]
        assert [row["target"] for row in json.loads(run("--json", "--limit", "2"))] == ["request 13", "request 13"]
        assert len(list(csv.DictReader(io.StringIO(run("--csv", "--target", "device1"))))) == 2
        bad = CliRunner().invoke(main, ["--server", f"http://{name}", "audit", "--since", "x"])
        assert bad.exit_code == 2
        assert "since" in bad.stderr


# --- Commands ---


def test_a_command_is_the_user_who_runs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USER", "somebody-else")
    monkeypatch.setenv("SUDO_USER", "ada")
    row = by_command(OWN, EARLY, "mozpool-db add-device", "device x", {"mac": "aabb"})
    assert (row.kind, row.status, row.outcome) == ("command", None, "ok")
    assert row.who != "somebody-else"
    assert row.details["sudo_user"] == "ada"
    assert row.details["mac"] == "aabb"
    assert row.address


def test_a_line_has_no_line_ends_and_all_keys() -> None:
    text = line(entry(details={"a": "x\ny"}))
    assert "\n" not in text
    assert set(json.loads(text)) == {*Entry.__dataclass_fields__, "time"} - {"ts", "id"}
