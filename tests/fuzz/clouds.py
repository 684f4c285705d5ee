# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What the phones' cloud and Taskcluster answer, and what hyperexecute prints."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mozpool.bmm import program
from mozpool.bmm.backends.lambdatest.account import Account
from mozpool.bmm.backends.lambdatest.jobdir import DirectoryError, Wanted, filled_in
from mozpool.bmm.backends.lambdatest.launcher import LINES, _Output
from mozpool.bmm.interfaces import BackendContext
from mozpool.clock import Clock, Deadline
from mozpool.config import LambdaTest
from mozpool.errors import LaneError
from mozpool.launcher.queues import QueueError, Run, Taskcluster
from mozpool.lease import no_leash
from tests.fuzz.engine import Target, fuzzer
from tests.fuzz.peers import SEPARATOR, HastyClock, Peer, no_errors_logged

RECORDED = Path(__file__).parents[1] / "data" / "lambdatest"


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def account(port: int) -> Account:
    url = f"http://127.0.0.1:{port}"
    settings = LambdaTest(devices_api=url, jobs_api=url)
    return Account(BackendContext(HastyClock(), tftp_root=None, lambdatest=settings), "user", "secret")


JOBS = json.loads((RECORDED / "jobs.json").read_text())["data"]


@fuzzer(
    seeds=[
        (RECORDED / "devices.json").read_bytes(),
        SEPARATOR.join((b"503 busy", b"429 slow down", (RECORDED / "devices.json").read_bytes())),
        b"401 {}",
        b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 30\r\nContent-Length: 2\r\n\r\n{}",
    ],
    raises=(LaneError,),
)
def cloud_devices() -> Iterator[Target]:
    """The list of an account's phones."""
    with Peer(http=True) as peer, no_errors_logged() as errors:

        def one(data: bytes) -> None:
            peer.says(data)
            try:
                phones = account(peer.port).phones("d1", "phone status", Deadline(Clock(), 20.0))
            finally:
                assert not errors, errors
            for udid, phone in phones.items():
                assert udid == phone.udid and udid.isprintable() and phone.type_os.isprintable()

        yield one


@fuzzer(
    seeds=[
        SEPARATOR.join((_json({"data": JOBS[:3]}), _json({"data": JOBS[2:5]}))),
        SEPARATOR.join((_json({"data": JOBS[:1] * 100}), _json({"data": []}), _json({"data": None}))),
        b'404 {"message": "no"}',
    ],
    raises=(LaneError,),
)
def cloud_jobs() -> Iterator[Target]:
    """The lists of an account's jobs, in pages."""
    with Peer(http=True) as peer, no_errors_logged() as errors:

        def one(data: bytes) -> None:
            peer.says(data)
            try:
                jobs = account(peer.port).jobs("d1", "job status", Deadline(Clock(), 20.0))
            finally:
                assert not errors, errors
            numbers = [job.number for job in jobs]
            assert numbers == sorted(set(numbers), reverse=True)

        yield one


WORKERS = {
    "workers": [
        {
            "workerGroup": "lambda",
            "workerId": "R5CXC1HZK0W",
            "workerPoolId": "proj-autophone/t-lambda-perf-a55",
            "firstClaim": "2030-01-01T00:00:00.000Z",
            "lastDateActive": "2030-01-01T00:00:00.000Z",
            "quarantineUntil": "2030-06-01T00:00:00.000Z",
            "latestTask": {"taskId": "fN1SbArXTPSVFNUvaOlinQ", "runId": 0},
        },
        {"workerGroup": "lambda", "workerId": "RZ8NB0WJ47H"},
    ]
}
COUNTS = {"taskQueueId": "proj-autophone/x", "pendingTasks": 3, "claimedTasks": 1}
STATUS = {
    "status": {
        "taskId": "fN1SbArXTPSVFNUvaOlinQ",
        "state": "running",
        "runs": [{"runId": 0, "state": "running", "started": "2030-01-01T00:00:00.000Z"}],
    }
}


@fuzzer(
    seeds=[
        SEPARATOR.join((_json(WORKERS), _json(COUNTS))),
        SEPARATOR.join((_json({**WORKERS, "continuationToken": "x"}), _json(WORKERS), _json(COUNTS))),
        _json(STATUS),
        b'404 {"code": "ResourceNotFound", "message": "no such task", "requestInfo": {}}',
    ],
    raises=(QueueError,),
    once_failed=[b"[" * 20_000],
)
def taskcluster() -> Iterator[Target]:
    """Taskcluster's queues, workers and tasks."""
    with Peer(http=True) as peer:
        client = Taskcluster(f"http://127.0.0.1:{peer.port}", "proj-autophone")

        def one(data: bytes) -> None:
            peer.says(data)
            if b'"runs"' in data:
                client.started(Run("fN1SbArXTPSVFNUvaOlinQ", 0))
            else:
                found = client.look("t-lambda-perf-a55")
                assert found.pending >= 0
                found.quarantined(Clock().now())

        yield one


SECRET = "hush-hush"


@fuzzer(
    seeds=[
        b"Uploading...\r 10%\r 50%\rdone\nJob Link: https://hyperexecute.lambdatest.com/task-queue/29be9ac1\n",
        f"token {SECRET}\n\x1b[31mred\x1b[0m \xe9\n".encode("latin-1"),
        b"x" * 20000 + b"\n" + b"line\n" * 300,
    ]
)
def hyperexecute() -> Iterator[Target]:
    """What hyperexecute prints, which comes into devices' logs."""
    with tempfile.NamedTemporaryFile() as file:

        def one(data: bytes) -> None:
            Path(file.name).write_bytes(data)
            said: list[str] = []
            output = _Output(said.append, (SECRET,))
            status = program.follow(
                ("cat", file.name),
                Deadline(Clock(), 20.0),
                output.line,
                cwd="/",
                env={},
                leash=no_leash,
                left=lambda: 20.0,
            )
            assert status == 0
            assert len(said) <= LINES
            for line in (*said, output.last):
                assert SECRET not in line and line.isprintable() and len(line) <= 300

        yield one


JOB = Wanted(
    *("mozpool-1", "project/x", "token", "t-lambda-perf-a55", "1.0", ("R5CXC1HZK0W",)),
    *("Galaxy A55 5G-14", "https://tc.example.com", "proj-autophone"),
)
TEMPLATE = b"""\
version: "0.2"
concurrency: ${concurrency}
since: 2030-01-01
env: {TASKCLUSTER_ACCESS_TOKEN: ${tc_access_token}, A: &a [1, 2], B: *a}
testDiscovery:
  command: ${test_discover_cmd}
framework:
  args:
    ${fixed_ip_line}
"""


@fuzzer(
    seeds=[TEMPLATE],
    raises=(DirectoryError,),
    once_failed=[b"since: 2001-99-99", b"a: !!bool x", b"a: !!timestamp x"],
    seconds=10.0,  # PyYAML looks at all that is open for each bracket
)
def hyperexecute_template() -> Iterator[Target]:
    """A version's own template of hyperexecute.yaml."""

    def one(data: bytes) -> None:
        filled_in(data.decode(errors="replace"), JOB)

    yield one
