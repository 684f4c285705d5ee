# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The directories that hyperexecute runs in: ``hyperexecute.yaml``, and a copy of the project's user scripts.

What a job's environment is to hold has to stand in ``hyperexecute.yaml`` (wire facts: HyperExecute), its Taskcluster
token, too: so the file is for this user alone, in a directory for this user alone, and goes when the program has ended.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import string
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from mozpool import config, resources
from mozpool.bmm import program
from mozpool.clock import Clock, Deadline

log = logging.getLogger(__name__)

FILE = "hyperexecute.yaml"
TEMPLATE = "hyperexecute.yaml.tmpl"
SETUP = "setup.sh"
SCRIPTS = "user_script"

KEPT = 24 * 3600.0
"""Seconds after which a job's directory is removed."""

TOKEN_KEPT = 600.0
"""Seconds after which a ``hyperexecute.yaml`` that a killed server has left behind is removed."""

GIT_LIMIT = 40.0
"""Seconds for the checkout of a revision."""

GIT_AGAIN = 600.0
"""Seconds after which a branch or tag is looked at again; a whole commit id never is."""

GIT_PAUSE = 30.0
"""Seconds in which a repository that could not be fetched is not tried again."""

SAMPLE_APP = "lt://proverbial-android"
"""LambdaTest's own sample app, for templates that have to name one."""

_PREFIX = "job-"
_VERSION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,99}")
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/+-]{0,199}")
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_GIT_URL = re.compile(r"(https?|ssh|git|file)://\S+|[A-Za-z0-9_.-]+@[A-Za-z0-9_.-]+:\S+")
_SPECIAL = re.compile(r"[\\.+*?()|\[\]{}^$]")


class DirectoryError(Exception):
    """The directory can't be made; ``str()`` says why."""


@dataclass(frozen=True)
class Wanted:
    """What a job's directory is made from."""

    name: str
    """What the directory is called, and the job in the cloud's pages."""
    client_id: str
    token: str
    worker_type: str
    version: str
    devices: tuple[str, ...]
    """The UDIDs: one, or as many as the job's concurrency."""
    type_os: str
    """What HyperExecute calls their kind."""
    root_url: str
    provisioner: str


def hyperexecute_yaml(job: Wanted) -> dict[str, Any]:
    """The document that HyperExecute gets (wire facts), for user scripts such as our own."""
    pinned: dict[str, Any] = {"devices": [".*-.*"], "fixedIP": job.devices[0]}
    if len(job.devices) > 1:
        pinned = {"devices": [_SPECIAL.sub(lambda match: "\\" + match[0], job.type_os)]}
    return {
        "version": "0.2",
        "autosplit": True,
        "runson": "android",
        "concurrency": len(job.devices),
        "dynamicAllocation": True,
        "shell": "bash",
        "runtime": [
            {"language": "java", "version": "17"},
            {"language": "node", "version": "20"},
            {"language": "python", "version": "3.12"},
        ],
        "env": {
            "TASKCLUSTER_CLIENT_ID": job.client_id,
            "TASKCLUSTER_ACCESS_TOKEN": job.token,
            "TASKCLUSTER_ROOT_URL": job.root_url,
            "TC_PROVISIONER": job.provisioner,
            "TC_WORKER_TYPE": job.worker_type,
        },
        "testDiscovery": {"type": "raw", "mode": "static", "command": _discovery(job)},
        "testRunnerCommand": f"bash {SCRIPTS}/run-worker.sh",
        "pre": [f"bash {SCRIPTS}/{SETUP}"],
        "post": [f"bash {SCRIPTS}/reboot-and-wait.sh", f"bash {SCRIPTS}/print-metadata.sh"],
        "differentialUpload": {"enabled": True, "ttlHours": 360},
        "frameworkStatusOnly": True,
        "framework": {
            "name": "raw",
            "args": {
                **pinned,
                "privateCloud": True,
                "queueTimeout": 600,
                "region": "us",
                "disableReleaseDevice": True,
                "isRealMobile": True,
                "reservation": False,
                "platformName": "android",
                "video": False,
                "liveVideo": False,
                "deviceLogs": True,
                "buildName": job.name,
            },
        },
    }


def _discovery(job: Wanted) -> str:
    """A line for each unit of concurrency."""
    return "; ".join(f"echo unit-{number}" for number in range(1, len(job.devices) + 1))


