# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Teams: what their people may have at a time, for how long, and of which environments."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection

from mozpool.daemon import Daemon
from mozpool.db import requests, tables, teams
from mozpool.db.claims import ClaimLost
from mozpool.db.devices import FreeSearch
from mozpool.db.teams import Team
from mozpool.pool.service import NewRequest
from tests.access_support import bearer, make_team, make_token
from tests.app_fixtures import Server, server

BODY = {"duration": 3600, "image": "b2g", "b2gbase": "http://builds/1/"}


@pytest.fixture
def guarded(database_url: str, tmp_path: Path) -> Iterator[Server]:
    with server(database_url, tmp_path, count=6, auth={"mode": "token"}) as made:
        yield made


def member(made: Server, team: str, **limits: Any) -> dict[str, str]:
    """The headers of somebody in a new team."""
    number = make_team(made.daemon.database, team, **limits)
    return bearer(make_token(made.daemon.database, f"somebody@{team}", "user", team_id=number))


def admin(made: Server) -> dict[str, str]:
    return bearer(make_token(made.daemon.database, "root@example.com", "admin"))


def held(made: Server, team: str) -> int:
    with made.daemon.database.read() as conn:
        found = teams.by_name(conn, team)
        assert found is not None
        return teams.held(conn, found.id)


def test_a_team_is_made_changed_and_deleted(guarded: Server) -> None:
    root = admin(guarded)
    body = {"name": "web", "max_devices": 2, "max_duration": 7200, "environments": ["staging"], "groups": ["g1"]}
    made = guarded.post("/api/team/create/", body, headers=root).get_json()["team"]
    assert made == {**body, "id": made["id"], "devices": 0}
    assert guarded.post("/api/team/create/", body, headers=root).status_code == 409
    assert guarded.post("/api/team/create/", {"name": "x", "environments": []}, headers=root).status_code == 400
    assert guarded.post("/api/team/create/", {"name": "x", "max_devices": -1}, headers=root).status_code == 400
    change = {"max_devices": 0, "without": ["environments"], "groups": []}
    changed = guarded.post("/api/team/web/change/", change, headers=root).get_json()["team"]
    assert changed == {**made, "max_devices": 0, "environments": None, "groups": []}
    assert guarded.post("/api/team/web/change/", {}, headers=root).get_json()["team"] == changed
    twice = {"max_devices": 1, "without": ["max_devices"]}
    assert guarded.post("/api/team/web/change/", twice, headers=root).status_code == 400
    assert guarded.post("/api/team/nix/change/", {}, headers=root).status_code == 404
    assert guarded.get("/api/team/list/", headers=root).get_json() == {"teams": [changed]}
    token = guarded.post("/api/token/create/", {"name": "ci", "team": "web"}, headers=root).get_json()["token"]
    assert guarded.post("/api/team/web/delete/", headers=root).status_code == 409
    guarded.post(f"/api/token/{token['id']}/revoke/", headers=root)
    assert guarded.post("/api/team/web/delete/", headers=root).status_code == 204
    assert guarded.get("/api/team/list/", headers=root).get_json() == {"teams": []}


def test_whoever_is_over_their_quota_waits_and_holds_nobody_up(guarded: Server) -> None:
    mine = member(guarded, "web", max_devices=2)
    others = member(guarded, "other")
    first = [guarded.made(headers=mine) for _ in range(2)]
    third = guarded.made(headers=mine)
    assert held(guarded, "web") == 2
    said = guarded.get(f"/api/request/{third}/details/", headers=mine).get_json()
    assert (said["state"], said["reason"]) == (
        "finding_device",
        "team web has all the devices that it may have at a time: 2",
    )
    listed = guarded.get("/api/request/list/", headers=mine).get_json()["requests"]
    assert next(each["reason"] for each in listed if each["id"] == third) == said["reason"]
    behind = guarded.made(headers=others)
    assert guarded.request(behind).claim_id is not None
    named = guarded.ask("device6", headers=mine)
    assert named.status_code == 409
    assert "may have at a time" in named.get_json()["error"]["message"]
    guarded.post(f"/api/request/{first[0]}/return/", headers=mine)
    guarded.wait_until(lambda: guarded.request(third).claim_id is not None)
    assert held(guarded, "web") == 2


def test_a_larger_quota_is_used_at_once(guarded: Server) -> None:
    mine = member(guarded, "web", max_devices=0)
    waits = guarded.made(headers=mine)
    assert guarded.request(waits).claim_id is None
    guarded.post("/api/team/web/change/", {"max_devices": 1}, headers=admin(guarded))
    guarded.daemon.clock.sleep(1.1)  # so long a team is believed to be as it was
    guarded.daemon.mozpool.matcher.wake()
    guarded.wait_until(lambda: guarded.request(waits).claim_id is not None)


