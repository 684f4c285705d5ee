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
from dataclasses import dataclass, replace
from typing import Literal

from mozpool import __version__
from mozpool.clock import Clock
from mozpool.db import servers
from mozpool.db.engine import Database
from mozpool.db.servers import Sign
from mozpool.errors import DatabaseAway
from mozpool.lease import Lease

log = logging.getLogger("mozpool.presence")

State = Literal["up", "away", "stopped"]


@dataclass
class _Seen:
    """What is known of another server."""

    sign: Sign
    silent: float = 0.0
    """For how many seconds it has given no sign, of those in which one would have been seen."""
    steady: float | None = None
    """For how many seconds it had been giving them without a gap at its last one; None: it was not seen to give one."""


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
        lease: Lease,
        group: str | None = None,
        takeover_after: float | None = None,
    ) -> None:
        """A sign of life every ``interval`` seconds; who gives none for ``away_after`` seconds is away.

        ``load`` tells how many workers for hardware there are, and how many of them are busy. Each sign of life renews
        the ``lease``. Other servers of ``group`` may take over from this one when it was silent for ``takeover_after``
        seconds.
        """
        self._database = database
        self._clock = clock
        self._server_id = server_id
        self._interval = interval
        self._away_after = away_after
        self._load = load
        self._lease = lease
        self.group = group
        self._takeover_after = takeover_after
        self._started = clock.now()
        self._beat: int | None = None
        self._said: servers.Presence | None = None
        self._looked: float | None = None
        self._given: float | None = None
        self._others: dict[int, _Seen] = {}
        self._away: dict[int, State] = {}
        self._lock = threading.Lock()
        self._saying = clock.lock()
        self._left = False
        self.on_change: list[Callable[[], None]] = []
        """Called when a server has gone or come back."""
        self.on_away: list[Callable[[int, int], None]] = []
        """Told of a server that gives no sign any more, and of its last beat; not of one that was stopped."""
        self.on_back: list[Callable[[int, int], None]] = []
        """Told of one that does so again, and of its last beat before it did not."""
        self.on_usurped: list[Callable[[], None]] = []
        """Called when another process turns out to give signs of life in this server's name."""
        self.on_lapse: list[Callable[[], None]] = []
        """Called before the lease begins anew after it had ended: others may have taken what was this server's."""

    def away(self) -> frozenset[int]:
        """Ids of the servers that are away or were stopped: nobody acts on their devices."""
        return frozenset(self._away)

    def state_of(self, server_id: int) -> State:
        """What is known of a server; who was not watched for long enough counts as up."""
        return self._away.get(server_id, "up")

    def is_steady(self, server_id: int) -> bool:
        """Whether a server has given signs of life for so long without a gap that what is its own is given back to it.

        That is as long as it may be silent before others take over, so that one which starts and dies again and again
        does not have everything pass to and fro.
        """
        seen = self._others.get(server_id)
        if seen is None or seen.steady is None or server_id in self._away:
            return False
        return seen.steady >= (seen.sign.takeover_after or self._away_after)

    def lost(self) -> dict[int, int]:
        """Servers of the group that it is time to take over from: id → the beat since which they are silent."""
        with self._lock:
            return {
                server_id: seen.sign.beat
                for server_id, seen in self._others.items()
                if self._in_group(seen) and seen.sign.takeover_after and seen.silent >= seen.sign.takeover_after
            }

    def gone(self) -> dict[int, int]:
        """Servers of whatever group that this one, which is in one, may take its own rows back from: id → last beat."""
        own = self._takeover_after
        if own is None:
            return {}
        with self._lock:
            return {
                server_id: seen.sign.beat
                for server_id, seen in self._others.items()
                if seen.sign.beat and seen.silent >= max(own, seen.sign.takeover_after or 0.0)
            }

    def members(self) -> list[int]:
        """Ids of the servers of the group that are up, this one included; sorted."""
        with self._lock:
            others = [key for key, seen in self._others.items() if self._in_group(seen) and key not in self._away]
        return sorted([*others, self._server_id])

    def in_group(self, server_id: int) -> bool:
        """Whether another server is of this one's group."""
        seen = self._others.get(server_id)
        return seen is not None and self._in_group(seen)

    def _in_group(self, seen: _Seen) -> bool:
        return self.group is not None and seen.sign.group == self.group

    def beat(self) -> bool:
        """Give a sign of life, and look at those of the others; whether both could be done."""
        begun = self._clock.monotonic()
        try:
            if not self._say():
                return False
            if self._lease.left() <= 0:
                # First all is forgotten: what is looked at in the new term is looked up.
                for tell in self.on_lapse:
                    tell()
                self._lease.new_term()
            self._lease.renew(begun)
            self._given = begun
            with self._database.read() as conn:
                found = servers.signs(conn)
        except DatabaseAway as error:
            log.warning("no sign of life is given: %s", error)
            return False
        self._watch(found)
        return True

    def trouble(self) -> str | None:
        """Why the others don't count on this server, or are about to; None when all is well."""
        if self._left:
            return "this server has left the pool, or another process runs in its name"
        if self._given is None:
            return "this server has not given a sign of life yet"
        silent = self._clock.monotonic() - self._given
        if silent >= self._away_after:
            return f"this server has given no sign of life for {silent:.0f} s"
        if self._lease.left() <= 0:
            return "this server has been out of touch for so long that others may act in its place"
        return None

    def leave(self) -> None:
        """Tell the others that this server stops; from their next look on it is away."""
        if self._beat is None:
            return
        try:
            self._say(stopped=True)
        except DatabaseAway as error:
            log.warning("the other servers are not told that this one stops: %s", error)

    def _say(self, *, stopped: bool = False) -> bool:
        workers, busy = self._load()
        with self._saying:
            if self._left:
                return False  # a beat that comes late must not call this server back
            self._left = stopped
            if self._beat is None:
                with self._database.read() as conn:
                    self._beat = servers.last_beat(conn, self._server_id)
            self._beat += 1
            said = servers.Presence(
                self._server_id,
                self._beat,
                stopped,
                __version__,
                self._started,
                self._clock.now(),
                workers,
                busy,
                self.group,
                self._takeover_after,
            )
            before = self._said
            if not self._database.run(lambda conn: servers.say_here(conn, said, before), repeatable=True):
                if self._left:
                    return False  # the next process of this server is there already
                self._left = True
                self._lease.end()
                log.critical("another process runs as this imaging server: this one must end")
                for tell in self.on_usurped:
                    tell()
                return False
            self._said = said
            return True

    def _looks_dead(self, sign: Sign) -> bool:
        """Whether a server that was never seen to give a sign has given its last one long ago, as far as clocks agree.

        If they don't, it is taken for away until its next sign.
        """
        return sign.seen is not None and (self._clock.now() - sign.seen).total_seconds() > self._away_after

    def _watch(self, found: dict[int, Sign]) -> None:
        now = self._clock.monotonic()
        with self._lock:
            # While the database was away, nobody could give a sign.
            passed = 0.0 if self._looked is None else min(now - self._looked, 2 * self._interval)
            self._looked = now
            away: dict[int, State] = {}
            before_this = {server_id: seen.sign.beat for server_id, seen in self._others.items()}
            for server_id, sign in found.items():
                if server_id == self._server_id:
                    continue
                before = self._others.get(server_id)
                if before is None:
                    seen = _Seen(sign)
                elif (before.sign.beat, before.sign.stopped) != (sign.beat, sign.stopped):
                    # Silence counts once a sign has ended it: one that has just died is not steady in the meantime.
                    steady = 0.0 if before.steady is None else before.steady + before.silent + passed
                    seen = _Seen(sign, steady=steady)
                else:
                    seen = replace(before, sign=sign, silent=before.silent + passed)
                limit = min(self._away_after, sign.takeover_after or self._away_after)
                if sign.stopped:
                    away[server_id] = "stopped"
                elif seen.silent >= limit or (seen.steady is None and self._looks_dead(sign)):
                    away[server_id] = "away"
                if server_id in away:
                    seen.steady = None
                self._others[server_id] = seen
            gone, back = away.keys() - self._away.keys(), self._away.keys() - away.keys()
            lost = [server_id for server_id in sorted(gone) if away[server_id] == "away"]
            found_again = [server_id for server_id in sorted(back) if self._away[server_id] == "away"]
            self._away = away
        for server_id in sorted(gone):
            log.warning("imaging server %d %s", server_id, "was stopped" if away[server_id] == "stopped" else "is away")
        for server_id in sorted(back):
            log.warning("imaging server %d is back", server_id)
        if gone or back:
            for tell in self.on_change:
                tell()
        for server_id in lost:
            for say in self.on_away:
                say(server_id, found[server_id].beat)
        for server_id in found_again:
            for say in self.on_back:
                say(server_id, before_this[server_id])
