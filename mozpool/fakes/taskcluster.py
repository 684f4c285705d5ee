# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""A Taskcluster as a server over HTTP (wire facts: Taskcluster): a queue of tasks, and the workers that take them.

The paths are those of the official client's reference, the answers have the form of Taskcluster's schemas. It needs no
credentials. Workers are those of a :class:`~mozpool.fakes.phonecloud.PhoneCloud` that is told of this one.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Literal
from urllib.parse import unquote

from mozpool.clock import Clock
from mozpool.errors import BadInput, MozpoolError
from mozpool.fakes.timeline import Later, Span, Timeline
from mozpool.fakes.webserver import Answer, Call, Service, WebServer

PROVISIONER = "proj-autophone"
WORKER_GROUP = "lambdatest"
MOST_WORKERS = 1000
"""In one page."""

_QUEUE = "/api/queue/v1"
_COUNTS = re.compile(_QUEUE + r"/task-queues/([^/]+)/counts")
_PENDING = re.compile(_QUEUE + r"/pending/([^/]+(?:/[^/]+)?)")
_WORKERS = re.compile(r"/api/worker-manager/v1/provisioners/([^/]+)/worker-types/([^/]+)/workers")
_STATUS = re.compile(_QUEUE + r"/task/([^/]+)/status")


@dataclass(frozen=True)
class TaskRun:
    """One try at a task."""

    worker: str
    claimed: float
    """When; in seconds of the clock's monotonic time, as all here."""
    ended: float | None = None
    state: Literal["running", "completed", "exception"] = "running"


@dataclass(frozen=True)
class TaskRecord:
    """A task, and what has become of it."""

    id: str
    worker_type: str
    added: float
    seconds: float
    """How long it takes, in seconds of the cloud."""
    runs: tuple[TaskRun, ...] = ()

    @property
    def state(self) -> Literal["pending", "running", "completed"]:
        """What it is now; a run that ended because its worker has gone is followed by another."""
        last = self.runs[-1].state if self.runs else "exception"
        return "pending" if last == "exception" else last


@dataclass
class _Worker:
    id: str
    quarantine: tuple[float, datetime] | None = None
    """Since when, and until which wall time."""
    lifted: bool = False
    first_claim: float | None = None
    latest: tuple[str, int] | None = None
    active: float | None = None
    """When it was heard of last."""
    doing: _Doing | None = None


@dataclass
class _Doing:
    """A worker that is there."""

    picked_up: Callable[[str], None]
    done: Callable[[], None]
    later: Later
    """Until it has a task: giving up; then: being done."""
    task: str | None = None


@dataclass
class _Queue:
    pending: list[str] = field(default_factory=list)
    workers: dict[str, _Worker] = field(default_factory=dict)
    waiting: list[str] = field(default_factory=list)
    """Workers without a task, in the order in which they came."""


