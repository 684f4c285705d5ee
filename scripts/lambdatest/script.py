#!/usr/bin/env python3
# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What a task's command begins with: ``script.py COMMAND ARGUMENT...``.

Says in the task's log which job of the cloud it runs in, tells the command about its phone, cleans that up, and becomes
the command. Needs Python's own library only.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

LEFT_BEHIND = ("/data/local/tests", "/data/local/tmp/*", "/sdcard/tests", "/sdcard/raptor-profile")
"""What earlier tests may have left on a phone."""

JOB_PAGE = "https://hyperexecute.lambdatest.com/hyperexecute/task?jobId="


def job_lines(variables: Mapping[str, str]) -> list[str]:
    """What leads from the task's log to the cloud's job."""
    lines = []
    if variables.get("HYE_JOB_NUMBER"):
        lines.append(f"LambdaTest Job Number: {variables['HYE_JOB_NUMBER']}")
    if variables.get("JOB_ID"):
        task = f"&taskId={variables['TASK_ID']}" if variables.get("TASK_ID") else ""
        lines.append(f"LambdaTest Job URL: {JOB_PAGE}{variables['JOB_ID']}{task}")
    return lines


def clean_up(serial: str) -> None:
    """Remove what is left on the phone. That it fails is for the task to find out."""
    try:
        subprocess.run(["adb", "-s", serial, "shell", "rm", "-rf", *LEFT_BEHIND], timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        print(f"mozpool: the phone is not cleaned up: {type(error).__name__}", flush=True)


def main() -> None:
    command = sys.argv[1:]
    if not command:
        sys.exit("usage: script.py COMMAND ARGUMENT...")
    variables: dict[str, str] = json.loads((Path(__file__).resolve().parent / "job.json").read_text())
    for line in job_lines(variables):
        print(line, flush=True)
    os.environ.update(variables)
    clean_up(variables["DEVICE_SERIAL"])
    try:
        os.execvp(command[0], command)  # that there is no shell is the point  # nosec B606
    except OSError as error:
        sys.exit(f"mozpool: {command[0]} can't be run: {error.strerror}")


if __name__ == "__main__":
    main()
