# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Ironic's allocations (https://docs.openstack.org/ironic), with its own fake hardware."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.bench.figures import Figure
from tests.bench.load import Result, repeat
from tests.bench.peers.peer import NoPeer, Peer, environment, until_listens
from tests.bench.pools import Cost
from tests.bench.scale import Scale
from tests.bench.wire import Connection
from tests.mariadb import MariaDB, running
from tests.processes import children, end, free_port

REQUIREMENTS = ("ironic>=39,<40", "PyMySQL>=1.1,<2")
NODES = (100, 500)
CLIENTS = (1, 8, 32)
SECONDS = 10.0
POLL = 0.02
"""Seconds from one look at an allocation to the next; `openstack baremetal allocation create --wait` waits longer."""

CLASS = "bench"
HEADERS = "X-OpenStack-Ironic-API-Version: 1.95\r\n"
OPERATION = "allocate, active, delete"

TEXTS = {
    "b": """Ironic in one process (API and conductor), by its REST API, with its fake hardware, over the same kind of
MariaDB with durable commits; each call over a new connection. *Allocate, active, delete*: `POST /v1/allocations` with a
resource class, `GET` of the allocation every 20 ms until it is active, `DELETE`. An active allocation has a node that
was free; no node is powered, deployed or proven to work.""",
}


@contextmanager
def service(programs: Path, mariadb: MariaDB, name: str) -> Iterator[tuple[str, int]]:
    """Ironic over a new database; its URL and process id."""
    port = free_port()
    mariadb.execute(f"CREATE DATABASE {name} CHARACTER SET utf8mb3")
    with TemporaryDirectory(prefix="mozpool-bench-") as directory:
        config, log = Path(directory, "ironic.conf"), Path(directory, "log")
        config.write_text(
            "[DEFAULT]\nauth_strategy = noauth\nrpc_transport = none\nhost = bench\n"
            "enabled_hardware_types = fake-hardware\n"
            + "".join(f"enabled_{kind}_interfaces = fake\n" for kind in ("boot", "deploy", "management", "power"))
            + "".join(f"enabled_{kind}_interfaces = no-{kind}\n" for kind in NOT_THERE)
            + "enabled_network_interfaces = noop\nenabled_storage_interfaces = noop\n"
            f"log_dir = {directory}\nstate_path = {directory}\n"
            f"[api]\nhost_ip = 127.0.0.1\nport = {port}\n"
            "[conductor]\nautomated_clean = false\n"
            f"[database]\nconnection = {mariadb.url(name)}?charset=utf8mb3\n"
            f"[oslo_concurrency]\nlock_path = {directory}\n"
        )
        made = subprocess.run(
            [str(programs / "ironic-dbsync"), "--config-file", str(config), "create_schema"],
            capture_output=True,
            text=True,
        )
        if made.returncode:
            raise NoPeer(f"ironic-dbsync failed: {made.stderr[-1000:]}")
        with log.open("wb") as output:
            process = subprocess.Popen(
                [str(programs / "ironic"), "--config-file", str(config)], stdout=output, stderr=output
            )
        try:
            until_listens(port, process, log)
            yield f"http://127.0.0.1:{port}", process.pid
        finally:
            end(process)
            mariadb.execute(f"DROP DATABASE {name}")


NOT_THERE = ("bios", "console", "firmware", "inspect", "raid", "rescue", "vendor")
"""Kinds of interfaces that nodes here do without."""


class Client:
    """A client of Ironic. Each call has a connection of its own: of those that are kept, its server keeps only some."""

    def __init__(self, url: str, result: Result) -> None:
        self._url = url
        self._result = result

    async def call(self, method: str, path: str, body: Any = None) -> Any:
        """One call, and what is in its answer. Raises NoPeer when it is refused."""
        status, said = await Connection(self._url, HEADERS).once(method, path, body)
        if status >= 300:
            raise NoPeer(f"{method} {path} answered {status}: {said[:300]!r}")
        return json.loads(said) if said else None

    async def enrol(self, numbers: Iterator[int]) -> None:
        """Make nodes as long as there are numbers."""
        for number in numbers:
            node = {"driver": "fake-hardware", "name": f"node{number}", "resource_class": CLASS}
            await self.call("POST", "/v1/nodes", node)

    async def allocate(self) -> None:
        """Allocate any node, and give it back."""
        begun = time.perf_counter()
        allocation = await self.call("POST", "/v1/allocations", {"resource_class": CLASS})
        path = f"/v1/allocations/{allocation['uuid']}"
        while allocation["state"] == "allocating":
            await asyncio.sleep(POLL)
            allocation = await self.call("GET", path)
        if allocation["state"] == "active":
            self._result.add("until active", (time.perf_counter() - begun) * 1000)
        else:
            self._result.errors += 1
        await self.call("DELETE", path)
        if allocation["state"] == "active":
            self._result.add(OPERATION, (time.perf_counter() - begun) * 1000)


async def enrol(url: str, nodes: int) -> None:
    """Make so many nodes."""
    numbers = iter(range(nodes))
    await asyncio.gather(*(Client(url, Result()).enrol(numbers) for _ in range(4)))


async def allocate(url: str, clients: int, seconds: float) -> Result:
    """So many clients for so many seconds."""
    result = Result()
    return await repeat([Client(url, result).allocate for _ in range(clients)], result, seconds)


def spent(pid: int) -> float:
    """Seconds of a processor that a process and its children have used."""
    return sum(Cost.of(each).own for each in (pid, *children(pid)))


def run(scale: Scale, case: str) -> Iterator[Figure]:
    """Each number of nodes and of clients."""
    if "mariadb" not in scale.databases:
        raise NoPeer("it is measured over MariaDB")
    programs = environment("ironic", *REQUIREMENTS)
    sizes, numbers, seconds = ((10,), (1, 4), 2.0) if scale.short else (NODES, CLIENTS, SECONDS)
    with running(durable=True) as mariadb:
        for nodes in sizes:
            name = f"ironic{nodes}"
            with service(programs, mariadb, name) as (url, pid):
                asyncio.run(enrol(url, nodes))
                free = "UPDATE nodes SET provision_state = 'available', target_provision_state = NULL"
                mariadb.execute(f"{free}, power_state = 'power off'", name=name)
                runs = []
                for _ in range(scale.runs):
                    found = {}
                    for clients in numbers:
                        before = spent(pid)
                        result = asyncio.run(allocate(url, clients, seconds))
                        found[clients] = (result, (spent(pid) - before) / result.seconds * 100)
                    runs.append(found)
            for clients in numbers:
                cell = [found[clients] for found in runs]
                parameters: dict[str, str | int] = {"database": "mariadb", "nodes": nodes, "clients": clients}
                rates = tuple(result.rate(OPERATION) for result, _ in cell)
                yield Figure(case, "ironic", f"{OPERATION}: rate", "1/s", rates, parameters)
                for measure in ("until active", OPERATION):
                    for title, share in (("p50", 0.5), ("p99", 0.99)):
                        values = tuple(result.quantile(measure, share) for result, _ in cell)
                        yield Figure(case, "ironic", f"{measure}: {title}", "ms", values, parameters)
                served = tuple(share for _, share in cell)
                yield Figure(case, "ironic", "Ironic", "% of a core", served, parameters)
                failed = tuple(float(result.errors) for result, _ in cell)
                yield Figure(case, "ironic", "allocations that failed", "", failed, parameters)


IRONIC = Peer("Ironic", TEXTS, run)
