# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The list of devices, by the API."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator
from datetime import timedelta

import requests
from sqlalchemy import insert, select, update

from mozpool.clock import Clock
from mozpool.db import tables
from mozpool.db.engine import Database
from tests.bench.figures import Figure
from tests.bench.filling import fill
from tests.bench.pools import Daemon, pools
from tests.bench.scale import Scale
from tests.bench.trial import trial

TITLE = "Device list with details"

TEXT = """\
`GET /api/device/list/?details=1` over a kept connection, from sending the call to the last byte of the answer, which is
not parsed. Each device has two labels, every seventh is lent, and ready devices are re-checked in the background, each
every 10 minutes (by a probe that answers at once).

- *whole after a change*: a device's comments were changed just before, so that the list is made anew;
- *whole*: nothing changed that the list shows;
- *whole, cached*: with `cache`, which may be up to a second old; the calls are spread over several seconds;
- *page of 100*: with `limit=100`, after a change;
- *unchanged*: with the `If-None-Match` of the answer before; 304 without a body. *polled*: the same, once in 1.2 s, so
  that no answer is shared with a call before.

The server's own processor time a call is given beside the time that the client waits for it: what else runs on the
machine does not change it much."""

LIST = "/api/device/list/?details=1"


def colour(database: Database, server: str, devices: int) -> None:
    """A pool that is used: labels, lent devices; the others are re-checked every 10 minutes."""
    rng, now = random.Random(2), Clock().now()
    with database.begin() as conn:
        fill(conn, server, devices)
        conn.execute(update(tables.devices).values(state_since=now - timedelta(hours=3)))
        ids = list(conn.scalars(select(tables.devices.c.id).order_by(tables.devices.c.id)))
        conn.execute(
            insert(tables.device_labels),
            [
                {"device_id": device_id, "name": name, "value": value}
                for device_id in ids
                for name, value in (("rack", str(device_id % 40)), ("pool", rng.choice("ab")))
            ],
        )
        server_id = conn.scalar(select(tables.devices.c.imaging_server_id).limit(1))
        lent = [device_id for device_id in ids if device_id % 7 == 1]
        request = {
            "imaging_server_id": server_id,
            "requested_device": "any",
            "state": "ready",
            "state_counters": "{}",
            "expires": now + timedelta(days=1),
            "image_id": 1,
            "boot_config": "{}",
        }
        numbered = list(enumerate(lent, start=1))
        conn.execute(
            insert(tables.requests),
            [{**request, "id": number, "assignee": f"person{number % 50}@example.com"} for number, _ in numbered],
        )
        claims = [{"id": number, "request_id": number, "device_id": device_id} for number, device_id in numbered]
        conn.execute(insert(tables.device_requests), claims)
        history = [
            {"id": number, "request_id": number, "device_id": device_id, "claimed_at": now}
            for number, device_id in numbered
        ]
        conn.execute(insert(tables.claim_history), history)
        for number, device_id in numbered:
            conn.execute(update(tables.devices).where(tables.devices.c.id == device_id).values(claim_id=number))


class Caller:
    """Calls the server, and notes how long each kind of call took, and what it cost the server."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._session = requests.Session()

    def get(self, query: str = "", etag: str = "") -> tuple[int, str, int]:
        """Status, ETag and length of an answer."""
        headers = {"If-None-Match": etag} if etag else {}
        said = self._session.get(self._daemon.url + LIST + query, headers=headers, timeout=300)
        return said.status_code, said.headers.get("ETag", ""), len(said.content)

    def change(self) -> None:
        """Change something that the list shows."""
        path = "/api/device/device2/set-comments/"
        self._session.post(self._daemon.url + path, json={"comments": f"{time.monotonic()}"}, timeout=60)

    def measure(
        self, call: Callable[[], int], *, status: int, times: int, before: Callable[[], object] = lambda: None
    ) -> tuple[float, float]:
        """Median of the milliseconds that ``call`` takes, and the server's own a call; ``before`` is not counted."""
        waited, used = [], 0.0
        for _ in range(times):
            before()
            cost, begun = self._daemon.cost().own, time.perf_counter()
            found = call()
            waited.append((time.perf_counter() - begun) * 1000)
            used += self._daemon.cost().own - cost
            if found != status:
                raise AssertionError(f"answered {found} where {status} was expected")
        return statistics.median(waited), used / times * 1000


def one_run(daemon: Daemon, times: int) -> dict[str, tuple[float, float]]:
    """Kind of call → milliseconds waited, milliseconds of the server's processor."""
    caller = Caller(daemon)

    def whole(query: str = "") -> Callable[[], int]:
        return lambda: caller.get(query)[0]

    found = {
        "whole after a change": caller.measure(whole(), status=200, times=times, before=caller.change),
        "whole": caller.measure(whole(), status=200, times=times),
        "page of 100": caller.measure(whole("&limit=100"), status=200, times=times, before=caller.change),
    }
    whole("&cache=1")()
    pause = min(0.3, 6 / times)
    found["whole, cached"] = caller.measure(
        whole("&cache=1"), status=200, times=times, before=lambda: time.sleep(pause)
    )
    etag = caller.get()[1]
    found["unchanged"] = caller.measure(lambda: caller.get("", etag)[0], status=304, times=times)
    found["unchanged, polled"] = caller.measure(
        lambda: caller.get("", etag)[0], status=304, times=max(2, times // 4), before=lambda: time.sleep(1.2)
    )
    return found


def run(scale: Scale) -> Iterator[Figure]:
    """Each size over each database."""
    with pools(scale) as made:
        for kind in made.kinds:
            for devices in (50,) if scale.short else (500, 5000, 50000):
                with made.pool(kind) as pool:
                    pool.make(lambda database, server, devices=devices: colour(database, server, devices))  # type: ignore[misc]
                    with pool.daemon() as daemon:
                        times = 3 if scale.short else 20 if devices < 50000 else 7
                        Caller(daemon).get()  # connections and statements are warm
                        results = [one_run(daemon, times) for _ in range(scale.runs)]
                parameters: dict[str, str | int] = {"database": kind, "devices": devices}
                for name in results[0]:
                    for index, measure in enumerate((name, f"{name}: server's processor time")):
                        values = tuple(result[name][index] for result in results)
                        yield Figure("d", "mozpool", measure, "ms", values, parameters)


if __name__ == "__main__":
    trial(TITLE, run)
