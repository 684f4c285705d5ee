# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Plots of the figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure as Picture

from tests.bench.figures import Figure
from tests.bench.results import Taken

PANELS = 6
"""Of the measures of a case, those that come first."""

WIDTH, HEIGHT = 5.6, 3.8
"""Inches of a panel."""

ASIDE = "% of a core"
"""The unit of what is only in the tables where a case has other figures too."""


def plot(taken: Taken, path: Path) -> bool:
    """Draw the figures of a case as an SVG, a panel for each measure; whether there is anything to draw."""
    chosen = [figure for figure in taken.figures if figure.unit != ASIDE] or list(taken.figures)
    measures: dict[tuple[str, str], list[Figure]] = {}
    for figure in chosen:
        measures.setdefault((figure.measure, figure.unit), []).append(figure)
    panels = list(measures.items())[:PANELS]
    if not panels:
        return False
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    # The same figures give the same file.
    with mpl.rc_context({"svg.hashsalt": "mozpool", "svg.fonttype": "none", "font.size": 9}):
        picture = Picture(figsize=(WIDTH * columns, HEIGHT * rows), layout="constrained")
        for number, ((measure, unit), figures) in enumerate(panels, start=1):
            axes = picture.add_subplot(rows, columns, number)
            axes.set_title(measure)
            axis = _axis(figures)
            if axis is None:
                _bars(axes, figures, unit)
            else:
                _lines(axes, figures, unit, axis)
        picture.savefig(path, format="svg", metadata={"Date": None})
    return True


def _axis(figures: Sequence[Figure]) -> str | None:
    """The parameter to draw over: the one with the most numbers; None when none has two."""
    numbers: dict[str, set[int]] = {}
    for figure in figures:
        for name, value in figure.parameters.items():
            if isinstance(value, int):
                numbers.setdefault(name, set()).add(value)
    best = max(numbers, key=lambda name: len(numbers[name]), default=None)
    return best if best is not None and len(numbers[best]) > 1 else None


def _named(subject: str, parameters: Mapping[str, str | int]) -> str:
    """A legend's words, such as "mozpool, mariadb, 8 clients"."""
    words = [f"{value} {name}" if isinstance(value, int) else value for name, value in parameters.items()]
    return ", ".join([subject, *words])


def _errors(figures: Sequence[Figure]) -> list[list[float]]:
    return [
        [figure.median - min(figure.values) for figure in figures],
        [max(figure.values) - figure.median for figure in figures],
    ]


def _lines(axes: Any, figures: Sequence[Figure], unit: str, axis: str) -> None:
    lines: dict[str, list[Figure]] = {}
    for figure in figures:
        if axis in figure.parameters:
            rest = {name: value for name, value in figure.parameters.items() if name != axis}
            lines.setdefault(_named(figure.subject, rest), []).append(figure)
    for name, found in lines.items():
        found.sort(key=lambda figure: int(figure.parameters[axis]))
        places = [int(figure.parameters[axis]) for figure in found]
        axes.errorbar(
            places, [figure.median for figure in found], _errors(found), label=name, marker="o", markersize=3, capsize=2
        )
    axes.set_xscale("log")
    ticks = sorted({int(figure.parameters[axis]) for figure in figures if axis in figure.parameters})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel(axis)
    axes.set_ylabel(unit)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)


def _bars(axes: Any, figures: Sequence[Figure], unit: str) -> None:
    names = [_named(figure.subject, figure.parameters) for figure in figures]
    axes.barh(names, [figure.median for figure in figures], xerr=_errors(figures), capsize=2)
    axes.invert_yaxis()
    axes.set_xlabel(unit)
    axes.grid(alpha=0.3, axis="x")
