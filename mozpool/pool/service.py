# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""MozPool as the API uses it: making, renewing and returning requests."""

from __future__ import annotations

import hashlib
import json
import random
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from mozpool.clock import Clock, Event
from mozpool.db import devices, history, images, requests, teams
from mozpool.db.engine import Database
from mozpool.db.requests import Request
from mozpool.db.tables import request_history
from mozpool.db.teams import Team
from mozpool.errors import BadInput, Conflict, DatabaseAway, Forbidden, NotFound, Unprocessable
from mozpool.pool.allocation import Match, Matcher, Waiting, explain, preview, queue_key
from mozpool.pool.criteria import ANY, Criteria
from mozpool.statedriver import Driver, Outcome

DEFAULT_WAIT_NAMED = 0
"""Seconds that a request for a named device queues unless it says otherwise: not at all."""

MAX_BOOT_CONFIG = 60_000
"""Characters of a boot config: somewhat less than a TEXT column holds."""

MAX_PHONES = 100
"""Phones that a job may run on."""

NAME = 64
"""Characters of the name of a project or of a group of requests for the same job."""

RECHECK = 1.0
"""Seconds between two looks of a long poll at the database: another server may have changed the request."""


@dataclass(frozen=True)
class NewRequest:
    """What a client asks for, checked for form but not yet against the pool."""

    device: str
    assignee: str
    duration: float
    """Seconds that the device is wanted for, from now."""
    image: str
    environment: str = ANY
    boot_config: Mapping[str, Any] = field(default_factory=dict)
    """All keys that came with the call; those that the image wants are taken."""
    wait: int | None = None
    priority: int = 0
    hardware_type: str | None = None
    hardware_model: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    callback_url: str | None = None
    idempotency_key: str | None = None
    made_by: str | None = None
    """Whose it is; None: nobody's in particular."""
    team: Team | None = None
    """Whose quota it counts for."""

    def digest(self) -> str:
        """Equal for equal calls."""
        parts = [
            self.device,
            self.assignee,
            self.duration,
            self.image,
            self.environment,
            sorted((key, value) for key, value in self.boot_config.items() if value is not None),
            self.wait,
            self.priority,
            self.hardware_type,
            self.hardware_model,
            sorted(self.labels.items()),
            self.callback_url,
            *([] if self.made_by is None else [self.made_by]),
        ]
        return hashlib.sha1(json.dumps(parts, default=str).encode(), usedforsecurity=False).hexdigest()


