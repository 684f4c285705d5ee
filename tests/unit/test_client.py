# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The Python client against servers that speak real HTTP."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from mozpool.client import (
    BadRequest,
    Client,
    ClientError,
    Conflict,
    DeviceLost,
    NotFound,
    Progress,
    RequestFailed,
    ServerUnavailable,
    WaitTimeout,
)
from mozpool.clock import SimClock
from tests.unit.client_support import BREAK, Answer, Call, Pool, PoolServer, closed_port, error

BUSY = error(503, "database_away", "the database is away")
AWAY = Answer(503, BUSY.body, {"Retry-After": "60"})
B2G: dict[str, Any] = {"image": "b2g", "duration": 600, "boot_config": {"b2gbase": "http://x/"}}


@pytest.fixture
def pool() -> Pool:
    return Pool()


@pytest.fixture
def server(pool: Pool) -> Iterator[PoolServer]:
    with PoolServer(pool) as server:
        yield server


@pytest.fixture
def other(pool: Pool) -> Iterator[PoolServer]:
    with PoolServer(pool) as server:
        yield server


def client_of(*servers: PoolServer | str, **options) -> Client:
    urls = [server if isinstance(server, str) else server.url for server in servers]
    options.setdefault("assignee", "me@example.com")
    options.setdefault("rng", random.Random(1))
    return Client(urls, **options)


# Which server, and how often


def test_it_tries_servers_in_random_order(server, other):
    client = client_of(server, other)
    for _ in range(20):
        client.version()
    assert len(server.calls) + len(other.calls) == 20
    assert len(server.calls) > 3
    assert len(other.calls) > 3


def test_it_goes_on_to_the_next_server_when_one_is_down(server):
    client = client_of(f"127.0.0.1:{closed_port()}", server)
    for _ in range(5):
        assert client.version() == "5.0.0"


@pytest.mark.parametrize("fault", [BREAK, BUSY, Answer(502, "<html>"), Answer(504, "<html>")])
def test_reading_goes_on_to_the_next_server_when_one_fails(server, other, fault):
    server.always = fault
    client = client_of(server, other)
    for _ in range(5):
        assert client.version() == "5.0.0"
    assert server.calls


CUT = [
    "HTTP/1.1 200 OK\r\n",
    "HTTP/1.1 200 OK\r\nContent-Le",
    "HTTP/1.1 200 OK\r\nContent-Length: 1",
    "HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n{",
    "HTTP/1.1 302 Found\r\nContent-Type: application/json\r\n",
    "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1",
    "HTTP/1.1 404 Not Fo",
]


@pytest.mark.parametrize("cut", CUT)
def test_an_answer_that_is_cut_is_none(server, cut):
    server.faults.append(Answer(200, cut=cut))
    assert client_of(server, clock=SimClock()).version() == "5.0.0"
    assert len(server.calls) == 2


def test_what_was_sent_on_and_is_not_safe_to_repeat_was_not_done(server):
    server.faults.append(Answer(302, cut="HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1"))
    client_of(server, clock=SimClock()).reboot("panda-1")
    assert len(server.calls) == 2


def test_a_server_that_never_answers_leaves_time_for_the_others(server, other):
    server.always = server.hang
    client = client_of(server, other, timeout=2)
    while not server.calls:
        assert client.version() == "5.0.0"


def test_it_says_when_no_server_answers():
    client = client_of(f"http://127.0.0.1:{closed_port()}", clock=SimClock())
    with pytest.raises(ServerUnavailable, match=r"127\.0\.0\.1:\d+ can't be reached: connection refused"):
        client.version()


def test_it_tries_until_its_time_is_over_and_then_gives_up():
    clock = SimClock()
    ports = [closed_port(), closed_port()]
    client = client_of(*(f"127.0.0.1:{port}" for port in ports), clock=clock, timeout=20)
    with pytest.raises(ServerUnavailable, match="none of 2 servers"):
        client.version()
    assert 10 < clock.monotonic() <= 20


def test_the_time_that_a_server_may_take_is_not_spent_on_trying_to_reach_one():
    clock = SimClock()
    client = client_of(f"127.0.0.1:{closed_port()}", clock=clock, timeout=20)
    with pytest.raises(ServerUnavailable, match="can't be reached"):
        client.report("devices")
    assert clock.monotonic() <= 20


