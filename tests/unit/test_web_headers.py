# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The headers that tell browsers what they may do, on every route; and callers that call too often."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from werkzeug.routing import Rule
from werkzeug.wrappers import Response

from mozpool.web.rates import UNLIMITED
from tests.access_support import bearer, make_token
from tests.app_fixtures import Server, server


@pytest.fixture
def site(sqlite_url: str, tmp_path: Path) -> Iterator[Server]:
    with server(sqlite_url, tmp_path, paths={"image_store": tmp_path}) as made:
        (tmp_path / "page.html").write_text("<script>alert(1)</script>")
        (tmp_path / "drawing.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
        yield made


def path_of(rule: Rule) -> str:
    """An address that a rule serves, with things that there are in its place holders where that is easy."""
    known = {"name": "device1", "number": "1", "event": "x", "mac": "02-00-00-00-00-01", "filename": "css/mozpool.css"}
    return re.sub(r"<(?:[^<:>]+:)?([^>]+)>", lambda match: known.get(match[1], "x"), rule.rule)


def check(place: str, said: Response, *, secure: bool) -> None:
    """All that holds for every answer."""
    headers = said.headers
    assert headers["X-Content-Type-Options"] == "nosniff", place
    assert headers["X-Frame-Options"] == "DENY", place
    assert headers["Referrer-Policy"] == "same-origin", place
    assert "camera=()" in headers["Permissions-Policy"], place
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin", place
    assert len(headers.getlist("Content-Security-Policy")) == 1, place
    policy = dict(part.strip().partition(" ")[::2] for part in headers["Content-Security-Policy"].split(";"))
    assert policy["frame-ancestors"] == policy["base-uri"] == "'none'", place
    assert "unsafe" not in headers["Content-Security-Policy"], place
    if said.mimetype == "text/html":
        assert policy["default-src"] == policy["form-action"] == "'self'", place
        assert policy["object-src"] == "'none'", place
    else:
        assert policy["default-src"] == "'none'", place
    if place.split()[1].startswith("/api/") and said.mimetype == "application/json":
        assert re.search("no-store|no-cache|max-age=", headers.get("Cache-Control", "")), place
    assert headers.get("Cross-Origin-Opener-Policy") == ("same-origin" if secure else None), place
    assert headers.get("Strict-Transport-Security") == ("max-age=86400" if secure else None), place


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_every_route_says_what_browsers_may_do(site: Server, scheme: str) -> None:
    site.made("device1")
    seen = set()
    for rule in site.app.url_map.iter_rules():
        for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}):
            for accept in ("text/html", "application/json"):
                said = site.client.open(
                    path_of(rule), method=method, base_url=f"{scheme}://localhost", headers={"Accept": accept}
                )
                check(f"{method} {rule.rule} {said.status_code} {said.mimetype}", said, secure=scheme == "https")
                seen.add((said.status_code, said.mimetype))
                said.close()
    assert {(200, "text/html"), (404, "text/html"), (200, "application/json"), (404, "application/json")} <= seen


@pytest.mark.parametrize("path", ["/nothing", "/api/nothing/", "/images/page.html", "/images/drawing.svg", "/images/x"])
def test_so_do_errors_and_files(site: Server, path: str) -> None:
    for method in ("GET", "POST", "DELETE"):
        with site.client.open(path, method=method, headers={"Accept": "text/html"}) as said:
            check(f"{method} {path} {said.status_code}", said, secure=False)
            assert said.status_code != 200 or said.mimetype == "application/octet-stream"


def test_it_is_not_said_for_how_long_https_is_a_must_where_that_is_not_wanted(sqlite_url: str, tmp_path: Path) -> None:
    with server(sqlite_url, tmp_path, server={"hsts": 0}) as made:
        said = made.client.get("/api/version/", base_url="https://localhost")
        assert "Strict-Transport-Security" not in said.headers
        assert said.headers["Cross-Origin-Opener-Policy"] == "same-origin"


