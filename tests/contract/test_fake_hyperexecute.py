# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The stand-in for hyperexecute as a process of its own, run as the real one is: what it takes, prints and does."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from mozpool.clock import Clock, SimClock
from mozpool.fakes.hyperexecute import ProgramFault, Refused, read_job, write_hyperexecute
from mozpool.fakes.lambdatest import ACCOUNT
from mozpool.fakes.phonecloud import FIRST_JOB
from mozpool.fakes.webserver import Fault, Nonsense, too_many
from tests.processes import runs
from tests.unit.cloud_support import CERTAIN, WORKER_TYPE, fake, job_environment, job_yaml, write_job

ARGUMENTS = ("--no-track", "--labels", "tcdp,a55,R5CX0000001", "--exclude-external-binaries")
PATIENCE = 60.0


@pytest.fixture
def cloud():
    with fake(clock=SimClock(), timings=CERTAIN) as cloud:
        yield cloud


@pytest.fixture
def program(cloud, tmp_path) -> Path:
    return write_hyperexecute(tmp_path / "hyperexecute", cloud.url)


@pytest.fixture
def directory(tmp_path) -> Path:
    return write_job(tmp_path / "job")


def run(program, directory, *arguments, environment=None):
    return subprocess.run(
        [str(program), *(arguments or ARGUMENTS)],
        cwd=directory,
        env=job_environment() if environment is None else environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def change(content: dict, path: str, value: Any) -> dict:
    """Set one value of a job's YAML; ``...`` takes it away."""
    *way, last = path.split(".")
    place = content
    for key in way:
        place = place[key]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return content


def test_it_creates_the_job_and_prints_where_it_is(cloud, program, directory):
    done = run(program, directory)
    assert (done.returncode, done.stderr) == (0, "")
    (job,) = cloud.jobs
    lines = done.stdout.splitlines()
    assert f"Job ID: {job.id}" in lines
    assert f"Job Number: {FIRST_JOB}" in lines
    assert f"Job Link: https://hyperexecute.lambdatest.com/hyperexecute/task?jobId={job.id}" in lines
    assert job.spec.labels == ("tcdp", "a55", "R5CX0000001")
    assert (job.spec.fixed, job.spec.worker_type, job.spec.queue_timeout) == ("R5CX0000001", WORKER_TYPE, 600)
    for secret in (ACCOUNT[1], "tc-s3cret-token"):
        assert secret not in done.stdout


def test_it_can_ask_for_several_phones_of_a_type(cloud, program, directory):
    content = change(job_yaml(fixed=None, concurrency=3), "framework.args.devices", ["Galaxy A55 5G-14"])
    assert run(program, write_job(directory, content)).returncode == 0
    (job,) = cloud.jobs
    assert (job.spec.concurrency, job.spec.patterns, job.spec.fixed) == (3, ("Galaxy A55 5G-14",), None)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--labels", "a,b", "--exclude-external-binaries"), "--no-track"),
        (("--no-track", "--exclude-external-binaries"), "--labels"),
        (("--no-track", "--labels", "a,b"), "--exclude-external-binaries"),
        ((*ARGUMENTS, "--user", "lt-user"), "--user"),
        (("--no-track", "--label", "a,b", "--exclude-external-binaries"), "--labels"),
        (("--no-track", "--labels", "a,,b", "--exclude-external-binaries"), "empty label"),
    ],
)
def test_it_takes_just_the_arguments_of_the_facts(cloud, program, directory, arguments, reason):
    done = run(program, directory, *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: ")
    assert reason in done.stderr
    assert cloud.jobs == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"LT_USERNAME": ""}, "LT_USERNAME and LT_ACCESS_KEY have to be set"),
        ({"LT_ACCESS_KEY": ""}, "LT_USERNAME and LT_ACCESS_KEY have to be set"),
        ({"LT_USERNAME": "lt-user@example.com"}, "the short user name, not the e-mail"),
        ({"LT_ACCESS_KEY": "wrong"}, "the job was not created: 401"),
        ({"TASKCLUSTER_ACCESS_TOKEN": ""}, "TASKCLUSTER_ACCESS_TOKEN is not set in the environment"),
    ],
)
def test_it_needs_the_credentials_in_its_environment(cloud, program, directory, changes, reason):
    done = run(program, directory, environment=job_environment() | changes)
    assert done.returncode == 1
    assert reason in done.stderr
    assert cloud.jobs == []


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        ("version", 0.2, "version: 0.2 is not str"),
        ("version", ..., "version is missing"),
        ("autosplit", False, "autosplit: False is not True"),
        ("runson", "linux", "runson: 'linux' is not 'android'"),
        ("concurrency", "1", "concurrency: '1' is not int"),
        ("concurrency", 0, "concurrency: 0 is not from 1 to 100"),
        ("concurrency", 2, "testDiscovery.command ended with 0 and gave 1 lines, not 2: \"echo 'task 1'\""),
        ("testDiscovery", ..., "testDiscovery is missing"),
        ("testDiscovery.mode", "dynamic", "testDiscovery.mode: 'dynamic' is not 'static'"),
        ("testDiscovery.command", "exit 3", "testDiscovery.command ended with 3"),
        ("env", ..., "env is missing"),
        ("env.TC_WORKER_TYPE", ..., "env.TC_WORKER_TYPE is missing"),
        ("env.TC_WORKER_TYPE", "$tc_worker_type", "env.TC_WORKER_TYPE was not filled in"),
        ("env.TASKCLUSTER_ACCESS_TOKEN", "${OTHER}", "env.TASKCLUSTER_ACCESS_TOKEN: OTHER is not set"),
        ("env.TASKCLUSTER_CLIENT_ID", 7, "env.TASKCLUSTER_CLIENT_ID is not str"),
        ("testRunnerCommand", " ", "testRunnerCommand is empty"),
        ("testRunnerCommand", "bash user_script/gone.sh", "user_script/gone.sh: no such file"),
        ("pre", [], "pre: [] is not a list of texts"),
        ("pre", "bash user_script/set-up.sh", "pre: 'bash user_script/set-up.sh' is not list"),
        ("post", ..., "post is missing"),
        ("differentialUpload.ttlHours", 24, "differentialUpload.ttlHours: 24 is not 360"),
        ("runtime", ..., "runtime is missing"),
        ("runtime", [{"version": "17"}], "runtime.language is missing"),
        ("shell", "sh", "shell: 'sh' is not 'bash'"),
        ("frameworkStatusOnly", ..., "frameworkStatusOnly is missing"),
        ("dynamicAlocation", True, "dynamicAlocation: no such key"),
        ("framework", [], "framework: [] is not dict"),
        ("framework.name", "appium", "framework.name: 'appium' is not 'raw'"),
        ("framework.args.devices", [], "framework.args.devices: [] is not a list of texts"),
        ("framework.args.devices", ["("], "framework.args.devices: '('"),
        ("framework.args.fixedIP", "A,B", "framework.args.fixedIP: 'A,B' is not one UDID"),
        ("framework.args.privateCloud", False, "framework.args.privateCloud: False is not True"),
        ("framework.args.queueTimeout", 0, "framework.args.queueTimeout: 0 is not a number of seconds"),
        ("framework.args.fixedIp", "R5CX0000001", "framework.args.fixedIp: no such key"),
        ("framework.args.buildName", ..., "framework.args.buildName is missing"),
    ],
)
def test_it_sees_what_is_wrong_with_the_yaml(directory, path, value, reason):
    read_job(directory, job_environment())
    write_job(directory, change(job_yaml(), path, value))
    with pytest.raises(Refused) as caught:
        read_job(directory, job_environment())
    assert reason in str(caught.value)


