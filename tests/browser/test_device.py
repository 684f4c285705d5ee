# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The page of a device, in Chromium: healing it, its hardware, its log, and what people write about it."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import requests
from playwright.sync_api import Browser, Locator, Page, expect

from tests.browser.axe import violations
from tests.browser.conftest import Pool

pytestmark = [pytest.mark.browser, pytest.mark.timeout(180)]

PATIENCE = 60_000
"""Milliseconds that something may take on a busy machine."""

expect.set_options(timeout=PATIENCE)


def force(pool: Pool, device: str, old: str, new: str) -> None:
    said = requests.post(f"{pool.url}/api/device/{device}/state-change/{old}/to/{new}/", timeout=30)
    assert said.status_code == 200, said.text


def test_a_device_that_failed_is_healed_and_its_log_goes_on(page: Page, pool: Pool) -> None:
    force(pool, "device2", "ready", "failed_pxe_booting")
    page.goto("/devices/device2?changes=200")
    head, log, timeline = page.locator("#device-head"), page.get_by_role("log", name="Log"), page.locator("#timeline")
    expect(head).to_contain_text("The device does not boot from the network")
    expect(log).to_contain_text("ready -> failed_pxe_booting on forced")
    expect(page.get_by_role("img", name="Failures a day")).to_be_visible()
    log.evaluate("box => { box.scrollTop = 0; }")
    for time in range(1, 6):
        head.get_by_role("button", name="Heal it by a self-test").click()
        expect(page.get_by_text("tests itself; it is back when that succeeds").first).to_be_visible()
        # Simulated boards fail as real ones do: this one may have to be healed again.
        expect(timeline.locator("tr", has_text="a self-test was asked for")).to_have_count(time)
        expect(head.locator(".now .state")).to_have_text(re.compile("^(ready|failed_.*)$"))
        if head.locator(".now .state").text_content() == "ready":
            break
    expect(head.get_by_role("link", name="Request this device")).to_be_visible()
    expect(timeline.locator("tbody tr").first).to_contain_text("ready")
    expect(timeline).to_contain_text("a self-test was asked for")
    expect(log).to_contain_text("-> ready on self_test_ok")

    page.get_by_label("Lines with").fill("SELF_TEST_OK")
    expect(log.locator(".line:visible")).to_have_count(1)
    expect(page.locator("[data-part=status]")).to_have_text(re.compile(r"^1 of \d+ lines$"))
    page.get_by_label("Lines with").fill("")
    page.get_by_label("From", exact=True).select_option("statemachine")
    expect(log.locator(".line:visible").first).to_contain_text("statemachine")
    page.get_by_label("From", exact=True).select_option("")
    page.get_by_role("button", name="Pause").click()
    expect(page.locator("[data-part=status]")).to_contain_text("paused")
    requests.post(f"{pool.url}/api/device/device2/set-environment/", json={"environment": "lab"}, timeout=30)
    expect(page.locator("#device-facts")).to_contain_text("lab")
    expect(log).not_to_contain_text("environment")
    page.get_by_role("button", name="Go on").click()
    expect(log).to_contain_text("environment production -> lab")
    assert log.evaluate("box => box.scrollHeight - box.scrollTop - box.clientHeight") < 30
    with page.expect_download() as download:
        page.get_by_role("button", name="Download all").click()
    assert download.value.suggested_filename == "device-device2.log"
    text = download.value.path().read_text()
    assert "statemachine: ready -> failed_pxe_booting on forced\n" in text


