# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""A real rsyslogd of one's own, with the configuration that Mozpool ships."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mozpool import resources
from tests.mariadb import MariaDB, find_program
from tests.processes import end

PLUGINS = ("/usr/lib/x86_64-linux-gnu/rsyslog", "/usr/lib/aarch64-linux-gnu/rsyslog", "/usr/lib/rsyslog")
READY_WITHIN = 30.0
ACCOUNT = "mozpool_log", "a-secret"


def missing() -> str | None:
    """Why none can be started here, or None when one can."""
    if find_program("rsyslogd") is None:
        return "rsyslogd is not installed (Debian package rsyslog)"
    if not any(Path(folder, "ommysql.so").exists() for folder in PLUGINS):
        return "rsyslog's ommysql is not installed (Debian package rsyslog-mysql)"
    return None


def let_in(server: MariaDB, database: str) -> None:
    """Give rsyslog its account, with the right that docs/production.md names."""
    user, password = ACCOUNT
    server.execute("CREATE USER %s@localhost IDENTIFIED BY %s", user, password)
    server.execute(f"GRANT EXECUTE ON PROCEDURE {database}.insert_device_log_entry TO %s@localhost", user)


def configuration(server: MariaDB, database: str, port: int) -> str:
    """The project's file with what is different here."""
    text = resources.path("scripts", "rsyslog", "mozpool.conf").read_text()
    for shipped, here in (
        ('server="localhost" db="mozpool"', f'server="localhost" socket="{server.socket}" db="{database}"'),
        ('pwd="LOG-PASSWORD"', f'pwd="{ACCOUNT[1]}"'),
        ('port="514"', f'address="127.0.0.1" port="{port}"'),
    ):
        assert text.count(shipped) == 1, shipped
        text = text.replace(shipped, here)
    return text


@contextmanager
def running(server: MariaDB, database: str, directory: Path, zone: str = "UTC0") -> Iterator[int]:
    """An rsyslogd that writes to this database; answers its UDP port. ``zone`` is the machine's, as in $TZ."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    file = directory / "rsyslog.conf"
    file.write_text(f'global(workDirectory="{directory}")\n' + configuration(server, database, port))
    file.chmod(0o600)
    program = str(find_program("rsyslogd"))
    checked = subprocess.run([program, "-N1", "-f", str(file)], capture_output=True, text=True, timeout=READY_WITHIN)
    assert checked.returncode == 0, checked.stderr
    assert "error" not in checked.stderr, checked.stderr
    environment = {**os.environ, "TZ": zone}
    process = subprocess.Popen([program, "-n", "-i", str(directory / "pid"), "-f", str(file)], env=environment)
    try:
        give_up = time.monotonic() + READY_WITHIN
        while f":{port:04X} " not in Path("/proc/net/udp").read_text():
            assert process.poll() is None, "rsyslogd has ended"
            assert time.monotonic() < give_up, "rsyslogd does not listen"
            time.sleep(0.02)
        yield port
        assert process.poll() is None, "rsyslogd has ended"
    finally:
        end(process)
