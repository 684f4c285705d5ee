# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""LambdaTest's cloud as a server over HTTP (wire facts: LambdaTest): its phones, its jobs, and stopping them.

Its answers have the form of those that were recorded (``tests/data/lambdatest``). Jobs come from the stand-in for
``hyperexecute`` (:mod:`mozpool.fakes.hyperexecute`), by a call that the real cloud does not have.
"""

from __future__ import annotations

import base64
import hmac
import json
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from mozpool.clock import Clock
from mozpool.errors import BadInput, MozpoolError
from mozpool.fakes.phonecloud import Fate, JobRecord, JobSpec, PhoneCloud, PhoneSpec, Timings, Workers
from mozpool.fakes.timeline import Timeline
from mozpool.fakes.webserver import Answer, Call, Service, WebServer

DEVICES = "/mobile-automation/api/v1/privatecloud_devices"
JOBS = "/v1.0/jobs"
ABORT = "/v1.0/job/{id}/abort"
CREATE = "/fake/v1/jobs"
"""Where the stand-in for ``hyperexecute`` puts jobs; the fake's own."""

ACCOUNT = ("lt-user", "LT_s3cret_access_key")
MOST_ROWS = 100
"""In one page of jobs."""

_COUNTED = {"running": "in_progress", "in_progress": "in_progress", "completed": "completed", "failed": "failed"}
"""Status of a job → what its only scenario is counted as."""


class FakeLambdaTest(PhoneCloud, Service):
    """The cloud, with both of its APIs at one ``url``."""

    def __init__(
        self,
        phones: Iterable[PhoneSpec],
        *,
        account: tuple[str, str] = ACCOUNT,
        speed: float = 1.0,
        seed: int = 0,
        clock: Clock | None = None,
        timeline: Timeline | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        age: float = 0.0,
        workers: Workers | None = None,
        timings: Timings | None = None,
        odds: Mapping[Fate, float] | None = None,
        faulty_odds: float = 0.0,
        running_word: Literal["running", "in_progress"] = "running",
    ) -> None:
        """``account``: user name and access key. ``age``: how old answers about phones are, in seconds of the cloud.

        ``timeline`` is given where other services share this one's time; else ``clock``, ``speed`` and ``seed`` make
        one. The others are those of PhoneCloud and WebServer.
        """
        super().__init__(
            phones,
            timeline or Timeline(clock, speed=speed, seed=seed),
            workers=workers,
            timings=timings,
            odds=odds,
            faulty_odds=faulty_odds,
            running_word=running_word,
        )
        self.account = account
        self.age = age
        self.web = WebServer("the fake LambdaTest", self._answer, self.timeline.clock, host, port)

    def _answer(self, call: Call) -> Answer:
        given = call.headers.get("authorization", "")
        wanted = "Basic " + base64.b64encode(":".join(self.account).encode()).decode()
        if not hmac.compare_digest(given.encode(), wanted.encode()):
            return Answer(401, {"message": "Unauthorized", "status": "fail"})
        try:
            return self._do(call)
        except MozpoolError as error:
            return Answer(error.status, {"message": error.message, "status": "fail"})

    def _do(self, call: Call) -> Answer:
        before, after = ABORT.split("{id}")
        match call.method, call.path:
            case "GET", path if path == DEVICES:
                return Answer(200, self._devices())
            case "GET", path if path == JOBS:
                return Answer(200, {"data": self._rows(call.query)})
            case "PUT", path if path.startswith(before) and path.endswith(after):
                self.abort(path[len(before) : -len(after)], self.account[0])
                return Answer(200, {"message": "job is being aborted", "status": "success"})
            case "POST", path if path == CREATE:
                job = self.create(_spec(call.body), self.account[0])
                return Answer(201, {"job_number": job.number, "id": job.id})
        return Answer(404, {"message": "no such route", "status": "fail"})

    def _devices(self) -> Mapping[str, Any]:
        return {
            "data": {"private_cloud_devices": [_device_row(*each) for each in self.told(self.age)]},
            "message": "successfully collected the list of private cloud devices",
            "status": "success",
        }

    def _rows(self, query: Mapping[str, str]) -> list[dict[str, Any]]:
        limit = min(_number("limit", query.get("limit", str(MOST_ROWS))), MOST_ROWS)
        wanted = set(filter(None, query.get("status", "").split(",")))
        below: float = float("inf")
        if "cursor" in query and query.get("is_cursor_base_pagination") == "true":
            below = _number("cursor", query["cursor"])
        with self.timeline.settled() as now:
            found = [job for job in reversed(self.jobs) if job.number < below and (not wanted or job.status in wanted)]
            return [self._job_row(job, now) for job in found[:limit]]

    def _job_row(self, job: JobRecord, now: float) -> dict[str, Any]:
        began = job.times.get("running", job.times.get("in_progress"))
        counted = _COUNTED.get(job.status)
        seconds = 0
        if began is not None and job.end is not None and counted:
            seconds = int((job.end - began) * self.timeline.speed)
        return {
            "Frameworks": [""],
            "Tasks": job.spec.concurrency,
            "archived_at": None,
            "archived_by": "",
            "created_at": self._stamp(job.created),
            "end_time": None if job.end is None else self._stamp(job.end),
            "executionTime": f"{seconds // 60}m{seconds % 60}s" if seconds >= 60 else f"{seconds}s",
            "execution_time_sec": seconds,
            "global_timeout": 90,
            "id": job.id,
            "is_archived": 0,
            "job_label": json.dumps(job.spec.labels, separators=(",", ":")),
            "job_number": job.number,
            "job_summary": _summary(job, counted, seconds),
            **({} if job.remark is None else {"remark": job.remark}),
            "status": job.status,
            "taskCount": {"android": 0, "ios": 0, "linux": job.spec.concurrency, "mac": 0, "win": 0},
            "user": job.user,
            "workflow_details": {"workflow_id": None},
        }

    def _stamp(self, moment: float) -> str:
        return self.timeline.wall(moment).strftime("%Y-%m-%dT%H:%M:%SZ")


