# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The command ``mozpool``, for people and scripts."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import click

from mozpool import __version__
from mozpool.client import access, output
from mozpool.client.api import ANY, Client, default_assignee
from mozpool.client.audit import audit
from mozpool.client.check import NAME as CHECK
from mozpool.client.check import check, refuse
from mozpool.client.child import NOT_EXECUTABLE, NOT_FOUND, Child, Signals, Stopped
from mozpool.client.credentials import TOKEN, TOKEN_FILE, read_token
from mozpool.client.errors import (
    BadRequest,
    ClientError,
    Conflict,
    NotAllowed,
    NotFound,
    ServerUnavailable,
    WaitTimeout,
)
from mozpool.client.hold import make_request
from mozpool.client.models import Device, Job, Request
from mozpool.client.report import report
from mozpool.client.values import duration, pair, wait

FAILED, USAGE, UNAVAILABLE, NO_SUCH, TAKEN, NOT_ALLOWED, TIMED_OUT, NOT_RUN = 1, 2, 3, 4, 5, 6, 124, 125

EXIT_CODES = """\
\b
Exit codes:
  0    all is well
  1    the request failed: no device, or none that works
  2    wrong usage, or input that the server refused
  3    no server answers
  4    there is no such device, request or image
  5    the device is taken
  6    the server wants to know who you are (--token-file), or you may not do this
  124  the device was not ready in the time that was given (--ready-within)
  130  interrupted (in general 128 + the number of the signal)
`run` ends with the code of its command; or with 126 or 127 when that can't be executed or found, and with 125 when
there was no device for it, or the device was lost meanwhile: the reason is on standard error.
`check` has those of monitoring plugins: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN.
"""

MISSING = re.compile(r"\bis missing\b")
"""How servers say that a boot config key is not there."""

POLL = 2.0
"""Seconds between two looks at a request whose progress somebody watches."""

F = TypeVar("F", bound=Callable[..., Any])


class Commands(click.Group):
    """Ends commands whose errors are meant for a person with one sentence and the exit code of their kind."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the options before the command."""
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            if CHECK in given:
                refuse(ctx, error)
            raise

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            if ctx.invoked_subcommand == CHECK:
                refuse(ctx, error)
            raise
        except ClientError as error:
            _tell(error)
            if ctx.meta.get("json"):
                code = error.code or re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(error).__name__).lower()
                click.echo(output.document({"error": {"code": code, "message": error.message}}))
            ctx.exit(exit_code(error))
        except Stopped as stopped:
            ctx.exit(stopped.exit_code)
        except (KeyboardInterrupt, click.Abort):
            ctx.exit(128 + signal.SIGINT)


def _tell(error: ClientError) -> None:
    """Say what went wrong, and what helps where it is known."""
    output.error_line(error.message)
    if isinstance(error, BadRequest) and error.field and MISSING.search(error.message):
        # All that every request needs is always sent: what is missing is one of the image's own keys.
        output.error_line(f"name it with --boot-config {error.field}=VALUE")


