# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The request machine against its contract: states, events, limits and tries are typed here, not read from the code."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest

from mozpool.db.devices import Candidate
from mozpool.db.tables import claim_history, device_requests, devices
from mozpool.pool.effects import AskLifeguard, TellRelease
from mozpool.pool.requestmachine import request_machine
from mozpool.statemachine import TIMEOUT, Context, Decision, Effect, Machine, Tuning
from tests.factories import NOW, request

MACHINE = request_machine()


@dataclass(frozen=True)
class FakeReads:
    """The other tables, as far as the machine looks at them."""

    devices: Mapping[str, str] = field(default_factory=lambda: {"panda-0001": "ready"})
    equal_image: bool = False
    job: bool = False
    verify_on_return: bool = False

    def device_state(self, name: str) -> str | None:
        return self.devices.get(name)

    def has_equal_image(self, _request: Any) -> bool:
        return self.equal_image

    def had_job(self, _request: Any) -> bool:
        return self.job


READS = FakeReads()

# Columns of requests in certain situations
NAMED: dict[str, Any] = {"requested_device": "panda-0001", "wait": 0}
CLAIMED: dict[str, Any] = {
    "claim_id": 7,
    "device_id": 3,
    "device": "panda-0001",
    "device_state": "ready",
    "device_server_id": 2,
    "device_server": "server-2.example.com",
}
BEING_PREPARED: dict[str, Any] = {**CLAIMED, "device_state": "pxe_booting", "device_operation_claim_id": 7}
FOUND: dict[str, Any] = {
    "device": Candidate(
        id=3,
        name="panda-0001",
        version=41,
        environment="production",
        hardware_type_id=1,
        image_id=None,
        boot_config_hash=None,
        address="panda-0001.example.com",
        owner_id=2,
        owner="server-2.example.com",
    )
}


def context(
    state: str,
    event: str,
    args: Mapping[str, Any] | None = None,
    *,
    reads: FakeReads = READS,
    counters: Mapping[str, int] | None = None,
    **columns: Any,
) -> Context[Any]:
    row = request(state, state_counters=counters or {}, **columns)
    return Context(row, event, now=NOW, rng=random.Random(1), args=args, reads=reads)


def decide(
    state: str, event: str, args: Mapping[str, Any] | None = None, *, machine: Machine[Any] = MACHINE, **situation: Any
) -> Decision:
    """What the machine decides of an event that the state expects."""
    decision = machine.decide(context(state, event, args, **situation))
    assert decision is not None, f"{state} does not expect {event}"
    return decision


class Recorder:
    """Stands where the connection of a transition stands, to see what is written beside the request's row."""

    def __init__(self) -> None:
        self.statements: list[tuple[str, str, dict[str, Any]]] = []

    def execute(self, statement: Any, values: Mapping[str, Any]) -> Recorder:
        self.statements.append((type(statement).__name__, statement.table.name, dict(values)))
        return self

    rowcount = 1
    inserted_primary_key = (99,)


def written(decision: Decision) -> list[tuple[str, str, dict[str, Any]]]:
    recorder = Recorder()
    for write in decision.writes:
        write.run(recorder)
    return recorder.statements


def assert_keeps_device(decision: Decision) -> None:
    assert decision.writes == ()
    assert not [effect for effect in decision.effects if isinstance(effect, TellRelease)]


def assert_gives_up_device(decision: Decision, reason: str) -> None:
    """The claim is ended in the transition's own transaction, and it is noted since when the device was ready, if it
    was; its device is locked first."""
    was_ready = NOW if decision.source == "ready" else None
    freed, *rest = written(decision)
    assert freed[:2] == ("Update", devices.name)
    assert {key: freed[2][key] for key in ("row_id", "row_claim", "due_now")} == {
        "row_id": 3,
        "row_claim": 7,
        "due_now": NOW,
    }
    assert sorted(rest) == [
        ("Delete", device_requests.name, {"row_claim": 7}),
        ("Update", claim_history.name, {"row_claim": 7, "ended": NOW, "why": reason, "was_ready": was_ready}),
    ]


# The contract: which states there are, what they expect, where that leads, and how long they may last

ENDS = {"close": {"closed"}, "expire": {"closed"}}
IMAGING_RESULTS = {"ready", "finding_device", "failed_bad_image", "failed_bad_device"}

