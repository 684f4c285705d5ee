# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Whatever happens to a device or a request, in whatever order: its row stays within the contract.

The models here are typed from the contract of states. They say where an event may lead, what is counted, and when the
time is over; they never ask the machines.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mozpool.bmm.interfaces import Agent, BackendContext, Boot, CommandResult, Power, Probe, Target
from mozpool.bmm.registry import Registry
from mozpool.bmm.service import BMM
from mozpool.clock import Deadline, SimClock
from mozpool.db import claims, devices
from mozpool.db.devices import Device
from mozpool.db.engine import Database
from mozpool.db.requests import Request
from mozpool.effects import Effects
from mozpool.errors import Conflict, HardwareError, Unprocessable
from mozpool.lifeguard.devicemachine import device_machine
from mozpool.lifeguard.operations import DeviceOperations
from mozpool.lifeguard.service import LifeGuard
from mozpool.lifeguard.store import DeviceStore
from mozpool.logbook import Logbook
from mozpool.pool.allocation import Matcher
from mozpool.pool.link import LinkError, Reply
from mozpool.pool.operations import RequestOperations
from mozpool.pool.requestmachine import request_machine
from mozpool.pool.service import MozPool, NewRequest
from mozpool.pool.store import RequestStore
from mozpool.statedriver import Driver, Event, Outcome
from mozpool.statemachine import Tuning
from tests.sim.property_support import (
    TIME_LIMIT,
    Server,
    Witness,
    Workers,
    assert_claims_agree,
    assert_history_leads_to,
    empty_database,
    entries,
    pass_time,
    run,
)
from tests.unit.pool_support import NOW, Rows

pytestmark = pytest.mark.timeout(TIME_LIMIT)

FEW_TRIES = {
    "pc_power_cycling": 3,
    "pxe_power_cycling": 3,
    "pc_pinging": 2,
    "pxe_booting": 2,
    "mobile_init_started": 1,
    "sut_verifying": 12,
    "contacting_lifeguard": 2,
    "pending": 3,
}
"""Numbers of tries that a short test can use up."""


# Devices

BASIC = {"please_self_test": "start_self_test", "please_start_maintenance": "start_maintenance"}
ALL = {**BASIC, "please_power_cycle": "pc_power_cycling", "please_image": "start_pxe_boot"}

LEADS: dict[str, dict[str, str]] = {
    "new": {**ALL, "timeout": "start_self_test"},
    "unknown": ALL,
    "locked_out": {},
    "troubleshooting": ALL,
    "ready": {**ALL, "failed": "start_self_test", "timeout": "ready"},
    "pc_power_cycling": {"power_cycle_ok": "pc_rebooting", "not_wanted": "ready"},
    "pc_rebooting": {"rebooted": "pc_pinging", "timeout": "pc_pinging"},
    "pc_sut_rebooting": {"timeout": "sut_verifying"},
    "pc_pinging": {"ping_ok": "operation_complete or sut_verifying"},
    "pxe_power_cycling": {"power_cycle_ok": "pxe_booting", "not_wanted": "ready"},
    "pxe_booting": {"mobile_init_started": "mobile_init_started"},
    "mobile_init_started": {
        "android_downloading": "android_downloading",
        "b2g_downloading": "b2g_downloading",
        "raw_downloading": "raw_downloading",
        "self_test_running": "self_test_running",
        "maint_mode": "maintenance_mode",
    },
    "android_downloading": {"android_extracting": "android_extracting"},
    "android_extracting": {"android_rebooting": "sut_verifying or pc_rebooting"},
    "b2g_downloading": {"b2g_extracting": "b2g_extracting"},
    "b2g_extracting": {"b2g_rebooting": "sut_verifying or pc_rebooting"},
    "raw_downloading": {"raw_writing": "raw_writing"},
    "raw_writing": {"raw_rebooting": "raw_rebooting"},
    "raw_rebooting": {"rebooted": "sut_verifying or pc_pinging", "timeout": "sut_verifying or pc_pinging"},
    "sut_verifying": {"sut_verify_ok": "sut_sdcard_verifying"},
    "sut_verify_power_cycle": {"power_cycle_ok": "sut_verifying"},
    "sut_sdcard_verifying": {"sut_sdcard_ok": "operation_complete"},
    "maintenance_mode": {**BASIC, "released": "start_self_test", "timeout": "start_self_test"},
    "self_test_running": {
        **BASIC,
        "self_test_ok": "ready",
        "failed_self_test": "failed_self_test",
        "timeout": "failed_self_test",
    },
}
NEED_A_PERSON = ("failed_power_cycling", "failed_pxe_booting", "failed_mobile_init_started", "failed_self_test")
HEAL = tuple(
    f"failed_{step}"
    for step in (
        "sut_verifying",
        "sut_sdcard_verifying",
        "android_downloading",
        "android_extracting",
        "b2g_downloading",
        "b2g_extracting",
        "raw_downloading",
        "raw_writing",
    )
)
LEADS.update(dict.fromkeys(NEED_A_PERSON, BASIC))
LEADS.update({state: {**BASIC, "timeout": "start_self_test"} for state in HEAL})


@dataclass(frozen=True)
class Step:
    """A step that may fail: so many failures are retried, the next one leads to ``failed``."""

    events: tuple[str, ...]
    tries: int
    again: str
    failed: str
    counter: str = ""


