# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Rows for tests of what only decides on rows: complete, plausible, and as different as the test says."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from mozpool.db.devices import Device
from mozpool.db.requests import Request

NOW = datetime(2030, 1, 1, 12, 0, tzinfo=UTC)
"""The moment at which the rows were made."""


def device(state: str = "ready", **columns: Any) -> Device:
    """A free board with power control, an unknown image and nothing going on; ``columns`` change any of it."""
    values: dict[str, Any] = {
        "id": 1,
        "name": "panda-0001",
        "fqdn": "panda-0001.example.com",
        "address": "127.1.0.1",
        "inventory_id": 1001,
        "state_counters": {},
        "state_timeout": None,
        "state_since": NOW,
        "version": 1,
        "attempt": 1,
        "token": None,
        "mac_address": "aabbcc000001",
        "imaging_server_id": 1,
        "imaging_server": "server-1.example.com",
        "relay_info": "127.0.0.1:2999:bank1:relay1",
        "image_id": None,
        "image": None,
        "image_has_agent": False,
        "boot_config": None,
        "boot_config_hash": None,
        "next_image_id": None,
        "next_image": None,
        "next_image_has_agent": False,
        "next_boot_config": None,
        "pxe_config": None,
        "last_pxe_config": None,
        "comments": None,
        "environment": "none",
        "hardware_type_id": 1,
        "hardware_type": "panda",
        "hardware_model": "ES",
    }
    return Device(state=state, **{**values, **columns})


def request(state: str = "finding_device", **columns: Any) -> Request:
    """A request for any board with the image ``b2g`` for half an hour, without a device, changed by ``columns``."""
    values: dict[str, Any] = {
        "id": 1,
        "imaging_server_id": 1,
        "imaging_server": "server-1.example.com",
        "requested_device": "any",
        "assignee": "somebody@example.com",
        "created": NOW,
        "expires": NOW + timedelta(minutes=30),
        "image_id": 1,
        "image": "b2g",
        "image_can_reuse": False,
        "boot_config": '{"b2gbase": "http://builds.example.com/1/"}',
        "state_counters": {},
        "state_timeout": None,
        "state_since": NOW,
        "version": 1,
        "attempt": 1,
        "token": None,
        "environment": "any",
        "hardware_type": None,
        "hardware_model": None,
        "labels": {},
        "priority": 0,
        "wait": 600,
        "queue_key": 1,
        "criteria": None,
        "callback_url": None,
        "idempotency_key": None,
        "body_hash": None,
        "reason": None,
    }
    return Request(state=state, **{**values, **columns})
