# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""LifeGuard's state machine: every device's state, and how it is coaxed back to health."""

from __future__ import annotations

from mozpool.db.devices import Device, Rule
from mozpool.lifeguard.states import failed, hosted, install, netboot, powercycle, resting
from mozpool.lifeguard.states.base import forced
from mozpool.statemachine import Machine, State, Tuning

STATES: tuple[type[State[Device]], ...] = (
    *resting.STATES,
    *powercycle.STATES,
    *netboot.STATES,
    *install.STATES,
    *hosted.STATES,
    *failed.STATES,
)


def device_machine(tuning: Tuning | None = None) -> Machine[Device]:
    """Build the machine; ``tuning`` changes its time limits and numbers of tries."""
    return Machine("device", STATES, unknown="unknown", tuning=tuning, on_force=forced)


PERSON_NEEDED = tuple(state.name for state in failed.STATES if not issubclass(state, failed.HealsItself))
"""Failed states that a device does not leave by itself."""

CATEGORIES = ("in use", "idle", "processing", "failed", "out of service")


RULES = (
    Rule("failed", prefix="failed_"),
    Rule("out of service", states=("locked_out", "troubleshooting")),
    Rule("in use", states=("ready", "maintenance_mode", "job_running"), claimed=True),
    Rule("idle", states=("ready",)),
    Rule("out of service", states=("maintenance_mode",)),
    Rule("processing"),
)
"""Which of the categories a device belongs to."""


def category(state: str, claimed: bool) -> str:
    """Which of :data:`CATEGORIES` a device belongs to, for people who don't know the states."""
    return next(rule.name for rule in RULES if rule.fits(state, claimed))