def test_it_says_what_is_wrong_and_creates_nothing(cloud, program, directory):
    done = run(program, write_job(directory, change(job_yaml(), "version", ...)))
    assert (done.returncode, done.stderr, cloud.jobs) == (1, "Error: version is missing\n", [])
    done = run(program, write_job(directory, job_yaml(fixed="ELSEWHERE")))
    assert (done.returncode, cloud.jobs) == (1, [])
    assert "fixedIP: 'ELSEWHERE' is not a phone of this account" in done.stderr


def test_many_run_at_a_time(cloud, program, directory):
    processes = [
        subprocess.Popen([str(program), *ARGUMENTS], cwd=directory, env=job_environment(), stdout=subprocess.DEVNULL)
        for _ in range(12)
    ]
    assert [process.wait(PATIENCE) for process in processes] == [0] * 12
    assert len({job.id for job in cloud.jobs}) == 12


def test_one_fixed_phone_is_for_one_unit_only(program, directory):
    done = run(program, write_job(directory, job_yaml(concurrency=2)))
    assert (done.returncode, done.stderr) == (
        1,
        "Error: framework.args.fixedIP: it means one phone, but concurrency is 2\n",
    )


def test_the_user_scripts_have_to_be_there_without_the_template(program, directory):
    template = directory / "user_script" / "hyperexecute.yaml.tmpl"
    template.touch()
    assert "it is filled in, and not copied along" in run(program, directory).stderr
    template.unlink()
    (directory / "user_script").rename(directory / "user_scripts")
    assert run(program, directory).stderr == "Error: user_script: no such directory\n"


