# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""``mozpool-inventorysync`` from a server that speaks as Mozilla's inventory does into both databases."""

from __future__ import annotations

import json
import os
import pwd
import random
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import delete, insert, select, update

from mozpool import config
from mozpool.cli.common import registry
from mozpool.cli.inventorysync import main
from mozpool.clock import Clock
from mozpool.db import audit, claims, inventory, jobs, schema, tables
from mozpool.db.engine import Database
from mozpool.db.servers import Presence, say_here
from mozpool.errors import Conflict
from mozpool.fakes.inventory import FAULTS, FakeInventory, system
from mozpool.lifeguard.inventory.plan import RESTING, plan
from mozpool.lifeguard.inventory.sources import source_of
from mozpool.lifeguard.inventory.sync import JOB, InventorySync, carry_out
from mozpool.logbook import Logbook
from tests.mariadb import MariaDB

DEVICES = tables.devices
SECRETS = ("s3cret",)


def host(number: int, **changes: Any) -> dict[str, Any]:
    """A host of the inventory, 14 to a relay board and ten boards to an imaging server."""
    board, relay = divmod(number - 1, 14)
    usual: dict[str, Any] = {
        "mac": f"02:00:00:{number >> 16 & 255:02x}:{number >> 8 & 255:02x}:{number & 255:02x}",
        "server": f"imaging{board // 40 + 1}.example.com",
        "relay": f"relay-{board + 1}.example.com:bank{relay // 8 + 1}:relay{relay % 8 + 1}",
        "model": 1 + number % 2,
    }
    name = changes.pop("hostname", f"panda-{number:04}.example.com")
    return system(number, name, **usual | changes)


class Site:
    """A pool, an inventory and the command."""

    def __init__(self, database: Database, inventory: FakeInventory, folder: Path, mariadb: Callable[[], MariaDB]):
        self.database = database
        self.inventory = inventory
        self.clock = Clock()
        self._mariadb = mariadb
        self.config = folder / "config.ini"
        self.write_config()

    def write_config(self, **keys: str) -> None:
        """Read Mozilla's inventory, with these keys of [inventory] besides or instead."""
        url = self.database.url.render_as_string(hide_password=False)
        usual = {"url": self.inventory.url, "username": "mozpool", "password": "s3cret", "timeout": "5"}
        lines = "".join(f"{key} = {value}\n" for key, value in {**usual, **keys}.items())
        head = f"[database]\nengine = {url}\n[server]\nfqdn = imaging1.example.com\n[inventory]\n"
        self.config.write_text(head + lines)

    def run(self, *arguments: str, status: int = 0) -> Result:
        done = CliRunner().invoke(main, ["--config", str(self.config), *arguments])
        assert done.exit_code == status, done.output
        assert not isinstance(done.exception, Exception) or isinstance(done.exception, SystemExit)
        assert not any(secret in done.output for secret in SECRETS)
        return done

    def dump(self) -> str:
        """All that is in the database, as its own program tells it."""
        if self.database.dialect == "sqlite":
            with closing(sqlite3.connect(str(self.database.url.database))) as connection:
                return "\n".join(connection.iterdump())
        name = str(self.database.url.database)
        return self._mariadb().client("mariadb-dump", "--skip-dump-date", "--skip-comments", "--order-by-primary", name)

    def rename(self, number: int, name: str, **changes: Any) -> None:
        """Let the inventory call a host otherwise."""
        del self.inventory.systems[f"panda-{number:04}.example.com"]
        self.inventory.put(host(number, hostname=f"{name}.example.com", **changes))

    def write(self, *statements: Any) -> None:
        def work(conn: Any) -> None:
            for statement in statements:
                conn.execute(statement)

        self.database.run(work)

    def change(self, name: str, **columns: Any) -> None:
        self.write(update(DEVICES).where(DEVICES.c.name == name).values(version=DEVICES.c.version + 1, **columns))

    def rows(self) -> dict[str, Any]:
        with self.database.read() as conn:
            return {row.name: row for row in conn.execute(select(DEVICES).order_by(DEVICES.c.id))}

    def servers(self) -> dict[str, int]:
        with self.database.read() as conn:
            found = conn.execute(select(tables.imaging_servers.c.fqdn, tables.imaging_servers.c.id))
            return {row[0]: row[1] for row in found}

    def column(self, column: Any) -> list[Any]:
        with self.database.read() as conn:
            return sorted(conn.scalars(select(column)))

    def lend(self, name: str) -> int:
        """Let somebody have a device; answers the claim's id."""
        now = self.clock.now()
        row = self.rows()[name]

        def work(conn: Any) -> int:
            key = conn.execute(
                insert(tables.requests).values(
                    imaging_server_id=row.imaging_server_id,
                    requested_device=name,
                    assignee="me@example.com",
                    expires=now + timedelta(hours=1),
                    state="ready",
                    state_counters="{}",
                )
            ).inserted_primary_key
            conn.execute(update(DEVICES).where(DEVICES.c.id == row.id).values(state="ready"))
            return claims.take(conn, request_id=key[0], device_id=row.id, device_version=row.version, now=now)

        return self.database.run(work)

    def sync(self, **changes: Any) -> InventorySync:
        """The same without the command around it."""
        settings = config.load(self.config)
        if changes:
            settings = replace(settings, server=replace(settings.server, **changes))
        source = source_of(settings.inventory)
        logbook = Logbook(self.database, self.clock)
        return InventorySync(
            source, self.database, self.clock, random.Random(1), settings, registry(), logbook, by_hand=True
        )

    def job(self) -> jobs.Job | None:
        with self.database.read() as conn:
            return jobs.get(conn, JOB)


