# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Who is signed on in a browser. Any imaging server of the pool may look up and end what another one began.

A session that was begun with a token is worth what the token is worth now: one that is revoked or expired ends it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Select, and_, case, delete, func, insert, or_, select, update
from sqlalchemy.sql.elements import ColumnElement

from mozpool.db.spelling import exactly
from mozpool.db.tables import sessions, tokens

USED_EVERY = timedelta(minutes=1)
"""How exactly it is known when a session was last used."""


@dataclass(frozen=True)
class Session:
    """Somebody who is signed on."""

    id: int
    name: str
    role: str
    """In lower case."""
    team_id: int | None
    token_id: int | None
    """The token that it was begun with; None: an OpenID sign-on."""
    created: datetime
    expires: datetime
    last_used: datetime | None
    address: str | None
    """From where it was used last."""


@dataclass(frozen=True)
class NewSession:
    """What a session begins with; as in :class:`Session`."""

    secret_hash: str
    """SHA-256 of what the cookie holds, in hex."""
    name: str
    role: str
    team_id: int | None
    token_id: int | None
    created: datetime
    expires: datetime
    address: str | None


def add(conn: Connection, new: NewSession) -> int:
    """Store a session; its id."""
    values = {**vars(new), "last_used": new.created}
    (number,) = conn.execute(insert(sessions).values(values)).inserted_primary_key or (0,)
    return int(number)


_BY_TOKEN = sessions.c.token_id.is_not(None)

_SELECT = select(
    sessions.c.id,
    sessions.c.name,
    case((_BY_TOKEN, tokens.c.role), else_=sessions.c.role).label("role"),
    case((_BY_TOKEN, tokens.c.team_id), else_=sessions.c.team_id).label("team_id"),
    sessions.c.token_id,
    sessions.c.created,
    sessions.c.expires,
    sessions.c.last_used,
    sessions.c.address,
).outerjoin(tokens, tokens.c.id == sessions.c.token_id)


def _holding(now: datetime) -> ColumnElement[bool]:
    """Whether a session still holds."""
    token_holds = and_(
        tokens.c.id.is_not(None), tokens.c.revoked.is_(None), or_(tokens.c.expires.is_(None), tokens.c.expires > now)
    )
    return and_(sessions.c.expires > now, or_(sessions.c.token_id.is_(None), token_holds))


def _all(conn: Connection, query: Select[Any]) -> list[Session]:
    return [Session(**row._mapping) for row in conn.execute(query)]


def by_hash(conn: Connection, secret_hash: str, now: datetime) -> Session | None:
    """The session whose secret has this SHA-256 (in hex), if it still holds."""
    return next(iter(_all(conn, _SELECT.where(sessions.c.secret_hash == secret_hash, _holding(now)))), None)


def get(conn: Connection, number: int) -> Session | None:
    """The session of this id, if it is there."""
    return next(iter(_all(conn, _SELECT.where(sessions.c.id == number))), None)


def find(
    conn: Connection, name: str | None, now: datetime, *, after: int = 0, limit: int | None = None
) -> list[Session]:
    """The sessions that hold, of one name or of all, in the order of their ids from behind ``after``."""
    query = _SELECT.where(sessions.c.id > after, _holding(now)).order_by(sessions.c.id)
    if name is not None:
        query = query.where(exactly(sessions.c.name, name))
    return _all(conn, query if limit is None else query.limit(limit))


def stamp(conn: Connection) -> tuple[Any, ...]:
    """Changes whenever a session begins or ends."""
    return tuple(conn.execute(select(func.count(), func.max(sessions.c.id))).one())


def is_due(session: Session, now: datetime, address: str | None) -> bool:
    """Whether :func:`used` has something to write."""
    return session.last_used is None or now - session.last_used >= USED_EVERY or session.address != address


def used(conn: Connection, number: int, now: datetime, address: str | None) -> None:
    """Note that a session was used, and from where."""
    conn.execute(update(sessions).where(sessions.c.id == number).values(last_used=now, address=address))


def hold(conn: Connection, number: int, role: str, now: datetime) -> bool:
    """Note that a session of the OpenID provider is used, so that nobody is judged anew before the transaction ends.

    False when it has ended or has another role by now.
    """
    query = update(sessions).where(sessions.c.id == number, sessions.c.role == role)
    return conn.execute(query.values(last_used=now)).rowcount == 1


def end(conn: Connection, number: int) -> bool:
    """End a session; whether there was one."""
    return conn.execute(delete(sessions).where(sessions.c.id == number)).rowcount > 0


def end_by_hash(conn: Connection, secret_hash: str) -> bool:
    """End the session whose secret has this SHA-256 (in hex); whether there was one."""
    return conn.execute(delete(sessions).where(sessions.c.secret_hash == secret_hash)).rowcount > 0


def judge_anew(conn: Connection, name: str, role: str | None, team_id: int | None) -> None:
    """Let what the OpenID provider says of somebody now hold for all sessions that they began through it.

    Without a ``role`` they end.
    """
    theirs = exactly(sessions.c.name, name), sessions.c.token_id.is_(None)
    if role is None:
        conn.execute(delete(sessions).where(*theirs))
    else:
        conn.execute(update(sessions).where(*theirs).values(role=role, team_id=team_id))
