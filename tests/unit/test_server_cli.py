# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The command ``mozpool-server``: what it says before it serves."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mozpool.cli.server import configure_logging, main
from mozpool.config import SYSTEM_FILE, Settings


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments, prog_name="mozpool-server")


def test_help_names_all_places_of_the_configuration() -> None:
    shown = " ".join(run("--help").stdout.split())
    for place in ("--config", "$MOZPOOL_CONFIG", "./config.ini", "config.ini in the checkout", str(SYSTEM_FILE)):
        assert place in shown


@pytest.mark.parametrize("word", ["/tmp/x", "0", "65536", "8080x", "٣"])
def test_what_is_no_port_is_told_with_the_way_to_name_a_file(word: str) -> None:
    result = run(word)
    assert result.exit_code == 2
    assert f"{word!r} is not a port, 1 to 65535; a configuration file is named by --config FILE" in result.stderr


@pytest.mark.parametrize(
    ("key", "exist"),
    [
        ("power", "command, pdudaemon, proxr, redfish"),
        ("boot", "pxe"),
        ("probe", "adb, echo, fping"),
        ("agent", "adb, sut"),
    ],
)
def test_a_backend_that_does_not_exist_stops_the_start(tmp_path: Path, key: str, exist: str) -> None:
    file = tmp_path / "mozpool.ini"
    file.write_text(
        f"[database]\nengine = sqlite:///{tmp_path}/x.sqlite\n[server]\nfqdn = 127.0.0.1\n[bmm]\n{key} = nosuch\n"
    )
    result = run("--config", str(file))
    assert result.exit_code == 1
    assert f"{file}:6: [bmm] {key}: there is no {key} backend 'nosuch'; there are: " in result.stderr
    assert exist in result.stderr


def test_migrations_are_silent_while_a_server_starts() -> None:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        configure_logging(Settings())
        assert not logging.getLogger("alembic.runtime.migration").isEnabledFor(logging.INFO)
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
