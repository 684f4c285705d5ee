# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Phones in LambdaTest's cloud, against fakes of the cloud and of its program, with all their faults."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from mozpool.bmm.backends.lambdatest import LambdaTestLauncher, LambdaTestProbe, account, jobdir, launcher
from mozpool.bmm.interfaces import NO_MAC, BackendContext, HostedJob, JobOrder, Target
from mozpool.clock import Deadline
from mozpool.config import LambdaTest
from mozpool.errors import HardwareError, LaneError, NotYet, OwnFault
from mozpool.fakes.hyperexecute import ProgramFault, write_hyperexecute
from mozpool.fakes.lambdatest import ACCOUNT, FakeLambdaTest
from mozpool.fakes.phonecloud import JobSpec, PhoneSpec, Timings, phone_specs
from mozpool.fakes.webserver import Answer, Call, Fault, Nonsense, Service, WebServer, too_many
from mozpool.lease import Lease
from tests.processes import runs

ENOUGH = 60.0
SPEED = 50.0
USER, KEY = ACCOUNT
TOKEN = "tc-tok3n-of-a55-perf"
RECORDED = Path(__file__).parents[1] / "data" / "lambdatest"

TIMINGS = Timings(
    created=(0.0, 0.0), initiated=(25.0, 25.0), pick_up=(25.0, 25.0), work=(600.0, 600.0), finish=(1.0, 1.0)
)
"""In seconds of a cloud that is fifty times as fast: jobs run after half a second, and then for a while."""

PROJECTS = """
projects:
  defaults:
    USER_SCRIPTS_VERSION: v1
  a55-perf:
    TASKCLUSTER_CLIENT_ID: project/autophone/a55
    TC_WORKER_TYPE: gecko-t-lambda-perf-a55
  no-token:
    TASKCLUSTER_CLIENT_ID: project/autophone/none
    TC_WORKER_TYPE: gecko-t-lambda-none
device_groups:
  a55-perf: R5CX0000001 R5CX0000002
"""

PHONE, OTHER = "R5CX0000001", "R5CX0000002"


def phone(udid: str = PHONE) -> Target:
    return Target(udid, udid, NO_MAC, hardware_type="Galaxy A55 5G", hardware_model="14")


def order(request_id: int = 17, *devices: str, project: str = "a55-perf") -> JobOrder:
    return JobOrder(request_id, project, devices or (PHONE,))


@dataclass
class Lab:
    """A cloud, its program, and a server's backend."""

    cloud: FakeLambdaTest
    context: BackendContext
    program: Path
    lines: list[tuple[str, str]] = field(default_factory=list)
    """What came into the logs of devices."""
    made: list[LambdaTestLauncher] = field(default_factory=list)

    @property
    def settings(self) -> LambdaTest:
        return self.context.lambdatest

    def launcher(self, **settings: Any) -> LambdaTestLauncher:
        """A new process's backend, which has been up for some seconds."""
        context = replace(self.context, lambdatest=replace(self.settings, **settings))
        made = LambdaTestLauncher(context)
        made._born -= 60
        self.made.append(made)
        return made

    def deadline(self, seconds: float = ENOUGH) -> Deadline:
        return Deadline(self.context.clock, seconds)

    def start(self, backend: LambdaTestLauncher, wanted: JobOrder, device: str | None = None) -> None:
        """Start a job, as soon as it is time."""
        give_up = time.monotonic() + ENOUGH
        while True:
            try:
                return backend.start(phone(device or wanted.devices[0]), wanted, self.deadline())
            except NotYet as later:
                assert time.monotonic() < give_up
                time.sleep(later.seconds)

    def look_until(
        self, backend: LambdaTestLauncher, wanted: JobOrder, is_so: Callable[[HostedJob], bool]
    ) -> HostedJob:
        """Look at a job until something is so."""
        give_up = time.monotonic() + ENOUGH
        while time.monotonic() < give_up:
            job = backend.look(phone(wanted.devices[0]), wanted, self.deadline())
            if job is not None and is_so(job):
                return job
            time.sleep(0.02)
        raise AssertionError("it never was")

    def text(self, device: str = PHONE) -> str:
        return "\n".join(line for name, line in self.lines if name == device)

    def directories(self) -> list[Path]:
        assert self.settings.job_directory is not None
        return sorted(self.settings.job_directory.glob("job-*"))


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    """A folder with one version of user scripts."""
    version = tmp_path / "scripts" / "v1"
    version.mkdir(parents=True)
    for name in ("setup.sh", "run-worker.sh", "reboot-and-wait.sh", "print-metadata.sh"):
        (version / name).write_text("#!/bin/bash\n")
    return version


