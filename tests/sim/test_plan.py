# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Planning a pool: the file, the runs, what is shown of them."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import tomllib
from dataclasses import asdict

import pytest
from click.testing import CliRunner

from mozpool import resources
from mozpool.clock import Clock
from mozpool.fakes.board import Behaviour
from mozpool.pool import requestmachine
from mozpool.simulate import plan as plans
from mozpool.simulate.__main__ import Progress, main
from mozpool.simulate.faults import Rates, Scripted
from mozpool.simulate.scenario import Kind, Load, People, Scenario
from mozpool.simulate.statistics import Asked, Group, comparison, measure, report
from mozpool.simulate.world import World

SMALL = """\
hours = 0.4
seed = 5
servers = 1

[[devices]]
name = "panda"
count = 2

[[requests]]
name = "long"
per_hour = 20
hold = 600
wait = 400

[[requests]]
name = "at once"
per_hour = 20
hold = 100
wait = 0
image = "android"
"""


FAULTS = """
[[faults]]
kind = "relay_hangs"
at = 600.0
where = "relay-panda-0"
seconds = 300.0

[[faults]]
kind = "forced_state"
at = 700.0
where = "panda-0002"
state = "locked_out"

[[faults]]
kind = "crash"
at = 800.0
where = "server-9"
"""


@pytest.fixture
def small(tmp_path):
    """A plan with more requests than its devices can serve."""
    file = tmp_path / "small.toml"
    file.write_text(SMALL)
    return file


def run(*arguments: object):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def numbers(text: str, title: str) -> list[list[str]]:
    """The lines of the table with this title, split where columns are."""
    lines = text.splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith(title)) + 1
    return [re.split(r" {2,}", line) for line in lines[start : lines.index("", start)] if "  " in line]


# The file


def example() -> str:
    if resources.CHECKOUT is None:
        pytest.skip("the example is in the checkout")
    return (resources.CHECKOUT / "docs" / "plan.toml").read_text("utf-8")


def test_the_example_explains_every_key_and_its_defaults_are_true():
    text = re.sub("^# rates = .*\n", "", example(), flags=re.M)
    uncommented = re.sub(r"^# (\w+ = |\[\[faults)", r"\1", text, flags=re.M)
    content = tomllib.loads(uncommented)
    panda, tests = content["devices"][0], content["requests"][0]
    tests["hardware_type"] = content["requests"][1]["hardware_type"]
    for values, known in (
        (content, plans.PLAN),
        (panda, plans.DEVICES),
        (panda["behaviour"], plans.BEHAVIOUR),
        (tests, plans.REQUESTS),
        (content["people"], plans.PEOPLE),
        (content["rates"], plans.RATES),
        (content["faults"][0], plans.FAULTS),
    ):
        assert values.keys() == known.keys()
        for key in known:
            explained = rf"^(# )?{key} = .*# \w|^#.*\w.*\n(# )?\[+(\w+\.)?{key}\]"
            assert re.search(explained, text, re.M), f"{key} has no comment"

    silent = set(re.findall(r"^# (\w+) = ", text, re.M)) - plans.FAULTS.keys()
    defaults = asdict(Kind()) | asdict(Load(named=0.0)) | asdict(Behaviour()) | asdict(People()) | asdict(Rates.none())
    written = panda | tests | panda["behaviour"] | content["people"] | content["rates"]
    assert len(silent) > 30
    assert {key: written[key] for key in silent} == {key: defaults[key] for key in silent}


def test_the_example_can_be_run(tmp_path):
    file = tmp_path / "plan.toml"
    file.write_text(example())
    result = run(file, "--hours", "0.1")
    assert result.exit_code == 0, result.output
    assert result.output.startswith("plan, seed 1: 20 devices, 2 servers, 0.1 h")


def test_a_plan_says_what_is_simulated(small):
    plan = plans.read(small)
    assert plan == plans.Plan(
        "small",
        Scenario(
            servers=1,
            hours=0.4,
            kinds=(Kind("panda", 2),),
            loads=(
                Load("long", per_hour=20, hold=600, wait=400, named=0.0),
                Load("at once", per_hour=20, hold=100, wait=0, image="android", named=0.0),
            ),
            rates=Rates.none(),
        ),
        5,
    )


