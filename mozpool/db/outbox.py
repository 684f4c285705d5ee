# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What somebody outside is to be told, until they have taken it.

A row is written in the transaction of what it tells of, once for each event and target. Whoever delivers it takes it
first: ``tries`` goes up, which nobody else can do from the same number, and it is due again when it must have been
delivered or never will be. A row that has ended stays for some days, so that the same event is not told twice.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, func, insert, or_, select, tuple_, update

from mozpool.db.tables import outbox

_EVENT_KEY = 96
_TARGET = 190
_ERROR = 255


@dataclass(frozen=True)
class Letter:
    """Something to tell to one target."""

    event: str
    """What kind of event it tells of."""
    event_key: str
    """The event's own name: equal for all who see the same event."""
    target: str
    body: str
    """JSON."""
    created: datetime
    due: datetime
    address: str | None = None
    """Where to, when the target's name does not say it."""
    valid_until: datetime | None = None
    """After that nobody wants to know any more."""
    tries: int = 0
    """How often somebody took it to deliver it."""
    last_error: str | None = None
    id: int = 0


@dataclass(frozen=True)
class Waiting:
    """What waits for one target."""

    target: str
    number: int
    since: datetime
    """When the oldest of them was written."""
    due: datetime
    """When the first of them is due."""


_COLUMNS = (
    outbox.c.event,
    outbox.c.event_key,
    outbox.c.target,
    outbox.c.body,
    outbox.c.created,
    outbox.c.due,
    outbox.c.address,
    outbox.c.valid_until,
    outbox.c.tries,
    outbox.c.last_error,
    outbox.c.id,
)
_OPEN = outbox.c.ended.is_(None)
_KEY = tuple_(outbox.c.event_key, outbox.c.target)


def target_name(text: str) -> str:
    """A target's name as its column takes it."""
    return text[:_TARGET]


def add(conn: Connection, letters: Sequence[Letter]) -> None:
    """Write new rows. Raises IntegrityError when one of the events was told to its target before."""
    if letters:
        values = [{column.name: getattr(letter, column.name) for column in _COLUMNS[:-1]} for letter in letters]
        conn.execute(insert(outbox), values)


def known(conn: Connection, event_keys: Collection[str]) -> set[tuple[str, str]]:
    """(event key, target) of the rows that there are for these events, ended ones too."""
    query = select(outbox.c.event_key, outbox.c.target).where(outbox.c.event_key.in_(event_keys))
    return {(row[0], row[1]) for row in conn.execute(query)} if event_keys else set()


_WAITING = (
    select(outbox.c.target, func.count(), func.min(outbox.c.created), func.min(outbox.c.due))
    .where(_OPEN)
    .group_by(outbox.c.target)
    .order_by(outbox.c.target)
)


def waiting(conn: Connection) -> list[Waiting]:
    """What waits, by target."""
    return [Waiting(*row) for row in conn.execute(_WAITING)]


def last_errors(conn: Connection) -> dict[str, str]:
    """Target → why the newest of what it did not take was not taken, for those of which something waits."""
    newest = select(func.max(outbox.c.id)).where(_OPEN, outbox.c.last_error.is_not(None)).group_by(outbox.c.target)
    query = select(outbox.c.target, outbox.c.last_error).where(outbox.c.id.in_(newest))
    return {row[0]: row[1] for row in conn.execute(query)}


def due(conn: Connection, target: str, now: datetime, limit: int, *, fresh: bool = False) -> list[Letter]:
    """What is due for a target, the longest due first; with ``fresh`` also what was not tried before."""
    ripe = outbox.c.due <= now
    condition = or_(ripe, outbox.c.tries == 0) if fresh else ripe
    query = select(*_COLUMNS).where(_OPEN, outbox.c.target == target, condition)
    return [Letter(*row) for row in conn.execute(query.order_by(outbox.c.due, outbox.c.id).limit(limit))]


def take(conn: Connection, letters: Sequence[Letter], until: datetime, server_id: int) -> list[Letter]:
    """A server takes these to deliver them before ``until``; answer those that nobody else has taken meanwhile."""
    taken = {"due": until, "tries": outbox.c.tries + 1, "taken_by": server_id}
    return [
        replace(letter, due=until, tries=letter.tries + 1)
        for letter in letters
        if conn.execute(update(outbox).where(_still(letter)).values(**taken)).rowcount
    ]


def let_go(conn: Connection, server_id: int, now: datetime) -> int:
    """What a server has taken is due again, since the process that took it is gone; answer how many that are."""
    query = update(outbox).where(_OPEN, outbox.c.taken_by == server_id)
    return conn.execute(query.values(due=now, taken_by=None)).rowcount


def _still(letter: Letter) -> Any:
    return (outbox.c.id == letter.id) & _OPEN & (outbox.c.tries == letter.tries)


def again(conn: Connection, letters: Sequence[Letter], due: datetime, error: str) -> None:
    """These were not taken: they are tried again when ``due``."""
    for letter in letters:
        conn.execute(update(outbox).where(_still(letter)).values(due=due, last_error=error[:_ERROR], taken_by=None))


def end(conn: Connection, letters: Sequence[Letter], now: datetime, error: str | None = None) -> None:
    """These were delivered or, with ``error``, never will be."""
    for letter in letters:
        conn.execute(
            update(outbox)
            .where(_still(letter))
            .values(ended=now, delivered=int(error is None), last_error=error and error[:_ERROR])
        )


def hurry(conn: Connection, target: str) -> int:
    """What was not taken by a target waits no longer, in its old order; answer how many that are."""
    query = update(outbox).where(_OPEN, outbox.c.target == target, outbox.c.taken_by.is_(None), outbox.c.tries > 0)
    return conn.execute(query.values(due=outbox.c.created)).rowcount


def give_up(conn: Connection, before: datetime, now: datetime) -> dict[str, int]:
    """End what was written before then and never taken; answer how many that are of each target."""
    old = _OPEN & (outbox.c.created < before)
    found = {
        row[0]: row[1]
        for row in conn.execute(select(outbox.c.target, func.count()).where(old).group_by(outbox.c.target))
    }
    if found:
        conn.execute(update(outbox).where(old).values(ended=now))
    return found


def cut(conn: Connection, target: str, most: int, now: datetime) -> int:
    """End what has waited longest for a target, so that ``most`` still wait; answer how many that are."""
    mine = _OPEN & (outbox.c.target == target)
    newest = select(outbox.c.id).where(mine).order_by(outbox.c.id.desc()).offset(most).limit(1)
    last = conn.scalar(newest)
    if last is None:
        return 0
    old = update(outbox).where(mine, outbox.c.id <= last)
    return conn.execute(old.values(ended=now, last_error=f"more than {most} waited")).rowcount
