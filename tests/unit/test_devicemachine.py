# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The device machine against its contract: states, events, limits and tries are typed here, not read from the code."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from mozpool.db.bootconfig import boot_config_hash
from mozpool.db.engine import Database
from mozpool.lifeguard.devicemachine import CATEGORIES, STATES, category, device_machine
from mozpool.lifeguard.effects import (
    AgentReboot,
    AwaitReboot,
    CheckReady,
    CheckStorage,
    Ping,
    PowerCycle,
    SyncBoot,
    TellRequest,
    VerifyAgent,
)
from mozpool.lifeguard.store import DeviceStore
from mozpool.statemachine import TIMEOUT, Context, Decision, Effect, Machine, Tuning
from tests.factories import NOW, device

MACHINE = device_machine()
ENTRIES = Machine("entries", STATES, unknown="unknown")
"""The same states without what a forced change does besides: shows what an entry does, wherever it came from."""

PANDA = 1
B2G, ANDROID, DISK, SELF_TEST, MAINTENANCE, ORPHAN = 10, 11, 12, 20, 21, 30


@dataclass(frozen=True)
class FakeReads:
    """The other tables, as far as the machine looks at them; the hardware ``PANDA`` boots everything but ``orphan``."""

    images: Mapping[str, int] = field(
        default_factory=lambda: {
            "b2g": B2G,
            "android": ANDROID,
            "disk": DISK,
            "self-test": SELF_TEST,
            "maintenance": MAINTENANCE,
            "orphan": ORPHAN,
        }
    )
    pxe_configs: Mapping[tuple[int, int], str] = field(
        default_factory=lambda: {
            (PANDA, B2G): "panda-b2g",
            (PANDA, ANDROID): "panda-android",
            (PANDA, DISK): "panda-disk",
            (PANDA, SELF_TEST): "panda-self-test",
            (PANDA, MAINTENANCE): "panda-maintenance",
        }
    )
    default_power: str = "proxr"

    def image_id(self, name: str) -> int | None:
        return self.images.get(name)

    def pxe_config_for(self, hardware_type_id: int | None, image_id: int | None) -> str | None:
        if hardware_type_id is None or image_id is None:
            return None
        return self.pxe_configs.get((hardware_type_id, image_id))

    def is_hosted_on(self, hardware_type_id: int | None, image_id: int | None) -> bool:
        return False

    def job(self, claim_id: int) -> None:
        return None


READS = FakeReads()
NO_SELF_TEST = FakeReads(pxe_configs={(PANDA, B2G): "panda-b2g"})

# Columns of devices in certain situations
NO_POWER: dict[str, Any] = {"relay_info": None}
HOLDS_AGENT_IMAGE: dict[str, Any] = {"image_id": ANDROID, "image_has_agent": True}
HOLDS_PLAIN_IMAGE: dict[str, Any] = {"image_id": B2G, "image_has_agent": False}
GETS_AGENT_IMAGE: dict[str, Any] = {"next_image_id": ANDROID, "next_image_has_agent": True, "next_boot_config": "{}"}
GETS_PLAIN_IMAGE: dict[str, Any] = {"next_image_id": B2G, "next_image_has_agent": False, "next_boot_config": "{}"}
HELD: dict[str, Any] = {"claim_id": 7, "request_id": 70}
WORKING_FOR_HOLDER: dict[str, Any] = {**HELD, "operation_claim_id": 7}

UNKNOWN_IMAGE: dict[str, Any] = {"image_id": None, "boot_config": None, "boot_config_hash": None}
NO_NEXT_IMAGE: dict[str, Any] = {"next_image_id": None, "next_boot_config": None}


def context(
    state: str,
    event: str,
    args: Mapping[str, Any] | None = None,
    *,
    reads: FakeReads = READS,
    counters: Mapping[str, int] | None = None,
    **columns: Any,
) -> Context[Any]:
    row = device(state, state_counters=counters or {}, **columns)
    return Context(row, event, now=NOW, rng=random.Random(1), args=args, reads=reads)


def decide(state: str, event: str, args: Mapping[str, Any] | None = None, **situation: Any) -> Decision:
    """What the machine decides of an event that the state expects."""
    decision = MACHINE.decide(context(state, event, args, **situation))
    assert decision is not None, f"{state} does not expect {event}"
    return decision


def enter(state: str, **situation: Any) -> Decision:
    """What the entry into ``state`` does, wherever it came from."""
    return ENTRIES.force(context("unknown", "forced", **situation), state)


def force(state: str, to: str, **situation: Any) -> Decision:
    """What a person's forced change does."""
    return MACHINE.force(context(state, "forced", **situation), to)


def told(decision: Decision) -> list[Effect]:
    return [effect for effect in decision.effects if isinstance(effect, TellRequest)]


def assert_told(decision: Decision, result: str) -> None:
    """The holder's request is told, once, and the result is stored in the same transaction."""
    assert told(decision) == [TellRequest(request_id=70, claim_id=7, result=result)]
    assert len(decision.writes) == 1


def assert_nobody_told(decision: Decision) -> None:
    assert told(decision) == []
    assert decision.writes == ()


# The contract: which states there are, what they expect, and how long they may last

BASIC = {"please_self_test", "please_start_maintenance"}
ALL = BASIC | {"please_power_cycle", "please_image"}

EXPECTED_EVENTS: dict[str, set[str]] = {
    "new": ALL | {"timeout"},
    "unknown": ALL,
    "locked_out": set(),
    "troubleshooting": ALL,
    "ready": ALL | {"timeout", "failed"},
    "pc_power_cycling": {"power_cycle_ok", "power_cycle_failed", "not_wanted", "timeout"},
    "pc_rebooting": {"rebooted", "timeout"},
    "pc_sut_rebooting": {"power_cycle_failed", "timeout"},
    "pc_pinging": {"ping_ok", "timeout"},
    "start_pxe_boot": {"timeout"},
    "start_self_test": {"timeout"},
    "start_maintenance": {"timeout"},
    "pxe_power_cycling": {"power_cycle_ok", "power_cycle_failed", "not_wanted", "timeout"},
    "pxe_booting": {"mobile_init_started", "timeout"},
    "mobile_init_started": {
        "android_downloading",
        "b2g_downloading",
        "raw_downloading",
        "self_test_running",
        "maint_mode",
        "timeout",
    },
    "android_downloading": {"android_extracting", "timeout"},
    "android_extracting": {"android_rebooting", "timeout"},
    "b2g_downloading": {"b2g_extracting", "timeout"},
    "b2g_extracting": {"b2g_rebooting", "timeout"},
    "raw_downloading": {"raw_writing", "timeout"},
    "raw_writing": {"raw_rebooting", "timeout"},
    "raw_rebooting": {"rebooted", "timeout"},
    "sut_verifying": {"sut_verify_ok", "timeout"},
    "sut_verify_power_cycle": {"power_cycle_ok", "power_cycle_failed", "timeout"},
    "sut_sdcard_verifying": {"sut_sdcard_ok", "sut_sdcard_failed", "timeout"},
    "operation_complete": {"timeout"},
    "maintenance_mode": BASIC | {"released", "timeout"},
    "self_test_running": BASIC | {"self_test_ok", "failed_self_test", "timeout"},
    "failed_power_cycling": BASIC,
    "failed_pxe_booting": BASIC,
    "failed_mobile_init_started": BASIC,
    "failed_self_test": BASIC,
    "failed_sut_verifying": BASIC | {"timeout"},
    "failed_sut_sdcard_verifying": BASIC | {"timeout"},
    "failed_android_downloading": BASIC | {"timeout"},
    "failed_android_extracting": BASIC | {"timeout"},
    "failed_b2g_downloading": BASIC | {"timeout"},
    "failed_b2g_extracting": BASIC | {"timeout"},
    "failed_raw_downloading": BASIC | {"timeout"},
    "failed_raw_writing": BASIC | {"timeout"},
    "phone_verifying": {"phone_ok", "phone_faulty", "timeout"},
    "job_starting": {"job_ordered", "job_start_failed", "group_incomplete", "released", "timeout"},
    "job_waiting": {"job_running", "job_ended", "job_start_failed", "released", "timeout"},
    "job_running": {"job_ended", "released", "timeout"},
    "job_stopping": {"job_stopped", "timeout"},
    "job_cleanup": {"phone_ok", "phone_faulty", "timeout"},
    "job_done": {"released", "timeout"},
    "failed_job_starting": BASIC | {"timeout"},
    "failed_job_stopping": BASIC | {"timeout"},
    "failed_job_cleanup": BASIC | {"timeout"},
    "failed_phone": BASIC | {"phone_ok", "timeout"},
}
EVENTS = sorted(set().union(*EXPECTED_EVENTS.values()) | {"nonsense", "ready", "android_started", ""})
FAILED = sorted(name for name in EXPECTED_EVENTS if name.startswith("failed_"))
HEALING = sorted(name for name in FAILED if "timeout" in EXPECTED_EVENTS[name] and name != "failed_phone")

