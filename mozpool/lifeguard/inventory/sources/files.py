# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""A file with all hosts: CSV with a heading, or a list in YAML or JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mozpool.clock import Deadline
from mozpool.lifeguard.inventory.hosts import FIELDS, NEEDED, Entry, InventoryError
from mozpool.lifeguard.inventory.sources import Say
from mozpool.lifeguard.inventory.sources.shared import listed, parse

SIZE_LIMIT = 64 * 1024 * 1024
"""Bytes of a file."""


class FileSource:
    """The end of the file's name tells what it is."""

    needed = NEEDED

    def __init__(self, path: Path) -> None:
        self._path = path
        self.title = str(path)

    def entries(self, deadline: Deadline, say: Say) -> Sequence[Entry]:
        """All of the file's hosts; those of a CSV file are named by their lines."""
        read: Mapping[str, Callable[[str], list[Entry]]] = {
            ".csv": self._csv,
            ".json": self._json,
            ".yaml": self._yaml,
            ".yml": self._yaml,
        }
        return read[self._path.suffix.lower()](self._text())

    def _text(self) -> str:
        try:
            # Not what it never ends with: a device or a pipe.
            if not self._path.is_file():
                raise InventoryError(f"{self.title}: there is no such file")
            if self._path.stat().st_size > SIZE_LIMIT:
                raise InventoryError(f"{self.title}: it has more than {SIZE_LIMIT} bytes")
            return self._path.read_text(encoding="utf-8-sig")
        except OSError as error:
            raise InventoryError(f"{self.title}: cannot be read: {error.strerror}") from error
        except UnicodeDecodeError:
            raise InventoryError(f"{self.title}: is not text in UTF-8") from None

    def _json(self, text: str) -> list[Entry]:
        return listed(parse(text, self.title), self.title)

    def _yaml(self, text: str) -> list[Entry]:
        try:
            value = yaml.load(text, Loader=_Loader)  # noqa: S506 - it is a SafeLoader  # nosec B506
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
            raise InventoryError(f"{self.title}: {place}{getattr(error, 'problem', None) or 'no YAML'}") from None
        except Exception as error:
            # Of values that are not what their tags say, PyYAML raises KeyError, AttributeError and others.
            raise InventoryError(f"{self.title}: no YAML: {str(error)[:200] or type(error).__name__}") from None
        return listed(value, self.title)

    def _csv(self, text: str) -> list[Entry]:
        rows = csv.reader(io.StringIO(text, newline=""), strict=True)
        found: list[Entry] = []
        head: list[str] | None = None
        try:
            for row in rows:
                if not row or row[0].lstrip().startswith("#"):
                    continue
                if head is None:
                    head = self._head([name.strip() for name in row])
                    continue
                place = f"{self.title}, line {rows.line_num}"
                if len(row) != len(head):
                    raise InventoryError(f"{place}: it has {len(row)} fields where the heading has {len(head)}")
                values = {name: cell.strip() for name, cell in zip(head, row, strict=True)}
                found.append(Entry(f"{place} ({values['fqdn']})" if values["fqdn"] else place, values))
        except csv.Error as error:
            raise InventoryError(f"{self.title}, line {rows.line_num}: {error}") from None
        if head is None:
            raise InventoryError(f"{self.title}: it has no heading; expected {','.join(FIELDS)}")
        return found

    def _head(self, names: list[str]) -> list[str]:
        for number, name in enumerate(names):
            if name not in FIELDS:
                raise InventoryError(f"{self.title}: {name!r} is no field; expected some of {', '.join(FIELDS)}")
            if name in names[:number]:
                raise InventoryError(f"{self.title}: the field {name} stands twice in the heading")
        missing = [name for name in ("inventory_id", *NEEDED) if name not in names]
        if missing:
            raise InventoryError(f"{self.title}: the heading lacks {', '.join(missing)}")
        return names


class _Loader(yaml.SafeLoader):
    """In which no key comes twice, and what looks like a number in base 60 is the text that it was meant as."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:str":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"{key.value!r} stands there twice", key.start_mark
                    )
                seen.add(key.value)
        made: dict[Any, Any] = super().construct_mapping(node, deep)
        return made


def _as_text(loader: _Loader, node: yaml.ScalarNode) -> str | int:
    """Whole numbers in plain digits are numbers; 00:11:22:33:44:55, 0x1f and 0123 stay as they are written."""
    text = str(node.value)
    plain = text.removeprefix("-").isdecimal() and (text == "0" or not text.removeprefix("-").startswith("0"))
    # A MAC address of decimal digits alone is as long as no id is.
    return int(text) if plain and len(text) <= 10 else text


def _float_as_text(loader: _Loader, node: yaml.ScalarNode) -> str:
    return str(node.value)


_Loader.add_constructor("tag:yaml.org,2002:int", _as_text)
_Loader.add_constructor("tag:yaml.org,2002:float", _float_as_text)
