# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What goes wrong: by probability, from a generator of its own, and by script. Everything injected is counted."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

from mozpool.errors import BadInput


@dataclass(frozen=True)
class Rates:
    """How often things go wrong, each from 0 to 1, at each opportunity; boards have rates of their own."""

    crash: float = 0.0001
    """A server is killed at a step of a transition; it comes back within two minutes."""
    slow_step: float = 0.01
    """A thread loses the processor for up to two seconds between two steps."""
    late_answer: float = 0.01
    """The database answers up to two seconds late."""
    deadlock: float = 0.03
    """A transaction is rolled back (1213)."""
    lost_before_commit: float = 0.005
    """The connection is lost in the commit, which did not take place."""
    lost_after_commit: float = 0.005
    """The connection is lost in the commit, which took place."""
    read_lost: float = 0.001
    """The connection is lost in a read."""
    call_lost: float = 0.02
    """A call to a server does not arrive."""
    answer_lost: float = 0.02
    """A call is answered, and the answer does not arrive."""
    call_repeated: float = 0.02
    """A call arrives twice, the second time at once or up to a minute later."""
    call_late: float = 0.02
    """A call takes up to seven seconds to arrive, so that others overtake it."""
    freeze: float = 0.0001
    """A server does nothing for up to three minutes, and then goes on as if nothing had been."""
    outage: float = 0.0001
    """The database is away for a server, for up to two minutes."""
    relay_slow: float = 0.01
    """A relay board takes up to ten seconds to answer."""
    agent_slow: float = 0.02
    """An agent takes up to its time limit to answer."""
    relay_hangs: float = 0.005
    """A relay board stops to answer for up to ten minutes."""
    relay_wrong: float = 0.01
    """A relay reads back another state than it was set to; half of the time it is the true one."""
    agent_vanishes: float = 0.02
    """An agent does not answer a call, and half of the time never again until its next boot."""
    client_vanishes: float = 0.03
    """A client forgets its request."""
    cloud_down: float = 0.002
    """A cloud does not answer for up to ten minutes."""
    start_hangs: float = 0.05
    """The start of a job in the cloud takes all the time it has and fails; half of the time the job is there."""
    start_fails: float = 0.05
    """It fails; half of the time the job is there all the same."""
    job_stuck: float = 0.03
    """The cloud never begins to run a job."""
    job_short: float = 0.05
    """A job has ended as soon as it begins."""
    phone_faulty: float = 0.03
    """The cloud gives a phone up after a job, for up to an hour."""

    def __post_init__(self) -> None:
        for field in fields(self):
            if not 0 <= getattr(self, field.name) <= 1:
                raise BadInput.value(field.name, getattr(self, field.name), "a probability from 0 to 1")

    @classmethod
    def none(cls) -> Rates:
        """Nothing goes wrong."""
        return replace(cls(), **{field.name: 0.0 for field in fields(cls)})


BOARD_FAILURES = ("boot_failure", "reboot_failure", "download_failure", "extraction_failure", "self_test_failure")
"""What boards do wrong, as :class:`mozpool.fakes.board.Behaviour` names it."""

DEEDS = ("forced_state", "offline", "removed", "clock_jump")
"""What people do, and the inventory, and the machines' clocks."""

FORCED_STATES = (
    "ready",
    "start_self_test",
    "start_maintenance",
    "start_pxe_boot",
    "pc_power_cycling",
    "locked_out",
    "troubleshooting",
    "failed_self_test",
    "failed_sut_verifying",
    "unknown",
)
"""What people force devices into."""

KINDS = (*(field.name for field in fields(Rates)), *BOARD_FAILURES, *DEEDS)
"""All kinds of faults."""

WITH_SECONDS = (
    *("crash", "slow_step", "call_repeated", "call_late", "freeze", "outage"),
    *("relay_slow", "agent_slow", "relay_hangs", "clock_jump", "cloud_down", "phone_faulty"),
)
"""Kinds that last for some time, or happen that much later."""


