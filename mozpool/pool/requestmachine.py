# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""MozPool's state machine: the lifetime of a request, from the queue to the return of its device."""

from __future__ import annotations

import math
from typing import Any, Protocol

from mozpool.db import claims, hosted_jobs, images, requests
from mozpool.db.devices import SHUFFLE_RANGE, Candidate
from mozpool.db.requests import Request
from mozpool.pool.criteria import Criteria
from mozpool.pool.effects import AskLifeguard, TellRelease
from mozpool.statemachine import RETURNED, STAY, TAKEN_OVER, TIMEOUT, Context, Machine, State, Tuning, entry, on, when

COMPLETE = "complete"
BAD_IMAGE = "failed-bad-image"
MAINTENANCE = images.MAINTENANCE

JOB_LOOK = 60.0
"""Seconds between two looks of a request whose job runs at its device: a message that it has ended may be lost."""

NAMED_DEVICE_TRIES = 2
"""How often a request for a named device that has lost it looks for it again when it may not queue."""


class Reads(Protocol):
    """What the request machine may look up while it decides, in the transition's transaction."""

    def device_state(self, name: str) -> str | None:
        """The state of a device, None when there is none of that name."""
        ...

    def has_equal_image(self, request: Request) -> bool:
        """Whether the claimed device already holds the wanted image with an equal boot config."""
        ...

    def serves(self, request: Request) -> bool:
        """Whether this server acts for the request."""
        ...

    def had_job(self, request: Request) -> bool:
        """Whether a job was ordered for the request on some device."""
        ...

    @property
    def verify_on_return(self) -> bool:
        """Whether a returned device is proven at once."""
        ...


RequestContext = Context[Request]

NO_DEVICE = {
    "claim_id": None,
    "imaging_result": None,
    "device_id": None,
    "device": None,
    "device_state": None,
    "device_address": None,
    "device_server_id": None,
    "device_server": None,
    "device_image_id": None,
    "device_boot_config_hash": None,
    "device_operation_claim_id": None,
}
"""The fields of a request that hold no device."""


def give_up_device(ctx: RequestContext, reason: str, *, verify: bool = False) -> None:
    """Release the claim in this transaction; who waits for the device is served right after it.

    With ``verify`` it is looked at as soon as it is free, whatever it was used for.
    """
    request = ctx.row
    claim_id, device_id, device = request.claim_id, request.device_id, request.device
    if claim_id is None or device_id is None or device is None:
        return
    now, shuffle = ctx.now, ctx.rng.randrange(SHUFFLE_RANGE)
    # What a person has used is proven before anybody else gets it; others are proven for whoever gets them next.
    verify = verify or ctx.reads.verify_on_return or request.image == images.AS_IS
    ctx.also(
        lambda conn: claims.release(
            conn,
            claim_id=claim_id,
            device_id=device_id,
            ready_at=request.ready_at,
            now=now,
            reason=reason,
            shuffle=shuffle,
            verify=verify,
        ),
        **NO_DEVICE,
    )
    # What went wrong with one device says nothing about the next.
    ctx.clear("pending", "contacting_lifeguard")
    ctx.log(f"gave up device {device}: {reason}")
    is_left_busy = request.image in (MAINTENANCE, images.JOB) or request.device_state == "maintenance_mode"
    if is_left_busy or verify:
        ctx.effect(TellRelease(device_id, device, request.device_server or "", claim_id))


def end(ctx: RequestContext, reason: str, *, verify: bool = False) -> None:
    """What every end state does: give the device back."""
    give_up_device(ctx, reason, verify=verify)
    ctx.set(reason=reason)
    ctx.detail = reason


