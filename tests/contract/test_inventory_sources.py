# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Each kind of inventory, read from a peer that speaks as real ones do."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mozpool.cli.common import registry
from mozpool.clock import Clock, Deadline
from mozpool.config import Inventory
from mozpool.fakes.inventory import FAULTS, MODELS, STATUSES, FakeInventory, system
from mozpool.lifeguard.inventory import hosts
from mozpool.lifeguard.inventory.hosts import Hosts, InventoryError
from mozpool.lifeguard.inventory.sources import NoInventory, source_of
from tests.contract.netbox_peer import DEVICES, INTERFACES, NetBox, device, interface

BACKENDS = registry()
TOKEN = "0123456789abcdef0123456789abcdef01234567"


def read(settings: Inventory, seconds: float = 20.0) -> Hosts:
    source = source_of(settings)
    entries = source.entries(Deadline(Clock(), seconds), lambda said: None)
    return hosts.read(entries, BACKENDS, needed=source.needed)


def fails(settings: Inventory, seconds: float = 20.0) -> str:
    """Why it can't be read."""
    with pytest.raises(InventoryError) as caught:
        read(settings, seconds)
    assert "s3cret" not in caught.value.message
    assert TOKEN not in caught.value.message
    return caught.value.message


def test_there_may_be_no_inventory():
    with pytest.raises(NoInventory):
        source_of(Inventory())


# Mozilla's


@pytest.fixture
def mozilla() -> Iterator[FakeInventory]:
    with FakeInventory() as inventory:
        inventory.put(system(1, "panda-1.example.com", mac="AA:BB:CC:00:00:01", relay="relay-1:bank1:relay1"))
        yield inventory


def mozillas(inventory: FakeInventory, **changes: Any) -> Inventory:
    return Inventory(**{"url": inventory.url, "username": inventory.username, "password": "s3cret"} | changes)


def test_mozillas_hosts_are_read_and_each_number_is_looked_up_once(mozilla: FakeInventory):
    for number in range(2, 9):
        mozilla.put(
            system(
                *(number, f"panda-{number}.example.com"),
                mac=f"aabbcc00000{number}",
                relay=f"relay-1:bank1:relay{number}",
                status=1 + number % 2,
                model=1 + number % 2,
            )
        )
    found = read(mozillas(mozilla, filter="hostname__startswith=panda-"))
    first, second = found.hosts[:2]
    assert (first.name, first.mac_address, first.relay_info) == ("panda-1", "aabbcc000001", "relay-1:bank1:relay1")
    assert (second.imaging_server, second.hardware) == ("imaging1.example.com", ("PandaBoard", "ES"))
    # Nothing that people set is touched.
    assert (first.environment, first.labels, first.backends, first.comments, first.address) == (None,) * 5
    assert mozilla.asked[0] == "/en-US/bulk_action/export/?q=hostname__startswith%3Dpanda-"
    assert sorted(mozilla.asked[1:]) == [f"{MODELS}1/", f"{MODELS}2/", f"{STATUSES}1/", f"{STATUSES}2/"]


def test_mozillas_hosts_that_are_none_of_the_pools_are_skipped_with_the_reason(mozilla: FakeInventory):
    mac, relay = "aabbcc000002", "relay-1:bank1:relay2"
    mozilla.put(
        system(11, "dead.example.com", mac=mac, relay=relay, status=3),
        system(12, "no-relay.example.com", mac=mac),
        system(13, "no-server.example.com", mac=mac, relay=relay, server=None),
        system(14, "no-mac.example.com", relay=relay),
        system(15, "empty.example.com", mac="", relay=" ", server=""),
        {"pk": 16, "hostname": "bare.example.com"},
        {"hostname": "nulls.example.com", "pk": 17, "keyvalue_set": None, "staticreg_set": None, "system_status": None},
    )
    found = read(mozillas(mozilla))
    assert [each.inventory_id for each in found.hosts] == [1]
    assert {each.place: each.reason for each in found.skipped} == {
        "dead.example.com": "it is decommissioned",
        "no-relay.example.com": "it has no key system.relay.0",
        "no-server.example.com": "it has no key system.imaging_server.0",
        "no-mac.example.com": "it has no MAC address of nic0, hw0",
        **dict.fromkeys(
            ("empty.example.com", "bare.example.com", "nulls.example.com"),
            "it has no key system.imaging_server.0 and no key system.relay.0 and no MAC address of nic0, hw0",
        ),
    }


