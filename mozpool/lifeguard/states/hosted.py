# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""A job on a device that lives in somebody's cloud: ordered, watched, stopped; and the proof that it is free."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mozpool.db import hosted_jobs
from mozpool.db.devices import Device
from mozpool.lifeguard.effects import StartJob, StopJob, WatchJob, WatchPhone
from mozpool.lifeguard.states.base import (
    COMPLETE,
    DeviceContext,
    begins_anew,
    end_request,
    finish_operation,
    retry,
    set_next_image,
)
from mozpool.statemachine import STAY, TIMEOUT, State, entry, on, when


def note(ctx: DeviceContext, write: Callable[..., None], *args: Any) -> None:
    """Write something of the current operation's job into its row, in this transaction."""
    claim_id = ctx.row.operation_claim_id
    if claim_id is not None:
        ctx.also(lambda conn: write(conn, claim_id, *args))


class PhoneVerifying(State[Device]):
    """The cloud is asked until it says that the device is free. Jobs of ours that are left on it are stopped."""

    name = "phone_verifying"
    timeout = 30
    tries = 60
    taken_over = begins_anew("phone_verifying")

    def enter(self, ctx: DeviceContext) -> str | None:
        """Ask every second."""
        ctx.effect(WatchPhone())
        return None

    @on("phone_ok", to="operation_complete")
    def free(self, ctx: DeviceContext) -> str | None:
        """It is free, and nobody has used it since."""
        if not ctx.row.is_held:
            ctx.set(operation_claim_id=None)
        return None

    faulty = when("phone_faulty", to="failed_phone")

    @on(TIMEOUT, to=("job_stopping", "failed_phone"))
    def timed_out(self, ctx: DeviceContext) -> str | None:
        """A job of ours that came late may keep it busy."""
        return retry(ctx, self.name, again="job_stopping", otherwise="failed_phone")


class ForItsHolder(State[Device]):
    """What the states share in which a job runs, or is about to, for the request that holds the device."""

    @on("released", to="job_stopping")
    def released(self, ctx: DeviceContext) -> str | None:
        """Its holder gave the device back: nobody wants the job any more."""
        return STAY if ctx.row.is_held else None


class OnTheWay(ForItsHolder):
    """What the states share in which somebody waits for a job to begin."""

    def try_again(self, ctx: DeviceContext, reason: str) -> str:
        """Start it again; when that was done often enough, nothing of it may be left on the device."""
        note(ctx, hosted_jobs.failed, reason)
        ctx.tries = ctx.tries_of(JobStarting.name)
        return retry(ctx, JobStarting.name, again=JobStarting.name, otherwise="job_stopping")


class JobStarting(OnTheWay):
    """A job is being started on the device, as soon as its cloud account allows the next start.

    A job on several devices waits here until all of them have been claimed.
    """

    name = "job_starting"
    timeout = 60
    tries = 2
    taken_over = begins_anew("job_starting")

    @entry(to="job_stopping")
    def enter(self, ctx: DeviceContext) -> str | None:
        """Once; it is looked whether the job is there before it is started again."""
        if not is_wanted(ctx):
            return "job_stopping"
        ctx.effect(StartJob())
        return None

    @on("job_ordered", to="job_waiting")
    def ordered(self, ctx: DeviceContext) -> str | None:
        """It is on its way."""
        lead = ctx.args.get("lead")
        if isinstance(lead, int):
            note(ctx, hosted_jobs.set_lead, lead)
        return None

    @on("job_start_failed", to=("job_starting", "job_stopping"))
    def failed(self, ctx: DeviceContext) -> str | None:
        """Again, until the tries are used up."""
        return self.try_again(ctx, str(ctx.args.get("reason") or "it could not be started"))

    @on(TIMEOUT, to=("job_starting", "job_stopping"))
    def timed_out(self, ctx: DeviceContext) -> str | None:
        """Likewise."""
        return self.try_again(ctx, "its start took too long")

    @on("group_incomplete", to="job_stopping")
    def incomplete(self, ctx: DeviceContext) -> str | None:
        """The other devices of a job on several have not come: this one is of use to others."""
        note(ctx, hosted_jobs.failed, str(ctx.args.get("reason") or "its group is not complete"))
        return None


class JobWaiting(OnTheWay):
    """The job is on its way in the cloud, which has not begun to run it on the device yet."""

    name = "job_waiting"
    timeout = 30
    tries = 7
    taken_over = begins_anew("job_waiting")

    @entry(to="job_stopping")
    def enter(self, ctx: DeviceContext) -> str | None:
        """Look every second."""
        if not is_wanted(ctx):
            return "job_stopping"
        ctx.effect(WatchJob(until_runs=True))
        return None

    @on("job_running", to="job_running")
    def runs(self, ctx: DeviceContext) -> str | None:
        """The cloud runs it."""
        ctx.clear()
        note(ctx, hosted_jobs.runs, ctx.now)
        return None

    @on("job_ended", to="job_cleanup")
    def ended(self, ctx: DeviceContext) -> str | None:
        """It has ended before anybody has seen it run."""
        ctx.clear()
        note(ctx, hosted_jobs.end, ctx.now)
        return None

    @on("job_start_failed", to=("job_starting", "job_stopping"))
    def failed(self, ctx: DeviceContext) -> str | None:
        """What should have started it has failed."""
        ctx.clear(self.name)
        return self.try_again(ctx, str(ctx.args.get("reason") or "it was not started"))

    @on(TIMEOUT, to=("job_waiting", "job_stopping"))
    def timed_out(self, ctx: DeviceContext) -> str | None:
        """It is waited for, but not for ever."""
        target = retry(ctx, self.name, again=self.name, otherwise="job_stopping")
        if target != self.name:
            note(ctx, hosted_jobs.failed, "the cloud did not begin to run it")
        return target


