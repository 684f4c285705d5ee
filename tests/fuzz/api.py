# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Calls of the API, made up by schemathesis from ``/api/openapi.json``: right ones and wrong ones, by all who may call.

Making one up takes ten times as long as doing it. So of each operation some are made up, in each round others, and more
are put together from their parts: the path of one, the query of another, the body of a third. They are dealt out to the
callers, so that each of them tries each operation.

Each answer must be as described, no fault of the server, and in keeping with the matrix of roles and calls: whoever is
refused changes nothing, and has never come as far as to what the call does.
"""

from __future__ import annotations

import logging
import random
import re
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import SkipTest

import click
import schemathesis
from flask import request
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.core.failures import Failure, FailureGroup
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from sqlalchemy import Connection, event, select

from mozpool.access.matrix import RULES
from mozpool.access.principal import Role
from mozpool.apikit import device_key
from mozpool.db import claims, requests, schema, tables
from mozpool.errors import MozpoolError
from mozpool.pool.api import request_number
from tests.access_support import MODES
from tests.app_fixtures import Server, server
from tests.conftest import open_database
from tests.fuzz.callers import CALLERS, TEAM, By, Caller, People, name_of, refusal

MADE_UP = 9
"""Calls of an operation that schemathesis makes up in a round, right ones and as many wrong ones."""

MIXED = 4
"""Calls that are put together for each one that is made up."""

KNOWN = {
    "name": ("device1", "device1", "device2", "any", "relay-9", "b2g", TEAM, ""),
    "number": ("0", "0", "1", "2", "3", ""),
    "event": ("please_ping", "please_self_test", "mobile_init_started", "failed", "close", "expire", ""),
    "old": ("ready", ""),
    "new": ("ready", "locked_out", "nowhere", ""),
}
"""Things that there are, in the place of those that schemathesis makes up. 0 is the request that holds device1."""

LAST = ("/api/bmm/", "/api/environment/", "/api/hardware_type/", "/api/image/")
"""Paths of what does away with that by which requests are made."""

HARDWARE = {502, 503}
"""Answers of operations that wait for hardware or another server, which says so in the description, too."""

LONG = 0.05
"""How many of these have a long text."""

MANY_CHARACTERS = 8000

LONGEST = 1.0
"""Seconds of a processor that a call may take; they take thousandths, and no other call is served meanwhile."""

CHECKS = [status_code_conformance, content_type_conformance, response_schema_conformance]

CHANGE = re.compile(
    r"(?!INSERT INTO (audit|device_logs|request_logs) |UPDATE (tokens|sessions) SET last_used=)(INSERT|UPDATE|DELETE) "
)
"""A statement that changes something: not what is written of calls whatever becomes of them, nor new lines of logs that
are stored because the log is asked for."""

MADE_CLOSED = ("mozpool.request_device", 409)
"""A request for a device that is taken is answered, and so is there, but closed."""

Seen = Counter[tuple[Caller, int]]
"""How many calls of a caller had a status."""


class Wrong(Exception):
    """An answer that must not be; ``str()`` has the call and the answer."""


class Pool:
    """A server, those who call it, and a look at what becomes of each call."""

    def __init__(self, made: Server, mode: str) -> None:
        self.made = made
        self.people = People(made, mode)
        self._thread = threading.get_ident()
        self._undecided: list[str] = []
        # Of the current call:
        self._written: list[str] = []
        self._route: tuple[str, str] | None = None
        self._holds: bool | None = None
        self._is_let_in = False
        self._watch()
        with made.daemon.database.read() as conn:
            table = tables.devices
            found = conn.execute(select(table).where(table.c.name == "device1")).one()
            self._ready = {key: found._mapping[key] for key in found._mapping if key not in ("id", "version")}
        self._held = 0
        self.hold()
        made.made("any", headers=self.people.operator)

    def _watch(self) -> None:
        app, engine = self.made.app, self.made.daemon.database.engine
        app.before_request_funcs.setdefault(None, []).insert(0, self._begin)
        app.before_request(self._let_in)

        @event.listens_for(engine, "after_cursor_execute")
        def wrote(_conn: Any, cursor: Any, statement: str, *_rest: Any) -> None:
            if threading.get_ident() == self._thread and cursor.rowcount and CHANGE.match(statement):
                self._undecided.append(" ".join(statement.split()[:3]))

        @event.listens_for(engine, "commit")
        def committed(_conn: Connection) -> None:
            if threading.get_ident() == self._thread:
                self._written += self._undecided
                self._undecided.clear()

        @event.listens_for(engine, "rollback")
        def rolled_back(_conn: Connection) -> None:
            if threading.get_ident() == self._thread:
                self._undecided.clear()

    def _begin(self) -> None:
        """Before all else: what is called, and whether the user holds it."""
        self._route, self._holds = None, None
        if request.url_rule is None or request.endpoint is None:
            return
        self._route = request.endpoint, re.sub(r"<(?:[^<:>]+:)?([^>]+)>", r"{\1}", request.url_rule.rule)
        if RULES[request.endpoint].holder:
            with suppress(MozpoolError):
                self._holds = self._is_users(request.view_args or {})

    def _is_users(self, named: Mapping[str, str]) -> bool:
        database = self.made.daemon.database
        with database.read() as conn:
            if "number" in named:
                return requests.maker(conn, request_number(named["number"])) == name_of(Role.USER)
            found = claims.holder(conn, device_key(conn, named["name"]).id, database.clock.now())
            return found is not None and found[2] == name_of(Role.USER)

    def _let_in(self) -> None:
        """After all that could refuse a call."""
        self._is_let_in = True

    def hold(self) -> None:
        """Have the user hold device1, whatever has been done to it; where that can't be, leave it."""
        database, people = self.made.daemon.database, self.people
        device = self.made.device("device1")
        with database.read() as conn:
            found = claims.holder(conn, device.id, database.clock.now())
        if found is not None and found[1] == self._held and device.state != "locked_out":
            return
        for number in {self._held, 0 if found is None else found[1]} - {0}:
            self.made.post(f"/api/request/{number}/return/", headers=people.operator)
        self.made.change("device1", **self._ready)
        said = self.made.ask("device1", headers=people.holder, duration=86400)
        if said.status_code == 200:
            self._held = said.get_json()["request"]["id"]

    def try_(self, case: schemathesis.Case, caller: Caller, rng: random.Random) -> int:
        """Make a call; its status. Raises Wrong."""
        if case.path_parameters and case.path_parameters.get("number") == "0":
            case.path_parameters["number"] = str(self._held)
        credentials = self.people.credentials(caller, rng)
        self._written.clear()
        self._is_let_in = False
        begun = time.thread_time()
        answer = case.call(
            app=self.made.app,
            headers=dict(credentials.headers),
            cookies=dict(credentials.cookies),
            environ_overrides={"REMOTE_ADDR": credentials.address},
        )
        seconds = time.thread_time() - begun
        fault = self._fault(case, caller, answer)
        if not fault and seconds > LONGEST:
            fault = f"it took {seconds:.1f} s"
        if fault:
            self.made.undocumented.clear()
            raise Wrong(
                f"{fault} ({caller}): {case.as_curl_command()} answered {answer.status_code} {answer.text[:500]}"
            )
        status: int = answer.status_code
        return status

    def _fault(self, case: schemathesis.Case, caller: Caller, answer: schemathesis.Response) -> str:
        """What is wrong with an answer; empty: nothing is."""
        status, written = answer.status_code, "; ".join(self._written)
        if self.made.undocumented:
            return ", ".join(self.made.undocumented)
        if status >= 500 and status not in HARDWARE:
            return "a fault of the server"
        if self._route is None:
            return "" if status in (404, 405) else "there is no such path"
        endpoint, path = self._route
        wanted = refusal(caller, endpoint, case.method.upper(), self._holds)
        if wanted and (status not in (401, 403) or self._is_let_in):
            return f"{endpoint} is not for them"
        if wanted and status != wanted and caller.by not in (By.NOTHING, By.ADDRESS):
            return f"{endpoint} is to be refused with {wanted}"
        if wanted == 0 and not self._is_let_in:
            return f"{endpoint} is for them"
        if 400 <= status < 500 and written and (endpoint, status) != MADE_CLOSED:
            return f"{endpoint} was refused, and changed something: {written}"
        if path == case.operation.path:
            try:
                case.validate_response(answer, checks=CHECKS)
            except (Failure, FailureGroup) as error:
                return f"not as described: {error}"
        return ""


