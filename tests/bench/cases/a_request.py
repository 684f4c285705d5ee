# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The request call, with the claim."""

from __future__ import annotations

from collections.abc import Iterator

from tests.bench.figures import Figure
from tests.bench.grid import measure
from tests.bench.scale import Scale

TITLE = "Request and return"

TEXT = """\
Each client asks for any device with an image (`POST /api/device/any/request/?wait=60`) and returns it at once (`POST
/api/request/ID/return/`), again and again, over one kept connection. *Request call*: from sending the call to its
answer, which names the device: the request is stored, a device found, and the claim stored, each durably. With more
clients than devices it includes the wait for a device. *Claims and returns* are counted when the return is answered.
Behind them, the server power-cycles each claimed device and sees that it runs, which boards here do in no time.

Server, database and load generator share the processors; the share of a core that each used is given."""


def run(scale: Scale) -> Iterator[Figure]:
    """Rate and latency for each size of the pool and each number of clients."""
    yield from measure(
        scale, "a", "claim", operations=("claim and return", "claims and returns"), latencies={"claim": "request call"}
    )
