# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""A month of a big rough lab, and then another one, as long as there is time: what ``scripts/soak`` runs."""

from __future__ import annotations

import itertools
from dataclasses import replace

import click

from mozpool.clock import Clock
from mozpool.simulate.explore import explain
from mozpool.simulate.scenario import Scenario, rough
from mozpool.simulate.world import World


def month(boards: int, servers: int, days: float, per_hour: float) -> Scenario:
    """A rough lab that gets about so many requests an hour."""
    scenario = rough(hours=24.0 * days, devices=boards, servers=servers)
    usual = sum(load.per_hour + 4 * load.bursts for load in scenario.loads)
    share = per_hour / usual
    loads = tuple(
        replace(load, per_hour=load.per_hour * share, bursts=round(load.bursts * share)) for load in scenario.loads
    )
    return replace(scenario, loads=loads)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--boards", type=click.IntRange(2), default=1000, show_default=True)
@click.option("--servers", type=click.IntRange(1), default=3, show_default=True)
@click.option("--days", type=click.FloatRange(0.01), default=30.0, show_default=True, help="Simulated.")
@click.option("--per-hour", type=click.FloatRange(1.0), default=200.0, show_default=True, help="Requests.")
@click.option("--minutes", type=click.FloatRange(0.1), help="Begin no other seed after so many real minutes.")
@click.option("--first-seed", type=int, default=0, show_default=True)
def main(boards: int, servers: int, days: float, per_hour: float, minutes: float | None, first_seed: int) -> None:
    """Simulate a month of a big lab in which everything goes wrong, one seed after the other.

    Without --minutes it goes on until Ctrl-C. scripts/soak --fuzz and --api soak something else: see --fuzz --help and
    --api --help. The exit status is 1 when something did not hold; the seed, and what led
    there, are shown.
    """
    clock = Clock()
    begun = clock.monotonic()
    for seed in itertools.count(first_seed):
        world = World(month(boards, servers, days, per_hour), str(seed))
        started = shown = clock.monotonic()

        def look(world: World = world, started: float = started) -> None:
            nonlocal shown
            if (now := clock.monotonic()) - shown >= 10.0:
                shown = now
                simulated = world.scheduler.time
                days_done, ratio = simulated / 86400, simulated / (now - started)
                click.echo(f"seed {world.seed}: day {days_done:.2f}, {ratio:.0f} times real time", err=True)

        world.on_look.append(look)
        result = world.run()
        spent = clock.monotonic() - started
        click.echo(
            f"seed {seed}: {result.simulated / 86400:.2f} days of {boards} boards in {spent:.0f} s "
            f"({result.simulated / spent:.0f} times real time), {sum(result.requests.values())} requests, "
            f"{len(result.faults)} faults"
        )
        if result.violation is not None:
            click.echo(explain(result))
            raise SystemExit(1)
        if minutes is not None and clock.monotonic() - begun >= 60 * minutes:
            return


if __name__ == "__main__":
    main()
