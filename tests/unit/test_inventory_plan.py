# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What the inventory's hosts must be like, and what differs from the pool: no database, no network."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from mozpool.bmm.interfaces import NO_MAC
from mozpool.cli.common import registry
from mozpool.db.inventory import Known, KnownBoard, KnownDevice
from mozpool.lifeguard.devicemachine import device_machine
from mozpool.lifeguard.inventory import hosts
from mozpool.lifeguard.inventory.hosts import Entry, Host, Hosts, InventoryError
from mozpool.lifeguard.inventory.plan import RESTING, Plan, TooManyChanges, plan

SERVER = "imaging1.example.com"
BACKENDS = registry()


def entry(number: int = 1, **values: Any) -> Entry:
    """A host that nothing is wrong with, but for what ``values`` say."""
    usual = {
        "inventory_id": number,
        "fqdn": f"panda-{number:04}.example.com",
        "mac_address": f"02:00:00:00:00:{number:02x}",
        "imaging_server": SERVER,
        "relay_info": f"relay-1.example.com:bank1:relay{number}",
    }
    return Entry(f"entry {number}", usual | values)


def read(*entries: Entry, **options: Any) -> Hosts:
    return hosts.read(entries, BACKENDS, **options)


def host(number: int = 1, **changes: Any) -> Host:
    return replace(read(entry(number)).hosts[0], **changes)


def device(number: int = 1, **changes: Any) -> KnownDevice:
    """The device that :func:`host` is."""
    usual: dict[str, Any] = {
        "id": 100 + number,
        "name": f"panda-{number:04}",
        "fqdn": f"panda-{number:04}.example.com",
        "address": None,
        "inventory_id": number,
        "mac_address": f"0200000000{number:02x}",
        "imaging_server_id": 1,
        "imaging_server": SERVER,
        "owner_id": 1,
        "relay_info": f"relay-1.example.com:bank1:relay{number}",
        "hardware": None,
        "hardware_type_id": None,
        "environment": "none",
        "comments": None,
        "backends": {},
        "labels": {},
        "state": "ready",
        "claim_id": None,
        "leaving": False,
    }
    return KnownDevice(**usual | changes)


BOARD = KnownBoard(1, "relay-1", "relay-1.example.com", SERVER, None)


def known(*devices: KnownDevice, boards: Any = (BOARD,), hardware: Any = None) -> Known:
    return Known(devices, {SERVER: 1}, hardware or {}, boards)


def planned(found: list[Host], pool: Known, **options: Any) -> Plan:
    return plan(Hosts(found), pool, "proxr", **options)


def fates(made: Plan) -> dict[str, str]:
    return {fate.name: fate.what for fate in made.fates}


# Hosts


def test_a_host_is_named_by_the_first_label_and_its_mac_address_is_stored_plainly():
    (found,) = read(entry(fqdn="Panda-7.lab.example.com", mac_address="AA-BB-CC-00-11-22")).hosts
    assert (found.name, found.fqdn, found.mac_address) == ("Panda-7", "Panda-7.lab.example.com", "aabbcc001122")
    assert (found.labels, found.environment, found.address) == (None, None, None)


@pytest.mark.parametrize("field", ["fqdn", "mac_address", "imaging_server"])
@pytest.mark.parametrize("nothing", [None, ""])
def test_a_host_without_what_is_needed_is_skipped(field, nothing):
    found = read(entry(), entry(2, **{field: nothing}))
    assert len(found.hosts) == 1
    assert [(each.place, each.reason) for each in found.skipped] == [("entry 2", f"it has no {field}")]


def test_a_mac_address_of_zeros_is_none():
    assert read(entry(mac_address="00:00:00:00:00:00")).hosts == []


def test_hosts_of_some_servers_are_left_out_by_the_beginning_of_their_names():
    found = read(entry(), entry(2, imaging_server="test-1.example.com"), ignore=re.compile("test-"))
    assert [each.inventory_id for each in found.hosts] == [1]
    assert "test-1.example.com is left out" in found.skipped[0].reason
    assert len(read(entry(imaging_server="a-test-1"), ignore=re.compile("test-")).hosts) == 1


