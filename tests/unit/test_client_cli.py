# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The command ``mozpool`` against servers that speak real HTTP, and with real signals."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from mozpool import __version__, resources
from mozpool.client import cli, output
from mozpool.client.child import Child, Signals
from mozpool.client.values import duration
from mozpool.clock import Clock
from tests.processes import default_signals
from tests.unit.client_support import BREAK, Answer, Call, PoolServer, closed_port, error

B2G = ("b2g", "--boot-config", "b2gbase=http://x/")


@pytest.fixture
def server() -> Iterator[PoolServer]:
    with PoolServer() as server:
        yield server


def environment(server: PoolServer | None, **more: str) -> dict[str, str]:
    url = server.url if server else f"127.0.0.1:{closed_port()}"
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MOZPOOL_")}
    return {**inherited, "MOZPOOL_SERVERS": url, "MOZPOOL_ASSIGNEE": "me@example.com", **more}


def mozpool(server: PoolServer | None, *arguments: str, **env: str) -> Result:
    return CliRunner().invoke(cli.main, arguments, env=environment(server, **env), prog_name="mozpool")


@contextmanager
def started(server: PoolServer | None, *arguments: str, **options) -> Iterator[subprocess.Popen[str]]:
    """The command as a process of its own, in a process group of its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "mozpool.client.cli", *arguments],
        preexec_fn=default_signals,
        env=environment(server),
        cwd=resources.CHECKOUT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )
    try:
        yield process
    finally:
        # With its command, which would keep the pipes open.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def script(tmp_path: Path, text: str) -> list[str]:
    """A command that runs a Python script and shows that it is there by its first line of output.

    It ends after a minute by itself: nobody else ends it when the tests are killed.
    """
    file = tmp_path / "script.py"
    file.write_text(f"import signal\nsignal.alarm(60)\n{text}")
    return [sys.executable, str(file)]


# Lists


def test_devices_are_a_table_with_who_has_them(server):
    mozpool(server, "request", *B2G)
    result = mozpool(server, "devices")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "NAME     STATE         ADDRESS    IMAGE  ENVIRONMENT  REQUEST  HELD BY         UNTIL (UTC)",
        "panda-1  ready         127.0.0.9  b2g    production   1        me@example.com  2030-01-01 00:30:00",
        "panda-2  failed_?[31m  127.0.0.9  b2g    production   1        me@example.com  2030-01-01 00:30:00",
    ]
    assert server.pool.count("GET /api/request/list/") == 0


def test_who_has_a_device_comes_from_the_requests_where_the_list_does_not_tell(server):
    mozpool(server, "request", *B2G)
    plain = {"name": "panda-1", "state": "ready", "fqdn": "panda-1.example.com", "request_id": 1}
    server.always = lambda call: Answer(200, {"devices": [plain]}) if "device/list" in call.path else None
    (line,) = mozpool(server, "devices").stdout.splitlines()[1:]
    assert line.split() == [
        *("panda-1", "ready", "panda-1.example.com", "1", "me@example.com", "2030-01-01", "00:30:00")
    ]


def test_devices_are_filtered_by_the_server(server):
    mozpool(server, "devices", "--free", "--environment", "staging", "--label", "pool=b2g", "--json")
    assert server.calls[0].query == {
        "details": ["1"],
        "state": ["ready"],
        "claimed": ["false"],
        "environment": ["staging"],
        "label": ["pool=b2g"],
    }
    assert mozpool(server, "devices", "--free", "--state", "new").exit_code == 2


def test_images_tell_what_they_need(server):
    result = mozpool(server, "images")
    assert result.stdout.splitlines()[1].split() == ["b2g", "b2gbase", "yes"]


def test_requests_may_be_ones_own(server):
    mozpool(server, "--assignee", "you@example.com", "request", *B2G, "--no-wait")
    assert mozpool(server, "requests", "--mine").stdout.splitlines()[1:] == []
    (line,) = mozpool(server, "requests", "--all").stdout.splitlines()[1:]
    assert line.split() == ["1", "finding_device", "any", "b2g", "you@example.com", "2030-01-01", "00:30:00"]
    assert server.calls[-1].query == {"include_closed": ["1"]}


def test_requests_that_have_ended_tell_which_device_they_had(server):
    mozpool(server, "request", *B2G)
    mozpool(server, "return", "1")
    (line,) = mozpool(server, "requests", "--all").stdout.splitlines()[1:]
    assert line.split()[:4] == ["1", "closed", "panda-1", "any"]


def test_a_job_is_shown_and_found(server):
    mozpool(server, "request", *B2G, "--no-wait")
    job = {
        "number": 12,
        "url": "https://cloud.example.com/?jobId=abc",
        "status": "running",
        "project": "a55-perf",
        "task_url": "https://tc.example.com/tasks/TASK",
    }
    for request in server.pool.requests.values():
        request["job"] = job
    head, line = mozpool(server, "requests", "--job", "https://cloud.example.com/?jobId=abc").stdout.splitlines()
    assert head.split()[-1] == "JOB"
    assert line.split()[-1] == "12"
    assert server.calls[-1].query == {"job": ["https://cloud.example.com/?jobId=abc"]}
    shown = mozpool(server, "status", "1").stdout
    for fact in (
        "project:        a55-perf",
        "job:            12",
        "job status:     running",
        f"job page:       {job['url']}",
        f"task page:      {job['task_url']}",
    ):
        assert f"{fact}\n" in shown
    phone = {"name": "PHONE1", "state": "job_running", "fqdn": "PHONE1", "job": job}
    server.always = lambda call: Answer(200, {"devices": [phone]}) if "device/list" in call.path else None
    head, line = mozpool(server, "devices").stdout.splitlines()
    assert (head.split()[-1], line.split()[-1]) == ("JOB", "12")


def test_status_tells_why_a_request_waits(server):
    mozpool(server, "request", *B2G, "--no-wait")
    result = mozpool(server, "status", "1")
    assert "waits because:  all 3 taken\nplace in queue: 2\n" in result.stdout
    assert "device state" not in result.stdout
    assert json.loads(mozpool(server, "status", "1", "--json").stdout)["state"] == "finding_device"


def test_status_tells_the_state_of_the_device(server):
    server.pool.steps = ("pending",)
    mozpool(server, "request", *B2G, "--no-wait")
    result = mozpool(server, "status", "1")
    assert "device:         panda-1\ndevice state:   pxe_booting\n" in result.stdout


def test_logs_of_requests_and_devices(server):
    mozpool(server, "request", *B2G, "--no-wait")
    assert mozpool(server, "log", "1").stdout == "2030-01-01 00:00:00 mozpool: wants any device\n"
    assert "statemachine: ready -> start_pxe_boot" in mozpool(server, "log", "panda-1").stdout
    (line,) = json.loads(mozpool(server, "log", "panda-1", "--json").stdout)
    assert line["id"] == 7


@pytest.mark.parametrize("command", [("devices",), ("images",), ("requests",), ("log", "panda-1")])
def test_json_is_one_document(server, command):
    result = mozpool(server, *command, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    assert isinstance(json.loads(result.stdout), list)


# Requests


def test_request_shows_each_state_and_how_long_it_took(server):
    result = mozpool(server, "request", *B2G)
    assert result.exit_code == 0
    assert result.stdout == "request 1: panda-1 is ready, until 2030-01-01 00:30:00 UTC\n"
    lines = [re.sub(r" +\d+\.\d s$", " N s", line) for line in result.stderr.splitlines()]
    assert lines == [
        "request 1:",
        "  place 2 in the queue: all 3 taken",
        "  finding_device N s",
        "  pending N s",
        "  ready",
        "Give it back with: mozpool return 1",
    ]


def test_request_prints_one_json_document_and_progress_beside_it(server):
    result = mozpool(server, "request", *B2G, "--json")
    assert json.loads(result.stdout)["assigned_device"] == "panda-1"
    assert "pending" in result.stderr


def test_request_need_not_wait(server):
    result = mozpool(server, "request", *B2G, "--no-wait")
    assert (result.stdout, result.stderr) == ("request 1\n", "")
    assert json.loads(mozpool(server, "request", *B2G, "--no-wait", "--json").stdout)["id"] == 2


def test_request_sends_its_options(server):
    options = "--device panda-1 --environment staging --hardware-type panda --hardware-model ES --label pool=b2g"
    more = "--duration 1h30m --wait 0 --priority 3 --no-wait"
    mozpool(server, "request", *B2G, *options.split(), *more.split())
    (call,) = server.calls
    assert call.path == "/api/device/panda-1/request/"
    assert call.body == {
        "assignee": "me@example.com",
        "image": "b2g",
        "b2gbase": "http://x/",
        "environment": "staging",
        "hardware_type": "panda",
        "hardware_model": "ES",
        "labels": {"pool": "b2g"},
        "duration": 5400,
        "wait": 0,
        "priority": 3,
    }


def test_a_request_that_fails_says_why_and_is_returned(server):
    server.pool.steps = ("finding_device", "failed_bad_device")
    result = mozpool(server, "request", *B2G, "--json")
    assert result.exit_code == 1
    assert result.stderr.endswith(
        "mozpool: request 1 was returned\nmozpool: request 1 ended in state failed_bad_device: it is broken\n"
    )
    assert json.loads(result.stdout)["error"]["code"] == "request_failed"
    assert server.pool.requests[1]["state"] == "closed"


def test_a_request_that_is_not_ready_in_time_ends_with_124(server):
    server.pool.steps = ("finding_device",)
    result = mozpool(server, "request", *B2G, "--ready-within", "0.1")
    assert result.exit_code == 124
    assert server.pool.requests[1]["state"] == "closed"


def test_renew_and_return(server):
    mozpool(server, "request", *B2G)
    assert mozpool(server, "renew", "1", "2h").exit_code == 0
    assert server.calls[-1].body == {"duration": 7200}
    assert mozpool(server, "return", "panda-1").exit_code == 0
    assert server.pool.device_calls == [("panda-1", "return", {"assignee": "me@example.com"})]
    assert mozpool(server, "return", "1").exit_code == 0
    assert server.pool.requests[1]["state"] == "closed"


def test_commands_for_devices(server):
    assert mozpool(server, "reboot", "panda-1", "--request", "4").exit_code == 0
    assert mozpool(server, "flash", "panda-1", *B2G).exit_code == 0
    assert mozpool(server, "online", "panda-1").exit_code == 0
    assert mozpool(server, "offline", "panda-1", "--reason", "broken").exit_code == 0
    me = {"assignee": "me@example.com"}
    assert server.pool.device_calls == [
        ("panda-1", "reboot", me | {"request_id": 4}),
        ("panda-1", "flash", me | {"image": "b2g", "b2gbase": "http://x/"}),
        ("panda-1", "status", me | {"status": "online"}),
        ("panda-1", "status", me | {"status": "offline", "reason": "broken"}),
    ]


def test_exec_prints_the_output_and_ends_with_the_commands_code(server):
    result = mozpool(server, "exec", "panda-1", "--", "echo", "-n", "hello")
    assert (result.exit_code, result.stdout) == (3, "hello\n")
    assert server.pool.device_calls[0][2]["command"] == ["echo", "-n", "hello"]
    result = mozpool(server, "exec", "panda-1", "--json", "ls")
    assert json.loads(result.stdout) == {"output": "hello\n", "return_code": 3}


def test_below_run_a_device_is_acted_on_by_its_holder(server):
    mozpool(server, "reboot", "panda-1", MOZPOOL_DEVICE="panda-1", MOZPOOL_REQUEST_ID="7")
    assert server.pool.device_calls[0][2]["request_id"] == 7
    mozpool(server, "reboot", "panda-1", MOZPOOL_DEVICE="panda-2", MOZPOOL_REQUEST_ID="7")
    assert "request_id" not in server.pool.device_calls[1][2]


def test_run_runs_its_command_though_nobody_reads_the_progress(server, tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "mozpool.client.cli", "run", *B2G, "--", "touch", str(tmp_path / "it-ran")],
            preexec_fn=default_signals,
            env=environment(server),
            cwd=resources.CHECKOUT,
            stdin=subprocess.DEVNULL,
            stdout=writer,
            stderr=writer,
            timeout=60,
        )
    finally:
        os.close(writer)
    assert (tmp_path / "it-ran").exists()
    assert done.returncode == 0
    assert server.pool.requests[1]["state"] == "closed"


# Exit codes


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("request", "x"), 4, "mozpool: image: there is no image 'x'\n"),
        (("request", *B2G, "--duration", "1000000d"), 2, "mozpool: duration: too much\n"),
        (("request", *B2G, "--device", "panda-2"), 5, "mozpool: panda-2 is taken\n"),
        (("request",), 2, None),
        (("request", *B2G, "--duration", "x"), 2, None),
        (("request", *B2G, "--duration", "0"), 2, None),
        (("request", *B2G, "--label", "x"), 2, None),
        (("--server", "ftp://x", "devices"), 2, None),
        (("--timeout", "-1", "devices"), 2, None),
        (("run", "b2g"), 2, None),
        (("status", "x"), 2, None),
        (("status", "7"), 4, None),
        (("return", "panda-9"), 4, None),
        (("nonsense",), 2, None),
        (("--help",), 0, None),
        (("--version",), 0, None),
    ],
)
def test_exit_codes_tell_what_went_wrong(server, arguments, code, message):
    result = mozpool(server, *arguments)
    assert result.exit_code == code
    assert "Traceback" not in result.output
    if message:
        assert (result.stdout, result.stderr) == ("", message)


@pytest.mark.parametrize(("command", "code"), [(("request", "b2g"), 2), (("run", "b2g", "--", "true"), 125)])
def test_a_missing_boot_config_key_comes_with_the_option_that_gives_it(server, command, code):
    result = mozpool(server, *command)
    assert result.exit_code == code
    assert result.stderr == (
        "mozpool: b2gbase is missing: image b2g needs it\nmozpool: name it with --boot-config b2gbase=VALUE\n"
    )


def test_no_server_is_3(server):
    result = mozpool(None, "--timeout", "0.2", "devices")
    assert result.exit_code == 3
    assert re.fullmatch(r"mozpool: .* can't be reached: connection refused\n", result.stderr)
    server.always = BREAK
    assert mozpool(server, "--timeout", "0.2", "devices").exit_code == 3


def test_servers_come_from_options_or_from_the_environment(server):
    assert mozpool(None, "--server", server.url, "--server", server.url, "images").exit_code == 0
    down = f"127.0.0.1:{closed_port()}"
    assert mozpool(None, "images", MOZPOOL_SERVERS=f"{server.url}, {down}").exit_code == 0
    assert mozpool(None, "images", MOZPOOL_SERVERS=f"{server.url} {down}").exit_code == 0


def test_the_exit_codes_are_documented(server):
    shown = mozpool(server, "--help").stdout
    documented = (resources.CHECKOUT or Path()).joinpath("docs/client.md").read_text()
    for code in (0, 1, 2, 3, 4, 5, 124, 125, 126, 127, 130):
        assert re.search(rf"\b{code}\b", shown), code
        assert f"| {code} |" in documented, code


def test_every_command_and_option_is_documented():
    documented = (resources.CHECKOUT or Path()).joinpath("docs/client.md").read_text()
    for name, command in cli.main.commands.items():
        assert re.search(rf"\| `{name}[ `]", documented), name
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert f"`{parameter.opts[0]}" in documented, (name, parameter.opts)


def test_the_list_of_commands_shows_whole_sentences(server):
    commands = mozpool(server, "--help").stdout.partition("Commands:")[2].partition("Exit codes:")[0]
    assert "..." not in commands
    assert len(commands.split("\n\n")[0].splitlines()) == len(cli.main.commands) + 1


def test_the_version_is_told(server):
    assert mozpool(server, "--version").stdout == f"mozpool, version {__version__}\n"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("0.5", 0.5), ("45s", 45), ("30m", 1800), ("2h", 7200), ("1h30m", 5400), ("1D", 86400)],
)
def test_durations(text, seconds):
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "x", "-1", "0", "0m", "1w", "1.5h", "m", "1e3", "nan", "inf"])
def test_what_is_no_duration(text):
    with pytest.raises(click.BadParameter):
        duration(text)


def test_text_from_a_server_does_nothing_to_a_terminal():
    assert output.plain("a\x1b[2Jb\nc\u202ed") == "a?[2Jb?c?d"


def test_progress_of_a_device_comes_from_its_log(server):
    def log(call: Call) -> Answer | None:
        if call.path != "/api/device/panda-1/log/":
            return None
        steps = ["self_test_running -> ready", "ready -> start_pxe_boot", "start_pxe_boot -> pxe_power_cycling"]
        steps += ["pxe_power_cycling -> pxe_booting", "pxe_booting -> mobile_init_started", "mobile_init_started -> x"]
        seconds = [0, 1, 1, 2, 62, 62]
        lines = [
            {"id": i, "timestamp": f"2030-01-01T00:{at // 60:02}:{at % 60:02}", "source": "s", "message": step}
            for i, (step, at) in enumerate(zip(steps, seconds, strict=True), 1)
        ]
        return Answer(200, {"log": lines})

    server.always = log
    result = mozpool(server, "request", *B2G)
    shown = [line.split() for line in result.stderr.splitlines() if line.startswith("    ")]
    assert shown == [
        ["panda-1", "pxe_power_cycling", "1", "s"],
        ["panda-1", "pxe_booting", "60", "s"],
        ["panda-1", "mobile_init_started", "<1", "s"],
    ]


def test_progress_shows_nothing_of_those_who_had_the_device_before(server):
    steps = [(1, "ready -> pxe_booting"), (3, "pxe_booting -> sut_verifying"), (4, "sut_verifying -> ready")]
    lines = [
        {"id": start + i, "timestamp": f"2030-01-01T00:0{minute}:0{at}", "source": "s", "message": step}
        for start, minute in ((1, 0), (4, 1))
        for i, (at, step) in enumerate(steps)
    ]
    server.always = lambda call: Answer(200, {"log": lines}) if call.path == "/api/device/panda-1/log/" else None
    server.pool.claimed_at = "2030-01-01T00:01:00"
    result = mozpool(server, "request", *B2G)
    shown = [line.split()[1:] for line in result.stderr.splitlines() if line.startswith("    ")]
    assert shown == [["pxe_booting", "2", "s"], ["sut_verifying", "1", "s"]]


def test_there_are_control_characters_on_a_terminal_only(server):
    assert "\x1b" not in mozpool(server, "request", *B2G).output
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "mozpool.client.cli", "request", *B2G],
        preexec_fn=default_signals,
        env=environment(server),
        cwd=resources.CHECKOUT,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            shown += os.read(ours, 4096)
        except OSError:
            break
    os.close(ours)
    assert process.wait(10) == 0
    assert b"\r\x1b[K  pending" in shown
    assert b"s panda-1 pxe_booting" in shown
    assert b"panda-1 is ready" in shown


# Signals while waiting


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
@pytest.mark.parametrize("command", [("request", *B2G), ("run", *B2G, "--", "true")])
def test_a_signal_while_waiting_returns_the_request(server, command, signum, code):
    server.pool.steps = ("finding_device",)
    with started(server, *command) as process:
        server.pool.wait_for(lambda: server.pool.count("GET .*/status/") >= 2)
        process.send_signal(signum)
        _, said = process.communicate(timeout=20)
    assert process.returncode == code
    assert "request 1 was returned" in said or "stopped: the request was returned" in said
    assert "Traceback" not in said
    assert server.pool.requests[1]["state"] == "closed"


def test_further_signals_do_not_keep_it_from_returning(server):
    server.pool.steps = ("finding_device",)
    returning = lambda: server.pool.count("POST .*/return/") >= 1  # noqa: E731
    with started(server, "request", *B2G) as process:

        def interrupt_again(call: Call) -> None:
            if "/return/" in call.path:
                process.send_signal(signal.SIGINT)
                process.send_signal(signal.SIGTERM)

        server.always = interrupt_again
        server.pool.wait_for(lambda: server.pool.count("GET .*/status/") >= 2)
        process.send_signal(signal.SIGINT)
        server.pool.wait_for(returning)
        process.communicate(timeout=20)
    assert process.returncode == 130
    assert server.pool.requests[1]["state"] == "closed"


# run

SHOW = """\
import os, sys
names = ("MOZPOOL_DEVICE", "MOZPOOL_DEVICE_ADDRESS", "MOZPOOL_REQUEST_ID", "MOZPOOL_SERVER")
print(*(os.environ[name] for name in names), *sys.argv[1:])
sys.exit(7)
"""

UNTIL_SIGNAL = """\
import os, signal, sys
def handle(signum, frame):
    print("got", signal.Signals(signum).name, flush=True)
    os._exit(9)
