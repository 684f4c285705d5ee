# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Sessions of people in browsers: what the cookie holds, and what shows that a call comes from one of our pages.

The cookie holds a secret of 256 random bits, of which the database has the SHA-256. A session is looked up by that
hash, so how long it takes tells nothing of the secret.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection

from mozpool.access.principal import Role
from mozpool.db import sessions, tokens
from mozpool.db.sessions import NewSession

LONGEST = 128
"""Characters of a secret that are looked at at all."""


@dataclass(frozen=True)
class Person:
    """Somebody who signs on."""

    name: str
    role: Role
    team_id: int | None
    token_id: int | None = None
    """The token that they showed; None: the OpenID provider knows them."""


def hash_of(secret: str) -> str:
    """What the database knows of a secret: its SHA-256 in hex."""
    return hashlib.sha256(secret.encode(errors="replace")).hexdigest()


def csrf(secret: str) -> str:
    """What a page sends back with everything that changes something: derived from the session, and telling nothing of
    its secret."""
    return hmac.new(secret.encode(errors="replace"), b"mozpool csrf", hashlib.sha256).hexdigest()


def is_csrf(secret: str, said: str) -> bool:
    """Whether this is :func:`csrf` of the secret, found out in constant time."""
    return hmac.compare_digest(csrf(secret).encode(), said.encode(errors="replace"))


def judge_anew(conn: Connection, name: str, role: Role, team_id: int | None, now: datetime) -> None:
    """Let what the OpenID provider says of somebody now hold for all that they have by its word.

    Their sessions get this role, or end when it is NOBODY; of the tokens that they made for themselves, those of a
    higher role are revoked.
    """
    sessions.judge_anew(conn, name, str(role) if role else None, team_id)
    tokens.revoke_own(conn, name, [str(each) for each in Role if each <= role], now)


def begin(conn: Connection, person: Person, now: datetime, expires: datetime, address: str | None) -> str:
    """Begin a session until ``expires``; its secret. What was said of the person before now holds no more."""
    secret = secrets.token_urlsafe(32)
    if person.token_id is None:
        judge_anew(conn, person.name, person.role, person.team_id, now)
    sessions.add(
        conn,
        NewSession(
            secret_hash=hash_of(secret),
            name=person.name,
            role=str(person.role),
            team_id=person.team_id,
            token_id=person.token_id,
            created=now,
            expires=expires,
            address=address,
        ),
    )
    return secret


def find(conn: Connection, secret: str, now: datetime) -> sessions.Session | None:
    """The session with this secret, if it holds."""
    return sessions.by_hash(conn, hash_of(secret), now) if len(secret) <= LONGEST else None
