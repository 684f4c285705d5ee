# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What holds for all calls: errors, foreign origins, the log of calls; and the pages."""

import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from mozpool import resources
from mozpool.apikit import MAX_BODY
from mozpool.errors import DatabaseAway
from mozpool.web.pages.base import STAMP
from tests.app_fixtures import OTHER, OWN, Server, server

BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


@pytest.fixture
def site(sqlite_url: str, tmp_path: Path) -> Iterator[Server]:
    """A server on SQLite: the database makes no difference here."""
    with server(sqlite_url, tmp_path, server={"origins": ("dashboard.example.com:8000",)}) as made:
        yield made


# --- Errors ---


@pytest.mark.parametrize("path", ["/api/nothing/", "/api", "/api/device/", "/api/device//details/"])
def test_an_unknown_api_path_is_told_in_json_even_to_browsers(site: Server, path: str) -> None:
    answer = site.get(path, headers=BROWSER)
    assert answer.status_code == 404
    assert answer.get_json()["error"]["code"] == "not_found"


def test_a_wrong_verb_is_told_with_the_right_ones(site: Server) -> None:
    answer = site.get("/api/request/1/return/")
    assert answer.status_code == 405
    assert answer.get_json()["error"]["code"] == "method_not_allowed"
    assert "POST" in answer.headers["Allow"]


def test_a_large_body_is_refused(site: Server) -> None:
    answer = site.client.post("/api/device/any/request/", data=b" " * (MAX_BODY + 1))
    assert answer.status_code == 413
    assert answer.get_json()["error"]["code"] == "too_large"


def test_an_internal_error_is_logged_and_says_nothing(
    site: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(site.daemon.mozpool, "get", lambda number: 1 / 0)
    answer = site.get("/api/request/1/log/")
    assert answer.status_code == 500
    assert answer.get_json() == {
        "error": {"code": "internal_error", "message": "an internal error, which was logged", "field": None}
    }
    assert "ZeroDivisionError" in caplog.text
    site.undocumented.clear()


def test_a_database_that_is_away_is_told_with_retry_after(site: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*args: object, **options: object) -> None:
        raise DatabaseAway("the database is away")

    monkeypatch.setattr(site.daemon.database, "run", away)
    monkeypatch.setattr(site.daemon.database, "read", away)
    for answer in (site.ask(), site.get("/api/device/list/"), site.get("/api/device/device1/event/x/")):
        assert answer.status_code == 503
        assert answer.headers["Retry-After"] == "5"
        assert answer.get_json()["error"]["code"] == "database_away"


def test_browsers_get_a_page_for_what_is_not_the_api(site: Server) -> None:
    answer = site.get("/nothing", headers=BROWSER)
    assert (answer.status_code, answer.mimetype) == (404, "text/html")
    assert "There is no /nothing." in answer.text
    assert site.get("/nothing", headers={"Accept": "application/json"}).mimetype == "application/json"


def test_names_from_outside_are_shown_as_text(site: Server) -> None:
    assert "<script>" not in site.get("/<script>alert(1)</script>", headers=BROWSER).text
    site.change(comments="<script>alert(1)</script>")
    assert "<script>alert" not in site.get("/").text


# --- Pages of other origins ---


@pytest.mark.parametrize("origin", [f"http://{OTHER}", "https://dashboard.example.com:8000"])
def test_imaging_servers_and_configured_origins_may_call(site: Server, origin: str) -> None:
    site.other_server()
    answer = site.get("/api/device/list/", headers={"Origin": origin})
    assert answer.status_code == 200
    assert answer.headers["Access-Control-Allow-Origin"] == origin
    assert "Origin" in answer.headers["Vary"]
    preflight = site.client.options(
        "/api/device/any/request/", headers={"Origin": origin, "Access-Control-Request-Method": "POST"}
    )
    assert preflight.status_code == 204
    assert preflight.headers["Access-Control-Allow-Origin"] == origin
    assert "POST" in preflight.headers["Access-Control-Allow-Methods"]


@pytest.mark.parametrize("origin", ["http://evil.example.com", "null", "file://", "http://[", "chrome-extension://x"])
def test_other_origins_may_not_call(site: Server, origin: str) -> None:
    before = site.counts()
    answer = site.ask(headers={"Origin": origin})
    assert answer.status_code == 403
    assert answer.get_json()["error"]["code"] == "forbidden"
    assert "Access-Control-Allow-Origin" not in answer.headers
    assert site.counts() == before


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        (f"http://{OWN}", "localhost"),
        ("http://localhost", "localhost"),
        ("http://127.0.0.1:8080", "127.0.0.1:8080"),
        ("http://[::1]:8080", "[::1]:8080"),
        (f"http://{OWN}:8080", f"{OWN}:8080"),
    ],
)
def test_own_pages_may_call(site: Server, origin: str, host: str) -> None:
    assert site.get("/api/device/list/", headers={"Origin": origin, "Host": host}).status_code == 200


