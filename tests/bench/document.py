# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What people read of the results: ``benchmarks.md`` with its plots, and the summary in the README."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.bench.figures import Figure
from tests.bench.plots import plot
from tests.bench.results import Results, Taken
from tests.bench.targets import TARGETS, Verdict, number

BEGIN, END = "<!-- benchmarks: written by scripts/bench -->", "<!-- benchmarks: end -->"

HEAD = """\
# Benchmarks

Written by `scripts/bench`; the raw figures are in [benchmarks.json](benchmarks.json). `scripts/bench` repeats all of
it, `scripts/bench --case a` one case; what the others gave stays as it is. On a machine that does nothing else:
everything here shares the processors with what it measures.

How it is measured: each daemon runs in a process of its own, with the default settings, over a new database, in which
are devices whose boards answer at once (`tests/bench/plugins`): what is left is Mozpool. MariaDB runs on the same
machine and flushes its log at each commit (`innodb_flush_log_at_trx_commit=1`, no binary log); SQLite is set up as
Mozpool does it (WAL, `synchronous=NORMAL`: the log is not flushed at each commit, so a power cut can take the last
ones). Each figure is the median of its runs, with the widest distance of a run from it.
"""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _cell(figure: Figure | None) -> str:
    return "" if figure is None else f"{number(figure.median)} ± {figure.spread * 100:.0f} %"


def _tables(figures: Sequence[Figure]) -> str:
    """A table for each subject and each set of parameters: a row for their values, a column for a measure."""
    groups: dict[tuple[str, tuple[str, ...]], list[Figure]] = {}
    for figure in figures:
        groups.setdefault((figure.subject, tuple(figure.parameters)), []).append(figure)
    parts = []
    for (subject, names), found in groups.items():
        measures = list(dict.fromkeys((figure.measure, figure.unit) for figure in found))
        rows: dict[tuple[str | int, ...], dict[tuple[str, str], Figure]] = {}
        for figure in found:
            row = rows.setdefault(tuple(figure.parameters.values()), {})
            row[figure.measure, figure.unit] = figure
        head = [*names, *(f"{measure} ({unit})" if unit else measure for measure, unit in measures)]
        body = [[*map(str, key), *(_cell(row.get(measure)) for measure in measures)] for key, row in rows.items()]
        parts.append(f"**{subject}**\n\n{table(head, body)}")
    return "\n".join(parts)


def _ratio(verdict: Verdict) -> str:
    return "" if verdict.ratio is None else f"{verdict.ratio:.2f}"


def _met(verdict: Verdict) -> str:
    return "not measured" if verdict.ratio is None else "met" if verdict.met else "**missed**"


def _targets(verdicts: Sequence[Verdict]) -> str:
    rows = [
        [verdict.case, verdict.what, verdict.target, verdict.figure, _met(verdict), _ratio(verdict)]
        for verdict in verdicts
    ]
    return table(["case", "what", "target", "figure", "", "times better than the target"], rows)


def _section(letter: str, taken: Taken, picture: str | None) -> str:
    parts = [f"## {letter}. {taken.title}\n", f"`scripts/bench --case {letter}`\n", taken.text + "\n"]
    if picture:
        parts.append(f"![{taken.title}]({picture})\n")
    parts.append(_tables(taken.figures))
    machine = "; ".join(f"{name}: {value}" for name, value in taken.machine.items())
    runs = max((len(figure.values) for figure in taken.figures), default=0)
    parts.append(f"Measured {taken.at}, {runs} runs, {taken.seconds / 60:.0f} minutes in all. {machine}.\n")
    return "\n".join(parts)


def write(results: Results, directory: Path) -> None:
    """Write ``benchmarks.md`` and its plots into a directory."""
    verdicts = [target.judge(results) for target in TARGETS]
    pictures = directory / "benchmarks"
    pictures.mkdir(parents=True, exist_ok=True)
    parts = [HEAD, "## Targets\n", _targets(verdicts)]
    for letter in results.letters():
        taken = results.of(letter)
        assert taken is not None
        picture = pictures / f"{letter}.svg"
        drawn = plot(taken, picture)
        parts.append(_section(letter, taken, f"benchmarks/{picture.name}" if drawn else None))
    (directory / "benchmarks.md").write_text("\n".join(parts))


def summarise(results: Results, readme: Path) -> None:
    """Write the summary between its marks in the README."""
    rows = [
        [verdict.what, verdict.target, verdict.figure, f"`scripts/bench --case {verdict.case}`"]
        for verdict in (target.judge(results) for target in TARGETS)
        if verdict.ratio is not None
    ]
    before, mark, rest = readme.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not mark or not end:
        raise ValueError(f"{readme} lacks the line {BEGIN} or {END}")
    said = table(["what", "target", "figure", "command"], rows) if rows else ""
    readme.write_text(f"{before}{BEGIN}\n{said}{END}{after}")
