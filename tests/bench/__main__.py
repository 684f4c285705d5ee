# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""``python -m tests.bench``: latency and rate of the request call, the whole cycle and the hand-off.

Over a throwaway MariaDB with durable commits (a flush at each), with boards that answer at once: the rest is Mozpool.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path

import click
import requests
from sqlalchemy import Connection, insert

from mozpool.clock import Clock
from mozpool.db import images, schema, tables
from mozpool.db.bootconfig import boot_config_hash
from mozpool.db.engine import Database
from tests.bench import load
from tests.mariadb import running
from tests.processes import end

MODES = ("claim", "cycle", "handoff", "across")
INSTANT = {"power": "instant", "boot": "instant", "probe": "instant", "agent": "instant"}
PLUGINS = Path(__file__).parent / "plugins"


def fill(conn: Connection, server: str, count: int) -> None:
    """Ready devices that hold a reusable image, so that a power cycle prepares them."""
    server_id = images.ensure_imaging_server(conn, server)
    conn.execute(insert(tables.hardware_types).values(id=1, type="bench", model="one", backends=json.dumps(INSTANT)))
    conn.execute(
        insert(tables.images).values(id=1, name="android", boot_config_keys="[]", can_reuse=1, has_sut_agent=1)
    )
    conn.execute(insert(tables.pxe_configs).values(id=1, name="android", description="", contents="-", active=1))
    conn.execute(insert(tables.image_pxe_configs).values(image_id=1, hardware_type_id=1, pxe_config_id=1))
    rng = random.Random(1)
    now = Clock().now()
    conn.execute(
        insert(tables.devices),
        [
            {
                "name": f"device{number}",
                "fqdn": f"device{number}.example.com",
                "inventory_id": number,
                "state": "ready",
                "state_counters": "{}",
                "state_timeout": now + timedelta(seconds=rng.uniform(60, 600)),
                "mac_address": f"{number:012x}",
                "imaging_server_id": server_id,
                "hardware_type_id": 1,
                "image_id": 1,
                "boot_config": "{}",
                "boot_config_hash": boot_config_hash("{}"),
                "shuffle": rng.randrange(2**31),
            }
            for number in range(1, count + 1)
        ],
    )


@contextmanager
def server(engine: str, devices: int, directory: Path, port: int) -> Iterator[str]:
    """A daemon over a new pool, whose devices are its own; gives its URL."""
    database = Database(engine, clock=Clock(), rng=random.Random(1))
    schema.create(database)
    with database.begin() as conn:
        fill(conn, f"127.0.0.1:{port}", devices)
    database.dispose()
    with daemon(engine, directory, port) as url:
        yield url


@contextmanager
def daemon(engine: str, directory: Path, port: int) -> Iterator[str]:
    """A daemon in a process of its own over a pool that is there; gives its URL."""
    config = directory / f"{port}.ini"
    name = f"127.0.0.1:{port}"
    config.write_text(
        f"[database]\nengine = {engine}\n[server]\nfqdn = {name}\nport = {port}\nlog_level = WARNING\n"
        + os.environ.get("EXTRA", "").replace("|", chr(10))
        + chr(10)
    )
    path = os.pathsep.join(filter(None, [str(PLUGINS), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "MOZPOOL_CONFIG": str(config), "PYTHONPATH": path}
    process = subprocess.Popen([sys.executable, "-m", "mozpool.cli.server"], env=environment)
    try:
        give_up = time.monotonic() + 30
        while True:
            try:
                requests.get(f"http://{name}/api/version/", timeout=5)
                break
            except requests.RequestException:
                if process.poll() is not None or time.monotonic() > give_up:
                    raise
                time.sleep(0.05)
        yield f"http://{name}"
    finally:
        end(process)


def numbers(_context: click.Context, _parameter: click.Parameter, value: str) -> list[int]:
    """A list such as ``10,100,1000``."""
    try:
        return [int(part) for part in value.split(",")]
    except ValueError:
        raise click.BadParameter("expected numbers separated by commas") from None


@click.command(help=__doc__)
@click.option("--devices", default="10,100,1000", callback=numbers, help="Sizes of the pool.")
@click.option("--clients", default="1,8,32", callback=numbers, help="Numbers of clients at a time.")
@click.option("--mode", "modes", multiple=True, type=click.Choice(MODES), help="What to measure.")
@click.option("--seconds", default=8.0, help="Length of a run.")
@click.option("--runs", default=3, help="How often each case is run.")
@click.option("--port", default=18082, help="Where the server under test listens.")
def main(devices: list[int], clients: list[int], modes: tuple[str, ...], seconds: float, runs: int, port: int) -> None:
    """Run the cases and print a table a mode."""
    doubles = errors = 0
    with running(durable=True) as mariadb, tempfile.TemporaryDirectory() as temporary:
        serial = itertools.count()
        for mode in modes or MODES:
            click.echo(
                f"\n{mode} (MariaDB, flush at each commit; median of {runs} runs of {seconds:g} s, and their range)\n"
            )
            click.echo("| devices | clients | per second | p50 ms | p99 ms |\n|---|---|---|---|---|")
            for size, number in itertools.product(devices, clients if mode in ("claim", "cycle") else [1]):
                name = f"bench{next(serial)}"
                mariadb.execute(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
                directory = Path(temporary, name)
                directory.mkdir()
                measured = "claim and return" if mode == "claim" else mode
                results = []
                engine = mariadb.url(name)
                with ExitStack() as stack:
                    url = stack.enter_context(server(engine, size, directory, port))
                    # Two daemons share the processors: only where both are needed.
                    other = stack.enter_context(daemon(engine, directory, port + 1)) if mode == "across" else ""
                    load.run(url, "cycle", 1, 0.5)  # caches and connections are warm
                    for _ in range(runs):
                        results.append(load.run(url, mode, number, seconds, other))
                mariadb.execute(f"DROP DATABASE {name}")
                latency = "claim" if mode == "claim" else mode
                columns = [
                    load.spread([result.rate(measured) for result in results]),
                    load.spread([result.quantile(latency, 0.5) for result in results]),
                    load.spread([result.quantile(latency, 0.99) for result in results]),
                ]
                click.echo(f"| {size} | {number} | {' | '.join(columns)} |")
                doubles += sum(result.doubles for result in results)
                errors += sum(result.errors for result in results)
    click.echo(f"\nDevices named by two requests at a time: {doubles}. Errors: {errors}.")
    if doubles or errors:
        sys.exit(1)


if __name__ == "__main__":
    main()
