# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""BMM as LifeGuard and the API use it: operations on devices, each with its time limit, by whatever backend fits."""

from __future__ import annotations

import hashlib
import json
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from mozpool.bmm.backends.pxe import TOKEN, render
from mozpool.bmm.breakoff import BreakOff
from mozpool.bmm.interfaces import CommandResult, Cycle, HostedJob, HostedStatus, JobOrder, Launcher, Target
from mozpool.bmm.registry import Registry
from mozpool.clock import Clock, Deadline, Lock
from mozpool.db import devices, images
from mozpool.db.devices import LAUNCHER, Device
from mozpool.db.engine import Database
from mozpool.errors import HardwareError, LeaseOver, MozpoolError
from mozpool.lease import Lease

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
START_LIMIT = 60.0
LOOK_LIMIT = 15.0
STOP_LIMIT = 20.0
"""Of calls to a cloud that hosts devices."""

TOKEN_BYTES = 18
"""Random bytes in the token of a boot."""


def token_hash(token: str) -> str:
    """What the database holds of the token of a boot: its SHA-256."""
    return hashlib.sha256(token.encode()).hexdigest()


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

    def __init__(
        self,
        registry: Registry,
        database: Database,
        clock: Clock,
        ip_address: str,
        url: str,
        lease: Lease | None = None,
        *,
        on_no_token: Callable[[str, str], None] = lambda device, pxe_config: None,
    ) -> None:
        """``ip_address`` and ``url`` are what ``%IPADDRESS%`` and ``%URL%`` in PXE and boot configs stand for.

        What changes something at a device is done within ``lease`` alone; None: nobody else would do it.
        ``on_no_token`` is called with a device's name and its PXE config when it is about to boot by one without
        ``%TOKEN%``.
        """
        self.registry = registry
        self._lease = lease or Lease(clock, None)
        self._database = database
        self._clock = clock
        self._ip_address = ip_address
        self._url = url
        self._on_no_token = on_no_token
        self._tokens: dict[int, str] = {}
        """Device id → the token of its boot, as far as it was made here: the database has nothing but its hash."""
        self._lane_backends: dict[str, str | None] = {}
        self._placed: dict[int, Device] = {}
        """Devices as they were when boot files were written for them: their MAC address may change."""
        self._boot_locks: dict[int, Lock] = {}
        self._doing: Counter[int] = Counter()
        """Device id → how many operations are being done to it."""
        self._let_go: set[int] = set()
        self._once: set[int] = set()
        """Devices whose PXE config is for one boot only."""
        self._lock = threading.Lock()

    def _deadline(self, seconds: float) -> Deadline:
        return Deadline(self._clock, seconds)

    @contextmanager
    def _acting(self, device: Device, operation: str, seconds: float) -> Iterator[Deadline]:
        """Within the lease: what fails because that ends is neither the device's fault nor its switch's.

        Raises LeaseOver.
        """
        with self.occupied(device.id, device.name, operation):
            deadline = self._lease.acting(device.name, operation, seconds)
            try:
                yield deadline
            except HardwareError as error:
                if not self._lease.holds:
                    raise LeaseOver(device.name, operation) from error
                raise

    # Whose device it is

    @contextmanager
    def occupied(self, device_id: int, name: str, operation: str) -> Iterator[None]:
        """While this lasts, the device is not let go to another server. Raises LeaseOver when it has been."""
        with self._lock:
            if device_id in self._let_go:
                raise LeaseOver(name, operation)
            self._doing[device_id] += 1
        try:
            yield
        finally:
            with self._lock:
                self._doing[device_id] -= 1
                if not self._doing[device_id]:
                    del self._doing[device_id]

    def let_go(self, device_id: int) -> bool:
        """Do nothing to a device any more, which another server is about to get; False when something is being done."""
        with self._lock:
            if device_id in self._doing:
                return False
            self._let_go.add(device_id)
            return True

    def hold(self, device_ids: Iterable[int]) -> None:
        """These devices are this server's after all, or again."""
        with self._lock:
            self._let_go.difference_update(device_ids)

    # Power

    def power_lane(self, device: Device) -> str:
        """The lane that a device's power operations must run in."""
        backend = _backend(device, "power")
        lane = self.registry.power(backend).lane(target(device))
        self._lane_backends[lane] = backend
        return lane

    def power_cycle(self, device: Device) -> None:
        """Cut the power and restore it."""
        with self._acting(device, "power cycle", POWER_LIMIT) as deadline:
            self.registry.power(_backend(device, "power")).power_cycle(target(device), deadline)

    def power_cycles(self, cycles: Sequence[tuple[Device, Callable[[Exception | None], None]]]) -> None:
        """The same with several devices of one lane, together where their hardware can do that.

        Each comes with what is told how it ended.
        """
        going: dict[str | None, list[Cycle]] = {}
        for device, done in cycles:
            try:
                going.setdefault(_backend(device, "power"), []).append(self._cycle(device, done))
            except MozpoolError as error:
                done(error)
        for name, some in going.items():
            try:
                self.registry.power(name).power_cycles(some)
            except Exception as error:
                for cycle in some:
                    cycle.done(error)

    def _cycle(self, device: Device, done: Callable[[Exception | None], None]) -> Cycle:
        """A power cycle within the lease; the device is occupied until it is told how it ended. Raises LeaseOver."""
        stack = ExitStack()
        deadline = stack.enter_context(self._acting(device, "power cycle", POWER_LIMIT))
        over = False

        def end(error: Exception | None) -> None:
            nonlocal over
            if over:
                return
            over = True
            try:
                with stack:
                    if error is not None:
                        raise error
            except Exception as raised:
                error = raised
            done(error)

        return Cycle(target(device), deadline, end)

    def power_off(self, device: Device) -> None:
        """Cut the power."""
        with self._acting(device, "power off", POWER_LIMIT) as deadline:
            self.registry.power(_backend(device, "power")).power_off(target(device), deadline)

    def has_power(self, device: Device) -> bool | None:
        """Whether the device has power; None where nobody can tell."""
        return self.registry.power(_backend(device, "power")).is_on(target(device), self._deadline(TEST_LIMIT))

    def test_power(self, lane: str) -> None:
        """Two-way talk with the relay board, another switch, or the cloud account behind a lane.

        Raises LaneError, LeaseOver, and BadInput for a lane that its backend does not understand.
        """
        self._lease.acting(lane, "test", 0.0)  # a board that others need now is left alone
        launcher = lane.partition(":")[0]
        if lane not in self._lane_backends and launcher in self.registry.names(LAUNCHER):
            self.registry.launcher(launcher).test(lane, self._deadline(LOOK_LIMIT))
            return
        self.registry.power(self._lane_backend(lane)).test(lane, self._deadline(TEST_LIMIT))

    def _lane_backend(self, lane: str) -> str | None:
        """The backend of a lane: that of a device in it, else the one that the lane's first part names."""
        if lane in self._lane_backends:
            return self._lane_backends[lane]
        kind = lane.partition(":")[0]
        name = "proxr" if kind == "relay" else kind
        return name if name in self.registry.names("power") else None

    # Boot

    def sync_boot(self, device: Device, *, boots: bool = False) -> None:
        """Make the network boot files say what the device's row says: its ``pxe_config``, or nothing.

        A hosted device has none. ``boots``: it is about to boot, and gets a token for that; the one of the boot before
        counts no more. Raises LeaseOver, DatabaseAway, too.
        """
        if device.is_hosted:
            return
        with self._lock:
            lock = self._boot_locks.setdefault(device.id, self._clock.lock())
        with lock:
            text = self._boot_text(device, boots=boots)
            before = self._placed.get(device.id)
            if before is not None and _boots_by(before) != _boots_by(device):
                self._clear_boot(before)
            if text is None:
                self._clear_boot(device)
                return
            boot = self.registry.boot(_backend(device, "boot"))
            self._placed[device.id] = device
            with self._acting(device, "network boot", BOOT_LIMIT) as deadline:
                boot.set_config(target(device), text, deadline)

    def _clear_boot(self, device: Device) -> None:
        with self._acting(device, "network boot", BOOT_LIMIT) as deadline:
            self.registry.boot(_backend(device, "boot")).clear(target(device), deadline)
        self._placed.pop(device.id, None)

    def _boot_text(self, device: Device, *, boots: bool) -> str | None:
        name = device.pxe_config
        if name is None:
            if boots and (device.boot_token is not None or device.id in self._tokens):
                self._set_token(device, None)
            return None
        with self._database.read() as conn:
            config = images.pxe_config(conn, name)
            stored = devices.boot_token(conn, device.id)
        if config is None:
            raise HardwareError(device.name, "network boot", f"PXE config {name} does not exist any more")
        token = None if boots else self._tokens.get(device.id)
        if TOKEN not in config.contents:
            if boots:
                self._on_no_token(device.name, name)
                if stored is not None:
                    self._set_token(device, None)
        elif token is None or token_hash(token) != stored:
            token = secrets.token_urlsafe(TOKEN_BYTES)
            self._set_token(device, token)
        return self.boot_text(config.contents, device.name, token or TOKEN)

    def _set_token(self, device: Device, token: str | None) -> None:
        """From now on this is the token of the device's boot. Raises LeaseOver, DatabaseAway."""
        hashed = None if token is None else token_hash(token)
        self._tokens.pop(device.id, None)
        if not self._database.run(
            lambda conn: devices.set_boot_token(conn, device.id, device.epoch, hashed), repeatable=True
        ):
            raise LeaseOver(device.name, "network boot")
        if token is not None:
            self._tokens[device.id] = token

    def boot_text(self, contents: str, device: str, token: str = TOKEN) -> str:
        """The text of a PXE config as a device of this server is given it, with the token of its boot."""
        return render(contents, ip_address=self._ip_address, url=self._url, device=device, token=token)

    def boot_once(self, device_id: int, once: bool) -> None:
        """Whether a device's PXE config is for its next boot only."""
        with self._lock:
            (self._once.add if once else self._once.discard)(device_id)

    def is_over(self, device_id: int) -> bool:
        """Whether the boot that a PXE config was for has taken place; asked when the live image reports."""
        with self._lock:
            over = device_id in self._once
            self._once.discard(device_id)
            return over

    def boot_config(self, device: Device) -> str:
        """The boot config of the image that is being installed, with what stands for this server as in PXE configs."""
        ip_address, url, name = (json.dumps(value)[1:-1] for value in (self._ip_address, self._url, device.name))
        return render(device.next_boot_config or "{}", ip_address=ip_address, url=url, device=name)

    # Jobs on hosted devices

    def _launcher(self, device: Device) -> Launcher:
        return self.registry.launcher(_backend(device, LAUNCHER) or "")

    def launcher_lane(self, device: Device, *, start: bool) -> str:
        """The lane of a hosted device's cloud account: the one in which jobs are started, or that for all else."""
        return self._launcher(device).lane(target(device), start=start)

    def hosted_status(self, device: Device) -> HostedStatus:
        """How a hosted device is, as its cloud says."""
        return self._launcher(device).status(target(device), self._deadline(LOOK_LIMIT))

    def start_job(self, device: Device, order: JobOrder) -> None:
        """See to it that a job is on its way to a hosted device. Raises NotYet, too."""
        with self._acting(device, "start of a job", START_LIMIT) as deadline:
            self._launcher(device).start(target(device), order, deadline)

    def look_at_job(self, device: Device, order: JobOrder) -> HostedJob | None:
        """A job as its cloud has it; None: it is not there yet."""
        return self._launcher(device).look(target(device), order, self._deadline(LOOK_LIMIT))

    def stop_jobs(self, device: Device) -> bool:
        """Stop this pool's jobs on a hosted device; whether none is left."""
        with self._acting(device, "stop of jobs", STOP_LIMIT) as deadline:
            return self._launcher(device).stop(target(device), deadline)

    # Probe and agent

    def ping(self, device: Device) -> bool:
        """One attempt."""
        return self.registry.probe(_backend(device, "probe")).ping(target(device), self._deadline(PING_LIMIT))

    def verify_agent(self, device: Device, seconds: float = VERIFY_LIMIT, break_off: BreakOff | None = None) -> None:
        """One attempt to prove that the agent works, for at most so many seconds; ``break_off`` ends it before."""
        deadline = self._deadline(seconds)
        if break_off is not None:
            deadline = break_off.deadline(deadline)
        self.registry.agent(_backend(device, "agent")).verify(target(device), deadline)

    def check_storage(self, device: Device) -> None:
        """Write and remove a file by the agent."""
        with self._acting(device, "storage check", STORAGE_LIMIT) as deadline:
            self.registry.agent(_backend(device, "agent")).check_storage(target(device), deadline)

    def agent_reboot(self, device: Device) -> None:
        """Ask the agent to reboot the device."""
        with self._acting(device, "reboot", REBOOT_LIMIT) as deadline:
            self.registry.agent(_backend(device, "agent")).reboot(target(device), deadline)

    def agent_uptime(self, device: Device) -> float | None:
        """Seconds since the device booted, as its agent says; None when it can't tell."""
        return self.registry.agent(_backend(device, "agent")).uptime(target(device), self._deadline(AGENT_LIMIT))

    def agent_run(
        self, device: Device, command: Sequence[str], seconds: float, break_off: BreakOff | None = None
    ) -> CommandResult:
        """Run a command on the device, for at most so many seconds; ``break_off`` ends it before."""
        with self._acting(device, "command", seconds) as deadline:
            if break_off is not None:
                deadline = break_off.deadline(deadline)
            return self.registry.agent(_backend(device, "agent")).run(target(device), command, deadline)

    def finish(self, seconds: float) -> None:
        """This server stops: what launchers have under way may end within so many seconds."""
        deadline = self._deadline(seconds)
        for launcher in self.registry.launchers_in_use():
            launcher.finish(deadline)
