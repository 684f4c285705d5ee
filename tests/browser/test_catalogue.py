# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Relay boards, PXE configs, images, hardware types and environments as people edit them, in Chromium."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
import requests
from playwright.sync_api import Browser, ConsoleMessage, Page, expect

from tests.browser.axe import violations
from tests.browser.conftest import Pool
from tests.contract.peers import RelayFault

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]

PATIENCE = 60_000
"""Milliseconds that something may take on a busy machine."""


expect.set_options(timeout=PATIENCE)


@pytest.fixture
def desk(chromium: Browser, pool: Pool) -> Iterator[Page]:
    """A page on which calls may be refused; whatever else its console complains of fails the test."""
    complaints: list[str] = []

    def heard(said: ConsoleMessage) -> None:
        if said.type in ("error", "warning") and not re.search(r"status of (400|404|409)", said.text):
            complaints.append(said.text)

    context = chromium.new_context(base_url=pool.url, viewport={"width": 1400, "height": 900})
    page = context.new_page()
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", heard)
    yield page
    context.close()
    assert complaints == []


def told(page: Page, text: str) -> None:
    """The page says at its bottom that it was done."""
    expect(page.locator("#messages")).to_contain_text(text)


def test_a_pxe_config_is_made_assigned_edited_and_not_overwritten(desk: Page, pool: Pool) -> None:
    page = desk
    page.goto("/pxe-configs")
    page.get_by_role("link", name="b2g", exact=True).click()
    page.get_by_role("link", name="Copy to a new one").click()
    page.get_by_label("Name").fill("b2g")
    page.get_by_role("button", name="Create").click()
    expect(page.get_by_text("'b2g' is not free")).to_be_visible()
    expect(page.get_by_label("Name")).to_be_focused()
    page.get_by_label("Name").fill("b2g-2")
    page.get_by_label("Description").fill("installs the next Firefox OS")
    page.get_by_role("button", name="Create").click()
    expect(page).to_have_url(f"{pool.url}/pxe-configs/b2g-2")
    expect(page.get_by_role("heading", level=1)).to_have_text("b2g-2")

    # What becomes of it is seen as one types.
    text, written = page.get_by_label("Text for the boot loader"), page.get_by_label("The text as it is written")
    text.fill("append name=%DEVICE% %SERVER%\n")
    expect(page.get_by_label("Doubts")).to_contain_text("There is no mobile-imaging-url= in it")
    expect(page.get_by_label("Doubts")).to_contain_text("%SERVER% stays as it is")
    expect(written).to_have_text("append name=device1 %SERVER%\n")
    text.fill("append mobile-imaging-url=%URL%/b2g.sh name=%DEVICE%\n")
    expect(page.get_by_label("Doubts").locator("li")).to_have_count(0)
    page.get_by_label("As it is written for").fill("device7")
    page.get_by_label("As it is written for").blur()
    expect(written).to_contain_text("/b2g.sh name=device7")
    page.get_by_role("button", name="Save").click()
    told(page, "b2g-2 is saved")
    expect(page.locator("#changed")).to_be_hidden()

    page.get_by_role("button", name="Assign b2g on panda ES").click()
    expect(page.locator("#ask")).to_contain_text("b2g boots b2g on panda ES now")
    page.locator("#ask").get_by_role("button", name="Assign").click()
    told(page, "b2g-2 boots b2g on panda ES.")
    expect(page.get_by_role("button", name="Unassign b2g on panda ES")).to_be_visible()
    page.get_by_role("button", name="Delete b2g-2").click()
    page.locator("#ask").get_by_role("button", name="Delete").click()
    told(page, "PXE config b2g-2 is used: b2g on panda ES")

    # Somebody else edits it while this one does.
    page.get_by_label("Description").fill("mine")
    change = f"{pool.url}/api/bmm/pxe_config/b2g-2/change/"
    requests.post(change, json={"description": "theirs"}, timeout=30).raise_for_status()
    page.get_by_role("button", name="Save").click()
    expect(page.locator("#pxe-form .wrong")).to_contain_text("Somebody else has changed PXE config b2g-2 meanwhile")
    expect(page.locator("#changed")).to_be_visible()
    page.get_by_text("What is stored now").click()
    expect(page.locator("#changed details")).to_contain_text("theirs")
    expect(page.get_by_label("Description")).to_have_value("mine")
    page.get_by_role("button", name="Keep mine").click()
    expect(page.locator("#changed")).to_be_hidden()
    page.get_by_role("button", name="Save").click()
    expect(page.locator("#pxe-form .wrong")).to_have_count(0)
    page.get_by_role("link", name="PXE configs").first.click()
    row = page.get_by_role("row", name=re.compile("^b2g-2 "))
    expect(row).to_contain_text("mine")
    expect(row).to_contain_text("b2g on panda ES")

    # A device that is installed with it boots it.
    pool.ask("device3")
    requests.post(f"{pool.url}/api/bmm/pxe_config/android/change/", json={"active": False}, timeout=30)
    expect(page.get_by_role("row", name=re.compile("^android "))).to_contain_text("inactive")


