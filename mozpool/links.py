# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Calls between the layers, and between imaging servers: direct where both ends are here, else HTTP.

The only part that knows both MozPool and LifeGuard, so that neither needs to know the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

import requests as http

from mozpool.bmm import httpio
from mozpool.clock import Clock, Deadline
from mozpool.db import requests
from mozpool.db.engine import Database
from mozpool.errors import DatabaseAway
from mozpool.lifeguard.service import LifeGuard
from mozpool.pool.link import LinkError, Reply
from mozpool.pool.service import MozPool

HTTP_LIMIT = 8.0
"""Seconds that a call to another imaging server may take in all."""


Post = Callable[[str, str, Mapping[str, Any]], Mapping[str, Any]]
"""POSTs a JSON object to a path of an imaging server (its fqdn); answers its JSON. Raises LinkError."""


def http_post(server: str, path: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
    """POST by HTTP; the whole call is over within HTTP_LIMIT. Raises LinkError."""
    try:
        with httpio.session(Deadline(Clock(), HTTP_LIMIT)) as session:
            answer = session.post(f"http://{server}{path}", json=dict(body))
        answer.raise_for_status()
        said = answer.json()
    except httpio.CallError as error:
        raise LinkError(f"imaging server {server} does not answer: {error}") from error
    except (http.RequestException, ValueError) as error:
        raise LinkError(f"imaging server {server} does not answer ({type(error).__name__})") from error
    if answer.status_code != 200 or not isinstance(said, dict):
        raise LinkError(f"imaging server {server} answered {answer.status_code}")
    return said


class Links:
    """Both directions: MozPool's link to LifeGuard, and LifeGuard's to MozPool's requests."""

    def __init__(self, own_name: str, database: Database, post: Post = http_post) -> None:
        """``own_name`` is this imaging server's fqdn. The layers are plugged in by :meth:`connect`."""
        self._post = post
        self._own_name = own_name
        self._database = database
        self._lifeguard: LifeGuard | None = None
        self._mozpool: MozPool | None = None

    def connect(self, lifeguard: LifeGuard, mozpool: MozPool) -> None:
        """Plug in this server's layers."""
        self._lifeguard = lifeguard
        self._mozpool = mozpool

    # pool → lifeguard

    def please(
        self, server: str, device_id: int, device: str, event: str, args: Mapping[str, Any], claim_id: int
    ) -> Reply:
        """Ask a device for something on behalf of a claim. Raises LinkError."""
        if server == self._own_name and self._lifeguard is not None:
            answer = self._away_is_link_error(
                lambda lifeguard: lifeguard.please(device_id, event, args, claim_id=claim_id, once=True),
                self._lifeguard,
            )
            return Reply(answer.accepted, answer.reason)
        said = self._post(
            server, f"/api/device/{quote(device, safe='')}/event/{event}/", {**args, "claim_id": claim_id, "once": True}
        )
        return Reply(bool(said.get("accepted")), said.get("reason"))

    def released(self, server: str, device_id: int, device: str) -> None:
        """Let LifeGuard look at a device that lost its holder. Raises LinkError."""
        if server == self._own_name and self._lifeguard is not None:
            self._lifeguard.released(device_id)
            return
        self._post(server, f"/api/device/{quote(device, safe='')}/event/released/", {})

    # pool → pool

    def claimed(self, server: str, request_id: int) -> None:
        """Tell another imaging server that a request of its own has a device now. Raises LinkError."""
        self._post(server, f"/api/request/{request_id}/event/claimed/", {})

    # lifeguard → pool

    def lifeguard_finished(self, request_id: int, claim_id: int, result: str) -> None:
        """Tell a request how its device's operation ended; what gets lost here is made good for by its polling."""
        args = {"imaging_result": result, "claim_id": claim_id}
        if self._mozpool is not None and self._mozpool.driver.remembered(request_id) is not None:
            self._mozpool.driver.handle(request_id, "lifeguard_finished", args)
            return
        with self._database.read() as conn:
            owner = requests.owner(conn, request_id)
        if owner is None:
            return
        if owner[1] == self._own_name and self._mozpool is not None:
            self._mozpool.driver.handle(request_id, "lifeguard_finished", args)
            return
        try:
            self._post(owner[1], f"/api/request/{request_id}/event/lifeguard_finished/", args)
        except LinkError as error:
            if self._mozpool is not None:
                self._mozpool.driver.logbook.add(
                    "request", request_id, f"request {request_id}", "lifeguard", f"{error}; it will ask by itself"
                )

    @staticmethod
    def _away_is_link_error(call: Callable[[LifeGuard], Any], lifeguard: LifeGuard) -> Any:
        try:
            return call(lifeguard)
        except DatabaseAway as error:
            raise LinkError(error.message) from error
