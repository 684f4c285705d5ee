# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What can go wrong between a client and its imaging servers. ``str()`` is a sentence for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mozpool.client.models import Request


class ClientError(Exception):
    """Base of all errors that the client raises.

    ``status`` is the HTTP status that a server answered with (None: none did), ``code`` the server's stable word.
    """

    def __init__(self, message: str, *, status: int | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code


class ServerUnavailable(ClientError):
    """No server answered in time, or all of them said that they can't serve anybody now."""


class BadRequest(ClientError):
    """A server refused the input; ``field`` names what is wrong, if one thing is."""

    def __init__(
        self, message: str, *, status: int | None = None, code: str | None = None, field: str | None = None
    ) -> None:
        super().__init__(message, status=status, code=code)
        self.field = field


class NotAllowed(ClientError):
    """A server wants to know who calls (status 401), or whoever that is may not do this (403)."""


class NotFound(ClientError):
    """The device, request or image that was named does not exist."""


class Conflict(ClientError):
    """The thing is not in the state that the call needs: the device that was asked for is taken.

    ``request`` is the request that was made and is closed already, when there was one.
    """

    def __init__(
        self, message: str, *, status: int | None = None, code: str | None = None, request: Request | None = None
    ) -> None:
        super().__init__(message, status=status, code=code)
        self.request = request


class RequestFailed(ClientError):
    """A request ended; ``state`` is its last state, ``reason`` says why, if that is known."""

    def __init__(self, request_id: int, state: str, reason: str | None = None) -> None:
        because = f": {reason}" if reason else ""
        super().__init__(f"request {request_id} ended in state {state}{because}")
        self.request_id = request_id
        self.state = state
        self.reason = reason


class DeviceLost(ClientError):
    """A device that was held is held no longer: its request was closed by somebody, or could not be renewed."""


class WaitTimeout(ClientError):
    """A request was not ready in the time that the caller gave it; it is still open, in ``state``."""

    def __init__(self, request_id: int, state: str, seconds: float) -> None:
        super().__init__(
            f"request {request_id} was not ready within {seconds:g} s: it is in state {state or 'unknown'}"
        )
        self.request_id = request_id
        self.state = state
