# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The adb daemon of an Android device as a TCP server that a real adb server connects to.

It speaks adb's transport protocol: messages of 24 bytes (command, two arguments, length, checksum, the command's
complement; little-endian) and their data. After both sides have sent ``CNXN``, the server opens streams (``OPEN``),
each piece of data (``WRTE``) waits for its ``OKAY``, and ``CLSE`` ends a stream. Anybody may connect, without ``AUTH``.
The services are ``shell:``, ``shell,v2:`` and ``reboot:``. A few harmless commands are played in memory: nothing that
a client sends is ever executed or stored on the machine that the simulation runs on.
Everything happens in the event loop's thread.
"""

from __future__ import annotations

import asyncio
import shlex
import struct
from collections import deque
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import cast

from mozpool.fakes.net import listen_tcp

STORAGE = "/data/local/tmp"

_HEADER = struct.Struct("<6I")
_VERSION = 0x01000001
_LARGEST = 256 * 1024
"""Bytes of data in one message."""
_MASK = 0xFFFFFFFF


def _command(word: bytes) -> int:
    return int.from_bytes(word, "little")


_CNXN, _OPEN, _OKAY, _WRTE, _CLSE = map(_command, (b"CNXN", b"OPEN", b"OKAY", b"WRTE", b"CLSE"))


class AdbFault(StrEnum):
    """Ways in which a device misbehaves until it is told otherwise."""

    SILENT = "silent"
    """Accepts connections and never says anything."""
    GARBAGE = "garbage"
    """Answers everything with what is no adb."""
    HANG = "hang"
    """Is online, but its streams never open."""
    BABBLE = "babble"
    """Prints without end, whatever the command."""
    READ_ONLY = "read-only"
    """Files can't be written."""
    FORGETFUL = "forgetful"
    """Files that are written come back with another content, as from a failing flash."""
    NO_RETURN_CODES = "no return codes"
    """Knows ``shell:`` only, as before Android 7."""


