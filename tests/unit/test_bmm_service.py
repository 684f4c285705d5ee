# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""BMM's service: the network boot says what the device's row says, whatever happened meanwhile; what needs a lease."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from mozpool.bmm.interfaces import BackendContext, JobOrder, Target
from mozpool.bmm.registry import Registry
from mozpool.bmm.service import BMM, token_hash
from mozpool.clock import Deadline, SimClock
from mozpool.db import tables
from mozpool.db.devices import Device
from mozpool.db.engine import Database
from mozpool.errors import LaneError, LeaseOver, OwnFault
from mozpool.lease import Lease
from tests.app_fixtures import Server
from tests.conftest import open_database
from tests.factories import device


class Boots:
    """What device1 boots."""

    def __init__(self, server: Server) -> None:
        self.server = server
        assert server.daemon.settings.paths.tftp_root is not None
        self.directory = server.daemon.settings.paths.tftp_root / "pxelinux.cfg"

    def sync(self, **fields: object) -> Device:
        """Make the files say what the row with these fields says."""
        row = replace(self.server.device(), **fields)  # type: ignore[arg-type]
        self.server.daemon.bmm.sync_boot(row)
        return row

    def files(self) -> dict[str, str]:
        return {path.name: path.read_text() for path in self.directory.glob("*")}


@pytest.fixture
def boots(imaging_server: Server) -> Boots:
    return Boots(imaging_server)


def test_a_file_that_somebody_removed_is_written_again(boots: Boots) -> None:
    row = boots.sync(pxe_config="b2g")
    before = boots.files()
    assert list(before) == ["01-02-00-00-00-00-01"]
    (boots.directory / "01-02-00-00-00-00-01").unlink()
    boots.server.daemon.bmm.sync_boot(row)
    assert boots.files() == before


def test_a_file_that_somebody_wrote_is_removed(boots: Boots) -> None:
    boots.sync(pxe_config=None)
    boots.directory.mkdir(exist_ok=True)
    (boots.directory / "01-02-00-00-00-00-01").write_text("LABEL mine")
    boots.sync(pxe_config=None)
    assert boots.files() == {}


def test_a_device_with_another_network_card_leaves_no_file_behind(boots: Boots) -> None:
    boots.sync(pxe_config="b2g")
    boots.sync(pxe_config="b2g", mac_address="0200000000ee")
    assert list(boots.files()) == ["01-02-00-00-00-00-ee"]
    boots.sync(pxe_config=None, mac_address="0200000000ff")
    assert boots.files() == {}


def test_a_directory_that_is_away_is_the_servers_own_fault(boots: Boots, tmp_path: Path) -> None:
    (tmp_path / "tftp").rename(tmp_path / "elsewhere")
    with pytest.raises(OwnFault, match="cannot write its PXE file"):
        boots.sync(pxe_config="b2g")
    (tmp_path / "elsewhere").rename(tmp_path / "tftp")
    boots.sync(pxe_config="b2g")
    assert len(boots.files()) == 1


# The token of a boot


class TokenBoots(Boots):
    """What device1 boots, and by which token."""

    @property
    def token(self) -> str | None:
        """The token in its boot file."""
        found = [re.search(r"mozpool-token=(\S+)", text) for text in self.files().values()]
        return found[0][1] if found and found[0] else None

    def boot(self, **fields: object) -> str | None:
        """It is about to boot."""
        row = replace(self.server.device(), **fields)  # type: ignore[arg-type]
        self.server.daemon.bmm.sync_boot(row, boots=True)
        return self.token

    @property
    def stored(self) -> str | None:
        return self.server.device().boot_token

    def another_process(self) -> TokenBoots:
        """The same, as a server sees it that has made none of the tokens."""
        daemon = self.server.daemon
        daemon.bmm = BMM(daemon.bmm.registry, daemon.database, daemon.clock, "127.0.0.1", "http://127.0.0.1")
        return self


@pytest.fixture
def tokens(imaging_server: Server) -> TokenBoots:
    return TokenBoots(imaging_server)


