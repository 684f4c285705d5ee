# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""BMM's paths: the hardware itself, for people and other programs that know what they do."""

from __future__ import annotations

import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from apiflask import APIBlueprint
from flask import Response, current_app
from sqlalchemy import Connection

from mozpool import apikit
from mozpool.access.held import held
from mozpool.apikit import Elsewhere, Empty, Input, Log, LogQuery, answer, endpoint, site
from mozpool.bmm import schemas
from mozpool.bmm.service import BMM
from mozpool.db import devices, images, logs, relay_boards
from mozpool.db.devices import Device, DeviceName
from mozpool.db.images import HardwareType
from mozpool.db.relay_boards import RelayBoard
from mozpool.db.tables import device_logs
from mozpool.effects import Effects
from mozpool.errors import (
    BadInput,
    Conflict,
    DatabaseAway,
    Forbidden,
    HardwareError,
    MozpoolError,
    NotFound,
    NotOurs,
    Unprocessable,
)
from mozpool.lanes import Lanes
from mozpool.logbook import Logbook

blueprint = APIBlueprint("bmm", __name__, tag="BMM", url_prefix="/api")

HARDWARE = "mozpool.bmm.hardware"
"""The key of the :class:`Hardware` in the application's extensions."""


FRESH = 1.0
"""Seconds for which all who ask for the switches are shown the same."""


MANY = 500
"""When more devices than so many have changed, all are read."""


@dataclass(frozen=True)
class Switch:
    """A relay board or another power switch, and what hangs on it."""

    board: RelayBoard
    devices: int
    """How many devices hang on it."""
    waiting: int
    """How many of them wait for it to work again, as far as this server knows."""
    names: Sequence[str] = ()
    """Their names."""


class Hardware:
    """BMM's operations as calls use them: those that take long run on workers, and the device's log tells the end."""

    def __init__(self, bmm: BMM, workers: Lanes, logbook: Logbook, effects: Effects[Device]) -> None:
        """``effects`` knows the lanes that are held."""
        self.bmm = bmm
        self._workers = workers
        self._logbook = logbook
        self._effects = effects
        self._lock = threading.Lock()
        self._switches: list[Switch] = []
        self._looked: float | None = None
        self._stamp: str | None = None
        self._kinds: list[HardwareType] = []
        self._placed: dict[int, tuple[int, str, str | None]] = {}

    def switches(self, stamp: str | None = None) -> list[Switch]:
        """All power switches that have a row, sorted by name. Raises DatabaseAway.

        They are looked up at most every second, or where ``stamp`` tells whether anything has changed, when it has.
        """
        with self._lock:
            now = site().clock.monotonic()
            old = self._looked is None or now - self._looked >= FRESH if stamp is None else stamp != self._stamp
            if old:
                self._switches = self._look()
                self._looked, self._stamp = now, stamp
            return self._switches

    def _look(self) -> list[Switch]:
        with site().database.read() as conn:
            boards = relay_boards.find(conn)
            placed = self._place(conn)
        on_lane: defaultdict[str, list[str]] = defaultdict(list)
        for _version, name, lane in placed.values():
            if lane is not None:
                on_lane[lane].append(name)
        waiting = self.waiting()
        return [
            Switch(board, len(on_lane[board.lane]), waiting.get(board.lane, 0), on_lane[board.lane]) for board in boards
        ]

    def _place(self, conn: Connection) -> dict[int, tuple[int, str, str | None]]:
        """Device id → version, name and lane of its power (None: nobody can switch it).

        Of thousands of devices only those are read that have changed since the last time.
        """
        kinds = images.known_hardware(conn)
        if kinds != self._kinds:
            self._kinds, self._placed = kinds, {}
        now = devices.versions(conn)
        before = self._placed
        changed = [number for number, version in now.items() if number not in before or before[number][0] != version]
        found = devices.find(conn) if len(changed) > MANY else devices.with_ids(conn, changed)
        new = {row.id: (row.version, row.name, self._lane(row)) for row in found}
        self._placed = {
            number: new.get(number) or before[number] for number in now if number in new or number in before
        }
        return self._placed

    def _lane(self, device: Device) -> str | None:
        try:
            return self.bmm.power_lane(device)
        except MozpoolError:
            return None

    def waiting(self) -> dict[str, int]:
        """Lane → how many devices wait for it to work again, as far as this server knows."""
        return {lane: len(held) for lane, held in self._effects.held().items()}

    def retry(self, board: RelayBoard) -> None:
        """Have a switch tried at once; its row tells what came of it. Returns before it was."""
        if board.lane in self._effects.held():
            self._effects.retry_now([board.lane])
            return
        here = site()

        def look() -> None:
            state, reason = "ok", None
            try:
                self.bmm.test_power(board.lane)
            except MozpoolError as error:
                state = "suspect" if board.state == "ok" else board.state
                reason = _reason(error)
            now = here.clock.now()
            here.database.run(
                lambda conn: relay_boards.set_state_by_lane(conn, board.lane, state, reason, now, here.server_id),
                repeatable=True,
            )

        self._workers.submit(board.lane, look, f"test of {board.name}")

    def start(self, device: Device, lane: str, what: str, work: Callable[[], None]) -> None:
        """Have ``work`` done in its turn; ``what`` is its name in the log."""

        def run() -> None:
            try:
                with self.bmm.occupied(device.id, device.name, what):
                    work()
            except (HardwareError, DatabaseAway, NotOurs, Forbidden) as error:
                self.note(device, f"{what} failed: {error.message}", logging.WARNING)
            else:
                self.note(device, f"{what} done")

        self.note(device, f"{what} asked for")
        self._workers.submit(lane, run, f"{what} of {device.name}")

    def power_lane(self, device: Device) -> str:
        """The lane of a device's power. Raises Unprocessable when nobody can switch it."""
        try:
            return self.bmm.power_lane(device)
        except HardwareError as error:
            raise Unprocessable(error.message) from error

    def note(self, device: Device | DeviceName, message: str, level: int = logging.INFO) -> None:
        """Write a line into a device's log."""
        self._logbook.add("device", device.id, device.name, "bmm", message, level=level)

    def write_log(self) -> None:
        """Have the lines of the last moments in the database. Raises DatabaseAway."""
        apikit.write_log(self._logbook)


