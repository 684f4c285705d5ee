# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""How many jobs to start now, for whom, and on which phones. Nothing here reads, writes or waits.

A project wants ``pending tasks - own jobs on the way`` more jobs. It gets them as long as there are phones of its own
that are free, and as long as the whole account has room: ``limit - initiated jobs - jobs that the cloud does not list
yet``. Projects take turns, one job a turn. Within a priority group, those of lower priority have no turn while one of
higher priority can still be given something.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Demand:
    """What a project has and wants."""

    project: str
    pending: int
    """Tasks in its queue that nobody has taken."""
    on_the_way: int
    """Its own jobs that have been asked for and have not been seen with a task, as long as one may still come."""
    phones: Collection[str]
    """The UDIDs of its phones, whatever they do."""
    quarantined: Collection[str] = ()
    """Those of them that Taskcluster gives no tasks to."""
    priority: int = 1
    priority_group: str | None = None

    @property
    def wants(self) -> int:
        """How many more jobs it could use."""
        return max(0, self.pending - self.on_the_way)


@dataclass(frozen=True)
class Start:
    """A job that is to be started."""

    project: str
    udid: str


@dataclass
class _Share:
    """A project while starts are dealt out."""

    demand: Demand
    wants: int
    free: set[str] = field(default_factory=set)

    @property
    def can(self) -> bool:
        return self.wants > 0 and bool(self.free)


def room(*, initiated: int, unknown: int, limit: int) -> int:
    """How many jobs may be started before the account has ``limit`` initiated ones.

    ``unknown``: own jobs that were ordered and that the cloud does not list yet.
    """
    return max(0, limit - initiated - unknown)


def decide(demands: Sequence[Demand], free: Collection[str], places: int, rng: random.Random) -> list[Start]:
    """What to start now, the first first.

    ``free`` are the phones that nobody uses, neither here nor in the cloud, ``places`` is :func:`room`. A phone that
    is quarantined for one project is given to none.
    """
    quarantined = {udid for demand in demands for udid in demand.quarantined}
    usable = set(free) - quarantined
    shares = [_Share(demand, demand.wants, usable.intersection(demand.phones)) for demand in demands]
    # With room for few, it is not always the same ones who come first.
    rng.shuffle(shares)
    starts: list[Start] = []
    while len(starts) < places:
        turn = _turn(shares)
        if not turn:
            break
        for share in turn[: places - len(starts)]:
            if share.can:  # the last phone may just have gone to another one
                starts.append(_give(share, shares, rng))
    return starts


def _turn(shares: Sequence[_Share]) -> list[_Share]:
    """Who may be given something now: nobody behind somebody of the same priority group and of higher priority."""
    able = [share for share in shares if share.can]
    highest: dict[str, int] = {}
    for share in able:
        group, priority = share.demand.priority_group, share.demand.priority
        if group is not None:
            highest[group] = max(priority, highest.get(group, priority))
    return [
        share
        for share in able
        if share.demand.priority_group is None or share.demand.priority == highest[share.demand.priority_group]
    ]


def _give(share: _Share, shares: Sequence[_Share], rng: random.Random) -> Start:
    """One of its free phones at random, of those that the fewest others could use now."""
    others = [other for other in shares if other is not share and other.can]
    rivals = {udid: sum(udid in other.free for other in others) for udid in share.free}
    fewest = min(rivals.values())
    udid = rng.choice(sorted(udid for udid, number in rivals.items() if number == fewest))
    for each in shares:
        each.free.discard(udid)
    share.wants -= 1
    return Start(share.demand.project, udid)


def explain(demand: Demand, free: Collection[str], starts: Sequence[Start]) -> str:
    """One line for people on what was decided for a project, and from what."""
    mine = set(free).intersection(demand.phones)
    out = mine.intersection(demand.quarantined)
    number = sum(start.project == demand.project for start in starts)
    barred = f" ({len(out)} of them quarantined)" if out else ""
    return (
        f"{demand.project}: {demand.pending} pending, {demand.on_the_way} on the way, "
        f"{len(mine)} of {len(demand.phones)} phones free{barred}: {number} to start"
    )
