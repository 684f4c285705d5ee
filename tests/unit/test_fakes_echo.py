# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Pings of fake boards: the datagrams and the probe that sends them."""

from __future__ import annotations

import socket
import threading
from dataclasses import replace

import pytest

from mozpool.bmm.interfaces import BackendContext, Target
from mozpool.clock import Clock, Deadline
from mozpool.errors import HardwareError
from mozpool.fakes.echo import ECHO_PORT, EchoProbe
from tests.unit.fakes_support import FAST, PATIENCE, address, rack_of, spec


@pytest.fixture
def probe():
    return EchoProbe(BackendContext(clock=Clock(), tftp_root=None))


def target(number=1, **options):
    return Target(f"board-{number}", address(number), "020000000001", options=options)


def ping(probe, device, seconds=10.0):
    return probe.ping(device, Deadline(Clock(), seconds))


def test_a_board_that_is_up_answers(probe):
    with rack_of(spec()):
        assert all(ping(probe, target()) for _ in range(3))


def test_a_board_without_power_does_not_answer(probe):
    with rack_of(spec()) as rack:
        rack.set_power("board-1", False)
        assert not ping(probe, target())


def test_where_nothing_listens_the_answer_comes_at_once(probe):
    clock = Clock()
    deadline = Deadline(clock, PATIENCE)
    assert not probe.ping(target(2), deadline)
    assert deadline.remaining() > PATIENCE - 0.4


def test_another_port_can_be_named(probe):
    with rack_of(spec(), echo_port=ECHO_PORT + 1):
        assert ping(probe, target(echo_port=str(ECHO_PORT + 1)))
        assert not ping(probe, target())


def test_a_lost_ping_costs_half_a_second_at_most(probe):
    with rack_of(spec(), behaviour=replace(FAST, ping_failure=1.0)):
        deadline = Deadline(Clock(), PATIENCE)
        assert not probe.ping(target(), deadline)
        assert PATIENCE - 2 < deadline.remaining() <= PATIENCE - 0.5


def test_the_deadline_counts_when_it_is_earlier(probe):
    with rack_of(spec(), behaviour=replace(FAST, ping_failure=1.0)):
        deadline = Deadline(Clock(), 0.05)
        assert not probe.ping(target(), deadline)
        assert not probe.ping(target(), deadline)


def test_pings_get_lost_as_often_as_they_should():
    with (
        rack_of(spec(), behaviour=replace(FAST, ping_failure=0.25)) as rack,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as connection,
    ):
        connection.connect((rack.boards["board-1"].spec.address, ECHO_PORT))
        connection.settimeout(0.2)
        for number in range(100):
            connection.send(b"mozpool-echo %d" % number)
        answers = set()
        while True:
            try:
                answers.add(connection.recv(64))
            except TimeoutError:
                break
        lost = 100 - len(answers)
        assert answers <= {b"mozpool-echo-reply %d" % number for number in range(100)}
        assert 10 < lost < 45


def test_other_datagrams_are_not_answered():
    with rack_of(spec()), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as connection:
        connection.connect((address(1), ECHO_PORT))
        connection.settimeout(PATIENCE)
        for datagram in (b"", b"ping", b"mozpool-echo", b"mozpool-echo " + b"x" * 33, b"mozpool-echo last"):
            connection.send(datagram)
        assert connection.recv(64) == b"mozpool-echo-reply last"


def test_an_answer_to_an_earlier_ping_does_not_count(probe):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as liar:
        liar.bind((address(3), 0))

        def answer():
            _, peer = liar.recvfrom(64)
            liar.sendto(b"mozpool-echo-reply of yesterday", peer)

        thread = threading.Thread(target=answer)
        thread.start()
        assert not ping(probe, target(3, echo_port=str(liar.getsockname()[1])))
        thread.join()


@pytest.mark.parametrize("options", [{"echo_port": "many"}, {"echo_port": "70000"}])
def test_a_port_that_is_none_is_an_error_that_names_the_device(probe, options):
    with pytest.raises(HardwareError, match="ping of board-1 failed"):
        ping(probe, target(**options))


def test_an_address_that_is_none_is_an_error_that_names_the_device(probe):
    with pytest.raises(HardwareError, match="ping of x failed: no such address"):
        ping(probe, Target("x", "no such address", "020000000001"))
