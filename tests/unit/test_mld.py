# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The command ``mld``: what it prints and how it ends, against the fake cloud; as a process where signals matter."""

from __future__ import annotations

import gzip
import json
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import requests
from click.testing import CliRunner, Result
from sqlalchemy import insert

from mozpool import resources
from mozpool.cli import mld
from mozpool.cli.sentry import report_errors
from mozpool.client.models import Request
from mozpool.config import LambdaTest, Settings
from mozpool.daemon import Daemon
from mozpool.db import tables
from mozpool.errors import MozpoolError
from mozpool.fakes.cloud import FakeCloud
from mozpool.fakes.hyperexecute import write_hyperexecute
from mozpool.fakes.phonecloud import JobSpec, Timings, phone_specs
from mozpool.launcher import status as state
from tests.integration.mozpool_site import free_ports
from tests.launcher_support import launching, loop_of, phones, wait_until
from tests.processes import default_signals
from tests.receivers import listening
from tests.unit.test_projects import BIG

ONE, TWO, THREE = (spec.udid for spec in phone_specs(3))
STILL = Timings(created=(600, 600))
"""Nothing goes on by itself in the cloud."""


@pytest.fixture(autouse=True)
def nothing_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MOZPOOL_CONFIG", "MOZPOOL_SERVERS", "MOZPOOL_ASSIGNEE", "LT_USERNAME", "LT_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def cloud() -> Iterator[FakeCloud]:
    with FakeCloud(3, timings=STILL, seed=1) as made:
        yield made


def configured(cloud: FakeCloud, url: str, directory: Path, *, port: int = 8080, **changes: object) -> Path:
    """A config.ini that uses the fake cloud."""
    projects = directory / "lambdatest.yml"
    if not projects.exists():
        projects.write_text(cloud.projects_yaml())
    program = write_hyperexecute(directory / "hyperexecute", cloud.lambdatest.url, slow=float(changes.pop("slow", 0.0)))  # type: ignore[arg-type]
    own = {**cloud.settings(program, projects), **changes}
    lines = "".join(f"{name} = {value}\n" for name, value in own.items())
    config = directory / "config.ini"
    config.write_text(
        f"[database]\nengine = {url}\n[server]\nfqdn = 127.0.0.1:{port}\nlisten = 127.0.0.1\nport = {port}\n"
        f"[testing]\nspeed = {cloud.timeline.speed:g}\n[lambdatest]\n{lines}"
    )
    return config


