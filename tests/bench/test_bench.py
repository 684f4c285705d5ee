# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The benchmarks run, and what they do is right; how fast it is, they only print."""

from __future__ import annotations

import statistics
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.bench import launcher
from tests.bench.__main__ import DOCS, ROOT, found_cases, main
from tests.bench.document import BEGIN, END, summarise, write
from tests.bench.figures import Figure
from tests.bench.profile import Samples
from tests.bench.results import Results, Taken
from tests.bench.targets import TARGETS, Limit


def invoke(output: Path, *arguments: str) -> str:
    """Run the benchmarks; what they printed."""
    done = CliRunner().invoke(main, [*arguments, "--output", str(output)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.mysql
@pytest.mark.usefixtures("mariadb")
@pytest.mark.timeout(300)
@pytest.mark.parametrize("letter", found_cases())
def test_each_case_gives_figures(letter: str, tmp_path: Path) -> None:
    # Every other one over MariaDB, to be short: c over both servers of a pool is only there.
    database = "mariadb" if letter in "acegi" else "sqlite"
    said = invoke(tmp_path, "--case", letter, "--short", "--no-peers", "--database", database)
    taken = Results.load(tmp_path / "benchmarks.json").of(letter)
    assert taken is not None
    assert taken.figures
    for figure in taken.figures:
        assert figure.case == letter
        assert figure.values
        assert all(value >= 0 for value in figure.values), figure
        assert f"{figure.case} {figure.subject} (" in said
    document = (tmp_path / "benchmarks.md").read_text()
    assert f"## {letter}. {taken.title}" in document
    assert (tmp_path / "benchmarks" / f"{letter}.svg").read_text().startswith("<?xml")


def taken(case: str, *figures: Figure) -> Taken:
    """Results of a case, as if it had been run."""
    return Taken(f"Case {case}", "What it is.", "2026-12-01 10:00 UTC", 60.0, {"processor": "two"}, figures)


def hand_off(values: tuple[float, ...], servers: int) -> Figure:
    """A figure that a target is about."""
    return Figure("c", "mozpool", "hand-off: p50", "ms", values, {"database": "mariadb", "servers": servers})


def test_a_case_that_is_run_again_replaces_its_own_figures_only(tmp_path: Path) -> None:
    path = tmp_path / "benchmarks.json"
    results = Results({})
    results.put("b", taken("b", Figure("b", "mozpool", "rate", "1/s", (1.0, 2.0, 4.0), {"devices": 10})))
    results.put("c", taken("c", hand_off((9.0,), 1)))
    results.save(path)
    again = Results.load(path)
    again.put("c", taken("c", hand_off((7.0,), 1)))
    again.save(path)
    found = Results.load(path)
    assert found.of("b") == results.of("b")
    assert [figure.values for figure in found.find("c", "hand-off: p50", "mozpool", {"servers": 1})] == [(7.0,)]


@pytest.mark.parametrize(("median", "words"), [(8.0, "| met | 1.25 |"), (20.0, "| **missed** | 0.50 |")])
def test_the_document_says_whether_targets_are_met(median: float, words: str, tmp_path: Path) -> None:
    results = Results({"c": taken("c", hand_off((median - 1, median, median + 1), 1))})
    write(results, tmp_path)
    document = (tmp_path / "benchmarks.md").read_text()
    line = next(line for line in document.splitlines() if "hand-off on one server, median" in line)
    assert line.endswith(words)
    assert "at most 10 ms" in line
    assert sum("not measured" in line for line in document.splitlines()) == len(TARGETS) - 1


def test_the_worst_of_several_figures_counts() -> None:
    results = Results({"c": taken("c", hand_off((5.0,), 1), hand_off((30.0,), 2))})
    verdict = Limit("c", "all", "hand-off: p50", 10.0, where={"servers": (1, 2)}).judge(results)
    assert verdict.figure.startswith("30 ms")
    assert not verdict.met


def test_a_target_may_be_a_multiple_of_a_peer() -> None:
    peer = Figure("c", "labgrid", "hand-off: p50", "ms", (8.0,), {"places": 100})
    results = Results({"c": taken("c", hand_off((4.0,), 1), peer)})
    other = ("labgrid", "hand-off: p50", {"places": 100})
    verdict = Limit("c", "as soon", "hand-off: p50", 1.0, where={"servers": 1}, times=other).judge(results)
    assert (verdict.target, verdict.ratio) == ("at most 8 ms (1 × labgrid)", 2.0)


def test_the_summary_stands_between_its_marks(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    summarise(Results({"c": taken("c", hand_off((8.0,), 1))}), readme)
    text = readme.read_text()
    assert text.startswith(f"before\n{BEGIN}\n| what |")
    assert text.endswith(f"`scripts/bench --case c` |\n{END}\nafter\n")
    assert "old" not in text


def test_the_documents_belong_to_the_raw_figures(tmp_path: Path) -> None:
    results = Results.load(DOCS / "benchmarks.json")
    write(results, tmp_path)
    assert (tmp_path / "benchmarks.md").read_text() == (DOCS / "benchmarks.md").read_text()
    readme = tmp_path / "README.md"
    readme.write_text((ROOT / "README.md").read_text())
    summarise(results, readme)
    assert readme.read_text() == (ROOT / "README.md").read_text()


def test_samples_of_a_profile_are_counted_by_function() -> None:
    text = (
        "main (mozpool/a.py:3);work (mozpool/b.py:7) 3\nmain (mozpool/a.py:4);work (mozpool/b.py:9);read (s.py:1) 2\n"
    )
    samples = Samples.read(text)
    assert samples.total == 5
    assert samples.inside["work (mozpool/b.py)"] == 5
    assert samples.itself == {"work (mozpool/b.py)": 3, "read (s.py)": 2}


def test_the_script_tells_how_it_is_used() -> None:
    said = subprocess.run([str(ROOT / "scripts" / "bench"), "--help"], capture_output=True, text=True, check=True)
    for option in main.params:
        assert option.opts[0] in said.stdout


def test_short_figures_do_not_get_into_the_documents() -> None:
    done = CliRunner().invoke(main, ["--short"])
    assert done.exit_code == 2
    assert "--output" in done.output


@pytest.mark.parametrize("phones", [8, 60])
def test_all_phones_are_busy_sooner_than_by_the_old_rules(phones: int) -> None:
    results = {rules: [launcher.run(rules, phones, seed) for seed in range(5)] for rules in launcher.RULES}
    assert not any(each.violations for found in results.values() for each in found)
    assert max(each.most_initiated for each in results["new"]) <= 40
    old, new = (statistics.median(each.busy for each in results[rules]) for rules in ("old", "new"))
    assert new < (old / 2 if phones == 60 else old)
    # As fast as the spacing allows, and a look.
    assert all(each.started <= 2 * phones + 10 for each in results["new"])