for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
    signal.signal(signum, handle)
print("here", flush=True)
while True:
    signal.pause()
"""

DEAF = """\
import signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open(sys.argv[1], "w").close()
while True:
    signal.pause()
"""


def test_run_gives_the_command_its_device_and_ends_with_its_code(server, tmp_path):
    with started(server, "run", *B2G, "--", *script(tmp_path, SHOW), "-x", "y z") as process:
        said, _ = process.communicate(timeout=20)
    assert said == f"panda-1 127.0.0.9 1 {server.url} -x y z\n"
    assert process.returncode == 7
    assert server.pool.requests[1]["state"] == "closed"


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT"])
def test_run_hands_signals_to_the_command_and_returns_the_device(server, tmp_path, name):
    with started(server, "run", *B2G, "--", *script(tmp_path, UNTIL_SIGNAL)) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        assert server.pool.requests[1]["state"] == "ready"
        process.send_signal(getattr(signal, name))
        said, _ = process.communicate(timeout=20)
    assert (said, process.returncode) == (f"got {name}\n", 9)
    assert server.pool.requests[1]["state"] == "closed"


def test_ctrl_c_reaches_the_command_once(server, tmp_path):
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", IN_TERMINAL, "run", *B2G, "--", *script(tmp_path, COUNT_INTERRUPTS)],
        preexec_fn=default_signals,
        env=environment(server),
        cwd=resources.CHECKOUT,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            shown += os.read(ours, 4096)
        except OSError:
            break
        if b"here" in shown and b"\x03" not in shown:
            shown = shown.replace(b"here", b"was here \x03")
            os.write(ours, b"\x03")
    os.close(ours)
    assert process.wait(20) == 0, shown
    assert b"interrupts: 1" in shown
    assert server.pool.requests[1]["state"] == "closed"


IN_TERMINAL = """\
import fcntl, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from mozpool.client.cli import main
main(prog_name="mozpool")
"""

COUNT_INTERRUPTS = """\
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
print("here", flush=True)
count = 0
limit = 10
while signal.sigtimedwait([signal.SIGINT], limit):
    count, limit = count + 1, 0.5
