# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""One run of the simulation: the real daemons over a real database, in simulated time, from one seed."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import random
import sqlite3
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, create_engine, delete, insert
from sqlalchemy.pool import NullPool

from mozpool.bmm.interfaces import NO_MAC
from mozpool.clock import Clock
from mozpool.config import BMM, Pool, Settings
from mozpool.config import Database as DatabaseSettings
from mozpool.config import Server as ServerSettings
from mozpool.db import schema, tables
from mozpool.db.devices import insert_device, set_labels
from mozpool.db.engine import Database
from mozpool.db.images import offer_hosted
from mozpool.fakes.board import BoardSpec
from mozpool.lifeguard.devicemachine import device_machine
from mozpool.pool.requestmachine import request_machine
from mozpool.simulate.database import SimulatedDatabase
from mozpool.simulate.faults import Fault, Faults, Scripted
from mozpool.simulate.invariants import Request, Violation, Watcher, triggers
from mozpool.simulate.lab import Lab
from mozpool.simulate.load import Client, Meddler
from mozpool.simulate.scenario import IMAGES, Kind, Phones, Scenario
from mozpool.simulate.scheduler import Event, Lock, Scheduler, SimulatedClock
from mozpool.simulate.servers import Network, Server
from mozpool.statemachine import Machine, Tuning

REMEMBERED_LINES = 400
"""How many lines of the log are kept to show what led to a violation."""

LOOK_EVERY = 5.0
"""Seconds between two looks at what should have happened by now."""

QUIET = 3 * 3600.0
"""Seconds within which everything must have come to rest once nothing goes wrong any more."""

HEARTBEAT = 20.0
"""Seconds between two signs of life of a server: seldom ones cost less time, and nothing else depends on them."""

TAKING_OVER = 60.0
"""Seconds that it may take until what a lost server owned has another owner, once it was silent for long enough."""

HEALING = 300.0
"""Seconds after a server's start or a clock's jump within which nobody is expected to be quick."""

MEMORY = "/dev/shm"  # noqa: S108 (a directory of a name that nobody can guess is made in it)  # nosec B108

MAINTENANCE_IMAGES = ("maintenance", "self-test")

PXE = "APPEND mobile-imaging-url=http://{server}/scripts/{image}-second-stage.sh\n"


@dataclass
class Result:
    """What became of a run."""

    seed: str
    simulated: float
    """Seconds."""
    steps: int
    faults: list[Fault]
    digest: str
    """Of the whole log: equal for equal runs."""
    missed: tuple[Scripted, ...]
    """What the script has and for which there was no opportunity."""
    requests: dict[str, int]
    """Final state → how many requests ended in it."""
    violation: str | None = None
    log: tuple[str, ...] = ()
    """The last lines."""