def test_a_relay_board_is_tested_both_ways(page: Page, pool: Pool) -> None:
    pool.add_board_with_relay("far-board")
    page.goto("/relays")
    fine = page.get_by_role("row", name=re.compile("^relay-"))
    fine.get_by_role("button", name="Test").click()
    expect(fine.locator(".came")).to_have_text("it answers")
    failed = page.get_by_role("row", name=re.compile(str(pool.relay_board.port)))
    failed.get_by_role("button", name="Test").click()
    expect(failed.locator(".came")).to_contain_text(re.compile("(lost|closed) the connection"))
    pool.relay_board.fault = RelayFault.NONE
    failed.get_by_role("button", name="Test").click()
    expect(failed.locator(".came")).to_have_text("it answers")
    failed.get_by_role("button", name="Try again now").click()
    expect(failed.locator(".state")).to_have_text("ok")
    expect(failed.locator(".came")).to_have_text("it answers")
    failed.get_by_role("link").first.click()
    expect(page.get_by_role("row", name=re.compile("^far-board"))).to_contain_text("bank1:relay1")


def test_an_image_and_a_hardware_type_are_made_and_edited(desk: Page, pool: Pool) -> None:
    page = desk
    page.goto("/hardware-types")
    page.get_by_role("button", name="New hardware type").click()
    page.get_by_role("textbox", name="Type").fill("tegra")
    page.get_by_role("textbox", name="Model").fill("250")
    page.get_by_label("Probe").select_option("adb")
    page.get_by_role("button", name="Save").click()
    row = page.get_by_role("row", name=re.compile("^tegra 250 "))
    expect(row).to_contain_text("usual (proxr)")
    expect(row).to_contain_text("adb")
    row.get_by_role("button", name="Edit").click()
    expect(page.get_by_label("Probe")).to_have_value("adb")
    page.get_by_label("Probe").select_option("")
    page.get_by_role("button", name="Save").click()
    expect(row).not_to_contain_text("adb")

    page.goto("/images")
    page.get_by_role("button", name="New image").click()
    page.get_by_role("textbox", name="Name").fill("raw disk")
    page.get_by_label("Boot config keys").fill("image_url\nimage_url")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_text("a key that is named once")).to_be_visible()
    page.get_by_label("Boot config keys").fill("image_url\nimage_sha256\n")
    page.get_by_role("button", name="Save").click()
    row = page.locator("#live section").first.get_by_role("row", name=re.compile("^raw disk "))
    expect(row).to_contain_text("image_url image_sha256")
    page.get_by_role("button", name="Change what boots raw disk on tegra 250").click()
    page.get_by_label("Booted by").select_option("android")
    page.get_by_role("button", name="Save").click()
    told(page, "android boots raw disk on tegra 250.")
    row.get_by_role("button", name="Edit").click()
    expect(page.get_by_label("Boot config keys")).to_have_value("image_url\nimage_sha256")
    page.get_by_label("Boot config keys").fill("")
    page.get_by_role("checkbox", name="Reusable").check()
    page.get_by_role("checkbox", name="Hidden").check()
    # The page updates itself beneath the dialog.
    requests.post(f"{pool.url}/api/image/create/", json={"name": "another"}, timeout=30).raise_for_status()
    expect(page.locator("#live")).to_contain_text("another")
    page.get_by_role("button", name="Save").click()
    expect(row).to_contain_text("none yes yes yes")
    row.get_by_role("button", name="Delete").click()
    page.locator("#ask").get_by_role("button", name="Delete").click()
    told(page, "PXE configs android (on tegra 250)")
    page.get_by_role("button", name="Change what boots raw disk on tegra 250").click()
    page.get_by_label("Booted by").select_option("")
    page.get_by_role("button", name="Save").click()
    told(page, "Nothing boots raw disk on tegra 250 any more.")
    row.get_by_role("button", name="Delete").click()
    page.locator("#ask").get_by_role("button", name="Delete").click()
    told(page, "raw disk is deleted.")
    expect(row).to_have_count(0)


def test_an_environment_is_renamed_and_all_pages_suit_everybody(desk: Page, pool: Pool, chromium: Browser) -> None:
    page = desk
    page.goto("/environments")
    row = page.get_by_role("row", name=re.compile("^staging "))
    expect(row).to_contain_text("staging 3")
    row.get_by_role("button", name="Rename").click()
    expect(page.locator("#environment-dialog")).to_contain_text("It has 3 devices.")
    page.get_by_label("New name").fill("production")
    page.get_by_role("button", name="Rename", exact=True).click()
    expect(page.get_by_text("There is an environment production").or_(page.locator(".wrong"))).to_be_visible()
    page.get_by_label("New name").fill("stage")
    page.get_by_role("button", name="Rename", exact=True).click()
    expect(page.get_by_role("row", name=re.compile("^stage 3"))).to_be_visible()
    expect(row).to_have_count(0)

    dialogs = {"/images": "New image", "/hardware-types": "New hardware type", "/environments": "Rename stage"}
    paths = ("/relays", "/pxe-configs", "/pxe-configs/b2g", "/new-pxe-config", *dialogs)
    found: list[str] = []
    for width, scheme in ((1400, "light"), (390, "dark")):
        context = chromium.new_context(
            base_url=pool.url,
            viewport={"width": width, "height": 900},
            color_scheme="dark" if scheme == "dark" else "light",
        )
        other = context.new_page()
        for path in (*paths, "/relays/" + requests.get(f"{pool.url}/api/relay/list/").json()["relays"][0]["name"]):
            other.goto(path)
            if other.evaluate("document.documentElement.scrollWidth") > width:
                found.append(f"{path} is wider than {width}")
            if path in dialogs:
                other.get_by_role("button", name=dialogs[path]).click()
            names = violations(other)
            found += [f"{path}, {width}, {scheme}: {name}" for name in names]
        context.close()
    assert found == []
