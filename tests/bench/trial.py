# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The main program of a case that is tried out by itself: ``python -m tests.bench.cases.d_list --short``."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import click

from tests.bench.figures import Figure
from tests.bench.scale import Scale


def trial(title: str, run: Callable[[Scale], Iterable[Figure]]) -> None:
    """Read the command line, run the case, and print a line for each figure."""

    @click.command(help=title)
    @click.option("--short", is_flag=True, help="The smallest sizes.")
    @click.option("--runs", default=3, help="How often each figure is measured.")
    @click.option("--database", "databases", multiple=True, default=("mariadb", "sqlite"))
    def main(short: bool, runs: int, databases: tuple[str, ...]) -> None:
        begun = time.monotonic()
        for figure in run(Scale(short=short, runs=runs, databases=databases)):
            parameters = " ".join(f"{key}={value}" for key, value in figure.parameters.items())
            values = f"{figure.median:.4g} {figure.unit} (spread {100 * figure.spread:.0f} %)"
            click.echo(f"{figure.case} {figure.subject} {parameters}: {figure.measure}: {values}")
        click.echo(f"{time.monotonic() - begun:.0f} s")

    main()
