# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The load generator: one process, asyncio, keep-alive connections, latencies measured at the client."""

from __future__ import annotations

import asyncio
import statistics
import time
from dataclasses import dataclass, field
from typing import Any

import aiohttp

BODY = {"assignee": "bench@example.com", "duration": 3600, "image": "android"}


@dataclass
class Result:
    """What one run measured. Times in milliseconds."""

    seconds: float = 0.0
    times: dict[str, list[float]] = field(default_factory=dict)
    errors: int = 0
    doubles: int = 0
    """Devices that two requests named at a time."""

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


class Load:
    """Calls of one server."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self.url = url
        self.session = session
        self.result = Result()
        self._held: set[str] = set()

    async def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """One call, and its answer."""
        async with self.session.request(method, self.url + path, json=body) as answer:
            if answer.status >= 400 and answer.status != 409:
                self.result.errors += 1
            return answer.status, (await answer.json() if answer.status in (200, 409) else None)

    async def request(self, wait: str = "") -> dict[str, Any]:
        """Ask for any device."""
        _, answer = await self.call("POST", f"/api/device/any/request/{wait}", BODY)
        found: dict[str, Any] = answer["request"] if answer else {"id": 0, "assigned_device": ""}
        return found

    async def until_ready(self, request_id: int) -> str:
        """Long-poll a request until it is ready or has ended; answer its state."""
        state = "finding_device"
        while state not in ("ready", "closed") and not state.startswith("failed"):
            _, answer = await self.call("GET", f"/api/request/{request_id}/status/?wait=30&state={state}")
            state = answer["state"] if answer else "failed"
        return state

    async def give_back(self, request_id: int) -> None:
        """Return a request."""
        await self.call("POST", f"/api/request/{request_id}/return/", {})

    def take(self, device: str) -> None:
        """A request names a device: nobody else may have it until just before its return is sent."""
        if device:
            self.result.doubles += device in self._held
            self._held.add(device)

    async def claim_client(self, end: float) -> None:
        """Request, return, and again: the latency of the request call with the claim included."""
        while time.perf_counter() < end:
            begun = time.perf_counter()
            request = await self.request()
            asked = time.perf_counter()
            device = request["assigned_device"]
            self.take(device)
            self.result.add("claim" if device else "queued", (asked - begun) * 1000)
            self._held.discard(device)
            await self.give_back(request["id"])
            self.result.add("claim and return", (time.perf_counter() - begun) * 1000)

    async def cycle_client(self, end: float) -> None:
        """Request, wait until ready, return."""
        while time.perf_counter() < end:
            begun = time.perf_counter()
            request = await self.request()
            if await self.until_ready(request["id"]) != "ready":
                self.result.errors += 1
            self.result.add("ready", (time.perf_counter() - begun) * 1000)
            await self.give_back(request["id"])
            self.result.add("cycle", (time.perf_counter() - begun) * 1000)

    async def handoff(self, rounds: int) -> None:
        """With all devices held and one waiter: from sending the return to the waiter's answer that names a device."""
        held = []
        while True:
            request = await self.request()
            if not request["assigned_device"]:
                break
            held.append(request["id"])
        for request_id in held:
            await self.until_ready(request_id)
        waiter = request["id"]
        for _ in range(rounds):
            await self._hand_over("handoff", held.pop(0), self, waiter)
            held.append(waiter)
            waiter = (await self.request())["id"]
        for request_id in [waiter, *held]:
            await self.give_back(request_id)

    async def _hand_over(self, name: str, held: int, other: Load, waiter: int) -> None:
        """Measure, under ``name``, how soon the waiter has the device that the holder gives back, and is ready."""
        poll = asyncio.create_task(other.call("GET", f"/api/request/{waiter}/status/?wait=30&state=finding_device"))
        await asyncio.sleep(0.05)
        begun = time.perf_counter()
        await self.give_back(held)
        _, answer = await poll
        if not answer or not answer["assigned_device"]:
            self.result.errors += 1
        self.result.add(name, (time.perf_counter() - begun) * 1000)
        await other.until_ready(waiter)

    async def across(self, other: Load, rounds: int) -> None:
        """As ``handoff``, but the waiter asked another server than the one on which the device is returned."""
        held = []
        while (request := await self.request())["assigned_device"]:
            held.append(request["id"])
        await self.give_back(request["id"])
        for request_id in held:
            await self.until_ready(request_id)
        for _ in range(rounds):
            waiter = (await other.request())["id"]
            await self._hand_over("across", held.pop(0), other, waiter)
            await other.give_back(waiter)
            held.append((await self.request())["id"])
            await self.until_ready(held[-1])
        for request_id in held:
            await self.give_back(request_id)


async def _run(url: str, mode: str, clients: int, seconds: float, other: str) -> Result:
    timeout = aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
        load = Load(url, session)
        begun = time.perf_counter()
        if mode == "handoff":
            await load.handoff(max(5, int(seconds * 4)))
        elif mode == "across":
            await load.across(Load(other, session), max(5, int(seconds * 4)))
        else:
            client = load.claim_client if mode == "claim" else load.cycle_client
            await asyncio.gather(*(client(begun + seconds) for _ in range(clients)))
        load.result.seconds = time.perf_counter() - begun
        return load.result


def run(url: str, mode: str, clients: int, seconds: float, other: str = "") -> Result:
    """Put a load on a server: ``claim``, ``cycle``, ``handoff`` or, with an ``other`` server, ``across``."""
    return asyncio.run(_run(url, mode, clients, seconds, other))


def spread(values: list[float]) -> str:
    """Median and range of several runs."""
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"
