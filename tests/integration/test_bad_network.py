# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Three imaging servers, and a network that loses, delays, repeats and cuts what they and their clients say."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import pytest
import requests

import mozpool.client
from mozpool.client.errors import RequestFailed
from tests.badproxy import FAULTS, BadProxy
from tests.integration.mozpool_site import LAST_REQUESTS, Client, Site, Tally, check_log, disturbed
from tests.mariadb import MariaDB

LONG = bool(os.environ.get("MOZPOOL_LONG_TESTS"))
BOARDS = 14
"""Of each of the two servers that have any."""
CLIENTS = 24 if LONG else 12
SECONDS = 240.0 if LONG else 35.0
PATIENCE = 10.0
"""Seconds after which a client gives a call up and makes it again: as old clients do."""
LONGEST = 30.0
"""Seconds of the longest delay."""
BAD = dict.fromkeys(FAULTS, 1)
"""Each fault meets one of 25 calls."""
AT_LEAST = 40 if LONG else 4
"""How often each fault is to meet a call, and half of that an event between servers."""
LENT_ACROSS = 100 if LONG else 15

pytestmark = [pytest.mark.mysql, pytest.mark.timeout(900)]


class Pool:
    """Imaging servers that reach each other, and are reached by clients, by nothing but their proxies."""

    def __init__(self, directory: Path, database_url: str, stack: ExitStack) -> None:
        self.proxies: list[BadProxy] = []
        self.sites: list[Site] = []
        for number, boards in enumerate((BOARDS, BOARDS, 0)):
            proxy = stack.enter_context(BadProxy(f"bad network {number}"))
            home = directory / str(number)
            home.mkdir()
            others = sum(site.boards for site in self.sites)
            site = Site(
                home,
                database_url,
                boards=boards,
                speed=20.0,
                seed=number,
                reliable=True,
                fqdn=proxy.name,
                others=others,
            )
            proxy.server_port = site.port
            self.proxies.append(proxy)
            self.sites.append(stack.enter_context(site))
        self.site = self.sites[0]

    @property
    def faults(self) -> tuple[Counter[str], Counter[str]]:
        """How often each fault met a call, and an event between servers."""
        calls, events = Counter[str](), Counter[str]()
        for proxy in self.proxies:
            calls.update(proxy.done)
            events.update(proxy.events)
        return calls, events

    def story(self) -> str:
        return "\n".join([*(site.story() for site in self.sites), *map(str, self.faults)])


@pytest.fixture
def pool(mariadb: MariaDB, tmp_path: Path) -> Iterator[Pool]:
    name = f"bad_network_{os.getpid()}"
    mariadb.execute(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
    try:
        with ExitStack() as stack:
            yield Pool(tmp_path, mariadb.url(name), stack)
    finally:
        mariadb.execute(f"DROP DATABASE {name}")


class ImpatientClient(Client):
    """Asks any server, gives up after some seconds, and goes where it is sent."""

    def __init__(self, number: int, pool: Pool, tally: Tally, end: float) -> None:
        super().__init__(number, pool.site, tally, end, seed=11)
        self._urls = [f"http://{proxy.name}" for proxy in pool.proxies]

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None, key: str | None = None) -> Any:
        path = path.replace("wait=10&", "wait=5&")
        while True:
            answer = self._try(
                method, self.rng.choice(self._urls) + path, body, {"Idempotency-Key": key} if key else {}
            )
            if answer is not None and answer.status_code not in (502, 503, 504):
                return answer
            if time.monotonic() > self.end + LAST_REQUESTS:
                raise TimeoutError(f"{method} {path} is never answered")
            time.sleep(0.1 + self.rng.random() * 0.2)

    def _try(self, method: str, url: str, body: Any, headers: dict[str, str]) -> requests.Response | None:
        """One call, with its redirects; None when it came to nothing."""
        try:
            for _ in range(3):
                answer = self.http.request(
                    method, url, json=body, headers=headers, timeout=PATIENCE, allow_redirects=False
                )
                if not answer.content and answer.status_code != 204:
                    return None  # cut within its head
                if answer.status_code != 302:
                    return answer
                url = urljoin(url, answer.headers["Location"])
        except requests.RequestException:
            pass
        return None


