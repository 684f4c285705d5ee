# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Reads the inventory and brings the pool into line with it: all of it in one transaction, or nothing."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from mozpool.access.audit import by_command, by_job
from mozpool.bmm.registry import Registry
from mozpool.clock import Clock, Deadline
from mozpool.config import Settings
from mozpool.db import audit, inventory, jobs
from mozpool.db.audit import Entry
from mozpool.db.engine import Database
from mozpool.db.jobs import Job
from mozpool.errors import Conflict, DatabaseAway, MozpoolError
from mozpool.lifeguard.inventory import hosts
from mozpool.lifeguard.inventory.hosts import Hosts
from mozpool.lifeguard.inventory.plan import RESTING, Plan, plan
from mozpool.lifeguard.inventory.sources import Source
from mozpool.logbook import Logbook

JOB = "inventory"
"""The job's name in the database."""

WRITING = 120.0
"""Seconds that carrying it out may take, beside reading the inventory."""

Say = Callable[[str], None]


class AnotherRuns(Conflict):
    """Another process reads the inventory now."""


@dataclass(frozen=True)
class Outcome:
    """What a synchronisation came to."""

    plan: Plan
    gone: tuple[str, ...] = ()
    """Imaging servers and hardware types that nothing uses any more and that were deleted."""

    def message(self) -> str:
        """One sentence for people."""
        rest = f"; not used any more and deleted: {', '.join(self.gone)}" if self.gone else ""
        return f"{self.plan.summary()}{rest}"


class InventorySync:
    """One source and one database. Its methods may be called from any thread."""

    def __init__(
        self,
        source: Source,
        database: Database,
        clock: Clock,
        rng: random.Random,
        settings: Settings,
        registry: Registry,
        logbook: Logbook,
        *,
        by_hand: bool,
    ) -> None:
        """``logbook`` takes a line for each device that changes; it is not flushed here.

        ``by_hand``: the audit says that the user did it who runs this process, and not the daemon by itself.
        """
        self._by_hand = by_hand
        self._source = source
        self._database = database
        self._clock = clock
        self._rng = rng
        self._settings = settings
        self._registry = registry
        self._logbook = logbook

    def preview(self, say: Say) -> Plan:
        """What :meth:`run` would do; nothing is written, and others may run meanwhile.

        ``say`` is told how far it is. Raises InventoryError, DatabaseAway.
        """
        found = self.read(say)
        with self._database.read() as conn:
            return self._plan(conn, found)

    def run(self, say: Say, *, ship_it: bool = False, note_failure: bool = False) -> Outcome:
        """Bring the pool into line.

        When it fails nothing is changed, and nothing is left of the attempt unless ``note_failure``: then the job says
        what was wrong. ``ship_it``: any number of changes is meant. Raises AnotherRuns, Conflict, InventoryError,
        TooManyChanges, DatabaseAway.
        """
        job = self._take()
        assert job.token is not None
        try:
            found = self.read(say)
            say("writing")
            outcome = self._carry_out(job, found, ship_it=ship_it)
        except BaseException as error:
            note = str(error) if note_failure and isinstance(error, MozpoolError) else None
            with suppress(DatabaseAway):
                self._end(job.token, note)
            raise
        self._log(outcome.plan)
        return outcome

    def is_due(self, interval: float) -> bool:
        """Whether nobody reads the inventory now, or has done so within so many seconds. Raises DatabaseAway."""
        with self._database.read() as conn:
            job = jobs.get(conn, JOB)
        now = self._clock.now()
        if job is None:
            return True
        return not job.is_held(now) and (job.ended is None or now - job.ended >= timedelta(seconds=interval))

    def read(self, say: Say) -> Hosts:
        """What the inventory has. Raises InventoryError."""
        settings = self._settings.inventory
        say(f"reading {self._source.title}")
        entries = self._source.entries(Deadline(self._clock, settings.timeout), say)
        say(f"checking {len(entries)} hosts")
        ignore = settings.ignore_devices_on_servers_re
        return hosts.read(entries, self._registry, ignore=ignore, needed=self._source.needed)

    # The job

    def _take(self) -> Job:
        holder = f"{self._settings.server.fqdn} (process {os.getpid()})"
        token = f"{self._rng.getrandbits(128):032x}"
        seconds = self._settings.inventory.timeout + WRITING

        def work(conn: Connection) -> Job | None:
            return jobs.take(conn, JOB, holder=holder, token=token, now=self._clock.now(), seconds=seconds)

        try:
            job = self._database.run(work, repeatable=True)
        except IntegrityError:
            job = None  # another server has begun it for the first time a moment ago
        if job is not None:
            return job
        with self._database.read() as conn:
            other = jobs.get(conn, JOB)
        who = f"{other.holder} since {other.since:%Y-%m-%d %H:%M:%S} UTC" if other and other.since else "another server"
        raise AnotherRuns(f"the inventory is being read by {who}: it is left to that")

    def _end(self, token: str, failure: str | None) -> None:
        def work(conn: Connection) -> None:
            if failure is None:
                jobs.let_go(conn, JOB, token)
            else:
                jobs.failed(conn, JOB, token, now=self._clock.now(), message=failure)

        self._database.run(work, repeatable=True)

    # The changes

    def _plan(self, conn: Connection, found: Hosts) -> Plan:
        ignore = self._settings.inventory.ignore_devices_on_servers_re
        return plan(found, inventory.read(conn), self._settings.bmm.power, ignore)

    def _carry_out(self, job: Job, found: Hosts, *, ship_it: bool) -> Outcome:
        assert job.token is not None
        token = job.token
        last: list[Outcome] = []

        def work(conn: Connection) -> Outcome:
            made = self._plan(conn, found)
            if not ship_it:
                made.check_limit()
            outcome = Outcome(*carry_out(conn, made, self._rng, self._clock))
            last[:] = [outcome]
            if not jobs.done(conn, JOB, token, now=self._clock.now(), message=outcome.message()):
                raise Conflict("it took too long, and another server reads the inventory by now: nothing was changed")
            if not made.is_empty:
                audit.add(conn, [self._audited(outcome, ship_it=ship_it)])
            return outcome

        def committed(conn: Connection) -> Outcome | None:
            now = jobs.get(conn, JOB)
            return last[0] if last and now is not None and now.version > job.version else None

        return self._database.run(work, committed=committed)

    def _audited(self, outcome: Outcome, *, ship_it: bool) -> Entry:
        server, now = self._settings.server.fqdn, self._clock.now()
        details: dict[str, object] = {"summary": outcome.message(), "source": self._source.title}
        if not self._by_hand:
            return by_job(server, now, JOB, JOB, details)
        return by_command(server, now, "mozpool-inventorysync", JOB, {**details, "ship_it": ship_it})

    def _log(self, made: Plan) -> None:
        for update in made.updates:
            device = update.device
            self._logbook.add("device", device.id, device.name, "inventory", update.said)
        for device in made.removes:
            self._logbook.add("device", device.id, device.name, "inventory", "removed: it is not there any more")
        for device in made.marks:
            text = "it is not there any more, and leaves as soon as it is free"
            self._logbook.add("device", device.id, device.name, "inventory", text)


