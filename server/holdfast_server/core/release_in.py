"""A release in an environment: what devices are given, keep as base, and return to. Each may be taken back alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from holdfast_shared.identifiers import SYSTEM_ENVIRONMENT, EnvironmentField
from holdfast_shared.wire.assignment import ReleaseRef, Rule


class ReleaseIn(ReleaseRef, frozen=True, kw_only=True, omit_defaults=True):
    """As a record from before there were environments has it, in the device's own."""

    environment: EnvironmentField = SYSTEM_ENVIRONMENT

    @property
    def key(self) -> str:
        """The pair in one word, as a device's slot is named."""
        return f"{self.digest}@{self.environment}"

    @property
    def ref(self) -> ReleaseRef:
        """The release alone, as documents name it."""
        return ReleaseRef(version=self.version, digest=self.digest)

    def is_of(self, digest: str, environment: str | None) -> bool:
        """Whether it is that release, in that environment; None: in any."""
        return self.digest == digest and environment in (None, self.environment)


class Taken(msgspec.Struct, frozen=True, kw_only=True):
    """What is taken back: a release wherever it runs; with `environment`, only in that one; without a release, whatever runs in
    that environment.
    """

    release: ReleaseRef | None
    environment: str | None = None

    def holds(self, one: ReleaseIn) -> bool:
        return (self.release is None or one.digest == self.release.digest) and self.environment in (
            None,
            one.environment,
        )

    def includes(self, other: Taken) -> bool:
        """Whether all that `other` holds is held."""
        return (
            self.release is None or (other.release is not None and other.release.digest == self.release.digest)
        ) and (self.environment in (None, other.environment))

    @property
    def mark(self) -> str:
        """What a device that serves it is told by, as in `returning.Said`."""
        digest = "" if self.release is None else self.release.digest
        return digest if self.environment is None else f"{digest}@{self.environment}"

    @property
    def words(self) -> str:
        """As people are told of it."""
        if self.release is None:
            return f"environment {self.environment}"
        return self.release.version if self.environment is None else f"{self.release.version} in {self.environment}"


def in_environment(release: ReleaseRef, environment: str) -> ReleaseIn:
    return ReleaseIn(version=release.version, digest=release.digest, environment=environment)


def rule_fields(release: ReleaseIn, standby: ReleaseIn | None) -> dict[str, Any]:
    """How a rule of a document says both: the device's own environment is left out."""
    fields: dict[str, Any] = {"release": release.ref, "environment": _said(release)}
    if standby is not None:
        fields |= {"standby": standby.ref, "standby_environment": _said(standby)}
    return fields


def said_by(rule: Rule) -> list[ReleaseIn]:
    """What a rule gives to its devices, and what it has them keep beside it."""
    both = ((rule.release, rule.environment), (rule.standby, rule.standby_environment))
    return [in_environment(one, there or SYSTEM_ENVIRONMENT) for one, there in both if one is not None]


def distinct(found: Iterable[ReleaseIn]) -> list[ReleaseIn]:
    """Each once, the first first."""
    return list({one.key: one for one in reversed(list(found))}.values())[::-1]


def _said(one: ReleaseIn) -> str | None:
    return None if one.environment == SYSTEM_ENVIRONMENT else one.environment
