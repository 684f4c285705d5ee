# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""A SUT agent as a TCP server (wire facts: SUTAgent).

It keeps a small file tree in memory and answers a few harmless commands by itself: nothing that a client
sends is ever executed or stored on the machine that the simulation runs on.
Everything happens in the event loop's thread.
"""

from __future__ import annotations

import asyncio
import hashlib
import posixpath
import shlex
from collections.abc import Callable
from enum import StrEnum
from typing import cast

from mozpool.clock import Clock
from mozpool.fakes.net import listen_tcp

COMMAND_PORT = 20701
PROMPT = b"$>\0"
VERSION = "SUTAgentNegatus Version 1.1"
TEST_ROOT = "/mnt/sdcard"

_LONGEST_LINE = 65536


class AgentFault(StrEnum):
    """Ways in which an agent misbehaves until it is told otherwise."""

    HALF_PROMPT = "half a prompt"
    """Sends the first byte of the prompt and never anything more."""
    HANG = "hang"
    """Accepts connections and never says anything."""
    WRONG_HASH = "wrong hash"
    """Answers the hash of something else for every file, as a failing SD card does."""


class Storage:
    """A device's file system: what survives a reboot, but not an installation.

    Of files only the hash is kept, so that a thousand boards cost no memory.
    """

    def __init__(self) -> None:
        self.wipe()

    def wipe(self) -> None:
        """Make it what a newly installed image starts with."""
        self._directories = {"/", "/mnt", TEST_ROOT}
        self._files: dict[str, str] = {}

    def is_directory(self, path: str) -> bool:
        """Whether this absolute path is a directory."""
        return path in self._directories

    def hash(self, path: str) -> str | None:
        """The MD5 of a file in hex; None where there is no such file."""
        return self._files.get(path)

    def list(self, path: str) -> list[str]:
        """The names in a directory, sorted."""
        paths = self._directories | self._files.keys()
        return sorted(posixpath.basename(entry) for entry in paths if entry != "/" and posixpath.dirname(entry) == path)

    def make_directory(self, path: str) -> bool:
        """Make a directory; False where it, or a file of that name, exists or its parent does not."""
        if path in self._directories or path in self._files or posixpath.dirname(path) not in self._directories:
            return False
        self._directories.add(path)
        return True

    def remove_directory(self, path: str) -> bool:
        """Remove a directory with all that is in it; False where there is none."""
        if path == "/" or path not in self._directories:
            return False
        inside = path + "/"
        self._directories = {entry for entry in self._directories if entry != path and not entry.startswith(inside)}
        self._files = {entry: digest for entry, digest in self._files.items() if not entry.startswith(inside)}
        return True

    def write(self, path: str, digest: str) -> bool:
        """Make a file with this hash, or replace it; False where its directory is missing."""
        if path in self._directories or posixpath.dirname(path) not in self._directories:
            return False
        self._files[path] = digest
        return True


class SutAgent:
    """The agent of one device. It is started and closed again and again, as its device comes up and goes down."""

    def __init__(
        self,
        name: str,
        address: str,
        port: int,
        *,
        storage: Storage,
        clock: Clock,
        uptime: Callable[[], float],
        reboot: Callable[[], None],
    ) -> None:
        """Describe the agent of device ``name``; nothing is opened yet.

        ``uptime`` returns the seconds since the device booted; ``reboot`` is called when a client asks
        for one, and is expected to close the agent. Both are called in the loop's thread.
        """
        self.name = name
        self.address = address
        self.port = port
        self.storage = storage
        self.clock = clock
        self.uptime = uptime
        self.reboot = reboot
        self.fault: AgentFault | None = None
        """What is wrong with the agent; may be set from any thread, and concerns new connections and answers."""
        self.sessions: set[_Session] = set()
        self._server: asyncio.Server | None = None

    @property
    def listening(self) -> bool:
        """Whether clients can connect. Safe from any thread."""
        return self._server is not None

    async def start(self) -> None:
        """Open the port. Raises FakesError when that can't be."""
        self._server = await listen_tcp(f"the agent of {self.name}", lambda: _Session(self), self.address, self.port)

    def close(self) -> None:
        """Close the port and cut all connections, as a loss of power does."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for session in list(self.sessions):
            session.transport.abort()


class _Session(asyncio.Protocol):
    """One client's connection."""

    transport: asyncio.Transport

    def __init__(self, agent: SutAgent) -> None:
        self._agent = agent
        self._received = bytearray()
        self._push: _Push | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._agent.sessions.add(self)
        if not self._agent.listening:  # the client came in the moment when the power went
            self.transport.abort()
        elif self._agent.fault is AgentFault.HALF_PROMPT:
            self.transport.write(PROMPT[:1])
        elif self._agent.fault is not AgentFault.HANG:
            self.transport.write(PROMPT)

    def connection_lost(self, exc: Exception | None) -> None:
        self._agent.sessions.discard(self)

    def data_received(self, data: bytes) -> None:
        if self._agent.fault in (AgentFault.HALF_PROMPT, AgentFault.HANG):
            return
        self._received += data
        while self._received and not self.transport.is_closing():
            if self._push is not None:
                self._go_on_with_push(self._push)
                continue
            line, newline, rest = self._received.partition(b"\n")
            if not newline:
                del self._received[_LONGEST_LINE:]
                return
            self._received = rest
            self._obey(line.decode("utf-8", "replace").strip())

    def _answer(self, text: str) -> None:
        # Some warnings of real agents come without the newline before the prompt; those of file operations do here.
        newline = "" if text.startswith("##AGENT-WARNING## file:") else "\n"
        self.transport.write(f"{text}{newline}".encode() + PROMPT)

    def _obey(self, line: str) -> None:
        word, _, rest = line.partition(" ")
        rest = rest.strip()
        if word == "quit":
            self.transport.close()
        elif word == "rebt":
            self.transport.close()
            self._agent.reboot()
        elif word == "push":
            self._start_push(rest)
        elif (command := _COMMANDS.get(word)) is not None:
            self._answer(command(self._agent, rest))
        elif word:
            self._answer("##AGENT-WARNING## unknown command")
        else:
            self._answer("")

    def _start_push(self, rest: str) -> None:
        path, _, size = rest.rpartition(" ")
        if not path or not (size.isascii() and size.isdigit()):
            self._answer("##AGENT-WARNING## wrong arguments for push command")
            return
        self._push = _Push(_absolute(path), int(size))
        self._go_on_with_push(self._push)

    def _go_on_with_push(self, push: _Push) -> None:
        push.take(self._received)
        if push.missing:
            return
        self._push = None
        if not self._agent.storage.write(push.path, push.digest.hexdigest()):
            self._answer(f"##AGENT-WARNING## file: could not write {push.path}")
            return
        self._answer("\n" + _hash(self._agent, push.path))