WRONG: list[tuple[str, Any, str]] = [
    ("inventory_id", None, "inventory_id: None is not a whole number from 1 to 2147483647"),
    ("inventory_id", 0, "inventory_id: 0 is not"),
    ("inventory_id", True, "inventory_id: True is not"),
    ("inventory_id", 2**31, "inventory_id: 2147483648 is not"),
    ("inventory_id", "1.5", "inventory_id: '1.5' is not"),
    ("fqdn", "a b", "fqdn: 'a b' is not a host name"),
    ("fqdn", "x" * 33, "fqdn: 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx' is not 1 to 32 letters"),
    ("fqdn", "1234.example.com", "fqdn: '1234' is not 1 to 32 letters"),
    ("fqdn", "any.example.com", "fqdn: 'any' is not"),
    ("fqdn", ["a"], "fqdn: ['a'] is not a host name"),
    ("mac_address", "02:00:00:00:00", "mac_address: '02:00:00:00:00' is not a MAC address"),
    ("mac_address", "02:00:00:00:00:0g", "mac_address: '02:00:00:00:00:0g' is not a MAC address"),
    ("mac_address", {"a": 1}, "mac_address: {'a': 1} is not text"),
    ("imaging_server", "http://x/", "imaging_server: 'http://x/' is not a host name"),
    ("hardware_type", "panda", "hardware_model: is missing beside hardware_type 'panda'"),
    ("relay_info", "x" * 256, "is not text of at most 255 characters"),
    ("address", "300.1.1.1", "address: '300.1.1.1' is not an IP address or a host name"),
    ("address", 5, "address: 5 is not an IP address or a host name"),
    ("environment", "any", "environment: 'any' is not 1 to 32 characters other than 'any'"),
    ("environment", "x" * 33, "is not text of at most 32 characters"),
    ("comments", "a\x07b", "is not text of at most 10000 characters"),
    ("labels", "pool", "labels: 'pool' is not NAME=VALUE"),
    ("labels", {"pool": ["a"]}, "labels: {'pool': ['a']} is not NAME=VALUE"),
    ("labels", "a=1,a=2", "labels: 'a=1,a=2' is not NAME=VALUE"),
    ("backends", {"power": "nuclear"}, "backends.power: 'nuclear' is not"),
    ("backends", {"colour": "red"}, "backends: 'colour' is not one of"),
    ("backends", {"options": "x"}, "backends: {'options': 'x'} is not"),
    ("backends", 5, "backends: 5 is not"),
    ("colour", "red", "colour: there is no such field; expected one of inventory_id, fqdn"),
]


@pytest.mark.parametrize(("field", "value", "message"), WRONG, ids=[f"{w[0]}={w[1]!r:.20}" for w in WRONG])
def test_a_value_that_cannot_be_right_makes_the_whole_answer_useless(field, value, message):
    with pytest.raises(InventoryError) as caught:
        read(entry(1), entry(2, **{field: value}))
    assert caught.value.message.startswith("entry 2: ")
    assert message in caught.value.message


def test_an_entry_that_is_skipped_may_be_as_wrong_as_it_likes():
    found = read(Entry("entry 1", {"fqdn": 5}, skip="it is decommissioned"))
    assert found.skipped[0].reason == "it is decommissioned"


def test_all_that_the_source_may_give_is_taken():
    more: dict[str, Any] = {
        "hardware_type": "panda",
        "hardware_model": 4430,
        "address": "10.0.0.5",
        "environment": "staging",
        "comments": "second\nshelf",
        "labels": "pool=b2g, rack=3",
        "backends": {"power": "pdudaemon", "options": {"port": "3"}},
    }
    (found,) = read(entry(**more)).hosts
    assert found.hardware == ("panda", "4430")
    assert found.labels == {"pool": "b2g", "rack": "3"}
    assert found.backends == {"power": "pdudaemon", "options": {"port": "3"}}
    assert (found.address, found.environment, found.comments) == ("10.0.0.5", "staging", "second\nshelf")
    assert read(entry(labels={"rack": 3})).hosts[0].labels == {"rack": "3"}
    assert read(entry(backends="probe=echo")).hosts[0].backends == {"probe": "echo"}


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"inventory_id": 1}, "inventory_id: 1"),
        ({"fqdn": "PANDA-0001.elsewhere.example.com"}, "name: panda-0001"),
        ({"mac_address": "020000000001"}, "mac_address: 020000000001"),
    ],
)
def test_what_only_one_host_can_have_is_not_shared(values, what):
    with pytest.raises(InventoryError, match=f"entry 1 and entry 2 have the same {what}"):
        read(entry(1), entry(2, **values))
    assert len(read(entry(1), replace(entry(2, **values), skip="it is decommissioned")).hosts) == 1


def test_many_faults_are_told_together_but_not_all():
    with pytest.raises(InventoryError) as caught:
        read(*(entry(number, mac_address="x") for number in range(1, 31)))
    assert caught.value.message.count("is not a MAC address") == 20
    assert caught.value.message.endswith("... and 10 more")


# Differences


def test_equal_sides_need_nothing():
    made = planned([host(1), host(2)], known(device(1), device(2)))
    assert made.is_empty
    assert fates(made) == {"panda-0001": "unchanged", "panda-0002": "unchanged"}


