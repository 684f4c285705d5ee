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
import random
import time
from collections.abc import Callable
from datetime import timedelta

import click
import requests
from playwright.sync_api import sync_playwright
from sqlalchemy import Connection, insert, select, update

from mozpool.clock import Clock
from mozpool.db import tables
from mozpool.db.engine import Database
from tests.bench import load
from tests.bench.filling import fill
from tests.bench.pools import Daemon, Pool, pools
from tests.bench.scale import Scale
from tests.browser.conftest import ARGUMENTS, CHROMIUM
from tests.browser.conftest import missing as no_browser

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


def colour(conn: Connection, closed: int) -> None:
    """Make the pool look like one that is used: labels, comments, states, lent devices, a past; nothing is due."""
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
    conn.execute(update(devices).values(state_timeout=None, state_since=now - timedelta(hours=3)))
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


def milliseconds(times: int, call: Callable[[], object]) -> list[float]:
    """How long each of several calls took."""
    found = []
    for _ in range(times):
        begun = time.perf_counter()
        call()
        found.append((time.perf_counter() - begun) * 1000)
    return found


def look_after(conn: Connection) -> None:
    """Let the idle devices be looked after within ten minutes."""
    now, rng = Clock().now(), random.Random(3)
    for device_id in conn.scalars(select(tables.devices.c.id).where(tables.devices.c.state == "ready")).all():
        due = now + timedelta(seconds=rng.uniform(0, 600))
        conn.execute(update(tables.devices).where(tables.devices.c.id == device_id).values(state_timeout=due))


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


def idle_cost(daemon: Daemon, seconds: float, pages: list[Page]) -> tuple[float, int]:
    """Per cent of a core that the server uses while pages are open, and how often one was answered anew."""
    for page in pages:
        page.poll()
    begun, before, changed = time.perf_counter(), daemon.cost().own, 0
    while (elapsed := time.perf_counter() - begun) < seconds:
        for page in pages:
            changed += page.poll() == 200
        time.sleep(max(0.0, POLL - (time.perf_counter() - begun - elapsed)))
    return (daemon.cost().own - before) / (time.perf_counter() - begun) * 100, changed


def measure(pool: Pool, devices: int, closed: int, seconds: float) -> None:
    """Print what one database gives."""

    def filled(database: Database, server: str) -> None:
        with database.begin() as conn:
            fill(conn, server, devices)
            colour(conn, closed)

    pool.make(filled)
    for still in (True, False):
        if not still:
            with pool.database() as database, database.begin() as conn:
                look_after(conn)
        with pool.daemon() as daemon, requests.Session() as session:
            time.sleep(5)
            if still:
                for title, address in ADDRESSES.items():
                    whole = milliseconds(7, lambda address=address: session.get(daemon.url + address, timeout=60))  # type: ignore[misc]
                    click.echo(f"| {pool.kind} | whole page, {title}, ms | {load.spread(whole)} |")
                click.echo(
                    f"| {pool.kind} | parts after a change, ms | {load.spread(after_changes(session, daemon.url))} |"
                )
                for title, times in in_browser(daemon.url).items():
                    click.echo(f"| {pool.kind} | {title} | {load.spread(times)} |")
            none, _ = idle_cost(daemon, seconds, [])
            one, changed = idle_cost(daemon, seconds, [Page(session, f"{daemon.url}/devices")])
            quiet = "nothing is written" if still else "idle devices are looked after"
            click.echo(f"| {pool.kind} | % of a core, {quiet}, no page open | {none:.2f} |")
            click.echo(f"| {pool.kind} | % of a core, {quiet}, one page open | {one:.2f} ({changed} times sent anew) |")


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


@click.command(help=__doc__)
@click.option("--devices", default=5000, help="Size of the pool.")
@click.option("--closed", default=20000, help="Requests of the past.")
@click.option("--seconds", default=40.0, help="For how long a share of a core is measured.")
@click.option("--database", "names", multiple=True, default=("sqlite", "mariadb"), help="Which databases.")
def main(devices: int, closed: int, seconds: float, names: tuple[str, ...]) -> None:
    """Measure and print a table."""
    click.echo(json.dumps({"devices": devices, "requests of the past": closed}))
    click.echo("| database | what | median (range) |\n|---|---|---|")
    with pools(Scale(short=False, runs=1, databases=names)) as made:
        for kind in made.kinds:
            with made.pool(kind) as pool:
                measure(pool, devices, closed, seconds)


if __name__ == "__main__":
    main()