EXPECTED: dict[str, dict[str, set[str]]] = {
    "new": {"find_device": {"finding_device"}, **ENDS},
    "finding_device": {
        "device_found": {"contact_lifeguard"},
        "do_not_wait": {"closed", "failed_device_not_found", "failed_bad_device"},
        "timeout": {"finding_device", "failed_device_not_found", "failed_device_busy", "failed_bad_device"},
        **ENDS,
    },
    "contact_lifeguard": {"timeout": {"contacting_lifeguard"}, **ENDS},
    "contacting_lifeguard": {
        "lifeguard_contacted": {"pending"},
        "lifeguard_finished": IMAGING_RESULTS,
        "device_left": {"finding_device", "failed_bad_device"},
        "timeout": {"contacting_lifeguard", "failed_device_not_found"},
        **ENDS,
    },
    "pending": {
        "lifeguard_finished": IMAGING_RESULTS,
        "timeout": {"pending", "finding_device", "failed_bad_device"},
        **ENDS,
    },
    "ready": {"timeout": {"ready", "closed"}, **ENDS},
    "failed_device_not_found": {},
    "failed_bad_image": {},
    "failed_bad_device": {},
    "failed_device_busy": {},
    "closed": {},
}
OPEN = sorted(state for state, events in EXPECTED.items() if events)
END = sorted(state for state, events in EXPECTED.items() if not events)
EVENTS = sorted({event for events in EXPECTED.values() for event in events})

LIMITS = {"finding_device": 10, "contact_lifeguard": 0, "contacting_lifeguard": 30, "pending": 60}
TRIES = {"finding_device": 60, "contacting_lifeguard": 5, "pending": 20}


def test_it_has_the_states_of_the_contract_and_no_others():
    assert set(MACHINE.states) == set(EXPECTED)


def test_its_declarations_are_sound():
    assert MACHINE.check() == []


@pytest.mark.parametrize("state", EXPECTED)
def test_it_lasts_and_tries_as_long_as_the_contract_says(state: str):
    assert MACHINE.timeout_of(state) == LIMITS.get(state)
    assert MACHINE.tries_of(state) == TRIES.get(state)
    assert MACHINE.state(state).end is (state in END)


@pytest.mark.parametrize("event", [*EVENTS, "lifeguard_exploded"])
@pytest.mark.parametrize("state", EXPECTED)
def test_it_expects_exactly_these_events_in_each_state(state: str, event: str):
    """All pairs: an expected event leads where the contract says, any other is ignored."""
    situation = {**CLAIMED} if state in ("contact_lifeguard", "contacting_lifeguard", "pending", "ready") else {}
    args = {**FOUND, "imaging_result": "complete", "reason": "because"}
    decision = MACHINE.decide(context(state, event, args, **situation))
    if event not in EXPECTED[state]:
        assert decision is None
        assert not MACHINE.expects(state, event)
    else:
        assert decision is not None
        assert decision.path[0] in EXPECTED[state][event]
        assert {target for source, name, target in MACHINE.edges() if (source, name) == (state, event)} == (
            EXPECTED[state][event]
        )


# The end of a request


@pytest.mark.parametrize("event, reason", [("close", "returned"), ("expire", "expired")])
@pytest.mark.parametrize("state", OPEN)
def test_it_closes_from_every_open_state_and_gives_its_device_back(state: str, event: str, reason: str):
    decision = decide(state, event, **CLAIMED)
    assert decision.path == ("closed",)
    assert decision.timeout is None
    assert decision.columns["reason"] == reason
    assert decision.detail == reason
    assert_gives_up_device(decision, reason)
    assert decision.effects == ()


@pytest.mark.parametrize("event", ["close", "expire"])
@pytest.mark.parametrize("state", OPEN)
def test_it_closes_without_a_device_too(state: str, event: str):
    decision = decide(state, event)
    assert decision.path == ("closed",)
    assert decision.writes == ()
    assert decision.effects == ()


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("state", END)
def test_nothing_leads_out_of_an_end_state(state: str, event: str):
    assert MACHINE.decide(context(state, event, FOUND, **CLAIMED)) is None


