# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Daemons under test in processes of their own, over databases of their own, and what they cost."""

from __future__ import annotations

import itertools
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import requests

from mozpool.clock import Clock
from mozpool.db import schema
from mozpool.db.engine import Database
from tests.bench.scale import Scale
from tests.mariadb import MariaDB, running
from tests.processes import end, free_port

PLUGINS = Path(__file__).parent / "plugins"

START_LIMIT = 120.0
"""Seconds that a daemon may take to answer."""


@dataclass(frozen=True)
class Cost:
    """What a process has used so far."""

    own: float
    """Seconds of a processor."""
    children: float
    """Those of its children that have ended."""

    @classmethod
    def of(cls, pid: int) -> Cost:
        """What the process with this id has used."""
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        children = sum(int(field) for field in fields[13:15]) / os.sysconf("SC_CLK_TCK")
        # The kernel's clock of a process (clock_getcpuclockid(3)): nanoseconds, not ticks.
        return cls(time.clock_gettime((~pid << 3) | 2), children)


def memory(pid: int) -> dict[str, float]:
    """Kind of memory (``PSS``, ``RSS``) → megabytes that a process has of it."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    sizes = {line.split(":")[0].upper(): int(line.split()[1]) for line in lines if line.endswith(" kB")}
    return {name: sizes[name] * 1024 / 1e6 for name in ("PSS", "RSS")}


@dataclass(frozen=True)
class Daemon:
    """A daemon that runs."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path
    """What it writes to stderr."""

    @property
    def pid(self) -> int:
        """Its process."""
        return self.process.pid

    def cost(self) -> Cost:
        """What it has used so far."""
        return Cost.of(self.pid)

    def wait(self) -> None:
        """Return when it answers calls."""
        give_up = time.monotonic() + START_LIMIT
        while True:
            try:
                requests.get(f"{self.url}/api/version/", timeout=5)
                return
            except requests.RequestException:
                if self.process.poll() is not None or time.monotonic() > give_up:
                    raise RuntimeError(f"the daemon did not start:\n{self.log.read_text()[-2000:]}") from None
                time.sleep(0.02)


class Pool:
    """A new database for one measurement."""

    def __init__(
        self, kind: str, directory: Path, mariadb: MariaDB | None, name: str, *, url: str | None = None
    ) -> None:
        """``kind`` is ``mariadb`` or ``sqlite``; its files are put into ``directory``. ``url``: it is there already."""
        self.kind = kind
        self.directory = directory
        self.port = free_port()
        self.server = f"127.0.0.1:{self.port}"
        """The imaging server's name."""
        self.mariadb = mariadb
        self.url = url or (f"sqlite:///{directory}/{name}.sqlite" if mariadb is None else mariadb.url(name))

    def beside(self) -> Pool:
        """The same database, for another imaging server."""
        return Pool(self.kind, self.directory, self.mariadb, "", url=self.url)

    @contextmanager
    def database(self) -> Iterator[Database]:
        """Connections to it."""
        database = Database(self.url, clock=Clock(), rng=random.Random(1))
        try:
            yield database
        finally:
            database.dispose()

    def make(self, fill: Callable[[Database, str], object]) -> None:
        """Make the tables, and fill them: ``fill`` is given the database and the imaging server's name."""
        with self.database() as database:
            schema.create(database)
            fill(database, self.server)

    @contextmanager
    def daemon(self, more: str = "") -> Iterator[Daemon]:
        """A daemon over it that answers calls; ``more`` is added to its configuration."""
        config = self.directory / f"{self.port}.ini"
        config.write_text(
            f"[database]\nengine = {self.url}\n[server]\nfqdn = {self.server}\nport = {self.port}\n{more}\n"
        )
        path = os.pathsep.join(filter(None, [str(PLUGINS), os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, "MOZPOOL_CONFIG": str(config), "PYTHONPATH": path}
        log = self.directory / f"{self.port}.log"
        with log.open("ab") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "mozpool.cli.server"], env=environment, stdout=errors, stderr=errors
            )
        try:
            daemon = Daemon(f"http://{self.server}", process, log)
            daemon.wait()
            yield daemon
        finally:
            end(process)


class Pools:
    """Makes pools, over whatever database of the scale."""

    def __init__(self, directory: Path, servers: dict[str, MariaDB | None]) -> None:
        self._directory = directory
        self._servers = servers
        self._serial = itertools.count()

    @property
    def kinds(self) -> list[str]:
        """The databases that there are."""
        return list(self._servers)

    @contextmanager
    def pool(self, kind: str) -> Iterator[Pool]:
        """An empty database, gone at the end of the block."""
        mariadb = self._servers[kind]
        name = f"bench{next(self._serial)}"
        if mariadb is not None:
            mariadb.execute(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
        with TemporaryDirectory(dir=self._directory) as directory:
            try:
                yield Pool(kind, Path(directory), mariadb, name)
            finally:
                if mariadb is not None:
                    mariadb.execute(f"DROP DATABASE {name}")


@contextmanager
def pools(scale: Scale) -> Iterator[Pools]:
    """What makes pools over the databases of a scale; MariaDB's commits are durable."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory(prefix="mozpool-bench-")))
        servers: dict[str, MariaDB | None] = {
            kind: stack.enter_context(running(durable=True)) if kind == "mariadb" else None for kind in scale.databases
        }
        yield Pools(directory, servers)
