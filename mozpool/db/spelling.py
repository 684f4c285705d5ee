# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Names are compared letter by letter on every database.

MySQL by itself takes no notice of case, of accents and of spaces at the end: there ``DEVICE1`` would be ``device1``,
and a request for it would be stored with a name that no device has.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Boolean, Connection, String, func, select
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


class letters(FunctionElement[Any]):
    """``letters(column)``: to group by a column letter by letter, too."""

    name = "letters"
    inherit_cache = True


@compiles(letters)
def _letters_on_sqlite(element: letters, compiler: SQLCompiler, **options: Any) -> str:
    (column,) = (compiler.process(clause, **options) for clause in element.clauses)
    return column


@compiles(letters, "mysql")
@compiles(letters, "mariadb")
def _letters_on_mysql(element: letters, compiler: SQLCompiler, **options: Any) -> str:
    (column,) = (compiler.process(clause, **options) for clause in element.clauses)
    return f"CAST({column} AS BINARY)"


class stem(FunctionElement[str]):
    """``stem(column)``: a name without the number at its end, so that device2 can be sorted before device10."""

    name = "stem"
    type = String()
    inherit_cache = True


@compiles(stem)
def _stem_on_sqlite(element: stem, compiler: SQLCompiler, **options: Any) -> str:
    (column,) = (compiler.process(clause, **options) for clause in element.clauses)
    return f"rtrim({column}, '0123456789')"


@compiles(stem, "mysql")
@compiles(stem, "mariadb")
def _stem_on_mysql(element: stem, compiler: SQLCompiler, **options: Any) -> str:
    (column,) = (compiler.process(clause, **options) for clause in element.clauses)
    return f"REGEXP_REPLACE({column}, '[0-9]+$', '')"


def check_free(conn: Connection, column: ColumnElement[str], name: str, what: str) -> None:
    """Raise Conflict when a row has this name, or one that differs in case only: people would mix them up."""
    taken = conn.scalar(select(column).where(func.lower(column) == name.lower()).limit(1))
    if taken is not None:
        raise Conflict(f"{what} {name!r} can't be added: there is {taken!r}")
