# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""No server may be one that must not die: those of a group act in place of one that is lost, until it is back.

What a lost server acted on is taken by one transaction for each of the others, which fails as soon as the lost one has
given a sign of life. Each taken row is then handed the event ``taken_over``: an interrupted install starts again from
the power cycle. When the server that a row belongs to is back for some time, it gets the row as soon as nothing is
going on with it, and begins to act on it by the same event.

Requests of a lost server that nobody takes over end when their time is over.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from mozpool.clock import Clock
from mozpool.db import ownership
from mozpool.db.engine import Database
from mozpool.db.ownership import Guest, Kind, Owned
from mozpool.errors import DatabaseAway, NotOurs
from mozpool.lanes import Lanes, Soon
from mozpool.presence import Presence
from mozpool.statedriver import Driver, NotDue
from mozpool.statemachine import TAKEN_OVER

log = logging.getLogger("mozpool.takeover")

TAKEOVER_LANE = "takeover"
"""The lane of looking for lost servers."""

GUEST_LIMIT = 1800.0
"""Seconds after which a row is given back though something is going on with it, which begins anew then."""

PATIENCE = 3
"""At how many looks a server leaves to the others of its group what is their share of a lost server's."""


class Takeover:
    """What one server does about it, each time that it has looked at the others' signs of life."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        presence: Presence,
        quick: Lanes,
        server_id: int,
        drivers: Mapping[Kind, Driver[Any]],
        on_change: Callable[[], None] = lambda: None,
        let_go: Callable[[int], bool] = lambda device_id: True,
        hold: Callable[[Iterable[int]], None] = lambda device_ids: None,
    ) -> None:
        """``drivers`` are those of devices and requests; ``on_change`` is called when some have come or gone.

        ``let_go`` answers whether nothing is being done to a device, and sees to it that nothing will be, until
        ``hold`` is called for it.
        """
        self._database = database
        self._clock = clock
        self._presence = presence
        self._quick = quick
        self._server_id = server_id
        self._drivers = drivers
        self._on_change = on_change
        self._soon = Soon(quick, TAKEOVER_LANE, self.look, "looking for lost servers")
        self._let_go = let_go
        self._hold = hold
        self._waits: dict[tuple[Kind, int], float] = {}
        """Row → since when it could be given back if it were at rest (monotonic time)."""
        self._beginning: set[tuple[Kind, int]] = set()
        self._looks: dict[tuple[int, int], int] = {}
        """Lost server and its last beat → how often it was looked at."""

    def look_soon(self) -> None:
        """Look from a worker: signs of life must not wait for what rows of a lost server are locked by."""
        self._soon.ask()

    def look(self) -> None:
        """Take over, begin, give back: whatever there is to do now. From one thread at a time."""
        for step in (self._take_over, self._begin, self._give_back, self._end_expired):
            try:
                step()
            except DatabaseAway as error:
                log.warning("it is not looked after what lost servers left: %s", error)
                return

    # From a server that is lost

    def _take_over(self) -> None:
        lost = self._presence.lost()
        self._looks = {key: looks for key, looks in self._looks.items() if key[0] in lost and lost[key[0]] == key[1]}
        for lost_id, beat in sorted(lost.items()):
            with self._database.read() as conn:
                rows = ownership.of_server(conn, lost_id)
            # Devices of other groups may be out of reach: whom they belong to takes them itself.
            rows = [
                row for row in rows if row.home_id in (lost_id, self._server_id) or self._presence.in_group(row.home_id)
            ]
            if not rows:
                continue
            looks = self._looks[lost_id, beat] = self._looks.get((lost_id, beat), 0) + 1
            mine = rows if looks > PATIENCE else self._share(rows)
            if mine:
                self._take(mine, lost_id, beat)
        for gone_id, beat in sorted(self._presence.gone().items()):
            if gone_id in lost:
                continue
            with self._database.read() as conn:
                own = [row for row in ownership.of_server(conn, gone_id) if row.home_id == self._server_id]
            if own:
                self._take(own, gone_id, beat)

    def _share(self, rows: list[Owned]) -> list[Owned]:
        """What belongs to this server, and its part of what belongs to nobody who is up."""
        members = self._presence.members()

        def heir(row: Owned) -> int:
            if row.home_id in members:
                return row.home_id
            return members[zlib.crc32(row.together.encode()) % len(members)]

        return [row for row in rows if heir(row) == self._server_id]

    def _take(self, rows: list[Owned], lost_id: int, beat: int) -> None:
        # When the commit's answer is lost, nothing is taken twice: the rows have another owner then.
        taken = self._database.run(
            lambda conn: ownership.take(conn, rows, lost_id=lost_id, beat=beat, to=self._server_id),
            committed=lambda conn: 0,
        )
        if taken is None:
            log.warning("imaging server %d is back before it was taken over from", lost_id)
            return
        if taken:
            log.warning("took over %d devices and requests of imaging server %d", taken, lost_id)
        for driver in self._drivers.values():
            driver.forget_all()
        self._on_change()

    # What has come

    def _begin(self) -> None:
        """Begin to act on what has come to this server, in whatever way."""
        with self._database.read() as conn:
            found = ownership.arrived(conn, self._server_id)
        self._hold(row_id for kind, row_id in found if kind == "device")
        for kind, row_id in found:
            if (kind, row_id) in self._beginning:
                continue  # its turn has not come yet
            self._beginning.add((kind, row_id))
            self._drivers[kind].forget(row_id)
            self._quick.submit((kind, row_id), partial(self._begin_one, kind, row_id), f"taking {kind} {row_id}")
        if found:
            self._on_change()

    def _begin_one(self, kind: Kind, row_id: int) -> None:
        try:
            self._hand_event(kind, row_id)
        finally:
            self._beginning.discard((kind, row_id))

    def _hand_event(self, kind: Kind, row_id: int) -> None:
        driver = self._drivers[kind]

        def has_come(row: Any) -> None:
            if row.came_from_id is None:
                raise NotDue

        try:
            driver.handle(row_id, TAKEN_OVER, columns={"came_from_id": None}, guard=has_come)
        except (NotDue, NotOurs):
            return
        except DatabaseAway as error:
            log.info("%s %d is begun with at the next look: %s", kind, row_id, error)
            return
        # A state that stays has the deadline that it had.
        driver.wake(row_id)

    # Back to whom it belongs

    def _give_back(self) -> None:
        with self._database.read() as conn:
            guests = ownership.guests(conn, self._server_id)
        # What was let go and is still here was written by somebody meanwhile.
        self._hold(guest.id for guest in guests if guest.kind == "device")
        now = self._clock.monotonic()
        steady = [guest for guest in guests if self._presence.is_steady(guest.home_id)]
        self._waits = {(guest.kind, guest.id): self._waits.get((guest.kind, guest.id), now) for guest in steady}
        going = [guest for guest in steady if self._may_go(guest, now)]
        if not going:
            return
        given = self._database.run(
            lambda conn: ownership.give_back(conn, going, self._server_id), committed=lambda conn: len(going)
        )
        for guest in going:
            self._drivers[guest.kind].forget(guest.id)
        log.warning("gave %d devices and requests back", given)
        self._on_change()

    def _may_go(self, guest: Guest, now: float) -> bool:
        """Whether nothing is going on with a row, or for so long that it never ends here."""
        driver = self._drivers[guest.kind]
        effects = driver.effects
        rests = driver.machine.stays(guest.state, TAKEN_OVER) and not (effects is not None and effects.busy(guest.id))
        if not rests and now - self._waits[guest.kind, guest.id] < GUEST_LIMIT:
            return False
        return guest.kind == "request" or self._let_go(guest.id)

    # What nobody takes over

    def _end_expired(self) -> None:
        away = [
            server_id
            for server_id in sorted(self._presence.away())
            # Those of its group are taken over, with what follows from their end.
            if not self._presence.in_group(server_id)
        ]
        if not away:
            return
        with self._database.read() as conn:
            found = ownership.expired_of(conn, away, self._clock.now())
        driver = self._drivers["request"]
        for request_id in found:
            with suppress(NotDue):
                driver.handle(request_id, "expire", guard=self._is_over, for_others=True)

    def _is_over(self, row: Any) -> None:
        if row.expires > self._clock.now():
            raise NotDue
