"""`holdfast device` and `holdfast fleet`: what devices are, and what they last said they run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Final, get_args

import click
import msgspec

from holdfast_cli import output, signed_command, waves
from holdfast_cli.failures import Refused
from holdfast_cli.session import Session, reads, signs
from holdfast_shared import selector, signing, strict_json
from holdfast_shared.errors import Malformed
from holdfast_shared.key_file import read_key
from holdfast_shared.signing import PublicKey
from holdfast_shared.wire.membership import TYPE, Membership, Stage

PAGE: Final = 500


@click.group
def device() -> None:
    """Look at devices, and enrol them."""


@device.command("list")
@click.argument("segment", default="*")
@reads
@click.pass_obj
def list_(session: Session, segment: str) -> None:
    """List the devices of SEGMENT (default: all), such as 'region=eu-west, ring!=canary'."""
    written = selector.written(waves.segment(segment, "SEGMENT"))
    found = _all_devices(session, written)
    if session.as_json:
        output.as_json({"devices": found})
        return
    output.table(
        ("device", "region", "labels", "serving", "state", "last seen"),
        [
            (
                item["device"],
                item["region"],
                output.labels(item.get("labels")),
                _serving(item),
                _state(item),
                output.ago(item.get("last_seen_at")),
            )
            for item in found
        ],
    )


@device.command("show")
@click.argument("device_id", metavar="DEVICE")
@reads
@click.pass_obj
def show(session: Session, device_id: str) -> None:
    """Show one device: membership, slots, what it condemned, what it is expected to run."""
    found = session.server.get("devices", device_id)
    if session.as_json:
        output.as_json(found)
        return
    output.fields(
        [
            ("device", found["device"]),
            ("region", found["region"]),
            ("labels", output.labels(found.get("labels"))),
            ("accepts", found.get("stage")),
            ("last seen", output.ago(found.get("last_seen_at"))),
            ("agent", found.get("agent_version")),
            (
                "fingerprint",
                ", ".join(f"{name} {said}" for name, said in sorted((found.get("fingerprint") or {}).items())),
            ),
            ("workers", _isolation(found.get("isolation"))),
        ]
    )
    for pipeline in found.get("pipelines", []):
        click.echo()
        output.fields(_pipeline(pipeline))


@device.command("enrol")
@click.argument("device_id", metavar="DEVICE")
@click.option("--region", required=True, help="Where it is: the unit of broadcast.")
@click.option("--label", "labels", multiple=True, metavar="NAME=VALUE", help="A label that segments may ask for.")
@click.option("--stage", type=click.Choice(get_args(Stage)), default="production", show_default=True)
@click.option("--public-key", metavar="TEXT", help="The device's report key, base64.")
@click.option(
    "--device-key", type=click.Path(path_type=Path, dir_okay=False), help="Or the device's key file, to read it from."
)
@click.option("--counter", type=click.IntRange(1), help="Only grows. Default: one above what the server knows.")
@click.option(
    "--output",
    "file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also write the membership, for the device.",
)
@signs
@click.pass_obj
def enrol(session: Session, /, device_id: str, file: Path | None, **told: Any) -> None:
    """Sign what DEVICE is, with the enrolment key, and register it. Again with other labels: its membership changes."""
    key = session.key()
    told["counter"] = told["counter"] or _next_counter(session, device_id)
    membership = _membership(session, device_id, told)
    signed = signing.sign(strict_json.encode(membership), TYPE, [key])
    session.server.post("memberships", body=signed)
    if file is not None:
        signed_command.write_file(file, signed)
    if session.as_json:
        output.as_json({"device": device_id, "region": membership.region, "counter": membership.counter})
    else:
        click.echo(f"{device_id} is enrolled in {membership.region} (membership {membership.counter})")


@click.command
@click.option("--pipeline", help="Of this pipeline only.")
@reads
@click.pass_obj
def fleet(session: Session, pipeline: str | None) -> None:
    """Show what the fleet serves, region by region."""
    found = session.server.get("fleet")
    if session.as_json:
        output.as_json(found)
        return
    for name, regions in found["pipelines"].items():
        if pipeline not in (None, name):
            continue
        click.echo(click.style(output.plain(name), bold=True))
        output.table(
            ("region", "devices", "online", "serving", "not idle", "single", "degraded"),
            [
                (
                    region,
                    counts["devices"],
                    counts["online"],
                    ", ".join(f"{version} × {n}" for version, n in sorted(counts["serving"].items())),
                    ", ".join(f"{state} × {n}" for state, n in sorted(counts["states"].items()) if state != "idle"),
                    counts["single"],
                    counts["degraded"],
                )
                for region, counts in sorted(regions.items())
            ],
        )


def _all_devices(session: Session, segment: str) -> list[Any]:
    """Page by page: the server never answers with a whole fleet at once."""
    devices: list[Any] = []
    after: str | None = None
    while True:
        page = session.server.get("devices", segment=segment, after=after, limit=PAGE)
        devices += page["devices"]
        after = page.get("next")
        if not after:
            return devices


def _next_counter(session: Session, device_id: str) -> int:
    try:
        return int(session.server.get("devices", device_id)["counter"]) + 1
    except Refused as error:
        if error.code == "not-found":
            return 1
        raise


def _membership(session: Session, device_id: str, told: dict[str, Any]) -> Membership:
    labels = {}
    for text in told["labels"]:
        name, equals, value = text.partition("=")
        if not equals:
            raise Malformed(f"{text!r} is no label", field="--label", next_step="write it like ring=canary")
        labels[name] = value
    fields = {
        "type": TYPE,
        "fleet": session.server.fleet(),
        "device": device_id,
        "region": told["region"],
        "counter": told["counter"],
        "public_key": _public_key(told["public_key"], told["device_key"]).to_text(),
        "issued_at": time.time_ns() // 1000,
        "labels": labels,
        "stage": told["stage"],
    }
    try:
        return msgspec.convert(fields, Membership)
    except msgspec.ValidationError as error:
        raise Malformed(
            str(error), field="membership", next_step="names are lower-case letters, digits and `-`"
        ) from error


def _public_key(text: str | None, file: Path | None) -> PublicKey:
    if text:
        return PublicKey.from_text(text)
    if file is not None:
        return read_key(file, option="--device-key").public
    raise Malformed(
        "a membership names the device's own key",
        field="--public-key",
        next_step="give --public-key, or --device-key with the device's key file",
    )


def _serving(item: Any) -> str:
    return ", ".join(
        f"{pipeline['pipeline']} {(pipeline.get('serving') or {}).get('version', '—')}"
        for pipeline in item.get("pipelines", [])
    )


def _state(item: Any) -> str:
    words = []
    for pipeline in item.get("pipelines", []):
        given = pipeline.get("requests")
        words.append(f"{pipeline['state']} of {given['in_words']}" if given else pipeline["state"])
        words += [word for word in ("single", "degraded") if pipeline.get(word)]
    return ", ".join(words)


def _pipeline(pipeline: Any) -> list[tuple[str, object]]:
    slots = [(slot, (pipeline.get(slot) or {})) for slot in ("serving", "current", "previous", "candidate")]
    predicted = pipeline.get("prediction") or {}
    return [
        ("pipeline", pipeline["pipeline"]),
        ("state", _state({"pipelines": [pipeline]})),
        *((slot, f"{held['version']}  {output.short(held['digest'])}{_place(held)}") for slot, held in slots if held),
        ("condemned", ", ".join(f"{c['version']} ({c.get('code')})" for c in pipeline.get("condemned_here", []))),
        ("shadow", _shadow(pipeline.get("shadow"))),
        ("expected", (predicted.get("serve") or {}).get("version")),
        ("cannot run it", predicted.get("unfit")),
        ("waits for", pipeline.get("waiting_for")),
    ]


def _shadow(told: Any) -> str | None:
    """How what shadows there agrees with what serves."""
    if not told:
        return None
    rows = f"{100 * told['agreement']:.2f} % of {told['compared']} rows agree" if told["compared"] else "no row yet"
    return f"{rows}, {told['dropped']} requests dropped, in the last {told['hours_asked']} hours"


def _isolation(told: Any) -> str | None:
    """What confines them, and what does not."""
    if not told:
        return None
    applied, degraded = (", ".join(sorted(told.get(one) or ())) for one in ("applied", "degraded"))
    return f"confined by {applied or 'nothing'}" + (f"; not by {degraded}" if degraded else "")


def _place(held: Any) -> str:
    """Where it runs, if not in what the device has of its own."""
    environment = held.get("environment") or "system"
    return "" if environment == "system" else f"  in {output.short(environment)}"
