# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The list of devices."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from flask import Response, current_app, request, url_for

from mozpool.apikit import Site, label, site
from mozpool.db import devices, images, requests
from mozpool.db.devices import Device, Filter
from mozpool.errors import BadInput
from mozpool.lifeguard.api import lifeguard
from mozpool.lifeguard.devicemachine import CATEGORIES, RULES, category
from mozpool.web.pages.base import MOST_PAGES, blueprint, live, me, pool_stamp, whole

SIZES = (50, 100, 500)
SIZE = 100
"""Rows of a page, when the address does not say."""

MOST_LABELS = 500
"""Labels that are offered to choose from."""

BY_HAND = ("ready", "locked_out", "troubleshooting", "new", "start_self_test", "start_maintenance", "maintenance_mode")
"""States that it makes sense to force a device into."""

FILTERS = ("search", "category", "state", "hardware_type", "hardware_model", "environment", "image", "imaging_server")
"""Keys of the address that filter by one value; besides these there are ``holder`` and ``label``."""


@dataclass(frozen=True)
class View:
    """What an address asks for."""

    wanted: Filter
    given: Mapping[str, Any]
    """The keys that say so, as they are to be written into other addresses."""
    order: str = "name"
    backwards: bool = False
    size: int = SIZE
    page: int = 1

    @classmethod
    def of_call(cls) -> View:
        """What the current call asks for. Raises BadInput for what no device can have."""
        args = request.args
        given: dict[str, Any] = {key: args[key].strip() for key in (*FILTERS, "holder") if args.get(key, "").strip()}
        labels = [text.strip() for text in args.getlist("label") if text.strip()]
        if labels:
            given["label"] = labels
        order = args.get("sort", "name")
        backwards = order.startswith("-")
        order = order.removeprefix("-")
        wanted = Filter(
            search=given.get("search"),
            kind=_kind(given.get("category")),
            state=given.get("state"),
            hardware_type=given.get("hardware_type"),
            hardware_model=given.get("hardware_model"),
            environment=given.get("environment"),
            image=given.get("image"),
            imaging_server=given.get("imaging_server"),
            holder=given.get("holder"),
            labels=dict(map(label, labels)),
        )
        size = whole("size", SIZE, least=0, most=max(SIZES) + 1)
        return cls(
            wanted,
            given,
            order=order if order in devices.ORDERS else "name",
            backwards=backwards and order in devices.ORDERS,
            size=size if size in SIZES else SIZE,
            page=whole("page", 1, least=1, most=MOST_PAGES),
        )

    @property
    def is_filtered(self) -> bool:
        """Whether it asks for certain devices only."""
        return bool(self.given)

    @property
    def sort(self) -> str:
        """The order as the address has it, empty for the usual one."""
        return _sort(self.order, self.backwards)

    def address(self, **changes: Any) -> str:
        """The page with some keys changed; the first page unless another one is named. None takes a key away."""
        keys: dict[str, Any] = {**self.given}
        if self.sort:
            keys["sort"] = self.sort
        if self.size != SIZE:
            keys["size"] = self.size
        keys |= changes
        return url_for("pages.devices_page", **{key: value for key, value in keys.items() if value is not None})

    def sorted_by(self, order: str) -> str:
        """The address that sorts by a column, or by it the other way round."""
        return self.address(sort=_sort(order, self.order == order and not self.backwards) or None)

    def direction(self, order: str) -> str:
        """How the table is sorted by a column, as ``aria-sort`` has it."""
        return "none" if order != self.order else "descending" if self.backwards else "ascending"


def _sort(order: str, backwards: bool) -> str:
    sort = f"{'-' if backwards else ''}{order}"
    return "" if sort == "name" else sort


def _kind(name: str | None) -> Any:
    if name is None:
        return None
    if name not in CATEGORIES:
        raise BadInput.value("category", name, f"one of {', '.join(CATEGORIES)}")
    return RULES, name


@dataclass(frozen=True)
class Line:
    """A line of the table."""

    id: int
    name: str
    state: str
    since: datetime | None
    category: str
    image: str | None
    environment: str
    hardware: str | None
    labels: tuple[tuple[str, str], ...]
    request_id: int | None
    holder: str | None
    until: datetime | None
    server: str
    server_state: str
    comments: str
    leaving: bool