LIMITS: dict[str, tuple[float | None, int | None]] = {
    "new": (0, None),
    "unknown": (None, None),
    "locked_out": (None, None),
    "troubleshooting": (None, None),
    "ready": (600, None),
    "pc_power_cycling": (60, 200),
    "pc_rebooting": (120, None),
    "pc_sut_rebooting": (10, None),
    "pc_pinging": (10, 12),
    "start_pxe_boot": (None, None),
    "start_self_test": (None, None),
    "start_maintenance": (None, None),
    "pxe_power_cycling": (60, 200),
    "pxe_booting": (180, 30),
    "mobile_init_started": (10, 10),
    "android_downloading": (180, 3),
    "android_extracting": (600, 10),
    "b2g_downloading": (180, 3),
    "b2g_extracting": (300, 10),
    "raw_downloading": (180, 3),
    "raw_writing": (600, 10),
    "raw_rebooting": (120, None),
    "sut_verifying": (45, 30),
    "sut_verify_power_cycle": (60, 3),
    "sut_sdcard_verifying": (200, 2),
    "operation_complete": (60, None),
    "maintenance_mode": (None, None),
    "self_test_running": (3600, None),
    **dict.fromkeys(FAILED, (None, None)),
    **dict.fromkeys(HEALING, (0, None)),
    "phone_verifying": (30, 60),
    "job_starting": (60, 2),
    "job_waiting": (30, 7),
    "job_running": (30, 180),
    "job_stopping": (30, 20),
    "job_cleanup": (30, 20),
    "job_done": (10, None),
    "failed_phone": (60, None),
}


def test_its_declarations_are_sound() -> None:
    assert MACHINE.check() == []


def test_it_has_the_states_of_the_contract_and_no_others() -> None:
    assert set(MACHINE.states) == set(EXPECTED_EVENTS)


@pytest.mark.parametrize("state", EXPECTED_EVENTS)
def test_each_state_expects_its_events_and_ignores_all_others(state: str) -> None:
    args = {"image": "b2g", "boot_config": "{}"}
    accepted = set()
    for event in EVENTS:
        decision = MACHINE.decide(context(state, event, args, **GETS_PLAIN_IMAGE))
        assert MACHINE.expects(state, event) == (decision is not None)
        if decision is not None:
            accepted.add(event)
    assert accepted == EXPECTED_EVENTS[state]


@pytest.mark.parametrize("state", ["starting_up", "READY", "", "failed_something_new"])
def test_a_state_name_it_does_not_know_behaves_like_unknown(state: str) -> None:
    accepted = {event for event in EVENTS if MACHINE.decide(context(state, event, {"image": "b2g"}))}
    assert accepted == ALL
    decision = decide(state, "please_power_cycle")
    assert decision.source == state
    assert decision.path == ("pc_power_cycling",)
    assert decision.is_change


@pytest.mark.parametrize(("state", "limits"), LIMITS.items())
def test_each_state_has_its_limit_and_its_tries(state: str, limits: tuple[float | None, int | None]) -> None:
    assert (MACHINE.timeout_of(state), MACHINE.tries_of(state)) == limits


def test_limits_and_tries_may_be_tuned() -> None:
    machine = device_machine(Tuning(timeouts={"pxe_booting": 90}, tries={"pxe_booting": 1}, speed=10))
    assert machine.timeout_of("pxe_booting") == 9
    assert machine.timeout_of("ready") == 60
    twice = machine.decide(context("pxe_booting", TIMEOUT, counters={"pxe_booting": 1}, **GETS_PLAIN_IMAGE))
    assert twice is not None
    assert twice.target == "failed_pxe_booting"


# Plain steps: an event leads on

STEPS: list[tuple[str, str, dict[str, Any], tuple[str, ...]]] = [
    ("new", "timeout", {}, ("start_self_test", "pxe_power_cycling")),
    ("ready", "timeout", {}, ("ready",)),
    ("ready", "failed", {}, ("start_self_test", "pxe_power_cycling")),
    ("pc_power_cycling", "power_cycle_ok", {}, ("pc_rebooting",)),
    ("pc_power_cycling", "not_wanted", {}, ("ready",)),
    ("pc_rebooting", "timeout", {}, ("pc_pinging",)),
    ("pc_rebooting", "rebooted", {}, ("pc_pinging",)),
    ("pc_sut_rebooting", "timeout", {}, ("sut_verifying",)),
    ("pc_pinging", "ping_ok", {}, ("operation_complete", "ready")),
    ("pc_pinging", "ping_ok", HOLDS_PLAIN_IMAGE, ("operation_complete", "ready")),
    ("pc_pinging", "ping_ok", HOLDS_AGENT_IMAGE, ("sut_verifying",)),
    ("pc_pinging", "ping_ok", {**HOLDS_AGENT_IMAGE, **GETS_PLAIN_IMAGE}, ("operation_complete", "ready")),
    ("pc_pinging", "ping_ok", {**HOLDS_PLAIN_IMAGE, **GETS_AGENT_IMAGE}, ("sut_verifying",)),
    ("start_pxe_boot", "timeout", GETS_PLAIN_IMAGE, ("pxe_power_cycling",)),
    ("start_self_test", "timeout", {}, ("pxe_power_cycling",)),
    ("start_maintenance", "timeout", {}, ("pxe_power_cycling",)),
    ("pxe_power_cycling", "power_cycle_ok", GETS_PLAIN_IMAGE, ("pxe_booting",)),
    ("pxe_power_cycling", "not_wanted", GETS_PLAIN_IMAGE, ("ready",)),
    ("pxe_booting", "mobile_init_started", GETS_PLAIN_IMAGE, ("mobile_init_started",)),
    ("mobile_init_started", "android_downloading", GETS_AGENT_IMAGE, ("android_downloading",)),
    ("mobile_init_started", "b2g_downloading", GETS_PLAIN_IMAGE, ("b2g_downloading",)),
    ("mobile_init_started", "raw_downloading", GETS_PLAIN_IMAGE, ("raw_downloading",)),
    ("mobile_init_started", "self_test_running", {}, ("self_test_running",)),
    ("mobile_init_started", "maint_mode", {}, ("maintenance_mode",)),
    ("android_downloading", "android_extracting", GETS_AGENT_IMAGE, ("android_extracting",)),
    ("android_extracting", "android_rebooting", GETS_AGENT_IMAGE, ("sut_verifying",)),
    ("android_extracting", "android_rebooting", GETS_PLAIN_IMAGE, ("pc_rebooting",)),
    ("b2g_downloading", "b2g_extracting", GETS_PLAIN_IMAGE, ("b2g_extracting",)),
    ("b2g_extracting", "b2g_rebooting", GETS_AGENT_IMAGE, ("sut_verifying",)),
    ("b2g_extracting", "b2g_rebooting", GETS_PLAIN_IMAGE, ("pc_rebooting",)),
    ("raw_downloading", "raw_writing", GETS_PLAIN_IMAGE, ("raw_writing",)),
    ("raw_writing", "raw_rebooting", GETS_PLAIN_IMAGE, ("raw_rebooting",)),
    ("raw_rebooting", "rebooted", GETS_AGENT_IMAGE, ("sut_verifying",)),
    ("raw_rebooting", "timeout", GETS_AGENT_IMAGE, ("sut_verifying",)),
    ("raw_rebooting", "timeout", GETS_PLAIN_IMAGE, ("pc_pinging",)),
    ("raw_rebooting", "rebooted", GETS_PLAIN_IMAGE, ("pc_pinging",)),
    ("sut_verifying", "sut_verify_ok", {}, ("sut_sdcard_verifying",)),
    ("sut_verify_power_cycle", "power_cycle_ok", {}, ("sut_verifying",)),
    ("sut_sdcard_verifying", "sut_sdcard_ok", {}, ("operation_complete", "ready")),
    ("operation_complete", "timeout", {}, ("operation_complete", "ready")),
    ("maintenance_mode", "timeout", {}, ("start_self_test", "pxe_power_cycling")),
    ("maintenance_mode", "released", {}, ("start_self_test", "pxe_power_cycling")),
    ("self_test_running", "self_test_ok", {}, ("ready",)),
    ("self_test_running", "failed_self_test", {}, ("failed_self_test",)),
    ("self_test_running", "timeout", {}, ("failed_self_test",)),
    *[(state, "timeout", {}, ("start_self_test", "pxe_power_cycling")) for state in HEALING],
]


@pytest.mark.parametrize(("state", "event", "columns", "path"), STEPS)
def test_an_event_leads_on(state: str, event: str, columns: dict[str, Any], path: tuple[str, ...]) -> None:
    decision = decide(state, event, **columns)
    assert decision.path == path
    assert decision.timeout == LIMITS[path[-1]][0]


PLEASES = [(state, event) for state, events in EXPECTED_EVENTS.items() for event in sorted(events & ALL)]
PLEASE_PATHS = {
    "please_self_test": ("start_self_test", "pxe_power_cycling"),
    "please_start_maintenance": ("start_maintenance", "pxe_power_cycling"),
    "please_power_cycle": ("pc_power_cycling",),
    "please_image": ("start_pxe_boot", "pxe_power_cycling"),
}


@pytest.mark.parametrize(("state", "event"), PLEASES)
def test_a_please_starts_its_operation(state: str, event: str) -> None:
    args = {"image": "b2g", "boot_config": "{}", "claim_id": 7}
    decision = decide(state, event, args, counters={"pxe_booting": 9, "power_cycling": 3}, **HELD)
    assert decision.path == PLEASE_PATHS[event]
    assert decision.timeout == 60
    assert decision.counters == {}
    assert decision.effects == (PowerCycle(),)
    assert decision.columns["operation_claim_id"] == (None if event == "please_self_test" else 7)
    assert_nobody_told(decision)


# Retries: N failures are retried, the next one leads to the failed state

