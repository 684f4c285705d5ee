# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Does MozPool's effects: calls to LifeGuard and to the client. Called from worker threads."""

from __future__ import annotations

import logging

import requests as http

from mozpool.db.requests import Request
from mozpool.errors import HardwareError
from mozpool.pool.effects import AskLifeguard, CallBack, TellRelease
from mozpool.pool.link import LifeguardLink, LinkError
from mozpool.statedriver import Event
from mozpool.statemachine import Effect

log = logging.getLogger("mozpool.pool")

CALLBACK_LIMIT = 5.0
"""Seconds that a client's callback URL may take to connect, and to answer."""


class RequestOperations:
    """The performer of the request machine's effects."""

    def __init__(self, link: LifeguardLink) -> None:
        self._link = link

    def lane(self, row: Request, effect: Effect) -> str | None:
        """Slow clients and servers hold up nobody but themselves."""
        return f"request:{row.id}:{effect.channel}"

    def failure(self, effect: Effect) -> str | None:
        """Nothing: what failed is repeated, or its state's time limit does it again."""
        return None

    def probe_lane(self, lane: str) -> None:
        """Lanes of requests have no breaker."""

    def perform(self, row: Request, effect: Effect) -> Event | None:
        """Do an effect. Raises HardwareError when it is to be repeated."""
        match effect:
            case AskLifeguard():
                try:
                    reply = self._link.please(
                        effect.device_server,
                        effect.device_id,
                        effect.device,
                        effect.event,
                        effect.args,
                        effect.claim_id,
                    )
                except LinkError as error:
                    raise HardwareError(effect.device, effect.event, str(error)) from error
                if reply.accepted:
                    return Event("lifeguard_contacted")
                return Event("device_left", {"reason": reply.reason or "LifeGuard refused"})
            case TellRelease():
                try:
                    self._link.released(effect.device_server, effect.device_id, effect.device)
                except LinkError as error:
                    log.info("device %s: %s; its server finds out by itself", effect.device, error)
                return None
            case CallBack():
                return self._call_back(row, effect)
            case _:
                raise TypeError(f"no such effect: {effect!r}")

    def _call_back(self, row: Request, effect: CallBack) -> Event:
        body = {"request": {"id": row.id, "state": effect.state, "assigned_device": row.device or ""}}
        try:
            http.post(effect.url, json=body, timeout=CALLBACK_LIMIT, allow_redirects=False).raise_for_status()
        except http.RequestException as error:
            raise HardwareError(row.name, "callback", f"{effect.url}: {type(error).__name__}") from error
        # An event that no state expects: it ends the repetitions.
        return Event("called_back")