@pytest.fixture
def lab(context: BackendContext, tmp_path: Path, scripts: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    monkeypatch.setenv("gecko_t_lambda_perf_a55", TOKEN)
    monkeypatch.setenv("SOME_TOKEN", "geheim")
    projects = tmp_path / "lambdatest.yml"
    projects.write_text(PROJECTS)
    program = tmp_path / "bin" / "hyperexecute"
    program.parent.mkdir()
    lines: list[tuple[str, str]] = []
    with FakeLambdaTest(phone_specs(4), speed=SPEED, seed=1, timings=TIMINGS) as cloud:
        write_hyperexecute(program, cloud.url)
        settings = LambdaTest(
            projects=projects,
            username=USER,
            access_key=KEY,
            hyperexecute=str(program),
            user_scripts=str(scripts.parent),
            job_directory=tmp_path / "jobs",
            start_spacing=0.0,
            status_age=2.0,
            devices_api=cloud.url,
            jobs_api=cloud.url,
        )
        context = replace(context, lambdatest=settings, say=lambda device, line: lines.append((device, line)))
        made = Lab(cloud, context, program, lines)
        yield made
        for backend in made.made:
            backend.finish(made.deadline(0.0))


def foreign(*devices: str) -> JobSpec:
    """A job that somebody else starts."""
    return JobSpec(("tcdp", "theirs", *devices), "gecko-t-theirs", fixed=devices[0])


def wait_until(is_so: Callable[[], object]) -> None:
    give_up = time.monotonic() + ENOUGH
    while not is_so():
        assert time.monotonic() < give_up
        time.sleep(0.02)


# Phones


class Recording(Service):
    """Answers what was recorded."""

    def __init__(self, clock: Any) -> None:
        self.web = WebServer("recorded answers", self._answer, clock, "127.0.0.1", 0)

    def _answer(self, call: Call) -> Answer:
        name = "devices" if call.path.endswith("/privatecloud_devices") else "jobs"
        return Answer(200, json.loads((RECORDED / f"{name}.json").read_text()))


@pytest.fixture
def recorded(lab: Lab) -> Iterator[LambdaTestLauncher]:
    with Recording(lab.context.clock) as service:
        yield lab.launcher(devices_api=service.url, jobs_api=service.url)


def test_recorded_answers_are_understood(lab: Lab, recorded: LambdaTestLauncher) -> None:
    phones = recorded.phones(lab.deadline())
    assert len(phones) == 35
    assert phones["RZ8NB0WJ47H"].type_os == "Galaxy A51-11"
    words = {udid: recorded.status(phone(udid), lab.deadline()) for udid in phones}
    assert {status.word for status in words.values() if status.free} == {"active"}
    assert [udid for udid, status in words.items() if status.faulty] == [
        udid for udid, each in phones.items() if each.status == "faulty"
    ]
    assert not any(status.free for udid, status in words.items() if phones[udid].status != "active")
    assert recorded.initiated(lab.deadline()) == 2
    assert recorded.own_jobs(lab.deadline()) == ()
    jobs = {job.number: job for job in recorded.account.jobs("LambdaTest", "job status", lab.deadline())}
    assert jobs[9815].labels == ("tcdp", "a55-alpha", "R5CXC1HZKLR")
    assert [number for number, job in jobs.items() if job.runs] == [9815]
    assert sorted(number for number, job in jobs.items() if not job.ended) == [9815, 9816, 9821]


def test_a_phone_that_somebodys_job_is_about_to_use_is_not_free(lab: Lab) -> None:
    backend = lab.launcher()
    assert backend.status(phone(), lab.deadline()).free
    lab.cloud.create(JobSpec(("tcdp", "theirs", PHONE), "gecko-t-theirs", fixed=OTHER), USER)

    def status() -> str:
        found = backend.status(phone(), lab.deadline())
        return found.word if not found.free and not found.faulty else ""

    wait_until(status)
    assert status().startswith("active, job 9822 is ")
    wait_until(lambda: backend.status(phone(OTHER), lab.deadline()).word in ("initiated", "busy"))


def test_the_probe_says_whether_it_is_free(lab: Lab) -> None:
    probe = LambdaTestProbe(lab.context)
    assert probe.ping(phone(), lab.deadline()) is True
    lab.cloud.set_faulty(PHONE)
    wait_until(lambda: not probe.ping(phone(), lab.deadline()))
    with pytest.raises(HardwareError, match=rf"the LambdaTest account {USER}@127.0.0.1:\d+ has no phone nothing"):
        probe.ping(phone("nothing"), lab.deadline())


# Jobs


def test_a_job_is_started_watched_and_stopped(lab: Lab) -> None:
    backend = lab.launcher()
    assert backend.look(phone(), order(), lab.deadline()) is None
    lab.start(backend, order())
    job = lab.look_until(backend, order(), lambda job: job.runs)
    made = lab.cloud.jobs[0]
    assert made.spec.labels == ("tcdp", "a55-perf", PHONE, "mozpool-17")
    assert (made.spec.fixed, made.spec.concurrency, made.spec.worker_type) == (PHONE, 1, "gecko-t-lambda-perf-a55")
    assert job == HostedJob(
        made.number,
        made.id,
        "running",
        runs=True,
        ended=False,
        url=f"https://hyperexecute.lambdatest.com/hyperexecute/task?jobId={made.id}",
    )
    own = backend.own_jobs(lab.deadline())
    assert [(each.request_id, each.job.number) for each in own] == [(17, made.number)]
    wait_until(lambda: backend.stop(phone(), lab.deadline()))
    assert lab.look_until(backend, order(), lambda job: job.ended).status == "aborted"
    assert lab.cloud.violations == []
    assert f"hyperexecute: Job Number: {made.number}" in lab.text()
    assert "hyperexecute: ended with status 0 after" in lab.text()
    assert f"job {made.number} is to stop" in lab.text()


def test_a_start_that_is_asked_for_again_starts_nothing(lab: Lab) -> None:
    backend = lab.launcher()
    for _ in range(3):
        lab.start(backend, order())
    lab.look_until(backend, order(), lambda job: True)
    lab.start(backend, order())
    assert len(lab.cloud.jobs) == 1


def test_another_process_finds_the_job_and_starts_none(lab: Lab) -> None:
    lab.start(lab.launcher(), order())
    wait_until(lambda: lab.cloud.jobs)
    other = lab.launcher()
    lab.start(other, order())
    assert other.look(phone(), order(), lab.deadline()) is not None
    assert len(lab.cloud.jobs) == 1


def test_a_process_that_has_just_begun_waits_for_what_an_earlier_one_may_have_done(lab: Lab) -> None:
    begun = LambdaTestLauncher(replace(lab.context, speed=1.0))
    with pytest.raises(NotYet) as later:
        begun.start(phone(), order(), lab.deadline())
    assert 4.0 < later.value.seconds <= launcher.SETTLING


def test_a_job_that_ended_long_ago_is_still_found(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(account, "PAGE", 3)
    first = lab.cloud.create(JobSpec(("tcdp", "a55-perf", PHONE, "mozpool-17"), "w", fixed=PHONE), USER)
    lab.cloud.abort(first.id, USER)
    wait_until(lambda: lab.cloud.jobs[0].ended)
    for _ in range(7):
        lab.cloud.create(foreign(OTHER), USER)
    found = lab.launcher().look(phone(), order(), lab.deadline())
    assert found is not None
    assert (found.number, found.ended) == (first.number, True)
    assert lab.launcher().look(phone(), order(18), lab.deadline()) is None


def test_an_order_whose_job_has_ended_can_be_started_again(lab: Lab) -> None:
    backend = lab.launcher()
    lab.start(backend, order())
    first = lab.look_until(backend, order(), lambda job: True)
    assert first.id is not None
    lab.cloud.abort(first.id, USER)
    lab.look_until(backend, order(), lambda job: job.ended)
    wait_until(lambda: lab.cloud.phones[PHONE] == "active")
    lab.start(backend, order())
    second = lab.look_until(backend, order(), lambda job: not job.ended)
    assert second.number != first.number


@pytest.mark.parametrize("how", ["their job", "their phone", "faulty", "own"])
def test_a_phone_that_is_not_free_gets_no_job(lab: Lab, how: str) -> None:
    backend = lab.launcher()
    match how:
        case "their job":
            lab.cloud.create(foreign(PHONE), USER)
            reason = r"it is busy: job 9822 \(tcdp, theirs, R5CX0000001\) is"
        case "their phone":
            lab.cloud.occupy(PHONE)
            reason = "it is busy: its status is busy"
        case "faulty":
            lab.cloud.set_faulty(PHONE)
            reason = "it is busy: its status is faulty"
        case _:
            lab.cloud.create(JobSpec(("tcdp", "a55-perf", PHONE, "mozpool-99"), "w", fixed=PHONE), USER)
            reason = r"it is busy: job 9822 \(tcdp, a55-perf, R5CX0000001, mozpool-99\) is"
    before = len(lab.cloud.jobs)
    with pytest.raises(HardwareError, match=f"job start of {PHONE} failed: {reason}") as caught:
        backend.start(phone(), order(), lab.deadline())
    assert not isinstance(caught.value, LaneError | OwnFault)
    assert len(lab.cloud.jobs) == before
    assert lab.directories() == []


def test_a_job_on_several_phones_names_all_of_them_and_pins_none(lab: Lab) -> None:
    wanted = order(20, PHONE, OTHER)
    backend = lab.launcher()
    lab.start(backend, wanted)
    lab.look_until(backend, wanted, lambda job: job.runs)
    assert backend.look(phone(OTHER), wanted, lab.deadline()) is not None
    assert backend.look(phone("R5CX0000003"), wanted, lab.deadline()) is None
    spec = lab.cloud.jobs[0].spec
    assert spec.labels == ("tcdp", "a55-perf", PHONE, OTHER, "mozpool-20")
    assert (spec.concurrency, spec.fixed, spec.patterns) == (2, None, ("Galaxy A55 5G-14",))
    assert lab.text(OTHER) == lab.text(PHONE) != ""


def test_phones_of_two_kinds_get_no_job_together(lab: Lab) -> None:
    phones = [PhoneSpec("A"), PhoneSpec("B", "Pixel 6", "13")]
    with FakeLambdaTest(phones, speed=SPEED) as cloud:
        backend = lab.launcher(devices_api=cloud.url, jobs_api=cloud.url)
        with pytest.raises(HardwareError, match="of one kind, and these are Galaxy A55 5G-14, Pixel 6-13"):
            backend.start(phone("A"), order(1, "A", "B"), lab.deadline())


# When


def test_starts_are_spaced_and_keep_their_order(lab: Lab) -> None:
    lab.program.write_text("#!/bin/bash\nsleep 60\n")
    backend = lab.launcher(start_spacing=1.0 * SPEED)
    orders = [order(number, f"R5CX000000{number}") for number in (1, 2, 3, 4)]
    lab.start(backend, orders[0])
    waits = []
    for wanted in orders[1:]:
        with pytest.raises(NotYet) as later:
            backend.start(phone(wanted.devices[0]), wanted, lab.deadline())
        waits.append(later.value.seconds)
    assert 0 < waits[0] <= 1.0 < waits[1] <= 2.0 < waits[2] <= 3.0
    begun = [backend._last_start]
    for wanted in orders[1:]:
        lab.start(backend, wanted)
        begun.append(backend._last_start)
    assert all(later - earlier >= 1.0 for earlier, later in itertools.pairwise(begun))


def test_a_slow_cloud_costs_no_turn(lab: Lab) -> None:
    """The next start does not wait for the spacing and the cloud's answer, one after the other."""
    lab.program.write_text("#!/bin/bash\nsleep 60\n")
    lab.cloud.web.set_fault(Fault(slow=0.4))
    backend = lab.launcher(start_spacing=1.5 * SPEED, status_age=60.0 * SPEED)
    orders = [order(number, f"R5CX000000{number}") for number in (1, 2, 3, 4)]
    begun: dict[int, float] = {}

    def start(wanted: JobOrder) -> None:
        lab.start(backend, wanted)
        begun[wanted.request_id] = time.monotonic()

    threads = [threading.Thread(target=start, args=(wanted,)) for wanted in orders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(ENOUGH)
    assert max(begun.values()) - min(begun.values()) < 3 * (1.5 + 0.4)


def test_only_so_many_runs_are_under_way(lab: Lab) -> None:
    write_hyperexecute(lab.program, lab.cloud.url, fault=ProgramFault.HANGS)
    backend = lab.launcher(max_starting=1)
    lab.start(backend, order(1, PHONE))
    with pytest.raises(NotYet):
        backend.start(phone(OTHER), order(2, OTHER), lab.deadline())
    assert backend.stop(phone(), lab.deadline()) is False
    wait_until(lambda: backend.stop(phone(), lab.deadline()))
    write_hyperexecute(lab.program, lab.cloud.url)
    lab.start(backend, order(2, OTHER))
    wait_until(lambda: lab.cloud.jobs)


def test_nothing_is_started_while_too_many_jobs_of_the_account_are_initiated(lab: Lab) -> None:
    backend = lab.launcher(max_initiated=2)
    for udid in (OTHER, "R5CX0000003"):
        lab.cloud.create(foreign(udid), USER)
    assert backend.initiated(lab.deadline()) == 2
    with pytest.raises(NotYet):
        backend.start(phone(), order(), lab.deadline())
    lab.start(backend, order())
    wait_until(lambda: len(lab.cloud.jobs) == 3)
    assert all(number <= 2 for _, number in lab.cloud.initiated())


# The program and its directory

SPY = """#!/bin/bash
printf '%s\\n' "$@" > {out}/arguments
env > {out}/environment
cp -r . {out}/directory
stat -c '%a %n' . hyperexecute.yaml > {out}/modes
tr '\\0' '\\n' < /proc/$$/cmdline > {out}/cmdline
echo "key $LT_ACCESS_KEY token $TASKCLUSTER_ACCESS_TOKEN"
printf 'half a line \\033[31m'
exit 3
"""


@pytest.fixture
def spy(lab: Lab, tmp_path: Path) -> Path:
    out = tmp_path / "seen"
    out.mkdir()
    lab.program.write_text(SPY.format(out=out))
    return out


def spied(lab: Lab, spy: Path, **settings: Any) -> None:
    backend = lab.launcher(**settings)
    lab.start(backend, order())
    wait_until(lambda: "ended with status 3" in lab.text())


def test_the_program_gets_exactly_its_arguments_and_no_secret_in_them(lab: Lab, spy: Path) -> None:
    spied(lab, spy)
    assert (spy / "arguments").read_text().split("\n") == [
        "--no-track",
        "--labels",
        f"tcdp,a55-perf,{PHONE},mozpool-17",
        "--exclude-external-binaries",
        "",
    ]
    for secret in (KEY, TOKEN):
        assert secret not in (spy / "cmdline").read_text()
        assert secret not in lab.text()
    seen = dict(line.split("=", 1) for line in (spy / "environment").read_text().splitlines() if "=" in line)
    assert (seen["LT_USERNAME"], seen["LT_ACCESS_KEY"], seen["TASKCLUSTER_ACCESS_TOKEN"]) == (USER, KEY, TOKEN)
    assert "SOME_TOKEN" not in seen
    assert "gecko_t_lambda_perf_a55" not in seen
    assert "hyperexecute: key *** token ***" in lab.text()
    assert "hyperexecute: half a line  [31m" in lab.text()


def test_its_directory_is_for_this_user_alone_and_the_token_goes_when_it_has_ended(lab: Lab, spy: Path) -> None:
    spied(lab, spy)
    assert (spy / "modes").read_text() == "700 .\n600 hyperexecute.yaml\n"
    (directory,) = lab.directories()
    assert directory.name.startswith("job-mozpool-17-")
    assert sorted(path.name for path in directory.iterdir()) == ["user_script"]


def test_the_document_is_what_the_cloud_expects(lab: Lab, spy: Path) -> None:
    spied(lab, spy)
    document = yaml.safe_load((spy / "directory" / "hyperexecute.yaml").read_text())
    env = document.pop("env")
    assert env["TASKCLUSTER_CLIENT_ID"] == "project/autophone/a55"
    assert env["TASKCLUSTER_ACCESS_TOKEN"] == TOKEN
    assert env["TC_WORKER_TYPE"] == "gecko-t-lambda-perf-a55"
    assert document == {
        "version": "0.2",
        "autosplit": True,
        "runson": "android",
        "concurrency": 1,
        "dynamicAllocation": True,
        "shell": "bash",
        "runtime": [
            {"language": "java", "version": "17"},
            {"language": "node", "version": "20"},
            {"language": "python", "version": "3.12"},
        ],
        "testDiscovery": {"type": "raw", "mode": "static", "command": "echo unit-1"},
        "testRunnerCommand": "bash user_script/run-worker.sh",
        "pre": ["bash user_script/setup.sh"],
        "post": ["bash user_script/reboot-and-wait.sh", "bash user_script/print-metadata.sh"],
        "differentialUpload": {"enabled": True, "ttlHours": 360},
        "frameworkStatusOnly": True,
        "framework": {
            "name": "raw",
            "args": {
                "devices": [".*-.*"],
                "fixedIP": PHONE,
                "privateCloud": True,
                "queueTimeout": 600,
                "region": "us",
                "disableReleaseDevice": True,
                "isRealMobile": True,
                "reservation": False,
                "platformName": "android",
                "video": False,
                "liveVideo": False,
                "deviceLogs": True,
                "buildName": "mozpool-17",
            },
        },
    }


def test_our_own_user_scripts_are_taken_where_none_are_configured(lab: Lab, spy: Path) -> None:
    spied(lab, spy, user_scripts="")
    own = {path.name for path in (spy / "directory" / "user_script").iterdir()}
    assert {"setup.sh", "run-worker.sh", "reboot-and-wait.sh", "print-metadata.sh", "script.py"} <= own
    assert os.access(spy / "directory" / "user_script" / "script.py", os.X_OK)


TEMPLATE = """version: "0.2"
concurrency: $concurrency
env: {ID: "$tc_client_id", TOKEN: "$tc_access_token", TYPE: "$tc_worker_type", APP: "$lt_app_url"}
command: $test_discover_cmd
testRunnerCommand: echo $test ${HOME} $$x
args:
  $fixed_ip_line
"""


def test_a_versions_own_template_is_filled_in_and_not_copied_along(lab: Lab, spy: Path, scripts: Path) -> None:
    (scripts / "hyperexecute.yaml.tmpl").write_text(TEMPLATE)
    (scripts / "setup.sh").unlink()
    spied(lab, spy)
    assert yaml.safe_load((spy / "directory" / "hyperexecute.yaml").read_text()) == {
        "version": "0.2",
        "concurrency": 1,
        "env": {
            "ID": "project/autophone/a55",
            "TOKEN": TOKEN,
            "TYPE": "gecko-t-lambda-perf-a55",
            "APP": "lt://proverbial-android",
        },
        "command": "echo unit-1",
        "testRunnerCommand": "echo $test ${HOME} $x",
        "args": {"fixedIP": PHONE},
    }
    names = {path.name for path in (spy / "directory" / "user_script").iterdir()}
    assert names == {"run-worker.sh", "reboot-and-wait.sh", "print-metadata.sh"}


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("template", "hyperexecute.yaml.tmpl of version v1 gives no YAML, line 3"),
        ("list", "hyperexecute.yaml.tmpl of version v1 gives no mapping"),
        ("link", "the user scripts have a symbolic link: secret"),
        ("folder link", "the user scripts have a symbolic link: secret"),
        ("no setup", "version v1 have neither hyperexecute.yaml.tmpl nor setup.sh"),
        ("no version", "there are no user scripts of version v1: .* is no directory"),
        ("full", "the job's directory can't be made: Not a directory: "),
    ],
)
def test_user_scripts_that_cant_be_used_are_this_servers_fault(
    lab: Lab, scripts: Path, tmp_path: Path, fault: str, reason: str
) -> None:
    settings = {}
    match fault:
        case "template":
            (scripts / "hyperexecute.yaml.tmpl").write_text("version: 1\nenv: {T: '$tc_access_token\n")
        case "list":
            (scripts / "hyperexecute.yaml.tmpl").write_text("- $tc_access_token\n")
        case "link":
            (scripts / "secret").symlink_to("/etc/passwd")
        case "folder link":
            (scripts / "secret").symlink_to("/etc")
        case "no setup":
            (scripts / "setup.sh").unlink()
        case "no version":
            scripts.rename(scripts.with_name("v2"))
        case _:
            (tmp_path / "file").write_text("")
            settings["job_directory"] = tmp_path / "file" / "jobs"
    backend = lab.launcher(**settings)
    with pytest.raises(OwnFault, match=reason) as caught:
        lab.start(backend, order())
    assert TOKEN not in str(caught.value)
    assert lab.directories() == []
    assert lab.cloud.jobs == []


def test_old_directories_are_removed_and_what_a_killed_server_left_of_a_token(lab: Lab, tmp_path: Path) -> None:
    now = time.time()
    for name, age in (("job-old", 25), ("job-young", 1), ("other", 100)):
        directory = tmp_path / "jobs" / name
        directory.mkdir(parents=True)
        (directory / "hyperexecute.yaml").write_text(TOKEN)
        os.utime(directory, (now - age * 3600, now - age * 3600))
    lab.start(lab.launcher(), order())
    assert not (tmp_path / "jobs" / "job-old").exists()
    assert (tmp_path / "jobs" / "job-young").exists()
    assert not (tmp_path / "jobs" / "job-young" / "hyperexecute.yaml").exists()
    assert (tmp_path / "jobs" / "other" / "hyperexecute.yaml").exists()


def test_without_a_configured_directory_they_end_with_the_server(lab: Lab, spy: Path) -> None:
    backend = lab.launcher(job_directory=None)
    lab.start(backend, order())
    wait_until(lambda: "ended with status 3" in lab.text())
    assert backend._directories._temporary is not None
    directory = Path(backend._directories._temporary.name)
    assert directory.stat().st_mode & 0o777 == 0o700
    backend.finish(lab.deadline())
    assert not directory.exists()


# User scripts from git


def git(directory: Path, *arguments: str) -> str:
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("GIT_")},
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_AUTHOR_NAME": "a",
        "GIT_AUTHOR_EMAIL": "a@example.com",
        "GIT_COMMITTER_NAME": "a",
        "GIT_COMMITTER_EMAIL": "a@example.com",
    }
    done = subprocess.run(["git", *arguments], cwd=directory, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path, scripts: Path) -> Path:
    """A git repository of user scripts with a tag v1 and a later commit on the branch main."""
    path = tmp_path / "repository"
    scripts.rename(path)
    git(path, "init", "--quiet", "--initial-branch=main")
    git(path, "add", ".")
    git(path, "commit", "--quiet", "-m", "one")
    git(path, "tag", "v1")
    (path / "later").write_text("")
    git(path, "add", ".")
    git(path, "commit", "--quiet", "-m", "two")
    return path


