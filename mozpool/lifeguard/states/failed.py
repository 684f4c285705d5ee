# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""States of devices that could not be brought to work."""

from __future__ import annotations

from mozpool.db.devices import Device
from mozpool.lifeguard.effects import WatchPhone
from mozpool.lifeguard.states.base import (
    BAD_DEVICE,
    AcceptsBasic,
    DeviceContext,
    Rests,
    end_request,
    finish_operation,
    set_next_image,
)
from mozpool.statemachine import TIMEOUT, State, entry, on


class Failed(Rests, AcceptsBasic):
    """What all failed states do: tell the holder's request, and go back offline when that was the bargain."""

    @entry(to="locked_out")
    def enter(self, ctx: DeviceContext) -> str | None:
        """Tell who waits for the device; a job that ran on it until now has ended."""
        if ctx.row.next_image_id is not None and ctx.row.is_hosted and ctx.row.imaging_result is not None:
            end_request(ctx)
        else:
            finish_operation(ctx, BAD_DEVICE)
        set_next_image(ctx, None, None)
        if ctx.get("going_offline"):
            ctx.log("did not come online: locked out again")
            return "locked_out"
        return None


class HealsItself(Failed):
    """Failures that a self-test often heals: it is started without a person."""

    timeout = 0

    @on(TIMEOUT, to="start_self_test")
    def heal(self, ctx: DeviceContext) -> str | None:
        """Try a self-test."""
        ctx.set(operation_claim_id=None)
        return None


class FailedPowerCycling(Failed):
    """The power could not be cycled: the relay board, its wiring or `relay_info` needs a person."""

    name = "failed_power_cycling"


class FailedPxeBooting(Failed):
    """The device does not boot from the network: a person must look at its network, SD card or PXE config."""

    name = "failed_pxe_booting"


class FailedMobileInitStarted(Failed):
    """The live image starts but its second stage never reports: a person must look at boot scripts or the network."""

    name = "failed_mobile_init_started"


class FailedSelfTest(Failed):
    """The self-test found a fault of the hardware: the device's log says which. A person must repair it."""

    name = "failed_self_test"


class FailedSutVerifying(HealsItself):
    """The agent never answered as it should; a self-test follows by itself."""

    name = "failed_sut_verifying"


class FailedSutSdcardVerifying(HealsItself):
    """The agent could not write to the device's storage; a self-test follows by itself."""

    name = "failed_sut_sdcard_verifying"


class FailedAndroidDownloading(HealsItself):
    """The Android build could not be fetched; a self-test follows by itself."""

    name = "failed_android_downloading"


class FailedAndroidExtracting(HealsItself):
    """The Android build could not be written; a self-test follows by itself."""

    name = "failed_android_extracting"


class FailedB2gDownloading(HealsItself):
    """The B2G build could not be fetched; a self-test follows by itself."""

    name = "failed_b2g_downloading"


class FailedB2gExtracting(HealsItself):
    """The B2G build could not be written; a self-test follows by itself."""

    name = "failed_b2g_extracting"


class FailedRawDownloading(HealsItself):
    """The disk image could not be fetched; a self-test follows by itself."""

    name = "failed_raw_downloading"


class FailedRawWriting(HealsItself):
    """The disk image could not be written or its check failed; a self-test follows by itself."""

    name = "failed_raw_writing"


class FailedJobStarting(HealsItself):
    """No job could be started on the device: its log says why. It is proven anew by itself."""

    name = "failed_job_starting"


class FailedJobStopping(HealsItself):
    """A job on the device could not be stopped, or its cloud did not say that it was; that is tried on by itself."""

    name = "failed_job_stopping"


class FailedJobCleanup(HealsItself):
    """The cloud did not clean the device after a job; it is proven anew by itself."""

    name = "failed_job_cleanup"


class FailedPhone(Failed):
    """The cloud has given the device up, or never says that it is free: somebody must ask who runs the cloud.

    It is looked at all the same, and goes on when it is free again.
    """

    name = "failed_phone"
    timeout = 60

    @entry(to="locked_out")
    def enter(self, ctx: DeviceContext) -> str | None:
        """Ask the cloud once a minute."""
        target = None if ctx.row.state == self.name else super().enter(ctx)
        if target is None and ctx.row.is_hosted:
            ctx.effect(WatchPhone())
        return target

    @on(TIMEOUT, to="failed_phone")
    def again(self, ctx: DeviceContext) -> str | None:
        """Ask again."""
        return None

    @on("phone_ok", to="phone_verifying")
    def free(self, ctx: DeviceContext) -> str | None:
        """It is free again."""
        ctx.set(operation_claim_id=None)
        return None


STATES: tuple[type[State[Device]], ...] = (
    FailedPowerCycling,
    FailedPxeBooting,
    FailedMobileInitStarted,
    FailedSelfTest,
    FailedSutVerifying,
    FailedSutSdcardVerifying,
    FailedAndroidDownloading,
    FailedAndroidExtracting,
    FailedB2gDownloading,
    FailedB2gExtracting,
    FailedRawDownloading,
    FailedRawWriting,
    FailedJobStarting,
    FailedJobStopping,
    FailedJobCleanup,
    FailedPhone,
)