RETRIES: list[tuple[str, str, str, int, str, str]] = [
    ("pc_power_cycling", "timeout", "power_cycling", 200, "pc_power_cycling", "failed_power_cycling"),
    ("pc_power_cycling", "power_cycle_failed", "power_cycling", 200, "pc_power_cycling", "failed_power_cycling"),
    ("pc_pinging", "timeout", "pc_pinging", 12, "pc_pinging", "pc_power_cycling"),
    ("pxe_power_cycling", "timeout", "power_cycling", 200, "pxe_power_cycling", "failed_power_cycling"),
    ("pxe_power_cycling", "power_cycle_failed", "power_cycling", 200, "pxe_power_cycling", "failed_power_cycling"),
    ("pxe_booting", "timeout", "pxe_booting", 30, "pxe_power_cycling", "failed_pxe_booting"),
    ("mobile_init_started", "timeout", "mobile_init_started", 10, "pxe_power_cycling", "failed_mobile_init_started"),
    ("android_downloading", "timeout", "android_downloading", 3, "pxe_power_cycling", "failed_android_downloading"),
    ("android_extracting", "timeout", "android_extracting", 10, "pxe_power_cycling", "failed_android_extracting"),
    ("b2g_downloading", "timeout", "b2g_downloading", 3, "pxe_power_cycling", "failed_b2g_downloading"),
    ("b2g_extracting", "timeout", "b2g_extracting", 10, "pxe_power_cycling", "failed_b2g_extracting"),
    ("raw_downloading", "timeout", "raw_downloading", 3, "pxe_power_cycling", "failed_raw_downloading"),
    ("raw_writing", "timeout", "raw_writing", 10, "pxe_power_cycling", "failed_raw_writing"),
    (
        "sut_verify_power_cycle",
        "timeout",
        "sut_verify_power_cycle",
        3,
        "sut_verify_power_cycle",
        "failed_sut_verifying",
    ),
    (
        "sut_verify_power_cycle",
        "power_cycle_failed",
        "sut_verify_power_cycle",
        3,
        "sut_verify_power_cycle",
        "failed_sut_verifying",
    ),
    (
        "sut_sdcard_verifying",
        "timeout",
        "sut_sdcard_verifying",
        2,
        "sut_sdcard_verifying",
        "failed_sut_sdcard_verifying",
    ),
    (
        "sut_sdcard_verifying",
        "sut_sdcard_failed",
        "sut_sdcard_verifying",
        2,
        "sut_sdcard_verifying",
        "failed_sut_sdcard_verifying",
    ),
]


@pytest.mark.parametrize(("state", "event", "step", "tries", "again", "otherwise"), RETRIES)
def test_a_failing_step_is_retried_so_often_and_no_more(
    state: str, event: str, step: str, tries: int, again: str, otherwise: str
) -> None:
    counters: Mapping[str, int] = {}
    for failures in range(1, tries + 1):
        decision = decide(state, event, counters=counters, **GETS_PLAIN_IMAGE)
        counters = decision.counters
        assert decision.path == (again,)
        assert counters == {step: failures}
        assert_nobody_told(decision)
    last = decide(state, event, counters=counters, **GETS_PLAIN_IMAGE)
    assert last.path == (otherwise,)
    assert step not in last.counters
    assert last.detail == f"{step} failed {tries + 1} times"
    assert len(last.logs) == 1
    assert last.detail in last.logs[0]


@pytest.mark.parametrize(("state", "event", "step", "tries", "again", "otherwise"), RETRIES)
def test_failures_of_other_steps_are_not_counted_and_not_forgotten(
    state: str, event: str, step: str, tries: int, again: str, otherwise: str
) -> None:
    decision = decide(state, event, counters={"something_else": 999}, **GETS_PLAIN_IMAGE)
    assert decision.path == (again,)
    assert decision.counters == {"something_else": 999, step: 1}


def test_an_agent_that_does_not_answer_is_asked_thirty_times_with_a_power_cycle_each_tenth() -> None:
    counters: Mapping[str, int] = {}
    for failures in range(1, 31):
        decision = decide("sut_verifying", TIMEOUT, counters=counters)
        counters = decision.counters
        assert decision.path == ("sut_verify_power_cycle" if failures in (10, 20, 30) else "sut_verifying",)
        assert counters == {"sut_verifying": failures}
    last = decide("sut_verifying", TIMEOUT, counters=counters)
    assert last.path == ("failed_sut_verifying",)
    assert last.counters == {}


def test_an_agent_is_asked_on_where_nobody_can_cut_the_power() -> None:
    for failures in range(30):
        decision = decide("sut_verifying", TIMEOUT, counters={"sut_verifying": failures}, **NO_POWER)
        assert decision.path == ("sut_verifying",)
    assert decide("sut_verifying", TIMEOUT, counters={"sut_verifying": 30}, **NO_POWER).path == (
        "failed_sut_verifying",
    )


def test_both_power_cycling_states_share_their_tries() -> None:
    shared = {"power_cycling": 200}
    for state in ("pc_power_cycling", "pxe_power_cycling"):
        decision = decide(state, TIMEOUT, counters=shared, **GETS_PLAIN_IMAGE)
        assert decision.path == ("failed_power_cycling",)


def test_pings_that_stay_unanswered_count_as_a_failed_power_cycle() -> None:
    decision = decide("pc_pinging", TIMEOUT, counters={"pc_pinging": 12, "power_cycling": 4})
    assert decision.path == ("pc_power_cycling",)
    assert decision.counters == {"power_cycling": 5}
    assert decision.effects == (PowerCycle(),)
    last_try = decide("pc_pinging", TIMEOUT, counters={"pc_pinging": 12, "power_cycling": 199})
    assert last_try.path == ("pc_power_cycling",)


def test_power_cycles_after_unanswered_pings_have_an_end() -> None:
    decision = decide("pc_pinging", TIMEOUT, counters={"pc_pinging": 12, "power_cycling": 200}, **WORKING_FOR_HOLDER)
    assert decision.path == ("failed_power_cycling",)
    assert_told(decision, "failed-bad-device")


CLEARED_ON_SUCCESS = [
    ("pc_pinging", "ping_ok", HOLDS_AGENT_IMAGE, {"pc_pinging", "power_cycling"}),
    ("pxe_power_cycling", "power_cycle_ok", GETS_PLAIN_IMAGE, {"power_cycling"}),
    ("pxe_booting", "mobile_init_started", GETS_PLAIN_IMAGE, {"pxe_booting"}),
    ("mobile_init_started", "android_downloading", GETS_PLAIN_IMAGE, {"mobile_init_started"}),
    ("mobile_init_started", "b2g_downloading", GETS_PLAIN_IMAGE, {"mobile_init_started"}),
    ("mobile_init_started", "raw_downloading", GETS_PLAIN_IMAGE, {"mobile_init_started"}),
    ("mobile_init_started", "self_test_running", GETS_PLAIN_IMAGE, {"mobile_init_started"}),
    ("android_downloading", "android_extracting", GETS_PLAIN_IMAGE, {"android_downloading"}),
    ("android_extracting", "android_rebooting", GETS_PLAIN_IMAGE, {"android_extracting"}),
    ("b2g_downloading", "b2g_extracting", GETS_PLAIN_IMAGE, {"b2g_downloading"}),
    ("b2g_extracting", "b2g_rebooting", GETS_PLAIN_IMAGE, {"b2g_extracting"}),
    ("raw_downloading", "raw_writing", GETS_PLAIN_IMAGE, {"raw_downloading"}),
    ("raw_writing", "raw_rebooting", GETS_PLAIN_IMAGE, {"raw_writing"}),
    ("sut_verifying", "sut_verify_ok", {}, {"sut_verifying", "sut_verify_power_cycle"}),
    ("sut_verify_power_cycle", "power_cycle_ok", {}, {"sut_verify_power_cycle"}),
]
STEPS_THAT_COUNT = {
    "power_cycling",
    "pc_pinging",
    "pxe_booting",
    "mobile_init_started",
    "android_downloading",
    "android_extracting",
    "b2g_downloading",
    "b2g_extracting",
    "raw_downloading",
    "raw_writing",
    "sut_verifying",
    "sut_verify_power_cycle",
    "sut_sdcard_verifying",
}


@pytest.mark.parametrize(("state", "event", "columns", "cleared"), CLEARED_ON_SUCCESS)
def test_a_success_forgets_the_failures_of_its_step(
    state: str, event: str, columns: dict[str, Any], cleared: set[str]
) -> None:
    decision = decide(state, event, counters=dict.fromkeys(STEPS_THAT_COUNT, 2), **columns)
    assert STEPS_THAT_COUNT - set(decision.counters) == cleared


def test_a_power_cycle_is_a_success_only_once_the_device_answers() -> None:
    """Else a board whose power works but that never boots would be power-cycled for ever."""
    counters = {"power_cycling": 5}
    assert decide("pc_power_cycling", "power_cycle_ok", counters=counters).counters == counters
    assert decide("pc_rebooting", TIMEOUT, counters=counters).counters == counters
    assert decide("pc_pinging", "ping_ok", counters=counters).counters == {}


@pytest.mark.parametrize(
    ("state", "event"),
    [
        ("pc_pinging", "ping_ok"),
        ("sut_sdcard_verifying", "sut_sdcard_ok"),
        ("operation_complete", "timeout"),
        ("self_test_running", "self_test_ok"),
        ("mobile_init_started", "maint_mode"),
        ("start_pxe_boot", "timeout"),
        ("start_self_test", "timeout"),
        ("start_maintenance", "timeout"),
        *[(state, "timeout") for state in HEALING],
    ],
)
def test_the_end_and_the_start_of_an_operation_forget_all_failures(state: str, event: str) -> None:
    counters = dict.fromkeys(STEPS_THAT_COUNT, 2)
    assert decide(state, event, counters=counters, **GETS_PLAIN_IMAGE).counters == {}


