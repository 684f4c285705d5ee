# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""``mld``: serves Taskcluster's queues with phones of LambdaTest's cloud, and tells how that goes."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import uuid
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import click

from mozpool import __version__
from mozpool.bmm.backends.lambdatest import LambdaTestLauncher
from mozpool.bmm.interfaces import BackendContext
from mozpool.bmm.projects import Projects, ProjectsError
from mozpool.cli.common import Commands, must_be_up_to_date, open_database, table, yes_or_no
from mozpool.cli.logs import configure_logging
from mozpool.client import errors
from mozpool.client.api import ANY, Client, default_assignee
from mozpool.client.models import Request
from mozpool.client.values import days as number_of_days
from mozpool.client.values import duration, wait
from mozpool.clock import Clock
from mozpool.config import ConfigError, LambdaTest, Problem, Settings, load
from mozpool.db import images
from mozpool.db.requests import END_STATES
from mozpool.errors import BadInput
from mozpool.launcher import load_projects
from mozpool.launcher import status as state
from mozpool.launcher.queues import Taskcluster
from mozpool.launcher.service import CLEANING, STARTING

FAILED, USAGE = 1, 2

POLL = 20.0
"""Seconds that a server is asked to wait for a change of a request."""

SUCCEEDED = re.compile(r"has ended: completed$")
"""How the reason of a request ends whose job went well."""


