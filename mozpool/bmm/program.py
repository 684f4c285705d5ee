# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Runs programs of the configuration: no shell, a deadline for the whole, and nothing left behind when it is over."""

from __future__ import annotations

import errno
import os
import selectors
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import IO, Any

from mozpool.bmm.netio import shown
from mozpool.clock import Deadline
from mozpool.lease import Leash

OUTPUT_LIMIT = 64 * 1024
"""Bytes that are kept of each of a program's outputs: the last ones."""

LINE_LIMIT = 8 * 1024
"""Bytes of a line that are looked at."""

_SHOWN = 200
_LOOK = 0.5
"""Seconds after which it is looked again whether a program may go on."""

_ENVIRONMENT = ("HOME", "LANG", "LC_ALL", "PATH", "TZ")
"""What a program sees of this process's environment; tokens of other services are no business of it."""


_GATE = ("/bin/sh", "-c", 'read -r go && exec "$@" </dev/null', "sh")
"""Becomes the program that it is given once it has read a line, or ends with its input."""


class ProgramError(Exception):
    """It could not be run, failed, or was not done in time; ``str()`` is the reason, with the program's name."""


def start(
    command: Sequence[str], *, stdout: int, stderr: int, new_session: bool = False, **where: Any
) -> subprocess.Popen[bytes]:
    """Start a program that does nothing until ``let_go``: who watches over it is told of it in the meantime.

    So there is no moment at which this process, frozen or killed, leaves behind a program that nobody ends. ``where``
    is ``cwd`` and ``env`` of subprocess.Popen. Raises OSError if there is no such program.
    """
    _look_for(command[0])
    return subprocess.Popen(
        [*_GATE, *command], stdin=subprocess.PIPE, stdout=stdout, stderr=stderr, start_new_session=new_session, **where
    )


def let_go(process: subprocess.Popen[bytes]) -> None:
    """Let one from ``start`` begin."""
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # it was ended before it began
        os.write(process.stdin.fileno(), b"\n")


def _look_for(program: str) -> None:
    if shutil.which(program) is None:
        there = os.path.dirname(program) and os.path.exists(program)
        number = errno.EACCES if there else errno.ENOENT
        raise OSError(number, os.strerror(number), program)


def run(
    command: Sequence[str],
    deadline: Deadline,
    output_limit: int = OUTPUT_LIMIT,
    *,
    cwd: str = "/",
    env: Mapping[str, str] | None = None,
) -> bytes:
    """Run a program and return what it printed: at most ``output_limit`` bytes, the last ones. Raises ProgramError.

    It is over when the program has ended, or at the deadline, when the program is killed with all that it started.
    ``env`` comes on top of the little that programs see of this process's environment.
    """
    program = command[0]
    if deadline.expired:
        raise ProgramError(f"no time was left to run {program}")
    try:
        process = start(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            new_session=True,
            cwd=cwd,
            env=environment(env or {}),
        )
    except (OSError, ValueError) as e:
        raise ProgramError(f"cannot run {program}: {getattr(e, 'strerror', None) or str(e)}") from e
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    with process.stdin, process.stdout as stdout, process.stderr as stderr, deadline.leash(process):
        try:
            if deadline.expired:
                raise TimeoutError
            let_go(process)
            output, errors = _collect(process.pid, stdout, stderr, deadline, output_limit)
        except BaseException as e:
            _kill(process)
            if isinstance(e, TimeoutError):
                reason = f"{program} was not done within {deadline.seconds:.3g} s and was killed"
                raise ProgramError(reason) from None
            raise
    code = process.wait()
    if code:
        end = f"was ended by signal {-code}" if code < 0 else f"ended with status {code}"
        lines = errors.decode(errors="replace").strip().splitlines()
        said = shown(lines[-1], _SHOWN) if lines else "no message"
        raise ProgramError(f"{program} {end}: {said}")
    return bytes(output)


