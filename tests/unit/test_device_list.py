# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The list of all devices: what it is made of anew when, and what a program that asks again is told."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, insert, update

from mozpool.db import inventory, servers, stamps, tables
from mozpool.pool import devicelist
from mozpool.pool.api import LIST as LISTS
from tests.app_fixtures import Server
from tests.integration.mozpool_site import eventually

LIST = "/api/device/list/?details=1"


def asked(server: Server, query: str = "", etag: str | None = None) -> tuple[int, str, Any]:
    """Status, ETag and devices of an answer."""
    headers = {} if etag is None else {"If-None-Match": f'"{etag}"'}
    said = server.get(LIST + query, headers=headers)
    assert said.headers["Cache-Control"] == "no-cache, private"
    tag = said.get_etag()[0]
    assert tag is not None
    return said.status_code, tag, None if said.status_code == 304 else said.get_json()["devices"]


def test_a_list_that_is_the_same_is_not_sent_again(imaging_server: Server) -> None:
    status, etag, devices = asked(imaging_server)
    assert (status, len(devices)) == (200, 3)
    assert asked(imaging_server) == (200, etag, devices)
    assert asked(imaging_server, etag=etag) == (304, etag, None)
    assert asked(imaging_server, etag="another") == (200, etag, devices)


def image(server: Server) -> None:
    server.daemon.database.run(
        lambda conn: conn.execute(update(tables.images).where(tables.images.c.id == 1).values(name="renamed"))
    )


def hardware(server: Server) -> None:
    server.daemon.database.run(lambda conn: conn.execute(update(tables.hardware_types).values(model="renamed")))


def away(server: Server) -> None:
    other, now = server.other_server(), server.daemon.clock.now()
    server.move("device3", other)
    said = servers.Presence(other, 1, True, "5.1", now, now, 32, 0, None, None)
    server.daemon.database.run(lambda conn: servers.say_here(conn, said))
    server.daemon.presence.beat()


def labels(server: Server) -> None:
    assert server.post("/api/device/device1/set-labels/", {"labels": {"rack": "7"}}).status_code < 300


