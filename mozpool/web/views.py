# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The HTML pages, and the API's description for people and programs."""

from __future__ import annotations

from apiflask import APIBlueprint
from flask import Response, current_app

from mozpool.apikit import answer

blueprint = APIBlueprint("views", __name__, enable_openapi=False)


@blueprint.get("/api/openapi.json")
def openapi_json() -> Response:
    """The API's description for programs."""
    return answer(current_app.spec)  # type: ignore[attr-defined]