def at_version(lab: Lab, tmp_path: Path, version: str) -> Path:
    """A file of projects whose user scripts have this version."""
    path = tmp_path / "version.yml"
    path.write_text(PROJECTS.replace("USER_SCRIPTS_VERSION: v1", f"USER_SCRIPTS_VERSION: {json.dumps(version)}"))
    return path


def test_a_revision_of_a_repository_is_checked_out_once(lab: Lab, spy: Path, repository: Path, tmp_path: Path) -> None:
    spied(lab, spy, user_scripts=f"file://{repository}")
    copied = spy / "directory" / "user_script"
    assert {path.name for path in copied.iterdir()} == {
        "setup.sh",
        "run-worker.sh",
        "reboot-and-wait.sh",
        "print-metadata.sh",
    }
    lab.lines.clear()
    repository.rename(tmp_path / "away")
    backend = lab.made[-1]
    lab.start(backend, order(18))
    wait_until(lambda: "ended with status 3" in lab.text())


@pytest.mark.parametrize("what", ["branch", "commit"])
def test_a_branch_or_a_commit_will_do(lab: Lab, spy: Path, repository: Path, tmp_path: Path, what: str) -> None:
    version = "main" if what == "branch" else git(repository, "rev-parse", "main")
    spied(lab, spy, user_scripts=f"file://{repository}", projects=at_version(lab, tmp_path, version))
    assert (spy / "directory" / "user_script" / "later").exists()


