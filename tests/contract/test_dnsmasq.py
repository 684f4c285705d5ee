# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""``mozpool-netboot`` with the real dnsmasq: boards in a network namespace of their own ask for addresses and files."""

from __future__ import annotations

import ctypes
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from pathlib import Path

import pytest

from mozpool import config
from mozpool.bmm.backends.pxe import PXEBoot
from mozpool.bmm.interfaces import BackendContext, Target
from mozpool.bmm.netboot import dnsmasq, service
from mozpool.bmm.netboot.boards import Board
from mozpool.cli.newdevice import NewDevice, add
from mozpool.clock import Clock, Deadline
from mozpool.config import Netboot, Settings, load
from mozpool.daemon import Daemon
from mozpool.db import images, schema
from mozpool.db.engine import Database

needs_dnsmasq = pytest.mark.skipif(
    shutil.which("dnsmasq") is None, reason="dnsmasq is not installed (Debian package dnsmasq-base)"
)


def _no_lab() -> str | None:
    """Why there can be no network here; None when there can be one."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for program in ("dnsmasq", "ip", "setpriv"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    for file in ("/usr/lib/PXELINUX/lpxelinux.0", "/usr/lib/ipxe/undionly.kpxe"):
        if not Path(file).exists():
            return f"{file} is missing (Debian packages pxelinux, syslinux-common, ipxe)"
    name = f"mozpool-try-{os.getpid()}"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        return f"no network namespace can be made here: {tried.stderr.strip()}"
    subprocess.run(["ip", "netns", "delete", name], check=True)
    return None


@pytest.fixture(scope="module")
def needs_network() -> None:
    reason = _no_lab()
    if reason:
        pytest.skip(reason)


PATIENCE = 90.0
"""Seconds after which a test gives up; a machine that is slow may take long."""

INTERFACE = "boards0"
SERVER = "10.99.0.1"
KNOWN = "525400990001"
UNKNOWN = "5254009900ff"

PXE_ROM = {60: b"PXEClient:Arch:00000:UNDI:002001", 93: b"\0\0", 94: b"\1\2\1", 97: b"\0" + bytes(range(16))}
"""What a PXE ROM says of itself (RFC 4578)."""

IPXE = {**PXE_ROM, 175: b"\xb1\x05\x01\x80\x86\x10\x0e\xeb\x03\x01\x00\x00"}
IPXE_BY_CLASS = {**PXE_ROM, 77: b"iPXE"}


# --- dnsmasq's own opinion of what it is told ---


def settings_of(mode: str, boot_loader: str = "lpxelinux", **keys: object) -> Settings:
    settings = Settings()
    values: dict = {"network": IPv4Network("10.99.0.0/24"), "interfaces": INTERFACE, **keys}
    return replace(
        settings,
        server=replace(settings.server, ipaddress=SERVER),
        paths=replace(settings.paths, tftp_root=Path("/srv/tftp")),
        netboot=Netboot(mode=mode, boot_loader=boot_loader, **values),
    )


@needs_dnsmasq
@pytest.mark.lab
@pytest.mark.parametrize("boot_loader", ["lpxelinux", "pxelinux", "ipxe"])
@pytest.mark.parametrize("mode", ["dhcp", "proxy", "tftp"])
def test_dnsmasq_takes_what_it_is_told(mode, boot_loader):
    bare = settings_of(mode, boot_loader)
    full = settings_of(
        mode,
        boot_loader,
        router="10.99.0.254",
        nameserver="10.99.0.253",
        advertise=IPv6Network("fd99::/64"),
        interfaces="eth0 eth1",
    )
    boards = [Board("panda-1", KNOWN, "10.99.0.11"), Board("with_underscore", UNKNOWN, "10.99.0.12")]
    addresses = {board.address: IPv4Address(board.address) for board in boards}
    for settings in (bare, full, replace(full, server=replace(full.server, log_level="DEBUG"))):
        hosts, left_out = dnsmasq.hosts(settings, boards, addresses)
        assert left_out == []
        assert len(hosts) == 2
        assert service.objections(settings, hosts) is None


@needs_dnsmasq
@pytest.mark.lab
def test_what_dnsmasq_does_not_take_is_told_in_its_own_words():
    bad = dnsmasq.Host("no mac", IPv4Address("10.99.0.11"), "!")
    said = service.objections(settings_of("dhcp"), [bad])
    assert said is not None
    assert "dnsmasq: bad" in said


# --- A network with a server and boards ---


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def until(true, what: str):
    """The value of ``true()`` as soon as it is one."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        value = true()
        if value:
            return value
        time.sleep(0.1)
    raise AssertionError(f"not within {PATIENCE:g} s: {what}")


