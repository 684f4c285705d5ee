# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Our own user scripts, run as a cloud's host would run them: with an adb, a curl and a worker that are stand-ins."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from mozpool import resources

SCRIPTS = resources.path("scripts", "lambdatest")
TOKEN = "tc-s3cret"

ADB = """#!/bin/bash
echo "$*" >> "$STATE/adb"
case "$*" in
devices) printf 'List of devices attached\\n'; cat "$STATE/phones" ;;
*boot_id) if [ -e "$STATE/down" ] && [ "$(wc -l < "$STATE/adb")" -lt "$(cat "$STATE/down")" ]; then exit 1; fi
          cat "$STATE/boot" ;;
*boot_completed) echo 1 ;;
*reboot) if [ -e "$STATE/stuck" ]; then exit 0; fi; echo boot-2 > "$STATE/boot" ;;
esac
"""

CURL = """#!/bin/bash
echo "$*" >> "$STATE/curl"
while [ $# -gt 1 ]; do [ "$1" = --output ] && output=$2; shift; done
cat > "$output" <<'END'
#!/bin/bash
echo "$(basename "$0") $*" >> "$STATE/worker"
env > "$STATE/$(basename "$0").environment"
case "$1" in
new-ed25519-keypair) echo key > "$3" ;;
worker-runner.yml) cp "$1" "$STATE/worker-runner.json"; stat -c %a "$1" >> "$STATE/worker"
    echo '{"lastTaskUrl": "https://tc.example.com/tasks/abc/runs/0"}' > generic-worker-metadata.json
    exit "$(cat "$STATE/status" 2>/dev/null || echo 0)" ;;
esac
END
"""


