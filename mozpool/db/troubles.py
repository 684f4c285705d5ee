# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What reports tell of failures in a span of time: of devices, and of the boards that switch their power."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

from sqlalchemy import Connection, and_, func, or_, select, true
from sqlalchemy.sql.elements import ColumnElement

from mozpool.db import history
from mozpool.db.devices import Rule
from mozpool.db.relay_boards import FAILED, SUSPECT
from mozpool.db.reports import Kinds
from mozpool.db.spans import Span, hours
from mozpool.db.spelling import letters
from mozpool.db.tables import (
    claim_history,
    device_history,
    devices,
    hardware_types,
    relay_board_history,
    relay_boards,
)
from mozpool.db.uses import environment_column

SELF_TEST_FAILED = "failed_self_test"
POWER_FAILED = "failed_power_cycling"


@dataclass(frozen=True)
class DeviceTrouble:
    """What a device gave trouble with."""

    device: str
    hardware_type: str | None
    hardware_model: str | None
    failures: int
    """How often it failed that had not failed before."""
    given_up: int
    """How often all tries of a step were used up."""
    self_test_failures: int
    failed: int
    """Microseconds in states that count so; likewise the next one."""
    out_of_service: int

    @property
    def hours_failed(self) -> float:
        """Hours in states that count so."""
        return hours(self.failed)

    @property
    def hours_out_of_service(self) -> float:
        """Hours in states that count so."""
        return hours(self.out_of_service)

    @property
    def is_some(self) -> bool:
        """Whether there was any."""
        return any((self.failures, self.given_up, self.self_test_failures, self.failed, self.out_of_service))

    def __add__(self, other: DeviceTrouble) -> DeviceTrouble:
        """Also with what a device of the same name did that was there before."""
        return replace(
            self,
            failures=self.failures + other.failures,
            given_up=self.given_up + other.given_up,
            self_test_failures=self.self_test_failures + other.self_test_failures,
            failed=self.failed + other.failed,
            out_of_service=self.out_of_service + other.out_of_service,
        )


@dataclass
class _Known:
    """A device as far as it is known."""

    name: str | None
    environment: str | None = None
    hardware_type: str | None = None
    hardware_model: str | None = None
    state: str | None = None
    """None: it is not there any more."""
    changes: list[Any] = field(default_factory=list)


_CHANGE = (
    device_history.c.id,
    device_history.c.device_id,
    device_history.c.ts,
    device_history.c.from_state,
    device_history.c.to_state,
    device_history.c.event,
    device_history.c.detail,
    device_history.c.device,
)


def worst_devices(conn: Connection, span: Span, kinds: Kinds, rules: Sequence[Rule]) -> list[DeviceTrouble]:
    """Devices that gave trouble, the worst first; ``rules`` say which states count as failed and out of service.

    One that was deleted and added again is one device. What a device that has been deleted was like after its last
    change of state does not count.
    """

    def kind(state: str) -> str:
        # Who had the device at the time is not asked: one in maintenance mode is somebody's work.
        return next((rule.name for rule in rules if rule.fits(state, True)), "")

    found: dict[str, DeviceTrouble] = {}
    for one in _devices_with_changes(conn, span, kinds, rules):
        changes = [(row.ts, row.from_state, row.to_state) for row in one.changes]
        spent = span.spent(changes, one.state, kind)
        within = [row for row in one.changes if span.since <= row.ts < span.until]
        failures = [row for row in within if kind(row.to_state) == "failed" != kind(row.from_state)]
        new = DeviceTrouble(
            device=one.name or "",
            hardware_type=one.hardware_type,
            hardware_model=one.hardware_model,
            failures=len(failures),
            given_up=sum(row.event != history.ENTERED and history.is_given_up(row.detail) for row in within),
            self_test_failures=sum(row.to_state == SELF_TEST_FAILED for row in failures),
            failed=spent.get("failed", 0),
            out_of_service=spent.get("out of service", 0),
        )
        found[new.device] = new + found[new.device] if new.device in found else new
    return sorted(
        filter(lambda trouble: trouble.is_some, found.values()),
        key=lambda trouble: (-trouble.failures, -trouble.failed, -trouble.out_of_service, trouble.device),
    )


