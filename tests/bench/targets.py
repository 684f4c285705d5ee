# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What the figures should be, and whether they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from tests.bench.figures import Figure
from tests.bench.results import Results


@dataclass(frozen=True)
class Verdict:
    """How a figure compares with its target."""

    case: str
    what: str
    target: str
    figure: str
    """The worst one that the target is about; empty when it was not measured."""
    ratio: float | None
    """How many times better than the target: from 1 on, it is met."""

    @property
    def met(self) -> bool:
        """Whether it is."""
        return self.ratio is not None and self.ratio >= 1


class Target(Protocol):
    """Something that figures should be."""

    def judge(self, results: Results) -> Verdict:
        """Whether they are."""
        ...


@dataclass(frozen=True)
class Limit:
    """The worst of some figures is at most, or at least, so much; or so many times another figure."""

    case: str
    what: str
    measure: str
    limit: float
    most: bool = True
    """Whether ``limit`` is the most, else it is the least."""
    where: Mapping[str, object] = field(default_factory=dict)
    """Parameters of the figures; a tuple means any of these. MariaDB unless it says else."""
    subject: str = "mozpool"
    times: tuple[str, str, Mapping[str, object]] | None = None
    """Subject, measure and parameters of the figure of which ``limit`` is a multiple."""

    def judge(self, results: Results) -> Verdict:
        """Compare the worst one."""
        where = {"database": "mariadb", **self.where}
        found = list(results.find(self.case, self.measure, self.subject, where))
        limit, words = self.limit, ""
        if self.times is not None:
            subject, measure, parameters = self.times
            others = [figure.median for figure in results.find(self.case, measure, subject, parameters)]
            limit *= max(others) if others else float("nan")
            words = f" ({self.limit:g} × {subject})"
        if not found or limit != limit:
            return Verdict(self.case, self.what, f"{self._sign} {self.limit:g}{words}", "", None)
        worst = (max if self.most else min)(found, key=lambda figure: figure.median)
        pair = (limit, worst.median) if self.most else (worst.median, limit)
        ratio = pair[0] / pair[1] if pair[1] else float("inf")
        target = f"{self._sign} {number(limit)} {worst.unit}{words}"
        return Verdict(self.case, self.what, target, shown(worst), ratio)

    @property
    def _sign(self) -> str:
        return "at most" if self.most else "at least"


@dataclass(frozen=True)
class Flat:
    """A rate does not depend on the number of devices: its medians lie no further apart than runs of one size do."""

    case: str
    what: str
    measure: str
    clients: int
    devices: Sequence[int] = (100, 500, 1000, 10_000)

    def judge(self, results: Results) -> Verdict:
        """Compare the distance of the sizes with that of the runs."""
        where = {"database": "mariadb", "clients": self.clients, "devices": tuple(self.devices)}
        found = list(results.find(self.case, self.measure, "mozpool", where))
        if len(found) < 2:
            return Verdict(self.case, self.what, "within the spread of runs", "", None)
        sizes = Figure(self.case, "", "", "", tuple(figure.median for figure in found)).spread
        runs = max(figure.spread for figure in found)
        said = f"± {sizes * 100:.0f} % ({', '.join(number(figure.median) for figure in found)} {found[0].unit})"
        ratio = runs / sizes if sizes else float("inf")
        return Verdict(self.case, self.what, f"within the spread of runs, ± {runs * 100:.0f} %", said, ratio)


def number(value: float) -> str:
    """Three digits that count; whole numbers as they are."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def shown(figure: Figure) -> str:
    """Median and spread in words."""
    return f"{number(figure.median)} {figure.unit} ± {figure.spread * 100:.0f} %"


RATE = "claims and returns"
CYCLES = "whole cycles"
SIZES = (100, 500, 1000, 10_000)
LISTED = {"devices": 5000}
IDLE = {"devices": 5000, "probe": "fping"}


def crowd(clients: int) -> str:
    """So many clients in words."""
    return "1 client" if clients == 1 else f"{clients} clients"


def _rates() -> Iterator[Target]:
    old = {8: 150.0, 32: 150.0}
    for clients, least in old.items():
        where = {"devices": SIZES, "clients": clients}
        what = f"claims and returns a second, {clients} clients, 100 to 10 000 devices: 10 × the old version"
        yield Limit("a", what, RATE, least, most=False, where=where)
    for clients in old:
        where = {"devices": 500, "clients": clients}
        what = f"claims and returns a second, {clients} clients, 500 devices: above labgrid's acquire and release"
        other = ("labgrid", "acquire and release: rate", {"places": 500, "clients": clients})
        yield Limit("a", what, RATE, 1.0, most=False, where=where, times=other)
    where = {"devices": SIZES, "clients": 8}
    yield Limit("a", "request call p99, 8 clients, 100 to 10 000 devices", "request call: p99", 100.0, where=where)
    for clients in (1, 8, 32):
        yield Flat("a", f"claims and returns, {crowd(clients)}, whatever the number of devices", RATE, clients)
    for clients, old_rate in ((1, 4.0), (8, 3.6), (32, 4.5)):
        where = {"devices": SIZES, "clients": clients}
        what = f"whole cycles a second, {crowd(clients)}, 100 to 10 000 devices: 10 × the old version"
        yield Limit("b", what, CYCLES, 10 * old_rate, most=False, where=where)
    for clients in (1, 8, 32):
        yield Flat("b", f"whole cycles, {crowd(clients)}, whatever the number of devices", CYCLES, clients)


TARGETS: tuple[Target, ...] = (
    *_rates(),
    Limit("c", "hand-off on one server, median", "hand-off: p50", 10.0, where={"servers": 1}),
    Limit("c", "hand-off on one server, p99", "hand-off: p99", 50.0, where={"servers": 1}),
    Limit("c", "hand-off across two servers, median", "hand-off: p50", 50.0, where={"servers": 2}),
    Limit("d", "5000 devices with details, whole, after a change", "whole after a change", 100.0, where=LISTED),
    Limit("d", "5000 devices with details, from the cache", "whole, cached", 30.0, where=LISTED),
    Limit("d", "5000 devices with details, unchanged", "unchanged", 5.0, where=LISTED),
    Limit("d", "5000 devices with details, unchanged, asked for once in 1.2 s", "unchanged, polled", 5.0, where=LISTED),
    Limit("e", "idle with 5000 devices, without fping itself", "processor", 2.0, where=IDLE),
    Limit("e", "memory with 5000 devices", "memory, RSS", 120.0, where=IDLE),
    Limit("f", "1000 boards power-cycled at once, against the minimum", "against the minimum", 1.2),
    Limit("g", "start with 20 000 devices and 5000 requests, until it acts on a device", "acts on a device", 5.0),
    Limit("g", "start with 20 000 devices and 5000 requests, until it acts on a request", "acts on a request", 5.0),
    *(
        Limit("i", f"{measure}, grown tables against empty ones", f"{measure}: against empty tables", 1.5)
        for measure in ("claim and return", "request call p99", "processor time", "whole cycle", "device list")
    ),
)
"""Those of the figures that people should be able to count on."""
