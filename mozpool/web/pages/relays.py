# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The pages of relay boards and other power switches: all of them, and one with its devices."""

from __future__ import annotations

from typing import Any

from flask import Response

from mozpool.apikit import site
from mozpool.bmm.api import hardware
from mozpool.db import relay_boards
from mozpool.errors import NotFound
from mozpool.web.pages.base import blueprint, live, pool_stamp

MOST_ROWS = 500
"""Rows that a table shows at most."""


@blueprint.get("/relays")
def relays() -> Response:
    """All power switches, the failed ones first."""
    stamp = _stamp()
    return live("relays", lambda: _look(stamp), stamp)


def _stamp() -> str:
    """Changes with any device and switch, and with what waits for one."""
    return f"{pool_stamp()} {sorted(hardware().waiting().items())}"


def _look(stamp: str) -> dict[str, Any]:
    order = {"failed": 0, "suspect": 1}
    switches = sorted(hardware().switches(stamp), key=lambda switch: order.get(switch.board.state, 2))
    return {"switches": switches[:MOST_ROWS], "more_switches": max(0, len(switches) - MOST_ROWS)}


@blueprint.get("/relays/<name>")
def relay_page(name: str) -> Response:
    """One power switch, and the devices on it."""
    stamp = _stamp()
    return live("relay", lambda: _one(name, stamp), stamp)


def _one(name: str, stamp: str) -> dict[str, Any]:
    switch = next((switch for switch in hardware().switches(stamp) if switch.board.name == name), None)
    if switch is None:
        raise NotFound(f"there is no relay board {name[:64]}")
    with site().database.read() as conn:
        rows = relay_boards.devices_named(conn, switch.names[:MOST_ROWS])
    return {"switch": switch, "devices": rows, "more_devices": max(0, len(switch.names) - MOST_ROWS)}
