# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Jobs that one server of the pool does at a time: who does one now, and how it ended the last time.

Taking a job is a conditional update by the token that was there before. A holder that dies lets go of it when its time
is over. Who writes something for a job confirms in the same transaction that it still has it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, delete, insert, select, update

from mozpool.db.tables import jobs

OK, FAILED = "ok", "failed"


@dataclass(frozen=True)
class Job:
    """What is known of a job."""

    name: str
    version: int
    """Goes up whenever it was carried out."""
    holder: str | None
    """Who does it now."""
    token: str | None
    since: datetime | None
    until: datetime | None
    ended: datetime | None
    """When it was done last; None: never."""
    ended_by: str | None
    outcome: str | None
    """``ok`` or ``failed``."""
    message: str | None

    def is_held(self, now: datetime) -> bool:
        """Whether somebody does it, as far as clocks agree."""
        return self.token is not None and self.until is not None and self.until > now

    def was_of(self, holder: str | None) -> bool:
        """Whether the holder's name begins so; nobody's does with None."""
        return holder is not None and self.holder is not None and self.holder.startswith(holder)


def get(conn: Connection, name: str) -> Job | None:
    """The job of this name, or None when nobody has ever begun it."""
    row = conn.execute(select(jobs).where(jobs.c.name == name)).first()
    return None if row is None else Job(**row._mapping)


def take(
    conn: Connection,
    name: str,
    *,
    holder: str,
    token: str,
    now: datetime,
    seconds: float,
    heir_of: str | None = None,
) -> Job | None:
    """Begin a job; None when somebody else does it.

    A holder whose name begins with ``heir_of`` is known to have ended, without having let go of it.

    Raises IntegrityError when another server has begun it for the first time just now.
    """
    found = get(conn, name)
    if found is not None and found.token != token and found.is_held(now) and not found.was_of(heir_of):
        return None
    mine = {"holder": holder[:255], "token": token, "since": now, "until": now + timedelta(seconds=seconds)}
    if found is None:
        conn.execute(insert(jobs).values(name=name, **mine))
    else:
        before = jobs.c.token.is_(None) if found.token is None else jobs.c.token == found.token
        if conn.execute(update(jobs).where(jobs.c.name == name, before).values(**mine)).rowcount != 1:
            return None
    return get(conn, name)


_FREE = {"holder": None, "token": None, "since": None, "until": None}  # nobody's  # nosec B105


def done(conn: Connection, name: str, token: str, *, now: datetime, message: str) -> bool:
    """End a job that was carried out; False when it is somebody else's by now (roll back!)."""
    return _end(conn, name, token, version=jobs.c.version + 1, ended=now, outcome=OK, message=message)


def let_go(conn: Connection, name: str, token: str) -> None:
    """End a job: where it has never been done, nothing is left of it."""
    mine = (jobs.c.name == name) & (jobs.c.token == token)
    conn.execute(delete(jobs).where(mine, jobs.c.ended.is_(None)))
    conn.execute(update(jobs).where(mine).values(**_FREE))


def failed(conn: Connection, name: str, token: str, *, now: datetime, message: str) -> None:
    """End a job that failed, and note why."""
    _end(conn, name, token, ended=now, outcome=FAILED, message=message)


def _end(conn: Connection, name: str, token: str, **values: Any) -> bool:
    """Write how it ended, and by whom, before that is no more known; answer whether it was this holder's."""
    mine = update(jobs).where(jobs.c.name == name, jobs.c.token == token)
    ended = conn.execute(mine.values(ended_by=jobs.c.holder, **values)).rowcount == 1
    conn.execute(mine.values(**_FREE))
    return ended
