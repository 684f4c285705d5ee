# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Deliberate bugs in the servers' code, each of which the simulation has to find."""

from __future__ import annotations

import random
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, insert, update

from mozpool.bmm.service import BMM
from mozpool.db import claims, outbox, tables
from mozpool.db.devices import Candidate
from mozpool.db.engine import Database
from mozpool.errors import HardwareError
from mozpool.lifeguard.service import Answer, LifeGuard
from mozpool.pool import requestmachine
from mozpool.pool.allocation import Matcher
from mozpool.rowstore import RowStore
from mozpool.seen import Seen
from mozpool.simulate import invariants, world
from mozpool.simulate.cloud import SimulatedLauncher
from mozpool.statedriver import Change, Driver, Outcome
from mozpool.statemachine import Context
from mozpool.takeover import Takeover

Mutation = Callable[[pytest.MonkeyPatch], None]

MUTATIONS: dict[str, Mutation] = {}


def mutation(apply: Mutation) -> Mutation:
    """Add it to those that must be found."""
    MUTATIONS[apply.__name__] = apply
    return apply


@mutation
def claims_are_not_unique(patch: pytest.MonkeyPatch) -> None:
    """Whoever has found a device takes it, whatever has become of it since."""

    def take(conn: Connection, *, request_id: int, device_id: int, device_version: int, now: Any) -> int:
        key = conn.execute(
            insert(tables.claim_history).values(request_id=request_id, device_id=device_id, claimed_at=now)
        ).inserted_primary_key
        assert key is not None
        conn.execute(
            update(tables.devices)
            .where(tables.devices.c.id == device_id)
            .values(version=tables.devices.c.version + 1, claim_id=key[0], operation_claim_id=None)
        )
        conn.execute(insert(tables.device_requests).values(id=key[0], request_id=request_id, device_id=device_id))
        return int(key[0])

    patch.setattr(claims, "take", take)
    _without_unique_claims(patch)


def _without_unique_claims(patch: pytest.MonkeyPatch) -> None:
    """The database would refuse the second claim."""
    whole = world.template()

    def template() -> bytes:
        with tempfile.TemporaryDirectory() as directory:
            file = Path(directory) / "template.sqlite"
            file.write_bytes(whole)
            connection = sqlite3.connect(file)
            connection.executescript(
                "DROP TABLE device_requests;"
                "CREATE TABLE device_requests (id BIGINT, request_id BIGINT, device_id BIGINT, imaging_result TEXT);"
            )
            for statement in invariants.triggers("sqlite"):
                if " device_requests " in statement:
                    connection.execute(statement)
            connection.commit()
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            connection.close()
            return file.read_bytes()

    patch.setattr(world, "template", template)


class _Early:
    """A database whose transactions have effects before they are committed."""

    def __init__(self, database: Database, driver: Driver[Any]) -> None:
        self._database = database
        self._driver = driver

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)

    def run(self, work: Callable[[Connection], Any], **options: Any) -> Any:
        def early(conn: Connection) -> Any:
            outcome = work(conn)
            if isinstance(outcome, Outcome) and outcome.row is not None and outcome.decision is not None:
                attempt = outcome.row.attempt + bool(outcome.decision.path)
                for effect in outcome.decision.effects:
                    assert self._driver.effects is not None
                    self._driver.effects.submit(outcome.row, attempt, outcome.decision, effect)
            return outcome

        return self._database.run(early, **options)


@mutation
def effects_run_before_the_commit(patch: pytest.MonkeyPatch) -> None:
    """A transaction that is rolled back has had effects."""
    start = Driver.__init__

    def init(self: Driver[Any], machine: Any, store: Any, database: Database, **options: Any) -> None:
        start(self, machine, store, database, **options)
        self.database = _Early(database, self)  # type: ignore[assignment]

    patch.setattr(Driver, "__init__", init)


@mutation
def the_version_is_not_checked(patch: pytest.MonkeyPatch) -> None:
    """Rows are written as they were decided, whoever has written them since."""
    write = RowStore.write

    def blind(self: RowStore[Any], conn: Connection, row: Any, change: Change) -> bool:
        found = self._rows.version_and_token(conn, row.id)
        if found is None:
            return False
        return write(self, conn, replace(row, version=found[0]), change)

    patch.setattr(RowStore, "write", blind)


@mutation
def time_limits_are_not_written(patch: pytest.MonkeyPatch) -> None:
    """A state has a limit, and its row no deadline."""
    values = Change.values

    def without(self: Change, row: Any) -> dict[str, Any]:
        found = values(self, row)
        if self.target == "pxe_booting":
            found["state_timeout"] = None
        return found

    patch.setattr(Change, "values", without)


