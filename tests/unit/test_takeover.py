# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Servers of a group take over from one that is lost, begin what they took, and give it back."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, update

from mozpool.clock import Clock, SimClock
from mozpool.db import claims, devices, tables
from mozpool.db.devices import Device
from mozpool.db.engine import Database
from mozpool.db.ownership import Kind
from mozpool.db.requests import Request
from mozpool.effects import Effects
from mozpool.lanes import Lanes, Timers
from mozpool.lease import Lease
from mozpool.lifeguard.devicemachine import device_machine
from mozpool.lifeguard.store import DeviceStore
from mozpool.logbook import Logbook
from mozpool.pool.requestmachine import request_machine
from mozpool.pool.store import RequestStore
from mozpool.presence import Presence
from mozpool.statedriver import Driver, Event, Outcome
from mozpool.statemachine import Effect
from mozpool.takeover import GUEST_LIMIT, PATIENCE, Takeover
from tests.conftest import open_database
from tests.unit.pool_support import NOW, Rows, Unreliable

LONG = 10.0
BEAT = 5.0
"""Seconds between two signs of life."""
AWAY, TAKEN = 30.0, 60.0
"""After how many seconds of silence a server is away, and taken over from."""


class Hands:
    """Does effects without a trace, as soon as it is let."""

    def __init__(self) -> None:
        self.free = threading.Event()
        self.free.set()
        self.did: list[tuple[int, str]] = []

    def lane(self, row: Device, effect: Effect) -> str | None:
        return f"device {row.id}"

    def perform(self, row: Device, effect: Effect) -> Event | None:
        self.did.append((row.id, type(effect).__name__))
        assert self.free.wait(LONG)
        return None

    def failure(self, effect: Effect) -> str | None:
        return None

    def probe_lane(self, lane: str) -> None:
        raise AssertionError


class Site:
    """An imaging server, as far as it takes over; it has a clock of its own."""

    def __init__(self, url: str, server_id: int, group: str | None) -> None:
        self.id = server_id
        self.group = group
        self.clock = SimClock(NOW)
        self.database = Unreliable(url, clock=self.clock, rng=random.Random(1))
        self.changes = 0
        self.looks = True
        self.occupied: set[int] = set()
        """Devices that something is done to behind the drivers' backs."""
        self.held: set[int] = set()
        """Devices that it was told to hold."""
        self.seen: list[tuple[Kind, int, str, str]] = []
        """Kind and id of rows that began here, the state they were found in, and the one that this led to."""
        self.start()

    def start(self) -> None:
        """Begin with nothing but the database."""
        takeover_after = None if self.group is None else TAKEN
        self.lease = Lease(self.clock, takeover_after)
        self.hands = Hands()
        self.quick, self.workers = Lanes("quick", 2, self.clock), Lanes("effects", 2, self.clock)
        common: dict[str, Any] = {
            "clock": self.clock,
            "rng": random.Random(1),
            "timers": Timers(self.clock),
            "quick": self.quick,
            "logbook": Logbook(self.database, self.clock),
        }
        self.devices: Driver[Device] = Driver(device_machine(), DeviceStore(self.id), self.database, **common)
        self.requests: Driver[Request] = Driver(request_machine(), RequestStore(self.id), self.database, **common)
        self.devices.observers.append(lambda outcome: self._note("device", outcome))
        self.requests.observers.append(lambda outcome: self._note("request", outcome))
        self.effects = Effects(self.devices, self.hands, self.workers, before_look=self.lease.look)
        self.presence = Presence(
            self.database,
            self.clock,
            self.id,
            interval=BEAT,
            away_after=AWAY,
            load=lambda: (32, 0),
            lease=self.lease,
            group=self.group,
            takeover_after=takeover_after,
        )
        self.presence.on_lapse += [self.devices.forget_all, self.requests.forget_all]
        drivers: Mapping[Kind, Driver[Any]] = {"device": self.devices, "request": self.requests}
        self.takeover = Takeover(
            self.database,
            self.clock,
            self.presence,
            self.quick,
            self.id,
            drivers,
            self._count_change,
            lambda device_id: device_id not in self.occupied,
            lambda device_ids: self.held.update(device_ids),
        )

    def _note(self, kind: Kind, outcome: Outcome[Any]) -> None:
        assert outcome.decision is not None
        assert outcome.row is not None
        if outcome.decision.event == "taken_over":
            self.seen.append((kind, outcome.row.id, outcome.row.state, outcome.decision.target))

    def _count_change(self) -> None:
        self.changes += 1

    def give_sign(self) -> None:
        """As the daemon does it."""
        if self.presence.beat() and self.looks:
            self.takeover.look()

    def settle(self) -> None:
        """Wait until the workers have nothing left to do."""
        clock, lanes = Clock(), (self.quick, self.workers)
        end = clock.monotonic() + LONG
        while any(found.backlog() or found.load[1] for found in lanes) and self.hands.free.is_set():
            assert clock.monotonic() < end
            clock.sleep(0.001)

    @contextmanager
    def busy(self, **rows: int) -> Iterator[None]:
        """What is submitted for these rows (kind=id) waits until the block is over."""
        gate = threading.Event()

        def wait() -> None:
            gate.wait(LONG)

        for row in rows.items():
            self.quick.submit(row, wait)
        try:
            yield
        finally:
            gate.set()
            self.settle()

    def end(self) -> None:
        self.hands.free.set()
        self.devices.stop()
        self.requests.stop()
        assert self.quick.stop(LONG)
        assert self.workers.stop(LONG)

    def restart(self) -> None:
        self.end()
        self.start()


