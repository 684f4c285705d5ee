# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The client: every call of the API that people and programs need, typed."""

from __future__ import annotations

import getpass
import random
import socket
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from mozpool.client.credentials import default_token
from mozpool.client.errors import BadRequest, RequestFailed, ServerUnavailable, WaitTimeout
from mozpool.client.hold import Hold
from mozpool.client.models import (
    READY,
    AuditEntry,
    Device,
    Image,
    LogLine,
    Output,
    PoolStatus,
    Report,
    ReportKind,
    Request,
    Status,
    Team,
    Token,
    understood,
)
from mozpool.client.transport import Call, Transport
from mozpool.clock import Clock, Deadline

ANY = "any"

POLL = 20.0
"""Seconds that a server is asked to hold one long poll open; it answers at once when the state changes."""

OUTAGE = 60.0
"""Seconds without a server that waiting for a device survives: a server that is started again goes on with it."""

REPORT = 60.0
"""Seconds that a server may take for a report on millions of requests."""

AUDIT_PAGE = 5000
"""Rows of the audit that are asked for at a time."""

SHORTEST_PAUSE = 0.5
"""Seconds between two polls of a server that does not know long polls."""


@dataclass(frozen=True)
class Progress:
    """What a waiting request is doing now."""

    request_id: int
    status: Status
    changed: bool
    """Whether the state is another one than at the last call."""
    previous: str | None
    """The state before; None at the first call."""
    seconds: float
    """How long the current state has been seen; with ``changed``, how long the previous one was."""
    lines: tuple[LogLine, ...]
    """Log lines that are new."""


