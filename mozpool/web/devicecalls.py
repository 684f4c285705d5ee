# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Calls that devices make themselves: how far they are, what they are to install, what they are to boot.

A device is known by the token of its boot, which ``%TOKEN%`` in its PXE config stands for, or by the address that it
calls from; which of them counts is ``[auth] device_events``. It may only tell what its states expect to hear from it
(:attr:`mozpool.statemachine.Machine.reported`), never ask for anything.
"""

from __future__ import annotations

import hmac
import threading
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from apiflask import APIFlask
from flask import current_app, g, request

from mozpool import apikit
from mozpool.access.principal import Kind, Principal, Role
from mozpool.apikit import Site
from mozpool.bmm.netboot import ipxe
from mozpool.bmm.netio import PeerError, resolve
from mozpool.bmm.service import token_hash
from mozpool.clock import Clock, Deadline
from mozpool.db import devices
from mozpool.db.devices import Device
from mozpool.errors import BadInput, Forbidden, MozpoolError, NotFound, Unauthorized
from mozpool.lifeguard.service import LifeGuard

CALLS = "mozpool.devicecalls"
"""The key of the :class:`DeviceCalls` in the application's extensions."""

HEADER = "Mozpool-Boot-Token"
PARAMETER = "token"
"""Where the token of a boot may stand: in a header, or in the query where a boot loader can send no header."""

EVENT, BOOT_CONFIG, IPXE = "lifeguard.device_event", "bmm.bootconfig", "files.ipxe_script"
"""The endpoints that devices call."""

LOOK_UP_LIMIT = 3.0
"""Seconds that looking up a device's host name may take."""

KNOWN_FOR = 300.0
"""Seconds for which the address of a name is not asked for again."""

UNKNOWN_FOR = 10.0
"""Seconds for which a name that could not be looked up is left alone."""

TOLD_EVERY = 60.0
"""Seconds until a device's log is told again that calls in its name were refused."""

Address = IPv4Address | IPv6Address


class AddressUnknown(MozpoolError):
    """A device's host name can't be looked up now: the same call may work later (503, with Retry-After)."""

    status = 503
    code = "address_unknown"


class Addresses:
    """The addresses of hosts, remembered for some minutes. Safe to use from any thread."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._known: dict[str, frozenset[Address]] = {}
        self._ask_again: dict[str, float] = {}

    def of(self, host: str) -> frozenset[Address]:
        """All addresses of a host, a name or an address itself; none when they are not known now.

        A name that can't be looked up keeps those that it had. One call at a time looks up a name, for at most
        ``LOOK_UP_LIMIT`` seconds; the others do not wait for it.
        """
        try:
            return frozenset({_plain(host)})
        except ValueError:
            pass
        now = self._clock.monotonic()
        with self._lock:
            if now < self._ask_again.get(host, now):
                return self._known.get(host, frozenset())
            self._ask_again[host] = now + UNKNOWN_FOR
        try:
            found = frozenset(_plain(where[0]) for _, where in resolve(host, 0, Deadline(self._clock, LOOK_UP_LIMIT)))
        except (PeerError, ValueError):
            found = frozenset()
        with self._lock:
            if found:
                self._known[host] = found
                self._ask_again[host] = self._clock.monotonic() + KNOWN_FOR
            return self._known.get(host, frozenset())


def _plain(text: str) -> Address:
    """An address, without the zone of a link, and IPv4 as such where it comes in IPv6's clothes. Raises ValueError."""
    found = ip_address(text.partition("%")[0])
    mapped = found.ipv4_mapped if isinstance(found, IPv6Address) else None
    return mapped or found


@dataclass(frozen=True)
class _Claim:
    """What the current call says of its sender."""

    what: str
    """What it wants, for people."""
    devices: list[Device]
    """Those that may make this call; several when boards share a MAC address by mistake."""
    token: str | None


