# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Who calls a server in tests of access."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection

from mozpool.access import tokens
from mozpool.db import teams
from mozpool.db.engine import Database


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
