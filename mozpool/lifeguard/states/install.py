# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The second stages that install an image, each told by its own events."""

from __future__ import annotations

from mozpool.db.devices import Device
from mozpool.lifeguard.effects import AwaitReboot
from mozpool.lifeguard.states.base import DeviceContext, begins_anew, has_power, retry, set_image
from mozpool.statemachine import TIMEOUT, State, on

INSTALLED = ("sut_verifying", "pc_rebooting")


class Installing(State[Device]):
    """What the steps of an installation share."""

    taken_over = begins_anew("pxe_power_cycling")

    def after_reboot(self, ctx: DeviceContext) -> str:
        """The new image proves itself by its agent, where it has one.

        Else it is pinged, once the live image and the boot loader, which answer too, must be over.
        """
        ctx.clear(self.name)
        return "sut_verifying" if ctx.row.next_image_has_agent else "pc_rebooting"

    def downloaded(self, ctx: DeviceContext) -> None:
        """From here on nobody knows what the device's storage holds."""
        ctx.clear(self.name)
        set_image(ctx, None, None)

    def once_more(self, ctx: DeviceContext) -> str:
        """From the power cycle, unless it was tried often enough.

        Until the power is cut a slow board still writes, so nobody knows what it holds. A device that only its agent
        can reboot is believed to have it as long as that is tried.
        """
        step = retry(ctx, self.name, again="pxe_power_cycling", otherwise=f"failed_{self.name}")
        if step != "pxe_power_cycling" or has_power(ctx.row, ctx.reads.default_power):
            set_image(ctx, None, None)
        return step


class AndroidDownloading(Installing):
    """The live image fetches an Android build."""

    name = "android_downloading"
    timeout = 180
    tries = 3

    @on("android_extracting", to="android_extracting", reported=True)
    def fetched(self, ctx: DeviceContext) -> str | None:
        """Fetched; now it is written."""
        self.downloaded(ctx)
        return None

    @on(TIMEOUT, to=("pxe_power_cycling", "failed_android_downloading"))
    def timed_out(self, ctx: DeviceContext) -> str | None:
        """Once more from the power cycle."""
        return self.once_more(ctx)


class AndroidExtracting(Installing):
    """The live image writes the Android build to the device's storage."""

    name = "android_extracting"
    timeout = 600
    tries = 10

    @on("android_rebooting", to=INSTALLED, reported=True)
    def rebooting(self, ctx: DeviceContext) -> str | None:
        """Written; the device boots it now."""
        return self.after_reboot(ctx)

    @on(TIMEOUT, to=("pxe_power_cycling", "failed_android_extracting"))
    def timed_out(self, ctx: DeviceContext) -> str | None:
        """Once more from the power cycle."""
        return self.once_more(ctx)


class B2gDownloading(Installing):
    """The live image fetches a B2G build."""

    name = "b2g_downloading"
    timeout = 180
    tries = 3

    @on("b2g_extracting", to="b2g_extracting", reported=True)
    def fetched(self, ctx: DeviceContext) -> str | None:
        """Fetched; now it is written."""
        self.downloaded(ctx)
        return None

    @on(TIMEOUT, to=("pxe_power_cycling", "failed_b2g_downloading"))
    def timed_out(self, ctx: DeviceContext) -> str | None:
        """Once more from the power cycle."""
        return self.once_more(ctx)


class B2gExtracting(Installing):
    """The live image writes the B2G build to the device's storage."""

    name = "b2g_extracting"
    timeout = 300
    tries = 10

    @on("b2g_rebooting", to=INSTALLED, reported=True)
    def rebooting(self, ctx: DeviceContext) -> str | None:
        """Written; the device boots it now."""
        return self.after_reboot(ctx)

    @on(TIMEOUT, to=("pxe_power_cycling", "failed_b2g_extracting"))
    def timed_out(self, ctx: DeviceContext) -> str | None:
        """Once more from the power cycle."""
        return self.once_more(ctx)


class RawDownloading(Installing):
    """The live image fetches a disk image."""

    name = "raw_downloading"
    timeout = 180
    tries = 3

    @on("raw_writing", to="raw_writing", reported=True)
    def fetched(self, ctx: DeviceContext) -> str | None:
        """Fetched; now it is written."""
        self.downloaded(ctx)
        return None

    @on(TIMEOUT, to=("pxe_power_cycling", "failed_raw_downloading"))
    def timed_out(self, ctx: DeviceContext) -> str | None:
        """Once more from the power cycle."""
        return self.once_more(ctx)


class RawWriting(Installing):
    """The live image writes the disk image to the device's storage and checks it."""

    name = "raw_writing"
    timeout = 600
    tries = 10

    @on("raw_rebooting", to="raw_rebooting", reported=True)
    def rebooting(self, ctx: DeviceContext) -> str | None:
        """Written and checked."""
        ctx.clear(self.name)
        return None

    @on(TIMEOUT, to=("pxe_power_cycling", "failed_raw_writing"))
    def timed_out(self, ctx: DeviceContext) -> str | None:
        """Once more from the power cycle."""
        return self.once_more(ctx)


class RawRebooting(Installing):
    """The disk image was written and the device boots it."""

    name = "raw_rebooting"
    timeout = 120
    taken_over = begins_anew("raw_rebooting")

    def enter(self, ctx: DeviceContext) -> str | None:
        """An agent that answers ends the wait: the live image has none."""
        if ctx.row.next_image_has_agent:
            ctx.effect(AwaitReboot())
        return None

    @on("rebooted", TIMEOUT, to=("sut_verifying", "pc_pinging"))
    def over(self, ctx: DeviceContext) -> str | None:
        """Now the image has to prove itself."""
        return "sut_verifying" if ctx.row.next_image_has_agent else "pc_pinging"


STATES: tuple[type[State[Device]], ...] = (
    AndroidDownloading,
    AndroidExtracting,
    B2gDownloading,
    B2gExtracting,
    RawDownloading,
    RawWriting,
    RawRebooting,
)
