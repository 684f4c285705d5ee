# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Every route, for every role, in every mode, by token and by session: who gets through the gate, and who does not."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from flask import Response
from werkzeug.exceptions import MethodNotAllowed
from werkzeug.routing import Rule as Route

from mozpool.access.matrix import RULES
from mozpool.access.principal import Role
from mozpool.access.servers import OWN_CALLS, SERVERS
from mozpool.access.signing import Call, Signer
from mozpool.errors import Forbidden, Unauthorized
from tests.access_support import MODES, bearer, begin_session, cookies, from_page, make_token
from tests.app_fixtures import OTHER, OWN, Server, server

KEY = "what imaging servers sign their calls with"

MANY_ARGUMENTS = {
    "mac": "020000000001",
    "name": "device1",
    "old": "ready",
    "new": "ready",
    "event": "mobile_init_started",
}
"""What stands in paths. The event is one that devices tell of themselves."""

VERBS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


@dataclass(frozen=True)
class Caller:
    """Somebody who calls."""

    role: Role
    by: str
    """token; session; foreign page: a session without what shows that one of our pages calls; address: the device's
    own; signature: another imaging server's; bad: credentials that are no good; nothing."""
    holds: bool = False
    """Whether the request and the device that the routes name are theirs."""
    headers: Mapping[str, str] = field(default_factory=dict)
    address: str = "127.0.0.1"


ROLES = (Role.VIEWER, Role.USER, Role.OPERATOR, Role.ADMIN)

CALLERS = {
    "nobody": Caller(Role.NOBODY, "nothing"),
    **{f"{role} by {by}": Caller(role, by) for role in ROLES for by in ("token", "session", "foreign page")},
    "holder by token": Caller(Role.USER, "token", holds=True),
    "holder by session": Caller(Role.USER, "session", holds=True),
    "holder by foreign page": Caller(Role.USER, "foreign page", holds=True),
    "the device": Caller(Role.NOBODY, "address"),
    "another server": Caller(Role.OPERATOR, "signature"),
    **{f"with a {what}": Caller(Role.ADMIN, "bad") for what in ("revoked token", "token that has expired")},
    **{f"with a {what}": Caller(Role.ADMIN, "bad") for what in ("session that is over", "wrong token")},
}


@pytest.fixture(params=MODES)
def guarded(request: pytest.FixtureRequest, sqlite_url: str, tmp_path: Path) -> Iterator[tuple[str, Server]]:
    """A server in each mode."""
    with server(sqlite_url, tmp_path, auth={**MODES[request.param], "server_key": KEY}) as made:
        yield request.param, made


def test_the_matrix_has_exactly_the_routes_that_there_are(guarded: tuple[str, Server]) -> None:
    _mode, made = guarded
    assert {route.endpoint for route in made.app.url_map.iter_rules()} == set(RULES)


def test_a_route_that_the_matrix_has_forgotten_is_for_admins(sqlite_url: str, tmp_path: Path) -> None:
    with server(sqlite_url, tmp_path, auth={"mode": "token"}) as made:
        made.app.add_url_rule("/forgotten", "forgotten", lambda: "found")
        assert {route.endpoint for route in made.app.url_map.iter_rules()} - set(RULES) == {"forgotten"}
        statuses = {
            role: made.get("/forgotten", headers=bearer(make_token(made.daemon.database, "x", str(role)))).status_code
            for role in ROLES
        }
        assert made.get("/forgotten").status_code == 401
    assert statuses == {Role.VIEWER: 403, Role.USER: 403, Role.OPERATOR: 403, Role.ADMIN: 200}


