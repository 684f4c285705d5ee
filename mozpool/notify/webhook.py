# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""POSTs to webhooks and callback URLs."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Mapping

import requests as http

from mozpool.bmm import httpio
from mozpool.clock import Clock, Deadline

CALL_LIMIT = 5.0
"""Seconds that a call may take in all."""

GONE = 410
"""The status by which a receiver says that it never wants to be told this."""


class NotTaken(Exception):
    """It was not taken; ``str()`` is the reason in plain words, without the receiver's address."""

    def __init__(self, reason: str, *, answered: bool = False, final: bool = False) -> None:
        """``answered``: the receiver is there, and refused this. ``final``: it need not be tried again."""
        super().__init__(reason)
        self.answered = answered
        self.final = final


Post = Callable[[str, bytes, Mapping[str, str]], None]
"""POSTs a body with these headers to a URL. Raises NotTaken."""


def post(url: str, body: bytes, headers: Mapping[str, str]) -> None:
    """POST; the whole call is over within CALL_LIMIT. Redirects are not followed. Raises NotTaken."""
    try:
        with httpio.session(Deadline(Clock(), CALL_LIMIT)) as session:
            status = session.post(url, data=body, headers=dict(headers)).status_code
    except httpio.CallError as error:
        raise NotTaken(str(error)) from error
    except (http.RequestException, ValueError) as error:
        raise NotTaken(f"it can't be called ({type(error).__name__})") from error
    if not 200 <= status < 300:
        raise NotTaken(f"answered {status}", answered=True, final=status == GONE)


def headers(event: str, delivery: int, timestamp: int, body: bytes, secret: str) -> dict[str, str]:
    """The headers of a call; it is signed when there is a secret. ``timestamp``: seconds since 1970."""
    made = {
        "Content-Type": "application/json",
        "User-Agent": "mozpool",
        "X-Mozpool-Event": event,
        "X-Mozpool-Delivery": str(delivery),
        "X-Mozpool-Timestamp": str(timestamp),
    }
    if secret:
        made["X-Mozpool-Signature"] = f"sha256={signature(secret, timestamp, body)}"
    return made


def signature(secret: str, timestamp: int, body: bytes) -> str:
    """The HMAC, in hexadecimal digits, of what is sent and when."""
    return hmac.new(secret.encode(), b"%d.%b" % (timestamp, body), hashlib.sha256).hexdigest()
