# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Where SUT agents tell that they have started (wire facts: SUTAgent, registration).

An Android agent sends ``register `` and a line of URL-encoded fields, then reads lines until one contains OK, for up to
30 s. The Linux agent sends two fields without that word and without an end of the line, and waits for nothing: it is
known by the address that it calls from.

What an agent says of itself proves nothing, the address that it calls from does. :class:`Registrar` decides by that,
:class:`RegistrationServer` keeps the connections within their limits.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import re
import selectors
import socket
import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, Protocol
from urllib.parse import unquote_plus

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from mozpool import config
from mozpool.bmm.backends.sut import DEFAULT_PORT
from mozpool.bmm.interfaces import NO_MAC
from mozpool.clock import Clock, Deadline, Thread
from mozpool.db.devices import Device
from mozpool.db.engine import Database
from mozpool.errors import BadInput, Conflict, DatabaseAway, Forbidden, MozpoolError
from mozpool.lanes import Lanes
from mozpool.logbook import Logbook

log = logging.getLogger("mozpool.registration")

IPAddress = IPv4Address | IPv6Address

OK = b"OK\n"
NO = b"NO: refused, see the server's messages\n"
"""One text for all refusals: agents take any line with OK in it for a yes, and a device's name may have that in it."""

REPEAT = timedelta(seconds=5)
"""A device that registers again within this time, with nothing new, is answered but not written down again."""

TRIES = 10
"""How often other writers of the device's row may get in the way."""

_REGISTER = b"register "
_GENERIC = "SUTAgent"
"""What agents without a name of their own call themselves."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}")
_PORT = re.compile(r"[0-9]{1,5}", re.ASCII)


# --- What agents say ---


@dataclass(frozen=True)
class Agent:
    """What an agent says of itself."""

    name: str | None
    """None: it has no name of its own, and is known by the address that it calls from."""
    address: IPAddress | None = None
    """None: it does not know its address, as agents that say 0.0.0.0."""
    port: int | None = None
    """Where it takes commands; None: it does not say."""
    os: str | None = None
    """Fit for a log: short and printable."""


def parse(line: bytes) -> Agent:
    """Read a registration in either form, without the end of the line. Raises BadInput for anything else."""
    with_word = line.startswith(_REGISTER)
    fields = _fields(line.removeprefix(_REGISTER).decode("utf-8", "replace"))
    name = fields.get("NAME")
    if name is None:
        raise BadInput.value("registration", line[:80], "a line of NAME=...&IPADDR=...")
    if name == _GENERIC:
        name = None
    elif with_word:
        name = device_name(name)
    else:
        raise BadInput.value("NAME", name, f"{_GENERIC}, as of an agent that does not say register")
    address, port = _place(fields.get("IPADDR", ""))
    if "CMDPORT" in fields:
        port = _port("CMDPORT", fields["CMDPORT"])
    return Agent(name, address, port, _shown(fields["OS"]) if fields.get("OS") else None)


def device_name(text: str, field: str = "NAME") -> str:
    """``text`` when a device may be called so. Raises BadInput, which calls the value ``field``."""
    # Paths of the API take a number for an id.
    if not _NAME.fullmatch(text) or text.isdecimal() or text == "any":
        raise BadInput.value(field, text, "1 to 32 letters, digits, '.', '_' and '-', and neither a number nor 'any'")
    return text


def name_of(address: IPAddress) -> str:
    """The name of a new device whose agent has none: ``sut-10-0-0-5``; of IPv6 the last 28 hex digits."""
    if isinstance(address, IPv4Address):
        return "sut-" + str(address).replace(".", "-")
    return "sut-" + address.packed.hex()[-28:]


def _fields(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in text.split("&"):
        key, equals, value = part.partition("=")
        key = unquote_plus(key)
        if not equals:
            continue
        if key in found:
            raise BadInput.value("registration", key, "a field that comes once")
        found[key] = unquote_plus(value)
    return found


def _place(text: str) -> tuple[IPAddress | None, int | None]:
    """ADDRESS or ADDRESS:PORT. What is no address of a single machine counts as no address."""
    port = None
    try:
        address = ip_address(text)
    except ValueError:
        host, colon, last = text.rpartition(":")
        if not colon:
            return None, None
        try:
            address = ip_address(host.strip("[]"))
        except ValueError:
            return None, None
        port = _port("IPADDR", last)
    address = _plain(address)
    return (None if address.is_unspecified or address.is_multicast else address), port


def _port(field: str, text: str) -> int:
    if not _PORT.fullmatch(text) or not 1 <= int(text) <= 65535:
        raise BadInput.value(field, text, "a port from 1 to 65535")
    return int(text)


def _plain(address: IPAddress) -> IPAddress:
    """An IPv4 address that a socket for both versions shows as IPv6, as what it is."""
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def _shown(text: str) -> str:
    """An agent's words, fit for a log."""
    return "".join(c if c.isprintable() else "?" for c in text[:80])


