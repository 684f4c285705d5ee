# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The device machine with hosted devices, against its contract: each state, its events, and what becomes of a job."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from mozpool.db.hosted_jobs import Job, Wish
from mozpool.lifeguard.devicemachine import PERSON_NEEDED, category, device_machine
from mozpool.lifeguard.effects import (
    CheckReady,
    EndRequest,
    StartJob,
    StopJob,
    StopLeftJob,
    SyncBoot,
    TellRequest,
    WatchJob,
    WatchPhone,
)
from mozpool.statemachine import TIMEOUT, Context, Decision, Machine
from tests.factories import NOW, device

MACHINE = device_machine()
PHONE_TYPE, AS_IS, JOB, B2G, SELF_TEST = 5, 40, 41, 10, 20


def job(**columns: Any) -> Job:
    """What is known of the job of claim 7."""
    values: dict[str, Any] = {
        "id": 1,
        "claim_id": 7,
        "request_id": 70,
        "lead_request_id": 70,
        "device_id": 1,
        "device": "PHONE1",
        "project": "a55-perf",
        "number": 12,
        "job_id": "abc",
        "url": "https://cloud.example.com/?jobId=abc",
        "task_id": None,
        "task_url": None,
        "status": "completed",
        "ordered": NOW,
        "running": NOW,
        "task_seen": None,
        "ended": NOW,
        "reason": None,
    }
    return Job(**{**values, **columns})


@dataclass(frozen=True)
class FakeReads:
    """Images that the phones' type has, and a self-test image that boots on everything, phones included."""

    known: Job | None = field(default_factory=job)
    default_power: str = "command"

    def image_id(self, name: str) -> int | None:
        return {"as-is": AS_IS, "taskcluster-job": JOB, "b2g": B2G, "self-test": SELF_TEST}.get(name)

    def pxe_config_for(self, hardware_type_id: int | None, image_id: int | None) -> str | None:
        return "pxe" if image_id in (B2G, SELF_TEST) else None

    def is_hosted_on(self, hardware_type_id: int | None, image_id: int | None) -> bool:
        return hardware_type_id == PHONE_TYPE and image_id in (AS_IS, JOB)

    def job(self, claim_id: int) -> Job | None:
        return self.known if claim_id == 7 else None


HELD: dict[str, Any] = {"claim_id": 7, "request_id": 70}
WORKS: dict[str, Any] = {**HELD, "operation_claim_id": 7}
HAS_JOB: dict[str, Any] = {**WORKS, "next_image_id": JOB, "next_boot_config": '{"project": "a55-perf"}'}
GIVEN_BACK: dict[str, Any] = {**HAS_JOB, "claim_id": None, "request_id": None}
LENT: dict[str, Any] = WORKS
NOBODYS: dict[str, Any] = {}


def context(
    state: str,
    event: str,
    args: Mapping[str, Any] | None = None,
    *,
    reads: FakeReads | None = None,
    counters: Mapping[str, int] | None = None,
    **columns: Any,
) -> Context[Any]:
    values = {
        "name": "PHONE1",
        "relay_info": None,
        "mac_address": "000000000000",
        "hardware_type_id": PHONE_TYPE,
        "backends": {"launcher": "cloud"},
        **columns,
    }
    row = device(state, state_counters=counters or {}, **values)
    return Context(row, event, now=NOW, rng=random.Random(1), args=args, reads=reads or FakeReads())


def decide(state: str, event: str, args: Mapping[str, Any] | None = None, **situation: Any) -> Decision:
    decision = MACHINE.decide(context(state, event, args, **situation))
    assert decision is not None, f"{state} does not expect {event}"
    return decision


def force(state: str, to: str, **situation: Any) -> Decision:
    return MACHINE.force(context(state, "forced", **situation), to)


def hosted(decision: Decision) -> list[Any]:
    """The effects, but for boot files, which hosted devices have none of."""
    return [effect for effect in decision.effects if not isinstance(effect, SyncBoot)]


def told(decision: Decision) -> list[Any]:
    return [effect for effect in decision.effects if isinstance(effect, TellRequest | EndRequest)]


# Steps: (state, event, columns) → (path, effects)