class Lab(Rows):
    """Servers of one group, unless a test says otherwise; what belongs to nobody in particular is the first one's."""

    def __init__(self, database: Database, url: str) -> None:
        super().__init__(database)
        self.url = url
        self.sites: list[Site] = []
        self.one = self.site("server-1.example.com", server_id=self.server_id)
        self.two = self.site("server-2.example.com")

    def site(self, name: str, group: str | None = "lab", server_id: int | None = None) -> Site:
        made = Site(self.url, server_id or self.server(name), group)
        self.sites.append(made)
        return made

    def regroup(self, site: Site, group: str | None) -> None:
        site.group = group
        site.restart()

    def pass_time(self, seconds: float, *living: Site) -> None:
        """Let time pass, in which these servers give their signs of life and look at what there is to do."""
        for _ in range(round(seconds / BEAT)):
            for site in self.sites:
                site.clock.advance(BEAT)
            for site in living:
                site.give_sign()
            for site in living:
                site.settle()

    def lose_one(self) -> None:
        """The first server was there and is silent, for so long that the second has taken over."""
        self.pass_time(10, self.one, self.two)
        self.pass_time(TAKEN, self.two)

    def resting(self, **columns: Any) -> int:
        """A device that is ready and has nothing to do in the next hours."""
        return self.device(**{"state_timeout": NOW + timedelta(hours=9), **columns})

    def installing(self, state: str = "pxe_booting", **columns: Any) -> int:
        """A device that is given an image."""
        image = {"next_image_id": self.image_id, "next_boot_config": "{}", "relay_info": "relay-1:2101:bank1:relay1"}
        return self.device(state, **{**image, **columns})

    def claimed(self, device_id: int, request_id: int) -> None:
        """The request has the device."""
        device = self.get_device(device_id)

        def work(conn: Connection) -> None:
            devices.set_attributes(conn, device_id, state="ready")
            claims.take(conn, request_id=request_id, device_id=device_id, device_version=device.version + 1, now=NOW)
            devices.set_attributes(conn, device_id, state=device.state)

        self.database.run(work)

    def owner(self, device_id: int) -> int:
        return self.get_device(device_id).owner_id

    def close(self) -> None:
        for site in self.sites:
            site.end()
            site.database.dispose()


