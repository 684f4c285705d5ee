# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The command ``mozpool audit``."""

from __future__ import annotations

import click

from mozpool.client import output
from mozpool.client.api import Client


@click.command()
@click.option("--who", metavar="NAME", help="Only what they did.")
@click.option("--target", metavar="NAME", help="Only what was done to it: a device, the id of a request, 'image b2g'.")
@click.option("--action", metavar="NAME", help="Only this, such as request_return.")
@click.option("--kind", metavar="NAME", help="Only what such callers did: person, token, command, ...")
@click.option("--outcome", type=click.Choice(["ok", "refused", "failed"]), help="Only what ended so.")
@click.option("--since", metavar="TIME", help="From then on: 2026-11-24T12:00, in UTC.")
@click.option("--until", metavar="TIME", help="Until then.")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="The newest so many rows.")
@click.option("--csv", "as_csv", is_flag=True, help="Print it as CSV.")
@output.json_option
@click.pass_obj
def audit(client: Client, /, as_csv: bool, as_json: bool, limit: int, **query: str | None) -> None:
    """Show who changed what, the newest first.

    docs/audit.md says what is in it.
    """
    if as_csv and as_json:
        raise click.UsageError("--csv and --json exclude each other")
    if as_csv:
        click.echo(client.audit_csv(limit=limit, **query).replace("\r\n", "\n"), nl=False)
        return
    entries = client.audit(limit=limit, **query)
    if as_json:
        click.echo(output.document([entry.raw for entry in entries]))
        return
    output.show_table(
        ("TIME (UTC)", "WHO", "FROM", "ACTION", "ON", "OUTCOME"),
        [
            (
                output.moment(entry.time),
                f"{entry.who or '-'} ({entry.kind})",
                entry.address,
                entry.action,
                entry.target,
                entry.outcome,
            )
            for entry in entries
        ],
    )
