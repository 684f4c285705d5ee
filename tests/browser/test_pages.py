# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The pages as people see them, in Chromium."""

from __future__ import annotations

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.conftest import Pool
from tests.contract.peers import RelayFault

pytestmark = [pytest.mark.browser, pytest.mark.timeout(180)]

PATIENCE = 60_000
"""Milliseconds that something may take on a busy machine."""

expect.set_options(timeout=PATIENCE)


def test_a_page_that_nothing_changes_on_is_not_sent_again(page: Page, pool: Pool) -> None:
    page.goto("/relays")
    with page.expect_response(lambda said: said.url.endswith("/relays") and said.status == 304):
        pass


def test_a_power_switch_that_failed_is_named_and_tried_again_by_a_button(page: Page, pool: Pool) -> None:
    pool.add_board_with_relay("far-board")
    page.goto("/")
    page.locator(".notice a").click()
    failed = page.locator("tr", has_text=str(pool.relay_board.port))
    expect(failed.locator(".state")).to_have_text("failed")
    expect(failed).to_contain_text("1, 1 waiting")
    pool.relay_board.fault = RelayFault.NONE
    failed.get_by_role("button", name="Try again now").click()
    expect(failed.locator(".state")).to_have_text("ok")
    page.get_by_role("link", name="Overview").click()
    expect(page.locator(".notice:visible")).to_have_count(0)


def test_the_api_is_described_without_the_internet(page: Page) -> None:
    page.goto("/api/docs")
    expect(page.get_by_role("heading", name="The API")).to_be_visible()
    page.get_by_role("link", name="/api/device/{name}/request/").click()
    call = page.locator("article:target")
    expect(call.get_by_role("heading", level=3)).to_contain_text("POST /api/device/{name}/request/")
    expect(call).to_be_in_viewport()


def test_pages_fit_on_a_telephone(chromium: Browser, pool: Pool) -> None:
    pool.ask()
    context = chromium.new_context(base_url=pool.url, viewport={"width": 360, "height": 700}, color_scheme="dark")
    page = context.new_page()
    for path in ("/", "/relays", "/servers", "/api/docs", "/nothing"):
        page.goto(path)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, path
    context.close()
