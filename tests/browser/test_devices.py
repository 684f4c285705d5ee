# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The list of devices, in Chromium."""

from __future__ import annotations

import re

import pytest
import requests
from playwright.sync_api import Browser, Locator, Page, expect

from tests.browser.axe import violations
from tests.browser.conftest import Pool

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]

PATIENCE = 60_000
"""Milliseconds that something may take on a busy machine."""


expect.set_options(timeout=PATIENCE)


def row(page: Page, name: str) -> Locator:
    return page.locator(f"tr[data-name={name}]")


def box(page: Page, name: str) -> Locator:
    return page.get_by_role("checkbox", name=f"Select {name}", exact=True)


def post(pool: Pool, path: str, **body: object) -> None:
    said = requests.post(f"{pool.url}/api/device/{path}/", json=body, timeout=30)
    assert said.status_code == 200, said.text


def comments(pool: Pool, name: str) -> str | None:
    found: str | None = requests.get(f"{pool.url}/api/device/{name}/details/", timeout=30).json()["comments"]
    return found


@pytest.mark.parametrize("pool", [40], indirect=True)
def test_thirty_devices_selected_by_shift_click_test_themselves_and_each_tells_what_came_of_it(
    page: Page, pool: Pool
) -> None:
    number = pool.ask("device3")
    wait = f"{pool.url}/api/request/{number}/status/?wait=60&state=pending"
    while requests.get(wait, timeout=90).json()["state"] != "ready":
        pass
    post(pool, "device5/status", status="offline", reason="broken")
    page.goto("/devices")
    expect(page.locator("#kinds")).to_contain_text("All 40")
    box(page, "device2").click()
    box(page, "device31").click(modifiers=["Shift"])
    bar = page.get_by_role("region", name="Selected devices")
    expect(bar.get_by_text("30 selected")).to_be_visible()
    expect(box(page, "device31")).to_be_checked()
    expect(box(page, "device32")).not_to_be_checked()
    expect(row(page, "device3").get_by_role("link", name="ada@example.com")).to_be_visible()
    bar.get_by_role("button", name="Self-test").click()
    dialog = page.get_by_role("dialog", name="Self-test of 30 devices")
    expect(dialog).to_contain_text("1 of them is lent right now, to one person (ada@example.com)")
    dialog.get_by_role("button", name="Self-test").click()
    progress = page.get_by_role("dialog", name="Self-test of 30 devices")
    # One that is locked out is not touched.
    expect(progress.get_by_role("status")).to_have_text("30 of 30: 29 done, 1 failed.")
    expect(progress.locator("[data-done] tr")).to_have_count(29)
    expect(progress.locator("[data-failed] tr")).to_have_text(re.compile("^device5.*it is in state locked_out"))
    progress.get_by_role("button", name="Try the failed one again").click()
    expect(progress.get_by_role("status")).to_have_text("1 of 1: 0 done, 1 failed.")
    progress.get_by_role("button", name="Close").click()
    expect(row(page, "device2").locator(".state")).to_have_text(
        re.compile("power_cycling|booting|self_test|mobile_init")
    )
    expect(row(page, "device2").locator(".state")).to_have_text(re.compile("ready|failed"))
    # The rows have changed under the selection.
    expect(bar.get_by_text("30 selected")).to_be_visible()
    page.reload()
    expect(bar.get_by_text("30 selected")).to_be_visible()
    bar.get_by_role("button", name="Clear").click()
    expect(bar).to_be_hidden()
    # By keys: a range with Shift and the space bar, all on the page, all that match.
    box(page, "device7").focus()
    page.keyboard.press("Space")
    for _ in range(3):
        page.keyboard.press("ArrowDown")
    page.keyboard.press("Shift+Space")
    expect(bar.get_by_text("4 selected")).to_be_visible()
    page.goto("/devices?size=50&environment=production")
    expect(bar).to_be_hidden()
    pool.give_back(number)