@pytest.fixture
def site(database: Database, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Site]:
    with FakeInventory() as fake:
        yield Site(database, fake, tmp_path, lambda: request.getfixturevalue("mariadb"))


@pytest.fixture
def lab(site: Site) -> Site:
    """Twenty devices that are free."""
    site.inventory.put(*(host(number) for number in range(1, 21)))
    site.run("--ship-it")
    site.write(update(DEVICES).values(state="ready", version=DEVICES.c.version + 1))
    return site


# All at once


def test_five_thousand_hosts_are_read_in_seconds_and_again_without_a_change(site: Site):
    fake = site.inventory
    fake.put(*(host(number) for number in range(1, 5001)))
    fake.put(
        host(6001, status=3, mac="02:00:00:00:00:01"),
        host(6002, relay=None),
        host(6003, server=None),
        host(6004, mac=None),
        host(6005, hostname="spare-1.elsewhere.example.com", status=2, relay="10.0.0.5:2999:bank4:relay8"),
        {"pk": 6006, "hostname": "rack-7.example.com"},
    )
    assert "5001 of 5001 devices would change" in site.run(status=1).output
    assert site.rows() == {}
    begun = time.monotonic()
    said = site.run("--ship-it").output
    first = time.monotonic() - begun
    assert said.splitlines()[-1] == "5001 added, 5 skipped, 359 relay boards changed"
    assert len([path for path in fake.asked if "export" in path]) == 2
    assert len(fake.asked) == 2 * (1 + 3 + 2)
    before = site.rows()
    begun = time.monotonic()
    assert site.run().output == ""
    again = time.monotonic() - begun
    print(f"\n{site.database.dialect}: {first:.1f} s, again {again:.1f} s")
    assert max(first, again) < 60
    assert site.rows() == before
    assert len(before) == 5001
    row = before["panda-5000"]
    assert (row.fqdn, row.inventory_id, row.mac_address) == ("panda-5000.example.com", 5000, "020000001388")
    assert (row.state, row.environment, row.relay_info) == ("new", "none", "relay-358.example.com:bank1:relay2")
    assert row.state_timeout is None
    assert site.column(tables.relay_boards.c.fqdn)[0] == "10.0.0.5:2999"
    assert site.column(tables.hardware_types.c.type) == ["PandaBoard", "Tegra"]
    # Everything that may become of a host, in one go.
    for number in range(1, 41):
        del fake.systems[f"panda-{number:04}.example.com"]
    for number in range(41, 81):
        fake.put(host(number, mac=f"06:00:00:00:00:{number:02x}"))
    pairs = [(number, number + 1) for number in range(81, 121, 2)]
    for one, other in pairs:
        fake.put(host(one, hostname=f"panda-{other:04}.example.com"))
        fake.put(host(other, hostname=f"panda-{one:04}.example.com"))
    fake.put(*(host(number, server="imaging99.example.com") for number in range(141, 155)))
    fake.put(*(host(number) for number in range(7001, 7041)))
    assert "40 added, 94 updated, 40 removed, 4867 unchanged, 5 skipped" in site.run("-v").output
    after = site.rows()
    assert len(after) == 5001
    assert after["panda-0081"].id == before["panda-0082"].id
    assert after["panda-0060"].mac_address == "06000000003c"
    assert after["panda-0141"].imaging_server_id == site.servers()["imaging99.example.com"]
    assert "5001 unchanged" in site.run("--verbose").output
    assert site.rows() == after