@dataclass(frozen=True)
class Shown:
    """What the page shows of the pool."""

    lines: list[Line]
    total: int
    """How many match."""
    page: int
    pages: int
    counts: dict[str, int]
    """Category → how many devices of all are in it."""

    @property
    def stamp(self) -> str:
        """Differs when any of it does."""
        return hashlib.sha1(repr(self).encode(errors="replace"), usedforsecurity=False).hexdigest()


@dataclass
class Known:
    """What pages looked like at which state of the pool: whatever else changes is not worth looking up rows."""

    most: int = 200
    _seen: OrderedDict[str, tuple[str, str]] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def get(self, address: str, pool: str) -> str | None:
        """The stamp of the page when the pool was like this."""
        with self._lock:
            found = self._seen.get(address)
        return found[1] if found is not None and found[0] == pool else None

    def note(self, address: str, pool: str, page: str) -> None:
        """Keep what the page looks like."""
        with self._lock:
            self._seen[address] = (pool, page)
            self._seen.move_to_end(address)
            while len(self._seen) > self.most:
                self._seen.popitem(last=False)


KNOWN = "mozpool.devices_page"
"""The key of the :class:`Known` in the application's extensions."""


@blueprint.get("/devices")
def devices_page() -> Response:
    """The list."""
    view = View.of_call()
    known = current_app.extensions.setdefault(KNOWN, Known())
    pool = pool_stamp()
    shown: Shown | None = None

    def look() -> Mapping[str, Any]:
        return {"view": view, "shown": shown or _look(site(), view), "choices": _choices, "sizes": SIZES}

    stamp = known.get(request.full_path, pool)
    if stamp is None:
        # Most changes of the pool are on other pages of the list, or of what it does not show.
        shown = _look(site(), view)
        stamp = shown.stamp
        known.note(request.full_path, pool, stamp)
    return live("devices", look, stamp=stamp)


def _look(here: Site, view: View) -> Shown:
    page = view.page
    with here.database.read() as conn:

        def read() -> tuple[list[Device], int]:
            start = (page - 1) * view.size
            return devices.page(
                conn, view.wanted, order=view.order, backwards=view.backwards, limit=view.size, offset=start
            )

        rows, total = read()
        pages = max(1, -(-total // view.size))
        if page > pages:
            page = pages
            rows, total = read()
        ids = [row.id for row in rows]
        labels = devices.labels_of(conn, ids) if ids else {}
        held = [row.id for row in rows if row.claim_id is not None]
        holders = {found[0]: found[1:] for found in requests.holders(conn, held)} if held else {}
        counts = devices.numbers(conn, RULES)
    lines = []
    for row in rows:
        holder, until = holders.get(row.id, (None, None))
        lines.append(
            Line(
                id=row.id,
                name=row.name,
                state=row.state,
                since=row.state_since,
                category=category(row.state, row.claim_id is not None),
                image=row.image,
                environment=row.environment,
                hardware=f"{row.hardware_type} {row.hardware_model}" if row.hardware_type else None,
                labels=tuple(sorted(labels.get(row.id, {}).items())),
                request_id=row.request_id,
                holder=holder,
                until=until,
                server=row.owner,
                server_state=here.presence.state_of(row.owner_id),
                comments=row.comments or "",
                leaving=row.leaving,
            )
        )
    return Shown(lines, total, page, pages, {name: counts.get(name, 0) for name in CATEGORIES})


def _choices() -> dict[str, Any]:
    """What the filters and the actions offer."""
    with site().database.read() as conn:
        hardware = images.known_hardware(conn)
        found = images.find(conn)
        labels = devices.all_labels(conn, MOST_LABELS)
        environments = devices.environments(conn)
        servers = images.imaging_server_names(conn)
    machine = lifeguard().driver.machine
    meanings = {name: machine.meaning_of(name) for name in sorted(machine.states)}
    return {
        "categories": CATEGORIES,
        "states": list(meanings),
        "hardware_types": sorted({each.type for each in hardware}),
        "hardware_models": sorted({each.model for each in hardware}),
        "environments": environments,
        "images": [image.name for image in found],
        "to_install": images.on_offer(found),
        "servers": servers,
        "labels": [f"{name}={value}" for name, value in labels],
        "by_hand": [(name, meanings[name]) for name in BY_HAND],
        "by_itself": [(name, meaning) for name, meaning in meanings.items() if name not in BY_HAND],
        "me": me(),
    }
