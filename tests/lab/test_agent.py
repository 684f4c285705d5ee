# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The agent of the lab's boards, run here: our own client must get along with it, byte by byte."""

from __future__ import annotations

import hashlib
import random
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mozpool.bmm.backends.sut import SUTAgent
from mozpool.bmm.interfaces import BackendContext, CommandResult, Target
from mozpool.clock import Clock, Deadline
from tests.contract.fake_peers import LabAgent

PROMPT = b"$>\0"


@pytest.fixture
def board(tmp_path: Path) -> Iterator[LabAgent]:
    """An agent that runs as it does on a board."""
    with LabAgent(tmp_path / "board") as agent:
        yield agent


@pytest.fixture
def root(board: LabAgent) -> Path:
    """Where the agent's clients may write."""
    return board.root


@pytest.fixture
def port(board: LabAgent) -> int:
    """The agent's port."""
    return board.port


@pytest.fixture
def device(port: int) -> Target:
    return Target("board1", "127.0.0.1", "525400990001", options={"sut_port": str(port)})


@pytest.fixture
def agent() -> SUTAgent:
    return SUTAgent(BackendContext(Clock(), None))


@pytest.fixture
def deadline() -> Deadline:
    return Deadline(Clock(), 60)


def talk(port: int, data: bytes, prompts: int) -> bytes:
    """What the agent says until it has prompted so often, after all of ``data`` was sent at once."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(data)
        said = b""
        while said.count(PROMPT) < prompts:
            piece = connection.recv(65536)
            assert piece, said
            said += piece
        return said


def test_it_is_verified_and_its_storage_is_checked(agent, device, deadline, root):
    agent.verify(device, deadline)
    agent.check_storage(device, deadline)
    assert list(root.iterdir()) == []


def test_it_runs_commands_and_tells_its_uptime(agent, device, deadline):
    assert agent.run(device, ["sh", "-c", "echo 'a  b'; exit 3"], deadline) == CommandResult("a  b\n", 3)
    uptime = agent.uptime(device, deadline)
    assert uptime is not None
    now = float(Path("/proc/uptime").read_text().split()[0])
    assert now - 60 < uptime <= now + 1


def test_its_answers_are_those_of_real_agents(port, root):
    said = talk(
        port,
        b"ver\r\ntestroot\r\nisdir %b\r\nisdir /nope\r\nmkdr x\r\nmkdr x\r\nrmdr x\r\nrmdr x\r\ninfo os\r\nbla\r\n\r\n"
        % str(root).encode(),
        12,
    )
    assert said == b"".join(
        [
            PROMPT,
            b"LabAgent Version raw-7\n" + PROMPT,
            str(root).encode() + b"\n" + PROMPT,
            b"TRUE\n" + PROMPT,
            b"FALSE\n" + PROMPT,
            b"x successfuly created\n" + PROMPT,
            b"##AGENT-WARNING## file: could not create the directory x\n" + PROMPT,
            b"\n" + PROMPT,
            b"##AGENT-WARNING## file: could not remove x\n" + PROMPT,
            b"linux\n" + PROMPT,
            b"##AGENT-WARNING## unknown command\n" + PROMPT,
            b"\n" + PROMPT,
        ]
    )


@pytest.mark.parametrize("size", [0, 1, 65535, 65536, 200_001])
def test_a_push_takes_exactly_its_bytes_and_the_next_command_follows(port, root, size):
    content = random.Random(size).randbytes(size)
    digest = hashlib.md5(content).hexdigest().encode()
    said = talk(port, b"push a b %d\r\n%bhash a b\r\nisdir x\r\n" % (size, content), 4)
    assert said == PROMPT + b"\n" + digest + b"\n" + PROMPT + digest + b"\n" + PROMPT + b"FALSE\n" + PROMPT
    assert (root / "a b").read_bytes() == content


def test_the_bytes_of_a_push_that_cannot_be_written_are_no_commands(port):
    said = talk(port, b"push nope/x 5\r\nver\r\nclok\r\n", 3)
    assert said.startswith(PROMPT + b"##AGENT-WARNING## file: could not write ")
    assert b"LabAgent" not in said
    assert abs(int(said.split(PROMPT)[2]) / 1000 - time.time()) < 60


@pytest.mark.parametrize("arguments", [b"x", b"", b"x y", b"x -1", b"x 1x"])
def test_a_push_without_a_size_is_refused(port, arguments):
    said = talk(port, b"push %b\r\nver\r\n" % arguments, 3)
    assert said.split(PROMPT)[1:3] == [
        b"##AGENT-WARNING## wrong arguments for push command\n",
        b"LabAgent Version raw-7\n",
    ]


def test_it_closes_and_reboots_when_it_is_told_to(agent, device, deadline, board):
    agent.reboot(device, deadline)
    assert board.reboots() == 1


def test_quit_ends_the_connection(port):
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(b"quit\r\n")
        said = b""
        while piece := connection.recv(100):
            said += piece
    assert said == PROMPT
