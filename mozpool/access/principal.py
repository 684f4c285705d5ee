# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Who makes a call, and what they are."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum

from mozpool.db.teams import Team

__all__ = ["EVERYBODY", "Kind", "Principal", "Role", "Team", "principal"]


class Role(IntEnum):
    """What somebody may do; each may do what those before it may."""

    NOBODY = 0
    """Without credentials."""
    VIEWER = 1
    """Looks at everything."""
    USER = 2
    """Has requests, and acts on them and on the devices that they hold."""
    OPERATOR = 3
    """Acts on all requests and devices."""
    ADMIN = 4
    """Does everything: tokens, teams, images, PXE configs."""

    @classmethod
    def of(cls, word: str) -> Role:
        """The role of this name in lower case. Raises ValueError."""
        try:
            return cls[word.upper()]
        except KeyError:
            raise ValueError(word) from None

    def __str__(self) -> str:
        return self.name.lower()


class Kind(StrEnum):
    """How somebody is known."""

    OPEN = "open"
    """Mode open: nobody is asked who they are."""
    NOBODY = "nobody"
    """No credentials."""
    TOKEN = "token"  # noqa: S105 - no secret  # nosec B105
    PERSON = "person"
    """Somebody who has signed on in a browser."""
    DEVICE = "device"
    SERVER = "server"
    """Another imaging server on its own behalf."""


@dataclass(frozen=True)
class Principal:
    """Who makes a call."""

    kind: Kind
    role: Role
    name: str | None = None
    """Whose requests are their own; of a device or server its name. None: mode open, or nobody."""
    team: Team | None = None
    credential: int | None = None
    """The id of the token."""
    session: int | None = None
    """The id of the session in a browser, with which nothing may be changed by a GET or without its CSRF token."""

    @property
    def is_of_provider(self) -> bool:
        """Whether they have signed on through the OpenID provider, without a token."""
        return self.kind is Kind.PERSON and self.credential is None

    def owns(self, made_by: str | None) -> bool:
        """Whether a request that was made by this name is their own; in mode open all are."""
        return self.kind is Kind.OPEN or (self.name is not None and self.name == made_by)


EVERYBODY = Principal(Kind.OPEN, Role.ADMIN)
"""Who calls in mode open."""


def principal() -> Principal:
    """Who makes the current call."""
    from flask import g  # commands, which know roles too, do without

    found = g.get("principal", EVERYBODY)
    assert isinstance(found, Principal)
    return found