def test_a_branch_is_looked_at_again_and_its_old_state_will_do_where_that_fails(
    lab: Lab, spy: Path, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobdir, "GIT_AGAIN", 0.0)
    monkeypatch.setattr(jobdir, "GIT_PAUSE", 0.0)
    projects = at_version(lab, tmp_path, "main")
    spied(lab, spy, user_scripts=f"file://{repository}", projects=projects)
    backend = lab.made[-1]
    (repository / "latest").write_text("")
    git(repository, "add", ".")
    git(repository, "commit", "--quiet", "-m", "three")
    for request_id in (18, 19):
        lab.lines.clear()
        lab.start(backend, order(request_id))
        wait_until(lambda: "ended with status 3" in lab.text())
        (directory,) = [path for path in lab.directories() if path.name.startswith(f"job-mozpool-{request_id}-")]
        assert (directory / "user_script" / "latest").exists()
        if repository.exists():
            repository.rename(tmp_path / "away")


@pytest.mark.parametrize(
    ("url", "version", "reason"),
    [
        ("file:///nowhere", "v1", "revision v1 of the user scripts can't be fetched: git ended with status 128: "),
        ("file://{repository}", "v2", "revision v2 of the user scripts can't be fetched: git ended with status 128"),
        ("file://{repository}", "--upload-pack=touch x", "'--upload-pack=touch x' is not (a revision of git|right)"),
        ("file://{repository}", "a/../b", "'a/../b' is not (a revision of git|right)"),
        ("https://us3r:geheim@example.com/x", "v1", "has credentials in its URL"),
        ("https://geheim@example.com/x", "v1", "has credentials in its URL"),
        ("{folder}", "../../etc", "'../../etc' is not (the name of a folder|right)"),
        ("{folder}", "..", "'..' is not (the name of a folder|right)"),
    ],
)
def test_a_revision_that_cant_be_had_says_why(
    lab: Lab, repository: Path, tmp_path: Path, url: str, version: str, reason: str
) -> None:
    where = url.format(repository=repository, folder=tmp_path)
    backend = lab.launcher(user_scripts=where, projects=at_version(lab, tmp_path, version))
    with pytest.raises(OwnFault, match=reason) as caught:
        lab.start(backend, order())
    assert "geheim" not in str(caught.value)
    assert lab.cloud.jobs == []


