# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What the launcher reads of the pool: hosted devices, what has been asked for them, and how that went."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, and_, func, select, update

from mozpool.db import images as images_module
from mozpool.db.devices import HOSTED, owner_column
from mozpool.db.hosted_jobs import Wish
from mozpool.db.requests import END_STATES, FAILED_STATES
from mozpool.db.tables import device_history, device_requests, devices, hardware_types, hosted_jobs, images, requests

ASSIGNEE = "taskcluster/"
"""What the assignee of the launcher's requests begins with; a worker type follows."""

ON_THE_WAY = ("job_starting", "job_waiting")
"""States of a device whose job does not run yet."""


@dataclass(frozen=True)
class Phone:
    """A hosted device."""

    id: int
    name: str
    """Its UDID."""
    state: str
    environment: str
    claimed: bool
    proven: bool
    """Whether nobody has used it since it was proven to be free."""
    leaving: bool
    owner_id: int
    hardware: tuple[str, str] | None
    """The cloud's name for its type, and its version."""

    @property
    def free(self) -> bool:
        """Whether a request could have it now."""
        return self.state == "ready" and not self.claimed and self.proven and not self.leaving


def phones(conn: Connection) -> dict[str, Phone]:
    """All hosted devices by name, sorted by id."""
    query = (
        select(
            *(devices.c.id, devices.c.name, devices.c.state, func.coalesce(devices.c.environment, "none")),
            *(devices.c.claim_id.is_not(None), devices.c.operation_claim_id.is_(None), devices.c.leaving, owner_column),
            *(hardware_types.c.type, hardware_types.c.model),
        )
        .outerjoin(hardware_types, hardware_types.c.id == devices.c.hardware_type_id)
        .where(HOSTED)
        .order_by(devices.c.id)
    )
    found = {}
    for device_id, name, state, environment, claimed, proven, leaving, owner_id, kind, model in conn.execute(query):
        hardware = None if kind is None else (kind, model)
        flags = (bool(claimed), bool(proven), bool(leaving))
        found[name] = Phone(device_id, name, state, environment, *flags, owner_id, hardware)
    return found


def set_environment(conn: Connection, device_id: int, environment: str) -> bool:
    """Put a device into an environment unless somebody has it; answer whether nobody had."""
    mine = update(devices).where(devices.c.id == device_id, devices.c.claim_id.is_(None))
    return conn.execute(mine.values(environment=environment, version=devices.c.version + 1)).rowcount == 1


def set_hardware(conn: Connection, device_id: int, hardware_type_id: int) -> None:
    """Say what kind of device it is."""
    mine = update(devices).where(devices.c.id == device_id)
    conn.execute(mine.values(hardware_type_id=hardware_type_id, version=devices.c.version + 1))


@dataclass(frozen=True)
class Asked:
    """A request for a job that has not ended, whoever made it."""

    request_id: int
    assignee: str
    project: str
    device: str | None
    """What it has claimed."""
    device_state: str | None
    job: int | None
    """The id of its row in hosted_jobs; None: the device has not been asked to run it yet."""
    number: int | None
    """The cloud's number of its job, once the cloud lists it."""
    running: datetime | None
    task_seen: datetime | None
    ended: datetime | None

    @property
    def is_before_start(self) -> bool:
        """Whether its job does not run yet, and is going to."""
        if self.job is None:
            return self.device_state is None or not self.device_state.startswith("failed_")
        return self.ended is None and self.device_state in ON_THE_WAY

    @property
    def is_unknown(self) -> bool:
        """Whether the cloud may not list its job yet."""
        return self.is_before_start and self.number is None

    def may_take_task(self, since: datetime) -> bool:
        """Whether a worker is to be expected to take a task for it: it is on its way, or runs since then at most."""
        if self.task_seen is not None or self.ended is not None:
            return False
        return self.is_before_start or (
            self.device_state == "job_running" and self.running is not None and self.running > since
        )


def asked(conn: Connection) -> list[Asked]:
    """All requests for jobs that have not ended, sorted by id."""
    query = (
        select(
            *(requests.c.id, requests.c.assignee, requests.c.boot_config, devices.c.name, devices.c.state),
            *(hosted_jobs.c.id, hosted_jobs.c.number, hosted_jobs.c.running, hosted_jobs.c.task_seen),
            hosted_jobs.c.ended,
        )
        .join(images, images.c.id == requests.c.image_id)
        .outerjoin(device_requests, device_requests.c.request_id == requests.c.id)
        .outerjoin(devices, devices.c.id == device_requests.c.device_id)
        .outerjoin(hosted_jobs, hosted_jobs.c.claim_id == device_requests.c.id)
        .where(images.c.name == images_module.JOB, requests.c.state.not_in(END_STATES))
        .order_by(requests.c.id)
    )
    found = []
    for request_id, assignee, boot_config, *rest in conn.execute(query):
        wish = Wish.of(boot_config)
        if wish is not None:
            found.append(Asked(request_id, assignee, wish.project, *rest))
    return found


def give_up_failed(conn: Connection, now: datetime) -> None:
    """The launcher's requests that have failed need not be listed any longer: what came of them is in hosted_jobs."""
    own = requests.c.assignee.startswith(ASSIGNEE, autoescape=True)
    failed = and_(requests.c.state.in_(FAILED_STATES), requests.c.expires > now)
    conn.execute(update(requests).where(own, failed).values(expires=now, version=requests.c.version + 1))


@dataclass(frozen=True)
class Failures:
    """How often in a row no job could be started on a device, up to now."""

    number: int
    last: datetime


def failed_starts(conn: Connection, since: datetime) -> dict[str, Failures]:
    """Device → its failures, of those whose last job since some moment was not started."""
    query = (
        select(
            *(hosted_jobs.c.device, hosted_jobs.c.running, hosted_jobs.c.ended),
            *(hosted_jobs.c.reason, hosted_jobs.c.status),
        )
        .where(hosted_jobs.c.ended >= since)
        .order_by(hosted_jobs.c.ended.desc(), hosted_jobs.c.id.desc())
    )
    over: set[str] = set()
    found: dict[str, Failures] = {}
    for device, running, ended, reason, status in conn.execute(query):
        if device in over or (running is None and reason in GIVEN_BACK):
            continue
        if running is not None or (reason is None and status == "completed"):
            over.add(device)
        elif device in found:
            found[device] = Failures(found[device].number + 1, found[device].last)
        else:
            found[device] = Failures(1, ended)
    return found


GIVEN_BACK = ("stopped",)
"""Reasons of jobs that were not wanted any more before they ran: no fault of anybody."""


def states_of(conn: Connection, request_ids: Collection[int]) -> Mapping[int, str]:
    """Request → state, of those that there are."""
    if not request_ids:
        return {}
    rows: Any = conn.execute(select(requests.c.id, requests.c.state).where(requests.c.id.in_(sorted(request_ids))))
    return {row[0]: row[1] for row in rows}


def states_entered(conn: Connection, states: Collection[str], start: datetime, end: datetime) -> list[tuple[str, str]]:
    """(device, state) for each time that a device came into one of these states, the oldest first."""
    query = select(device_history.c.device, device_history.c.to_state).where(
        device_history.c.ts >= start, device_history.c.ts < end, device_history.c.to_state.in_(states)
    )
    rows = conn.execute(query.order_by(device_history.c.id))
    return [(row[0] or "a device that is gone", row[1]) for row in rows]
