# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Who acts on a row: taken by one server of many, given back, and never both at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, select, update

from mozpool.clock import Clock
from mozpool.db import devices, ownership, requests, servers, tables
from mozpool.db.engine import Database
from mozpool.db.ownership import Guest, Owned
from mozpool.db.servers import Presence
from tests.conftest import open_database
from tests.mariadb import MariaDB
from tests.unit.pool_support import NOW, Rows

mysql = pytest.mark.mysql

LONG = 10.0
BEAT = 7
"""The last beat of the lost server."""


class Group(Rows):
    """Three servers; what is written without a word about it belongs to the lost one."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.lost = self.server_id
        self.two, self.three = self.server("server-2.example.com"), self.server("server-3.example.com")
        self.beat(BEAT)

    def beat(self, beat: int, server_id: int | None = None) -> None:
        self.database.run(lambda conn: self.say(conn, beat, server_id))

    def say(self, conn: Connection, beat: int, server_id: int | None = None) -> None:
        said = Presence(server_id or self.lost, beat, False, "5.1", NOW, NOW, 32, 0, "lab", 60.0)
        servers.say_here(conn, said)

    def owned(self, server_id: int | None = None) -> list[Owned]:
        with self.database.read() as conn:
            return ownership.of_server(conn, server_id or self.lost)

    def take(self, rows: list[Owned] | None = None, *, to: int | None = None, beat: int = BEAT) -> int | None:
        rows = self.owned() if rows is None else rows
        return self.database.run(
            lambda conn: ownership.take(conn, rows, lost_id=self.lost, beat=beat, to=to or self.two)
        )

    def arrived(self, server_id: int) -> list[tuple[str, int]]:
        with self.database.read() as conn:
            return list(ownership.arrived(conn, server_id))

    def guests(self, server_id: int) -> list[Guest]:
        with self.database.read() as conn:
            return ownership.guests(conn, server_id)

    def begun(self, *device_ids: int) -> None:
        """Their owner has begun to act on these devices."""
        for device_id in device_ids:
            self.change(device_id, came_from_id=None)

    def change(self, device_id: int, **columns: Any) -> None:
        table = tables.devices
        self.database.run(
            lambda conn: conn.execute(
                update(table).where(table.c.id == device_id).values(version=table.c.version + 1, **columns)
            )
        )

    def columns(self, device_id: int) -> tuple[int | None, int | None, int]:
        """(owner_id, came_from_id, epoch) as they are in the table."""
        table = tables.devices
        with self.database.read() as conn:
            query = select(table.c.owner_id, table.c.came_from_id, table.c.epoch)
            return tuple(conn.execute(query.where(table.c.id == device_id)).one())

    def losses(self) -> int:
        with self.database.read() as conn:
            return int(conn.scalars(select(tables.server_presence.c.losses)).one())


@pytest.fixture
def group(database: Database) -> Group:
    return Group(database)


# What a server owns


def test_a_server_owns_what_belongs_to_it_and_what_it_has_taken(group: Group):
    mine = group.device(relay_info=None)
    group.device(owner_id=group.two)
    taken = group.device(imaging_server_id=group.two, owner_id=group.lost, relay_info="Relay-1:2101:bank1:relay3")
    group.device(imaging_server_id=group.two)
    open_request = group.request()
    group.request(state="closed")
    group.request(state="failed_bad_image")
    group.request(owner_id=group.three)
    taken_request = group.request(imaging_server_id=group.three, owner_id=group.lost)
    assert group.owned() == [
        Owned("device", mine, group.lost, f"device {mine}"),
        Owned("device", taken, group.two, "relay-1:2101"),
        Owned("request", open_request, group.lost, f"request {open_request}"),
        Owned("request", taken_request, group.three, f"request {taken_request}"),
    ]


def test_devices_on_one_relay_board_belong_together(group: Group):
    for relay_info in ("a:2101:bank1:relay1", "A:2101:bank2:relay1", "a:2102:bank1:relay1", "pdu-1 outlet 3"):
        group.device(relay_info=relay_info)
    assert [row.together for row in group.owned()] == ["a:2101", "a:2101", "a:2102", "pdu-1 outlet 3"]


def test_each_look_at_what_a_server_acts_on_finds_the_same(group: Group):
    """Deadlines, network boot, and what the list of servers says."""
    due = NOW + timedelta(seconds=5)
    mine = group.device("dozing", state_timeout=due)
    guest = group.device("dozing", state_timeout=due, imaging_server_id=group.two, owner_id=group.lost)
    lent = group.device("dozing", state_timeout=due, owner_id=group.two)
    own = group.request(state_timeout=due)
    taken = group.request(state_timeout=due, imaging_server_id=group.two, owner_id=group.lost)
    given = group.request(state_timeout=due, owner_id=group.two)
    for server_id, boards, asked in ((group.lost, [mine, guest], [own, taken]), (group.two, [lent], [given])):
        with group.database.read() as conn:
            assert [row[0] for row in devices.due(conn, server_id, NOW + timedelta(minutes=1), 10)] == boards
            assert [row.id for row in devices.owned_on(conn, server_id)] == boards
            places = devices.network_places(conn, server_id)
            assert sorted(row[0] for row in requests.due(conn, server_id, NOW + timedelta(minutes=1), 10)) == asked
            found = {server.id: server for server in servers.find(conn)}[server_id]
        assert [name for name, _, _ in places] == [group.get_device(device_id).name for device_id in boards]
        assert (found.devices, found.open_requests) == (len(boards), len(asked))


def test_a_key_names_who_acts_on_a_device(group: Group):
    device_id = group.device(owner_id=group.two)
    with group.database.read() as conn:
        key = devices.key(conn, device_id)
        assert key is not None
        assert (key.owner_id, key.owner) == (group.two, "server-2.example.com")
        assert devices.key(conn, 999) is None


def test_a_request_knows_who_acts_for_it_and_on_its_device(group: Group):
    request_id = group.request(owner_id=group.three)
    with group.database.read() as conn:
        assert requests.owner(conn, request_id) == (group.three, "server-3.example.com")
        assert requests.owner(conn, 999) is None


# Taking


def test_what_is_taken_has_another_owner_a_new_epoch_and_says_where_it_came_from(group: Group):
    device_id, request_id = group.device(), group.request()
    device, request = group.get_device(device_id), group.get_request(request_id)
    assert group.take() == 2
    after = group.get_device(device_id)
    assert (after.imaging_server_id, after.owner_id, after.owner) == (group.lost, group.two, "server-2.example.com")
    assert (after.came_from_id, after.epoch, after.version) == (group.lost, 1, device.version + 1)
    assert (after.state, after.attempt, after.state_timeout) == (device.state, device.attempt, device.state_timeout)
    asked = group.get_request(request_id)
    assert (asked.imaging_server_id, asked.owner_id, asked.owner) == (group.lost, group.two, "server-2.example.com")
    assert (asked.came_from_id, asked.epoch, asked.version) == (group.lost, 1, request.version + 1)
    assert group.losses() == 1
    assert group.owned() == []


def test_nothing_is_taken_from_a_server_that_has_given_a_sign_of_life(group: Group):
    device_id, request_id = group.device(), group.request()
    before = group.get_device(device_id), group.get_request(request_id)
    group.beat(BEAT + 1)
    assert group.take() is None
    assert (group.get_device(device_id), group.get_request(request_id)) == before
    assert group.losses() == 0


def test_a_server_that_never_ran_is_not_taken_from(group: Group):
    """It has no row that would say that others did."""
    rows = [Owned("device", group.device(imaging_server_id=group.three), group.three, "x")]
    taken = group.database.run(lambda conn: ownership.take(conn, rows, lost_id=group.three, beat=0, to=group.two))
    assert taken is None


def test_all_rows_are_taken_or_none(group: Group):
    """A taking that breaks halfway leaves nothing behind."""
    devices = [group.device() for _ in range(3)]
    group.request()
    rows = group.owned()

    def take_and_break(conn: Connection) -> None:
        assert ownership.take(conn, rows, lost_id=group.lost, beat=BEAT, to=group.two) == 4
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        group.database.run(take_and_break)
    assert [group.columns(device_id) for device_id in devices] == [(None, None, 0)] * 3
    assert group.losses() == 0
    assert group.take(rows) == 4


def test_there_may_be_more_rows_than_one_statement_names(group: Group, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ownership, "IDS_AT_ONCE", 2)
    for _ in range(5):
        group.device()
    for _ in range(3):
        group.request()
    assert group.take() == 8
    assert group.owned() == []


def test_only_rows_that_are_still_the_lost_ones_are_taken(group: Group):
    stays, went = group.device(), group.device()
    rows = group.owned()
    group.change(went, owner_id=group.three, epoch=1)
    assert group.take(rows) == 1
    assert group.columns(stays) == (group.two, group.lost, 1)
    assert group.columns(went) == (group.three, None, 1)


def test_requests_that_ended_meanwhile_are_not_taken(group: Group):
    request_id, ended = group.request(), group.request()
    rows = group.owned()
    table = tables.requests
    group.database.run(lambda conn: conn.execute(update(table).where(table.c.id == ended).values(state="closed")))
    assert group.take(rows) == 1
    assert group.get_request(request_id).owner_id == group.two
    assert group.get_request(ended).owner_id == group.lost


def test_what_belongs_to_the_taker_has_no_other_owner_then(group: Group):
    """The lost server had taken it over from the one that takes it now."""
    device_id = group.device(imaging_server_id=group.two, owner_id=group.lost, epoch=1)
    request_id = group.request(imaging_server_id=group.two, owner_id=group.lost, epoch=1)
    assert group.take() == 2
    assert group.columns(device_id) == (None, group.lost, 2)
    assert group.get_device(device_id).owner_id == group.two
    assert (group.get_request(request_id).owner_id, group.get_request(request_id).epoch) == (group.two, 2)


def test_what_a_lost_server_had_not_begun_with_is_taken_like_anything_else(group: Group):
    device_id = group.device(imaging_server_id=group.three, owner_id=group.lost, came_from_id=group.three, epoch=1)
    assert group.take() == 1
    assert group.columns(device_id) == (group.two, group.lost, 2)


# What has come, and what goes back


def test_what_has_come_is_known_until_its_owner_has_begun(group: Group):
    devices = [group.device(), group.device()]
    request_id = group.request()
    group.take()
    assert group.arrived(group.two) == [("device", devices[0]), ("device", devices[1]), ("request", request_id)]
    assert group.arrived(group.lost) == group.arrived(group.three) == []
    group.begun(devices[0])
    assert group.arrived(group.two) == [("device", devices[1]), ("request", request_id)]


def test_requests_that_have_ended_do_not_arrive(group: Group):
    group.request(state="closed", owner_id=group.two, came_from_id=group.lost)
    assert group.arrived(group.two) == []


def test_guests_are_what_a_server_has_begun_with_and_what_belongs_to_another(group: Group):
    begun, group_of_three = group.device("pxe_booting"), group.device(imaging_server_id=group.three)
    group.device(imaging_server_id=group.two)
    request_id = group.request(state="ready")
    group.request(state="closed", owner_id=group.two)
    group.take()
    assert group.guests(group.two) == []
    group.begun(begun)
    table = tables.requests
    group.database.run(lambda conn: conn.execute(update(table).values(came_from_id=None)))
    version = group.get_device(begun).version
    assert group.guests(group.two) == [
        Guest("device", begun, group.lost, "pxe_booting", version),
        Guest("request", request_id, group.lost, "ready", group.get_request(request_id).version),
    ]
    assert group.guests(group.three) == []
    assert group.get_device(group_of_three).owner_id == group.three


def test_a_guest_goes_back_to_the_server_that_it_belongs_to(group: Group):
    device_id = group.device()
    group.take()
    group.begun(device_id)
    (guest,) = group.guests(group.two)
    assert group.database.run(lambda conn: ownership.give_back(conn, [guest], group.two))
    assert group.columns(device_id) == (None, group.two, 2)
    assert group.get_device(device_id).version == guest.version + 1
    assert group.arrived(group.lost) == [("device", device_id)]
    assert group.guests(group.two) == []
    assert not group.database.run(lambda conn: ownership.give_back(conn, [guest], group.two)), "but once"


def test_a_guest_that_was_written_since_it_was_looked_at_stays(group: Group):
    """Something may have begun with it."""
    device_id = group.device()
    group.take()
    group.begun(device_id)
    (guest,) = group.guests(group.two)
    group.change(device_id, state="pxe_power_cycling")
    assert not group.database.run(lambda conn: ownership.give_back(conn, [guest], group.two))
    assert group.get_device(device_id).owner_id == group.two


def test_only_its_owner_gives_a_guest_back(group: Group):
    device_id = group.device()
    group.take()
    group.begun(device_id)
    (guest,) = group.guests(group.two)
    assert not group.database.run(lambda conn: ownership.give_back(conn, [guest], group.three))
    assert group.columns(device_id) == (group.two, None, 1)


def test_it_finds_requests_of_some_servers_whose_time_is_over(group: Group):
    over, now = timedelta(seconds=-1), NOW + timedelta(hours=1)
    expired = group.request(expires=now + over)
    this_moment = group.request(expires=now)
    taken = group.request(imaging_server_id=group.three, owner_id=group.lost, expires=now + over)
    group.request(expires=now + timedelta(seconds=1))
    group.request(expires=now + over, state="closed")
    group.request(expires=now + over, owner_id=group.two)
    elsewhere = group.request(expires=now + over, imaging_server_id=group.three)
    with group.database.read() as conn:
        assert ownership.expired_of(conn, [group.lost], now) == [expired, this_moment, taken]
        assert ownership.expired_of(conn, [group.three, group.lost], now) == [expired, this_moment, taken, elsewhere]


# At the same time


@pytest.fixture
def big_group(mysql_url: str) -> Iterator[Group]:
    """On MariaDB, with sixty devices and twenty requests of the lost server."""
    database = open_database(mysql_url)
    made = Group(database)
    for _ in range(60):
        made.device()
    for _ in range(20):
        made.request()
    yield made
    database.dispose()


@mysql
def test_each_row_is_taken_once_when_several_servers_take_at_the_same_time(big_group: Group):
    group = big_group
    rows = group.owned()
    together = threading.Barrier(4)

    def take(to: int, some: list[Owned]) -> int | None:
        together.wait(LONG)
        return group.take(some, to=to)

    with ThreadPoolExecutor(4) as threads:
        shares = [(group.two, rows), (group.three, rows[::-1]), (group.two, rows[::2]), (group.three, rows[1::2])]
        taken = [future.result(LONG * 3) for future in [threads.submit(take, *share) for share in shares]]
    assert None not in taken
    assert sum(count or 0 for count in taken) == 80
    assert group.owned() == []
    assert len(group.owned(group.two)) + len(group.owned(group.three)) == 80
    for table in (tables.devices, tables.requests):
        with group.database.read() as conn:
            assert set(conn.execute(select(table.c.epoch, table.c.came_from_id))) == {(1, group.lost)}
    assert group.losses() == 4


def held_up(mariadb: MariaDB, work: Callable[[], Any], threads: ThreadPoolExecutor) -> Future[Any]:
    """Begin ``work`` in another thread, and wait until it waits for somebody's lock."""
    begun = threads.submit(work)
    for _ in range(40):
        Clock().sleep(0.15)  # for whoever asks more often, the server has the same answer again
        waiting = "SELECT COUNT(*) FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'"
        if mariadb.execute(waiting)[0][0]:
            return begun
        assert not begun.done(), "it did not have to wait"
    raise AssertionError("it does not wait for anybody")


