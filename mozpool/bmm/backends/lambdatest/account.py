# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What a LambdaTest account says of its phones and jobs (wire facts: LambdaTest and HyperExecute).

All phones of an account share its answers: one thread at a time fetches, whoever asks within the next seconds gets
the same answer, and a failure is an answer for some seconds, too. So a cloud that is slow or away costs its phones
time, but not one call each.
"""

from __future__ import annotations

import json
import logging
import os
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from urllib.parse import quote, urlencode, urlsplit

import requests

from mozpool.bmm import httpio
from mozpool.bmm.interfaces import BackendContext
from mozpool.bmm.netio import shown
from mozpool.clock import Clock, Deadline
from mozpool.errors import LaneError, OwnFault

log = logging.getLogger(__name__)

FETCH_LIMIT = 15.0
"""Seconds for an answer with all its pages."""

PAGE = 100
"""Jobs on a page."""

LIVE_PAGES = 20
HISTORY_PAGES = 10
"""Pages that are asked for at most."""

HISTORY_AGE = 60.0
"""Seconds for which the long list of jobs is good enough: it is for those that nobody remembers."""

FIRST_BACK_OFF = 1.0
LONGEST_BACK_OFF = 10.0
LONGEST_RETRY_AFTER = 60.0
"""Seconds in which nothing is asked after a failure: doubled with each one, or as long as the cloud wants."""

TRIES = 3
"""How often a page is asked for within one answer: one failure in between is not worth mentioning."""

_PAUSE = 0.5
_WORD = 64

LIVE = ("created", "initiated", "running", "in_progress")
"""Statuses of jobs that have not ended."""

INITIATED = frozenset({"created", "initiated"})
RUNNING = frozenset({"running", "in_progress"})
ENDED = frozenset(
    {
        "completed",
        "failed",
        "aborted",
        "cancelled",
        "error",
        "lambda_error",
        "ignored",
        "skipped",
        "stopped",
        "timeout",
    }
)

FREE = "active"
FAULTY = "faulty"

T = TypeVar("T")


class CloudError(Exception):
    """The cloud gave no usable answer; ``str()`` is the reason in plain words, without anything secret."""

    def __init__(self, reason: str, *, again: bool = False, retry_after: float | None = None) -> None:
        """``again``: it may be better in a moment; ``retry_after`` in seconds, if the cloud said so."""
        super().__init__(reason)
        self.again = again
        self.retry_after = retry_after


@dataclass(frozen=True)
class Phone:
    """A device of the private cloud."""

    udid: str
    name: str
    os_version: str
    status: str

    @property
    def type_os(self) -> str:
        """What HyperExecute calls this kind of device, such as ``Galaxy A55 5G-14``."""
        return f"{self.name}-{self.os_version}"


@dataclass(frozen=True)
class Job:
    """A job of the account, whoever started it."""

    number: int
    id: str
    status: str
    labels: tuple[str, ...] = ()
    ended: bool = False
    runs: bool = False


class _Kept(Generic[T]):
    """One kind of answer: fetched in a thread of its own, by one at a time, and kept."""

    def __init__(self, clock: Clock, name: str, fetch: Callable[[Deadline], T], speed: float) -> None:
        self._clock = clock
        self._name = name
        self._fetch = fetch
        self._speed = speed
        self._turn = clock.condition()
        self._kept: tuple[float, T] | None = None
        self._fetching = False
        self._failures = 0
        self._error: CloudError | None = None
        self._again_at = 0.0

    def get(self, since: float, deadline: Deadline) -> tuple[float, T]:
        """An answer that was asked for at ``since`` (monotonic) or later, and when that was. Raises CloudError."""
        with self._turn:
            while self._kept is None or self._kept[0] < since:
                if self._error is not None and self._clock.monotonic() < self._again_at:
                    raise CloudError(str(self._error))
                self._begin()
                if deadline.expired:
                    raise CloudError(f"no answer within {deadline.seconds:.3g} s")
                self._turn.wait(deadline.remaining())
            return self._kept

    def begin(self, since: float) -> None:
        """Ask, if there is no answer from ``since`` or later and nothing has failed just now; do not wait for it."""
        with self._turn:
            failed = self._error is not None and self._clock.monotonic() < self._again_at
            if not failed and (self._kept is None or self._kept[0] < since):
                self._begin()

    def _begin(self) -> None:
        if not self._fetching:
            self._fetching = True
            self._clock.start_thread(self._work, self._name)

    def _work(self) -> None:
        begun = self._clock.monotonic()
        kept, error = None, None
        try:
            kept = begun, self._fetch(Deadline(self._clock, FETCH_LIMIT))
        except CloudError as problem:
            error = problem
        except Exception as problem:
            log.exception("%s broke", self._name)
            error = CloudError(f"asking it broke ({type(problem).__name__})")
        with self._turn:
            self._fetching = False
            self._error = error
            if kept is not None:
                self._kept, self._failures = kept, 0
            if error is not None:
                pause = min(FIRST_BACK_OFF * 2**self._failures, LONGEST_BACK_OFF)
                self._failures = min(self._failures + 1, 10)
                if error.retry_after is not None:
                    pause = max(pause, error.retry_after)
                self._again_at = self._clock.monotonic() + pause / self._speed
            self._turn.notify_all()


class Account:
    """One user's. Its methods may be called from any thread, and raise LaneError, which names the account."""

    def __init__(self, context: BackendContext, username: str, access_key: str) -> None:
        settings = context.lambdatest
        self._clock = context.clock
        self._speed = context.speed
        self._credentials = (username, access_key)
        self._devices_url = f"{settings.devices_api.rstrip('/')}/mobile-automation/api/v1/privatecloud_devices"
        self._jobs_api = settings.jobs_api.rstrip("/")
        self._stop_path = settings.stop_path
        self.username = username
        self.access_key = access_key
        self.place = f"{username}@{urlsplit(settings.jobs_api).netloc.rpartition('@')[2]}"
        self.culprit = f"LambdaTest account {self.place}"
        self._age = settings.status_age / context.speed
        self._history_age = HISTORY_AGE / context.speed
        name = f"lambdatest {username}"
        self._phones = _Kept(self._clock, f"{name} devices", self._fetch_phones, context.speed)
        self._live = _Kept(self._clock, f"{name} jobs", self._fetch_live, context.speed)
        self._recent = _Kept(self._clock, f"{name} recent jobs", self._fetch_recent, context.speed)
        self._history = _Kept(self._clock, f"{name} old jobs", self._fetch_history, context.speed)

    def ask_anew(self) -> float:
        """Begin to ask for the phones and jobs as they are now; the moment (monotonic) to name as ``since``."""
        now = self._clock.monotonic()
        for kept in (self._live, self._phones):
            kept.begin(now)
        return now

    def phones(
        self, device: str, operation: str, deadline: Deadline, since: float | None = None
    ) -> Mapping[str, Phone]:
        """All phones by UDID, as they were at ``since`` (monotonic; None: some seconds ago) or later."""
        moment = self._recently() if since is None else since
        return self._ask(device, operation, lambda: self._phones.get(moment, deadline)[1])

    def jobs(self, device: str, operation: str, deadline: Deadline, since: float | None = None) -> tuple[Job, ...]:
        """All jobs that have not ended, and the last ones that have, by falling number.

        Those that have not ended are as they were at ``since`` (monotonic; None: some seconds ago) or later.
        """

        def ask() -> tuple[Job, ...]:
            at, live = self._live.get(self._recently() if since is None else since, deadline)
            recent_at, recent = self._recent.get(self._recently(), deadline)
            found = {job.number: job for job in live}
            for job in recent:
                # That a job goes on counts only if it is the latest news of it; that it has ended stays so.
                if recent_at >= at or job.status not in LIVE:
                    found[job.number] = job
            return tuple(found[number] for number in sorted(found, reverse=True))

        return self._ask(device, operation, ask)

    def history(self, device: str, operation: str, deadline: Deadline) -> tuple[Job, ...]:
        """The last thousand jobs, as they were within the last minute."""
        since = self._clock.monotonic() - self._history_age
        return self._ask(device, operation, lambda: self._history.get(since, deadline)[1])

    def stop(self, device: str, operation: str, job: Job, deadline: Deadline) -> str | None:
        """Ask for a job's end; what is wrong if the cloud will not, or None.

        The call is not among the wire facts: ``[lambdatest] stop_path`` says what it is.
        """

        def ask() -> str | None:
            url = self._jobs_api + self._stop_path.replace("{id}", quote(job.id, safe=""))
            status, body = self._call("PUT", url, deadline)
            return None if status < 300 else f"answered {status} {shown(body[:200].decode(errors='replace'))}"

        return self._ask(device, operation, ask)

    def _recently(self) -> float:
        return self._clock.monotonic() - self._age

    def _ask(self, device: str, operation: str, ask: Callable[[], T]) -> T:
        try:
            return ask()
        except CloudError as error:
            raise LaneError(device, operation, str(error), culprit=self.culprit) from error

    # Answers

    def _fetch_phones(self, deadline: Deadline) -> Mapping[str, Phone]:
        data = _member(self._get(self._devices_url, deadline), "data")
        rows = _list(_member(data, "private_cloud_devices"), "private_cloud_devices")
        phones = [phone for row in rows if (phone := _phone(row)) is not None]
        if not phones:
            # Taken as it is, it would be the fault of each phone that it is not there.
            raise CloudError(f"sent {len(rows)} devices, and none has a udid and a status")
        return {phone.udid: phone for phone in phones}

    def _fetch_live(self, deadline: Deadline) -> tuple[Job, ...]:
        return self._pages(LIVE, LIVE_PAGES, deadline, whole=True)

    def _fetch_recent(self, deadline: Deadline) -> tuple[Job, ...]:
        return self._pages((), 1, deadline)

    def _fetch_history(self, deadline: Deadline) -> tuple[Job, ...]:
        return self._pages((), HISTORY_PAGES, deadline)

    def _pages(self, statuses: Iterable[str], most: int, deadline: Deadline, *, whole: bool = False) -> tuple[Job, ...]:
        """Jobs with these statuses (none: with any), on at most so many pages. Raises CloudError.

        ``whole``: where these pages are not enough, that is an error.
        """
        query = {"show_test_summary": "false", "is_cursor_base_pagination": "true", "limit": str(PAGE)}
        if statuses:
            query["status"] = ",".join(statuses)
        found: dict[int, Job] = {}
        for _ in range(most):
            url = f"{self._jobs_api}/v1.0/jobs?{urlencode(query, safe=',')}"
            page = [_job(row) for row in _list(_member(self._get(url, deadline), "data"), "data")]
            new = [job for job in page if job.number not in found]
            found.update((job.number, job) for job in new)
            if len(page) < PAGE or not new:
                return tuple(found.values())
            query["cursor"] = str(page[-1].number)
        if whole:
            raise CloudError(f"lists more than {most * PAGE} jobs that have not ended")
        return tuple(found.values())

    # HTTP

    def _get(self, url: str, deadline: Deadline) -> Any:
        """The JSON behind ``url``; asked for again when that may help. Raises CloudError."""
        for number in range(1, TRIES + 1):
            try:
                status, body = self._call("GET", url, deadline)
                if status != 200:
                    raise CloudError(f"answered {status} where 200 was expected")
                break
            except CloudError as error:
                pause = max(_PAUSE * number, error.retry_after or 0.0) / self._speed
                if not error.again or number == TRIES or deadline.remaining() < 2 * pause:
                    raise
                self._clock.sleep(pause)
        try:
            return json.loads(body)
        except (ValueError, RecursionError):
            raise CloudError(f"what it answered is not JSON: {shown(body[:40].decode(errors='replace'))}") from None

    def _call(self, method: str, url: str, deadline: Deadline) -> tuple[int, bytes]:
        """The status and body of an answer that is not the account's or the cloud's failure. Raises CloudError."""
        try:
            with httpio.session(deadline) as session:
                answer = session.request(method, url, auth=self._credentials)
        except httpio.CallError as error:
            raise CloudError(str(error), again=True) from error
        except requests.RequestException as error:
            raise CloudError(f"can't be asked ({type(error).__name__})") from error
        status = answer.status_code
        if status in (401, 403):
            raise CloudError(f"answered {status}: it refuses the user name or the access key")
        if status == 429:
            wait = answer.headers.get("Retry-After", "")
            seconds = min(float(wait), LONGEST_RETRY_AFTER) if wait.isascii() and wait.isdigit() else None
            raise CloudError("answered 429: it was asked too often", again=True, retry_after=seconds)
        if status >= 500:
            raise CloudError(f"answered {status}", again=True)
        return status, answer.content


