# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What dnsmasq is told, and what boards find in the TFTP tree."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from pathlib import Path

import pytest

from mozpool.bmm.netboot import dnsmasq, tftproot
from mozpool.bmm.netboot.boards import Addresses, Board
from mozpool.clock import Clock
from mozpool.config import ConfigError, Netboot, Settings, load
from mozpool.errors import MozpoolError

NETWORK = IPv4Network("10.99.0.0/24")


def settings_of(root: Path | None = Path("/srv/tftp"), ipaddress: str = "10.99.0.1", **keys: object) -> Settings:
    settings = Settings()
    values: dict = {"network": NETWORK, **keys}
    return replace(
        settings,
        server=replace(settings.server, ipaddress=ipaddress, port=8080),
        paths=replace(settings.paths, tftp_root=root),
        netboot=Netboot(**values),
    )


def lines(settings: Settings) -> list[str]:
    return [line for line in dnsmasq.main_text(settings).splitlines() if not line.startswith("#")]


def listed(settings: Settings, *boards: Board) -> tuple[list[str], list[str]]:
    hosts, left_out = dnsmasq.hosts(settings, boards, Addresses(Clock()).of(board.address for board in boards))
    return [str(host) for host in hosts], left_out


# --- dnsmasq's configuration ---


def test_dhcp_gives_addresses_to_known_boards_only():
    told = lines(settings_of(lease_time=900))
    assert "dhcp-range=10.99.0.0,static,255.255.255.0,900" in told
    assert {"port=0", "dhcp-ignore=tag:!known", "dhcp-authoritative", "enable-tftp", "leasefile-ro"} <= set(told)
    assert "dhcp-boot=lpxelinux.0,,10.99.0.1" in told
    assert "dhcp-option-force=encap:175,176,1b" in told


def test_router_and_name_server_are_told_only_where_they_are_set():
    told = lines(settings_of())
    assert {"dhcp-option=option:router", "dhcp-option=option:dns-server"} <= set(told)
    told = lines(settings_of(router="10.99.0.254", nameserver="9.9.9.9"))
    assert {"dhcp-option=option:router,10.99.0.254", "dhcp-option=option:dns-server,9.9.9.9"} <= set(told)


def test_a_proxy_gives_no_addresses_and_lets_ipxe_wait_for_it():
    told = lines(settings_of(mode="proxy"))
    assert "dhcp-range=10.99.0.0,proxy,255.255.255.0" in told
    assert "dhcp-ignore=tag:!known" in told
    assert not any(line.startswith(("dhcp-authoritative", "dhcp-option")) for line in told)


def test_tftp_serves_files_and_answers_no_dhcp():
    told = lines(settings_of(mode="tftp", network=None))
    assert not any(line.startswith(("dhcp", "enable-ra")) for line in told)
    assert {"enable-tftp", "tftp-root=/srv/tftp"} <= set(told)


def test_the_interface_is_the_one_with_our_address_unless_others_are_named():
    told = lines(settings_of())
    assert "listen-address=10.99.0.1" in told
    assert not any(line.startswith("interface") for line in told)
    told = lines(settings_of(interfaces="eth1 eth2"))
    assert {"interface=eth1", "interface=eth2", "except-interface=lo"} <= set(told)
    assert "listen-address=10.99.0.1" not in told


def test_ipxe_is_loaded_once_and_then_gets_the_boards_script():
    told = lines(settings_of(boot_loader="ipxe", url="http://boot.example.com/"))
    assert "dhcp-boot=undionly.kpxe,,10.99.0.1" in told
    assert "dhcp-boot=tag:ipxe,http://boot.example.com/ipxe/${netX/mac:hexhyp},,10.99.0.1" in told
    assert {"dhcp-match=set:ipxe,175", "dhcp-userclass=set:ipxe,iPXE"} <= set(told)


def test_an_ipv6_network_is_advertised_without_a_route():
    told = lines(settings_of(advertise=IPv6Network("fd99::/64"), interfaces="eth1"))
    assert {"enable-ra", "dhcp-range=fd99::,ra-only,64", "ra-param=*,0,0"} <= set(told)


