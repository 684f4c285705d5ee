# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Claims: which request has which device. The database decides.

Device and request are each unique in ``device_requests``; ``claim_history`` keeps what was. All writers lock in one
order (request, team, device, ``claim_history``, ``device_requests``), so that they don't deadlock among themselves.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, bindparam, case, delete, func, insert, null, select, update

from mozpool.db import teams
from mozpool.db.hosted_jobs import BUSY_STATES
from mozpool.db.tables import claim_history, device_requests, devices, hardware_types, requests

IDS_AT_ONCE = 500
"""How many ids one statement names."""

REASON = 190
"""Characters of a reason that are kept."""


@dataclass(frozen=True)
class PastClaim:
    """A row of the claim history."""

    id: int
    request_id: int
    device_id: int
    device: str | None
    claimed_at: datetime
    released_at: datetime | None
    imaging_result: str | None
    reason: str | None
    assignee: str | None
    """Whose request it was; None when that is not kept any more."""


class ClaimLost(Exception):
    """Somebody else took the device, or it is no longer free."""


_TAKE_DEVICE = (
    update(devices)
    .where(
        devices.c.id == bindparam("row_id"),
        devices.c.version == bindparam("row_version"),
        devices.c.state == "ready",
        devices.c.claim_id.is_(None),
        devices.c.leaving == 0,
    )
    .values(version=devices.c.version + 1, claim_id=bindparam("new_claim"), operation_claim_id=null())
)
_INSERT_HISTORY = insert(claim_history)
_INSERT_CLAIM = insert(device_requests)


def take(
    conn: Connection,
    *,
    request_id: int,
    device_id: int,
    device_version: int,
    now: datetime,
    team_id: int | None = None,
) -> int:
    """Claim a free device for a request, of a team if it has one, and answer the claim's id.

    Runs inside the request's own transition. Raises ClaimLost (roll back!) when the device changed since it was read,
    or the team has as many devices as it may; sqlalchemy's IntegrityError when either has a claim already.
    """
    if team_id is not None and not teams.has_room(conn, team_id):
        raise ClaimLost(f"team {team_id} has all the devices that it may have")
    key = conn.execute(
        _INSERT_HISTORY, {"request_id": request_id, "device_id": device_id, "claimed_at": now}
    ).inserted_primary_key
    assert key is not None
    claim_id = int(key[0])
    taken = conn.execute(
        _TAKE_DEVICE, {"row_id": device_id, "row_version": device_version, "new_claim": claim_id}
    ).rowcount
    if taken != 1:
        raise ClaimLost(f"device {device_id} is not free any more")
    conn.execute(_INSERT_CLAIM, {"id": claim_id, "request_id": request_id, "device_id": device_id})
    return claim_id


_FREE_DEVICE = (
    update(devices)
    .where(devices.c.id == bindparam("row_id"), devices.c.claim_id == bindparam("row_claim"))
    .values(
        version=devices.c.version + 1,
        claim_id=null(),
        shuffle=bindparam("new_shuffle"),
        # Due at once: the device's own server sees to it, wherever this runs and even if nobody can be told.
        state_timeout=case(
            (devices.c.state.in_(("maintenance_mode", *BUSY_STATES)), bindparam("due_now")),
            (
                (devices.c.state == "ready") & (bindparam("verify") == 1),
                bindparam("due_now"),
            ),
            else_=devices.c.state_timeout,
        ),
    )
)
_DELETE_CLAIM = delete(device_requests).where(device_requests.c.id == bindparam("row_claim"))
_DEVICE = select(devices.c.id).where(devices.c.id == claim_history.c.device_id)
_HARDWARE = _DEVICE.join(hardware_types, hardware_types.c.id == devices.c.hardware_type_id)
_END_HISTORY = (
    update(claim_history)
    .where(claim_history.c.id == bindparam("row_claim"))
    .values(
        released_at=bindparam("ended"),
        reason=bindparam("why"),
        ready_at=bindparam("was_ready"),
        device=_DEVICE.with_only_columns(devices.c.name).scalar_subquery(),
        environment=_DEVICE.with_only_columns(func.coalesce(devices.c.environment, "none")).scalar_subquery(),
        hardware_type=_HARDWARE.with_only_columns(hardware_types.c.type).scalar_subquery(),
        hardware_model=_HARDWARE.with_only_columns(hardware_types.c.model).scalar_subquery(),
        imaging_result=select(device_requests.c.imaging_result)
        .where(device_requests.c.id == claim_history.c.id)
        .scalar_subquery(),
    )
)


def release(
    conn: Connection,
    *,
    claim_id: int,
    device_id: int,
    ready_at: datetime | None,
    now: datetime,
    reason: str,
    shuffle: int,
    verify: bool,
) -> None:
    """End a claim: the device is free as soon as its state is ready.

    ``ready_at`` is when the request got the device ready, if it did. What kind of device it was is noted: the claim's
    row may outlive the device's.

    A device in maintenance mode is due at once (it leaves the live image), and so are one that a job keeps busy (the
    job is stopped) and, if ``verify``, a ready one.
    """
    conn.execute(
        _FREE_DEVICE,
        {
            "row_id": device_id,
            "row_claim": claim_id,
            "new_shuffle": shuffle,
            "due_now": now,
            "verify": int(verify),
        },
    )
    conn.execute(_END_HISTORY, {"row_claim": claim_id, "ended": now, "why": reason[:REASON], "was_ready": ready_at})
    conn.execute(_DELETE_CLAIM, {"row_claim": claim_id})


