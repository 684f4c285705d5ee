# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""A load on labgrid's coordinator, by its gRPC protocol; run by the Python of labgrid's own environment.

``labgrid_load.py setup|acquire|reserve|handoff ADDRESS PLACES CLIENTS SECONDS-OR-ROUNDS`` prints one JSON object.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from contextlib import AsyncExitStack
from types import TracebackType

import grpc
from labgrid.remote.generated import labgrid_coordinator_pb2 as messages
from labgrid.remote.generated import labgrid_coordinator_pb2_grpc as services

WAITING = 0
"""The state of a reservation that has no place yet (labgrid.remote.common.ReservationState)."""

POLL = 0.005
"""Seconds from one look at a waiting reservation to the next."""

TAG = ("board", "bench")

times: dict[str, list[float]] = {}


def note(name: str, begun: float) -> None:
    """Note the milliseconds since ``begun``."""
    times.setdefault(name, []).append((time.perf_counter() - begun) * 1000)


class Session:
    """A client that has connected, and follows all places and resources."""

    def __init__(self, address: str, name: str) -> None:
        # Connections of its own: by default, all channels of a process share one.
        self._channel = grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
        self.stub = services.CoordinatorStub(self._channel)
        self._name = name
        self._outgoing: asyncio.Queue[messages.ClientInMessage | None] = asyncio.Queue()
        self._synced = asyncio.Event()

    async def __aenter__(self) -> Session:
        self._reader = asyncio.create_task(self._read(self.stub.ClientStream(self._write())))
        for message in (
            messages.ClientInMessage(startup=messages.StartupDone(version="26.0", name=f"bench/{self._name}")),
            messages.ClientInMessage(subscribe=messages.Subscribe(all_places=True)),
            messages.ClientInMessage(subscribe=messages.Subscribe(all_resources=True)),
            messages.ClientInMessage(sync=messages.Sync(id=1)),
        ):
            self._outgoing.put_nowait(message)
        await asyncio.wait_for(self._synced.wait(), 60)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._outgoing.put_nowait(None)
        self._reader.cancel()
        await self._channel.close()

    async def _write(self):
        while (message := await self._outgoing.get()) is not None:
            yield message

    async def _read(self, stream: grpc.aio.StreamStreamCall) -> None:
        async for message in stream:
            if message.HasField("sync"):
                self._synced.set()

    async def acquire(self, place: str) -> None:
        """Acquire a place."""
        await self.stub.AcquirePlace(messages.AcquirePlaceRequest(placename=place))

    async def release(self, place: str) -> None:
        """Release a place."""
        await self.stub.ReleasePlace(messages.ReleasePlaceRequest(placename=place))

    async def reserve(self) -> messages.Reservation:
        """Ask for any place with the tag."""
        request = messages.CreateReservationRequest(prio=0.0)
        request.filters["main"].filter[TAG[0]] = TAG[1]
        return (await self.stub.CreateReservation(request)).reservation

    async def allocated(self, reservation: messages.Reservation) -> str:
        """Wait until a reservation has a place; the place."""
        while reservation.state == WAITING:
            await asyncio.sleep(POLL)
            asked = messages.PollReservationRequest(token=reservation.token)
            reservation = (await self.stub.PollReservation(asked)).reservation
        return str(reservation.allocations["main"])

    async def cancel(self, reservation: messages.Reservation) -> None:
        """Give a reservation up."""
        await self.stub.CancelReservation(messages.CancelReservationRequest(token=reservation.token))


def name_of(number: int) -> str:
    """The name of a place."""
    return f"place{number}"


async def setup(session: Session, places: int) -> None:
    """Make places that have the tag."""
    for number in range(places):
        await session.stub.AddPlace(messages.AddPlaceRequest(name=name_of(number)))
        tags = messages.SetPlaceTagsRequest(placename=name_of(number), tags=dict([TAG]))
        await session.stub.SetPlaceTags(tags)


async def acquire(session: Session, own: list[str], end: float) -> None:
    """Acquire and release one of the client's own places after the other."""
    turn = 0
    while time.perf_counter() < end:
        place = own[turn % len(own)]
        turn += 1
        begun = time.perf_counter()
        await session.acquire(place)
        note("acquire", begun)
        await session.release(place)
        note("acquire and release", begun)


async def reserve(session: Session, own: list[str], end: float) -> None:
    """Reserve any place, acquire it, release it, cancel the reservation."""
    while time.perf_counter() < end:
        begun = time.perf_counter()
        reservation = await session.reserve()
        place = await session.allocated(reservation)
        note("allocated", begun)
        await session.acquire(place)
        await session.release(place)
        await session.cancel(reservation)
        note("reserve, acquire, release, cancel", begun)


async def handoff(session: Session, places: int, rounds: int) -> None:
    """With all places acquired and a reservation that waits: release one, until the reservation has it."""
    for number in range(places):
        await session.acquire(name_of(number))
    for turn in range(rounds):
        reservation = await session.reserve()
        place = name_of(turn % places)
        await asyncio.sleep(0.05)
        begun = time.perf_counter()
        await session.release(place)
        given = await session.allocated(reservation)
        note("hand-off", begun)
        await session.acquire(given)
        await session.cancel(reservation)
    for number in range(places):
        await session.release(name_of(number))


async def main(mode: str, address: str, places: int, clients: int, amount: float) -> dict[str, object]:
    """Run one mode."""
    async with AsyncExitStack() as stack:
        sessions = [await stack.enter_async_context(Session(address, str(number))) for number in range(clients)]
        begun, used = time.perf_counter(), time.process_time()
        if mode == "setup":
            await setup(sessions[0], places)
        elif mode == "handoff":
            await handoff(sessions[0], places, int(amount))
        else:
            work = {"acquire": acquire, "reserve": reserve}[mode]
            own = [[name_of(place) for place in range(number, places, clients)] for number in range(clients)]
            end = begun + amount
            await asyncio.gather(*(work(session, mine, end) for session, mine in zip(sessions, own, strict=True)))
        seconds = time.perf_counter() - begun
        return {"seconds": seconds, "times": times, "own": (time.process_time() - used) / seconds * 100}


if __name__ == "__main__":
    mode, address, *numbers = sys.argv[1:]
    json.dump(asyncio.run(main(mode, address, int(numbers[0]), int(numbers[1]), float(numbers[2]))), sys.stdout)
