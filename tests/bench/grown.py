# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""A pool with a long past: a million requests that ended, and what they left behind.

Loading it takes minutes, so it is kept in ``${XDG_CACHE_HOME:-~/.cache}/mozpool-bench`` for some days: what is in it is
dated, and the daemon clears away what is too old.
"""

from __future__ import annotations

import json
import os
import random
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any

from sqlalchemy import delete, func, select, update

from mozpool.clock import Clock
from mozpool.db import schema, tables
from mozpool.db.engine import Database
from mozpool.db.requests import END_STATES
from tests.mariadb import MariaDB

NAME = "grown"
"""The database's name."""

KEPT = timedelta(days=2)
"""How old it may be: requests are let go a week after they expire, and the oldest expired four days before."""

CHUNK = 500_000
"""Rows of a file that MariaDB loads."""

DEVICES = 100

OPTIONS = ("--innodb-buffer-pool-size=1G", "--innodb-log-file-size=512M")
"""Of the MariaDB server that has it."""


@dataclass(frozen=True)
class Past:
    """How much there is of it."""

    requests: int
    """That ended."""
    lines: int
    """Of logs: seven tenths of devices, the others of requests."""


Row = tuple[Any, ...]


@dataclass(frozen=True)
class Load:
    """What is loaded into a table."""

    table: str
    columns: Sequence[str]
    rows: Callable[[], Iterable[Row]]


def cache() -> Path:
    """The directory for what is kept."""
    found = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mozpool-bench"
    found.mkdir(parents=True, exist_ok=True)
    return found


def _text(moment: datetime) -> str:
    return moment.isoformat(" ", "microseconds")


def _spread(count: int, days: float, now: datetime) -> Iterator[str]:
    """So many moments in order, evenly over the last days."""
    step = timedelta(days=days) / max(1, count)
    moment = now - timedelta(days=days)
    for _ in range(count):
        moment += step
        yield _text(moment)


def loads(past: Past, now: datetime, server_id: int) -> list[Load]:
    """All tables; ``now`` is naive UTC."""
    changes = (
        ("new", "finding_device", "new"),
        ("finding_device", "contacting_lifeguard", "device_found"),
        ("contacting_lifeguard", "pending", "lifeguard_contacted"),
        ("pending", "ready", "lifeguard_finished"),
        ("ready", "closed", "return"),
    )
    count = past.requests

    def requests() -> Iterator[Row]:
        rng = random.Random(4)
        for number, expires in enumerate(_spread(count, 4, now), start=1):
            who = f"person{rng.randrange(500)}@example.com"
            key = number * 1000
            row = (
                number,
                server_id,
                "any",
                who,
                expires,
                expires,
                1,
                "{}",
                "closed",
                "{}",
                expires,
                7,
                5,
                key,
                "0" * 40,
            )
            yield (*row, "returned")

    def claims() -> Iterator[Row]:
        for number, moment in enumerate(_spread(count, 4, now), start=1):
            device = 1 + number * 7919 % DEVICES
            names = (f"device{device}", "none", "bench", "one")
            yield (number, number, device, moment, moment, "complete", "returned", moment, *names)

    def past_requests() -> Iterator[Row]:
        for number, moment in enumerate(_spread(count, 4, now), start=1):
            who = f"person{number % 500}@example.com"
            yield (number, who, "none", "bench", "one", "android", moment, moment, moment, "closed", "returned")

    def history() -> Iterator[Row]:
        for number, moment in enumerate(_spread(count, 4, now), start=1):
            for version, (source, target, event) in enumerate(changes, start=1):
                yield (number, moment, source, target, event, version, number, f"{number:032x}")

    def lines(share: float, keys: int) -> Iterator[Row]:
        number = int(past.lines * share)
        for index, moment in enumerate(_spread(number, 10, now)):
            words = f"line {index} that tells at length what was done, and what came of it in the end"
            yield (1 + index * 7919 % keys, moment[:19], "statemachine", words)

    requests_columns = (
        *("id", "imaging_server_id", "requested_device", "assignee", "created", "expires", "image_id", "boot_config"),
        *("state", "state_counters", "state_since", "version", "attempt", "queue_key", "criteria", "reason"),
    )
    claims_columns = (
        *("id", "request_id", "device_id", "claimed_at", "released_at", "imaging_result", "reason", "ready_at"),
        *("device", "environment", "hardware_type", "hardware_model"),
    )
    past_columns = (
        *("request_id", "assignee", "environment", "hardware_type", "hardware_model", "image", "created", "ready_at"),
        *("ended", "state", "reason"),
    )
    history_columns = ("request_id", "ts", "from_state", "to_state", "event", "version", "claim_id", "token")
    return [
        Load("requests", requests_columns, requests),
        Load("claim_history", claims_columns, claims),
        Load("past_requests", past_columns, past_requests),
        Load("request_history", history_columns, history),
        Load("device_logs", ("device_id", "ts", "source", "message"), lambda: lines(0.7, DEVICES)),
        Load("request_logs", ("request_id", "ts", "source", "message"), lambda: lines(0.3, count)),
    ]


