# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""MozPool's paths: requests, and what can be asked for."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from math import ceil
from typing import Any

from apiflask import APIBlueprint
from flask import Response, current_app, request
from sqlalchemy import Connection

from mozpool import __version__, apikit
from mozpool.access.held import held
from mozpool.access.notes import note
from mozpool.access.principal import Role, principal
from mozpool.apikit import MAX_POLL, Empty, EventInput, Input, Log, LogQuery, answer, done, endpoint, site
from mozpool.db import claims, devices, hosted_jobs, images, logs, requests, samples
from mozpool.db.devices import Rule
from mozpool.db.hosted_jobs import Job
from mozpool.db.requests import Request
from mozpool.db.tables import request_logs
from mozpool.errors import BadInput, Conflict, NotFound
from mozpool.notify.outbox import host_of
from mozpool.pool import schemas
from mozpool.pool.allocation import Waiting
from mozpool.pool.criteria import ANY, Criteria
from mozpool.pool.devicelist import DeviceListCache, device_items
from mozpool.pool.repeats import Repeats
from mozpool.pool.service import MozPool, NewRequest
from mozpool.seen import take_id
from mozpool.statemachine import TAKEN_OVER, TIMEOUT

blueprint = APIBlueprint("mozpool", __name__, tag="MozPool", url_prefix="/api")

SERVICE = "mozpool.pool"
"""The key of the :class:`MozPool` in the application's extensions."""

REPEATS = "mozpool.repeats"
"""The key of the :class:`Repeats`."""

LIST = "mozpool.devicelist"
"""The key of the :class:`DeviceListCache`."""

CATEGORIES = "mozpool.categories"
"""The key of the rules by which devices have categories: LifeGuard knows them."""

OWN_EVENTS = frozenset(
    {TIMEOUT, TAKEN_OVER, "device_found", "device_left", "do_not_wait", "expire", "lifeguard_contacted", "revoke"}
)
"""Events that carry what only this server's own matching and timers know, or that have a path of their own: from
outside they are ignored."""

CLAIMED = "claimed"
"""What another imaging server says when it has found a device for a request of this one; no event of the machine."""

IDEMPOTENCY_KEY = 128
"""The longest Idempotency-Key."""

FRESH = 2.0
"""Seconds after which the lines of a change have long been written."""


def mozpool() -> MozPool:
    """MozPool's service on this server."""
    found = current_app.extensions[SERVICE]
    assert isinstance(found, MozPool)
    return found


def request_number(text: str) -> int:
    """A request's id from a path. Raises BadInput, NotFound for numbers that no request can have."""
    if not re.fullmatch(r"[+-]?\d+", text, re.ASCII):
        raise BadInput.value("id", text, "the number of a request")
    if len(text) > 18 or int(text) < 1:
        raise NotFound(f"there is no request {text[:64]}", field="request")
    return int(text)


def own_request(text: str) -> int:
    """The id of a request that this server may act on. Raises BadInput, NotFound, Elsewhere."""
    number = request_number(text)
    with site().database.read() as conn:
        owner = requests.owner(conn, number)
    if owner is None:
        raise NotFound(f"there is no request {number}", field="request")
    apikit.only_here(*owner)
    return number


# --- Answers ---


def request_info(row: Request, waiting: Waiting | None, job: Job | None) -> dict[str, Any]:
    """A request as the API shows it; ``job`` is what it has, or had, a hosted device for."""
    return {
        "id": row.id,
        "requested_device": row.requested_device,
        "assignee": row.assignee,
        "expires": apikit.time_text(row.expires),
        "environment": row.environment,
        "image": row.image,
        "boot_config": row.boot_config or "{}",
        "assigned_device": row.device or "",
        "url": f"http://{row.owner}/api/request/{row.id}/",
        "state": row.state,
        "status": row.state,
        "imaging_server": row.owner,
        "device_id": row.device_id,
        "device_state": row.device_state or "",
        "created": apikit.time_text(row.created),
        "priority": row.priority,
        "wait": row.wait,
        "labels": dict(row.labels),
        "hardware_type": row.hardware_type,
        "hardware_model": row.hardware_model,
        "callback_url": host_of(row.callback_url) if row.callback_url else None,
        "made_by": row.made_by,
        "reason": waiting.reason if waiting else row.reason,
        "place": waiting.place if waiting else None,
        "job": apikit.job_info(job),
    }


