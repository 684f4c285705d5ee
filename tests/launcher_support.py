# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""An imaging server that launches jobs in the fake cloud, for tests; whether its threads run is for the test to say."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

from mozpool.clock import Clock
from mozpool.config import Settings
from mozpool.daemon import Daemon
from mozpool.db import launches
from mozpool.fakes.cloud import FakeCloud
from mozpool.fakes.hyperexecute import write_hyperexecute
from mozpool.launcher.service import LaunchLoop

OWN = "launcher-1.example.com"


def settings_for(cloud: FakeCloud, database_url: str, directory: Path, fqdn: str = OWN, **changes: Any) -> Settings:
    """The settings of a server that uses the cloud; ``changes`` are keys of [lambdatest]."""
    projects = directory / "lambdatest.yml"
    if not projects.exists():
        projects.write_text(cloud.projects_yaml())
    program = write_hyperexecute(directory / "hyperexecute", cloud.lambdatest.url)
    own: dict[str, Any] = {**cloud.settings(program, projects), "enabled": True, "projects": projects, **changes}
    settings = Settings()
    return replace(
        settings,
        database=replace(settings.database, engine=database_url),
        server=replace(settings.server, fqdn=fqdn, port=8080),
        testing=replace(settings.testing, speed=cloud.timeline.speed),
        lambdatest=replace(settings.lambdatest, **own),
    )


@contextmanager
def launching(
    cloud: FakeCloud, database_url: str, directory: Path, *, start: bool, fqdn: str = OWN, **changes: Any
) -> Iterator[Daemon]:
    """A daemon that launches; ``start`` its threads, or nothing happens by itself."""
    with mock.patch.dict(os.environ, cloud.environment()):
        dry = changes.pop("dry", False)
        daemon = Daemon(settings_for(cloud, database_url, directory, fqdn, **changes), rng=random.Random(fqdn), dry=dry)
        try:
            if start:
                daemon.start()
            yield daemon
        finally:
            daemon.stop()


def loop_of(daemon: Daemon) -> LaunchLoop:
    assert daemon.launcher is not None
    return daemon.launcher


def phones(daemon: Daemon) -> dict[str, launches.Phone]:
    with daemon.database.read() as conn:
        return launches.phones(conn)


def asked(daemon: Daemon) -> list[launches.Asked]:
    with daemon.database.read() as conn:
        return launches.asked(conn)


def wait_until(true: Callable[[], Any], seconds: float = 30.0) -> Any:
    """The value of ``true`` as soon as it is one."""
    clock = Clock()
    end = clock.monotonic() + seconds
    while clock.monotonic() < end:
        value = true()
        if value:
            return value
        clock.sleep(0.02)
    raise AssertionError("it did not happen in time")
