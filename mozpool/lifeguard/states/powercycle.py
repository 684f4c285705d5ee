# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""A reboot from the device's own storage, until it has proven itself."""

from __future__ import annotations

from mozpool.db.devices import Device
from mozpool.lifeguard.effects import AgentReboot, AwaitReboot, CheckStorage, Ping, PowerCycle, VerifyAgent
from mozpool.lifeguard.states.base import (
    COMPLETE,
    DeviceContext,
    begins_anew,
    clear_pxe,
    finish_operation,
    has_power,
    retry,
    set_image,
    set_next_image,
)
from mozpool.statemachine import STAY, TIMEOUT, State, entry, on, when

STEP = "power_cycling"
"""The counter that all power-cycling states share."""


def agent_expected(ctx: DeviceContext) -> bool:
    """Whether what boots from the device's storage has an agent: the image just installed, else the one it holds."""
    if ctx.get("next_image_id") is not None:
        return ctx.row.next_image_has_agent
    return ctx.get("image_id") is not None and ctx.row.image_has_agent


class PcPowerCycling(State[Device]):
    """The device's power is being cut and restored; it boots from its own storage."""

    name = "pc_power_cycling"
    timeout = 60
    tries = 200
    taken_over = begins_anew("pc_power_cycling")

    @entry(to=("pc_sut_rebooting", "failed_power_cycling", "job_stopping"))
    def enter(self, ctx: DeviceContext) -> str | None:
        """Prefer the relay: reboots by agent proved unreliable. A hosted device can only be proven."""
        if ctx.row.is_hosted:
            set_next_image(ctx, None, None)
            return "job_stopping"
        ctx.set(pxe_config=None)
        if has_power(ctx.row, ctx.reads.default_power):
            ctx.effect(PowerCycle())
            return None
        if agent_expected(ctx) or (ctx.get("image_id") is None and ctx.row.last_seen is not None):
            ctx.effect(AgentReboot())  # an unknown image whose agent has registered has one
            return "pc_sut_rebooting"
        clear_pxe(ctx)
        ctx.detail = "no power control and no agent"
        ctx.log("cannot be rebooted: it has neither power control nor an agent")
        return "failed_power_cycling"

    power_cycle_ok = when("power_cycle_ok", to="pc_rebooting")

    @on("not_wanted", to="ready")
    def not_wanted(self, ctx: DeviceContext) -> str | None:
        """Its holder has gone before the power was touched: the device is as proven as it was."""
        ctx.set(operation_claim_id=None)
        return None

    @on("power_cycle_failed", TIMEOUT, to=("pc_power_cycling", "failed_power_cycling"))
    def failed(self, ctx: DeviceContext) -> str | None:
        """Again, until the tries are used up."""
        return retry(ctx, STEP, again="pc_power_cycling", otherwise="failed_power_cycling")


class PcRebooting(State[Device]):
    """Power is back and the device boots. Its boot loader answers pings too, so those prove nothing yet."""

    name = "pc_rebooting"
    timeout = 120
    taken_over = begins_anew("pc_rebooting")

    def enter(self, ctx: DeviceContext) -> str | None:
        """An agent that answers from a new boot ends the wait."""
        if agent_expected(ctx):
            ctx.effect(AwaitReboot())
        return None

    rebooted = when("rebooted", to="pc_pinging")
    over = when(TIMEOUT, to="pc_pinging")


class PcSutRebooting(State[Device]):
    """The agent was told to reboot the device, which gets a moment to shut down."""

    name = "pc_sut_rebooting"
    timeout = 10
    taken_over = begins_anew("pc_power_cycling")

    @on("power_cycle_failed", to=())
    def failed(self, ctx: DeviceContext) -> str | None:
        """The agent did not take the command: remembered until the moment is over, so that it is not asked at once."""
        ctx.count(self.name)
        return STAY

    @on(TIMEOUT, to=("sut_verifying", "pc_power_cycling", "failed_power_cycling"))
    def over(self, ctx: DeviceContext) -> str | None:
        """Verify the new boot; without a reboot there is none to verify."""
        if not ctx.counters.get(self.name):
            return "sut_verifying"
        ctx.clear(self.name)
        ctx.tries = ctx.tries_of(PcPowerCycling.name)
        return retry(ctx, STEP, again="pc_power_cycling", otherwise="failed_power_cycling")


