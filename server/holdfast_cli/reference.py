"""`holdfast reference make`: from a publisher's own sample to the bins that drift is measured in. Needs no server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import click
import msgspec

from holdfast_cli import output
from holdfast_cli.session import Session, reads
from holdfast_shared import reference as bins
from holdfast_shared import strict_json
from holdfast_shared.errors import Malformed, Missing
from holdfast_shared.reference import Feature, Reference
from holdfast_shared.wire.report import DRIFT_BINS_MAX, DRIFT_FEATURES_MAX

SAMPLE_BYTES_MAX: Final = 64 * 1024**2
BINS: Final = 10


class _Sampled(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A feature as `reference.json` describes it, with the sample's values in place of edges and counts."""

    name: str
    tensor: str
    values: tuple[float, ...]
    reduce: str = "element"
    element: int = 0


class _Sample(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    features: Annotated[tuple[_Sampled, ...], msgspec.Meta(min_length=1, max_length=DRIFT_FEATURES_MAX)]


@click.group
def reference() -> None:
    """Make the bins in which a release's input and answers are watched for drift."""


@reference.command("make")
@click.argument("sample", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--bins", "count", default=BINS, show_default=True, help="How many bins of equal share, where values allow."
)
@reads
@click.pass_obj
def make(session: Session, sample: Path, count: int) -> None:
    """Print the reference of SAMPLE: each feature with one value for each row of the data that the model was evaluated on.

    \b
    {"features": [{"name": "ink", "tensor": "request.image", "reduce": "mean", "values": [4.1, 5.0, …]}]}
    """
    described = _read(sample)
    if not 2 <= count <= DRIFT_BINS_MAX:
        raise Malformed(
            f"{count} bins are too few or too many",
            field="--bins",
            next_step=f"choose 2 to {DRIFT_BINS_MAX}; {BINS} is usual",
        )
    features = tuple(_binned(one, count, f"features[{index}]") for index, one in enumerate(described.features))
    raw = strict_json.encode(Reference(features=features))
    bins.read(raw)
    if session.as_json:
        output.as_json(msgspec.json.decode(raw))
    else:
        click.echo(raw.decode())


def _read(sample: Path) -> _Sample:
    try:
        raw = sample.read_bytes()
    except OSError as error:
        raise Missing(
            f"cannot read {sample}: {error.strerror}", field="SAMPLE", next_step="write it as --help says"
        ) from error
    return strict_json.decode(raw, _Sample, what="the sample", size_bytes_max=SAMPLE_BYTES_MAX)


def _binned(sampled: _Sampled, count: int, where: str) -> Feature:
    try:
        edges, counts = bins.bins_of(sampled.values, count)
        table = {"name": sampled.name, "tensor": sampled.tensor, "reduce": sampled.reduce, "element": sampled.element}
        return msgspec.convert({**table, "edges": edges, "counts": counts}, Feature)
    except (ValueError, msgspec.ValidationError) as error:
        raise Malformed(f"{sampled.name}: {error}", field=where, next_step="correct the sample") from error
