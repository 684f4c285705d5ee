# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""How the fakes open their sockets."""

from __future__ import annotations

import asyncio

import pytest

from mozpool.fakes.net import FakesError, listen_tcp
from tests.unit.fakes_support import PORT, RELAYS


@pytest.mark.parametrize("steps", range(6))
def test_a_start_that_is_cancelled_leaves_no_open_port(steps):
    """A board's power may go in the very moment when its agent starts."""

    async def main() -> None:
        start = asyncio.create_task(listen_tcp("it", asyncio.Protocol, RELAYS, PORT))
        for _ in range(steps):
            await asyncio.sleep(0)
        start.cancel()
        (outcome,) = await asyncio.gather(start, return_exceptions=True)
        if isinstance(outcome, asyncio.Server):
            outcome.close()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(RELAYS, PORT)

    asyncio.run(main())


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_that_is_none_is_named(port):
    with pytest.raises(FakesError, match=f"it can't listen on {RELAYS}:{port}"):
        asyncio.run(listen_tcp("it", asyncio.Protocol, RELAYS, port))
