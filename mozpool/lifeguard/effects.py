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
    """Look whether an idle device still answers: ``failed`` when it does not, nothing when it does."""


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