def test_hardware_is_asked_and_a_device_in_use_is_warned_of(page: Page, pool: Pool) -> None:
    page.goto("/devices/device1")
    hardware = page.locator("#device-hardware")
    expect(hardware).to_contain_text("lock it out first")
    number = pool.ask("device1")
    expect(page.locator("#device-head")).to_contain_text("Lent to ada@example.com")
    expect(page.locator("#device-head .now")).to_contain_text("ready in use")
    expect(hardware).to_contain_text("device1 is lent to ada@example.com")
    expect(page.locator("#had-it tbody tr")).to_contain_text("ada@example.com")

    hardware.get_by_role("button", name="Ping").click()
    checks = page.locator("#checks")
    expect(checks).to_contain_text(re.compile(r"Ping: it answers, after \d"))
    hardware.get_by_role("button", name="Verify agent").click()
    expect(checks).to_contain_text("Verify agent: the agent works")
    hardware.get_by_role("button", name="Test its relay board").click()
    expect(checks).to_contain_text("answers, after")

    page.get_by_label("Command", exact=True).fill("echo 'a b'")
    page.get_by_role("button", name="Run").click()
    results = page.get_by_role("log", name="What commands gave")
    expect(results.locator("p")).to_contain_text("return code")
    expect(page.get_by_role("log", name="Log")).to_contain_text("command by an operator: echo a b")
    page.get_by_label("Command", exact=True).press("ArrowUp")
    expect(page.get_by_label("Command", exact=True)).to_have_value("echo 'a b'")

    hardware.get_by_role("button", name="Power off").click()
    ask = page.locator("#ask")
    expect(ask).to_contain_text("device1 is lent to ada@example.com")
    ask.get_by_role("button", name="Cancel").click()

    hardware.get_by_role("button", name="Power cycle…").click()
    dialog = page.get_by_role("dialog", name="Cycle the power of device1")
    expect(dialog).to_contain_text("device1 is lent to ada@example.com")
    expect(dialog.get_by_label("PXE config", exact=True)).to_be_hidden()
    dialog.get_by_label("a PXE config, from the network").check()
    dialog.get_by_label("PXE config", exact=True).select_option("maintenance")
    dialog.get_by_label("at every boot").check()
    dialog.get_by_role("button", name="Cycle its power").click()
    expect(dialog).to_be_hidden()
    expect(page.get_by_role("log", name="Log")).to_contain_text("power cycle with PXE config maintenance asked for")
    hardware.get_by_role("button", name="Clear PXE config maintenance").click()
    ask.get_by_role("button", name="Clear PXE config").click()
    expect(page.locator("#device-facts")).to_contain_text("its own storage")

    page.get_by_role("button", name="Return it").click()
    ask.get_by_role("button", name="Return it").click()
    expect(page.locator("#device-head")).not_to_contain_text("Lent to")
    assert requests.get(f"{pool.url}/api/request/{number}/status/", timeout=30).json()["state"] == "closed"


def test_what_people_say_of_a_device_and_its_state(page: Page, pool: Pool) -> None:
    page.goto("/devices/device3")
    facts = page.locator("#device-facts")
    page.get_by_role("button", name="Change the comments").click()
    page.get_by_label("Comments", exact=True).fill("It hums.\nAnd it is warm.")
    # The page goes on while somebody types.
    with page.expect_response(lambda said: said.url.endswith("/devices/device3")):
        pass
    page.get_by_role("button", name="Keep").locator("visible=true").click()
    expect(facts).to_contain_text("And it is warm.")
    page.get_by_role("button", name="Change the comments").click()
    expect(page.get_by_label("Comments", exact=True)).to_have_value("It hums.\nAnd it is warm.")
    page.keyboard.press("Escape")

    page.get_by_role("button", name="Change the environment").click()
    page.get_by_label("Environment", exact=True).fill("any")
    page.get_by_role("button", name="Keep").locator("visible=true").click()
    expect(page.locator("#environment:invalid")).to_be_focused()
    page.get_by_label("Environment", exact=True).fill("lab")
    page.get_by_role("button", name="Keep").locator("visible=true").click()
    expect(facts).to_contain_text("lab")

    page.get_by_role("button", name="Change the labels").click()
    page.get_by_label("Labels, one on each line").fill("screen=hvga\nnonsense")
    page.get_by_role("button", name="Keep").locator("visible=true").click()
    expect(page.get_by_role("alert")).to_contain_text('"nonsense" is not NAME=VALUE')
    page.get_by_label("Labels, one on each line").fill("screen=hvga\n")
    page.get_by_role("button", name="Keep").locator("visible=true").click()
    expect(facts.locator(".chip")).to_have_text(["screen=hvga"])

    head = page.locator("#device-head")
    head.get_by_role("button", name="Lock out…").click()
    page.get_by_label("Why, for its log").fill("it is too warm")
    page.get_by_role("button", name="Lock out", exact=True).click()
    expect(head.locator(".now")).to_contain_text("locked_out out of service")
    expect(page.get_by_role("log", name="Log")).to_contain_text("set offline: it is too warm")
    head.get_by_role("button", name="Force a state…").click()
    page.get_by_label("New state").select_option("troubleshooting")
    expect(page.locator("#force-meaning")).to_contain_text("A person is looking into the device")
    page.get_by_role("button", name="Force it").click()
    expect(head.locator(".now")).to_contain_text("troubleshooting")
    head.get_by_role("button", name="Install an image…").click()
    page.get_by_label("Image", exact=True).select_option("b2g")
    page.get_by_label("b2gbase").fill("http://builds.example.com/b2g/")
    page.get_by_role("button", name="Install", exact=True).click()
    expect(page.get_by_role("log", name="Log")).to_contain_text("troubleshooting -> start_pxe_boot on please_image")


