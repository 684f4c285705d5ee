# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""A MariaDB server of one's own on a loopback port: made from nothing in about two seconds, thrown away afterwards."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pymysql

READY_WITHIN = 60.0
"""Seconds that the server may take to start or to stop, also on a machine that is busy with other things."""


def missing() -> str | None:
    """Why no server can be started here, or None when one can."""
    for program in ("mariadbd", "mariadb-install-db"):
        if find_program(program) is None:
            return f"{program} is not installed (Debian package mariadb-server)"
    return None


class MariaDB:
    """A server over a data directory of its own. It can be stopped, killed and started again with its data."""

    def __init__(self, directory: Path, *, durable: bool = False, options: Sequence[str] = ()) -> None:
        """Make the data directory below ``directory``, unless it is there; :meth:`start` does the rest.

        ``durable``: every commit reaches the disk before it is answered (crash tests, benchmarks); else faster.
        ``options`` are added to the server's arguments.
        """
        self.directory = directory
        self.durable = durable
        self._process: subprocess.Popen[bytes] | None = None
        self._log = directory / "server.log"
        self.socket = directory / "s.sock"
        """Where it listens besides its port."""
        user = pwd.getpwuid(os.geteuid()).pw_name
        self._common = [
            "--no-defaults",
            f"--user={user}",
            f"--datadir={directory / 'data'}",
            f"--tmpdir={directory}",
            "--innodb-log-file-size=16M",
        ]
        self._options = options
        if not (directory / "data").exists():
            install(directory, self._common, self._log)
        # Without this socket the port would be free until the server listens, and between a stop and a start: for
        # any other socket of this machine. It doesn't listen, so it is in nobody's way.
        self._reservation = socket.socket()
        self._reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._reservation.bind(("127.0.0.1", 0))
        self.port: int = self._reservation.getsockname()[1]

    def start(self) -> None:
        """Start the server and wait until it answers."""
        fast = ["--innodb-flush-log-at-trx-commit=0", "--innodb-flush-method=nosync", "--innodb-doublewrite=0"]
        arguments = [
            str(find_program("mariadbd")),
            *self._common,
            f"--socket={self.socket}",
            f"--pid-file={self.directory / 'pid'}",
            f"--port={self.port}",
            "--bind-address=127.0.0.1",
            "--skip-name-resolve",
            "--innodb-buffer-pool-size=64M",
            "--performance-schema=OFF",
            "--character-set-server=utf8mb4",
            "--skip-log-bin",
            "--max-connections=400",
            "--innodb-fast-shutdown=2" if not self.durable else "--innodb-flush-log-at-trx-commit=1",
            *([] if self.durable else fast),
            *self._options,
        ]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        give_up = time.monotonic() + READY_WITHIN
        while True:
            try:
                self.connect().close()
                return
            except pymysql.err.OperationalError:
                if self._process.poll() is not None or time.monotonic() > give_up:
                    self.kill()
                    said = self._log.read_text(errors="replace")[-2000:]
                    raise RuntimeError(f"mariadbd did not start:\n{said}") from None
                time.sleep(0.02)

    def stop(self) -> None:
        """Shut the server down in good order; nothing happens when it is not running."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End the server as a power cut would, but for the operating system's caches."""
        self._end(signal.SIGKILL)

    def close(self) -> None:
        """Give the port up; the server has been stopped or killed."""
        self._reservation.close()

    @property
    def pid(self) -> int:
        """The running server's process id."""
        assert self._process is not None
        return self._process.pid

    def url(self, name: str) -> str:
        """The SQLAlchemy URL of a database on this server."""
        return f"mysql+pymysql://root@127.0.0.1:{self.port}/{name}"

    def connect(self, name: str | None = None) -> pymysql.Connection[Any]:
        """A connection of one's own, with autocommit."""
        return pymysql.connect(
            host="127.0.0.1", port=self.port, user="root", database=name, autocommit=True, connect_timeout=5
        )

    def execute(self, statement: str, *values: object, name: str | None = None) -> list[tuple[Any, ...]]:
        """Run one statement on a new connection and return its rows."""
        with closing(self.connect(name)) as connection, connection.cursor() as cursor:
            cursor.execute(statement, values or None)
            return list(cursor.fetchall())

    def client(self, program: str, *arguments: str, script: str | None = None) -> str:
        """Run a client program (``mariadb``, ``mariadb-dump``) against this server; return its output."""
        command = [program, "--no-defaults", "--host=127.0.0.1", f"--port={self.port}", "--user=root", *arguments]
        done = subprocess.run(command, input=script, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def _end(self, number: int) -> None:
        if self._process is not None:
            if self._process.poll() is None:
                self._process.send_signal(number)
            try:
                self._process.wait(READY_WITHIN)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None


@contextmanager
def running(*, durable: bool = False) -> Iterator[MariaDB]:
    """A server that runs inside the block; afterwards neither process nor file is left."""
    # Directly below the temporary directory: the path of a Unix socket is short.
    with tempfile.TemporaryDirectory(prefix="mozpool-db-") as directory:
        server = MariaDB(Path(directory), durable=durable)
        try:
            server.start()
            yield server
        finally:
            server.stop() if durable else server.kill()
            server.close()


def install(directory: Path, common: list[str], log: Path) -> None:
    """Make a fresh data directory.

    ``common``: the arguments that the server will get too. A server that starts removes all temporary tables that it
    finds in its ``--tmpdir``: with one in common, servers that start at the same time take them from each other.
    """
    program = str(find_program("mariadb-install-db"))
    command = [program, *common, "--auth-root-authentication-method=normal", "--skip-test-db", "--skip-name-resolve"]
    with log.open("ab") as output:
        done = subprocess.run(command, stdout=output, stderr=output, cwd=directory, timeout=2 * READY_WITHIN)
    if done.returncode:
        raise RuntimeError(f"mariadb-install-db failed:\n{log.read_text(errors='replace')[-2000:]}")


def find_program(name: str) -> str | None:
    """The path of a program, also of those that only root has on PATH; None when it is not installed."""
    path = os.environ.get("PATH", os.defpath)
    return shutil.which(name, path=os.pathsep.join((path, "/usr/sbin", "/usr/local/sbin")))
