# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What must hold after every commit, whatever goes wrong: a second opinion, from the database and the boards alone.

Triggers note the rows that a transaction touched. After each commit the watcher reads them, compares them with what it
saw before, and says what is not as it must be. It knows nothing of the code that wrote them but the tables, the names
of the states and their time limits.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from mozpool.db.bootconfig import boot_config_hash
from mozpool.db.images import JOB
from mozpool.simulate.lab import Lab

END_STATES = frozenset(
    {"closed", "failed_device_not_found", "failed_device_busy", "failed_bad_device", "failed_bad_image"}
)
QUEUED = "finding_device"

MARGIN = 1.0
"""Seconds by which a deadline may exceed its state's time limit: the writer read its clock some steps ago."""

SLOW = 15.0
"""Seconds that a request may wait though a device is free for it: some transactions that come late or in vain."""

LATE = 75.0
"""Seconds that a deadline may have passed by, on a server that is up and has its database: one that another server has
set is noticed at the next scan."""

ALONE = 240.0
"""Seconds that a job may run that nobody wants any more: its phone's server notices it, and stops it by a cloud that
answers now and then."""

OVERTAKING = 15.0
"""Seconds that a claim may take from the look at the queue on which it is made."""

TRIGGERS = {"devices": "id", "requests": "id", "device_requests": "id", "device_history": "id", "request_history": "id"}

PROOFS = {
    "power_cycle_ok": "power on",
    "ping_ok": "ping",
    "sut_verify_ok": "verify",
    "sut_sdcard_ok": "check storage",
    "phone_ok": "status",
}
"""Events that prove something of a device, and what must have been done to it for that in the state that it was in."""


class Violation(Exception):
    """Something is not as it must be."""


@dataclass
class Device:
    """A device's row."""

    id: int
    name: str
    state: str
    deadline: datetime | None
    attempt: int
    version: int
    claim_id: int | None
    environment: str
    hardware_type_id: int | None
    image_id: int | None
    server_id: int
    counters: str
    leaving: bool
    used: bool
    """Whether an operation was begun for somebody that has not been made good for by a proof: hosted ones only."""

    @property
    def label(self) -> str:
        """For messages."""
        return self.name


@dataclass
class Request:
    """A request's row."""

    id: int
    state: str
    deadline: datetime | None
    attempt: int
    version: int
    wanted: str
    environment: str
    hardware_type: str | None
    labels: Mapping[str, str]
    queue_key: int
    image: str
    boot_config: str
    server_id: int
    counters: str
    wants_call: bool
    """Whether its client wants to be called back."""
    queued_since: float = 0.0

    @property
    def label(self) -> str:
        """For messages."""
        return f"request {self.id}"

    @property
    def place(self) -> tuple[int, int]:
        """In the queue."""
        return self.queue_key, self.id


@dataclass
class Claim:
    """Who has which device."""

    id: int
    request_id: int
    device_id: int
    since: float
    result: str | None = None


@dataclass
class Overtaken:
    """A request that somebody behind it got a device before, which it could have used."""

    request_id: int
    by: int
    device: str
    at: float
    excused: bool = False


DEVICE_COLUMNS = (
    "id, name, state, state_timeout, attempt, version, claim_id, environment, hardware_type_id, image_id, "
    "COALESCE(owner_id, imaging_server_id), state_counters, leaving, operation_claim_id"
)
REQUEST_COLUMNS = (
    "id, state, state_timeout, attempt, version, requested_device, environment, hardware_type, labels, queue_key, "
    "image_id, boot_config, COALESCE(owner_id, imaging_server_id), state_counters, callback_url"
)

Query = Callable[[str, Sequence[Any]], list[tuple[Any, ...]]]
"""Runs a statement with ``?`` for its parameters, outside of any transaction of the servers."""


@dataclass
class ToTell:
    """What a client has to be told."""

    device: str
    times: int = 0


