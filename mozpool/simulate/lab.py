# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The lab of the simulation: boards, what hangs between them and the servers, and BMM's backends for it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence

from mozpool.bmm.backends.proxr import RelayInfo
from mozpool.bmm.interfaces import Agent, Boot, CommandResult, Power, Probe, Target
from mozpool.clock import Deadline
from mozpool.errors import HardwareError, LaneError
from mozpool.fakes.board import Behaviour, BoardSpec, FakeBoard
from mozpool.fakes.httpclient import Answer
from mozpool.simulate.cloud import Cloud, SimulatedLauncher
from mozpool.simulate.faults import Faults
from mozpool.simulate.loop import Problem, SimulatedLoop
from mozpool.simulate.scheduler import Scheduler

CONNECT_LIMIT = 10.0
"""Seconds until a relay board that does not answer is given up."""

Get = Callable[[str, Callable[[int, bytes], None]], None]
"""GETs a URL and calls back with status and body; status 0 when nobody answered."""


class Wiring:
    """A board's surroundings (see :class:`mozpool.fakes.board.Surroundings`)."""

    def __init__(self, lab: Lab, name: str) -> None:
        self.agent = False
        self._lab = lab
        self._name = name

    async def plug_in(self) -> None:
        """Pings are asked of the board itself."""

    def unplug(self) -> None:
        """Nothing to close."""

    async def agent_up(self) -> None:
        """The agent answers."""
        self.agent = True

    def agent_down(self) -> None:
        """The agent answers no more."""
        self.agent = False

    def wipe(self) -> None:
        """Files play no part."""

    async def read_pxe_file(self) -> str | None:
        """What the boot backend wrote."""
        return self._lab.pxe.get(self._name)

    async def get(self, url: str, headers: Mapping[str, str]) -> Answer:
        """GET by the simulated network, where everybody is believed."""
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

        def called_back(status: int, body: bytes) -> None:
            if answer.done():  # the board lost its power meanwhile
                return
            if status:
                answer.set_result(Answer(status, body))
            else:
                answer.set_exception(TimeoutError("nobody answered"))

        self._lab.get(url, called_back)
        return await answer


class SimulatedBoard(FakeBoard):
    """A board whose failures are faults of the simulation."""

    faults: Faults

    def _fails(self, what: str) -> bool:
        by_chance = super()._fails(what)
        return self.faults.is_due(what, self.name) or (by_chance and self.faults.note(what, self.name))


class Lab:
    """All boards and relay boards."""

    def __init__(
        self,
        specs: Sequence[BoardSpec],
        behaviours: Mapping[str, Behaviour],
        phones: Sequence[str] = (),
        *,
        scheduler: Scheduler,
        faults: Faults,
        seed: str,
    ) -> None:
        """``behaviours``: those of the boards, by device name; ``phones``: names of hosted devices."""
        self.cloud = Cloud(phones, scheduler=scheduler, faults=faults, seed=seed)
        self.scheduler = scheduler
        self.faults = faults
        self.pxe: dict[str, str] = {}
        """Device name → its boot configuration."""
        self.get: Get = lambda url, call_back: call_back(0, b"")
        self.on_power: Callable[[str, str], None] = lambda device, what: None
        """Told of what was done to a device, just before it is done."""
        self.restarted: dict[str, float] = {}
        """Device name → when its power or its agent last restarted it, in simulated seconds."""
        self.begun: dict[tuple[str, str], float] = {}
        """(Device, what was done to it) → when that began the last time."""
        self.loop = SimulatedLoop(
            lambda: scheduler.time, lambda seconds, call: _later(scheduler, seconds, call), self._problem
        )
        self.boards: dict[str, SimulatedBoard] = {}
        self.wirings: dict[str, Wiring] = {}
        self.hanging: dict[str, float] = {}
        """Relay board → until when it hangs."""
        self.rng = random.Random(f"{seed}:lab")
        for spec in specs:
            wiring = self.wirings[spec.name] = Wiring(self, spec.name)
            board = SimulatedBoard(
                spec, wiring, server_url="http://nobody", behaviour=behaviours[spec.name], seed=f"{seed}:{spec.name}"
            )
            board.faults = faults
            self.boards[spec.name] = board

    def start(self) -> None:
        """Switch everything on; it is up when the scheduler runs."""
        for board in self.boards.values():
            self.loop.create_task(board.start())

    def _problem(self, problem: Problem) -> None:
        """A board's code broke; boards that are still at it when the run ends are none."""
        error = problem.get("exception")
        if error is not None:
            self.scheduler.halt(error)

    def backends(self) -> dict[tuple[str, str], object]:
        """For BMM, by interface and name."""
        return {
            ("power", "simulated"): SimulatedPower(self),
            ("boot", "simulated"): SimulatedBoot(self),
            ("probe", "simulated"): SimulatedProbe(self),
            ("agent", "simulated"): SimulatedAgent(self),
            ("launcher", "cloud"): SimulatedLauncher(self.cloud, self.begin, self.scheduler, self.faults),
        }

    def begin(self, device: str, what: str) -> None:
        """Something is about to be done to a device."""
        self.begun[device, what] = self.scheduler.time

    def spend(self, seconds: float, deadline: Deadline) -> None:
        """Take about so many seconds, at most what is left."""
        self.scheduler.sleep(deadline.remaining(seconds * self.rng.uniform(0.7, 1.3)))

    def restarts(self, device: str, what: str) -> None:
        """Note that a board is made to start anew."""
        self.restarted[device] = self.scheduler.time
        self.on_power(device, what)


