# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The simulated imaging servers, and the network between them, the boards and the clients."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar
from urllib.parse import unquote, urlsplit

from mozpool.clock import Clock
from mozpool.config import Settings
from mozpool.daemon import Daemon
from mozpool.errors import MozpoolError, NotOurs
from mozpool.links import HTTP_LIMIT
from mozpool.metronome import Metronome
from mozpool.notify.webhook import CALL_LIMIT, NotTaken
from mozpool.pool.link import LinkError
from mozpool.seen import take_id
from mozpool.simulate.database import SimulatedDatabase
from mozpool.simulate.faults import Faults
from mozpool.simulate.scheduler import Event, Lock, Scheduler, SimulatedClock

T = TypeVar("T")


class Unreachable(Exception):
    """A server was not reached, or its answer did not come."""


class SimulatedMetronome(Metronome):
    """As the real one, with actors."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._calls: list[tuple[float, Callable[[], object], str, bool]] = []
        self._over = clock.event()

    def every(self, seconds: float, call: Callable[[], object], name: str, *, now: bool = False) -> None:
        """Make ``call`` every so many seconds. Nobody looks at charts here."""
        if name == "sample":
            return
        self._calls.append((seconds, call, name, now))

    def start(self) -> None:
        """Begin."""
        for seconds, call, name, now in self._calls:
            self._clock.start_thread(self._beat(seconds, call, now), name)

    def _beat(self, seconds: float, call: Callable[[], object], now: bool) -> Callable[[], None]:
        def work() -> None:
            if now:
                call()
            while not self._clock.wait(self._over, seconds):
                call()

        return work

    def stop(self) -> None:
        """Make no more calls."""
        self._over.set()


class Server:
    """An imaging server that can be killed and comes back."""

    def __init__(
        self,
        settings: Settings,
        *,
        seed: str,
        scheduler: Scheduler,
        faults: Faults,
        make_database: Callable[[Clock, random.Random, str], SimulatedDatabase],
        backends: Mapping[tuple[str, str], object],
        post: Callable[[str, str, Mapping[str, Any]], Mapping[str, Any]],
        tell: Callable[[str, bytes, Mapping[str, str]], None],
        interleave: float,
        writer: Lock,
    ) -> None:
        """``post`` calls another server, ``tell`` a client; ``interleave`` is how often a step lets other actors go
        first.

        ``writer`` is SQLite's one writer.
        """
        self.name = settings.server.fqdn
        self.clock = SimulatedClock(scheduler, self.name)
        self.daemon: Daemon | None = None
        """None while it is down."""
        self.starts = 0
        self.frozen_until = 0.0
        self.silent_since = 0.0
        """When it was last killed or frozen."""
        self.started_at = 0.0
        self.on_change: Callable[[str], None] = lambda what: None
        self._settings = settings
        self._scheduler = scheduler
        self._faults = faults
        self._make_database = make_database
        self._backends = backends
        self._post = post
        self._tell = tell
        self._interleave = interleave
        self._writer = writer
        self._seed = seed
        self._rng = random.Random(f"{seed}:{self.name}")

    def start(self) -> None:
        """Bring it up, from an actor of its group or from the hub."""
        self._scheduler.spawn(self._start, f"{self.name}/main", self.name)

    def _start(self) -> None:
        self.starts += 1
        rng = random.Random(f"{self._seed}:{self.name}:{self.starts}")
        while True:
            try:
                daemon = Daemon(
                    self._settings,
                    clock=self.clock,
                    rng=rng,
                    database=self._make_database(self.clock, rng, self.name),
                    metronome=SimulatedMetronome(self.clock),
                    backends=self._backends,
                    post=self._post,
                    tell=self._tell,
                    checkpoint=self._checkpoint,
                    end_process=self._stuck,
                )
                break
            except MozpoolError as error:
                self.on_change(f"does not start: {error}")
                self.clock.sleep(5.0)
        daemon.start()
        self.daemon = daemon
        self.started_at = self._scheduler.time
        self.on_change("is up")

    def _stuck(self) -> None:
        self._scheduler.halt(AssertionError(f"{self.name} is stuck"))

    def kill(self) -> None:
        """End it as a SIGKILL does. From the hub."""
        self.daemon = None
        self.silent_since = self._scheduler.time
        self.on_change("is killed")
        self._scheduler.kill(self.name)

    def _checkpoint(self, point: str) -> None:
        """A step of a transition has ended."""
        if self._faults.happens("crash", f"{self.name}, {point}"):
            back = self._faults.uniform(1.0, 120.0)
            self.daemon = None
            self.silent_since = self._scheduler.time
            self.on_change(f"is killed ({point})")
            self._scheduler.call_later(back, self.start)
            self._scheduler.die()
        elif point != "written" and not self._writer.held and self._faults.happens("freeze", f"{self.name}, {point}"):
            # Not while it holds locks: on SQLite everybody's; MariaDB ends such a transaction in real seconds alone.
            seconds = self._faults.uniform(1.0, 180.0)
            self._scheduler.freeze(self.name, seconds)
            self.frozen_until = self._scheduler.time + seconds
            self.silent_since = self._scheduler.time
            self.on_change(f"is frozen for {seconds:.0f} s ({point})")
            self._scheduler.pause()
        elif self._faults.happens("slow_step", f"{self.name}, {point}"):
            self.clock.sleep(self._faults.uniform(0.0, 2.0))
        elif self._rng.random() < self._interleave:
            self._scheduler.pause()


class _Box(Generic[T]):
    """The result of a call, when there is one."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.over = Event(scheduler)
        self._value: list[T] = []
        self._error: MozpoolError | None = None

    def do(self, work: Callable[[], T]) -> None:
        """Do it; what is wrong with the call is an answer, too."""
        try:
            self._value.append(work())
        except MozpoolError as error:
            self._error = error
        self.over.set()

    def result(self) -> T:
        """What it gave. Raises MozpoolError."""
        if self._error is not None:
            raise self._error
        return self._value[0]