class Watcher:
    """Looks at what was committed."""

    def __init__(
        self,
        query: Query,
        lab: Lab,
        *,
        now: Callable[[], float],
        device_limits: Mapping[str, float | None],
        request_limits: Mapping[str, float | None],
        say: Callable[[str], None],
    ) -> None:
        """``query`` reads and clears the table of the triggers; the limits are those of the states, in seconds."""
        self._query = query
        self._lab = lab
        self._now = now
        self._limits = {"devices": device_limits, "requests": request_limits}
        self._say = say
        self.devices: dict[int, Device] = {}
        self.requests: dict[int, Request] = {}
        """Those that are open."""
        self.claims: dict[int, Claim] = {}
        self.clocks_jumped_until = 0.0
        """Until when a deadline may have been set by a clock that has jumped since."""
        self.lenient_until = 0.0
        """Until when nobody is expected to be quick: a server has died, or a clock has jumped."""
        self._ended: set[int] = set()
        """Requests that were open and are no more."""
        self.on_request: Callable[[Request, str], None] = lambda request, before: None
        self.is_in_touch: Callable[[int], bool] = lambda server_id: True
        """Whether the others can know that a server (by its id) is there."""
        self._claim_of_device: dict[int, int] = {}
        self._claim_of_request: dict[int, int] = {}
        self._free: dict[int, Device] = {}
        self._queued: dict[int, Request] = {}
        self._images = {int(row[0]): str(row[1]) for row in query("SELECT id, name FROM images", ())}
        self._labels: dict[int, dict[str, str]] = {}
        self._hardware = {int(row[0]): str(row[1]) for row in query("SELECT id, type FROM hardware_types", ())}
        self._fits = {
            (int(row[0]), int(row[1])) for row in query("SELECT hardware_type_id, image_id FROM image_pxe_configs", ())
        }
        self._results: dict[int, str | None] = {}
        """Request → the result of its latest claim."""
        self._overdue: dict[tuple[str, int], float] = {}
        self._entered: dict[int, float] = {}
        """Device → when its attempt began."""
        self._added: dict[int, float] = {}
        """Device → when its row was made, for those that were not there from the beginning."""
        self._waiting_pairs: dict[tuple[int, int], float] = {}
        self._alone: dict[int, float] = {}
        """Job → since when nobody has its phones."""
        self._overtaken: dict[int, Overtaken] = {}
        self._device_ids: dict[str, int] = {}
        self._to_tell: dict[tuple[int, str], ToTell] = {}
        self.disturbed: dict[str, float] = {}
        """Device name → when a person last meddled with it."""
        query("DELETE FROM sim_touched", ())
        for row in query(f"SELECT {DEVICE_COLUMNS} FROM devices", ()):  # noqa: S608 (constants)  # nosec B608
            self._device_seen(row)

    # What was committed

    def committed(self, wall: datetime) -> None:
        """A transaction of a server whose clock shows ``wall`` was committed. Raises Violation."""
        touched = self._query("SELECT id, what, row_id FROM sim_touched ORDER BY id", ())
        if not touched:
            return
        for row in touched:
            self._query("DELETE FROM sim_touched WHERE id = ?", (row[0],))
        rows = {what: list(dict.fromkeys(row[2] for row in touched if row[1] == what)) for what in TRIGGERS}
        for claim_id in rows["device_requests"]:
            self._read_claim(claim_id)
        self._check_history("device_history", "device_id", rows["device_history"], self.devices)
        self._check_history("request_history", "request_id", rows["request_history"], self.requests)
        for device_id in rows["devices"]:
            self._read_device(device_id, wall)
        for request_id in rows["requests"]:
            self._read_request(request_id, wall)
        self._check_claims(rows)

    def _read_claim(self, claim_id: int) -> None:
        found = self._query(
            "SELECT request_id, device_id, imaging_result FROM device_requests WHERE id = ?", (claim_id,)
        )
        known = self.claims.get(claim_id)
        if not found:
            if known is not None:
                del self.claims[claim_id]
                self._results[known.request_id] = known.result
                if self._claim_of_device.get(known.device_id) == claim_id:
                    del self._claim_of_device[known.device_id]
                if self._claim_of_request.get(known.request_id) == claim_id:
                    del self._claim_of_request[known.request_id]
                self._say(f"claim {claim_id} ends")
            return
        request_id, device_id, result = found[0]
        if known is not None:
            if known.result != result:
                self._say(f"claim {claim_id}: {result}")
            known.result = result
            self._results[request_id] = result
            return
        for owner, key, what in (
            (self._claim_of_device, device_id, "device"),
            (self._claim_of_request, request_id, "request"),
        ):
            if key in owner:
                raise Violation(f"{what} {key} has claims {owner[key]} and {claim_id} at the same time")
            owner[key] = claim_id
        self._results[request_id] = result
        self.claims[claim_id] = Claim(claim_id, request_id, device_id, self._now(), result)
        device = self.devices.get(device_id)
        self._say(f"claim {claim_id}: request {request_id} gets {device.name if device else device_id}")
        request = self.requests.get(request_id)
        if request is not None and device is not None and not self._could_use(request, device):
            raise Violation(f"request {request_id} gets {device.name}, which is not what it asked for")
        self._check_order(request_id, device_id)

    def _read_device(self, device_id: int, wall: datetime) -> None:
        found = self._query(f"SELECT {DEVICE_COLUMNS} FROM devices WHERE id = ?", (device_id,))  # noqa: S608 (constants)  # nosec B608
        if not found:
            device = self.devices.pop(device_id, None)
            self._free.pop(device_id, None)
            if device is not None:
                self._say(f"{device.name} is removed")
                self._excuse(device)
            return
        before = self.devices.get(device_id)
        device = self._device_seen(found[0])
        if before is None:
            self._say(f"{device.name} is added")
            self._added[device_id] = self._now()
            return
        self._check_row("devices", before, device, wall)
        if before.leaving != device.leaving:
            self._say(f"{device.name} {'is to leave' if device.leaving else 'may stay'}")
        if before.attempt != device.attempt:
            self._entered[device_id] = self._now()
        if before.state != device.state:
            self._say(f"{device.name}: {before.state} -> {device.state}")
        if before.server_id != device.server_id:
            self._say(f"{device.name} passes from server {before.server_id} to {device.server_id}")

    def _device_seen(self, row: tuple[Any, ...]) -> Device:
        (id_, name, state, deadline, attempt, version, claim_id, environment, hardware, *rest) = row
        (image_id, server, counters, leaving, operation) = rest
        device = Device(
            int(id_),
            str(name),
            str(state),
            _time(deadline),
            int(attempt),
            int(version),
            claim_id,
            environment or "none",
            hardware,
            image_id,
            int(server),
            str(counters),
            bool(leaving),
            operation is not None and str(name) in self._lab.cloud.phones,
        )
        before = self.devices.get(device.id)
        self.devices[device.id] = device
        self._device_ids[device.name] = device.id
        if before is None:
            self._labels[device.id] = {
                str(row[0]): str(row[1])
                for row in self._query("SELECT name, value FROM device_labels WHERE device_id = ?", (device.id,))
            }
        if _is_free(device):
            self._free[device.id] = device
            if before is None or not _is_free(before):
                self._pair(device=device)
        elif self._free.pop(device.id, None) is not None:
            self._unpair(device.id, 1)
            if device.claim_id is None:
                self._excuse(device)
        return device

    def _read_request(self, request_id: int, wall: datetime) -> None:
        row = self._query(f"SELECT {REQUEST_COLUMNS} FROM requests WHERE id = ?", (request_id,))  # noqa: S608 (constants)  # nosec B608
        before = self.requests.get(request_id)
        if not row:
            if before is not None:
                raise Violation(f"request {request_id} is gone in state {before.state}")
            return
        request = self._request(row[0])
        if before is None:
            if request.state in END_STATES:
                if request.version and request_id not in self._ended:
                    raise Violation(f"request {request_id} appears in {request.state}")
                return
            self._say(f"request {request_id}: {request.state}")
        else:
            self._check_row("requests", before, request, wall)
            if before.state != request.state:
                self._say(f"request {request_id}: {before.state} -> {request.state}")
            if before.server_id != request.server_id:
                self._say(f"request {request_id} passes from server {before.server_id} to {request.server_id}")
            request.queued_since = before.queued_since
        if request.state == QUEUED and (before is None or before.state != QUEUED):
            request.queued_since = self._now()
            self._queued[request_id] = request
            self._pair(request=request)
        elif request.state != QUEUED:
            if self._queued.pop(request_id, None) is not None:
                self._unpair(request_id, 0)
                self._overtaken.pop(request_id, None)
        else:
            self._queued[request_id] = request
        if request.state in END_STATES:
            if request_id in self._claim_of_request:
                raise Violation(f"request {request_id} has ended ({request.state}) and holds a device")
            self.requests.pop(request_id, None)
            self._ended.add(request_id)
        else:
            self.requests[request_id] = request
        if request.state == "ready" and (before is None or before.state != "ready"):
            self._check_ready(request)
        if before is None or before.state != request.state:
            if request.wants_call and (request.state == "ready" or request.state in END_STATES):
                device = self._device_of(request_id) if request.state == "ready" else ""
                self._to_tell[request_id, request.state] = ToTell(device)
            self.on_request(request, "" if before is None else before.state)

    def _device_of(self, request_id: int) -> str:
        """The name of the device that a request has."""
        claim = self.claims.get(self._claim_of_request.get(request_id, -1))
        device = None if claim is None else self.devices.get(claim.device_id)
        return "" if device is None else device.name

    def _request(self, row: tuple[Any, ...]) -> Request:
        (id_, state, deadline, attempt, version, wanted, environment, hardware, labels, key, *rest) = row
        (image, config, server, counters, callback_url) = rest
        return Request(
            int(id_),
            str(state),
            _time(deadline),
            int(attempt),
            int(version),
            str(wanted),
            str(environment),
            hardware,
            json.loads(labels) if labels else {},
            int(key),
            self._images.get(image, ""),
            config or "{}",
            int(server),
            str(counters),
            callback_url is not None,
        )

    def told(self, request_id: int, state: str, device: str) -> None:
        """A client was called back. Raises Violation."""
        known = self._to_tell.get((request_id, state))
        self._say(f"the client of request {request_id} is told: {state} {device}".rstrip())
        if known is None:
            raise Violation(f"the client of request {request_id} is told that it is {state}, which it was never")
        if device != known.device:
            raise Violation(f"the client of request {request_id} is told of {device!r} instead of {known.device!r}")
        known.times += 1

    def untold(self) -> list[str]:
        """Of what clients should have been told and were not."""
        return [
            f"the client of request {id_} was not told: {state}"
            for (id_, state), known in self._to_tell.items()
            if not known.times
        ]

    # What must hold

    def _check_history(
        self, table: str, key: str, ids: Sequence[int], known: Mapping[int, Device] | Mapping[int, Request]
    ) -> None:
        """Every change is in the history, and begins where the one before it ended. Before the rows are read."""
        state: dict[int, str] = {}
        for id_ in ids:
            found = self._query(f"SELECT {key}, from_state, to_state, event FROM {table} WHERE id = ?", (id_,))  # noqa: S608 (constants)  # nosec B608
            if not found:
                continue
            row_id, source, target, event = found[0]
            row = known.get(row_id)
            before = state.get(row_id, None if row is None else row.state)
            if before is not None and before != source:
                raise Violation(
                    f"{row.label if row else row_id} was in {before}, and its history goes on from {source}"
                )
            if event == "lifeguard_finished" and self._results.get(row_id) is None and source != target:
                raise Violation(f"request {row_id} believes in a result that is not stored for its claim")
            if isinstance(row, Device) and event in PROOFS and row_id not in state:
                self._check_proof(row, str(event))
            state[row_id] = str(target)

    def _check_proof(self, device: Device, event: str) -> None:
        """What a device was proven by was done in the very state that it is in."""
        what = PROOFS[event]
        done = self._lab.begun.get((device.name, what), -1.0)
        if event == "power_cycle_ok":
            done = max(done, self._lab.begun.get((device.name, "reboot"), -1.0))
        since = self._entered.get(device.id, 0.0)
        if done < since:
            raise Violation(f"{event} of {device.name} in {device.state} since {since:.3f} s is from {done:.3f} s")

    def _check_row(self, table: str, before: Device | Request, after: Device | Request, wall: datetime) -> None:
        name = after.label
        if after.version < before.version or (after.version == before.version and after.attempt != before.attempt):
            raise Violation(f"{name}: version {before.version} was followed by {after.version}")
        if after.attempt < before.attempt:
            raise Violation(f"{name}: attempt {before.attempt} was followed by {after.attempt}")
        if before.state != after.state and after.attempt == before.attempt:
            raise Violation(f"{name}: {before.state} became {after.state} within one attempt")
        if table == "requests" and before.state in END_STATES:
            raise Violation(f"{name} goes on after its end: {before.state} -> {after.state}")
        if after.state == "ready" and after.attempt != before.attempt and json.loads(after.counters):
            raise Violation(f"{name} is ready, and its failures still count: {after.counters}")
        limit = self._limits[table].get(after.state)
        if limit is None or after.attempt == before.attempt or self._now() < self.clocks_jumped_until:
            return
        if after.deadline is None:
            raise Violation(f"{name} is in {after.state}, which has a time limit, without a deadline")
        left = (after.deadline - wall).total_seconds()
        if left > limit + MARGIN:
            raise Violation(f"{name} is in {after.state} for {left:.1f} s, whose limit is {limit:.1f} s")

    def _check_claims(self, rows: Mapping[str, Sequence[int]]) -> None:
        """Rows and claims say the same."""
        for claim_id in rows["device_requests"]:
            claim = self.claims.get(claim_id)
            if claim is None:
                continue
            if claim.request_id not in self.requests:
                raise Violation(f"claim {claim_id} belongs to request {claim.request_id}, which is not open")
            device = self.devices.get(claim.device_id)
            if device is None or device.claim_id != claim_id:
                raise Violation(f"claim {claim_id} is for device {claim.device_id}, whose row does not say so")
        for device_id in rows["devices"]:
            device = self.devices.get(device_id)
            if device is not None and device.claim_id != self._claim_of_device.get(device_id):
                held = self._claim_of_device.get(device_id)
                raise Violation(f"{device.name} says that claim {device.claim_id} has it, but it is {held}")
        for request_id in rows["requests"]:
            request = self.requests.get(request_id)
            if request is not None and request.state == QUEUED and request_id in self._claim_of_request:
                raise Violation(f"request {request_id} waits in the queue and holds a device")

    def _check_ready(self, request: Request) -> None:
        """Its device was proven for it: by the result of its claim, and by what the board itself has gone through."""
        claim = self.claims.get(self._claim_of_request.get(request.id, -1))
        if claim is None:
            raise Violation(f"request {request.id} is ready without a device")
        if claim.result != "complete":
            raise Violation(f"request {request.id} is ready, but its device's result is {claim.result}")
        device = self.devices.get(claim.device_id)
        if device is None or self.disturbed.get(device.name, -1.0) >= claim.since:
            return  # a person may lie about a device
        if device.name in self._lab.cloud.phones:
            self._check_phone(request, claim, device)
            return
        board = self._lab.boards[device.name]
        if self._lab.restarted.get(device.name, -1.0) < claim.since:
            raise Violation(f"request {request.id} is ready, but {device.name} was not restarted for it")
        if board.image != request.image:
            raise Violation(f"request {request.id} is ready with {board.image} instead of {request.image}")
        if boot_config_hash(board.boot_config or "{}") != boot_config_hash(request.boot_config):
            raise Violation(f"request {request.id} is ready with another build than it asked for")

    def _check_phone(self, request: Request, claim: Claim, device: Device) -> None:
        """It was asked for how the phone is, or a job for it has begun to run there."""
        if request.image != JOB:
            if self._lab.begun.get((device.name, "status"), -1.0) < claim.since:
                raise Violation(f"request {request.id} is ready, but {device.name} was not looked at for it")
            return
        mine = [
            job
            for job in self._lab.cloud.jobs
            if device.name in job.phones and job.created >= claim.since and job.begins <= self._now()
        ]
        if not mine:
            raise Violation(f"request {request.id} is ready, but no job for it runs on {device.name}")

    def job_starts(self, phone: str, problem: str | None, server_id: int, server: str) -> None:
        """A server has started a job on a phone: one at a time, for somebody who has the phone. Raises Violation."""
        self._say(f"{server} starts a job on {phone}")
        if problem is not None:
            raise Violation(f"{server} starts a job on {phone}, but {problem}")

    def look_at_jobs(self) -> None:
        """No job runs for nobody for long. To be called every few seconds. Raises Violation."""
        now, cloud = self._now(), self._lab.cloud
        alone: dict[int, float] = {}
        for job in cloud.jobs:
            if now >= job.ends:
                continue
            holders = [self.devices[self._device_ids[phone]].claim_id for phone in job.phones]
            wanted = any(id_ in self.claims and self.claims[id_].since <= job.created for id_ in holders if id_)
            if wanted or any(self.disturbed.get(phone, -1.0) >= job.created for phone in job.phones):
                continue
            alone[job.number] = since = self._alone.get(job.number, now)
            if now - max(since, self.lenient_until, cloud.down_until) > ALONE:
                raise Violation(
                    f"job {job.number} on {', '.join(job.phones)} has been running for nobody since {since:.0f} s"
                )
        self._alone = alone

    def look_at_owners(self, lost: Mapping[int, str], within: float) -> None:
        """Nothing is owned by servers (id → name) that others must have taken over from by now. Raises Violation.

        A device that was added to a lost server may be its for ``within`` seconds.
        """
        before = self._now() - within
        old = [device for device in self.devices.values() if self._added.get(device.id, before) <= before]
        rows: list[Device | Request] = [*old, *self.requests.values()]
        for row in rows:
            if row.server_id in lost:
                raise Violation(f"{row.label} is still {lost[row.server_id]}'s, which is lost for long")

    def restarts(self, name: str, what: str, server_id: int, server: str) -> None:
        """A server is about to restart a board: it must be the one that acts on it, and nobody may be using it."""
        device = self.devices.get(self._device_ids.get(name, -1))
        if device is not None and device.server_id != server_id:
            raise Violation(f"{what} of {name} by {server}, which does not own it (any more)")
        claim = None if device is None else self.claims.get(self._claim_of_device.get(device.id, -1))
        if device is None or claim is None:
            return
        request = self.requests.get(claim.request_id)
        if request is None or request.state != "ready":
            return
        if self.disturbed.get(name, -1.0) >= claim.since:
            return
        raise Violation(f"{what} of {name} while request {request.id} is using it")

    # The queue

    def _could_use(self, request: Request, device: Device) -> bool:
        """Whether a device is what a request asked for, by the words of the request."""
        if request.wanted not in ("any", device.name):
            return False
        if request.environment not in ("any", device.environment):
            return False
        if request.hardware_type not in (None, self._hardware.get(device.hardware_type_id or 0)):
            return False
        labels = self._labels[device.id]
        if any(labels.get(name) != value for name, value in request.labels.items()):
            return False
        image_id = next((key for key, name in self._images.items() if name == request.image), 0)
        return (device.hardware_type_id or 0, image_id) in self._fits

    def _pair(self, *, device: Device | None = None, request: Request | None = None) -> None:
        """A device has become free, or a request waits: note who waits for whom."""
        if device is not None:
            for other in self._queued.values():
                if self._could_use(other, device):
                    self._waiting_pairs[other.id, device.id] = self._now()
        if request is not None:
            for found in self._free.values():
                if self._could_use(request, found):
                    self._waiting_pairs[request.id, found.id] = self._now()

    def _unpair(self, key: int, place: int) -> None:
        for pair in [pair for pair in self._waiting_pairs if pair[place] == key]:
            del self._waiting_pairs[pair]

    def _check_order(self, request_id: int, device_id: int) -> None:
        """Somebody got a device: had anybody before it been waiting for such a one, and for long enough?

        Nothing is given to requests of a server that is away: whoever is behind them has its turn.
        """
        request, device = self._queued.get(request_id), self.devices.get(device_id)
        if request is None or device is None:
            return
        now = self._now()
        for other in self._queued.values():
            if (
                other.place < request.place
                and other.id not in self._overtaken
                and other.queued_since < now - OVERTAKING
                and self._could_use(other, device)
                and self.is_in_touch(other.server_id)
            ):
                self._overtaken[other.id] = Overtaken(other.id, request_id, device.name, now)

    def _excuse(self, device: Device) -> None:
        """A device went away without a claim: whoever it was meant for may have lost its turn by that."""
        for overtaken in self._overtaken.values():
            request = self._queued.get(overtaken.request_id)
            if request is not None and self._could_use(request, device):
                overtaken.excused = True

    def look(self) -> None:
        """What must have happened by now. To be called every few seconds. Raises Violation."""
        now = self._now()
        if now < self.lenient_until:
            return
        for (request_id, device_id), since in self._waiting_pairs.items():
            if now - max(since, self.lenient_until) > SLOW:
                device = self.devices[device_id]
                raise Violation(f"request {request_id} waits for {now - since:.0f} s though {device.name} is free")
        for overtaken in list(self._overtaken.values()):
            if now - max(overtaken.at, self.lenient_until) > OVERTAKING:
                del self._overtaken[overtaken.request_id]
                if not overtaken.excused:
                    raise Violation(
                        f"request {overtaken.request_id} still waits, and request {overtaken.by} behind it "
                        f"got {overtaken.device} at {overtaken.at:.0f} s"
                    )

    def look_at_deadlines(self, walls: Mapping[int, datetime]) -> None:
        """Nothing may stay in a state for longer than its limit, on a server that is up. Raises Violation.

        ``walls`` are the clocks of the servers that are up, by id. To be called every few seconds.
        """
        overdue: dict[tuple[str, int], float] = {}
        rows: list[Device | Request] = [*self.devices.values(), *self.requests.values()]
        for row in rows:
            wall = walls.get(row.server_id)
            if wall is None or row.deadline is None or row.deadline > wall:
                continue
            key = (row.label, row.attempt)
            overdue[key] = since = self._overdue.get(key, self._now())
            if self._now() - since > LATE:
                raise Violation(f"{row.label} has been due in {row.state} for {self._now() - since:.0f} s")
        self._overdue = overdue


