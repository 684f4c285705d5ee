# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Names are compared letter by letter on every database.

MySQL by itself takes no notice of case, of accents and of spaces at the end: there ``DEVICE1`` would be ``device1``,
and a request for it would be stored with a name that no device has.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Boolean, Connection, func, select
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.functions import FunctionElement

from mozpool.errors import Conflict


class exactly(FunctionElement[bool]):
    """``exactly(column, value)``: whether a column has this value and not just one that MySQL takes for it."""

    name = "exactly"
    type = Boolean()
    inherit_cache = True


@compiles(exactly)
def _on_sqlite(element: exactly, compiler: SQLCompiler, **options: Any) -> str:
    column, value = (compiler.process(clause, **options) for clause in element.clauses)
    return f"{column} = {value}"


@compiles(exactly, "mysql")
@compiles(exactly, "mariadb")
def _on_mysql(element: exactly, compiler: SQLCompiler, **options: Any) -> str:
    column, value = (compiler.process(clause, **options) for clause in element.clauses)
    # The first comparison is there for the indexes.
    return f"({column} = {value} AND CAST({column} AS BINARY) = CAST({value} AS BINARY))"


def check_free(conn: Connection, column: ColumnElement[str], name: str, what: str) -> None:
    """Raise Conflict when a row has this name, or one that differs in case only: people would mix them up."""
    taken = conn.scalar(select(column).where(func.lower(column) == name.lower()).limit(1))
    if taken is not None:
        raise Conflict(f"{what} {name!r} can't be added: there is {taken!r}")
