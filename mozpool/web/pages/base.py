# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What all pages share: how one is made, how it updates itself, and how times are written.

A page and its updates are one address. A browser that has the page asks for it again with the header ``Mozpool-Part``
(``static/js/live.js``) and is answered 304 when nothing has changed, else the template ``parts/NAME.html``, which is
what ``NAME.html`` includes.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, TypeVar
from urllib.parse import unquote

from apiflask import APIBlueprint
from flask import Response, current_app, g, make_response, render_template, request
from markupsafe import Markup, escape

from mozpool import __version__
from mozpool.access.matrix import RULES
from mozpool.access.principal import Kind, Role, principal
from mozpool.apikit import Site, site
from mozpool.db import stamps
from mozpool.db.requests import Request
from mozpool.lifeguard.devicemachine import category
from mozpool.web import forward

blueprint = APIBlueprint("pages", __name__, enable_openapi=False)

PART = "Mozpool-Part"
"""The header with which a page asks for what has changed of it."""

FRESH = 1.0
"""Seconds for which all browsers are shown the same."""

STAMP = "mozpool.stamp"
"""The key of the :class:`Stamp` in the application's extensions."""

ME = forward.ME

MOST_PAGES = 1_000_000
"""The last page of a list that an address may ask for."""

NAVIGATION = (
    ("Overview", "pages.overview"),
    ("Requests", "pages.requests_page"),
    ("Devices", "pages.devices_page"),
    ("Reports", "pages.reports_page"),
    ("Hardware", "pages.relays"),
    ("PXE configs", "pages.pxe_configs"),
    ("Images", "pages.images_page"),
    ("Hardware types", "pages.hardware_types"),
    ("Environments", "pages.environments_page"),
    ("Servers", "pages.server_page"),
    ("Audit", "pages.audit_page"),
    ("API", "pages.api_docs"),
)
"""The pages that every page leads to: title and endpoint."""

T = TypeVar("T")


class Fresh(Generic[T]):
    """A value that is looked up at most every second, however many browsers ask."""

    def __init__(self, site: Site, look: Callable[[], T]) -> None:
        """``look`` finds the value; it may raise DatabaseAway."""
        self._site = site
        self._find = look
        self._lock = threading.Lock()
        self._last: tuple[float, T] | None = None

    def get(self) -> T:
        """The value as it is, or was a second ago."""
        with self._lock:
            now = self._site.clock.monotonic()
            if self._last is None or now - self._last[0] >= FRESH:
                self._last = (now, self._find())
            return self._last[1]

    def forget(self) -> None:
        """Look anew the next time."""
        with self._lock:
            self._last = None


class Stamp(Fresh[str]):
    """Changes whenever anything does that lists of devices, requests, switches or servers show."""

    def __init__(self, site: Site) -> None:
        super().__init__(site, lambda: self._look(site))

    @staticmethod
    def _look(here: Site) -> str:
        with here.database.read() as conn:
            parts = stamps.pool(conn)
            states = [here.presence.state_of(server_id) for server_id in stamps.server_ids(conn)]
        return hashlib.sha1(repr((parts, states)).encode(), usedforsecurity=False).hexdigest()


def live(name: str, look: Callable[[], Mapping[str, Any]], stamp: str | None = None) -> Response:
    """The page ``NAME.html``, or what has changed of it.

    ``look`` finds what the template needs. ``stamp`` is a text that changes whenever the page might look different;
    while it does not, ``look`` is not called for a browser that has the page. Without it, the page's text decides.
    """
    known = None if stamp is None else _etag(stamp)
    is_part = PART in request.headers
    if is_part and known is not None and request.if_none_match.contains_weak(known):
        return _with_etag(Response(status=304), known)
    values = look()
    if stamp is None or is_part:
        part = render_template(f"parts/{name}.html", **values)
        known = known or _etag(part)
        if is_part:
            if request.if_none_match.contains_weak(known):
                return _with_etag(Response(status=304), known)
            return _with_etag(make_response(part), known)
    return _with_etag(make_response(render_template(f"{name}.html", etag=known, **values)), None)


def pool_stamp() -> str:
    """A text that changes when any device, open request, switch or server does. Raises DatabaseAway."""
    found = current_app.extensions[STAMP]
    assert isinstance(found, Stamp)
    return found.get()


