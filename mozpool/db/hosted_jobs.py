# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Jobs that run on devices in a cloud: one row for each claim of a device that a job was ordered for.

The rows are written in the transitions of their devices, and outlive claims, requests and devices. A job on several
devices has a row for each of them, which name the same first request.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Select, bindparam, false, func, insert, or_, select, update
from sqlalchemy.sql.elements import ColumnElement

from mozpool.db.packing import loads_object
from mozpool.db.spelling import exactly
from mozpool.db.tables import device_requests, devices, hosted_jobs, requests

UNDER_WAY = ("job_starting", "job_waiting", "job_running")
"""States of a device that its job is on the way to, or runs on."""

BUSY_STATES = (*UNDER_WAY, "job_stopping", "job_cleanup", "job_done")
"""States of a device that a job keeps busy. Who gives up such a device leaves it something to do."""

REASON = 190
"""Characters of a reason that are kept."""

NUMBER_DIGITS = 18
"""What has more digits is no job's number."""

LONGEST_ID = 64
"""Characters of an id of a job or a task."""


@dataclass(frozen=True)
class Wish:
    """The boot config of a request for a job."""

    project: str
    group: str | None
    """What all requests for the same job on several devices have in common; None: it is a job on one device."""
    phones: int
    """On how many devices the job runs."""

    @classmethod
    def of(cls, boot_config: str | None) -> Wish | None:
        """What a boot config (JSON) asks for; None when it asks for no job."""
        wanted = loads_object(boot_config)
        project, group, phones = wanted.get("project"), wanted.get("group"), wanted.get("phones", 1)
        if not isinstance(project, str) or not project or not isinstance(phones, int) or phones < 1:
            return None
        if phones == 1:
            return cls(project, None, 1)
        return cls(project, group, phones) if isinstance(group, str) and group else None


@dataclass(frozen=True)
class Job:
    """What is known of a job on one device."""

    id: int
    claim_id: int
    request_id: int
    lead_request_id: int
    """The request whose id the job carries as its label."""
    device_id: int
    device: str
    project: str
    number: int | None
    job_id: str | None
    url: str | None
    task_id: str | None
    task_url: str | None
    status: str | None
    """The cloud's last word."""
    ordered: datetime
    running: datetime | None
    task_seen: datetime | None
    ended: datetime | None
    reason: str | None

    @property
    def outcome(self) -> str:
        """How it stands with it, in a few words, for the reason of its request."""
        name = "the job" if self.number is None else f"job {self.number}"
        if self.ended is None:
            return f"{name} was stopped"
        return f"{name} has ended: {self.reason or self.status or 'stopped'}"


_SELECT: Select[Any] = select(*(hosted_jobs.c[field.name] for field in fields(Job)))


def _jobs(conn: Connection, query: Select[Any]) -> list[Job]:
    return [Job(*row) for row in conn.execute(query)]


# Writing, within the transitions of devices


def order(
    conn: Connection, *, claim_id: int, request_id: int, device_id: int, device: str, project: str, now: datetime
) -> None:
    """A job is wanted on a device, for the holder of a claim."""
    values = {
        "claim_id": claim_id,
        "request_id": request_id,
        "lead_request_id": request_id,
        "device_id": device_id,
        "device": device,
        "project": project[:64],
        "ordered": now,
    }
    conn.execute(insert(hosted_jobs), values)


_OPEN_OF_CLAIM = update(hosted_jobs).where(
    hosted_jobs.c.claim_id == bindparam("row_claim"), hosted_jobs.c.ended.is_(None)
)


def _write(conn: Connection, claim_id: int, values: Mapping[str, Any]) -> None:
    if values:
        conn.execute(_OPEN_OF_CLAIM.values(**values), {"row_claim": claim_id})


def set_lead(conn: Connection, claim_id: int, lead_request_id: int) -> None:
    """The job is on its way, labelled with this request's id."""
    _write(conn, claim_id, {"lead_request_id": lead_request_id, "reason": None})


def saw(
    conn: Connection, claim_id: int, *, number: int | None, job_id: str | None, url: str | None, status: str
) -> None:
    """What the cloud says of the job of a claim; what it does not say any more stays."""
    found = {"number": number, "job_id": job_id, "url": url, "status": status[:32]}
    _write(conn, claim_id, {name: value for name, value in found.items() if value is not None})


def runs(conn: Connection, claim_id: int, now: datetime) -> None:
    """The job of a claim runs."""
    _write(conn, claim_id, {"running": now, "reason": None})


def failed(conn: Connection, claim_id: int, reason: str) -> None:
    """Something has failed with the job of a claim, which may be tried again."""
    _write(conn, claim_id, {"reason": reason[:REASON]})


def end(conn: Connection, claim_id: int, now: datetime) -> None:
    """The job of a claim has ended."""
    _write(conn, claim_id, {"ended": now})


_OPEN_OF_DEVICE = update(hosted_jobs).where(
    hosted_jobs.c.device_id == bindparam("row_device"), hosted_jobs.c.ended.is_(None)
)


