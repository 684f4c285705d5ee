# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The overview and the page of servers: what they say for what is in the database."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from mozpool.db import servers
from mozpool.db.requests import Request
from mozpool.db.servers import Presence
from mozpool.web.pages.base import STAMP
from mozpool.web.pages.overview import Kind
from mozpool.web.pages.servers import ServerRow
from tests.app_fixtures import OTHER, OWN, Server, add_relay_board, server


@pytest.fixture
def site(sqlite_url: str, tmp_path: Path) -> Iterator[Server]:
    """A server with ten devices."""
    with server(sqlite_url, tmp_path, count=10) as made:
        yield made


def text_of(site: Server, path: str = "/") -> str:
    """The page's HTML as it is now, with single blanks."""
    site.app.extensions[STAMP].forget()
    answer = site.get(path)
    assert answer.status_code == 200
    return " ".join(answer.text.split())


def test_an_empty_pool_says_so(sqlite_url: str, tmp_path: Path) -> None:
    with server(sqlite_url, tmp_path, count=0) as empty:
        page = text_of(empty)
    for words in ("There are no devices yet.", "No open requests.", "No device needs a person.", "none known"):
        assert words in page, words


def test_devices_are_counted_by_type_and_category(site: Server) -> None:
    site.change("device1", claim_id=77)
    site.change("device2", state="failed_pxe_booting")
    site.change("device3", state="pxe_booting")
    site.change("device4", state="locked_out", hardware_type_id=None)
    site.change("device5", state="a_state_of_the_next_version")
    page = text_of(site)
    assert 'aria-label="panda ES: 1 in use, 5 idle, 2 processing, 1 failed"' in page
    assert 'aria-label="unknown hardware: 1 out of service"' in page
    assert 'href="/devices?category=failed&amp;hardware_type=panda&amp;hardware_model=ES">1</a>' in page


def test_a_bar_has_no_part_that_is_too_small_to_be_seen() -> None:
    kind = Kind("panda", "ES")
    kind.counts.update({"idle": 4999, "failed": 1})
    parts = list(kind.bar(200))
    assert [part[0] for part in parts] == ["idle", "failed"]
    assert parts[1][2] >= 2
    assert parts[1][1] + parts[1][2] == pytest.approx(200, abs=0.1)
    assert list(Kind(None, None).bar(200)) == []


def test_failed_devices_that_need_a_person_are_told_in_words_the_latest_first(site: Server) -> None:
    now = site.daemon.clock.now()
    for number in range(2, 10):
        since = now - timedelta(hours=number)
        site.change(f"device{number}", state="failed_self_test", state_since=since, comments=f"dusty <{number}>")
    site.change("device10", state="failed_sut_verifying")
    page = text_of(site)
    assert "The self-test found a fault of the hardware" in page
    assert page.index("dusty &lt;2&gt;") < page.index("dusty &lt;3&gt;")
    assert "dusty &lt;9&gt;" not in page
    assert "device10" not in page, "it heals itself"
    assert '<a href="/devices?category=failed">All 8</a>' in page
    assert 'data-call="/api/device/device2/event/please_self_test/"' in page


def test_a_failed_device_that_somebody_holds_is_not_touched_without_asking(site: Server) -> None:
    number = site.made("device1", assignee="ada@example.com")
    site.change("device1", state="failed_self_test")
    page = text_of(site)
    assert f'Held by ada@example.com: <a href="/requests/{number}">request {number}</a>' in page
    assert 'data-confirm="It is held by ada@example.com, whose work this ends. Test device1?"' in page


def test_few_requests_wait_one_by_one_and_many_by_what_they_want(site: Server) -> None:
    site.made("device1", assignee="somebody@example.com")
    for _ in range(3):
        site.made("device1", wait=60)
    page = text_of(site)
    assert page.count("device1 is taken by somebody@example.com until ") == 3
    assert "device device1 · image b2g" in page
    for _ in range(7):
        site.made("any", environment="nowhere", wait=60)
    page = text_of(site)
    assert page.count("device1 is taken by somebody@example.com until ") == 1
    assert "3 × device device1" in page
    assert "7 × device with environment nowhere" in page
    assert "environment nowhere has no devices" in page
    assert "<strong>10</strong> waiting" in page