def test_every_route_for_every_role(guarded: tuple[str, Server]) -> None:
    """And every verb: those that are not for a route do nothing, whoever calls."""
    mode, made = guarded
    callers = known(made)
    number = made.made("device1", headers=callers["holder by token"].headers)
    before = made.counts()
    wrong, walked = [], set()
    routes = list(made.app.url_map.iter_rules())
    there_are = {(route.rule, verb) for route in routes for verb in route.methods or ()}
    for route in routes:
        path = path_of(made, route, number)
        for verb in VERBS:
            is_there = verb in (route.methods or ())
            if not is_there and (route.rule, verb) in there_are:
                continue  # it is another route's
            if is_there:
                walked.add((route.rule, verb))
            for name, caller in callers.items():
                if name not in ANSWERED and (mode == "open" or not is_there or verb in ("HEAD", "OPTIONS")):
                    continue
                wanted = expected(mode, caller, route, verb)
                found = outcome(made, path, verb, caller, route, is_answered=name in ANSWERED)
                if found != wanted:
                    wrong.append(f"{mode}: {name}: {verb} {path} ({route.endpoint}): {found}, not {wanted}")
    assert wrong == []
    assert walked == there_are
    assert made.counts() == before


def known(made: Server) -> dict[str, Caller]:
    """All callers, with what they are known by on this server."""
    database = made.daemon.database
    now = database.clock.now()
    good = make_token(database, "x", "admin")
    bad = {
        "with a revoked token": bearer(make_token(database, "x", "admin", revoked=now)),
        "with a token that has expired": bearer(make_token(database, "x", "admin", expires=now)),
        "with a session that is over": browser(
            begin_session(database, "x", "admin", expires=now - timedelta(seconds=1))
        ),
        "with a wrong token": bearer(good[:-1]),
    }
    found = {}
    for name, caller in CALLERS.items():
        who = name.partition(" by ")[0]
        match caller.by:
            case "token":
                found[name] = replace(caller, headers=bearer(make_token(database, who, str(caller.role))))
            case "session":
                found[name] = replace(caller, headers=browser(begin_session(database, who, str(caller.role))))
            case "foreign page":
                secret = begin_session(database, who, str(caller.role))
                found[name] = replace(caller, headers={**browser(secret), **from_page("another")})
            case "address":
                found[name] = replace(caller, address=made.device().address)
            case "bad":
                found[name] = replace(caller, headers=bad[name])
            case _:
                found[name] = caller
    return found


def browser(secret: str) -> dict[str, str]:
    """The headers of a call that a page of a session makes."""
    sent = "; ".join(f"{name}={value}" for name, value in cookies(secret).items())
    return {"Cookie": sent, **from_page(secret)}


def expected(mode: str, caller: Caller, route: Route, verb: str) -> str:
    """What is to become of a call, by the matrix."""
    if verb == "OPTIONS":
        return "in"
    if verb not in (route.methods or ()):
        return "no such verb"
    rule = RULES[route.endpoint]
    if mode == "open" or rule.least is Role.NOBODY:
        return "in"
    if caller.by == "bad":
        return "unknown"
    if caller.by == "signature":
        return "in" if route.endpoint in OWN_CALLS else "refused"
    by_cookie = caller.by in ("session", "foreign page")
    is_look = verb in ("GET", "HEAD")
    if (by_cookie and rule.acts and is_look) or (caller.by == "foreign page" and not is_look):
        return "refused"
    role = caller.role
    if caller.by in ("nothing", "address") and mode == "token, anonymous viewers":
        role = Role.VIEWER
    if role >= rule.least or (rule.holder and caller.holds) or (rule.device and caller.by == "address"):
        return "in"
    return "unknown" if caller.by in ("nothing", "address") else "refused"


def path_of(made: Server, route: Route, number: int) -> str:
    """A path of this route that names the request of the holder, and their device."""
    arguments = {name: MANY_ARGUMENTS.get(name, "1") for name in route.arguments} | {"number": number}
    adapter = made.app.url_map.bind("localhost")
    return adapter.build(
        route.endpoint,
        {name: arguments[name] for name in route.arguments},
        method=next(iter(sorted(route.methods or ()))),
    )


def outcome(made: Server, path: str, verb: str, caller: Caller, route: Route, *, is_answered: bool) -> str:
    """What becomes of a call: what is done before its view is called and, when that is not to be, what is answered."""
    with made.app.test_request_context(**call_of(made, path, verb, caller)) as context:
        if isinstance(context.request.routing_exception, MethodNotAllowed):
            said = "no such verb"
        else:
            assert context.request.url_rule is route or verb == "OPTIONS", path
            try:
                redirect = made.app.preprocess_request()
                said = "in" if redirect is None else str(redirect)
            except Forbidden:
                said = "refused"
            except Unauthorized:
                said = "unknown"
    if not is_answered or (said == "in" and verb != "OPTIONS"):
        return said
    client = made.app.test_client(use_cookies=False)
    status = client.open(**call_of(made, path, verb, caller)).status_code
    return said if status == STATUSES.get(said) else f"{said}, but answered {status}"