# What is wrong changes nothing


def spoiled() -> dict[str, Callable[[FakeInventory], None]]:
    """Each bad answer."""

    def fault(name: str, where: str = "/en-US/bulk_action/") -> Callable[[FakeInventory], None]:
        def spoil(fake: FakeInventory) -> None:
            fake.fault, fake.fault_in = name, where

        return spoil

    def put(*hosts: dict[str, Any]) -> Callable[[FakeInventory], None]:
        return lambda fake: fake.put(*hosts)

    found = {f"export: {name}": fault(name) for name in FAULTS}
    lookups = "/en-US/core/api/v1_core/systemstatus/", "/en-US/core/api/v1_core/servermodel/"
    found |= {f"{path[22:28]}: {name}": fault(name, path) for path in lookups for name in ("error", "silence", "cut")}
    return found | {
        "two of one name": put(host(30), host(31, hostname="panda-0030.elsewhere.example.com")),
        "two of one MAC address": put(
            host(30), host(31, mac=host(30)["staticreg_set"]["nic0"]["hwadapter_set"]["hw0"]["mac"])
        ),
        "two of one id": put(host(30), host(30, hostname="other.example.com", mac="060000000001")),
        "a relay board with two servers": put(host(30, relay="relay-1.example.com:bank4:relay1", server="imaging9")),
        "a MAC address that is none": put(host(30, mac="02:00")),
        "a relay that is none": put(host(30, relay="relay-1.example.com:bank5:relay1")),
        "a name that is too long": put(host(30, hostname=f"{'x' * 33}.example.com")),
        "a value of another kind": put(host(30, status="production")),
        "an unknown status": put(host(30, status=77)),
        "an unknown model": put(host(30, model=77)),
        "too many changes": put(*(host(number) for number in range(30, 36))),
        "nothing at all": lambda fake: fake.systems.clear(),
    }


def test_each_bad_answer_leaves_the_database_byte_identical(lab: Site):
    lab.lend("panda-0007")
    lab.write_config(timeout="0.7")
    fake = lab.inventory
    systems = dict(fake.systems)
    before = lab.dump()
    for what, spoil in spoiled().items():
        spoil(fake)
        said = lab.run("--verbose", status=1).output
        assert said.splitlines()[-1].startswith("Error: "), what
        assert lab.dump() == before, what
        fake.fault, fake.systems = None, dict(systems)
    assert lab.run("--verbose").output.splitlines()[-1] == "20 unchanged"


def test_nor_does_it_leave_anything_where_there_was_nothing(site: Site):
    before = site.dump()
    site.inventory.put(host(1, mac="no"))
    site.run(status=1)
    site.run("--ship-it", status=1)
    assert site.dump() == before


def test_a_dry_run_changes_nothing(lab: Site):
    lab.inventory.put(host(30))
    lab.rename(1, "renamed")
    before = lab.dump()
    said = lab.run("--dry-run").output
    assert lab.dump() == before
    assert "renamed: updated (renamed from panda-0001; fqdn panda-0001.example.com -> renamed.example.com)" in said
    assert said.splitlines()[-1].startswith("Would be done: 1 added, 1 updated, 19 unchanged")
    assert "panda-0002" not in said
    assert "panda-0002: unchanged" in lab.run("--dry-run", "--verbose").output
    lab.inventory.systems.clear()
    assert "20 of 20 devices would change" in lab.run("--dry-run", status=1).output
    assert "20 removed" in lab.run("--dry-run", "--ship-it").output
    assert lab.dump() == before


def test_a_database_that_fails_in_the_middle_keeps_nothing(lab: Site):
    """All of it is one transaction: what comes last fails."""
    lab.inventory.put(host(30), host(31))
    del lab.inventory.systems["panda-0001.example.com"]
    lab.inventory.put(host(2, relay="relay-77.example.com:bank1:relay1"))
    other = {"name": "other", "fqdn": "relay-77.example.com", "lane": "command:other"}
    server = lab.rows()["panda-0002"].imaging_server_id
    board = {**other, "imaging_server_id": server, "state": "ok", "state_counters": "{}"}
    lab.write(insert(tables.relay_boards).values(**board))

    def dump() -> str:
        # What was undone has used up numbers on MySQL.
        return re.sub(r" AUTO_INCREMENT=\d+", "", lab.dump())

    before = dump()
    assert "refuses:" in lab.run(status=1).output
    assert dump() == before