WATCHED = WatchJob(until_runs=True)
RUNS = WatchJob(until_runs=False)
STEPS: list[tuple[str, str, dict[str, Any], tuple[str, ...], list[Any]]] = [
    ("new", TIMEOUT, NOBODYS, ("start_self_test", "job_stopping"), [StopJob()]),
    ("start_self_test", TIMEOUT, NOBODYS, ("job_stopping",), [StopJob()]),
    ("ready", "failed", NOBODYS, ("start_self_test", "job_stopping"), [StopJob()]),
    ("ready", TIMEOUT, NOBODYS, ("ready",), [CheckReady()]),
    ("ready", TIMEOUT, HELD, ("ready",), []),
    ("ready", TIMEOUT, WORKS, ("ready",), []),
    ("ready", TIMEOUT, {"operation_claim_id": 7}, ("start_self_test", "job_stopping"), [StopJob()]),
    ("phone_verifying", "phone_ok", NOBODYS, ("operation_complete", "ready"), [CheckReady()]),
    ("phone_verifying", "phone_ok", LENT, ("operation_complete", "ready"), [TellRequest(70, 7, "complete")]),
    (
        "phone_verifying",
        "phone_faulty",
        LENT,
        ("failed_phone",),
        [TellRequest(70, 7, "failed-bad-device"), WatchPhone()],
    ),
    ("phone_verifying", TIMEOUT, LENT, ("job_stopping",), [StopJob()]),
    ("job_starting", "job_ordered", HAS_JOB, ("job_waiting",), [WATCHED]),
    ("job_starting", "job_start_failed", HAS_JOB, ("job_starting",), [StartJob()]),
    ("job_starting", TIMEOUT, HAS_JOB, ("job_starting",), [StartJob()]),
    ("job_starting", TIMEOUT, GIVEN_BACK, ("job_starting", "job_stopping"), [StopJob()]),
    ("job_starting", "group_incomplete", HAS_JOB, ("job_stopping",), [StopJob()]),
    ("job_starting", "released", GIVEN_BACK, ("job_stopping",), [StopJob()]),
    ("job_starting", "released", HAS_JOB, (), []),
    ("job_waiting", "job_running", HAS_JOB, ("job_running",), [TellRequest(70, 7, "complete"), RUNS]),
    ("job_waiting", "job_ended", HAS_JOB, ("job_cleanup",), [WatchPhone()]),
    ("job_waiting", "job_start_failed", HAS_JOB, ("job_starting",), [StartJob()]),
    ("job_waiting", TIMEOUT, HAS_JOB, ("job_waiting",), [WATCHED]),
    ("job_waiting", TIMEOUT, GIVEN_BACK, ("job_waiting", "job_stopping"), [StopJob()]),
    ("job_waiting", "released", GIVEN_BACK, ("job_stopping",), [StopJob()]),
    ("job_waiting", "released", HAS_JOB, (), []),
    ("job_running", "job_ended", HAS_JOB, ("job_cleanup",), [WatchPhone()]),
    ("job_running", TIMEOUT, {**HAS_JOB, "imaging_result": "complete"}, ("job_running",), [RUNS]),
    ("job_running", TIMEOUT, HAS_JOB, ("job_running",), [TellRequest(70, 7, "complete"), RUNS]),
    ("job_running", TIMEOUT, GIVEN_BACK, ("job_running", "job_stopping"), [StopJob()]),
    ("job_running", "released", GIVEN_BACK, ("job_stopping",), [StopJob()]),
    ("job_running", "released", HAS_JOB, (), []),
    ("job_stopping", "job_stopped", NOBODYS, ("phone_verifying",), [WatchPhone()]),
    ("job_stopping", "job_stopped", LENT, ("phone_verifying",), [WatchPhone()]),
    ("job_stopping", "job_stopped", GIVEN_BACK, ("job_cleanup",), [WatchPhone()]),
    ("job_stopping", "job_stopped", {**HAS_JOB, "imaging_result": "complete"}, ("job_cleanup",), [WatchPhone()]),
    ("job_stopping", "job_stopped", HAS_JOB, ("failed_job_starting",), [TellRequest(70, 7, "failed-bad-device")]),
    ("job_stopping", TIMEOUT, HAS_JOB, ("job_stopping",), [StopJob()]),
    ("job_cleanup", "phone_ok", HAS_JOB, ("job_done",), [EndRequest(70, 7, "job 12 has ended: completed")]),
    ("job_cleanup", "phone_ok", GIVEN_BACK, ("job_done", "ready"), [CheckReady()]),
    ("job_cleanup", TIMEOUT, HAS_JOB, ("job_cleanup",), [WatchPhone()]),
    ("job_done", TIMEOUT, HAS_JOB, ("job_done",), [EndRequest(70, 7, "job 12 has ended: completed")]),
    ("job_done", TIMEOUT, GIVEN_BACK, ("job_done", "ready"), [CheckReady()]),
    ("job_done", "released", GIVEN_BACK, ("job_done", "ready"), [CheckReady()]),
    ("job_done", "released", HAS_JOB, (), []),
    ("failed_job_starting", TIMEOUT, NOBODYS, ("start_self_test", "job_stopping"), [StopJob()]),
    ("failed_job_stopping", TIMEOUT, NOBODYS, ("start_self_test", "job_stopping"), [StopJob()]),
    ("failed_job_cleanup", TIMEOUT, NOBODYS, ("start_self_test", "job_stopping"), [StopJob()]),
    ("failed_phone", TIMEOUT, HELD, ("failed_phone",), [WatchPhone()]),
    ("failed_phone", "phone_ok", NOBODYS, ("phone_verifying",), [WatchPhone()]),
]


