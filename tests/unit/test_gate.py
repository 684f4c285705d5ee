# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Tokens, and what those who have one may do to what they hold, and for how long."""

from __future__ import annotations

import json
import logging
import random
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, select, update
from werkzeug.test import TestResponse

from mozpool.access import tokens
from mozpool.access.brake import BURST, PAUSE, Brake
from mozpool.access.matrix import RULES
from mozpool.access.principal import Kind, Principal, Role
from mozpool.clock import SimClock
from mozpool.db import hosted_jobs, tables
from mozpool.db import tokens as token_rows
from mozpool.errors import TooManyCalls
from mozpool.fakes.sutagent import COMMAND_PORT
from mozpool.web.app import create_app
from mozpool.web.gate import GATE, Gate
from tests.access_support import bearer, begin_session, cookies, from_page, make_team, make_token
from tests.app_fixtures import OTHER, Server, server

ME, YOU = "me@example.com", "you@example.com"


class People:
    """A server that asks who calls, and those who call it."""

    def __init__(self, made: Server) -> None:
        self.server = made
        self.database = made.daemon.database
        self.me = bearer(make_token(self.database, ME, "user"))
        self.you = bearer(make_token(self.database, YOU, "user"))
        self.operator = bearer(make_token(self.database, "op@example.com", "operator"))
        self.admin = bearer(make_token(self.database, "root@example.com", "admin"))

    def post(self, path: str, headers: dict[str, str], body: dict[str, Any] | None = None) -> TestResponse:
        return self.server.post(path, body or {}, headers=headers)

    def get(self, path: str, headers: dict[str, str]) -> TestResponse:
        return self.server.get(path, headers=headers)

    def held(self, device: str = "device1", **keys: Any) -> int:
        """The id of a request of mine that has the device."""
        number = self.server.made(device, headers=self.me, **keys)
        assert self.server.device(device).claim_id is not None
        return number

    def expire(self, number: int) -> None:
        """Let a request's time be over, which its server has not noticed."""
        table = tables.requests
        over = self.database.clock.now() - timedelta(seconds=1)
        self.database.run(lambda conn: conn.execute(update(table).where(table.c.id == number).values(expires=over)))

    def log(self, device: str) -> list[str]:
        self.server.daemon.logbook.flush()
        lines = self.get(f"/api/device/{device}/log/?limit=1000", self.admin).get_json()["log"]
        return [line["message"] for line in lines]


@pytest.fixture
def people(database_url: str, tmp_path: Path) -> Iterator[People]:
    with server(database_url, tmp_path, auth={"mode": "token"}) as made:
        yield People(made)


# Tokens


def test_a_token_is_shown_once_and_stored_hashed(people: People) -> None:
    said = people.post("/api/token/create/", people.admin, {"name": "builder-1", "note": "nightly"})
    made = said.get_json()["token"]
    assert said.headers["Cache-Control"] == "no-store"
    assert made["token"].startswith(f"mozpool_{made['id']}_")
    secret = made["token"].split("_", 2)[2]
    with people.database.read() as conn:
        row = token_rows.get(conn, made["id"])
        stored = " ".join(str(value) for value in conn.execute(select(tables.tokens)).all())
    assert row is not None
    assert secret not in stored
    assert len(row.secret_hash) == 64
    listed = people.get("/api/token/list/", people.admin).get_json()["tokens"]
    assert secret not in str(listed)
    mine = next(each for each in listed if each["id"] == made["id"])
    assert (mine["name"], mine["role"], mine["created_by"], mine["expires"]) == (
        "builder-1",
        "user",
        "root@example.com",
        None,
    )


def test_who_calls_is_told(people: People) -> None:
    team = make_team(people.database, "web")
    token = make_token(people.database, "ci", "user", team_id=team)
    said = people.get("/api/whoami/", bearer(token)).get_json()
    assert (said["kind"], said["name"], said["role"], said["team"]) == ("token", "ci", "user", "web")
    assert token.startswith(f"mozpool_{said['token']}_")


