# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Requests: the rows that MozPool's state machine drives, and the queue they form."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, Select, Update, and_, bindparam, func, insert, not_, or_, select, update
from sqlalchemy.sql.elements import ColumnElement

from mozpool.db import hosted_jobs
from mozpool.db.devices import owner_column as device_owner
from mozpool.db.packing import Pack, loads_counters, loads_strings
from mozpool.db.spelling import exactly
from mozpool.db.tables import claim_history, device_requests, devices, images, imaging_servers, requests
from mozpool.db.tables import hosted_jobs as hosted_jobs_table

QUEUED = "finding_device"
FAILED_STATES = ("failed_device_not_found", "failed_bad_image", "failed_bad_device", "failed_device_busy")
END_STATES = ("closed", *FAILED_STATES)
READY = "ready"

RETURNED = "returned"
"""The reason of a request that its client gave back."""
EXPIRED = "expired"
"""The reason of one whose time was over."""
REVOKED = "revoked"
"""How the reason of one begins that an operator took from its holder."""

_device_server = imaging_servers.alias("device_server")
_owner = imaging_servers.alias("owner")
_past_device = devices.alias("past_device")

owner_column: ColumnElement[int] = func.coalesce(requests.c.owner_id, requests.c.imaging_server_id)
"""The id of the server that acts for a request."""


@dataclass(frozen=True)
class Request:
    """A request with the device that it has claimed, if any."""

    id: int
    imaging_server_id: int
    imaging_server: str
    """The server that it was made on."""
    requested_device: str
    assignee: str
    created: datetime | None
    expires: datetime
    image_id: int | None
    image: str | None
    image_can_reuse: bool
    boot_config: str | None
    state: str
    state_counters: Mapping[str, int]
    state_timeout: datetime | None
    state_since: datetime | None
    version: int
    attempt: int
    token: str | None
    environment: str
    hardware_type: str | None
    hardware_model: str | None
    labels: Mapping[str, str]
    priority: int
    wait: int
    """Seconds that it may stay in the queue."""
    queue_key: int
    criteria: str | None
    callback_url: str | None
    idempotency_key: str | None
    body_hash: str | None
    reason: str | None
    made_by: str | None = None
    """Whose it is; None: made in mode open, or by the pool itself."""
    team_id: int | None = None
    """The team whose quota it counts for."""
    claim_id: int | None = None
    imaging_result: str | None = None
    device_id: int | None = None
    device: str | None = None
    device_state: str | None = None
    device_address: str | None = None
    device_server_id: int | None = None
    device_server: str | None = None
    """The server that acts on the device."""
    device_image_id: int | None = None
    device_boot_config_hash: str | None = None
    device_operation_claim_id: int | None = None
    owner_id: int = 0
    owner: str = ""
    """The server that acts for it now: the one it was made on, or one that has taken over from that."""
    epoch: int = 0
    """Goes up with every change of owner."""
    came_from_id: int | None = None
    """The owner before, until the new one has begun to act."""

    @property
    def name(self) -> str:
        """What the logs call it."""
        return f"request {self.id}"

    @property
    def is_open(self) -> bool:
        """Whether it may still hold or get a device."""
        return self.state not in END_STATES

    @property
    def ready_at(self) -> datetime | None:
        """When it got its device ready, if it has."""
        return self.state_since if self.state == READY else None

    @property
    def wants_named_device(self) -> bool:
        """Whether it asks for one device and no other."""
        return self.requested_device != "any"


_PACK = Pack(
    Request,
    {
        "imaging_server": imaging_servers.c.fqdn,
        "image": images.c.name,
        "image_can_reuse": images.c.can_reuse,
        "claim_id": device_requests.c.id,
        "imaging_result": device_requests.c.imaging_result,
        "device_id": devices.c.id,
        "device": devices.c.name,
        "device_state": devices.c.state,
        "device_address": func.coalesce(devices.c.address, devices.c.fqdn),
        "device_server_id": device_owner,
        "device_server": _device_server.c.fqdn,
        "device_image_id": devices.c.image_id,
        "device_boot_config_hash": devices.c.boot_config_hash,
        "device_operation_claim_id": devices.c.operation_claim_id,
        "owner_id": owner_column,
        "owner": _owner.c.fqdn,
    },
    requests,
    convert={"state_counters": loads_counters, "labels": loads_strings},
)