@contextmanager
def inside(namespace: str) -> Iterator[None]:
    """What this thread opens is in another network."""
    libc = ctypes.CDLL(None, use_errno=True)
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    away = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    try:
        assert libc.setns(away, 0x40000000) == 0, os.strerror(ctypes.get_errno())
        yield
    finally:
        assert libc.setns(home, 0x40000000) == 0
        os.close(home)
        os.close(away)


class Answer:
    """A DHCP answer, taken apart."""

    def __init__(self, data: bytes) -> None:
        self.xid = data[4:8]
        self.address = str(IPv4Address(data[16:20]))
        self.next_server = str(IPv4Address(data[20:24]))
        self.mac = data[28:34].hex()
        self.options: dict[int, bytes] = {}
        rest = data[240:]
        while rest and rest[0] != 255:
            if rest[0] == 0:
                rest = rest[1:]
                continue
            self.options[rest[0]] = rest[2 : 2 + rest[1]]
            rest = rest[2 + rest[1] :]
        self.kind = self.options[53][0]
        self.file = (self.options.get(67) or data[108:236]).rstrip(b"\0").decode()


class Lab:
    """``mozpool-netboot run`` in one network namespace, boards in another, and a cable between them."""

    def __init__(self, directory: Path, mode: str, boot_loader: str) -> None:
        self.directory = directory
        self.tftp = directory / "tftp"
        self.tftp.mkdir()
        self.runtime = directory / "runtime"
        self.runtime.mkdir()
        self.file = directory / "config.ini"
        self.file.write_text(
            f"[database]\nengine = sqlite:///{directory}/mozpool.sqlite\n"
            f"[server]\nfqdn = server-1.example.com\nipaddress = {SERVER}\n"
            f"[paths]\ntftp_root = {self.tftp}\n"
            f"[netboot]\nmode = {mode}\nboot_loader = {boot_loader}\nnetwork = 10.99.0.0/24\ninterfaces = {INTERFACE}\n"
        )
        self.settings = load(self.file)
        self.database = Database.of(self.settings.database, clock=Clock(), rng=random.Random(1))
        self.names = [f"{directory.name}-{side}" for side in ("server", "boards")]
        self.log = directory / "log"
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self):
        schema.create(self.database)
        self.database.run(lambda conn: images.ensure_imaging_server(conn, self.settings.server.fqdn))
        self.add("dev1", KNOWN, "10.99.0.11")
        server, boards = self.names
        for name in self.names:
            run("ip", "netns", "add", name)
        run("ip", "-n", server, "link", "add", INTERFACE, "type", "veth", "peer", "name", "eth0", "netns", boards)
        run("ip", "-n", server, "address", "add", f"{SERVER}/24", "dev", INTERFACE)
        run("ip", "-n", boards, "address", "add", "10.99.0.200/24", "dev", "eth0")
        run("ip", "-n", server, "link", "set", INTERFACE, "up")
        run("ip", "-n", boards, "link", "set", "eth0", "up")
        with inside(boards):
            self.dhcp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self.dhcp.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            self.dhcp.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
            self.dhcp.bind(("", 68))
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.dhcp.close()
        if self.process is not None:
            with suppress(ProcessLookupError):
                self.process.kill()
            self.process.wait()
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for name in self.names:
            subprocess.run(["ip", "netns", "delete", name], check=False)
        self.database.dispose()

    def start(self) -> None:
        command = ["ip", "netns", "exec", self.names[0], sys.executable, "-m", "mozpool.cli.netboot"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--config", str(self.file), "run"],
                stdout=log,
                stderr=log,
                env={**os.environ, "RUNTIME_DIRECTORY": str(self.runtime)},
            )

    def processes(self, name: str | None = None) -> list[int]:
        """The processes in the server's network; only those of a program, if it is named."""
        done = subprocess.run(["ip", "netns", "pids", self.names[0]], capture_output=True, text=True, check=False)
        found = []
        for pid in map(int, done.stdout.split()):
            with suppress(OSError):
                if name is None or Path(f"/proc/{pid}/comm").read_text().strip() == name:
                    found.append(pid)
        return found

    def dnsmasq(self) -> int:
        """The process of dnsmasq, as soon as there is one."""
        return until(lambda: self.processes("dnsmasq"), "dnsmasq runs")[0]

    def add(self, name: str, mac: str, address: str) -> None:
        new = NewDevice(name=name, mac=mac, address=address)
        self.database.run(lambda conn: add(conn, new, self.settings, random.Random(name)))

    def send(self, mac: str, kind: int, xid: bytes, options: dict[int, bytes]) -> None:
        header = struct.pack("!4B4sHH16s16s192x4s", 1, 1, 6, 0, xid, 0, 0x8000, b"", bytes.fromhex(mac), b"c\x82Sc")
        told = {53: bytes([kind]), 55: bytes([1, 3, 6, 12, 43, 60, 66, 67, 175]), **options}
        body = b"".join(bytes([code, len(value)]) + value for code, value in told.items())
        self.dhcp.sendto(header + body + b"\xff", ("255.255.255.255", 67))

    def ask(self, mac: str, options: dict[int, bytes] | None = None, *, strangers: tuple[str, ...] = ()) -> Answer:
        """The offer for a board, which asks until it gets one. No ``strangers``, who ask first, get anything."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            for stranger in strangers:
                # By name, too: the name of a known board is no proof.
                self.send(stranger, 1, os.urandom(4), {**(options or {}), 12: b"dev1"})
            xid = os.urandom(4)
            self.send(mac, 1, xid, options or {})
            answer = self.answer(xid, strangers)
            if answer is not None:
                assert answer.kind == 2
                return answer
        raise AssertionError(f"no offer for {mac}: {self.log.read_text()}")

    def answer(self, xid: bytes, strangers: tuple[str, ...] = ()) -> Answer | None:
        """The next answer of this number; None when there is none for a while."""
        self.dhcp.settimeout(0.5)
        while True:
            try:
                answer = Answer(self.dhcp.recv(4096))
            except TimeoutError:
                return None
            assert answer.mac not in strangers
            if answer.xid == xid:
                return answer

    def read(self, name: str) -> bytes:
        """A file by TFTP. Raises FileNotFoundError."""
        with inside(self.names[1]):
            return read_by_tftp(SERVER, name, self.log)


def read_by_tftp(server: str, name: str, log: Path | None = None) -> bytes:
    """A file (RFC 1350). Raises FileNotFoundError."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(1)
        sent, where = b"\0\1" + name.encode() + b"\0octet\0", (server, 69)
        content, block = b"", 1
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            sock.sendto(sent, where)
            try:
                data, peer = sock.recvfrom(2048)
            except (TimeoutError, ConnectionRefusedError):
                continue
            kind, number = struct.unpack("!HH", data[:4])
            if kind == 5:
                raise FileNotFoundError(data[4:])
            if (kind, number) == (3, block & 0xFFFF):
                content += data[4:]
                sent, where, block = b"\0\4" + data[2:4], peer, block + 1
                if len(data) < 516:
                    sock.sendto(sent, where)
                    return content
    raise AssertionError(f"{name} was not read: {log.read_text() if log else ''}")