def test_it_waits_as_long_as_a_busy_server_asks(server):
    clock = SimClock()
    server.faults.extend([Answer(503, BUSY.body, {"Retry-After": "4"})] * 2)
    assert client_of(server, clock=clock).version() == "5.0.0"
    assert 8 <= clock.monotonic() < 9
    assert len(server.calls) == 3


def test_it_gives_up_at_once_when_a_busy_server_asks_for_more_time_than_there_is(server):
    clock = SimClock()
    server.always = AWAY
    with pytest.raises(ServerUnavailable, match="the database is away") as caught:
        client_of(server, clock=clock).version()
    assert (caught.value.status, len(server.calls), clock.monotonic()) == (503, 1, 0)


@pytest.mark.parametrize("fault", [BREAK, BUSY])
def test_what_is_not_safe_to_repeat_is_not_repeated(server, fault):
    server.faults.append(fault)
    with pytest.raises(ServerUnavailable, match="may have taken effect and was not repeated"):
        client_of(server).agent_exec("panda-1", ["ls"])
    assert len(server.calls) == 1


def test_what_did_not_reach_a_server_is_asked_of_the_next_one(server):
    client = client_of(f"127.0.0.1:{closed_port()}", server)
    for _ in range(5):
        client.reboot("panda-1")
    assert len(server.calls) == 5


def test_returning_a_device_by_name_is_not_repeated_because_the_next_holder_may_have_it(server):
    server.faults.append(server.serve_then_break)
    with pytest.raises(ServerUnavailable):
        client_of(server).return_device("panda-1")
    assert len(server.pool.device_calls) == 1


def test_returning_and_renewing_a_request_are_repeated(server):
    client = client_of(server, clock=SimClock())
    made = client.request(**B2G)
    server.faults.append(server.serve_then_break)
    client.renew(made.id, 60)
    server.faults.append(server.serve_then_break)
    client.return_request(made.id)
    assert [call.path for call in server.calls[1:]] == ["/api/request/1/renew/"] * 2 + ["/api/request/1/return/"] * 2


def test_a_repeated_request_has_the_same_key_and_gives_the_same_request(server, other):
    server.faults.append(server.serve_then_break)
    other.faults.append(other.serve_then_break)
    client = client_of(server, other, clock=SimClock())
    made = client.request(**B2G)
    keys = {call.headers["Idempotency-Key"] for call in server.pool.calls}
    assert (made.id, len(server.pool.calls), len(keys), len(server.pool.requests)) == (1, 3, 1, 1)


def test_two_requests_have_different_keys_even_of_clients_with_equal_seeds(server):
    ids = {client_of(server, rng=random.Random(7)).request(**B2G).id for _ in range(2)}
    assert ids == {1, 2}


# Redirects


def redirect(to: str, status: int = 302) -> Answer:
    return Answer(status, None, {"Location": to})


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_followed_with_verb_and_body(server, other, status):
    client = client_of(server)
    made = client.request(**B2G)
    server.faults.append(redirect(f"{other.url}/api/request/{made.id}/renew/", status))
    client.renew(made.id, 77)
    (call,) = other.calls
    assert (call.verb, call.path, call.body) == ("POST", "/api/request/1/renew/", {"duration": 77})


def test_a_redirects_query_is_taken_as_it_is(server, other):
    server.faults.append(redirect(f"{other.url}/api/device/list/?details=1&state=ready"))
    client_of(server).devices(state="ready")
    assert other.calls[0].query == {"details": ["1"], "state": ["ready"]}


def test_a_redirect_may_be_relative(server):
    server.faults.append(redirect("/api/version/?again=1"))
    assert client_of(server).version() == "5.0.0"


def test_redirects_without_end_are_an_error(server, other):
    server.always = lambda call: redirect(f"{other.url}{call.path}")
    other.always = lambda call: redirect(f"{server.url}{call.path}")
    with pytest.raises(ClientError, match="more than 5 redirects"):
        client_of(server).version()
    assert len(server.pool.calls) == 6


@pytest.mark.parametrize("target", ["", "file:///etc/passwd", "ftp://127.0.0.1/"])
def test_redirects_that_lead_nowhere_are_an_error(server, target):
    server.faults.append(redirect(target))
    with pytest.raises(ClientError, match="redirects to"):
        client_of(server).version()


