# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Requests that ended, in what reports need of them: their own rows are deleted a week after they expire."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection, String, bindparam, func, insert, select

from mozpool.db import devices as devices_of_pool
from mozpool.db.requests import Request
from mozpool.db.tables import UTCDateTime, devices, hardware_types, images, past_requests, requests
from mozpool.db.uses import environment_column

REASON = 190
"""Characters of a reason that are kept."""

_DEVICE = select(devices.c.id).where(devices.c.id == bindparam("its_device"))
_HARDWARE = _DEVICE.join(hardware_types, hardware_types.c.id == devices.c.hardware_type_id)
_ADD = insert(past_requests).from_select(
    [column.name for column in past_requests.columns],
    select(
        requests.c.id,
        requests.c.assignee,
        func.coalesce(_DEVICE.with_only_columns(environment_column).scalar_subquery(), requests.c.environment),
        func.coalesce(_HARDWARE.with_only_columns(hardware_types.c.type).scalar_subquery(), requests.c.hardware_type),
        func.coalesce(_HARDWARE.with_only_columns(hardware_types.c.model).scalar_subquery(), requests.c.hardware_model),
        images.c.name,
        requests.c.created,
        bindparam("was_ready", type_=UTCDateTime),
        bindparam("now", type_=UTCDateTime),
        bindparam("end_state", type_=String),
        bindparam("why", type_=String),
    )
    .select_from(requests)
    .outerjoin(images, images.c.id == requests.c.image_id)
    .where(requests.c.id == bindparam("row_id")),
)


def add(conn: Connection, request: Request, *, state: str, reason: str | None, now: datetime) -> None:
    """Note that a request, which has been as given until now, ends in a state.

    Environment and hardware are those of the device that it had until now; else of the one that it asked for by name;
    else what it asked for.
    """
    device_id = request.device_id
    if device_id is None and request.wants_named_device:
        named = devices_of_pool.key_by_name(conn, request.requested_device)
        device_id = None if named is None else named.id
    conn.execute(
        _ADD,
        {
            "row_id": request.id,
            "its_device": device_id,
            "was_ready": request.ready_at,
            "now": now,
            "end_state": state,
            "why": None if reason is None else reason[:REASON],
        },
    )
