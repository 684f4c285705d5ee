# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""``mozpool-db add-device``: what operators add, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import insert, select

from mozpool.cli.db import main
from mozpool.db import devices, tables
from mozpool.db.engine import Database
from tests.conftest import open_database

Add = Callable[..., Result]

MAC = ("--mac", "aabbccddeeff")


def site(database: Database) -> None:
    """Two imaging servers that were started once, and three hardware types, two of them of one type."""
    types: list[dict[str, str | None]] = [
        {"type": "panda", "model": "ES", "backends": None},
        {"type": "tegra", "model": "250", "backends": None},
        {"type": "tegra", "model": "300", "backends": '{"power": "socket"}'},
    ]
    servers = [{"fqdn": "one.example.com"}, {"fqdn": "two.example.com:8080"}]
    database.run(lambda conn: conn.execute(insert(tables.hardware_types), types))
    database.run(lambda conn: conn.execute(insert(tables.imaging_servers), servers))


def caller(database: Database, folder: Path, fqdn: str = "one.example.com") -> Add:
    config = folder / f"{fqdn}.ini"
    url = database.url.render_as_string(hide_password=False)
    config.write_text(f"[database]\nengine = {url}\n[server]\nfqdn = {fqdn}\n")
    return lambda *words: CliRunner().invoke(
        main, ["--config", str(config), "add-device", *words], prog_name="mozpool-db"
    )


@pytest.fixture
def add(database: Database, tmp_path: Path) -> Add:
    """The command, once on SQLite and once on MariaDB."""
    site(database)
    return caller(database, tmp_path)


@pytest.fixture
def lite(sqlite_url: str, tmp_path: Path):
    """The command on SQLite, and its database."""
    database = open_database(sqlite_url)
    site(database)
    yield caller(database, tmp_path), database
    database.dispose()


def found(database: Database, name: str) -> devices.Device:
    with database.read() as conn:
        device = devices.by_name(conn, name)
    assert device is not None
    return device


def rows(database: Database) -> list[str]:
    with database.read() as conn:
        return devices.names(conn)


def test_a_device_with_all_that_it_may_have(add: Add, database: Database):
    options = (
        "--mac AA:BB:CC:DD:EE:0F --address 10.1.2.3 --type tegra --model 250 --relay-info relay-7:2101:bank1:relay3"
    )
    more = (
        "--environment staging --labels pool=b2g,android=4.0 --power proxr --probe echo --server two.example.com:8080"
    )
    done = add("panda-0001", *options.split(), *more.split())
    assert (done.exit_code, done.output) == (0, "Added panda-0001 of two.example.com:8080, in state new.\n")
    device = found(database, "panda-0001")
    assert (device.fqdn, device.address, device.mac_address) == ("panda-0001", "10.1.2.3", "aabbccddee0f")
    assert (device.hardware_type, device.hardware_model) == ("tegra", "250")
    assert (device.relay_info, device.environment) == ("relay-7:2101:bank1:relay3", "staging")
    assert (device.imaging_server, device.state) == ("two.example.com:8080", "new")
    assert device.backends == {"power": "proxr", "probe": "echo"}
    with database.read() as conn:
        assert devices.labels_of(conn, [device.id]) == {device.id: {"pool": "b2g", "android": "4.0"}}
        # What the server looks at first.
        due = devices.due(conn, device.imaging_server_id, database.clock.now(), 10)
    assert [row_id for row_id, _attempt, _deadline in due] == [device.id]


def test_a_device_with_the_least(add: Add, database: Database):
    assert add("phone-1", *MAC).exit_code == 0
    device = found(database, "phone-1")
    assert (device.fqdn, device.address, device.imaging_server) == ("phone-1", "phone-1", "one.example.com")
    assert (device.environment, device.hardware_type, device.relay_info) == ("none", None, None)
    assert device.backends == {}


def test_a_host_name_is_the_devices_own(lite):
    add, database = lite
    assert add("panda-1", *MAC, "--address", "panda-1.example.com", "--type", "panda").exit_code == 0
    device = found(database, "panda-1")
    assert (device.fqdn, device.address, device.hardware_model) == ("panda-1.example.com", "panda-1.example.com", "ES")


def test_relays_are_checked_where_the_power_backend_is_ours(lite):
    add, database = lite
    assert add("tegra-1", *MAC, "--type", "tegra", "--model", "300", "--relay-info", "socket 7").exit_code == 0
    done = add("tegra-2", *MAC, "--type", "tegra", "--model", "300", "--power", "proxr", "--relay-info", "socket 7")
    assert done.exit_code == 2
    assert rows(database) == ["tegra-1"]


def test_devices_are_drawn_in_random_order(lite):
    add, database = lite
    for number in range(4):
        add(f"panda-{number}", *MAC)
    with database.read() as conn:
        numbers = list(conn.scalars(select(tables.devices.c.shuffle)))
    assert len(set(numbers)) > 1
    assert all(0 <= number < devices.SHUFFLE_RANGE for number in numbers)


