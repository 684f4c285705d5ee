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
import math
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import Connection, bindparam, false, not_, or_, select
from sqlalchemy.sql.elements import ColumnElement

from mozpool.clock import Event
from mozpool.db import devices, images, requests, teams
from mozpool.db.bootconfig import boot_config_hash
from mozpool.db.devices import SHUFFLE_RANGE, Candidate, Device, FreeSearch
from mozpool.db.engine import Database
from mozpool.db.images import Fits
from mozpool.db.requests import Request
from mozpool.db.spelling import exactly
from mozpool.db.tables import devices as devices_table
from mozpool.db.tables import hardware_types
from mozpool.db.teams import Team
from mozpool.errors import DatabaseAway
from mozpool.lanes import Lanes, Soon
from mozpool.pool.criteria import ANY, Criteria
from mozpool.statedriver import LOST_CLAIM, Driver

log = logging.getLogger("mozpool.allocation")

CANDIDATES = 8
"""How many free devices are looked at before the database is asked again."""

LOOK = 50
"""As many waiting requests are read at once; a longer queue is looked at by what its requests want."""

ROUNDS = 20
"""How often a call may lose claims to others, or find that a run has to begin anew, before it is left for later."""

SEARCHES = 500
"""How many searches for free devices are kept ready."""

_ALSO: Mapping[str, tuple[ColumnElement[bool], ...]] = {
    "holding": (
        devices_table.c.image_id == bindparam("held_image"),
        devices_table.c.boot_config_hash == bindparam("held_config"),
    ),
    "among": (devices_table.c.id.in_(bindparam("these", expanding=True)),),
    "any": (),
}
"""Kinds of searches, and what their devices must meet besides the criteria."""

MATCH_LANE = "match"
"""The lane that matching runs in when it was not asked for by a call."""

CLAIM_LIMIT = 5.0
"""Seconds to wait for a claim that another thread makes."""

RETRY = 1.0
"""Seconds until the queue is matched again when the database was away."""


def queue_key(created: datetime, priority: int, interval: float) -> int:
    """A request's place in the queue, lowest first, in microseconds.

    Each ``interval`` seconds of waiting weigh as much as one step of priority, so the order of two requests never
    changes while they wait: it is that of their arrival, shifted by their priorities.
    """
    return int((created.timestamp() - priority * interval) * 1_000_000)


def conditions(criteria: Criteria, fits: Fits) -> list[ColumnElement[bool]]:
    """What a device must meet, as SQL. ``fits``: what the image can be had on."""
    found: list[ColumnElement[bool]] = []
    if criteria.device != ANY:
        found.append(exactly(devices_table.c.name, criteria.device))
    if criteria.environment != ANY:
        found.append(_is_in(criteria.environment))
    if criteria.environments is not None:
        found.append(or_(false(), *(_is_in(environment) for environment in sorted(criteria.environments))))
    if criteria.hardware_type is not None or criteria.hardware_model is not None:
        types = select(hardware_types.c.id)
        if criteria.hardware_type is not None:
            types = types.where(exactly(hardware_types.c.type, criteria.hardware_type))
        if criteria.hardware_model is not None:
            types = types.where(exactly(hardware_types.c.model, criteria.hardware_model))
        found.append(devices_table.c.hardware_type_id.in_(types))
    if fits.hosted:
        found += [devices.HOSTED, devices_table.c.hardware_type_id.in_(sorted(fits.hardware))]
    elif criteria.device == ANY and fits.hardware:
        on_it = devices_table.c.hardware_type_id.in_(sorted(fits.hardware))
        found.append(on_it | (devices_table.c.image_id == criteria.image_id))
    elif criteria.image_id is not None:
        found.append(not_(devices.HOSTED))
    return found + devices.has_labels(criteria.labels)


def _is_in(environment: str) -> ColumnElement[bool]:
    same = exactly(devices_table.c.environment, environment)
    # Rows of 4.2.1 may have none at all.
    return or_(same, devices_table.c.environment.is_(None)) if environment == "none" else same


@dataclass(eq=False)
class _Claim:
    """A request and the device that it is to claim."""

    request: Request
    device: Candidate
    done: Event
    """Set when it is made, or never will be."""
    made: bool = False


