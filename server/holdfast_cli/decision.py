"""`holdfast decisions`: the append-only record of what the server did, why, and on what evidence."""

from __future__ import annotations

import json

import click

from holdfast_cli import output
from holdfast_cli.session import Session, reads


@click.command
@click.option("--after", type=click.IntRange(0), help="Only those after this number.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
@reads
@click.pass_obj
def decisions(session: Session, after: int | None, limit: int) -> None:
    """List what the server decided, and why."""
    found = session.server.get("decisions", after=after, limit=limit)
    if session.as_json:
        output.as_json(found)
        return
    for item in found["decisions"]:
        when = click.style(output.ago(item["at"]).rjust(10), dim=True)
        what = click.style(output.plain(f"{item['what']} {item.get('subject') or ''}"), bold=True)
        click.echo(f"{when}  {what}  {output.plain(item.get('why'))}")
        if item.get("evidence"):
            click.echo(
                click.style(f"            {output.plain(json.dumps(item['evidence'], ensure_ascii=False))}", dim=True)
            )