def test_a_git_server_that_is_silent_is_given_up_and_left_alone_for_a_while(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, silent: str
) -> None:
    monkeypatch.setattr(jobdir, "GIT_LIMIT", 1.0)
    backend = lab.launcher(user_scripts=f"http://{silent}/scripts.git")
    for _ in range(2):
        begun = time.monotonic()
        with pytest.raises(OwnFault, match=r"can't be fetched: git was not done within [\d.]+ s and was killed"):
            lab.start(backend, order())
    assert time.monotonic() - begun < 0.9


@pytest.fixture
def silent() -> Iterator[str]:
    """HOST:PORT where connections are taken and nothing is said."""
    import socket

    with socket.create_server(("127.0.0.1", 0), backlog=50) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


# A program that fails


def test_a_program_that_fails_is_told_of_and_may_be_run_again(lab: Lab) -> None:
    write_hyperexecute(lab.program, lab.cloud.url, fault=ProgramFault.FAILS)
    backend = lab.launcher()
    lab.start(backend, order())
    reason = "hyperexecute ended with status 1: Error: unable to update the binary: no space left on device"
    with pytest.raises(HardwareError, match=f"job start of {PHONE} failed: {reason}"):
        lab.look_until(backend, order(), lambda job: True)
    write_hyperexecute(lab.program, lab.cloud.url)
    lab.start(backend, order())
    lab.look_until(backend, order(), lambda job: True)
    assert len(lab.cloud.jobs) == 1


