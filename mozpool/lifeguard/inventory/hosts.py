# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Hosts as an inventory gives them, and what must be right about each of them.

A source gives entries. One that Mozpool has no use for is skipped, with the reason; one that cannot be right makes the
whole answer useless, because a device that is missing from it would be taken out of the pool.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter, ValidationError

from mozpool.bmm.catalogue import INTERFACES, backend_names
from mozpool.bmm.interfaces import NO_MAC, mac_address
from mozpool.bmm.labels import Labels
from mozpool.bmm.registration import device_name
from mozpool.bmm.registry import Registry
from mozpool.config import HOST_PORT
from mozpool.errors import BadInput, MozpoolError, brief

ANY = "any"
MAX_NAME = 32
MAX_FQDN = 255
MAX_COMMENTS = 10_000
MAX_ID = 2**31 - 1
MAX_SAID = 20
"""So many faults are named at most."""

_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")


class InventoryError(MozpoolError):
    """The inventory is of no use as it is, and nothing was changed; the message says what is wrong with it."""

    status = 502
    code = "inventory_error"

    @classmethod
    def value(cls, place: str, value: object, expected: str) -> InventoryError:
        """What stands at some place is not as expected."""
        return cls(BadInput.value(place, value, expected).message)

    @classmethod
    def of(cls, faults: Sequence[str]) -> InventoryError:
        """One error that names the first of many faults."""
        more = [f"... and {len(faults) - MAX_SAID} more"] if len(faults) > MAX_SAID else []
        return cls("; ".join([*faults[:MAX_SAID], *more]))


@dataclass(frozen=True)
class Entry:
    """A host as a source gives it, which nobody has checked yet."""

    place: str
    """Where it stands in the source, for messages."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """By the names of :data:`FIELDS`. What is left out or None is not given: the pool keeps what it has."""
    skip: str | None = None
    """Why it is none of the pool's; its values do not matter then."""


@dataclass(frozen=True)
class Host:
    """A host that is to be a device. None: the inventory does not say."""

    place: str
    inventory_id: int
    name: str
    """The first label of the fqdn."""
    fqdn: str
    mac_address: str
    imaging_server: str
    relay_info: str | None = None
    hardware: tuple[str, str] | None = None
    """Type and model."""
    address: str | None = None
    environment: str | None = None
    comments: str | None = None
    labels: Mapping[str, str] | None = None
    backends: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Skipped:
    """A host that is left out."""

    place: str
    reason: str


@dataclass(frozen=True)
class Hosts:
    """What an inventory has."""

    hosts: Sequence[Host]
    skipped: Sequence[Skipped] = ()


NEEDED = ("fqdn", "mac_address", "imaging_server")
"""Without these a host is skipped."""

FIELDS = (
    *("inventory_id", *NEEDED, "relay_info", "hardware_type", "hardware_model"),
    *("address", "environment", "comments", "labels", "backends"),
)
"""What an entry may say."""


def read(
    entries: Iterable[Entry],
    registry: Registry,
    *,
    ignore: re.Pattern[str] | None = None,
    needed: Sequence[str] = NEEDED,
) -> Hosts:
    """Check all entries of a source.

    Those of imaging servers that ``ignore`` matches are skipped, and those without one of the fields ``needed``. Raises
    InventoryError that names what cannot be right: values, and hosts that share what only one can have.
    """
    hosts: list[Host] = []
    skipped: list[Skipped] = []
    faults: list[str] = []
    for entry in entries:
        try:
            reason = entry.skip or _reason_to_skip(entry.values, ignore, needed)
            if reason is None:
                hosts.append(_host(entry, registry))
            else:
                skipped.append(Skipped(entry.place, reason))
        except BadInput as error:
            faults.append(f"{entry.place}: {error.message}")
    faults += _shared(hosts)
    if faults:
        raise InventoryError.of(faults)
    return Hosts(hosts, skipped)


def _reason_to_skip(values: Mapping[str, Any], ignore: re.Pattern[str] | None, needed: Sequence[str]) -> str | None:
    for name in needed:
        value = values.get(name)
        if value is None or value == "":
            return f"it has no {name}"
    server = values["imaging_server"]
    if ignore is not None and isinstance(server, str) and ignore.match(server):
        return f"its imaging server {server} is left out by ignore_devices_on_servers_re"
    mac = values["mac_address"]
    if isinstance(mac, str | int) and str(mac).replace(":", "").replace("-", "") == NO_MAC:
        return "it has no mac_address: it is all zeros"
    return None


def _host(entry: Entry, registry: Registry) -> Host:
    values = {name: value for name, value in entry.values.items() if value is not None and value != ""}
    unknown = sorted(values.keys() - set(FIELDS))
    if unknown:
        raise BadInput(f"{unknown[0]}: there is no such field; expected one of {', '.join(FIELDS)}", field=unknown[0])
    fqdn = _fqdn(values["fqdn"])
    return Host(
        place=entry.place,
        inventory_id=_id(values.get("inventory_id")),
        name=device_name(fqdn.partition(".")[0], "fqdn"),
        fqdn=fqdn,
        mac_address=mac_address(text_of("mac_address", values["mac_address"]), "mac_address"),
        imaging_server=_server(values["imaging_server"]),
        relay_info=_optional(values, "relay_info", lambda field, text: text_of(field, text, MAX_FQDN)),
        hardware=_hardware(values),
        address=_optional(values, "address", address),
        environment=_optional(values, "environment", environment),
        comments=_optional(values, "comments", lambda field, text: text_of(field, text, MAX_COMMENTS, lines=True)),
        labels=_optional(values, "labels", labels),
        backends=_optional(values, "backends", lambda field, value: _backends(field, value, registry)),
    )


