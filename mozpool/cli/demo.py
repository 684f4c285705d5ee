# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""What ``scripts/demo`` shows: a pool of simulated boards that lends a device and takes it back."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import NoReturn

import click

from mozpool.client import Client, ClientError, Request
from mozpool.clock import Clock, Deadline
from mozpool.fakes.cloud import FakeCloud, FakeProject
from mozpool.fakes.hyperexecute import write_hyperexecute
from mozpool.fakes.phonecloud import phone_specs

BOARDS = 12
SPEED = 40
SEED = 42
ASSIGNEE = "you@example.com"

PHONES = {
    "a55": phone_specs(4),
    "pixel": phone_specs(2, "Pixel 8", "15", first=5),
}
"""Project → the phones that serve its queue."""

TASKS = 2
"""Tasks that arrive in each queue, each time."""

TASKS_EVERY = 20.0
"""Seconds from one arrival of tasks to the next."""

TASK_SECONDS = (120.0, 480.0)
"""How long a task takes, in seconds of the cloud, which go by SPEED times as fast."""

JOB_LIMIT = 60.0
"""Seconds that a job may take until it runs, and then until it has ended."""

REQUEST = ["request", "b2g", "--boot-config", "b2gbase=http://builds.example.com/b2g/", "--duration", "10m"]

START_LIMIT = 30.0
"""Seconds that the server may take until it answers."""

STOP_LIMIT = 15.0
"""Seconds that the server may take to end."""

CONFIG = """\
[database]
engine = sqlite:///{directory}/mozpool.sqlite

[server]
fqdn = 127.0.0.1:{port}
port = {port}

[paths]
tftp_root = {directory}/tftp
image_store = {directory}/images

[testing]
run_fakes = true
speed = {speed}
seed = {seed}
"""


