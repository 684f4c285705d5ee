# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""States of devices that could not be brought to work."""

from __future__ import annotations

from mozpool.db.devices import Device
from mozpool.lifeguard.states.base import (
    BAD_DEVICE,
    AcceptsBasic,
    DeviceContext,
    Rests,
    finish_operation,
    set_next_image,
)
from mozpool.statemachine import TIMEOUT, State, entry, on


class Failed(Rests, AcceptsBasic):
    """What all failed states do: tell the holder's request, and go back offline when that was the bargain."""

    @entry(to="locked_out")
    def enter(self, ctx: DeviceContext) -> str | None:
        """Tell who waits for the device."""
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
)
