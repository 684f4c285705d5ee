# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Two imaging servers share a database and its queue: who gets a device, who waits, and what is said about it."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mozpool.clock import SimClock
from mozpool.db import devices
from mozpool.db.requests import Request
from mozpool.logbook import Logbook
from mozpool.pool.allocation import Matcher
from mozpool.pool.requestmachine import request_machine
from mozpool.pool.service import MozPool, NewRequest
from mozpool.pool.store import RequestStore
from mozpool.statedriver import Driver, Outcome
from tests.sim.property_support import TIME_LIMIT, Server, assert_claims_agree, empty_database, pass_time, run
from tests.unit.pool_support import NOW, Rows

pytestmark = pytest.mark.timeout(TIME_LIMIT)

ENVIRONMENTS = ("production", "staging")
POOLS = ("b2g", "mobile")
IMAGES = ("b2g", "reusable", "tegra-only", "nobody-knows")
STEP_OF_PRIORITY = 60.0
"""Seconds of waiting that weigh as much as one step of priority."""

CROWDED = 6
"""When so many requests wait, no others are made."""

SAID = {
    "ready": "just become free",
    "pc_pinging": "being prepared or tested",
    "failed_self_test": "failed",
    "locked_out": "out of service",
    "maintenance_mode": "out of service",
}
"""What is said of devices in these states when nobody has them."""


@dataclass
class Board:
    """A device as the model has it."""

    id: int
    name: str
    environment: str
    hardware: str
    labels: Mapping[str, str]
    image: str | None
    state: str


@dataclass
class Wish:
    """A request as the model has it."""

    id: int
    server: int
    device: str
    environment: str
    hardware: str | None
    labels: Mapping[str, str]
    image: str
    priority: int
    created: datetime
    waits_until: datetime
    wait: int
    board: Board | None = None

    @property
    def place(self) -> tuple[float, int]:
        return self.created.timestamp() - self.priority * STEP_OF_PRIORITY, self.id

    @property
    def kind(self) -> tuple[Any, ...]:
        """Equal for requests that the same devices can serve."""
        labels = tuple(sorted(self.labels.items()))
        return self.device, self.environment, self.hardware, labels, self.image

    def fits(self, board: Board) -> bool:
        """Whether it could be served by this device."""
        if self.device not in ("any", board.name) or self.environment not in ("any", board.environment):
            return False
        if self.hardware not in (None, board.hardware):
            return False
        if any(board.labels.get(name) != value for name, value in self.labels.items()):
            return False
        runs_on = {"b2g": "panda", "reusable": "panda", "tegra-only": "tegra"}.get(self.image)
        installable = runs_on in (None, board.hardware) or board.image == self.image
        return self.device != "any" or installable


class OneServer(Server):
    """An imaging server's side of requests; something may be made to happen right before its next claim."""

    def __init__(self, number: int, rows: Rows, clock: SimClock, seed: int) -> None:
        super().__init__(clock)
        self.meddle: Callable[[int], None] | None = None
        self.driver = Interrupted(
            request_machine(),
            RequestStore(number),
            rows.database,
            clock=clock,
            rng=random.Random(seed),
            timers=self.timers,
            quick=self.quick,
            logbook=Logbook(rows.database, clock),
        )
        self.driver.server = self
        self.matcher = Matcher(self.driver, rows.database, random.Random(seed), self.quick)
        self.mozpool = MozPool(
            self.driver,
            self.matcher,
            rows.database,
            clock=clock,
            rng=random.Random(seed),
            server_id=number,
            priority_interval=STEP_OF_PRIORITY,
        )


class Interrupted(Driver[Request]):
    """A driver that lets others come in between the plan and the claim."""

    server: OneServer

    def handle(self, row_id: int, event: str, args: Mapping[str, Any] | None = None, **more: Any) -> Outcome[Request]:
        meddle = self.server.meddle
        if event == "device_found" and meddle is not None and args is not None:
            self.server.meddle = None
            meddle(args["device"].id)
        return super().handle(row_id, event, args, **more)


some_labels = st.sampled_from([{}, {}, {"pool": "b2g"}, {"pool": "mobile"}, {"pool": "b2g", "rack": "1"}])


