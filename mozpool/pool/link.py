# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""How MozPool reaches LifeGuard: the one way, wherever the device's imaging server is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

ABREAST = 8
"""Calls that are made to another server at a time: one that does not answer must leave workers for the calls to
others."""


def lane_to(peer: str, request_id: int) -> str:
    """The lane of a call to ``peer``, an imaging server, that concerns a request."""
    return f"{peer}:{request_id % ABREAST}"


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

    def released(self, server: str, device_id: int, device: str, claim_id: int) -> None:
        """Let LifeGuard look at a device whose holder has given up this claim. Raises LinkError."""
        ...


class LinkError(Exception):
    """An imaging server could not be reached or did not understand."""