_FROM = (
    requests.join(imaging_servers, imaging_servers.c.id == requests.c.imaging_server_id)
    .join(_owner, _owner.c.id == owner_column)
    .outerjoin(images, images.c.id == requests.c.image_id)
    .outerjoin(device_requests, device_requests.c.request_id == requests.c.id)
    .outerjoin(devices, devices.c.id == device_requests.c.device_id)
    .outerjoin(_device_server, _device_server.c.id == device_owner)
)
_SELECT: Select[Any] = select(_PACK.column).select_from(_FROM)
_BY_ID = _SELECT.where(requests.c.id == bindparam("request_id"))


def _request(text: str) -> Request:
    return Request(*_PACK.values(text))


def get(conn: Connection, request_id: int) -> Request | None:
    """The request with this id, or None."""
    text = conn.scalar(_BY_ID, {"request_id": request_id})
    return None if text is None else _request(text)


_OWNER = (
    select(imaging_servers.c.id, imaging_servers.c.fqdn)
    .join(requests, imaging_servers.c.id == owner_column)
    .where(requests.c.id == bindparam("request_id"))
)


def owner(conn: Connection, request_id: int) -> tuple[int, str] | None:
    """(id, name) of the imaging server that acts for a request, or None when there is no such request."""
    row = conn.execute(_OWNER, {"request_id": request_id}).first()
    return None if row is None else (row[0], row[1])


_MAKER = select(requests.c.made_by).where(requests.c.id == bindparam("request_id"))


def maker(conn: Connection, request_id: int) -> str | None:
    """Whose a request is; None: nobody's, or there is no such request."""
    found = conn.scalar(_MAKER, {"request_id": request_id})
    return None if found is None else str(found)


@dataclass(frozen=True)
class Filter:
    """Which requests a list is to have; None asks for nothing."""

    include_closed: bool = False
    assignee: str | None = None
    whose: str | None = None
    """Those that somebody of this name has made, or that are for them."""
    state: str | None = None
    requested_device: str | None = None
    device: str | None = None
    environment: str | None = None
    search: str | None = None
    """The id, or part of the assignee or of a device's or the image's name; among closed ones also of a device had.

    Or a job, as in ``job``.
    """
    job: str | None = None
    """Those whose job this names, closed ones too: its number, id or URL, or the id or URL of its task."""
    made_by: str | None = None


def _conditions(wanted: Filter, now: datetime) -> list[ColumnElement[bool]]:
    found: list[ColumnElement[bool]] = []
    if not wanted.include_closed and not wanted.job:
        found.append(requests.c.state != "closed")
        found.append(not_(and_(requests.c.state.in_(FAILED_STATES), requests.c.expires <= now)))
    pairs = (
        (requests.c.assignee, wanted.assignee),
        (requests.c.state, wanted.state),
        (requests.c.requested_device, wanted.requested_device),
        (devices.c.name, wanted.device),
        (requests.c.environment, wanted.environment),
        (requests.c.made_by, wanted.made_by),
    )
    found += [exactly(column, value) for column, value in pairs if value is not None]
    if wanted.whose is not None:
        found.append(or_(exactly(requests.c.made_by, wanted.whose), exactly(requests.c.assignee, wanted.whose)))
    if wanted.job:
        found.append(_has_job(wanted.job))
    if wanted.search:
        columns = (requests.c.assignee, requests.c.requested_device, devices.c.name, images.c.name)
        alike = [column.contains(wanted.search, autoescape=True) for column in columns]
        if wanted.include_closed:  # they have no device any more, but had one
            had = select(claim_history.c.request_id).join(_past_device, _past_device.c.id == claim_history.c.device_id)
            found_there = had.where(_past_device.c.name.contains(wanted.search, autoescape=True))
            alike.append(requests.c.id.in_(found_there))
        if wanted.search.isdecimal() and len(wanted.search) < 18:
            alike.append(requests.c.id == int(wanted.search))
        alike.append(_has_job(wanted.search))
        found.append(or_(*alike))
    return found


