# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""States in which nothing is going on."""

from __future__ import annotations

from mozpool.db.devices import Device
from mozpool.lifeguard.effects import CheckReady
from mozpool.lifeguard.states.base import (
    COMPLETE,
    AcceptsAll,
    AcceptsBasic,
    DeviceContext,
    Rests,
    begins_anew,
    finish_operation,
    set_image,
    set_next_image,
)
from mozpool.statemachine import TIMEOUT, State, on, when


class New(Rests, AcceptsAll):
    """The device was just added to the pool and is about to be tested for the first time."""

    name = "new"
    timeout = 0
    forced_only = True
    begin = when(TIMEOUT, to="start_self_test")


class Unknown(Rests, AcceptsAll):
    """The database says something that this version does not understand. Nothing happens until somebody asks."""

    name = "unknown"
    forced_only = True


class LockedOut(Rests):
    """A person took the device out of the pool. Mozpool does not touch it until a person puts it back."""

    name = "locked_out"
    left_by_force = True

    def enter(self, ctx: DeviceContext) -> str | None:
        """Whoever had the device set offline again has it so now."""
        ctx.set(going_offline=0)
        return None


class Troubleshooting(Rests, AcceptsAll):
    """A person is looking into the device: it does what it is asked, but nothing by itself."""

    name = "troubleshooting"
    forced_only = True


class Ready(Rests, AcceptsAll):
    """The device was proven to work. It is idle, or the request that holds it may use it."""

    name = "ready"
    timeout = 600

    def enter(self, ctx: DeviceContext) -> str | None:
        """Look after an idle device; leave a lent one alone."""
        if ctx.row.going_offline:
            ctx.set(going_offline=0)
        if ctx.row.claim_id is None:
            ctx.effect(CheckReady())
        return None

    @on(TIMEOUT, to=("ready", "start_self_test"))
    def again(self, ctx: DeviceContext) -> str | None:
        """A hosted device that somebody has used must prove itself: it is not proven for each request."""
        device = ctx.row
        used = device.is_hosted and device.claim_id is None and device.operation_claim_id is not None
        return "start_self_test" if used else self.name

    @on("failed", to="start_self_test")
    def failed(self, ctx: DeviceContext) -> str | None:
        """An idle device that stopped to answer has to prove itself again."""
        ctx.set(operation_claim_id=None)
        return None


class MaintenanceMode(Rests, AcceptsBasic):
    """The device runs the live image and waits for a person to log in by SSH."""

    name = "maintenance_mode"

    def enter(self, ctx: DeviceContext) -> str | None:
        """Whoever asked for the live image has it now, unless it was given back on the way here."""
        set_image(ctx, None, None)
        set_next_image(ctx, None, None)
        ctx.clear()
        finish_operation(ctx, COMPLETE)
        asked_by = ctx.get("operation_claim_id")
        if asked_by is not None and asked_by != ctx.row.claim_id:
            ctx.within(0)
        return None

    @on(TIMEOUT, "released", to="start_self_test")
    def released(self, ctx: DeviceContext) -> str | None:
        """Its holder gave it back (which sets a deadline): it leaves the live image by a self-test."""
        ctx.set(operation_claim_id=None)
        return None


class SelfTestRunning(AcceptsBasic):
    """The device checks its own hardware from the live image."""

    name = "self_test_running"
    timeout = 3600

    def enter(self, ctx: DeviceContext) -> str | None:
        """The test may overwrite what was installed."""
        set_image(ctx, None, None)
        set_next_image(ctx, None, None)
        return None

    @on("self_test_ok", to="ready", reported=True)
    def self_test_ok(self, ctx: DeviceContext) -> str | None:
        """All tests passed; an imaging result is not sent."""
        ctx.clear()
        return None

    failed_self_test = when("failed_self_test", to="failed_self_test", reported=True)
    timed_out = when(TIMEOUT, to="failed_self_test")
    taken_over = begins_anew("start_self_test")


STATES: tuple[type[State[Device]], ...] = (
    New,
    Unknown,
    LockedOut,
    Troubleshooting,
    Ready,
    MaintenanceMode,
    SelfTestRunning,
)
