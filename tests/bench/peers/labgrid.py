# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""labgrid's coordinator (https://labgrid.readthedocs.io): places that people acquire and release."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.bench.figures import Figure
from tests.bench.load import Result
from tests.bench.peers.peer import NoPeer, Peer, environment, until_listens
from tests.bench.pools import Cost
from tests.bench.scale import Scale
from tests.processes import end, free_port

REQUIREMENTS = ("labgrid>=26,<27",)
PLACES = (100, 500)
CLIENTS = (1, 8, 32)
SECONDS = 4.0
HAND_OFFS = 60

TEXTS = {
    "a": """labgrid's coordinator, by its gRPC protocol. Each client is a session that follows all places and resources,
as `labgrid-client` does, and has places of its own. *Acquire and release*: `AcquirePlace` of one of these places by its
name, then `ReleasePlace`. Everything is in memory: nothing is stored before the answer; there is no exporter, so a
place has no resources that would have to be locked, and no board is touched.""",
    "b": """labgrid's way to get any device: `CreateReservation` by a tag, `PollReservation` every 5 ms until it is
allocated, `AcquirePlace`, `ReleasePlace`, `CancelReservation`; in memory, no board is touched.""",
    "c": """labgrid: all places are acquired and a reservation waits; *hand-off* is from sending `ReleasePlace` to the
answer of a `PollReservation`, made every 5 ms, that says that the reservation is allocated; in memory.""",
}
MODES = {
    "a": ("acquire", ("acquire", "acquire and release"), "acquire and release"),
    "b": ("reserve", ("allocated", "reserve, acquire, release, cancel"), "reserve, acquire, release, cancel"),
    "c": ("handoff", ("hand-off",), None),
}
"""Letter of a case → mode of the load, durations to tell, operation to count."""


@contextmanager
def coordinator(programs: Path) -> Iterator[tuple[str, int]]:
    """A new coordinator; its address and process id."""
    port = free_port()
    with TemporaryDirectory(prefix="mozpool-bench-") as directory:
        log = Path(directory, "log")
        with log.open("wb") as output:
            process = subprocess.Popen(
                [str(programs / "labgrid-coordinator"), "-l", f"127.0.0.1:{port}"],
                cwd=directory,
                stdout=output,
                stderr=output,
            )
        try:
            until_listens(port, process, log)
            yield f"127.0.0.1:{port}", process.pid
        finally:
            end(process)


def load(programs: Path, mode: str, address: str, places: int, clients: int, amount: float) -> Result:
    """Put a load on a coordinator, by a process in its own environment. Raises NoPeer when a call fails."""
    script = Path(__file__).with_name("labgrid_load.py")
    arguments = [mode, address, str(places), str(clients), str(amount)]
    # Isolated: in the script's own directory, this module has the name of the package that the script needs.
    command = [str(programs / "python"), "-I", str(script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise NoPeer(f"its load failed: {done.stderr[-2000:]}")
    return Result(**json.loads(done.stdout))


def run(scale: Scale, case: str) -> Iterator[Figure]:
    """Each number of places and of clients."""
    mode, durations, operation = MODES[case]
    programs = environment("labgrid", *REQUIREMENTS)
    crowds = (1, 4) if scale.short else CLIENTS
    seconds, rounds = (1.0, 3) if scale.short else (SECONDS, HAND_OFFS)
    clients = crowds if operation else (1,)
    amount = seconds if operation else rounds
    for places in (10,) if scale.short else PLACES:
        with coordinator(programs) as (address, pid):
            load(programs, "setup", address, places, 1, 0)
            runs: list[dict[int, tuple[Result, float]]] = []
            for _ in range(scale.runs):
                found = {}
                for number in clients:
                    before = Cost.of(pid).own
                    result = load(programs, mode, address, places, number, amount)
                    found[number] = (result, Cost.of(pid).own - before)
                runs.append(found)
        for number in clients:
            cell = [found[number] for found in runs]
            parameters = {"places": places, **({"clients": number} if operation else {})}
            if operation:
                rates = tuple(result.rate(operation) for result, _ in cell)
                yield Figure(case, "labgrid", f"{operation}: rate", "1/s", rates, parameters)
            for name in durations:
                for title, share in (("p50", 0.5), ("p99", 0.99)):
                    values = tuple(result.quantile(name, share) for result, _ in cell)
                    yield Figure(case, "labgrid", f"{name}: {title}", "ms", values, parameters)
            if operation:
                served = tuple(cost / result.seconds * 100 for result, cost in cell)
                yield Figure(case, "labgrid", "coordinator", "% of a core", served, parameters)
                own = tuple(result.own for result, _ in cell)
                yield Figure(case, "labgrid", "load generator", "% of a core", own, parameters)


LABGRID = Peer("labgrid", TEXTS, run)