def test_hosts_are_added_with_what_they_refer_to():
    made = planned([host(hardware=("panda", "ES"), imaging_server="New.example.com")], known(boards=()))
    assert [each.name for each in made.adds] == ["panda-0001"]
    assert (made.servers, made.kinds) == (["New.example.com"], [("panda", "ES")])
    assert made.boards_added == [
        {"name": "relay-1", "fqdn": "relay-1.example.com", "imaging_server": "New.example.com"}
    ]


def test_names_of_servers_and_hardware_are_the_same_in_other_letters():
    pool = known(device(hardware=("Panda", "ES")), hardware={("Panda", "ES"): {}})
    assert planned([host(hardware=("panda", "es"), imaging_server=SERVER.upper())], pool).is_empty


def test_what_the_inventory_does_not_say_stays():
    pool = known(
        device(environment="lab", comments="mine", labels={"a": "1"}, backends={"probe": "adb"}, address="::1")
    )
    assert planned([host()], pool).is_empty


def test_what_it_says_is_taken():
    more: dict[str, Any] = {
        "environment": "lab",
        "comments": "c",
        "labels": {"a": "1"},
        "backends": {"probe": "adb"},
        "address": "::1",
    }
    (update,) = planned([host(**more)], known(device(labels={"b": "2"}))).updates
    assert update.columns == {
        "environment": "lab",
        "comments": "c",
        "address": "::1",
        "backends": '{"probe": "adb"}',
    }
    assert update.labels == {"a": "1"}


def test_it_renames_by_inventory_id():
    (update,) = planned([host(1, name="panda-new", fqdn="panda-new.example.com")], known(device(1))).updates
    assert update.columns == {"name": "panda-new", "fqdn": "panda-new.example.com"}
    assert update.said.startswith("renamed from panda-0001; fqdn panda-0001.example.com -> panda-new.example.com")


@pytest.mark.parametrize(
    ("state", "claim", "fate"),
    [
        ("ready", None, "removed"),
        ("failed_pxe_booting", None, "removed"),
        ("locked_out", None, "removed"),
        ("new", None, "removed"),
        ("ready", 7, "leaves"),
        ("pc_rebooting", None, "leaves"),
        ("maintenance_mode", None, "leaves"),
        ("troubleshooting", None, "leaves"),
        ("failed_pxe_booting", 7, "leaves"),
    ],
)
def test_a_device_that_is_lent_or_busy_only_leaves(state, claim, fate):
    made = planned([], known(device(state=state, claim_id=claim)))
    assert fates(made)["panda-0001"] == fate
    assert (len(made.removes), len(made.marks)) == ((1, 0) if fate == "removed" else (0, 1))
    assert bool(made.boards_gone) is (fate == "removed")


def test_all_resting_states_are_states():
    assert set(device_machine().states) >= RESTING
    assert "ready" in RESTING


def test_a_device_that_is_marked_is_not_a_change_again():
    made = planned([], known(device(claim_id=7, leaving=True)))
    assert made.is_empty
    assert made.changes == 0


def test_a_device_that_comes_back_before_it_has_left_stays():
    (update,) = planned([host()], known(device(claim_id=7, leaving=True))).updates
    assert update.columns == {"leaving": 0}


def test_devices_that_were_added_by_hand_stay():
    made = planned([host(1)], known(device(1), device(2, inventory_id=0, name="mine")))
    assert made.is_empty


@pytest.mark.parametrize("mac", [NO_MAC, "020000000001"])
def test_a_board_that_was_there_before_becomes_the_inventorys(mac):
    (update,) = planned([host(1)], known(device(1, inventory_id=0, mac_address=mac))).updates
    assert update.columns["inventory_id"] == 1


def test_another_board_of_the_same_name_is_a_mistake():
    with pytest.raises(InventoryError, match="device panda-0001 that was added by hand and has another MAC address"):
        planned([host(1)], known(device(1, inventory_id=0, mac_address="02ffffffffff")))
    with pytest.raises(InventoryError, match="device panda-0001, which was added by hand, has this name"):
        planned([host(7, name="panda-0001")], known(device(7), device(1, inventory_id=0)))


def test_the_mac_address_of_a_device_that_was_added_by_hand_is_taken():
    with pytest.raises(InventoryError, match="its MAC address 020000000001 is that of device mine"):
        planned([host(1)], known(device(1, inventory_id=0, name="mine")))


