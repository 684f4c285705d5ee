# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The SUT agent backend against agents that speak real bytes, well-behaved and not."""

from __future__ import annotations

import shlex
import socket
import time

import pytest

from mozpool.bmm.backends import sut
from mozpool.bmm.backends.sut import SUTAgent, exec_line, parse_uptime
from mozpool.bmm.interfaces import CommandResult, Target
from mozpool.errors import BadInput, HardwareError, LaneError
from tests.contract.peers import CLOSE, PROMPT, SILENCE, AgentPeer

CHECK = "/r/mozpool-storage-check"


def device(port: int) -> Target:
    return Target("panda-0001", "127.0.0.1", "aabbccddeeff", options={"sut_port": str(port)})


@pytest.fixture
def agent(context):
    return SUTAgent(context)


@pytest.fixture
def hasty_agent(agent):
    """Gives up a command after a moment, so that tries can be counted."""
    agent.command_limit = 0.2
    return agent


# Verification


def test_verify_asks_for_test_root_and_version_byte_for_byte(start, agent, seconds):
    peer = start(AgentPeer())
    agent.verify(device(peer.port), seconds(5))
    assert peer.connections == [[b"testroot\r\n", b"ver\r\n"]]


def test_an_agent_whose_bytes_arrive_one_at_a_time_is_fine(start, agent, seconds):
    peer = start(AgentPeer(byte_by_byte=True))
    agent.verify(device(peer.port), seconds(5))


def test_a_second_prompt_does_not_pass_for_an_answer(start, agent, seconds):
    peer = start(AgentPeer(greeting=PROMPT + PROMPT, answers={"testroot": b"/r\n" + PROMPT + PROMPT}))
    agent.verify(device(peer.port), seconds(5))


@pytest.mark.parametrize(
    ("make_peer", "reason"),
    [
        (lambda: AgentPeer(greeting=SILENCE), "no answer within 0.3 s"),
        (lambda: AgentPeer(greeting=b"$>"), r"no answer within 0.3 s \(so far: '\$>'\)"),
        (lambda: AgentPeer(greeting=CLOSE), "closed the connection without a prompt"),
        (lambda: AgentPeer(greeting=b"220 ftp.example.com\r\n" + PROMPT), "before its first prompt"),
        (lambda: AgentPeer({"testroot": SILENCE}), "no answer within 0.3 s"),
        (lambda: AgentPeer({"testroot": CLOSE}), "connection"),
        (lambda: AgentPeer({"testroot": b"/r\n$>"}), r"no answer within 0.3 s \(so far: '/r\\n\$>'\)"),
        (lambda: AgentPeer({"testroot": b"\n" + PROMPT}), "answered '' to testroot"),
        (lambda: AgentPeer({"testroot": b"not a path\n" + PROMPT}), "answered 'not a path' to testroot"),
        (lambda: AgentPeer({"testroot": b"/r\r\nrmdr /\n" + PROMPT}), "to testroot"),
        (
            lambda: AgentPeer({"ver": b"##AGENT-WARNING## unknown command" + PROMPT}),
            "'##AGENT-WARNING## unknown command' to ver",
        ),
        (lambda: AgentPeer({"ver": b"##AGENT-WARNING## unknown command\n" + PROMPT}), "unknown command"),
        (lambda: AgentPeer({"ver": b"\xff\xfe\0\n" + PROMPT}), "to ver"),
        (lambda: AgentPeer({"ver": b"SUTAgentNegatus Ver" + CLOSE}), "so far"),
    ],
)
def test_verification_of_a_bad_agent_fails_in_time_with_a_reason(start, agent, seconds, make_peer, reason):
    peer = start(make_peer())
    began = time.monotonic()
    with pytest.raises(HardwareError, match=reason) as caught:
        agent.verify(device(peer.port), seconds(0.3))
    assert time.monotonic() - began < 3
    assert f"agent verification of panda-0001 failed: agent at 127.0.0.1:{peer.port}: " in str(caught.value)
    assert not isinstance(caught.value, LaneError)
    assert len(peer.connections) == 1, "verification is one attempt"


