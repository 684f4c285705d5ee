# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""A pool of several imaging servers as processes, each on a loopback address of its own, which take over from one
another; their boards, and clients that talk to any of them."""

from __future__ import annotations

import itertools
import signal
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import requests
from sqlalchemy import select

from mozpool.db import ownership, tables
from tests.integration.mozpool_site import (
    LAST_REQUESTS,
    Client,
    Site,
    Tally,
    check_log,
    disturbed,
    eventually,
    start_server,
)

HEARTBEAT = 1.0
AWAY_AFTER = 5.0
TAKEOVER_AFTER = 10.0
"""Seconds of silence after which the others of the group take over."""

SEEN_WITHIN = 1.0
"""Seconds by which the time of a change of owner is known."""


class ServerProcess:
    """One imaging server."""

    def __init__(self, name: str, address: str, port: int, config: Path) -> None:
        self.name = name
        self.address = address
        self.fqdn = f"{address}:{port}"
        self.url = f"http://{self.fqdn}"
        self.config = config
        self.log = config.with_suffix(".log")
        self.process: subprocess.Popen[bytes] | None = None
        self.frozen = False

    def start(self) -> None:
        """Start it and wait until it answers."""
        self.process = start_server(self.config, self.log, self.url)

    def kill(self) -> None:
        """End it as a crash would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def freeze(self) -> None:
        """It does nothing any more, and its connections stay."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        self.frozen = True

    def go_on(self) -> None:
        """It goes on as if nothing had been."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)
        self.frozen = False

    def stop(self) -> float:
        """Stop it in good order and answer the seconds that it took."""
        assert self.process is not None
        begun = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(30) == 0, self.tail()
        return time.monotonic() - begun

    def tail(self, lines: int = 30) -> str:
        """The end of its log."""
        if not self.log.exists():
            return ""
        return f"{self.name}:\n" + "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


class Pool(Site):
    """Servers of one group on 127.0.0.1, 127.0.0.2, … over one database, each with its share of the relay boards."""

    def __init__(
        self, directory: Path, database_url: str, *, servers: int, boards: int, speed: float, seed: int
    ) -> None:
        super().__init__(directory, database_url, boards=boards, speed=speed, seed=seed)
        shared = self.config.read_text()
        self.servers = []
        for number in range(servers):
            address = f"127.0.0.{number + 1}"
            config = directory / f"server-{number + 1}.ini"
            config.write_text(
                shared.replace(
                    f"fqdn = 127.0.0.1:{self.port}\n",
                    f"fqdn = {address}:{self.port}\nipaddress = {address}\nlisten = {address}\ngroup = all\n"
                    f"heartbeat_interval = {HEARTBEAT:g}\naway_after = {AWAY_AFTER:g}\n"
                    f"takeover_after = {TAKEOVER_AFTER:g}\n",
                ).replace(f"heartbeat_file = {directory / 'heartbeat'}\n", "")
                + f"\n[bmm]\nsource = {address}\n"
            )
            self.servers.append(ServerProcess(f"server-{number + 1}", address, self.port, config))
        self.urls = [server.url for server in self.servers]
        self.owners = Owners(self)

    def start_boards(self) -> None:
        """Switch the boards on, and only then share them out: the simulation knows them as those of one server."""
        super().start_boards()
        table = tables.devices
        with self.database.begin() as conn:
            ids = [self._server_id(conn, server.fqdn) for server in self.servers]
            found = conn.execute(select(table.c.id, table.c.relay_info).order_by(table.c.id)).all()
            places = {board: i for i, board in enumerate(dict.fromkeys(row[1].partition(":bank")[0] for row in found))}
            for device_id, relay_info in found:
                home = ids[places[relay_info.partition(":bank")[0]] % len(ids)]
                conn.execute(table.update().where(table.c.id == device_id).values(imaging_server_id=home))
        self.ids = dict(zip((server.name for server in self.servers), ids, strict=True))

    @staticmethod
    def _server_id(conn: Any, fqdn: str) -> int:
        table = tables.imaging_servers
        found = conn.scalar(select(table.c.id).where(table.c.fqdn == fqdn))
        return int(found or conn.execute(table.insert().values(fqdn=fqdn)).inserted_primary_key[0])

    def start_daemon(self) -> None:
        """Start all servers."""
        for server in self.servers:
            server.start()
        self.owners.start()

    def close(self) -> None:
        """End whatever still runs, by its id."""
        self.owners.stop()
        for server in self.servers:
            if server.process is not None and server.process.poll() is None:
                server.process.kill()
                server.process.wait()
        super().close()

    def story(self) -> str:
        """What to show of a run that failed."""
        return "\n".join([super().story(), *(server.tail() for server in self.servers)])

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __enter__(self) -> Self:
        super().__enter__()
        return self

    def owned_by(self, server: ServerProcess) -> list[ownership.Owned]:
        """The devices and open requests that a server acts on."""
        with self.database.read() as conn:
            return ownership.of_server(conn, self.ids[server.name])

    def guests(self) -> int:
        """How many devices are with another server than their own."""
        return int(
            self.rows("SELECT COUNT(*) FROM devices WHERE owner_id IS NOT NULL OR came_from_id IS NOT NULL")[0][0]
        )


@dataclass(frozen=True)
class Owned:
    """From when to when a server owned a device, as far as that is known."""

    server: str
    since: float
    until: float


