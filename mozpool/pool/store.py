# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""How the driver reads and writes requests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from mozpool.db import devices, history, requests
from mozpool.db.bootconfig import boot_config_hash
from mozpool.db.requests import Request
from mozpool.db.tables import request_history
from mozpool.logbook import Kind
from mozpool.statedriver import Change


class RequestReads:
    """What the request machine may look up (see :class:`mozpool.pool.requestmachine.Reads`)."""

    def __init__(self, conn: Connection, server_id: int, verify_on_return: bool) -> None:
        self._conn = conn
        self._server_id = server_id
        self.verify_on_return = verify_on_return

    def serves(self, request: Request) -> bool:
        """Whether the request is this server's."""
        return request.imaging_server_id == self._server_id

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


class RequestStore:
    """The requests that one imaging server serves."""

    kind: Kind = "request"

    def __init__(self, server_id: int, *, verify_on_return: bool = False) -> None:
        """``server_id`` is the id of the imaging server that this daemon is."""
        self._server_id = server_id
        self._verify_on_return = verify_on_return

    def load(self, conn: Connection, row_id: int) -> Request | None:
        """The request."""
        return requests.get(conn, row_id)

    def reads(self, conn: Connection) -> RequestReads:
        """Lookups in this transaction."""
        return RequestReads(conn, self._server_id, self._verify_on_return)

    def write(self, conn: Connection, row: Request, change: Change) -> bool:
        """Row and history, if the version is still the same."""
        if not requests.write(conn, row.id, row.version, change.values(row)):
            return False
        history.add(
            conn,
            request_history,
            row.id,
            now=change.now,
            source=change.source,
            path=change.path,
            event=change.event,
            version=row.version + 1,
            claim_id=change.claim_id,
            token=change.token,
            detail=change.detail,
        )
        return True

    def took_place(self, conn: Connection, row: Request, change: Change) -> bool:
        """Whether the row, or its history, carries the change's token."""
        found = requests.version_and_token(conn, row.id)
        if found == (row.version + 1, change.token):
            return True
        return history.has_token(conn, request_history, row.id, row.version + 1, change.token)

    def due(self, conn: Connection, before: datetime, limit: int) -> list[tuple[int, int, datetime]]:
        """This server's requests that time out or expire before ``before``."""
        return requests.due(conn, self._server_id, before, limit)

    def expiry(self, row: Request) -> tuple[str, datetime] | None:
        """When the request expires."""
        return "expire", row.expires

    def postpone(self, conn: Connection, row_id: int, attempt: int, deadline: datetime | None) -> bool:
        """Move the deadline of an attempt."""
        return requests.postpone(conn, row_id, attempt, deadline)

    def is_ours(self, row: Request) -> bool:
        """Each imaging server acts on the requests made on it only."""
        return row.imaging_server_id == self._server_id

    def claim_of(self, row: Request) -> int | None:
        """The claim that the request holds."""
        return row.claim_id

    def may_remember(self, event: str) -> bool:
        """What is remembered of the device may be old: these events are decided on the claim alone."""
        return event in ("lifeguard_contacted", "lifeguard_finished", "close")

    def may_look_back(self, row: Request) -> bool:
        """Right after the claim nothing else is known of the device; later it may have changed."""
        return row.state == "contact_lifeguard"

    def amended(self, row: Request, fields: Mapping[str, Any]) -> Request:
        """With the next version."""
        return replace(row, version=row.version + 1, **fields)

    def after(self, row: Request, change: Change, learned: Mapping[str, Any]) -> Request | None:
        """As written."""
        values = change.values(row) | dict(learned)
        values["state_counters"] = dict(change.counters)
        return replace(row, version=row.version + 1, **values)
