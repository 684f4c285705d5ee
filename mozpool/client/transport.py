# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Calls to whichever imaging server answers: fail-over, repetitions, redirects, errors."""

from __future__ import annotations

import logging
import random
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin, urlsplit, urlunsplit

import requests as http
from urllib3.exceptions import MaxRetryError, NewConnectionError

from mozpool import __version__
from mozpool.client.errors import BadRequest, ClientError, Conflict, NotAllowed, NotFound, ServerUnavailable
from mozpool.client.models import Request, understood
from mozpool.clock import Clock, Deadline

log = logging.getLogger("mozpool.client")

CONNECT_LIMIT = 3.0
"""Seconds that connecting to a server may take before the next one is tried."""

FIRST_PAUSE, LONGEST_PAUSE = 0.2, 5.0
"""Seconds between two rounds through the servers: doubled from the first to the longest."""

MAX_HOPS = 5
"""Redirects that are followed in one call."""

REDIRECTS = (301, 302, 303, 307, 308)


class _TryAgain(Exception):
    """One server could not serve this call now; another one, or the same later, may."""

    def __init__(self, reason: str, *, done: bool, pause: float | None = None, status: int | None = None) -> None:
        """``done``: whether the call may have taken effect nevertheless. ``pause``: as the server asked, in seconds."""
        super().__init__(reason)
        self.done = done
        self.pause = pause
        self.status = status


@dataclass(frozen=True)
class Call:
    """What is asked of a server."""

    verb: str
    path: str
    body: Mapping[str, Any] | None = None
    params: Mapping[str, Any] | None = None
    headers: Mapping[str, str] | None = None
    repeatable: bool = False
    """Whether doing it twice does no harm. If not, it is repeated only where it certainly did not reach a server."""
    extra: float = 0.0
    """Seconds that the server itself may take, besides the usual limit: a long poll, a command on a device."""
    text: bool = False
    """Whether the answer is wanted as text, because it is no JSON."""


