# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""LifeGuard as the API and MozPool use it: events for devices, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mozpool.db import devices
from mozpool.db.devices import Device
from mozpool.errors import BadInput, Conflict, NotFound
from mozpool.statedriver import Driver, Outcome

ONLINE, OFFLINE = "online", "offline"

PREPARATIONS = ("please_power_cycle", "please_image")


class AlreadyAsked(Exception):
    """The same "please" of the same claim was dealt with before."""


class AlreadyOnline(Exception):
    """The device is ready: there is nothing to bring online."""


@dataclass(frozen=True)
class Answer:
    """What LifeGuard made of a "please"."""

    accepted: bool
    state: str | None
    reason: str | None = None


def _who_and_why(by: str | None, reason: str | None) -> str | None:
    """What the history says of a forced change."""
    parts = [f"by {by}"] if by else []
    return ": ".join(parts + ([reason] if reason else [])) or None


class LifeGuard:
    """All that others may ask of devices. Methods may be called from any thread; they raise DatabaseAway."""

    def __init__(self, driver: Driver[Device]) -> None:
        """``driver`` is the driver of this server's devices."""
        self.driver = driver

    def please(
        self,
        device_id: int,
        event: str,
        args: Mapping[str, Any] | None = None,
        *,
        claim_id: int | None = None,
        once: bool = False,
    ) -> Answer:
        """Ask a device for something, for the holder of a claim (None: for an operator).

        The claim is checked in the device's own transaction, so that a message that comes late can't touch the next
        holder's device. With ``once``, a message that comes twice is answered as the first time.
        """

        def guard(row: Device) -> None:
            if claim_id is None:
                return
            if row.claim_id != claim_id:
                raise Conflict(f"device {row.name} is not held by claim {claim_id} any more", field="claim_id")
            if once and row.operation_claim_id == claim_id:
                raise AlreadyAsked
            if event in PREPARATIONS and row.state != "ready":
                # What is prepared for a holder goes back to ready if it turns out not to be wanted.
                raise Conflict(f"it is in state {row.state}", field="state")

        try:
            outcome = self.driver.handle(device_id, event, {**(args or {}), "claim_id": claim_id}, guard=guard)
        except AlreadyAsked:
            return Answer(True, None)
        except Conflict as error:
            return Answer(False, None, error.message)
        if outcome.status == "gone":
            return Answer(False, None, "there is no such device any more")
        if not outcome.accepted:
            return Answer(False, outcome.state, f"it is in state {outcome.state}")
        return Answer(True, outcome.state)

    def event(self, device_id: int, event: str, args: Mapping[str, Any] | None = None) -> Outcome[Device]:
        """Hand an event to a device's state machine; one that its state does not expect is ignored and logged."""
        outcome = self.driver.handle(device_id, event, args)
        if outcome.status == "ignored" and outcome.row is not None:
            row = outcome.row
            self.driver.logbook.add(
                "device", row.id, row.name, "lifeguard", f"ignored event {event[:64]} in state {row.state}"
            )
        return outcome

    def change_state(self, device_id: int, old: str, new: str, by: str | None = None) -> Outcome[Device]:
        """Force a device from one state to another; ``by`` says who does.

        Raises BadInput when there is no state of the new name, Conflict when the device is not in the old one.
        """
        if new not in self.driver.machine.states:
            raise BadInput.value("to", new, "the name of a device state")
        return self.driver.force(device_id, new, expected=old, detail=_who_and_why(by, None))

    def set_status(
        self, device_id: int, status: str, reason: str | None = None, by: str | None = None
    ) -> Outcome[Device]:
        """Take a device offline (locked out), or try to bring it online by a self-test.

        When the self-test fails the device goes back offline. One that is ready is online; one that somebody uses is
        not tested under its user. Raises BadInput, Conflict.
        """
        said = f": {reason}" if reason else ""
        detail = _who_and_why(by, reason)

        def may_be_tested(row: Device) -> None:
            if row.state == "ready":
                raise AlreadyOnline
            if row.claim_id is not None and not row.state.startswith(("locked_out", "failed_")):
                raise Conflict(f"device {row.name} is held by request {row.request_id}", field="status")

        if status == OFFLINE:
            outcome = self.driver.force(device_id, "locked_out", event="offline", detail=detail)
        elif status == ONLINE:
            try:
                outcome = self.driver.force(
                    device_id,
                    "start_self_test",
                    event="online",
                    columns={"going_offline": 1},
                    guard=may_be_tested,
                    detail=detail,
                )
            except AlreadyOnline:
                return Outcome("stayed", self.driver.load(device_id))
        else:
            raise BadInput.value("status", status, "'online' or 'offline'")
        if outcome.row is not None:
            self.driver.logbook.add(
                "device", device_id, outcome.row.name, "lifeguard", f"set {status}{f' by {by}' if by else ''}{said}"
            )
        return outcome

    def device(self, name: str) -> Device:
        """A device by name. Raises NotFound."""
        with self.driver.database.read() as conn:
            found = devices.by_name(conn, name)
        if found is None:
            raise NotFound(f"there is no device {name}", field="device")
        return found

    def note(self, device: Device, message: str) -> None:
        """Write a line into a device's log."""
        self.driver.logbook.add("device", device.id, device.name, "lifeguard", message)

    def released(self, device_id: int) -> None:
        """A device lost its holder, who left it something to do: look at it now.

        A hosted one has a job to be stopped, even if it waits for its turn to start it and nothing is due.
        """
        row = self.driver.remembered(device_id) or self.driver.load(device_id)
        if row is not None and row.is_hosted:
            self.driver.handle(device_id, "released")
        self.driver.wake(device_id)
