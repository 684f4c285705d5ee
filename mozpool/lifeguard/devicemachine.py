# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""LifeGuard's state machine: every device's state, and how it is coaxed back to health."""

from __future__ import annotations

from mozpool.db.devices import Device
from mozpool.lifeguard.states import failed, install, netboot, powercycle, resting
from mozpool.lifeguard.states.base import abandon_operation
from mozpool.statemachine import Machine, State, Tuning

STATES: tuple[type[State[Device]], ...] = (
    *resting.STATES,
    *powercycle.STATES,
    *netboot.STATES,
    *install.STATES,
    *failed.STATES,
)


def device_machine(tuning: Tuning | None = None) -> Machine[Device]:
    """Build the machine; ``tuning`` changes its time limits and numbers of tries."""
    return Machine("device", STATES, unknown="unknown", tuning=tuning, on_force=abandon_operation)


CATEGORIES = ("in use", "idle", "processing", "failed", "out of service")


def category(state: str, claimed: bool) -> str:
    """Which of :data:`CATEGORIES` a device belongs to, for people who don't know the states."""
    if state.startswith("failed_"):
        return "failed"
    if state in ("locked_out", "troubleshooting"):
        return "out of service"
    if state in ("ready", "maintenance_mode"):
        return "in use" if claimed else ("idle" if state == "ready" else "out of service")
    return "processing"
