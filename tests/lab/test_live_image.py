# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The live image and its second stages on virtual machines, one at a time, against a real HTTP server.

Nothing is stood in for here: a kernel boots, disks are written and boot afterwards. Set LAB_ACCEL=kvm where that works.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import io
import json
import os
import queue
import random
import shutil
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mozpool import resources
from tests.processes import free_port

SCRIPTS = resources.path("scripts")
BOOT_LIMIT = 180.0
"""Seconds of one boot; the notes of timings allow so much for four boards on two cores."""

SAYS = "THE DISK BOOTS"

NEEDED = ("qemu-system-x86_64", "syslinux", "mcopy", "busybox", "ssh", "ssh-keygen", "dpkg-deb", "apt-get")
_MISSING = [name for name in NEEDED if not shutil.which(name)]

pytestmark = [
    pytest.mark.lab,
    pytest.mark.long,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(bool(_MISSING), reason=f"needs {', '.join(_MISSING)}"),
]


class Web(ThreadingHTTPServer):
    """The server of the boards: files of a folder, events, boot configs."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), functools.partial(_Handler, directory=str(folder)))
        self.folder = folder
        self.events: queue.Queue[str] = queue.Queue()
        self.boot_config: dict[str, object] = {}

    @property
    def url(self) -> str:
        """As the boards see it: the host of user-mode networking."""
        return f"http://10.0.2.2:{self.server_port}"


class _Handler(SimpleHTTPRequestHandler):
    server: Web

    def do_GET(self) -> None:
        """Answer events and boot configs; the rest are files."""
        body = None
        if self.path.startswith("/api/device/virtual-1/event/"):
            self.server.events.put(self.path.split("/")[-2])
            body = b"{}"
        elif self.path == "/api/device/virtual-1/bootconfig/":
            body = json.dumps(self.server.boot_config).encode()
        if body is None:
            with suppress(BrokenPipeError, ConnectionResetError):
                super().do_GET()
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on standard error."""


