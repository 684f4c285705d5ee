# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Signing on and off in a browser: by a token, and through a real OpenID provider."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from flask.testing import FlaskClient
from sqlalchemy import func, select, update
from werkzeug.test import TestResponse

from mozpool.access import people, sessions, tokens
from mozpool.access.principal import Role
from mozpool.config import Auth
from mozpool.db import audit, tables, teams, upkeep
from mozpool.db import sessions as session_rows
from mozpool.db import tokens as token_rows
from mozpool.web import signon
from mozpool.web.app import create_app
from tests import openid_provider
from tests.app_fixtures import OWN, Server, server
from tests.openid_provider import CLIENT_ID, CLIENT_SECRET, OpenIDProvider

OWN_PAGE = {"Origin": "http://localhost"}
FOREIGN_PAGE = {"Origin": "http://evil.example.com"}
PAGE = {"Accept": "text/html"}
RETURN = f"http://{OWN}/login/return"


@pytest.fixture
def site(database_url: str, tmp_path: Path) -> Iterator[Server]:
    with server(database_url, tmp_path, auth={"mode": "token"}) as made:
        yield made


def token(site: Server, role: str = "user", name: str = "ada@example.com", **more: Any) -> str:
    now = site.daemon.clock.now()
    values = {"name": name, "role": role, "created": now, "created_by": "test", **more}
    return site.daemon.database.run(lambda conn: tokens.create(conn, values))[1]


def sign_on(client: FlaskClient, text: str, address: str = "/", headers: dict[str, str] = OWN_PAGE) -> TestResponse:
    return client.post("/login", data={"token": text, "next": address}, headers={**PAGE, **headers})


def csrf(client: FlaskClient) -> str:
    """What pages of the client's session send back."""
    cookie = client.get_cookie("mozpool_session")
    assert cookie is not None
    return sessions.csrf(cookie.value)


def number_of_sessions(site: Server) -> int:
    with site.daemon.database.read() as conn:
        return int(conn.scalar(select(func.count()).select_from(tables.sessions)) or 0)


def change_session(site: Server, **columns: Any) -> None:
    site.daemon.database.run(lambda conn: conn.execute(update(tables.sessions).values(**columns)))


# --- By a token ---


def test_nobody_is_led_to_the_page_to_sign_on_and_from_there_back(site: Server) -> None:
    said = site.get("/devices?state=ready", headers=PAGE)
    assert said.status_code == 303
    assert said.headers["Location"] == "/login?next=/devices%3Fstate%3Dready"
    page = site.get(said.headers["Location"], headers=PAGE)
    assert page.status_code == 200
    assert 'name="next" value="/devices?state=ready"' in page.text
    assert "provider" not in page.text
    said = sign_on(site.client, token(site), "/devices?state=ready")
    assert (said.status_code, said.headers["Location"]) == (303, "/devices?state=ready")
    assert site.get("/devices?state=ready", headers=PAGE).status_code == 200
    # Whoever is signed on is not asked again.
    said = site.get("/login?next=/requests", headers=PAGE)
    assert (said.status_code, said.headers["Location"]) == (303, "/requests")


def test_the_cookie_is_for_this_server_alone_and_no_script_sees_it(site: Server) -> None:
    said = sign_on(site.client, token(site))
    (cookie,) = said.headers.getlist("Set-Cookie")
    name, *attributes = cookie.split("; ")
    assert name.startswith("mozpool_session=")
    assert {"HttpOnly", "SameSite=Lax", "Path=/", "Max-Age=43200"} <= set(attributes)
    assert not any(attribute.startswith(("Domain", "Secure")) for attribute in attributes)
    secret = name.partition("=")[2]
    with site.daemon.database.read() as conn:
        row = conn.execute(select(tables.sessions)).one()
    assert row.secret_hash == sessions.hash_of(secret)
    assert secret not in repr(row)


def test_behind_https_it_is_sent_encrypted_only(sqlite_url: str, tmp_path: Path) -> None:
    auth = {"mode": "token", "public_url": "https://pool.example.com"}
    with server(sqlite_url, tmp_path, auth=auth) as site:
        said = sign_on(site.client, token(site), headers={"Origin": "https://pool.example.com"})
        (cookie,) = said.headers.getlist("Set-Cookie")
        assert cookie.startswith("__Host-mozpool_session=")
        assert {"Secure", "HttpOnly", "Path=/"} <= set(cookie.split("; "))