class JobRunning(ForItsHolder):
    """The device runs a job for the request that holds it; the request is closed when the job has ended."""

    name = "job_running"
    timeout = 30
    tries = 180
    taken_over = begins_anew("job_running")

    @entry(to="job_stopping")
    def enter(self, ctx: DeviceContext) -> str | None:
        """That is what its holder has asked for."""
        if not is_wanted(ctx):
            return "job_stopping"
        if ctx.row.imaging_result is None:
            finish_operation(ctx, COMPLETE)
        ctx.effect(WatchJob(until_runs=False))
        return None

    @on("job_ended", to="job_cleanup")
    def ended(self, ctx: DeviceContext) -> str | None:
        """Now the cloud cleans the device."""
        ctx.clear()
        note(ctx, hosted_jobs.end, ctx.now)
        return None

    @on(TIMEOUT, to=("job_running", "job_stopping"))
    def timed_out(self, ctx: DeviceContext) -> str | None:
        """Let it run on, as long as jobs may."""
        target = retry(ctx, self.name, again=self.name, otherwise="job_stopping")
        if target != self.name:
            note(ctx, hosted_jobs.failed, "it ran for too long")
        return target


class JobStopping(State[Device]):
    """All jobs of this pool that are on the device are stopped, until the cloud knows of none any more."""

    name = "job_stopping"
    timeout = 30
    tries = 20
    taken_over = begins_anew("job_stopping")

    def enter(self, ctx: DeviceContext) -> str | None:
        """Every few seconds."""
        ctx.effect(StopJob())
        return None

    @on("job_stopped", to=("phone_verifying", "job_cleanup", "failed_job_starting"))
    def stopped(self, ctx: DeviceContext) -> str | None:
        """What that was for says how it goes on."""
        ctx.clear(self.name)
        device_id, now = ctx.row.id, ctx.now
        ctx.also(lambda conn: hosted_jobs.end_all(conn, device_id, now, "stopped"))
        if ctx.row.next_image_id is None:
            return "phone_verifying"
        if ctx.row.is_held and ctx.row.imaging_result is None:
            return "failed_job_starting"
        return "job_cleanup"

    @on(TIMEOUT, to=("job_stopping", "failed_job_stopping"))
    def timed_out(self, ctx: DeviceContext) -> str | None:
        """Again, until the tries are used up."""
        return retry(ctx, self.name, again=self.name, otherwise="failed_job_stopping")


class JobCleanup(State[Device]):
    """The job has ended, and the cloud cleans the device: it is asked until it says that the device is free."""

    name = "job_cleanup"
    timeout = 30
    tries = 20
    taken_over = begins_anew("job_cleanup")

    def enter(self, ctx: DeviceContext) -> str | None:
        """Ask every second."""
        ctx.effect(WatchPhone())
        return None

    clean = when("phone_ok", to="job_done")
    faulty = when("phone_faulty", to="failed_phone")

    @on(TIMEOUT, to=("job_cleanup", "failed_job_cleanup"))
    def timed_out(self, ctx: DeviceContext) -> str | None:
        """Again, until the tries are used up."""
        return retry(ctx, self.name, again=self.name, otherwise="failed_job_cleanup")


class JobDone(State[Device]):
    """The device is clean again, and the request that it ran a job for is being closed."""

    name = "job_done"
    timeout = 10
    taken_over = begins_anew("job_done")

    @entry(to="ready")
    def enter(self, ctx: DeviceContext) -> str | None:
        """Its request gives it back; when it has, whoever waits for it gets it at once."""
        ctx.clear()
        set_next_image(ctx, None, None)
        if end_request(ctx):
            return None
        ctx.set(operation_claim_id=None)
        return "ready"

    again = when(TIMEOUT, to="job_done")

    @on("released", to="job_done")
    def released(self, ctx: DeviceContext) -> str | None:
        """It has given it back."""
        return STAY if ctx.row.is_held else None


def is_wanted(ctx: DeviceContext) -> bool:
    """Whether there is somebody for whom a job is to run; a person may have put the device anywhere."""
    return ctx.row.is_hosted and ctx.get("next_image_id") is not None and is_held(ctx)


def is_held(ctx: DeviceContext) -> bool:
    """Whether whom the current operation is for still has the device."""
    claim_id = ctx.get("operation_claim_id")
    return claim_id is not None and claim_id == ctx.row.claim_id


STATES: tuple[type[State[Device]], ...] = (
    PhoneVerifying,
    JobStarting,
    JobWaiting,
    JobRunning,
    JobStopping,
    JobCleanup,
    JobDone,
)
