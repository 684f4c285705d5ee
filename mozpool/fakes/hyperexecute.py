# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""A stand-in for LambdaTest's program ``hyperexecute`` that puts jobs into the fake cloud (wire facts: LambdaTest).

It takes the arguments, the directory and the environment that the real one is run with, looks at ``hyperexecute.yaml``
more strictly than that does, and prints about the same lines: what others read in them is ``jobId=``. Where the fake
cloud is and what goes wrong stands in the program itself, because who runs it gives it a bare environment.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, NoReturn

import yaml

from mozpool.clock import Clock

VERSION = "0.2.302"
JOB_PAGE = "https://hyperexecute.lambdatest.com/hyperexecute/task?jobId={id}"

_CREATE = "/fake/v1/jobs"
_CALL_LIMIT = 60.0
_DISCOVERY_LIMIT = 10.0


class ProgramFault(StrEnum):
    """How the program misbehaves."""

    FAILS = "fails"
    """Exit code 1 before anything is done."""
    HANGS = "hangs"
    """Does nothing for ever."""
    FAILS_AFTER = "fails after"
    """Exit code 1, but the job has been created."""
    HANGS_AFTER = "hangs after"
    """Creates the job and never ends."""


def write_hyperexecute(
    path: Path, url: str, *, fault: ProgramFault | None = None, slow: float = 0.0, leaks: bool = False
) -> Path:
    """Write the program for the fake cloud at ``url`` to ``path`` and return that.

    ``slow``: seconds that it takes before the job is created. ``leaks``: it prints the access key and the variables
    of the job, as a careless program may. It may be written anew while runs of the old one go on.
    """
    root = Path(__file__).parents[2]
    text = (
        f"#!{sys.executable}\n"
        "import sys\n"
        f"sys.path.insert(0, {str(root)!r})\n"
        "from mozpool.fakes.hyperexecute import main\n"
        f"sys.exit(main({url!r}, {fault and fault.value!r}, {slow!r}, {leaks!r}))\n"
    )
    new = path.with_name(f"{path.name}.new")
    new.write_text(text, "utf-8")
    new.chmod(0o755)
    new.replace(path)
    return path


class Refused(Exception):
    """The program ends with exit code 1; ``str()`` says what is wrong."""


def main(url: str, fault: str | None, slow: float, leaks: bool) -> int:
    """Be ``hyperexecute``; the exit code."""
    clock = Clock()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    try:
        labels = _labels(sys.argv[1:])
        print(f"HyperExecute CLI version: {VERSION}")
        if fault == ProgramFault.FAILS:
            raise Refused("unable to update the binary: no space left on device")
        while fault == ProgramFault.HANGS:
            clock.sleep(3600)
        user, key = _credentials(os.environ)
        job = read_job(Path.cwd(), os.environ)
        if leaks:
            print(f"using {user}:{key} and {job.environment}")
        print("Uploading the project")
        clock.sleep(slow)
        made = _create(url, user, key, {"labels": labels, **job.wanted})
        print(f"Job ID: {made['id']}")
        print(f"Job Number: {made['job_number']}")
        print(f"Job Link: {JOB_PAGE.format(id=made['id'])}")
        while fault == ProgramFault.HANGS_AFTER:
            clock.sleep(3600)
        if fault == ProgramFault.FAILS_AFTER:
            raise Refused("lost the connection while the job was followed")
    except Refused as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    return 0


