# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Power by any program: ``[commands]`` of the configuration says what is run.

``NAME.on``, ``NAME.off`` and ``NAME.status`` are argument lists for the devices with the option ``command = NAME``.
There is no shell: a ``{placeholder}`` is replaced inside its argument, which is never split again. ``NAME.test``, where
there is one, tells whether the switch itself works: it decides whose fault a failure is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from mozpool.bmm import program
from mozpool.bmm.interfaces import BackendContext, Power, Target
from mozpool.bmm.netio import shown
from mozpool.clock import Deadline
from mozpool.errors import BadInput, HardwareError, LaneError

OFF_TIME = 1.0
"""Seconds that a device stays without power in a power cycle."""

SETTLING = 5.0
"""Seconds within which the status must agree after a switch."""

TEST_SHARE = 1 / 6
"""The part of an operation's time that is left for the test of the switch when the operation hangs."""

_PAUSE = 0.5
_SHOWN = 200
_PLACEHOLDER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_-]*)\}")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")


class CommandPower(Power):
    """Runs programs; their exit status 0 means done. The status program prints ``on`` or ``off``."""

    def __init__(self, context: BackendContext) -> None:
        self._clock = context.clock
        self._commands = context.commands
        self._off_time = OFF_TIME / context.speed
        self._settling = SETTLING / context.speed
        self._pause = _PAUSE / context.speed

    def lane(self, device: Target) -> str:
        """``command:NAME:LANE`` with the option ``lane``, else ``command:NAME:DEVICE``. Raises HardwareError."""
        name = _name_of(device, "power control")
        lane = device.options.get("lane")
        if lane is None:
            return f"command:{name}:{device.name}"
        if not lane or len(lane) > _SHOWN or not lane.isprintable():
            reason = f"its option lane, {lane[:_SHOWN]!r}, is not 1 to {_SHOWN} printable characters"
            raise HardwareError(device.name, "power control", reason)
        return f"command:{name}:{lane}"

    def power_cycle(self, device: Target, deadline: Deadline) -> None:
        """Off, read back, wait, on, read back. Raises HardwareError, LaneError."""
        operation = "power cycle"
        # Before the power is cut: whether it can be restored at all.
        off, on, status = (self._command(device, operation, action) for action in ("off", "on", "status"))
        with self._judged(device, deadline) as end:
            try:
                self._switch(device, operation, off, status, end, power=False)
                self._clock.sleep(end.remaining(self._off_time))
                self._switch(device, operation, on, status, end, power=True)
            except HardwareError as e:
                raise HardwareError(device.name, operation, f"{e.reason}; the device may be without power") from e

    def power_off(self, device: Target, deadline: Deadline) -> None:
        """Cut the power and read back. Raises HardwareError, LaneError."""
        operation = "power off"
        off, status = (self._command(device, operation, action) for action in ("off", "status"))
        with self._judged(device, deadline) as end:
            self._switch(device, operation, off, status, end, power=False)

    def power_on(self, device: Target, deadline: Deadline) -> None:
        """Restore the power and read back. Raises HardwareError, LaneError."""
        operation = "power on"
        on, status = (self._command(device, operation, action) for action in ("on", "status"))
        with self._judged(device, deadline) as end:
            self._switch(device, operation, on, status, end, power=True)

    def is_on(self, device: Target, deadline: Deadline) -> bool | None:
        """What the status program prints; None where there is none. Raises HardwareError, LaneError."""
        status = self._command(device, "power status", "status")
        with self._judged(device, deadline) as end:
            return self._status(device, "power status", status, end)

    def test(self, lane: str, deadline: Deadline) -> None:
        """Run ``NAME.test``. Raises LaneError, and BadInput for a lane that has no such program."""
        backend, name, place = (*lane.split(":", 2), "", "")[:3]
        template = self._template(name, "test")
        if backend != "command" or not place or template is None:
            raise BadInput.value("lane", lane, f"one that can be tested: [commands] has no {name}.test")
        try:
            _run(lane, "test", fill_in(template, {"lane": place}), deadline)
        except ValueError as e:
            raise LaneError(lane, "test", f"[commands] {name}.test: {e}", culprit=lane) from e
        except HardwareError as e:
            raise LaneError(lane, "test", e.reason, culprit=lane) from e

    @contextmanager
    def _judged(self, device: Target, deadline: Deadline) -> Iterator[Deadline]:
        """Until when an operation may take; of its failure the switch is guilty that fails its test, too."""
        lane = self.lane(device)
        if self._template(_name_of(device, "power control"), "test") is None:
            yield deadline
            return
        try:
            yield deadline.within((1 - TEST_SHARE) * deadline.remaining())
        except HardwareError as error:
            try:
                self.test(lane, deadline)
            except LaneError as fault:
                reason = f"{error.reason} ({fault.reason.removeprefix(f'{lane}: ')})"
                raise LaneError(device.name, error.operation, reason, culprit=lane) from error
            raise

    def _template(self, name: str, action: str) -> tuple[str, ...] | None:
        """Program and arguments as they are configured; None where there is no such program."""
        key = f"{name}.{action}"
        # configparser reads keys in lower case.
        return self._commands.get(key, self._commands.get(key.lower()))

    def _command(self, device: Target, operation: str, action: str) -> list[str] | None:
        """The argument list for ``action``; None where there is no status program. Raises HardwareError."""
        name = _name_of(device, operation)
        template = self._template(name, action)
        if template is None:
            if action == "status":
                return None
            raise HardwareError(device.name, operation, f"[commands] has no {name}.{action}")
        own = {"name": device.name, "address": device.address, "mac_address": device.mac_address}
        try:
            return fill_in(template, {**device.options, **own})
        except ValueError as e:
            raise HardwareError(device.name, operation, f"[commands] {name}.{action}: {e}") from e

    def _switch(
        self,
        device: Target,
        operation: str,
        command: list[str] | None,
        status: list[str] | None,
        deadline: Deadline,
        *,
        power: bool,
    ) -> None:
        assert command is not None
        _run(device.name, operation, command, deadline)
        settling = deadline.within(self._settling)
        while (has_power := self._status(device, operation, status, deadline)) is not None and has_power is not power:
            if settling.expired:
                reason = f"its status is {_word(has_power)} after it was switched {_word(power)}"
                raise HardwareError(device.name, operation, reason)
            self._clock.sleep(settling.remaining(self._pause))

    def _status(self, device: Target, operation: str, command: list[str] | None, deadline: Deadline) -> bool | None:
        if command is None:
            return None
        answer = _run(device.name, operation, command, deadline).strip()
        if answer.lower() not in ("on", "off"):
            reason = f"{command[0]} printed {shown(answer, _SHOWN)} where on or off was expected"
            raise HardwareError(device.name, operation, reason)
        return answer.lower() == "on"


