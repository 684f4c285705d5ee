# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""A group of imaging servers whose members boot each other's boards: one is lost in the middle of an installation.

Each server is a machine of its own in the boards' network, with its own address, TFTP tree and dnsmasq. Nothing is
stood in for but the boards' hardware.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.group import TAKEOVER_AFTER, GroupRack, Machine, eventually
from tests.lab.network import may_have_own_network
from tests.lab.rack import Builds
from tests.lab.test_lab import (
    BOOT_LIMIT,
    INSTALL_LIMIT,
    INSTALLING,
    NETBOOT,
    PROVING,
    ask,
    give_back,
    holds,
    in_order,
)
from tests.mariadb import MariaDB
from tests.processes import runs

pytestmark = [
    pytest.mark.lab,
    pytest.mark.slow,
    pytest.mark.mysql,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not may_have_own_network(), reason="QEMU's own network has no place for two servers"),
]

MAC = "52:54:00:99:00:01"
BOOT_FILE = "01-52-54-00-99-00-01"
"""Of ``board1``."""

SLACK = 10.0
"""Seconds beyond the set time within which a machine with too much to do must have taken over."""


@pytest.fixture
def rack(builds: Builds, logs: Path, mariadb: MariaDB) -> Iterator[GroupRack]:
    """One board that belongs to the first of two servers."""
    with GroupRack(1, builds, logs, mariadb) as rack:
        yield rack


