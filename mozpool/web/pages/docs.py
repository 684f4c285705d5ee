# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The API's description, for people and for programs."""

from __future__ import annotations

from apiflask import APIFlask
from flask import Response, current_app, make_response, render_template

from mozpool.apikit import answer, site
from mozpool.web.apidocs import sections
from mozpool.web.pages.base import blueprint


def _spec() -> dict[str, object]:
    app = current_app._get_current_object()  # type: ignore[attr-defined]
    assert isinstance(app, APIFlask)
    spec = app._get_spec()
    assert isinstance(spec, dict)
    return spec


@blueprint.get("/api/openapi.json")
def openapi_json() -> Response:
    """The API's description for programs."""
    return answer(_spec())


@blueprint.get("/api/docs")
def api_docs() -> Response:
    """The API's description for people; it needs nothing from other servers."""
    spec = _spec()
    return make_response(
        render_template("apidocs.html", spec=spec, sections=sections(spec, site().settings.server.fqdn))
    )