def test_faults_are_all_or_some(small):
    small.write_text('rates = "rough"\n' + SMALL)
    assert plans.read(small).scenario.rates == Rates()
    small.write_text(SMALL + "[rates]\ncrash = 0.5\n")
    assert plans.read(small).scenario.rates == Rates(**asdict(Rates.none()) | {"crash": 0.5})


def test_a_plan_may_have_faults_at_given_times(small):
    small.write_text(SMALL + FAULTS)
    plan = plans.read(small)
    assert plan.scenario.script == (
        Scripted("relay_hangs", 600.0, "relay-panda-0", seconds=300.0),
        Scripted("forced_state", 700.0, "panda-0002", state="locked_out"),
        Scripted("crash", 800.0, "server-9"),
    )
    result = run(small)
    assert result.exit_code == 0, result.output
    assert numbers(result.output, "OTHER FAULTS")[0][0] in ("relay hangs", "forced state")
    assert result.output.endswith("\nNO OPPORTUNITY FOR\ncrash (server-9) at 800 s\n")
    (shown,) = json.loads(run(small, "--json").output)["runs"]
    assert shown["faults"] == {"relay_hangs": 1, "forced_state": 1}
    assert shown["faults_without_opportunity"] == ["crash (server-9) at 800 s"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("kind = 'crash'", "[[faults]] 1: at is missing: it must be seconds, at least 0"),
        ("kind = 'fire'\nat = 1", "[[faults]] 1: kind: 'fire' is not one of crash, "),
        ("kind = 'crash'\nat = -1", "[[faults]] 1: at: -1 is not seconds, at least 0"),
        ("kind = 'deadlock'\nat = 1\nseconds = 2", "[[faults]] 1: seconds: 2 is not expected for deadlock, but for "),
        ("kind = 'crash'\nat = 1\nstate = 'new'", "[[faults]] 1: state: 'new' is not one of ready, "),
        ("kind = 'crash'\nat = 1\nstate = 'ready'", "[[faults]] 1: state: 'ready' is not expected for crash, but for "),
    ],
)
def test_a_fault_that_cannot_happen_is_named(small, wrong, message):
    small.write_text(f"{SMALL}[[faults]]\n{wrong}\n")
    result = run(small)
    assert result.exit_code == 2
    assert result.output.startswith(f"mozpool.simulate: {small}: {message}"), result.output


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("hours = 0.4", "hours = 0", "hours: 0 is not hours, more than 0"),
        ("hours = 0.4", "hours = nan", "hours: nan is not hours, more than 0"),
        ("seed = 5", "seed = 1.5", "seed: 1.5 is not a whole number from 0 to 9223372036854775807"),
        ("servers = 1", "severs = 1", "severs: 1 is not expected here, where these keys are: hours, seed, servers"),
        ("count = 2", "count = true", "[[devices]] 1: count: True is not a whole number from 1 to 5000"),
        ("count = 2", "", "[[devices]] 1: count is missing: it must be a whole number from 1 to 5000"),
        ('"panda"', '"p.1"', "[[devices]] 1: name: 'p.1' is not a word"),
        (
            "count = 2",
            "count = 2\nbehaviour = { boot_failure = 2 }",
            "[[devices]] 1: behaviour.boot_failure: 2 is not a number from 0 to 1",
        ),
        ("count = 2", "count = 2\nbehaviour = { speed = 2 }", "[[devices]] 1: behaviour.speed: 2 is not expected here"),
        ("count = 2", "count = 2\nlabels = { a = 1 }", "[[devices]] 1: labels: {'a': 1} is not a table of texts"),
        ("wait = 0", "wait = -1", "[[requests]] 2: wait: -1 is not a whole number from 0 to 1000000"),
        ('"android"', '"raw"', "[[requests]] 2: image: 'raw' is not one of b2g, android"),
        ('"at once"', '"long"', "[[requests]] 2: name: 'long' is not a name that no other one has"),
        ("per_hour = 20", "per_hour = 0", "[[requests]] 1: per_hour: 0 is not more than 0, and there are no bursts"),
        (
            "wait = 0",
            'hardware_type = "tegra"',
            "[[requests]] 2: environment, hardware_type, labels: {'environment': 'any', 'hardware_type': 'tegra', "
            "'labels': {}} is not what any [[devices]] have",
        ),
        ("[[devices]]", "[devices]", "devices: {'name': 'panda', 'count': 2} is not a list of tables"),
        ("servers = 1", "people = { mends = -1 }", "[people]: mends: -1 is not times an hour, at least 0"),
        ("servers = 1", "rates = { crash = 2 }", "[rates]: crash: 2 is not a probability from 0 to 1"),
        ("servers = 1", 'rates = "many"', "rates: 'many' is not \"rough\", or a table"),
        ("seed = 5", "seed = ", "Invalid value (at line 2, column 8)"),
    ],
)
def test_what_is_wrong_in_a_plan_is_named(small, old, new, message):
    small.write_text(SMALL.replace(old, new))
    result = run(small)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith(f"mozpool.simulate: {small}: {message}")


