# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Who calls a server in tests of access."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection

from mozpool.access import sessions, tokens
from mozpool.access.principal import Role
from mozpool.access.sessions import Person
from mozpool.db import teams
from mozpool.db.engine import Database

MODES: Mapping[str, Mapping[str, Any]] = {
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
"""Settings of ``[auth]`` for all that may hold."""


def make_token(database: Database, name: str, role: str, **columns: Any) -> str:
    """The text of a new token; ``columns`` are others of its row."""
    now = database.clock.now()

    def work(conn: Connection) -> str:
        values = {"name": name, "role": role, "created": now, "created_by": "test", **columns}
        return tokens.create(conn, values)[1]

    return database.run(work)


def make_team(database: Database, name: str, **limits: Any) -> int:
    """The id of a new team."""
    return database.run(lambda conn: teams.add(conn, teams.values(name=name, **limits)))


def bearer(token: str) -> dict[str, str]:
    """The headers of a call with this token."""
    return {"Authorization": f"Bearer {token}"}


def begin_session(
    database: Database,
    name: str,
    role: str,
    *,
    token: str | None = None,
    team_id: int | None = None,
    expires: datetime | None = None,
) -> str:
    """The secret of a new session, which somebody began with this token, or through the OpenID provider."""
    now = database.clock.now()
    token_id = None if token is None else int(token.split("_")[1])
    person = Person(name, Role.of(role), team_id, token_id)
    until = expires or now + timedelta(hours=12)
    return database.run(lambda conn: sessions.begin(conn, person, now, until, None))


def cookies(secret: str) -> dict[str, str]:
    """The cookies of a browser with this session."""
    return {"mozpool_session": secret}


def from_page(secret: str) -> dict[str, str]:
    """The headers of a call that a page of this session makes."""
    return {"Mozpool-Csrf": sessions.csrf(secret)}