def test_bad_credentials_are_refused_and_never_count_as_none(people: People) -> None:
    """Even where nobody at all may look."""
    gate = people.server.app.extensions[GATE]
    gate._nobody = Principal(Kind.NOBODY, Role.VIEWER)
    assert people.get("/api/device/list/", {}).status_code == 200
    database, now = people.database, people.database.clock.now()
    good = make_token(database, "x", "user")
    number = good.split("_")[1]
    team = make_team(database, "web")
    orphan = make_token(database, "x", "user", team_id=team + 1)
    bad = [
        "Bearer",
        "Bearer ",
        "Basic dXNlcjpwYXNz",
        "Bearer mozpool_1_short",
        f"Bearer {good}x",
        f"Bearer {good[:-1]}",
        f"Bearer mozpool_{int(number) + 100}_{good.split('_', 2)[2]}",
        f"Bearer mozpool_{'9' * 18}_{good.split('_', 2)[2]}",
        f"Bearer mozpool_{'9' * 19}_{good.split('_', 2)[2]}",
        f"Bearer {make_token(database, 'x', 'user', expires=now)}",
        f"Bearer {make_token(database, 'x', 'user', revoked=now)}",
        f"Bearer {orphan}",
    ]
    for header in bad:
        said = people.get("/api/device/list/", {"Authorization": header})
        assert said.status_code == 401, header
        assert said.headers["WWW-Authenticate"] == 'Bearer realm="mozpool"'
        assert said.get_json()["error"]["code"] == "unauthorized"
        assert header.split("_", 2)[-1] not in said.text or len(header) < 12
    assert people.get("/api/device/list/", {"Authorization": f"bearer {good}"}).status_code == 200


def test_a_revoked_token_is_good_for_nothing_at_once(people: People) -> None:
    number = people.get("/api/whoami/", people.me).get_json()["token"]
    assert people.post(f"/api/token/{number}/revoke/", people.you).status_code == 404
    assert people.post("/api/token/x/revoke/", people.you).status_code == 400
    assert people.get("/api/device/list/", people.me).status_code == 200
    assert people.post(f"/api/token/{number}/revoke/", people.me).status_code == 204
    assert people.get("/api/device/list/", people.me).status_code == 401
    assert people.post(f"/api/token/{number}/revoke/", people.admin).status_code == 204
    listed = people.get("/api/token/list/", people.admin).get_json()["tokens"]
    assert number not in [each["id"] for each in listed]
    listed = people.get("/api/token/list/?all=1", people.admin).get_json()["tokens"]
    assert next(each["revoked"] for each in listed if each["id"] == number) is not None


def test_users_make_tokens_for_themselves_alone(people: People) -> None:
    team = make_team(people.database, "web")
    make_team(people.database, "other")
    inside = bearer(make_token(people.database, ME, "user", team_id=team))

    def status(headers: dict[str, str], **body: Any) -> int:
        return people.post("/api/token/create/", headers, body).status_code

    assert status(people.me) == 200
    assert status(people.me, name=ME, role="viewer") == 200
    assert status(people.me, name=YOU) == 403
    assert status(people.me, role="operator") == 403
    assert status(people.operator, role="operator") == 200
    assert status(people.operator, role="admin") == 403
    assert status(people.me, team="web") == 403
    assert status(inside, team="web") == 200
    assert status(inside, team="other") == 403
    assert status(people.admin, team="nix") == 404
    assert status(people.admin, name="a\nb") == 400
    assert status(people.admin, name=YOU, role="admin", team="web") == 200
    made = people.post("/api/token/create/", inside).get_json()["token"]
    assert made["team"] == "web", "nobody leaves their quota by a new token"
    mine = people.get("/api/token/list/", people.me).get_json()["tokens"]
    assert {each["name"] for each in mine} == {ME}
    assert people.get(f"/api/token/list/?name={YOU}", people.me).status_code == 403
    page = people.get("/api/token/list/?limit=2", people.admin).get_json()
    assert len(page["tokens"]) == 2
    assert page["next_cursor"] == page["tokens"][-1]["id"]