@pytest.mark.parametrize("section", ["devices", "requests"])
def test_a_plan_needs_devices_and_requests(small, section):
    small.write_text(re.sub(rf"\[\[{section}\]\]\n(\S.*\n)+", "", SMALL))
    result = run(small)
    assert result.exit_code == 2
    assert result.stderr == f"mozpool.simulate: {small}: {section} is missing: it must be a list of tables\n"


def test_a_plan_that_is_not_there_is_named(tmp_path):
    result = run(tmp_path / "none.toml")
    assert result.exit_code == 2
    assert result.stderr == f"mozpool.simulate: {tmp_path}/none.toml: No such file or directory\n"


# A run


@pytest.fixture(scope="module")
def overfull(tmp_path_factory):
    """The plan, its scenario and a run of it."""
    file = tmp_path_factory.mktemp("plan") / "small.toml"
    file.write_text(SMALL)
    scenario = plans.read(file).scenario
    return scenario, measure(scenario, 5)


def test_it_counts_what_the_log_of_the_simulation_says_and_nothing_after_the_last_hour(overfull):
    scenario, found = overfull
    asked, ready, ended = {}, {}, {}

    def hear(line: str) -> None:
        line_on_request = re.fullmatch(r"(\S+) request (\d+): (?:\w+ -> )?(\w+)", line)
        if line_on_request is None:
            return
        time, number, state = line_on_request.groups()
        if float(time) > scenario.hours * 3600:
            return
        if number not in asked:
            asked[number] = float(time)
        elif state == "ready":
            ready[number] = float(time)
        elif state == "closed" or state.startswith("failed_"):
            ended[number] = state

    result = World(scenario, "5", hear=hear).run()
    group = found.all
    assert result.violation is None
    assert len(group.asked) == len(asked)
    assert group.times == pytest.approx(sorted(ready[number] - asked[number] for number in ready), abs=0.002)
    assert sorted(each.state for each in group.failed) == sorted(
        state for number, state in ended.items() if number not in ready
    )
    assert group.waiting == len(asked.keys() - ready.keys() - ended.keys())
    assert group.times
    assert group.failed
    assert max(found.moments) <= scenario.hours * 3600 < found.simulated


def test_all_devices_are_of_some_category_all_the_time(overfull):
    scenario, found = overfull
    assert len(found.moments) == len(found.waiting) == scenario.hours * 3600 / 5
    assert {sum(counts) for counts in zip(*found.devices.values(), strict=True)} == {scenario.devices}
    assert sum(found.share(name) for name in found.devices) == pytest.approx(1)
    assert 0 < found.utilisation < 1


def test_requests_are_told_apart_by_kind(overfull):
    _, found = overfull
    long, at_once, total = found.groups()
    assert (long.name, at_once.name, total.name) == ("long", "at once", "all")
    assert len(long.asked) + len(at_once.asked) == len(total.asked)
    assert ("failed_device_not_found", "no matching device is free") in {reason[:2] for reason in at_once.reasons()}
    assert at_once.waiting == 0


