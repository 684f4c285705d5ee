# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""``mozpool check``: the form that monitors want, whatever happens."""

from __future__ import annotations

import copy
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from mozpool import resources
from mozpool.client import cli
from mozpool.client.check import BADNESS, State, Threshold
from tests.unit.client_support import BREAK, Answer, Call, PoolServer, closed_port, error

WELL: dict[str, Any] = {
    "devices": {
        "total": 120,
        "in_use": 80,
        "idle": 30,
        "processing": 5,
        "failed": 3,
        "out_of_service": 2,
        "person_needed": 1,
        "away": 0,
    },
    "requests": {"open": 90, "waiting": 4, "longest_wait": 61.5},
    "servers": {"total": 3, "up": 3, "away": 0, "stopped": 0, "never_started": 0, "missing": []},
    "relay_boards": {"total": 10, "ok": 10, "suspect": 0, "failed": 0, "failing": []},
    "person_needed": [{"name": "panda-17", "state": "failed_self_test"}],
}
PERFDATA = (
    "failed=3;12;30;0;120 servers=0;;0;0;3 relay_boards=0;0;;0;10 waiting=4;;;0 queue_age=62s;;;0 "
    "in_use=80;;;0;120 idle=30;;;0;120 processing=5;;;0;120 out_of_service=2;;;0;120"
)
SUMMARY = "120 devices: 80 in use, 30 idle, 3 failed; 4 requests waiting"
LINE = re.compile(
    r"MOZPOOL (OK|WARNING|CRITICAL|UNKNOWN) - [^|\n]+"
    r"( \| ([a-z_]+=[0-9.]+(s|c|%|)(;[0-9.]*){0,4})( [a-z_]+=[0-9.]+(s|c|%|)(;[0-9.]*){0,4})*)?"
)
"""The first line, by the guidelines for plugins."""


@pytest.fixture
def server() -> Iterator[PoolServer]:
    with PoolServer() as server:
        yield server


def says(server: PoolServer, **changes: dict[str, Any]) -> None:
    """Let a server say that all is well but for some keys."""
    said = copy.deepcopy(WELL)
    for part, values in changes.items():
        said[part].update(values)
    server.always = lambda call: Answer(200, said) if call.path == "/api/pool/status/" else None


def check(url: str, *arguments: str) -> tuple[int, list[str]]:
    """Exit code and lines; what every answer must be like is looked at here."""
    result = CliRunner().invoke(cli.main, ["check", "--server", url, *arguments], prog_name="mozpool")
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert LINE.fullmatch(lines[0]), lines[0]
    word = lines[0].split()[1]
    assert State[word].value == result.exit_code
    assert not any("|" in line for line in lines[1:])
    return result.exit_code, lines


def test_a_pool_that_is_well(server: PoolServer) -> None:
    says(server)
    assert check(server.url) == (
        0,
        [f"MOZPOOL OK - {SUMMARY} | {PERFDATA}", "devices that need a person: panda-17 (failed_self_test)"],
    )
    assert [(call.verb, call.path) for call in server.calls] == [("GET", "/api/pool/status/")], "one cheap call"


@pytest.mark.parametrize(
    ("changes", "options", "code", "problem"),
    [
        ({"devices": {"failed": 12}}, [], 0, SUMMARY.replace("3 failed", "12 failed")),
        ({"devices": {"failed": 13}}, [], 1, "13 of 120 devices failed"),
        ({"devices": {"failed": 31}}, [], 2, "31 of 120 devices failed"),
        ({"devices": {"failed": 3}}, ["--failed-warning", "2"], 1, "3 of 120 devices failed"),
        ({"devices": {"failed": 3}}, ["--failed-critical", "2.5%"], 0, SUMMARY),
        ({"devices": {"failed": 3}}, ["--failed-critical", "2.4%"], 2, "3 of 120 devices failed"),
        ({"devices": {"failed": 119}}, ["--failed-critical", "none", "--failed-warning", "none"], 0, None),
        ({"servers": {"missing": ["b.example.com"]}}, [], 2, "imaging server b.example.com is not there"),
        ({"servers": {"missing": ["b", "c"]}}, [], 2, "2 imaging servers are not there"),
        (
            {"servers": {"missing": ["b"]}},
            ["--servers-critical", "1", "--servers-warning", "0"],
            1,
            "imaging server b is not there",
        ),
        ({"relay_boards": {"failing": ["relay-7"]}}, [], 1, "relay board relay-7 is failing"),
        (
            {"relay_boards": {"failing": ["r", "s"]}},
            ["--relay-boards-critical", "10%"],
            2,
            "2 relay boards are failing",
        ),
        ({}, ["--waiting-warning", "3"], 1, "4 requests waiting"),
        ({}, ["--waiting-warning", "4"], 0, SUMMARY),
        ({}, ["--queue-age-critical", "1m"], 2, "the oldest request that waits was made 62 s ago"),
        ({}, ["--queue-age-warning", "62"], 0, SUMMARY),
    ],
)
def test_more_than_a_limit_is_a_problem(
    server: PoolServer, changes: dict[str, Any], options: list[str], code: int, problem: str | None
) -> None:
    says(server, **changes)
    found, lines = check(server.url, *options)
    assert found == code
    if problem is not None:
        assert lines[0].split(" - ")[1].split(" | ")[0] == problem