@pytest.mark.parametrize(
    "text", ["", "mozpool_1_wrong", "mozpool_99_" + "A" * 43, "nonsense", "\u00e4" * 30, "mozpool_1_" + "A" * 5000]
)
def test_a_wrong_token_signs_nobody_on(sqlite_url: str, tmp_path: Path, text: str) -> None:
    with server(sqlite_url, tmp_path, auth={"mode": "token"}) as site:
        token(site)
        said = sign_on(site.client, text, "/devices")
        assert said.status_code == 401
        assert "Set-Cookie" not in said.headers
        assert 'role="alert"' in said.text
        assert 'name="next" value="/devices"' in said.text
        assert not text or text not in said.text
        assert number_of_sessions(site) == 0


def test_tokens_that_are_over_sign_nobody_on(site: Server) -> None:
    now = site.daemon.clock.now()
    for over in ({"revoked": now}, {"expires": now - timedelta(seconds=1)}, {"team_id": 999}):
        assert sign_on(site.client, token(site, **over)).status_code == 401
    assert number_of_sessions(site) == 0


def test_who_tries_tokens_out_is_slowed_down(site: Server) -> None:
    statuses = [sign_on(site.client, f"mozpool_1_{'A' * 30}{number}").status_code for number in range(25)]
    assert statuses[0] == 401
    assert statuses[-1] == 429
    said = sign_on(site.client, f"mozpool_1_{'B' * 30}")
    assert int(said.headers["Retry-After"]) > 0


def test_a_session_is_worth_what_its_token_is_worth_now(site: Server) -> None:
    sign_on(site.client, token(site, "viewer"))
    assert site.get("/requests/new", headers=PAGE).status_code == 403
    site.daemon.database.run(lambda conn: conn.execute(update(tables.tokens).values(role="user")))
    assert site.get("/requests/new", headers=PAGE).status_code == 200
    site.daemon.database.run(lambda conn: token_rows.revoke(conn, [1], site.daemon.clock.now()))
    said = site.get("/requests/new", headers=PAGE)
    assert (said.status_code, said.headers["Location"]) == (303, "/login?next=/requests/new")
    assert site.get("/api/device/list/").status_code == 401


def test_a_session_does_not_outlive_its_token(site: Server) -> None:
    said = sign_on(site.client, token(site, expires=site.daemon.clock.now() + timedelta(seconds=100)))
    (cookie,) = said.headers.getlist("Set-Cookie")
    assert "Max-Age=100" in cookie or "Max-Age=99" in cookie


def test_a_session_is_over_when_its_team_was_deleted(site: Server) -> None:
    team = site.daemon.database.run(lambda conn: teams.add(conn, teams.values(name="web")))
    sign_on(site.client, token(site, team_id=team))
    assert "team <b>web</b>" in site.get("/devices", headers=PAGE).text
    site.daemon.database.run(lambda conn: teams.remove(conn, team))
    assert site.get("/devices", headers=PAGE).status_code == 303


# --- Expired, unknown, and on other servers ---


def test_a_session_that_is_over_is_never_taken_for_nobody(database_url: str, tmp_path: Path) -> None:
    with server(database_url, tmp_path, auth={"mode": "token", "anonymous": "viewer"}) as site:
        sign_on(site.client, token(site))
        assert site.get("/api/device/list/").status_code == 200
        change_session(site, expires=site.daemon.clock.now() - timedelta(seconds=1))
        said = site.get("/api/device/list/")
        assert said.status_code == 401
        assert said.get_json()["error"]["code"] == "unauthorized"
        assert "WWW-Authenticate" in said.headers
        said = site.get("/devices", headers=PAGE)
        assert (said.status_code, said.headers["Location"]) == (303, "/login?next=/devices")
        # There the browser loses the cookie, and may look as everybody may.
        said = site.get("/login", headers=PAGE)
        assert said.status_code == 200
        assert site.client.get_cookie("mozpool_session") is None
        assert site.get("/devices", headers=PAGE).status_code == 200


@pytest.mark.parametrize("secret", ["x", "A" * 43, "A" * 3000, "\u00e9\u00e9", "' OR 1=1 --"])
def test_an_unknown_session_is_refused(sqlite_url: str, tmp_path: Path, secret: str) -> None:
    with server(sqlite_url, tmp_path, auth={"mode": "token"}) as site:
        site.client.set_cookie("mozpool_session", secret)
        assert site.get("/api/device/list/").status_code == 401
        with site.get("/static/js/main.js") as said:
            assert said.status_code == 200
        assert site.get("/api/version/").status_code == 200


