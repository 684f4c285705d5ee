# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""A real server, and a real browser that looks at it."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import requests
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, sync_playwright

from mozpool.access import tokens
from mozpool.clock import Clock
from mozpool.db.engine import Database
from tests.contract.peers import RelayBoard, RelayFault
from tests.integration.mozpool_site import free_ports
from tests.processes import end, mozpool_db

CHROMIUM = Path("/usr/bin/chromium")

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-default-apps",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]
"""Without a screen, as root, and without looking for anything on the Internet."""


def missing() -> str | None:
    """Why no browser can be started, or None."""
    return None if CHROMIUM.exists() else "needs the Debian package chromium"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """The browser. Where it should be installed, its absence is a failure.

    Not for longer than a module: as long as it is up, an event loop runs in this thread.
    """
    if (reason := missing()) and os.environ.get("CI") == "true":
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Browser, pool: Pool, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A page of a browser of its own. Whatever its console complains of fails the test, as does a call to elsewhere.

    ``MOZPOOL_SCREENSHOTS`` names a directory for a picture of each page as its test left it.
    """
    context = chromium.new_context(base_url=pool.url, viewport={"width": 1200, "height": 800})
    context.set_default_timeout(60_000)
    page = context.new_page()
    with watched(page, pool):
        yield page
        if directory := os.environ.get("MOZPOOL_SCREENSHOTS"):
            page.screenshot(path=Path(directory) / f"{request.node.name}.png", full_page=True)
        context.close()


@contextmanager
def watched(page: Page, pool: Pool) -> Iterator[None]:
    """Whatever the page's console complains of, and every call to elsewhere, is an AssertionError at the end."""
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))

    def said(message: ConsoleMessage) -> None:
        # That a call is refused (409) the page itself has to tell.
        if message.type in ("error", "warning") and "status of 409" not in message.text:
            complaints.append(message.text)

    page.on("console", said)

    def asked(call: Request) -> None:
        if not call.url.startswith((pool.url, "blob:", "data:")):
            complaints.append(f"it asked for {call.url}")

    page.on("request", asked)
    yield
    assert complaints == []


class Pool:
    """An imaging server with simulated boards; and a real board's relay, which does not work at first."""

    def __init__(self, directory: Path, relay_board: RelayBoard, boards: int = 12, more: str = "") -> None:
        """``more`` stands in its configuration, too."""
        port = free_ports(2)
        self.url = f"http://127.0.0.1:{port}"
        self.relay_board = relay_board
        self.database_url = f"sqlite:///{directory}/pool.sqlite"
        (directory / "tftp").mkdir()
        config = directory / "config.ini"
        config.write_text(
            f"[database]\nengine = {self.database_url}\n"
            f"[server]\nfqdn = 127.0.0.1:{port}\nport = {port}\n[paths]\ntftp_root = {directory}/tftp\n"
            "[testing]\nrun_fakes = true\nspeed = 40\nseed = 5\n[lifeguard]\nbreaker_probe = 7200\n"
            "[notify operators]\nevents = server_away, server_back\nwebhook = http://127.0.0.1:9/hook\nsecret = hush\n"
            f"{more}"
        )
        self.environment = {**os.environ, "MOZPOOL_CONFIG": str(config)}
        self._directory = directory
        mozpool_db(self.environment, "create-schema")
        mozpool_db(self.environment, "testdata", "-d", str(boards), "-p", str(port + 1), "--state", "ready")

    def token(self, role: str, name: str) -> str:
        """A token for the API."""
        clock = Clock()
        values = {"name": name, "role": role, "created": clock.now(), "created_by": "tests"}
        database = Database(self.database_url, clock=clock, rng=random.Random(1))
        try:
            return database.run(lambda conn: tokens.create(conn, values))[1]
        finally:
            database.dispose()

    def start(self) -> subprocess.Popen[bytes]:
        """Start the server and wait until it answers."""
        with (self._directory / "server.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "mozpool.cli.server"], env=self.environment, stdout=log, stderr=log
            )
        give_up = time.monotonic() + 60
        while True:
            with suppress(requests.ConnectionError):
                requests.get(f"{self.url}/api/version/", timeout=5)
                return process
            assert process.poll() is None, (self._directory / "server.log").read_text()
            assert time.monotonic() < give_up
            time.sleep(0.05)

    def add_board_with_relay(self, name: str) -> None:
        """Add a board that is switched by the relay board."""
        mozpool_db(
            self.environment,
            *("add-device", name, "--mac", "0200000000ff", "--address", "127.0.0.99", "--environment", "lab"),
            *("--relay-info", f"127.0.0.1:{self.relay_board.port}:bank1:relay1"),
        )

    def ask(self, device: str = "any") -> int:
        """Ask for a device; the request's number."""
        body = {"assignee": "ada@example.com", "duration": 3600, "image": "android", "wait": 600}
        said = requests.post(f"{self.url}/api/device/{device}/request/", json=body, timeout=30)
        assert said.status_code == 200, said.text
        number: int = said.json()["request"]["id"]
        return number

    def give_back(self, number: int) -> None:
        """Return a request's device."""
        assert requests.post(f"{self.url}/api/request/{number}/return/", timeout=30).status_code == 204


@pytest.fixture
def pool(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Pool]:
    """A pool that is up, of twelve boards or as many as it is parametrised with."""
    with RelayBoard(RelayFault.CLOSES_AT_ONCE) as relay_board:
        pool = Pool(tmp_path, relay_board, getattr(request, "param", 12))
        process = pool.start()
        try:
            yield pool
        finally:
            end(process)
        said = (tmp_path / "server.log").read_text()
    assert not re.findall(r"^Traceback", said, re.M), said