SAID = {
    "error": "answered 500 Internal Server Error",
    "silence": "no answer within 0.8 s",
    "cut": "closed the connection within its answer",
    "drip": "no answer within 0.8 s",
    "html": "this is not JSON: line 1, column 1",
    "redirect": "answered 302, a redirect, which is not followed",
    "no_systems": "is not an object with an object 'systems' in it",
    "list": "is not an object with an object 'systems' in it",
    "gibberish": "this is not JSON",
    "empty": "this is not JSON",
    "twice": "'a.example.com' stands there twice",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_half_an_answer_of_mozillas_is_none(mozilla: FakeInventory, fault: str):
    mozilla.fault = fault
    begun = time.monotonic()
    assert SAID[fault] in fails(mozillas(mozilla), seconds=0.8)
    assert time.monotonic() - begun < 5
    mozilla.fault = None
    assert len(read(mozillas(mozilla)).hosts) == 1


@pytest.mark.parametrize("base", [STATUSES, MODELS])
@pytest.mark.parametrize("fault", ["error", "silence", "cut", "html", "no_systems", "empty"])
def test_a_status_or_model_that_cannot_be_looked_up_is_half_an_answer(mozilla: FakeInventory, base: str, fault: str):
    mozilla.fault, mozilla.fault_in = fault, base
    assert base in fails(mozillas(mozilla), seconds=0.8)


def test_a_status_that_does_not_exist_is_half_an_answer(mozilla: FakeInventory):
    mozilla.put(system(8, "panda-8.example.com", status=99))
    assert f"{STATUSES}99/: answered 404" in fails(mozillas(mozilla))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"keyvalue_set": []}, "keyvalue_set: [] is not an object"),
        ({"keyvalue_set": {"system.relay.0": "x"}}, "keyvalue_set, system.relay.0: 'x' is not an object"),
        ({"staticreg_set": {"nic0": 5}}, "staticreg_set, nic0: 5 is not an object"),
        ({"system_status": "production"}, "system_status: 'production' is not a number"),
        ({"server_model": [1]}, "server_model: [1] is not a number"),
        ({"pk": "x"}, "inventory_id: 'x' is not a whole number"),
        ({"hostname": 5}, "fqdn: 5 is not a host name"),
    ],
)
def test_values_of_another_kind_make_the_answer_useless(mozilla: FakeInventory, wrong: dict[str, Any], message: str):
    mozilla.put(system(8, "panda-8.example.com", mac="aabbcc000008", relay="r:bank1:relay1") | wrong)
    if "hostname" in wrong:
        mozilla.systems["panda-8.example.com"] = mozilla.systems.pop("5")
    assert f"panda-8.example.com: {message}" in fails(mozillas(mozilla))


def test_a_host_that_is_no_object_makes_the_answer_useless(mozilla: FakeInventory):
    mozilla.systems["panda-8.example.com"] = 5  # type: ignore[assignment]
    assert "panda-8.example.com: system: 5 is not an object" in fails(mozillas(mozilla))


def test_wrong_credentials_and_an_inventory_that_is_not_there_are_told(mozilla: FakeInventory):
    assert "answered 401: it does not accept the credentials" in fails(mozillas(mozilla, password="other"))
    assert "no connection: Connection refused" in fails(Inventory(url="http://u:s3cret@127.0.0.1:9"))
    assert read(Inventory(url=mozilla.url.replace("//", "//mozpool:s3cret@"))).hosts


# NetBox


@pytest.fixture
def netbox() -> Iterator[NetBox]:
    with NetBox(f"Token {TOKEN}") as peer:
        peer.devices.append(device(1, "panda-1.example.com", imaging_server="imaging1.example.com"))
        peer.interfaces.append(interface(101, 1, "02:00:00:00:00:01"))
        yield peer
        assert peer.faults == []