def test_a_session_holds_on_all_servers_of_the_pool(site: Server) -> None:
    sign_on(site.client, token(site, "operator"))
    cookie = site.client.get_cookie("mozpool_session")
    assert cookie is not None
    other = create_app(site.daemon.services).test_client()  # another server has the database alone in common
    other.set_cookie("mozpool_session", cookie.value)
    assert other.get("/api/device/list/").status_code == 200
    path = "/api/device/device1/set-comments/"
    assert other.post(path, json={"comments": "x"}).status_code == 403
    assert other.post(path, json={"comments": "x"}, headers={"Mozpool-Csrf": csrf(site.client)}).status_code == 200
    other.post("/logout", data={"csrf": csrf(site.client)}, headers=OWN_PAGE)
    assert site.get("/api/device/list/").status_code == 401


def test_old_sessions_are_deleted(site: Server) -> None:
    sign_on(site.client, token(site))
    sign_on(create_app(site.daemon.services).test_client(), token(site))
    assert number_of_sessions(site) == 2
    upkeep.run(site.daemon.database, site.daemon.clock)
    assert number_of_sessions(site) == 2
    change_session(site, expires=site.daemon.clock.now() - timedelta(seconds=1))
    upkeep.run(site.daemon.database, site.daemon.clock)
    assert number_of_sessions(site) == 0


def test_it_is_noted_when_and_from_where_a_session_is_used(site: Server) -> None:
    sign_on(site.client, token(site))
    long_ago = site.daemon.clock.now() - timedelta(hours=1)
    change_session(site, last_used=long_ago)
    site.get("/api/device/list/")
    with site.daemon.database.read() as conn:
        row = conn.execute(select(tables.sessions)).one()
    assert row.last_used > long_ago
    assert row.address == "127.0.0.1"
    site.get("/api/device/list/", environ_base={"REMOTE_ADDR": "127.0.0.9"})
    with site.daemon.database.read() as conn:
        assert conn.scalar(select(tables.sessions.c.address)) == "127.0.0.9"


# --- What changes something ---


def test_what_changes_something_needs_the_token_of_the_session(site: Server) -> None:
    sign_on(site.client, token(site, "operator"))
    path, body = "/api/device/device1/set-comments/", {"comments": "x"}
    for headers in ({}, {"Mozpool-Csrf": ""}, {"Mozpool-Csrf": "0" * 64}, {"Mozpool-Csrf": "\u00e9"}):
        said = site.post(path, body, headers=headers)
        assert said.status_code == 403
        assert said.get_json()["error"]["code"] == "forbidden"
    # In a form it counts for pages alone: any page could have a browser send one.
    assert site.client.post(path, data={"csrf": csrf(site.client)}).status_code == 403
    assert site.device().comments is None
    assert site.post(path, body, headers={"Mozpool-Csrf": csrf(site.client)}).status_code == 200
    assert site.device().comments == "x"
    # That of another session does not do.
    old = csrf(site.client)
    sign_on(site.client, token(site, "operator"))
    assert site.post(path, body, headers={"Mozpool-Csrf": old}).status_code == 403


def test_programs_with_a_token_need_none(site: Server) -> None:
    text = token(site, "operator")
    headers = {"Authorization": f"Bearer {text}"}
    assert site.post("/api/device/device1/set-comments/", {"comments": "x"}, headers=headers).status_code == 200


@pytest.mark.parametrize(
    "path",
    ["/api/device/device1/power-off/", "/api/device/device1/event/please_self_test/", "/api/request/1/event/close/"],
)
def test_a_get_that_acts_is_not_accepted_on_a_cookie(sqlite_url: str, tmp_path: Path, path: str) -> None:
    with server(sqlite_url, tmp_path, auth={"mode": "token"}) as site:
        site.client.post("/login", data={"token": token(site, "admin")}, headers=OWN_PAGE)
        before = site.device().version
        for said in (
            site.get(path),
            site.get(path, headers={"Mozpool-Csrf": csrf(site.client)}),
        ):
            assert said.status_code == 403
        assert site.client.head(path).status_code == 405
        assert site.device().version == before


