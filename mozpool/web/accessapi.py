# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The paths of tokens and teams: who may call, and what the people of a team may have."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal, TypeVar

from apiflask import APIBlueprint
from flask import Response
from pydantic import AfterValidator, BaseModel, Field, StringConstraints
from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from mozpool import apikit
from mozpool.access import tokens
from mozpool.access.principal import Principal, Role, principal
from mozpool.apikit import MAX_SECONDS, Flag, Input, Name, PageQuery, Seconds, Whole, answer, done, endpoint, site
from mozpool.apikit import time_text as shown_time
from mozpool.db import requests, sessions, teams
from mozpool.db import tokens as token_rows
from mozpool.db.teams import Team
from mozpool.db.tokens import Token
from mozpool.errors import BadInput, Conflict, Forbidden, NotFound, Unauthorized
from mozpool.pool.criteria import Criteria

blueprint = APIBlueprint("access", __name__, tag="Access", url_prefix="/api")

ANYBODY = "anybody"
"""Who has made a token in mode open."""

MOST = 1_000_000
"""Devices that a quota may speak of."""

T = TypeVar("T")


def _one_line(text: str) -> str:
    if not text.isprintable():
        raise ValueError("one line of printable characters is expected")
    return text


Owner = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=256), AfterValidator(_one_line)
]
TeamName = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=64), AfterValidator(_one_line)
]
RoleName = Literal["viewer", "user", "operator", "admin"]


# What they take


class TokenListQuery(PageQuery):
    """Which tokens are wanted; others than admins see their own alone."""

    name: str | None = Field(None, description="Whose tokens.")
    all: Flag = Field(False, description="Also those that were revoked or have expired; any value counts.")


class TokenBody(Input):
    """What a token is to be good for."""

    name: Owner | None = Field(
        None, description="Whose it is, as requests, logs and the audit tell it; without it, the caller's own."
    )
    role: RoleName | None = Field(None, description="At most the caller's own; without it, user.")
    team: TeamName | None = Field(None, description="The team whose quota counts; without it, the caller's own.")
    note: Annotated[str, StringConstraints(strip_whitespace=True, max_length=190)] | None = Field(
        None, description="For people: what it is used for."
    )
    duration: Annotated[Seconds, Field(gt=0)] | None = Field(
        None,
        description="Seconds that it is good for; without it, until it is revoked. Whoever signed on through the "
        "OpenID provider gets at most as many days as [auth] token_lifetime says, and without it so many.",
    )


class TeamBody(Input):
    """What the people of a team may have."""

    max_devices: Annotated[Whole, Field(ge=0, le=MOST)] | None = Field(
        None, description="Devices at a time; without it, as many as there are."
    )
    max_duration: Annotated[Whole, Field(ge=1, le=MAX_SECONDS)] | None = Field(
        None, description="Seconds from when a request is made until it expires, renewals included."
    )
    environments: Annotated[list[Name], Field(min_length=1, max_length=100)] | None = Field(
        None, description="The environments that it may use; without it, all."
    )
    groups: Annotated[list[Annotated[str, StringConstraints(min_length=1, max_length=256)]], Field(max_length=100)] = (
        Field(default_factory=list, description="Groups of the OpenID provider whose people are in it.")
    )


class NewTeamBody(TeamBody):
    """A team."""

    name: TeamName


class TeamChangeBody(TeamBody):
    """What is to be another than before; what is left out stays."""

    without: list[Literal["max_devices", "max_duration", "environments"]] = Field(
        default_factory=list, description="Limits that there are to be no more."
    )


# What they give


class Identity(BaseModel):
    """Who calls, as the server sees it."""

    kind: str = Field(description="open (nobody is asked), nobody, token, person, device or server.")
    name: str | None
    role: str
    team: str | None
    token: int | None = Field(description="The id of the token.")


class TokenInfo(BaseModel):
    """A token, without its text: nobody has that but who was given it."""

    id: int
    name: str
    role: str
    team: str | None
    note: str | None
    created: str
    created_by: str
    expires: str | None
    revoked: str | None
    last_used: str | None = Field(description="To the minute.")
    last_address: str | None


class TokenList(BaseModel):
    """Tokens."""

    tokens: list[TokenInfo]
    next_cursor: int | None = Field(None, description="With `limit`: where to go on; null at the end.")


class NewToken(TokenInfo):
    """A token that was just made."""

    token: str = Field(description="What is to be sent as `Authorization: Bearer TOKEN`. It is shown here only.")


class TokenAnswer(BaseModel):
    """A token that was just made."""

    token: NewToken


class TeamInfo(BaseModel):
    """A team."""

    id: int
    name: str
    max_devices: int | None
    max_duration: int | None
    environments: list[str] | None
    groups: list[str]
    devices: int = Field(description="How many its requests have now.")


class TeamList(BaseModel):
    """All teams."""

    teams: list[TeamInfo]


class TeamAnswer(BaseModel):
    """A team as it is now."""

    team: TeamInfo


