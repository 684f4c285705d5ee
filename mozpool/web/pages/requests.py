# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The pages of requests: the list, a new one, and one of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from flask import Response, make_response, render_template, request

from mozpool.apikit import site
from mozpool.bmm.backends.sut import DEFAULT_PORT
from mozpool.db import claims, devices, history, images, requests
from mozpool.db.claims import PastClaim
from mozpool.db.devices import Device
from mozpool.db.history import StateChange
from mozpool.db.requests import Request
from mozpool.db.tables import request_history
from mozpool.errors import NotFound
from mozpool.notify.outbox import host_of
from mozpool.pool.api import job_of, mozpool, request_number
from mozpool.web.pages.base import MOST_PAGES, blueprint, live, me, pool_stamp, whole

ROWS = 50
"""Rows of a page of the list."""

SHOWN = 200
"""Changes of state, and devices, that the page of a request shows at most."""

WATCHED = 10
"""Of so many devices that a request had last, their own states are shown too."""

STEPS = (
    ("finding_device", "In the queue"),
    ("contact_lifeguard", "Device found"),
    ("contacting_lifeguard", "LifeGuard asked"),
    ("pending", "Being prepared"),
    ("ready", "Ready"),
    ("closed", "Closed"),
)
"""The states that a request goes through when all goes well, and what each means."""


# --- The list ---


def _given(name: str) -> str:
    return request.args.get(name, "").strip()[:256]


@blueprint.app_template_filter("wants")
def wants(row: Request) -> str:
    """What a request asks for besides its image, in words."""
    parts = [row.requested_device if row.wants_named_device else "any device"]
    parts += [part for part in (row.hardware_type, row.hardware_model) if part]
    if row.environment != "any":
        parts.append(f"in {row.environment}")
    return ", ".join(parts + [f"{name}={value}" for name, value in sorted(row.labels.items())])


@blueprint.get("/requests")
def requests_page() -> Response:
    """Requests, the newest first."""
    # Those that failed leave the list when they expire, which no write tells.
    minute = site().clock.now().strftime("%H:%M")
    return live("requests", _list, f"{pool_stamp()} {minute}")


