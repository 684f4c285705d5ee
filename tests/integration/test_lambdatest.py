# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Phones that serve three queues: none idle while tasks wait, none with two jobs, none used that may not be.

Daemons as processes against the fake cloud, which notes who did what when; people lock phones and borrow them in the
middle, phones break, workers are put in quarantine, daemons are killed, and the cloud is away for a minute.

All durations are divided by SPEED, those of the cloud and those that the launcher waits on purpose. What programs and
database take is not: it counts SPEED times as much here as in reality. Jobs are judged with that against them: the
time for which a phone stood idle, times SPEED, has to be under five seconds at the median. That phones are left alone
after a failed start counts, and that people hold some of them; in the long form also the time that a killed daemon
takes to start again. The short form kills and fails within some seconds, on machines that may be busy: it allows for
that.
"""

from __future__ import annotations

import os
import random
import statistics
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest

from mozpool.config import LambdaTest
from mozpool.fakes.webserver import Fault, too_many
from tests.integration.mozpool_site import check_log, eventually
from tests.integration.phone_site import PhoneSite
from tests.mariadb import MariaDB

LONG = bool(os.environ.get("MOZPOOL_LONG_TESTS"))
PHONES = 60 if LONG else 20
TASKS = 300 if LONG else 60
LIMIT = 15 if LONG else 6
"""Of initiated jobs: fewer than would otherwise be at a time."""
SHARES = (2, 4, 4)
"""Which part of the tasks is whose."""
BURSTS = 3
PERIOD = 250.0 if LONG else 60.0
"""Seconds of the cloud from one burst to the next."""
SPEED = 2.5 if LONG else 4.0
TASK = (60.0, 120.0) if LONG else (5.0, 20.0)
"""How long a task takes, in seconds of the cloud: long enough for starts in turn to keep all phones busy."""
FAILING = 60.0 if LONG else 20.0
"""Seconds of the cloud for which it fails."""

IDLE = 5.0 if LONG else 30.0
"""Seconds of the cloud that a phone may stand idle, at the median."""
KNOWN_WITHIN = 6.0
"""Seconds of the clock after which no job may be created any more on a phone that has broken or whose worker has been
put in quarantine: hyperexecute is run after the last look, and takes its time."""
ALLOWED = {"two jobs": 0.0, "in use": 0.0, "faulty": KNOWN_WITHIN, "quarantined": KNOWN_WITHIN}
UNTIL_DONE = 600.0 if LONG else 150.0
"""Seconds until all tasks are done, at most."""

ASSIGNEE = "somebody@example.com"

pytestmark = pytest.mark.timeout(1500 if LONG else 400)


@dataclass(frozen=True)
class Case:
    """What is tried."""

    database: str
    servers: int = 1
    kills: int = 0
    cloud_fails: bool = False


KILLS = 10 if LONG else 2
CASES = {
    "all-at-once": Case("mysql", servers=2, kills=KILLS, cloud_fails=True),
    "calm": Case("sqlite"),
    "cloud-fails": Case("mysql", cloud_fails=True),
    "two": Case("mysql", servers=2),
    "one-killed": Case("sqlite", kills=KILLS),
}
SHORT = ("all-at-once",)


@pytest.fixture
def database_url(case: Case, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if case.database == "sqlite":
        yield f"sqlite:///{tmp_path}/mozpool.sqlite"
        return
    mariadb: MariaDB = request.getfixturevalue("mariadb")
    name = f"phones_{os.getpid()}_{tmp_path.name[-12:].replace('-', '_')}"
    mariadb.execute(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
    try:
        yield mariadb.url(name)
    finally:
        mariadb.execute(f"DROP DATABASE {name}")


@pytest.fixture
def people(case: Case, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[People]:
    """A site whose phones were all ready, with some that must not be used, and tasks that arrive in bursts."""
    site = PhoneSite(tmp_path, database_url, phones=PHONES, limit=LIMIT, servers=case.servers, speed=SPEED, seed=8)
    for variable, token in site.cloud.environment().items():
        monkeypatch.setenv(variable, token)
    with site:
        ready = "SELECT COUNT(*) FROM devices WHERE state = 'ready'"
        assert eventually(lambda: site.rows(ready) == [(PHONES,)], 60), site.story()
        people = People(site)
        people.begin()
        for burst in range(BURSTS):
            for project, share in zip(site.cloud.projects, SHARES, strict=True):
                site.cloud.add_tasks(project, TASKS // share // BURSTS, seconds=TASK, after=1 + burst * PERIOD)
        yield people


class People:
    """Those who lock phones, borrow them, break them, put their workers in quarantine, and set all right later."""

    def __init__(self, site: PhoneSite) -> None:
        self.site = site
        self.kept: list[tuple[str, float, float]] = []
        """Phone, from when to when no job may have been created on it (monotonic)."""
        self._phones = list(site.cloud.lambdatest.specs)
        self._locked: dict[str, float] = {}
        self._borrowed: dict[str, tuple[int, float]] = {}

    def begin(self) -> None:
        """Before there is a task: one of each kind, of each half of the phones."""
        half = PHONES // 2
        for first in (0, half):
            self.lock(self._phones[first])
            self.borrow(self._phones[first + 1])
            self.quarantine(self._phones[first + 2])
            self.site.cloud.lambdatest.set_faulty(self._phones[first + 3])
        time.sleep(LambdaTest().look_interval / SPEED + KNOWN_WITHIN)

    def go_on(self) -> None:
        """In the middle: other phones, while those from the beginning come back."""
        half = PHONES // 2
        for first in (0, half):
            self.lock(self._phones[first + 4])
            self.borrow(self._phones[first + 5])
            self.quarantine(self._phones[first + 6])
            self.site.cloud.lambdatest.set_faulty(self._phones[first + 7])
            self.unlock(self._phones[first])
            self.give_back(self._phones[first + 1])
            self.site.cloud.lambdatest.set_faulty(self._phones[first + 3], False)

    def end(self) -> None:
        """All phones come back but those in quarantine."""
        for udid in list(self._locked):
            self.unlock(udid)
        for udid in list(self._borrowed):
            self.give_back(udid)
        for udid in self._phones:
            self.site.cloud.lambdatest.set_faulty(udid, False)

    def lock(self, udid: str) -> None:
        """As soon as it is ready."""

        def locked() -> bool:
            answer = self.site.call("POST", f"/api/device/{udid}/state-change/ready/to/locked_out/")
            assert answer.status_code in (200, 409), answer.text
            return answer.status_code == 200

        assert eventually(locked, 200), f"{udid} can't be locked\n{self.site.story()}"
        self._locked[udid] = self.site.now()

    def unlock(self, udid: str) -> None:
        self.kept.append((udid, self._locked.pop(udid), self.site.now()))
        answer = self.site.call("POST", f"/api/device/{udid}/state-change/locked_out/to/start_self_test/")
        assert answer.status_code == 200, answer.text

    def borrow(self, udid: str) -> None:
        """As soon as whoever has it gives it back."""
        body = {"assignee": ASSIGNEE, "duration": 3600, "image": "as-is", "environment": "any", "wait": 600}
        answer = self.site.call("POST", f"/api/device/{udid}/request/", body)
        assert answer.status_code == 200, answer.text
        request_id = answer.json()["request"]["id"]

        def is_ready() -> bool:
            state = self.site.call("GET", f"/api/request/{request_id}/status/").json()["state"]
            assert state in ("new", "finding_device", "contact_lifeguard", "contacting_lifeguard", "pending", "ready")
            return bool(state == "ready")

        assert eventually(is_ready, 200), f"{udid} can't be borrowed\n{self.site.story()}"
        self._borrowed[udid] = request_id, self.site.now()

    def give_back(self, udid: str) -> None:
        request_id, since = self._borrowed.pop(udid)
        self.kept.append((udid, since, self.site.now()))
        answer = self.site.call("POST", f"/api/request/{request_id}/return/")
        assert answer.status_code == 204, answer.text

    def quarantine(self, udid: str) -> None:
        """For every project that its worker may be of."""
        until = self.site.database.clock.now() + timedelta(hours=1)
        for project in self.site.cloud.projects.values():
            if udid in project.phones:
                self.site.cloud.taskcluster.quarantine(project.worker_type, udid, until)


class Trouble:
    """What goes wrong with daemons and the cloud, while there are tasks: in threads, side by side."""

    def __init__(self, site: PhoneSite, case: Case) -> None:
        self._site = site
        self._kills = case.kills
        self._rng = random.Random(5)
        self.down: list[tuple[float, float]] = []
        """From when to when a server was not there (monotonic)."""
        self._threads = [threading.Thread(target=self._kill_servers, name="trouble with servers")]
        if case.cloud_fails:
            self._threads.append(threading.Thread(target=self._fail_cloud, name="trouble with the cloud"))

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        """Wait until it is over."""
        for thread in self._threads:
            thread.join()

    def is_over(self) -> bool:
        """Whether all has gone wrong that was to."""
        return not any(thread.is_alive() for thread in self._threads)

    def _kill_servers(self) -> None:
        for number in range(self._kills):
            time.sleep(self._rng.uniform(0.5, 2 * BURSTS * PERIOD / SPEED / self._kills - 0.5))
            server = self._site.servers[number % len(self._site.servers)]
            begun = self._site.now()
            server.kill()
            server.start()
            self.down.append((begun, self._site.now()))

    def _fail_cloud(self) -> None:
        time.sleep(PERIOD / 4 / SPEED)
        for fault in (Fault(down=True), Fault(status=500), too_many(2)):
            self._site.cloud.lambdatest.web.set_fault(fault)
            time.sleep(FAILING / 3 / SPEED)
        self._site.cloud.lambdatest.web.set_fault(None)


def let_run(people: People, case: Case) -> list[tuple[float, float]]:
    """Until all tasks are done, with trouble and people in the middle of it; when a server was down."""
    site = people.site
    trouble = Trouble(site, case)
    trouble.start()
    try:
        time.sleep(PERIOD / 2 / SPEED)
        people.go_on()
        assert eventually(trouble.is_over, UNTIL_DONE), site.story()
        tasks = site.cloud.taskcluster
        done = eventually(
            lambda: len(tasks.tasks) == TASKS and all(task.state == "completed" for task in tasks.tasks.values()),
            UNTIL_DONE,
        )
        assert done, site.story()
        people.end()
        return trouble.down
    finally:
        trouble.join()


def check(people: People, down: list[tuple[float, float]]) -> None:
    """What must hold after any such run, in which servers were down from when to when."""
    site, cloud = people.site, people.site.cloud
    settings = LambdaTest()
    late = {}
    for name, away in {"without restarts": down, "with them": []}.items():
        waits = cloud.waits(
            age=settings.status_age / SPEED, spacing=settings.start_spacing / SPEED, limit=LIMIT, away=away
        )
        late[name] = sorted(SPEED * wait.seconds for wait in waits)
    for name, each in late.items():
        p90 = each[len(each) * 9 // 10]
        print(
            f"\n{len(cloud.lambdatest.jobs)} jobs; idle {name}: median {statistics.median(each):.1f} s, p90 {p90:.1f} s"
        )

    judged = late["with them" if LONG else "without restarts"]
    assert len(judged) > TASKS / 2
    over = "SELECT COUNT(*) FROM requests WHERE state <> 'closed' AND state NOT LIKE 'failed~_%' ESCAPE '~'"
    assert eventually(lambda: site.rows(over) == [(0,)], 120), site.story()
    usable = "SELECT COUNT(*) FROM devices WHERE state = 'ready' AND claim_id IS NULL"
    assert eventually(lambda: site.rows(usable) == [(PHONES,)], 120), site.story()
    site.check_all_is_over()
    assert all(job.ended for job in cloud.lambdatest.jobs)
    assert site.rows("SELECT COUNT(*) FROM hosted_jobs WHERE ended IS NULL") == [(0,)]

    wrong = [each for each in cloud.lambdatest.violations if each.time - each.since > ALLOWED[each.kind]]
    assert not wrong
    on_kept = [
        (job.number, udid)
        for udid, since, until in people.kept
        for job in cloud.lambdatest.jobs
        if job.spec.fixed == udid and since < job.created < until
    ]
    assert len(people.kept) == 8
    assert not on_kept
    assert max(number for _, number in cloud.lambdatest.initiated()) <= LIMIT
    assert statistics.median(judged) < IDLE
    for server in site.servers:
        assert server.stop() < 15
        check_log(server.log)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(
            each,
            id=name,
            marks=[pytest.mark.long] * (name not in SHORT) + [pytest.mark.mysql] * (each.database == "mysql"),
        )
        for name, each in CASES.items()
    ],
)
def test_no_phone_is_idle_while_tasks_wait_and_none_is_used_that_may_not_be(people: People, case: Case) -> None:
    check(people, let_run(people, case))
