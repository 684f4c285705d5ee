# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""An HTTP proxy in front of a server, for tests: it loses, delays, repeats and cuts what goes through it."""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Self

DROPPED = "dropped"
"""The connection is closed, and the server never hears of the call."""
ANSWER_LOST = "answer lost"
"""The server deals with the call, and the connection is closed instead of the answer."""
ANSWER_CUT = "answer cut"
"""The connection is closed within the answer."""
CALL_LATE = "call late"
"""The server gets the call later, also when the caller has gone meanwhile."""
ANSWER_LATE = "answer late"
TWICE_AT_ONCE = "twice at once"
"""The server gets the call twice at the same time; the caller gets the answer that comes first."""
TWICE_LATER = "twice later"
"""The server gets the call once more, later."""

FAULTS = (DROPPED, ANSWER_LOST, ANSWER_CUT, CALL_LATE, ANSWER_LATE, TWICE_AT_ONCE, TWICE_LATER)

DECK = 25
"""How many calls get their fates at a time, each fault as often as it was asked for: a run need not be lucky to have
seen all of them."""

PASSED = "passed"
UNREACHABLE = "unreachable"
"""The server did not answer."""


class Broken(Exception):
    """The other end closed its connection, or said what is no HTTP."""


@dataclass(frozen=True)
class Message:
    """A call or an answer, as it goes over the wire."""

    head: bytes
    body: bytes = b""

    @property
    def first_line(self) -> str:
        return self.head.split(b"\r\n", 1)[0].decode("latin-1")

    @property
    def raw(self) -> bytes:
        return self.head + self.body

    def header(self, name: str) -> str | None:
        for line in self.head.decode("latin-1").split("\r\n")[1:]:
            key, colon, value = line.partition(":")
            if colon and key.strip().lower() == name:
                return value.strip()
        return None


class BadProxy:
    """Listens on a port of 127.0.0.1 and passes calls on to a server, in a thread of its own.

    Use it as a context manager. Nothing goes wrong until :meth:`be_bad`.
    """

    def __init__(self, seed: str) -> None:
        """``seed`` decides which call meets which fate, in the order in which they come."""
        self.done: Counter[str] = Counter()
        """How many calls met which fate."""
        self.events: Counter[str] = Counter()
        """The same for events, which servers send to each other."""
        self.differing: list[str] = []
        """Events that were delivered twice, and answered in two ways."""
        self.port = 0
        self.server_port = 0
        """Where the server listens."""
        self._rng = random.Random(seed)
        self._cards: list[str] = []
        self._decks: dict[bool, list[str]] = {True: [], False: []}
        """What is left to draw from, for events and for other calls."""
        self._longest = 0.0
        self._until = 0.0
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._up = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"proxy {seed}")

    @property
    def name(self) -> str:
        """HOST:PORT."""
        return f"127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._up.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(10)
        assert not self._thread.is_alive()
        self._loop.close()

    def be_bad(self, faults: Mapping[str, int], longest: float, seconds: float) -> None:
        """For so many seconds, let each fault happen to so many of every 25 calls, and of every 25 events.

        Delays take up to ``longest`` seconds, but no longer than until the end of that time: all is delivered then.
        """
        assert set(faults) <= set(FAULTS)
        cards = [fault for fault, count in faults.items() for _ in range(count)]
        assert len(cards) <= DECK
        self._longest = longest
        self._until = self._loop.time() + seconds
        self._cards = cards + [PASSED] * (DECK - len(cards))

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        self._end = asyncio.Event()
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._up.set()
        await self._end.wait()
        server.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._start(self._connection(reader, writer))

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One caller, who may make several calls."""
        try:
            while True:
                call = await _read(reader)
                whole, said = await self._deal_with(call)
                writer.write(said)
                await writer.drain()
                if not whole or (call.header("connection") or "").lower() == "close":
                    return
        except (Broken, OSError):
            pass
        finally:
            writer.close()

    def _fate(self, call: Message) -> str:
        is_event, fate = "/event/" in call.first_line, PASSED
        if self._loop.time() < self._until:
            deck = self._decks[is_event]
            if not deck:
                deck += self._rng.sample(self._cards, len(self._cards))
            fate = deck.pop()
        self.done[fate] += 1
        if is_event:
            self.events[fate] += 1
        return fate

    async def _delay(self) -> None:
        await asyncio.sleep(max(0.0, min(self._rng.uniform(0, self._longest), self._until - self._loop.time())))

    async def _deal_with(self, call: Message) -> tuple[bool, bytes]:
        """Whether the caller gets a whole answer, and what it gets."""
        fate = self._fate(call)
        if fate == DROPPED:
            return False, b""
        if fate == CALL_LATE:
            await self._delay()
        if fate == TWICE_AT_ONCE:
            answer = await self._twice(call)
        else:
            answer = await self._forward(call)
        if answer is None or fate == ANSWER_LOST:
            return False, b""
        if fate == ANSWER_CUT:
            return False, answer.raw[: self._rng.randrange(1, len(answer.raw))]
        if fate == ANSWER_LATE:
            await self._delay()
        if fate == TWICE_LATER:
            self._start(self._again(call, answer))
        return True, answer.raw

    async def _twice(self, call: Message) -> Message | None:
        both = [self._start(self._forward(call)) for _ in range(2)]
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        first = next(each for each in both if each.done())
        self._start(self._compare_later(call, both))
        return first.result()

    async def _compare_later(self, call: Message, both: list[asyncio.Task[Message | None]]) -> None:
        self._compare(call, *(await asyncio.gather(*both)))

    async def _again(self, call: Message, first: Message) -> None:
        await self._delay()
        self._compare(call, first, await self._forward(call))

    def _compare(self, call: Message, first: Message | None, second: Message | None) -> None:
        """Note events that were answered in two ways; a server that could not deal with one at the time may say so."""
        if first is None or second is None or b'"event_id"' not in call.body:
            return
        if all(" 200 " in answer.first_line for answer in (first, second)) and first.body != second.body:
            self.differing.append(f"{call.first_line} {call.body!r}: {first.body!r}, {second.body!r}")

    async def _forward(self, call: Message) -> Message | None:
        """The server's answer; None when there is none."""
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.server_port)
        except OSError:
            self.done[UNREACHABLE] += 1
            return None
        try:
            writer.write(call.raw)
            await writer.drain()
            return await _read(reader, is_answer=True)
        except (Broken, OSError):
            self.done[UNREACHABLE] += 1
            return None
        finally:
            writer.close()


async def _read(reader: asyncio.StreamReader, *, is_answer: bool = False) -> Message:
    """The next message. Raises Broken, OSError."""
    try:
        message = Message(await reader.readuntil(b"\r\n\r\n"))
        length = message.header("content-length")
        if message.header("transfer-encoding") is not None:
            raise Broken("chunks are not understood")
        if length is not None:
            return Message(message.head, await reader.readexactly(int(length)))
        if is_answer and message.first_line.split(" ")[1] not in ("204", "304"):
            return Message(message.head, await reader.read())
        return message
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError, IndexError) as error:
        raise Broken(str(error)) from error