@pytest.mark.parametrize(("state", "event", "columns", "path", "effects"), STEPS)
def test_an_event_leads_on(
    state: str, event: str, columns: dict[str, Any], path: tuple[str, ...], effects: list[Any]
) -> None:
    decision = decide(state, event, {"lead": 70, "reason": "because"}, **columns)
    assert decision.path == path
    assert hosted(decision) == effects
    if path and path[-1] == "ready":
        assert decision.counters == {}


def test_a_device_that_is_ready_again_has_nothing_of_its_job_left() -> None:
    decision = decide("job_done", "released", counters={"job_cleanup": 2}, **GIVEN_BACK)
    assert {name: decision.columns[name] for name in ("next_image_id", "next_boot_config", "operation_claim_id")} == {
        "next_image_id": None,
        "next_boot_config": None,
        "operation_claim_id": None,
    }
    assert decision.counters == {}


def test_a_device_that_nobody_waits_for_any_more_is_as_proven_as_one_that_nobody_had() -> None:
    assert decide("phone_verifying", "phone_ok", operation_claim_id=7).columns["operation_claim_id"] is None
    assert "operation_claim_id" not in decide("phone_verifying", "phone_ok", **LENT).columns


RETRIES = [
    ("phone_verifying", TIMEOUT, "phone_verifying", 60, "job_stopping", "failed_phone", LENT),
    ("job_starting", TIMEOUT, "job_starting", 2, "job_starting", "job_stopping", HAS_JOB),
    ("job_starting", "job_start_failed", "job_starting", 2, "job_starting", "job_stopping", HAS_JOB),
    ("job_waiting", "job_start_failed", "job_starting", 2, "job_starting", "job_stopping", HAS_JOB),
    ("job_waiting", TIMEOUT, "job_waiting", 7, "job_waiting", "job_stopping", HAS_JOB),
    ("job_running", TIMEOUT, "job_running", 180, "job_running", "job_stopping", HAS_JOB),
    ("job_stopping", TIMEOUT, "job_stopping", 20, "job_stopping", "failed_job_stopping", HAS_JOB),
    ("job_cleanup", TIMEOUT, "job_cleanup", 20, "job_cleanup", "failed_job_cleanup", HAS_JOB),
]


@pytest.mark.parametrize(("state", "event", "step", "tries", "again", "otherwise", "columns"), RETRIES)
def test_a_step_is_retried_so_often_and_no_more(
    state: str, event: str, step: str, tries: int, again: str, otherwise: str, columns: dict[str, Any]
) -> None:
    counters: Mapping[str, int] = {}
    for failures in range(1, tries + 1):
        decision = decide(state, event, counters=counters, **columns)
        counters = decision.counters
        assert (decision.path, counters) == ((again,), {step: failures})
    last = decide(state, event, counters=counters, **columns)
    assert last.path[0] == otherwise
    assert last.detail == f"{step} failed {tries + 1} times"


def test_failures_to_prove_a_phone_are_counted_over_the_stops_in_between() -> None:
    again = decide("phone_verifying", TIMEOUT, counters={"phone_verifying": 4}, **LENT)
    stopped = decide("job_stopping", "job_stopped", counters={**again.counters, "job_stopping": 1}, **LENT)
    assert (stopped.path, stopped.counters) == (("phone_verifying",), {"phone_verifying": 5})