@contextmanager
def lab(mode: str, boot_loader: str) -> Iterator[Lab]:
    # Not pytest's directory: dnsmasq is another user and must reach it.
    directory = Path(tempfile.mkdtemp(prefix="mozpool-lab-"))
    directory.chmod(0o755)
    try:
        with Lab(directory, mode, boot_loader) as made:
            yield made
    finally:
        shutil.rmtree(directory)


@pytest.fixture(scope="module")
def dhcp_lab(needs_network):
    with lab("dhcp", "lpxelinux") as made:
        yield made


pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.mark.lab
def test_a_known_board_gets_its_address_and_boot_file_and_nobody_else_gets_anything(dhcp_lab):
    offer = dhcp_lab.ask(KNOWN, PXE_ROM, strangers=(UNKNOWN,))
    assert (offer.address, offer.file, offer.next_server) == ("10.99.0.11", "lpxelinux.0", SERVER)
    assert offer.options[1] == bytes([255, 255, 255, 0])
    assert offer.options[12] == b"dev1"
    assert offer.options[175] == bytes.fromhex("b00101ff")
    assert not {3, 6} & offer.options.keys()
    xid = os.urandom(4)
    server, address = IPv4Address(SERVER).packed, IPv4Address(offer.address).packed
    for mac in (UNKNOWN, KNOWN):
        dhcp_lab.send(mac, 3, xid, {**PXE_ROM, 50: address, 54: server})
    ack = until(lambda: dhcp_lab.answer(xid, (UNKNOWN,)), "the request is confirmed")
    assert (ack.kind, ack.address, ack.options[51]) == (5, "10.99.0.11", struct.pack("!I", 3600))


