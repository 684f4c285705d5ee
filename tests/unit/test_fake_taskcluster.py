# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The fake of Taskcluster, asked through Taskcluster's own client; and both fakes together."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
import requests
import taskcluster
from taskcluster.generated import queue as queue_reference
from taskcluster.generated import workermanager as workers_reference

from mozpool.clock import SimClock
from mozpool.fakes.cloud import FakeCloud, FakeProject
from mozpool.fakes.lambdatest import ABORT
from mozpool.fakes.phonecloud import Fate, JobSpec, phone_specs
from mozpool.fakes.taskcluster import FakeTaskcluster
from mozpool.fakes.webserver import Fault, Nonsense
from tests.unit.cloud_support import CERTAIN, WORKER_TYPE, create, sim

POOL = f"proj-autophone/{WORKER_TYPE}"
ONE, TWO, THREE = (spec.udid for spec in phone_specs(3))


class Client:
    """Taskcluster's client, which does not try again by itself."""

    def __init__(self, url: str) -> None:
        options = {"rootUrl": url, "maxRetries": 0}
        self.queue = taskcluster.Queue(options)
        self.worker_manager = taskcluster.WorkerManager(options)

    def pending(self, pool: str = POOL) -> int:
        return self.queue.taskQueueCounts(pool)["pendingTasks"]

    def workers(self, worker_type: str = WORKER_TYPE, **query):
        """All pages."""
        found: list[dict] = []
        self.worker_manager.listWorkers(
            "proj-autophone",
            worker_type,
            query=query,
            paginationHandler=lambda answer: found.extend(answer["workers"]),
        )
        return {row["workerId"]: row for row in found}


@pytest.fixture
def cloud():
    with FakeCloud(3, clock=SimClock(), timings=CERTAIN, patience=(60, 60)) as cloud:
        yield cloud


@pytest.fixture
def client(cloud):
    return Client(cloud.taskcluster.url)


def start(cloud, udid, worker_type=WORKER_TYPE, **more) -> int:
    """A job for one phone, without HTTP; its number."""
    spec = JobSpec(("tcdp", "a55", udid), worker_type, fixed=udid, **more)
    return cloud.lambdatest.create(spec, "lt-user").number


# What is told.


def test_counts_are_asked_for_as_the_client_s_reference_says(cloud, client):
    cloud.add_tasks("a55", 5)
    assert client.queue.taskQueueCounts(POOL) == {
        "provisionerId": "proj-autophone",
        "workerType": WORKER_TYPE,
        "taskQueueId": POOL,
        "pendingTasks": 5,
        "claimedTasks": 0,
    }
    assert client.queue.pendingTasks(POOL) == {
        "provisionerId": "proj-autophone",
        "workerType": WORKER_TYPE,
        "pendingTasks": 5,
    }
    assert queue_reference.Queue.funcinfo["taskQueueCounts"]["route"] == "/task-queues/<taskQueueId>/counts"
    assert workers_reference.WorkerManager.funcinfo["listWorkers"]["query"][:2] == ["continuationToken", "limit"]


def test_the_old_path_with_a_plain_slash_is_answered_too(cloud):
    cloud.add_tasks("a55", 2)
    answer = requests.get(f"{cloud.taskcluster.url}/api/queue/v1/pending/{POOL}", timeout=10)
    assert answer.json()["pendingTasks"] == 2


def test_what_nobody_knows_is_empty_or_not_found(cloud, client):
    cloud.add_tasks("a55", 2)
    assert client.pending("proj-autophone/other") == 0
    assert client.pending(f"proj-other/{WORKER_TYPE}") == 0
    assert client.workers("other") == {}
    with pytest.raises(taskcluster.exceptions.TaskclusterRestFailure) as caught:
        client.queue.status("A" * 22)
    assert caught.value.status_code == 404
    with pytest.raises(taskcluster.exceptions.TaskclusterRestFailure) as caught:
        client.pending("no-slash")
    assert caught.value.status_code == 400


def test_tasks_may_come_later(cloud, client):
    cloud.add_tasks("a55", 2, after=100)
    sim(cloud).advance(99)
    assert client.pending() == 0
    sim(cloud).advance(1)
    assert client.pending() == 2
    assert [task.added for task in cloud.taskcluster.tasks.values()] == [100, 100]


