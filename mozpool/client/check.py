# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""``mozpool check``: how a pool is doing, as Nagios, Icinga and their kind want to be told.

One line on standard output with the worst that was found, performance data behind ``|``, details on further lines, and
the exit code 0 OK, 1 WARNING, 2 CRITICAL or 3 UNKNOWN. Whatever goes wrong is told in that form too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, NoReturn

import click

from mozpool.client.api import Client
from mozpool.client.errors import ClientError, NotFound, ServerUnavailable
from mozpool.client.models import PoolStatus
from mozpool.client.output import plain
from mozpool.client.values import duration
from mozpool.clock import Clock

NAME = "check"

TRANSPORT_PART = 0.9
"""The part of the time limit after which a call is given up: what it says then is better than that time is over."""


class State(Enum):
    """What is found, in the order of how bad that is, with its exit code."""

    OK = 0
    WARNING = 1
    UNKNOWN = 3
    CRITICAL = 2


BADNESS = list(State)


@dataclass(frozen=True)
class Threshold:
    """A number that may not be exceeded, or a part of some whole in percent."""

    number: float
    percent: bool = False

    @classmethod
    def parse(cls, text: str) -> Threshold | None:
        """From ``5``, ``10%``, or ``none`` for no threshold."""
        if text == "none":
            return None
        found = re.fullmatch(r"(\d{1,9}(?:\.\d+)?)(%?)", text, re.ASCII)
        if found is None or (found[2] and float(found[1]) > 100):
            raise click.BadParameter(f"{text!r} is not a number, a part such as 10%, or none")
        return cls(float(found[1]), bool(found[2]))

    @classmethod
    def number_only(cls, text: str) -> Threshold | None:
        """From ``5`` or ``none``."""
        found = None if text.endswith("%") else cls.parse(text)
        if text.endswith("%"):
            raise click.BadParameter(f"{text!r} is not a number, or none")
        return found

    @classmethod
    def seconds(cls, text: str) -> Threshold | None:
        """From a duration or ``none``."""
        return None if text == "none" else cls(duration(text))

    def of(self, whole: float) -> float:
        """The number."""
        return self.number * whole / 100 if self.percent else self.number


@dataclass(frozen=True)
class Measure:
    """Something that is measured, and what may not be exceeded."""

    label: str
    value: float
    warning: float | None = None
    critical: float | None = None
    most: float | None = None
    unit: str = ""
    problem: str = ""
    """What is the matter when it exceeds a threshold."""

    @property
    def state(self) -> State:
        """By its thresholds."""
        if self.critical is not None and self.value > self.critical:
            return State.CRITICAL
        return State.WARNING if self.warning is not None and self.value > self.warning else State.OK

    def perfdata(self) -> str:
        """As ``label=value;warning;critical;least;most``."""
        limits = (self.warning, self.critical, 0.0, self.most)
        shown = ("" if limit is None else f"{limit:.10g}" for limit in limits)
        return ";".join((f"{self.label}={self.value:.10g}{self.unit}", *shown)).rstrip(";")


@dataclass
class Report:
    """What was found."""

    state: State = State.OK
    problems: list[str] = field(default_factory=list)
    summary: str = ""
    """What is said when nothing is the matter."""
    measures: list[Measure] = field(default_factory=list)
    details: list[str] = field(default_factory=list)

    def add(self, state: State, problem: str) -> None:
        """Something is the matter; what is worst comes first."""
        if BADNESS.index(state) > BADNESS.index(self.state):
            self.state = state
            self.problems.insert(0, problem)
        else:
            self.problems.append(problem)

    def text(self) -> str:
        """All lines."""
        line = f"MOZPOOL {self.state.name} - {clean('; '.join(self.problems) or self.summary)}"
        perfdata = " ".join(measure.perfdata() for measure in self.measures)
        return "\n".join([f"{line} | {perfdata}" if perfdata else line, *map(clean, self.details)])


def clean(text: str) -> str:
    """A text that neither ends its line nor begins performance data."""
    return plain(text).replace("|", "/")


def refuse(ctx: click.Context, error: click.UsageError) -> NoReturn:
    """End with UNKNOWN because of wrong usage."""
    click.echo(Report(State.UNKNOWN, [error.format_message()]).text())
    ctx.exit(State.UNKNOWN.value)


class Plugin(click.Command):
    """A command whose usage errors are UNKNOWN, too: a monitor would take the usual exit code 2 for CRITICAL."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the options."""
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            refuse(ctx, error)


def thresholds(
    name: str, what: str, kind: Callable[[str], Threshold | None], warning: str, critical: str
) -> Callable[[Any], Any]:
    """The two options for one thing that is measured."""

    def decorate(command: Any) -> Any:
        for level, default in (("critical", critical), ("warning", warning)):
            command = click.option(
                f"--{name}-{level}",
                type=kind,
                default=default,
                show_default=True,
                metavar="LIMIT",
                help=f"{level.upper()} when {what}.",
            )(command)
        return command

    return decorate


