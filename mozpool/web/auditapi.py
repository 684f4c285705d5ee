# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The path of the audit: who changed what, as JSON and as CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import fields
from typing import Annotated, Any, Literal

from apiflask import APIBlueprint
from flask import Response
from pydantic import BaseModel, Field, StringConstraints

from mozpool import apikit
from mozpool.apikit import Input, Whole, answer, endpoint, site
from mozpool.db import audit
from mozpool.db.audit import Entry, Filter
from mozpool.web.reportapi import CSV, Moment, harmless
from mozpool.web.reports import moment

blueprint = APIBlueprint("audit", __name__, tag="Audit", url_prefix="/api")

MOST = 100_000
"""Rows of one answer."""

Word = Annotated[str, StringConstraints(min_length=1, max_length=256)]


class AuditQuery(Input):
    """Which rows are wanted, and how they are to be told."""

    who: Word | None = Field(None, description="Only what they did: the name of a person, of a token, or of a user.")
    target: Word | None = Field(
        None,
        description="Only what was done to it, such as `device panda-0001` or `request 12`; the name alone will do.",
    )
    action: Word | None = Field(None, description="Only this, such as `request_return` or `mozpool-db add-device`.")
    kind: Word | None = Field(None, description="Only what such callers did.")
    outcome: Literal["ok", "refused", "failed"] | None = Field(
        None, description="Only what was done; what somebody was not allowed to do; what came to nothing otherwise."
    )
    since: Moment | None = Field(None, description="Only from then on: ISO-8601 in UTC.")
    until: Moment | None = Field(None, description="Only until then: ISO-8601 in UTC.")
    limit: Annotated[Whole, Field(ge=1, le=MOST)] = Field(100, description="At most so many rows.")
    cursor: Annotated[Whole, Field(ge=1, le=2**62)] | None = Field(
        None, description="Where to go on: `next_cursor` of the answer before."
    )
    format: Literal["json", "csv"] = "json"

    def filter(self) -> Filter:
        """What the database is asked for. Raises BadInput."""
        since = None if self.since is None else moment("since", self.since)
        until = None if self.until is None else moment("until", self.until)
        return Filter(self.who, self.target, self.action, self.kind, self.outcome, since, until)


class AuditEntry(BaseModel):
    """A change, or an attempt."""

    id: int
    time: str = Field(description="When it was over: in UTC, with microseconds and zone.")
    kind: str = Field(
        description="What made it: person, token, device, server, command (of a user of a server), job (of a server by "
        "itself), open (somebody in mode open) or nobody."
    )
    who: str | None
    credential: int | None = Field(description="The id of the token.")
    address: str | None = Field(description="From where; of a command the machine's name.")
    server: str = Field(description="The imaging server that did it.")
    action: str
    target: str | None
    details: dict[str, Any] = Field(description="What else was said, shortened and without secrets.")
    status: int | None = Field(description="The HTTP status of the answer; null: it was no call.")
    outcome: str = Field(description="`ok`, or why not.")


class AuditList(BaseModel):
    """Changes, the newest first."""

    entries: list[AuditEntry]
    next_cursor: int | None


COLUMNS = tuple("time" if one.name == "ts" else one.name for one in sorted(fields(Entry), key=lambda f: f.name != "id"))
"""The keys of a row, in order."""


def shown(entry: Entry) -> dict[str, Any]:
    """A row as the API shows it."""
    values = {"time": entry.ts.isoformat(timespec="microseconds"), **vars(entry)}
    return {name: values[name] for name in COLUMNS}


@endpoint(blueprint, "/audit/", answers=AuditList, query=AuditQuery, errors=[400], media=CSV)
def audit_list() -> Response:
    """Who changed what, the newest first: all calls that may change something, also refused ones, and commands.

    Not in it is what devices tell of themselves: it is in their logs.
    """
    query = apikit.query(AuditQuery)
    with site().database.read() as conn:
        found = audit.newest(conn, query.filter(), before=query.cursor, limit=query.limit + 1)
    rows = found[: query.limit]
    following = rows[-1].id if len(found) > query.limit else None
    if query.format == "csv":
        return _as_csv(rows, following)
    return answer({"entries": [shown(row) for row in rows], "next_cursor": following})


def _as_csv(rows: Sequence[Entry], following: int | None) -> Response:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for row in rows:
        values = shown(row)
        values["details"] = json.dumps(values["details"], ensure_ascii=False) if row.details else ""
        writer.writerow(harmless(value) for value in values.values())
    said = Response(text.getvalue(), mimetype=CSV)
    day = site().clock.now().strftime("%Y-%m-%d")
    said.headers["Content-Disposition"] = f'attachment; filename="mozpool-audit-{day}.csv"'
    if following is not None:
        said.headers["Mozpool-Next-Cursor"] = str(following)
    return said
