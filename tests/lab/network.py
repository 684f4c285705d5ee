# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The networks that the lab's boards are on: one of its own, as root, or QEMU's user-mode network.

Both answer the same questions: where boards have their addresses, where they find Mozpool, and how a program gets
to where it can talk to them.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, TypeVar

from tests.lab.vm import DIES_WITH_US

AGENT_PORT = 20701
SSH_PORT = 22
_CLONE_NEWNET = 0x40000000

T = TypeVar("T")


class Network(Protocol):
    """Where boards, numbered from 1, and the imaging server meet."""

    server: str
    """The imaging server's address as boards see it."""
    relay_address: str
    """Where the relay board listens, as the daemon sees it."""
    has_dhcp: bool
    """Whether dnsmasq is needed to give boards their addresses."""
    prefix: tuple[str, ...]
    """Put before a command, it runs where boards can be reached."""

    def open(self) -> None:
        """Make the network."""
        ...

    def close(self) -> None:
        """Take it away; programs in it have been ended before."""
        ...

    def enter(self) -> None:
        """Move the calling thread to where boards can be reached."""
        ...

    def address(self, number: int) -> str:
        """Where the daemon reaches a board."""
        ...

    def ssh_port(self, number: int) -> int:
        """The port of a board's SSH server at that address."""
        ...

    def netdev(self, number: int, tftp_root: Path) -> str:
        """How the board hangs on the network, as QEMU takes it."""
        ...


