# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What the API modules of all layers share: reading calls, writing answers, describing both for OpenAPI.

Bodies are read as old clients write them (REST contract: what old clients do): JSON whatever the content type says,
empty ones count as ``{}``, and keys with null as left out. Answers are built by hand, because the calls that a busy
pool makes most must not pay for a second validation of what we wrote ourselves.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, NoReturn, TypeVar
from urllib.parse import quote

from apiflask import APIBlueprint
from flask import Response, current_app, g, has_request_context, request
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from werkzeug.exceptions import RequestEntityTooLarge

from mozpool.access.notes import note
from mozpool.access.principal import principal
from mozpool.clock import Clock
from mozpool.config import Settings
from mozpool.db import devices, hosted_jobs
from mozpool.db.devices import Device, DeviceKey
from mozpool.db.engine import Database
from mozpool.errors import BadInput, NotFound
from mozpool.lease import Lease
from mozpool.logbook import Logbook
from mozpool.presence import Presence
from mozpool.seen import LONGEST, Seen

MAX_BODY = 1024 * 1024
"""Bytes that a call's body may have."""

MAX_TEXT = 60_000
"""Bytes of a boot config, or of an event: somewhat less than a TEXT column holds."""

MAX_SECONDS = 10 * 365 * 86400
"""The longest duration that can be asked for."""

MAX_POLL = 60
"""Seconds that a long poll may take."""


# --- What handlers are given ---


@dataclass(frozen=True)
class Site:
    """What API modules of every layer may use of the server that they run in."""

    settings: Settings
    database: Database
    clock: Clock
    server_id: int
    presence: Presence
    lease: Lease
    long_polls: LongPolls
    seen: Seen
    """Events that came lately."""
    device_changed: Callable[[], None]
    """To be called when a device's environment or labels changed: it may fit a waiting request now."""


SITE = "mozpool.site"
"""The key of the :class:`Site` in the application's extensions."""


def site() -> Site:
    """The server that the current call reached."""
    found = current_app.extensions[SITE]
    assert isinstance(found, Site)
    return found


class LongPolls:
    """Keeps calls that take long from using up all threads that serve calls.

    A quarter of the slots is for those that do something; they are not to wait for calls that only look.
    """

    def __init__(self, most: int, step_aside: Callable[[], None] = lambda: None) -> None:
        """``most`` is how many may wait at a time; ``step_aside`` is called when one begins to."""
        self._free = threading.BoundedSemaphore(most)
        self._looks = threading.BoundedSemaphore(most - most // 4)
        self._step_aside = step_aside

    @contextmanager
    def slot(self, seconds: float, *, acts: bool = False) -> Iterator[float]:
        """The seconds that this call may wait: ``seconds``, or 0 when too many wait already.

        ``acts``: it does something, rather than look until something has happened.
        """
        needed = (self._free,) if acts else (self._looks, self._free)
        with ExitStack() as taken:
            for slots in needed:
                if seconds <= 0 or not slots.acquire(blocking=False):
                    taken.close()
                    yield 0.0
                    return
                taken.callback(slots.release)
            self._step_aside()
            yield seconds


class Elsewhere(Exception):
    """The call belongs to another imaging server (302 to the same path there)."""

    def __init__(self, server: str) -> None:
        """``server`` is that server's fqdn."""
        super().__init__(server)
        self.server = server

    @property
    def location(self) -> str:
        """The absolute URL of the current call on the other server."""
        query = request.query_string.decode("ascii", "replace")
        path = quote(request.path, safe="/~!$&'()*+,;=:@")
        return f"http://{self.server}{path}" + (f"?{query}" if query else "")


def only_here(owner_id: int, owner: str) -> None:
    """Raise Elsewhere unless this server acts on a row with this owner (id and fqdn)."""
    if owner_id != site().server_id:
        raise Elsewhere(owner)


def device(conn: Connection, ref: str) -> Device:
    """The device of this name or, when there is none, of this id. Raises NotFound."""
    found = devices.by_name(conn, ref)
    if found is None and re.fullmatch(r"\d{1,9}", ref, re.ASCII):
        found = devices.get(conn, int(ref))
    if found is None:
        raise NotFound(f"there is no device {ref[:64]}", field="device")
    _name_it(ref, found.name)
    return found


def device_key(conn: Connection, ref: str) -> DeviceKey:
    """As :func:`device`, the little that routing a call needs."""
    found = devices.key_by_name(conn, ref)
    if found is None and re.fullmatch(r"\d{1,9}", ref, re.ASCII):
        found = devices.key(conn, int(ref))
    if found is None:
        raise NotFound(f"there is no device {ref[:64]}", field="device")
    _name_it(ref, found.name)
    return found


def _name_it(ref: str, name: str) -> None:
    """Let the audit know a device by its name, however it was spelled in the path."""
    if ref != name and has_request_context():
        note(f"device {name}")


def read_device(ref: str) -> Device:
    """:func:`device`, in a transaction of its own."""
    with site().database.read() as conn:
        return device(conn, ref)


def own_device(ref: str) -> Device:
    """The device, which this server may act on. Raises NotFound, Elsewhere."""
    site().lease.look()
    found = read_device(ref)
    only_here(found.owner_id, found.owner)
    return found


def by(named: str | None) -> str | None:
    """Who does something, for logs: who calls, else whom the call names."""
    return principal().name or named


# --- Reading ---


class Input(BaseModel):
    """Base of all bodies and queries: unknown keys are ignored, and null counts as left out."""

    model_config = ConfigDict(extra="ignore", str_max_length=10_000)


class EventInput(Input):
    """What the state machine is given, and an id."""

    event_id: Annotated[str, StringConstraints(min_length=1, max_length=LONGEST)] | None = Field(
        None,
        description="Tells this event from all others: one that comes again is answered as the first time, and nothing "
        "is done again. Imaging servers send it to each other.",
    )


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a number is expected")
    return value


def _flag(value: Any) -> bool:
    return True


Seconds = Annotated[float, BeforeValidator(_no_bool), Field(ge=0, le=MAX_SECONDS, allow_inf_nan=False)]
"""A duration; text such as ``"1800"`` will do."""

Whole = Annotated[int, BeforeValidator(_no_bool)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=32)]
Flag = Annotated[bool, BeforeValidator(_flag), Field(json_schema_extra={"type": "string"})]
"""A key of a query that counts with any value."""


