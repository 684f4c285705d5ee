# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The fake SUT agent, spoken to with plain sockets."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime

import pytest

from mozpool.clock import SimClock
from mozpool.fakes.sutagent import COMMAND_PORT, AgentFault, Storage
from tests.unit.fakes_support import ask, connect, cut, eventually, rack_of, silent, spec, until_prompt

END = b"\n$>\0"
START = datetime(2030, 1, 2, tzinfo=UTC)


@pytest.fixture
def rack():
    with rack_of(spec(), clock=SimClock(START)) as rack:
        yield rack


@pytest.fixture
def agent(rack):
    """A connection to the agent, past its first prompt."""
    with connect(rack.boards["board-1"].spec.address, COMMAND_PORT) as connection:
        assert until_prompt(connection) == b"$>\0"
        yield connection


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        ("ver", b"SUTAgentNegatus Version 1.1"),
        ("testroot", b"/mnt/sdcard"),
        ("isdir /mnt/sdcard", b"TRUE"),
        ("isdir /nope", b"FALSE"),
        ("mkdr /mnt/sdcard/x", b"/mnt/sdcard/x successfuly created"),
        ("info os", b"linux"),
        ("info nothing", b"##AGENT-WARNING## unknown information"),
        ("clok", b"%d" % (START.timestamp() * 1000)),
        ("exec echo 'a  b' c", b"a  b c\nreturn code [0]"),
        ("exec ls /mnt", b"sdcard\nreturn code [0]"),
        ("exec ls -l /nope", b"ls: /nope: No such file or directory\nreturn code [1]"),
        ("exec true", b"return code [0]"),
        ("exec false", b"return code [1]"),
        ("exec rm -rf /", b"rm: not found\nreturn code [127]"),
        ("exec echo 'open", b"'open\nreturn code [0]"),
        ("exec", b"##AGENT-WARNING## wrong arguments for exec command"),
        ("push onlyapath", b"##AGENT-WARNING## wrong arguments for push command"),
        ("push /a -1", b"##AGENT-WARNING## wrong arguments for push command"),
        ("frobnicate", b"##AGENT-WARNING## unknown command"),
        ("", b""),
    ],
)
def test_it_answers(agent, command, answer):
    assert ask(agent, command) == answer + END


def test_it_takes_commands_in_pieces_and_several_at_once(agent):
    for byte in b"ver\r\n":
        agent.sendall(bytes([byte]))
    assert until_prompt(agent) == b"SUTAgentNegatus Version 1.1" + END
    agent.sendall(b"isdir /\r\nisdir /x\r\n")
    received = b""
    while received.count(END) < 2:
        received += until_prompt(agent)
    assert received == b"TRUE" + END + b"FALSE" + END


def test_it_passes_the_check_of_its_storage(agent):
    content = bytes(range(256)) * 1000  # prompts and newlines are in there, too
    digest = hashlib.md5(content).hexdigest().encode()
    assert ask(agent, "rmdr /mnt/sdcard/check").startswith(b"##AGENT-WARNING##")
    assert b"successfuly created" in ask(agent, "mkdr /mnt/sdcard/check")
    assert ask(agent, "mkdr /mnt/sdcard/check").startswith(b"##AGENT-WARNING##")
    assert ask(agent, "mkdr /mnt/sdcard/no/parent").startswith(b"##AGENT-WARNING##")
    agent.sendall(b"push /mnt/sdcard/check/file %d\r\n" % len(content) + content)
    assert until_prompt(agent) == b"\n" + digest + END
    assert ask(agent, "hash /mnt/sdcard/check/file") == digest + END
    assert ask(agent, "exec ls check") == b"file\nreturn code [0]" + END
    assert ask(agent, "rmdr /mnt/sdcard/check") == END
    assert ask(agent, "isdir /mnt/sdcard/check") == b"FALSE" + END
    assert ask(agent, "hash /mnt/sdcard/check/file").startswith(b"##AGENT-WARNING##")


def test_some_warnings_come_without_the_newline_before_the_prompt(agent):
    assert ask(agent, "hash /nope") == b"##AGENT-WARNING## file: could not read /nope$>\0"


