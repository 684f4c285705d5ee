#!/usr/bin/env python3
# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Writes what start-worker and script.py read, from the environment of the job. Needs Python's own library only."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PHONE = ("DEVICE_NAME", "DEVICE_SERIAL", "ANDROID_DEVICE", "ANDROID_SERIAL")
PASSED_ON = ("HYE_JOB_NUMBER", "JOB_ID", "TASK_ID", "TC_WORKER_TYPE", "UserPorts", "PowerMeterSerial")
"""What the task's wrapper may know of the job; the worker itself hands nothing of its environment to tasks."""


def worker_runner(environ: Mapping[str, str], work: Path) -> dict[str, Any]:
    """The configuration of start-worker: one task, then the end."""
    root = environ.get("TASKCLUSTER_ROOT_URL") or "https://firefox-ci-tc.services.mozilla.com"
    provisioner = environ.get("TC_PROVISIONER") or "proj-autophone"
    return {
        "provider": {
            "providerType": "standalone",
            "rootURL": root,
            "clientID": environ["TASKCLUSTER_CLIENT_ID"],
            "accessToken": environ["TASKCLUSTER_ACCESS_TOKEN"],
            "workerPoolID": f"{provisioner}/{environ['TC_WORKER_TYPE']}",
            "workerGroup": environ.get("TC_WORKER_GROUP") or "lambda",
            "workerID": environ["SERIAL"],
        },
        "getSecrets": False,
        "worker": {
            "implementation": "generic-worker",
            "path": str(work / "generic-worker"),
            "configPath": str(work / "generic-worker.yml"),
        },
        "workerConfig": {
            "ed25519SigningKeyLocation": str(work / "signing.key"),
            "idleTimeoutSecs": int(environ.get("IDLE_LIMIT") or 600),
            "livelogExecutable": str(work / "livelog"),
            "taskclusterProxyExecutable": str(work / "taskcluster-proxy"),
            "taskclusterProxyPort": 8099,
            "numberOfTasksToRun": 1,
            "provisionerId": provisioner,
            "workerType": environ["TC_WORKER_TYPE"],
            "publicIP": "127.0.0.1",
            "requiredDiskSpaceMegabytes": 6500,
        },
        "disableReboots": True,
    }


def job_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """What script.py puts into the environment of tasks."""
    variables = dict.fromkeys(PHONE, environ["SERIAL"])
    variables["HOST_IP"] = environ.get("HostIP", "")
    variables.update((name, environ[name]) for name in PASSED_ON if name in environ)
    if variables.get("PowerMeterSerial"):
        variables["USB_POWER_METER_SERIAL_NUMBER"] = variables["PowerMeterSerial"]
    return variables


def main() -> None:
    work = Path(sys.argv[1])
    # JSON is YAML, and is safe whatever a value holds.
    (work / "worker-runner.yml").write_text(json.dumps(worker_runner(os.environ, work), indent=2) + "\n")
    (work / "job.json").write_text(json.dumps(job_variables(os.environ), indent=2) + "\n")


if __name__ == "__main__":
    main()
