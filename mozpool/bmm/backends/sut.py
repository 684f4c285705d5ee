# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The client of SUTAgent, the program that answers on Android and Linux boards (wire facts: SUTAgent).

The agent sends the prompt ``$>`` + NUL, takes a line that ends in CR LF, and answers with text up to the next
prompt. The heartbeat port plays no part here.
"""

from __future__ import annotations

import hashlib
import logging
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from mozpool.bmm.interfaces import Agent, BackendContext, CommandResult, Target
from mozpool.bmm.netio import Connection, PeerError, shown
from mozpool.clock import Deadline
from mozpool.errors import BadInput, HardwareError

log = logging.getLogger("mozpool.bmm")

DEFAULT_PORT = 20701

TRIES = 5
"""How often the storage check tries each of its steps."""

ANSWER_LIMIT = 4 * 1024 * 1024
"""Bytes after which an answer is given up, so that a babbling agent can't fill the memory."""

_PROMPT = b"$>\0"
_WARNING = "##AGENT-WARNING##"
_CHECK_DIRECTORY = "mozpool-storage-check"
_TRY_PAUSE = 1.0
"""Seconds between two tries: a board whose agent has just died needs a moment."""
_REBOOT_PATIENCE = 5.0
"""Seconds for an agent to close the connection, or to refuse, after it was asked to reboot."""

_UPTIME_PATIENCE = 8.0
"""Seconds until the first prompt of an agent that is only asked for its uptime: enough for a slow one, and boards that
are booting, many at a time perhaps, don't keep everybody's workers for longer."""

# Searched for in short pieces only: what an agent sends must not make a regular expression slow.
_RETURN_CODE = re.compile(r"return code \[(-?[0-9]{1,10})\]\Z")
_VERSION = re.compile(r"\S+ Version \S+")
_TEST_ROOT = re.compile(r"/[^\s\0]{0,1000}")
_UNITS = (
    (re.compile(r"([0-9]{1,9})\s*days?\b", re.IGNORECASE), 86400),
    (re.compile(r"([0-9]{1,9})\s*hours?\b", re.IGNORECASE), 3600),
    (re.compile(r"([0-9]{1,9})\s*min(?:ute)?s?\b", re.IGNORECASE), 60),
    (re.compile(r"([0-9]{1,9})\s*sec(?:ond)?s?\b", re.IGNORECASE), 1),
    (re.compile(r"([0-9]{1,9})\s*ms\b", re.IGNORECASE), 0.001),
)
_HOURS_AND_MINUTES = re.compile(r"\bup\b.*?\b([0-9]{1,2}):([0-9]{2})\b")

T = TypeVar("T")


class _AgentError(Exception):
    """The agent answered, but not what was wanted; ``str()`` is the reason."""