def test_a_foreign_page_signs_nobody_on_or_off(site: Server) -> None:
    text = token(site)
    foreign: tuple[dict[str, str], ...] = (
        FOREIGN_PAGE,
        {"Origin": "null"},
        {},
        {"Sec-Fetch-Site": "cross-site"},
        {"Origin": "null", "Sec-Fetch-Site": "same-site"},
    )
    for headers in foreign:
        said = sign_on(site.client, text, headers=headers)
        assert said.status_code == 403
        assert "Set-Cookie" not in said.headers
    assert sign_on(site.client, text, headers={"Origin": "null", "Sec-Fetch-Site": "same-origin"}).status_code == 303
    assert site.client.post("/logout", headers=FOREIGN_PAGE).status_code == 403
    assert site.client.post("/logout", data={"csrf": "0"}, headers=OWN_PAGE).status_code == 403
    assert site.get("/api/device/list/").status_code == 200


# --- Signing off ---


def test_signing_off_ends_the_session(site: Server) -> None:
    sign_on(site.client, token(site))
    cookie = site.client.get_cookie("mozpool_session")
    assert cookie is not None
    page = site.get("/logout", headers=PAGE)
    assert page.status_code == 200
    assert f'value="{csrf(site.client)}"' in page.text
    said = site.client.post("/logout", data={"csrf": csrf(site.client)}, headers=OWN_PAGE)
    assert (said.status_code, said.headers["Location"]) == (303, "/login?out=1")
    assert site.client.get_cookie("mozpool_session") is None
    assert number_of_sessions(site) == 0
    site.client.set_cookie("mozpool_session", cookie.value)
    assert site.get("/api/device/list/").status_code == 401
    assert site.get("/logout", headers=PAGE).headers["Location"] == "/login"


def test_signing_on_anew_ends_the_session_before(site: Server) -> None:
    sign_on(site.client, token(site))
    before = site.client.get_cookie("mozpool_session")
    page = site.get("/login?other=1", headers=PAGE)
    assert page.status_code == 200
    sign_on(site.client, token(site, name="grace@example.com"))
    after = site.client.get_cookie("mozpool_session")
    assert before is not None and after is not None and before.value != after.value
    assert number_of_sessions(site) == 1


def test_in_mode_open_nobody_signs_on(imaging_server: Server) -> None:
    for path in ("/login?next=/devices", "/logout"):
        assert imaging_server.get(path, headers=PAGE).status_code == 303
    assert sign_on(imaging_server.client, "whatever", "/devices").headers["Location"] == "/devices"
    imaging_server.client.set_cookie("mozpool_session", "whatever")
    assert imaging_server.get("/devices", headers=PAGE).status_code == 200
    assert imaging_server.post("/api/device/device1/set-comments/", {"comments": "x"}).status_code == 200


# --- Where to go afterwards ---

ELSEWHERE = [
    "http://evil.example.com/",
    "https:evil.example.com",
    "//evil.example.com",
    "///evil.example.com",
    "/\\evil.example.com",
    "\\\\evil.example.com",
    "/\t/evil.example.com",
    "/\n/evil.example.com",
    " //evil.example.com",
    "javascript:alert(1)",
    "devices",
    "",
    "/login?next=/login",
    "/logout",
    "/api/device/device1/power-off/",
    "/\u00e9",
    "//[",
    "/" + "a" * 3000,
]


@pytest.mark.parametrize("address", ELSEWHERE)
def test_signing_on_leads_nowhere_else(sqlite_url: str, tmp_path: Path, address: str) -> None:
    assert signon.local(address) == "/"
    with server(sqlite_url, tmp_path, auth={"mode": "token"}) as site:
        assert sign_on(site.client, token(site), address).headers["Location"] == "/"
        assert site.get("/login", query_string={"next": address}, headers=PAGE).headers["Location"] == "/"


@pytest.mark.parametrize("address", ["/", "/devices?state=ready&label=a%3Db", "/devices/panda-0001", "/requests#x"])
def test_signing_on_leads_to_pages_of_ours(address: str) -> None:
    assert signon.local(address) == address


# --- The list of sessions ---


