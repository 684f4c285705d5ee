# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The reports: what each one has in its columns, and how it is made. ``docs/reports.md`` says what the numbers mean."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import Connection

from mozpool.apikit import Site, time_text
from mozpool.bmm.api import hardware
from mozpool.db import devices, reports, troubles, upkeep
from mozpool.db.reports import Kinds, Outcome, Use
from mozpool.db.spans import Span
from mozpool.errors import BadInput, NotFound
from mozpool.lifeguard.api import lifeguard
from mozpool.lifeguard.devicemachine import CATEGORIES, PERSON_NEEDED, RULES, category
from mozpool.web.pages.base import pool_stamp

Value = str | int | float | None

DAYS = 7.0
"""Days that a report is about unless something else is asked for."""

MOST_DAYS = upkeep.KEEP_HISTORY.days

MOST_FAILED = 10_000
"""Failed devices that are listed at most."""


@dataclass(frozen=True)
class Column:
    """A column of a report."""

    name: str
    """For programs."""
    title: str
    meaning: str
    unit: str = ""
    """What its numbers count; empty for texts."""


@dataclass(frozen=True)
class Asked:
    """What a report is to be about."""

    span: Span
    now: datetime
    kinds: Kinds
    site: Site


Make = Callable[[Asked], Iterable[Sequence[Value]]]


@dataclass(frozen=True)
class Report:
    """A kind of report."""

    name: str
    title: str
    about: str
    columns: tuple[Column, ...]
    make: Make
    """Finds the rows: as many values as there are columns."""
    spans: bool = True
    """Whether it is about a span of time; otherwise it is about now."""
    has_kinds: bool = True
    """Whether it can be about some kinds of devices only."""


@dataclass(frozen=True)
class Made:
    """A report that was made."""

    report: Report
    asked: Asked
    rows: list[tuple[Value, ...]]


def make(report: Report, asked: Asked) -> Made:
    """The report. Raises DatabaseAway."""
    return Made(report, asked, [tuple(row) for row in report.make(asked)])


def find(name: str) -> Report:
    """The report of this name. Raises NotFound."""
    found = next((report for report in REPORTS if report.name == name), None)
    if found is None:
        known = ", ".join(report.name for report in REPORTS)
        raise NotFound(f"report: there is no report {name[:64]!r}; there are {known}", field="report")
    return found


def moment(field: str, text: str) -> datetime:
    """A time in UTC from ISO-8601, with or without a zone. Raises BadInput that names the field."""
    try:
        found = datetime.fromisoformat(text)
        return (found.replace(tzinfo=UTC) if found.tzinfo is None else found).astimezone(UTC)
    except (ValueError, OverflowError):
        raise BadInput.value(field, text, "a time such as 2026-11-24 or 2026-11-24T12:00, in UTC") from None


def span(now: datetime, days: float | None, since: str | None, until: str | None) -> Span:
    """The span that is asked for, which ends now at the latest. Raises BadInput."""
    end = now if until is None else min(now, moment("until", until))
    if since is None:
        begin = end - timedelta(days=days or DAYS)
    elif days is not None:
        raise BadInput("days: goes with until, but not with since, which says where the report begins", field="days")
    else:
        begin = moment("since", since)
        if begin >= end:
            raise BadInput.value("since", since, f"a time before {time_text(end)}, where the report ends")
    if begin < now - upkeep.KEEP_HISTORY:
        field, value = ("since", since) if since else ("until", until) if until else ("days", days)
        raise BadInput.value(field, value, f"within the last {MOST_DAYS} days, for which histories are kept")
    return Span(begin, end)


# --- Devices ---


def _devices(asked: Asked) -> Iterable[Sequence[Value]]:
    counts: dict[tuple[str | None, str | None], dict[str, int]] = {}
    with asked.site.database.read() as conn:
        groups = reports.groups_of(conn, asked.kinds)
    for group in groups:
        of_kind = counts.setdefault((group.hardware_type, group.hardware_model), dict.fromkeys(CATEGORIES, 0))
        of_kind[category(group.state, group.claimed)] += group.number
    for kind in sorted(counts, key=lambda kind: (kind[0] is None, kind[0] or "", kind[1] or "")):
        yield (*kind, *counts[kind].values(), sum(counts[kind].values()))


