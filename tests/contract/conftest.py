# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What the contract suites share: peers that end with their test, and what backends are built with."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TypeVar

import pytest

from mozpool.bmm.interfaces import BackendContext
from mozpool.clock import Clock, Deadline
from tests.contract.peers import Peer
from tests.contract.real_peers import AdbDevice, AdbServer, PDUDaemon, RedfishEmulator

P = TypeVar("P", bound=Peer)


class RecordingClock(Clock):
    """The real clock, which also remembers how long it was asked to sleep."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        if seconds > 0:
            self.slept.append(seconds)
        super().sleep(seconds)


@pytest.fixture
def start() -> Iterator[Callable[[P], P]]:
    """Start a peer and stop it at the end of the test."""
    with ExitStack() as stack:
        yield stack.enter_context


@pytest.fixture
def clock() -> RecordingClock:
    return RecordingClock()


@pytest.fixture
def context(clock: RecordingClock) -> BackendContext:
    """Pauses are a fiftieth of the real ones."""
    return BackendContext(clock, tftp_root=None, speed=50)


@pytest.fixture
def seconds(clock: RecordingClock) -> Callable[[float], Deadline]:
    """A deadline so many seconds from now."""
    return lambda amount: Deadline(clock, amount)


@pytest.fixture
def closed_port() -> int:
    """A port of 127.0.0.1 on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@pytest.fixture(scope="session")
def pdudaemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PDUDaemon]:
    """The real pdudaemon."""
    with PDUDaemon(tmp_path_factory.mktemp("pdudaemon")).run() as daemon:
        yield daemon


@pytest.fixture(scope="session")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedfishEmulator]:
    """OpenStack's Redfish emulator."""
    with RedfishEmulator(tmp_path_factory.mktemp("redfish")).run() as emulator:
        yield emulator


@pytest.fixture(scope="session")
def adb_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AdbServer]:
    """The real adb server."""
    with AdbServer(tmp_path_factory.mktemp("adb")).run() as server:
        yield server


@pytest.fixture
def adb_device() -> Iterator[AdbDevice]:
    """A fake device that the adb server can connect to."""
    with AdbDevice() as device:
        yield device