def test_a_start_counts_its_failures_until_the_job_runs() -> None:
    ordered = decide("job_starting", "job_ordered", {"lead": 70}, counters={"job_starting": 2}, **HAS_JOB)
    assert ordered.counters == {"job_starting": 2}
    assert decide("job_waiting", "job_running", counters=ordered.counters, **HAS_JOB).counters == {}


def test_a_job_that_ran_and_could_not_be_cleaned_up_after_is_no_failure_of_its_request() -> None:
    for state, event in (("job_cleanup", "phone_faulty"), ("job_cleanup", TIMEOUT), ("job_stopping", TIMEOUT)):
        ran = {**HAS_JOB, "imaging_result": "complete"}
        decision = decide(state, event, counters={state: 20}, **ran)
        assert decision.target.startswith("failed_")
        assert told(decision) == [EndRequest(70, 7, "job 12 has ended: completed")]


# "please"


def test_a_job_is_ordered_for_the_request_that_names_its_project() -> None:
    args = {"image": "taskcluster-job", "boot_config": '{"project": "a55-perf"}', "claim_id": 7}
    decision = decide("ready", "please_image", args, counters={"x": 1}, **HELD)
    assert (decision.path, hosted(decision), decision.counters) == (("job_starting",), [StartJob()], {})
    assert decision.columns["next_image_id"] == JOB
    assert decision.columns["next_boot_config"] == '{"project": "a55-perf"}'
    assert decision.columns["operation_claim_id"] == 7
    assert len(decision.writes) == 1, "the row of the job"


@pytest.mark.parametrize(
    ("image", "boot_config", "columns"),
    [
        ("b2g", "{}", {}),
        ("self-test", "{}", {}),
        ("nonsense", "{}", {}),
        ("taskcluster-job", "{}", {}),
        ("taskcluster-job", '{"project": ""}', {}),
        ("taskcluster-job", '{"project": "p", "phones": 2}', {}),
        ("taskcluster-job", '{"project": "p"}', {"hardware_type_id": 1}),
        ("as-is", "{}", {"hardware_type_id": 1}),
        ("taskcluster-job", '{"project": "p"}', {"backends": {}}),
        ("as-is", "{}", {"backends": {}}),
    ],
)
def test_what_a_device_cannot_have_is_refused_as_a_bad_image(
    image: str, boot_config: str, columns: dict[str, Any]
) -> None:
    """The last two are ordinary boards whose hardware has a row without a PXE config."""
    args = {"image": image, "boot_config": boot_config, "claim_id": 7}
    decision = decide("ready", "please_image", args, **{**HELD, **columns})
    assert decision.path == ()
    assert told(decision) == [TellRequest(70, 7, "failed-bad-image")]
    assert "refused" in decision.logs[0]


def test_no_operator_starts_jobs() -> None:
    decision = decide("ready", "please_image", {"image": "taskcluster-job", "boot_config": '{"project": "p"}'})
    assert (decision.path, told(decision)) == ((), [])


@pytest.mark.parametrize("claim_id", [7, None])
def test_a_phone_is_lent_once_it_is_proven_to_be_free(claim_id: int | None) -> None:
    args = {"image": "as-is", "boot_config": "{}", "claim_id": claim_id}
    decision = decide("ready", "please_image", args, **(HELD if claim_id else {}))
    assert (decision.path, hosted(decision)) == (("phone_verifying",), [WatchPhone()])
    assert decision.columns["operation_claim_id"] == claim_id
    assert decision.columns["next_image_id"] is None


def test_a_power_cycle_and_a_self_test_prove_it() -> None:
    for state, event, path in (
        ("ready", "please_power_cycle", ("job_stopping",)),
        ("troubleshooting", "please_self_test", ("start_self_test", "job_stopping")),
        ("failed_phone", "please_self_test", ("start_self_test", "job_stopping")),
    ):
        decision = decide(state, event)
        assert (decision.path, hosted(decision)) == (path, [StopJob()])


def test_it_boots_no_live_image() -> None:
    decision = decide("ready", "please_start_maintenance", {"claim_id": 7}, **HELD)
    assert (decision.path, told(decision)) == ((), [TellRequest(70, 7, "failed-bad-image")])


# People


