# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Addresses that calls come from."""

from __future__ import annotations

from ipaddress import IPv6Address, ip_address


def caller(address: str) -> str:
    """What counts as one caller: an IPv4 address, or an IPv6 address's /64 network, which one host may have all of."""
    try:
        found = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if not isinstance(found, IPv6Address):
        return address
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(IPv6Address(int(found) >> 64 << 64)) + "/64"