def test_redirects_are_logged(server, other, caplog):
    server.faults.append(redirect(f"{other.url}/api/version/"))
    with caplog.at_level("INFO", "mozpool.client"):
        client_of(server).version()
    assert f"GET {server.url}/api/version/ is served by {other.url}/api/version/" in caplog.text


# Errors


def test_errors_have_types(server):
    client = client_of(server)
    with pytest.raises(NotFound, match="there is no image 'x'") as not_found:
        client.request(image="x", duration=60)
    assert (not_found.value.status, not_found.value.code) == (404, "not_found")
    with pytest.raises(BadRequest) as bad:
        client.request(**B2G | {"duration": 10**7})
    assert (bad.value.status, bad.value.field, bad.value.message) == (400, "duration", "duration: too much")
    with pytest.raises(Conflict, match="panda-2 is taken") as conflict:
        client.request("panda-2", **B2G)
    assert conflict.value.request is not None
    assert (conflict.value.request.id, conflict.value.request.ended) == (99, True)


def test_a_conflict_of_an_old_server_has_a_sentence_too(server):
    request = {"id": 5, "requested_device": "panda-2", "assigned_device": "panda-2"}
    server.faults.append(Answer(409, {"request": request}))
    with pytest.raises(Conflict, match="device panda-2 is taken"):
        client_of(server).request("panda-2", **B2G)


@pytest.mark.parametrize("answer", [Answer(200, "<html>"), Answer(500, "<html>"), error(500, "internal_error", "oh")])
def test_what_is_no_answer_of_an_imaging_server_is_an_error(server, answer):
    server.faults.append(answer)
    with pytest.raises(ClientError):
        client_of(server).version()
    assert len(server.calls) == 1


@pytest.mark.parametrize("url", ["", "ftp://x", "http://", "http://x:port", "http://x:0", "http://x?y"])
def test_servers_that_cannot_be_are_refused(url):
    with pytest.raises(ValueError, match="server"):
        Client(url)


def test_servers_may_be_named_in_one_text():
    assert Client("a, b:81  https://c/pool/").servers == ("http://a", "http://b:81", "https://c/pool")


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_names_that_would_change_the_path_are_refused(server, name):
    with pytest.raises(BadRequest):
        client_of(server).device(name)
    assert not server.calls


def test_names_are_quoted(server):
    with pytest.raises(NotFound):
        client_of(server).device("a/b?c")
    assert server.calls[0].path == "/api/device/a%2Fb%3Fc/details/"


# What is asked, and what is answered


def test_a_request_says_all_that_is_wanted(server):
    client = client_of(server)
    made = client.request(
        "panda-1",
        **B2G,
        environment="staging",
        wait=60,
        priority=5,
        hardware_type="panda",
        hardware_model="ES",
        labels={"pool": "b2g"},
        callback_url="http://x/",
    )
    (call,) = server.calls
    assert call.path == "/api/device/panda-1/request/"
    assert call.body == {
        "assignee": "me@example.com",
        "image": "b2g",
        "duration": 600,
        "b2gbase": "http://x/",
        "environment": "staging",
        "wait": 60,
        "priority": 5,
        "hardware_type": "panda",
        "hardware_model": "ES",
        "labels": {"pool": "b2g"},
        "callback_url": "http://x/",
    }
    assert made.expires == datetime(2030, 1, 1, 0, 30, tzinfo=UTC)
    assert made.boot_config == {"b2gbase": "http://x/"}
    assert made.assigned_device is None
    assert made.waiting is not None
    assert (made.waiting.place, made.waiting.reason) == (2, "all 3 taken")


def test_a_boot_config_cannot_replace_what_the_call_says(server):
    with pytest.raises(BadRequest, match="duration is not a key of an image"):
        client_of(server).request(image="b2g", duration=60, boot_config={"duration": "1"})
    assert not server.calls


