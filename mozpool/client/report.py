# This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0.
# If a copy of the MPL was not distributed with this file, You can obtain one at https://mozilla.org/MPL/2.0/.

"""The command ``mozpool report``."""

from __future__ import annotations

import click

from mozpool.client import output, values
from mozpool.client.api import Client


@click.command()
@click.argument("name", required=False)
@click.option("--days", type=values.days, metavar="NUMBER", help="On the last so many days.  [default: 7]")
@click.option("--since", metavar="TIME", help="From then on, instead of --days: 2026-11-24T12:00, in UTC.")
@click.option("--until", metavar="TIME", help="Until then.  [default: now]")
@click.option("--environment", help="Only on devices of this environment.")
@click.option("--hardware-type", help="Only on devices of this type.")
@click.option("--hardware-model", help="Only on devices of this model.")
@click.option("--limit", type=click.IntRange(1), help="At most so many rows.")
@click.option("--csv", "as_csv", is_flag=True, help="Print it as CSV.")
@output.json_option
@click.pass_obj
def report(
    client: Client, /, name: str | None, as_csv: bool, as_json: bool, days: float | None, **query: str | None
) -> None:
    """Show a report on the use of the pool, or which ones there are.

    Without NAME it lists the reports. docs/reports.md says what their numbers mean.
    """
    query_given = {key: value for key, value in {"days": days, **query}.items() if value is not None}
    if as_csv and as_json:
        raise click.UsageError("--csv and --json exclude each other")
    if name is None:
        if as_csv or query_given:
            raise click.UsageError("name a report; without options, this command lists them")
        kinds = client.reports()
        if as_json:
            click.echo(output.document([kind.raw for kind in kinds]))
        else:
            output.show_table(("NAME", "WHAT IT TELLS"), [(kind.name, kind.about) for kind in kinds])
    elif as_csv:
        click.echo(client.report_csv(name, **query_given).replace("\r\n", "\n"), nl=False)
    else:
        found = client.report(name, **query_given)
        if as_json:
            click.echo(output.document(found.raw))
            return
        output.show_table(
            [title.upper() for title in found.titles],
            [[row.get(column) for column in found.columns] for row in found.rows],
        )
        begin = f"from {output.moment(found.since)} to" if found.since else "as of"
        output.note(f"{begin} {output.moment(found.until)} UTC")