def test_an_agent_that_refuses_the_connection_is_an_error(agent, seconds, closed_port):
    with pytest.raises(HardwareError, match="Connection refused"):
        agent.verify(device(closed_port), seconds(5))


@pytest.mark.parametrize("port", ["", "0", "65536", "-1", "x", "1e3", "\u0661"])
def test_a_bad_port_option_is_an_error(agent, seconds, port):
    target = Target("panda-0001", "127.0.0.1", "aabbccddeeff", options={"sut_port": port})
    with pytest.raises(HardwareError, match="sut_port"):
        agent.verify(target, seconds(5))


def test_a_babbling_agent_cannot_fill_the_memory(start, agent, seconds):
    peer = start(AgentPeer({"testroot": b"x" * (sut.ANSWER_LIMIT + 1_000_000)}))
    with pytest.raises(HardwareError, match="sent more than 4194304 bytes without a prompt"):
        agent.verify(device(peer.port), seconds(20))


# Storage


def content_of(peer: AgentPeer) -> list[bytes]:
    """What was pushed, by the sizes that the push commands gave."""
    found = []
    rest = peer.received
    while b"push " in rest:
        line, rest = rest[rest.index(b"push ") :].split(b"\r\n", 1)
        found.append(rest[: int(line.split(b" ")[2])])
    return found


def test_the_storage_check_makes_a_directory_and_a_file_and_removes_them(start, agent, seconds):
    peer = start(AgentPeer())
    agent.check_storage(device(peer.port), seconds(5))
    (content,) = content_of(peer)
    assert b"panda-0001" in content
    assert peer.received == (
        f"testroot\r\nrmdr {CHECK}\r\nmkdr {CHECK}\r\nisdir {CHECK}\r\n".encode()
        + f"push {CHECK}/check.txt {len(content)}\r\n".encode()
        + content
        + f"rmdr {CHECK}\r\n".encode()
    )
    assert len(peer.connections) == 1
    assert peer.directories == {"/r"}
    assert peer.files == {}


def test_a_directory_that_an_earlier_check_left_is_no_problem(start, agent, seconds):
    peer = AgentPeer()
    peer.directories.add(CHECK)
    start(peer)
    agent.check_storage(device(peer.port), seconds(5))
    assert peer.directories == {"/r"}


def test_android_agents_words_and_an_upper_case_hash_are_fine(start, agent, seconds):
    class AndroidPeer(AgentPeer):
        def usual(self, line: str, content: bytes) -> bytes:
            answer = super().usual(line, content)
            if line.startswith("rmdr"):
                return f"Deleting file(s) from {CHECK}".encode()
            return answer.replace(b"successfuly", b"successfully").upper()

    peer = start(AndroidPeer({"testroot": b"/r\n" + PROMPT}))
    agent.check_storage(device(peer.port), seconds(5))
    assert peer.directories == {"/r"}


def test_a_wrong_hash_fails_after_five_tries(start, agent, seconds):
    peer = start(AgentPeer({"push": b"\n" + b"0" * 32 + b"\n" + PROMPT}))
    with pytest.raises(HardwareError, match=r"storage check of panda-0001 failed: .*'0{32}' where the hash of"):
        agent.check_storage(device(peer.port), seconds(20))
    assert len(content_of(peer)) == 5


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ({"mkdr": b"##AGENT-WARNING## Could not create directory" + PROMPT}, "Could not create directory"),
        ({"isdir": b"FALSE\n" + PROMPT}, "is no directory"),
        ({"push": b"##AGENT-WARNING## No space left\n" + PROMPT}, "No space left"),
        ({"testroot": b"##AGENT-WARNING## no test root\n" + PROMPT}, "no test root"),
        ({"rmdr": b"##AGENT-WARNING## read-only file system\n" + PROMPT}, "did not remove"),
    ],
)
def test_a_storage_that_fails_is_an_error_with_the_agents_words(start, agent, seconds, answers, reason):
    peer = start(AgentPeer(answers))
    with pytest.raises(HardwareError, match=reason):
        agent.check_storage(device(peer.port), seconds(20))