def test_a_state_that_nobody_knows_counts_as_closed():
    assert MACHINE.decide(context("from_the_future", "close")) is None
    assert MACHINE.state("from_the_future").end


def test_it_tells_lifeguard_when_a_device_is_left_in_maintenance_mode():
    decision = decide("ready", "close", **{**CLAIMED, "device_state": "maintenance_mode"})
    assert decision.effects == (TellRelease(3, "panda-0001", "server-2.example.com", 7),)


def test_it_has_a_returned_device_proven_when_the_pool_wants_that():
    decision = decide("ready", "close", reads=FakeReads(verify_on_return=True), **CLAIMED)
    assert decision.effects == (TellRelease(3, "panda-0001", "server-2.example.com", 7),)
    assert written(decision)[0][2]["verify"] == 1


def test_a_freed_device_gets_a_new_place_in_the_draw():
    shuffles = set()
    for seed in range(10):
        drawn = Context(request("ready", **CLAIMED), "close", now=NOW, rng=random.Random(seed), reads=READS)
        decision = MACHINE.decide(drawn)
        assert decision is not None
        shuffles.add(written(decision)[0][2]["new_shuffle"])
    assert len(shuffles) == 10
    assert all(0 <= shuffle < 2**31 for shuffle in shuffles)


# new


def test_a_new_request_looks_for_a_device():
    decision = decide("new", "find_device")
    assert decision.path == ("finding_device",)
    assert decision.timeout == 10


def test_a_request_from_an_older_version_gets_its_criteria_on_entry():
    assert decide("new", "find_device", criteria="abc").columns == {}
    criteria = decide("new", "find_device", criteria=None).columns["criteria"]
    assert len(criteria) == 40


# finding_device


def test_it_claims_the_device_that_was_found_in_its_own_transition():
    decision = decide(
        "finding_device", "device_found", FOUND, counters={"finding_device": 5, "bad_image": 1}, reason="waits"
    )
    assert decision.path == ("contact_lifeguard",)
    assert decision.timeout == 0
    assert decision.counters == {"bad_image": 1}
    assert decision.columns["reason"] is None
    assert decision.effects == ()
    history, device, claim = written(decision)
    assert history == ("Insert", claim_history.name, {"request_id": 1, "device_id": 3, "claimed_at": NOW})
    assert device == ("Update", devices.name, {"row_id": 3, "row_version": 41, "new_claim": 99})
    assert claim == ("Insert", device_requests.name, {"id": 99, "request_id": 1, "device_id": 3})


@pytest.mark.parametrize(
    "wait, times, last",
    [(600, 60, 10.0), (0, 1, 10.0), (5, 1, 10.0), (10, 1, 10.0), (25, 3, 5.0), (3600, 360, 10.0)],
)
def test_a_request_for_any_device_waits_as_long_as_it_said(wait: int, times: int, last: float):
    """The Nth time limit fails; the last one is shortened so that the whole is what was asked for."""
    for failures in range(times - 1):
        decision = decide("finding_device", TIMEOUT, wait=wait, counters={"finding_device": failures})
        assert decision.path == ("finding_device",)
        assert decision.counters == {"finding_device": failures + 1}
        assert decision.timeout == (last if failures == times - 2 else 10.0)
        assert decision.effects == ()
    decision = decide("finding_device", TIMEOUT, wait=wait, counters={"finding_device": times - 1})
    assert decision.path == ("failed_device_not_found",)
    assert decision.timeout is None
    assert decision.columns["reason"] == f"no matching device became free within {wait} s"
    assert decision.effects == ()


@pytest.mark.parametrize("wait, times", [(0, 2), (5, 1), (30, 3), (600, 60), (3600, 360)])
def test_a_request_for_a_named_device_waits_as_long_as_it_said_and_is_busy_then(wait: int, times: int):
    named: dict[str, Any] = {"requested_device": "panda-0001", "wait": wait}
    for failures in range(times - 1):
        decision = decide("finding_device", TIMEOUT, counters={"finding_device": failures}, **named)
        assert decision.path == ("finding_device",)
    decision = decide("finding_device", TIMEOUT, counters={"finding_device": times - 1}, **named)
    assert decision.path == ("failed_device_busy",)
    assert decision.columns["reason"] == "device panda-0001 is taken"