class AdbDaemon:
    """The adb daemon of one device. It may be started and closed again and again."""

    def __init__(
        self, name: str, address: str, port: int, *, uptime: Callable[[], float], reboot: Callable[[], None]
    ) -> None:
        """Describe the daemon of device ``name``; nothing is opened yet. Port 0 is any free one.

        ``uptime`` returns the seconds since the device booted; ``reboot`` is called when somebody asks for one. Both
        are called in the loop's thread.
        """
        self.name = name
        self.address = address
        self.port = port
        self.uptime = uptime
        self.reboot = reboot
        self.fault: AdbFault | None = None
        """What is wrong; may be set from any thread, and concerns new connections and commands."""
        self.properties = {"ro.build.fingerprint": "mozpool/fake/fake:13/T/1:user/release-keys"}
        self.files: dict[str, str] = {}
        self.commands: list[str] = []
        """The command lines that were sent, in order."""
        self._server: asyncio.Server | None = None
        self._links: set[_Link] = set()

    async def start(self) -> None:
        """Open the port, which ``port`` then is. Raises FakesError when that can't be."""
        self._server = await listen_tcp(f"adbd of {self.name}", lambda: _Link(self), self.address, self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    def close(self) -> None:
        """Close the port and cut all connections, as a loss of power does."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for link in list(self._links):
            link.transport.abort()

    def attach(self, link: _Link) -> None:
        """Remember a connection, to be cut by :meth:`close`."""
        self._links.add(link)

    def detach(self, link: _Link) -> None:
        """Forget a connection that has ended."""
        self._links.discard(link)

    def play(self, line: str) -> tuple[str, int]:
        """What a shell would print for a command line, and its return code."""
        self.commands.append(line)
        output, code = "", 0
        lexer = shlex.shlex(line, posix=True, punctuation_chars="&;>")
        lexer.whitespace_split = True
        lexer.commenters = ""
        try:
            words = list(lexer)
        except ValueError:  # a quote that is not closed
            return "sh: no closing quote\n", 1
        for joined_by, words_of_one in _commands(words):
            if joined_by == "&&" and code:
                continue
            arguments, _, target = _partition(words_of_one, ">")
            printed, code = self._program([word.replace("$?", str(code)) for word in arguments])
            if target:
                if self.fault is AdbFault.READ_ONLY:
                    output, code = f"{output}sh: can't create {target[0]}: Read-only file system\n", 1
                else:
                    self.files[target[0]] = printed[::-1] if self.fault is AdbFault.FORGETFUL else printed
            else:
                output += printed
        return output, code

    def _program(self, words: list[str]) -> tuple[str, int]:
        program, arguments = (words[0], words[1:]) if words else ("true", [])
        if program == "echo":
            return " ".join(arguments) + "\n", 0
        if program == "printf" and arguments[:1] == ["%s"]:
            return "".join(arguments[1:]), 0
        if program == "getprop":
            return self.properties.get(arguments[0] if arguments else "", "") + "\n", 0
        if program == "cat" and arguments == ["/proc/uptime"]:
            return f"{self.uptime():.2f} 1.00\n", 0
        if program == "cat" and arguments:
            if arguments[0] in self.files:
                return self.files[arguments[0]], 0
            return f"cat: {arguments[0]}: No such file or directory\n", 1
        if program == "rm" and arguments:
            gone = self.files.pop(arguments[-1], None) is None
            return ("", 0) if not gone or "-f" in arguments else (f"rm: {arguments[-1]}: No such file\n", 1)
        if program in ("true", "sync", "false"):
            return "", int(program == "false")
        return f"sh: {program}: not found\n", 127


def _commands(words: list[str]) -> Iterator[tuple[str, list[str]]]:
    """The commands of a line, each with what stands before it: ``;`` (also the first) or ``&&``."""
    joined_by, command = ";", list[str]()
    for word in words:
        if word in (";", "&&"):
            yield joined_by, command
            joined_by, command = word, []
        else:
            command.append(word)
    yield joined_by, command


def _partition(words: list[str], separator: str) -> tuple[list[str], str, list[str]]:
    if separator not in words:
        return words, "", []
    place = words.index(separator)
    return words[:place], separator, words[place + 1 :]


class _Link(asyncio.Protocol):
    """The connection of one adb server."""

    transport: asyncio.Transport

    def __init__(self, daemon: AdbDaemon) -> None:
        self._daemon = daemon
        self._received = bytearray()
        self._streams: dict[int, _Stream] = {}
        self._opened = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._daemon.attach(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._daemon.detach(self)
        self._streams.clear()

    def data_received(self, data: bytes) -> None:
        if self._daemon.fault is AdbFault.SILENT:
            return
        if self._daemon.fault is AdbFault.GARBAGE:
            self.transport.write(b"HTTP/1.0 400 Bad Request\r\n\r\n")
            return
        self._received += data
        while len(self._received) >= _HEADER.size:
            command, first, second, length, _, magic = _HEADER.unpack_from(self._received)
            if magic != command ^ _MASK or length > _LARGEST:
                self.transport.abort()
                return
            if len(self._received) < _HEADER.size + length:
                return
            payload = bytes(self._received[_HEADER.size : _HEADER.size + length])
            del self._received[: _HEADER.size + length]
            self._obey(command, first, second, payload)

    def send(self, command: int, first: int, second: int, payload: bytes = b"") -> None:
        header = _HEADER.pack(command, first, second, len(payload), sum(payload) & _MASK, command ^ _MASK)
        self.transport.write(header + payload)

    def _obey(self, command: int, first: int, second: int, payload: bytes) -> None:
        """``first`` is the peer's number of a stream, ``second`` ours."""
        stream = self._streams.get(second)
        if command == _CNXN:
            features = "cmd" if self._daemon.fault is AdbFault.NO_RETURN_CODES else "shell_v2,cmd"
            self.send(_CNXN, _VERSION, _LARGEST, f"device::ro.product.name=fake;features={features}".encode())
        elif command == _OPEN:
            self._open(first, payload.rstrip(b"\0").decode(errors="replace"))
        elif stream is not None and command == _OKAY:
            stream.go_on()
        elif stream is not None and command == _WRTE:  # the keyboard: nothing here reads it
            self.send(_OKAY, second, first)
        elif stream is not None and command == _CLSE:
            del self._streams[second]

    def _open(self, theirs: int, service: str) -> None:
        daemon = self._daemon
        if daemon.fault is AdbFault.HANG:
            return
        kind, _, line = service.partition(":")
        kind, *arguments = kind.split(",")
        if kind not in ("shell", "reboot"):
            self.send(_CLSE, 0, theirs)
            return
        self._opened += 1
        self.send(_OKAY, self._opened, theirs)
        if kind == "reboot":
            self.send(_CLSE, self._opened, theirs)
            daemon.reboot()
            return
        if daemon.fault is AdbFault.BABBLE:
            output, code, endless = "babble\n" * 1000, 0, True
        else:
            (output, code), endless = daemon.play(line), False
        data = output.encode()
        if "v2" in arguments:
            data = (_packet(1, data) if data else b"") + (b"" if endless else _packet(3, bytes([code])))
        stream = _Stream(self, self._opened, theirs, data, endless)
        self._streams[self._opened] = stream
        stream.go_on()

    def end(self, ours: int, theirs: int) -> None:
        """Close a stream that has said everything."""
        if self._streams.pop(ours, None) is not None:
            self.send(_CLSE, ours, theirs)


class _Stream:
    """The output of one command, a piece for each ``OKAY``."""

    def __init__(self, link: _Link, ours: int, theirs: int, data: bytes, endless: bool) -> None:
        self._link = link
        self._ours = ours
        self._theirs = theirs
        self._endless = data if endless else b""
        self._pieces = deque(data[place : place + 4096] for place in range(0, len(data), 4096))

    def go_on(self) -> None:
        """Send the next piece, or the end."""
        if self._endless:
            self._link.send(_WRTE, self._ours, self._theirs, self._endless)
        elif self._pieces:
            self._link.send(_WRTE, self._ours, self._theirs, self._pieces.popleft())
        else:
            self._link.end(self._ours, self._theirs)


def _packet(kind: int, data: bytes) -> bytes:
    """One packet of the shell protocol: 1 is output, 3 the return code."""
    return struct.pack("<BI", kind, len(data)) + data
