# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The page of a device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any

from flask import redirect, url_for
from sqlalchemy import Connection
from werkzeug.wrappers import Response as AnyResponse

from mozpool import apikit
from mozpool.apikit import site
from mozpool.bmm.api import hardware
from mozpool.bmm.interfaces import NO_MAC
from mozpool.bmm.registry import BUILT_IN, DEFAULTS
from mozpool.db import claims, devices, history, hosted_jobs, images, relay_boards, requests
from mozpool.db.devices import Device
from mozpool.db.history import StateChange
from mozpool.db.images import Image
from mozpool.db.relay_boards import RelayBoard
from mozpool.db.requests import Request
from mozpool.db.tables import device_history
from mozpool.errors import HardwareError, MozpoolError
from mozpool.lifeguard.api import lifeguard, waits_for
from mozpool.lifeguard.devicemachine import category
from mozpool.lifeguard.states.hosted import JobRunning
from mozpool.web.pages.base import blueprint, is_mine, live, me, span, whole

ROWS = 15
"""Rows of the timeline, and of those who had the device, until somebody asks for more."""

MOST_ROWS = 1500

JOBS = 10
"""So many of a hosted device's latest jobs are shown."""

DAYS = 30
"""Days of failures that are shown."""

HOSTED = "it lives in a cloud, where it is out of our reach"
"""Why much can't be done to a hosted device."""

LENT_AND_LOCKED = "It stays lent until it is returned, but LifeGuard does nothing for its holder any more."
ENDS = "That ends here."

EXEC_ELSEWHERE = 20
"""Seconds that a command may take where this server asks another one to run it."""

EVENTS = {
    "timeout": "its time was over",
    "entered": "went on at once",
    "forced": "forced",
    "offline": "locked out",
    "online": "brought back online",
    "taken_over": "another server took over",
    "please_self_test": "a self-test was asked for",
    "please_power_cycle": "a power cycle was asked for",
    "please_image": "an image was asked for",
    "please_start_maintenance": "maintenance was asked for",
    "released": "it was returned",
    "phone_ok": "its cloud says that it is free",
    "phone_faulty": "its cloud has given it up",
    "job_ordered": "its job is on its way",
    "job_start_failed": "its job could not be started",
    "job_stopped": "no job is left on it",
    "job_running": "its job runs",
    "job_ended": "its job has ended",
    "group_incomplete": "other devices for its job did not come",
}
"""What some events are called; the others are what the device or its checks reported."""


@dataclass(frozen=True)
class Change:
    """A line of the timeline: a state that the device got into."""

    id: int
    state: str
    since: datetime
    lasted: timedelta | None
    """None: it is in this state."""
    event: str
    detail: str | None
    request_id: int | None
    assignee: str | None


@dataclass(frozen=True)
class Day:
    """A bar of the failures over time."""

    day: date
    failures: Mapping[str, int]

    @property
    def count(self) -> int:
        """How many failures there were."""
        return sum(self.failures.values())


@dataclass(frozen=True)
class Abilities:
    """What can't be done to a device, and why; None where it can."""

    power: str | None
    agent: str | None
    boot: str | None
    image: str | None
    board: RelayBoard | None
    """What its power hangs on, where that has a row."""


@dataclass(frozen=True)
class Choices:
    """What the dialogs offer."""

    images: Sequence[Image]
    images_without_config: Sequence[str]
    """Images that nothing boots on this hardware."""
    pxe_configs: Sequence[str]
    environments: Sequence[str]
    states: Mapping[str, str]
    """State → what it means."""


@blueprint.get("/devices/<name>")
def device_page(name: str) -> AnyResponse:
    """One device: all that is known of it, and all that can be done to it."""
    here = site()
    with here.database.read() as conn:
        row = apikit.device(conn, name)
        holder = None if row.claim_id is None else requests.of_device(conn, row.id)
        can = _abilities(conn, row)
        jobs = hosted_jobs.latest(conn, row.id, JOBS) if row.is_hosted else []
    if row.name != name:
        return redirect(url_for("pages.device_page", name=row.name))
    held_by = None if holder is None else (holder.id, holder.version)
    owner_state = here.presence.state_of(row.owner_id)
    stamp = repr((row.version, held_by, owner_state, can, waits_for(row), jobs))
    return live("device", lambda: _look(row, holder, can) | {"jobs": jobs}, stamp)


def _look(row: Device, holder: Request | None, can: Abilities) -> dict[str, Any]:
    here = site()
    machine = lifeguard().driver.machine
    changes, had = (whole(key, ROWS, least=ROWS, most=MOST_ROWS) for key in ("changes", "had"))
    with here.database.read() as conn:
        labels = devices.labels_of(conn, [row.id]).get(row.id, {})
        timeline = _timeline(conn, row, changes + 1)
        past = claims.of_device(conn, row.id, had + 1)
        days = _days(conn, row)
    busy = category(row.state, claimed=False) == "processing"
    own = holder is not None and is_mine(holder)
    disturbs = "" if own and not busy else _disturbs(row, holder, busy)
    return {
        "row": row,
        "category": category(row.state, row.claim_id is not None),
        "meaning": machine.meaning_of(row.state),
        "limit": None if row.state == JobRunning.name else machine.timeout_of(row.state),
        "tries": {
            step: (count, _tries(step))
            for step, count in sorted(row.state_counters.items())
            if step != JobRunning.name  # going on is no failure
        },
        "accepts": {
            event for event in _PLEASES if machine.expects(row.state, event) and not machine.stays(row.state, event)
        },
        "holder": holder,
        "is_mine": own,
        "who": _actor(None),
        "actor": _actor(holder if own else None),
        "busy": busy,
        "disturbs": disturbs,
        "warnings": {
            "power-cycle-warning": disturbs,
            "lock-out-warning": f"{disturbs} {LENT_AND_LOCKED if holder is not None else ENDS}" if disturbs else "",
        },
        "owner_state": here.presence.state_of(row.owner_id),
        "is_here": row.owner_id == here.server_id,
        "waits_for": waits_for(row),
        "can": can,
        "labels": labels,
        "label_lines": "".join(f"{name}={value}\n" for name, value in sorted(labels.items())),
        "backends": _backends(row),
        "timeline": timeline[:changes],
        "more_changes": min(changes * 4, MOST_ROWS) if len(timeline) > changes < MOST_ROWS else None,
        "past": past[:had],
        "more_had": min(had * 4, MOST_ROWS) if len(past) > had < MOST_ROWS else None,
        "changes": changes,
        "had": had,
        "days": days,
        "failures": Counter(state for day in days for state in day.failures for _ in range(day.failures[state])),
        "exec_limit": 600 if row.owner_id == here.server_id else EXEC_ELSEWHERE,
        "choose": lambda: _choices(row),
    }


