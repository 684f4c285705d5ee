# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What this process counts and measures of itself, for Prometheus.

Each daemon has a registry of its own. The parts are given what they call (:class:`Metrics` has a method for each) and
know nothing of Prometheus. Labels have few values: names from the code, never names of devices, people or files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from mozpool import __version__
from mozpool.lanes import Lanes
from mozpool.statedriver import Observer, Outcome

disable_created_metrics()  # type: ignore[no-untyped-call]  # when a series began is of no use, and would double their number

Kind = Literal["counter", "gauge", "histogram"]

QUICK = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
SLOW = (0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
PATIENT = (5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 1800.0, 3600.0, 7200.0)

METHODS = frozenset({"GET", "HEAD", "OPTIONS", "POST"})
"""Verbs that calls are told apart by."""

NO_PATH = "none"
"""What stands for all paths that lead nowhere."""


@dataclass(frozen=True)
class Spec:
    """A metric as it is scraped."""

    name: str
    kind: Kind
    text: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    def counter(self, registry: CollectorRegistry) -> Counter:
        """What counts it."""
        return Counter(self.name, self.text, self.labels, registry=registry)

    def histogram(self, registry: CollectorRegistry) -> Histogram:
        """What measures it."""
        return Histogram(self.name, self.text, self.labels, registry=registry, buckets=self.buckets)

    def gauge(self, values: Mapping[tuple[str, ...], float]) -> GaugeMetricFamily:
        """Its values by those of its labels, sorted."""
        family = GaugeMetricFamily(self.name, self.text, labels=self.labels)
        for labels, value in sorted(values.items()):
            family.add_metric(labels, value)
        return family


TRANSITIONS = Spec(
    "mozpool_transitions_total",
    "counter",
    "States that devices and requests have entered here, by the event that led there.",
    ("kind", "to_state", "event"),
)
READY_SECONDS = Spec(
    "mozpool_request_ready_seconds",
    "histogram",
    "Time from when a request was made until its device was ready.",
    buckets=PATIENT,
)
EFFECTS = Spec(
    "mozpool_effects_total",
    "counter",
    "What was done after transitions (operations on hardware, calls to others), by what came of it: ok, failed, "
    "lane_failed (a relay board or another thing that devices share), own_fault, not_yet (its turn comes later), "
    "database_away, broken.",
    ("kind", "effect", "outcome"),
)
EFFECT_SECONDS = Spec(
    "mozpool_effect_seconds",
    "histogram",
    "Time that such an effect took, without its time in the queue.",
    ("kind", "effect"),
    SLOW,
)
DATABASE_SECONDS = Spec(
    "mozpool_database_seconds",
    "histogram",
    "Time that a unit of work in the database took, with waiting for a connection and all repetitions.",
    ("operation",),
    QUICK,
)
DATABASE_RETRIES = Spec(
    "mozpool_database_retries_total",
    "counter",
    "Transactions that were done again: another one got in the way (conflict), or the connection was lost (lost).",
    ("reason",),
)
DATABASE_ERRORS = Spec(
    "mozpool_database_errors_total",
    "counter",
    "Units of work that came to nothing because the database was away or too busy.",
    ("operation",),
)
HTTP_REQUESTS = Spec(
    "mozpool_http_requests_total",
    "counter",
    "Calls that were answered, by the pattern of their path.",
    ("method", "path", "status"),
)
HTTP_SECONDS = Spec(
    "mozpool_http_request_seconds",
    "histogram",
    "Time until the answer to a call was ready; long polls that waited are left out.",
    ("path",),
    QUICK,
)
BUILD_INFO = Spec(
    "mozpool_build_info", "gauge", "Always 1: version, and the name of this imaging server.", ("version", "server")
)
LIVE = Spec("mozpool_live", "gauge", "Whether the drivers make progress (1) or something is stuck (0).")
STUCK = Spec("mozpool_stuck_work", "gauge", "Pieces of work that have been going on for longer than they may.")
WORKERS = Spec("mozpool_workers", "gauge", "Worker threads that there may be.", ("pool",))
WORKERS_BUSY = Spec("mozpool_workers_busy", "gauge", "Worker threads that do something now.", ("pool",))
WORK_OLDEST = Spec(
    "mozpool_work_oldest_seconds", "gauge", "How long the longest piece of work has been going on.", ("pool",)
)
WORK_WAITING = Spec(
    "mozpool_work_waiting",
    "gauge",
    "Pieces of work that wait for a worker, or in a lane behind others.",
    ("pool", "queue"),
)
LANES = Spec("mozpool_lanes", "gauge", "Lanes that work is done in or waits in.", ("pool",))
LANE_LONGEST = Spec(
    "mozpool_lane_longest", "gauge", "Pieces of work that wait in the lane with the most of them.", ("pool",)
)
LANES_HELD = Spec("mozpool_lanes_held", "gauge", "Lanes that failed too often and are probed until they answer.")
EFFECTS_HELD = Spec("mozpool_effects_held", "gauge", "Effects that wait for such a lane.")

SPECS = (
    BUILD_INFO,
    LIVE,
    STUCK,
    TRANSITIONS,
    READY_SECONDS,
    EFFECTS,
    EFFECT_SECONDS,
    WORKERS,
    WORKERS_BUSY,
    WORK_OLDEST,
    WORK_WAITING,
    LANES,
    LANE_LONGEST,
    LANES_HELD,
    EFFECTS_HELD,
    DATABASE_SECONDS,
    DATABASE_RETRIES,
    DATABASE_ERRORS,
    HTTP_REQUESTS,
    HTTP_SECONDS,
)
"""All that each server says of its own process, besides what Python and the operating system tell."""


class Metrics:
    """The registry of one daemon, and what its parts call. Safe to use from any thread; no call takes long."""

    def __init__(self, server: str) -> None:
        """``server`` is this imaging server's fqdn."""
        self.server = server
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        self._transitions = TRANSITIONS.counter(registry)
        self._ready = READY_SECONDS.histogram(registry)
        self._effects = EFFECTS.counter(registry)
        self._effect_seconds = EFFECT_SECONDS.histogram(registry)
        self._database_seconds = DATABASE_SECONDS.histogram(registry)
        self._database_retries = DATABASE_RETRIES.counter(registry)
        self._database_errors = DATABASE_ERRORS.counter(registry)
        self._http = HTTP_REQUESTS.counter(registry)
        self._http_seconds = HTTP_SECONDS.histogram(registry)
        # Rates need a beginning: what can't be named beforehand appears with its first time.
        for operation in ("read", "write"):
            self._database_seconds.labels(operation)
            self._database_errors.labels(operation)
        for reason in ("conflict", "lost"):
            self._database_retries.labels(reason)

    def transitions(self, kind: str) -> Observer:
        """What counts the transitions of devices or requests."""

        def observe(outcome: Outcome[Any]) -> None:
            decision = outcome.decision
            if decision is None or outcome.row is None or outcome.change is None:
                return
            for state in decision.path:
                self._transitions.labels(kind, state, decision.event).inc()
            if kind == "request" and decision.is_change and decision.target == "ready":
                created = getattr(outcome.row, "created", None)
                if created is not None:
                    self._ready.observe(max(0.0, (outcome.change.now - created).total_seconds()))

        return observe

    def effect(self, kind: str, effect: str, outcome: str, seconds: float) -> None:
        """An effect was done: the name of its class, what came of it, and how long it took."""
        name = snake_case(effect)
        self._effects.labels(kind, name, outcome).inc()
        self._effect_seconds.labels(kind, name).observe(seconds)

    def database_work(self, operation: str, seconds: float, away: bool) -> None:
        """A unit of work in the database is over, or came to nothing."""
        self._database_seconds.labels(operation).observe(seconds)
        if away:
            self._database_errors.labels(operation).inc()

    def database_retry(self, reason: str) -> None:
        """A transaction is done again."""
        self._database_retries.labels(reason).inc()

    def http(self, method: str, path: str | None, status: int, seconds: float | None) -> None:
        """A call was answered. ``path`` is its pattern, None for one that leads nowhere; seconds None: it waited."""
        pattern = path or NO_PATH
        self._http.labels(method if method in METHODS else "other", pattern, status).inc()
        if seconds is not None:
            self._http_seconds.labels(pattern).observe(seconds)

    def watch(
        self,
        lanes: Sequence[Lanes],
        stuck: Callable[[], Mapping[Any, float]],
        held: Callable[[], Mapping[str, list[int]]],
    ) -> None:
        """Tell of workers and their lanes, of what is ``stuck``, and of lanes that are ``held``, as they are now."""
        self.registry.register(_Now(self.server, lanes, stuck, held))


class _Now(Collector):
    """What is looked up when it is asked for."""

    def __init__(
        self,
        server: str,
        lanes: Sequence[Lanes],
        stuck: Callable[[], Mapping[Any, float]],
        held: Callable[[], Mapping[str, list[int]]],
    ) -> None:
        self._server = server
        self._lanes = lanes
        self._stuck = stuck
        self._held = held

    def describe(self) -> list[Metric]:
        """Nothing: it needs not be asked before it has something to tell."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The process as it is."""
        stuck, held = self._stuck(), self._held()
        yield BUILD_INFO.gauge({(__version__, self._server): 1})
        yield LIVE.gauge({(): not stuck})
        yield STUCK.gauge({(): len(stuck)})
        yield LANES_HELD.gauge({(): len(held)})
        yield EFFECTS_HELD.gauge({(): sum(map(len, held.values()))})
        found = {lanes.name: lanes.occupation() for lanes in self._lanes}
        yield WORKERS.gauge({(name,): now.workers for name, now in found.items()})
        yield WORKERS_BUSY.gauge({(name,): now.busy for name, now in found.items()})
        yield WORK_OLDEST.gauge({(name,): now.oldest for name, now in found.items()})
        waiting: dict[tuple[str, ...], float] = {(name, "worker"): now.turns for name, now in found.items()}
        waiting |= {(name, "lane"): now.behind for name, now in found.items()}
        yield WORK_WAITING.gauge(waiting)
        yield LANES.gauge({(name,): now.lanes for name, now in found.items()})
        yield LANE_LONGEST.gauge({(name,): now.longest for name, now in found.items()})


@lru_cache(256)
def snake_case(name: str) -> str:
    """The name of a class as a label: ``PowerCycle`` is ``power_cycle``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
