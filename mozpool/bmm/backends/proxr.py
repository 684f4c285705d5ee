# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Power through ProXR relay boards (wire facts: ProXR relay boards).

Boards are wired to the normally-closed side: relay **off = device powered**, relay **on = device without power**.
Outside of :class:`_Conversation`, on and off always speak of the device.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from mozpool.bmm.interfaces import BackendContext, Cycle, Power, Target
from mozpool.bmm.netio import Connection, PeerError
from mozpool.clock import Deadline
from mozpool.errors import BadInput, HardwareError, LaneError, NotYet

DEFAULT_PORT = 2101

RECOVERY = 1.0
"""Seconds that a board's network module needs after a disconnect before it takes the next connection."""

OFF_TIME = 1.0
"""Seconds that a device stays without power in a power cycle."""

TOGETHER = 10.0
"""Seconds in which devices that are cycled together get their power back one after the other, at most: they are all
without it meanwhile, and what came of them is told at the end."""

MOST = 32
"""Relays of a board."""

_PREFIX = 254
_COMMUNICATION_TEST = 33
_RELAY_OFF = 100
_RELAY_ON = 108
_READ_RELAY = 116
_DONE = 85

LISTENING = 0.25
"""Seconds after the last answer of a connection in which a board must not say more: after an answer too many, each
answer would be taken for that of the next command, and the last one's own comes last."""

DARK = "; the device may be without power"

_BOARD = re.compile(r"(?P<host>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::(?P<port>[0-9]{1,5}))?")
_RELAY = re.compile(r"(?P<board>.+):bank(?P<bank>[1-4]):relay(?P<relay>[1-8])")


@dataclass(frozen=True)
class Board:
    """Where a relay board listens. ``str()`` gives ``HOST:PORT``, an IPv6 address in brackets."""

    host: str
    """Name or IP address in lower case, without brackets."""
    port: int = DEFAULT_PORT

    @classmethod
    def parse(cls, text: str, field: str = "relay board") -> Board:
        """Read ``HOST[:PORT]``. Raises BadInput, which calls the value ``field``."""
        match = _BOARD.fullmatch(text)
        port = int(match["port"] or DEFAULT_PORT) if match else 0
        if match is None or not 1 <= port <= 65535:
            raise BadInput.value(field, text, "HOST or HOST:PORT with a port from 1 to 65535 (IPv6: [ADDRESS]:PORT)")
        return cls(match["host"].strip("[]").lower(), port)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def lane(self) -> str:
        """The key of what must not be used twice at a time: ``relay:HOST:PORT``."""
        return f"relay:{self}"


@dataclass(frozen=True)
class RelayInfo:
    """Where a device's power hangs: one relay of one board. ``str()`` gives what :meth:`parse` reads."""

    board: Board
    bank: int
    """1 to 4."""
    relay: int
    """1 to 8."""

    @classmethod
    def parse(cls, text: str, field: str = "relay_info") -> RelayInfo:
        """Read ``HOST[:PORT]:bankN:relayM``, e.g. ``relay-7.example.com:bank1:relay3``.

        Raises BadInput, which calls the value ``field``.
        """
        match = _RELAY.fullmatch(text)
        try:
            if match is not None:
                return cls(Board.parse(match["board"]), int(match["bank"]), int(match["relay"]))
        except BadInput:
            pass  # the whole value, not its first half, is what the reader can find again
        raise BadInput.value(field, text, "HOST[:PORT]:bankN:relayM with bank 1 to 4 and relay 1 to 8")

    def __str__(self) -> str:
        return f"{self.board}:bank{self.bank}:relay{self.relay}"


