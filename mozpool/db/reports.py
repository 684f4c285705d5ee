# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What reports tell of a span of time: who used devices, how long it took until they were ready, what failed.

Claims and requests that ended tell what they were themselves, because devices and requests are deleted. What still
lasts is looked up in their rows, and so is what imaging servers ended that did not note it yet.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Select, case, func, or_, select, union_all
from sqlalchemy.sql.elements import ColumnElement

from mozpool.db.devices import Group, groups
from mozpool.db.requests import END_STATES, READY, RETURNED
from mozpool.db.spans import SECOND, Span, hours, micros
from mozpool.db.spelling import exactly, letters
from mozpool.db.tables import (
    claim_history,
    device_requests,
    devices,
    hardware_types,
    images,
    past_requests,
    request_history,
    requests,
)
from mozpool.db.uses import environment_column

PERCENTILES = (50, 95, 99)

Key = tuple[str | None, ...]
"""What the numbers of a row are of; None where that is not known."""


@dataclass(frozen=True)
class Kinds:
    """Which devices a report is about; None asks for nothing."""

    environment: str | None = None
    hardware_type: str | None = None
    hardware_model: str | None = None

    def conditions(self, *columns: ColumnElement[Any]) -> list[ColumnElement[bool]]:
        """That columns with an environment, a hardware type and a model are those wanted."""
        wanted = (self.environment, self.hardware_type, self.hardware_model)
        return [exactly(column, value) for column, value in zip(columns, wanted, strict=True) if value is not None]

    def has(self, *values: str | None) -> bool:
        """Whether this environment, hardware type and model are wanted."""
        wanted = (self.environment, self.hardware_type, self.hardware_model)
        return all(one in (None, value) for one, value in zip(wanted, values, strict=True))


def groups_of(conn: Connection, kinds: Kinds) -> list[Group]:
    """How many devices there are of each kind that are wanted."""
    return groups(conn, kinds.conditions(environment_column, hardware_types.c.type, hardware_types.c.model))


# --- Claims, and what they are of ---


def _noted(noted: ColumnElement[Any], otherwise: ColumnElement[Any]) -> ColumnElement[Any]:
    """What a claim says itself when it is over; what else is known of it when it is not, or says nothing."""
    return case((claim_history.c.device.is_not(None), noted), else_=otherwise)


_device = _noted(claim_history.c.device, devices.c.name)
_claim_environment = _noted(claim_history.c.environment, environment_column)
_claim_type = _noted(claim_history.c.hardware_type, hardware_types.c.type)
_claim_model = _noted(claim_history.c.hardware_model, hardware_types.c.model)
_assignee = func.coalesce(past_requests.c.assignee, requests.c.assignee)
_claims = (
    claim_history.outerjoin(devices, devices.c.id == claim_history.c.device_id)
    .outerjoin(hardware_types, hardware_types.c.id == devices.c.hardware_type_id)
    .outerjoin(past_requests, past_requests.c.request_id == claim_history.c.request_id)
    .outerjoin(requests, requests.c.id == claim_history.c.request_id)
)
_got_ready = select(func.min(request_history.c.ts)).where(request_history.c.to_state == READY)
"""When a request became ready, by its history of states."""
_claim_ready = case(
    (claim_history.c.released_at.is_(None), case((requests.c.state == READY, requests.c.state_since))),
    (claim_history.c.device.is_not(None), claim_history.c.ready_at),
    else_=_got_ready.where(
        request_history.c.request_id == claim_history.c.request_id,
        request_history.c.ts >= claim_history.c.claimed_at,
        request_history.c.ts <= claim_history.c.released_at,
    ).scalar_subquery(),
)


@dataclass(frozen=True)
class Use:
    """How much devices were used."""

    key: Key
    hours: float
    requests: int
    """How many requests had one of the devices."""


def use_by_assignee(conn: Connection, span: Span, kinds: Kinds) -> list[Use]:
    """By who asked for them."""
    return _use(conn, span, kinds, _assignee)


def use_by_environment(conn: Connection, span: Span, kinds: Kinds) -> list[Use]:
    """By the environment that the devices were in."""
    return _use(conn, span, kinds, _claim_environment)


def use_by_type(conn: Connection, span: Span, kinds: Kinds) -> list[Use]:
    """By the devices' hardware type and model."""
    return _use(conn, span, kinds, _claim_type, _claim_model)


def _use(conn: Connection, span: Span, kinds: Kinds, *keys: ColumnElement[Any]) -> list[Use]:
    begin, end = claim_history.c.claimed_at, claim_history.c.released_at
    query = (
        select(
            *(func.min(key) for key in keys),
            func.sum(span.part(begin, end)),
            func.count(func.distinct(claim_history.c.request_id)),
        )
        .select_from(_claims)
        .where(span.cuts(begin, end), *kinds.conditions(_claim_environment, _claim_type, _claim_model))
        .group_by(*(letters(key) for key in keys))
    )
    found = [Use(tuple(row[:-2]), hours(int(row[-2])), int(row[-1])) for row in conn.execute(query)]
    return sorted(found, key=lambda use: (-use.hours, -use.requests, _order(use.key)))


# --- Time to ready, and success ---


@dataclass(frozen=True)
class Outcome:
    """What came of requests, or of preparations of a device, that got ready or ended in a span."""

    key: Key
    ready: int
    failed: int
    given_back: int
    """Those that their clients gave back before they were ready: neither a success nor a failure."""
    seconds: tuple[float, ...] = ()
    """What those took that got ready, by :data:`PERCENTILES`; empty when there are none."""

    @property
    def number(self) -> int:
        """Of all."""
        return self.ready + self.failed + self.given_back

    @property
    def success(self) -> float | None:
        """The percentage that got ready, of those that got ready or failed."""
        decided = self.ready + self.failed
        return round(100 * self.ready / decided, 2) if decided else None