class MozPool:
    """All that clients may ask about requests. Methods may be called from any thread; they raise DatabaseAway."""

    def __init__(
        self,
        driver: Driver[Request],
        matcher: Matcher,
        database: Database,
        *,
        clock: Clock,
        rng: random.Random,
        server_id: int,
        priority_interval: float = 60.0,
        default_wait: int = 600,
        max_duration: int = 0,
        speed: float = 1.0,
    ) -> None:
        """``server_id``: this imaging server, which serves the requests that are made on it."""
        self.driver = driver
        self.matcher = matcher
        self._database = database
        self._clock = clock
        self._rng = rng
        self._server_id = server_id
        self._interval = priority_interval
        self._default_wait = default_wait
        self._max_duration = max_duration
        self._speed = speed
        self._images: dict[str, tuple[float, images.Image]] = {}
        self.changes = Changes(clock)
        driver.observers.append(self.changes.saw)

    # Making

    def create(self, new: NewRequest) -> Request:
        """Store a request, match the queue, and answer the request as it is then.

        A request that neither got a device nor may queue has ended when this returns.
        Raises BadInput, NotFound, Conflict, Unprocessable (nothing is stored then), DatabaseAway.
        """
        with self._database.read() as conn:
            repeated = self._repeated(conn, new)
            values = {} if repeated else self._values(conn, new)
        if repeated:
            if repeated.state == requests.QUEUED:
                # Whoever stored it may not have come to match it.
                self.matcher.wake()
            return repeated
        try:
            request_id = self._database.run(
                lambda conn: self._store(conn, values),
                committed=lambda conn: requests.by_token(conn, values["token"]),
            )
        except IntegrityError:
            # The same Idempotency-Key came twice at the same time.
            with self._database.read() as conn:
                repeated = self._repeated(conn, new)
            if repeated is None:
                raise
            return repeated
        name = f"request {request_id}"
        self.driver.logbook.add(
            "request",
            request_id,
            name,
            "mozpool",
            f"{new.assignee} wants {self._criteria(values, new.team).describe()}",
        )
        try:
            self.matcher.match(request_id)
        except DatabaseAway:
            # It is stored, and matched as soon as the database is back.
            self.matcher.wake()
        # A claim a moment ago has left the whole row behind.
        request = self.driver.remembered(request_id) or self.get(request_id)
        if request.state == requests.QUEUED:
            if request.wait == 0 or self._waits_in_vain(request):
                with self._database.read() as conn:
                    reason = explain(conn, request, self.matcher.away()).reason
                self.driver.handle(request_id, "do_not_wait", {"reason": reason})
                return self.get(request_id)
            assert request.state_timeout is not None
            self.driver.watch(request_id, min(request.state_timeout, request.expires))
        return request

    def _waits_in_vain(self, request: Request) -> bool:
        """Whether the one device that is asked for has failed."""
        if not request.wants_named_device:
            return False
        with self._database.read() as conn:
            device = devices.key_by_name(conn, request.requested_device)
        return device is not None and device.state.startswith("failed_")

    def _repeated(self, conn: Connection, new: NewRequest) -> Request | None:
        key = _key_digest(new)
        if key is None:
            return None
        found = requests.by_idempotency_key(conn, key)
        if found is not None and found.body_hash != new.digest():
            raise Unprocessable(
                f"Idempotency-Key: {new.idempotency_key!r} was used before with another body (request {found.id})",
                field="Idempotency-Key",
            )
        return found

    def _values(self, conn: Connection, new: NewRequest) -> dict[str, Any]:
        image = self._image(conn, new.image)
        if image is None:
            raise NotFound(f"image: there is no image {new.image!r}", field="image")
        images.check_wanted(image)
        if new.device != ANY:
            named = devices.key_by_name(conn, new.device)
            if named is None:
                raise NotFound(f"there is no device {new.device}", field="device")
            if named.leaving:
                raise Conflict(
                    f"device {new.device} is leaving the pool: it is not in the inventory any more", field="device"
                )
            if devices.is_hosted(conn, named.id) != (image.name in images.HOSTED):
                raise Unprocessable(f"image {image.name} can't be had on device {new.device}", field="image")
        self.check_duration(new.duration)
        if new.team is not None:
            self._check_team(conn, new, new.team)
        for key in image.boot_config_keys:
            if new.boot_config.get(key) is None:
                raise BadInput(f"{key} is missing: image {image.name} needs this key in its boot config", field=key)
        keys = [*image.boot_config_keys, *images.OPTIONAL_KEYS.get(image.name, ())]
        chosen = {key: new.boot_config[key] for key in keys if new.boot_config.get(key) is not None}
        if image.name == images.JOB:
            chosen = _checked_job(chosen)
        boot_config = json.dumps(chosen)
        if len(boot_config) > MAX_BOOT_CONFIG:
            raise BadInput(f"the boot config is longer than {MAX_BOOT_CONFIG} characters")
        now = self._clock.now()
        wait = new.wait
        if wait is None:
            wait = self._default_wait if new.device == ANY else DEFAULT_WAIT_NAMED
        limit = self.driver.machine.timeout_of(requests.QUEUED) or 10.0
        first_look = min(limit, wait / self._speed) if wait else limit
        values: dict[str, Any] = {
            "imaging_server_id": self._server_id,
            "requested_device": new.device,
            "assignee": new.assignee,
            "created": now,
            "expires": now + timedelta(seconds=new.duration),
            "image_id": image.id,
            "boot_config": boot_config,
            "state": requests.QUEUED,
            "state_counters": "{}",
            "state_timeout": now + timedelta(seconds=first_look),
            "state_since": now,
            "token": f"{self._rng.getrandbits(128):032x}",
            "environment": new.environment,
            "hardware_type": new.hardware_type,
            "hardware_model": new.hardware_model,
            "labels": json.dumps(dict(new.labels), sort_keys=True) if new.labels else None,
            "priority": new.priority,
            "wait": wait,
            "queue_key": queue_key(now, new.priority, self._interval),
            "callback_url": new.callback_url,
            "idempotency_key": _key_digest(new),
            "body_hash": new.digest(),
            "made_by": new.made_by,
            "team_id": None if new.team is None else new.team.id,
        }
        values["criteria"] = self._criteria(values, new.team).key
        return values

    @staticmethod
    def _check_team(conn: Connection, new: NewRequest, team: Team) -> None:
        """Raise Forbidden when a team may not have what is asked for."""
        if team.max_duration is not None and new.duration > team.max_duration:
            raise Forbidden(_too_long(team), field="duration")
        if team.environments is None:
            return
        may = f"team {team.name} may use {', '.join(team.environments)} alone"
        if new.environment != ANY and new.environment not in team.environments:
            raise Forbidden(f"environment: {may}, not {new.environment}", field="environment")
        named = None if new.device == ANY else devices.by_name(conn, new.device)
        if named is not None and named.environment not in team.environments:
            raise Forbidden(f"device {named.name} is in environment {named.environment}: {may}", field="device")

    @staticmethod
    def _criteria(values: Mapping[str, Any], team: Team | None = None) -> Criteria:
        return Criteria(
            device=values["requested_device"],
            environment=values["environment"],
            hardware_type=values["hardware_type"],
            hardware_model=values["hardware_model"],
            labels=json.loads(values["labels"] or "{}"),
            image_id=values["image_id"],
            environments=None if team is None else team.environments,
        )

    def _image(self, conn: Connection, name: str) -> images.Image | None:
        """An image by name, at most a second old."""
        now = self._clock.monotonic()
        known = self._images.get(name)
        if known is None or now - known[0] > 1.0:
            found = images.by_name(conn, name)
            if found is None:
                return None
            known = self._images[name] = (now, found)
        return known[1]

    def _store(self, conn: Connection, values: Mapping[str, Any]) -> int:
        request_id = requests.add(conn, values)
        history.add(
            conn,
            request_history,
            request_id,
            now=values["created"],
            source="new",
            path=(requests.QUEUED,),
            event="created",
            version=0,
            claim_id=None,
            token=values["token"],
            detail=None,
        )
        return request_id

    # Reading

    def get(self, request_id: int) -> Request:
        """The request. Raises NotFound."""
        with self._database.read() as conn:
            found = requests.get(conn, request_id)
        if found is None:
            raise NotFound(f"there is no request {request_id}", field="request")
        return found

    def preview(self, criteria: Criteria, image: str | None = None) -> Match:
        """What a request with these criteria and this image could get now. Raises NotFound for an unknown image."""
        with self._database.read() as conn:
            found = None if image is None else self._image(conn, image)
            if image is not None and found is None:
                raise NotFound(f"image: there is no image {image!r}", field="image")
            if found is not None:
                criteria = replace(criteria, image_id=found.id)
            return preview(conn, criteria, self.matcher.away())

    def waiting(self, request: Request) -> Waiting | None:
        """Why a request waits, and its place in the queue; None when it does not wait."""
        if request.state != requests.QUEUED:
            return None
        with self._database.read() as conn:
            return explain(conn, request, self.matcher.away())

    def reasons(self, rows: Iterable[Request]) -> dict[int, str]:
        """Id → why it waits, for those of ``rows`` that do; equal requests share one look at the devices."""
        found: dict[int, str] = {}
        alike: dict[tuple[str | None, int | None], str] = {}
        away = self.matcher.away()
        waiting = [row for row in rows if row.state == requests.QUEUED]
        if not waiting:
            return found
        with self._database.read() as conn:
            for row in waiting:
                key = (row.criteria, row.owner_id if row.owner_id in away else None)
                if row.team_id is not None:
                    found[row.id] = explain(conn, row, away).reason
                    continue
                if key not in alike:
                    alike[key] = explain(conn, row, away).reason
                found[row.id] = alike[key]
        return found

    def wait_for_change(self, request_id: int, state: str | None, seconds: float) -> Request:
        """The request as soon as its state is no longer ``state``, at the latest after so many seconds.

        None is the state that it is in now. Raises NotFound.
        """
        if state is None and seconds > 0:
            state = self._look(request_id).state
        return self.changes.wait(
            request_id, lambda: self._look(request_id), lambda found: found.state != state, seconds
        )

    def _look(self, request_id: int) -> Request:
        """The request as this server wrote it last, or as the database has it.

        One that waits in the queue may have been given a device by another server.
        """
        known = self.driver.remembered(request_id)
        return known if known is not None and known.state != requests.QUEUED else self.get(request_id)

    def wait_for_device(self, request_id: int, seconds: float) -> Request:
        """The request as soon as it has a device or has ended, at the latest after so many seconds."""

        def settled(found: Request) -> bool:
            return found.claim_id is not None or not found.is_open

        return self.changes.wait(request_id, lambda: self.get(request_id), settled, seconds)

    def check_duration(self, seconds: float) -> None:
        """Raise BadInput when no request may last so long."""
        if self._max_duration and seconds > self._max_duration:
            raise BadInput.value("duration", seconds, f"at most {self._max_duration} seconds")

    # Changing

    def renew(self, request_id: int, duration: float, *, by_holder: bool = False) -> None:
        """Let the request expire so many seconds from now. Raises NotFound, BadInput; Unprocessable when it ended.

        ``by_holder``: what has expired is lost for them, even if nobody has closed it yet, and they may have the device
        no longer than the request's team may; raises Forbidden.
        """
        self.check_duration(duration)
        now = self._clock.now()
        expires = now + timedelta(seconds=duration)

        def work(conn: Connection) -> bool:
            if by_holder:
                self._check_team_until(conn, request_id, now, expires)
            return requests.set_expires(conn, request_id, expires, now if by_holder else None)

        renewed = self._database.run(work, repeatable=True)
        self.driver.forget(request_id)
        if not renewed:
            request = self.get(request_id)
            state = "expired" if request.is_open else request.state
            raise Unprocessable(f"request {request_id} has ended ({state}) and can't be renewed")
        self.driver.logbook.add(
            "request", request_id, f"request {request_id}", "mozpool", f"renewed until {expires:%Y-%m-%d %H:%M:%S}"
        )
        self.driver.wake(request_id)

    @staticmethod
    def _check_team_until(conn: Connection, request_id: int, now: datetime, expires: datetime) -> None:
        """Raise Forbidden when the team of a request may not have a device until ``expires``."""
        request = requests.get(conn, request_id)
        if request is None or request.team_id is None:
            return
        team = teams.get(conn, request.team_id)
        if team is None:
            raise Forbidden(f"the team of request {request_id} was deleted")
        if team.max_duration is None:
            return
        if expires > (request.created or now) + timedelta(seconds=team.max_duration):
            raise Forbidden(_too_long(team), field="duration")

    def give_back(self, request_id: int) -> None:
        """Close a request; nothing changes when it has ended already. Raises NotFound."""
        outcome = self.driver.handle(request_id, "close")
        if outcome.status == "gone":
            raise NotFound(f"there is no request {request_id}", field="request")
        if not outcome.accepted:
            self._database.run(lambda conn: requests.acknowledge(conn, request_id, self._clock.now()), repeatable=True)

    def revoke(self, request_id: int, reason: str) -> None:
        """Take a request from its holder: it is closed, and its device proven anew; nothing changes when it has ended.

        Raises NotFound.
        """
        outcome = self.driver.handle(request_id, "revoke", {"reason": reason})
        if outcome.status == "gone":
            raise NotFound(f"there is no request {request_id}", field="request")

    def claimed(self, request_id: int) -> None:
        """Another server has found a device for a request of this one: go on with it now, not at the next scan."""
        self.driver.forget(request_id)
        self.driver.wake(request_id)
        self.changes.look_again(request_id)

    def event(self, request_id: int, event: str, args: Mapping[str, Any] | None = None) -> Outcome[Request]:
        """Hand an event to a request's state machine; one that its state does not expect is ignored and logged.

        Raises NotFound.
        """
        outcome = self.driver.handle(request_id, event, args)
        if outcome.status == "gone":
            raise NotFound(f"there is no request {request_id}", field="request")
        if outcome.status == "ignored" and outcome.row is not None:
            self.driver.logbook.add(
                "request",
                request_id,
                outcome.row.name,
                "mozpool",
                f"ignored event {event[:64]} in state {outcome.row.state}",
            )
        return outcome


