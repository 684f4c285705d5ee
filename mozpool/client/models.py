# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What the API answers, as frozen dataclasses. ``raw`` holds the answer itself, with what newer servers added to it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Self, TypeVar

from mozpool.client.errors import ClientError

T = TypeVar("T")

READY = "ready"
CLOSED = "closed"
FAILED = "failed_"
"""State names that are part of the API: a request may be used, has ended, or failed (a prefix)."""

DEVICE_COUNTS = ("total", "in_use", "idle", "processing", "failed", "out_of_service")
"""What is said of the devices of a pool."""

Json = Mapping[str, Any]


@dataclass(frozen=True)
class LogLine:
    """A line of a device's or a request's log."""

    id: int
    timestamp: datetime | None
    source: str
    message: str

    @classmethod
    def parse(cls, raw: Json) -> Self:
        """From the API's JSON."""
        return cls(
            id=_number(raw.get("id")) or 0,
            timestamp=_time(raw.get("timestamp")),
            source=_text(raw.get("source")) or "",
            message=_text(raw.get("message")) or "",
        )

    @classmethod
    def parse_list(cls, raw: Json) -> tuple[Self, ...]:
        """The ``log`` of an answer."""
        return tuple(cls.parse(line) for line in raw.get("log") or ())


@dataclass(frozen=True)
class Image:
    """What can be installed on devices."""

    name: str
    boot_config_keys: tuple[str, ...]
    """What every request for this image has to bring along."""
    can_reuse: bool
    has_sut_agent: bool
    raw: Json = field(repr=False, compare=False)

    @classmethod
    def parse(cls, raw: Json) -> Self:
        """From the API's JSON."""
        keys = raw.get("boot_config_keys") or ()
        return cls(
            name=str(raw["name"]),
            boot_config_keys=tuple(json.loads(keys) if isinstance(keys, str) else keys),
            can_reuse=bool(raw.get("can_reuse")),
            has_sut_agent=bool(raw.get("has_sut_agent")),
            raw=raw,
        )


@dataclass(frozen=True)
class AuditEntry:
    """A change, or an attempt."""

    id: int
    time: datetime | None
    """When it was over."""
    kind: str
    """What made it: person, token, command, ..."""
    who: str | None
    address: str | None
    """From where."""
    action: str
    target: str | None
    """On what, such as ``device panda-0001``."""
    details: Json
    outcome: str
    """``ok``, or why not."""
    raw: Json = field(repr=False, compare=False)

    @classmethod
    def parse(cls, raw: Json) -> Self:
        """From the API's JSON."""
        return cls(
            id=_number(raw.get("id")) or 0,
            time=_time(raw.get("time")),
            kind=_text(raw.get("kind")) or "",
            who=_text(raw.get("who")),
            address=_text(raw.get("address")),
            action=_text(raw.get("action")) or "",
            target=_text(raw.get("target")),
            details=_object(raw.get("details")),
            outcome=_text(raw.get("outcome")) or "",
            raw=raw,
        )


@dataclass(frozen=True)
class ReportKind:
    """A report that there is."""

    name: str
    title: str
    about: str
    raw: Json = field(repr=False, compare=False)

    @classmethod
    def parse(cls, raw: Json) -> Self:
        """From the API's JSON."""
        return cls(str(raw["name"]), _text(raw.get("title")) or "", _text(raw.get("about")) or "", raw)


@dataclass(frozen=True)
class Report:
    """A report as a server made it."""

    name: str
    since: datetime | None
    """None: it is about the moment ``until``."""
    until: datetime | None
    columns: tuple[str, ...]
    """Names of the columns, in order."""
    titles: tuple[str, ...]
    """The same for people."""
    rows: tuple[Json, ...]
    """Name of a column → value."""
    raw: Json = field(repr=False, compare=False)

    @classmethod
    def parse(cls, raw: Json) -> Self:
        """From the API's JSON."""
        columns = raw.get("columns") or ()
        return cls(
            name=str(raw["report"]),
            since=_time(raw.get("since")),
            until=_time(raw.get("until")),
            columns=tuple(str(column["name"]) for column in columns),
            titles=tuple(str(column.get("title") or column["name"]) for column in columns),
            rows=tuple(raw.get("rows") or ()),
            raw=raw,
        )


@dataclass(frozen=True)
class Job:
    """A job on a hosted device."""

    number: int | None
    """The cloud's number of it."""
    url: str | None
    status: str | None
    """The cloud's last word of it."""
    project: str | None
    task_url: str | None
    """The Taskcluster task that its worker was seen with last."""

    @classmethod
    def parse(cls, raw: Any) -> Self | None:
        """From the API's JSON; None when there is no job."""
        if not isinstance(raw, Mapping):
            return None
        return cls(
            number=_number(raw.get("number")),
            url=_text(raw.get("url")),
            status=_text(raw.get("status")),
            project=_text(raw.get("project")),
            task_url=_text(raw.get("task_url")),
        )