class LibraryClient(Client):
    """The same by Mozpool's own client."""

    def __init__(self, number: int, pool: Pool, tally: Tally, end: float) -> None:
        super().__init__(number, pool.site, tally, end, seed=11)
        urls = [f"http://{proxy.name}" for proxy in pool.proxies]
        assignee = f"client{number}@example.com"
        # Three bad calls in a row are not rare among thousands: each of them may take the ten seconds of one attempt.
        self._client = mozpool.client.Client(urls, timeout=120.0, assignee=assignee, rng=self.rng)

    def _once(self, serial: int) -> None:
        build = f"http://builds.example.com/{self.number}/{serial}/"
        made = self._client.request(image="b2g", duration=600, boot_config={"b2gbase": build}, wait=600)
        state = "ready"
        try:
            device = self._client.wait_ready(made.id, LAST_REQUESTS).assigned_device or ""
        except RequestFailed as error:
            state = error.state
            if not error.reason:
                self.tally.problems.append(f"request {made.id} ended in {state} without a reason")
        else:
            begun = time.monotonic()
            self.tally.take(device, made.id)
            if build not in str(self._client.device(device).boot_config):
                self.tally.problems.append(f"{device} does not hold what request {made.id} asked for")
            time.sleep(self.rng.random() * 0.6)
            self.tally.give(device, begun)
        with self.tally.lock:
            self.tally.ends[state] += 1
        self._client.return_request(made.id)


def lent_across(site: Site) -> int:
    """How many devices one server prepared for a request of another."""
    return int(
        site.rows(
            "SELECT COUNT(*) FROM claim_history c JOIN devices d ON d.id = c.device_id "
            "JOIN requests r ON r.id = c.request_id WHERE d.imaging_server_id <> r.imaging_server_id"
        )[0][0]
    )


def test_all_requests_end_right_on_a_bad_network(pool: Pool) -> None:
    tally = Tally()
    end = time.monotonic() + SECONDS
    for proxy in pool.proxies:
        proxy.be_bad(BAD, LONGEST, SECONDS)
    clients: list[Client] = [ImpatientClient(number, pool, tally, end) for number in range(CLIENTS // 2)]
    clients += [LibraryClient(number, pool, tally, end) for number in range(CLIENTS // 2, CLIENTS)]
    for client in clients:
        client.start()
    for client in clients:
        client.join(max(1.0, end - time.monotonic()) + LAST_REQUESTS + 60)
    tally.problems += [f"{client.name} never ended" for client in clients if client.is_alive()]
    calls, events = pool.faults
    across = lent_across(pool.site)
    print(f"\n{sum(tally.ends.values())} requests: {dict(tally.ends)}, {across} claims across servers")
    print(f"calls: {dict(calls)}\nevents: {dict(events)}")

    assert not tally.problems, f"{tally.problems[:10]}\n{pool.story()}"
    assert not [difference for proxy in pool.proxies for difference in proxy.differing]
    assert tally.ends["ready"] > CLIENTS, pool.story()
    pool.site.check_all_is_over()

    report: dict[str, Any] = {"boards": {}}
    for site in pool.sites:
        assert site.stop_daemon() < 10
        check_log(site.log)
        if site.boards:
            report["boards"].update(site.stop_boards()["boards"])
    assert not disturbed(report, tally.held)

    # What never happens is not tested.
    assert across >= LENT_ACROSS
    assert {fault: calls[fault] for fault in FAULTS if calls[fault] < AT_LEAST} == {}
    assert {fault: events[fault] for fault in FAULTS if events[fault] < AT_LEAST // 2} == {}