def test_a_first_time_limit_is_no_longer_than_the_wait():
    assert decide("new", "find_device", wait=5).timeout == 5
    assert decide("new", "find_device", wait=600).timeout == 10


def test_simulated_time_shortens_the_wait_as_much_as_the_limits():
    fast = request_machine(Tuning(speed=20))
    assert decide("new", "find_device", machine=fast, wait=600).timeout == 0.5
    for failures, state in ((58, "finding_device"), (59, "failed_device_not_found")):
        decision = decide("finding_device", TIMEOUT, machine=fast, wait=600, counters={"finding_device": failures})
        assert decision.target == state
    for failures, state in ((4, "finding_device"), (5, "failed_device_not_found")):
        decision = decide("finding_device", TIMEOUT, machine=fast, wait=60, counters={"finding_device": failures})
        assert decision.target == state


@pytest.mark.parametrize("failures", [0, 1])
def test_a_request_for_a_failed_device_fails_at_once(failures: int):
    """Whether it looks for the first time or the last."""
    failed = FakeReads({"panda-0001": "failed_pxe_booting"})
    decision = decide(
        "finding_device",
        TIMEOUT,
        reads=failed,
        counters={"finding_device": failures},
        requested_device="panda-0001",
        wait=15,
    )
    assert decision.target == "failed_bad_device"
    assert decision.timeout is None
    assert decision.columns["reason"] == "device panda-0001 has failed"
    assert decision.effects == ()


def test_a_request_for_a_device_that_was_removed_fails():
    gone = FakeReads({})
    decision = decide("finding_device", TIMEOUT, reads=gone, counters={"finding_device": 1}, **NAMED)
    assert decision.path == ("failed_device_not_found",)
    assert decision.columns["reason"] == "device panda-0001 is gone"


def test_a_request_for_any_device_does_not_mind_failed_ones():
    failed = FakeReads({"any": "failed_pxe_booting"})
    assert decide("finding_device", TIMEOUT, reads=failed).path == ("finding_device",)


def test_a_named_request_that_may_not_queue_is_closed():
    decision = decide("finding_device", "do_not_wait", {"reason": "1 taken (by x)"}, **NAMED)
    assert decision.path == ("closed",)
    assert decision.columns["reason"] == "1 taken (by x)"
    assert decision.effects == ()
    assert decide("finding_device", "do_not_wait", **NAMED).columns["reason"] == "device panda-0001 is taken"


def test_a_named_request_that_may_not_queue_fails_when_its_device_has():
    failed = FakeReads({"panda-0001": "failed_self_test"})
    decision = decide("finding_device", "do_not_wait", reads=failed, **NAMED)
    assert decision.path == ("failed_bad_device",)


def test_a_request_for_any_device_that_may_not_queue_fails():
    decision = decide("finding_device", "do_not_wait", {"reason": "3 taken"}, wait=0)
    assert decision.path == ("failed_device_not_found",)
    assert decision.columns["reason"] == "3 taken"
    assert decide("finding_device", "do_not_wait").columns["reason"] == "no matching device is free"


# contact_lifeguard and contacting_lifeguard

ASK_IMAGE = AskLifeguard(
    device_id=3,
    device="panda-0001",
    device_server="server-2.example.com",
    claim_id=7,
    event="please_image",
    args={"image": "b2g", "boot_config": '{"b2gbase": "http://builds.example.com/1/"}'},
)


def test_it_asks_the_devices_own_server_for_the_image():
    decision = decide("contact_lifeguard", TIMEOUT, **CLAIMED)
    assert decision.path == ("contacting_lifeguard",)
    assert decision.timeout == 30
    assert decision.effects == (ASK_IMAGE,)
    assert_keeps_device(decision)


def test_it_sends_an_empty_boot_config_as_an_object():
    decision = decide("contact_lifeguard", TIMEOUT, boot_config=None, **CLAIMED)
    assert decision.effects[0].args == {"image": "b2g", "boot_config": "{}"}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "can_reuse, equal, event",
    [
        (True, True, "please_power_cycle"),
        (True, False, "please_image"),
        (False, True, "please_image"),
        (False, False, "please_image"),
    ],
)
def test_it_only_power_cycles_a_device_that_holds_a_reusable_image(can_reuse: bool, equal: bool, event: str):
    decision = decide(
        "contact_lifeguard", TIMEOUT, reads=FakeReads(equal_image=equal), image_can_reuse=can_reuse, **CLAIMED
    )
    (effect,) = decision.effects
    assert isinstance(effect, AskLifeguard)
    assert effect.event == event
    if event == "please_power_cycle":
        assert effect.args == {}