class MldCommands(Commands):
    """Ends with status 2 for what is wrong with the input: options, the configuration, the projects file."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.ClickException as error:
            if not isinstance(error.__cause__, ConfigError | ProjectsError | BadInput):
                raise
            error.show()
            ctx.exit(USAGE)


@click.group(cls=MldCommands, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--config", "config_file", type=click.Path(exists=True, dir_okay=False), help="Configuration file (config.ini)."
)
@click.option("--debug", is_flag=True, help="Start no job, and say what would be started.")
@click.version_option(__version__, prog_name="mld")
@click.pass_context
def main(ctx: click.Context, config_file: str | None, debug: bool) -> None:
    """Serve Taskcluster's queues with phones of LambdaTest's private cloud.

    Without a command it is `mld run`.

    The configuration is the file of --config or $MOZPOOL_CONFIG, else the first that exists of ./config.ini,
    config.ini in the checkout that runs, and /etc/mozpool/config.ini; the projects are in the file that [lambdatest]
    projects there names.

    The exit status is 0 on success, 1 when something failed, 2 when the input was wrong.
    """
    ctx.obj = config_file
    if ctx.invoked_subcommand is None:
        _run(config_file, debug)
    elif debug and ctx.invoked_subcommand != "run":
        raise click.UsageError(f"--debug is of no use for {ctx.invoked_subcommand}")
    else:
        ctx.meta["debug"] = debug


@main.command()
@click.option("--debug", is_flag=True, help="Start no job, and say what would be started.")
@click.option("--config", "config_file", type=click.Path(exists=True, dir_okay=False), help="As `mld --config`.")
@click.pass_context
def run(ctx: click.Context, debug: bool, config_file: str | None) -> None:
    """Start jobs for pending tasks until it is stopped.

    This is the daemon of mozpool-server with [lambdatest] enabled, HTTP API and pages included. USR2, TERM or Ctrl-C
    stop it politely: nothing more is started, and it ends when the starts that go on are over. The third of them ends
    it at once. Jobs go on whatever ends; the next start, or another server of the pool, looks after them.
    """
    _run(config_file or ctx.obj, debug or ctx.meta["debug"])


def _run(config_file: str | None, debug: bool) -> None:
    from mozpool.cli.server import serve  # all of the server, which no other command needs

    settings = load(config_file)
    settings = replace(settings, lambdatest=replace(settings.lambdatest, enabled=True))
    configure_logging(settings)
    if debug:
        logging.getLogger("mozpool.launcher").setLevel(logging.DEBUG)
    try:
        serve(settings, dry=debug)
    except OSError as error:
        raise click.ClickException(str(error)) from error


def _projects(settings: Settings) -> Projects:
    """The configured projects. Raises ConfigError, ProjectsError."""
    path = settings.lambdatest.projects
    if path is None:
        problem = Problem(
            settings.source or Path("config.ini"), None, "lambdatest", "projects", "is not set: there are no projects"
        )
        raise ConfigError([problem])
    return load_projects(settings.lambdatest, path)


@main.command("config-check")
@click.option(
    "--config",
    "projects_file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="The projects file.  [default: [lambdatest] projects of the configuration]",
)
@click.pass_context
def config_check(ctx: click.Context, projects_file: Path | None) -> None:
    """Check the projects file.

    Prints for each project whether it takes part, and what it lacks if it does not; then all that looks odd, with file
    and line. Ends with status 2 when `mld run` would refuse the file: when it has errors, or when the access token of a
    project that takes part is not in the environment.
    """
    if projects_file is None:
        projects = _projects(load(ctx.obj))
    else:
        projects = load_projects(_settings_or_defaults(ctx.obj), projects_file)
    for project in projects.projects.values():
        if project.takes_part:
            rank = f", priority {project.priority} in {project.priority_group}" if project.priority_group else ""
            click.echo(
                f"{project.name}: takes part with {_phones(len(project.devices))}, queue {project.worker_type}{rank}"
            )
            continue
        why = (["it is disabled"] if project.disabled else []) + [f"it lacks {what}" for what in project.lacks]
        click.echo(f"{project.name}: does not take part: {'; '.join(why)}")
    for line in projects.told():
        click.echo(line)
    if refusals := projects.refusals():
        for line in refusals:
            click.echo(line, err=True)
        click.echo("mld run refuses to start like this.", err=True)
        sys.exit(USAGE)
    if not projects.taking_part:
        click.echo("No project takes part: nothing would be started.", err=True)


def _settings_or_defaults(config_file: str | None) -> LambdaTest:
    """[lambdatest], which says where user scripts are; a projects file can be checked without a configuration."""
    try:
        return load(config_file).lambdatest
    except ConfigError:
        if config_file is not None:
            raise
        return LambdaTest()


def _phones(number: int) -> str:
    return "1 phone" if number == 1 else f"{number} phones"


# Looking


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(as_json: bool) -> None:
    """Show queues, phones and jobs of each project, and what is stuck.

    A phone is stuck that the cloud says is busy while no job of this pool is on it. Nothing is written, and no server
    is needed; what the cloud or Taskcluster does not tell is unknown.
    """
    with open_database(must_exist=True) as (settings, database):
        must_be_up_to_date(database)
        projects = _projects(settings)
        clock, lambdatest = Clock(), settings.lambdatest
        queues = Taskcluster(lambdatest.taskcluster, lambdatest.provisioner)
        cloud = LambdaTestLauncher(BackendContext(clock, None, lambdatest=lambdatest))
        found = state.status(lambdatest, projects, database, cloud, queues, clock, settings.testing.speed)
    if as_json:
        click.echo(json.dumps(_status_document(found), indent=2))
        return
    rows = [
        (
            each.name,
            yes_or_no(each.takes_part),
            _number(each.pending if each.takes_part else 0),
            _number(each.on_the_way if each.takes_part else 0),
            str(each.running),
            ", ".join(f"{number} {word}" for word, number in each.states.items()),
            ", ".join(each.quarantined),
        )
        for each in found.projects
    ]
    head = ("PROJECT", "TAKES PART", "PENDING", "ON THE WAY", "RUNNING", "PHONES", "QUARANTINED")
    click.echo(table(head, rows), nl=False)
    for each in found.projects:
        if each.trouble:
            click.echo(f"{each.name}: {each.trouble}", err=True)
    click.echo()
    if found.cloud_trouble:
        click.echo(f"The cloud: unknown: {found.cloud_trouble}", err=True)
        return
    phones = ", ".join(f"{number} {word}" for word, number in found.cloud_states.items()) or "none"
    click.echo(f"Phones in the cloud: {phones}")
    click.echo(f"Initiated jobs: {found.initiated} (nothing is started from {found.max_initiated} on)")
    lists = {
        "Stuck, busy without a job of this pool": [f"{udid} ({word})" for udid, word in found.stuck.items()],
        "Faulty": found.faulty,
        "Not in the cloud": found.missing,
        "Left alone after failed starts": [
            f"{udid} (until {until:%H:%M:%S} UTC)" for udid, until in found.left_alone.items()
        ],
    }
    for what, names in lists.items():
        if names:
            click.echo(f"{what}: {', '.join(names)}")


def _number(value: int | None) -> str:
    return "unknown" if value is None else str(value)


def _status_document(found: state.Status) -> dict[str, Any]:
    return {
        "projects": [
            {
                "name": each.name,
                "takes_part": each.takes_part,
                "lacks": list(each.lacks),
                "pending": each.pending,
                "on_the_way": each.on_the_way,
                "running": each.running,
                "phones": dict(each.states),
                "quarantined": list(each.quarantined),
                "trouble": each.trouble,
            }
            for each in found.projects
        ],
        "cloud": {
            "trouble": found.cloud_trouble,
            "phones": dict(found.cloud_states),
            "initiated": found.initiated,
            "max_initiated": found.max_initiated,
        },
        "stuck": dict(found.stuck),
        "faulty": list(found.faulty),
        "missing": list(found.missing),
        "left_alone": {udid: _iso(until) for udid, until in found.left_alone.items()},
    }


def _iso(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"


@main.command()
@click.option("--days", type=number_of_days, metavar="NUMBER", default=7, show_default=True, help="How many days back.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def report(days: float, as_json: bool) -> None:
    """Tell how many jobs succeeded, what failed where, and whether there are as many phones as the contract says.

    Jobs count that were asked for in the last days and have ended.
    """
    with open_database(must_exist=True) as (settings, database):
        must_be_up_to_date(database)
        now = Clock().now()
        found = state.report(_projects(settings), database, now - timedelta(days=days), now)
    if as_json:
        click.echo(json.dumps(_report_document(found), indent=2))
        return
    click.echo(f"Jobs from {_iso(found.start)} to {_iso(found.end)}\n")
    rows = [
        (each.name, str(each.jobs), str(each.succeeded), str(each.given_back), _percent(each.rate))
        for each in found.projects
    ]
    click.echo(table(("PROJECT", "JOBS", "SUCCEEDED", "GIVEN BACK", "SUCCESS"), rows))
    failures: list[tuple[str, ...]] = [
        (device, *(str(counts.get(phase, 0)) for phase in state.PHASES), str(sum(counts.values())))
        for device, counts in found.failures.items()
    ]
    if failures:
        total = found.by_phase
        failures.append(("all", *(str(total[phase]) for phase in state.PHASES), str(sum(total.values()))))
        head = ("FAILURES", *(phase.upper() for phase in state.PHASES), "SUM")
        click.echo(table(head, failures))
        click.echo(table(("REASON", "JOBS"), [(reason, str(number)) for reason, number in found.reasons.items()]))
    click.echo(table(("DEVICE GROUP", "PHONES"), [(name, str(number)) for name, number in found.groups.items()]))
    click.echo(_contract(found))


def _contract(found: state.Report) -> str:
    contract, phones = found.contract_device_count, found.phones
    if contract is None:
        return f"{_phones(phones)} in all; the projects file has no contract_device_count."
    if phones == contract:
        return f"{_phones(phones)} in all, as many as the contract is for."
    more = f"{phones - contract} more than" if phones > contract else f"{contract - phones} fewer than"
    return f"{_phones(phones)} in all, {more} the contract is for ({contract})."


def _percent(rate: float | None) -> str:
    return "" if rate is None else f"{100 * rate:.1f} %"


def _report_document(found: state.Report) -> dict[str, Any]:
    return {
        "start": _iso(found.start),
        "end": _iso(found.end),
        "projects": [
            {
                "name": each.name,
                "jobs": each.jobs,
                "succeeded": each.succeeded,
                "given_back": each.given_back,
                "success_rate": each.rate,
            }
            for each in found.projects
        ],
        "failures": {
            "by_phase": found.by_phase,
            "by_phone": {name: dict(each) for name, each in found.failures.items()},
        },
        "reasons": dict(found.reasons),
        "groups": dict(found.groups),
        "phones": found.phones,
        "contract_device_count": found.contract_device_count,
    }


# Starting by hand


@main.command("start-job")
@click.argument("project")
@click.option("--udid", help="On this phone.")
@click.option("--type", "type_os", metavar="NAME-OS", help="On any phone of this type, such as 'Galaxy A55 5G-14'.")
@click.option("--count", type=click.IntRange(1, 100), default=1, show_default=True, help="How many jobs.")
@click.option(
    "--concurrency", type=click.IntRange(1, 100), default=1, show_default=True, help="On how many phones each job runs."
)
@click.option("--foreground", is_flag=True, help="Wait until all have ended; status 1 unless all went well.")
@click.option("--wait", "waits", type=wait, default=0, metavar="DURATION", help="How long to wait for phones.")
@click.option("--duration", "lasts", type=duration, metavar="DURATION", help="For how long at most, from now.")
@click.option(
    "--server",
    "servers",
    multiple=True,
    metavar="URL",
    help="Imaging server; repeatable.  [env: MOZPOOL_SERVERS; default: http://127.0.0.1:8080]",
)
@click.option("--assignee", envvar="MOZPOOL_ASSIGNEE", show_envvar=True, help="For whom.  [default: user@host]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def start_job(
    ctx: click.Context,
    project: str,
    udid: str | None,
    type_os: str | None,
    count: int,
    concurrency: int,
    foreground: bool,
    waits: float,
    lasts: float | None,
    servers: tuple[str, ...],
    assignee: str | None,
    as_json: bool,
) -> None:
    """Start jobs of PROJECT by hand, whether tasks are pending or not.

    Each phone is claimed first, as everybody's are. Without --udid and --type it is any free phone of the project.
    """
    if udid is not None and (type_os is not None or concurrency > 1 or count > 1):
        raise click.UsageError("--udid names one phone: --type, --count and --concurrency are of no use with it")
    kind = _kind(type_os)
    settings = load(ctx.obj)
    _check_project(settings, project)
    named = " ".join(servers) or os.environ.get("MOZPOOL_SERVERS", "").strip() or "http://127.0.0.1:8080"
    try:
        client = Client(named, assignee=assignee or default_assignee())
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--server or MOZPOOL_SERVERS") from None
    except errors.ClientError as error:
        raise click.UsageError(error.message) from None
    lasts = lasts or settings.lambdatest.job_limit + STARTING + CLEANING
    try:
        made = []
        for _ in range(count):
            made += _ask(client, project, udid, kind, concurrency, waits, lasts)
        if foreground:
            made = [_watch(client, request, quiet=as_json) for request in made]
    except errors.ClientError as error:
        click.echo(f"mld: {error.message}", err=True)
        sys.exit(USAGE if isinstance(error, errors.BadRequest) else FAILED)
    well = all(_went_well(request, ended=foreground) for request in made)
    if as_json:
        keys = ("id", "state", "assigned_device", "reason")
        click.echo(json.dumps([{key: getattr(request, key) for key in keys} for request in made], indent=2))
    elif not foreground:
        for request in made:
            click.echo(_told(request))
    sys.exit(0 if well else FAILED)


def _kind(type_os: str | None) -> tuple[str | None, str | None]:
    """Hardware type and model from NAME-OS, as the cloud has them."""
    if type_os is None:
        return None, None
    name, dash, version = type_os.rpartition("-")
    if not dash or not name or not version:
        raise click.BadParameter(f"{type_os!r} is not NAME-OS, such as 'Galaxy A55 5G-14'", param_hint="--type")
    return name, version


def _check_project(settings: Settings, project: str) -> None:
    """Find typing errors where the projects are known here; a server elsewhere may know others. Raises BadInput."""
    if settings.lambdatest.projects is None:
        return
    known = _projects(settings).projects
    if project not in known:
        raise BadInput.value("PROJECT", project, f"one of the projects {', '.join(known) or '(there are none)'}")


def _ask(
    client: Client,
    project: str,
    udid: str | None,
    kind: tuple[str | None, str | None],
    concurrency: int,
    waits: float,
    lasts: float,
) -> list[Request]:
    """Make the requests for one job; when one of several gets no phone, the others are given back."""
    wanted = {"project": project}
    if concurrency > 1:
        wanted |= {"group": uuid.uuid4().hex, "phones": str(concurrency)}
    made: list[Request] = []
    for _ in range(concurrency):
        made.append(
            client.request(
                udid or ANY,
                image=images.JOB,
                duration=lasts,
                environment=ANY if udid else project,
                boot_config=wanted,
                wait=waits,
                hardware_type=kind[0],
                hardware_model=kind[1],
            )
        )
        if made[-1].state in END_STATES:
            for request in made[:-1]:
                client.return_request(request.id)
            break
    return made[-1:] if made[-1].state in END_STATES else made


def _watch(client: Client, request: Request, *, quiet: bool) -> Request:
    """Say how it goes until the request has ended; answer the request as it is then."""
    while True:
        if not quiet:
            click.echo(_told(request))
        seen = request.state
        while request.state == seen:
            if seen in END_STATES:
                return request
            client.status(request.id, wait=POLL, state=seen)
            request = client.get_request(request.id)


def _told(request: Request) -> str:
    device = request.assigned_device or request.last_device
    words = [f"request {request.id}", request.state, f"on {device}" if device else "", request.reason or ""]
    return ": ".join(word for word in words if word)


def _went_well(request: Request, *, ended: bool) -> bool:
    if ended:
        return request.state == "closed" and SUCCEEDED.search(request.reason or "") is not None
    return request.state not in END_STATES


if __name__ == "__main__":
    main()
