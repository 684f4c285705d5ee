# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What every Probe backend keeps to, each with the peer that it is made for."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest

from mozpool.bmm.backends.fping import FpingProbe
from mozpool.bmm.interfaces import Probe, Target
from mozpool.config import BMM
from mozpool.errors import HardwareError
from mozpool.fakes.adbd import AdbFault
from mozpool.fakes.echo import EchoProbe, EchoServer
from tests.contract.real_peers import PATIENCE, AdbDevice, Dripping, Garbage, Silent

ENOUGH = 60.0


@dataclass
class Lab:
    """A backend, devices that answer, devices that don't, and askers that can't ask."""

    probe: Probe
    there: tuple[Target, Target]
    away: tuple[Target, ...]
    """A refused connection, an address without anybody, a device that is silent or sends garbage."""
    cannot_ask: tuple[tuple[Probe, Target], ...]
    drip: Probe | None = None
    """One whose peer's bytes come one at a time."""


def device(address: str = "127.0.0.1", **options: str) -> Target:
    return Target("panda-0001", address, "aabbccddeeff", options=options)


def fping(request) -> Lab:
    if shutil.which("fping") is None:
        pytest.skip("fping is not installed (Debian package fping)")
    context = request.getfixturevalue("context")
    probe = FpingProbe(context)
    missing = FpingProbe(replace(context, settings=BMM(fping="/nowhere/fping")))
    return Lab(
        probe,
        (device(), device("127.0.0.2")),
        # Reserved, so that nobody has it and nothing leaves the machine.
        away=(device("240.0.0.1"), device("::2")),
        cannot_ask=((missing, device()), (probe, device("a..b"))),
    )


@contextlib.contextmanager
def echo_server(*, answers: Callable[[], bool]) -> Iterator[int]:
    """The port of an echo server."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    server = EchoServer("panda-0001", "127.0.0.1", port, answers=answers)
    try:
        asyncio.run_coroutine_threadsafe(server.start(), loop).result(PATIENCE)
        yield port
    finally:
        loop.call_soon_threadsafe(server.close)
        loop.call_soon_threadsafe(loop.call_soon, loop.stop)
        thread.join(PATIENCE)
        loop.close()


@contextlib.contextmanager
def babbler() -> Iterator[int]:
    """The port of somebody who answers each datagram with what is no answer."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))

        def serve() -> None:
            while (data := sock.recvfrom(1024))[0] != b"end":
                sock.sendto(b"mozpool-echo-reply nonsense", data[1])

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield sock.getsockname()[1]
        finally:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
                end.sendto(b"end", sock.getsockname())
            thread.join(PATIENCE)


def echo(request) -> Lab:
    start, context = request.getfixturevalue("start"), request.getfixturevalue("context")
    ports = [start(echo_server(answers=lambda: True)) for _ in range(2)]
    silent = start(echo_server(answers=lambda: False))
    probe = EchoProbe(context)
    return Lab(
        probe,
        (device(echo_port=str(ports[0])), device(echo_port=str(ports[1]))),
        away=(
            device(echo_port=str(silent)),
            device(echo_port=str(request.getfixturevalue("closed_port"))),
            device(echo_port=str(start(babbler()))),
        ),
        cannot_ask=((probe, device(echo_port="x")), (probe, device(echo_port="99999"))),
    )


def adb(request) -> Lab:
    start, context = request.getfixturevalue("start"), request.getfixturevalue("context")
    server = request.getfixturevalue("adb_server")
    from mozpool.bmm.backends.adb import AdbProbe

    def at(port: int) -> Probe:
        return AdbProbe(replace(context, settings=BMM(adb_server=f"127.0.0.1:{port}")))

    closed_port = request.getfixturevalue("closed_port")
    good = [start(AdbDevice()) for _ in range(2)]
    bad = []
    for fault in (AdbFault.SILENT, AdbFault.GARBAGE, AdbFault.HANG, AdbFault.BABBLE):
        bad.append(start(AdbDevice()))
        bad[-1].daemon.fault = fault
    probe = at(server.port)
    return Lab(
        probe,
        (device(serial=good[0].serial), device(serial=good[1].serial)),
        away=(
            *(device(serial=fake.serial) for fake in bad),
            device(serial=f"127.0.0.1:{closed_port}"),
            device(serial="0123456789ABCDEF"),
        ),
        cannot_ask=(
            (at(closed_port), device()),
            (at(start(Silent()).port), device()),
            (at(start(Garbage()).port), device()),
            (probe, device(serial="-s nonsense")),
            (probe, device("not an address")),
        ),
        drip=at(start(Dripping(server.port)).port),
    )


LABS = {made.__name__: made for made in (fping, echo, adb)}


@pytest.fixture(params=LABS)
def lab(request) -> Lab:
    return LABS[request.param](request)


def answers(probe: Probe, target: Target, seconds) -> bool:
    """Whether it answers one of some pings: each has half a second only, and this machine may be busy."""
    return any(probe.ping(target, seconds(ENOUGH)) for _ in range(20))


def test_a_device_that_is_there_answers(lab, seconds):
    assert all(answers(lab.probe, target, seconds) for target in lab.there)


def test_a_device_that_is_not_there_does_not_answer_and_costs_little_time(lab, seconds):
    for target in lab.away:
        began = time.monotonic()
        assert lab.probe.ping(target, seconds(ENOUGH)) is False
        assert time.monotonic() - began < 15


def test_a_ping_is_over_by_its_deadline(lab, seconds):
    for target in lab.away:
        began = time.monotonic()
        with contextlib.suppress(HardwareError):  # so soon it may not even have been able to ask
            assert lab.probe.ping(target, seconds(0.1)) is False
        assert time.monotonic() - began < 10


def test_who_cannot_ask_says_why(lab, seconds):
    for probe, target in lab.cannot_ask:
        began = time.monotonic()
        with pytest.raises(HardwareError, match=r"^ping of panda-0001 failed: .{10}"):
            probe.ping(target, seconds(ENOUGH))
        assert time.monotonic() - began < 30


def test_answers_that_come_one_byte_at_a_time_are_fine(lab, seconds):
    if lab.drip is None:
        pytest.skip("it speaks no TCP")
    assert answers(lab.drip, lab.there[0], seconds)


def test_a_device_that_hangs_holds_up_no_other(lab, seconds):
    assert answers(lab.probe, lab.there[0], seconds)
    done = threading.Event()

    def ask_the_others() -> None:
        while not done.is_set():
            for target in lab.away:
                lab.probe.ping(target, seconds(ENOUGH))

    thread = threading.Thread(target=ask_the_others)
    thread.start()
    try:
        assert all(answers(lab.probe, target, seconds) for target in lab.there)
    finally:
        done.set()
        thread.join(ENOUGH)
