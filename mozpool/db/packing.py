# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Wide rows in one column: the database packs a row into a JSON array, we unpack it.

PyMySQL takes longer to read the description of forty columns than the database takes to find the row; packed, a row
costs about a fifth. MySQL, MariaDB and SQLite all have ``json_array``. What JSON can't carry (moments, flags, JSON in
text columns) is converted by the type of the dataclass's field.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Table, Text, func, type_coerce
from sqlalchemy.sql.elements import ColumnElement


class Pack:
    """How the fields of a dataclass are packed into one column, and unpacked."""

    def __init__(
        self,
        row_type: type,
        columns: Mapping[str, ColumnElement[Any]],
        table: Table,
        *,
        extra: Sequence[ColumnElement[Any]] = (),
        convert: Mapping[str, Callable[[Any], Any]],
    ) -> None:
        """Fields that ``columns`` does not name are columns of ``table``; ``extra`` come behind all fields."""
        names = [field.name for field in fields(row_type)]
        chosen = [columns[name] if name in columns else table.c[name] for name in names]
        self.column: ColumnElement[str] = type_coerce(func.json_array(*chosen, *extra), Text).label("packed")
        self._names = names
        by_type: dict[str, Callable[[Any], Any]] = {"datetime | None": _moment, "datetime": _moment, "bool": bool}
        self._convert = [
            (index, convert.get(field.name) or by_type[str(field.type)])
            for index, field in enumerate(fields(row_type))
            if field.name in convert or str(field.type) in by_type
        ]

    def index(self, name: str) -> int:
        """Where a field stands among the values."""
        return self._names.index(name)

    def values(self, text: str) -> list[Any]:
        """The fields' values, in order, and the extra ones."""
        found: list[Any] = json.loads(text)
        for index, convert in self._convert:
            found[index] = convert(found[index])
        return found


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text).replace(tzinfo=UTC)


def loads_object(text: str | None) -> dict[str, Any]:
    """A JSON object from a text column; anything else in it counts as an empty one."""
    if not text or text == "{}":
        return {}
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def loads_counters(text: str | None) -> dict[str, int]:
    """The retry counters of a row."""
    return {key: value for key, value in loads_object(text).items() if isinstance(value, int)}


def loads_strings(text: str | None) -> dict[str, str]:
    """An object whose values are texts."""
    return {key: str(value) for key, value in loads_object(text).items()}
