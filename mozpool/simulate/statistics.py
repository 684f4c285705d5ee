# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What a run shows about the pool: how long people wait, what devices do, what fails. As text and as JSON."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mozpool.clock import Clock
from mozpool.lifeguard.devicemachine import CATEGORIES, category
from mozpool.simulate.database import quick_connection
from mozpool.simulate.faults import BOARD_FAILURES, Scripted
from mozpool.simulate.invariants import END_STATES, Request
from mozpool.simulate.scenario import Scenario
from mozpool.simulate.world import World

QUANTILES = (0.5, 0.95, 0.99)

QUEUED = ("new", "finding_device")
"""States of requests that wait for a device."""

HEAR_BOARDS_EVERY = 600.0
"""Seconds between two looks at what the boards went through, of which they remember a part only."""

REFUSED = re.compile(r"\S+ (.+)-\d+ is refused: (.*)")
"""The line of the log on a request that was not even stored."""


@dataclass
class Asked:
    """One request. Times are simulated seconds since the start."""

    load: str
    """Its kind."""
    at: float
    ready: float | None = None
    """When it first had its device."""
    ended: float | None = None
    state: str = ""
    reason: str = ""
    """Why it ended."""


@dataclass
class Group:
    """The requests of one kind, or all."""

    name: str
    asked: list[Asked]

    @property
    def times(self) -> list[float]:
        """Seconds from the request to ``ready``, of those that became it, in order."""
        return sorted(each.ready - each.at for each in self.asked if each.ready is not None)

    @property
    def failed(self) -> list[Asked]:
        """Those that ended without a device."""
        return [each for each in self.asked if each.ready is None and each.ended is not None]

    @property
    def waiting(self) -> int:
        """How many had neither got a device nor ended."""
        return sum(each.ready is None and each.ended is None for each in self.asked)

    @property
    def failed_share(self) -> float | None:
        """Of those that do not wait any more."""
        failed = len(self.failed)
        return failed / (len(self.times) + failed) if self.times or failed else None

    def quantile(self, share: float) -> float | None:
        """The seconds to ``ready`` within which this share had its device, of those that got one."""
        times = self.times
        return times[math.ceil(share * len(times)) - 1] if times else None

    def reasons(self) -> list[tuple[str, str, int]]:
        """State, reason and number of those that failed, most frequent first."""
        counts = Counter((each.state, each.reason) for each in self.failed)
        return [(state, reason, count) for (state, reason), count in counts.most_common()]


@dataclass
class Run:
    """One run, without what came after the plan's hours. Times are in seconds."""

    seed: int
    scenario: Scenario
    end: float
    """How much of simulated time the statistics cover."""
    simulated: float
    """With what came after that."""
    real: float
    violation: str | None
    asked: list[Asked]
    moments: list[float]
    """When it was looked at the pool: for each there is one entry of what follows."""
    waiting: list[int]
    devices: dict[str, list[int]]
    """How many there were of each category."""
    board_failures: Counter[str]
    faults: Counter[str]
    """What else was made to go wrong."""
    missed: tuple[Scripted, ...] = ()
    """What was to go wrong by script, and for which there was no opportunity."""

    def groups(self) -> list[Group]:
        """The requests by kind, and last all of them, if there are several kinds."""
        kinds = [load.name for load in self.scenario.loads]
        groups = [Group(kind, [each for each in self.asked if each.load == kind]) for kind in kinds]
        return groups if len(groups) == 1 else [*groups, self.all]

    @property
    def all(self) -> Group:
        """All requests."""
        return Group("all", self.asked)

    @property
    def speed(self) -> float:
        """How many times as fast as real time it was."""
        return self.simulated / self.real

    def share(self, name: str) -> float:
        """Of the devices' time: how much they were of this category."""
        total = sum(map(sum, self.devices.values()))
        return sum(self.devices[name]) / total if total else 0.0

    @property
    def utilisation(self) -> float:
        """The share of the devices' time that they were in somebody's hands, ready to be used."""
        return self.share("in use")


def measure(scenario: Scenario, seed: int, tell: Callable[[float], None] = lambda seconds: None) -> Run:
    """Run it. ``tell`` hears the simulated seconds every now and then."""
    clock = Clock()
    refused: list[tuple[str, str]] = []

    def hear(line: str) -> None:
        found = REFUSED.fullmatch(line)
        if found is not None:
            refused.append((found[1], found[2]))

    world = World(scenario, str(seed), hear=hear)
    collector = _Collector(world, tell)
    began = clock.monotonic()
    result = world.run()
    real = clock.monotonic() - began
    end = min(scenario.hours * 3600.0, result.simulated)
    collector.hear_boards(end)
    asked = list(collector.asked.values())
    asked += [Asked(load, end, ended=end, state="refused", reason=collector.plain(why)) for load, why in refused]
    return Run(
        seed=seed,
        scenario=scenario,
        end=end,
        simulated=result.simulated,
        real=real,
        violation=result.violation,
        asked=asked,
        moments=collector.moments,
        waiting=collector.waiting,
        devices=collector.devices,
        board_failures=collector.board_failures,
        faults=Counter(fault.kind for fault in result.faults if fault.time <= end and fault.kind not in BOARD_FAILURES),
        missed=result.missed,
    )