class AllocationRules(RuleBasedStateMachine):
    """Clients of two servers, and devices that come and go."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = SimClock(NOW)
        self.database = empty_database()
        self.rows = Rows(self.database)
        self.boards: list[Board] = []
        self.wishes: dict[int, Wish] = {}
        self.ended: dict[int, tuple[str, ...]] = {}

    def teardown(self) -> None:
        self.database.dispose()

    @initialize(
        seed=st.integers(0, 99),
        kinds=st.lists(
            st.tuples(
                st.sampled_from(ENVIRONMENTS),
                st.sampled_from(["panda", "panda", "tegra"]),
                some_labels,
                st.sampled_from([None, "reusable", "tegra-only"]),
                st.sampled_from(["ready", "ready", "ready", *SAID]),
            ),
            min_size=1,
            max_size=5,
        ),
    )
    def begin(self, seed: int, kinds: list[tuple[str, str, dict[str, str], str | None, str]]) -> None:
        rows = self.rows
        other = rows.server("server-2.example.com")
        hardware = {"panda": rows.panda, "tegra": rows.hardware("tegra", "250")}
        images = {
            "b2g": rows.image_id,
            "reusable": rows.image("reusable", on=[rows.panda], can_reuse=True),
            "tegra-only": rows.image("tegra-only", on=[hardware["tegra"]]),
            "nobody-knows": rows.image("nobody-knows"),
        }
        for environment, kind, labels, image, state in kinds:
            device_id = rows.device(
                state,
                environment=environment,
                hardware_type_id=hardware[kind],
                labels=labels,
                image_id=images.get(image or ""),
                boot_config="{}",
                imaging_server_id=other if len(self.boards) % 2 else rows.server_id,
            )
            name = rows.get_device(device_id).name
            self.boards.append(Board(device_id, name, environment, kind, labels, image, state))
        self.servers = [OneServer(number, rows, self.clock, seed + number) for number in (rows.server_id, other)]

    # The model

    def holder(self, board: Board) -> Wish | None:
        return next((wish for wish in self.wishes.values() if wish.board is board), None)

    def free(self) -> list[Board]:
        return [board for board in self.boards if board.state == "ready" and self.holder(board) is None]

    def waiting(self) -> list[Wish]:
        """In the order of the queue."""
        return sorted((wish for wish in self.wishes.values() if wish.board is None), key=lambda wish: wish.place)

    def end(self, wish: Wish, *states: str) -> None:
        del self.wishes[wish.id]
        self.ended[wish.id] = states

    def ends_in_vain(self, wish: Wish) -> bool:
        """Whether the one device that is asked for has failed: the request ends when somebody looks."""
        return any(board.name == wish.device and board.state.startswith("failed_") for board in self.boards)

    def learn(self, *, may_end: bool = False) -> None:
        """Follow what the servers have done: who has which device now, and whether that is as it should be."""
        free, waiting = self.free(), self.waiting()
        now = self.clock.now()
        for wish in waiting:
            row = self.rows.get_request(wish.id)
            if row.device_id is not None:
                wish.board = next(board for board in free if board.id == row.device_id)
                free.remove(wish.board)
                assert wish.fits(wish.board), f"{wish} got a device that does not fit"
            elif row.state != "finding_device":
                assert may_end and (now >= wish.waits_until or self.ends_in_vain(wish)), f"{wish} gave up: {row.state}"
                self.end(wish, row.state)
        for wish in [wish for wish in waiting if wish.id in self.wishes]:
            if wish.board is None:
                assert not may_end or now < wish.waits_until + timedelta(milliseconds=1), f"{wish} waits too long"
                assert not [board for board in free if wish.fits(board)], f"{wish} waits for nothing"
                for other in waiting:
                    if other.board is not None and other.place > wish.place:
                        assert not wish.fits(other.board), f"{other} overtook {wish}"

    def settle(self, server: int) -> None:
        """The queue is matched, by one of the servers; whoever got a device has it prepared at once."""
        self.servers[server].matcher.match()
        for one in self.servers:
            one.quick.do_all()
        self.learn()
        for wish in self.wishes.values():
            if wish.board is not None and self.rows.get_request(wish.id).state != "ready":
                self.prepare(wish, "complete")

    def prepare(self, wish: Wish, result: str) -> None:
        driver = self.servers[wish.server].driver
        row = self.rows.get_request(wish.id)
        if row.state == "contact_lifeguard":
            assert driver.handle(wish.id, "timeout").state == "contacting_lifeguard"
        args = {"imaging_result": result, "claim_id": row.claim_id}
        assert driver.handle(wish.id, "lifeguard_finished", args).status == "moved"

    # What happens

    @precondition(lambda self: len(self.waiting()) < CROWDED)
    @rule(
        server=st.integers(0, 1),
        device=st.sampled_from(["any", "any", "any", 0, 1]),
        environment=st.sampled_from(["any", "any", *ENVIRONMENTS, "nowhere"]),
        hardware=st.sampled_from([None, None, "panda", "tegra"]),
        labels=some_labels,
        image=st.sampled_from([*IMAGES, "b2g", "b2g"]),
        priority=st.integers(-2, 2),
        wait=st.sampled_from([600, 600, 600, 25, 0]),
    )
    def a_client_asks(
        self,
        server: int,
        device: str | int,
        environment: str,
        hardware: str | None,
        labels: dict[str, str],
        image: str,
        priority: int,
        wait: int,
    ) -> None:
        """It is served before it has its answer, or waits, or ends when it may not wait."""
        now = self.clock.now()
        name = device if isinstance(device, str) else self.boards[device % len(self.boards)].name
        new = NewRequest(
            name,
            f"client-{len(self.ended) + len(self.wishes)}@example.com",
            36000,
            image,
            environment=environment,
            wait=wait,
            priority=priority,
            hardware_type=hardware,
            labels=labels,
        )
        made = self.servers[server].mozpool.create(new)
        wish = Wish(
            made.id,
            server,
            name,
            environment,
            hardware,
            labels,
            image,
            priority,
            now,
            now + timedelta(seconds=wait),
            wait,
        )
        self.wishes[wish.id] = wish
        self.learn(may_end=True)
        if wish.id in self.wishes:
            assert wish.board is not None or wait > 0
        elif not self.ends_in_vain(wish):
            row = self.rows.get_request(wish.id)
            assert row.state == ("failed_device_not_found" if name == "any" else "closed")
            assert wait == 0
            self.check_reason(wish, str(row.reason))
        self.settle(server)

    @precondition(lambda self: len(self.waiting()) < CROWDED)
    @rule(
        environment=st.sampled_from(["any", "any", "production"]),
        labels=some_labels,
        priorities=st.lists(st.sampled_from([0, 0, 0, 1, 2]), min_size=2, max_size=3),
        server=st.integers(0, 1),
    )
    def a_crowd_asks(self, environment: str, labels: dict[str, str], priorities: list[int], server: int) -> None:
        """At the same moment and for the same, while nothing is free; then some devices are."""
        boards = self.free()
        for board in boards:
            self.change(board, "pc_pinging")
        for number, priority in enumerate(priorities):
            self.a_client_asks((server + number) % 2, "any", environment, None, labels, "b2g", priority, 600)
        for board in boards[:2]:
            self.a_device_changes(self.boards.index(board), server, "ready")

    @precondition(lambda self: self.wishes)
    @rule(data=st.data(), server=st.integers(0, 1))
    def a_client_gives_back(self, data: st.DataObject, server: int) -> None:
        wish = data.draw(st.sampled_from(sorted(self.wishes.values(), key=lambda wish: wish.id)))
        self.give_back(wish)
        self.settle(server)

    def give_back(self, wish: Wish) -> None:
        self.servers[wish.server].mozpool.give_back(wish.id)
        self.end(wish, "closed")

    @precondition(lambda self: any(wish.board for wish in self.wishes.values()))
    @rule(data=st.data(), server=st.integers(0, 1), bad=st.sampled_from(["failed_self_test", "pc_pinging"]))
    def a_device_breaks_while_it_is_prepared(self, data: st.DataObject, server: int, bad: str) -> None:
        """Its request goes back to the place in the queue that it had, unless it wants this device only."""
        holders = sorted((wish for wish in self.wishes.values() if wish.board is not None), key=lambda wish: wish.id)
        wish = data.draw(st.sampled_from(holders))
        driver = self.servers[wish.server].driver
        assert wish.board is not None
        # As if it was being prepared still: a request that is ready does not listen any more.
        assert driver.force(wish.id, "pending").status == "moved"
        self.change(wish.board, bad)
        claim_id = self.rows.get_request(wish.id).claim_id
        args = {"imaging_result": "failed-bad-device", "claim_id": claim_id}
        assert driver.handle(wish.id, "lifeguard_finished", args).status == "moved"
        wish.board = None
        if wish.device != "any":
            self.end(wish, "failed_bad_device")
        wish.waits_until = self.clock.now() + timedelta(seconds=max(wish.wait, 10))
        self.settle(server)

    def change(self, board: Board, state: str) -> None:
        board.state = state
        self.database.run(lambda conn: devices.set_attributes(conn, board.id, state=state))

    @rule(which=st.integers(0, 9), server=st.integers(0, 1), state=st.sampled_from(["ready", "ready", *SAID]))
    def a_device_changes(self, which: int, server: int, state: str) -> None:
        self.change(self.boards[which % len(self.boards)], state)
        self.settle(server)

    @rule(seconds=st.sampled_from([1, 10, 61]), server=st.integers(0, 1))
    def time_passes(self, seconds: float, server: int) -> None:
        pass_time(self.clock, list(self.servers), seconds)
        self.learn(may_end=True)
        self.settle(server)

    @rule(server=st.integers(0, 1), states=st.lists(st.sampled_from(["ready", "pc_pinging"]), min_size=1, max_size=5))
    def both_servers_match_at_the_same_time(self, server: int, states: list[str]) -> None:
        """After several devices have changed at once; the other one does all its claims before our first."""
        for board, state in zip(self.boards, states, strict=False):
            self.change(board, state)
        self.servers[server].meddle = lambda _: self.servers[1 - server].matcher.match()
        self.settle(server)
        self.servers[server].meddle = None

    @precondition(lambda self: self.waiting())
    @rule(data=st.data(), server=st.integers(0, 1), goes=st.sampled_from(["device", "request"]))
    def somebody_goes_between_plan_and_claim(self, data: st.DataObject, server: int, goes: str) -> None:
        """What was planned for it is planned anew."""
        wish = data.draw(st.sampled_from(self.waiting()))
        for one in self.boards:
            if self.holder(one) is None:
                self.change(one, "ready")

        def meddle(planned: int) -> None:
            if goes == "device":
                self.change(next(one for one in self.boards if one.id == planned), "pc_pinging")
            else:
                self.give_back(wish)

        self.servers[server].meddle = meddle
        self.settle(server)
        self.servers[server].meddle = None

    # What is always so

    def check_reason(self, wish: Wish, reason: str) -> None:
        """What the client is told agrees with the model in kind and numbers."""
        fitting = [board for board in self.boards if wish.fits(board)]
        taken = [board for board in fitting if self.holder(board) is not None]
        if not fitting:
            unknown = wish.environment not in ("any", *(board.environment for board in self.boards))
            expected = f"environment {wish.environment} has no devices" if unknown else "there is no "
            assert reason.startswith(expected), reason
            return
        if wish.device != "any":
            board = fitting[0]
            said = "is taken by" if taken else SAID[board.state]
            assert reason.startswith(board.name) and said in reason, reason
            return
        counts = Counter(SAID[board.state] for board in fitting if board not in taken)
        if taken:
            counts["taken"] = len(taken)
        noun = "device" if len(fitting) == 1 else "devices"
        assert reason.startswith(f"{len(fitting)} matching {noun}: "), reason
        outside = re.sub(r"\(.*?\)", "", reason.partition(": ")[2])
        found = {what.strip(): int(number) for number, what in re.findall(r"(\d+) ([a-z ]+)", outside)}
        assert found == dict(counts), reason

    @invariant()
    def the_database_is_as_the_model_has_it(self) -> None:
        waiting = self.waiting()
        assert_claims_agree(self.database)
        for wish in self.wishes.values():
            row = self.rows.get_request(wish.id)
            assert row.device_id == (None if wish.board is None else wish.board.id)
            assert row.state == ("finding_device" if wish.board is None else "ready")
        for number, wish in enumerate(waiting):
            mozpool = self.servers[wish.server].mozpool
            said = mozpool.waiting(self.rows.get_request(wish.id))
            assert said is not None
            self.check_reason(wish, said.reason)
            assert said.place == 1 + sum(before.kind == wish.kind for before in waiting[:number])

    @invariant()
    def who_has_ended_stays_so(self) -> None:
        for number, states in list(self.ended.items())[-3:]:
            row = self.rows.get_request(number)
            assert row.state in states
            assert row.device_id is None


def test_the_queue_is_served_in_order_and_says_why_it_waits() -> None:
    run(AllocationRules, examples=20, steps=22)
