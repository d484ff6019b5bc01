"""What a release requires of another pipeline: whether a version meets it, and what no requirement may say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from holdfast_shared.semver import Version
from holdfast_shared.wire.release import Requirement


class Fault(NamedTuple):
    """`field` is a path in the release, such as `requires[0].below`."""

    field: str
    words: str


def meets(version: str, wanted: Requirement) -> bool:
    """By the order of versions alone: `1.6.0-rc.1` does not meet `at_least` 1.6.0, and is below it."""
    if Version(version) < Version(wanted.at_least):
        return False
    return wanted.below is None or Version(version) < Version(wanted.below)


def faults_in(pipeline: str, requires: Sequence[Requirement]) -> list[Fault]:
    """What is wrong with the requirements of a release of that pipeline."""
    found = []
    for index, wanted in enumerate(requires):
        here = f"requires[{index}]"
        if wanted.pipeline == pipeline:
            found.append(Fault(f"{here}.pipeline", "is the release's own pipeline; require another one"))
        if any(other.pipeline == wanted.pipeline for other in requires[:index]):
            found.append(Fault(f"{here}.pipeline", f"{wanted.pipeline} is required twice"))
        if wanted.below is not None and Version(wanted.below) <= Version(wanted.at_least):
            found.append(Fault(f"{here}.below", f"no version is below {wanted.below} and at least {wanted.at_least}"))
    return found


def in_words(wanted: Requirement) -> str:
    below = f" and below {wanted.below}" if wanted.below is not None else ""
    return f"{wanted.pipeline} from {wanted.at_least}{below}"