class Machine:
    """A running virtual board, whose console goes to the end of a file."""

    def __init__(self, console: Path, title: str, disk: Path | str, *boot: str, forward: str = "") -> None:
        """Switch it on; ``title`` says on the console what it is to boot, ``disk`` is a file as QEMU names them."""
        self._console = console
        with console.open("ab") as log:
            log.write(f"\n--- power on: {title}\n".encode())
            self._begin = log.tell()
        accel = ["-accel", "kvm"] if os.environ.get("LAB_ACCEL") == "kvm" else ["-accel", "tcg,tb-size=32"]
        # The cheapest processor to emulate; one that is not emulated is what it is.
        processor = "host" if os.environ.get("LAB_ACCEL") == "kvm" else "qemu64"
        self._process = subprocess.Popen(
            [
                *("setpriv", "--pdeathsig", "KILL", "nice", "-n", "10"),
                *("qemu-system-x86_64", "-machine", "pc,graphics=off", *accel, "-cpu", processor),
                *("-m", "128", "-nodefaults", "-display", "none", "-vga", "none", "-no-reboot"),
                *("-chardev", f"file,id=console,path={console},append=on", "-serial", "chardev:console"),
                *("-netdev", f"user,id=n0{forward}"),
                *("-device", "virtio-net-pci,netdev=n0,romfile=", "-drive", f"if=none,id=d0,file={disk},format=raw"),
                *("-device", "virtio-blk-pci,drive=d0,bootindex=1", *boot),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )

    def wait(self, what: str, proof: Callable[[], bool]) -> None:
        """Until ``proof`` is true; fails after the limit, and at once when the machine has ended without it."""
        limit = time.monotonic() + BOOT_LIMIT
        while not proof():
            ended = self._process.poll() is not None
            if (ended and not proof()) or time.monotonic() > limit:
                why = "the machine ended" if ended else "it took too long"
                pytest.fail(f"{why}, waiting for {what}:\n{self.text()[-3000:]}")
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(0.1)

    def text(self) -> str:
        """What its console has shown since it was switched on."""
        return self._console.read_bytes()[self._begin :].decode("utf-8", "replace")

    def ended(self) -> bool:
        """Whether it has booted anew, which ends it here."""
        return self._process.poll() is not None

    def stop(self) -> None:
        """Cut its power."""
        self._process.kill()
        self._process.wait()


class Lab:
    """Starts one machine at a time, with the live image or from its disk."""

    def __init__(self, folder: Path, images: Path, web: Web, console: Path) -> None:
        self.folder = folder
        self.console = console
        self.images = images
        self.web = web
        self.disk = folder / "disk.img"
        shutil.copy(images / "preseed.img", self.disk)
        self.machine: Machine | None = None
        self._faults: Path | None = None

    def lose_writes(self, sector: int) -> None:
        """From the next boot on, what is written to this sector of the disk fails."""
        self._faults = self.folder / "faults"
        rule = f'event = "write_aio"\niotype = "write"\nerrno = "5"\nsector = "{sector}"\n'
        self._faults.write_text(f"[inject-error]\n{rule}")

    def boot_live(self, stage: str, *arguments: str, forward: str = "") -> Machine:
        """Boot the live image with a second stage."""
        append = ["console=ttyS0,115200", "quiet", "mitigations=off", "panic=5", "mozpool-disk=/dev/vda"]
        append += ["mozpool-device=virtual-1", f"mobile-imaging-url={self.web.url}/board/{stage}-second-stage.sh"]
        return self._boot(
            f"the live image, {stage}",
            *("-kernel", str(self.images / "vmlinuz"), "-initrd", str(self.images / "initrd.img")),
            *("-append", " ".join([*append, *arguments])),
            forward=forward,
        )

    def boot_disk(self) -> Machine:
        """Boot what is on the disk."""
        return self._boot("its disk")

    def _boot(self, title: str, *boot: str, forward: str = "") -> Machine:
        self.stop()
        disk = self.disk if self._faults is None else f"blkdebug:{self._faults}:{self.disk}"
        self.machine = Machine(self.console, title, disk, *boot, forward=forward)
        return self.machine

    def stop(self) -> None:
        """Cut the machine's power, if it runs."""
        if self.machine is not None:
            self.machine.stop()

    def events(self, *names: str) -> None:
        """Wait for exactly these events, in this order."""
        assert self.machine is not None
        for name in names:
            self.machine.wait(f"the event {name}", lambda: not self.web.events.empty())
            assert self.web.events.get() == name, self.machine.text()[-3000:]


def run(*command: str | Path) -> None:
    """Run a program that must succeed."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A person's SSH key; beside it, the public one."""
    path = tmp_path_factory.mktemp("key") / "id"
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path)
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory, key: Path) -> Path:
    """A folder with live image, preseed, and the small system that gets installed."""
    folder = tmp_path_factory.mktemp("images")
    run(sys.executable, SCRIPTS / "build-live-image", "--output", folder, "--keys", key.with_suffix(".pub"))
    run(sys.executable, SCRIPTS / "build-preseed", SCRIPTS / "board/hardware/virtual.json", folder / "preseed.img")
    return folder