class Open(State[Request]):
    """What all states share that are not end states: the request can be returned, and it expires."""

    @on("close", to="closed")
    def close(self, ctx: RequestContext) -> str | None:
        """Its client gave it back."""
        end(ctx, requests.RETURNED)
        return None

    @on("revoke", to="closed")
    def revoke(self, ctx: RequestContext) -> str | None:
        """An operator took it from its holder, who may not want to let it go: the device is looked at at once."""
        end(ctx, str(ctx.args.get("reason") or requests.REVOKED), verify=True)
        return None

    @on(TAKEN_OVER, to=())
    def taken_over(self, ctx: RequestContext) -> str | None:
        """Another server acts for the request from now on, and goes on with it at its deadline."""
        return STAY

    @on("job_ended", to="closed")
    def job_ended(self, ctx: RequestContext) -> str | None:
        """The job that it was made for has ended, and its device is clean."""
        if ctx.row.claim_id is None or ctx.args.get("claim_id") != ctx.row.claim_id:
            return STAY
        end(ctx, str(ctx.args.get("reason") or "its job has ended"))
        return None

    @on("expire", to="closed")
    def expire(self, ctx: RequestContext) -> str | None:
        """Its time is over."""
        end(ctx, requests.EXPIRED)
        return None


class New(Open):
    """The request was stored and has not looked for a device yet."""

    name = "new"
    forced_only = True
    find_device = when("find_device", to="finding_device")


class FindingDevice(Open):
    """The request waits in the queue for a free device that matches it."""

    name = "finding_device"
    timeout = 10
    tries = 60
    """For any device; with an own ``wait``, as many as fit into it."""

    @entry(to="failed_bad_device")
    def enter(self, ctx: RequestContext) -> str | None:
        """The matching function does the looking; a device that failed needs no waiting for."""
        request = ctx.row
        if request.criteria is None:
            ctx.set(criteria=Criteria.of(request).key)
        if request.wants_named_device and _has_failed(ctx):
            return _fail(ctx, "failed_bad_device", f"device {request.requested_device} has failed")
        left = request.wait / ctx.speed - ctx.counters.get(self.name, 0) * ctx.limit
        if 0 < left < ctx.limit:
            ctx.within(left)
        return None

    @on("device_found", to="contact_lifeguard")
    def device_found(self, ctx: RequestContext) -> str | None:
        """Claim it, in this same transaction."""
        request, now = ctx.row, ctx.now
        device: Candidate = ctx.args["device"]
        ctx.clear(self.name)
        ctx.set(reason=None)
        holds: dict[str, Any] = {
            **NO_DEVICE,
            "claim_id": RETURNED,
            "device_id": device.id,
            "device": device.name,
            "device_state": "ready",
            "device_address": device.address,
            "device_server_id": device.owner_id,
            "device_server": device.owner,
            "device_image_id": device.image_id,
            "device_boot_config_hash": device.boot_config_hash,
        }
        ctx.also(
            lambda conn: claims.take(
                conn,
                request_id=request.id,
                device_id=device.id,
                device_version=device.version,
                now=now,
                team_id=request.team_id,
            ),
            **holds,
        )
        ctx.log(f"found device {device.name}")
        return None

    @on("do_not_wait", to=("closed", "failed_device_not_found", "failed_bad_device"))
    def do_not_wait(self, ctx: RequestContext) -> str | None:
        """Nothing is free and the client does not want to queue."""
        if ctx.row.wants_named_device and _has_failed(ctx):
            return _fail(ctx, "failed_bad_device", f"device {ctx.row.requested_device} has failed")
        if ctx.row.wants_named_device:
            end(ctx, str(ctx.args.get("reason") or f"device {ctx.row.requested_device} is taken"))
            return "closed"
        return _fail(ctx, "failed_device_not_found", str(ctx.args.get("reason") or "no matching device is free"))

    @on(TIMEOUT, to=("finding_device", "failed_device_not_found", "failed_device_busy", "failed_bad_device"))
    def timed_out(self, ctx: RequestContext) -> str | None:
        """Stay in the queue as long as the client is willing to wait."""
        request = ctx.row
        tries = ctx.count(self.name)
        if tries < self._limit(ctx):
            return self.name
        waited = f"no matching device became free within {request.wait} s"
        if request.wants_named_device:
            if ctx.reads.device_state(request.requested_device) is None:
                return _fail(ctx, "failed_device_not_found", f"device {request.requested_device} is gone")
            if _has_failed(ctx):
                return _fail(ctx, "failed_bad_device", f"device {request.requested_device} has failed")
            return _fail(ctx, "failed_device_busy", f"device {request.requested_device} is taken")
        return _fail(ctx, "failed_device_not_found", waited)

    def _limit(self, ctx: RequestContext) -> int:
        """How many time limits may pass: the old numbers unless the client said how long it waits."""
        wait = ctx.row.wait
        if ctx.row.wants_named_device and wait == 0:
            return NAMED_DEVICE_TRIES
        if wait == 600 and ctx.tries is not None:
            return ctx.tries
        return max(1, math.ceil(wait / ctx.speed / ctx.limit - 1e-9))


