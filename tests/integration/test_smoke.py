# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""scripts/smoke against a real server with simulated boards: what works is said to work, and what does not is named."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.mozpool_site import Site, eventually
from tests.processes import default_signals, free_port

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def site(sqlite_url: str, tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path, sqlite_url, boards=2, speed=20.0, seed=3, reliable=True)
    with site:
        yield site


def smoke(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "mozpool.client.smoke", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=default_signals,
    )


def open_requests(site: Site) -> list[tuple[object, ...]]:
    return site.rows("SELECT id, state FROM requests WHERE state NOT LIKE 'failed%' AND state <> 'closed'")


def test_it_borrows_looks_and_gives_back(site: Site) -> None:
    process = smoke("--server", site.url, "--within", "2m")
    said, problems = process.communicate(timeout=120)
    assert process.returncode == 0, said + problems
    assert said.startswith(f"{site.url}\n  it answers ")
    assert "it lends a device with android" in said
    assert "1 of 1 servers are as they should be" in said
    assert site.rows("SELECT state FROM requests") == [("closed",)]


def test_it_names_the_server_that_does_not_answer_and_goes_on(site: Site) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    process = smoke("--server", nobody, "--server", site.url, "--within", "2m", "--device", "device2", "--image", "b2g",
                    "--boot-config", "b2gbase=http://builds.example.com/1/")  # fmt: skip
    said, problems = process.communicate(timeout=150)
    assert process.returncode == 1
    assert "FAILED" in said
    assert nobody.removeprefix("http://") in problems
    assert "1 of 2 servers are as they should be" in said
    assert "device2 at" in said


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--image", "windows"], "there is no image 'windows'"),
        (["--device", "device99"], "there is no device device99"),
        (["--image", "b2g"], "b2gbase is missing"),
    ],
)
def test_what_the_pool_refuses_is_a_failure_that_says_why(site: Site, arguments: list[str], reason: str) -> None:
    process = smoke("--server", site.url, *arguments)
    said, problems = process.communicate(timeout=60)
    assert process.returncode == 1
    assert reason in problems
    assert reason in said
    assert "Traceback" not in problems
    assert open_requests(site) == []


def test_interrupted_it_leaves_nothing_taken(site: Site) -> None:
    process = smoke("--server", site.url, "--image", "android")
    assert eventually(lambda: bool(open_requests(site)), 60)
    process.send_signal(signal.SIGINT)
    _, problems = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped: nothing is left taken" in problems
    assert eventually(lambda: open_requests(site) == [])