class ProXRPower(Power):
    """Switches devices on relay boards, one connection to a board at a time.

    **After a failure in the middle of a cycle nothing is restored.** The device stays without power, and the
    error says so. Restoring would need the very board that has just failed: a second connection, its second of
    recovery and most probably the same silence, while the board's other devices wait. Whoever asked for the cycle
    asks again, and each cycle ends with the power on.
    """

    def __init__(self, context: BackendContext) -> None:
        self._clock = context.clock
        self._recovery = RECOVERY / context.speed
        self._off_time = OFF_TIME / context.speed
        self._listening = LISTENING / context.speed
        self._spacing = context.settings.relay_spacing / context.speed
        spacing = context.settings.relay_spacing
        self._at_once = max(1, int(TOGETHER / spacing)) if spacing else MOST
        self._source = context.settings.source
        self._lines: dict[Board, _Line] = {}
        self._lock = threading.Lock()

    def lane(self, device: Target) -> str:
        """``relay:HOST:PORT`` of the device's board. Raises HardwareError without a usable ``relay_info``."""
        return _relay_of(device, "power control").board.lane

    def power_cycle(self, device: Target, deadline: Deadline) -> None:
        """Off, read back, wait, on, read back, in one connection. Raises HardwareError, LaneError."""
        relay = _relay_of(device, "power cycle")
        with self._connect(relay.board, device.name, "power cycle", deadline) as board:
            board.switch(relay, power=False)
            self._wait_for_turn(relay.board, deadline, self._off_time)
            board.switch(relay, power=True)
            self._note_start(relay.board)

    def power_cycles(self, cycles: Sequence[Cycle]) -> None:
        """Cycles of one board in one connection: all devices are switched off, then on again.

        Only when the board has said nothing too much at the end is it told what came of each: see :data:`LISTENING`.
        With a spacing, those that would be without power for long are told to come again.
        """
        boards: dict[Board, list[_Going]] = {}
        for cycle in cycles:
            try:
                relay = _relay_of(cycle.device, "power cycle")
            except HardwareError as error:
                cycle.done(error)
                continue
            boards.setdefault(relay.board, []).append(_Going(cycle, relay))
        for board, all_ in boards.items():
            now, later = all_[: self._at_once], all_[self._at_once :]
            self._cycle_together(board, now)
            for going in later:
                going.cycle.done(NotYet(0.0))

    def _cycle_together(self, board: Board, all_: Sequence[_Going]) -> None:
        first = all_[0].cycle
        failure: PeerError | None = None
        try:
            with self._connect(board, first.device.name, "power cycle", first.deadline) as talk:
                for going in all_:
                    going.switch(talk, power=False)
                    going.restore_at = self._clock.monotonic() + self._off_time
                for going in all_:
                    if going.failed is None:
                        talk.turn_to(going.cycle.device.name, going.cycle.deadline)
                        self._wait_for_turn(board, going.cycle.deadline, going.restore_at - self._clock.monotonic())
                        going.switch(talk, power=True)
                        self._note_start(board)
        except LaneError as error:
            assert isinstance(error.__cause__, PeerError)
            failure = error.__cause__
        for going in all_:
            if failure is None:
                going.cycle.done(going.failed)
            elif going.begun or going is all_[0]:
                going.cycle.done(going.lost(failure))
            else:  # nothing was done with it: the next attempt begins with another one
                going.cycle.done(NotYet(0.0))

    def power_off(self, device: Target, deadline: Deadline) -> None:
        """Cut the power and read the relay back. Raises HardwareError, LaneError."""
        relay = _relay_of(device, "power off")
        with self._connect(relay.board, device.name, "power off", deadline) as board:
            board.switch(relay, power=False)

    def power_on(self, device: Target, deadline: Deadline) -> None:
        """Restore the power and read the relay back. Raises HardwareError, LaneError."""
        relay = _relay_of(device, "power on")
        with self._connect(relay.board, device.name, "power on", deadline) as board:
            self._wait_for_turn(relay.board, deadline)
            board.switch(relay, power=True)
            self._note_start(relay.board)

    def is_on(self, device: Target, deadline: Deadline) -> bool:
        """Whether the relay gives the device power. Raises HardwareError, LaneError."""
        relay = _relay_of(device, "power status")
        with self._connect(relay.board, device.name, "power status", deadline) as board:
            return board.has_power(relay)

    def test(self, lane: str, deadline: Deadline) -> None:
        """The board's own two-way communication test. Raises LaneError; BadInput for another kind of lane."""
        kind, _, address = lane.partition(":")
        if kind != "relay":
            raise BadInput.value("lane", lane, "relay:HOST:PORT")
        with self._connect(Board.parse(address, "lane"), lane, "communication test", deadline) as board:
            board.test()

    def _wait_for_turn(self, board: Board, deadline: Deadline, at_least: float = 0.0) -> None:
        """Wait until a device of the board may get power: so many seconds, and until the last one has had its time."""
        self._clock.sleep(deadline.remaining(max(at_least, self._lines[board].next_start - self._clock.monotonic())))

    def _note_start(self, board: Board) -> None:
        """A device of the board has just got power."""
        self._lines[board].next_start = self._clock.monotonic() + self._spacing

    @contextmanager
    def _connect(self, board: Board, device: str, operation: str, deadline: Deadline) -> Iterator[_Conversation]:
        """A conversation with ``board`` that no other one overlaps; its failures leave as LaneError.

        ``device`` and ``operation`` are for the errors.
        """
        with self._lock:
            line = self._lines.setdefault(board, _Line())
        talk = _Conversation(device, operation, deadline, self._listening)
        try:
            if not line.lock.acquire(timeout=deadline.remaining()):
                raise PeerError(f"still in use by another operation after {deadline.seconds:.3g} s")
            try:
                self._clock.sleep(deadline.remaining(line.free_at - self._clock.monotonic()))
                try:
                    with Connection(board.host, board.port, deadline, source=self._source) as talk.connection:
                        yield talk
                        talk.finish()
                finally:
                    # A failed attempt counts too: the board may have seen it.
                    line.free_at = self._clock.monotonic() + self._recovery
            finally:
                line.lock.release()
        except PeerError as e:
            reason = f"{e}{talk.aftermath}"
            raise LaneError(device, operation, reason, culprit=f"relay board {board}") from e


