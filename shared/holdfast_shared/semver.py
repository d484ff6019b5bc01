"""SemVer 2.0.0 of models, releases and environments: precedence by the `semver` package, build metadata ignored.

Source: https://semver.org/spec/v2.0.0.html, sections 9-11. Two versions of equal precedence are one version to us:
`1.0.0+a` and `1.0.0+b` cannot both be published.
"""

from __future__ import annotations

from functools import total_ordering
from typing import Annotated, Final

import msgspec
import semver

from holdfast_shared.errors import Malformed

# The specification's own expression, so that a bad version is refused while its document is parsed.
VERSION_PATTERN: Final = (
    r"^(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)"
    r"(?:-((?:0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*)(?:\.(?:0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*))*))?"
    r"(?:\+([0-9a-zA-Z-]+(?:\.[0-9a-zA-Z-]+)*))?$"
)
# Longer than any version people write; short enough for a topic, a table and a log line.
VERSION_LENGTH_MAX: Final = 64
VersionField = Annotated[str, msgspec.Meta(pattern=VERSION_PATTERN, max_length=VERSION_LENGTH_MAX)]


@total_ordering
class Version:
    """A parsed version, ordered and hashed by precedence alone. Raises Malformed when `text` is no SemVer 2.0.0."""

    __slots__ = ("_parsed", "text")

    def __init__(self, text: str) -> None:
        if len(text) > VERSION_LENGTH_MAX or not text.isascii():
            raise Malformed(
                f"{text[:VERSION_LENGTH_MAX]!r} is no version", next_step="write one such as 1.10.0 or 2.0.0-rc.1"
            )
        try:
            self._parsed = semver.Version.parse(text)
        except ValueError as error:
            raise Malformed(f"{text!r} is no SemVer 2.0.0 version", next_step="write one such as 1.10.0") from error
        self.text = text

    @property
    def precedence(self) -> str:
        """The version without build metadata: equal for two versions exactly when neither precedes the other."""
        return str(self._parsed.replace(build=None))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Version) and self._parsed.compare(other._parsed) == 0

    def __lt__(self, other: Version) -> bool:
        return self._parsed.compare(other._parsed) < 0

    def __hash__(self) -> int:
        return hash(self.precedence)

    def __repr__(self) -> str:
        return f"Version({self.text!r})"
