# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""How the driver reads and writes devices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from mozpool.bmm.registry import DEFAULTS
from mozpool.db import devices, hosted_jobs, images
from mozpool.db.devices import Device
from mozpool.db.tables import device_history
from mozpool.logbook import Kind
from mozpool.rowstore import Note, RowStore, no_note
from mozpool.statedriver import Change


class DeviceReads:
    """What the device machine may look up (see :class:`mozpool.lifeguard.states.base.Reads`)."""

    def __init__(self, conn: Connection, default_power: str) -> None:
        self._conn = conn
        self.default_power = default_power

    def image_id(self, name: str) -> int | None:
        """The id of an image."""
        image = images.by_name(self._conn, name)
        return None if image is None else image.id

    def pxe_config_for(self, hardware_type_id: int | None, image_id: int | None) -> str | None:
        """The name of the PXE config that boots this image on this hardware."""
        return images.pxe_config_for(self._conn, hardware_type_id, image_id)

    def is_hosted_on(self, hardware_type_id: int | None, image_id: int | None) -> bool:
        """Whether hosted devices of this hardware can be had with this image."""
        return images.is_hosted_on(self._conn, hardware_type_id, image_id)

    def job(self, claim_id: int) -> hosted_jobs.Job | None:
        """The job that a device was claimed for."""
        return hosted_jobs.of_claim(self._conn, claim_id)


class DeviceStore(RowStore[Device]):
    """The devices of one imaging server."""

    kind: Kind = "device"

    def __init__(self, server_id: int, *, default_power: str = DEFAULTS["power"], note: Note[Device] = no_note) -> None:
        """``server_id`` is the id of the imaging server that this daemon is.

        ``default_power`` is the name of the power backend of devices that name none. ``note`` is as in RowStore.
        """
        super().__init__(devices, device_history, server_id, note)
        self._default_power = default_power

    def reads(self, conn: Connection) -> DeviceReads:
        """Lookups in this transaction."""
        return DeviceReads(conn, self._default_power)

    def ahead(self, conn: Connection, row_ids: Sequence[int]) -> Sequence[Device]:
        """All of them: most are idle, and looked at again by nobody else."""
        return devices.with_ids(conn, row_ids)

    def expiry(self, row: Device) -> tuple[str, datetime] | None:
        """Devices don't expire."""
        return None

    def may_remember(self, event: str) -> bool:
        """All that decides about a device is in its own row, or looked up in the transition."""
        return True

    def may_look_back(self, row: Device) -> bool:
        """As for events."""
        return True

    def after(self, row: Device, change: Change, learned: Mapping[str, Any]) -> Device | None:
        """The names of images are the table's to tell, unless they stay, go, or the next becomes the present one."""
        values = change.values(row) | dict(learned)
        values["state_counters"] = dict(change.counters)
        values["version"] = row.version + 1
        for column, name in (("image_id", "image"), ("next_image_id", "next_image")):
            if column in values and values[column] != getattr(row, column):
                if values[column] is None:
                    values[name], values[f"{name}_has_agent"] = None, False
                elif values[column] == row.next_image_id:
                    values[name], values[f"{name}_has_agent"] = row.next_image, row.next_image_has_agent
                else:
                    return None
        return replace(row, **values)