def test_each_boot_has_a_token_of_its_own(tokens: TokenBoots) -> None:
    seen = {tokens.boot(pxe_config="b2g") for _ in range(5)}
    assert len(seen) == 5
    assert all(token and re.fullmatch(r"[A-Za-z0-9_-]{24}", token) for token in seen)
    assert tokens.stored == token_hash(str(tokens.token))


def test_what_is_only_made_sure_of_keeps_its_token(tokens: TokenBoots) -> None:
    """The device may be booting by it already."""
    token = tokens.boot(pxe_config="b2g")
    tokens.sync(pxe_config="b2g")
    assert tokens.token == token
    tokens.sync(pxe_config=None)  # the live image runs
    assert tokens.stored == token_hash(str(token))
    tokens.sync(pxe_config="b2g")  # it is to stay, as in maintenance
    assert tokens.token == token


def test_a_boot_from_its_own_storage_ends_the_token(tokens: TokenBoots) -> None:
    tokens.boot(pxe_config="b2g")
    tokens.boot(pxe_config=None)
    assert tokens.stored is None
    tokens.boot(pxe_config="b2g")
    tokens.another_process().boot(pxe_config=None)
    assert tokens.stored is None


def test_a_config_without_a_place_for_it_ends_the_token_and_is_told_of(tokens: TokenBoots) -> None:
    told = []
    tokens.server.daemon.bmm._on_no_token = lambda device, config: told.append((device, config))
    tokens.boot(pxe_config="b2g")
    assert told == []
    tokens.server.daemon.database.run(
        lambda conn: conn.execute(update(tables.pxe_configs).values(contents="DEFAULT x %URL%"))
    )
    assert tokens.boot(pxe_config="b2g") is None
    assert tokens.stored is None
    assert told == [("device1", "b2g")]
    tokens.sync(pxe_config="b2g")
    assert len(told) == 1


def test_a_server_that_did_not_make_the_token_makes_another(tokens: TokenBoots) -> None:
    """Nobody can tell the token from what is stored of it."""
    token = tokens.boot(pxe_config="b2g")
    tokens.another_process().sync(pxe_config="b2g")
    assert tokens.token not in (None, token)
    assert tokens.stored == token_hash(str(tokens.token))


def test_the_token_of_one_server_ends_with_that_of_the_next(tokens: TokenBoots) -> None:
    """It has the device back, and its own old token in memory."""
    bmm = tokens.server.daemon.bmm
    token = tokens.boot(pxe_config="b2g")
    newer = tokens.another_process().boot(pxe_config="b2g")
    tokens.server.daemon.bmm = bmm
    tokens.sync(pxe_config="b2g")
    assert tokens.token not in (None, token, newer)
    assert tokens.stored == token_hash(str(tokens.token))


@pytest.mark.parametrize("pxe_config", ["b2g", None])
def test_who_does_not_act_on_the_device_any_more_changes_no_token(tokens: TokenBoots, pxe_config: str | None) -> None:
    tokens.boot(pxe_config="b2g")
    before = tokens.server.device()
    tokens.server.change(epoch=before.epoch + 1)
    with pytest.raises(LeaseOver):
        tokens.boot(pxe_config=pxe_config, epoch=before.epoch)
    assert tokens.stored == before.boot_token


def test_a_power_cycle_of_an_operator_makes_a_token_too(tokens: TokenBoots) -> None:
    assert tokens.server.post("/api/device/device1/power-cycle/", {"pxe_config": "b2g"}).status_code == 200
    assert tokens.server.wait_until(lambda: tokens.token is not None)
    assert tokens.server.device().boot_token == token_hash(str(tokens.token))


def test_a_preview_has_none(tokens: TokenBoots) -> None:
    assert tokens.server.daemon.bmm.boot_text("%DEVICE% %TOKEN%", "device1") == "device1 %TOKEN%"
    assert (
        tokens.server.daemon.bmm.boot_config(replace(tokens.server.device(), next_boot_config="%TOKEN%")) == "%TOKEN%"
    )