@dataclass(frozen=True)
class Device:
    """A device as it was when the server answered."""

    name: str
    state: str
    address: str
    """Where programs reach it: an IP address or a host name."""
    fqdn: str
    environment: str
    image: str | None
    boot_config: Json
    hardware_type: str | None
    hardware_model: str | None
    labels: Mapping[str, str]
    imaging_server: str
    """The server that owns it."""
    server_state: str
    """``up``, or why its server does nothing with it: ``away``, ``stopped``."""
    leaving: bool
    """Whether it is not in the inventory any more and goes as soon as it is free."""
    comments: str | None
    request_id: int | None
    """The request that holds it now, if one does."""
    assignee: str | None
    """Who holds it now, if anybody does."""
    expires: datetime | None
    """Until when its holder has it."""
    job: Job | None
    """The job that it runs, or that is on its way to it."""
    raw: Json = field(repr=False, compare=False)

    @classmethod
    def parse(cls, raw: Json) -> Self:
        """From the API's JSON."""
        fqdn = _text(raw.get("fqdn")) or ""
        holder = raw.get("holder")
        if not isinstance(holder, Mapping):
            holder = {"assignee": holder or raw.get("assignee"), "expires": raw.get("expires")}
        return cls(
            name=str(raw["name"]),
            state=_text(raw.get("state")) or "",
            address=_text(raw.get("address")) or fqdn,
            fqdn=fqdn,
            environment=_text(raw.get("environment")) or "",
            image=_text(raw.get("image")),
            boot_config=_object(raw.get("boot_config")),
            hardware_type=_text(raw.get("hardware_type")),
            hardware_model=_text(raw.get("hardware_model")),
            labels={name: str(value) for name, value in _object(raw.get("labels")).items()},
            imaging_server=_text(raw.get("imaging_server")) or "",
            server_state=_text(raw.get("owner_state")) or "up",
            leaving=bool(raw.get("leaving")),
            comments=_text(raw.get("comments")),
            request_id=_number(raw.get("request_id") or holder.get("request_id")),
            assignee=_text(holder.get("assignee")),
            expires=_time(holder.get("expires")),
            job=Job.parse(raw.get("job")),
            raw=raw,
        )


@dataclass(frozen=True)
class Waiting:
    """Why a request has no device yet."""

    reason: str
    place: int
    """Its place among those that the same devices can serve: 1 is the next one."""


@dataclass(frozen=True)
class Request:
    """A request as it was when the server answered."""

    id: int
    state: str
    """Empty where an old server does not tell it."""
    assignee: str
    requested_device: str
    assigned_device: str | None
    device_state: str | None
    image: str | None
    environment: str
    boot_config: Json
    expires: datetime | None
    url: str | None
    """Where the server that owns the request serves it."""
    reason: str | None
    """Why it failed or was closed, or why it waits."""
    waiting: Waiting | None
    """Why it waits, while it does."""
    last_device: str | None
    """In lists: the device that it has, or had last if it has ended."""
    job: Job | None
    """The job that it has, or had, a hosted device for."""
    raw: Json = field(repr=False, compare=False)

    @classmethod
    def parse(cls, raw: Json) -> Self:
        """From the API's JSON, which some calls put under ``request``."""
        nested = raw.get("request")
        if isinstance(nested, Mapping):
            raw = nested
        return cls(
            id=int(raw["id"]),
            state=_text(raw.get("state")) or "",
            assignee=_text(raw.get("assignee")) or "",
            requested_device=_text(raw.get("requested_device")) or "",
            assigned_device=_text(raw.get("assigned_device")),
            device_state=_text(raw.get("device_state")),
            image=_text(raw.get("image")),
            environment=_text(raw.get("environment")) or "",
            boot_config=_object(raw.get("boot_config")),
            expires=_time(raw.get("expires")),
            url=_text(raw.get("url")),
            reason=_text(raw.get("reason")),
            waiting=_waiting(raw),
            last_device=_text(raw.get("last_device")),
            job=Job.parse(raw.get("job")),
            raw=raw,
        )

    @property
    def ready(self) -> bool:
        """Whether its device may be used."""
        return self.state == READY

    @property
    def ended(self) -> bool:
        """Whether it neither has nor gets a device any more."""
        return ended(self.state)


@dataclass(frozen=True)
class Status:
    """A request's state and the newest lines of its log, the oldest first."""

    state: str
    log: tuple[LogLine, ...]
    device: str | None
    device_state: str | None
    claimed_at: datetime | None
    """When it got its device."""
    reason: str | None
    waiting: Waiting | None
    raw: Json = field(repr=False, compare=False)

    @classmethod
    def parse(cls, raw: Json) -> Self:
        """From the API's JSON."""
        return cls(
            state=str(raw["state"]),
            log=LogLine.parse_list(raw),
            device=_text(raw.get("assigned_device")),
            device_state=_text(raw.get("device_state")),
            claimed_at=_time(raw.get("claimed_at")),
            reason=_text(raw.get("reason")),
            waiting=_waiting(raw),
            raw=raw,
        )

    @property
    def ended(self) -> bool:
        """Whether the request neither has nor gets a device any more."""
        return ended(self.state)


