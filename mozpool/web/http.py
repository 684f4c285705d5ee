# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The HTTP server in front of the application."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

from apiflask import APIFlask
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser
from waitress.server import BaseWSGIServer, MultiSocketServer, create_server
from waitress.task import WSGITask

from mozpool.config import Server

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


class _Channel(HTTPChannel):
    task_class = _Task


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
