# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Those who use the pool: clients that come and go, and people who meddle."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from sqlalchemy import Connection

from mozpool.daemon import Daemon
from mozpool.db import inventory
from mozpool.db.images import HOSTED, JOB
from mozpool.db.requests import Request
from mozpool.errors import DatabaseAway, MozpoolError
from mozpool.lifeguard.inventory.hosts import Host, Hosts
from mozpool.lifeguard.inventory.plan import plan
from mozpool.lifeguard.inventory.sync import carry_out
from mozpool.pool.criteria import ANY
from mozpool.pool.service import NewRequest
from mozpool.simulate.faults import FORCED_STATES, Scripted
from mozpool.simulate.scenario import Load
from mozpool.simulate.servers import Unreachable

if TYPE_CHECKING:
    from mozpool.simulate.world import World

LOOK_EVERY = 60.0
"""Seconds for which a client waits for news of its request before it asks again."""

BURST_EVERY = 900.0
"""Seconds between two bursts."""

ASK_AGAIN = 5.0
"""Seconds until a client tries again what did not work."""


Deed = Callable[[random.Random, Any], None]
"""What somebody does; the second argument says what exactly, and where, if it is a fault."""


class Client:
    """Somebody who asks for devices of one kind, again and again."""

    def __init__(self, world: World, load: Load, number: int) -> None:
        self._world = world
        self._load = load
        self._rng = random.Random(f"{world.seed}:client:{number}")
        self._asked = 0

    def run(self) -> None:
        """Ask, at random moments, as long as the scenario lasts."""
        world, load = self._world, self._load
        if load.bursts:
            world.scheduler.spawn(self._burst, f"clients/{load.name}/bursts", "clients")
        while load.per_hour > 0:
            world.scheduler.sleep(self._rng.expovariate(load.per_hour / 3600.0))
            if world.closing:
                return
            self._ask(0.0)

    def _burst(self) -> None:
        """Many at a time, for all loads at the same time."""
        world = self._world
        while True:
            world.scheduler.sleep(BURST_EVERY / 2 if world.scheduler.time < BURST_EVERY / 2 else BURST_EVERY)
            if world.closing:
                return
            for _ in range(self._load.bursts):
                self._ask(self._rng.uniform(0.0, 1.0))

    def _ask(self, later: float) -> None:
        self._asked += 1
        group = f"{self._load.name}-{self._asked}"
        for number in range(self._load.phones):
            name = group if self._load.phones == 1 else f"{group}-{number + 1}"
            asker = Asker(self._world, self._load, name, random.Random(self._rng.random()), group)
            self._world.scheduler.spawn(lambda asker=asker: asker.run(later), name, "clients")  # type: ignore[misc]


