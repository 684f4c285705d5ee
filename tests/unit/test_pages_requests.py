# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The pages of requests as the server writes them, and what they ask the API for."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import insert

from mozpool.db import tables
from mozpool.web.pages.base import ME, span
from tests.app_fixtures import OWN, Server, server


def ids(page: str) -> list[int]:
    """The requests that a list shows, in its order."""
    return [int(number) for number in re.findall(r'<tr id="request-(\d+)"', page)]


# --- How many match ---


def match(site: Server, query: str = "") -> tuple[int, int]:
    said = site.get(f"/api/request/match/?{query}")
    assert said.status_code == 200, said.text
    return said.get_json()["matching"], said.get_json()["free"]


def test_what_matches_is_counted_as_a_request_would_find_it(imaging_server: Server) -> None:
    assert match(imaging_server) == (3, 3)
    imaging_server.made("device1")
    imaging_server.change("device2", state="failed_pxe_booting", environment="lab")
    assert match(imaging_server) == (3, 1)
    assert match(imaging_server, "image=b2g") == (3, 1)
    assert match(imaging_server, "environment=lab") == (1, 0)
    assert match(imaging_server, "device=device3") == (1, 1)
    imaging_server.post("/api/device/device3/set-labels/", {"labels": {"screen": "4.3"}})
    assert match(imaging_server, "label=screen=4.3") == (1, 1)
    assert match(imaging_server, "label=screen=4.3&label=os=x") == (0, 0)
    assert match(imaging_server, "hardware_type=toaster") == (0, 0)


@pytest.mark.parametrize(
    "query, reason",
    [
        ("device=device1", "device1 is taken by me@example.com until"),
        ("device=device2", "device2 has failed"),
        ("device=nothing", "there is no device nothing"),
        ("environment=nowhere", "environment nowhere has no devices"),
        ("label=screen=9", "there is no device with screen=9"),
    ],
)
def test_why_nothing_is_free_is_told_in_words(imaging_server: Server, query: str, reason: str) -> None:
    imaging_server.made("device1")
    imaging_server.change("device2", state="failed_pxe_booting")
    assert imaging_server.get("/api/request/match/?device=device3").get_json()["reason"] is None
    assert reason in imaging_server.get(f"/api/request/match/?{query}").get_json()["reason"]


def test_an_image_that_fits_no_hardware_leaves_its_devices_out(imaging_server: Server) -> None:
    values = {"type": "toaster", "model": "t1"}
    imaging_server.daemon.database.run(lambda conn: conn.execute(insert(tables.hardware_types), values))
    toaster = imaging_server.daemon.database.run(
        lambda conn: conn.scalar(
            tables.hardware_types.select()
            .with_only_columns(tables.hardware_types.c.id)
            .where(tables.hardware_types.c.type == "toaster")
        )
    )
    imaging_server.change("device1", hardware_type_id=toaster)
    assert match(imaging_server) == (3, 3)
    assert match(imaging_server, "image=b2g") == (2, 2)


@pytest.mark.parametrize(
    "query, status", [("image=nothing", 404), ("label=nothing", 400), ("label=a=1&label=a=2", 400), ("device=", 400)]
)
def test_what_cannot_be_asked_for_is_refused(imaging_server: Server, query: str, status: int) -> None:
    assert imaging_server.get(f"/api/request/match/?{query}").status_code == status


# --- The list ---


def test_the_newest_come_first_and_those_of_others_only_when_wanted(imaging_server: Server) -> None:
    first = imaging_server.made("device1", assignee="ada@example.com")
    second = imaging_server.made("device1", assignee="eve@example.com", wait=600)
    assert ids(imaging_server.get("/requests").text) == [second, first]
    imaging_server.client.set_cookie(ME, "ada%40example.com")
    assert ids(imaging_server.get("/requests").text) == [first]
    assert ids(imaging_server.get("/requests?whose=all").text) == [second, first]


def test_mine_is_nobodys_as_long_as_nobody_says_who_it_is(imaging_server: Server) -> None:
    imaging_server.made("device1")
    page = imaging_server.get("/requests?whose=mine").text
    assert ids(page) == []
    assert "Nobody knows who you are" in page


