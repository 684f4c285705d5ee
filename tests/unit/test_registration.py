# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What agents say when they register, and what becomes of it in the database."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, insert

from mozpool import config
from mozpool.bmm.interfaces import NO_MAC
from mozpool.bmm.registration import REPEAT, TRIES, Agent, Devices, Registrar, name_of, parse
from mozpool.bmm.service import target
from mozpool.clock import Clock, SimClock
from mozpool.db import devices, logs, tables
from mozpool.db.devices import Device
from mozpool.db.engine import Database
from mozpool.errors import BadInput, Conflict, DatabaseAway, Forbidden, MozpoolError
from mozpool.logbook import Logbook
from tests.conftest import open_database

START = Clock().now().replace(microsecond=0)
"""Now: on MySQL there are partitions of the logs for these days only."""

ANDROID = (
    b"register NAME=panda-0001&IPADDR=10.1.0.5&CMDPORT=20701&DATAPORT=20700&OS=Android+4.0.4+%28IMM76I%29"
    b"&SCRNWIDTH=1024&SCRNHEIGHT=768&BPP=32&MEMORY=714+MB&HARDWARE=panda&POOL=default"
)
LINUX = b"IPADDR=0.0.0.0%3A20701&NAME=SUTAgent"


class Contended:
    """The table of devices, whose rows somebody else writes, so many times, between our reading and our writing."""

    by_name = staticmethod(devices.by_name)
    by_address = staticmethod(devices.by_address)
    own_backends = staticmethod(devices.own_backends)
    insert_device = staticmethod(devices.insert_device)

    def __init__(self, times: int) -> None:
        self.times = times

    def write(self, conn: Connection, device_id: int, version: int, values: Mapping[str, Any]) -> bool:
        if self.times > 0:
            self.times -= 1
            version -= 1
        return devices.write(conn, device_id, version, values)


# Rows


@dataclass
class Lab:
    """Two imaging servers; ``panda-0001`` is the first one's, ``other-0001`` the second one's."""

    database: Database
    clock: SimClock
    logbook: Logbook

    def registrar(self, table: Devices | None = None, **keys: Any) -> Registrar:
        values = {"accept": (ip_network("10.1.0.0/16"), ip_network("fd99::/64")), **keys}
        return Registrar(
            config.Registration(listen="127.0.0.1", **values),
            table or devices,
            self.database,
            self.logbook,
            self.clock,
            random.Random(1),
            1,
        )

    def register(self, line: bytes, source: str, **keys: Any) -> None:
        self.registrar(**keys).register(line, ip_address(source))

    def add(self, name: str, address: str | None, server: int = 1, **columns: Any) -> int:
        values = {
            "fqdn": f"{name}.example.com",
            "inventory_id": 0,
            "mac_address": "aabbcc000001",
            "state": "ready",
            **columns,
        }
        rng = random.Random(1)
        return self.database.run(
            lambda conn: devices.insert_device(
                conn, rng, name=name, address=address, imaging_server_id=server, **values
            )
        )

    def device(self, name: str) -> Device:
        with self.database.read() as conn:
            found = devices.by_name(conn, name)
        assert found is not None
        return found

    def own(self, name: str) -> dict[str, Any]:
        device = self.device(name)
        with self.database.read() as conn:
            return devices.own_backends(conn, device.id)

    def names(self) -> list[str]:
        with self.database.read() as conn:
            return devices.names(conn)

    def log(self, name: str) -> list[str]:
        device = self.device(name)
        self.logbook.flush()
        with self.database.read() as conn:
            return [line.message for line in logs.latest(conn, tables.device_logs, device.id)]

    def refuses(self, line: bytes, source: str, reason: str, **keys: Any) -> None:
        """It is refused for this reason, and nothing is written."""
        before = [self.device(name) for name in self.names()]
        with pytest.raises(MozpoolError, match=reason) as caught:
            self.register(line, source, **keys)
        assert isinstance(caught.value, BadInput | Conflict | Forbidden)
        assert [self.device(name) for name in self.names()] == before


