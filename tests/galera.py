# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""A MariaDB Galera cluster of one's own: three nodes on loopback ports, made from nothing in a few seconds.

::

    with cluster() as c:
        c.execute("CREATE DATABASE mozpool")
        database = open_database(c.url("mozpool"))
        c.nodes[0].kill()
        ...
        c.nodes[0].start()
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pymysql

from tests import mariadb

PROVIDERS = ("/usr/lib/galera/libgalera_smm.so", "/usr/lib64/galera-4/libgalera_smm.so")
"""Where distributions put Galera's library."""

READY_WITHIN = 90.0
"""Seconds that a node may take to join or to stop, also on a machine that is busy with other things."""

FAST_DETECTION = (
    "evs.suspect_timeout=PT2S;evs.inactive_timeout=PT10S;evs.install_timeout=PT7.5S;evs.inactive_check_period=PT0.2S;"
    "evs.keepalive_period=PT0.3S;gmcast.peer_timeout=PT2S"
)
"""A node that is silent is left out after two seconds instead of five. The time in which all have to agree on that
stays long: a node that starts on a busy machine answers slowly, and with less the whole cluster gives up its quorum."""

ADDRESS = "127.0.0.1"


def missing() -> str | None:
    """Why no cluster can be started here, or None when one can."""
    if (reason := mariadb.missing()) is not None:
        return reason
    if _provider() is None:
        return "Galera is not installed (Debian package galera-4)"
    if mariadb.find_program("rsync") is None:
        return "rsync is not installed (Debian package rsync)"
    return None


