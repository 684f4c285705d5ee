# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What monitors ask: metrics for Prometheus, whether this server lives and is ready, and how the pool is doing."""

from __future__ import annotations

from collections import Counter
from typing import Any

from apiflask import APIBlueprint
from flask import Response, current_app, request
from prometheus_client.exposition import choose_encoder
from pydantic import BaseModel, Field

from mozpool.apikit import Site, answer, endpoint
from mozpool.db import schema
from mozpool.db.requests import QUEUED
from mozpool.errors import DatabaseAway
from mozpool.lifeguard.devicemachine import CATEGORIES, PERSON_NEEDED, category
from mozpool.web.bounded import Bounded
from mozpool.web.census import BOARD_STATES, SERVER_STATES, Census, PoolCollector, take
from mozpool.web.pages import servers
from mozpool.web.services import Services

blueprint = APIBlueprint("monitoring", __name__, tag="Monitoring", url_prefix="/api")
scraped = APIBlueprint("scraped", __name__, enable_openapi=False)

MONITORING = "mozpool.monitoring"
"""The key of the :class:`Monitoring` in the application's extensions."""

QUIET = frozenset({"/api/health", "/api/ready"})
"""Paths whose calls are not logged while all is well: somebody asks every few seconds."""

CENSUS_FRESH = 5.0
"""Seconds for which all monitors are told the same of the pool."""

CENSUS_LIMIT = 5.0
"""Seconds after which a scrape goes on without the pool: Prometheus itself waits for ten."""

READY_FRESH = 1.0
"""Seconds for which the database is not asked again whether it is there."""

READY_LIMIT = 2.0
"""Seconds that the database may take for this server to count as ready."""


class Monitoring:
    """What monitors are told. Methods may be called from any thread and never take long."""

    def __init__(self, services: Services, site: Site) -> None:
        """It begins to look when it is asked."""
        self._services = services
        self._served: str | None = None
        clock = services.clock
        self.census = Bounded(clock, lambda: take(site), "census", fresh=CENSUS_FRESH, limit=CENSUS_LIMIT)
        self._database = Bounded(clock, self._look, "readiness", fresh=READY_FRESH, limit=READY_LIMIT)
        self.registry = services.metrics.registry
        self.registry.register(PoolCollector(services.server_id, self.census))

    def stuck(self) -> list[str]:
        """What is stuck, in words."""
        return [
            f"{label or thread} for {late:.0f} s" for (thread, label), late in self._services.watchdog.stuck().items()
        ]

    def not_ready(self) -> list[str]:
        """Why this server should be sent no calls; nothing when it is ready for them."""
        if self._services.stopping():
            return ["this server stops"]
        reasons = []
        try:
            reasons += self._database.get()
        except DatabaseAway as error:
            reasons.append(error.message)
        trouble = self._services.presence.trouble()
        return reasons if trouble is None else [*reasons, trouble]

    def _look(self) -> list[str]:
        """What is wrong with the tables."""
        revision = schema.current(self._services.database)
        if revision is None or revision != self._served:
            if not schema.serves(revision):
                return [f"the tables are of revision {revision}: run mozpool-db upgrade, or a newer Mozpool"]
            self._served = revision
        return []


def monitoring() -> Monitoring:
    """What the current application's monitors are told."""
    found = current_app.extensions[MONITORING]
    assert isinstance(found, Monitoring)
    return found


# --- Prometheus ---


@scraped.get("/metrics/")
def metrics() -> Response:
    """All metrics, in Prometheus's own format or, where it is asked for, OpenMetrics."""
    encode, content_type = choose_encoder(request.headers.get("Accept", ""))
    said = Response(encode(monitoring().registry), content_type=content_type)
    said.cache_control.no_store = True
    return said


# --- One server ---


class Health(BaseModel):
    """The drivers of this server make progress."""

    live: bool = Field(description="Always true: what does not live answers 503, or not at all.")


class Readiness(BaseModel):
    """This server can be sent calls."""

    ready: bool = Field(description="Always true: a server that is not ready answers 503.")