def test_closed_ones_are_shown_when_asked_for_with_the_device_that_they_had(imaging_server: Server) -> None:
    number = imaging_server.made("device1")
    imaging_server.post(f"/api/request/{number}/return/")
    assert ids(imaging_server.get("/requests").text) == []
    page = imaging_server.get("/requests?closed=1").text
    assert ids(page) == [number]
    assert "/devices/device1" in page
    assert ids(imaging_server.get("/requests?closed=1&search=device1").text) == [number]


def test_a_closed_request_is_found_by_the_device_that_it_had(imaging_server: Server) -> None:
    number = imaging_server.made()
    device = imaging_server.request(number).device
    imaging_server.post(f"/api/request/{number}/return/")
    assert ids(imaging_server.get(f"/requests?closed=1&search={device}").text) == [number]
    assert ids(imaging_server.get("/requests?closed=1&search=device99").text) == []


@pytest.mark.parametrize(
    "query", ["search=eve", "search=device2", "state=finding_device", "environment=any&search=EVE"]
)
def test_it_is_searched_and_filtered(imaging_server: Server, query: str) -> None:
    imaging_server.made("device1", assignee="ada@example.com", environment="production")
    imaging_server.made("device2", assignee="ada@example.com", environment="production")
    imaging_server.post("/api/request/2/return/")
    imaging_server.change("device2", state="free_power_cycling")
    wanted = imaging_server.made("device2", assignee="eve@example.com", wait=600)
    assert ids(imaging_server.get(f"/requests?{query}").text) == [wanted]
    assert ids(imaging_server.get(f"/requests?search={wanted}").text) == [wanted]


def test_a_long_list_has_pages(sqlite_url: str, tmp_path: Path) -> None:
    with server(sqlite_url, tmp_path, count=1) as site:
        for _ in range(53):
            site.made("device1", wait=600)
        first, second = site.get("/requests").text, site.get("/requests?page=2").text
        assert ids(first) == list(range(53, 3, -1))
        assert ids(second) == [3, 2, 1]
        assert "page=2" in first
        assert "Newer" in second
        assert ids(site.get("/requests?page=3").text) == [3, 2, 1]


@pytest.mark.parametrize(
    "query", ["page=0", "page=-1", "page=x", "whose=%00", "state=%27", "search=%25", "page=9999999999"]
)
def test_nonsense_in_the_address_is_no_error(imaging_server: Server, query: str) -> None:
    assert imaging_server.get(f"/requests?{query}").status_code == 200


# --- One of them ---


def test_the_page_of_a_request_tells_how_far_it_is_and_what_it_has(imaging_server: Server) -> None:
    number = imaging_server.made("device1", labels={}, priority=3)
    page = imaging_server.get(f"/requests/{number}").text
    for part in ("me@example.com", "device1", "http://builds/1/", OWN, 'aria-current="step"', "finding_device"):
        assert part in page, part


def test_a_request_that_waits_says_why_and_where_it_stands(imaging_server: Server) -> None:
    imaging_server.made("device1")
    number = imaging_server.made("device1", wait=600)
    page = imaging_server.get(f"/requests/{number}").text
    assert "device1 is taken by me@example.com" in page
    assert "Place 1 in the queue" in page


@pytest.mark.parametrize("number, status", [("77", 404), ("x", 400), ("0", 404), ("9" * 30, 404)])
def test_there_is_no_such_request(imaging_server: Server, number: str, status: int) -> None:
    said = imaging_server.get(f"/requests/{number}", headers={"Accept": "text/html"})
    assert said.status_code == status
    assert "Back to the overview" in said.text


def test_the_way_of_a_device_is_told_with_its_agent(imaging_server: Server) -> None:
    number = imaging_server.made("device1", image="android")
    imaging_server.change("device1", state="unheard_of")
    imaging_server.post("/api/device/device1/state-change/unheard_of/to/pxe_booting/")
    page = imaging_server.get(f"/requests/{number}").text
    assert "pxe_booting" in page.partition("States that it was in")[2]
    imaging_server.post(f"/api/request/{number}/return/")
    page = imaging_server.get(f"/requests/{number}").text
    assert "returned" in page.partition("Devices that it had")[2]