def _has_job(named: str) -> ColumnElement[bool]:
    return requests.c.id.in_(select(hosted_jobs_table.c.request_id).where(hosted_jobs.mentions(named)))


def find(conn: Connection, wanted: Filter, now: datetime, *, after: int = 0, limit: int | None = None) -> list[Request]:
    """Requests in the order of their ids, from behind ``after``, at most ``limit``.

    Failed ones count as open until they are returned or expire.
    """
    query = _SELECT.where(requests.c.id > after, *_conditions(wanted, now)).order_by(requests.c.id)
    if limit is not None:
        query = query.limit(limit)
    return [_request(text) for text in conn.scalars(query)]


def newest(conn: Connection, wanted: Filter, now: datetime, *, offset: int, limit: int) -> tuple[list[Request], int]:
    """Some of the requests that are wanted, the newest first, from the one at ``offset`` on; and how many there are."""
    conditions = _conditions(wanted, now)
    total = conn.scalar(select(func.count()).select_from(_FROM).where(*conditions)) or 0
    query = _SELECT.where(*conditions).order_by(requests.c.id.desc()).offset(offset).limit(limit)
    return [_request(text) for text in conn.scalars(query)], int(total)


_BY_TOKEN = select(requests.c.id).where(requests.c.token == bindparam("token")).order_by(requests.c.id.desc()).limit(1)


def by_token(conn: Connection, token: str) -> int | None:
    """The request that was stored a moment ago with this token, or None."""
    found = conn.scalar(_BY_TOKEN, {"token": token})
    return None if found is None else int(found)


def by_idempotency_key(conn: Connection, key: str) -> Request | None:
    """The request that was made with this key, or None."""
    text = conn.scalar(_SELECT.where(requests.c.idempotency_key == key).order_by(requests.c.id).limit(1))
    return None if text is None else _request(text)


def of_device(conn: Connection, device_id: int) -> Request | None:
    """The request that has a device now, or None."""
    text = conn.scalar(_SELECT.where(device_requests.c.device_id == device_id))
    return None if text is None else _request(text)


def add(conn: Connection, values: Mapping[str, Any]) -> int:
    """Store a new request and answer its id."""
    key = conn.execute(insert(requests), dict(values)).inserted_primary_key
    assert key is not None
    return int(key[0])


def write(conn: Connection, request_id: int, version: int, values: Mapping[str, Any]) -> bool:
    """Write columns if the row still has this version; answer whether it had."""
    parameters = {f"v_{name}": value for name, value in values.items()}
    result = conn.execute(_update(frozenset(values)), {"row_id": request_id, "row_version": version, **parameters})
    return result.rowcount == 1


@lru_cache(maxsize=256)
def _update(columns: frozenset[str]) -> Update:
    """The statement for a set of columns; building it takes longer than running it."""
    return (
        update(requests)
        .where(requests.c.id == bindparam("row_id"), requests.c.version == bindparam("row_version"))
        .values(version=requests.c.version + 1, **{name: bindparam(f"v_{name}") for name in sorted(columns)})
    )


_POSTPONE = (
    update(requests)
    .where(requests.c.id == bindparam("row_id"), requests.c.attempt == bindparam("row_attempt"))
    .values(version=requests.c.version + 1, state_timeout=bindparam("deadline"))
)


def postpone(conn: Connection, request_id: int, attempt: int, deadline: datetime | None) -> bool:
    """Move the deadline of an attempt (None: take it away); False when it is over."""
    return conn.execute(_POSTPONE, {"row_id": request_id, "row_attempt": attempt, "deadline": deadline}).rowcount == 1


def set_expires(conn: Connection, request_id: int, expires: datetime, unless_before: datetime | None = None) -> bool:
    """Move the end of an open request; False when it has ended, or was to end before ``unless_before``."""
    query = update(requests).where(requests.c.id == request_id, requests.c.state.not_in(END_STATES))
    if unless_before is not None:
        query = query.where(requests.c.expires >= unless_before)
    return conn.execute(query.values(expires=expires, version=requests.c.version + 1)).rowcount == 1