def test_what_is_worst_comes_first(server: PoolServer) -> None:
    says(
        server,
        devices={"failed": 13},
        servers={"missing": ["b.example.com"]},
        relay_boards={"failing": ["relay-7", "relay-8"]},
    )
    code, lines = check(server.url)
    assert code == 2
    assert lines[0].startswith(
        "MOZPOOL CRITICAL - imaging server b.example.com is not there; 13 of 120 devices failed; "
        "2 relay boards are failing | failed=13;12;30;0;120 servers=1;;0;0;3 relay_boards=2;0;;0;10 "
    )
    assert lines[2:] == ["servers: b.example.com", "relay boards: relay-7, relay-8"]
    assert BADNESS == [State.OK, State.WARNING, State.UNKNOWN, State.CRITICAL]


def test_a_pool_without_devices_is_well(server: PoolServer) -> None:
    says(server, devices=dict.fromkeys(WELL["devices"], 0))
    assert check(server.url)[0] == 0


def test_names_cannot_spoil_the_form(server: PoolServer) -> None:
    says(
        server,
        servers={"missing": ["a|b=1\nMOZPOOL OK"]},
    )
    code, lines = check(server.url)
    assert code == 2
    assert "imaging server a/b=1?MOZPOOL OK is not there" in lines[0]


# What goes wrong


def test_no_server_that_answers_is_critical_and_says_why(server: PoolServer) -> None:
    code, lines = check(f"http://127.0.0.1:{closed_port()}", "--timeout", "2")
    assert code == 2
    assert "can't be reached: connection refused" in lines[0]
    server.always = lambda call: BREAK
    code, lines = check(server.url, "--timeout", "2")
    assert code == 2
    assert "broke the connection" in lines[0]


def test_another_server_may_answer(server: PoolServer) -> None:
    says(server)
    dead = f"http://127.0.0.1:{closed_port()}"
    for _ in range(4):
        assert check(dead, "--server", server.url)[0] == 0


def test_a_database_that_is_away_is_critical(server: PoolServer) -> None:
    server.always = lambda call: error(503, "database_away", "the database is away: gone")
    code, lines = check(server.url, "--timeout", "1.5")
    assert code == 2
    assert "the database is away: gone" in lines[0]


def test_a_server_that_never_answers_ends_with_the_time_limit() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        begun = time.monotonic()
        code, lines = check(f"http://127.0.0.1:{silent.getsockname()[1]}", "--timeout", "1")
    assert code == 2
    assert "did not answer" in lines[0]
    assert time.monotonic() - begun < 3