def _optional(values: Mapping[str, Any], field: str, check: Callable[[str, Any], Any]) -> Any:
    return check(field, values[field]) if field in values else None


def text_of(field: str, value: Any, most: int = MAX_FQDN, *, lines: bool = False) -> str:
    """``value`` when it is text of at most so many characters that can be printed. Raises BadInput."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)  # models may be called 4430
    plain = value.replace("\n", "").replace("\t", "").replace("\r", "") if lines and isinstance(value, str) else value
    if not isinstance(value, str) or len(value) > most or not (plain.isprintable() or not plain):
        raise BadInput.value(field, value, f"text of at most {most} characters")
    return value


def _id(value: Any) -> int:
    if isinstance(value, str) and re.fullmatch(r"\d{1,10}", value, re.ASCII):
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_ID:
        raise BadInput.value("inventory_id", value, f"a whole number from 1 to {MAX_ID}")
    return value


def _fqdn(value: Any) -> str:
    if not isinstance(value, str) or not _HOST.fullmatch(value):
        raise BadInput.value("fqdn", value, "a host name")
    return value


def _server(value: Any) -> str:
    try:
        return HOST_PORT.parse(text_of("imaging_server", value, MAX_FQDN))
    except ValueError:
        raise BadInput.value("imaging_server", value, HOST_PORT.expected) from None


def _hardware(values: Mapping[str, Any]) -> tuple[str, str] | None:
    names = ("hardware_type", "hardware_model")
    given = [name for name in names if name in values]
    if not given:
        return None
    if len(given) == 1:
        (missing,) = set(names) - set(given)
        raise BadInput(f"{missing}: is missing beside {given[0]} {brief(values[given[0]])}", field=missing)
    kind, model = (text_of(name, values[name], MAX_NAME).strip() for name in names)
    if not kind or not model:
        raise BadInput.value(names[0] if not kind else names[1], "", f"text of 1 to {MAX_NAME} characters")
    return kind, model


def is_ip_address(text: str) -> bool:
    """Whether it is an IP address, and not a name."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def address(field: str, value: Any) -> str:
    """An IP address, or a host name. Raises BadInput."""
    if isinstance(value, str) and is_ip_address(value):
        return str(ipaddress.ip_address(value))
    # What has digits alone in its last part is meant for an IP address.
    if not isinstance(value, str) or not _HOST.fullmatch(value) or value.rpartition(".")[2].isdecimal():
        raise BadInput.value(field, value, "an IP address or a host name")
    return value


def environment(field: str, value: Any) -> str:
    """The name of an environment. Raises BadInput."""
    text = text_of(field, value, MAX_NAME)
    if not text or text == ANY:
        raise BadInput.value(field, value, f"1 to {MAX_NAME} characters other than {ANY!r}")
    return text


def labels(field: str, value: Any) -> dict[str, str]:
    """Labels: an object, or text such as ``pool=b2g,rack=3``. Raises BadInput."""
    expected = "NAME=VALUE[,NAME=VALUE]... with each name once, of 1 to 64 characters, and values of at most 190"
    found = value
    if isinstance(value, str):
        pairs = [pair.partition("=") for pair in value.split(",")] if value else []
        found = {name.strip(): text.strip() for name, _equals, text in pairs}
        if len(found) != len(pairs) or not all(equals for _name, equals, _text in pairs):
            raise BadInput.value(field, value, expected)
    if isinstance(found, dict):
        found = {key: str(text) if type(text) is int else text for key, text in found.items()}
    try:
        return TypeAdapter(Labels).validate_python(found, strict=True)
    except ValidationError:
        raise BadInput.value(field, value, expected) from None


def _backends(field: str, value: Any, registry: Registry) -> dict[str, Any]:
    """Interface → backend, and ``options``: an object, or text such as ``power=pdudaemon,probe=adb``."""
    expected = f"backends of {', '.join(INTERFACES)} such as power=pdudaemon, and options as an object of texts"
    if isinstance(value, str):
        value = labels(field, value)
    if not isinstance(value, dict):
        raise BadInput.value(field, value, expected)
    rest = {key: name for key, name in value.items() if key != "options"}
    options = value.get("options")
    is_object = options is None or (
        isinstance(options, dict) and all(isinstance(text, str) for pair in options.items() for text in pair)
    )
    if not is_object or not all(isinstance(text, str) for pair in rest.items() for text in pair):
        raise BadInput.value(field, value, expected)
    return {**backend_names(rest, registry), **({"options": options} if options else {})}


def _shared(hosts: Sequence[Host]) -> list[str]:
    """What only one host can have and several do."""
    faults = []
    kinds: tuple[tuple[str, Callable[[Host], Any]], ...] = (
        ("inventory_id", lambda host: host.inventory_id),
        ("name", lambda host: host.name.lower()),
        ("mac_address", lambda host: host.mac_address),
    )
    for what, of in kinds:
        first: dict[Any, Host] = {}
        for host in hosts:
            other = first.setdefault(of(host), host)
            if other is not host:
                faults.append(f"{other.place} and {host.place} have the same {what}: {of(host)}")
    return faults