def test_one_that_fails_although_it_has_created_the_job_is_not_run_again(lab: Lab) -> None:
    write_hyperexecute(lab.program, lab.cloud.url, fault=ProgramFault.FAILS_AFTER)
    backend = lab.launcher()
    lab.start(backend, order())
    wait_until(lambda: "ended with status 1" in lab.text())
    lab.look_until(backend, order(), lambda job: True)
    lab.start(backend, order())
    assert len(lab.cloud.jobs) == 1


@pytest.mark.parametrize("fault", [ProgramFault.HANGS, ProgramFault.HANGS_AFTER])
def test_one_that_hangs_is_killed(lab: Lab, monkeypatch: pytest.MonkeyPatch, fault: ProgramFault) -> None:
    limit = 2.0 if fault is ProgramFault.HANGS else 8.0
    monkeypatch.setattr(launcher, "PROGRAM_LIMIT", limit)
    write_hyperexecute(lab.program, lab.cloud.url, fault=fault)
    backend = lab.launcher()
    lab.start(backend, order())
    wait_until(lambda: f"hyperexecute was not done within {limit:g} s and was killed" in lab.text())
    if fault is ProgramFault.HANGS:
        with pytest.raises(HardwareError, match="was not done within 2 s and was killed"):
            lab.look_until(backend, order(), lambda job: True)
    else:
        lab.look_until(backend, order(), lambda job: True)


def test_what_a_careless_program_prints_is_masked(lab: Lab) -> None:
    write_hyperexecute(lab.program, lab.cloud.url, leaks=True)
    backend = lab.launcher()
    lab.start(backend, order())
    wait_until(lambda: "ended with status 0" in lab.text())
    assert f"using {USER}:***" in lab.text()
    assert KEY not in lab.text()
    assert TOKEN not in lab.text()


def test_a_babbling_program_fills_neither_log_nor_memory(lab: Lab) -> None:
    lab.program.write_text("#!/bin/bash\nhead -c 3000000 /dev/zero | tr '\\0' x; echo; seq 1000; exit 4\n")
    backend = lab.launcher()
    lab.start(backend, order())
    wait_until(lambda: "ended with status 4" in lab.text())
    assert len(lab.lines) == launcher.LINES + 1
    assert max(len(line) for _, line in lab.lines) < 400
    assert "801 more lines" in lab.text()
    with pytest.raises(HardwareError, match="ended with status 4: 1000"):
        lab.look_until(backend, order(), lambda job: True)


PARENT = """#!/bin/bash
sleep 600 &
echo $! > {out}/child
echo $$ > {out}/parent
wait
"""


def hanging(lab: Lab, tmp_path: Path) -> Callable[[], list[int]]:
    """A program that starts another, and the numbers of both once they run."""
    lab.program.write_text(PARENT.format(out=tmp_path))

    def numbers() -> list[int]:
        wait_until(lambda: (tmp_path / "parent").exists() and (tmp_path / "parent").read_text())
        return [int((tmp_path / name).read_text()) for name in ("child", "parent")]

    return numbers


def test_a_program_ends_with_the_lease_and_all_that_it_started(lab: Lab, tmp_path: Path) -> None:
    numbers = hanging(lab, tmp_path)
    lease = Lease(lab.context.clock, 600.0)
    lease.renew(lab.context.clock.monotonic())
    lab.context = replace(lab.context, lease=lease)
    lab.start(lab.launcher(), order())
    both = numbers()
    lease.end()
    wait_until(lambda: not any(runs(number) for number in both))
    wait_until(lambda: "was killed because it is not wanted any more, or this server must not act" in lab.text())


def test_stopping_ends_a_start_that_is_under_way(lab: Lab, tmp_path: Path) -> None:
    numbers = hanging(lab, tmp_path)
    backend = lab.launcher()
    lab.start(backend, order())
    both = numbers()
    wait_until(lambda: backend.stop(phone(), lab.deadline()))
    wait_until(lambda: not any(runs(number) for number in both))
    assert lab.cloud.jobs == []


SERVER = """
import json, sys
from pathlib import Path
from mozpool.bmm.backends.lambdatest import LambdaTestLauncher
from mozpool.bmm.cutoff import Cutoff
from mozpool.bmm.interfaces import NO_MAC, BackendContext, JobOrder, Target
from mozpool.clock import Clock, Deadline
from mozpool.config import LambdaTest
from mozpool.lease import Lease, no_cut
clock, cutoff = Clock(), Cutoff()
given = {name: Path(value) if name in ("projects", "job_directory") else value
         for name, value in json.loads(sys.argv[1]).items()}
lease = Lease(clock, None, no_cut, cutoff.leash)
backend = LambdaTestLauncher(BackendContext(clock, None, speed=50, lambdatest=LambdaTest(**given), lease=lease))
backend._born -= 60
device = Target("R5CX0000001", "R5CX0000001", NO_MAC)
backend.start(device, JobOrder(17, "a55-perf", (device.name,)), Deadline(clock, 60))
sys.stdin.read()
"""


def test_a_program_ends_with_a_server_that_is_killed_and_so_does_all_that_it_started(lab: Lab, tmp_path: Path) -> None:
    numbers = hanging(lab, tmp_path)
    names = ("projects", "username", "access_key", "hyperexecute", "user_scripts", "job_directory")
    given = {name: str(getattr(lab.settings, name)) for name in (*names, "devices_api", "jobs_api")}
    server = subprocess.Popen([sys.executable, "-c", SERVER, json.dumps(given)], stdin=subprocess.PIPE)
    try:
        both = numbers()
        assert all(runs(number) for number in both)
        server.kill()
        wait_until(lambda: not any(runs(number) for number in both))
    finally:
        server.kill()
        server.communicate(timeout=20)


def test_a_server_that_stops_lets_a_run_end_but_begins_none(lab: Lab) -> None:
    write_hyperexecute(lab.program, lab.cloud.url, slow=1.0)
    backend = lab.launcher()
    lab.start(backend, order())
    backend.finish(lab.deadline())
    assert len(lab.cloud.jobs) == 1
    assert "ended with status 0" in lab.text()
    with pytest.raises(OwnFault, match="this server stops"):
        backend.start(phone(OTHER), order(18, OTHER), lab.deadline())


def test_a_server_that_stops_kills_a_run_that_hangs(lab: Lab, tmp_path: Path) -> None:
    numbers = hanging(lab, tmp_path)
    backend = lab.launcher()
    lab.start(backend, order())
    both = numbers()
    backend.finish(lab.deadline(0.2))
    wait_until(lambda: not any(runs(number) for number in both))


# Stopping