# Who calls


@endpoint(blueprint, "/whoami/", answers=Identity)
def whoami() -> Response:
    """Who calls, and which role they have."""
    who = principal()
    team = None if who.team is None else who.team.name
    return answer(
        {"kind": str(who.kind), "name": who.name, "role": str(who.role), "team": team, "token": who.credential}
    )


# Tokens


@endpoint(blueprint, "/token/list/", answers=TokenList, query=TokenListQuery, errors=[400])
def token_list() -> Response:
    """List of tokens that are good: the caller's own, or for admins all."""
    query = apikit.query(TokenListQuery)
    who = principal()
    name = query.name
    if who.role < Role.ADMIN:
        if name not in (None, who.name):
            raise Forbidden(f"only admins see the tokens of others than {who.name}", field="name")
        name = who.name
    good_at = None if query.all else site().clock.now()
    more = None if query.limit is None else query.limit + 1
    with site().database.read() as conn:
        rows = token_rows.find(conn, name=name, good_at=good_at, after=query.cursor, limit=more)
    return answer(apikit.page("tokens", rows, query.limit, [_token_info(row) for row in rows]))


def _token_info(row: Token) -> dict[str, Any]:
    return {
        "id": row.id,
        "name": row.name,
        "role": row.role,
        "team": None if row.team is None else row.team.name,
        "note": row.note,
        "created": shown_time(row.created),
        "created_by": row.created_by,
        "expires": shown_time(row.expires),
        "revoked": shown_time(row.revoked),
        "last_used": shown_time(row.last_used),
        "last_address": row.last_address,
    }


@endpoint(
    blueprint,
    "/token/create/",
    "POST",
    answers=TokenAnswer,
    body=TokenBody,
    example={"name": "builder-1.example.com", "role": "user", "note": "nightly builds", "duration": 31536000},
    errors=[400, 404],
)
def token_create() -> Response:
    """Make a token, whose text is in the answer and nowhere else.

    It is no longer good than the token they call with, and revoked with it. Others than admins make them for
    themselves, with at most their own role and their own team.
    """
    body = apikit.parse(TokenBody, apikit.json_body())
    who, here = principal(), site()
    now = here.clock.now()
    expires = _expires(who, body.duration, now)
    name = body.name or who.name
    if name is None:
        raise BadInput("name: is missing", field="name")

    def work(conn: Connection) -> tuple[Token, str]:
        team = who.team if body.team is None else _team(conn, body.team)
        role = Role.of(body.role or str(min(who.role, Role.USER)))
        _hold(conn, who, now)
        own = None if who.credential is None else token_rows.get(conn, who.credential)
        last = None if own is None else own.expires
        _check_may_make(who, name, role, team)
        good_until = expires
        if last is not None:
            if body.duration is not None and expires is not None and expires > last:
                raise Forbidden(f"duration: your own token is good until {shown_time(last)} only", field="duration")
            good_until = expires or last
        token_id, text = tokens.create(
            conn,
            {
                "name": name,
                "role": str(role),
                "team_id": None if team is None else team.id,
                "note": body.note or None,
                "created": now,
                "created_by": who.name or ANYBODY,
                "expires": good_until,
                "parent_id": who.credential,
            },
        )
        made = token_rows.get(conn, token_id)
        assert made is not None
        return made, text

    made, text = here.database.run(work)
    said = answer({"token": {**_token_info(made), "token": text}})
    said.cache_control.no_store = True
    return said


def _expires(who: Principal, duration: float | None, now: datetime) -> datetime | None:
    """Until when a token is to be good. Raises BadInput when that is longer than the provider's people may ask for."""
    if who.is_of_provider:
        most = site().settings.auth.token_lifetime * 86400
        if duration is not None and duration > most:
            raise BadInput.value("duration", duration, f"at most {most} seconds")
        duration = most if duration is None else duration
    return None if duration is None else now + timedelta(seconds=duration)


def _hold(conn: Connection, who: Principal, now: datetime) -> None:
    """Have nobody take away what a token is made by means of, before that is done. Raises Unauthorized."""
    if who.credential is not None and not token_rows.hold(conn, who.credential, now):
        raise Unauthorized(f"token {who.credential} was revoked")
    if who.is_of_provider and who.session is not None and not sessions.hold(conn, who.session, str(who.role), now):
        raise Unauthorized("you are not signed on any more, or with another role")


def _check_may_make(who: Principal, name: str, role: Role, team: Team | None) -> None:
    """Raise Forbidden when somebody may not make a token with this name, role and team."""
    if who.role is Role.ADMIN:
        return
    if name != who.name:
        raise Forbidden(f"name: only admins make tokens for others than {who.name}", field="name")
    if role > who.role:
        raise Forbidden(f"role: {role} is more than your own, {who.role}", field="role")
    if team != who.team:
        raise Forbidden("team: only admins make tokens for another team than their own", field="team")