def test_workers_come_in_pages(cloud):
    for number in range(7):
        cloud.taskcluster.quarantine(WORKER_TYPE, f"R{number}", sim(cloud).now() + timedelta(days=1))
    client = Client(cloud.taskcluster.url)
    assert sorted(client.workers(limit=3)) == [f"R{number}" for number in range(7)]
    assert len(cloud.taskcluster.web.asked) == 3
    first = client.worker_manager.listWorkers("proj-autophone", WORKER_TYPE, query={"limit": 5})
    assert len(first["workers"]) == 5
    token = {"limit": 5, "continuationToken": first["continuationToken"]}
    assert "continuationToken" not in client.worker_manager.listWorkers("proj-autophone", WORKER_TYPE, query=token)
    for bad in ({"limit": 0}, {"continuationToken": "???"}):
        with pytest.raises(taskcluster.exceptions.TaskclusterRestFailure) as caught:
            client.worker_manager.listWorkers("proj-autophone", WORKER_TYPE, query=bad)
        assert caught.value.status_code == 400


# Workers and tasks.


def test_a_job_s_worker_takes_one_task_and_then_the_job_ends(cloud, client):
    first, second = cloud.add_tasks("a55", 2, seconds=300)
    start(cloud, ONE)
    sim(cloud).advance(180)
    assert (client.pending(), client.workers()) == (2, {})
    sim(cloud).advance(1)
    counts = client.queue.taskQueueCounts(POOL)
    assert (counts["pendingTasks"], counts["claimedTasks"]) == (1, 1)
    assert client.workers()[ONE]["latestTask"] == {"taskId": first, "runId": 0}
    status = client.queue.status(first)["status"]
    assert (status["state"], status["runs"][0]["workerId"]) == ("running", ONE)
    sim(cloud).advance(310)
    (job,) = cloud.lambdatest.jobs
    assert (job.status, job.end, dict(job.tasks)) == ("completed", 491, {first: 181})
    assert {task.id: task.state for task in cloud.taskcluster.tasks.values()} == {first: "completed", second: "pending"}
    assert len(first) == 22


def test_a_worker_is_told_in_the_form_of_the_schema(cloud, client):
    cloud.add_tasks("a55", 1)
    start(cloud, ONE)
    sim(cloud).advance(200)
    row = client.workers()[ONE]
    assert set(row) == {
        *("workerGroup", "workerId", "firstClaim", "lastDateActive", "workerPoolId", "state", "capacity"),
        *("providerId", "latestTask"),
    }
    assert datetime.fromisoformat(row["firstClaim"]) == SimClock().now() + timedelta(seconds=181)


def test_a_worker_without_a_task_waits_for_one_and_gives_up_in_time(cloud, client):
    start(cloud, ONE)
    start(cloud, TWO)
    sim(cloud).advance(181 + 30)
    (task,) = cloud.add_tasks("a55", 1)
    assert client.pending() == 0
    sim(cloud).advance(30)
    assert [dict(job.tasks) for job in cloud.lambdatest.jobs] == [{task: 211}, {}]
    sim(cloud).advance(10)
    assert [job.status for job in cloud.lambdatest.jobs] == ["running", "completed"]


def test_the_task_of_an_aborted_job_is_pending_again_for_another_run(cloud, client):
    (task,) = cloud.add_tasks("a55", 1)
    start(cloud, ONE)
    sim(cloud).advance(200)
    requests.put(
        cloud.lambdatest.url + ABORT.format(id=cloud.lambdatest.jobs[0].id),
        auth=cloud.lambdatest.account,
        timeout=10,
    ).raise_for_status()
    sim(cloud).advance(2)
    assert (client.pending(), client.queue.status(task)["status"]["state"]) == (1, "pending")
    start(cloud, TWO)
    sim(cloud).advance(181)
    assert client.workers()[TWO]["latestTask"] == {"taskId": task, "runId": 1}
    sim(cloud).advance(1000)
    assert [run.state for run in cloud.taskcluster.tasks[task].runs] == ["exception", "completed"]


def test_a_job_that_fails_before_it_has_a_task_takes_none(cloud, client):
    cloud.lambdatest.script(Fate("failed", "running"))
    cloud.add_tasks("a55", 1)
    start(cloud, ONE)
    sim(cloud).advance(1000)
    assert (client.pending(), cloud.lambdatest.jobs[0].status) == (1, "failed")


def test_an_aborted_worker_that_has_no_task_yet_takes_none_later(cloud, client):
    start(cloud, ONE)
    sim(cloud).advance(200)
    cloud.lambdatest.abort(cloud.lambdatest.jobs[0].id, "lt-user")
    sim(cloud).advance(2)
    cloud.add_tasks("a55", 1)
    sim(cloud).advance(1000)
    assert client.pending() == 1


def test_workers_of_another_type_take_nothing(cloud, client):
    cloud.add_tasks("a55", 1)
    start(cloud, ONE, worker_type="other")
    sim(cloud).advance(1000)
    assert client.pending() == 1


def test_concurrency_is_as_many_workers(cloud, client):
    cloud.add_tasks("a55", 3, seconds=300)
    create(cloud.lambdatest, concurrency=2)
    sim(cloud).advance(181)
    assert (client.pending(), len(client.workers())) == (1, 2)
    assert len(cloud.lambdatest.jobs[0].tasks) == 2