@pytest.mark.parametrize("state, event", [("contact_lifeguard", TIMEOUT), ("contacting_lifeguard", TIMEOUT)])
def test_it_looks_for_another_device_when_this_one_left_ready(state: str, event: str):
    decision = decide(state, event, **{**CLAIMED, "device_state": "failed_pxe_booting"})
    assert decision.path == ("contacting_lifeguard", "finding_device")
    assert decision.timeout == 10
    assert decision.effects == ()
    assert_gives_up_device(decision, "it went to failed_pxe_booting before it could be prepared")


def test_it_asks_again_when_the_device_works_for_it_already():
    """The answer got lost: LifeGuard takes the same "please" twice."""
    decision = decide("contacting_lifeguard", TIMEOUT, **BEING_PREPARED)
    assert decision.path == ("contacting_lifeguard",)
    assert decision.effects == (ASK_IMAGE,)


def test_it_looks_for_another_device_when_the_claim_is_gone():
    decision = decide("contact_lifeguard", TIMEOUT)
    assert decision.target == "finding_device"
    assert decision.writes == ()


def test_it_asks_five_times():
    for failures in range(4):
        decision = decide(
            "contacting_lifeguard", TIMEOUT, counters={"contacting_lifeguard": failures, "bad_image": 1}, **CLAIMED
        )
        assert decision.path == ("contacting_lifeguard",)
        assert decision.timeout == 30
        assert decision.counters == {"contacting_lifeguard": failures + 1, "bad_image": 1}
        assert decision.effects == (ASK_IMAGE,)
    decision = decide("contacting_lifeguard", TIMEOUT, counters={"contacting_lifeguard": 4}, **CLAIMED)
    assert decision.path == ("failed_device_not_found",)
    reason = "imaging server server-2.example.com could not be reached"
    assert_gives_up_device(decision, reason)
    assert decision.columns["reason"] == reason
    assert decision.effects == ()


def test_it_waits_for_the_result_when_lifeguard_has_taken_over():
    decision = decide("contacting_lifeguard", "lifeguard_contacted", counters={"contacting_lifeguard": 3}, **CLAIMED)
    assert decision.path == ("pending",)
    assert decision.timeout == 60
    assert decision.counters == {}
    assert decision.effects == ()
    assert_keeps_device(decision)


def test_it_looks_for_another_device_when_lifeguard_refuses():
    decision = decide("contacting_lifeguard", "device_left", {"reason": "it is in state locked_out"}, **CLAIMED)
    assert decision.path == ("finding_device",)
    assert_gives_up_device(decision, "it is in state locked_out")
    assert_gives_up_device(decide("contacting_lifeguard", "device_left", **CLAIMED), "LifeGuard refused")


def test_it_finds_the_result_at_once_when_the_device_was_faster_than_the_answer():
    decision = decide("contacting_lifeguard", "lifeguard_contacted", **{**BEING_PREPARED, "imaging_result": "complete"})
    assert decision.path == ("pending", "ready")
    assert decision.timeout is None


# Results: told, or found at a time limit


@pytest.mark.parametrize("state", ["contacting_lifeguard", "pending"])
def test_it_is_ready_when_the_image_is_complete(state: str):
    decision = decide(
        state,
        "lifeguard_finished",
        {"imaging_result": "complete", "claim_id": 7},
        counters={"pending": 4, "bad_image": 1},
        **BEING_PREPARED,
    )
    assert decision.path == ("ready",)
    assert decision.timeout is None
    assert decision.counters == {}
    assert decision.effects == ()
    assert_keeps_device(decision)


