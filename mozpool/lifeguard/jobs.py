# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Jobs on hosted devices, as LifeGuard's effects have them: who starts which one when, and what is seen of it.

A job on several devices is started once, for the first of their requests, when all of them are there. Which these are
is in the database, so it plays no part which imaging servers act on them.
"""

from __future__ import annotations

import threading
from datetime import timedelta

from mozpool.bmm.interfaces import HostedJob, JobOrder
from mozpool.bmm.service import BMM
from mozpool.clock import Clock
from mozpool.db import devices, hosted_jobs
from mozpool.db.devices import Device
from mozpool.db.engine import Database
from mozpool.db.hosted_jobs import Wish
from mozpool.errors import NotYet
from mozpool.statedriver import Event

GROUP_LIMIT = 120.0
"""Seconds within which all devices of a job on several must have been claimed."""

GROUP_LOOK = 1.0
"""Seconds between two looks whether the others are there."""


class Jobs:
    """Called from worker threads."""

    def __init__(self, bmm: BMM, database: Database, clock: Clock, *, speed: float = 1.0) -> None:
        """``speed`` divides limits and pauses."""
        self._bmm = bmm
        self._database = database
        self._clock = clock
        self._speed = speed
        self._lock = threading.Lock()
        self._orders: dict[int, tuple[int, JobOrder]] = {}
        """Device → the claim that its job was ordered for, and the order."""
        self._seen: dict[int, tuple[int, HostedJob]] = {}
        """Device → the claim, and what was last written of its job."""

    def start(self, row: Device) -> Event:
        """Start the job that a device is held for. Raises NotYet, HardwareError."""
        with self._database.read() as conn:
            # Fresh: a job that nobody wants any more would run for nobody.
            fresh = devices.get(conn, row.id)
            wish = None if fresh is None else Wish.of(fresh.next_boot_config)
            if fresh is None or wish is None or not fresh.is_held or fresh.request_id is None:
                return Event("released")
            members = hosted_jobs.members(conn, fresh.next_boot_config or "", fresh.request_id) if wish.group else []
        if not wish.group:
            return self._order(fresh, JobOrder(fresh.request_id, wish.project, (fresh.name,)))
        chosen = members[: wish.phones]
        if len(chosen) < wish.phones or fresh.name not in [member.device for member in chosen]:
            since = fresh.state_since or self._clock.now()
            if self._clock.now() - since > timedelta(seconds=GROUP_LIMIT / self._speed):
                there = f"{len(chosen)} of its {wish.phones} devices are there"
                return Event("group_incomplete", {"reason": f"group {wish.group}: {there}"})
            raise NotYet(GROUP_LOOK / self._speed)
        lead = chosen[0]
        order = JobOrder(lead.request_id, wish.project, tuple(member.device for member in chosen))
        if lead.device == fresh.name:
            return self._order(fresh, order)
        if lead.state == "job_starting":
            raise NotYet(GROUP_LOOK / self._speed)
        return Event("job_ordered", {"lead": lead.request_id})

    def _order(self, row: Device, order: JobOrder) -> Event:
        self._bmm.start_job(row, order)
        return Event("job_ordered", {"lead": order.request_id})

    def watch(self, row: Device, *, until_runs: bool) -> Event | None:
        """One look at a device's job. Raises HardwareError: it was not started."""
        claim_id = row.operation_claim_id
        order = None if claim_id is None else self._order_of(row.id, claim_id)
        if order is None or claim_id is None:
            return None
        job = self._bmm.look_at_job(row, order)
        if job is None:
            return None
        self._note(row.id, claim_id, job)
        if job.ended:
            return Event("job_ended")
        return Event("job_running") if job.runs and until_runs else None

    def _order_of(self, device_id: int, claim_id: int) -> JobOrder | None:
        with self._lock:
            known = self._orders.get(device_id)
        if known is not None and known[0] == claim_id:
            return known[1]
        with self._database.read() as conn:
            job = hosted_jobs.of_claim(conn, claim_id)
            if job is None:
                return None
            names = hosted_jobs.devices_of(conn, job.lead_request_id)
        order = JobOrder(job.lead_request_id, job.project, tuple(names))
        with self._lock:
            self._orders[device_id] = (claim_id, order)
        return order

    def _note(self, device_id: int, claim_id: int, job: HostedJob) -> None:
        """Write what is seen of a job, when it is something new. Raises DatabaseAway."""
        with self._lock:
            if self._seen.get(device_id) == (claim_id, job):
                return
        self._database.run(
            lambda conn: hosted_jobs.saw(
                conn, claim_id, number=job.number, job_id=job.id, url=job.url, status=job.status
            ),
            repeatable=True,
        )
        with self._lock:
            self._seen[device_id] = (claim_id, job)
