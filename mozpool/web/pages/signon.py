# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Signing on and off: with a token, or through the OpenID provider.

What must stay with the browser while it is at the provider is in a cookie, so that it may come back to any server of
the pool: nothing in it is of use without the code that the provider gives, once.
"""

from __future__ import annotations

import base64
import hmac
import json
import logging
from datetime import timedelta
from typing import TYPE_CHECKING, cast

from flask import Response, current_app, g, make_response, redirect, render_template, request

from mozpool.access import people, sessions, tokens
from mozpool.access.notes import note
from mozpool.access.principal import EVERYBODY, Kind, Principal, Role
from mozpool.access.sessions import Person
from mozpool.apikit import site
from mozpool.db import teams
from mozpool.errors import BadInput, Forbidden, MozpoolError, ProviderAway, TooManyCalls, Unauthorized
from mozpool.web import bearer, gate, origins, signon
from mozpool.web.pages.base import blueprint

if TYPE_CHECKING:
    from mozpool.web.oidc import Provider

log = logging.getLogger("mozpool.web")

PROVIDER = "mozpool.oidc"
"""The key of the :class:`Provider` in the application's extensions."""

UNDER_WAY = timedelta(minutes=10)
"""How long somebody may take at the provider."""

START = "start"
"""The cookie of a sign-on that is under way; its name ends so."""


def provider() -> Provider:
    """The pool's provider. Raises Forbidden when it has none."""
    if site().settings.auth_mode != "oidc":
        raise Forbidden("people do not sign on through a provider here: [auth] mode is not oidc")
    return cast("Provider", current_app.extensions[PROVIDER])


def _page(status: int = 200, wrong: MozpoolError | None = None, address: str = "/") -> Response:
    """The page to sign on."""
    settings = site().settings
    shown = render_template(
        "login.html",
        wrong=None if wrong is None else wrong.message,
        token_wrong=isinstance(wrong, Unauthorized | TooManyCalls),
        next=address,
        issuer=settings.auth.oidc_issuer if settings.auth_mode == "oidc" else None,
        end_url=provider().end_url() if settings.auth_mode == "oidc" and "out" in request.args else None,
        out="out" in request.args,
    )
    said = make_response(shown, status)
    said.cache_control.no_store = True
    return said


def _with_error(error: MozpoolError, address: str) -> Response:
    if error.status >= 500:
        log.warning("nobody can sign on: %s", error.message)
    said = _page(error.status, error, address)
    if isinstance(error, TooManyCalls):
        said.headers["Retry-After"] = str(int(error.seconds) + 1)
    return said


def _is_open() -> bool:
    return site().settings.auth_mode == "open"


# --- Signing on ---


@blueprint.get("/login")
def login() -> Response:
    """The page to sign on."""
    address = signon.local(request.args.get("next"))
    if _is_open():
        return _to(address)
    g.principal = signon.current() or Principal(Kind.NOBODY, Role.NOBODY)
    if g.principal.session is not None and "other" not in request.args:
        return _to(address)
    said = _page(address=address)
    if g.principal.session is None and request.cookies.get(signon.cookie_name()):
        signon.forget_cookie(said)
    return said


@blueprint.post("/login")
def sign_on() -> Response:
    """Sign on with a token."""
    address = signon.local(request.form.get("next"))
    if _is_open():
        return _to(address)
    try:
        origins.only_own_page()
        return _signed_on(*_token_person(request.form.get("token", "").strip()), address)
    except (Unauthorized, TooManyCalls, Forbidden) as error:
        return _with_error(error, address)


def _token_person(text: str) -> tuple[Person, timedelta | None]:
    """Whose token this is, and how long it holds. Raises Unauthorized, TooManyCalls, DatabaseAway."""
    here, brake, caller = site(), gate.brake(), request.remote_addr or ""
    brake.check(caller, text)
    now = here.clock.now()
    try:
        with here.database.read() as conn:
            token = tokens.check(conn, text, now)
    except Unauthorized:
        brake.failed(caller, text)
        raise
    brake.passed(text)
    bearer.note_use(token, now)
    left = None if token.expires is None else token.expires - now
    return Person(token.name, Role.of(token.role), token.team_id, token.id), left