def test_people_see_and_end_their_own_sessions_and_admins_all(site: Server) -> None:
    sign_on(site.client, token(site))
    grace, boss = (create_app(site.daemon.services).test_client() for _ in range(2))
    sign_on(grace, token(site, name="grace@example.com"))
    sign_on(boss, token(site, "admin", name="root@example.com"))
    (own,) = site.get("/api/session/list/").get_json()["sessions"]
    assert (own["name"], own["role"], own["current"]) == ("ada@example.com", "user", True)
    (hers,) = grace.get("/api/session/list/").get_json()["sessions"]
    assert site.get("/api/session/list/?all=1").status_code == 403
    everybody = boss.get("/api/session/list/?all=1").get_json()["sessions"]
    assert [each["name"] for each in everybody] == ["ada@example.com", "grace@example.com", "root@example.com"]
    two = boss.get("/api/session/list/?all=1&limit=2").get_json()
    assert len(two["sessions"]) == 2
    assert two["next_cursor"] == two["sessions"][1]["id"]

    headers = {"Mozpool-Csrf": csrf(site.client)}
    for number in (hers["id"], 999, "x", "9" * 30):
        assert site.post(f"/api/session/{number}/end/", {}, headers=headers).status_code == 404
    assert grace.get("/api/device/list/").status_code == 200
    said = boss.post(f"/api/session/{hers['id']}/end/", json={}, headers={"Mozpool-Csrf": csrf(boss)})
    assert said.status_code == 200
    assert grace.get("/api/device/list/").status_code == 401
    assert site.post(f"/api/session/{own['id']}/end/", {}, headers=headers).status_code == 200
    assert site.get("/api/session/list/").status_code == 401


# --- Through a provider ---


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenIDProvider]:
    with openid_provider.running(tmp_path_factory.mktemp("provider"), [RETURN]) as made:
        yield made


@pytest.fixture
def oidc_site(database_url: str, tmp_path: Path, provider: OpenIDProvider) -> Iterator[Server]:
    provider.people()
    auth = {
        "mode": "oidc",
        "oidc_issuer": provider.issuer,
        "oidc_client_id": CLIENT_ID,
        "oidc_client_secret": CLIENT_SECRET,
        "oidc_users": ("lab",),
        "oidc_admins": ("admin*",),
    }
    with server(database_url, tmp_path, auth=auth) as made:
        yield made


def begin(client: FlaskClient, address: str = "/") -> str:
    """Where the browser is sent."""
    said = client.get("/login/start", query_string={"next": address}, headers=PAGE)
    assert said.status_code == 303, said.text
    return said.headers["Location"]


def kept_by(client: FlaskClient) -> dict[str, Any]:
    """What stays with the browser while it is at the provider."""
    cookie = client.get_cookie("mozpool_start")
    assert cookie is not None
    found: dict[str, Any] = json.loads(base64.urlsafe_b64decode(cookie.value))
    return found


def keep(client: FlaskClient, kept: Any) -> None:
    client.set_cookie("mozpool_start", base64.urlsafe_b64encode(json.dumps(kept).encode()).decode())


def come_back(client: FlaskClient, address: str) -> TestResponse:
    assert address.startswith(f"{RETURN}?")
    return client.get(address.removeprefix(f"http://{OWN}"), headers=PAGE)


def through(client: FlaskClient, provider: OpenIDProvider, person: str, address: str = "/") -> TestResponse:
    """Sign on somebody."""
    return come_back(client, provider.sign_on(begin(client, address), person))


def test_what_the_provider_sent_is_in_no_link_and_not_in_the_audit(oidc_site: Server, provider: OpenIDProvider) -> None:
    """A code that could not be redeemed is good for some time."""
    address = provider.sign_on(begin(oidc_site.client), "linus")
    (code,), (state,) = (parse_qs(urlsplit(address).query)[key] for key in ("code", "state"))
    said = come_back(oidc_site.client, address)
    assert said.status_code == 403
    assert code not in said.text
    through(oidc_site.client, provider, "ada", "/devices?state=ready")
    with oidc_site.daemon.database.read() as conn:
        good, bad = audit.newest(conn, audit.Filter(action="sign_on"), limit=10)
    assert (bad.who, bad.status, bad.kind) == (None, 403, "nobody")
    assert (good.who, good.status, good.kind) == ("ada@example.com", 303, "person")
    assert code not in str(bad) and state not in str(bad)
    assert good.details == bad.details == {}