class FakeTaskcluster(Service):
    """The services ``queue`` and ``worker-manager`` of one Taskcluster; its ``url`` is the root URL."""

    def __init__(
        self,
        *,
        provisioner: str = PROVISIONER,
        speed: float = 1.0,
        seed: int = 0,
        clock: Clock | None = None,
        timeline: Timeline | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        patience: Span = (60.0, 90.0),
    ) -> None:
        """``patience``: how long a worker looks for a task before it gives up, in seconds of the cloud.

        ``timeline`` is that of the fake cloud whose workers serve here; else ``clock``, ``speed`` and ``seed`` make
        one.
        """
        self.timeline = timeline or Timeline(clock, speed=speed, seed=seed)
        self.provisioner = provisioner
        self._patience = patience
        self._queues: dict[str, _Queue] = {}
        self._tasks: dict[str, TaskRecord] = {}
        self.web = WebServer("the fake Taskcluster", self._answer, self.timeline.clock, host, port)

    # What tests do and look at.

    def add_tasks(self, worker_type: str, count: int, seconds: float | Span = 300.0, after: float = 0.0) -> list[str]:
        """Let so many tasks be pending, each of which takes ``seconds``, in ``after`` seconds of the cloud.

        Returns their ids.
        """
        rng = self.timeline.rng
        with self.timeline.settled():
            ids = [base64.urlsafe_b64encode(rng.randbytes(16)).decode().rstrip("=") for _ in range(count)]
            lengths = [self.timeline.draw(seconds) for _ in ids]
            if after:
                self.timeline.after(after, lambda: self._add(worker_type, ids, lengths))
            else:
                self._add(worker_type, ids, lengths)
            return ids

    def quarantine(self, worker_type: str, worker_id: str, until: datetime | None) -> None:
        """Put a worker in quarantine until then; None ends it."""
        with self.timeline.settled() as now:
            worker = self._worker(worker_type, worker_id)
            since = now if worker.quarantine is None else worker.quarantine[0]
            worker.quarantine = None if until is None else (since, until)
            worker.lifted = until is None
            over = 0.0 if until is None else max(0.0, (until - self.timeline.wall(now)).total_seconds())
            self.timeline.after(over * self.timeline.speed, lambda: self._serve(worker_type))

    @property
    def tasks(self) -> dict[str, TaskRecord]:
        """All tasks by their ids, in the order in which they were added."""
        with self.timeline.settled():
            return dict(self._tasks)

    def pending(self, worker_type: str) -> int:
        """How many tasks wait for a worker."""
        with self.timeline.settled():
            return len(self._queue(worker_type).pending)

    def task_url(self, task_id: str, run: int = 0) -> str:
        """The page of a task's run (wire facts: lastTaskUrl)."""
        return f"{self.url}/tasks/{task_id}/runs/{run}"

    # What the cloud's workers do: :class:`mozpool.fakes.phonecloud.Workers`.

    def start_worker(
        self, worker_type: str, worker_id: str, picked_up: Callable[[str], None], done: Callable[[], None]
    ) -> None:
        """A worker looks for a task."""
        worker = self._worker(worker_type, worker_id)
        later = self.timeline.after(self._patience, lambda: self._give_up(worker_type, worker))
        worker.doing = _Doing(picked_up, done, later)
        worker.active = self.timeline.now
        self._queue(worker_type).waiting.append(worker_id)
        self._serve(worker_type)

    def worker_gone(self, worker_type: str, worker_id: str) -> None:
        """A worker has ended: its task is pending again, for another run."""
        worker = self._worker(worker_type, worker_id)
        doing, worker.doing = worker.doing, None
        if doing is None:
            return
        doing.later.call_off()
        queue = self._queue(worker_type)
        if doing.task is None:
            queue.waiting.remove(worker_id)
            return
        self._end_run(doing.task, "exception")
        queue.pending.insert(0, doing.task)
        self._serve(worker_type)

    def quarantined_since(self, worker_type: str, worker_id: str) -> float | None:
        """Since when the worker has been in quarantine; None: it is not."""
        worker = self._worker(worker_type, worker_id)
        return worker.quarantine[0] if worker.quarantine and self._is_quarantined(worker) else None

    # What happens by and by, always within the timeline's ``settled``.

    def _queue(self, worker_type: str) -> _Queue:
        return self._queues.setdefault(worker_type, _Queue())

    def _worker(self, worker_type: str, worker_id: str) -> _Worker:
        return self._queue(worker_type).workers.setdefault(worker_id, _Worker(worker_id))

    def _is_quarantined(self, worker: _Worker) -> bool:
        return worker.quarantine is not None and self.timeline.wall(self.timeline.now) < worker.quarantine[1]

    def _add(self, worker_type: str, ids: list[str], lengths: list[float]) -> None:
        for task, seconds in zip(ids, lengths, strict=True):
            self._tasks[task] = TaskRecord(task, worker_type, self.timeline.now, seconds)
        self._queue(worker_type).pending.extend(ids)
        self._serve(worker_type)

    def _serve(self, worker_type: str) -> None:
        """Give pending tasks to workers that wait."""
        queue = self._queue(worker_type)
        for worker_id in queue.waiting[:]:
            worker = queue.workers[worker_id]
            if not queue.pending or self._is_quarantined(worker):
                continue
            queue.waiting.remove(worker_id)
            doing, task = worker.doing, queue.pending.pop(0)
            assert doing is not None
            doing.later.call_off()
            doing.task = task
            now = self.timeline.now
            record = self._tasks[task]
            self._tasks[task] = replace(record, runs=(*record.runs, TaskRun(worker_id, now)))
            worker.first_claim = now if worker.first_claim is None else worker.first_claim
            worker.active = now
            worker.latest = (task, len(record.runs))
            doing.later = self.timeline.after(record.seconds, lambda worker=worker: self._done(worker))  # type: ignore[misc]
            doing.picked_up(task)

    def _give_up(self, worker_type: str, worker: _Worker) -> None:
        self._queue(worker_type).waiting.remove(worker.id)
        doing, worker.doing = worker.doing, None
        assert doing is not None
        doing.done()

    def _done(self, worker: _Worker) -> None:
        doing, worker.doing = worker.doing, None
        assert doing is not None and doing.task is not None
        worker.active = self.timeline.now
        self._end_run(doing.task, "completed")
        doing.done()

    def _end_run(self, task: str, state: Literal["completed", "exception"]) -> None:
        record = self._tasks[task]
        last = replace(record.runs[-1], ended=self.timeline.now, state=state)
        self._tasks[task] = replace(record, runs=(*record.runs[:-1], last))

    # What is told over HTTP.

    def _answer(self, call: Call) -> Answer:
        try:
            with self.timeline.settled():
                return self._do(call)
        except MozpoolError as error:
            return _failure(error.status, "InputError", error.message, call)

    def _do(self, call: Call) -> Answer:
        if call.method == "GET":
            if found := _COUNTS.fullmatch(call.path):
                return Answer(200, self._counts(found[1]))
            if found := _PENDING.fullmatch(call.path):
                counts = self._counts(found[1])
                return Answer(200, {key: counts[key] for key in ("provisionerId", "workerType", "pendingTasks")})
            if found := _WORKERS.fullmatch(call.path):
                return Answer(200, self._list_workers(unquote(found[1]), unquote(found[2]), call.query))
            if (found := _STATUS.fullmatch(call.path)) and (task := self._tasks.get(found[1])):
                return Answer(200, {"status": self._status(task)})
        return _failure(404, "ResourceNotFound", f"nothing at {call.path}", call)

    def _counts(self, name: str) -> dict[str, Any]:
        task_queue = unquote(name)
        provisioner, slash, worker_type = task_queue.partition("/")
        if not slash:
            raise BadInput.value("taskQueueId", task_queue, "PROVISIONER/WORKERTYPE")
        queue = self._queues.get(worker_type, _Queue()) if provisioner == self.provisioner else _Queue()
        return {
            "provisionerId": provisioner,
            "workerType": worker_type,
            "taskQueueId": task_queue,
            "pendingTasks": len(queue.pending),
            "claimedTasks": sum(1 for worker in queue.workers.values() if worker.doing and worker.doing.task),
        }

    def _list_workers(self, provisioner: str, worker_type: str, query: Mapping[str, str]) -> dict[str, Any]:
        known = self._queues.get(worker_type, _Queue()) if provisioner == self.provisioner else _Queue()
        workers = [
            worker
            for _, worker in sorted(known.workers.items())
            if worker.active is not None or worker.quarantine or worker.lifted
        ]
        if "quarantined" in query:
            wanted = query["quarantined"] == "true"
            workers = [worker for worker in workers if self._is_quarantined(worker) is wanted]
        first = _token(query.get("continuationToken"))
        limit = query.get("limit", str(MOST_WORKERS))
        if not limit.isdecimal() or not 0 < int(limit) <= MOST_WORKERS:
            raise BadInput.value("limit", limit, f"a number from 1 to {MOST_WORKERS}")
        last = first + int(limit)
        pool = f"{provisioner}/{worker_type}"
        answer: dict[str, Any] = {"workers": [self._worker_row(pool, worker) for worker in workers[first:last]]}
        if last < len(workers):
            answer["continuationToken"] = base64.urlsafe_b64encode(str(last).encode()).decode()
        return answer

    def _worker_row(self, pool: str, worker: _Worker) -> dict[str, Any]:
        """A worker, without what is not known of it; a quarantine that was ended by hand is null (wire facts)."""
        active = self.timeline.now if worker.active is None else worker.active
        row: dict[str, Any] = {
            "workerGroup": WORKER_GROUP,
            "workerId": worker.id,
            "firstClaim": self._stamp(active if worker.first_claim is None else worker.first_claim),
            "lastDateActive": self._stamp(active),
            "workerPoolId": pool,
            "state": "standalone",
            "capacity": 0,
            "providerId": "none",
        }
        if worker.quarantine is not None:
            row["quarantineUntil"] = _iso(worker.quarantine[1])
        elif worker.lifted:
            row["quarantineUntil"] = None
        if worker.latest is not None:
            row["latestTask"] = {"taskId": worker.latest[0], "runId": worker.latest[1]}
        return row

    def _status(self, task: TaskRecord) -> dict[str, Any]:
        runs = [
            {
                "runId": number,
                "state": run.state,
                "started": self._stamp(run.claimed),
                "workerGroup": WORKER_GROUP,
                "workerId": run.worker,
            }
            for number, run in enumerate(task.runs)
        ]
        return {
            "taskId": task.id,
            "provisionerId": self.provisioner,
            "workerType": task.worker_type,
            "taskQueueId": f"{self.provisioner}/{task.worker_type}",
            "state": task.state,
            "runs": runs,
        }

    def _stamp(self, moment: float) -> str:
        return _iso(self.timeline.wall(moment))


def _iso(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.") + f"{time.microsecond // 1000:03}Z"


def _token(text: str | None) -> int:
    try:
        return 0 if text is None else int(base64.urlsafe_b64decode(text))
    except ValueError:
        raise BadInput.value("continuationToken", text, "one that this service has given") from None


def _failure(status: int, code: str, message: str, call: Call) -> Answer:
    return Answer(status, {"code": code, "message": message, "requestInfo": {"method": call.method}})