print("interrupts:", count, flush=True)
"""


def test_a_command_that_is_killed_by_a_signal_ends_as_in_a_shell(server):
    kill = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    assert mozpool(server, "run", *B2G, "--", sys.executable, "-c", kill).exit_code == 137


def test_a_command_that_does_not_end_is_killed(tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    child = Child(Clock(), grace=0.2)

    def end_it() -> None:
        # The command is there as soon as it has closed its end.
        fifo.read_text()
        child.send(signal.SIGTERM)

    helper = threading.Thread(target=end_it)
    helper.start()
    with Signals() as signals:
        assert child.run([*script(tmp_path, DEAF), str(fifo)], os.environ, signals) == 128 + signal.SIGKILL
    helper.join()


def test_commands_that_cannot_be_run(server, tmp_path):
    assert mozpool(server, "run", *B2G, "--", str(tmp_path / "nothing")).exit_code == 127
    (tmp_path / "file").write_text("no program")
    result = mozpool(server, "run", *B2G, "--", str(tmp_path / "file"))
    assert result.exit_code == 126
    assert result.stderr.endswith("file: Permission denied\n")
    assert [request["state"] for request in server.pool.requests.values()] == ["closed", "closed"]


def test_run_without_a_device_is_125(server):
    server.pool.steps = ("finding_device", "failed_device_not_found")
    result = mozpool(server, "run", *B2G, "--", "true")
    assert result.exit_code == 125
    assert result.stderr.endswith("mozpool: request 1 ended in state failed_device_not_found: it is broken\n")
    assert mozpool(server, "run", *B2G, "--device", "panda-2", "--", "true").exit_code == 125
    assert mozpool(None, "--timeout", "0.1", "run", *B2G, "--", "true").exit_code == 125


def test_a_command_that_loses_its_device_is_ended(server, tmp_path):
    with started(server, "run", *B2G, "--duration", "0.4", "--", *script(tmp_path, UNTIL_SIGNAL)) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        server.pool.wait_for(lambda: server.pool.count("POST .*/renew/") >= 2)
        server.pool.set_state(1, "closed")
        said, complaint = process.communicate(timeout=20)
    assert (said, process.returncode) == ("got SIGTERM\n", 125)
    assert "mozpool: the device of request 1 is lost: request 1 has ended and can't be renewed" in complaint


def test_a_device_that_cannot_be_returned_does_not_change_the_commands_code(server):
    server.always = lambda call: error(500, "internal_error", "no way") if "return" in call.path else None
    result = mozpool(server, "run", *B2G, "--", sys.executable, "-c", "raise SystemExit(4)")
    assert result.exit_code == 4
    assert result.stderr.endswith("mozpool: no way\n")
