# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Peers that are parts of the product and of its lab: what is simulated must get along with every backend, too.

Each is a context manager and ends what it has started.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from mozpool.clock import Clock
from mozpool.fakes.relayboard import RelayBoard, RelayFault
from mozpool.fakes.sutagent import AgentFault, Storage, SutAgent
from tests.lab.guest import AGENT
from tests.processes import free_port

PATIENCE = 60.0


class _InLoop:
    """Something that lives in an event loop, in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=type(self).__name__)

    def __enter__(self):
        self._thread.start()
        self.do(self.start())
        return self

    def __exit__(self, *_: object) -> None:
        self.do(self.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        self._loop.close()

    def do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE)

    async def start(self) -> None:
        raise NotImplementedError

    async def stop(self) -> None:
        raise NotImplementedError


class FakeRelayBoard(_InLoop):
    """The simulation's relay board. It recovers within a fiftieth of a second."""

    def __init__(self, fault: RelayFault | None = None) -> None:
        super().__init__()
        self.port = free_port()
        self.board = RelayBoard("127.0.0.1", self.port, rng=random.Random(self.port), recovery=1 / 50)
        self._fault = fault

    def has_power(self, bank: int, relay: int) -> bool:
        """Whether the device on this relay has power."""
        return not self.board.relay_is_on(bank, relay)

    async def start(self) -> None:
        await self.board.start()
        await self.board.set_fault(self._fault)

    async def stop(self) -> None:
        await self.board.close()
        await asyncio.sleep(0)  # so that the connections have noticed


class FakeAgent(_InLoop):
    """The simulation's agent, of a device that is up for 321.5 seconds."""

    def __init__(self, fault: AgentFault | None = None) -> None:
        super().__init__()
        self.port = free_port()
        self.reboots = 0
        self.storage = Storage()
        self.agent = SutAgent(
            "panda-0001",
            "127.0.0.1",
            self.port,
            storage=self.storage,
            clock=Clock(),
            uptime=lambda: 321.5,
            reboot=self._reboot,
        )
        self.agent.fault = fault

    async def start(self) -> None:
        await self.agent.start()

    async def stop(self) -> None:
        self.agent.close()
        await asyncio.sleep(0)  # so that the connections have noticed

    def _reboot(self) -> None:
        self.reboots += 1


class LabAgent:
    """The agent of the lab's boards, which runs here as it does there. What it does for a reboot is to count it."""

    def __init__(self, directory: Path, *, root: Path | None = None, says_first: str = "") -> None:
        """``root`` is where clients may write; with ``says_first`` the agent does not begin with its prompt."""
        if shutil.which("busybox") is None:
            pytest.skip("busybox is not installed (Debian package busybox-static)")
        self.port = free_port()
        directory.mkdir(exist_ok=True)
        self.root = directory / "root" if root is None else root
        if root is None:
            self.root.mkdir()
        self._reboots = directory / "reboots"
        version = directory / "version"
        version.write_text("raw-7\n")
        before, real, after = (AGENT / "sutagent").read_text().partition("            sync\n            reboot -f\n")
        assert real, "this agent would reboot the machine"
        program = directory / "sutagent"
        program.write_text(f"{before}            echo >>'{self._reboots}'\n            exit\n{after}")
        program.chmod(0o755)
        if says_first:
            (directory / "rude").write_text(f"#!/bin/sh\nprintf '{says_first}'\nexec '{program}'\n")
            program = directory / "rude"
            program.chmod(0o755)
        self._command = ["busybox", "nc", "-ll", "-p", str(self.port), "-e", str(program)]
        self._environment = {"SUT_ROOT": str(self.root), "SUT_VERSION": str(version), "PATH": "/usr/bin:/bin"}

    def __enter__(self) -> LabAgent:
        self.process = subprocess.Popen(self._command, env=self._environment, process_group=0)
        give_up = time.monotonic() + PATIENCE
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=5).close()
                return self
            except ConnectionRefusedError:
                assert self.process.poll() is None
                assert time.monotonic() < give_up
                time.sleep(0.02)

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def reboots(self) -> int:
        """How often it was told to reboot. It obeys after it has closed the connection, so there may be a moment."""
        give_up = time.monotonic() + PATIENCE
        # The file is there before the line in it.
        while not (told := self._told()) and time.monotonic() < give_up:
            time.sleep(0.02)
        return told

    def _told(self) -> int:
        return len(self._reboots.read_text().splitlines()) if self._reboots.exists() else 0
