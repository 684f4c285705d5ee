# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""A boot from the network into the live image."""

from __future__ import annotations

from mozpool.db.devices import Device
from mozpool.lifeguard.effects import AgentReboot, PowerCycle, SyncBoot
from mozpool.lifeguard.states.base import (
    MAINTENANCE,
    SELF_TEST,
    DeviceContext,
    begins_anew,
    clear_pxe,
    has_power,
    retry,
    set_next_image,
)
from mozpool.lifeguard.states.powercycle import STEP
from mozpool.statemachine import TAKEN_OVER, TIMEOUT, State, entry, on


class StartPxeBoot(State[Device]):
    """An image is about to be installed."""

    name = "start_pxe_boot"

    @entry(to="pxe_power_cycling")
    def enter(self, ctx: DeviceContext) -> str | None:
        """With all its tries."""
        ctx.clear()
        return "pxe_power_cycling"

    @on(TIMEOUT, TAKEN_OVER, to="pxe_power_cycling")
    def go_on(self, ctx: DeviceContext) -> str | None:
        """For rows that were left here."""
        ctx.clear()
        return None


class StartSelfTest(State[Device]):
    """The device is about to prove itself, by the self-test image where its hardware has one, else by a reboot.

    A hosted device is proven when jobs of ours that are left on it have been stopped, and its cloud says it is free.
    """

    name = "start_self_test"

    @entry(to=("pxe_power_cycling", "pc_power_cycling", "job_stopping"))
    def enter(self, ctx: DeviceContext) -> str | None:
        """Choose the way."""
        return self._begin(ctx)

    @on(TIMEOUT, TAKEN_OVER, to=("pxe_power_cycling", "pc_power_cycling", "job_stopping"))
    def go_on(self, ctx: DeviceContext) -> str | None:
        """For rows that were left here."""
        return self._begin(ctx)

    def _begin(self, ctx: DeviceContext) -> str:
        ctx.clear()
        if ctx.row.is_hosted:
            set_next_image(ctx, None, None)
            return "job_stopping"
        image_id = ctx.reads.image_id(SELF_TEST)
        if image_id is not None and ctx.reads.pxe_config_for(ctx.row.hardware_type_id, image_id) is not None:
            set_next_image(ctx, image_id, "{}")
            return "pxe_power_cycling"
        set_next_image(ctx, None, None)
        return "pc_power_cycling"


class StartMaintenance(State[Device]):
    """The device is about to boot the live image for a person to look at it."""

    name = "start_maintenance"

    @entry(to="pxe_power_cycling")
    def enter(self, ctx: DeviceContext) -> str | None:
        """The maintenance image is next."""
        return self._begin(ctx)

    @on(TIMEOUT, TAKEN_OVER, to="pxe_power_cycling")
    def go_on(self, ctx: DeviceContext) -> str | None:
        """For rows that were left here."""
        return self._begin(ctx)

    def _begin(self, ctx: DeviceContext) -> str:
        ctx.clear()
        set_next_image(ctx, ctx.reads.image_id(MAINTENANCE), "{}")
        return "pxe_power_cycling"


class PxePowerCycling(State[Device]):
    """The boot configuration is written and the power cut and restored, so that the device boots from the network."""

    name = "pxe_power_cycling"
    timeout = 60
    tries = 200
    taken_over = begins_anew("pxe_power_cycling")

    @entry(to=("failed_pxe_booting", "failed_power_cycling", "job_stopping"))
    def enter(self, ctx: DeviceContext) -> str | None:
        """Needs a PXE config for this hardware and image, and a way to reboot; a hosted device can only be proven."""
        if ctx.row.is_hosted:
            set_next_image(ctx, None, None)
            return "job_stopping"
        config = ctx.reads.pxe_config_for(ctx.row.hardware_type_id, ctx.get("next_image_id"))
        if config is None:
            ctx.detail = "no PXE config for this hardware and image"
            ctx.log("cannot boot from the network: no PXE config for this hardware and image")
            return "failed_pxe_booting"
        ctx.set(pxe_config=config, last_pxe_config=config)
        if has_power(ctx.row, ctx.reads.default_power):
            ctx.effect(PowerCycle())
            return None
        if ctx.get("image_id") is not None and ctx.row.image_has_agent:
            ctx.effect(AgentReboot())
            return None
        ctx.detail = "no power control and no agent"
        ctx.log("cannot be rebooted: it has neither power control nor an agent")
        return "failed_power_cycling"

    @on("power_cycle_ok", to="pxe_booting")
    def power_cycle_ok(self, ctx: DeviceContext) -> str | None:
        """Now the boot loader has the word."""
        ctx.clear(STEP)
        return None

    @on("not_wanted", to="ready")
    def not_wanted(self, ctx: DeviceContext) -> str | None:
        """Its holder has gone before the power was touched: the device is as proven as it was."""
        clear_pxe(ctx)
        set_next_image(ctx, None, None)
        ctx.set(operation_claim_id=None)
        return None

    @on("power_cycle_failed", TIMEOUT, to=("pxe_power_cycling", "failed_power_cycling"))
    def failed(self, ctx: DeviceContext) -> str | None:
        """Again, until the tries are used up."""
        return retry(ctx, STEP, again=self.name, otherwise="failed_power_cycling")


class PxeBooting(State[Device]):
    """The device boots from the network; the live image reports when it runs."""

    name = "pxe_booting"
    timeout = 180
    tries = 30
    taken_over = begins_anew("pxe_power_cycling")

    @on("mobile_init_started", to="mobile_init_started", reported=True)
    def started(self, ctx: DeviceContext) -> str | None:
        """The live image runs: the next boot is from the device's own storage again."""
        ctx.clear(self.name)
        clear_pxe(ctx)
        return None

    @on(TIMEOUT, to=("pxe_power_cycling", "failed_pxe_booting"))
    def timed_out(self, ctx: DeviceContext) -> str | None:
        """Once more from the power cycle."""
        return retry(ctx, self.name, again="pxe_power_cycling", otherwise="failed_pxe_booting")


class MobileInitStarted(State[Device]):
    """The live image runs and fetches its second stage, which reports what it is going to do."""

    name = "mobile_init_started"
    timeout = 10
    tries = 10
    taken_over = begins_anew("pxe_power_cycling")

    @on("android_downloading", to="android_downloading", reported=True)
    @on("b2g_downloading", to="b2g_downloading", reported=True)
    @on("raw_downloading", to="raw_downloading", reported=True)
    @on("self_test_running", to="self_test_running", reported=True)
    def second_stage(self, ctx: DeviceContext) -> str | None:
        """The second stage has begun."""
        ctx.clear(self.name)
        clear_pxe(ctx)
        return ctx.event

    @on("maint_mode", to="maintenance_mode", reported=True)
    def maint_mode(self, ctx: DeviceContext) -> str | None:
        """The live image stays, also over reboots: its PXE config is kept."""
        ctx.clear(self.name)
        config = ctx.row.last_pxe_config
        if ctx.row.pxe_config is None and config is not None:
            ctx.set(pxe_config=config)
            ctx.effect(SyncBoot())
        return None

    @on(TIMEOUT, to=("pxe_power_cycling", "failed_mobile_init_started"))
    def timed_out(self, ctx: DeviceContext) -> str | None:
        """Once more from the power cycle."""
        return retry(ctx, self.name, again="pxe_power_cycling", otherwise="failed_mobile_init_started")


STATES: tuple[type[State[Device]], ...] = (
    StartPxeBoot,
    StartSelfTest,
    StartMaintenance,
    PxePowerCycling,
    PxeBooting,
    MobileInitStarted,
)
