# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Which imaging servers are there: each one gives signs of life in the database, and watches those of the others.

A sign of life is a number that goes up. Whether it still does is measured by the watcher's own clock, so the servers'
clocks need not agree, and only while the watcher itself reaches the database, so nobody is taken for dead because the
database was away.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from mozpool import __version__
from mozpool.clock import Clock
from mozpool.db import servers
from mozpool.db.engine import Database
from mozpool.errors import DatabaseAway

log = logging.getLogger("mozpool.presence")

State = Literal["up", "away", "stopped"]


@dataclass
class _Seen:
    """What is known of another server."""

    beat: int
    stopped: bool
    silent: float = 0.0
    """For how many seconds it has given no sign, of those in which one would have been seen."""


class Presence:
    """This server's signs of life, and what it knows of the others'. Methods may be called from any thread."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        server_id: int,
        *,
        interval: float,
        away_after: float,
        load: Callable[[], tuple[int, int]],
    ) -> None:
        """A sign of life every ``interval`` seconds; who gives none for ``away_after`` seconds is away.

        ``load`` tells how many workers for hardware there are, and how many of them are busy.
        """
        self._database = database
        self._clock = clock
        self._server_id = server_id
        self._interval = interval
        self._away_after = away_after
        self._load = load
        self._started = clock.now()
        self._beat: int | None = None
        self._looked: float | None = None
        self._others: dict[int, _Seen] = {}
        self._away: dict[int, State] = {}
        self._lock = threading.Lock()
        self._saying = clock.lock()
        self._left = False
        self.on_change: list[Callable[[], None]] = []
        """Called when a server has gone or come back."""

    def away(self) -> frozenset[int]:
        """Ids of the servers that are away or were stopped: nobody acts on their devices."""
        return frozenset(self._away)

    def state_of(self, server_id: int) -> State:
        """What is known of a server; who was not watched for long enough counts as up."""
        return self._away.get(server_id, "up")

    def beat(self) -> None:
        """Give a sign of life, and look at those of the others."""
        try:
            self._say()
            with self._database.read() as conn:
                found = servers.beats(conn)
        except DatabaseAway as error:
            log.warning("no sign of life is given: %s", error)
            return
        self._watch(found)

    def leave(self) -> None:
        """Tell the others that this server stops; from their next look on it is away."""
        if self._beat is None:
            return
        try:
            self._say(stopped=True)
        except DatabaseAway as error:
            log.warning("the other servers are not told that this one stops: %s", error)

    def _say(self, *, stopped: bool = False) -> None:
        workers, busy = self._load()
        with self._saying:
            if self._left:
                return  # a beat that comes late must not call this server back
            self._left = stopped
            if self._beat is None:
                with self._database.read() as conn:
                    self._beat = servers.last_beat(conn, self._server_id)
            self._beat += 1
            said = servers.Presence(
                self._server_id, self._beat, stopped, __version__, self._started, self._clock.now(), workers, busy
            )
            self._database.run(lambda conn: servers.say_here(conn, said))

    def _watch(self, found: dict[int, tuple[int, bool]]) -> None:
        now = self._clock.monotonic()
        with self._lock:
            # While the database was away, nobody could give a sign.
            passed = 0.0 if self._looked is None else min(now - self._looked, 2 * self._interval)
            self._looked = now
            away: dict[int, State] = {}
            for server_id, (beat, stopped) in found.items():
                if server_id == self._server_id:
                    continue
                seen = self._others.get(server_id)
                if seen is None or (seen.beat, seen.stopped) != (beat, stopped):
                    seen = self._others[server_id] = _Seen(beat, stopped)
                else:
                    seen.silent += passed
                if stopped:
                    away[server_id] = "stopped"
                elif seen.silent >= self._away_after:
                    away[server_id] = "away"
            gone, back = away.keys() - self._away.keys(), self._away.keys() - away.keys()
            self._away = away
        for server_id in sorted(gone):
            log.warning("imaging server %d %s", server_id, "was stopped" if away[server_id] == "stopped" else "is away")
        for server_id in sorted(back):
            log.warning("imaging server %d is back", server_id)
        if gone or back:
            for tell in self.on_change:
                tell()