def netboxs(peer: NetBox, **changes: Any) -> Inventory:
    return Inventory(**{"source": "netbox", "url": peer.url, "token": TOKEN} | changes)


def test_netboxs_devices_are_read_page_by_page(netbox: NetBox):
    for number in range(2, 231):
        netbox.devices.append(device(number, f"panda-{number}", imaging_server="imaging1.example.com"))
        netbox.interfaces.append(interface(100 + number, number, f"02:00:00:00:01:{number:02X}"))
    found = read(netboxs(netbox, filter="site=lab&tag=mozpool&cf_owner=us"))
    assert len(found.hosts) == 230
    assert (found.hosts[229].name, found.hosts[229].mac_address) == ("panda-230", "0200000001e6")
    paths = [path for path, _ in netbox.asked]
    assert (paths.count(DEVICES), paths.count(INTERFACES)) == (5, 2 + 2 + 1)
    assert ("tag", "mozpool") in netbox.asked[0][1]
    assert read(netboxs(netbox, filter="site=elsewhere")).hosts == []


def test_what_netbox_knows_of_a_device_is_taken(netbox: NetBox):
    netbox.devices.append(
        device(
            *(2, "panda-2.example.com"),
            address="10.0.0.5/24",
            model="4460",
            imaging_server={"id": 9, "url": "http://x/", "display": "imaging1", "name": "imaging1.example.com"},
            relay_info="relay-1:bank1:relay1",
            environment="staging",
            labels={"pool": "b2g"},
            backends="probe=echo",
        )
    )
    netbox.interfaces.append(interface(102, 2, "02:00:00:00:00:02"))
    first, second = read(netboxs(netbox)).hosts
    assert (first.relay_info, first.environment, first.address, first.labels) == (None,) * 4
    assert (second.inventory_id, second.hardware) == (2, ("PandaBoard", "4460"))
    assert (second.address, second.imaging_server) == ("10.0.0.5", "imaging1.example.com")
    assert (second.relay_info, second.environment) == ("relay-1:bank1:relay1", "staging")
    assert (second.labels, second.backends) == ({"pool": "b2g"}, {"probe": "echo"})


@pytest.mark.parametrize("status", ["offline", "planned", "inventory", "decommissioning"])
def test_netboxs_devices_that_are_not_in_use_are_skipped(netbox: NetBox, status: str):
    netbox.devices.append(device(2, "panda-2", status=status, imaging_server="imaging1"))
    netbox.devices.append(device(3, None, imaging_server="imaging1"))
    netbox.devices.append(device(4, "panda-4", imaging_server="imaging1"))
    netbox.devices.append(device(5, "panda-5"))
    netbox.interfaces.append(interface(105, 5, "02:00:00:00:00:05"))
    found = read(netboxs(netbox))
    assert len(found.hosts) == 1
    assert {each.place: each.reason for each in found.skipped} == {
        "device 2 (panda-2)": f"its status is {status}",
        "device 3": "it has no name",
        "device 4 (panda-4)": "it has no mac_address",
        "device 5 (panda-5)": "it has no imaging_server",
    }
    for status_in_use in ("staged", "failed"):
        netbox.devices[0]["status"] = {"value": status_in_use, "label": status_in_use.capitalize()}
        assert len(read(netboxs(netbox)).hosts) == 1


def test_the_first_interface_that_can_be_used_is_taken_or_the_named_one(netbox: NetBox):
    netbox.interfaces = [
        interface(1, 1, "02:00:00:00:00:0a", name="bmc", mgmt_only=True),
        interface(2, 1, "02:00:00:00:00:0b", name="spare", enabled=False),
        interface(3, 1, None, name="empty"),
        interface(5, 1, "02:00:00:00:00:0d", name="eth1"),
        interface(4, 1, "02:00:00:00:00:0c", name="eth0"),
    ]
    assert read(netboxs(netbox)).hosts[0].mac_address == "02000000000c"
    assert read(netboxs(netbox, netbox_interface="eth1")).hosts[0].mac_address == "02000000000d"
    assert read(netboxs(netbox, netbox_interface="eth7")).hosts == []
    # Before NetBox 4.2 an interface had one address only.
    netbox.edit = lambda path, said: (
        {**said, "results": [{k: v for k, v in each.items() if k != "primary_mac_address"} for each in said["results"]]}
    )
    assert read(netboxs(netbox)).hosts[0].mac_address == "02000000000c"


