# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""A whole site as processes: a database, simulated boards, the daemon, and clients that are not always patient."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import requests
from sqlalchemy import func, select, text

from mozpool.clock import Clock
from mozpool.config import load
from mozpool.db import schema, tables
from mozpool.db.engine import Database
from mozpool.fakes.echo import ECHO_PORT
from tests.processes import end, mozpool_db

READY_WITHIN = 30.0


REFUSED = frozenset({3659, 4045, 4190, 5060, 5061, 6000, 6566, *range(6665, 6670), 6679, 6697, 10080})
"""Ports that no browser connects to (the Fetch standard's "bad ports", from 3000 on)."""


def free_ports(count: int) -> int:
    """The first of ``count`` free ports in a row on 127.0.0.1, from a range that the system hands out to nobody.

    The addresses of a pool's boards repeat every 250 ports (scripts/testdata.py): of these, tests that run beside one
    another have a part each.
    """
    worker = int(re.sub(r"\D", "", os.environ.get("PYTEST_XDIST_WORKER", "")) or 0)
    part = 250 // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    for block in range(112):
        begin = 3000 + (os.getpid() + block) % 112 * 250 + worker * part
        for first in range(begin, begin + part - count, count + 1):
            if all(map(_is_free, range(first, first + count))):
                return first
    raise RuntimeError("no free ports")


def _is_free(port: int) -> bool:
    """Whether nobody has this port, nor the address of the first board that is made for it, and browsers take it."""
    if port in REFUSED:
        return False
    with socket.socket() as probe, socket.socket(type=socket.SOCK_DGRAM) as board:
        try:
            probe.bind(("127.0.0.1", port))
            board.bind((f"127.{2 + port % 250}.0.1", ECHO_PORT))
        except OSError:
            return False
    return True


RELIABLE = "".join(
    f"fake_{what}_failure = 0\n" for what in ("boot", "download", "extract", "reboot", "ping", "selftest")
)
"""Of ``[testing]``: boards that never fail."""


def eventually(what: Callable[[], bool], seconds: float = 20.0) -> bool:
    """Whether something comes true in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if what():
            return True
        time.sleep(0.02)
    return what()


def start_server(config: Path, log: Path, url: str) -> subprocess.Popen[bytes]:
    """A daemon that answers at its URL. What it says goes to the end of ``log``."""
    with log.open("ab") as said:
        command = [sys.executable, "-m", "mozpool.cli.server", "--config", str(config)]
        process = subprocess.Popen(command, stdout=said, stderr=said)
    give_up = time.monotonic() + READY_WITHIN
    while True:
        try:
            requests.get(f"{url}/api/version/", timeout=5)
            return process
        except requests.RequestException:
            if process.poll() is not None or time.monotonic() > give_up:
                process.kill()
                process.wait()
                lines = log.read_text(errors="replace").splitlines()[-40:]
                raise RuntimeError("\n".join(["the server did not start:", *lines])) from None
            time.sleep(0.05)


@contextmanager
def another_server(owner: Site, directory: Path, more: str = "") -> Iterator[tuple[str, Path]]:
    """The URL and the log of a server that has no device, on the same database as ``owner``, which runs already.

    ``more`` stands at the end of its section ``[server]``, and may begin others.
    """
    port = free_ports(1)
    directory.mkdir()
    config, log = directory / "config.ini", directory / "server.log"
    lines = [f"[database]\nengine = {owner.settings.database.engine}", f"[server]\nfqdn = 127.0.0.1:{port}"]
    lines += [f"port = {port}", more, f"[testing]\nspeed = {owner.settings.testing.speed:g}\n"]
    config.write_text("\n".join(lines))
    url = f"http://127.0.0.1:{port}"
    process = start_server(config, log, url)
    try:
        yield url, log
    finally:
        end(process)


class Site:
    """Simulated boards in one process, the daemon in another; the daemon may be killed and started again."""

    def __init__(
        self,
        directory: Path,
        database_url: str,
        *,
        boards: int,
        speed: float,
        seed: int,
        reliable: bool = False,
        fqdn: str | None = None,
        others: int = 0,
    ) -> None:
        """``reliable`` boards never fail. ``fqdn``: where others reach the daemon, when that is not where it listens.

        ``others`` is how many boards other servers of the pool have already. A server may have none of its own.
        """
        self.directory = directory
        self.boards = boards
        self.port = free_ports((others + boards) // 14 + 2)
        self.relay_port = self.port + 1
        self.tftp = directory / "tftp"
        self.tftp.mkdir()
        self.config = directory / "config.ini"
        self.config.write_text(
            f"""[database]
