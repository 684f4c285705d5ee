# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What MozPool has done after a commit of a request's state machine. :mod:`mozpool.pool.operations` does it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from mozpool.statemachine import Effect


@dataclass(frozen=True)
class AskLifeguard(Effect):
    """Send a "please" to the claimed device: ``lifeguard_contacted``, or ``device_left`` when LifeGuard refuses."""

    channel: ClassVar[str] = "lifeguard"
    every: ClassVar[float | None] = 2.0
    device_id: int
    device: str
    device_server: str
    claim_id: int
    event: str
    args: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TellRelease(Effect):
    """Let LifeGuard know that a device lost its holder, so that it need not find out by itself."""

    channel: ClassVar[str] = "release"
    bound: ClassVar[bool] = False
    device_id: int
    device: str
    device_server: str
    claim_id: int
