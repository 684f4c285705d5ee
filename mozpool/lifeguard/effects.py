# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What LifeGuard has done to devices after a commit. :mod:`mozpool.lifeguard.operations` does it.

Each effect brings its result back as an event of the device's state machine, or none when there is nothing to tell.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mozpool.statemachine import Effect

PROBE_INTERVAL = 1.0
"""Seconds between two attempts of a probe: time limits are limits, a step ends as soon as its proof is there."""


@dataclass(frozen=True)
class PowerCycle(Effect):
    """Make the network boot files say what the row says, cut power, restore it: ``power_cycle_ok`` or ``…_failed``."""

    joint: ClassVar[bool] = True


@dataclass(frozen=True)
class AgentReboot(Effect):
    """The same by the device's agent; ``power_cycle_ok`` once the agent has taken the command."""


@dataclass(frozen=True)
class AwaitReboot(Effect):
    """Ask the agent until it answers from a new boot: ``rebooted``. That it does not answer meanwhile is no news."""

    quiet: ClassVar[bool] = True
    every: ClassVar[float | None] = PROBE_INTERVAL


@dataclass(frozen=True)
class Ping(Effect):
    """Ping until it answers: ``ping_ok``."""

    every: ClassVar[float | None] = PROBE_INTERVAL


@dataclass(frozen=True)
class VerifyAgent(Effect):
    """Talk to the agent until it answers as it should: ``sut_verify_ok``."""

    every: ClassVar[float | None] = PROBE_INTERVAL


@dataclass(frozen=True)
class CheckStorage(Effect):
    """Write and remove a file by the agent: ``sut_sdcard_ok`` or ``sut_sdcard_failed``."""


@dataclass(frozen=True)
class CheckReady(Effect):
    """Look whether an idle device still answers: ``failed`` when it does not, nothing when it does.

    A hosted one answers when its cloud says that it is free. A cloud that says nothing says nothing of the device.
    """

    patient: ClassVar[bool] = True


@dataclass(frozen=True)
class StartJob(Effect):
    """Start the job that a hosted device is held for, once all devices are there that it is to run on.

    ``job_ordered`` when it is on its way, ``job_start_failed``, ``group_incomplete``, or ``released`` when nobody wants
    it any more. A cloud that does not answer is waited for.
    """

    every: ClassVar[float | None] = 5.0
    patient: ClassVar[bool] = True
    pause: ClassVar[float] = 5.0


@dataclass(frozen=True)
class WatchJob(Effect):
    """Look for the job that was started: ``job_running`` or ``job_ended``; ``job_start_failed`` when it never will be.

    With ``until_runs``, else until it has ended.
    """

    every: ClassVar[float | None] = PROBE_INTERVAL
    patient: ClassVar[bool] = True
    pause: ClassVar[float] = 5.0
    until_runs: bool


@dataclass(frozen=True)
class StopJob(Effect):
    """Stop all jobs of this pool that are on a hosted device: ``job_stopped`` when the cloud knows of none."""

    every: ClassVar[float | None] = 5.0


@dataclass(frozen=True)
class StopLeftJob(StopJob):
    """The same for a device that a person has taken from under its job: nobody waits for it."""

    channel: ClassVar[str] = "job"
    bound: ClassVar[bool] = False


@dataclass(frozen=True)
class WatchPhone(Effect):
    """Ask the cloud how a hosted device is: ``phone_ok`` when it is free, ``phone_faulty`` when it was given up."""

    every: ClassVar[float | None] = PROBE_INTERVAL


@dataclass(frozen=True)
class SyncBoot(Effect):
    """Make the network boot files say what the row says."""

    channel: ClassVar[str] = "boot"
    bound: ClassVar[bool] = False


@dataclass(frozen=True)
class TellRequest(Effect):
    """Tell the request that has the device how its operation ended."""

    channel: ClassVar[str] = "link"
    bound: ClassVar[bool] = False
    request_id: int
    claim_id: int
    result: str


@dataclass(frozen=True)
class EndRequest(Effect):
    """Let the request that has the device be closed: the job that it was made for has ended."""

    channel: ClassVar[str] = "link"
    bound: ClassVar[bool] = False
    request_id: int
    claim_id: int
    reason: str
