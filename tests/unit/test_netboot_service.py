# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What keeps dnsmasq running, with stand-ins for dnsmasq: programs that say what they were told."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path

import pytest
from click.testing import CliRunner

from mozpool.bmm.netboot.boards import Board
from mozpool.bmm.netboot.service import NetbootService, objections
from mozpool.cli.netboot import main
from mozpool.clock import Clock, Event
from mozpool.config import ConfigError, Netboot, Settings
from mozpool.errors import DatabaseAway, MozpoolError
from mozpool.lease import Lease

needs_setpriv = pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv is not installed (util-linux)")

STAND_IN = """\
import os, signal, sys, time
hosts = [word.partition("=")[2] for word in sys.argv if word.startswith("--dhcp-hostsfile=")][0]
def tell(number=0, frame=None):
    with open(hosts) as file:
        lines = [line.strip() for line in file if not line.startswith("#")]
    print(f"dnsmasq-dhcp[{os.getpid()}]: knows {os.getpid()} {lines}", file=sys.stderr, flush=True)
signal.signal(signal.SIGHUP, tell)
tell()
"""

ONE = Board("one", "aabbccddee01", "10.99.0.11")
TWO = Board("two", "aabbccddee02", "10.99.0.12")


class Hasty(Clock):
    """The real clock, which waits a hundredth of what it is asked to, and remembers the pauses."""

    def __init__(self) -> None:
        self.asked: list[float] = []

    def wait(self, event: Event, seconds: float | None) -> bool:
        if seconds is not None:
            self.asked.append(seconds)
        return super().wait(event, None if seconds is None else seconds / 100)


class Pool:
    """The boards, and dnsmasq's stand-in."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.boards: list[Board] = [ONE]
        self.error: Exception | None = None
        self.looks = threading.Semaphore(0)
        self.clock = Hasty()

    def __call__(self) -> list[Board]:
        self.looks.release()
        if self.error is not None:
            raise self.error
        return list(self.boards)

    def look(self, times: int = 1) -> None:
        """Wait until the boards were looked at so many times more."""
        while self.looks.acquire(blocking=False):
            pass
        for _ in range(times):
            assert self.looks.acquire(timeout=60)

    def settings(self, script: str, **keys: object) -> Settings:
        program = self.directory / "dnsmasq"
        program.write_text(f"#!{sys.executable}\n{script}")
        program.chmod(0o755)
        values: dict = {"network": IPv4Network("10.99.0.0/24"), "dnsmasq": str(program), **keys}
        settings = Settings()
        return replace(
            settings,
            server=replace(settings.server, ipaddress="10.99.0.1"),
            paths=replace(settings.paths, tftp_root=Path("/srv/tftp")),
            netboot=Netboot(**values),
        )

    def said(self, text: str, caplog: pytest.LogCaptureFixture, times: int = 1) -> list[str]:
        """The log's messages with this text, as soon as there are so many."""
        end = time.monotonic() + 60
        while time.monotonic() < end:
            found = [record.getMessage() for record in caplog.records if text in record.getMessage()]
            if len(found) >= times:
                return found
            time.sleep(0.01)
        raise AssertionError(f"not said: {text}; but {caplog.text}")


@pytest.fixture
def pool(monkeypatch) -> Iterator[Pool]:
    # Not pytest's directory: as root, dnsmasq is another user and must reach it.
    directory = Path(tempfile.mkdtemp(prefix="mozpool-netboot-test-"))
    directory.chmod(0o755)
    (directory / "runtime").mkdir()
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(directory / "runtime"))
    yield Pool(directory)
    shutil.rmtree(directory)


@pytest.fixture
def start(pool, caplog) -> Iterator[Callable[..., NetbootService]]:
    """Start a service with this stand-in; it is stopped at the end of the test."""
    caplog.set_level(logging.INFO, "mozpool.netboot")
    with ExitStack() as stack:

        def started(script: str, lease: Lease | None = None, **keys: object) -> NetbootService:
            made = NetbootService(pool.settings(script, **keys), pool, pool.clock, lease=lease)
            stack.callback(made.stop)
            made.start()
            return made

        yield started


def pids(lines: list[str]) -> list[str]:
    """The processes that said these lines."""
    return [line.split("knows ")[1].split()[0] for line in lines]