MOST_LINES = 100_000
"""Lines of a log in one answer."""


class LogQuery(Input):
    """Which lines of a log are wanted."""

    limit: Annotated[Whole, Field(ge=1, le=MOST_LINES)] | None = Field(
        None,
        description="The newest so many lines; without it 100, or with `timeperiod` as many as an answer may have. It "
        "has fewer when they are very long: go on with `before`.",
    )
    timeperiod: Seconds | None = Field(None, description="Only lines of the last so many seconds.")
    after: Annotated[Whole, Field(ge=0, le=2**62)] | None = Field(
        None, description="Only lines with a greater `id`: what has been written since."
    )
    before: Annotated[Whole, Field(ge=0, le=2**62)] | None = Field(
        None, description="Only lines with a smaller `id`: what had been written until then."
    )


class PageQuery(Input):
    """Which part of a list is wanted."""

    limit: Annotated[Whole, Field(ge=1, le=10_000)] | None = Field(
        None, description="At most so many; without it the whole list."
    )
    cursor: Annotated[Whole, Field(ge=0, le=2**62)] = Field(
        0, description="Where to go on: `next_cursor` of the answer before."
    )


def label(text: str) -> tuple[str, str]:
    """Name and value of a label as queries name one. Raises BadInput."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise BadInput.value("label", text, "NAME=VALUE")
    return name, value


Model = TypeVar("Model", bound=BaseModel)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def json_body(most: int = MAX_BODY) -> dict[str, Any]:
    """The current call's body of at most so many bytes: a JSON object, without the keys that are null.

    ``g.body`` and ``g.assignee`` have it for the audit and the log of calls. Raises BadInput.
    """
    encoding = request.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise BadInput(f"Content-Encoding: {encoding[:40]!r}: a body is not unpacked; send the JSON itself")
    raw = request.get_data(cache=True)
    if len(raw) > most:
        raise RequestEntityTooLarge
    if not raw.strip():
        return {}
    try:
        text = raw.decode("utf-8-sig")
        value = json.loads(text, parse_constant=_refuse)
        if "\\ud" in text.lower():
            # Half a character, which can neither be stored nor shown.
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise BadInput("the body is not JSON in UTF-8") from error
    if not isinstance(value, dict):
        raise BadInput("the body is not a JSON object")
    body = {key: item for key, item in value.items() if item is not None}
    g.body = body
    assignee = body.get("assignee", body.get("requester"))
    if isinstance(assignee, str):
        g.assignee = assignee[:256]
    return body


def parse(model: type[Model], values: Mapping[str, Any]) -> Model:
    """``values`` as a model. Raises BadInput that names the first field that is wrong."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        # A key that is wrong is named by itself: what pydantic puts behind it is no field.
        name = ".".join(str(part) for part in first["loc"] if part != "[key]") or None
        if first["type"] == "missing":
            raise BadInput(f"{name}: is missing", field=name) from error
        shown = repr(first["input"])
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        message = first["msg"].removeprefix("Value error, ")
        raise BadInput(f"{name}: {shown}: {message}" if name else message, field=name) from error