def exit_code(error: ClientError) -> int:
    """The documented exit code for an error."""
    for kind, code in (
        (ServerUnavailable, UNAVAILABLE),
        (NotFound, NO_SUCH),
        (Conflict, TAKEN),
        (NotAllowed, NOT_ALLOWED),
        (BadRequest, USAGE),
        (WaitTimeout, TIMED_OUT),
    ):
        if isinstance(error, kind):
            return code
    return FAILED


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]}, epilog=EXIT_CODES)
@click.option(
    "--server",
    "servers",
    multiple=True,
    metavar="URL",
    help="Imaging server; repeat it for each one that there is: they are tried in random order. "
    "[env: MOZPOOL_SERVERS, separated by spaces or commas; default: http://127.0.0.1:8080]",
)
@click.option(
    "--assignee", envvar="MOZPOOL_ASSIGNEE", show_envvar=True, help="For whom devices are.  [default: user@host]"
)
@click.option(
    "--token",
    envvar=TOKEN,
    show_envvar=True,
    help="Says who you are, where servers ask. Others on this machine can read it here: better use the variable or a "
    "file.",
)
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    envvar=TOKEN_FILE,
    show_envvar=True,
    help="Holds the token instead.  [default: ~/.config/mozpool/token, if it is there]",
)
@click.option(
    "--timeout",
    type=duration,
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="How long a call to the servers may take, with all repetitions.",
)
@click.version_option(__version__, prog_name="mozpool")
@click.pass_context
def main(
    ctx: click.Context,
    servers: tuple[str, ...],
    assignee: str | None,
    token: str | None,
    token_file: Path | None,
    timeout: float,
) -> None:
    """Borrow devices from a Mozpool, use them, and give them back."""
    named = " ".join(servers) or os.environ.get("MOZPOOL_SERVERS", "").strip() or "http://127.0.0.1:8080"
    try:
        if token is None and token_file is not None:
            token = read_token(token_file)
        ctx.obj = Client(named, timeout=timeout, assignee=assignee or default_assignee(), token=token)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--server or MOZPOOL_SERVERS") from None
    except ClientError as error:
        raise click.UsageError(error.message) from None


request_options = [
    click.argument("image"),
    click.option("--device", default=ANY, show_default=True, help="The name of a device, or any."),
    click.option("--environment", default=ANY, show_default=True, help="Take one of this environment."),
    click.option("--hardware-type", help="Take one of this type, such as panda."),
    click.option("--hardware-model", help="Take one of this model."),
    click.option(
        "--label",
        "labels",
        type=pair,
        metavar="NAME=VALUE",
        multiple=True,
        help="Take one with this label; repeatable.",
    ),
    click.option(
        "--duration",
        type=duration,
        default="30m",
        show_default=True,
        help="How long it is wanted, from now: seconds, or 45s, 30m, 2h, 1h30m.",
    ),
    click.option(
        "--wait",
        type=wait,
        metavar="DURATION",
        help="How long the request may stay in the queue.  [default: the server's; not at all for a named device]",
    ),
    click.option("--priority", type=int, default=0, show_default=True, help="Higher ones are served first."),
    click.option(
        "--boot-config",
        "boot_config",
        type=pair,
        metavar="NAME=VALUE",
        multiple=True,
        help="What the image needs, such as b2gbase=URL; repeatable.  See `mozpool images`.",
    ),
    click.option("--ready-within", type=duration, help="Give up when the device is not ready by then."),
]


def with_request_options(command: F) -> F:
    """Add what `request` and `run` have in common."""
    for option in reversed(request_options):
        command = option(command)
    return command


