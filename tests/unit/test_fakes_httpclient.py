# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The boards' HTTP client against raw answers."""

from __future__ import annotations

import asyncio

import pytest

from mozpool.fakes import httpclient

pytestmark = pytest.mark.filterwarnings("error")


def exchange(*answers: bytes, path: str = "/x?y=1", timeout: float = 5.0):
    """Serve these answers, one a connection; return what the client made of them and what it asked."""
    asked: list[bytes] = []
    left = list(answers)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            asked.append(await reader.readuntil(b"\r\n\r\n"))
            answer = left.pop(0)
            writer.write(answer)
            if not answer:  # a server that never answers: wait until the client has gone
                await reader.read()
        finally:
            writer.close()

    async def main() -> httpclient.Answer:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            left[:] = [answer.replace(b"PORT", b"%d" % port) for answer in left]
            return await httpclient.get(f"http://127.0.0.1:{port}{path}", timeout=timeout)

    return asyncio.run(main()), asked


def test_it_sends_a_get_with_its_host_and_reads_the_body():
    answer, asked = exchange(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
    assert answer == (200, b"hello")
    assert asked[0].startswith(b"GET /x?y=1 HTTP/1.1\r\nHost: 127.0.0.1:")


def test_it_reads_a_body_up_to_the_end_of_the_connection():
    assert exchange(b"HTTP/1.0 200 OK\r\n\r\nhello")[0] == (200, b"hello")


def test_it_reads_a_body_in_chunks():
    answer, _ = exchange(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6;x=y\r\n world\r\n0\r\n\r\n"
    )
    assert answer == (200, b"hello world")


@pytest.mark.parametrize("location", [b"http://127.0.0.1:PORT/there", b"/there"])
def test_it_follows_redirects(location):
    answer, asked = exchange(
        b"HTTP/1.1 302 Found\r\nLocation: " + location + b"\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
    )
    assert answer == (200, b"{}")
    assert asked[1].startswith(b"GET /there HTTP/1.1\r\n")


def test_it_does_not_follow_redirects_for_ever():
    with pytest.raises(ValueError, match="too many redirects"):
        exchange(*[b"HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n"] * 6)


def test_a_status_is_no_error():
    assert exchange(b"HTTP/1.1 503 Away\r\nContent-Length: 0\r\n\r\n")[0].status == 503


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 200 OK\r\nContent-Le", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"]
)
def test_half_an_answer_is_an_error(answer):
    with pytest.raises(ConnectionResetError):
        exchange(answer)


@pytest.mark.parametrize("answer", [b"SSH-2.0-x\r\n\r\n", b"\r\n\r\n", b"x" * 100_000, b"HTTP/1.1 huh x\r\n\r\n"])
def test_what_is_not_http_is_an_error(answer):
    with pytest.raises(ValueError):
        exchange(answer)


def test_a_server_that_never_answers_is_left_in_time():
    with pytest.raises(TimeoutError):
        exchange(b"", timeout=0.05)


@pytest.mark.parametrize("url", ["https://127.0.0.1/", "ftp://x/", "nonsense", "http:///x", "http://[::1/"])
def test_what_is_not_an_http_url_is_an_error(url):
    with pytest.raises(ValueError):
        asyncio.run(httpclient.get(url))
