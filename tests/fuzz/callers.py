# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Who makes the calls that are made up: in each mode of ``[auth]``, in each role, by good credentials and bad ones."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum

from sqlalchemy import update

from mozpool.access.matrix import RULES
from mozpool.access.principal import Role
from mozpool.db import tables
from tests.access_support import bearer, begin_session, cookies, from_page, make_team, make_token
from tests.app_fixtures import Server

TEAM = "web"

FAR = 1_000_000
"""Added to the ids of sessions and tokens, so that no call that is made up ends one that is still to be used."""


NOISE = "".join(chr(code) for code in (*range(0x21, 0x7F), *range(0xA1, 0x100)))
"""Characters that a header may have, but for spaces."""


class By(StrEnum):
    """By what somebody is known."""

    NOTHING = "nothing"
    TOKEN = "token"
    SESSION = "session"
    ADDRESS = "the address of device1"
    FOREIGN_PAGE = "session, from a page that is not ours"
    REVOKED = "token that was revoked"
    EXPIRED = "token that has expired"
    OVER = "session that is over"
    GARBAGE = "garbage"


BAD = frozenset({By.REVOKED, By.EXPIRED, By.OVER, By.GARBAGE})
"""Credentials that are no good."""

BROWSER = frozenset({By.SESSION, By.FOREIGN_PAGE})


@dataclass(frozen=True)
class Caller:
    """Somebody who calls."""

    mode: str
    """One of tests.access_support.MODES."""
    role: Role
    by: By
    share: int = 1
    """How many of the calls are theirs, as compared with others."""

    def __str__(self) -> str:
        return f"{self.mode}: {self.role} by {self.by}"


def _known(mode: str) -> list[Caller]:
    roles = (Role.VIEWER, Role.USER, Role.OPERATOR, Role.ADMIN)
    return [Caller(mode, role, by, 2) for role in roles for by in (By.TOKEN, By.SESSION)]


CALLERS: Sequence[Caller] = (
    Caller("open", Role.ADMIN, By.NOTHING, 14),
    Caller("open", Role.ADMIN, By.GARBAGE),
    Caller("token", Role.NOBODY, By.NOTHING),
    Caller("token", Role.NOBODY, By.ADDRESS),
    *_known("token"),
    *(Caller("token", Role.ADMIN, by) for by in (By.REVOKED, By.EXPIRED, By.OVER, By.FOREIGN_PAGE, By.GARBAGE)),
    Caller("token, anonymous viewers", Role.VIEWER, By.NOTHING, 2),
    Caller("token, anonymous viewers", Role.VIEWER, By.GARBAGE),
    Caller("oidc", Role.NOBODY, By.NOTHING),
    *_known("oidc"),
    *(Caller("oidc", Role.ADMIN, by) for by in (By.OVER, By.FOREIGN_PAGE)),
)
"""All of them try each operation."""


@dataclass(frozen=True)
class Credentials:
    """What a call carries."""

    headers: Mapping[str, str] = field(default_factory=dict)
    cookies: Mapping[str, str] = field(default_factory=dict)
    address: str = "127.0.0.1"