def test_a_long_queue_of_a_team_that_has_all_it_may_is_not_read_through(guarded: Server) -> None:
    """However many wait, a matching reads some of them, and those behind them get their devices."""
    mine = member(guarded, "web", max_devices=1)
    guarded.made(headers=mine)
    with guarded.daemon.database.read() as conn:
        team = teams.by_name(conn, "web")
    for number in range(70):
        new = NewRequest("any", "x", 3600, "b2g", boot_config=BODY, wait=600, team=team, made_by=f"m{number}")
        with guarded.daemon.database.read() as conn:
            values = guarded.daemon.mozpool._values(conn, new)
        guarded.daemon.database.run(lambda conn, values=values: guarded.daemon.mozpool._store(conn, values))  # type: ignore[misc]
    read = []
    find = requests.first_in_queue

    def counted(*args: Any, **options: Any) -> list[Any]:
        found = find(*args, **options)
        read.extend(found)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(requests, "first_in_queue", counted)
        behind = guarded.made(headers=member(guarded, "other"))
    assert guarded.request(behind).claim_id is not None
    assert len(read) < 200
    assert held(guarded, "web") == 1


def test_the_longest_duration_counts_from_the_request(guarded: Server) -> None:
    mine = member(guarded, "web", max_duration=3600)
    said = guarded.ask(duration=3601, headers=mine)
    assert (said.status_code, said.get_json()["error"]["field"]) == (403, "duration")
    number = guarded.made(duration=3600, headers=mine)
    assert guarded.post(f"/api/request/{number}/renew/", {"duration": 3000}, headers=mine).status_code == 204
    earlier = guarded.daemon.clock.now() - timedelta(seconds=1800)
    made_earlier = tables.requests.update().where(tables.requests.c.id == number).values(created=earlier)
    guarded.daemon.database.run(lambda conn: conn.execute(made_earlier))
    assert guarded.post(f"/api/request/{number}/renew/", {"duration": 3000}, headers=mine).status_code == 403
    assert guarded.post(f"/api/request/{number}/renew/", {"duration": 60}, headers=mine).status_code == 204
    longer = guarded.post(f"/api/request/{number}/renew/", {"duration": 9000}, headers=admin(guarded))
    assert longer.status_code == 204, "operators may let somebody have it longer"


def test_the_longest_duration_is_that_of_the_requests_team(guarded: Server) -> None:
    """Whichever team their maker is in when they renew it."""
    database = guarded.daemon.database
    mine = member(guarded, "web", max_duration=3600)
    number = guarded.made(duration=3600, headers=mine)
    outside = bearer(make_token(database, "somebody@web", "user"))
    wide = make_team(database, "wide", max_duration=90000)
    elsewhere = bearer(make_token(database, "somebody@web", "user", team_id=wide))

    def renewed(number: int, seconds: int, headers: dict[str, str]) -> int:
        return guarded.post(f"/api/request/{number}/renew/", {"duration": seconds}, headers=headers).status_code

    for headers in (outside, elsewhere):
        assert renewed(number, 3700, headers) == 403
        assert renewed(number, 3000, headers) == 204
    free = guarded.made(duration=3600, headers=outside)
    assert renewed(free, 9000, mine) == 204, "a request without a team has no such limit"
    gone = tables.requests.update().where(tables.requests.c.id == number).values(team_id=wide + 1)
    database.run(lambda conn: conn.execute(gone))
    assert renewed(number, 60, outside) == 403


def test_a_team_gets_devices_of_its_environments_alone(guarded: Server) -> None:
    for number in range(1, 7):
        guarded.change(f"device{number}", environment="lab" if number < 5 else "staging")
    mine = member(guarded, "web", environments=["staging", "other"])
    said = guarded.ask(environment="lab", headers=mine)
    assert (said.status_code, said.get_json()["error"]["field"]) == (403, "environment")
    said = guarded.ask("device1", headers=mine)
    assert (said.status_code, said.get_json()["error"]["field"]) == (403, "device")
    match = guarded.get("/api/request/match/?image=b2g", headers=mine).get_json()
    assert (match["matching"], match["free"]) == (2, 2)
    got = {guarded.request(guarded.made(headers=mine)).device for _ in range(2)}
    assert got == {"device5", "device6"}
    waits = guarded.made(headers=mine)
    said = guarded.get(f"/api/request/{waits}/details/", headers=mine).get_json()
    assert said["state"] == "finding_device"
    assert said["reason"].startswith("2 matching devices: 2 taken")
    assert guarded.request(guarded.made(headers=member(guarded, "all"))).claim_id is not None
    guarded.post("/api/team/web/change/", {"environments": ["lab"]}, headers=admin(guarded))
    guarded.daemon.clock.sleep(1.1)
    guarded.daemon.mozpool.matcher.wake()
    guarded.wait_until(lambda: guarded.request(waits).claim_id is not None)
    with guarded.daemon.database.read() as conn:
        row = requests.get(conn, waits)
        team = teams.by_name(conn, "web")
    assert row is not None
    assert team is not None
    assert row.environment == "any"