def test_no_token_outlives_the_one_that_made_it(people: People) -> None:
    until = people.database.clock.now() + timedelta(hours=1)
    short = bearer(make_token(people.database, ME, "user", expires=until))
    made = people.post("/api/token/create/", short).get_json()["token"]
    assert made["expires"] == until.strftime("%Y-%m-%dT%H:%M:%S")
    assert people.post("/api/token/create/", short, {"duration": 7200}).status_code == 403
    assert people.post("/api/token/create/", short, {"duration": 60}).status_code == 200
    root = bearer(make_token(people.database, "root@example.com", "admin", expires=until))
    made = people.post("/api/token/create/", root, {"name": YOU}).get_json()["token"]
    assert made["expires"] == until.strftime("%Y-%m-%dT%H:%M:%S")
    assert people.post("/api/token/create/", root, {"name": YOU, "duration": 7200}).status_code == 403


def test_what_was_made_with_a_revoked_token_is_revoked_too(people: People) -> None:
    def made(headers: dict[str, str], **body: Any) -> dict[str, str]:
        said = people.post("/api/token/create/", headers, body)
        assert said.status_code == 200, said.text
        return bearer(said.get_json()["token"]["token"])

    def good(headers: dict[str, str]) -> bool:
        return people.get("/api/device/list/", headers).status_code == 200

    first = make_token(people.database, "boss@example.com", "admin")
    child = made(bearer(first), name=ME, role="admin")
    grandchild = made(child, role="user")
    secret = begin_session(people.database, ME, "admin", token=child["Authorization"].split()[1])
    browser = create_app(people.server.daemon.services).test_client()
    for key, value in cookies(secret).items():
        browser.set_cookie(key, value)
    said = browser.post("/api/token/create/", json={}, headers=from_page(secret))
    by_session = bearer(said.get_json()["token"]["token"])
    sibling = made(people.me)
    others = [child, grandchild, by_session]
    assert all(good(each) for each in others)
    number = int(first.split("_")[1])
    assert people.post(f"/api/token/{number}/revoke/", people.admin).status_code == 204
    assert not any(good(each) for each in [bearer(first), *others])
    assert browser.get("/api/device/list/").status_code == 401
    assert good(sibling)
    assert good(people.me)


def test_a_token_is_not_made_with_one_that_is_revoked_meanwhile(people: People) -> None:
    """Whichever is first: either the new one is not made, or it is revoked as well."""
    database, now = people.database, people.database.clock.now()
    number = int(make_token(database, ME, "user").split("_")[1])
    held, may_end, begun = threading.Event(), threading.Event(), threading.Event()

    def making() -> None:
        with database.begin() as conn:
            assert token_rows.hold(conn, number, now)
            held.set()
            assert may_end.wait(30)
            tokens.create(conn, {"name": ME, "role": "user", "created": now, "created_by": ME, "parent_id": number})

    def revoking(conn: Connection) -> None:
        token_rows.get(conn, number)  # its view of the table is older than the new token
        begun.set()
        token_rows.revoke(conn, [number], now)

    with ThreadPoolExecutor(2) as threads:
        one = threads.submit(making)
        assert held.wait(30)
        two = threads.submit(database.run, revoking)
        if database.dialect == "mysql":  # with SQLite it does not even begin
            assert begun.wait(30)
        assert not wait([two], 0.5).done
        may_end.set()
        one.result()
        two.result()
    with database.read() as conn:
        revoked = [each.id >= number for each in token_rows.find(conn, name=ME) if each.revoked == now]
    assert revoked == [True, True]
    assert not database.run(lambda conn: token_rows.hold(conn, number, now))


def test_the_last_use_is_noted_once_a_minute(people: People) -> None:
    token = make_token(people.database, "ci", "user")
    number = int(token.split("_")[1])

    def row() -> token_rows.Token:
        with people.database.read() as conn:
            found = token_rows.get(conn, number)
        assert found is not None
        return found

    assert row().last_used is None
    people.get("/api/device/list/", bearer(token))
    first = row()
    assert first.last_used is not None
    assert first.last_address == "127.0.0.1"
    people.get("/api/device/list/", bearer(token))
    assert row().last_used == first.last_used
    before = first.last_used - timedelta(seconds=61)
    table = tables.tokens
    people.database.run(lambda conn: conn.execute(update(table).where(table.c.id == number).values(last_used=before)))
    people.get("/api/device/list/", bearer(token))
    assert (row().last_used or before) > before


