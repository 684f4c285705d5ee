# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Plans: what is to be simulated, as a person writes it down. docs/plan.toml explains every key."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from mozpool.errors import BadInput, MozpoolError
from mozpool.fakes.board import Behaviour
from mozpool.pool.criteria import ANY
from mozpool.simulate.faults import FORCED_STATES, KINDS, Rates, Scripted
from mozpool.simulate.scenario import IMAGES, Kind, Load, People, Scenario

MOST_DEVICES = 5000

ALL_DEVICES = "devices"
"""What a sweep calls the devices of all kinds together."""


class PlanError(MozpoolError):
    """A plan cannot be used; the message names file, key, value and what was expected."""


@dataclass(frozen=True)
class Plan:
    """What a file says."""

    name: str
    """The file's, without its suffix."""
    scenario: Scenario
    seed: int = 1


@dataclass(frozen=True)
class Value:
    """What may stand for a key."""

    expected: str
    """Completes the sentence "it is not ..."."""
    fits: Callable[[Any], bool]


def whole(low: int, high: int) -> Value:
    """Whole numbers, both ends included."""
    return Value(f"a whole number from {low} to {high}", lambda value: type(value) is int and low <= value <= high)


def number(what: str, low: float = 0.0, high: float = math.inf, *, above: bool = False) -> Value:
    """Numbers from ``low`` (itself left out when ``above``) to ``high``; ``what`` is their unit."""

    def fits(value: Any) -> bool:
        if type(value) not in (int, float) or not math.isfinite(value):
            return False
        return low <= value <= high and not (above and value == low)

    least = f"more than {low:g}" if above else f"at least {low:g}"
    return Value(f"{what}, {least}" if high == math.inf else f"{what} from {low:g} to {high:g}", fits)


def matching(expected: str, pattern: str) -> Value:
    """Text that ``pattern`` matches as a whole."""
    return Value(expected, lambda value: isinstance(value, str) and re.fullmatch(pattern, value) is not None)


SECONDS = number("seconds")
SHARE = number("a number", 0.0, 1.0)
WORD = matching("a word of at most 20 letters, digits, - and _", r"[A-Za-z0-9_-]{1,20}")
TABLE = Value("a table", lambda value: isinstance(value, dict))
TABLES = Value(
    "a list of tables", lambda value: isinstance(value, list) and all(isinstance(each, dict) for each in value)
)
LABELS = Value(
    'a table of texts, such as { pool = "b2g" }',
    lambda value: isinstance(value, dict) and all(isinstance(each, str) for each in value.values()),
)

PLAN = {
    "hours": number("hours", above=True),
    "seed": whole(0, 2**63 - 1),
    "servers": whole(1, 100),
    "devices": TABLES,
    "requests": TABLES,
    "people": TABLE,
    "rates": Value('"rough", or a table', lambda value: value == "rough" or isinstance(value, dict)),
    "faults": TABLES,
}

DEVICES = {
    "name": WORD,
    "count": whole(1, MOST_DEVICES),
    "environment": WORD,
    "labels": LABELS,
    "boards_per_relay": whole(1, 32),
    "behaviour": TABLE,
}

REQUESTS = {
    "name": matching("a name of at most 40 letters, digits, blanks, - and _", r"[A-Za-z0-9_-][A-Za-z0-9 _-]{0,39}"),
    "per_hour": number("a number"),
    "bursts": whole(0, 10**4),
    "hold": number("seconds", above=True),
    "duration": number("seconds", 60.0),
    "wait": whole(0, 10**6),
    "image": Value(f"one of {', '.join(IMAGES)}", lambda value: value in IMAGES),
    "builds": whole(1, 10**6),
    "named": SHARE,
    "environment": WORD,
    "hardware_type": WORD,
    "labels": LABELS,
    "priority": whole(-100, 100),
}

WITHOUT_EFFECT = {"speed", "relay_recovery_seconds"}
"""Fields of Behaviour that only boards use that are simulated in real time."""

BEHAVIOUR = {
    field.name: SECONDS if field.name.endswith("_seconds") else SHARE
    for field in fields(Behaviour)
    if field.name not in WITHOUT_EFFECT
}

PEOPLE = {field.name: number("times an hour") for field in fields(People)}

RATES = {field.name: number("a probability", 0.0, 1.0) for field in fields(Rates)}


FAULTS = {
    "kind": Value(f"one of {', '.join(KINDS)}", lambda value: value in KINDS),
    "at": SECONDS,
    "where": Value("a text", lambda value: isinstance(value, str)),
    "seconds": number("seconds", -300.0),
    "state": Value(f"one of {', '.join(FORCED_STATES)}", lambda value: value in FORCED_STATES),
}


def read(path: Path) -> Plan:
    """Read a plan. Raises PlanError."""
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise PlanError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise PlanError(f"{path}: {error}") from error
    try:
        return Plan(path.stem, _scenario(content), content.get("seed", Plan.seed))
    except BadInput as error:
        raise PlanError(f"{path}: {error.message}") from error