def test_tokens_of_both_kinds_are_sent_as_netbox_wants_them(netbox: NetBox):
    netbox.authorization = "Bearer nbt_abc.def"
    assert read(netboxs(netbox, token="nbt_abc.def")).hosts
    assert "answered 403: it does not accept the credentials" in fails(netboxs(netbox))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": 7}, "it gave 1 of 7 results: it changed while it was read"),
        ({"results": None}, "is not a page with 'count' and 'results'"),
        ({"next": "http://x/api/dcim/devices/"}, "is not the address of another page"),
        ({"next": "http://x/api/dcim/devices/?ordering=id&limit=200"}, "is not the address of another page"),
        ({"next": 5}, "is not the address of another page"),
        ({"results": [5]}, "result: 5 is not an object"),
        ({"results": [{"id": "x"}]}, "id: 'x' is not a number"),
    ],
)
def test_half_an_answer_of_netboxs_is_none(netbox: NetBox, changes: dict[str, Any], message: str):
    netbox.edit = lambda path, said: {**said, **changes}
    assert message in fails(netboxs(netbox))


def test_netboxs_answer_that_is_no_page_is_none(netbox: NetBox):
    for said in (b"[]", b"<html>", b"", b"null"):
        netbox.edit = lambda path, answer, said=said: said
        assert fails(netboxs(netbox))
    netbox.edit = lambda path, said: said if path == DEVICES else {**said, "count": 9}
    assert f"{INTERFACES}: it gave 1 of 9" in fails(netboxs(netbox))


# Files


def a_file(path: Path, text: str) -> Inventory:
    path.write_text(text, encoding="utf-8")
    return Inventory(source="file", path=path)


CSV = """\
inventory_id,fqdn,mac_address,imaging_server,hardware_type,hardware_model,labels
# the first shelf
1,panda-1.example.com,02:00:00:00:00:01,imaging1.example.com,panda,ES,"pool=b2g,rack=3"

2, panda-2.example.com,020000000002,imaging1.example.com,,,
"""
YAML = """\
- inventory_id: 1
  fqdn: panda-1.example.com
  mac_address: 02:00:00:00:00:01
  imaging_server: imaging1.example.com
  hardware_type: panda
  hardware_model: ES
  labels: {pool: b2g, rack: 3}
- {inventory_id: 2, fqdn: panda-2.example.com, mac_address: 020000000002, imaging_server: imaging1.example.com}
"""


