# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The HTML pages, and the API's description for people and programs."""

from __future__ import annotations

import re
import threading
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from apiflask import APIBlueprint, APIFlask
from flask import Response, current_app, make_response, render_template, request
from markupsafe import Markup, escape

from mozpool import __version__
from mozpool.apikit import Site, answer, site
from mozpool.bmm.api import hardware
from mozpool.db import devices, relay_boards, requests, servers
from mozpool.lifeguard.devicemachine import CATEGORIES, category
from mozpool.pool.api import mozpool
from mozpool.web.apidocs import sections

blueprint = APIBlueprint("views", __name__, enable_openapi=False)

OVERVIEWS = "mozpool.overview"
"""The key of the :class:`Overviews` in the application's extensions."""

FRESH = 1.0
"""Seconds for which all browsers are shown the same."""

MOST_ROWS = 500
"""Rows that a table shows at most."""


# --- The overview ---


@dataclass(frozen=True)
class DeviceRow:
    """A line of the table of devices."""

    name: str
    state: str
    server_state: str
    category: str
    image: str | None
    environment: str
    holder: str | None
    until: datetime | None
    comments: str | None


@dataclass(frozen=True)
class RequestRow:
    """A line of the table of requests."""

    id: int
    assignee: str
    state: str
    wants: str
    image: str | None
    device: str | None
    until: datetime
    reason: str | None


@dataclass(frozen=True)
class Overview:
    """The pool at a moment."""

    now: datetime
    devices: list[DeviceRow]
    requests: list[RequestRow]
    counts: dict[str, int]
    failed_switches: list[str]
    away: list[str]
    """Imaging servers that are away."""


class Overviews:
    """Looks at the pool at most every second, however many browsers ask."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._lock = threading.Lock()
        self._last: Overview | None = None
        self._taken = 0.0

    def get(self) -> Overview:
        """The pool as it is, or was a second ago. Raises DatabaseAway."""
        with self._lock:
            now = self._site.clock.monotonic()
            if self._last is None or now - self._taken >= FRESH:
                self._last = self._look()
                self._taken = now
            return self._last

    def _look(self) -> Overview:
        now = self._site.clock.now()
        with self._site.database.read() as conn:
            rows = devices.find(conn)
            taken = [row.id for row in rows if row.claim_id is not None]
            holders = {found[0]: found[1:] for found in requests.holders(conn, taken)} if taken else {}
            waiting = requests.find(conn, requests.Filter(), now)
            failed = [board.name for board in relay_boards.find(conn) if board.state == "failed"]
            # One that owns nothing is nobody's loss: it may be long gone.
            owners = [server for server in servers.find(conn) if server.devices]
            away = [server.fqdn for server in owners if self._site.presence.state_of(server.id) != "up"]
        reasons = mozpool().reasons(waiting[:MOST_ROWS])
        shown = []
        here = self._site.presence
        for row in rows:
            holder, until = holders.get(row.id, (None, None))
            kind = category(row.state, row.claim_id is not None)
            server_state = here.state_of(row.imaging_server_id)
            shown.append(
                DeviceRow(
                    row.name, row.state, server_state, kind, row.image, row.environment, holder, until, row.comments
                )
            )
        asked = [
            RequestRow(
                id=row.id,
                assignee=row.assignee,
                state=row.state,
                wants=row.requested_device,
                image=row.image,
                device=row.device,
                until=row.expires,
                reason=reasons.get(row.id, row.reason),
            )
            for row in waiting
        ]
        counts = Counter(row.category for row in shown)
        return Overview(now, shown, asked, {name: counts[name] for name in CATEGORIES}, failed, away)


def _overview() -> dict[str, Any]:
    """What the overview's templates are given."""
    overviews = current_app.extensions[OVERVIEWS]
    assert isinstance(overviews, Overviews)
    overview = overviews.get()
    chosen = request.args.get("category")
    chosen = chosen if chosen in CATEGORIES else None
    shown = [row for row in overview.devices if chosen in (None, row.category)]
    return {
        "overview": overview,
        "chosen": chosen,
        "devices": shown[:MOST_ROWS],
        "more_devices": max(0, len(shown) - MOST_ROWS),
        "requests": overview.requests[:MOST_ROWS],
        "more_requests": max(0, len(overview.requests) - MOST_ROWS),
        "failed_switches": overview.failed_switches,
        "away": overview.away,
        "server": site().settings.server.fqdn,
        "version": __version__,
    }