def call_of(made: Server, path: str, verb: str, caller: Caller) -> dict[str, Any]:
    """A call, as Flask's test client makes it."""
    headers, address = {"Accept": "application/json", **caller.headers}, caller.address
    if caller.by == "signature":
        # Good for one call.
        signer = Signer(OTHER, (KEY,), made.daemon.clock)
        run = made.app.extensions[SERVERS].run
        headers["Authorization"] = signer.sign(Call.to(verb, path, b""), OWN, run, None)
    elif caller.by == "bad":
        # One that sends such often is not listened to.
        address = f"2001:db8:{random.randrange(2**16):x}:{random.randrange(2**16):x}::1"
    return {"path": path, "method": verb, "headers": headers, "environ_overrides": {"REMOTE_ADDR": address}}


ANSWERED = ("nobody", "viewer by token", "admin by session", "user by foreign page", "with a wrong token")
"""Those whose calls are made to the end, and with all verbs, so that it takes no minutes. Of the others it is seen who
gets past the gate, with the verbs of the route but HEAD, which is as GET."""

STATUSES = {"in": 200, "no such verb": 405, "refused": 403, "unknown": 401}
"""What is answered to calls that the view does not get; OPTIONS tells anybody which verbs there are."""

BY_HAND = [
    ("nobody", "GET", "/api/version/", 200),
    ("nobody", "GET", "/api/health/", 200),
    ("nobody", "GET", "/api/device/list/", 401),
    ("nobody", "POST", "/api/device/any/request/", 401),
    ("viewer", "GET", "/api/device/list/", 200),
    ("viewer", "POST", "/api/device/any/request/", 403),
    ("user", "GET", "/api/device/device1/power-off/", 403),
    ("user", "POST", "/api/device/device1/set-comments/", 403),
    ("user", "POST", "/api/device/device1/agent/exec/", 403),
    ("user", "GET", "/api/device/device1/event/failed/", 403),
    ("user", "POST", "/api/device/device1/state-change/ready/to/locked_out/", 403),
    ("operator", "POST", "/api/image/create/", 403),
    ("operator", "POST", "/api/team/create/", 403),
    ("operator", "POST", "/api/device/device1/set-comments/", 400),
    ("admin", "POST", "/api/team/create/", 400),
]
"""Who calls what, and what comes of it."""


def test_a_few_by_hand(sqlite_url: str, tmp_path: Path) -> None:
    with server(sqlite_url, tmp_path, auth={"mode": "token"}) as made:
        headers = {str(role): bearer(make_token(made.daemon.database, str(role), str(role))) for role in ROLES}
        before = made.counts()
        found = [
            (name, method, path, made.client.open(path, method=method, headers=headers.get(name, {})).status_code)
            for name, method, path, _ in BY_HAND
        ]
        assert found == BY_HAND
        assert made.counts() == before


def test_pages_send_those_whom_nobody_knows_to_sign_on(guarded: tuple[str, Server]) -> None:
    mode, made = guarded
    pages = {"Accept": "text/html"}
    for route in made.app.url_map.iter_rules():
        path = path_of(made, route, 1)
        if "GET" not in (route.methods or ()) or path.startswith("/api/"):
            continue
        least = RULES[route.endpoint].least
        known_role = Role.VIEWER if mode == "token, anonymous viewers" else Role.NOBODY
        with made.app.test_request_context(path, headers=pages):
            if mode == "open" or known_role >= least:
                assert made.app.preprocess_request() is None, path
            elif RULES[route.endpoint].device:
                with pytest.raises(Unauthorized):
                    made.app.preprocess_request()
            else:
                said = made.app.preprocess_request()
                assert isinstance(said, Response), path
                assert (said.status_code, said.headers["Location"]) == (303, f"/login?next={path}")
