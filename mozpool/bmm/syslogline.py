# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What a line of syslog says: RFC 5424, and RFC 3164 as boards speak it, with or without a time (wire facts: Syslog).

It comes to the same as what rsyslog makes of it with ``scripts/rsyslog/mozpool.conf``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from mozpool.logbook import one_line

FACILITIES = (
    *("kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp"),
    *("ntp", "security", "console", "clock", *(f"local{number}" for number in range(8))),
)
"""By number."""

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

_PRIORITY = re.compile(rb"<([0-9]{1,3})>")
_HEADER = re.compile(r"1 (\S{1,64}) (\S{1,255}) (\S{1,48}) \S{1,128} \S{1,32} (?=[-\[])")
_ELEMENT = re.compile(r'\[(?:[^\]"]|"(?:[^"\\]|\\.)*+")*+\]')
_OLD_TIME = re.compile(r"([A-Z][a-z]{2}) ([ 0-3]?[0-9]) ([0-9]{2}):([0-9]{2}):([0-9]{2}) ", re.ASCII)
_NEW_TIME = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2}T\S{1,40}) ", re.ASCII)
_HOST = re.compile(r"([A-Za-z0-9._-]{1,255}) ")
_TAG = re.compile(r"([^\s:]{1,512}):?")
_SOURCE = re.compile(r"[^\]:\[]+(?:\[[A-Z]+\])?")


@dataclass(frozen=True)
class Line:
    """A line of syslog."""

    facility: str
    host: str
    """As the sender calls itself."""
    ts: datetime | None
    """None: it says no time, or one that does not exist."""
    source: str
    """The tag without a process id: ``selftest.sh[INFO]`` stays as it is, ``sshd[77]`` becomes ``sshd``."""
    message: str
    """On one line, whatever came."""


def parse(data: bytes, now: datetime) -> Line | None:
    """Read one line, of which nothing is believed; None when it is no syslog, or does not say whose it is.

    ``now`` (UTC) is for times without a year or a zone: they are UTC, and of the year in which they are nearest.
    """
    priority = _PRIORITY.match(data)
    if priority is None or int(priority[1]) >= 8 * len(FACILITIES):
        return None
    facility = FACILITIES[int(priority[1]) // 8]
    text = _text(data[priority.end() :].rstrip(b"\0\r\n"))
    if header := _HEADER.match(text):
        when, host, source = header.groups()
        message = _after_elements(text, header.end())
        if message is not None:
            return Line(facility, host, _iso(when), one_line(source), one_line(message))
    ts, rest = _time(text, now)
    found = _HOST.match(rest)
    if found is None:
        return None
    rest = rest[found.end() :].lstrip(" ")
    tag = _TAG.match(rest)
    source, message = (tag[1], rest[tag.end() :]) if tag else ("", rest)
    short = _SOURCE.match(source)
    return Line(facility, found[1], ts, one_line(short[0] if short else source), one_line(message.strip(" ")))


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _after_elements(text: str, start: int) -> str | None:
    """The message behind the structured data that begin there; None when these are none."""
    end = start
    if text[start] == "-":
        end += 1
    else:
        while element := _ELEMENT.match(text, end):
            end = element.end()
    if end == start or text[end : end + 1] not in ("", " "):
        return None
    return text[end:].strip(" ").removeprefix("\ufeff")


def _time(text: str, now: datetime) -> tuple[datetime | None, str]:
    """The time at the beginning of a line of RFC 3164, and what comes after it."""
    if new := _NEW_TIME.match(text):
        return _iso(new[1]), text[new.end() :]
    old = _OLD_TIME.match(text)
    if old is None or old[1] not in _MONTHS:
        return None, text
    month = _MONTHS.index(old[1]) + 1
    day, hour, minute, second = map(int, old.group(2, 3, 4, 5))
    possible = []
    for year in (now.year - 1, now.year, now.year + 1):
        try:
            possible.append(datetime(year, month, day, hour, minute, second, tzinfo=UTC))
        except ValueError:
            continue  # the 29th of February, or nonsense
    return min(possible, key=lambda ts: abs(ts - now), default=None), text[old.end() :]


def _iso(text: str) -> datetime | None:
    try:
        ts = datetime.fromisoformat(text)
        return ts.replace(tzinfo=UTC) if ts.tzinfo is None else ts.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def plausible(ts: datetime | None, now: datetime, keep: timedelta) -> datetime:
    """``ts`` when lines of that time are kept, else ``now``: boards without a clock live in 1970."""
    tomorrow = now.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=2)
    return ts if ts is not None and now - keep <= ts < tomorrow else now