# Quarantine.


def test_a_worker_in_quarantine_claims_nothing_and_its_job_ends_idle(cloud, client):
    until = sim(cloud).now() + timedelta(hours=1)
    cloud.taskcluster.quarantine(WORKER_TYPE, ONE, until)
    assert datetime.fromisoformat(client.workers()[ONE]["quarantineUntil"]) == until
    cloud.add_tasks("a55", 1)
    start(cloud, ONE)
    sim(cloud).advance(181 + 70)
    assert (client.pending(), cloud.lambdatest.jobs[0].status) == (1, "completed")


def test_quarantine_ends_by_hand_or_in_time(cloud, client):
    cloud.taskcluster.quarantine(WORKER_TYPE, ONE, sim(cloud).now() + timedelta(hours=1))
    cloud.taskcluster.quarantine(WORKER_TYPE, TWO, sim(cloud).now() + timedelta(seconds=200))
    cloud.add_tasks("a55", 2)
    start(cloud, ONE)
    start(cloud, TWO)
    sim(cloud).advance(190)
    cloud.taskcluster.quarantine(WORKER_TYPE, ONE, None)
    assert client.workers()[ONE]["quarantineUntil"] is None
    assert client.pending() == 1
    sim(cloud).advance(10)
    assert client.pending() == 0
    assert sorted(client.workers(quarantined="true")) == []


def test_a_job_for_a_phone_in_quarantine_is_noted_with_the_time_since_when(cloud):
    sim(cloud).advance(5)
    cloud.taskcluster.quarantine(WORKER_TYPE, ONE, sim(cloud).now() + timedelta(seconds=100))
    sim(cloud).advance(2)
    start(cloud, ONE)
    start(cloud, TWO)
    (violation,) = cloud.lambdatest.violations
    assert (violation.kind, violation.device, violation.since, violation.time) == ("quarantined", ONE, 5, 7)
    sim(cloud).advance(1000)
    start(cloud, ONE)
    assert len(cloud.lambdatest.violations) == 1


# What goes wrong.


def test_faults_reach_the_client(cloud, client):
    web = cloud.taskcluster.web
    web.set_fault(Fault(down=True))
    with pytest.raises(taskcluster.exceptions.TaskclusterConnectionError):
        client.pending()
    web.set_fault(Fault(status=500))
    with pytest.raises(taskcluster.exceptions.TaskclusterRestFailure) as caught:
        client.pending()
    assert caught.value.status_code == 500
    web.set_fault(Fault(nonsense=Nonsense.KEYS))
    assert "pendingTasks" not in client.queue.taskQueueCounts(POOL)
    web.set_fault(Fault(nonsense=Nonsense.TYPES))
    assert client.queue.taskQueueCounts(POOL)["pendingTasks"] == "seven"
    web.set_fault(Fault(nonsense=Nonsense.HALF))
    assert set(client.queue.taskQueueCounts(POOL)) == {"response"}
    before = sim(cloud).monotonic()
    web.set_fault(Fault(slow=30))
    assert client.pending() == 0
    assert sim(cloud).monotonic() == before + 30


def test_it_can_live_alone():
    with FakeTaskcluster(clock=SimClock()) as alone:
        alone.add_tasks("w", 3)
        assert Client(alone.url).pending("proj-autophone/w") == 3
        assert alone.pending("w") == 3


# How good a launcher was.


def test_a_job_is_as_late_as_its_task_waited_for_a_free_phone(cloud):
    sim(cloud).advance(10)
    cloud.add_tasks("a55", 2)
    sim(cloud).advance(3)
    start(cloud, ONE)
    sim(cloud).advance(1)
    start(cloud, TWO)
    start(cloud, THREE)
    assert [(wait.devices, wait.seconds) for wait in cloud.waits()] == [((ONE,), 3), ((TWO,), 4)]


def test_a_job_is_not_late_while_its_phone_was_not_free(cloud):
    cloud.add_tasks("a55", 2, seconds=300)
    start(cloud, ONE)
    sim(cloud).advance(531 + 6)
    start(cloud, ONE)
    assert [wait.seconds for wait in cloud.waits()] == [0, 6]
    assert [wait.seconds for wait in cloud.waits(age=4)] == [0, 2]


def test_spacing_and_the_limit_of_initiated_jobs_are_left_out(cloud):
    cloud.add_tasks("a55", 3)
    start(cloud, ONE)
    sim(cloud).advance(5)
    start(cloud, TWO)
    sim(cloud).advance(35)
    start(cloud, THREE)
    assert [wait.seconds for wait in cloud.waits()] == [0, 5, 40]
    assert [wait.seconds for wait in cloud.waits(spacing=2)] == [0, 3, 36]
    assert [wait.seconds for wait in cloud.waits(limit=2)] == [0, 5, 9]
    assert [wait.seconds for wait in cloud.waits(limit=1)] == [0, 0, 4]