def test_people_sign_on_through_the_provider(oidc_site: Server, provider: OpenIDProvider) -> None:
    assert provider.issuer in oidc_site.get("/login", headers=PAGE).text
    address = begin(oidc_site.client, "/devices")
    asked = parse_qs(urlsplit(address).query)
    assert asked["code_challenge_method"] == ["S256"]
    assert asked["redirect_uri"] == [RETURN]
    assert asked["response_type"] == ["code"]
    assert len(asked["state"][0]) > 40 and len(asked["nonce"][0]) > 40
    said = come_back(oidc_site.client, provider.sign_on(address, "ada"))
    assert (said.status_code, said.headers["Location"]) == (303, "/devices")
    page = oidc_site.get("/devices", headers=PAGE)
    assert "ada@example.com" in page.text
    assert "Role <b>user</b>" in page.text
    assert oidc_site.get("/requests/new", headers=PAGE).status_code == 200
    assert oidc_site.get("/new-pxe-config", headers=PAGE).status_code == 403
    (session,) = oidc_site.get("/api/session/list/").get_json()["sessions"]
    assert (session["name"], session["token_id"]) == ("ada@example.com", None)
    # Nothing of the sign-on is left in the browser.
    assert oidc_site.client.get_cookie("mozpool_start") is None
    said = oidc_site.client.post("/logout", data={"csrf": csrf(oidc_site.client)}, headers=OWN_PAGE)
    assert f"{provider.issuer}/logout/?client_id=mozpool" in oidc_site.get(said.headers["Location"], headers=PAGE).text


def test_a_person_may_come_back_to_another_server(oidc_site: Server, provider: OpenIDProvider) -> None:
    address = provider.sign_on(begin(oidc_site.client, "/devices"), "ada")
    other = create_app(oidc_site.daemon.services).test_client()
    keep(other, kept_by(oidc_site.client))
    assert come_back(other, address).headers["Location"] == "/devices"
    assert other.get("/api/device/list/").status_code == 200


def test_groups_make_roles_and_teams(oidc_site: Server, provider: OpenIDProvider) -> None:
    oidc_site.daemon.database.run(lambda conn: teams.add(conn, teams.values(name="web", groups=["lab"])))
    through(oidc_site.client, provider, "grace")
    page = oidc_site.get("/devices", headers=PAGE).text
    assert "Role <b>admin</b>, team <b>web</b>" in page


def test_whose_groups_changed_gets_the_new_role_in_all_their_browsers(
    oidc_site: Server, provider: OpenIDProvider
) -> None:
    laptop, phone = (create_app(oidc_site.daemon.services).test_client() for _ in range(2))
    through(laptop, provider, "grace")
    assert laptop.get("/new-pxe-config", headers=PAGE).status_code == 200
    provider.people(grace=["lab"])
    through(phone, provider, "grace")
    assert phone.get("/requests/new", headers=PAGE).status_code == 200
    for browser in (phone, laptop):
        assert browser.get("/new-pxe-config", headers=PAGE).status_code == 403
    # Who is in no group any more is signed off everywhere, as soon as the provider says so.
    provider.people(grace=[])
    tablet = create_app(oidc_site.daemon.services).test_client()
    said = through(tablet, provider, "grace")
    assert said.status_code == 403
    assert "none of your groups" in said.text
    for browser in (tablet, phone, laptop):
        assert browser.get("/api/device/list/").status_code == 401


def test_tokens_are_not_touched_by_what_the_provider_says(oidc_site: Server, provider: OpenIDProvider) -> None:
    sign_on(oidc_site.client, token(oidc_site, "admin", name="grace@example.com"))
    provider.people(grace=["lab"])
    through(create_app(oidc_site.daemon.services).test_client(), provider, "grace")
    assert oidc_site.get("/new-pxe-config", headers=PAGE).status_code == 200


def made_token(client: FlaskClient, **body: Any) -> TestResponse:
    """What a page of the client's session is told when it makes a token."""
    return client.post("/api/token/create/", json=body, headers={"Mozpool-Csrf": csrf(client)})


