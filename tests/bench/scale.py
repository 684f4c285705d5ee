# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""How large a run of the benchmarks is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """What each case is told of the run that it is part of."""

    short: bool
    """A smoke run: the smallest sizes, seconds in all."""
    runs: int
    """How often each figure is measured."""
    databases: tuple[str, ...]
    """Of ``mariadb`` and ``sqlite``."""