def job_of(row: Request) -> Job | None:
    """The job that a request has, or had, a hosted device for."""
    if row.image != images.JOB:
        return None
    with site().database.read() as conn:
        return hosted_jobs.of_requests(conn, [row.id]).get(row.id)


# --- What there is ---


@endpoint(blueprint, "/version/", answers=schemas.Version)
def version() -> Response:
    """Version of the server."""
    return answer({"version": __version__})


@endpoint(
    blueprint,
    "/device/list/",
    answers=schemas.DeviceList,
    query=schemas.DeviceListQuery,
    headers={"If-None-Match": "The `ETag` of an answer before: 304 as long as the list is the same."},
    errors=[304, 400],
)
def device_list() -> Response:
    """List of devices.

    That of all devices with `details` has an `ETag`, by which a program that asks again learns at little cost that
    nothing has changed. That an idle device was looked at again, and is well, is no change.
    """
    query = apikit.query(schemas.DeviceListQuery)
    filtered = bool(request.args.keys() - {"details", "cache"})
    if query.details and not filtered:
        return _whole_list(cached=query.cache)
    with site().database.read() as conn:
        if not filtered:
            return answer({"devices": devices.names(conn)})
        wanted = devices.Filter(
            state=query.state,
            environment=query.environment,
            hardware_type=query.hardware_type,
            hardware_model=query.hardware_model,
            image=query.image,
            imaging_server=query.imaging_server,
            labels=_labels(query.label),
            claimed=query.claimed,
            kind=_kind(query.category),
            holder=query.holder,
            search=query.search,
            names=query.name,
        )
        more = None if query.limit is None else query.limit + 1
        rows = devices.find(conn, wanted, after=query.cursor, limit=more)
        shown: Sequence[Any] = device_items(conn, rows) if query.details else [row.name for row in rows]
    return answer(apikit.page("devices", rows, query.limit, shown))


def _whole_list(*, cached: bool) -> Response:
    lists = current_app.extensions[LIST]
    assert isinstance(lists, DeviceListCache)
    found = lists.get(cached=cached)
    if request.if_none_match.contains_weak(found.etag):
        said = Response(status=304)
    else:
        said = Response(found.body(), mimetype="application/json")
    said.set_etag(found.etag)
    said.cache_control.no_cache = True
    said.cache_control.private = True
    return said


def _kind(category: str | None) -> tuple[Sequence[Rule], str] | None:
    if category is None:
        return None
    rules: Sequence[Rule] = current_app.extensions[CATEGORIES]
    known = sorted({rule.name for rule in rules})
    if category not in known:
        raise BadInput.value("category", category, f"one of {', '.join(known)}")
    return rules, category


def _labels(texts: list[str]) -> dict[str, str]:
    labels: dict[str, str] = {}
    for text in texts:
        name, value = apikit.label(text)
        if labels.setdefault(name, value) != value:
            raise BadInput(f"label: {name} can't be both {labels[name]!r} and {value!r}", field="label")
    return labels


@endpoint(blueprint, "/image/list/", answers=schemas.ImageList, query=schemas.ImageListQuery)
def image_list() -> Response:
    """List of images that can be asked for."""
    query = apikit.query(schemas.ImageListQuery)
    with site().database.read() as conn:
        found = images.find(conn)
    shown = [
        {
            "id": image.id,
            "name": image.name,
            "boot_config_keys": list(image.boot_config_keys),
            "can_reuse": image.can_reuse,
            "hidden": image.hidden,
            "has_sut_agent": image.has_sut_agent,
        }
        for image in found
        if query.all or not image.hidden
    ]
    return answer({"images": shown})


