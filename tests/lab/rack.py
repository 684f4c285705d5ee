# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""A rack: virtual boards, the relay board that they hang on, their network, and a whole Mozpool that serves them.

All of Mozpool is what operators run, with its own time limits: ``mozpool-server``, ``mozpool-netboot`` with dnsmasq,
the live image and the second stages, and the backends proxr, pxe, fping and sut. Only the boards are virtual.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import requests

from mozpool.bmm import catalogue
from mozpool.cli import newdevice
from mozpool.cli.common import registry
from mozpool.client import Client, ClientError
from mozpool.clock import Clock
from mozpool.config import Settings, load
from mozpool.db import devices, history, images, schema, tables
from mozpool.db.engine import Database
from mozpool.fakes.relayboard import RelayBoard
from tests.lab.guest import MARKER, PATH, Builder, build_live_image, build_preseed
from tests.lab.network import AGENT_PORT, LabThread, Network, OwnNetwork, UserNetwork, may_have_own_network
from tests.lab.vm import DIES_WITH_US, QEMU, VirtualBoard
from tests.processes import end, free_port

HARDWARE = ("virtual", "pc")
RELAYS = 32
"""How many boards one relay board has room for."""

START_LIMIT = 60.0
STOP_LIMIT = 30.0

PROGRAMS = {
    QEMU: "qemu-system-x86",
    "apt-get": "apt",
    "dnsmasq": "dnsmasq-base",
    "fping": "fping",
    "ip": "iproute2",
    "mcopy": "mtools",
    "mke2fs": "e2fsprogs",
    "mkfs.vfat": "dosfstools",
    "setpriv": "util-linux",
    "sfdisk": "fdisk",
    "ssh": "openssh-client",
    "syslinux": "syslinux",
}
FILES = {
    "/usr/lib/ipxe/qemu/pxe-virtio.rom": "ipxe-qemu",
    "/usr/lib/PXELINUX/lpxelinux.0": "pxelinux",
    "/usr/lib/syslinux/modules/bios/ldlinux.c32": "syslinux-common",
    "/usr/share/seabios/bios-256k.bin": "seabios",
}
"""What the lab needs, and the Debian packages that bring it."""

CONFIG = """\
[database]
engine = {engine}
[server]
fqdn = {fqdn}:{port}
ipaddress = {ipaddress}
listen = {listen}
port = {port}
{server}
[auth]
mode = open
device_events = {device_events}
[paths]
tftp_root = {tftp_root}
image_store = {images}
[netboot]
mode = {mode}
boot_loader = {boot_loader}
run_dnsmasq = {run_dnsmasq}
interfaces = {interface}
network = 10.99.0.0/24
advertise = fd99::/64
url = http://{ipaddress}:{port}
[timeouts]
{timeouts}
"""

PXE_CONFIG = """\
DEFAULT mozpool
PROMPT 0
LABEL mozpool
 LINUX %URL%/images/live/vmlinuz
 INITRD %URL%/images/live/initrd.img
 IPAPPEND 2
 APPEND console=ttyS0,115200 quiet mitigations=off nokaslr panic=5 mozpool-device=%DEVICE% mozpool-disk=/dev/vda \
{token}mobile-imaging-url=%URL%/{stage}{more}
"""

RAW_KEYS = ("image_url", "sha256")
IMAGES = (
    catalogue.NewImage("raw", RAW_KEYS, can_reuse=True),
    catalogue.NewImage("b2g", ("b2gbase",), can_reuse=True),
    catalogue.NewImage("android", ("androidbase",), can_reuse=True),
    catalogue.NewImage("maintenance", has_sut_agent=False),
    catalogue.NewImage("self-test", has_sut_agent=False, hidden=True),
)


def missing() -> list[str]:
    """The Debian packages that the lab needs and that are not installed."""
    found = [package for program, package in PROGRAMS.items() if shutil.which(program, path=PATH) is None]
    return found + [package for file, package in FILES.items() if not Path(file).exists()]


