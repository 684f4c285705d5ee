# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The paths of who is told what has happened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from apiflask import APIBlueprint
from flask import Response
from pydantic import BaseModel, Field
from sqlalchemy import Connection

from mozpool.apikit import answer, endpoint, site, time_text
from mozpool.config import NotifyTarget
from mozpool.db import outbox
from mozpool.db.outbox import Waiting

blueprint = APIBlueprint("notify", __name__, tag="Notifications", url_prefix="/api")


@dataclass(frozen=True)
class TargetRow:
    """Who is told, and what waits for them."""

    name: str
    way: str
    """webhook, e-mail or callback; ``not configured`` for what this server knows nothing of."""
    events: tuple[str, ...]
    waiting: Waiting | None
    last_error: str | None


def look(conn: Connection, targets: Mapping[str, NotifyTarget]) -> list[TargetRow]:
    """All targets that are configured, and others that did not take what waits for them; sorted by name."""
    waiting = {found.target: found for found in outbox.waiting(conn)}
    errors = outbox.last_errors(conn)
    return [
        TargetRow(
            name,
            _way(name, targets.get(name)),
            targets[name].events if name in targets else (),
            waiting.get(name),
            errors.get(name),
        )
        for name in sorted({*targets, *errors})
    ]


def _way(name: str, target: NotifyTarget | None) -> str:
    if target is None:
        return "callback" if "://" in name else "not configured"
    return "webhook" if target.webhook else "e-mail"


class TargetItem(BaseModel):
    """Somebody who is told what has happened."""

    name: str = Field(description="A `[notify NAME]`, or scheme and host of callback URLs.")
    way: str = Field(description="webhook, e-mail, callback, or not configured (on this server).")
    events: list[str] = Field(description="What it is told.")
    waiting: int = Field(description="How much it was not told yet.")
    since: str | None = Field(description="When the oldest of that happened.")
    last_error: str | None = Field(description="Why it was not told.")


class TargetList(BaseModel):
    """All who are told what has happened."""

    targets: list[TargetItem]


@endpoint(blueprint, "/notifications/", answers=TargetList)
def notifications() -> Response:
    """Who is told what has happened, by webhook, e-mail or callback URL, and what waits for them."""
    here = site()
    with here.database.read() as conn:
        found = look(conn, here.settings.targets)
    return answer(
        {
            "targets": [
                {
                    "name": row.name,
                    "way": row.way,
                    "events": list(row.events),
                    "waiting": 0 if row.waiting is None else row.waiting.number,
                    "since": None if row.waiting is None else time_text(row.waiting.since),
                    "last_error": row.last_error,
                }
                for row in found
            ]
        }
    )