engine = {database_url}
[server]
fqdn = {fqdn or f"127.0.0.1:{self.port}"}
port = {self.port}
heartbeat_file = {directory / "heartbeat"}
[paths]
tftp_root = {self.tftp}
[testing]
speed = {speed:g}
seed = {seed}
{RELIABLE if reliable else ""}"""
        )
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = {**os.environ, "MOZPOOL_CONFIG": str(self.config)}
        self.settings = load(self.config)
        self.database = Database.of(self.settings.database, clock=Clock())
        if schema.current(self.database) is None:
            schema.create(self.database)
        if boards:
            mozpool_db(self.environment, "testdata", "-d", str(boards), "-p", str(self.relay_port))
        self.log = directory / "server.log"
        self.report_file = directory / "report.json"
        self._fakes: subprocess.Popen[str] | None = None
        self.daemon: subprocess.Popen[bytes] | None = None

    def start_boards(self) -> None:
        """Switch the simulated boards on."""
        self._fakes = subprocess.Popen(
            [sys.executable, "-m", "mozpool.fakes", "--config", str(self.config), "--report", str(self.report_file)],
            env=self.environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._fakes.stdout is not None
        assert "are up" in self._fakes.stdout.readline()

    def start_daemon(self) -> None:
        """Start the daemon and wait until it answers."""
        self.daemon = start_server(self.config, self.log, self.url)

    def kill_daemon(self) -> None:
        """End the daemon as a crash would."""
        assert self.daemon is not None
        self.daemon.kill()
        self.daemon.wait()

    def stop_daemon(self) -> float:
        """Stop the daemon in good order and answer the seconds that it took."""
        assert self.daemon is not None
        begun = time.monotonic()
        self.daemon.send_signal(signal.SIGTERM)
        try:
            code = self.daemon.wait(30)
        except subprocess.TimeoutExpired:
            self.daemon.kill()
            self.daemon.wait()
            raise
        assert code == 0, self.tail()
        self.daemon = None
        return time.monotonic() - begun

    def stop_boards(self) -> dict[str, Any]:
        """Switch the boards off and answer what they went through."""
        assert self._fakes is not None
        self._fakes.send_signal(signal.SIGTERM)
        self._fakes.wait(30)
        if self._fakes.stdout is not None:
            self._fakes.stdout.close()
        self._fakes = None
        report: dict[str, Any] = json.loads(self.report_file.read_text())
        return report

    def tail(self, lines: int = 40) -> str:
        """The end of the daemon's log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:]) if self.log.exists() else ""

    def __enter__(self) -> Self:
        if self.boards:
            self.start_boards()
        try:
            self.start_daemon()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End whatever still runs, by its id."""
        for process in (self.daemon, self._fakes):
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()
        if self._fakes is not None and self._fakes.stdout is not None:
            self._fakes.stdout.close()
        self.database.dispose()

    def story(self) -> str:
        """What to show of a run that failed: who still lives, what the database says, the end of the log."""
        processes = {"daemon": self.daemon, "boards": self._fakes}
        counts = "SELECT state, COUNT(*) FROM {} GROUP BY state ORDER BY state"
        said = [
            f"{name}: ended with {each.poll()}" for name, each in processes.items() if each and each.poll() is not None
        ]
        said += [f"{table}: {self.rows(counts.format(table))}" for table in ("devices", "requests", "relay_boards")]
        said += [f"reasons: {self.rows('SELECT reason, COUNT(*) FROM requests GROUP BY reason')}"]
        return "\n".join([*said, self.tail(60)])

    # What the database says

    def rows(self, statement: str, **values: Any) -> list[tuple[Any, ...]]:
        """Rows of a query."""
        with self.database.read() as conn:
            return [tuple(row) for row in conn.execute(text(statement), values)]

    def overlapping_claims(self) -> list[str]:
        """Claims of one device that overlap in time, by the database's own history."""
        history = tables.claim_history.c
        with self.database.read() as conn:
            query = select(history.device_id, history.claimed_at, history.released_at, history.request_id, history.id)
            rows = conn.execute(query.order_by(history.device_id, history.id)).all()
        problems = []
        for before, after in itertools.pairwise(rows):
            if before[0] == after[0] and (before[2] is None or before[2] > after[1]):
                problems.append(f"device {before[0]}: requests {before[3]} and {after[3]}")
        return problems

    def stuck(self, slack: float) -> list[tuple[Any, ...]]:
        """Devices and requests whose deadline passed more than ``slack`` seconds ago without anything happening."""
        now = self.database.clock.now()
        found: list[tuple[Any, ...]] = []
        with self.database.read() as conn:
            for table in (tables.devices, tables.requests):
                rows = conn.execute(select(table.c.id, table.c.state, table.c.state_timeout)).all()
                found += [
                    (table.name, *row) for row in rows if row[2] is not None and (now - row[2]).total_seconds() > slack
                ]
        return found

    def check_all_is_over(self) -> None:
        """Nothing is claimed, open, overdue, or was ever claimed twice."""
        assert not self.overlapping_claims()
        assert eventually(lambda: not self.stuck(slack=3.0)), "past their deadlines without anything happening"
        with self.database.read() as conn:
            assert conn.scalar(select(func.count()).select_from(tables.device_requests)) == 0
            assert conn.scalar(select(func.count()).where(tables.devices.c.claim_id.is_not(None))) == 0
            open_claims = select(func.count()).where(tables.claim_history.c.released_at.is_(None))
            assert conn.scalar(open_claims) == 0
            states = conn.scalars(select(tables.requests.c.state).distinct()).all()
        assert all(state == "closed" or state.startswith("failed_") for state in states), states