class SUTAgent(Agent):
    """Speaks with the agent at the device's address, a new connection for each operation.

    The option ``sut_port`` of a device replaces the standard port 20701.
    """

    command_limit = 15.0
    """Seconds for one command, and for connecting until the first prompt is there."""

    def __init__(self, context: BackendContext) -> None:
        self._clock = context.clock
        self._pause = _TRY_PAUSE / context.speed

    def verify(self, device: Target, deadline: Deadline) -> None:
        """One attempt: connect, ``testroot``, ``ver``. Raises HardwareError."""
        with self._talk(device, "agent verification", deadline) as agent:
            agent.test_root()
            version = agent.command("ver")
            if not _VERSION.match(version):
                raise _AgentError(f"answered {shown(version)} to ver")

    def check_storage(self, device: Target, deadline: Deadline) -> None:
        """Write a file below the agent's test root, compare its hash, remove it. Raises HardwareError.

        Each step is tried up to five times, over a new connection where the last one is lost.
        """
        # Another text each time, so that a file of an earlier check can't pass for this one's.
        content = f"mozpool storage check of {device.name} at {self._clock.now().isoformat()}\n".encode()
        with self._talk(device, "storage check", deadline) as agent:
            root = self._retry(device, agent, "asking for the test root", agent.test_root)
            directory = f"{root.rstrip('/')}/{_CHECK_DIRECTORY}"

            def make_directory() -> None:
                # An earlier check, or an earlier try whose answer was lost, may have left it; mkdr would refuse.
                agent.ask(f"rmdr {directory}")
                agent.command(f"mkdr {directory}")

            def confirm_directory() -> None:
                if not agent.is_directory(directory):
                    raise _AgentError(f"says that {directory} is no directory after making it")

            def remove_directory() -> None:
                warning = _warning_in(agent.ask(f"rmdr {directory}"))
                # After an earlier try whose answer was lost the agent complains that there is nothing to remove.
                if warning and agent.is_directory(directory):
                    raise _AgentError(f"did not remove {directory}: {warning}")

            def push() -> None:
                agent.push(f"{directory}/check.txt", content)

            self._retry(device, agent, "making a directory", make_directory)
            self._retry(device, agent, "confirming the directory", confirm_directory)
            self._retry(device, agent, "writing a file", push)
            self._retry(device, agent, "removing the directory", remove_directory)

    def reboot(self, device: Target, deadline: Deadline) -> None:
        """Send ``rebt``, which has no answer. Raises HardwareError when it can't be sent or the agent refuses."""
        with self._talk(device, "reboot by agent", deadline) as agent:
            agent.reboot()

    def uptime(self, device: Target, deadline: Deadline) -> float | None:
        """Seconds since boot by ``info uptime``; None when the answer can't be read. Raises HardwareError."""
        with self._talk(device, "agent's uptime", deadline, prompt_limit=_UPTIME_PATIENCE) as agent:
            return parse_uptime(agent.ask("info uptime"))

    def run(self, device: Target, command: Sequence[str], deadline: Deadline) -> CommandResult:
        """Run a program through ``exec``; it may take until the deadline.

        Arguments arrive as they are, but for runs of blanks inside one, which some agents make a single space.
        Raises BadInput for what one line of the protocol can't carry, HardwareError.
        """
        line = exec_line(command)
        with self._talk(device, "command by agent", deadline) as agent:
            answer = agent.ask(line, limit=deadline.seconds)
        text = answer.rstrip()
        match = _RETURN_CODE.search(text[-40:])
        if match is not None:
            return CommandResult(text[: -len(match[0])], int(match[1]))
        if warning := _warning_in(answer):
            raise HardwareError(device.name, "command by agent", warning)
        return CommandResult(answer, None)

    @contextmanager
    def _talk(
        self, device: Target, operation: str, deadline: Deadline, prompt_limit: float | None = None
    ) -> Iterator[_Conversation]:
        """A conversation with the device's agent; its failures leave as HardwareError.

        The first prompt must come within ``prompt_limit`` seconds, or as soon as other answers.
        """
        port = device.options.get("sut_port", str(DEFAULT_PORT))
        if not (port.isascii() and port.isdecimal() and len(port) <= 5 and 1 <= int(port) <= 65535):
            raise HardwareError(device.name, operation, f"its option sut_port, {port!r}, is not a port from 1 to 65535")
        agent = _Conversation(
            device.address, int(port), deadline, self.command_limit, prompt_limit or self.command_limit
        )
        try:
            yield agent
        except (PeerError, _AgentError) as e:
            raise HardwareError(device.name, operation, f"agent at {device.address}:{port}: {e}") from e
        finally:
            agent.disconnect()

    def _retry(self, device: Target, agent: _Conversation, what: str, step: Callable[[], T]) -> T:
        """What ``step`` returns, after as many tries as it takes. Raises the last try's error.

        ``what`` calls the step in the log: storage that works at the second try is about to fail.
        """
        tries = 0
        while True:
            tries += 1
            try:
                return step()
            except (PeerError, _AgentError) as e:
                if isinstance(e, PeerError):
                    agent.disconnect()
                if tries == TRIES or agent.deadline.expired:
                    raise
                log.info("storage check of %s: %s failed, try %d of %d: %s", device.name, what, tries, TRIES, e)
            self._clock.sleep(agent.deadline.remaining(self._pause))


