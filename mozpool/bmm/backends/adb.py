# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Android devices through an adb server, with the library adbutils.

adbutils knows the protocol; the bytes go over a :class:`~mozpool.bmm.netio.Connection`, because its own sockets have
time limits for single reads only, its answers no largest size, and it would start a server of its own.
A device is known to the server by its serial: ``HOST:PORT`` for one that is reached over the network, which the
server connects to when it is told to.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from mozpool.bmm.interfaces import Agent, BackendContext, CommandResult, Probe, Target
from mozpool.bmm.netio import Connection, PeerError, shown
from mozpool.clock import Clock, Deadline
from mozpool.errors import BadInput, HardwareError

if TYPE_CHECKING:
    adbutils: Any

    class _AdbClient:
        def __init__(self, host: str, port: int) -> None: ...

        def __getattr__(self, name: str) -> Any: ...

    class _AdbConnection:
        def __init__(self, host: str, port: int) -> None: ...

else:
    try:
        import adbutils
        from adbutils import AdbClient as _AdbClient
        from adbutils import AdbConnection as _AdbConnection
    except ImportError as e:
        raise ImportError("it needs the package adbutils: pip install 'mozpool[adb]'") from e

DEVICE_PORT = 5555
"""Where a device listens that has no option ``serial``."""

SERVER_PORT = 5037

PATIENCE = 1.0
"""Seconds that a ping may take: it is a command on the device, and perhaps a connection first."""

ANSWER_LIMIT = 4 * 1024 * 1024
"""Bytes after which an answer is given up, so that a babbling device can't fill the memory."""

STORAGE = "/data/local/tmp"

_OKAY, _FAIL = b"OKAY", b"FAIL"
"""What every connection's first answer begins with."""
_REBOOT_PATIENCE = 5.0
_CONNECT_PATIENCE = 1.0
"""Seconds until a server that is connecting to a device is told to begin anew: what it sends to a board that is booting
may be lost, and it would send the same again later and later."""
_HANDSHAKE_PATIENCE = 5.0
"""Seconds that a server and a device that are connected have for agreeing to speak, until they are given up."""
_AGREEING = ("connecting", "authorizing", "offline")
"""States of a device that may be about to be online: ``offline`` is also what older servers say of one that has not
yet answered (https://android.googlesource.com/platform/packages/modules/adb/+/refs/heads/main/adb.h, ConnectionState).
"""
_STATE_PAUSE = 0.1
"""Seconds between two looks at the state of a device that may be about to be online."""
_FORGETTING = 0.5
"""Seconds, of each operation's own, for telling the server to drop a connection that has died."""
_LONGEST_COMMAND = 60_000
"""Bytes; the protocol's limit for a command with what adbutils puts around it is 65535."""

_SERIAL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._:-]{0,127}")
_NETWORK = re.compile(r".+:[0-9]{1,5}")
_PATH = re.compile(r"/[A-Za-z0-9._/-]{1,500}")
_UPTIME = re.compile(r"([0-9]{1,10}(?:\.[0-9]{1,6})?)\s")


class _AdbError(Exception):
    """The server or the device answered, but not what was wanted; ``str()`` is the reason."""


class AdbProbe(Probe):
    """Whether adb reaches the device. A server calls a device online that has lost its power, so it is asked itself."""

    def __init__(self, context: BackendContext) -> None:
        self._server = _Server(context)

    def ping(self, device: Target, deadline: Deadline) -> bool:
        """Run ``echo`` on the device, within a second; one over the network is connected first where it is not.

        Raises HardwareError when the server can't be asked.
        """
        conversation = _Conversation(self._server, device, "ping", deadline.within(PATIENCE))
        try:
            with conversation.talk():
                conversation.echo()
        except HardwareError:
            if conversation.server_answers:
                return False
            raise
        return True