def set_criteria(conn: Connection, request_id: int, criteria: str) -> None:
    """Let a request wait among those with these criteria."""
    conn.execute(
        update(requests).where(requests.c.id == request_id).values(criteria=criteria, version=requests.c.version + 1)
    )


def open_of_team(conn: Connection, team_id: int) -> list[Request]:
    """The requests of a team that have not ended."""
    query = _SELECT.where(requests.c.team_id == team_id, requests.c.state.not_in(END_STATES)).order_by(requests.c.id)
    return [_request(text) for text in conn.scalars(query)]


def acknowledge(conn: Connection, request_id: int, now: datetime) -> None:
    """A failed request was returned: it need not be listed any longer."""
    conn.execute(
        update(requests)
        .where(requests.c.id == request_id, requests.c.state.in_(FAILED_STATES), requests.c.expires > now)
        .values(expires=now, version=requests.c.version + 1)
    )


_VERSION = select(requests.c.version, requests.c.token).where(requests.c.id == bindparam("row_id"))


def version_and_token(conn: Connection, request_id: int) -> tuple[int, str | None] | None:
    """The row's version and the token of its last transition; None when the row is gone."""
    row = conn.execute(_VERSION, {"row_id": request_id}).first()
    return None if row is None else (row[0], row[1])


_DUE = (
    select(requests.c.id, requests.c.attempt, requests.c.state_timeout, requests.c.expires)
    .where(
        owner_column == bindparam("server"),
        requests.c.state.not_in(END_STATES),
        or_(requests.c.state_timeout < bindparam("moment"), requests.c.expires < bindparam("moment")),
    )
    .limit(bindparam("most"))
)


def due(conn: Connection, owner_id: int, before: datetime, limit: int) -> list[tuple[int, int, datetime]]:
    """(id, attempt, deadline) of a server's open requests that time out or expire before ``before``."""
    rows = conn.execute(_DUE, {"server": owner_id, "moment": before, "most": limit})
    found = [(row[0], row[1], row[3] if row[2] is None else min(row[2], row[3])) for row in rows]
    return sorted(found, key=lambda item: item[2])


# The queue


@dataclass(frozen=True)
class QueueHead:
    """The first of all waiting requests that the same devices can serve."""

    criteria: str
    queue_key: int
    waiting: int
    """How many there are."""


_HEADS = (
    select(requests.c.criteria, func.min(requests.c.queue_key), func.count())
    .where(requests.c.state == QUEUED)
    .group_by(requests.c.criteria)
)
_QUEUE = (
    _SELECT.where(requests.c.state == QUEUED, requests.c.criteria.is_not(None))
    .order_by(requests.c.queue_key, requests.c.id)
    .limit(bindparam("most"))
)
_QUEUE_OF = _QUEUE.where(
    requests.c.criteria == bindparam("wanted"),
    or_(
        requests.c.queue_key > bindparam("last_key"),
        and_(requests.c.queue_key == bindparam("last_key"), requests.c.id > bindparam("last_id")),
    ),
)


def queue_heads(conn: Connection) -> list[QueueHead]:
    """One entry for every kind of waiting request, in the order of the queue."""
    found = [QueueHead(row[0], row[1], row[2]) for row in conn.execute(_HEADS) if row[0] is not None]
    return sorted(found, key=lambda head: (head.queue_key, head.criteria))


@dataclass(frozen=True)
class Alike:
    """Waiting requests that the same devices can serve: the oldest of them, and how many there are."""

    oldest: Request
    number: int


def waiting(conn: Connection, limit: int, *, each: bool) -> list[Alike]:
    """Waiting requests, the oldest first: each by itself, or by kind."""
    kind = requests.c.id if each else requests.c.criteria
    first = func.min(requests.c.id)
    kinds = select(first, func.count()).where(requests.c.state == QUEUED).group_by(kind).order_by(first).limit(limit)
    numbers = {row[0]: row[1] for row in conn.execute(kinds)}
    rows = _SELECT.where(requests.c.id.in_(numbers)).order_by(requests.c.id)
    found = [_request(text) for text in conn.scalars(rows)]
    return [Alike(row, numbers[row.id]) for row in found]


