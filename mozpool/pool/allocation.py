# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The queue and the one function that matches it with free devices.

It runs when a request was stored and after each commit that frees a device. Every run looks at all waiting requests,
in the order of the queue, so nobody who came later gets in between: priority first, raised by waiting, then arrival.
The database decides each claim; a device that somebody else takes meanwhile is a normal loss, and the next
candidate is tried at once.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import Connection, or_, select
from sqlalchemy.sql.elements import ColumnElement

from mozpool.db import devices, images, requests
from mozpool.db.bootconfig import boot_config_hash
from mozpool.db.devices import Candidate, Device
from mozpool.db.engine import Database
from mozpool.db.requests import Request
from mozpool.db.tables import devices as devices_table
from mozpool.db.tables import hardware_types
from mozpool.errors import DatabaseAway
from mozpool.lanes import Lanes
from mozpool.pool.criteria import ANY, Criteria
from mozpool.pool.requestmachine import SHUFFLE_RANGE
from mozpool.statedriver import LOST_CLAIM, Driver

log = logging.getLogger("mozpool.allocation")

CANDIDATES = 6
"""How many free devices are looked at for one request before the database is asked again."""

ROUNDS = 20
"""How often one request may lose all its candidates to others within a run."""

RETRY = 1.0
"""Seconds until the queue is matched again when the database was away."""


def queue_key(created: datetime, priority: int, interval: float) -> int:
    """A request's place in the queue, lowest first, in microseconds.

    Each ``interval`` seconds of waiting weigh as much as one step of priority, so the order of two requests never
    changes while they wait: it is that of their arrival, shifted by their priorities.
    """
    return int((created.timestamp() - priority * interval) * 1_000_000)


def conditions(criteria: Criteria, *, hardware: frozenset[int]) -> list[ColumnElement[bool]]:
    """What a device must meet, as SQL. ``hardware``: ids of the types that the image can be put on; empty = unknown."""
    found: list[ColumnElement[bool]] = []
    if criteria.device != ANY:
        found.append(devices_table.c.name == criteria.device)
    if criteria.environment != ANY:
        same = devices_table.c.environment == criteria.environment
        # Rows of 4.2.1 may have none at all.
        found.append(or_(same, devices_table.c.environment.is_(None)) if criteria.environment == "none" else same)
    if criteria.hardware_type is not None or criteria.hardware_model is not None:
        types = select(hardware_types.c.id)
        if criteria.hardware_type is not None:
            types = types.where(hardware_types.c.type == criteria.hardware_type)
        if criteria.hardware_model is not None:
            types = types.where(hardware_types.c.model == criteria.hardware_model)
        found.append(devices_table.c.hardware_type_id.in_(types))
    if criteria.device == ANY and hardware:
        fits = devices_table.c.hardware_type_id.in_(sorted(hardware))
        found.append(fits | (devices_table.c.image_id == criteria.image_id))
    return found + devices.has_labels(criteria.labels)


@dataclass(order=True)
class _Entry:
    queue_key: int
    criteria: str
    more: int = field(compare=False)
    """How many requests of these criteria were in the queue when the run began."""


