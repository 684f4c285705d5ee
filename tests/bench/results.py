# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The results of the benchmarks as they are kept: ``benchmarks.json``, a part for each case."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.bench.figures import Figure


@dataclass(frozen=True)
class Taken:
    """What one case gave when it was run last."""

    title: str
    text: str
    """What was measured: a paragraph of Markdown for each of those that were measured."""
    at: str
    """When: an ISO time."""
    seconds: float
    """How long it took."""
    machine: Mapping[str, str]
    figures: tuple[Figure, ...]


class Results:
    """All cases, by their letters."""

    def __init__(self, cases: Mapping[str, Taken]) -> None:
        self._cases = dict(cases)

    @classmethod
    def load(cls, path: Path) -> Results:
        """Read a file; without one, there are no results yet."""
        if not path.exists():
            return cls({})
        found: dict[str, Any] = json.loads(path.read_text())
        return cls({letter: _taken(part) for letter, part in found.items()})

    def save(self, path: Path) -> None:
        """Write a file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        parts = {letter: asdict(self._cases[letter]) for letter in self.letters()}
        path.write_text(json.dumps(parts, indent=1, default=dict) + "\n")

    def put(self, letter: str, taken: Taken) -> None:
        """The new results of one case; those of the others stay."""
        self._cases[letter] = taken

    def letters(self) -> list[str]:
        """The cases that there are results of."""
        return sorted(self._cases)

    def of(self, letter: str) -> Taken | None:
        """The results of one case."""
        return self._cases.get(letter)

    def find(self, case: str, measure: str, subject: str, where: Mapping[str, object]) -> Iterator[Figure]:
        """The figures of this measure; each of ``where`` is a value of a parameter, or a tuple of those allowed."""
        taken = self._cases.get(case)
        for figure in taken.figures if taken else ():
            if figure.measure == measure and figure.subject == subject and _fits(figure, where):
                yield figure


def _fits(figure: Figure, where: Mapping[str, object]) -> bool:
    for name, wanted in where.items():
        allowed = wanted if isinstance(wanted, tuple) else (wanted,)
        if figure.parameters.get(name) not in allowed:
            return False
    return True


def _taken(part: dict[str, Any]) -> Taken:
    figures = tuple(Figure(**{**each, "values": tuple(each["values"])}) for each in part["figures"])
    return Taken(**{**part, "figures": figures})