# --- What becomes of it ---


class Devices(Protocol):
    """What is needed of the table of devices; the module ``mozpool.db.devices`` has it."""

    def by_name(self, conn: Connection, name: str) -> Device | None:
        """The device of this name, or None."""
        ...

    def by_address(self, conn: Connection, address: str) -> list[Device]:
        """All devices that answer at this address, of any imaging server, sorted by id."""
        ...

    def own_backends(self, conn: Connection, device_id: int) -> dict[str, Any]:
        """What the device's own column says, without what its hardware type says."""
        ...

    def write(self, conn: Connection, device_id: int, version: int, values: Mapping[str, Any]) -> bool:
        """Write columns if the row still has this version; answer whether it had."""
        ...

    def insert_device(self, conn: Connection, rng: random.Random, **values: Any) -> int:
        """Add a device and answer its id."""
        ...


class _LostRace(Exception):
    """Somebody else wrote the device's row since it was read."""


@dataclass(frozen=True)
class _Done:
    """A registration that took place."""

    device_id: int
    name: str
    message: str | None
    """For the device's log; None when there is nothing new."""


class Registrar:
    """Decides about registrations and writes them down. Used by one thread at a time."""

    def __init__(
        self,
        settings: config.Registration,
        devices: Devices,
        database: Database,
        logbook: Logbook,
        clock: Clock,
        rng: random.Random,
        server_id: int,
    ) -> None:
        """``server_id`` is the id of the imaging server that this daemon is."""
        self._settings = settings
        self._devices = devices
        self._database = database
        self._logbook = logbook
        self._clock = clock
        self._rng = rng
        self._server_id = server_id
        self._away = False

    def register(self, line: bytes, source: IPAddress) -> None:
        """Write down what an agent that calls from ``source`` said; it is committed afterwards.

        Raises BadInput, Conflict and Forbidden for what is refused, DatabaseAway, which is logged once an outage.
        """
        agent = parse(line)
        if agent.address is not None and agent.address.is_loopback and not source.is_loopback:
            agent = replace(agent, address=None)
        try:
            done = self._commit(agent, source)
        except DatabaseAway as error:
            if not self._away:
                self._away = True
                log.warning("agents can't register: %s", error.message)
            raise
        except MozpoolError:
            self._is_back()
            raise
        self._is_back()
        if done.message is not None:
            self._logbook.add("device", done.device_id, done.name, "bmm", done.message)

    def _is_back(self) -> None:
        if self._away:
            self._away = False
            log.info("agents can register again")

    def _commit(self, agent: Agent, source: IPAddress) -> _Done:
        """Each try is a new transaction, which sees what got in the way of the one before."""
        for _ in range(TRIES):
            try:
                return self._database.run(
                    lambda conn: self._decide(conn, agent, source), patience=0.0 if self._away else 2.0
                )
            except (_LostRace, IntegrityError):
                continue
        raise Conflict(f"{agent.name or source}: its row is written all the time")

    def _decide(self, conn: Connection, agent: Agent, source: IPAddress) -> _Done:
        there = self._devices.by_address(conn, str(source))
        if agent.name is not None:
            device = self._devices.by_name(conn, agent.name)
        elif len(there) > 1:
            raise Conflict(f"{source} is the address of {_names(there)}, and the agent there has no name")
        else:
            device = there[0] if there else None
        others = [other for other in there if device is None or other.id != device.id]
        if device is None:
            return self._add(conn, agent, source, others)
        if self._server_id not in (device.imaging_server_id, device.owner_id):
            raise Conflict(f"{device.name}, which calls from {source}, is a device of {device.imaging_server}")
        return self._update(conn, agent, source, device, others)

    def _update(self, conn: Connection, agent: Agent, source: IPAddress, device: Device, others: list[Device]) -> _Done:
        """A known device: from the address that is known it may always call, from others where they are accepted."""
        values: dict[str, Any] = {}
        notes = [_said(agent, source)]
        at_home = _is_at(device.address, source)
        if not at_home:
            self._check_stranger(agent, source, device.name, others, f" (it is known at {device.address})")
            if agent.address is not None:
                values["address"] = str(source)
                notes.append(f"its address was {device.address}")
        if agent.port is not None and (at_home or "address" in values):
            options = device.backends.get("options")
            options = options if isinstance(options, dict) else {}
            if str(options.get("sut_port", DEFAULT_PORT)) != str(agent.port):
                # The device's options replace those of its hardware type as a whole.
                own = self._devices.own_backends(conn, device.id)
                values["backends"] = json.dumps({**own, "options": {**options, "sut_port": str(agent.port)}})
                notes.append(f"its agent's port was {options.get('sut_port', DEFAULT_PORT)}")
        now = self._clock.now()
        if not values and device.last_seen is not None and timedelta(0) <= now - device.last_seen < REPEAT:
            return _Done(device.id, device.name, None)
        if not self._devices.write(conn, device.id, device.version, {**values, "last_seen": now}):
            raise _LostRace
        return _Done(device.id, device.name, "; ".join(notes))

    def _add(self, conn: Connection, agent: Agent, source: IPAddress, others: list[Device]) -> _Done:
        """An unknown device becomes one in state new."""
        self._check_stranger(agent, source, agent.name or "an agent without a name", others, ", which is unknown")
        name = agent.name or name_of(source)
        if agent.name is None and self._devices.by_name(conn, name) is not None:
            raise Conflict(f"the agent at {source} has no name, and there is a device {name} at another address")
        options = {} if agent.port in (None, DEFAULT_PORT) else {"options": {"sut_port": str(agent.port)}}
        device_id = self._devices.insert_device(
            conn,
            self._rng,
            name=name,
            fqdn=name,
            address=str(source),
            inventory_id=0,
            mac_address=NO_MAC,
            imaging_server_id=self._server_id,
            environment=self._settings.environment,
            backends=json.dumps(options) if options else None,
            last_seen=self._clock.now(),
        )
        return _Done(device_id, name, f"new device, {_said(agent, source)}")

    def _check_stranger(self, agent: Agent, source: IPAddress, name: str, others: list[Device], known: str) -> None:
        """Raise unless an agent may call from an address that is not known as its own."""
        if not any(source in network for network in self._settings.accept):
            raise Forbidden(f"{name}{known}, calls from {source}, which is in no network of [registration] accept")
        if agent.address not in (None, source):
            raise Forbidden(f"{name}{known}, calls from {source} but gives {agent.address} as its address")
        if others:
            # Two rows for one board would lend it to two people.
            raise Conflict(f"{name}{known}, calls from {source}, which is the address of {_names(others)}")


