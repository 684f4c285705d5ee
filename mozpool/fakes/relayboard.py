# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""A ProXR relay board as a TCP server, with the habits of real ones (wire facts: ProXR relay boards).

The board answers one TCP connection at a time. A client that connects meanwhile is left hanging: it gets
its turn when the one before has gone and the board has recovered, about a second later.
Everything happens in the event loop's thread; what other threads may call says so.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from enum import StrEnum
from typing import Literal, NamedTuple, cast

from mozpool.fakes.net import listen_tcp

COMMAND = 254
"""Starts every command."""
TEST = 33
FIRST_OFF, FIRST_ON, FIRST_READ = 100, 108, 116
OK = 85
RELAYS = 8
"""Relays of a bank."""

_MOST_UNREAD = 4096
"""Bytes that are kept of a client that has to wait; the network module's buffer is no larger."""
_MOST_RECORDS = 10_000


class RelayFault(StrEnum):
    """Ways in which a relay board misbehaves until it is told otherwise."""

    HANG = "hang"
    """Accepts connections, does nothing and never answers."""
    REFUSE = "refuse"
    """Refuses connections, as when its network module is off."""
    GARBAGE = "garbage"
    """Does what it is told but answers bytes that mean nothing."""
    HALF_ANSWER = "half answer"
    """Does and answers the first command of a connection, then hangs."""
    EARLY_CLOSE = "early close"
    """Does what it is told, then closes the connection instead of answering."""
    WRONG_READ_BACK = "wrong read-back"
    """Reads every relay as the opposite of what it is."""


RelayAction = Literal["connect", "disconnect", "test", "off", "on", "read"]


class RelayRecord(NamedTuple):
    """Something that happened to a relay board."""

    time: float
    """On the event loop's clock, which is monotonic; in seconds."""
    peer: str
    """``HOST:PORT`` of the client."""
    bank: int | None
    relay: int | None
    """Both count from 1, and are None for what concerns no relay."""
    action: RelayAction
    """``off`` and ``on`` speak of the relay: off gives a device its power."""


