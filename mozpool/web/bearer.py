# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Who calls, by the token in the header ``Authorization: Bearer mozpool_ID_SECRET`` (RFC 6750, 2.1)."""

from __future__ import annotations

import logging
from datetime import datetime

from flask import request
from sqlalchemy.exc import DBAPIError

from mozpool.access import tokens
from mozpool.access.principal import Principal
from mozpool.apikit import site
from mozpool.db import tokens as token_rows
from mozpool.db.tokens import Token
from mozpool.errors import DatabaseAway, Unauthorized

log = logging.getLogger("mozpool.web")

LONGEST = 64
"""Characters of an address that are kept."""


def find() -> Principal | None:
    """Who the current call's token stands for; None when it has none. Raises Unauthorized."""
    header = request.headers.get("Authorization")
    if header is None:
        return None
    scheme, _, text = header.partition(" ")
    if scheme.lower() != "bearer":
        raise Unauthorized(f"Authorization: {scheme[:20]!r} is not Bearer, behind which a token stands")
    here = site()
    now = here.clock.now()
    with here.database.read() as conn:
        token = tokens.check(conn, text.strip(), now)
    note_use(token, now)
    return tokens.principal_of(token)


def note_use(token: Token, now: datetime) -> None:
    """Note that a token was used, and from where, unless that was noted a moment ago."""
    here = site()
    before = now - tokens.NOTED_EVERY
    if token.last_used is None or token.last_used <= before:
        address = (request.remote_addr or "")[:LONGEST] or None
        try:
            here.database.run(
                lambda conn: token_rows.note_use(conn, token.id, now, address, before), repeatable=True, patience=0.0
            )
        except (DatabaseAway, DBAPIError) as error:
            log.warning("the use of token %d is not noted: %s", token.id, error)