def _said(agent: Agent, source: IPAddress) -> str:
    return f"registered from {source}: OS {agent.os or 'unknown'}, agent port {agent.port or 'unknown'}"


def _is_at(address: str, source: IPAddress) -> bool:
    try:
        return ip_address(address) == source
    except ValueError:
        return False


def _names(devices: list[Device]) -> str:
    return ", ".join(device.name for device in devices[:3])


# --- Connections ---


@dataclass(frozen=True)
class Limits:
    """What agents may take up."""

    line_bytes: int = 4096
    line_seconds: float = 30.0
    """From the connection to the end of the line, however slowly it comes."""
    quiet_seconds: float = 1.0
    """After so long without another byte, a line without the word register is complete."""
    answer_seconds: float = 30.0
    """From the end of the line until the answer must be there: as long as agents wait for it."""
    linger_seconds: float = 1.0
    """For an agent to take the answer and close."""
    connections: int = 256
    connections_an_address: int = 4
    messages: int = 20
    """Lines about refusals that are logged a minute."""


class _Caller:
    """One connection. Only the server's thread touches it, but for ``gone``, which others read."""

    def __init__(self, connection: socket.socket, address: IPAddress, deadline: Deadline) -> None:
        self.connection = connection
        self.address = address
        self.received = bytearray()
        self.deadline = deadline
        """Of the step that the connection is in; at its end the connection is closed."""
        self.quiet: Deadline | None = None
        """When the line is complete though it has no end."""
        self.answered = False
        self.gone = False


