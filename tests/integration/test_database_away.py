# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The database goes away under a running daemon, and comes back: nothing is lost, and everybody is told."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import requests

from tests.integration.mozpool_site import LAST_REQUESTS, Client, Site, Tally
from tests.mariadb import running

pytestmark = [pytest.mark.mysql, pytest.mark.timeout(400)]

AWAY = 6.0
"""Seconds without a database."""


def test_the_api_answers_503_while_the_database_is_away_and_everything_goes_on_after_it(tmp_path: Path) -> None:
    with running(durable=True) as mariadb:
        mariadb.execute("CREATE DATABASE away CHARACTER SET utf8mb4")
        with Site(tmp_path, mariadb.url("away"), boards=28, speed=20, seed=11) as site:
            tally = Tally()
            end = time.monotonic() + 25
            clients = [Client(number, site, tally, end, seed=11) for number in range(8)]
            for client in clients:
                client.start()
            time.sleep(6)
            mariadb.kill()
            away_until = time.monotonic() + AWAY
            answers = []
            while time.monotonic() < away_until:
                answers.append(requests.get(f"{site.url}/api/device/list/", timeout=20))
                answers.append(
                    requests.post(
                        f"{site.url}/api/device/any/request/",
                        json={"assignee": "a@example.com", "duration": 60, "image": "android"},
                        timeout=20,
                    )
                )
                time.sleep(0.2)
            mariadb.start()
            assert {answer.status_code for answer in answers} == {503}
            assert all(int(answer.headers["Retry-After"]) > 0 for answer in answers)
            assert all(answer.json()["error"]["code"] == "database_away" for answer in answers)
            assert not any("root" in answer.text for answer in answers), "no credentials in messages"
            for client in clients:
                client.join(max(1.0, end - time.monotonic()) + LAST_REQUESTS + 60)
            still = [f"{client.name}: {client.last_call}" for client in clients if client.is_alive()]
            assert not still, f"{still}; {site.stuck(slack=3.0)}"
            assert not tally.problems, tally.problems[:5]
            assert tally.ends["ready"] > 8
            assert not site.overlapping_claims()
            give_up = time.monotonic() + 20
            while site.stuck(slack=3.0) and time.monotonic() < give_up:
                time.sleep(0.2)
            assert not site.stuck(slack=3.0)
            assert site.stop_daemon() < 10
            log = site.log.read_text(errors="replace")
            assert "Traceback" not in log, log[log.index("Traceback") - 500 :][:3000]