def test_the_yaml_has_to_be_there_and_to_be_yaml(program, directory):
    (directory / "hyperexecute.yaml").write_text("a: [")
    assert run(program, directory).stderr.startswith("Error: hyperexecute.yaml: while parsing")
    (directory / "hyperexecute.yaml").write_text("- a")
    assert "is not a mapping" in run(program, directory).stderr
    (directory / "hyperexecute.yaml").unlink()
    assert run(program, directory).stderr == "Error: hyperexecute.yaml: No such file or directory\n"


def test_it_can_fail_before_and_after_the_job_was_created(cloud, program, directory):
    write_hyperexecute(program, cloud.url, fault=ProgramFault.FAILS)
    done = run(program, directory)
    assert (done.returncode, len(cloud.jobs)) == (1, 0)
    assert done.stderr.startswith("Error: unable to update")
    write_hyperexecute(program, cloud.url, fault=ProgramFault.FAILS_AFTER)
    done = run(program, directory)
    assert (done.returncode, len(cloud.jobs)) == (1, 1)
    assert f"jobId={cloud.jobs[0].id}" in done.stdout


@pytest.mark.parametrize(
    ("fault", "last", "jobs"), [(ProgramFault.HANGS, "HyperExecute CLI", 0), (ProgramFault.HANGS_AFTER, "Job Link", 1)]
)
def test_it_can_hang_and_has_printed_its_lines_by_then(cloud, program, directory, fault, last, jobs):
    write_hyperexecute(program, cloud.url, fault=fault)
    process = subprocess.Popen(
        [str(program), *ARGUMENTS], cwd=directory, env=job_environment(), stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        while not process.stdout.readline().startswith(last):
            assert process.poll() is None
        assert len(cloud.jobs) == jobs
        assert runs(process.pid)
        process.kill()
    assert process.returncode == -9


def test_it_can_be_slow(cloud, program, directory):
    write_hyperexecute(program, cloud.url, slow=0.3)
    before = Clock().monotonic()
    assert run(program, directory).returncode == 0
    assert Clock().monotonic() - before >= 0.3


def test_it_can_leak_what_must_be_masked(cloud, program, directory):
    write_hyperexecute(program, cloud.url, leaks=True)
    done = run(program, directory)
    assert ACCOUNT[1] in done.stdout
    assert "tc-s3cret-token" in done.stdout


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (Fault(down=True), "the job was not created"),
        (Fault(status=500), "the job was not created: 500"),
        (too_many(30), "the job was not created: 429"),
        (Fault(nonsense=Nonsense.LIST), "the answer makes no sense"),
        (Fault(nonsense=Nonsense.HTML), "the job was not created"),
    ],
)
def test_it_fails_when_the_cloud_does(cloud, program, directory, fault, reason):
    cloud.web.set_fault(fault)
    done = run(program, directory)
    assert done.returncode == 1
    assert reason in done.stderr
    assert "Traceback" not in done.stderr


def test_it_fails_when_nobody_listens(program, directory, cloud):
    cloud.stop()
    done = run(program, directory)
    assert done.returncode == 1
    assert "refused" in done.stderr