@pytest.mark.parametrize("state", ["contacting_lifeguard", "pending"])
def test_it_tries_another_device_when_the_image_is_bad_and_fails_the_second_time(state: str):
    bad = {"imaging_result": "failed-bad-image", "claim_id": 7}
    first = decide(state, "lifeguard_finished", bad, **BEING_PREPARED)
    assert first.path == ("finding_device",)
    assert first.counters == {"bad_image": 1}
    assert first.timeout == 10
    assert_gives_up_device(first, "image b2g could not be installed on it")
    second = decide(state, "lifeguard_finished", bad, counters=first.counters, **BEING_PREPARED)
    assert second.path == ("failed_bad_image",)
    assert_gives_up_device(second, "image b2g could not be installed")
    assert second.effects == ()


def test_a_bad_image_is_remembered_through_the_next_device():
    """Found, contacted and prepared again, the count stays: nothing but a ready device clears it."""
    counters: Mapping[str, int] = {"bad_image": 1}
    counters = decide("finding_device", "device_found", FOUND, counters=counters).counters
    counters = decide("contact_lifeguard", TIMEOUT, counters=counters, **CLAIMED).counters
    counters = decide("contacting_lifeguard", "lifeguard_contacted", counters=counters, **CLAIMED).counters
    counters = decide("pending", TIMEOUT, counters=counters, **BEING_PREPARED).counters
    assert counters["bad_image"] == 1


@pytest.mark.parametrize("state", ["contacting_lifeguard", "pending"])
def test_a_named_device_gets_the_same_image_twice(state: str):
    bad = {"imaging_result": "failed-bad-image", "claim_id": 7}
    assert decide(state, "lifeguard_finished", bad, **NAMED, **BEING_PREPARED).path == ("finding_device",)
    decision = decide(state, "lifeguard_finished", bad, counters={"bad_image": 1}, **NAMED, **BEING_PREPARED)
    assert decision.path == ("failed_bad_image",)


@pytest.mark.parametrize("state", ["contacting_lifeguard", "pending"])
def test_it_tries_another_device_when_this_one_is_bad(state: str):
    bad = {"imaging_result": "failed-bad-device", "claim_id": 7}
    decision = decide(state, "lifeguard_finished", bad, **BEING_PREPARED)
    assert decision.path == ("finding_device",)
    assert_gives_up_device(decision, "it failed while it was prepared")


@pytest.mark.parametrize("state", ["contacting_lifeguard", "pending"])
def test_it_fails_when_the_named_device_is_bad(state: str):
    bad = {"imaging_result": "failed-bad-device", "claim_id": 7}
    decision = decide(state, "lifeguard_finished", bad, **NAMED, **BEING_PREPARED)
    assert decision.path == ("failed_bad_device",)
    assert_gives_up_device(decision, "device panda-0001 failed while it was prepared")
    assert decision.effects == ()


@pytest.mark.parametrize("state", ["contacting_lifeguard", "pending"])
@pytest.mark.parametrize("result", ["complete", "failed-bad-image", "failed-bad-device"])
def test_it_ignores_the_result_of_an_earlier_claim(state: str, result: str):
    decision = decide(state, "lifeguard_finished", {"imaging_result": result, "claim_id": 6}, **BEING_PREPARED)
    assert decision.path == ()
    assert decision.writes == ()
    assert decision.counters == {}


@pytest.mark.parametrize("args", [{}, {"imaging_result": None}, {"imaging_result": "wonderful", "claim_id": 7}])
def test_it_ignores_a_result_that_says_nothing(args: Mapping[str, Any]):
    decision = decide("pending", "lifeguard_finished", args, **BEING_PREPARED)
    assert decision.path == ()
    assert decision.writes == ()


def test_it_takes_a_result_without_a_claim_as_old_servers_send_it():
    assert decide("pending", "lifeguard_finished", {"imaging_result": "complete"}, **BEING_PREPARED).path == ("ready",)


POLLED = [
    ("complete", {}, ("pending", "ready")),
    ("failed-bad-image", {}, ("pending", "finding_device")),
    ("failed-bad-device", {}, ("pending", "finding_device")),
    ("failed-bad-device", NAMED, ("pending", "failed_bad_device")),
]