@dataclass
class _Plan:
    """What a run has seen and decided so far."""

    unserved: dict[str, Criteria] = field(default_factory=dict)
    """Criteria, by key, of requests that found nothing: nobody behind them may get a device that fits them."""
    found: dict[tuple[str, str], list[Candidate]] = field(default_factory=dict)
    claims: dict[int, _Claim] = field(default_factory=dict)
    """By request id."""
    taken: set[int] = field(default_factory=set)
    """Devices that are planned for somebody, now or by an earlier run."""
    away: frozenset[int] = frozenset()
    """Imaging servers whose devices are not handed out, and whose requests get none: nobody would go on with them."""
    room: dict[int, float] = field(default_factory=dict)
    """Team id → how many more devices it may have, for those whose requests were looked at."""

    @property
    def full(self) -> list[int]:
        """The teams that may not have any more."""
        return [team_id for team_id, room in self.room.items() if room <= 0]


class Matcher:
    """Matches the queue with free devices.

    A run plans for all that wait, one run at a time in a process; the claims themselves, each a transaction of its own,
    are made side by side, by the threads that wait for them. Several servers may do all this at once.
    """

    def __init__(
        self,
        driver: Driver[Request],
        database: Database,
        rng: random.Random,
        quick: Lanes,
        *,
        away: Callable[[], frozenset[int]] = frozenset,
    ) -> None:
        """``driver`` is the driver of requests: a claim is part of a request's transition.

        ``away`` tells the ids of the imaging servers whose devices nobody prepares at the moment.
        """
        self.away = away
        self._driver = driver
        self._database = database
        self._rng = rng
        self._planning = driver.clock.lock()
        self._tickets = itertools.count(1)
        self._last_run = 0
        self._soon = Soon(quick, MATCH_LANE, self._woken, "matching")
        self._searches: dict[tuple[str, Fits, str, frozenset[int]], FreeSearch] = {}
        self._fits: dict[int, tuple[float, Fits]] = {}
        self._teams: dict[int, tuple[float, Team | None]] = {}
        # How many calls wait for a request. With a lock of its own: who calls during a run is seen by that run.
        self._calling = threading.Lock()
        self._callers: Counter[int] = Counter()
        # Guarded by the lock of planning: planned claims, those that are being made, and the devices of both.
        self._planned: dict[int, _Claim] = {}
        self._claiming: dict[int, _Claim] = {}
        self._reserved: set[int] = set()

    def wake(self) -> None:
        """Match soon, from a worker: a device may have become free."""
        self._soon.ask()

    def _woken(self) -> None:
        try:
            self.match()
        except DatabaseAway as error:
            log.warning("the queue is not matched yet: %s", error)
            self._driver.timers.set("match", RETRY, self.wake)

    def match(self, request_id: int | None = None) -> None:
        """Match all that can be matched, with a look at the queue that begins after this call.

        Calls that come while a run is going on share the next one. When this returns, ``request_id`` has its device, or
        had to go without. Raises DatabaseAway.
        """
        if request_id is not None:
            with self._calling:
                self._callers[request_id] += 1
        try:
            for _ in range(ROUNDS):
                if not self._match_once(request_id):
                    return
            self.wake()
        finally:
            if request_id is not None:
                self._leave(request_id)

    def _leave(self, request_id: int) -> None:
        """A caller goes; what somebody has planned for it since its last look is for another run to plan anew."""
        with self._planning, self._calling:
            self._callers[request_id] -= 1
            if self._callers[request_id]:
                return
            del self._callers[request_id]
            left = self._planned.pop(request_id, None)
            if left is not None:
                self._reserved.discard(left.device.id)
        if left is not None:
            self.wake()

    def _match_once(self, request_id: int | None) -> bool:
        """Plan, unless somebody has planned since the call, and claim; answer whether a planned claim was not made."""
        ticket = next(self._tickets)
        with self._planning:
            if self._last_run < ticket:
                begun = next(self._tickets)
                self._planned.update(self._plan())
                self._last_run = begun
            with self._calling:
                mine = [key for key in self._planned if key == request_id or not self._callers[key]]
            # Its own first: somebody waits for the answer.
            claims = [self._planned.pop(key) for key in sorted(mine, key=lambda key: key != request_id)]
            self._claiming.update((claim.request.id, claim) for claim in claims)
            others = self._claiming.get(request_id) if request_id is not None and request_id not in mine else None
        try:
            for claim in claims:
                if not self._make(claim):
                    break  # whoever has lost its device is before those that come now: all is planned anew
        finally:
            for claim in claims:
                self._done(claim)
        if others is not None and self._driver.clock.wait(others.done, CLAIM_LIMIT):
            claims.append(others)
        # Whatever became of its request: the device was kept from others meanwhile, who must get their turn now.
        return not all(claim.made for claim in claims)

    def _make(self, claim: _Claim) -> bool:
        """Make a planned claim, unless the request has gone on; False when the device was lost to others."""
        request = claim.request
        try:
            outcome = self._driver.handle(
                request.id,
                "device_found",
                {"device": claim.device},
                attempt=request.attempt,
                row=request,
                for_others=True,
            )
            claim.made = outcome.status == "moved"
        except LOST_CLAIM:
            return False
        finally:
            self._done(claim)
        return True

    def _done(self, claim: _Claim) -> None:
        """Reserve nothing for this claim any more; calls that come after the first change nothing."""
        with self._planning:
            if not claim.done.is_set():
                self._reserved.discard(claim.device.id)
                if not claim.made:
                    self._last_run = 0  # its plan is no good any more: whoever has called meanwhile plans anew
                del self._claiming[claim.request.id]
                claim.done.set()

    def _plan(self) -> dict[int, _Claim]:
        """Who is to claim what. Devices and requests whose claims are on their way are left alone."""
        for _ in range(ROUNDS):
            plan = _Plan(taken=set(self._reserved), away=self.away())
            with self._database.read() as conn:
                if all(self._serve(conn, request, plan) for request in self._queue(conn, plan)):
                    self._reserved = plan.taken
                    return plan.claims
        # Devices come free faster than they can be planned for.
        self._driver.timers.set("match", RETRY, self.wake)
        return {}

    def _queue(self, conn: Connection, plan: _Plan) -> Iterator[Request]:
        """The waiting requests in order.

        Of a long queue, requests are left out as soon as an equal one before them has found nothing.
        """
        first = requests.first_in_queue(conn, limit=LOOK)
        if len(first) < LOOK:
            yield from first
            return
        groups = [self._group(conn, head.criteria, plan) for head in requests.queue_heads(conn)]
        yield from heapq.merge(*groups, key=lambda request: (request.queue_key, request.id))

    @staticmethod
    def _group(conn: Connection, criteria: str, plan: _Plan) -> Iterator[Request]:
        """The waiting requests with equal criteria, in order, as long as they find something."""
        last: Request | None = None
        while criteria not in plan.unserved:
            some = requests.first_in_queue(
                conn, limit=CANDIDATES, criteria=criteria, behind=last, without_teams=plan.full
            )
            yield from some
            if len(some) < CANDIDATES:
                return
            last = some[-1]

    def _serve(self, conn: Connection, request: Request, plan: _Plan) -> bool:
        """Plan a claim for a request, if there is a device; False when the run has to begin anew."""
        if request.id in self._claiming or request.id in self._planned or request.owner_id in plan.away:
            return True
        team = self._team_of(conn, request.team_id)
        if request.team_id is not None and not self._has_room(conn, request.team_id, team, plan):
            return True
        criteria = Criteria.of(request, None if team is None else team.environments)
        if criteria.key in plan.unserved:
            return True
        wish = (criteria.key, boot_config_hash(request.boot_config))
        found = [candidate for candidate in plan.found.get(wish, ()) if candidate.id not in plan.taken]
        if not found:
            some = self._candidates(conn, request, criteria, plan)
            if some and self._somebody_was_before(conn, some, plan):
                return False
            found = plan.found[wish] = some
        if found:
            plan.claims[request.id] = _Claim(request, found[0], self._driver.clock.event())
            plan.taken.add(found[0].id)
            if team is not None:
                plan.room[team.id] -= 1
        else:
            plan.unserved[criteria.key] = criteria
        return True

    @staticmethod
    def _has_room(conn: Connection, team_id: int, team: Team | None, plan: _Plan) -> bool:
        """Whether a team may have one more device, as far as that can be planned: its claim counts again.

        One that was deleted may have none.
        """
        if team is None:
            plan.room[team_id] = 0
        elif team_id not in plan.room:
            plan.room[team_id] = math.inf if team.max_devices is None else team.max_devices - teams.held(conn, team_id)
        return plan.room[team_id] > 0

    def _candidates(self, conn: Connection, request: Request, criteria: Criteria, plan: _Plan) -> list[Candidate]:
        """Free devices for a request: first those that hold the wanted image already, then any at random."""
        fits = self._fits_of(conn, request.image_id)
        start = self._rng.randrange(SHUFFLE_RANGE)
        # Those that are taken are few, and left out here: a search of their own would be made for each set of them.
        taken = plan.taken
        limit = CANDIDATES + len(taken)
        found: list[Candidate] = []
        if request.image_can_reuse:
            equal = {"held_image": request.image_id, "held_config": boot_config_hash(request.boot_config)}
            found = self._search(criteria, fits, plan.away, "holding").find(conn, start=start, limit=limit, **equal)
            found = [candidate for candidate in found if candidate.id not in taken]
        if not found:
            found = self._search(criteria, fits, plan.away).find(conn, start=start, limit=limit)
            found = [candidate for candidate in found if candidate.id not in taken]
        return found[:CANDIDATES]

    def _search(self, criteria: Criteria, fits: Fits, away: frozenset[int], kind: str = "any") -> FreeSearch:
        """The search for devices that meet criteria, of one of the kinds of _ALSO."""
        key = (criteria.key, fits, kind, away)
        found = self._searches.get(key)
        if found is None:
            if len(self._searches) >= SEARCHES:
                self._searches.clear()
            wanted = [*conditions(criteria, fits), *_ALSO[kind]]
            if fits.hosted:
                wanted.append(devices.PROVEN)
            if away:
                wanted.append(devices.owner_column.not_in(sorted(away)))
            found = self._searches[key] = FreeSearch(wanted)
        return found

    def _team_of(self, conn: Connection, team_id: int | None) -> Team | None:
        """A team, at most a second old."""
        if team_id is None:
            return None
        now = self._driver.clock.monotonic()
        known = self._teams.get(team_id)
        if known is None or now - known[0] > 1.0:
            known = self._teams[team_id] = (now, teams.get(conn, team_id))
        return known[1]

    def _fits_of(self, conn: Connection, image_id: int | None) -> Fits:
        """What an image can be had on, at most a second old."""
        if image_id is None:
            return images.NOTHING_KNOWN
        now = self._driver.clock.monotonic()
        known = self._fits.get(image_id)
        if known is None or now - known[0] > 1.0:
            known = self._fits[image_id] = (now, images.fits(conn, image_id))
        return known[1]

    def _somebody_was_before(self, conn: Connection, found: list[Candidate], plan: _Plan) -> bool:
        """Whether a candidate also fits a request that was before this one and found nothing: it just came free."""
        ids = [candidate.id for candidate in found]
        for criteria in plan.unserved.values():
            # As _candidates has it, or the two would disagree in every round.
            fits = self._fits_of(conn, criteria.image_id)
            if self._search(criteria, fits, plan.away, "among").find(conn, start=0, limit=1, these=ids):
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