class _Push:
    """A file that a client is sending."""

    def __init__(self, path: str, size: int) -> None:
        self.path = path
        self.missing = size
        self.digest = hashlib.md5(usedforsecurity=False)

    def take(self, received: bytearray) -> None:
        """Move what belongs to the file out of what was received."""
        part = received[: self.missing]
        del received[: len(part)]
        self.missing -= len(part)
        self.digest.update(part)


def _absolute(path: str) -> str:
    return posixpath.normpath(posixpath.join(TEST_ROOT, path.strip()))


def _isdir(agent: SutAgent, path: str) -> str:
    return "TRUE" if agent.storage.is_directory(_absolute(path)) else "FALSE"


def _mkdr(agent: SutAgent, path: str) -> str:
    if agent.storage.make_directory(_absolute(path)):
        return f"{path} successfuly created"  # spelt as real agents do
    return f"##AGENT-WARNING## file: could not create the directory {path}"


def _rmdr(agent: SutAgent, path: str) -> str:
    if agent.storage.remove_directory(_absolute(path)):
        return ""
    return f"##AGENT-WARNING## file: could not remove {path}"


def _hash(agent: SutAgent, path: str) -> str:
    digest = agent.storage.hash(_absolute(path))
    if digest is None:
        return f"##AGENT-WARNING## file: could not read {path}"
    return digest[::-1] if agent.fault is AgentFault.WRONG_HASH else digest


def _clok(agent: SutAgent, _rest: str) -> str:
    return str(int(agent.clock.now().timestamp() * 1000))


def _info(agent: SutAgent, topic: str) -> str:
    if topic == "os":
        return "linux"
    if topic == "uptime":
        return _uptime(agent)
    return "##AGENT-WARNING## unknown information"


def _uptime(agent: SutAgent) -> str:
    seconds, milliseconds = divmod(int(agent.uptime() * 1000), 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days} days {hours} hours {minutes} minutes {seconds} seconds {milliseconds} ms"


def _exec(agent: SutAgent, line: str) -> str:
    try:
        words = shlex.split(line)
    except ValueError:  # a quote that is not closed
        words = line.split()
    if not words:
        return "##AGENT-WARNING## wrong arguments for exec command"
    output, code = _play(agent, words[0], words[1:])
    return f"{output}return code [{code}]"


def _play(agent: SutAgent, program: str, arguments: list[str]) -> tuple[str, int]:
    """What a program would have written, and its return code."""
    if program == "echo":
        return " ".join(arguments) + "\n", 0
    if program == "ls":
        path = _absolute(next((word for word in arguments if not word.startswith("-")), "/"))
        if not agent.storage.is_directory(path):
            return f"ls: {path}: No such file or directory\n", 1
        return "".join(f"{name}\n" for name in agent.storage.list(path)), 0
    if program == "uptime":
        return f"up {_uptime(agent)}\n", 0
    if program in ("true", "false"):
        return "", int(program == "false")
    return f"{program}: not found\n", 127


_COMMANDS: dict[str, Callable[[SutAgent, str], str]] = {
    "ver": lambda _agent, _rest: VERSION,
    "testroot": lambda _agent, _rest: TEST_ROOT,
    "isdir": _isdir,
    "mkdr": _mkdr,
    "rmdr": _rmdr,
    "hash": _hash,
    "clok": _clok,
    "info": _info,
    "exec": _exec,
}