def test_other_peoples_jobs_are_left_alone(lab: Lab) -> None:
    backend = lab.launcher()
    theirs = lab.cloud.create(foreign(PHONE), USER)
    other_pool = lab.cloud.create(JobSpec(("tcdp", "x", OTHER, "mozpool2-5"), "w", fixed=OTHER), USER)
    assert backend.stop(phone(), lab.deadline()) is True
    assert backend.stop(phone(OTHER), lab.deadline()) is True
    assert [job.ended for job in lab.cloud.jobs] == [False, False]
    jobs = backend.account.jobs("LambdaTest", "job status", lab.deadline())
    for job in jobs:
        with pytest.raises(OwnFault, match=f"job {job.number} is not one of this pool's"):
            backend.stop_job(job, lab.deadline())
    assert {job.number for job in jobs} == {theirs.number, other_pool.number}


def test_an_orphan_is_found_and_stopped(lab: Lab) -> None:
    lab.cloud.create(JobSpec(("tcdp", "a55-perf", PHONE, "mozpool-4711"), "w", fixed=PHONE), USER)
    backend = lab.launcher()
    (orphan,) = backend.own_jobs(lab.deadline())
    assert orphan.request_id == 4711
    assert backend.stop_job(orphan.job, lab.deadline()) is None
    wait_until(lambda: lab.cloud.jobs[0].ended)


def test_a_cloud_that_will_not_stop_a_job_is_quoted(lab: Lab) -> None:
    backend = lab.launcher(stop_path="/v9/{id}/stop")
    lab.start(backend, order())
    lab.look_until(backend, order(), lambda job: True)
    assert backend.stop(phone(), lab.deadline()) is False
    assert "is to stop: the cloud answered 404" in lab.text()


def test_without_a_way_to_stop_jobs_it_is_only_looked_whether_one_is_left(lab: Lab) -> None:
    backend = lab.launcher(stop_path="")
    lab.start(backend, order())
    lab.look_until(backend, order(), lambda job: True)
    assert backend.stop(phone(), lab.deadline()) is False
    assert not any(line.startswith("PUT") for line in lab.cloud.web.asked)


# A cloud that is down, slow, or talks nonsense

FAULTS = {
    "down": (Fault(down=True), "closed the connection without an answer"),
    "500": (Fault(status=500), "answered 500"),
    "404": (Fault(status=404), "answered 404 where 200 was expected"),
    "401": (Fault(status=401), "answered 401: it refuses the user name or the access key"),
    "redirect": (Fault(status=302), "answered 302, a redirect, which is not followed"),
    "429": (Fault(status=429), "answered 429: it was asked too often"),
    "429 with nonsense": (Fault(status=429, retry_after="soon"), "answered 429"),
    "slow": (Fault(slow=30.0), "no answer within 0.3 s"),
    "html": (Fault(nonsense=Nonsense.HTML), "is not JSON: '<!DOCTYPE"),
    "half": (Fault(nonsense=Nonsense.HALF), "is not JSON"),
    "empty": (Fault(nonsense=Nonsense.EMPTY), "is not JSON: ''"),
    "list": (Fault(nonsense=Nonsense.LIST), "its answer has no data"),
    "types": (Fault(nonsense=Nonsense.TYPES), "none has a udid and a status|without a usable job_number"),
    "keys": (Fault(nonsense=Nonsense.KEYS), "none has a udid and a status|without a usable job_number"),
}