def _etag(text: str) -> str:
    """Also names what the same data would look different by: the address, who asks, the day (see :func:`moment`)."""
    day = site().clock.now().date().isoformat()
    who = principal()
    parts = (__version__, request.full_path, f"{me()} {who.role} {who.session}", day, text)
    return hashlib.sha1("\0".join(parts).encode(errors="replace"), usedforsecurity=False).hexdigest()


def _with_etag(said: Response, etag: str | None) -> Response:
    if etag is not None:
        said.set_etag(etag)
    said.cache_control.no_cache = True
    said.cache_control.private = True
    said.vary.add(PART)
    return said


def me() -> str:
    """Who is at the browser: whoever is signed on; in mode open as far as it says. Empty for nobody."""
    who = principal()
    if who.kind is not Kind.OPEN:
        return who.name or ""
    return unquote(request.cookies.get(ME, ""))[:256].strip()


def is_mine(row: Request) -> bool:
    """Whether a request is that of whoever is at the browser: in mode open, by the name that it is for."""
    who = principal()
    return row.assignee == me() if who.kind is Kind.OPEN else who.owns(row.made_by)


def whole(key: str, otherwise: int, *, least: int, most: int) -> int:
    """The number that a key of the address says, or the nearest one allowed; ``otherwise`` when it says none."""
    text = request.args.get(key, "")
    return min(most, max(least, int(text))) if text.isascii() and text.isdigit() and len(text) < 10 else otherwise


@blueprint.app_context_processor
def common() -> dict[str, Any]:
    """What every template may use."""
    here, who = site(), principal()
    return {
        "server": here.settings.server.fqdn,
        "version": __version__,
        "me": me(),
        "caller": who,
        "csrf": g.get("csrf"),
        "is_open": who.kind is Kind.OPEN,
        "now": here.clock.now(),
        "navigation": NAVIGATION if who.role >= Role.VIEWER else (),
    }


@blueprint.app_template_global("may")
def may(endpoint: str, made_by: str | None = None) -> bool:
    """Whether whoever looks may make a call; ``made_by`` is whose the request is that it is about, or the request that
    holds the device that it is about."""
    rule, who = RULES[endpoint], principal()
    return who.role >= rule.least or (rule.holder and who.role >= Role.USER and who.owns(made_by))


@blueprint.app_template_global("may_call")
def may_call(path: str, verb: str = "POST", made_by: str | None = None) -> bool:
    """:func:`may`, by the path of the call."""
    if principal().role is Role.ADMIN:
        return True
    endpoint, _ = current_app.url_map.bind("localhost").match(path.partition("?")[0], method=verb)
    return may(endpoint, made_by)


# --- How templates write things ---


@blueprint.app_template_filter("moment")
def moment(value: datetime) -> str:
    """A time for people: the day only where it is not today's."""
    today = value.astimezone(UTC).date() == site().clock.now().date()
    return value.strftime("%H:%M" if today else "%Y-%m-%d %H:%M")


@blueprint.app_template_filter("iso")
def iso(value: datetime) -> str:
    """A time for programs."""
    return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@blueprint.app_template_filter("span")
def span(value: timedelta) -> str:
    """A duration for people, as ``static/js/times.js`` writes it: "45 s", "12 min", "3 h 5 min", "2 d 4 h"."""
    seconds = int(value.total_seconds())
    if seconds < 60:
        return f"{max(0, seconds)} s"
    for size, name, part, part_name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min")):
        if seconds >= size:
            rest = seconds % size // part
            return f"{seconds // size} {name}" + (f" {rest} {part_name}" if rest else "")
    return f"{seconds // 60} min"


@blueprint.app_template_filter("ticks")
def ticks(text: str) -> Markup:
    """What stands between backticks becomes code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))  # noqa: S704 - escaped before  # nosec B704


@blueprint.app_template_filter("kind")
def kind(state: str, claimed: bool = False) -> str:
    """The class that colours a device's state: its category."""
    return category(state, claimed).replace(" ", "-")


@blueprint.app_template_filter("request_kind")
def request_kind(state: str) -> str:
    """The class that colours a request's state."""
    if state.startswith("failed_"):
        return "failed"
    return {"ready": "in-use", "closed": "out-of-service"}.get(state, "processing")


@blueprint.after_app_request
def show_at_once(said: Response) -> Response:
    """Whoever changes something by a page sees it at once, and not only when what is shown has become too old."""
    if request.method == "POST" and forward.is_wanted():
        for found in current_app.extensions.values():
            if isinstance(found, Fresh):
                found.forget()
    return said
