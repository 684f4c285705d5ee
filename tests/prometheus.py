# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""Prometheus's own programs, and the files for them that are in the repository."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, Self

import requests
import yaml

from mozpool import metrics, resources
from mozpool.metrics import Spec
from mozpool.web import census
from tests.processes import end, free_port

assert resources.CHECKOUT is not None
FILES = resources.CHECKOUT / "docs" / "monitoring"
ALERTS = FILES / "mozpool-alerts.yml"
ALERT_TESTS = Path(__file__).parent / "contract" / "mozpool-alerts-test.yml"
DASHBOARD = FILES / "mozpool-dashboard.json"
SAMPLE = FILES / "prometheus.yml"

SPECS = {spec.name: spec for spec in (*metrics.SPECS, *census.SPECS)}


def missing() -> str | None:
    """What has to be installed for these tests, or None."""
    absent = [program for program in ("promtool", "prometheus") if shutil.which(program) is None]
    return f"the Debian package prometheus is missing ({', '.join(absent)})" if absent else None


def promtool(*arguments: str | Path, given: str | None = None) -> str:
    """What promtool says; an AssertionError when it is not content."""
    done = subprocess.run(
        ["promtool", *map(str, arguments)], input=given, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


class Prometheus:
    """A running server that scrapes these targets (HOST:PORT) every second, with our alert rules."""

    def __init__(self, directory: Path, targets: list[str]) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        config = yaml.safe_load(SAMPLE.read_text(encoding="utf-8"))
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = [str(ALERTS)]
        config["scrape_configs"][0]["static_configs"] = [{"targets": targets}]
        (directory / "prometheus.yml").write_text(yaml.safe_dump(config))

    def __enter__(self) -> Self:
        with (self._directory / "prometheus.log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={self._directory / 'prometheus.yml'}",
                    f"--storage.tsdb.path={self._directory / 'prometheus'}",
                    f"--web.listen-address=127.0.0.1:{self.port}",
                ],
                stdout=log,
                stderr=log,
            )
        return self

    def __exit__(self, *exc: object) -> None:
        if self._process is not None:
            end(self._process)

    def get(self, path: str, **query: str) -> Any:
        """The data of an answer of its API; an AssertionError when it refuses."""
        answer = requests.get(f"{self.url}/api/v1/{path}", params=query, timeout=10)
        said = answer.json()
        assert said["status"] == "success", said
        return said["data"]

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """(labels, value) of each result."""
        data = self.get("query", query=expression)
        assert data["resultType"] == "vector"
        return [(found["metric"], float(found["value"][1])) for found in data["result"]]

    def number(self, expression: str) -> float | None:
        """The one value of an expression; None when there is none, or Prometheus does not answer yet."""
        try:
            found = self.query(expression)
        except requests.ConnectionError:
            return None
        return found[0][1] if len(found) == 1 else None


def alert_rules() -> list[dict[str, Any]]:
    """The rules."""
    groups = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    """All panels of the dashboard."""
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    return found


def panel_expressions() -> list[tuple[str, str]]:
    """(title of the panel, expression) with everything chosen that there is to choose."""
    return [
        (panel["title"], re.sub(r"\$(server|instance)\b", ".*", target["expr"]))
        for panel in panels()
        for target in panel.get("targets", ())
    ]


def family(name: str) -> Spec | None:
    """The metric of ours that a series belongs to."""
    if name in SPECS:
        return SPECS[name]
    found = SPECS.get(re.sub(r"_(bucket|sum|count)$", "", name))
    return found if found is not None and found.kind == "histogram" else None