class World:
    """Everything that is simulated. Use it once."""

    def __init__(
        self,
        scenario: Scenario,
        seed: str,
        *,
        url: str | None = None,
        limit: int | None = None,
        hear: Callable[[str], None] | None = None,
    ) -> None:
        """``url`` names a MariaDB database of the simulation's own, whose rows it deletes; None: SQLite in a temporary
        directory. Only the first ``limit`` faults happen. ``hear`` gets each line of the log.
        """
        self.scenario = scenario
        self.seed = seed
        self.closing = False
        self.scheduler = Scheduler(random.Random(f"{seed}:order"))
        self.faults = Faults(scenario.rates, seed, lambda: self.scheduler.time, script=scenario.script, limit=limit)
        self.faults.on_fault = self._happened
        self.log: deque[str] = deque(maxlen=REMEMBERED_LINES)
        self.server_names = [f"server-{number + 1}" for number in range(scenario.servers)]
        self.server_ids: dict[str, int] = {}
        self._hear = hear
        self._digest = hashlib.sha256()
        self._url = url
        self._rng = random.Random(f"{seed}:world")
        self._changed: dict[int, list[Event]] = {}
        self._databases: dict[str, SimulatedDatabase] = {}
        self._writer = Lock(self.scheduler)
        self.states: dict[str, int] = {}
        self.on_request: list[Callable[[Request, str], None]] = []
        """Told of each request that is in another state, and of the state before ("" for a new one)."""
        self.on_look: list[Callable[[], None]] = []
        """Called every few simulated seconds."""

    # For all

    def say(self, text: str) -> None:
        """A line of the log."""
        line = f"{self.scheduler.time:.3f} {text}"
        self._digest.update(line.encode() + b"\n")
        self.log.append(line)
        if self._hear is not None:
            self._hear(line)

    def _happened(self, fault: Fault) -> None:
        self.say(str(fault))
        if fault.kind == "outage":
            self.disturb()

    def disturb(self) -> None:
        """Something happened after which nobody can be expected to be quick for a while."""
        self.watcher.lenient_until = self.scheduler.time + HEALING

    def server_named(self, server_id: int) -> str:
        """The name of an imaging server."""
        return next(name for name, id_ in self.server_ids.items() if id_ == server_id)

    def wait_for_device(self, request_id: int, seconds: float) -> None:
        """Wait until a request is ready or has ended, at most so many seconds."""
        known = self.watcher.requests.get(request_id)
        if known is None or known.state == "ready":
            return
        event = Event(self.scheduler)
        self._changed.setdefault(request_id, []).append(event)
        event.wait(seconds)

    # A run

    def run(self) -> Result:
        """Run it to its end, or to the first violation."""
        violation: str | None = None
        with self._scene(), _listening(self._unexpected):
            try:
                self.scheduler.run_until(self.scenario.hours * 3600.0)
                self._come_to_rest()
            except (Violation, AssertionError) as error:
                violation = f"{self.scheduler.time:.3f} s: {error}"
            except Exception as error:
                violation = f"{self.scheduler.time:.3f} s: {type(error).__name__}: {error}"
                logging.getLogger(__name__).debug("the simulation broke", exc_info=True)
            finally:
                self.scheduler.halted = None
                self.faults.end()
                self.scheduler.stop()
        return Result(
            seed=self.seed,
            simulated=self.scheduler.time,
            steps=self.scheduler.steps,
            faults=self.faults.happened,
            missed=self.faults.script_left,
            digest=self._digest.hexdigest(),
            requests=self.states,
            violation=violation,
            log=tuple(self.log),
        )

    @contextmanager
    def _scene(self) -> Iterator[None]:
        with tempfile.TemporaryDirectory(prefix="mozpool-simulation-", dir=_quick_directory()) as directory:
            url = self._url
            if url is not None:
                prepare(url)
            else:
                file = Path(directory) / "pool.sqlite"
                file.write_bytes(template())
                url = f"sqlite:///{file}"
            self.database = self._make_database(
                SimulatedClock(self.scheduler, "inventory"), self._rng, "inventory", url
            )
            specs = _fill(url, self.scenario, self._rng, self.server_names)
            self.names = [spec.name for spec in specs]
            self.phones = [name for kind in self.scenario.phones for name in _names(kind)]
            kinds = {kind.name: kind for kind in self.scenario.kinds}
            self.lab = Lab(
                specs,
                scheduler=self.scheduler,
                faults=self.faults,
                seed=self.seed,
                behaviours={spec.name: kinds[str(spec.hardware_type)].behaviour for spec in specs},
                phones=self.phones,
            )
            self.network = Network(self.scheduler, self.faults, random.Random(f"{self.seed}:network"))
            self.lab.get = self.network.get
            tuning = Tuning(self.scenario.timeouts, self.scenario.tries, 1.0)
            with _looking(url) as query:
                self.server_ids = {
                    str(row[1]): int(row[0]) for row in query("SELECT id, fqdn FROM imaging_servers", ())
                }
                self.watcher = Watcher(
                    query,
                    self.lab,
                    now=lambda: self.scheduler.time,
                    device_limits=_limits(device_machine(tuning)),
                    request_limits=_limits(request_machine(tuning)),
                    say=self.say,
                )
                self.watcher.on_request = self._request_changed
                self.watcher.is_in_touch = self._is_in_touch
                self.network.on_told = self._told
                self.lab.on_power = self._board_restarts
                self.lab.cloud.on_start = self._job_starts
                self.watcher.lenient_until = HEALING
                self.servers = {name: self._server(name, url) for name in self.server_names}
                self.network.servers = self.servers
                self._start()
                try:
                    yield
                finally:
                    for database in [*self._databases.values(), self.database]:
                        database.dispose()

    def _server(self, name: str, url: str) -> Server:
        settings = Settings(
            database=DatabaseSettings(engine=url),
            server=self._signs_of_life(name),
            bmm=BMM(power="simulated", boot="simulated", probe="simulated", agent="simulated"),
            pool=Pool(scan_interval=self.scenario.scan_interval),
            timeouts=dict(self.scenario.timeouts),
            tries=dict(self.scenario.tries),
        )

        def make_database(clock: Clock, rng: random.Random, name: str) -> SimulatedDatabase:
            if name in self._databases:
                self._databases[name].dispose()
            self._databases[name] = self._make_database(clock, rng, name, url)
            return self._databases[name]

        server = Server(
            settings,
            seed=self.seed,
            scheduler=self.scheduler,
            faults=self.faults,
            make_database=make_database,
            backends=self.lab.backends(),
            post=self.network.post,
            tell=self.network.tell,
            interleave=self.scenario.interleave,
            writer=self._writer,
        )

        def changed(what: str) -> None:
            self.say(f"{name} {what}")
            self.disturb()

        server.on_change = changed
        return server

    def _signs_of_life(self, name: str) -> ServerSettings:
        takeover_after = self.scenario.takeover_after
        if takeover_after is None:
            return ServerSettings(fqdn=name, ipaddress=name, heartbeat_interval=HEARTBEAT, away_after=3 * HEARTBEAT)
        return ServerSettings(
            fqdn=name,
            ipaddress=name,
            heartbeat_interval=takeover_after / 6,
            away_after=takeover_after / 2,
            group="all",
            takeover_after=takeover_after,
        )

    def _make_database(self, clock: Clock, rng: random.Random, name: str, url: str) -> SimulatedDatabase:
        return SimulatedDatabase(
            url,
            clock=clock,
            rng=rng,
            faults=self.faults,
            writer=self._writer,
            name=name,
            on_commit=lambda: self._committed(clock),
        )

    def _committed(self, clock: Clock) -> None:
        try:
            self.watcher.committed(clock.now())
        except Violation as violation:
            self.scheduler.halt(violation)

    def _board_restarts(self, device: str, what: str) -> None:
        server = self.scheduler.me().group
        try:
            self.watcher.restarts(device, what, self.server_ids[server], server)
        except Violation as violation:
            self.scheduler.halt(violation)

    def _job_starts(self, phone: str, problem: str | None) -> None:
        server = self.scheduler.me().group
        try:
            self.watcher.job_starts(phone, problem, self.server_ids[server], server)
        except Violation as violation:
            self.scheduler.halt(violation)

    def _told(self, request_id: int, state: str, device: str) -> None:
        try:
            self.watcher.told(request_id, state, device)
        except Violation as violation:
            self.scheduler.halt(violation)

    def _request_changed(self, request: Request, before: str) -> None:
        for tell in self.on_request:
            tell(request, before)
        ended = request.id not in self.watcher.requests
        if ended or request.state == "ready":
            for event in self._changed.pop(request.id, ()):
                event.set()
        if ended:
            self.states[request.state] = self.states.get(request.state, 0) + 1

    def _unexpected(self, text: str) -> None:
        """The servers' own code logged an exception that it had not expected."""
        self.scheduler.halt(Violation(f"unexpected: {text}"))

    def _start(self) -> None:
        self.lab.start()
        for server in self.servers.values():
            server.start()
        for number, load in enumerate(self.scenario.loads):
            self.scheduler.spawn(Client(self, load, number).run, f"clients/{load.name}", "clients")
        self.meddler = Meddler(self)
        self.meddler.start()
        self.scheduler.call_later(LOOK_EVERY, self._look)

    def _look(self) -> None:
        try:
            self.watcher.look()
            self.watcher.look_at_jobs()
            self.watcher.look_at_deadlines(self._walls())
            self.watcher.look_at_owners(self._lost(), TAKING_OVER)
        except Violation as violation:
            self.scheduler.halt(violation)
        for tell in self.on_look:
            tell()
        self.scheduler.call_later(LOOK_EVERY, self._look)

    def _lost(self) -> dict[int, str]:
        """Servers that can't own anything any more: they are silent for long, and others are well for as long."""
        takeover_after, now = self.scenario.takeover_after, self.scheduler.time
        if takeover_after is None:
            return {}
        well = {name: since for name in self.servers if (since := self._well_since(name)) <= now}
        limit = takeover_after + TAKING_OVER
        return {
            self.server_ids[name]: name
            for name, server in self.servers.items()
            if (server.daemon is None or server.frozen_until > now)
            and any(max(since, server.silent_since) + limit < now for other, since in well.items() if other != name)
        }

    def _walls(self) -> dict[int, datetime]:
        """The clocks of the servers that are up and have their database, by id."""
        now = self.scheduler.time
        return {
            self.server_ids[name]: server.clock.now()
            for name, server in self.servers.items()
            if self._well_since(name) <= now
        }

    def _well_since(self, name: str) -> float:
        """Since when a server has been up with its database, or when it will be at the earliest."""
        server = self.servers[name]
        if server.daemon is None:
            return math.inf
        return max(server.started_at, server.frozen_until, self._databases[name].away_until)

    def _is_in_touch(self, server_id: int) -> bool:
        """Whether a server is well, and for so long that the others have seen its signs of life."""
        name = self.server_named(server_id)
        seen_within = 2 * self._signs_of_life(name).heartbeat_interval
        return self._well_since(name) + seen_within <= self.scheduler.time

    def _come_to_rest(self) -> None:
        """Nothing goes wrong any more and nobody asks for more: everything must end well."""
        self.say("from here on nothing goes wrong")
        self.faults.end()
        self.closing = True
        for board in self.lab.boards.values():
            board.behaviour = board.behaviour.reliable()
        self.lab.hanging.clear()
        self.lab.cloud.mend()
        self.disturb()
        end = self.scheduler.time + QUIET
        mended, patient = 0.0, True
        while self._restless():
            if self.scheduler.time >= end:
                raise Violation("no rest: " + "; ".join(self._restless()[:10]))
            if self.scheduler.time >= mended:
                mended = self.scheduler.time + 1800.0
                # What a person has left half done, a person mends: a board with half an image does not boot.
                self.scheduler.spawn(self._mend(everything=not patient), "people/mends all", "people")
                patient = False
            self.scheduler.run_until(self.scheduler.time + 60.0)

    def _mend(self, *, everything: bool) -> Callable[[], None]:
        return lambda: self.meddler.mend(all_of_them=everything)

    def _restless(self) -> list[str]:
        return [
            *(
                f"{device.name} is {device.state}"
                for device in self.watcher.devices.values()
                if device.state != "ready"
            ),
            *(f"request {request.id} is {request.state}" for request in self.watcher.requests.values()),
            *self.watcher.untold(),
            *(f"{name} is down" for name, server in self.servers.items() if server.daemon is None),
        ]