FAILED_CYCLE = ("power_cycle_failed", "timeout")
STEPS: dict[str, Step] = {
    "pc_power_cycling": Step(FAILED_CYCLE, 200, "pc_power_cycling", "failed_power_cycling", "power_cycling"),
    "pxe_power_cycling": Step(FAILED_CYCLE, 200, "pxe_power_cycling", "failed_power_cycling", "power_cycling"),
    "pc_pinging": Step(("timeout",), 12, "pc_pinging", "pc_power_cycling"),
    "pxe_booting": Step(("timeout",), 30, "pxe_power_cycling", "failed_pxe_booting"),
    "mobile_init_started": Step(("timeout",), 10, "pxe_power_cycling", "failed_mobile_init_started"),
    "android_downloading": Step(("timeout",), 3, "pxe_power_cycling", "failed_android_downloading"),
    "android_extracting": Step(("timeout",), 10, "pxe_power_cycling", "failed_android_extracting"),
    "b2g_downloading": Step(("timeout",), 3, "pxe_power_cycling", "failed_b2g_downloading"),
    "b2g_extracting": Step(("timeout",), 10, "pxe_power_cycling", "failed_b2g_extracting"),
    "raw_downloading": Step(("timeout",), 3, "pxe_power_cycling", "failed_raw_downloading"),
    "raw_writing": Step(("timeout",), 10, "pxe_power_cycling", "failed_raw_writing"),
    "sut_verifying": Step(("timeout",), 30, "sut_verifying", "failed_sut_verifying"),
    "sut_verify_power_cycle": Step(FAILED_CYCLE, 3, "sut_verify_power_cycle", "failed_sut_verifying"),
    "sut_sdcard_verifying": Step(
        ("sut_sdcard_failed", "timeout"), 2, "sut_sdcard_verifying", "failed_sut_sdcard_verifying"
    ),
}
LIMITS: dict[str, float] = {
    "new": 0,
    "ready": 600,
    "pc_power_cycling": 60,
    "pc_rebooting": 120,
    "pc_sut_rebooting": 10,
    "pc_pinging": 10,
    "pxe_power_cycling": 60,
    "pxe_booting": 180,
    "mobile_init_started": 10,
    "android_downloading": 180,
    "android_extracting": 600,
    "b2g_downloading": 180,
    "b2g_extracting": 300,
    "raw_downloading": 180,
    "raw_writing": 600,
    "raw_rebooting": 120,
    "sut_verifying": 45,
    "sut_verify_power_cycle": 60,
    "sut_sdcard_verifying": 200,
    "self_test_running": 3600,
    **dict.fromkeys(HEAL, 0),
}
FORGETS_ALL = ("start_self_test", "start_maintenance", "start_pxe_boot", "operation_complete", "maintenance_mode")
POWER_IS_CUT_IN = ("pc_power_cycling", "pxe_power_cycling", "sut_verify_power_cycle")
AGENT_REBOOTS_IN = ("pc_sut_rebooting", "pxe_power_cycling")

BOARD_EVENTS = sorted({event for leads in LEADS.values() for event in leads} - {"timeout", "released", *ALL})
RESULTS = ["power_cycle_ok", "power_cycle_failed", "not_wanted", "ping_ok", "sut_verify_ok", "sut_sdcard_ok"]
RESULTS += ["sut_sdcard_failed", "rebooted", "failed"]
FORCED_TO = ["ready"] * 8 + sorted(
    {*LEADS, "start_self_test", "start_maintenance", "start_pxe_boot", "operation_complete"}
)


@dataclass
class DeviceModel:
    """What the contract says of one device: its state, when its time is over, what has failed how often."""

    state: str
    has_power: bool
    boots_from_network: bool
    tries: Mapping[str, int]
    attempt: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    ends: datetime | None = None
    claim_id: int | None = None
    going_offline: bool = False
    forced_to: str | None = None

    def known(self) -> str:
        return self.state if self.state in LEADS else "unknown"

    def expects(self, event: str) -> bool:
        state = self.known()
        step = STEPS.get(state)
        counts_only = state == "pc_sut_rebooting" and event == "power_cycle_failed"
        return event in LEADS[state] or (step is not None and event in step.events) or counts_only

    def lands(self, where: str) -> set[str]:
        """The states in which a transition to ``where`` may end: some go on at once."""
        found: set[str] = set()
        for state in where.split(" or "):
            if state == "start_self_test":
                found |= self.lands("pxe_power_cycling" if self.boots_from_network else "pc_power_cycling")
            elif state in ("start_maintenance", "start_pxe_boot"):
                found |= self.lands("pxe_power_cycling")
            elif state == "operation_complete":
                found.add("ready")
            elif state == "pxe_power_cycling":
                found |= self.lands("failed_pxe_booting")
                if self.boots_from_network:
                    found.add("pxe_power_cycling")
                    found |= set() if self.has_power else self.lands("failed_power_cycling")
            elif state == "pc_power_cycling" and not self.has_power:
                found |= {"pc_sut_rebooting"} | self.lands("failed_power_cycling")
            elif state.startswith("failed_") and self.going_offline:
                found.add("locked_out")
            else:
                found.add(state)
        return found

    def _count(self, counter: str, tries: int) -> bool:
        """Count a failure; answer whether that was one too many."""
        self.failures[counter] = self.failures.get(counter, 0) + 1
        if self.failures[counter] > tries:
            del self.failures[counter]
            return True
        return False

    def _forget(self, *steps: str) -> None:
        for step in steps:
            self.failures.pop(step, None)

    def leads(self, event: str) -> set[str]:
        """Count what an expected event counts, and answer the states that it may lead to; none: it stays."""
        state = self.known()
        if event in ("forced", "online", "offline"):
            assert self.forced_to is not None
            self.failures.clear()
            return self.lands(self.forced_to)
        assert self.expects(event), f"{state} does not expect {event}"
        if state == "pc_sut_rebooting":
            if event == "power_cycle_failed":
                self.failures[state] = self.failures.get(state, 0) + 1
                return set()
            if state in self.failures:
                self._forget(state)
                gives_up = self._count("power_cycling", self.tries["pc_power_cycling"])
                return self.lands("failed_power_cycling" if gives_up else "pc_power_cycling")
        step = STEPS.get(state)
        if step is not None and event in step.events:
            counter = step.counter or state
            gives_up = self._count(counter, self.tries[state])
            if state == "pc_pinging" and gives_up:
                gives_up = self._count("power_cycling", self.tries["pc_power_cycling"])
                return self.lands("failed_power_cycling" if gives_up else "pc_power_cycling")
            if state == "sut_verifying" and not gives_up and self.failures[counter] % 10 == 0 and self.has_power:
                return {"sut_verify_power_cycle"}
            return self.lands(step.failed if gives_up else step.again)
        target = LEADS[state][event]
        if target in FORGETS_ALL or event in ("please_power_cycle", "self_test_ok"):
            self.failures.clear()
        elif event == "ping_ok":
            self.failures.clear() if target == "operation_complete" else self._forget("pc_pinging", "power_cycling")
        elif state == "pxe_power_cycling" and event == "power_cycle_ok":
            self._forget("power_cycling")
        elif event == "sut_verify_ok":
            self._forget("sut_verifying", "sut_verify_power_cycle")
        elif state in STEPS and state not in ("pc_power_cycling", "pxe_power_cycling"):
            self._forget(state)
        allowed = self.lands(target)
        if event == "please_image":
            allowed.add(self.state)  # refused: there is no PXE config for it
        return allowed

    def went(self, target: str, now: datetime) -> None:
        """A transition ended in ``target``."""
        if target in ("ready", "maintenance_mode"):
            # What was done is done; only a preparation that nobody wants any more forgets nothing.
            self.forced_to = None
        if target in ("ready", "locked_out"):
            self.going_offline = False
        self.state = target
        self.attempt += 1
        limit = LIMITS.get(target)
        self.ends = None if limit is None else now + timedelta(seconds=limit)