class Transport:
    """Calls the servers of one pool, in random order, until one answers. May be used from several threads.

    Every try has a connection of its own: a kept one may be closed by the server just when a POST is sent on it, and
    then nobody knows whether the POST was read.
    """

    def __init__(
        self,
        servers: Iterable[str] | str,
        *,
        timeout: float,
        rng: random.Random,
        clock: Clock,
        token: str | None = None,
    ) -> None:
        """``servers``: base URLs, or ``HOST[:PORT]``. ``timeout``: seconds a call may take with all repetitions.

        ``token`` says who calls; only these servers, and those that they name as servers of their pool, get it.

        Raises ValueError when no server is named or one is no http(s) URL.
        """
        if isinstance(servers, str):
            servers = re.split(r"[\s,]+", servers)
        self.servers = [_base_url(server) for server in servers if server]
        if not self.servers:
            raise ValueError("no server is named")
        self._token = token
        self._pool = {_origin(server) for server in self.servers}
        """Where the token may be sent."""
        self._timeout = timeout
        self._rng = rng
        self._clock = clock

    def call(self, call: Call) -> Any:
        """Make the call and return the answer's JSON (None where the answer has no body), or its text.

        Raises ServerUnavailable when no server could serve it in time, the other ClientErrors by the server's answer.
        """
        deadline = Deadline(self._clock, self._timeout + call.extra)
        pause = FIRST_PAUSE
        while True:
            asked: list[float] = []
            servers = self._rng.sample(self.servers, len(self.servers))
            for index, server in enumerate(servers):
                # A server that accepts and never answers must leave time for the others, if they may be asked then.
                others = len(servers) - index if call.repeatable else 1
                share = call.extra + max(0.0, deadline.remaining() - call.extra) / others
                try:
                    return self._try(server, call, deadline.within(share))
                except _TryAgain as problem:
                    log.info("%s: %s", server, problem)
                    if problem.done and not call.repeatable:
                        raise ServerUnavailable(
                            f"{problem} (the call may have taken effect and was not repeated)", status=problem.status
                        ) from problem
                    last = problem
                    if problem.pause is not None:
                        asked.append(problem.pause)
                if deadline.expired:
                    break
            rest = max(pause * self._rng.uniform(0.5, 1.0), min(asked, default=0.0))
            # The server's own time is not for trying: where none was reached, nobody waits for it.
            if rest >= deadline.remaining() - (0.0 if last.done else call.extra):
                raise ServerUnavailable(self._gave_up(last), status=last.status) from last
            self._clock.sleep(rest)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _gave_up(self, last: _TryAgain) -> str:
        if len(self.servers) == 1:
            return str(last)
        return f"none of {len(self.servers)} servers could serve this; the last one: {last}"

    def _try(self, server: str, call: Call, deadline: Deadline) -> Any:
        """Ask one server, and those that it refers to."""
        url = f"{server}/{call.path.lstrip('/')}"
        params = call.params
        for _hop in range(MAX_HOPS + 1):
            response = self._send(url, call, params, deadline)
            if response.status_code not in REDIRECTS:
                return _answer(response, url, text=call.text)
            target = _target(response)
            if target is None:
                where = response.headers.get("Location", "")[:200]
                raise ClientError(f"{url} redirects to {where!r}", status=response.status_code)
            if self._token is not None:
                target = self._trusted(url, target, deadline)
            log.info("%s %s is served by %s", call.verb, url, target)
            # The target has the query already. The body and, unlike with browsers, the verb stay the same.
            url, params = target, None
        raise ClientError(f"{server}: more than {MAX_HOPS} redirects, the last one to {url}")

    def _trusted(self, url: str, target: str, deadline: Deadline) -> str:
        """Where to follow a redirect to with the token: only to servers of the pool, and not from https to http.

        Raises ClientError, _TryAgain.
        """
        parts = urlsplit(target)
        if urlsplit(url).scheme == "https" and parts.scheme == "http":
            # Servers know of each other by name only; whoever is asked by https stays with that.
            if parts.port not in (None, 80):
                raise ClientError(f"{url} redirects to {target!r}: the token is not sent there unencrypted")
            target = urlunsplit(parts._replace(scheme="https", netloc=parts.hostname or ""))
        if _origin(target) not in self._pool:
            asked = f"{_origin(url)}/api/server/list/"
            said = _answer(self._send(asked, Call("GET", ""), None, deadline), asked, text=False)
            names = [str(server.get("fqdn")) for server in (said or {}).get("servers", [])]
            self._pool.update(_origin(f"{urlsplit(target).scheme}://{name}") for name in names)
        if _origin(target) not in self._pool:
            raise ClientError(f"{url} redirects to {target!r}, which is no server of its pool: the token is not sent")
        return target

    def _send(self, url: str, call: Call, params: Mapping[str, Any] | None, deadline: Deadline) -> http.Response:
        left = max(deadline.remaining(), 0.01)
        headers = {
            "Accept": "application/json",
            "User-Agent": f"mozpool-client/{__version__}",
            "Connection": "close",
            **({} if self._token is None else {"Authorization": f"Bearer {self._token}"}),
            **(call.headers or {}),
        }
        try:
            response = http.request(
                call.verb,
                url,
                params=params,
                json=call.body,
                headers=headers,
                timeout=(min(left, CONNECT_LIMIT), left),
                allow_redirects=False,
            )
        except http.ConnectTimeout as error:
            raise _TryAgain(f"{_origin(url)} can't be reached: no connection in time", done=False) from error
        except http.Timeout as error:
            raise _TryAgain(f"{_origin(url)} did not answer in {left:.1f} s", done=True) from error
        except http.ConnectionError as error:
            if _never_connected(error):
                raise _TryAgain(f"{_origin(url)} can't be reached: {_cause(error)}", done=False) from error
            raise _TryAgain(f"{_origin(url)} broke the connection: {_cause(error)}", done=True) from error
        except http.exceptions.ChunkedEncodingError as error:
            raise _TryAgain(f"{_origin(url)} broke its answer off", done=True) from error
        except (http.RequestException, ValueError) as error:  # ValueError: where a redirect leads is no URL
            raise ClientError(f"{url}: {error}") from error
        if _is_cut(response):
            was_sent_on = response.status_code in REDIRECTS
            raise _TryAgain(f"{_origin(url)} broke its answer off", done=not was_sent_on)
        return response