def test_a_power_switch_that_failed_is_named_with_its_reason(site: Server) -> None:
    add_relay_board(site, "far-board", "relay.example.com")
    assert "2 ok" in text_of(site)
    site.daemon._lane_changed("relay:relay.example.com:2101", "failed", "no <answer>")
    page = text_of(site)
    assert "far-board" in page
    assert ": no &lt;answer&gt;" in page
    assert "1 ok, 1 not: far-board" in page


def test_it_is_not_looked_up_again_while_nothing_changes(site: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []

    def reasons(rows: Iterable[Request]) -> dict[int, str]:
        looks.append(1)
        return {}

    monkeypatch.setattr(site.daemon.mozpool, "reasons", reasons)
    text_of(site)
    text_of(site)
    assert len(looks) == 1
    site.change("device2", comments="x")
    text_of(site)
    assert len(looks) == 2


@pytest.mark.parametrize("hours", ["", "x", "-1", "1e9", "7", "168"])
def test_any_time_window_may_be_asked_for(site: Server, hours: str) -> None:
    shown = hours if hours == "168" else "24"
    assert f'data-source="/api/pool/history/?hours={shown}"' in text_of(site, f"/?hours={hours}")


# Servers


WHEN = datetime(2030, 1, 1, tzinfo=UTC)
SAID = Presence(2, 1, False, "5", WHEN, WHEN, 8, 0, "room", 60.0)
ROW = ServerRow(2, "b", "lost", SAID, open_requests=0, own=3, heirs=("a", "c"))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (ROW, ["3 devices wait: a and c take over after 60 s without a sign of life."]),
        (
            replace(ROW, own=0, guests={"d": 1}, heirs=("a",)),
            ["1 device waits: a takes over after 60 s without a sign of life."],
        ),
        (
            replace(ROW, own=0, elsewhere={"c": 2, "a": 1}),
            ["a looks after 1 of its devices.", "c looks after 2 of its devices."],
        ),
        (replace(ROW, state="up", elsewhere={"a": 1}), ["a looks after 1 of its devices."]),
        (
            replace(ROW, heirs=(), own=1, open_requests=2),
            [
                "1 device waits: no other server of its group room is up, so they are handed out again when one is.",
                "2 open requests wait as well.",
            ],
        ),
        (
            replace(ROW, said=None, state="never started"),
            ["3 devices wait: nobody hands them out before it runs."],
        ),
    ],
)
def test_it_is_told_what_becomes_of_a_servers_devices(row: ServerRow, words: list[str]) -> None:
    assert row.fate() == words
    assert row.is_missed == (row.state != "up")


def test_a_lost_server_is_shown_as_lost_and_who_looks_after_its_devices(site: Server) -> None:
    other = site.other_server()
    site.move("device2", other)
    site.move("device3", other)
    site.change("device3", owner_id=site.daemon.server_id)
    now = site.daemon.clock.now()
    said = Presence(other, 1, False, "4.9.9", now - timedelta(hours=2), now - timedelta(hours=1), 32, 5, "room", 60.0)
    site.daemon.database.run(lambda conn: servers.say_here(conn, said))
    site.daemon.presence.beat()
    for path in ("/", "/servers"):
        page = text_of(site, path)
        assert "lost" in page
        assert f"{OWN} looks after 1 of its devices. 1 device waits: no other server of its group room is up" in page
    assert f"8 own, 1 taken over from {OTHER}" in page
    assert f"1 own; 1 with {OWN}" in page
    assert "Group room" in page


def test_the_page_of_servers_stays_the_same_from_one_sign_of_life_to_the_next(site: Server) -> None:
    site.daemon.presence.beat()
    part = {"Mozpool-Part": "1"}
    first = site.get("/servers", headers=part)
    site.daemon.presence.beat()
    again = site.get("/servers", headers={**part, "If-None-Match": first.headers["ETag"]})
    assert again.status_code == 304