class Client:
    """A pool of devices, as its imaging servers offer it. May be used from several threads.

    Every method may raise ServerUnavailable and, by the server's answer, another ClientError.
    """

    def __init__(
        self,
        servers: Iterable[str] | str,
        *,
        timeout: float = 10.0,
        assignee: str | None = None,
        token: str | None = None,
        rng: random.Random | None = None,
        clock: Clock | None = None,
    ) -> None:
        """``servers``: base URLs of all imaging servers (``http://HOST:PORT``), or a text with spaces or commas.

        ``timeout``: seconds that a call may take, with all repetitions and redirects. ``assignee``: for whom devices
        are asked for: the e-mail address of a person or the host name of a machine (default: ``user@host``).
        ``token`` says who calls, where servers ask (default: what :func:`default_token` finds; an empty one is none).
        Raises ValueError when a server is no http or https URL, ClientError when a token can't be read.
        """
        self.clock = clock or Clock()
        self.rng = rng or random.Random()
        self.assignee = assignee or default_assignee()
        self.token = default_token() if token is None else token.strip() or None
        self._transport = Transport(servers, timeout=timeout, rng=self.rng, clock=self.clock, token=self.token)

    @property
    def servers(self) -> tuple[str, ...]:
        """The base URLs that are tried."""
        return tuple(self._transport.servers)

    # Looking

    def version(self) -> str:
        """The version of the server that answers."""
        return understood(lambda said: str(said["version"]), self._get("version"))

    def devices(
        self,
        *,
        state: str | None = None,
        claimed: bool | None = None,
        image: str | None = None,
        environment: str | None = None,
        hardware_type: str | None = None,
        hardware_model: str | None = None,
        labels: Mapping[str, str] | None = None,
        **filters: str | int | None,
    ) -> list[Device]:
        """The devices that meet all conditions (None asks for nothing); ``claimed``: whether somebody has it.

        Other filters are the query keys of newer servers.
        """
        filters |= {
            "state": state,
            "claimed": None if claimed is None else str(claimed).lower(),
            "image": image,
            "environment": environment,
            "hardware_type": hardware_type,
            "hardware_model": hardware_model,
        }
        label = [f"{name}={value}" for name, value in (labels or {}).items()]
        answer = self._get("device/list", {"details": 1, "label": label, **filters})
        return understood(lambda said: [Device.parse(raw) for raw in said["devices"]], answer)

    def device(self, name: str) -> Device:
        """One device. Raises NotFound."""
        answer = self._get(f"device/{_part(name)}/details")
        return understood(lambda said: Device.parse(said.get("device", said)), answer)

    def images(self) -> list[Image]:
        """What can be installed."""
        return understood(lambda said: [Image.parse(raw) for raw in said["images"]], self._get("image/list"))

    def environments(self) -> list[str]:
        """The environments that devices are in."""
        answer = self._get("environment/list")
        return understood(lambda said: [str(name) for name in said["environments"]], answer)

    def requests(self, *, include_closed: bool = False, **filters: str | int | None) -> list[Request]:
        """Requests that are open or have failed and were not returned yet; with ``include_closed``, all."""
        closed = {"include_closed": 1} if include_closed else {}
        answer = self._get("request/list", {**closed, **filters})
        return understood(lambda said: [Request.parse(raw) for raw in said["requests"]], answer)

    def log(self, target: int | str, *, limit: int | None = None) -> list[LogLine]:
        """The newest lines of a request's log (by id) or a device's (by name), the oldest first. Raises NotFound."""
        path = f"request/{target}/log" if isinstance(target, int) else f"device/{_part(target)}/log"
        return list(understood(LogLine.parse_list, self._get(path, {"limit": limit})))

    def pool_status(self) -> PoolStatus:
        """How the pool is doing, in numbers; a few seconds old at most."""
        return understood(PoolStatus.parse, self._get("pool/status"))

    def reports(self) -> list[ReportKind]:
        """Which reports there are."""
        return understood(lambda said: [ReportKind.parse(raw) for raw in said["reports"]], self._get("report"))

    def report(self, name: str, **query: str | float | None) -> Report:
        """A report by its name, on the last 7 days unless ``query`` says otherwise (the keys of the API).

        Raises NotFound, BadRequest.
        """
        return understood(Report.parse, self._get(f"report/{_part(name, 'report')}", query, extra=REPORT))

    def report_csv(self, name: str, **query: str | float | None) -> str:
        """The same as CSV, its first line being the names of the columns."""
        return str(self._get(f"report/{_part(name, 'report')}", {**query, "format": "csv"}, extra=REPORT, text=True))

    def audit(self, *, limit: int = 100, **query: str | int | None) -> list[AuditEntry]:
        """The newest ``limit`` changes, the newest first; ``query`` says which ones (the keys of the API).

        Raises BadRequest.
        """
        found: list[AuditEntry] = []
        cursor = None
        while True:
            part = {**query, "limit": min(limit - len(found), AUDIT_PAGE), "cursor": cursor}
            raw = self._get("audit", part, extra=REPORT)
            found += understood(lambda said: [AuditEntry.parse(entry) for entry in said["entries"]], raw)
            cursor = raw.get("next_cursor")
            if cursor is None or len(found) >= limit:
                return found

    def audit_csv(self, **query: str | int | None) -> str:
        """The same as CSV, its first line being the names of the columns."""
        return str(self._get("audit", {**query, "format": "csv"}, extra=REPORT, text=True))

    # Requests

    def request(
        self,
        device: str = ANY,
        *,
        image: str,
        duration: float,
        environment: str = ANY,
        boot_config: Mapping[str, str] | None = None,
        wait: float | None = None,
        priority: int = 0,
        hardware_type: str | None = None,
        hardware_model: str | None = None,
        labels: Mapping[str, str] | None = None,
        callback_url: str | None = None,
        idempotency_key: str | None = None,
    ) -> Request:
        """Ask for a device by name, or for any that meets the conditions, with an image, for ``duration`` seconds.

        ``boot_config`` holds what the image needs (:attr:`Image.boot_config_keys`). ``wait``: seconds that the request
        may stay in the queue (default: the server's, which is not at all for a named device). The answer is there at
        once; :meth:`wait_ready` tells when the device may be used. The call is repeated, with the same key, until
        a server has answered it. Raises Conflict when a named device is taken, NotFound when there is no such device
        or image, BadRequest.
        """
        body: dict[str, Any] = {
            "assignee": self.assignee,
            "image": image,
            "duration": duration,
            "environment": environment,
            "priority": priority or None,
            "wait": wait,
            "hardware_type": hardware_type,
            "hardware_model": hardware_model,
            "labels": dict(labels) if labels else None,
            "callback_url": callback_url,
        }
        body.update(_boot_config(boot_config, body))
        # Not from `rng`: processes that were forked, or seeded equally, must not share a device by sharing a key.
        key = idempotency_key or str(uuid.uuid4())
        sent = {name: value for name, value in body.items() if value is not None}
        answer = self._post(f"device/{_part(device)}/request", sent, headers={"Idempotency-Key": key}, repeatable=True)
        return understood(Request.parse, answer)

    def get_request(self, request_id: int) -> Request:
        """A request with all its details. Raises NotFound."""
        return understood(Request.parse, self._get(f"request/{request_id}/details"))

    def status(self, request_id: int, *, wait: float = 0.0, state: str | None = None) -> Status:
        """A request's state and log.

        With ``wait`` (seconds, at most 60), the server answers as soon as the state is no longer ``state``.
        Raises NotFound.
        """
        params = {"wait": wait, "state": state} if wait > 0 and state else {}
        return understood(
            Status.parse, self._get(f"request/{request_id}/status", params, extra=wait if params else 0.0)
        )

    def wait_ready(
        self,
        request_id: int,
        timeout: float | None = None,
        on_change: Callable[[Progress], None] | None = None,
        *,
        poll: float = POLL,
    ) -> Request:
        """Wait until a request's device may be used, and return the request.

        ``timeout``: seconds that it may take (None: as long as the request is open). ``on_change`` is called at each
        change of state, and at least every ``poll`` seconds. Servers may go away meanwhile for up to a minute.
        Raises RequestFailed, WaitTimeout (the request is still open then).
        """
        deadline = Deadline(self.clock, timeout if timeout is not None else float("inf"))
        outage: Deadline | None = None
        seen = _Seen(request_id, self.clock)
        while True:
            asked = self.clock.monotonic()
            try:
                status = self.status(request_id, wait=deadline.remaining(at_most=poll), state=seen.state)
                outage = None
            except ServerUnavailable:
                outage = outage or Deadline(self.clock, OUTAGE)
                if outage.expired or deadline.expired:
                    raise
                self.clock.sleep(deadline.remaining(at_most=1.0))
                continue
            progress = seen.look(status)
            if on_change is not None:
                on_change(progress)
            if status.state == READY:
                return self.get_request(request_id)
            if status.ended:
                raise RequestFailed(request_id, status.state, status.reason or self.get_request(request_id).reason)
            if deadline.expired:
                raise WaitTimeout(request_id, status.state, timeout or 0.0)
            if not progress.changed:
                early = SHORTEST_PAUSE - (self.clock.monotonic() - asked)
                self.clock.sleep(deadline.remaining(at_most=max(early, 0.0)))

    def renew(self, request_id: int, duration: float) -> None:
        """Let the request expire in ``duration`` seconds from now. Raises BadRequest when it has ended, NotFound."""
        self._post(f"request/{request_id}/renew", {"duration": duration}, repeatable=True)

    def revoke(self, request_id: int, reason: str | None = None) -> None:
        """Take a request from its holder, for operators; nothing happens when it has ended. Raises NotFound."""
        self._post(f"request/{request_id}/revoke", {"reason": reason}, repeatable=True)

    def return_request(self, request_id: int) -> None:
        """Give the request's device back; nothing happens when the request has ended. Raises NotFound."""
        self._post(f"request/{request_id}/return", {}, repeatable=True)

    def hold(
        self,
        device: str = ANY,
        *,
        image: str,
        duration: float,
        timeout: float | None = None,
        on_change: Callable[[Progress], None] | None = None,
        on_lost: Callable[[Exception], None] | None = None,
        poll: float = POLL,
        **request: Any,
    ) -> Hold:
        """A device for a ``with`` block: see :class:`mozpool.client.hold.Hold`."""
        request |= {"device": device, "image": image, "duration": duration}
        return Hold(self, request, timeout=timeout, on_change=on_change, on_lost=on_lost, poll=poll)

    # Devices. The holder of a device says so by the id of its request: Conflict when that does not have it (any more).

    def return_device(self, name: str, *, request_id: int | None = None) -> None:
        """Give a device back by its own name. Raises NotFound, Conflict.

        Not repeated: the second call might take the device from its next holder.
        """
        self._post(f"device/{_part(name)}/return", self._actor(request_id))

    def reboot(self, name: str, *, request_id: int | None = None) -> None:
        """Reboot a device, which nobody else gets meanwhile. Raises NotFound, Conflict."""
        self._post(f"device/{_part(name)}/reboot", self._actor(request_id))

    def flash(
        self,
        name: str,
        image: str,
        boot_config: Mapping[str, str] | None = None,
        *,
        request_id: int | None = None,
    ) -> None:
        """Install an image on a device, which nobody else gets meanwhile. Raises NotFound, Conflict, BadRequest."""
        body = {**self._actor(request_id), "image": image}
        self._post(f"device/{_part(name)}/flash", body | _boot_config(boot_config, body))

    def set_status(self, name: str, status: str, reason: str | None = None) -> None:
        """Take a device out of service ("offline"), or bring it back by a self-test ("online"). Raises NotFound."""
        body = {**self._actor(None), "status": status, "reason": reason}
        self._post(f"device/{_part(name)}/status", body)

    def agent_exec(
        self, name: str, command: Sequence[str], timeout: float = 60.0, *, request_id: int | None = None
    ) -> Output:
        """Run a command on a device by its agent, for at most ``timeout`` seconds. Raises NotFound, Conflict."""
        body = {**self._actor(request_id), "command": list(command), "timeout": timeout}
        return understood(Output.parse, self._post(f"device/{_part(name)}/agent/exec", body, extra=timeout))

    def _actor(self, request_id: int | None) -> dict[str, Any]:
        return {"assignee": self.assignee, "request_id": request_id}

    # Who may call

    def whoami(self) -> Mapping[str, Any]:
        """Who calls, as the server sees it: kind, name, role, team."""
        return understood(dict, self._get("whoami"))

    def tokens(self, name: str | None = None, *, everything: bool = False) -> list[Token]:
        """The tokens that are good, one's own, or for admins all, or those of ``name``; ``everything``: others, too."""
        found = self._get("token/list", {"name": name, "all": 1 if everything else None})
        return understood(lambda said: [Token.parse(raw) for raw in said["tokens"]], found)

    def create_token(
        self,
        name: str | None = None,
        *,
        role: str | None = None,
        team: str | None = None,
        note: str | None = None,
        duration: float | None = None,
    ) -> Token:
        """Make a token, for oneself unless one is admin; its ``text`` is told this once. ``duration`` in seconds.

        Raises NotAllowed, NotFound.
        """
        body = {"name": name, "role": role, "team": team, "note": note, "duration": duration}
        return understood(lambda said: Token.parse(said["token"]), self._post("token/create", body))

    def revoke_token(self, token_id: int) -> None:
        """Let a token be good for nothing from now on. Raises NotFound."""
        self._post(f"token/{token_id}/revoke", {}, repeatable=True)

    def teams(self) -> list[Team]:
        """All teams."""
        return understood(lambda said: [Team.parse(raw) for raw in said["teams"]], self._get("team/list"))

    def create_team(self, name: str, **limits: Any) -> Team:
        """Add a team; ``limits`` are keys of the API. Raises NotAllowed, Conflict."""
        made = self._post("team/create", {"name": name, **limits})
        return understood(lambda said: Team.parse(said["team"]), made)

    def change_team(self, name: str, **limits: Any) -> Team:
        """Change a team; ``without`` names the limits that there are to be no more. Raises NotAllowed, NotFound."""
        changed = self._post(f"team/{_part(name, 'team')}/change", limits, repeatable=True)
        return understood(lambda said: Team.parse(said["team"]), changed)

    def delete_team(self, name: str) -> None:
        """Delete a team. Raises NotAllowed, NotFound, Conflict."""
        self._post(f"team/{_part(name, 'team')}/delete", {})

    # Calling

    def _get(
        self, path: str, params: Mapping[str, Any] | None = None, *, extra: float = 0.0, text: bool = False
    ) -> Any:
        sent = {name: value for name, value in (params or {}).items() if value is not None}
        call = Call("GET", f"api/{path}/", params=sent, repeatable=True, extra=extra, text=text)
        return self._transport.call(call)

    def _post(
        self,
        path: str,
        body: Mapping[str, Any],
        *,
        headers: Mapping[str, str] | None = None,
        repeatable: bool = False,
        extra: float = 0.0,
    ) -> Any:
        sent = {name: value for name, value in body.items() if value is not None}
        call = Call("POST", f"api/{path}/", body=sent, headers=headers, repeatable=repeatable, extra=extra)
        return self._transport.call(call)