def run(*arguments: object, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(mld.main, [str(each) for each in arguments], env=env or {}, prog_name="mld")


# config-check


def test_config_check_explains_each_project_and_each_oddity_in_words(tmp_path: Path) -> None:
    path = tmp_path / "big.yml"
    path.write_text(BIG)
    tokens = {"t_lambda_perf_a55": "x", "t_lambda_alpha_a55": "y"}
    result = run("config-check", "--config", path, env=tokens)
    assert result.exit_code == 2
    for line in (
        "a55-perf: takes part with 52 phones, queue t-lambda-perf-a55, priority 3 in a55",
        "a55-alpha: takes part with 32 phones, queue t-lambda-alpha-a55, priority 1 in a55",
        "a51-perf: takes part with 16 phones, queue t-lambda-perf-a51",
        "pixel: does not take part: it lacks phones: device group pixel is empty",
        "later: does not take part: it lacks phones: there is no device group later; "
        "it lacks a worker type: TC_WORKER_TYPE is not set",
    ):
        assert line in result.stdout.splitlines()
    assert re.search(rf"^{re.escape(str(path))}:\d+: device group pixel is empty", result.stdout, re.M)
    assert re.search(rf"^{re.escape(str(path))}:\d+: device group a51-pref: there is no project", result.stdout, re.M)
    assert re.search(rf"^{re.escape(str(path))}:\d+: project a51-perf takes part but has no", result.stderr, re.M)
    assert "mld run refuses to start like this." in result.stderr
    assert run("config-check", "--config", path, env={**tokens, "t_lambda_perf_a51": "z"}).exit_code == 0


def test_config_check_takes_the_configured_file_and_tells_errors_with_status_2(
    cloud: FakeCloud, sqlite_url: str, tmp_path: Path
) -> None:
    config = configured(cloud, sqlite_url, tmp_path)
    result = run("--config", config, "config-check", env=cloud.environment())
    assert (result.exit_code, result.stdout) == (0, "a55: takes part with 3 phones, queue gecko-t-lambda-a55\n")
    (tmp_path / "lambdatest.yml").write_text("projects:\n  a: {disabld: true}\n")
    result = run("--config", config, "config-check")
    assert result.exit_code == 2
    expected = f"{tmp_path}/lambdatest.yml:2: project a: there is no such key 'disabld'; did you mean disabled?"
    assert expected in result.stderr
    config.write_text("[server]\n")
    result = run("--config", config, "config-check")
    assert result.exit_code == 2
    assert "[lambdatest] projects: is not set" in result.stderr


def test_config_check_looks_for_the_folders_of_user_scripts(cloud: FakeCloud, sqlite_url: str, tmp_path: Path) -> None:
    config = configured(cloud, sqlite_url, tmp_path, user_scripts=tmp_path / "scripts")
    result = run("--config", config, "config-check", env=cloud.environment())
    assert "a55: does not take part: it lacks user scripts: there are none of version 1" in result.stdout
    assert "No project takes part" in result.stderr
    (tmp_path / "scripts/1").mkdir(parents=True)
    assert "takes part with 3" in run("--config", config, "config-check", env=cloud.environment()).stdout


# run


@pytest.mark.parametrize("words", [(), ("run",), ("--debug",), ("run", "--debug")])
def test_it_refuses_to_run_without_a_token(cloud: FakeCloud, sqlite_url: str, tmp_path: Path, words) -> None:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        result = run("--config", configured(cloud, sqlite_url, tmp_path, port=free_ports(1)), *words)
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    assert result.exit_code == 2
    assert "gecko_t_lambda_a55 is not set" in result.stderr


def test_debug_is_for_running_only() -> None:
    result = run("--debug", "report")
    assert result.exit_code == 2
    assert "--debug is of no use for report" in result.stderr


class Process:
    """``mld`` as a process."""

    def __init__(self, config: Path, cloud: FakeCloud, *words: str) -> None:
        self.log = config.with_suffix(".log")
        self._file = self.log.open("w")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mozpool.cli.mld", "--config", str(config), *words],
            env={**os.environ, **cloud.environment()},
            preexec_fn=default_signals,
            cwd=resources.CHECKOUT,
            stdout=self._file,
            stderr=subprocess.STDOUT,
        )

    def said(self, text: str) -> bool:
        assert self.process.poll() is None or text in self.log.read_text(), self.log.read_text()
        return text in self.log.read_text()

    def end(self, seconds: float = 60) -> int:
        return self.process.wait(seconds)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._file.close()


@contextmanager
def process(config: Path, cloud: FakeCloud, *words: str) -> Iterator[Process]:
    made = Process(config, cloud, *words)
    try:
        yield made
    finally:
        made.close()


FAST = Timings((0.5, 1), (5, 10), (10, 20), (30, 60), (1, 2), (1, 2), (5, 10))


def test_it_runs_and_a_polite_stop_waits_for_starts(sqlite_url: str, tmp_path: Path) -> None:
    with FakeCloud(1, timings=FAST, speed=20.0, seed=1) as cloud:
        config = configured(cloud, sqlite_url, tmp_path, port=free_ports(1), slow=6.0)
        cloud.add_tasks("a55", 1, seconds=60)
        with process(config, cloud, "run") as running:
            wait_until(lambda: running.said("Uploading the project"), 60)
            running.process.send_signal(signal.SIGUSR2)
            wait_until(lambda: running.said("nothing more is started"))
            assert running.process.poll() is None
            assert running.end() == 0
            assert "Job Number" in running.log.read_text()
        assert len(cloud.lambdatest.jobs) == 1


def test_the_third_signal_ends_it_at_once(sqlite_url: str, tmp_path: Path) -> None:
    with FakeCloud(1, timings=FAST, speed=20.0, seed=1) as cloud:
        config = configured(cloud, sqlite_url, tmp_path, port=free_ports(1), slow=100.0)
        cloud.add_tasks("a55", 1, seconds=60)
        with process(config, cloud) as running:
            wait_until(lambda: running.said("Uploading the project"), 60)
            running.process.send_signal(signal.SIGTERM)
            wait_until(lambda: running.said("nothing more is started"))
            running.process.send_signal(signal.SIGUSR2)
            running.process.send_signal(signal.SIGINT)
            assert running.end(10) != 0
        assert cloud.lambdatest.jobs == []