@pytest.fixture
def lab(database: Database, database_url: str) -> Iterator[Lab]:
    made = Lab(database, database_url)
    yield made
    made.close()


@pytest.fixture
def on_sqlite(sqlite_url: str) -> Iterator[Lab]:
    """For what does not depend on the database."""
    database = open_database(sqlite_url)
    made = Lab(database, sqlite_url)
    yield made
    made.close()
    database.dispose()


# Taking


def test_who_is_silent_for_long_enough_is_taken_over_from_and_not_before(lab: Lab) -> None:
    device_id, request_id = lab.resting(), lab.request(state="ready")
    lab.pass_time(10, lab.one, lab.two)
    lab.pass_time(TAKEN - BEAT, lab.two)
    assert lab.two.presence.state_of(lab.one.id) == "away"
    assert (lab.owner(device_id), lab.get_request(request_id).owner_id) == (lab.one.id, lab.one.id)
    lab.pass_time(BEAT, lab.two)
    device, request = lab.get_device(device_id), lab.get_request(request_id)
    assert (device.owner_id, device.epoch, device.came_from_id) == (lab.two.id, 1, None)
    assert (request.owner_id, request.epoch, request.came_from_id) == (lab.two.id, 1, None)
    taken = [("device", device_id, "ready", "ready"), ("request", request_id, "ready", "ready")]
    assert sorted(lab.two.seen) == taken
    assert lab.two.changes > 0


def test_what_was_going_on_begins_again_and_what_rests_goes_on_resting(lab: Lab) -> None:
    installing, resting = lab.installing("b2g_extracting", state_counters='{"pxe_booting": 2}'), lab.resting()
    request_id = lab.request(state="ready")
    before = lab.get_device(resting)
    lab.lose_one()
    device = lab.get_device(installing)
    assert (device.state, device.state_counters) == ("pxe_power_cycling", {"pxe_booting": 2})
    assert device.state_timeout == lab.two.clock.now() + timedelta(seconds=60)
    after = lab.get_device(resting)
    assert (after.state, after.attempt, after.state_timeout) == (before.state, before.attempt, before.state_timeout)
    assert lab.get_request(request_id).state == "ready"
    did = {row_id: [name for number, name in lab.two.hands.did if number == row_id] for row_id in (installing, resting)}
    assert "PowerCycle" in did[installing]
    assert did[resting] == ["SyncBoot"], "its boot files may be old here"


@pytest.mark.parametrize(("lost", "other"), [("east", "west"), (None, "lab"), ("lab", None), (None, None)])
def test_nobody_takes_over_from_a_server_of_another_group_or_of_none(
    lab: Lab, lost: str | None, other: str | None
) -> None:
    lab.regroup(lab.one, lost)
    lab.regroup(lab.two, other)
    device_id, request_id = lab.resting(), lab.request(state="ready", expires=NOW + timedelta(hours=9))
    lab.pass_time(10, lab.one, lab.two)
    lab.pass_time(300, lab.two)
    assert lab.two.presence.state_of(lab.one.id) == "away"
    assert (lab.owner(device_id), lab.get_request(request_id).owner_id) == (lab.one.id, lab.one.id)
    assert lab.two.seen == []


def test_who_stopped_in_good_order_is_taken_over_from_after_the_same_time(on_sqlite: Lab) -> None:
    """It may be back in a moment."""
    lab = on_sqlite
    device_id = lab.resting()
    lab.pass_time(10, lab.one, lab.two)
    lab.one.presence.leave()
    lab.pass_time(TAKEN, lab.two)
    assert lab.owner(device_id) == lab.one.id
    lab.pass_time(BEAT, lab.two)
    assert lab.owner(device_id) == lab.two.id


