# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What a run of the benchmarks ran on: machine, programs, disk."""

from __future__ import annotations

import os
import platform
import sqlite3
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from mozpool import __version__
from tests.mariadb import find_program

FLUSHES = 200


def facts() -> dict[str, str]:
    """Name → value of each fact, in words."""
    return {
        "processor": f"{_field('/proc/cpuinfo', 'model name')}, {len(os.sched_getaffinity(0))} cores",
        "memory": f"{int(_field('/proc/meminfo', 'MemTotal').split()[0]) / 1024**2:.1f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        "MariaDB": _mariadb(),
        "SQLite": sqlite3.sqlite_version,
        "fdatasync": fdatasync(),
        "load average before": f"{os.getloadavg()[0]:.2f}",
        "Mozpool": f"{__version__}, commit {_commit()}",
    }


def fdatasync() -> str:
    """How long it takes until 4 KiB are on the disk, where the databases lie."""
    times = []
    with tempfile.TemporaryFile() as file:
        for _ in range(FLUSHES):
            file.write(os.urandom(4096))
            file.flush()
            begun = time.perf_counter()
            os.fdatasync(file.fileno())
            times.append((time.perf_counter() - begun) * 1000)
    times.sort()
    kind = _filesystem(Path(tempfile.gettempdir()))
    return f"{statistics.median(times):.2f} ms median, {times[int(FLUSHES * 0.99)]:.2f} ms p99 ({kind})"


def _filesystem(path: Path) -> str:
    """The kind of filesystem that a path is on; in memory, durable commits would cost nothing."""
    found = ("/", "unknown")
    for line in Path("/proc/mounts").read_text().splitlines():
        _, place, kind, *_ = line.split()
        if path.resolve().is_relative_to(place) and len(place) >= len(found[0]):
            found = (place, kind)
    return found[1]


def _field(file: str, name: str) -> str:
    for line in Path(file).read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return "unknown"


def _mariadb() -> str:
    program = find_program("mariadbd")
    if program is None:
        return "none"
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    return said.partition("Ver ")[2].split()[0]


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude", "*"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"