class Hardware(Power, Boot, Probe, Agent):
    """A board, its relay and its agent: they work, or fail, as the test says."""

    def __init__(self) -> None:
        self.works = True
        self.state = lambda: ""
        self.misdeeds: list[str] = []

    def _do(self, device: Target, what: str, allowed: Sequence[str] | None = None) -> None:
        state = self.state()
        if allowed is not None and state not in allowed:
            self.misdeeds.append(f"{what} in state {state}")
        if not self.works:
            raise HardwareError(device.name, what, "it is broken")

    def lane(self, device: Target) -> str:
        if device.relay_info is None:
            raise HardwareError(device.name, "power", "it has no relay")
        return "relay"

    def power_cycle(self, device: Target, deadline: Deadline) -> None:
        self._do(device, "power cycle", POWER_IS_CUT_IN)

    def power_off(self, device: Target, deadline: Deadline) -> None:
        raise NotImplementedError

    def power_on(self, device: Target, deadline: Deadline) -> None:
        raise NotImplementedError

    def is_on(self, device: Target, deadline: Deadline) -> bool | None:
        raise NotImplementedError

    def test(self, lane: str, deadline: Deadline) -> None:
        raise NotImplementedError

    def set_config(self, device: Target, config: str, deadline: Deadline) -> None:
        self._do(device, "write PXE config")

    def clear(self, device: Target, deadline: Deadline) -> None:
        self._do(device, "clear PXE config")

    def ping(self, device: Target, deadline: Deadline) -> bool:
        self._do(device, "ping")
        return True

    def verify(self, device: Target, deadline: Deadline) -> None:
        self._do(device, "verify")

    def check_storage(self, device: Target, deadline: Deadline) -> None:
        self._do(device, "check storage", ("sut_sdcard_verifying",))

    def reboot(self, device: Target, deadline: Deadline) -> None:
        self._do(device, "agent reboot", AGENT_REBOOTS_IN)

    def uptime(self, device: Target, deadline: Deadline) -> float | None:
        self._do(device, "uptime")
        return None

    def run(self, device: Target, command: Sequence[str], deadline: Deadline) -> CommandResult:
        raise NotImplementedError


@cache
def hardware() -> tuple[Hardware, Registry]:
    """The one board, which is as new at the begin of each example, and where BMM finds it."""
    board = Hardware()
    names = ("power", "proxr"), ("boot", "pxe"), ("probe", "fping"), ("agent", "sut")
    return board, Registry(BackendContext(SimClock(NOW), tftp_root=None), built=dict.fromkeys(names, board))


class Told:
    """Remembers what LifeGuard told requests."""

    def __init__(self) -> None:
        self.results: list[tuple[int, int, str]] = []

    def lifeguard_finished(self, request_id: int, claim_id: int, result: str, attempt: int) -> None:
        self.results.append((request_id, claim_id, result))

    def job_ended(self, request_id: int, claim_id: int, reason: str, attempt: int) -> None:
        raise AssertionError("this board runs no jobs")