# What the entry of each state has done

ENTRY_EFFECTS: list[tuple[str, dict[str, Any], tuple[Effect, ...]]] = [
    ("new", {}, ()),
    ("unknown", {}, ()),
    ("locked_out", {}, ()),
    ("troubleshooting", {}, ()),
    ("ready", {}, (CheckReady(),)),
    ("ready", HELD, ()),
    ("pc_power_cycling", {}, (PowerCycle(),)),
    ("pc_power_cycling", HOLDS_AGENT_IMAGE, (PowerCycle(),)),
    ("pc_rebooting", {}, ()),
    ("pc_rebooting", HOLDS_PLAIN_IMAGE, ()),
    ("pc_rebooting", HOLDS_AGENT_IMAGE, (AwaitReboot(),)),
    ("pc_rebooting", GETS_AGENT_IMAGE, (AwaitReboot(),)),
    ("pc_rebooting", {**HOLDS_AGENT_IMAGE, **GETS_PLAIN_IMAGE}, ()),
    ("pc_sut_rebooting", HOLDS_AGENT_IMAGE, ()),
    ("pc_pinging", {}, (Ping(),)),
    ("pc_pinging", HOLDS_AGENT_IMAGE, (Ping(),)),
    ("pxe_power_cycling", GETS_PLAIN_IMAGE, (PowerCycle(),)),
    ("pxe_booting", GETS_PLAIN_IMAGE, ()),
    ("mobile_init_started", GETS_PLAIN_IMAGE, ()),
    ("android_downloading", GETS_AGENT_IMAGE, ()),
    ("android_extracting", GETS_AGENT_IMAGE, ()),
    ("b2g_downloading", GETS_PLAIN_IMAGE, ()),
    ("b2g_extracting", GETS_PLAIN_IMAGE, ()),
    ("raw_downloading", GETS_PLAIN_IMAGE, ()),
    ("raw_writing", GETS_PLAIN_IMAGE, ()),
    ("raw_rebooting", GETS_PLAIN_IMAGE, ()),
    ("raw_rebooting", GETS_AGENT_IMAGE, (AwaitReboot(),)),
    ("sut_verifying", {}, (VerifyAgent(),)),
    ("sut_verify_power_cycle", {}, (PowerCycle(),)),
    ("sut_sdcard_verifying", {}, (CheckStorage(),)),
    ("maintenance_mode", {}, ()),
    ("self_test_running", {}, ()),
    *[(state, {}, ()) for state in FAILED],
]


@pytest.mark.parametrize(("state", "columns", "effects"), ENTRY_EFFECTS)
def test_entering_a_state_has_this_done(state: str, columns: dict[str, Any], effects: tuple[Effect, ...]) -> None:
    decision = enter(state, **columns)
    assert decision.path == (state,)
    assert decision.effects == effects
    assert decision.timeout == LIMITS[state][0]


@pytest.mark.parametrize(
    "state",
    [
        "pc_power_cycling",
        "pxe_power_cycling",
        "pc_pinging",
        "sut_verifying",
        "sut_verify_power_cycle",
        "sut_sdcard_verifying",
        "pc_rebooting",
        "raw_rebooting",
    ],
)
def test_a_state_that_waits_for_hardware_has_a_time_limit_that_goes_on(state: str) -> None:
    """A crash between commit and effect costs one timeout, never the device."""
    decision = decide(state, TIMEOUT, **HOLDS_AGENT_IMAGE, **GETS_AGENT_IMAGE)
    assert decision.path
    assert decision.effects


def test_probes_are_repeated_every_second_and_other_effects_are_not() -> None:
    assert [effect.every for effect in (AwaitReboot, Ping, VerifyAgent)] == [1, 1, 1]
    assert [effect.every for effect in (PowerCycle, AgentReboot, CheckStorage, CheckReady, SyncBoot)] == [None] * 5


def test_boot_files_and_messages_do_not_take_the_slot_of_hardware() -> None:
    assert {e.channel for e in (PowerCycle, AgentReboot, AwaitReboot, Ping, VerifyAgent, CheckStorage, CheckReady)} == {
        "hardware"
    }
    assert (SyncBoot.channel, TellRequest.channel) == ("boot", "link")


# Power cycles, and devices whose power nobody can cut


def test_a_power_cycle_boots_from_the_devices_own_storage() -> None:
    decision = decide("ready", "please_power_cycle", pxe_config="panda-b2g", last_pxe_config="panda-b2g")
    assert decision.columns["pxe_config"] is None
    assert decision.effects == (PowerCycle(),)


def test_a_power_cycle_for_the_agents_sake_does_so_too() -> None:
    decision = decide("sut_verifying", TIMEOUT, counters={"sut_verifying": 9}, pxe_config="panda-b2g")
    assert decision.path == ("sut_verify_power_cycle",)
    assert decision.columns == {"pxe_config": None}


def test_a_power_cycle_forgets_the_next_image() -> None:
    decision = decide("troubleshooting", "please_power_cycle", **GETS_AGENT_IMAGE)
    assert decision.columns == {**NO_NEXT_IMAGE, "pxe_config": None, "operation_claim_id": None}


def test_without_power_control_and_agent_a_power_cycle_fails_at_once() -> None:
    decision = decide("ready", "please_power_cycle", {"claim_id": 7}, **NO_POWER, **HOLDS_PLAIN_IMAGE, **HELD)
    assert decision.path == ("pc_power_cycling", "failed_power_cycling")
    assert PowerCycle() not in decision.effects
    assert AgentReboot() not in decision.effects
    assert decision.detail == "no power control and no agent"
    assert len(decision.logs) == 1
    assert_told(decision, "failed-bad-device")


def test_without_power_control_the_agent_reboots_the_device() -> None:
    decision = decide("ready", "please_power_cycle", **NO_POWER, **HOLDS_AGENT_IMAGE)
    assert decision.path == ("pc_power_cycling", "pc_sut_rebooting")
    assert decision.effects == (AgentReboot(),)
    assert decision.timeout == 10
    assert decision.columns["pxe_config"] is None


def test_without_a_way_to_reboot_the_network_boot_is_cleared_all_the_same() -> None:
    decision = decide("maintenance_mode", "please_self_test", reads=NO_SELF_TEST, pxe_config="panda-b2g", **NO_POWER)
    assert decision.path == ("start_self_test", "pc_power_cycling", "failed_power_cycling")
    assert decision.columns["pxe_config"] is None
    assert SyncBoot() in decision.effects


def test_a_device_that_can_be_rebooted_has_its_boot_files_written_by_the_reboot_itself() -> None:
    for columns in ({}, {**NO_POWER, **HOLDS_AGENT_IMAGE}):
        assert SyncBoot() not in decide("ready", "please_power_cycle", **columns).effects


def test_a_reboot_that_the_agent_did_not_take_is_remembered_until_its_moment_is_over() -> None:
    decision = decide("pc_sut_rebooting", "power_cycle_failed", **NO_POWER, **HOLDS_AGENT_IMAGE)
    assert decision.path == ()
    assert decision.counters == {"pc_sut_rebooting": 1}
    assert decision.effects == ()


def test_a_reboot_that_the_agent_did_not_take_is_tried_again_as_a_failed_power_cycle() -> None:
    counters = {"pc_sut_rebooting": 1, "power_cycling": 4, "sut_verifying": 2}
    decision = decide("pc_sut_rebooting", TIMEOUT, counters=counters, **NO_POWER, **HOLDS_AGENT_IMAGE)
    assert decision.path == ("pc_power_cycling", "pc_sut_rebooting")
    assert decision.counters == {"power_cycling": 5, "sut_verifying": 2}
    assert decision.effects == (AgentReboot(),)
    assert decision.timeout == 10


def test_reboots_that_the_agent_never_takes_have_an_end() -> None:
    situation: dict[str, Any] = {**NO_POWER, **HOLDS_AGENT_IMAGE, **WORKING_FOR_HOLDER}
    last_try = {"pc_sut_rebooting": 1, "power_cycling": 199}
    assert decide("pc_sut_rebooting", TIMEOUT, counters=last_try, **situation).target == "pc_sut_rebooting"
    decision = decide("pc_sut_rebooting", TIMEOUT, counters={"pc_sut_rebooting": 1, "power_cycling": 200}, **situation)
    assert decision.path == ("failed_power_cycling",)
    assert decision.counters == {}
    assert decision.detail == "power_cycling failed 201 times"
    assert_told(decision, "failed-bad-device")


def test_the_tries_of_an_agents_reboot_are_those_of_power_cycling() -> None:
    machine = device_machine(Tuning(tries={"pc_power_cycling": 1}))
    counters = {"pc_sut_rebooting": 1, "power_cycling": 1}
    decision = machine.decide(context("pc_sut_rebooting", TIMEOUT, counters=counters, **NO_POWER, **HOLDS_AGENT_IMAGE))
    assert decision is not None
    assert decision.path == ("failed_power_cycling",)


def test_a_reboot_that_the_agent_took_is_verified_and_counts_nothing() -> None:
    counters = {"power_cycling": 4}
    decision = decide("pc_sut_rebooting", TIMEOUT, counters=counters, **NO_POWER, **HOLDS_AGENT_IMAGE)
    assert decision.path == ("sut_verifying",)
    assert decision.counters == counters
    assert decision.effects == (VerifyAgent(),)


