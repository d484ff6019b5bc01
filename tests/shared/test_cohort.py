"""Cohorts nest, are spread evenly, and are the same on every machine and version."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast_shared import cohort


def test_the_bucket_of_a_device_is_frozen() -> None:
    """Computed by hand from the definition: another value would move devices between cohorts in a running rollout."""
    salted = bytes([4]) + b"r-17" + b"camera-1"
    assert cohort.bucket("r-17", "camera-1") == int.from_bytes(hashlib.sha256(salted).digest()[:8], "big") % 10_000
    assert [cohort.bucket("r-17", f"camera-{n}") for n in range(4)] == [7684, 3785, 6228, 8876]


def test_the_salt_s_length_keeps_salt_and_device_apart() -> None:
    assert cohort.bucket("ab", "c") != cohort.bucket("a", "bc")


@given(st.text(max_size=40), st.text(max_size=40), st.integers(0, 10_000), st.integers(0, 10_000))
def test_a_smaller_share_lies_within_a_larger_one(salt: str, device: str, one: int, other: int) -> None:
    small, large = sorted((one, other))
    if cohort.bucket(salt, device) < small:
        assert cohort.bucket(salt, device) < large


def test_shares_are_as_large_as_they_say() -> None:
    inside = sum(cohort.bucket("rollout", f"device-{n}") < 500 for n in range(20_000))
    assert 0.045 < inside / 20_000 < 0.055


def test_a_salt_too_long_for_its_length_byte_is_refused() -> None:
    with pytest.raises(ValueError, match="255"):
        cohort.bucket("x" * 256, "device")