@dataclass(frozen=True)
class Scripted:
    """A fault that is made to happen, once."""

    kind: str
    """One of :data:`KINDS`."""
    at: float = 0.0
    """Simulated seconds since the start: it happens when there is the first opportunity from then on."""
    where: str = ""
    """Part of the place's name as the log has it (a server, step, relay board, device or call); "": anywhere."""
    seconds: float | None = None
    """How long it lasts, within what is usual for its kind; None: as chance has it."""
    state: str | None = None
    """The state that a device is forced into; None: as chance has it."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise BadInput.value("kind", self.kind, f"one of {', '.join(KINDS)}")
        if self.seconds is not None and self.kind not in WITH_SECONDS:
            raise BadInput.value(
                "seconds", self.seconds, f"expected for {self.kind}, but for {', '.join(WITH_SECONDS)}"
            )
        if self.state is not None and self.kind != "forced_state":
            raise BadInput.value("state", self.state, f"expected for {self.kind}, but for forced_state")

    def __str__(self) -> str:
        return f"{self.kind} ({self.where or 'anywhere'}) at {self.at:g} s"


@dataclass(frozen=True)
class Fault:
    """Something that was made to go wrong."""

    number: int
    time: float
    """Simulated seconds since the start."""
    kind: str
    where: str

    def __str__(self) -> str:
        return f"#{self.number} at {self.time:.3f} s: {self.kind} ({self.where})"


class Faults:
    """Decides what goes wrong, and remembers it.

    The first ``limit`` faults happen and none after them: what comes before the fault that is left out stays as it was.
    """

    def __init__(
        self,
        rates: Rates,
        seed: str,
        now: Callable[[], float],
        *,
        script: Sequence[Scripted] = (),
        limit: int | None = None,
    ) -> None:
        self.rates = rates
        self._script = sorted(script, key=lambda scripted: scripted.at)
        self._kinds = frozenset(scripted.kind for scripted in script)
        self._seconds: float | None = None
        self.happened: list[Fault] = []
        self.on_fault: Callable[[Fault], None] = lambda fault: None
        self._now = now
        self._limit = limit
        self._rng = random.Random(f"{seed}:faults")
        self._over = False

    def happens(self, kind: str, where: str) -> bool:
        """Whether a fault of this kind happens now."""
        self._seconds = None
        if self.is_due(kind, where):
            return True
        rate = getattr(self.rates, kind)
        if self._over or rate <= 0 or self._rng.random() >= rate:
            return False
        return self.note(kind, where)

    def is_due(self, kind: str, where: str) -> bool:
        """Whether a fault of this kind happens now because the script has it so."""
        if kind not in self._kinds or self._over:
            return False
        for scripted in self._script:
            if scripted.at > self._now():
                break
            if scripted.kind == kind and scripted.where in where:
                self._script.remove(scripted)
                self._seconds = scripted.seconds
                return self.note(kind, where)
        return False

    def do(self, what: Scripted, where: str) -> bool:
        """Somebody is about to do something wrong, by chance or by script; answer whether they may."""
        if what in self._script:
            self._script.remove(what)
        return self.note(what.kind, where)

    @property
    def script_left(self) -> tuple[Scripted, ...]:
        """What the script has and what has not happened: there was no opportunity."""
        return tuple(self._script)

    def note(self, kind: str, where: str) -> bool:
        """Something is about to go wrong; answer whether it may."""
        if self._over or (self._limit is not None and len(self.happened) >= self._limit):
            return False
        fault = Fault(len(self.happened) + 1, self._now(), kind, where)
        self.happened.append(fault)
        self.on_fault(fault)
        return True

    def uniform(self, low: float, high: float) -> float:
        """How much, how long: a number for the fault that happens."""
        if self._seconds is None:
            return self._rng.uniform(low, high)
        seconds, self._seconds = self._seconds, None
        return min(max(seconds, low), high)

    def end(self) -> None:
        """From now on nothing goes wrong any more."""
        self._over = True
