# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""From a return to the next waiter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

from tests.bench import load
from tests.bench.figures import Figure
from tests.bench.grid import sound, stock
from tests.bench.pools import pools
from tests.bench.scale import Scale

TITLE = "Hand-off to the next waiter"

TEXT = """\
All devices are held, and one request waits in the queue; its client long-polls (`GET
/api/request/ID/status/?wait=30&state=finding_device`). *Hand-off*: from sending the return of a held device to the
answer of the long poll, which names this device for the waiting request. It includes the return call, the release and
the claim, each durable. On two servers, the waiting request was made on the other one, of the same pool and database;
the device belongs to the first. A waiter comes when the device of the one before is ready: one hand-off at a time."""


def run(scale: Scale) -> Iterator[Figure]:
    """Hand-offs on one server and across two."""
    devices, rounds = (4, 4) if scale.short else (100, 150)
    with pools(scale) as made:
        for kind in made.kinds:
            # Two servers over SQLite would be two processes that write to one file: they are not meant to.
            for servers in (1, 2) if kind == "mariadb" else (1,):
                with made.pool(kind) as pool, ExitStack() as stack:
                    stock(pool, devices)
                    url = stack.enter_context(pool.daemon()).url
                    other = stack.enter_context(pool.beside().daemon()).url if servers == 2 else url
                    load.hand_offs(url, other, 2)
                    results = [sound(load.hand_offs(url, other, rounds)) for _ in range(scale.runs)]
                parameters: dict[str, str | int] = {"database": kind, "devices": devices, "servers": servers}
                for title, share in (("p50", 0.5), ("p99", 0.99)):
                    values = tuple(result.quantile("hand-off", share) for result in results)
                    yield Figure("c", "mozpool", f"hand-off: {title}", "ms", values, parameters)
