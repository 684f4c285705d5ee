# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The one place where errors become HTTP answers: JSON for programs, a page for browsers."""

from __future__ import annotations

import logging
import math

from apiflask import APIFlask
from flask import Response, make_response, render_template, request
from werkzeug.exceptions import BadHost, HTTPException

from mozpool.apikit import Elsewhere, answer
from mozpool.errors import DatabaseAway, MozpoolError, NotOurs, TooManyCalls, Unauthorized
from mozpool.web import forward

log = logging.getLogger("mozpool.web")

CODES = {
    400: "bad_input",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    413: "too_large",
    415: "bad_input",
    431: "too_large",
}
"""Stable words for what the framework itself refuses."""

INTERNAL = "an internal error, which was logged"


def register(app: APIFlask) -> None:
    """Have all errors of the application answered here."""

    @app.errorhandler(MozpoolError)
    def domain_error(error: MozpoolError) -> Response:
        if error.status >= 500 and error.status != DatabaseAway.status:
            log.warning("%s %s: %s", request.method, request.path, error.message)
        said = error_answer(error.status, error.code, error.message, error.field)
        if isinstance(error, Unauthorized):
            said.headers["WWW-Authenticate"] = 'Bearer realm="mozpool"'
        elif isinstance(error, TooManyCalls):
            said.headers["Retry-After"] = str(math.ceil(error.seconds))
        return said

    @app.errorhandler(NotOurs)
    def not_ours(error: NotOurs) -> Response:
        return elsewhere(Elsewhere(error.owner))

    @app.errorhandler(Elsewhere)
    def elsewhere(error: Elsewhere) -> Response:
        if forward.is_wanted():
            try:
                return forward.forward(error)
            except forward.NotReached as not_reached:
                return domain_error(not_reached)
        said = answer({}, 302)
        said.headers["Location"] = error.location
        return said

    @app.errorhandler(HTTPException)
    def refused(error: HTTPException) -> Response:
        status = error.code or 500
        if status < 400:
            return make_response(error)
        said = error_answer(status, CODES.get(status, "error"), _sentence(error, status), None)
        for name, value in error.get_headers():
            if name.lower() in ("allow", "retry-after"):
                said.headers[name] = value
        return said

    @app.errorhandler(Exception)
    def broken(error: Exception) -> Response:
        log.error("%s %r broke", request.method, request.path, exc_info=error)
        return error_answer(500, MozpoolError.code, INTERNAL, None)


def _sentence(error: HTTPException, status: int) -> str:
    if status == 404:
        return f"there is no {request.path[:200]}"
    if status == 405:
        return f"{request.method} is not for {request.path[:200]}"
    if status == 413:
        return "the body is too large"
    return error.description or error.name


def error_answer(status: int, code: str, message: str, field: str | None) -> Response:
    """An error in the form that fits the caller."""
    if wants_page():
        said = make_response(render_template("error.html", status=status, message=message), status)
    else:
        said = answer({"error": {"code": code, "message": message, "field": field}}, status)
    if status == 503:
        said.headers["Retry-After"] = str(DatabaseAway.retry_after)
    return said


def wants_page() -> bool:
    """Whether a browser asks for something that is not the API, by a name that pages can have addresses with."""
    if isinstance(request.routing_exception, BadHost):
        return False
    path = request.path
    return not (path == "/api" or path.startswith("/api/")) and request.accept_mimetypes.accept_html
