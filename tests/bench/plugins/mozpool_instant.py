# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Backends that answer at once: what is left of a benchmark is Mozpool itself.

A package of its own, with entry points, as any other that adds a backend: put this directory on PYTHONPATH.
"""

from __future__ import annotations

from collections.abc import Sequence

from mozpool.bmm.interfaces import Agent, BackendContext, Boot, CommandResult, Power, Probe, Target
from mozpool.clock import Deadline


class InstantPower(Power):
    """Every device has a relay board of its own."""

    def __init__(self, context: BackendContext) -> None:
        """Needs nothing."""

    def lane(self, device: Target) -> str:
        return f"instant:{device.name}"

    def power_cycle(self, device: Target, deadline: Deadline) -> None:
        pass

    def power_off(self, device: Target, deadline: Deadline) -> None:
        pass

    def power_on(self, device: Target, deadline: Deadline) -> None:
        pass

    def is_on(self, device: Target, deadline: Deadline) -> bool | None:
        return True

    def test(self, lane: str, deadline: Deadline) -> None:
        pass


class InstantBoot(Boot):
    """Nothing to write."""

    def __init__(self, context: BackendContext) -> None:
        """Needs nothing."""

    def set_config(self, device: Target, config: str, deadline: Deadline) -> None:
        pass

    def clear(self, device: Target, deadline: Deadline) -> None:
        pass


class InstantProbe(Probe):
    """Always there."""

    def __init__(self, context: BackendContext) -> None:
        """Needs nothing."""

    def ping(self, device: Target, deadline: Deadline) -> bool:
        return True


class InstantAgent(Agent):
    """Always well, and booted this very moment."""

    def __init__(self, context: BackendContext) -> None:
        """Needs nothing."""

    def verify(self, device: Target, deadline: Deadline) -> None:
        pass

    def check_storage(self, device: Target, deadline: Deadline) -> None:
        pass

    def reboot(self, device: Target, deadline: Deadline) -> None:
        pass

    def uptime(self, device: Target, deadline: Deadline) -> float | None:
        return 0.0

    def run(self, device: Target, command: Sequence[str], deadline: Deadline) -> CommandResult:
        return CommandResult("", 0)