def test_an_agent_of_an_image_that_the_device_may_no_longer_hold_is_not_asked() -> None:
    decision = enter("pc_power_cycling", image_id=None, image_has_agent=True, **NO_POWER)
    assert decision.path == ("pc_power_cycling", "failed_power_cycling")


@pytest.mark.parametrize(
    ("columns", "has_power"),
    [
        ({"relay_info": "127.0.0.1:2999:bank1:relay1"}, True),
        ({"relay_info": None}, False),
        ({"relay_info": ""}, False),
        ({"relay_info": None, "backends": {"power": "proxr"}}, False),
        ({"relay_info": None, "backends": {"power": "pdudaemon"}}, True),
        ({"relay_info": None, "backends": {"boot": "pxe"}}, False),
    ],
)
def test_power_control_is_a_relay_or_a_backend_that_needs_none(columns: dict[str, Any], has_power: bool) -> None:
    assert (PowerCycle() in enter("pc_power_cycling", **columns).effects) is has_power


@pytest.mark.parametrize("state", ["pc_power_cycling", "pxe_power_cycling"])
@pytest.mark.parametrize(
    ("backends", "has_power"),
    [({}, True), ({"boot": "pxe"}, True), ({"power": "pdudaemon"}, True), ({"power": "proxr"}, False)],
)
def test_a_device_that_names_no_power_backend_has_the_configured_one(
    state: str, backends: dict[str, str], has_power: bool
) -> None:
    situation = {**NO_POWER, **GETS_PLAIN_IMAGE, "image_id": None, "backends": backends}
    decision = enter(state, reads=FakeReads(default_power="command"), **situation)
    assert (PowerCycle() in decision.effects) is has_power


def test_a_configured_power_backend_also_helps_an_agent_that_does_not_answer() -> None:
    counters = {"sut_verifying": 9}
    for default_power, path in (("command", ("sut_verify_power_cycle",)), ("proxr", ("sut_verifying",))):
        reads = FakeReads(default_power=default_power)
        decision = decide("sut_verifying", TIMEOUT, counters=counters, reads=reads, **NO_POWER, **HOLDS_AGENT_IMAGE)
        assert decision.path == path


def test_the_store_tells_the_machine_the_configured_power_backend(database: Database) -> None:
    with database.read() as conn:
        assert DeviceStore(1, default_power="command").reads(conn).default_power == "command"
        assert DeviceStore(1).reads(conn).default_power == "proxr"


def test_without_power_control_the_agent_reboots_into_the_network() -> None:
    decision = decide("ready", "please_image", {"image": "b2g", "boot_config": "{}"}, **NO_POWER, **HOLDS_AGENT_IMAGE)
    assert decision.path == ("start_pxe_boot", "pxe_power_cycling")
    assert decision.effects == (AgentReboot(),)
    assert decide("pxe_power_cycling", "power_cycle_ok", **NO_POWER).path == ("pxe_booting",)


@pytest.mark.parametrize("columns", [{}, HOLDS_PLAIN_IMAGE])
def test_without_power_control_and_agent_nothing_is_installed(columns: dict[str, Any]) -> None:
    args = {"image": "b2g", "boot_config": "{}", "claim_id": 7}
    decision = decide("ready", "please_image", args, **NO_POWER, **HELD, **columns)
    assert decision.path == ("start_pxe_boot", "pxe_power_cycling", "failed_power_cycling")
    assert decision.detail == "no power control and no agent"
    assert len(decision.logs) == 1
    assert_told(decision, "failed-bad-device")


# Installing


def test_an_image_is_installed_with_its_boot_config_as_it_came() -> None:
    text = '{"b2gbase": "http://builds.example.com/1/"}'
    decision = decide("ready", "please_image", {"image": "b2g", "boot_config": text, "claim_id": 7}, **HELD)
    assert decision.path == ("start_pxe_boot", "pxe_power_cycling")
    assert decision.columns == {
        "operation_claim_id": 7,
        "next_image_id": B2G,
        "next_boot_config": text,
        "pxe_config": "panda-b2g",
        "last_pxe_config": "panda-b2g",
    }
    assert decision.effects == (PowerCycle(),)


def test_an_image_may_be_installed_without_a_boot_config() -> None:
    decision = decide("ready", "please_image", {"image": "b2g"})
    assert decision.columns["next_boot_config"] is None


REFUSALS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"image": "orphan", "boot_config": "{}"}, {}),
    ({"image": "never-heard-of", "boot_config": "{}"}, {}),
    ({"boot_config": "{}"}, {}),
    ({"image": "b2g", "boot_config": "{}"}, {"hardware_type_id": 99}),
    ({"image": "b2g", "boot_config": "{}"}, {"hardware_type_id": None, "hardware_type": None, "hardware_model": None}),
]


@pytest.mark.parametrize(("args", "columns"), REFUSALS)
def test_an_image_without_a_fitting_pxe_config_is_refused_as_a_bad_image(
    args: dict[str, Any], columns: dict[str, Any]
) -> None:
    decision = decide("ready", "please_image", {**args, "claim_id": 7}, **HELD, **columns)
    assert decision.path == ()
    assert decision.target == "ready"
    assert decision.effects == (TellRequest(request_id=70, claim_id=7, result="failed-bad-image"),)
    assert len(decision.writes) == 1
    assert len(decision.logs) == 1
    assert "refused" in decision.logs[0]
    assert "next_image_id" not in decision.columns


def test_a_refusal_replaces_the_result_of_the_operation_before() -> None:
    args = {"image": "orphan", "claim_id": 7}
    decision = decide("ready", "please_image", args, imaging_result="complete", **WORKING_FOR_HOLDER)
    assert told(decision) == [TellRequest(request_id=70, claim_id=7, result="failed-bad-image")]
    assert len(decision.writes) == 2


@pytest.mark.parametrize(
    "columns", [{}, HELD, WORKING_FOR_HOLDER, {**WORKING_FOR_HOLDER, "imaging_result": "complete"}]
)
def test_a_refusal_is_nobodys_result_when_an_operator_asked(columns: dict[str, Any]) -> None:
    """Nothing happens to the device, so its holder's operation goes on."""
    decision = decide("ready", "please_image", {"image": "orphan"}, **columns)
    assert decision.path == ()
    assert decision.columns == {}
    assert len(decision.logs) == 1
    assert_nobody_told(decision)


@pytest.mark.parametrize("columns", [{}, {"next_image_id": ORPHAN}, {"next_image_id": B2G, "hardware_type_id": 99}])
def test_a_network_boot_without_a_pxe_config_fails(columns: dict[str, Any]) -> None:
    decision = decide("start_pxe_boot", TIMEOUT, **columns, **WORKING_FOR_HOLDER)
    assert decision.path == ("pxe_power_cycling", "failed_pxe_booting")
    assert decision.detail == "no PXE config for this hardware and image"
    assert len(decision.logs) == 1
    assert "pxe_config" not in decision.columns
    assert_told(decision, "failed-bad-device")


@pytest.mark.parametrize(
    ("state", "event"), [("android_extracting", "android_rebooting"), ("b2g_extracting", "b2g_rebooting")]
)
def test_an_image_without_an_agent_is_pinged_only_after_the_time_of_a_boot(state: str, event: str) -> None:
    """The live image and the boot loader answer pings too."""
    rebooting = decide(state, event, **GETS_PLAIN_IMAGE)
    assert rebooting.path == ("pc_rebooting",)
    assert rebooting.timeout == 120
    assert rebooting.effects == ()
    assert MACHINE.decide(context("pc_rebooting", "ping_ok", **GETS_PLAIN_IMAGE)) is None
    assert decide("pc_rebooting", TIMEOUT, **GETS_PLAIN_IMAGE).path == ("pc_pinging",)


@pytest.mark.parametrize(
    ("state", "event"), [("android_extracting", "android_rebooting"), ("b2g_extracting", "b2g_rebooting")]
)
def test_an_image_with_an_agent_proves_itself_without_that_wait(state: str, event: str) -> None:
    decision = decide(state, event, **HOLDS_PLAIN_IMAGE, **GETS_AGENT_IMAGE)
    assert decision.path == ("sut_verifying",)
    assert decision.effects == (VerifyAgent(),)


@pytest.mark.parametrize(
    ("state", "event"),
    [
        ("pxe_booting", "mobile_init_started"),
        ("mobile_init_started", "android_downloading"),
        ("mobile_init_started", "b2g_downloading"),
        ("mobile_init_started", "raw_downloading"),
        ("mobile_init_started", "self_test_running"),
    ],
)
def test_a_live_image_that_reports_ends_the_network_boot(state: str, event: str) -> None:
    decision = decide(state, event, pxe_config="panda-b2g", last_pxe_config="panda-b2g", **GETS_PLAIN_IMAGE)
    assert decision.columns["pxe_config"] is None
    assert "last_pxe_config" not in decision.columns
    assert decision.effects == (SyncBoot(),)


def test_boot_files_are_looked_at_even_when_the_row_says_so_already() -> None:
    assert SyncBoot() in decide("pxe_booting", "mobile_init_started", pxe_config=None).effects


