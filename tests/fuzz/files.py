# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What operators write, and what may have come from anywhere before: config.ini and the projects of phones."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from mozpool import config
from mozpool.bmm import projects
from tests.fuzz.engine import Target, fuzzer

TOP = Path(__file__).parents[2]


@fuzzer(
    seeds=[
        config.sample().encode(),
        b"[server]\nfqdn = a.example.com\nport = 80\n[bmm]\nredfish_password = p%s\n[timeouts]\nready = 5\n",
        b"[email]\nhost = m\n[notify ops]\nevents = device_failed\nemail = a@b.c\n[commands]\nx.on = a\nx.off = 'c'\n",
        b"[inventory]\nsource = netbox\nurl = https://x\ntoken = y\n",
    ],
    raises=(config.ConfigError,),
)
def config_file() -> Iterator[Target]:
    """config.ini."""
    with tempfile.NamedTemporaryFile(suffix=".ini") as file:

        def one(data: bytes) -> None:
            Path(file.name).write_bytes(data)
            settings = config.load(file.name, {})
            config.check_state_names(settings, ["ready"])

        yield one


@fuzzer(
    seeds=[
        (TOP / "lambdatest.yml.dist").read_bytes(),
        b"projects: {defaults: {TASKCLUSTER_CLIENT_ID: a}, x: {TC_WORKER_TYPE: t-x, USER_SCRIPTS_VERSION: 1.0}}\n"
        b"device_groups: {x: {A1: note, A2: }, y: [A1, A2], z: A1 A2}\nglobal: {contract_device_count: 5}\n",
    ],
    raises=(projects.ProjectsError,),
    seconds=10.0,  # PyYAML looks at all that is open for each bracket
)
def projects_file() -> Iterator[Target]:
    """The projects of phones, and their devices."""
    with tempfile.NamedTemporaryFile(suffix=".yml") as file:

        def one(data: bytes) -> None:
            Path(file.name).write_bytes(data)
            found = projects.load(Path(file.name), {})
            for line in (*found.told(), *found.refusals()):
                assert "\n" not in line, line
            for project in found.taking_part:
                assert all(found.projects_of(udid) for udid in project.devices)

        yield one
