# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Calls to the other imaging servers of the pool, signed where there is a key."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import requests as http
from flask import current_app

from mozpool.access.principal import Principal
from mozpool.access.servers import RUN_HEADER, keys
from mozpool.access.signing import BadSignature, Call, Signer
from mozpool.bmm import httpio
from mozpool.clock import Clock, Deadline
from mozpool.config import Settings

PEERS = "mozpool.peers"
"""The key of the :class:`Peers` in the application's extensions."""

NO_KEY = "this server has no [auth] server_key to sign calls with"


class Peers:
    """Calls other imaging servers. Safe to use from any thread."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        own_keys = keys(settings)
        self._clock = clock
        self._signer = Signer(settings.server.fqdn, own_keys, clock) if own_keys else None
        self._runs: dict[str, str] = {}
        """Server → its run, as it said the last time."""
        self.lacks_key = self._signer is None and settings.auth_mode != "open"
        """Whether the others can't know this server, and so do nothing for it."""
        self.refused: dict[str, str] = {}
        """Server → why it does not take this server's calls, as it said the last time."""

    def call(
        self,
        server: str,
        method: str,
        url: str,
        body: bytes,
        limit: float,
        *,
        on_behalf: Principal | None = None,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> http.Response:
        """Call an imaging server (its fqdn) with a JSON body, and answer what it says, within ``limit`` seconds.

        ``on_behalf``: whose call is passed on; None: it is this server's own. ``headers`` are not signed.
        Raises CallError, also for a server that does not take this one's calls, RequestException.
        """
        if self.lacks_key:
            self.refused[server] = NO_KEY
            raise httpio.CallError(NO_KEY)
        with httpio.session(Deadline(self._clock, limit)) as session:
            asked = session.prepare_request(
                http.Request(method, url, data=body, headers={"Content-Type": "application/json", **headers})
            )

            def send(run: str) -> http.Response:
                if self._signer is not None:
                    call = Call.to(method, asked.path_url, body)
                    asked.headers["Authorization"] = self._signer.sign(call, server, run, on_behalf)
                return session.send(asked)

            known = self._runs.get(server, "")
            said = send(known)
            # One that has been started anew since says for which run calls are to be signed.
            run = said.headers.get(RUN_HEADER)
            if _why_refused(said) is not None and run and run != known:
                self._runs[server] = run
                said = send(run)
        why = _why_refused(said)
        if why is not None:
            self.refused[server] = why
            raise httpio.CallError(f"it does not take this server's calls: {why}")
        self.refused.pop(server, None)
        return said


def _why_refused(said: http.Response) -> str | None:
    """Why the other server does not take this one's signature; None when it does, whatever else it says."""
    if said.status_code != 401:
        return None
    try:
        error: Any = said.json()["error"]
        return str(error["message"]) if error["code"] == BadSignature.code else None
    except (ValueError, KeyError, TypeError):
        return None


def peers() -> Peers:
    """How this server calls the others."""
    found = current_app.extensions[PEERS]
    assert isinstance(found, Peers)
    return found
