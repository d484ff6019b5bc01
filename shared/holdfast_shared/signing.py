"""Ed25519 over raw bytes in a DSSE envelope: verified first, parsed afterwards.

Source: https://github.com/secure-systems-lab/dsse/blob/master/protocol.md (pre-authentication encoding) and envelope.md.
A key's id is the SHA-256 of its 32 raw public bytes: nobody can choose it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Final, NamedTuple

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from holdfast_shared import strict_json
from holdfast_shared.errors import Malformed, Untrusted
from holdfast_shared.identifiers import KeyId

# A manual rollback needs two; a threshold role a handful. More is somebody making us work.
SIGNATURES_MAX: Final = 8
ENVELOPE_DEPTH_MAX: Final = 4
_KEY_BYTES: Final = 32


class Signature(msgspec.Struct, frozen=True):
    keyid: str
    sig: str


class Envelope(msgspec.Struct, frozen=True, rename={"payload_type": "payloadType"}):
    """A DSSE envelope; `payload` and `sig` are standard base64."""

    payload: str
    payload_type: str
    signatures: Annotated[tuple[Signature, ...], msgspec.Meta(min_length=1, max_length=SIGNATURES_MAX)]


class Verified(NamedTuple):
    """The signed bytes, and the ids of the *known* keys whose signatures over them are good."""

    payload: bytes
    signers: frozenset[KeyId]


class PublicKey:
    """An Ed25519 public key with its id."""

    __slots__ = ("_key", "key_id", "raw")

    def __init__(self, raw: bytes) -> None:
        if len(raw) != _KEY_BYTES:
            raise Malformed(
                f"an Ed25519 public key has {_KEY_BYTES} bytes, this one {len(raw)}", next_step="export it again"
            )
        self._key = Ed25519PublicKey.from_public_bytes(raw)
        self.raw = raw
        self.key_id = KeyId(hashlib.sha256(raw).hexdigest())

    @classmethod
    def from_text(cls, text: str) -> PublicKey:
        """From standard base64 of the raw bytes, as `authorities.json` and memberships hold it."""
        return cls(_from_base64(text, "public key"))

    def to_text(self) -> str:
        return base64.b64encode(self.raw).decode()

    def verifies(self, signature: bytes, message: bytes) -> bool:
        try:
            self._key.verify(signature, message)
        except InvalidSignature:
            return False
        return True


class PrivateKey:
    """An Ed25519 private key. Its text form is PKCS#8 PEM without a password: the file's mode protects it."""

    __slots__ = ("_key", "public")

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public = PublicKey(key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))

    @classmethod
    def generate(cls) -> PrivateKey:
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_pem(cls, pem: bytes) -> PrivateKey:
        from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415 - 8 MB the verifier never needs

        try:
            key = load_pem_private_key(pem, password=None)
        except (ValueError, TypeError) as error:
            raise Malformed(
                "not a PEM private key without a password", next_step="make one: holdfast key new"
            ) from error
        if not isinstance(key, Ed25519PrivateKey):
            raise Malformed("the private key is not Ed25519", next_step="make one: holdfast key new")
        return cls(key)

    def to_pem(self) -> bytes:
        return self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def sign(self, message: bytes) -> bytes:
        return self._key.sign(message)

    def __repr__(self) -> str:
        return f"PrivateKey({self.public.key_id[:12]}…)"


def media_type(document_type: str) -> str:
    """The payload type of a document: `holdfast.assignment/1` → `application/vnd.holdfast.assignment.v1+json`."""
    name, _, version = document_type.partition("/")
    return f"application/vnd.{name}.v{version}+json"


def pre_authentication_encoding(payload_type: str, payload: bytes) -> bytes:
    """The bytes that are signed: type and body, each with its length, so that neither can be taken for the other."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def sign(payload: bytes, document_type: str, keys: Sequence[PrivateKey]) -> bytes:
    """An envelope over `payload`, signed by every key of `keys`, as JSON bytes."""
    kind = media_type(document_type)
    message = pre_authentication_encoding(kind, payload)
    signatures = tuple(Signature(key.public.key_id, base64.b64encode(key.sign(message)).decode()) for key in keys)
    return strict_json.encode(Envelope(base64.b64encode(payload).decode(), kind, signatures))


def add_signature(envelope: bytes, document_type: str, key: PrivateKey, *, size_bytes_max: int) -> bytes:
    """The same envelope with one more signature: a second person agrees to exactly these bytes."""
    opened = _open(envelope, document_type, size_bytes_max)
    payload = _from_base64(opened.payload, "payload")
    mine = Signature(
        key.public.key_id,
        base64.b64encode(key.sign(pre_authentication_encoding(opened.payload_type, payload))).decode(),
    )
    others = tuple(signature for signature in opened.signatures if signature.keyid != mine.keyid)
    return strict_json.encode(Envelope(opened.payload, opened.payload_type, (*others, mine)))


def unverified_payload(envelope: bytes, document_type: str, *, size_bytes_max: int) -> bytes:
    """The payload, *not verified*: only for bytes that are trusted by their digest, and to look up whose key to use."""
    return _from_base64(_open(envelope, document_type, size_bytes_max).payload, "payload")


def verify(
    envelope: bytes, document_type: str, keys: Mapping[KeyId, PublicKey], *, size_bytes_max: int, threshold: int = 1
) -> Verified:
    """The payload, once `threshold` different keys of `keys` have signed it.

    Raises Malformed when it is no envelope of that type, Untrusted when too few known keys signed it. Signatures by
    unknown keys are passed over; a *bad* signature under a known key's id refuses the whole envelope.
    """
    opened = _open(envelope, document_type, size_bytes_max)
    payload = _from_base64(opened.payload, "payload")
    message = pre_authentication_encoding(opened.payload_type, payload)
    signers: set[KeyId] = set()
    for signature in opened.signatures:
        key = keys.get(KeyId(signature.keyid))
        if key is None:
            continue
        if not key.verifies(_from_base64(signature.sig, "signature"), message):
            raise Untrusted(
                f"the signature by key {signature.keyid[:12]}… does not match the {document_type} payload",
                field="signatures",
                next_step="sign the bytes that are sent, with the key that is named",
            )
        signers.add(key.key_id)
    if len(signers) < threshold:
        named = ", ".join(signature.keyid[:12] + "…" for signature in opened.signatures)
        raise Untrusted(
            f"{document_type} needs {threshold} signature(s) by a key that may sign it; {len(signers)} found (signed by {named})",
            field="signatures",
            next_step="sign it with a key that authorities.json lists for this",
        )
    return Verified(payload, frozenset(signers))


def _open(envelope: bytes, document_type: str, size_bytes_max: int) -> Envelope:
    opened = strict_json.decode(
        envelope,
        Envelope,
        what=f"{document_type} envelope",
        size_bytes_max=size_bytes_max,
        depth_max=ENVELOPE_DEPTH_MAX,
    )
    if opened.payload_type != media_type(document_type):
        raise Malformed(
            f"expected a payload of type {media_type(document_type)}, found {opened.payload_type[:100]!r}",
            field="payloadType",
            next_step=f"send a {document_type}",
        )
    return opened


def _from_base64(text: str, what: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Malformed(
            f"the {what} is not standard base64", field=what, next_step="encode it with base64, padding included"
        ) from error
