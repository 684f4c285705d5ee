# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Ends connections and programs in time even if this process is stopped.

A process that is frozen (SIGSTOP, a debugger, a cgroup) keeps its connections, and a relay board talks to one client at
a time. So a second process holds a copy of each such connection, and shuts it down when its time is over, for both of
them: whatever the first one writes when it goes on reaches nobody. Programs that a frozen process has started go on,
too: a dnsmasq would answer boards that another server boots by now. The second process kills those that it was not told
to let run on, and with a program that leads a group all processes of that group.

This file is also that second process's program, which starts in some milliseconds because it imports little.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

_WORD = struct.Struct("!Qd?")
"""The number of a connection or a program, until when (monotonic seconds) it may go on, and whether it is a program.

With a file it is to be watched from now on, in place of what had the number; without one, nothing has it any more.
"""

log = logging.getLogger("mozpool.cutoff")

ENDED_WITHIN = 5.0
"""Seconds that the second process may take to end."""


class Cutoff:
    """The first process's side. Its methods may be called from any thread."""

    def __init__(self) -> None:
        """The second process is started with the first connection or program, and again should it have ended."""
        self._lock = threading.Lock()
        self._number = 0
        self._wire: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False

    @contextmanager
    def after(self, connection: socket.socket, seconds: float) -> Iterator[None]:
        """While this lasts, see to it that a connection is shut down after so many seconds; at its end it is, anyway.

        Where the second process can't be had, that is logged, and the connection is used without.
        """
        end = _now() + seconds
        with self._lock:
            self._number += 1
            number = self._number
            try:
                self._send(_WORD.pack(number, end, False), [connection.fileno()])
            except OSError as error:
                log.warning("a connection may stay open for too long if this server is frozen: %s", error)
        try:
            yield
        finally:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)  # closing it alone would leave the copy open
            self._forget(number)

    @contextmanager
    def leash(self, process: subprocess.Popen[bytes]) -> Iterator[Callable[[float], None]]:
        """While this lasts, a program may run for as many seconds as was said the last time; then it is killed.

        Answers what is called to say so, with the seconds from now. Until the first call it may run as it likes. Where
        the second process can't be had, that is logged, and the program runs on.
        """
        with self._lock:
            self._number += 1
            number = self._number
        try:
            program = os.pidfd_open(process.pid)
        except (OSError, AttributeError) as error:
            log.warning("a program would go on if this server were frozen: %s", error)
            yield lambda seconds: None
            return

        def go_on(seconds: float) -> None:
            # With its file each time, so that a new second process knows it, too.
            try:
                with self._lock:
                    self._send(_WORD.pack(number, _now() + seconds, True), [program])
            except OSError as error:
                log.warning("a program would go on if this server were frozen: %s", error)

        try:
            yield go_on
        finally:
            os.close(program)
            self._forget(number)

    def _forget(self, number: int) -> None:
        with self._lock, suppress(OSError):
            if self._wire is not None:
                self._send(_WORD.pack(number, 0.0, False), [])

    def _send(self, word: bytes, files: list[int]) -> None:
        for last in (False, True):
            if self._wire is None:
                self._start()
            assert self._wire is not None
            try:
                socket.send_fds(self._wire, [word], files)
                return
            except OSError:
                self._end()
                if last or not files:
                    raise

    def _start(self) -> None:
        if self._closed:
            raise OSError("this server stops")
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            ours.settimeout(ENDED_WITHIN)
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", __file__, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                # What else this process's environment says, passwords for one, is no business of it.
                env={name: os.environ[name] for name in ("LD_LIBRARY_PATH", "PATH") if name in os.environ},
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # what a terminal sends to all of its processes is not for this one
            )
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        self._wire = ours

    def _end(self) -> None:
        """Without its wire the second process shuts everything down and ends."""
        if self._wire is not None:
            self._wire.close()
            self._wire = None
        if self._process is not None:
            try:
                self._process.wait(ENDED_WITHIN)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def close(self) -> None:
        """End the second process, and let there be none any more."""
        with self._lock:
            self._closed = True
            self._end()


def _now() -> float:
    """The same in both processes."""
    return time.monotonic()  # noqa: TID251 - a program of its own, without a Clock


def _watch(wire: socket.socket) -> None:
    """The second process: until the first one has gone, end in time what is watched."""
    watched: dict[int, tuple[float, int, bool]] = {}
    poll = select.poll()
    poll.register(wire, select.POLLIN)
    while True:
        now = _now()
        for number, (end, file, is_program) in list(watched.items()):
            if end <= now:
                del watched[number]
                _end(file, is_program)
        left = min((end - now for end, _, _ in watched.values()), default=None)
        if not poll.poll(None if left is None else max(0.0, left) * 1000 + 1):
            continue
        word, files, _, _ = socket.recv_fds(wire, _WORD.size, 1)
        if len(word) != _WORD.size:
            break
        number, end, is_program = _WORD.unpack(word)
        before = watched.pop(number, None)
        if before is not None:
            os.close(before[1])
        if files:
            watched[number] = (end, files[0], is_program)
    for _, file, is_program in watched.values():
        _end(file, is_program)


def _end(file: int, is_program: bool) -> None:
    with suppress(OSError):
        if is_program:
            with suppress(OSError):
                _kill_group(file)
            signal.pidfd_send_signal(file, signal.SIGKILL)
        else:
            with socket.socket(fileno=os.dup(file)) as connection:
                connection.shutdown(socket.SHUT_RDWR)
    os.close(file)


def _kill_group(file: int) -> None:
    """Kill what a program has started, as far as it is in the program's own group.

    While the program is there, or nobody has asked for its exit status, its number is nobody else's. Raises OSError.
    """
    with open(f"/proc/self/fdinfo/{file}") as info:
        pid = next((int(line.split()[1]) for line in info if line.startswith("Pid:")), -1)
    if pid > 0 and os.getpgid(pid) == pid:
        os.killpg(pid, signal.SIGKILL)


if __name__ == "__main__":
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)  # it ends when the first process has ended
    os.chdir("/")
    _watch(socket.socket(fileno=int(sys.argv[1])))
