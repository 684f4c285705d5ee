# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What is installed on the lab's boards: a disk image, and builds of three tarballs, all small and all real.

Each brings kernel and boot loader configuration (first partition), a system with an agent (second partition) and
user data (third partition). Kernel, modules and busybox are those of the live image; only the first process differs.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mozpool import resources

AGENT = Path(__file__).with_name("agent")
SCRIPTS = resources.path("scripts")

PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
"""Where programs are found; people other than root lack the last two."""

SYSLINUX = """\
DEFAULT lab
PROMPT 0
LABEL lab
 LINUX vmlinuz
 INITRD initrd.img
 APPEND console=ttyS0,115200 quiet mitigations=off nokaslr panic=5
"""

MARKER = "marker"
"""A file in the user data that says which build it came with."""


def build_live_image(directory: Path, keys: Path | None = None) -> None:
    """Make ``vmlinuz`` and ``initrd.img``, whose SSH server lets the owners of ``keys`` in. Raises GuestError."""
    more = [] if keys is None else ["--keys", str(keys)]
    _run(str(SCRIPTS / "build-live-image"), "--output", str(directory), *more, limit=600)


VIRTUAL = SCRIPTS / "board" / "hardware" / "virtual.json"
"""The description of the boards' hardware."""

RAW_SIZES = {"boot": 20, "system": 2, "userdata": 4}
"""MiB of the raw image's partitions. It is smaller than the boards' disks: emulated boards take long to write it."""


def build_preseed(image: Path, hardware: Path = VIRTUAL) -> None:
    """Make the disk that a board has before anything was installed on it. Raises GuestError."""
    _run(str(SCRIPTS / "build-preseed"), str(hardware), str(image))


class GuestError(Exception):
    """Something could not be built; ``str()`` says what and why."""


@dataclass(frozen=True)
class RawImage:
    """A compressed disk image."""

    path: Path
    sha256: str
    """Of the file as it is."""


class Builder:
    """Builds what is installed, from a live image."""

    def __init__(self, live: Path) -> None:
        """``live`` has ``vmlinuz`` and ``initrd.img``."""
        self._kernel = live / "vmlinuz"
        # The kernel unpacks one archive after the other: the second one's first process replaces the live image's.
        first_process = gzip.compress(cpio({"init": ((AGENT / "init").read_bytes(), 0o755)}), mtime=0)
        self._initrd = (live / "initrd.img").read_bytes() + first_process

    def tarballs(self, directory: Path, version: str) -> None:
        """Write ``boot.tar.gz``, ``system.tar.gz``, ``userdata.tar.gz`` and their ``SHA256SUMS``."""
        directory.mkdir(parents=True)
        sums = []
        for name, files in self._partitions(version).items():
            path = directory / f"{name}.tar.gz"
            with tarfile.open(path, "w:gz", compresslevel=1) as archive:
                for file, (content, mode) in files.items():
                    entry = tarfile.TarInfo(file)
                    entry.size, entry.mode = len(content), mode
                    archive.addfile(entry, io.BytesIO(content))
            sums.append(f"{_sha256(path)}  {path.name}\n")
        (directory / "SHA256SUMS").write_text("".join(sums))

    def raw(self, path: Path, version: str) -> RawImage:
        """Write the disk image ``path``, ``.img.gz``: a small disk with boot loader and all partitions.

        Raises GuestError.
        """
        disk = path.with_suffix("")
        description = json.loads(VIRTUAL.read_text())
        for partition in description["preseed"]["partitions"]:
            partition["size_mib"] = RAW_SIZES[partition["name"]]
        description["preseed"]["size_mib"] = 1 + sum(RAW_SIZES.values())
        hardware = path.with_suffix(".json")
        hardware.write_text(json.dumps(description))
        build_preseed(disk, hardware)
        hardware.unlink()
        offsets = _partition_offsets(disk)
        for number, (name, files) in enumerate(self._partitions(version).items()):
            content = path.parent / f"{path.stem}-{name}"
            for file, (data, mode) in files.items():
                target = content / file
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(data)
                target.chmod(mode)
            start, size = offsets[number]
            if name == "boot":
                _run("mcopy", "-o", "-i", f"{disk}@@{start}", *map(str, content.iterdir()), "::/")
            else:
                ext4 = ("mke2fs", "-q", "-F", "-t", "ext4", "-d", str(content), "-E", f"offset={start}")
                _run(*ext4, str(disk), f"{size // 1024}k")
            shutil.rmtree(content)
        with disk.open("rb") as plain, gzip.GzipFile(path, "wb", compresslevel=1, mtime=0) as packed:
            shutil.copyfileobj(plain, packed)
        disk.unlink()
        return RawImage(path, _sha256(path))

    def _partitions(self, version: str) -> Mapping[str, Mapping[str, tuple[bytes, int]]]:
        """What is on each partition: path → content and mode."""
        return {
            "boot": {
                "vmlinuz": (self._kernel.read_bytes(), 0o644),
                "initrd.img": (self._initrd, 0o644),
                "syslinux.cfg": (SYSLINUX.encode(), 0o644),
            },
            "system": {
                "version": (f"{version}\n".encode(), 0o644),
                **{name: ((AGENT / name).read_bytes(), 0o755) for name in ("start", "sutagent")},
            },
            "userdata": {MARKER: (f"{version}\n".encode(), 0o644)},
        }


def cpio(files: Mapping[str, tuple[bytes, int]]) -> bytes:
    """An archive as the kernel unpacks it into its first root file system: path → content and mode."""
    parts = []
    entries: Iterable[tuple[str, bytes, int]] = [
        *((name, content, 0o100000 | mode) for name, (content, mode) in files.items()),
        ("TRAILER!!!", b"", 0),
    ]
    for number, (name, content, mode) in enumerate(entries, start=1):
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
        header = b"070701" + "".join(f"{field:08x}" for field in fields).encode() + name.encode() + b"\0"
        for part in (header, content):
            parts += [part, b"\0" * (-len(part) % 4)]
    return b"".join(parts)


def _partition_offsets(disk: Path) -> list[tuple[int, int]]:
    """Start and size of each partition, in bytes."""
    table = json.loads(_run("sfdisk", "--json", str(disk)))["partitiontable"]
    sector = table.get("sectorsize", 512)
    return [(part["start"] * sector, part["size"] * sector) for part in table["partitions"]]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _run(*command: str, limit: float = 120.0) -> str:
    """Run a program and return what it printed. Raises GuestError."""
    try:
        done = subprocess.run(
            ["nice", "-n", "10", *command],
            env={**os.environ, "PATH": PATH},
            capture_output=True,
            text=True,
            timeout=limit,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise GuestError(f"{command[0]}: {error}") from error
    if done.returncode:
        raise GuestError(f"{' '.join(command)} ended with status {done.returncode}: {done.stderr.strip()[-2000:]}")
    return done.stdout