@dataclass(frozen=True)
class Builds:
    """What can be installed on boards, and what they boot: built once, for any number of racks."""

    directory: Path
    """The image store."""
    preseed: Path
    """The disk of a board that nothing was installed on yet."""
    raw_sha256: str

    @classmethod
    def build(cls, directory: Path, keys: Path | None = None) -> Self:
        """Build everything into ``directory``, which is there; ``keys`` may log in for maintenance. Raises GuestError.

        Takes some seconds, and the time to download Debian packages the first time.
        """
        images = directory / "images"
        images.mkdir()
        build_live_image(images / "live", keys)
        preseed = directory / "preseed.img"
        build_preseed(preseed)
        builder = Builder(images / "live")
        raw = builder.raw(images / "raw-1.img.gz", "raw-1")
        for name in ("b2g-1", "android-1"):
            builder.tarballs(images / name, name)
        return cls(images, preseed, raw.sha256)

    def boot_config(self, image: str, url: str) -> dict[str, str]:
        """What a request for ``image`` says; ``url`` is where boards reach the daemon."""
        if image == "raw":
            return dict(zip(RAW_KEYS, (f"{url}/images/raw-1.img.gz", self.raw_sha256), strict=True))
        return {f"{image}base": f"{url}/images/{image}-1/"} if image in ("b2g", "android") else {}


