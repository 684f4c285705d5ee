# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""``python -m tests.bench.pages``: what the list of devices costs a server whose pool is large.

For SQLite and a throwaway MariaDB: how long the whole page takes, its parts after a change, and in Chromium until
something is painted and the longest frame while scrolling; and the share of a core that one open page costs while
nobody changes anything. Two kinds of quiet are measured: a pool in which nothing is written at all, and one whose idle
devices are looked after every ten minutes.
"""

from __future__ import annotations

import json
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import click
import requests
from playwright.sync_api import sync_playwright
from sqlalchemy import Connection, insert, select, update

from mozpool.clock import Clock
from mozpool.db import schema, tables
from mozpool.db.engine import Database
from tests.bench import load
from tests.bench.__main__ import daemon, fill
from tests.browser.conftest import ARGUMENTS, CHROMIUM
from tests.browser.conftest import missing as no_browser
from tests.mariadb import missing, running

PART = {"Mozpool-Part": "1"}
POLL = 2.0
"""Seconds after which an open page asks again."""

ADDRESSES = {
    "first page": "/devices",
    "by state": "/devices?sort=-state",
    "failed": "/devices?category=failed",
    "search": "/devices?search=flickers",
    "one label": "/devices?label=rack=7",
    "last page": "/devices?page=1000000",
    "500 rows": "/devices?size=500",
}


def colour(conn: Connection, closed: int, still: bool) -> None:
    """Make the pool look like one that is used: labels, comments, other states, lent devices, a past."""
    rng = random.Random(2)
    now = Clock().now()
    devices = tables.devices
    ids = list(conn.scalars(select(devices.c.id).order_by(devices.c.id)))
    conn.execute(
        insert(tables.device_labels),
        [
            {"device_id": device_id, "name": name, "value": value}
            for device_id in ids
            for name, value in (
                ("rack", str(device_id % 40)),
                ("pool", rng.choice(["a", "b"])),
                ("serial", f"s{device_id}"),
            )
        ],
    )
    if still:
        conn.execute(update(devices).values(state_timeout=None))
    conn.execute(update(devices).values(state_since=now - timedelta(hours=3)))
    states = (("failed_pxe_booting", 9), ("locked_out", 14), ("maintenance_mode", 33))
    for state, step in states:
        chosen = [device_id for device_id in ids if device_id % step == 0]
        conn.execute(
            update(devices).where(devices.c.id.in_(chosen)).values(state=state, state_timeout=None, comments="flickers")
        )
    server_id = conn.scalar(select(devices.c.imaging_server_id).limit(1))
    request = {
        "imaging_server_id": server_id,
        "requested_device": "any",
        "state": "closed",
        "state_counters": "{}",
        "expires": now + timedelta(days=1),
        "image_id": 1,
    }
    past = [{**request, "assignee": f"person{number % 50}@example.com"} for number in range(closed)]
    for start in range(0, len(past), 5000):
        conn.execute(insert(tables.requests), past[start : start + 5000])
    lent = [device_id for device_id in ids if device_id % 7 == 1]
    for number, device_id in enumerate(lent, start=1):
        open_one = {**request, "id": closed + number, "assignee": f"person{number % 50}@example.com", "state": "ready"}
        conn.execute(insert(tables.requests), open_one)
        claim = {"id": number, "request_id": closed + number, "device_id": device_id}
        conn.execute(insert(tables.device_requests), claim)
        conn.execute(update(devices).where(devices.c.id == device_id).values(claim_id=number))


def ticks(pid: int) -> float:
    """Seconds of a processor that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def server_pid(port: int) -> int:
    """The process that serves this port's configuration."""
    for status in Path("/proc").glob("[0-9]*/environ"):
        try:
            environment = status.read_bytes().split(b"\0")
            command = status.with_name("cmdline").read_bytes()
        except OSError:
            continue
        named = any(value.startswith(b"MOZPOOL_CONFIG=") and value.endswith(b"/%d.ini" % port) for value in environment)
        if named and b"mozpool.cli.server" in command:
            return int(status.parent.name)
    raise LookupError(f"no server of port {port}")


def milliseconds(times: int, call: Callable[[], object]) -> list[float]:
    """How long each of several calls took."""
    found = []
    for _ in range(times):
        begun = time.perf_counter()
        call()
        found.append((time.perf_counter() - begun) * 1000)
    return found


class Page:
    """An open page: it has an ETag and asks again."""

    def __init__(self, session: requests.Session, url: str) -> None:
        self._session = session
        self._url = url
        self._etag = ""

    def poll(self) -> int:
        """Ask what has changed; the answer's status."""
        said = self._session.get(self._url, headers={**PART, "If-None-Match": self._etag}, timeout=60)
        self._etag = said.headers.get("ETag", self._etag)
        return said.status_code


def idle_cost(pid: int, seconds: float, pages: list[Page]) -> tuple[float, int]:
    """Per cent of a core that the server uses while pages are open, and how often one was answered anew."""
    for page in pages:
        page.poll()
    begun, before, changed = time.perf_counter(), ticks(pid), 0
    while (elapsed := time.perf_counter() - begun) < seconds:
        for page in pages:
            changed += page.poll() == 200
        time.sleep(max(0.0, POLL - (time.perf_counter() - begun - elapsed)))
    return (ticks(pid) - before) / (time.perf_counter() - begun) * 100, changed