def test_a_name_that_is_still_in_use_is_waited_for():
    lent = device(1, claim_id=7)
    made = planned([host(2, name="panda-0001")], known(lent))
    assert not made.adds
    assert [str(fate) for fate in made.fates if fate.what == "waits"] == [
        "panda-0001: waits (device panda-0001 has this name until it is gone)"
    ]
    # One that waits for its new name keeps its old one, which another one waits for in turn.
    pool = known(lent, device(2), device(3))
    made = planned([host(2, name="panda-0001"), host(3, name="panda-0002"), host(4, name="panda-0003")], pool)
    assert not made.updates
    assert not made.adds
    assert [fate.what for fate in made.fates if fate.name != "panda-0001" or fate.what == "waits"] == ["waits"] * 3


def test_names_may_be_exchanged():
    made = planned([host(1, name="panda-0002"), host(2, name="panda-0001")], known(device(1), device(2)))
    assert [update.columns["name"] for update in made.updates] == ["panda-0002", "panda-0001"]


def test_the_limit_is_five_or_a_tenth_of_the_larger_side():
    five = planned([host(number) for number in range(1, 6)], known())
    five.check_limit()
    six = planned([host(number) for number in range(1, 7)], known())
    with pytest.raises(TooManyChanges, match=r"6 of 6 devices would change.*more than 5.*--ship-it"):
        six.check_limit()
    many = [device(number, mac_address=f"02{number:010x}") for number in range(1, 101)]
    planned([], known(*many[:5])).check_limit()
    mine = [host(number, mac_address=f"02{number:010x}", relay_info=None) for number in range(1, 101)]
    planned(mine[10:], known(*many)).check_limit()
    with pytest.raises(TooManyChanges, match="11 of 100 devices"):
        planned(mine[11:], known(*many)).check_limit()


def test_devices_of_servers_that_are_left_out_are_left_alone():
    pool = known(device(1, imaging_server="test-1"), device(2))
    made = planned([host(2)], pool, ignore=re.compile("test-"))
    assert made.is_empty
    assert made.larger_side == 1


# Relay boards


def test_a_relay_info_must_be_one_where_the_power_hangs_on_it():
    with pytest.raises(InventoryError, match="entry 1: relay_info: 'relay-1:bank9:relay1' is not HOST"):
        planned([host(relay_info="relay-1:bank9:relay1")], known())
    planned([host(relay_info="rack 7", backends={"power": "pdudaemon"})], known())
    planned([host(relay_info="rack 7")], known(device(backends={"power": "pdudaemon"})))
    kinds = {("pi", "4"): {"power": "pdudaemon"}}
    planned([host(relay_info="rack 7", hardware=("PI", "4"))], known(hardware=kinds))


def test_a_relay_board_has_one_imaging_server():
    pair = [host(1), host(2, imaging_server="imaging2.example.com", relay_info="Relay-1.example.com:2101:bank1:relay2")]
    message = f"relay board relay-1.example.com has two imaging servers: {SERVER} by entry 1, imaging2"
    with pytest.raises(InventoryError, match=message):
        planned(pair, known())


def test_a_relay_board_moves_with_its_devices_and_goes_with_the_last_one():
    moved = [host(1, imaging_server="imaging2.example.com")]
    assert planned(moved, known(device(1))).boards_changed == {1: {"imaging_server": "imaging2.example.com"}}
    gone = planned([host(1, relay_info="relay-2.example.com:bank1:relay1")], known(device(1)))
    assert [board.name for board in gone.boards_gone] == ["relay-1"]
    assert [board["name"] for board in gone.boards_added] == ["relay-2"]


def test_a_relay_board_that_a_device_of_another_origin_hangs_on_stays():
    pool = known(device(1), device(8, inventory_id=0, name="mine"))
    assert not planned([host(1, relay_info="relay-2.example.com:bank1:relay1")], pool).boards_gone


def test_switches_that_a_server_found_by_itself_are_its_own_unless_they_are_the_inventorys_boards():
    strip = KnownBoard(2, "strip", "strip", SERVER, "command:strip")
    found = KnownBoard(3, "relay-1.example.com", "relay-1.example.com:2101", SERVER, "relay:relay-1.example.com:2101")
    made = planned([host(1)], known(device(1), boards=(strip, found)))
    assert made.boards_changed == {3: {"lane": None, "fqdn": "relay-1.example.com"}}
    assert not made.boards_gone
    assert not made.boards_added


def test_relay_boards_have_names_of_their_own():
    found = [
        host(1, relay_info="relay-1.example.com:bank1:relay1"),
        host(2, relay_info="relay-1.elsewhere.example.com:bank1:relay1"),
        host(3, relay_info="10.0.0.5:2999:bank1:relay1"),
    ]
    made = planned(found, known(boards=()))
    assert {board["fqdn"]: board["name"] for board in made.boards_added} == {
        "10.0.0.5:2999": "10.0.0.5",
        "relay-1.elsewhere.example.com": "relay-1",
        "relay-1.example.com": "relay-1-2",
    }