class Rack:
    """Boards ``board1``, ``board2``, … and their Mozpool; a context manager that starts and stops everything.

    Boards have no power until their first power cycle.
    """

    def __init__(
        self,
        boards: int,
        builds: Builds,
        logs: Path,
        *,
        user: bool = False,
        database_url: str | None = None,
        state: str = "ready",
        timeouts: Mapping[str, float] | None = None,
        boot_loader: str = "lpxelinux",
        device_events: str = "token",
    ) -> None:
        """Describe the rack. ``user``: with QEMU's own network instead of one that needs root.

        ``logs`` gets the boards' consoles and the logs of all programs. ``state`` is that of the devices at the
        beginning; ``timeouts`` replaces time limits of states. ``boot_loader`` is that of ``[netboot]``; QEMU's own
        network knows only the usual one. ``device_events`` is that of ``[auth]``: boards get tokens where it is
        ``token``.
        """
        if not 1 <= boards <= RELAYS:
            raise ValueError(f"a rack has 1 to {RELAYS} boards")
        self.builds = builds
        self.logs = logs
        self.names = [f"board{number}" for number in range(1, boards + 1)]
        self.boards: dict[str, VirtualBoard] = {}
        self.network: Network = UserNetwork(boards) if user or not may_have_own_network() else OwnNetwork(boards)
        self._database_url = database_url
        self._state = state
        self._timeouts = timeouts or {}
        self._boot_loader = boot_loader
        self._device_events = device_events
        self._exit = ExitStack()

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._exit.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._exit.close()

    # Starting and stopping: what is started is ended in the opposite order.

    def _start(self) -> None:
        self.logs.mkdir(parents=True, exist_ok=True)
        self.directory = Path(self._exit.enter_context(tempfile.TemporaryDirectory(prefix="mozpool-lab-")))
        self.directory.chmod(0o755)  # dnsmasq runs as somebody else
        (self.directory / "tftp").mkdir()
        self._exit.callback(self.network.close)
        self.network.open()
        self.thread = LabThread(self.network)
        self.thread.start()
        self._exit.callback(self.thread.stop)
        self._start_boards()
        self._start_mozpool()

    def _start_mozpool(self) -> None:
        # Bound here, and served from inside the network: clients are out here.
        listener = self._exit.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.port: int = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.boards_url = f"http://{self.network.server}:{self.port}"
        self.client = Client(self.url, assignee="lab@example.com")
        own = self.network.has_dhcp
        config = self.directory / "config.ini"
        self._write_config(config, port=self.port, listen="0.0.0.0" if own else "127.0.0.1")
        self._open_database(load(config))
        self._fill_database()
        if own:
            self._start_program("netboot", config, "mozpool.cli.netboot", "run")
            self.thread.forward(listener, "127.0.0.1", self.port)
        else:
            self._run("netboot", config, "mozpool.cli.netboot", "prepare")
            listener.close()
        self._wait_for_server(self._start_program("server", config, "mozpool.cli.server"), self.client)

    def _start_boards(self) -> None:
        for number, name in enumerate(self.names, start=1):
            disk = self.directory / f"{name}.img"
            shutil.copyfile(self.builds.preseed, disk)
            netdev = self.network.netdev(number, self.directory / "tftp")
            console = self.logs / f"{name}.log"
            self.boards[name] = VirtualBoard(name, _mac(number), disk, netdev, console)
        self.relay_board = RelayBoard(
            self.network.relay_address, free_port(), rng=random.Random(1), on_change=self._relay_changed
        )
        self._exit.callback(lambda: self.thread.do(self._cut_all))
        self.thread.run(self.relay_board.start())
        self._exit.callback(lambda: self.thread.run(self.relay_board.close()))

    def _relay_changed(self, bank: int, relay: int, on: bool) -> None:
        number = 8 * (bank - 1) + relay
        if number <= len(self.names):
            self.boards[self.names[number - 1]].set_power(not on)  # wired to the normally-closed side

    def _cut_all(self) -> None:
        for board in self.boards.values():
            board.stop()

    def _write_config(self, file: Path, **different: object) -> None:
        """Write a server's configuration file; ``different`` replaces what usually stands in it."""
        values = {
            "engine": self._database_url or f"sqlite:///{self.directory}/mozpool.sqlite",
            "fqdn": "127.0.0.1",
            "ipaddress": self.network.server,
            "server": "",
            "tftp_root": self.directory / "tftp",
            "images": self.builds.directory,
            "mode": "dhcp",
            "boot_loader": self._boot_loader,
            "device_events": self._device_events,
            "run_dnsmasq": "false",
            "interface": "br0",
            "timeouts": "".join(f"{name} = {seconds:g}\n" for name, seconds in self._timeouts.items()),
        } | different
        file.write_text(CONFIG.format(**values))

    def _open_database(self, settings: Settings) -> None:
        self.settings = settings
        self.database = Database.of(settings.database, clock=Clock())
        self._exit.callback(self.database.dispose)
        if schema.current(self.database) is None:
            schema.create(self.database)

    def _fill_database(self) -> None:
        """Fill in the database as an operator does: the devices are those of the server with ``self.settings``."""
        settings = self.settings
        token = "mozpool-token=%TOKEN% " if self._device_events == "token" else ""
        with self.database.begin() as conn:
            images.ensure_imaging_server(conn, settings.server.fqdn)
            catalogue.add_hardware_type(conn, *HARDWARE, {}, registry())
            for image in IMAGES:
                more = " selftest-config=%URL%/scripts/hardware/virtual.json" if image.name == "self-test" else ""
                contents = PXE_CONFIG.format(token=token, stage=f"scripts/{image.name}-second-stage.sh", more=more)
                catalogue.add_image(conn, image)
                catalogue.add_pxe_config(conn, image.name, f"{image.name}, for the lab", contents, active=True)
                catalogue.assign(conn, catalogue.assignment(conn, image.name, image.name, *HARDWARE))
            for number, name in enumerate(self.names, start=1):
                bank, relay = divmod(number - 1, 8)
                place = f"{self.relay_board.name}:bank{bank + 1}:relay{relay + 1}"
                new = newdevice.NewDevice(
                    name,
                    _mac(number),
                    address=self.network.address(number),
                    hardware_type=HARDWARE[0],
                    hardware_model=HARDWARE[1],
                    relay_info=place,
                )
                newdevice.add(conn, new, settings, random.Random(number))
                key = devices.key_by_name(conn, name)
                assert key is not None
                devices.set_attributes(conn, key.id, state=self._state)

    def _run(self, name: str, config: Path, module: str, *arguments: str) -> None:
        with (self.logs / f"{name}.log").open("ab") as log:
            command = [sys.executable, "-m", module, *arguments]
            subprocess.run(command, env=_environment(config), stdout=log, stderr=log, timeout=START_LIMIT, check=True)

    def _start_program(self, name: str, config: Path, module: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start one of our programs in the boards' network; it ends with the rack."""
        process = start_program(self.network.prefix, config, self.logs / f"{name}.log", module, *arguments)
        self._exit.callback(end, process, STOP_LIMIT)
        return process

    def _wait_for_server(self, server: subprocess.Popen[bytes], client: Client, name: str = "server") -> None:
        give_up = time.monotonic() + START_LIMIT
        while True:
            try:
                client.version()
                return
            except ClientError:
                if server.poll() is not None or time.monotonic() > give_up:
                    raise RuntimeError(f"mozpool-server did not start:\n{self.tail(name)}") from None
                time.sleep(0.1)

    # What tests look at

    def tail(self, name: str, lines: int = 40) -> str:
        """The end of a log."""
        path = self.logs / f"{name}.log"
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else ""

    def boot_config(self, image: str) -> dict[str, str]:
        """What a request for an image needs here."""
        return self.builds.boot_config(image, self.boards_url)

    def states(self, name: str) -> list[str]:
        """All states that the device has been in, in order."""
        with self.database.read() as conn:
            key = devices.key_by_name(conn, name)
            assert key is not None
            changes = history.latest(conn, tables.device_history, key.id, limit=1000)
        return [changes[0].from_state, *(change.to_state for change in changes)] if changes else [key.state]

    def boot_token(self, name: str) -> str | None:
        """The token of the board's boot, as long as that is under way."""
        address = _mac(self.names.index(name) + 1).replace(":", "-")
        try:
            text = (self.directory / "tftp" / "pxelinux.cfg" / f"01-{address}").read_text()
        except FileNotFoundError:
            return None
        found = re.search(r"mozpool-token=(\S+)", text)
        return found[1] if found else None

    def tell(self, name: str, event: str, token: str | None = None) -> int:
        """Send an event in the board's name, from this machine: the answer's status."""
        headers = {} if token is None else {"Mozpool-Boot-Token": token}
        return requests.get(f"{self.url}/api/device/{name}/event/{event}/", headers=headers, timeout=30).status_code

    def powered_on(self, name: str) -> list[float]:
        """When the relay board was told to give the board power, by the monotonic clock."""
        bank, relay = divmod(self.names.index(name), 8)
        return [
            entry.time
            for entry in self.relay_board.record
            if entry.action == "off" and (entry.bank, entry.relay) == (bank + 1, relay + 1)
        ]

    def seconds_to_agent(self, name: str, limit: float) -> float:
        """Cut the board's power and restore it, past Mozpool, and measure the time until its agent answers.

        Raises TimeoutError.
        """
        board = self.boards[name]
        self.thread.do(board.stop)
        self.thread.do(board.start)
        address = self.network.address(self.names.index(name) + 1)
        while (passed := time.monotonic() - board.powered_at) < limit:
            if self.thread.do(lambda: _has_prompt(address)):
                return time.monotonic() - board.powered_at
            time.sleep(0.05)
        raise TimeoutError(f"no agent on {name} after {passed:.0f} s")

    def kill(self, name: str) -> None:
        """End the board's machine as a crash would: power is there, but nothing runs."""
        pid = self.boards[name].pid
        if pid is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def ssh(self, name: str, key: Path, *command: str) -> Sequence[str]:
        """The command that runs ``command`` on a board in maintenance, logged in by ``key``."""
        number = self.names.index(name) + 1
        options = ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "BatchMode=yes", "ConnectTimeout=20")
        return [
            *self.network.prefix,
            *("ssh", "-i", str(key), "-p", str(self.network.ssh_port(number)), "-o", "LogLevel=ERROR"),
            *(word for option in options for word in ("-o", option)),
            f"root@{self.network.address(number)}",
            *command,
        ]


def start_program(
    prefix: Sequence[str], config: Path, log: Path, module: str, *arguments: str
) -> subprocess.Popen[bytes]:
    """Start one of our programs behind ``prefix``; what it says goes to the end of a log."""
    with log.open("ab") as output:
        return subprocess.Popen(
            [*DIES_WITH_US, *prefix, sys.executable, "-m", module, *arguments],
            env=_environment(config),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            process_group=0,  # Ctrl-C is for us alone
        )


def _environment(config: Path) -> dict[str, str]:
    # What is killed leaves its files there.
    return {**os.environ, "PATH": PATH, "MOZPOOL_CONFIG": str(config), "RUNTIME_DIRECTORY": str(config.parent)}


def _mac(number: int) -> str:
    return f"52:54:00:99:00:{number:02x}"


def _has_prompt(address: str) -> bool:
    """Whether an agent answers at once. A forwarded port takes connections before its guest is up."""
    try:
        with socket.create_connection((address, AGENT_PORT), timeout=1.0) as connection:
            return connection.recv(16).startswith(b"$>")
    except OSError:
        return False


__all__ = ["MARKER", "Builds", "Rack", "missing"]
