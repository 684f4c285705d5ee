# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""``python -m tests.fuzz``: each fuzzer for some minutes, in a process of its own."""

from __future__ import annotations

import concurrent.futures
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import click

from tests.fuzz.engine import for_long

SLACK = 1800.0
"""Seconds more than its time that a fuzzer may take until it is ended: it prepares Mozpool's code, which takes fifteen
seconds of a processor that others may use, too, and measures for a while. An input that takes too long, it finds."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("names", nargs=-1)
@click.option("--minutes", type=click.FloatRange(0.01), default=10.0, show_default=True, help="For each one.")
@click.option("--jobs", type=click.IntRange(1), default=os.cpu_count() or 1, show_default=True, help="At a time.")
@click.option("--list", "only_list", is_flag=True, help="Show what there is.")
@click.option("--unguided", is_flag=True, help="Do not let the lines that run guide it.")
@click.option("--here", is_flag=True, hidden=True)
def main(names: tuple[str, ...], minutes: float, jobs: int, only_list: bool, unguided: bool, here: bool) -> None:
    """Fuzz what reads the network: the fuzzers of these NAMES, or all.

    Where atheris is installed, the lines of the code that run guide them. The exit status is 1 when something was
    found; the input that shows it is printed.
    """
    guided = not unguided and find_spec("atheris") is not None
    if here:
        for_long(names[0], minutes, guided=guided)
    import tests.fuzz.catalogue  # noqa: F401
    from tests.fuzz.engine import FUZZERS

    unknown = sorted(set(names) - set(FUZZERS))
    if unknown:
        raise click.UsageError(f"there is no fuzzer {', '.join(unknown)}; there are {', '.join(FUZZERS)}")
    if only_list:
        for each in FUZZERS.values():
            click.echo(f"{each.name:24}{each.about}")
        return
    wanted = names or tuple(FUZZERS)
    click.echo(f"{len(wanted)} fuzzers, {'guided by coverage' if guided else 'by chance (there is no atheris)'}")
    with concurrent.futures.ThreadPoolExecutor(jobs) as workers:
        results = workers.map(lambda name: _one(name, minutes, unguided), wanted)
        failed = [name for name, fine in zip(wanted, results, strict=True) if not fine]
    if failed:
        click.echo(f"found something: {', '.join(failed)}")
        raise SystemExit(1)


def _one(name: str, minutes: float, unguided: bool) -> bool:
    """Run a fuzzer in a process of its own, and show what it says; whether all is well."""
    command = [sys.executable, "-m", "tests.fuzz", "--here", "--minutes", str(minutes), name]
    try:
        done = subprocess.run(
            [*command, *(["--unguided"] if unguided else [])],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=60 * minutes + SLACK,
            cwd=Path(__file__).parents[2],
            check=False,
        )
    except subprocess.TimeoutExpired:
        click.echo(f"FOUND: {name} did not end by itself")
        return False
    lines = done.stdout.strip().splitlines() or [f"{name} said nothing"]
    click.echo(lines[-1])
    if done.returncode:
        told = [line for line in done.stderr.splitlines() if not line.startswith(("INFO:", "WARNING:"))]
        click.echo("\n".join(told[-80:]), err=True)
    return done.returncode == 0


if __name__ == "__main__":
    main()