class Node:
    """One node: a server over a data directory of its own. It can be ended in several ways, and join again."""

    def __init__(self, cluster: Cluster, number: int) -> None:
        self.cluster = cluster
        self.number = number
        self.directory = cluster.directory / f"node{number}"
        self.directory.mkdir()
        self.log = self.directory / "server.log"
        self._reservations = [_reserve() for _ in range(4)]
        self.port, self.group_port, self.sst_port, self.ist_port = (
            int(reservation.getsockname()[1]) for reservation in self._reservations
        )
        self._process: subprocess.Popen[bytes] | None = None
        self._frozen = False

    # -- what tests do to it

    def start(self, *, new_cluster: bool = False, wait: bool = True) -> None:
        """Start the node, after a kill or a stop from where it was; with ``wait``, until it is in sync and answers.

        ``new_cluster``: where no other node runs; the others join it.
        """
        assert self._process is None, f"node {self.number} is running"
        arguments = self._arguments()
        arguments += self._recovered(arguments)
        if new_cluster:
            arguments.append("--wsrep-new-cluster")
            state = self.directory / "data" / "grastate.dat"
            if state.exists():
                state.write_text(state.read_text().replace("safe_to_bootstrap: 0", "safe_to_bootstrap: 1"))
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        if wait:
            self.wait_until_synced()

    def stop(self) -> None:
        """Shut the node down in good order: it takes its leave of the others."""
        self.thaw()
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End the node as a crash does: the others notice by its silence, its clients at once."""
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        """Let it hang: connections stay open, new ones get no answer, and neither do the other nodes."""
        self._signal(signal.SIGSTOP)
        self._frozen = True

    def thaw(self) -> None:
        """Let it go on after :meth:`freeze`."""
        if self._frozen:
            self._signal(signal.SIGCONT)
            self._frozen = False

    # -- what tests ask it

    @property
    def running(self) -> bool:
        """Whether there is a process, frozen or not."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The running server's process id."""
        assert self._process is not None
        return self._process.pid

    def connect(self, name: str | None = None) -> pymysql.Connection[Any]:
        """A connection of one's own, with autocommit."""
        return pymysql.connect(
            host=ADDRESS,
            port=self.port,
            user="root",
            database=name,
            autocommit=True,
            connect_timeout=5,
            read_timeout=60,
        )

    def execute(self, statement: str, *values: object, name: str | None = None) -> list[tuple[Any, ...]]:
        """Run one statement on a new connection and return its rows."""
        with closing(self.connect(name)) as connection, connection.cursor() as cursor:
            cursor.execute(statement, values or None)
            return list(cursor.fetchall())

    def client(self, program: str, *arguments: str, script: str | None = None) -> str:
        """Run a client program (``mariadb``, ``mariadb-dump``) against this node; return its output."""
        command = [program, "--no-defaults", f"--host={ADDRESS}", f"--port={self.port}", "--user=root", *arguments]
        done = subprocess.run(command, input=script, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def url(self, name: str) -> str:
        """The URL of a database on this node alone."""
        return f"mysql+pymysql://root@{ADDRESS}:{self.port}/{name}"

    def status(self, variable: str) -> str:
        """A status variable, e.g. ``wsrep_cluster_size``; empty when there is none."""
        rows = self.execute("SHOW GLOBAL STATUS WHERE variable_name = %s", variable)
        return str(rows[0][1]) if rows else ""

    def is_synced(self) -> bool:
        """Whether it answers and takes part."""
        try:
            return self.status("wsrep_local_state_comment") == "Synced" and self.status("wsrep_ready") == "ON"
        except pymysql.err.MySQLError:
            return False

    def wait_until_synced(self) -> None:
        """Wait until it takes part; an AssertionError with the end of its log when it does not."""
        give_up = time.monotonic() + READY_WITHIN
        while not self.is_synced():
            assert self.running, f"node {self.number} has ended:\n{self.said()}"
            assert time.monotonic() < give_up, f"node {self.number} does not join:\n{self.said()}"
            time.sleep(0.05)

    def said(self) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-3000:]

    @property
    def common(self) -> list[str]:
        """The arguments for making its data directory and for the server."""
        return [
            "--no-defaults",
            f"--user={self.cluster.user}",
            f"--datadir={self.directory / 'data'}",
            f"--tmpdir={self.directory}",
            "--innodb-log-file-size=16M",
        ]

    # -- inside

    def close(self) -> None:
        """Give its ports up; it has been ended."""
        for reservation in self._reservations:
            reservation.close()

    def _arguments(self) -> list[str]:
        provider = (
            f"base_host={ADDRESS};gmcast.listen_addr=tcp://{ADDRESS}:{self.group_port};"
            f"ist.recv_addr={ADDRESS}:{self.ist_port};gcache.size=16M"
        )
        if self.cluster.fast_detection:
            provider += f";{FAST_DETECTION}"
        durability = ["--innodb-flush-log-at-trx-commit=1"]
        if not self.cluster.durable:
            # With 2 a killed server loses nothing, and the disk is left in peace.
            durability = ["--innodb-flush-log-at-trx-commit=2", "--innodb-flush-method=nosync"]
        return [
            str(mariadb.find_program("mariadbd")),
            *self.common,
            f"--socket={self.directory / 's.sock'}",
            f"--pid-file={self.directory / 'pid'}",
            f"--port={self.port}",
            f"--bind-address={ADDRESS}",
            "--skip-name-resolve",
            "--innodb-buffer-pool-size=64M",
            "--performance-schema=OFF",
            "--character-set-server=utf8mb4",
            "--skip-log-bin",
            "--max-connections=400",
            *durability,
            "--binlog-format=ROW",
            "--default-storage-engine=InnoDB",
            "--innodb-autoinc-lock-mode=2",
            "--wsrep-on=ON",
            f"--wsrep-provider={_provider()}",
            f"--wsrep-cluster-name=mozpool-{self.cluster.id}",
            f"--wsrep-cluster-address=gcomm://{self.cluster.addresses()}",
            f"--wsrep-node-name=node{self.number}",
            f"--wsrep-node-address={ADDRESS}:{self.group_port}",
            f"--wsrep-node-incoming-address={ADDRESS}:{self.port}",
            "--wsrep-sst-method=rsync",
            f"--wsrep-sst-receive-address={ADDRESS}:{self.sst_port}",
            f"--wsrep-provider-options={provider}",
        ]

    def _recovered(self, arguments: list[str]) -> list[str]:
        """What tells a node that was killed up to where its data is complete; one that was stopped knows it."""
        state = self.directory / "data" / "grastate.dat"
        if not state.exists() or "seqno:   -1" not in state.read_text():
            return []
        log = self.directory / "recovery.log"
        with log.open("wb") as output:
            subprocess.run(
                [*arguments, "--wsrep-recover"], check=True, timeout=READY_WITHIN, stdout=output, stderr=output
            )
        found = re.findall(r"Recovered position: (\S+)", log.read_text(errors="replace"))
        assert found, log.read_text(errors="replace")[-2000:]
        return [f"--wsrep-start-position={found[-1]}"]

    def _signal(self, number: int) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def _end(self, number: int) -> None:
        process, self._process, self._frozen = self._process, None, False
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(number)
        try:
            process.wait(READY_WITHIN)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        # Its group is its own: what it started for a state transfer ends with it.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