def hardware() -> Hardware:
    """The hardware of this server."""
    found = current_app.extensions[HARDWARE]
    assert isinstance(found, Hardware)
    return found


# --- Power and boot ---


@endpoint(
    blueprint,
    "/device/<name>/power-cycle/",
    "POST",
    answers=Empty,
    body=schemas.PowerCycleBody,
    example={"pxe_config": "b2g", "boot_config": "{}"},
    errors=[302, 400, 404, 422],
)
def power_cycle(name: str) -> Response:
    """Cycle a device's power behind LifeGuard's back; answers at once, the device's log tells the end."""
    body = apikit.parse(schemas.PowerCycleBody, apikit.json_body())
    device = apikit.own_device(name)
    lane = hardware().power_lane(device)
    values: dict[str, str | None] = {"pxe_config": body.pxe_config}
    if body.pxe_config is not None:
        with site().database.read() as conn:
            if images.pxe_config(conn, body.pxe_config) is None:
                raise NotFound(f"pxe_config: there is no PXE config {body.pxe_config!r}", field="pxe_config")
        values["last_pxe_config"] = body.pxe_config
    if body.boot_config is not None:
        if len(body.boot_config.encode()) > apikit.MAX_TEXT:
            raise BadInput(f"boot_config: is longer than {apikit.MAX_TEXT} bytes", field="boot_config")
        values["next_boot_config"] = body.boot_config
    _write(device, **values)
    bmm, again = hardware().bmm, _reader(device)
    bmm.boot_once(device.id, body.once and body.pxe_config is not None)

    def work() -> None:
        row = again()
        bmm.sync_boot(row, boots=True)
        bmm.power_cycle(row)

    config = f" with PXE config {body.pxe_config}" if body.pxe_config else ""
    hardware().start(device, lane, f"power cycle{config}", work)
    return answer({})


