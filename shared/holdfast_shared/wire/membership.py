"""`holdfast.membership/1`: what a device is. Signed by the enrolment key; it also names the device's own report key."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec

from holdfast_shared.identifiers import CounterField, DeviceField, NameField
from holdfast_shared.selector import LabelField

TYPE: Final = "holdfast.membership/1"
ENVELOPE_BYTES_MAX: Final = 16 * 1024
LABELS_MAX: Final = 32
RESERVED_LABELS: Final = frozenset({"region", "stage", "device"})

Stage = Literal["development", "staging", "shadow", "production"]


class Membership(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag=TYPE):
    """A device's id, place and kind. `counter` only grows; a report carries the one the device holds."""

    fleet: NameField
    device: DeviceField
    region: NameField
    counter: CounterField
    public_key: Annotated[str, msgspec.Meta(min_length=44, max_length=44)]  # base64 of 32 raw Ed25519 bytes
    issued_at: CounterField
    labels: Annotated[dict[LabelField, LabelField], msgspec.Meta(max_length=LABELS_MAX)] = {}
    stage: Stage = "production"
    critical: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        taken = RESERVED_LABELS & self.labels.keys()
        if taken:
            raise ValueError(f"the labels {sorted(taken)} are the membership's own fields; name yours otherwise")

    @property
    def selectable(self) -> dict[str, str]:
        """Every label a selector may ask for, the membership's own fields among them."""
        return {**self.labels, "region": self.region, "stage": self.stage, "device": self.device}
