# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""A board that is a virtual machine: no power is no process.

It boots from the network first and from its own disk when nothing there wants it, as its BIOS is told.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

QEMU = "qemu-system-x86_64"
MEMORY = 128
"""MiB of a board; the live image keeps what it downloads in memory."""

DIES_WITH_US = ("setpriv", "--pdeathsig", "KILL", "--")
"""Put before a command: the kernel ends it when the thread that started it has gone, however that went."""


def accelerators() -> tuple[str, ...]:
    """QEMU's arguments for the fastest way to run a board here; ``LAB_ACCEL`` (kvm or tcg) says which one to take.

    /dev/kvm alone proves nothing: in some virtual machines it is there and fails at the boot loader's first
    instructions. What can run a boot loader has a processor that says so.
    """
    emulation = ("-accel", "tcg,tb-size=32")
    wanted = os.environ.get("LAB_ACCEL")
    if wanted is None and os.access("/dev/kvm", os.R_OK | os.W_OK):
        flags = set(re.findall(r"\b(?:vmx|svm)\b", Path("/proc/cpuinfo").read_text()))
        wanted = "kvm" if flags else "tcg"
    return ("-accel", "kvm", *emulation) if wanted == "kvm" else emulation


class VirtualBoard:
    """One machine. Started and stopped from one thread, which must outlive it; safe to look at from others."""

    def __init__(self, name: str, mac: str, disk: Path, netdev: str, console: Path) -> None:
        """Describe the board; it has no power yet.

        ``mac`` has colons, ``netdev`` is QEMU's description of the network's side, without its id, and ``console``
        gets what the machine prints.
        """
        self.name = name
        self.mac = mac
        self.disk = disk
        self.console = console
        self.powered_at = 0.0
        """When the power came on the last time, by the monotonic clock."""
        self.boots = 0
        self._netdev = netdev
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        """Whether the machine runs; one may have power and not run, after it switched itself off."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """The machine's process, None without power."""
        return None if self._process is None else self._process.pid

    def command(self) -> Sequence[str]:
        """The command that is the machine. What stands before QEMU replaces itself by it, so the process is QEMU's."""
        return [
            *DIES_WITH_US,
            *("nice", "-n", "10", QEMU),
            *("-name", self.name, "-machine", "pc,graphics=off", *accelerators()),
            *("-cpu", "qemu64", "-smp", "1", "-m", str(MEMORY)),
            *("-nodefaults", "-display", "none", "-vga", "none"),
            *("-chardev", f"file,id=console,path={self.console},append=on", "-serial", "chardev:console"),
            *("-netdev", f"{self._netdev},id=net"),
            *("-device", f"virtio-net-pci,netdev=net,mac={self.mac},bootindex=0"),
            *("-drive", f"if=none,id=disk,file={self.disk},format=raw,cache=unsafe"),
            *("-device", "virtio-blk-pci,drive=disk,bootindex=1"),
            *("-object", "rng-random,id=rng,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=rng"),
        ]

    def set_power(self, on: bool) -> None:
        """Give the board power, or take it."""
        if on:
            self.start()
        else:
            self.stop()

    def start(self) -> None:
        """Switch the machine on."""
        if self.running:
            return
        self.stop()  # one that ended by itself leaves its process to be collected
        self.boots += 1
        self.powered_at = time.monotonic()
        with self.console.open("ab") as log:
            log.write(f"\n--- {self.name}: power on, the {self.boots}. time\n".encode())
            log.flush()
            # What QEMU itself has to say stands in the same file.
            self._process = subprocess.Popen(
                self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0
            )

    def stop(self) -> None:
        """Cut the power: the machine's process is killed, whatever it does, and has gone on return."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def said(self) -> str:
        """All that the machine printed so far."""
        return self.console.read_text(errors="replace") if self.console.exists() else ""