@contextmanager
def a_server(mode: str, **settings: Any) -> Iterator[Server]:
    """An imaging server on SQLite in this mode of ``[auth]``, where no call waits; ``settings`` are others of it."""
    with tempfile.TemporaryDirectory() as directory:
        url = f"sqlite:///{directory}/mozpool.sqlite"
        database = open_database(url)
        schema.create(database)
        database.dispose()
        with server(url, Path(directory), auth=MODES[mode], server=settings) as made:
            polls = made.app.extensions["mozpool.site"].long_polls
            polls._free = threading.BoundedSemaphore(1)
            with polls.slot(1):
                yield made


def one_round(number: int, callers: Sequence[Caller] = CALLERS, paths: str = "/") -> Seen:
    """Some thousand calls, of all operations (whose path begins so) by all callers.

    Equal numbers give equal calls. Raises Wrong.
    """
    seen: Seen = Counter()
    with ExitStack() as stack:
        pools = {
            mode: Pool(stack.enter_context(a_server(mode)), mode)
            for mode in sorted({caller.mode for caller in callers})
        }
        described = schemathesis.openapi.from_wsgi("/api/openapi.json", next(iter(pools.values())).made.app)
        # Credentials are those of the callers.
        described.config.generation.update(with_security_parameters=False)
        operations = []
        for result in described.get_all_operations():
            assert isinstance(result, Ok)
            if result.ok().path.startswith(paths):
                operations.append(result.ok())
        for operation in sorted(operations, key=lambda each: each.path.startswith(LAST)):
            for pool in pools.values():
                pool.hold()
            rng = random.Random(f"{number} {operation.label}")
            cases = _mixed(list(_made_up(operation, number)), rng)
            for case, caller in zip(cases, _dealt(callers, rng), strict=False):
                seen[caller, pools[caller.mode].try_(case, caller, rng)] += 1
    return seen


