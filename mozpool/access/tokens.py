# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What tokens are made of: ``mozpool_ID_SECRET``.

The id finds the row, which has the SHA-256 of the secret. That is enough: the secret has 256 random bits, so that
nobody guesses it, however fast they are.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection

from mozpool.access.principal import Kind, Principal, Role
from mozpool.db import tokens
from mozpool.db.tokens import Token
from mozpool.errors import Unauthorized

BYTES = 32
"""Random bytes of a secret."""

_TOKEN = re.compile(r"mozpool_([1-9]\d{0,17})_([A-Za-z0-9_-]{20,100})", re.ASCII)

NOTED_EVERY = timedelta(minutes=1)
"""So often it is noted when a token was used last."""


def hashed(secret: str) -> str:
    """What is stored of a secret."""
    return hashlib.sha256(secret.encode()).hexdigest()


def create(conn: Connection, values: Mapping[str, Any]) -> tuple[int, str]:
    """Store a token with these columns, but for its secret; answer its id and, once and never again, its text."""
    secret = secrets.token_urlsafe(BYTES)
    token_id = tokens.add(conn, {**values, "secret_hash": hashed(secret)})
    return token_id, f"mozpool_{token_id}_{secret}"


def check(conn: Connection, text: str, now: datetime) -> Token:
    """The token of this text. Raises Unauthorized when it is unknown, wrong, expired or revoked."""
    found = _TOKEN.fullmatch(text)
    if found is None:
        raise Unauthorized("the token is none of Mozpool's: they look like mozpool_NUMBER_SECRET")
    token = tokens.get(conn, int(found[1]))
    right = hmac.compare_digest(hashed(found[2]), hashed("") if token is None else token.secret_hash)
    if token is None or not right:
        raise Unauthorized("the token is not known")
    if token.revoked is not None:
        raise Unauthorized(f"token {token.id} was revoked")
    if token.is_over(now):
        raise Unauthorized(f"token {token.id} has expired")
    if token.team_id is not None and token.team is None:
        raise Unauthorized(f"the team of token {token.id} was deleted")
    return token


def principal_of(token: Token) -> Principal:
    """Who a token stands for."""
    return Principal(Kind.TOKEN, Role.of(token.role), token.name, token.team, token.id)
