# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The pdudaemon backend: against the real daemon, and against servers that are none."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from mozpool.bmm.backends.pdudaemon import PDUDaemonPower
from mozpool.bmm.interfaces import Target
from mozpool.config import BMM
from mozpool.errors import HardwareError, LaneError
from tests.contract.peers import Peer
from tests.contract.real_peers import Garbage, Trickle

ENOUGH = 60.0


def device(pdu: str = "pdu-1", port: str = "7") -> Target:
    return Target("panda-0001", "127.0.0.1", "aabbccddeeff", options={"pdu": pdu, "port": port})


@pytest.fixture
def at(context):
    """A backend for a daemon on this port."""
    return lambda port: PDUDaemonPower(replace(context, settings=BMM(pdudaemon=f"http://127.0.0.1:{port}")))


def test_a_cycle_is_off_and_on_by_one_call(pdudaemon, at, seconds):
    before = len(pdudaemon.lines("pdu-1"))
    at(pdudaemon.port).power_cycle(device(), seconds(ENOUGH))
    assert pdudaemon.lines("pdu-1")[before:] == ["7 off", "7 on"]


def test_the_call_is_as_pdudaemon_wants_it(start, at, seconds):
    peer = start(Garbage(b"HTTP/1.1 200 OK\r\nContent-Length: 22\r\n\r\nOK - accepted request\n"))
    at(peer.port).power_off(device(), seconds(ENOUGH))
    line, *headers = peer.received.decode().split("\r\n")
    assert line == "GET /power/control/off?hostname=pdu-1&port=7 HTTP/1.1"
    assert f"Host: 127.0.0.1:{peer.port}" in headers
    assert "Connection: close" in headers


def test_the_real_pause_of_a_cycle_is_a_whole_second(start, context, seconds):
    peer = start(Garbage(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK"))
    settings = BMM(pdudaemon=f"http://127.0.0.1:{peer.port}/")
    PDUDaemonPower(replace(context, speed=1, settings=settings)).power_cycle(device(), seconds(ENOUGH))
    assert peer.received.startswith(b"GET /power/control/reboot?hostname=pdu-1&port=7&delay=1 HTTP/1.1\r\n")


@pytest.mark.parametrize("pdu", ["unknown.example.com", "127.0.0.1:9"])
def test_a_pdu_that_is_not_known_or_not_there_is_the_culprit(pdudaemon, at, seconds, pdu):
    with pytest.raises(LaneError, match=r"answered 500 .*: it does not know the PDU, or the PDU did not") as caught:
        at(pdudaemon.port).power_on(device(pdu=pdu, port="1"), seconds(ENOUGH))
    assert caught.value.culprit == f"PDU {pdu} of pdudaemon at http://127.0.0.1:{pdudaemon.port}"


def test_a_pdu_that_takes_too_long_is_given_up_at_the_deadline(pdudaemon, at, seconds):
    with pytest.raises(LaneError, match=r"no answer within 0.5 s; the device may be without power"):
        at(pdudaemon.port).power_cycle(device(pdu="slow"), seconds(0.5))


def test_a_slow_pdu_holds_up_no_other(pdudaemon, at, seconds):
    with pytest.raises(LaneError):
        at(pdudaemon.port).power_on(device(pdu="slow"), seconds(0.2))
    at(pdudaemon.port).power_on(device(), seconds(ENOUGH))
    assert pdudaemon.lines("pdu-1")[-1] == "7 on"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n<!DOCTYPE", "answered 200 '<!DOCTYPE' where OK was expected"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\nnope", "answered 404 'nope'"),
        (b"HTTP/1.1 503 Away\r\n\r\n", "answered 503 ''"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\n\r\n", "answered 302, a redirect"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nOK", "closed the connection within its answer"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "is not HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nno", "answered 200"),
        (b"HTTP/1.1 99999999999 OK\r\n\r\n", "is not HTTP"),
        (b"x" * 100_000, "is not HTTP"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000 + b"\r\n", "is not HTTP"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 3, "closed the connection without an answer"),
    ],
)
def test_what_is_no_pdudaemon_is_an_error_with_a_reason(start, at, seconds, answer, reason):
    peer = start(Garbage(answer))
    with pytest.raises(LaneError, match=reason):
        at(peer.port).power_on(device(), seconds(ENOUGH))


class Babbler(Peer):
    """Sends an answer without end."""

    def serve(self, connection):
        self.receive(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            connection.sendall(b"OK" * 50_000)


def test_an_answer_without_end_is_given_up(start, at, seconds):
    with pytest.raises(LaneError, match="answered more than 4194304 bytes"):
        at(start(Babbler()).port).power_on(device(), seconds(ENOUGH))


def test_a_server_that_sends_a_byte_now_and_then_is_given_up_at_the_deadline(start, at, seconds):
    began = time.monotonic()
    with pytest.raises(LaneError, match=r"no answer within 0.5 s"):
        at(start(Trickle()).port).power_on(device(), seconds(0.5))
    assert time.monotonic() - began < 10


def test_the_environments_proxies_play_no_part(pdudaemon, at, seconds, monkeypatch, closed_port):
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{closed_port}")
    at(pdudaemon.port).power_on(device(), seconds(ENOUGH))
    assert pdudaemon.lines("pdu-1")[-1] == "7 on"


def test_options_that_its_drivers_would_hand_to_a_shell_never_leave(start, at, seconds):
    peer = start(Garbage())
    for bad in ("1;id", "$(id)", "-1", "", "1 2", "1\n", "x" * 300):
        for target in (device(port=bad), device(pdu=bad)):
            with pytest.raises(HardwareError, match=r"its option (pdu|port)") as caught:
                at(peer.port).power_on(target, seconds(ENOUGH))
            assert not isinstance(caught.value, LaneError)
    assert peer.connections == []
