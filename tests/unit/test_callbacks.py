# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What is sent to a request's ``callback_url``, to a real listener."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from mozpool.clock import Clock
from mozpool.errors import HardwareError
from mozpool.pool.effects import CallBack
from mozpool.pool.operations import RequestOperations
from mozpool.statedriver import Event
from tests.app_fixtures import server
from tests.factories import request
from tests.processes import free_port


class Listener:
    """Answers with ``statuses`` in turn, then with 200."""

    def __init__(self, *statuses: int) -> None:
        self.statuses = list(statuses)
        self.calls: list[tuple[str, Any]] = []
        self.url = ""


@contextmanager
def listening(*statuses: int) -> Iterator[Listener]:
    """A client that wants to be called back."""
    listener = Listener(*statuses)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            listener.calls.append((f"{self.path} {self.headers['Content-Type']}", json.loads(body)))
            self.send_response(listener.statuses.pop(0) if listener.statuses else 200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listener.url = f"http://127.0.0.1:{http.server_port}/done?build=7"
    thread = threading.Thread(target=http.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield listener
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


def operations() -> RequestOperations:
    return RequestOperations(link=None)  # type: ignore[arg-type]  # nobody is asked anything


def test_a_client_is_sent_the_state_and_the_device() -> None:
    row = request("ready", id=9, device="panda-0001", claim_id=7)
    with listening() as listener:
        assert operations().perform(row, CallBack(listener.url, "ready")) == Event("called_back")
    said = {"request": {"id": 9, "state": "ready", "assigned_device": "panda-0001"}}
    assert listener.calls == [("/done?build=7 application/json", said)]


def test_a_callback_that_is_refused_has_failed() -> None:
    with listening(500) as listener, pytest.raises(HardwareError, match=r"callback of request 9 failed: .*HTTPError"):
        operations().perform(request("closed", id=9), CallBack(listener.url, "closed"))


def test_a_callback_that_nobody_hears_has_failed() -> None:
    url = f"http://127.0.0.1:{free_port()}/"
    with pytest.raises(HardwareError, match=r"callback of request 9 failed: .*ConnectionError"):
        operations().perform(request("closed", id=9), CallBack(url, "closed"))


def test_it_is_repeated_until_the_client_takes_it(sqlite_url: str, tmp_path: Path) -> None:
    with listening(500, 503) as listener, server(sqlite_url, tmp_path) as site:
        site.daemon.timers.start()
        # Nothing is there that it could get: it ends at once.
        number = site.made(environment="nowhere", wait=0, callback_url=listener.url)
        site.wait_until(lambda: len(listener.calls) == 3)
        Clock().sleep(0.6)  # more than the pause between two tries
        said = {"request": {"id": number, "state": "failed_device_not_found", "assigned_device": ""}}
        assert [body for _, body in listener.calls] == [said] * 3
