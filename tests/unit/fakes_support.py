# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What the tests of the fakes share: an imaging server that records its calls, and plain sockets."""

from __future__ import annotations

import os
import queue
import random
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from mozpool.fakes.board import Behaviour, BoardSpec
from mozpool.fakes.rack import Rack
from mozpool.fakes.sutagent import PROMPT

PATIENCE = 10.0
FAST = Behaviour.reliable(speed=2000)


def address(number: int) -> str:
    """A loopback address that tests running at the same time don't use."""
    process = os.getpid()
    return f"127.{64 + (process >> 8) % 128}.{process % 256}.{number}"


RELAYS = address(254)
"""Where the relay boards listen. No port there is ever taken by an outgoing connection, as on 127.0.0.1."""
PORT = 2101
BOARD = f"{RELAYS}:{PORT}"


def spec(number: int = 1, port: int | None = None, **fields) -> BoardSpec:
    """A board; ``port`` is its relay board's."""
    values = {
        "name": f"board-{number}",
        "address": address(number),
        "mac_address": f"0200000000{number:02x}",
        "relay_info": port and f"{RELAYS}:{port}:bank{(number - 1) // 8 + 1}:relay{(number - 1) % 8 + 1}",
        "image": "b2g",
        **fields,
    }
    return BoardSpec(**values)


def rack_of(
    *boards: BoardSpec, server_url="http://127.0.0.1:9", tftp_root=None, behaviour=FAST, seed=1, **more
) -> Rack:
    """A rack of these boards, not started."""
    return Rack(boards, server_url, tftp_root, behaviour, random.Random(seed), **more)


def eventually(condition: Callable[[], object], what: str = "condition") -> None:
    """Wait until this holds, or fail."""
    never = threading.Event()
    for _ in range(int(PATIENCE / 0.005)):
        if condition():
            return
        never.wait(0.005)
    raise AssertionError(f"not within {PATIENCE} s: {what}")


def connect(host: str, port: int) -> socket.socket:
    """A TCP connection whose reads give up after a while."""
    return socket.create_connection((host, port), timeout=PATIENCE)


def silent(connection: socket.socket, seconds: float = 0.1) -> bool:
    """Whether nothing at all comes in for so long."""
    connection.settimeout(seconds)
    try:
        connection.recv(1)
    except TimeoutError:
        return True
    finally:
        connection.settimeout(PATIENCE)
    return False


def cut(connection: socket.socket) -> bool:
    """Whether the peer has ended the connection without another word."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def until_prompt(connection: socket.socket) -> bytes:
    """Everything up to and with the agent's next prompt."""
    received = b""
    while not received.endswith(PROMPT):
        part = connection.recv(4096)
        assert part, f"closed after {received!r}"
        received += part
    return received


def ask(connection: socket.socket, command: str) -> bytes:
    """What the agent answers to a command, with the prompt."""
    connection.sendall(command.encode() + b"\r\n")
    return until_prompt(connection)


def relay(connection: socket.socket, *command: int) -> int:
    """The one byte that a relay board answers to these."""
    connection.sendall(bytes(command))
    answer = connection.recv(16)
    assert len(answer) == 1
    return answer[0]


def write_pxe(root: Path, board: BoardSpec, text: str) -> Path:
    """The file that the TFTP server would give this board."""
    mac = board.mac_address
    path = root / "pxelinux.cfg" / ("01-" + "-".join(mac[i : i + 2] for i in range(0, 12, 2)))
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


class ImagingServer:
    """A real HTTP server that knows the two paths which boards call."""

    def __init__(self, bootconfig: str = '{"b2gbase": "http://images/b2g/"}') -> None:
        self.bootconfig = bootconfig
        self.paths: queue.Queue[str] = queue.Queue()
        """Every path that was asked for, redirected and refused calls too."""
        self.callers: list[tuple[str, str | None]] = []
        """From which address each call came, and with which token of a boot."""
        self.statuses: list[int] = []
        """Statuses of the next answers; 200 when there are none."""
        self.redirect_to: str | None = None
        self.on_event: Callable[[str], object] = lambda event: None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.callers.append((self.client_address[0], self.headers["Mozpool-Boot-Token"]))
                outer.paths.put(self.path)
                if outer.redirect_to is not None:
                    self._answer(302, b"", location=outer.redirect_to + self.path)
                    return
                status = outer.statuses.pop(0) if outer.statuses else 200
                if self.path.endswith("/bootconfig/"):
                    self._answer(status, outer.bootconfig.encode())
                    return
                if status == 200:
                    outer.on_event(self.path.split("/")[-2])
                self._answer(status, b"{}")

            def _answer(self, status: int, body: bytes, location: str | None = None) -> None:
                self.send_response(status)
                if location:
                    self.send_header("Location", location)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = False
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def imaging_url(self, script: str) -> str:
        """The kernel's command line that names this server's second stage."""
        return f"append rw console=ttyO2 mobile-imaging-url={self.url}/scripts/{script} quiet\n"

    def next_paths(self, number: int) -> list[str]:
        """The next so many calls, without what is the same in all."""
        paths = [self.paths.get(timeout=PATIENCE) for _ in range(number)]
        return [path.removeprefix("/api/device/board-1/") for path in paths]

    def next_events(self, number: int) -> list[str]:
        return [path.removeprefix("event/").rstrip("/") for path in self.next_paths(number)]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