def test_its_report_shows_it_in_columns(overfull):
    _, found = overfull
    text = "\n".join(report(found, "small"))
    rows = numbers(text, "REQUESTS")
    assert [row[0] for row in rows] == ["long", "at once", "all"]
    for row, group in zip(rows, found.groups(), strict=True):
        assert row[1:4] == [str(len(group.asked)), str(len(group.times)), str(len(group.failed))]
        assert row[-3] == (f"{group.quantile(0.5):.0f}" if group.times else "-")
    assert "devices out of service" in text
    assert f"Utilisation (devices in use): {100 * found.utilisation:.1f} %" in text
    table = text.splitlines()[2:6]
    assert len({len(line) for line in table}) == 1, "numbers are aligned to the right"


def test_quantiles_are_waits_that_somebody_had():
    group = Group("tests", [Asked("tests", 10.0, ready=10.0 + seconds) for seconds in range(1, 101)])
    assert [group.quantile(share) for share in (0.5, 0.95, 0.99)] == [50, 95, 99]
    assert Group("tests", [Asked("tests", 0.0, ready=7.0)]).quantile(0.5) == 7
    assert Group("tests", [Asked("tests", 0.0)]).quantile(0.5) is None


def test_the_failed_share_is_of_those_that_wait_no_more():
    requests = [Asked("a", 0.0, ready=1.0), Asked("a", 0.0, ended=1.0), Asked("a", 0.0), Asked("a", 0.0)]
    assert Group("a", requests).failed_share == 0.5
    assert Group("a", requests[2:]).failed_share is None
    used = Asked("a", 0.0, ready=1.0, ended=2.0)
    assert Group("a", [used]).failed_share == 0


def test_failures_of_boards_and_faults_are_counted_by_kind():
    scenario = Scenario(
        servers=1,
        kinds=(Kind("panda", 2, behaviour=Behaviour(reboot_failure=1.0)),),
        loads=(Load("tests", per_hour=20, named=0.0),),
        rates=Rates(**asdict(Rates.none()) | {"relay_wrong": 0.2}),
        hours=0.3,
    )
    found = measure(scenario, 1)
    assert found.board_failures["hung in the reboot"] > 0
    assert found.faults.keys() == {"relay_wrong"}
    assert re.search(r"^relay wrong +\d", "\n".join(report(found, "x")), re.M)


def test_requests_that_are_refused_have_failed():
    scenario = Scenario(
        servers=1,
        kinds=(Kind("panda", 3),),
        loads=(Load("tests", per_hour=100, hold=5.0, named=1.0),),
        people=People(removed=200),
        rates=Rates.none(),
        hours=0.3,
    )
    found = measure(scenario, 1)
    assert ("refused", "there is no device panda-…") in {reason[:2] for reason in found.all.reasons()}
    assert all(each.load == "tests" for each in found.asked)


# Several runs


def test_devices_are_shared_out_in_the_plans_proportions():
    scenario = Scenario(kinds=(Kind("a", 10), Kind("b", 5), Kind("c", 1)))
    for count, counts in ((16, [10, 5, 1]), (32, [20, 10, 2]), (3, [1, 1, 1]), (17, [11, 5, 1]), (8, [5, 2, 1])):
        assert [kind.count for kind in plans.sweep(scenario, "devices", count).kinds] == counts
    assert [kind.count for kind in plans.sweep(scenario, "b", 7).kinds] == [10, 7, 1]


def test_a_sweep_has_a_row_for_each_number_and_more_devices_serve_better(small):
    result = run(small, "--sweep", "devices=1,8", "--json")
    assert result.exit_code == 0, result.output
    few, many = json.loads(result.stdout)["runs"]
    assert (few["devices"], many["devices"]) == ({"panda": 1}, {"panda": 8})
    assert many["requests"][-1]["ready"] > few["requests"][-1]["ready"]
    assert many["requests"][-1]["failed_share"] < few["requests"][-1]["failed_share"]


