# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""A site with phones of a cloud: the fake cloud, its projects, and daemons that launch jobs in it, as processes."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Any

import requests

from mozpool.fakes.cloud import FakeCloud, FakeProject
from mozpool.fakes.hyperexecute import write_hyperexecute
from mozpool.fakes.phonecloud import Fate, PhoneSpec, Timings, phone_specs
from tests.integration.mozpool_site import Site, start_server

TIMINGS = Timings(created=(0.5, 2), initiated=(5, 15), pick_up=(5, 15), finish=(2, 5), abort=(1, 3), cleanup=(5, 10))
"""Shorter than in reality: what is tested is how jobs follow one another."""

ODDS = {Fate("failed", "running"): 0.04, Fate("lambda_error", "initiated"): 0.04}
"""Jobs fail now and then."""


def projects_of(phones: tuple[PhoneSpec, ...]) -> dict[str, FakeProject]:
    """Three: one has half of the phones, two share the other half, and one of these comes first."""
    udids = [phone.udid for phone in phones]
    half = len(udids) // 2
    return {
        "a55": FakeProject("gecko-t-lambda-a55", tuple(udids[:half])),
        "perf": FakeProject(
            "gecko-t-lambda-perf", tuple(udids[half:]), more={"priority_group": "shared", "priority": 2}
        ),
        "nightly": FakeProject("gecko-t-lambda-nightly", tuple(udids[half:]), more={"priority_group": "shared"}),
    }


class PhoneSite(Site):
    """Daemons over one database without boards, and a cloud of phones in this process."""

    def __init__(
        self,
        directory: Path,
        database_url: str,
        *,
        phones: int,
        limit: int,
        servers: int,
        speed: float,
        seed: int,
    ) -> None:
        """``limit``: of initiated jobs. All durations of the servers and of the cloud are divided by ``speed``."""
        super().__init__(directory, database_url, boards=0, others=14 * servers, speed=speed, seed=seed)
        specs = phone_specs(phones)
        self.cloud = FakeCloud(specs, projects_of(specs), speed=speed, seed=seed, timings=TIMINGS, odds=ODDS)
        self.cloud.start()
        program = write_hyperexecute(directory / "hyperexecute", self.cloud.lambdatest.url)
        projects = directory / "lambdatest.yml"
        projects.write_text(self.cloud.projects_yaml())
        settings = {**self.cloud.settings(program, projects), "enabled": "yes", "max_initiated": str(limit)}
        more = "\n".join(f"{name} = {value}" for name, value in settings.items())
        shared = self.config.read_text() + f"[lambdatest]\n{more}\n"
        self.config.write_text(shared)
        self.servers = [PhoneServer(self.config, self.log, self.port)]
        for number in range(1, servers):
            port, config = self.port + number, directory / f"server-{number}.ini"
            config.write_text(shared.replace(str(self.port), str(port)).replace("heartbeat\n", f"heartbeat-{number}\n"))
            self.servers.append(PhoneServer(config, config.with_suffix(".log"), port))

    def start_daemon(self) -> None:
        """Start all servers."""
        for server in self.servers:
            server.start()

    def close(self) -> None:
        """End whatever still runs, by its id."""
        for server in self.servers:
            server.kill()
        self.cloud.stop()
        super().close()

    def story(self) -> str:
        """What to show of a run that failed."""
        unfinished = [task for task in self.cloud.taskcluster.tasks.values() if task.state != "completed"]
        return "\n".join([f"{len(unfinished)} tasks are not done", super().story()])

    def now(self) -> float:
        """The time that the cloud notes things with."""
        return self.cloud.timeline.clock.monotonic()

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> requests.Response:
        """Ask any server that answers, and go where it sends us, as the documented client does."""
        end = time.monotonic() + 60
        while True:
            for server in self.servers:
                url = server.url + path
                try:
                    answer = requests.request(method, url, json=body, timeout=15, allow_redirects=False)
                    if answer.status_code == 302:
                        url = answer.headers["Location"]
                        answer = requests.request(method, url, json=body, timeout=15, allow_redirects=False)
                except requests.RequestException:
                    continue
                if answer.status_code not in (302, 502, 503, 504):
                    return answer
            if time.monotonic() > end:
                raise AssertionError(f"nobody answers {method} {path}\n{self.story()}")
            time.sleep(0.1)


class PhoneServer:
    """One daemon."""

    def __init__(self, config: Path, log: Path, port: int) -> None:
        self.config = config
        self.log = log
        self.url = f"http://127.0.0.1:{port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        self.process = start_server(self.config, self.log, self.url)

    def kill(self) -> None:
        """End it as a crash would, if it runs."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def stop(self) -> float:
        """Stop it in good order; the seconds that it took."""
        assert self.process is not None
        begun = time.monotonic()
        self.process.terminate()
        assert self.process.wait(30) == 0, self.log.read_text(errors="replace")[-3000:]
        return time.monotonic() - begun
