# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Pools to be measured: devices whose boards answer at once (``tests/bench/plugins``)."""

from __future__ import annotations

import json
import random
from datetime import timedelta

from sqlalchemy import Connection, insert

from mozpool.clock import Clock
from mozpool.db import images, tables
from mozpool.db.bootconfig import boot_config_hash

INSTANT = {"power": "instant", "boot": "instant", "probe": "instant", "agent": "instant"}


def fill(conn: Connection, server: str, count: int) -> None:
    """Ready devices that hold a reusable image, so that a power cycle prepares them."""
    server_id = images.ensure_imaging_server(conn, server)
    conn.execute(insert(tables.hardware_types).values(id=1, type="bench", model="one", backends=json.dumps(INSTANT)))
    conn.execute(
        insert(tables.images).values(id=1, name="android", boot_config_keys="[]", can_reuse=1, has_sut_agent=1)
    )
    conn.execute(insert(tables.pxe_configs).values(id=1, name="android", description="", contents="-", active=1))
    conn.execute(insert(tables.image_pxe_configs).values(image_id=1, hardware_type_id=1, pxe_config_id=1))
    rng = random.Random(1)
    now = Clock().now()
    conn.execute(
        insert(tables.devices),
        [
            {
                "name": f"device{number}",
                "fqdn": f"device{number}.example.com",
                "inventory_id": number,
                "state": "ready",
                "state_counters": "{}",
                "state_timeout": now + timedelta(seconds=rng.uniform(60, 600)),
                "mac_address": f"{number:012x}",
                "imaging_server_id": server_id,
                "hardware_type_id": 1,
                "image_id": 1,
                "boot_config": "{}",
                "boot_config_hash": boot_config_hash("{}"),
                "shuffle": rng.randrange(2**31),
            }
            for number in range(1, count + 1)
        ],
    )