class PcPinging(State[Device]):
    """The device should be up: it is pinged until it answers."""

    name = "pc_pinging"
    timeout = 10
    tries = 12
    taken_over = begins_anew("pc_pinging")

    def enter(self, ctx: DeviceContext) -> str | None:
        """Ping every second."""
        ctx.effect(Ping())
        return None

    @on("ping_ok", to=("operation_complete", "sut_verifying"))
    def ping_ok(self, ctx: DeviceContext) -> str | None:
        """A ping proves little where an agent can prove more."""
        ctx.clear(self.name, STEP)
        return "sut_verifying" if agent_expected(ctx) else "operation_complete"

    @on(TIMEOUT, to=("pc_pinging", "pc_power_cycling", "failed_power_cycling"))
    def timed_out(self, ctx: DeviceContext) -> str | None:
        """Cut the power again after some tries; each time counts as a failed power cycle, so that this has an end."""
        if retry(ctx, self.name, again=self.name, otherwise="") == self.name:
            return self.name
        ctx.tries = ctx.tries_of(PcPowerCycling.name)
        return retry(ctx, STEP, again="pc_power_cycling", otherwise="failed_power_cycling")


class SutVerifying(State[Device]):
    """The device's agent is asked until it answers as it should."""

    name = "sut_verifying"
    timeout = 45
    tries = 30
    taken_over = begins_anew("sut_verifying")

    def enter(self, ctx: DeviceContext) -> str | None:
        """Ask every second."""
        ctx.effect(VerifyAgent())
        return None

    @on("sut_verify_ok", to="sut_sdcard_verifying")
    def verified(self, ctx: DeviceContext) -> str | None:
        """The agent works."""
        ctx.clear(self.name, SutVerifyPowerCycle.name)
        return None

    @on(TIMEOUT, to=("sut_verifying", "sut_verify_power_cycle", "failed_sut_verifying"))
    def timed_out(self, ctx: DeviceContext) -> str | None:
        """Every tenth failure cuts the power."""
        target = retry(ctx, self.name, again=self.name, otherwise="failed_sut_verifying")
        if target == self.name and ctx.counters[self.name] % 10 == 0 and has_power(ctx.row, ctx.reads.default_power):
            return "sut_verify_power_cycle"
        return target


class SutVerifyPowerCycle(State[Device]):
    """The agent did not answer for long: the power is cut and restored before it is asked again."""

    name = "sut_verify_power_cycle"
    timeout = 60
    tries = 3
    taken_over = begins_anew("sut_verify_power_cycle")

    def enter(self, ctx: DeviceContext) -> str | None:
        """Boot from the device's own storage."""
        ctx.set(pxe_config=None)
        ctx.effect(PowerCycle())
        return None

    @on("power_cycle_ok", to="sut_verifying")
    def power_cycle_ok(self, ctx: DeviceContext) -> str | None:
        """Ask the agent again."""
        ctx.clear(self.name)
        return None

    @on("power_cycle_failed", TIMEOUT, to=("sut_verify_power_cycle", "failed_sut_verifying"))
    def failed(self, ctx: DeviceContext) -> str | None:
        """Again, until the tries are used up."""
        return retry(ctx, self.name, again=self.name, otherwise="failed_sut_verifying")


class SutSdcardVerifying(State[Device]):
    """The agent writes a file to the device's storage and removes it, to show that storage works."""

    name = "sut_sdcard_verifying"
    timeout = 200
    tries = 2
    taken_over = begins_anew("sut_sdcard_verifying")

    def enter(self, ctx: DeviceContext) -> str | None:
        """Once; the check tries its commands several times by itself."""
        ctx.effect(CheckStorage())
        return None

    @on("sut_sdcard_ok", to="operation_complete")
    def verified(self, ctx: DeviceContext) -> str | None:
        """Storage works."""
        ctx.clear(self.name)
        return None

    @on("sut_sdcard_failed", TIMEOUT, to=("sut_sdcard_verifying", "failed_sut_sdcard_verifying"))
    def failed(self, ctx: DeviceContext) -> str | None:
        """Again, until the tries are used up."""
        return retry(ctx, self.name, again=self.name, otherwise="failed_sut_sdcard_verifying")


class OperationComplete(State[Device]):
    """What was asked of the device is done and proven."""

    name = "operation_complete"
    timeout = 60
    taken_over = begins_anew("operation_complete")

    @entry(to="ready")
    def enter(self, ctx: DeviceContext) -> str | None:
        """The image that was installed is the device's image now; its request is told."""
        ctx.clear()
        if ctx.get("next_image_id") is not None:
            set_image(ctx, ctx.get("next_image_id"), ctx.get("next_boot_config"))
            set_next_image(ctx, None, None)
        finish_operation(ctx, COMPLETE)
        return "ready"

    again = when(TIMEOUT, to="operation_complete")


STATES: tuple[type[State[Device]], ...] = (
    PcPowerCycling,
    PcRebooting,
    PcSutRebooting,
    PcPinging,
    SutVerifying,
    SutVerifyPowerCycle,
    SutSdcardVerifying,
    OperationComplete,
)
