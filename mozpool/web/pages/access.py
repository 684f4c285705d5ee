# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The pages of tokens, teams and sessions."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from flask import Response, request

from mozpool.access.principal import Role, principal
from mozpool.apikit import site
from mozpool.db import devices, sessions, teams, tokens
from mozpool.web.pages.base import blueprint, live

LIFETIMES = (
    ("30 days", timedelta(days=30)),
    ("90 days", timedelta(days=90)),
    ("1 year", timedelta(days=365)),
)
"""What the page offers for how long a token is to hold."""


def _wants_all() -> bool:
    """Whether an admin looks at what belongs to others, too."""
    return principal().role >= Role.ADMIN and request.args.get("whose") != "mine"


@blueprint.get("/tokens")
def tokens_page() -> Response:
    """The tokens of whoever looks, or of all, for admins."""
    return live("tokens", _tokens)


def _tokens() -> dict[str, Any]:
    who, now = principal(), site().clock.now()
    shows_all, old = _wants_all(), "old" in request.args
    with site().database.read() as conn:
        found = tokens.find(conn, name=None if shows_all else (who.name or ""), good_at=None if old else now)
        known = teams.find(conn)
    return {
        "tokens": found[::-1],
        "shows_all": shows_all,
        "old": old,
        "teams": known,
        "roles": [str(role) for role in Role if Role.NOBODY < role <= who.role],
        **_lifetimes(),
        "arguments": request.args.to_dict(),
    }


def _lifetimes() -> dict[str, Any]:
    """For how long whoever looks may make a token."""
    offered = list(LIFETIMES)
    if principal().is_of_provider:
        days = site().settings.auth.token_lifetime
        longest = timedelta(days=days)
        offered = [each for each in offered if each[1] < longest]
        offered.append(("1 day" if days == 1 else f"{days} days", longest))
    return {
        "lifetimes": [(title, int(lifetime.total_seconds())) for title, lifetime in offered],
        "endless": not principal().is_of_provider,
    }


@blueprint.get("/teams")
def teams_page() -> Response:
    """All teams, what they may have and what they have."""
    return live("teams", _teams)


def _teams() -> dict[str, Any]:
    now = site().clock.now()
    with site().database.read() as conn:
        found, held = teams.find(conn), teams.held_by_all(conn)
        numbers = {team.id: tokens.number_in_team(conn, team.id, now) for team in found}
        environments = devices.environments(conn)
    return {
        "teams": [(team, _duration(team.max_duration)) for team in found],
        "held": held,
        "tokens": numbers,
        "environments": environments,
    }


def _duration(seconds: int | None) -> str:
    """A duration as its field takes it, to the second."""
    if seconds is None:
        return ""
    size, unit = next((size, unit) for size, unit in ((3600, "h"), (60, "min"), (1, "s")) if seconds % size == 0)
    return f"{seconds // size} {unit}"


@blueprint.get("/sessions")
def sessions_page() -> Response:
    """Where whoever looks is signed on, or everybody, for admins."""
    return live("sessions", _sessions)


def _sessions() -> dict[str, Any]:
    who, shows_all = principal(), _wants_all()
    with site().database.read() as conn:
        found = sessions.find(conn, None if shows_all else (who.name or ""), site().clock.now())
    return {"sessions": found[::-1], "shows_all": shows_all, "arguments": request.args.to_dict()}