def test_in_mode_open_nobody_is_asked(imaging_server: Server) -> None:
    assert GATE not in imaging_server.app.extensions
    said = imaging_server.get("/api/device/list/", headers={"Authorization": "Bearer nonsense"})
    assert said.status_code == 200
    said = imaging_server.get("/api/whoami/").get_json()
    assert (said["kind"], said["name"], said["role"]) == ("open", None, "admin")
    assert imaging_server.post("/api/token/create/", {}).status_code == 400, "whose?"
    made = imaging_server.post("/api/token/create/", {"name": "ci", "role": "admin"}).get_json()["token"]
    assert made["created_by"] == "anybody"
    number = imaging_server.made("device1")
    assert imaging_server.request(number).made_by is None
    assert imaging_server.post("/api/device/any/request/", {"duration": 5, "image": "b2g"}).status_code == 400


# Pages


def test_browsers_are_sent_to_sign_on(people: People) -> None:
    html = {"Accept": "text/html"}
    said = people.get("/devices?state=ready&x=%26", html)
    assert (said.status_code, said.headers["Location"]) == (303, "/login?next=/devices%3Fstate%3Dready%26x%3D%2526")
    assert people.get("/api/device/list/", html).status_code == 401, "the API tells programs"
    assert people.get("/static/nix", html).status_code == 404
    assert people.get("/nix", html).status_code == 404


def test_a_get_that_acts_is_not_accepted_from_a_session(people: People) -> None:
    someone = Principal(Kind.PERSON, Role.ADMIN, ME, session=1)
    gate = people.server.app.extensions[GATE]
    gate.finders = (lambda: someone,)
    for path in ("device/device1/power-off", "device/device1/event/failed", "request/1/event/close"):
        assert people.get(f"/api/{path}/", {}).status_code == 403, path
    assert people.post("/api/device/device1/event/x/", {}).status_code == 200
    assert people.get("/api/device/list/", {}).status_code == 200


def test_finders_are_asked_in_their_order_and_once(people: People) -> None:
    asked: list[str] = []
    device = Principal(Kind.DEVICE, Role.NOBODY, "device1")

    def first() -> None:
        asked.append("first")

    def second() -> Principal:
        asked.append("second")
        return device

    def third() -> Principal:
        raise AssertionError("one has been found")

    gate = Gate(people.server.app.extensions["mozpool.site"], (first, second, third))
    with people.server.app.test_request_context("/api/device/device1/bootconfig/"):
        assert gate.admit() is None
    assert asked == ["first", "second"]
    with people.server.app.test_request_context("/api/device/list/"), pytest.raises(Exception, match="device1 has"):
        gate.admit()


# Holding


def test_a_request_is_its_makers(people: People) -> None:
    number = people.held()
    row = people.server.request(number)
    assert (row.made_by, row.assignee) == (ME, ME)
    body = {"duration": 60, "image": "b2g", "b2gbase": "http://builds/1/"}
    other = people.post("/api/device/device2/request/", people.you, body).get_json()["request"]
    assert other["assignee"] == YOU, "who does not say for whom asks for themselves"
    assert other["made_by"] == YOU
    found = people.get(f"/api/request/list/?made_by={ME}", people.you).get_json()["requests"]
    assert [each["id"] for each in found] == [number]
    for path in ("renew", "return"):
        assert people.post(f"/api/request/{number}/{path}/", people.you, {"duration": 60}).status_code == 403
        assert people.post(f"/api/request/{number}/{path}/", people.me, {"duration": 60}).status_code == 204
    assert people.post("/api/request/99999/return/", people.me).status_code == 403
    assert people.post("/api/request/x/return/", people.me).status_code == 400


