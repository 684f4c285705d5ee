# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The page of a device, and what it needs of the API."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import insert

from mozpool.db import history, relay_boards, tables
from mozpool.web.pages.base import PART
from tests.app_fixtures import OTHER, Server, server

BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


@pytest.fixture
def site(sqlite_url: str, tmp_path: Path) -> Iterator[Server]:
    """A server on SQLite."""
    with server(sqlite_url, tmp_path) as made:
        yield made


def page(site: Server, path: str = "/devices/device1") -> str:
    answer = site.get(path, headers=BROWSER)
    assert answer.status_code == 200, answer.text
    return answer.text


def test_a_device_has_a_page_under_its_name_and_its_id_leads_there(site: Server) -> None:
    text = page(site)
    assert "<title>device1 · Mozpool</title>" in text
    assert "The device was proven to work." in text
    answer = site.get(f"/devices/{site.device().id}", headers=BROWSER)
    assert (answer.status_code, answer.headers["Location"]) == (302, "/devices/device1")
    assert site.get("/devices/nobody", headers=BROWSER).status_code == 404


@pytest.mark.parametrize("state", ["locked_out", "nonsense", "failed_pxe_booting", "pxe_booting", "maintenance_mode"])
def test_every_state_is_explained_with_what_can_be_done(site: Server, state: str) -> None:
    site.change(state=state, mac_address="000000000000", hardware_type_id=None, relay_info=None, backends="{}")
    text = page(site)
    assert ("Bring back online" in text) == (state == "locked_out")
    assert ("Heal it by a self-test" in text) == (state == "failed_pxe_booting")
    assert ("it takes no orders" in text) == (state == "pxe_booting")
    assert "its MAC address is not known" in text
    assert ">Power off</button>" not in text


@pytest.mark.parametrize("query", ["changes=-1", "changes=x&had=²", "changes=99999999999999999999", "had=&changes=500"])
def test_strange_queries_do_no_harm(site: Server, query: str) -> None:
    page(site, f"/devices/device1?{query}")


def test_it_is_sent_again_only_when_something_has_changed(site: Server) -> None:
    first = site.get("/devices/device1", headers={PART: "1"})
    again = {PART: "1", "If-None-Match": first.headers["ETag"]}
    site.change("device2", comments="of another one")
    assert site.get("/devices/device1", headers=again).status_code == 304
    site.change("device1", comments="the screen flickers")
    changed = site.get("/devices/device1", headers=again)
    assert "the screen flickers" in changed.text
    number = site.made("device1")
    lent = site.get("/devices/device1", headers={PART: "1"})
    assert site.post(f"/api/request/{number}/renew/", {"duration": 60}).status_code == 204
    assert site.get("/devices/device1", headers={PART: "1", "If-None-Match": lent.headers["ETag"]}).status_code == 200


def test_the_holder_is_named_and_warned_of(site: Server) -> None:
    number = site.made("device1", assignee="ada@example.com")
    text = page(site)
    assert "device1 is lent to ada@example.com" in text
    site.client.set_cookie("mozpool_me", "ada@example.com", domain="localhost")
    assert f"&#34;request_id&#34;: {number}" in page(site)


def test_what_another_server_owns_is_said(site: Server) -> None:
    site.move("device1", site.other_server())
    assert f"It is a device of {OTHER}" in page(site)
    for act in ("self-test", "maintenance", "agent/verify"):
        answer = site.post(f"/api/device/device1/{act}/")
        assert (answer.status_code, answer.headers["Location"]) == (302, f"http://{OTHER}/api/device/device1/{act}/")


def test_states_and_failures_are_told(imaging_server: Server) -> None:
    assert imaging_server.post("/api/device/device1/state-change/ready/to/failed_self_test/").status_code == 200
    assert imaging_server.post("/api/device/device1/self-test/", {"assignee": "ada@example.com"}).status_code == 200
    text = page(imaging_server)
    assert "a self-test was asked for by ada@example.com" in text
    assert "1 × failed_self_test" in text
    assert "please_self_test by ada@example.com" in imaging_server.log()


