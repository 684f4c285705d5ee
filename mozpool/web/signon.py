# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Sessions of browsers: the cookie, who it says makes a call, and what such a call must show to change anything.

A browser sends its cookie with whatever any page has it call. So a call that changes something also carries what only
our own pages know (the header ``Mozpool-Csrf``, see ``static/js/call.js``; in forms of pages a field), and a GET that
acts is refused.
"""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from urllib.parse import quote, urlsplit

from flask import Response, g, request
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from werkzeug.exceptions import HTTPException

from mozpool.access import sessions
from mozpool.access.principal import Kind, Principal, Role
from mozpool.access.sessions import Person
from mozpool.apikit import site
from mozpool.db import sessions as rows
from mozpool.db import teams
from mozpool.db.sessions import Session
from mozpool.errors import DatabaseAway, Forbidden, Unauthorized
from mozpool.web import bearer
from mozpool.web.errors import wants_page

log = logging.getLogger("mozpool.web")

HEADER = "Mozpool-Csrf"
FIELD = "csrf"
"""The same in a form of a page."""

SAFE = ("GET", "HEAD", "OPTIONS")
"""Verbs that change nothing, unless the call's rule says that it acts."""

LOGIN = "/login"
LOGOUT = "/logout"

LONGEST_ADDRESS = 2000
"""Characters of the address of a page to go to."""


class SignOnAgain(HTTPException):
    """A browser with a session that is over asks for a page: it is sent to sign on (303)."""

    code = 303

    def get_response(self, environ: object = None, scope: object = None) -> Response:
        """The redirect."""
        said = Response(status=303)
        said.headers["Location"] = login_url()
        return said


def login_url() -> str:
    """Where to sign on in order to come back to the current page."""
    return f"{LOGIN}?next={quote(request.full_path.rstrip('?'), safe='/')}"


def local(address: str | None) -> str:
    """The address of a page of ours to go to after signing on; the first page in place of any other address.

    Browsers read backslashes as slashes and leave out tabs and line ends, so nothing with these is taken.
    """
    if not address or len(address) > LONGEST_ADDRESS or not address.startswith("/") or address.startswith("//"):
        return "/"
    if "\\" in address or not address.isascii() or not address.isprintable():
        return "/"
    try:
        parts = urlsplit(address)
    except ValueError:
        return "/"
    if parts.scheme or parts.netloc or parts.path.startswith((LOGIN, LOGOUT, "/api/")):
        return "/"
    return address


# --- The cookie ---


def is_encrypted() -> bool:
    """Whether browsers reach this server by HTTPS, so that cookies are sent only so."""
    return site().settings.public_url.startswith("https:")


def cookie_name(what: str = "session") -> str:
    """The name of a cookie; by its prefix browsers take it from this very host only, and encrypted (RFC 6265bis)."""
    return f"{'__Host-' if is_encrypted() else ''}mozpool_{what}"


def set_cookie(said: Response, value: str, lifetime: timedelta, what: str = "session") -> None:
    """Have the browser keep something that no script sees."""
    said.set_cookie(
        cookie_name(what), value, max_age=lifetime, path="/", secure=is_encrypted(), httponly=True, samesite="Lax"
    )


def forget_cookie(said: Response, what: str = "session") -> None:
    """Have the browser keep it no longer."""
    said.delete_cookie(cookie_name(what), path="/", secure=is_encrypted(), httponly=True, samesite="Lax")


# --- Who makes a call ---


def find() -> Principal | None:
    """Whoever is signed on in the browser that calls; None when it sends no cookie.

    Raises Unauthorized when that session is over (a browser that wants a page is sent to sign on), Forbidden when the
    call would change something and does not come from one of our pages, DatabaseAway.
    """
    secret = request.cookies.get(cookie_name())
    if not secret:
        return None
    who = look_up(secret)
    if who is None:
        if request.method in ("GET", "HEAD") and wants_page():
            raise SignOnAgain
        raise Unauthorized("you are not signed on any more")
    check(secret)
    return who


def look_up(secret: str) -> Principal | None:
    """Whose session this is; None when it is over, or its team was deleted. Raises DatabaseAway."""
    here = site()
    now = here.clock.now()
    with here.database.read() as conn:
        session = sessions.find(conn, secret, now)
        team = None if session is None or session.team_id is None else teams.get(conn, session.team_id)
    if session is None or (session.team_id is not None and team is None):
        return None
    _note_use(session, now)
    g.csrf = sessions.csrf(secret)
    return Principal(
        Kind.PERSON, Role.of(session.role), session.name, team, credential=session.token_id, session=session.id
    )


def _note_use(session: Session, now: datetime) -> None:
    """Note that a session was used, and from where, unless that was noted a moment ago."""
    address = caller()
    if not rows.is_due(session, now, address):
        return
    try:
        site().database.run(lambda conn: rows.used(conn, session.id, now, address), repeatable=True, patience=0.0)
    except (DatabaseAway, DBAPIError) as error:
        log.warning("the use of session %d is not noted: %s", session.id, error)


def caller() -> str | None:
    """From where the current call comes."""
    return (request.remote_addr or "")[: bearer.LONGEST] or None


def current() -> Principal | None:
    """Whoever is signed on in the browser that calls, where everybody may call. Raises DatabaseAway."""
    secret = request.cookies.get(cookie_name())
    return look_up(secret) if secret else None


def check(secret: str) -> None:
    """Raise Forbidden when the call may change something and does not come from a page of the session."""
    if request.method in SAFE:
        return
    said = request.headers.get(HEADER)
    if said is None and not request.path.startswith("/api/"):
        said = request.form.get(FIELD)
    if said is None or not sessions.is_csrf(secret, said):
        raise Forbidden("the call does not come from a page of this session: load the page again")


def begin(person: Person, most: timedelta | None = None) -> tuple[str, timedelta]:
    """Sign somebody on, and end the session that the browser had: the new one's secret, and how long it lasts.

    ``most`` is how long it may last at all. Raises DatabaseAway.
    """
    here = site()
    lifetime = timedelta(seconds=here.settings.auth.session_lifetime)
    if most is not None:
        lifetime = min(lifetime, most)
    now, before, address = here.clock.now(), request.cookies.get(cookie_name()), caller()

    def work(conn: Connection) -> str:
        if before:
            rows.end_by_hash(conn, sessions.hash_of(before))
        return sessions.begin(conn, person, now, now + lifetime, address)

    return here.database.run(work, repeatable=True), lifetime


def end() -> None:
    """Sign off whoever is signed on in the browser that calls. Raises DatabaseAway."""
    secret = request.cookies.get(cookie_name())
    if secret:
        site().database.run(lambda conn: rows.end_by_hash(conn, sessions.hash_of(secret)), repeatable=True)
