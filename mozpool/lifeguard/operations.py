# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Does LifeGuard's effects: which BMM operation each one is, in which lane, and which event its outcome is."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import partial
from typing import Protocol

from mozpool.bmm.service import BMM
from mozpool.clock import Clock
from mozpool.db.devices import Device
from mozpool.db.engine import Database
from mozpool.effects import Part
from mozpool.errors import HardwareError
from mozpool.lifeguard.effects import (
    AgentReboot,
    AwaitReboot,
    CheckReady,
    CheckStorage,
    EndRequest,
    Ping,
    PowerCycle,
    StartJob,
    StopJob,
    StopLeftJob,
    SyncBoot,
    TellRequest,
    VerifyAgent,
    WatchJob,
    WatchPhone,
)
from mozpool.lifeguard.jobs import Jobs
from mozpool.statedriver import Event
from mozpool.statemachine import Effect

READY_CHECKS = 3
"""How often an idle device is asked before it counts as failed: a single ping gets lost now and then."""

OLD_BOOT_MARGIN = 20.0
"""Seconds by which an agent's uptime may exceed the time since the power cycle and still mean a new boot."""


class RequestLink(Protocol):
    """How LifeGuard reaches the requests, wherever they are served."""

    def lifeguard_finished(self, request_id: int, claim_id: int, result: str, attempt: int) -> None:
        """Tell a request how its device's operation ended; a message that gets lost is made good for by polling.

        ``attempt`` is the device's, which tells the operations of one claim apart.
        """
        ...

    def job_ended(self, request_id: int, claim_id: int, reason: str, attempt: int) -> None:
        """Close a request whose job has ended; likewise."""
        ...


def _is_for_nobody(row: Device) -> bool:
    """Whether the holder that an operation was begun for has gone, and nothing was done to the device yet."""
    begun_for = row.operation_claim_id
    return begun_for is not None and begun_for != row.claim_id and not row.state_counters


class DeviceOperations:
    """The performer of the device machine's effects. Called from worker threads."""

    def __init__(
        self, bmm: BMM, requests: RequestLink, database: Database, clock: Clock, *, speed: float = 1.0
    ) -> None:
        """``speed`` divides the pauses between repeated checks."""
        self._bmm = bmm
        self._jobs = Jobs(bmm, database, clock, speed=speed)
        self._requests = requests
        self._clock = clock
        self._speed = speed
        self._power_cycled: dict[int, float] = {}
        self._lock = threading.Lock()

    def lane(self, row: Device, effect: Effect) -> str | None:
        """Power operations share a lane with all that hangs on the same relay board; the rest is the device's own.

        What is asked of a cloud shares one with all devices of the account.
        """
        if isinstance(effect, PowerCycle):
            return self._bmm.power_lane(row)
        if isinstance(effect, TellRequest | EndRequest):
            return None
        if row.is_hosted and isinstance(effect, StartJob | WatchJob | StopJob | WatchPhone | CheckReady):
            return self._bmm.launcher_lane(row, start=isinstance(effect, StartJob))
        return f"device:{row.id}"

    def failure(self, effect: Effect) -> str | None:
        """Which event a failed effect is; probes are simply repeated."""
        if isinstance(effect, PowerCycle | AgentReboot):
            return "power_cycle_failed"
        if isinstance(effect, CheckStorage):
            return "sut_sdcard_failed"
        if isinstance(effect, CheckReady):
            return "failed"
        if isinstance(effect, StartJob) or (isinstance(effect, WatchJob) and effect.until_runs):
            return "job_start_failed"
        return None

    def probe_lane(self, lane: str) -> None:
        """Talk to the relay board, or the cloud account, behind a lane."""
        self._bmm.test_power(lane)

    def perform(self, row: Device, effect: Effect) -> Event | None:
        """Do an effect. Raises HardwareError, NotYet."""
        match effect:
            case AgentReboot():
                self._bmm.sync_boot(row, boots=True)
                self._bmm.agent_reboot(row)
                self._note_reboot(row)
                return Event("power_cycle_ok")
            case AwaitReboot():
                return Event("rebooted") if self._has_rebooted(row) else None
            case Ping():
                return Event("ping_ok") if self._bmm.ping(row) else None
            case VerifyAgent():
                self._bmm.verify_agent(row)
                return Event("sut_verify_ok")
            case CheckStorage():
                self._bmm.check_storage(row)
                return Event("sut_sdcard_ok")
            case CheckReady():
                return self._check_ready(row)
            case SyncBoot():
                self._bmm.sync_boot(row)
                return None
            case TellRequest(request_id=request_id, claim_id=claim_id, result=result):
                self._requests.lifeguard_finished(request_id, claim_id, result, row.attempt)
                return None
            case StartJob():
                return self._jobs.start(row)
            case WatchJob(until_runs=until_runs):
                return self._jobs.watch(row, until_runs=until_runs)
            case StopLeftJob():
                return Event("left_job_stopped") if self._bmm.stop_jobs(row) else None
            case StopJob():
                return Event("job_stopped") if self._bmm.stop_jobs(row) else None
            case WatchPhone():
                status = self._bmm.hosted_status(row)
                if status.faulty:
                    return Event("phone_faulty")
                return Event("phone_ok") if status.free else None
            case EndRequest(request_id=request_id, claim_id=claim_id, reason=reason):
                self._requests.job_ended(request_id, claim_id, reason, row.attempt)
                return None
            case _:
                raise TypeError(f"no such effect: {effect!r}")

    def power_cycles(self, parts: Sequence[Part[Device]]) -> None:
        """Do the power cycles of one lane, together where the hardware can do that."""
        cycles = []
        for part in parts:
            if _is_for_nobody(part.row):
                part.done(Event("not_wanted"), None)
                continue
            try:
                self._bmm.sync_boot(part.row, boots=True)
            except Exception as error:
                part.done(None, error)
                continue
            cycles.append((part.row, partial(self._cycled, part)))
        self._bmm.power_cycles(cycles)

    def _cycled(self, part: Part[Device], failed: Exception | None) -> None:
        if failed is not None:
            part.done(None, failed)
            return
        self._note_reboot(part.row)
        part.done(Event("power_cycle_ok"), None)

    def _note_reboot(self, row: Device) -> None:
        with self._lock:
            self._power_cycled[row.id] = self._clock.monotonic()

    def _has_rebooted(self, row: Device) -> bool:
        """Whether the agent answers from a boot that began after the power cycle.

        Where the agent can't tell its uptime, its answer is enough: the relay was read back, so the power was off.
        """
        uptime = self._bmm.agent_uptime(row)
        with self._lock:
            cycled = self._power_cycled.get(row.id)
        if uptime is None or cycled is None:
            return True
        return uptime <= self._clock.monotonic() - cycled + OLD_BOOT_MARGIN

    def _check_ready(self, row: Device) -> Event | None:
        if row.is_hosted:
            status = self._bmm.hosted_status(row)
            if not status.free:
                raise HardwareError(row.name, "check", f"the cloud says that it is {status.word}")
            return None
        reason = "it does not answer pings"
        for attempt in range(READY_CHECKS):
            if attempt:
                self._clock.sleep(1.0 / self._speed)
            try:
                if row.image_id is not None and row.image_has_agent:
                    self._bmm.verify_agent(row)
                    return None
                if self._bmm.ping(row):
                    return None
            except HardwareError as error:
                reason = error.message
        raise HardwareError(row.name, "check", reason)
