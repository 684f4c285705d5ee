# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""How the driver reads and writes requests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from mozpool.db import devices, hosted_jobs, past_requests, requests
from mozpool.db.bootconfig import boot_config_hash
from mozpool.db.requests import Request
from mozpool.db.tables import request_history
from mozpool.logbook import Kind
from mozpool.rowstore import Note, RowStore, no_note
from mozpool.statedriver import Change


class RequestReads:
    """What the request machine may look up (see :class:`mozpool.pool.requestmachine.Reads`)."""

    def __init__(self, conn: Connection, server_id: int, verify_on_return: bool) -> None:
        self._conn = conn
        self._server_id = server_id
        self.verify_on_return = verify_on_return

    def serves(self, request: Request) -> bool:
        """Whether the request is this server's."""
        return request.owner_id == self._server_id

    def device_state(self, name: str) -> str | None:
        """The state of a device."""
        key = devices.key_by_name(self._conn, name)
        return None if key is None else key.state

    def has_equal_image(self, request: Request) -> bool:
        """Whether the claimed device holds the wanted image with an equal boot config."""
        return (
            request.device_image_id is not None
            and request.device_image_id == request.image_id
            and request.device_boot_config_hash == boot_config_hash(request.boot_config)
        )

    def had_job(self, request: Request) -> bool:
        """Whether a job was ordered for the request."""
        return bool(hosted_jobs.of_requests(self._conn, [request.id]))


class RequestStore(RowStore[Request]):
    """The requests that one imaging server serves."""

    kind: Kind = "request"

    def __init__(self, server_id: int, *, verify_on_return: bool = False, note: Note[Request] = no_note) -> None:
        """``server_id`` is the id of the imaging server that this daemon is; ``note`` is as in RowStore."""
        super().__init__(requests, request_history, server_id, note)
        self._verify_on_return = verify_on_return

    def reads(self, conn: Connection) -> RequestReads:
        """Lookups in this transaction."""
        return RequestReads(conn, self._server_id, self._verify_on_return)

    def write(self, conn: Connection, row: Request, change: Change) -> bool:
        """Row and history; of a request that ends, also what outlives its row."""
        if not super().write(conn, row, change):
            return False
        if row.is_open and change.target in requests.END_STATES:
            reason = change.columns.get("reason", row.reason)
            past_requests.add(conn, row, state=change.target, reason=reason, now=change.now)
        return True

    def expiry(self, row: Request) -> tuple[str, datetime] | None:
        """When the request expires."""
        return "expire", row.expires

    def may_remember(self, event: str) -> bool:
        """What is remembered of the device may be old: these events are decided on the claim alone."""
        return event in ("lifeguard_contacted", "lifeguard_finished", "close")

    def may_look_back(self, row: Request) -> bool:
        """Right after the claim nothing else is known of the device; later it may have changed."""
        return row.state == "contact_lifeguard"

    def after(self, row: Request, change: Change, learned: Mapping[str, Any]) -> Request | None:
        """As written."""
        values = change.values(row) | dict(learned)
        values["state_counters"] = dict(change.counters)
        return replace(row, version=row.version + 1, **values)
