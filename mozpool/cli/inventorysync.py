# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""``mozpool-inventorysync``: brings the pool into line with the inventory."""

from __future__ import annotations

import random
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import click

from mozpool import __version__
from mozpool.cli.common import registry, todays_database
from mozpool.clock import Clock
from mozpool.config import ConfigError
from mozpool.errors import MozpoolError
from mozpool.lifeguard.inventory.plan import SKIPPED, UNCHANGED, Plan
from mozpool.lifeguard.inventory.sources import NoInventory, source_of
from mozpool.lifeguard.inventory.sync import AnotherRuns, InventorySync
from mozpool.logbook import Logbook

PATIENCE = 3.0
"""Seconds after which, and between which, it says how far it is."""


class _Misconfigured(click.ClickException):
    exit_code = 2


class _Command(click.Command):
    """Errors that are meant for a person end it with one sentence: status 2 for the configuration, 1 for the rest."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except MozpoolError as error:
            is_configuration = isinstance(error, ConfigError | NoInventory)
            raise (_Misconfigured if is_configuration else click.ClickException)(error.message) from error


class _Progress:
    """Says on stderr how far it is, when that takes long and somebody looks on."""

    def __init__(self, clock: Clock, *, shown: bool) -> None:
        self._clock = clock
        self._said = ""
        self._begun = clock.monotonic()
        self._done = clock.event()
        self._lock = threading.Lock()
        if shown:
            clock.start_thread(self._work, "progress")

    def say(self, said: str) -> None:
        """From now on it is so far."""
        with self._lock:
            self._said = said

    def end(self) -> None:
        """Say no more."""
        self._done.set()

    def _work(self) -> None:
        while not self._clock.wait(self._done, PATIENCE):
            with self._lock:
                said = self._said
            click.echo(f"{self._clock.monotonic() - self._begun:.0f} s: {said} ...", err=True)


@click.command(cls=_Command, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--verbose", "-v", is_flag=True, help="Print each host and its fate, and how far it is.")
@click.option("--dry-run", "-n", is_flag=True, help="Print what would change, and change nothing.")
@click.option("--ship-it", is_flag=True, help="However many changes there are, they are meant.")
@click.option(
    "--config", "config_file", type=click.Path(exists=True, dir_okay=False), help="Configuration file (config.ini)."
)
@click.version_option(__version__, prog_name="mozpool-inventorysync")
@click.pass_context
def main(ctx: click.Context, verbose: bool, dry_run: bool, ship_it: bool, config_file: str | None) -> None:
    """Bring the devices of the pool into line with the inventory, from cron or by hand.

    [inventory] in the configuration says where it is: in the file of --config or $MOZPOOL_CONFIG, else in the first
    that exists of ./config.ini, config.ini in the checkout that runs, and /etc/mozpool/config.ini.

    All changes are made together, or none: an answer that is not whole or not right changes nothing. More changes than
    five, and than a tenth of all devices, need --ship-it. A device that is lent or busy is marked, and leaves when it
    is free.

    The exit status is 0 when it is done, there was nothing to do, or another server does it now; 1 when something
    stopped it; 2 when the command line or the configuration is wrong.
    """
    ctx.obj = config_file
    clock = Clock()
    with _ends_in_good_order(), todays_database() as (settings, database):
        logbook = Logbook(database, clock)
        backends = registry()
        source = source_of(settings.inventory)
        sync = InventorySync(source, database, clock, random.SystemRandom(), settings, backends, logbook, by_hand=True)
        progress = _Progress(clock, shown=verbose or sys.stderr.isatty())
        try:
            if dry_run:
                made = sync.preview(progress.say)
                message = made.summary()
            else:
                outcome = sync.run(progress.say, ship_it=ship_it)
                made, message = outcome.plan, outcome.message()
                logbook.flush()
        except AnotherRuns as error:
            click.echo(error.message)
            return
        finally:
            progress.end()
        _print(made, message, everything=verbose, dry_run=dry_run)
        if dry_run and not ship_it:
            made.check_limit()


def _print(made: Plan, message: str, *, everything: bool, dry_run: bool) -> None:
    """Each host and its fate, or only what changes, and a summary; nothing at all when cron need not tell anybody."""
    quiet = () if everything else (SKIPPED, UNCHANGED)
    shown = [fate for fate in made.fates if fate.what not in quiet]
    if everything or dry_run or not made.is_empty:
        for fate in shown:
            click.echo(str(fate))
        click.echo(f"{'Would be done: ' if dry_run else ''}{message}")


@contextmanager
def _ends_in_good_order() -> Iterator[None]:
    """When it is told to end, it lets go of what it has begun."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(1)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    main()