def test_the_claim_itself_counts(guarded: Server) -> None:
    """Whatever was planned."""
    mine = member(guarded, "web", max_devices=1)
    guarded.made(headers=mine)
    waits = guarded.made(headers=mine)
    with guarded.daemon.database.read() as conn:
        free = FreeSearch([]).find(conn, start=0, limit=1)[0]
    with pytest.raises(ClaimLost):
        guarded.daemon.mozpool.driver.handle(waits, "device_found", {"device": free})
    assert guarded.request(waits).claim_id is None
    assert guarded.device(free.name).claim_id is None


def test_a_team_that_is_gone_has_no_room(guarded: Server) -> None:
    def room(team_id: int) -> bool:
        return guarded.daemon.database.run(lambda conn: teams.has_room(conn, team_id))

    number = make_team(guarded.daemon.database, "web", max_devices=1)
    unlimited = make_team(guarded.daemon.database, "all")
    assert room(number)
    assert room(unlimited)
    for team_id in (number, unlimited):
        guarded.daemon.database.run(partial(teams.remove, team_id=team_id))
        assert not room(team_id)


def test_a_request_whose_team_is_gone_gets_no_device(guarded: Server) -> None:
    mine = member(guarded, "web", max_devices=0)
    waits = guarded.made(headers=mine)
    team_id = guarded.request(waits).team_id
    assert team_id is not None
    guarded.daemon.database.run(lambda conn: teams.remove(conn, team_id))
    guarded.daemon.clock.sleep(1.1)
    guarded.daemon.mozpool.matcher.wake()
    after = guarded.made(headers=admin(guarded))
    guarded.wait_until(lambda: guarded.request(after).claim_id is not None)
    row = guarded.request(waits)
    assert row.claim_id is None
    assert guarded.daemon.mozpool.reasons([row]) == {waits: "its team was deleted"}


# Several servers


@contextmanager
def second(first: Server) -> Iterator[Daemon]:
    """Another imaging server on the same database."""
    settings = first.daemon.settings
    settings = replace(settings, server=replace(settings.server, fqdn="server-9.example.com"))
    daemon = Daemon(settings, rng=random.Random(2))
    try:
        yield daemon
    finally:
        daemon.stop()


@pytest.mark.parametrize("most", [1, 3])
def test_no_team_gets_more_than_its_quota_on_whatever_servers(database_url: str, tmp_path: Path, most: int) -> None:
    """Two servers make claims for the same team at the same time, while devices are given back, too."""
    with server(database_url, tmp_path, count=12, auth={"mode": "token"}) as made, second(made) as other:
        database = made.daemon.database
        number = make_team(database, "web", max_devices=most)
        team = Team(number, "web", max_devices=most)
        too_many: list[int] = []
        done = threading.Event()

        def watch() -> None:
            while not done.is_set():
                with database.read() as conn:
                    found = teams.held(conn, number)
                if found > most:
                    too_many.append(found)

        def ask(index: int) -> None:
            daemon = (made.daemon, other)[index % 2]
            new = NewRequest("any", "x", 3600, "b2g", boot_config=BODY, wait=600, team=team, made_by=f"m{index}")
            row = daemon.mozpool.create(new)
            if row.claim_id is not None and index % 3 == 0:
                daemon.mozpool.give_back(row.id)

        watcher = threading.Thread(target=watch)
        watcher.start()
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(ask, range(32)))

        def matched() -> bool:
            with database.read() as conn:
                return teams.held(conn, number) == most

        made.wait_until(matched, 30)
        done.set()
        watcher.join()
        assert too_many == []


def test_claims_of_a_team_take_turns(database_url: str, tmp_path: Path) -> None:
    """The second one counts the device of the first, although that is not committed when it begins."""
    with server(database_url, tmp_path, auth={"mode": "token"}) as made:
        database = made.daemon.database
        number = make_team(database, "web", max_devices=1)
        waits = made.made(headers=bearer(make_token(database, "x", "user")), assignee="x")
        team_of = tables.requests.update().where(tables.requests.c.id == waits).values(team_id=number)
        counted, may_end, begun = threading.Event(), threading.Event(), threading.Event()

        def first() -> None:
            with database.begin() as conn:
                assert teams.has_room(conn, number)
                conn.execute(team_of)  # its request has a device: now the team has one
                counted.set()
                assert may_end.wait(30)

        def second_one(conn: Connection) -> bool:
            begun.set()
            return teams.has_room(conn, number)

        with ThreadPoolExecutor(2) as threads:
            one = threads.submit(first)
            assert counted.wait(30)
            two = threads.submit(database.run, second_one)
            if database.dialect == "mysql":  # with SQLite it does not even begin
                assert begun.wait(30)
            assert not wait([two], 1.0).done, "it waits for the first"
            may_end.set()
            one.result()
            assert two.result() is False
