# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""How large a run of the benchmarks is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """What each case is told."""

    short: bool
    """A smoke run: the smallest sizes only, seconds."""
    runs: int
    """How often each figure is measured: at least 3, or 1 when ``short``."""
    databases: tuple[str, ...]
    """Over which databases: of ``mariadb`` and ``sqlite``."""