@dataclass(frozen=True)
class Match:
    """What a request could get, if it were made now."""

    matching: int
    """Devices that match, whatever their state."""
    free: int
    """Those of them that could be had at once."""
    reason: str | None
    """Why none could be; None when one could."""


def preview(conn: Connection, criteria: Criteria, away: frozenset[int] = frozenset()) -> Match:
    """Count the devices that could serve a request with these criteria."""
    fitting = _fitting(conn, criteria)
    there = [devices.owner_column.not_in(sorted(away))] if away else []
    free = devices.count(conn, [*fitting, devices.FREE, *there])
    return Match(devices.count(conn, fitting), free, None if free else _reason(conn, criteria, fitting, away))


def explain(conn: Connection, request: Request, away: frozenset[int] = frozenset()) -> Waiting:
    """Tell why a request in the queue has no device yet; ``away`` are ids of imaging servers that are away."""
    place = requests.place_in_queue(conn, request)
    if request.owner_id in away:
        return Waiting(f"its imaging server {request.owner} is away", place)
    team = None if request.team_id is None else teams.get(conn, request.team_id)
    if request.team_id is not None and team is None:
        return Waiting("its team was deleted", place)
    if team is not None and team.max_devices is not None and teams.held(conn, team.id) >= team.max_devices:
        return Waiting(f"team {team.name} has all the devices that it may have at a time: {team.max_devices}", place)
    criteria = Criteria.of(request, None if team is None else team.environments)
    return Waiting(_reason(conn, criteria, _fitting(conn, criteria), away), place)


