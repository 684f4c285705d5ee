# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What goes wrong, by probability, from a generator of its own. Everything injected is counted."""

from __future__ import annotations

import random
from collections.abc import Callable
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

    def __post_init__(self) -> None:
        for field in fields(self):
            if not 0 <= getattr(self, field.name) <= 1:
                raise BadInput.value(field.name, getattr(self, field.name), "a probability from 0 to 1")

    @classmethod
    def none(cls) -> Rates:
        """Nothing goes wrong."""
        return replace(cls(), **{field.name: 0.0 for field in fields(cls)})


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

    def __init__(self, rates: Rates, seed: str, now: Callable[[], float], *, limit: int | None = None) -> None:
        self.rates = rates
        self.happened: list[Fault] = []
        self.on_fault: Callable[[Fault], None] = lambda fault: None
        self._now = now
        self._limit = limit
        self._rng = random.Random(f"{seed}:faults")
        self._over = False

    def happens(self, kind: str, where: str) -> bool:
        """Whether a fault of this kind happens now."""
        rate = getattr(self.rates, kind)
        if self._over or rate <= 0 or self._rng.random() >= rate:
            return False
        return self.note(kind, where)

    def note(self, kind: str, where: str) -> bool:
        """Something is about to go wrong; answer whether it may."""
        if self._over or (self._limit is not None and len(self.happened) >= self._limit):
            return False
        fault = Fault(len(self.happened) + 1, self._now(), kind, where)
        self.happened.append(fault)
        self.on_fault(fault)
        return True

    def uniform(self, low: float, high: float) -> float:
        """How much, how long: a number for a fault."""
        return self._rng.uniform(low, high)

    def end(self) -> None:
        """From now on nothing goes wrong any more."""
        self._over = True