@pytest.mark.parametrize("command", ["testroot", "mkdr", "isdir", "push", "rmdr"])
@pytest.mark.parametrize("trouble", [CLOSE, SILENCE, b"##AGENT-WARNING## busy" + PROMPT])
def test_a_command_that_fails_once_is_tried_again(start, hasty_agent, seconds, command, trouble):
    peer = start(AgentPeer({command: [trouble]}))
    hasty_agent.check_storage(device(peer.port), seconds(20))
    assert peer.directories == {"/r"}


def test_each_try_that_fails_is_in_the_log(start, hasty_agent, seconds, caplog):
    caplog.set_level("INFO", "mozpool.bmm")
    peer = start(AgentPeer({"push": [b"##AGENT-WARNING## busy" + PROMPT, CLOSE]}))
    hasty_agent.check_storage(device(peer.port), seconds(20))
    first, second = caplog.messages
    assert first.startswith("storage check of panda-0001: writing a file failed, try 1 of 5: answered")
    assert "AGENT-WARNING## busy" in first
    assert second.startswith("storage check of panda-0001: writing a file failed, try 2 of 5: closed the connection")


class LosingPeer(AgentPeer):
    """Makes and removes directories, but closes instead of answering, once for each such command line."""

    def __init__(self) -> None:
        super().__init__()
        self.lost: list[str] = []

    def scripted(self, line: str) -> bytes | None:
        seen = f"{line} with {len(self.files)} files"
        if line.split(" ")[0] not in ("mkdr", "rmdr") or seen in self.lost:
            return None
        self.lost.append(seen)
        self.usual(line, b"")
        return CLOSE


def test_what_was_done_although_the_answer_was_lost_is_no_problem(start, agent, seconds):
    peer = start(LosingPeer())
    agent.check_storage(device(peer.port), seconds(20))
    assert peer.lost == [f"rmdr {CHECK} with 0 files", f"mkdr {CHECK} with 0 files", f"rmdr {CHECK} with 1 files"]
    assert peer.directories == {"/r"}


def test_the_storage_check_ends_at_its_deadline_whatever_is_left_to_try(start, agent, seconds):
    peer = start(AgentPeer({"mkdr": SILENCE}))
    began = time.monotonic()
    with pytest.raises(HardwareError, match="no answer within"):
        agent.check_storage(device(peer.port), seconds(0.3))
    assert time.monotonic() - began < 3


def test_no_command_takes_more_than_its_own_limit(start, hasty_agent, seconds):
    peer = start(AgentPeer({"isdir": SILENCE}))
    began = time.monotonic()
    with pytest.raises(HardwareError, match=r"no answer within 0.2 s"):
        hasty_agent.check_storage(device(peer.port), seconds(60))
    assert time.monotonic() - began < 10
    assert peer.received.count(b"isdir") == 5


# Reboot


def test_reboot_sends_rebt_and_is_content_when_the_agent_closes(start, agent, seconds):
    peer = start(AgentPeer())
    agent.reboot(device(peer.port), seconds(5))
    assert peer.connections == [[b"rebt\r\n"]]


class SilentRebooter(AgentPeer):
    """Neither answers ``rebt`` nor closes."""

    def serve(self, connection):
        connection.sendall(PROMPT)
        self.linger(connection)


class RebootRefuser(AgentPeer):
    """Knows no ``rebt``, as the oldest Linux agents."""

    def serve(self, connection):
        connection.sendall(PROMPT)
        self.receive(connection)
        connection.sendall(b"##AGENT-WARNING## unknown command\n" + PROMPT)
        self.linger(connection)


