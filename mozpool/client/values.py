# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""How values of options are written."""

from __future__ import annotations

import re

import click

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def duration(text: str | float) -> float:
    """Seconds from 90, 45s, 30m, 2h, 1h30m or 1d; more than none, and an int where they are whole."""
    text = str(text).strip().lower()
    seconds = 0.0
    if re.fullmatch(r"\d+(\.\d+)?", text):
        seconds = float(text)
    elif re.fullmatch(r"(\d+[smhd])+", text):
        seconds = float(sum(int(number) * UNITS[unit] for number, unit in re.findall(r"(\d+)([smhd])", text)))
    if seconds <= 0:
        raise click.BadParameter(f"{text!r} is not a duration such as 90, 45s, 30m, 2h or 1h30m")
    # Servers may want whole numbers.
    return int(seconds) if seconds.is_integer() else seconds


def wait(text: str | float) -> float:
    """A duration, or 0."""
    return 0 if str(text).strip() == "0" else duration(text)


def days(text: str | float) -> float:
    """A number of days; more than none, and a hundred years at most."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number <= 36_500:
        raise click.BadParameter(f"{str(text)!r} is not a number of days such as 7 or 0.5, at most 36500")
    return number


def pair(text: str) -> tuple[str, str]:
    """Name and value from NAME=VALUE; the value may be empty."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise click.BadParameter(f"{text!r} is not NAME=VALUE")
    return name, value