def _member(value: Any, name: str) -> Any:
    if not isinstance(value, dict) or name not in value:
        raise CloudError(f"its answer has no {name}")
    return value[name]


def _list(value: Any, name: str) -> list[Any]:
    if value is None:  # as programs in Go write an empty list
        return []
    if not isinstance(value, list):
        raise CloudError(f"{name} in its answer is no list")
    return value


def _text(row: Any, name: str) -> str | None:
    value = row.get(name) if isinstance(row, dict) else None
    return value if isinstance(value, str) and 0 < len(value) <= _WORD and value.isprintable() else None


def _phone(row: Any) -> Phone | None:
    """None for what can't be a phone: one odd entry must not stop all others."""
    udid, status = _text(row, "udid"), _text(row, "status")
    if udid is None or status is None:
        return None
    return Phone(udid, _text(row, "name") or "", _text(row, "fullOsVersion") or "", status.lower())


def _job(row: Any) -> Job:
    """Raises CloudError for what can't be understood: it might run on any phone."""
    number = row.get("job_number") if isinstance(row, dict) else None
    job_id, status = _text(row, "id"), _text(row, "status")
    if type(number) is not int or not 0 <= number < 2**63 or job_id is None or status is None:
        raise CloudError("sent a job without a usable job_number, id or status")
    word = status.lower()
    # A word that nobody has heard of: a job that has an end has ended.
    ended = word in ENDED or (word not in LIVE and bool(row.get("end_time")))
    return Job(number, job_id, word, _labels(row.get("job_label")), ended, word in RUNNING)