def test_only_at_debug_level_is_every_option_logged():
    settings = settings_of()
    assert "log-dhcp" not in lines(settings)
    assert "log-dhcp" in lines(replace(settings, server=replace(settings.server, log_level="DEBUG")))


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        (settings_of(None), "[paths] tftp_root: is not set"),
        (settings_of(Path("/srv/a b")), "[paths] tftp_root: '/srv/a b' can't be told"),
        (settings_of(Path("/srv/tftp,eth0")), "[paths] tftp_root: "),
        (settings_of(network=None), "[netboot] network: is not set; mode dhcp"),
        (settings_of(network=None, mode="proxy"), "[netboot] network: is not set; mode proxy"),
        (settings_of(ipaddress="127.0.0.1"), "[server] ipaddress: boards can't reach 127.0.0.1"),
        (settings_of(router="10.98.0.1"), "[netboot] router: 10.98.0.1 is not in the network 10.99.0.0/24"),
        (settings_of(advertise=IPv6Network("fd99::/64")), "[netboot] interfaces: is not set; advertise needs"),
        (settings_of(boot_loader="ipxe", url="http://x/a,b"), "[netboot] url: 'http://x/a,b' can't be told"),
        (settings_of(boot_loader="ipxe", url="http://x/" + "a" * 99), "is too long for a DHCP answer"),
    ],
)
def test_a_setting_that_it_can_not_work_with_is_named(settings, complaint):
    with pytest.raises(ConfigError) as caught:
        dnsmasq.main_text(settings)
    assert complaint in caught.value.message


def test_a_complaint_names_the_line_of_the_file(tmp_path):
    file = tmp_path / "config.ini"
    file.write_text("[paths]\ntftp_root = /srv/tftp\n[server]\nipaddress = 127.0.0.1\n")
    with pytest.raises(ConfigError) as caught:
        dnsmasq.check(load(file))
    assert f"{file}:4: [server] ipaddress: " in caught.value.message
    assert f"{file}: [netboot] network: " in caught.value.message


# --- The list of hosts ---


def test_a_board_is_listed_by_mac_address_and_name():
    assert listed(settings_of(), Board("panda-1", "AABBCCDDEEFF", "10.99.0.11")) == (
        ["aa:bb:cc:dd:ee:ff,10.99.0.11,panda-1"],
        [],
    )


def test_beside_another_dhcp_server_addresses_do_not_matter():
    boards = [Board("one", "aabbccddee01", "192.0.2.1"), Board("two", "aabbccddee02", "192.0.2.1")]
    assert listed(settings_of(mode="proxy"), *boards) == (["aa:bb:cc:dd:ee:01,one", "aa:bb:cc:dd:ee:02,two"], [])


@pytest.mark.parametrize("name", ["under_score", "a.b", "-x", "x\ny", "x,y", "é", ""])
def test_a_name_that_is_no_host_name_is_not_told(name):
    assert listed(settings_of(), Board(name, "aabbccddeeff", "10.99.0.11"))[0] == ["aa:bb:cc:dd:ee:ff,10.99.0.11"]


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("10.98.0.11", "its address 10.98.0.11 is not one of the network 10.99.0.0/24 ([netboot] network)"),
        ("10.99.0.0", "its address 10.99.0.0 is not one of the network"),
        ("10.99.0.255", "its address 10.99.0.255 is not one of the network"),
        ("10.99.0.1", "its address 10.99.0.1 belongs to a server of the network"),
        ("a..b", "no IPv4 address is known for 'a..b'"),
        ("fd99::11", "no IPv4 address is known for 'fd99::11'"),
    ],
)
def test_a_board_whose_address_does_not_fit_is_left_out_and_the_others_are_not(address, reason):
    good, bad = Board("good", "aabbccddee01", "10.99.0.11"), Board("bad", "aabbccddee02", address)
    hosts, left_out = listed(settings_of(), bad, good)
    assert hosts == ["aa:bb:cc:dd:ee:01,10.99.0.11,good"]
    assert len(left_out) == 1
    assert left_out[0].startswith(f"network boot leaves out bad: {reason}")


def test_a_bad_mac_address_and_what_two_boards_share_are_left_out():
    boards = [
        Board("one", "aabbccddee01", "10.99.0.11"),
        Board("two", "aabbccddee02", "10.99.0.11"),
        Board("three", "AABBCCDDEE01", "10.99.0.13"),
        Board("four", "aabbccddee0\n", "10.99.0.14"),
    ]
    hosts, left_out = listed(settings_of(), *boards)
    assert hosts == ["aa:bb:cc:dd:ee:01,10.99.0.11,one"]
    assert [line.partition(": ")[2] for line in left_out] == [
        "its address 10.99.0.11 is also that of one",
        "another device has its MAC address aa:bb:cc:dd:ee:01, too",
        "its MAC address 'aabbccddee0\\n' is not twelve hex digits",
    ]


def test_a_host_name_is_looked_up():
    assert Addresses(Clock()).of(["localhost", "10.99.0.11"]) == {
        "localhost": IPv4Address("127.0.0.1"),
        "10.99.0.11": IPv4Address("10.99.0.11"),
    }


class Later(Clock):
    """The real clock, which can be put forward."""

    passed = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.passed


