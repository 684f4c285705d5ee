# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What the states of a device share: "please" events, results for the claim, retries."""

from __future__ import annotations

import json
from typing import Any, Protocol

from mozpool.db import claims, history, hosted_jobs, images
from mozpool.db.bootconfig import boot_config_hash
from mozpool.db.devices import Device
from mozpool.lifeguard.effects import EndRequest, StopLeftJob, SyncBoot, TellRequest
from mozpool.statemachine import STAY, TAKEN_OVER, Context, Handler, State, on

COMPLETE = "complete"
BAD_IMAGE = "failed-bad-image"
BAD_DEVICE = "failed-bad-device"

SELF_TEST = images.SELF_TEST
MAINTENANCE = images.MAINTENANCE


class Reads(Protocol):
    """What the device machine may look up while it decides, in the transition's transaction."""

    def image_id(self, name: str) -> int | None:
        """The id of an image, None when there is none of that name."""
        ...

    def pxe_config_for(self, hardware_type_id: int | None, image_id: int | None) -> str | None:
        """The name of the PXE config that boots this image on this hardware, None when there is none."""
        ...

    def is_hosted_on(self, hardware_type_id: int | None, image_id: int | None) -> bool:
        """Whether hosted devices of this hardware can be had with this image."""
        ...

    def job(self, claim_id: int) -> hosted_jobs.Job | None:
        """The job that a device was claimed for, None when it was for none."""
        ...

    @property
    def default_power(self) -> str:
        """The name of the power backend of devices that name none."""
        ...


DeviceContext = Context[Device]


def has_power(device: Device, default_power: str) -> bool:
    """Whether somebody can cut this device's power: by its relay, or by a backend that needs none.

    ``default_power`` is the name of the backend of devices that name none.
    """
    if device.is_hosted:
        return False
    return bool(device.relay_info) or (device.backends.get("power") or default_power) != "proxr"


def set_image(ctx: DeviceContext, image_id: int | None, boot_config: str | None) -> None:
    """Note which image the device holds from now on; None = unknown."""
    known = image_id is not None
    ctx.set(
        image_id=image_id,
        boot_config=boot_config if known else None,
        boot_config_hash=boot_config_hash(boot_config) if known else None,
    )


def set_next_image(ctx: DeviceContext, image_id: int | None, boot_config: str | None) -> None:
    """Note which image is being installed; None = none."""
    ctx.set(next_image_id=image_id, next_boot_config=boot_config)


def clear_pxe(ctx: DeviceContext) -> None:
    """Let the device boot from its own storage from now on.

    The files are looked at even when the row says so already: a crash may have come between the two.
    """
    ctx.set(pxe_config=None)
    ctx.effect(SyncBoot())


def finish_operation(ctx: DeviceContext, result: str) -> None:
    """Store the result of the current operation for its claim, and tell the claim's request.

    Nothing happens when the operation was nobody's, or its holder is gone: an old result must not reach a new holder.
    """
    device = ctx.row
    claim_id = ctx.get("operation_claim_id")
    if claim_id is None or claim_id != device.claim_id or device.request_id is None:
        return
    ctx.also(lambda conn: claims.set_result(conn, claim_id, result), imaging_result=result)
    ctx.effect(TellRequest(device.request_id, claim_id, result))


def end_request(ctx: DeviceContext) -> bool:
    """Let the request be closed that the device has run a job for; False when it has given the device back already."""
    device = ctx.row
    claim_id = ctx.get("operation_claim_id")
    if claim_id is None or claim_id != device.claim_id or device.request_id is None:
        return False
    job = ctx.reads.job(claim_id)
    ctx.effect(EndRequest(device.request_id, claim_id, "the job has ended" if job is None else job.outcome))
    return True


def begin_operation(ctx: DeviceContext) -> None:
    """Note for whom the device works from now on.

    When an operator's "please" takes the device from under an operation of its holder, the holder's request is told.
    """
    device = ctx.row
    claim_id = ctx.args.get("claim_id")
    if claim_id is None:
        abandon_operation(ctx)
    elif device.imaging_result is not None:
        ctx.also(lambda conn: claims.set_result(conn, claim_id, None), imaging_result=None)
    ctx.set(operation_claim_id=claim_id)


def abandon_operation(ctx: DeviceContext) -> None:
    """A person takes the device from under its holder's operation: the holder's request need not wait for it."""
    device = ctx.row
    if device.claim_id is not None and device.operation_claim_id == device.claim_id and device.imaging_result is None:
        claim_id, request_id = device.claim_id, device.request_id
        ctx.also(lambda conn: claims.set_result(conn, claim_id, BAD_DEVICE), imaging_result=BAD_DEVICE)
        if request_id is not None:
            ctx.effect(TellRequest(request_id, claim_id, BAD_DEVICE))
    ctx.set(operation_claim_id=None)


def forced(ctx: DeviceContext) -> None:
    """A person decides against what is going on: its holder need not wait, and a live image may go on writing.

    A job on a hosted device is stopped, and its request closed.
    """
    device = ctx.row
    if device.is_hosted and device.next_image_id is not None:
        ctx.also(lambda conn: hosted_jobs.end_all(conn, device.id, ctx.now, "a person took the device"))
        ctx.effect(StopLeftJob())
        if device.imaging_result is not None:
            end_request(ctx)
        set_next_image(ctx, None, None)
    abandon_operation(ctx)
    if device.next_image_id is not None:
        set_image(ctx, None, None)