@endpoint(blueprint, "/device/<name>/power-off/", "GET", "POST", answers=Empty, body=Input, errors=[302, 400, 404, 422])
def power_off(name: str) -> Response:
    """Cut a device's power behind LifeGuard's back; answers at once."""
    device = apikit.own_device(name)
    lane = hardware().power_lane(device)
    bmm, again = hardware().bmm, _reader(device)
    hardware().start(device, lane, "power off", lambda: bmm.power_off(again()))
    return answer({})


@endpoint(blueprint, "/device/<name>/clear-pxe/", "POST", answers=Empty, body=Input, errors=[302, 400, 404, 502])
def clear_pxe(name: str) -> Response:
    """Let a device boot from its own storage from now on."""
    apikit.json_body()
    device = apikit.own_device(name)
    _write(device, pxe_config=None)
    hardware().bmm.sync_boot(apikit.read_device(device.name))
    hardware().note(device, "PXE config cleared")
    return answer({})


def _write(device: Device, **values: str | None) -> None:
    """Write columns of a device. Raises Forbidden when the caller was its holder and is so no more."""
    mine = held()
    claim = None if mine is None else mine.claim_id
    there = site().database.run(
        lambda conn: devices.set_attributes(conn, device.id, held_by=claim, **values), repeatable=True
    )
    if mine is not None and not there:
        raise mine.lost(device.name)


def _reader(device: Device) -> Callable[[], Device]:
    """Reads the device again, from a worker: it, its owner or its holder may have changed while the work waited.

    What it returns raises NotOurs when this server does not act on the device any more, Forbidden when the work was
    asked for by its holder, who has lost it.
    """
    here, mine = site(), held()

    def read() -> Device:
        here.lease.look()
        with here.database.read() as conn:
            found = devices.get(conn, device.id) or device
            if mine is not None and not (found.claim_id == mine.claim_id and mine.is_on(conn, here.clock.now())):
                raise mine.lost(device.name)
        if found.owner_id != here.server_id:
            raise NotOurs(found.name, found.owner)
        return found

    return read


# --- Asking the hardware ---


@endpoint(blueprint, "/device/<name>/ping/", answers=schemas.Success, errors=[302, 404])
def ping(name: str) -> Response:
    """Ping a device now."""
    device = apikit.own_device(name)
    try:
        return answer({"success": hardware().bmm.ping(device)})
    except HardwareError as error:
        return answer({"success": False, "reason": error.message})


@endpoint(blueprint, "/relay/list/", answers=schemas.RelayList)
def relay_list() -> Response:
    """List of relay boards and other power switches, and which of them work; it may be a second old."""
    shown = [
        {
            "id": switch.board.id,
            "name": switch.board.name,
            "fqdn": switch.board.fqdn,
            "imaging_server": switch.board.imaging_server,
            "state": switch.board.state,
            "backend": switch.board.backend,
            "since": apikit.time_text(switch.board.since),
            "reason": switch.board.reason,
            "devices": switch.devices,
            "waiting": switch.waiting,
        }
        for switch in hardware().switches()
    ]
    return answer({"relays": shown})


def _reason(error: MozpoolError) -> str:
    """What went wrong with a switch, whose name the reader knows."""
    return error.reason if isinstance(error, HardwareError) else error.message


def _own_relay_board(name: str) -> RelayBoard:
    """The switch, which this server may act on. Raises NotFound, Elsewhere."""
    here = site()
    with here.database.read() as conn:
        board = relay_boards.by_name(conn, name)
        if board is None:
            raise NotFound(f"there is no relay board {name[:64]}", field="relay")
        server_id = images.imaging_server_id(conn, board.imaging_server)
    # Servers of a group reach the same boards.
    lost = server_id is not None and here.presence.in_group(server_id) and here.presence.state_of(server_id) != "up"
    if board.imaging_server != here.settings.server.fqdn and not lost:
        raise Elsewhere(board.imaging_server)
    return board