@blueprint.get("/login/start")
def sign_on_start() -> Response:
    """Send the browser to the provider."""
    address = signon.local(request.args.get("next"))
    try:
        begun = provider().begin()
    except (ProviderAway, Forbidden) as error:
        return _with_error(error, address)
    kept = {
        "state": begun.state,
        "nonce": begun.nonce,
        "verifier": begun.verifier,
        "next": address,
        "since": site().clock.now().timestamp(),
    }
    said = redirect(begun.url, 303)
    assert isinstance(said, Response)
    text = base64.urlsafe_b64encode(json.dumps(kept).encode()).decode()
    signon.set_cookie(said, text, UNDER_WAY, START)
    said.cache_control.no_store = True
    return said


@blueprint.get("/login/return")
def sign_on_return() -> Response:
    """Where the provider sends the browser back to."""
    address = "/"
    try:
        kept = _under_way()
        note(action="sign_on")
        address = signon.local(kept["next"])
        said = _signed_on(_provider_person(kept), None, address)
    except (ProviderAway, Forbidden, BadInput) as error:
        said = _with_error(error, address)
    signon.forget_cookie(said, START)
    return said


def _under_way() -> dict[str, str]:
    """The sign-on that this browser has under way, and that the provider answers. Raises BadInput."""
    try:
        kept = json.loads(base64.urlsafe_b64decode(request.cookies.get(signon.cookie_name(START), "")))
        found = {key: str(kept[key]) for key in ("state", "nonce", "verifier", "next")}
        since = float(kept["since"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise BadInput("no sign-on is under way in this browser: begin again") from error
    if not hmac.compare_digest(found["state"].encode(), request.args.get("state", "").encode()):
        raise BadInput("this belongs to another sign-on than the one that is under way: begin again", field="state")
    if not 0 <= site().clock.now().timestamp() - since <= UNDER_WAY.total_seconds():
        raise BadInput("that took too long: begin again")
    return found


def _provider_person(kept: dict[str, str]) -> Person:
    """Who it is that comes back. Raises Forbidden, BadInput, ProviderAway, DatabaseAway."""
    here, theirs = site(), provider()
    issuer, code = request.args.get("iss"), request.args.get("code")
    if issuer is not None and not theirs.is_issuer(issuer):
        raise Forbidden("the answer comes from another provider")
    if error := request.args.get("error"):
        shown = error[:80] if error.isprintable() else "something that can't be shown"
        raise Forbidden(f"the provider did not sign you on: {shown}")
    if not code:
        raise BadInput("code is missing: the provider has to send one", field="code")
    claims = theirs.finish(code, kept["verifier"], kept["nonce"])
    role = people.role_of(here.settings.auth, claims.groups)
    if role is Role.NOBODY:
        now = here.clock.now()
        here.database.run(lambda conn: sessions.judge_anew(conn, claims.name, role, None, now), repeatable=True)
        raise Forbidden(f"the provider knows you as {claims.name}, but none of your groups may do anything here")
    with here.database.read() as conn:
        team = people.team_of(teams.find(conn), claims.groups)
    return Person(claims.name, role, None if team is None else team.id)


def _signed_on(person: Person, most: timedelta | None, address: str) -> Response:
    secret, lifetime = signon.begin(person, most)
    g.principal = Principal(Kind.PERSON, person.role, person.name, credential=person.token_id)
    log.info("%s signed on as %s", person.name, person.role)
    said = _to(address)
    signon.set_cookie(said, secret, lifetime)
    return said


def _to(address: str) -> Response:
    said = redirect(address, 303)
    assert isinstance(said, Response)
    said.cache_control.no_store = True
    return said


# --- Signing off ---


@blueprint.get("/logout")
def logout() -> Response:
    """A page that asks whether to sign off: that it is shown changes nothing."""
    g.principal = EVERYBODY if _is_open() else (signon.current() or Principal(Kind.NOBODY, Role.NOBODY))
    if g.principal.session is None:
        return _to("/" if _is_open() else signon.LOGIN)
    return make_response(render_template("logout.html"))


@blueprint.post("/logout")
def sign_off() -> Response:
    """End the browser's session."""
    if not _is_open():
        found = signon.current()
        if found is not None:
            signon.check(request.cookies[signon.cookie_name()])
            g.principal = found
            signon.end()
    said = _to("/" if _is_open() else f"{signon.LOGIN}?out=1")
    signon.forget_cookie(said)
    return said