class People:
    """Those who call one server, and what they are known by there."""

    def __init__(self, made: Server, mode: str) -> None:
        self._database = database = made.daemon.database
        self._mode = mode
        self._device = made.device("device1").address
        now = database.clock.now()
        team = make_team(database, TEAM, max_devices=2, max_duration=86400)
        # What calls that are made up may do away with has the first numbers.
        for role in (Role.USER, Role.OPERATOR, Role.ADMIN):
            make_token(database, name_of(role), str(role))
            begin_session(database, name_of(role), str(role))
        self._tokens: dict[Role, str] = {}
        self._sessions: dict[Role, str] = {}
        for role in Role:
            if role is not Role.NOBODY:
                token = make_token(database, name_of(role), str(role), id=FAR + role)
                self._tokens[role] = token
                self._sessions[role] = begin_session(
                    database,
                    name_of(role),
                    str(role),
                    # In mode token people sign on with theirs. With the provider they may be in a team.
                    token=None if mode == "oidc" else token,
                    team_id=team if mode == "oidc" and role is Role.USER else None,
                )
        self._revoked = make_token(database, "root", "admin", id=FAR + 10, revoked=now)
        self._expired = make_token(database, "root", "admin", id=FAR + 11, expires=now)
        self._over = begin_session(database, "root", "admin", expires=now - timedelta(seconds=1))
        table = tables.sessions
        database.run(lambda conn: conn.execute(update(table).where(table.c.id > 3).values(id=table.c.id + FAR)))

    def credentials(self, caller: Caller, rng: random.Random) -> Credentials:
        """What a call of theirs carries."""
        match caller.by:
            case By.NOTHING:
                return Credentials()
            case By.ADDRESS:
                return Credentials(address=self._device)
            case By.TOKEN:
                return Credentials(bearer(self._tokens[caller.role]))
            case By.SESSION:
                secret = self._sessions[caller.role]
                return Credentials(from_page(secret), cookies(secret))
            case By.FOREIGN_PAGE:
                return Credentials(rng.choice(({}, from_page("another"))), cookies(self._sessions[caller.role]))
            case By.REVOKED:
                return Credentials(bearer(self._revoked), address=_somewhere(rng))
            case By.EXPIRED:
                return Credentials(bearer(self._expired), address=_somewhere(rng))
            case By.OVER:
                return Credentials(from_page(self._over), cookies(self._over), _somewhere(rng))
            case By.GARBAGE:
                return self._garbage(rng)

    def _garbage(self, rng: random.Random) -> Credentials:
        good = self._tokens[Role.ADMIN]
        noise = "".join(rng.choice(NOISE) for _ in range(rng.randrange(1, 60)))
        header = rng.choice(
            (
                "",
                noise,
                "Bearer",
                f"Bearer {noise}",
                f"Bearer {good[:-1]}",
                f"Bearer {good} {noise}",
                f"Bearer mozpool_{rng.randrange(10**18)}_{good.rpartition('_')[2]}",
                f"Basic {noise}",
                f"Mozpool-Server {noise}",
            )
        )
        if rng.random() < 0.2:
            return Credentials({}, cookies(noise.translate({ord(c): "x" for c in '",;\\'})), _somewhere(rng))
        return Credentials({"Authorization": header}, address=_somewhere(rng))

    @property
    def holder(self) -> Mapping[str, str]:
        """The headers of the user whose requests are made for them."""
        return {} if self._mode == "open" else bearer(self._tokens[Role.USER])

    @property
    def operator(self) -> Mapping[str, str]:
        """The headers of somebody who may take devices away."""
        return {} if self._mode == "open" else bearer(self._tokens[Role.OPERATOR])


def name_of(role: Role) -> str:
    """The name of those who have a role."""
    return f"{role}@example.com"


def _somewhere(rng: random.Random) -> str:
    """An address from which nobody has called yet: one that sends bad credentials often is not listened to."""
    return f"2001:db8:{rng.randrange(2**16):x}:{rng.randrange(2**16):x}::1"


def refusal(caller: Caller, endpoint: str, method: str, holds: bool | None) -> int | None:
    """The status with which the matrix wants a call refused; 0: it is let in; None: nobody can say.

    ``holds``: whether what the call is about is the caller's own; None: there is no such thing.
    """
    rule = RULES[endpoint]
    if caller.mode == "open" or rule.least is Role.NOBODY:
        return 0
    if caller.by in BAD:
        return 401
    if (caller.by is By.FOREIGN_PAGE and method != "GET") or (caller.by in BROWSER and method == "GET" and rule.acts):
        return 403
    if caller.role >= rule.least:
        return 0
    if rule.holder and caller.role is Role.USER and holds is not False:
        return None if holds is None else 0
    if rule.device and caller.by is By.ADDRESS:
        return None  # it depends on the device and the event
    return 401 if caller.role is Role.NOBODY or caller.by is By.NOTHING else 403