def _devices_with_changes(conn: Connection, span: Span, kinds: Kinds, rules: Sequence[Rule]) -> list[_Known]:
    """The devices that are or were there, each with its changes since the span began that have to do with failures."""
    bad = [rule for rule in rules if rule.name in ("failed", "out of service")]
    states = device_history.c.from_state, device_history.c.to_state
    query = select(*_CHANGE).where(
        device_history.c.ts >= span.since,
        or_(
            *(_counts(rule, state) for rule in bad for state in states),
            device_history.c.detail.like(history.GIVEN_UP_LIKE),
        ),
    )
    # Sorted here: for the sake of an order, SQLite would look at all rows there are.
    changes = sorted(conn.execute(query), key=lambda row: (row.device_id, row.id))
    known = {
        row[0]: _Known(*row[1:])
        for row in conn.execute(
            select(
                devices.c.id,
                devices.c.name,
                environment_column,
                hardware_types.c.type,
                hardware_types.c.model,
                devices.c.state,
            ).outerjoin(hardware_types, hardware_types.c.id == devices.c.hardware_type_id)
        )
    }
    gone = set()
    for device_id, rows in groupby(changes, key=lambda row: row.device_id):
        if device_id not in known:
            known[device_id] = _Known(None)
            gone.add(device_id)
        known[device_id].changes = list(rows)
    _describe(conn, {device_id: known[device_id] for device_id in gone}, [one for one in known.values() if one.state])
    return [one for one in known.values() if kinds.has(one.environment, one.hardware_type, one.hardware_model)]


def _counts(rule: Rule, column: ColumnElement[Any]) -> ColumnElement[bool]:
    """Whether a state that a column holds may be one of a rule's."""
    wanted = [true()] if not rule.states else [column.in_(rule.states)]
    return and_(*wanted, column.startswith(rule.prefix, autoescape=True))


def _describe(conn: Connection, gone: dict[int, _Known], there: Iterable[_Known]) -> None:
    """Say what devices were that are gone: what one of their name is that is there, else what their last claims say."""
    by_name = {one.name: one for one in there}
    noted = select(
        claim_history.c.device_id,
        claim_history.c.device,
        claim_history.c.environment,
        claim_history.c.hardware_type,
        claim_history.c.hardware_model,
    ).where(claim_history.c.device_id.in_(gone), claim_history.c.device.is_not(None))
    claimed = {row[0]: _Known(*row[1:]) for row in conn.execute(noted.order_by(claim_history.c.id))} if gone else {}
    for device_id, one in gone.items():
        claim = claimed.get(device_id, one)
        one.name = next((row.device for row in reversed(one.changes) if row.device), claim.name)
        alike = by_name.get(one.name, claim)
        one.name = one.name or f"device {device_id}"
        one.environment, one.hardware_type = alike.environment, alike.hardware_type
        one.hardware_model = alike.hardware_model


def power_failures(conn: Connection, span: Span) -> dict[str, int]:
    """Name of a device → how often it failed in the span because its power could not be switched."""
    name = func.coalesce(devices.c.name, device_history.c.device)
    query = (
        select(func.min(name), func.count())
        .select_from(device_history.outerjoin(devices, devices.c.id == device_history.c.device_id))
        .where(span.has(device_history.c.ts), device_history.c.to_state == POWER_FAILED)
        .group_by(letters(name))
    )
    return {row[0]: row[1] for row in conn.execute(query)}


@dataclass(frozen=True)
class BoardTrouble:
    """What a relay board or another power switch gave trouble with."""

    board_id: int
    board: str
    suspected: int
    """How often it began to fail."""
    failed: int
    """How often it was given up for a while."""
    hours_failed: float


def board_troubles(conn: Connection, span: Span) -> list[BoardTrouble]:
    """All boards that are there or were in trouble since the span began, sorted by name."""
    columns = (
        relay_board_history.c.relay_board_id,
        relay_board_history.c.board,
        relay_board_history.c.ts,
        relay_board_history.c.from_state,
        relay_board_history.c.to_state,
    )
    there = {row[0]: (row[1], row[2]) for row in conn.execute(_BOARDS)}
    query = select(*columns).where(relay_board_history.c.ts >= span.since)
    query = query.order_by(relay_board_history.c.relay_board_id, relay_board_history.c.id)
    changes = {number: list(rows) for number, rows in groupby(conn.execute(query), key=lambda row: row[0])}
    return sorted(
        (_board(number, there.get(number), changes.get(number, []), span) for number in there.keys() | changes.keys()),
        key=lambda trouble: (trouble.board, trouble.board_id),
    )


_BOARDS = select(relay_boards.c.id, relay_boards.c.name, relay_boards.c.state)


def _board(number: int, there: tuple[str, str] | None, rows: Sequence[Any], span: Span) -> BoardTrouble:
    name, state = there or (rows[-1][1], None)
    spent = span.spent([row[2:] for row in rows], state, str)
    began = Counter(row[4] for row in rows if span.since <= row[2] < span.until)
    return BoardTrouble(number, name, began[SUSPECT], began[FAILED], hours(spent.get(FAILED, 0)))
