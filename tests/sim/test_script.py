# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Faults by script: what once went wrong, put together on purpose."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mozpool.errors import BadInput
from mozpool.simulate.explore import explain
from mozpool.simulate.faults import BOARD_FAILURES, Rates, Scripted
from mozpool.simulate.scenario import Kind, Load, People, Scenario
from mozpool.simulate.world import Result, World

RELIABLE = Kind("panda", 4).behaviour.reliable()

CALM = Scenario(
    servers=2,
    kinds=(Kind("panda", 4, boards_per_relay=2, behaviour=RELIABLE),),
    loads=(Load("tests", per_hour=40, hold=120.0, named=0.0),),
    people=People(mends=6.0),
    rates=Rates.none(),
    hours=0.6,
)


def run(*script: Scripted, scenario: Scenario = CALM) -> tuple[Result, list[str]]:
    """What became of it, and the log; everything in the script happened and nothing else, and all is well."""
    lines: list[str] = []
    result = World(replace(scenario, script=script), "script", hear=lines.append).run()
    assert result.violation is None, explain(result)
    assert result.missed == ()
    assert sorted(fault.kind for fault in result.faults) == sorted(scripted.kind for scripted in script)
    assert result.requests.get("closed", 0) > 10
    return result, lines


def test_nothing_happens_by_itself() -> None:
    run()


@pytest.mark.parametrize("point", ["loaded", "decided", "written", "committed", "effect"])
def test_a_server_is_killed_at_each_step_and_comes_back(point: str) -> None:
    result, lines = run(Scripted("crash", 700.0, f"server-1, {point}", seconds=40.0))
    (fault,) = result.faults
    assert fault.where == f"server-1, {point}"
    (back,) = [float(line.split()[0]) for line in lines if line.endswith("server-1 is up")][1:]
    assert back == pytest.approx(fault.time + 40.0, abs=2.0)


def test_the_answer_to_a_request_is_lost_and_so_is_its_commit() -> None:
    """The client asks again, the request is there once, and it is served."""
    run(Scripted("answer_lost", 700.0, "POST request"), Scripted("lost_after_commit", 700.0, "server-1"))


def test_both_servers_lose_the_database_one_after_the_other() -> None:
    run(Scripted("outage", 700.0, "server-1", 100.0), Scripted("outage", 740.0, "server-2", 100.0))


def test_a_board_fails_in_every_way() -> None:
    begin = 0.0
    result, _ = run(*(Scripted(kind, begin, "panda-0001") for kind in BOARD_FAILURES if kind != "self_test_failure"))
    assert {fault.where for fault in result.faults} == {"panda-0001"}


def test_people_and_hardware_interfere_with_each_other() -> None:
    result, lines = run(
        Scripted("relay_hangs", 600.0, "relay-panda-1", 90.0),
        Scripted("forced_state", 620.0, "panda-0003", state="start_self_test"),
        Scripted("offline", 640.0, "panda-0004"),
        Scripted("removed", 650.0, "panda-0001"),
        Scripted("clock_jump", 660.0, "server-2", -30.0),
    )
    assert [fault.time for fault in result.faults if fault.kind == "clock_jump"] == [660.0]
    assert any("server-2, -30.0 s" in line for line in lines)


def test_a_script_is_read_in_the_order_of_time_and_a_fault_waits_for_its_opportunity() -> None:
    result, _ = run(Scripted("deadlock", 1200.0), Scripted("deadlock", 700.0, "server-2"))
    first, second = result.faults
    assert first.where == "server-2"
    assert 700.0 <= first.time < second.time
    assert second.time >= 1200.0


def test_what_a_script_cannot_say_is_refused() -> None:
    for wrong, field in (
        ({"kind": "fire"}, "kind"),
        ({"kind": "deadlock", "seconds": 3.0}, "seconds"),
        ({"kind": "crash", "state": "ready"}, "state"),
    ):
        with pytest.raises(BadInput, match=f"^{field}: "):
            Scripted(**wrong)