@pytest.mark.parametrize("result, columns, path", POLLED)
@pytest.mark.parametrize("operation_claim_id", [7, None])
def test_it_polls_the_stored_result_at_entry_and_at_each_time_limit(
    result: str, columns: dict[str, Any], path: tuple[str, ...], operation_claim_id: int | None
):
    """Even when the device has begun something else since, as one does that heals itself by a self-test."""
    row = {
        **columns,
        **BEING_PREPARED,
        "imaging_result": result,
        "device_operation_claim_id": operation_claim_id,
    }
    assert decide("pending", TIMEOUT, **row).path == path
    assert decide("contacting_lifeguard", "lifeguard_contacted", **row).path == path


def test_it_polls_the_stored_result_also_when_its_tries_are_used_up():
    row = {**BEING_PREPARED, "imaging_result": "complete"}
    assert decide("pending", TIMEOUT, counters={"pending": 19}, **row).path == ("pending", "ready")


def test_a_request_for_any_device_gives_a_slow_one_up_after_twenty_time_limits():
    for failures in range(19):
        decision = decide("pending", TIMEOUT, counters={"pending": failures}, **BEING_PREPARED)
        assert decision.path == ("pending",)
        assert decision.timeout == 60
        assert decision.counters == {"pending": failures + 1}
        assert_keeps_device(decision)
    decision = decide("pending", TIMEOUT, counters={"pending": 19}, **BEING_PREPARED)
    assert decision.path == ("finding_device",)
    assert decision.counters == {}
    assert_gives_up_device(decision, "it took too long to prepare")


@pytest.mark.parametrize("failures", [19, 20, 500])
def test_a_request_for_a_named_device_waits_until_it_expires(failures: int):
    decision = decide("pending", TIMEOUT, counters={"pending": failures}, **NAMED, **BEING_PREPARED)
    assert decision.path == ("pending",)
    assert decision.timeout == 60
    assert_keeps_device(decision)


def test_a_pending_request_without_a_claim_looks_for_a_device():
    assert decide("pending", TIMEOUT).path == ("finding_device",)


# ready


def test_a_ready_request_has_no_time_limit():
    assert decide("pending", "lifeguard_finished", {"imaging_result": "complete"}, **BEING_PREPARED).timeout is None
    assert MACHINE.decide(context("ready", "lifeguard_finished", {"imaging_result": "complete"}, **CLAIMED)) is None


# Jobs on hosted devices

JOB: dict[str, Any] = {**CLAIMED, "image": "taskcluster-job", "device_operation_claim_id": 7}
RUNS: dict[str, Any] = {**JOB, "device_state": "job_running"}


def test_a_request_for_a_job_looks_whether_it_still_runs():
    entered = decide("pending", "lifeguard_finished", {"imaging_result": "complete"}, **RUNS)
    assert (entered.path, entered.timeout) == (("ready",), 60)
    for state in ("job_running", "job_stopping", "job_cleanup", "job_done"):
        again = decide("ready", TIMEOUT, **{**JOB, "device_state": state})
        assert (again.path, again.timeout, again.logs) == (("ready",), 60, ())


@pytest.mark.parametrize(
    "columns",
    [{"device_state": "locked_out"}, {"device_state": "ready"}, {**RUNS, "device_operation_claim_id": None}],
)
def test_a_request_whose_job_was_broken_off_is_closed_though_nobody_has_told_it(columns: Mapping[str, Any]):
    decision = decide("ready", TIMEOUT, **{**JOB, **columns})
    assert decision.path == ("closed",)
    assert decision.columns["reason"] == "its job was broken off"
    assert len(decision.writes) == 1


@pytest.mark.parametrize("state", ["contact_lifeguard", "contacting_lifeguard", "pending", "ready"])
def test_a_request_is_closed_when_its_job_has_ended(state: str):
    decision = decide(state, "job_ended", {"claim_id": 7, "reason": "job 12 has ended: completed"}, **RUNS)
    assert decision.path == ("closed",)
    assert decision.columns["reason"] == "job 12 has ended: completed"
    assert decision.effects == (TellRelease(3, "panda-0001", "server-2.example.com", 7),)