def test_a_foreign_name_does_not_become_ours_by_our_address(site: Server) -> None:
    headers = {"Origin": "http://evil.example.com", "Host": "evil.example.com"}
    assert site.get("/api/device/list/", headers=headers).status_code == 403


def test_foreign_pages_may_read_errors(site: Server) -> None:
    origin = "http://dashboard.example.com:8000"
    answer = site.get("/api/device/nobody/details/", headers={"Origin": origin})
    assert answer.status_code == 404
    assert answer.headers["Access-Control-Allow-Origin"] == origin


# --- The log of calls ---


def test_each_call_is_logged(site: Server, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mozpool.access")
    site.ask("device1", assignee="me@example.com\nPOST")
    site.get("/api/device/x%0Ay/details/")
    site.get("/static/css/mozpool.css").close()
    lines = [record.getMessage() for record in caplog.records if record.name == "mozpool.access"]
    assert len(lines) == 2
    assert re.fullmatch(r"127\.0\.0\.1 me@example\.com%0APOST POST /api/device/device1/request/ 200 \d+ ms", lines[0])
    assert re.fullmatch(r"127\.0\.0\.1 - GET /api/device/x%0Ay/details/ 404 \d+ ms", lines[1])


def test_calls_are_not_logged_where_that_is_switched_off(
    sqlite_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mozpool.access")
    with server(sqlite_url, tmp_path, server={"log_requests": False}) as quiet:
        quiet.ask()
    assert not [record for record in caplog.records if record.name == "mozpool.access"]


# --- Pages ---


def test_the_overview_shows_who_has_what(site: Server) -> None:
    site.made("device1", assignee="somebody@example.com")
    site.made("device1", wait=60)
    site.change("device2", state="failed_pxe_booting")
    page = site.get("/")
    assert page.status_code == 200
    assert OWN in page.text
    for text in ("somebody@example.com", "failed_pxe_booting", "device1 is taken by somebody@example.com until "):
        assert text in page.text
    assert "default-src 'self'" in page.headers["Content-Security-Policy"]


PART = {"Mozpool-Part": "1"}


def test_what_changes_of_a_page_is_sent_only_when_it_changed(site: Server) -> None:
    first = site.get("/", headers=PART)
    assert "<html" not in first.text
    again = site.get("/", headers={**PART, "If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.data) == (304, b"")
    site.change("device2", state="failed_pxe_booting")
    site.app.extensions[STAMP].forget()
    changed = site.get("/", headers={**PART, "If-None-Match": first.headers["ETag"]})
    assert changed.status_code == 200
    assert "device2" in changed.text


def test_pages_load_nothing_from_elsewhere() -> None:
    for name in ("templates", "static"):
        for file in resources.path(name).rglob("*"):
            if file.suffix in (".html", ".js", ".css"):
                text = file.read_text()
                assert not re.search(r"(?:src|href|url|import|fetch)\W{1,3}(?:https?:)?//", text), file
                if file.suffix == ".html":
                    assert not re.search(r"<script>|\son\w+=|style=", text), file


def test_the_pages_assets_are_there(site: Server) -> None:
    for page in ("/", "/api/docs"):
        for path in re.findall(r'(?:src|href)="(/static/[^"]+)"', site.get(page).text):
            answer = site.get(path)
            assert answer.status_code == 200, path
            answer.close()


@pytest.mark.parametrize(
    "path",
    ["/api/device/device1/power-off/", "/api/device/device1/event/please_self_test/", "/api/request/1/event/close/"],
)
@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "same-origin", "Host": "rebind.evil.example"},
        {"Sec-Fetch-Site": "none", "Host": "rebind.evil.example"},
    ],
)
def test_an_image_of_a_foreign_page_does_nothing(site: Server, path: str, headers: dict[str, str]) -> None:
    """Old GETs act, and browsers send no Origin with those."""
    site.made("device1")
    before = (site.device().version, site.get("/api/request/1/details/").get_json()["state"])
    said = site.get(path, headers=headers)
    assert (said.status_code, said.get_json()["error"]["code"]) == (403, "forbidden")
    assert (site.device().version, site.get("/api/request/1/details/").get_json()["state"]) == before


@pytest.mark.parametrize("headers", [{}, {"Sec-Fetch-Site": "none"}, {"Host": "board-side-name"}])
def test_old_gets_act_for_those_who_mean_it(site: Server, headers: dict[str, str]) -> None:
    """Programs and boards, which don't say where they come from, and people who type an address."""
    assert site.get("/api/device/device1/event/please_self_test/", headers=headers).status_code == 200
    assert site.device().state != "ready"
