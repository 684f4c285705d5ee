# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""``mozpool-server`` as a user starts and stops it."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests
from sqlalchemy import text

from mozpool import __version__
from mozpool.db import devices, logs, schema
from mozpool.db.tables import device_logs
from tests.conftest import open_database
from tests.integration.mozpool_site import eventually, free_ports

pytestmark = pytest.mark.timeout(120)


def start(config: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "mozpool.cli.server", *arguments],
        env={**os.environ, "MOZPOOL_CONFIG": str(config)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd="/",
    )


def ends_with(process: subprocess.Popen[str]) -> tuple[int, str]:
    said, _ = process.communicate(timeout=60)
    return process.returncode, said


def wait_until_it_answers(url: str) -> None:
    give_up = time.monotonic() + 30
    while True:
        try:
            requests.get(f"{url}/api/version/", timeout=5)
            return
        except requests.ConnectionError:
            assert time.monotonic() < give_up
            time.sleep(0.05)


def stamp(url: str, revision: str) -> None:
    """Let a database be of another revision."""
    database = open_database(url)
    database.run(lambda conn: conn.execute(text("UPDATE alembic_version SET version_num = :it"), {"it": revision}))
    database.dispose()


def test_it_runs_beside_a_newer_version_whose_tables_allow_it(sqlite_url: str, tmp_path: Path) -> None:
    """Servers are upgraded one after the other: the tables come first."""
    port = free_ports(1)
    config = tmp_path / "config.ini"
    config.write_text(f"[database]\nengine = {sqlite_url}\n[server]\nfqdn = 127.0.0.1:{port}\nport = {port}\n")
    stamp(sqlite_url, f"9999_{schema.head()}")
    process = start(config)
    try:
        wait_until_it_answers(f"http://127.0.0.1:{port}")
        process.send_signal(signal.SIGTERM)
        code, said = ends_with(process)
        assert code == 0, said
        assert f"is of a newer Mozpool (revision 9999_{schema.head()}), beside which this one may run" in said
    finally:
        process.kill()
        process.wait()
    for revision in ("9999", "9999_9998", "9999_"):
        stamp(sqlite_url, revision)
        code, said = ends_with(start(config))
        assert code == 1
        assert f"is at revision {revision}" in said


def test_it_makes_its_sqlite_pool_serves_logs_to_syslog_and_stops_in_good_order(tmp_path: Path) -> None:
    port = free_ports(1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as syslog:
        syslog.bind(("127.0.0.1", 0))
        syslog.settimeout(30)
        config = tmp_path / "config.ini"
        config.write_text(
            f"[database]\nengine = sqlite:///{tmp_path}/new/pool.sqlite\n"
            f"[server]\nfqdn = 127.0.0.1:{port}\nsyslog = 127.0.0.1:{syslog.getsockname()[1]}\n"
            f"heartbeat_file = {tmp_path}/heartbeat\n"
        )
        process = start(config, str(port))
        try:
            url = f"http://127.0.0.1:{port}"
            wait_until_it_answers(url)
            assert requests.get(f"{url}/api/version/", timeout=5).json()["version"] == __version__
            lines = [syslog.recv(4096).decode() for _ in range(2)]
            assert any(f"mozpool {__version__} on 127.0.0.1:{port} starts" in line for line in lines), lines
            give_up = time.monotonic() + 20
            while not (tmp_path / "heartbeat").exists():
                assert time.monotonic() < give_up
                time.sleep(0.05)
            begun = time.monotonic()
            process.send_signal(signal.SIGTERM)
            code, said = ends_with(process)
            assert code == 0, said
            assert time.monotonic() - begun < 10
            assert "Traceback" not in said
        finally:
            if process.poll() is None:
                process.kill()
                process.communicate()


def test_it_takes_what_boards_log_and_keeps_what_came_last(tmp_path: Path, sqlite_url: str) -> None:
    port = free_ports(2)
    config = tmp_path / "config.ini"
    config.write_text(
        f"[database]\nengine = {sqlite_url}\n[server]\nfqdn = 127.0.0.1:{port}\n"
        f"[syslog]\nlisten = 127.0.0.1:{port + 1}\n"
    )
    process = start(config, str(port))
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_it_answers(url)
        database = open_database(sqlite_url)
        row = {"name": "panda-1", "fqdn": "panda-1", "inventory_id": 0, "mac_address": "020000000001"}
        database.run(
            lambda conn: devices.insert_device(conn, random.Random(1), imaging_server_id=1, state="locked_out", **row)
        )
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as board:
            board.connect(("127.0.0.1", port + 1))
            board.send(b"<134>panda-1 selftest.py[INFO]: all is well\0")

            def said_so() -> bool:
                log = requests.get(f"{url}/api/device/panda-1/log/", timeout=5).json()["log"]
                return any((line["source"], line["message"]) == ("selftest.py[INFO]", "all is well") for line in log)

            assert eventually(said_so)
            for number in range(50):
                board.send(b"<134>panda-1 x: last words %d" % number)
        process.send_signal(signal.SIGTERM)
        code, said = ends_with(process)
        assert code == 0, said
        with database.read() as conn:
            messages = [line.message for line in logs.latest(conn, device_logs, 1, limit=None)]
        assert {f"last words {number}" for number in range(50)} <= set(messages)
        database.dispose()
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def test_a_port_that_is_taken_is_one_clear_sentence(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        config = tmp_path / "config.ini"
        config.write_text(f"[database]\nengine = sqlite:///{tmp_path}/pool.sqlite\n[server]\nport = {port}\n")
        code, said = ends_with(start(config))
    assert code == 1
    assert f"cannot listen on 127.0.0.1:{port}" in said
    assert "Traceback" not in said


def test_a_mistake_in_the_configuration_stops_the_start_and_is_named(tmp_path: Path) -> None:
    config = tmp_path / "config.ini"
    config.write_text("[server]\nport = many\ncolour = blue\n[timeouts]\nno_such_state = 3\n")
    code, said = ends_with(start(config))
    assert code != 0
    assert f"{config}" in said and "port" in said and "'many'" in said and "colour" in said
    assert "Traceback" not in said


def test_a_state_that_does_not_exist_stops_the_start_and_is_named(tmp_path: Path) -> None:
    config = tmp_path / "config.ini"
    config.write_text(f"[database]\nengine = sqlite:///{tmp_path}/pool.sqlite\n[timeouts]\nno_such_state = 3\n")
    code, said = ends_with(start(config, str(free_ports(1))))
    assert code != 0
    assert "no_such_state" in said
    assert "Traceback" not in said


def test_a_database_of_an_older_version_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "pool.sqlite"
    path.write_bytes(b"")
    config = tmp_path / "config.ini"
    config.write_text(f"[database]\nengine = sqlite:///{path}\n")
    code, said = ends_with(start(config, str(free_ports(1))))
    assert code == 1
    assert "mozpool-db" in said
    assert "Traceback" not in said
