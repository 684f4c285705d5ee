# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The projects file: what it may say, and that whatever is wrong or odd in it is told in words, with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from mozpool import resources
from mozpool.bmm.projects import Projects, ProjectsError, load

PERF = [f"R5CX{number:04}PRF" for number in range(40)]
SHARED = [f"R5CX{number:04}SHR" for number in range(12)]
ALPHA = [f"R5CX{number:04}ALP" for number in range(20)]
OLD = [f"RZ8N{number:04}OLD" for number in range(16)]

BIG = f"""\
# five projects
global:
  contract_device_count: 85 # what we pay for
projects:
  defaults:
    TASKCLUSTER_CLIENT_ID: project/autophone/pool
    USER_SCRIPTS_VERSION: 1
  a55-perf:
    TC_WORKER_TYPE: t-lambda-perf-a55
    priority_group: a55
    priority: 3
  a55-alpha: # shares phones with a55-perf
    TC_WORKER_TYPE: t-lambda-alpha-a55
    priority_group: a55
  a51-perf:
    TC_WORKER_TYPE: t-lambda-perf-a51
  pixel:
    TC_WORKER_TYPE: t-lambda-perf-pixel
  later:
    USER_SCRIPTS_VERSION: 2
device_groups:
  a55-perf:
{"".join(f"    {udid}:{' a note' if udid.endswith('0PRF') else ''}{chr(10)}" for udid in PERF + SHARED)}\
  a55-alpha:
{"".join(f"    - {udid} # alpha{chr(10)}" for udid in SHARED + ALPHA)}\
  a51-perf: {" ".join(OLD)}
  pixel:
  a51-pref: RZ8NSPARE01 RZ8NSPARE02
"""


def read(tmp_path: Path, text: str, environ: dict[str, str] | None = None, **more) -> Projects:
    path = tmp_path / "lambdatest.yml"
    path.write_text(text)
    return load(path, environ or {}, **more)


def problems(tmp_path: Path, text: str) -> list[str]:
    with pytest.raises(ProjectsError) as caught:
        read(tmp_path, text)
    prefix = f"{tmp_path}/lambdatest.yml"
    return [line.removeprefix(prefix) for line in str(caught.value).splitlines()]


ONE = """\
projects:
  a:
    TC_WORKER_TYPE: w-a
    TASKCLUSTER_CLIENT_ID: c
    USER_SCRIPTS_VERSION: v1
"""


def test_five_projects_and_ninety_phones_load_and_each_oddity_is_told_in_words(tmp_path: Path):
    tokens = {"t_lambda_perf_a55": "secret1", "t_lambda_alpha_a55": "secret2"}
    projects = read(tmp_path, BIG, tokens)
    assert [project.name for project in projects.taking_part] == ["a55-perf", "a55-alpha", "a51-perf"]
    assert len(projects.projects) == 5
    assert len({udid for udids in projects.groups.values() for udid in udids}) == 90
    lines = BIG.splitlines()
    pixel = lines.index("  pixel:") + 1
    assert [(oddity.line, oddity.text) for oddity in projects.oddities] == [
        (3, "the device groups have 90 phones, and the contract is for 85"),
        (pixel, "project pixel has no access token either: t_lambda_perf_pixel is not set"),
        (
            lines.index("  later:") + 1,
            "project later does not take part: it lacks phones: there is no device group later; "
            "a worker type: TC_WORKER_TYPE is not set",
        ),
        (lines.index("  pixel:", pixel) + 1, "device group pixel is empty, which switches its project off"),
        (
            len(lines),
            "device group a51-pref: there is no project of this name: its 2 phones serve nobody; "
            "did you mean a51-perf?",
        ),
    ]
    [refusal] = projects.refusals()
    assert "project a51-perf takes part but has no Taskcluster access token" in refusal
    assert "t_lambda_perf_a51 is not set" in refusal
    with pytest.raises(ProjectsError, match="t_lambda_perf_a51"):
        projects.check_start()
    assert [project.name for project in projects.projects_of(SHARED[0])] == ["a55-perf", "a55-alpha"]
    assert "secret1" not in repr(projects)
    assert projects.projects["a55-perf"].token == "secret1"


def test_with_all_tokens_it_may_start(tmp_path: Path):
    tokens = {f"t_lambda_{rest}": "x" for rest in ("perf_a55", "alpha_a55", "perf_a51")}
    read(tmp_path, BIG, tokens).check_start()


def test_the_sample_loads():
    projects = load(resources.path("lambdatest.yml.dist"), {"t_lambda_perf_a55": "x", "t_lambda_alpha_a55": "y"})
    assert [project.name for project in projects.taking_part] == ["a55-perf", "a55-alpha"]
    assert projects.projects["a51-perf"].disabled
    projects.check_start()


def test_values_of_a_project_go_before_the_defaults_and_may_take_them_away(tmp_path: Path):
    text = """\
projects:
  defaults: {TASKCLUSTER_CLIENT_ID: c, USER_SCRIPTS_VERSION: 1.10, priority: 5, disabled: true, priority_group: g}
  a: {TC_WORKER_TYPE: w-a, disabled: no}
  b: {TC_WORKER_TYPE: w-b, priority: 2, TASKCLUSTER_CLIENT_ID: , priority_group: }
device_groups: {a: [ONE], b: [TWO]}
"""
    found = read(tmp_path, text).projects
    assert (found["a"].user_scripts_version, found["a"].priority, found["a"].takes_part) == ("1.10", 5, True)
    assert (found["b"].client_id, found["b"].priority, found["b"].disabled) == (None, 2, True)
    assert (found["a"].priority_group, found["b"].priority_group) == ("g", None)
    assert found["a"].token_variable == "w_a"


