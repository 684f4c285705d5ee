# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""A small pool in a real database, with the real driver of requests and the real matching function."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, insert

from mozpool.clock import Clock
from mozpool.db import devices, images, requests, tables
from mozpool.db.bootconfig import boot_config_hash
from mozpool.db.devices import Device
from mozpool.db.engine import Database
from mozpool.db.requests import Request
from mozpool.errors import DatabaseAway
from mozpool.lanes import Lanes, Timers
from mozpool.logbook import Logbook
from mozpool.pool.allocation import Matcher, queue_key
from mozpool.pool.criteria import Criteria
from mozpool.pool.requestmachine import request_machine
from mozpool.pool.store import RequestStore
from mozpool.statedriver import Driver

NOW = datetime(2030, 1, 1, 12, 0, tzinfo=UTC)
INTERVAL = 60.0
"""Seconds of waiting that weigh as much as one step of priority."""


class Unreliable(Database):
    """A database that can be taken away."""

    away = False

    @contextmanager
    def read(self) -> Iterator[Connection]:
        if self.away:
            raise DatabaseAway("it is away")
        with super().read() as conn:
            yield conn

    def run(self, work: Any, **more: Any) -> Any:
        if self.away:
            raise DatabaseAway("it is away")
        return super().run(work, **more)


class Rows:
    """Writes rows. Ids are those of the database; names are the caller's."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.server_id = self.add(tables.imaging_servers, fqdn="server-1.example.com")
        self.panda = self.hardware("panda", "ES")
        self.image_id = self.image("b2g", on=[self.panda])
        self._numbers = 0

    def add(self, table: Any, **values: Any) -> int:
        """Insert a row and answer its id."""

        def work(conn: Any) -> int:
            key = conn.execute(insert(table).values(**values)).inserted_primary_key
            assert key is not None
            return int(key[0])

        return self.database.run(work)

    def server(self, name: str) -> int:
        return self.add(tables.imaging_servers, fqdn=name)

    def hardware(self, kind: str, model: str) -> int:
        return self.add(tables.hardware_types, type=kind, model=model)

    def image(self, name: str, *, on: Iterable[int] = (), can_reuse: bool = False) -> int:
        """An image that hardware ``on`` has a PXE config for."""
        image_id = self.add(tables.images, name=name, boot_config_keys="[]", can_reuse=int(can_reuse))
        config_id = self.add(tables.pxe_configs, name=name, description="", contents="", active=1)
        fits = [{"image_id": image_id, "hardware_type_id": hardware, "pxe_config_id": config_id} for hardware in on]
        if fits:
            self.database.run(lambda conn: conn.execute(insert(tables.image_pxe_configs), fits))
        return image_id

    def device(
        self, state: str = "ready", *, labels: Mapping[str, str] | None = None, name: str | None = None, **columns: Any
    ) -> int:
        """A free board."""
        self._numbers += 1
        number = self._numbers
        values: dict[str, Any] = {
            "name": name or f"panda-{number:04}",
            "fqdn": f"panda-{number:04}.example.com",
            "inventory_id": number,
            "state": state,
            "mac_address": f"{number:012x}",
            "imaging_server_id": self.server_id,
            "hardware_type_id": self.panda,
            "environment": "production",
            **columns,
        }
        if "boot_config" in columns:
            values["boot_config_hash"] = boot_config_hash(columns["boot_config"])

        def work(conn: Any) -> int:
            device_id = devices.insert_device(conn, random.Random(number), **values)
            if labels:
                devices.set_labels(conn, device_id, labels)
            return device_id

        return self.database.run(work)

    def request(
        self, *, at: datetime = NOW, priority: int = 0, labels: Mapping[str, str] | None = None, **columns: Any
    ) -> int:
        """A request in the queue since ``at``."""
        values: dict[str, Any] = {
            "imaging_server_id": self.server_id,
            "requested_device": "any",
            "assignee": "somebody@example.com",
            "created": at,
            "expires": at + timedelta(hours=1),
            "image_id": self.image_id,
            "boot_config": "{}",
            "state": "finding_device",
            "state_counters": "{}",
            "state_timeout": at + timedelta(seconds=10),
            "environment": "any",
            "hardware_type": None,
            "hardware_model": None,
            "priority": priority,
            "labels": json.dumps(dict(labels)) if labels else None,
            "queue_key": queue_key(at, priority, INTERVAL),
            **columns,
        }
        values.setdefault(
            "criteria",
            Criteria(
                values["requested_device"],
                values["environment"],
                values["hardware_type"],
                values["hardware_model"],
                labels or {},
                values["image_id"],
            ).key,
        )
        return self.database.run(lambda conn: requests.add(conn, values))

    def get_device(self, device_id: int) -> Device:
        with self.database.read() as conn:
            found = devices.get(conn, device_id)
        assert found is not None
        return found

    def get_request(self, request_id: int) -> Request:
        with self.database.read() as conn:
            found = requests.get(conn, request_id)
        assert found is not None
        return found

    def holder(self, device_id: int) -> int | None:
        """The request that has a device, after a look at both sides of the claim."""
        device = self.get_device(device_id)
        with self.database.read() as conn:
            request = requests.of_device(conn, device_id)
        assert (device.claim_id is None) == (request is None)
        if request is None:
            return None
        assert request.claim_id == device.claim_id
        return request.id

    def image_named(self, name: str) -> images.Image:
        with self.database.read() as conn:
            found = images.by_name(conn, name)
        assert found is not None
        return found


class Pool(Rows):
    """Rows with a driver of requests and a matcher; nothing runs by itself but what a test wakes."""

    def __init__(self, database: Database, clock: Clock, *, seed: int = 1) -> None:
        super().__init__(database)
        self.clock = clock
        self.timers = Timers(clock)
        self.quick = Lanes("quick", 4, clock)
        self.logbook = Logbook(database, clock)
        self.checkpoints: list[Callable[[str], None]] = []
        self.driver: Driver[Request] = Driver(
            request_machine(),
            RequestStore(self.server_id),
            database,
            clock=clock,
            rng=random.Random(seed),
            timers=self.timers,
            quick=self.quick,
            logbook=self.logbook,
            checkpoint=self._checkpoint,
        )
        self.matcher = self.another_matcher(seed)

    def _checkpoint(self, point: str) -> None:
        for call in self.checkpoints:
            call(point)

    def another_matcher(self, seed: int) -> Matcher:
        """As another server has it: with its own turn and its own chance."""
        return Matcher(self.driver, self.database, random.Random(seed), self.quick)

    def match(self) -> None:
        self.matcher.match()

    def close(self, request_id: int) -> None:
        """Its client gives a request back; nobody is told."""
        assert self.driver.handle(request_id, "close").status == "moved"

    def device_of(self, request_id: int) -> int | None:
        return self.get_request(request_id).device_id

    def stop(self) -> None:
        self.driver.stop()
        self.timers.stop()
        assert self.quick.stop(10)


@contextmanager
def pool_of(database: Database, clock: Clock, *, seed: int = 1) -> Iterator[Pool]:
    pool = Pool(database, clock, seed=seed)
    try:
        yield pool
    finally:
        pool.stop()