def carry_out(conn: Connection, made: Plan, rng: random.Random, clock: Clock) -> tuple[Plan, tuple[str, ...]]:
    """Write what a plan says, in the caller's transaction in which it was made.

    Devices that were taken since they were looked at are only marked. Answers the plan as it was carried out, and the
    imaging servers and hardware types that were deleted because nothing uses them any more.
    """
    if made.is_empty:
        return made, ()
    servers = inventory.ensure_servers(conn, made.servers)
    kinds = inventory.ensure_hardware(conn, made.kinds)
    free = set(inventory.free_ones(conn, [device.id for device in made.removes], RESTING))
    taken = [device for device in made.removes if device.id not in free]
    made = replace(made, removes=[device for device in made.removes if device.id in free], marks=[*made.marks, *taken])
    inventory.remove(conn, sorted(free))
    inventory.mark(conn, [device.id for device in made.marks], leaving=True)
    inventory.give_way(conn, [update.device.id for update in made.updates if "name" in update.columns])
    changes = []
    for update in made.updates:
        columns = dict(update.columns)
        if update.hardware is not None:
            columns["hardware_type_id"] = kinds[update.hardware]
        if columns:
            changes.append((update.device.id, columns))
    inventory.change(conn, changes)
    for name in sorted({update.imaging_server for update in made.updates if update.imaging_server is not None}):
        moved = [update.device.id for update in made.updates if update.imaging_server == name]
        inventory.move(conn, moved, servers[name], RESTING)
    by_lower = {name.lower(): server_id for name, server_id in servers.items()}
    kinds_by_lower = {(kind.lower(), model.lower()): hardware_id for (kind, model), hardware_id in kinds.items()}
    rows = [
        {
            "name": host.name,
            "fqdn": host.fqdn,
            "address": host.address,
            "inventory_id": host.inventory_id,
            "mac_address": host.mac_address,
            "imaging_server_id": by_lower[host.imaging_server.lower()],
            "relay_info": host.relay_info,
            "environment": host.environment or "none",
            "comments": host.comments,
            "hardware_type_id": None
            if host.hardware is None
            else kinds_by_lower[host.hardware[0].lower(), host.hardware[1].lower()],
            "backends": inventory.dumps_backends(host.backends or {}),
        }
        for host in made.adds
    ]
    ids = inventory.add(conn, rng, rows)
    labels = {update.device.id: update.labels for update in made.updates if update.labels is not None}
    labels.update({ids[host.inventory_id]: host.labels for host in made.adds if host.labels})
    inventory.set_labels(conn, labels)
    inventory.change_boards(
        conn,
        gone=[board.id for board in made.boards_gone],
        changed={key: _with_server_id(values, servers) for key, values in made.boards_changed.items()},
        added=[_with_server_id(values, servers) for values in made.boards_added],
    )
    left_servers = {update.device.imaging_server_id for update in made.updates if update.imaging_server is not None}
    left_kinds = {update.device.hardware_type_id for update in made.updates if update.hardware is not None}
    left_servers.update(device.imaging_server_id for device in made.removes)
    left_kinds.update(device.hardware_type_id for device in made.removes)
    gone = inventory.drop_unused(conn, left_servers, {key for key in left_kinds if key is not None}, clock.now())
    return made, tuple(gone)


def _with_server_id(values: dict[str, str] | dict[str, str | None], servers: dict[str, int]) -> dict[str, object]:
    """A relay board's columns, with the id of the imaging server in place of its name."""
    found: dict[str, object] = dict(values)
    name = found.pop("imaging_server", None)
    if isinstance(name, str):
        found["imaging_server_id"] = servers[name]
    return found