def _fitting(conn: Connection, criteria: Criteria) -> list[ColumnElement[bool]]:
    """The conditions that devices must meet to serve a request with these criteria."""
    return conditions(criteria, images.fits(conn, criteria.image_id))


BUSY, FAILED, OUT, LEAVING, AWAY, FREE = CONDITIONS = (
    "being prepared or tested",
    "failed",
    "out of service",
    "leaving the pool",
    "on an imaging server that is away",
    "just become free",
)
"""What may be said of devices that nobody has, in the order in which it is said."""


def _condition(state: str, leaving: bool, owner_id: int, away: frozenset[int]) -> str:
    if leaving:
        return LEAVING
    if owner_id in away:
        return AWAY
    if state == "ready":
        return FREE
    if state.startswith("failed_"):
        return FAILED
    return OUT if state in ("locked_out", "troubleshooting", "maintenance_mode") else BUSY


def _reason_of_one(conn: Connection, device: Device, away: frozenset[int]) -> str:
    """Why a device that was asked for by its name can't be had."""
    if device.leaving:
        return f"{device.name} is {LEAVING}: it is not in the inventory any more"
    if device.claim_id is not None:
        for _, assignee, expires in requests.holders(conn, [device.id]):
            return f"{device.name} is taken by {assignee} until {expires:%Y-%m-%d %H:%M:%S}"
        return f"{device.name} is taken"
    condition = _condition(device.state, device.leaving, device.owner_id, away)
    if condition == AWAY:
        return f"{device.name} is on imaging server {device.owner}, which is away"
    return f"{device.name} {'has' if condition in (FAILED, FREE) else 'is'} {condition}"