def measure(name: str, engine: str, directory: Path, port: int, devices: int, closed: int, seconds: float) -> None:
    """Print what one database gives."""
    for still in (True, False):
        database = Database(engine, clock=Clock(), rng=random.Random(1))
        if still:
            schema.create(database)
            with database.begin() as conn:
                fill(conn, f"127.0.0.1:{port}", devices)
                colour(conn, closed, still)
        else:
            now, rng = Clock().now(), random.Random(3)
            with database.begin() as conn:
                for device_id in conn.scalars(
                    select(tables.devices.c.id).where(tables.devices.c.state == "ready")
                ).all():
                    due = now + timedelta(seconds=rng.uniform(0, 600))
                    conn.execute(
                        update(tables.devices).where(tables.devices.c.id == device_id).values(state_timeout=due)
                    )
        database.dispose()
        with daemon(engine, directory, port) as url, requests.Session() as session:
            pid = server_pid(port)
            time.sleep(5)
            if still:
                for title, address in ADDRESSES.items():
                    whole = milliseconds(7, lambda address=address: session.get(url + address, timeout=60))  # type: ignore[misc]
                    click.echo(f"| {name} | whole page, {title}, ms | {load.spread(whole)} |")
                click.echo(f"| {name} | parts after a change, ms | {load.spread(after_changes(session, url))} |")
                for title, times in in_browser(url).items():
                    click.echo(f"| {name} | {title} | {load.spread(times)} |")
            none, _ = idle_cost(pid, seconds, [])
            one, changed = idle_cost(pid, seconds, [Page(session, f"{url}/devices")])
            quiet = "nothing is written" if still else "idle devices are looked after"
            click.echo(f"| {name} | % of a core, {quiet}, no page open | {none:.2f} |")
            click.echo(f"| {name} | % of a core, {quiet}, one page open | {one:.2f} ({changed} times sent anew) |")


def after_changes(session: requests.Session, url: str) -> list[float]:
    """How long an open page takes to be told of a change, in milliseconds."""
    page = Page(session, f"{url}/devices")
    page.poll()
    found = []
    for number in range(7):
        session.post(f"{url}/api/device/device2/set-comments/", json={"comments": f"note {number}"}, timeout=60)
        time.sleep(1.1)
        found += milliseconds(1, page.poll)
    return found


PAINTED = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? 0"

SCROLL = """async () => {
    let longest = 0, before = performance.now();
    for (let step = 0; step < 60; step += 1) {
        window.scrollBy(0, 120);
        await new Promise(requestAnimationFrame);
        const now = performance.now();
        longest = Math.max(longest, now - before);
        before = now;
    }
    return longest;
}"""
"""Scrolls 60 times, and tells the longest time between two frames in milliseconds."""


def in_browser(url: str) -> dict[str, list[float]]:
    """What a person with Chromium sees of it; nothing where there is none."""
    found: dict[str, list[float]] = {}
    if no_browser():
        return found
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        for size in (100, 500):
            painted = found[f"Chromium, {size} rows: first contentful paint, ms"] = []
            frames = found[f"Chromium, {size} rows: longest frame while scrolling, ms"] = []
            for _ in range(5):
                context = browser.new_context(viewport={"width": 1400, "height": 900})
                page = context.new_page()
                page.goto(f"{url}/devices?size={size}", wait_until="load")
                page.wait_for_function(f"{PAINTED} > 0")
                painted.append(page.evaluate(PAINTED))
                frames.append(page.evaluate(SCROLL))
                context.close()
        browser.close()
    return found


@contextmanager
def engines(directory: Path, names: tuple[str, ...]) -> Iterator[dict[str, str]]:
    """Name of a database → its URL; MariaDB where it is installed."""
    found = {"SQLite": f"sqlite:///{directory}/pool.sqlite"}
    if "MariaDB" not in names or missing():
        yield found
        return
    with running(durable=True) as mariadb:
        mariadb.execute("CREATE DATABASE pages CHARACTER SET utf8mb4")
        yield {name: url for name, url in {**found, "MariaDB": mariadb.url("pages")}.items() if name in names}


@click.command(help=__doc__)
@click.option("--devices", default=5000, help="Size of the pool.")
@click.option("--closed", default=20000, help="Requests of the past.")
@click.option("--seconds", default=40.0, help="For how long a share of a core is measured.")
@click.option("--port", default=18092, help="Where the server under test listens.")
@click.option("--database", "names", multiple=True, default=("SQLite", "MariaDB"), help="Which databases.")
def main(devices: int, closed: int, seconds: float, port: int, names: tuple[str, ...]) -> None:
    """Measure and print a table."""
    click.echo(json.dumps({"devices": devices, "requests of the past": closed}))
    click.echo("| database | what | median (range) |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary, engines(Path(temporary), names) as found:
        for name, engine in found.items():
            directory = Path(temporary, name)
            directory.mkdir()
            measure(name, engine, directory, port, devices, closed, seconds)


if __name__ == "__main__":
    main()
