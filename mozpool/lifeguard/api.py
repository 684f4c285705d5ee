# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""LifeGuard's paths: devices, their events and states, and what their holders and operators may do to them."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from apiflask import APIBlueprint
from flask import Response, current_app
from werkzeug.exceptions import RequestEntityTooLarge

from mozpool import apikit
from mozpool.access.details import words
from mozpool.access.held import held, watched
from mozpool.access.principal import Kind, principal
from mozpool.apikit import Empty, EventInput, Input, Site, answer, endpoint, site
from mozpool.bmm.breakoff import BreakOff
from mozpool.bmm.schemas import Success
from mozpool.bmm.service import BMM
from mozpool.clock import Clock
from mozpool.db import devices, hosted_jobs, images, jobs, logs, requests, servers
from mozpool.db.devices import Device
from mozpool.db.tables import device_logs
from mozpool.errors import BadInput, Conflict, HardwareError, MozpoolError, NotFound, Unprocessable
from mozpool.lifeguard import schemas
from mozpool.lifeguard.devicemachine import category
from mozpool.lifeguard.inventory.sync import JOB
from mozpool.lifeguard.service import LifeGuard
from mozpool.lifeguard.states.base import has_power
from mozpool.seen import take_id
from mozpool.statemachine import TAKEN_OVER, TIMEOUT

blueprint = APIBlueprint("lifeguard", __name__, tag="LifeGuard", url_prefix="/api")

SERVICE = "mozpool.lifeguard"
"""The key of the :class:`LifeGuard` in the application's extensions."""

HARDWARE = "mozpool.bmm"
"""The key of the :class:`BMM`."""

STATES = "mozpool.lifeguard.states"
"""The key of the :class:`StateCache`."""

MAX_EVENT = 2 * apikit.MAX_TEXT + 1000
"""Bytes of an event: in a boot config that is itself JSON, half of all characters may be quotes that have to be escaped
in it."""

VERIFY_LIMIT = 20.0
"""Seconds that an agent may take to be verified while a call waits: pages wait no longer than 30."""

CACHED = 5
"""Seconds that a cached state may be old."""


def lifeguard() -> LifeGuard:
    """LifeGuard's service on this server."""
    found = current_app.extensions[SERVICE]
    assert isinstance(found, LifeGuard)
    return found


# --- Events and states ---


@endpoint(
    blueprint,
    "/device/<name>/event/<event>/",
    "GET",
    "POST",
    answers=schemas.DeviceEvent,
    body=EventInput,
    errors=[302, 400, 404],
)
def device_event(name: str, event: str) -> Response:
    """Hand an event to a device's state machine; one that its state does not expect is ignored.

    Boards call this by a plain GET, with the token of their boot in the header `Mozpool-Boot-Token` or as `token` in
    the query, where `[auth] device_events` wants it. Imaging servers send the "please" of a request with its
    `claim_id`.
    """
    args = apikit.json_body(MAX_EVENT)
    boot_config = args.get("boot_config", "")
    stored = boot_config if isinstance(boot_config, str) else json.dumps(boot_config)
    if len(stored.encode()) > apikit.MAX_TEXT:
        raise RequestEntityTooLarge
    event_id = take_id(args)
    if principal().kind is Kind.DEVICE:
        args = {}  # it says how far it is, and nothing else
    with site().database.read() as conn:
        key = apikit.device_key(conn, name)
    apikit.only_here(key.owner_id, key.owner)
    said = site().seen.once(("device", key.id, event), event_id, lambda: _hand_over(key.id, event, args))
    return answer(said)


def _hand_over(device_id: int, event: str, args: Mapping[str, Any]) -> dict[str, Any]:
    """Hand an event over, and answer what its sender is told."""
    if event == "released":
        lifeguard().released(device_id)
    elif event.startswith("please_") and "claim_id" in args:
        return _please_for_claim(device_id, event, args)
    elif event not in (TIMEOUT, TAKEN_OVER):
        lifeguard().event(device_id, event, args)
        if event == "mobile_init_started":
            _clear_pxe_after_boot(device_id)
    return {}


