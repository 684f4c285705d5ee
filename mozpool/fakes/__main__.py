# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""``python -m mozpool.fakes``: the simulated lab in a process of its own.

Its boards keep their state while the daemon that uses them is killed and started again. SIGTERM or SIGINT ends it.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import click

from mozpool.config import Settings, load
from mozpool.errors import BadInput, MozpoolError
from mozpool.fakes.board import Behaviour, BoardSpec
from mozpool.fakes.pool import boards_of_settings
from mozpool.fakes.rack import Rack


def read_specs(path: Path) -> list[BoardSpec]:
    """Read a JSON list of objects with the fields of BoardSpec. Raises BadInput."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: {error}") from error
    if not isinstance(value, list):
        raise BadInput.value(str(path), value, "a list of boards")
    return [BoardSpec.from_json(entry) for entry in value]


def command(load_specs: Callable[[Settings], Sequence[BoardSpec]] | None = None) -> click.Command:
    """Build the command. ``load_specs`` reads the boards of a configuration; without it they come from ``--specs``."""

    @click.command(help=__doc__)
    @click.option("--config", type=click.Path(path_type=Path), help="Configuration file; what follows goes before it.")
    @click.option("--specs", type=click.Path(path_type=Path), help="Take the boards from this JSON file.")
    @click.option("--server-url", help="The imaging server, as http://HOST:PORT.")
    @click.option("--tftp-root", type=click.Path(path_type=Path), help="Directory of the boot configurations.")
    @click.option("--speed", type=float, help="Divides all durations.")
    @click.option("--seed", type=int, help="Makes the boards' fate repeatable.")
    @click.option("--reliable", is_flag=True, help="The boards never fail.")
    @click.option("--report", type=click.Path(path_type=Path), help="At the end, write here what happened, as JSON.")
    def main(
        config: Path | None,
        specs: Path | None,
        server_url: str | None,
        tftp_root: Path | None,
        speed: float | None,
        seed: int | None,
        reliable: bool,
        report: Path | None,
    ) -> None:
        try:
            settings = Settings() if config is None else load(config)
            testing, paths = settings.testing, settings.paths
            if speed is not None:
                testing = replace(testing, speed=speed)
            if seed is not None:
                testing = replace(testing, seed=seed)
            if tftp_root is not None:
                paths = replace(paths, tftp_root=tftp_root)
            settings = replace(settings, testing=testing, paths=paths)
            if specs is not None:
                boards: Sequence[BoardSpec] = read_specs(specs)
            elif config is not None and load_specs is not None:
                boards = load_specs(settings)
            else:
                raise click.UsageError("which boards? Use --specs" + (" or --config" if load_specs else ""))
            rack = Rack.from_settings(settings, boards, server_url)
            if reliable:
                rack.set_behaviour(Behaviour.reliable(testing.speed))
            _serve(rack, report)
        except MozpoolError as error:
            raise click.ClickException(error.message) from error

    return main


def _serve(rack: Rack, report: Path | None) -> None:
    """Run the rack until SIGTERM or SIGINT."""
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: ended.set())
    with rack:
        click.echo(f"{len(rack.boards)} boards on {len(rack.relay_boards)} relay boards are up")
        sys.stdout.flush()
        ended.wait()
    if report is not None:
        report.write_text(json.dumps(rack.report()), "utf-8")


if __name__ == "__main__":
    command(boards_of_settings)()