@pytest.fixture
def lab(tmp_path: Path, images: Path, logs: Path) -> Iterator[Lab]:
    """The lab with an untouched disk; ends machine and server."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "board").symlink_to(SCRIPTS / "board")
    web = Web(site)
    thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    lab = Lab(tmp_path, images, web, logs / "console.log")
    yield lab
    lab.stop()
    web.shutdown()
    thread.join()
    web.server_close()


def initrd() -> bytes:
    """A RAM disk that says a line on the console, and where it was installed what is on partitions 2 and 3."""
    busybox = Path(shutil.which("busybox") or "").resolve().read_bytes()
    script = f"#!/bin/busybox sh\n/bin/busybox echo {SAYS} >/dev/console\nwhile :; do /bin/busybox sleep 60; done\n"

    def entry(name: str, mode: int, content: bytes) -> bytes:
        numbers = (0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
        header = b"070701" + b"".join(b"%08X" % number for number in numbers) + name.encode() + b"\0"
        return header + bytes(-len(header) % 4) + content + bytes(-len(content) % 4)

    return gzip.compress(
        entry("bin", 0o40755, b"")
        + entry("bin/busybox", 0o100755, busybox)
        + entry("dev", 0o40755, b"")
        + entry("init", 0o100755, script.encode())
        + entry("TRAILER!!!", 0, b"")
    )


def tarball(files: dict[str, bytes]) -> bytes:
    """A .tar.gz of these files."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def payload(images: Path) -> dict[str, bytes]:
    """What goes on the boot partition of a disk that boots by itself."""
    return {"vmlinuz": (images / "vmlinuz").read_bytes(), "initrd.img": initrd()}


def test_raw_writes_a_disk_that_boots(lab):
    image = lab.folder / "raw.img"
    shutil.copy(lab.images / "preseed.img", image)
    for name, content in payload(lab.images).items():
        (lab.folder / name).write_bytes(content)
        run("mcopy", "-i", f"{image}@@1M", lab.folder / name, f"::{name}")
    packed = gzip.compress(image.read_bytes(), 1)
    (lab.web.folder / "raw.img.gz").write_bytes(packed)
    lab.disk.write_bytes(b"")
    os.truncate(lab.disk, 64 << 20)
    lab.web.boot_config = {
        "image_url": f"{lab.web.url}/raw.img.gz",
        "sha256": hashlib.sha256(packed).hexdigest(),
        "size": 64 << 20,
    }
    machine = lab.boot_live("raw")
    lab.events("mobile_init_started", "raw_downloading", "raw_writing", "raw_rebooting")
    machine.wait("the reboot", machine.ended)
    assert lab.disk.read_bytes() == image.read_bytes()
    machine = lab.boot_disk()
    machine.wait("the line of the installed system", lambda: SAYS in machine.text())


def offer_b2g(lab: Lab, parts: dict[str, dict[str, bytes]]) -> None:
    """Serve these files as the three tarballs of a build, and have the board install it."""
    base = lab.web.folder / "b2g"
    base.mkdir()
    sums = ""
    for part, files in parts.items():
        content = tarball(files)
        (base / f"{part}.tar.gz").write_bytes(content)
        sums += f"{hashlib.sha256(content).hexdigest()}  {part}.tar.gz\n"
    (base / "SHA256SUMS").write_text(sums)
    lab.web.boot_config = {"b2gbase": f"{lab.web.url}/b2g/"}


def test_b2g_fills_partitions_and_the_disk_boots_what_it_brought(lab):
    system = {"bin/agent": b"#!/bin/sh\n"}
    offer_b2g(lab, {"boot": payload(lab.images), "system": system, "userdata": {"local/file": b"of the user"}})
    machine = lab.boot_live("b2g")
    lab.events("mobile_init_started", "b2g_downloading", "b2g_extracting", "b2g_rebooting")
    machine.wait("the reboot", machine.ended)
    for number, path, content in ((2, "bin/agent", b"#!/bin/sh\n"), (3, "local/file", b"of the user")):
        start = {2: 33, 3: 49}[number] << 20
        part = lab.folder / "part"
        part.write_bytes(lab.disk.read_bytes()[start : start + ({2: 16, 3: 15}[number] << 20)])
        done = subprocess.run(["/sbin/debugfs", "-R", f"cat {path}", part], capture_output=True, check=True)
        assert done.stdout == content
    machine = lab.boot_disk()
    machine.wait("the line of the installed system", lambda: SAYS in machine.text())