def test_an_address_with_empty_fields_is_made_short(page: Page, pool: Pool) -> None:
    """A form that is sent before the page's scripts are there has them."""
    page.goto("/devices?search=device1&category=&environment=&sort=")
    expect(page).to_have_url(re.compile(r"/devices\?search=device1$"))
    page.goto("/devices?search=&category=#list")
    expect(page).to_have_url(re.compile(r"/devices#list$"))


@pytest.mark.parametrize("pool", [60], indirect=True)
def test_a_filter_stands_in_the_address_and_is_saved_as_a_link(page: Page, pool: Pool) -> None:
    post(pool, "device7/status", status="offline", reason="broken")
    page.goto("/devices")
    page.get_by_label("Rows").select_option("50")
    expect(page).to_have_url(re.compile(r"/devices\?size=50$"))
    expect(page.locator("#list")).to_contain_text("1 to 50 of 60")
    expect(page.locator("tbody tr").nth(9)).to_contain_text("device10")
    page.get_by_label("Select all devices shown").check()
    bar = page.get_by_role("region", name="Selected devices")
    bar.get_by_role("button", name="Select all 60 that match").click()
    expect(bar.get_by_text("60 selected (10 not on this page)")).to_be_visible()
    page.get_by_role("link", name="Next").click()
    expect(page.locator("#list")).to_contain_text("51 to 60 of 60")
    expect(bar.get_by_text("60 selected (50 not on this page)")).to_be_visible()
    page.goto("/devices")
    page.get_by_role("link", name="Out of service 1").click()
    expect(page.locator("#list tbody tr")).to_have_count(1)
    expect(page.get_by_label("Category", exact=True)).to_have_value("out of service")
    page.get_by_label("Category", exact=True).select_option("")
    expect(page.locator("#list tbody tr")).to_have_count(60)
    page.get_by_label("Environment", exact=True).and_(page.locator("#by-environment")).select_option("staging")
    expect(page.locator("#list tbody tr")).to_have_count(15)
    page.get_by_label("Search", exact=True).fill("device1")
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile(r"\?search=device1&environment=staging$"))
    expect(page.locator("#list tbody tr")).to_have_count(2)
    page.get_by_role("button", name="Save this filter").click()
    page.get_by_label("Name of the link").fill("My boards")
    page.get_by_role("button", name="Save", exact=True).click()
    page.go_back()
    expect(page.locator("#list tbody tr")).to_have_count(15)
    expect(page.get_by_label("Search", exact=True)).to_have_value("")
    page.get_by_role("link", name="My boards").click()
    expect(page.locator("#list tbody tr")).to_have_count(2)
    expect(page.get_by_role("link", name="My boards")).to_have_attribute("aria-current", "true")
    page.get_by_role("button", name="Delete the link My boards").click()
    expect(page.get_by_role("link", name="My boards")).to_have_count(0)


