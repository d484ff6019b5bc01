"""Which devices a share means. The bucket of a device is fixed by the salt, so 1 % ⊂ 5 % ⊂ 20 % ⊂ 100 %."""

from __future__ import annotations

import hashlib
from typing import Final

BUCKETS: Final = 10_000
_SALT_BYTES_MAX: Final = 255  # its length is one byte of the hashed text


def bucket(salt: str, device: str) -> int:
    """0 … 9 999: the first 8 bytes, big-endian, of SHA-256(one byte len(salt) ‖ salt ‖ device), modulo 10 000."""
    salted = salt.encode()
    if len(salted) > _SALT_BYTES_MAX:
        raise ValueError(f"a salt has at most {_SALT_BYTES_MAX} bytes, this one {len(salted)}")
    hashed = hashlib.sha256(bytes([len(salted)]) + salted + device.encode()).digest()
    return int.from_bytes(hashed[:8], "big") % BUCKETS