@dataclass
class _Collector:
    """Listens to a world."""

    world: World
    tell: Callable[[float], None]
    asked: dict[int, Asked] = field(default_factory=dict)
    moments: list[float] = field(default_factory=list)
    waiting: list[int] = field(default_factory=list)
    devices: dict[str, list[int]] = field(default_factory=lambda: {name: [] for name in CATEGORIES})
    board_failures: Counter[str] = field(default_factory=Counter)
    heard_until: float = -1.0

    def __post_init__(self) -> None:
        kinds = "|".join(re.escape(kind.name) for kind in self.world.scenario.kinds)
        self._device = re.compile(rf"\b({kinds})-\d{{4,}}\b")
        self.world.on_request.append(self._changed)
        self.world.on_look.append(self._look)

    def plain(self, reason: str) -> str:
        """A reason without what differs from one request to the next."""
        if re.match(r"\d+ matching devices?: ", reason):
            return "no matching device is free"
        return self._device.sub(r"\1-…", re.sub(r" by \S+ until \S+ \S+", "", reason))

    def _changed(self, request: Request, before: str) -> None:
        world = self.world
        if world.closing:
            return
        now = world.scheduler.time
        if request.id not in self.asked:
            (assignee,) = self._row(request.id, "assignee")
            self.asked[request.id] = Asked(assignee.rpartition("-")[0], now)
        asked = self.asked[request.id]
        if request.state == "ready" and asked.ready is None:
            asked.ready = now
        if request.state in END_STATES:
            (reason,) = self._row(request.id, "reason")
            asked.ended, asked.state, asked.reason = now, request.state, self.plain(reason or "")

    def _row(self, request_id: int, column: str) -> tuple[Any, ...]:
        with quick_connection(str(self.world.database.url)) as connection:
            query = f"SELECT {column} FROM requests WHERE id = ?"  # noqa: S608 (constants)  # nosec B608
            row: tuple[Any, ...] = connection.execute(query, (request_id,)).fetchone()
            return row

    def _look(self) -> None:
        world = self.world
        now = world.scheduler.time
        self.tell(now)
        if world.closing:
            return
        self.moments.append(now)
        self.waiting.append(sum(request.state in QUEUED for request in world.watcher.requests.values()))
        counts = Counter(
            category(device.state, device.claim_id is not None) for device in world.watcher.devices.values()
        )
        for name, entries in self.devices.items():
            entries.append(counts[name])
        if now >= self.heard_until + HEAR_BOARDS_EVERY:
            self.hear_boards(now)

    def hear_boards(self, until: float) -> None:
        """Count how boards failed up to a moment."""
        for board in self.world.lab.boards.values():
            for entry in board.history:
                if self.heard_until < entry.time <= until:
                    if entry.what in ("hung", "error"):
                        self.board_failures[f"hung {entry.detail}" if entry.what == "hung" else "error"] += 1
                    elif entry.what == "download_again":
                        self.board_failures["began its download again"] += 1
                    elif entry.what == "event" and entry.detail == "failed_self_test":
                        self.board_failures["failed its self-test"] += 1
        self.heard_until = max(self.heard_until, until)


# As text


