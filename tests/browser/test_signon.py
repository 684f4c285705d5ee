# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Signing on and off, tokens, teams, sessions, and what pages show to whom, in Chromium."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import requests
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, expect

from tests.browser.axe import violations
from tests.browser.conftest import Pool
from tests.contract.peers import RelayBoard, RelayFault
from tests.openid_provider import CLIENT_ID, CLIENT_SECRET, PASSWORD, OpenIDProvider
from tests.processes import end

pytestmark = [pytest.mark.browser, pytest.mark.timeout(400)]

PATIENCE = 60_000
"""Milliseconds that something may take on a busy machine."""

expect.set_options(timeout=PATIENCE)

Browse = Callable[..., Page]


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> OpenIDProvider:
    return OpenIDProvider(tmp_path_factory.mktemp("provider"))


@pytest.fixture(scope="module")
def closed(provider: OpenIDProvider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """A pool in mode oidc, and its provider."""
    auth = (
        f"[auth]\nmode = oidc\noidc_issuer = {provider.issuer}\noidc_client_id = {CLIENT_ID}\n"
        f"oidc_client_secret = {CLIENT_SECRET}\noidc_users = lab\noidc_admins = admins\ndevice_events = open\n"
    )
    directory = tmp_path_factory.mktemp("pool")
    with RelayBoard(RelayFault.CLOSES_AT_ONCE) as relay_board:
        pool = Pool(directory, relay_board, more=auth)
        provider.prepare([f"{pool.url}/login/return"])
        provider.start()
        process = pool.start()
        try:
            yield pool
        finally:
            end(process)
            provider.stop()
    said = (directory / "server.log").read_text()
    assert not re.findall(r"^Traceback", said, re.M), said
    assert "mozpool_" not in said, "a secret is in the log"


@pytest.fixture
def browse(chromium: Browser, closed: Pool) -> Iterator[Browse]:
    """Makes pages of browsers of their own, if wanted signed on with a token of a role. Their consoles are quiet."""
    complaints: list[str] = []

    def heard(said: ConsoleMessage) -> None:
        is_ours = said.location["url"].startswith(closed.url)
        if is_ours and said.type in ("error", "warning") and not re.search(r"status of (400|401|403|409)", said.text):
            complaints.append(said.text)

    with ExitStack() as opened:

        def make(
            role: str | None = None, name: str = "tester@example.com", width: int = 1400, dark: bool = False
        ) -> Page:
            context: BrowserContext = chromium.new_context(
                base_url=closed.url,
                viewport={"width": width, "height": 900},
                color_scheme="dark" if dark else "light",
            )
            opened.callback(context.close)
            context.set_default_timeout(PATIENCE)
            page = context.new_page()
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on("console", heard)
            if role is not None:
                page.goto("/login")
                page.get_by_text("With a token").click()
                page.get_by_label("Token", exact=True).fill(closed.token(role, name))
                page.get_by_role("button", name="Sign on").click()
                page.wait_for_url(f"{closed.url}/")
            return page

        yield make
    assert complaints == []


def picture(page: Page, name: str) -> None:
    """Take one, where ``MOZPOOL_SCREENSHOTS`` names a directory."""
    if directory := os.environ.get("MOZPOOL_SCREENSHOTS"):
        page.screenshot(path=Path(directory) / f"{name}.png", full_page=True)


def ask(pool: Pool, token: str, device: str, **more: object) -> int:
    """Ask for a device with a token; the request's number."""
    body = {"duration": 3600, "image": "android", "wait": 600, **more}
    said = requests.post(
        f"{pool.url}/api/device/{device}/request/", json=body, headers={"Authorization": f"Bearer {token}"}, timeout=30
    )
    assert said.status_code == 200, said.text
    number: int = said.json()["request"]["id"]
    return number


def test_people_sign_on_through_their_provider_and_off(browse: Browse, closed: Pool) -> None:
    page = browse()
    page.goto("/devices?category=idle")
    expect(page.get_by_role("heading", level=1)).to_have_text("Sign on")
    assert violations(page) == []
    page.get_by_role("link", name="Sign on through your provider").click()
    page.get_by_label("Username").fill("ada")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Log in").click()
    expect(page).to_have_url(f"{closed.url}/devices?category=idle")
    page.locator("details.me summary").click()
    expect(page.locator("details.me")).to_contain_text("Role user")
    assert violations(page) == []
    page.get_by_role("link", name="Sessions").click()
    expect(page.get_by_text("this browser")).to_be_visible()

    # She asks for a device, which is hers.
    page.goto("/requests/new?image=android&duration=1+h")
    expect(page.get_by_label("Assignee")).to_have_value("ada@example.com")
    page.get_by_role("button", name="Request it").click()
    expect(page.get_by_role("heading", level=1)).to_have_text(re.compile(r"Request \d+"))
    page.get_by_role("button", name="Return").click()
    page.locator("#ask button[value=yes]").click()
    expect(page.locator("#messages")).to_contain_text("was returned")
    page.goto("/requests?closed=1")
    expect(page.get_by_role("link", name="Mine")).to_have_attribute("aria-current", "true")
    expect(page.locator("table.requests tbody tr")).to_have_count(1)

    page.locator("details.me summary").click()
    page.get_by_role("button", name="Sign off").click()
    expect(page.get_by_text("You are signed off here.")).to_be_visible()
    expect(page.get_by_role("link", name="sign off there, too")).to_be_visible()
    page.goto("/devices")
    expect(page.get_by_role("heading", level=1)).to_have_text("Sign on")


def test_a_wrong_token_is_told_at_its_field(browse: Browse) -> None:
    page = browse()
    page.goto("/login?next=/devices")
    page.get_by_text("With a token").click()
    page.get_by_label("Token", exact=True).fill("mozpool_1_nonsense")
    page.get_by_role("button", name="Sign on").click()
    expect(page.locator("#token-wrong")).to_be_visible()
    expect(page.get_by_label("Token", exact=True)).to_have_value("")
    assert violations(page) == []
    picture(page, "login-wrong")


def test_a_token_is_made_shown_once_and_revoked(browse: Browse, closed: Pool) -> None:
    page = browse("admin")
    page.goto("/tokens")
    page.get_by_role("button", name="New token").click()
    page.get_by_label("Whose it is").fill("builder-1.example.com")
    page.get_by_label("Good for").select_option("30 days")
    page.get_by_label("What it is for").fill("nightly <b>builds</b>")
    assert violations(page) == []
    picture(page, "token-new")
    page.get_by_role("button", name="Make it").click()
    made = page.locator("#made")
    expect(made).to_contain_text("Token of builder-1.example.com")
    text = page.locator("#made-text").inner_text()
    assert re.fullmatch(r"mozpool_\d+_[\w-]{43}", text)
    assert violations(page) == []
    picture(page, "token-made")
    made.get_by_role("button", name="Close").click()
    expect(page.locator("#made-text")).to_have_text("")
    assert text not in page.content()
    row = page.locator("tr", has_text="builder-1.example.com")
    expect(row).to_contain_text("nightly <b>builds</b>")
    expect(row).to_contain_text("never")
    headers = {"Authorization": f"Bearer {text}"}
    assert requests.get(f"{closed.url}/api/device/list/", headers=headers, timeout=30).status_code == 200
    expect(row).to_contain_text("from 127.0.0.1")
    row.get_by_role("button", name="Revoke").click()
    page.locator("#ask button[value=yes]").click()
    expect(row).to_have_count(0)
    assert requests.get(f"{closed.url}/api/device/list/", headers=headers, timeout=30).status_code == 401
    page.get_by_role("link", name="Also those that were revoked").click()
    expect(page.locator("tr.over", has_text="builder-1.example.com")).to_contain_text("revoked")
    assert violations(page) == []


def test_people_make_tokens_for_themselves_alone(browse: Browse) -> None:
    page = browse("user", "linus@example.com")
    page.goto("/tokens")
    page.get_by_role("button", name="New token").click()
    expect(page.get_by_label("Whose it is")).to_have_count(0)
    assert page.get_by_label("Role").locator("option").all_inner_texts() == ["viewer", "user"]
    page.get_by_role("button", name="Make it").click()
    expect(page.locator("#made")).to_contain_text("Token of linus@example.com")
    page.locator("#made").get_by_role("button", name="Close").click()
    rows = page.locator("#live tbody tr")
    expect(rows).to_have_count(2)
    assert all("linus@example.com" in text for text in rows.all_inner_texts())


def test_a_team_is_made_changed_and_deleted(browse: Browse) -> None:
    page = browse("admin")
    page.goto("/teams")
    page.get_by_role("button", name="New team").click()
    page.get_by_label("Name").fill("web")
    page.get_by_label("Devices at a time").fill("4")
    page.get_by_label("Longest duration").fill("90 min")
    page.get_by_label("Environments that it may use").fill("staging\nproduction")
    page.get_by_label("Groups of the OpenID provider").fill("web-people")
    assert violations(page) == []
    picture(page, "team-new")
    page.get_by_role("button", name="Keep").click()
    row = page.locator("tr", has_text="web")
    expect(row).to_contain_text("90 min")
    expect(row).to_contain_text("staging, production")
    row.get_by_role("button", name="Edit").click()
    dialog = page.locator("#team-dialog")
    expect(dialog.get_by_label("Name")).to_be_hidden()
    expect(dialog.get_by_label("Longest duration")).to_have_value("90 min")
    dialog.get_by_label("Longest duration").fill("")
    dialog.get_by_label("Groups of the OpenID provider").fill("")
    dialog.get_by_label("Devices at a time").fill("-1")
    dialog.get_by_role("button", name="Keep").click()
    expect(dialog.locator(".wrong")).to_be_visible()
    dialog.get_by_label("Devices at a time").fill("6")
    dialog.get_by_role("button", name="Keep").click()
    expect(page.locator("#messages")).to_contain_text("web is changed")
    expect(row).to_contain_text("6")
    expect(row).not_to_contain_text("90 min")
    expect(row).not_to_contain_text("web-people")
    expect(row).to_contain_text("staging, production")
    row.get_by_role("button", name="Delete").click()
    page.locator("#ask button[value=yes]").click()
    expect(page.get_by_text("There are no teams")).to_be_visible()


def test_whoever_is_signed_off_elsewhere_is_told_so(browse: Browse, closed: Pool) -> None:
    page, other = browse("operator", "ada@example.com"), browse("operator", "ada@example.com")
    other.goto("/devices?state=ready")
    page.goto("/sessions")
    page.locator("tr", has=page.get_by_role("button", name="End")).get_by_role("button").last.click()
    page.locator("#ask button[value=yes]").click()
    expect(page.locator("#messages")).to_contain_text("The session is ended")
    expect(other.locator("#signed-off")).to_be_visible()
    expect(other.locator("#away")).to_be_hidden()
    expect(other.locator("tr", has_text="device1").first).to_be_visible()
    picture(other, "signed-off")
    other.get_by_role("link", name="Sign on again").click()
    expect(other).to_have_url(re.compile(r"/login\?next=/devices(\?|%3F)state%3Dready$"))


def test_a_page_of_a_session_before_changes_nothing(browse: Browse) -> None:
    page = browse("operator", "ada@example.com")
    page.goto("/devices/device12")
    page.context.clear_cookies()
    second = page.context.new_page()
    second.goto("/login")
    assert second.title() == "Sign on · Mozpool"
    second.close()
    page.get_by_role("button", name="Change the comments").click()
    page.get_by_label("Comments").last.fill("whatever")
    page.locator("dialog[open]").get_by_role("button", name=re.compile("Keep|Save|Change")).click()
    expect(page.locator("dialog[open] .wrong")).to_be_visible()


def buttons(page: Page) -> set[str]:
    """What the buttons and links that do something are called."""
    shown = page.locator("main button:visible, main a.button:visible, main input[type=checkbox]:visible")
    names = shown.evaluate_all("all => all.map((each) => each.getAttribute('aria-label') || each.innerText)")
    return {re.sub(r"\s+", " ", name).strip() for name in names}


def test_pages_show_what_one_may_do(browse: Browse, closed: Pool) -> None:
    ada, grace = closed.token("user", "ada@example.com"), closed.token("user", "grace@example.com")
    hers, others = ask(closed, ada, "device3"), ask(closed, grace, "device4")
    pages = {role: browse(role, "ada@example.com") for role in ("viewer", "user", "operator", "admin")}

    def seen(path: str) -> dict[str, set[str]]:
        for page in pages.values():
            page.goto(path)
        return {role: buttons(page) for role, page in pages.items()}

    overview = seen("/")
    assert "Request a device" not in overview["viewer"]
    assert "Request a device" in overview["user"]

    requests_of_all = seen("/requests?whose=all")
    assert not any(name.startswith("Select") for name in requests_of_all["viewer"])
    assert f"Select request {hers}" in requests_of_all["user"]
    assert f"Select request {others}" not in requests_of_all["user"]
    assert f"Select request {others}" in requests_of_all["operator"]

    own, foreign = seen(f"/requests/{hers}"), seen(f"/requests/{others}")
    assert {"Renew…", "Return"} <= own["user"]
    assert not {"Renew…", "Return"} & (foreign["user"] | own["viewer"])
    assert {"Renew…", "Return"} <= foreign["operator"]

    held, free = seen("/devices/device3"), seen("/devices/device5")
    assert not {"Return it", "Lock out…", "Power off", "Change the comments", "Run"} & held["viewer"]
    assert {"Return it", "Power off"} <= held["user"]
    assert not {"Power off", "Self-test", "Lock out…", "Force a state…", "Change the comments"} & free["user"]
    assert {"Power off", "Self-test", "Lock out…", "Force a state…", "Change the comments"} <= free["operator"]

    listed = seen("/devices")
    assert not any(name.startswith(("Select", "Actions")) for name in listed["user"])
    assert {"Select device5", "Actions on device5"} <= listed["operator"]

    for path, name in (
        ("/images", "New image"),
        ("/hardware-types", "New hardware type"),
        ("/pxe-configs", "New PXE config"),
        ("/pxe-configs/b2g", "Save"),
        ("/teams", "New team"),
    ):
        found = seen(path)
        assert name in found["admin"], path
        assert name not in found["operator"], path
    relays = seen("/relays")
    assert not any(name.startswith("Test") for name in relays["user"])

    # What a page does not offer is refused, in words.
    page = pages["viewer"]
    page.goto("/requests/new")
    expect(page.get_by_role("heading", level=1)).to_have_text("403")
    expect(page.get_by_role("link", name="Sign on as somebody else")).to_be_visible()
    picture(page, "forbidden")
    for token, number in ((ada, hers), (grace, others)):
        requests.post(
            f"{closed.url}/api/request/{number}/return/", headers={"Authorization": f"Bearer {token}"}, timeout=30
        )


@pytest.mark.parametrize(("width", "dark"), [(1400, False), (1400, True), (390, True), (390, False)])
def test_the_new_pages_fit_and_can_be_used_by_everybody(browse: Browse, closed: Pool, width: int, dark: bool) -> None:
    page = browse("admin", width=width, dark=dark)
    headers = {"Authorization": f"Bearer {closed.token('admin', 'root@example.com')}"}
    body = {"name": f"lab-{width}-{dark}", "max_devices": 3, "max_duration": 7200, "environments": ["staging"]}
    said = requests.post(f"{closed.url}/api/team/create/", json=body, headers=headers, timeout=30)
    assert said.status_code == 200, said.text
    wrong = []
    look = f"{width}-{'dark' if dark else 'light'}"
    for path in ("/tokens?old=1", "/teams", "/sessions", "/login?other=1", "/login?other=1&out=1", "/logout"):
        page.goto(path)
        page.wait_for_load_state("load")
        picture(page, f"{path.strip('/').replace('?', '-').replace('&', '-')}-{look}")
        if (wide := page.evaluate("document.documentElement.scrollWidth")) > width:
            wrong.append(f"{path}: is {wide} pixels wide")
        if (headings := page.locator("h1").count()) != 1:
            wrong.append(f"{path}: has {headings} h1")
        page.locator("details.me summary").click()
        wrong += [f"{path}: {each}" for each in violations(page)]
    picture(page, f"me-{look}")
    assert wrong == [], "\n".join(wrong)
