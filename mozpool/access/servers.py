# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Calls of other imaging servers: their own, and those that they pass on for somebody who has asked the wrong one."""

from __future__ import annotations

import logging

from flask import Flask, Response, current_app, g, request

from mozpool.access.principal import Kind, Principal, Role
from mozpool.access.signing import SCHEME, BadSignature, Call, OtherRun, Verifier
from mozpool.clock import Clock
from mozpool.config import Settings
from mozpool.errors import Forbidden

log = logging.getLogger("mozpool.servers")

SERVERS = "mozpool.access.servers"
"""The key of the :class:`Servers` in the application's extensions."""

RUN_HEADER = "Mozpool-Run"
"""The header of an answer that tells another server which run of this one to sign its calls for."""

OWN_CALLS = frozenset({"lifeguard.device_event", "mozpool.request_event"})
"""The endpoints that servers call on their own behalf: events of devices and requests."""

TOLD_EVERY = 60.0
"""Seconds until the log is told of the next refusal: anybody can call."""


def keys(settings: Settings) -> tuple[str, ...]:
    """What calls are signed with, and what signatures are taken; none: no keys are set."""
    return tuple(key for key in (settings.auth.server_key, settings.auth.server_key_before) if key)


class Servers:
    """Knows other imaging servers by what they sign."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self._clock = clock
        self._verifier = Verifier(settings.server.fqdn, keys(settings), clock)
        self._told: float | None = None

    @property
    def run(self) -> str:
        """What tells this run of the server from all others."""
        return self._verifier.run

    def find(self) -> Principal | None:
        """The server that makes the current call, or for whom it does; None when nothing says that one does.

        Raises BadSignature, and Forbidden where servers call nothing on their own behalf.
        """
        credentials = credentials_of_call()
        if credentials is None:
            return None
        query = request.query_string.decode("ascii", "replace")
        call = Call(request.method, request.path, query, request.get_data(cache=True))
        try:
            sender = self._verifier.check(credentials, call)
        except OtherRun:
            raise
        except BadSignature as error:
            self._tell(error)
            raise
        g.signed = True
        if sender.on_behalf is not None:
            return sender.on_behalf
        if request.endpoint not in OWN_CALLS:
            raise Forbidden("imaging servers do not call this on their own behalf")
        return Principal(Kind.SERVER, Role.OPERATOR, sender.server)

    def _tell(self, error: BadSignature) -> None:
        now = self._clock.monotonic()
        if self._told is None or now - self._told >= TOLD_EVERY:
            self._told = now
            log.warning("a call from %s in an imaging server's name is refused: %s", request.remote_addr, error)


def credentials_of_call() -> str | None:
    """What the current call says to come from an imaging server; None when it says no such thing."""
    scheme, _, credentials = request.headers.get("Authorization", "").partition(" ")
    return credentials if scheme.lower() == SCHEME.lower() else None


def find() -> Principal | None:
    """The imaging server that makes the current call, or for whom it does: see :meth:`Servers.find`."""
    servers = current_app.extensions[SERVERS]
    assert isinstance(servers, Servers)
    return servers.find()


def register(app: Flask, settings: Settings, clock: Clock) -> None:
    """Make :func:`find` work in this application, and let servers know for which run of it to sign."""
    servers = app.extensions[SERVERS] = Servers(settings, clock)

    @app.after_request
    def name_run(said: Response) -> Response:
        if said.status_code == 401 and credentials_of_call() is not None:
            said.headers[RUN_HEADER] = servers.run
        return said