def test_a_sign_of_life_in_the_last_moment_keeps_everything(lab: Lab) -> None:
    """It is given between the look at the signs and the taking."""
    device_id = lab.resting()
    lab.pass_time(10, lab.one, lab.two)
    lab.pass_time(TAKEN - BEAT, lab.two)
    lab.two.clock.advance(BEAT)
    assert lab.two.presence.beat()
    assert lab.two.presence.lost()
    assert lab.one.presence.beat()
    lab.two.takeover.look()
    assert (lab.owner(device_id), lab.get_device(device_id).epoch) == (lab.one.id, 0)
    lab.pass_time(BEAT, lab.two)
    assert lab.two.presence.lost() == {}


def test_servers_share_what_there_is_by_relay_boards(lab: Lab) -> None:
    three = lab.site("server-3.example.com")
    boards = {
        board: [lab.resting(relay_info=f"{name}:2101:bank1:relay{number}") for number in range(3)]
        for board, name in ((number, f"relay-{number}") for number in range(8))
    }
    requests = [lab.request(state="ready") for _ in range(12)]
    lab.pass_time(10, lab.one, lab.two, three)
    lab.pass_time(TAKEN, lab.two, three)
    owners = {board: {lab.owner(device_id) for device_id in devices} for board, devices in boards.items()}
    assert all(len(found) == 1 for found in owners.values()), "a board is one server's"
    assert set.union(*owners.values()) == {lab.two.id, three.id}
    assert {lab.get_request(request_id).owner_id for request_id in requests} == {lab.two.id, three.id}
    begun = [*lab.two.seen, *three.seen]
    assert len(begun) == len({row[:2] for row in begun}) == 24 + 12


def test_what_another_does_not_take_is_taken_after_some_looks(lab: Lab) -> None:
    """The other server is up, but knows nothing of this yet, or sees the lost one."""
    three = lab.site("server-3.example.com")
    three.looks = False
    devices = [lab.resting(relay_info=f"relay-{number}:2101:bank1:relay1") for number in range(8)]
    lab.pass_time(10, lab.one, lab.two, three)
    lab.pass_time(TAKEN + BEAT * (PATIENCE - 1), lab.two, three)
    left = [device_id for device_id in devices if lab.owner(device_id) == lab.one.id]
    assert 0 < len(left) < 8
    lab.pass_time(BEAT, lab.two, three)
    assert {lab.owner(device_id) for device_id in devices} == {lab.two.id}


def test_what_belongs_to_a_server_that_is_up_comes_to_that(on_sqlite: Lab) -> None:
    """A server that is lost while it has guests, and whose home is back just then."""
    lab = on_sqlite
    three = lab.site("server-3.example.com")
    devices = [
        lab.resting(relay_info=f"relay-{number}:2101", imaging_server_id=three.id, owner_id=lab.one.id, epoch=1)
        for number in range(8)
    ]
    lab.one.looks = False
    lab.pass_time(10, lab.one, lab.two, three)
    lab.pass_time(TAKEN, lab.two, three)
    assert {(row.owner_id, row.epoch, row.came_from_id) for row in map(lab.get_device, devices)} == {
        (three.id, 2, None)
    }
    assert len(three.seen) == 8


def test_what_was_taken_over_is_taken_over_again(on_sqlite: Lab) -> None:
    lab = on_sqlite
    device_id = lab.installing("pxe_booting")
    lab.lose_one()
    three = lab.site("server-3.example.com")
    lab.pass_time(10, lab.two, three)
    lab.pass_time(TAKEN + BEAT * PATIENCE, three)
    row = lab.get_device(device_id)
    assert (row.owner_id, row.epoch, row.came_from_id) == (three.id, 2, None)
    assert three.seen == [("device", device_id, "pxe_power_cycling", "pxe_power_cycling")]


def test_a_server_that_has_just_started_takes_nothing_before_it_has_watched(on_sqlite: Lab) -> None:
    lab = on_sqlite
    device_id = lab.resting()
    lab.pass_time(10, lab.one, lab.two)
    lab.pass_time(TAKEN - BEAT, lab.two)
    lab.two.restart()
    lab.pass_time(TAKEN, lab.two)
    assert lab.owner(device_id) == lab.one.id
    lab.pass_time(BEAT, lab.two)
    assert lab.owner(device_id) == lab.two.id


