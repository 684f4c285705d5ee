# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What all peers have in common."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.bench.figures import Figure
from tests.bench.scale import Scale


class NoPeer(Exception):
    """A peer can't be measured here; the message says why."""


@dataclass(frozen=True)
class Peer:
    """A program that is measured beside Mozpool."""

    name: str
    texts: Mapping[str, str]
    """Letter of a case → what an operation includes."""
    run: Callable[[Scale, str], Iterator[Figure]]
    """Measures what belongs to a case. Raises NoPeer."""


def environment(name: str, *requirements: str) -> Path:
    """The directory of the programs of a virtual environment with these packages, made if need be. Raises NoPeer."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    directory = cache / "mozpool-bench" / name
    stamp, wanted = directory / "installed", "\n".join(requirements)
    if not stamp.exists() or stamp.read_text() != wanted:
        python = directory / "bin" / "python"
        for command in (
            [sys.executable, "-m", "venv", "--clear", str(directory)],
            [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements],
        ):
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise NoPeer(f"{' '.join(command)} failed: {done.stderr[-500:]}")
        stamp.write_text(wanted)
    return directory / "bin"


def until_listens(port: int, process: subprocess.Popen[bytes], log: Path, seconds: float = 120.0) -> None:
    """Wait until a process takes connections on a port of 127.0.0.1. Raises NoPeer."""
    give_up = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > give_up:
                raise NoPeer(f"it did not start: {log.read_text(errors='replace')[-1000:]}") from None
            time.sleep(0.05)