def query(model: type[Model]) -> Model:
    """The current call's query as a model; keys that a list is expected for may come several times."""
    values: dict[str, Any] = {}
    for key, items in request.args.lists():
        known = model.model_fields.get(key)
        many = known is not None and "list" in str(known.annotation)
        values[key] = items if many else items[-1]
    return parse(model, values)


def boot_config(keys: Iterable[str], body: Mapping[str, Any], image: str) -> str:
    """The keys that an image wants, as JSON. Raises BadInput when one is missing, or all are too long."""
    for key in keys:
        if key not in body:
            raise BadInput(f"{key} is missing: image {image} needs this key in its boot config", field=key)
    text = json.dumps({key: body[key] for key in keys})
    if len(text) > MAX_TEXT:
        raise BadInput(f"the boot config is longer than {MAX_TEXT} characters")
    return text


# --- Writing ---


def answer(value: Any, status: int = 200) -> Response:
    """A JSON answer."""
    return Response(json.dumps(value, separators=(",", ":")) + "\n", status, mimetype="application/json")


def may_be_kept(said: Response, seconds: int) -> None:
    """Let an answer be kept for so long: by caches that many share only where everybody may see it."""
    settings = site().settings
    if settings.auth_mode == "open" or settings.auth.anonymous == "viewer":
        said.cache_control.public = True
    else:
        said.cache_control.private = True
    said.cache_control.max_age = seconds


def done() -> Response:
    """204: it was done, and there is nothing to say."""
    said = Response(status=204)
    del said.headers["Content-Type"]
    return said


def time_text(moment: datetime | None) -> str | None:
    """A time as the old paths write it: ISO-8601 in UTC, whole seconds, without a zone."""
    return None if moment is None else moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S")


def write_log(logbook: Logbook) -> None:
    """Have the lines of the last moments in the database before a log is read. Raises DatabaseAway."""
    # A line that the database refuses is the business of the logbook's own thread.
    with suppress(DBAPIError):
        logbook.flush()


def which_lines(query: LogQuery, now: datetime) -> dict[str, Any]:
    """What :func:`mozpool.db.logs.latest` is to give: 100 lines, unless the query says how many or of which time."""
    since = None if query.timeperiod is None else now - timedelta(seconds=query.timeperiod)
    limit = query.limit or (100 if since is None else MOST_LINES)
    return {"limit": limit, "since": since, "after": query.after, "before": query.before}


def log_lines(lines: Sequence[Any]) -> list[dict[str, Any]]:
    """The lines of a log, oldest first."""
    return [
        {"id": line.id, "timestamp": time_text(line.ts), "source": line.source, "message": line.message}
        for line in lines
    ]


def page(key: str, rows: Sequence[Any], limit: int | None, shown: Sequence[Any]) -> dict[str, Any]:
    """A list, and where the next part of it begins if it was cut at ``limit`` (``rows`` has one more then)."""
    if limit is not None and len(rows) > limit:
        return {key: list(shown[:limit]), "next_cursor": rows[limit - 1].id}
    return {key: list(shown)} if limit is None else {key: list(shown), "next_cursor": None}


# --- Describing ---


class JobInfo(BaseModel):
    """A job on a hosted device."""

    number: int | None = Field(description="The cloud's number of it; null until the cloud knows it.")
    id: str | None = Field(description="The cloud's id of it.")
    url: str | None = Field(description="Where people see it.")
    status: str | None = Field(description="The cloud's last word of it.")
    task_id: str | None = Field(description="The Taskcluster task that its worker was seen with last.")
    task_url: str | None
    project: str
    lead_request_id: int = Field(description="The request whose id the job carries as its label.")
    ordered: str | None = Field(description="In UTC, without a zone; so are the next two.")
    running: str | None
    ended: str | None
    reason: str | None = Field(description="Why it failed or was stopped.")


