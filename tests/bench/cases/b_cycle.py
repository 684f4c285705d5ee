# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The whole cycle of a device."""

from __future__ import annotations

from collections.abc import Iterator

from tests.bench.figures import Figure
from tests.bench.grid import measure
from tests.bench.scale import Scale

TITLE = "Whole cycle"

TEXT = """\
Each client requests any device, waits until it is ready by long polls (`GET /api/request/ID/status/?wait=30`), returns
it, and asks for the device's state until it is free again. The server power-cycles the device in between and proves
that it runs, by boards that answer at once. *Until ready*: from sending the request to the answer that says ready;
*whole cycle*: from there to the answer that says that the device is free. Every step is durable: the request, the
claim, each change of the device's state and of the request's, with its history, and the release."""


def run(scale: Scale) -> Iterator[Figure]:
    """Rate and latency for each size of the pool and each number of clients."""
    latencies = {"ready": "until ready", "cycle": "whole cycle"}
    yield from measure(scale, "b", "cycle", operations=("cycle", "whole cycles"), latencies=latencies)