def _clear_pxe_after_boot(device_id: int) -> None:
    """The live image runs: a PXE config that was for this boot only is cleared, whatever LifeGuard thinks of it."""
    if not bmm().is_over(device_id):
        return
    site().database.run(lambda conn: devices.set_attributes(conn, device_id, pxe_config=None), repeatable=True)
    row = lifeguard().driver.load(device_id)
    if row is None:
        return
    try:
        bmm().sync_boot(row)
    except HardwareError as error:
        lifeguard().note(row, f"the PXE config for one boot could not be cleared: {error.message}")
    else:
        lifeguard().note(row, "PXE config cleared: it was for one boot")


def _please_for_claim(device_id: int, event: str, args: Mapping[str, Any]) -> dict[str, Any]:
    claim_id = args["claim_id"]
    if not isinstance(claim_id, int) or isinstance(claim_id, bool):
        raise BadInput.value("claim_id", claim_id, "the number of a claim")
    rest = {key: value for key, value in args.items() if key not in ("claim_id", "once")}
    said = lifeguard().please(device_id, event, rest, claim_id=claim_id, once=bool(args.get("once")))
    return {"accepted": said.accepted, "state": said.state, "reason": said.reason}


@endpoint(
    blueprint,
    "/device/<name>/state-change/<old>/to/<new>/",
    "POST",
    answers=Empty,
    body=schemas.WhoBody,
    errors=[302, 400, 404, 409],
)
def state_change(name: str, old: str, new: str) -> Response:
    """Force a device from one state to another; 409 when it is not in the first one."""
    body = apikit.parse(schemas.WhoBody, apikit.json_body())
    lifeguard().change_state(apikit.own_device(name).id, old, new, apikit.by(body.assignee))
    return answer({})


@endpoint(blueprint, "/device/<name>/status/", "GET", answers=schemas.DeviceStatus, errors=[404])
def device_status(name: str) -> Response:
    """State and log of a device."""
    apikit.write_log(lifeguard().driver.logbook)
    with site().database.read() as conn:
        row = apikit.device(conn, name)
        lines = logs.latest(conn, device_logs, row.id)
    return answer({"state": row.state, "log": apikit.log_lines(lines)})


@endpoint(
    blueprint,
    "/device/<name>/status/",
    "POST",
    answers=schemas.Started,
    body=schemas.StatusBody,
    example={"status": "offline", "reason": "broken screen"},
    errors=[302, 400, 404, 409],
)
def set_device_status(name: str) -> Response:
    """Take a device offline (locked out), or bring it online by a self-test, without which it stays offline.

    One that is `ready` is online already; one that somebody uses is not tested under its user (409).
    """
    body = apikit.parse(schemas.StatusBody, apikit.json_body())
    outcome = lifeguard().set_status(apikit.own_device(name).id, body.status, body.reason, apikit.by(body.assignee))
    return answer({"state": outcome.state})


@endpoint(blueprint, "/device/<name>/state/", answers=schemas.DeviceState, query=schemas.StateQuery, errors=[404])
def device_state(name: str) -> Response:
    """State of a device; with `cache`, one that may be a few seconds old."""
    if not apikit.query(schemas.StateQuery).cache:
        with site().database.read() as conn:
            return answer({"state": apikit.device_key(conn, name).state})
    cache = current_app.extensions[STATES]
    assert isinstance(cache, StateCache)
    states, age = cache.read()
    state = states.get(name)
    if state is None:
        with site().database.read() as conn:
            state = apikit.device_key(conn, name).state
    left = max(0, round(CACHED - age))
    said = answer({"state": state})
    apikit.may_be_kept(said, left)
    said.expires = site().clock.now() + timedelta(seconds=left)
    return said