def _failed(asked: Asked) -> Iterable[Sequence[Value]]:
    meaning_of = lifeguard().driver.machine.meaning_of
    with asked.site.database.read() as conn:
        rows = devices.latest_in(conn, PERSON_NEEDED, MOST_FAILED)
    for row in rows:
        if asked.kinds.has(row.environment, row.hardware_type, row.hardware_model):
            hours = None if row.state_since is None else (asked.now - row.state_since) / timedelta(hours=1)
            yield (
                row.name,
                row.hardware_type,
                row.hardware_model,
                row.environment,
                row.owner,
                row.state,
                time_text(row.state_since),
                None if hours is None else round(hours, 3),
                meaning_of(row.state),
                row.comments,
            )


# --- Use ---


def _use(find: Callable[[Connection, Span, Kinds], list[Use]]) -> Make:
    def make(asked: Asked) -> Iterable[Sequence[Value]]:
        with asked.site.database.read() as conn:
            return [(*use.key, use.hours, use.requests) for use in find(conn, asked.span, asked.kinds)]

    return make


# --- Time to ready, and success ---


def _ready(find: Callable[[Connection, Span, Kinds], list[Outcome]]) -> Make:
    def make(asked: Asked) -> Iterable[Sequence[Value]]:
        with asked.site.database.read() as conn:
            found = find(conn, asked.span, asked.kinds)
        for one in found:
            seconds = one.seconds or (None,) * len(reports.PERCENTILES)
            yield (*one.key, one.number, one.ready, one.failed, one.given_back, one.success, *seconds)

    return make


# --- What fails ---


def _worst_devices(asked: Asked) -> Iterable[Sequence[Value]]:
    with asked.site.database.read() as conn:
        found = troubles.worst_devices(conn, asked.span, asked.kinds, RULES)
    for one in found:
        yield (
            one.device,
            one.hardware_type,
            one.hardware_model,
            one.failures,
            one.given_up,
            one.self_test_failures,
            one.hours_failed,
            one.hours_out_of_service,
        )


def _worst_boards(asked: Asked) -> Iterable[Sequence[Value]]:
    switches = {switch.board.id: switch for switch in hardware().switches(pool_stamp())}
    with asked.site.database.read() as conn:
        failures = troubles.power_failures(conn, asked.span)
        found = troubles.board_troubles(conn, asked.span)
    rows: list[tuple[Value, ...]] = []
    for one in found:
        switch = switches.get(one.board_id)
        names = switch.names if switch is not None else ()
        rows.append(
            (
                one.board,
                switch.board.fqdn if switch is not None else None,
                switch.board.imaging_server if switch is not None else None,
                len(names),
                sum(failures.get(name, 0) for name in names),
                one.suspected,
                one.failed,
                one.hours_failed,
            )
        )
    # As the columns are: failures of the board, hours, failures of its devices.
    return sorted(rows, key=lambda row: [-float(row[place] or 0) for place in (6, 7, 4, 5)])


TYPE = Column("hardware_type", "Hardware type", "The type of the hardware.")
MODEL = Column("hardware_model", "Model", "The model of the hardware.")
ENVIRONMENT = Column("environment", "Environment", "The environment that the devices were in.")
DEVICE = Column("device", "Device", "The device's name.")

HOURS = Column(
    "hours", "Hours", "Hours for which devices were held, from the claim to the return, within the span.", "hours"
)
HAD = Column("requests", "Requests", "Requests that held a device within the span.", "requests")


def _outcome(*keys: Column, what: str, begin: str) -> tuple[Column, ...]:
    """The columns of a report on success: ``what`` is counted, and its seconds count from ``begin``."""
    return (
        *keys,
        Column(what, what.capitalize(), f"Those {what} that got ready or ended within the span.", what),
        Column("ready", "Ready", "Those of them that got ready.", what),
        Column("failed", "Failed", "Those that ended without having been ready, and were not given back.", what),
        Column("given_back", "Given back", "Those that their clients gave back before they were ready.", what),
        Column("success", "Success %", "Of those that got ready or failed: the percentage that got ready.", "%"),
        *(
            Column(
                f"p{percent}",
                f"p{percent} s",
                f"Seconds from {begin} until ready within which {percent} % of those were that got ready.",
                "seconds",
            )
            for percent in reports.PERCENTILES
        ),
    )