def test_devices_are_typed(server):
    client = client_of(server)
    device = client.devices(labels={"pool": "b2g", "x": "y"}, claimed=False)[0]
    assert server.calls[0].query == {"details": ["1"], "label": ["pool=b2g", "x=y"], "claimed": ["false"]}
    assert device == client.device("panda-1")
    assert (device.name, device.address, device.labels) == ("panda-1", "127.0.0.9", {"pool": "b2g"})
    assert (device.request_id, device.assignee) == (1, "me@example.com")
    assert device.expires == datetime(2030, 1, 1, 0, 30, tzinfo=UTC)


def test_images_environments_and_logs_are_typed(server):
    client = client_of(server)
    (image,) = client.images()
    assert (image.name, image.boot_config_keys, image.can_reuse) == ("b2g", ("b2gbase",), True)
    assert client.environments() == ["production", "staging"]
    (line,) = client.log("panda-1", limit=5)
    assert (line.id, line.source, line.timestamp) == (7, "statemachine", datetime(2030, 1, 1, tzinfo=UTC))
    assert server.calls[-1].query == {"limit": ["5"]}


def test_what_a_holder_or_an_operator_does_to_a_device(server):
    client = client_of(server)
    client.reboot("panda-1", request_id=4)
    client.flash("panda-1", "b2g", {"b2gbase": "http://x/"})
    client.set_status("panda-1", "offline", "broken screen")
    client.return_device("panda-1")
    result = client.agent_exec("panda-1", ["echo", "hello"], 5)
    assert (result.output, result.return_code) == ("hello\n", 3)
    me = {"assignee": "me@example.com"}
    assert server.pool.device_calls == [
        ("panda-1", "reboot", me | {"request_id": 4}),
        ("panda-1", "flash", me | {"image": "b2g", "b2gbase": "http://x/"}),
        ("panda-1", "status", me | {"status": "offline", "reason": "broken screen"}),
        ("panda-1", "return", me),
        ("panda-1", "agent/exec", me | {"command": ["echo", "hello"], "timeout": 5}),
    ]


# Waiting


def test_waiting_tells_each_state_and_gives_the_device(server):
    client = client_of(server)
    made = client.request(**B2G)
    seen: list[Progress] = []
    ready = client.wait_ready(made.id, on_change=seen.append)
    assert (ready.ready, ready.assigned_device) == (True, "panda-1")
    assert [(p.previous, p.status.state) for p in seen] == [
        (None, "finding_device"),
        ("finding_device", "pending"),
        ("pending", "ready"),
    ]
    assert [len(progress.lines) for progress in seen] == [1, 0, 0]


def test_waiting_for_a_request_that_fails_tells_why(server):
    server.pool.steps = ("finding_device", "failed_device_not_found")
    client = client_of(server)
    with pytest.raises(RequestFailed, match="request 1 ended in state failed_device_not_found: it is broken") as caught:
        client.wait_ready(client.request(**B2G).id)
    assert (caught.value.state, caught.value.reason) == ("failed_device_not_found", "it is broken")


def test_waiting_ends_when_its_time_is_over(server):
    server.pool.steps = ("finding_device",)
    client = client_of(server)
    with pytest.raises(WaitTimeout, match=r"not ready within 0\.1 s: it is in state finding_device"):
        client.wait_ready(client.request(**B2G).id, 0.1)


def test_waiting_survives_servers_that_go_away_for_a_while(server):
    client = client_of(server, clock=SimClock())
    made = client.request(**B2G)
    server.faults.extend([AWAY] * 5)
    assert client.wait_ready(made.id).ready


def test_waiting_gives_up_when_no_server_comes_back(server):
    clock = SimClock()
    client = client_of(server, clock=clock)
    made = client.request(**B2G)
    server.always = AWAY
    with pytest.raises(ServerUnavailable):
        client.wait_ready(made.id)
    assert 60 <= clock.monotonic() < 70


def test_waiting_does_not_hurry_servers_that_know_no_long_polls(server):
    clock = SimClock()
    answers = [Answer(200, {"state": "pending", "log": []})] * 10
    server.faults.extend([*answers, Answer(200, {"state": "failed_bad_device", "log": []}), error(404, "x", "x")])
    with pytest.raises(ClientError):
        client_of(server, clock=clock).wait_ready(1)
    assert clock.monotonic() >= 4


# Holding


def test_a_held_device_is_returned_at_the_end(server):
    with client_of(server).hold(**B2G) as device:
        assert (device.name, device.address) == ("panda-1", "127.0.0.9")
        assert server.pool.requests[1]["state"] == "ready"
    assert server.pool.requests[1]["state"] == "closed"