def _has_failed(ctx: RequestContext) -> bool:
    state = ctx.reads.device_state(ctx.row.requested_device)
    return state is not None and str(state).startswith("failed_")


def _fail(ctx: RequestContext, state: str, reason: str) -> str:
    """Go to a failed state, for a reason that the client can read."""
    give_up_device(ctx, reason)
    ctx.set(reason=reason)
    ctx.detail = reason
    ctx.log(f"failed: {reason}")
    return state


def _look_for_another(ctx: RequestContext, reason: str) -> str:
    """The device is of no use: look for another one.

    But a job is ordered once for a request, whose id is what the job is known by: a second one would be taken for the
    first.
    """
    if ctx.row.image == images.JOB and ctx.reads.had_job(ctx.row):
        return _fail(ctx, "failed_bad_device", reason)
    give_up_device(ctx, reason)
    return "finding_device"


class ContactLifeguard(Open):
    """A device was found and claimed; LifeGuard is about to be asked to prepare it."""

    name = "contact_lifeguard"
    timeout = 0
    go_on = when(TIMEOUT, to="contacting_lifeguard")


class WithDevice(Open):
    """What the states share in which LifeGuard prepares the claimed device."""

    def finished(self, ctx: RequestContext, result: str | None) -> str:
        """Where an imaging result leads."""
        request = ctx.row
        if result == COMPLETE:
            return "ready"
        if result == BAD_IMAGE:
            if ctx.count("bad_image") >= 2:
                return _fail(ctx, "failed_bad_image", f"image {request.image} could not be installed")
            return _look_for_another(ctx, f"image {request.image} could not be installed on it")
        if request.wants_named_device:
            return _fail(ctx, "failed_bad_device", f"device {request.device} failed while it was prepared")
        return _look_for_another(ctx, "it failed while it was prepared")

    @on(
        "lifeguard_finished",
        to=("ready", "finding_device", "failed_bad_image", "failed_bad_device"),
    )
    def lifeguard_finished(self, ctx: RequestContext) -> str | None:
        """LifeGuard says how it ended; an answer that was meant for an earlier claim is none."""
        claim_id = ctx.args.get("claim_id")
        if claim_id is not None and claim_id != ctx.row.claim_id:
            return STAY
        result = ctx.args.get("imaging_result")
        if result not in (COMPLETE, BAD_IMAGE, "failed-bad-device"):
            return STAY
        return self.finished(ctx, result)


class ContactingLifeguard(WithDevice):
    """LifeGuard is being asked to prepare the device."""

    name = "contacting_lifeguard"
    timeout = 30
    tries = 5
    taken_over = when(TAKEN_OVER, to="contacting_lifeguard")

    @entry(to=("finding_device", "failed_bad_device"))
    def enter(self, ctx: RequestContext) -> str | None:
        """Ask, unless the device left ``ready`` by itself in the meantime."""
        request = ctx.row
        if request.claim_id is None or request.device is None or request.device_id is None:
            ctx.log("the claimed device is gone")
            return "finding_device"
        mine = request.device_operation_claim_id == request.claim_id
        if request.device_state != "ready" and not mine:
            return _look_for_another(ctx, f"it went to {request.device_state} before it could be prepared")
        event, args = "please_image", {"image": request.image, "boot_config": request.boot_config or "{}"}
        if request.image_can_reuse and ctx.reads.has_equal_image(request):
            event, args = "please_power_cycle", {}
        ctx.effect(
            AskLifeguard(request.device_id, request.device, request.device_server or "", request.claim_id, event, args)
        )
        return None

    @on("lifeguard_contacted", to="pending")
    def lifeguard_contacted(self, ctx: RequestContext) -> str | None:
        """LifeGuard has taken over."""
        ctx.clear(self.name)
        return None

    @on("device_left", to=("finding_device", "failed_bad_device"))
    def device_left(self, ctx: RequestContext) -> str | None:
        """LifeGuard refused: the device is not free for us any more."""
        return _look_for_another(ctx, str(ctx.args.get("reason") or "LifeGuard refused"))

    @on(TIMEOUT, to=("contacting_lifeguard", "failed_device_not_found"))
    def timed_out(self, ctx: RequestContext) -> str | None:
        """Again, until the tries are used up."""
        if ctx.tries is not None and ctx.count(self.name) >= ctx.tries:
            server = ctx.row.device_server
            return _fail(ctx, "failed_device_not_found", f"imaging server {server} could not be reached")
        return self.name


