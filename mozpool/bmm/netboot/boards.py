# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The boards that network boot is for, and their addresses."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address

from mozpool.bmm.netio import PeerError, resolve
from mozpool.clock import Clock, Deadline
from mozpool.db import devices
from mozpool.db.engine import Database

LOOK_UP_LIMIT = 5.0
"""Seconds that looking up names may take in one go."""

KNOWN_FOR = 300.0
"""Seconds for which the address of a name is not asked for again."""

UNKNOWN_FOR = 60.0
"""Seconds for which a name that could not be looked up is left alone."""


@dataclass(frozen=True)
class Board:
    """What network boot has to know of a device."""

    name: str
    mac_address: str
    """Twelve hex digits."""
    address: str
    """Its IP address, or a host name."""


def boards_of(database: Database, server_id: int) -> list[Board]:
    """The devices of an imaging server. Raises DatabaseAway."""
    with database.read() as conn:
        return [Board(*row) for row in devices.network_places(conn, server_id)]


class Addresses:
    """The IPv4 addresses of hosts, remembered for some minutes. Used by one thread at a time."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._known: dict[str, IPv4Address | None] = {}
        self._ask_again: dict[str, float] = {}

    def of(self, hosts: Iterable[str]) -> dict[str, IPv4Address]:
        """Host (name or address) → its address; hosts that have none are left out.

        Takes at most ``LOOK_UP_LIMIT`` seconds. A name that can't be looked up now keeps the address that it had.
        """
        deadline = Deadline(self._clock, LOOK_UP_LIMIT)
        found = {}
        for host in hosts:
            address = _number(host) or self._look_up(host, deadline)
            if address is not None:
                found[host] = address
        return found

    def _look_up(self, host: str, deadline: Deadline) -> IPv4Address | None:
        now = self._clock.monotonic()
        if now >= self._ask_again.get(host, now) and not deadline.expired:
            try:
                addresses = [where[0] for family, where in resolve(host, 0, deadline) if family == socket.AF_INET]
            except PeerError:
                self._ask_again[host] = now + UNKNOWN_FOR
            else:
                self._known[host] = IPv4Address(addresses[0]) if addresses else None
                self._ask_again[host] = now + KNOWN_FOR
        return self._known.get(host)


def _number(host: str) -> IPv4Address | None:
    try:
        return IPv4Address(host)
    except AddressValueError:
        return None
