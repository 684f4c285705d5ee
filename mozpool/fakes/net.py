# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""How the fakes open their sockets, so that a port that is taken is named in the error."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

from mozpool.errors import MozpoolError


class FakesError(MozpoolError):
    """The simulated hardware cannot be started as it is described; the message says what is in the way."""

    code = "fakes_error"


async def listen_tcp(what: str, factory: Callable[[], asyncio.Protocol], address: str, port: int) -> asyncio.Server:
    """Listen on ``address:port``; ``what`` names the listener in a FakesError when that can't be."""
    try:
        server = await asyncio.get_running_loop().create_server(factory, address, port, start_serving=False)
    except (OSError, OverflowError) as error:
        raise _refused(what, address, port, "tcp", error) from error
    try:
        await server.start_serving()
    except BaseException as error:  # cancelled, say: without this the port would stay open and belong to nobody
        server.close()
        if isinstance(error, OSError):
            raise _refused(what, address, port, "tcp", error) from error
        raise
    return server


async def listen_udp(
    what: str, factory: Callable[[], asyncio.DatagramProtocol], address: str, port: int
) -> asyncio.DatagramTransport:
    """Receive datagrams at ``address:port``; ``what`` names the receiver in a FakesError when that can't be."""
    try:
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(factory, (address, port))
    except (OSError, OverflowError) as error:
        raise _refused(what, address, port, "udp", error) from error
    return transport


def _refused(what: str, address: str, port: int, protocol: str, error: OSError | OverflowError) -> FakesError:
    # asyncio wraps the reason in a sentence of its own that repeats the address.
    number = getattr(error, "errno", None)
    reason = os.strerror(number).lower() if isinstance(number, int) and number > 0 else str(error)
    return FakesError(f"{what} can't listen on {address}:{port} ({protocol}): {reason}")
