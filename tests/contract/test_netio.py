# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Connections with a total deadline: what the suites of the backends do not reach."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from mozpool.bmm.netio import Connection, PeerError
from tests.contract.peers import Peer, RelayBoard


class Deaf(Peer):
    """Accepts and reads nothing until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.let_go = threading.Event()

    def serve(self, connection):
        self.let_go.wait(10)


@pytest.fixture
def name_server(monkeypatch):
    """Stands in for the system's resolver; returns the addresses it gives and the event for which it waits."""
    addresses: list[tuple] = []
    answering = threading.Event()
    answering.set()
    real = socket.getaddrinfo

    def getaddrinfo(host, port, family=0, type=0, proto=0, flags=0):
        if flags & socket.AI_NUMERICHOST or host != "board.example.com":
            return real(host, port, family, type, proto, flags)
        answering.wait(10)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    yield addresses, answering
    answering.set()


def test_a_silent_name_server_does_not_stretch_the_deadline(name_server, seconds):
    name_server[1].clear()
    began = time.monotonic()
    with pytest.raises(PeerError, match=r"'board\.example\.com' was not resolved within 0\.2 s"):
        Connection("board.example.com", 1, seconds(0.2))
    assert time.monotonic() - began < 3


def test_every_address_of_a_name_is_tried(start, name_server, seconds, closed_port):
    board = start(RelayBoard())
    name_server[0].extend([("127.0.0.1", closed_port), ("127.0.0.1", board.port)])
    with Connection("board.example.com", board.port, seconds(5)) as connection:
        connection.send(b"\xfe\x21", seconds(5))
        assert connection.receive(seconds(5)) == b"\x55"


def test_a_name_without_an_address_is_an_error(name_server, seconds):
    with pytest.raises(PeerError, match="has no address"):
        Connection("board.example.com", 1, seconds(1))


def test_a_peer_that_takes_nothing_ends_the_sending_at_the_deadline(start, seconds):
    peer = start(Deaf())
    with Connection("127.0.0.1", peer.port, seconds(5)) as connection:
        began = time.monotonic()
        with pytest.raises(PeerError, match=r"did not take what was sent within 0\.3 s"):
            connection.send(b"x" * 50_000_000, seconds(0.3))
        assert time.monotonic() - began < 3
        peer.let_go.set()
        with pytest.raises(PeerError, match="lost the connection while sending"):
            for _ in range(100):
                connection.send(b"x" * 1_000_000, seconds(5))


class Keeper(Peer):
    """Keeps connections open and says nothing on them until it is told to, on the oldest."""

    def __init__(self, *, hangs: int = 1000) -> None:
        super().__init__()
        self.hangs = hangs
        """So many connections; the later ones hear a word at once."""
        self.kept: list[socket.socket] = []

    def serve(self, connection):
        if len(self.connections) > self.hangs:
            connection.sendall(b"hello")
            return self.linger(connection)
        self.kept.append(connection.dup())

    def __exit__(self, *error):
        super().__exit__(*error)
        for connection in self.kept:
            connection.close()


def test_a_connection_that_hangs_is_overtaken_by_a_later_one(start, seconds):
    peer = start(Keeper(hangs=3))
    began = time.monotonic()
    with Connection.that_speaks("127.0.0.1", peer.port, seconds(60), every=0.1) as connection:
        assert connection.receive(seconds(5)) == b"hello"
    assert 0.3 <= time.monotonic() - began < 10
    assert len(peer.kept) == 3
    for hanging in peer.kept:
        hanging.settimeout(5)
        assert hanging.recv(1) == b"", "it was not closed"


def test_an_old_connection_may_speak_yet_when_a_new_one_is_refused(start, seconds):
    peer = start(Keeper())
    speaking = []

    def speak() -> None:
        assert peer.connected.wait(5)
        peer._listener.shutdown(socket.SHUT_RDWR)
        time.sleep(0.5)
        peer.kept[0].sendall(b"hello")
        speaking.append(True)

    thread = threading.Thread(target=speak)
    thread.start()
    with Connection.that_speaks("127.0.0.1", peer.port, seconds(60), every=0.1) as connection:
        assert connection.receive(seconds(5)) == b"hello"
    thread.join(5)
    assert speaking


def test_every_address_of_a_name_is_tried_at_once_for_one_that_speaks(start, name_server, seconds, closed_port):
    peer = start(Keeper(hangs=0))
    name_server[0].extend([("127.0.0.1", closed_port), ("127.0.0.1", peer.port)])
    began = time.monotonic()
    with Connection.that_speaks("board.example.com", 1, seconds(60), every=30) as connection:
        assert connection.receive(seconds(5)) == b"hello"
    assert time.monotonic() - began < 20
    del name_server[0][1]
    with pytest.raises(PeerError, match="no connection: Connection refused"):
        Connection.that_speaks("board.example.com", 1, seconds(60))
    name_server[0].clear()
    with pytest.raises(PeerError, match="has no address"):
        Connection.that_speaks("board.example.com", 1, seconds(1))


def test_one_that_never_speaks_is_given_up_at_the_deadline(start, seconds):
    peer = start(Keeper())
    began = time.monotonic()
    with pytest.raises(PeerError, match=r"no answer within 0\.5 s"):
        Connection.that_speaks("127.0.0.1", peer.port, seconds(0.5), every=0.1)
    assert 0.5 <= time.monotonic() - began < 5
    with pytest.raises(PeerError, match="no connection within 0 s"):
        Connection.that_speaks("127.0.0.1", peer.port, seconds(0))


def test_what_nobody_asked_for_is_found_without_waiting_or_within_a_moment(start, seconds):
    board = start(RelayBoard())
    with Connection("127.0.0.1", board.port, seconds(5)) as connection:
        assert connection.unasked(0) == b""
        connection.send(b"\xfe\x21", seconds(5))
        assert connection.unasked(5) == b"\x55"
        began = time.monotonic()
        assert connection.unasked(0.1) == b""
        assert 0.1 <= time.monotonic() - began < 5


def test_nothing_more_is_tried_after_the_deadline(start, seconds):
    board = start(RelayBoard())
    with Connection("127.0.0.1", board.port, seconds(5)) as connection:
        connection.send(b"\xfe\x21", seconds(5))
        with pytest.raises(PeerError, match="no answer within 0 s"):
            connection.receive(seconds(0))