class Owners(threading.Thread):
    """Looks who owns which device, some times a second: a record that the servers have no part in."""

    def __init__(self, pool: Pool) -> None:
        super().__init__(name="owners", daemon=True)
        self._pool = pool
        self._over = threading.Event()
        self.times: dict[str, list[Owned]] = {}
        """Device → who owned it, in order."""

    def run(self) -> None:
        names = {number: name for name, number in self._pool.ids.items()}
        statement = "SELECT name, COALESCE(owner_id, imaging_server_id) FROM devices"
        while not self._over.wait(0.2):
            begun = time.monotonic()
            try:
                found = self._pool.rows(statement)
            except Exception:
                continue  # a node of the database has gone
            now = time.monotonic()
            for device, owner in found:
                times = self.times.setdefault(device, [])
                if times and times[-1].server == names[owner]:
                    times[-1] = Owned(names[owner], times[-1].since, now)
                else:
                    times.append(Owned(names[owner], times[-1].until if times else begun - 3600.0, now))

    def stop(self) -> None:
        self._over.set()
        if self.is_alive():
            self.join(10)

    def may_have_been(self, device: str, server: str, when: float) -> bool:
        """Whether a server may have owned a device then."""
        return any(
            each.server == server and each.since - SEEN_WITHIN <= when <= each.until + SEEN_WITHIN
            for each in self.times.get(device, ())
        )


class PoolClient(Client):
    """Talks to any server, follows where it is sent with its verb kept, and asks another when there is no answer."""

    longest = 0.0
    """Seconds from the first try of a call to its answer, at most; long polls left out."""

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None, key: str | None = None) -> Any:
        assert isinstance(self.site, Pool)
        headers = {"Idempotency-Key": key} if key else {}
        begun = time.monotonic()
        while True:
            url = f"{self.rng.choice(self.site.urls)}{path}"
            try:
                for _ in range(3):
                    answer = self.http.request(
                        method, url, json=body, headers=headers, timeout=(2, 15), allow_redirects=False
                    )
                    if answer.status_code != 302:
                        break
                    url = answer.headers["Location"]
                if answer.status_code not in (302, 502, 503, 504):
                    if "wait=" not in path:
                        PoolClient.longest = max(PoolClient.longest, time.monotonic() - begun)
                    return answer
            except requests.RequestException:
                pass
            time.sleep(0.1 + self.rng.random() * 0.2)


class Prober(PoolClient):
    """Writes a comment all the time: how long that takes at most is for how long nothing could be written."""

    pause = 0.0
    """Seconds."""

    def run(self) -> None:
        written = 0
        while time.monotonic() < self.end:
            begun = time.monotonic()
            answer = self._call("POST", "/api/device/device1/set-comments/", {"comments": f"{written}"})
            self.pause = max(self.pause, time.monotonic() - begun)
            if answer.status_code != 200:
                self.tally.problems.append(f"a comment was answered {answer.status_code}: {answer.text[:200]}")
            written += 1
            time.sleep(0.05)


def let_loose(pool: Pool, tally: Tally, clients: int, seconds: float, seed: int) -> list[PoolClient]:
    """Start clients that make requests for so many seconds."""
    PoolClient.longest = 0.0
    end = time.monotonic() + seconds
    made = [PoolClient(number, pool, tally, end, seed) for number in range(clients)]
    for client in made:
        client.start()
    return made


def wait_for(clients: list[PoolClient], tally: Tally) -> None:
    """Until the last requests of the clients have ended."""
    for client in clients:
        client.join(max(1.0, client.end - time.monotonic()) + LAST_REQUESTS + 60)
    tally.problems += [f"{client.name} never ended" for client in clients if client.is_alive()]


def check_the_end(pool: Pool, tally: Tally) -> dict[str, Any]:
    """What must hold when all clients have ended. Stops everything, and answers what the boards went through."""
    assert not tally.problems, f"{tally.problems[:10]}\n{pool.story()}"
    assert eventually(lambda: pool.guests() == 0, 120), f"not all is given back: {pool.guests()}\n{pool.story()}"
    pool.check_all_is_over()
    for server in pool.servers:
        assert server.stop() < 10
        check_log(server.log)
    pool.owners.stop()
    report = pool.stop_boards()
    assert not acted_without_owning(pool, report)
    assert not torn_cycles(report)
    assert not disturbed(report, tally.held)
    return report


def acted_without_owning(pool: Pool, report: dict[str, Any]) -> list[str]:
    """What servers did to relays of devices that they did not own, by the relay boards' own record."""
    wires = {relay_info: name for name, relay_info in pool.rows("SELECT name, relay_info FROM devices")}
    names = {server.address: server.name for server in pool.servers}
    problems = []
    for board, records in report["relay_boards"].items():
        for when, peer, bank, relay, action in records:
            if action not in ("on", "off"):
                continue
            device, server = wires[f"{board}:bank{bank}:relay{relay}"], names[urlsplit(f"//{peer}").hostname or ""]
            if not pool.owners.may_have_been(device, server, when):
                problems.append(f"{server} switched {device} {action} at {when:.2f}: {pool.owners.times[device]}")
    return problems


def shared_connections(report: dict[str, Any]) -> int:
    """How many relay boards were used by more than one server."""
    return sum(
        1
        for records in report["relay_boards"].values()
        if len({record[1].rpartition(":")[0] for record in records if record[4] in ("on", "off")}) > 1
    )


def torn_cycles(report: dict[str, Any]) -> list[str]:
    """Power cycles that another server got into the middle of: a relay that is on is a device without power."""
    problems = []
    for board, records in report["relay_boards"].items():
        relays: dict[tuple[int, int], list[Any]] = {}
        for record in records:
            if record[4] in ("on", "off"):
                relays.setdefault((record[2], record[3]), []).append(record)
        for relay, found in relays.items():
            for before, after in itertools.pairwise(found):
                hosts = {record[1].rpartition(":")[0] for record in (before, after)}
                if before[4] == "on" and len(hosts) > 1 and after[0] - before[0] < TAKEOVER_AFTER / 2:
                    problems.append(f"{board} {relay}: {before} and {after}")
    return problems
