# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What clients and people are told of requests."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection

from mozpool.clock import Clock
from mozpool.db import requests
from mozpool.db.engine import Database
from mozpool.db.requests import END_STATES, FAILED_STATES, Request
from mozpool.errors import DatabaseAway
from mozpool.notify.events import REASON, Event, moment, page_of
from mozpool.notify.outbox import Outbox
from mozpool.pool.criteria import Criteria
from mozpool.statedriver import Change

log = logging.getLogger("mozpool.pool")

READY = "ready"

TOLD = (READY, *END_STATES)
"""States that clients are told of."""


def is_told(row: Request, change: Change) -> bool:
    """Whether a change is one that its client is told of: it is ready, or has come to its end."""
    return change.target in TOLD and change.target != row.state


def key_of(row: Request, change: Change) -> str:
    """The name of the event that a change is."""
    return f"request:{row.id}:{row.version + 1}"


def callback_body(row: Request, change: Change) -> dict[str, Any]:
    """What is sent to a request's callback URL."""
    device = row.device if change.target == READY else None
    return {"request": {"id": row.id, "state": change.target, "assigned_device": device or ""}}


def event_of(row: Request, change: Change) -> Event | None:
    """What people are told of a change, if it is one that they are told of."""
    if change.target == READY:
        text = f"Request {row.id} of {row.assignee} has got device {row.device}, which is ready. {_until(row.expires)}"
        return _event("request_ready", key_of(row, change), row, change.now, f"{row.device} is ready", text)
    if change.target in FAILED_STATES:
        why = str(change.columns.get("reason") or change.detail or change.event)[:REASON]
        text = (
            f"Request {row.id} of {row.assignee} for {_wanted(row)} has failed at {moment(change.now)} "
            f"({change.target}): {why}."
        )
        return _event(
            "request_failed",
            key_of(row, change),
            row,
            change.now,
            f"failed: {why}",
            text,
            state=change.target,
            reason=why,
        )
    return None


def expiring(row: Request, now: datetime) -> Event:
    """A request ends soon unless it is renewed."""
    text = (
        f"Request {row.id} of {row.assignee} ends at {moment(row.expires)}: then device {row.device} is taken back and "
        "may be given to somebody else. Whoever needs it for longer renews the request before."
    )
    left = max(0, round((row.expires - now).total_seconds() / 60))
    summary = f"{row.device} is taken back in {left} minute{'s' if left != 1 else ''}"
    key = f"request:{row.id}:expires:{int(row.expires.timestamp() * 1000)}"
    return _event("request_expiring", key, row, now, summary, text, valid_until=row.expires)


def _until(expires: datetime) -> str:
    return f"It may be used until {moment(expires)}, or longer where the request is renewed before."


def _wanted(row: Request) -> str:
    return Criteria.of(row).describe()


def _event(
    kind: str,
    key: str,
    row: Request,
    now: datetime,
    summary: str,
    text: str,
    *,
    state: str | None = None,
    reason: str | None = None,
    valid_until: datetime | None = None,
) -> Event:
    device = row.device or row.requested_device
    return Event(
        kind=kind,
        key=key,
        time=now,
        subject=row.name,
        summary=f"{row.name}: {summary}",
        text=text,
        page=page_of("requests", row.id),
        details={
            "request": row.id,
            "state": state or READY,
            "reason": reason,
            "assignee": row.assignee,
            "device": row.device,
            "requested_device": row.requested_device,
            "image": row.image,
            "environment": row.environment,
            "hardware_type": row.hardware_type,
            "expires": row.expires.strftime("%Y-%m-%dT%H:%M:%S"),
            "imaging_server": row.owner,
        },
        valid_until=valid_until,
        environment=row.environment,
        device=device,
        hardware_type=row.hardware_type or "any",
        server=row.owner,
        assignee=row.assignee,
    )


class ExpiryWarnings:
    """Tells of requests that end soon. Deadlines are in the database, and so is what was told: a restart loses none."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        outbox: Outbox,
        server_id: int,
        warning: float,
        away: Callable[[], frozenset[int]],
    ) -> None:
        """It is told ``warning`` seconds before the end; also for the servers that are ``away``."""
        self._database = database
        self._clock = clock
        self._outbox = outbox
        self._server_id = server_id
        self._warning = timedelta(seconds=warning)
        self._away = away

    @property
    def is_wanted(self) -> bool:
        """Whether anybody is told."""
        return bool(self._warning) and self._outbox.listens("request_expiring")

    def look(self) -> None:
        """Note what ends soon and was not told yet."""
        now = self._clock.now()
        try:
            with self._database.read() as conn:
                found = requests.expiring(conn, {self._server_id, *self._away()}, READY, now, now + self._warning)
            # What was meant to be so short needs no warning.
            due = {
                event.key: (row, event)
                for row, event in ((row, expiring(row, now)) for row in found)
                if row.state_since is None or row.expires - row.state_since > self._warning
            }
            for key in due.keys() - self._outbox.noted(due):
                row, event = due[key]
                self._outbox.note_once(event, lambda conn, row=row: self._still(conn, row))  # type: ignore[misc]
        except DatabaseAway as error:
            log.info("nobody is told what ends soon: %s", error)

    @staticmethod
    def _still(conn: Connection, row: Request) -> bool:
        """Whether a request has still the same end."""
        now = requests.get(conn, row.id)
        return now is not None and now.state == READY and now.expires == row.expires