class DeviceCalls:
    """Finds out whether the current call was made by the device that it is about."""

    def __init__(self, site: Site, lifeguard: LifeGuard) -> None:
        self._site = site
        self._lifeguard = lifeguard
        self._rule = site.settings.device_events
        self._events = lifeguard.driver.machine.reported
        self._addresses = Addresses(site.clock)
        self._told: dict[tuple[int, bool], float] = {}
        """Device id, and whether a token was sent → when its log was last told of a refusal (monotonic time)."""

    def find(self) -> Principal | None:
        """The device, when it makes the current call; None when somebody else does, or nobody can tell.

        Raises Unauthorized for a wrong token, and for an event that nothing shows to be the device's; Forbidden for a
        device that wants more than tell how far it is; AddressUnknown, DatabaseAway.
        """
        claim = self._claim()
        if claim is None or not claim.devices:
            return None
        if self._rule == "open":
            return _principal(claim.devices[0])
        if claim.token is not None:
            return self._by_token(claim, claim.token)
        return self._by_address(claim)

    def check(self) -> None:
        """In mode open, where nobody is asked who they are: refuse what only the device may tell or load.

        Raises as :meth:`find`.
        """
        if self._rule != "open" and request.endpoint in (EVENT, IPXE) and request.method != "OPTIONS":
            device = self.find()
            if device is not None:
                g.principal = device

    def _claim(self) -> _Claim | None:
        """What the current call says; None for calls that no device makes."""
        arguments = request.view_args or {}
        if request.endpoint == EVENT:
            event = arguments["event"]
            token = self._token()
            if event not in self._events:
                if token is not None and self._rule != "open":
                    raise Forbidden(f"devices do not send the event {event[:64]}")
                return None
            return _Claim(f"event {event}", self._named(arguments["name"]), token)
        if request.endpoint == BOOT_CONFIG:
            return _Claim("boot config", self._named(arguments["name"]), self._token())
        if request.endpoint == IPXE:
            try:
                mac = ipxe.mac_of(arguments["mac"])
            except BadInput:
                return None
            with self._site.database.read() as conn:
                return _Claim("iPXE script", devices.by_mac(conn, mac), None)
        return None

    def _named(self, name: str) -> list[Device]:
        with self._site.database.read() as conn:
            try:
                return [apikit.device(conn, name)]
            except NotFound:
                return []

    @staticmethod
    def _token() -> str | None:
        return request.headers.get(HEADER) or request.args.get(PARAMETER) or None

    def _by_token(self, claim: _Claim, token: str) -> Principal:
        hashed = token_hash(token)
        for device in claim.devices:
            if device.boot_token is not None and hmac.compare_digest(hashed, device.boot_token):
                return _principal(device)
        why = "the token is not that of the device's current boot"
        self._tell(claim, why)
        raise Unauthorized(f"{claim.what}: {why}", field=PARAMETER)

    def _by_address(self, claim: _Claim) -> Principal | None:
        if request.endpoint == BOOT_CONFIG and self._rule == "token":
            return None  # others may read it as well
        if request.endpoint == EVENT and self._rule == "token":
            why = "it came without the token of the device's boot"
            self._tell(claim, why)
            raise Unauthorized(f"{claim.what}: {why}", field=PARAMETER)
        caller = self._caller()
        known = True
        for device in claim.devices:
            addresses = self._addresses.of(device.address)
            if caller in addresses:
                return _principal(device)
            known = known and bool(addresses)
        if request.endpoint == BOOT_CONFIG:
            return None
        if not known:
            raise AddressUnknown(f"{claim.what}: the device's host name can't be looked up now")
        token = "" if request.endpoint == IPXE else " nor with the token of the device's boot"
        why = f"it came from {caller or 'nowhere'}, not from the device's address{token}"
        self._tell(claim, why)
        raise Unauthorized(f"{claim.what}: {why}")

    @staticmethod
    def _caller() -> Address | None:
        try:
            return _plain(request.remote_addr or "")
        except ValueError:
            return None

    def _tell(self, claim: _Claim, why: str) -> None:
        """Say in the devices' logs why a call was refused; not each time, as anybody can call."""
        now = self._site.clock.monotonic()
        for device in claim.devices:
            kind = (device.id, claim.token is not None)
            if now >= self._told.get(kind, now):
                self._told[kind] = now + TOLD_EVERY
                self._lifeguard.note(device, f"{claim.what} refused: {why} ([auth] device_events = {self._rule})")


def _principal(device: Device) -> Principal:
    return Principal(Kind.DEVICE, Role.NOBODY, device.name)


def find() -> Principal | None:
    """The device that makes the current call, when one does: see :meth:`DeviceCalls.find`."""
    calls = current_app.extensions[CALLS]
    assert isinstance(calls, DeviceCalls)
    return calls.find()


def register(app: APIFlask, site: Site, lifeguard: LifeGuard) -> None:
    """Make :func:`find` work in this application; in mode open, have devices' calls checked by it."""
    calls = app.extensions[CALLS] = DeviceCalls(site, lifeguard)
    if site.settings.auth_mode == "open":
        app.before_request(calls.check)
