# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""A real Prometheus watches two real imaging servers, of which one dies."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from mozpool import resources
from tests.integration.mozpool_site import eventually
from tests.integration.server_pool import Pool, ServerProcess
from tests.mariadb import MariaDB
from tests.processes import needs
from tests.prometheus import Prometheus, alert_rules, missing, panel_expressions

BOARDS = 28
"""As many as two relay boards have."""

MAY_BE_EMPTY = {"Failures of devices, per hour", "Effects that did not succeed, per minute"}
"""Panels of what need not happen."""

pytestmark = [pytest.mark.mysql, pytest.mark.timeout(300)]


@pytest.fixture
def pool(mariadb: MariaDB, tmp_path: Path) -> Iterator[Pool]:
    needs(missing())
    name = f"watched_{os.getpid()}"
    mariadb.execute(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
    try:
        with Pool(tmp_path, mariadb.url(name), servers=2, boards=BOARDS, speed=20.0, seed=5) as pool:
            yield pool
    finally:
        mariadb.execute(f"DROP DATABASE {name}")


def ask(server: ServerProcess, device: str, wait: int) -> int:
    """The id of a request that was just made."""
    body = {"assignee": "me@example.com", "duration": 3600, "image": "android", "wait": wait}
    answer = requests.post(f"{server.url}/api/device/{device}/request/", json=body, timeout=30)
    assert answer.status_code == 200, answer.text
    return int(answer.json()["request"]["id"])


def check(pool: Pool, *arguments: str) -> tuple[int, str]:
    """Exit code and output of ``mozpool check`` with all servers of a pool."""
    servers = [option for url in pool.urls for option in ("--server", url)]
    done = subprocess.run(
        [sys.executable, "-m", "mozpool.client.cli", "check", *servers, *arguments],
        cwd=resources.CHECKOUT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == ""
    return done.returncode, done.stdout


def empty_panels(prometheus: Prometheus) -> set[str]:
    """Titles of panels that have nothing to show."""
    return {title for title, expression in panel_expressions() if not prometheus.query(expression)}


def alarms(prometheus: Prometheus) -> set[str]:
    """Names of the alerts that fire or are about to; all rules are well."""
    rules = prometheus.get("rules")["groups"][0]["rules"]
    assert [(rule["name"], rule["health"]) for rule in rules] == [(rule["alert"], "ok") for rule in alert_rules()]
    return {rule["name"] for rule in rules if rule["state"] in ("pending", "firing")}


def test_prometheus_sees_every_device_once_also_when_a_server_dies(pool: Pool, tmp_path: Path) -> None:
    first, second = pool.servers
    with Prometheus(tmp_path, [server.fqdn for server in pool.servers]) as prometheus:
        assert all(requests.get(f"{server.url}/api/health/", timeout=10).status_code == 200 for server in pool.servers)
        assert eventually(lambda: requests.get(f"{second.url}/api/ready/", timeout=10).status_code == 200)
        number = ask(first, "any", 600)
        state = "finding_device"
        while state != "ready":
            path = f"/api/request/{number}/status/?wait=20&state={state}"
            said = requests.get(f"{first.url}{path}", timeout=30).json()
            state = said["state"]
            assert not state.startswith("failed"), said
        held = said["assigned_device"]
        ask(second, held, 600)

        assert eventually(lambda: prometheus.number('count(up{job="mozpool"} == 1)') == 2), prometheus.get("targets")
        assert eventually(lambda: prometheus.number("min(count_over_time(up[1m]))") not in (None, 1.0))
        assert eventually(lambda: prometheus.number("sum(mozpool_queue_length)") == 1)
        assert prometheus.number("sum(mozpool_devices)") == BOARDS
        assert prometheus.number("sum(mozpool_devices_by_category)") == BOARDS
        assert prometheus.number('sum(mozpool_server_state{state="up"})') == 2
        assert {labels["server"] for labels, _ in prometheus.query("count by (server) (mozpool_devices)")} == {
            first.fqdn,
            second.fqdn,
        }
        # A rate is there when its counter was scraped twice.
        assert eventually(lambda: empty_panels(prometheus) <= MAY_BE_EMPTY), empty_panels(prometheus)
        for rule in alert_rules():
            prometheus.query(rule["expr"])
        code, said_by_check = check(pool, "--failed-warning", "none", "--failed-critical", "none")
        assert code == 0, said_by_check
        assert f"MOZPOOL OK - {BOARDS} devices: " in said_by_check and "1 request waiting" in said_by_check

        second.kill()
        assert eventually(lambda: prometheus.number('count(up{job="mozpool"} == 1)') == 1)
        assert eventually(lambda: prometheus.number('sum(mozpool_server_state{state="away"})') == 1)
        assert prometheus.number("sum(mozpool_devices)") == BOARDS, "those of the dead one are told of by the other"
        code, said_by_check = check(pool)
        assert code == 2
        assert f"imaging server {second.fqdn} is not there" in said_by_check
        # Rules are evaluated now and then.
        assert eventually(lambda: {"MozpoolDown", "MozpoolServerAway"} <= alarms(prometheus)), alarms(prometheus)
    assert "Traceback" not in first.tail(2000)