class Cluster:
    """Three nodes, all of which take reads and writes."""

    def __init__(self, directory: Path, *, size: int = 3, durable: bool = False, fast_detection: bool = True) -> None:
        """Reserve ports and directories below ``directory``; :meth:`start` does the rest.

        ``durable``: a commit is on its node's disk before it is answered. ``fast_detection``: the nodes leave out a
        silent one after two seconds instead of five.
        """
        self.directory = directory
        self.durable = durable
        self.fast_detection = fast_detection
        self.id = uuid.uuid4().hex[:12]
        # A state transfer by rsync refuses to run as root.
        self.user = "mysql" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
        directory.chmod(0o755)
        self.nodes = [Node(self, number) for number in range(size)]

    def start(self) -> None:
        """Make the data, start all nodes and wait until each sees all others."""
        first, *others = self.nodes
        self._install(first)
        # Nodes that begin with a copy of the first one's data need no transfer of it, which takes several seconds.
        first.start(new_cluster=True)
        first.stop()
        for node in others:
            shutil.copytree(first.directory / "data", node.directory / "data")
            self._give_away(node)
        first.start(new_cluster=True)
        for node in others:  # one by one: those that join at once get in each other's way for many seconds
            node.start()
        self.wait_for_size(len(self.nodes))

    def kill(self) -> None:
        """End what still runs."""
        for node in self.nodes:
            node.kill()

    def close(self) -> None:
        """Give all ports up."""
        for node in self.nodes:
            node.close()

    def url(self, name: str) -> str:
        """The URL of a database that names all nodes, the first one first."""
        hosts = ",".join(f"{ADDRESS}:{node.port}" for node in self.nodes)
        return f"mysql+pymysql://root@{hosts}/{name}"

    def execute(self, statement: str, *values: object, name: str | None = None) -> list[tuple[Any, ...]]:
        """Run one statement on the first node that is in sync, and return its rows."""
        node = next((node for node in self.nodes if node.running and not node._frozen and node.is_synced()), None)
        assert node is not None, "no node is in sync"
        return node.execute(statement, *values, name=name)

    def wait_for_size(self, size: int) -> None:
        """Wait until all running nodes agree that there are so many."""
        give_up = time.monotonic() + READY_WITHIN
        while True:
            nodes = [node for node in self.nodes if node.running and not node._frozen]
            if all(node.is_synced() and node.status("wsrep_cluster_size") == str(size) for node in nodes):
                return
            assert time.monotonic() < give_up, f"the cluster does not come to {size} nodes:\n{nodes[0].said()}"
            time.sleep(0.05)

    def addresses(self) -> str:
        """Where the nodes reach one another, as Galera wants it."""
        return ",".join(f"{ADDRESS}:{node.group_port}" for node in self.nodes)

    def _install(self, node: Node) -> None:
        """A fresh data directory."""
        self._give_away(node)
        mariadb.install(node.directory, node.common, node.log)
        self._give_away(node)

    def _give_away(self, node: Node) -> None:
        """Root's files to the user who runs the servers."""
        if os.geteuid() == 0:
            for path in (node.directory, *node.directory.rglob("*")):
                shutil.chown(path, self.user)


@contextmanager
def cluster(*, size: int = 3, durable: bool = False, fast_detection: bool = True) -> Iterator[Cluster]:
    """A cluster that runs inside the block; afterwards neither process nor file is left."""
    with tempfile.TemporaryDirectory(prefix="mozpool-galera-") as directory:
        made = Cluster(Path(directory), size=size, durable=durable, fast_detection=fast_detection)
        try:
            made.start()
            yield made
        finally:
            made.kill()
            made.close()


def _reserve() -> socket.socket:
    """A port that nobody else gets; as this socket does not listen, it is in nobody's way."""
    reservation = socket.socket()
    reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reservation.bind((ADDRESS, 0))
    return reservation


def _provider() -> str | None:
    return next((path for path in PROVIDERS if Path(path).exists()), None)
