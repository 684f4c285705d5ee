# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The declarative core, with machines of a few states each."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, ClassVar

import pytest

from mozpool.statemachine import (
    STAY,
    TIMEOUT,
    Context,
    Decision,
    Effect,
    Machine,
    State,
    Tuning,
    UndeclaredTarget,
    entry,
    on,
    when,
)

NOW = datetime(2030, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Lamp:
    """The row of a machine that needs nothing but the columns every row has."""

    state: str = "off"
    state_counters: dict[str, int] = field(default_factory=dict)
    colour: str = "white"
    id: int = 1
    name: str = "lamp-1"
    state_timeout: datetime | None = None
    version: int = 1
    attempt: int = 1


@dataclass(frozen=True)
class Glow(Effect):
    """Something to be done after the commit."""

    brightness: int


@dataclass(frozen=True)
class Blink(Effect):
    """Something to be done again and again, in a channel of its own."""

    channel: ClassVar[str] = "blinker"
    every: ClassVar[float | None] = 0.5


class Off(State[Lamp]):
    """It is dark."""

    name = "off"

    @on("press", to=("warming", "off"))
    def press(self, ctx: Context[Lamp]) -> str | None:
        """Answers whatever the test says."""
        answer = ctx.args.get("answer")
        return None if answer is None else str(answer)

    hold = when("hold", to="warming")

    @on("work", to="lit")
    def work(self, ctx: Context[Lamp]) -> str | None:
        """Notes down one of each."""
        ctx.set(colour="red")
        ctx.count("bulb")
        ctx.effect(Glow(3))
        ctx.effect(Blink())
        ctx.log("pressed")
        ctx.also(lambda conn: None)
        ctx.detail = "because"
        return None

    @on("touch", to="lit")
    def touch(self, ctx: Context[Lamp]) -> str | None:
        """Is dealt with, but leads nowhere."""
        ctx.set(colour="blue")
        ctx.effect(Glow(1))
        return STAY


class Warming(State[Lamp]):
    """It becomes bright."""

    name = "warming"
    timeout = 5
    tries = 3

    @entry(to=("lit", "broken"))
    def enter(self, ctx: Context[Lamp]) -> str | None:
        """Goes on to what the test says."""
        ctx.log(f"warming, {ctx.tries} tries")
        onward = ctx.args.get("onward")
        if onward is None:
            ctx.within(1.5)
        return None if onward is None else str(onward)

    @on("warm", TIMEOUT, to="lit")
    def warm(self, ctx: Context[Lamp]) -> str | None:
        """Bright."""
        return None


class Lit(State[Lamp]):
    """It is bright."""

    name = "lit"
    timeout = 60

    def enter(self, ctx: Context[Lamp]) -> str | None:
        """Glow."""
        ctx.effect(Glow(10))
        return None

    again = when(TIMEOUT, to="lit")
    burnt = when("burnt", to="broken")


class Broken(State[Lamp]):
    """The bulb is burnt."""

    name = "broken"
    end = True


LAMP = Machine[Lamp]("lamp", (Off, Warming, Lit, Broken))


def context(event: str, row: Lamp | None = None, **args: Any) -> Context[Lamp]:
    return Context(row or Lamp(), event, now=NOW, rng=random.Random(1), args=args)


def decide(machine: Machine[Lamp], event: str, row: Lamp | None = None, **args: Any) -> Decision:
    decision = machine.decide(context(event, row, **args))
    assert decision is not None
    return decision


# Deciding


def test_it_leads_to_a_declared_target() -> None:
    decision = decide(LAMP, "press", answer="off")
    assert decision.path == ("off",)
    assert decision.target == "off"


def test_it_stops_a_handler_that_answers_an_undeclared_target() -> None:
    with pytest.raises(UndeclaredTarget, match="lamp: off answered press with 'lit'"):
        LAMP.decide(context("press", answer="lit"))


def test_it_takes_the_only_target_when_a_handler_answers_nothing() -> None:
    assert decide(LAMP, "hold").target == "warming"


def test_it_takes_no_target_by_itself_when_several_are_declared() -> None:
    with pytest.raises(UndeclaredTarget, match="None"):
        LAMP.decide(context("press"))


def test_it_ignores_an_event_that_the_state_does_not_expect() -> None:
    assert LAMP.decide(context("warm")) is None
    assert LAMP.decide(context("nonsense")) is None
    assert LAMP.decide(context(TIMEOUT)) is None


def test_it_says_which_events_a_state_expects() -> None:
    assert LAMP.expects("off", "press")
    assert LAMP.expects("warming", TIMEOUT)
    assert not LAMP.expects("off", TIMEOUT)
    assert not LAMP.expects("broken", "press")


def test_staying_keeps_what_was_noted_but_enters_nothing() -> None:
    decision = decide(LAMP, "touch")
    assert decision.path == ()
    assert decision.target == "off"
    assert not decision.is_change
    assert decision.timeout is None
    assert decision.columns == {"colour": "blue"}
    assert decision.effects == (Glow(1),)


def test_a_decision_carries_everything_that_was_noted() -> None:
    decision = decide(LAMP, "work")
    assert decision.event == "work"
    assert decision.source == "off"
    assert decision.path == ("lit",)
    assert decision.columns == {"colour": "red"}
    assert decision.counters == {"bulb": 1}
    assert decision.effects == (Glow(3), Blink(), Glow(10))
    assert decision.logs == ("pressed",)
    assert len(decision.writes) == 1
    assert decision.detail == "because"
    assert decision.timeout == 60


def test_a_handler_is_given_the_row_the_time_the_chance_the_arguments_and_the_reads() -> None:
    seen: list[object] = []

    class Curious(State[Lamp]):
        """Looks at everything."""

        name = "off"

        @on("look", to="off")
        def look(self, ctx: Context[Lamp]) -> str | None:
            seen.extend([ctx.row, ctx.event, ctx.now, ctx.rng.random(), dict(ctx.args), ctx.reads])
            return STAY

    row, reads = Lamp(), object()
    ctx = Context(row, "look", now=NOW, rng=random.Random(7), args={"a": 1}, reads=reads)
    Machine[Lamp]("curious", (Curious,)).decide(ctx)
    assert seen == [row, "look", NOW, random.Random(7).random(), {"a": 1}, reads]


def test_arguments_are_empty_when_none_are_given() -> None:
    assert Context(Lamp(), "x", now=NOW, rng=random.Random(1)).args == {}


# Entering


def test_an_entry_goes_on_within_the_same_decision() -> None:
    decision = decide(LAMP, "hold", onward="lit")
    assert decision.path == ("warming", "lit")
    assert decision.target == "lit"
    assert decision.timeout == 60
    assert decision.effects == (Glow(10),)


def test_an_entry_that_stays_ends_the_chain() -> None:
    assert decide(LAMP, "hold").path == ("warming",)


def test_it_stops_an_entry_that_goes_on_to_an_undeclared_state() -> None:
    with pytest.raises(UndeclaredTarget, match="entering warming answered 'off'"):
        LAMP.decide(context("hold", onward="off"))


def test_it_stops_an_entry_that_declares_nothing_but_goes_on() -> None:
    class Restless(State[Lamp]):
        """Goes on without having said so."""

        name = "off"
        again = when("again", to="off")

        def enter(self, ctx: Context[Lamp]) -> str | None:
            return "off"

    with pytest.raises(UndeclaredTarget, match="entering off answered 'off'"):
        Machine[Lamp]("restless", (Restless,)).decide(context("again"))


def test_it_stops_entries_that_go_round_in_circles() -> None:
    class Tick(State[Lamp]):
        """Goes on to tock."""

        name = "off"
        again = when("again", to="off")

        @entry(to="tock")
        def enter(self, ctx: Context[Lamp]) -> str | None:
            return "tock"

    class Tock(State[Lamp]):
        """Goes on to tick."""

        name = "tock"

        @entry(to="off")
        def enter(self, ctx: Context[Lamp]) -> str | None:
            return "off"

    with pytest.raises(UndeclaredTarget, match="circles"):
        Machine[Lamp]("clock", (Tick, Tock)).decide(context("again"))


def test_a_reentry_enters_again_but_is_no_change() -> None:
    decision = decide(LAMP, TIMEOUT, Lamp("lit"))
    assert decision.path == ("lit",)
    assert decision.effects == (Glow(10),)
    assert decision.timeout == 60
    assert not decision.is_change


def test_a_way_that_leads_back_is_a_change() -> None:
    class There(State[Lamp]):
        """Goes away and comes back at once."""

        name = "off"
        go = when("go", to="away")

    class Away(State[Lamp]):
        """Is never stayed in."""

        name = "away"

        @entry(to="off")
        def enter(self, ctx: Context[Lamp]) -> str | None:
            return "off"

    decision = decide(Machine("return", (There, Away)), "go")
    assert decision.path == ("away", "off")
    assert decision.is_change


def test_an_entry_may_set_its_own_time_limit() -> None:
    assert decide(LAMP, "hold").timeout == 1.5


def test_a_time_limit_of_one_entry_does_not_reach_the_next() -> None:
    class Start(State[Lamp]):
        """Sets a limit, but goes on."""

        name = "off"
        go = when("go", to="off")

        @entry(to="lit")
        def enter(self, ctx: Context[Lamp]) -> str | None:
            ctx.within(1)
            return "lit"

    assert decide(Machine("limits", (Start, Lit, Broken)), "go").timeout == 60


def test_a_state_without_a_time_limit_waits_for_an_event() -> None:
    assert decide(LAMP, "press", answer="off").timeout is None


# Handlers


class Base(State[Lamp]):
    """What two states share."""

    @on("reset", to="off")
    def reset(self, ctx: Context[Lamp]) -> str | None:
        """As the base does."""
        ctx.log("base")
        return None


class Heir(Base):
    """Inherits the reset."""

    name = "heir"


class Rebel(Base):
    """Handles the reset by itself."""

    name = "rebel"

    @on("reset", to="rebel")
    def own_reset(self, ctx: Context[Lamp]) -> str | None:
        """In its own way."""
        ctx.log("rebel")
        return None


FAMILY = Machine[Lamp]("family", (Off, Heir, Rebel, Warming, Lit, Broken))


def test_handlers_are_inherited() -> None:
    decision = decide(FAMILY, "reset", Lamp("heir"))
    assert (decision.target, decision.logs) == ("off", ("base",))


def test_a_state_may_redefine_an_inherited_event() -> None:
    decision = decide(FAMILY, "reset", Lamp("rebel"))
    assert (decision.target, decision.logs) == ("rebel", ("rebel",))


def test_a_state_may_override_an_inherited_handler_and_keep_its_declaration() -> None:
    class Quiet(Base):
        """Inherits when to reset, but does it in its own way."""

        name = "quiet"

        def reset(self, ctx: Context[Lamp]) -> str | None:
            ctx.log("quiet")
            return None

    machine = Machine[Lamp]("override", (Off, Heir, Quiet, Warming, Lit, Broken))
    decision = decide(machine, "reset", Lamp("quiet"))
    assert (decision.target, decision.logs) == ("off", ("quiet",))
    assert ("quiet", "reset", "off") in machine.edges()
    assert decide(machine, "reset", Lamp("heir")).logs == ("base",)


def test_an_overriding_handler_is_held_to_the_inherited_targets() -> None:
    class Stray(Base):
        """Leads elsewhere than the base has declared."""

        name = "stray"

        def reset(self, ctx: Context[Lamp]) -> str | None:
            return "lit"

    with pytest.raises(UndeclaredTarget, match="stray answered reset with 'lit'"):
        Machine[Lamp]("override", (Off, Stray, Warming, Lit, Broken)).decide(context("reset", Lamp("stray")))


def test_one_handler_may_serve_several_events_with_targets_of_their_own() -> None:
    class Switch(State[Lamp]):
        """Leads where the event says."""

        name = "off"

        @on("lit", to="lit")
        @on("broken", "smashed", to="broken")
        def go(self, ctx: Context[Lamp]) -> str | None:
            return ctx.args.get("answer")

    machine = Machine[Lamp]("switch", (Switch, Lit, Broken))
    assert decide(machine, "lit").target == "lit"
    assert decide(machine, "broken").target == "broken"
    assert decide(machine, "smashed").target == "broken"
    with pytest.raises(UndeclaredTarget):
        machine.decide(context("lit", answer="broken"))


def test_a_plain_handler_says_in_its_docstring_what_it_does() -> None:
    assert Off.hold.__doc__ == "``hold`` leads to ``warming``."


# Unknown states


def test_a_state_name_that_it_does_not_know_is_an_error_without_a_fallback() -> None:
    with pytest.raises(KeyError, match="glimmering"):
        LAMP.decide(context("press", Lamp("glimmering")))


def test_a_state_name_that_it_does_not_know_behaves_like_the_fallback() -> None:
    machine = Machine[Lamp]("lamp", (Off, Warming, Lit, Broken), unknown="off")
    decision = decide(machine, "hold", Lamp("glimmering"))
    assert decision.source == "glimmering"
    assert decision.path == ("warming",)
    assert decision.is_change
    assert machine.expects("glimmering", "hold")
    assert machine.state("glimmering") is machine.state("off")
    assert machine.timeout_of("glimmering") is None


def test_two_states_of_one_name_are_an_error() -> None:
    with pytest.raises(ValueError, match="off"):
        Machine[Lamp]("twins", (Off, Off))


# The context


def test_it_counts_the_failures_of_each_step_and_forgets_them() -> None:
    ctx = context("press", Lamp(state_counters={"bulb": 2}))
    assert ctx.count("bulb") == 3
    assert ctx.count("wire") == 1
    assert ctx.counters == {"bulb": 3, "wire": 1}
    ctx.clear("bulb", "never counted")
    assert ctx.counters == {"wire": 1}
    ctx.count("bulb")
    ctx.clear()
    assert ctx.counters == {}


def test_counting_leaves_the_row_alone() -> None:
    row = Lamp(state_counters={"bulb": 2})
    context("press", row).count("bulb")
    assert row.state_counters == {"bulb": 2}


def test_counters_outlive_a_change_of_state() -> None:
    assert decide(LAMP, "hold", Lamp(state_counters={"bulb": 2})).counters == {"bulb": 2}


def test_a_column_reads_as_it_will_be() -> None:
    ctx = context("press")
    assert ctx.get("colour") == "white"
    ctx.set(colour="red")
    assert ctx.get("colour") == "red"
    ctx.set(colour=None)
    assert ctx.get("colour") is None


def test_a_decision_does_not_change_with_its_context() -> None:
    ctx = context("touch")
    decision = LAMP.decide(ctx)
    assert decision is not None
    ctx.set(colour="green")
    ctx.effect(Glow(9))
    ctx.count("bulb")
    assert decision.columns == {"colour": "blue"}
    assert decision.effects == (Glow(1),)
    assert decision.counters == {}


def test_it_knows_the_tries_of_the_state_at_work() -> None:
    seen: list[int | None] = []

    class Asking(State[Lamp]):
        """Looks at its tries, and at another's."""

        name = "off"
        timeout = 1
        tries = 7

        @on(TIMEOUT, to="warming")
        def timed_out(self, ctx: Context[Lamp]) -> str | None:
            seen.extend([ctx.tries, ctx.tries_of("warming"), ctx.tries_of("lit")])
            return None

    decision = decide(Machine("asking", (Asking, Warming, Lit, Broken)), TIMEOUT)
    assert seen == [7, 3, None]
    assert decision.logs == ("warming, 3 tries",)


# Tuning


def test_limits_and_tries_are_the_states_own_without_tuning() -> None:
    assert [LAMP.timeout_of(name) for name in ("off", "warming", "lit")] == [None, 5, 60]
    assert [LAMP.tries_of(name) for name in ("off", "warming", "lit")] == [None, 3, None]


def test_limits_and_tries_may_be_tuned() -> None:
    machine = Machine[Lamp](
        "lamp", (Off, Warming, Lit, Broken), tuning=Tuning(timeouts={"lit": 30}, tries={"warming": 9})
    )
    assert machine.timeout_of("lit") == 30
    assert machine.timeout_of("warming") == 5
    assert machine.tries_of("warming") == 9
    assert decide(machine, "work").timeout == 30
    assert decide(machine, "hold").logs == ("warming, 9 tries",)


def test_a_limit_of_zero_can_be_tuned_and_can_be_the_tuning() -> None:
    class Soon(State[Lamp]):
        """Is over at once."""

        name = "off"
        timeout = 0
        over = when(TIMEOUT, to="off")

    assert Machine[Lamp]("soon", (Soon,)).timeout_of("off") == 0
    assert decide(Machine[Lamp]("soon", (Soon,)), TIMEOUT).timeout == 0
    assert Machine[Lamp]("soon", (Soon,), tuning=Tuning(timeouts={"off": 3})).timeout_of("off") == 3
    assert Machine[Lamp]("lamp", (Lit, Broken), tuning=Tuning(timeouts={"lit": 0})).timeout_of("lit") == 0


def test_speed_divides_limits_but_not_tries() -> None:
    machine = Machine[Lamp](
        "lamp", (Off, Warming, Lit, Broken), tuning=Tuning(timeouts={"warming": 8}, tries={"warming": 9}, speed=20)
    )
    assert machine.timeout_of("lit") == 3
    assert machine.timeout_of("warming") == 0.4
    assert machine.timeout_of("off") is None
    assert machine.tries_of("warming") == 9
    assert decide(machine, "work").timeout == 3


def test_a_limit_that_an_entry_sets_is_scaled_already() -> None:
    machine = Machine[Lamp]("lamp", (Off, Warming, Lit, Broken), tuning=Tuning(speed=20))
    assert decide(machine, "hold").timeout == 1.5


def test_tuning_gives_no_limit_to_a_state_that_waits_for_an_event() -> None:
    machine = Machine[Lamp]("lamp", (Off, Warming, Lit, Broken), tuning=Tuning(timeouts={"off": 9}, tries={"lit": 9}))
    assert machine.timeout_of("off") is None
    assert machine.tries_of("lit") is None


# Forcing


def test_a_forced_change_enters_a_state_that_nothing_leads_to() -> None:
    decision = LAMP.force(context("force", Lamp("broken", {"bulb": 4}), onward=None), "warming")
    assert decision.event == "force"
    assert decision.source == "broken"
    assert decision.path == ("warming",)
    assert decision.timeout == 1.5
    assert decision.is_change


def test_a_forced_change_starts_the_counters_anew() -> None:
    assert LAMP.force(context("force", Lamp("lit", {"bulb": 4})), "lit").counters == {}


def test_a_forced_change_follows_the_entries() -> None:
    decision = LAMP.force(context("force", onward="broken"), "warming")
    assert decision.path == ("warming", "broken")
    assert decision.logs == ("warming, 3 tries",)


def test_a_forced_change_may_start_from_a_state_it_does_not_know() -> None:
    assert LAMP.force(context("force", Lamp("glimmering")), "lit").path == ("lit",)


def test_a_row_is_not_forced_into_a_state_that_does_not_exist() -> None:
    with pytest.raises(KeyError, match="glimmering"):
        LAMP.force(context("force"), "glimmering")
    with pytest.raises(KeyError, match="glimmering"):
        Machine[Lamp]("lamp", (Off, Warming, Lit, Broken), unknown="off").force(context("force"), "glimmering")


def test_a_forced_change_has_more_done_where_the_machine_says_so() -> None:
    def note(ctx: Context[Lamp]) -> None:
        ctx.log(f"forced from {ctx.row.state} with {ctx.counters}")
        ctx.set(colour="red")

    machine = Machine[Lamp]("lamp", (Off, Warming, Lit, Broken), on_force=note)
    decision = machine.force(context("force", Lamp("lit", {"bulb": 4})), "warming")
    assert decision.path == ("warming",)
    assert decision.columns == {"colour": "red"}
    assert decision.logs == ("forced from lit with {}", "warming, 3 tries")


def test_nothing_of_that_is_done_when_an_event_leads_there_or_the_state_does_not_exist() -> None:
    forced: list[str] = []
    machine = Machine[Lamp]("lamp", (Off, Warming, Lit, Broken), on_force=lambda ctx: forced.append(ctx.row.state))
    decide(machine, "hold", onward="lit")
    decide(machine, TIMEOUT, Lamp("lit"))
    with pytest.raises(KeyError):
        machine.force(context("force"), "glimmering")
    assert forced == []


# Effects


def test_an_effect_takes_the_hardware_slot_once_unless_it_says_otherwise() -> None:
    assert (Glow.channel, Glow.every) == ("hardware", None)
    assert (Blink.channel, Blink.every) == ("blinker", 0.5)


def test_effects_that_say_the_same_are_equal_and_cannot_be_changed() -> None:
    assert Glow(1) == Glow(1)
    assert Glow(1) != Glow(2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        Glow(1).brightness = 2  # type: ignore[misc]


# What the machine says of itself


def problems(states: Iterable[type[State[Lamp]]], tuning: Tuning | None = None) -> list[str]:
    return Machine("broken", states, tuning=tuning).check()


class Hub(State[Lamp]):
    """Something that leads to ``spoke`` and back, so that each broken machine has one fault only."""

    name = "hub"
    go = when("go", to="spoke")


class Spoke(State[Lamp]):
    """The other end."""

    name = "spoke"
    back = when("back", to="hub")


def test_a_sound_machine_has_no_problems() -> None:
    assert problems((Hub, Spoke)) == []


def test_it_finds_a_target_that_does_not_exist() -> None:
    class Lost(State[Lamp]):
        """Leads nowhere."""

        name = "spoke"
        back = when("back", to="hub")
        away = when("away", to="nowhere")

    assert problems((Hub, Lost)) == ["spoke: away leads to nowhere, which does not exist"]


def test_it_finds_an_entry_that_goes_on_to_a_state_that_does_not_exist() -> None:
    class Lost(State[Lamp]):
        """Goes on to nowhere."""

        name = "spoke"
        back = when("back", to="hub")

        @entry(to="nowhere")
        def enter(self, ctx: Context[Lamp]) -> str | None:
            return None

    assert problems((Hub, Lost)) == ["spoke: entered leads to nowhere, which does not exist"]


def test_it_finds_a_state_without_a_docstring() -> None:
    class Silent(Spoke):
        pass

    assert problems((Hub, Silent)) == ["spoke: has no docstring"]


def test_it_finds_a_time_limit_that_nobody_handles() -> None:
    class Hasty(Spoke):
        """Has a limit."""

        timeout = 5

    assert problems((Hub, Hasty)) == ["spoke: has a time limit but no handler for its end"]


def test_it_finds_tries_without_a_time_limit() -> None:
    class Stubborn(Spoke):
        """Has tries."""

        tries = 5

    assert problems((Hub, Stubborn)) == ["spoke: counts tries but has no time limit"]


def test_it_finds_an_end_that_is_none() -> None:
    class Ghost(Spoke):
        """Ends, and goes on."""

        end = True

    assert problems((Hub, Ghost)) == ["spoke: is an end state but something leads out of it"]


def test_it_finds_an_end_whose_entry_goes_on() -> None:
    class Ghost(State[Lamp]):
        """Ends, and goes on at once."""

        name = "spoke"
        end = True

        @entry(to="hub")
        def enter(self, ctx: Context[Lamp]) -> str | None:
            return "hub"

    assert problems((Hub, Ghost)) == ["spoke: is an end state but something leads out of it"]


def test_it_finds_a_state_that_nothing_leads_out_of() -> None:
    class Trap(State[Lamp]):
        """Keeps what it has."""

        name = "spoke"

    class Start(Hub):
        """Is started in."""

        forced_only = True

    assert problems((Start, Trap)) == ["spoke: nothing leads out of it"]


def test_a_state_that_is_left_by_force_is_no_trap() -> None:
    class Locked(State[Lamp]):
        """Is opened by a person."""

        name = "spoke"
        left_by_force = True

    class Start(Hub):
        """Is started in."""

        forced_only = True

    assert problems((Start, Locked)) == []


def test_it_finds_a_state_that_nothing_leads_to() -> None:
    class Island(State[Lamp]):
        """Leads out and to itself."""

        name = "island"
        off = when("swim", to="hub")
        again = when("stay", to="island")

    assert problems((Hub, Spoke, Island)) == ["island: nothing leads to it"]


def test_a_state_that_is_only_entered_by_force_is_no_island() -> None:
    class Island(State[Lamp]):
        """Is reached by a person's will."""

        name = "island"
        forced_only = True
        off = when("swim", to="hub")

    assert problems((Hub, Spoke, Island)) == []


def test_it_finds_tuning_for_states_that_do_not_exist() -> None:
    assert problems((Hub, Spoke), Tuning(timeouts={"hubb": 1}, tries={"spook": 2})) == [
        "hubb: a time limit is set for a state that does not exist",
        "spook: a number of tries is set for a state that does not exist",
    ]


def test_it_lists_all_edges() -> None:
    assert Machine[Lamp]("lamp", (Warming, Lit)).edges() == [
        ("warming", "warm", "lit"),
        ("warming", TIMEOUT, "lit"),
        ("warming", "entered", "lit"),
        ("warming", "entered", "broken"),
        ("lit", TIMEOUT, "lit"),
        ("lit", "burnt", "broken"),
    ]


def test_the_table_has_a_line_for_each_state() -> None:
    assert Machine[Lamp]("lamp", (Warming, Lit, Broken)).table() == (
        "| state | limit (s) | tries | event → state | meaning |\n"
        "|---|---|---|---|---|\n"
        "| `warming` | 5 | 3 | warm → `lit`; timeout → `lit`; entered → `lit` or `broken` | It becomes bright. |\n"
        "| `lit` | 60 | - | timeout → again; burnt → `broken` | It is bright. |\n"
        "| `broken` | - | - | - | The bulb is burnt. |\n"
    )


def test_the_table_puts_a_long_meaning_on_one_line() -> None:
    class Wordy(Hub):
        """One line,
        and another.
        """

    assert "| One line, and another. |" in Machine[Lamp]("wordy", (Wordy, Spoke)).table()


def test_the_diagram_has_an_arrow_for_each_pair_of_states_and_marks_the_ends() -> None:
    assert Machine[Lamp]("lamp", (Warming, Lit, Broken)).diagram() == (
        "stateDiagram-v2\n"
        "    direction LR\n"
        "    warming --> lit: warm, timeout, entered\n"
        "    warming --> broken: entered\n"
        "    lit --> broken: burnt\n"
        "    broken --> [*]\n"
    )


def test_the_diagram_leaves_out_the_events_it_is_told_to() -> None:
    drawn = Machine[Lamp]("lamp", (Warming, Lit, Broken)).diagram(without=("burnt", TIMEOUT))
    assert "burnt" not in drawn
    assert "warming --> lit: warm, entered" in drawn
    assert "lit --> broken" not in drawn