# Devices that are in use


def test_what_is_lent_or_busy_is_marked_and_what_is_free_goes(lab: Site):
    lab.lend("panda-0001")
    lab.change("panda-0002", state="pc_rebooting")
    ids = {name: row.id for name, row in lab.rows().items()}
    for number in (1, 2, 3):
        del lab.inventory.systems[f"panda-000{number}.example.com"]
    said = lab.run().output
    assert "panda-0001: leaves (it is lent, and goes as soon as it is free)" in said
    assert "panda-0002: leaves (it is in state pc_rebooting, and goes as soon as it is free)" in said
    assert "panda-0003: removed" in said
    rows = lab.rows()
    assert [(name, rows[name].leaving) for name in ("panda-0001", "panda-0002", "panda-0004")] == [
        ("panda-0001", 1),
        ("panda-0002", 1),
        ("panda-0004", 0),
    ]
    assert "panda-0003" not in rows
    # Not a change any more, and undone when it is back.
    assert lab.run().output == ""
    lab.inventory.put(host(1))
    assert "panda-0001: updated (it is back before it has left)" in lab.run().output
    assert lab.rows()["panda-0001"].leaving == 0
    # Logs outlive the rows.
    with lab.database.read() as conn:
        log = conn.scalars(
            select(tables.device_logs.c.message).where(tables.device_logs.c.device_id == ids["panda-0003"])
        ).all()
    assert log == ["removed: it is not there any more"]


def test_a_device_that_is_taken_while_it_is_planned_is_not_pulled_away(lab: Site):
    del lab.inventory.systems["panda-0001.example.com"]
    sync = lab.sync()
    found = sync.read(lambda said: None)
    with lab.database.read() as conn:
        made = plan(found, inventory.read(conn), "proxr")
    assert [device.name for device in made.removes] == ["panda-0001"]
    lab.lend("panda-0001")
    lab.database.run(lambda conn: carry_out(conn, made, random.Random(1), lab.clock))
    assert lab.rows()["panda-0001"].leaving == 1
    assert lab.rows()["panda-0001"].claim_id is not None


def test_an_update_makes_no_running_operation_stale(lab: Site):
    lab.change("panda-0001", state="pc_power_cycling", attempt=7, state_counters='{"x": 1}')
    before = lab.rows()["panda-0001"]
    lab.rename(1, "renamed", mac="060000000001", relay="relay-1.example.com:bank4:relay1")
    lab.run()
    after = lab.rows()["renamed"]
    assert after.version > before.version
    kept = ("id", "state", "attempt", "state_counters", "state_timeout", "token", "claim_id", "shuffle", "owner_id")
    assert [getattr(after, name) for name in kept] == [getattr(before, name) for name in kept]
    assert after.mac_address == "060000000001"


def test_a_leaving_device_goes_with_what_it_alone_used(lab: Site):
    lab.inventory.put(host(30, server="imaging9.example.com", model=3, relay="relay-9.example.com:bank1:relay1"))
    lab.inventory.models[3] = ("Rare", "1")
    lab.run()
    lab.change("panda-0030", state="pc_rebooting")
    row = lab.rows()["panda-0030"]
    del lab.inventory.systems["panda-0030.example.com"]
    lab.run()
    assert "imaging9.example.com" in lab.servers()

    def leave() -> bool:
        return lab.database.run(lambda conn: inventory.leave(conn, row.id, RESTING, lab.clock.now()))

    assert not leave()
    lab.change("panda-0030", state="ready")
    with lab.database.read() as conn:
        assert inventory.leaving_of(conn, row.imaging_server_id, RESTING) == [(row.id, "panda-0030")]
    assert leave()
    assert not leave()
    assert "Rare" not in lab.column(tables.hardware_types.c.type)
    # Its relay board is the next synchronisation's business, and the server's then.
    assert "relay-9: relay board (removed: no device hangs on it)" in lab.run().output


# What devices refer to