def test_equal_calls_of_two_people_are_two_requests(people: People) -> None:
    """Also from one address, and also with the same key."""
    body = {"assignee": "team", "duration": 60, "image": "b2g", "b2gbase": "http://builds/1/"}
    one = people.server.made("any", headers=people.me, **body)
    assert people.server.made("any", headers=people.you, **body) != one
    key = {"Idempotency-Key": "abc"}
    mine, yours = (
        people.server.ask(headers={**who, **key}).get_json()["request"]["id"] for who in (people.me, people.you)
    )
    assert mine != yours
    assert people.server.ask(headers={**people.me, **key}).get_json()["request"]["id"] == mine


HOLDERS = [
    ("POST", "power-cycle", {}),
    ("POST", "power-off", {}),
    ("GET", "power-off", None),
    ("POST", "clear-pxe", {}),
    ("POST", "reboot", {}),
    ("POST", "flash", {"image": "b2g", "b2gbase": "http://builds/2/"}),
    ("POST", "agent/exec", {"command": ["ls"], "timeout": 1}),
    ("POST", "agent/verify", {}),
    ("POST", "return", {}),
]


def test_all_that_holders_may_is_tried_here() -> None:
    named = {name for name, rule in RULES.items() if rule.holder and not name.startswith("mozpool.request_")}
    assert len(named) == len({path for _, path, _ in HOLDERS})


@pytest.mark.parametrize("how", ["revoked", "expired", "returned", "moved on"])
def test_who_has_lost_a_device_is_refused_at_once(people: People, how: str) -> None:
    number = people.held()
    assert people.post("/api/device/device1/clear-pxe/", people.me).status_code == 200
    assert people.post("/api/device/device1/clear-pxe/", people.you).status_code == 403
    assert people.post("/api/device/device1/clear-pxe/", people.operator).status_code == 200
    if how == "revoked":
        body = {"reason": "the board is needed"}
        assert people.post(f"/api/request/{number}/revoke/", people.me, body).status_code == 403
        assert people.post(f"/api/request/{number}/revoke/", people.operator, body).status_code == 204
        assert people.post(f"/api/request/{number}/revoke/", people.operator, body).status_code == 204
        row = people.server.request(number)
        assert (row.state, row.reason) == ("closed", "revoked by op@example.com: the board is needed")
        assert people.server.device().claim_id is None
    elif how == "expired":
        people.expire(number)
        assert people.server.device().claim_id is not None, "its server has not noticed"
    elif how == "returned":
        assert people.post(f"/api/request/{number}/return/", people.me).status_code == 204
    else:
        assert people.post(f"/api/request/{number}/return/", people.me).status_code == 204
        assert people.server.made("device1", headers=people.you) > number
    for method, path, body_ in HOLDERS:
        said = people.server.client.open(f"/api/device/device1/{path}/", method=method, json=body_, headers=people.me)
        assert said.status_code == 403, (method, path, said.text)
    if how in ("revoked", "expired"):
        said = people.post(f"/api/request/{number}/renew/", people.me, {"duration": 60})
        assert said.status_code == 422, "what is lost can't be had back"


def test_a_revoked_device_is_looked_at_at_once(people: People) -> None:
    number = people.held()
    assert people.post(f"/api/request/{number}/revoke/", people.operator).status_code == 204
    # It does not answer pings: as soon as it was looked at, its log says so.
    looked = "check of device1 failed: it does not answer pings"
    people.server.wait_until(lambda: looked in people.log("device1"))
    assert people.post(f"/api/request/{people.held('device2')}/event/revoke/", people.operator).status_code == 200
    assert people.server.device("device2").claim_id is not None, "revoking has a path of its own"


def test_a_request_is_revoked_by_its_server(people: People) -> None:
    number = people.held()
    other = people.server.other_server()
    table = tables.requests
    people.database.run(
        lambda conn: conn.execute(update(table).where(table.c.id == number).values(imaging_server_id=other))
    )
    said = people.post(f"/api/request/{number}/revoke/", people.operator)
    assert (said.status_code, said.headers["Location"]) == (302, f"http://{OTHER}/api/request/{number}/revoke/")


