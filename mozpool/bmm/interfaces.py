# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What BMM can do to hardware: small interfaces, each with as many backends as there are kinds of hardware.

A backend is found through an entry point of the group ``mozpool.power``, ``mozpool.boot``, ``mozpool.probe``,
``mozpool.agent`` or ``mozpool.launcher`` (see :mod:`mozpool.bmm.registry`), is built once per process with
:class:`BackendContext`, and is called from many threads; calls with the same lane never overlap.
Every call is over by its deadline, whatever the peer does, and failures are exceptions that name
device, operation and reason, never a bare ``False``.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from mozpool import config
from mozpool.clock import Clock, Deadline
from mozpool.errors import BadInput, HardwareError
from mozpool.lease import Lease

NO_MAC = "000000000000"
"""The MAC address of a device whose MAC address nobody knows: it cannot boot from the network."""

_MAC = re.compile(r"[0-9a-f]{12}|[0-9a-f]{2}(?:([:-])[0-9a-f]{2})(?:\1[0-9a-f]{2}){4}")


def mac_address(text: str, field: str) -> str:
    """A MAC address as it is stored: twelve lower-case hex digits. Raises BadInput, which calls the value ``field``."""
    if not _MAC.fullmatch(text.lower()):
        raise BadInput.value(field, text, "a MAC address such as aabbccddeeff or aa:bb:cc:dd:ee:ff")
    return re.sub("[:-]", "", text.lower())


@dataclass(frozen=True)
class Target:
    """What a backend may know of a device."""

    name: str
    address: str
    """Host name or IP address at which the device answers pings and its agent."""
    mac_address: str
    """Twelve lower-case hex digits, without colons."""
    relay_info: str | None = None
    """``HOST[:PORT]:bankN:relayM`` where the device hangs on a relay board."""
    hardware_type: str | None = None
    hardware_model: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    """Backend options of this device, from the ``options`` of its ``backends`` column."""


@dataclass(frozen=True)
class BackendContext:
    """What every backend is built with."""

    clock: Clock
    tftp_root: str | None
    """Directory that the TFTP server serves; None where this server offers no network boot."""
    speed: float = 1.0
    """Divides the pauses that a protocol asks for; 1 outside of tests with fakes."""
    settings: config.BMM = field(default_factory=config.BMM)
    """``[bmm]`` of the configuration."""
    commands: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """``[commands]`` of the configuration: name → program and arguments."""
    lambdatest: config.LambdaTest = field(default_factory=config.LambdaTest)
    """``[lambdatest]`` of the configuration."""
    say: Callable[[str, str], None] = lambda device, line: None
    """Writes a line into the log of the device of this name; secrets have been masked by then."""
    lease: Lease | None = None
    """For how long this server may act, and what ends its programs with it; None: nobody else would act."""


@dataclass(frozen=True)
class Cycle:
    """A power cycle that is to be done."""

    device: Target
    deadline: Deadline
    done: Callable[[Exception | None], None]
    """To be told that it was done, or why not: HardwareError, LaneError, NotYet. Only the first time counts."""


class Power(ABC):
    """Cuts and restores a device's power. On and off speak of the device's power."""

    @abstractmethod
    def lane(self, device: Target) -> str:
        """The key of what must not be used twice at a time, e.g. ``relay:HOST:PORT``.

        Raises HardwareError when the device has no usable power control.
        """

    @abstractmethod
    def power_cycle(self, device: Target, deadline: Deadline) -> None:
        """Cut the power, check, wait, restore it, check. Raises HardwareError, LaneError."""

    def power_cycles(self, cycles: Sequence[Cycle]) -> None:
        """Do power cycles of several devices that share a lane, together if that can be, and tell each how it ended."""
        for cycle in cycles:
            try:
                self.power_cycle(cycle.device, cycle.deadline)
            except HardwareError as error:
                cycle.done(error)
            else:
                cycle.done(None)

    @abstractmethod
    def power_off(self, device: Target, deadline: Deadline) -> None:
        """Cut the power and check. Raises HardwareError, LaneError."""

    @abstractmethod
    def power_on(self, device: Target, deadline: Deadline) -> None:
        """Restore the power and check. Raises HardwareError, LaneError."""

    @abstractmethod
    def is_on(self, device: Target, deadline: Deadline) -> bool | None:
        """Whether the device has power; None where the hardware can't tell. Raises HardwareError, LaneError."""

    @abstractmethod
    def test(self, lane: str, deadline: Deadline) -> None:
        """Two-way talk with the thing behind ``lane``, changing nothing. Raises LaneError."""