def test_unused_servers_and_hardware_go_and_what_people_made_stays(lab: Site):
    hardware = tables.hardware_types
    lab.write(insert(hardware).values(type="later", model="1"))
    lab.inventory.models[3] = ("Rare", "1")
    lab.inventory.put(host(30, server="imaging9.example.com", model=3, relay="relay-9.example.com:bank1:relay1"))
    lab.run()
    lab.inventory.put(host(30))
    said = lab.run().output
    assert "not used any more and deleted: hardware type Rare 1, imaging server imaging9.example.com" in said
    assert lab.column(hardware.c.type) == ["PandaBoard", "Tegra", "later"]
    # A server that runs is not forgotten, and configured hardware neither.
    lab.inventory.put(host(30, server="imaging9.example.com", model=3, relay="relay-9.example.com:bank1:relay1"))
    lab.run()
    now = lab.clock.now()
    number = lab.servers()["imaging9.example.com"]
    lab.database.run(lambda conn: say_here(conn, Presence(number, 1, False, "5", now, now, 1, 0)))
    with lab.database.read() as conn:
        kind = conn.scalar(select(hardware.c.id).where(hardware.c.type == "Rare"))
    lab.write(
        insert(tables.images).values(id=1, name="b2g", boot_config_keys="[]"),
        insert(tables.pxe_configs).values(id=1, name="x", description="", contents="", active=1),
        insert(tables.image_pxe_configs).values(image_id=1, hardware_type_id=kind, pxe_config_id=1),
    )
    lab.inventory.put(host(30))
    assert "deleted" not in lab.run().output
    assert "imaging9.example.com" in lab.servers()


def test_a_device_that_moves_is_the_new_servers_at_once_when_it_is_free(lab: Site):
    lab.inventory.put(host(1, server="imaging9.example.com", relay="relay-9.example.com:bank1:relay1"))
    old = lab.rows()["panda-0001"]
    lab.run()
    row = lab.rows()["panda-0001"]
    assert row.imaging_server_id == lab.servers()["imaging9.example.com"]
    assert (row.owner_id, row.came_from_id) == (None, old.imaging_server_id)
    assert row.epoch == old.epoch + 1


def test_a_device_that_moves_while_it_is_busy_stays_with_its_server_until_that_gives_it_up(lab: Site):
    lab.change("panda-0001", state="b2g_downloading")
    old = lab.rows()["panda-0001"]
    lab.inventory.put(host(1, server="imaging9.example.com", relay="relay-9.example.com:bank1:relay1"))
    lab.run()
    row = lab.rows()["panda-0001"]
    assert row.imaging_server_id == lab.servers()["imaging9.example.com"]
    assert (row.owner_id, row.came_from_id, row.epoch) == (old.imaging_server_id, None, old.epoch)
    # And back again: it never left.
    lab.inventory.put(host(1))
    lab.run()
    row = lab.rows()["panda-0001"]
    assert (row.imaging_server_id, row.owner_id, row.epoch) == (old.imaging_server_id, None, old.epoch)


def test_boards_that_people_added_are_adopted_or_in_the_way(lab: Site):
    server = lab.rows()["panda-0001"].imaging_server_id
    base = {"fqdn": "x", "inventory_id": 0, "state": "ready", "state_counters": "{}", "imaging_server_id": server}
    lab.write(
        insert(DEVICES).values(name="panda-0030", mac_address="000000000000", comments="mine", **base),
        insert(DEVICES).values(name="mine", mac_address="0600000000aa", **base),
    )
    lab.inventory.put(host(30))
    assert "it was added by hand and is the inventory's from now on" in lab.run().output
    row = lab.rows()["panda-0030"]
    assert (row.inventory_id, row.comments, row.state) == (30, "mine", "ready")
    assert lab.run().output == ""
    before = lab.dump()
    lab.inventory.put(host(31, hostname="mine.example.com"))
    assert "device mine that was added by hand and has another MAC address" in lab.run(status=1).output
    assert lab.dump() == before
    assert "mine" in lab.rows()


def test_names_may_pass_in_a_circle_and_on_to_new_hosts(lab: Site):
    names = {number: lab.rows()[f"panda-000{number}"].id for number in (1, 2, 3)}
    for number in (1, 2, 3):
        lab.inventory.systems.pop(f"panda-000{number}.example.com")
    lab.inventory.put(
        host(1, hostname="panda-0002.example.com"),
        host(2, hostname="panda-0001.example.com"),
        host(3, hostname="panda-0033.example.com"),
        host(40, hostname="panda-0003.example.com"),
    )
    lab.run()
    rows = lab.rows()
    assert (rows["panda-0002"].id, rows["panda-0001"].id, rows["panda-0033"].id) == (names[1], names[2], names[3])
    assert rows["panda-0003"].inventory_id == 40