class StateCache:
    """The states of all devices, read at most every few seconds however many monitors ask."""

    def __init__(self, site: apikit.Site) -> None:
        self._database = site.database
        self._clock: Clock = site.clock
        self._lock = threading.Lock()
        self._states: dict[str, str] = {}
        self._read: float | None = None

    def read(self) -> tuple[Mapping[str, str], float]:
        """Device name → state, and how many seconds old that is."""
        with self._lock:
            now = self._clock.monotonic()
            if self._read is None or now - self._read >= CACHED:
                with self._database.read() as conn:
                    self._states = devices.states(conn)
                self._read = now
            return self._states, now - self._read


# --- Details ---


@endpoint(blueprint, "/device/<name>/details/", answers=schemas.DeviceInfo, errors=[404])
def device_details(name: str) -> Response:
    """All that another program needs to reach or flash a device."""
    with site().database.read() as conn:
        row = apikit.device(conn, name)
        labels = devices.labels_of(conn, [row.id]).get(row.id, {})
        holder = None if row.claim_id is None else requests.of_device(conn, row.id)
        job = hosted_jobs.of_devices(conn, [row.id]).get(row.id) if row.is_hosted else None
    defaults = site().settings.bmm
    return answer(
        {
            "id": row.id,
            "name": row.name,
            "fqdn": row.fqdn,
            "address": row.address,
            "mac_address": row.mac_address,
            "inventory_id": row.inventory_id,
            "state": row.state,
            "device_status": row.state,
            "state_since": apikit.time_text(row.state_since),
            "category": category(row.state, row.claim_id is not None),
            "environment": row.environment,
            "comments": row.comments,
            "image": row.image,
            "boot_config": row.boot_config,
            "next_image": row.next_image,
            "next_boot_config": row.next_boot_config,
            "pxe_config": row.pxe_config,
            "last_pxe_config": row.last_pxe_config,
            "imaging_server": row.imaging_server,
            "owner": row.owner,
            "owner_state": site().presence.state_of(row.owner_id),
            "url": f"http://{row.owner}/api/device/{row.name}/",
            "hardware_type": row.hardware_type,
            "hardware_model": row.hardware_model,
            "relay_info": row.relay_info,
            "labels": labels,
            "agent": {
                "backend": row.backends.get("agent") or defaults.agent,
                "address": row.address,
                "available": row.image_has_agent,
            },
            "power": {
                "backend": row.backends.get("power") or defaults.power,
                "relay_info": row.relay_info,
                "controllable": has_power(row, defaults.power),
            },
            "backends": dict(row.backends),
            "holder": None
            if holder is None
            else {
                "request_id": holder.id,
                "assignee": holder.assignee,
                "expires": apikit.time_text(holder.expires),
                "state": holder.state,
                "url": f"http://{holder.owner}/api/request/{holder.id}/",
            },
            "request_id": row.request_id,
            "last_seen": apikit.time_text(row.last_seen),
            "waits_for": waits_for(row),
            "leaving": row.leaving,
            "job": apikit.job_info(job),
        }
    )


def waits_for(row: Device) -> str | None:
    """The failed switch that a device's operation waits for, as its lane; None where this server knows of none."""
    effects = lifeguard().driver.effects
    held = effects.held() if effects is not None else {}
    return next((lane for lane, waiting in held.items() if row.id in waiting), None)


# --- Imaging servers ---


@endpoint(blueprint, "/server/list/", answers=schemas.ServerList)
def server_list() -> Response:
    """List of the imaging servers of the pool, and which of them are there, as far as this one knows."""
    here = site()
    with here.database.read() as conn:
        found = servers.find(conn)
    return answer({"servers": [_server(server, here) for server in found]})


