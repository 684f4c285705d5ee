# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Signals, and the command that ``mozpool run`` runs while it holds a device."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from types import FrameType, TracebackType
from typing import Any, Self

from mozpool.clock import Clock

GRACE = 10.0
"""Seconds that a command may take to end after SIGTERM or SIGHUP, before it is killed."""

NOT_EXECUTABLE, NOT_FOUND = 126, 127
"""Exit codes of shells."""

_FROM_TERMINAL = (signal.SIGINT, signal.SIGQUIT)
_HANDLED = (*_FROM_TERMINAL, signal.SIGTERM, signal.SIGHUP)


class Stopped(BaseException):
    """A signal asks the program to end; what is held is given back on the way out."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.exit_code = 128 + signum


class Signals:
    """What SIGINT, SIGQUIT, SIGTERM and SIGHUP do in a ``with`` block. For the main thread.

    The first one raises :class:`Stopped`, and then none does anything: giving a device back takes no longer than
    a call's time limit, and is not to be interrupted. Signals that the caller ignores (nohup) stay ignored.
    """

    def __init__(self) -> None:
        self._act: Callable[[int], None] = self._stop
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for signum in _HANDLED:
            before = signal.getsignal(signum)
            if before is not signal.SIG_IGN:
                self._before[signum] = before
                signal.signal(signum, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for signum, before in self._before.items():
            signal.signal(signum, before)

    def send_to(self, act: Callable[[int], None]) -> None:
        """Call this for each signal from now on, instead of raising."""
        self._act = act

    def ignore(self) -> None:
        """Do nothing for signals from now on."""
        self._act = _nothing

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        self._act(signum)

    def _stop(self, signum: int) -> None:
        self.ignore()
        raise Stopped(signum)


class Child:
    """A command that runs in the foreground: it shares terminal and process group with this program."""

    def __init__(self, clock: Clock, grace: float = GRACE) -> None:
        """``grace``: seconds that the command may take to end when it is asked to."""
        self._clock = clock
        self._grace = grace
        # Signal handlers run in the main thread wherever it is, so it must be able to take the lock twice.
        self._lock = threading.RLock()
        self._process: subprocess.Popen[bytes] | None = None
        self._early: list[int] = []
        self._ended = threading.Event()
        self._killer: threading.Thread | None = None

    def run(self, command: Sequence[str], environment: Mapping[str, str], signals: Signals) -> int:
        """Run the command to its end, handing all signals on to it, and return its exit code as a shell tells it.

        Afterwards signals are ignored. Raises OSError when the command can't be started.
        """
        signals.send_to(self.send)
        try:
            with self._lock:
                self._process = subprocess.Popen(list(command), env=dict(environment))
                for signum in self._early:
                    self._process.send_signal(signum)
            code = self._process.wait()
        finally:
            signals.ignore()
            self._ended.set()
        return 128 - code if code < 0 else code

    def send(self, signum: int) -> None:
        """Hand a signal on; after SIGTERM and SIGHUP the command is killed when it does not end in time.

        From any thread, also before the command was started.
        """
        with self._lock:
            if signum not in _FROM_TERMINAL and self._killer is None:
                self._killer = threading.Thread(target=self._kill_later, name="end of grace", daemon=True)
                self._killer.start()
            if self._process is None:
                self._early.append(signum)
            elif not (signum in _FROM_TERMINAL and _in_foreground()):
                self._process.send_signal(signum)

    def _kill_later(self) -> None:
        if not self._clock.wait(self._ended, self._grace) and self._process is not None:
            self._process.kill()


def _in_foreground() -> bool:
    """Whether keys such as Ctrl-C reach this process's whole group, so that the command has had the signal already."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)


def _nothing(signum: int) -> None:
    """The signal does nothing."""