@pytest.mark.parametrize(
    "state",
    [
        "pxe_booting",
        "mobile_init_started",
        "android_downloading",
        "android_extracting",
        "b2g_downloading",
        "b2g_extracting",
        "raw_downloading",
        "raw_writing",
    ],
)
def test_a_retry_within_pxe_writes_the_config_anew_and_cycles_the_power(state: str) -> None:
    decision = decide(state, TIMEOUT, pxe_config=None, **GETS_PLAIN_IMAGE)
    assert decision.path == ("pxe_power_cycling",)
    assert decision.columns["pxe_config"] == "panda-b2g"
    assert decision.effects == (PowerCycle(),)


@pytest.mark.parametrize(
    ("state", "event"),
    [
        ("android_downloading", "android_extracting"),
        ("b2g_downloading", "b2g_extracting"),
        ("raw_downloading", "raw_writing"),
    ],
)
def test_the_image_is_unknown_from_when_it_is_written(state: str, event: str) -> None:
    decision = decide(state, event, **HOLDS_AGENT_IMAGE, boot_config="{}", **GETS_PLAIN_IMAGE)
    assert decision.columns == UNKNOWN_IMAGE


@pytest.mark.parametrize("state", ["android_downloading", "b2g_downloading", "raw_downloading"])
def test_a_slow_board_may_write_until_its_power_is_cut(state: str) -> None:
    """Nobody waits for it any more, but its live image goes on."""
    situation = {**HOLDS_AGENT_IMAGE, "boot_config": "{}", **GETS_PLAIN_IMAGE}
    for failures in (0, 3):
        decision = decide(state, TIMEOUT, counters={state: failures}, **situation)
        assert decision.columns.items() >= UNKNOWN_IMAGE.items()
    # Only its agent can reboot it: what it has is believed until it is given up.
    assert "image_id" not in decide(state, TIMEOUT, **situation, **NO_POWER).columns
    assert decide(state, TIMEOUT, counters={state: 3}, **situation, **NO_POWER).columns.items() >= UNKNOWN_IMAGE.items()


def test_what_a_device_holds_is_unknown_when_an_installation_is_broken_off_by_force() -> None:
    holds = {**HOLDS_AGENT_IMAGE, "boot_config": "{}"}
    decision = force("b2g_downloading", "ready", **holds, **GETS_PLAIN_IMAGE)
    assert decision.columns.items() >= UNKNOWN_IMAGE.items()
    assert "image_id" not in force("pc_pinging", "ready", **holds).columns


@pytest.mark.parametrize("event", ["android_downloading", "b2g_downloading", "raw_downloading"])
def test_the_image_is_still_known_while_the_next_one_is_fetched(event: str) -> None:
    decision = decide("mobile_init_started", event, **HOLDS_AGENT_IMAGE, **GETS_PLAIN_IMAGE)
    assert decision.columns == {"pxe_config": None}


@pytest.mark.parametrize(
    ("state", "event"),
    [("pc_pinging", "ping_ok"), ("sut_sdcard_verifying", "sut_sdcard_ok"), ("operation_complete", "timeout")],
)
def test_the_installed_image_becomes_the_image_and_the_request_is_told(state: str, event: str) -> None:
    text = '{"b2gbase": "http://builds.example.com/1/"}'
    decision = decide(
        state, event, **WORKING_FOR_HOLDER, next_image_id=B2G, next_image_has_agent=False, next_boot_config=text
    )
    assert decision.path == ("operation_complete", "ready")
    assert decision.columns == {
        "image_id": B2G,
        "boot_config": text,
        "boot_config_hash": boot_config_hash(text),
        **NO_NEXT_IMAGE,
    }
    assert decision.effects == (TellRequest(request_id=70, claim_id=7, result="complete"),)
    assert len(decision.writes) == 1
    assert decision.timeout == 600


def test_after_a_mere_power_cycle_the_image_is_what_it_was() -> None:
    decision = decide("pc_pinging", "ping_ok", **HOLDS_PLAIN_IMAGE, **WORKING_FOR_HOLDER)
    assert decision.path == ("operation_complete", "ready")
    assert decision.columns == {}
    assert_told(decision, "complete")


def test_a_device_that_is_free_again_at_the_end_is_looked_after_at_once() -> None:
    decision = decide("pc_pinging", "ping_ok", operation_claim_id=7)
    assert decision.target == "ready"
    assert decision.effects == (CheckReady(),)
    assert_nobody_told(decision)


@pytest.mark.parametrize("holder", [{}, {"claim_id": 8, "request_id": 80}])
def test_an_operation_that_nobody_wants_any_more_leaves_the_device_as_it_was(holder: dict[str, Any]) -> None:
    situation: dict[str, Any] = {**HOLDS_PLAIN_IMAGE, **holder, "operation_claim_id": 7}
    rebooted = decide("pc_power_cycling", "not_wanted", **situation)
    assert rebooted.columns == {"operation_claim_id": None}
    installed = decide("pxe_power_cycling", "not_wanted", pxe_config="panda-b2g", **GETS_PLAIN_IMAGE, **situation)
    assert installed.columns == {"operation_claim_id": None, "pxe_config": None, **NO_NEXT_IMAGE}
    assert SyncBoot() in installed.effects
    for decision in (rebooted, installed):
        assert decision.path == ("ready",)
        assert (CheckReady() in decision.effects) is (not holder)
        assert_nobody_told(decision)


# Whose result it is

NOT_THE_HOLDERS: list[dict[str, Any]] = [
    {},
    {"claim_id": 7, "request_id": 70, "operation_claim_id": None},
    {"claim_id": 7, "request_id": 70, "operation_claim_id": 6},
    {"claim_id": None, "request_id": None, "operation_claim_id": 6},
]


@pytest.mark.parametrize("columns", NOT_THE_HOLDERS)
@pytest.mark.parametrize("state", ["operation_complete", "maintenance_mode", *FAILED])
def test_a_result_reaches_only_the_claim_that_the_operation_was_for(state: str, columns: dict[str, Any]) -> None:
    assert_nobody_told(enter(state, **columns))


@pytest.mark.parametrize("state", FAILED)
def test_a_failure_is_told_to_the_holders_request(state: str) -> None:
    decision = enter(state, **WORKING_FOR_HOLDER, **GETS_PLAIN_IMAGE)
    assert decision.path == (state,)
    assert decision.columns == NO_NEXT_IMAGE
    assert_told(decision, "failed-bad-device")


@pytest.mark.parametrize("state", HEALING)
def test_a_self_test_that_follows_a_failure_is_nobodys_operation(state: str) -> None:
    decision = decide(state, TIMEOUT, **WORKING_FOR_HOLDER)
    assert decision.path == ("start_self_test", "pxe_power_cycling")
    assert decision.columns["operation_claim_id"] is None
    assert_nobody_told(decision)


OPERATORS_PLEASES = [(state, event) for state, event in PLEASES if state != "new"]


@pytest.mark.parametrize(("state", "event"), OPERATORS_PLEASES)
def test_an_operators_please_tells_the_holder_whose_operation_it_ends(state: str, event: str) -> None:
    decision = decide(state, event, {"image": "b2g", "boot_config": "{}"}, **WORKING_FOR_HOLDER)
    assert decision.path == PLEASE_PATHS[event]
    assert decision.columns["operation_claim_id"] is None
    assert_told(decision, "failed-bad-device")


@pytest.mark.parametrize("event", sorted(ALL))
def test_an_operators_please_says_nothing_of_an_operation_that_is_over(event: str) -> None:
    decision = decide("ready", event, {"image": "b2g"}, imaging_result="complete", **WORKING_FOR_HOLDER)
    assert decision.columns["operation_claim_id"] is None
    assert_nobody_told(decision)


@pytest.mark.parametrize(
    ("state", "event"), [(state, event) for state, event in PLEASES if event != "please_self_test"]
)
def test_a_holders_further_please_forgets_the_result_of_the_operation_before(state: str, event: str) -> None:
    args = {"image": "b2g", "claim_id": 7}
    decision = decide(state, event, args, imaging_result="complete", **WORKING_FOR_HOLDER)
    assert decision.path == PLEASE_PATHS[event]
    assert decision.columns["operation_claim_id"] == 7
    assert told(decision) == []
    assert len(decision.writes) == 1


@pytest.mark.parametrize("event", sorted(ALL))
@pytest.mark.parametrize("columns", NOT_THE_HOLDERS)
def test_an_operators_please_says_nothing_to_a_holder_who_waits_for_nothing(
    event: str, columns: dict[str, Any]
) -> None:
    assert_nobody_told(decide("ready", event, {"image": "b2g"}, **columns))


@pytest.mark.parametrize("state", sorted(EXPECTED_EVENTS))
def test_a_forced_change_tells_the_holder_whose_operation_it_ends(state: str) -> None:
    """Once, whatever the state that is entered has to tell."""
    decision = force("pxe_booting", state, **WORKING_FOR_HOLDER, **GETS_PLAIN_IMAGE)
    assert decision.path[0] == state
    assert decision.columns["operation_claim_id"] is None
    assert_told(decision, "failed-bad-device")


@pytest.mark.parametrize("state", sorted(EXPECTED_EVENTS))
@pytest.mark.parametrize("columns", [*NOT_THE_HOLDERS, {**WORKING_FOR_HOLDER, "imaging_result": "complete"}])
def test_a_forced_change_says_nothing_to_a_holder_who_waits_for_nothing(state: str, columns: dict[str, Any]) -> None:
    decision = force("ready", state, **columns, **GETS_PLAIN_IMAGE)
    assert decision.columns["operation_claim_id"] is None
    assert_nobody_told(decision)


