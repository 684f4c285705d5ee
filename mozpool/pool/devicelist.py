# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Devices as lists show them, and the list of all of them, which is made anew only where it has changed."""

from __future__ import annotations

import hashlib
import json
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from mozpool import __version__, apikit
from mozpool.apikit import Site, site
from mozpool.db import devices, hosted_jobs, requests, stamps
from mozpool.db.devices import Device
from mozpool.db.hosted_jobs import Job
from mozpool.errors import DatabaseAway

CACHED = 1.0
"""Seconds that a cached list may be old."""

FEW = 8
"""Blocks that are read one by one; where more have changed, all devices are read at once."""


def _item(
    row: Device, owner_state: str, labels: Mapping[str, str], holder: tuple[str, datetime] | None, job: Job | None
) -> dict[str, Any]:
    """A device as lists show it; ``holder`` is who has it, and until when."""
    return {
        "id": row.id,
        "name": row.name,
        "fqdn": row.fqdn,
        "address": row.address,
        "inventory_id": row.inventory_id,
        "mac_address": row.mac_address,
        "imaging_server": row.imaging_server,
        "owner": row.owner,
        "owner_state": owner_state,
        "relay_info": row.relay_info,
        "state": row.state,
        "device_status": row.state,
        "comments": row.comments,
        "environment": row.environment,
        "image": row.image,
        "boot_config": row.boot_config,
        "last_pxe_config": row.last_pxe_config,
        "request_id": row.request_id,
        "assignee": holder[0] if holder else None,
        "expires": apikit.time_text(holder[1]) if holder else None,
        "hardware_type": row.hardware_type,
        "hardware_model": row.hardware_model,
        "labels": dict(labels),
        "leaving": row.leaving,
        "job": apikit.job_info(job),
    }


def device_items(
    conn: Connection, rows: Sequence[Device], state_of: Callable[[int], str] | None = None
) -> list[dict[str, Any]]:
    """Devices as lists show them. ``state_of`` is what counts as the state of a server with this id; None: as it is."""
    states = state_of or site().presence.state_of
    labels = devices.labels_of(conn, [row.id for row in rows]) if rows else {}
    held = requests.holders(conn, [row.id for row in rows if row.claim_id is not None])
    holders = {found[0]: found[1:] for found in held}
    running = hosted_jobs.of_devices(conn, [row.id for row in rows if row.is_hosted])
    return [
        _item(row, states(row.owner_id), labels.get(row.id, {}), holders.get(row.id), running.get(row.id))
        for row in rows
    ]


@dataclass(frozen=True)
class DeviceList:
    """The list of all devices at some moment."""

    etag: str
    """Changes with what the list shows."""
    blocks: tuple[bytes, ...]

    def body(self) -> bytes:
        """As the API answers it."""
        return b'{"devices":[' + b",".join(self.blocks) + b"]}\n"


class DeviceListCache:
    """The list of all devices with details, in blocks, of which those are made anew that have changed.

    What has changed, the database is asked each time, so that a list is never older than the call that gets it, unless
    the call says that it may be.
    """

    def __init__(self, here: Site) -> None:
        """Nothing is read yet."""
        self._site = here
        self._lock = threading.Lock()
        self._general: object = None
        """What any device may look different by."""
        self._blocks: dict[int, tuple[object, bytes]] = {}
        """Number → stamp and text."""
        self._last: DeviceList | None = None
        self._looked = -math.inf
        """When it was last begun to look (monotonic time)."""
        self._away: str | None = None
        """Why that look came to nothing."""

    def get(self, *, cached: bool) -> DeviceList:
        """The list as it is; with ``cached`` it may be a second old.

        Who waits while another one looks need not look again if that look began after the call: neither many callers
        nor a database that does not answer make a queue. Raises DatabaseAway.
        """
        called = self._site.clock.monotonic()
        with self._lock:
            if self._looked <= (called - CACHED if cached else called):
                begun, self._looked = self._site.clock.monotonic(), -math.inf
                try:
                    with self._site.database.read() as conn:
                        self._last, self._away = self._look(conn, self._last), None
                except DatabaseAway as error:
                    self._away = str(error)
                self._looked = begun
            if self._away is not None or self._last is None:
                raise DatabaseAway(str(self._away))
            return self._last

    def _look(self, conn: Connection, last: DeviceList | None) -> DeviceList:
        presence = self._site.presence
        away = {key: presence.state_of(key) for key in sorted(presence.away())}
        general = (stamps.names(conn), away)
        if general != self._general:
            self._general, self._blocks, last = general, {}, None
        found = stamps.device_blocks(conn)
        before = self._blocks
        changed = [number for number, stamp in found.items() if number not in before or before[number][0] != stamp]
        if last is not None and not changed and len(found) == len(before):
            return last
        rows = _rows(conn, changed)
        for number in changed:
            # A server may be back before the next look: the blocks must be of the states that they are noted with.
            items = device_items(conn, rows.get(number, []), lambda owner: away.get(owner, "up"))
            text = ",".join(map(_text, items))
            before[number] = (found[number], text.encode())
        self._blocks = {number: before[number] for number in found}
        stamped = (__version__, general, found)
        etag = hashlib.sha1(repr(stamped).encode(), usedforsecurity=False).hexdigest()
        return DeviceList(etag, tuple(text for _, text in self._blocks.values() if text))


def _rows(conn: Connection, numbers: Sequence[int]) -> dict[int, list[Device]]:
    """Block → its devices, of some blocks at least."""
    size = stamps.BLOCK
    if len(numbers) <= FEW:
        return {number: devices.in_range(conn, number * size, (number + 1) * size) for number in numbers}
    found: dict[int, list[Device]] = {}
    for row in devices.find(conn):
        found.setdefault(row.id // size, []).append(row)
    return found


def _text(item: dict[str, Any]) -> str:
    return json.dumps(item, separators=(",", ":"))