# Within the lease


class Recorder:
    """All backends at once: notes what it is told to do, and the deadline of each call."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, float]] = []
        self.during: Callable[[Deadline], None] = lambda deadline: None

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any) -> None:
            deadline = args[-1]
            self.calls.append((name, deadline.remaining()))
            self.during(deadline)

        return call

    def lane(self, device: Target, start: bool = False) -> str:
        return "recorded:start" if start else "recorded:1"


class Leased:
    """BMM's service in a group, with a lease of thirty seconds that was not begun yet."""

    def __init__(self, database: Database, takeover_after: float | None = 60.0) -> None:
        self.clock = SimClock()
        self.lease = Lease(self.clock, takeover_after)
        self.backend = Recorder()
        kinds = ("power", "boot", "probe", "agent", "launcher")
        registry = Registry(
            BackendContext(clock=self.clock, tftp_root=None),
            dict.fromkeys(kinds[:-1], "recorded"),
            {(kind, "recorded"): self.backend for kind in kinds},
        )
        self.bmm = BMM(registry, database, self.clock, "127.0.0.1", "http://127.0.0.1", self.lease)

    def calls(self, act: Callable[[BMM, Device], object]) -> list[tuple[str, float]]:
        self.backend.calls.clear()
        act(self.bmm, device())
        return self.backend.calls


@pytest.fixture
def leased(sqlite_url: str) -> Iterator[Leased]:
    database = open_database(sqlite_url)
    yield Leased(database)
    database.dispose()


def hosted(row: Device) -> Device:
    """It is in a cloud."""
    return replace(row, backends={"launcher": "recorded"})


ORDER = JobOrder(1, "a55-perf", ("device1",))

ACTS: list[tuple[str, Callable[[BMM, Device], object], float]] = [
    ("power cycle", lambda bmm, row: bmm.power_cycle(row), 30.0),
    ("power off", lambda bmm, row: bmm.power_off(row), 30.0),
    ("network boot", lambda bmm, row: bmm.sync_boot(row), 10.0),
    ("reboot", lambda bmm, row: bmm.agent_reboot(row), 8.0),
    ("command", lambda bmm, row: bmm.agent_run(row, ["ls"], 12.0), 12.0),
    ("(job start|start of a job)", lambda bmm, row: bmm.start_job(hosted(row), ORDER), 60.0),
    ("(job stop|stop of jobs)", lambda bmm, row: bmm.stop_jobs(hosted(row)), 20.0),
    ("storage check", lambda bmm, row: bmm.check_storage(row), 195.0),
]
LOOKS: list[Callable[[BMM, Device], object]] = [
    lambda bmm, row: bmm.ping(row),
    lambda bmm, row: bmm.has_power(row),
    lambda bmm, row: bmm.verify_agent(row),
    lambda bmm, row: bmm.agent_uptime(row),
    lambda bmm, row: bmm.hosted_status(hosted(row)),
    lambda bmm, row: bmm.look_at_job(hosted(row), ORDER),
]


@pytest.mark.parametrize(("name", "act", "seconds"), ACTS)
def test_what_changes_something_at_a_device_needs_a_lease(
    leased: Leased, name: str, act: Callable[[BMM, Device], object], seconds: float
) -> None:
    with pytest.raises(LeaseOver, match=f"{name} of panda-0001 failed"):
        leased.calls(act)
    assert leased.backend.calls == []
    leased.lease.renew(leased.clock.monotonic())
    ((_, left),) = leased.calls(act)
    assert left == min(30.0, seconds), "it goes on as long as the lease is renewed"
    leased.clock.advance(30.0)
    with pytest.raises(LeaseOver):
        leased.calls(act)


@pytest.mark.parametrize(("name", "act", "seconds"), ACTS)
def test_it_begins_with_time_enough_and_is_cut_off_with_the_lease(
    leased: Leased, name: str, act: Callable[[BMM, Device], object], seconds: float
) -> None:
    leased.lease.renew(leased.clock.monotonic())
    leased.clock.advance(30.0 - min(15.0, seconds))
    ((_, left),) = leased.calls(act)
    assert left == min(15.0, seconds)

    def take_long(deadline: Deadline) -> None:
        leased.lease.end()
        assert deadline.expired

    leased.backend.during = take_long
    leased.calls(act)