class Asker:
    """One request, from the first call to the return of the device."""

    def __init__(self, world: World, load: Load, name: str, rng: random.Random, group: str) -> None:
        """``group`` is what those have in common who ask for the same job on several phones."""
        self.name = name
        self._group = group
        self._world = world
        self._load = load
        self._rng = rng

    def run(self, later: float) -> None:
        """Ask so many seconds from now, wait, use, return."""
        self._world.scheduler.sleep(later)
        request = self._ask()
        if request is None:
            return
        world = self._world
        if world.faults.happens("client_vanishes", self.name):
            return
        while request is not None and request.is_open and request.state != "ready":
            request = self._look(request)
        if request is None or not request.is_open:
            return
        self._use(request)

    def _new(self) -> NewRequest:
        load, rng = self._load, self._rng
        device = ANY
        if rng.random() < load.named:
            device = rng.choice(self._world.phones if load.image in HOSTED else self._world.names)
        boot_config: dict[str, Any] = {}
        if load.image == "b2g":
            boot_config = {"b2gbase": f"http://builds/{rng.randrange(load.builds)}/"}
        elif load.image == JOB:
            boot_config = {"project": "simulated", "group": self._group, "phones": load.phones}
        return NewRequest(
            device=device,
            assignee=f"{self.name}@example.com",
            duration=int(load.duration),
            image=load.image,
            boot_config=boot_config,
            environment=load.environment,
            hardware_type=load.hardware_type,
            labels=load.labels,
            wait=load.wait,
            priority=load.priority,
            callback_url=f"http://client-{len(self.name) % 3}/{quote(self.name)}" if load.callback else None,
            idempotency_key=self.name,
        )

    def _ask(self) -> Request | None:
        """Any server will do; the same key makes it safe to ask another one."""
        world, new = self._world, self._new()
        for _ in range(20):
            try:
                return world.network.call(
                    self._any_server(), f"POST request {self.name}", lambda daemon: daemon.mozpool.create(new)
                )
            except Unreachable:
                pass
            except MozpoolError as error:
                if error.status < 500:
                    world.say(f"{self.name} is refused: {error.message}")
                    return None
            world.scheduler.sleep(ASK_AGAIN)
        return None

    def _look(self, request: Request) -> Request | None:
        """The request as soon as it is ready or has ended, or a while later; None when it is gone."""
        world = self._world
        deadline = self._rng.uniform(0.5, 1.0) * LOOK_EVERY

        def work(daemon: Daemon) -> Request:
            return daemon.mozpool.get(request.id)

        world.wait_for_device(request.id, deadline)
        try:
            return world.network.call(self._any_server(), f"GET request {request.id}", work)
        except Unreachable:
            world.scheduler.sleep(ASK_AGAIN)
            return request
        except MozpoolError as error:
            if error.status == 404:
                return None
            world.scheduler.sleep(ASK_AGAIN)
            return request

    def _any_server(self) -> str:
        return self._rng.choice(self._world.server_names)

    def _use(self, request: Request) -> None:
        world, load = self._world, self._load
        end = world.scheduler.time + self._rng.expovariate(1 / load.hold)
        while (left := end - world.scheduler.time) > 0 and not world.closing:
            world.scheduler.sleep(min(left, load.duration / 2))
            if end > world.scheduler.time:
                self._try("renew", request, lambda daemon: daemon.mozpool.renew(request.id, load.duration))
        for _ in range(20):
            if self._try("return", request, lambda daemon: daemon.mozpool.give_back(request.id)):
                return
            world.scheduler.sleep(ASK_AGAIN)

    def _try(self, what: str, request: Request, work: Callable[[Daemon], object]) -> bool:
        try:
            self._world.network.call(self._any_server(), f"{what} request {request.id}", work)
        except Unreachable:
            return False
        except MozpoolError as error:
            return error.status < 500
        return True


