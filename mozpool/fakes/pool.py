# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The simulated boards of a pool: its devices whose probe is the simulation's ``echo``."""

from __future__ import annotations

from mozpool.clock import Clock
from mozpool.config import Settings
from mozpool.db import devices, images
from mozpool.db.engine import Database
from mozpool.fakes.board import BoardSpec


def boards_of(database: Database, server_id: int) -> list[BoardSpec]:
    """The simulated boards of an imaging server. Raises DatabaseAway."""
    with database.read() as conn:
        rows = devices.owned_on(conn, server_id)
    return [
        BoardSpec(
            name=row.name,
            address=row.address,
            mac_address=row.mac_address,
            relay_info=row.relay_info,
            hardware_type=row.hardware_type,
            image=row.image,
        )
        for row in rows
        if row.backends.get("probe") == "echo"
    ]


def boards_of_settings(settings: Settings) -> list[BoardSpec]:
    """The simulated boards of the imaging server that a configuration describes. Raises DatabaseAway."""
    database = Database.of(settings.database, clock=Clock())
    try:
        with database.read() as conn:
            server_id = images.imaging_server_id(conn, settings.server.fqdn)
        return [] if server_id is None else boards_of(database, server_id)
    finally:
        database.dispose()
