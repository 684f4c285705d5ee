# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What the tests of the fake cloud share: one in simulated time, how it is asked, and a job's directory."""

from __future__ import annotations

import shlex
from pathlib import Path

import requests
import yaml

from mozpool.clock import SimClock
from mozpool.fakes.lambdatest import ABORT, ACCOUNT, CREATE, DEVICES, JOBS, FakeLambdaTest
from mozpool.fakes.phonecloud import Timings, phone_specs

CERTAIN = Timings(
    created=(1, 1),
    initiated=(30, 30),
    pick_up=(150, 150),
    work=(300, 300),
    finish=(10, 10),
    abort=(2, 2),
    cleanup=(40, 40),
    faulty=(600, 600),
)
"""Nothing is left to chance."""

WORKER_TYPE = "gecko-t-lambda-a55"


def fake(phones=3, clock=None, **more) -> FakeLambdaTest:
    """A cloud in simulated time, not started."""
    specs = phone_specs(phones) if isinstance(phones, int) else phones
    return FakeLambdaTest(specs, clock=clock or SimClock(), **{"timings": CERTAIN, **more})


def sim(cloud) -> SimClock:
    """Its clock."""
    assert isinstance(cloud.timeline.clock, SimClock)
    return cloud.timeline.clock


def ask(cloud, method, path, auth=ACCOUNT, **more):
    return requests.request(method, cloud.url + path, auth=auth, timeout=10, **more)


def devices(cloud):
    """The rows about phones, by UDID."""
    answer = ask(cloud, "GET", DEVICES)
    assert answer.status_code == 200, answer.text
    return {row["udid"]: row for row in answer.json()["data"]["private_cloud_devices"]}


def jobs(cloud, **query):
    """The rows about jobs."""
    query = {"show_test_summary": "false", "is_cursor_base_pagination": "true", "limit": 100, **query}
    answer = ask(cloud, "GET", JOBS, params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()["data"]


def create(cloud, labels=("tcdp", "a55"), **more):
    """Put a job into the cloud as the stand-in does; its answer."""
    job = {"labels": labels, "worker_type": WORKER_TYPE, "patterns": [".*-.*"], **more}
    answer = ask(cloud, "POST", CREATE, json=job)
    assert answer.status_code == 201, answer.text
    return answer.json()


def abort(cloud, job_id):
    return ask(cloud, "PUT", ABORT.format(id=job_id))


def job_yaml(fixed="R5CX0000001", concurrency=1, worker_type=WORKER_TYPE) -> dict:
    """What the facts say of hyperexecute.yaml."""
    command = "; ".join(f"echo {shlex.quote(f'task {number}')}" for number in range(1, concurrency + 1))
    return {
        "version": "0.2",
        "autosplit": True,
        "runson": "android",
        "concurrency": concurrency,
        "testDiscovery": {"type": "raw", "mode": "static", "command": command},
        "env": {
            "TASKCLUSTER_CLIENT_ID": "project/autophone/lambda",
            "TASKCLUSTER_ACCESS_TOKEN": "${TASKCLUSTER_ACCESS_TOKEN}",
            "TC_WORKER_TYPE": worker_type,
        },
        "testRunnerCommand": "bash user_script/start.sh",
        "pre": ["bash user_script/set-up.sh"],
        "post": ["bash ./user_script/reboot.sh", "cat generic-worker-metadata.json"],
        "differentialUpload": {"enabled": True, "ttlHours": 360},
        "runtime": [
            {"language": "java", "version": "17"},
            {"language": "node", "version": "20"},
            {"language": "python", "version": "3.12"},
        ],
        "frameworkStatusOnly": True,
        "dynamicAllocation": True,
        "shell": "bash",
        "framework": {
            "name": "raw",
            "args": {
                "devices": [".*-.*"],
                **({"fixedIP": fixed} if fixed else {}),
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
                "buildName": "a55",
            },
        },
    }


def write_job(directory: Path, content: dict | None = None) -> Path:
    """A job's directory."""
    scripts = directory / "user_script"
    scripts.mkdir(parents=True, exist_ok=True)
    for name in ("set-up.sh", "start.sh", "reboot.sh"):
        (scripts / name).write_text("true\n")
    (directory / "hyperexecute.yaml").write_text(yaml.safe_dump(job_yaml() if content is None else content))
    return directory


def job_environment(account=ACCOUNT) -> dict[str, str]:
    """The bare environment that hyperexecute is run with."""
    user, key = account
    return {
        "PATH": "/usr/bin:/bin",
        "LT_USERNAME": user,
        "LT_ACCESS_KEY": key,
        "TASKCLUSTER_ACCESS_TOKEN": "tc-s3cret-token",
    }
