# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Errors that are logged are reported to Sentry, where ``[lambdatest] sentry_dsn`` says so."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mozpool import __version__
from mozpool.config import Settings
from mozpool.errors import MozpoolError

if TYPE_CHECKING:
    from sentry_sdk.types import Event, Hint


def _what_was_called(event: Event, _hint: Hint) -> Event:
    """Of the call in which an error was logged, method and address alone: headers and query may carry tokens."""
    call = event.get("request")
    if isinstance(call, dict):
        event["request"] = {key: call[key] for key in ("method", "url") if key in call}
    return event


def report_errors(settings: Settings) -> None:
    """Begin to. Raises MozpoolError when Sentry's library is not installed, or when the DSN can't be right."""
    dsn = settings.lambdatest.sentry_dsn
    if not dsn:
        return
    try:
        import sentry_sdk
        from sentry_sdk.integrations.stdlib import StdlibIntegration
    except ImportError as error:
        raise MozpoolError(
            "[lambdatest] sentry_dsn is set, but Sentry's library is not there: pip install 'mozpool[sentry]'"
        ) from error
    try:
        # Neither values of variables, of which some are secrets, nor what clients sent (the library sends no more of
        # persons by itself).
        sentry_sdk.init(
            dsn=dsn,
            release=f"mozpool@{__version__}",
            server_name=settings.server.fqdn,
            include_local_variables=False,
            max_request_body_size="never",
            before_send=_what_was_called,
            # It would put a part of the DSN into each program's environment and each call's headers.
            disabled_integrations=[StdlibIntegration()],
        )
    except Exception as error:
        raise MozpoolError(f"[lambdatest] sentry_dsn (a secret) is not right: {type(error).__name__}") from None
