# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What a benchmark gives: figures, each measured several times."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Figure:
    """One measured quantity, with a value of each run."""

    case: str
    """The letter of the case."""
    subject: str
    """Whose it is: ``mozpool``, ``labgrid``, ``ironic`` …"""
    measure: str
    """What was measured, e.g. ``request call p99``."""
    unit: str
    """Of the values, e.g. ``ms``, ``1/s``."""
    values: tuple[float, ...]
    """One of each run."""
    parameters: Mapping[str, str | int] = field(default_factory=dict)
    """What the figure depends on, e.g. ``{"database": "mariadb", "devices": 100, "clients": 8}``."""

    @property
    def median(self) -> float:
        """The middle one of the values."""
        return statistics.median(self.values)

    @property
    def spread(self) -> float:
        """How far the values lie apart: the widest distance from the median, as a share of it."""
        middle = self.median
        return max((abs(value - middle) for value in self.values), default=0.0) / middle if middle else 0.0
