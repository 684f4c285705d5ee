# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Other people's programs as peers of the contract suites, and what can be put in front of them.

Each is a context manager and ends what it has started.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from mozpool.fakes.adbd import AdbDaemon
from tests.contract.peers import Peer
from tests.processes import end, free_port

PATIENCE = 60.0
"""Seconds for a program to start on a busy machine."""


@contextlib.contextmanager
def running(command: list[str], port: int, log: Path, **environment: str) -> Iterator[None]:
    """Run a program that listens on ``port`` of 127.0.0.1 when it is ready; its outputs go to ``log``."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={"PATH": os.environ["PATH"], "HOME": str(log.parent), **environment},
        )
    try:
        give_up = time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            assert process.poll() is None, f"{command[0]} ended: {log.read_text(errors='replace')[-2000:]}"
            assert time.monotonic() < give_up, (
                f"{command[0]} does not listen: {log.read_text(errors='replace')[-2000:]}"
            )
            time.sleep(0.05)
        yield
    finally:
        end(process)


class PDUDaemon:
    """pdudaemon with two PDUs of its driver localcmdline, which write into files, and one that can't be reached."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"

    @contextlib.contextmanager
    def run(self) -> Iterator[PDUDaemon]:
        beside = Path(sys.executable).with_name("pdudaemon")
        program = str(beside) if beside.exists() else shutil.which("pdudaemon")
        if program is None:
            pytest.skip("pdudaemon is not installed (pip install 'mozpool[pdudaemon]')")
        pdus = {
            name: {
                "driver": "localcmdline",
                "cmd_on": f"echo %s on >> {self.directory}/{name}",
                "cmd_off": f"echo %s off >> {self.directory}/{name}",
            }
            for name in ("pdu-1", "pdu-2")
        }
        slow = {"driver": "localcmdline", "cmd_on": "exec sleep 2 # %s", "cmd_off": "exec sleep 2 # %s"}
        # Nobody listens on port 9 there.
        away = {"driver": "tasmota", "retries": 1, "retrydelay": 0}
        config = {
            "daemon": {"hostname": "127.0.0.1", "port": self.port, "listener": "http", "logging_level": "DEBUG"},
            "pdus": {**pdus, "slow": slow, "127.0.0.1:9": away},
        }
        (self.directory / "pdudaemon.conf").write_text(json.dumps(config))
        with running(
            [program, "--conf", str(self.directory / "pdudaemon.conf")], self.port, self.directory / "pdudaemon.log"
        ):
            yield self

    def lines(self, pdu: str) -> list[str]:
        """What was done, as ``PORT on`` and ``PORT off``."""
        file = self.directory / pdu
        return file.read_text().splitlines() if file.exists() else []


USER = "operator"
PASSWORD = "geheim-4711"
SYSTEMS = tuple(f"27946b59-9e44-4fa7-8e91-0000000000{number:02d}" for number in range(2))

# The emulator's fake systems take up to 11 seconds to switch, by chance; here at most one.
_EMULATOR = """
import random, sys
random.randint = lambda low, high: low
sys.argv[0] = "sushy-emulator"
from sushy_tools.emulator.main import main
sys.exit(main())
"""


class RedfishEmulator:
    """sushy-emulator, the Redfish emulator of OpenStack, with two fake systems, and a user with a password."""

    def __init__(self, directory: Path, *, tls: bool = False) -> None:
        self.directory = directory
        self.port = free_port()
        self.tls = tls
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"

    @contextlib.contextmanager
    def run(self) -> Iterator[RedfishEmulator]:
        for module in ("sushy", "sushy_tools", "bcrypt"):
            if importlib.util.find_spec(module) is None:
                pytest.skip(f"{module} is not installed (pip install 'mozpool[test]')")
        import bcrypt

        hashed = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4, prefix=b"2b")).decode()
        (self.directory / "users").write_text(f"{USER}:{hashed.replace('$2b$', '$2y$')}\n")
        nics: list[dict[str, str]] = []
        systems = [
            {"uuid": uuid, "name": f"system-{number}", "power_state": "On", "external_notifier": False, "nics": nics}
            for number, uuid in enumerate(SYSTEMS)
        ]
        config = {
            "SUSHY_EMULATOR_FAKE_DRIVER": True,
            "SUSHY_EMULATOR_FAKE_SYSTEMS": systems,
            "SUSHY_EMULATOR_STATE_DIR": str(self.directory),
            "SUSHY_EMULATOR_AUTH_FILE": str(self.directory / "users"),
            "SUSHY_EMULATOR_LISTEN_IP": "127.0.0.1",
            "SUSHY_EMULATOR_LISTEN_PORT": self.port,
        }
        if self.tls:
            make_certificate(self.directory)
            config["SUSHY_EMULATOR_SSL_CERT"] = str(self.directory / "cert.pem")
            config["SUSHY_EMULATOR_SSL_KEY"] = str(self.directory / "key.pem")
        file = self.directory / "emulator.conf"
        file.write_text("".join(f"{name} = {value!r}\n" for name, value in config.items()))
        command = [sys.executable, "-c", _EMULATOR, "--config", str(file)]
        with running(command, self.port, self.directory / "emulator.log"):
            yield self

    def is_on(self, number: int) -> bool:
        """What the emulator itself says of one of its systems."""
        path = f"{self.url}/redfish/v1/Systems/{SYSTEMS[number]}"
        return requests.get(path, auth=(USER, PASSWORD), timeout=PATIENCE, verify=False).json()["PowerState"] == "On"