def test_debug_starts_nothing_and_says_what_it_would_start(sqlite_url: str, tmp_path: Path) -> None:
    with FakeCloud(2, timings=FAST, speed=20.0, seed=1) as cloud:
        config = configured(cloud, sqlite_url, tmp_path, port=free_ports(1))
        cloud.add_tasks("a55", 1, seconds=60)
        with process(config, cloud, "--debug") as running:
            wait_until(lambda: running.said("1 to start; would start on R5CX"), 60)
            running.process.send_signal(signal.SIGTERM)
            assert running.end() == 0
        assert cloud.lambdatest.jobs == []


# status and report


def set_up(cloud: FakeCloud, url: str, directory: Path) -> None:
    """Let the phones be in the pool."""
    with launching(cloud, url, directory, start=False) as daemon:
        loop_of(daemon).look()


def test_status_tells_of_queues_phones_and_what_is_stuck(cloud: FakeCloud, database_url: str, tmp_path: Path) -> None:
    set_up(cloud, database_url, tmp_path)
    config = configured(cloud, database_url, tmp_path)
    cloud.add_tasks("a55", 4)
    cloud.lambdatest.set_faulty(ONE)
    cloud.lambdatest.occupy(TWO)
    cloud.taskcluster.quarantine("gecko-t-lambda-a55", THREE, datetime.now(UTC) + timedelta(hours=1))
    found = json.loads(run("--config", config, "status", "--json", env=cloud.environment()).stdout)
    assert found["projects"] == [
        {
            "name": "a55",
            "takes_part": True,
            "lacks": [],
            "pending": 4,
            "on_the_way": 0,
            "running": 0,
            "phones": {"new": 3},
            "quarantined": [THREE],
            "trouble": None,
        }
    ]
    assert found["stuck"] == {TWO: "busy"}
    assert found["faulty"] == [ONE]
    assert found["cloud"] == {
        "trouble": None,
        "phones": {"active": 1, "busy": 1, "faulty": 1},
        "initiated": 0,
        "max_initiated": 40,
    }
    shown = run("--config", config, "status", env=cloud.environment())
    assert shown.exit_code == 0
    assert f"Stuck, busy without a job of this pool: {TWO} (busy)" in shown.stdout
    assert re.search(rf"^a55 +yes +4 +0 +0 +3 new +{THREE}$", shown.stdout, re.M)


def test_a_phone_with_a_job_of_this_pool_is_not_stuck(sqlite_url: str, tmp_path: Path) -> None:
    running = Timings(created=(0, 0), initiated=(0, 0), pick_up=(600, 600))
    with FakeCloud(1, timings=running, seed=1) as cloud:
        spec = JobSpec(("tcdp", "a55", ONE, "mozpool-1"), "gecko-t-lambda-a55", fixed=ONE)
        cloud.lambdatest.create(spec, cloud.lambdatest.account[0])
        config = configured(cloud, sqlite_url, tmp_path)
        found = json.loads(run("--config", config, "status", "--json", env=cloud.environment()).stdout)
    assert found["stuck"] == {}
    assert "active" not in found["cloud"]["phones"]


def test_status_shows_all_else_when_cloud_and_taskcluster_are_away(
    cloud: FakeCloud, sqlite_url: str, tmp_path: Path
) -> None:
    set_up(cloud, sqlite_url, tmp_path)
    config = configured(cloud, sqlite_url, tmp_path)
    cloud.stop()
    shown = run("--config", config, "status", env=cloud.environment())
    assert shown.exit_code == 0
    assert re.search(r"^a55 +yes +unknown +unknown +0 +3 new", shown.stdout, re.M)
    assert "The cloud: unknown: LambdaTest account" in shown.stderr
    assert "a55: Taskcluster at" in shown.stderr
    secret = cloud.lambdatest.account[1]
    assert secret not in shown.stdout + shown.stderr


def add_job(daemon: Daemon, number: int, udid: str, **columns: object) -> None:
    now = daemon.clock.now()
    values = {
        "claim_id": number,
        "request_id": number,
        "lead_request_id": number,
        "device_id": phones(daemon)[udid].id,
        "device": udid,
        "project": "a55",
        "ordered": now - timedelta(hours=1),
        "ended": now,
        **columns,
    }
    daemon.database.run(lambda conn: conn.execute(insert(tables.hosted_jobs), values))