class _Conversation:
    """One connection at a time to one agent, made when the first command needs it."""

    def __init__(self, host: str, port: int, deadline: Deadline, command_limit: float, prompt_limit: float) -> None:
        self._host = host
        self._port = port
        self.deadline = deadline
        self._limit = command_limit
        self._prompt_limit = prompt_limit
        self._connection: Connection | None = None
        self._arrived = bytearray()

    def ask(self, line: str, limit: float | None = None) -> str:
        """Send one line and return the answer, which may be a warning, without the newline before the prompt.

        ``limit`` replaces the usual one, in seconds. Raises PeerError.
        """
        return self._exchange(f"{line}\r\n".encode(), limit)

    def command(self, line: str) -> str:
        """Like :meth:`ask`, stripped. Raises _AgentError for a warning, PeerError."""
        answer = self.ask(line)
        if warning := _warning_in(answer):
            raise _AgentError(f"answered {shown(warning)} to {line}")
        return answer.strip()

    def test_root(self) -> str:
        """The directory in which tests may write: an absolute path without blanks. Raises PeerError, _AgentError."""
        root = self.command("testroot")
        if not _TEST_ROOT.fullmatch(root):
            raise _AgentError(f"answered {shown(root)} to testroot")
        return root

    def is_directory(self, path: str) -> bool:
        """Whether the agent says that ``path`` is a directory. Raises PeerError."""
        return self.ask(f"isdir {path}").strip() == "TRUE"

    def push(self, path: str, content: bytes) -> None:
        """Write a file and compare the hash that the agent gives for it. Raises PeerError, _AgentError."""
        answer = self._exchange(f"push {path} {len(content)}\r\n".encode() + content).strip()
        wanted = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if answer.lower() != wanted:
            raise _AgentError(f"answered {shown(answer)} where the hash of {path}, {wanted}, was expected")

    def reboot(self) -> None:
        """Send ``rebt`` and give the agent a moment to close or to refuse. Raises PeerError, _AgentError."""
        self._connected().send(b"rebt\r\n", self.deadline.within(self._limit))
        try:
            answer = self._read_to_prompt(self._connected(), self.deadline.within(_REBOOT_PATIENCE))
        except PeerError:
            return  # closed or silent: it is rebooting
        if warning := _warning_in(answer):
            raise _AgentError(f"answered {shown(warning)} to rebt")

    def disconnect(self) -> None:
        """Close the connection; the next command makes a new one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._arrived.clear()

    def _exchange(self, data: bytes, limit: float | None = None) -> str:
        connection = self._connected()
        deadline = self.deadline.within(limit or self._limit)
        # A second prompt that some agents send must not pass for the next answer.
        self._arrived.clear()
        connection.send(data, deadline)
        return self._read_to_prompt(connection, deadline).removesuffix("\n")

    def _connected(self) -> Connection:
        """The connection, at the agent's prompt. Raises PeerError."""
        if self._connection is None:
            deadline = self.deadline.within(self._prompt_limit)
            # While a board boots, a connection may be taken or lost on the way long before there is an agent, and
            # would go on hanging when there is one.
            self._connection = Connection.that_speaks(self._host, self._port, deadline, whole=self.deadline)
            try:
                greeting = self._read_to_prompt(self._connection, deadline)
                if greeting.strip():
                    raise PeerError(f"said {shown(greeting)} before its first prompt")
            except PeerError:
                self.disconnect()
                raise
        return self._connection

    def _read_to_prompt(self, connection: Connection, deadline: Deadline) -> str:
        """Everything up to the next prompt, which is consumed. Raises PeerError."""
        arrived = self._arrived
        searched = 0
        while (end := arrived.find(_PROMPT, searched)) < 0:
            if len(arrived) > ANSWER_LIMIT:
                raise PeerError(f"sent more than {ANSWER_LIMIT} bytes without a prompt")
            searched = max(0, len(arrived) - len(_PROMPT) + 1)
            try:
                data = connection.receive(deadline)
                if not data:
                    raise PeerError("closed the connection without a prompt")
            except PeerError as e:
                if not arrived:
                    raise
                raise PeerError(f"{e} (so far: {shown(arrived.decode(errors='replace'))})") from e
            arrived += data
        answer = arrived[:end].decode(errors="replace")
        del arrived[: end + len(_PROMPT)]
        return answer


def exec_line(command: Sequence[str]) -> str:
    """The agent's line for a command given as an argument list, quoted as a POSIX shell would read it.

    Raises BadInput for an empty command, for what would end the line (CR, LF, NUL), and for a program's name with
    "=", which agents take for environment settings.
    """
    words = list(command)
    if isinstance(command, str) or not words or not words[0]:
        raise BadInput.value("command", command, "a list of a program and its arguments")
    for word in words:
        if any(character in word for character in "\r\n\0") or not _is_utf8(word):
            raise BadInput.value("command", word, "an argument of one line of text (no CR, LF or NUL)")
    if "=" in words[0]:
        raise BadInput.value("command", words[0], 'a program (to set variables: "env", "NAME=VALUE", ...)')
    return f"exec {shlex.join(words)}"


def parse_uptime(answer: str) -> float | None:
    """Seconds in an answer to ``info uptime``; None when it can't tell.

    Android's agent answers ``0 days 0 hours 5 minutes 12 seconds 33 ms``, others the line of uptime(1).
    """
    text = answer.strip()[:200]
    if _warning_in(text):
        return None
    found = [int(match[1]) * seconds for unit, seconds in _UNITS if (match := unit.search(text))]
    if match := _HOURS_AND_MINUTES.search(text):
        found.append(int(match[1]) * 3600 + int(match[2]) * 60)
    return float(sum(found)) if found else None


def _warning_in(answer: str) -> str:
    """The first warning among the answer's lines, empty when there is none."""
    return next((line.strip() for line in answer.splitlines() if line.startswith(_WARNING)), "")


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