def made(database: Database) -> Lab:
    clock = SimClock(START)
    servers = [{"fqdn": "server-1.example.com"}, {"fqdn": "server-2.example.com"}]
    database.run(lambda conn: conn.execute(insert(tables.imaging_servers), servers))
    lab = Lab(database, clock, Logbook(database, clock))
    lab.add("panda-0001", "10.1.0.5")
    lab.add("other-0001", "10.1.0.9", server=2)
    return lab


@pytest.fixture
def lab(database: Database) -> Lab:
    return made(database)


@pytest.fixture
def lite(sqlite_url: str) -> Iterator[Lab]:
    """On SQLite alone, where the database decides nothing."""
    database = open_database(sqlite_url)
    yield made(database)
    database.dispose()


def android(name: str, address: str, port: int = 20701) -> bytes:
    return f"register NAME={name}&IPADDR={address}&CMDPORT={port}&DATAPORT=20700&OS=Android".encode()


# What agents say


def test_an_android_agents_line_is_read():
    assert parse(ANDROID) == Agent("panda-0001", ip_address("10.1.0.5"), 20701, "Android 4.0.4 (IMM76I)")


def test_the_linux_agents_line_is_read():
    assert parse(LINUX) == Agent(None, None, 20701, None)


def test_the_name_that_agents_have_by_default_is_none():
    assert parse(b"register NAME=SUTAgent&IPADDR=10.1.0.5") == Agent(None, ip_address("10.1.0.5"), None, None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", (None, None)),
        ("0.0.0.0", (None, None)),
        ("224.0.0.1", (None, None)),
        ("nonsense", (None, None)),
        ("a%3Ab%3Ac", (None, None)),
        ("10.1.0.5%3A20799", ("10.1.0.5", 20799)),
        ("%3A%3A", (None, None)),
        ("fd99%3A%3A5", ("fd99::5", None)),
        ("%5Bfd99%3A%3A5%5D%3A20799", ("fd99::5", 20799)),
        ("%3A%3Affff%3A10.1.0.5", ("10.1.0.5", None)),
    ],
)
def test_an_address_is_one_that_a_single_machine_can_have(text: str, expected: tuple[str | None, int | None]):
    agent = parse(f"register NAME=a&IPADDR={text}".encode())
    assert (agent.address and str(agent.address), agent.port) == expected


@pytest.mark.parametrize(
    ("line", "named"),
    [
        (b"", "registration"),
        (b"register ", "registration"),
        (b"register NAME", "registration"),
        (b"GET / HTTP/1.1", "registration"),
        (b"\xff\xfe\x00\x01&=\x80", "registration"),
        (b"IPADDR=10.1.0.5&CMDPORT=20701", "registration"),
        (b"REGISTER NAME=a&IPADDR=10.1.0.5", "registration"),
        (b"IPADDR=10.1.0.5&NAME=panda-0001", "NAME"),
        (b"IPADDR=0.0.0.0%3A20701&NAME=SUTAg", "NAME"),
        (b"register NAME=", "NAME"),
        (b"register NAME=any", "NAME"),
        (b"register NAME=17", "NAME"),
        (b"register NAME=-a", "NAME"),
        (b"register NAME=a+b", "NAME"),
        (b"register NAME=a%00b", "NAME"),
        (b"register NAME=a%0Ab", "NAME"),
        (b"register NAME=a%FFb", "NAME"),
        (b"register NAME=a\xffb", "NAME"),
        (b"register NAME=a%zz", "NAME"),
        (b"register NAME=" + b"a" * 33, "NAME"),
        (b"register NAME=" + b"%61" * 1000, "NAME"),
        (b"register NAME=a&NAME=b", "registration"),
        (b"register NAME=a&N%41ME=a", "registration"),
        (b"register NAME=a&CMDPORT=", "CMDPORT"),
        (b"register NAME=a&CMDPORT=0", "CMDPORT"),
        (b"register NAME=a&CMDPORT=65536", "CMDPORT"),
        (b"register NAME=a&CMDPORT=-1", "CMDPORT"),
        (b"register NAME=a&CMDPORT=%D9%A1", "CMDPORT"),
        (b"register NAME=a&CMDPORT=" + b"9" * 4000, "CMDPORT"),
        (b"register NAME=a&IPADDR=10.1.0.5%3A70000", "IPADDR"),
    ],
)
def test_what_is_no_registration_is_refused_by_the_name_of_what_is_wrong(line: bytes, named: str):
    with pytest.raises(BadInput, match=f"^{named}: ") as caught:
        parse(line)
    assert caught.value.field == named