@dataclass
class Host:
    """The machine that a phone hangs on."""

    root: Path

    @property
    def work(self) -> Path:
        return self.root / "home" / "taskcluster"

    def run(self, script: str, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        env = {
            "PATH": f"{self.root / 'bin'}:{os.environ['PATH']}",
            "HOME": str(self.root / "home"),
            "STATE": str(self.root),
            "PHONE_LIMIT": "1",
            "BOOT_PAUSE": "0.01",
            "TASKCLUSTER_CLIENT_ID": "project/autophone/a55",
            "TASKCLUSTER_ACCESS_TOKEN": TOKEN,
            "TC_WORKER_TYPE": "gecko-t-lambda-perf-a55",
            "LT_ACCESS_KEY": "lt-s3cret",
            "HYE_JOB_NUMBER": "9822",
            "JOB_ID": "29be9ac1-0f63-4b84-a80f-5c7b5c541725",
            "HostIP": "10.1.2.3",
            **environ,
        }
        command = [str(SCRIPTS / script) if "/" not in script else script, *arguments]
        done = subprocess.run(command, env=env, cwd=self.root, capture_output=True, text=True, timeout=60)
        assert TOKEN not in done.stdout + done.stderr
        return done

    def phones(self, *serials: str) -> None:
        (self.root / "phones").write_text("".join(f"{serial}\tdevice\n" for serial in serials))

    def said(self, program: str) -> list[str]:
        path = self.root / program
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def host(tmp_path: Path) -> Host:
    for name, text in (("adb", ADB), ("curl", CURL)):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    (tmp_path / "home").mkdir()
    (tmp_path / "boot").write_text("boot-1\n")
    made = Host(tmp_path)
    made.phones("R5CX0000001")
    return made


def test_a_job_goes_from_its_set_up_to_its_metadata(host: Host) -> None:
    done = host.run("setup.sh")
    assert done.returncode == 0, done.stderr
    assert "mozpool: the phone is R5CX0000001" in done.stdout
    assert len(host.said("curl")) == 4
    done = host.run("run-worker.sh")
    assert done.returncode == 0, done.stderr
    config = json.loads((host.root / "worker-runner.json").read_text())
    assert config["provider"] == {
        "providerType": "standalone",
        "rootURL": "https://firefox-ci-tc.services.mozilla.com",
        "clientID": "project/autophone/a55",
        "accessToken": TOKEN,
        "workerPoolID": "proj-autophone/gecko-t-lambda-perf-a55",
        "workerGroup": "lambda",
        "workerID": "R5CX0000001",
    }
    assert config["workerConfig"]["numberOfTasksToRun"] == 1
    assert host.said("worker")[-1] == "600"
    assert not (host.work / "worker-runner.yml").exists()
    done = host.run("print-metadata.sh")
    assert done.stdout.splitlines() == [
        "generic-worker-metadata.json contents:",
        '{"lastTaskUrl": "https://tc.example.com/tasks/abc/runs/0"}',
        "",
    ]


def test_the_worker_has_no_secret_in_its_environment(host: Host) -> None:
    host.run("setup.sh")
    host.run("run-worker.sh")
    seen = (host.root / "start-worker.environment").read_text()
    assert "s3cret" not in seen
    assert "TC_WORKER_TYPE=" in seen


def test_a_worker_that_fails_fails_the_job_and_leaves_no_token(host: Host) -> None:
    host.run("setup.sh")
    (host.root / "status").write_text("71")
    done = host.run("run-worker.sh")
    assert done.returncode == 71
    assert "the worker has ended with status 71" in done.stdout
    assert not (host.work / "worker-runner.yml").exists()


def test_what_is_fetched_already_is_not_fetched_again(host: Host) -> None:
    host.run("setup.sh")
    host.run("setup.sh")
    assert len(host.said("curl")) == 4
    host.run("setup.sh", WORKER_VERSION="88.0.0")
    assert len(host.said("curl")) == 8


@pytest.mark.parametrize("serials", [(), ("R5CX0000001", "R5CX0000002")])
@pytest.mark.parametrize("script", ["setup.sh", "reboot-and-wait.sh"])
def test_anything_but_one_phone_ends_the_step(host: Host, script: str, serials: tuple[str, ...]) -> None:
    host.phones(*serials)
    done = host.run(script)
    assert done.returncode != 0
    assert f"exactly one phone was expected, found: {' '.join(serials)}" in done.stderr


def test_a_variable_that_is_missing_is_named(host: Host) -> None:
    done = host.run("setup.sh", TASKCLUSTER_ACCESS_TOKEN="")
    assert done.returncode != 0
    assert "mozpool: TASKCLUSTER_ACCESS_TOKEN is not set" in done.stderr


def test_a_phone_is_rebooted_and_waited_for(host: Host) -> None:
    (host.root / "down").write_text("6")
    done = host.run("reboot-and-wait.sh")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["mozpool: rebooting R5CX0000001", "mozpool: R5CX0000001 has rebooted"]


def test_one_that_does_not_come_back_fails_the_step(host: Host) -> None:
    (host.root / "stuck").touch()
    done = host.run("reboot-and-wait.sh", BOOT_LIMIT="1")
    assert done.returncode != 0
    assert "R5CX0000001 is not back after 1 s" in done.stderr


def test_a_job_without_a_task_says_so(host: Host) -> None:
    assert "the worker has done no task" in host.run("print-metadata.sh").stdout


def test_a_tasks_log_leads_to_the_job_and_its_command_knows_the_phone(host: Host) -> None:
    host.run("setup.sh")
    script = str(host.work / "script.py")
    done = host.run(script, "sh", "-c", 'echo "$ANDROID_SERIAL $DEVICE_NAME $HOST_IP"; exit 5', HYE_JOB_NUMBER="")
    assert done.returncode == 5
    url = "https://hyperexecute.lambdatest.com/hyperexecute/task?jobId=29be9ac1-0f63-4b84-a80f-5c7b5c541725"
    assert done.stdout.splitlines() == [
        "LambdaTest Job Number: 9822",
        f"LambdaTest Job URL: {url}",
        "R5CX0000001 R5CX0000001 10.1.2.3",
    ]
    assert "-s R5CX0000001 shell rm -rf /data/local/tests" in host.said("adb")[-1]
    assert TOKEN not in (host.work / "job.json").read_text()


def test_a_command_that_is_not_there_is_named(host: Host) -> None:
    host.run("setup.sh")
    done = host.run(str(host.work / "script.py"), "/nowhere/run-task")
    assert done.returncode == 1
    assert "mozpool: /nowhere/run-task can't be run: No such file or directory" in done.stderr
