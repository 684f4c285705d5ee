# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The pages of requests, in Chromium."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Pool

pytestmark = [pytest.mark.browser, pytest.mark.timeout(180)]

expect.set_options(timeout=60_000)


def test_a_device_is_checked_out_renewed_and_returned(page: Page, pool: Pool) -> None:
    page.goto("/")
    page.get_by_text("Who are you?").click()
    page.get_by_label("Your e-mail address").fill("ada@example.com")
    page.get_by_role("button", name="Keep").click()
    page.get_by_role("link", name="Requests", exact=True).click()
    expect(page.get_by_text("No open requests of yours.")).to_be_visible()
    page.get_by_role("link", name="New request").click()
    expect(page.get_by_label("Assignee")).to_have_value("ada@example.com")
    expect(page.locator("#matching")).to_have_text("12 devices match, all of them are free now.")
    page.get_by_label("Environment").select_option("staging")
    expect(page.locator("#matching")).to_have_text("3 devices match, all of them are free now.")
    page.get_by_label("Image").select_option("b2g")
    page.get_by_label("For how long").fill("soon")
    page.get_by_label("b2gbase").fill("http://builds.example.com/1/")
    page.get_by_role("button", name="Request it").click()
    page.get_by_label("For how long").fill("1h 30 min")
    page.get_by_label("b2gbase").fill("")
    page.get_by_role("button", name="Request it").click()
    page.get_by_label("b2gbase").fill("http://builds.example.com/1/")
    page.get_by_role("button", name="Request it").click()

    expect(page).to_have_url(re.compile(r"/requests/\d+$"))
    expect(page.locator(".steps [aria-current]")).to_have_text("Ready")
    expect(page).to_have_title(re.compile(r"^Ready: request \d+ \(device\d+\)"))
    expect(page.get_by_role("status").filter(has_text="is ready for ada@example.com")).to_be_visible()
    expect(page.locator(".diagram .current text")).to_have_text("ready")
    expect(page.locator(".diagram .been text").first).to_be_visible()
    expect(page.get_by_role("region", name="States that it was in")).to_contain_text("b2g_extracting")
    expect(page.locator(".lent .large time")).to_have_text(re.compile(r"^1:(29|30):\d\d$"))
    page.get_by_role("button", name="Renew…").click()
    page.get_by_label("For how long, from now").fill("nothing")
    dialog = page.locator("dialog#renew")
    dialog.get_by_role("button", name="Renew").click()
    expect(dialog.get_by_role("alert")).to_contain_text("A duration is expected")
    page.get_by_label("For how long, from now").fill("5 h")
    dialog.get_by_role("button", name="Renew").click()
    expect(page.locator(".lent .large time")).to_have_text(re.compile(r"^(5:00:00|4:59:\d\d)$"))
    page.get_by_role("button", name="Return", exact=True).click()
    page.locator("dialog#ask").get_by_role("button", name="Return").click()
    expect(page.locator(".steps [aria-current]")).to_have_text("Closed")
    expect(page.get_by_role("button", name="Renew…")).to_be_hidden()
    expect(page.get_by_role("region", name="Devices that it had")).to_contain_text("it was prepared; returned")

    page.get_by_role("link", name="Request the same again").click()
    expect(page.get_by_label("Environment")).to_have_value("staging")
    expect(page.get_by_label("Image")).to_have_value("b2g")
    expect(page.get_by_label("b2gbase")).to_have_value("http://builds.example.com/1/")


def test_requests_that_wait_say_why_and_are_returned_together(page: Page, pool: Pool) -> None:
    first = pool.ask("device1")
    waiting = [pool.ask("device1") for _ in range(3)]
    page.goto("/requests?search=device1")
    rows = page.locator("#requests tbody tr")
    expect(rows).to_have_count(4)
    expect(rows.first).to_contain_text("device1 is taken by ada@example.com")
    page.get_by_label(f"Select request {waiting[2]}").check()
    page.get_by_label(f"Select request {waiting[0]}").click(modifiers=["Shift"])
    expect(page.locator("#bulk")).to_contain_text("3 requests selected")
    with page.expect_response(lambda said: "/requests" in said.url):
        pass  # an update: what is selected stays so
    page.get_by_role("button", name="Return…").click()
    page.locator("dialog#ask").get_by_role("button", name="Return").click()
    expect(page.get_by_role("region", name="Results").get_by_text("returned")).to_have_count(3)
    page.get_by_role("button", name="Close", exact=True).click()
    expect(rows).to_have_count(1)
    expect(page.locator("#bulk")).to_be_hidden()
    page.get_by_role("link", name="With closed").click()
    expect(rows).to_have_count(4)
    page.go_back()
    expect(rows).to_have_count(1)
    page.get_by_role("link", name=str(first), exact=True).click()
    expect(page.get_by_role("heading", level=1)).to_have_text(f"Request {first}")


def test_a_taken_device_is_queued_for_and_its_diagram_follows(page: Page, pool: Pool) -> None:
    first = pool.ask("device1")
    form = page.context.new_page()  # its console is not watched: it complains of each answer that is a refusal
    form.goto("/requests/new?device=device1&image=android")
    expect(form.locator("#matching")).to_contain_text("1 device matches, and it is not free now.")
    expect(form.locator("#matching")).to_contain_text("device1 is taken by ada@example.com until")
    form.get_by_label("Assignee").fill("eve@example.com")
    form.get_by_role("button", name="Request it").click()
    expect(form.locator("#device-wrong")).to_contain_text("is taken by ada@example.com")
    expect(form.get_by_label("Name")).to_be_focused()
    form.get_by_label("How long it may queue").fill("10 min")
    form.get_by_role("button", name="Request it").click()
    expect(form).to_have_url(re.compile(r"/requests/\d+$"))

    page.goto(form.url)
    form.close()
    expect(page.locator("#request")).to_contain_text("Place 1 in the queue")
    drawing = page.locator(".diagram")
    expect(drawing.locator(".current text")).to_have_text("finding_device")
    expect(drawing.get_by_role("img")).to_have_accessible_name(re.compile("it can go on to .*contact_lifeguard"))
    pool.give_back(first)
    expect(drawing.locator(".current text")).to_have_text("ready")
    expect(page).to_have_title(re.compile("^Ready: "))
