"""Who this device is, read once at start: whom it trusts, what it is, the key it signs with. Fails closed, with one error."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from holdfast_agent.edge.configuration import Configuration
from holdfast_shared import authorities, signing, strict_json
from holdfast_shared.authorities import Authorities
from holdfast_shared.errors import Conflict, Malformed, Missing, Untrusted
from holdfast_shared.signing import PrivateKey
from holdfast_shared.wire import membership
from holdfast_shared.wire.membership import Membership

KEY_BYTES_MAX: Final = 16 * 1024
# Others may not read the key; a group may, so that two services of the device can share it.
_OTHERS: Final = 0o007


@dataclass(frozen=True, slots=True)
class Identity:
    """`membership` was signed by an enrolment key and names `key`'s public half."""

    authorities: Authorities
    membership: Membership
    key: PrivateKey


def load(configuration: Configuration) -> Identity:
    """Raises Missing, Malformed, Untrusted or Conflict: the process does not start on any."""
    device = configuration.device
    trusted = authorities.load(Path(device.authorities))
    if trusted.fleet != device.fleet:
        raise Conflict(
            f"{device.authorities} is of fleet {trusted.fleet}, the configuration of {device.fleet}",
            field="fleet",
            next_step="provision this fleet's authorities.json, or correct [device] fleet",
        )
    key = _key(Path(device.key))
    return Identity(trusted, _membership(Path(device.membership), configuration, trusted, key), key)


def _membership(path: Path, configuration: Configuration, trusted: Authorities, key: PrivateKey) -> Membership:
    raw = _read(path, membership.ENVELOPE_BYTES_MAX, "enrol the device: holdfast device enrol")
    try:
        verified = signing.verify(
            raw, membership.TYPE, trusted.enrolment_keys(), size_bytes_max=membership.ENVELOPE_BYTES_MAX
        )
    except Untrusted as error:
        raise Untrusted(f"{path}: {error.message}", field=error.field, next_step="have it signed again") from error
    found = strict_json.decode(
        verified.payload, Membership, what=str(path), size_bytes_max=membership.ENVELOPE_BYTES_MAX
    )
    device = configuration.device
    for field, ours, theirs in (
        ("fleet", device.fleet, found.fleet),
        ("device", device.id, found.device),
        ("public_key", key.public.to_text(), found.public_key),
    ):
        if ours != theirs:
            raise Conflict(
                f"{path} is of {field} {theirs}, this device has {ours}",
                field=field,
                next_step="provision this device's own membership and key",
            )
    return found


def _key(path: Path) -> PrivateKey:
    pem = _read(path, KEY_BYTES_MAX, "make one: holdfast key new")
    # Looked at after reading: a mode that is tightened later does not call back what others have read.
    mode = path.stat().st_mode
    if mode & _OTHERS:
        raise Untrusted(
            f"{path} has mode {mode & 0o777:04o}: everybody on this device may use the key",
            field="key",
            next_step=f"make a new key, and keep it to its user: chmod 0600 {path}",
        )
    try:
        return PrivateKey.from_pem(pem)
    except Malformed as error:
        raise Malformed(f"{path}: {error.message}", field="key", next_step=error.next_step) from error


def _read(path: Path, size_bytes_max: int, next_step: str) -> bytes:
    try:
        with path.open("rb") as stream:
            if os.fstat(stream.fileno()).st_size > size_bytes_max:
                raise Malformed(f"{path} is larger than {size_bytes_max} bytes", next_step=next_step)
            return stream.read(size_bytes_max)
    except OSError as error:
        raise Missing(f"cannot read {path}: {error.strerror}", next_step=next_step) from error
