# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Where devices are read from: Mozilla's inventory, NetBox, files, programs."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mozpool.bmm.interfaces import BackendContext
from mozpool.bmm.registry import Registry
from mozpool.clock import Clock, Deadline
from mozpool.config import Inventory
from mozpool.fakes.inventory import system
from mozpool.lifeguard.inventory import hosts
from mozpool.lifeguard.inventory.hosts import InventoryError
from mozpool.lifeguard.inventory.sources import Source, source_of
from mozpool.lifeguard.inventory.sources.files import FileSource
from tests.contract.netbox_peer import device, interface
from tests.fuzz.engine import Target, fuzzer
from tests.fuzz.peers import SEPARATOR, Peer


def readers(source: Source) -> None:
    """Read it to the end, as the sync does."""
    entries = source.entries(Deadline(Clock(), 20.0), lambda said: None)
    found = hosts.read(entries, REGISTRY, needed=source.needed)
    for host in found.hosts:
        assert host.name and host.fqdn and len(host.mac_address) == 12
        host.fqdn.encode()
    for skipped in found.skipped:
        assert skipped.reason


REGISTRY = Registry(BackendContext(Clock(), tftp_root=None))


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


SYSTEMS = {
    f"panda-{number}.example.com": system(
        number, f"panda-{number}.example.com", mac=f"0200000000{number:02x}", relay=f"relay-1:bank1:relay{number}"
    )
    for number in (1, 2)
}


@fuzzer(
    seeds=[
        SEPARATOR.join(
            (
                _json({"systems": SYSTEMS}),
                _json({"id": 1, "status": "production"}),
                _json({"id": 1, "vendor": "PandaBoard", "model": "ES"}),
            )
        ),
        SEPARATOR.join((_json({"systems": SYSTEMS}), _json({"id": 1, "status": "decommissioned"}))),
        b"401 <html>who are you?</html>",
    ],
    raises=(InventoryError,),
)
def mozilla_inventory() -> Iterator[Target]:
    """Mozilla's inventory by HTTP."""
    with Peer(http=True) as peer:
        source = source_of(Inventory(url=f"http://127.0.0.1:{peer.port}", username="u", password="p"))

        def one(data: bytes) -> None:
            peer.says(data)
            readers(source)

        yield one


def page(*rows: Any, count: int | None = None, following: str | None = None) -> bytes:
    return _json({"count": len(rows) if count is None else count, "next": following, "previous": None, "results": rows})


CUSTOM: dict[str, Any] = {
    "imaging_server": "imaging1.example.com",
    "labels": {"pool": "b2g"},
    "backends": {"power": "pdudaemon"},
}


@fuzzer(
    seeds=[
        SEPARATOR.join(
            (
                page(device(1, "panda-1", address="10.0.0.1/24", **CUSTOM)),
                page(interface(7, 1, "02:00:00:00:00:01")),
            )
        ),
        SEPARATOR.join(
            (
                page(device(1, "panda-1", **CUSTOM), count=2, following="http://x/api/dcim/devices/?limit=1&offset=1"),
                page(device(2, None, status="planned"), count=2),
                page(interface(7, 1, "02:00:00:00:00:01")),
            )
        ),
        b'403 {"detail": "Invalid token"}',
    ],
    raises=(InventoryError,),
    once_failed=[
        page(device(1, "panda-1"), following="http://["),
        page({**device(1, "x"), "name": 5, "primary_ip": {"address": None}}),
    ],
)
def netbox() -> Iterator[Target]:
    """NetBox by HTTP."""
    with Peer(http=True) as peer:
        source = source_of(Inventory(source="netbox", url=f"http://127.0.0.1:{peer.port}", token="nbt_x.y"))

        def one(data: bytes) -> None:
            peer.says(data)
            readers(source)

        yield one


LISTED = [
    {
        "inventory_id": 1,
        "fqdn": "panda-1.example.com",
        "mac_address": "02:00:00:00:00:01",
        "imaging_server": "imaging1.example.com:8080",
        "relay_info": "relay-1:bank1:relay1",
        "hardware_type": "PandaBoard",
        "hardware_model": "ES",
        "address": "10.0.0.1",
        "environment": "staging",
        "comments": "in rack 3\nlower half",
        "labels": {"pool": "b2g", "rack": 3},
        "backends": {"power": "pdudaemon", "options": {"pdu": "pdu1", "port": "3"}},
    },
    {"inventory_id": "2", "fqdn": "panda-2", "mac_address": "020000000002", "imaging_server": "i", "labels": "a=b,c=d"},
]

YAML = b"""\
# hosts
- &first
  inventory_id: 1
  fqdn: panda-1.example.com
  mac_address: 00:11:22:33:44:55
  imaging_server: imaging1.example.com
  labels: {pool: b2g, rack: 3, made: 2030-01-01, on: yes, weight: 1.5, serial: 0x1f}
  backends:
    power: command
    options: {command: x}
  comments: |
    two
    lines
- <<: *first
  inventory_id: 2
  fqdn: "panda-2"
  mac_address: '001122334456'
- !!map {inventory_id: 3, fqdn: !!str panda-3, when: !!timestamp 2001-12-14t21:59:43.10-05:00, set: !!set {a, b}}
"""

_FIELDS = "fqdn: x, mac_address: 020000000002, imaging_server: i, inventory_id: 1"
_LEVELS = ", ".join(f"&a{level} [{f'*a{level - 1}, ' * 9}]" for level in range(1, 9))
LAUGHS = f"- {{{_FIELDS}, comments: [&a0 [x], {_LEVELS}]}}".encode()
"""A list of a few lines, which written out would have a hundred million."""

CSV = b"""\
inventory_id,fqdn,mac_address,imaging_server,relay_info,hardware_type,hardware_model,labels,backends,comments
# a comment
1,panda-1.example.com,02:00:00:00:00:01,imaging1.example.com,relay-1:bank1:relay1,PandaBoard,ES,"pool=b2g,rack=3",,
2,panda-2,020000000002,imaging1.example.com,,,,,power=pdudaemon,"said ""hello""
twice"
"""


def _file(ending: str) -> Iterator[Target]:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / f"hosts.{ending}"
        source = FileSource(path)

        def one(data: bytes) -> None:
            path.write_bytes(data)
            readers(source)

        yield one


@fuzzer(
    seeds=[_json(LISTED), b"[]"],
    raises=(InventoryError,),
    once_failed=[b'{"a": ' + b"[" * 960 + b"]" * 960 + b"}", b'[{"mac_address": ' + b"[" * 950 + b"]" * 950 + b"}]"],
)
def json_file() -> Iterator[Target]:
    """A list of hosts in JSON."""
    yield from _file("json")


@fuzzer(
    seeds=[YAML, _json(LISTED)],
    raises=(InventoryError,),
    once_failed=[b"a: !!bool x", b"a: !!timestamp x", LAUGHS],
    seconds=10.0,  # PyYAML looks at all that is open for each bracket
)
def yaml_file() -> Iterator[Target]:
    """A list of hosts in YAML."""
    yield from _file("yaml")


@fuzzer(seeds=[CSV], raises=(InventoryError,))
def csv_file() -> Iterator[Target]:
    """A list of hosts in CSV."""
    yield from _file("csv")


@fuzzer(seeds=[_json(LISTED), b""], raises=(InventoryError,))
def inventory_program() -> Iterator[Target]:
    """What a program prints that knows all hosts."""
    with tempfile.NamedTemporaryFile() as file:
        source = source_of(Inventory(source="command", command=("cat", file.name)))

        def one(data: bytes) -> None:
            Path(file.name).write_bytes(data)
            readers(source)

        yield one