def test_a_forced_change_stores_the_result_of_a_holder_without_a_request() -> None:
    decision = force("pxe_booting", "ready", claim_id=7, request_id=None, operation_claim_id=7)
    assert told(decision) == []
    assert len(decision.writes) == 1


@pytest.mark.parametrize("name", ["", "READY", "failed_something_new"])
def test_a_device_is_not_forced_into_a_state_that_does_not_exist(name: str) -> None:
    with pytest.raises(KeyError):
        force("ready", name, **WORKING_FOR_HOLDER)


def test_an_idle_device_that_stopped_to_answer_works_for_nobody() -> None:
    decision = decide("ready", "failed", operation_claim_id=6)
    assert decision.columns["operation_claim_id"] is None
    assert_nobody_told(decision)


# Self-test


@pytest.mark.parametrize(("state", "event"), [("new", "timeout"), ("ready", "failed"), ("ready", "please_self_test")])
def test_a_self_test_boots_its_own_image_where_the_hardware_has_one(state: str, event: str) -> None:
    decision = decide(state, event, counters={"pxe_booting": 3})
    assert decision.path == ("start_self_test", "pxe_power_cycling")
    assert decision.columns["next_image_id"] == SELF_TEST
    assert decision.columns["next_boot_config"] == "{}"
    assert decision.columns["pxe_config"] == "panda-self-test"
    assert decision.counters == {}
    assert decision.effects == (PowerCycle(),)


@pytest.mark.parametrize("reads", [NO_SELF_TEST, FakeReads(images={})])
@pytest.mark.parametrize(
    ("state", "event"),
    [
        ("new", "timeout"),
        ("start_self_test", "timeout"),
        ("maintenance_mode", "released"),
        ("ready", "please_self_test"),
    ],
)
def test_a_self_test_is_a_power_cycle_where_the_hardware_has_no_image_for_it(
    state: str, event: str, reads: FakeReads
) -> None:
    decision = decide(state, event, reads=reads, counters={"pxe_booting": 3}, **GETS_PLAIN_IMAGE)
    assert decision.target == "pc_power_cycling"
    assert decision.columns["next_image_id"] is None
    assert decision.columns["pxe_config"] is None
    assert decision.counters == {}
    assert decision.effects == (PowerCycle(),)


def test_a_running_self_test_leaves_image_and_next_image_unknown() -> None:
    decision = decide(
        "mobile_init_started", "self_test_running", **HOLDS_AGENT_IMAGE, next_image_id=SELF_TEST, next_boot_config="{}"
    )
    assert decision.path == ("self_test_running",)
    assert decision.columns == {**UNKNOWN_IMAGE, **NO_NEXT_IMAGE, "pxe_config": None}
    assert decision.timeout == 3600


def test_a_self_test_that_succeeds_sends_no_result() -> None:
    decision = decide("self_test_running", "self_test_ok", **WORKING_FOR_HOLDER)
    assert decision.path == ("ready",)
    assert_nobody_told(decision)


@pytest.mark.parametrize("event", ["failed_self_test", "timeout"])
def test_a_self_test_that_fails_is_told(event: str) -> None:
    decision = decide("self_test_running", event, **WORKING_FOR_HOLDER)
    assert decision.path == ("failed_self_test",)
    assert_told(decision, "failed-bad-device")


@pytest.mark.parametrize("reads", [READS, NO_SELF_TEST])
def test_a_self_test_is_for_nobody_even_when_the_holder_asks(reads: FakeReads) -> None:
    decision = decide("ready", "please_self_test", {"claim_id": 7}, reads=reads, **HELD)
    assert decision.columns["operation_claim_id"] is None
    assert_nobody_told(decision)


def test_a_self_test_keeps_the_result_of_the_operation_before() -> None:
    decision = decide("ready", "please_self_test", {"claim_id": 7}, imaging_result="complete", **WORKING_FOR_HOLDER)
    assert decision.columns["operation_claim_id"] is None
    assert_nobody_told(decision)


def test_a_self_test_ends_the_holders_own_operation_as_a_failure() -> None:
    assert_told(
        decide("maintenance_mode", "please_self_test", {"claim_id": 7}, **WORKING_FOR_HOLDER), "failed-bad-device"
    )


@pytest.mark.parametrize(
    ("state", "event"),
    [("pc_pinging", "ping_ok"), ("pc_power_cycling", "power_cycle_failed"), ("self_test_running", "failed_self_test")],
)
def test_a_self_test_sends_no_result_however_it_ends(state: str, event: str) -> None:
    columns = {**HELD, **HOLDS_PLAIN_IMAGE}
    started = decide("ready", "please_self_test", {"claim_id": 7}, reads=NO_SELF_TEST, **columns)
    situation = {**columns, **started.columns}
    assert_nobody_told(decide(state, event, counters={"power_cycling": 200}, **situation))


# Maintenance


def test_maintenance_boots_its_own_image() -> None:
    decision = decide("failed_pxe_booting", "please_start_maintenance", {"claim_id": 7}, **HELD)
    assert decision.path == ("start_maintenance", "pxe_power_cycling")
    assert decision.columns == {
        "operation_claim_id": 7,
        "next_image_id": MAINTENANCE,
        "next_boot_config": "{}",
        "pxe_config": "panda-maintenance",
        "last_pxe_config": "panda-maintenance",
    }
    assert decision.effects == (PowerCycle(),)


@pytest.mark.parametrize("reads", [FakeReads(pxe_configs={}), FakeReads(images={})])
def test_maintenance_fails_on_hardware_that_has_no_config_for_it(reads: FakeReads) -> None:
    decision = decide("ready", "please_start_maintenance", {"claim_id": 7}, reads=reads, **HELD)
    assert decision.path == ("start_maintenance", "pxe_power_cycling", "failed_pxe_booting")
    assert_told(decision, "failed-bad-device")


def test_maintenance_keeps_its_network_boot_and_forgets_the_image() -> None:
    """The first report of the live image had cleared the config; it is put back."""
    decision = decide(
        "mobile_init_started", "maint_mode", pxe_config=None, last_pxe_config="panda-maintenance", **HOLDS_AGENT_IMAGE
    )
    assert decision.path == ("maintenance_mode",)
    assert decision.columns["pxe_config"] == "panda-maintenance"
    assert decision.effects == (SyncBoot(),)
    assert decision.columns.items() >= {**UNKNOWN_IMAGE, **NO_NEXT_IMAGE}.items()
    assert decision.timeout is None


def test_maintenance_leaves_a_config_alone_that_is_still_there() -> None:
    decision = decide("mobile_init_started", "maint_mode", pxe_config="mine", last_pxe_config="panda-maintenance")
    assert decision.columns.get("pxe_config", "mine") == "mine"


def test_a_request_for_the_live_image_is_told_when_it_runs() -> None:
    assert_told(decide("mobile_init_started", "maint_mode", **WORKING_FOR_HOLDER), "complete")


def test_a_device_that_is_returned_in_maintenance_proves_itself_again() -> None:
    for event in ("released", TIMEOUT):
        decision = decide("maintenance_mode", event, operation_claim_id=7)
        assert decision.path == ("start_self_test", "pxe_power_cycling")
        assert decision.columns["operation_claim_id"] is None
        assert_nobody_told(decision)


@pytest.mark.parametrize("holder", [{"claim_id": None, "request_id": None}, {"claim_id": 8, "request_id": 80}])
def test_a_device_that_was_returned_on_its_way_into_maintenance_leaves_it_too(holder: dict[str, Any]) -> None:
    decision = decide("mobile_init_started", "maint_mode", operation_claim_id=7, **holder)
    assert decision.path == ("maintenance_mode",)
    assert decision.timeout == 0
    assert_nobody_told(decision)
    assert decide("maintenance_mode", TIMEOUT, operation_claim_id=7, **holder).path == (
        "start_self_test",
        "pxe_power_cycling",
    )


def test_a_device_whose_asker_still_has_it_stays_in_maintenance() -> None:
    decision = decide("mobile_init_started", "maint_mode", **WORKING_FOR_HOLDER)
    assert decision.path == ("maintenance_mode",)
    assert decision.timeout is None


@pytest.mark.parametrize("holder", [{}, HELD])
def test_a_device_that_an_operator_put_into_maintenance_stays_there(holder: dict[str, Any]) -> None:
    decision = decide("mobile_init_started", "maint_mode", operation_claim_id=None, **holder)
    assert decision.path == ("maintenance_mode",)
    assert decision.timeout is None


@pytest.mark.parametrize("columns", [{}, *NOT_THE_HOLDERS, WORKING_FOR_HOLDER])
def test_a_device_that_was_forced_into_maintenance_stays_there(columns: dict[str, Any]) -> None:
    decision = force("pxe_booting", "maintenance_mode", **columns)
    assert decision.path == ("maintenance_mode",)
    assert decision.timeout is None


# Going offline and coming back


@pytest.mark.parametrize("state", FAILED)
def test_a_device_that_does_not_come_online_is_locked_out_again(state: str) -> None:
    decision = enter(state, going_offline=True, **WORKING_FOR_HOLDER)
    assert decision.path == (state, "locked_out")
    assert not decision.columns["going_offline"]
    assert decision.timeout is None
    assert decision.logs
    assert_told(decision, "failed-bad-device")


def test_a_device_that_cannot_even_start_to_come_online_is_locked_out_in_one_step() -> None:
    decision = decide("new", TIMEOUT, reads=NO_SELF_TEST, going_offline=True, **NO_POWER)
    assert decision.path == ("start_self_test", "pc_power_cycling", "failed_power_cycling", "locked_out")