class _Line:
    """The way to one board: who may use it and since when it has recovered."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.free_at = 0.0
        """Monotonic time from which the board takes a connection."""
        self.next_start = 0.0
        """Monotonic time from which the next device may get power."""


@dataclass
class _Going:
    """A power cycle that is done together with others."""

    cycle: Cycle
    relay: RelayInfo
    begun: bool = False
    restore_at: float = 0.0
    """Monotonic time."""
    is_off: bool = False
    """Whether the device may be without power."""
    failed: HardwareError | None = None

    def switch(self, talk: _Conversation, *, power: bool) -> None:
        """Raises PeerError; what is the relay's own fault is noted."""
        self.begun = self.is_off = True
        talk.turn_to(self.cycle.device.name, self.cycle.deadline)
        try:
            talk.switch(self.relay, power=power)
        except HardwareError as error:
            self.failed = error
        else:
            self.is_off = not power

    def lost(self, failure: PeerError) -> LaneError:
        """What its end is when the connection came to a bad one: the board's failure, whatever its relay did."""
        before = f" (before that, {self.failed.reason})" if self.failed is not None else ""
        reason = f"{failure}{before}{DARK if self.is_off else ''}"
        error = LaneError(self.cycle.device.name, "power cycle", reason, culprit=f"relay board {self.relay.board}")
        error.__cause__ = failure
        return error


class _Conversation:
    """The commands of one connection. Any relay of the board can be used in any order."""

    connection: Connection

    def __init__(self, device: str, operation: str, deadline: Deadline, listening: float) -> None:
        self._device = device
        self._operation = operation
        self._deadline = deadline
        self._listening = listening
        self.aftermath = ""
        """What a failure from here on leaves behind, for the end of its message."""

    def turn_to(self, device: str, deadline: Deadline) -> None:
        """The next commands are for this device, and must be over by then."""
        self._device, self._deadline = device, deadline

    def test(self) -> None:
        """Two-way communication test. Raises PeerError."""
        self._command(bytes((_PREFIX, _COMMUNICATION_TEST)), "the communication test", (_DONE,))

    def switch(self, relay: RelayInfo, *, power: bool) -> None:
        """Give the device on ``relay`` power or take it, and read back. Raises PeerError, HardwareError."""
        first = _RELAY_OFF if power else _RELAY_ON
        if not power:
            self.aftermath = DARK
        command = bytes((_PREFIX, first + relay.relay - 1, relay.bank))
        self._command(command, f"the command to switch {_power(power)}", (_DONE,))
        if self.has_power(relay) is not power:
            self.finish()  # else the board is the culprit, and not the relay
            raise HardwareError(
                self._device,
                self._operation,
                f"relay board {relay.board} bank {relay.bank} relay {relay.relay} reads back {_power(not power)} "
                f"after it was switched {_power(power)}",
            )
        if power:
            self.aftermath = ""

    def has_power(self, relay: RelayInfo) -> bool:
        """Whether the device on ``relay`` has power. Raises PeerError."""
        command = bytes((_PREFIX, _READ_RELAY + relay.relay - 1, relay.bank))
        return self._command(command, "the command to read a relay", (0, 1)) == 0

    def finish(self) -> None:
        """Believe the last answer only when no other one comes after it. Raises PeerError."""
        self._hear_nothing("after its last answer", self._listening)

    def _command(self, command: bytes, meaning: str, expected: tuple[int, ...]) -> int:
        """Send one command in one write (firmware 3.2 asks for that) and return the one byte of its answer."""
        self._hear_nothing(f"before {meaning}")
        self.connection.send(command, self._deadline)
        answer = self.connection.receive(self._deadline, at_most=16)
        if not answer:
            raise PeerError(f"closed the connection instead of answering {meaning}")
        if len(answer) != 1 or answer[0] not in expected:
            wanted = " or ".join(str(number) for number in expected)
            raise PeerError(f"answered {list(answer)} to {meaning} where {wanted} was expected")
        return answer[0]

    def _hear_nothing(self, when: str, seconds: float = 0.0) -> None:
        """See that the board says nothing for so many seconds. Raises PeerError: a byte too many passes for an answer,
        and so for a switch that never moved."""
        if stray := self.connection.unasked(self._deadline.remaining(seconds)):
            raise PeerError(f"sent {list(stray)} {when}, where nothing was asked")


def _relay_of(device: Target, operation: str) -> RelayInfo:
    """The device's relay. Raises HardwareError: without a good one there is no power control."""
    if not device.relay_info:
        raise HardwareError(device.name, operation, "it hangs on no relay board (no relay_info)")
    try:
        return RelayInfo.parse(device.relay_info)
    except BadInput as e:
        raise HardwareError(device.name, operation, e.message) from e


def _power(on: bool) -> str:
    return "on" if on else "off"
