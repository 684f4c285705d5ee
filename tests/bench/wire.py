# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""HTTP with as little work as possible at the client: what is measured is the server, on the same processors."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from urllib.parse import urlsplit


class Broken(Exception):
    """The server closed the connection, or what it sent is no HTTP."""


class Connection(asyncio.Protocol):
    """A connection that is kept open. One call at a time."""

    def __init__(self, url: str, headers: str = "") -> None:
        """``url`` is the server's, ``headers`` are lines for every call, each with CR and LF at its end."""
        parts = urlsplit(url)
        self._address = (parts.hostname or "127.0.0.1", parts.port or 80)
        self._host = f"Host: {parts.netloc}\r\n{headers}"
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._received = b""
        self._body_at = self._end = 0
        self._status = 0

    async def call(self, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
        """Status and body of the answer. Raises Broken, OSError."""
        loop = asyncio.get_running_loop()
        if self._transport is None or self._transport.is_closing():
            await loop.create_connection(lambda: self, *self._address)
        transport = self._transport
        assert transport is not None
        sent = b"" if body is None else json.dumps(body).encode()
        kind = "Content-Type: application/json\r\n" if sent else ""
        length = f"Content-Length: {len(sent)}\r\n" if sent or method == "POST" else ""
        self._received, self._end = b"", 0
        self._answer = loop.create_future()
        transport.write(f"{method} {path} HTTP/1.1\r\n{self._host}{kind}{length}\r\n".encode() + sent)
        return await self._answer

    async def once(self, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
        """A call after which the connection is closed. Raises Broken, OSError."""
        try:
            return await self.call(method, path, body)
        finally:
            self.close()

    def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.close()
            self._transport = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not self._end:
            head_end = self._received.find(b"\r\n\r\n")
            if head_end < 0:
                return
            self._read_head(self._received[:head_end])
        if len(self._received) >= self._end and self._answer is not None:
            answer, self._answer = self._answer, None
            if not answer.done():
                answer.set_result((self._status, self._received[self._body_at :]))

    def _read_head(self, head: bytes) -> None:
        self._status = int(head[9:12])
        self._body_at = len(head) + 4
        lower = head.lower()
        at = lower.find(b"\r\ncontent-length:")
        length = int(lower[at + 17 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        if b"\r\ntransfer-encoding:" in lower:
            self._fail("an answer in chunks")
        self._end = self._body_at + (0 if self._status in (204, 304) else length)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._fail(str(exc or "the server closed the connection"))

    def _fail(self, message: str) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(Broken(message))
        self._answer = None