def test_the_time_without_a_launcher_is_left_out_and_what_follows_from_it(cloud):
    cloud.add_tasks("a55", 3)
    sim(cloud).advance(30)
    for udid in (ONE, TWO, THREE):
        start(cloud, udid)
        sim(cloud).advance(10)
    away = [(20, 30), (0, 15)]
    assert [wait.seconds for wait in cloud.waits(spacing=10)] == [30, 30, 30]
    assert [wait.seconds for wait in cloud.waits(spacing=10, away=away)] == [15, 10, 10]


def test_whoever_begins_late_gains_nothing_by_the_spacing(cloud):
    cloud.add_tasks("a55", 3)
    sim(cloud).advance(100)
    for udid in (ONE, TWO, THREE):
        start(cloud, udid)
        sim(cloud).advance(2)
    assert [wait.seconds for wait in cloud.waits(spacing=2)] == [100, 100, 100]


def test_a_task_waits_anew_when_its_job_has_failed(cloud):
    cloud.lambdatest.script(Fate("failed", "initiated"))
    cloud.add_tasks("a55", 1)
    start(cloud, ONE)
    sim(cloud).advance(31 + 7)
    start(cloud, TWO)
    assert [(wait.wanted, wait.seconds) for wait in cloud.waits()] == [(0, 0), (31, 7)]


def test_a_plain_launcher_gets_all_tasks_done_and_is_as_late_as_its_period():
    udids = [spec.udid for spec in phone_specs(20)]
    projects = {"a55": FakeProject(WORKER_TYPE, tuple(udids[:12])), "perf": FakeProject("perf", tuple(udids[12:]))}
    odds = {Fate("failed", "running"): 0.1, Fate("lambda_error", "initiated"): 0.1}
    cloud = FakeCloud(20, projects, clock=SimClock(), seed=7, odds=odds)
    for after in (7, 900, 2000):
        cloud.add_tasks("a55", 20, seconds=(100, 900), after=after)
        cloud.add_tasks("perf", 10, seconds=(100, 900), after=after)
    for _ in range(3000):
        sim(cloud).advance(5)
        phones = cloud.lambdatest.phones
        live = [job for job in cloud.lambdatest.jobs if not job.ended]
        for project in projects.values():
            on_the_way = sum(1 for job in live if job.spec.worker_type == project.worker_type and not job.tasks)
            taken = {job.spec.fixed for job in live}
            free = [udid for udid in project.phones if phones[udid] == "active" and udid not in taken]
            for udid in free[: max(0, cloud.taskcluster.pending(project.worker_type) - on_the_way)]:
                start(cloud, udid, project.worker_type)
        tasks = cloud.taskcluster.tasks.values()
        if len(tasks) == 90 and not live and all(task.state == "completed" for task in tasks):
            break
    else:
        pytest.fail("not done")
    assert cloud.lambdatest.violations == []
    words = {job.status for job in cloud.lambdatest.jobs}
    assert words == {"completed", "failed", "lambda_error"}
    waits = [wait.seconds for wait in cloud.waits()]
    assert len(waits) >= 90
    assert max(waits) <= 5
    assert sum(waits) / len(waits) > 1


# Both for a launcher.


def test_it_describes_itself_for_a_launcher(tmp_path):
    phones = phone_specs(4)
    udids = [phone.udid for phone in phones]
    projects = {
        "a55": FakeProject("gecko-t-lambda-a55", tuple(udids[:2]), more={"priority": 2}),
        "perf": FakeProject("gecko-t-lambda-perf", tuple(udids[2:]), token="other"),
    }
    with FakeCloud(phones, projects) as cloud:
        settings = cloud.settings(tmp_path / "hyperexecute", tmp_path / "projects.yml")
        assert settings["devices_api"] == cloud.lambdatest.url
        assert settings["taskcluster"] == cloud.taskcluster.url
        assert cloud.environment() == {"gecko_t_lambda_a55": "tc-s3cret-token", "gecko_t_lambda_perf": "other"}
        text = cloud.projects_yaml()
    assert "contract_device_count: 4" in text
    assert "token" not in text.lower().replace("access_token", "")


def test_none_of_it_is_left_open_when_a_port_is_taken():
    with FakeTaskcluster() as other:
        port = int(other.url.rpartition(":")[2])
        cloud = FakeCloud(lambdatest_port=port)
        with pytest.raises(Exception, match="the fake LambdaTest can't listen"):
            cloud.start()
        with pytest.raises(requests.ConnectionError):
            requests.get(cloud.taskcluster.url, timeout=10)