@pytest.mark.parametrize(("name", "act", "seconds"), ACTS)
def test_it_does_not_begin_with_less(
    leased: Leased, name: str, act: Callable[[BMM, Device], object], seconds: float
) -> None:
    leased.lease.renew(leased.clock.monotonic())
    leased.clock.advance(30.0 - min(15.0, seconds) + 0.1)
    with pytest.raises(LeaseOver):
        leased.calls(act)


def test_what_fails_because_it_was_cut_off_is_nobody_elses_fault(leased: Leased) -> None:
    """Neither the device's nor its relay board's."""

    def fail(deadline: Deadline) -> None:
        raise LaneError("panda-0001", "power cycle", "it does not answer", culprit="relay board 1")

    def fail_at_the_end(deadline: Deadline) -> None:
        leased.clock.advance(30.0)
        fail(deadline)

    leased.lease.renew(leased.clock.monotonic())
    leased.backend.during = fail
    with pytest.raises(LaneError):
        leased.bmm.power_cycle(device())
    leased.backend.during = fail_at_the_end
    with pytest.raises(LeaseOver):
        leased.bmm.power_cycle(device())


# Devices that another server is about to get


def test_a_device_is_not_let_go_while_something_is_done_to_it(leased: Leased) -> None:
    leased.lease.renew(leased.clock.monotonic())
    answers: list[bool] = []
    leased.backend.during = lambda deadline: answers.append(leased.bmm.let_go(device().id))
    for _, act, _ in ACTS:
        leased.calls(act)
    assert answers == [False] * len(ACTS)
    assert leased.bmm.let_go(device().id)


@pytest.mark.parametrize(("name", "act", "seconds"), ACTS)
def test_nothing_is_done_to_a_device_that_was_let_go(
    leased: Leased, name: str, act: Callable[[BMM, Device], object], seconds: float
) -> None:
    leased.lease.renew(leased.clock.monotonic())
    assert leased.bmm.let_go(device().id)
    assert leased.bmm.let_go(device().id), "however often"
    assert leased.bmm.let_go(2)
    with pytest.raises(LeaseOver):
        leased.calls(act)
    assert leased.backend.calls == []
    leased.bmm.hold([device().id])
    assert len(leased.calls(act)) == 1


def test_an_operation_that_failed_keeps_no_device(leased: Leased) -> None:
    with pytest.raises(LeaseOver):
        leased.bmm.power_cycle(device())
    assert leased.bmm.let_go(device().id)


@pytest.mark.parametrize("look", LOOKS)
def test_looking_needs_no_lease(leased: Leased, look: Callable[[BMM, Device], object]) -> None:
    assert len(leased.calls(look)) == 1


def test_a_relay_board_that_others_need_now_is_left_alone(leased: Leased) -> None:
    with pytest.raises(LeaseOver, match="test of recorded:1 failed"):
        leased.bmm.test_power(leased.bmm.power_lane(device()))
    leased.lease.renew(leased.clock.monotonic())
    leased.bmm.test_power(leased.bmm.power_lane(device()))
    assert leased.backend.calls == [("test", 10.0)]


@pytest.mark.parametrize(("name", "act", "seconds"), ACTS)
def test_a_server_of_no_group_needs_none_either(
    sqlite_url: str, name: str, act: Callable[[BMM, Device], object], seconds: float
) -> None:
    database = open_database(sqlite_url)
    alone = Leased(database, takeover_after=None)
    alone.clock.advance(1e6)
    ((_, left),) = alone.calls(act)
    assert left == seconds
    database.dispose()


# Devices in a cloud


def test_a_server_that_stops_lets_its_launchers_finish(leased: Leased) -> None:
    leased.bmm.finish(3.0)
    assert leased.backend.calls == [("finish", 3.0)]