class DeviceRules(RuleBasedStateMachine):
    """One device with its board, between its holders, LifeGuard, the board's reports and people."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = SimClock(NOW)
        self.database: Database = empty_database()
        self.rows = Rows(self.database)
        self.logbook = Logbook(self.database, self.clock)
        self.hardware, self.registry = hardware()
        self.hardware.misdeeds.clear()
        self.told = Told()
        self.version = 0
        self.holders: dict[int, int] = {}

    def teardown(self) -> None:
        self.database.dispose()

    @initialize(
        state=st.sampled_from(["new", "ready", "ready", "from_the_future", "troubleshooting"]),
        has_power=st.booleans(),
        boots_from_network=st.sampled_from([True, True, False]),
        holds=st.sampled_from([None, "b2g", "android"]),
        few_tries=st.booleans(),
        seed=st.integers(0, 99),
    )
    def begin(
        self, state: str, has_power: bool, boots_from_network: bool, holds: str | None, few_tries: bool, seed: int
    ) -> None:
        rows = self.rows
        has_agent = {"self-test": 0, "maintenance": 0, "android": 1}
        fits = [rows.panda] if boots_from_network else []
        ids = {"b2g": rows.image_id}
        ids.update((name, rows.image(name, on=fits)) for name in has_agent)
        self.database.run(lambda conn: conn.exec_driver_sql("UPDATE images SET has_sut_agent = (name = 'android')"))
        if not boots_from_network:
            self.database.run(lambda conn: conn.exec_driver_sql("DELETE FROM image_pxe_configs"))
        self.device_id = rows.device(
            state,
            relay_info="127.0.0.1:2101:bank1:relay1" if has_power else None,
            image_id=ids[holds] if holds else None,
            boot_config="{}" if holds else None,
        )
        self.tuning = (
            Tuning(tries={name: tries for name, tries in FEW_TRIES.items() if name in STEPS}) if few_tries else Tuning()
        )
        tries = {name: self.tuning.tries.get(name, step.tries) for name, step in STEPS.items()}
        self.model = DeviceModel(state, has_power, boots_from_network, tries)
        self.hardware.state = lambda: self.row().state
        self.seed = seed
        self.start()

    def start(self) -> None:
        """The process starts: all that it knows is in the database."""
        self.server = Server(self.clock)
        self.boards = Workers(self.clock)
        self.driver: Driver[Device] = Driver(
            device_machine(self.tuning),
            DeviceStore(self.rows.server_id),
            self.database,
            clock=self.clock,
            rng=random.Random(self.seed),
            timers=self.server.timers,
            quick=self.server.quick,
            logbook=self.logbook,
        )
        bmm = BMM(self.registry, self.database, self.clock, "10.0.0.1", "http://10.0.0.1")
        operations = DeviceOperations(bmm, self.told, self.database, self.clock)
        self.effects = Effects(self.driver, operations, self.boards, together=operations.power_cycles)
        self.witness = Witness(self.saw)
        self.driver.observers.append(self.witness)
        self.lifeguard = LifeGuard(self.driver)
        self.driver.scan(1e6)

    # What is seen

    def row(self) -> Device:
        return self.rows.get_device(self.device_id)

    def saw(self, outcome: Outcome[Device]) -> None:
        """A transition was committed: the model follows it, as far as it may."""
        assert outcome.row is not None and outcome.decision is not None and outcome.change is not None
        model, decision = self.model, outcome.decision
        assert (outcome.row.state, outcome.row.attempt) == (model.state, model.attempt), "decided on an old row"
        assert outcome.row.claim_id == model.claim_id
        if decision.event == "timeout":
            assert model.ends is None or outcome.change.now >= model.ends
        forced = decision.event in ("forced", "online", "offline")
        source = model.state
        if decision.event == "online":
            model.going_offline = True
        allowed = model.leads(decision.event)
        if not decision.path:
            assert not allowed or source in allowed
            return
        assert decision.target in allowed, f"{decision.event} led from {source} to {decision.target}, not to {allowed}"
        if decision.target in ("maintenance_mode",) or (
            decision.target == "ready" and (forced or source in ("pc_pinging", "sut_sdcard_verifying"))
        ):
            model.failures.clear()
        model.went(decision.target, outcome.change.now)
        if decision.target == "maintenance_mode" and self.row().state_timeout is not None:
            # Its holder gave it back while it was on the way here.
            assert self.row().operation_claim_id not in (None, model.claim_id)
            model.ends = outcome.change.now

    def unchanged_by(self, before: Device) -> None:
        assert self.row() == before

    # What happens

    @rule(event=st.sampled_from([*BOARD_EVENTS, "nonsense", ""]))
    def somebody_reports(self, event: str) -> None:
        """By the API: the board itself, or whoever knows its name."""
        before, expected = self.row(), self.model.expects(event)
        outcome = self.lifeguard.event(self.device_id, event)
        assert outcome.accepted is expected
        if not expected:
            self.unchanged_by(before)

    @rule()
    def the_board_reports_what_comes_next(self) -> None:
        """So that an installation gets to its end now and then."""
        events = sorted(set(LEADS[self.model.known()]) - {"timeout", "released", "not_wanted", "failed", *ALL})
        if events:
            self.somebody_reports(events[self.model.attempt % len(events)])

    @rule(times=st.integers(2, 9))
    def all_goes_well(self, times: int) -> None:
        """For some steps."""
        self.hardware.works = True
        for _ in range(times):
            attempt = self.model.attempt
            pass_time(self.clock, [self.server], 1)
            self.boards.do(4)
            self.server.quick.do_all()
            if self.model.attempt == attempt:
                self.the_board_reports_what_comes_next()

    @rule(
        event=st.sampled_from(sorted(ALL)),
        image=st.sampled_from(["b2g", "android", "maintenance", "nonexistent"]),
        whose=st.sampled_from(["operator", "holder", "earlier holder", "later holder"]),
        once=st.booleans(),
    )
    def somebody_asks(self, event: str, image: str, whose: str, once: bool) -> None:
        """An operator or a request has a "please"; one that has lost the device is refused."""
        before, model = self.row(), self.model
        holder = model.claim_id
        wrong = max(self.holders, default=0) + 1 if whose == "later holder" else min(self.holders, default=1)
        claim_id = {"operator": None, "holder": holder}.get(whose, wrong)
        expected = model.expects(event)
        if claim_id is not None:
            allowed = claim_id == holder
            asked_before = once and allowed and before.operation_claim_id == claim_id
            prepares = event in ("please_power_cycle", "please_image")
            expected = allowed and expected and not (prepares and model.state != "ready")
            if asked_before:
                args = {"image": image, "boot_config": "{}"}
                assert self.lifeguard.please(self.device_id, event, args, claim_id=claim_id, once=once).accepted
                self.unchanged_by(before)
                return
        args = {"image": image, "boot_config": "{}"}
        answer = self.lifeguard.please(self.device_id, event, args, claim_id=claim_id, once=once)
        assert answer.accepted is expected, answer
        if not expected:
            self.unchanged_by(before)

    @rule(event=st.sampled_from(RESULTS), age=st.integers(0, 3))
    def an_effect_brings_its_result(self, event: str, age: int) -> None:
        """Of this attempt, or of an earlier one, which changes nothing."""
        before = self.row()
        self.driver.deliver(self.device_id, Event(event), self.model.attempt - age)
        if age:
            self.unchanged_by(before)

    @rule(times=st.integers(1, 4), works=st.sampled_from([True, True, False]))
    def the_board_is_worked_on(self, times: int, works: bool) -> None:
        """Queued effects run; what they do fails when the board does not work."""
        self.hardware.works = works
        for _ in range(times):
            self.boards.do(1)
            self.server.quick.do_all()

    @rule(seconds=st.sampled_from([0, 1, 9, 45, 200]))
    def time_passes(self, seconds: float) -> None:
        pass_time(self.clock, [self.server], seconds)

    @rule(times=st.integers(1, 15))
    def time_is_over(self, times: int) -> None:
        """Several times in a row, while the board is worked on and does not answer."""
        self.hardware.works = False
        for _ in range(times):
            self.boards.do(5)
            if self.model.ends is None:
                break
            before, waits = self.model.attempt, self.effects.waits(self.device_id, self.model.attempt)
            deadline = self.row().state_timeout
            if deadline is None:
                break  # it was put into the table by other hands
            seconds = (deadline - self.clock.now()).total_seconds()
            self.driver.scan(30.0)  # a deadline that others have written is found so
            pass_time(self.clock, [self.server], max(0.0, seconds) + 0.001)
            assert waits or self.model.attempt > before

    @rule(to=st.sampled_from(FORCED_TO), right=st.sampled_from([True, True, True, False]))
    def a_person_forces_a_state(self, to: str, right: bool) -> None:
        before, known = self.row(), self.model.state in LEADS and self.model.state != "unknown"
        old = self.model.state if right else "never_heard_of"
        self.model.forced_to = to
        try:
            self.lifeguard.change_state(self.device_id, old, to)
        except Conflict:
            assert not right and known
            self.unchanged_by(before)
        else:
            assert right or not known

    @rule(status=st.sampled_from(["online", "offline"]))
    def a_person_sets_it(self, status: str) -> None:
        before = self.row()
        self.model.forced_to = "start_self_test" if status == "online" else "locked_out"
        used = before.claim_id is not None and not before.state.startswith(("locked_out", "failed_"))
        try:
            self.lifeguard.set_status(self.device_id, status)
        except Conflict:
            assert status == "online" and used and before.state != "ready"
            self.unchanged_by(before)
        else:
            if status == "online" and before.state == "ready":
                self.unchanged_by(before)
            else:
                assert status == "offline" or not used

    @precondition(lambda self: self.model.state == "ready" and self.model.claim_id is None)
    @rule(told=st.booleans())
    def it_is_lent(self, told: bool) -> None:
        """By any server: this one's memory is older then, unless it is told."""
        request_id = self.rows.request(at=self.clock.now())
        row, now = self.row(), self.clock.now()
        self.model.claim_id = self.database.run(
            lambda conn: claims.take(conn, request_id=request_id, device_id=row.id, device_version=row.version, now=now)
        )
        self.holders[self.model.claim_id] = request_id
        if told:
            self.driver.forget(self.device_id)

    @precondition(lambda self: self.model.claim_id is not None)
    @rule(told=st.booleans(), verify=st.booleans())
    def it_is_given_back(self, told: bool, verify: bool) -> None:
        claim_id, now = self.model.claim_id, self.clock.now()
        assert claim_id is not None
        self.database.run(
            lambda conn: claims.release(
                conn,
                claim_id=claim_id,
                device_id=self.device_id,
                ready_at=None,
                now=now,
                reason="",
                shuffle=1,
                verify=verify,
            )
        )
        self.model.claim_id = None
        if self.model.state == "maintenance_mode" or (verify and self.model.state == "ready"):
            self.model.ends = now
        if told:
            self.lifeguard.released(self.device_id)
            self.server.quick.do_all()

    @rule()
    def somebody_writes_something_else(self) -> None:
        """The row's version is not the remembered one any more."""
        comment = f"seen at {self.clock.now()}"
        self.database.run(lambda conn: devices.set_attributes(conn, self.device_id, comments=comment))

    @rule()
    def the_server_starts_anew(self) -> None:
        self.start()

    @rule()
    def the_server_looks_for_what_is_due(self) -> None:
        self.driver.scan(30.0)

    # What is always so

    @invariant()
    def the_row_is_as_the_model_has_it(self) -> None:
        if not hasattr(self, "model"):
            return
        self.witness.speak()
        row, model, now = self.row(), self.model, self.clock.now()
        assert (row.state, row.attempt, row.claim_id) == (model.state, model.attempt, model.claim_id)
        assert row.state in LEADS or row.attempt == 0
        assert row.going_offline == model.going_offline
        assert dict(row.state_counters) == model.failures
        for name, step in STEPS.items():
            assert model.failures.get(step.counter or name, 0) <= model.tries[name]
        assert row.version >= self.version
        self.version = row.version
        limit = LIMITS.get(row.state)
        if row.attempt:
            if model.ends is None:
                assert row.state_timeout is None
            else:
                # The start of a late effect moves it, never further than the limit.
                assert row.state_timeout is not None
                assert model.ends <= row.state_timeout <= max(model.ends, now + timedelta(seconds=limit or 0))
                model.ends = row.state_timeout
        remembered = self.driver.remembered(self.device_id)
        if remembered is not None:
            assert remembered.version <= row.version
            assert remembered.version < row.version or remembered == row
        assert_history_leads_to(entries(self.database, "device", self.device_id), row.state)
        assert not self.hardware.misdeeds
        assert all(self.holders[claim_id] == request_id for request_id, claim_id, _ in self.told.results)
        assert_claims_agree(self.database)