def fill_in(template: Sequence[str], values: Mapping[str, str]) -> list[str]:
    """The arguments with these values in place of ``{name}``, ``{address}`` and other placeholders.

    Braces around anything else than such a word stay. A value must not turn its argument into an option: one that
    begins with a dash is only put behind other text, or behind an argument ``--``. The program itself is never
    replaced. Raises ValueError, whose text completes a sentence about the template.
    """
    name, *arguments = template
    if _PLACEHOLDER.search(name):
        raise ValueError("the program must not have a placeholder")
    filled = [name]
    for argument in arguments:
        text = _PLACEHOLDER.sub(lambda match: _value(match[1], values), argument)
        if text.startswith("-") and not argument.startswith("-") and "--" not in template[: len(filled)]:
            raise ValueError(f"{argument} becomes {text[:80]!r}, which would pass for an option (put -- before it)")
        filled.append(text)
    return filled


def _value(name: str, values: Mapping[str, str]) -> str:
    value = values.get(name)
    if not value:
        raise ValueError(f"there is no {name}")
    if not value.isprintable():
        raise ValueError(f"its {name}, {value[:80]!r}, is not one line of text")
    return value


def _name_of(device: Target, operation: str) -> str:
    """The option ``command``. Raises HardwareError."""
    name = device.options.get("command")
    if name is None:
        raise HardwareError(device.name, operation, "it has no option command")
    if not _NAME.fullmatch(name):
        reason = f"its option command, {name[:80]!r}, is not a name of letters, digits and . _ -"
        raise HardwareError(device.name, operation, reason)
    return name


def _run(device: str, operation: str, command: list[str], deadline: Deadline) -> str:
    """Run a program and return what it printed (its last part). Raises HardwareError."""
    try:
        return program.run(command, deadline).decode(errors="replace")
    except program.ProgramError as e:
        raise HardwareError(device, operation, str(e)) from e


def _word(power: bool) -> str:
    return "on" if power else "off"
