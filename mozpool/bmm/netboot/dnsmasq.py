# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What dnsmasq is told: its configuration, which only depends on ours, and its list of hosts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from mozpool.bmm.interfaces import NO_MAC
from mozpool.bmm.netboot.boards import Board
from mozpool.config import ConfigError, Problem, Settings

MOST_LEASES = 65536
"""dnsmasq's own limit is 1000. Only known boards get an address at all."""

MOST_TRANSFERS = 250
"""TFTP transfers at a time, instead of 50: after a power cut all boards of a lab start at once."""

LONGEST_FILE = 127
"""Characters of a boot file's name or URL that fit into a DHCP answer."""

BOOT_FILES = {"lpxelinux": "lpxelinux.0", "pxelinux": "pxelinux.0", "ipxe": "undionly.kpxe"}
"""What a plain PXE ROM is told to load, by boot loader."""

_HEADER = "# Written by Mozpool from its configuration and its devices; changes here are lost.\n"
_PLAIN = re.compile(r'[^\s,"\\#]+')
_HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_MAC = re.compile(r"[0-9a-f]{12}")


@dataclass(frozen=True)
class Host:
    """A line of the list of hosts: a board that dnsmasq may talk to."""

    mac: str
    """Lower case, with colons."""
    address: IPv4Address | None
    """None where another DHCP server gives it one."""
    name: str | None
    """What it is told to call itself; None when its name can't be a host name."""

    def __str__(self) -> str:
        return ",".join(str(part) for part in (self.mac, self.address, self.name) if part is not None)


def needs_boards(settings: Settings) -> bool:
    """Whether dnsmasq has to know the boards: not where it only serves files."""
    return settings.netboot.mode != "tftp"


def script_url(settings: Settings) -> str:
    """Where an iPXE finds its script; iPXE itself puts in the MAC address of the interface that it boots from."""
    return settings.boards_url + "/ipxe/${netX/mac:hexhyp}"


def check(settings: Settings) -> None:
    """Raise ConfigError with every setting that network boot can't work with."""
    netboot, ipaddress = settings.netboot, settings.server.ipaddress
    problems = []

    def problem(section: str, key: str, message: str) -> None:
        file = settings.source or Path("config.ini")
        problems.append(Problem(file, settings.lines.get((section, key)), section, key, message))

    root = settings.paths.tftp_root
    if root is None:
        problem("paths", "tftp_root", "is not set; network boot needs the directory that boards boot from")
    elif not _PLAIN.fullmatch(str(root)):
        problem(
            "paths",
            "tftp_root",
            f"{str(root)!r} can't be told to dnsmasq; expected no spaces, commas, quotes, # and backslashes",
        )
    if netboot.mode in ("dhcp", "proxy"):
        if netboot.network is None:
            problem("netboot", "network", f"is not set; mode {netboot.mode} needs the network that boards are in")
        if IPv4Address(ipaddress).is_loopback or IPv4Address(ipaddress).is_unspecified:
            problem("server", "ipaddress", f"boards can't reach {ipaddress}; expected this server's address for them")
        if netboot.boot_loader == "ipxe" and not _PLAIN.fullmatch(netboot.url or "-"):
            problem("netboot", "url", f"{netboot.url!r} can't be told to dnsmasq; expected no commas, quotes, # and \\")
        if netboot.boot_loader == "ipxe" and len(script_url(settings)) > LONGEST_FILE:
            problem("netboot", "url", f"{netboot.url!r} is too long for a DHCP answer")
    network, router = netboot.network, netboot.router
    if netboot.mode == "dhcp" and network and router and IPv4Address(router) not in network:
        problem("netboot", "router", f"{router} is not in the network {network}")
    if netboot.advertise and not netboot.interfaces.split():
        problem("netboot", "interfaces", "is not set; advertise needs the names of the interfaces")
    if problems:
        raise ConfigError(problems)


