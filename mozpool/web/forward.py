# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Calls that pages make of their own server and that belong to another one: done there, and answered here.

A browser that followed a redirect would call another origin, and repeat a POST as it likes. Pages say with the header
``Mozpool-Forward`` that this server is to make the call instead.
"""

from __future__ import annotations

import requests as http
from flask import Response, g, request

from mozpool.access.principal import principal
from mozpool.apikit import Elsewhere
from mozpool.bmm import httpio
from mozpool.errors import MozpoolError
from mozpool.web.peers import peers

HEADER = "Mozpool-Forward"

CALLER = "Mozpool-Caller"
"""The header that says from which address the call came that is forwarded."""

ME = "mozpool_me"
"""The cookie that says who is at the browser."""

LIMIT = 25.0
"""Seconds that a call may take in all: somewhat less than pages wait."""


class NotReached(MozpoolError):
    """The imaging server that the call belongs to does not answer (502)."""

    status = 502
    code = "server_away"


def is_wanted() -> bool:
    """Whether the current call asks for it."""
    return HEADER in request.headers


def is_forwarded() -> bool:
    """Whether another server has answered the current call."""
    return bool(g.get("is_forwarded"))


def forward(elsewhere: Elsewhere) -> Response:
    """Make the current call on the server that it belongs to, for who makes it. Raises NotReached."""
    headers = {CALLER: request.remote_addr or ""}
    if ME in request.cookies:
        headers["Cookie"] = f"{ME}={request.cookies[ME]}"
    try:
        said = peers().call(
            elsewhere.server,
            request.method,
            elsewhere.location,
            request.get_data(),
            LIMIT,
            on_behalf=principal(),
            headers=headers,
        )
    except httpio.CallError as error:
        why = str(error)
    except http.RequestException as error:
        why = type(error).__name__
    else:
        g.is_forwarded = True
        return _same(said)
    raise NotReached(f"imaging server {elsewhere.server}, which it belongs to, does not answer: {why}")


def _same(said: http.Response) -> Response:
    """The other server's answer as this server's."""
    kind = said.headers.get("Content-Type", "application/json")
    answer = Response(said.content, said.status_code, content_type=kind)
    if said.status_code == 204:
        del answer.headers["Content-Type"]
    return answer