def _too_long(team: Team) -> str:
    return (
        f"duration: team {team.name} may have a device for {team.max_duration} s, counted from when the request is made"
    )


def _checked_job(boot_config: Mapping[str, Any]) -> dict[str, Any]:
    """The boot config of a request for a job on hosted devices. Raises BadInput."""
    checked = dict(boot_config)
    phones = checked.get("phones", 1)
    if isinstance(phones, str) and phones.isascii() and phones.isdecimal():
        phones = int(phones)
    if not isinstance(phones, int) or isinstance(phones, bool) or not 1 <= phones <= MAX_PHONES:
        raise BadInput.value("phones", phones, f"a whole number from 1 to {MAX_PHONES}")
    for key in ("project", "group"):
        value = checked.get(key, "-")
        if not isinstance(value, str) or not value or len(value) > NAME:
            raise BadInput.value(key, value, f"1 to {NAME} characters")
    if phones > 1:
        if "group" not in checked:
            raise BadInput("group is missing: it is what the requests for a job on several phones share", field="group")
        checked["phones"] = phones
    return checked


def _key_digest(new: NewRequest) -> str | None:
    """Of any length and script, told apart by case on every database; where callers have names, each has own keys."""
    key = new.idempotency_key
    if key is not None and new.made_by is not None:
        key = json.dumps([new.made_by, key])
    return None if key is None else hashlib.sha256(key.encode()).hexdigest()