# Beginning


def test_each_row_is_begun_once_however_often_it_is_looked_at(lab: Lab) -> None:
    device_id, request_id = lab.installing("pxe_booting"), lab.request(state="ready")
    lab.pass_time(10, lab.one, lab.two)
    lab.pass_time(TAKEN - BEAT, lab.two)
    lab.two.clock.advance(BEAT)
    with lab.two.busy(device=device_id, request=request_id):
        lab.two.give_sign()
        lab.two.takeover.look()
        lab.two.takeover.look()
        assert lab.two.seen == []
    assert sorted(lab.two.seen) == [
        ("device", device_id, "pxe_booting", "pxe_power_cycling"),
        ("request", request_id, "ready", "ready"),
    ]
    lab.pass_time(20, lab.two)
    assert len(lab.two.seen) == 2


def test_what_a_server_took_and_had_not_begun_with_when_it_died_is_begun_when_it_is_back(on_sqlite: Lab) -> None:
    lab = on_sqlite
    device_id = lab.installing("pxe_booting", owner_id=lab.two.id, came_from_id=lab.one.id, epoch=1)
    lab.two.give_sign()
    lab.two.settle()
    assert lab.two.seen == [("device", device_id, "pxe_booting", "pxe_power_cycling")]
    assert lab.get_device(device_id).came_from_id is None


