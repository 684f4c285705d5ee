# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What Taskcluster says of its queues and their workers, asked through its official client (wire facts: Taskcluster).

The client's ordinary classes have no time limits, those for asyncio take them from their session: so each call here is
a short run of an event loop of its own, which is over by its limit whatever the peer does. No credentials are needed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import ModuleType
from typing import Any, TypeVar

from mozpool.errors import MozpoolError

LOOK_LIMIT = 15.0
"""Seconds for all that is asked of one queue."""

PAGES = 50
"""Pages of workers, each of up to 1000, after which a list is taken for endless."""

T = TypeVar("T")


class QueueError(MozpoolError):
    """Taskcluster did not say how a queue is; the message names the queue and the reason."""

    status = 502
    code = "queue_error"


@dataclass(frozen=True)
class Run:
    """One try at a task."""

    task_id: str
    run_id: int


@dataclass(frozen=True)
class Worker:
    """A phone as the workers of a queue know it."""

    udid: str
    quarantined_until: datetime | None
    latest: Run | None
    """The last task that it has taken."""


@dataclass(frozen=True)
class Queue:
    """A queue at one moment. The workers were asked for first: a task that is taken in between is missing in
    ``pending`` and not yet seen with its worker, so that too few jobs are started for a moment rather than too many."""

    pending: int
    workers: Mapping[str, Worker]
    """By UDID."""

    def quarantined(self, now: datetime) -> frozenset[str]:
        """The phones that are given no tasks now."""
        return frozenset(
            worker.udid
            for worker in self.workers.values()
            if worker.quarantined_until is not None and worker.quarantined_until > now
        )


def _client() -> ModuleType:
    """Taskcluster's client for asyncio. Raises MozpoolError when it is not installed."""
    try:
        import taskcluster.aio
    except ImportError as error:
        raise MozpoolError(
            f"Taskcluster's client is not there ({error}): install it by pip install 'mozpool[lambdatest]'"
        ) from error
    module: ModuleType = taskcluster.aio
    return module


class Taskcluster:
    """The queues of one provisioner. Its methods may be called from any thread."""

    def __init__(self, root_url: str, provisioner: str) -> None:
        """Raises MozpoolError when the client is not installed."""
        self._client = _client()
        self._root = root_url.rstrip("/")
        self._provisioner = provisioner

    def look(self, worker_type: str) -> Queue:
        """How many tasks are pending, and which workers there are. Takes at most LOOK_LIMIT. Raises QueueError."""

        async def ask(options: Mapping[str, Any], session: Any) -> Queue:
            workers = await self._workers(self._client.WorkerManager(options, session=session), worker_type)
            counts = await self._client.Queue(options, session=session).taskQueueCounts(self.name(worker_type))
            pending = _member(counts, "pendingTasks", int)
            if pending < 0:
                raise ValueError(f"it says that {pending} tasks are pending")
            return Queue(pending, workers)

        return self._ask(f"worker pool {self.name(worker_type)}", ask)

    def started(self, run: Run) -> datetime | None:
        """When a worker took the task for this run; None when none has. Raises QueueError."""

        async def ask(options: Mapping[str, Any], session: Any) -> datetime | None:
            answer = await self._client.Queue(options, session=session).status(run.task_id)
            for each in _member(_member(answer, "status", dict), "runs", list):
                if _member(each, "runId", int) == run.run_id:
                    return _time(each.get("started"))
            return None

        return self._ask(f"task {run.task_id}", ask)

    def name(self, worker_type: str) -> str:
        """What Taskcluster calls the worker pool."""
        return f"{self._provisioner}/{worker_type}"

    def task_url(self, run: Run) -> str:
        """The page of a task's run."""
        return f"{self._root}/tasks/{run.task_id}/runs/{run.run_id}"

    async def _workers(self, manager: Any, worker_type: str) -> dict[str, Worker]:
        found: dict[str, Worker] = {}
        query: dict[str, str] = {}
        for _ in range(PAGES):
            answer = await manager.listWorkers(self._provisioner, worker_type, query=query)
            for row in _member(answer, "workers", list):
                worker = _worker(row)
                found[worker.udid] = worker
            token = answer.get("continuationToken")
            if not token:
                return found
            query = {"continuationToken": str(token)}
        raise ValueError(f"its list of workers has more than {PAGES} pages")

    def _ask(self, what: str, ask: Callable[[Mapping[str, Any], Any], Awaitable[T]]) -> T:
        """Run one exchange in an event loop of its own. Raises QueueError."""
        import aiohttp
        from taskcluster.exceptions import TaskclusterFailure

        # What the environment says of credentials is not meant for this.
        options = {"rootUrl": self._root, "maxRetries": 1, "credentials": {}}

        async def exchange() -> T:
            async with aiohttp.ClientSession() as session:
                return await asyncio.wait_for(ask(options, session), LOOK_LIMIT)

        try:
            return asyncio.run(exchange())
        except TimeoutError:
            reason = f"no answer within {LOOK_LIMIT:g} s"
        except aiohttp.ClientResponseError as error:
            reason = f"it answered {error.status} {error.message}"
        except TaskclusterFailure as error:
            reason = _plain(error.superExc or error) if hasattr(error, "superExc") else _plain(error)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            reason = _plain(error)
        except RecursionError:
            reason = "its answer is nested too deeply"
        raise QueueError(f"Taskcluster at {self._root} does not tell about {what}: {reason}")


def _plain(error: object) -> str:
    """The first line of what an error says, shortened."""
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."


def _member(value: Any, name: str, kind: type[T]) -> T:
    found = value.get(name) if isinstance(value, dict) else None
    if not isinstance(found, kind) or isinstance(found, bool):
        raise ValueError(f"its answer has no usable {name}")
    return found


def _time(text: object) -> datetime | None:
    """Raises ValueError for what is no time."""
    if text is None:
        return None
    found = datetime.fromisoformat(str(text))
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


def _worker(row: Any) -> Worker:
    udid = _member(row, "workerId", str)
    latest = row.get("latestTask")
    run = None if latest is None else Run(_member(latest, "taskId", str), _member(latest, "runId", int))
    return Worker(udid, _time(row.get("quarantineUntil")), run)
