# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The page that the pool is watched on."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from flask import Response, current_app, request
from sqlalchemy import Connection

from mozpool.apikit import Site
from mozpool.db import devices, relay_boards, requests
from mozpool.db.devices import Device, Group
from mozpool.db.relay_boards import RelayBoard
from mozpool.db.requests import QUEUED, Request
from mozpool.lifeguard.api import lifeguard
from mozpool.lifeguard.devicemachine import CATEGORIES, PERSON_NEEDED, category
from mozpool.pool.api import mozpool
from mozpool.pool.criteria import Criteria
from mozpool.web.pages.base import blueprint, live, pool_stamp
from mozpool.web.pages.servers import ServerRow
from mozpool.web.pages.servers import look as look_at_servers

OVERVIEW = "mozpool.overview"
"""The key of the :class:`Overviews` in the application's extensions."""

MOST_ROWS = 6
"""Rows that a list shows at most: other pages have all of them."""

WINDOWS = {"24": "24 hours", "168": "7 days", "720": "30 days", "2160": "90 days"}
"""What the charts may show: hours, and how people say it."""


@dataclass
class Kind:
    """Devices of a hardware type, by category."""

    hardware_type: str | None
    hardware_model: str | None
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def name(self) -> str:
        """For people."""
        return " ".join(filter(None, (self.hardware_type, self.hardware_model))) or "unknown hardware"

    @property
    def total(self) -> int:
        """Of all categories."""
        return self.counts.total()

    def bar(self, width: float) -> Iterator[tuple[str, float, float]]:
        """(category, where it begins, how wide it is) of the parts of a bar, none of which is too small to be seen."""
        present = [name for name in CATEGORIES if self.counts[name]]
        least = width / 100
        scale = (width - least * len(present)) / (self.total or 1)
        begin = 0.0
        for name in present:
            part = least + self.counts[name] * scale
            yield name, round(begin, 2), round(part, 2)
            begin += part

    def words(self) -> str:
        """What the bar says."""
        parts = [f"{self.counts[name]} {name}" for name in CATEGORIES if self.counts[name]]
        return f"{self.name}: {', '.join(parts) or 'none'}"


@dataclass(frozen=True)
class Waiting:
    """A request that waits, and how many more want the same."""

    request: Request
    number: int
    wants: str
    reason: str


@dataclass(frozen=True)
class Failed:
    """A device that needs a person."""

    device: Device
    meaning: str
    holder: str | None
    server_state: str


@dataclass(frozen=True)
class Overview:
    """The pool at a moment."""

    kinds: list[Kind]
    total: Kind
    asked: dict[str, int]
    """What open requests are doing, in words → how many."""
    waiting: list[Waiting]
    queued: int
    """How many requests wait."""
    failed: list[Failed]
    all_failed: int
    servers_up: int
    bad_servers: list[ServerRow]
    boards: int
    bad_boards: list[RelayBoard]


class Overviews:
    """The overview, looked up anew when something has changed, however many browsers ask."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._lock = threading.Lock()
        self._last: tuple[str, Overview] | None = None

    def get(self, stamp: str) -> Overview:
        """The overview as it is, or was when ``stamp`` was looked up. Raises DatabaseAway."""
        with self._lock:
            if self._last is None or self._last[0] != stamp:
                self._last = (stamp, look(self._site))
            return self._last[1]


def look(here: Site) -> Overview:
    """The pool as it is. Raises DatabaseAway."""
    with here.database.read() as conn:
        groups = devices.groups(conn)
        states = requests.tally(conn)
        queued = states.get(QUEUED, 0)
        waiting = requests.waiting(conn, MOST_ROWS, each=queued <= MOST_ROWS)
        failed = _failed(conn, here)
        boards = relay_boards.find(conn)
        servers = look_at_servers(conn, here)
    reasons = mozpool().reasons(alike.oldest for alike in waiting)
    kinds = _kinds(groups)
    total = Kind(None, None)
    for kind in kinds:
        total.counts.update(kind.counts)
    return Overview(
        kinds=kinds,
        total=total,
        asked=_asked(states),
        waiting=[
            Waiting(
                request=alike.oldest,
                number=alike.number,
                wants=Criteria.of(alike.oldest).describe(),
                reason=reasons.get(alike.oldest.id, ""),
            )
            for alike in waiting
        ],
        queued=queued,
        failed=failed,
        all_failed=sum(group.number for group in groups if group.state in PERSON_NEEDED),
        servers_up=sum(server.state == "up" for server in servers),
        bad_servers=[server for server in servers if server.is_missed],
        boards=len(boards),
        bad_boards=[board for board in boards if board.state != "ok"],
    )


def _kinds(groups: Iterable[Group]) -> list[Kind]:
    """Sorted by name; hardware that nobody described comes last."""
    found: dict[tuple[str | None, str | None], Kind] = {}
    for group in groups:
        key = (group.hardware_type, group.hardware_model)
        kind = found.setdefault(key, Kind(*key))
        kind.counts[category(group.state, group.claimed)] += group.number
    return sorted(found.values(), key=lambda kind: (kind.hardware_type is None, kind.name))


def _asked(states: dict[str, int]) -> dict[str, int]:
    """What open requests are doing."""
    found: Counter[str] = Counter()
    for state, number in states.items():
        found[{QUEUED: "waiting", "ready": "in use"}.get(state, "being prepared")] += number
    return {name: found[name] for name in ("waiting", "being prepared", "in use") if found[name]}


def _failed(conn: Connection, here: Site) -> list[Failed]:
    """The latest devices that need a person."""
    rows = devices.latest_in(conn, PERSON_NEEDED, MOST_ROWS)
    holders = {found[0]: found[1] for found in requests.holders(conn, [row.id for row in rows])}
    meaning_of = lifeguard().driver.machine.meaning_of
    return [
        Failed(row, meaning_of(row.state), holders.get(row.id), here.presence.state_of(row.owner_id)) for row in rows
    ]


@blueprint.get("/")
def overview() -> Response:
    """The page."""
    stamp = pool_stamp()
    return live("overview", lambda: _look(stamp), stamp)


def _look(stamp: str) -> dict[str, Any]:
    """What the overview's templates are given."""
    overviews = current_app.extensions[OVERVIEW]
    assert isinstance(overviews, Overviews)
    hours = request.args.get("hours")
    return {
        "overview": overviews.get(stamp),
        "categories": CATEGORIES,
        "windows": WINDOWS,
        "hours": hours if hours in WINDOWS else "24",
    }