class Meddler:
    """People, the inventory, and the machines' clocks."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._hosts: dict[str, Host] | None = None
        """What the inventory has, by name; None until that matters."""

    def start(self) -> None:
        """Begin."""
        people, scheduler = self._world.scenario.people, self._world.scheduler
        for per_hour, deed, kind, name in (
            (people.forced_states, self._force, "forced_state", "forces"),
            (people.offline, self._offline, "offline", "takes offline"),
            (people.removed, self._remove, "removed", "removes"),
            (people.mends, self._mend, None, "mends"),
            (people.clock_jumps, self._jump, "clock_jump", "clocks"),
        ):
            if per_hour > 0:
                what = None if kind is None else Scripted(kind)
                scheduler.spawn(self._often(per_hour, deed, what, name), f"people/{name}", "people")
            for number, scripted in enumerate(self._world.scenario.script):
                if scripted.kind == kind:
                    scheduler.spawn(self._once(scripted, deed, number), f"people/{name} by script", "people")

    def _often(self, per_hour: float, deed: Deed, what: Scripted | None, name: str) -> Callable[[], None]:
        rng = random.Random(f"{self._world.seed}:people:{name}")

        def work() -> None:
            while True:
                self._world.scheduler.sleep(rng.expovariate(per_hour / 3600.0))
                if self._world.closing:
                    return
                deed(rng, what)

        return work

    def _once(self, scripted: Scripted, deed: Deed, number: int) -> Callable[[], None]:
        rng = random.Random(f"{self._world.seed}:people:script:{number}")

        def work() -> None:
            self._world.scheduler.sleep(scripted.at)
            deed(rng, scripted)

        return work

    def _device(self, rng: random.Random, what: Scripted) -> tuple[int, str, str] | None:
        """A device to do it to: id, name, server; None when there is none, or nothing is to go wrong any more."""
        devices = self._world.watcher.devices
        fitting = sorted(id_ for id_, device in devices.items() if what.where in device.name)
        if not fitting:
            return None
        device = devices[rng.choice(fitting)]
        if not self._world.faults.do(what, device.name):
            return None
        server = self._world.server_named(device.server_id)
        return device.id, device.name, server

    def _call(self, server: str, what: str, name: str, work: Callable[[Daemon], object]) -> None:
        self._world.watcher.disturbed[name] = float("inf")
        try:
            self._world.network.call(server, f"{what} {name}", work)
        except (Unreachable, MozpoolError) as error:
            self._world.say(f"{what} {name} failed: {error}")
        finally:
            # A call that was given up may still be on its way for a while.
            self._world.watcher.disturbed[name] = self._world.scheduler.time + 120.0

    def _force(self, rng: random.Random, what: Scripted) -> None:
        if (found := self._device(rng, what)) is None:
            return
        id_, name, server = found
        state = what.state or rng.choice(FORCED_STATES)
        self._call(server, f"force {state}", name, lambda daemon: daemon.devices.force(id_, state))

    def _offline(self, rng: random.Random, what: Scripted) -> None:
        if (found := self._device(rng, what)) is None:
            return
        id_, name, server = found
        self._call(server, "offline", name, lambda daemon: daemon.lifeguard.set_status(id_, "offline"))

    def _mend(self, rng: random.Random, what: None) -> None:
        self.mend()

    def mend(self, *, all_of_them: bool = False) -> None:
        """Start the self-tests of all that are broken, or that are not ready at all."""
        broken = ("failed_", "locked_out", "troubleshooting", "maintenance_mode", "unknown")
        for device in list(self._world.watcher.devices.values()):
            if device.claim_id is not None or device.state == "ready":
                continue
            if all_of_them or device.state.startswith(broken):
                server = self._world.server_named(device.server_id)
                self._call(server, "mend", device.name, self._start_self_test(device.id))

    @staticmethod
    def _start_self_test(device_id: int) -> Callable[[Daemon], object]:
        return lambda daemon: daemon.devices.force(device_id, "start_self_test")

    def _remove(self, rng: random.Random, what: Scripted) -> None:
        """The inventory loses a device, which goes when it is free; minutes later it has the device again."""
        if (found := self._device(rng, what)) is None:
            return
        name = found[1]
        if name in self._world.phones:
            return  # no inventory has it
        try:
            hosts = self._hosts = self._hosts or self._inventory()
        except DatabaseAway:
            return
        host = hosts.pop(name, None)
        if host is None:
            return  # it is lost already
        self._synchronise(hosts, rng)
        self._world.scheduler.sleep(rng.uniform(1.0, 200.0))
        hosts[name] = host
        while not self._synchronise(hosts, rng):
            self._world.scheduler.sleep(rng.uniform(1.0, 200.0))

    def _inventory(self) -> dict[str, Host]:
        """The devices that there are, as the inventory has them."""
        with self._world.database.read() as connection:
            known = inventory.read(connection)
        return {
            device.name: Host(
                place=device.name,
                inventory_id=device.inventory_id,
                name=device.name,
                fqdn=device.fqdn,
                mac_address=device.mac_address,
                imaging_server=device.imaging_server,
                relay_info=device.relay_info,
                hardware=device.hardware,
                environment=device.environment,
                labels=device.labels,
            )
            for device in known.devices
            if device.inventory_id
        }

    def _synchronise(self, hosts: dict[str, Host], rng: random.Random) -> bool:
        """Bring the pool into line with the inventory; answer whether that could be done."""
        database = self._world.database

        def work(connection: Connection) -> None:
            made = plan(Hosts(list(hosts.values())), inventory.read(connection), "simulated")
            carry_out(connection, made, rng, database.clock)

        try:
            database.run(work, repeatable=True)
        except DatabaseAway:
            return False
        return True

    def _jump(self, rng: random.Random, what: Scripted) -> None:
        world = self._world
        names = [name for name in world.server_names if what.where in name]
        if not names:
            return
        server = world.servers[rng.choice(names)]
        seconds = rng.choice((-300.0, -20.0, -2.0, 2.0, 20.0, 300.0)) * rng.random()
        if what.seconds is not None:
            seconds = what.seconds
        if world.faults.do(what, f"{server.name}, {seconds:.1f} s"):
            server.clock.jump(seconds)
            world.watcher.clocks_jumped_until = world.scheduler.time + 10.0
            world.disturb()