def test_tokens_of_people_of_the_provider_expire(oidc_site: Server, provider: OpenIDProvider) -> None:
    through(oidc_site.client, provider, "ada")
    now = oidc_site.daemon.clock.now()
    longest = 90 * 86400
    for body, seconds in (({}, longest), ({"duration": longest}, longest), ({"duration": 60}, 60)):
        made = made_token(oidc_site.client, **body).get_json()["token"]
        with oidc_site.daemon.database.read() as conn:
            row = token_rows.get(conn, made["id"])
        assert row is not None and row.expires is not None
        assert abs(row.expires - now - timedelta(seconds=seconds)) < timedelta(minutes=1)
    said = made_token(oidc_site.client, duration=longest + 1)
    assert said.status_code == 400
    error = said.get_json()["error"]
    assert error["field"] == "duration"
    assert str(longest + 1) in error["message"] and f"at most {longest} seconds" in error["message"]
    page = oidc_site.get("/tokens", headers=PAGE).text
    assert "until it is revoked" not in page
    assert f'<option value="{longest}" selected>90 days</option>' in page
    assert "1 year" not in page
    # Whoever signed on with a token is limited by that token alone.
    other = create_app(oidc_site.daemon.services).test_client()
    sign_on(other, token(oidc_site))
    assert made_token(other).get_json()["token"]["expires"] is None
    assert "until it is revoked" in other.get("/tokens", headers=PAGE).text


def test_tokens_go_with_the_role_that_they_were_made_in(oidc_site: Server, provider: OpenIDProvider) -> None:
    laptop, phone = (create_app(oidc_site.daemon.services).test_client() for _ in range(2))
    through(laptop, provider, "grace")

    def made(client: FlaskClient, **body: Any) -> str:
        said = made_token(client, **body)
        assert said.status_code == 200, said.text
        return str(said.get_json()["token"]["token"])

    def good(text: str) -> bool:
        headers = {"Authorization": f"Bearer {text}"}
        client = create_app(oidc_site.daemon.services).test_client()
        return client.get("/api/device/list/", headers=headers).status_code == 200

    high, low, machine = made(laptop, role="admin"), made(laptop), made(laptop, name="builder-1")
    given = token(oidc_site, "admin", name="grace@example.com")
    sign_on(phone, high)
    child = made(phone, role="user")
    provider.people(grace=["lab"])
    through(create_app(oidc_site.daemon.services).test_client(), provider, "grace")
    assert [good(each) for each in (high, child, low, machine, given)] == [False, False, True, True, True]
    assert made_token(laptop, role="admin").status_code == 403
    provider.people(grace=[])
    assert through(create_app(oidc_site.daemon.services).test_client(), provider, "grace").status_code == 403
    assert [good(each) for each in (low, machine, given)] == [False, True, True]


def test_no_token_is_made_by_who_is_judged_anew_meanwhile(oidc_site: Server, provider: OpenIDProvider) -> None:
    through(oidc_site.client, provider, "grace")
    database, now = oidc_site.daemon.database, oidc_site.daemon.clock.now()
    with database.read() as conn:
        number = int(conn.scalar(select(tables.sessions.c.id)) or 0)
    name = "grace@example.com"
    assert database.run(lambda conn: session_rows.hold(conn, number, "admin", now))
    database.run(lambda conn: sessions.judge_anew(conn, name, Role.USER, None, now))
    assert not database.run(lambda conn: session_rows.hold(conn, number, "admin", now))
    assert database.run(lambda conn: session_rows.hold(conn, number, "user", now))
    database.run(lambda conn: sessions.judge_anew(conn, name, Role.NOBODY, None, now))
    assert not database.run(lambda conn: session_rows.hold(conn, number, "user", now))


def test_an_address_that_is_not_proven_names_nobody(oidc_site: Server, provider: OpenIDProvider) -> None:
    provider.people(linus=["lab"])
    said = through(oidc_site.client, provider, "linus")
    assert said.status_code == 403
    assert "not made sure" in said.text
    assert number_of_sessions(oidc_site) == 0


@pytest.mark.parametrize("path", ["/login/return?code=x&state=", "/login/return", "/login/return?state=y&code=x"])
def test_a_state_of_somebody_else_is_refused(oidc_site: Server, path: str) -> None:
    assert oidc_site.get(path, headers=PAGE).status_code == 400  # none is under way
    begin(oidc_site.client)
    said = oidc_site.get(path, headers=PAGE)
    assert said.status_code == 400
    assert "begin again" in said.text
    assert number_of_sessions(oidc_site) == 0
    assert oidc_site.client.get_cookie("mozpool_start") is None


