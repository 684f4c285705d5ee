# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What browsers are told about every answer: what they may do with it, and what not."""

from __future__ import annotations

from apiflask import APIFlask
from flask import Response, request

PAGE = "default-src 'self'; object-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
"""Content-Security-Policy of pages: they load nothing but our own files, and run nothing that stands in them."""

NO_PAGE = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
"""That of everything else, in case that a browser takes it for a page: it may load and run nothing."""

ALWAYS = {
    "X-Content-Type-Options": "nosniff",
    # Forms of our own pages still carry an Origin with it, which "no-referrer" would make null.
    "Referrer-Policy": "same-origin",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), display-capture=(), geolocation=(), microphone=(), payment=(), serial=(), usb=()",
}


def register(app: APIFlask, hsts: int) -> None:
    """Add these headers to all answers; ``hsts`` is ``[server] hsts``, in seconds."""

    @app.after_request
    def say(said: Response) -> Response:
        for name, value in ALWAYS.items():
            said.headers.setdefault(name, value)
        said.headers.setdefault("Content-Security-Policy", PAGE if said.mimetype == "text/html" else NO_PAGE)
        if "Cache-Control" not in said.headers and request.path.startswith("/api/"):
            # Who holds what is nobody else's business, and old a moment later.
            said.cache_control.no_store = True
        if request.is_secure:
            # By plain HTTP browsers take no notice of these.
            said.headers["Cross-Origin-Opener-Policy"] = "same-origin"
            if hsts:
                said.headers["Strict-Transport-Security"] = f"max-age={hsts}"
        return said