class AdbAgent(Agent):
    """Speaks with the adb daemon of a device. The option ``serial`` replaces ``ADDRESS:5555``."""

    def __init__(self, context: BackendContext) -> None:
        self._server = _Server(context)

    def verify(self, device: Target, deadline: Deadline) -> None:
        """One attempt: state ``device``, ``echo``, and a build that Android tells. Raises HardwareError."""
        with self._talk(device, "agent verification", deadline) as adb:
            adb.echo()
            if not adb.shell("getprop ro.build.fingerprint").strip():
                raise _AdbError("it tells no ro.build.fingerprint")

    def check_storage(self, device: Target, deadline: Deadline) -> None:
        """Write a file into ``/data/local/tmp`` (or the option ``adb_storage``), read it back, remove it.

        Raises HardwareError.
        """
        directory = device.options.get("adb_storage", STORAGE)
        if not _PATH.fullmatch(directory):
            reason = f"its option adb_storage, {directory[:80]!r}, is not an absolute path of letters, digits and . _ -"
            raise HardwareError(device.name, "storage check", reason)
        path = f"{directory.rstrip('/')}/mozpool-storage-check"
        # Another text each time, so that a file of an earlier check can't pass for this one's.
        now = deadline.clock.now().isoformat()
        parts = (hashlib.sha256(f"{device.name} {now} {part}".encode()).hexdigest() for part in range(64))
        content = "".join(parts)
        with self._talk(device, "storage check", deadline) as adb:
            adb.shell(f"rm -f {path}")
            adb.shell(f"printf %s {content} > {path} && sync")
            read = adb.shell(f"cat {path}").strip()
            adb.shell(f"rm {path}")
            if read != content:
                raise _AdbError(f"{path} has {shown(read)} after {shown(content)} was written")

    def reboot(self, device: Target, deadline: Deadline) -> None:
        """Ask for a reboot; the device need not confirm. Raises HardwareError."""
        with self._talk(device, "reboot by agent", deadline) as adb:
            adb.reboot()

    def uptime(self, device: Target, deadline: Deadline) -> float | None:
        """Seconds since boot from ``/proc/uptime``; None when it can't be read. Raises HardwareError."""
        with self._talk(device, "agent's uptime", deadline) as adb:
            try:
                match = _UPTIME.match(adb.shell("cat /proc/uptime")[:100])
            except _AdbError:
                if adb.ended_badly:
                    return None
                raise
            return float(match[1]) if match else None

    def run(self, device: Target, command: Sequence[str], deadline: Deadline) -> CommandResult:
        """Run a program; its arguments arrive as they are, its outputs come back as one.

        Raises BadInput for what can't be sent, HardwareError.
        """
        line = shell_line(command)
        with self._talk(device, "command by agent", deadline) as adb:
            return adb.execute(line)

    @contextmanager
    def _talk(self, device: Target, operation: str, deadline: Deadline) -> Iterator[_Conversation]:
        conversation = _Conversation(self._server, device, operation, deadline)
        with conversation.talk():
            yield conversation


class _Server:
    """Where the adb server is, and with what the time is told."""

    def __init__(self, context: BackendContext) -> None:
        host, _, port = context.settings.adb_server.partition(":")
        self.host = host
        self.port = int(port or SERVER_PORT)
        self.clock: Clock = context.clock

    def __str__(self) -> str:
        return f"adb server {self.host}:{self.port}"


