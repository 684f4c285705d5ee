# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Imaging servers that know who calls them, in this process: real daemons, and real HTTP between them."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import requests
from apiflask import APIFlask
from waitress import wasyncore

from mozpool.config import Settings
from mozpool.daemon import Daemon
from mozpool.db.engine import Database
from mozpool.web.app import create_app
from mozpool.web.http import make_server
from tests.access_support import bearer, make_token

KEY = "a key that no server has but ours".replace(" ", "-")

USER, OPERATOR = "user", "operator"
"""What ``Authorization`` stands for in the calls of :class:`Wired`: somebody with this role."""


def credentials(database: Database, role: str) -> str:
    """The header ``Authorization`` of ROLE@example.com, who has this role."""
    return bearer(make_token(database, f"{role}@example.com", role))["Authorization"]


@dataclass
class Wired:
    """A server that is served."""

    daemon: Daemon
    app: APIFlask
    url: str

    @property
    def fqdn(self) -> str:
        return self.daemon.settings.server.fqdn

    def post(self, path: str, body: Mapping[str, Any] | None = None, **headers: str) -> requests.Response:
        """POST as a client does that follows nothing."""
        return requests.post(
            self.url + path, json=body, headers=self._named(headers), timeout=20, allow_redirects=False
        )

    def get(self, path: str, **headers: str) -> requests.Response:
        """The same with GET."""
        return requests.get(self.url + path, headers=self._named(headers), timeout=20, allow_redirects=False)

    def _named(self, headers: Mapping[str, str]) -> dict[str, str]:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if "Authorization" in named:
            named["Authorization"] = credentials(self.daemon.database, named["Authorization"])
        return named


def settings_of(database_url: str, directory: Path, port: int, **changes: Mapping[str, Any]) -> Settings:
    """The settings of a server on 127.0.0.1 that wants to know who calls; ``changes`` are those of sections."""
    settings = Settings()
    (directory / "tftp").mkdir(parents=True, exist_ok=True)
    sections: dict[str, dict[str, Any]] = {
        "database": {"engine": database_url},
        "server": {"fqdn": f"127.0.0.1:{port}", "port": port},
        "paths": {"tftp_root": directory / "tftp"},
        "auth": {"mode": "token", "server_key": KEY},
        "testing": {"speed": 20.0},
    }
    for section, values in changes.items():
        sections.setdefault(section, {}).update(values)
    for section, values in sections.items():
        settings = replace(settings, **{section: replace(getattr(settings, section), **values)})
    return settings


@contextmanager
def served(daemon: Daemon) -> Iterator[Wired]:
    """The daemon's application, on its port."""
    app = create_app(daemon.services)
    server: Any = make_server(app, daemon.settings.server, daemon.clock)
    thread = threading.Thread(target=server.run, name="served")
    thread.start()
    try:
        yield Wired(daemon, app, daemon.settings.server.listen_url)
    finally:
        server.trigger.pull_trigger(lambda: wasyncore.close_all(server._map))
        thread.join(20)
        server.task_dispatcher.shutdown()


@contextmanager
def daemon_of(settings: Settings) -> Iterator[Daemon]:
    """A daemon that was not started: nothing happens in it by itself."""
    daemon = Daemon(settings, rng=random.Random(1))
    try:
        yield daemon
    finally:
        daemon.stop()