@endpoint(blueprint, "/pool/history/", answers=schemas.PoolHistory, query=schemas.HistoryQuery, errors=[400])
def pool_history() -> Response:
    """How the pool was doing lately, from what was noted once a minute; no more than a minute old."""
    minutes = ceil(apikit.query(schemas.HistoryQuery).hours * 60)
    here = site()
    with here.database.read() as conn:
        step, found = samples.history(conn, here.clock.now(), minutes)
    shown = []
    for one in found:
        values = asdict(one)
        shown.append({"time": apikit.time_text(values.pop("begin")), **values})
    said = answer({"step": 60 * step, "samples": shown})
    apikit.may_be_kept(said, 60)
    return said


# --- Making requests ---


@endpoint(
    blueprint,
    "/device/<name>/request/",
    "POST",
    answers=schemas.RequestAnswer,
    query=schemas.WaitQuery,
    body=schemas.RequestBody,
    example={"assignee": "me@example.com", "duration": 1800, "image": "b2g", "b2gbase": "http://builds/1/"},
    headers={"Idempotency-Key": "A repeated call with the same key and body gives the same request."},
    errors=[400, 404, 409, 422],
)
def request_device(name: str) -> Response:
    """Ask for a device by name, or for `any`.

    The answer comes at once unless `wait` is given in the query: then as soon as a device is claimed, not when it is
    ready (for that, ask `/api/request/ID/status/?wait=S`). A named device that is taken, when the request may not
    queue, is 409 with the same body: the request is closed then and holds nothing.
    """
    query = apikit.query(schemas.WaitQuery)
    raw = apikit.json_body()
    who = principal()
    if who.name is not None and "requester" not in raw:
        raw.setdefault("assignee", who.name)
    new = _new_request(name, raw, apikit.parse(schemas.RequestBody, raw))
    repeats, service = _repeats(), mozpool()
    call, earlier = None, None
    if new.idempotency_key is None:
        call, earlier = repeats.begin(_call_key(), _client_gone())
    try:
        made = None if earlier is None else _if_open(service, earlier)
        if made is None:
            made = service.create(new)
        if call is not None:
            repeats.made(call, made.id)
        note(f"request {made.id}", device=name)
        if query.wait and made.claim_id is None and made.is_open:
            with site().long_polls.slot(min(query.wait, MAX_POLL)) as seconds:
                made = service.wait_for_device(made.id, seconds)
        if made.device is not None:
            note(device=made.device)
        said: dict[str, Any] = {"request": request_info(made, service.waiting(made), job_of(made))}
        if not _was_refused(made):
            return answer(said)
        reason = made.reason or f"device {made.requested_device} is taken"
        return answer({**said, "error": {"code": "conflict", "message": reason, "field": "device"}}, 409)
    finally:
        if call is not None:
            repeats.end(call)


def _new_request(name: str, raw: Mapping[str, Any], body: schemas.RequestBody) -> NewRequest:
    key = request.headers.get("Idempotency-Key")
    if key is not None and not 1 <= len(key) <= IDEMPOTENCY_KEY:
        raise BadInput.value("Idempotency-Key", key, f"1 to {IDEMPOTENCY_KEY} characters long")
    new = NewRequest(
        device=name,
        assignee=body.assignee,
        duration=body.duration,
        image=body.image,
        environment=body.environment,
        boot_config=raw,
        wait=body.wait,
        priority=body.priority,
        hardware_type=body.hardware_type,
        hardware_model=body.hardware_model,
        labels=body.labels,
        callback_url=body.callback_url,
        idempotency_key=key,
        made_by=principal().name,
        team=principal().team,
    )
    if name == ANY or not name.isdigit():
        return new
    return replace(new, device=apikit.read_device(name).name)


def _was_refused(row: Request) -> bool:
    """Whether a named device was taken and the request was not to queue."""
    if row.state != "closed" or row.wait or not row.wants_named_device:
        return False
    with site().database.read() as conn:
        return not claims.of_request(conn, row.id, limit=1)


def _repeats() -> Repeats:
    found = current_app.extensions[REPEATS]
    assert isinstance(found, Repeats)
    return found


def _client_gone() -> Callable[[], bool]:
    """Tells whether the current call's client has hung up, where the HTTP server knows."""
    found: Callable[[], bool] | None = request.environ.get("waitress.client_disconnected")
    return found or (lambda: False)


