# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Lets calls in: finds out once who makes a call, and refuses what the matrix does not allow them.

In mode open there is no gate: nobody is asked, and nothing is looked up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from urllib.parse import quote

from apiflask import APIFlask
from flask import Response, current_app, g, request

from mozpool.access import servers
from mozpool.access.brake import Brake
from mozpool.access.held import Held
from mozpool.access.matrix import RULES, Rule
from mozpool.access.principal import Kind, Principal, Role
from mozpool.access.signing import OtherRun
from mozpool.apikit import Site, device_key
from mozpool.db import claims, requests
from mozpool.errors import Forbidden, Unauthorized
from mozpool.pool.api import request_number
from mozpool.web import bearer, devicecalls, signon
from mozpool.web.errors import wants_page

Finder = Callable[[], Principal | None]
"""Looks at the current call for one kind of credentials.

Answers None where the call carries none of its kind, so that the next one is asked. Raises Unauthorized for
credentials that are no good: unknown, wrong, expired, revoked.
"""

FINDERS: Sequence[Finder] = (servers.find, bearer.find, signon.find, devicecalls.find)
"""All finders, in the order in which they are asked: servers, tokens, sessions, the device itself."""

GATE = "mozpool.gate"
"""The key of the :class:`Gate` in the application's extensions; in mode open there is none."""

LOGIN = "/login"
"""The page on which people sign on."""

UNKNOWN = Rule(Role.ADMIN)
"""What holds for an endpoint that the matrix has forgotten."""


class Gate:
    """Decides on each call of an application whose mode is not open."""

    def __init__(self, site: Site, finders: Sequence[Finder] = FINDERS) -> None:
        self._site = site
        self.finders = finders
        self.brake = Brake(site.clock)
        self._nobody = Principal(Kind.NOBODY, Role.VIEWER if site.settings.auth.anonymous == "viewer" else Role.NOBODY)

    def admit(self) -> Response | None:
        """Find out who calls, and whether they may: nothing, a redirect to the page to sign on, or it raises.

        Raises Unauthorized (401), Forbidden (403), TooManyCalls (429).
        """
        g.principal = self._nobody
        endpoint = request.endpoint
        if endpoint is None or request.method == "OPTIONS":
            return None
        rule = RULES.get(endpoint, UNKNOWN)
        if rule.least is Role.NOBODY:
            return None
        who = g.principal = self._find()
        if rule.acts and request.method in ("GET", "HEAD") and who.session is not None:
            raise Forbidden("a GET that changes something is not for browsers: use POST")
        if who.role >= rule.least or (rule.device and who.kind is Kind.DEVICE):
            return None
        if rule.holder and who.role >= Role.USER and self._holds(who):
            return None
        if who.kind is not Kind.NOBODY:
            raise Forbidden(_refusal(who, rule))
        if request.method in ("GET", "HEAD") and wants_page():
            return _sign_on()
        raise Unauthorized(f"no credentials were sent, and this needs {_needed(rule)}")

    def _find(self) -> Principal:
        """Who calls. Raises Unauthorized, TooManyCalls."""
        address, credentials = request.remote_addr or "", request.headers.get("Authorization")
        if servers.credentials_of_call() is not None:
            address = f"server {address}"  # servers are not to wait for others that call from where they do
        if credentials is not None:
            self.brake.check(address, credentials)
        for finder in self.finders:
            try:
                found = finder()
            except OtherRun:
                raise  # this server has been started anew
            except Unauthorized:
                # Nobody guesses what sessions and boots are known by, and pages that are open go on asking.
                if credentials is not None:
                    self.brake.failed(address, credentials)
                raise
            if found is not None:
                if credentials is not None:
                    self.brake.passed(credentials)
                return found
        return self._nobody

    def _holds(self, who: Principal) -> bool:
        """Whether the request, or the device, that the call names is the caller's own, by the database as it is now.

        What they do to a device counts as done by its claim from here on. Raises NotFound, BadInput.
        """
        named = request.view_args or {}
        now = self._site.clock.now()
        with self._site.database.read() as conn:
            if "number" in named:
                return who.owns(requests.maker(conn, request_number(named["number"])))
            found = claims.holder(conn, device_key(conn, named["name"]).id, now)
        if found is None or not who.owns(found[2]):
            return False
        g.held = Held(claim_id=found[0], request_id=found[1])
        return True


def _sign_on() -> Response:
    """To the page to sign on, and from there back to this one."""
    said = Response(status=303)
    said.headers["Location"] = f"{LOGIN}?next={quote(request.full_path.rstrip('?'), safe='/')}"
    return said


def _needed(rule: Rule) -> str:
    """What a call needs, in words."""
    if rule.holder:
        return f"the role {Role.USER} and to hold it, or the role {rule.least}"
    return f"the role {rule.least}"


def _refusal(who: Principal, rule: Rule) -> str:
    """Why somebody may not make a call."""
    return f"{who.name or who.kind} has the role {who.role}, and this needs {_needed(rule)}"


def brake() -> Brake:
    """What slows down who tries credentials out, in other modes than open."""
    found = current_app.extensions[GATE]
    assert isinstance(found, Gate)
    return found.brake


def register(app: APIFlask, site: Site) -> None:
    """Put the gate in front of all paths, unless everybody may do everything."""
    if site.settings.auth_mode == "open":
        return
    gate = app.extensions[GATE] = Gate(site)
    app.before_request(gate.admit)