def test_what_has_gone_to_another_before_it_was_begun_is_left_to_that(
    on_sqlite: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker comes late: this server was out of touch meanwhile, and is nobody to be alarmed about."""
    lab = on_sqlite
    three = lab.site("server-3.example.com")
    device_id = lab.installing("pxe_booting", owner_id=lab.two.id, came_from_id=lab.one.id, epoch=1)
    with caplog.at_level(logging.ERROR), lab.two.busy(device=device_id):
        lab.two.give_sign()
        table = tables.devices
        lab.database.run(lambda conn: conn.execute(update(table).values(owner_id=three.id, version=9)))
    assert lab.two.seen == []
    assert caplog.records == []
    assert lab.get_device(device_id).state == "pxe_booting"


def test_a_request_that_is_over_meanwhile_is_not_begun(on_sqlite: Lab) -> None:
    lab = on_sqlite
    request_id = lab.request(state="ready", owner_id=lab.two.id, came_from_id=lab.one.id, epoch=1)
    with lab.two.busy(request=request_id):
        lab.two.give_sign()
        lab.two.requests.handle(request_id, "close")
    assert lab.two.seen == []
    assert lab.get_request(request_id).state == "closed"


# Giving back


def test_a_server_that_is_back_for_some_time_gets_what_belongs_to_it_and_begins_with_it(lab: Lab) -> None:
    device_id, request_id = lab.resting(), lab.request(state="ready")
    lab.lose_one()
    lab.one.restart()
    lab.pass_time(TAKEN, lab.one, lab.two)
    assert (lab.owner(device_id), lab.get_request(request_id).owner_id) == (lab.two.id, lab.two.id)
    lab.pass_time(BEAT, lab.one, lab.two)
    device, request = lab.get_device(device_id), lab.get_request(request_id)
    assert (device.owner_id, device.epoch, device.came_from_id) == (lab.one.id, 2, lab.two.id)
    assert (request.owner_id, request.epoch, request.came_from_id) == (lab.one.id, 2, lab.two.id)
    lab.pass_time(BEAT, lab.one, lab.two)
    given_back = [("device", device_id, "ready", "ready"), ("request", request_id, "ready", "ready")]
    assert sorted(lab.one.seen) == given_back
    assert device_id in lab.one.held
    device, request = lab.get_device(device_id), lab.get_request(request_id)
    assert (device.owner_id, device.epoch, device.came_from_id) == (lab.one.id, 2, None)
    assert (request.owner_id, request.epoch, request.came_from_id) == (lab.one.id, 2, None)
    changes = lab.one.changes, lab.two.changes
    lab.pass_time(30, lab.one, lab.two)
    assert (lab.one.changes, lab.two.changes) == changes, "all is at rest"


def test_a_server_that_comes_and_goes_is_given_nothing(on_sqlite: Lab) -> None:
    """Or everything would pass to and fro with it."""
    lab = on_sqlite
    device_id = lab.resting()
    lab.lose_one()
    for _ in range(5):
        lab.one.restart()
        lab.pass_time(TAKEN - BEAT, lab.one, lab.two)
        lab.pass_time(AWAY + BEAT, lab.two)
    assert (lab.owner(device_id), lab.get_device(device_id).epoch) == (lab.two.id, 1)


def test_what_is_not_at_rest_is_given_back_when_it_has_come_to_rest(lab: Lab) -> None:
    device_id, request_id = lab.installing("pxe_booting"), lab.request(state="pending")
    lab.claimed(device_id, request_id)
    lab.lose_one()
    assert lab.two.seen[1:] == [("request", request_id, "pending", "pending")]
    lab.one.restart()
    lab.pass_time(2 * TAKEN, lab.one, lab.two)
    assert (lab.owner(device_id), lab.get_request(request_id).owner_id) == (lab.two.id, lab.two.id)
    lab.two.devices.force(device_id, "ready")
    lab.two.requests.force(request_id, "ready")
    lab.two.settle()
    lab.pass_time(10, lab.one, lab.two)
    assert (lab.owner(device_id), lab.get_request(request_id).owner_id) == (lab.one.id, lab.one.id)


def test_what_never_comes_to_rest_is_given_back_all_the_same(on_sqlite: Lab) -> None:
    """One that is tried in vain, for one: it begins anew at home."""
    lab = on_sqlite
    device_id = lab.installing("pxe_booting")
    lab.lose_one()
    lab.one.restart()
    lab.pass_time(TAKEN + BEAT + GUEST_LIMIT - BEAT, lab.one, lab.two)
    assert lab.owner(device_id) == lab.two.id
    lab.pass_time(BEAT, lab.one, lab.two)
    assert lab.owner(device_id) == lab.one.id
    lab.pass_time(BEAT, lab.one, lab.two)
    assert lab.one.seen == [("device", device_id, "pxe_power_cycling", "pxe_power_cycling")]


def test_what_has_something_done_to_it_stays_until_that_is_over(lab: Lab) -> None:
    device_id = lab.resting()
    lab.pass_time(10, lab.one, lab.two)
    lab.pass_time(TAKEN - BEAT, lab.two)
    lab.two.hands.free.clear()
    lab.pass_time(BEAT, lab.two)
    while not lab.two.hands.did:
        Clock().sleep(0.002)
    assert lab.two.effects.busy(device_id)
    lab.one.restart()
    lab.pass_time(2 * TAKEN, lab.one, lab.two)
    assert lab.owner(device_id) == lab.two.id
    lab.two.hands.free.set()
    lab.two.settle()
    lab.pass_time(BEAT, lab.one, lab.two)
    assert lab.owner(device_id) == lab.one.id


def test_what_somebody_works_on_behind_the_drivers_back_stays_until_that_is_over(on_sqlite: Lab) -> None:
    """An operator's power cycle, for one; nothing begins with what was let go."""
    lab = on_sqlite
    device_id, other_id = lab.resting(), lab.resting()
    lab.lose_one()
    lab.two.occupied.add(device_id)
    lab.one.restart()
    lab.pass_time(2 * TAKEN, lab.one, lab.two)
    assert (lab.owner(device_id), lab.owner(other_id)) == (lab.two.id, lab.one.id)
    lab.two.occupied.clear()
    lab.pass_time(BEAT, lab.one, lab.two)
    assert lab.owner(device_id) == lab.one.id


def test_nothing_is_given_to_a_server_that_was_not_seen_alive(on_sqlite: Lab) -> None:
    """Whatever a server that has just started takes the others for."""
    lab = on_sqlite
    device_id = lab.resting()
    lab.lose_one()
    lab.two.restart()
    for _ in range(30):
        lab.pass_time(BEAT, lab.two)
        assert not lab.two.presence.is_steady(lab.one.id)
    assert (lab.owner(device_id), lab.get_device(device_id).epoch) == (lab.two.id, 1)


def test_a_server_that_went_on_too_late_begins_with_what_is_left_to_it(lab: Lab) -> None:
    """It was frozen, and does not know that it was: what it remembers counts no more."""
    device_id = lab.resting()
    lab.pass_time(10, lab.one, lab.two)
    before = lab.one.devices.load(device_id)
    lab.pass_time(TAKEN, lab.two)
    assert lab.one.devices.remembered(device_id) == before, "it thinks so"
    assert not lab.one.lease.holds
    lab.one.give_sign()
    lab.one.settle()
    assert lab.one.devices.remembered(device_id) is None
    assert lab.one.seen == []
    lab.pass_time(TAKEN + 2 * BEAT, lab.two, lab.one)
    assert lab.one.seen == [("device", device_id, "ready", "ready")]


def test_a_server_that_has_gone_back_to_no_group_is_given_what_belongs_to_it(on_sqlite: Lab) -> None:
    lab = on_sqlite
    device_id = lab.resting()
    lab.lose_one()
    lab.regroup(lab.one, None)
    lab.pass_time(TAKEN, lab.one, lab.two)
    assert lab.owner(device_id) == lab.one.id


# Between groups


def test_a_server_takes_its_own_back_from_one_of_another_group_that_is_gone(lab: Lab) -> None:
    """It was moved to another group while others acted on its rows."""
    device_id, request_id = lab.resting(), lab.request(state="ready")
    lab.lose_one()
    lab.one.group = "attic"
    lab.one.restart()
    lab.pass_time(10, lab.one, lab.two)
    lab.pass_time(TAKEN - BEAT, lab.one)
    assert (lab.owner(device_id), lab.get_request(request_id).owner_id) == (lab.two.id, lab.two.id)
    lab.pass_time(2 * BEAT, lab.one)
    assert (lab.owner(device_id), lab.get_request(request_id).owner_id) == (lab.one.id, lab.one.id)
    assert sorted(lab.one.seen) == [("device", device_id, "ready", "ready"), ("request", request_id, "ready", "ready")]


def test_devices_of_other_groups_are_not_taken_from_a_server_that_had_them(on_sqlite: Lab) -> None:
    """They may be out of reach."""
    lab = on_sqlite
    away = lab.site("server-3.example.com", "attic")
    guest = lab.resting(imaging_server_id=away.id, owner_id=lab.one.id)
    own = lab.resting()
    away.give_sign()
    lab.lose_one()
    lab.pass_time(TAKEN, lab.two)
    assert (lab.owner(guest), lab.owner(own)) == (lab.one.id, lab.two.id)


# Requests that nobody takes over


@pytest.fixture
def loners(lab: Lab) -> Lab:
    """The same servers, in no group."""
    lab.regroup(lab.one, None)
    lab.regroup(lab.two, None)
    return lab


def test_requests_of_a_lost_server_end_when_their_time_is_over(loners: Lab) -> None:
    lab = loners
    device_id = lab.resting()
    over, later = (lab.request(state="ready", expires=NOW + timedelta(seconds=seconds)) for seconds in (60, 600))
    queued = lab.request(expires=NOW + timedelta(seconds=60))
    lab.pass_time(10, lab.one, lab.two)
    lab.pass_time(45, lab.two)
    assert {lab.get_request(number).state for number in (over, later)} == {"ready"}
    lab.pass_time(BEAT, lab.two)
    assert [lab.get_request(number).state for number in (over, later, queued)] == ["closed", "ready", "closed"]
    assert lab.get_request(over).reason == "expired"
    assert (lab.get_request(over).owner_id, lab.owner(device_id)) == (lab.one.id, lab.one.id)


def test_expired_requests_of_a_server_that_is_up_are_its_own_affair(loners: Lab) -> None:
    lab = loners
    request_id = lab.request(state="ready", expires=NOW + timedelta(seconds=10))
    lab.pass_time(60, lab.one, lab.two)
    assert lab.get_request(request_id).state == "ready"


def test_requests_of_a_server_of_the_group_are_taken_over_before_they_end(on_sqlite: Lab) -> None:
    """So that what follows from their end is done, too."""
    lab = on_sqlite
    request_id = lab.request(state="ready", expires=NOW + timedelta(seconds=50))
    lab.pass_time(10, lab.one, lab.two)
    lab.pass_time(TAKEN - BEAT, lab.two)
    assert lab.get_request(request_id).state == "ready"
    lab.pass_time(BEAT, lab.two)
    request = lab.get_request(request_id)
    assert (request.state, request.owner_id, request.reason) == ("closed", lab.two.id, "expired")


def test_a_request_that_is_renewed_meanwhile_goes_on(loners: Lab) -> None:
    """On any server, between the look for expired ones and the end."""
    lab = loners
    renewed, other = (lab.request(state="ready", expires=NOW + timedelta(seconds=60)) for _ in range(2))
    lab.pass_time(10, lab.one, lab.two)
    lab.pass_time(45, lab.two)
    table, handle = tables.requests, lab.two.requests.handle

    def renew_before(row_id: int, event: str, *args: Any, **more: Any) -> Outcome[Request]:
        lab.database.run(
            lambda conn: conn.execute(
                update(table)
                .where(table.c.id == renewed)
                .values(expires=NOW + timedelta(hours=1), version=table.c.version + 1)
            )
        )
        return handle(row_id, event, *args, **more)

    lab.two.requests.handle = renew_before  # type: ignore[method-assign]
    lab.pass_time(BEAT, lab.two)
    assert (lab.get_request(renewed).state, lab.get_request(other).state) == ("ready", "closed")


# Without a database


def test_nothing_breaks_while_the_database_is_away(on_sqlite: Lab, caplog: pytest.LogCaptureFixture) -> None:
    lab = on_sqlite
    device_id, request_id = lab.installing("pxe_booting"), lab.request(state="ready")
    lab.pass_time(10, lab.one, lab.two)
    lab.pass_time(TAKEN - BEAT, lab.two)
    lab.two.clock.advance(BEAT)
    assert lab.two.presence.beat()
    lab.two.database.away = True
    lab.two.takeover.look()
    assert "it is not looked after what lost servers left: it is away" in caplog.text
    lab.two.database.away = False
    with lab.two.busy(device=device_id, request=request_id):
        lab.two.takeover.look()
        lab.two.database.away = True
    assert lab.two.seen == []
    assert lab.get_device(device_id).came_from_id == lab.one.id
    lab.two.database.away = False
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    lab.two.takeover.look()
    lab.two.settle()
    assert sorted(lab.two.seen) == [
        ("device", device_id, "pxe_booting", "pxe_power_cycling"),
        ("request", request_id, "ready", "ready"),
    ]


def test_nobody_is_taken_over_from_because_the_database_was_away(on_sqlite: Lab) -> None:
    lab = on_sqlite
    device_id = lab.resting()
    lab.pass_time(10, lab.one, lab.two)
    for site in lab.sites:
        site.database.away = True
    lab.pass_time(600, lab.one, lab.two)
    for site in lab.sites:
        site.database.away = False
    lab.pass_time(10, lab.two, lab.one)
    lab.pass_time(30, lab.one, lab.two)
    assert (lab.owner(device_id), lab.get_device(device_id).epoch) == (lab.one.id, 0)
