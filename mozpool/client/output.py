# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What the command ``mozpool`` shows: tables, times, the progress of a request."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, TextIO

import click

from mozpool.client.api import Client, Progress
from mozpool.client.errors import ClientError
from mozpool.client.models import READY, Waiting

TRANSITION = re.compile(r"(\w+) -> (\w+)\b")
"""How the log of a device tells that its state has changed."""

QUEUED = "finding_device"
"""The state of requests that have no device yet."""

AT_ONCE = "start_"
"""Prefix of states that are left at once."""

CLEAR_LINE = "\r\033[K"


def plain(value: object) -> str:
    """A value as text that does nothing to a terminal; None is empty."""
    text = "" if value is None else str(value)
    return "".join(char if char.isprintable() else "?" for char in text)


def moment(value: datetime | None) -> str:
    """A time in UTC, for a table."""
    return "" if value is None else f"{value:%Y-%m-%d %H:%M:%S}"


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> Iterator[str]:
    """The lines of a table with aligned columns."""
    cells = [list(head), *([plain(value) for value in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    for row in cells:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def show_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table."""
    for line in table(head, rows):
        click.echo(line)


def _json(ctx: click.Context, param: click.Parameter, value: bool) -> bool:
    """Let errors be told as JSON, too."""
    ctx.meta["json"] = value
    return value


json_option = click.option("--json", "as_json", is_flag=True, callback=_json, help="Print one JSON document.")


def document(value: Any) -> str:
    """One JSON document."""
    return json.dumps(value, indent=2, default=dict)


class ProgressLines:
    """Writes each state of a request, and of the device that is prepared for it, with the seconds it took.

    On a terminal the state that lasts stands on the last line, which is written again and again; elsewhere there are
    only whole lines.
    """

    def __init__(self, client: Client, stream: TextIO) -> None:
        self._client = client
        self._stream = stream
        self._live = stream.isatty()
        self._waiting: Waiting | None = None
        self._device: str | None = None
        self._last_line = 0
        self._entered: datetime | None = None

    def __call__(self, progress: Progress) -> None:
        """Show what is new (as ``on_change`` of :meth:`Client.wait_ready`)."""
        status = progress.status
        if progress.previous is None and progress.changed:
            self._line(f"request {progress.request_id}:")
        left = f"  {plain(progress.previous):<30} {progress.seconds:6.1f} s" if progress.changed else ""
        if left and progress.previous == QUEUED:
            self._line(left)
        if status.device is not None and status.claimed_at is not None and not status.ended:
            self._show_device(status.device, status.claimed_at)
        if left and progress.previous not in (None, QUEUED):
            self._line(left)
        if status.waiting is not None and status.waiting != self._waiting:
            self._line(f"  place {status.waiting.place} in the queue: {plain(status.waiting.reason)}")
        self._waiting = status.waiting
        if status.state == READY or status.ended:
            self._line(f"  {plain(status.state)}")
        elif self._live:
            seconds = 0.0 if progress.changed else progress.seconds
            what = " ".join(filter(None, (status.device, status.device_state)))
            self._write(f"{CLEAR_LINE}  {plain(status.state):<30} {seconds:6.1f} s {plain(what)}".rstrip())

    def close(self) -> None:
        """Leave the last line as it is: nothing more comes."""
        if self._live:
            self._write(CLEAR_LINE)

    def _line(self, text: str) -> None:
        self._write(f"{CLEAR_LINE if self._live else ''}{text}\n")

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except BrokenPipeError:
            _write_to_nobody(self._stream)

    def _show_device(self, device: str, since: datetime) -> None:
        """Show the states that the device has left since it was claimed at this time, by its own log."""
        try:
            log = self._client.log(device, limit=100)
        except ClientError:
            return
        if device != self._device:
            self._device, self._entered, self._last_line = device, None, 0
        for line in log:
            found = TRANSITION.match(line.message)
            if found is None or line.timestamp is None or line.id <= self._last_line:
                continue
            self._last_line = line.id
            if line.timestamp < since:
                # For those who had it before.
                self._entered = None
                continue
            if self._entered is not None and not found[1].startswith(AT_ONCE):
                # Logs tell whole seconds.
                seconds = int((line.timestamp - self._entered).total_seconds()) or "<1"
                self._line(f"    {plain(f'{device} {found[1]}'):<28} {seconds:>4}   s")
            # Only ready devices are claimed: what comes before it left that state was not for this request.
            if self._entered is not None or found[1] == READY:
                self._entered = line.timestamp


def note(text: str) -> None:
    """One line on standard error, be there somebody who reads it or not."""
    try:
        click.echo(text, err=True)
    except BrokenPipeError:
        _write_to_nobody(sys.stderr)


def error_line(message: str) -> None:
    """One sentence on standard error."""
    note(f"mozpool: {plain(message)}")


def _write_to_nobody(stream: TextIO) -> None:
    """The reader has gone: let what else is written, also at the exit, get lost instead of failing."""
    with suppress(OSError), open(os.devnull, "wb") as nobody:
        os.dup2(nobody.fileno(), stream.fileno())
