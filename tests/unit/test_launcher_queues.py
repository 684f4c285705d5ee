# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What is asked of Taskcluster, against a fake that speaks its HTTP: counts, workers, pages, all kinds of failures."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from mozpool.fakes.taskcluster import FakeTaskcluster
from mozpool.launcher import queues
from mozpool.launcher.queues import QueueError, Run, Taskcluster

POOL = "t-lambda-perf-a55"


@pytest.fixture
def fake() -> Iterator[FakeTaskcluster]:
    made = FakeTaskcluster(seed=1)
    made.start()
    yield made
    made.stop()


@pytest.fixture
def client(fake: FakeTaskcluster) -> Taskcluster:
    return Taskcluster(fake.url, "proj-autophone")


def work(fake: FakeTaskcluster, udid: str) -> None:
    """A worker takes a task."""
    with fake.timeline.settled():
        fake.start_worker(POOL, udid, lambda task: None, lambda: None)


def test_a_queue_that_nobody_has_used_is_empty(client: Taskcluster):
    assert client.look(POOL) == queues.Queue(0, {})


def test_it_tells_pending_tasks_and_who_has_taken_one(fake: FakeTaskcluster, client: Taskcluster):
    before = datetime.now(UTC) - timedelta(seconds=1)
    first, *_ = fake.add_tasks(POOL, 3)
    work(fake, "UDID1")
    found = client.look(POOL)
    assert found.pending == 2
    run = found.workers["UDID1"].latest
    assert run == Run(first, 0)
    assert client.task_url(run) == fake.task_url(first)
    started = client.started(run)
    assert started is not None and before <= started <= datetime.now(UTC) + timedelta(seconds=1)
    assert client.started(Run(first, 7)) is None


def test_quarantine_counts_until_its_end(fake: FakeTaskcluster, client: Taskcluster):
    now = datetime.now(UTC)
    fake.quarantine(POOL, "UDID1", now + timedelta(hours=1))
    fake.quarantine(POOL, "UDID2", now + timedelta(hours=3))
    fake.quarantine(POOL, "UDID2", None)
    found = client.look(POOL)
    assert found.quarantined(now) == {"UDID1"}
    assert found.quarantined(now + timedelta(hours=2)) == frozenset()


def test_workers_of_all_pages_are_found(fake: FakeTaskcluster, client: Taskcluster, monkeypatch: pytest.MonkeyPatch):
    fake.add_tasks(POOL, 7)
    for number in range(7):
        work(fake, f"UDID{number}")
    answer = fake._list_workers
    monkeypatch.setattr(fake, "_list_workers", lambda one, two, query: answer(one, two, {"limit": "3", **query}))
    assert len(client.look(POOL).workers) == 7


def test_a_task_that_is_gone_is_told(client: Taskcluster):
    with pytest.raises(QueueError, match=r"does not tell about task AAAA"):
        client.started(Run("AAAA", 0))


def test_no_server_is_told(client: Taskcluster, fake: FakeTaskcluster):
    fake.stop()
    with pytest.raises(QueueError, match=rf"at {fake.url} does not tell about worker pool proj-autophone/{POOL}: "):
        client.look(POOL)


@contextmanager
def answering(status: int, body: bytes) -> Iterator[str]:
    """A server that always gives the same answer."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (500, b"{}", "answered 500"),
        (404, b'{"message": "no such queue"}', "no such queue"),
        (200, b"<html>", "no usable workers"),
        (200, b"[]", "no usable workers"),
        (200, b'{"workers": [{"workerGroup": "x"}]}', "no usable workerId"),
        (200, b'{"workers": [], "pendingTasks": "many"}', "no usable pendingTasks"),
        (200, b'{"workers": [], "pendingTasks": true}', "no usable pendingTasks"),
        (200, b'{"workers": [], "pendingTasks": -1}', "-1 tasks are pending"),
        (200, b'{"workers": [{"workerId": "x", "quarantineUntil": "soon"}]}', "Invalid isoformat"),
        (200, b'{"workers": [], "continuationToken": "again"}', "more than 50 pages"),
        (302, b"", "no usable workers"),
    ],
)
def test_nonsense_is_told_in_words(status: int, body: bytes, reason: str):
    with answering(status, body) as url, pytest.raises(QueueError) as caught:
        Taskcluster(url, "p").look(POOL)
    assert reason in str(caught.value)


def test_a_server_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(queues, "LOOK_LIMIT", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(QueueError, match=r"no answer within 0\.3 s"):
            Taskcluster(url, "p").look(POOL)


def test_credentials_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch, fake: FakeTaskcluster):
    import taskcluster.client

    asked = []
    answer = fake.web.answer

    def spy(call):
        asked.append(call)
        return answer(call)

    monkeypatch.setattr(fake.web, "answer", spy)
    monkeypatch.setitem(
        taskcluster.client._defaultConfig, "credentials", {"clientId": "somebody", "accessToken": "secret"}
    )
    Taskcluster(fake.url, "proj-autophone").look(POOL)
    assert asked and not any("authorization" in call.headers for call in asked)
