# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""A server that was frozen in the middle of things comes back when others act on its devices."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from mozpool.clock import Deadline
from mozpool.lease import Lease
from mozpool.simulate.explore import run
from mozpool.simulate.faults import Rates, Scripted
from mozpool.simulate.scenario import People, Scenario, rough
from mozpool.simulate.world import World

pytestmark = pytest.mark.no_cover


def frozen(at: float, step: str) -> Scenario:
    """One server does nothing for three minutes, from some step of a transition on."""
    return replace(
        rough(hours=0.4),
        rates=Rates.none(),
        people=People(mends=0.0),
        script=(Scripted("freeze", at, f"server-1, {step}", seconds=180.0),),
    )


LONG = os.environ.get("MOZPOOL_LONG_TESTS") == "1"
TIMES = (0.2, 60.0, 130.0, 300.0, 301.0, 600.0) if LONG else (0.2, 60.0, 301.0)
MOMENTS = [(at, step) for at in TIMES for step in ("effect", "decided", "committed")]


@pytest.mark.parametrize(("at", "step"), MOMENTS)
def test_a_server_that_was_frozen_acts_on_nothing_that_others_have_taken(at: float, step: str) -> None:
    said: list[str] = []
    world = World(frozen(at, step), "1", hear=said.append)
    result = world.run()
    assert result.violation is None
    assert not result.missed
    frozen_id = world.server_ids["server-1"]
    passed = [line for line in said if " passes from server " in line]
    taken = [line for line in passed if f"from server {frozen_id} to" in line]
    given = [line for line in passed if line.endswith(f" to {frozen_id}")]
    devices = sum(1 for line in taken if "request" not in line)
    assert devices > 0
    assert len(taken) >= devices
    assert sum(1 for line in given if "request" not in line) == devices, "all devices are given back"


def test_without_a_lease_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the test before relies on is what keeps it from that."""
    monkeypatch.setattr(Lease, "acting", lambda self, device, operation, seconds: Deadline(self._clock, seconds))
    violations = [run(frozen(at, step), "1").violation for at, step in MOMENTS if step == "effect"]
    assert any("does not own it" in violation for violation in violations if violation)