def make_certificate(directory: Path) -> None:
    """A certificate for 127.0.0.1 that only itself vouches for: cert.pem and key.pem."""
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1"
    )
    files = ["-keyout", str(directory / "key.pem"), "-out", str(directory / "cert.pem")]
    subprocess.run([*command.split(), *files], check=True, capture_output=True)


class AdbServer:
    """The real adb server on a port of its own, which connects to nobody by itself."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_port()

    @contextlib.contextmanager
    def run(self) -> Iterator[AdbServer]:
        if importlib.util.find_spec("adbutils") is None:
            pytest.skip("adbutils is not installed (pip install 'mozpool[test]')")
        program = shutil.which("adb")
        if program is None:
            pytest.skip("adb is not installed (Debian package adb)")
        command = [program, "-P", str(self.port), "nodaemon", "server"]
        # It looks for emulators on the ports up to this one; there are none.
        with running(command, self.port, self.directory / "adb.log", ADB_LOCAL_TRANSPORT_MAX_PORT="5553"):
            yield self


class AdbDevice:
    """A fake device with the daemon that the adb server connects to."""

    def __init__(self) -> None:
        self.reboots = 0
        self.daemon = AdbDaemon("panda-0001", "127.0.0.1", 0, uptime=lambda: 321.5, reboot=self._reboot)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fake adbd")

    def __enter__(self) -> AdbDevice:
        self._thread.start()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        assert not self._thread.is_alive()
        self._loop.close()

    @property
    def serial(self) -> str:
        return f"127.0.0.1:{self.daemon.port}"

    def start(self) -> None:
        asyncio.run_coroutine_threadsafe(self.daemon.start(), self._loop).result(PATIENCE)

    def stop(self) -> None:
        """Cut all its connections, and take no new ones."""

        async def close() -> None:
            self.daemon.close()
            await asyncio.sleep(0)  # so that the connections have noticed

        asyncio.run_coroutine_threadsafe(close(), self._loop).result(PATIENCE)

    def _reboot(self) -> None:
        self.reboots += 1


class Silent(Peer):
    """Takes connections and says nothing."""

    def serve(self, connection: socket.socket) -> None:
        self.linger(connection)


class Garbage(Peer):
    """Answers the first bytes with what belongs to no protocol here, and closes."""

    def __init__(self, answer: bytes = b"\x00\xff\xfe nonsense\r\n\r\n$>") -> None:
        super().__init__()
        self.answer = answer

    def serve(self, connection: socket.socket) -> None:
        if self.receive(connection):
            connection.sendall(self.answer)


class Dripping:
    """Passes on what another server answers, one byte at a time, and remembers what that one was sent."""

    def __init__(self, port: int, *, answers: int = 1, commands: int = 65536, thinking: float = 0.0) -> None:
        """``answers`` and ``commands`` are the largest numbers of bytes that arrive at a time; a connection's first
        answer takes ``thinking`` seconds longer."""
        self._behind = port
        self._thinking = thinking
        self._sizes = (commands, answers)
        self.received = b""
        """All that clients have sent."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, name=f"dripping {self.port}")]

    def __enter__(self) -> Dripping:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join(PATIENCE)
        for sock in self._open:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()
        for sock in (self._listener, *self._open):
            sock.close()

    def _accept(self) -> None:
        while True:
            try:
                front, _ = self._listener.accept()
            except OSError:
                return
            front.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._open.append(front)
            try:
                back = socket.create_connection(("127.0.0.1", self._behind), timeout=PATIENCE)
            except OSError:
                front.shutdown(socket.SHUT_RDWR)
                continue
            back.settimeout(None)
            back.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._open.append(back)
            commands, answers = self._sizes
            for arguments in ((front, back, commands, True), (back, front, answers, False)):
                self._threads.append(threading.Thread(target=self._pass_on, args=arguments))
                self._threads[-1].start()

    def _pass_on(self, source: socket.socket, target: socket.socket, size: int, are_commands: bool) -> None:
        thinking = 0.0 if are_commands else self._thinking
        with contextlib.suppress(OSError):
            while data := source.recv(size):
                time.sleep(thinking)
                thinking = 0.0
                if are_commands:
                    self.received += data  # before it can be answered
                target.sendall(data)
                if are_commands and size == 1:
                    time.sleep(0.0005)  # or a command's bytes would arrive together again
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)


class Lost(Dripping):
    """What clients send is lost on the way, from the first packet on, until they are let in."""

    def __init__(self, port: int) -> None:
        super().__init__(port, answers=65536)
        # Once its queue is full, the system drops what asks for a connection and says nothing.
        self._listener.listen(0)
        self._first = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)

    def __enter__(self) -> Lost:
        return self

    def __exit__(self, *error: object) -> None:
        self.let_in()
        super().__exit__(*error)

    def let_in(self) -> None:
        """From now on clients get through. Once is enough."""
        self._first.close()
        if self._threads[0].ident is None:
            self._threads[0].start()


class Trickle(Peer):
    """Sends a byte of a web server's headers now and then, and never comes to an end."""

    def serve(self, connection: socket.socket) -> None:
        self.receive(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        while True:
            connection.sendall(b"x")
            time.sleep(0.02)