def ready_by_image(conn: Connection, span: Span, kinds: Kinds) -> list[Outcome]:
    """Requests by the image that they wanted, and their seconds since they were made."""
    return _outcomes(conn, _requests(span, kinds), ("image",))


def ready_by_type(conn: Connection, span: Span, kinds: Kinds) -> list[Outcome]:
    """Requests by hardware type and model, and their seconds since they were made."""
    return _outcomes(conn, _requests(span, kinds), ("hardware_type", "hardware_model"))


def ready_by_device(conn: Connection, span: Span, kinds: Kinds) -> list[Outcome]:
    """Preparations by device (its name, type and model), and the seconds since the device was claimed."""
    released = claim_history.c.released_at
    query = (
        select(
            _device.label("device"),
            _claim_type.label("hardware_type"),
            _claim_model.label("hardware_model"),
            *_outcome(claim_history.c.claimed_at, _claim_ready, claim_history.c.reason),
        )
        .select_from(_claims)
        .where(
            released.is_(None) | (released >= span.since),
            span.has(func.coalesce(_claim_ready, released)),
            *kinds.conditions(_claim_environment, _claim_type, _claim_model),
        )
    )
    return _outcomes(conn, query, ("device", "hardware_type", "hardware_model"))


def _outcome(
    begin: ColumnElement[Any], ready: ColumnElement[Any], reason: ColumnElement[Any]
) -> tuple[ColumnElement[Any], ColumnElement[Any]]:
    """What came of it, and the microseconds that it took."""
    came = case((ready.is_not(None), "ready"), (reason == RETURNED, "given back"), else_="failed")
    return came.label("came"), case((ready.is_not(None), micros(ready) - micros(begin)), else_=0).label("took")


def _requests(span: Span, kinds: Kinds) -> Select[Any]:
    """Requests that got ready or ended in the span."""
    past = select(
        past_requests.c.image,
        past_requests.c.hardware_type,
        past_requests.c.hardware_model,
        *_outcome(past_requests.c.created, past_requests.c.ready_at, past_requests.c.reason),
    ).where(
        past_requests.c.created.is_not(None),
        past_requests.c.ended >= span.since,
        span.has(func.coalesce(past_requests.c.ready_at, past_requests.c.ended)),
        *kinds.conditions(past_requests.c.environment, past_requests.c.hardware_type, past_requests.c.hardware_model),
    )
    environment = case((devices.c.id.is_not(None), environment_column), else_=requests.c.environment)
    hardware_type = func.coalesce(hardware_types.c.type, requests.c.hardware_type)
    model = func.coalesce(hardware_types.c.model, requests.c.hardware_model)
    got_ready = _got_ready.where(request_history.c.request_id == requests.c.id).scalar_subquery()
    ready = case((requests.c.state == READY, requests.c.state_since), else_=got_ready)
    others = (
        select(images.c.name, hardware_type, model, *_outcome(requests.c.created, ready, requests.c.reason))
        .select_from(requests)
        .outerjoin(past_requests, past_requests.c.request_id == requests.c.id)
        .outerjoin(images, images.c.id == requests.c.image_id)
        .outerjoin(device_requests, device_requests.c.request_id == requests.c.id)
        .outerjoin(devices, devices.c.id == device_requests.c.device_id)
        .outerjoin(hardware_types, hardware_types.c.id == devices.c.hardware_type_id)
        .where(
            past_requests.c.request_id.is_(None),
            requests.c.created.is_not(None),
            requests.c.state.in_((READY, *END_STATES)),
            span.has(func.coalesce(ready, requests.c.state_since)),
            *kinds.conditions(environment, hardware_type, model),
        )
    )
    return select(union_all(past, others).subquery())


def _outcomes(conn: Connection, decided: Select[Any], names: Sequence[str]) -> list[Outcome]:
    """By the columns of these names. Of each outcome one row is read, or as many as there are percentiles."""
    rows = decided.subquery()
    keys = [rows.c[name] for name in names]
    alike = [*(letters(key) for key in keys), rows.c.came]
    ranked = select(
        *keys,
        rows.c.came,
        rows.c.took,
        func.row_number().over(partition_by=alike, order_by=rows.c.took).label("place"),
        func.count().over(partition_by=alike).label("number"),
    ).subquery()
    places = [(ranked.c.number * percent + 99) // 100 for percent in PERCENTILES]
    query = select(
        *(ranked.c[name] for name in names), ranked.c.came, ranked.c.number, ranked.c.place, ranked.c.took
    ).where(or_(*(ranked.c.place == place for place in places)))
    counts: dict[Key, Counter[str]] = {}
    took: dict[Key, dict[int, int]] = {}
    for *key, came, number, place, microseconds in conn.execute(query):
        counts.setdefault(tuple(key), Counter())[came] = int(number)
        if came == "ready":
            took.setdefault(tuple(key), {})[int(place)] = int(microseconds)
    found = []
    for one, count in counts.items():
        places_of_one = [(count["ready"] * percent + 99) // 100 for percent in PERCENTILES]
        seconds = tuple(round(took[one][place] / SECOND, 3) for place in places_of_one) if count["ready"] else ()
        found.append(Outcome(one, count["ready"], count["failed"], count["given back"], seconds))
    return sorted(found, key=lambda outcome: _order(outcome.key))


def _order(key: Iterable[str | None]) -> tuple[Any, ...]:
    """What is not known comes last."""
    return tuple((part is None, part or "") for part in key)
