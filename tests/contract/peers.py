# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Small servers that speak the devices' real bytes on loopback, with the faults that real ones have.

They are scripts for the contract suites, independent of the product's own fakes: each keeps what it received,
as it arrived, so that a test can compare the bytes with the wire facts.
"""

from __future__ import annotations

import contextlib
import hashlib
import socket
import threading
from collections.abc import Mapping
from enum import Enum, auto
from types import TracebackType


class Peer:
    """A TCP server on 127.0.0.1 that handles one connection after the other. A context manager."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.connected = threading.Event()
        """Set once somebody has connected."""
        self.connections: list[list[bytes]] = []
        """What each connection brought, a list of the pieces as they arrived."""
        self._connection: socket.socket | None = None
        self._thread = threading.Thread(target=self._accept, name=f"{type(self).__name__} {self.port}")
        self._stopping = False

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stopping = True
        for sock in (self._listener, self._connection):
            if sock is not None:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)
        self._listener.close()
        assert not self._thread.is_alive(), "the peer's thread did not end"

    @property
    def received(self) -> bytes:
        """All bytes of all connections."""
        return b"".join(piece for pieces in self.connections for piece in pieces)

    def serve(self, connection: socket.socket) -> None:
        """Talk on one connection until it ends."""
        raise NotImplementedError

    def receive(self, connection: socket.socket) -> bytes:
        """The next piece, remembered; empty at the end."""
        piece = connection.recv(65536)
        if piece:
            self.connections[-1].append(piece)
        return piece

    def linger(self, connection: socket.socket) -> None:
        """Say nothing until the other side gives up."""
        while self.receive(connection):
            pass

    def _accept(self) -> None:
        while not self._stopping:
            try:
                self._connection, _ = self._listener.accept()
            except OSError:
                return
            with self._connection:
                self.connections.append([])
                self.connected.set()
                with contextlib.suppress(OSError):
                    self.serve(self._connection)


class RelayFault(Enum):
    """How a relay board misbehaves."""

    NONE = auto()
    SILENT = auto()
    GARBAGE = auto()
    CLOSES_AT_ONCE = auto()
    CLOSES_AFTER_FIRST_ANSWER = auto()
    STUCK = auto()
    """Confirms everything and switches nothing."""
    ODD_STATUS = auto()
    """Answers 7 where a relay is read."""


class RelayBoard(Peer):
    """A ProXR board: 254, then a command; answers 85, or 0 and 1 for a relay that is read."""

    def __init__(self, fault: RelayFault = RelayFault.NONE) -> None:
        super().__init__()
        self.fault = fault
        self.relays: dict[tuple[int, int], bool] = {}
        """(bank, relay) that are on, which means: device without power."""

    def serve(self, connection: socket.socket) -> None:
        if self.fault is RelayFault.CLOSES_AT_ONCE:
            return
        if self.fault is RelayFault.SILENT:
            return self.linger(connection)
        while command := self.receive(connection):
            connection.sendall(self.answer(command))
            if self.fault is RelayFault.CLOSES_AFTER_FIRST_ANSWER:
                return

    def answer(self, command: bytes) -> bytes:
        if self.fault is RelayFault.GARBAGE:
            return b"HTTP/1.0 400 Bad Request\r\n\r\n"
        if command == b"\xfe\x21":
            return b"\x55"
        prefix, code, bank = command  # a command that arrives in pieces is an error here: firmware 3.2
        assert prefix == 254
        action, relay = divmod(code - 100, 8)
        if action == 2:
            return (
                b"\x07" if self.fault is RelayFault.ODD_STATUS else bytes([self.relays.get((bank, relay + 1), False)])
            )
        if self.fault is not RelayFault.STUCK:
            self.relays[bank, relay + 1] = action == 1
        return b"\x55"


PROMPT = b"$>\0"
CLOSE = b"<close the connection>"
SILENCE = b""


class AgentPeer(Peer):
    """A SUTAgent as the Linux one answers.

    ``answers`` maps a command line to raw bytes that replace its answer, prompt included: one value for always,
    or a list that is used up from the front (None in it: as usual).
    """

    def __init__(
        self,
        answers: Mapping[str, bytes | list[bytes | None]] | None = None,
        *,
        greeting: bytes = PROMPT,
        byte_by_byte: bool = False,
    ) -> None:
        super().__init__()
        self.answers = answers or {}
        self.greeting = greeting
        self.byte_by_byte = byte_by_byte
        self.directories = {"/r"}
        self.files: dict[str, bytes] = {}

    @property
    def lines(self) -> list[str]:
        """The command lines received, as far as they are text."""
        return [line.decode() for line in self.received.split(b"\r\n") if line]

    def serve(self, connection: socket.socket) -> None:
        if self.greeting == CLOSE:
            return
        self.send(connection, self.greeting)
        waiting = b""
        while piece := self.receive(connection):
            waiting += piece
            while b"\r\n" in waiting:
                raw, waiting = waiting.split(b"\r\n", 1)
                line = raw.decode()
                content = b""
                if line.startswith("push "):
                    size = int(line.split(" ")[2])
                    while len(waiting) < size:
                        waiting += self.receive(connection)
                    content, waiting = waiting[:size], waiting[size:]
                answer = self.scripted(line)
                if answer is None:
                    answer = b"\n".join([self.usual(line, content), PROMPT])
                if answer == CLOSE or line in ("rebt", "quit"):
                    return
                self.send(connection, answer)

    def send(self, connection: socket.socket, data: bytes) -> None:
        if not self.byte_by_byte:
            return connection.sendall(data)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in data:
            connection.sendall(bytes([byte]))

    def scripted(self, line: str) -> bytes | None:
        script = self.answers.get(line, self.answers.get(line.split(" ")[0]))
        if isinstance(script, list):
            return script.pop(0) if script else None
        return script

    def usual(self, line: str, content: bytes) -> bytes:
        command, *arguments = line.split(" ")
        path = arguments[0] if arguments else ""
        if command == "ver":
            return b"SUTAgentNegatus Version 1.1"
        if command == "testroot":
            return b"/r"
        if command == "isdir":
            return b"TRUE" if path in self.directories else b"FALSE"
        if command == "mkdr":
            if path in self.directories or path.rpartition("/")[0] not in self.directories:
                return f"##AGENT-WARNING## Could not create directory {path}".encode()
            self.directories.add(path)
            return f"{path} successfuly created".encode()
        if command == "rmdr":
            if path not in self.directories:
                return b"##AGENT-WARNING## no such directory"
            self.directories.discard(path)
            self.files = {name: data for name, data in self.files.items() if not name.startswith(f"{path}/")}
            return b""
        if command == "push":
            self.files[path] = content
            return b"\n" + hashlib.md5(content).hexdigest().encode()
        return b"##AGENT-WARNING## unknown command"