def _is_free(device: Device) -> bool:
    return device.state == "ready" and device.claim_id is None and not device.leaving and not device.used


def _time(value: Any) -> datetime | None:
    if value is None or isinstance(value, datetime):
        return value if value is None else value.replace(tzinfo=UTC)
    return datetime.fromisoformat(str(value)).replace(tzinfo=UTC)


def triggers(dialect: str) -> Iterator[str]:
    """Statements that make the table of touched rows and what fills it."""
    number = "INTEGER PRIMARY KEY AUTOINCREMENT" if dialect == "sqlite" else "BIGINT PRIMARY KEY AUTO_INCREMENT"
    yield f"CREATE TABLE sim_touched (id {number}, what VARCHAR(20) NOT NULL, row_id BIGINT NOT NULL)"
    for table, key in TRIGGERS.items():
        for verb, row in (("INSERT", "NEW"), ("UPDATE", "NEW"), ("DELETE", "OLD")):
            statement = f"INSERT INTO sim_touched (what, row_id) VALUES ('{table}', {row}.{key})"  # noqa: S608 (constants)  # nosec B608
            body = f"BEGIN {statement}; END" if dialect == "sqlite" else statement
            yield f"CREATE TRIGGER sim_{table}_{verb.lower()} AFTER {verb} ON {table} FOR EACH ROW {body}"
