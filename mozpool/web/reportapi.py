# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The paths of the reports, as JSON and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

from apiflask import APIBlueprint
from flask import Response
from pydantic import BaseModel, Field, StringConstraints

from mozpool import apikit
from mozpool.apikit import Input, Name, Whole, answer, endpoint, site, time_text
from mozpool.db.reports import Kinds
from mozpool.errors import BadInput
from mozpool.web import reports
from mozpool.web.reports import MOST_DAYS, REPORTS, Asked, Column, Made, Report, Value

blueprint = APIBlueprint("reports", __name__, tag="Reports", url_prefix="/api")

CSV = "text/csv"

Moment = Annotated[str, StringConstraints(max_length=64)]


class ReportQuery(Input):
    """What a report is to be about, and how it is to be told."""

    days: Annotated[float, Field(gt=0, le=MOST_DAYS, allow_inf_nan=False)] | None = Field(
        None, description="The span: the last so many days (7 unless said otherwise), or those before `until`."
    )
    since: Moment | None = Field(None, description="Where the span begins, instead of `days`: ISO-8601 in UTC.")
    until: Moment | None = Field(None, description="Where the span ends, if not now: ISO-8601 in UTC.")
    environment: Name | None = Field(None, description="Only what is about devices in this environment.")
    hardware_type: Name | None = Field(None, description="Only what is about devices of this type.")
    hardware_model: Name | None = Field(None, description="Only what is about devices of this model.")
    limit: Annotated[Whole, Field(ge=1, le=1_000_000)] | None = Field(None, description="At most so many rows.")
    format: Literal["json", "csv"] = "json"


class ReportColumn(BaseModel):
    """A column of a report."""

    name: str
    title: str = Field(description="For people.")
    unit: str = Field(description="What its numbers count; empty for texts.")
    meaning: str


class ReportKind(BaseModel):
    """A report that there is."""

    name: str
    title: str = Field(description="For people.")
    about: str
    spans: bool = Field(description="Whether it is about a span of time; otherwise it is about now.")
    columns: list[ReportColumn]


class ReportList(BaseModel):
    """All reports that there are."""

    reports: list[ReportKind]


class ReportAnswer(BaseModel):
    """A report."""

    report: str
    title: str
    since: str | None = Field(description="Where its span begins; null: it is about the moment `until`.")
    until: str
    total: int = Field(description="How many rows there are without `limit`.")
    columns: list[ReportColumn]
    rows: list[dict[str, str | int | float | None]] = Field(description="Name of a column → value.")


def asked(report: Report, query: ReportQuery) -> Asked:
    """What a query asks of a report. Raises BadInput."""
    kinds = Kinds(query.environment, query.hardware_type, query.hardware_model)
    if not report.has_kinds and kinds != Kinds():
        field, value = next(pair for pair in vars(kinds).items() if pair[1] is not None)
        raise BadInput.value(field, value, f"possible with {report.name}, which has all of them")
    now = site().clock.now()
    return Asked(reports.span(now, query.days, query.since, query.until), now, kinds, site())


def _column(column: Column) -> dict[str, str]:
    return {"name": column.name, "title": column.title, "unit": column.unit, "meaning": column.meaning}


@endpoint(blueprint, "/report/", answers=ReportList)
def report_list() -> Response:
    """List of the reports, and what is in each one."""
    return answer(
        {
            "reports": [
                {
                    "name": report.name,
                    "title": report.title,
                    "about": report.about,
                    "spans": report.spans,
                    "columns": [_column(column) for column in report.columns],
                }
                for report in REPORTS
            ]
        }
    )


@endpoint(blueprint, "/report/<report>/", answers=ReportAnswer, query=ReportQuery, errors=[400, 404], media=CSV)
def report(report: str) -> Response:
    """A report on the last days, or on another span of time."""
    kind = reports.find(report)
    query = apikit.query(ReportQuery)
    made = reports.make(kind, asked(kind, query))
    rows = made.rows[: query.limit]
    return _as_csv(made, rows) if query.format == "csv" else answer(_as_json(made, rows))


def _as_json(made: Made, rows: Iterable[Sequence[Value]]) -> dict[str, Any]:
    names = [column.name for column in made.report.columns]
    span = made.asked.span
    return {
        "report": made.report.name,
        "title": made.report.title,
        "since": time_text(span.since) if made.report.spans else None,
        "until": time_text(span.until if made.report.spans else made.asked.now),
        "total": len(made.rows),
        "columns": [_column(column) for column in made.report.columns],
        "rows": [dict(zip(names, row, strict=True)) for row in rows],
    }


def _as_csv(made: Made, rows: Iterable[Sequence[Value]]) -> Response:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(column.name for column in made.report.columns)
    writer.writerows([harmless(value) for value in row] for row in rows)
    said = Response(text.getvalue(), mimetype=CSV)
    day = made.asked.span.until.strftime("%Y-%m-%d")
    said.headers["Content-Disposition"] = f'attachment; filename="mozpool-{made.report.name}-{day}.csv"'
    return said


def harmless(value: Value) -> Value:
    """A value that no spreadsheet takes for a formula: people choose names and comments, and others open the file."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else value
