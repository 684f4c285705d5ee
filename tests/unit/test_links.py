# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Calls to another imaging server, by HTTP: whatever it does, they are over in time."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from mozpool.links import http_post
from mozpool.pool.link import LinkError
from tests.processes import free_port

LIMIT = 1.0


@pytest.fixture(autouse=True)
def little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mozpool.links.HTTP_LIMIT", LIMIT)


@contextlib.contextmanager
def server(talk: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that treats its one connection like this; its name."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                with connection:
                    talk(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        thread.join(10)
        assert not thread.is_alive()


def says(status: str, body: object) -> Callable[[socket.socket], None]:
    """Reads the call and gives this answer."""
    content = json.dumps(body).encode()

    def talk(connection: socket.socket) -> None:
        connection.recv(65536)
        head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        connection.sendall(head.encode() + content)

    return talk


def test_it_gives_what_the_other_server_answers() -> None:
    heard: list[bytes] = []

    def talk(connection: socket.socket) -> None:
        heard.append(connection.recv(65536))
        connection.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 17\r\n\r\n{"accepted":true}')

    with server(talk) as name:
        assert http_post(name, "/api/device/device1/event/please_image/", {"image": "b2g"}) == {"accepted": True}
    assert heard[0].startswith(b"POST /api/device/device1/event/please_image/ HTTP/1.1\r\n")
    assert heard[0].endswith(b'{"image": "b2g"}')


def drips(connection: socket.socket) -> None:
    """A byte now and then: each one in time, all together never."""
    with contextlib.suppress(OSError):
        for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}":
            connection.sendall(bytes([byte]))
            time.sleep(LIMIT / 4)


def hangs(connection: socket.socket) -> None:
    """Takes the call and says nothing until the caller has gone."""
    while connection.recv(65536):
        pass


@pytest.mark.parametrize("talk", [drips, hangs])
def test_a_server_that_is_slow_is_given_up_in_time(talk: Callable[[socket.socket], None]) -> None:
    begun = time.monotonic()
    with server(talk) as name, pytest.raises(LinkError, match=f"imaging server {name} does not answer"):
        http_post(name, "/api/request/1/event/claimed/", {})
    assert time.monotonic() - begun < 5 * LIMIT


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        ("503 Service Unavailable", {}, "does not answer"),
        ("302 Found", {}, "redirect"),
        ("200 OK", [1, 2], "answered 200"),
        ("202 Accepted", {}, "answered 202"),
    ],
)
def test_another_answer_is_none(status: str, body: object, reason: str) -> None:
    with server(says(status, body)) as name, pytest.raises(LinkError, match=reason):
        http_post(name, "/api/request/1/event/claimed/", {})


def test_nobody_there_is_no_answer() -> None:
    with pytest.raises(LinkError, match="no connection"):
        http_post(f"127.0.0.1:{free_port()}", "/api/request/1/event/claimed/", {})
