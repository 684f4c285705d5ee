# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Pings for fake boards.

Every address in 127.0.0.0/8 answers ICMP pings, whether its board has power or not, so fake boards are asked by
UDP instead. A ping is one datagram to port 20799 of the board's address: the bytes ``mozpool-echo `` and up to 32
bytes of the sender's choice. The board sends the latter back after ``mozpool-echo-reply ``, when its network
is up; it does not answer anything else.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import Callable
from typing import cast

from mozpool.bmm.interfaces import BackendContext, Probe, Target
from mozpool.clock import Deadline
from mozpool.errors import HardwareError
from mozpool.fakes.net import listen_udp

ECHO_PORT = 20799
PING = b"mozpool-echo "
REPLY = b"mozpool-echo-reply "
_LONGEST_TOKEN = 32
_PATIENCE = 0.5
"""Seconds that a ping waits for its answer; on loopback that is long even on a busy machine."""


class EchoServer(asyncio.DatagramProtocol):
    """Answers the pings of one board, in the event loop's thread."""

    def __init__(self, name: str, address: str, port: int, *, answers: Callable[[], bool]) -> None:
        """``answers`` is called for each ping and decides whether this one is answered."""
        self._name = name
        self._address = address
        self._port = port
        self._answers = answers
        self._transport: asyncio.DatagramTransport | None = None

    async def start(self) -> None:
        """Open the port. Raises FakesError when that can't be."""
        self._transport = await listen_udp(f"the echo of {self._name}", lambda: self, self._address, self._port)

    def close(self) -> None:
        """Close the port."""
        if self._transport is not None:
            self._transport.abort()
            self._transport = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The port is open (asyncio calls this)."""
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str | object, int]) -> None:
        """Answer what is a ping and gets an answer (asyncio calls this)."""
        token = data.removeprefix(PING)
        if self._transport is None or token == data or len(token) > _LONGEST_TOKEN:
            return
        if self._answers():
            self._transport.sendto(REPLY + token, addr)


class EchoProbe(Probe):
    """The Probe backend ``echo``, for fake boards. The option ``echo_port`` of a device names another port."""

    def __init__(self, context: BackendContext) -> None:
        """``context`` is what every backend is built with; nothing of it is needed here."""
        self._tokens = itertools.count()

    def ping(self, device: Target, deadline: Deadline) -> bool:
        """Send one datagram; return whether it was answered within half a second and before ``deadline``.

        Raises HardwareError when the device's address or port can't be used.
        """
        limit = deadline.within(_PATIENCE)
        token = b"%d" % next(self._tokens)
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as connection:
                # Connected, so that only this board's answers come in, and a closed port is known at once.
                connection.connect((device.address, int(device.options.get("echo_port", ECHO_PORT))))
                connection.send(PING + token)
                while (left := limit.remaining()) > 0:
                    connection.settimeout(left)
                    if connection.recv(1024) == REPLY + token:
                        return True
        except (TimeoutError, ConnectionRefusedError):
            return False
        except (OSError, OverflowError, ValueError) as error:
            raise HardwareError(device.name, "ping", f"{device.address}: {error}") from error
        return False
