# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What can go wrong, in the words of the domain. ``web.errors`` maps these to HTTP answers in one place."""

from __future__ import annotations


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
        shown = repr(value)
        if len(shown) > 80:
            shown = shown[:77] + "..."
        return cls(f"{field}: {shown} is not {expected}", field=field)


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


class Forbidden(MozpoolError):
    """The caller may not do this (403)."""

    status = 403
    code = "forbidden"


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