class DemoFailed(Exception):
    """Something did not go as it should; ``str()`` says what."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("port", type=click.IntRange(1, 65535), default=8080)
@click.option("--once", is_flag=True, help="End when all was shown, with status 0 if it went well.")
@click.option("--lambdatest", is_flag=True, help="Serve a simulated Taskcluster with phones of a simulated cloud, too.")
def main(port: int, once: bool, lambdatest: bool) -> None:
    """Show Mozpool at work: a pool of simulated boards on 127.0.0.1:PORT (8080), which lends a device.

    The boards fail as often as real ones did. The pool lives in a temporary directory, which is removed at the end;
    without --once, that is at Ctrl-C. With --lambdatest, tasks arrive in two queues all the time, and jobs are started
    for them on phones.
    """
    before = {signum: signal.signal(signum, _stop) for signum in (signal.SIGTERM, signal.SIGHUP)}
    try:
        with tempfile.TemporaryDirectory(prefix="mozpool-demo-") as directory:
            _check_port(port)
            with _cloud() if lambdatest else nullcontext() as cloud:
                _demo(Path(directory), port, once, Clock(), cloud)
    except DemoFailed as problem:
        raise click.ClickException(str(problem)) from problem
    except KeyboardInterrupt:
        click.echo("\nStopped.", err=True)
        raise SystemExit(128 + signal.SIGINT) from None
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _demo(directory: Path, port: int, once: bool, clock: Clock, cloud: FakeCloud | None) -> None:
    url = f"http://127.0.0.1:{port}"
    environment = {
        **os.environ,
        **({} if cloud is None else cloud.environment()),
        "MOZPOOL_CONFIG": str(_configure(directory, port, cloud)),
        "MOZPOOL_SERVERS": url,
        "MOZPOOL_ASSIGNEE": ASSIGNEE,
        # Proxies don't reach this machine.
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }
    os.environ.update({name: environment[name] for name in ("NO_PROXY", "no_proxy")})
    relay_port = _free_port()
    _run(["mozpool-db", "create-schema"], environment)
    _run(["mozpool-db", "testdata", "-d", str(BOARDS), "-p", str(relay_port)], environment)
    with _server(directory, environment, port) as server:
        client = Client(url, assignee=ASSIGNEE)
        version = _wait_until_it_answers(client, server, clock)
        click.echo(f"\nMozpool {version} serves {BOARDS} simulated boards, {SPEED} times as fast as real ones: {url}/")
        click.echo("They are new: each one tests itself before it is lent for the first time.")
        try:
            _lend_and_return(client, environment)
            if cloud is not None:
                _launch(cloud, client, environment, clock)
        except DemoFailed:
            _show_log(server)
            raise
        if once:
            return
        try:
            click.echo(f"\nThe pool stays up at {url}/ until you press Ctrl-C. In another terminal:")
            click.echo(f"    {Path(sys.executable).with_name('mozpool')} --server {url} --help")
            code = _go_on(server.process, cloud)
        except KeyboardInterrupt:
            click.echo("\nStopping.")
            return
        _show_log(server)
        raise DemoFailed(f"the server ended with status {code}")


def _lend_and_return(client: Client, environment: Mapping[str, str]) -> None:
    """The tour itself: ask for a device, see who has which, give it back."""
    _run(["mozpool", *REQUEST], environment)
    _run(["mozpool", "devices"], environment)
    _run(["mozpool", "requests"], environment)
    held = [request for request in client.requests(assignee=ASSIGNEE) if request.ready]
    if len(held) != 1:
        raise DemoFailed(f"{ASSIGNEE} has {len(held)} devices instead of one")
    _run(["mozpool", "return", str(held[0].id)], environment)
    _run(["mozpool", "requests", "--all"], environment)
    if client.get_request(held[0].id).state != "closed":
        raise DemoFailed(f"request {held[0].id} was returned and is still open")


def _cloud() -> FakeCloud:
    """Phones, and queues with tasks for them."""
    projects = {
        name: FakeProject(f"gecko-t-lambda-{name}", tuple(phone.udid for phone in phones))
        for name, phones in PHONES.items()
    }
    return FakeCloud([phone for phones in PHONES.values() for phone in phones], projects, speed=SPEED, seed=SEED)


def _launch(cloud: FakeCloud, client: Client, environment: Mapping[str, str], clock: Clock) -> None:
    """The other tour: tasks arrive, phones get jobs, and what came of it. Raises DemoFailed."""
    click.echo(f"\nBesides, it serves {len(PHONES)} queues with {len(cloud.lambdatest.specs)} phones of a cloud.")
    click.echo(f"Tasks arrive: {TASKS} for {' and for '.join(PHONES)}.")
    _add_tasks(cloud)
    _wait_for("no job runs", lambda: any(request.ready for request in _for_jobs(client)), clock)
    _run(["mld", "status"], environment)
    _run(["mozpool", "requests"], environment)
    _wait_for("no task is done", lambda: _done(client) is not None, clock)
    done = _done(client)
    assert done is not None and done.job is not None
    _run(["mozpool", "requests", "--all", "--job", str(done.job.number)], environment)
    _run(["mozpool", "status", str(done.id)], environment)


def _for_jobs(client: Client) -> list[Request]:
    return [request for request in client.requests(include_closed=True) if request.job is not None]


def _done(client: Client) -> Request | None:
    """One whose job has done a task, and whose phone is free again."""
    found = (each for each in _for_jobs(client) if each.state == "closed" and each.job and each.job.task_url)
    return next(found, None)


def _wait_for(trouble: str, what: Callable[[], bool], clock: Clock) -> None:
    """Wait until something is so. Raises DemoFailed when it takes too long."""
    deadline = Deadline(clock, JOB_LIMIT)
    while not what():
        if deadline.expired:
            raise DemoFailed(f"{trouble} after {JOB_LIMIT:g} s")
        clock.sleep(0.1)


def _add_tasks(cloud: FakeCloud) -> None:
    for project in PHONES:
        cloud.add_tasks(project, TASKS, seconds=TASK_SECONDS)


def _go_on(process: subprocess.Popen[bytes], cloud: FakeCloud | None) -> int:
    """Until the server ends, whose status it returns, with new tasks now and then."""
    while True:
        try:
            return process.wait(None if cloud is None else TASKS_EVERY)
        except subprocess.TimeoutExpired:
            assert cloud is not None
            _add_tasks(cloud)


def _configure(directory: Path, port: int, cloud: FakeCloud | None) -> Path:
    """Write the configuration, and return where it is."""
    for name in ("tftp", "images"):
        (directory / name).mkdir()
    file = directory / "config.ini"
    text = CONFIG.format(directory=directory, port=port, speed=SPEED, seed=SEED)
    if cloud is not None:
        projects = directory / "lambdatest.yml"
        projects.write_text(cloud.projects_yaml(), encoding="utf-8")
        program = write_hyperexecute(directory / "hyperexecute", cloud.lambdatest.url)
        settings = {"enabled": "yes", **cloud.settings(program, projects)}
        text += "\n[lambdatest]\n" + "".join(f"{name} = {value}\n" for name, value in settings.items())
    file.write_text(text, encoding="utf-8")
    return file


def _check_port(port: int) -> None:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise DemoFailed(f"can't listen on 127.0.0.1:{port}: {reason}. Name another port: scripts/demo PORT") from error


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def _program(name: str) -> list[str]:
    """How to run one of our commands by this very Python."""
    module = {
        "mld": "mozpool.cli.mld",
        "mozpool": "mozpool.client.cli",
        "mozpool-db": "mozpool.cli.db",
        "mozpool-server": "mozpool.cli.server",
    }
    return [sys.executable, "-c", f"from {module[name]} import main; main(prog_name={name!r})"]


def _run(command: list[str], environment: Mapping[str, str]) -> None:
    """Show a command and run it. Raises DemoFailed when it fails."""
    click.echo(f"\n$ {shlex.join(command)}")
    done = subprocess.run([*_program(command[0]), *command[1:]], env=dict(environment), check=False)
    if done.returncode:
        raise DemoFailed(f"`{shlex.join(command[:2])}` ended with status {done.returncode}")


class _Server:
    """A running server and its log."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.log = log


@contextmanager
def _server(directory: Path, environment: Mapping[str, str], port: int) -> Iterator[_Server]:
    """The daemon, in a process group of its own, so that Ctrl-C reaches this program alone, which ends it."""
    log = directory / "server.log"
    click.echo(f"\n$ mozpool-server {port}")
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*_program("mozpool-server"), str(port)],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            process_group=0,
        )
    try:
        yield _Server(process, log)
    finally:
        process.terminate()
        try:
            process.wait(STOP_LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_it_answers(client: Client, server: _Server, clock: Clock) -> str:
    """The server's version, as soon as it tells it. Raises DemoFailed."""
    deadline = Deadline(clock, START_LIMIT)
    pause = threading.Event()
    while server.process.poll() is None and not deadline.expired:
        try:
            return client.version()
        except ClientError:
            clock.wait(pause, 0.1)
    _show_log(server)
    raise DemoFailed("the server does not answer" if server.process.poll() is None else "the server did not start")


def _show_log(server: _Server) -> None:
    click.echo("\nThe last lines of the server's log:", err=True)
    for line in server.log.read_text(encoding="utf-8", errors="replace").splitlines()[-30:]:
        click.echo(f"    {line}", err=True)


def _stop(signum: int, frame: FrameType | None) -> NoReturn:
    """End as Ctrl-C does."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    main(prog_name="scripts/demo")
