# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The pages of reports: which ones there are, and each of them as a table. A report shows what was when it was made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from flask import Response, make_response, render_template, request, url_for

from mozpool import apikit
from mozpool.db import devices, images
from mozpool.errors import BadInput
from mozpool.web import reports
from mozpool.web.pages.base import blueprint
from mozpool.web.reportapi import ReportQuery, asked
from mozpool.web.reports import Column, Made, Report, Value

DAYS = {"1": "24 hours", "7": "7 days", "30": "30 days", "90": "90 days"}
"""The spans that are offered: days, and how people say it."""

MOST_ROWS = 500
"""Rows that a table shows at most: files have all of them."""

LONG = ("why", "comments")
"""Columns whose texts take several lines."""

GROUPS = {
    "Devices now": ("devices", "failed"),
    "Use": ("use-by-assignee", "use-by-environment", "use-by-type"),
    "Time to ready, and success": ("ready-by-image", "ready-by-type", "ready-by-device"),
    "What fails": ("worst-devices", "worst-relay-boards"),
}
"""Reports by what they are about."""


@dataclass(frozen=True)
class View:
    """What an address of a report asks for."""

    report: Report
    given: Mapping[str, str]
    """The keys of the address that the API knows, without empty ones."""
    order: str
    """The column that the rows are sorted by; empty: as the report has them."""
    backwards: bool

    @classmethod
    def of(cls, report: Report, args: Mapping[str, str]) -> View:
        """Read an address; what it says of columns that there are not is left out."""
        given = {key: args[key] for key in ReportQuery.model_fields if args.get(key)}
        if "since" in given or not report.spans:
            given.pop("days", None)
        sort = args.get("sort", "")
        order = sort.removeprefix("-")
        known = order in [column.name for column in report.columns]
        return cls(report, given, order if known else "", known and sort.startswith("-"))

    @property
    def days(self) -> str:
        """The days that are chosen; empty when the span is given by its ends."""
        return "" if "since" in self.given else self.given.get("days", f"{reports.DAYS:g}")

    def sorted_by(self, column: Column) -> str:
        """The address that sorts by a column: numbers from the most, or the other way round."""
        first = bool(column.unit)
        backwards = not self.backwards if self.order == column.name else first
        return f"?{urlencode({**self.given, 'sort': ('-' if backwards else '') + column.name})}"

    def direction(self, column: Column) -> str:
        """How the table is sorted by a column, as ``aria-sort`` has it."""
        if self.order != column.name:
            return "none"
        return "descending" if self.backwards else "ascending"

    def file(self, kind: str) -> str:
        """The address of the report as a file."""
        return f"{url_for('reports.report', report=self.report.name)}?{urlencode({**self.given, 'format': kind})}"

    def ordered(self, made: Made) -> list[tuple[Value, ...]]:
        """The rows as they are sorted; those without a value come last."""
        if not self.order:
            return made.rows
        place = [column.name for column in self.report.columns].index(self.order)
        known = [row for row in made.rows if row[place] is not None]
        known.sort(key=lambda row: _sortable(row[place]), reverse=self.backwards)
        return known + [row for row in made.rows if row[place] is None]


def _sortable(value: Value) -> Any:
    return value.casefold() if isinstance(value, str) else value


@blueprint.get("/reports")
def reports_page() -> Response:
    """Which reports there are."""
    return make_response(render_template("reports.html", groups=_groups()))


def _groups() -> dict[str, list[Report]]:
    return {title: [reports.find(name) for name in names] for title, names in GROUPS.items()}


@blueprint.get("/reports/<name>")
def report_page(name: str) -> Response:
    """A report."""
    report = reports.find(name)
    view = View.of(report, request.args)
    made, wrong = None, ""
    try:
        made = reports.make(report, asked(report, apikit.parse(ReportQuery, view.given)))
    except BadInput as error:
        wrong = error.message
    page = render_template(
        "report.html",
        view=view,
        report=report,
        made=made,
        rows=[] if made is None else view.ordered(made)[:MOST_ROWS],
        most=_most(made),
        wrong=wrong,
        days=DAYS,
        alike=next(found for found in _groups().values() if report in found),
        choices=_choices() if report.has_kinds else {},
        long=LONG,
    )
    return make_response(page, 400 if wrong else 200)


def _most(made: Made | None) -> dict[str, float]:
    """Column of hours → the most that it has: what a full bar stands for."""
    if made is None:
        return {}
    found = {}
    for place, column in enumerate(made.report.columns):
        if column.unit == "hours" and made.report.spans:
            found[column.name] = max((float(row[place] or 0) for row in made.rows), default=0.0)
    return found


def _choices() -> dict[str, list[str]]:
    """What can be chosen from."""
    with apikit.site().database.read() as conn:
        hardware = images.known_hardware(conn)
        environments = devices.environments(conn)
    return {
        "environment": environments,
        "hardware_type": sorted({each.type for each in hardware}),
        "hardware_model": sorted({each.model for each in hardware}),
    }