@needs_setpriv
def test_it_is_told_of_new_boards_by_a_signal(pool, start, caplog):
    service = start(STAND_IN + "while True: signal.pause()")
    first = pool.said("knows", caplog)[0]
    assert first.startswith("dnsmasq: knows")
    assert "aa:bb:cc:dd:ee:01,10.99.0.11,one" in first
    pool.boards = [ONE, TWO]
    second = pool.said("knows", caplog, 2)[1]
    assert "aa:bb:cc:dd:ee:02,10.99.0.12,two" in second
    pool.look(5)
    service.stop()
    lines = pool.said("knows", caplog)
    assert len(lines) == 2  # once for each change
    assert len(set(pids(lines))) == 1


@needs_setpriv
def test_it_starts_anew_when_an_address_has_another_board(pool, start, caplog):
    start(STAND_IN + "while True: signal.pause()")
    pool.said("knows", caplog)
    pool.boards = []
    pool.said("knows", caplog, 2)
    pool.boards = [replace(TWO, address=ONE.address)]
    lines = pool.said("knows", caplog, 3)
    assert "aa:bb:cc:dd:ee:02,10.99.0.11,two" in lines[2]
    first, second, third = pids(lines)
    assert first == second != third


@needs_setpriv
def test_beside_another_dhcp_server_boards_have_no_addresses_to_share(pool, start, caplog):
    start(STAND_IN + "while True: signal.pause()", mode="proxy")
    pool.said("knows", caplog)
    pool.boards = [TWO]
    assert len(set(pids(pool.said("knows", caplog, 2)))) == 1


@needs_setpriv
def test_it_is_started_again_after_longer_and_longer_pauses(pool, start, caplog):
    start("import sys; sys.exit('dnsmasq: FAILED to start up')")
    ended = pool.said("dnsmasq ended with status 1", caplog, 8)
    assert [line.rpartition("again in ")[2] for line in ended] == [
        f"{seconds} s" for seconds in (1, 2, 4, 8, 16, 32, 60, 60)
    ]
    errors = [record for record in caplog.records if record.getMessage() == "dnsmasq: FAILED to start up"]
    assert errors
    assert {record.levelname for record in errors} == {"ERROR"}


@needs_setpriv
def test_how_it_was_ended_is_told(pool, start, caplog):
    start("import os; os.kill(os.getpid(), 9)")
    pool.said("dnsmasq was ended by SIGKILL; it is started again in 1 s", caplog)


@needs_setpriv
def test_one_that_does_not_want_to_end_is_killed(pool, start, caplog):
    service = start(STAND_IN + "signal.signal(signal.SIGTERM, signal.SIG_IGN)\ntell()\nwhile True: time.sleep(60)")
    (pid,) = set(pids(pool.said("knows", caplog, 2)))
    directory = service.directory
    assert directory is not None
    assert directory.exists()
    service.stop()
    service.stop()
    assert not Path(f"/proc/{pid}").exists()
    assert not directory.exists()


@needs_setpriv
def test_without_its_devices_it_does_not_start_and_later_keeps_what_it_knew(pool, start, caplog):
    pool.error = DatabaseAway("the database is away")
    start(STAND_IN + "while True: signal.pause()")
    pool.look(3)
    assert "knows" not in caplog.text
    pool.error = None
    pool.said("knows", caplog)
    pool.error = DatabaseAway("the database is away")
    pool.look(3)
    pool.error = ValueError("something else")
    pool.look(3)
    pool.error = None
    pool.boards = [ONE, TWO]
    assert len(set(pids(pool.said("knows", caplog, 2)))) == 1
    # Said when it begins, not every time.
    assert len(pool.said("can't see its devices: the database is away", caplog)) == 2
    assert len(pool.said("can't see its devices: ValueError", caplog)) == 1


def lapse(lease: Lease, clock: Hasty) -> None:
    """The server is out of touch for too long, and the lease is over."""
    lease._end = clock.monotonic()


def renew(lease: Lease, clock: Hasty) -> None:
    """The server is in touch again."""
    if lease.left() <= 0:
        lease.new_term()
    lease.renew(clock.monotonic())


@needs_setpriv
def test_it_runs_within_the_lease_alone_and_then_asks_anew_which_boards_there_are(pool, start, caplog):
    lease = Lease(pool.clock, 1000)
    start(STAND_IN + "while True: signal.pause()", lease)
    time.sleep(0.2)
    assert "knows" not in caplog.text
    renew(lease, pool.clock)
    pool.said("knows", caplog)
    lapse(lease, pool.clock)
    pool.said("network boot ends until this server is in touch again", caplog)
    pool.error = DatabaseAway("the database is away")
    renew(lease, pool.clock)
    pool.look(3)
    assert len(pool.said("knows", caplog)) == 1  # not with the boards that it had
    pool.boards = [TWO]
    pool.error = None
    second = pool.said("knows", caplog, 2)[1]
    assert "10.99.0.11" not in second
    assert "again in" not in caplog.text