def test_a_state_is_forced_after_a_warning_and_an_image_is_put_on_devices(page: Page, pool: Pool) -> None:
    page.goto("/devices")
    box(page, "device1").click()
    box(page, "device2").click(modifiers=["Shift"])
    bar = page.get_by_role("region", name="Selected devices")
    bar.get_by_role("button", name="Force a state").click()
    dialog = page.get_by_role("dialog", name="Force a state on 2 devices")
    expect(dialog).to_contain_text("A forced state is believed, not proven")
    expect(dialog).to_contain_text("Now: 2 ready.")
    dialog.get_by_label("New state").select_option("troubleshooting")
    expect(dialog).to_contain_text("A person is looking into the device")
    # Meanwhile one of them gets into another state: it is not forced out of that unseen.
    post(pool, "device2/status", status="offline")
    dialog.get_by_role("button", name="Force").click()
    progress = page.locator("dialog.progress")
    expect(progress.locator("[data-done]")).to_contain_text("ready → troubleshooting")
    expect(progress.locator("[data-failed]")).to_contain_text("Device2 is in state locked_out, not ready")
    progress.get_by_role("button", name="Try the failed one again").click()
    expect(progress.locator("[data-done]")).to_contain_text("locked_out → troubleshooting")
    progress.get_by_role("button", name="Close").click()
    expect(row(page, "device1").locator(".state")).to_have_text("troubleshooting")
    page.get_by_role("button", name="Actions on device1", exact=True).click()
    page.get_by_role("dialog", name="device1").get_by_role("button", name="Image").click()
    dialog = page.get_by_role("dialog", name="Image device1")
    dialog.get_by_label("Image", exact=True).select_option("b2g")
    dialog.get_by_label("b2gbase").fill("http://builds/1/")
    dialog.get_by_role("button", name="Install").click()
    progress.get_by_role("button", name="Close").click()
    expect(row(page, "device1")).to_contain_text("b2g")
    bar.get_by_role("button", name="Labels").click()
    dialog = page.get_by_role("dialog", name="Labels of 2 devices")
    dialog.get_by_label("Labels", exact=True).fill("nonsense")
    dialog.get_by_role("button", name="Change the labels").click()
    expect(dialog.get_by_role("alert")).to_have_text('"nonsense" is not NAME=VALUE.')
    dialog.get_by_label("Labels", exact=True).fill("rack=7")
    dialog.get_by_role("button", name="Change the labels").click()
    progress.get_by_role("button", name="Close").click()
    expect(row(page, "device1")).to_contain_text("rack=7")
    expect(row(page, "device1")).to_contain_text("processor=armv7")


def test_comments_are_edited_while_the_table_updates(page: Page, pool: Pool) -> None:
    page.goto("/devices?sort=-state")
    cell = row(page, "device4")
    page.get_by_role("button", name="Add comments on device4").click()
    field = page.get_by_label("Comments on device4")
    field.press_sequentially("screen ")
    for state in ("troubleshooting", "ready", "troubleshooting"):
        before = "ready" if state == "troubleshooting" else "troubleshooting"
        for name in ("device4", "device8"):
            post(pool, f"{name}/state-change/{before}/to/{state}")
            expect(row(page, name).locator(".state")).to_have_text(state)
        expect(field).to_be_focused()
        field.press_sequentially("x")
    expect(field).to_have_value("screen xxx")
    # Somebody else is faster.
    post(pool, "device4/set-comments", comments="on loan to grace")
    expect(cell.get_by_role("alert")).to_contain_text("Somebody else has changed this meanwhile to: on loan to grace")
    expect(field).to_have_value("screen xxx")
    field.press("Enter")
    expect(cell.get_by_role("alert")).to_be_visible()
    assert comments(pool, "device4") == "on loan to grace"
    cell.get_by_role("button", name="Replace it by mine").click()
    expect(cell).to_contain_text("screen xxx")
    expect(page.get_by_role("button", name="Change comments on device4")).to_be_focused()
    assert comments(pool, "device4") == "screen xxx"
    page.keyboard.press("Enter")
    field.fill("never mind")
    field.press("Escape")
    expect(cell).to_contain_text("screen xxx")
    assert comments(pool, "device4") == "screen xxx"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_table_can_be_used_by_everybody(chromium: Browser, pool: Pool, scheme: str) -> None:
    post(pool, "device4/set-comments", comments="a long story " * 20)
    post(pool, "device5/state-change/ready/to/failed_pxe_booting")
    pool.ask("device6")
    for width in (1400, 390):
        context = chromium.new_context(
            base_url=pool.url,
            viewport={"width": width, "height": 800},
            color_scheme=scheme,  # type: ignore[arg-type]
        )
        page = context.new_page()
        page.goto("/devices?label=processor=armv7")
        box(page, "device4").click()
        for name in ("Self-test", "Labels", "Force a state"):
            page.get_by_role("region", name="Selected devices").get_by_role("button", name=name).click()
            expect(page.locator("dialog[open]")).to_contain_text("device4")
            assert violations(page) == []
            page.keyboard.press("Escape")
        page.get_by_role("button", name="Change comments on device4").click()
        assert violations(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        context.close()