@pytest.mark.lab
def test_dnsmasq_is_neither_root_nor_may_it_do_more_than_it_needs(dhcp_lab):
    pid = dhcp_lab.dnsmasq()
    dhcp_lab.ask(KNOWN)  # it is past its start
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
    )
    assert "0" not in status["Uid"].split()
    needed = 1 << 10 | 1 << 12 | 1 << 13  # CAP_NET_BIND_SERVICE, CAP_NET_ADMIN, CAP_NET_RAW
    assert [int(status[name], 16) for name in ("CapPrm", "CapEff", "CapBnd")] == [needed] * 3


@pytest.mark.lab
def test_boot_loader_and_the_boards_own_file_come_by_tftp(dhcp_lab):
    assert dhcp_lab.read("lpxelinux.0") == Path("/usr/lib/PXELINUX/lpxelinux.0").read_bytes()
    assert b"LOCALBOOT" in dhcp_lab.read("pxelinux.cfg/default")
    clock = Clock()
    boot = PXEBoot(BackendContext(clock, tftp_root=str(dhcp_lab.tftp)))
    device = Target("dev1", "10.99.0.11", KNOWN)
    boot.set_config(device, "DEFAULT live\n", Deadline(clock, 10))
    assert dhcp_lab.read("pxelinux.cfg/01-52-54-00-99-00-01") == b"DEFAULT live\n"
    boot.clear(device, Deadline(clock, 10))
    with pytest.raises(FileNotFoundError):
        dhcp_lab.read("pxelinux.cfg/01-52-54-00-99-00-01")
    with pytest.raises(FileNotFoundError):
        dhcp_lab.read("../config.ini")


@pytest.mark.lab
def test_a_board_that_is_added_later_becomes_known_while_dnsmasq_runs_on(dhcp_lab):
    dhcp_lab.ask(KNOWN, strangers=("525400990002",))
    pid = dhcp_lab.dnsmasq()
    dhcp_lab.add("dev2", "525400990002", "10.99.0.12")
    assert dhcp_lab.ask("525400990002").address == "10.99.0.12"
    assert dhcp_lab.dnsmasq() == pid