@needs_setpriv
def test_a_lease_that_ended_and_was_renewed_unseen_counts_as_over(pool, start, caplog):
    lease = Lease(pool.clock, 1000)
    renew(lease, pool.clock)
    start(STAND_IN + "while True: signal.pause()", lease)
    first = pool.said("knows", caplog)
    lapse(lease, pool.clock)
    renew(lease, pool.clock)
    second = pool.said("knows", caplog, 2)
    assert pids(first) != pids(second)[1:]
    assert len(pool.said("network boot ends until this server is in touch again", caplog)) == 1


@needs_setpriv
def test_what_is_watched_over_may_run_for_as_long_as_the_lease(pool, start, caplog):
    told: list[float] = []
    ended: list[int] = []

    @contextmanager
    def leash(process: subprocess.Popen[bytes]) -> Iterator[Callable[[float], None]]:
        yield told.append
        assert process.poll() is not None, "it is watched over until it has ended"
        ended.append(process.pid)

    lease = Lease(pool.clock, 1000, leash=leash)
    renew(lease, pool.clock)
    service = start(STAND_IN + "while True: signal.pause()", lease)
    (line,) = pool.said("knows", caplog)
    pool.look(3)
    service.stop()
    assert len(told) > 2
    assert all(490 < seconds <= 500 for seconds in told)
    assert ended == [int(pids([line])[0])]


@needs_setpriv
def test_one_that_was_killed_when_the_lease_ended_is_no_failure(pool, start, caplog):
    lease = Lease(pool.clock, 1000)
    renew(lease, pool.clock)
    start(STAND_IN + "while True: signal.pause()", lease)
    (pid,) = pids(pool.said("knows", caplog))
    lapse(lease, pool.clock)
    os.kill(int(pid), signal.SIGKILL)
    pool.said("network boot ends until this server is in touch again", caplog)
    renew(lease, pool.clock)
    pool.said("knows", caplog, 2)
    assert "again in" not in caplog.text


@needs_setpriv
def test_boards_that_are_left_out_are_named_once(pool, start, caplog):
    pool.boards = [ONE, Board("astray", "aabbccddee09", "192.0.2.1")]
    start(STAND_IN + "while True: signal.pause()")
    pool.said("knows", caplog)
    pool.look(5)
    assert len(pool.said("leaves out astray", caplog)) == 1


@needs_setpriv
def test_long_and_strange_lines_do_not_stop_it(pool, start, caplog):
    lines = b"\xff" * 5000 + b"\n\n\0dnsmasq: warning: x\ndnsmasq: warning: y\n"
    start(f"import os, signal; os.write(2, {lines!r}); signal.pause()")
    pool.said("dnsmasq: warning: y", caplog)
    assert max(len(record.getMessage()) for record in caplog.records) < 1100


def test_settings_and_programs_are_looked_at_before_it_starts(pool, monkeypatch):
    with pytest.raises(ConfigError, match="network"):
        NetbootService(pool.settings("", network=None), pool, Clock())
    service = NetbootService(pool.settings("", dnsmasq="/nowhere/dnsmasq"), pool, Clock())
    with pytest.raises(
        MozpoolError, match=r"the program /nowhere/dnsmasq is not installed \(Debian package dnsmasq-base\)"
    ):
        service.start()
    service.stop()
    assert objections(pool.settings("", dnsmasq="/nowhere/dnsmasq")) == (
        "cannot run /nowhere/dnsmasq: No such file or directory"
    )
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(pool.directory / "nowhere"))
    with pytest.raises(MozpoolError, match=r"dnsmasq's files can't be written: .*nowhere.*: No such file"):
        NetbootService(pool.settings("", dnsmasq=sys.executable), pool, Clock()).start()


# --- The command ---


@pytest.fixture
def config(tmp_path: Path, sqlite_url: str) -> Callable[..., str]:
    """A configuration file of a server that owns two devices; ``more`` are lines of [netboot]."""
    from tests.app_fixtures import OWN, server

    (tmp_path / "site").mkdir()
    with server(sqlite_url, tmp_path / "site", count=2) as made:
        made.change("device1", address="10.99.0.11")
        made.change("device2", address="192.0.2.1")
    root = tmp_path / "root"
    root.mkdir()

    def write(*more: str, fqdn: str = OWN, group: str = "") -> str:
        file = tmp_path / "config.ini"
        lines = [
            f"[database]\nengine = {sqlite_url}\n[server]\nfqdn = {fqdn}\nipaddress = 10.99.0.1\ngroup = {group}",
            f"[paths]\ntftp_root = {root}\n[netboot]",
            *more,
        ]
        file.write_text("\n".join(lines) + "\n")
        return str(file)

    return write