@mysql
def test_a_sign_of_life_that_is_being_given_comes_first_and_nothing_is_taken(big_group: Group, mariadb: MariaDB):
    group = big_group
    rows = group.owned()
    with ThreadPoolExecutor(1) as threads:
        with group.database.begin() as conn:
            group.say(conn, BEAT + 1)
            taking = held_up(mariadb, lambda: group.take(rows), threads)
        assert taking.result(LONG) is None
    assert group.owned() == rows
    assert group.losses() == 0


@mysql
def test_a_sign_of_life_that_comes_later_finds_what_was_taken(big_group: Group, mariadb: MariaDB):
    """Until it is given, the server that is back begins nothing."""
    group = big_group
    rows = group.owned()

    def give_a_sign_and_look() -> list[Owned]:
        group.beat(BEAT + 1)
        return group.owned()

    with ThreadPoolExecutor(1) as threads:
        with group.database.begin() as conn:
            assert ownership.take(conn, rows, lost_id=group.lost, beat=BEAT, to=group.two) == 80
            sign = held_up(mariadb, give_a_sign_and_look, threads)
        assert sign.result(LONG) == []
    assert group.take(rows) is None
    assert group.losses() == 1


@mysql
def test_a_sign_of_life_goes_through_when_a_taking_is_rolled_back(big_group: Group, mariadb: MariaDB):
    group = big_group
    rows = group.owned()
    with ThreadPoolExecutor(1) as threads:
        with pytest.raises(ZeroDivisionError), group.database.begin() as conn:
            ownership.take(conn, rows, lost_id=group.lost, beat=BEAT, to=group.two)
            sign = held_up(mariadb, lambda: group.beat(BEAT + 1), threads)
            raise ZeroDivisionError
        sign.result(LONG)
    assert group.owned() == rows
    assert group.take(rows) is None


@mysql
def test_a_transition_that_races_with_a_taking_is_decided_again(big_group: Group, mariadb: MariaDB):
    """The taking raises the version: who loaded the row before writes nothing."""
    group = big_group
    row = group.owned()[0]
    before = group.get_device(row.id)
    table = tables.devices

    def write() -> int:
        mine = (table.c.id == row.id) & (table.c.version == before.version)
        return group.database.run(
            lambda conn: (
                conn.execute(update(table).where(mine).values(state="locked_out", version=table.c.version + 1)).rowcount
            )
        )

    with ThreadPoolExecutor(1) as threads:
        with group.database.begin() as conn:
            ownership.take(conn, [row], lost_id=group.lost, beat=BEAT, to=group.two)
            written = held_up(mariadb, write, threads)
        assert written.result(LONG) == 0
    assert (group.get_device(row.id).state, group.get_device(row.id).owner_id) == (before.state, group.two)