def test_seeds_are_compared(small):
    result = run(small, "--seeds", 2, "--hours", 0.2)
    assert result.exit_code == 0, result.output
    head, *rows = result.stdout.splitlines()[1:]
    assert head.split()[:2] == ["SEED", "ASKED"]
    one, two, together = (row.split() for row in rows[:3])
    low, high = sorted((int(one[1]), int(two[1])))
    assert [one[0], two[0]] == ["5", "6"]
    assert " ".join(together).startswith(f"all {(low + high) / 2:.0f} ({low} to {high})")


def test_equal_seeds_give_equal_numbers(overfull):
    scenario, found = overfull
    again = measure(scenario, 5)
    assert list(comparison("seed", {5: [again]})) == list(comparison("seed", {5: [found]}))
    assert again.asked == found.asked


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--sweep", "devices"), "'devices' is not NAME=NUMBER,NUMBER..."),
        (("--sweep", "devices=1,0"), "'devices=1,0' is not NAME=NUMBER,NUMBER..."),
        (("--sweep", "tegra=1"), "--sweep: sweep: 'tegra' is not one of devices, panda"),
        (("--plot", "x.gif"), "'x.gif' does not end with .svg or .png"),
        (("--plot", "/nowhere/x.svg"), "'/nowhere' is no directory"),
        (("--plot", "x.svg", "--seeds", "2"), "--plot shows one run"),
        (("--hours", "0"), "'--hours'"),
    ],
)
def test_bad_options_are_named(small, arguments, message):
    result = run(small, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_what_mozpool_did_wrong_is_shown_with_its_seed(small, monkeypatch):
    monkeypatch.setattr(requestmachine, "end", lambda ctx, reason: ctx.set(reason=reason))
    result = run(small)
    assert result.exit_code == 1
    assert re.search(
        r"^mozpool.simulate: seed 5, 2 devices: Mozpool did what it must not do: \S+ s: "
        r"request \d+ has ended \(closed\) and holds a device$",
        result.stderr,
        re.M,
    )


# Pictures, progress, what is not installed


def test_it_draws_a_run(small, tmp_path):
    assert run(small, "--hours", 0.2, "--plot", tmp_path / "small.svg").exit_code == 0
    drawn = (tmp_path / "small.svg").read_text("utf-8")
    for text in ("small, seed 5: 2 devices, 0.2 h", "Requests in the queue", "out of service", "p50: ", "p99: "):
        assert f"<!-- {text}" in drawn
    assert run(small, "--hours", 0.05, "--plot", tmp_path / "small.png").exit_code == 0
    png = (tmp_path / "small.png").read_bytes()
    assert png.startswith(b"\x89PNG")
    assert (int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")) == (1000, 1000)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Watch(Clock):
    """A clock that is set by hand."""

    time = 100.0

    def monotonic(self) -> float:
        return self.time


def test_progress_is_shown_on_terminals_only():
    clock = Watch()
    for stream in (Terminal(), io.StringIO()):
        progress = Progress(stream, clock)
        progress.begin("2 devices, seed 5", 4)
        progress(5.0)
        clock.time += 10.0
        progress(7200.0)
        progress(7205.0)
        progress.close()
        line = "\r\033[K2 devices, seed 5: 2.0 of 4 h, 720 times as fast as real time\r\033[K"
        assert stream.getvalue() == (line if stream.isatty() else "")


@pytest.mark.parametrize("missing", ["greenlet", "matplotlib"])
def test_it_says_which_library_is_missing(small, missing):
    code = (
        f"import sys; sys.modules[{missing!r}] = None\nfrom mozpool.simulate.__main__ import main\nmain(sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, str(small), "--plot", str(small.with_suffix(".svg"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == f"mozpool.simulate: {missing} is not installed: pip install 'mozpool[simulation]'\n"


def test_it_runs_as_a_module(small):
    done = subprocess.run(
        [sys.executable, "-m", "mozpool.simulate", small, "--hours", "0.05", "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    document = json.loads(done.stdout)
    (only,) = document["runs"]
    assert (document["plan"], only["seed"], only["hours"]) == ("small", 5, 0.05)
    assert only["simulated_seconds"] >= 180
    assert set(only["requests"][-1]["seconds_to_ready"]) == {"p50", "p95", "p99"}
