# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The pool as monitors see it: counts from the database.

All servers see the same database. So that sums over all of them are right, each one tells Prometheus only of the
devices, requests and relay boards that it acts on itself. Of those of a server that is not there, the first one tells
that is: by id, so all agree on it as soon as they agree on who is there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from mozpool.apikit import Site
from mozpool.db import devices, relay_boards, requests
from mozpool.db.devices import Group as DeviceGroup
from mozpool.db.relay_boards import RelayBoard
from mozpool.db.requests import END_STATES, QUEUED
from mozpool.db.requests import Group as RequestGroup
from mozpool.errors import DatabaseAway
from mozpool.lifeguard.devicemachine import CATEGORIES, PERSON_NEEDED, category
from mozpool.metrics import Spec
from mozpool.pool.requestmachine import request_machine
from mozpool.web.bounded import Bounded
from mozpool.web.pages import servers
from mozpool.web.pages.servers import ServerRow

MOST_NAMES = 20
"""Devices that need a person and are named."""

UNKNOWN = "unknown"
"""What stands for hardware that nobody described."""

REQUEST_STATES = tuple(name for name in request_machine().states if name not in END_STATES)
BOARD_STATES = ("ok", "suspect", "failed")
SERVER_STATES = {
    servers.UP: "up",
    servers.LOST: "away",
    servers.STOPPED: "stopped",
    servers.NEVER: "never_started",
}
"""What the servers' page calls it, and what monitors do."""

DATABASE_UP = Spec(
    "mozpool_database_up", "gauge", "Whether this server could read the pool from the database just now."
)
DEVICES = Spec(
    "mozpool_devices",
    "gauge",
    "Devices by state, of each server that acts on them.",
    ("server", "hardware_type", "hardware_model", "state"),
)
BY_CATEGORY = Spec(
    "mozpool_devices_by_category",
    "gauge",
    "The same devices by what people call it: in use, idle, processing, failed, out of service.",
    ("server", "hardware_type", "hardware_model", "category"),
)
PERSON = Spec(
    "mozpool_devices_person_needed",
    "gauge",
    "Devices in a failed state that they do not leave by themselves.",
    ("server",),
)
REQUESTS = Spec("mozpool_requests", "gauge", "Requests that have not ended, by state.", ("server", "state"))
QUEUE_LENGTH = Spec("mozpool_queue_length", "gauge", "Requests that wait for a device.", ("server",))
QUEUE_AGE = Spec(
    "mozpool_queue_oldest_age_seconds",
    "gauge",
    "Time since the oldest request that waits was made; 0 when none does.",
    ("server",),
)
BOARDS = Spec("mozpool_relay_boards", "gauge", "Relay boards and other power switches, by state.", ("server", "state"))
SERVER_STATE = Spec(
    "mozpool_server_state",
    "gauge",
    "1 for the state that an imaging server is in, 0 for the others: up, away, stopped, never_started.",
    ("server", "state"),
)
HEARTBEAT_AGE = Spec(
    "mozpool_server_heartbeat_age_seconds",
    "gauge",
    "Time since the last sign of life of an imaging server, as far as the servers' clocks agree.",
    ("server",),
)

SPECS = (
    DATABASE_UP,
    DEVICES,
    BY_CATEGORY,
    PERSON,
    REQUESTS,
    QUEUE_LENGTH,
    QUEUE_AGE,
    BOARDS,
    SERVER_STATE,
    HEARTBEAT_AGE,
)
"""All that is told of the pool; only the first has no label for the server."""


@dataclass(frozen=True)
class Census:
    """The pool at a moment."""

    taken: datetime
    devices: list[DeviceGroup]
    requests: list[RequestGroup]
    boards: list[RelayBoard]
    servers: list[ServerRow]
    person_needed: list[tuple[str, str]]
    """Name and state of the latest devices that need a person."""

    def waited(self, group: RequestGroup) -> float:
        """Seconds since the oldest request of a group was made."""
        return 0.0 if group.first_made is None else max(0.0, (self.taken - group.first_made).total_seconds())


def take(here: Site) -> Census:
    """The pool as it is. Raises DatabaseAway."""
    with here.database.read() as conn:
        return Census(
            taken=here.clock.now(),
            devices=devices.groups(conn),
            requests=requests.groups(conn),
            boards=relay_boards.find(conn),
            servers=servers.look(conn, here),
            person_needed=[(row.name, row.state) for row in devices.latest_in(conn, PERSON_NEEDED, MOST_NAMES)],
        )


class PoolCollector(Collector):
    """What this server tells Prometheus of the pool."""

    def __init__(self, server_id: int, census: Bounded[Census]) -> None:
        """``server_id`` is this server's."""
        self._server_id = server_id
        self._census = census

    def describe(self) -> list[Metric]:
        """Nothing: it needs not be asked before it has something to tell."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The pool as it is, or only that the database is away."""
        try:
            census = self._census.get()
        except DatabaseAway:
            yield DATABASE_UP.gauge({(): 0})
            return
        yield DATABASE_UP.gauge({(): 1})
        yield from tell(census, self._server_id)


def tell(census: Census, server_id: int) -> Iterator[Metric]:
    """What the server of this id tells of the pool."""
    up = {row.id for row in census.servers if row.state == servers.UP} | {server_id}
    first = min(up)
    mine = {row.id: row for row in census.servers if (row.id if row.id in up else first) == server_id}
    names = {row.fqdn for row in mine.values()}

    states: Counter[tuple[str, ...]] = Counter()
    categories: Counter[tuple[str, ...]] = Counter()
    person: Counter[tuple[str, ...]] = Counter({(name,): 0 for name in names})
    for group in census.devices:
        if group.owner_id not in mine:
            continue
        name = mine[group.owner_id].fqdn
        kind = (name, group.hardware_type or UNKNOWN, group.hardware_model or UNKNOWN)
        states[*kind, group.state] += group.number
        # Nothing of a kind is a number too.
        categories.update({(*kind, other): 0 for other in CATEGORIES})
        categories[*kind, category(group.state, group.claimed)] += group.number
        if group.state in PERSON_NEEDED:
            person[name,] += group.number
    yield DEVICES.gauge(states)
    yield BY_CATEGORY.gauge(categories)
    yield PERSON.gauge(person)

    asked: Counter[tuple[str, ...]] = Counter({(name, state): 0 for name in names for state in REQUEST_STATES})
    length: Counter[tuple[str, ...]] = Counter({(name,): 0 for name in names})
    age: dict[tuple[str, ...], float] = {(name,): 0.0 for name in names}
    for alike in census.requests:
        if alike.owner_id not in mine:
            continue
        name = mine[alike.owner_id].fqdn
        asked[name, alike.state] += alike.number
        if alike.state == QUEUED:
            length[name,] += alike.number
            age[name,] = census.waited(alike)
    yield REQUESTS.gauge(asked)
    yield QUEUE_LENGTH.gauge(length)
    yield QUEUE_AGE.gauge(age)

    boards: Counter[tuple[str, ...]] = Counter({(name, state): 0 for name in names for state in BOARD_STATES})
    for board in census.boards:
        if board.imaging_server in names:
            boards[board.imaging_server, board.state] += 1
    yield BOARDS.gauge(boards)

    yield SERVER_STATE.gauge(
        {
            (row.fqdn, state): SERVER_STATES[row.state] == state
            for row in mine.values()
            for state in SERVER_STATES.values()
        }
    )
    yield HEARTBEAT_AGE.gauge(
        {
            (row.fqdn,): max(0.0, (census.taken - row.said.seen).total_seconds())
            for row in mine.values()
            if row.said is not None
        }
    )