def retry(ctx: DeviceContext, step: str, *, again: str, otherwise: str) -> str:
    """Count a failure of ``step``: as many as the state's tries are retried, the next one leads to ``otherwise``."""
    limit = ctx.tries
    failures = ctx.count(step)
    if limit is not None and failures > limit:
        ctx.clear(step)
        ctx.detail = history.given_up(step, failures)
        ctx.log(f"{ctx.detail}: giving up")
        return otherwise
    return again


def begins_anew(to: str) -> Handler:
    """A handler for ``taken_over``: another server has begun what is going on, and this one does it again from there.

    Its own boot files say what they said when it acted on the device the last time.
    """

    def taken_over(self: Any, ctx: DeviceContext) -> str | None:
        ctx.effect(SyncBoot())
        return None

    taken_over.__doc__ = f"Another server acts on the device from now on: it begins with ``{to}``."
    return on(TAKEN_OVER, to=to)(taken_over)


class Rests(State[Device]):
    """Nothing is going on that another server would have to begin anew."""

    @on(TAKEN_OVER, to=())
    def taken_over(self, ctx: DeviceContext) -> str | None:
        """Another server acts on the device from now on, whose boot files may be old."""
        ctx.effect(SyncBoot())
        return STAY


class AcceptsBasic(State[Device]):
    """Accepts the two requests that every resting state accepts."""

    @on("please_self_test", to="start_self_test")
    def please_self_test(self, ctx: DeviceContext) -> str | None:
        """Prove the device by a self-test, which is for nobody: its success sends no result."""
        abandon_operation(ctx)
        return None

    @on("please_start_maintenance", to="start_maintenance")
    def please_start_maintenance(self, ctx: DeviceContext) -> str | None:
        """Boot the maintenance image."""
        if ctx.row.is_hosted:
            refuse_image(ctx, MAINTENANCE, "it lives in a cloud and boots nothing of ours")
            return STAY
        begin_operation(ctx)
        return None


class AcceptsAll(AcceptsBasic):
    """Accepts also what prepares a device for a request."""

    @on("please_power_cycle", to=("pc_power_cycling", "job_stopping"))
    def please_power_cycle(self, ctx: DeviceContext) -> str | None:
        """Cycle the power, boot from the device's own storage and prove it; a hosted device can only be proven."""
        begin_operation(ctx)
        ctx.clear()
        set_next_image(ctx, None, None)
        return "job_stopping" if ctx.row.is_hosted else "pc_power_cycling"

    @on("please_image", to=("start_pxe_boot", "job_starting", "phone_verifying"))
    def please_image(self, ctx: DeviceContext) -> str | None:
        """Install an image; refused as a bad image when this hardware has no PXE config for it.

        A hosted device runs a job, or is proven to be free.
        """
        name = str(ctx.args.get("image"))
        image_id = ctx.reads.image_id(name)
        boot_config = _text(ctx.args.get("boot_config"))
        if ctx.row.is_hosted:
            return self._hosted(ctx, name, image_id, boot_config)
        if image_id is None or ctx.reads.pxe_config_for(ctx.row.hardware_type_id, image_id) is None:
            hardware = f"{ctx.row.hardware_type or 'unknown'} {ctx.row.hardware_model or ''}".strip()
            refuse_image(ctx, name, f"no PXE config for it on hardware {hardware}")
            return STAY
        begin_operation(ctx)
        set_next_image(ctx, image_id, boot_config)
        return "start_pxe_boot"

    @staticmethod
    def _hosted(ctx: DeviceContext, name: str, image_id: int | None, boot_config: str | None) -> str:
        device, now, claim_id = ctx.row, ctx.now, ctx.args.get("claim_id")
        if name not in images.HOSTED or not ctx.reads.is_hosted_on(device.hardware_type_id, image_id):
            refuse_image(ctx, name, "it can't be had on this hosted device")
            return STAY
        wish = hosted_jobs.Wish.of(boot_config)
        request_id = device.request_id
        if name == images.JOB and (wish is None or claim_id is None or request_id is None):
            refuse_image(ctx, name, "a job needs a request that names its project")
            return STAY
        begin_operation(ctx)
        ctx.clear()
        if name == images.AS_IS or wish is None or claim_id is None or request_id is None:
            set_next_image(ctx, None, None)
            return "phone_verifying"
        set_next_image(ctx, image_id, boot_config)
        ctx.also(
            lambda conn: hosted_jobs.order(
                conn,
                claim_id=claim_id,
                request_id=request_id,
                device_id=device.id,
                device=device.name,
                project=wish.project,
                now=now,
            )
        )
        return "job_starting"


def refuse_image(ctx: DeviceContext, name: str, why: str) -> None:
    """An image can't be had on the device: the request that asks for it, if one does, is told."""
    ctx.log(f"image {name} refused: {why}")
    if ctx.args.get("claim_id") is not None:
        begin_operation(ctx)
        finish_operation(ctx, BAD_IMAGE)


def _text(value: Any) -> str | None:
    """A boot config as it is stored: text, or what a caller has sent as JSON in place of it."""
    return value if value is None or isinstance(value, str) else json.dumps(value)
