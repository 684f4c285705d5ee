# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The HTTP server in front of the application."""

from __future__ import annotations

import json
from ipaddress import ip_address
from typing import Any

from apiflask import APIFlask
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser
from waitress.server import BaseWSGIServer, MultiSocketServer, create_server
from waitress.task import ErrorTask, WSGITask
from waitress.utilities import InternalServerError

from mozpool.config import Server
from mozpool.web.errors import CODES, INTERNAL

MAX_BODY = 2 * 1024 * 1024
"""Bytes of a body that are read at all; the application refuses smaller ones in its own words."""


class _Task(WSGITask):
    """A call whose connection stays open when its answer can't have a body, such as 204.

    Waitress closes after every answer without Content-Length, which these must not have (RFC 9110, 8.6), although
    their end is known.
    """

    def set_close_on_finish(self) -> None:
        bodiless = self.complete and not self.has_body and not self.wrote_header
        asked: HTTPRequestParser = self.request  # type: ignore[assignment]
        wants_close = asked.headers.get("CONNECTION", "").lower() == "close"
        if not bodiless or wants_close or self.version != "1.1":
            super().set_close_on_finish()


class _ErrorTask(ErrorTask):
    """What never gets to the application, since it is no HTTP or too large, is refused in the API's words too."""

    def execute(self) -> None:
        asked: HTTPRequestParser = self.request  # type: ignore[assignment]
        error = asked.error
        assert error is not None
        message = INTERNAL if isinstance(error, InternalServerError) else f"{error.reason}: {error.body}"
        said = {"error": {"code": CODES.get(error.code, "error"), "message": message, "field": None}}
        body = (json.dumps(said, separators=(",", ":")) + "\n").encode()
        self.status = f"{error.code} {error.reason}"
        self.response_headers = [*self.response_headers, ("Content-Type", "application/json")]
        self.set_close_on_finish()
        self.content_length = len(body)
        self.write(body)


class _Channel(HTTPChannel):
    task_class = _Task
    error_task_class = _ErrorTask


def make_server(app: APIFlask, settings: Server) -> BaseWSGIServer | MultiSocketServer:
    """Listen; calls are served as soon as the server's ``run`` is called. Raises OSError when the port is taken."""
    sockets: dict[int, Any] = {}
    server = create_server(
        app,
        map=sockets,
        host=settings.listen,
        port=settings.port,
        threads=settings.threads,
        connection_limit=2000,
        asyncore_use_poll=True,
        channel_request_lookahead=1,
        max_request_body_size=MAX_BODY,
        ident="mozpool",
        **_proxy(settings.listen),
    )
    for listener in sockets.values():
        if isinstance(listener, BaseWSGIServer):
            listener.channel_class = _Channel
    return server


def _proxy(listen: str) -> dict[str, Any]:
    """Behind a proxy on this machine, callers are known by what that says; nobody else is believed."""
    if not _is_loopback(listen):
        return {}
    return {"trusted_proxy": "::1" if ":" in listen else "127.0.0.1", "trusted_proxy_headers": {"x-forwarded-for"}}


def _is_loopback(listen: str) -> bool:
    try:
        return ip_address(listen).is_loopback
    except ValueError:
        return listen == "localhost"
