# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The list of devices: what an address shows, and what the API adds to it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mozpool.db import devices
from mozpool.lifeguard.devicemachine import CATEGORIES, RULES, category, device_machine
from mozpool.web.pages.base import STAMP
from tests.app_fixtures import OTHER, Server, server

PART = {"Mozpool-Part": "1"}
BROWSER = {"Accept": "text/html"}


@pytest.fixture
def site(database_url: str, tmp_path: Path) -> Iterator[Server]:
    """A server with twelve devices; once on SQLite, once on MariaDB."""
    with server(database_url, tmp_path, count=12) as made:
        yield made


@pytest.fixture
def quick(sqlite_url: str, tmp_path: Path) -> Iterator[Server]:
    """The same where the database makes no difference."""
    with server(sqlite_url, tmp_path, count=12) as made:
        yield made


def shown(site: Server, query: str = "") -> list[str]:
    answer = site.get(f"/devices{query}", headers=PART)
    assert answer.status_code == 200, answer.text
    return re.findall(r'data-name="([^"]+)"', answer.text)


def listed(site: Server, query: str) -> list[Any]:
    answer = site.get(f"/api/device/list/{query}")
    assert answer.status_code == 200, answer.text
    found: list[Any] = answer.get_json()["devices"]
    return found


def test_the_page_is_sorted_as_people_count(site: Server) -> None:
    assert shown(site) == [f"device{number}" for number in range(1, 13)]
    assert shown(site, "?sort=-name")[:3] == ["device12", "device11", "device10"]
    site.change("device5", state="failed_pxe_booting")
    assert shown(site, "?sort=state")[0] == "device5"
    assert shown(site, "?sort=nonsense&size=7&page=nonsense")[0] == "device1"


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("?category=failed", ["device5"]),
        ("?category=idle&search=device1", ["device1", "device10", "device11", "device12"]),
        ("?state=failed_pxe_booting", ["device5"]),
        ("?search=Flicker", ["device3"]),
        ("?search=02:00:00:00:00:0b", ["device11"]),
        ("?search=device9.example", ["device9"]),
        ("?search=%25", []),
        ("?search=000", []),
        ("?environment=staging&label=pool%3Db2g", ["device4", "device8", "device12"]),
        ("?label=pool%3Db2g&label=android%3D4.0&search=device1", ["device10", "device12"]),
        ("?holder=ada", ["device7"]),
        ("?category=out%20of%20service", []),
        (f"?imaging_server={OTHER}", ["device6"]),
        ("?hardware_type=panda&hardware_model=XL", []),
    ],
)
def test_page_and_api_filter_alike(site: Server, query: str, names: list[str]) -> None:
    site.change("device5", state="failed_pxe_booting")
    site.change("device3", comments="the screen FLICKERS")
    site.move("device6", site.other_server())
    site.made("device7", assignee="ada@example.com")
    assert shown(site, query) == names
    assert listed(site, query) == names


def test_the_api_tells_who_has_the_devices_that_were_named(site: Server) -> None:
    site.made("device7", assignee="ada@example.com")
    found = {row["name"]: row for row in listed(site, "?details=1&name=device7&name=device2&name=nobody")}
    assert list(found) == ["device2", "device7"]
    assert found["device7"]["assignee"] == "ada@example.com"
    assert found["device7"]["expires"]
    assert found["device2"]["assignee"] is found["device2"]["expires"] is None


def test_categories_are_the_same_in_the_database(site: Server) -> None:
    states = [*sorted(device_machine().states), "from_the_future", "failedish"]
    for claimed in (None, 77):
        for state in states:
            site.change("device1", state=state, claim_id=claimed)
            with site.daemon.database.read() as conn:
                wanted = devices.Filter(names=["device1"], kind=(RULES, category(state, claimed is not None)))
                assert [row.name for row in devices.find(conn, wanted)] == ["device1"], state
                assert sum(devices.numbers(conn, RULES).values()) == 12
    site.change("device1", state="ready", claim_id=None)
    assert {rule.name for rule in RULES} == set(CATEGORIES)


@pytest.mark.parametrize("path", ["/devices?category=nonsense", "/devices?label=nonsense"])
def test_what_no_device_can_be_is_refused(quick: Server, path: str) -> None:
    answer = quick.get(path, headers=BROWSER)
    assert answer.status_code == 400
    assert "nonsense" in answer.text
    assert quick.get(path.replace("/devices", "/api/device/list/")).status_code == 400


def test_the_list_is_cut_into_pages(sqlite_url: str, tmp_path: Path) -> None:
    with server(sqlite_url, tmp_path, count=120) as site:
        assert len(shown(site)) == 100
        assert shown(site, "?size=50&page=3") == [f"device{number}" for number in range(101, 121)]
        assert shown(site, "?size=50&page=9999999999999") == shown(site, "?size=50")
        assert shown(site, "?size=50&page=99") == shown(site, "?size=50&page=3")
        text = site.get("/devices?size=50&page=2&environment=production").text
        assert "51 to 90 of 90" in text
        assert 'href="/devices?environment=production&amp;size=50"' in text


def test_the_page_is_sent_again_only_when_it_looks_different(quick: Server) -> None:
    def again(etag: str) -> Any:
        quick.app.extensions[STAMP].forget()
        return quick.get("/devices?search=device2", headers={**PART, "If-None-Match": etag})

    etag = quick.get("/devices?search=device2", headers=PART).headers["ETag"]
    assert again(etag).status_code == 304
    quick.change("device3", comments="of another device")
    assert again(etag).status_code == 304
    quick.change("device2", comments="of this one")
    changed = again(etag)
    assert changed.status_code == 200
    assert "of this one" in changed.text
    assert again(changed.headers["ETag"]).status_code == 304


def test_comments_that_somebody_else_has_changed_are_not_overwritten(site: Server) -> None:
    path = "/api/device/device1/set-comments/"
    assert site.post(path, {"comments": "one", "was": ""}).status_code == 200
    answer = site.post(path, {"comments": "two", "was": ""})
    assert answer.status_code == 409
    assert answer.get_json()["error"]["field"] == "comments"
    assert site.post(path, {"comments": "two", "was": "ONE"}).status_code == 409
    assert site.device("device1").comments == "one"
    assert site.post(path, {"comments": "", "was": "one"}).status_code == 200
    assert site.device("device1").comments is None
    assert site.post(path, {"comments": "three"}).status_code == 200


def test_a_self_test_and_maintenance_are_refused_where_the_state_has_no_time(quick: Server) -> None:
    assert quick.post("/api/device/device1/self-test/", {"assignee": "me"}).status_code == 200
    assert quick.post("/api/device/device2/maintenance/").status_code == 200
    quick.change("device3", state="locked_out")
    for what in ("self-test", "maintenance"):
        answer = quick.post(f"/api/device/device3/{what}/")
        assert answer.status_code == 409
        assert "it is in state locked_out" in answer.get_json()["error"]["message"]