class Network:
    """Calls that get lost, come late, come twice."""

    def __init__(self, scheduler: Scheduler, faults: Faults, rng: random.Random) -> None:
        self.servers: dict[str, Server] = {}
        self.on_told: Callable[[int, str, str], None] = lambda request_id, state, device: None
        """What a client that wants to be called back was told."""
        self._scheduler = scheduler
        self._faults = faults
        self._rng = rng

    def call(self, name: str, what: str, work: Callable[[Daemon], T]) -> T:
        """Have ``work`` done on a server, or where it sends us, and answer its result. From an actor.

        Raises Unreachable, MozpoolError.
        """
        try:
            return self._call(name, what, work)
        except NotOurs as error:
            return self._call(error.owner, what, work)

    def _call(self, name: str, what: str, work: Callable[[Daemon], T]) -> T:
        scheduler, faults = self._scheduler, self._faults
        began = scheduler.time
        scheduler.sleep(faults.uniform(0.0, 7.0) if faults.happens("call_late", what) else self._rng.uniform(0, 0.01))
        if faults.happens("call_repeated", what):
            later = max(0.0, faults.uniform(-60.0, 60.0))
            scheduler.call_later(later, lambda: self._begin(name, what, work))
        if faults.happens("call_lost", what):
            scheduler.sleep(HTTP_LIMIT - min(HTTP_LIMIT, scheduler.time - began))
            raise Unreachable(what)
        box = self._do(name, what, work)
        if box is None:
            raise Unreachable(what)
        lost = faults.happens("answer_lost", what)
        box.over.wait(max(0.0, began + HTTP_LIMIT - scheduler.time))
        if lost or not box.over.is_set():
            scheduler.sleep(max(0.0, began + HTTP_LIMIT - scheduler.time))
            raise Unreachable(what)
        return box.result()

    def _begin(self, name: str, what: str, work: Callable[[Daemon], T]) -> None:
        self._do(name, what, work)

    def _do(self, name: str, what: str, work: Callable[[Daemon], T]) -> _Box[T] | None:
        """Begin to do it on the server, in an actor of its own; None when the server is down."""
        server = self.servers[name]
        daemon = server.daemon
        if daemon is None:
            return None
        box: _Box[T] = _Box(self._scheduler)
        self._scheduler.spawn(lambda: box.do(lambda: work(daemon)), f"{name}/{what}", name)
        return box

    def post(self, name: str, path: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """What :data:`mozpool.links.Post` is in the simulation."""
        try:
            return self._call(name, f"POST {path}", lambda daemon: answer(daemon, path, body))
        except (Unreachable, MozpoolError) as error:
            raise LinkError(f"imaging server {name} does not answer ({type(error).__name__})") from error

    def tell(self, url: str, body: bytes, headers: Mapping[str, str]) -> None:
        """What :data:`mozpool.notify.webhook.Post` is in the simulation."""
        scheduler, faults = self._scheduler, self._faults
        scheduler.sleep(faults.uniform(0.0, CALL_LIMIT) if faults.happens("call_late", url) else 0.01)
        if not faults.happens("call_lost", url):
            said = json.loads(body)["request"]
            self.on_told(said["id"], said["state"], said["assigned_device"])
            if not faults.happens("answer_lost", url):
                return
        scheduler.sleep(CALL_LIMIT)
        raise NotTaken("no answer")

    def get(self, url: str, call_back: Callable[[int, bytes], None]) -> None:
        """A board's GET, from anywhere."""
        parts = urlsplit(url)

        def work() -> None:
            try:
                said = self.call(parts.netloc, f"GET {parts.path}", lambda daemon: answer(daemon, parts.path, {}))
            except Unreachable:
                call_back(0, b"")
            except MozpoolError as error:
                call_back(error.status, b"")
            else:
                call_back(200, str(said.get("boot_config", "")).encode())

        self._scheduler.spawn(work, f"board {parts.path}", "boards")


def answer(daemon: Daemon, path: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the API answers to the few calls that boards and other servers make. Raises MozpoolError."""
    args = dict(body)
    return daemon.seen.once(path, take_id(args), lambda: _answer(daemon, path, args))


def _answer(daemon: Daemon, path: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
    parts = [unquote(part) for part in path.strip("/").split("/")]
    match parts:
        case ["api", "device", name, "bootconfig"]:
            return {"boot_config": daemon.lifeguard.device(name).next_boot_config or ""}
        case ["api", "device", name, "event", "released"]:
            daemon.lifeguard.released(daemon.lifeguard.device(name).id)
            return {}
        case ["api", "device", name, "event", event] if event.startswith("please_"):
            rest = {key: value for key, value in body.items() if key not in ("claim_id", "once")}
            device = daemon.lifeguard.device(name)
            said = daemon.lifeguard.please(device.id, event, rest, claim_id=body["claim_id"], once=bool(body["once"]))
            return {"accepted": said.accepted, "reason": said.reason}
        case ["api", "device", name, "event", event]:
            daemon.lifeguard.event(daemon.lifeguard.device(name).id, event)
            return {}
        case ["api", "request", number, "event", "claimed"]:
            daemon.mozpool.claimed(int(number))
            return {}
        case ["api", "request", number, "event", event]:
            daemon.mozpool.event(int(number), event, body)
            return {}
    raise ValueError(f"no such call in the simulation: {path}")
