# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What is simulated: servers, boards, how they fail, and who asks for devices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mozpool.db.images import AS_IS, JOB
from mozpool.fakes.board import Behaviour
from mozpool.simulate.faults import Rates, Scripted

IMAGES = ("b2g", "android")
"""Images that clients ask for; boards know how to install them."""


@dataclass(frozen=True)
class Kind:
    """Devices of one kind."""

    name: str = "panda"
    """Their hardware type."""
    count: int = 30
    environment: str = "production"
    labels: Mapping[str, str] = field(default_factory=dict)
    boards_per_relay: int = 14
    """How many hang on a relay board."""
    behaviour: Behaviour = field(default_factory=Behaviour)


@dataclass(frozen=True)
class Phones:
    """Hosted devices of one kind, which run jobs in a cloud."""

    name: str = "galaxy"
    """Their hardware type."""
    count: int = 4
    environment: str = "android"


@dataclass(frozen=True)
class Load:
    """Requests of one kind. Times are in seconds."""

    name: str = "tests"
    per_hour: float = 100.0
    """They come at random moments."""
    bursts: int = 0
    """So many come within a second, every quarter of an hour: a build is done, and its tests are started."""
    hold: float = 600.0
    """How long a device is used, on average."""
    duration: float = 1800.0
    """After so long a request expires unless its client renews it; clients renew when half of it has passed."""
    wait: int | None = None
    """How long a client queues; None: as long as the server has it by default."""
    image: str = "b2g"
    builds: int = 3
    """From how many different builds the image is installed: equal ones can be used again."""
    named: float = 0.1
    """The share that wants one device by its name."""
    environment: str = "any"
    hardware_type: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    priority: int = 0
    phones: int = 1
    """On how many phones a job runs, of those that are asked for a job."""
    callback: bool = False
    """Whether its clients want to be called back."""


@dataclass(frozen=True)
class People:
    """What persons do, on average so many times an hour."""

    forced_states: float = 0.0
    """Somebody forces a device into some state."""
    offline: float = 0.0
    """Somebody takes a device offline."""
    removed: float = 0.0
    """The inventory loses a device, which comes back later."""
    mends: float = 2.0
    """Somebody has a look at all devices that failed or are offline, and starts their self-tests."""
    clock_jumps: float = 0.0
    """The wall clock of a server jumps by up to five minutes, forward or back."""


@dataclass(frozen=True)
class Scenario:
    """Everything that a run is made of, but its seed."""

    servers: int = 3
    takeover_after: float | None = None
    """Seconds of silence after which the servers take over from one another; None: they don't."""
    kinds: tuple[Kind, ...] = (Kind(),)
    phones: tuple[Phones, ...] = ()
    loads: tuple[Load, ...] = (Load(),)
    people: People = field(default_factory=People)
    rates: Rates = field(default_factory=Rates)
    script: tuple[Scripted, ...] = ()
    """Faults that are made to happen, besides those that happen by chance."""
    hours: float = 1.0
    interleave: float = 0.2
    """How often another thread goes on between two steps of a transition."""
    scan_interval: float = 30.0
    """Seconds between two scans of a server, which are the safety net only: seldom ones show whether it is needed."""
    timeouts: Mapping[str, float] = field(default_factory=dict)
    """Time limits of states that differ from the built-in ones, in seconds."""
    tries: Mapping[str, int] = field(default_factory=dict)

    @property
    def devices(self) -> int:
        """How many there are."""
        return sum(kind.count for kind in self.kinds) + sum(kind.count for kind in self.phones)


def rough(hours: float = 1.0, devices: int = 30, servers: int = 3) -> Scenario:
    """Everything that can go wrong does: what the tests run, for seed after seed."""
    first = devices * 2 // 3
    return Scenario(
        servers=servers,
        takeover_after=60.0,
        kinds=(
            Kind("panda", first, labels={"pool": "b2g"}),
            Kind("tegra", devices - first, environment="staging", labels={"pool": "android"}),
        ),
        phones=(Phones(count=2),),
        loads=(
            Load(
                "b2g",
                bursts=devices // 6,
                per_hour=0.1 * devices,
                hold=600.0,
                duration=900.0,
                labels={"pool": "b2g"},
                callback=True,
            ),
            Load(
                "android",
                bursts=devices // 15,
                per_hour=0.05 * devices,
                hold=600.0,
                image="android",
                hardware_type="tegra",
                wait=1500,
            ),
            Load("urgent", bursts=1, per_hour=0.05 * devices, hold=300.0, priority=5, named=0.0, wait=1200),
            Load("jobs", bursts=1, per_hour=3.0, hold=900.0, image=JOB, named=0.7, wait=900, environment="android"),
            Load("pairs", per_hour=1.0, hold=900.0, image=JOB, named=0.0, wait=900, phones=2),
            Load("borrowed", per_hour=1.0, hold=300.0, image=AS_IS, named=0.3, hardware_type="galaxy"),
            Load("at once", per_hour=0.05 * devices, hold=60.0, image="android", wait=0, environment="staging"),
        ),
        people=People(forced_states=4.0, offline=2.0, removed=2.0, mends=6.0, clock_jumps=1.0),
        hours=hours,
        scan_interval=60.0,
        # Boards that fail for good are what makes requests look for others: with the built-in numbers they are rare.
        tries={"pc_power_cycling": 5, "pxe_power_cycling": 5, "pxe_booting": 1, "mobile_init_started": 2}
        | dict.fromkeys(("b2g_downloading", "android_downloading", "b2g_extracting", "android_extracting"), 0),
    )