def _server(server: servers.Server, here: Site) -> dict[str, Any]:
    said = server.presence
    up = said is not None and here.presence.state_of(server.id) == "up"
    return {
        "fqdn": server.fqdn,
        "group": said.group if said is not None else None,
        "state": here.presence.state_of(server.id) if said is not None else "never started",
        "version": said.version if said is not None else None,
        "started": apikit.time_text(said.started) if said is not None else None,
        "uptime": max(0, round((said.seen - said.started).total_seconds())) if said is not None and up else None,
        "last_heartbeat": apikit.time_text(said.seen) if said is not None else None,
        "devices": server.devices,
        "open_requests": server.open_requests,
        "workers": said.workers if said is not None else None,
        "busy": said.busy if said is not None and up else None,
    }


# --- The inventory ---


@endpoint(blueprint, "/inventory/", answers=schemas.InventoryInfo)
def inventory_info() -> Response:
    """When the inventory was last read, how that ended, and whether it is being read now.

    A failure is only told of the daemon's own reading: mozpool-inventorysync leaves nothing behind when it fails.
    """
    here = site()
    with here.database.read() as conn:
        job = jobs.get(conn, JOB)
    settings = here.settings.inventory
    held = job is not None and job.is_held(here.clock.now())
    return answer(
        {
            "source": settings.source if settings.is_configured else None,
            "sync_interval": settings.sync_interval,
            "running": held,
            "holder": job.holder if job is not None and held else None,
            "since": apikit.time_text(job.since) if job is not None and held else None,
            "ended": apikit.time_text(job.ended) if job is not None else None,
            "ended_by": job.ended_by if job is not None else None,
            "outcome": job.outcome if job is not None else None,
            "message": job.message if job is not None else None,
        }
    )


# --- What holders and operators may do ---


@endpoint(
    blueprint,
    "/device/<name>/reboot/",
    "POST",
    answers=schemas.Started,
    body=schemas.ActorBody,
    errors=[302, 400, 404, 409],
)
def device_reboot(name: str) -> Response:
    """Cycle a device's power and prove it again; whoever has it keeps it."""
    actor = apikit.parse(schemas.ActorBody, apikit.json_body())
    return _please(apikit.own_device(name), actor, "please_power_cycle", {})


@endpoint(
    blueprint,
    "/device/<name>/flash/",
    "POST",
    answers=schemas.Started,
    body=schemas.FlashBody,
    example={"image": "b2g", "b2gbase": "http://builds/1/"},
    errors=[302, 400, 404, 409, 422],
)
def device_flash(name: str) -> Response:
    """Install an image and prove the device again; whoever has it keeps it."""
    raw = apikit.json_body()
    body = apikit.parse(schemas.FlashBody, raw)
    row = apikit.own_device(name)
    with site().database.read() as conn:
        image = images.by_name(conn, body.image)
        if image is None:
            raise NotFound(f"image: there is no image {body.image!r}", field="image")
        if row.is_hosted:
            fits = image.name == images.AS_IS and images.is_hosted_on(conn, row.hardware_type_id, image.id)
        else:
            fits = images.pxe_config_for(conn, row.hardware_type_id, image.id) is not None
    images.check_wanted(image)
    boot_config = apikit.boot_config(image.boot_config_keys, raw, image.name)
    if not fits:
        raise Unprocessable(f"image: {image.name} can't be put on the hardware of device {row.name}", field="image")
    return _please(row, body, "please_image", {"image": image.name, "boot_config": boot_config})


@endpoint(
    blueprint,
    "/device/<name>/self-test/",
    "POST",
    answers=schemas.Started,
    body=schemas.ActorBody,
    errors=[302, 400, 404, 409],
)
def device_self_test(name: str) -> Response:
    """Have a device prove itself by a self-test, which brings one that failed back; 409 when its state has no time."""
    actor = apikit.parse(schemas.ActorBody, apikit.json_body())
    return _please(apikit.own_device(name), actor, "please_self_test", {})