def end_all(conn: Connection, device_id: int, now: datetime, reason: str) -> None:
    """No job is left on a device; ``reason`` says why, where nothing is said yet."""
    values = {"ended": now, "reason": func.coalesce(hosted_jobs.c.reason, reason[:REASON])}
    conn.execute(_OPEN_OF_DEVICE.values(**values), {"row_device": device_id})


def set_task(conn: Connection, job_id: int, *, task_id: str, task_url: str, now: datetime) -> None:
    """The worker of a job (its row's id) was seen with a task."""
    values = {"task_id": task_id, "task_url": task_url, "task_seen": func.coalesce(hosted_jobs.c.task_seen, now)}
    conn.execute(update(hosted_jobs).where(hosted_jobs.c.id == job_id).values(**values))


# Jobs on several devices


@dataclass(frozen=True)
class Member:
    """A device that has been claimed for a job on several devices, while the job is on its way or runs."""

    request_id: int
    device: str
    state: str


def members(conn: Connection, boot_config: str, request_id: int) -> list[Member]:
    """The devices that are held for requests with this very boot config, which names a group; by request.

    Only those of whoever made the request of this id, for the same team: nobody joins the group of somebody else.
    """
    query = (
        select(device_requests.c.request_id, devices.c.name, devices.c.state, requests.c.made_by, requests.c.team_id)
        .join(device_requests, device_requests.c.id == devices.c.operation_claim_id)
        .join(requests, requests.c.id == device_requests.c.request_id)
        .where(devices.c.state.in_(UNDER_WAY), exactly(devices.c.next_boot_config, boot_config))
        .order_by(device_requests.c.request_id)
    )
    rows = conn.execute(query).all()
    own = {(row.made_by, row.team_id) for row in rows if row.request_id == request_id}
    return [Member(row.request_id, row.name, row.state) for row in rows if (row.made_by, row.team_id) in own]


# Reading


def of_claim(conn: Connection, claim_id: int) -> Job | None:
    """The job that a device was claimed for, or None."""
    return next(iter(_jobs(conn, _SELECT.where(hosted_jobs.c.claim_id == claim_id))), None)


def of_requests(conn: Connection, request_ids: Collection[int]) -> dict[int, Job]:
    """Request → its latest job, for those that had one."""
    if not request_ids:
        return {}
    found = _jobs(conn, _SELECT.where(hosted_jobs.c.request_id.in_(request_ids)).order_by(hosted_jobs.c.id))
    return {job.request_id: job for job in found}


def of_devices(conn: Connection, device_ids: Collection[int]) -> dict[int, Job]:
    """Device → the job that has not ended on it, for those that have one."""
    if not device_ids:
        return {}
    wanted = _SELECT.where(hosted_jobs.c.device_id.in_(device_ids), hosted_jobs.c.ended.is_(None))
    return {job.device_id: job for job in _jobs(conn, wanted.order_by(hosted_jobs.c.id))}


def devices_of(conn: Connection, lead_request_id: int) -> list[str]:
    """The names of the devices that a job was started for, as far as they know it yet; by request."""
    rows = select(hosted_jobs.c.device).where(hosted_jobs.c.lead_request_id == lead_request_id)
    return list(conn.scalars(rows.order_by(hosted_jobs.c.request_id, hosted_jobs.c.id)))


def latest(conn: Connection, device_id: int, limit: int) -> list[Job]:
    """The latest jobs of a device, newest first."""
    mine = _SELECT.where(hosted_jobs.c.device_id == device_id)
    return _jobs(conn, mine.order_by(hosted_jobs.c.id.desc()).limit(limit))


def open_ones(conn: Connection) -> list[Job]:
    """All jobs that have not ended, the oldest first."""
    return _jobs(conn, _SELECT.where(hosted_jobs.c.ended.is_(None)).order_by(hosted_jobs.c.id))


def mentions(wanted: str) -> ColumnElement[bool]:
    """The condition for jobs that ``wanted`` names: by number, id or URL of the job, or by id or URL of its task.

    A URL names what ids are in it, whatever else it has (a run's number, a tab's name).
    """
    words = {wanted.strip(), *re.split(r"[/?#&=]", wanted.strip())} - {""}
    found: list[ColumnElement[bool]] = [false()]
    for column in (hosted_jobs.c.job_id, hosted_jobs.c.task_id):
        found += [exactly(column, word) for word in sorted(words) if len(word) <= LONGEST_ID]
    if wanted.strip().isascii() and wanted.strip().isdecimal() and len(wanted.strip()) <= NUMBER_DIGITS:
        found.append(hosted_jobs.c.number == int(wanted))
    return or_(*found)


def find(conn: Connection, wanted: str, limit: int = 100) -> list[Job]:
    """The jobs that ``wanted`` names (see :func:`mentions`), newest first."""
    return _jobs(conn, _SELECT.where(mentions(wanted)).order_by(hosted_jobs.c.id.desc()).limit(limit))


def between(conn: Connection, start: datetime, end: datetime) -> list[Job]:
    """The jobs that were ordered in a span of time, the oldest first."""
    span = hosted_jobs.c.ordered >= start, hosted_jobs.c.ordered < end
    return _jobs(conn, _SELECT.where(*span).order_by(hosted_jobs.c.id))