def tally(conn: Connection) -> dict[str, int]:
    """State → how many requests that have not ended are in it."""
    query = select(requests.c.state, func.count()).where(requests.c.state.not_in(END_STATES))
    return {row[0]: row[1] for row in conn.execute(query.group_by(requests.c.state))}


@dataclass(frozen=True)
class Group:
    """Requests that are alike, as far as counting them goes."""

    owner_id: int
    state: str
    number: int
    first_made: datetime | None
    """When the oldest of them was made."""


_GROUPED = (owner_column.label("owner"), requests.c.state)
_GROUPS = (
    select(*_GROUPED, func.count(), func.min(requests.c.created))
    # The first is for the index: with the second alone, each request that there ever was would be looked at.
    .where(or_(requests.c.state < "closed", requests.c.state > "closed"), requests.c.state.not_in(END_STATES))
    .group_by(*_GROUPED)
)


def groups(conn: Connection) -> list[Group]:
    """How many requests that have not ended each server acts for, by state; none of them is loaded."""
    return [Group(*row) for row in conn.execute(_GROUPS)]


def first_in_queue(
    conn: Connection,
    *,
    limit: int,
    criteria: str | None = None,
    behind: Request | None = None,
    without_teams: Collection[int] = (),
) -> list[Request]:
    """The first ``limit`` waiting requests, in the order of the queue.

    With ``criteria`` only those of one kind, and then only those behind a certain one and without those of some teams.
    """
    if criteria is None:
        return [_request(text) for text in conn.scalars(_QUEUE, {"most": limit})]
    key, number = (behind.queue_key, behind.id) if behind is not None else (-(2**62), 0)
    values = {"most": limit, "wanted": criteria, "last_key": key, "last_id": number}
    query = _QUEUE_OF
    if without_teams:
        query = query.where(or_(requests.c.team_id.is_(None), requests.c.team_id.not_in(sorted(without_teams))))
    return [_request(text) for text in conn.scalars(query, values)]


def place_in_queue(conn: Connection, request: Request) -> int:
    """How many waiting requests of the same kind are before this one, plus one."""
    before = conn.scalar(
        select(func.count())
        .select_from(requests)
        .where(
            requests.c.state == QUEUED,
            requests.c.criteria == request.criteria,
            or_(
                requests.c.queue_key < request.queue_key,
                and_(requests.c.queue_key == request.queue_key, requests.c.id < request.id),
            ),
        )
    )
    return int(before or 0) + 1


def first_holders(
    conn: Connection, conditions: Iterable[ColumnElement[bool]], limit: int
) -> list[tuple[str, str, datetime]]:
    """(device, assignee, expires) of those who have devices that meet ``conditions``, who end first coming first."""
    query = (
        select(devices.c.name, requests.c.assignee, requests.c.expires)
        .select_from(devices)
        .join(device_requests, device_requests.c.device_id == devices.c.id)
        .join(requests, requests.c.id == device_requests.c.request_id)
        .where(devices.c.claim_id.is_not(None), *conditions)
        .order_by(requests.c.expires)
        .limit(limit)
    )
    return [(row[0], row[1], row[2]) for row in conn.execute(query)]


def holders(conn: Connection, device_ids: Sequence[int]) -> list[tuple[int, str, datetime]]:
    """(device id, assignee, expires) of the claims on these devices."""
    query = (
        select(device_requests.c.device_id, requests.c.assignee, requests.c.expires)
        .join(requests, requests.c.id == device_requests.c.request_id)
        .where(device_requests.c.device_id.in_(device_ids))
        .order_by(requests.c.expires)
    )
    return [(row[0], row[1], row[2]) for row in conn.execute(query)]


def expiring(
    conn: Connection, owner_ids: Collection[int], state: str, after: datetime, before: datetime
) -> list[Request]:
    """The requests of these servers in a state that expire between two moments, the first one first."""
    query = _SELECT.where(requests.c.expires > after, requests.c.expires <= before, requests.c.state == state)
    return [
        _request(text) for text in conn.scalars(query.where(owner_column.in_(owner_ids)).order_by(requests.c.expires))
    ]