@pytest.mark.parametrize("state", ["job_starting", "job_waiting", "job_running", "job_stopping", "job_cleanup"])
@pytest.mark.parametrize("to", ["locked_out", "troubleshooting", "ready"])
def test_a_person_ends_a_job_and_its_request_hears_of_it(state: str, to: str) -> None:
    on_its_way = force(state, to, **HAS_JOB)
    assert on_its_way.path == (to,)
    assert StopLeftJob() in on_its_way.effects
    assert told(on_its_way) == [TellRequest(70, 7, "failed-bad-device")]
    reads = FakeReads(job(ended=None))
    running = force(state, to, reads=reads, **{**HAS_JOB, "imaging_result": "complete"})
    assert StopLeftJob() in running.effects
    assert told(running) == [EndRequest(70, 7, "job 12 was stopped")]
    for decision in (on_its_way, running):
        assert decision.columns["next_image_id"] is None
        assert decision.columns["operation_claim_id"] is None


@pytest.mark.parametrize("state", ["ready", "phone_verifying", "locked_out"])
def test_a_person_stops_no_job_where_none_is(state: str) -> None:
    assert StopLeftJob() not in force(state, "locked_out", **LENT).effects


@pytest.mark.parametrize(
    "to",
    [
        *("start_self_test", "start_maintenance", "start_pxe_boot", "pc_power_cycling", "pxe_power_cycling"),
        *("job_starting", "job_waiting", "job_running", "job_stopping"),
    ],
)
def test_wherever_a_person_puts_it_to_work_it_is_proven(to: str) -> None:
    decision = force("ready", to, **HAS_JOB)
    assert decision.target == "job_stopping"
    assert decision.columns.get("next_image_id") is None
    after = decide("job_stopping", "job_stopped", operation_claim_id=None, next_image_id=None)
    assert after.path == ("phone_verifying",)


def test_a_phone_that_does_not_come_online_is_locked_out_again() -> None:
    decision = decide("phone_verifying", "phone_faulty", going_offline=True)
    assert (decision.path, hosted(decision)) == (("failed_phone", "locked_out"), [])


# Another server


@pytest.mark.parametrize(
    ("state", "effects"),
    [
        ("phone_verifying", [WatchPhone()]),
        ("job_starting", [StartJob()]),
        ("job_waiting", [WATCHED]),
        ("job_running", [RUNS]),
        ("job_stopping", [StopJob()]),
        ("job_cleanup", [WatchPhone()]),
        ("job_done", [EndRequest(70, 7, "job 12 has ended: completed")]),
    ],
)
def test_another_server_begins_where_it_is(state: str, effects: list[Any]) -> None:
    decision = decide(state, "taken_over", **{**HAS_JOB, "imaging_result": "complete"})
    assert (decision.path, hosted(decision)) == ((state,), effects)


# For people


def test_a_running_job_is_use_and_what_leads_there_is_work_of_ours() -> None:
    assert category("job_running", True) == "in use"
    for state in ("phone_verifying", "job_starting", "job_waiting", "job_stopping", "job_cleanup", "job_done"):
        assert category(state, True) == category(state, False) == "processing"
    assert "failed_phone" in PERSON_NEEDED
    assert not {"failed_job_starting", "failed_job_stopping", "failed_job_cleanup"} & set(PERSON_NEEDED)


def test_a_job_says_how_it_stands_with_it() -> None:
    assert job().outcome == "job 12 has ended: completed"
    assert job(ended=None).outcome == "job 12 was stopped"
    assert job(number=None, status=None, reason="it was not started").outcome == "the job has ended: it was not started"
    assert job(number=None, status=None).outcome == "the job has ended: stopped"


@pytest.mark.parametrize(
    ("boot_config", "wish"),
    [
        ({"project": "p"}, Wish("p", None, 1)),
        ({"project": "p", "group": "g"}, Wish("p", None, 1)),
        ({"project": "p", "group": "g", "phones": 3}, Wish("p", "g", 3)),
        ({"project": "p", "phones": 3}, None),
        ({"project": "p", "group": "g", "phones": 0}, None),
        ({"project": "p", "group": "g", "phones": "3"}, None),
        ({"project": 5}, None),
        ({}, None),
    ],
)
def test_a_boot_config_asks_for_a_job(boot_config: dict[str, Any], wish: Wish | None) -> None:
    assert Wish.of(json.dumps(boot_config)) == wish


def test_the_machine_is_sound() -> None:
    assert Machine("device", [type(state) for state in MACHINE.states.values()], unknown="unknown").check() == []
