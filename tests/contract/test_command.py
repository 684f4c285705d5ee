# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The command backend with real programs: what they are given, what they see, and how they end."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from mozpool.bmm.backends.command import CommandPower, fill_in
from mozpool.bmm.interfaces import Target
from mozpool.bmm.program import OUTPUT_LIMIT
from mozpool.errors import BadInput, HardwareError, LaneError

ENOUGH = 60.0


def device(**options: str) -> Target:
    return Target("panda-0001", "10.0.0.7", "aabbccddeeff", options={"command": "pdu", **options})


@pytest.fixture
def power(context):
    """A backend whose ``pdu`` has these programs."""

    def make(**commands) -> CommandPower:
        return CommandPower(replace(context, commands={f"pdu.{action}": words for action, words in commands.items()}))

    return make


def shell(script: str) -> tuple[str, ...]:
    return ("sh", "-c", script)


# Arguments


@pytest.mark.parametrize(
    ("template", "arguments"),
    [
        (("p", "on", "{name}"), ["p", "on", "panda-0001"]),
        (("p", "{address}:{mac_address}"), ["p", "10.0.0.7:aabbccddeeff"]),
        (("p", "outlet={outlet}"), ["p", "outlet=a b; reboot $(id)"]),
        (("p", "--outlet={dash}"), ["p", "--outlet=-rf"]),
        (("p", "--", "{dash}"), ["p", "--", "-rf"]),
        (("p", "-o", "x{dash}"), ["p", "-o", "x-rf"]),
        (("p", '{"on": true}', "{}", "${x y}"), ["p", '{"on": true}', "{}", "${x y}"]),
        (("p", "{braces}"), ["p", "{name}"]),
    ],
)
def test_placeholders_are_replaced_inside_their_argument(template, arguments):
    values = {"outlet": "a b; reboot $(id)", "dash": "-rf", "braces": "{name}"}
    own = {"name": "panda-0001", "address": "10.0.0.7", "mac_address": "aabbccddeeff"}
    assert fill_in(template, {**values, **own}) == arguments


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (("p", "{dash}"), "would pass for an option"),
        (("p", "{dash}", "--"), "would pass for an option"),
        (("{name}", "on"), "the program must not have a placeholder"),
        (("p", "{missing}"), "there is no missing"),
        (("p", "{empty}"), "there is no empty"),
        (("p", "x{lines}"), "is not one line of text"),
        (("p", "x{nul}"), "is not one line of text"),
    ],
)
def test_what_could_mean_something_else_is_refused_and_nothing_runs(power, seconds, tmp_path, template, reason):
    target = device(dash="-rf", empty="", lines="a\nb", nul="a\0b")
    file = tmp_path / "ran"
    backend = power(on=template, off=shell(f"touch {file}"))
    with pytest.raises(HardwareError, match=rf"power cycle of panda-0001 failed: \[commands\] pdu.on: .*{reason}"):
        backend.power_cycle(target, seconds(ENOUGH))
    assert not file.exists()


def test_an_option_cannot_stand_for_the_devices_own_name(power, seconds, tmp_path):
    backend = power(on=("sh", "-c", 'echo "$1" > "$2"', "-", "{name}", f"{tmp_path}/said"))
    backend.power_on(device(name="other"), seconds(ENOUGH))
    assert (tmp_path / "said").read_text() == "panda-0001\n"


def test_the_name_of_a_command_is_found_however_it_is_written(power, seconds):
    assert power(status=("echo", "on")).is_on(device(command="PDU"), seconds(ENOUGH)) is True


# What a program sees


def test_a_program_sees_no_input_no_secret_and_nobodys_directory(power, seconds, tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_TOKEN", "geheim")
    power(on=shell(f"{{ cat; env; pwd; }} > {tmp_path}/seen")).power_on(device(), seconds(ENOUGH))
    seen = (tmp_path / "seen").read_text()
    assert "PATH=" in seen
    assert "geheim" not in seen
    assert seen.endswith("\n/\n")


# How it ends


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (shell("echo first >&2; echo last words >&2; exit 3"), "sh ended with status 3: 'last words'"),
        (shell("exit 3"), "sh ended with status 3: no message"),
        (shell("kill -9 $$"), "sh was ended by signal 9: no message"),
        (shell(r"printf '\033[31m\377\n' >&2; exit 1"), r"ended with status 1: '\\x1b\[31m�'"),
        (("/nowhere/p",), "cannot run /nowhere/p: No such file or directory"),
        (("/",), "cannot run /: Permission denied"),
    ],
)
def test_a_program_that_fails_is_the_devices_error_with_its_last_words(power, seconds, words, reason):
    with pytest.raises(HardwareError, match=rf"power on of panda-0001 failed: .*{reason}") as caught:
        power(on=words).power_on(device(), seconds(ENOUGH))
    assert not isinstance(caught.value, LaneError)


def test_last_words_are_short(power, seconds):
    with pytest.raises(HardwareError) as caught:
        power(on=shell("head -c 100000 /dev/zero | tr '\\0' x >&2; exit 1")).power_on(device(), seconds(ENOUGH))
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("stream", [1, 2])
def test_a_program_that_babbles_neither_hangs_nor_fills_the_memory(power, seconds, stream):
    size = 100 * OUTPUT_LIMIT
    backend = power(on=shell(f"head -c {size} /dev/zero >&{stream}"))
    backend.power_on(device(), seconds(ENOUGH))


def test_a_program_that_babbles_for_ever_is_ended_at_the_deadline(power, seconds):
    with pytest.raises(HardwareError, match=r"yes was not done within 0.5 s and was killed"):
        power(on=("yes",)).power_on(device(), seconds(0.5))