class _Arguments(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise Refused(message)


def _labels(arguments: Sequence[str]) -> list[str]:
    parser = _Arguments(prog="hyperexecute", add_help=False, allow_abbrev=False)
    parser.add_argument("--no-track", action="store_true", required=True)
    parser.add_argument("--labels", required=True)
    parser.add_argument("--exclude-external-binaries", action="store_true", required=True)
    labels: list[str] = parser.parse_args(arguments).labels.split(",")
    if not all(label.strip() for label in labels):
        raise Refused(f"--labels: {','.join(labels)!r} has an empty label")
    return labels


def _credentials(environment: Mapping[str, str]) -> tuple[str, str]:
    user, key = environment.get("LT_USERNAME", ""), environment.get("LT_ACCESS_KEY", "")
    if not user or not key:
        raise Refused("LT_USERNAME and LT_ACCESS_KEY have to be set")
    if "@" in user:
        raise Refused("LT_USERNAME: it is the short user name, not the e-mail")
    return user, key


def _create(url: str, user: str, key: str, job: Mapping[str, Any]) -> Mapping[str, Any]:
    request = urllib.request.Request(f"{url}{_CREATE}", json.dumps(job).encode(), method="POST")  # noqa: S310 (http)
    request.add_header("Authorization", "Basic " + base64.b64encode(f"{user}:{key}".encode()).decode())
    request.add_header("Content-Type", "application/json")
    try:
        with urllib.request.urlopen(request, timeout=_CALL_LIMIT) as answer:  # noqa: S310 (http)  # nosec B310
            made = json.load(answer)
        if not isinstance(made, dict) or not {"id", "job_number"} <= set(made):
            raise Refused("the answer makes no sense")
        return made
    except urllib.error.HTTPError as error:
        raise Refused(f"the job was not created: {error.code} {error.read(500).decode(errors='replace')}") from error
    except (OSError, ValueError) as error:
        raise Refused(f"the job was not created: {error}") from error


class Job:
    """What stands in a job's directory."""

    def __init__(self, wanted: Mapping[str, Any], environment: Mapping[str, str]) -> None:
        self.wanted = wanted
        """The fields of JobSpec, without the labels."""
        self.environment = environment
        """The variables of the job."""


class _Section:
    """A mapping of the YAML file, whose keys are taken one by one."""

    def __init__(self, name: str, value: Any) -> None:
        if not isinstance(value, dict):
            raise Refused(f"{name or 'hyperexecute.yaml'}: {value!r} is not a mapping")
        self._name = name
        self._left = dict(value)

    def take(self, key: str, *kinds: type, default: Any = ...) -> Any:
        """The value of a key, which has to be of one of these types; ``...``: it must be there."""
        value = self._left.pop(key, default)
        if value is ...:
            raise Refused(f"{self._full(key)} is missing")
        if value is not default and type(value) not in kinds:
            raise Refused(f"{self._full(key)}: {value!r} is not {' or '.join(kind.__name__ for kind in kinds)}")
        return value

    def section(self, key: str) -> _Section:
        """A mapping in it."""
        return _Section(self._full(key), self.take(key, dict))

    def exactly(self, **wanted: Any) -> None:
        """These keys have these values."""
        for key, value in wanted.items():
            found = self.take(key, type(value))
            if found != value:
                raise Refused(f"{self._full(key)}: {found!r} is not {value!r}")

    def text(self, key: str) -> str:
        """A text that is not empty."""
        value: str = self.take(key, str)
        if not value.strip():
            raise Refused(f"{self._full(key)} is empty")
        return value

    def texts(self, key: str) -> list[str]:
        """A list of texts that are not empty."""
        value: list[Any] = self.take(key, list)
        if not value or not all(isinstance(each, str) and each.strip() for each in value):
            raise Refused(f"{self._full(key)}: {value!r} is not a list of texts")
        return value

    def end(self, *others: str) -> None:
        """Nothing is left but ``others``, which nobody looks at."""
        unknown = sorted(map(str, set(self._left) - set(others)))
        if unknown:
            raise Refused(f"{self._full(unknown[0])}: no such key")

    def _full(self, key: str) -> str:
        return f"{self._name}.{key}" if self._name else key


def read_job(directory: Path, environment: Mapping[str, str]) -> Job:
    """Read and check what a job's directory must hold. Raises Refused, which names what is wrong."""
    try:
        text = (directory / "hyperexecute.yaml").read_text("utf-8")
    except OSError as error:
        raise Refused(f"hyperexecute.yaml: {error.strerror}") from error
    try:
        top = _Section("", yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise Refused(f"hyperexecute.yaml: {' '.join(str(error).split())}") from error
    top.exactly(version="0.2", autosplit=True, runson="android")
    concurrency = top.take("concurrency", int)
    if not 1 <= concurrency <= 100:
        raise Refused(f"concurrency: {concurrency} is not from 1 to 100")
    variables = _variables(top.take("env", dict), environment)
    discovery = top.section("testDiscovery")
    discovery.exactly(type="raw", mode="static")
    _discover(discovery.text("command"), concurrency, directory)
    discovery.end()
    commands = [top.text("testRunnerCommand"), *top.texts("pre"), *top.texts("post")]
    _look_for_scripts(commands, directory)
    _check_the_rest(top)
    framework = top.section("framework")
    framework.exactly(name="raw")
    wanted = _wanted(framework.section("args"), concurrency)
    framework.end()
    top.end("globalTimeout", "testSuiteTimeout", "testSuiteStep", "retryOnFailure", "maxRetries", "uploadArtefacts")
    return Job({"worker_type": variables["TC_WORKER_TYPE"], "concurrency": concurrency, **wanted}, variables)


def _variables(given: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, str]:
    """The job's variables; ``${NAME}`` is what NAME is in the environment of the program."""
    found = {}
    for name, value in given.items():
        if not isinstance(value, str):
            raise Refused(f"env.{name} is not str")
        for other in re.findall(r"\$\{(\w+)\}", value):
            if not environment.get(other):
                raise Refused(f"env.{name}: {other} is not set in the environment")
            value = value.replace(f"${{{other}}}", environment[other])
        found[name] = value
    for name in ("TASKCLUSTER_CLIENT_ID", "TASKCLUSTER_ACCESS_TOKEN", "TC_WORKER_TYPE"):
        if not found.get(name):
            raise Refused(f"env.{name} is missing")
        if found[name].startswith("$"):
            raise Refused(f"env.{name} was not filled in")
    return found


def _discover(command: str, concurrency: int, directory: Path) -> None:
    """Let the discovery run, as the cloud does: it must give a line for each phone."""
    try:
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=directory,
            env={"PATH": os.environ.get("PATH", os.defpath)},
            capture_output=True,
            timeout=_DISCOVERY_LIMIT,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Refused(f"testDiscovery.command: {error}") from error
    lines = len(done.stdout.decode(errors="replace").split("\n")) - 1
    if done.returncode or lines != concurrency:
        raise Refused(
            f"testDiscovery.command ended with {done.returncode} and gave {lines} lines, not {concurrency}: {command!r}"
        )


def _look_for_scripts(commands: Sequence[str], directory: Path) -> None:
    """What of ``user_script/`` the commands name has to be there."""
    scripts = directory / "user_script"
    if not scripts.is_dir():
        raise Refused("user_script: no such directory")
    if (scripts / "hyperexecute.yaml.tmpl").exists():
        raise Refused("user_script/hyperexecute.yaml.tmpl: it is filled in, and not copied along")
    for command in commands:
        for name in re.findall(r"(?:^|[\s\"';&|(]|\./)(user_script/[\w./-]+)", command):
            if not (directory / name).exists():
                raise Refused(f"{name}: no such file, but {command!r} needs it")


def _check_the_rest(top: _Section) -> None:
    upload = top.section("differentialUpload")
    upload.exactly(enabled=True, ttlHours=360)
    upload.end()
    runtimes = top.take("runtime", list, dict)
    for each in runtimes if isinstance(runtimes, list) else [runtimes]:
        runtime = _Section("runtime", each)
        runtime.text("language")
        runtime.take("version", str, int, float)
        runtime.end()
    top.exactly(frameworkStatusOnly=True, dynamicAllocation=True, shell="bash")  # noqa: S604 (runs nothing)  # nosec B604


def _wanted(arguments: _Section, concurrency: int) -> dict[str, Any]:
    fixed = arguments.take("fixedIP", str, default=None)
    if fixed is not None and not re.fullmatch(r"[A-Za-z0-9.:_-]+", fixed):
        raise Refused(f"framework.args.fixedIP: {fixed!r} is not one UDID")
    if fixed is not None and concurrency > 1:
        raise Refused(f"framework.args.fixedIP: it means one phone, but concurrency is {concurrency}")
    patterns = arguments.texts("devices")
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise Refused(f"framework.args.devices: {pattern!r}: {error}") from error
    timeout = arguments.take("queueTimeout", int)
    if timeout < 1:
        raise Refused(f"framework.args.queueTimeout: {timeout} is not a number of seconds")
    arguments.text("buildName")
    arguments.exactly(
        privateCloud=True,
        region="us",
        disableReleaseDevice=True,
        isRealMobile=True,
        reservation=False,
        platformName="android",
        video=False,
        liveVideo=False,
        deviceLogs=True,
    )
    arguments.end("app", "appPath", "deviceType", "tunnel", "network")
    return {"patterns": patterns, "fixed": fixed, "queue_timeout": timeout}