def run(*arguments: str):
    return CliRunner().invoke(main, arguments, prog_name="mozpool-netboot")


NETWORK = "network = 10.99.0.0/24"


def test_config_prints_what_dnsmasq_is_told(config):
    result = run("--config", config(NETWORK), "config")
    assert result.exit_code == 0
    assert "\ndhcp-range=10.99.0.0,static,255.255.255.0,3600\n" in result.stdout
    assert ",10.99.0.11,device1\n" in result.stdout
    assert "device2" not in result.stdout
    assert result.stderr.startswith("network boot leaves out device2: its address 192.0.2.1 is not one of the network")


def test_what_is_wrong_with_the_settings_ends_every_command_with_status_1(config):
    file = config()
    for command in ("config", "check", "prepare", "run"):
        result = run("--config", file, command)
        assert result.exit_code == 1
        assert f"Error: {file}: [netboot] network: is not set; mode dhcp needs" in result.stderr


def test_a_member_of_a_group_leaves_it_to_its_daemon(config):
    result = run("--config", config(NETWORK, group="lab"), "run")
    assert result.exit_code == 1
    assert "this server is in the group lab" in result.stderr
    assert "[netboot] run_dnsmasq = true" in result.stderr
    wrong = "[netboot] run_dnsmasq is false"
    assert wrong in run("--config", config(NETWORK, group="lab"), "check").stdout
    assert wrong not in run("--config", config(NETWORK, "run_dnsmasq = true", group="lab"), "check").stdout
    assert wrong not in run("--config", config(NETWORK), "check").stdout
    assert run("--config", config(NETWORK, "dnsmasq = /nowhere", "mode = tftp", group="lab"), "run").stderr.count(
        "/nowhere is not installed"
    )


def test_a_wrong_command_line_ends_with_status_2(tmp_path):
    assert run("nosuch").exit_code == 2
    assert run("--config", str(tmp_path / "nowhere"), "config").exit_code == 2


def test_check_names_everything_that_is_missing(config, tmp_path):
    file = config(NETWORK, "dnsmasq = /nowhere/dnsmasq", "interfaces = nosuch0", "boot_loader = ipxe")
    result = run("--config", file, "check")
    assert result.exit_code == 1
    assert "the program /nowhere/dnsmasq is not installed (Debian package dnsmasq-base)\n" in result.stdout
    assert f"{tmp_path}/root/undionly.kpxe is missing (Debian package ipxe)\n" in result.stdout
    assert f"{tmp_path}/root/pxelinux.cfg/default is missing" in result.stdout
    assert "there is no network interface nosuch0 ([netboot] interfaces)\n" in result.stdout
    assert "network boot leaves out device2" in result.stdout
    assert not (tmp_path / "root" / "pxelinux.cfg").exists()


@pytest.mark.skipif(shutil.which("dnsmasq") is None, reason="dnsmasq is not installed (Debian package dnsmasq-base)")
@needs_setpriv
@pytest.mark.lab
def test_check_is_content_when_nothing_is_missing(config, tmp_path):
    root = tmp_path / "root"
    (root / "pxelinux.cfg").mkdir()
    for name in ("lpxelinux.0", "ldlinux.c32", "pxelinux.cfg/default"):
        (root / name).touch()
    assert run("--config", config("mode = tftp"), "check").stdout == "Nothing is missing.\n"
    assert run("--config", config(NETWORK, "mode = proxy"), "check").stdout == "Nothing is missing. 2 devices.\n"


def test_a_server_that_the_database_does_not_know_is_named(config):
    result = run("--config", config(NETWORK, fqdn="nobody.example.com"), "config")
    assert result.exit_code == 1
    assert "knows no imaging server nobody.example.com: start mozpool-server once" in result.stderr


@pytest.mark.skipif(not Path("/usr/lib/ipxe/undionly.kpxe").exists(), reason="Debian package ipxe is not installed")
def test_prepare_fills_the_tree_once(config, tmp_path):
    file = config(NETWORK, "boot_loader = ipxe")
    root = tmp_path / "root"
    result = run("--config", file, "prepare")
    assert (result.exit_code, result.stdout) == (0, f"Written to {root}: undionly.kpxe, default.\n")
    assert os.listdir(root / "pxelinux.cfg") == ["default"]
    assert run("--config", file, "prepare").stdout == f"Written to {root}: nothing, it is complete.\n"