def _call_key() -> str:
    parts = (
        principal().name,
        request.remote_addr,
        request.headers.get("X-Forwarded-For"),
        request.path.rstrip("/"),
        request.query_string.decode("ascii", "replace"),
        hashlib.sha1(request.get_data(), usedforsecurity=False).hexdigest(),
    )
    return json.dumps(parts)


def _if_open(service: MozPool, request_id: int) -> Request | None:
    row = service.get(request_id)
    return row if row.is_open else None


# --- Reading requests ---


@endpoint(blueprint, "/request/match/", answers=schemas.MatchAnswer, query=schemas.MatchQuery, errors=[400, 404])
def request_match() -> Response:
    """How many devices a request could get if it were made now, and why it would have to wait."""
    query = apikit.query(schemas.MatchQuery)
    team = principal().team
    wanted = Criteria(
        device=query.device,
        environment=query.environment,
        hardware_type=query.hardware_type,
        hardware_model=query.hardware_model,
        labels=_labels(query.label),
        environments=None if team is None else team.environments,
    )
    found = mozpool().preview(wanted, query.image)
    return answer({"matching": found.matching, "free": found.free, "reason": found.reason})


@endpoint(blueprint, "/request/list/", answers=schemas.RequestList, query=schemas.RequestListQuery, errors=[400])
def request_list() -> Response:
    """List of requests; those that failed stay until they are returned or expire."""
    query = apikit.query(schemas.RequestListQuery)
    wanted = requests.Filter(
        include_closed=query.include_closed,
        assignee=query.assignee,
        state=query.state,
        device=query.device,
        environment=query.environment,
        job=query.job,
        made_by=query.made_by,
    )
    more = None if query.limit is None else query.limit + 1
    with site().database.read() as conn:
        rows = requests.find(conn, wanted, site().clock.now(), after=query.cursor, limit=more)
        had = claims.last_devices(conn, [row.id for row in rows if not row.is_open])
        ran = hosted_jobs.of_requests(conn, [row.id for row in rows if row.image == images.JOB])
    reasons = mozpool().reasons(rows)
    shown = []
    for row in rows:
        info = request_info(row, None, ran.get(row.id))
        info["reason"] = reasons.get(row.id, row.reason)
        info["last_device"] = row.device or had.get(row.id)
        shown.append(info)
    return answer(apikit.page("requests", rows, query.limit, shown))


@endpoint(blueprint, "/request/<number>/details/", answers=schemas.RequestDetails, errors=[400, 404])
def request_details(number: str) -> Response:
    """All about a request."""
    service = mozpool()
    row = service.get(request_number(number))
    info = request_info(row, service.waiting(row), job_of(row))
    return answer({**info, "request": info})


@endpoint(
    blueprint,
    "/request/<number>/status/",
    answers=schemas.RequestStatus,
    query=schemas.StatusQuery,
    errors=[400, 404],
)
def request_status(number: str) -> Response:
    """State and log of a request; with `wait`, as soon as the state changes."""
    query = apikit.query(schemas.StatusQuery)
    service = mozpool()
    request_id = request_number(number)
    with site().long_polls.slot(min(query.wait or 0, MAX_POLL)) as seconds:
        row = service.wait_for_change(request_id, query.state, seconds)
    info = request_info(row, service.waiting(row), None)
    if _is_fresh(row):
        apikit.write_log(service.driver.logbook)
    with site().database.read() as conn:
        lines = logs.latest(conn, request_logs, row.id)
        # What the service has of the request may be older than the state of its device.
        claim = None if row.claim_id is None else claims.since(conn, row.claim_id)
    return answer(
        {
            **{key: info[key] for key in _IN_STATUS},
            "device_state": claim[1] if claim else "",
            "claimed_at": apikit.time_text(claim[0] if claim else None),
            "log": apikit.log_lines(lines),
        }
    )


_ELSEWHERE = ("log", "device_state", "claimed_at")
_IN_STATUS = tuple(key for key in schemas.RequestStatus.model_fields if key not in _ELSEWHERE)


def _is_fresh(row: Request) -> bool:
    """Whether a request has just got where its callers wait for it: its last lines may not be written yet.

    Who waits longer asks again, so answers on the way there are not worth a transaction.
    """
    if row.is_open and row.state != "ready":
        return False
    since = row.state_since
    return since is None or (site().clock.now() - since).total_seconds() < FRESH


