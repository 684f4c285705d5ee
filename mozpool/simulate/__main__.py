# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""``python -m mozpool.simulate``: plan a pool, by running Mozpool on it in simulated time."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NoReturn, TextIO

import click

from mozpool.clock import Clock
from mozpool.errors import BadInput, MozpoolError
from mozpool.simulate import plan as plans
from mozpool.simulate.scenario import Scenario

if TYPE_CHECKING:
    from mozpool.simulate.statistics import Run

PICTURES = (".svg", ".png")

SHOW_EVERY = 0.2
"""Seconds between two lines of progress."""

CLEAR_LINE = "\r\033[K"


class Progress:
    """On a terminal, shows how far a run is, on one line that is written again and again; elsewhere nothing."""

    def __init__(self, stream: TextIO, clock: Clock) -> None:
        self._stream = stream
        self._live = stream.isatty()
        self._clock = clock

    def begin(self, title: str, hours: float) -> None:
        """A run of so many simulated hours begins."""
        self._title, self._hours = title, hours
        self._began = self._shown = self._clock.monotonic()

    def __call__(self, simulated: float) -> None:
        """So many seconds are simulated."""
        now = self._clock.monotonic()
        if not self._live or now - self._shown < SHOW_EVERY:
            return
        self._shown = now
        done = min(simulated / 3600, self._hours)
        ratio = simulated / (now - self._began)
        self._write(f"{self._title}: {done:.1f} of {self._hours:g} h, {ratio:.0f} times as fast as real time")

    def close(self) -> None:
        """Leave an empty line behind."""
        if self._live:
            self._write("")

    def _write(self, text: str) -> None:
        self._stream.write(f"{CLEAR_LINE}{text}")
        self._stream.flush()


def _numbers(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, list[int]] | None:
    if value is None:
        return None
    name, _, rest = value.partition("=")
    try:
        numbers = [int(part) for part in rest.split(",")]
    except ValueError:
        numbers = []
    if not name or not numbers or not all(1 <= number <= plans.MOST_DEVICES for number in numbers):
        expected = f"NAME=NUMBER,NUMBER..., each from 1 to {plans.MOST_DEVICES}, such as devices=10,20,30"
        raise click.BadParameter(f"{value!r} is not {expected}")
    return name, numbers


def _picture(ctx: click.Context, param: click.Parameter, value: Path | None) -> Path | None:
    if value is not None and value.suffix not in PICTURES:
        raise click.BadParameter(f"{str(value)!r} does not end with {' or '.join(PICTURES)}")
    if value is not None and not value.absolute().parent.is_dir():
        raise click.BadParameter(f"{str(value.parent)!r} is no directory")
    return value


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--hours", type=click.FloatRange(0, 100_000, min_open=True), help="Instead of the plan's.")
@click.option("--seed", type=click.IntRange(0), help="Another course of events than with the plan's seed.")
@click.option("--seeds", type=click.IntRange(1), default=1, help="Run with so many seeds, and show how they differ.")
@click.option(
    "--sweep",
    callback=_numbers,
    metavar="NAME=N,N...",
    help='Run with these numbers of devices. NAME is that of one of the plan\'s [[devices]], or "devices" for all.',
)
@click.option(
    "--plot", type=click.Path(path_type=Path), callback=_picture, help="Draw the run, as FILE.svg or FILE.png."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(
    file: Path,
    hours: float | None,
    seed: int | None,
    seeds: int,
    sweep: tuple[str, list[int]] | None,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Plan a pool: run the real servers on simulated boards, in simulated time, and show how long people wait.

    FILE describes devices and requests; docs/plan.toml is an example that explains every key. The exit code is 1 when
    Mozpool itself did something wrong on the way, 2 when the plan can't be used.
    """
    if plot is not None and (seeds > 1 or sweep is not None):
        raise click.UsageError("--plot shows one run: leave out --seeds and --sweep")
    try:
        plan = plans.read(file)
        scenario = plan.scenario if hours is None else replace(plan.scenario, hours=hours)
        first = plan.seed if seed is None else seed
        what, variants = _variants(scenario, sweep)
    except MozpoolError as error:
        _fail(error.message)
    statistics = _load("statistics")
    plotting = None if plot is None else _load("plot")
    rows = _runs(statistics, variants, range(first, first + seeds))
    runs = [run for row in rows.values() for run in row]
    if as_json:
        click.echo(json.dumps({"plan": plan.name, "runs": [statistics.as_json(run) for run in runs]}, indent=2))
    elif sweep is None and seeds == 1:
        _print(statistics.report(runs[0], plan.name))
    else:
        if sweep is None:
            what, rows = "seed", {**{run.seed: [run] for run in runs}, "all": runs}
        click.echo(
            f"{plan.name}: {scenario.devices} devices, {scenario.hours:g} h"
            if sweep is None
            else f"{plan.name}: {scenario.hours:g} h"
        )
        _print(statistics.comparison(what, rows))
    if plotting is not None and plot is not None:
        try:
            plotting.plot(runs[0], plan.name, plot)
        except OSError as error:
            _fail(f"{plot}: {error.strerror}")
    broken = [run for run in runs if run.violation is not None]
    for run in broken:
        click.echo(
            f"mozpool.simulate: seed {run.seed}, {run.scenario.devices} devices: "
            f"Mozpool did what it must not do: {run.violation}",
            err=True,
        )
    sys.exit(1 if broken else 0)


def _variants(scenario: Scenario, sweep: tuple[str, list[int]] | None) -> tuple[str, dict[object, Scenario]]:
    """What is varied, and the scenarios by its values. Raises BadInput."""
    if sweep is None:
        return "devices", {scenario.devices: scenario}
    name, numbers = sweep
    try:
        return name, {number: plans.sweep(scenario, name, number) for number in numbers}
    except BadInput as error:
        raise BadInput(f"--sweep: {error.message}") from error


def _runs(statistics: ModuleType, variants: Mapping[object, Scenario], seeds: Iterable[int]) -> dict[object, list[Run]]:
    progress = Progress(sys.stderr, Clock())
    rows: dict[object, list[Run]] = {}
    try:
        for key, scenario in variants.items():
            rows[key] = []
            for seed in seeds:
                progress.begin(f"{scenario.devices} devices, seed {seed}", scenario.hours)
                rows[key].append(statistics.measure(scenario, seed, progress))
    finally:
        progress.close()
    return rows


def _load(name: str) -> ModuleType:
    """A module of this package that needs libraries which only the simulation needs."""
    try:
        return import_module(f"mozpool.simulate.{name}")
    except ModuleNotFoundError as error:
        library = str(error.name).partition(".")[0]
        if library not in ("greenlet", "matplotlib"):
            raise
        _fail(f"{library} is not installed: pip install 'mozpool[simulation]'")


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        click.echo(line)


def _fail(message: str) -> NoReturn:
    click.echo(f"mozpool.simulate: {message}", err=True)
    sys.exit(2)


if __name__ == "__main__":
    main(prog_name="python -m mozpool.simulate")