def test_report_counts_successes_and_failures_by_phase_and_phone(
    cloud: FakeCloud, database_url: str, tmp_path: Path
) -> None:
    with launching(cloud, database_url, tmp_path, start=False) as daemon:
        loop_of(daemon).look()
        now = daemon.clock.now()
        add_job(daemon, 1, ONE, running=now, status="completed")
        add_job(daemon, 2, ONE, running=now, status="failed")
        add_job(daemon, 3, TWO, reason="it could not be started")
        add_job(daemon, 4, TWO, reason="it could not be started")
        add_job(daemon, 5, THREE, reason="stopped")
        add_job(daemon, 6, THREE, running=now, status="completed", ordered=now - timedelta(days=30))
        add_job(daemon, 7, THREE, running=now, ended=None)
        history = {
            "device_id": 1,
            "device": ONE,
            "ts": now,
            "from_state": "job_cleanup",
            "to_state": "failed_job_cleanup",
            "event": "timeout",
            "version": 1,
        }
        daemon.database.run(lambda conn: conn.execute(insert(tables.device_history), history))
        daemon.clock.sleep(0.01)
    config = configured(cloud, database_url, tmp_path)
    for wrong in ("x", "0", "-1", "nan", "1e12"):
        result = run("--config", config, "report", "--days", wrong)
        assert (result.exit_code, f"'{wrong}' is not a number of days such as 7 or 0.5" in result.stderr) == (2, True)
    result = run("--config", config, "report", "--days", 2, "--json")
    found = json.loads(result.stdout)
    assert found["projects"] == [{"name": "a55", "jobs": 5, "succeeded": 1, "given_back": 1, "success_rate": 0.25}]
    assert found["failures"]["by_phone"] == {ONE: {"running": 1, "cleanup": 1}, TWO: {"starting": 2}}
    assert found["failures"]["by_phase"] == {"starting": 2, "running": 1, "stopping": 0, "cleanup": 1, "phone": 0}
    assert found["reasons"] == {"it could not be started": 2, "it ended as failed": 1}
    assert (found["phones"], found["contract_device_count"], found["groups"]) == (3, 3, {"a55": 3})
    shown = run("--config", config, "report").stdout
    assert re.search(r"^a55 +5 +1 +1 +25\.0 %$", shown, re.M)
    assert re.search(r"^all +2 +1 +0 +1 +0 +4$", shown, re.M)
    assert "3 phones in all, as many as the contract is for." in shown


@pytest.mark.parametrize(
    ("contract", "expected"),
    [
        (None, "3 phones in all; the projects file has no contract_device_count."),
        (5, "3 phones in all, 2 fewer than the contract is for (5)."),
        (1, "3 phones in all, 2 more than the contract is for (1)."),
    ],
)
def test_group_sizes_are_compared_with_the_contract(contract: int | None, expected: str) -> None:
    now = datetime.now(UTC)
    assert mld._contract(state.Report(now, now, (), {}, {}, {}, 3, contract)) == expected


def test_without_a_database_they_say_how_to_make_one(cloud: FakeCloud, tmp_path: Path) -> None:
    config = configured(cloud, f"sqlite:///{tmp_path}/none.sqlite", tmp_path)
    for command in ("status", "report"):
        result = run("--config", config, command)
        assert result.exit_code == 1
        assert "make it with `mozpool-db create-schema`" in result.stderr


# start-job


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("a55", "--udid", ONE, "--type", "x-1"), "--udid names one phone"),
        (("a55", "--udid", ONE, "--count", "2"), "--udid names one phone"),
        (("a55", "--type", "Galaxy"), "'Galaxy' is not NAME-OS"),
        (("a55", "--count", "0"), "0 is not in the range"),
        (("a56",), "PROJECT: 'a56' is not one of the projects a55"),
    ],
)
def test_start_job_with_wrong_words(
    cloud: FakeCloud, sqlite_url: str, tmp_path: Path, words: tuple[str, ...], expected: str
) -> None:
    result = run("--config", configured(cloud, sqlite_url, tmp_path), "start-job", *words)
    assert result.exit_code == 2
    assert expected in result.stderr


def test_start_job_without_a_server(cloud: FakeCloud, sqlite_url: str, tmp_path: Path) -> None:
    config = configured(cloud, sqlite_url, tmp_path)
    port = free_ports(1)
    result = run("--config", config, "start-job", "a55", "--server", f"http://127.0.0.1:{port}")
    assert result.exit_code == 1
    assert "connection refused" in result.stderr


