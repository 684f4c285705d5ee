# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""How imaging servers sign their calls to each other with the key that they share (``[auth] server_key``).

The header is ``Authorization: Mozpool-Server CLAIMS MAC[,MAC]``. CLAIMS is a JSON object in URL-safe base64: who calls
whom, when, with a number that is used once, what the call is (method, path, query, and the SHA-256 of its body), and on
whose behalf. Each MAC is the HMAC-SHA256 (RFC 2104) of CLAIMS as they are sent, with one of the sender's keys.

A call counts once and for a minute, and only in the run of the receiver that it names: who records calls can't play
them again, not even to a receiver that has forgotten in a restart which ones it has had.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any
from urllib.parse import unquote

from mozpool.access.principal import Kind, Principal, Role, Team
from mozpool.clock import Clock
from mozpool.errors import Unauthorized

SCHEME = "Mozpool-Server"

WINDOW = 60.0
"""Seconds by which the clocks of two servers may differ, with the time that a call takes on its way."""

_CONTEXT = b"mozpool server call 1\n"
"""What is put before the claims, so that a MAC for something else made with the same key is none for them."""


class BadSignature(Unauthorized):
    """A call that says it comes from an imaging server is not taken (401)."""

    code = "bad_signature"


class OtherRun(BadSignature):
    """The call is for another run of this server: its sender learns of the new one by the answer, and calls again."""


@dataclass(frozen=True)
class Call:
    """What is called, as the receiver understands it."""

    method: str
    path: str
    """Without percent signs: as the application sees it."""
    query: str
    """As it is sent, without the question mark."""
    body: bytes

    @classmethod
    def to(cls, method: str, target: str, body: bytes) -> Call:
        """From the target of the request line, ``/path?query``."""
        path, _, query = target.partition("?")
        return cls(method, unquote(path), query, body)

    def claims(self) -> dict[str, str]:
        """What is claimed of it."""
        hashed = hashlib.sha256(self.body).hexdigest()
        return {"method": self.method, "path": self.path, "query": self.query, "body": hashed}


@dataclass(frozen=True)
class Sender:
    """Who has signed a call."""

    server: str
    """Its fqdn."""
    on_behalf: Principal | None
    """Whose call it passes on; None: its own."""


class Signer:
    """Signs what one imaging server calls."""

    def __init__(self, own_name: str, keys: Sequence[str], clock: Clock) -> None:
        """``own_name`` is this server's fqdn; each call is signed with all ``keys``, at least one."""
        self._own_name = own_name
        self._keys = keys
        self._clock = clock

    def sign(self, call: Call, to: str, run: str, on_behalf: Principal | None) -> str:
        """The header ``Authorization`` of a call ``to`` the server of this fqdn, which named its ``run`` so."""
        claims = {
            **call.claims(),
            "from": self._own_name,
            "to": to,
            "run": run,
            "at": self._clock.now().timestamp(),
            "nonce": secrets.token_urlsafe(12),
            "for": None if on_behalf is None else _described(on_behalf),
        }
        text = base64.urlsafe_b64encode(json.dumps(claims).encode())
        return f"{SCHEME} {text.decode()} {','.join(_mac(key, text) for key in self._keys)}"


class Verifier:
    """Checks what other imaging servers have signed. Safe to use from any thread."""

    def __init__(self, own_name: str, keys: Sequence[str], clock: Clock) -> None:
        """``own_name`` is this server's fqdn; a signature with any of ``keys`` is good."""
        self.run = secrets.token_urlsafe(12)
        """What tells this run of the server from all others."""
        self._own_name = own_name
        self._keys = keys
        self._clock = clock
        self._lock = threading.Lock()
        self._nonces: set[str] = set()
        self._arrived: deque[tuple[float, str]] = deque()
        """When each was first seen (monotonic time); the oldest first."""

    def check(self, credentials: str, call: Call) -> Sender:
        """Who has signed a call; ``credentials`` is what stands behind :data:`SCHEME` in its header.

        Raises BadSignature, OtherRun.
        """
        claims = self._claims(credentials)
        server = str(claims.get("from"))
        to = str(claims.get("to"))
        if to.lower() != self._own_name.lower():
            raise BadSignature(f"the call is for {to[:256]}, and this is {self._own_name}")
        if claims.get("run") != self.run:
            raise OtherRun("the call is for another run of this server")
        if any(claims.get(name) != value for name, value in call.claims().items()):
            raise BadSignature("what is called is not what was signed: something has changed it on its way")
        behind = self._clock.now().timestamp() - float(claims.get("at", 0.0))
        if abs(behind) > WINDOW:
            raise BadSignature(
                f"it was signed {abs(behind):.0f} s {'ago' if behind > 0 else 'from now'}: the clocks of "
                f"{server[:256]} and {self._own_name} may differ by {WINDOW:g} s at most"
            )
        if not self._is_new(str(claims.get("nonce"))):
            raise BadSignature("the same call has come before")
        behalf = claims.get("for")
        return Sender(server, None if behalf is None else _principal(behalf))

    def _claims(self, credentials: str) -> Mapping[str, Any]:
        """The claims, which somebody has signed who knows a key. Raises BadSignature."""
        if not self._keys:
            raise BadSignature(f"{self._own_name} has no [auth] server_key to compare signatures with")
        text, _, macs = credentials.strip().partition(" ")
        given = [mac.encode() for mac in macs.split(",", 2)[:2]]
        try:
            encoded = text.encode("ascii")
        except UnicodeEncodeError:
            encoded = b""
        good = [hmac.compare_digest(_mac(key, encoded).encode(), mac) for key in self._keys for mac in given]
        if not any(good):
            raise BadSignature("the signature is of another [auth] server_key")
        claims: Mapping[str, Any] = json.loads(base64.urlsafe_b64decode(encoded))
        return claims

    def _is_new(self, nonce: str) -> bool:
        """Whether it was not seen within the time in which its call could come again; from now on it was."""
        now = self._clock.monotonic()
        with self._lock:
            while self._arrived and self._arrived[0][0] < now - 2 * WINDOW:
                self._nonces.discard(self._arrived.popleft()[1])
            if nonce in self._nonces:
                return False
            self._nonces.add(nonce)
            self._arrived.append((now, nonce))
            return True


def _mac(key: str, text: bytes) -> str:
    return hmac.new(key.encode(), _CONTEXT + text, hashlib.sha256).hexdigest()


def _described(who: Principal) -> dict[str, Any]:
    """A principal as the claims have it. The session stays behind: what it may not do, the sender has refused."""
    return {
        "kind": who.kind.value,
        "role": str(who.role),
        "name": who.name,
        "team": None if who.team is None else asdict(who.team),
        "credential": who.credential,
    }


def _principal(claimed: Mapping[str, Any]) -> Principal:
    """The principal that a server has described. Whom it has not asked who they are is nobody here.

    Raises BadSignature.
    """
    try:
        kind, role, team = Kind(claimed["kind"]), Role.of(claimed["role"]), claimed["team"]
        if kind is Kind.OPEN:
            return Principal(Kind.NOBODY, Role.NOBODY)
        return Principal(kind, role, claimed["name"], None if team is None else _team(team), claimed["credential"])
    except (KeyError, TypeError, ValueError) as error:
        raise BadSignature("this version does not understand for whom the call is made") from error


def _team(claimed: Mapping[str, Any]) -> Team:
    """A team; what only a newer version knows of it is left out."""
    known = [field.name for field in fields(Team) if field.name in claimed]
    values: dict[str, Any] = {
        name: tuple(claimed[name]) if isinstance(claimed[name], list) else claimed[name] for name in known
    }
    return Team(**values)