def _list() -> dict[str, Any]:
    own = me()
    whose = _given("whose") if _given("whose") in ("mine", "all") else ("mine" if own else "all")
    wanted = requests.Filter(
        include_closed=bool(_given("closed")),
        whose=(own or "\0nobody") if whose == "mine" else None,
        state=_given("state") or None,
        environment=_given("environment") or None,
        search=_given("search") or None,
    )
    number, now = whole("page", 1, least=1, most=MOST_PAGES), site().clock.now()
    with site().database.read() as conn:
        rows, total = requests.newest(conn, wanted, now, offset=(number - 1) * ROWS, limit=ROWS)
        pages = max(1, -(-total // ROWS))
        if number > pages:
            number = pages
            rows, total = requests.newest(conn, wanted, now, offset=(number - 1) * ROWS, limit=ROWS)
        had = claims.last_devices(conn, [row.id for row in rows if row.device is None])
        environments = devices.environments(conn)
    reasons = mozpool().reasons(rows)
    return {
        "rows": [(row, row.device or had.get(row.id), reasons.get(row.id, row.reason)) for row in rows],
        "total": total,
        "number": number,
        "pages": pages,
        "whose": whose,
        "closed": wanted.include_closed,
        "given": {name: _given(name) for name in ("state", "environment", "search")},
        "states": list(mozpool().driver.machine.states),
        "environments": environments,
        "arguments": request.args.to_dict(),
    }


# --- A new one ---


@blueprint.get("/requests/new")
def request_new() -> Response:
    """The form; keys of the query fill it in."""
    with site().database.read() as conn:
        offered = images.on_offer(images.find(conn))
        hardware = images.known_hardware(conn)
        environments = devices.environments(conn)
    names = ("device", "image", "environment", "hardware_type", "hardware_model", "labels", "duration", "priority")
    return make_response(
        render_template(
            "request_new.html",
            images=offered,
            types=sorted({each.type for each in hardware}),
            models=sorted({each.model for each in hardware}),
            environments=environments,
            given={name: _given(name) for name in names},
            arguments=request.args,
            usual_wait=timedelta(seconds=site().settings.pool.default_wait),
        )
    )


# --- One of them ---


@dataclass(frozen=True)
class Stay:
    """A request, or a device that it had, in a state."""

    state: str
    event: str
    """What led there."""
    detail: str | None
    since: datetime
    lasted: timedelta | None
    """None: it is in it."""
    device: str | None = None
    """None: it is the request's own state."""


def stays(changes: Sequence[StateChange], device: str | None = None, end: datetime | None = None) -> list[Stay]:
    """The states that something has been in, the oldest first. It left the last one at ``end``, if it did."""
    ends = [*(change.ts for change in changes[1:]), end]
    return [
        Stay(
            change.to_state, change.event, change.detail, change.ts, None if over is None else over - change.ts, device
        )
        for change, over in zip(changes, ends, strict=False)  # of no changes, the end is left
    ]


def _device_stays(changes: Iterable[StateChange], had: Sequence[PastClaim]) -> list[Stay]:
    """The states of devices while a request had them."""
    found: list[Stay] = []
    by_claim: dict[int | None, list[StateChange]] = {}
    for change in changes:
        by_claim.setdefault(change.claim_id, []).append(change)
    for claim in had:
        name = claim.device or f"device {claim.device_id}"
        found += stays(by_claim.get(claim.id, []), name, claim.released_at)
    return found


@dataclass(frozen=True)
class Step:
    """One of STEPS, of a request."""

    words: str
    kind: str
    """How far it is: done, now, failed, over, left."""
    lasted: timedelta | None
    """How long it took; None while it goes on, and when it was left out."""


def _steps(row: Request, been: Sequence[Stay]) -> list[Step]:
    names = [name for name, _ in STEPS]
    took: dict[str, timedelta] = {}
    for stay in been:
        if stay.lasted is not None:
            took[stay.state] = took.get(stay.state, timedelta()) + stay.lasted
    if row.state in names:
        at, kind = names.index(row.state), "over" if row.state == "closed" else "now"
    else:  # it failed, wherever it was
        at, kind = max((names.index(stay.state) for stay in been if stay.state in names), default=0), "failed"
    kinds = [kind if n == at else "done" if n < at and name in took else "left" for n, name in enumerate(names)]
    return [
        Step(words, kinds[n], took.get(name) if kinds[n] in ("done", "failed") else None)
        for n, (name, words) in enumerate(STEPS)
    ]


@blueprint.get("/requests/<number>")
def request_page(number: str) -> Response:
    """One request: how far it is, what it has, and what it had."""
    wanted = request_number(number)
    with site().database.read() as conn:
        row = requests.get(conn, wanted)
        device = None if row is None or row.device_id is None else devices.get(conn, row.device_id)
    if row is None:
        raise NotFound(f"there is no request {wanted}", field="request")
    waiting = mozpool().waiting(row)
    owner_state = site().presence.state_of(row.owner_id)
    is_listed = row.expires > site().clock.now()
    job = job_of(row)
    more = {"waiting": waiting, "owner_state": owner_state, "job": job}
    stamp = repr((row.version, None if device is None else device.version, is_listed, more))
    return live("request", lambda: _one(row, device) | more, stamp)


def _one(row: Request, device: Device | None) -> dict[str, Any]:
    with site().database.read() as conn:
        changes = history.latest(conn, request_history, row.id, SHOWN)
        had = claims.of_request(conn, row.id, SHOWN)
        watched = {claim.id: claim.device_id for claim in had[:WATCHED]}
        of_devices = history.of_claims(conn, watched, SHOWN) if watched else []
    own = stays(changes)
    machine = mozpool().driver.machine
    return {
        "row": row,
        "callback": host_of(row.callback_url) if row.callback_url else None,
        "device": device,
        "agent": None if device is None else _agent(device),
        "meaning": machine.meaning_of(row.state),
        "steps": _steps(row, own),
        "been": [stay.state for stay in own],
        "stays": sorted(own + _device_stays(of_devices, had), key=lambda stay: stay.since)[::-1],
        "had": [(claim, _end_of(claim)) for claim in had],
        "boot_config": _boot_config(row),
        "may_queue": timedelta(seconds=row.wait),
        "again": _again(row),
    }


def _agent(device: Device) -> str | None:
    """How to talk to a device's agent; None when its image has none."""
    if not device.image_has_agent:
        return None
    backend = device.backends.get("agent") or site().settings.bmm.agent
    if backend != "sut":
        return str(backend)
    port = (device.backends.get("options") or {}).get("sut_port", DEFAULT_PORT)
    return f"{device.address}:{port}"


def _boot_config(row: Request) -> dict[str, str]:
    """Key → value of a request's boot config."""
    try:
        found = json.loads(row.boot_config or "{}")
    except ValueError:
        return {"": row.boot_config or ""}
    return {str(key): str(value) for key, value in found.items()} if isinstance(found, dict) else {"": str(found)}


def _again(row: Request) -> dict[str, str]:
    """What fills in the form so that it asks for the same once more."""
    values = {
        **_boot_config(row),
        "device": row.requested_device if row.wants_named_device else "",
        "environment": row.environment if row.environment != "any" else "",
        "hardware_type": row.hardware_type or "",
        "hardware_model": row.hardware_model or "",
        "labels": "\n".join(f"{name}={value}" for name, value in sorted(row.labels.items())),
        "image": row.image or "",
        "priority": str(row.priority or ""),
    }
    return {name: value for name, value in values.items() if name and value}


RESULTS = {
    "complete": "it was prepared",
    "failed-bad-device": "the device failed while it was being prepared",
    "failed-bad-image": "the image could not be installed",
}
"""How the preparation of a device ended, in words."""


def _end_of(claim: PastClaim) -> str:
    """What became of a device that a request had, in words."""
    result = RESULTS.get(claim.imaging_result or "", claim.imaging_result or "")
    return "; ".join(part for part in (result, claim.reason) if part)