@endpoint(blueprint, "/request/<number>/log/", answers=Log, query=LogQuery, errors=[400, 404])
def request_log(number: str) -> Response:
    """Log of a request."""
    query = apikit.query(LogQuery)
    service = mozpool()
    row = service.get(request_number(number))
    apikit.write_log(service.driver.logbook)
    with site().database.read() as conn:
        lines = read_log(conn, row.id, query)
    return answer({"log": apikit.log_lines(lines)})


def read_log(conn: Connection, request_id: int, query: LogQuery) -> list[logs.LogLine]:
    """The lines that a query asks for."""
    return logs.latest(conn, request_logs, request_id, **apikit.which_lines(query, site().clock.now()))


# --- Changing requests ---


@endpoint(
    blueprint,
    "/request/<number>/renew/",
    "POST",
    answers=None,
    body=schemas.RenewBody,
    example={"duration": 3600},
    errors=[302, 400, 404, 422],
)
def request_renew(number: str) -> Response:
    """Let a request expire in so many seconds from now.

    403 where that is longer, counted from when it was made, than the request's team may have a device.
    """
    body = apikit.parse(schemas.RenewBody, apikit.json_body())
    by_holder = principal().role < Role.OPERATOR
    mozpool().renew(own_request(number), body.duration, by_holder=by_holder)
    return done()


@endpoint(blueprint, "/request/<number>/return/", "POST", answers=None, body=Input, errors=[302, 400, 404])
def request_return(number: str) -> Response:
    """Give a device back, or stop to wait for one; nothing changes when the request has ended."""
    apikit.json_body()
    mozpool().give_back(own_request(number))
    return done()


@endpoint(
    blueprint,
    "/request/<number>/revoke/",
    "POST",
    answers=None,
    body=schemas.RevokeBody,
    example={"reason": "the board has to be repaired"},
    errors=[302, 400, 404],
)
def request_revoke(number: str) -> Response:
    """Take a request from its holder, whose calls for the device are refused from now on.

    The device is looked at at once, and proven before anybody else gets it. Nothing changes when it has ended.
    """
    body = apikit.parse(schemas.RevokeBody, apikit.json_body())
    who = principal().name
    reason = requests.REVOKED + (f" by {who}" if who else "") + (f": {body.reason}" if body.reason else "")
    mozpool().revoke(own_request(number), reason)
    return done()


@endpoint(
    blueprint,
    "/request/<number>/event/<event>/",
    "GET",
    "POST",
    answers=Empty,
    body=EventInput,
    errors=[302, 400, 404],
)
def request_event(number: str, event: str) -> Response:
    """Hand an event to a request's state machine; one that its state does not expect is ignored."""
    args = apikit.json_body(apikit.MAX_TEXT)
    event_id = take_id(args)
    request_id = own_request(number)
    site().seen.once(("request", request_id, event), event_id, lambda: _hand_over(request_id, event, args))
    return answer({})


def _hand_over(request_id: int, event: str, args: Mapping[str, Any]) -> None:
    if event == CLAIMED:
        mozpool().claimed(request_id)
    elif event not in OWN_EVENTS:
        mozpool().event(request_id, event, args)


@endpoint(
    blueprint,
    "/device/<name>/return/",
    "POST",
    answers=None,
    body=schemas.DeviceReturnBody,
    errors=[302, 400, 404, 409],
)
def device_return(name: str) -> Response:
    """Give a device back by its own name: closes the request that has it; nothing changes when nobody has it."""
    body = apikit.parse(schemas.DeviceReturnBody, apikit.json_body())
    with site().database.read() as conn:
        device = apikit.device(conn, name)
        holder = requests.of_device(conn, device.id)
    if body.request_id is not None and (holder is None or holder.id != body.request_id):
        raise Conflict(f"request {body.request_id} does not have device {device.name}", field="request_id")
    if holder is not None:
        if (mine := held()) is not None:
            mine.check(holder.claim_id, device.name)
        apikit.only_here(holder.owner_id, holder.owner)
        mozpool().give_back(holder.id)
    return done()