def test_work_that_waits_for_its_turn_is_not_done_for_who_has_lost_the_device(people: People) -> None:
    number = people.held()
    lane = people.server.app.extensions["mozpool.bmm.hardware"].power_lane(people.server.device())
    begun, go_on = threading.Event(), threading.Event()

    def occupy() -> None:
        begun.set()
        go_on.wait(30)

    people.server.daemon.services.hardware.submit(lane, occupy, "occupied")
    assert begun.wait(30)
    assert people.post("/api/device/device1/power-off/", people.me).status_code == 200
    assert people.post("/api/device/device1/power-cycle/", people.me).status_code == 200
    assert people.post(f"/api/request/{number}/revoke/", people.operator).status_code == 204
    go_on.set()
    lost = f"failed: your request {number} does not have device device1 any more"
    people.server.wait_until(lambda: {f"power off {lost}", f"power cycle {lost}"} <= set(people.log("device1")))


def test_a_holders_reboot_goes_by_their_claim(people: People) -> None:
    """Also without naming the request: a message that comes late can't touch the next holder's device."""
    number = people.held()
    said = people.post("/api/device/device1/reboot/", people.me, {"request_id": number + 1})
    assert said.status_code == 409
    assert people.post("/api/device/device1/reboot/", people.me).status_code == 200
    row = people.server.device()
    assert row.operation_claim_id == row.claim_id
    people.server.daemon.logbook.flush()
    assert f"please_power_cycle by {ME}" in people.log("device1")


@pytest.mark.parametrize("how", ["revoke", "expire"])
def test_a_long_command_ends_with_the_claim(people: People, how: str) -> None:
    """The agent takes the command and never answers it."""
    number = people.held()
    chance = random.SystemRandom()
    address = f"127.{chance.randrange(100, 200)}.{chance.randrange(256)}.{chance.randrange(1, 255)}"
    people.server.change(address=address)
    asked = threading.Event()

    def agent(listener: socket.socket) -> None:
        with closing(listener.accept()[0]) as connection:
            connection.sendall(b"$>\x00")
            while b"sleep" not in connection.recv(1000):
                pass
            asked.set()
            while connection.recv(1000):
                pass

    with closing(socket.create_server((address, COMMAND_PORT))) as listener:
        thread = threading.Thread(target=agent, args=(listener,))
        thread.start()
        answers: list[TestResponse] = []

        def call() -> None:
            body = {"command": ["sleep", "100"], "timeout": 100}
            client = people.server.app.test_client()
            answers.append(client.post("/api/device/device1/agent/exec/", json=body, headers=people.me))

        caller = threading.Thread(target=call)
        caller.start()
        assert asked.wait(30)
        if how == "revoke":
            assert people.post(f"/api/request/{number}/revoke/", people.operator).status_code == 204
        else:
            people.expire(number)
        caller.join(30)
        thread.join(30)
    assert not caller.is_alive()
    assert not thread.is_alive(), "the connection was shut down"
    assert answers[0].status_code == 403
    assert answers[0].get_json()["error"]["message"] == f"your request {number} does not have device device1 any more"


# Floods


def test_an_address_that_tries_credentials_out_is_slowed_down(people: People) -> None:
    good = {**people.me, "X": "1"}
    assert people.get("/api/whoami/", good).status_code == 200
    statuses = [people.get("/api/whoami/", bearer(f"mozpool_1_{'x' * 43}")).status_code for _ in range(BURST + 5)]
    assert statuses[:BURST] == [401] * BURST
    assert statuses[-1] == 429
    said = people.get("/api/whoami/", bearer(f"mozpool_1_{'x' * 43}"))
    assert (said.status_code, said.get_json()["error"]["code"]) == (429, "too_many_calls")
    assert 1 <= int(said.headers["Retry-After"]) <= PAUSE
    assert people.get("/api/whoami/", good).status_code == 200, "who was known before is not locked out"
    assert people.get("/api/whoami/", people.you).status_code == 429
    assert people.get("/api/version/", {}).status_code == 200


