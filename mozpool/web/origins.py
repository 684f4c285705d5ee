# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Which pages may call the API from a browser: this server's own, the other imaging servers', and configured ones."""

from __future__ import annotations

import threading
from ipaddress import ip_address
from urllib.parse import urlsplit

from apiflask import APIFlask
from flask import Response, g, request

from mozpool.access.matrix import RULES
from mozpool.apikit import Site, done, site
from mozpool.db import images
from mozpool.errors import Forbidden

NAMES_KEPT = 60.0
"""Seconds for which the list of imaging servers is not read again."""


class Origins:
    """Decides on the ``Origin`` header of calls."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._lock = threading.Lock()
        self._servers: frozenset[str] = frozenset()
        self._read: float | None = None

    def is_own(self, origin: str, host: str) -> bool:
        """Whether the page came from this server: by its own names, or by the address that this call went to.

        A foreign name does not become ours by resolving to our address (DNS rebinding).
        """
        settings = self._site.settings
        name, own = _name(origin), _bare(settings.server.fqdn)
        if name is None:
            return False
        return name in (own, _name(settings.public_url)) or (
            name == _bare(host) and (_host(name) == _host(own) or _is_address(_host(name)))
        )

    def is_allowed(self, origin: str) -> bool:
        """Whether pages of this origin may call. Raises DatabaseAway."""
        name = _name(origin)
        if name is None:
            return False
        if name in {_bare(entry) for entry in self._site.settings.server.origins}:
            return True
        return name in self._imaging_servers()

    def _imaging_servers(self) -> frozenset[str]:
        now = self._site.clock.monotonic()
        with self._lock:
            if self._read is None or now - self._read >= NAMES_KEPT:
                with self._site.database.read() as conn:
                    self._servers = frozenset(_bare(name) for name in images.imaging_server_names(conn))
                self._read = now
            return self._servers


def only_own_page() -> None:
    """Raise Forbidden unless the current call, which changes something, was made by a page of this server.

    Browsers say so of every POST: by ``Origin`` or, where a page keeps its address to itself, by ``Sec-Fetch-Site``.
    """
    origin = request.headers.get("Origin", "null")
    if origin == "null":
        is_own = request.headers.get("Sec-Fetch-Site") == "same-origin"
    else:
        is_own = Origins(site()).is_own(origin, request.host)
    if not is_own:
        raise Forbidden("the call does not come from a page of this server")


def _bare(name: str) -> str:
    """HOST or HOST:PORT, without the port that goes without saying."""
    return name.lower().removesuffix(":80").removesuffix(":443")


def _host(name: str) -> str:
    """HOST of HOST:PORT."""
    return name.rsplit(":", 1)[0] if name.rpartition(":")[2].isdigit() else name


def _is_address(host: str) -> bool:
    try:
        ip_address(host.strip("[]"))
    except ValueError:
        return host == "localhost"
    return True


def _name(origin: str) -> str | None:
    """HOST or HOST:PORT of an origin; None when it is none of ours to know (``null``, a file, an extension)."""
    try:
        parts = urlsplit(origin)
    except ValueError:
        return None
    return _bare(parts.netloc) if parts.scheme in ("http", "https") and parts.netloc else None


def _no_foreign_page_acts(origins: Origins) -> None:
    """Raise Forbidden where a GET that changes something comes from a foreign page, as by an ``<img>``: without Origin.

    Browsers say by ``Sec-Fetch-Site`` where a call comes from; boards, old clients and programs do not say it.
    """
    comes_from = request.headers.get("Sec-Fetch-Site")
    rule = RULES.get(request.endpoint or "")
    if comes_from is None or rule is None or not rule.acts or request.method != "GET":
        return
    if comes_from in ("cross-site", "same-site") or not origins.is_own(f"http://{request.host}", request.host):
        raise Forbidden("pages of others may not call this server")


def register(app: APIFlask, site: Site) -> None:
    """Apply the rule to the API's paths."""
    origins = Origins(site)
    allowed_headers = "Content-Type, Idempotency-Key"
    if site.settings.auth_mode != "open":
        allowed_headers += ", Authorization"

    @app.before_request
    def check() -> Response | None:
        origin = request.headers.get("Origin")
        if origin is None:
            _no_foreign_page_acts(origins)
        if origin is None or not request.path.startswith("/api/"):
            return None
        if origins.is_own(origin, request.host):
            return None
        if not origins.is_allowed(origin):
            raise Forbidden(f"pages of {origin[:200]} may not call this server")
        g.foreign_origin = origin
        if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
            return done()
        return None

    @app.after_request
    def permit(said: Response) -> Response:
        if "Origin" in request.headers:
            said.vary.add("Origin")
        origin = g.get("foreign_origin")
        if origin is None:
            return said
        said.headers["Access-Control-Allow-Origin"] = origin
        if request.method == "OPTIONS":
            said.headers["Access-Control-Allow-Methods"] = "GET, POST"
            said.headers["Access-Control-Allow-Headers"] = allowed_headers
            said.headers["Access-Control-Max-Age"] = "600"
        else:
            said.headers["Access-Control-Expose-Headers"] = "Location, Retry-After"
        return said
