# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""A rack with several imaging servers, each on a machine of its own in the boards' network, over one MariaDB: they are
a group, and take over from one another. All boards belong to the first one.
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import select

from mozpool.client import Client
from mozpool.config import load
from mozpool.db import images, tables
from tests.lab.network import Namespace, OwnNetwork
from tests.lab.rack import STOP_LIMIT, Builds, Rack, start_program
from tests.lab.vm import DIES_WITH_US
from tests.mariadb import MariaDB
from tests.processes import children, end, runs

TAKEOVER_AFTER = 10.0
"""Seconds of silence after which the other servers of the group take over."""

GROUP = f"""\
group = lab
heartbeat_interval = 1
away_after = 5
takeover_after = {TAKEOVER_AFTER:g}
"""

PORT = 8080

T = TypeVar("T")


class Machine:
    """An imaging server and what it runs on."""

    def __init__(self, name: str, namespace: Namespace, address: str, directory: Path, log: Path) -> None:
        self.name = name
        self.namespace = namespace
        self.address = address
        self.fqdn = f"{address}:{PORT}"
        self.url = f"http://{self.fqdn}"
        self.client = Client(self.url, assignee="lab@example.com")
        self.directory = directory
        self.config = directory / "config.ini"
        self.tftp_root = directory / "tftp"
        self.log = log
        self.id = 0
        """As the database knows it."""
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> subprocess.Popen[bytes]:
        """Start the server; it does not answer yet on return."""
        self.process = start_program(self.namespace.prefix, self.config, self.log, "mozpool.cli.server")
        return self.process

    def stop(self) -> None:
        """End the server in good order; one that is frozen goes on before."""
        if self.process is not None:
            self.signal(signal.SIGCONT)
            end(self.process, STOP_LIMIT)

    def signal(self, number: signal.Signals) -> None:
        """Send the server a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """End the server as a crash would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def dnsmasq(self) -> list[int]:
        """The server's processes that are a dnsmasq: one, or none."""
        assert self.process is not None
        return [pid for pid in children(self.process.pid) if runs(pid) and _name_of(pid) == "dnsmasq"]

    def said(self) -> str:
        """All that the server logged so far, with what its dnsmasq had to say."""
        return self.log.read_text(errors="replace")

    def boot_files(self) -> list[str]:
        """The names of the boards' own boot files."""
        return sorted(path.name for path in (self.tftp_root / "pxelinux.cfg").glob("01-*"))


class GroupRack(Rack):
    """The rack; needs a network of its own."""

    network: OwnNetwork

    def __init__(
        self, boards: int, builds: Builds, logs: Path, mariadb: MariaDB, *, servers: int = 2, proxy: bool = False
    ) -> None:
        """``mariadb`` runs: the rack has a database there while it lasts.

        ``proxy``: boards get their addresses from a DHCP server that knows nothing of booting.
        """
        self._mariadb = mariadb
        self._database_name = "lab"
        # Machines reach it by its socket, which is in no network.
        socket = mariadb.directory / "s.sock"
        url = f"mysql+pymysql://root@localhost/{self._database_name}?unix_socket={socket}"
        super().__init__(boards, builds, logs, database_url=url)
        self._servers = servers
        self._proxy = proxy
        self.machines: list[Machine] = []

    def _start_mozpool(self) -> None:
        self._exit.enter_context(self._own_database())
        self.boards_url = "%URL%"  # of whatever server installs the board
        executor = ThreadPoolExecutor(1, "inside", self.network.enter)
        self._exit.callback(executor.shutdown)
        self._inside = executor
        if self._proxy:
            self._start_dhcp()
        for number in range(1, self._servers + 1):
            self.machines.append(self._machine(number))
        for machine in self.machines:
            if machine is self.machines[0]:
                self._open_database(load(machine.config))
                self._fill_database()
            with self.database.begin() as conn:
                machine.id = images.ensure_imaging_server(conn, machine.fqdn)
            self._exit.callback(machine.stop)
            self.start(machine)
        self.talk_to(self.machines[0])

    def _start_dhcp(self) -> None:
        """Start a DHCP server, on the bridge itself, that gives boards their addresses."""
        hosts = [
            f"--dhcp-host={board.mac},{self.network.address(number)}"
            for number, board in enumerate(self.boards.values(), start=1)
        ]
        with (self.logs / "dhcp.log").open("ab") as log:
            process = subprocess.Popen(
                [
                    *(*DIES_WITH_US, *self.network.prefix, "dnsmasq", "--keep-in-foreground", "--log-facility=-"),
                    *("--conf-file=/dev/null", "--pid-file=", "--user=root", "--port=0", "--leasefile-ro"),
                    *("--bind-interfaces", "--interface=br0", "--except-interface=lo", "--no-ping"),
                    *("--dhcp-range=10.99.0.0,static,255.255.255.0,1h", "--dhcp-authoritative", *hosts),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,
            )
        self._exit.callback(end, process, STOP_LIMIT)

    @contextmanager
    def _own_database(self) -> Iterator[None]:
        self._mariadb.execute(f"CREATE DATABASE {self._database_name} CHARACTER SET utf8mb4")
        try:
            yield
        finally:
            self._mariadb.execute(f"DROP DATABASE {self._database_name}")

    def _machine(self, number: int) -> Machine:
        namespace = Namespace()
        self._exit.callback(namespace.close)
        namespace.open()
        address = self.network.connect(namespace, 1 + number)
        directory = self.directory / f"server{number}"
        (directory / "tftp").mkdir(parents=True)
        machine = Machine(f"server{number}", namespace, address, directory, self.logs / f"server{number}.log")
        self._write_config(
            machine.config,
            fqdn=address,
            ipaddress=address,
            listen=address,
            port=PORT,
            server=GROUP,
            tftp_root=machine.tftp_root,
            mode="proxy" if self._proxy else "dhcp",
            run_dnsmasq="true",
            interface="eth0",
        )
        return machine

    def start(self, machine: Machine) -> None:
        """Start a server and wait until it answers."""
        process = machine.start()
        self.inside(lambda: self._wait_for_server(process, machine.client, machine.name))

    def inside(self, work: Callable[[], T]) -> T:
        """Call a function from within the boards' network, where clients reach all servers."""
        return self._inside.submit(work).result()

    def talk_to(self, machine: Machine) -> None:
        """Let ``client`` be one of this server alone."""
        self.client = machine.client

    def owner(self, table: str, key: int | str) -> tuple[int | None, int | None]:
        """``owner_id`` and ``came_from_id`` of a device (by name) or a request (by id)."""
        columns: Any = tables.devices.c if table == "devices" else tables.requests.c
        match = columns.name == key if table == "devices" else columns.id == key
        with self.database.read() as conn:
            found = conn.execute(select(columns.owner_id, columns.came_from_id).where(match)).one()
        return found[0], found[1]


def eventually(true: Callable[[], object], limit: float, what: str) -> float:
    """Wait until something is true, and answer the seconds that it took."""
    begun = time.monotonic()
    while not true():
        assert time.monotonic() - begun < limit, f"not within {limit:g} s: {what}"
        time.sleep(0.05)
    return time.monotonic() - begun


def _name_of(pid: int) -> str | None:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return None