def _labels(value: Any) -> tuple[str, ...]:
    """The labels of a job: a JSON list in a string. Other people's may be anything."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return ()
    return tuple(label for label in value if isinstance(label, str)) if isinstance(value, list) else ()


# One for a process

_accounts: weakref.WeakValueDictionary[Any, Account] = weakref.WeakValueDictionary()


def account_of(context: BackendContext) -> Account:
    """The account of ``[lambdatest]``, or of ``LT_USERNAME`` and ``LT_ACCESS_KEY``. Raises OwnFault.

    All backends of a process that are built with the same settings share one.
    """
    settings = context.lambdatest
    username = settings.username or os.environ.get("LT_USERNAME", "")
    access_key = settings.access_key or os.environ.get("LT_ACCESS_KEY", "")
    for value, setting, variable in (
        (username, "username", "LT_USERNAME"),
        (access_key, "access_key", "LT_ACCESS_KEY"),
    ):
        if not value:
            raise OwnFault("LambdaTest", "log-in", f"neither [lambdatest] {setting} nor {variable} is set")
        if not value.isprintable() or not value.isascii() or " " in value or ":" in value:
            raise OwnFault("LambdaTest", "log-in", f"[lambdatest] {setting} (or {variable}) is not one word of ASCII")
    if "@" in username:
        reason = f"{username!r} is an e-mail address where the account's short user name is wanted"
        raise OwnFault("LambdaTest", "log-in", f"[lambdatest] username (or LT_USERNAME): {reason}")
    # The account holds the clock, so its identity is nobody else's while the account is there.
    key = (id(context.clock), context.speed, settings, username, access_key)
    account = _accounts.get(key)
    if account is None:
        account = _accounts.setdefault(key, Account(context, username, access_key))
    return account