def gone(process: int) -> bool:
    """Whether a process has ended; one that nobody has asked about yet counts."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_at_the_deadline_a_program_is_killed_with_its_children(power, seconds, tmp_path):
    file = tmp_path / "children"
    backend = power(on=shell(f"trap '' TERM; sleep 600 & echo $! $$ > {file}; wait"))
    deadline = seconds(ENOUGH)
    while not file.exists() or not file.read_text():  # a busy machine may not even have started it
        with pytest.raises(HardwareError, match="was killed"):
            backend.power_on(device(), seconds(1.0))
        assert not deadline.expired
    children = [int(word) for word in file.read_text().split()]
    assert len(children) == 2
    while not all(map(gone, children)):
        assert not deadline.expired, "they live on"
        time.sleep(0.01)


def test_what_a_program_leaves_running_is_not_waited_for(power, seconds, tmp_path):
    file = tmp_path / "child"
    began = time.monotonic()
    power(on=shell(f"sleep 600 & echo $! > {file}")).power_on(device(), seconds(300))
    try:
        assert time.monotonic() - began < ENOUGH
    finally:
        os.kill(int(file.read_text()), 9)


def test_no_program_is_left_unwaited_for(power, seconds):
    for words in (("true",), ("false",), ("sleep", "600")):
        with contextlib.suppress(HardwareError):
            power(on=words).power_on(device(), seconds(0.5))
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    names = [Path(f"/proc/{child}/comm").read_text().strip() for child in children]
    assert not {"true", "false", "sleep"} & set(names)


# Read-back


@pytest.mark.parametrize(("words", "answer"), [(("echo", "on"), True), (("printf", " OFF \n\n"), False)])
def test_the_status_program_prints_on_or_off(power, seconds, words, answer):
    assert power(status=words).is_on(device(), seconds(ENOUGH)) is answer


def test_another_answer_is_an_error(power, seconds):
    with pytest.raises(HardwareError, match=r"power status of panda-0001 failed: echo printed '1' where on or off"):
        power(status=("echo", "1")).is_on(device(), seconds(ENOUGH))


def test_without_a_status_program_nobody_can_tell(power, seconds):
    backend = power(on=("true",), off=("true",))
    assert backend.is_on(device(), seconds(ENOUGH)) is None
    backend.power_cycle(device(), seconds(ENOUGH))


def test_a_switch_may_take_a_moment_to_show(context, seconds, tmp_path):
    count = tmp_path / "count"
    status = shell(f"echo >> {count}; [ $(wc -l < {count}) -ge 3 ] && echo off || echo on")
    commands = {"pdu.off": ("true",), "pdu.status": status}
    # At the speed of the other tests a busy machine has no time for three programs.
    CommandPower(replace(context, commands=commands, speed=1.0)).power_off(device(), seconds(ENOUGH))
    assert count.read_text().count("\n") == 3


def test_a_power_that_does_not_follow_is_an_error(power, seconds):
    backend = power(on=("true",), off=("true",), status=("echo", "on"))
    with pytest.raises(HardwareError, match=r"its status is on after it was switched off; the device may be without"):
        backend.power_cycle(device(), seconds(ENOUGH))


# Lanes


def test_each_device_has_a_lane_of_its_own_unless_it_names_one(power):
    assert power().lane(device()) == "command:pdu:panda-0001"
    assert power().lane(device(lane="rack 7")) == "command:pdu:rack 7"
    for lane in ("", "a\nb", "x" * 300):
        with pytest.raises(HardwareError, match="its option lane"):
            power().lane(device(lane=lane))


@pytest.mark.parametrize("lane", ["command:pdu:panda-0001", "command:apc:rack 7", "command:pdu", "relay:a:1"])
def test_a_lane_without_a_test_program_cannot_be_tested(power, seconds, lane):
    with pytest.raises(BadInput, match=lane):
        power(on=shell("true")).test(lane, seconds(ENOUGH))


def test_the_test_program_tells_whether_the_switch_works(power, seconds, tmp_path):
    script = 'test "$1" = "rack 7" && cat "$2"'
    backend = power(test=("sh", "-c", script, "-", "{lane}", f"{tmp_path}/ok"))
    lane = backend.lane(device(lane="rack 7"))
    (tmp_path / "ok").write_text("fine")
    backend.test(lane, seconds(ENOUGH))
    (tmp_path / "ok").unlink()
    with pytest.raises(LaneError, match=r"test of command:pdu:rack 7 failed: .*No such file") as raised:
        backend.test(lane, seconds(ENOUGH))
    assert raised.value.culprit == lane


@pytest.mark.parametrize("broken", ["false", "sleep 600"])
@pytest.mark.parametrize("operation", ["power_off", "power_on", "power_cycle", "is_on"])
def test_of_a_failure_the_switch_is_guilty_that_fails_its_test(power, seconds, operation, broken):
    programs = dict.fromkeys(("on", "off", "status"), shell(broken))
    target, limit = device(lane="rack 7"), 3.6 if "sleep" in broken else ENOUGH
    with pytest.raises(LaneError, match=r"panda-0001 failed: command:pdu:rack 7: .*the PDU is away") as raised:
        getattr(power(**programs, test=shell("echo the PDU is away >&2; false")), operation)(target, seconds(limit))
    assert raised.value.culprit == "command:pdu:rack 7"
    with pytest.raises(HardwareError, match="panda-0001 failed") as own:
        getattr(power(**programs, test=shell("true")), operation)(target, seconds(limit))
    assert not isinstance(own.value, LaneError)
