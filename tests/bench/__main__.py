# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""``python -m tests.bench``, or ``scripts/bench``: measure, and write what was found.

Each case is a module of ``tests/bench/cases``, each peer one of ``tests/bench/peers``. Other measurements are by
themselves: ``python -m tests.bench.launcher``, ``tests.bench.pages`` and ``tests.bench.logs``.
"""

from __future__ import annotations

import importlib
import pkgutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol, cast

import click

from mozpool.clock import Clock
from tests.bench import cases, document, machine
from tests.bench.figures import Figure
from tests.bench.peers import PEERS, NoPeer
from tests.bench.results import Results, Taken
from tests.bench.scale import Scale
from tests.bench.targets import shown
from tests.bench.wire import Broken
from tests.mariadb import missing

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
FEWEST = 3
"""Runs, except for a short one."""


class Case(Protocol):
    """A module of the cases."""

    TITLE: str
    TEXT: str

    def run(self, scale: Scale) -> Iterable[Figure]:
        """Measure."""
        ...


def found_cases() -> dict[str, Case]:
    """Letter → the case."""
    names = sorted(module.name for module in pkgutil.iter_modules(cases.__path__))
    return {name[0]: cast(Case, importlib.import_module(f"{cases.__name__}.{name}")) for name in names}


def note(figures: Iterable[Figure]) -> list[Figure]:
    """Print each figure as soon as it is there."""
    found = []
    for figure in figures:
        parameters = ", ".join(f"{name} {value}" for name, value in figure.parameters.items())
        click.echo(f"{figure.case} {figure.subject} ({parameters}): {figure.measure}: {shown(figure)}")
        found.append(figure)
    return found


def take(letter: str, case: Case, scale: Scale, *, peers: bool) -> Taken:
    """Run a case and, where there are any, its peers."""
    facts, at, begun = machine.facts(), Clock().now(), time.monotonic()
    figures, texts = note(case.run(scale)), [case.TEXT]
    for peer in PEERS if peers else ():
        if letter not in peer.texts:
            continue
        try:
            figures += note(peer.run(scale, letter))
            texts.append(f"*{peer.name}*: {peer.texts[letter]}")
        except (NoPeer, Broken, OSError) as problem:
            click.echo(f"{peer.name} is left out: {problem}", err=True)
    seconds = time.monotonic() - begun
    text = "\n\n".join(each.strip() for each in texts)
    return Taken(case.TITLE, text, f"{at:%Y-%m-%d %H:%M} UTC", round(seconds, 1), facts, tuple(figures))


def letters(_context: click.Context, _parameter: click.Parameter, value: str | None) -> list[str]:
    """The cases that are chosen."""
    known = list(found_cases())
    chosen = value.split(",") if value else known
    for letter in chosen:
        if letter not in known:
            raise click.BadParameter(f"{letter!r} is not a case; there are {', '.join(known)}")
    return chosen


@click.command()
@click.option("--case", "chosen", callback=letters, metavar="a,b,…", help="Which cases; without it, all.")
@click.option("--runs", default=FEWEST, type=click.IntRange(FEWEST), help="How often each figure is measured.")
@click.option("--short", is_flag=True, help="A smoke run: the smallest sizes, once, to see that it works.")
@click.option("--no-peers", is_flag=True, help="Leave the other programs out.")
@click.option(
    "--database", "databases", multiple=True, type=click.Choice(["mariadb", "sqlite"]), help="Which databases."
)
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), help="Where to write; without it, docs/.")
@click.option("--document", "only_write", is_flag=True, help="Measure nothing: write the document anew.")
def main(
    chosen: list[str],
    runs: int,
    short: bool,
    no_peers: bool,
    databases: tuple[str, ...],
    output: Path | None,
    only_write: bool,
) -> None:
    """Measure, print each figure, and write benchmarks.json, benchmarks.md and its plots.

    A case that is measured again replaces its own figures only, those of its peers included.
    """
    if short and output is None and not only_write:
        raise click.UsageError("--short needs --output DIR: docs/ is for figures that count")
    directory = output or DOCS
    wanted = databases or ("mariadb", "sqlite")
    if "mariadb" in wanted and (reason := missing()):
        raise click.UsageError(f"{reason}; --database sqlite does without")
    scale = Scale(short=short, runs=1 if short else runs, databases=wanted)
    results = Results.load(directory / "benchmarks.json")
    known = found_cases()
    for letter in () if only_write else chosen:
        click.echo(f"--- {letter}. {known[letter].TITLE}")
        results.put(letter, take(letter, known[letter], scale, peers=not no_peers))
        results.save(directory / "benchmarks.json")  # also when a later case fails
    results.save(directory / "benchmarks.json")
    document.write(results, directory)
    if output is None:
        document.summarise(results, ROOT / "README.md")
    click.echo(f"written: {directory / 'benchmarks.md'}")


if __name__ == "__main__":
    main()
