"""Releases by pipeline, and the colour that each version keeps on every page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from holdfast_shared.errors import Malformed
from holdfast_shared.semver import Version

COLOURS: Final = 8
# (pipeline, version) → a number below COLOURS; a version nobody published has none.
Colours = Mapping[tuple[str, str], int]


def draw(found: Any) -> dict[str, list[Any]]:
    """Pipelines by name, their releases newest version first, each with its colour."""
    chosen = colours(found)
    pipelines: dict[str, list[Any]] = {}
    for release in found["releases"]:
        colour = chosen[release["pipeline"], release["version"]]
        pipelines.setdefault(release["pipeline"], []).append({**release, "colour": colour})
    for listed in pipelines.values():
        listed.sort(key=lambda release: order(release["version"]), reverse=True)
    return dict(sorted(pipelines.items()))


def colours(found: Any) -> Colours:
    """By rank among the published versions: a newer one changes no older one's colour."""
    versions: dict[str, set[str]] = {}
    for release in found["releases"]:
        versions.setdefault(release["pipeline"], set()).add(release["version"])
    return {
        (pipeline, version): rank % COLOURS
        for pipeline, known in versions.items()
        for rank, version in enumerate(sorted(known, key=order))
    }


def colour(chosen: Colours, pipeline: str, version: str | None) -> str:
    """The CSS class of a version: `v0` … `v7`, or `none`."""
    number = chosen.get((pipeline, version or ""))
    return "none" if number is None else f"v{number}"


def order(version: str) -> tuple[int, Version | str]:
    """SemVer precedence; what is no version sorts first."""
    try:
        return (1, Version(version))
    except Malformed:
        return (0, version)