class RegistrationServer:
    """Listens for agents: one thread for all connections, and one for the database."""

    def __init__(
        self,
        settings: config.Registration,
        register: Callable[[bytes, IPAddress], None],
        clock: Clock,
        limits: Limits | None = None,
    ) -> None:
        """``register`` is :meth:`Registrar.register`. Nothing is opened before :meth:`start`."""
        self._settings = settings
        self._register = register
        self._clock = clock
        self._limits = limits or Limits()
        self._worker = Lanes("registration", 1, clock)
        self._callers: dict[socket.socket, _Caller] = {}
        self._at: Counter[IPAddress] = Counter()
        self._answers: deque[tuple[_Caller, bytes]] = deque()
        self._refusals = _Sparing(clock, self._limits.messages)
        self._stopping = False
        self._thread: Thread | None = None
        self._pause: Deadline | None = None
        """While the process has no room for another connection."""

    def start(self) -> None:
        """Listen, if the configuration says where. Raises MozpoolError when that can't be."""
        host, port = self._settings.listen, self._settings.port
        if host is None:
            return
        self._listener = _listen(host, port)
        self._listener.setblocking(False)
        self._wake, self._waker = socket.socketpair()
        self._wake.setblocking(False)
        self._waker.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._thread = self._clock.start_thread(self._serve, "registration")
        log.info("agents may register at %s:%d", host, self.port)

    @property
    def port(self) -> int:
        """The port that is listened on."""
        number: int = self._listener.getsockname()[1]
        return number

    def stop(self) -> None:
        """Close all connections and end the threads. May be called twice, and without a start."""
        if self._thread is None:
            return
        self._stopping = True
        self._wake_up()
        self._thread.join(5)
        self._worker.stop(5)
        self._thread = None
        self._waker.close()

    # The thread of the connections

    def _serve(self) -> None:
        try:
            while not self._stopping:
                try:
                    self._turn()
                except Exception:
                    log.exception("registrations are held up for a second")
                    self._clock.sleep(1.0)
        finally:
            for caller in list(self._callers.values()):
                self._close(caller)
            self._selector.close()
            self._listener.close()
            self._wake.close()

    def _turn(self) -> None:
        """Wait until something can be done, and do it."""
        for key, _events in self._selector.select(self._patience()):
            if key.fileobj is self._listener:
                self._accept()
            elif key.fileobj is self._wake:
                self._drain()
            elif not key.data.gone:
                self._read(key.data)
        while self._answers:
            self._answer(*self._answers.popleft())
        self._look_at_deadlines()

    def _patience(self) -> float | None:
        """Seconds until something is due; None when nothing is."""
        due = [caller.deadline for caller in self._callers.values()]
        due += [caller.quiet for caller in self._callers.values() if caller.quiet is not None]
        due += [self._pause] if self._pause is not None else []
        return min((deadline.remaining() for deadline in due), default=None)

    def _accept(self) -> None:
        limits = self._limits
        for _ in range(64):  # then those who are connected already have their turn
            try:
                connection, peer = self._listener.accept()
            except BlockingIOError:
                return
            except ConnectionError:
                continue  # it has gone again
            except OSError as error:
                self._refusals.warn("no more connections for now: %s", error.strerror)
                self._selector.unregister(self._listener)
                self._pause = Deadline(self._clock, 1.0)
                return
            address = _plain(ip_address(peer[0]))
            if self._at[address] >= limits.connections_an_address or len(self._callers) >= limits.connections:
                connection.close()
                self._refusals.warn("%s has, or all have, too many connections: one was closed", address)
                continue
            connection.setblocking(False)
            caller = _Caller(connection, address, Deadline(self._clock, limits.line_seconds))
            self._callers[connection] = caller
            self._at[address] += 1
            self._selector.register(connection, selectors.EVENT_READ, caller)

    def _read(self, caller: _Caller) -> None:
        try:
            data = caller.connection.recv(self._limits.line_bytes + 1)
        except BlockingIOError:
            return
        except OSError:
            self._close(caller)
            return
        if caller.answered:  # what comes now is not looked at; but unread, it would take the answer back
            if not data:
                self._close(caller)
            return
        received = caller.received
        received += data
        line, newline, _rest = received.partition(b"\n")
        # Nothing but the line's end tells that one with the word is complete; the other form has none.
        with_word = received.startswith(_REGISTER) or _REGISTER.startswith(received)
        if len(line) > self._limits.line_bytes:
            self._refuse(caller, f"more than {self._limits.line_bytes} bytes in a line")
        elif newline:
            self._complete(caller, line.removesuffix(b"\r"))
        elif data:
            caller.quiet = None if with_word else Deadline(self._clock, self._limits.quiet_seconds)
        elif with_word:
            self._refuse(caller, "closed before the end of the line") if received else self._close(caller)
        else:
            self._complete(caller, received)

    def _complete(self, caller: _Caller, line: bytes | bytearray) -> None:
        """Have the line dealt with, and wait for the answer alone."""
        self._selector.unregister(caller.connection)
        caller.quiet = None
        caller.deadline = Deadline(self._clock, self._limits.answer_seconds)
        said = bytes(line)
        self._worker.submit(None, lambda: self._work(caller, said), f"registration from {caller.address}")

    def _refuse(self, caller: _Caller, reason: str) -> None:
        self._refusals.warn("%s may not register: %s", caller.address, reason)
        self._selector.unregister(caller.connection)
        self._answer(caller, NO)

    def _answer(self, caller: _Caller, answer: bytes) -> None:
        """Send it (it always fits) and give the agent a moment to close; nothing to send closes at once."""
        if caller.gone:
            return
        if not answer:
            self._close(caller)
            return
        try:
            caller.connection.send(answer)
            caller.connection.shutdown(socket.SHUT_WR)
        except OSError:
            self._close(caller)
            return
        caller.answered = True
        caller.quiet = None
        caller.deadline = Deadline(self._clock, self._limits.linger_seconds)
        self._selector.register(caller.connection, selectors.EVENT_READ, caller)

    def _look_at_deadlines(self) -> None:
        for caller in list(self._callers.values()):
            if caller.deadline.expired:
                if caller.received and not caller.answered:
                    self._refusals.warn("%s may not register: it took too long", caller.address)
                self._close(caller)
            elif caller.quiet is not None and caller.quiet.expired:
                self._complete(caller, caller.received)
        if self._pause is not None and self._pause.expired:
            self._pause = None
            self._selector.register(self._listener, selectors.EVENT_READ)

    def _close(self, caller: _Caller) -> None:
        caller.gone = True
        if caller.connection in self._selector.get_map():
            self._selector.unregister(caller.connection)
        del self._callers[caller.connection]
        self._at[caller.address] -= 1
        if not self._at[caller.address]:
            del self._at[caller.address]
        caller.connection.close()

    def _drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._wake.recv(4096):
                pass

    # The thread of the database

    def _work(self, caller: _Caller, line: bytes) -> None:
        if caller.gone:
            return  # its agent has given up, and will try again
        answer = b""
        try:
            self._register(line, caller.address)
            answer = OK
        except DatabaseAway:
            pass
        except (BadInput, Conflict, Forbidden) as error:
            self._refusals.warn("%s may not register: %s", caller.address, error.message)
            answer = NO
        finally:
            self._answers.append((caller, answer))
            self._wake_up()

    def _wake_up(self) -> None:
        with contextlib.suppress(OSError):  # full, so it wakes up anyway; or it has ended
            self._waker.send(b"\0")


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises MozpoolError that says what is in the way."""
    is_v6 = ":" in host
    try:
        return socket.create_server(
            (host, port),
            family=socket.AF_INET6 if is_v6 else socket.AF_INET,
            backlog=128,
            dualstack_ipv6=is_v6 and socket.has_dualstack_ipv6(),
        )
    except OSError as error:
        number = error.errno
        reason = os.strerror(number) if number is not None and number > 0 else str(error.strerror or error)
        raise MozpoolError(
            f"[registration] listen, port: cannot listen on {host}:{port} for agents: {reason.lower()}"
        ) from error


class _Sparing:
    """Logs so many warnings a minute, and counts the others. Safe to use from any thread."""

    def __init__(self, clock: Clock, most: int) -> None:
        self._clock = clock
        self._most = most
        self._minute = Deadline(clock, 60.0)
        self._number = 0
        self._lock = threading.Lock()

    def warn(self, text: str, *values: object) -> None:
        with self._lock:
            left_out = 0
            if self._minute.expired:
                left_out = max(0, self._number - self._most)
                self._minute = Deadline(self._clock, 60.0)
                self._number = 0
            self._number += 1
            number = self._number
        if left_out:
            log.warning("%d more refusals of agents were not logged", left_out)
        if number <= self._most:
            log.warning(text, *values)
        if number == self._most:
            log.warning("more refusals of agents are only counted in this minute")
