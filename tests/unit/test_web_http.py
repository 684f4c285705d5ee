# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The HTTP server, by raw sockets."""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from waitress import wasyncore

from mozpool.config import Server as ServerSettings
from mozpool.web.http import _proxy, make_server
from tests.app_fixtures import Server, server


@pytest.fixture
def site(sqlite_url: str, tmp_path: Path) -> Iterator[Server]:
    with server(sqlite_url, tmp_path) as made:
        yield made


@contextmanager
def connection(site: Server) -> Iterator[Any]:
    """A connection to the site, which listens as long as it is open."""
    settings: ServerSettings = replace(site.daemon.settings.server, listen="127.0.0.1", port=0)
    http: Any = make_server(site.app, settings, site.daemon.clock)
    thread = threading.Thread(target=http.run)
    thread.start()
    try:
        with socket.create_connection(("127.0.0.1", http.effective_port), 10) as sock, sock.makefile("rwb") as stream:
            yield stream
    finally:
        http.trigger.pull_trigger(lambda: wasyncore.close_all(http._map))
        thread.join(10)
        http.task_dispatcher.shutdown()


def call(stream: Any, line: str, *headers: str) -> tuple[str, dict[str, str]]:
    """Send a call without a body; the answer's status and headers, in lower case."""
    stream.write("\r\n".join((f"{line} HTTP/1.1", "Host: x", *headers, "", "")).encode())
    stream.flush()
    status = stream.readline().decode().split(" ", 1)[1].strip()
    found = {}
    while line := stream.readline().decode().strip():
        name, _, value = line.partition(":")
        found[name.lower()] = value.strip()
    stream.read(int(found.get("content-length", 0)))
    return status, found


def test_two_returns_go_over_one_connection(site: Server) -> None:
    numbers = [site.made(), site.made()]
    with connection(site) as stream:
        for number in numbers:
            status, headers = call(stream, f"POST /api/request/{number}/return/", "Content-Length: 0")
            assert status == "204 NO CONTENT"
            assert not {"connection", "content-type", "content-length", "transfer-encoding"} & headers.keys()
        assert call(stream, "GET /api/version/")[0] == "200 OK"
    assert [site.request(number).state for number in numbers] == ["closed", "closed"]


def test_what_has_not_changed_keeps_the_connection_too(site: Server) -> None:
    with connection(site) as stream:
        tag = call(stream, "GET /relays", "Mozpool-Part: 1")[1]["etag"]
        for _ in range(2):
            assert call(stream, "GET /relays", "Mozpool-Part: 1", f"If-None-Match: {tag}")[0] == "304 NOT MODIFIED"


def test_a_client_that_wants_it_closed_gets_it_closed(site: Server) -> None:
    number = site.made()
    with connection(site) as stream:
        status, headers = call(stream, f"POST /api/request/{number}/return/", "Connection: close")
        assert (status, headers["connection"]) == ("204 NO CONTENT", "close")
        assert stream.read() == b""


def test_callers_behind_a_proxy_on_this_machine_are_known(site: Server, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mozpool.access")
    with connection(site) as stream:
        # The proxy adds the one that it sees; what stands before that anybody may have written.
        call(stream, "GET /api/version/", "X-Forwarded-For: 192.0.2.1, 198.51.100.7")
        call(stream, "GET /api/version/")
    lines = [record.getMessage() for record in caplog.records if record.name == "mozpool.access"]
    assert [line.split()[0] for line in lines] == ["198.51.100.7", "127.0.0.1"]


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (b"GET /api/version/ HTTP/1.1\r\nContent-Length: abc\r\n\r\n", 400, "bad_input"),
        (b"\x16\x03\x01 what is this\r\n\r\n", 400, "bad_input"),
        (b"POST /api/x/ HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n", 413, "too_large"),
        (b"POST /api/x/ HTTP/1.1\r\nTransfer-Encoding: what, chunked\r\n\r\n", 501, "error"),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * (2**15 - 19), 431, "too_large"),
    ],
)
def test_what_is_refused_before_the_application_is_json_too(site: Server, sent: bytes, status: int, code: str) -> None:
    with connection(site) as stream:
        stream.write(sent)
        stream.flush()
        head, _, body = stream.read().partition(b"\r\n\r\n")
    assert head.split()[1] == str(status).encode()
    assert b"Content-Type: application/json" in head
    error = json.loads(body)["error"]
    assert (error["code"], error["field"]) == (code, None)
    assert error["message"]


@pytest.mark.parametrize(
    ("listen", "trusted"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("localhost", "127.0.0.1"),
        ("::1", "::1"),
        ("0.0.0.0", None),
        ("::", None),
        ("192.0.2.1", None),
        ("mozpool.example.com", None),
    ],
)
def test_a_proxy_is_believed_on_this_machine_only(listen: str, trusted: str | None) -> None:
    assert _proxy(listen).get("trusted_proxy") == trusted