@blueprint.get("/")
def overview() -> Response:
    """The page."""
    return make_response(render_template("overview.html", **_overview()))


@blueprint.get("/ui/overview/")
def overview_part() -> Response:
    """What changes of it; 304 when nothing did."""
    return _unless_known(render_template("overview_part.html", **_overview()))


# --- Relay boards and other power switches ---


def _relays() -> dict[str, Any]:
    """What the templates of the power switches are given: the failed ones first."""
    order = {"failed": 0, "suspect": 1}
    switches = sorted(hardware().switches(), key=lambda switch: order.get(switch.board.state, 2))
    return {
        "switches": switches[:MOST_ROWS],
        "more_switches": max(0, len(switches) - MOST_ROWS),
        "server": site().settings.server.fqdn,
        "version": __version__,
    }


@blueprint.get("/relays")
def relays() -> Response:
    """The page."""
    return make_response(render_template("relays.html", **_relays()))


@blueprint.get("/ui/relays/")
def relays_part() -> Response:
    """What changes of it; 304 when nothing did."""
    return _unless_known(render_template("relays_part.html", **_relays()))


# --- Imaging servers ---


def _servers() -> dict[str, Any]:
    """What the templates of the imaging servers are given."""
    here = site()
    with here.database.read() as conn:
        found = servers.find(conn)
    return {
        "servers": [(server, here.presence.state_of(server.id)) for server in found],
        "server": here.settings.server.fqdn,
        "version": __version__,
    }


@blueprint.get("/servers")
def server_page() -> Response:
    """The page."""
    return make_response(render_template("servers.html", **_servers()))


@blueprint.get("/ui/servers/")
def server_part() -> Response:
    """What changes of it; 304 when nothing did."""
    return _unless_known(render_template("servers_part.html", **_servers()))


def _unless_known(text: str) -> Response:
    """A part of a page, or 304 when the browser has this very text."""
    said = make_response(text)
    said.add_etag()
    said.cache_control.no_cache = True
    said.make_conditional(request)
    return said


@blueprint.app_template_filter("moment")
def moment(value: datetime) -> str:
    """A time for people: the day only where it is not today's."""
    today = value.date() == site().clock.now().date()
    return value.strftime("%H:%M" if today else "%Y-%m-%d %H:%M")


@blueprint.app_template_filter("ticks")
def ticks(text: str) -> Markup:
    """What stands between backticks becomes code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))  # noqa: S704 - escaped before


@blueprint.after_request
def keep_to_ourselves(said: Response) -> Response:
    """Pages load nothing but our own files, and run nothing that stands in them."""
    if said.mimetype == "text/html":
        said.headers["Content-Security-Policy"] = (
            "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
        )
        said.headers["X-Content-Type-Options"] = "nosniff"
    return said


# --- The API's description ---


def _app() -> APIFlask:
    app = current_app._get_current_object()  # type: ignore[attr-defined]
    assert isinstance(app, APIFlask)
    return app


@blueprint.get("/api/openapi.json")
def openapi_json() -> Response:
    """The API's description for programs."""
    return answer(_app()._get_spec())


@blueprint.get("/api/docs")
def api_docs() -> Response:
    """The API's description for people; it needs nothing from other servers."""
    spec = _app()._get_spec()
    assert isinstance(spec, dict)
    server = site().settings.server.fqdn
    return make_response(
        render_template("apidocs.html", spec=spec, sections=sections(spec, server), server=server, version=__version__)
    )