CLAIMED, MADE = "the claim of the device", "when the request was made"

REPORTS = (
    Report(
        "devices",
        "Devices by type",
        "How many devices of each type are in which category now.",
        (
            TYPE,
            MODEL,
            *(
                Column(name.replace(" ", "_"), name.capitalize(), f"Devices that are {name}.", "devices")
                for name in CATEGORIES
            ),
            Column("all", "All", "All devices of the type.", "devices"),
        ),
        _devices,
        spans=False,
    ),
    Report(
        "failed",
        "Devices in need of a person",
        "Devices that failed in a way that they do not get out of by themselves, the latest first.",
        (
            DEVICE,
            TYPE,
            MODEL,
            Column("environment", "Environment", "The environment that the device is in."),
            Column("server", "Imaging server", "The imaging server that acts on it."),
            Column("state", "State", "The state that it is in."),
            Column("since", "Since", "When it got into it (UTC)."),
            Column("hours", "Hours", "How long it has been in it.", "hours"),
            Column("why", "Why", "What the state means, and what a person has to do."),
            Column("comments", "Comments", "What people noted."),
        ),
        _failed,
        spans=False,
    ),
    Report(
        "use-by-assignee",
        "Use by assignee",
        "For whom devices were held, and for how long.",
        (Column("assignee", "Assignee", "For whom devices were asked for."), HOURS, HAD),
        _use(reports.use_by_assignee),
    ),
    Report(
        "use-by-environment",
        "Use by environment",
        "How long devices of each environment were held.",
        (ENVIRONMENT, HOURS, HAD),
        _use(reports.use_by_environment),
    ),
    Report(
        "use-by-type",
        "Use by type",
        "How long devices of each type were held.",
        (TYPE, MODEL, HOURS, HAD),
        _use(reports.use_by_type),
    ),
    Report(
        "ready-by-image",
        "Time to ready by image",
        "How many requests for each image got a device, and how long they waited for it.",
        _outcome(Column("image", "Image", "The image that was asked for."), what="requests", begin=MADE),
        _ready(reports.ready_by_image),
    ),
    Report(
        "ready-by-type",
        "Time to ready by type",
        "How many requests for each type of device got one, and how long they waited for it.",
        _outcome(TYPE, MODEL, what="requests", begin=MADE),
        _ready(reports.ready_by_type),
    ),
    Report(
        "ready-by-device",
        "Time to ready by device",
        "How often each device could be prepared for a request, and how long that took.",
        _outcome(DEVICE, TYPE, MODEL, what="preparations", begin=CLAIMED),
        _ready(reports.ready_by_device),
    ),
    Report(
        "worst-devices",
        "Worst devices",
        "Devices that gave trouble, those first that failed most often.",
        (
            DEVICE,
            TYPE,
            MODEL,
            Column("failures", "Failures", "How often it got into a failed state.", "times"),
            Column("given_up", "Tries used up", "How often all tries of a step were used up.", "times"),
            Column("self_test_failures", "Self-tests failed", "How often a self-test found a fault.", "times"),
            Column("hours_failed", "Hours failed", "Hours within the span in failed states.", "hours"),
            Column(
                "hours_out_of_service",
                "Hours out of service",
                "Hours within the span locked out or in troubleshooting.",
                "hours",
            ),
        ),
        _worst_devices,
    ),
    Report(
        "worst-relay-boards",
        "Worst relay boards",
        "Relay boards and other power switches, those first that failed most often.",
        (
            Column("board", "Board", "The name of the relay board or other power switch."),
            Column("address", "Address", "Where it is."),
            Column("server", "Imaging server", "The imaging server that it belongs to."),
            Column("devices", "Devices", "Devices that hang on it now.", "devices"),
            Column(
                "power_failures",
                "Power failures",
                "How often one of them failed because its power could not be switched.",
                "times",
            ),
            Column("suspected", "Suspected", "How often an operation of it failed after none had.", "times"),
            Column("failed", "Failed", "How often it was taken for failed, and its devices waited.", "times"),
            Column("hours_failed", "Hours failed", "Hours within the span that it was taken for failed.", "hours"),
        ),
        _worst_boards,
        has_kinds=False,
    ),
)
