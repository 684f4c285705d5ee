# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The few lines of HTTP that a board's live image needs: GET over plain HTTP, in the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urljoin, urlsplit

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MOST_REDIRECTS = 5


class Answer(NamedTuple):
    """The answer to a GET, after redirects."""

    status: int
    body: bytes


async def get(
    url: str, headers: Mapping[str, str] | None = None, *, source: str | None = None, timeout: float = 30.0
) -> Answer:
    """GET ``url``, following redirects, in at most ``timeout`` seconds altogether.

    ``headers`` are sent with each call; ``source`` is the address to call from, whichever the system takes unless
    given. Raises OSError (TimeoutError included) when the server can't be talked with, ValueError when
    the URL or the answer makes no sense.
    """
    async with asyncio.timeout(timeout):
        for _ in range(_MOST_REDIRECTS + 1):
            status, answered, body = await _exchange(url, headers or {}, source)
            location = answered.get("location")
            if status not in _REDIRECTS or location is None:
                return Answer(status, body)
            url = urljoin(url, location)
    raise ValueError("too many redirects")


async def _exchange(url: str, headers: Mapping[str, str], source: str | None) -> tuple[int, dict[str, str], bytes]:
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise ValueError(f"not an HTTP URL: {url}")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    host = parts.netloc.rpartition("@")[2]
    place = None if source is None else (source, 0)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port or 80, local_addr=place)
    try:
        more = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        head = f"GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nAccept: */*\r\n{more}\r\n"
        writer.write(head.encode("ascii"))
        await writer.drain()
        return await _read_answer(reader)
    except EOFError as error:  # an answer that stops in the middle
        raise ConnectionResetError("connection closed before the answer was complete") from error
    except asyncio.LimitOverrunError as error:
        raise ValueError("not an HTTP answer") from error
    finally:
        writer.transport.abort()  # everything that matters has been read; close() could wait for the peer


async def _read_answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    status_line = (await reader.readuntil(b"\n")).decode("latin-1").split(maxsplit=2)
    if len(status_line) < 2 or not status_line[0].startswith("HTTP/1."):
        raise ValueError("not an HTTP answer")
    headers: dict[str, str] = {}
    while line := (await reader.readuntil(b"\n")).decode("latin-1").strip():
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    if "chunked" in headers.get("transfer-encoding", "").lower():
        body = await _read_chunks(reader)
    elif (length := headers.get("content-length")) is not None:
        body = await reader.readexactly(int(length))
    else:
        body = await reader.read()
    return int(status_line[1]), headers, body


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while size := int((await reader.readuntil(b"\n")).partition(b";")[0], 16):
        body += await reader.readexactly(size)
        await reader.readuntil(b"\n")
    return body