def test_a_name_that_is_known_is_not_asked_for_again_for_a_while(monkeypatch):
    asked: list[str] = []

    def look_up(host: str, *rest: object, **options: object) -> list:
        if options.get("flags"):
            raise OSError  # only numbers are asked for
        asked.append(host)
        if len(asked) > 1:
            raise OSError("the name server is silent")
        return [(2, 1, 6, "", ("10.99.0.11", 0))]

    monkeypatch.setattr("socket.getaddrinfo", look_up)
    clock = Later()
    addresses = Addresses(clock)
    known = {"board": IPv4Address("10.99.0.11")}
    assert [addresses.of(["board"]), addresses.of(["board"])] == [known, known]
    assert asked == ["board"]
    clock.passed = 301.0
    assert addresses.of(["board"]) == known  # what was known holds while nobody says anything else
    assert addresses.of(["board"]) == known
    assert asked == ["board", "board"]


# --- The TFTP tree ---


@pytest.fixture
def root(tmp_path):
    directory = tmp_path / "tftp"
    directory.mkdir()
    return directory


@pytest.fixture
def system(tmp_path) -> Callable[[str], Path]:
    """A file system with nothing but the files of packages that a test installs."""
    directory = tmp_path / "system"

    def install(*files: str, content: str = "1") -> Path:
        for name in files:
            file = directory / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content)
        return directory

    return install


LOADER, MODULE = "usr/lib/PXELINUX/lpxelinux.0", "usr/lib/syslinux/modules/bios/ldlinux.c32"


def content(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()}


def test_the_tree_gets_boot_loader_modules_and_a_default(root, system):
    written = tftproot.prepare(root, "lpxelinux", system=system(LOADER, MODULE))
    assert content(root) == {"lpxelinux.0": "1", "ldlinux.c32": "1", "pxelinux.cfg/default": tftproot.DEFAULT}
    assert {path.name for path in written} == {"lpxelinux.0", "ldlinux.c32", "default"}
    assert tftproot.missing(root, "lpxelinux") == []
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o644 for path in written)


def test_a_second_time_there_is_nothing_to_do_until_a_package_changes(root, system):
    files = system(LOADER, MODULE)
    tftproot.prepare(root, "lpxelinux", system=files)
    assert tftproot.prepare(root, "lpxelinux", system=files) == []
    system(LOADER, content="2")
    assert tftproot.prepare(root, "lpxelinux", system=files) == [root / "lpxelinux.0"]
    assert (root / "lpxelinux.0").read_text() == "2"


def test_a_default_that_somebody_wrote_is_left_alone(root, system):
    (root / "pxelinux.cfg").mkdir()
    (root / "pxelinux.cfg" / "default").write_text("mine")
    tftproot.prepare(root, "lpxelinux", system=system(LOADER, MODULE))
    assert (root / "pxelinux.cfg" / "default").read_text() == "mine"


@pytest.mark.parametrize(
    ("installed", "boot_loader", "packages"),
    [
        ([], "lpxelinux", "pxelinux syslinux-common"),
        ([LOADER], "lpxelinux", "syslinux-common"),
        ([LOADER, MODULE], "pxelinux", "pxelinux"),
        ([LOADER, MODULE], "ipxe", "ipxe"),
    ],
)
def test_a_missing_package_is_named_and_nothing_is_written(root, system, installed, boot_loader, packages):
    with pytest.raises(MozpoolError) as caught:
        tftproot.prepare(root, boot_loader, system=system(*installed))
    assert f"(apt-get install {packages})" in caught.value.message
    assert content(root) == {}
    assert len(tftproot.missing(root, boot_loader)) == (2 if boot_loader == "ipxe" else 3)


def test_a_boot_loader_that_was_put_there_by_hand_needs_no_package(root, system):
    (root / "undionly.kpxe").write_text("mine")
    assert tftproot.prepare(root, "ipxe", system=system()) == [root / "pxelinux.cfg" / "default"]
    assert (root / "undionly.kpxe").read_text() == "mine"


def test_a_directory_that_is_not_there_is_named(root, system):
    nowhere = root / "nowhere"
    with pytest.raises(MozpoolError, match=f"tftp_root: there is no directory {nowhere}"):
        tftproot.prepare(nowhere, "ipxe", system=system())
    assert tftproot.missing(nowhere, "ipxe") == [f"[paths] tftp_root: there is no directory {nowhere}"]


def test_what_can_not_be_written_is_named(root, system):
    (root / "pxelinux.cfg").write_text("a file")
    with pytest.raises(MozpoolError, match=r"can't be filled: .*pxelinux\.cfg: File exists"):
        tftproot.prepare(root, "lpxelinux", system=system(LOADER, MODULE))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_older_boot_loader_that_may_not_be_replaced_will_do(root, system, caplog):
    files = system(LOADER, MODULE)
    tftproot.prepare(root, "lpxelinux", system=files)
    system(LOADER, content="2")
    root.chmod(0o555)
    try:
        assert tftproot.prepare(root, "lpxelinux", system=files) == []
    finally:
        root.chmod(0o755)
    assert "lpxelinux.0 is not that of the installed package" in caplog.text
