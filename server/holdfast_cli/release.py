"""`holdfast release`: what is published, and how two versions differ."""

from __future__ import annotations

from typing import Any

import click

from holdfast_cli import output
from holdfast_cli.session import Session, reads


@click.group
def release() -> None:
    """Look at published releases."""


@release.command("list")
@click.option("--pipeline", help="Of this pipeline only.")
@reads
@click.pass_obj
def list_(session: Session, pipeline: str | None) -> None:
    """List releases, newest version first."""
    found = session.server.get("releases", pipeline=pipeline)
    if session.as_json:
        output.as_json(found)
        return
    output.table(
        ("pipeline", "version", "digest", "publisher", "published"),
        [
            (
                item["pipeline"],
                item["version"],
                output.short(item["digest"]),
                item.get("publisher"),
                output.ago(item.get("published_at")),
            )
            for item in found["releases"]
        ],
    )


@release.command("show")
@click.argument("pipeline")
@click.argument("version")
@reads
@click.pass_obj
def show(session: Session, pipeline: str, version: str) -> None:
    """Show a release: its model, metrics, guardrails, limits and digests."""
    found = session.server.get("releases", pipeline, version)
    if session.as_json:
        output.as_json(found)
        return
    manifest = found["manifest"]
    output.fields(
        [
            ("release", f"{pipeline} {version}"),
            ("digest", found["digest"]),
            ("published", f"{output.ago(found.get('published_at'))} by {found.get('publisher')}"),
            ("about", manifest.get("description")),
            *((f"model {model['manifest']['name']}", _model(model)) for model in found["models"]),
            ("guardrails", "; ".join(_guardrail(entry) for entry in manifest["guardrails"])),
            ("trial", f"{manifest['trial']['soak_s']} s and {manifest['trial']['requests_min']} requests"),
            ("deadline", f"{manifest['limits']['deadline_ms']} ms a request"),
        ]
    )


@release.command("shadow")
@click.argument("pipeline")
@click.argument("version")
@reads
@click.pass_obj
def shadow(session: Session, pipeline: str, version: str) -> None:
    """Show how a release did where it shadowed what served: agreement, latency, drift."""
    found = session.server.get("releases", pipeline, version, "shadow")
    if session.as_json:
        output.as_json(found)
        return
    if not found["devices"]:
        click.echo(f"no device has told of {pipeline} {version} as a shadow in the last {found['hours_asked']} hours")
        return
    output.fields(
        [
            ("release", f"{pipeline} {version}"),
            ("devices", f"{found['devices']}, up to {found['hours']:g} hours each"),
            ("of these", None if found["complete"] else f"only the newest {found['windows']} windows were looked at"),
            ("requests", f"{found['requests']} asked, {found['dropped']} dropped"),
            ("agreement", _agreement(found)),
            ("not compared", f"{found['errors']} errors, {found['nulls']} nulls, {found['incomparable']} incomparable"),
            ("latency", _latencies(found["latency_ms"])),
            ("serving", _latencies(found["serving_latency_ms"])),
            ("drift", ", ".join(f"{name} {_index(value)}" for name, value in sorted(found["drift"].items()))),
        ]
    )


@release.command("compare")
@click.argument("pipeline")
@click.argument("from_version", metavar="FROM")
@click.argument("to_version", metavar="TO")
@reads
@click.pass_obj
def compare(session: Session, pipeline: str, from_version: str, to_version: str) -> None:
    """Compare two versions of PIPELINE, field by field."""
    found = session.server.get("releases", pipeline, "compare", from_=from_version, to=to_version)
    if session.as_json:
        output.as_json(found)
        return
    output.table(
        ("field", from_version, to_version),
        [(item["field"], item.get("from"), item.get("to")) for item in found["differences"]],
    )


def _agreement(found: Any) -> str:
    if found["agreement"] is None:
        return "no row compared"
    return f"{100 * found['agreement']:.2f} % of {found['compared']} rows"


def _latencies(found: Any) -> str:
    """At the lowest priority on its device: what a shadow takes is an upper bound."""
    return ", ".join(f"{name} {'-' if value is None else f'{value:g} ms'}" for name, value in found.items())


def _index(value: float | None) -> str:
    return "unknown: too few rows" if value is None else f"{value:.3f}"


def _model(model: Any) -> str:
    manifest = model["manifest"]
    metrics = ", ".join(f"{name} {value:g}" for name, value in manifest["metrics"].items())
    return f"{manifest['version']}, {metrics}, trained on {manifest['training_data']['name']}, {output.short(model['digest'])}"


def _guardrail(entry: Any) -> str:
    return f"{entry['metric']} ≤ {entry['threshold']:g} over {entry['window_s']} s, else {entry['action']}"