@pytest.mark.parametrize("name", ["hosts.csv", "hosts.yaml", "hosts.YML", "hosts.json"])
def test_files_of_each_kind_say_the_same(tmp_path: Path, name: str):
    first = {"hardware_type": "panda", "hardware_model": "ES", "labels": {"pool": "b2g", "rack": "3"}}
    usual = {"imaging_server": "imaging1.example.com"}
    as_json = [
        {"inventory_id": 1, "fqdn": "panda-1.example.com", "mac_address": "02:00:00:00:00:01", **usual, **first},
        {"inventory_id": 2, "fqdn": "panda-2.example.com", "mac_address": "020000000002", **usual},
    ]
    text = {"c": CSV, "y": YAML, "Y": YAML, "j": json.dumps(as_json)}[name[6]]
    one, two = read(a_file(tmp_path / name, text)).hosts
    assert (one.inventory_id, one.name, one.mac_address) == (1, "panda-1", "020000000001")
    assert (one.hardware, one.labels) == (("panda", "ES"), {"pool": "b2g", "rack": "3"})
    assert (two.inventory_id, two.mac_address, two.hardware, two.labels) == (2, "020000000002", None, None)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "", "it has no heading; expected inventory_id,fqdn,"),
        ("a.csv", "fqdn,inventory_id\n", "the heading lacks mac_address, imaging_server"),
        ("a.csv", "fqdn,colour\n", "'colour' is no field; expected some of inventory_id, fqdn"),
        ("a.csv", "fqdn,fqdn\n", "the field fqdn stands twice in the heading"),
        ("a.csv", CSV + "3,panda-3\n", "a.csv, line 6: it has 2 fields where the heading has 7"),
        ("a.csv", CSV + '3,"panda-3\n', "a.csv, line 6: unexpected end of data"),
        (
            "a.csv",
            CSV.replace("020000000002", "02"),
            "a.csv, line 5 (panda-2.example.com): mac_address: '02' is not a MAC address",
        ),
        ("a.yaml", "", "None is not a list of hosts"),
        ("a.yaml", "a: 1", "{'a': 1} is not a list of hosts"),
        ("a.yaml", "- [", "a.yaml: line 1, column 4: expected the node content"),
        ("a.yaml", "- {fqdn: a, fqdn: b}", "a.yaml: line 1, column 13: 'fqdn' stands there twice"),
        ("a.yaml", "- !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("a.yaml", YAML.replace("inventory_id: 1", "inventory_id: 1.5"), "entry 1 (panda-1.example.com): inventory_id"),
        ("a.yaml", YAML + "- 5\n", "a.yaml, entry 3: 5 is not an object with"),
        ("a.yaml", "- {1: 2}", "a.yaml, entry 1: {1: 2} is not an object"),
        ("a.yaml", YAML.replace("pool: b2g", "pool: yes"), "labels: {'pool': True, 'rack': 3} is not NAME=VALUE"),
        ("a.json", "[", "a.json: this is not JSON: line 1, column 2"),
        ("a.json", "[NaN]", "a.json: this is not JSON"),
        ("a.json", '[{"fqdn": "a", "fqdn": "b"}]', "a.json: 'fqdn' stands there twice"),
        ("a.json", "[" * 100_000, "a.json: this is not JSON"),
    ],
)
def test_a_file_that_is_not_right_is_told_by_the_place(tmp_path: Path, name: str, text: str, message: str):
    assert message in fails(a_file(tmp_path / name, text))


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path):
    assert "there is no such file" in fails(Inventory(source="file", path=tmp_path / "a.csv"))
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\xff")
    assert "is not text in UTF-8" in fails(Inventory(source="file", path=tmp_path / "b.csv"))


# Programs


def a_program(folder: Path, text: str) -> Inventory:
    path = folder / "hosts.py"
    path.write_text(text, encoding="utf-8")
    return Inventory(source="command", command=(sys.executable, str(path), "an argument; with a semicolon"))


def test_a_program_prints_hosts(tmp_path: Path):
    text = (
        "import json, sys\n"
        "assert sys.argv[1:] == ['an argument; with a semicolon']\n"
        "print(json.dumps([{'inventory_id': n, 'fqdn': f'panda-{n}.example.com', 'mac_address': f'02{n:010x}',"
        " 'imaging_server': 'imaging1'} for n in range(1, 5001)]))\n"
    )
    assert len(read(a_program(tmp_path, text)).hosts) == 5000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("raise SystemExit('no licence')", "ended with status 1: 'no licence'"),
        ("print('[]'); raise SystemExit(3)", "ended with status 3: no message"),
        ("print('hello')", "printed: this is not JSON: line 1, column 1"),
        ("", "printed: this is not JSON"),
        ("print('{}')", "{} is not a list of hosts"),
        ("import time; print('[]', flush=True); time.sleep(600)", "was not done within 2 s and was killed"),
        ("import os; os.kill(os.getpid(), 9)", "was ended by signal 9"),
    ],
)
def test_a_program_that_fails_gives_nothing(tmp_path: Path, text: str, message: str):
    assert message in fails(a_program(tmp_path, text), seconds=2.0)


def test_a_program_that_is_not_there_gives_nothing():
    assert "cannot run /nowhere/hosts: No such file" in fails(Inventory(source="command", command=("/nowhere/hosts",)))


def test_reading_says_how_far_it_is(netbox: NetBox):
    said: list[str] = []
    source_of(netboxs(netbox)).entries(Deadline(Clock(), 10), said.append)
    assert "1 of 1 hosts" in said
    assert threading.active_count() < 100
