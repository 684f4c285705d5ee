# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Calls to another imaging server: over in time whatever it does, and made to the one that acts on a device by now."""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, cast

import pytest
from sqlalchemy import update

from mozpool import links
from mozpool.clock import Clock
from mozpool.config import Settings
from mozpool.db import images, tables
from mozpool.db.engine import Database
from mozpool.errors import DatabaseAway
from mozpool.links import Links
from mozpool.pool.link import LinkError, Reply
from mozpool.web.peers import Peers
from tests.app_fixtures import OTHER, OWN, Server
from tests.processes import free_port

LIMIT = 1.0

http_post = partial(links.http_post, Peers(Settings(), Clock()))


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


@pytest.mark.parametrize("length", [12, 17, 36, 44, 60, 72])
def test_an_answer_that_is_cut_is_none(length: int) -> None:
    whole = b'HTTP/1.1 200 OK\r\nContent-Length: 17\r\nServer: mozpool\r\n\r\n{"accepted":true}'

    def talk(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(whole[:length])

    with server(talk) as name, pytest.raises(LinkError, match=r"closed the connection within its answer|is not HTTP"):
        http_post(name, "/api/device/device1/event/please_image/", {"image": "b2g"})


def test_nobody_there_is_no_answer() -> None:
    with pytest.raises(LinkError, match="no connection"):
        http_post(f"127.0.0.1:{free_port()}", "/api/request/1/event/claimed/", {})


class NoDatabase:
    """Nobody can look up who acts on a device by now."""

    def read(self) -> None:
        raise DatabaseAway("it is away")


class Sent:
    """What one server sends to another, by whatever was asked of its links."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Mapping[str, Any]]] = []
        self.fails = False
        no_database = cast("Database", NoDatabase())
        self.links = Links("here", no_database, self._post)

    def _post(self, server: str, path: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        self.calls.append((path, body))
        if self.fails:
            raise LinkError("its answer was lost")
        return {"accepted": True}

    @property
    def ids(self) -> list[str]:
        return [body["event_id"] for _, body in self.calls]


def test_an_event_that_is_sent_again_has_the_same_id() -> None:
    sent = Sent()
    sent.fails = True
    with pytest.raises(LinkError, match="away"):
        sent.links.please("there", 1, "device1", "please_image", {"image": "b2g"}, 7)
    again = Sent()  # as after a restart
    assert again.links.please("there", 1, "device1", "please_image", {"image": "b2g"}, 7).accepted
    assert sent.calls == again.calls
    known = {"claim_id": 7, "once": True, "event_id": sent.ids[0]}
    assert sent.calls == [("/api/device/device1/event/please_image/", {"image": "b2g", **known})]
    assert len(sent.ids[0]) == 32


def test_different_events_have_different_ids() -> None:
    sent = Sent()
    for claim_id in (7, 8):
        sent.links.please("there", 1, "device1", "please_image", {}, claim_id)
        sent.links.please("there", 1, "device1", "please_power_cycle", {}, claim_id)
        sent.links.released("there", 1, "device1", claim_id)
        sent.links.claimed("there", 1, claim_id)
    assert len(set(sent.ids)) == len(sent.ids) == 8


# A device that has passed to another server between the decision and the call

THIRD = "server-3.example.com"
PLEASE = {"image": "b2g", "boot_config": "{}"}


class Wires:
    """This server's links. The other servers answer as the test says."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.request = server.made("device1")
        self.calls: list[tuple[str, str]] = []
        self.answers: dict[str, Mapping[str, Any]] = {}
        """Server → what it answers; the others do not."""
        self.before_answer: Callable[[], None] = lambda: None
        self.links = self.with_post(self.post)

    def with_post(self, post: Callable[[str, str, Mapping[str, Any]], Mapping[str, Any]]) -> Links:
        links = Links(OWN, self.server.daemon.database, post)
        links.connect(self.server.daemon.lifeguard, self.server.daemon.mozpool)
        return links

    def post(self, server: str, path: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        self.calls.append((server, path))
        self.before_answer()
        if server not in self.answers:
            raise LinkError(f"imaging server {server} does not answer")
        return self.answers[server]

    def give_to(self, name: str | None) -> None:
        """Another server has taken the device over, or given it back."""
        run = self.server.daemon.database.run
        owner_id = None if name is None else run(lambda conn: images.ensure_imaging_server(conn, name))
        self.server.change("device1", owner_id=owner_id)

    def please(self, server: str, links: Links | None = None) -> Reply:
        device = self.server.device()
        assert device.claim_id is not None
        links = links or self.links
        return links.please(server, device.id, device.name, "please_image", PLEASE, device.claim_id)

    def released(self, server: str) -> None:
        self.links.released(server, self.server.device().id, "device1", 7)


@pytest.fixture
def wires(imaging_server: Server) -> Wires:
    return Wires(imaging_server)


def test_a_device_of_this_server_is_asked_without_a_call(wires: Wires) -> None:
    assert wires.please(OWN) == Reply(True, None)
    assert wires.server.device().state == "pxe_power_cycling"
    assert wires.calls == []


def test_a_device_that_others_have_taken_from_this_server_is_asked_there(wires: Wires) -> None:
    wires.give_to(OTHER)
    wires.answers[OTHER] = {"accepted": True, "state": "pxe_power_cycling", "reason": None}
    assert wires.please(OWN) == Reply(True, None)
    assert wires.calls == [(OTHER, "/api/device/device1/event/please_image/")]
    assert wires.server.device().state == "ready"


def test_a_device_that_this_server_has_taken_from_one_that_is_lost_is_asked_here(wires: Wires) -> None:
    assert wires.please(OTHER) == Reply(True, None)
    assert wires.calls == [(OTHER, "/api/device/device1/event/please_image/")]
    assert wires.server.device().state == "pxe_power_cycling"


def test_a_device_that_passed_from_one_server_to_a_third_is_asked_there(wires: Wires) -> None:
    wires.give_to(THIRD)
    wires.answers[THIRD] = {"accepted": False, "reason": "it is in state locked_out"}
    assert wires.please(OTHER) == Reply(False, "it is in state locked_out")
    assert [server for server, _ in wires.calls] == [OTHER, THIRD]


def test_it_may_pass_to_another_during_the_call(wires: Wires) -> None:
    wires.give_to(OTHER)
    wires.answers[THIRD] = {"accepted": True}
    wires.before_answer = lambda: wires.give_to(THIRD)
    assert wires.please(OTHER) == Reply(True, None)
    assert [server for server, _ in wires.calls] == [OTHER, THIRD]


def test_a_server_that_refuses_what_it_does_not_own_is_as_good_as_one_that_is_lost(wires: Wires) -> None:
    """It sends the caller to the owner, whom the database knows."""
    with server(says("302 Found", {})) as old, server(says("200 OK", {"accepted": True})) as new:
        wires.give_to(new)
        assert wires.please(old, wires.with_post(http_post)) == Reply(True, None)


def test_a_server_that_does_not_answer_is_asked_once_when_the_device_is_still_its_own(wires: Wires) -> None:
    wires.give_to(OTHER)
    with pytest.raises(LinkError, match=f"imaging server {OTHER} does not answer"):
        wires.please(OTHER)
    assert len(wires.calls) == 1


def test_when_neither_answers_the_new_one_is_to_blame(wires: Wires) -> None:
    wires.give_to(THIRD)
    with pytest.raises(LinkError, match=f"imaging server {THIRD} does not answer"):
        wires.please(OTHER)
    with pytest.raises(LinkError, match=f"imaging server {THIRD} does not answer"):
        wires.please(OWN)
    assert [server for server, _ in wires.calls] == [OTHER, THIRD, THIRD]


def test_a_device_that_passes_on_from_this_server_while_it_is_asked_here_is_asked_again_later(wires: Wires) -> None:
    """A third owner is not run after: the caller repeats the call, with the owner of then."""
    please = wires.server.daemon.lifeguard.please

    def after_others(*args: Any, **more: Any) -> Any:
        wires.give_to(THIRD)
        return please(*args, **more)

    wires.server.daemon.lifeguard.please = after_others  # type: ignore[method-assign]
    with pytest.raises(LinkError, match=f"imaging server {THIRD} acts on device1"):
        wires.please(OTHER)
    assert [server for server, _ in wires.calls] == [OTHER]


def test_without_a_database_nobody_knows_where_the_device_is(wires: Wires, monkeypatch: pytest.MonkeyPatch) -> None:
    def away() -> None:
        raise DatabaseAway("the database is away")

    def take_away() -> None:
        monkeypatch.setattr(wires.server.daemon.database, "read", away)

    wires.before_answer = take_away
    with pytest.raises(LinkError, match="the database is away"):
        wires.please(OTHER)


def test_a_device_that_is_gone_is_nowhere(wires: Wires) -> None:
    with pytest.raises(LinkError, match=f"imaging server {OTHER} does not answer"):
        wires.links.please(OTHER, 999, "device9", "please_image", PLEASE, 7)


def test_a_release_is_told_to_who_acts_on_the_device_by_now(wires: Wires) -> None:
    wires.give_to(THIRD)
    wires.answers[THIRD] = {}
    wires.released(OTHER)
    path = "/api/device/device1/event/released/"
    assert wires.calls == [(OTHER, path), (THIRD, path)]
    wires.give_to(None)
    wires.released(OTHER)
    assert wires.calls[2:] == [(OTHER, path)], "and then it is this server"
    wires.give_to(THIRD)
    wires.answers.clear()
    with pytest.raises(LinkError):
        wires.released(OTHER)


def pending(wires: Wires) -> int:
    """The claim of the request, which waits for its device."""
    daemon = wires.server.daemon
    daemon.requests.force(wires.request, "pending")
    assert daemon.requests.remembered(wires.request) is not None
    claim_id = wires.server.device().claim_id
    assert claim_id is not None
    return claim_id


def give_request(wires: Wires, **columns: int | None) -> None:
    table = tables.requests
    wires.server.daemon.database.run(
        lambda conn: conn.execute(
            update(table).where(table.c.id == wires.request).values(version=table.c.version + 1, **columns)
        )
    )


def test_a_result_is_told_to_who_acts_for_the_request_by_now(wires: Wires) -> None:
    """However well this server remembers that it did."""
    claim_id = pending(wires)
    give_request(wires, owner_id=wires.server.other_server())
    wires.answers[OTHER] = {}
    wires.links.lifeguard_finished(wires.request, claim_id, "complete", 1)
    assert wires.calls == [(OTHER, f"/api/request/{wires.request}/event/lifeguard_finished/")]
    assert wires.server.request(wires.request).state == "pending"


def test_a_result_for_a_request_that_was_taken_over_needs_no_call(wires: Wires) -> None:
    claim_id = pending(wires)
    give_request(wires, imaging_server_id=wires.server.other_server(), owner_id=wires.server.daemon.server_id)
    wires.server.daemon.requests.forget(wires.request)
    wires.links.lifeguard_finished(wires.request, claim_id, "complete", 1)
    assert wires.calls == []
    assert wires.server.request(wires.request).state == "ready"


def test_a_result_that_nobody_hears_is_found_by_who_waits_for_it(wires: Wires) -> None:
    claim_id = pending(wires)
    give_request(wires, owner_id=wires.server.other_server())
    wires.links.lifeguard_finished(wires.request, claim_id, "complete", 1)
    wires.server.daemon.logbook.flush()
    lines = wires.server.get(f"/api/request/{wires.request}/log/").get_json()["log"]
    assert any("it will ask by itself" in line["message"] for line in lines)


def test_the_end_of_a_job_closes_its_request_wherever_that_is(wires: Wires) -> None:
    claim_id = pending(wires)
    give_request(wires, owner_id=wires.server.other_server())
    wires.answers[OTHER] = {}
    wires.links.job_ended(wires.request, claim_id, "job 12 has ended: completed", 1)
    assert wires.calls == [(OTHER, f"/api/request/{wires.request}/event/job_ended/")]
    assert wires.server.request(wires.request).state == "pending"
    give_request(wires, owner_id=None)
    wires.server.daemon.requests.forget(wires.request)
    wires.links.job_ended(wires.request, claim_id + 1, "of another claim", 1)
    assert wires.server.request(wires.request).state == "pending"
    wires.links.job_ended(wires.request, claim_id, "job 12 has ended: completed", 1)
    request = wires.server.request(wires.request)
    assert (request.state, request.reason) == ("closed", "job 12 has ended: completed")
    assert wires.server.device().claim_id is None


def test_the_call_of_another_server_closes_it_too(wires: Wires) -> None:
    claim_id = pending(wires)
    body = {"claim_id": claim_id, "reason": "job 12 has ended: completed", "event_id": "x"}
    for _ in range(2):
        assert wires.server.post(f"/api/request/{wires.request}/event/job_ended/", body).status_code == 200
    assert wires.server.request(wires.request).reason == "job 12 has ended: completed"


def test_a_small_answer_that_unpacked_would_fill_the_memory_stays_packed():
    packed = gzip.compress(bytes(64 * 1024 * 1024))

    def talk(connection: socket.socket) -> None:
        connection.recv(65536)
        head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(packed)}\r\n\r\n"
        connection.sendall(head.encode() + packed)

    tracemalloc.start()
    try:
        with server(talk) as name, pytest.raises(LinkError, match="an encoding that was not asked for"):
            http_post(name, "/api/device/d1/event/x/", {})
        assert tracemalloc.get_traced_memory()[1] < 8 * 1024 * 1024
    finally:
        tracemalloc.stop()