def test_jobs_by_hand_in_all_their_modes(sqlite_url: str, tmp_path: Path) -> None:
    """One in the foreground, several of a type in the background, one phone, and one job on two phones."""
    # Nothing is pending: the launcher starts nothing by itself, and workers soon give up.
    with FakeCloud(3, timings=FAST, speed=20.0, seed=1, patience=(5, 10)) as cloud:
        port = free_ports(1)
        url = f"http://127.0.0.1:{port}"
        config = configured(cloud, sqlite_url, tmp_path, port=port)
        with process(config, cloud, "run") as running:
            wait_until(lambda: running.said("listening on"), 60)

            def free() -> bool:
                rows = requests.get(f"{url}/api/device/list/?details=1", timeout=10).json()["devices"]
                return [(row["state"], row.get("request_id")) for row in rows] == [("ready", None)] * 3

            wait_until(free, 60)
            start = ("--config", config, "start-job", "a55", "--server", url)
            one = run(*start, "--udid", TWO, "--foreground")
            assert one.exit_code == 0, one.output
            assert f"request 1: ready: on {TWO}\n" in one.stdout
            assert re.search(r"request 1: closed: job \d+ has ended: completed", one.stdout)
            some = run(*start, "--type", "Galaxy A55 5G-14", "--count", 2, "--json")
            assert some.exit_code == 0, some.output
            assert len({each["assigned_device"] for each in json.loads(some.stdout)}) == 2
            wait_until(free, 60)
            both = run(*start, "--concurrency", 2, "--foreground", "--json")
            assert both.exit_code == 0, both.output
            assert [each["state"] for each in json.loads(both.stdout)] == ["closed", "closed"]
            none = run(*start, "--type", "Pixel 9-15")
            assert none.exit_code == 1
            assert "failed_device_not_found" in none.stdout
            too_many = run(*start, "--concurrency", 4)
            assert too_many.exit_code == 1
            wait_until(free, 60)
        jobs = cloud.lambdatest.jobs
        assert [job.spec.concurrency for job in jobs] == [1, 1, 1, 2]
        assert len(jobs[-1].held) == 2
        assert cloud.lambdatest.violations == []


@pytest.mark.parametrize(
    ("state_", "reason", "well"),
    [
        ("closed", "job 5 has ended: completed", True),
        ("closed", "job 5 has ended: failed", False),
        ("closed", "returned", False),
        ("failed_bad_device", "device x failed", False),
    ],
)
def test_what_counts_as_a_job_that_went_well(state_: str, reason: str, well: bool) -> None:
    request = Request.parse({"id": 1, "state": state_, "reason": reason})
    assert mld._went_well(request, ended=True) is well


# Sentry


def test_without_a_dsn_nothing_is_reported_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentry_sdk", None)
    report_errors(Settings())


def with_dsn(dsn: str) -> Settings:
    return Settings(lambdatest=LambdaTest(sentry_dsn=dsn))


def test_a_dsn_without_the_library_or_that_is_wrong_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MozpoolError, match=r"sentry_dsn \(a secret\) is not right") as caught:
        report_errors(with_dsn("ftp://s3cret"))
    assert "s3cret" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "sentry_sdk", None)
    with pytest.raises(MozpoolError, match=r"pip install 'mozpool\[sentry\]'"):
        report_errors(with_dsn("http://key@127.0.0.1/1"))


def test_errors_that_are_logged_reach_sentry(tmp_path: Path) -> None:
    """In a process of its own: Sentry's library hooks into all logging. Of the call in which it happens no more is told
    than what it was: devices and people show their tokens in headers and queries."""
    code = (
        "import flask, logging, sys, sentry_sdk\n"
        "from mozpool.cli.sentry import report_errors\n"
        "from mozpool.config import LambdaTest, Settings\n"
        "secret = 'tc-s3cret'\n"
        "report_errors(Settings(lambdatest=LambdaTest(sentry_dsn=sys.argv[1])))\n"
        "app = flask.Flask('pool')\n"
        "@app.get('/event/<name>')\n"
        "def event(name):\n"
        "    logging.getLogger('mozpool.launcher').error('no job of %s is started', 'a55')\n"
        "    return 'well'\n"
        "headers = {'Mozpool-Boot-Token': secret, 'Mozpool-Csrf': secret, 'Cookie': f'mozpool_session={secret}'}\n"
        "assert app.test_client().get(f'/event/begun?token={secret}', headers=headers).text == 'well'\n"
        "sentry_sdk.flush(10)\n"
    )
    with listening() as receiver:
        dsn = receiver.host.replace("http://", "http://key@") + "/1"
        subprocess.run([sys.executable, "-c", code, dsn], check=True, cwd=resources.CHECKOUT, timeout=60)
        wait_until(lambda: receiver.calls)
        said = [gzip.decompress(call.raw) if call.raw[:2] == b"\x1f\x8b" else call.raw for call in receiver.calls]
    assert any(b"no job of %s is started" in each for each in said)
    assert any(b"/event/begun" in each for each in said)
    assert not any(b"tc-s3cret" in each for each in said)