def test_a_name_that_a_lent_device_still_has_is_waited_for(lab: Site):
    lab.lend("panda-0001")
    lab.inventory.systems.pop("panda-0001.example.com")
    lab.inventory.put(host(40, hostname="panda-0001.example.com"))
    assert "panda-0001: waits (device panda-0001 has this name until it is gone)" in lab.run().output
    old = lab.rows()["panda-0001"]
    assert old.inventory_id == 1
    lab.write(
        update(DEVICES).where(DEVICES.c.id == old.id).values(claim_id=None),
        delete(tables.device_requests).where(tables.device_requests.c.device_id == old.id),
    )
    assert "panda-0001: removed" in lab.run().output
    assert lab.rows()["panda-0001"].inventory_id == 40


# Other sources, and what is configured


def test_a_file_gives_more_than_mozillas_inventory(site: Site, tmp_path: Path):
    path = tmp_path / "hosts.json"
    entry = {
        "inventory_id": 1,
        "fqdn": "panda-1.example.com",
        "mac_address": "020000000001",
        "imaging_server": "imaging1",
        "environment": "staging",
        "labels": {"pool": "b2g"},
        "backends": {"probe": "echo"},
        "address": "10.0.0.5",
        "comments": "shelf 3",
    }
    path.write_text(json.dumps([entry]))
    site.write_config(source="file", path=str(path))
    site.run()
    row = site.rows()["panda-1"]
    assert (row.environment, row.backends, row.address) == ("staging", '{"probe": "echo"}', "10.0.0.5")
    assert (row.comments, row.relay_info, row.hardware_type_id) == ("shelf 3", None, None)
    with site.database.read() as conn:
        assert conn.execute(select(tables.device_labels)).all() == [(row.id, "pool", "b2g")]
    assert site.run().output == ""
    path.write_text(json.dumps([entry | {"labels": {}, "environment": None}]))
    assert "panda-1: updated (labels)" in site.run().output
    assert site.column(tables.device_labels.c.name) == []
    assert site.rows()["panda-1"].environment == "staging"


def test_hosts_of_servers_that_are_left_out_are_neither_added_nor_removed(lab: Site):
    lab.write_config(ignore_devices_on_servers_re="imaging1")
    lab.inventory.systems.clear()
    lab.inventory.put(host(50), host(51, server="imaging2.example.com", relay="relay-50.example.com:bank1:relay1"))
    said = lab.run("--verbose").output
    assert "panda-0050.example.com: skipped (its imaging server imaging1.example.com is left out by" in said
    assert "1 added, 1 skipped" in said
    assert len(lab.rows()) == 21


@pytest.mark.parametrize(
    ("text", "status", "message"),
    [
        ("", 2, "no inventory is configured"),
        ("source = file\n", 2, "source = file needs a path that ends in .csv, .yaml, .yml, .json"),
        ("source = file\npath = /a.txt\n", 2, "[inventory] path: source = file needs a path"),
        ("source = command\n", 2, "source = command needs a program"),
        ("source = netbox\n", 2, "source = netbox needs url and token"),
        ("source = ldap\n", 2, "'ldap' is not right; expected one of mozilla, netbox, file, command"),
        ("url = ftp://u:s3cret@host/\n", 2, "[inventory] url: (a secret) is not right; expected an http:// or"),
        ("sync_interval = 60\n", 2, "[inventory] sync_interval: there is no inventory to read"),
        ("source = file\npath = /nowhere/a.csv\n", 1, "/nowhere/a.csv: there is no such file"),
    ],
)
def test_a_configuration_that_is_wrong_is_told(sqlite_url: str, tmp_path: Path, text: str, status: int, message: str):
    path = tmp_path / "config.ini"
    path.write_text(f"[database]\nengine = {sqlite_url}\n[inventory]\n{text}")
    done = CliRunner().invoke(main, ["--config", str(path)])
    assert done.exit_code == status, done.output
    assert message in " ".join(done.output.split())
    assert "s3cret" not in done.output