@dataclass(frozen=True)
class Output:
    """What a command on a device printed, and what it returned (None: the agent does not say)."""

    output: str
    return_code: int | None

    @classmethod
    def parse(cls, raw: Json) -> Self:
        """From the API's JSON."""
        return cls(output=_text(raw.get("output")) or "", return_code=_number(raw.get("return_code")))


@dataclass(frozen=True)
class PoolStatus:
    """How a pool is doing, in numbers."""

    devices: Mapping[str, int]
    """How many are ``in_use``, ``idle``, ``processing``, ``failed`` and ``out_of_service``, and the ``total``."""
    waiting: int
    """Requests that wait for a device."""
    longest_wait: float
    """Seconds since the oldest of them was made."""
    servers: int
    """Imaging servers."""
    missing_servers: tuple[str, ...]
    """Those that are not there although they have devices or requests."""
    relay_boards: int
    failed_relay_boards: tuple[str, ...]
    person_needed: Mapping[str, str]
    """Name → state of the latest devices that need a person."""
    raw: Json = field(repr=False, compare=False)

    @classmethod
    def parse(cls, raw: Json) -> Self:
        """From the API's JSON."""
        servers, boards, requests = raw["servers"], raw["relay_boards"], raw["requests"]
        return cls(
            devices={name: int(raw["devices"][name]) for name in DEVICE_COUNTS},
            waiting=int(requests["waiting"]),
            longest_wait=float(requests["longest_wait"]),
            servers=int(servers["total"]),
            missing_servers=tuple(str(name) for name in servers["missing"]),
            relay_boards=int(boards["total"]),
            failed_relay_boards=tuple(str(name) for name in boards["failing"]),
            person_needed={str(device["name"]): str(device["state"]) for device in raw["person_needed"]},
            raw=raw,
        )


@dataclass(frozen=True)
class Token:
    """A token, by which somebody says who they are."""

    id: int
    name: str
    role: str
    team: str | None
    note: str | None
    created: datetime | None
    created_by: str
    expires: datetime | None
    revoked: datetime | None
    last_used: datetime | None
    last_address: str | None
    text: str | None = field(repr=False)
    """What is to be sent; None but right after it was made."""
    raw: Json = field(repr=False, compare=False)

    @classmethod
    def parse(cls, raw: Json) -> Self:
        """From the API's JSON."""
        return cls(
            id=_number(raw.get("id")) or 0,
            name=_text(raw.get("name")) or "",
            role=_text(raw.get("role")) or "",
            team=_text(raw.get("team")),
            note=_text(raw.get("note")),
            created=_time(raw.get("created")),
            created_by=_text(raw.get("created_by")) or "",
            expires=_time(raw.get("expires")),
            revoked=_time(raw.get("revoked")),
            last_used=_time(raw.get("last_used")),
            last_address=_text(raw.get("last_address")),
            text=_text(raw.get("token")),
            raw=raw,
        )


@dataclass(frozen=True)
class Team:
    """A team, and what its people may have."""

    name: str
    max_devices: int | None
    max_duration: int | None
    """Seconds."""
    environments: tuple[str, ...] | None
    """None: all."""
    groups: tuple[str, ...]
    devices: int
    """How many it has now."""
    raw: Json = field(repr=False, compare=False)

    @classmethod
    def parse(cls, raw: Json) -> Self:
        """From the API's JSON."""
        environments = raw.get("environments")
        return cls(
            name=_text(raw.get("name")) or "",
            max_devices=_number(raw.get("max_devices")),
            max_duration=_number(raw.get("max_duration")),
            environments=None if environments is None else tuple(str(name) for name in environments),
            groups=tuple(str(name) for name in raw.get("groups") or ()),
            devices=_number(raw.get("devices")) or 0,
            raw=raw,
        )


def understood(parse: Callable[[Any], T], answer: Any) -> T:
    """What ``parse`` makes of an answer. Raises ClientError when that is nothing that imaging servers answer."""
    try:
        return parse(answer)
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise ClientError("what the server answered can't be understood") from error


def ended(state: str) -> bool:
    """Whether a request in this state neither has nor gets a device any more."""
    return state == CLOSED or state.startswith(FAILED)


def _text(value: object) -> str | None:
    """A text; null and nothing mean the same to old servers and new ones."""
    return None if value is None or value == "" else str(value)


def _number(value: object) -> int | None:
    return int(value) if isinstance(value, int | float) else None


def _time(value: object) -> datetime | None:
    """A moment in UTC, which old paths write without saying so."""
    if not isinstance(value, str) or not value:
        return None
    try:
        moment = datetime.fromisoformat(value)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _object(value: object) -> Json:
    """An object, which old paths write as a string of JSON; what is none counts as empty."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return {}
    return value if isinstance(value, Mapping) else {}


def _waiting(raw: Json) -> Waiting | None:
    """The reason is why a request waits as long as it has a place in the queue, and why it failed afterwards."""
    place = _number(raw.get("place"))
    return None if place is None else Waiting(reason=_text(raw.get("reason")) or "", place=place)