def test_a_name_that_is_taken_is_refused_and_changes_nothing(add: Add, database: Database):
    assert add("panda-1", *MAC, "--labels", "pool=b2g").exit_code == 0
    before = found(database, "panda-1")
    done = add("panda-1", "--mac", "001122334455", "--labels", "pool=mobile")
    assert done.exit_code == 2
    assert done.output.endswith("Error: NAME: 'panda-1' is not free: there is a device of this name\n")
    assert found(database, "panda-1") == before
    with database.read() as conn:
        assert devices.labels_of(conn) == {before.id: {"pool": "b2g"}}


def test_a_name_that_differs_in_case_only_is_taken(add: Add, database: Database):
    assert add("panda-1", *MAC).exit_code == 0
    done = add("Panda-1", "--mac", "001122334455")
    assert done.exit_code == 1
    assert done.output == "Error: device 'Panda-1' can't be added: there is 'panda-1'\n"
    assert rows(database) == ["panda-1"]


WRONG = [
    (("7", *MAC), "NAME: '7' is not 1 to 32 letters, digits,"),
    (("any", *MAC), "NAME: 'any' is not "),
    (("a/b", *MAC), "NAME: 'a/b' is not "),
    (("x" * 33, *MAC), "NAME: "),
    (("x", "--mac", "aabbccddeef"), "--mac: 'aabbccddeef' is not a MAC address such as "),
    (("x", "--mac", "aa:bb:cc-dd:ee:ff"), "--mac: 'aa:bb:cc-dd:ee:ff' is not "),
    (("x", *MAC, "--address", "10.1.2.300"), "--address: '10.1.2.300' is not an IP address or a host name"),
    (("x", *MAC, "--address", "a b"), "--address: 'a b' is not "),
    (("x", *MAC, "--type", "nexus"), "--type: 'nexus' is not a hardware type; there are panda, tegra"),
    (("x", *MAC, "--type", "tegra"), "--model: is missing; tegra has 250, 300"),
    (("x", *MAC, "--type", "tegra", "--model", "ES"), "--model: 'ES' is not a model of tegra; there are 250, 300"),
    (("x", *MAC, "--model", "ES"), "--model: 'ES' is not of any use without --type"),
    (("x", *MAC, "--relay-info", "relay-7:bank5:relay1"), "--relay-info: 'relay-7:bank5:relay1' is not HOST[:PORT]:"),
    (("x", *MAC, "--environment", "any"), "--environment: 'any' is not 1 to 32 characters other than 'any'"),
    (("x", *MAC, "--environment", ""), "--environment: '' is not "),
    (("x", *MAC, "--environment", "e" * 33), "--environment: "),
    (("x", *MAC, "--labels", "pool"), "--labels: 'pool' is not NAME=VALUE"),
    (("x", *MAC, "--labels", "a=1,a=2"), "--labels: 'a=1,a=2' is not "),
    (("x", *MAC, "--labels", "=1"), "--labels: '=1' is not "),
    (("x", *MAC, "--labels", f"a={'v' * 191}"), "--labels: "),
    (("x", *MAC, "--power", "magic"), "--power: 'magic' is not a power backend; there "),
    (("x", *MAC, "--boot", "magic"), "--boot: 'magic' is not a boot backend; there "),
    (("x", *MAC, "--probe", "magic"), "--probe: 'magic' is not a probe backend; there are adb, echo, fping"),
    (("x", *MAC, "--agent", "magic"), "--agent: 'magic' is not an agent backend; there "),
    (("x", *MAC, "--server", "three"), "--server: 'three' is not an imaging server that was started once; there are"),
    (("x",), "Missing option '--mac'"),
    (MAC, "Missing argument 'NAME'"),
]


@pytest.mark.parametrize(("words", "complaint"), WRONG)
def test_a_wrong_value_is_named_with_what_was_expected(lite, words, complaint):
    add, database = lite
    done = add(*words)
    assert done.exit_code == 2, done.output
    assert f"Error: {complaint}" in done.output
    assert rows(database) == []


def test_a_server_that_was_never_started_has_no_devices(lite, tmp_path):
    _add, database = lite
    done = caller(database, tmp_path, fqdn="127.0.0.1")("x", *MAC)
    assert done.exit_code == 2
    assert "Error: [server] fqdn: '127.0.0.1' is not an imaging server that was started once; " in done.output
    assert rows(database) == []


@pytest.mark.parametrize("bare_database", ["sqlite"], indirect=True)
def test_a_database_that_is_not_up_to_date_is_left_alone(bare_database: Database, tmp_path: Path):
    bare_database.ping()
    done = caller(bare_database, tmp_path)("x", *MAC)
    assert done.exit_code == 1
    assert "is not up to date" in done.output
