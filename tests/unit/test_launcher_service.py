# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The launcher over a real database, a fake cloud and a fake Taskcluster: it looks when the test says so."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import insert, select, update

from mozpool.bmm.projects import ProjectsError
from mozpool.clock import Deadline
from mozpool.config import ConfigError
from mozpool.daemon import Daemon
from mozpool.db import hosted_jobs, images, jobs, launches, requests, tables
from mozpool.errors import DatabaseAway
from mozpool.fakes.cloud import FakeCloud, FakeProject
from mozpool.fakes.phonecloud import JobSpec, Timings, phone_specs
from mozpool.fakes.webserver import Fault
from mozpool.launcher import service
from mozpool.pool.service import NewRequest
from tests.launcher_support import asked, launching, loop_of, phones, wait_until

UDIDS = [spec.udid for spec in phone_specs(4)]
ONE, TWO, THREE, FOUR = UDIDS
A, B = "t-lambda-a", "t-lambda-b"
SLOW = Timings(created=(600, 600))
"""Nothing goes on by itself in the cloud."""

SHARED = {"priority_group": "g"}


def projects(a=(ONE, TWO), b=(THREE, FOUR), more_of_a=None, more_of_b=None) -> dict[str, FakeProject]:
    return {
        "a": FakeProject(A, tuple(a), more=more_of_a or {}),
        "b": FakeProject(B, tuple(b), more=more_of_b or {}),
    }


@pytest.fixture
def cloud() -> Iterator[FakeCloud]:
    with FakeCloud(4, projects(), timings=SLOW, seed=1) as made:
        yield made


@contextmanager
def ready(cloud: FakeCloud, url: str, directory: Path, **changes) -> Iterator[Daemon]:
    """A daemon whose phones have been added and are ready, and which does nothing by itself."""
    with launching(cloud, url, directory, start=False, **{"status_age": 0.0, **changes}) as made:
        loop_of(made).look()
        set_all(made, state="ready")
        yield made


def set_all(daemon: Daemon, udid: str | None = None, **columns) -> None:
    table = tables.devices
    which = table.c.backends.contains("launcher") if udid is None else table.c.name == udid
    daemon.database.run(lambda conn: conn.execute(update(table).where(which).values(**columns)))
    daemon.devices.forget_all()


def told(daemon: Daemon) -> None:
    """Wait until all queues have been asked anew, and what follows from their answers has been done."""
    loop = loop_of(daemon)
    settled(daemon)
    for watched in loop._watched.values():
        watched.at, watched.trouble = float("-inf"), None
    loop._ask_queues()
    wait_until(lambda: all(each.at > float("-inf") or each.trouble for each in loop._watched.values()))
    settled(daemon)


def settled(daemon: Daemon) -> None:
    wait_until(lambda: not loop_of(daemon).lanes.running() and not loop_of(daemon).lanes.backlog())


def look(daemon: Daemon) -> list[launches.Asked]:
    """One look with news of the queues; what has been asked for then."""
    told(daemon)
    loop_of(daemon).look()
    settled(daemon)
    return asked(daemon)


def test_phones_of_the_projects_come_into_the_pool(database_url: str, tmp_path: Path, cloud: FakeCloud):
    with launching(cloud, database_url, tmp_path, start=False) as daemon:
        loop_of(daemon).look()
        found = phones(daemon)
        assert {udid: phone.environment for udid, phone in found.items()} == {ONE: "a", TWO: "a", THREE: "b", FOUR: "b"}
        assert {phone.hardware for phone in found.values()} == {("Galaxy A55 5G", "14")}
        assert {phone.state for phone in found.values()} == {"new"}
        with daemon.database.read() as conn:
            rows = conn.execute(select(tables.devices)).mappings().all()
            for name in (images.JOB, images.AS_IS):
                image = images.by_name(conn, name)
                assert image is not None
                assert images.fits(conn, image.id).hosted
                assert images.fits(conn, image.id).hardware == {rows[0]["hardware_type_id"]}
        for row in rows:
            assert row["fqdn"] == row["name"] and row["address"] is None and row["inventory_id"] == 0
            assert row["imaging_server_id"] == daemon.server_id
            assert json.loads(row["backends"]) == {"launcher": "lambdatest", "probe": "lambdatest"}
        loop = loop_of(daemon)
        loop._registered = float("-inf")
        loop.look()
        assert phones(daemon) == found


