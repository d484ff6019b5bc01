"""`holdfast environment`: what runs models, published once and looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from holdfast_cli import output
from holdfast_cli.environment_toml import build
from holdfast_cli.publish import register
from holdfast_cli.session import Session, reads, signs
from holdfast_shared import signing
from holdfast_shared.wire.environment import TYPE


@click.group
def environment() -> None:
    """Publish and look at environments: the packages and settings that run a model."""


@environment.command("publish")
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--dry-run", is_flag=True, help="Build and check only: sign nothing, send nothing.")
@signs
@click.pass_obj
def publish(session: Session, folder: Path, *, dry_run: bool) -> None:
    """Publish the environment that FOLDER/environment.toml and the wheels beside it make.

    One of the wheels is the worker's: scripts/worker_wheel.py. A version never changes once it is published. A release names the
    environments that it was validated in by their digests, the preferred one first.

    \b
    Example:
      holdfast environment publish environments/onnx-cpu --key publisher.pem
    """
    built = build(folder)
    did, sent_bytes = "checked", 0
    if not dry_run:
        did, sent_bytes = register(
            session, "environments", signing.sign(built.payload, TYPE, [session.key()]), built.files
        )
    said = {
        "name": built.environment.name,
        "version": built.environment.version,
        "digest": built.digest,
        "result": did,
        "uploaded_bytes": sent_bytes,
    }
    if session.as_json:
        output.as_json(said)
        return
    output.table(("environment", "version", "digest", "result"), [(*list(said.values())[:3], did)])


@environment.command("list")
@reads
@click.pass_obj
def list_(session: Session) -> None:
    """List environments, newest version first."""
    found = session.server.get("environments")
    if session.as_json:
        output.as_json(found)
        return
    output.table(
        ("environment", "version", "digest", "publisher", "published"),
        [
            (
                item["name"],
                item["version"],
                output.short(item["digest"]),
                item.get("publisher"),
                output.ago(item.get("published_at")),
            )
            for item in found["environments"]
        ],
    )


@environment.command("show")
@click.argument("name")
@click.argument("version")
@reads
@click.pass_obj
def show(session: Session, name: str, version: str) -> None:
    """Show an environment: its wheels, its settings, and the Python that it asks for."""
    found: Any = session.server.get("environments", name, version)
    if session.as_json:
        output.as_json(found)
        return
    manifest = found["manifest"]
    worker, settings = manifest["worker"], manifest["settings"]
    output.fields(
        [
            ("environment", f"{name} {found['version']}"),
            ("digest", found["digest"]),
            ("published", f"{output.ago(found.get('published_at'))} by {found.get('publisher')}"),
            ("about", manifest.get("description")),
            ("python", manifest["requires_python"]),
            ("worker", f"{worker['filename']}, protocol {worker['oldest']} to {worker['newest']}"),
            ("threads", settings["threads"]),
            ("variables", ", ".join(f"{key}={value}" for key, value in sorted(settings["variables"].items()))),
            *(("wheel", f"{one['filename']} ({output.size(one['size_bytes'])})") for one in manifest["wheels"]),
            ("used by", ", ".join(f"{one['pipeline']} {one['version']}" for one in found["releases"])),
        ]
    )