def _target(response: http.Response) -> str | None:
    """Where a redirect leads; None where nobody can go on."""
    try:
        target = urljoin(response.url, response.headers.get("Location", ""))
        fine = urlsplit(target).scheme in ("http", "https") and target != response.url
    except ValueError:
        return None
    return target if fine else None


def _is_cut(response: http.Response) -> bool:
    """Whether an answer ended within its head: it looks like one with fewer headers, perhaps half a one, and no body.

    Imaging servers say of all their answers how long they are.
    """
    if response.content or response.status_code in (204, 304):
        return False
    says_its_end = response.headers.get("Content-Length") == "0" or "Transfer-Encoding" in response.headers
    return not says_its_end


def _base_url(server: str) -> str:
    url = server if "://" in server else f"http://{server}"
    try:
        parts = urlsplit(url)
        fine = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        fine = False
    if not fine or parts.query or parts.fragment:
        raise ValueError(f"{server!r} is not the URL of an imaging server, such as http://mozpool.example.com:8080")
    return url.rstrip("/")


def _origin(url: str) -> str:
    """Scheme, host and port, without the port that goes without saying."""
    parts = urlsplit(url)
    usual = {"http": ":80", "https": ":443"}.get(parts.scheme, "")
    return f"{parts.scheme}://{parts.netloc.lower().removesuffix(usual)}"


def _never_connected(error: http.ConnectionError) -> bool:
    """Whether not a byte of the call can have reached a server."""
    if isinstance(error, http.exceptions.SSLError | http.exceptions.ProxyError):
        return True
    cause = error.args[0] if error.args else None
    return isinstance(cause, MaxRetryError) and isinstance(cause.reason, NewConnectionError)


def _cause(error: BaseException) -> str:
    """The reason at the bottom of a stack of libraries, in the operating system's words where it has some."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror.lower()
        cause = cause.__cause__ or cause.__context__
    return type(error).__name__


def _answer(response: http.Response, url: str, *, text: bool) -> Any:
    """The JSON of a good answer, or its text; a bad one is raised."""
    status = response.status_code
    if text and status < 300:
        return response.content.decode("utf-8", "replace")
    if status == 204 or (status < 300 and not response.content):
        return None
    try:
        body = response.json()
    except (ValueError, RecursionError):
        body = None
    if status < 300:
        if body is None and response.content.strip() != b"null":
            raise ClientError(f"{url} answered {status} without JSON: is that an imaging server?", status=status)
        return body
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict):
        error = {}
    code, field = error.get("code"), error.get("field")
    message = str(error.get("message") or f"{url} answered {status} {response.reason or ''}".rstrip())
    if status == 503 or (status in (502, 504) and not error):
        # 502 and 504 without a word of ours come from a proxy. Any of the three may be said of work that was half done.
        raise _TryAgain(f"{_origin(url)}: {message}", done=True, pause=_retry_after(response), status=status)
    if status == 429:
        raise _TryAgain(f"{_origin(url)}: {message}", done=False, pause=_retry_after(response), status=status)
    if status in (401, 403):
        raise NotAllowed(message, status=status, code=code)
    if status == 409:
        made = body.get("request") if isinstance(body, dict) else None
        request = understood(Request.parse, made) if isinstance(made, dict) else None
        if request is not None and not error:
            message = f"device {request.requested_device} is taken"
        raise Conflict(message, status=status, code=code, request=request)
    if status == 404:
        raise NotFound(message, status=status, code=code)
    if status in (400, 422):
        raise BadRequest(message, status=status, code=code, field=field)
    raise ClientError(message, status=status, code=code)


def _retry_after(response: http.Response) -> float | None:
    """Seconds; the header's other form, a date, is not used by imaging servers."""
    try:
        return max(0.0, float(response.headers.get("Retry-After", "")))
    except ValueError:
        return None
