# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""A TCP conversation in which every step is over by a deadline, whatever the peer does.

A socket's own timeout bounds one system call; a peer that sends a byte now and then, or a name server that is
silent, would stretch a conversation without end. Here each call gets what is left of its :class:`Deadline`.
"""

from __future__ import annotations

import itertools
import selectors
import socket
import threading
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import Any, Self

from mozpool.clock import Deadline

Address = tuple[socket.AddressFamily, Any]

NEXT_ATTEMPT = 1.0
"""Seconds after which one more connection is begun to a peer that should speak and does not."""


class PeerError(Exception):
    """The conversation failed; ``str()`` is the reason in plain words, without the peer's name."""


class Connection:
    """A TCP connection to one peer. A context manager that closes it; used by one thread at a time."""

    def __init__(self, host: str, port: int, deadline: Deadline, *, source: str | None = None) -> None:
        """Connect as :func:`connect` does. Raises PeerError."""
        self._watch_over(connect(host, port, deadline, source=source), deadline)

    @classmethod
    def that_speaks(
        cls, host: str, port: int, deadline: Deadline, every: float = NEXT_ATTEMPT, *, whole: Deadline | None = None
    ) -> Self:
        """A connection to a peer that speaks first, as soon as it has begun to. Raises PeerError.

        ``whole`` is until when it is used, where ``deadline`` is for making it alone.

        While it is silent, one more connection is begun every so many seconds, and the first on which it speaks is
        taken: what was begun while a board was booting may hang long after the board is up.
        """
        connection = cls.__new__(cls)
        sock = _first_to_speak(resolve(host, port, deadline), host, deadline, every)
        connection._watch_over(sock, whole or deadline)
        return connection

    def _watch_over(self, sock: socket.socket, deadline: Deadline) -> None:
        """It ends with the lease that ``deadline`` may belong to, even if this process is frozen."""
        self._socket = sock
        self._guard = ExitStack()
        self._guard.enter_context(deadline.guard(sock))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connection. Closing it twice is fine."""
        self._guard.close()
        self._socket.close()

    def send(self, data: bytes, deadline: Deadline) -> None:
        """Send all of ``data``, in one write where the system takes it. Raises PeerError."""
        try:
            _allow(self._socket, deadline)
            self._socket.sendall(data)
        except TimeoutError:
            raise PeerError(f"did not take what was sent within {_seconds(deadline)}") from None
        except OSError as e:
            raise PeerError(f"lost the connection while sending: {_reason(e)}") from e

    def receive(self, deadline: Deadline, at_most: int = 65536) -> bytes:
        """The next bytes that arrive, at least one and ``at_most`` so many; empty when the peer has closed.

        Raises PeerError.
        """
        while True:
            try:
                _allow(self._socket, deadline)
                return self._socket.recv(at_most)
            except TimeoutError:
                if not deadline.expired:
                    continue  # there is more time than there was: the deadline is a lease's, which was renewed
                raise PeerError(f"no answer within {_seconds(deadline)}") from None
            except OSError as e:
                raise PeerError(f"lost the connection while waiting for an answer: {_reason(e)}") from e

    def unasked(self, seconds: float, at_most: int = 16) -> bytes:
        """What is there although nothing was asked, or comes within so many seconds (0: does not wait).

        Empty when there is nothing, also because the connection has ended: what is sent next will tell.
        """
        with suppress(OSError):
            self._socket.settimeout(max(0.0, seconds))
            return self._socket.recv(at_most)
        return b""


def connect(host: str, port: int, deadline: Deadline, *, source: str | None = None) -> socket.socket:
    """A socket that is connected to ``host`` (a name or an IP address), trying all its addresses. Raises PeerError.

    IPv4 connections come from the address ``source``, if there is one.
    """
    addresses = resolve(host, port, deadline)
    problem = PeerError(f"the host name {host!r} has no address")
    for tried, (family, address) in enumerate(addresses):
        # Shared out evenly, so that an address that swallows everything leaves time for the next one.
        attempt = deadline.within(deadline.remaining() / (len(addresses) - tried))
        try:
            return _connect(family, address, attempt, source)
        except TimeoutError:
            problem = PeerError(f"no connection within {_seconds(deadline)}")
        except OSError as e:
            problem = PeerError(f"no connection: {_reason(e)}")
    raise problem


def _connect(family: socket.AddressFamily, address: Any, deadline: Deadline, source: str | None) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        if source is not None and family == socket.AF_INET:
            sock.bind((source, 0))
        _allow(sock, deadline)
        sock.connect(address)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except OSError:
        sock.close()
        raise
    return sock


def _first_to_speak(addresses: Sequence[Address], host: str, deadline: Deadline, every: float) -> socket.socket:
    """The first of any number of connections on which the peer speaks; the others are closed. Raises PeerError."""
    if not addresses:
        raise PeerError(f"the host name {host!r} has no address")
    waiting: list[socket.socket] = []
    connected = False
    try:
        for number, (family, address) in enumerate(itertools.cycle(addresses), start=1):
            if deadline.expired:
                break
            problem = _begin(family, address, waiting)
            attempt = deadline.within(every)
            while waiting and not attempt.expired:
                for sock in _readable(waiting, attempt.remaining()):
                    waiting.remove(sock)
                    problem = _silence(sock)
                    if problem is None:
                        return sock
                    sock.close()
            # Where an older connection still waits, its peer may speak yet, whatever became of a newer one.
            if problem is not None and not waiting and number >= len(addresses):
                raise problem
            connected = any(_is_connected(sock) for sock in waiting)
    finally:
        for sock in waiting:
            sock.close()
    raise PeerError(f"no {'answer' if connected else 'connection'} within {_seconds(deadline)}")


def _begin(family: socket.AddressFamily, address: Any, waiting: list[socket.socket]) -> PeerError | None:
    """Begin a connection and add it to those that wait; what is wrong if that is clear at once."""
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with suppress(BlockingIOError):
            sock.connect(address)
    except OSError as e:
        sock.close()
        return PeerError(f"no connection: {_reason(e)}")
    waiting.append(sock)
    return None


def _readable(waiting: Sequence[socket.socket], seconds: float) -> list[socket.socket]:
    """Those on which something has come, or that have ended, within so many seconds."""
    with selectors.DefaultSelector() as selector:
        for sock in waiting:
            selector.register(sock, selectors.EVENT_READ, sock)
        return [key.data for key, _ in selector.select(seconds)]


def _silence(sock: socket.socket) -> PeerError | None:
    """Why nothing can be read from a connection on which something happened; None when something can."""
    try:
        return None if sock.recv(1, socket.MSG_PEEK) else PeerError("closed the connection without a prompt")
    except ConnectionResetError as e:
        return PeerError(f"lost the connection while waiting for an answer: {_reason(e)}")
    except OSError as e:
        return PeerError(f"no connection: {_reason(e)}")


def _is_connected(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


def _allow(sock: socket.socket, deadline: Deadline) -> None:
    """Let the next call on ``sock`` take what is left; raise TimeoutError when nothing is (0 means "don't block")."""
    left = deadline.remaining()
    if left <= 0:
        raise TimeoutError
    sock.settimeout(left)


def resolve(host: str, port: int, deadline: Deadline) -> list[Address]:
    """The addresses of ``host``. Raises PeerError.

    The system's resolver takes no time limit, so names are looked up in a thread of their own, which is left
    behind when the name server is silent: it ends by the resolver's own limit. Numeric addresses need no thread.
    """
    try:
        return _look_up(host, port, socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        pass
    answer: list[Address] = []
    problem: list[Exception] = []
    done = threading.Event()

    def look_up() -> None:
        try:
            answer.extend(_look_up(host, port, 0))
        except (OSError, UnicodeError) as e:
            problem.append(e)
        finally:
            done.set()

    threading.Thread(target=look_up, name=f"resolve {host}", daemon=True).start()
    if not deadline.clock.wait(done, deadline.remaining()):
        raise PeerError(f"the host name {host!r} was not resolved within {_seconds(deadline)}")
    if problem:
        raise PeerError(f"the host name {host!r} is not known: {_reason(problem[0])}") from problem[0]
    return answer


def _look_up(host: str, port: int, flags: int) -> list[Address]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    return [(family, address) for family, _, _, _, address in found]


def _seconds(deadline: Deadline) -> str:
    return f"{round(deadline.seconds, 1):g} s"


def _reason(error: Exception) -> str:
    """The system's words for an error, without its number."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def shown(text: str, most: int = 80) -> str:
    """A peer's words for a message: quoted, and of at most so many characters."""
    return repr(text if len(text) <= most else f"{text[: most - 3]}...")
