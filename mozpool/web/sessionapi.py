# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The paths of sessions: who is signed on in a browser."""

from __future__ import annotations

import re
from typing import Any

from apiflask import APIBlueprint
from flask import Response
from pydantic import BaseModel, Field

from mozpool import apikit
from mozpool.access.principal import Role, principal
from mozpool.apikit import Empty, Flag, Input, PageQuery, answer, endpoint, site, time_text
from mozpool.db import sessions
from mozpool.errors import Forbidden, NotFound

blueprint = APIBlueprint("session", __name__, tag="Access", url_prefix="/api")


class SessionListQuery(PageQuery):
    """Which sessions are wanted."""

    all: Flag = Field(False, description="Those of all people, for admins.")


class SessionInfo(BaseModel):
    """Somebody who is signed on in a browser."""

    id: int
    name: str
    role: str
    token_id: int | None = Field(description="The token that they signed on with; null: the OpenID provider.")
    created: str | None
    expires: str | None
    last_used: str | None = Field(description="To the minute.")
    address: str | None = Field(description="From where it was used last.")
    current: bool = Field(description="Whether it is the one that asks.")


class SessionList(BaseModel):
    """List of sessions, in the order in which they began."""

    sessions: list[SessionInfo]
    next_cursor: int | None = None


def session_info(session: sessions.Session) -> dict[str, Any]:
    """A session as the API shows it."""
    return {
        "id": session.id,
        "name": session.name,
        "role": session.role,
        "token_id": session.token_id,
        "created": time_text(session.created),
        "expires": time_text(session.expires),
        "last_used": time_text(session.last_used),
        "address": session.address,
        "current": session.id == principal().session,
    }


@endpoint(blueprint, "/session/list/", answers=SessionList, query=SessionListQuery, errors=[400])
def session_list() -> Response:
    """List of the caller's own sessions that hold, or of all."""
    query, who = apikit.query(SessionListQuery), principal()
    if query.all and who.role < Role.ADMIN:
        raise Forbidden("the sessions of others are for the role admin", field="all")
    with site().database.read() as conn:
        found = sessions.find(
            conn,
            None if query.all else (who.name or ""),
            site().clock.now(),
            after=query.cursor,
            limit=None if query.limit is None else query.limit + 1,
        )
    return answer(apikit.page("sessions", found, query.limit, [session_info(session) for session in found]))


@endpoint(blueprint, "/session/<number>/end/", "POST", answers=Empty, body=Input, errors=[400, 404])
def session_end(number: str) -> Response:
    """End a session, on all servers at once: one's own, or for admins anybody's."""
    apikit.json_body()
    who = principal()
    here = site()
    with here.database.read() as conn:
        found = sessions.get(conn, int(number)) if re.fullmatch(r"\d{1,18}", number, re.ASCII) else None
    # Whether others have a session of that number is nobody's business.
    if found is None or (who.role < Role.ADMIN and (who.name is None or who.name != found.name)):
        raise NotFound(f"there is no session {number[:64]} of yours", field="session")
    here.database.run(lambda conn: sessions.end(conn, found.id), repeatable=True)
    return answer({})