class Namespace:
    """A network namespace, with nothing in it but loopback.

    It has no name: it belongs to a process of ours, and it goes with the last process in it. So nothing is left behind
    even if this process is killed, and any number of labs may run at a time.
    """

    def __init__(self) -> None:
        self._holder: subprocess.Popen[bytes] | None = None
        self.prefix: tuple[str, ...] = ()
        """Put before a command, it runs in here."""

    @property
    def pid(self) -> int:
        """The process that holds it."""
        assert self._holder is not None
        return self._holder.pid

    def open(self) -> None:
        """Make it. Raises subprocess.CalledProcessError, OSError."""
        # It says that the namespace is there, and waits for the end of its input.
        script = "echo ready; exec cat"
        self._holder = subprocess.Popen(
            [*DIES_WITH_US, "unshare", "--net", "sh", "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            process_group=0,  # Ctrl-C is for us alone
        )
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != b"ready\n":
            raise OSError("cannot make a network namespace")
        self.prefix = ("nsenter", f"--net=/proc/{self.pid}/ns/net", "--")
        self.ip("link set lo up")

    def ip(self, *commands: str) -> None:
        """Run ``ip`` with each of these arguments in here. Raises subprocess.CalledProcessError."""
        for command in commands:
            subprocess.run([*self.prefix, "ip", *command.split()], check=True, timeout=30)

    def close(self) -> None:
        """End the process that holds the namespace."""
        holder, self._holder = self._holder, None
        if holder is not None:
            holder.kill()
            holder.wait()
            for stream in (holder.stdin, holder.stdout):
                assert stream is not None
                stream.close()

    def enter(self) -> None:
        """Move the calling thread into the namespace, for good. Raises OSError."""
        with open(f"/proc/{self.pid}/ns/net") as namespace:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(namespace.fileno(), _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "cannot enter the network namespace")


class OwnNetwork(Namespace):
    """A namespace with a bridge and a tap per board. Other namespaces can be machines on the bridge."""

    server = "10.99.0.1"
    relay_address = server
    has_dhcp = True

    def __init__(self, boards: int) -> None:
        super().__init__()
        self._boards = boards

    def open(self) -> None:
        """Make namespace, bridge and taps. Raises subprocess.CalledProcessError, OSError."""
        super().open()
        self.ip(
            "link add br0 type bridge forward_delay 0 stp_state 0",
            f"address add {self.server}/24 dev br0",
            "address add fd99::1/64 dev br0 nodad",
            "link set br0 up",
        )
        for number in range(1, self._boards + 1):
            self.ip(f"tuntap add dev tap{number} mode tap", f"link set tap{number} master br0 up")

    def connect(self, machine: Namespace, number: int) -> str:
        """Give another machine an interface ``eth0`` on the bridge, and answer its address: 10.99.0.2 for number 2."""
        address = f"10.99.0.{number}"
        self.ip(
            f"link add machine{number} type veth peer name eth0 netns {machine.pid}",
            f"link set machine{number} master br0 up",
        )
        machine.ip(
            f"address add {address}/24 dev eth0",
            f"address add fd99::{number}/64 dev eth0 nodad",
            "link set eth0 up",
        )
        return address

    def address(self, number: int) -> str:
        """10.99.0.11 for the first board."""
        return f"10.99.0.{10 + number}"

    def ssh_port(self, number: int) -> int:
        """The usual one: boards have addresses of their own."""
        return SSH_PORT

    def netdev(self, number: int, tftp_root: Path) -> str:
        """A tap on the bridge."""
        return f"tap,ifname=tap{number},script=no,downscript=no"


class UserNetwork:
    """QEMU's own network stack, one for each board, which needs no rights.

    QEMU plays DHCP and TFTP server, with one directory for all boards: their files are told apart by MAC. Every board
    is 10.0.2.15 to itself, and is reached by ports of a loopback address of its own.
    """

    server = "10.0.2.2"
    relay_address = "127.0.0.1"
    has_dhcp = False
    prefix: tuple[str, ...] = ()
    _SSH_PORT = 20022

    def __init__(self, boards: int) -> None:
        self._boards = boards
        self._net = "127.0.1"

    def open(self) -> None:
        """Find loopback addresses that nobody uses: another lab may run. Raises OSError."""
        for third in range(1, 250):
            self._net = f"127.0.{third}"
            try:
                for number in range(1, self._boards + 1):
                    for port in (AGENT_PORT, self._SSH_PORT):
                        with socket.socket() as probe:
                            probe.bind((self.address(number), port))
                return
            except OSError:
                continue
        raise OSError(f"every address 127.0.x.1 to 127.0.x.{self._boards} has its port {AGENT_PORT} in use")

    def close(self) -> None:
        """Nothing is left of it."""

    def enter(self) -> None:
        """Boards are reached from everywhere on this machine."""

    def address(self, number: int) -> str:
        """127.0.1.1 for the first board, unless that is taken."""
        return f"{self._net}.{number}"

    def ssh_port(self, number: int) -> int:
        """A high one, because low ones need rights."""
        return self._SSH_PORT

    def netdev(self, number: int, tftp_root: Path) -> str:
        """A network of the board's own."""
        forwards = (
            f"hostfwd=tcp:{self.address(number)}:{AGENT_PORT}-:{AGENT_PORT}",
            f"hostfwd=tcp:{self.address(number)}:{self._SSH_PORT}-:{SSH_PORT}",
        )
        return ",".join(("user", f"tftp={tftp_root}", "bootfile=/lpxelinux.0", *forwards))


class LabThread:
    """A thread with an event loop, in the boards' network: here the relay board lives, and here boards get power.

    It also passes on connections from a port out here to the daemon, which listens in there.
    """

    def __init__(self, network: Network) -> None:
        self._network = network
        self._thread: threading.Thread | None = None
        self._forwarding: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Start the thread. Raises OSError when it can't enter the network."""
        entered: Future[None] = Future()
        self._thread = threading.Thread(target=self._work, args=(entered,), name="lab", daemon=True)
        self._thread.start()
        entered.result()

    def do(self, work: Callable[[], T], limit: float = 60.0) -> T:
        """Call a function in the thread, within ``limit`` seconds, and return what it returns."""

        async def call() -> T:
            return work()

        return self.run(call(), limit)

    def run(self, work: Coroutine[Any, Any, T], limit: float = 60.0) -> T:
        """Run a coroutine in the thread, within ``limit`` seconds, and return what it returns."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(limit)

    def forward(self, listener: socket.socket, host: str, port: int) -> None:
        """Pass on what connects to ``listener`` to a server in the network."""

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.get_running_loop().create_task(_join(reader, writer, host, port))
            self._forwarding.add(task)  # the loop itself would let it be collected
            task.add_done_callback(self._forwarding.discard)

        self.run(asyncio.start_server(connected, sock=listener))

    def stop(self) -> None:
        """End the thread, with the connections that it has. What it started ends then, too."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._loop.call_soon_threadsafe(self._stopping.set)
            thread.join()

    def _work(self, entered: Future[None]) -> None:
        try:
            self._network.enter()
        except OSError as error:
            entered.set_exception(error)
            return
        asyncio.run(self._run(entered))

    async def _run(self, entered: Future[None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        entered.set_result(None)
        await self._stopping.wait()


async def _join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, port: int) -> None:
    """Connect a client with the server until both have had enough."""
    try:
        there_reader, there_writer = await asyncio.open_connection(host, port)
    except OSError:
        writer.close()
        return
    try:
        await asyncio.gather(_copy(reader, there_writer), _copy(there_reader, writer))
    finally:
        there_writer.close()
        writer.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.write_eof()


def may_have_own_network() -> bool:
    """Whether this process may make network namespaces and taps; in a container, not even root may always."""
    if os.geteuid() != 0 or not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return False
    return subprocess.run(["unshare", "--net", "true"], capture_output=True, timeout=30, check=False).returncode == 0
