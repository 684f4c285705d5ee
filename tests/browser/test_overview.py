# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The overview and the page of servers, in Chromium: what happens in the pool is seen, and mended, there."""

from __future__ import annotations

import re
import sqlite3
import time
from pathlib import Path

import pytest
import requests
from playwright.sync_api import Page, expect

from tests.browser.axe import violations
from tests.browser.conftest import Pool
from tests.integration.mozpool_site import free_ports, start_server
from tests.processes import end, mozpool_db

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]

PATIENCE = 60_000
"""Milliseconds that something may take on a busy machine."""

expect.set_options(timeout=PATIENCE)


def add_samples(directory: Path, count: int) -> None:
    """Note the last minutes as the servers would have done, with a gap."""
    minute = int(time.time()) // 60
    rows = [
        (minute - n, 4, 5, 2, 1, 0, 0, 7 if n == 60 else 0, 1, 30.0, 200.0 if n == 50 else 40.0, 0)
        for n in range(1, count)
        if not 100 < n < 130
    ]
    database = sqlite3.connect(directory / "pool.sqlite", timeout=30)
    with database:
        database.executemany(f"INSERT INTO pool_samples VALUES ({', '.join('?' * 12)})", rows)
    database.close()


def test_the_overview_follows_what_happens_and_heals_a_failed_device(page: Page, pool: Pool) -> None:
    page.goto("/")

    def tile(name: str) -> None:
        expect(page.locator(".counts li", has_text=name[1:].lstrip("0123456789 "))).to_contain_text(name)

    tile("12 idle")
    tile("0 requests wait")
    expect(page.get_by_text("No open requests.")).to_be_visible()
    number = pool.ask("device1")
    tile("1 in use")
    tile("11 idle")
    expect(page.locator(".tally")).to_contain_text("1 in use")

    # Who asks for one that is taken waits, and is told why.
    held = [pool.ask(f"device{n}") for n in (4, 8, 12)]
    waiting = pool.ask("device4")
    case = page.locator(f"#waiting-{waiting}")
    expect(case).to_contain_text("device device4 · image android")
    expect(case).to_contain_text("device4 is taken by ada@example.com until")
    tile("1 request waits")
    for given in (number, *held, waiting):
        pool.give_back(given)
    expect(page.get_by_text("No open requests.")).to_be_visible()
    expect(case).to_have_count(0)

    expect(page.get_by_text("No device needs a person.")).to_be_visible()
    force(pool, "device3", "failed_pxe_booting")
    failed = page.locator(".cases li", has_text="device3")
    expect(failed).to_contain_text("does not boot from the network")
    expect(failed.locator("time")).to_contain_text("ago")
    tile("1 failed")
    assert violations(page) == []
    failed.get_by_role("button", name="Self-test").click()
    expect(page.get_by_text("device3: a self-test was asked for.")).to_be_visible()
    expect(page.get_by_text("No device needs a person.")).to_be_visible()
    tile("12 idle")

    force(pool, "device5", "failed_self_test")
    page.locator(".cases li", has_text="device5").get_by_role("button", name="Lock out").click()
    tile("1 out of service")
    row = page.locator(".kinds tbody tr", has_text="panda ES")
    expect(row.get_by_role("img")).to_have_attribute("aria-label", "panda ES: 11 idle, 1 out of service")
    out = row.get_by_role("link", name="1", exact=True)
    expect(out).to_have_attribute("href", "/devices?category=out+of+service&hardware_type=panda&hardware_model=ES")


def force(pool: Pool, device: str, state: str) -> None:
    """Force a device into a state, as soon as it rests."""
    give_up = time.monotonic() + 60
    while True:
        now = requests.get(f"{pool.url}/api/device/{device}/state/", timeout=30).json()["state"]
        if now == "ready":
            changed = requests.post(f"{pool.url}/api/device/{device}/state-change/{now}/to/{state}/", timeout=30)
            if changed.status_code == 200:
                return
        assert time.monotonic() < give_up, now
        time.sleep(0.1)


