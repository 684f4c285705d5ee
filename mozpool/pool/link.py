# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""How MozPool reaches LifeGuard: the one way, wherever the device's imaging server is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Reply:
    """What LifeGuard made of a "please"."""

    accepted: bool
    reason: str | None = None


class LifeguardLink(Protocol):
    """A direct call when the device is this server's, HTTP when it is another's. Both have a total time limit."""

    def please(
        self, server: str, device_id: int, device: str, event: str, args: Mapping[str, Any], claim_id: int
    ) -> Reply:
        """Ask a device for something on behalf of a claim; safe to repeat.

        Raises LinkError when the device's server does not answer.
        """
        ...

    def released(self, server: str, device_id: int, device: str) -> None:
        """Let LifeGuard look at a device that lost its holder. Raises LinkError."""
        ...


class LinkError(Exception):
    """An imaging server could not be reached or did not understand."""