def test_reboot_does_not_need_a_confirmation(start, agent, seconds):
    peer = start(SilentRebooter())
    agent.reboot(device(peer.port), seconds(0.3))
    assert peer.received == b"rebt\r\n"


def test_reboot_fails_when_the_agent_refuses(start, agent, seconds):
    peer = start(RebootRefuser())
    with pytest.raises(HardwareError, match=r"reboot by agent of panda-0001 failed: .*unknown command"):
        agent.reboot(device(peer.port), seconds(5))


def test_reboot_fails_when_there_is_no_agent(agent, seconds, closed_port):
    with pytest.raises(HardwareError, match="Connection refused"):
        agent.reboot(device(closed_port), seconds(5))


# Uptime


def test_uptime_asks_the_agent(start, agent, seconds):
    peer = start(AgentPeer({"info uptime": b"0 days 0 hours 5 minutes 12 seconds 33 ms\n" + PROMPT}))
    assert agent.uptime(device(peer.port), seconds(5)) == pytest.approx(312.033)
    assert peer.received == b"info uptime\r\n"


def test_uptime_is_none_when_the_agent_only_warns(start, agent, seconds):
    peer = start(AgentPeer())
    assert agent.uptime(device(peer.port), seconds(5)) is None


def test_uptime_does_not_wait_as_long_as_a_command_for_a_board_that_is_booting(start, agent, seconds, monkeypatch):
    """As a connection that is accepted before there is an agent behind it."""
    monkeypatch.setattr(sut, "_UPTIME_PATIENCE", 0.3)
    peer = start(AgentPeer(greeting=SILENCE))
    with pytest.raises(HardwareError, match=r"no answer within 0\.3 s"):
        agent.uptime(device(peer.port), seconds(60))


class BootingPeer(AgentPeer):
    """Its first connections hang for ever, as those do that were begun before the agent was up."""

    def __init__(self, hangs: int) -> None:
        super().__init__({"info uptime": b"0 days 0 hours 0 minutes 1 seconds 0 ms\n" + PROMPT})
        self.hangs = hangs
        self.kept: list[socket.socket] = []

    def serve(self, connection):
        if len(self.connections) <= self.hangs:
            self.kept.append(connection.dup())
        else:
            super().serve(connection)

    def __exit__(self, *error):
        super().__exit__(*error)
        for connection in self.kept:
            connection.close()


@pytest.mark.parametrize("operation", ["verify", "uptime"])
def test_a_connection_that_was_begun_too_early_costs_a_second(start, agent, seconds, operation):
    peer = start(BootingPeer(hangs=1))
    began = time.monotonic()
    getattr(agent, operation)(device(peer.port), seconds(60))
    assert time.monotonic() - began < 2.5


@pytest.mark.parametrize("operation", ["verify", "uptime"])
def test_an_agent_that_takes_its_time_for_the_prompt_is_waited_for(start, agent, seconds, operation):
    class SlowPeer(BootingPeer):
        def send(self, connection, data):
            if data == self.greeting:
                time.sleep(2.5)
            super().send(connection, data)

    peer = start(SlowPeer(hangs=0))
    getattr(agent, operation)(device(peer.port), seconds(60))
    assert peer.connections[0][0] in (b"testroot\r\n", b"info uptime\r\n"), "the first one was the first to be served"