def _quick_directory() -> str | None:
    """One in memory, where there is one."""
    return MEMORY if os.access(MEMORY, os.W_OK) else None


def _limits(machine: Machine[Any]) -> dict[str, float | None]:
    return {name: machine.timeout_of(name) for name in machine.states}


@contextmanager
def _listening(tell: Callable[[str], None]) -> Iterator[None]:
    """Hear of exceptions that the servers log, and of nothing else."""

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.exc_info:
                tell(f"{record.getMessage()}: {record.exc_info[1]!r}")

    logger, listener = logging.getLogger("mozpool"), Listener(logging.ERROR)
    before, propagate = logger.level, logger.propagate
    logger.addHandler(listener)
    logger.setLevel(logging.ERROR)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(listener)
        logger.setLevel(before)
        logger.propagate = propagate


@contextmanager
def _looking(url: str) -> Iterator[Callable[[str, Sequence[Any]], list[tuple[Any, ...]]]]:
    """A connection of the watcher's own, bare for speed."""
    engine = create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    connection = engine.raw_connection()
    sqlite = engine.dialect.name == "sqlite"
    cursor = connection.cursor()

    def query(statement: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
        cursor.execute(statement if sqlite else statement.replace("?", "%s"), tuple(parameters))
        return list(cursor.fetchall()) if cursor.description else []

    try:
        yield query
    finally:
        cursor.close()
        connection.close()
        engine.dispose()


@cache
def template() -> bytes:
    """An empty SQLite database of today's schema, with the triggers."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "template.sqlite"
        database = Database(f"sqlite:///{file}", clock=Clock(), rng=random.Random(0))
        schema.create(database)
        database.dispose()
        connection = sqlite3.connect(file)
        for statement in triggers("sqlite"):
            connection.execute(statement)
        connection.commit()
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.close()
        return file.read_bytes()


def prepare(url: str) -> None:
    """Make a database on MariaDB ready for a run: today's schema, the triggers, and no rows."""
    database = Database(url, clock=Clock(), rng=random.Random(0))
    try:
        if schema.current(database) is None:
            schema.create(database)
            with database.maintenance() as connection:
                for statement in triggers(database.dialect):
                    connection.exec_driver_sql(statement)
                # Partitions follow the server's own clock, which is not that of the simulation.
                for table in ("device_logs", "request_logs"):
                    connection.exec_driver_sql(f"ALTER TABLE {table} REMOVE PARTITIONING")
        with database.begin() as connection:
            for table in reversed(tables.metadata.sorted_tables):
                connection.execute(delete(table))
    finally:
        database.dispose()


def _fill(url: str, scenario: Scenario, rng: random.Random, servers: Sequence[str]) -> list[BoardSpec]:
    """Put the pool into the database; answer its boards."""
    database = Database(url, clock=Clock(), rng=rng)
    try:
        return database.run(lambda connection: _rows(connection, scenario, rng, servers))
    finally:
        database.dispose()


def _add(connection: Connection, table: Any, **values: Any) -> int:
    key = connection.execute(insert(table).values(**values)).inserted_primary_key
    assert key is not None
    return int(key[0])


def _names(kind: Kind | Phones) -> list[str]:
    return [f"{kind.name}-{number + 1:04}" for number in range(kind.count)]


def _rows(connection: Connection, scenario: Scenario, rng: random.Random, servers: Sequence[str]) -> list[BoardSpec]:
    server_ids = [_add(connection, tables.imaging_servers, fqdn=name) for name in servers]
    images, configs = {}, {}
    for name in (*IMAGES, *MAINTENANCE_IMAGES):
        images[name] = _add(
            connection,
            tables.images,
            name=name,
            boot_config_keys=json.dumps(["b2gbase"] if name == "b2g" else []),
            can_reuse=int(name in IMAGES),
            hidden=int(name == "self-test"),
            has_sut_agent=int(name in IMAGES),
        )
        text = PXE.format(server="%IPADDRESS%", image=name)
        configs[name] = _add(connection, tables.pxe_configs, name=name, description="", contents=text, active=1)
    specs: list[BoardSpec] = []
    for kind in scenario.kinds:
        hardware = _add(connection, tables.hardware_types, type=kind.name, model="simulated")
        for name in images:
            connection.execute(
                insert(tables.image_pxe_configs).values(
                    image_id=images[name], hardware_type_id=hardware, pxe_config_id=configs[name]
                )
            )
        for number, name in enumerate(_names(kind)):
            place = len(specs)
            relay_board, slot = divmod(number, kind.boards_per_relay)
            # All devices of a relay board belong to the same imaging server.
            server = server_ids[relay_board % len(server_ids)]
            bank, relay = divmod(slot, 8)
            info = f"relay-{kind.name}-{relay_board}:bank{bank + 1}:relay{relay + 1}"
            spec = BoardSpec(
                name=name,
                address=name,
                mac_address=f"{place + 1:012x}",
                relay_info=info,
                hardware_type=kind.name,
            )
            device_id = insert_device(
                connection,
                rng,
                name=name,
                fqdn=name,
                inventory_id=place + 1,
                mac_address=spec.mac_address,
                imaging_server_id=server,
                relay_info=info,
                environment=kind.environment,
                hardware_type_id=hardware,
            )
            set_labels(connection, device_id, kind.labels)
            specs.append(spec)
    _add_phones(connection, scenario, rng, server_ids)
    return specs


def _add_phones(connection: Connection, scenario: Scenario, rng: random.Random, server_ids: Sequence[int]) -> None:
    """Hosted devices, which no inventory has."""
    for kind in scenario.phones:
        backends = json.dumps({"launcher": "cloud"})
        hardware = _add(connection, tables.hardware_types, type=kind.name, model="14", backends=backends)
        offer_hosted(connection, hardware)
        for number, name in enumerate(_names(kind)):
            insert_device(
                connection,
                rng,
                name=name,
                fqdn=name,
                inventory_id=0,
                mac_address=NO_MAC,
                imaging_server_id=server_ids[number % len(server_ids)],
                environment=kind.environment,
                hardware_type_id=hardware,
            )