class _Conversation:
    """One operation on one device: as many connections to the server as it takes, one deadline for all."""

    def __init__(self, server: _Server, device: Target, operation: str, deadline: Deadline) -> None:
        self._server = server
        self._device = device
        self._operation = operation
        serial = device.options.get("serial")
        self._serial = f"{device.address}:{DEVICE_PORT}" if serial is None else serial
        if not _SERIAL.fullmatch(self._serial):
            what = "address" if serial is None else "option serial"
            reason = f"its {what}, {self._serial[:80]!r}, is no serial of letters, digits and . _ : -"
            raise HardwareError(device.name, operation, reason)
        self._whole = deadline
        # What is kept back is for _forget(); half of nearly nothing is not worth a connection.
        self._deadline = deadline.within(deadline.seconds - min(_FORGETTING, deadline.seconds / 4))
        self._client = _Client(server, self._deadline)
        self.ended_badly = False
        """Whether the last failure is that a program on the device ended with another code than 0."""

    @property
    def server_answers(self) -> bool:
        """Whether the server has said anything: if not, a failure tells nothing about the device."""
        return self._client.server_answers

    @contextmanager
    def talk(self) -> Iterator[None]:
        """With the device online; failures leave as HardwareError."""
        try:
            with self._client:
                self._come_online()
                yield
        except (PeerError, _AdbError) as e:
            if isinstance(e, PeerError) and self.server_answers:
                self._forget()
            who = f"{self._serial} by {self._server}" if self.server_answers else str(self._server)
            raise HardwareError(self._device.name, self._operation, f"{who}: {e}") from e

    def echo(self) -> None:
        """Prove that a program runs on the device. Raises PeerError, _AdbError."""
        word = hashlib.sha256(self._server.clock.now().isoformat().encode()).hexdigest()[:16]
        if (answer := self.shell(f"echo {word}").strip()) != word:
            raise _AdbError(f"answered {shown(answer)} to echo {word}")

    def shell(self, line: str) -> str:
        """What a command line prints. Raises _AdbError for a return code other than 0, PeerError."""
        result = self.execute(line)
        if result.return_code:
            self.ended_badly = True
            raise _AdbError(f"{line.split()[0]} ended with {result.return_code}: {shown(result.output.strip())}")
        return result.output

    def execute(self, line: str) -> CommandResult:
        """Output and return code of a command line. Raises PeerError, _AdbError."""
        adb = self._adb_device()
        # An old device has no shell protocol with return codes; adbutils then lets the shell print the code.
        features = str(self._call(adb.get_features)).split(",")
        done = self._call(lambda: adb.shell2(line, v2="shell_v2" in features))
        return CommandResult(str(done.output), int(done.returncode))

    def reboot(self) -> None:
        """Send ``reboot:`` and give the device a moment to obey. Raises PeerError, _AdbError."""
        adb = self._adb_device()

        def ask() -> None:
            with adb.open_transport() as connection:
                connection.send_command("reboot:")
                connection.check_okay()
                self._client.deadline = self._deadline.within(_REBOOT_PATIENCE)
                with suppress(PeerError):  # closed or silent: it is rebooting
                    connection.read_until_close()

        self._call(ask)
        self._forget()

    def _come_online(self) -> None:
        """Raises _AdbError when the device is not there, PeerError."""
        state = self._state()
        if state != "device" and _NETWORK.fullmatch(self._serial):
            if state != "not there":
                self._call(lambda: self._client.disconnect(self._serial))
            answer = self._connect()
            state = self._agreed_state()
            if state != "device":
                raise _AdbError(f"it is {state} ({shown(answer)})")
        if state != "device":
            raise _AdbError(f"it is {state}")

    def _connect(self) -> str:
        """Have the server connect to the device; what it answers. Raises PeerError, _AdbError."""
        while True:
            self._client.deadline = attempt = self._deadline.within(_CONNECT_PATIENCE)
            try:
                return str(self._call(lambda: self._client.connect(self._serial)))
            except PeerError:
                if not attempt.expired:
                    raise
                if self._deadline.expired:
                    raise PeerError(f"no answer within {self._deadline.seconds:.3g} s") from None
            finally:
                self._client.deadline = self._deadline
            # An older attempt, which the server has not given up, may have succeeded.
            if self._state() == "device":
                return ""

    def _agreed_state(self) -> str:
        """As _state(), when server and device have had time to agree: an attempt to connect that was given up here goes
        on at the server, which then answers the next one "already connected". Raises PeerError, _AdbError."""
        patience = self._deadline.within(_HANDSHAKE_PATIENCE)
        while (state := self._state()) in _AGREEING and not patience.expired:
            self._server.clock.sleep(patience.remaining(_STATE_PAUSE))
        return state

    def _state(self) -> str:
        """``device``, ``offline``, ``unauthorized``..., or ``not there``. Raises PeerError, _AdbError."""
        for device in self._call(self._client.list):
            if device.serial == self._serial:
                return str(device.state)[:40]
        return "not there"

    def _forget(self) -> None:
        """Have the server drop its connection, which it would keep for minutes after the device has gone."""
        if _NETWORK.fullmatch(self._serial):
            with suppress(Exception), _Client(self._server, self._whole.within(_FORGETTING)) as client:
                client.disconnect(self._serial)  # nothing but a courtesy

    def _adb_device(self) -> Any:
        return adbutils.AdbDevice(self._client, serial=self._serial)

    def _call(self, step: Callable[[], Any]) -> Any:
        """What ``step`` returns. Raises PeerError, _AdbError for whatever adbutils makes of the answers."""
        try:
            return step()
        except adbutils.AdbError as e:
            raise _AdbError(shown(str(e))) from e
        except (ValueError, EOFError, IndexError, AssertionError) as e:
            raise PeerError(f"what was answered is not adb's protocol ({type(e).__name__})") from e