def follow(
    command: Sequence[str],
    deadline: Deadline,
    said: Callable[[str], None],
    *,
    cwd: str,
    env: Mapping[str, str],
    leash: Leash,
    left: Callable[[], float],
) -> int:
    """Run a program, hand each line that it prints to ``said`` as it comes, and return its exit status.

    It may run while ``left()``, asked twice a second, gives seconds to go on: it is killed with all that it started
    when that is 0, at the deadline, and after so many seconds even if this process is frozen or has died. ``env`` is as
    in :func:`run`. Raises ProgramError: it can't be started, or was killed.
    """
    program = command[0]
    try:
        process = start(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            new_session=True,
            cwd=cwd,
            env=environment(env),
        )
    except (OSError, ValueError) as e:
        raise ProgramError(f"cannot run {program}: {getattr(e, 'strerror', None) or str(e)}") from e
    assert process.stdin is not None
    assert process.stdout is not None
    lines = _Lines(said)
    with process.stdin, process.stdout as output, leash(process) as go_on:
        try:
            go_on(_allowed(program, deadline, left))
            let_go(process)
            os.set_blocking(output.fileno(), False)
            ended = os.pidfd_open(process.pid)
            try:
                with selectors.DefaultSelector() as selector:
                    for descriptor in (ended, output.fileno()):
                        selector.register(descriptor, selectors.EVENT_READ)
                    while True:
                        ready = [key.fd for key, _ in selector.select(deadline.remaining(_LOOK))]
                        if not lines.read(output.fileno()) and output.fileno() in selector.get_map():
                            selector.unregister(output.fileno())
                        if ended in ready:
                            break
                        go_on(_allowed(program, deadline, left))
            finally:
                os.close(ended)
        except BaseException:
            _kill(process)
            raise
        finally:
            lines.end()
    return process.wait()


def _allowed(program: str, deadline: Deadline, left: Callable[[], float]) -> float:
    """For how many seconds it may go on. Raises ProgramError for none."""
    seconds = min(deadline.remaining(), left())
    if deadline.expired:
        raise ProgramError(f"{program} was not done within {deadline.seconds:.3g} s and was killed")
    if seconds <= 0:
        raise ProgramError(f"{program} was killed because it is not wanted any more, or this server must not act")
    return seconds


def environment(more: Mapping[str, str]) -> dict[str, str]:
    """What a program sees of this process's environment, and ``more``."""
    return {**{name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}, **more}


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a program that leads a session, and that nobody has waited for yet: so the group is still its own."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):
        process.wait(1)


class _Lines:
    """Cuts what arrives into lines. The end of one that is too long is dropped."""

    def __init__(self, said: Callable[[str], None]) -> None:
        self._said = said
        self._rest = bytearray()

    def read(self, descriptor: int) -> bool:
        """Take what is there, at most a few times a pipe's room; answer whether more may come."""
        for _ in range(8):
            try:
                data = os.read(descriptor, OUTPUT_LIMIT)
            except BlockingIOError:
                return True
            if not data:
                return False
            *lines, rest = data.replace(b"\r", b"\n").split(b"\n")
            for line in lines:
                self._add(line)
                self.end()
            self._add(rest)
        return True

    def _add(self, data: bytes) -> None:
        self._rest += data[: LINE_LIMIT - len(self._rest)]

    def end(self) -> None:
        """What came since the last end of a line is one."""
        if line := self._rest.decode(errors="replace").strip():
            self._said(line)
        self._rest.clear()


def _collect(
    pid: int, stdout: IO[bytes], stderr: IO[bytes], deadline: Deadline, output_limit: int
) -> tuple[bytearray, bytearray]:
    """The last part of both outputs, until the process has ended. Raises TimeoutError at the deadline.

    What it started and left behind may keep the outputs open, so their end is not waited for.
    """
    kept = {stdout.fileno(): bytearray(), stderr.fileno(): bytearray()}
    limits = {stdout.fileno(): output_limit, stderr.fileno(): OUTPUT_LIMIT}
    for descriptor in kept:
        os.set_blocking(descriptor, False)
    ended = os.pidfd_open(pid)
    try:
        with selectors.DefaultSelector() as selector:
            for descriptor in (ended, *kept):
                selector.register(descriptor, selectors.EVENT_READ)
            while True:
                ready = [key.fd for key, _ in selector.select(deadline.remaining())]
                # In this order: what was printed before the end is there when the end is seen.
                for descriptor in kept.keys() if ended in ready else kept.keys() & set(ready):
                    more = _drain(descriptor, kept[descriptor], limits[descriptor])
                    if not more and descriptor in selector.get_map():
                        selector.unregister(descriptor)
                if ended in ready:
                    return kept[stdout.fileno()], kept[stderr.fileno()]
                if deadline.expired:
                    raise TimeoutError
    finally:
        os.close(ended)


def _drain(descriptor: int, kept: bytearray, limit: int) -> bool:
    """Read what is there, at most a few times a pipe's room; answer whether more may come."""
    for _ in range(8):
        try:
            data = os.read(descriptor, OUTPUT_LIMIT)
        except BlockingIOError:
            return True
        if not data:
            return False
        kept += data
        if len(kept) > limit:
            del kept[:-limit]
    return True
