"""`holdfast.authorities/1`: whose key may say what. Provisioned as `authorities.json`; a process without it does not start."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Final

import msgspec

from holdfast_shared import strict_json
from holdfast_shared.errors import Malformed, Missing, Untrusted
from holdfast_shared.identifiers import CounterField, KeyId, NameField
from holdfast_shared.signing import PublicKey

TYPE: Final = "holdfast.authorities/1"
SIZE_BYTES_MAX: Final = 256 * 1024
PublicKeyField = Annotated[str, msgspec.Meta(min_length=44, max_length=44)]


class Holder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A person or service and their key. One person may hold several keys under one name."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    public_key: PublicKeyField


class Director(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str
    public_key: PublicKeyField
    epoch: CounterField


class Publisher(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """May sign models, and releases of `pipelines` (empty: of any)."""

    name: str
    public_key: PublicKeyField
    pipelines: tuple[NameField, ...] = ()


class Authorities(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag=TYPE):
    """Who may publish, direct, enrol, operate and approve."""

    fleet: NameField
    version: CounterField
    publishers: tuple[Publisher, ...]
    directors: tuple[Director, ...]
    enrolment: tuple[Holder, ...]
    operators: tuple[Holder, ...]
    approvers: tuple[Holder, ...]

    def publisher_keys(self, pipeline: str | None) -> dict[KeyId, PublicKey]:
        """Keys that may publish `pipeline`; None: a model, which any publisher may sign."""
        return _keys(
            holder.public_key
            for holder in self.publishers
            if pipeline is None or not holder.pipelines or pipeline in holder.pipelines
        )

    def director_keys(self, epoch: int | None = None) -> dict[KeyId, PublicKey]:
        """Keys that may direct in `epoch`; None: in any."""
        return _keys(holder.public_key for holder in self.directors if epoch is None or holder.epoch == epoch)

    def enrolment_keys(self) -> dict[KeyId, PublicKey]:
        return _keys(holder.public_key for holder in self.enrolment)

    def operator_keys(self) -> dict[KeyId, PublicKey]:
        return _keys(holder.public_key for holder in self.operators)

    def approver_keys(self) -> dict[KeyId, PublicKey]:
        return _keys(holder.public_key for holder in self.approvers)

    def name_of(self, key_id: str) -> str:
        """The person behind an operator's or approver's key; two people are two *names*, not two keys."""
        for holder in (*self.operators, *self.approvers):
            if PublicKey.from_text(holder.public_key).key_id == key_id:
                return holder.name
        raise Untrusted(
            f"key {key_id[:12]}… belongs to no operator or approver", next_step="use a key that authorities.json lists"
        )


def load(path: Path) -> Authorities:
    """Read and check `authorities.json`. Raises Missing or Malformed: fail closed."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise Missing(
            f"cannot read {path}: {error.strerror}",
            next_step="provision authorities.json: without it nothing can be trusted",
        ) from error
    found = strict_json.decode(raw, Authorities, what=str(path), size_bytes_max=SIZE_BYTES_MAX)
    holders: tuple[Publisher | Director | Holder, ...] = (
        *found.publishers,
        *found.directors,
        *found.enrolment,
        *found.operators,
        *found.approvers,
    )
    for holder in holders:
        PublicKey.from_text(holder.public_key)
    if not found.directors or not found.publishers or not found.enrolment:
        raise Malformed(
            f"{path} names no director, no publisher or no enrolment key",
            field="directors, publishers, enrolment",
            next_step="add at least one key of each",
        )
    return found


def _keys(texts: Iterable[str]) -> dict[KeyId, PublicKey]:
    keys = [PublicKey.from_text(text) for text in texts]
    return {key.key_id: key for key in keys}