@given(
    st.one_of(
        st.binary(max_size=300),
        st.binary(max_size=300).map(lambda rest: b"register " + rest),
        st.lists(
            st.tuples(
                st.sampled_from([b"NAME", b"IPADDR", b"CMDPORT", b"OS", b"%4eAME", b"", b"\0"]),
                st.one_of(
                    st.binary(max_size=40), st.sampled_from([b"SUTAgent", b"p-1", b"10.1.0.5", b"[::1]:1", b"%"])
                ),
            ),
            max_size=6,
        ).map(lambda fields: b"register " + b"&".join(key + b"=" + value for key, value in fields)),
    )
)
def test_no_line_breaks_the_parser(line: bytes):
    try:
        agent = parse(line)
    except BadInput as error:
        assert error.message.isprintable()
        assert len(error.message) < 300
        return
    assert agent.name is None or (agent.name.isascii() and 1 <= len(agent.name) <= 32)
    assert agent.port is None or 1 <= agent.port <= 65535
    assert agent.address is None or not (agent.address.is_unspecified or agent.address.is_multicast)
    assert agent.os is None or (agent.os.isprintable() and len(agent.os) <= 80)


def test_what_is_said_of_the_system_is_made_fit_for_a_log():
    agent = parse(b"register NAME=a&OS=" + b"x%0A%00%1b%5B31m%FF" + b"y" * 200)
    assert agent.os is not None
    assert agent.os.startswith("x???[31m\ufffd")
    assert len(agent.os) == 80


