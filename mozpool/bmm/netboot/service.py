# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Keeps dnsmasq running, and tells it when the boards have changed."""

from __future__ import annotations

import logging
import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from ipaddress import IPv4Address
from pathlib import Path
from typing import IO

from mozpool.bmm import program
from mozpool.bmm.files import put
from mozpool.bmm.netboot import dnsmasq
from mozpool.bmm.netboot.boards import Addresses, Board
from mozpool.clock import Clock, Deadline, Event, Thread
from mozpool.config import Settings
from mozpool.errors import MozpoolError
from mozpool.lease import Lease

log = logging.getLogger("mozpool.netboot")

LOOK_INTERVAL = 10.0
"""Seconds between two looks at the devices."""

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds before dnsmasq is started again: twice as long each time, up to the longest."""

LASTING = 60.0
"""Seconds after which a run counts as good, so that the pauses begin anew."""

END_LIMIT = 5.0
"""Seconds that dnsmasq has to end after SIGTERM; then it is killed."""

STOP_LIMIT = 20.0
"""Seconds that stopping may take in all: a look at the devices, and the end of dnsmasq."""

TEST_LIMIT = 10.0
"""Seconds that ``dnsmasq --test`` may take."""

LEASE_INTERVAL = 1.0
"""Seconds between two looks whether a lease that is over was renewed."""

LONGEST_LINE = 1000
"""Bytes of dnsmasq's output that are logged as one line."""

_CAPABILITIES = {
    "tftp": ("net_bind_service",),
    "proxy": ("net_admin", "net_bind_service", "net_raw"),
    "dhcp": ("net_admin", "net_bind_service", "net_raw"),
}
"""What dnsmasq may do besides what everybody may, by mode: ports below 1024, ARP entries, one interface only."""

_LINE = re.compile(r"(?:dnsmasq(?:-\w+)?(?:\[\d+\])?: )?(.*)", re.S)


def missing(settings: Settings) -> list[str]:
    """A sentence for each program that is not installed."""
    needed = {settings.netboot.dnsmasq: "dnsmasq-base", "setpriv": "util-linux"}
    return [
        f"the program {program} is not installed (Debian package {package})"
        for program, package in needed.items()
        if shutil.which(program) is None
    ]