def _device_row(phone: PhoneSpec, status: str, user: str | None) -> dict[str, Any]:
    return {
        "Automation": True,
        "Manual": True,
        "fullOsVersion": phone.os,
        **({"inUseBy": user} if status == "busy" and user is not None else {}),
        "name": phone.name,
        "os": "android",
        "os_version": int(phone.os.partition(".")[0]),
        "simDetails": [{}],
        "status": status,
        "udid": phone.udid,
    }


def _summary(job: JobRecord, counted: str | None, seconds: int) -> dict[str, Any] | None:
    """As in recorded answers: of another form before it runs, and none for jobs that ended in an odd way."""
    number = job.spec.concurrency
    if job.status in ("created", "initiated"):
        return {
            "post_status_count": {"aborted": 0, "cancelled": 0, "completed": 0},
            "scenario_stage_summary": {"retries": 0, "total_excluding_retries": number},
            "test_status_count": None,
        }
    if counted is None:
        return None
    ended = {"total_execution_time_including_retries_in_sec": seconds} if job.ended else {}
    return {
        "scenario_stage_summary": {
            "status_counts_excluding_retries": {counted: number},
            "total_excluding_retries": number,
            **ended,
        }
    }


def _number(field: str, text: str) -> int:
    if not text.isdecimal():
        raise BadInput.value(field, text, "a number")
    return int(text)


def _spec(body: bytes) -> JobSpec:
    """What the stand-in sends: the fields of JobSpec."""
    try:
        given = json.loads(body)
        return JobSpec(**{**given, "labels": tuple(given["labels"]), "patterns": tuple(given["patterns"])})
    except (ValueError, TypeError, KeyError) as error:
        raise BadInput(f"not a job: {error}") from error