@endpoint(blueprint, "/relay/<name>/test/", answers=schemas.Success, errors=[302, 404])
def relay_test(name: str) -> Response:
    """Two-way talk with a relay board or another power switch, for at most ten seconds."""
    board = _own_relay_board(name)
    try:
        hardware().bmm.test_power(board.lane)
    except DatabaseAway:
        raise
    except MozpoolError as error:
        return answer({"success": False, "reason": _reason(error)})
    return answer({"success": True})


@endpoint(blueprint, "/relay/<name>/retry/", "POST", answers=Empty, body=Input, errors=[302, 400, 404])
def relay_retry(name: str) -> Response:
    """Try a relay board or another power switch now that somebody has mended it; answers at once.

    If it works, its devices go on, and it is `ok`. It is tried by itself too, only later.
    """
    apikit.json_body()
    hardware().retry(_own_relay_board(name))
    return answer({})


# --- What is known of a device ---


@endpoint(blueprint, "/device/<name>/log/", answers=Log, query=LogQuery, errors=[400, 404])
def device_log(name: str) -> Response:
    """Log of a device."""
    query = apikit.query(LogQuery)
    hardware().write_log()
    with site().database.read() as conn:
        key = apikit.device_key(conn, name)
        lines = logs.latest(conn, device_logs, key.id, **apikit.which_lines(query, site().clock.now()))
    return answer({"log": apikit.log_lines(lines)})


@endpoint(
    blueprint,
    "/device/<name>/bootconfig/",
    answers="The boot config of the image that is being installed: as it was asked for, usually a JSON object. "
    "`%URL%`, `%IPADDRESS%` and `%DEVICE%` in it are replaced as in PXE configs.",
    errors=[404],
)
def bootconfig(name: str) -> Response:
    """Boot config of the image that is being installed, for the live image; on any server."""
    device = apikit.read_device(name)
    return Response(hardware().bmm.boot_config(device), mimetype="application/json")


@endpoint(
    blueprint,
    "/device/<name>/set-comments/",
    "POST",
    answers=Empty,
    body=schemas.CommentsBody,
    example={"comments": "the screen flickers"},
    errors=[400, 404, 409],
)
def set_comments(name: str) -> Response:
    """Replace the comments on a device."""
    body = apikit.parse(schemas.CommentsBody, apikit.json_body())
    device = apikit.read_device(name)
    comments, was = body.comments or None, body.was
    if was is None:
        site().database.run(lambda conn: devices.set_attributes(conn, device.id, comments=comments), repeatable=True)
    elif not site().database.run(lambda conn: devices.replace_comments(conn, device.id, comments, was)):
        raise Conflict(f"somebody has changed the comments on {device.name} meanwhile", field="comments")
    return answer({})


@endpoint(
    blueprint,
    "/device/<name>/set-environment/",
    "POST",
    answers=Empty,
    body=schemas.EnvironmentBody,
    example={"environment": "staging"},
    errors=[400, 404],
)
def set_environment(name: str) -> Response:
    """Put a device into an environment."""
    body = apikit.parse(schemas.EnvironmentBody, apikit.json_body())
    device = apikit.read_device(name)
    site().database.run(
        lambda conn: devices.set_attributes(conn, device.id, environment=body.environment), repeatable=True
    )
    hardware().note(device, f"environment {device.environment} -> {body.environment}")
    site().device_changed()
    return answer({})


@endpoint(
    blueprint,
    "/device/<name>/set-labels/",
    "POST",
    answers=Empty,
    body=schemas.LabelsBody,
    example={"labels": {"processor": "armv7", "android": "4.0"}},
    errors=[400, 404],
)
def set_labels(name: str) -> Response:
    """Replace the labels of a device."""
    body = apikit.parse(schemas.LabelsBody, apikit.json_body())
    device = apikit.read_device(name)
    site().database.run(lambda conn: devices.set_labels(conn, device.id, body.labels), repeatable=True)
    shown = ", ".join(f"{key}={value}" for key, value in sorted(body.labels.items()))
    hardware().note(device, f"labels: {shown or 'none'}"[:1000])
    site().device_changed()
    return answer({})