class RelayBoard:
    """One relay board with up to four banks of eight relays, all off (devices powered) at the start."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        rng: random.Random,
        recovery: float = 1.0,
        banks: int = 4,
        on_change: Callable[[int, int, bool], None] | None = None,
    ) -> None:
        """Describe the board; nothing is opened yet.

        ``recovery`` is the time in seconds that the board needs after a disconnect before it answers the next client.
        ``on_change`` is called with bank, relay and whether the relay is now on, in the loop's thread, whenever
        a relay moves; it must return at once.
        """
        self.host = host
        self.port = port
        self._rng = rng
        self._recovery = recovery
        self._banks = banks
        self._on_change = on_change
        self._relays_on: set[tuple[int, int]] = set()
        self._fault: RelayFault | None = None
        self._record: list[RelayRecord] = []
        self._server: asyncio.Server | None = None
        self._line: _Line | None = None
        self._waiting: list[_Line] = []
        self._recovering: asyncio.TimerHandle | None = None

    @property
    def name(self) -> str:
        """``HOST:PORT``."""
        return f"{self.host}:{self.port}"

    @property
    def record(self) -> list[RelayRecord]:
        """Who connected and did what, oldest first (the last several thousand). Safe from any thread."""
        return self._record[:]

    @property
    def fault(self) -> RelayFault | None:
        """What is wrong with the board at the moment."""
        return self._fault

    def relay_is_on(self, bank: int, relay: int) -> bool:
        """Whether this relay is on, i.e. its device without power. Safe from any thread."""
        return (bank, relay) in self._relays_on

    async def start(self) -> None:
        """Open the port. Raises FakesError when that can't be."""
        self._loop = asyncio.get_running_loop()
        await self._listen()

    async def close(self) -> None:
        """Close the port and all connections; relays stay as they are."""
        self._stop_listening()

    async def set_fault(self, fault: RelayFault | None) -> None:
        """From now on the board misbehaves in this way; None makes it healthy again.

        Raises FakesError when a board that refused connections can't get its port back.
        """
        before, self._fault = self._fault, fault
        if fault is RelayFault.REFUSE:
            self._stop_listening()
        elif before is RelayFault.REFUSE:
            await self._listen()

    async def _listen(self) -> None:
        self._server = await listen_tcp("the fake relay board", lambda: _Line(self), self.host, self.port)

    def _stop_listening(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for line in [self._line, *self._waiting]:
            if line is not None:
                line.transport.abort()
        if self._recovering is not None:
            self._recovering.cancel()
            self._recovering = None

    # What connections tell.

    def arrived(self, line: _Line) -> None:
        """A client has connected."""
        self._note(line, "connect")
        if self._server is None:
            line.transport.abort()
        self._waiting.append(line)
        self._next_line()

    def left(self, line: _Line) -> None:
        """A client has gone."""
        self._note(line, "disconnect")
        if line is not self._line:
            self._waiting.remove(line)
            return
        self._line = None
        if self._server is not None:
            self._recovering = self._loop.call_later(self._recovery, self._recovered)

    def _recovered(self) -> None:
        self._recovering = None
        self._next_line()

    def _next_line(self) -> None:
        if self._line is None and self._recovering is None and self._waiting:
            self._line = self._waiting.pop(0)
            self.work(self._line)

    def work(self, line: _Line) -> None:
        """Do the commands that have arrived on this connection, when it is the one that is being served."""
        if line is not self._line:
            del line.received[_MOST_UNREAD:]
            return
        while (command := _take_command(line.received)) is not None:
            self._obey(line, *command)

    def _obey(self, line: _Line, code: int, bank: int) -> None:
        if self._fault is RelayFault.HANG or (self._fault is RelayFault.HALF_ANSWER and line.answered):
            return
        answer = OK
        if code == TEST:
            self._note(line, "test")
        elif not 1 <= bank <= self._banks:
            return  # no such bank: nothing happens, not even an answer
        elif code >= FIRST_READ:
            relay = code - FIRST_READ + 1
            self._note(line, "read", bank, relay)
            answer = int(self.relay_is_on(bank, relay) is not (self._fault is RelayFault.WRONG_READ_BACK))
        else:
            on = code >= FIRST_ON
            relay = code - (FIRST_ON if on else FIRST_OFF) + 1
            self._note(line, "on" if on else "off", bank, relay)
            self._turn(bank, relay, on)
        if self._fault is RelayFault.EARLY_CLOSE:
            line.received.clear()
            line.transport.abort()
            return
        if self._fault is RelayFault.GARBAGE:
            answer = self._rng.choice([byte for byte in range(2, 256) if byte != OK])
        line.answered = True
        line.transport.write(bytes([answer]))

    def _turn(self, bank: int, relay: int, on: bool) -> None:
        if on is self.relay_is_on(bank, relay):
            return
        if on:
            self._relays_on.add((bank, relay))
        else:
            self._relays_on.remove((bank, relay))
        if self._on_change is not None:
            self._on_change(bank, relay, on)

    def _note(self, line: _Line, action: RelayAction, bank: int | None = None, relay: int | None = None) -> None:
        self._record.append(RelayRecord(self._loop.time(), line.peer, bank, relay, action))
        if len(self._record) > _MOST_RECORDS:
            del self._record[: _MOST_RECORDS // 2]


class _Line(asyncio.Protocol):
    """One client's connection."""

    transport: asyncio.Transport

    def __init__(self, board: RelayBoard) -> None:
        self._board = board
        self.received = bytearray()
        self.peer = "?"
        self.answered = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        peer = transport.get_extra_info("peername")
        if peer:  # None where the client has gone already
            self.peer = f"{peer[0]}:{peer[1]}"
        self._board.arrived(self)

    def data_received(self, data: bytes) -> None:
        self.received += data
        self._board.work(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._board.left(self)


def _take_command(received: bytearray) -> tuple[int, int] | None:
    """Remove one whole command from the front and return its code and bank (0 where it has none).

    None when no whole command is there yet. Like the hardware, bytes that start no command are skipped.
    """
    while True:
        start = received.find(COMMAND)
        if start < 0:
            received.clear()
            return None
        del received[:start]
        if len(received) < 2:
            return None
        code = received[1]
        if code == TEST:
            del received[:2]
            return code, 0
        if not FIRST_OFF <= code < FIRST_READ + RELAYS:
            del received[:1]  # not a command after all; what follows may be one
            continue
        if len(received) < 3:
            return None
        bank = received[2]
        del received[:3]
        return code, bank
