"""Names and digests as types. A value of one of these has been checked, or comes from our own code."""

from __future__ import annotations

import hashlib
from typing import Annotated, Final, NewType

import msgspec

DeviceId = NewType("DeviceId", str)
Digest = NewType("Digest", str)
KeyId = NewType("KeyId", str)

# One DNS label, so that a name is safe in a topic, a path, a URL and a shell.
NAME_PATTERN: Final = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
DEVICE_PATTERN: Final = r"^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$"
DIGEST_PATTERN: Final = r"^sha256:[0-9a-f]{64}$"
ENVIRONMENT_PATTERN: Final = r"^(system|sha256:[0-9a-f]{64})$"
TENSOR_PATTERN: Final = r"^[A-Za-z_][A-Za-z0-9_.:/-]{0,127}$"

NameField = Annotated[str, msgspec.Meta(pattern=NAME_PATTERN)]
DeviceField = Annotated[str, msgspec.Meta(pattern=DEVICE_PATTERN)]
DigestField = Annotated[str, msgspec.Meta(pattern=DIGEST_PATTERN)]
EnvironmentField = Annotated[str, msgspec.Meta(pattern=ENVIRONMENT_PATTERN)]
TensorField = Annotated[str, msgspec.Meta(pattern=TENSOR_PATTERN)]
# 2**53 - 1: every JSON reader in the world holds it exactly.
CounterField = Annotated[int, msgspec.Meta(ge=0, le=9_007_199_254_740_991)]
TextField = Annotated[str, msgspec.Meta(max_length=2048)]

SYSTEM_ENVIRONMENT: Final = "system"


def digest_of(data: bytes) -> Digest:
    """SHA-256 of `data`, as `sha256:<64 lower-case hex digits>`."""
    return Digest("sha256:" + hashlib.sha256(data).hexdigest())


def hex_of(digest: str) -> str:
    """The 64 hex digits of a digest: its file name under `blobs/sha256/`."""
    return digest.removeprefix("sha256:")