def test_an_unchanged_page_is_not_sent_again(imaging_server: Server) -> None:
    number = imaging_server.made("device1")
    part = imaging_server.get(f"/requests/{number}", headers={"Mozpool-Part": "1"})
    headers = {"Mozpool-Part": "1", "If-None-Match": part.headers["ETag"]}
    assert imaging_server.get(f"/requests/{number}", headers=headers).status_code == 304
    imaging_server.post(f"/api/request/{number}/renew/", {"duration": 7200})
    assert imaging_server.get(f"/requests/{number}", headers=headers).status_code == 200


def test_every_device_that_was_tried_is_told_with_why_it_was_given_up(imaging_server: Server) -> None:
    number = imaging_server.made("device1")
    begun = imaging_server.request(number).created
    assert begun is not None
    values = {
        "request_id": number,
        "device_id": imaging_server.device("device2").id,
        "claimed_at": begun,
        "released_at": begun + timedelta(minutes=7),
        "imaging_result": "failed-bad-device",
        "reason": "it failed while it was prepared",
    }
    imaging_server.daemon.database.run(lambda conn: conn.execute(insert(tables.claim_history), values))
    page = imaging_server.get(f"/requests/{number}").text.partition("Devices that it had")[2]
    for part in ("/devices/device2", "7 min", "it failed while it was prepared", "/devices/device1", "it has it"):
        assert part in page, part


def test_a_server_that_is_away_is_told_of(imaging_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    number = imaging_server.made("device1")
    monkeypatch.setattr(imaging_server.daemon.presence, "state_of", lambda server_id: "lost")
    assert f"Its imaging server {OWN} is lost" in imaging_server.get(f"/requests/{number}").text


def test_a_failed_request_is_taken_off_the_list(imaging_server: Server) -> None:
    number = imaging_server.made(environment="nowhere", wait=0)
    assert "Take off the list" in imaging_server.get(f"/requests/{number}").text
    assert ids(imaging_server.get("/requests").text) == [number]
    imaging_server.post(f"/api/request/{number}/return/")
    assert "Take off the list" not in imaging_server.get(f"/requests/{number}").text
    assert ids(imaging_server.get("/requests").text) == []


# --- A new one ---


def test_the_form_offers_what_can_be_asked_for_and_is_filled_in(imaging_server: Server) -> None:
    page = imaging_server.get("/requests/new?device=device2&image=b2g").text
    assert 'value="device2"' in page
    assert "<option selected>b2g</option>" in page
    assert 'name="b2gbase"' in page
    assert "self-test" not in page


# --- Diagrams ---


@pytest.mark.parametrize("name", ["device", "request"])
def test_a_machine_is_told_for_its_diagram(imaging_server: Server, name: str) -> None:
    said = imaging_server.get(f"/machines/{name}.json")
    machine = said.get_json()
    states = {state["name"] for state in machine["states"]}
    assert "ready" in states
    assert all(state["meaning"] and state["theme"] for state in machine["states"])
    assert machine["edges"]
    for edge in machine["edges"]:
        assert {edge["from"], edge["to"]} <= states
        assert edge["events"]
    assert said.cache_control.max_age


def test_there_are_no_other_machines(imaging_server: Server) -> None:
    assert imaging_server.get("/machines/washing.json").status_code == 404


# --- Words ---


@pytest.mark.parametrize(
    "seconds, text",
    [
        (0, "0 s"),
        (59.9, "59 s"),
        (60, "1 min"),
        (3599, "59 min"),
        (3600, "1 h"),
        (11100, "3 h 5 min"),
        (187200, "2 d 4 h"),
    ],
)
def test_durations_are_told_in_two_units_at_most(seconds: float, text: str) -> None:
    assert span(timedelta(seconds=seconds)) == text