def test_wrong_usage_and_a_database_that_is_not_there_are_told(tmp_path: Path):
    assert CliRunner().invoke(main, ["--now"]).exit_code == 2
    path = tmp_path / "config.ini"
    path.write_text(f"[database]\nengine = sqlite:///{tmp_path}/none.sqlite\n[inventory]\nurl = http://127.0.0.1:9\n")
    done = CliRunner().invoke(main, ["--config", str(path)])
    assert (done.exit_code, "does not exist" in done.output) == (1, True)


# One at a time


def test_only_one_reads_it_at_a_time(lab: Site):
    now = lab.clock.now()
    lab.database.run(
        lambda conn: jobs.take(conn, JOB, holder="imaging2.example.com", token="t" * 32, now=now, seconds=60)
    )
    before = lab.dump()
    said = lab.run("--ship-it")
    assert "the inventory is being read by imaging2.example.com since 20" in said.output
    assert lab.dump() == before
    assert "20 unchanged" in lab.run("--dry-run", "-v").output
    # Whoever dies loses it when its time is over.
    lab.write(update(tables.jobs).values(until=now - timedelta(seconds=1)))
    lab.run()
    job = lab.job()
    assert job is not None
    assert (job.token, job.holder, job.outcome, job.message) == (None, None, "ok", "20 unchanged")
    assert str(job.ended_by).startswith("imaging1.example.com (process ")


def test_who_took_too_long_changes_nothing(lab: Site):
    lab.inventory.put(host(30))
    sync = lab.sync()

    def steal(said: str) -> None:
        if said == "writing":
            lab.write(update(tables.jobs).values(token="t" * 32, holder="imaging2.example.com"))

    with pytest.raises(Conflict, match="it took too long"):
        sync.run(steal)
    assert "panda-0030" not in lab.rows()
    job = lab.job()
    assert job is not None
    assert job.holder == "imaging2.example.com"


def test_a_failure_is_noted_for_those_who_want_it(lab: Site):
    lab.inventory.fault = "error"
    sync = lab.sync()
    assert sync.is_due(0)
    assert not sync.is_due(3600)
    with pytest.raises(Exception, match="answered 500"):
        sync.run(lambda said: None, note_failure=True)
    job = lab.job()
    assert job is not None
    assert (job.token, job.outcome) == (None, "failed")
    assert "answered 500" in str(job.message)
    lab.inventory.fault = None
    lab.run()
    job = lab.job()
    assert job is not None
    assert job.outcome == "ok"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_it_may_be_killed_while_it_reads(lab: Site, number: signal.Signals):
    """Cron's next one goes on: at once when it could let go, else when its time is over."""
    before = lab.dump()
    lab.inventory.fault = "silence"
    command = [sys.executable, "-m", "mozpool.cli.inventorysync", "--config", str(lab.config)]
    environment = {**os.environ, "PYTHONPATH": str(Path(schema.__file__).parents[2])}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        give_up = time.monotonic() + 20
        while len(lab.inventory.asked) < 5:  # its own call, after those of the first run
            assert time.monotonic() < give_up
            time.sleep(0.02)
        process.send_signal(number)
        assert process.wait(10)
    lab.inventory.fault = None
    if number == signal.SIGTERM:
        assert lab.dump() == before
    else:
        assert "is being read by imaging1.example.com" in lab.run().output
        lab.write(update(tables.jobs).values(until=lab.clock.now()))
    assert lab.run("-v").output.splitlines()[-1] == "20 unchanged"


# The audit


def test_what_changes_is_in_the_audit_with_the_user(site: Site) -> None:
    site.inventory.put(host(1), host(2))
    site.run("--ship-it")
    site.run("--ship-it")
    with site.database.read() as conn:
        (row,) = audit.newest(conn, audit.Filter(), limit=10)
    assert (row.kind, row.who) == ("command", pwd.getpwuid(os.getuid()).pw_name)
    assert (row.action, row.target) == ("mozpool-inventorysync", "inventory")
    assert row.details["ship_it"] is True
    assert "2" in row.details["summary"]


def test_what_the_daemon_changes_by_itself_is_in_the_audit_as_its_job(site: Site) -> None:
    site.inventory.put(host(1))
    sync = site.sync()
    sync._by_hand = False
    sync.run(lambda said: None, ship_it=True)
    with site.database.read() as conn:
        (row,) = audit.newest(conn, audit.Filter(), limit=10)
    assert (row.kind, row.who, row.action, row.outcome) == ("job", "inventory", "inventory", "ok")