def test_charts_are_drawn_and_told(page: Page, pool: Pool, tmp_path: Path) -> None:
    page.goto("/")
    # The first minute is there at once.
    expect(page.locator("#chart-waiting [data-said]")).to_have_text("Lately 0; nobody had to wait.")
    add_samples(tmp_path, 1400)
    page.reload()
    expect(page.locator("#charts canvas")).to_have_count(3)
    expect(page.locator("#chart-devices [data-said]")).to_contain_text(re.compile(r"idle \(5 to \d+\)"))
    expect(page.locator("#chart-waiting [data-said]")).to_contain_text("Lately 0; the most were 7, at ")
    expect(page.locator("#chart-ready [data-said]")).to_contain_text("the median was 30 s last, ")
    expect(page.locator("#chart-ready [data-said]")).to_contain_text("the slowest took 3 min 20 s, at ")
    page.locator("#chart-waiting summary").click()
    table = page.locator("#chart-waiting details table")
    expect(table.locator("thead")).to_contain_text("waiting at most")
    assert 15 <= table.locator("tbody tr").count() <= 24
    assert violations(page) == []

    marker = page.locator("#chart-waiting .u-marker").last
    light = marker.get_attribute("style") or ""
    page.emulate_media(color_scheme="dark")
    expect(marker).not_to_have_attribute("style", light)
    assert violations(page) == []
    page.set_viewport_size({"width": 390, "height": 800})
    expect(page.locator("#chart-waiting .u-wrap")).to_have_css("width", re.compile(r"^[23]\d\d(\.\d+)?px$"))
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.get_by_role("link", name="7 days").click()
    expect(page.get_by_role("heading", name="The last 7 days")).to_be_visible()
    expect(page.locator("#charts canvas")).to_have_count(3)
    page.go_back()
    expect(page.get_by_role("heading", name="The last 24 hours")).to_be_visible()


def test_a_server_that_is_killed_shows_as_lost_with_what_becomes_of_its_devices(
    page: Page, pool: Pool, tmp_path: Path
) -> None:
    port = free_ports(2)
    directory = tmp_path / "second"
    (directory / "tftp").mkdir(parents=True)
    config = directory / "config.ini"
    config.write_text(
        f"[database]\nengine = sqlite:///{tmp_path}/pool.sqlite\n[paths]\ntftp_root = {directory}/tftp\n"
        f"[server]\nfqdn = 127.0.0.1:{port}\nport = {port}\ngroup = lab\n"
        "heartbeat_interval = 0.5\naway_after = 3\ntakeover_after = 3\n"
    )
    second = start_server(config, directory / "server.log", f"http://127.0.0.1:{port}")
    try:
        board = ("far-board", "--mac", "0200000000ee", "--address", "127.0.0.98", "--server", f"127.0.0.1:{port}")
        mozpool_db(pool.environment, "add-device", *board)
        page.goto("/servers")
        row = page.locator("tr", has_text=f"127.0.0.1:{port}")
        expect(row.locator(".state")).to_have_text("up")
        expect(row).to_contain_text("1 own")
        expect(row).to_contain_text(re.compile(r"\d+ of \d+"))
        expect(page.locator("tr", has_text="(this one)").locator(".state")).to_have_text("up")
        expect(page.get_by_text("Group lab")).to_be_visible()
        assert violations(page) == []
        # What is done to its device goes through this page's own server: the browser asks nobody else.
        page.goto("/devices/far-board")
        page.get_by_role("button", name="Lock out…").click()
        page.get_by_role("button", name="Lock out", exact=True).click()
        expect(page.get_by_role("log", name="Log")).to_contain_text("set offline")
        assert "far-board" in (directory / "server.log").read_text(), "the other server has done it"
        page.goto("/servers")
        second.kill()
        expect(row.locator(".state")).to_have_text("lost")
        expect(row).to_contain_text("ago")
        lost = page.locator(".notice:visible")
        expect(lost).to_contain_text("is lost: its last sign of life came")
        expect(lost).to_contain_text("1 device waits: no other server of its group lab is up")
        page.get_by_role("link", name="Overview").click()
        expect(page.locator(".notice:visible")).to_contain_text(f"127.0.0.1:{port} has been lost for")
        expect(page.locator(".health")).to_contain_text("1 up, 1 not")
        assert violations(page) == []
        page.set_viewport_size({"width": 390, "height": 800})
        for path in ("/", "/servers"):
            page.goto(path)
            assert page.evaluate("document.documentElement.scrollWidth") <= 390
    finally:
        end(second)
