# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""For all tests in simulated time."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def unmeasured_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of simulated hours in other processes: their coverage says nothing new and doubles their time."""
    monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)
