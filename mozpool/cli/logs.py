# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Where programs that run for long log to."""

from __future__ import annotations

import logging
import logging.handlers
import sys
from contextlib import suppress
from pathlib import Path

import click

from mozpool.config import SYSLOG, ConfigError, Problem, Settings
from mozpool.logbook import OneLineEach

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def configure_logging(settings: Settings) -> None:
    """Log to stderr and, when configured, to syslog."""
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if settings.server.syslog:
        handlers.append(_syslog(settings, settings.server.syslog))
    for handler in handlers:
        handler.setFormatter(OneLineEach(FORMAT))
    logging.basicConfig(level=settings.server.log_level, handlers=handlers, force=True)
    for name in ("alembic", "apscheduler"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)


class Syslog(logging.handlers.SysLogHandler):
    """Says once on stderr that syslog takes no lines, not with every line; and anew when it took some since."""

    _failed = False
    _told = False

    def emit(self, record: logging.LogRecord) -> None:
        self._failed = False
        super().emit(record)
        if not self._failed:
            self._told = False

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        self._failed = True
        if not self._told:
            self._told = True
            reason = error.strerror or type(error).__name__
            with suppress(OSError):
                click.echo(f"mozpool-server: syslog {SYSLOG.show(self.address)} takes no lines: {reason}", err=True)


def _syslog(settings: Settings, address: str | tuple[str, int]) -> Syslog:
    """The handler for syslog at this address. Raises ConfigError when there can't be anything."""
    try:
        return Syslog(address=address)
    except OSError as error:
        message = f"{SYSLOG.show(address)!r} can't be used: {error.strerror or error}"
        line = settings.lines.get(("server", "syslog"))
        problem = Problem(settings.source or Path("config.ini"), line, "server", "syslog", message)
        raise ConfigError([problem]) from error