class Changes:
    """Wakes long polls up when the request they wait for has changed on this server."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._waiting: dict[int, list[Event]] = {}
        self._stopped = False

    def stop(self) -> None:
        """Let all long polls answer now, and those that still come: the server is about to stop."""
        with self._lock:
            self._stopped = True
            for events in self._waiting.values():
                for event in events:
                    event.set()

    def saw(self, outcome: Outcome[Request]) -> None:
        """A request changed (an observer of the driver)."""
        if outcome.row is not None and outcome.status == "moved":
            self.look_again(outcome.row.id)

    def look_again(self, request_id: int) -> None:
        """A request may have changed."""
        with self._lock:
            for event in self._waiting.get(request_id, ()):
                event.set()

    @property
    def waiting(self) -> int:
        """How many long polls wait now."""
        with self._lock:
            return sum(len(events) for events in self._waiting.values())

    def wait(
        self, request_id: int, look: Callable[[], Request], enough: Callable[[Request], bool], seconds: float
    ) -> Request:
        """Answer ``look()`` as soon as it is ``enough``, at the latest after so many seconds."""
        end = self._clock.monotonic() + seconds
        event = self._clock.event()
        with self._lock:
            self._waiting.setdefault(request_id, []).append(event)
        try:
            while True:
                event.clear()
                found = look()
                left = end - self._clock.monotonic()
                if enough(found) or left <= 0 or self._stopped:
                    return found
                self._clock.wait(event, min(left, RECHECK))
        finally:
            with self._lock:
                self._waiting[request_id].remove(event)
                if not self._waiting[request_id]:
                    del self._waiting[request_id]