@endpoint(blueprint, "/token/<number>/revoke/", "POST", answers=None, body=Input, errors=[400, 404])
def token_revoke(number: str) -> Response:
    """Make a token, and who signed on with it, good for nothing from now on; nothing changes when it is so already.

    So are the tokens that were made by means of it, and by means of those.
    """
    apikit.json_body()
    if not re.fullmatch(r"\d{1,18}", number, re.ASCII):
        raise BadInput.value("token", number, "the number of a token")
    who, now = principal(), site().clock.now()

    def work(conn: Connection) -> None:
        row = token_rows.get(conn, int(number))
        if row is None or (who.role < Role.ADMIN and row.name != who.name):
            raise NotFound(f"you have no token {int(number)}", field="token")
        token_rows.revoke(conn, [row.id], now)

    site().database.run(work, repeatable=True)
    return done()


# Teams


@endpoint(blueprint, "/team/list/", answers=TeamList)
def team_list() -> Response:
    """List of the teams, and how many devices they have."""
    with site().database.read() as conn:
        held = teams.held_by_all(conn)
        found = teams.find(conn)
    return answer({"teams": [_team_info(team, held.get(team.id, 0)) for team in found]})


def _team_info(team: Team, devices: int) -> dict[str, Any]:
    return {
        "id": team.id,
        "name": team.name,
        "max_devices": team.max_devices,
        "max_duration": team.max_duration,
        "environments": None if team.environments is None else list(team.environments),
        "groups": list(team.groups),
        "devices": devices,
    }


def _team(conn: Connection, name: str) -> Team:
    """The team of this name. Raises NotFound."""
    found = teams.by_name(conn, name)
    if found is None:
        raise NotFound(f"team: there is no team {name[:64]!r}", field="team")
    return found


@endpoint(
    blueprint,
    "/team/create/",
    "POST",
    answers=TeamAnswer,
    body=NewTeamBody,
    example={"name": "web", "max_devices": 4, "max_duration": 7200, "environments": ["staging"]},
    errors=[400, 409],
)
def team_create() -> Response:
    """Add a team."""
    body = apikit.parse(NewTeamBody, apikit.json_body())

    def work(conn: Connection) -> Team:
        team_id = teams.add(conn, teams.values(**body.model_dump()))
        found = teams.get(conn, team_id)
        assert found is not None
        return found

    return answer({"team": _team_info(_unless_there(body.name, work), 0)})


def _unless_there(name: str, work: Callable[[Connection], T]) -> T:
    """Do ``work`` in a transaction. Raises Conflict when there is a team of this name already."""
    try:
        return site().database.run(work)
    except IntegrityError as error:
        raise Conflict(f"name: there is a team {name!r} already", field="name") from error


@endpoint(
    blueprint,
    "/team/<name>/change/",
    "POST",
    answers=TeamAnswer,
    body=TeamChangeBody,
    example={"max_devices": 6, "without": ["environments"]},
    errors=[400, 404],
)
def team_change(name: str) -> Response:
    """Change what a team may have; it holds for requests that wait, too, and takes no device away."""
    raw = apikit.json_body()
    body = apikit.parse(TeamChangeBody, raw)
    for key in body.without:
        if key in raw:
            raise BadInput(f"without: {key} can't be both set and taken away", field="without")
    new: dict[str, Any] = {key: getattr(body, key) for key in TeamBody.model_fields if key in raw}
    new |= dict.fromkeys(body.without)

    def work(conn: Connection) -> tuple[Team, int]:
        team = _team(conn, name)
        environments = new.get("environments", team.environments)
        now = replace(team, environments=None if environments is None else tuple(environments))
        if now.environments != team.environments:
            _sort_anew(conn, now)
        if new:
            teams.change(conn, team.id, teams.values(**new))
        return teams.get(conn, team.id) or now, teams.held(conn, team.id)

    changed = site().database.run(work)
    site().device_changed()
    return answer({"team": _team_info(*changed)})


def _sort_anew(conn: Connection, team: Team) -> None:
    """Requests wait among those that the same devices can serve: those of a team that may use others now, elsewhere."""
    for row in requests.open_of_team(conn, team.id):
        requests.set_criteria(conn, row.id, Criteria.of(row, team.environments).key)


@endpoint(blueprint, "/team/<name>/delete/", "POST", answers=None, body=Input, errors=[400, 404, 409])
def team_delete(name: str) -> Response:
    """Delete a team; 409 while it has tokens that are good, people who are signed on, or open requests."""
    apikit.json_body()
    now = site().clock.now()

    def work(conn: Connection) -> None:
        team = _team(conn, name)
        uses = {
            "good tokens": token_rows.number_in_team(conn, team.id, now),
            "people signed on": teams.signed_on(conn, team.id, now),
            "open requests": len(requests.open_of_team(conn, team.id)),
        }
        used = ", ".join(f"{what}: {number}" for what, number in uses.items() if number)
        if used:
            raise Conflict(f"team {team.name} is in use ({used})", field="team")
        teams.remove(conn, team.id)

    site().database.run(work)
    return done()