class Tags(HTMLParser):
    """Looks through a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.forbidden: list[str] = []
        self.scripts = 0
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        inline = [name for name in names if name == "style" or name.startswith("on")]
        if tag == "script":
            self.scripts += 1
        if tag == "style" or inline or (tag == "script" and "src" not in names):
            self.forbidden.append(self.get_starttag_text() or tag)


def test_nothing_stands_in_pages_that_the_policy_forbids(site: Server) -> None:
    """Else it would only seem to work: no scripts, styles or handlers stand in pages themselves."""
    site.made("device1")
    for rule in site.app.url_map.iter_rules():
        if not rule.endpoint.startswith("pages."):
            continue
        with site.get(path_of(rule)) as said:
            if said.mimetype != "text/html" or 300 <= said.status_code < 400:
                continue
            tags = Tags(said.get_data(as_text=True))
            assert tags.forbidden == [], rule
            assert tags.scripts, rule


def test_the_sample_of_nginx_says_the_same_of_what_it_serves_itself() -> None:
    text = (Path(__file__).parents[2] / "docs" / "nginx.conf").read_text()
    served = text[text.index("location /images/") :]
    served = served[: served.index("location / {")]
    assert 'add_header X-Content-Type-Options "nosniff" always;' in served
    assert "add_header Content-Security-Policy" in served


@pytest.mark.parametrize("host", ["..", "a" * 70 + ".example.com", "x y", "[::1"])
def test_a_name_of_this_server_that_can_be_none_is_refused(site: Server, host: str) -> None:
    """A page would have no address for its own links."""
    for path in ("/", "/nothing", "/api/version/"):
        said = site.get(path, headers={"Host": host, "Accept": "text/html"})
        assert said.status_code in (200, 400, 404)
        if said.status_code == 400:
            assert said.get_json()["error"]["code"] == "bad_input"
            check(f"GET {path} {host}", said, secure=False)


# --- Callers that call too often ---


def test_who_calls_too_often_is_told_when_to_come_back(sqlite_url: str, tmp_path: Path) -> None:
    with server(sqlite_url, tmp_path, server={"rate_limit": 60}) as made:
        statuses = [made.get("/api/device/list/").status_code for _ in range(20)]
        assert statuses.count(200) in (12, 13)
        assert statuses[-1] == 429
        refused = made.post("/api/device/any/request/", {})
        assert refused.status_code == 429
        assert refused.headers["Retry-After"] == "1"
        error = refused.get_json()["error"]
        assert (error["code"], error["field"]) == ("too_many_calls", None)
        assert "127.0.0.1 calls too often" in error["message"]
        page = made.get("/devices", headers={"Accept": "text/html"})
        assert (page.status_code, page.mimetype, page.headers["Retry-After"]) == (429, "text/html", "1")
        # Another address is another caller.
        assert made.get("/api/device/list/", environ_base={"REMOTE_ADDR": "192.0.2.1"}).status_code == 200


def test_boards_and_monitors_are_never_told_to_wait(sqlite_url: str, tmp_path: Path) -> None:
    with server(sqlite_url, tmp_path, server={"rate_limit": 5}) as made:
        while made.get("/api/version/").status_code != 429:
            pass
        for path in (
            "/api/device/device1/event/mobile_init_started/",
            "/api/device/device1/bootconfig/",
            "/api/health/",
            "/api/ready",
            "/metrics/",
            "/scripts/mozpool.sh",
            "/ipxe/02-00-00-00-00-01",
            "/static/css/mozpool.css",
        ):
            for _ in range(3):
                with made.get(path) as said:
                    assert said.status_code in (200, 503), path  # this server has not been started, so is not ready


def test_each_token_has_a_limit_of_its_own(sqlite_url: str, tmp_path: Path) -> None:
    """Wherever it is used from, and however many others share its address."""

    def status(headers: dict[str, str], last: int = 1) -> int:
        addresses = {"REMOTE_ADDR": f"192.0.2.{last}"}
        return made.get("/api/device/list/", headers=headers, environ_base=addresses).status_code

    with server(sqlite_url, tmp_path, server={"rate_limit": 60}, auth={"mode": "token", "anonymous": "viewer"}) as made:
        mine, other = (
            bearer(make_token(made.daemon.database, f"{name}@example.com", "user")) for name in ("me", "you")
        )
        statuses = [status(mine, last) for last in range(1, 21)]
        assert statuses.count(200) in (12, 13)
        assert statuses[-1] == 429
        said = made.post("/api/device/any/request/", {}, headers=mine)
        assert (said.status_code, said.headers["Retry-After"]) == (429, "1")
        assert "me@example.com, by token 1, calls too often" in said.get_json()["error"]["message"]
        assert status(other) == status({}) == 200
        while status({}) != 429:
            pass
        assert status(other) == 200


def test_bad_tokens_are_slowed_down_by_address(sqlite_url: str, tmp_path: Path) -> None:
    with server(sqlite_url, tmp_path, server={"rate_limit": 60}, auth={"mode": "token"}) as made:
        statuses = [
            made.get("/api/device/list/", headers=bearer(f"mozpool_{number}_nonsense")).status_code
            for number in range(30)
        ]
        assert set(statuses[:20]) == {401}
        assert statuses[-1] == 429


def test_in_mode_open_credentials_change_nothing(sqlite_url: str, tmp_path: Path) -> None:
    with server(sqlite_url, tmp_path, server={"rate_limit": 60}) as made:
        statuses = [
            made.get("/api/version/", headers=bearer(f"mozpool_{number}_nonsense")).status_code for number in range(20)
        ]
        assert statuses[-1] == 429


def test_what_is_not_limited_is_there(site: Server) -> None:
    assert set(site.app.view_functions) >= UNLIMITED


def test_without_a_limit_nobody_waits(site: Server) -> None:
    assert {site.get("/api/version/").status_code for _ in range(300)} == {200}
