"""`holdfast rollback`, `approve`, `rollbacks`: taking a release back from a segment, with two people's consent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from holdfast_cli import output, signed_command, waves
from holdfast_cli.session import Session, reads, signs
from holdfast_shared.errors import Malformed
from holdfast_shared.key_file import read_key
from holdfast_shared.wire.command import LIFETIME_MAX_S, Approve, Rollback


@click.command
@click.argument("pipeline")
@click.argument("version")
@click.option("--segment", default="*", show_default=True, help="Where from, such as 'region=eu-west'.")
@click.option("--reason", required=True, help="Why, for everybody who reads the record later.")
@click.option("--to", metavar="VERSION", help="What to run instead. Default: what the segment ran before.")
@click.option(
    "--environment",
    metavar="ENVIRONMENT",
    help="Take only the environment back (NAME@VERSION or a digest): VERSION goes on in another.",
)
@click.option("--to-environment", metavar="ENVIRONMENT", help="Which other. Default: the one it ran in before.")
@click.option(
    "--every-version",
    is_flag=True,
    help="With --environment: no version of PIPELINE runs in it there any more; each goes on in another.",
)
@click.option(
    "--approve-key",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A second person's key: their approval travels along, and the rollback starts at once.",
)
@click.option("--mqtt", metavar="URL", help="Send it through the broker instead, such as mqtt://127.0.0.1:1883.")
@click.option(
    "--output", "file", type=click.Path(path_type=Path, dir_okay=False), help="Write the signed bytes; send nothing."
)
@click.option(
    "--fleet", envvar="HOLDFAST_FLEET", help="The fleet's name (or HOLDFAST_FLEET). Default: the server is asked."
)
@click.option(
    "--valid", "valid_s", type=click.IntRange(1, LIFETIME_MAX_S), default=signed_command.LIFETIME_S, show_default=True,
    help="For how many seconds the signed request may be used.",
)  # fmt: skip
@signs
@click.pass_obj
def rollback(session: Session, /, pipeline: str, version: str, **told: Any) -> None:
    """Take VERSION of PIPELINE back from a segment.

    With one signature the request waits for `holdfast approve` by another person; with --approve-key it acts at once.

    \b
    Examples:
      holdfast rollback digits 1.3.0 --segment region=eu-west --reason "wrong totals at two shops" --key anna.pem
      holdfast rollback digits 1.3.0 --environment onnx-cpu@1.1.0 --reason "slower on every camera" --key anna.pem
      holdfast rollback digits 1.3.0 --environment onnx-cpu@1.1.0 --every-version --reason "leaks" --key anna.pem
      holdfast approve rb-1 --key ben.pem
    """
    act = signed_command.checked(
        Rollback,
        pipeline=pipeline,
        version=version,
        segment=waves.segment(told["segment"]),
        reason=told["reason"],
        to=told["to"],
        environment=told["environment"],
        to_environment=told["to_environment"],
        every_version=told["every_version"],
    )
    if told["mqtt"] and told["file"]:
        raise Malformed("it is either sent or written", field="--output", next_step="leave out --mqtt or --output")
    keys = [session.key()]
    if told["approve_key"] is not None:
        keys.append(read_key(told["approve_key"], option="--approve-key"))
    fleet = told["fleet"] or session.server.fleet()
    signed = signed_command.envelope(act, fleet=fleet, keys=keys, lifetime_s=told["valid_s"])
    if told["file"] is not None:
        signed_command.write_file(told["file"], signed)
        if session.as_json:
            output.as_json({"file": str(told["file"]), "size_bytes": len(signed)})
        else:
            click.echo(
                f"wrote {told['file']}: publish these bytes on holdfast/{fleet}/command/rollback while they are valid"
            )
        return
    if told["mqtt"]:
        done = signed_command.send_by_broker(told["mqtt"], "rollback", signed, fleet=fleet)
    else:
        done = signed_command.send(session, signed)
    _show(session, done)


@click.command
@click.argument("rollback_id", metavar="ROLLBACK")
@signs
@click.pass_obj
def approve(session: Session, rollback_id: str) -> None:
    """Approve a waiting rollback that another person asked for. Shows what it is, and signs exactly that request."""
    key = session.key()
    waiting = session.server.get("rollbacks", rollback_id)
    act = signed_command.checked(Approve, rollback=rollback_id, request=waiting["request"])
    done = signed_command.send(session, signed_command.envelope(act, fleet=session.server.fleet(), keys=[key]))
    _show(session, done)


@click.command
@click.argument("rollback_id", metavar="[ROLLBACK]", required=False)
@reads
@click.pass_obj
def rollbacks(session: Session, rollback_id: str | None) -> None:
    """List rollbacks, newest first, or show one."""
    if rollback_id is not None:
        _show(session, session.server.get("rollbacks", rollback_id))
        return
    found = session.server.get("rollbacks")
    if session.as_json:
        output.as_json(found)
        return
    output.table(
        ("rollback", "pipeline", "version", "to", "segment", "state", "asked by", "approved by", "devices back"),
        [
            (
                item["id"],
                item["pipeline"],
                item["version"],
                item["to"],
                signed_command.segment_text(item["segment"]),
                item["state"],
                item["requested_by"],
                item.get("approved_by"),
                f"{item.get('devices_back')} of {item.get('devices_before')}",
            )
            for item in found["rollbacks"]
        ],
    )


def _show(session: Session, item: Any) -> None:
    if session.as_json:
        output.as_json(item)
        return
    output.fields(
        [
            ("rollback", item["id"]),
            ("state", item["state"]),
            ("takes back", f"{item['pipeline']} {item['version']} → {item['to']}"),
            *(
                [("environment", f"{output.short(item['environment'])} → {output.short(item['to_environment'])}")]
                if item.get("environment")
                else []
            ),
            *(
                [("from every version", ", ".join([item["version"], *(one["version"] for one in item["also"])]))]
                if item.get("every_version")
                else []
            ),
            ("from", signed_command.segment_text(item["segment"])),
            ("why", item["reason"]),
            ("asked by", item["requested_by"]),
            ("approved by", item.get("approved_by")),
            ("devices back", f"{item.get('devices_back')} of {item.get('devices_before')}"),
            ("request", item.get("request")),
        ]
    )
    if item["state"] == "waiting":
        click.echo(f"Next: another person runs  holdfast approve {output.plain(item['id'])} --key THEIR-KEY")