def command(settings: Settings, directory: Path) -> list[str]:
    """How dnsmasq is started; its two files are in ``directory``.

    ``setpriv`` has the kernel end dnsmasq when the thread that started it ends, for whatever reason. (dnsmasq must not
    change its user by itself: that would undo it.) Where we are root, dnsmasq becomes the user ``dnsmasq``, or
    ``nobody``, and keeps only the privileges that its mode needs; else it has at most those of this process.
    """
    leash = ["setpriv", "--pdeathsig=TERM"]
    if os.geteuid() == 0:
        user = _unprivileged_user()
        allowed = ",".join(["-all", *(f"+{name}" for name in _CAPABILITIES[settings.netboot.mode])])
        leash += [f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups", "--no-new-privs"]
        leash += [f"--{which}={allowed}" for which in ("inh-caps", "ambient-caps", "bounding-set")]
    files = [f"--conf-file={directory / 'dnsmasq.conf'}"]
    if dnsmasq.needs_boards(settings):
        files.append(f"--dhcp-hostsfile={directory / 'hosts'}")
    return [*leash, "--", settings.netboot.dnsmasq, "--keep-in-foreground", "--log-facility=-", "--pid-file=", *files]


def _unprivileged_user() -> pwd.struct_passwd:
    for name in ("dnsmasq", "nobody"):
        with suppress(KeyError):
            return pwd.getpwnam(name)
    raise MozpoolError("there is neither a user dnsmasq nor a user nobody that dnsmasq could run as")


def objections(settings: Settings, hosts: Sequence[dnsmasq.Host] = ()) -> str | None:
    """What dnsmasq itself has against its configuration and its hosts; None when nothing. Raises ConfigError."""
    text = dnsmasq.main_text(settings) + "".join(f"dhcp-host={host}\n" for host in hosts)
    try:
        done = subprocess.run(
            [settings.netboot.dnsmasq, "--test", "--conf-file=-"],
            input=text.encode(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=TEST_LIMIT,
            env=program.environment({}),
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"dnsmasq --test was not done within {TEST_LIMIT:g} s"
    except OSError as error:
        return f"cannot run {settings.netboot.dnsmasq}: {error.strerror}"
    if done.returncode == 0:
        return None
    return done.stderr.decode(errors="replace").strip() or f"dnsmasq --test ended with status {done.returncode}"


class NetbootService:
    """dnsmasq as a child process, with a thread that watches over it."""

    def __init__(
        self,
        settings: Settings,
        boards: Callable[[], Sequence[Board]],
        clock: Clock,
        *,
        interval: float = LOOK_INTERVAL,
        lease: Lease | None = None,
    ) -> None:
        """``boards`` says which boards there are: it is called every ``interval`` seconds, and may raise MozpoolError.

        dnsmasq runs within ``lease`` alone, since others boot the boards afterwards; None: nobody would.

        Raises ConfigError when the settings can't be worked with.
        """
        self._settings = settings
        self._main_text = dnsmasq.main_text(settings)
        self._boards = boards
        self._clock = clock
        self._interval = interval
        self._lease = lease or Lease(clock, None)
        self._addresses = Addresses(clock)
        self._hosts = self._nothing_known()
        self._said: set[str] = set()
        self._stopping = clock.event()
        self._look = clock.event()
        """Set when the thread is to look before its time: boards have come or gone; dnsmasq has ended, or is to end."""
        self._thread: Thread | None = None
        self._directory: Path | None = None

    @property
    def directory(self) -> Path | None:
        """Where dnsmasq's files are while the service runs."""
        return self._directory

    def start(self) -> None:
        """Start the thread, which starts dnsmasq. Raises MozpoolError when a program or a directory is missing."""
        absent = missing(self._settings)
        if absent:
            raise MozpoolError("\n".join(absent))
        try:
            runtime = os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]  # systemd's
            self._directory = Path(tempfile.mkdtemp(prefix="mozpool-netboot-", dir=runtime or None))
            self._directory.chmod(0o755)  # dnsmasq runs as somebody else
            put(self._directory / "dnsmasq.conf", self._main_text.encode())
        except OSError as error:
            raise MozpoolError(f"dnsmasq's files can't be written: {error.filename}: {error.strerror}") from error
        self._thread = self._clock.start_thread(self._work, "netboot")

    def stop(self) -> None:
        """End dnsmasq and the thread, and remove the files. May be called twice."""
        self._stopping.set()
        self._look.set()
        if self._thread is not None:
            self._thread.join(STOP_LIMIT)
            if self._thread.is_alive():
                log.warning("network boot has not ended within %g s", STOP_LIMIT)
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)

    def look_now(self) -> None:
        """Boards have come or gone: let dnsmasq know soon."""
        self._look.set()

    # In the thread

    def _work(self) -> None:
        pause = FIRST_PAUSE
        self._lease.look()
        while not self._stopping.is_set():
            if not self._lease.holds:
                # Others may have taken boards: what was known of them counts no more.
                self._hosts = self._nothing_known()
                self._lease.look()
                if self._lease.left() <= 0:
                    self._clock.wait(self._stopping, LEASE_INTERVAL)
                    continue
            self._see_changes()
            if self._hosts is None:  # without the boards, dnsmasq would turn them all away
                self._clock.wait(self._stopping, self._interval)
                continue
            began = self._clock.monotonic()
            try:
                ended = self._run()
            except OSError as error:
                ended = f"can't be started: {error.strerror}"
            except Exception as error:
                log.exception("network boot broke")
                ended = f"was ended because of {type(error).__name__}"
            if ended is None or self._stopping.is_set():
                continue
            if self._clock.monotonic() - began >= LASTING:
                pause = FIRST_PAUSE
            log.error("dnsmasq %s; it is started again in %g s", ended, pause)
            self._clock.wait(self._stopping, pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _nothing_known(self) -> list[dnsmasq.Host] | None:
        return None if dnsmasq.needs_boards(self._settings) else []

    def _run(self) -> str | None:
        """One run of dnsmasq: how it ended, or None when it was ended to be started anew or for good."""
        assert self._directory is not None
        given = self._given()
        # The thread that starts it is the one whose end ends it.
        process = program.start(
            command(self._settings, self._directory),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=program.environment({}),
        )
        output = process.stderr
        assert process.stdin is not None
        assert output is not None
        with process.stdin, self._lease.leash(process) as go_on:
            begun = False
            silent = self._clock.event()
            reader = self._clock.start_thread(lambda: self._pass_on(output, silent), "netboot log")
            try:
                while not self._stopping.is_set() and not silent.is_set() and self._lease.holds:
                    go_on(self._lease.left())
                    if not begun:
                        program.let_go(process)
                        begun = True
                    if self._clock.wait(self._look, min(self._interval, self._lease.left())):
                        self._look.clear()
                        if self._stopping.is_set() or silent.is_set():
                            continue
                    if self._see_changes():
                        if any(given.setdefault(address, mac) != mac for address, mac in self._given().items()):
                            log.info("an address has another board now: dnsmasq starts anew, without its leases")
                            return None
                        process.send_signal(signal.SIGHUP)
                return self._end_of(process)
            finally:
                _end(process, self._clock)
                reader.join(END_LIMIT)
                output.close()

    def _pass_on(self, output: IO[bytes], silent: Event) -> None:
        """Log what dnsmasq says, until it ends: then ``silent`` is set."""
        try:
            _log_lines(output)
        finally:
            silent.set()
            self._look.set()

    def _given(self) -> dict[IPv4Address, str]:
        """Which board has which of the addresses that we give."""
        return {host.address: host.mac for host in self._hosts or () if host.address is not None}

    def _end_of(self, process: subprocess.Popen[bytes]) -> str | None:
        """How dnsmasq, which says nothing more, ended by itself; None when it is to end."""
        if self._stopping.is_set():
            return None
        if not self._lease.holds:
            log.warning("network boot ends until this server is in touch again: others may boot its boards by now")
            return None
        try:
            status = process.wait(END_LIMIT)
        except subprocess.TimeoutExpired:
            return "has closed its output"
        return f"ended with status {status}" if status >= 0 else f"was ended by {signal.Signals(-status).name}"

    def _see_changes(self) -> bool:
        """Look at the boards, and write the list of hosts; whether it has changed."""
        assert self._directory is not None
        if not dnsmasq.needs_boards(self._settings):
            return False
        try:
            boards = list(self._boards())
            addresses: dict[str, IPv4Address] = {}
            if self._settings.netboot.mode == "dhcp":
                addresses = self._addresses.of(board.address for board in boards)
            hosts, left_out = dnsmasq.hosts(self._settings, boards, addresses)
            put(self._directory / "hosts", dnsmasq.hosts_text(hosts).encode())
        except MozpoolError as error:
            self._warn({f"network boot can't see its devices: {error.message}"})
            return False
        except OSError as error:
            self._warn({f"network boot can't write its list of hosts: {error.strerror}"})
            return False
        except Exception as error:
            if self._warn({f"network boot can't see its devices: {type(error).__name__}"}):
                log.exception("what went wrong")
            return False
        self._warn(set(left_out))
        changed = hosts != self._hosts
        self._hosts = hosts
        return changed

    def _warn(self, problems: set[str]) -> bool:
        """Log what was not said the last time; whether there was anything."""
        new = problems - self._said
        for problem in sorted(new):
            log.warning("%s", problem)
        self._said = problems
        return bool(new)


def _log_lines(output: IO[bytes]) -> None:
    """Pass dnsmasq's lines on to our log, until it closes its output."""
    while line := output.readline(LONGEST_LINE):
        found = _LINE.fullmatch(line.decode(errors="replace").strip())
        text = found[1] if found else ""
        if text.startswith("FAILED"):
            log.error("dnsmasq: %s", text)
        elif text.startswith("warning"):
            log.warning("dnsmasq: %s", text)
        elif text:
            log.info("dnsmasq: %s", text)


def _end(process: subprocess.Popen[bytes], clock: Clock) -> None:
    """See to it that the process has ended."""
    deadline = Deadline(clock, 2 * END_LIMIT)
    for end in (process.terminate, process.kill):
        if process.poll() is None:
            end()
            with suppress(subprocess.TimeoutExpired):
                process.wait(deadline.remaining(END_LIMIT))
    if process.returncode is None:
        log.error("dnsmasq (process %d) can't be ended", process.pid)