def test_the_history_says_who_did_what(imaging_server: Server) -> None:
    force = "/api/device/device1/state-change/ready/to/failed_self_test/"
    assert imaging_server.post(force, {"assignee": "ada@example.com"}).status_code == 200
    body = {"status": "offline", "assignee": "bob@example.com", "reason": "it is too warm"}
    assert imaging_server.post("/api/device/device1/status/", body).status_code == 200
    text = page(imaging_server)
    assert "forced by ada@example.com" in text
    assert "Locked out by bob@example.com: it is too warm." in text
    assert "set offline by bob@example.com: it is too warm" in imaging_server.log()
    imaging_server.change("device2", state="troubleshooting")
    assert imaging_server.post("/api/device/device2/reboot/", {"assignee": "eve@example.com"}).status_code == 200
    assert "a power cycle was asked for by eve@example.com" in page(imaging_server, "/devices/device2")


def test_failures_are_counted_by_day(imaging_server: Server) -> None:
    now = imaging_server.daemon.clock.now().replace(hour=12)
    rows = [
        {
            "device_id": device_id,
            "ts": now - timedelta(days=days),
            "from_state": "x",
            "to_state": state,
            "event": "timeout",
            "version": 1,
        }
        for device_id, days, state in (
            (1, 40, "failed_self_test"),
            (1, 3, "failed_self_test"),
            (1, 3, "failed_self_test"),
            (1, 3, "failed_pxe_booting"),
            (1, 1, "ready"),
            (2, 1, "failed_pxe_booting"),
        )
    ]
    imaging_server.daemon.database.run(lambda conn: conn.execute(insert(tables.device_history), rows))
    with imaging_server.daemon.database.read() as conn:
        found = history.failures_by_day(conn, 1, now - timedelta(days=30))
    assert found == {(now - timedelta(days=3)).date(): {"failed_pxe_booting": 1, "failed_self_test": 2}}


def test_a_self_test_and_maintenance_tell_when_they_are_refused(site: Server) -> None:
    assert site.post("/api/device/device1/maintenance/").get_json() == {"state": "pxe_power_cycling"}
    for what in ("maintenance", "self-test"):
        answer = site.post(f"/api/device/device1/{what}/")
        assert answer.status_code == 409
        assert "pxe_power_cycling" in answer.get_json()["error"]["message"]


def test_an_agent_that_does_not_answer_is_told(site: Server) -> None:
    said = site.post("/api/device/device1/agent/verify/").get_json()
    assert said["success"] is False
    assert said["reason"]


def test_a_pxe_config_for_one_boot_is_cleared_when_the_live_image_reports(site: Server) -> None:
    for once, left in ((False, "android"), (True, None)):
        site.change(state="troubleshooting")
        body = {"pxe_config": "android", "once": once}
        assert site.post("/api/device/device1/power-cycle/", body).status_code == 200
        assert site.device().pxe_config == "android"
        assert site.get("/api/device/device1/event/mobile_init_started/").status_code == 200
        assert site.device().pxe_config == left
    assert "PXE config cleared: it was for one boot" in site.log()


def test_the_relay_board_is_named_and_its_failure_told(site: Server) -> None:
    assert "Test its relay board" in page(site)
    now, own = site.daemon.clock.now(), site.daemon.server_id
    site.daemon.database.run(
        lambda conn: relay_boards.set_state_by_lane(conn, "relay:127.0.0.1:9", "failed", "it is dead", now, own)
    )
    text = page(site)
    assert "has failed: it is dead." in text
    assert "/api/relay/relay-9/test/" in text


def test_older_lines_of_a_log_are_found(imaging_server: Server) -> None:
    imaging_server.post("/api/device/device1/set-environment/", {"environment": "lab"})
    imaging_server.post("/api/device/device1/set-labels/", {"labels": {}})
    imaging_server.log()
    lines = imaging_server.get("/api/device/device1/log/").get_json()["log"]
    assert len(lines) >= 2
    older = imaging_server.get(f"/api/device/device1/log/?before={lines[-1]['id']}&limit=1").get_json()["log"]
    assert older == [lines[-2]]
    number = imaging_server.made("device2")
    assert imaging_server.get(f"/api/request/{number}/log/?before=1").get_json()["log"] == []
