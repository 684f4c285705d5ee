# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What can go wrong, in the words of the domain. ``web.errors`` maps these to HTTP answers in one place."""

from __future__ import annotations

import reprlib
from itertools import islice
from typing import Any


class MozpoolError(Exception):
    """Base of all errors that are meant for a person; ``str()`` is the message.

    ``status`` is the HTTP status an API call answers with, ``code`` a stable word for programs,
    ``field`` the name of the input that is wrong, if one is.
    """

    status = 500
    code = "internal_error"

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field


class BadInput(MozpoolError):
    """A value that cannot be right, whatever the pool looks like (400)."""

    status = 400
    code = "bad_input"

    @classmethod
    def value(cls, field: str, value: object, expected: str) -> BadInput:
        """Build the message from the field's name, its value (shortened) and what was expected."""
        return cls(f"{field}: {brief(value)} is not {expected}", field=field)


class _Brief(reprlib.Repr):
    """As repr(), but of the beginning alone: what was sent may be as deep and as long as its sender likes."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 4
        self.maxdict = self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = 20
        self.maxstring = self.maxlong = self.maxother = 400

    def repr_dict(self, x: dict[Any, Any], level: int) -> str:
        """In the order that it has."""
        if level <= 0:
            return "{...}"
        parts = [f"{self.repr1(key, level - 1)}: {self.repr1(x[key], level - 1)}" for key in islice(x, self.maxdict)]
        return "{" + ", ".join(parts + ["..."] * (len(x) > self.maxdict)) + "}"


_brief = _Brief()


def brief(value: object) -> str:
    """A value for a message: its beginning, of at most 80 characters, whatever it is."""
    shown = repr(value[:80]) + "..." * (len(value) > 80) if isinstance(value, str) else _brief.repr(value)
    return shown if len(shown) <= 80 else shown[:77] + "..."


class Unprocessable(MozpoolError):
    """Well-formed input that this pool cannot act on (422)."""

    status = 422
    code = "unprocessable"


class NotFound(MozpoolError):
    """What was named does not exist (404)."""

    status = 404
    code = "not_found"


class Conflict(MozpoolError):
    """The thing is not in the state that the call needs (409)."""

    status = 409
    code = "conflict"


class NotOurs(MozpoolError):
    """Another imaging server acts on the thing, since a moment ago (302 to the same call there)."""

    status = 409
    code = "conflict"

    def __init__(self, name: str, owner: str) -> None:
        """``owner`` is that server's fqdn."""
        super().__init__(f"imaging server {owner} acts on {name}")
        self.owner = owner


class Unauthorized(MozpoolError):
    """Nobody knows who the caller is, or the credentials are no good (401)."""

    status = 401
    code = "unauthorized"


class Forbidden(MozpoolError):
    """The caller may not do this (403)."""

    status = 403
    code = "forbidden"


class TooManyCalls(MozpoolError):
    """The caller calls, or shows bad credentials, more often than it may (429, with Retry-After)."""

    status = 429
    code = "too_many_calls"

    def __init__(self, message: str, seconds: float) -> None:
        """``seconds``: when the same call may come again."""
        super().__init__(message)
        self.seconds = seconds


class DatabaseAway(MozpoolError):
    """The database does not answer; the same call may work later (503, with Retry-After)."""

    status = 503
    code = "database_away"
    retry_after = 5


class HardwareError(MozpoolError):
    """A hardware operation failed: names device, operation and reason (502 when a call waited for it)."""

    status = 502
    code = "hardware_error"

    def __init__(self, device: str, operation: str, reason: str) -> None:
        super().__init__(f"{operation} of {device} failed: {reason}")
        self.device = device
        self.operation = operation
        self.reason = reason


class LaneError(HardwareError):
    """Not the device but what it shares with others is at fault: a relay board, a PDU, a cloud account."""

    code = "lane_error"

    def __init__(self, device: str, operation: str, reason: str, *, culprit: str) -> None:
        super().__init__(device, operation, f"{culprit}: {reason}")
        self.culprit = culprit


class OwnFault(HardwareError):
    """Not the hardware but this imaging server is at fault, its disk for one: devices wait until it is mended."""

    code = "server_fault"


class NotYet(MozpoolError):
    """It is not the time for an operation yet: it is to be tried again after ``seconds``. Nothing has failed."""

    status = 503
    code = "not_yet"

    def __init__(self, seconds: float) -> None:
        super().__init__(f"not for {seconds:.1f} s")
        self.seconds = seconds


class NoSuchBackend(MozpoolError):
    """A device names a backend that is not installed (422)."""

    status = 422
    code = "no_such_backend"


class LeaseOver(OwnFault):
    """This server has been out of touch with the database for so long that others may act in its place."""

    status = 503
    code = "lease_over"

    def __init__(self, device: str, operation: str) -> None:
        super().__init__(device, operation, "this imaging server has lost touch with the others of its group")


class ProviderAway(MozpoolError):
    """The OpenID provider does not answer, or what it answers makes no sense (502)."""

    status = 502
    code = "provider_away"