def _dealt(callers: Sequence[Caller], rng: random.Random) -> Iterator[Caller]:
    """Whose turn it is: each one's once, and then by their shares."""
    yield from rng.sample(callers, len(callers))
    shares = [caller for caller in callers for _ in range(caller.share)]
    while True:
        yield from rng.sample(shares, len(shares))


def _made_up(operation: Any, number: int) -> Iterator[schemathesis.Case]:
    """Right calls and wrong ones. Where only a path, which may be anything, can be wrong, there are no wrong ones."""
    found: list[schemathesis.Case] = []
    modes = [schemathesis.GenerationMode.POSITIVE]
    if operation.query or operation.body:
        modes.append(schemathesis.GenerationMode.NEGATIVE)
    for mode in modes:

        @seed(number)
        @settings(
            max_examples=MADE_UP,
            deadline=None,
            database=None,
            phases=(Phase.generate,),
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def take(case: schemathesis.Case) -> None:
            found.append(case)

        with suppress(Unsatisfiable, SkipTest):
            take()
    yield from found


def _mixed(cases: Sequence[schemathesis.Case], rng: random.Random) -> Iterator[schemathesis.Case]:
    """These, and others of their parts, with things that there are in the place of some that there are not."""
    for case in cases:
        for _ in range(MIXED):
            path, query, headers, last = (rng.choice(cases) for _ in range(4))
            body, media_type = last.body, last.media_type
            first = case.body
            if isinstance(body, dict) and isinstance(first, dict) and rng.random() < 0.5:
                # Keys of one, and keys of the other.
                body = {**first, **{key: value for key, value in body.items() if rng.random() < 0.5}}
            parameters = _known(path, rng)
            if rng.random() < LONG:
                body, parameters = _with_long(body, rng), _with_long(parameters, rng)
            yield case.operation.Case(
                method=case.method,
                path_parameters=parameters,
                query=query.query,
                headers=headers.headers,
                body=body,
                media_type=media_type,
            )
        case.path_parameters = _known(case, rng)
        yield case


def _known(case: schemathesis.Case, rng: random.Random) -> dict[str, Any]:
    """The parameters of its path."""
    return {key: rng.choice(KNOWN.get(key, ("",))) or value for key, value in (case.path_parameters or {}).items()}


def _with_long(values: Any, rng: random.Random) -> Any:
    """The same with one text that is long, if it has any."""
    texts = (
        [key for key, value in values.items() if value and isinstance(value, str)] if isinstance(values, dict) else []
    )
    if not texts:
        return values
    key = rng.choice(texts)
    return {**values, key: values[key] * (MANY_CHARACTERS // len(values[key]))}


def statuses(seen: Seen) -> Counter[int]:
    """How many calls had which status."""
    found: Counter[int] = Counter()
    for (_caller, status), times in seen.items():
        found[status] += times
    return found


def _told(counts: Mapping[int, int]) -> str:
    return ", ".join(f"{status}: {times}" for status, times in sorted(counts.items()))


def report(seen: Seen) -> Iterator[str]:
    """A line for each caller, with how many calls had which status."""
    for caller in dict.fromkeys(caller for caller, _ in seen):
        counts = {status: times for (who, status), times in seen.items() if who == caller}
        yield f"{caller}: {sum(counts.values())} ({_told(counts)})"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("cases", type=click.IntRange(1), default=100_000)
@click.option("--first-round", type=int, default=1, show_default=True)
def main(cases: int, first_round: int) -> None:
    """Make at least CASES calls (100000) of the API that schemathesis makes up, in all modes of [auth] and all roles.

    The exit status is 1 when an answer was not as described, or not as the matrix of roles and calls wants it; the call
    and the answer are shown.
    """
    logging.disable(logging.CRITICAL)  # what is wrong is in the answers
    seen: Seen = Counter()
    number = first_round
    while seen.total() < cases:
        try:
            seen += one_round(number)
        except Wrong as error:
            click.echo(f"WRONG in round {number}: {error}")
            raise SystemExit(1) from None
        click.echo(f"round {number}: {seen.total()} cases so far ({_told(statuses(seen))})")
        number += 1
    for line in sorted(report(seen)):
        click.echo(line)
    click.echo(f"{seen.total()} cases; every answer was as described, and as the matrix wants it")


if __name__ == "__main__":
    main()