def main_text(settings: Settings) -> str:
    """dnsmasq's configuration file. Raises ConfigError.

    There is no lease file: every address is fixed by the list of hosts, and what else a lease could remember is the
    board that had the address before.
    """
    check(settings)
    netboot = settings.netboot
    lines = ["port=0", "no-hosts", "bind-dynamic", *_interfaces(settings)]
    lines += ["enable-tftp", f"tftp-root={settings.paths.tftp_root}", f"tftp-max={MOST_TRANSFERS}"]
    if netboot.mode == "dhcp":
        lines += _dhcp(settings)
    elif netboot.mode == "proxy":
        assert netboot.network is not None
        lines.append(f"dhcp-range={netboot.network.network_address},proxy,{netboot.network.netmask}")
        # Only with a prompt or a menu does dnsmasq answer as a proxy. Nobody sees the prompt: without a menu, ROMs are
        # told to look for no other servers and to load the file at once.
        lines.append("pxe-prompt=Mozpool,0")
    if netboot.mode != "tftp":
        lines += ["dhcp-ignore=tag:!known", "leasefile-ro", *_boot(settings)]
        if settings.server.log_level == "DEBUG":
            lines.append("log-dhcp")
    if netboot.advertise:
        network = netboot.advertise
        lines += ["enable-ra", f"dhcp-range={network.network_address},ra-only,{network.prefixlen}"]
        lines.append("ra-param=*,0,0")  # a prefix, but no route to anywhere
    return _HEADER + "".join(f"{line}\n" for line in lines)


def _interfaces(settings: Settings) -> list[str]:
    names = settings.netboot.interfaces.split()
    if not names:
        return [f"listen-address={settings.server.ipaddress}"]
    return [f"interface={name}" for name in names] + ([] if "lo" in names else ["except-interface=lo"])


def _dhcp(settings: Settings) -> list[str]:
    netboot = settings.netboot
    assert netboot.network is not None
    return [
        f"dhcp-range={netboot.network.network_address},static,{netboot.network.netmask},{netboot.lease_time}",
        "dhcp-authoritative",
        f"dhcp-lease-max={MOST_LEASES}",
        # Without a value nothing is said, where dnsmasq would name itself.
        ",".join(["dhcp-option=option:router", *([netboot.router] if netboot.router else [])]),
        ",".join(["dhcp-option=option:dns-server", *([netboot.nameserver] if netboot.nameserver else [])]),
        # iPXE: there is no proxy DHCP server to wait for.
        "dhcp-option-force=encap:175,176,1b",
    ]


def _boot(settings: Settings) -> list[str]:
    """What boards are told to load."""
    lines = [f"dhcp-boot={BOOT_FILES[settings.netboot.boot_loader]},,{settings.server.ipaddress}"]
    if settings.netboot.boot_loader == "ipxe":
        # Who is iPXE already gets its script, else it would load itself for ever.
        lines += ["dhcp-match=set:ipxe,175", "dhcp-userclass=set:ipxe,iPXE"]
        lines.append(f"dhcp-boot=tag:ipxe,{script_url(settings)},,{settings.server.ipaddress}")
    return lines


def hosts(
    settings: Settings, boards: Iterable[Board], addresses: Mapping[str, IPv4Address]
) -> tuple[list[Host], list[str]]:
    """The list of hosts, and a sentence for each board that is left out.

    ``addresses`` has the IPv4 address of every :attr:`Board.address` that has one; only mode dhcp needs it.
    """
    found: dict[str, Host] = {}
    taken: dict[IPv4Address, str] = {}
    left_out = []
    for board in boards:
        mac = board.mac_address.lower()
        address = addresses.get(board.address) if settings.netboot.mode == "dhcp" else None
        reason = _unfit(settings, board, mac, address)
        mac = ":".join(mac[i : i + 2] for i in range(0, 12, 2))
        if reason is None and mac in found:
            reason = f"another device has its MAC address {mac}, too"
        if reason is None and address in taken:
            reason = f"its address {address} is also that of {taken[address]}"
        if reason is not None:
            left_out.append(f"network boot leaves out {board.name}: {reason}")
            continue
        found[mac] = Host(mac, address, board.name if _HOST_NAME.fullmatch(board.name) else None)
        if address is not None:
            taken[address] = board.name
    return list(found.values()), left_out


def _unfit(settings: Settings, board: Board, mac: str, address: IPv4Address | None) -> str | None:
    """Why a board can't be in the list by itself; None when it can."""
    if not _MAC.fullmatch(mac):
        return f"its MAC address {board.mac_address!r} is not twelve hex digits"
    if mac == NO_MAC:
        return "its MAC address is not known"
    if settings.netboot.mode != "dhcp":
        return None
    network = settings.netboot.network
    assert network is not None
    if address is None:
        return f"no IPv4 address is known for {board.address!r}"
    if address not in network or address in (network.network_address, network.broadcast_address):
        return f"its address {address} is not one of the network {network} ([netboot] network)"
    if str(address) in (settings.server.ipaddress, settings.netboot.router, settings.netboot.nameserver):
        return f"its address {address} belongs to a server of the network"
    return None


def hosts_text(hosts: Iterable[Host]) -> str:
    """The file for dnsmasq's ``dhcp-hostsfile``, which it reads again at SIGHUP."""
    return _HEADER + "".join(f"{host}\n" for host in hosts)
