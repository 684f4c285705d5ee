# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Spans of time, for databases to reckon with: times are whole microseconds since 1970 there, and so is what lies
between them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import BigInteger, and_, case, func, literal
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.functions import FunctionElement

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
SECOND = 1_000_000
"""Microseconds."""
HOUR = 3600 * SECOND


class micros(FunctionElement[int]):
    """``micros(column)``: a time's microseconds since 1970."""

    name = "micros"
    type = BigInteger()
    inherit_cache = True


@compiles(micros)
def _on_sqlite(element: micros, compiler: SQLCompiler, **options: Any) -> str:
    (column,) = (compiler.process(clause, **options) for clause in element.clauses)
    # Times are texts there; its own functions know milliseconds only.
    return (
        f"(CAST(strftime('%s', substr({column}, 1, 19)) AS INTEGER) * {SECOND} + CAST(substr({column}, 21) AS INTEGER))"
    )


@compiles(micros, "mysql")
@compiles(micros, "mariadb")
def _on_mysql(element: micros, compiler: SQLCompiler, **options: Any) -> str:
    (column,) = (compiler.process(clause, **options) for clause in element.clauses)
    return f"TIMESTAMPDIFF(MICROSECOND, '1970-01-01', {column})"


def micros_of(moment: datetime) -> int:
    """:class:`micros` of a time that is known."""
    return (moment - EPOCH) // MICROSECOND


@dataclass(frozen=True)
class Span:
    """A time from a moment on, until before another one."""

    since: datetime
    until: datetime

    def has(self, column: ColumnElement[Any]) -> ColumnElement[bool]:
        """Whether a time lies in it."""
        return and_(column >= self.since, column < self.until)

    def cuts(self, begin: ColumnElement[Any], end: ColumnElement[Any]) -> ColumnElement[bool]:
        """Whether something lasted in it that lasted from ``begin`` to ``end`` (null: it still lasts)."""
        return and_(begin < self.until, end.is_(None) | (end > self.since))

    def part(self, begin: ColumnElement[Any], end: ColumnElement[Any]) -> ColumnElement[int]:
        """The microseconds of it that something lasted which it :meth:`cuts`."""
        since, until = literal(micros_of(self.since)), literal(micros_of(self.until))
        first = case((begin < self.since, since), else_=micros(begin))
        last = case((func.coalesce(end, self.until) >= self.until, until), else_=micros(end))
        return last - first

    def spent(
        self, changes: Iterable[tuple[datetime, str, str]], now_in: str | None, kind: Callable[[str], str]
    ) -> dict[str, int]:
        """Kind of state → the microseconds that something was in such states.

        ``changes`` are its changes of state since the beginning of the span, and perhaps after its end, in order:
        when, from which state, to which. Those between states of kinds that nobody asks for may be left out. ``now_in``
        is the state that it is in now; None when it is not there any more.
        """
        found: dict[str, int] = {}

        def was(state: str, begin: datetime, end: datetime) -> None:
            lasted = (min(end, self.until) - min(begin, self.until)) // MICROSECOND
            found[kind(state)] = found.get(kind(state), 0) + max(0, lasted)

        at = self.since
        for moment, source, _ in changes:
            was(source, at, moment)
            at = moment
        if now_in is not None:
            was(now_in, at, self.until)
        return found


def hours(microseconds: int) -> float:
    """As reports give them."""
    return round(microseconds / HOUR, 3)