@pytest.mark.lab
def test_with_ipxe_plain_roms_load_it_and_ipxe_gets_its_script(needs_network):
    with lab("dhcp", "ipxe") as made:
        assert made.ask(KNOWN, PXE_ROM, strangers=(UNKNOWN,)).file == "undionly.kpxe"
        for who in (IPXE, IPXE_BY_CLASS):
            offer = made.ask(KNOWN, who, strangers=(UNKNOWN,))
            assert offer.file == f"http://{SERVER}:8080/ipxe/${{netX/mac:hexhyp}}"
            assert offer.address == "10.99.0.11"
        assert made.read("undionly.kpxe") == Path("/usr/lib/ipxe/undionly.kpxe").read_bytes()


@pytest.mark.lab
@pytest.mark.parametrize(
    ("boot_loader", "file", "ipxe_file"),
    [
        ("lpxelinux", "lpxelinux.0", "lpxelinux.0"),
        ("ipxe", "undionly.kpxe", f"http://{SERVER}:8080/ipxe/${{netX/mac:hexhyp}}"),
    ],
)
def test_beside_another_dhcp_server_known_boards_are_told_what_to_boot(needs_network, boot_loader, file, ipxe_file):
    with lab("proxy", boot_loader) as made:
        for who, expected in ((PXE_ROM, file), (IPXE, ipxe_file)):
            offer = made.ask(KNOWN, who, strangers=(UNKNOWN,))
            assert (offer.address, offer.file, offer.next_server) == ("0.0.0.0", expected, SERVER)
            assert offer.options[60] == b"PXEClient"
            assert offer.options[43].startswith(b"\x06\x01\x08")  # look for no more servers, load the file
            assert 51 not in offer.options


@pytest.mark.lab
def test_dnsmasq_comes_back_and_ends_with_its_service(needs_network):
    with lab("dhcp", "lpxelinux") as made:
        made.ask(KNOWN)
        first = made.dnsmasq()
        os.kill(first, signal.SIGKILL)
        second = until(lambda: set(made.processes("dnsmasq")) - {first}, "dnsmasq comes back").pop()
        made.ask(KNOWN)
        # An address that moves to another board is free for it at once.
        made.database.run(lambda conn: conn.exec_driver_sql("UPDATE devices SET mac_address = '5254009900aa'"))
        assert made.ask("5254009900aa", strangers=()).address == "10.99.0.11"
        assert made.dnsmasq() != second
        # Stopped.
        assert made.process is not None
        made.process.terminate()
        assert made.process.wait(PATIENCE) == 0
        assert made.processes() == []
        assert list(made.runtime.iterdir()) == []
        # Killed: nothing that could be done by itself is left to it.
        made.start()
        pid = made.dnsmasq()
        made.ask("5254009900aa")
        made.process.kill()
        made.process.wait()
        until(lambda: not Path(f"/proc/{pid}").exists(), "dnsmasq ends with its service")
        assert made.processes() == []


@pytest.mark.lab
def test_the_daemon_runs_dnsmasq_itself_where_it_is_told_to(needs_network, sqlite_url):
    directory = Path(tempfile.mkdtemp(prefix="mozpool-lab-"))
    directory.chmod(0o755)
    address = "127.69.0.1"
    settings = Settings(
        database=config.Database(engine=sqlite_url),
        server=config.Server(fqdn="tftp.example.com", ipaddress=address),
        paths=config.Paths(tftp_root=directory / "tftp"),
        netboot=Netboot(run_dnsmasq=True, mode="tftp"),
    )
    (directory / "tftp").mkdir()
    try:
        daemon = Daemon(settings)
        daemon.start()
        try:
            assert read_by_tftp(address, "lpxelinux.0") == Path("/usr/lib/PXELINUX/lpxelinux.0").read_bytes()
            assert b"LOCALBOOT" in read_by_tftp(address, "pxelinux.cfg/default").upper()
        finally:
            daemon.stop()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind((address, 69))  # nobody has it any more
    finally:
        shutil.rmtree(directory)