class _Seen:
    """What a waiting client has been told already."""

    def __init__(self, request_id: int, clock: Clock) -> None:
        self._request_id = request_id
        self._clock = clock
        self._since = clock.monotonic()
        self._last_line = 0
        self.state: str | None = None

    def look(self, status: Status) -> Progress:
        """What is new."""
        now = self._clock.monotonic()
        lines = tuple(line for line in status.log if line.id > self._last_line)
        self._last_line = max((line.id for line in lines), default=self._last_line)
        changed = status.state != self.state
        progress = Progress(self._request_id, status, changed, self.state, now - self._since, lines)
        if changed:
            self.state, self._since = status.state, now
        return progress


def default_assignee() -> str:
    """``user@host``, as far as they are known."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        user = "nobody"
    return f"{user}@{socket.gethostname() or 'localhost'}"


def _part(name: str, what: str = "device") -> str:
    """The name of a device, or of something else, as one part of a path."""
    if name in ("", ".", ".."):
        raise BadRequest(f"{name!r} is not a {what}'s name", field=what)
    return quote(name, safe="")


def _boot_config(boot_config: Mapping[str, str] | None, body: Mapping[str, Any]) -> dict[str, str]:
    """The image's keys, which go beside the call's own ones and must not replace them."""
    for key in boot_config or {}:
        if key in body:
            raise BadRequest(f"boot_config: {key} is not a key of an image", field="boot_config")
    return dict(boot_config or {})