@endpoint(blueprint, "/health/", answers=Health)
def health() -> Response:
    """Whether this server's process lives: its drivers make progress.

    The database is not asked. When something is stuck, the answer is 503 and `stuck` says what: restart the process
    if that lasts. `[server] heartbeat_file` tells the same without HTTP.
    """
    stuck = monitoring().stuck()
    if stuck:
        return _refusal("stuck", f"stuck beyond its time limit: {'; '.join(stuck)}", {"live": False, "stuck": stuck})
    return _at_once(answer({"live": True}))


@endpoint(blueprint, "/ready/", answers=Readiness)
def ready() -> Response:
    """Whether a load balancer should send calls to this server.

    It is ready when it reaches the database, the tables are those that it needs, the other servers see its signs of
    life, and it does not stop. Otherwise the answer is 503, and `reasons` has sentences that say why. It comes within
    two seconds.
    """
    reasons = monitoring().not_ready()
    if reasons:
        return _refusal("not_ready", "; ".join(reasons), {"ready": False, "reasons": reasons})
    return _at_once(answer({"ready": True}))


def _refusal(code: str, message: str, more: dict[str, Any]) -> Response:
    said = answer({**more, "error": {"code": code, "message": message, "field": None}}, 503)
    said.headers["Retry-After"] = str(DatabaseAway.retry_after)
    return _at_once(said)


def _at_once(said: Response) -> Response:
    said.cache_control.no_store = True
    return said


# --- The pool ---


class DeviceCounts(BaseModel):
    """How many devices there are, by what people call it."""

    total: int
    in_use: int
    idle: int
    processing: int
    failed: int
    out_of_service: int
    person_needed: int = Field(description="Failed ones that do not heal by themselves.")
    away: int = Field(description="Those whose imaging server is not there, whatever their state.")


class RequestCounts(BaseModel):
    """How many requests have not ended."""

    open: int
    waiting: int = Field(description="Those that wait for a device.")
    longest_wait: float = Field(description="Seconds since the oldest of these was made; 0 when none waits.")


class ServerCounts(BaseModel):
    """Imaging servers, as the one that answers knows them."""

    total: int
    up: int
    away: int
    stopped: int
    never_started: int
    missing: list[str] = Field(description="Names of those that are not up and have devices or requests.")


class BoardCounts(BaseModel):
    """Relay boards and other power switches."""

    total: int
    ok: int
    suspect: int
    failed: int
    failing: list[str] = Field(description="Names of those that have failed.")


class FailedDevice(BaseModel):
    """A device that needs a person."""

    name: str
    state: str


class PoolStatus(BaseModel):
    """How the pool is doing, for monitors."""

    devices: DeviceCounts
    requests: RequestCounts
    servers: ServerCounts
    relay_boards: BoardCounts
    person_needed: list[FailedDevice] = Field(description="The latest devices that need a person, at most 20.")


@endpoint(blueprint, "/pool/status/", answers=PoolStatus)
def pool_status() -> Response:
    """How the whole pool is doing, in numbers; no more than five seconds old. `mozpool check` asks this."""
    return answer(status(monitoring().census.get()))


def status(census: Census) -> dict[str, Any]:
    """A census as the API tells it."""
    counts: Counter[str] = Counter()
    states = {row.id: row.state for row in census.servers}
    person = away = 0
    for group in census.devices:
        counts[category(group.state, group.claimed)] += group.number
        person += group.number if group.state in PERSON_NEEDED else 0
        away += group.number if states.get(group.owner_id) != servers.UP else 0
    queued = [group for group in census.requests if group.state == QUEUED]
    there = Counter(SERVER_STATES[row.state] for row in census.servers)
    boards = Counter(board.state for board in census.boards)
    return {
        "devices": {
            "total": counts.total(),
            **{name.replace(" ", "_"): counts[name] for name in CATEGORIES},
            "person_needed": person,
            "away": away,
        },
        "requests": {
            "open": sum(group.number for group in census.requests),
            "waiting": sum(group.number for group in queued),
            "longest_wait": round(max((census.waited(group) for group in queued), default=0.0), 1),
        },
        "servers": {
            "total": len(census.servers),
            **{state: there[state] for state in SERVER_STATES.values()},
            "missing": [row.fqdn for row in census.servers if row.is_missed],
        },
        "relay_boards": {
            "total": len(census.boards),
            **{state: boards[state] for state in BOARD_STATES},
            "failing": [board.name for board in census.boards if board.state == "failed"],
        },
        "person_needed": [{"name": name, "state": state} for name, state in census.person_needed],
    }