def test_b2g_finds_a_disk_that_does_not_keep_what_is_written(lab):
    # The file takes most of the second partition, which begins at 33 MiB. Neither sync nor umount tell of the sector.
    # The journal is in the middle: without that there would be no file system.
    system = {"big": random.Random(1).randbytes(12 << 20)}
    offer_b2g(lab, {"boot": {"vmlinuz": b"kernel"}, "system": system, "userdata": {"local/file": b"of the user"}})
    lab.lose_writes((33 + 5) * 2048)
    machine = lab.boot_live("b2g")
    lab.events("mobile_init_started", "b2g_downloading", "b2g_extracting")
    what = "/dev/vda2 does not hold what was unpacked: ./big: FAILED"
    machine.wait("the comparison", lambda: what in machine.text() or not lab.web.events.empty())
    assert lab.web.events.empty(), machine.text()[-3000:]


def _self_test(lab: Lab, syslog_port: int, loader: str) -> None:
    description = {
        "hardware": "virtual",
        "selftest": [
            {
                "name": "disk",
                "kind": "block_device",
                "device": "vda",
                "bytes": 64 << 20,
                "priority": 1,
                "verbose": True,
            },
            {"name": "part 3", "kind": "block_device", "device": "vda3", "bytes": 15 << 20, "priority": 1},
            {"name": "loader", "kind": "boot_file", "file": "ldlinux.sys", "sha256": loader, "priority": 2},
        ],
    }
    file = lab.web.folder / "x.json"
    file.write_text(json.dumps(description))
    run(sys.executable, SCRIPTS / "board/selftest-lines", file)
    config = f"selftest-config={lab.web.url}/x.json"
    lab.boot_live("self-test", config, f"syslog-server=10.0.2.2:{syslog_port}")


def test_self_test_tells_by_syslog_and_event_how_it_went(lab):
    run("mcopy", "-i", f"{lab.disk}@@1M", "::ldlinux.sys", lab.folder / "loader")
    loader = hashlib.sha256((lab.folder / "loader").read_bytes()).hexdigest()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as syslog:
        syslog.bind(("127.0.0.1", 0))
        syslog.settimeout(30)
        _self_test(lab, syslog.getsockname()[1], loader)
        lab.events("mobile_init_started", "self_test_running", "self_test_ok")
        lines: list[bytes] = []
        while not lines or b"result" not in lines[-1]:
            lines.append(syslog.recv(2000))
        text = [line.rstrip(b"\n")[len("<134>Nov 24 03:36:04 ") :].decode() for line in lines]
        assert all(line.startswith(b"<134>") for line in lines)
        assert "virtual-1 selftest.sh[INFO]: ok: disk (67108864 bytes)" in text
        assert "virtual-1 selftest.sh[INFO]: ok: loader" in text
        assert any(line.startswith("virtual-1 mobile-init.sh: ") for line in text)

        _self_test(lab, syslog.getsockname()[1], "0" * 64)
        lab.events("mobile_init_started", "self_test_running", "failed_self_test")


def test_maintenance_lets_the_owner_of_a_key_log_in(lab, key):
    port = free_port()
    lab.boot_live("maintenance", forward=f",hostfwd=tcp:127.0.0.1:{port}-:22")
    lab.events("mobile_init_started", "maint_mode")
    ssh = ["ssh", "-F", "/dev/null", "-p", str(port), "-i", str(key), "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes"]
    ssh += ["-o", "StrictHostKeyChecking=no", "-o", f"UserKnownHostsFile={lab.folder}/hosts", "root@127.0.0.1"]
    done = subprocess.run(
        [*ssh, "hostname; cat /run/mozpool/device"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout == "virtual-1\nvirtual-1\n", done.stderr
    refused = [part if part != str(key) else "/dev/null" for part in ssh]
    done = subprocess.run([*refused, "hostname"], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 255
    assert "Permission denied (publickey)" in done.stderr
