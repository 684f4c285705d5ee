# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The page of the audit: who changed what."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode

from flask import Response, request, url_for

from mozpool.access.matrix import RULES
from mozpool.apikit import site
from mozpool.db import audit
from mozpool.db.audit import OUTCOMES, Entry, Filter
from mozpool.errors import BadInput
from mozpool.web.pages.base import blueprint, live, whole
from mozpool.web.reports import moment

ROWS = 50
"""Rows of a page."""

FILE_ROWS = 10_000
"""Rows of a file that the page offers."""

SPANS = {"1": "hour", "24": "24 hours", "168": "7 days", "720": "30 days"}
"""Hours that are offered, and how people say it."""

KINDS = ("person", "token", "open", "command", "job", "device", "server", "nobody")

OUTCOME_WORDS = {"ok": "done", "refused": "not allowed", "failed": "failed"}


def _given(name: str) -> str:
    return request.args.get(name, "").strip()[:256]


@blueprint.app_template_filter("target_page")
def target_page(target: str) -> str | None:
    """The address of the page of what an action was about, where there is one."""
    kind, _, name = target.partition(" ")
    if kind == "request" and re.fullmatch(r"\d{1,18}", name, re.ASCII):
        return url_for("pages.request_page", number=name)
    pages = {"device": "pages.device_page", "relay": "pages.relay_page", "pxe_config": "pages.pxe_config_page"}
    return url_for(pages[kind], name=name) if kind in pages and name not in ("", "any") else None


@blueprint.app_template_filter("detail_words")
def detail_words(entry: Entry) -> str:
    """What else was said, in one line."""
    return ", ".join(f"{name}: {value}" for name, value in entry.details.items())


@blueprint.get("/audit")
def audit_page() -> Response:
    """Changes, the newest first."""
    with site().database.read() as conn:
        newest = audit.last_id(conn)
    # Those that become older than the span leave the list, which no write tells.
    minute = site().clock.now().strftime("%H:%M") if _given("hours") else ""
    return live("audit", _list, f"{newest} {minute}")


def _list() -> dict[str, Any]:
    given = {name: _given(name) for name in ("who", "target", "action", "kind", "outcome", "hours", "since", "until")}
    wrong = None
    try:
        wanted = _wanted(given)
    except BadInput as error:
        wanted, wrong = None, error.message
    before = whole("before", 0, least=0, most=10**9) or None
    rows: list[Entry] = []
    if wanted is not None:
        with site().database.read() as conn:
            rows = audit.newest(conn, wanted, before=before, limit=ROWS + 1)
    return {
        "rows": rows[:ROWS],
        "older": rows[ROWS - 1].id if len(rows) > ROWS else None,
        "before": before,
        "given": given,
        "is_filtered": any(given.values()),
        "wrong": wrong,
        "arguments": request.args.to_dict(),
        "spans": SPANS,
        "kinds": KINDS,
        "outcomes": [(name, OUTCOME_WORDS[name]) for name in OUTCOMES],
        "actions": sorted({name.rpartition(".")[2] for name in RULES if not name.startswith("pages.")}),
        "files": {kind: _file(kind, given) for kind in ("csv", "json")},
    }


def _wanted(given: dict[str, str]) -> Filter:
    """What the page's address asks for. Raises BadInput."""
    since = moment("since", given["since"]) if given["since"] else None
    if since is None and given["hours"] in SPANS:
        since = site().clock.now() - timedelta(hours=int(given["hours"]))
    return Filter(
        who=given["who"] or None,
        target=given["target"] or None,
        action=given["action"] or None,
        kind=given["kind"] or None,
        outcome=given["outcome"] if given["outcome"] in OUTCOMES else None,
        since=since,
        until=moment("until", given["until"]) if given["until"] else None,
    )


def _file(kind: str, given: dict[str, str]) -> str:
    """The address of the same rows as a file."""
    query = {name: value for name, value in given.items() if value and name != "hours"}
    if given["hours"] in SPANS and "since" not in query:
        since = site().clock.now() - timedelta(hours=int(given["hours"]))
        query["since"] = since.strftime("%Y-%m-%dT%H:%M")
    return f"{url_for('audit.audit_list')}?{urlencode({**query, 'limit': FILE_ROWS, 'format': kind})}"