def test_a_push_into_a_missing_directory_is_refused_and_its_bytes_are_no_commands(agent):
    agent.sendall(b"push /nope/file 5\r\nver\r\n")
    assert until_prompt(agent).startswith(b"##AGENT-WARNING##")
    assert ask(agent, "isdir /") == b"TRUE" + END


def test_it_takes_an_empty_file(agent):
    agent.sendall(b"push /mnt/empty 0\r\n")
    assert until_prompt(agent) == b"\n" + hashlib.md5(b"").hexdigest().encode() + END


def test_it_tells_how_long_the_board_is_up(rack, agent):
    board = rack.boards["board-1"]
    board._booted_at -= 2 * 86400 + 3 * 3600 + 5 * 60 + 12
    answer = ask(agent, "info uptime")
    assert answer.startswith(b"2 days 3 hours 5 minutes 1")
    assert answer.endswith(b" ms" + END)
    assert ask(agent, "exec uptime").startswith(b"up 2 days 3 hours 5 minutes 1")


def test_it_closes_the_connection_when_asked_to_quit(agent):
    agent.sendall(b"quit\r\n")
    assert cut(agent)


def test_it_closes_the_connection_and_reboots_its_board_when_asked_to(rack, agent):
    board = rack.boards["board-1"]
    agent.sendall(b"rebt\r\n")
    assert cut(agent)
    eventually(lambda: [entry.what for entry in board.history].count("up") == 2)
    assert [entry.what for entry in board.history] == [
        "power_on",
        "up",
        "rebooting",
        "boot_loader",
        "storage_boot",
        "up",
    ]
    with connect(board.spec.address, COMMAND_PORT) as again:
        assert until_prompt(again) == b"$>\0"


def test_its_files_survive_a_reboot(rack, agent):
    board = rack.boards["board-1"]
    ask(agent, "mkdr /mnt/sdcard/kept")
    agent.sendall(b"rebt\r\n")
    eventually(lambda: [entry.what for entry in board.history].count("up") == 2)
    with connect(board.spec.address, COMMAND_PORT) as again:
        until_prompt(again)
        assert ask(again, "isdir /mnt/sdcard/kept") == b"TRUE" + END


def test_it_serves_several_clients_at_once(rack, agent):
    with connect(rack.boards["board-1"].spec.address, COMMAND_PORT) as other:
        assert until_prompt(other) == b"$>\0"
        assert ask(agent, "isdir /") == ask(other, "isdir /") == b"TRUE" + END


def test_a_line_without_an_end_does_not_fill_the_memory(rack, agent):
    (session,) = rack.boards["board-1"].agent.sessions
    for _ in range(10):
        agent.sendall(b"x" * 60000)
    agent.sendall(b"\r\n")
    assert until_prompt(agent) == b"##AGENT-WARNING## unknown command" + END
    assert len(session._received) == 0


def test_an_agent_can_send_half_a_prompt(rack):
    board = rack.boards["board-1"]
    board.agent.fault = AgentFault.HALF_PROMPT
    with connect(board.spec.address, COMMAND_PORT) as connection:
        assert connection.recv(16) == b"$"
        connection.sendall(b"ver\r\n")
        assert silent(connection)


def test_an_agent_can_hang(rack):
    board = rack.boards["board-1"]
    board.agent.fault = AgentFault.HANG
    with connect(board.spec.address, COMMAND_PORT) as connection:
        connection.sendall(b"ver\r\n")
        assert silent(connection)


def test_an_agent_can_tell_wrong_hashes(rack, agent):
    rack.boards["board-1"].agent.fault = AgentFault.WRONG_HASH
    agent.sendall(b"push /mnt/file 3\r\nabc")
    assert hashlib.md5(b"abc").hexdigest().encode() not in until_prompt(agent)


def test_storage_refuses_what_a_file_system_refuses():
    storage = Storage()
    assert storage.write("/mnt/file", "00")
    assert not storage.write("/mnt", "00")
    assert not storage.make_directory("/mnt/file")
    assert not storage.remove_directory("/")
    assert storage.list("/mnt") == ["file", "sdcard"]
    assert storage.remove_directory("/mnt")
    assert storage.list("/") == []
