# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Every route, for every role, in every mode: who gets through the gate, and who does not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from werkzeug.routing import Rule as Route

from mozpool.access.matrix import RULES
from mozpool.access.principal import Role
from mozpool.errors import Forbidden, Unauthorized
from tests.access_support import bearer, make_token
from tests.app_fixtures import Server, server

MODES: dict[str, dict[str, Any]] = {
    "open": {"mode": "open"},
    "token": {"mode": "token"},
    "token, anonymous viewers": {"mode": "token", "anonymous": "viewer"},
    "oidc": {
        "mode": "oidc",
        "oidc_issuer": "https://id.example.com",
        "oidc_client_id": "mozpool",
        "oidc_client_secret": "secret",
    },
}

MANY_ARGUMENTS = {"mac": "aabbccddee01", "name": "device1", "old": "ready", "new": "ready", "event": "x"}


@dataclass(frozen=True)
class Caller:
    """Somebody who calls."""

    role: Role
    holds: bool = False
    """Whether the request and the device that the routes name are theirs."""
    token: bool = True


CALLERS = {
    "nobody": Caller(Role.NOBODY, token=False),
    "viewer": Caller(Role.VIEWER),
    "user": Caller(Role.USER),
    "holder": Caller(Role.USER, holds=True),
    "operator": Caller(Role.OPERATOR),
    "admin": Caller(Role.ADMIN),
}


@pytest.fixture(params=MODES)
def guarded(request: pytest.FixtureRequest, sqlite_url: str, tmp_path: Path) -> Iterator[tuple[str, Server]]:
    """A server in each mode."""
    with server(sqlite_url, tmp_path, auth=MODES[request.param]) as made:
        yield request.param, made


def test_the_matrix_has_exactly_the_routes_that_there_are(guarded: tuple[str, Server]) -> None:
    _mode, made = guarded
    assert {route.endpoint for route in made.app.url_map.iter_rules()} == set(RULES)


def test_every_route_for_every_role(guarded: tuple[str, Server]) -> None:
    mode, made = guarded
    headers = {}
    for name, caller in CALLERS.items():
        if caller.token:
            headers[name] = bearer(make_token(made.daemon.database, name, str(caller.role)))
    held = made.made("device1", headers=headers["holder"])
    wrong, walked = [], set()
    for route in made.app.url_map.iter_rules():
        for method in sorted((route.methods or set()) - {"OPTIONS"}):
            walked.add(route.endpoint)
            for name, caller in CALLERS.items():
                wanted = expected(mode, caller, route.endpoint)
                found = outcome(made, route, method, held, headers.get(name, {}))
                if found != wanted:
                    wrong.append(f"{mode}: {name}: {method} {route.rule} ({route.endpoint}): {found}, not {wanted}")
    assert wrong == []
    assert walked == set(RULES)


def expected(mode: str, caller: Caller, endpoint: str) -> str:
    """What is to become of a call, by the matrix."""
    rule = RULES[endpoint]
    role = max(caller.role, Role.VIEWER) if mode == "token, anonymous viewers" else caller.role
    if mode == "open" or role >= rule.least or (rule.holder and caller.holds):
        return "in"
    return "refused" if caller.token else "unknown"


def outcome(made: Server, route: Route, method: str, held: int, headers: dict[str, str]) -> str:
    """What becomes of a call: what is done before its view is called, and no more."""
    arguments = {name: MANY_ARGUMENTS.get(name, "1") for name in route.arguments} | {"number": held}
    with made.app.test_request_context():
        adapter = made.app.create_url_adapter(None) or made.app.url_map.bind("localhost")
        path = adapter.build(route.endpoint, {name: arguments[name] for name in route.arguments}, method=method)
    with made.app.test_request_context(path, method=method, headers={**headers, "Accept": "application/json"}):
        try:
            said = made.app.preprocess_request()
        except Forbidden:
            return "refused"
        except Unauthorized:
            return "unknown"
    return "in" if said is None else str(said)


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
        headers = {
            name: bearer(make_token(made.daemon.database, name, str(caller.role))) if caller.token else {}
            for name, caller in CALLERS.items()
        }
        before = made.counts()
        found = [
            (name, method, path, made.client.open(path, method=method, headers=headers[name]).status_code)
            for name, method, path, _ in BY_HAND
        ]
        assert found == BY_HAND
        assert made.counts() == before