@click.command(NAME, cls=Plugin)
@click.option("--server", "servers", multiple=True, metavar="URL", help="As before the command.")
@click.option(
    "--timeout",
    type=duration,
    default="10s",
    show_default=True,
    metavar="SECONDS",
    help="How long all of it may take; no answer by then is CRITICAL.",
)
@thresholds("failed", "more devices have failed", Threshold.parse, "10%", "25%")
@thresholds("waiting", "more requests wait", Threshold.number_only, "none", "none")
@thresholds("queue-age", "a request has waited for longer", Threshold.seconds, "none", "none")
@thresholds("servers", "more imaging servers are missing", Threshold.parse, "none", "0")
@thresholds("relay-boards", "more relay boards have failed", Threshold.parse, "0", "none")
@click.option(
    "--heartbeat-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Look at this imaging server's [server] heartbeat_file, too: CRITICAL when it is too old.",
)
@click.option(
    "--max-age", type=duration, default="60s", show_default=True, metavar="SECONDS", help="How old that file may be."
)
@click.pass_context
def check(ctx: click.Context, /, servers: tuple[str, ...], heartbeat_file: Path | None, **options: Any) -> None:
    """Tell how the pool is doing, as a Nagios or Icinga plugin.

    A LIMIT is a number, or a part of all such as 10% where there is an all, or none; of waiting, it is a time such as
    30m. More than that is a problem.

    Exit codes: 0 OK, 1 WARNING, 2 CRITICAL (also when no server answers), 3 UNKNOWN (also for wrong usage, which
    other commands end with 2, and when the answer can't be understood).
    """
    common: Client = ctx.obj
    try:
        client = Client(
            servers or common.servers,
            timeout=options["timeout"] * TRANSPORT_PART,
            assignee=common.assignee,
            token=common.token or "",
        )
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--server") from None
    report = Report()
    if heartbeat_file is not None:
        look_at_file(report, heartbeat_file, options["max_age"], client.clock)
    look_at_pool(report, client, options)
    click.echo(report.text())
    ctx.exit(report.state.value)


def look_at_file(report: Report, file: Path, most: float, clock: Clock) -> None:
    """Report how old a heartbeat file is; it may be ``most`` seconds old."""
    try:
        age = clock.now().timestamp() - file.stat().st_mtime
    except FileNotFoundError:
        report.add(State.CRITICAL, f"there is no heartbeat file {file}")
        return
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        report.add(State.UNKNOWN, f"{file} can't be looked at: {reason}")
        return
    report.measures.append(Measure("heartbeat_age", round(max(0.0, age), 1), critical=most, unit="s"))
    if age > most:
        report.add(State.CRITICAL, f"the drivers have made no progress for {age:.0f} s: {file}")
    elif age < -most:
        report.add(State.UNKNOWN, f"{file} is of {-age:.0f} s in the future: the clock has been set back")


def look_at_pool(report: Report, client: Client, options: dict[str, Any]) -> None:
    """Ask a server, within the time limit, and report what it says."""
    limit = options["timeout"]
    answers: list[PoolStatus | Exception] = []
    answered = client.clock.event()

    def ask() -> None:
        try:
            answers.append(client.pool_status())
        except Exception as error:
            answers.append(error)
        answered.set()

    # The name server may take longer than any time limit of a call.
    client.clock.start_thread(ask, "check")
    client.clock.wait(answered, limit)
    answer = answers[0] if answers else ServerUnavailable(f"no answer within {limit:g} s")
    match answer:
        case PoolStatus():
            judge(report, answer, options)
        case ServerUnavailable():
            report.add(State.CRITICAL, answer.message)
        case NotFound():
            report.add(State.UNKNOWN, f"{answer.message}: a server of this version is needed")
        case ClientError():
            report.add(State.UNKNOWN, answer.message)
        case _:
            report.add(State.UNKNOWN, f"the check itself failed: {answer!r}")


def judge(report: Report, status: PoolStatus, options: dict[str, Any]) -> None:
    """Report what is the matter with a pool."""
    devices = status.devices
    total, missing = devices["total"], len(status.missing_servers)
    failed, boards = devices["failed"], len(status.failed_relay_boards)
    longest = math.ceil(status.longest_wait)

    def measure(label: str, value: float, problem: str, whole: float | None = None, unit: str = "") -> Measure:
        warning, critical = options[f"{label}_warning"], options[f"{label}_critical"]
        return Measure(
            label,
            value,
            None if warning is None else warning.of(whole or 0),
            None if critical is None else critical.of(whole or 0),
            whole,
            unit,
            problem,
        )

    measures = [
        measure("failed", failed, f"{failed} of {counted(total, 'device')} failed", total),
        measure("servers", missing, f"{listed('imaging server', status.missing_servers)} not there", status.servers),
        measure(
            "relay_boards", boards, f"{listed('relay board', status.failed_relay_boards)} failing", status.relay_boards
        ),
        measure("waiting", status.waiting, f"{counted(status.waiting, 'request')} waiting"),
        measure("queue_age", longest, f"the oldest request that waits was made {longest} s ago", unit="s"),
    ]
    for bad in sorted(measures, key=lambda found: -BADNESS.index(found.state)):
        if bad.state is not State.OK:
            report.add(bad.state, bad.problem)
    report.measures += measures
    report.measures += [Measure(name, devices[name], most=total) for name in ("in_use", "idle", "processing")]
    report.measures.append(Measure("out_of_service", devices["out_of_service"], most=total))
    report.summary = (
        f"{counted(total, 'device')}: {devices['in_use']} in use, {devices['idle']} idle, {failed} failed; "
        f"{counted(status.waiting, 'request')} waiting"
    )
    if status.person_needed:
        names = ", ".join(f"{name} ({state})" for name, state in status.person_needed.items())
        report.details.append(f"devices that need a person: {names}")
    for name, found in (("servers", status.missing_servers), ("relay boards", status.failed_relay_boards)):
        if found:
            report.details.append(f"{name}: {', '.join(found)}")


def counted(number: int, what: str) -> str:
    """E.g. ``1 device`` and ``2 devices``."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def listed(what: str, names: Iterable[str]) -> str:
    """One name in full, several as their number: the line must stay short."""
    found = list(names)
    return f"{what} {found[0]} is" if len(found) == 1 else f"{counted(len(found), what)} are"