def test_uptime_fails_when_there_is_no_agent(agent, seconds, closed_port):
    with pytest.raises(HardwareError):
        agent.uptime(device(closed_port), seconds(5))


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("0 days 0 hours 5 minutes 12 seconds 33 ms", 312.033),
        ("2 days 3 hours 0 minutes 1 seconds 0 ms", 2 * 86400 + 3 * 3600 + 1),
        ("1 day 1 hour 1 minute 1 second", 90061),
        (" 20:18:03 up 3 days,  2:11,  1 user,  load average: 0.00, 0.01, 0.05", 3 * 86400 + 2 * 3600 + 11 * 60),
        (" 20:18:03 up 5 min,  0 users,  load average: 0.00, 0.01, 0.05", 300),
        (" 20:18:03 up  2:11,  1 user,  load average: 0.00", 2 * 3600 + 11 * 60),
        ("", None),
        ("linux", None),
        ("12", None),
        ("##AGENT-WARNING## Invalid info subcommand 5 minutes", None),
        ("9" * 5000 + " days", None),
    ],
)
def test_it_reads_the_uptimes_of_different_agents(answer, expected):
    assert parse_uptime(answer) == (None if expected is None else pytest.approx(expected))


# Commands


def test_run_returns_output_and_code(start, agent, seconds):
    peer = start(AgentPeer({"exec": b"a\n  b\nreturn code [0]\n" + PROMPT}))
    assert agent.run(device(peer.port), ["ls", "/r"], seconds(5)) == CommandResult("a\n  b\n", 0)
    assert peer.received == b"exec ls /r\r\n"


@pytest.mark.parametrize(
    ("answer", "result"),
    [
        (b"return code [0]\n", CommandResult("", 0)),
        (b"no newline at the endreturn code [3]\n", CommandResult("no newline at the end", 3)),
        (b"return code [1]\nreturn code [-9]\r\n", CommandResult("return code [1]\n", -9)),
        (
            b"##AGENT-WARNING## printed by the program\nreturn code [0]\n",
            CommandResult("##AGENT-WARNING## printed by the program\n", 0),
        ),
        (b"success\n", CommandResult("success", None)),
        (b"\n", CommandResult("", None)),
        (b"$> is no prompt\nreturn code [0]\n", CommandResult("$> is no prompt\n", 0)),
        (b"\xff\nreturn code [0]\n", CommandResult("\ufffd\n", 0)),
    ],
)
def test_run_reads_what_agents_answer(start, agent, seconds, answer, result):
    peer = start(AgentPeer({"exec": answer + PROMPT}))
    assert agent.run(device(peer.port), ["prog"], seconds(5)) == result


def test_run_may_take_longer_than_other_commands_but_not_longer_than_the_deadline(start, hasty_agent, seconds):
    peer = start(AgentPeer({"exec": SILENCE}))
    began = time.monotonic()
    with pytest.raises(HardwareError, match=r"no answer within 0.5 s"):
        hasty_agent.run(device(peer.port), ["sleep", "1000"], seconds(0.5))
    assert 0.4 < time.monotonic() - began < 3


def test_run_fails_when_the_agent_only_warns(start, agent, seconds):
    peer = start(AgentPeer({"exec": b"##AGENT-WARNING## cannot run that" + PROMPT}))
    with pytest.raises(HardwareError, match=r"command by agent of panda-0001 failed: .*cannot run that"):
        agent.run(device(peer.port), ["nope"], seconds(5))


@pytest.mark.parametrize(
    "command",
    [["ls"], ["ls", "-l", "/r/a b"], ["echo", "it's", '"', "$HOME", "`id`", ";", "&", "~", "", "\u00e9", "*"]],
)
def test_a_shell_reads_the_same_arguments_from_the_line(command):
    line = exec_line(command)
    assert line.startswith("exec ")
    assert shlex.split(line) == ["exec", *command]


@pytest.mark.parametrize(
    "command",
    [
        [],
        [""],
        "ls",
        ["ls\r\nrebt"],
        ["ls", "a\nb"],
        ["ls", "a\rb"],
        ["ls", "a\0b"],
        ["ls", "\ud800"],
        ["PATH=/tmp", "ls"],
    ],
)
def test_it_refuses_what_one_line_cannot_carry_and_sends_nothing(start, agent, seconds, command):
    peer = start(AgentPeer())
    with pytest.raises(BadInput) as caught:
        agent.run(device(peer.port), command, seconds(5))
    assert caught.value.field == "command"
    assert peer.connections == []
