# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Tokens, by which machines and people say who they are. What they are made of is in :mod:`mozpool.access.tokens`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, bindparam, func, insert, or_, select, update

from mozpool.db.spelling import exactly
from mozpool.db.tables import teams, tokens
from mozpool.db.teams import COLUMNS, Team, team_of


@dataclass(frozen=True)
class Token:
    """A token, without its secret."""

    id: int
    name: str
    """Whose it is."""
    secret_hash: str
    role: str
    team_id: int | None
    note: str | None
    created: datetime
    created_by: str
    expires: datetime | None
    revoked: datetime | None
    last_used: datetime | None
    last_address: str | None
    parent_id: int | None
    """The token by means of which it was made, if one was."""
    team: Team | None
    """None also when it was deleted: then the token is good for nothing."""

    def is_over(self, now: datetime) -> bool:
        """Whether it was revoked or has expired."""
        return self.revoked is not None or (self.expires is not None and self.expires <= now)


_SELECT = select(*tokens.c, *COLUMNS).select_from(tokens.outerjoin(teams, teams.c.id == tokens.c.team_id))
_WIDTH = len(tokens.c)
_BY_ID = _SELECT.where(tokens.c.id == bindparam("token"))


def _token(row: Any) -> Token:
    team = None if row[_WIDTH] is None else team_of(row[_WIDTH:])
    return Token(*(*row[:_WIDTH], team))


def get(conn: Connection, token_id: int) -> Token | None:
    """The token with this id, or None."""
    row = conn.execute(_BY_ID, {"token": token_id}).first()
    return None if row is None else _token(row)


def find(
    conn: Connection,
    *,
    name: str | None = None,
    good_at: datetime | None = None,
    after: int = 0,
    limit: int | None = None,
) -> list[Token]:
    """Tokens in the order of their ids, from behind ``after``, at most ``limit``.

    Only those of ``name``, and only those that are not over at ``good_at``, if given.
    """
    query = _SELECT.where(tokens.c.id > after).order_by(tokens.c.id)
    if name is not None:
        query = query.where(exactly(tokens.c.name, name))
    if good_at is not None:
        query = query.where(tokens.c.revoked.is_(None), or_(tokens.c.expires.is_(None), tokens.c.expires > good_at))
    if limit is not None:
        query = query.limit(limit)
    return [_token(row) for row in conn.execute(query)]


def number_in_team(conn: Connection, team_id: int, now: datetime) -> int:
    """How many tokens of a team are good."""
    good = or_(tokens.c.expires.is_(None), tokens.c.expires > now)
    query = select(func.count()).where(tokens.c.team_id == team_id, tokens.c.revoked.is_(None), good)
    return int(conn.scalar(query) or 0)


def add(conn: Connection, values: Mapping[str, Any]) -> int:
    """Store a token and answer its id."""
    key = conn.execute(insert(tokens), dict(values)).inserted_primary_key
    assert key is not None
    return int(key[0])


def revoke(conn: Connection, token_ids: Collection[int], now: datetime) -> None:
    """Make tokens good for nothing from now on, with those that were made by means of them, and so on.

    They are written before their children are read, as :func:`hold` writes them before a child is made.
    """
    found = list(token_ids)
    while found:
        conn.execute(update(tokens).where(tokens.c.id.in_(found), tokens.c.revoked.is_(None)).values(revoked=now))
        found = list(conn.scalars(select(tokens.c.id).where(tokens.c.parent_id.in_(found)).with_for_update()))


def revoke_own(conn: Connection, name: str, but: Collection[str], now: datetime) -> None:
    """Revoke the tokens that somebody made for themselves without a token, but for those of the roles ``but``."""
    query = select(tokens.c.id).where(
        exactly(tokens.c.name, name),
        exactly(tokens.c.created_by, name),
        tokens.c.parent_id.is_(None),
        tokens.c.revoked.is_(None),
        tokens.c.role.not_in(but),
    )
    revoke(conn, conn.scalars(query.with_for_update()).all(), now)


def hold(conn: Connection, token_id: int, now: datetime) -> bool:
    """Note that a token is used, so that none revokes it before the transaction ends; False when it is revoked."""
    query = update(tokens).where(tokens.c.id == token_id, tokens.c.revoked.is_(None))
    return conn.execute(query.values(last_used=now)).rowcount == 1


def note_use(conn: Connection, token_id: int, now: datetime, address: str | None, unless_since: datetime) -> None:
    """Note that a token was used, unless that was noted after ``unless_since`` already."""
    conn.execute(
        update(tokens)
        .where(tokens.c.id == token_id, or_(tokens.c.last_used.is_(None), tokens.c.last_used <= unless_since))
        .values(last_used=now, last_address=address)
    )