def test_a_server_that_answers_drop_by_drop_ends_with_the_time_limit() -> None:
    """Each drop is within the limit of a read; all of them are not."""
    with socket.socket() as slow:
        slow.bind(("127.0.0.1", 0))
        slow.listen()
        ended = threading.Event()

        def drip() -> None:
            connection, _ = slow.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n")
                while not ended.wait(0.2):
                    try:
                        connection.sendall(b" ")
                    except OSError:
                        return

        thread = threading.Thread(target=drip)
        thread.start()
        begun = time.monotonic()
        code, lines = check(f"http://127.0.0.1:{slow.getsockname()[1]}", "--timeout", "1")
        took = time.monotonic() - begun
        ended.set()
        thread.join(10)
    assert (code, lines) == (2, ["MOZPOOL CRITICAL - no answer within 1 s"])
    assert took < 3


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (error(404, "not_found", "there is no /api/pool/status/"), "a server of this version is needed"),
        (error(500, "internal_error", "an internal error"), "an internal error"),
        (Answer(200, {"devices": {}}), "can't be understood"),
        (Answer(200, {**WELL, "devices": {**WELL["devices"], "failed": None}}), "can't be understood"),
        (Answer(200, {**WELL, "servers": []}), "can't be understood"),
        (Answer(200, {**WELL, "person_needed": ["panda"]}), "can't be understood"),
        (Answer(200, []), "can't be understood"),
        (Answer(200, None), "can't be understood"),
        (Answer(200, "text"), "can't be understood"),
        (Answer(302, {}, {"Location": "ftp://elsewhere/"}), "redirects"),
    ],
)
def test_an_answer_that_is_not_understood_is_unknown(server: PoolServer, answer: Answer, words: str) -> None:
    def always(call: Call) -> Answer:
        return answer

    server.always = always
    code, lines = check(server.url, "--timeout", "2")
    assert code == 3
    assert words in lines[0]
    assert "|" not in lines[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["check", "--bogus"], "--bogus"),
        (["check", "extra"], "extra"),
        (["check", "--failed-warning", "many"], "'many' is not a number, a part such as 10%, or none"),
        (["check", "--failed-warning", "-1"], "'-1' is not a number"),
        (["check", "--failed-warning", "101%"], "'101%' is not a number"),
        (["check", "--failed-warning", "nan"], "'nan' is not a number"),
        (["check", "--failed-warning", ""], "'' is not a number"),
        (["check", "--waiting-critical", "10%"], "'10%' is not a number, or none"),
        (["check", "--queue-age-warning", "soon"], "'soon' is not a duration"),
        (["check", "--timeout", "0"], "'0' is not a duration"),
        (["check", "--timeout"], "requires an argument"),
        (["check", "--server", "http://a/?b"], "is not the URL of an imaging server"),
        (["--server", "http://a/?b", "check"], "is not the URL of an imaging server"),
        (["--timeout", "soon", "check"], "'soon' is not a duration"),
        (["--bogus", "check"], "--bogus"),
    ],
)
def test_wrong_usage_is_unknown_and_not_critical(arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(cli.main, arguments, prog_name="mozpool")
    assert result.exit_code == 3
    assert result.stdout.startswith("MOZPOOL UNKNOWN - ") and words in result.stdout
    assert len(result.stdout.splitlines()) == 1


def test_wrong_usage_of_other_commands_stays_what_it_was() -> None:
    assert CliRunner().invoke(cli.main, ["--bogus", "devices"]).exit_code == 2
    assert CliRunner().invoke(cli.main, ["--server", "http://a/?b", "devices"]).exit_code == 2
    assert CliRunner().invoke(cli.main, ["devices", "--bogus"]).exit_code == 2


def test_a_limit_of_a_whole() -> None:
    percent, number = Threshold.parse("12.5%"), Threshold.parse("7")
    assert percent is not None and number is not None
    assert (percent.of(200), percent.of(0), number.of(200)) == (25, 0, 7)
    assert Threshold.parse("none") is Threshold.number_only("none") is Threshold.seconds("none") is None


# The heartbeat file


def test_a_heartbeat_file_may_not_be_too_old(server: PoolServer, tmp_path: Path) -> None:
    says(server)
    file = tmp_path / "heartbeat"
    code, lines = check(server.url, "--heartbeat-file", str(file))
    assert (code, lines[0].split(" | ")[0]) == (2, f"MOZPOOL CRITICAL - there is no heartbeat file {file}")
    file.touch()
    code, lines = check(server.url, "--heartbeat-file", str(file))
    assert code == 0
    assert re.search(r" \| heartbeat_age=[0-9.]+s;;60;0 failed=", lines[0])
    old = time.time() - 100
    os.utime(file, (old, old))
    code, lines = check(server.url, "--heartbeat-file", str(file))
    assert code == 2
    assert re.search(rf"no progress for 10\d s: {file} \| heartbeat_age=10\d", lines[0])
    assert check(server.url, "--heartbeat-file", str(file), "--max-age", "5m")[0] == 0
    later = time.time() + 1000
    os.utime(file, (later, later))
    code, lines = check(server.url, "--heartbeat-file", str(file))
    assert code == 3
    assert "in the future" in lines[0]


def test_a_heartbeat_file_that_cannot_be_looked_at_is_unknown(server: PoolServer, tmp_path: Path) -> None:
    says(server)
    (tmp_path / "file").touch()
    code, lines = check(server.url, "--heartbeat-file", str(tmp_path / "file" / "heartbeat"))
    assert code == 3
    assert "Not a directory" in lines[0]


def test_both_what_the_file_and_what_the_pool_says_is_told(tmp_path: Path) -> None:
    code, lines = check(
        f"http://127.0.0.1:{closed_port()}", "--timeout", "1", "--heartbeat-file", str(tmp_path / "none")
    )
    assert code == 2
    assert "there is no heartbeat file" in lines[0] and "can't be reached" in lines[0]


# As a process


def test_it_ends_in_time_although_a_call_still_hangs() -> None:
    """The thread that asks must not keep the process alive."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        begun = time.monotonic()
        done = subprocess.run(
            [
                *(sys.executable, "-m", "mozpool.client.cli", "check"),
                *("--server", f"http://127.0.0.1:{silent.getsockname()[1]}", "--timeout", "1"),
            ],
            cwd=resources.CHECKOUT,
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode == 2
    assert done.stdout.startswith("MOZPOOL CRITICAL - ")
    assert done.stderr == ""
    assert time.monotonic() - begun < 15
