# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The tour of ``scripts/demo``."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys

import pytest
from click.testing import CliRunner

from mozpool import resources
from mozpool.cli.demo import main
from tests.processes import default_signals
from tests.unit.client_support import closed_port


def test_a_port_that_is_taken_is_told():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        result = CliRunner().invoke(main, [str(port), "--once"])
    assert result.exit_code == 1
    reason = f"can't listen on 127.0.0.1:{port}: Address already in use"
    assert result.output == f"Error: {reason}. Name another port: scripts/demo PORT\n"


@pytest.mark.slow
def test_it_lends_a_device_and_stays_up_until_ctrl_c(tmp_path):
    port = closed_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "mozpool.cli.demo", str(port)],
        preexec_fn=default_signals,
        cwd=resources.CHECKOUT,
        env={**os.environ, "TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    try:
        said = ""
        for line in process.stdout:
            said += line
            if "until you press Ctrl-C" in line:
                break
        socket.create_connection(("127.0.0.1", port), timeout=10).close()
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=60)
    finally:
        # It ends its server, too, unless it is past hearing.
        process.terminate()
        process.wait(30)
        process.stdout.close()
    assert process.returncode == 0, said + rest
    assert f"http://127.0.0.1:{port}/" in said
    # Which states are seen depends on how soon a board is free; some are, each with its seconds.
    assert re.search(
        r"^  (finding_device|contact_lifeguard|contacting_lifeguard|pending) +<?\d+(\.\d)? +s$", said, re.M
    ), said
    for shown in ("request 1:", "pending", "is ready, until", "HELD BY", "you@example.com", "closed"):
        assert shown in said
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=10)


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_it_serves_queues_with_phones_and_ends_when_a_job_was_done(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mozpool.cli.demo", str(closed_port()), "--lambdatest", "--once"],
        cwd=resources.CHECKOUT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^pixel +yes +\d+ +\d+ +\d+ +.*job_running", done.stdout, re.M), done.stdout
    number, _, last = done.stdout.rpartition("--job ")[2].partition("\n")
    found = rf"^\d+ +closed +(R5CX\d+) +\1 +taskcluster-job +taskcluster/gecko-t-lambda-.* {number}$"
    assert re.search(found, last, re.M), last
    assert re.search(rf"^job: +{number}$", last, re.M), last
    assert re.search(r"^task page: +http://127\.0\.0\.1:\d+/tasks/\S+/runs/0$", last, re.M), last
    assert list(tmp_path.iterdir()) == []