@pytest.mark.parametrize(
    "address", ["10.0.0.5", "255.255.255.255", "fd99::1", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"]
)
def test_the_name_that_a_device_gets_is_a_name(address: str):
    name = name_of(ip_address(address))
    assert parse(f"register NAME={name}".encode()).name == name


# Known devices


def test_a_known_device_is_seen(lab: Lab):
    before = lab.device("panda-0001")
    lab.clock.advance(1.5)
    lab.register(ANDROID, "10.1.0.5")
    after = lab.device("panda-0001")
    assert after.last_seen == START + timedelta(seconds=1.5)
    assert (after.address, after.version, after.attempt) == ("10.1.0.5", before.version + 1, before.attempt)
    assert (after.state, after.state_timeout, after.token) == (before.state, before.state_timeout, before.token)
    assert lab.log("panda-0001") == ["registered from 10.1.0.5: OS Android 4.0.4 (IMM76I), agent port 20701"]
    assert len(lab.names()) == 2


def test_a_linux_agent_is_known_by_the_address_that_it_calls_from(lab: Lab):
    lab.register(LINUX, "10.1.0.5")
    assert lab.device("panda-0001").last_seen == START
    assert lab.log("panda-0001") == ["registered from 10.1.0.5: OS unknown, agent port 20701"]
    assert len(lab.names()) == 2


def test_a_known_device_may_call_from_its_own_address_wherever_that_is(lab: Lab):
    lab.register(ANDROID, "10.1.0.5", accept=())
    lab.register(LINUX, "10.1.0.5", accept=())
    assert lab.device("panda-0001").last_seen == START


def test_what_it_says_of_its_address_plays_no_part_at_its_own(lab: Lab):
    lab.register(android("panda-0001", "10.0.2.15"), "10.1.0.5")
    assert (lab.device("panda-0001").address, lab.device("panda-0001").last_seen) == ("10.1.0.5", START)


def test_a_known_device_brings_its_new_address(lab: Lab):
    lab.register(android("panda-0001", "10.1.0.77"), "10.1.0.77")
    device = lab.device("panda-0001")
    assert (device.address, target(device).address, device.last_seen) == ("10.1.0.77", "10.1.0.77", START)
    assert lab.log("panda-0001") == [
        "registered from 10.1.0.77: OS Android, agent port 20701; its address was 10.1.0.5"
    ]


def test_a_device_that_was_known_by_its_host_name_gets_an_address(lab: Lab):
    lab.add("panda-0002", None)
    lab.register(android("panda-0002", "10.1.0.6"), "10.1.0.6")
    assert (lab.device("panda-0002").address, lab.device("panda-0002").fqdn) == ("10.1.0.6", "panda-0002.example.com")


@pytest.mark.parametrize("said", ["0.0.0.0", "127.0.0.1", "127.0.1.1", "", "null", "224.0.0.1"])
def test_an_agent_that_does_not_know_its_address_changes_none(lite: Lab, said: str):
    lite.register(android("panda-0001", said), "10.1.0.77")
    assert (lite.device("panda-0001").address, lite.device("panda-0001").last_seen) == ("10.1.0.5", START)


def test_a_stranger_cannot_redirect_a_known_device(lite: Lab):
    lite.refuses(android("panda-0001", "10.9.0.1"), "10.9.0.1", "in no network of .* accept")
    lite.refuses(android("panda-0001", "10.1.0.77"), "10.9.0.1", "in no network of .* accept")
    lite.refuses(android("panda-0001", "10.1.0.5"), "10.9.0.1", "in no network of .* accept")
    lite.refuses(android("panda-0001", "10.1.0.78"), "10.1.0.77", r"gives 10\.1\.0\.78 as its address")
    lite.refuses(android("panda-0001", "10.1.0.5"), "10.1.0.77", r"gives 10\.1\.0\.5 as its address")


def test_a_device_cannot_pass_for_another_one(lite: Lab):
    lite.add("panda-0002", "10.1.0.6")
    lite.refuses(android("panda-0001", "10.1.0.6"), "10.1.0.6", "the address of panda-0002")
    lite.refuses(android("panda-0001", "10.1.0.9"), "10.1.0.9", "the address of other-0001")
    lite.refuses(android("a-new-name", "10.1.0.6"), "10.1.0.6", "the address of panda-0002")


def test_a_linux_agent_at_the_address_of_two_devices_is_refused(lite: Lab):
    lite.add("panda-0002", "10.1.0.5")
    lite.refuses(LINUX, "10.1.0.5", "the address of panda-0001, panda-0002")


def test_a_device_of_another_imaging_server_is_refused(lab: Lab):
    for line in (android("other-0001", "10.1.0.9"), LINUX):
        lab.refuses(line, "10.1.0.9", r"other-0001, .*, is a device of server-2\.example\.com")
    lab.refuses(android("other-0001", "10.1.0.77"), "10.1.0.77", "is a device of")


def test_a_device_registers_at_its_own_server_and_at_the_one_that_has_taken_it_over(lab: Lab):
    """It is set up to call one of them, and that is heard by whichever answers at that address."""
    for name, address, server in (("guest-0001", "10.1.0.21", 2), ("lent-0001", "10.1.0.22", 1)):
        lab.add(name, address, server=server, owner_id=3 - server)
        before = lab.device(name)
        lab.register(android(name, address), address)
        after = lab.device(name)
        assert after.last_seen is not None
        assert (after.owner_id, after.imaging_server_id, after.epoch) == (3 - server, server, before.epoch)


def test_another_port_of_the_agent_is_used_from_then_on(lab: Lab):
    lab.database.run(lambda conn: devices.set_attributes(conn, 1, backends='{"probe": "echo"}'))
    lab.register(android("panda-0001", "10.1.0.5", 20799), "10.1.0.5")
    assert lab.own("panda-0001") == {"probe": "echo", "options": {"sut_port": "20799"}}
    assert target(lab.device("panda-0001")).options == {"sut_port": "20799"}
    assert lab.log("panda-0001")[-1].endswith("agent port 20799; its agent's port was 20701")
    lab.clock.advance(60)
    lab.register(LINUX, "10.1.0.5")
    assert lab.own("panda-0001") == {"probe": "echo", "options": {"sut_port": "20701"}}


def test_another_port_keeps_the_options_of_the_hardware_type_and_not_its_backends(lab: Lab):
    values = {"type": "panda", "model": "ES", "backends": '{"probe": "echo", "options": {"socket": "7"}}'}
    lab.database.run(lambda conn: conn.execute(insert(tables.hardware_types), values))
    lab.database.run(lambda conn: devices.set_attributes(conn, 1, hardware_type_id=1))
    lab.register(ANDROID, "10.1.0.5")
    assert lab.own("panda-0001") == {}
    lab.register(android("panda-0001", "10.1.0.5", 20799), "10.1.0.5")
    assert lab.own("panda-0001") == {"options": {"socket": "7", "sut_port": "20799"}}
    assert lab.device("panda-0001").backends["probe"] == "echo"


def test_a_port_is_not_believed_where_the_address_is_not(lite: Lab):
    lite.register(android("panda-0001", "0.0.0.0", 20799), "10.1.0.77")
    assert lite.own("panda-0001") == {}


def test_who_registers_again_and_again_is_written_down_once(lab: Lab):
    registrar = lab.registrar()
    for _ in range(20):
        registrar.register(ANDROID, ip_address("10.1.0.5"))
    version = lab.device("panda-0001").version
    assert len(lab.log("panda-0001")) == 1
    lab.clock.advance(REPEAT.total_seconds())
    registrar.register(ANDROID, ip_address("10.1.0.5"))
    assert (lab.device("panda-0001").version, len(lab.log("panda-0001"))) == (version + 1, 2)


def test_a_clock_that_was_set_back_hides_no_registration(lite: Lab):
    lite.register(ANDROID, "10.1.0.5")
    lite.clock.jump(-3600)
    lite.register(ANDROID, "10.1.0.5")
    assert lite.device("panda-0001").last_seen == START - timedelta(hours=1)


def test_a_row_that_somebody_else_writes_is_read_again(lab: Lab):
    lab.registrar(Contended(TRIES - 1)).register(ANDROID, ip_address("10.1.0.5"))
    assert lab.device("panda-0001").last_seen == START


def test_a_row_that_is_written_all_the_time_is_given_up(lite: Lab):
    with pytest.raises(Conflict, match="panda-0001: its row is written all the time"):
        lite.registrar(Contended(TRIES)).register(ANDROID, ip_address("10.1.0.5"))
    assert lite.device("panda-0001").last_seen is None


# New devices


def test_an_unknown_device_becomes_a_new_one(lab: Lab):
    lab.register(android("tegra-0007", "10.1.0.7"), "10.1.0.7", environment="staging")
    device = lab.device("tegra-0007")
    assert (device.state, device.environment, device.imaging_server_id) == ("new", "staging", 1)
    assert (device.fqdn, device.address, device.last_seen) == ("tegra-0007", "10.1.0.7", START)
    assert (device.inventory_id, device.mac_address, device.relay_info) == (0, NO_MAC, None)
    assert (device.backends, device.hardware_type, device.version, device.attempt) == ({}, None, 0, 0)
    assert lab.log("tegra-0007") == ["new device, registered from 10.1.0.7: OS Android, agent port 20701"]
    with lab.database.read() as conn:
        assert device.id in [row[0] for row in devices.due(conn, 1, lab.clock.now(), 10)]


def test_a_new_device_registers_again_as_itself(lab: Lab):
    for _ in range(2):
        lab.register(android("tegra-0007", "10.1.0.7"), "10.1.0.7")
        lab.clock.advance(60)
    assert len(lab.names()) == 3
    assert lab.device("tegra-0007").last_seen == START + timedelta(seconds=60)


def test_a_linux_agent_at_an_unknown_address_is_named_by_it(lab: Lab):
    for _ in range(2):
        lab.register(b"IPADDR=0.0.0.0%3A20799&NAME=SUTAgent", "10.1.0.8")
        lab.clock.advance(60)
    lab.register(LINUX, "fd99::8")
    assert lab.names()[2:] == ["sut-10-1-0-8", "sut-" + "0" * 27 + "8"]
    device = lab.device("sut-10-1-0-8")
    assert (device.address, target(device).options) == ("10.1.0.8", {"sut_port": "20799"})
    assert lab.device("sut-" + "0" * 27 + "8").address == "fd99::8"


def test_a_new_device_that_does_not_know_its_address_has_the_one_that_it_calls_from(lite: Lab):
    lite.register(android("tegra-0007", "127.0.0.1"), "10.1.0.7")
    assert lite.device("tegra-0007").address == "10.1.0.7"


def test_an_unknown_device_from_elsewhere_is_refused(lite: Lab):
    lite.refuses(android("tegra-0007", "10.9.0.7"), "10.9.0.7", "tegra-0007, which is unknown, .* in no network")
    lite.refuses(android("tegra-0007", "10.1.0.7"), "10.9.0.7", "in no network")
    lite.refuses(android("tegra-0007", "10.1.0.7"), "10.1.0.8", r"gives 10\.1\.0\.7 as its address")
    lite.refuses(LINUX, "10.9.0.7", "an agent without a name, which is unknown")
    lite.refuses(android("tegra-0007", "10.1.0.7"), "10.1.0.7", "in no network", accept=())
    lite.refuses(android("tegra-0007", "fd99::7"), "10.9.0.7", "in no network")


def test_a_generated_name_that_is_taken_is_refused(lite: Lab):
    lite.register(LINUX, "10.1.0.8")
    lite.database.run(lambda conn: devices.set_attributes(conn, 3, address="10.1.0.88"))
    lite.refuses(LINUX, "10.1.0.8", "there is a device sut-10-1-0-8 at another address")


# The database


def test_nothing_is_taken_while_the_database_is_away_and_that_is_logged_once(caplog: pytest.LogCaptureFixture):
    away = open_database("mysql://root@127.0.0.1:9/none")
    lab = Lab(away, SimClock(START), Logbook(away, SimClock(START)))
    registrar = lab.registrar()
    for _ in range(5):
        with pytest.raises(DatabaseAway):
            registrar.register(ANDROID, ip_address("10.1.0.5"))
    with pytest.raises(BadInput):
        registrar.register(b"garbage", ip_address("10.1.0.5"))
    assert [record.message[:23] for record in caplog.records] == ["agents can't register: "]
    away.dispose()


def test_every_outage_is_logged(lite: Lab, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO", "mozpool.registration")
    registrar = lite.registrar()
    away = open_database("mysql://root@127.0.0.1:9/none")
    for line, source, error in ((ANDROID, "10.1.0.5", None), (ANDROID, "10.9.0.5", Forbidden)):
        registrar._database = away
        with pytest.raises(DatabaseAway):
            registrar.register(ANDROID, ip_address("10.1.0.5"))
        registrar._database = lite.database
        if error is None:
            registrar.register(line, ip_address(source))
        else:
            with pytest.raises(error):
                registrar.register(line, ip_address(source))
    words = [record.message.split(":")[0] for record in caplog.records if record.name == "mozpool.registration"]
    assert words == ["agents can't register", "agents can register again"] * 2
    away.dispose()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    line=st.one_of(
        st.binary(max_size=200),
        st.binary(max_size=60).map(lambda rest: ANDROID + b"&" + rest),
        st.sampled_from([ANDROID, LINUX]),
        st.tuples(st.binary(max_size=12), st.binary(max_size=12)).map(
            lambda pair: b"register NAME=" + pair[0] + b"&IPADDR=" + pair[1] + b"&OS=" + pair[0]
        ),
    ),
    source=st.sampled_from(["10.1.0.5", "10.1.0.6", "10.1.0.9", "10.9.0.1", "fd99::1", "fe80::1%1", "127.0.0.1"]),
)
def test_no_line_from_anywhere_breaks_the_registrar_or_harms_a_device(lite: Lab, line: bytes, source: str):
    others = lite.device("other-0001")
    lite.clock.advance(60)
    try:
        lite.register(line, source)
    except (BadInput, Conflict, Forbidden) as error:
        assert error.message.isprintable()
    assert lite.device("other-0001") == others
    assert lite.device("panda-0001").address == "10.1.0.5" or source == "10.1.0.6"
    json.dumps(lite.own("panda-0001"))