class Said:
    """What a server logs from now on."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._begin = len(machine.said())

    def __str__(self) -> str:
        return self._machine.said()[self._begin :]

    def lacks(self, texts: list[str]) -> list[str]:
        """Those of the texts that it did not say."""
        said = str(self)
        return [text for text in texts if text not in said]


def booted_from(machine: Machine, *events: str) -> list[str]:
    """What a server logs when ``board1`` gets its address, boot loader and boot file there, and tells these events."""
    root = machine.tftp_root
    return [
        f"DHCPACK(eth0) 10.99.0.11 {MAC} board1",
        f"sent {root}/lpxelinux.0 to 10.99.0.11",
        f"sent {root}/pxelinux.cfg/{BOOT_FILE} to 10.99.0.11",
        # It is known by the token of its boot, which that server has made.
        *(f"10.99.0.11 board1 GET /api/device/board1/event/{event}/ 200" for event in ("mobile_init_started", *events)),
    ]


def said_since(rack: GroupRack, boot: int) -> str:
    """What ``board1`` printed from that power on, counted from 1."""
    return rack.boards["board1"].said().partition(f"power on, the {boot}. time")[2]


def test_a_server_dies_in_the_middle_of_an_installation_and_another_one_installs_the_board(rack: GroupRack) -> None:
    first, second = rack.machines
    asked = rack.inside(lambda: ask(rack, "raw"))
    eventually(lambda: rack.states("board1")[-1] in ("raw_downloading", "raw_writing"), INSTALL_LIMIT, "installing")
    assert "DHCPOFFER" not in second.said()

    (dnsmasq,) = first.dnsmasq()
    since, boots = Said(second), rack.boards["board1"].boots
    first.kill()
    killed = time.monotonic()
    eventually(lambda: not runs(dnsmasq), 10, "the killed server's dnsmasq ends")
    eventually(lambda: rack.owner("devices", "board1")[0] == second.id, TAKEOVER_AFTER + SLACK, "taken over")
    taken = time.monotonic()

    rack.talk_to(second)
    request = rack.inside(lambda: rack.client.wait_ready(asked.id, timeout=INSTALL_LIMIT))
    ready = time.monotonic()
    assert rack.owner("requests", asked.id) == (second.id, None)
    assert in_order([*NETBOOT, "raw_downloading", *NETBOOT, *INSTALLING["raw"], *PROVING], rack.states("board1"))
    console = said_since(rack, boots + 1)
    assert f"downloading {second.url}/images/raw-1.img.gz" in console
    assert first.address not in console
    assert since.lacks(booted_from(second, *INSTALLING["raw"])) == []
    rack.inside(lambda: holds(rack, request, "raw-1"))
    assert second.boot_files() == []

    # As a crash between two steps leaves them: either would boot nothing.
    for machine in rack.machines:
        (machine.tftp_root / "pxelinux.cfg" / BOOT_FILE).write_text("DEFAULT stale\nLABEL stale\n LINUX nothing\n")
    rack.start(first)
    eventually(lambda: rack.owner("devices", "board1")[0] is None, TAKEOVER_AFTER + BOOT_LIMIT, "given back")
    eventually(lambda: rack.owner("devices", "board1") == (None, None), BOOT_LIMIT, "begun with")
    eventually(lambda: rack.owner("requests", asked.id) == (None, None), BOOT_LIMIT, "the request, too")
    eventually(lambda: first.boot_files() == [], BOOT_LIMIT, "what the file says is old")
    back = time.monotonic()
    assert second.boot_files() == [BOOT_FILE]
    rack.inside(lambda: holds(rack, request, "raw-1"))
    rack.inside(lambda: give_back(rack, request))

    since, since_there = Said(first), Said(second)
    asked = rack.inside(lambda: ask(rack, "maintenance"))
    rack.inside(lambda: rack.client.wait_ready(asked.id, timeout=INSTALL_LIMIT))
    assert since.lacks(booted_from(first, "maint_mode")) == []
    assert "DHCPOFFER" not in str(since_there)
    assert "/api/device/board1/event/" not in str(since_there)
    print(
        f"\n  taken over after {taken - killed:.1f} s, ready {ready - taken:.1f} s later; "
        f"given back and booted again: {back - ready:.1f} s and {time.monotonic() - back:.1f} s"
    )


@pytest.mark.long
def test_a_server_that_is_frozen_answers_its_boards_no_more_and_goes_on_without_those_that_were_taken(
    rack: GroupRack,
) -> None:
    first, second = rack.machines
    asked = rack.inside(lambda: ask(rack, "raw"))
    eventually(lambda: rack.states("board1")[-1] == "pxe_booting", INSTALL_LIMIT, "booting from the network")
    assert first.boot_files() == [BOOT_FILE]

    (dnsmasq,) = first.dnsmasq()
    since, boots = Said(second), rack.boards["board1"].boots
    first.signal(signal.SIGSTOP)
    answered = eventually(lambda: not runs(dnsmasq), TAKEOVER_AFTER, "its dnsmasq ends")
    assert rack.owner("devices", "board1")[0] is None, "both would answer"
    eventually(lambda: rack.owner("devices", "board1")[0] == second.id, TAKEOVER_AFTER + SLACK, "taken over")

    rack.talk_to(second)
    request = rack.inside(lambda: rack.client.wait_ready(asked.id, timeout=INSTALL_LIMIT))
    assert in_order([*NETBOOT[:2], *NETBOOT, *INSTALLING["raw"], *PROVING], rack.states("board1"))
    assert since.lacks(booted_from(second, *INSTALLING["raw"])) == []
    assert first.address not in said_since(rack, boots + 1)
    rack.inside(lambda: holds(rack, request, "raw-1"))
    # It has not cleared away what it wrote.
    assert first.boot_files() == [BOOT_FILE]

    since = Said(first)
    first.signal(signal.SIGCONT)
    # Until then it logs what its dnsmasq said before it ended.
    noticed = "network boot ends until this server is in touch again"
    eventually(lambda: noticed in str(since), BOOT_LIMIT, "it notices")
    eventually(lambda: len(first.dnsmasq()) == 1, BOOT_LIMIT, "it answers boards again")
    (hosts,) = first.directory.glob("mozpool-netboot-*/hosts")
    assert MAC not in hosts.read_text(), "not this one, as long as another server has it"
    eventually(lambda: rack.owner("devices", "board1") == (None, None), TAKEOVER_AFTER + BOOT_LIMIT, "given back")
    eventually(lambda: first.boot_files() == [], BOOT_LIMIT, "what the file says is old")
    eventually(lambda: MAC in hosts.read_text(), BOOT_LIMIT, "it answers this one, too")
    assert "DHCPOFFER" not in str(since).partition(noticed)[2]
    rack.inside(lambda: give_back(rack, request))
    print(f"\n  the frozen server's dnsmasq ended after {answered:.1f} s")


@pytest.mark.long
def test_another_server_boots_the_board_beside_a_foreign_dhcp_server(
    builds: Builds, logs: Path, mariadb: MariaDB
) -> None:
    with GroupRack(1, builds, logs, mariadb, proxy=True) as rack:
        first, second = rack.machines
        asked = rack.inside(lambda: ask(rack, "raw"))
        eventually(lambda: rack.states("board1")[-1] in ("raw_downloading", "raw_writing"), INSTALL_LIMIT, "installing")
        since, boots = Said(second), rack.boards["board1"].boots
        first.kill()
        rack.talk_to(second)
        request = rack.inside(lambda: rack.client.wait_ready(asked.id, timeout=INSTALL_LIMIT))
        assert in_order([*NETBOOT, "raw_downloading", *NETBOOT, *INSTALLING["raw"], *PROVING], rack.states("board1"))
        assert since.lacks(booted_from(second, *INSTALLING["raw"])[1:]) == []
        assert first.address not in said_since(rack, boots + 1)
        rack.inside(lambda: holds(rack, request, "raw-1"))
