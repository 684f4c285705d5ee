# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Fills in fake devices for ``[testing] run_fakes``, with the images and PXE configs that they need.

Run it by ``mozpool-db testdata -d 10 -p 2999``. Run again, it adds devices after the highest number.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from sqlalchemy import Connection, Table, insert, select

from mozpool.config import Settings
from mozpool.db import tables
from mozpool.db.bootconfig import boot_config_hash
from mozpool.db.engine import Database

DEVICES_PER_BOARD = 14
RELAYS_PER_BANK = 8

# Name, keys of its boot config, may be reused, hidden, has an agent.
IMAGES: tuple[tuple[str, list[str], int, int, int], ...] = (
    ("b2g", ["b2gbase"], 1, 0, 1),
    ("android", [], 1, 0, 1),
    ("maintenance", [], 0, 0, 0),
    ("self-test", [], 0, 1, 0),
)

PXE_CONFIGS = {
    "b2g": "Install Firefox OS",
    "android": "Install Android",
    "maintenance": "Boot the live image and wait for a person",
    "self-test": "Boot the live image and test the board",
}

PXE_CONTENTS = """\
DEFAULT {name}
TIMEOUT 1
LABEL {name}
    KERNEL panda-live/vmlinux
    INITRD panda-live/initrd
    APPEND console=ttyO2,115200n8 ip=dhcp rw mozpool-token=%TOKEN% \
mobile-imaging-url=http://%IPADDRESS%:{port}/scripts/{name}-second-stage.sh
"""

SELF_TEST_APPEND = " selftest-config=http://%IPADDRESS%:{port}/scripts/hardware/panda.json syslog-server=%IPADDRESS%"


def main(args: list[str], settings: Settings, database: Database) -> int:
    """Add the devices and return the exit status. Wrong arguments end the program with status 2."""
    options = _parse(args)
    first, last = database.run(
        lambda connection: fill(connection, settings, options.devices, options.port, options.state)
    )
    print(f"Added device{first} to device{last} of {settings.server.fqdn}, in state {options.state}.")
    return 0


def fill(connection: Connection, settings: Settings, count: int, port: int, state: str) -> tuple[int, int]:
    """Add ``count`` devices and return the first and the last one's number.

    Their relay boards listen on ``port`` and the ports after it.
    """
    server_id = _ensure(connection, tables.imaging_servers, {"fqdn": settings.server.fqdn})
    hardware_type_id = _ensure(
        connection, tables.hardware_types, {"type": "panda", "model": "ES"}, backends=json.dumps({"probe": "echo"})
    )
    for name, keys, can_reuse, hidden, has_agent in IMAGES:
        append = SELF_TEST_APPEND if name == "self-test" else ""
        contents = PXE_CONTENTS.rstrip("\n") + append + "\n"
        pxe_config_id = _ensure(
            connection,
            tables.pxe_configs,
            {"name": name},
            description=PXE_CONFIGS[name],
            contents=contents.format(name=name, port=settings.server.port),
            active=1,
        )
        image_id = _ensure(
            connection,
            tables.images,
            {"name": name},
            boot_config_keys=json.dumps(keys),
            can_reuse=can_reuse,
            hidden=hidden,
            has_sut_agent=has_agent,
        )
        _ensure(
            connection,
            tables.image_pxe_configs,
            {"image_id": image_id, "hardware_type_id": hardware_type_id},
            pxe_config_id=pxe_config_id,
        )
    first = 1 + max(map(_number, connection.scalars(select(tables.devices.c.name))), default=0)
    last = first + count - 1
    for number in range(first, last + 1):
        board, slot = divmod(number - 1, DEVICES_PER_BOARD)
        bank, relay = divmod(slot, RELAYS_PER_BANK)
        board_port = port + board
        _ensure(
            connection,
            tables.relay_boards,
            {"name": f"relay-{board_port}"},
            fqdn=f"127.0.0.1:{board_port}",
            imaging_server_id=server_id,
            state="ok",
            state_counters="{}",
        )
        device_id = _add(
            connection,
            tables.devices,
            {
                "name": f"device{number}",
                "fqdn": f"device{number}.example.com",
                "address": f"127.{2 + port % 250}.{number >> 8 & 255}.{number & 255}",
                "inventory_id": number,
                "state": state,
                "state_counters": "{}",
                "mac_address": f"02{number:010x}",
                "imaging_server_id": server_id,
                "relay_info": f"127.0.0.1:{board_port}:bank{bank + 1}:relay{relay + 1}",
                "boot_config_hash": boot_config_hash(None),
                "environment": "staging" if number % 4 == 0 else "production",
                "hardware_type_id": hardware_type_id,
                "shuffle": number * 2654435761 % 2**31,
            },
        )
        labels = {"processor": "armv7", "pool": "mobile" if number % 2 else "b2g", "android": "4.0"}
        connection.execute(
            insert(tables.device_labels),
            [{"device_id": device_id, "name": name, "value": labels[name]} for name in labels],
        )
    return first, last


def _ensure(connection: Connection, table: Table, key: dict[str, Any], **rest: Any) -> Any:
    """The first primary key column of the row with this key, which is added when there is none."""
    id_column = next(iter(table.primary_key.columns))
    found = connection.scalar(select(id_column).where(*(table.c[name] == value for name, value in key.items())))
    if found is not None:
        return found
    return _add(connection, table, key | rest)


def _add(connection: Connection, table: Table, values: dict[str, Any]) -> Any:
    """Add a row and return the first column of its primary key."""
    added = connection.execute(insert(table).values(values)).inserted_primary_key
    assert added is not None
    return added[0]


def _number(name: str) -> int:
    """N of ``deviceN``, 0 for other names."""
    digits = name.removeprefix("device")
    return int(digits) if name.startswith("device") and digits.isdecimal() else 0


def _parse(args: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="mozpool-db testdata", description="Fill in fake devices.")
    parser.add_argument(
        "-d", "--devices", type=_between(1, 100_000), default=10, metavar="COUNT", help="how many devices to add (10)"
    )
    parser.add_argument(
        "-p",
        "--port",
        type=_between(1, 65535),
        default=2999,
        help="port of the first relay board on 127.0.0.1 (2999); each board has 14 devices, the next one the next port",
    )
    parser.add_argument(
        "--state",
        choices=("new", "ready"),
        default="new",
        help="new: LifeGuard self-tests the devices first (default); ready: they can be lent at once",
    )
    return parser.parse_args(args)


def _between(low: int, high: int) -> Any:
    """A parser of whole numbers in this range."""

    def number(text: str) -> int:
        if not text.isdecimal() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low} to {high}")
        return int(text)

    return number
