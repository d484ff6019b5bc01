"""`holdfast publish FOLDER`: build, sign, send what is missing, send again. May be repeated: what is there stays as it is."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import click
from click.termui import progressbar

from holdfast_cli import output
from holdfast_cli.failures import Unreachable
from holdfast_cli.manifests import Built, build
from holdfast_cli.server import Progress
from holdfast_cli.session import Session, signs
from holdfast_shared import signing
from holdfast_shared.identifiers import Digest
from holdfast_shared.wire.release import MODEL_TYPE, RELEASE_TYPE

_WANTS_MORE: Final = 202
_MADE: Final = 201


@click.command
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--dry-run", is_flag=True, help="Build and check only: sign nothing, send nothing.")
@signs
@click.pass_obj
def publish(session: Session, folder: Path, *, dry_run: bool) -> None:
    """Publish the release that FOLDER/release.toml describes.

    Hashes and checks every file, signs the manifests of its models and of the release with your publisher key, uploads what
    the server does not have, and registers them. A version never changes once it is published.

    \b
    Example:
      holdfast publish deploy/sample-release --key publisher.pem
    """
    built = build(folder)
    if dry_run:
        _show(session, built, ["checked"] * len(built.models), "checked", sent_bytes=0)
        return
    key = session.key()
    models = [
        register(session, "models", signing.sign(model.payload, MODEL_TYPE, [key]), built.files)
        for model in built.models
    ]
    release = register(session, "releases", signing.sign(built.release_payload, RELEASE_TYPE, [key]), built.files)
    sent = sum(bytes_sent for _, bytes_sent in (*models, release))
    _show(session, built, [result for result, _ in models], release[0], sent_bytes=sent)


def register(session: Session, kind: str, envelope: bytes, files: dict[Digest, Path]) -> tuple[str, int]:
    """(published or unchanged, bytes sent)."""
    answer = session.server.post(kind, body=envelope)
    sent = 0
    if answer.status == _WANTS_MORE:
        sent = _upload(session, answer.body["missing"], files)
        answer = session.server.post(kind, body=envelope)
    if answer.status == _WANTS_MORE:
        raise Unreachable(
            f"the server still misses files of these {kind} after they were uploaded",
            field="--server",
            next_step="run the same command again; if it stays so, read the server's log",
        )
    return ("published" if answer.status == _MADE else "unchanged"), sent


def _upload(session: Session, missing: list[dict[str, Any]], files: dict[Digest, Path]) -> int:
    wanted = [(Digest(item["digest"]), int(item["size_bytes"])) for item in missing]
    unknown = [digest for digest, _ in wanted if digest not in files]
    if unknown:
        raise Unreachable(f"the server asks for {unknown[0]}, which this folder does not hold", field="--server")
    total = sum(size for _, size in wanted)
    with _progress(session, total) as progress:
        for digest, size in wanted:
            session.server.put_file("blobs", digest, file=files[digest], size_bytes=size, progress=progress)
    return total


@contextlib.contextmanager
def _progress(session: Session, total: int) -> Iterator[Progress]:
    if session.as_json:
        yield _Silent()
        return
    bar: Any = progressbar(length=total, label=f"uploading {output.size(total)}", file=sys.stderr)
    with bar:
        yield bar


class _Silent:
    def update(self, _: int, /) -> None:
        return None


def _show(session: Session, built: Built, models: list[str], release: str, *, sent_bytes: int) -> None:
    """`models`, `release`: what became of each."""
    if session.as_json:
        output.as_json(
            {
                "models": [
                    {
                        "name": model.manifest.name,
                        "version": model.manifest.version,
                        "digest": model.digest,
                        "result": result,
                    }
                    for model, result in zip(built.models, models, strict=True)
                ],
                "release": {
                    "pipeline": built.release.pipeline,
                    "version": built.release.version,
                    "digest": built.release_digest,
                    "result": release,
                },
                "uploaded_bytes": sent_bytes,
            }
        )
        return
    output.table(
        ("", "name", "version", "digest", "result"),
        [
            *(
                ("model", model.manifest.name, model.manifest.version, model.digest, result)
                for model, result in zip(built.models, models, strict=True)
            ),
            ("release", built.release.pipeline, built.release.version, built.release_digest, release),
        ],
    )
