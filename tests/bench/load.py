# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The load generator: one process, a kept connection for each client, latencies measured at the client."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from tests.bench.wire import Broken, Connection

BODY = {"assignee": "bench@example.com", "duration": 3600, "image": "android"}


@dataclass
class Result:
    """What one run measured. Times in milliseconds."""

    seconds: float = 0.0
    times: dict[str, list[float]] = field(default_factory=dict)
    errors: int = 0
    doubles: int = 0
    """Devices that two requests named at a time."""
    own: float = 0.0
    """Per cent of a core that the load generator itself used."""

    def add(self, name: str, milliseconds: float) -> None:
        """Note one duration."""
        self.times.setdefault(name, []).append(milliseconds)

    def quantile(self, name: str, share: float) -> float:
        """A quantile of the durations noted under ``name``; NaN when there are none."""
        values = sorted(self.times.get(name, ()))
        return values[min(len(values) - 1, int(len(values) * share))] if values else float("nan")

    def rate(self, name: str) -> float:
        """How many a second."""
        return len(self.times.get(name, ())) / self.seconds if self.seconds else 0.0


class Client:
    """One client of a pool, with a connection of its own."""

    def __init__(self, url: str, result: Result, held: set[str]) -> None:
        """``held`` are the devices that clients hold; all clients of a pool share it, and ``result``."""
        self._connection = Connection(url)
        self._result = result
        self._held = held

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    async def call(self, method: str, path: str, body: Any = None) -> Any:
        """One call, and what is in its answer; None in one without a body or with an error, which is counted."""
        status, said = await self._connection.call(method, path, body)
        if status not in (200, 204, 409):
            self._result.errors += 1
            return None
        return json.loads(said) if said else None

    async def request(self, wait: str = "") -> dict[str, Any]:
        """Ask for any device; the request."""
        answer = await self.call("POST", f"/api/device/any/request/{wait}", BODY)
        found: dict[str, Any] = answer["request"] if answer else {"id": 0, "assigned_device": ""}
        return found

    async def until_ready(self, request_id: int) -> bool:
        """Long-poll a request until it is ready or has ended; whether it is ready."""
        state = "finding_device"
        while state not in ("ready", "closed") and not state.startswith("failed"):
            answer = await self.call("GET", f"/api/request/{request_id}/status/?wait=30&state={state}")
            state = answer["state"] if answer else "failed"
        return state == "ready"

    async def until_free(self, device: str) -> None:
        """Ask for a device's state until it is free, or somebody else has it."""
        while device not in self._held:
            answer = await self.call("GET", f"/api/device/{device}/state/")
            if not answer or answer["state"] == "ready":
                return
            await asyncio.sleep(0.002)

    async def give_back(self, request_id: int) -> None:
        """Return a request."""
        await self.call("POST", f"/api/request/{request_id}/return/", {})

    def _take(self, device: str) -> None:
        """A request names a device: nobody else may have it until just before its return is sent."""
        self._result.doubles += device in self._held
        self._held.add(device)

    async def claim(self) -> None:
        """Request, with the claim; return."""
        begun = time.perf_counter()
        request = await self.request("?wait=60")
        asked = time.perf_counter()
        device = request["assigned_device"]
        if device:
            self._take(device)
            self._result.add("claim", (asked - begun) * 1000)
            self._held.discard(device)
        else:
            self._result.errors += 1
        await self.give_back(request["id"])
        self._result.add("claim and return", (time.perf_counter() - begun) * 1000)

    async def cycle(self) -> None:
        """Request, wait until ready, return, see that the device is free."""
        begun = time.perf_counter()
        request = await self.request("?wait=60")
        device = request["assigned_device"]
        self._take(device)
        if not await self.until_ready(request["id"]):
            self._result.errors += 1
        self._result.add("ready", (time.perf_counter() - begun) * 1000)
        self._held.discard(device)
        await self.give_back(request["id"])
        await self.until_free(device)
        self._result.add("cycle", (time.perf_counter() - begun) * 1000)

    async def take_all(self) -> list[int]:
        """Request devices until there are none left, and wait until all are ready; the requests."""
        taken = []
        while (request := await self.request())["assigned_device"]:
            taken.append(request["id"])
        await self.give_back(request["id"])
        for request_id in taken:
            await self.until_ready(request_id)
        return taken

    async def hand_over(self, held: int, waiter: Client, waiting: int) -> None:
        """How soon a waiting request of another client has the device that this one gives back."""
        poll = asyncio.create_task(waiter.call("GET", f"/api/request/{waiting}/status/?wait=30&state=finding_device"))
        await asyncio.sleep(0.05)
        begun = time.perf_counter()
        await self.give_back(held)
        answer = await poll
        if not answer or not answer["assigned_device"]:
            self._result.errors += 1
        self._result.add("hand-off", (time.perf_counter() - begun) * 1000)


async def _hand_offs(url: str, other: str, rounds: int) -> Result:
    """With all devices held, one waiter on ``other`` at a time: from sending the return to its answer with a device."""
    result = Result()
    with Client(url, result, set()) as holder, Client(other, result, set()) as waiter:
        held = await holder.take_all()
        begun = time.perf_counter()
        for _ in range(rounds):
            waiting = (await waiter.request())["id"]
            await holder.hand_over(held.pop(0), waiter, waiting)
            await waiter.until_ready(waiting)
            if url == other:
                held.append(waiting)
                continue
            await waiter.give_back(waiting)
            held.append((await holder.request("?wait=60"))["id"])
            await holder.until_ready(held[-1])
        result.seconds = time.perf_counter() - begun
        for request_id in held:
            await holder.give_back(request_id)
    return result


async def repeat(work: Sequence[Callable[[], Awaitable[None]]], result: Result, seconds: float) -> Result:
    """Each of ``work`` again and again, all at a time, for so many seconds; the result, with how long that took."""
    begun, used = time.perf_counter(), time.process_time()

    async def again(each: Callable[[], Awaitable[None]]) -> None:
        while time.perf_counter() - begun < seconds:
            await each()

    await asyncio.gather(*(again(each) for each in work))
    result.seconds = time.perf_counter() - begun
    result.own = (time.process_time() - used) / result.seconds * 100
    return result


def run(url: str, mode: str, clients: int, seconds: float) -> Result:
    """Put a load on a pool: ``claim`` or ``cycle`` by so many clients at a time."""

    async def main() -> Result:
        result, held = Result(), set[str]()
        with ExitStack() as stack:
            found = [stack.enter_context(Client(url, result, held)) for _ in range(clients)]
            return await repeat([each.claim if mode == "claim" else each.cycle for each in found], result, seconds)

    return asyncio.run(main())


def hand_offs(url: str, other: str, rounds: int) -> Result:
    """So many hand-offs, ``hand-off`` in the result, from a request on one server to one on ``other`` or the same."""
    return asyncio.run(_hand_offs(url, other, rounds))


def events(url: str, paths: list[str], boards: int, seconds: float) -> Result:
    """So many boards at a time, each over a new connection for each call, until the time or the paths are used up."""
    result, rest = Result(), iter(paths)

    async def tell() -> None:
        path = next(rest, None)
        if path is None:
            raise IndexError(f"{len(paths)} events are too few for {seconds} s")
        begun = time.perf_counter()
        try:
            status, _ = await Connection(url).once("GET", path)
        except (Broken, OSError):
            status = 0
        result.errors += status != 200
        result.add("event", (time.perf_counter() - begun) * 1000)

    return asyncio.run(repeat([tell for _ in range(boards)], result, seconds))


def spread(values: list[float]) -> str:
    """Median and range of several runs."""
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"