@pytest.mark.parametrize("kept", [None, [], "x", {"state": ""}, {"state": 1, "nonce": {}, "verifier": [], "next": 1}])
def test_a_cookie_that_makes_no_sense_begins_anew(oidc_site: Server, kept: Any) -> None:
    keep(oidc_site.client, kept)
    assert oidc_site.get("/login/return?state=1&code=x", headers=PAGE).status_code == 400
    for text in ("", "x", "%%%", "\u00e9", "W10=" * 100):
        oidc_site.client.set_cookie("mozpool_start", text)
        assert oidc_site.get("/login/return?state=&code=x", headers=PAGE).status_code == 400


def test_a_code_of_another_sign_on_is_refused(oidc_site: Server, provider: OpenIDProvider) -> None:
    """Somebody has their own code put into the victim's browser: PKCE gives it away."""
    attacker = create_app(oidc_site.daemon.services).test_client()
    theirs = parse_qs(urlsplit(provider.sign_on(begin(attacker), "ada")).query)["code"][0]
    state = parse_qs(urlsplit(begin(oidc_site.client)).query)["state"][0]
    said = oidc_site.get(f"/login/return?code={theirs}&state={state}", headers=PAGE)
    assert said.status_code == 403
    assert "invalid_grant" in said.text
    assert number_of_sessions(oidc_site) == 0


def test_a_code_counts_once(oidc_site: Server, provider: OpenIDProvider) -> None:
    address = provider.sign_on(begin(oidc_site.client), "ada")
    kept = kept_by(oidc_site.client)
    assert come_back(oidc_site.client, address).status_code == 303
    assert come_back(oidc_site.client, address).status_code == 400  # the browser knows nothing of it any more
    thief = create_app(oidc_site.daemon.services).test_client()
    keep(thief, kept)
    said = come_back(thief, address)
    assert said.status_code == 403
    assert thief.get("/api/device/list/").status_code == 401


def test_a_sign_on_that_takes_too_long_is_refused(oidc_site: Server, provider: OpenIDProvider) -> None:
    address = provider.sign_on(begin(oidc_site.client), "ada")
    old = kept_by(oidc_site.client)
    for since in (old["since"] - 601, old["since"] + 100_000):
        keep(oidc_site.client, {**old, "since": since})
        said = come_back(oidc_site.client, address)
        assert said.status_code == 400
        assert "too long" in said.text


def test_where_to_go_is_looked_at_anew_when_somebody_comes_back(oidc_site: Server, provider: OpenIDProvider) -> None:
    address = provider.sign_on(begin(oidc_site.client), "ada")
    keep(oidc_site.client, {**kept_by(oidc_site.client), "next": "//evil.example.com"})
    assert come_back(oidc_site.client, address).headers["Location"] == "/"


def test_what_the_provider_refuses_is_told(oidc_site: Server) -> None:
    state = parse_qs(urlsplit(begin(oidc_site.client)).query)["state"][0]
    said = oidc_site.get(f"/login/return?error=access_denied&state={state}", headers=PAGE)
    assert said.status_code == 403
    assert "access_denied" in said.text
    state = parse_qs(urlsplit(begin(oidc_site.client)).query)["state"][0]
    said = oidc_site.get(f"/login/return?error=%3Cscript%3E&state={state}", headers=PAGE)
    assert "<script>" not in said.text.replace('<script type="module"', "")
    state = parse_qs(urlsplit(begin(oidc_site.client)).query)["state"][0]
    said = oidc_site.get(f"/login/return?code=x&state={state}&iss=http://evil.example.com", headers=PAGE)
    assert "another provider" in said.text


def test_people_of_the_provider_may_sign_on_with_tokens_too(oidc_site: Server) -> None:
    assert sign_on(oidc_site.client, token(oidc_site)).status_code == 303


def test_without_a_provider_nobody_is_sent_to_one(site: Server) -> None:
    assert site.get("/login/start", headers=PAGE).status_code == 403


# --- Groups ---


def test_the_highest_role_counts() -> None:
    auth = Auth(oidc_viewers=("*",), oidc_users=("lab", "ci-*"), oidc_operators=("ops",), oidc_admins=("root",))
    for groups, role in (
        ((), Role.VIEWER),
        (("nobody",), Role.VIEWER),
        (("lab",), Role.USER),
        (("ci-nightly", "x"), Role.USER),
        (("lab", "ops"), Role.OPERATOR),
        (("ops", "root"), Role.ADMIN),
        (("Root",), Role.VIEWER),
    ):
        assert people.role_of(auth, groups) is role
    assert people.role_of(Auth(), ("lab", "root")) is Role.NOBODY