def test_a_project_without_user_scripts_of_its_version_does_not_take_part(tmp_path: Path):
    projects = read(tmp_path, ONE + "device_groups: {a: ONE}\n", has_scripts=lambda version: version != "v1")
    assert projects.projects["a"].lacks == ("user scripts: there are none of version v1",)
    assert not projects.taking_part


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("projects:\n  a: {TC_WORKER_TIPE: w}\n", ":2: project a: there is no such key 'TC_WORKER_TIPE'; did you mean"),
        ("project:\n  a:\n", ":1: the file: there is no such key 'project'; did you mean projects?"),
        ("projects:\n  a:\n  a:\n", ":3: projects: a is already there in line 2"),
        ("projects:\n  a: {disabled: perhaps}\n", ":2: project a: disabled: 'perhaps' is not right; expected true or"),
        ("projects:\n  a: {priority: high}\n", ":2: project a: priority: 'high' is not right; expected a whole number"),
        ("projects:\n  a: {priority: 1.5}\n", ":2: project a: priority: '1.5' is not right"),
        ("projects:\n  a: {TC_WORKER_TYPE: [x]}\n", ":2: project a: TC_WORKER_TYPE: a list is not right"),
        ("projects:\n  a: {TC_WORKER_TYPE: Big}\n", ":2: project a: TC_WORKER_TYPE: 'Big' is not right"),
        ("projects:\n  a: {USER_SCRIPTS_VERSION: ../x}\n", ":2: project a: USER_SCRIPTS_VERSION: '../x' is not right"),
        ("projects: [a]\n", ":1: projects: a list is not right; expected a mapping"),
        ("projects:\n  'a b': {}\n", ":2: projects: 'a b' is not right as a name"),
        ("projects: {a: }\nglobal: {contract_device_count: -1}\n", ":2: global: contract_device_count: '-1' is not"),
        ("projects: {a: }\ndevice_groups:\n  a: [ONE,\n   'x y']\n", ":4: device group a: 'x y' is not 1 to 32"),
        ("projects: {a: }\ndevice_groups:\n  a: [[ONE]]\n", ":3: device group a: '' is not 1 to 32"),
        ("projects:\n\ta: 1\n", ":2: is not YAML: found character"),
        ("projects: {a: 1\n", ":2: is not YAML: expected"),
        ("", ":1: is empty; expected global, projects, device_groups"),
        ("global:\n", ":1: there are no projects"),
        ("[" * 2000, ": is not YAML that can be read"),
    ],
)
def test_what_cannot_be_meant_is_an_error_with_its_line(tmp_path: Path, text: str, expected: str):
    [said] = problems(tmp_path, text)
    assert said.startswith(expected)


def test_all_problems_are_told_at_once(tmp_path: Path):
    assert len(problems(tmp_path, "projects:\n  a: {priority: x, b: 1}\n  c: {disabled: 2}\n")) == 3


def test_a_file_that_is_not_there_is_told(tmp_path: Path):
    with pytest.raises(ProjectsError, match=r"nowhere\.yml: No such file"):
        load(tmp_path / "nowhere.yml", {})


TWO = (
    ONE
    + """\
  b:
    TC_WORKER_TYPE: w-b
    TASKCLUSTER_CLIENT_ID: c
    USER_SCRIPTS_VERSION: v1
"""
)
GROUPS = "device_groups:\n  a: ONE TWO\n  b:\n    - THREE\n    - TWO\n"


def test_a_phone_of_two_projects_that_take_part_is_an_error(tmp_path: Path):
    assert problems(tmp_path, TWO + GROUPS) == [
        ":14: device group b: TWO is in device group a, too (line 11); "
        "expected another phone, or the same priority_group for both projects"
    ]


def test_two_projects_of_one_priority_group_may_share_a_phone(tmp_path: Path):
    text = TWO.replace("v1\n", "v1\n    priority_group: g\n") + GROUPS
    assert read(tmp_path, text).oddities == ()


def test_a_phone_of_a_project_that_does_not_take_part_is_an_oddity(tmp_path: Path):
    [_, _, oddity] = read(tmp_path, TWO.replace("TC_WORKER_TYPE: w-b", "disabled: true") + GROUPS).oddities
    assert (oddity.line, oddity.text) == (
        14,
        "device group b: TWO is in device group a, too (line 11); b does not take part",
    )


def test_a_phone_that_stands_twice_in_a_group_counts_once(tmp_path: Path):
    projects = read(tmp_path, ONE + "device_groups: {a: ONE TWO ONE}\n")
    assert projects.groups == {"a": ("ONE", "TWO")}
    assert projects.told() == [f"{projects.path}:6: device group a: ONE stands there twice; it counts once"]


def test_two_projects_of_one_queue_are_an_error(tmp_path: Path):
    [said] = problems(tmp_path, TWO.replace("w-b", "w-a") + "device_groups: {a: ONE, b: TWO}\n")
    assert said.startswith(":6: project b has the TC_WORKER_TYPE of project a (line 2)")


def test_a_priority_group_of_one_is_odd(tmp_path: Path):
    projects = read(tmp_path, ONE + "    priority_group: g\ndevice_groups: {a: ONE}\n")
    assert [oddity.text for oddity in projects.oddities] == ["project a is alone in priority group g"]
