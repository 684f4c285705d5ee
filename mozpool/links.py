# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Calls between the layers, and between imaging servers: direct where both ends are here, else HTTP.

The only part that knows both MozPool and LifeGuard, so that neither needs to know the other.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar
from urllib.parse import quote

import requests as http

from mozpool.bmm import httpio
from mozpool.db import devices, requests
from mozpool.db.engine import Database
from mozpool.errors import DatabaseAway, NotOurs
from mozpool.lifeguard.service import LifeGuard
from mozpool.pool.link import LinkError, Reply
from mozpool.pool.service import MozPool
from mozpool.seen import KEY, event_id
from mozpool.web.peers import Peers

T = TypeVar("T")

HTTP_LIMIT = 8.0
"""Seconds that a call to another imaging server may take in all."""


Post = Callable[[str, str, Mapping[str, Any]], Mapping[str, Any]]
"""POSTs a JSON object to a path of an imaging server (its fqdn); answers its JSON. Raises LinkError."""


def http_post(peers: Peers, server: str, path: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
    """POST by HTTP; the whole call is over within HTTP_LIMIT. Raises LinkError."""
    try:
        content = json.dumps(dict(body)).encode()
        answer = peers.call(server, "POST", f"http://{server}{path}", content, HTTP_LIMIT)
        answer.raise_for_status()
        said = answer.json()
    except httpio.CallError as error:
        raise LinkError(f"imaging server {server} does not answer: {error}") from error
    except (http.RequestException, ValueError, RecursionError) as error:
        raise LinkError(f"imaging server {server} does not answer ({type(error).__name__})") from error
    if answer.status_code != 200 or not isinstance(said, dict):
        raise LinkError(f"imaging server {server} answered {answer.status_code}")
    return said


class Links:
    """Both directions: MozPool's link to LifeGuard, and LifeGuard's to MozPool's requests.

    Each event that is sent has an id (:mod:`mozpool.seen`), derived from the claim that it is about.
    """

    def __init__(self, own_name: str, database: Database, post: Post) -> None:
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

        # Asked in however many attempts: a claim asks its device for a thing once.
        known = {"claim_id": claim_id, "once": True, KEY: event_id("please", claim_id, event)}

        def ask(server: str) -> Reply:
            if server == self._own_name and self._lifeguard is not None:
                answer = self._away_is_link_error(
                    lambda lifeguard: lifeguard.please(device_id, event, args, claim_id=claim_id, once=True),
                    self._lifeguard,
                )
                return Reply(answer.accepted, answer.reason)
            said = self._post(server, f"/api/device/{quote(device, safe='')}/event/{event}/", {**args, **known})
            return Reply(bool(said.get("accepted")), said.get("reason"))

        return self._where_it_is(device_id, server, ask)

    def released(self, server: str, device_id: int, device: str, claim_id: int) -> None:
        """Let LifeGuard look at a device that lost its holder. Raises LinkError."""
        known = {KEY: event_id("released", claim_id)}

        def tell(server: str) -> None:
            if server == self._own_name and self._lifeguard is not None:
                self._lifeguard.released(device_id)
            else:
                self._post(server, f"/api/device/{quote(device, safe='')}/event/released/", known)

        self._where_it_is(device_id, server, tell)

    def _where_it_is(self, device_id: int, server: str, call: Callable[[str], T]) -> T:
        """Call the server that acts on a device: ``server``, as far as was known, or the one that does by now."""
        try:
            return call(server)
        except (LinkError, NotOurs) as error:
            try:
                with self._database.read() as conn:
                    key = devices.key(conn, device_id)
                if key is not None and key.owner != server:
                    return call(key.owner)
            except (DatabaseAway, NotOurs) as second:
                raise LinkError(second.message) from error
            if isinstance(error, NotOurs):
                raise LinkError(error.message) from error
            raise

    # pool → pool

    def claimed(self, server: str, request_id: int, claim_id: int | None) -> None:
        """Tell another imaging server that a request of its own has a device now. Raises LinkError."""
        body = {} if claim_id is None else {KEY: event_id("claimed", claim_id)}
        self._post(server, f"/api/request/{request_id}/event/claimed/", body)

    # lifeguard → pool

    def lifeguard_finished(self, request_id: int, claim_id: int, result: str, attempt: int) -> None:
        """Tell a request how its device's operation ended; what gets lost here is made good for by its polling."""
        args = {"imaging_result": result, "claim_id": claim_id}
        self._tell_request(request_id, "lifeguard_finished", args, attempt)

    def job_ended(self, request_id: int, claim_id: int, reason: str, attempt: int) -> None:
        """Close a request whose job has ended; what gets lost here is made good for as well."""
        self._tell_request(request_id, "job_ended", {"reason": reason, "claim_id": claim_id}, attempt)

    def _tell_request(self, request_id: int, event: str, args: Mapping[str, Any], attempt: int) -> None:
        if self._mozpool is not None and self._mozpool.driver.remembered(request_id) is not None:
            try:
                self._mozpool.driver.handle(request_id, event, args)
                return
            except NotOurs:
                pass
        with self._database.read() as conn:
            owner = requests.owner(conn, request_id)
        if owner is None:
            return
        if owner[1] == self._own_name and self._mozpool is not None:
            self._mozpool.driver.handle(request_id, event, args)
            return
        try:
            known = {KEY: event_id(event, args["claim_id"], attempt)}
            self._post(owner[1], f"/api/request/{request_id}/event/{event}/", {**args, **known})
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
