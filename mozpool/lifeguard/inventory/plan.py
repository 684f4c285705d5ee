# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What differs between the inventory and the pool, and what is to be done about it. Nothing here writes or waits.

A device is known by its inventory id. Those that were added by hand, or registered themselves, have none and are left
alone; when the inventory comes to name such a board (same name, and the same MAC address or one that nobody knew), it
is the inventory's from then on.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mozpool.bmm.backends.proxr import DEFAULT_PORT, Board, RelayInfo
from mozpool.bmm.interfaces import NO_MAC
from mozpool.db.inventory import Known, KnownBoard, KnownDevice, dumps_backends
from mozpool.db.relay_boards import name_of
from mozpool.errors import BadInput, MozpoolError
from mozpool.lifeguard.devicemachine import STATES
from mozpool.lifeguard.inventory.hosts import Host, Hosts, InventoryError
from mozpool.lifeguard.states.base import Rests

RESTING = frozenset(state.name for state in STATES if issubclass(state, Rests)) - {
    "troubleshooting",
    "maintenance_mode",
}
"""States of devices that nobody is at work with: neither Mozpool nor a person."""

FEW = 5
SHARE = 10
"""More changes than FEW, and than one in SHARE hosts, are more likely a mistake of the inventory's than meant."""

ADDED, UPDATED, REMOVED, LEAVES, WAITS, UNCHANGED, SKIPPED, BOARD = FATES = (
    *("added", "updated", "removed", "leaves", "waits", "unchanged", "skipped", "relay board"),
)
"""What may become of a host."""


class TooManyChanges(MozpoolError):
    """More would change than is likely to be meant; nothing was changed."""

    status = 409
    code = "too_many_changes"


@dataclass(frozen=True)
class Fate:
    """What becomes of a host, for people."""

    name: str
    what: str
    """One of :data:`FATES`."""
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.what}{f' ({self.detail})' if self.detail else ''}"


@dataclass(frozen=True)
class Update:
    """What is written into a device's row; names of servers and hardware stand for their ids."""

    device: KnownDevice
    columns: Mapping[str, Any]
    imaging_server: str | None = None
    """The server that it is to belong to, when that is another one."""
    hardware: tuple[str, str] | None = None
    labels: Mapping[str, str] | None = None
    said: str = ""