def job_info(job: hosted_jobs.Job | None) -> dict[str, Any] | None:
    """A job as the API shows it."""
    if job is None:
        return None
    return {
        "number": job.number,
        "id": job.job_id,
        "url": job.url,
        "status": job.status,
        "task_id": job.task_id,
        "task_url": job.task_url,
        "project": job.project,
        "lead_request_id": job.lead_request_id,
        "ordered": time_text(job.ordered),
        "running": time_text(job.running),
        "ended": time_text(job.ended),
        "reason": job.reason,
    }


class LogLine(BaseModel):
    """A line of a log."""

    id: int
    timestamp: str
    source: str
    message: str


class Log(BaseModel):
    """The newest lines, oldest first."""

    log: list[LogLine]


class Empty(BaseModel):
    """Nothing: that it was done is all there is to say."""


class ErrorDetail(BaseModel):
    """What is wrong."""

    code: str = Field(description="A stable word for programs.")
    message: str = Field(description="For people.")
    field: str | None = Field(description="The input that is wrong, if one is.")


class ErrorAnswer(BaseModel):
    """Every error of the API."""

    error: ErrorDetail


@dataclass(frozen=True)
class Operation:
    """What is to be said in OpenAPI of a path and that the framework does not see."""

    query: type[BaseModel] | None = None
    body: type[BaseModel] | None = None
    example: Mapping[str, Any] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    media: str | None = None
    """What it can answer with besides JSON."""


View = Callable[..., Response]

REASONS = {
    302: "It belongs to another imaging server: the same call there (`Location`), with its verb kept.",
    304: "Nothing has changed since the answer whose `ETag` the call names; without a body.",
    400: "A value is missing or cannot be right; nothing was changed.",
    401: "Nobody knows who calls, or the credentials are no good.",
    403: "Who calls may not do this, or a page of a foreign origin called.",
    404: "What was named does not exist; nothing was changed.",
    409: "It is not in the state that this needs; nothing was changed.",
    413: "The body is too large.",
    422: "Well-formed, but nothing that this pool can do.",
    429: "Too many calls, or bad credentials, came from there: the same call may work after `Retry-After` seconds.",
    502: "The hardware failed, or the imaging server does not answer that a page's call was to be forwarded to.",
    503: "The database is away, or too much is going on: the same call may work after `Retry-After` seconds.",
}


def endpoint(
    blueprint: APIBlueprint,
    rule: str,
    *methods: str,
    answers: type[BaseModel] | str | None,
    errors: Sequence[int] = (),
    query: type[BaseModel] | None = None,
    body: type[BaseModel] | None = None,
    example: Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
    media: str | None = None,
) -> Callable[[View], View]:
    """Serve ``rule`` by the decorated function, whose docstring becomes the documentation.

    ``answers`` is the model of what it answers, a description of what is no JSON object, or None for 204. Answers are
    not checked against it while serving (the tests do that). ``media`` is another type that it can answer with.
    ``query`` and ``body`` are for the documentation alone: handlers read with :func:`query` and :func:`parse`.
    """

    def decorate(view: View) -> View:
        codes = {*errors, 401, 403, 429, 503} | (set() if body is None else {413}) | ({502} if 302 in errors else set())
        responses: dict[str | int, Any] = {code: {"description": REASONS[code]} for code in sorted(codes)}
        for code, response in responses.items():
            if int(code) >= 400:
                response["content"] = {"application/json": {"schema": {"$ref": ERROR_REF}}}
            elif code == 302:
                response["headers"] = {"Location": {"schema": {"type": "string", "format": "uri"}}}
        described = view
        if answers is None:
            responses[204] = {"description": "Done."}
        elif isinstance(answers, str):
            responses[200] = {"description": answers, "content": {"application/json": {"schema": {}}}}
        else:
            # Answers are Responses already, so that the framework's own serialisation does not run.
            summary = (answers.__doc__ or "").split("\n", 1)[0]
            described = blueprint.output(answers, description=summary)(described)
        described = blueprint.doc(responses=responses, tags=[str(blueprint.tag)])(described)
        setattr(described, OPERATION, Operation(query, body, example, headers or {}, media))
        blueprint.route(rule, methods=list(methods or ("GET",)))(described)
        return view

    return decorate


OPERATION = "mozpool_operation"
"""The attribute of a view that has its :class:`Operation`."""

ERROR_REF = "#/components/schemas/ErrorAnswer"