def test_what_the_cloud_does_not_have_is_not_added_but_named(
    sqlite_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    with FakeCloud(2, projects((ONE,), (TWO,)), seed=1) as cloud:
        text = cloud.projects_yaml().replace(TWO, "R5CXNOBODY")
        (tmp_path / "lambdatest.yml").write_text(text)
        with launching(cloud, sqlite_url, tmp_path, start=False) as daemon, caplog.at_level(logging.WARNING):
            loop_of(daemon).look()
            assert list(phones(daemon)) == [ONE]
    assert "the cloud does not have 1 of the projects' phones: R5CXNOBODY" in caplog.text


def test_a_request_is_made_for_each_pending_task_and_not_twice(database_url: str, tmp_path: Path, cloud: FakeCloud):
    with ready(cloud, database_url, tmp_path) as daemon:
        cloud.add_tasks("a", 1)
        cloud.add_tasks("b", 5)
        found = look(daemon)
        assert sorted((each.project, each.assignee) for each in found) == [
            ("a", f"taskcluster/{A}"),
            ("b", f"taskcluster/{B}"),
            ("b", f"taskcluster/{B}"),
        ]
        request = daemon.mozpool.get(found[0].request_id)
        assert (request.image, request.environment, request.wait) == (images.JOB, found[0].project, 0)
        assert json.loads(request.boot_config or "") == {"project": found[0].project}
        assert request.requested_device == found[0].device
        lasts = request.expires - (request.created or request.expires)
        assert lasts == timedelta(seconds=5400 + service.STARTING + service.CLEANING)
        assert look(daemon) == found


def test_no_job_on_a_phone_that_is_locked_lent_quarantined_faulty_or_busy(
    sqlite_url: str, tmp_path: Path, cloud: FakeCloud
):
    with ready(cloud, sqlite_url, tmp_path) as daemon:
        cloud.add_tasks("a", 9)
        cloud.add_tasks("b", 9)
        set_all(daemon, ONE, state="locked_out")
        cloud.taskcluster.quarantine(A, TWO, datetime.now(UTC) + timedelta(hours=1))
        cloud.lambdatest.set_faulty(THREE)
        cloud.lambdatest.occupy(FOUR)
        assert look(daemon) == []
        cloud.lambdatest.vacate(FOUR)
        lent = daemon.mozpool.create(NewRequest(FOUR, "me@example.com", 600, images.AS_IS))
        assert lent.device == FOUR
        assert look(daemon) == []
        cloud.taskcluster.quarantine(A, TWO, None)
        assert [each.device for each in look(daemon)] == [TWO]


def test_the_whole_accounts_initiated_jobs_and_those_on_the_way_are_limited(
    sqlite_url: str, tmp_path: Path, cloud: FakeCloud
):
    with ready(cloud, sqlite_url, tmp_path, max_initiated=2) as daemon:
        cloud.add_tasks("a", 9)
        cloud.add_tasks("b", 9)
        assert len(look(daemon)) == 2
        assert len(look(daemon)) == 2


def test_a_phone_of_two_projects_goes_to_the_higher_priority_and_into_its_environment(
    database_url: str, tmp_path: Path
):
    both = projects((ONE,), (ONE, TWO), {**SHARED, "priority": 1}, {**SHARED, "priority": 2})
    with FakeCloud(2, both, timings=SLOW, seed=1) as cloud, ready(cloud, database_url, tmp_path) as daemon:
        assert phones(daemon)[ONE].environment == "b"
        cloud.add_tasks("a", 1)
        assert [(each.project, each.device) for each in look(daemon)] == [("a", ONE)]
        assert phones(daemon)[ONE].environment == "a"
        cloud.add_tasks("b", 2)
        assert [(each.project, each.device) for each in look(daemon)] == [("a", ONE), ("b", TWO)]


def test_a_phone_that_moved_to_another_project_moves_when_nobody_has_it(
    sqlite_url: str, tmp_path: Path, cloud: FakeCloud, caplog: pytest.LogCaptureFixture
):
    with ready(cloud, sqlite_url, tmp_path) as daemon:
        lent = daemon.mozpool.create(NewRequest(TWO, "me@example.com", 600, images.AS_IS))
        path = tmp_path / "lambdatest.yml"
        text = path.read_text()
        path.write_text(text.replace(f"    {ONE}: Galaxy A55 5G-14\n    {TWO}", f"    {THREE}"))
        with caplog.at_level(logging.ERROR):
            loop_of(daemon).look()
        assert "the projects stay as they were" in caplog.text
        assert phones(daemon)[ONE].environment == "a"
        document = text.split("device_groups:")[0] + f"device_groups:\n  a: {THREE}\n  b: {TWO} {FOUR}\n"
        path.write_text(document)
        loop_of(daemon).look()
        assert {udid: phone.environment for udid, phone in phones(daemon).items()} == {
            ONE: "none",
            TWO: "a",
            THREE: "a",
            FOUR: "b",
        }
        daemon.mozpool.give_back(lent.id)
        loop_of(daemon)._registered = float("-inf")
        loop_of(daemon).look()
        assert phones(daemon)[TWO].environment == "b"


def test_one_server_launches_and_another_one_takes_over(database_url: str, tmp_path: Path, cloud: FakeCloud):
    with (
        ready(cloud, database_url, tmp_path) as first,
        launching(cloud, database_url, tmp_path, start=False, fqdn="launcher-2.example.com", status_age=0.0) as second,
    ):
        cloud.add_tasks("a", 1)
        assert not loop_of(second)._take()
        assert look(second) == []
        loop_of(first).stop(5)
        assert len(look(second)) == 1


def test_who_was_killed_is_replaced_when_its_time_is_over(sqlite_url: str, tmp_path: Path, cloud: FakeCloud):
    with ready(cloud, sqlite_url, tmp_path) as daemon:
        loop = loop_of(daemon)
        past = daemon.clock.now() - timedelta(seconds=1)
        daemon.database.run(
            lambda conn: conn.execute(update(tables.jobs).values(token="somebody's", until=past, holder="dead"))
        )
        assert loop._take()
        with daemon.database.read() as conn:
            job = jobs.get(conn, loop._job)
        assert job is not None and job.holder is not None and job.holder.startswith("launcher-1.example.com")


def test_a_server_that_was_killed_goes_on_at_once_when_it_is_back(database_url: str, tmp_path: Path, cloud: FakeCloud):
    with (
        ready(cloud, database_url, tmp_path) as killed,
        launching(cloud, database_url, tmp_path, start=False, fqdn="launcher-2.example.com", status_age=0.0) as other,
        launching(cloud, database_url, tmp_path, start=False, status_age=0.0) as back,
    ):
        loop_of(back)._token = "of the second process"
        assert loop_of(killed)._take()
        assert not loop_of(other)._take()
        assert loop_of(back)._take()
        # It was not killed after all: they do not take it from one another for ever.
        assert not loop_of(killed)._take()
        assert loop_of(back)._take()


def test_a_queue_that_does_not_tell_holds_up_no_other(
    sqlite_url: str, tmp_path: Path, cloud: FakeCloud, caplog: pytest.LogCaptureFixture
):
    with ready(cloud, sqlite_url, tmp_path) as daemon:
        cloud.add_tasks("a", 1)
        cloud.add_tasks("b", 1)
        cloud.taskcluster.web.set_fault(
            Fault(status=500, path=f"/api/worker-manager/v1/provisioners/proj-autophone/worker-types/{A}")
        )
        assert [each.project for each in look(daemon)] == ["b"]
        assert f"project a: Taskcluster at {cloud.taskcluster.url} does not tell about" in caplog.text
        cloud.taskcluster.web.set_fault(None)
        assert sorted(each.project for each in look(daemon)) == ["a", "b"]


def test_old_numbers_are_not_used(sqlite_url: str, tmp_path: Path, cloud: FakeCloud):
    with ready(cloud, sqlite_url, tmp_path) as daemon:
        cloud.add_tasks("a", 1)
        told(daemon)
        loop = loop_of(daemon)
        loop._watched["a"].at -= service.OLD + 1
        view = loop.view(loop._cloud.phones(Deadline(daemon.clock, 10)), 0)
        assert [demand.project for demand in view.demands] == ["b"]
        assert set(view.troubles) == {"a"}


def test_while_the_cloud_is_away_nothing_is_started_and_then_all(
    sqlite_url: str, tmp_path: Path, cloud: FakeCloud, caplog: pytest.LogCaptureFixture
):
    with ready(cloud, sqlite_url, tmp_path) as daemon:
        cloud.add_tasks("a", 2)
        cloud.lambdatest.web.set_fault(Fault(down=True))
        assert look(daemon) == []
        assert "nothing is started: LambdaTest account" in caplog.text
        cloud.lambdatest.web.set_fault(None)
        wait_until(lambda: look(daemon))
        assert len(asked(daemon)) == 2


def test_without_the_database_a_look_comes_to_nothing_and_the_next_one_goes_on(
    sqlite_url: str, tmp_path: Path, cloud: FakeCloud, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    with ready(cloud, sqlite_url, tmp_path) as daemon:
        cloud.add_tasks("a", 1)
        told(daemon)

        def away(*args, **more):
            raise DatabaseAway("the database is away")

        with monkeypatch.context() as broken:
            broken.setattr(daemon.database, "run", away)
            loop_of(daemon)._look()
        assert "nothing is started: the database is away" in caplog.text
        assert len(look(daemon)) == 1


def test_a_request_that_has_failed_is_not_listed_any_longer(sqlite_url: str, tmp_path: Path, cloud: FakeCloud):
    with ready(cloud, sqlite_url, tmp_path) as daemon:
        cloud.add_tasks("a", 1)
        [one] = look(daemon)
        table = tables.requests
        daemon.database.run(
            lambda conn: conn.execute(
                update(table).where(table.c.id == one.request_id).values(state="failed_bad_device")
            )
        )
        loop_of(daemon)._registered = float("-inf")
        loop_of(daemon).look()
        with daemon.database.read() as conn:
            listed = requests.find(conn, requests.Filter(), daemon.clock.now())
        assert one.request_id not in [request.id for request in listed]


def add_job(daemon: Daemon, udid: str, **columns) -> int:
    """A row about a job on a phone."""
    number = len(history(daemon)) + 1
    values = {
        "claim_id": 1000 + number,
        "request_id": 1000 + number,
        "lead_request_id": 1000 + number,
        "device_id": phones(daemon)[udid].id,
        "device": udid,
        "project": "a",
        "ordered": daemon.clock.now() - timedelta(minutes=5),
        **columns,
    }
    daemon.database.run(lambda conn: conn.execute(insert(tables.hosted_jobs), values))
    return history(daemon)[-1].id


def history(daemon: Daemon) -> list[hosted_jobs.Job]:
    now = daemon.clock.now()
    with daemon.database.read() as conn:
        return hosted_jobs.between(conn, now - timedelta(days=1), now + timedelta(days=1))


def test_after_failed_starts_a_phone_is_left_alone_for_a_growing_while(
    database_url: str, tmp_path: Path, cloud: FakeCloud
):
    with ready(cloud, database_url, tmp_path) as daemon:
        cloud.add_tasks("a", 9)
        now = daemon.clock.now()
        add_job(daemon, ONE, ended=now - timedelta(seconds=200), running=now - timedelta(seconds=300))
        add_job(daemon, ONE, ended=now - timedelta(seconds=100), reason="the cloud did not begin to run it")
        add_job(daemon, ONE, ended=now - timedelta(seconds=80), reason="stopped")
        add_job(daemon, TWO, ended=now - timedelta(seconds=150), reason="it could not be started")
        add_job(daemon, TWO, ended=now - timedelta(seconds=100), reason="it could not be started")
        with daemon.database.read() as conn:
            failures = launches.failed_starts(conn, now - timedelta(hours=1))
        assert {udid: failed.number for udid, failed in failures.items()} == {ONE: 1, TWO: 2}
        alone = service.left_alone(failures, now, 1.0)
        assert list(alone) == [TWO]
        assert abs((alone[TWO] - now).total_seconds() - 20) < 1
        assert [each.device for each in look(daemon)] == [ONE]


def test_the_pause_after_failures_has_an_end():
    now = datetime.now(UTC)
    alone = service.left_alone({ONE: launches.Failures(50, now)}, now, 1.0)
    assert alone == {ONE: now + timedelta(seconds=service.LONGEST_PAUSE)}


def work(cloud: FakeCloud, worker_type: str, udid: str) -> str:
    """A worker takes a task, whose id is answered."""
    taken: list[str] = []
    with cloud.taskcluster.timeline.settled():
        cloud.taskcluster.start_worker(worker_type, udid, taken.append, lambda: None)
    return taken[0]


def test_the_task_that_a_worker_took_is_noted_with_its_job_but_not_that_of_a_job_before(
    database_url: str, tmp_path: Path, cloud: FakeCloud
):
    with ready(cloud, database_url, tmp_path) as daemon:
        cloud.add_tasks("a", 2)
        task = work(cloud, A, ONE)
        old = work(cloud, A, TWO)
        running = daemon.clock.now() - timedelta(minutes=4)
        first = add_job(daemon, ONE, running=running)
        second = add_job(daemon, TWO, running=running, ordered=daemon.clock.now() + timedelta(seconds=1))
        told(daemon)
        found = {job.id: job for job in history(daemon)}
        assert (found[first].task_id, found[first].task_url) == (task, cloud.taskcluster.task_url(task))
        assert found[first].task_seen is not None
        assert old and found[second].task_id is None


def test_a_job_counts_as_on_its_way_until_its_task_is_seen_or_it_should_have_one():
    now = datetime.now(UTC)
    since = now - timedelta(seconds=210)
    base = launches.Asked(1, "x", "a", ONE, "ready", 1, None, None, None, None)

    def one(state, **more):
        return replace(base, device_state=state, **more)

    assert one(None, device=None, job=None).may_take_task(since)
    assert one("ready", job=None).may_take_task(since)
    assert one("job_starting").may_take_task(since) and one("job_waiting").is_unknown
    assert not one("job_waiting", number=5).is_unknown
    assert one("job_running", running=now - timedelta(seconds=100)).may_take_task(since)
    assert not one("job_running", running=now - timedelta(seconds=300)).may_take_task(since)
    assert not one("job_running", running=now, task_seen=now).may_take_task(since)
    assert not one("job_cleanup", running=now).may_take_task(since)
    assert not one("failed_job_starting", job=None).may_take_task(since)


def test_jobs_of_this_pool_that_nobody_wants_are_stopped_once_a_minute(
    sqlite_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    running = Timings(created=(0, 0), initiated=(0, 0), pick_up=(600, 600), abort=(600, 600))
    with FakeCloud(4, projects(), timings=running, seed=1) as cloud, ready(cloud, sqlite_url, tmp_path) as daemon:
        loop_of(daemon).stop_starting()
        settled(daemon)
        user = cloud.lambdatest.account[0]

        def create(udid: str, label: str) -> int:
            return cloud.lambdatest.create(JobSpec(("tcdp", "a", udid, label), A, fixed=udid), user).number

        unknown = create(ONE, "mozpool-4711")
        cared_for = create(TWO, "mozpool-4712")
        others = create(THREE, "other-4713")
        set_all(daemon, TWO, state="job_stopping")
        loop_of(daemon).stop_orphans()
        loop_of(daemon).stop_orphans()
        aborts = [line for line in cloud.lambdatest.web.asked if line.startswith("PUT")]
        assert len(aborts) == 1
        assert f"job {unknown} (tcdp, a, {ONE}, mozpool-4711) is to stop: its request 4711 is unknown" in caplog.text
        loop_of(daemon)._orphans[unknown] -= service.ORPHAN_PAUSE + 1
        loop_of(daemon).stop_orphans()
        assert len([line for line in cloud.lambdatest.web.asked if line.startswith("PUT")]) == 2
        assert f"job {cared_for}" not in caplog.text and f"job {others}" not in caplog.text


def test_a_dry_launcher_says_what_it_would_start_and_keeps_nobody_from_starting_it(
    sqlite_url: str, tmp_path: Path, cloud: FakeCloud, caplog: pytest.LogCaptureFixture
):
    with (
        ready(cloud, sqlite_url, tmp_path) as real,
        launching(cloud, sqlite_url, tmp_path, start=False, fqdn="dry.example.com", dry=True, status_age=0.0) as daemon,
    ):
        cloud.add_tasks("a", 1)
        with caplog.at_level(logging.INFO):
            assert look(daemon) == []
        assert "a: 1 pending, 0 on the way, 2 of 2 phones free: 1 to start; would start on R5CX" in caplog.text
        assert len(look(real)) == 1


def test_nothing_is_started_any_more_when_it_is_to_stop(sqlite_url: str, tmp_path: Path, cloud: FakeCloud):
    with ready(cloud, sqlite_url, tmp_path) as daemon:
        loop_of(daemon).stop_starting()
        cloud.add_tasks("a", 2)
        told(daemon)
        loop_of(daemon)._look()
        loop_of(daemon).wake()
        assert asked(daemon) == []


def test_it_does_not_start_without_a_token_or_projects(
    sqlite_url: str, tmp_path: Path, cloud: FakeCloud, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(FakeCloud, "environment", lambda self: {"t_lambda_a": "x"})
    with (
        pytest.raises(ProjectsError, match="t_lambda_b is not set"),
        launching(cloud, sqlite_url, tmp_path, start=False),
    ):
        pass
    with (
        pytest.raises(ConfigError, match=r"\[lambdatest\] projects: is not set"),
        launching(cloud, sqlite_url, tmp_path, start=False, projects=None),
    ):
        pass


def test_a_free_phone_is_given_its_job_at_once(sqlite_url: str, tmp_path: Path):
    """With the threads of a real server: from the first look to a job that has its task, and to the next one."""
    quick = Timings((0.5, 1), (5, 10), (10, 20), (30, 60), (1, 2), (1, 2), (5, 10))
    with (
        FakeCloud(2, projects((ONE,), (TWO,)), timings=quick, speed=20.0, seed=2) as cloud,
        launching(cloud, sqlite_url, tmp_path, start=True) as daemon,
    ):
        cloud.add_tasks("a", 2, seconds=10)
        cloud.add_tasks("b", 1, seconds=10)
        wait_until(lambda: all(task.state == "completed" for task in cloud.taskcluster.tasks.values()), 90)
        wait_until(lambda: not asked(daemon), 60)
        assert cloud.lambdatest.violations == []
        done = history(daemon)
        assert sorted(job.project for job in done) == ["a", "a", "b"]
        assert {job.task_id for job in done} == set(cloud.taskcluster.tasks)
        assert all(job.number is not None and job.url and job.status == "completed" for job in done)