def test_a_device_stays_within_its_contract_whatever_happens() -> None:
    run(DeviceRules, examples=25, steps=40)


# Requests

FINDING = "finding_device"
OPEN = ("new", FINDING, "contact_lifeguard", "contacting_lifeguard", "pending", "ready")
ENDED = ("closed", "failed_device_not_found", "failed_device_busy", "failed_bad_device", "failed_bad_image")
HOLDING = ("contact_lifeguard", "contacting_lifeguard", "pending", "ready")
REQUEST_LIMITS = {FINDING: 10.0, "contact_lifeguard": 0.0, "contacting_lifeguard": 30.0, "pending": 60.0}
REQUEST_EVENTS = {
    "new": {"find_device"},
    FINDING: {"device_found", "do_not_wait", "timeout"},
    "contact_lifeguard": {"timeout"},
    "contacting_lifeguard": {"lifeguard_contacted", "lifeguard_finished", "device_left", "timeout"},
    "pending": {"lifeguard_finished", "timeout"},
    "ready": set(),
}
IMAGING_RESULTS = ("complete", "failed-bad-image", "failed-bad-device")


@dataclass
class RequestModel:
    """What the contract says of one request."""

    state: str
    named: str | None
    wait: int
    tries: Mapping[str, int]
    expires: datetime
    attempt: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    ends: datetime | None = None
    claim_id: int | None = None

    def expects(self, event: str) -> bool:
        return self.state in OPEN and (event in ("close", "expire", "revoke") or event in REQUEST_EVENTS[self.state])

    def may_look_for_a_device(self) -> int:
        """So many time limits fit into the wait."""
        if self.named and self.wait == 0:
            return 2
        return self.tries[FINDING] if self.wait == 600 else max(1, math.ceil(self.wait / 10))

    def after_result(self, result: str) -> str:
        if result == "complete":
            return "ready"
        if result == "failed-bad-image":
            self.failures["bad_image"] = self.failures.get("bad_image", 0) + 1
            return "failed_bad_image" if self.failures["bad_image"] >= 2 else FINDING
        return "failed_bad_device" if self.named else FINDING

    def leads(self, event: str, args: Mapping[str, Any], result: str | None, device_left: bool) -> str:
        """Count what the event counts, and answer the state that it leads to."""
        assert self.expects(event), f"{self.state} does not expect {event}"
        state = self.state
        if event in ("close", "expire", "revoke"):
            return "closed"
        if state == "new":
            return FINDING
        if state == FINDING and event == "device_found":
            self.failures.pop(FINDING, None)
            return "contact_lifeguard"
        if event == "do_not_wait":
            return "closed" if self.named else "failed_device_not_found"
        if event == "lifeguard_finished":
            right = args.get("claim_id") in (None, self.claim_id) and args.get("imaging_result") in IMAGING_RESULTS
            return self.after_result(args["imaging_result"]) if right else state
        if event == "device_left":
            return FINDING
        if event == "lifeguard_contacted":
            self.failures.pop(state, None)
            return self.after_result(result) if result else "pending"
        if state == "contact_lifeguard":
            return FINDING if device_left else "contacting_lifeguard"
        self.failures[state] = self.failures.get(state, 0) + 1
        if state == FINDING:
            if self.failures[state] < self.may_look_for_a_device():
                return FINDING
            return "failed_device_busy" if self.named else "failed_device_not_found"
        enough = self.failures[state] >= self.tries[state]
        if state == "contacting_lifeguard":
            if enough:
                return "failed_device_not_found"
            return FINDING if device_left else state
        if enough and not self.named and not result:
            return FINDING
        return self.after_result(result) if result else "pending"


