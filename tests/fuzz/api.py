# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Calls of the API, made up by schemathesis from ``/api/openapi.json``: right ones and wrong ones.

Making one up takes ten times as long as doing it. So of each operation some are made up, in each round others, and more
are put together from their parts: the path of one, the query of another, the body of a third.
"""

from __future__ import annotations

import logging
import random
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import SkipTest

import click
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.core.result import Ok

from mozpool.db import schema
from tests.app_fixtures import Server, server
from tests.conftest import open_database

MADE_UP = 10
"""Calls of an operation that schemathesis makes up in a round, right ones and as many wrong ones."""

MIXED = 4
"""Calls that are put together for each one that is made up."""

NAMES = ("device1", "device2", "any", "relay-9", "b2g")
NUMBERS = ("1", "2", "3")
"""Things that there are, in the place of those that schemathesis makes up."""

HARDWARE = {502, 503}
"""Answers of operations that wait for hardware or another server, which says so in the description, too."""


@dataclass(frozen=True)
class Caller:
    """Who calls: in which mode of ``[auth]``, in which role, and by which headers that is known."""

    mode: str
    role: str | None
    headers: Mapping[str, str] = field(default_factory=dict)


CALLERS: Sequence[Caller] = (Caller("open", None),)
"""All of them are tried with each operation."""


class Wrong(Exception):
    """An answer that must not be; ``str()`` has the call and the answer."""


@contextmanager
def a_server(mode: str) -> Iterator[Server]:
    """An imaging server on SQLite in this mode of ``[auth]``, with three requests, where no call waits."""
    assert mode == "open", mode
    with tempfile.TemporaryDirectory() as directory:
        url = f"sqlite:///{directory}/mozpool.sqlite"
        database = open_database(url)
        schema.create(database)
        database.dispose()
        with server(url, Path(directory)) as made:
            polls = made.app.extensions["mozpool.site"].long_polls
            polls._free = threading.BoundedSemaphore(1)
            for _ in range(3):
                made.made()
            with polls.slot(1):
                yield made


def one_round(number: int, callers: Sequence[Caller] = CALLERS) -> Counter[int]:
    """Some thousand calls, of all operations by all callers; how many had which status.

    Equal numbers give equal calls. Raises Wrong.
    """
    seen: Counter[int] = Counter()
    for mode in sorted({caller.mode for caller in callers}):
        with a_server(mode) as made:
            described = schemathesis.openapi.from_wsgi("/api/openapi.json", made.app)
            for result in described.get_all_operations():
                assert isinstance(result, Ok)
                for caller in callers:
                    if caller.mode == mode:
                        _try(made, result.ok(), caller, number, seen)
    return seen


def _try(made: Server, operation: Any, caller: Caller, number: int, seen: Counter[int]) -> None:
    rng = random.Random(f"{number} {operation.label} {caller.mode} {caller.role}")
    for case in _mixed(list(_made_up(operation, number)), rng):
        known = {"name": rng.choice((*NAMES, "")), "number": rng.choice((*NUMBERS, ""))}
        case.path_parameters = {key: known.get(key) or value for key, value in (case.path_parameters or {}).items()}
        answer = case.call(headers=dict(caller.headers))
        seen[answer.status_code] += 1
        fault = ", ".join(made.undocumented)
        if answer.status_code >= 500 and answer.status_code not in HARDWARE:
            fault = "a fault of the server"
        if fault:
            made.undocumented.clear()
            who = f"{caller.mode}, {caller.role or 'no role'}"
            raise Wrong(f"{fault} ({who}): {case.as_curl_command()} answered {answer.status_code} {answer.text[:500]}")


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
    """These, and others of their parts."""
    for case in cases:
        for _ in range(MIXED):
            path, query, headers, last = (rng.choice(cases) for _ in range(4))
            body, media_type = last.body, last.media_type
            first = case.body
            if isinstance(body, dict) and isinstance(first, dict) and rng.random() < 0.5:
                # Keys of one, and keys of the other.
                body = {**first, **{key: value for key, value in body.items() if rng.random() < 0.5}}
            yield case.operation.Case(
                method=case.method,
                path_parameters=dict(path.path_parameters or {}),
                query=query.query,
                headers=headers.headers,
                body=body,
                media_type=media_type,
            )
        yield case


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--cases", type=click.IntRange(1), default=100_000, show_default=True, help="How many calls at least.")
@click.option("--first-round", type=int, default=1, show_default=True)
def main(cases: int, first_round: int) -> None:
    """Make calls of the API that schemathesis makes up, until there were enough.

    The exit status is 1 when an answer was not as described; the call and the answer are shown.
    """
    logging.disable(logging.CRITICAL)  # what is wrong is in the answers
    seen: Counter[int] = Counter()
    number = first_round
    while seen.total() < cases:
        try:
            seen += one_round(number)
        except Wrong as error:
            click.echo(f"WRONG in round {number}: {error}")
            raise SystemExit(1) from None
        statuses = ", ".join(f"{status}: {times}" for status, times in sorted(seen.items()))
        click.echo(f"round {number}: {seen.total()} cases so far ({statuses})")
        number += 1
    assert seen.total() >= cases
    click.echo(f"{seen.total()} cases; every answer was as described")


if __name__ == "__main__":
    main()