def filled_in(template: str, job: Wanted) -> str:
    """A version's own template with its placeholders replaced; other words with a ``$`` stay. Raises DirectoryError."""
    values = {
        "concurrency": str(len(job.devices)),
        "test_discover_cmd": _discovery(job),
        "tc_client_id": job.client_id,
        "tc_access_token": job.token,
        "tc_worker_type": job.worker_type,
        "lt_app_url": SAMPLE_APP,
        "fixed_ip_line": f'fixedIP: "{job.devices[0]}"' if len(job.devices) == 1 else "",
    }
    text = string.Template(template).safe_substitute(values)
    try:
        document = yaml.safe_load(text)
    except Exception as error:
        # Of values that are not what their tags say, PyYAML raises ValueError, KeyError and others. Its messages quote
        # the text, which holds the token.
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        raise DirectoryError(f"{TEMPLATE} of version {job.version} gives no YAML{line}") from None
    if not isinstance(document, dict):
        raise DirectoryError(f"{TEMPLATE} of version {job.version} gives no mapping")
    return text


def has_scripts(user_scripts: str, version: str) -> bool:
    """Whether ``[lambdatest] user_scripts`` has a version; of a git repository that is not known beforehand."""
    if not user_scripts or _GIT_URL.fullmatch(user_scripts):
        return True
    return _VERSION.fullmatch(version) is not None and (Path(user_scripts) / version).is_dir()


