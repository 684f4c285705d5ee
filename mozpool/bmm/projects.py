# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The projects whose queues are served by hosted phones, as the YAML file of ``[lambdatest] projects`` has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml


class ProjectsError(Exception):
    """The file can't be used; ``str()`` has one line a problem."""


@dataclass(frozen=True)
class Project:
    """One of them."""

    name: str
    client_id: str | None
    worker_type: str | None
    user_scripts_version: str | None
    disabled: bool = False
    priority_group: str | None = None
    priority: int = 1
    devices: tuple[str, ...] = ()
    group: str | None = None
    token_variable: str = ""
    environ: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)

    @property
    def token(self) -> str | None:
        """Its Taskcluster access token."""
        return self.environ.get(self.token_variable) or None


@dataclass(frozen=True)
class Projects:
    """All of them, and the groups of devices."""

    path: Path
    contract_device_count: int | None
    projects: Mapping[str, Project]
    groups: Mapping[str, tuple[str, ...]]


def load(path: Path, environ: Mapping[str, str]) -> Projects:
    """Read the file. Raises ProjectsError."""
    try:
        document: Any = yaml.safe_load(path.read_text())
        defaults = document["projects"].get("defaults", {})
        groups = {
            name: tuple(str(udids or "").split() if not isinstance(udids, list | dict) else udids)
            for name, udids in (document.get("device_groups") or {}).items()
        }
        projects = {}
        for name, own in document["projects"].items():
            if name == "defaults":
                continue
            values = {**defaults, **(own or {})}
            worker_type = values.get("TC_WORKER_TYPE")
            projects[name] = Project(
                name=name,
                client_id=values.get("TASKCLUSTER_CLIENT_ID"),
                worker_type=worker_type,
                user_scripts_version=values.get("USER_SCRIPTS_VERSION"),
                disabled=bool(values.get("disabled")),
                priority_group=values.get("priority_group"),
                priority=int(values.get("priority", 1)),
                devices=groups.get(name, ()),
                group=name if name in groups else None,
                token_variable=str(worker_type or "").replace("-", "_"),
                environ=environ,
            )
        count = (document.get("global") or {}).get("contract_device_count")
    except (OSError, yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ProjectsError(f"{path}: {type(error).__name__}") from error
    return Projects(path, count, projects, groups)