@mutation
def stale_results_are_accepted(patch: pytest.MonkeyPatch) -> None:
    """The result of an attempt that is over counts for the next one."""
    handle = Driver.handle

    def any_attempt(self: Driver[Any], row_id: int, event: str, args: Any = None, **kwargs: Any) -> Any:
        kwargs.pop("attempt", None)
        return handle(self, row_id, event, args, **kwargs)

    patch.setattr(Driver, "handle", any_attempt)


@mutation
def the_queue_has_no_order(patch: pytest.MonkeyPatch) -> None:
    """Whoever is lucky is next."""
    queue = Matcher._queue

    def shuffled(self: Matcher, conn: Connection, plan: Any) -> Iterator[Any]:
        found = list(queue(self, conn, plan))
        random.Random(len(found)).shuffle(found)
        yield from found

    patch.setattr(Matcher, "_queue", shuffled)


@mutation
def results_of_earlier_claims_are_accepted(patch: pytest.MonkeyPatch) -> None:
    """The imaging result of a device that the request had before counts for the one that it has now."""
    handle = Driver.handle

    def any_claim(self: Driver[Any], row_id: int, event: str, args: Any = None, **options: Any) -> Any:
        if event == "lifeguard_finished" and args:
            args = {key: value for key, value in args.items() if key != "claim_id"}
        return handle(self, row_id, event, args, **options)

    patch.setattr(Driver, "handle", any_claim)
    patch.setattr(Seen, "once", lambda self, to, event_id, work: work())


@mutation
def retry_counters_are_not_cleared(patch: pytest.MonkeyPatch) -> None:
    """Failures of long ago count for ever."""
    patch.setattr(Context, "clear", lambda self, *names: None)


@mutation
def devices_are_not_released(patch: pytest.MonkeyPatch) -> None:
    """A request that ends keeps its device."""
    patch.setattr(requestmachine, "end", lambda ctx, reason: ctx.set(reason=reason))


@mutation
def late_pleas_reach_the_next_holder(patch: pytest.MonkeyPatch) -> None:
    """Nobody looks whether the claim is still on, or whether the same was asked before."""

    def please(self: LifeGuard, device_id: int, event: str, args: Any = None, *, claim_id: Any = None, **_: Any) -> Any:
        outcome = self.driver.handle(device_id, event, {**(args or {}), "claim_id": claim_id})
        return Answer(outcome.accepted, outcome.state)

    patch.setattr(LifeGuard, "please", please)
    patch.setattr(Seen, "once", lambda self, to, event_id, work: work())


@mutation
def a_device_that_comes_free_tells_nobody(patch: pytest.MonkeyPatch) -> None:
    """Waiting requests are matched by the periodic scan only."""
    patch.setattr(Matcher, "wake", lambda self: None)


@mutation
def lost_servers_are_not_taken_over_from(patch: pytest.MonkeyPatch) -> None:
    """What they owned waits for their return."""
    patch.setattr(Takeover, "_take_over", lambda self: None)


@mutation
def jobs_of_nobody_run_on(patch: pytest.MonkeyPatch) -> None:
    """Whoever gives a phone back leaves its job there."""
    patch.setattr(BMM, "stop_jobs", lambda self, device: True)


@mutation
def jobs_are_started_without_a_look(patch: pytest.MonkeyPatch) -> None:
    """A start that failed may have been none."""

    def start(self: SimulatedLauncher, device: Any, order: Any, deadline: Any) -> None:
        self._cloud.wait_for_turn()
        self._cloud.create(order)
        if self._faults.happens("start_fails", device.name):
            raise HardwareError(device.name, "start", "exit code 1")

    patch.setattr(SimulatedLauncher, "start", start)


@mutation
def what_a_client_did_not_take_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    """It is told once, whatever comes of it."""

    def again(conn: Connection, letters: Any, due: Any, error: str) -> None:
        outbox.end(conn, letters, due, error)

    patch.setattr(outbox, "again", again)


@mutation
def others_get_devices_that_fit_badly(patch: pytest.MonkeyPatch) -> None:
    """Candidates are not filtered by what the request asked for."""
    find = Matcher._candidates

    def any_device(self: Matcher, conn: Connection, request: Any, criteria: Any, plan: Any) -> list[Candidate]:
        return find(self, conn, request, replace(criteria, labels={}, environment="any"), plan)

    patch.setattr(Matcher, "_candidates", any_device)
