# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""BMM as LifeGuard and the API use it: operations on devices, each with its time limit, by whatever backend fits."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from mozpool.bmm.backends.pxe import render
from mozpool.bmm.interfaces import CommandResult, Target
from mozpool.bmm.registry import Registry
from mozpool.clock import Clock, Deadline, Lock
from mozpool.db import images
from mozpool.db.devices import Device
from mozpool.db.engine import Database
from mozpool.errors import HardwareError

# Seconds that an operation may take in all, whatever its peer does (wire facts: ProXR relay boards, SUTAgent).
TEST_LIMIT = 10.0
POWER_LIMIT = 30.0
PING_LIMIT = 2.0
VERIFY_LIMIT = 45.0
STORAGE_LIMIT = 195.0
AGENT_LIMIT = 15.0
REBOOT_LIMIT = 8.0
"""Shorter than the state that waits for it: what fails late must not pass for a reboot."""
BOOT_LIMIT = 10.0


def target(device: Device) -> Target:
    """What backends may know of a device."""
    options = device.backends.get("options")
    return Target(
        name=device.name,
        address=device.address,
        mac_address=device.mac_address,
        relay_info=device.relay_info,
        hardware_type=device.hardware_type,
        hardware_model=device.hardware_model,
        options={str(key): str(value) for key, value in options.items()} if isinstance(options, dict) else {},
    )


def _backend(device: Device, interface: str) -> str | None:
    name = device.backends.get(interface)
    return None if name is None else str(name)


def _boots_by(device: Device) -> tuple[str | None, str]:
    """What a device's boot files hang on."""
    return _backend(device, "boot"), device.mac_address


class BMM:
    """All that can be done to hardware. Methods may be called from any thread; they raise HardwareError."""

    def __init__(self, registry: Registry, database: Database, clock: Clock, ip_address: str, url: str) -> None:
        """``ip_address`` and ``url`` are what ``%IPADDRESS%`` and ``%URL%`` in PXE configs stand for."""
        self.registry = registry
        self._database = database
        self._clock = clock
        self._ip_address = ip_address
        self._url = url
        self._lane_backends: dict[str, str | None] = {}
        self._placed: dict[int, Device] = {}
        """Devices as they were when boot files were written for them: their MAC address may change."""
        self._boot_locks: dict[int, Lock] = {}
        self._lock = threading.Lock()

    def _deadline(self, seconds: float) -> Deadline:
        return Deadline(self._clock, seconds)

    # Power

    def power_lane(self, device: Device) -> str:
        """The lane that a device's power operations must run in."""
        backend = _backend(device, "power")
        lane = self.registry.power(backend).lane(target(device))
        self._lane_backends[lane] = backend
        return lane

    def power_cycle(self, device: Device) -> None:
        """Cut the power and restore it."""
        self.registry.power(_backend(device, "power")).power_cycle(target(device), self._deadline(POWER_LIMIT))

    def power_off(self, device: Device) -> None:
        """Cut the power."""
        self.registry.power(_backend(device, "power")).power_off(target(device), self._deadline(POWER_LIMIT))

    def has_power(self, device: Device) -> bool | None:
        """Whether the device has power; None where nobody can tell."""
        return self.registry.power(_backend(device, "power")).is_on(target(device), self._deadline(TEST_LIMIT))

    def test_power(self, lane: str) -> None:
        """Two-way talk with the relay board, or another switch, behind a lane.

        Raises LaneError, and BadInput for a lane that its backend does not understand.
        """
        self.registry.power(self._lane_backend(lane)).test(lane, self._deadline(TEST_LIMIT))

    def _lane_backend(self, lane: str) -> str | None:
        """The backend of a lane: that of a device in it, else the one that the lane's first part names."""
        if lane in self._lane_backends:
            return self._lane_backends[lane]
        kind = lane.partition(":")[0]
        name = "proxr" if kind == "relay" else kind
        return name if name in self.registry.names("power") else None

    # Boot

    def sync_boot(self, device: Device) -> None:
        """Make the network boot files say what the device's row says: its ``pxe_config``, or nothing."""
        with self._lock:
            lock = self._boot_locks.setdefault(device.id, self._clock.lock())
        with lock:
            text = self._boot_text(device)
            before = self._placed.get(device.id)
            if before is not None and _boots_by(before) != _boots_by(device):
                self._clear_boot(before)
            if text is None:
                self._clear_boot(device)
                return
            boot = self.registry.boot(_backend(device, "boot"))
            self._placed[device.id] = device
            boot.set_config(target(device), text, self._deadline(BOOT_LIMIT))

    def _clear_boot(self, device: Device) -> None:
        self.registry.boot(_backend(device, "boot")).clear(target(device), self._deadline(BOOT_LIMIT))
        self._placed.pop(device.id, None)

    def _boot_text(self, device: Device) -> str | None:
        if device.pxe_config is None:
            return None
        name = device.pxe_config
        with self._database.read() as conn:
            config = images.pxe_config(conn, name)
        if config is None:
            raise HardwareError(device.name, "network boot", f"PXE config {name} does not exist any more")
        return render(config.contents, ip_address=self._ip_address, url=self._url, device=device.name)

    # Probe and agent

    def ping(self, device: Device) -> bool:
        """One attempt."""
        return self.registry.probe(_backend(device, "probe")).ping(target(device), self._deadline(PING_LIMIT))

    def verify_agent(self, device: Device) -> None:
        """One attempt to prove that the agent works."""
        self.registry.agent(_backend(device, "agent")).verify(target(device), self._deadline(VERIFY_LIMIT))

    def check_storage(self, device: Device) -> None:
        """Write and remove a file by the agent."""
        self.registry.agent(_backend(device, "agent")).check_storage(target(device), self._deadline(STORAGE_LIMIT))

    def agent_reboot(self, device: Device) -> None:
        """Ask the agent to reboot the device."""
        self.registry.agent(_backend(device, "agent")).reboot(target(device), self._deadline(REBOOT_LIMIT))

    def agent_uptime(self, device: Device) -> float | None:
        """Seconds since the device booted, as its agent says; None when it can't tell."""
        return self.registry.agent(_backend(device, "agent")).uptime(target(device), self._deadline(AGENT_LIMIT))

    def agent_run(self, device: Device, command: Sequence[str], seconds: float) -> CommandResult:
        """Run a command on the device, for at most so many seconds."""
        return self.registry.agent(_backend(device, "agent")).run(target(device), command, self._deadline(seconds))
