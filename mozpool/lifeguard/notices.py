# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What people are told of devices."""

from __future__ import annotations

from mozpool.db.devices import Device
from mozpool.lifeguard.devicemachine import PERSON_NEEDED
from mozpool.notify.events import REASON, Event, moment, page_of
from mozpool.statedriver import Change


def is_told(row: Device, change: Change) -> bool:
    """Whether a change is one that a person should know of: the device does not heal by itself."""
    return change.target in PERSON_NEEDED and change.target != row.state


def failed(row: Device, change: Change, meaning: str) -> Event:
    """A device is in need of a person. ``meaning`` says what its new state means."""
    why = (change.detail or change.event.replace("_", " "))[:REASON]
    sentences = [f"Device {row.name} has failed since {moment(change.now)}: it is {change.target} ({why})."]
    # Where names of settings stand between backticks in the pages, mail has quotes.
    sentences.append(meaning.replace("`", '"'))
    if row.request_id is not None:
        sentences.append(f"It was being prepared for, or used by, request {row.request_id}.")
    sentences.append("It is not lent until a person has looked at it and started its self-test.")
    return Event(
        kind="device_failed",
        key=f"device:{row.id}:{row.version + 1}",
        time=change.now,
        subject=row.name,
        summary=f"{row.name} failed: {change.target.removeprefix('failed_').replace('_', ' ')}",
        text=" ".join(sentences),
        page=page_of("devices", row.name),
        details={
            "device": row.name,
            "state": change.target,
            "before": change.path[-2] if len(change.path) > 1 else row.state,
            "reason": why,
            "environment": row.environment,
            "hardware_type": row.hardware_type,
            "hardware_model": row.hardware_model,
            "relay_info": row.relay_info,
            "imaging_server": row.owner,
            "request": row.request_id,
        },
        environment=row.environment or "none",
        device=row.name,
        hardware_type=row.hardware_type or "",
        server=row.owner,
    )