class Boot(ABC):
    """Decides what a device boots next time it is powered on."""

    @abstractmethod
    def set_config(self, device: Target, config: str, deadline: Deadline) -> None:
        """From now on every boot uses this boot configuration (the whole text). Raises HardwareError, OwnFault."""

    @abstractmethod
    def clear(self, device: Target, deadline: Deadline) -> None:
        """From now on the device boots from its own storage. Nothing to clear is fine.

        Raises HardwareError, OwnFault.
        """


class Probe(ABC):
    """Tells whether a device is there at all."""

    @abstractmethod
    def ping(self, device: Target, deadline: Deadline) -> bool:
        """Try once, about half a second: whether the device answers. Raises HardwareError when it can't be asked."""


@dataclass(frozen=True)
class CommandResult:
    """What a command on a device gave."""

    output: str
    return_code: int | None


class Agent(ABC):
    """Speaks with the program that runs on a device."""

    @abstractmethod
    def verify(self, device: Target, deadline: Deadline) -> None:
        """One attempt to prove that the agent works. Raises HardwareError."""

    @abstractmethod
    def check_storage(self, device: Target, deadline: Deadline) -> None:
        """Write a file on the device's storage, check it and remove it. Raises HardwareError."""

    @abstractmethod
    def reboot(self, device: Target, deadline: Deadline) -> None:
        """Ask the agent to reboot its device; it need not confirm. Raises HardwareError."""

    @abstractmethod
    def uptime(self, device: Target, deadline: Deadline) -> float | None:
        """Seconds since the device booted; None when the agent answers but can't tell. Raises HardwareError."""

    @abstractmethod
    def run(self, device: Target, command: Sequence[str], deadline: Deadline) -> CommandResult:
        """Run a command (argument list) and return its output and code. Raises HardwareError."""


@dataclass(frozen=True)
class HostedStatus:
    """How a hosted device is, as its cloud says."""

    word: str
    """The cloud's own word for it, such as ``busy``."""
    free: bool
    """Whether a job could be started on it now."""
    faulty: bool
    """Whether the cloud itself has given it up."""


@dataclass(frozen=True)
class JobOrder:
    """A job that is wanted on a hosted device, or on several."""

    request_id: int
    """The request it is for, which the job carries as a label: that is how it is found again."""
    project: str
    devices: tuple[str, ...]
    """The names of all devices that were claimed for it: as many as the job's concurrency."""


@dataclass(frozen=True)
class HostedJob:
    """What a cloud says of a job."""

    number: int | None
    id: str | None
    status: str
    """The cloud's own word for it."""
    runs: bool
    ended: bool
    url: str | None = None
    """The page where a person sees it."""


class Launcher(ABC):
    """Runs jobs on devices that live in somebody's cloud. A start must not be done twice, so it is looked for first."""

    @abstractmethod
    def lane(self, device: Target, *, start: bool) -> str:
        """The key of the cloud account, in which starts are one lane and all that only looks or stops is another."""

    @abstractmethod
    def status(self, device: Target, deadline: Deadline) -> HostedStatus:
        """How the device is, by an answer of the cloud that may be some seconds old.

        Raises HardwareError (the account has no such device), LaneError.
        """

    @abstractmethod
    def start(self, device: Target, order: JobOrder, deadline: Deadline) -> None:
        """See to it that the ordered job is on its way; it need not be known to the cloud when this returns.

        If the cloud has the order's job already, nothing is started. Raises NotYet (the account's next start comes
        later), HardwareError (the device is not free, or can't be given this job), OwnFault (this server lacks what
        a start needs), LaneError.
        """

    @abstractmethod
    def look(self, device: Target, order: JobOrder, deadline: Deadline) -> HostedJob | None:
        """The ordered job, as an answer of the cloud has it that may be some seconds old; None: not there yet.

        Raises HardwareError when what should have started it has failed, LaneError.
        """

    @abstractmethod
    def stop(self, device: Target, deadline: Deadline) -> bool:
        """Stop every job of this pool on the device; whether none is left, by a fresh answer of the cloud.

        Raises HardwareError, LaneError.
        """

    @abstractmethod
    def test(self, lane: str, deadline: Deadline) -> None:
        """Two-way talk with the cloud account behind ``lane``, changing nothing. Raises LaneError."""

    def finish(self, deadline: Deadline) -> None:  # noqa: B027 - most have nothing to finish
        """This server stops: begin nothing more, let what is under way end by the deadline, and end it then."""