def _reason(conn: Connection, criteria: Criteria, fitting: list[ColumnElement[bool]], away: frozenset[int]) -> str:
    """``fitting`` are the conditions that devices must meet: they are counted rather than loaded, there may be many."""
    if criteria.device != ANY and (named := devices.matching(conn, fitting)):
        return _reason_of_one(conn, named[0], away)
    taken, total = 0, 0
    counts: Counter[str] = Counter()
    for group in devices.groups(conn, fitting):
        total += group.number
        if group.claimed:
            taken += group.number
        else:
            counts[_condition(group.state, group.leaving, group.owner_id, away)] += group.number
    if not total:
        if criteria.environment != ANY and criteria.environment not in devices.environments(conn):
            return f"environment {criteria.environment} has no devices"
        wanted = criteria.describe().removeprefix("any ")
        if criteria.device == ANY and criteria.image_id is not None:
            return f"there is no {wanted} that the image can be put on"
        return f"there is no {wanted}"
    if counts[FREE] == total:
        return "a matching device has just become free"
    parts = []
    if taken:
        holders = [
            f"{name} by {assignee} until {expires:%Y-%m-%d %H:%M:%S}"
            for name, assignee, expires in requests.first_holders(conn, fitting, SHOWN)
        ]
        # Who has given a device back a moment ago is not named.
        if len(holders) < taken:
            more = f"{taken - len(holders)} more"
            holders = [*holders[:-1], f"{holders[-1]} and {more}"] if holders else []
        parts.append(f"{taken} taken" + (f" ({', '.join(holders)})" if holders else ""))
    parts += [f"{counts[condition]} {condition}" for condition in CONDITIONS if counts[condition]]
    noun = "device" if total == 1 else "devices"
    return f"{total} matching {noun}: {', '.join(parts)}"