class Link:
    """The way to LifeGuard, which may be interrupted."""

    def __init__(self) -> None:
        self.lifeguard: LifeGuard
        self.works = True

    def please(
        self, server: str, device_id: int, device: str, event: str, args: Mapping[str, Any], claim_id: int
    ) -> Reply:
        if not self.works:
            raise LinkError("interrupted")
        answer = self.lifeguard.please(device_id, event, args, claim_id=claim_id, once=True)
        return Reply(answer.accepted, answer.reason)

    def released(self, server: str, device_id: int, device: str, claim_id: int) -> None:
        if not self.works:
            raise LinkError("interrupted")
        self.lifeguard.released(device_id)


class RequestRules(RuleBasedStateMachine):
    """One request between its client, the queue, LifeGuard, and devices that come and go."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = SimClock(NOW)
        self.database = empty_database()
        self.rows = Rows(self.database)
        self.logbook = Logbook(self.database, self.clock)
        self.request_id: int | None = None
        self.version = 0
        self.claimed: list[int] = []

    def teardown(self) -> None:
        self.database.dispose()

    @initialize(
        free=st.sampled_from([2, 1, 0]),
        named=st.sampled_from([False, False, True]),
        few_tries=st.booleans(),
        seed=st.integers(0, 99),
    )
    def begin(self, free: int, named: bool, few_tries: bool, seed: int) -> None:
        self.devices = [self.rows.device("ready" if number < free else "pc_pinging") for number in range(2)]
        self.tuning = (
            Tuning(tries={name: tries for name, tries in FEW_TRIES.items() if name in REQUEST_LIMITS})
            if few_tries
            else Tuning()
        )
        self.tries = {FINDING: 60, "contacting_lifeguard": 5, "pending": 20, **self.tuning.tries}
        self.seed = seed
        self.link = Link()
        self.start()
        self.a_client_makes_it(named, 600, 3600)

    @precondition(lambda self: self.model.state in ENDED)
    @rule(
        named=st.sampled_from([False, False, True]),
        wait=st.sampled_from([0, 5, 25, 600]),
        duration=st.sampled_from([20, 3600, 36000]),
    )
    def a_client_makes_it(self, named: bool, wait: int, duration: int) -> None:
        """Another one when the last one has ended; that stays as it is."""
        name = self.rows.get_device(self.devices[0]).name if named else None
        now = self.clock.now()
        ends = now + timedelta(seconds=min(10, wait or 10))
        self.model = RequestModel(FINDING, name, wait, self.tries, now + timedelta(seconds=duration), ends=ends)
        self.version = 0
        made = self.mozpool.create(NewRequest(name or "any", "me@example.com", duration, "b2g", wait=wait))
        self.request_id = made.id
        self.server.quick.do_all()

    def start(self) -> None:
        """The process starts: all that it knows is in the database."""
        self.server = Server(self.clock)
        self.calls = Workers(self.clock)
        common: dict[str, Any] = {
            "clock": self.clock,
            "rng": random.Random(self.seed),
            "timers": self.server.timers,
            "quick": self.server.quick,
            "logbook": self.logbook,
        }
        server_id = self.rows.server_id
        self.driver = Driver(request_machine(self.tuning), RequestStore(server_id), self.database, **common)
        self.link.lifeguard = LifeGuard(Driver(device_machine(), DeviceStore(server_id), self.database, **common))
        self.effects = Effects(self.driver, RequestOperations(self.link), self.calls)
        self.witness = Witness(self.saw)
        self.driver.observers.append(self.witness)
        self.matcher = Matcher(self.driver, self.database, random.Random(self.seed), self.server.quick)
        self.mozpool = MozPool(
            self.driver,
            self.matcher,
            self.database,
            clock=self.clock,
            rng=random.Random(self.seed),
            server_id=server_id,
        )
        self.driver.scan(1e6)

    # What is seen

    def row(self) -> Request:
        assert self.request_id is not None
        return self.rows.get_request(self.request_id)

    def named_device_failed(self) -> bool:
        return self.model.named is not None and self.rows.get_device(self.devices[0]).state.startswith("failed_")

    def saw(self, outcome: Outcome[Request]) -> None:
        """A transition was committed: the model follows it, as far as it may."""
        assert outcome.row is not None and outcome.decision is not None and outcome.change is not None
        model, decision, before = self.model, outcome.decision, outcome.row
        if self.request_id is not None and self.model.state in ENDED:
            assert before.id > self.request_id, "an ended request went on"
        assert (before.state, before.attempt) == (model.state, model.attempt), "decided on an old row"
        assert before.claim_id == model.claim_id
        now = outcome.change.now
        if decision.event == "timeout":
            assert model.ends is None or now >= model.ends
        if decision.event == "expire":
            assert now >= model.expires
        device = None if before.device_id is None else self.rows.get_device(before.device_id)
        left = device is not None and device.state != "ready" and device.operation_claim_id != before.claim_id
        state = model.state
        # The result is kept with the claim, which is over when that was given up.
        target = model.leads(decision.event, decision.args, before.imaging_result, left)
        if not decision.path:
            assert target == state
            return
        if state == FINDING and target in (FINDING, "closed", "failed_device_not_found", "failed_device_busy"):
            if self.named_device_failed() and decision.event in ("timeout", "do_not_wait"):
                target = "failed_bad_device"
        elif target == FINDING and self.named_device_failed():
            target = "failed_bad_device"
        if state == "contact_lifeguard" and left and decision.target == "contacting_lifeguard":
            # Right after the claim nobody looks at the device again; LifeGuard will refuse it.
            target = decision.target
        assert decision.target == target, f"{decision.event} led from {state} to {decision.target}, not to {target}"
        model.state, model.attempt = target, model.attempt + 1
        if target == "ready":
            model.failures.clear()
        row = self.rows.get_request(before.id)
        if target not in HOLDING:
            if model.claim_id is not None:
                for counter in ("pending", "contacting_lifeguard"):
                    model.failures.pop(counter, None)
            model.claim_id = None
        elif model.claim_id is None:
            model.claim_id = row.claim_id
            assert model.claim_id is not None and model.claim_id not in self.claimed
            self.claimed.append(model.claim_id)
        limit = REQUEST_LIMITS.get(target)
        if target == FINDING:
            # The last look comes when the wait is over.
            left_to_wait = model.wait - 10 * model.failures.get(FINDING, 0)
            limit = min(10, left_to_wait) if left_to_wait > 0 else 10
        model.ends = None if limit is None else now + timedelta(seconds=limit)

    # What happens

    @rule(
        event=st.sampled_from(
            [
                "lifeguard_finished",
                "lifeguard_finished",
                "find_device",
                "nonsense",
                "lifeguard_contacted",
                "device_left",
            ]
        ),
        result=st.sampled_from([*IMAGING_RESULTS, "nonsense", None]),
        whose=st.sampled_from(["this", "another", "nobody's"]),
    )
    def somebody_reports(self, event: str, result: str | None, whose: str) -> None:
        """By the API or from LifeGuard; what is meant for another claim changes nothing."""
        before, model = self.row(), self.model
        args: dict[str, Any] = {"imaging_result": result}
        if whose != "nobody's":
            args["claim_id"] = model.claim_id if whose == "this" else (model.claim_id or 0) + 17
        expected = model.expects(event)
        assert self.mozpool.event(before.id, event, args).accepted is expected
        wrong = event == "lifeguard_finished" and (whose == "another" or result not in IMAGING_RESULTS)
        if not expected or (wrong and before.claim_id is not None):
            assert self.row() == before

    @precondition(lambda self: self.model.state in ("contacting_lifeguard", "pending"))
    @rule(result=st.sampled_from(IMAGING_RESULTS), told=st.booleans(), device_is=st.sampled_from(["ready", "failed_x"]))
    def lifeguard_is_done(self, result: str, told: bool, device_is: str) -> None:
        """The result is stored with the claim; the message may get lost."""
        claim_id, device_id = self.model.claim_id, self.row().device_id
        assert claim_id is not None and device_id is not None
        self.database.run(lambda conn: claims.set_result(conn, claim_id, result))
        self.database.run(lambda conn: devices.set_attributes(conn, device_id, state=device_is))
        self.driver.scan(30.0)
        if told:
            self.somebody_reports("lifeguard_finished", result, "this")

    @rule(
        event=st.sampled_from(["lifeguard_contacted", "device_left", "lifeguard_finished", "timeout"]),
        age=st.integers(1, 3),
    )
    def a_result_comes_too_late(self, event: str, age: int) -> None:
        before = self.row()
        self.driver.deliver(before.id, Event(event, {"imaging_result": "complete"}), self.model.attempt - age)
        assert self.row() == before

    @rule(times=st.integers(1, 3), works=st.sampled_from([True, True, False]))
    def calls_are_made(self, times: int, works: bool) -> None:
        self.link.works = works
        self.calls.do(times)
        self.server.quick.do_all()

    @rule(times=st.integers(1, 4))
    def all_goes_well(self, times: int) -> None:
        """For some steps; a device that nobody has is ready."""
        self.link.works = True
        if self.model.state in ENDED:
            self.a_client_makes_it(False, 600, 3600)
        for device_id in self.devices:
            if self.rows.get_device(device_id).claim_id is None:
                self.database.run(lambda conn, key=device_id: devices.set_attributes(conn, key, state="ready"))  # type: ignore[misc]
        self.matcher.match()
        for _ in range(times):
            pass_time(self.clock, [self.server], 1)
            self.calls.do(4)
            self.server.quick.do_all()

    @rule(seconds=st.sampled_from([0, 1, 10, 35, 300]))
    def time_passes(self, seconds: float) -> None:
        pass_time(self.clock, [self.server], seconds)

    @rule(times=st.integers(1, 8))
    def time_is_over(self, times: int) -> None:
        """Several times in a row, while LifeGuard cannot be reached."""
        self.link.works = False
        for _ in range(times):
            self.calls.do(3)
            if self.model.ends is None:
                break
            before, waits = self.model.attempt, self.effects.waits(self.row().id, self.model.attempt)
            deadline = self.row().state_timeout
            assert deadline is not None
            seconds = (min(deadline, self.model.expires) - self.clock.now()).total_seconds()
            pass_time(self.clock, [self.server], max(0.0, seconds) + 0.001)
            assert waits or self.model.attempt > before

    @rule()
    def the_queue_is_matched(self) -> None:
        self.matcher.match()

    @rule(
        which=st.integers(0, 1),
        state=st.sampled_from(["ready", "ready", "pc_pinging", "failed_self_test", "locked_out"]),
    )
    def a_device_changes(self, which: int, state: str) -> None:
        device_id = self.devices[which]
        self.database.run(lambda conn: devices.set_attributes(conn, device_id, state=state))

    @rule(which=st.integers(0, 1))
    def somebody_else_takes_a_device(self, which: int) -> None:
        device = self.rows.get_device(self.devices[which])
        if device.state != "ready" or device.claim_id is not None:
            return
        request_id, now = self.rows.request(at=NOW, state="ready", state_timeout=None), self.clock.now()
        self.database.run(
            lambda conn: claims.take(
                conn, request_id=request_id, device_id=device.id, device_version=device.version, now=now
            )
        )

    @rule(duration=st.sampled_from([1, 100, 5000]))
    def its_client_renews_it(self, duration: int) -> None:
        before = self.row()
        if self.model.state in OPEN:
            self.model.expires = self.clock.now() + timedelta(seconds=duration)
            self.mozpool.renew(before.id, duration)
        else:
            with pytest.raises(Unprocessable):
                self.mozpool.renew(before.id, duration)
            assert self.row() == before

    @rule(really=st.sampled_from([False, False, True]))
    def its_client_gives_it_back(self, really: bool) -> None:
        before = self.row()
        if before.is_open and not really:
            return
        self.mozpool.give_back(before.id)
        assert self.row().state == ("closed" if before.is_open else before.state)

    @rule()
    def the_server_starts_anew(self) -> None:
        self.start()

    @rule()
    def the_server_looks_for_what_is_due(self) -> None:
        self.driver.scan(30.0)

    # What is always so

    @invariant()
    def the_row_is_as_the_model_has_it(self) -> None:
        if self.request_id is None:
            return
        self.witness.speak()
        row, model, now = self.row(), self.model, self.clock.now()
        assert (row.state, row.attempt, row.claim_id) == (model.state, model.attempt, model.claim_id)
        assert row.state in OPEN or row.state in ENDED
        assert (row.claim_id is not None) == (row.state in HOLDING)
        assert dict(row.state_counters) == model.failures
        assert model.failures.get(FINDING, 0) <= model.may_look_for_a_device()
        assert model.failures.get("contacting_lifeguard", 0) <= model.tries["contacting_lifeguard"]
        assert model.named or model.failures.get("pending", 0) <= model.tries["pending"]
        assert model.failures.get("bad_image", 0) <= 2
        assert row.version >= self.version
        self.version = row.version
        if model.state in OPEN:
            assert row.expires == model.expires
        limit = REQUEST_LIMITS.get(row.state)
        assert (row.state_timeout is None) == (limit is None)
        if row.state_timeout is not None and model.ends is not None and limit is not None:
            # The start of a late call moves it, never further than the limit.
            assert model.ends <= row.state_timeout <= max(model.ends, now + timedelta(seconds=limit))
            model.ends = row.state_timeout
        remembered = self.driver.remembered(row.id)
        if remembered is not None:
            assert remembered.version <= row.version
        assert_history_leads_to(entries(self.database, "request", row.id), row.state)
        assert_claims_agree(self.database)


def test_a_request_stays_within_its_contract_whatever_happens() -> None:
    run(RequestRules, examples=30, steps=30)