def check_log(log: Path) -> None:
    """Nothing unexpected is in a server's log."""
    said = log.read_text(errors="replace")
    assert "Traceback" not in said, said[said.index("Traceback") - 500 :][:3000]
    assert "stuck beyond" not in said


LAST_REQUESTS = 180.0
"""Seconds that requests may still take when no new ones are made: at 20 times real speed a board may hang for 60 s, and
then the next one."""


@dataclass
class Tally:
    """What the clients saw."""

    ends: Counter[str] = field(default_factory=Counter)
    held: list[tuple[str, float, float]] = field(default_factory=list)
    """(device, from, to) on the monotonic clock: while the client was told that the device is its own."""
    problems: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    holders: dict[str, int] = field(default_factory=dict)

    def take(self, device: str, request: int) -> None:
        """A client begins to use a device."""
        with self.lock:
            if device in self.holders:
                self.problems.append(f"{device} is held by requests {self.holders[device]} and {request}")
            self.holders[device] = request

    def give(self, device: str, begun: float) -> None:
        """A client stops using a device, just before it says so."""
        with self.lock:
            self.holders.pop(device, None)
            self.held.append((device, begun, time.monotonic()))


class Client(threading.Thread):
    """Asks for a device, holds it, returns it, again and again; goes on when the server is away."""

    def __init__(self, number: int, site: Site, tally: Tally, end: float, seed: int) -> None:
        super().__init__(name=f"client-{number}")
        self.number = number
        self.site = site
        self.tally = tally
        self.end = end
        self.rng = random.Random(seed * 1000 + number)
        self.http = requests.Session()
        self.last_call = ""
        """Which it was, and what came of it."""

    def run(self) -> None:
        try:
            serial = 0
            while time.monotonic() < self.end:
                serial += 1
                self._once(serial)
        except Exception as error:
            self.tally.problems.append(f"{self.name}: {error!r}")

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None, key: str | None = None) -> Any:
        """Call until there is an answer, as the documented client does; what it repeats is safe to repeat."""
        headers = {"Idempotency-Key": key} if key else {}
        while True:
            try:
                answer = self.http.request(method, f"{self.site.url}{path}", json=body, headers=headers, timeout=30)
                self.last_call = f"{method} {path}: {answer.status_code} {answer.text[:200]}"
                if answer.status_code not in (502, 503, 504):
                    return answer
            except requests.RequestException as error:
                self.last_call = f"{method} {path}: {error!r}"
            time.sleep(0.1 + self.rng.random() * 0.2)

    def _once(self, serial: int) -> None:
        install = self.rng.random() < 0.5
        build = f"http://builds.example.com/{self.number}/{serial}/"
        body = {
            "assignee": f"client{self.number}@example.com",
            "duration": 600,
            "image": "b2g" if install else "android",
            "environment": "any",
            "b2gbase": build,
            "wait": 600,
        }
        key = f"{self.site.port}-{self.number}-{serial}"
        answer = self._call("POST", "/api/device/any/request/", body, key)
        if answer.status_code != 200:
            self.tally.problems.append(f"request answered {answer.status_code}: {answer.text[:200]}")
            return
        request_id = answer.json()["request"]["id"]
        state = "finding_device"
        while state != "ready" and state != "closed" and not state.startswith("failed"):
            state = self._call("GET", f"/api/request/{request_id}/status/?wait=10&state={state}").json()["state"]
            if time.monotonic() > self.end + LAST_REQUESTS:
                self.tally.problems.append(f"request {request_id} is still {state} {LAST_REQUESTS:.0f} s after the end")
                break
        details = self._call("GET", f"/api/request/{request_id}/details/").json()
        if state == "ready":
            device = details["assigned_device"]
            begun = time.monotonic()
            self.tally.take(device, request_id)
            if install:
                found = self._call("GET", f"/api/device/{device}/details/").json()
                device_details = found.get("device", found)
                if build not in str(device_details.get("boot_config")):
                    self.tally.problems.append(
                        f"{device} does not hold what request {request_id} asked for: {device_details}"
                    )
            time.sleep(self.rng.random() * 0.6)
            self.tally.give(device, begun)
        elif not details.get("reason"):
            self.tally.problems.append(f"request {request_id} ended in {state} without a reason")
        with self.tally.lock:
            self.tally.ends[state] += 1
        answer = self._call("POST", f"/api/request/{request_id}/return/", {})
        if answer.status_code != 204:
            self.tally.problems.append(f"return answered {answer.status_code}: {answer.text[:200]}")


def disturbed(report: dict[str, Any], held: list[tuple[str, float, float]], *, slack: float = 0.05) -> list[str]:
    """Boards that lost power, booted or were written while a client held them, by the boards' own record."""
    problems = []
    upsetting = {"power_off", "power_on", "boot_loader", "pxe_boot", "download", "extract", "rebooting"}
    for device, begun, ended in held:
        for when, what, detail in report["boards"][device]["history"]:
            if begun + slack < when < ended - slack and what in upsetting:
                problems.append(f"{device}: {what} {detail} {when - begun:.2f} s after it was handed over")
    return problems