@endpoint(
    blueprint,
    "/device/<name>/maintenance/",
    "POST",
    answers=schemas.Started,
    body=schemas.ActorBody,
    errors=[302, 400, 404, 409],
)
def device_maintenance(name: str) -> Response:
    """Boot the live image on a device, for a person to log in; 409 when its state has no time for that."""
    actor = apikit.parse(schemas.ActorBody, apikit.json_body())
    return _please(apikit.own_device(name), actor, "please_start_maintenance", {})


def _please(row: Device, actor: schemas.ActorBody, event: str, args: Mapping[str, Any]) -> Response:
    """Ask a device for something. For its holder, the result goes to the holder's request."""
    _check_holder(row, actor)
    who = apikit.by(actor.assignee)
    claim_id = row.claim_id if actor.request_id is not None or held() is not None else None
    said = lifeguard().please(row.id, event, {**args, "by": who}, claim_id=claim_id)
    if not said.accepted:
        raise Conflict(f"device {row.name} can't do that now: {said.reason}", field="state")
    if who:
        lifeguard().note(row, f"{event} by {who}")
    return answer({"state": said.state})


def _check_holder(row: Device, actor: schemas.ActorBody) -> None:
    if (mine := held()) is not None:
        mine.check(row.claim_id, row.name)
    if actor.request_id is not None and actor.request_id != row.request_id:
        raise Conflict(f"request {actor.request_id} does not have device {row.name}", field="request_id")


@endpoint(
    blueprint,
    "/device/<name>/agent/exec/",
    "POST",
    answers=schemas.ExecAnswer,
    body=schemas.ExecBody,
    example={"command": ["ls", "/mnt/sdcard"], "timeout": 10},
    errors=[302, 400, 404, 409, 502],
)
def agent_exec(name: str) -> Response:
    """Run a command on a device by its agent, and wait for what it gives."""
    body = apikit.parse(schemas.ExecBody, apikit.json_body())
    row = apikit.own_device(name)
    _check_holder(row, body)
    with _waiting(body.timeout) as seconds, _while_held(row) as end:
        who = apikit.by(body.assignee) or "an operator"
        lifeguard().note(row, f"command by {who}: {' '.join(words(body.command))}"[:1000])
        result = bmm().agent_run(row, body.command, seconds, end)
    return answer({"output": result.output, "return_code": result.return_code})


@endpoint(
    blueprint,
    "/device/<name>/agent/verify/",
    "POST",
    answers=Success,
    body=Input,
    errors=[302, 400, 404],
)
def agent_verify(name: str) -> Response:
    """Ask a device's agent once whether it works, for at most 20 seconds."""
    apikit.json_body()
    row = apikit.own_device(name)
    with _waiting(VERIFY_LIMIT) as seconds, _while_held(row) as end:
        try:
            bmm().verify_agent(row, seconds, end)
        except HardwareError as error:
            return answer({"success": False, "reason": error.reason})
    return answer({"success": True})


@contextmanager
def _while_held(row: Device) -> Iterator[BreakOff | None]:
    """What breaks off an operation that a user does by their claim, as soon as that is over; None for operators.

    Raises Forbidden then.
    """
    mine = held()
    if mine is None:
        yield None
        return
    mine.check(row.claim_id, row.name)
    end, here = BreakOff(), site()
    try:
        with watched(mine, here.database, here.clock, end):
            yield end
    except HardwareError:
        if end.called:
            raise mine.lost(row.name) from None
        raise
    if end.called:
        raise mine.lost(row.name)


@contextmanager
def _waiting(wanted: float) -> Iterator[float]:
    """The seconds that a call may wait for hardware. Raises TooBusy."""
    with site().long_polls.slot(wanted, acts=True) as seconds:
        if not seconds:
            raise TooBusy("too many calls wait for commands or changes; try again")
        yield seconds


def bmm() -> BMM:
    """The hardware, as LifeGuard uses it."""
    found = current_app.extensions[HARDWARE]
    assert isinstance(found, BMM)
    return found


class TooBusy(MozpoolError):
    """Too many calls wait already; the same call may work later (503, with Retry-After)."""

    status = 503
    code = "too_busy"