def table(head: Sequence[str], rows: Sequence[Sequence[object]], texts: int = 1) -> Iterator[str]:
    """The lines of a table; the first ``texts`` columns are texts, the others numbers."""
    cells = [list(head), *([_shown(value) for value in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    for row in cells:
        yield "  ".join(
            cell.ljust(width) if column < texts else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()


def _shown(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def _percent(share: float | None) -> float | None:
    return None if share is None else 100.0 * share


def _seconds(value: float | None) -> int | None:
    return None if value is None else round(value)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def report(run: Run, name: str) -> Iterator[str]:
    """The lines that show one run of the plan of this name."""
    scenario = run.scenario
    servers = "1 server" if scenario.servers == 1 else f"{scenario.servers} servers"
    yield (
        f"{name}, seed {run.seed}: {scenario.devices} devices, {servers}, {run.end / 3600:g} h "
        f"(simulated {run.speed:.0f} times as fast as real time, in {run.real:.1f} s)"
    )
    yield ""
    yield from table(
        ("REQUESTS", "ASKED", "READY", "FAILED", "FAILED %", "STILL WAIT", "P50 s", "P95 s", "P99 s"),
        [
            (
                group.name,
                len(group.asked),
                len(group.times),
                len(group.failed),
                _percent(group.failed_share),
                group.waiting,
                *(_seconds(group.quantile(share)) for share in QUANTILES),
            )
            for group in run.groups()
        ],
    )
    yield "P50, P95, P99: seconds from the request to its device, of those that got one."
    yield ""
    failures = [(group.name, *reason) for group in run.groups() if group.name != "all" for reason in group.reasons()]
    if failures:
        yield from table(("WHY THEY FAILED", "STATE", "REASON", "COUNT"), failures, texts=3)
        yield ""
    yield from table(
        ("AT A TIME", "MEAN", "LEAST", "MOST", "SHARE %"),
        [
            ("requests in the queue", _mean(run.waiting), min(run.waiting, default=0), max(run.waiting, default=0), ""),
            *(
                (
                    f"devices {name}",
                    _mean(counts),
                    min(counts, default=0),
                    max(counts, default=0),
                    _percent(run.share(name)),
                )
                for name, counts in run.devices.items()
            ),
        ],
    )
    yield f"Utilisation (devices in use): {100 * run.utilisation:.1f} %"
    for title, counts, none in (
        ("BOARD FAILURES", run.board_failures, "No board failed."),
        ("OTHER FAULTS", run.faults, "Nothing else went wrong."),
    ):
        yield ""
        if counts:
            rows = [(what.replace("_", " "), count, count * 3600 / run.end) for what, count in counts.most_common()]
            yield from table((title, "COUNT", "PER HOUR"), rows)
        else:
            yield none
    if run.missed:
        yield ""
        yield from table(("NO OPPORTUNITY FOR",), [(scripted,) for scripted in run.missed])


COMPARED: Mapping[str, tuple[Callable[[Run], float | None], int]] = {
    "ASKED": (lambda run: len(run.asked), 0),
    "P50 s": (lambda run: run.all.quantile(0.5), 0),
    "P95 s": (lambda run: run.all.quantile(0.95), 0),
    "P99 s": (lambda run: run.all.quantile(0.99), 0),
    "FAILED %": (lambda run: _percent(run.all.failed_share), 1),
    "QUEUE MEAN": (lambda run: _mean(run.waiting), 1),
    "QUEUE MOST": (lambda run: max(run.waiting, default=0), 0),
    "IN USE %": (lambda run: 100.0 * run.utilisation, 1),
}
"""Title → what is compared, and with how many decimals it is shown."""


def comparison(what: str, rows: Mapping[object, Sequence[Run]]) -> Iterator[str]:
    """One line for each entry: the mean of its runs and, if there are several, the lowest and the highest."""
    yield from table(
        (what.upper(), *COMPARED),
        [
            (name, *(_spread([figure(run) for run in runs], digits) for figure, digits in COMPARED.values()))
            for name, runs in rows.items()
        ],
    )
    if any(len(runs) > 1 for runs in rows.values()):
        yield "Of several runs: mean (lowest to highest)."


def _spread(values: Sequence[float | None], digits: int) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    mean = f"{_mean(known):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ({min(known):.{digits}f} to {max(known):.{digits}f})"


# As JSON


def as_json(run: Run) -> dict[str, Any]:
    """The same for programs; times are in seconds, shares from 0 to 1."""
    return {
        "seed": run.seed,
        "devices": {kind.name: kind.count for kind in run.scenario.kinds},
        "servers": run.scenario.servers,
        "hours": run.end / 3600,
        "simulated_seconds": run.simulated,
        "real_seconds": run.real,
        "violation": run.violation,
        "requests": [_group_as_json(group) for group in run.groups()],
        "queue": {"mean": _mean(run.waiting), "most": max(run.waiting, default=0)},
        "categories": {name: run.share(name) for name in run.devices},
        "utilisation": run.utilisation,
        "board_failures": dict(run.board_failures),
        "faults": dict(run.faults),
        "faults_without_opportunity": [str(scripted) for scripted in run.missed],
    }


def _group_as_json(group: Group) -> dict[str, Any]:
    return {
        "name": group.name,
        "asked": len(group.asked),
        "ready": len(group.times),
        "failed": len(group.failed),
        "failed_share": group.failed_share,
        "still_waiting": group.waiting,
        "seconds_to_ready": {f"p{share * 100:.0f}": group.quantile(share) for share in QUANTILES},
        "reasons": [{"state": state, "reason": reason, "count": count} for state, reason, count in group.reasons()],
    }