_SET_RESULT = (
    update(device_requests)
    .where(device_requests.c.id == bindparam("row_claim"))
    .values(imaging_result=bindparam("result"))
)


def set_result(conn: Connection, claim_id: int, result: str | None) -> None:
    """Store how the operation for a claim ended; nothing happens when the claim is over."""
    conn.execute(_SET_RESULT, {"row_claim": claim_id, "result": result})


_RESULT = select(device_requests.c.imaging_result).where(device_requests.c.id == bindparam("row_claim"))


def result_of(conn: Connection, claim_id: int) -> str | None:
    """The stored result of a claim; None when there is none, or no such claim."""
    value = conn.scalar(_RESULT, {"row_claim": claim_id})
    return None if value is None else str(value)


def of_device(conn: Connection, device_id: int, limit: int = 100) -> list[PastClaim]:
    """The latest claims of a device, newest first."""
    return _past(conn, claim_history.c.device_id == device_id, limit)


def of_request(conn: Connection, request_id: int, limit: int = 100) -> list[PastClaim]:
    """The devices that a request had, newest first."""
    return _past(conn, claim_history.c.request_id == request_id, limit)


def _past(conn: Connection, condition: object, limit: int) -> list[PastClaim]:
    query = (
        select(
            claim_history.c.id,
            claim_history.c.request_id,
            claim_history.c.device_id,
            devices.c.name,
            claim_history.c.claimed_at,
            claim_history.c.released_at,
            claim_history.c.imaging_result,
            claim_history.c.reason,
            requests.c.assignee,
        )
        .outerjoin(devices, devices.c.id == claim_history.c.device_id)
        .outerjoin(requests, requests.c.id == claim_history.c.request_id)
        .where(condition)  # type: ignore[arg-type]
        .order_by(claim_history.c.id.desc())
        .limit(limit)
    )
    return [PastClaim(*row) for row in conn.execute(query)]


def holders(conn: Connection, claim_ids: Collection[int]) -> dict[int, tuple[int, str | None]]:
    """Claim id → its request and whose that was, as far as it is kept."""
    query = (
        select(claim_history.c.id, claim_history.c.request_id, requests.c.assignee)
        .outerjoin(requests, requests.c.id == claim_history.c.request_id)
        .where(claim_history.c.id.in_(claim_ids))
    )
    return {row[0]: (row[1], row[2]) for row in conn.execute(query)} if claim_ids else {}


_HOLDS = (
    select(device_requests.c.id)
    .join(requests, requests.c.id == device_requests.c.request_id)
    .where(device_requests.c.id == bindparam("row_claim"), requests.c.expires > bindparam("moment"))
)


def holds(conn: Connection, claim_id: int, now: datetime) -> bool:
    """Whether a claim is on, and its request has not expired, even if nobody has closed that yet."""
    return conn.scalar(_HOLDS, {"row_claim": claim_id, "moment": now}) is not None


_HOLDER = (
    select(device_requests.c.id, requests.c.id, requests.c.made_by)
    .join(requests, requests.c.id == device_requests.c.request_id)
    .where(device_requests.c.device_id == bindparam("device"), requests.c.expires > bindparam("moment"))
)


def holder(conn: Connection, device_id: int, now: datetime) -> tuple[int, int, str | None] | None:
    """(claim, request, whose it is) of a device; None when nobody has it, or only by a request that has expired."""
    row = conn.execute(_HOLDER, {"device": device_id, "moment": now}).first()
    return None if row is None else (row[0], row[1], row[2])


_SINCE = (
    select(claim_history.c.claimed_at, devices.c.state)
    .join(devices, devices.c.id == claim_history.c.device_id)
    .where(claim_history.c.id == bindparam("row_claim"))
)


def since(conn: Connection, claim_id: int) -> tuple[datetime, str] | None:
    """When a claim began and the state that its device is in, or None when there is no such claim."""
    row = conn.execute(_SINCE, {"row_claim": claim_id}).first()
    return None if row is None else (row[0], row[1])


def last_devices(conn: Connection, request_ids: Sequence[int]) -> dict[int, str]:
    """Request id → the device that it had last, for those that had one."""
    found: dict[int, str] = {}
    for start in range(0, len(request_ids), IDS_AT_ONCE):
        query = (
            select(claim_history.c.request_id, devices.c.name)
            .join(devices, devices.c.id == claim_history.c.device_id)
            .where(claim_history.c.request_id.in_(request_ids[start : start + IDS_AT_ONCE]))
            .order_by(claim_history.c.id)
        )
        found.update((row[0], row[1]) for row in conn.execute(query))
    return found