def test_the_brake_lets_go_with_time() -> None:
    clock = SimClock()
    brake = Brake(clock)
    for _ in range(BURST):
        brake.check("2001:db8::1", "a")
        brake.failed("2001:db8::1", "a")
    with pytest.raises(TooManyCalls):
        brake.check("2001:db8::2", "a")
    brake.check("2001:db8:0:1::2", "a")
    clock.advance(PAUSE)
    brake.check("2001:db8::2", "a")
    brake.failed("2001:db8::2", "a")
    with pytest.raises(TooManyCalls):
        brake.check("2001:db8::1", "a")
    brake.passed("b")
    brake.check("2001:db8::1", "b")


def test_nobody_waits_for_longer_than_all_attempts_take_to_come_back() -> None:
    clock = SimClock()
    brake = Brake(clock)
    for _ in range(1000):
        brake.failed("192.0.2.1", "a")
    clock.advance(PAUSE)
    brake.check("192.0.2.1", "b")


def test_what_was_good_once_is_not_let_through_when_it_no_longer_is() -> None:
    brake = Brake(SimClock())
    brake.passed("was revoked since")
    for _ in range(BURST):
        brake.check("192.0.2.1", "was revoked since")
        brake.failed("192.0.2.1", "was revoked since")
    with pytest.raises(TooManyCalls):
        brake.check("192.0.2.1", "was revoked since")


def test_a_page_whose_session_is_over_locks_nobody_out(people: People) -> None:
    """Nor does a board with the token of another boot."""
    people.server.client.set_cookie("mozpool_session", "over")
    for _ in range(2 * BURST):
        assert people.server.get("/api/device/device1/log/").status_code == 401
    people.server.client.delete_cookie("mozpool_session")
    event = "/api/device/device1/event/mobile_init_started/"
    for _ in range(2 * BURST):
        assert people.get(event, {"Mozpool-Boot-Token": "of another boot"}).status_code in (401, 403)
    assert people.get("/api/whoami/", people.me).status_code == 200


def test_bad_signatures_are_slowed_down_apart_from_tokens(people: People) -> None:
    statuses = [people.get("/api/whoami/", {"Authorization": "Mozpool-Server x y"}).status_code for _ in range(30)]
    assert set(statuses[:BURST]) == {401}
    assert statuses[-1] == 429
    assert people.get("/api/whoami/", people.me).status_code == 200


def test_nobody_joins_the_group_of_somebody_elses_job(people: People) -> None:
    """Who knows its boot config, which everybody can read, still is not of it."""
    boot_config = json.dumps({"project": "a55-perf", "group": "one", "phones": 2})
    for device, headers in (("device1", people.you), ("device2", people.me), ("device3", people.me)):
        people.server.made(device, headers=headers)
        claim = people.server.device(device).claim_id
        people.server.change(device, next_boot_config=boot_config, operation_claim_id=claim, state="job_starting")
    numbers = [people.server.device(device).request_id or 0 for device in ("device1", "device3")]
    with people.database.read() as conn:
        first, second = (hosted_jobs.members(conn, boot_config, number) for number in numbers)
    assert [member.device for member in first] == ["device1"]
    assert [member.device for member in second] == ["device2", "device3"]
    people.server.undocumented.clear()


def test_answers_that_need_a_role_are_kept_by_nobody_else(people: People) -> None:
    for path in ("/api/device/device1/state/?cache=1", "/api/pool/history/"):
        assert "private" in people.get(path, people.me).headers["Cache-Control"]
        assert "public" not in people.get(path, people.me).headers["Cache-Control"]


# Logs


def test_logs_say_who_called_and_no_secret(people: People, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        people.get("/api/device/list/", people.me)
        people.get("/api/device/list/", bearer("mozpool_1_" + "s" * 43))
    text = caplog.text
    assert f"127.0.0.1 {ME} GET /api/device/list/ 200" in text
    assert "s" * 43 not in text
    assert people.me["Authorization"].split("_", 2)[2] not in text
