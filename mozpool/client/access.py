# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The commands ``mozpool token``, ``mozpool team`` and ``mozpool revoke``: who may do what (docs/access.md)."""

from __future__ import annotations

from typing import Any

import click

from mozpool.client import output
from mozpool.client.api import Client
from mozpool.client.models import Team, Token
from mozpool.client.values import duration

ROLES = ("viewer", "user", "operator", "admin")


@click.command()
@click.argument("request_id", metavar="ID", type=click.IntRange(1))
@click.option("--reason", help="Why; whoever had it is told.")
@click.pass_obj
def revoke(client: Client, request_id: int, reason: str | None) -> None:
    """Take a request, and its device, from whoever has it (operators).

    Their calls for the device are refused from now on, and it is proven before the next one gets it.
    """
    client.revoke(request_id, reason)


@click.group()
def token() -> None:
    """Tokens, by which machines and people say who they are."""


@token.command("create")
@click.argument("name", required=False)
@click.option("--role", type=click.Choice(ROLES), help="What it may do; at most your own.  [default: user]")
@click.option("--team", help="Whose quota counts.  [default: your own]")
@click.option("--note", help="What it is used for.")
@click.option("--duration", type=duration, metavar="DURATION", help="How long it is good, such as 90d.  [for ever]")
@output.json_option
@click.pass_obj
def create_token(client: Client, /, name: str | None, as_json: bool, **options: Any) -> None:
    """Make a token for yourself or, as an admin, for NAME: a person's e-mail address, or a machine's host name.

    It is printed this once, and stored nowhere.
    """
    made = client.create_token(name, **options)
    if as_json:
        click.echo(output.document(made.raw))
        return
    until = f", good until {output.moment(made.expires)} UTC" if made.expires else ""
    output.note(f"token {made.id} of {output.plain(made.name)}, {made.role}{until}. Keep it: it is not shown again.")
    click.echo(made.text)


@token.command("list")
@click.option("--name", help="Only those of this name.")
@click.option("--all", "everything", is_flag=True, help="Also those that were revoked or have expired.")
@output.json_option
@click.pass_obj
def list_tokens(client: Client, name: str | None, everything: bool, as_json: bool) -> None:
    """List the tokens that are good: your own or, as an admin, all."""
    found = client.tokens(name, everything=everything)
    if as_json:
        click.echo(output.document([each.raw for each in found]))
        return
    rows = [_token_row(each, everything) for each in found]
    head = ("ID", "NAME", "ROLE", "TEAM", "NOTE", "CREATED BY", "EXPIRES (UTC)", "LAST USED (UTC)", "FROM")
    output.show_table((*head, "REVOKED (UTC)") if everything else head, rows)


def _token_row(each: Token, everything: bool) -> tuple[object, ...]:
    row = (
        each.id,
        each.name,
        each.role,
        each.team,
        each.note,
        each.created_by,
        output.moment(each.expires),
        output.moment(each.last_used),
        each.last_address,
    )
    return (*row, output.moment(each.revoked)) if everything else row


@token.command("revoke")
@click.argument("token_id", metavar="ID", type=click.IntRange(1))
@click.pass_obj
def revoke_token(client: Client, token_id: int) -> None:
    """Let a token be good for nothing from now on."""
    client.revoke_token(token_id)


@token.command("show")
@output.json_option
@click.pass_obj
def whoami(client: Client, as_json: bool) -> None:
    """Show who you are for the server, by the token that this command has."""
    said = client.whoami()
    if as_json:
        click.echo(output.document(said))
        return
    for key in ("name", "kind", "role", "team", "token"):
        if said.get(key) is not None:
            click.echo(f"{key + ':':<8}{output.plain(said[key])}")


@click.group()
def team() -> None:
    """Teams, and what their people may have."""


_limits = [
    click.option("--max-devices", type=click.IntRange(0), help="Devices at a time.  [as many as there are]"),
    click.option(
        "--max-duration", type=duration, metavar="DURATION", help="How long, renewals included.  [as long as anybody]"
    ),
    click.option(
        "--environment", "environments", multiple=True, help="An environment that it may use; repeatable.  [all]"
    ),
    click.option("--group", "groups", multiple=True, help="A group of the OpenID provider; repeatable."),
]


def _with_limits(command: Any) -> Any:
    for option in reversed(_limits):
        command = option(command)
    return command


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in options.items() if value}


@team.command("create")
@click.argument("name")
@_with_limits
@click.pass_obj
def create_team(client: Client, /, name: str, **options: Any) -> None:
    """Add a team (admins)."""
    none = {"max_devices": 0} if options["max_devices"] == 0 else {}
    client.create_team(name, **_given(options), **none)


@team.command("change")
@click.argument("name")
@_with_limits
@click.option(
    "--without",
    type=click.Choice(("max_devices", "max_duration", "environments")),
    multiple=True,
    help="A limit that there is to be no more; repeatable.",
)
@click.pass_obj
def change_team(client: Client, /, name: str, **options: Any) -> None:
    """Change a team (admins); what is not named stays.

    Requests that wait are served by the new limits; devices that it has are not taken away.
    """
    none = {"max_devices": 0} if options["max_devices"] == 0 else {}
    client.change_team(name, **_given(options), **none)


@team.command("delete")
@click.argument("name")
@click.pass_obj
def delete_team(client: Client, name: str) -> None:
    """Delete a team that has no good tokens and no open requests (admins)."""
    client.delete_team(name)


@team.command("list")
@output.json_option
@click.pass_obj
def list_teams(client: Client, as_json: bool) -> None:
    """List the teams, their limits, and how many devices they have."""
    found = client.teams()
    if as_json:
        click.echo(output.document([each.raw for each in found]))
        return
    head = ("NAME", "DEVICES", "AT MOST", "SECONDS AT MOST", "ENVIRONMENTS", "GROUPS")
    output.show_table(head, [_team_row(each) for each in found])


def _team_row(each: Team) -> tuple[object, ...]:
    environments = "all" if each.environments is None else " ".join(each.environments)
    return each.name, each.devices, each.max_devices, each.max_duration, environments, " ".join(each.groups)