def _later(scheduler: Scheduler, seconds: float, call: Callable[[], None]) -> None:
    scheduler.call_later(seconds, call)


def _check(deadline: Deadline, device: Target, what: str) -> None:
    """As the real backends do before each thing that they say to a device: no time is left, nothing is said."""
    if deadline.expired:
        raise HardwareError(device.name, what, "no time is left")


class SimulatedPower(Power):
    """Relay boards that hang and read back nonsense."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab

    def lane(self, device: Target) -> str:
        """That of its relay board."""
        if device.relay_info is None:
            raise HardwareError(device.name, "power", "no relay_info")
        return f"simulated:{RelayInfo.parse(device.relay_info).board}"

    def power_cycle(self, device: Target, deadline: Deadline) -> None:
        """Off, and on again."""
        self._lab.begin(device.name, "power on")
        self._set(device, False, deadline)
        self._lab.spend(1.0, deadline)
        self._set(device, True, deadline)

    def power_off(self, device: Target, deadline: Deadline) -> None:
        """Off."""
        self._set(device, False, deadline)

    def power_on(self, device: Target, deadline: Deadline) -> None:
        """On."""
        self._set(device, True, deadline)

    def is_on(self, device: Target, deadline: Deadline) -> bool | None:
        """What the relay says."""
        self._connect(self.lane(device), device.name, deadline)
        return self._lab.boards[device.name].powered

    def test(self, lane: str, deadline: Deadline) -> None:
        """Talk to the relay board."""
        self._connect(lane, lane, deadline)

    def _connect(self, lane: str, device: str, deadline: Deadline) -> None:
        lab = self._lab
        if lab.faults.happens("relay_hangs", lane):
            lab.hanging[lane] = lab.scheduler.time + lab.faults.uniform(5.0, 600.0)
        if lab.hanging.get(lane, 0.0) > lab.scheduler.time:
            lab.scheduler.sleep(deadline.remaining(CONNECT_LIMIT))
            raise LaneError(device, "power", "no answer", culprit=lane)
        lab.spend(lab.faults.uniform(0.0, 10.0) if lab.faults.happens("relay_slow", lane) else 0.1, deadline)

    def _set(self, device: Target, on: bool, deadline: Deadline) -> None:
        lab = self._lab
        self._connect(self.lane(device), device.name, deadline)
        _check(deadline, device, "power")
        obeys = True
        wrong = lab.faults.happens("relay_wrong", device.name)
        if wrong:
            obeys = lab.faults.uniform(0.0, 1.0) < 0.5
        if obeys:
            lab.restarts(device.name, "power on" if on else "power off")
            lab.boards[device.name].set_power(on)
        if wrong:
            raise HardwareError(device.name, "power", f"the relay reads back {'off' if on else 'on'}")


class SimulatedBoot(Boot):
    """Boot configurations in memory."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab

    def set_config(self, device: Target, config: str, deadline: Deadline) -> None:
        """Write it."""
        self._lab.pxe[device.name] = config

    def clear(self, device: Target, deadline: Deadline) -> None:
        """Remove it."""
        self._lab.pxe.pop(device.name, None)


class SimulatedProbe(Probe):
    """Asks the board."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab

    def ping(self, device: Target, deadline: Deadline) -> bool:
        """Whether it answers."""
        self._lab.begin(device.name, "ping")
        self._lab.spend(0.05, deadline)
        return self._lab.boards[device.name].answers_ping()


class SimulatedAgent(Agent):
    """Agents that go away in the middle of things."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab

    def verify(self, device: Target, deadline: Deadline) -> None:
        """Talk to it."""
        self._talk(device, "verify", 0.5, deadline)

    def check_storage(self, device: Target, deadline: Deadline) -> None:
        """Takes some seconds."""
        self._talk(device, "check storage", 4.0, deadline)

    def reboot(self, device: Target, deadline: Deadline) -> None:
        """Reboot the board."""
        self._talk(device, "reboot", 0.5, deadline)
        _check(deadline, device, "reboot")
        self._lab.restarts(device.name, "reboot")
        self._lab.boards[device.name].reboot()

    def uptime(self, device: Target, deadline: Deadline) -> float | None:
        """Since its last boot."""
        self._talk(device, "uptime", 0.2, deadline)
        return self._lab.boards[device.name].uptime()

    def run(self, device: Target, command: Sequence[str], deadline: Deadline) -> CommandResult:
        """Every command works."""
        self._talk(device, "run", 1.0, deadline)
        return CommandResult("", 0)

    def _talk(self, device: Target, what: str, seconds: float, deadline: Deadline) -> None:
        lab, wiring = self._lab, self._lab.wirings[device.name]
        lab.begin(device.name, what)
        if not wiring.agent:
            lab.spend(0.2, deadline)
            raise HardwareError(device.name, what, "connection refused")
        if lab.faults.happens("agent_vanishes", device.name):
            if lab.faults.uniform(0.0, 1.0) < 0.5:
                wiring.agent = False
            lab.scheduler.sleep(deadline.remaining(20.0))
            raise HardwareError(device.name, what, "no answer")
        if lab.faults.happens("agent_slow", device.name):
            seconds = lab.faults.uniform(0.0, 100.0)
        lab.spend(seconds, deadline)
        if deadline.expired:
            raise HardwareError(device.name, what, "no answer in time")
        if not wiring.agent:
            raise HardwareError(device.name, what, "connection lost")