def test_a_held_device_is_returned_after_an_exception(server):
    with pytest.raises(KeyError), client_of(server).hold(**B2G):
        raise KeyError("test")
    assert server.pool.requests[1]["state"] == "closed"


@pytest.mark.parametrize("exception", [KeyboardInterrupt, SystemExit, ValueError])
def test_a_request_is_returned_when_waiting_for_it_is_interrupted(server, exception):
    def interrupt(progress: Progress) -> None:
        raise exception

    with pytest.raises(exception), client_of(server).hold(**B2G, on_change=interrupt):
        pytest.fail("this is not reached")
    assert server.pool.requests[1]["state"] == "closed"
    assert server.pool.count("POST .*/return/") == 1


def test_a_request_is_returned_when_making_it_is_interrupted(server, monkeypatch):
    client = client_of(server)
    really = client._transport.call

    def interrupted(call):
        really(call)
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(client._transport, "call", interrupted)
    with pytest.raises(KeyboardInterrupt), client.hold(**B2G):
        pytest.fail("this is not reached")
    assert [request["state"] for request in server.pool.requests.values()] == ["closed"]


def test_a_request_that_is_not_ready_in_time_is_returned(server):
    server.pool.steps = ("finding_device",)
    with pytest.raises(WaitTimeout), client_of(server).hold(**B2G, timeout=0.1):
        pytest.fail("this is not reached")
    assert server.pool.requests[1]["state"] == "closed"


def test_a_held_device_is_renewed_at_half_of_its_duration(server):
    with client_of(server).hold(**B2G | {"duration": 0.2}):
        server.pool.wait_for(lambda: server.pool.count("POST .*/renew/") >= 3)
    assert {str(call.body) for call in server.pool.matching("POST .*/renew/")} == {"{'duration': 0.2}"}
    assert server.pool.calls[-1].path.endswith("/return/")
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("renew")]


def test_a_request_is_renewed_while_it_waits(server):
    server.pool.steps = ("finding_device",)

    def ready_after_renewal() -> None:
        server.pool.wait_for(lambda: server.pool.count("POST .*/renew/") >= 1)
        server.pool.set_state(1, "ready")

    helper = threading.Thread(target=ready_after_renewal)
    helper.start()
    with client_of(server).hold(**B2G | {"duration": 0.2}):
        pass
    helper.join()


def test_a_device_that_is_lost_is_told_at_once_and_at_the_end(server):
    lost = threading.Event()
    hold = client_of(server).hold(**B2G | {"duration": 0.1}, on_lost=lambda error: lost.set())
    with pytest.raises(DeviceLost, match="the device of request 1 is lost: request 1 has ended") as caught, hold:
        hold.check()
        server.pool.set_state(1, "closed")
        assert lost.wait(10)
        with pytest.raises(DeviceLost):
            hold.check()
    assert caught.value is hold.error


def test_a_device_is_lost_when_no_server_renews_it_until_it_expires(server):
    lost = threading.Event()
    with (
        pytest.raises(DeviceLost, match="is lost"),
        client_of(server).hold(**B2G | {"duration": 0.3}, on_lost=lambda error: lost.set()),
    ):
        server.always = AWAY
        assert lost.wait(10)
        server.always = None


def test_a_renewal_that_fails_once_is_made_again(server):
    with client_of(server).hold(**B2G | {"duration": 1.0}):
        server.always = lambda call: AWAY if "renew" in call.path else None
        server.pool.wait_for(lambda: server.pool.count("POST .*/renew/") >= 1)
        server.always = None
        before = server.pool.count("POST .*/renew/")
        server.pool.wait_for(lambda: server.pool.count("POST .*/renew/") > before)


def test_the_blocks_own_exception_wins_and_tells_of_the_device(server):
    def no_return(call: Call) -> Answer | None:
        return error(500, "internal_error", "no way") if "return" in call.path else None

    server.always = no_return
    with pytest.raises(KeyError) as caught, client_of(server).hold(**B2G):
        raise KeyError("test")
    assert caught.value.__notes__ == ["and the device: no way"]
    with pytest.raises(ClientError, match="no way"), client_of(server).hold(**B2G):
        pass