_PLEASES = ("please_self_test", "please_power_cycle", "please_image", "please_start_maintenance")


def _tries(step: str) -> int | None:
    machine = lifeguard().driver.machine
    name = "pc_power_cycling" if step == "power_cycling" else step
    return machine.tries_of(name) if name in machine.states else None


def _actor(holder: Request | None) -> dict[str, Any]:
    """Who acts, as LifeGuard's calls are told; the holder's own acts are for their request."""
    return {
        **({"assignee": me()} if me() else {}),
        **({"request_id": holder.id} if holder is not None else {}),
    }


def _disturbs(row: Device, holder: Request | None, busy: bool) -> str:
    """Whom an action would disturb, in a sentence; empty when nobody."""
    if holder is not None:
        return f"{row.name} is lent to {holder.assignee} (request {holder.id}), who may be at work on it."
    return f"LifeGuard works on {row.name} now ({row.state})." if busy else ""


def _abilities(conn: Connection, row: Device) -> Abilities:
    power, board = None, None
    if row.is_hosted:
        board = relay_boards.by_lane(conn, hardware().bmm.launcher_lane(row, start=True))
        return Abilities(HOSTED, HOSTED, HOSTED, HOSTED, board)
    try:
        lane = hardware().bmm.power_lane(row)
    except HardwareError as error:
        power = error.reason
    except MozpoolError as error:
        power = error.message
    else:
        board = relay_boards.by_lane(conn, lane)
    agent = f"image {row.image} has no agent" if row.image is not None and not row.image_has_agent else None
    here = site()
    boot = None
    if row.mac_address == NO_MAC:
        boot = "its MAC address is not known"
    elif row.owner_id == here.server_id and here.settings.paths.tftp_root is None and _backends(row)["boot"] == "pxe":
        boot = "this imaging server offers no network boot"
    image = "its hardware type is not known" if row.hardware_type_id is None else None
    return Abilities(power, agent, boot, boot or image, board)


def _backends(row: Device) -> dict[str, str]:
    """Interface → backend that the device is reached by."""
    defaults = site().settings.bmm
    if row.is_hosted:
        return {name: str(row.backends[name]) for name in BUILT_IN if name in row.backends}
    return {name: str(row.backends.get(name) or getattr(defaults, name)) for name in DEFAULTS}


def _timeline(conn: Connection, row: Device, limit: int) -> list[Change]:
    """The latest states, newest first."""
    newest_first: list[StateChange] = history.latest(conn, device_history, row.id, limit)[::-1]
    holders = claims.holders(conn, {change.claim_id for change in newest_first if change.claim_id is not None})
    shown = []
    until: datetime | None = None
    for change in newest_first:
        request_id, assignee = holders.get(change.claim_id or 0, (None, None))
        shown.append(
            Change(
                id=change.id,
                state=change.to_state,
                since=change.ts,
                lasted=None if until is None else until - change.ts,
                event=change.event,
                detail=change.detail,
                request_id=request_id,
                assignee=assignee,
            )
        )
        until = change.ts
    return shown


def _days(conn: Connection, row: Device) -> list[Day]:
    """The failures of the last days, oldest first."""
    today = site().clock.now().replace(hour=0, minute=0, second=0, microsecond=0)
    first = today - timedelta(days=DAYS - 1)
    found = history.failures_by_day(conn, row.id, first)
    days = [(first + timedelta(days=number)).date() for number in range(DAYS)]
    return [Day(day, found.get(day, {})) for day in days]


def _choices(row: Device) -> Choices:
    machine = lifeguard().driver.machine
    with site().database.read() as conn:
        known = images.on_offer(images.find(conn))
        fit = [image for image in known if images.pxe_config_for(conn, row.hardware_type_id, image.id) is not None]
        return Choices(
            images=fit,
            images_without_config=[image.name for image in known if image not in fit],
            pxe_configs=images.pxe_config_names(conn, active_only=True),
            environments=devices.environments(conn),
            states={name: machine.meaning_of(name) for name in machine.states},
        )


@blueprint.app_template_filter("event_words")
def event_words(event: str) -> str:
    """What an event is called."""
    return EVENTS.get(event, event)


@blueprint.app_template_filter("took")
def took(value: timedelta | float) -> str:
    """A duration as :func:`span` writes it; one of less than a second is told from none."""
    lasted = value if isinstance(value, timedelta) else timedelta(seconds=value)
    return "<1 s" if lasted < timedelta(seconds=1) else span(lasted)


@blueprint.app_template_filter("mac")
def mac(address: str) -> str:
    """A MAC address with its colons."""
    return ":".join(address[at : at + 2] for at in range(0, len(address), 2))
