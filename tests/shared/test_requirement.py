"""Whether a version meets a requirement, by SemVer's order; and requirements that nothing could meet are faults."""

from __future__ import annotations

import pytest

from holdfast_shared.requirement import faults_in, in_words, meets
from holdfast_shared.wire.release import Requirement


@pytest.mark.parametrize(
    ("version", "met"),
    [
        ("1.5.9", False),
        ("1.6.0-rc.1", False),
        ("1.6.0", True),
        ("1.6.0+build.7", True),
        ("1.10.0", True),
        ("2.0.0-rc.1", True),
        ("2.0.0", False),
    ],
)
def test_from_at_least_up_to_and_not_including_below(version: str, met: bool) -> None:
    assert meets(version, Requirement(pipeline="q", at_least="1.6.0", below="2.0.0")) is met


def test_without_an_end_every_later_version_meets_it() -> None:
    wanted = Requirement(pipeline="q", at_least="1.6.0")
    assert meets("9.0.0", wanted)
    assert in_words(wanted) == "q from 1.6.0"


def test_each_fault_names_its_field() -> None:
    one = Requirement(pipeline="q", at_least="1.0.0")
    own = Requirement(pipeline="p", at_least="1.0.0", below="1.0.0")
    assert [fault.field for fault in faults_in("p", [one, one, own])] == [
        "requires[1].pipeline",
        "requires[2].pipeline",
        "requires[2].below",
    ]
