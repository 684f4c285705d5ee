# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The proxy that tests use as a bad network does what it says."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import requests

from tests import badproxy
from tests.badproxy import DECK, BadProxy

LONG = 10.0


class Behind:
    """A server that answers each call with its number."""

    def __init__(self, proxy: BadProxy) -> None:
        self.url = f"http://{proxy.name}/api/device/device1/event/x/"
        self.proxy = proxy
        self.calls: list[bytes] = []

    def call(self, session: Any = requests) -> Any:
        return session.post(self.url, json={"event_id": "a"}, timeout=LONG).json()


@pytest.fixture
def behind() -> Iterator[Behind]:
    with BadProxy("1") as proxy:
        found = Behind(proxy)

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                found.calls.append(self.rfile.read(int(self.headers["Content-Length"])))
                body = json.dumps(len(found.calls)).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        proxy.server_port = http.server_port
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield found
        finally:
            http.shutdown()
            http.server_close()
            thread.join()


def test_it_passes_on_one_call_after_the_other(behind: Behind) -> None:
    with requests.Session() as session:
        assert [behind.call(session) for _ in range(3)] == [1, 2, 3]
    assert behind.calls == [b'{"event_id": "a"}'] * 3
    assert behind.proxy.done == behind.proxy.events == {badproxy.PASSED: 3}


@pytest.mark.parametrize(
    ("fault", "calls"), [(badproxy.DROPPED, 0), (badproxy.ANSWER_LOST, 1), (badproxy.ANSWER_CUT, 1)]
)
def test_it_breaks_connections(behind: Behind, fault: str, calls: int) -> None:
    behind.proxy.be_bad({fault: DECK}, 0.0, LONG)
    with pytest.raises(requests.RequestException):
        behind.call()
    assert len(behind.calls) == calls
    assert behind.proxy.done == {fault: 1}


@pytest.mark.parametrize("fault", [badproxy.CALL_LATE, badproxy.ANSWER_LATE])
def test_it_delays(behind: Behind, fault: str) -> None:
    behind.proxy.be_bad({fault: DECK}, 1e9, 0.3)
    begun = time.monotonic()
    assert behind.call() == 1
    assert time.monotonic() - begun > 0.2
    assert behind.call() == 2, "all is well when the time is over"


@pytest.mark.parametrize("fault", [badproxy.TWICE_AT_ONCE, badproxy.TWICE_LATER])
def test_it_repeats_and_sees_when_the_second_answer_is_another(behind: Behind, fault: str) -> None:
    behind.proxy.be_bad({fault: DECK}, 0.1, LONG)
    assert behind.call() in (1, 2)
    end = time.monotonic() + LONG
    while not behind.proxy.differing and time.monotonic() < end:
        time.sleep(0.01)
    assert len(behind.calls) == 2
    assert len(behind.proxy.differing) == 1


def test_a_server_that_is_not_there_gives_no_answer(behind: Behind) -> None:
    behind.proxy.server_port = 9
    with pytest.raises(requests.ConnectionError):
        behind.call()
    assert behind.proxy.done[badproxy.UNREACHABLE] == 1


def test_each_fault_happens_as_often_as_asked_for(behind: Behind) -> None:
    behind.proxy.be_bad({badproxy.ANSWER_LATE: 2, badproxy.TWICE_AT_ONCE: 3}, 0.0, LONG)
    with requests.Session() as session:
        for _ in range(2 * DECK):
            behind.call(session)
    assert behind.proxy.done == {badproxy.PASSED: 40, badproxy.ANSWER_LATE: 4, badproxy.TWICE_AT_ONCE: 6}