def test_a_long_log_is_read_from_its_end(page: Page, pool: Pool, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "pool.sqlite", timeout=30)) as database, database:
        database.executemany(
            "INSERT INTO device_logs (device_id, ts, source, message) VALUES (5, '2026-01-02 03:04:05', 'bmm', ?)",
            [(f"line {number} <b>x</b>",) for number in range(6000)],
        )
    page.goto("/devices/device5")
    log, status = page.get_by_role("log", name="Log"), page.locator("[data-part=status]")
    expect(status).to_have_text("200 lines")

    def in_view(line: Locator) -> None:
        # The page may have been scrolled for a click, and the log with it: what counts is the place within the log.
        log.scroll_into_view_if_needed()
        expect(line).to_be_in_viewport()

    expect(log.locator(".line").last).to_have_text("2026-01-02 03:04:05 bmm line 5999 <b>x</b>")
    in_view(log.locator(".line").last)
    log.evaluate("box => { box.scrollTop = 0; }")
    top = log.locator(".line", has_text="line 5800 ")
    in_view(top)
    for count in (700, 1200, 1700, 2200):
        page.get_by_role("button", name="Load older lines").click()
        expect(status).to_have_text(f"{count} lines")
        in_view(top)
    expect(page.get_by_text("The page keeps no more lines than these")).to_be_visible()
    said = requests.post(f"{pool.url}/api/device/device5/set-environment/", json={"environment": "lab"}, timeout=30)
    assert said.status_code == 200, said.text
    expect(status).to_have_text("2000 lines")
    in_view(top)
    page.get_by_role("button", name="To the newest line").click()
    expect(log.locator(".line").last).to_contain_text("-> lab")
    in_view(log.locator(".line").last)
    with page.expect_download(timeout=PATIENCE) as download:
        page.get_by_role("button", name="Download all").click()
    lines = download.value.path().read_text().splitlines()
    assert lines[0] == "2026-01-02T03:04:05Z bmm: line 0 <b>x</b>"
    assert [line.partition("line ")[2] for line in lines[:6000]] == [f"{number} <b>x</b>" for number in range(6000)]


def test_it_is_for_everybody(chromium: Browser, pool: Pool) -> None:
    pool.ask("device1")
    force(pool, "device2", "ready", "failed_pxe_booting")
    for width in (1400, 390):
        for scheme in ("light", "dark"):
            context = chromium.new_context(
                base_url=pool.url,
                viewport={"width": width, "height": 900},
                color_scheme="dark" if scheme == "dark" else "light",
            )
            page = context.new_page()
            for path in ("/devices/device1", "/devices/device2?changes=200"):
                page.goto(path)
                expect(page.locator(".log-panel .line").first).to_be_visible()
                page.get_by_role("button", name="Force a state…").click()
                for dialog in (True, False):
                    if not dialog:
                        page.keyboard.press("Escape")
                    assert page.evaluate("document.documentElement.scrollWidth") <= width, path
                    assert violations(page) == [], (path, width, scheme)
            context.close()