def sweep(scenario: Scenario, name: str, count: int) -> Scenario:
    """The same with so many devices, of the kind of this name or of all kinds together. Raises BadInput."""
    kinds = scenario.kinds
    if name == ALL_DEVICES:
        if count < len(kinds):
            raise BadInput.value(name, count, f"enough for {len(kinds)} kinds")
        counts = _share_out(count, [kind.count for kind in kinds])
        return replace(
            scenario, kinds=tuple(replace(kind, count=part) for kind, part in zip(kinds, counts, strict=True))
        )
    if all(kind.name != name for kind in kinds):
        known = ", ".join([ALL_DEVICES, *(kind.name for kind in kinds)])
        raise BadInput.value("sweep", name, f"one of {known}")
    return replace(scenario, kinds=tuple(replace(kind, count=count) if kind.name == name else kind for kind in kinds))


def _share_out(count: int, sizes: list[int]) -> list[int]:
    """Split a number in proportion to ``sizes``, at least one for each."""
    counts = [max(1, count * size // sum(sizes)) for size in sizes]
    while (left := count - sum(counts)) != 0:
        # Whoever is farthest below, or above, its due.
        due = [count * size / sum(sizes) - given for size, given in zip(sizes, counts, strict=True)]
        if left > 0:
            counts[due.index(max(due))] += 1
        else:
            counts[min((place for place, given in enumerate(counts) if given > 1), key=due.__getitem__)] -= 1
    return counts


def _scenario(content: Mapping[str, Any]) -> Scenario:
    _check(content, PLAN, "", ("devices", "requests"))
    kinds = tuple(_kind(values, f"[[devices]] {n}: ") for n, values in enumerate(content["devices"], 1))
    loads = tuple(_load(values, f"[[requests]] {n}: ") for n, values in enumerate(content["requests"], 1))
    _check_together(kinds, loads)
    people = content.get("people", {})
    _check(people, PEOPLE, "[people]: ")
    rates = content.get("rates", {})
    if rates != "rough":
        _check(rates, RATES, "[rates]: ")
    plain = {key: content[key] for key in ("hours", "servers") if key in content}
    return Scenario(
        kinds=kinds,
        loads=loads,
        people=People(**people),
        rates=Rates() if rates == "rough" else replace(Rates.none(), **rates),
        script=tuple(_scripted(values, f"[[faults]] {n}: ") for n, values in enumerate(content.get("faults", ()), 1)),
        **plain,
    )


def _scripted(values: Mapping[str, Any], place: str) -> Scripted:
    _check(values, FAULTS, place, ("kind", "at"))
    try:
        return Scripted(**values)
    except BadInput as error:
        raise BadInput(f"{place}{error.message}") from error


def _kind(values: Mapping[str, Any], place: str) -> Kind:
    _check(values, DEVICES, place, ("name", "count"))
    behaviour = values.get("behaviour", {})
    _check(behaviour, BEHAVIOUR, f"{place}behaviour.")
    return Kind(**dict(values) | {"behaviour": Behaviour(**behaviour)})


def _load(values: Mapping[str, Any], place: str) -> Load:
    _check(values, REQUESTS, place, ("name", "per_hour", "hold"))
    if values["per_hour"] == 0 and not values.get("bursts"):
        raise BadInput.value(f"{place}per_hour", values["per_hour"], "more than 0, and there are no bursts either")
    return Load(**{"named": 0.0} | dict(values))


def _check_together(kinds: Collection[Kind], loads: Collection[Load]) -> None:
    """Names are different, and no request is for what there is not."""
    sections: dict[str, Collection[Kind | Load]] = {"devices": kinds, "requests": loads}
    for section, known in sections.items():
        if not known:
            raise BadInput.value(section, [], "at least one table")
        names: set[str] = set()
        for n, each in enumerate(known, 1):
            if each.name in names:
                raise BadInput.value(f"[[{section}]] {n}: name", each.name, "a name that no other one has")
            names.add(each.name)
    if (total := sum(kind.count for kind in kinds)) > MOST_DEVICES:
        raise BadInput.value("[[devices]]: count", total, f"at most {MOST_DEVICES} for all kinds together")
    for n, load in enumerate(loads, 1):
        if not any(_serves(kind, load) for kind in kinds):
            asked = {
                "environment": load.environment,
                "hardware_type": load.hardware_type or ANY,
                "labels": dict(load.labels),
            }
            raise BadInput(
                f"[[requests]] {n}: environment, hardware_type, labels: {asked} is not what any [[devices]] have"
            )


def _serves(kind: Kind, load: Load) -> bool:
    return (
        load.environment in (ANY, kind.environment)
        and load.hardware_type in (None, kind.name)
        and load.labels.items() <= kind.labels.items()
    )


def _check(values: Mapping[str, Any], known: Mapping[str, Value], place: str, needed: Collection[str] = ()) -> None:
    """Raises BadInput for the first key that is unknown or missing, and for the first value that does not fit."""
    for key, value in values.items():
        if key not in known:
            raise BadInput.value(f"{place}{key}", value, f"expected here, where these keys are: {', '.join(known)}")
        if not known[key].fits(value):
            raise BadInput.value(f"{place}{key}", value, known[key].expected)
    for key in needed:
        if key not in values:
            raise BadInput(f"{place}{key} is missing: it must be {known[key].expected}")
