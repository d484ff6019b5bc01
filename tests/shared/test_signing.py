"""DSSE and Ed25519: what is verified is exactly what was signed, for exactly that type, by a known key."""

from __future__ import annotations

import base64

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast_shared import signing
from holdfast_shared.errors import Malformed, Untrusted
from holdfast_shared.signing import PrivateKey

KIND = "holdfast.assignment/1"
ALICE, BOB, MALLORY = PrivateKey.generate(), PrivateKey.generate(), PrivateKey.generate()
KNOWN = {key.public.key_id: key.public for key in (ALICE, BOB)}


def test_the_pre_authentication_encoding_is_the_specification_s() -> None:
    """The example of DSSE's protocol.md."""
    encoded = signing.pre_authentication_encoding("http://example.com/HelloWorld", b"hello world")
    assert encoded == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"


@given(st.binary(max_size=200))
def test_what_was_signed_comes_back(payload: bytes) -> None:
    envelope = signing.sign(payload, KIND, [ALICE])
    found = signing.verify(envelope, KIND, KNOWN, size_bytes_max=4096)
    assert found.payload == payload
    assert found.signers == {ALICE.public.key_id}


@given(st.binary(min_size=1, max_size=60), st.integers(0, 10**6), st.integers(1, 255))
def test_any_changed_payload_byte_is_refused(payload: bytes, position: int, change: int) -> None:
    envelope = msgspec.json.decode(signing.sign(payload, KIND, [ALICE]))
    changed = bytearray(payload)
    changed[position % len(payload)] ^= change
    envelope["payload"] = base64.b64encode(bytes(changed)).decode()
    with pytest.raises(Untrusted):
        signing.verify(msgspec.json.encode(envelope), KIND, KNOWN, size_bytes_max=4096)


def test_an_unknown_signer_alone_is_not_enough() -> None:
    with pytest.raises(Untrusted, match="needs 1 signature"):
        signing.verify(signing.sign(b"{}", KIND, [MALLORY]), KIND, KNOWN, size_bytes_max=4096)


def test_a_bad_signature_under_a_known_id_refuses_all() -> None:
    envelope = msgspec.json.decode(signing.sign(b"{}", KIND, [ALICE, MALLORY]))
    envelope["signatures"][1]["keyid"] = BOB.public.key_id
    with pytest.raises(Untrusted, match="does not match"):
        signing.verify(msgspec.json.encode(envelope), KIND, KNOWN, size_bytes_max=4096)


def test_a_signature_for_one_type_is_none_for_another() -> None:
    envelope = msgspec.json.decode(signing.sign(b"{}", "holdfast.report/1", [ALICE]))
    envelope["payloadType"] = signing.media_type(KIND)
    with pytest.raises(Untrusted):
        signing.verify(msgspec.json.encode(envelope), KIND, KNOWN, size_bytes_max=4096)
    with pytest.raises(Malformed, match="payload of type"):
        signing.verify(signing.sign(b"{}", "holdfast.report/1", [ALICE]), KIND, KNOWN, size_bytes_max=4096)


def test_two_signatures_by_one_key_are_one_signer() -> None:
    envelope = msgspec.json.decode(signing.sign(b"{}", KIND, [ALICE]))
    envelope["signatures"] *= 2
    with pytest.raises(Untrusted, match="needs 2"):
        signing.verify(msgspec.json.encode(envelope), KIND, KNOWN, size_bytes_max=4096, threshold=2)


def test_a_second_person_signs_the_same_bytes() -> None:
    once = signing.sign(b'{"a":1}', KIND, [ALICE])
    twice = signing.add_signature(once, KIND, BOB, size_bytes_max=4096)
    found = signing.verify(twice, KIND, KNOWN, size_bytes_max=4096, threshold=2)
    assert found.payload == b'{"a":1}'
    assert found.signers == {ALICE.public.key_id, BOB.public.key_id}


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (b"not json", "not valid JSON"),
        (b'{"payload":"e30=","payloadType":"x","signatures":[]}', "signatures"),
        (b'{"payload":"e30=","payloadType":"x"}', "signatures"),
        (
            b'{"payload":"%%%","payloadType":"application/vnd.holdfast.assignment.v1+json","signatures":[{"keyid":"k","sig":"s"}]}',
            "base64",
        ),
        (b"[" * 100, "nests deeper"),
    ],
)
def test_what_is_no_envelope_is_refused_and_named(damage: bytes, named: str) -> None:
    with pytest.raises(Malformed) as refused:
        signing.verify(damage, KIND, KNOWN, size_bytes_max=4096)
    assert named in str(refused.value)


def test_an_envelope_over_its_limit_is_refused_unread() -> None:
    with pytest.raises(Malformed, match="at most 100"):
        signing.verify(signing.sign(b"x" * 500, KIND, [ALICE]), KIND, KNOWN, size_bytes_max=100)


def test_a_private_key_survives_its_file() -> None:
    again = PrivateKey.from_pem(ALICE.to_pem())
    assert again.public.key_id == ALICE.public.key_id
    assert ALICE.public.verifies(again.sign(b"m"), b"m")
    assert "PRIVATE" not in repr(ALICE)


def test_what_is_no_ed25519_key_is_refused() -> None:
    with pytest.raises(Malformed, match="PEM"):
        PrivateKey.from_pem(b"-----BEGIN NOTHING-----")