@dataclass
class Plan:
    """What is to be done."""

    adds: list[Host] = field(default_factory=list)
    updates: list[Update] = field(default_factory=list)
    removes: list[KnownDevice] = field(default_factory=list)
    """Not in the inventory any more, and free."""
    marks: list[KnownDevice] = field(default_factory=list)
    """Not in the inventory any more, but lent or busy."""
    boards_gone: list[KnownBoard] = field(default_factory=list)
    boards_changed: dict[int, dict[str, str | None]] = field(default_factory=dict)
    """Id → column → value; a server's name stands for its id."""
    boards_added: list[dict[str, str]] = field(default_factory=list)
    servers: list[str] = field(default_factory=list)
    """Names that the pool does not have."""
    kinds: list[tuple[str, str]] = field(default_factory=list)
    """Hardware types that it does not have."""
    fates: list[Fate] = field(default_factory=list)
    larger_side: int = 0
    """Hosts of the inventory or devices that come from it, whichever are more."""

    @property
    def changes(self) -> int:
        """How many devices change."""
        return len(self.adds) + len(self.updates) + len(self.removes) + len(self.marks)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.changes or self.boards_gone or self.boards_changed or self.boards_added)

    def check_limit(self) -> None:
        """Raise TooManyChanges when a person should have a look first."""
        most = max(FEW, self.larger_side // SHARE)
        if self.changes > most:
            raise TooManyChanges(
                f"{self.changes} of {self.larger_side} devices would change ({self.summary()}), and more than {most} "
                "are more likely a mistake: look at them with `mozpool-inventorysync --dry-run --verbose`, and if they "
                "are meant, say --ship-it"
            )

    def summary(self) -> str:
        """How many hosts have which fate."""
        counts = Counter(fate.what for fate in self.fates)
        said = [f"{counts[what]} {what if what != LEAVES else 'to leave'}" for what in FATES[:-1] if counts[what]]
        boards = [f"{counts[BOARD]} relay board{'' if counts[BOARD] == 1 else 's'} changed"] if counts[BOARD] else []
        return ", ".join(said + boards) or "no hosts"


def plan(found: Hosts, known: Known, default_power: str, ignore: re.Pattern[str] | None = None) -> Plan:
    """Compare the two sides.

    ``default_power`` is the power backend of devices that name none; devices in the pool whose imaging server
    ``ignore`` matches are left alone. Raises InventoryError when hosts and devices cannot be brought together.
    """
    return _Planner(found, known, default_power, ignore).plan()


class _Planner:
    def __init__(self, found: Hosts, known: Known, default_power: str, ignore: re.Pattern[str] | None) -> None:
        self._found = found
        self._known = known
        self._default_power = default_power
        self._servers = {name.lower(): name for name in known.servers}
        self._kinds = {_folded(kind): kind for kind in known.hardware}
        self._faults: list[str] = []
        self._plan = Plan()
        self._by_hand = {device.name.lower(): device for device in known.devices if not device.inventory_id}
        self._ours = [
            device
            for device in known.devices
            if device.inventory_id and not (ignore is not None and ignore.match(device.imaging_server))
        ]
        self._by_id = {device.inventory_id: device for device in known.devices if device.inventory_id}

    def plan(self) -> Plan:
        plan = self._plan
        plan.larger_side = max(len(self._found.hosts), len(self._ours))
        pairs = [(host, self._device_of(host)) for host in self._found.hosts]
        self._check_ids()
        self._check_macs(pairs)
        for host, device in pairs:
            host_power = self._power(host, device)
            if host.relay_info is not None and host_power == "proxr":
                self._relay(host.place, host.relay_info)
        here = {host.inventory_id for host, _ in pairs}
        self._missing([device for device in self._ours if device.inventory_id not in here])
        held = self._names_that_stay(pairs)
        for host, device in pairs:
            other = held.get(host.name.lower())
            if other is not None and other is not device and not other.inventory_id:
                self._faults.append(
                    f"{host.place}: device {other.name}, which was added by hand, has this name: delete that, or "
                    "rename one of the two"
                )
            elif device is None:
                self._add(host, held)
            else:
                self._update(host, device, held)
        self._boards(pairs)
        if self._faults:
            raise InventoryError.of(self._faults)
        plan.fates += [Fate(skipped.place, SKIPPED, skipped.reason) for skipped in self._found.skipped]
        return plan

    # Who is who

    def _device_of(self, host: Host) -> KnownDevice | None:
        """The device that a host is: by its id, or a board that was there before the inventory named it."""
        device = self._by_id.get(host.inventory_id)
        if device is not None:
            return device
        device = self._by_hand.get(host.name.lower())
        if device is not None and device.mac_address not in (NO_MAC, host.mac_address):
            self._faults.append(
                f"{host.place}: there is a device {device.name} that was added by hand and has another MAC address, "
                f"{device.mac_address} instead of {host.mac_address}: delete or rename one of the two"
            )
        return device

    def _check_ids(self) -> None:
        counts = Counter(device.inventory_id for device in self._ours)
        for inventory_id in sorted(each for each, number in counts.items() if number > 1):
            names = " and ".join(device.name for device in self._ours if device.inventory_id == inventory_id)
            self._faults.append(f"devices {names} of the pool have the same inventory id {inventory_id}")

    def _check_macs(self, pairs: Iterable[tuple[Host, KnownDevice | None]]) -> None:
        """No other device that was added by hand has the address of one of the inventory's."""
        strangers = {device.mac_address: device for device in self._by_hand.values() if device.mac_address != NO_MAC}
        for host, device in pairs:
            other = strangers.get(host.mac_address)
            if other is not None and other is not device:
                self._faults.append(
                    f"{host.place}: its MAC address {host.mac_address} is that of device {other.name}, which was added "
                    "by hand: delete that, or give both the same name"
                )

    def _names_that_stay(self, pairs: Sequence[tuple[Host, KnownDevice | None]]) -> dict[str, KnownDevice]:
        """Names that cannot be given to anybody else yet, and who has them.

        That is who stays until it is free, or was added by hand; and who would have such a name, and so keeps its own.
        """
        names = {device.id: host.name.lower() for host, device in pairs if device is not None}
        gone = {device.id for device in self._plan.removes}
        held = {
            device.name.lower(): device
            for device in self._known.devices
            if device.id not in gone and device.id not in names
        }
        renamed = [device for _, device in pairs if device is not None and names[device.id] != device.name.lower()]
        while waiting := [device for device in renamed if names[device.id] in held]:
            held.update((device.name.lower(), device) for device in waiting)
            renamed = [device for device in renamed if device not in waiting]
        return held

    # Devices

    def _missing(self, devices: Sequence[KnownDevice]) -> None:
        for device in devices:
            if device.claim_id is None and device.state in RESTING:
                self._plan.removes.append(device)
                self._plan.fates.append(Fate(device.name, REMOVED))
                continue
            why = "lent" if device.claim_id is not None else f"in state {device.state}"
            self._plan.fates.append(Fate(device.name, LEAVES, f"it is {why}, and goes as soon as it is free"))
            if not device.leaving:
                self._plan.marks.append(device)

    def _add(self, host: Host, held: Mapping[str, KnownDevice]) -> None:
        other = held.get(host.name.lower())
        if other is not None:
            self._plan.fates.append(Fate(host.name, WAITS, f"device {other.name} has this name until it is gone"))
            return
        self._plan.adds.append(host)
        self._server(host.imaging_server)
        self._kind(host.hardware)
        self._plan.fates.append(Fate(host.name, ADDED))

    def _update(self, host: Host, device: KnownDevice, held: Mapping[str, KnownDevice]) -> None:
        columns: dict[str, Any] = {}
        said: list[str] = []
        name = host.name
        waits = held.get(name.lower()) if name.lower() != device.name.lower() else None
        if waits is not None:
            name = device.name
        wanted = {
            "name": name,
            "fqdn": host.fqdn,
            "inventory_id": host.inventory_id,
            "mac_address": host.mac_address,
            "relay_info": host.relay_info,
            "address": host.address,
            "environment": host.environment,
            "comments": host.comments,
        }
        for column, value in wanted.items():
            before = getattr(device, column)
            if value is None or value == before or (column == "address" and before is None and value == host.fqdn):
                continue
            columns[column] = value
            if column == "name":
                said.append(f"renamed from {before}")
            elif column == "inventory_id":
                said.append("it was added by hand and is the inventory's from now on")
            elif column == "comments":
                said.append("comments")
            else:
                said.append(f"{column} {before or 'none'} -> {value}")
        if host.backends is not None and dict(host.backends) != dict(device.backends):
            columns["backends"] = dumps_backends(host.backends)
            said.append("backends")
        if device.leaving:
            columns["leaving"] = 0
            said.append("it is back before it has left")
        server = None
        if host.imaging_server.lower() != device.imaging_server.lower():
            server = self._server(host.imaging_server)
            said.append(f"imaging_server {device.imaging_server} -> {server}")
        hardware = None
        if host.hardware is not None and (
            device.hardware is None or _folded(host.hardware) != _folded(device.hardware)
        ):
            hardware = self._kind(host.hardware)
            before = " ".join(device.hardware) if device.hardware else "none"
            said.append(f"hardware {before} -> {' '.join(host.hardware)}")
        labels = host.labels if host.labels is not None and dict(host.labels) != dict(device.labels) else None
        if labels is not None:
            said.append("labels")
        if waits is not None:
            self._plan.fates.append(
                Fate(device.name, WAITS, f"device {waits.name} has its new name {host.name} until it is gone")
            )
        if not said:
            if waits is None:
                self._plan.fates.append(Fate(device.name, UNCHANGED))
            return
        detail = "; ".join(said)
        self._plan.updates.append(Update(device, columns, server, hardware, labels, detail))
        if waits is None:
            self._plan.fates.append(Fate(name, UPDATED, detail))

    def _server(self, name: str) -> str:
        """A server's name as the pool spells it; one that it does not have is to be added."""
        known = self._servers.get(name.lower())
        if known is None:
            known = self._servers[name.lower()] = name
            self._plan.servers.append(name)
        return known

    def _kind(self, hardware: tuple[str, str] | None) -> tuple[str, str] | None:
        if hardware is None:
            return None
        known = self._kinds.get(_folded(hardware))
        if known is None:
            known = self._kinds[_folded(hardware)] = hardware
            self._plan.kinds.append(hardware)
        return known

    # Relay boards

    def _power(self, host: Host, device: KnownDevice | None) -> str:
        """The power backend that a host's device will have."""
        own: Mapping[str, Any] = device.backends if device is not None else {}
        own = host.backends if host.backends is not None else own
        kind = host.hardware or (device.hardware if device is not None else None)
        spelled = self._kinds.get(_folded(kind)) if kind is not None else None
        by_kind = self._known.hardware.get(spelled, {}) if spelled is not None else {}
        return str(own.get("power") or by_kind.get("power") or self._default_power)

    def _relay(self, place: str, text: str) -> Board | None:
        try:
            return RelayInfo.parse(text).board
        except BadInput as error:
            self._faults.append(f"{place}: {error.message}")
            return None

    def _boards(self, pairs: Sequence[tuple[Host, KnownDevice | None]]) -> None:
        wanted: dict[str, tuple[Board, str, str]] = {}
        for host, device in pairs:
            relay_info = host.relay_info or (device.relay_info if device is not None else None)
            board = _board_of(relay_info) if self._power(host, device) == "proxr" else None
            if board is None:
                continue
            before = wanted.setdefault(str(board), (board, host.imaging_server, host.place))
            if before[1].lower() != host.imaging_server.lower():
                self._faults.append(
                    f"relay board {board.host} has two imaging servers: {before[1]} by {before[2]}, "
                    f"{host.imaging_server} by {host.place}"
                )
        hosts = {host.inventory_id for host, _ in pairs}
        gone = {device.id for device in self._plan.removes}
        used = {
            str(board)
            for device in self._known.devices
            if device.id not in gone and device.inventory_id not in hosts
            if (board := _board_of(device.relay_info)) is not None
        }
        present = {str(board): row for row in self._known.boards if (board := _board_of_row(row)) is not None}
        for key, row in present.items():
            if row.lane is None and key not in wanted and key not in used:
                self._plan.boards_gone.append(row)
                self._plan.fates.append(Fate(row.name, BOARD, "removed: no device hangs on it"))
        leaving = {row.id for row in self._plan.boards_gone}
        names = {row.name.lower() for row in self._known.boards if row.id not in leaving}
        for key, (board, server, _place) in sorted(wanted.items()):
            known = present.get(key)
            if known is None:
                name = name_of(f"relay:{_short(board)}", names)
                names.add(name.lower())
                made = {"name": name, "fqdn": _fqdn_of(board), "imaging_server": self._server(server)}
                self._plan.boards_added.append(made)
                self._plan.fates.append(Fate(name, BOARD, f"added, at {server}"))
                continue
            columns: dict[str, str | None] = {}
            if known.imaging_server.lower() != server.lower():
                columns["imaging_server"] = self._server(server)
            if known.lane is not None:
                # The server had found it out by itself.
                columns["lane"] = None
                if known.fqdn.lower() != _fqdn_of(board):
                    columns["fqdn"] = _fqdn_of(board)
            if columns:
                self._plan.boards_changed[known.id] = columns
                self._plan.fates.append(Fate(known.name, BOARD, f"updated, at {server}"))


def _folded(kind: tuple[str, str]) -> tuple[str, str]:
    return kind[0].lower(), kind[1].lower()


def _board_of(relay_info: str | None) -> Board | None:
    try:
        return RelayInfo.parse(relay_info).board if relay_info else None
    except BadInput:
        return None


def _board_of_row(row: KnownBoard) -> Board | None:
    """The relay board that a row stands for; None for another switch."""
    text = row.fqdn
    if row.lane is not None:
        kind, _, text = row.lane.partition(":")
        if kind != "relay":
            return None
    try:
        return Board.parse(text)
    except BadInput:
        return None


def _fqdn_of(board: Board) -> str:
    """As the table has it: without the customary port."""
    return str(board).removesuffix(f":{DEFAULT_PORT}")


def _short(board: Board) -> str:
    """The first label of a host name, or the whole of an IP address."""
    is_number = ":" in board.host or board.host.replace(".", "").isdecimal()
    return str(board).rpartition(":")[0] if is_number else board.host.partition(".")[0]