class JobDirectories:
    """Where they are made, and where the user scripts come from. Safe to use from any thread."""

    def __init__(self, settings: config.LambdaTest, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._configured = settings.job_directory
        self._scripts = settings.user_scripts
        self._failed: dict[str, tuple[float, str]] = {}
        self._checked: dict[str, float] = {}

    def make(self, job: Wanted, deadline: Deadline) -> Path:
        """A new directory for a job. Raises DirectoryError."""
        for name, value in (("client id", job.client_id), ("token", job.token), ("worker type", job.worker_type)):
            if not value.isprintable():
                raise DirectoryError(f"the {name} is not one line of text")
        try:
            scripts = self._source(job.version, deadline)
            text = _document(scripts, job)
            made = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{job.name}-", dir=self._root()))
            try:
                _copy(scripts, made / SCRIPTS)
                with open(os.open(made / FILE, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                    file.write(text)
            except BaseException:
                shutil.rmtree(made, ignore_errors=True)
                raise
        except (OSError, UnicodeError) as error:
            raise DirectoryError(f"the job's directory can't be made: {_reason(error)}") from error
        return made

    def done(self, directory: Path) -> None:
        """The program has ended: nothing secret stays there."""
        with suppress(OSError):
            (directory / FILE).unlink()

    def clean(self) -> None:
        """Remove the directories of jobs that are too old."""
        with suppress(OSError):
            root = self._root()
            now = self._clock.now().timestamp()
            for path in root.glob(f"{_PREFIX}*"):
                with suppress(OSError):
                    age = now - path.stat().st_mtime
                    if age > KEPT:
                        shutil.rmtree(path, ignore_errors=True)
                    elif age > TOKEN_KEPT:
                        (path / FILE).unlink(missing_ok=True)

    def close(self) -> None:
        """Remove what ends with the server."""
        with self._lock:
            if self._temporary is not None:
                self._temporary.cleanup()
                self._temporary = None

    def _root(self) -> Path:
        if self._configured is not None:
            self._configured.mkdir(mode=0o700, parents=True, exist_ok=True)
            return self._configured
        with self._lock:
            if self._temporary is None:
                self._temporary = tempfile.TemporaryDirectory(prefix="mozpool-jobs-", ignore_cleanup_errors=True)
            return Path(self._temporary.name)

    # User scripts

    def _source(self, version: str, deadline: Deadline) -> Path:
        """Where the user scripts of a version are. Raises DirectoryError, OSError."""
        if not self._scripts:
            return resources.path("scripts", "lambdatest")
        if _GIT_URL.fullmatch(self._scripts):
            return self._checkout(version, deadline)
        if not _VERSION.fullmatch(version):
            raise DirectoryError(f"the user scripts' version {version[:80]!r} is not the name of a folder")
        folder = Path(self._scripts) / version
        if not folder.is_dir():
            raise DirectoryError(f"there are no user scripts of version {version}: {folder} is no directory")
        return folder

    def _checkout(self, revision: str, deadline: Deadline) -> Path:
        url = self._scripts
        parts = urlsplit(url)
        if parts.password is not None or (parts.scheme in ("http", "https") and parts.username is not None):
            # git hands it to other programs as an argument, where everybody could see it.
            raise DirectoryError(
                "[lambdatest] user_scripts has credentials in its URL: let git's configuration have them"
            )
        if not _REVISION.fullmatch(revision) or ".." in revision:
            raise DirectoryError(f"the user scripts' version {revision[:80]!r} is not a revision of git")
        place = hashlib.sha256(f"{url}\n{revision}".encode()).hexdigest()[:16]
        cache = self._root() / "user_scripts" / place
        now = self._clock.monotonic()
        fixed = _COMMIT.fullmatch(revision) is not None
        if cache.is_dir() and (fixed or now - self._checked.get(place, -GIT_AGAIN) < GIT_AGAIN):
            return cache
        failed_at, reason = self._failed.get(place, (-GIT_PAUSE, ""))
        if now - failed_at >= GIT_PAUSE:
            try:
                _fetch(url, revision, cache, deadline.within(GIT_LIMIT))
                self._checked[place] = self._clock.monotonic()
                self._failed.pop(place, None)
                return cache
            except program.ProgramError as error:
                reason = f"revision {revision} of the user scripts can't be fetched: {error}"
                self._failed[place] = (self._clock.monotonic(), reason)
                log.warning("%s", reason)
        if cache.is_dir():
            return cache
        raise DirectoryError(reason)


def _fetch(url: str, revision: str, cache: Path, deadline: Deadline) -> None:
    """Put the files of a revision in the place of ``cache``. Raises ProgramError, OSError."""
    cache.parent.mkdir(mode=0o700, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix="new-", dir=cache.parent))
    quiet = {
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ASKPASS": "false",
        "GIT_SSH_COMMAND": "ssh -oBatchMode=yes",
        "GIT_ALLOW_PROTOCOL": "file:git:http:https:ssh",
    }
    try:
        for arguments in (
            ("init", "--quiet", "--", str(new)),
            ("fetch", "--quiet", "--depth=1", "--no-tags", "--", url, revision),
            ("checkout", "--quiet", "--detach", "FETCH_HEAD"),
        ):
            program.run(("git", *arguments), deadline, cwd=str(new), env=quiet)
        shutil.rmtree(new / ".git")
        old = cache.with_suffix(".old")
        shutil.rmtree(old, ignore_errors=True)
        if cache.exists():
            cache.rename(old)
        new.rename(cache)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _document(scripts: Path, job: Wanted) -> str:
    """The text of ``hyperexecute.yaml``. Raises DirectoryError, OSError, UnicodeError."""
    template = scripts / TEMPLATE
    if template.is_file():
        return filled_in(template.read_text(), job)
    if (scripts / SETUP).is_file():
        return yaml.safe_dump(hyperexecute_yaml(job), sort_keys=False, width=1000)
    raise DirectoryError(f"the user scripts of version {job.version} have neither {TEMPLATE} nor {SETUP}")


def _copy(scripts: Path, to: Path) -> None:
    """Raises DirectoryError: a link could lead to any file of this machine, and all of it is sent to the cloud."""

    def unwanted(folder: str, names: list[str]) -> set[str]:
        at_top = Path(folder) == scripts
        return {name for name in names if name in (".git", "__pycache__") or (at_top and name == TEMPLATE)}

    shutil.copytree(scripts, to, symlinks=True, ignore=unwanted)
    for path in to.rglob("*"):
        if path.is_symlink():
            raise DirectoryError(f"the user scripts have a symbolic link: {path.relative_to(to)}")


def _reason(error: OSError | UnicodeError) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return type(error).__name__


def seen_by(job: Wanted) -> Mapping[str, str]:
    """What a job's program has in its environment because of the job."""
    return {
        "TASKCLUSTER_CLIENT_ID": job.client_id,
        "TASKCLUSTER_ACCESS_TOKEN": job.token,
        "TC_WORKER_TYPE": job.worker_type,
    }