class _Client(_AdbClient):
    """adbutils' client with connections that keep to a deadline; as a context manager it closes them, which adbutils
    leaves open where something fails."""

    def __init__(self, server: _Server, deadline: Deadline) -> None:
        super().__init__(server.host, server.port)
        self._where = server
        self.deadline = deadline
        self.server_answers = False
        """Whether an adb server has answered."""
        self._connections: list[Connection] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for connection in self._connections:
            connection.close()

    def make_connection(self, timeout: float | None = None) -> Any:
        """A connection to the server. Raises PeerError. ``timeout`` plays no part."""
        connection = Connection(self._where.host, self._where.port, self.deadline)
        self._connections.append(connection)
        return _ServerConnection(_Socket(self, connection))


class _ServerConnection(_AdbConnection):
    """adbutils' connection on a socket that exists already."""

    def __init__(self, socket: _Socket) -> None:
        self._given = socket
        super().__init__("", 0)

    def _safe_connect(self) -> _Socket:
        return self._given


class _Socket:
    """What adbutils uses of a socket."""

    def __init__(self, client: _Client, connection: Connection) -> None:
        self._client = client
        self._connection = connection
        self._received = 0
        self._beginning = b""

    def send(self, data: bytes) -> int:
        self._connection.send(data, self._client.deadline)
        return len(data)

    def recv(self, at_most: int) -> bytes:
        data = self._connection.receive(self._client.deadline, min(at_most, 65536))
        self._received += len(data)
        if len(self._beginning) < len(_OKAY):
            self._beginning = (self._beginning + data)[: len(_OKAY)]
            if self._beginning in (_OKAY, _FAIL):
                self._client.server_answers = True
            elif not (_OKAY.startswith(self._beginning) or _FAIL.startswith(self._beginning)):
                raise PeerError(f"answered {self._beginning!r} where {_OKAY!r} or {_FAIL!r} was expected")
        if self._received > ANSWER_LIMIT:
            raise PeerError(f"sent more than {ANSWER_LIMIT} bytes")
        return data

    def settimeout(self, _seconds: float | None) -> None:
        """The deadline holds."""

    def shutdown(self, _how: int) -> None:
        """Closing is enough."""

    def close(self) -> None:
        self._connection.close()


def shell_line(command: Sequence[str]) -> str:
    """The line for the device's shell of a command given as an argument list.

    Raises BadInput for an empty command and for what the protocol can't carry.
    """
    words = list(command)
    if isinstance(command, str) or not words or not words[0]:
        raise BadInput.value("command", command, "a list of a program and its arguments")
    line = shlex.join(words)
    try:
        size = len(line.encode())
    except UnicodeEncodeError:
        raise BadInput.value("command", command, "text") from None
    if "\0" in line or size > _LONGEST_COMMAND:
        raise BadInput.value("command", command, f"text of at most {_LONGEST_COMMAND} bytes without NUL")
    return line