CHANGES: dict[str, Callable[[Server], object]] = {
    "state": lambda server: server.daemon.devices.force(1, "locked_out"),
    "comments": lambda server: server.post("/api/device/device1/set-comments/", {"comments": "flickers"}),
    "labels": labels,
    "holder": lambda server: server.made("device2"),
    "image": image,
    "hardware type": hardware,
    "server": away,
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_it_shows_changes_it(imaging_server: Server, change: str) -> None:
    imaging_server.change("device1", image_id=1)
    _, etag, devices = asked(imaging_server)
    CHANGES[change](imaging_server)
    status, now, after = asked(imaging_server, etag=etag)
    assert (status, now != etag, after != devices) == (200, True, True)
    assert after == devicelist_anew(imaging_server)


def test_a_renewed_request_changes_it(imaging_server: Server) -> None:
    number = imaging_server.made("device1")
    _, etag, devices = asked(imaging_server)
    assert imaging_server.post(f"/api/request/{number}/renew/", {"duration": 7000}).status_code == 204
    _, _, after = asked(imaging_server, etag=etag)
    assert after[0]["expires"] != devices[0]["expires"]


def add_far(server: Server) -> None:
    """A device of another block."""
    row = {"name": "far", "fqdn": "far", "inventory_id": 9, "state": "locked_out", "state_counters": "{}"}
    more = {"id": 7 * stamps.BLOCK + 1, "mac_address": "0" * 12, "imaging_server_id": server.daemon.server_id}
    server.daemon.database.run(lambda conn: conn.execute(insert(tables.devices).values(**row, **more)))


def test_a_device_that_comes_or_goes_changes_it(imaging_server: Server) -> None:
    _, etag, devices = asked(imaging_server)
    add_far(imaging_server)
    _, etag_more, more = asked(imaging_server, etag=etag)
    assert [row["name"] for row in more] == ["device1", "device2", "device3", "far"]
    gone = tables.devices.delete().where(tables.devices.c.name == "far")
    imaging_server.daemon.database.run(lambda conn: conn.execute(gone))
    _, etag_less, less = asked(imaging_server, etag=etag_more)
    assert (less, etag_less) == (devices, etag)


def test_a_device_that_still_is_ready_changes_nothing(imaging_server: Server) -> None:
    now = imaging_server.daemon.clock.now()
    imaging_server.change("device1", state_since=now - timedelta(hours=1))
    _, etag, _ = asked(imaging_server)
    before = imaging_server.device().version
    outcome = imaging_server.daemon.devices.handle(imaging_server.device().id, "timeout")
    assert (outcome.status, outcome.state) == ("moved", "ready")
    assert imaging_server.device().version > before
    assert asked(imaging_server, etag=etag)[0] == 304


def test_only_what_has_changed_is_made_anew(imaging_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    add_far(imaging_server)
    asked(imaging_server)
    made: list[list[str]] = []
    real = devicelist.device_items

    def watched(conn: Any, rows: Any, *more: Any) -> Any:
        made.append([row.name for row in rows])
        return real(conn, rows, *more)

    monkeypatch.setattr(devicelist, "device_items", watched)
    imaging_server.change("far", comments="flickers")
    assert asked(imaging_server)[2][3]["comments"] == "flickers"
    assert made == [["far"]]


def test_a_cached_list_may_be_a_second_old_and_no_more(imaging_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    moment = [1000.0]
    monkeypatch.setattr(imaging_server.daemon.clock, "monotonic", lambda: moment[0])
    _, etag, _ = asked(imaging_server)
    imaging_server.change("device1", comments="flickers")
    moment[0] += 0.9
    assert asked(imaging_server, "&cache=1")[1] == etag
    moment[0] += 0.2
    assert asked(imaging_server, "&cache=1")[2][0]["comments"] == "flickers"
    imaging_server.change("device1", comments="no more")
    assert asked(imaging_server)[2][0]["comments"] == "no more"


def test_who_waits_for_another_ones_look_shares_the_next_one(
    imaging_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    lists = imaging_server.app.extensions[LISTS]
    looks, go_on = [], threading.Event()
    real = stamps.device_blocks

    def slow(conn: Any) -> Any:
        looks.append(1)
        assert go_on.wait(30)
        return real(conn)

    monkeypatch.setattr(stamps, "device_blocks", slow)
    called, counted = time.monotonic, itertools.count(1)
    times = [0]

    def monotonic() -> float:
        if threading.current_thread().name.startswith("caller"):
            times[0] = next(counted)
        return called()

    def get() -> devicelist.DeviceList:
        with imaging_server.app.app_context():
            return lists.get(cached=False)

    monkeypatch.setattr(imaging_server.daemon.clock, "monotonic", monotonic)
    with ThreadPoolExecutor(6, "caller") as workers:
        first = workers.submit(get)
        assert eventually(lambda: bool(looks))
        before = times[0]
        others = [workers.submit(get) for _ in range(5)]
        assert eventually(lambda: times[0] >= before + 5)
        go_on.set()
        assert {each.result(30).etag for each in [first, *others]} == {first.result().etag}
    assert len(looks) == 2


def test_a_device_in_place_of_another_new_one_is_seen(imaging_server: Server) -> None:
    """A wrong entry of the inventory, which is replaced before anything was done with it."""

    def add(conn: Connection, number: int) -> dict[int, int]:
        name = f"host{number}.example.com"
        row = {"name": name, "fqdn": name, "inventory_id": number, "mac_address": f"{number:012}"}
        return inventory.add(
            conn, random.Random(number), [{**row, "imaging_server_id": imaging_server.daemon.server_id}]
        )

    database = imaging_server.daemon.database
    wrong = database.run(lambda conn: add(conn, 900))
    _, etag, before = asked(imaging_server)
    assert before[-1]["name"] == "host900.example.com"

    def replace(conn: Connection) -> None:
        inventory.remove(conn, list(wrong.values()))
        add(conn, 901)

    database.run(replace)
    status, _, after = asked(imaging_server, etag=etag)
    assert (status, after) == (200, devicelist_anew(imaging_server))
    assert after[-1]["name"] == "host901.example.com"


def test_a_proxy_may_have_made_its_tag_a_weak_one(imaging_server: Server) -> None:
    """As those do that compress (RFC 9110, 8.8.3.2 and 13.1.2)."""
    etag = asked(imaging_server)[1]
    assert imaging_server.get(LIST, headers={"If-None-Match": f'W/"{etag}"'}).status_code == 304


def test_a_server_that_is_away_for_a_moment_is_not_shown_so_for_ever(
    imaging_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = imaging_server.other_server()
    imaging_server.move("device3", other)
    asked(imaging_server)
    imaging_server.change("device1", comments="something new")
    presence, make = imaging_server.daemon.presence, devicelist.device_items

    def goes_and_comes(*arguments: Any) -> list[dict[str, Any]]:
        monkeypatch.setattr(presence, "_away", {other: "away"})
        try:
            return make(*arguments)
        finally:
            monkeypatch.setattr(presence, "_away", {})

    with monkeypatch.context() as patched:
        patched.setattr(devicelist, "device_items", goes_and_comes)
        asked(imaging_server)
    assert [device["owner_state"] for device in asked(imaging_server)[2]] == ["up"] * 3


def devicelist_anew(server: Server) -> Any:
    """The list as it is made of nothing."""
    pages = server.get(LIST + "&limit=1000").get_json()
    return pages["devices"]