@pytest.mark.parametrize(
    ("state", "event", "args", "counters"),
    [
        ("pending", "lifeguard_finished", {"imaging_result": "failed-bad-device"}, {}),
        ("pending", "lifeguard_finished", {"imaging_result": "failed-bad-image"}, {}),
        ("pending", TIMEOUT, {}, {"pending": 19}),
        ("contacting_lifeguard", "device_left", {"reason": "it is in state failed_phone"}, {}),
    ],
)
def test_a_job_is_ordered_once_for_a_request(
    state: str, event: str, args: Mapping[str, Any], counters: Mapping[str, int]
):
    """It is known by the request's id, and a second one would be taken for the first, which has ended."""
    again = decide(state, event, args, counters=counters, **JOB)
    assert again.path == ("finding_device",)
    ordered = decide(state, event, args, counters=counters, reads=FakeReads(job=True), **JOB)
    assert ordered.path == ("failed_bad_device",)
    board = decide(state, event, args, counters=counters, reads=FakeReads(job=True), **CLAIMED)
    assert board.path == ("finding_device",)


@pytest.mark.parametrize("args", [{}, {"claim_id": 6}, {"claim_id": None}])
@pytest.mark.parametrize("columns", [RUNS, {}])
def test_a_job_of_another_claim_ends_nothing(args: Mapping[str, Any], columns: Mapping[str, Any]):
    state = "ready" if columns else "finding_device"
    assert decide(state, "job_ended", {**args, "reason": "it has ended"}, **columns).path == ()


def test_a_phone_that_somebody_had_is_proven_when_it_is_returned():
    decision = decide("ready", "close", **{**CLAIMED, "image": "as-is"})
    assert written(decision)[0][2]["verify"] == 1
    assert decision.effects == (TellRelease(3, "panda-0001", "server-2.example.com", 7),)


# Properties of the effects


@pytest.mark.parametrize(
    "effect, channel, every, bound",
    [(AskLifeguard, "lifeguard", 2.0, True), (TellRelease, "release", None, False)],
)
def test_its_effects_have_slots_and_repetitions_of_their_own(
    effect: type[Effect], channel: str, every: float | None, bound: bool
):
    assert (effect.channel, effect.every, effect.bound) == (channel, every, bound)


def test_a_request_is_made_of_its_row():
    made = request("pending", **CLAIMED)
    assert made.expires == NOW + timedelta(minutes=30)
    assert made.is_open
    assert not request("closed").is_open
    assert not any(request(state).is_open for state in END)


# Another server acts for the request from now on


@pytest.mark.parametrize("state", sorted(set(OPEN) - {"contacting_lifeguard", "pending"}))
def test_it_goes_on_at_its_deadline_under_another_server(state: str):
    assert MACHINE.stays(state, "taken_over")
    decision = decide(state, "taken_over", counters={"finding_device": 3}, **CLAIMED)
    assert (decision.path, decision.timeout, decision.effects) == ((), None, ())
    assert (decision.columns, decision.counters) == ({}, {"finding_device": 3})
    assert_keeps_device(decision)


def test_another_server_asks_lifeguard_again():
    """Whether the server before has asked, nobody knows; a message that comes twice counts once."""
    assert not MACHINE.stays("contacting_lifeguard", "taken_over")
    decision = decide("contacting_lifeguard", "taken_over", counters={"contacting_lifeguard": 4}, **CLAIMED)
    assert decision.path == ("contacting_lifeguard",)
    assert decision.timeout == 30
    assert decision.counters == {"contacting_lifeguard": 4}
    (effect,) = decision.effects
    assert isinstance(effect, AskLifeguard)
    assert (effect.device_server, effect.claim_id) == ("server-2.example.com", 7)
    assert_keeps_device(decision)


def test_another_server_waits_anew_for_the_result():
    assert not MACHINE.stays("pending", "taken_over")
    decision = decide("pending", "taken_over", counters={"pending": 19}, **BEING_PREPARED)
    assert (decision.path, decision.timeout, decision.counters) == (("pending",), 60, {"pending": 19})
    assert_keeps_device(decision)


@pytest.mark.parametrize("result, columns, path", POLLED)
def test_another_server_finds_a_result_that_came_meanwhile(result: str, columns: dict[str, Any], path: tuple[str, ...]):
    assert decide("pending", "taken_over", **{**BEING_PREPARED, "imaging_result": result, **columns}).path == path


@pytest.mark.parametrize("state", END)
def test_a_request_that_has_ended_is_nobodys_to_take_over(state: str):
    assert MACHINE.decide(context(state, "taken_over", **CLAIMED)) is None
    assert not MACHINE.stays(state, "taken_over")