class Pending(WithDevice):
    """LifeGuard is preparing the device."""

    name = "pending"
    timeout = 60
    tries = 20
    taken_over = when(TAKEN_OVER, to="pending")

    @entry(to=("ready", "finding_device", "failed_bad_image", "failed_bad_device"))
    def enter(self, ctx: RequestContext) -> str | None:
        """The result may be there already: a message that was lost is made good for here.

        It is stored with the claim, so it is this claim's, even when the device does something else by now.
        """
        if ctx.row.imaging_result is not None:
            return self.finished(ctx, ctx.row.imaging_result)
        return None

    @on(TIMEOUT, to=("pending", "finding_device", "failed_bad_device"))
    def timed_out(self, ctx: RequestContext) -> str | None:
        """Ask for another device when this one takes too long; a named one is waited for."""
        if ctx.row.claim_id is None:
            return "finding_device"
        enough = ctx.tries is not None and ctx.count(self.name) >= ctx.tries
        if enough and not ctx.row.wants_named_device and ctx.row.imaging_result is None:
            ctx.clear(self.name)
            return _look_for_another(ctx, "it took too long to prepare")
        return self.name


class Ready(Open):
    """The device was proven to work and is its holder's until the request is returned or expires.

    A request for a job on a hosted device is ready while the job runs, and is closed when it has ended.
    """

    name = "ready"

    def enter(self, ctx: RequestContext) -> str | None:
        """What went wrong on the way does not count any more."""
        ctx.clear()
        if ctx.row.state != self.name:
            ctx.log(f"device {ctx.row.device} is ready")
        if ctx.row.image == images.JOB:
            ctx.within(JOB_LOOK / ctx.speed)
        return None

    @on(TIMEOUT, to=("ready", "closed"))
    def look(self, ctx: RequestContext) -> str | None:
        """Whether the job that it was made for still keeps its device busy: the device says when it has ended."""
        request = ctx.row
        mine = request.device_operation_claim_id is not None and request.device_operation_claim_id == request.claim_id
        if request.image != images.JOB or (mine and request.device_state in hosted_jobs.BUSY_STATES):
            return self.name
        end(ctx, "its job was broken off")
        return "closed"


class FailedDeviceNotFound(State[Request]):
    """No matching device became free in time, or its imaging server could not be reached."""

    name = "failed_device_not_found"
    end = True


class FailedDeviceBusy(State[Request]):
    """The device that was asked for by name is somebody else's."""

    name = "failed_device_busy"
    end = True


class FailedBadDevice(State[Request]):
    """The device that was asked for by name has failed."""

    name = "failed_bad_device"
    end = True


class FailedBadImage(State[Request]):
    """The image could not be installed."""

    name = "failed_bad_image"
    end = True


class Closed(State[Request]):
    """The request was returned or expired; its device is free again."""

    name = "closed"
    end = True


STATES: tuple[type[State[Request]], ...] = (
    New,
    FindingDevice,
    ContactLifeguard,
    ContactingLifeguard,
    Pending,
    Ready,
    FailedDeviceNotFound,
    FailedDeviceBusy,
    FailedBadDevice,
    FailedBadImage,
    Closed,
)


def request_machine(tuning: Tuning | None = None) -> Machine[Request]:
    """Build the machine; ``tuning`` changes its time limits and numbers of tries."""
    return Machine("request", STATES, unknown="closed", tuning=tuning)