CALLS: dict[str, Callable[[LambdaTestLauncher, Deadline], object]] = {
    "status": lambda backend, deadline: backend.status(phone(), deadline),
    "start": lambda backend, deadline: backend.start(phone(OTHER), order(18, OTHER), deadline),
    "look": lambda backend, deadline: backend.look(phone(), order(), deadline),
    "stop": lambda backend, deadline: backend.stop(phone(), deadline),
    "test": lambda backend, deadline: backend.test("lambdatest:x", deadline),
    "initiated": lambda backend, deadline: backend.initiated(deadline),
    "own_jobs": lambda backend, deadline: backend.own_jobs(deadline),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_cloud_is_the_accounts_and_passes(lab: Lab, fault: str, call: str) -> None:
    lab.cloud.create(foreign(PHONE), USER)
    backend = lab.launcher()
    what, reason = FAULTS[fault]
    lab.cloud.web.set_fault(what)
    begun = time.monotonic()
    with pytest.raises(LaneError, match=reason) as caught:
        CALLS[call](backend, lab.deadline(0.3 if fault == "slow" else ENOUGH))
    assert time.monotonic() - begun < 20
    assert caught.value.culprit == f"LambdaTest account {USER}@{lab.cloud.url.removeprefix('http://')}"
    assert KEY not in str(caught.value)
    assert len(str(caught.value)) < 400
    lab.cloud.web.set_fault(None)
    if fault != "slow":
        wait_until(lambda: works(lambda: backend.test("lambdatest:x", lab.deadline())))
        wait_until(lambda: works(lambda: backend.own_jobs(lab.deadline())))
    assert len(lab.cloud.jobs) == 1


def works(act: Callable[[], object]) -> bool:
    with suppress(LaneError):
        act()
        return True
    return False


def test_one_failure_in_between_is_not_worth_mentioning(lab: Lab) -> None:
    lab.cloud.web.set_fault(Fault(status=502), times=2)
    lab.launcher().phones(lab.deadline())
    assert len(lab.cloud.web.asked) == 3


def test_a_cloud_that_was_asked_too_often_is_left_alone_for_as_long_as_it_wants(lab: Lab) -> None:
    context = replace(lab.context, speed=1.0)
    backend = LambdaTestLauncher(context)
    lab.cloud.web.set_fault(too_many(30))
    for _ in range(5):
        with pytest.raises(LaneError, match="answered 429"):
            backend.phones(lab.deadline())
    assert len(lab.cloud.web.asked) == 1
    assert 25 < backend.account._phones._again_at - context.clock.monotonic() <= 30


def test_it_is_not_left_alone_for_longer_than_a_minute(lab: Lab) -> None:
    context = replace(lab.context, speed=1.0)
    backend = LambdaTestLauncher(context)
    lab.cloud.web.set_fault(too_many(10**20))
    with pytest.raises(LaneError, match="answered 429"):
        backend.phones(lab.deadline())
    assert backend.account._phones._again_at - context.clock.monotonic() <= 60


def test_all_phones_of_an_account_share_its_answers_and_its_failures(lab: Lab) -> None:
    context = replace(lab.context, speed=1.0)
    backend, probe = LambdaTestLauncher(context), LambdaTestProbe(context)
    lab.cloud.web.set_fault(Fault(slow=0.5))
    results: list[bool] = []

    def ask() -> None:
        for _ in range(2):
            results.append(backend.status(phone(), lab.deadline()).free)
            results.append(probe.ping(phone(OTHER), lab.deadline()))

    threads = [threading.Thread(target=ask) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(ENOUGH)
    assert results == [True] * 80
    assert len(lab.cloud.web.asked) <= 6

    lab.cloud.web.asked.clear()
    lab.cloud.web.set_fault(Fault(down=True))
    other = LambdaTestLauncher(replace(context, lambdatest=replace(lab.settings, status_age=0.0)))
    begun = time.monotonic()
    for _ in range(90):
        with pytest.raises(LaneError):
            other.status(phone(), lab.deadline())
    assert time.monotonic() - begun < 30
    assert len(lab.cloud.web.asked) < 30


def test_who_has_little_time_does_not_spoil_the_answer_for_others(lab: Lab) -> None:
    lab.cloud.web.set_fault(Fault(slow=1.0))
    backend = lab.launcher(status_age=10.0 * SPEED)
    with pytest.raises(LaneError, match=r"no answer within 0.2 s"):
        backend.phones(lab.deadline(0.2))
    assert len(backend.phones(lab.deadline())) == 4
    assert len(lab.cloud.web.asked) == 1


class Endless(Service):
    """Phones as they should be, and lists of jobs without end."""

    def __init__(self, clock: Any, same: bool) -> None:
        self.web = WebServer("jobs without end", self._answer, clock, "127.0.0.1", 0)
        self._same = same

    def _answer(self, call: Call) -> Answer:
        top = 10**9 if self._same else int(call.query.get("cursor", 10**9)) - 1
        rows = [
            {"job_number": top - number, "id": f"id{top - number}", "status": "running", "job_label": '["x"]'}
            for number in range(int(call.query["limit"]))
        ]
        return Answer(200, {"data": rows})


@pytest.mark.parametrize("same", [True, False])
def test_a_list_without_end_is_given_up(lab: Lab, same: bool) -> None:
    with Endless(lab.context.clock, same) as service:
        backend = lab.launcher(jobs_api=service.url)
        if same:
            assert len(backend.account.jobs("x", "job status", lab.deadline())) == account.PAGE
        else:
            with pytest.raises(LaneError, match="lists more than 2000 jobs that have not ended"):
                backend.initiated(lab.deadline())
        assert len(service.web.asked) <= account.LIVE_PAGES


def test_jobs_on_all_pages_count(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(account, "PAGE", 5)
    for number in range(13):
        lab.cloud.create(JobSpec((f"mozpool-{number}", PHONE), "w", fixed=PHONE), USER)
    backend = lab.launcher(status_age=60.0 * SPEED)
    assert backend.initiated(lab.deadline()) == 13
    assert {each.request_id for each in backend.own_jobs(lab.deadline())} == set(range(13))
    asked = [line for line in lab.cloud.web.asked if "status=" in line]
    assert asked[0] == (
        "GET /v1.0/jobs?show_test_summary=false&is_cursor_base_pagination=true&limit=5"
        "&status=created,initiated,running,in_progress"
    )
    assert [line.rpartition("cursor=")[2] for line in asked[1:]] == ["9830", "9825"]


# What a server lacks


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"username": ""}, r"neither \[lambdatest\] username nor LT_USERNAME is set"),
        ({"access_key": ""}, r"neither \[lambdatest\] access_key nor LT_ACCESS_KEY is set"),
        ({"username": "me@example.com"}, "'me@example.com' is an e-mail address where the account's short user name"),
        ({"username": "two words"}, "is not one word of ASCII"),
        ({"access_key": "geheim\n"}, "is not one word of ASCII"),
    ],
)
def test_without_usable_credentials_there_is_no_backend(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], reason: str
) -> None:
    monkeypatch.delenv("LT_USERNAME", raising=False)
    monkeypatch.delenv("LT_ACCESS_KEY", raising=False)
    for backend in (LambdaTestLauncher, LambdaTestProbe):
        with pytest.raises(OwnFault, match=reason) as caught:
            backend(replace(lab.context, lambdatest=replace(lab.settings, **settings)))
        assert "geheim" not in str(caught.value)


def test_credentials_may_be_in_the_environment(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LT_USERNAME", USER)
    monkeypatch.setenv("LT_ACCESS_KEY", KEY)
    assert len(lab.launcher(username="", access_key="").phones(lab.deadline())) == 4


@pytest.mark.parametrize(
    ("settings", "wanted", "reason"),
    [
        ({"hyperexecute": "/nowhere/hyperexecute"}, order(), "there is no program /nowhere/hyperexecute"),
        ({"projects": None}, order(), r"\[lambdatest\] projects is not set"),
        ({"projects": Path("/nowhere.yml")}, order(), "/nowhere.yml: No such file or directory"),
        ({}, order(project="other"), "has no project other"),
        ({}, order(project="no-token"), r"no-token has no token \(gecko_t_lambda_none in the environment\)"),
    ],
)
def test_what_a_start_needs_and_this_server_lacks_is_its_own_fault(
    lab: Lab, settings: dict[str, Any], wanted: JobOrder, reason: str
) -> None:
    with pytest.raises(OwnFault, match=reason):
        lab.launcher(**settings).start(phone(), wanted, lab.deadline())
    assert lab.cloud.jobs == []


@pytest.mark.parametrize("word", ["a,b", "--x", "", "a b", "x\n", "x" * 65])
def test_what_cant_be_a_label_is_refused(lab: Lab, word: str) -> None:
    with pytest.raises(HardwareError, match="can't be a label"):
        lab.launcher().start(phone(), order(project=word), lab.deadline())
    with pytest.raises(HardwareError, match="can't be a label"):
        lab.launcher().start(phone(word), order(17, word), lab.deadline())


def test_the_projects_are_read_anew_when_their_file_changes(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = lab.launcher()
    with pytest.raises(OwnFault, match="has no project later"):
        backend.start(phone(), order(project="later"), lab.deadline())
    monkeypatch.setenv("gecko_t_later", "some-token")
    assert lab.settings.projects is not None
    later = "  later:\n    TASKCLUSTER_CLIENT_ID: x\n    TC_WORKER_TYPE: gecko-t-later\n"
    lab.settings.projects.write_text(PROJECTS.replace("device_groups:", f"{later}device_groups:"))
    lab.start(backend, order(project="later"))
    lab.look_until(backend, order(project="later"), lambda job: True)
    assert lab.cloud.jobs[0].spec.worker_type == "gecko-t-later"


def test_starts_are_one_lane_of_the_account_and_the_rest_is_another(lab: Lab) -> None:
    backend = lab.launcher()
    place = f"{USER}@{lab.cloud.url.removeprefix('http://')}"
    assert backend.lane(phone(), start=False) == f"lambdatest:{place}"
    assert backend.lane(phone(), start=True) == f"lambdatest:{place}:start"
