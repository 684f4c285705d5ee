# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The declarative core of both state machines: states, the events they expect, and where these may lead.

A handler only *decides*. It is given the row as it was loaded and answers with the name of the next state;
counters, columns, effects and log lines are noted down in the :class:`Context`. Writing them, and doing the
effects after the commit, is the driver's work (:mod:`mozpool.statedriver`). So a machine has no I/O, takes time
and randomness from its context, and runs the same under simulated time.

Which states an event may lead to is declared beside its handler (``@on("ping_ok", to="ready")``): the table and
the diagram in the documents are drawn from these declarations, :meth:`Machine.check` examines them, and a handler
that answers anything else is stopped before it writes.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar, Final, Generic, Protocol, TypeVar

TIMEOUT: Final = "timeout"
"""The event that the driver sends when a state's time is over."""

TAKEN_OVER = "taken_over"
"""The event of a row that another server acts on from now on."""

STAY: Final = "*stay*"
"""What a handler answers when the event is dealt with but leads nowhere: no entry, the deadline stays."""


class MachineRow(Protocol):
    """What the core needs to know of a row; both dataclasses of ``db`` fit."""

    @property
    def id(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def state_counters(self) -> Mapping[str, int]: ...
    @property
    def state_timeout(self) -> datetime | None: ...
    @property
    def version(self) -> int: ...
    @property
    def attempt(self) -> int: ...


Row = TypeVar("Row", bound=MachineRow)


@dataclass(frozen=True)
class Effect:
    """Something to be done in the world after the commit. Subclasses say what.

    ``channel`` is the slot that it takes: of each row, one effect a channel is queued, and a newer one replaces it.
    Those that are ``joint`` and wait in the same lane are done together, as far as what is behind the lane can do that.
    ``every`` makes the effect repeat after so many seconds until it has brought an event or its attempt is over. A
    ``bound`` effect counts for its attempt only: it is dropped when the row has moved on.
    Failures of a repeated effect are logged when the reason changes, not at all when it is ``quiet``. What the lane of
    a ``patient`` effect is at fault for is no failure of the effect. The event of a failure comes ``pause`` seconds
    after the effect has begun, at the earliest.
    """

    channel: ClassVar[str] = "hardware"
    joint: ClassVar[bool] = False
    every: ClassVar[float | None] = None
    bound: ClassVar[bool] = True
    quiet: ClassVar[bool] = False
    patient: ClassVar[bool] = False
    pause: ClassVar[float] = 1.0
    """What fails at once and is tried again at once would use up all tries before anybody has seen that it fails."""


RETURNED: Final = "*returned*"


@dataclass(frozen=True)
class Write:
    """A write to other tables within a transition, and what it makes known of the row."""

    run: Callable[[Any], Any]
    known: Mapping[str, Any]


class UndeclaredTarget(AssertionError):
    """A handler answered a state that its declaration does not name. A bug, never a user's fault."""


Handler = Callable[[Any, "Context[Any]"], "str | None"]


@dataclass(frozen=True)
class Handles:
    """The declaration that ``@on`` and ``when`` leave on a handler."""

    events: tuple[str, ...]
    to: tuple[str, ...]
    reported: bool = False


def _names(to: str | Iterable[str]) -> tuple[str, ...]:
    return (to,) if isinstance(to, str) else tuple(to)


def on(*events: str, to: str | Iterable[str], reported: bool = False) -> Callable[[Handler], Handler]:
    """Declare that a method handles ``events`` and may lead to the states ``to``.

    The method answers one of these, or :data:`STAY`; with a single target, answering nothing means that one.
    ``reported``: the thing that the row stands for tells these events of itself.
    """

    def declare(handler: Handler) -> Handler:
        declared = Handles(events, _names(to), reported)
        handler.handles = (*getattr(handler, "handles", ()), declared)  # type: ignore[attr-defined]
        return handler

    return declare


def when(event: str, to: str, *, reported: bool = False) -> Handler:
    """A handler for the plain case: ``event`` leads to ``to`` and nothing else happens."""

    def go(self: Any, ctx: Context[Any]) -> str | None:
        return None

    go.__doc__ = f"``{event}`` leads to ``{to}``."
    return on(event, to=to, reported=reported)(go)


def entry(to: str | Iterable[str]) -> Callable[[Handler], Handler]:
    """Declare that ``enter`` of a state may go on to ``to`` at once, within the same transition."""

    def declare(handler: Handler) -> Handler:
        handler.goes_on_to = _names(to)  # type: ignore[attr-defined]
        return handler

    return declare


class State(Generic[Row]):
    """One state. The docstring of a subclass is written for the person who reads it in the UI."""

    name: ClassVar[str]
    timeout: ClassVar[float | None] = None
    """Seconds until the event ``timeout``; None waits for an event, 0 is due at once (in a transition of its own)."""
    tries: ClassVar[int | None] = None
    """How often the step may fail; what exactly counts is the machine's affair."""
    end: ClassVar[bool] = False
    """Whether nothing leads out of it."""
    forced_only: ClassVar[bool] = False
    """Whether only a person or another program puts a row here (no transition leads here)."""
    left_by_force: ClassVar[bool] = False
    """Whether only a forced change leads out of it."""

    def enter(self, ctx: Context[Row]) -> str | None:
        """Called on every entry, re-entries included. May answer a state to go on to (see :func:`entry`)."""
        return None

    @classmethod
    def handlers(cls) -> dict[str, tuple[Handler, tuple[str, ...]]]:
        """Event → handler and its declared targets, inherited ones included."""
        found: dict[str, tuple[Handler, tuple[str, ...]]] = {}
        for name, declared in cls._declarations():
            # By name: a subclass may override the method and inherit the declaration.
            found.update((event, (getattr(cls, name), declared.to)) for event in declared.events)
        return found

    @classmethod
    def reported(cls) -> frozenset[str]:
        """The events that the thing which a row stands for tells of itself."""
        return frozenset(event for _, declared in cls._declarations() if declared.reported for event in declared.events)

    @classmethod
    def _declarations(cls) -> Iterator[tuple[str, Handles]]:
        """The name of each handler and what it declares; those of base classes first."""
        for klass in reversed(cls.__mro__):
            for name, member in vars(klass).items():
                for declared in getattr(member, "handles", ()):
                    yield name, declared


@dataclass(frozen=True)
class Tuning:
    """Numbers that may differ from the defaults: tests, simulated time, an operator's ``[timeouts]``, ``[tries]``."""

    timeouts: Mapping[str, float] = field(default_factory=dict)
    tries: Mapping[str, int] = field(default_factory=dict)
    speed: float = 1.0


class Context(Generic[Row]):
    """What a handler sees, and where it notes what it decided."""

    def __init__(
        self,
        row: Row,
        event: str,
        *,
        now: datetime,
        rng: random.Random,
        args: Mapping[str, Any] | None = None,
        reads: Any = None,
    ) -> None:
        """``reads`` is the machine's own access to other tables, bound to the transition's transaction."""
        self.row = row
        self.event = event
        self.args: Mapping[str, Any] = args or {}
        self.now = now
        self.rng = rng
        self.reads = reads
        self.columns: dict[str, Any] = {}
        self.counters: dict[str, int] = dict(row.state_counters)
        self.effects: list[Effect] = []
        self.logs: list[str] = []
        self.writes: list[Write] = []
        by = self.args.get("by")
        self.detail: str | None = f"by {by}" if isinstance(by, str) and by else None
        """What the history says besides the event: who asked, unless the handler has something to say."""
        self.timeout: float | None = None
        self.tries: int | None = None
        """How often the step of the state at work may fail."""
        self.limit = 0.0
        """The time limit of the state at work in seconds, as tuned; 0 when it has none."""
        self.speed = 1.0
        self.tries_of: Callable[[str], int | None] = lambda name: None

    def get(self, column: str) -> Any:
        """A column's value as it will be after this transition."""
        return self.columns[column] if column in self.columns else getattr(self.row, column)

    def set(self, **columns: Any) -> None:
        """Write these columns of the row in the transition's transaction."""
        self.columns.update(columns)

    def count(self, step: str) -> int:
        """Count one failure of ``step`` and answer how many there are now."""
        self.counters[step] = self.counters.get(step, 0) + 1
        return self.counters[step]

    def clear(self, *steps: str) -> None:
        """Forget the failures of ``steps``; of all steps when none is named."""
        for step in steps or tuple(self.counters):
            self.counters.pop(step, None)

    def effect(self, effect: Effect) -> None:
        """Have this done after the commit."""
        self.effects.append(effect)

    def log(self, message: str) -> None:
        """Add a line to the row's log once the transition is committed."""
        self.logs.append(message)

    def also(self, write: Callable[[Any], Any], **known: Any) -> None:
        """Run ``write(connection)`` in the transition's own transaction.

        ``known`` are the fields of the row that this changes (through other tables), for who wants to know the row
        without another load; a field that is :data:`RETURNED` is what the write returns.
        """
        self.writes.append(Write(write, known))

    def within(self, seconds: float) -> None:
        """Give the entered state this time limit (already scaled) instead of its own."""
        self.timeout = seconds


@dataclass(frozen=True)
class Decision:
    """What a machine decided: everything that the driver writes in one transaction, and does after it."""

    event: str
    args: Mapping[str, Any]
    source: str
    path: tuple[str, ...]
    """The states entered, in order; empty when the event was dealt with without a transition."""
    columns: Mapping[str, Any]
    counters: Mapping[str, int]
    timeout: float | None
    """Seconds that the last state of the path may last, from now or from when its effect starts."""
    effects: tuple[Effect, ...]
    logs: tuple[str, ...]
    writes: tuple[Write, ...]
    detail: str | None

    @property
    def target(self) -> str:
        """The state that the row is in afterwards."""
        return self.path[-1] if self.path else self.source

    @property
    def is_change(self) -> bool:
        """Whether the state changes; re-entries are neither logged nor put into the history."""
        return any(state != self.source for state in self.path)


class Machine(Generic[Row]):
    """A set of states. Immutable once built; used from any thread."""

    def __init__(
        self,
        name: str,
        states: Iterable[type[State[Row]]],
        *,
        unknown: str | None = None,
        tuning: Tuning | None = None,
        on_force: Callable[[Context[Row]], None] = lambda ctx: None,
    ) -> None:
        """``unknown`` names the state whose behaviour unrecognised state names get.

        ``on_force`` decides what else follows when a row is put into a state against its own state's will.
        """
        self.name = name
        self.tuning = tuning or Tuning()
        self.states: dict[str, State[Row]] = {}
        for state in states:
            if state.name in self.states:
                raise ValueError(f"two states are named {state.name}")
            self.states[state.name] = state()
        self._handlers = {key: type(state).handlers() for key, state in self.states.items()}
        self.reported = frozenset().union(*(type(state).reported() for state in self.states.values()))
        """The events that come from the things themselves which rows stand for; of no others are they believed."""
        self._unknown = unknown
        self._on_force = on_force

    def state(self, name: str) -> State[Row]:
        """The state of that name; the one for unknown names when there is none. Raises KeyError without one."""
        found = self.states.get(name)
        if found is None:
            if self._unknown is None:
                raise KeyError(name)
            found = self.states[self._unknown]
        return found

    def timeout_of(self, name: str) -> float | None:
        """A state's time limit in seconds, as tuned; None when it has none."""
        default = self.state(name).timeout
        seconds = self.tuning.timeouts.get(name, default) if default is not None else None
        return None if seconds is None else seconds / self.tuning.speed

    def tries_of(self, name: str) -> int | None:
        """How often a state's step may fail, as tuned."""
        default = self.state(name).tries
        return None if default is None else self.tuning.tries.get(name, default)

    def meaning_of(self, name: str) -> str:
        """What a state means, for people."""
        return " ".join((inspect.getdoc(type(self.state(name))) or "").split())

    def expects(self, state: str, event: str) -> bool:
        """Whether ``state`` has a handler for ``event``."""
        return event in self._handlers[self.state(state).name]

    def stays(self, state: str, event: str) -> bool:
        """Whether ``state`` deals with ``event`` without ever leading anywhere."""
        return self._handlers[self.state(state).name].get(event, (None, ("",)))[1] == ()

    def decide(self, ctx: Context[Row]) -> Decision | None:
        """Let the row's state handle the context's event; None when the state does not expect it."""
        source = self.state(ctx.row.state)
        handler, targets = self._handlers[source.name].get(ctx.event, (None, ()))
        if handler is None:
            return None
        self._prepare(ctx, source.name)
        target = handler(source, ctx)
        if target is None and len(targets) == 1:
            target = targets[0]
        if target == STAY:
            return self._decision(ctx, (), None)
        if target not in targets:
            raise UndeclaredTarget(f"{self.name}: {source.name} answered {ctx.event} with {target!r}, not in {targets}")
        return self._enter(ctx, target)

    def force(self, ctx: Context[Row], to: str) -> Decision:
        """Enter ``to`` whatever the row's state expects; its retry counters start anew."""
        if to not in self.states:
            raise KeyError(to)
        ctx.clear()
        self._on_force(ctx)
        return self._enter(ctx, to)

    def _prepare(self, ctx: Context[Row], state: str) -> None:
        ctx.tries_of = self.tries_of
        ctx.tries = self.tries_of(state)
        ctx.limit = self.timeout_of(state) or 0.0
        ctx.speed = self.tuning.speed

    def _enter(self, ctx: Context[Row], target: str) -> Decision:
        path: list[str] = []
        following: str | None = target
        while following is not None:
            if len(path) > len(self.states):
                raise UndeclaredTarget(f"{self.name}: {path} goes round in circles")
            path.append(following)
            state = self.state(following)
            ctx.timeout = None
            self._prepare(ctx, following)
            following = state.enter(ctx)
            if following is not None and following not in getattr(state.enter, "goes_on_to", ()):
                raise UndeclaredTarget(f"{self.name}: entering {state.name} answered {following!r}")
        timeout = ctx.timeout if ctx.timeout is not None else self.timeout_of(path[-1])
        return self._decision(ctx, tuple(path), timeout)

    def _decision(self, ctx: Context[Row], path: tuple[str, ...], timeout: float | None) -> Decision:
        return Decision(
            event=ctx.event,
            args=ctx.args,
            source=ctx.row.state,
            path=path,
            columns=dict(ctx.columns),
            counters=dict(ctx.counters),
            timeout=timeout,
            effects=tuple(ctx.effects),
            logs=tuple(ctx.logs),
            writes=tuple(ctx.writes),
            detail=ctx.detail,
        )

    # What the machine says of itself

    def edges(self) -> list[tuple[str, str, str]]:
        """All declared (state, event, target), with ``entered`` as the event of what an entry goes on to."""
        found = []
        for name, handlers in self._handlers.items():
            for event, (_, targets) in handlers.items():
                found += [(name, event, target) for target in targets]
            found += [(name, "entered", target) for target in getattr(self.states[name].enter, "goes_on_to", ())]
        return found

    def check(self) -> list[str]:
        """What is wrong with the declarations, a sentence each; an empty list when nothing is."""
        problems = []
        reached = {target for source, _, target in self.edges() if target != source}
        for source, event, target in self.edges():
            if target not in self.states:
                problems.append(f"{source}: {event} leads to {target}, which does not exist")
        for name, state in self.states.items():
            handlers = self._handlers[name]
            goes_on = getattr(state.enter, "goes_on_to", ())
            if not inspect.getdoc(type(state)) or type(state).__doc__ is None:
                problems.append(f"{name}: has no docstring")
            if state.timeout is not None and TIMEOUT not in handlers:
                problems.append(f"{name}: has a time limit but no handler for its end")
            if state.timeout is None and state.tries is not None:
                problems.append(f"{name}: counts tries but has no time limit")
            if state.end and (handlers or goes_on):
                problems.append(f"{name}: is an end state but something leads out of it")
            if not (state.end or state.left_by_force or handlers or goes_on):
                problems.append(f"{name}: nothing leads out of it")
            if name not in reached and not state.forced_only:
                problems.append(f"{name}: nothing leads to it")
        for kind, names in (("time limit", self.tuning.timeouts), ("number of tries", self.tuning.tries)):
            strangers = [name for name in names if name not in self.states]
            problems += [f"{name}: a {kind} is set for a state that does not exist" for name in strangers]
        return problems

    def table(self) -> str:
        """The states as a Markdown table: limits, what each event leads to, and what it means."""
        lines = ["| state | limit (s) | tries | event → state | meaning |", "|---|---|---|---|---|"]
        for name, state in self.states.items():
            moves: dict[str, list[str]] = {}
            for source, event, target in self.edges():
                if source == name:
                    moves.setdefault(event, []).append(f"`{target}`" if target != name else "again")
            text = "; ".join(f"{event} → {' or '.join(targets)}" for event, targets in moves.items())
            limit = "-" if state.timeout is None else f"{state.timeout:g}"
            tries = "-" if state.tries is None else str(state.tries)
            lines.append(f"| `{name}` | {limit} | {tries} | {text or '-'} | {self.meaning_of(name)} |")
        return "\n".join(lines) + "\n"

    def diagram(self, *, without: Iterable[str] = ()) -> str:
        """The transitions as a Mermaid state diagram, without the events ``without`` (they lead out of every state)."""
        left_out = set(without)
        labels: dict[tuple[str, str], list[str]] = {}
        for source, event, target in self.edges():
            if event not in left_out and source != target:
                labels.setdefault((source, target), []).append(event)
        lines = ["stateDiagram-v2", "    direction LR"]
        lines += [f"    {source} --> {target}: {', '.join(events)}" for (source, target), events in labels.items()]
        lines += [f"    {name} --> [*]" for name, state in self.states.items() if state.end]
        return "\n".join(lines) + "\n"
