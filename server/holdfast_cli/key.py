"""`holdfast key`: a person's Ed25519 key pair. The public half goes into `authorities.json`, the private half nowhere."""

from __future__ import annotations

from pathlib import Path

import click

from holdfast_cli import output
from holdfast_cli.session import Session, reads, signs
from holdfast_shared import durable
from holdfast_shared.errors import Conflict, Missing
from holdfast_shared.key_file import read_key
from holdfast_shared.signing import PrivateKey, PublicKey


@click.group
def key() -> None:
    """Make and show signing keys."""


@key.command("new")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@reads
@click.pass_obj
def new(session: Session, file: Path) -> None:
    """Make a key pair and write the private key to FILE (mode 0600). An existing file is never overwritten."""
    made = PrivateKey.generate()
    _write_new(file, made.to_pem())
    _show(session, file, made.public)
    if not session.as_json:
        click.echo("Next: give the public key to whoever keeps authorities.json; keep the file to yourself.")


@key.command("show")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False), required=False)
@signs
@click.pass_obj
def show(session: Session, file: Path | None) -> None:
    """Show the id and the public key of FILE (default: --key)."""
    if file is None:
        found = session.key()
        file = session.key_file or Path()
    else:
        found = read_key(file, option="FILE")
    _show(session, file, found.public)


def _write_new(file: Path, pem: bytes) -> None:
    """Created 0600, and only if nothing is there: no moment in which others could read it, or in which an old key is lost."""
    try:
        durable.write_new_file(file, pem, mode=0o600)
    except FileExistsError as error:
        raise Conflict(
            f"{file} is there already, and a key is never overwritten", field="FILE", next_step="choose another name"
        ) from error
    except OSError as error:
        raise Missing(
            f"cannot write {file}: {error.strerror}", field="FILE", next_step="choose a folder that you may write to"
        ) from error


def _show(session: Session, file: Path, public: PublicKey) -> None:
    if session.as_json:
        output.as_json({"file": str(file), "key_id": public.key_id, "public_key": public.to_text()})
        return
    output.fields([("file", file), ("key id", public.key_id), ("public key", public.to_text())])
