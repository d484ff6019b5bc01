"""SemVer 2.0.0 precedence, by the specification's own examples."""

from __future__ import annotations

import itertools

import pytest

from holdfast_shared.errors import Malformed
from holdfast_shared.semver import Version

# Section 11 of the specification, and the mistake everyone makes once.
ASCENDING = [
    "0.9.0",
    "1.0.0-alpha",
    "1.0.0-alpha.1",
    "1.0.0-alpha.beta",
    "1.0.0-beta",
    "1.0.0-beta.2",
    "1.0.0-beta.11",
    "1.0.0-rc.1",
    "1.0.0",
    "1.9.0",
    "1.10.0",
    "2.0.0",
]


def test_precedence_is_the_specification_s() -> None:
    for lower, higher in itertools.combinations(ASCENDING, 2):
        assert Version(lower) < Version(higher), (lower, higher)
        assert not Version(higher) < Version(lower)


def test_build_metadata_is_ignored() -> None:
    assert Version("1.0.0+one") == Version("1.0.0+two")
    assert hash(Version("1.0.0+one")) == hash(Version("1.0.0"))
    assert Version("1.0.0-rc.1+x").precedence == "1.0.0-rc.1"


@pytest.mark.parametrize(
    "text",
    ["", "1", "1.0", "01.0.0", "1.0.0-01", "v1.0.0", "1.0.0 ", "1.0.0-", "1.0.0+", "1.0.0-ä", "１.0.0", "9" * 65],
)
def test_what_is_no_version_is_refused(text: str) -> None:
    with pytest.raises(Malformed):
        Version(text)