class Matcher:
    """Matches the queue with free devices. One run at a time in a process; several servers may run at once."""

    def __init__(self, driver: Driver[Request], database: Database, rng: random.Random, quick: Lanes) -> None:
        """``driver`` is the driver of requests: a claim is part of a request's transition."""
        self._driver = driver
        self._database = database
        self._rng = rng
        self._quick = quick
        self._running = threading.Lock()
        self._tickets = itertools.count(1)
        self._last_run = 0
        self._pending = threading.Lock()
        self.on_match: list[Callable[[int], None]] = []

    def wake(self) -> None:
        """Match soon, from a worker: a device may have become free."""
        if self._pending.acquire(blocking=False):
            self._quick.submit("match", self._woken, "matching")

    def _woken(self) -> None:
        self._pending.release()
        try:
            self.match()
        except DatabaseAway as error:
            log.warning("the queue is not matched yet: %s", error)
            self._driver.timers.set("match", RETRY, self.wake)

    def match(self) -> None:
        """Match all that can be matched, with a look at the queue that begins after this call. Raises DatabaseAway.

        Calls that come while a run is going on share the next one.
        """
        ticket = next(self._tickets)
        with self._running:
            if self._last_run > ticket:
                return
            begun = next(self._tickets)
            if not any(self._run() for _ in range(ROUNDS)):
                self.wake()
            self._last_run = begun

    def _run(self) -> bool:
        """One pass over the queue; False when it has to begin anew because a device came free in the midst of it."""
        with self._database.read() as conn:
            heads = requests.queue_heads(conn)
        queue = [_Entry(head.queue_key, head.criteria, head.waiting) for head in heads]
        heapq.heapify(queue)
        unserved: list[Criteria] = []
        while queue:
            entry = heapq.heappop(queue)
            served, following = self._serve_first(entry, unserved)
            if served is None:
                return False
            if following is not None:
                heapq.heappush(queue, following)
        return True

    def _serve_first(self, entry: _Entry, unserved: list[Criteria]) -> tuple[bool | None, _Entry | None]:
        """Serve the first request of an entry; answer whether (None: begin anew), and the entry that follows."""
        for _ in range(ROUNDS):
            with self._database.read() as conn:
                request = requests.first_in_queue(conn, entry.criteria)
                if request is None:
                    return False, None
                if request.queue_key > entry.queue_key:
                    # Others served the one that we saw: keep the order among all that wait.
                    return False, _Entry(request.queue_key, entry.criteria, entry.more)
                criteria = Criteria.of(request)
                found = self._candidates(conn, request, criteria)
                if found and self._somebody_was_before(conn, found, unserved):
                    return None, None
            if not found:
                unserved.append(criteria)
                return False, None
            if self._claim_one(request, found):
                if entry.more <= 1:
                    return True, None
                with self._database.read() as conn:
                    follower = requests.first_in_queue(conn, entry.criteria)
                if follower is None:
                    return True, None
                return True, _Entry(follower.queue_key, entry.criteria, entry.more - 1)
        return False, None

    def _claim_one(self, request: Request, found: list[Candidate]) -> bool:
        """Claim the first of the candidates that is still free; False when there is none, or the request moved on."""
        for candidate in found:
            args = {"device_id": candidate.id, "device_version": candidate.version, "device": candidate.name}
            try:
                outcome = self._driver.handle(request.id, "device_found", args, attempt=request.attempt, row=request)
            except LOST_CLAIM:
                continue
            if outcome.status != "moved":
                return False
            for tell in self.on_match:
                tell(request.id)
            return True
        return False

    def _candidates(self, conn: Connection, request: Request, criteria: Criteria) -> list[Candidate]:
        """Free devices for a request: first those that hold the wanted image already, then any at random."""
        hardware = images.hardware_for(conn, request.image_id) if request.image_id is not None else frozenset()
        wanted = conditions(criteria, hardware=hardware)
        start = self._rng.randrange(SHUFFLE_RANGE)
        if request.image_can_reuse:
            equal = [
                devices_table.c.image_id == request.image_id,
                devices_table.c.boot_config_hash == boot_config_hash(request.boot_config),
            ]
            found = devices.candidates(conn, wanted + equal, start=start, limit=CANDIDATES)
            if found:
                return found
        return devices.candidates(conn, wanted, start=start, limit=CANDIDATES)

    @staticmethod
    def _somebody_was_before(conn: Connection, found: list[Candidate], unserved: list[Criteria]) -> bool:
        """Whether a candidate also fits a request that was before this one and found nothing: it just came free."""
        ids = [candidate.id for candidate in found]
        for criteria in unserved:
            hardware = images.hardware_for(conn, criteria.image_id) if criteria.image_id is not None else frozenset()
            wanted = [devices_table.c.id.in_(ids), *conditions(criteria, hardware=hardware)]
            if devices.candidates(conn, wanted, start=0, limit=1):
                return True
        return False


# Why a request waits


@dataclass(frozen=True)
class Waiting:
    """Why a request waits, in words, and where it stands."""

    reason: str
    place: int
    """1 = the next one of those that the same devices can serve."""


SHOWN = 3
"""How many holders a reason names."""


def explain(conn: Connection, request: Request) -> Waiting:
    """Tell why a request in the queue has no device yet."""
    criteria = Criteria.of(request)
    place = requests.place_in_queue(conn, request)
    hardware = images.hardware_for(conn, request.image_id) if request.image_id is not None else frozenset()
    matching = devices.matching(conn, conditions(criteria, hardware=hardware))
    return Waiting(_reason(conn, criteria, matching), place)


def count_matching(conn: Connection, criteria: Criteria) -> tuple[int, int]:
    """(free, all) devices that meet the criteria right now."""
    hardware = images.hardware_for(conn, criteria.image_id) if criteria.image_id is not None else frozenset()
    matching = devices.matching(conn, conditions(criteria, hardware=hardware))
    free = sum(1 for device in matching if device.state == "ready" and device.claim_id is None)
    return free, len(matching)


def _reason(conn: Connection, criteria: Criteria, matching: list[Device]) -> str:
    if not matching:
        if criteria.environment != ANY and criteria.environment not in devices.environments(conn):
            return f"environment {criteria.environment} has no devices"
        wanted = criteria.describe().removeprefix("any ")
        if criteria.device == ANY and criteria.image_id is not None:
            return f"there is no {wanted} that the image can be put on"
        return f"there is no {wanted}"
    total = len(matching)
    taken = [device for device in matching if device.claim_id is not None]
    rest = [device for device in matching if device.claim_id is None]
    failed = [device for device in rest if device.state.startswith("failed_")]
    out = [device for device in rest if device.state in ("locked_out", "troubleshooting", "maintenance_mode")]
    busy = [device for device in rest if device not in failed and device not in out and device.state != "ready"]
    parts = []
    if taken:
        names = {device.id: device.name for device in taken}
        holders = [
            f"{names[device_id]} by {assignee} until {expires:%Y-%m-%d %H:%M:%S}"
            for device_id, assignee, expires in requests.holders(conn, list(names))[:SHOWN]
        ]
        more = f" and {len(taken) - SHOWN} more" if len(taken) > SHOWN else ""
        parts.append(f"{len(taken)} taken ({', '.join(holders)}{more})")
    if busy:
        parts.append(f"{len(busy)} being prepared or tested")
    if failed:
        parts.append(f"{len(failed)} failed")
    if out:
        parts.append(f"{len(out)} out of service")
    if not parts:
        return "a matching device has just become free"
    noun = "device" if total == 1 else "devices"
    return f"{total} matching {noun}: {', '.join(parts)}"