def test_a_device_that_came_online_stays_so() -> None:
    decision = decide("self_test_running", "self_test_ok", going_offline=True)
    assert decision.path == ("ready",)
    assert not decision.columns["going_offline"]
    assert decision.effects == (CheckReady(),)


@pytest.mark.parametrize("state", sorted(EXPECTED_EVENTS))
def test_a_person_leads_a_device_out_of_the_lock_into_any_state(state: str) -> None:
    row = context("locked_out", "forced", counters={"pxe_booting": 5}, **GETS_PLAIN_IMAGE)
    decision = MACHINE.force(row, state)
    assert decision.path[0] == state
    assert decision.counters == {}


# The way as a whole


def walk(events: list[str], *, start: str, args: Mapping[str, Any] | None = None, **columns: Any) -> list[str]:
    """The states that a device goes through, carrying columns and counters along as the database does."""
    state = start
    counters: Mapping[str, int] = {}
    path: list[str] = []
    for event in events:
        decision = decide(state, event, args, counters=counters, **columns)
        path += list(decision.path)
        state, counters = decision.target, decision.counters
        columns.update(decision.columns)
        columns["next_image_has_agent"] = columns.get("next_image_id") == ANDROID
        columns["image_has_agent"] = columns.get("image_id") == ANDROID
    return path


def test_an_image_with_an_agent_is_installed_step_by_step() -> None:
    assert walk(
        [
            "please_image",
            "power_cycle_ok",
            "mobile_init_started",
            "android_downloading",
            "android_extracting",
            "android_rebooting",
            "sut_verify_ok",
            "sut_sdcard_ok",
        ],
        start="ready",
        args={"image": "android", "boot_config": "{}"},
    ) == [
        "start_pxe_boot",
        "pxe_power_cycling",
        "pxe_booting",
        "mobile_init_started",
        "android_downloading",
        "android_extracting",
        "sut_verifying",
        "sut_sdcard_verifying",
        "operation_complete",
        "ready",
    ]


def test_an_image_without_an_agent_finishes_by_ping() -> None:
    path = walk(
        [
            "please_image",
            "power_cycle_ok",
            "mobile_init_started",
            "b2g_downloading",
            "b2g_extracting",
            "b2g_rebooting",
            "timeout",
            "timeout",
            "ping_ok",
        ],
        start="ready",
        args={"image": "b2g", "boot_config": "{}"},
    )
    assert path[-5:] == ["pc_rebooting", "pc_pinging", "pc_pinging", "operation_complete", "ready"]
    assert not any(state.startswith("sut_") for state in path)


def test_a_disk_image_has_states_of_its_own() -> None:
    assert walk(
        [
            "please_image",
            "power_cycle_ok",
            "mobile_init_started",
            "raw_downloading",
            "raw_writing",
            "raw_rebooting",
            "timeout",
            "ping_ok",
        ],
        start="ready",
        args={"image": "disk", "boot_config": "{}"},
    )[4:] == ["raw_downloading", "raw_writing", "raw_rebooting", "pc_pinging", "operation_complete", "ready"]


def test_a_reboot_prefers_the_agents_word() -> None:
    assert walk(
        ["please_power_cycle", "power_cycle_ok", "rebooted", "ping_ok", "sut_verify_ok", "sut_sdcard_ok"],
        start="ready",
        **HOLDS_AGENT_IMAGE,
    ) == [
        "pc_power_cycling",
        "pc_rebooting",
        "pc_pinging",
        "sut_verifying",
        "sut_sdcard_verifying",
        "operation_complete",
        "ready",
    ]


# For people who don't know the states


@pytest.mark.parametrize(
    ("state", "claimed", "expected"),
    [
        ("ready", False, "idle"),
        ("ready", True, "in use"),
        ("maintenance_mode", True, "in use"),
        ("maintenance_mode", False, "out of service"),
        ("locked_out", False, "out of service"),
        ("troubleshooting", True, "out of service"),
        ("new", False, "processing"),
        ("pxe_booting", True, "processing"),
        ("self_test_running", False, "processing"),
        *[(state, claimed, "failed") for state in FAILED for claimed in (True, False)],
    ],
)
def test_each_state_belongs_to_a_category(state: str, claimed: bool, expected: str) -> None:
    assert category(state, claimed) == expected
    assert expected in CATEGORIES


# Another server acts on the device from now on

RESTING = ("new", "unknown", "locked_out", "troubleshooting", "ready", "maintenance_mode", *FAILED)
BEGINS_ANEW: dict[str, tuple[str, ...]] = {
    "pc_power_cycling": ("pc_power_cycling",),
    "pc_rebooting": ("pc_rebooting",),
    "pc_sut_rebooting": ("pc_power_cycling",),
    "pc_pinging": ("pc_pinging",),
    "start_pxe_boot": ("pxe_power_cycling",),
    "start_self_test": ("pxe_power_cycling",),
    "start_maintenance": ("pxe_power_cycling",),
    "pxe_power_cycling": ("pxe_power_cycling",),
    "pxe_booting": ("pxe_power_cycling",),
    "mobile_init_started": ("pxe_power_cycling",),
    "android_downloading": ("pxe_power_cycling",),
    "android_extracting": ("pxe_power_cycling",),
    "b2g_downloading": ("pxe_power_cycling",),
    "b2g_extracting": ("pxe_power_cycling",),
    "raw_downloading": ("pxe_power_cycling",),
    "raw_writing": ("pxe_power_cycling",),
    "raw_rebooting": ("raw_rebooting",),
    "sut_verifying": ("sut_verifying",),
    "sut_verify_power_cycle": ("sut_verify_power_cycle",),
    "sut_sdcard_verifying": ("sut_sdcard_verifying",),
    "operation_complete": ("operation_complete", "ready"),
    "self_test_running": ("start_self_test", "pxe_power_cycling"),
}
HOSTED = ("phone_verifying", "job_starting", "job_waiting", "job_running", "job_stopping", "job_cleanup", "job_done")
"""States of devices that boot nothing of ours: test_hostedmachine.py."""
EFFECT_OF: dict[str, type[Effect]] = {
    "pc_power_cycling": PowerCycle,
    "pc_rebooting": AwaitReboot,
    "pc_pinging": Ping,
    "pxe_power_cycling": PowerCycle,
    "raw_rebooting": AwaitReboot,
    "sut_verifying": VerifyAgent,
    "sut_verify_power_cycle": PowerCycle,
    "sut_sdcard_verifying": CheckStorage,
}
"""What a state has done to the device as soon as it is entered."""


def test_each_state_says_what_becomes_of_it_when_another_server_takes_over() -> None:
    assert sorted([*RESTING, *BEGINS_ANEW, *HOSTED]) == sorted(MACHINE.states)


@pytest.mark.parametrize("state", [*RESTING, "a_state_of_long_ago"])
def test_a_device_at_rest_stays_as_it_is_under_another_server(state: str) -> None:
    """The files that it boots from are written, where that server has old ones."""
    assert MACHINE.stays(state, "taken_over")
    decision = decide(state, "taken_over", counters={"pxe_booting": 3}, **HELD)
    assert decision.path == ()
    assert decision.timeout is None
    assert decision.effects == (SyncBoot(),)
    assert (decision.columns, decision.counters) == ({}, {"pxe_booting": 3})
    assert_nobody_told(decision)


@pytest.mark.parametrize(("state", "path"), BEGINS_ANEW.items())
def test_what_was_going_on_begins_anew_under_another_server(state: str, path: tuple[str, ...]) -> None:
    assert not MACHINE.stays(state, "taken_over")
    decision = decide(state, "taken_over", **GETS_AGENT_IMAGE, **WORKING_FOR_HOLDER)
    assert decision.path == path
    assert decision.timeout == LIMITS[path[-1]][0]
    effect = EFFECT_OF.get(path[-1])
    assert effect is None or effect in map(type, decision.effects)
    assert SyncBoot() in decision.effects or PowerCycle() in decision.effects, "its boot files are written"
    assert {target for source, event, target in MACHINE.edges() if (source, event) == (state, "taken_over")} >= {
        path[0]
    }


@pytest.mark.parametrize("state", sorted(set(BEGINS_ANEW) - {"start_pxe_boot", "start_self_test", "start_maintenance"}))
def test_it_is_no_failure_that_another_server_took_over(state: str) -> None:
    """A device that had one try left has it still."""
    left = {step: (LIMITS[step][1] or 1) - 1 for step in ("pxe_booting", "pc_pinging", "sut_verifying")}
    decision = decide(state, "taken_over", counters=left, **GETS_PLAIN_IMAGE)
    assert not decision.target.startswith("failed_")
    if state not in ("operation_complete", "self_test_running"):
        assert decision.counters == left


def test_the_holder_hears_of_an_operation_that_ended_just_before_another_server_took_over() -> None:
    decision = decide("operation_complete", "taken_over", **WORKING_FOR_HOLDER, **GETS_PLAIN_IMAGE)
    assert decision.path == ("operation_complete", "ready")
    assert_told(decision, "complete")


def test_a_self_test_without_a_self_test_image_is_a_reboot_under_another_server_too() -> None:
    decision = decide("start_self_test", "taken_over", reads=NO_SELF_TEST, **HOLDS_PLAIN_IMAGE)
    assert decision.path == ("pc_power_cycling",)