def _wanted(options: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `Client.request`, from the options."""
    return {**options, "labels": dict(options["labels"]), "boot_config": dict(options["boot_config"])}


# Looking


def _state(device: Device) -> str:
    """Its state, with what else keeps it from being lent."""
    more = [f"server {device.server_state}"] if device.server_state != "up" else []
    more += ["leaving"] if device.leaving else []
    return f"{device.state} ({', '.join(more)})" if more else device.state


@main.command()
@click.option("--state", help="Only those in this state, such as ready.")
@click.option("--free", is_flag=True, help="Only those that can be lent at once.")
@click.option("--image", help="Only those that hold this image.")
@click.option("--environment", help="Only those of this environment.")
@click.option("--hardware-type", help="Only those of this type.")
@click.option("--hardware-model", help="Only those of this model.")
@click.option("--label", "labels", type=pair, metavar="NAME=VALUE", multiple=True, help="Only those with this label.")
@output.json_option
@click.pass_obj
def devices(
    client: Client, /, as_json: bool, free: bool, labels: tuple[tuple[str, str], ...], **equal: str | None
) -> None:
    """List the devices, their states and addresses, and who has them."""
    if free:
        if equal["state"] not in (None, "ready"):
            raise click.UsageError("free devices are in state ready")
        equal["state"] = "ready"
    found = client.devices(claimed=False if free else None, labels=dict(labels), **equal)
    if as_json:
        click.echo(output.document([device.raw for device in found]))
        return
    # Where the list of devices does not tell who has them, the list of requests does.
    untold = any(device.request_id and not device.assignee for device in found)
    holders = {request.id: request for request in client.requests()} if untold else {}
    jobs = any(device.job for device in found)
    rows = []
    for device in found:
        holder = holders.get(device.request_id or 0)
        rows.append(
            (
                device.name,
                _state(device),
                device.address,
                device.image,
                device.environment,
                device.request_id,
                device.assignee or (holder.assignee if holder else None),
                output.moment(device.expires or (holder.expires if holder else None)),
                *([_job_number(device.job)] if jobs else []),
            )
        )
    head = ("NAME", "STATE", "ADDRESS", "IMAGE", "ENVIRONMENT", "REQUEST", "HELD BY", "UNTIL (UTC)")
    output.show_table((*head, "JOB") if jobs else head, rows)


@main.command()
@output.json_option
@click.pass_obj
def images(client: Client, as_json: bool) -> None:
    """List the images, and the boot config keys that they need."""
    found = client.images()
    if as_json:
        click.echo(output.document([image.raw for image in found]))
        return
    rows = [(image.name, " ".join(image.boot_config_keys), "yes" if image.can_reuse else "no") for image in found]
    output.show_table(("NAME", "BOOT CONFIG KEYS", "REUSABLE"), rows)


@main.command()
@click.option("--all", "everything", is_flag=True, help="Closed ones, too.")
@click.option("--mine", is_flag=True, help="Only those of --assignee.")
@click.option("--job", metavar="X", help="Only those of this job: its number, id or URL, or its task's id or URL.")
@output.json_option
@click.pass_obj
def requests(client: Client, as_json: bool, everything: bool, mine: bool, job: str | None) -> None:
    """List requests that are open or failed.

    DEVICE is the device that a request has, or had last if it has ended; JOB the number of the job that it was for.
    """
    found = client.requests(include_closed=everything, assignee=client.assignee if mine else None, job=job)
    if mine:
        # Old servers don't know the filter.
        found = [request for request in found if request.assignee == client.assignee]
    if as_json:
        click.echo(output.document([request.raw for request in found]))
        return
    jobs = any(request.job for request in found)
    rows = [
        (
            request.id,
            request.state,
            request.assigned_device or request.last_device,
            request.requested_device,
            request.image,
            request.assignee,
            output.moment(request.expires),
            *([_job_number(request.job)] if jobs else []),
        )
        for request in found
    ]
    head = ("ID", "STATE", "DEVICE", "ASKED FOR", "IMAGE", "ASSIGNEE", "EXPIRES (UTC)")
    output.show_table((*head, "JOB") if jobs else head, rows)


def _job_number(job: Job | None) -> int | None:
    return None if job is None else job.number


@main.command()
@click.argument("request_id", metavar="ID", type=click.IntRange(1))
@output.json_option
@click.pass_obj
def status(client: Client, request_id: int, as_json: bool) -> None:
    """Show a request, and why it waits or failed."""
    request = client.get_request(request_id)
    if as_json:
        click.echo(output.document(request.raw))
        return
    facts = [
        ("request", request.id),
        ("state", request.state),
        ("device", request.assigned_device),
        ("device state", request.device_state),
        ("asked for", request.requested_device),
        ("image", request.image),
        ("environment", request.environment),
        ("assignee", request.assignee),
        ("expires (UTC)", output.moment(request.expires)),
        ("waits because" if request.waiting else "reason", request.reason),
        ("place in queue", request.waiting.place if request.waiting else None),
    ]
    if request.job is not None:
        facts += [
            ("project", request.job.project),
            ("job", request.job.number),
            ("job status", request.job.status),
            ("job page", request.job.url),
            ("task page", request.job.task_url),
        ]
    for name, value in facts:
        if value not in (None, ""):
            click.echo(f"{name + ':':<16}{output.plain(value)}")


@main.command()
@click.argument("target", metavar="ID|DEVICE")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="How many lines at most.")
@output.json_option
@click.pass_obj
def log(client: Client, target: str, limit: int, as_json: bool) -> None:
    """Show the log of a request or a device."""
    lines = client.log(int(target) if target.isdecimal() else target, limit=limit)
    if as_json:
        click.echo(output.document([{**vars(line), "timestamp": output.moment(line.timestamp)} for line in lines]))
        return
    for line in lines:
        click.echo(f"{output.moment(line.timestamp)} {output.plain(line.source)}: {output.plain(line.message)}")


# Requests


@main.command()
@with_request_options
@click.option("--no-wait", is_flag=True, help="Don't wait until the device is ready.")
@output.json_option
@click.pass_obj
def request(client: Client, /, ready_within: float | None, no_wait: bool, as_json: bool, **options: Any) -> None:
    """Ask for a device with IMAGE on it, and wait until it is ready.

    Interrupted while it waits (Ctrl-C), the request is returned.
    """
    with Signals() as signals:
        made = make_request(client, _wanted(options))
        if not no_wait:
            try:
                with _progress(client) as show:
                    made = client.wait_ready(made.id, ready_within, show, poll=POLL)
            except (ClientError, Stopped):
                signals.ignore()
                _return(client, made.id)
                raise
    if as_json:
        click.echo(output.document(made.raw))
    elif no_wait:
        click.echo(f"request {made.id}{f': {made.assigned_device}' if made.assigned_device else ''}")
    else:
        click.echo(f"request {made.id}: {_ready(made)}")
        output.note(f"Give it back with: mozpool return {made.id}")


@contextmanager
def _progress(client: Client) -> Iterator[output.ProgressLines]:
    """Progress on standard error."""
    lines = output.ProgressLines(client, sys.stderr)
    try:
        yield lines
    finally:
        lines.close()


def _ready(made: Request) -> str:
    until = f", until {output.moment(made.expires)} UTC" if made.expires else ""
    return f"{output.plain(made.assigned_device)} is ready{until}"


def _return(client: Client, request_id: int) -> None:
    """Give back what came of a call that failed or was stopped, and say so; what fails is told, too."""
    try:
        client.return_request(request_id)
        output.error_line(f"request {request_id} was returned")
    except ClientError as error:
        output.error_line(f"request {request_id} was not returned and is open until it expires: {error.message}")


@main.command()
@click.argument("request_id", metavar="ID", type=click.IntRange(1))
@click.argument("duration", type=duration)
@click.pass_obj
def renew(client: Client, request_id: int, duration: float) -> None:
    """Keep a request's device for DURATION from now."""
    client.renew(request_id, duration)


@main.command("return")
@click.argument("target", metavar="ID|DEVICE")
@click.pass_obj
def return_(client: Client, target: str) -> None:
    """Give a device back, by the request's id or its own name."""
    if target.isdecimal():
        client.return_request(int(target))
    else:
        client.return_device(target)


@main.command()
@with_request_options
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_context
def run(ctx: click.Context, /, ready_within: float | None, command: tuple[str, ...], **options: Any) -> None:
    """Run COMMAND while holding a device with IMAGE.

    That is: mozpool run IMAGE [OPTIONS] -- COMMAND...

    The command finds MOZPOOL_DEVICE, MOZPOOL_DEVICE_ADDRESS, MOZPOOL_REQUEST_ID and MOZPOOL_SERVER in its environment.
    The device is kept as long as it runs, and given back however it ends. Signals are handed on to it; after SIGTERM
    and SIGHUP it has ten seconds to end.
    """
    client: Client = ctx.obj
    child = Child(client.clock)
    code = None
    with Signals() as signals, _progress(client) as show:
        hold = client.hold(
            **_wanted(options),
            timeout=ready_within,
            on_change=show,
            on_lost=lambda error: child.send(signal.SIGTERM),
            poll=POLL,
        )
        try:
            with hold as held:
                code = _run(child, command, held, hold.request, signals)
        except ClientError as error:
            _tell(error)
            if code is None or hold.error is not None:
                code = NOT_RUN
        except Stopped as stopped:
            for note in getattr(stopped, "__notes__", ["the request was returned"]):
                output.error_line(f"stopped: {note}")
            raise
    ctx.exit(code)


def _run(child: Child, command: tuple[str, ...], device: Device, request: Request, signals: Signals) -> int:
    """Run the command for a device and return its exit code."""
    origin = urlsplit(request.url or "")
    environment = {
        **os.environ,
        "MOZPOOL_DEVICE": device.name,
        "MOZPOOL_DEVICE_ADDRESS": device.address,
        "MOZPOOL_REQUEST_ID": str(request.id),
        "MOZPOOL_SERVER": f"{origin.scheme}://{origin.netloc}" if origin.netloc else "",
    }
    try:
        return child.run(command, environment, signals)
    except OSError as error:
        output.error_line(f"{command[0]}: {error.strerror}")
        return NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE


# Devices


def _holder(ctx: click.Context, param: click.Parameter, value: int | None) -> int | None:
    """Below `mozpool run`, that device is acted on by its holder."""
    inherited = os.environ.get("MOZPOOL_REQUEST_ID", "")
    if value is None and inherited.isdecimal() and os.environ.get("MOZPOOL_DEVICE") == ctx.params.get("device"):
        return int(inherited)
    return value


holder_option = click.option(
    "--request",
    "request_id",
    type=click.IntRange(1),
    callback=_holder,
    help="Your request, to do it only as long as that has the device.  [default: the one of `mozpool run` below it]",
)


@main.command()
@click.argument("device", is_eager=True)
@holder_option
@click.pass_obj
def reboot(client: Client, device: str, request_id: int | None) -> None:
    """Reboot a device."""
    client.reboot(device, request_id=request_id)


@main.command()
@click.argument("device", is_eager=True)
@click.argument("image")
@click.option("--boot-config", type=pair, metavar="NAME=VALUE", multiple=True, help="What the image needs.")
@holder_option
@click.pass_obj
def flash(
    client: Client, device: str, image: str, boot_config: tuple[tuple[str, str], ...], request_id: int | None
) -> None:
    """Install IMAGE on a device."""
    client.flash(device, image, dict(boot_config), request_id=request_id)


@main.command()
@click.argument("device")
@click.option("--reason", help="Is written into the device's log.")
@click.pass_obj
def online(client: Client, device: str, reason: str | None) -> None:
    """Bring a device back into service: it is tested first."""
    client.set_status(device, "online", reason)


@main.command()
@click.argument("device")
@click.option("--reason", help="Is written into the device's log.")
@click.pass_obj
def offline(client: Client, device: str, reason: str | None) -> None:
    """Take a device out of service."""
    client.set_status(device, "offline", reason)


@main.command("exec")
@click.argument("device", is_eager=True)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--limit", type=duration, default="60s", show_default=True, help="How long the command may take.")
@holder_option
@output.json_option
@click.pass_context
def exec_(
    ctx: click.Context, device: str, command: tuple[str, ...], limit: float, request_id: int | None, as_json: bool
) -> None:
    """Run COMMAND on a device by its agent.

    That is: mozpool exec DEVICE -- COMMAND... It prints what COMMAND printed, and ends with its exit code where the
    agent tells it.
    """
    client: Client = ctx.obj
    result = client.agent_exec(device, command, limit, request_id=request_id)
    if as_json:
        click.echo(output.document(vars(result)))
    else:
        click.echo(result.output, nl=bool(result.output) and not result.output.endswith("\n"))
    ctx.exit((result.return_code or 0) & 255 or (FAILED if result.return_code else 0))


for command in (access.revoke, access.team, access.token, audit, check, report):
    main.add_command(command)

if __name__ == "__main__":
    main(prog_name="mozpool")
