# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""``python -m tests.bench.profile a b e``: what a server spends its time with under the load of a case, by py-spy.

Writes ``profile-CASE.md`` and a flame graph ``profile-CASE.svg``; py-spy has to be allowed to look into the server, as
root is. Only threads that have Python's lock are counted: the others wait.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click

from tests.bench import load
from tests.bench.__main__ import DOCS
from tests.bench.cases import e_idle
from tests.bench.document import table
from tests.bench.grid import sound, stock
from tests.bench.pools import Cost, Daemon, Pool, pools
from tests.bench.scale import Scale
from tests.bench.targets import number
from tests.mariadb import MariaDB

DEVICES, CLIENTS = 500, 8
IDLE = 5000
WARM = 3.0
"""Seconds of load before, and for which py-spy goes on afterwards at most."""

RATE = 100
"""Samples a second."""

COUNTERS = {"Questions": "statements", "Com_commit": "commits"}
"""MariaDB's names, and what they count; a statement outside a transaction is a commit that it does not count."""


@dataclass(frozen=True)
class Samples:
    """What py-spy saw."""

    total: int
    inside: Counter[str]
    """Function → samples in it or in what it called."""
    itself: Counter[str]
    """Function → samples in it itself."""

    @classmethod
    def read(cls, text: str) -> Samples:
        """From py-spy's raw format: a line for each stack, its frames with semicolons between, and their number."""
        total, inside, itself = 0, Counter[str](), Counter[str]()
        for line in text.splitlines():
            stack, _, number = line.rpartition(" ")
            frames = [re.sub(r":\d+\)$", ")", frame) for frame in stack.split(";")]
            total += int(number)
            itself[frames[-1]] += int(number)
            for frame in set(frames):
                inside[frame] += int(number)
        return cls(total, inside, itself)


def counters(mariadb: MariaDB) -> dict[str, int]:
    """What MariaDB has counted so far."""
    rows = mariadb.execute("SHOW GLOBAL STATUS WHERE Variable_name IN %s", tuple(COUNTERS))
    return {COUNTERS[name]: int(value) for name, value in rows}


def costs(pool: Pool, pid: int) -> dict[str, float]:
    """What server and database have used and counted so far."""
    assert pool.mariadb is not None
    used = {"server, ms": 1000 * Cost.of(pid).own, "MariaDB, ms": 1000 * Cost.of(pool.mariadb.pid).own}
    return {**used, **counters(pool.mariadb)}


def record(pid: int, seconds: float, output: Path, kind: str) -> subprocess.Popen[bytes]:
    """Begin to look into a process; ``kind`` is py-spy's word for a format."""
    command = ["py-spy", "record", "--gil", "--nonblocking", "--rate", str(RATE), "--format", kind, "--pid", str(pid)]
    return subprocess.Popen(
        [*command, "--duration", str(round(seconds)), "--output", str(output)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def lines(counted: Counter[str], total: int, cost: float, most: int, only: str = "") -> str:
    """A table of the functions that were seen most; ``only`` is what the names of their files begin with."""
    found = [(name, number) for name, number in counted.most_common() if f"({only}" in name][:most]
    rows = [[f"{100 * n / total:.1f} %", f"{cost * n / total:.2f}", f"`{name}`"] for name, n in found]
    return table(["share", "ms an operation", "function"], rows)


@dataclass(frozen=True)
class Load:
    """What a server is profiled under."""

    about: str
    operation: str
    make: Callable[[Pool], None]
    """Fills the pool."""
    act: Callable[[Pool, Daemon, float], float]
    """Goes on for so many seconds; how many operations took place."""
    times: float = 1.0
    """How much longer than the others it is measured."""


def under_load(mode: str, operation: str) -> Load:
    """Clients that do one thing all the time."""

    def act(_pool: Pool, daemon: Daemon, seconds: float) -> float:
        return len(sound(load.run(daemon.url, mode, CLIENTS, seconds)).times[operation])

    return Load(f"{CLIENTS} clients, {DEVICES} devices", operation, lambda pool: stock(pool, DEVICES), act)


def make_idle(pool: Pool) -> None:
    """Devices that nobody asks for, and that are verified."""
    pool.make(lambda database, server: e_idle.rest(database, server, IDLE, pings=True))


def wait(pool: Pool, _daemon: Daemon, seconds: float) -> float:
    """How many verifications took place meanwhile."""
    before = e_idle.verified(pool)
    time.sleep(seconds)
    return e_idle.verified(pool) - before


LOADS = {
    "a": under_load("claim", "claim and return"),
    "b": under_load("cycle", "cycle"),
    "e": Load(f"{IDLE} idle devices, pinged by fping every 10 minutes", "verification", make_idle, wait, times=4.0),
}


def profile(case: str, seconds: float, directory: Path) -> None:
    """Write what a case costs, and where."""
    under = LOADS[case]
    seconds *= under.times
    scale = Scale(short=False, runs=1, databases=("mariadb",))
    with pools(scale) as made, made.pool("mariadb") as pool, tempfile.TemporaryDirectory() as temporary:
        raw = Path(temporary, "raw")
        under.make(pool)
        with pool.daemon() as daemon:
            under.act(pool, daemon, WARM * under.times)
            before, begun = costs(pool, daemon.pid), time.monotonic()
            count = under.act(pool, daemon, seconds)
            after, spent = costs(pool, daemon.pid), time.monotonic() - begun
            for kind, output in (("raw", raw), ("flamegraph", directory / f"profile-{case}.svg")):
                watcher = record(daemon.pid, seconds, output, kind)
                begun = time.monotonic()
                while watcher.poll() is None and time.monotonic() - begun < 4 * seconds + 60:
                    under.act(pool, daemon, 1.0)
                if watcher.poll() != 0:
                    watcher.kill()
                    raise click.ClickException("py-spy failed: it needs to be root, or the right to trace processes")
        samples = Samples.read(raw.read_text())
    each = {name: (after[name] - before[name]) / count for name in after}
    facts = "; ".join(f"{name}: {value:.2f}" for name, value in each.items())
    text = (
        f"# Profile of case {case}\n\n`python -m tests.bench.profile {case}`: {under.about}, MariaDB with durable "
        f"commits. Without the profiler: {number(count / spent)} operations ({under.operation}) a second. Each costs: "
        f"{facts}.\n\nThe shares are of {samples.total} samples in which a thread of the server had Python's lock.\n\n"
        "## In a function or in what it called\n\n"
        f"{lines(samples.inside, samples.total, each['server, ms'], 60, 'mozpool/')}\n"
        "## In a function itself\n\n"
        f"{lines(samples.itself, samples.total, each['server, ms'], 30)}"
    )
    (directory / f"profile-{case}.md").write_text(text)


@click.command(help=__doc__)
@click.argument("cases", nargs=-1, required=True, type=click.Choice(sorted(LOADS)))
@click.option("--seconds", default=30.0, help="How long each measurement takes.")
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), default=DOCS / "benchmarks")
def main(cases: tuple[str, ...], seconds: float, output: Path) -> None:
    """Profile each of the cases."""
    output.mkdir(parents=True, exist_ok=True)
    for case in cases:
        profile(case, seconds, output)
        click.echo(f"written: {output / f'profile-{case}.md'}")


if __name__ == "__main__":
    main()
