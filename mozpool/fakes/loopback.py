# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Simulated boards that other programs can talk with: ports on loopback addresses, files, calls over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

from mozpool.clock import Clock
from mozpool.fakes import httpclient
from mozpool.fakes.board import Behaviour, BoardSpec, FakeBoard
from mozpool.fakes.echo import ECHO_PORT, EchoServer
from mozpool.fakes.httpclient import Answer
from mozpool.fakes.sutagent import COMMAND_PORT, Storage, SutAgent


class LoopbackBoard(FakeBoard):
    """A board with an address of its own. ``agent.fault`` may be changed from any thread at any time."""

    def __init__(
        self,
        spec: BoardSpec,
        *,
        server_url: str,
        tftp_root: Path | None,
        behaviour: Behaviour,
        seed: str,
        clock: Clock,
        agent_port: int = COMMAND_PORT,
        echo_port: int = ECHO_PORT,
    ) -> None:
        """Describe the board; nothing is opened yet.

        ``tftp_root`` is the directory that network boots read, None for none; ``clock`` is what the agent tells
        the time by. The others are those of FakeBoard.
        """
        self.storage = Storage()
        self.agent = SutAgent(
            spec.name,
            spec.address,
            agent_port,
            storage=self.storage,
            clock=clock,
            uptime=self.uptime,
            reboot=self.reboot,
        )
        echo = EchoServer(spec.name, spec.address, echo_port, answers=self.answers_ping)
        surroundings = _Loopback(
            spec.address, echo, self.agent, None if tftp_root is None else _pxe_file(tftp_root, spec)
        )
        super().__init__(spec, surroundings, server_url=server_url, behaviour=behaviour, seed=seed)


class _Loopback:
    """The surroundings of a board with an address of its own."""

    def __init__(self, address: str, echo: EchoServer, agent: SutAgent, pxe_file: Path | None) -> None:
        self._address = address
        self._echo = echo
        self._agent = agent
        self._pxe_file = pxe_file

    async def plug_in(self) -> None:
        await self._echo.start()

    def unplug(self) -> None:
        self._echo.close()

    async def agent_up(self) -> None:
        await self._agent.start()

    def agent_down(self) -> None:
        self._agent.close()

    def wipe(self) -> None:
        self._agent.storage.wipe()

    async def read_pxe_file(self) -> str | None:
        if self._pxe_file is None:
            return None
        try:
            # In a worker thread: a directory on a slow disk must not hold up a thousand other boards.
            return await asyncio.to_thread(self._pxe_file.read_text, "utf-8", "replace")
        except OSError:
            return None

    async def get(self, url: str, headers: Mapping[str, str]) -> Answer:
        return await httpclient.get(url, headers, source=self._address)


def _pxe_file(tftp_root: Path, spec: BoardSpec) -> Path:
    mac = spec.mac_address
    return tftp_root / "pxelinux.cfg" / ("01-" + "-".join(mac[place : place + 2] for place in range(0, 12, 2)))
