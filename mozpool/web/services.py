# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What the web layer is given: the parts that the daemon has put together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mozpool.access.audit import Auditor
from mozpool.bmm.service import BMM
from mozpool.clock import Clock
from mozpool.config import Settings
from mozpool.db.devices import Device
from mozpool.db.engine import Database
from mozpool.effects import Effects
from mozpool.lanes import Lanes
from mozpool.lease import Lease
from mozpool.lifeguard.service import LifeGuard
from mozpool.logbook import Logbook
from mozpool.metrics import Metrics
from mozpool.pool.service import MozPool
from mozpool.precedence import Precedence
from mozpool.presence import Presence
from mozpool.seen import Seen
from mozpool.watchdog import Watchdog
from mozpool.web.peers import Peers


@dataclass(frozen=True)
class Services:
    """The running parts of one imaging server."""

    settings: Settings
    database: Database
    clock: Clock
    server_id: int
    """Id of this imaging server's row."""
    logbook: Logbook
    bmm: BMM
    lifeguard: LifeGuard
    mozpool: MozPool
    presence: Presence
    peers: Peers
    lease: Lease
    device_effects: Effects[Device]
    hardware: Lanes
    """Workers for operations on hardware that a call does not wait for."""
    precedence: Precedence
    seen: Seen
    metrics: Metrics
    watchdog: Watchdog
    auditor: Auditor
    stopping: Callable[[], bool]
    """Whether this server has been told to stop."""
