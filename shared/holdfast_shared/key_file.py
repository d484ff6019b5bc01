"""A private key in a file, as people name one on a command line. A device's own key has stricter rules: `edge/identity.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from holdfast_shared.errors import Malformed, Missing
from holdfast_shared.signing import PrivateKey

# A PEM of an Ed25519 key has 119 bytes; what is larger is some other file.
KEY_BYTES_MAX: Final = 4096


def read_key(path: Path, *, option: str) -> PrivateKey:
    """The private key in a PEM file. Raises Missing or Malformed that names `option`."""
    try:
        with path.open("rb") as stream:
            pem = stream.read(KEY_BYTES_MAX)
    except OSError as error:
        raise Missing(
            f"cannot read the key {path}: {error.strerror}", field=option, next_step="make one: holdfast key new FILE"
        ) from error
    try:
        return PrivateKey.from_pem(pem)
    except Malformed as error:
        raise Malformed(f"{path}: {error.message}", field=option, next_step=error.next_step) from error
