# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Does MozPool's effects: calls to LifeGuard. Called from worker threads."""

from __future__ import annotations

import logging

from mozpool.db.requests import Request
from mozpool.errors import HardwareError
from mozpool.pool.effects import AskLifeguard, TellRelease
from mozpool.pool.link import LifeguardLink, LinkError, lane_to
from mozpool.statedriver import Event
from mozpool.statemachine import Effect

log = logging.getLogger("mozpool.pool")


class RequestOperations:
    """The performer of the request machine's effects."""

    def __init__(self, link: LifeguardLink, own_name: str | None = None) -> None:
        """``own_name`` is this imaging server's fqdn; without it all devices count as its own."""
        self._link = link
        self._own_name = own_name

    def lane(self, row: Request, effect: Effect) -> str | None:
        """Slow servers hold up nobody but themselves."""
        match effect:
            case AskLifeguard(device_server=server) | TellRelease(device_server=server):
                if self._own_name is not None and server != self._own_name:
                    return lane_to(server, row.id)
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
                    self._link.released(effect.device_server, effect.device_id, effect.device, effect.claim_id)
                except LinkError as error:
                    log.info("device %s: %s; its server finds out by itself", effect.device, error)
                return None
            case _:
                raise TypeError(f"no such effect: {effect!r}")