def load_mariadb(server: MariaDB, what: Load, directory: Path) -> None:
    """Load a table, a file at a time, which the server reads by itself."""
    rows, file = iter(what.rows()), directory / "chunk.tsv"
    columns = ", ".join(what.columns)
    statement = f"LOAD DATA INFILE %s INTO TABLE {what.table} CHARACTER SET utf8mb4 ({columns})"
    with closing(server.connect(NAME)) as connection, connection.cursor() as cursor:
        cursor.execute("SET time_zone = '+00:00', unique_checks = 0, foreign_key_checks = 0")
        while chunk := list(islice(rows, CHUNK)):
            file.write_text("".join("\t".join(map(str, row)) + "\n" for row in chunk))
            cursor.execute(statement, (str(file),))
    file.unlink(missing_ok=True)


def load_sqlite(path: Path, what: Load) -> None:
    """Load a table."""
    marks = ", ".join("?" for _ in what.columns)
    statement = f"INSERT INTO {what.table} ({', '.join(what.columns)}) VALUES ({marks})"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        rows = iter(what.rows())
        while chunk := list(islice(rows, CHUNK)):
            with connection:
                connection.executemany(statement, chunk)


class Grown:
    """The kept pool of one kind of database."""

    def __init__(self, kind: str, past: Past, url: str, directory: Path, server: MariaDB | None) -> None:
        """``directory`` is where it is kept."""
        self.url = url
        self.seconds = 0.0
        """How long it took to load it, when that was done."""
        self._past = past
        self._kind = kind
        self._directory = directory
        self._server = server
        self._note = directory / "loaded.json"

    @contextmanager
    def database(self) -> Iterator[Database]:
        """Connections to it."""
        database = Database(self.url, clock=Clock(), rng=random.Random(1))
        try:
            yield database
        finally:
            database.dispose()

    def ensure(self, fill: Callable[[Database], int]) -> bool:
        """Load it unless it is there; whether it was loaded. ``fill`` adds devices and answers their server's id."""
        now = datetime.now(UTC).replace(tzinfo=None)
        wanted = {"revision": schema.head(), **asdict(self._past)}
        if self._note.exists():
            note = json.loads(self._note.read_text())
            age = now - datetime.fromisoformat(note["loaded"])
            if {key: note[key] for key in wanted} == wanted and age < KEPT:
                self.seconds = note["seconds"]
                return False
        self._note.unlink(missing_ok=True)
        begun = time.monotonic()
        if self._server is not None:
            self._server.execute(f"DROP DATABASE IF EXISTS {NAME}")
            self._server.execute(f"CREATE DATABASE {NAME} CHARACTER SET utf8mb4")
            self._server.execute("SET GLOBAL innodb_flush_log_at_trx_commit = 0")
        else:
            for file in self._directory.glob("pool.sqlite*"):
                file.unlink()
        with self.database() as database:
            schema.create(database)
            server_id = fill(database)
        for what in loads(self._past, now, server_id):
            if self._server is not None:
                load_mariadb(self._server, what, self._directory)
            else:
                load_sqlite(self._directory / "pool.sqlite", what)
        if self._server is not None:
            # Statistics as a server has them that grew.
            self._server.execute("ANALYZE TABLE requests, claim_history, request_history, past_requests", name=NAME)
            self._server.execute("SET GLOBAL innodb_flush_log_at_trx_commit = 1")
        self.seconds = time.monotonic() - begun
        self._note.write_text(json.dumps({**wanted, "loaded": now.isoformat(), "seconds": self.seconds}))
        return True

    def give_to(self, server: str) -> None:
        """Make it the pool of an imaging server of this name, with all devices free, however the last run ended."""
        now = Clock().now()
        with self.database() as database, database.begin() as conn:
            conn.execute(update(tables.imaging_servers).values(fqdn=server))
            conn.execute(delete(tables.device_requests))
            devices = tables.devices
            free = {"claim_id": None, "operation_claim_id": None, "state": "ready", "state_timeout": now}
            conn.execute(update(devices).values(version=devices.c.version + 1, **free))
            requests = tables.requests
            conn.execute(
                update(requests)
                .where(requests.c.state.not_in(END_STATES))
                .values(state="closed", version=requests.c.version + 1)
            )

    def sizes(self) -> tuple[int, int]:
        """How many requests and log lines there are."""
        with self.database() as database, database.read() as conn:
            lines = sum(
                conn.scalar(select(func.count()).select_from(table)) or 0
                for table in (tables.device_logs, tables.request_logs)
            )
            return conn.scalar(select(func.count()).select_from(tables.requests)) or 0, lines


@contextmanager
def grown(kind: str, past: Past) -> Iterator[tuple[Grown, MariaDB | None]]:
    """The kept pool, and the MariaDB server that has it; whatever is on that server besides is to be dropped."""
    directory = cache() / f"{kind}-{past.requests}"
    directory.mkdir(exist_ok=True)
    if kind == "sqlite":
        yield Grown(kind, past, f"sqlite:///{directory}/pool.sqlite", directory, None), None
        return
    server = MariaDB(directory, durable=True, options=OPTIONS)
    try:
        server.start()
        yield Grown(kind, past, server.url(NAME), directory, server), server
    finally:
        server.stop()
        server.close()
