# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Devices that the inventory does not have any more go as soon as they are free: each server sees to its own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from mozpool.db import inventory
from mozpool.db.devices import Device
from mozpool.errors import DatabaseAway
from mozpool.lanes import Lanes, Soon
from mozpool.lifeguard.inventory.plan import RESTING
from mozpool.statedriver import Driver

log = logging.getLogger("mozpool.inventory")

LEAVING_LANE = "leaving"
"""The lane of letting devices go."""


class Leaving:
    """Lets the devices of one server go. Its methods may be called from any thread."""

    def __init__(
        self,
        driver: Driver[Device],
        quick: Lanes,
        server_id: int,
        let_go: Callable[[int], bool] = lambda device_id: True,
        hold: Callable[[Iterable[int]], None] = lambda device_ids: None,
        on_gone: Callable[[], None] = lambda: None,
    ) -> None:
        """``let_go`` answers whether nothing is being done to a device, and sees to it that nothing will be, until
        ``hold`` is called for it. ``on_gone`` is called when some have gone.
        """
        self._driver = driver
        self._server_id = server_id
        self._let_go = let_go
        self._hold = hold
        self._on_gone = on_gone
        self._soon = Soon(quick, LEAVING_LANE, self._look, "letting devices go")

    def look_soon(self) -> None:
        """Look from a worker: a device may have become free."""
        self._soon.ask()

    def _look(self) -> None:
        try:
            self.look()
        except DatabaseAway as error:
            log.info("devices that are to leave stay until the next look: %s", error)

    def look(self) -> None:
        """Let all go that are free. Raises DatabaseAway."""
        with self._driver.database.read() as conn:
            found = inventory.leaving_of(conn, self._server_id, RESTING)
        gone = [self._leave(device_id, name) for device_id, name in found if self._let_go(device_id)]
        if any(gone):
            self._on_gone()

    def _leave(self, device_id: int, name: str) -> bool:
        gone = False
        try:
            gone = self._driver.database.run(
                lambda conn: inventory.leave(conn, device_id, RESTING, self._driver.clock.now()), repeatable=True
            )
        finally:
            self._hold([device_id])
        if gone:
            self._driver.forget(device_id)
            self._driver.logbook.add(
                "device", device_id, name, "inventory", "removed: it is free, and not in the inventory any more"
            )
        return gone
